"""Live sources: what they give, how soon, and what happens when it ends, blocks or dies.

No machine of ours has a camera: the tests that want one skip. Everything else is real: servers on the loopback
interface, encoders and decoders, processes that are killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import pytest
import torch

from dped_live.color import to_rgb
from dped_live.errors import InputError
from dped_live.frame import Frame
from dped_live.sources import live, testcard
from dped_live.sources.cameras import Camera, best_mode, list_cameras
from dped_live.sources.file import FileSource
from dped_live.sources.live import LiveSource, open_live_source
from dped_live.sources.testcard import frame_number
from dped_live.sources.v4l2 import Mode

SECONDS = 20
"""How long something may take: a hang must fail, and a busy machine must not."""

on_posix = pytest.mark.skipif(os.name != "posix", reason="needs the signals and FIFOs of POSIX")


@contextmanager
def opened(what: str | Path, size: tuple[int, int] | None = None, fps: int | None = None) -> Iterator[LiveSource]:
    with closing(open_live_source(str(what), size, None if fps is None else Fraction(fps))) as source:
        yield source


def take(source: LiveSource, count: int) -> list[Frame]:
    """The next pictures."""
    frames: list[Frame] = []
    deadline = time.monotonic() + SECONDS
    for frame in source.frames():
        assert time.monotonic() < deadline, f"{len(frames)} pictures in {SECONDS} s; {source.notice}"
        if frame is not None:
            frames.append(frame)
            if len(frames) == count:
                break
    return frames


def after_failure(source: LiveSource, fail: Callable[[], None]) -> tuple[str, Frame, Frame]:
    """Let it fail. The notice, the last picture before it, and the first after."""
    frames = source.frames()
    before = after = None
    notice = None
    deadline = time.monotonic() + SECONDS
    for frame in frames:
        assert time.monotonic() < deadline, notice
        if before is None:
            before = frame
            if before is not None:
                assert source.notice is None
                fail()
        elif source.notice is not None:
            assert frame is None
            notice = notice or source.notice
        elif notice is not None and frame is not None:
            after = frame
            break
    assert notice is not None
    assert before is not None
    assert after is not None
    return notice, before, after


def reading_process() -> int:
    """The process that reads for the only source there is."""
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    return child.pid


def is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve numbered pictures at 25 fps, H.264, BT.709 as its size leads players to think."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25, options={"preset": "ultrafast", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(12):
            picture = av.VideoFrame.from_ndarray(testcard.draw(number, number / 25, 320, 240), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@contextmanager
def serving(handle: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """An HTTP server whose every answer `handle` writes; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                handle(self)
            except OSError:  # the other side has gone
                self.close_connection = True

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def send_mjpeg(request: BaseHTTPRequestHandler, width: int, height: int, count: int) -> None:
    """What a network camera sends: numbered pictures at 30 fps."""
    request.send_response(200)
    request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
    request.end_headers()
    for number in range(count):
        picture = cv2.cvtColor(testcard.draw(number, number / 30, width, height), cv2.COLOR_RGB2BGR)
        data = cv2.imencode(".jpg", picture)[1].tobytes()
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        request.wfile.write(head.encode() + data + b"\r\n")
        time.sleep(1 / 30)


# The test picture.


@pytest.mark.parametrize("size", [(1280, 720), (320, 240), (161, 121)])
@pytest.mark.parametrize("number", [0, 0xFFFFFF, 0xAAAAAA, 123_456])
def test_frame_number_survives(size: tuple[int, int], number: int) -> None:
    picture = testcard.draw(number, 1.5, *size)
    assert picture.shape == (size[1], size[0], 3)
    assert frame_number(picture) == number
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 30])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    assert frame_number(decoded) == number
    assert frame_number(cv2.resize(picture, None, fx=0.7, fy=0.8, interpolation=cv2.INTER_AREA)) == number
    assert frame_number((picture // 2 + 60)[..., 0]) == number


def test_other_pictures_have_no_frame_number() -> None:
    with pytest.raises(ValueError, match="no number is in this picture"):
        frame_number(np.full((240, 320, 3), 128, np.uint8))


def test_test_picture_comes_in_time() -> None:
    with opened("test", (320, 240), 50) as source:
        assert (source.format.width, source.format.height) == (320, 240)
        assert source.format.pixel_format.name == "rgb24"
        assert source.frame_rate == 50
        assert (source.name, source.notes, source.notice) == ("test picture", [], None)
        frames = take(source, 40)
        first = frames[0].planes[0].copy()
        numbers = [frame_number(frame.planes[0]) for frame in frames]
        assert sorted(set(numbers)) == numbers
        assert numbers[-1] - numbers[0] < 80  # on a busy machine some are left out
        for frame, number in zip(frames, numbers, strict=True):
            assert frame.pts == Fraction(number - numbers[0], 50)
            assert frame.captured_at is not None
        assert np.array_equal(frames[0].planes[0], first)  # nobody has written to it since
        assert np.array_equal(first, testcard.draw(numbers[0], numbers[0] / 50, 320, 240))


def test_newest_picture_wins() -> None:
    with opened("test", (320, 240)) as source:
        time.sleep(0.3)  # as while a model is loaded
        ages, times = [], []
        for frame in source.frames():
            if frame is not None:
                assert frame.captured_at is not None
                ages.append(time.monotonic() - frame.captured_at)
                times.append(frame.pts)
                time.sleep(0.2)
            if len(times) == 5:
                break
    assert sorted(ages)[2] < 0.1  # not the 0.2 s, or more, that the one before would have waited
    assert times[0] == 0
    assert all(after - before > 0.19 for before, after in pairwise(times))


def test_pictures_leave_nothing_behind() -> None:
    with opened("test", (160, 120), 1000) as source:
        processes = [psutil.Process(), psutil.Process(reading_process())]

        def memory() -> int:
            return sum(process.memory_info().rss for process in processes)

        frames = source.frames()
        before = 0
        taken = 0
        while taken < 1000:
            taken += next(frames) is not None
            if taken == 100 and not before:
                before = memory()
        assert memory() - before < 25_000_000  # the 900 pictures are 52 MB


# A file.


def test_file_is_played_in_real_time_again_and_again(clip: Path) -> None:
    with opened(clip) as source:
        assert source.frame_rate == 25
        assert (source.name, source.notes) == ("clip.mp4", [])
        frames = take(source, 30)
    numbers = [frame_number(frame.planes[0]) for frame in frames]
    assert set(numbers) == set(range(12))
    for before, after in pairwise(frames):
        steps = (frame_number(after.planes[0]) - frame_number(before.planes[0])) % 12
        seconds = after.pts - before.pts
        assert seconds > 0
        # Exact, but where a busy machine has left pictures out, or was too slow for long.
        assert abs(seconds % Fraction(12, 25) - Fraction(steps, 25)) <= Fraction(1, 90000) or seconds > Fraction(1, 2)
    assert 29 / 25 - 0.01 < frames[-1].pts < 3


def test_colours_are_those_of_an_enhanced_file(clip: Path, shared: Path) -> None:
    """Of small video that says nothing of its matrix, which is BT.601; and of large, which is BT.709, and turned."""
    for path, quarters in ((clip, 0), (shared / "video" / "real" / "jcodec__orientation.mp4", -1)):
        truth = []
        file = FileSource(path)
        for frame in islice(file.frames(), 60):
            rgb = to_rgb([torch.from_numpy(np.ascontiguousarray(plane)) for plane in frame.planes], frame.format)
            picture = np.rot90(rgb[0].permute(1, 2, 0).numpy(), quarters)
            truth.append(np.rint(picture[::8, ::8] * 255))
        file.close()
        with opened(path) as source:
            (live_frame,) = take(source, 1)
        picture = live_frame.planes[0][::8, ::8].astype(float)
        assert min(np.abs(picture - image).max() for image in truth) <= 2


def test_what_was_asked_and_not_given_is_told(clip: Path) -> None:
    with opened(clip, (640, 480), 60) as source:
        assert source.notes == ["asked for 640x480 at 60 fps, clip.mp4 gives 320x240 at 25 fps"]
    with opened(clip, (320, 240)) as source:
        assert source.notes == []


# What cannot be opened.


def test_unusable_sources_are_told_apart(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", 8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))

    def not_found(request: BaseHTTPRequestHandler) -> None:
        request.send_error(404)

    with serving(not_found) as address:
        for what, message in {
            str(tmp_path): "it is a folder; give a camera",
            str(tmp_path / "garbage.mp4"): "garbage.mp4: it is no video, or damaged",
            str(tmp_path / "sound.wav"): "sound.wav: there is no video in it",
            "99": "99: there is no camera of this number; ",
            "No Such Camera": "No Such Camera: there is no camera of this name, and no file; ",
            str(clip.with_name("missing.mp4")): "there is no camera of this name, and no file; ",
            os.devnull: "null: it is not a camera; ",
            f"http://127.0.0.1:{free_port()}/": "it cannot be reached (Connection refused); check the address",
            address.replace("//", "//me:secret@"): "it cannot be reached (Server returned 404 Not Found)",
            "nosuch://127.0.0.1/": "it cannot be reached (Protocol not found)",
        }.items():
            with pytest.raises(InputError) as caught:
                open_live_source(what)
            assert message in str(caught.value)
            assert "\n" not in str(caught.value)
            assert "secret" not in str(caught.value)
    wait_for(lambda: not multiprocessing.active_children())


@on_posix
def test_silent_sources_are_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    def say_nothing(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(1)

    def seconds_until_error(what: str) -> float:
        before = time.monotonic()
        with pytest.raises(InputError, match=r"it can be opened but not read|nothing comes from there; look"):
            open_live_source(what)
        return time.monotonic() - before

    with serving(say_nothing) as address, socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"127.0.0.1:{server.getsockname()[1]}"
        sources = [str(tmp_path / "fifo"), address, f"rtsp://{silent}/", f"udp://127.0.0.1:{free_port()}"]
        with ThreadPoolExecutor(len(sources)) as pool:
            for seconds in pool.map(seconds_until_error, sources):
                # Five seconds on a machine that has nothing else to do.
                assert live._PATIENCE < seconds < SECONDS


# What fails later.


def test_stream_that_ends_is_opened_again() -> None:
    sizes = iter([(320, 240), (640, 480), (320, 240)])

    def send_a_little(request: BaseHTTPRequestHandler) -> None:
        send_mjpeg(request, *next(sizes), 20)

    with serving(send_a_little) as address, opened(address) as source:
        assert (source.format.width, source.format.height) == (320, 240)
        notice, before, after = after_failure(source, lambda: None)
        assert notice.startswith(f"{address}: the stream has ended")
        assert notice.endswith("; waiting for it")
        assert after.planes[0].shape == (240, 320, 3)  # scaled to the first
        assert frame_number(after.planes[0]) < 20
        expected = testcard.draw(frame_number(after.planes[0]), frame_number(after.planes[0]) / 30, 320, 240)
        assert np.abs(after.planes[0].astype(int) - expected).mean() < 4
        assert before.captured_at is not None
        assert after.captured_at is not None
        assert abs(float(after.pts - before.pts) - (after.captured_at - before.captured_at)) < 0.01


def test_mpeg_transport_stream_over_udp() -> None:
    address = f"udp://127.0.0.1:{free_port()}"
    over = threading.Event()

    def send() -> None:
        with av.open(f"{address}?pkt_size=1316", "w", format="mpegts") as container:
            options = {"preset": "ultrafast", "tune": "zerolatency", "g": "15"}
            stream = container.add_stream("libx264", 30, options=options)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for number in range(30 * SECONDS):
                picture = av.VideoFrame.from_ndarray(testcard.draw(number, number / 30, 320, 240), "rgb24")
                container.mux(stream.encode(picture))
                if over.wait(1 / 30):
                    break

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with opened(address) as source:
            frames = take(source, 10)
    finally:
        over.set()
        sender.join()
    numbers = [frame_number(frame.planes[0]) for frame in frames]
    assert sorted(set(numbers)) == numbers
    assert all(after.pts > before.pts for before, after in pairwise(frames))


def test_source_that_is_away_is_waited_for(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PAUSES", (0.1,))
    path = tmp_path / "here.mp4"
    path.write_bytes(clip.read_bytes())
    with opened(path) as source:
        frames = source.frames()
        path.rename(tmp_path / "away.mp4")
        notices: list[str | None] = []
        deadline = time.monotonic() + SECONDS
        while notices.count(source.notice) < 6:  # for some attempts to open it
            assert time.monotonic() < deadline
            if next(frames) is None and source.notice is not None:
                notices.append(source.notice)
        # And not that there is no camera of this name, which is what the later attempts say.
        assert set(notices) == {"here.mp4: it cannot be read (No such file or directory); waiting for it"}
        (tmp_path / "away.mp4").rename(path)
        while next(frames) is None:
            assert time.monotonic() < deadline
        assert source.notice is None


@on_posix
def test_killed_process_is_replaced() -> None:
    with opened("test", (320, 240)) as source:
        notice, before, after = after_failure(source, lambda: os.kill(reading_process(), signal.SIGKILL))
        assert notice == "test picture: the process that reads it has ended; waiting for it"
        assert after.pts - before.pts > live._PAUSES[0]


@on_posix
def test_silence_is_noticed_and_the_source_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PAUSES", (0.2,))
    with opened("test", (320, 240)) as source:
        monkeypatch.setattr(source._reader, "_patience", 0.5)
        first = reading_process()
        notice, before, after = after_failure(source, lambda: os.kill(first, signal.SIGSTOP))
        assert notice == "test picture: it gives no picture; waiting for it"
        assert after.pts - before.pts > 0.2 + 0.5
        wait_for(lambda: not is_running(first))


@on_posix
def test_close_does_not_wait_for_a_process_that_hangs() -> None:
    source = open_live_source("test", (320, 240))
    memory = source._memory.name
    process = reading_process()
    os.kill(process, signal.SIGSTOP)
    before = time.monotonic()
    source.close()
    assert time.monotonic() - before < 1
    wait_for(lambda: not is_running(process))
    with pytest.raises(FileNotFoundError):
        type(source._memory)(memory)


# Other processes: Ctrl-C, and a sudden end.

SCRIPT = """
import json, multiprocessing, signal
from dped_live.sources.live import open_live_source
interrupts = []
signal.signal(signal.SIGINT, lambda *arguments: interrupts.append(1))
source = open_live_source("test", (320, 240))
print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
left = 5
for frame in source.frames():
    left -= bool(interrupts)
    if not left:
        break
print(source.notice)
source.close()
"""
"""Prints the process that reads, goes on for five pictures after Ctrl-C, and prints whether something is wrong."""


@contextmanager
def script() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


@on_posix
@pytest.mark.parametrize("early", [False, True], ids=["while it runs", "while the process starts"])
def test_control_c_is_for_the_parent_alone(early: bool) -> None:
    with script() as process:
        assert process.stdout is not None
        if early:
            parent = psutil.Process(process.pid)
            wait_for(lambda: any("spawn_main" in " ".join(child.cmdline()) for child in parent.children()))
            time.sleep(0.1)  # now it imports what it needs, and would print where it was when it was interrupted
        else:
            process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=SECONDS)
        assert errors == ""
        assert output.splitlines()[-1] == "None"
        assert process.returncode == 0


@on_posix
def test_nothing_stays_behind_a_parent_that_was_killed() -> None:
    with script() as process:
        assert process.stdout is not None
        (child,) = json.loads(process.stdout.readline())
        assert is_running(child)
        process.kill()
        wait_for(lambda: not is_running(child))
        assert "Traceback" not in process.communicate(timeout=SECONDS)[1]


def test_reading_process_does_not_load_torch() -> None:
    code = "import sys, dped_live.sources.live; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], timeout=SECONDS, check=True)


# Cameras.


def modes(*offers: tuple[str, int, int, int]) -> tuple[Mode, ...]:
    return tuple(Mode(pixel_format, width, height, Fraction(rate)) for pixel_format, width, height, rate in offers)


USB_2 = modes(
    ("YUYV", 640, 480, 30),
    ("YUYV", 1280, 720, 10),
    ("YUYV", 1920, 1080, 5),
    ("MJPG", 640, 480, 30),
    ("MJPG", 1280, 720, 60),
    ("MJPG", 1280, 720, 30),
    ("MJPG", 1920, 1080, 30),
)


@pytest.mark.parametrize(
    ("offered", "size", "fps", "best"),
    [
        (USB_2, None, None, ("MJPG", 1280, 720, 30)),
        (USB_2, None, 60, ("MJPG", 1280, 720, 60)),
        (USB_2, (1920, 1080), None, ("MJPG", 1920, 1080, 30)),
        (USB_2, (1920, 1080), 60, ("MJPG", 1920, 1080, 30)),
        (USB_2, (640, 480), None, ("YUYV", 640, 480, 30)),
        (USB_2, (1280, 720), 10, ("YUYV", 1280, 720, 10)),
        (USB_2, (3840, 2160), None, ("MJPG", 1920, 1080, 30)),
        (USB_2[:3], None, None, ("YUYV", 640, 480, 30)),  # one that moves, rather than one of the usual size
        (USB_2[:3], (1280, 720), None, ("YUYV", 1280, 720, 10)),
        (modes(("YUYV", 1280, 720, 25), ("MJPG", 640, 480, 30)), None, None, ("YUYV", 1280, 720, 25)),
    ],
)
def test_best_mode(
    offered: tuple[Mode, ...], size: tuple[int, int] | None, fps: int | None, best: tuple[str, int, int, int]
) -> None:
    assert best_mode(offered, size, None if fps is None else Fraction(fps)) == modes(best)[0]


def test_camera_as_text() -> None:
    assert str(Camera(0, "/dev/video0", "HD Webcam", USB_2)) == (
        "0  HD Webcam (/dev/video0)\n"
        "   1920x1080: 5 fps YUYV, 30 fps MJPG\n"
        "   1280x720: 10 fps YUYV, 60 fps MJPG\n"
        "   640x480: 30 fps YUYV, 30 fps MJPG"
    )
    assert str(Camera(2, "/dev/video2", "Old", problem="no")) == "2  Old (/dev/video2): no"


def test_cameras_of_this_machine() -> None:
    cameras = list_cameras()
    if not cameras:
        pytest.skip("needs a camera")
    usable = [camera for camera in cameras if camera.problem is None]
    for camera in usable:
        assert all(mode.rate > 0 for mode in camera.modes)
    with opened(str(usable[0].index)) as source:
        assert usable[0].name in source.name
        frames = take(source, 10)
        assert len({frame.pts for frame in frames}) == 10
