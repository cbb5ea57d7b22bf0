"""A live run recorded to a file: the pictures' own times, and the microphone if asked for."""

from __future__ import annotations

import contextlib
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np

from dped_live.errors import OutputError
from dped_live.frame import Frame, VideoFormat
from dped_live.live_state import LivePicture, LiveStats
from dped_live.sinks.encoding import Encoding, resolved
from dped_live.sinks.file import FileSink
from dped_live.sinks.live_video import Converter, live_format, rgb_format

ENCODING = Encoding(crf=20)
"""Beside a live run there is little time to encode, and a camera's noise makes large files."""

_SECONDS_WAITING, _BYTES_WAITING = 2, 256 << 20
"""How many pictures may wait while the encoder is busy: so many seconds, if these bytes are enough."""


class Microphone(Protocol):
    """See sources/microphone.py. Used by one thread.

    rate: samples a second. notice: what is wrong at present, one line; None while sound comes.
    """

    rate: int
    notice: str | None

    def read(self) -> tuple[float, np.ndarray]:
        """The sound since the last call: when its first sample was captured, on the clock of time.monotonic(), and the
        samples, (n,), int16. Never waits."""
        ...

    def close(self) -> None: ...


class RecordingSink:
    """A LiveSink that writes the enhanced pictures to an MP4, MOV or Matroska file.

    A picture's time in the file is its pts, counted from the first one that is written: where the camera is slow or
    stands still, so is the recording. In Matroska times are rounded to milliseconds.

    The file is NAME.part.EXT, and NAME.EXT once it is finished. Whatever ends the program, what is in NAME.part.EXT
    can be played, but for about the last second.

    width, height: of the pictures; frame_rate: roughly. microphone: recorded too, in sync, as mono AAC; becomes this
    sink's, which closes it. `notice`: what is wrong at present, one line; may be read by any thread. notes: of its
    opening.

    Raises OutputError: the folder does not exist, the file does, the disk is full, no such kind of file, ...
    """

    on_main_thread = False
    steady = False
    seconds_between = 0.5

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        frame_rate: Fraction,
        encoding: Encoding = ENCODING,
        microphone: Microphone | None = None,
        overwrite: bool = False,
    ) -> None:
        self.name = str(path)
        # A LivePicture keeps the original as well.
        self.capacity = max(2, min(round(_SECONDS_WAITING * frame_rate), _BYTES_WAITING // (6 * width * height)))
        self._path = path
        self._first: Fraction | None = None  # pts
        self._last = Fraction(-1)
        self._failed = False
        self._microphone = microphone
        self._sound = None if microphone is None else _Sound(microphone)
        try:
            encoding, choice = resolved(encoding, rgb_format(width, height))
            self.notes = [] if choice is None else [choice]
            self._format = live_format(width, height, encoding.codec)
            self._converter = Converter(self._format)
            self._duration = 1 / frame_rate
            self._file = FileSink(
                path, self._format, frame_rate, encoding, overwrite=overwrite, sound=self._sound, live=True
            )
        except BaseException:
            self._release()
            raise

    @property
    def notice(self) -> str | None:
        return None if self._microphone is None else self._microphone.notice

    def write(self, picture: LivePicture, stats: LiveStats) -> None:  # noqa: ARG002 - a LiveSink's
        """Record the picture, unless it is the last one again."""
        if self._first is None:
            self._first = picture.pts
            if self._sound is not None:
                self._sound.begin(picture.captured_at)
        if self._sound is not None:
            self._sound.encode()
        pts = picture.pts - self._first
        if pts <= self._last:
            return
        self._last = pts
        planes = _planes(self._converter.convert(picture.after), self._format)
        try:
            self._file.write(Frame(planes, self._format, pts, self._duration))
        except OutputError as error:
            self._failed = True
            with contextlib.suppress(OutputError):  # for the same reason
                self._file.close(complete=False)
            raise self._ended_by(error) from error

    def close(self) -> None:
        """Finish the file and give it its name."""
        try:
            if self._failed:
                return
            if self._sound is not None and self._first is not None:
                self._sound.encode()
            self._file.close(complete=self._first is not None)
        except OutputError as error:
            raise self._ended_by(error) from error
        finally:
            self._release()
        if self._first is None:
            raise OutputError(f"{self._path}: there was no picture to record; nothing written")

    def _ended_by(self, error: OutputError) -> OutputError:
        kept = self._file.kept
        return OutputError(f"{error}; what was recorded is in {kept}") if kept else error

    def _release(self) -> None:
        if self._microphone is not None:
            self._microphone.close()


class _Sound:
    """A microphone's sound as packets of AAC whose times count from a given moment.

    Its clock and this machine's run apart by seconds a day: FFmpeg's resampler follows the moments of capture, and
    fills what is missing with silence.
    """

    def __init__(self, microphone: Microphone) -> None:
        self._microphone = microphone
        self._begin = 0.0
        self._packets: deque[av.Packet[av.AudioStream]] = deque()
        rate = microphone.rate
        self._graph = av.filter.Graph()
        nodes = [
            self._graph.add_abuffer(sample_rate=rate, format="s16", layout="mono", time_base=Fraction(1, rate)),
            self._graph.add("aresample", f"{rate}:async=1000:min_hard_comp=0.05:first_pts=0"),
            self._graph.add("abuffersink"),
        ]
        self._graph.link_nodes(*nodes).configure()

    def add_to(self, container: av.container.OutputContainer) -> av.AudioStream:
        self._stream = container.add_stream("aac", self._microphone.rate, layout="mono", bit_rate=128_000)
        return self._stream

    def next_packet(self) -> av.Packet[av.AudioStream] | None:
        return self._packets.popleft() if self._packets else None

    def begin(self, moment: float) -> None:
        """On the clock of time.monotonic(). What was captured before is left out."""
        self._begin = moment

    def encode(self) -> None:
        """Encode what has come since the last time."""
        moment, samples = self._microphone.read()
        if not samples.size:
            return
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate = self._microphone.rate
        frame.time_base = Fraction(1, self._microphone.rate)
        frame.pts = round((moment - self._begin) * self._microphone.rate)
        self._graph.push(frame)
        with contextlib.suppress(BlockingIOError):  # nothing more is ready
            while True:
                resampled = self._graph.pull()
                assert isinstance(resampled, av.AudioFrame)
                self._packets.extend(self._stream.encode(resampled))


def _planes(frame: av.VideoFrame, fmt: VideoFormat) -> tuple[np.ndarray, ...]:
    """Views of the frame's planes."""
    planes = []
    for number, plane in enumerate(frame.planes):
        y, x = (fmt.pixel_format.chroma_shift_y, fmt.pixel_format.chroma_shift_x) if number else (0, 0)
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[: -(-fmt.height >> y), : -(-fmt.width >> x)])
    return tuple(planes)
