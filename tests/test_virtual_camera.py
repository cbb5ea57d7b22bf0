"""The virtual camera: sizes, pictures and what to do where it cannot be had.

Tests that need a device of v4l2loopback run where there is one. Elsewhere pictures go to a camera in memory, registered
in the way that pyvirtualcam provides for further kinds of cameras.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dped_live.errors import OutputError
from dped_live.live_state import LivePicture, LiveStats
from dped_live.sinks.virtual_camera import VirtualCameraSink, accepted_size, advice

STATS = LiveStats("HD Webcam", 640, 480, ("iphone",), "iphone", "exactly", 30.0, 30.0, 0, {}, None, None)
LOOPBACKS = sorted(f"/dev/{path.name}" for path in Path("/sys/devices/virtual/video4linux").glob("video*"))

with_loopback = pytest.mark.skipif(not LOOPBACKS, reason="needs a device of v4l2loopback")
without_loopback = pytest.mark.skipif(
    sys.platform != "linux" or bool(LOOPBACKS), reason="needs a Linux without v4l2loopback"
)


class CameraInMemory:
    """A kind of camera for pyvirtualcam that keeps what it is given."""

    sent: list[np.ndarray]
    closed: int

    def __init__(self, *, width: int, height: int, fps: float, fourcc: int, device: str | None) -> None:
        assert (fps, fourcc) == (25, int.from_bytes(b"raw ", "little"))
        type(self).sent, type(self).closed = [], 0
        self._shape = height, width, 3
        self._name = device or "memory"

    def send(self, frame: np.ndarray) -> None:
        self.sent.append(frame.reshape(self._shape).copy())

    def close(self) -> None:
        type(self).closed += 1

    def device(self) -> str:
        return self._name

    def native_fourcc(self) -> None:
        return None


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> type[CameraInMemory]:
    pyvirtualcam = pytest.importorskip("pyvirtualcam", reason="needs pyvirtualcam (licence: GPL-2)")
    monkeypatch.setattr(pyvirtualcam.camera, "BACKENDS", {})
    pyvirtualcam.register_backend("memory", CameraInMemory)
    return CameraInMemory


def picture_of(after: np.ndarray, age: float = 0.0) -> LivePicture:
    return LivePicture(255 - after, after, Fraction(0), time.monotonic() - age)


def refusal(device: str | None) -> str:
    pytest.importorskip("pyvirtualcam", reason="needs pyvirtualcam (licence: GPL-2)")
    with pytest.raises(OutputError) as info:
        VirtualCameraSink(640, 480, 30, device)
    message = str(info.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((640, 480), (640, 480)),
        ((1920, 1080), (1920, 1080)),
        ((3840, 2160), (3840, 2160)),
        ((853, 480), (1280, 720)),  # odd
        ((854, 480), (1280, 720)),  # rows of 1708 bytes
        ((640, 481), (1280, 720)),
        ((32, 32), (1280, 720)),
    ],
)
def test_sizes_are_those_that_applications_take(source: tuple[int, int], size: tuple[int, int]) -> None:
    assert accepted_size(*source) == size


def test_it_sends_the_enhanced_picture(in_memory: type[CameraInMemory]) -> None:
    sink = VirtualCameraSink(64, 64, 25, None)
    assert (sink.name, sink.notes, sink.seconds_between, sink.on_main_thread) == ("memory", [], 1 / 25, False)
    after = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sink.write(picture_of(after), STATS)
    sink.write(picture_of(after, age=60), STATS)
    sink.close()
    assert [np.array_equal(sent, after) for sent in in_memory.sent] == [True, True]
    assert in_memory.closed == 1


def test_other_sizes_are_fitted_and_that_is_said(in_memory: type[CameraInMemory]) -> None:
    sink = VirtualCameraSink(500, 500, 25, "second")
    assert sink.notes == ["second is 1280x720, with black bars: applications fail on 500x500"]
    sink.write(picture_of(np.full((500, 500, 3), (10, 120, 230), np.uint8)), STATS)
    sent = in_memory.sent[0]
    assert sent.shape == (720, 1280, 3)
    columns = np.flatnonzero(sent[360].any(axis=1))
    assert (columns[0], columns[-1] + 1) == (280, 1000)
    assert np.all(sent[:, 280:1000] == (10, 120, 230))
    assert not sent[:, :280].any()
    assert not sent[:, 1000:].any()


def test_a_stall_is_explained_and_what_concerns_only_the_user_is_not(in_memory: type[CameraInMemory]) -> None:
    sink = VirtualCameraSink(640, 480, 25, None)
    after = np.full((480, 640, 3), 200, np.uint8)
    unplugged = replace(STATS, notice="the camera was unplugged; waiting for it")
    sink.write(picture_of(after, age=5), unplugged)
    sink.write(picture_of(after), replace(STATS, notice="saved picture.png"))
    stalled, running = in_memory.sent
    assert np.array_equal(running, after)
    assert np.array_equal(stalled[:360], after[:360])  # the picture is kept
    assert stalled[360:].max() == 255  # white letters
    assert stalled[360:].min() < 80  # on a dark ground
    assert np.all(after == 200)  # what the outputs share is not written to


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)  # makes the import fail
    with pytest.raises(OutputError, match=r"pip install 'dped-live\[virtual-cam\]' .*GPL-2"):
        VirtualCameraSink(640, 480, 30, None)


@without_loopback
@pytest.mark.parametrize(
    ("device", "what"),
    [
        (None, "there is no virtual camera"),
        ("/dev/video99", "/dev/video99: no such device"),
        ("/dev/null", "/dev/null is no virtual camera of v4l2loopback"),
    ],
)
def test_without_v4l2loopback_it_says_how_to_load_it(device: str | None, what: str) -> None:
    assert refusal(device) == (
        f"{what}{':' if device is None else ';'} sudo apt install v4l2loopback-dkms, then "
        "sudo modprobe v4l2loopback devices=1 exclusive_caps=1 card_label=dped-live"
    )


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_elsewhere_it_asks_for_obs(platform: str) -> None:
    reason = (
        "'obs' backend: OBS Virtual Camera device not found! Did you install OBS?\n'unitycapture' backend: No device."
    )
    message = advice(platform, None, reason)
    assert message.startswith("no virtual camera: OBS Virtual Camera device not found; No device; ")
    assert "Start Virtual Camera in OBS 30" in message
    assert ("System Settings" in message) == (platform == "darwin")
    assert "\n" not in message


@with_loopback
def test_a_reader_gets_the_picture_and_a_second_writer_the_reason() -> None:
    pytest.importorskip("pyvirtualcam", reason="needs pyvirtualcam (licence: GPL-2)")
    try:
        sink = VirtualCameraSink(640, 480, 30, LOOPBACKS[0])
    except OutputError as error:
        pytest.skip(str(error))  # v4l2loopback 0.12 has served before
    assert sink.name == LOOPBACKS[0]
    colors = [(255, 0, 0), (20, 200, 90)]
    after = np.zeros((480, 640, 3), np.uint8)
    after[:, :320], after[:, 320:] = colors
    sink.write(picture_of(after), STATS)
    reader: Any = cv2.VideoCapture(LOOPBACKS[0], cv2.CAP_V4L2)
    assert reader.isOpened()
    for _ in range(3):
        sink.write(picture_of(after), STATS)
        read, bgr = reader.read()
        assert read
    assert bgr.shape == (480, 640, 3)
    for color, x in zip(colors, (160, 480), strict=True):
        assert np.abs(bgr[240, x, ::-1].astype(int) - color).max() <= 4

    if Path("/sys/module/v4l2loopback/parameters/exclusive_caps").read_text().startswith("Y"):
        code = (
            "from dped_live.sinks.virtual_camera import VirtualCameraSink\n"
            f"try: VirtualCameraSink(640, 480, 30, '{LOOPBACKS[0]}')\n"
            "except Exception as error: print(error)"
        )
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert "is in use by another program" in second.stdout
    reader.release()
    sink.close()
    try:
        again = VirtualCameraSink(640, 480, 30, LOOPBACKS[0])
    except OutputError as error:
        message = str(error)
    else:
        again.close()
        message = ""
    assert not message or "sudo modprobe -r v4l2loopback && sudo modprobe v4l2loopback" in message
