"""The cameras of this machine: which there are, what they offer, and how each is opened.

On Linux the kernel is asked (v4l2.py): FFmpeg's list of V4L2 devices has neither sizes nor rates, which the choice
between MJPEG and raw pictures needs, and leaves out what the user may not open. On Windows and macOS PyAV is asked,
whose wheels hold DirectShow and AVFoundation; sizes and rates are not told there.

PyAV also opens them, on all three. OpenCV could, but neither says why a camera does not open, nor keeps the matrix and
range of its pictures.

Never run, for want of such machines: what is for Windows or macOS in here. What is for Linux has been run with drivers
that answer the ioctls, and not with a camera.
"""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.device

from dped_live.errors import InputError
from dped_live.sources import v4l2
from dped_live.sources.v4l2 import Mode

_DEVICES = {"win32": "dshow", "darwin": "avfoundation"}.get(sys.platform, "v4l2")
"""FFmpeg's name for what opens cameras here."""

_SIZE, _RATE = (1280, 720), Fraction(30)
_SMOOTH = Fraction(24)
"""What is looked for where nothing is asked for, and the rate that is then enough."""

NOT_ALLOWED = {
    "darwin": "allow it to this terminal in System Settings > Privacy & Security > Camera",
    "win32": "allow it in Settings > Privacy & security > Camera",
}.get(sys.platform, "run `sudo usermod -aG video $USER` and log in again")


class SourceError(InputError):
    """Why there are no pictures. reason: in words that follow the source's name; advice: what to do or type next."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason, self.advice = reason, advice


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera that is plugged in.

    index: its number on the command line, on Linux that of /dev/videoN. path: how FFmpeg knows it.
    modes: all that it offers, in its own order; empty where that is not known. problem: why it cannot be used.
    """

    index: int
    path: str
    name: str
    modes: tuple[Mode, ...] = ()
    problem: str | None = None

    def __str__(self) -> str:
        """For people: a line for the camera, and one for each size with the fastest rate of each pixel format."""
        lines = [f"{self.index}  {self.name} ({self.path})" + (f": {self.problem}" if self.problem else "")]
        fastest: dict[tuple[int, int], dict[str, Fraction]] = {}
        for mode in self.modes:
            rates = fastest.setdefault((mode.width, mode.height), {})
            rates[mode.pixel_format] = max(mode.rate, rates.get(mode.pixel_format, mode.rate))
        for (width, height), rates in sorted(fastest.items(), reverse=True):
            offers = ", ".join(f"{float(rate):.4g} fps {pixel_format}" for pixel_format, rate in rates.items())
            lines.append(f"   {width}x{height}: {offers}")
        return "\n".join(lines)


def list_cameras() -> list[Camera]:
    """All devices that give pictures: no metadata nodes, no codecs, no outputs."""
    if _DEVICES == "v4l2":
        paths = sorted(Path("/dev").glob("video[0-9]*"), key=_number)
        return [camera for camera in map(_v4l2_camera, paths) if camera]
    devices = [device for device in av.device.enumerate_input_devices(_DEVICES) if "video" in device.media_types]
    address = "video={}" if _DEVICES == "dshow" else "{}:none"
    return [Camera(number, address.format(device.name), device.description) for number, device in enumerate(devices)]


def find_camera(what: str) -> Camera:
    """The camera with this number, path, name or part of a name. Raises SourceError."""
    cameras = list_cameras()
    path = Path(what).resolve()
    if what.isdecimal():
        found = [camera for camera in cameras if camera.index == int(what)]
        kind = "there is no camera of this number"
    elif path.is_char_device():
        found = [camera for camera in cameras if camera.path == str(path)]
        kind = "it is not a camera"
    else:
        found = [camera for camera in cameras if camera.name == what]
        found = found or [camera for camera in cameras if what.casefold() in camera.name.casefold()]
        kind = "there is no camera of this name, and no file"
    if len(found) == 1:
        return found[0]
    if found:
        kind = f"{len(found)} cameras are called so"
    known = ", ".join(f"{camera.index} {camera.name}" for camera in found or cameras)
    advice = f"choose one of `dped-live cameras` ({known})" if known else "plug one in, or try --webcam test"
    raise SourceError(kind, advice)


def open_camera(camera: Camera, size: tuple[int, int] | None, fps: Fraction | None) -> av.container.InputContainer:
    """Open it, in the mode that comes nearest to what is asked for. May block for ever. Raises av.FFmpegError."""
    ways = _ways_to_open(camera, size, fps)
    for options in ways[:-1]:
        try:
            return av.open(camera.path, format=_DEVICES, options=options)
        except av.FFmpegError:  # the device has no such mode, or cannot be opened at all
            continue
    return av.open(camera.path, format=_DEVICES, options=ways[-1])


def best_mode(modes: tuple[Mode, ...], size: tuple[int, int] | None, fps: Fraction | None) -> Mode:
    """The mode that comes nearest to what is asked for.

    An asked size goes before the rate; without one, pictures that move go before 1280x720. Raw pictures are chosen
    only where they are as fast as MJPEG: over USB 2 a camera gives 1080p as MJPEG 30 times a second, and raw 5 times.
    """
    width, height = size or _SIZE
    preference = list(v4l2.USABLE)

    def distance(mode: Mode) -> tuple[Fraction, ...]:
        wrong_size = Fraction(abs(mode.width - width) + abs(mode.height - height))
        too_slow = max(Fraction(0), (fps or _SMOOTH) - mode.rate)
        first = (wrong_size, too_slow) if size else (too_slow, wrong_size)
        return (*first, abs(mode.rate - (fps or _RATE)), Fraction(preference.index(mode.pixel_format)))

    return min(modes, key=distance)


def _ways_to_open(camera: Camera, size: tuple[int, int] | None, fps: Fraction | None) -> list[dict[str, str]]:
    """Options for PyAV; where the device refuses some, the next are tried."""
    if camera.modes:
        mode = best_mode(camera.modes, size, fps)
        asked = {"video_size": f"{mode.width}x{mode.height}", "framerate": str(mode.rate)}
        return [asked | {"input_format": v4l2.USABLE[mode.pixel_format]}]
    if _DEVICES == "v4l2":
        return [{}]
    # DirectShow takes the first of the camera's own formats, raw or MJPEG, that has the size and the rate; its buffer
    # must hold several raw pictures. AVFoundation gives what Apple's cameras have.
    extra = {"rtbufsize": str(1 << 26)} if _DEVICES == "dshow" else {"pixel_format": "nv12"}
    width, height = size or _SIZE
    asked = {"video_size": f"{width}x{height}", "framerate": str(fps or _RATE)}
    return [asked | extra, {"video_size": "640x480", "framerate": "30"} | extra, extra]


def _v4l2_camera(path: Path) -> Camera | None:
    about = Path("/sys/class/video4linux") / path.name
    try:
        known = v4l2.describe(path)
        return known and Camera(_number(path), str(path), *known)
    except PermissionError:
        # Of the nodes of one camera the first gives pictures, and the kernel tells everybody which it is.
        if not (about / "index").exists() or int((about / "index").read_text()) == 0:
            name = (about / "name").read_text().strip() if (about / "name").exists() else path.name
            return Camera(_number(path), str(path), name, problem=f"you may not open it; {NOT_ALLOWED}")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return Camera(_number(path), str(path), path.name, problem=str(error.strerror))
    return None


def _number(path: Path) -> int:
    return int(path.name.removeprefix("video"))
