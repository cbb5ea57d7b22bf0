"""What every live output keeps to, and all of them at once. (The window's are in test_window.py.)"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dped_live.live import LiveRun
from dped_live.live_state import Controls, LivePicture, LiveSink
from dped_live.sinks.recording import RecordingSink
from dped_live.sinks.stream import StreamSink
from dped_live.sinks.virtual_camera import VirtualCameraSink
from dped_live.sinks.web import WebSink

from test_live import Same, Source
from test_virtual_camera import STATS, CameraInMemory

WIDTH, HEIGHT = 128, 96
RATE = Fraction(30)


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    """A port that takes datagrams and never reads them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        yield receiver


@pytest.fixture(params=["page", "recording", "stream", "virtual camera"])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, receiver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, int], LiveSink]:
    def virtual_camera(width: int, height: int) -> LiveSink:
        pyvirtualcam = pytest.importorskip("pyvirtualcam", reason="needs pyvirtualcam (licence: GPL-2)")
        monkeypatch.setattr(pyvirtualcam.camera, "BACKENDS", {})
        pyvirtualcam.register_backend("memory", CameraInMemory)
        return VirtualCameraSink(width, height, 25, None)

    port = receiver.getsockname()[1]
    kinds: dict[str, Callable[[int, int], LiveSink]] = {
        "page": lambda _width, _height: WebSink(Controls(), 0),
        "recording": lambda width, height: RecordingSink(tmp_path / "a.mp4", width, height, RATE),
        "stream": lambda width, height: StreamSink(f"udp://127.0.0.1:{port}", width, height, RATE),
        "virtual camera": virtual_camera,
    }
    return kinds[request.param]


def picture(number: int, width: int, height: int) -> LivePicture:
    after = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    before = 255 - after
    before.flags.writeable = after.flags.writeable = False  # outputs share them
    return LivePicture(before, after, Fraction(number, 30), time.monotonic())


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (97, 65)])
def test_pictures_are_only_read_and_may_come_again(
    opened: Callable[[int, int], LiveSink], size: tuple[int, int]
) -> None:
    sink = opened(*size)
    try:
        assert sink.name
        assert isinstance(sink.on_main_thread, bool)
        assert isinstance(sink.steady, bool)
        assert sink.seconds_between > 0
        assert sink.capacity >= 1
        for number in (0, 0, 1, 2, 2, 3):
            sink.write(picture(number, *size), replace(STATS, notice="the camera is gone" if number == 2 else None))
        patience = time.monotonic() + 30  # a stream is sent by a process, which a busy machine starts late
        while sink.notice is not None and time.monotonic() < patience:
            time.sleep(0.05)
        assert sink.notice is None
    finally:
        begin = time.monotonic()
        sink.close()
    assert time.monotonic() - begin < 5


def test_closing_without_a_picture_takes_no_time(opened: Callable[[int, int], LiveSink]) -> None:
    sink = opened(WIDTH, HEIGHT)
    begin = time.monotonic()
    if isinstance(sink, RecordingSink):
        with pytest.raises(Exception, match="no picture"):
            sink.close()
    else:
        sink.close()
    assert time.monotonic() - begin < 5


def test_all_of_them_at_once(tmp_path: Path, receiver: socket.socket) -> None:
    """Each gets pictures at its own pace, from one run."""
    page = WebSink(Controls(), 0)
    recording = RecordingSink(tmp_path / "a.mkv", 16, 8, RATE)
    stream = StreamSink(f"udp://127.0.0.1:{receiver.getsockname()[1]}", 16, 8, RATE)
    source = Source(90, 1 / 30)
    run = LiveRun(
        source,
        Same(),
        [page, recording, stream],
        Controls(model="same"),
        recording=lambda: (Path(), page),
        screenshot=lambda _: Path(),
        notify=print,
    )
    stats = run.run()
    assert set(stats.latency) == {page.name, recording.name, stream.name}
    assert all(0 < latency.p50 < 1000 for latency in stats.latency.values())
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 45
    receiver.setblocking(False)
    assert len(receiver.recv(1 << 16)) > 100
