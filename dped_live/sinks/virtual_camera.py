"""A virtual camera that video calls can choose, by pyvirtualcam: v4l2loopback on Linux, OBS on Windows and macOS.

pyvirtualcam's licence is the GPL, version 2; it is an optional package that the user installs.

It is given RGB. What the call application gets is YUV 4:2:0 or 4:2:2, BT.601 in limited range, converted by
pyvirtualcam, whose chroma is the mean of the pixels that share it (OpenCV's is the first one's). RGB itself would be
black in some of them.

An application that looks for cameras once, when it starts, must be started after this one.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from dped_live.errors import OutputError
from dped_live.live_state import LivePicture, LiveStats
from dped_live.sinks.overlay import fitted, with_notice

_DEFAULT_SIZE = 1280, 720

_STALLED = 1.0
"""Seconds without a new picture after which those who watch are told why."""

_LOAD = "sudo modprobe v4l2loopback devices=1 exclusive_caps=1 card_label=dped-live"
"""exclusive_caps=1: without it Chrome, Zoom and others do not take the device for a camera."""

_ONCE_STARTED = "click Start Virtual Camera in OBS 30 or newer (https://obsproject.com) once, stop it and close OBS"


def accepted_size(width: int, height: int) -> tuple[int, int]:
    """A virtual camera's size for pictures of width x height: the same if applications take it, else 1280x720.

    They want even sizes, and on macOS rows of a multiple of 64 bytes, which is 32 pixels; where these are not met,
    the picture is green, slanted or missing (pyvirtualcam #110, v4l2loopback #472).
    """
    return (width, height) if width % 32 == 0 and height % 2 == 0 and min(width, height) >= 64 else _DEFAULT_SIZE


class VirtualCameraSink:
    """A virtual camera that gets a picture at each tick of its own rate, the last one again where there is no new one.

    width, height: of the pictures; see accepted_size. fps: of the virtual camera.
    device: /dev/videoN on Linux, "OBS Virtual Camera" or "Unity Video Capture" elsewhere; None: the first that is free.
    `name` is the device that was opened; `notes` holds what a user should know about it.

    Raises OutputError, with what to do, if there is no such device or it cannot be used.
    """

    on_main_thread = False
    steady = True
    capacity = 1
    notice: str | None = None

    def __init__(self, width: int, height: int, fps: float, device: str | None) -> None:
        try:
            import pyvirtualcam
        except ImportError as error:
            raise OutputError(
                f"--virtual-cam: {error}; pip install 'dped-live[virtual-cam]' (pyvirtualcam's licence is the GPL-2)"
            ) from error
        self.seconds_between = 1 / fps
        self._size = accepted_size(width, height)
        try:
            self._camera = pyvirtualcam.Camera(*self._size, fps, fmt=pyvirtualcam.PixelFormat.RGB, device=device)
        except RuntimeError as error:
            raise OutputError(advice(sys.platform, device, str(error))) from error
        self.name: str = self._camera.device
        self.notes: list[str] = []
        if self._size != (width, height):
            size = "x".join(map(str, self._size))
            self.notes.append(f"{self.name} is {size}, with black bars: applications fail on {width}x{height}")

    def write(self, picture: LivePicture, stats: LiveStats) -> None:
        """Send the enhanced picture, with the notice on it if it is an old one."""
        shown = fitted(picture.after, *self._size)
        if stats.notice is not None and time.monotonic() - picture.captured_at > _STALLED:
            shown = with_notice(shown, stats.notice)
        self._camera.send(shown)

    def close(self) -> None:
        """Give the device back."""
        self._camera.close()


def advice(platform: str, device: str | None, reason: str) -> str:
    """What to tell the user whose virtual camera cannot be opened: one line.

    platform: as sys.platform. device: that was asked for. reason: pyvirtualcam's, a line for each kind of device.
    """
    if platform == "linux":
        return _advice_for_linux(device, reason)
    allow = ", allow its extension in the System Settings" if platform == "darwin" else ""
    return f"{device or 'no virtual camera'}: {_in_short(reason)}; {_ONCE_STARTED}{allow}"


def _in_short(reason: str) -> str:
    """The first sentence of each of pyvirtualcam's lines, which are like "'obs' backend: Not found! Did you ...?"."""
    return "; ".join(re.split(r"[.!?](?: |$)", line.split(" backend: ")[-1])[0] for line in reason.splitlines())


def _advice_for_linux(device: str | None, reason: str) -> str:
    # v4l2loopback's devices, unlike those of cameras, belong to no hardware.
    folder = Path("/sys/devices/virtual/video4linux")
    names = [path.name for path in folder.glob("video*")]
    loopbacks = sorted(path for path in map(Path("/dev").joinpath, names) if path.exists())
    remedy = f"use --virtual-cam {loopbacks[0]}" if loopbacks else f"sudo apt install v4l2loopback-dkms, then {_LOAD}"
    if device is None and not loopbacks:
        return f"there is no virtual camera: {remedy}"
    path = loopbacks[0] if device is None else Path(device)
    if not path.exists():
        return f"{path}: no such device; {remedy}"
    if path.resolve() not in loopbacks:
        return f"{path} is no virtual camera of v4l2loopback; {remedy}"
    if not os.access(path, os.W_OK):
        return f"{path}: no permission to write to it: sudo usermod -aG video $USER, then log out and in again"
    if "not a video output" not in reason and "No v4l2 loopback device" not in reason:
        return f"{path}: {_in_short(reason)}"
    # It has a format while a program writes to it, and with exclusive_caps=1 no second one may.
    if (folder / path.resolve().name / "format").read_text().strip():
        return f"{path} is in use by another program: end it, or name another device with --virtual-cam"
    return (
        f"{path} has been used before, and v4l2loopback 0.12 with exclusive_caps=1 can be used once: "
        f"sudo modprobe -r v4l2loopback && {_LOAD}"
    )
