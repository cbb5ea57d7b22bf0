"""What gives pictures to a live run: a camera, an address, a file played in real time, the test picture.

All of it may block for ever, or take the process with it, and so runs in a process of its own (capture.py).
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from dped_live.sources import testcard
from dped_live.sources.cameras import NOT_ALLOWED, Camera, SourceError, find_camera, open_camera

Image = av.VideoFrame | np.ndarray
"""A decoded picture whose matrix is set; or RGB, (H, W, 3), uint8."""

_OTHER_CAMERA = "unplug it and plug it in again, or choose another of `dped-live cameras`"

_LIVE_OPTIONS = {
    "flags": "low_delay",
    "analyzeduration": "1000000",  # microseconds; with FFmpeg's five seconds a stream seems dead
    "rtsp_flags": "prefer_tcp",  # UDP does not come through most routers, and FFmpeg would wait for it
}
_SEGMENTED = {"hls", "dash"}
"""Live or not, these come several seconds at a time."""

_WAITED = 0.006
"""Seconds. Reading a packet that is there takes less."""

_BEHIND = 0.25
"""Seconds without having waited for a packet, after which there must be more of them than can be shown."""

_LATE = 0.1
"""Seconds after which a file's picture is not shown any more."""

_SELDOM = 0.2
"""Seconds after which a picture is shown all the same."""


class Input(Protocol):
    """name: for people. silent: reason and advice if it is opened and gives no picture.

    frame_rate: what it says of itself; known once the first picture has come.
    """

    name: str
    silent: tuple[str, str]
    frame_rate: Fraction

    def pictures(self) -> Iterator[tuple[float, Image] | None]:
        """Every picture with its moment on the clock of time.monotonic(); None as a sign of life.

        The moment is when the picture came or, if it is not past, when it is to be shown; the next picture must not be
        asked for before it. Pictures are left out where they come faster than they are taken. Ends never; raises
        SourceError.
        """
        ...


def find_input(what: str, size: tuple[int, int] | None, fps: Fraction | None) -> Input:
    """What the user means. Raises SourceError."""
    if what == "test":
        return TestPicture(*(size or (1280, 720)), fps or Fraction(30))
    if "://" in what:
        return Address(what)
    path = Path(what)
    if path.is_dir():
        raise SourceError("it is a folder", "give a camera, a file or an address")
    if path.exists() and not path.is_char_device() and not what.isdecimal():
        return VideoFile(path)
    return CameraInput(find_camera(what), size, fps)


class TestPicture:
    """See testcard.py."""

    name = "test picture"
    silent = ("it gives no picture", "this is a bug; please report it")

    def __init__(self, width: int, height: int, frame_rate: Fraction) -> None:
        self._size = (width, height)
        self.frame_rate = frame_rate

    def pictures(self) -> Iterator[tuple[float, Image]]:
        """Numbered by the time they are due: a machine that is too slow leaves numbers out."""
        begin, number = time.monotonic(), -1
        while True:
            number = max(number + 1, int((time.monotonic() - begin) * self.frame_rate))
            seconds = float(number / self.frame_rate)
            yield begin + seconds, testcard.draw(number, seconds, *self._size)


class VideoFile:
    """A file, in real time, again and again."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.silent = ("it can be opened but not read", "choose another file")
        self.frame_rate = Fraction(0)
        self._path = path

    def pictures(self) -> Iterator[tuple[float, Image]]:
        with _reported(self._reason):
            container = self._open()
            self.frame_rate = _frame_rate(container)
            yield from _in_their_time(container, self._open)

    def _open(self) -> av.container.InputContainer:
        # The prefix keeps FFmpeg from reading a protocol into a name such as `a:b.mp4`.
        return av.open(f"file:{self._path}", metadata_errors="surrogateescape")

    def _reason(self, error: av.FFmpegError) -> SourceError:
        if isinstance(error, av.error.InvalidDataError):
            return SourceError("it is no video, or damaged at its very beginning", "choose another file")
        return SourceError(f"it cannot be read ({error.strerror})", "choose another file")


class Address:
    """A stream from the network, or a file there, which is played as one that is here."""

    def __init__(self, address: str) -> None:
        self.name = re.sub(r"//[^/]*@", "//", address)  # passwords are not shown
        self.silent = ("nothing comes from there", "look whether it is sending")
        self.frame_rate = Fraction(0)
        self._address = address

    def pictures(self) -> Iterator[tuple[float, Image] | None]:
        with _reported(self._reason):
            container = self._open()
        yield None
        with _reported(self._reason_later):
            self.frame_rate = _frame_rate(container)
            if container.duration is not None or container.format.name in _SEGMENTED:
                yield from _in_their_time(container, self._open)
            yield from _as_they_come(container)
        raise SourceError("the stream has ended", "look whether it is sending")

    def _open(self) -> av.container.InputContainer:
        return av.open(self._address, options=_LIVE_OPTIONS, metadata_errors="surrogateescape")

    def _reason(self, error: av.FFmpegError) -> SourceError:
        return SourceError(f"it cannot be reached ({error.strerror})", "check the address, and whether it is sending")

    def _reason_later(self, error: av.FFmpegError) -> SourceError:
        return SourceError(f"the stream has ended ({error.strerror})", "look whether it is sending")


class CameraInput:
    """A camera of this machine."""

    def __init__(self, camera: Camera, size: tuple[int, int] | None, fps: Fraction | None) -> None:
        self.name = f"{camera.name} ({camera.path})"
        self.silent = ("it can be opened but gives no picture", _OTHER_CAMERA)
        self.frame_rate = Fraction(0)
        self._camera, self._size, self._fps = camera, size, fps

    def pictures(self) -> Iterator[tuple[float, Image]]:
        with _reported(self._reason):
            container = open_camera(self._camera, self._size, self._fps)
        with _reported(self._reason_later):
            self.frame_rate = _frame_rate(container)
            yield from _as_they_come(container, camera=True)
        raise SourceError("it gives no more pictures", _OTHER_CAMERA)

    def _reason(self, error: av.FFmpegError) -> SourceError:
        if error.errno == errno.EBUSY:
            return SourceError("another program uses it", "close that one, or choose another of `dped-live cameras`")
        if error.errno in (errno.EACCES, errno.EPERM):
            return SourceError("you may not open it", NOT_ALLOWED)
        advice = f"if no other program uses it, {_OTHER_CAMERA}"
        return SourceError(f"it cannot be opened ({error.strerror})", advice)

    def _reason_later(self, error: av.FFmpegError) -> SourceError:
        if error.errno in (errno.ENODEV, errno.EINVAL, errno.EIO, errno.ENXIO):
            return SourceError("it was unplugged", "plug it in again")
        return SourceError(f"it broke off ({error.strerror})", _OTHER_CAMERA)


@contextmanager
def _reported(reason: Callable[[av.FFmpegError], SourceError]) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise reason(error) from error


def _as_they_come(
    container: av.container.InputContainer, camera: bool = False
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Every picture with the time its packet came; where decoding is too slow, those that nobody would see left out.

    Otherwise what waits in the device or the network would become the delay of all that follows.
    """
    stream = _video_stream(container)
    stream.thread_type = "SLICE"  # threads that each decode a frame would each hold one back
    intra_only = stream.codec_context.codec.intra_only
    packets = container.demux(stream)
    waited = shown = time.monotonic()
    while True:
        asked = time.monotonic()
        try:
            packet = next(packets, None)
        except BlockingIOError:  # AVFoundation does not wait for the next picture
            time.sleep(0.002)
            waited, packets = time.monotonic(), container.demux(stream)
            continue
        if packet is None:
            return
        came = time.monotonic()
        if came - asked > _WAITED:
            waited = came
        skip = came - waited > _BEHIND and came - shown < _SELDOM
        if skip and intra_only:
            continue
        for picture in _decode(packet):
            if not skip:
                shown = came
                yield came, _tagged(picture, camera)


def _in_their_time(
    container: av.container.InputContainer, reopen: Callable[[], av.container.InputContainer]
) -> Iterator[tuple[float, av.VideoFrame]]:
    """The pictures, each at the time that its timestamp says; opened again at the end. Never ends."""
    begin = shown = time.monotonic()
    while True:
        with closing(container):
            stream = _video_stream(container)
            stream.thread_type = "AUTO"
            step = float(1 / _frame_rate(container))
            first, elapsed = None, -step
            for packet in container.demux(stream):
                for picture in _decode(packet):
                    stamp = picture.time
                    if first is None:
                        first = stamp or 0.0
                    # Timestamps may be missing, and those of AVI go back and forth.
                    elapsed = max(elapsed, stamp - first) if stamp is not None else elapsed + step
                    now = time.monotonic()
                    if now - begin - elapsed > 1:  # too slow for too long, or the machine has slept
                        begin = now - elapsed
                    if now - begin - elapsed < _LATE or now - shown > _SELDOM:
                        shown = now
                        yield begin + elapsed, _tagged(picture)
            # A decoder with frame threads that is closed in mid-stream may otherwise never return.
            stream.codec_context.flush_buffers()
            if first is None:
                raise SourceError("no picture in it can be decoded", "choose another")
            begin += elapsed + step
        container = reopen()


def _decode(packet: av.Packet[Any]) -> list[av.VideoFrame]:
    try:
        return packet.decode()
    except av.FFmpegError:  # damaged; the next may not be
        return []


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    cover = av.stream.Disposition.attached_pic
    videos = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not videos:
        raise SourceError("there is no video in it", "choose another")
    return max(videos, key=lambda stream: bool(stream.disposition & av.stream.Disposition.default))


def _frame_rate(container: av.container.InputContainer) -> Fraction:
    """What the stream says; 30 where it says nothing, or names its clock."""
    stream = _video_stream(container)
    return next((rate for rate in (stream.average_rate, stream.guessed_rate) if rate and rate <= 240), Fraction(30))


def _tagged(picture: av.VideoFrame, camera: bool = False) -> av.VideoFrame:
    """The same picture with its matrix set, as sources/file.py does; cameras that say nothing give BT.601."""
    if picture.colorspace == 2:
        picture.colorspace = 1 if picture.height >= 720 and not camera else 5
    return picture
