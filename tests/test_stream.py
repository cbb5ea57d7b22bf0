"""Streams over loopback to real receivers, and to peers that refuse, hang or die."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import itertools
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dped_live.errors import OutputError
from dped_live.live_state import LivePicture, LiveStats
from dped_live.sinks.stream import StreamSink
from dped_live.sinks.stream_process import Connection

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(
    FFMPEG is None or sys.platform == "win32", reason="needs the ffmpeg program as a receiver, and POSIX's pipes"
)
has_cryptography = importlib.util.find_spec("cryptography") is not None

RED, GREEN = (200, 30, 40), (20, 180, 60)
WIDTH, HEIGHT, BLOCK = 160, 96, 16
STATS = LiveStats("camera", 0, 0, (), "", "", 30, 30, 0, {}, None, None)
RATE = Fraction(30)
SECONDS = 30.0
"""How long to wait for what must happen: a hang must fail, and a busy machine must not."""


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> LivePicture:
    """Red on the left, green on the right, and at the bottom the number, in white for each bit that is set."""
    after = np.empty((height, width, 3), np.uint8)
    after[:, : width // 2], after[:, width // 2 :] = RED, GREEN
    for bit in range(WIDTH // BLOCK):
        after[HEIGHT - BLOCK : HEIGHT, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return LivePicture(after, after, number / RATE, time.monotonic())


def number_in(rgb: np.ndarray) -> int:
    middles = rgb[HEIGHT - BLOCK // 2, BLOCK // 2 :: BLOCK, 1] > 128
    return int(sum(1 << bit for bit, is_set in enumerate(middles) if is_set))


class Receiver:
    """The ffmpeg program, which decodes what comes. pictures: (H, W, 3) each; seen_at: when."""

    def __init__(self, url: str, *options: str) -> None:
        assert FFMPEG is not None
        quick = ("-fflags", "+nobuffer", "-flags", "low_delay", "-analyzeduration", "200000", "-probesize", "100000")
        # Without -vsync passthrough it would repeat and drop pictures; its newer name is unknown to older versions.
        command = [FFMPEG, "-v", "quiet", "-threads", "1", *quick, *options, "-i", url]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-vsync", "passthrough", "-flush_packets", "1", "-"]
        self.pictures: list[np.ndarray] = []
        self.seen_at: list[float] = []
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._rest = b""

    def look(self) -> int:
        """Take what has come; how many pictures there are now."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._stdout.fileno(), 1 << 20):
                self._rest += data
                while len(self._rest) >= (size := WIDTH * HEIGHT * 3):
                    rgb, self._rest = self._rest[:size], self._rest[size:]
                    self.pictures.append(np.frombuffer(rgb, np.uint8).reshape(HEIGHT, WIDTH, 3).astype(int))
                    self.seen_at.append(time.monotonic())
        return len(self.pictures)

    def kill(self) -> None:
        """May be called again."""
        self._process.kill()
        self._process.wait()
        self._stdout.close()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    receivers: list[Receiver] = []

    def begin(url: str, *options: str) -> Receiver:
        """Start a receiver, and wait until it listens."""
        kind = socket.SOCK_DGRAM if url.startswith(("udp", "rtp:")) else socket.SOCK_STREAM
        port = int(url.split(":")[2].partition("/")[0].partition("?")[0])
        receivers.append(Receiver(url, *options))
        until = time.monotonic() + SECONDS
        while is_free(port, kind):
            assert time.monotonic() < until
            time.sleep(0.01)
        return receivers[-1]

    yield begin
    for receiver in receivers:
        receiver.kill()


def is_free(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """An even one, as RTP wants it, with the one after it, for UDP and TCP."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1]) & -2
        if all(is_free(port + more, kind) for more in (0, 1) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)):
            return port


@pytest.fixture
def stream() -> Iterator[Callable[..., StreamSink]]:
    """Open sinks that are closed at the end, and leave nothing behind."""
    sinks: list[StreamSink] = []

    def open_sink(url: str, width: int = WIDTH, height: int = HEIGHT) -> StreamSink:
        sinks.append(StreamSink(url, width, height, RATE))
        return sinks[-1]

    yield open_sink
    for sink in sinks:
        begin = time.monotonic()
        sink.close()
        assert time.monotonic() - begin < 3
    assert_no_child_is_left()


def assert_no_child_is_left() -> None:
    until = time.monotonic() + SECONDS
    while multiprocessing.active_children():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextlib.contextmanager
def deaf_server() -> Iterator[int]:
    """Accepts connections and never reads from them; its port."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


# Receivers.


@needs_ffmpeg
def test_every_protocol_arrives_in_order_with_its_colours(
    receive: Callable[..., Receiver], stream: Callable[..., StreamSink]
) -> None:
    """All at once. When the camera hangs the last picture is sent again."""
    host = "127.0.0.1"
    udp, tcp, rtp, rtmp, rtsp = (free_port() for _ in range(5))
    ways = {
        f"udp://{host}:{udp}": (f"udp://{host}:{udp}",),
        f"tcp://{host}:{tcp}": (f"tcp://{host}:{tcp}?listen=1",),
        f"rtp://{host}:{rtp}": (f"rtp://{host}:{rtp}", "-protocol_whitelist", "udp,rtp"),
        f"rtmp://{host}:{rtmp}/live/key": (f"rtmp://{host}:{rtmp}/live/key", "-listen", "1"),
        f"rtsp://{host}:{rtsp}/live": (f"rtsp://{host}:{rtsp}/live", "-rtsp_flags", "listen"),
    }
    receivers = {url: receive(*way) for url, way in ways.items()}
    sinks = [stream(url) for url in ways]
    assert [sink.name for sink in sinks] == [
        f"{url.split(':')[0]}://{host}:{url.split(':')[2].split('/')[0]}" for url in ways
    ]
    sent_at: list[float] = []
    last = None
    until = time.monotonic() + SECONDS

    def everywhere(is_enough: Callable[[Receiver], bool]) -> bool:
        assert time.monotonic() < until, {url: len(receiver.pictures) for url, receiver in receivers.items()}
        for receiver in receivers.values():
            receiver.look()
        return all(receiver.pictures and is_enough(receiver) for receiver in receivers.values())

    # The receivers need a while to begin; then each is to get many.
    while last is None or not everywhere(lambda receiver: len(receiver.pictures) >= 45):
        last = picture(len(sent_at))
        sent_at.append(last.captured_at)
        for sink in sinks:
            sink.write(last, STATS)
            assert sink.notice is None
        time.sleep(1 / 40)
    final = len(sent_at) - 1
    while not everywhere(lambda receiver: [number_in(rgb) for rgb in receiver.pictures[-3:]] == [final] * 3):
        for sink in sinks:
            sink.write(last, STATS)
        time.sleep(1 / 40)
    for url, receiver in receivers.items():
        numbers = [number_in(rgb) for rgb in receiver.pictures]
        moving = numbers[: numbers.index(final) + 1]
        assert all(after > before for before, after in itertools.pairwise(moving)), url
        assert len(moving) > 0.8 * (moving[-1] - moving[0]), url
        late = [seen - sent_at[number] for number, seen in zip(moving[10:], receiver.seen_at[10:], strict=False)]
        assert np.median(late) < 1, url
        rgb = receiver.pictures[-1][: HEIGHT - BLOCK - 4]
        assert np.abs(rgb[:, : WIDTH // 2 - 2] - RED).max() <= 6, url
        assert np.abs(rgb[:, WIDTH // 2 + 2 :] - GREEN).max() <= 6, url


def test_pictures_leave_at_once_with_a_keyframe_every_two_seconds(tmp_path: Path) -> None:
    """Even where they come twice a second only; to a file, which can be read before the connection is closed."""
    path = tmp_path / "stream.ts"
    connection = Connection(f"file:{path}", "mpegts", WIDTH, HEIGHT, RATE)
    for number in range(20):
        frame = connection.convert(picture(number, WIDTH + 1, HEIGHT + 1).after)
        assert (frame.width, frame.height) == (WIDTH, HEIGHT)
        connection.send(frame, 1000 + number / 2)
    with av.open(path) as container:
        frames = list(container.decode(video=0))
        context = container.streams.video[0].codec_context
    assert [number_in(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(20))
    assert [frame.time - frames[0].time for frame in frames] == [number / 2 for number in range(20)]
    assert [number for number, frame in enumerate(frames) if frame.key_frame] == [0, 4, 8, 12, 16]
    assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (6, 1, 1, 1)
    connection.close()


@needs_ffmpeg
def test_a_receiver_that_comes_back_gets_pictures_again(
    receive: Callable[..., Receiver], stream: Callable[..., StreamSink]
) -> None:
    """Odd sizes are cut to even ones."""
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    receiver = receive(f"{url}?listen=1")
    sink = stream(url, WIDTH + 1, HEIGHT + 1)
    notices = set()
    until = time.monotonic() + SECONDS

    def send_until(is_done: Callable[[], object]) -> None:
        while not is_done():
            assert time.monotonic() < until
            sink.write(picture(7, WIDTH + 1, HEIGHT + 1), STATS)
            notices.add(sink.notice)
            time.sleep(1 / 30)

    send_until(receiver.look)
    assert notices == {None}
    receiver.kill()
    send_until(lambda: sink.notice)
    receiver = receive(f"{url}?listen=1")
    send_until(receiver.look)
    assert number_in(receiver.pictures[-1]) == 7
    assert sink.notice is None
    assert len(notices) > 1
    assert all(notice.startswith(f"{url}: ") and notice.endswith("; trying again") for notice in notices if notice)


# Peers that hang.


def test_a_peer_that_takes_nothing_stalls_nobody(
    stream: Callable[..., StreamSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One takes no more after some pictures, the other never answers. Both are given up sooner than usual."""
    monkeypatch.setattr("dped_live.sinks.stream._FIRST_ANSWER", 1.0)
    monkeypatch.setattr("dped_live.sinks.stream._PATIENCE", 2.0)
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (360, 640, 3), np.uint8) for _ in range(3)]
    took: list[float] = []
    seen: set[tuple[str, str | None]] = set()
    with deaf_server() as port, deaf_server() as other_port:
        sinks = [
            stream(f"tcp://127.0.0.1:{port}?send_buffer_size=4096", 640, 360),
            stream(f"rtmp://127.0.0.1:{other_port}/live/key", 640, 360),
        ]
        for number in range(200):
            after = noise[number % 3]
            for sink in sinks:
                begin = time.monotonic()
                sink.write(LivePicture(after, after, number / RATE, begin), STATS)
                took.append(time.monotonic() - begin)
                seen.add((sink.name, sink.notice))
            time.sleep(1 / 60)
    # The machine may be busy, and twice a process is started; a peer that is waited for would cost seconds.
    assert np.quantile(took, 0.9) < 0.005
    assert max(took) < 0.5
    assert seen == {
        (f"tcp://127.0.0.1:{port}", None),
        (f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}: it takes no more pictures; trying again"),
        (f"rtmp://127.0.0.1:{other_port}", f"rtmp://127.0.0.1:{other_port}: no answer yet; waiting for it"),
        (f"rtmp://127.0.0.1:{other_port}", f"rtmp://127.0.0.1:{other_port}: no answer; trying again"),
    }


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")
def test_the_process_that_sends_ends_with_the_one_that_started_it() -> None:
    code = (
        "import sys, time\n"
        "from fractions import Fraction\n"
        "from dped_live.sinks.stream import StreamSink\n"
        "if __name__ == '__main__':\n"
        "    sink = StreamSink(sys.argv[1], 64, 64, Fraction(30))\n"
        "    time.sleep(60)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        parent = subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.DEVNULL)
        server.settimeout(SECONDS)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            parent.kill()
            while connection.recv(1 << 16):
                pass
    parent.wait(SECONDS)


# Addresses.


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("srt://127.0.0.1:9000", r"^srt://: FFmpeg .* cannot send this way; use one of rtmp://, rtmps://, udp://"),
        ("picture.mp4", r"^picture.mp4: FFmpeg .* cannot send this way"),
        ("udp://127.0.0.1", "there is no port in it; write udp://127.0.0.1:5000"),
        ("tcp://:9000", "there is no host in it; write tcp://HOST:PORT"),
        ("rtmp://127.0.0.1:99999/live", "out of range"),
    ],
)
def test_an_address_that_makes_no_sense(url: str, line: str) -> None:
    with pytest.raises(OutputError, match=line) as error:
        StreamSink(url, WIDTH, HEIGHT, RATE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("rtmp://user:secret@127.0.0.1:{port}/live/key", "rtmp://127.0.0.1:{port}: Connection refused; "),
        ("rtmps://127.0.0.1:{port}/live/key", "rtmps://127.0.0.1:{port}: Connection refused; "),
        ("RTSP://127.0.0.1:{port}/live", "rtsp://127.0.0.1:{port}: Connection refused; "),
        ("tcp://nobody.invalid:{port}", "tcp://nobody.invalid:{port}: there is no host nobody.invalid; "),
    ],
)
def test_an_address_where_nobody_listens(url: str, line: str) -> None:
    port = free_port()
    with pytest.raises(OutputError) as error:
        StreamSink(url.format(port=port), WIDTH, HEIGHT, RATE)
    assert str(error.value) == line.format(port=port) + "check the address, and whether somebody listens there"
    assert_no_child_is_left()


class WhipEndpoint(http.server.BaseHTTPRequestHandler):
    """Refuses every offer, and keeps it."""

    offers: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.offers.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(not has_cryptography, reason="needs the package cryptography")
def test_whip_offers_video_that_browsers_decode() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), WhipEndpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(OutputError, match=f"^whip://127.0.0.1:{server.server_port}: .*403"):
            StreamSink(f"whip://127.0.0.1:{server.server_port}/whip/key", WIDTH, HEIGHT, RATE)
        server.shutdown()
    assert "H264/90000" in WhipEndpoint.offers[0]
    assert "profile-level-id=42" in WhipEndpoint.offers[0]


@pytest.mark.skipif(has_cryptography, reason="has the package cryptography")
def test_whip_says_which_package_it_needs() -> None:
    with pytest.raises(OutputError, match=r"pip install 'dped-live\[whip\]'"):
        StreamSink("https://127.0.0.1/whip/key", WIDTH, HEIGHT, RATE)
