"""What a video device of Linux offers, asked by ioctl: the structures of videodev2.h, nothing opened for reading."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path

USABLE = {
    "YUYV": "yuyv422",
    "UYVY": "uyvy422",
    "NV12": "nv12",
    "YU12": "yuv420p",
    "422P": "yuv422p",
    "RGB3": "rgb24",
    "BGR3": "bgr24",
    "GREY": "gray",
    "MJPG": "mjpeg",
    "JPEG": "mjpeg",
    "H264": "h264",
}
"""Pixel formats that FFmpeg reads, by its name for them. The sooner the better, at the same size and rate."""

_STEPWISE_SIZES = [(640, 480), (800, 600), (1280, 720), (1280, 960), (1920, 1080), (2560, 1440), (3840, 2160)]
"""Those that are looked for where a device takes every size within bounds."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to use a camera. pixel_format: V4L2's four letters. rate: pictures a second."""

    pixel_format: str
    width: int
    height: int
    rate: Fraction


def describe(path: Path) -> tuple[str, tuple[Mode, ...]] | None:
    """Name and modes of a camera, or None if the device is no camera: metadata, a codec, raw data of a sensor.

    The modes are empty where the driver does not tell them. Works while another program uses the camera.
    Raises OSError if the device cannot be opened.
    """
    device = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        data = _ask(device, _QUERYCAP, bytes(104))
        if data is None:
            return None
        whole, of_this_node = struct.unpack_from("II", data, 84)
        abilities = of_this_node if whole & _DEVICE_CAPS else whole
        formats = [name for name in _pixel_formats(device) if name in USABLE]
        if abilities & _CAMERA != _CAMERA or not formats:
            return None
        modes = [
            Mode(name, width, height, rate)
            for name in formats
            for width, height in _sizes(device, name)
            for rate in _rates(device, name, width, height)
        ]
        return data[16:48].split(b"\0")[0].decode(errors="replace"), tuple(modes)
    finally:
        os.close(device)


def _request(number: int, size: int, writes: bool = True) -> int:
    """_IOWR('V', number, size), or _IOR."""
    return (3 if writes else 2) << 30 | size << 16 | ord("V") << 8 | number


_QUERYCAP = _request(0, 104, writes=False)
_ENUM_FMT = _request(2, 64)
_ENUM_FRAMESIZES = _request(74, 44)
_ENUM_FRAMEINTERVALS = _request(75, 52)
_DEVICE_CAPS = 0x80000000
_CAMERA = 0x1 | 0x4000000
"""V4L2_CAP_VIDEO_CAPTURE and V4L2_CAP_STREAMING."""
_CAPTURE = 1
"""V4L2_BUF_TYPE_VIDEO_CAPTURE"""
_DISCRETE = 1
"""V4L2_FRMSIZE_TYPE_DISCRETE and V4L2_FRMIVAL_TYPE_DISCRETE"""


def _ask(device: int, request: int, structure: bytes) -> bytes | None:
    """The structure as the driver fills it in; None if it has no answer, or no more."""
    import fcntl  # which Windows does not have

    try:
        return fcntl.ioctl(device, request, structure)
    except OSError:
        return None


def _pixel_formats(device: int) -> Iterator[str]:
    for index in count():
        answer = _ask(device, _ENUM_FMT, struct.pack("II", index, _CAPTURE).ljust(64, b"\0"))
        if answer is None:
            return
        yield answer[44:48].decode("latin-1")


def _sizes(device: int, pixel_format: str) -> Iterator[tuple[int, int]]:
    for index in count():
        answer = _ask(device, _ENUM_FRAMESIZES, struct.pack("I4s", index, pixel_format.encode()).ljust(44, b"\0"))
        if answer is None:
            return
        kind, width, height = struct.unpack_from("III", answer, 8)
        if kind == _DISCRETE:
            yield width, height
            continue
        least_x, most_x, step_x, least_y, most_y, step_y = struct.unpack_from("6I", answer, 12)
        for x, y in _STEPWISE_SIZES:
            fits_x = least_x <= x <= most_x and (x - least_x) % max(1, step_x) == 0
            if fits_x and least_y <= y <= most_y and (y - least_y) % max(1, step_y) == 0:
                yield x, y
        return


def _rates(device: int, pixel_format: str, width: int, height: int) -> Iterator[Fraction]:
    """Pictures a second; where every rate within bounds is possible, the highest and 30."""
    for index in count():
        question = struct.pack("I4sII", index, pixel_format.encode(), width, height)
        answer = _ask(device, _ENUM_FRAMEINTERVALS, question.ljust(52, b"\0"))
        if answer is None:
            return
        kind, numerator, denominator = struct.unpack_from("III", answer, 16)
        if numerator and denominator:
            rate = Fraction(denominator, numerator)
            yield rate
            if kind != _DISCRETE and rate > 30:
                yield Fraction(30)
        if kind != _DISCRETE:
            return
