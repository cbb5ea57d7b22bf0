"""The browser output: real requests over loopback, and the page in headless Chromium where there is one."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dped_live.errors import OutputError
from dped_live.live_state import Controls, Latency, LivePicture, LiveStats
from dped_live.sinks import web
from dped_live.sinks.web import WebSink

BLUE, ORANGE, GREEN = (30, 60, 200), (240, 150, 20), (20, 180, 60)


def picture_of(
    before: tuple[int, int, int] = BLUE, after: tuple[int, int, int] = ORANGE, height: int = 180, width: int = 320
) -> LivePicture:
    def plain(colour: tuple[int, int, int]) -> np.ndarray:
        return np.full((height, width, 3), colour, np.uint8)

    return LivePicture(plain(before), plain(after), Fraction(0), time.monotonic())


def stats_of(sink: WebSink, notice: str | None = None, recording: Path | None = None) -> LiveStats:
    latency = {sink.name: Latency(21.4, 34.6), "window": Latency(18, 20)}
    return LiveStats(
        "HD Webcam", 320, 180, ("lite", "iphone"), "lite", "exact", 30, 29.8, 3, latency, notice, recording
    )


@pytest.fixture
def controls() -> Controls:
    return Controls()


@pytest.fixture
def sink(controls: Controls) -> Iterator[WebSink]:
    sink = WebSink(controls, 0)
    yield sink
    sink.close()


@pytest.fixture
def shown(sink: WebSink) -> WebSink:
    """A sink that has a picture."""
    sink.write(picture_of(), stats_of(sink))
    return sink


def port_of(sink: WebSink) -> int:
    return int(sink.name.removeprefix("http://").split("/")[0].rpartition(":")[2])


def ask(
    sink: WebSink, method: str, path: str, body: bytes | str | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer of a sink and its body. Underscores in names of headers stand for hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(sink), timeout=5)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def exchange(sink: WebSink, request: bytes) -> bytes:
    """All that a sink answers to these bytes."""
    with socket.create_connection(("127.0.0.1", port_of(sink)), 5) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def post(sink: WebSink, wishes: object, **headers: str) -> tuple[int, str]:
    """Status and line of an answer about wishes."""
    body = wishes if isinstance(wishes, bytes) else json.dumps(wishes)
    response, line = ask(sink, "POST", "/controls", body, **{"Content_Type": "application/json", **headers})
    return response.status, line.decode()


class Viewer:
    """A program that reads a stream as such programs do: by the boundary and the length of each part."""

    def __init__(self, sink: WebSink, path: str = "/stream.mjpg") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port_of(sink), timeout=5)
        self._connection.request("GET", path)
        self._response = self._connection.getresponse()
        assert self._response.headers.get_content_type() == "multipart/x-mixed-replace"
        self._boundary = f"--{self._response.headers.get_param('boundary')}".encode()

    def next(self) -> np.ndarray:
        """The next picture, (H, W, 3), RGB."""
        return decoded(self.jpeg())

    def jpeg(self) -> bytes:
        """The next part of the stream."""
        line = self._response.readline().strip() or self._response.readline().strip()
        assert line == self._boundary
        head = http.client.parse_headers(self._response)
        assert head["Content-Type"] == "image/jpeg"
        return self._response.read(int(head["Content-Length"]))

    def rest(self) -> bytes:
        """What is still to come, once the stream has ended."""
        return self._response.read()

    def close(self) -> None:
        self._response.close()
        self._connection.close()


@pytest.fixture
def watch() -> Iterator[Callable[..., Viewer]]:
    """Makes viewers that are gone after the test."""
    viewers: list[Viewer] = []

    def begin(sink: WebSink, path: str = "/stream.mjpg") -> Viewer:
        viewers.append(Viewer(sink, path))
        return viewers[-1]

    yield begin
    for viewer in viewers:
        viewer.close()


def decoded(data: bytes) -> np.ndarray:
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, "no picture"
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def is_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """All pixels, but for what JPEG does to them."""
    return bool(np.abs(pixels.astype(int) - colour).max() <= 6)


def soon(condition: Callable[[], object], seconds: float = 5) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


# What is served


def test_the_page_is_whole_in_itself(sink: WebSink) -> None:
    response, page = ask(sink, "GET", "/")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"//" not in page.replace(b"http://www.w3.org/2000/svg", b"").replace(b"// ", b""), (
        "something from elsewhere"
    )


def test_the_stream_shows_each_new_picture(sink: WebSink, watch: Callable[..., Viewer]) -> None:
    sink.write(picture_of(), stats_of(sink))
    viewer = watch(sink)
    first = viewer.next()
    assert first.shape == (180, 320, 3)
    assert is_colour(first, ORANGE)
    sink.write(picture_of(after=GREEN, height=90), stats_of(sink))
    second = viewer.next()
    assert second.shape == (90, 320, 3)
    assert is_colour(second, GREEN)


def test_both_pictures_are_of_one_moment(shown: WebSink, watch: Callable[..., Viewer]) -> None:
    both = watch(shown, "/stream.mjpg?both=1").next()
    assert both.shape == (360, 320, 3)
    assert is_colour(both[:172], BLUE)
    assert is_colour(both[188:], ORANGE)


def test_who_comes_before_the_first_picture_waits_for_it(sink: WebSink, watch: Callable[..., Viewer]) -> None:
    viewer = watch(sink)
    assert ask(sink, "GET", "/picture.png")[0].status == 503
    assert json.loads(ask(sink, "GET", "/stats.json")[1])["stats"] is None
    sink.write(picture_of(), stats_of(sink))
    assert is_colour(viewer.next(), ORANGE)


def test_picture_is_exact(shown: WebSink) -> None:
    response, png = ask(shown, "GET", "/picture.png")
    assert response.headers["Content-Type"] == "image/png"
    assert (decoded(png) == ORANGE).all()


def test_stats(sink: WebSink, controls: Controls) -> None:
    controls.strength = 0.5
    sink.write(picture_of(), stats_of(sink, "the camera was unplugged", Path("a.mkv")))
    assert json.loads(ask(sink, "GET", "/stats.json")[1]) == {
        "output": sink.name,
        "controls": {"strength": 0.5, "mirror": False, "paused": False, "model": ""},
        "stats": {
            "source": "HD Webcam",
            "width": 320,
            "height": 180,
            "models": ["lite", "iphone"],
            "model": "lite",
            "rung": "exact",
            "fps_in": 30,
            "fps_out": 29.8,
            "dropped": 3,
            "latency": {sink.name: {"p50": 21.4, "p95": 34.6}, "window": {"p50": 18, "p95": 20}},
            "notice": "the camera was unplugged",
            "recording": "a.mkv",
        },
    }


def test_ffmpeg_reads_the_stream(shown: WebSink) -> None:
    if shutil.which("ffprobe") is None:
        pytest.skip("needs ffprobe")
    command = "ffprobe -v error -select_streams v -show_entries stream=codec_name,width,height -of csv=p=0 -f mpjpeg"
    ended = threading.Event()

    def keep_writing() -> None:
        while not ended.wait(0.02):
            shown.write(picture_of(), stats_of(shown))

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        result = subprocess.run(
            [*command.split(), f"{shown.name}/stream.mjpg"], capture_output=True, text=True, timeout=20, check=False
        )
    finally:
        ended.set()
        writer.join()
    assert (result.stdout.strip(), result.stderr) == ("mjpeg,320,180", "")


# What is refused


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "//stats.json/", 404, None),
        ("GET", "/../web.py", 404, None),
        ("GET", "/%2e%2e/web.py", 404, None),
        ("GET", "http://127.0.0.1/stats.json", 404, None),
        ("POST", "/", 405, "GET, HEAD"),
        ("DELETE", "/stream.mjpg", 405, "GET, HEAD"),
        ("GET", "/controls", 405, "POST"),
        ("HEAD", "/controls", 405, "POST"),
        ("OPTIONS", "/controls", 405, "POST"),
        ("BREW", "/", 501, None),
    ],
)
def test_wrong_paths_and_methods(sink: WebSink, method: str, path: str, status: int, allow: str | None) -> None:
    response, line = ask(sink, method, path)
    assert (response.status, response.headers["Allow"]) == (status, allow)
    assert response.headers["Content-Type"].startswith("text/plain")
    if method != "HEAD":
        assert line.decode().startswith(f"{status}: ")
        assert line.count(b"\n") == 1


@pytest.mark.parametrize("path", ["/", "/stream.mjpg", "/picture.png", "/stats.json", "/nothing"])
def test_head_is_get_without_the_body(shown: WebSink, path: str) -> None:
    answer = exchange(shown, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 404 " if path == "/nothing" else b"HTTP/1.0 200 ")
    assert b"\r\nContent-Type: " in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"\0\xff\r\n\r\n",
    ],
)
def test_what_is_no_request_gets_an_error(sink: WebSink, request_: bytes) -> None:
    answer = exchange(sink, request_)
    assert b"HTTP/1.0 4" in answer or answer.startswith(b"40"), answer  # the latter to HTTP/0.9, which knows no status


def test_a_huge_request_is_refused(sink: WebSink) -> None:
    assert ask(sink, "GET", "/" + "a" * 70_000)[0].status == 414
    with socket.create_connection(("127.0.0.1", port_of(sink)), 5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: %s\r\n" % (n, b"a" * 60_000) for n in range(2)))
        connection.sendall(b"B: " + b"b" * 30_000)
        assert b" 431 " in connection.recv(4096)


def test_a_slow_request_is_given_up(sink: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_SECONDS_TO_ASK", 0.3)
    with socket.create_connection(("127.0.0.1", port_of(sink)), 5) as connection:
        begun = time.monotonic()
        connection.settimeout(0.05)
        while time.monotonic() < begun + 5:
            connection.sendall(b"G")  # never silent for long, and never done
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                break
        assert 0.2 < time.monotonic() - begun < 2


def test_there_is_a_last_viewer(shown: WebSink, watch: Callable[..., Viewer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_MOST_CONNECTIONS", 3)
    viewers = [watch(shown) for _ in range(3)]
    response, line = ask(shown, "GET", "/")
    assert (response.status, line.count(b"\n")) == (503, 1)
    viewers[0].close()

    def has_place() -> bool:
        shown.write(picture_of(), stats_of(shown))
        return ask(shown, "GET", "/")[0].status == 200

    assert soon(has_place)


def test_who_left_before_the_first_picture_is_forgotten(sink: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_MOST_CONNECTIONS", 1)
    Viewer(sink).close()
    assert soon(lambda: ask(sink, "GET", "/")[0].status == 200)


# Wishes


def test_wishes_reach_the_controls(shown: WebSink, controls: Controls) -> None:
    assert post(shown, {"strength": 0.25, "mirror": True, "paused": True, "model": "iphone"}) == (204, "")
    assert controls == Controls(0.25, True, True, "iphone")
    assert post(shown, {"request": "record"}, Origin=shown.name)[0] == 204
    assert post(shown, {"request": "quit", "strength": 1})[0] == 204
    assert list(controls.requests) == ["record", "quit"]
    assert controls.strength == 1


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        [],
        1,
        None,
        b"",
        b"strength=1",
        b"\xff",
        b"[" * 4096,
        {"strength": "1"},
        {"strength": True},
        {"strength": -0.1},
        {"strength": 1.1},
        {"strength": float("nan")},
        {"strength": None},
        {"mirror": 1},
        {"paused": "yes"},
        {"model": "/etc/passwd"},
        {"model": ["lite"]},
        {"request": "delete"},
        {"requests": ["quit"]},
        {"paused": True, "strength": 2},
    ],
    ids=lambda wishes: str(wishes)[:20],
)
def test_wishes_that_make_no_sense_change_nothing(shown: WebSink, controls: Controls, wishes: object) -> None:
    status, line = post(shown, wishes)
    assert (status, line[:5], line.count("\n")) == (400, "400: ", 1)
    assert controls == Controls()


def test_wishes_need_length_and_type(shown: WebSink, controls: Controls) -> None:
    assert post(shown, b" " * 5000)[0] == 413
    assert post(shown, {"paused": True}, Content_Type="text/plain")[0] == 415
    response, _ = ask(shown, "POST", "/controls", Transfer_Encoding="chunked", Content_Type="application/json")
    assert response.status == 411
    assert controls == Controls()


# Who may come in


def test_other_sites_may_not(shown: WebSink, controls: Controls) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port_of(shown) + 1}"):
        assert post(shown, {"paused": True}, Origin=origin)[0] == 403
    assert controls == Controls()
    for host in ("evil.example", f"127.0.0.1.evil.example:{port_of(shown)}", "10.0.0.1", "[", ""):
        assert ask(shown, "GET", "/", Host=host)[0].status == 403
    for host in ("localhost", "127.0.0.1:9999", "[::1]:80"):
        assert ask(shown, "GET", "/", Host=host)[0].status == 200


def test_others_on_the_network_need_the_token(controls: Controls) -> None:
    sink = WebSink(controls, 0, "0.0.0.0")
    try:
        sink.write(picture_of(), stats_of(sink))
        address, _, token = sink.name.partition("?token=")
        assert len(token) >= 20
        assert "127.0.0.1" not in address
        assert len(sink.notes) == 1
        assert sink.name in sink.notes[0]
        for path in ("/", "/stream.mjpg", "/picture.png", "/stats.json", "/nothing"):
            for query in ("", "?token=", "?token=%ff", f"?token={token[:-1]}", f"?other={token}"):
                response, line = ask(sink, "GET", path + query)
                assert (response.status, line.count(b"\n")) == (403, 1)
                assert token.encode() not in line
        right = f"?token={token}"
        assert ask(sink, "GET", f"/{right}", Host="my-computer.local")[0].status == 200
        assert ask(sink, "HEAD", f"/stream.mjpg{right}&both=1")[0].status == 200
        body, kind = json.dumps({"paused": True}), "application/json"
        assert ask(sink, "POST", "/controls", body, Content_Type=kind)[0].status == 403
        assert ask(sink, "POST", f"/controls{right}", body, Content_Type=kind)[0].status == 204
        assert controls.paused
    finally:
        sink.close()


def test_this_machine_alone_needs_none(sink: WebSink) -> None:
    assert sink.name == f"http://127.0.0.1:{port_of(sink)}"
    assert sink.notes == []
    local = WebSink(Controls(), 0, "localhost")
    local.close()
    assert "token" not in local.name


def test_addresses_that_cannot_be_had(sink: WebSink) -> None:
    with pytest.raises(OutputError, match=f"port {port_of(sink)} is taken .* --serve {port_of(sink) + 1} for another$"):
        WebSink(Controls(), port_of(sink))
    with pytest.raises(OutputError, match=f"port {port_of(sink)} is taken .* --serve localhost:{port_of(sink) + 1} "):
        WebSink(Controls(), port_of(sink), "localhost")
    with pytest.raises(
        OutputError, match=r"203\.0\.113\.1 is no address of this machine; type --serve 0\.0\.0\.0:8080"
    ):
        WebSink(Controls(), 8080, "203.0.113.1")
    with pytest.raises(OutputError, match="no such name"):
        WebSink(Controls(), 8080, "nowhere.invalid")


# Many viewers, and bad ones

NOISE = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)  # a large JPEG: no buffer holds many


def never_reading(sink: WebSink) -> socket.socket:
    """A viewer who asks for the stream and then reads nothing."""
    connection = socket.create_connection(("127.0.0.1", port_of(sink)), 5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection


def test_ten_viewers_and_one_that_never_reads(
    sink: WebSink, watch: Callable[..., Viewer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_SECONDS_TO_TAKE", 1.0)
    monkeypatch.setattr(web, "_MOST_CONNECTIONS", 11)
    encoded: list[LivePicture] = []
    encode = web._encoded

    def count(picture: LivePicture, both: bool) -> bytes:
        encoded.append(picture)
        return encode(picture, both)

    monkeypatch.setattr(web, "_encoded", count)
    deaf = never_reading(sink)
    viewers = [watch(sink) for _ in range(10)]
    assert ask(sink, "GET", "/")[0].status == 503
    got: list[list[float]] = [[] for _ in viewers]
    ended = threading.Event()

    def read(index: int) -> None:
        while not ended.is_set():
            viewers[index].jpeg()
            got[index].append(time.monotonic())

    threads = [threading.Thread(target=read, args=(index,), daemon=True) for index in range(10)]
    for thread in threads:
        thread.start()
    longest = 0.0
    written = 0
    until = time.monotonic() + 2
    while time.monotonic() < until:
        begun = time.monotonic()
        sink.write(LivePicture(NOISE, NOISE, Fraction(0), begun), stats_of(sink))
        longest = max(longest, time.monotonic() - begun)
        written += 1
        time.sleep(0.1)
    ended.set()
    sink.write(LivePicture(NOISE, NOISE, Fraction(0), 0), stats_of(sink))
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert longest < 0.2, "a write waited for a viewer"
    assert len(encoded) <= written + 1, "a picture was encoded more than once"
    assert min(len(times) for times in got) >= 5
    assert all(late < 1.5 for times in got for late in np.diff(times)), "somebody waited for the one that never reads"
    with deaf:
        assert soon(lambda: ask(sink, "GET", "/")[0].status == 200), "the one that never reads still has its place"


def test_nothing_is_encoded_for_nobody(sink: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_encoded", lambda *_: pytest.fail("encoded"))
    for _ in range(3):
        sink.write(picture_of(), stats_of(sink))


def test_close_ends_the_streams_and_frees_the_port(controls: Controls, watch: Callable[..., Viewer]) -> None:
    sink = WebSink(controls, 0)
    viewer = watch(sink)
    with never_reading(sink):
        for _ in range(5):
            sink.write(LivePicture(NOISE, NOISE, Fraction(0), 0), stats_of(sink))
            viewer.jpeg()
        begun = time.monotonic()
        sink.close()
        assert time.monotonic() - begun < 1
        assert viewer.rest() == b"\r\n--picture\r\n"
        assert soon(lambda: not any("process_request" in thread.name for thread in threading.enumerate())), (
            "threads left"
        )
    again = WebSink(controls, port_of(sink))
    again.close()


# In a browser


class Browser:
    """Headless Chromium, driven through chromedriver (the W3C's WebDriver: JSON over HTTP)."""

    def __init__(self, driver: str, browser: str | None) -> None:
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        port = next(
            line.rstrip(".\n").rpartition(" ")[2] for line in self._driver.stdout if "successfully on port" in line
        )
        self._connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options = {"args": flags, **({} if browser is None else {"binary": browser})}
        # "none": the load of a stream never ends.
        wanted = {"goog:chromeOptions": options, "pageLoadStrategy": "none", "goog:loggingPrefs": {"browser": "ALL"}}
        self._path = "/session"
        self._path += "/" + self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _call(self, method: str, command: str, body: dict[str, Any] | None = None) -> Any:
        self._connection.request(method, self._path + command, None if body is None else json.dumps(body))
        response = self._connection.getresponse()
        value = json.loads(response.read())["value"]
        assert response.status == 200, value
        return value

    def open(self, url: str, width: int = 1280, height: int = 800) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", size)
        self._origin = "/".join(url.split("/")[:3]) + "/"
        self._call("POST", "/url", {"url": url})
        there = "document.images.length || document.readyState === 'complete'"
        assert soon(lambda: self.run(f"return location.href.startsWith('{url}') && Boolean({there})"), 10)

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        """A command of Chromium's DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def run(self, script: str) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def keys(self, text: str) -> None:
        """Type; U+E000 and up are the keys without a character, see WebDriver."""
        self._act("key", [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")])

    def press(self, key: str) -> None:
        self._act("key", [{"type": "keyDown", "value": key}])

    def release(self, key: str) -> None:
        self._act("key", [{"type": "keyUp", "value": key}])

    def drag(self, *points: tuple[int, int], kind: str = "mouse") -> None:
        """Press at the first point, release at the last."""
        moves = [{"type": "pointerMove", "x": x, "y": y, "duration": 0} for x, y in points]
        steps = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        self._act("pointer", steps, parameters={"pointerType": kind})

    def _act(self, device: str, actions: list[dict[str, Any]], **more: Any) -> None:
        self._call(
            "POST", "/actions", {"actions": [{"type": device, "id": f"{device}{more}", "actions": actions, **more}]}
        )

    def screenshot(self) -> np.ndarray:
        """(H, W, 3), RGB."""
        return decoded(base64.b64decode(self._call("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """What the page's console has got since it was last asked: errors of scripts, of the CSP, of addresses. Not of
        the page before, whose server has gone meanwhile."""
        lines = [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]
        return [line for line in lines if not line.startswith("http") or line.startswith(self._origin)]

    def close(self) -> None:
        self._call("DELETE", "")
        self._connection.close()
        self._driver.terminate()
        self._driver.communicate(timeout=10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("needs chromedriver (Debian: chromium-driver)")
    browser = Browser(driver, shutil.which("chromium"))
    yield browser
    browser.close()


class Feeder:
    """Writes a picture to a sink again and again, as a run does."""

    def __init__(self, controls: Controls, port: int = 0, host: str | None = None) -> None:
        self.sink = WebSink(controls, port, host)
        self.picture = picture_of()
        self.notice: str | None = None
        self.recording: Path | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def _feed(self) -> None:
        while not self._ended.wait(0.05):
            self.sink.write(self.picture, stats_of(self.sink, self.notice, self.recording))

    def close(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self.sink.close()


@pytest.fixture
def feeder(controls: Controls) -> Iterator[Feeder]:
    feeder = Feeder(controls)
    yield feeder
    feeder.close()


def box_of(browser: Browser, selector: str) -> tuple[int, int, int, int]:
    """left, top, width, height of an element of the page."""
    script = f"const b = document.querySelector('{selector}').getBoundingClientRect();"
    left, top, width, height = browser.run(f"{script} return [b.left, b.top, b.width, b.height].map(Math.round)")
    return left, top, width, height


def colours(browser: Browser, *fractions: float) -> list[str]:
    """Which colours the page shows at these places between the left and the right edge of the picture."""
    names = {"before": BLUE, "after": ORANGE, "new": GREEN}
    left, top, width, height = box_of(browser, "canvas")
    shot = browser.screenshot()
    places = [shot[top + height // 4, left + 2 + round((width - 5) * fraction)] for fraction in fractions]
    return [next((name for name, colour in names.items() if is_colour(place, colour)), str(place)) for place in places]


def test_wipe(browser: Browser, feeder: Feeder) -> None:
    browser.open(feeder.sink.name)
    assert soon(lambda: colours(browser, 0, 0.5, 1) == ["after"] * 3)
    left, top, width, height = box_of(browser, "canvas")
    assert width / height == pytest.approx(16 / 9, abs=0.01)
    assert width > 1100
    browser.keys("c")
    assert soon(lambda: colours(browser, 0, 0.48, 0.52, 1) == ["before", "before", "after", "after"])
    browser.drag((left + width // 2, top + 50), (left + width // 3, top + 60), (left + width // 4, top + 50))
    assert colours(browser, 0, 0.23, 0.27, 1) == ["before", "before", "after", "after"]
    browser.keys("\ue014" * 5)  # right arrow, by two hundredths each
    assert colours(browser, 0.33, 0.37) == ["before", "after"]
    browser.keys("\ue011")  # home
    assert colours(browser, 0.02, 1) == ["after", "after"]
    browser.keys("\ue010")  # end
    assert colours(browser, 0, 0.98) == ["before", "before"]
    browser.keys("c")
    assert soon(lambda: colours(browser, 0, 0.5, 1) == ["after"] * 3)
    browser.press("b")
    assert soon(lambda: colours(browser, 0, 0.5, 1) == ["before"] * 3)
    browser.release("b")
    assert soon(lambda: colours(browser, 0, 0.5, 1) == ["after"] * 3)
    assert browser.complaints() == []


def test_controls_of_the_page(browser: Browser, feeder: Feeder, controls: Controls, tmp_path: Path) -> None:
    browser.open(feeder.sink.name)
    assert soon(lambda: colours(browser, 0.5) == ["after"])
    browser.keys("[[[")
    assert soon(lambda: controls.strength == 0.7)
    browser.keys("]")
    assert soon(lambda: controls.strength == 0.8)
    left, top, width, height = box_of(browser, "#strength")
    middle = top + height // 2
    browser.drag((left + width * 4 // 5, middle), (left + width // 2, middle), (left + width // 4, middle))
    assert soon(lambda: 0.2 < controls.strength < 0.3)
    assert soon(
        lambda: (
            browser.run("return document.querySelector('output').value")
            == f"{controls.strength:.0%}".replace("%", " %")
        )
    )
    browser.keys("m r")
    assert soon(lambda: controls.mirror and controls.paused and list(controls.requests) == ["record"])
    controls.paused = False  # by the window's keys, say
    assert soon(lambda: browser.run("return document.getElementById('pause').ariaPressed") == "false")
    browser.run("document.getElementById('model').focus()")
    browser.keys("i")
    assert soon(lambda: controls.model == "iphone")
    browser.run("document.activeElement.blur()")

    browser.command("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.keys("s")
    assert soon(lambda: [path.suffix for path in tmp_path.iterdir()] == [".png"])
    assert (decoded(next(tmp_path.iterdir()).read_bytes()) == ORANGE).all()

    browser.keys("q\ue007")  # "Keep it running" has the focus: Enter
    browser.keys("q\ue00c")  # Escape
    time.sleep(0.2)
    assert list(controls.requests) == ["record"]
    browser.keys("q\ue004\ue007")  # Tab, Enter
    assert soon(lambda: list(controls.requests) == ["record", "quit"])
    assert browser.complaints() == []


def test_notice_and_figures(browser: Browser, feeder: Feeder) -> None:
    feeder.notice, feeder.recording = "the camera was unplugged; waiting for <b>it</b>", Path("meeting.mkv")
    browser.open(feeder.sink.name)
    assert soon(lambda: browser.run("return document.getElementById('notice').innerText") == feeder.notice)
    left, top, width, height = box_of(browser, "#notice")
    shot = browser.screenshot()[top : top + height, left : left + width]
    assert shot.min(axis=-1).max() > 240, "no white letters"
    assert np.median(shot.max(axis=-1)) < 70, "not on a dark ground"
    figures = browser.run("return document.getElementById('figures').innerText").split()
    for figure in ("30.0", "29.8", "21", "35", "3", "exact", "320\xd7180", "Webcam,", "meeting.mkv"):
        assert figure in figures
    feeder.notice = None
    assert soon(lambda: not browser.run("return document.getElementById('notice').checkVisibility()"))


def test_on_a_telephone(browser: Browser, feeder: Feeder) -> None:
    browser.open(feeder.sink.name, 390, 844)
    assert soon(lambda: colours(browser, 0, 0.5, 1) == ["after"] * 3)
    left, top, width, height = box_of(browser, "canvas")
    assert (left, top, width, height) == (0, 0, 390, 219)
    assert browser.run("return document.documentElement.scrollWidth") == 390
    boxes = browser.run(
        "return [...document.querySelectorAll('#controls button, #controls select, #controls input')]"
        ".map(e => e.getBoundingClientRect()).map(b => [b.left, b.right, b.bottom, b.height])"
    )
    assert len(boxes) == 10
    for box_left, right, bottom, tall in boxes:
        assert box_left >= 0
        assert right <= 390
        assert bottom <= 844
        assert tall >= 44, "too small for a finger"
    _, top, _, height = box_of(browser, "#compare")
    browser.drag((60, top + height // 2), kind="touch")
    assert soon(lambda: colours(browser, 0.1, 0.9) == ["before", "after"])
    browser.drag((195, 60), (250, 70), (312, 65), kind="touch")
    assert soon(lambda: colours(browser, 0.75, 0.85) == ["before", "after"])


def test_the_page_comes_back_after_a_restart(browser: Browser, feeder: Feeder, controls: Controls) -> None:
    browser.open(feeder.sink.name)
    browser.keys("c")
    assert soon(lambda: colours(browser, 0.25, 0.75) == ["before", "after"])
    feeder.close()
    waiting = (
        "return document.getElementById('waiting').checkVisibility() && document.getElementById('waiting').innerText"
    )
    assert soon(lambda: "does not answer" in (browser.run(waiting) or ""))
    assert soon(lambda: colours(browser, 0.25)[0].startswith("["), 2), "the old picture looks live"
    again = Feeder(controls, port_of(feeder.sink))
    again.picture = picture_of(after=GREEN)
    try:
        assert soon(lambda: colours(browser, 0.25, 0.75) == ["before", "new"])
        assert soon(lambda: browser.run(waiting) is False)
    finally:
        again.close()
    assert all("ERR_CONNECTION" in line or "ERR_INCOMPLETE" in line for line in browser.complaints())


def test_the_page_carries_the_token(browser: Browser, controls: Controls) -> None:
    feeder = Feeder(controls, 0, "0.0.0.0")
    try:
        browser.open(f"http://127.0.0.1:{port_of(feeder.sink)}/?{feeder.sink.name.partition('?')[2]}")
        browser.keys("c")
        assert soon(lambda: colours(browser, 0.25, 0.75) == ["before", "after"])
        browser.keys("m")
        assert soon(lambda: controls.mirror)
        assert browser.complaints() == []
    finally:
        feeder.close()
    again = Feeder(controls, port_of(feeder.sink), "0.0.0.0")
    try:
        assert soon(lambda: "each start makes a new one" in browser.run("return document.body.innerText"))
    finally:
        again.close()
    browser.complaints()


def test_the_stream_alone_in_a_browser(browser: Browser, feeder: Feeder) -> None:
    """As an OBS browser source has it."""
    browser.open(f"{feeder.sink.name}/stream.mjpg", 320, 180)

    def shows(colour: tuple[int, int, int]) -> bool:
        return is_colour(browser.screenshot()[20:160, 20:300], colour)

    assert soon(lambda: shows(ORANGE))
    feeder.picture = picture_of(after=GREEN)
    assert soon(lambda: shows(GREEN))
