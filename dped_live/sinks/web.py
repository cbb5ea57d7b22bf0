"""Live pictures in a browser, and as MJPEG for OBS, VLC and whatever else reads a URL. Standard library and OpenCV.

    /                the page (web.html)
    /stream.mjpg     the enhanced picture, for ever; with both=1 below the original of the same moment
    /picture.png     the newest enhanced picture
    /stats.json      output: its name; controls: fields of Controls; stats: fields of LiveStats, null before the first
    /controls        POST of JSON: strength, mirror, paused, model and request, one or more of them

For this machine alone there is no password; but the address in the browser must be this machine's, or any web site
could come in under a name of its own. On a network every path wants the token that is part of the address.

Viewers come and go, so this sink has threads: one waits for viewers, and each request has its own. A picture is encoded
by the first viewer's thread that wants it, for all of them, so nothing is encoded for nobody. Slow viewers miss
pictures, and one that reads nothing is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import http.client
import io
import ipaddress
import json
import os
import secrets
import select
import socket
import socketserver
import sys
import threading
import time
from dataclasses import asdict, fields
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np

from dped_live.errors import OutputError
from dped_live.live_state import Controls, LivePicture, LiveStats, Request

_QUALITY = 85
"""Of JPEG, 0..100."""

_SECONDS_TO_ASK, _SECONDS_TO_TAKE = 5.0, 10.0
"""For a whole request to arrive, and for a viewer to take one picture."""

_LARGEST_REQUEST, _LARGEST_BODY = 1 << 17, 4096
"""Bytes. Cookies of other programs on this machine come along and may be many."""

_SEND_BUFFER = 1 << 16
"""Bytes, which Linux doubles: about one picture. What waits in the kernel is late and cannot be taken back."""

_MOST_CONNECTIONS = 64

_METHODS = {
    "/": "GET, HEAD",
    "/stream.mjpg": "GET, HEAD",
    "/picture.png": "GET, HEAD",
    "/stats.json": "GET, HEAD",
    "/controls": "POST",
}

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src 'self' data:;"
    " style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'none'; base-uri 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other site may show the camera's picture
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class WebSink:
    """A LiveSink that serves a page with the live picture and its controls, from now on until close().

    port: 0 takes a free one. host: the address or name of this machine to listen at, "0.0.0.0" for all; None: only
    programs on this machine can connect.
    name: the address to open in a browser, with the token where one is needed. notes: who can see the picture, if
    others than this machine can.

    Raises OutputError if it cannot listen there.
    """

    on_main_thread = False
    steady = False
    seconds_between = 0.5
    capacity = 1
    notice: str | None = None

    def __init__(self, controls: Controls, port: int, host: str | None = None) -> None:
        self._newest = _Newest()
        self._server = _listening(port, host, self._newest, controls)
        address, port = self._server.server_address[:2]
        assert isinstance(address, str)
        ip = ipaddress.ip_address(address)
        self.notes: list[str] = []
        if ip.is_loopback:
            self.name = f"http://{_bracketed(address)}:{port}"
        else:
            self._server.token = secrets.token_urlsafe(16)
            known_as = _own_address(ip.version) if ip.is_unspecified else address
            self.name = f"http://{_bracketed(known_as)}:{port}/?token={self._server.token}"
            self.notes.append(
                f"whoever on the network has the address {self.name} can watch and change the settings, "
                "and who can read the network's traffic can watch too"
            )
        self._server.name = self.name
        # Looks every 0.05 s whether to end.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="web", daemon=True)
        self._thread.start()

    def write(self, picture: LivePicture, stats: LiveStats) -> None:
        """Hand the picture to whoever watches; returns at once."""
        self._newest.put(picture, stats)

    def close(self) -> None:
        """Stop listening, and end all viewers' connections."""
        self._newest.end()
        self._server.shutdown()
        self._server.server_close()
        self._server.disconnect()
        self._thread.join()


class _Newest:
    """The newest picture, and its JPEG as far as somebody wanted it. Used by any thread."""

    def __init__(self) -> None:
        self.stats: LiveStats | None = None
        self.picture: LivePicture | None = None
        self._number = self._pictures = 0
        self._ended = False
        self._changed = threading.Condition()
        self._alone, self._below_original = _Jpeg(), _Jpeg()

    def put(self, picture: LivePicture, stats: LiveStats) -> None:
        with self._changed:
            self._pictures += picture is not self.picture
            self.picture, self.stats = picture, stats
            self._number += 1
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        return self._ended

    def wait(self, after: int) -> bool:
        """Until there is a picture after that number, but no longer than a second; whether there is one.

        A picture that was put again has a new number: viewers must be written to, to find out that they are gone.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._number > after, 1)
            return self._number > after

    def jpeg(self, both: bool) -> tuple[int, bytes]:
        """Number and JPEG of the newest picture. There must be one."""
        kept = self._below_original if both else self._alone
        # Whoever waits here while another encodes asks for the newest only then, and mostly finds it done.
        with kept.lock:
            with self._changed:
                number, picture, which = self._number, self.picture, self._pictures
            assert picture is not None
            if kept.which != which:
                kept.which, kept.data = which, _encoded(picture, both)
            return number, kept.data


class _Jpeg:
    """The last JPEG that was made, of which picture, and the lock of whoever looks at it or makes one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.which = 0
        self.data = b""


class _Server(socketserver.ThreadingTCPServer):
    """Listens, and counts the connections. Not http.server's, which asks the DNS for its own name before it begins."""

    allow_reuse_address = os.name != "nt"  # there it would let two programs listen at one port
    daemon_threads = True
    block_on_close = False  # disconnect() ends the viewers' threads
    request_queue_size = 32

    def __init__(self, family: int, address: Any, newest: _Newest, controls: Controls) -> None:
        self.address_family = family
        self.newest = newest
        self.controls = controls
        self.name = ""
        self.token: str | None = None
        self.page = resources.files("dped_live.sinks").joinpath("web.html").read_bytes()
        self.lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Viewer)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            full = len(self._connections) >= _MOST_CONNECTIONS
            if not full:
                self._connections.add(request)
        if not full:
            super().process_request(request, client_address)
            return
        text = f"503: {_MOST_CONNECTIONS} viewers are connected, and no more may; close one\n".encode()
        request.setblocking(False)  # who is refused has nobody wait for him
        with contextlib.suppress(OSError):
            request.recv(_LARGEST_REQUEST)
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\n\r\n" + text)
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def disconnect(self) -> None:
        """End all connections, also those that wait for a viewer to read."""
        with self.lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A viewer that goes away is no error; anything else is a bug and shows its traceback.
        if not isinstance(sys.exception(), (OSError, http.client.HTTPException)):
            super().handle_error(request, client_address)


class _Viewer(BaseHTTPRequestHandler):
    """One request and its answer, in a thread of its own."""

    server: _Server
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.rfile.close()
        self.rfile = io.BufferedReader(_Received(self.connection))

    def version_string(self) -> str:
        """For the header "Server"."""
        return "dped-live"

    def log_message(self, *_: Any) -> None:
        """Requests are nothing to tell the user about."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        self._query = parse_qs(query)
        if self.server.token is None and not _is_this_machine(self.headers.get("Host", "")):
            self.send_error(403, f"open {self.server.name}; other names of this machine are not served")
        elif self.server.token is not None and not self._has_token(self.server.token):
            self.send_error(403, "open the address that dped-live shows, with its token; each start makes a new one")
        elif path not in _METHODS:
            self.send_error(404, f"nothing here; there are {', '.join(_METHODS)}")
        elif self.command not in _METHODS[path].split(", "):
            self._send(405, "text/plain", f"405: use {_METHODS[path]} here\n".encode(), Allow=_METHODS[path])
        elif path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.page)
        elif path == "/stream.mjpg":
            self._stream()
        elif path == "/picture.png":
            self._picture()
        elif path == "/stats.json":
            self._send(200, "application/json", json.dumps(self._state()).encode())
        else:
            self._change_controls()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815

    def _has_token(self, token: str) -> bool:
        return any(hmac.compare_digest(given.encode(), token.encode()) for given in self._query.get("token", []))

    def _stream(self) -> None:
        # The boundary follows each picture at once, for who goes by it rather than by the length. Chromium, left alone
        # with the stream, shows a picture when the next one's head has come; the page reads it by the length instead.
        self._send(200, "multipart/x-mixed-replace; boundary=picture", b"--picture\r\n")
        if self.command == "HEAD":
            return
        both, number, newest = self._query.get("both") == ["1"], 0, self.server.newest
        while not newest.ended:
            if newest.wait(number):
                number, jpeg = newest.jpeg(both)
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(b"".join((head.encode(), jpeg, b"\r\n--picture\r\n")))
            elif self._is_gone():
                return

    def _is_gone(self) -> bool:
        """Whether the viewer has hung up, where no picture is there to notice it by."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _picture(self) -> None:
        picture = self.server.newest.picture
        if picture is None:
            self.send_error(503, "no picture yet; try again in a second")
            return
        png = cv2.imencode(".png", cv2.cvtColor(picture.after, cv2.COLOR_RGB2BGR))[1].tobytes()
        self._send(200, "image/png", png)

    def _state(self) -> dict[str, Any]:
        controls, stats = self.server.controls, self.server.newest.stats
        return {
            "output": self.server.name,
            "controls": {name: getattr(controls, name) for name in ("strength", "mirror", "paused", "model")},
            "stats": None
            if stats is None
            else {
                **{field.name: getattr(stats, field.name) for field in fields(stats)},
                "latency": {name: asdict(latency) for name, latency in stats.latency.items()},
                "recording": None if stats.recording is None else str(stats.recording),
            },
        }

    def _change_controls(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.send_error(411, "say Content-Length")
            return
        if len(length) > len(str(_LARGEST_BODY)) or int(length) > _LARGEST_BODY:
            self.send_error(413, f"at most {_LARGEST_BODY} bytes")
            return
        body = self.rfile.read(int(length))
        # A page of another site cannot send JSON without asking first, which is answered with 405.
        if self.headers.get_content_type() != "application/json":
            self.send_error(415, "send Content-Type: application/json")
            return
        origin = self.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != self.headers.get("Host"):
            self.send_error(403, "pages of other sites may not change anything here")
            return
        stats = self.server.newest.stats
        try:
            wishes = _wishes(body, () if stats is None else stats.models)
        except ValueError as error:
            self.send_error(400, str(error))
            return
        with self.server.lock:
            for name, value in wishes.items():
                if name == "request":
                    self.server.controls.ask(value)
                else:
                    setattr(self.server.controls, name, value)
        self._send(204)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One plain line. Called by the base class too, about requests that it does not understand."""
        line = f"{int(code)}: {message or explain or http.client.responses[code]}\n"
        self._send(code, "text/plain; charset=utf-8", line.encode())

    def _send(self, code: int, content_type: str | None = None, body: bytes = b"", **headers: str) -> None:
        self.connection.settimeout(_SECONDS_TO_TAKE)
        self.send_response(code)
        if content_type is not None:
            headers["Content-Type"] = content_type
            if not content_type.startswith("multipart/"):
                headers["Content-Length"] = str(len(body))
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Received(io.RawIOBase):
    """What a client sends, to be read within a time in all however slowly it comes, and up to a size."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = time.monotonic() + _SECONDS_TO_ASK
        self._left = _LARGEST_REQUEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left == 0:
            raise http.client.LineTooLong("request")  # the base class answers 431
        self._connection.settimeout(max(self._until - time.monotonic(), 0.001))
        count = self._connection.recv_into(buffer, min(len(buffer), self._left))
        self._left -= count
        return count


def _listening(port: int, host: str | None, newest: _Newest, controls: Controls) -> _Server:
    try:
        found = socket.getaddrinfo(host or "127.0.0.1", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return _Server(family, address, newest, controls)
    except socket.gaierror as error:
        raise OutputError(
            f"{host}: no such name on this network; type --serve {port} for this machine alone, "
            f"or --serve 0.0.0.0:{port} for all its addresses"
        ) from error
    except OSError as error:
        at = "" if host is None else f"{_bracketed(host)}:"
        if error.errno == errno.EADDRINUSE:
            line = f"port {port} is taken by another program; type --serve {at}{port + 1} for another"
        elif error.errno == errno.EACCES:
            line = f"port {port} is for administrators; type --serve {at}8080"
        elif error.errno == errno.EADDRNOTAVAIL:
            line = f"{host} is no address of this machine; type --serve 0.0.0.0:{port} for all its addresses"
        else:
            line = f"cannot serve at {host or '127.0.0.1'}, port {port} ({error.strerror}); type --serve {at}{port + 1}"
        raise OutputError(line) from error


def _own_address(version: int) -> str:
    """The address by which others on the network reach this machine, or else its name."""
    family, anywhere = (socket.AF_INET, "192.0.2.1") if version == 4 else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((anywhere, 9))  # sends nothing: it only looks for the way
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_this_machine(host: str) -> bool:
    """Whether a header "Host" names the loopback interface. Its port does not matter: ssh may have forwarded it."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _wishes(body: bytes, models: tuple[str, ...]) -> dict[str, Any]:
    """Fields of Controls, and "request", with values that fit them. Raises ValueError, a line for whoever sent them."""
    try:
        wishes = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is no JSON") from error
    if not isinstance(wishes, dict) or not wishes:
        raise ValueError('the body is no JSON object such as {"strength": 0.5}')
    for name, value in wishes.items():
        if name == "strength":
            fits, wanted = type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"
        elif name in ("mirror", "paused"):
            fits, wanted = isinstance(value, bool), "true or false"
        elif name in ("model", "request"):
            choices = models if name == "model" else get_args(Request)
            fits, wanted = isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"
        else:
            raise ValueError("there are strength, mirror, paused, model and request")
        if not fits:
            raise ValueError(f"{name} must be {wanted}")
    return wishes


def _encoded(picture: LivePicture, both: bool) -> bytes:
    """JPEG of the enhanced picture, (H, W), or of both, (2H, W) with the original above."""
    pixels = np.concatenate((picture.before, picture.after)) if both else picture.after
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
