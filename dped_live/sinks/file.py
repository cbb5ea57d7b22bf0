"""Frames into a video file, through PyAV (FFmpeg), with the sound of the file they came from."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import av

from dped_live.errors import InputError, OutputError
from dped_live.frame import Frame, VideoFormat
from dped_live.partial import PartialFile
from dped_live.sinks.encoding import QUALITY, Encoding, configure, encoder_of, options_of, to_picture

_OF_THE_DISK = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}
"""Errors of writing a header that have nothing to do with what is written."""

_PRIMING = Fraction(1, 10)
"""Seconds of sound before the first that is heard: AAC needs up to three packets (64 ms) to start up."""

_IN_FRAGMENTS = {"movflags": "hybrid_fragmented+delay_moov", "frag_duration": "500000"}
_CRASH_SAFE = {"mp4": _IN_FRAGMENTS, "mov": _IN_FRAGMENTS, "matroska": {"cluster_time_limit": "500"}}
"""By container: what half a second (500,000 us) needs to be played by itself. An MP4 that is finished is an ordinary
one."""


@dataclass(frozen=True, slots=True)
class Companion:
    """The file that the frames come from, for what goes into the output unchanged: metadata, and the first sound.

    start: seconds that its source took off the frames' times (FileSource.start).
    """

    path: Path
    start: Fraction
    audio: bool = True


class LiveSound(Protocol):
    """Sound that is encoded while it comes."""

    def add_to(self, container: av.container.OutputContainer) -> av.AudioStream:
        """Called once, before the first packet is asked for."""
        ...

    def next_packet(self) -> av.Packet[av.AudioStream] | None:
        """The oldest that was not taken yet; None if there is none yet."""
        ...


class FileSink:
    """A video file, written under a temporary name and renamed when complete.

    path: the suffix names the container. fmt: of every frame that will be written. frame_rate: a hint for the
    encoder; each frame keeps its own time. Frames that do not move forward in time are moved on by one tick.
    sound: instead of a companion's.
    crash_safe: what is under the temporary name can be played at any moment, up to the last second or so (the half
    second that is being collected, and what the encoder has not given yet), with a keyframe every two seconds;
    MP4, MOV and Matroska only.
    `notes` and `kept` may be read after close(): what a user should know, and where an incomplete file was left.

    Raises OutputError. Used by one thread at a time.
    """

    def __init__(
        self,
        path: Path,
        fmt: VideoFormat,
        frame_rate: Fraction,
        encoding: Encoding,
        companion: Companion | None = None,
        overwrite: bool = False,
        sound: LiveSound | None = None,
        crash_safe: bool = False,
    ) -> None:
        self.notes: list[str] = []
        self.kept: Path | None = None
        self._path = path
        self._format = fmt
        self._companion = companion
        self._last_tick: int | None = None
        self._moved = self._written = self._packets = 0
        self._end = Fraction(0)
        self._partial = PartialFile(path, overwrite)
        self._input: av.container.InputContainer | None = None
        try:
            self._open(frame_rate, encoding, sound, crash_safe)
        except BaseException:
            self._release()
            self._partial.discard()
            raise

    def _open(self, frame_rate: Fraction, encoding: Encoding, sound: LiveSound | None, crash_safe: bool) -> None:
        path = self._path
        try:
            self._container = av.open(f"file:{self._partial.path}", "w", metadata_errors="surrogateescape")
        except ValueError as error:
            raise OutputError(f"{path}: no container has the suffix {path.suffix!r}; use .mp4, .mkv or .mov") from error
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        codec = encoder_of(encoding.codec)
        # SVT-AV1 would print a page of its settings; there is no option for it.
        os.environ.setdefault("SVT_LOG", "1")
        try:
            stream = self._container.add_stream(codec.name, frame_rate, options=options_of(codec.name, encoding))
        except ValueError as error:
            raise OutputError(
                f"{path}: {path.suffix} files cannot hold {encoding.codec}; use --codec for another, or .mkv"
            ) from error
        if not isinstance(stream, av.VideoStream):
            raise OutputError(f"{encoding.codec} is no encoder for video; try --codec {', '.join(QUALITY)}")
        self._video = stream
        configure(self._video.codec_context, self._format)
        if self._format.display_matrix is not None:
            self._video.set_display_matrix(self._format.display_matrix)
        self._audio_out: av.AudioStream | None = None
        self._next_audio: Callable[[], av.Packet[av.AudioStream] | None] = lambda: None
        if self._companion is not None:
            self._open_companion(self._companion)
        if sound is not None:
            self._audio_out, self._next_audio = sound.add_to(self._container), sound.next_packet
        self._pending = self._next_audio()
        if crash_safe:
            self._make_crash_safe(frame_rate)
        self._container.container_options["movie_timescale"] = str(self._movie_clock())
        try:
            # Explicitly: if writing the header failed inside mux(), the next mux() would crash the process.
            self._container.start_encoding()
        except (av.FFmpegError, OSError, ValueError) as error:
            if getattr(error, "errno", None) in _OF_THE_DISK:
                raise OutputError(f"{path}: {_reason(error)}") from error
            with_sound = "" if self._audio_out is None else f" with {self._audio_out.codec_context.name} sound"
            tuned = encoding.crf is not None or encoding.preset is not None
            raise OutputError(
                f"{path}: a {path.suffix} file of {encoding.codec}{with_sound} at {self._format.width}x"
                f"{self._format.height} cannot be made ({_reason(error)}); "
                f"{'check --crf and --preset' if tuned else 'try a .mkv, or another --codec'}"
            ) from error

    def _make_crash_safe(self, frame_rate: Fraction) -> None:
        options = _CRASH_SAFE.get(self._container.format.name)
        if options is None:
            raise OutputError(f"{self._path}: only a .mp4, .mov or .mkv file survives a crash; record to one of these")
        self._container.container_options.update(options)
        # FFmpeg would keep the last quarter of a megabyte, and wait ten seconds for sound that does not come.
        self._container.container_options.update({"flush_packets": "1", "max_interleave_delta": "1000000"})
        self._video.codec_context.gop_size = round(2 * frame_rate)

    def _movie_clock(self) -> int:
        """Ticks a second in which an MP4 or MOV says where a stream begins (by default only 1000; rounded down).

        A multiple of the video's clock, and fine enough to hit the right tick of the sound's.
        """
        video = self._format.time_base.denominator
        audio = 1 if self._audio_out is None else self._audio_out.codec_context.sample_rate
        return video * -(-max(2 * audio, 1000) // video)

    def _open_companion(self, companion: Companion) -> None:
        try:
            self._input = av.open(f"file:{companion.path}", metadata_errors="surrogateescape")
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{companion.path}: {_reason(error)}") from error
        self._container.metadata.update(_carried(self._input.metadata))
        if not companion.audio or not self._input.streams.audio:
            return
        source = self._input.streams.audio[0]
        # Of a stream that FFmpeg cannot make out there is no codec, or one without a sample rate.
        known = source.codec_context is not None and source.codec_context.sample_rate
        try:
            if not known:
                raise ValueError("unknown codec")
            self._audio_out = self._container.add_stream_from_template(source)
        except ValueError:
            name = source.codec_context.name if known else "of an unknown codec"
            self.notes.append(f"the sound ({name}) cannot go into a {self._path.suffix} file and is left out")
            return
        self._audio_out.metadata.update(_carried(source.metadata))
        self._next_audio = partial(next, self._copied(self._input, source, self._audio_out), None)

    def _copied(
        self, container: av.container.InputContainer, source: av.AudioStream, target: av.AudioStream
    ) -> Iterator[av.Packet[av.AudioStream]]:
        assert self._companion is not None
        # Exact where the file has one clock, as all that need a shift do.
        shift = round(self._companion.start / (source.time_base or 1))
        for packet in container.demux(source):
            # The last one is empty. What an edit list cuts off goes, but for what the decoder needs to start up.
            if packet.dts is None or (packet.is_discard and _time(packet) < -_PRIMING):
                continue
            packet.stream = target
            packet.dts -= shift
            packet.pts = None if packet.pts is None else packet.pts - shift
            yield packet

    def write(self, frame: Frame) -> None:
        """Encode a frame of the sink's format. Reads the planes before it returns."""
        tick = round(frame.pts / self._format.time_base)
        if self._last_tick is not None and tick <= self._last_tick:
            tick = self._last_tick + 1
            self._moved += 1
        self._last_tick = tick
        self._end = frame.pts + (frame.duration or 0)
        self._written += 1
        self._encode(to_picture(frame, self._format, tick))

    def close(self, complete: bool) -> None:
        """Finish the file; under its final name if complete, else what there is stays under the temporary one.

        Raises OutputError if the file cannot be finished, or holds another number of pictures than were written.
        """
        finished = False
        try:
            if self._written:
                self._encode(None)
                self._copy_audio(until=None if complete else self._end)
            self._container.close()
            if self._packets != self._written:
                raise OutputError(
                    f"{self._path}: {self._written} pictures were written and {self._packets} came out of the encoder"
                )
            finished = True
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: {_reason(error)}") from error
        finally:
            self._release()
            if not (complete and finished):
                if self._written and _is_playable(self._partial.path):
                    self.kept = self._partial.path
                else:
                    self._partial.discard()
        if complete:
            self._partial.publish()
        if self._moved:
            self.notes.append(f"{self._moved} pictures had a time not after the one before; moved on by a tick")

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            for packet in self._video.encode(picture):
                self._packets += 1
                self._copy_audio(until=_time(packet))
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: {_reason(error)}") from error

    def _copy_audio(self, until: Fraction | None) -> None:
        """Sound up to a time in seconds; to the end if None. Keeps the streams interleaved in the file."""
        if self._pending is None:
            self._pending = self._next_audio()
        while self._pending is not None:
            packet = self._pending
            if until is not None and _time(packet) > until:
                return
            self._container.mux(packet)
            self._pending = self._next_audio()

    def _release(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None
        if hasattr(self, "_container"):
            # What cannot be written now could not be before, which was raised then.
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()


def _time(packet: av.Packet[Any]) -> Fraction:
    """Decoding time in seconds."""
    assert packet.dts is not None
    assert packet.time_base is not None
    return packet.dts * packet.time_base


def _is_playable(path: Path) -> bool:
    """An MP4 that was not finished is not: where its pictures lie is written last."""
    try:
        with av.open(f"file:{path}") as container:
            return next(container.decode(video=0), None) is not None
    except (av.FFmpegError, OSError, IndexError):
        return False


def _carried(metadata: dict[str, str]) -> dict[str, str]:
    """Without what describes the old file rather than its content; muxers write their own."""
    old = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration", "handler_name", "vendor_id")
    return {key: value for key, value in metadata.items() if key.lower() not in old and not key.startswith("_")}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
