"""Pictures that come by themselves: a camera, a stream, a file played in real time, the test picture.

They are read in a process of their own (capture.py, inputs.py). A driver may block for ever and know no timeout, the
network may, and libraries have crashed on what comes from both: a process can be killed whatever it does, and its
work begun anew.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from dped_live.child_process import Child, EndedError, Message
from dped_live.errors import InputError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.sources.cameras import SourceError
from dped_live.sources.capture import capture

_TICK = Fraction(1, 90_000)

_LOOK_ROUND = 0.2
"""Seconds after which frames() gives the caller its turn."""

_PATIENCE = 4.0
"""Seconds of silence after which a source has failed."""

_START = 30.0
"""Seconds that its process may take to start on a machine that is busy."""

_PAUSES = (1.0, 2.0, 4.0, 8.0, 10.0)
"""Seconds before a source that has failed is opened again, the first time and so on; the last one from then on."""


def open_live_source(what: str, size: tuple[int, int] | None = None, fps: Fraction | None = None) -> LiveSource:
    """Open a camera, stream or file, and wait for its first picture, which takes at most about five seconds.

    what: a camera's number, path, name or part of its name; an address (rtsp://, http://, udp://, rtmp://, ...); a
    file, which is played in real time again and again; or "test", a picture that moves (testcard.py).
    size: (width, height), fps: what to ask a camera or the test picture for; for a camera that has neither, the nearest
    is taken, and LiveSource.notes tells. Without them a camera is asked for 1280x720 at 30.

    Raises InputError: there is no such thing, another program uses it, it may not be opened, it is silent, ...
    """
    reader = _Reader(what, size, fps)
    try:
        while "opened" not in (message := reader.hear(_LOOK_ROUND)):
            pass
    except SourceError as error:
        reader.close()
        raise InputError(f"{reader.name}: {error}") from error
    except BaseException:
        reader.close()
        raise
    width, height = message["opened"]
    video_format = VideoFormat(width, height, PIXEL_FORMATS["rgb24"], time_base=_TICK)
    return LiveSource(reader, video_format, Fraction(message["rate"]), message["notes"])


class LiveSource:
    """What open_live_source has opened. To be used by one thread, but for `notice`.

    Where the source fails later it is opened again and again, and `notice` tells why; pictures of another size are
    then scaled to the size of the first.

    format: RGB, uint8, full range. frame_rate: as the source says; cameras may be slower, in the dark for example.
    name: for people. notes: at opening. notice: what is wrong at present, None while pictures come.
    """

    def __init__(self, reader: _Reader, video_format: VideoFormat, frame_rate: Fraction, notes: list[str]) -> None:
        self.format, self.frame_rate = video_format, frame_rate
        self.name, self.notes = reader.name, notes
        self.notice: str | None = None
        self._reader = reader
        self._memory = SharedMemory(create=True, size=video_format.width * video_format.height * 3)
        self._reader.answer(memory=self._memory.name)
        self._began_at: float | None = None
        self._ticks = -1

    def frames(self) -> Iterator[Frame | None]:
        """The pictures that come while the caller is waiting for one; None after 0.2 seconds without.

        pts, captured_at: when the picture left the driver or the network; of files and the test picture, when it was
        due. The planes belong to the frame. Never ends; to be called once.
        """
        failures = 0
        left_at = 0.0
        while True:
            try:
                if time.monotonic() - left_at > 2 / self.frame_rate and self._wait(0) is not None:
                    self._reader.answer()  # the caller was away, and this one is old
                captured_at = self._wait(_LOOK_ROUND)
            except SourceError as error:
                if self.notice is None or self._reader.has_found:  # "it was unplugged" tells more than "not there"
                    self.notice = f"{self.name}: {error.reason}; waiting for it"
                self._reader.close()
                yield from _nothing(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
                self._reader = self._reader.successor((self.format.height, self.format.width))
                continue
            frame = None
            if captured_at is not None:
                self.notice, failures = None, 0
                frame = self._frame(captured_at)
                self._reader.answer()
            left_at = time.monotonic()
            yield frame

    def close(self) -> None:
        """End the process that reads, whatever it is doing. Exactly once."""
        self._reader.close()
        self._memory.close()
        self._memory.unlink()

    def _wait(self, seconds: float) -> float | None:
        """When the picture was captured that is in the memory now; None if none has come. Raises SourceError."""
        message = self._reader.hear(seconds)
        if "opened" in message:
            self._reader.answer(memory=self._memory.name)
        captured_at: float | None = message.get("picture")
        return captured_at

    def _frame(self, captured_at: float) -> Frame:
        if self._began_at is None:
            self._began_at = captured_at
        self._ticks = max(self._ticks + 1, round((captured_at - self._began_at) / _TICK))
        shape = (self.format.height, self.format.width, 3)
        picture = np.ndarray(shape, np.uint8, self._memory.buf).copy()
        return Frame((picture,), self.format, self._ticks * _TICK, captured_at=captured_at)


class _Reader:
    """The process that reads, from its start to its end; capture.py says what the two tell each other.

    name: for people, as far as it is known. has_found: whether it has come as far as opening the source.
    """

    def __init__(
        self, what: str, size: tuple[int, int] | None, fps: Fraction | None, shape: tuple[int, int] | None = None
    ) -> None:
        self._asked = (what, size, fps)
        self.name = what
        self.has_found = False
        self._silent = ("the process that is to read it does not start", "try again when the machine is less busy")
        self._patience = _START
        self._waited = 0.0
        self._child = Child(capture, *self._asked, shape)

    def successor(self, shape: tuple[int, int]) -> _Reader:
        """Another process that reads the same, and scales to the shape (H, W)."""
        return _Reader(*self._asked, shape)

    def hear(self, seconds: float) -> Message:
        """The next message; an empty one if none comes in this time. Raises SourceError if none will."""
        try:
            message = self._child.hear(seconds)
        except EndedError as error:
            raise SourceError("the process that reads it has ended", "try again") from error
        if message is None:
            # Not by the clock: while the caller was away, or all of us were stopped, nobody has been silent.
            self._waited += seconds
            if self._waited >= self._patience:
                raise SourceError(*self._silent)
            return {}
        self._waited = 0.0
        if "opening" in message:
            self.has_found = True
            self.name, self._silent, self._patience = message["opening"], message["silent"], _PATIENCE
        if "failed" in message:
            raise SourceError(*message["failed"])
        return message

    def answer(self, **message: str) -> None:
        with contextlib.suppress(EndedError):  # if it has ended, the next hear() will tell
            self._child.tell(**message)

    def close(self) -> None:
        """Kill it, for it has nothing of its own to put in order. May be called again."""
        self._child.end()


def _nothing(seconds: float) -> Iterator[None]:
    """None every 0.2 seconds for so long."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_ROUND))
        yield None
