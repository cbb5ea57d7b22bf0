"""A live run sent over the network: to a streaming service or server, or straight to a player."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory
from urllib.parse import urlsplit

import numpy as np

from dped_live.child_process import Child, EndedError
from dped_live.errors import OutputError
from dped_live.live_state import LivePicture, LiveStats
from dped_live.sinks.stream_process import send


@dataclass(frozen=True, slots=True)
class _Protocol:
    """muxer: FFmpeg's. scheme: FFmpeg's, if it is another. query: added to an address that has none.

    needs_port: there is no usual one.
    """

    muxer: str
    scheme: str | None = None
    query: str = ""
    needs_port: bool = False


_PROTOCOLS = {
    "rtmp": _Protocol("flv"),
    "rtmps": _Protocol("flv"),
    "udp": _Protocol("mpegts", query="pkt_size=1316", needs_port=True),  # whole packets of MPEG-TS, for most players
    "tcp": _Protocol("mpegts", query="tcp_nodelay=1&send_buffer_size=262144", needs_port=True),
    "rtp": _Protocol("rtp_mpegts", needs_port=True),
    "rtsp": _Protocol("rtsp"),
    "whip": _Protocol("whip", "http"),
    "whips": _Protocol("whip", "https"),
    "http": _Protocol("whip"),
    "https": _Protocol("whip"),
}

_FIRST_ANSWER = 3.0
"""Seconds that the constructor waits for the connection."""

_START, _PATIENCE = 30.0, 5.0
"""Seconds for the process to start on a machine that is busy; for the peer to answer, or to take a picture."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0
"""Seconds before the next try; doubled each time."""

_STEADY = 10.0
"""Seconds after which a connection was a good one."""

_TIME_TO_DRAIN = 2.0


class StreamSink:
    """A LiveSink that sends the enhanced pictures as H.264, encoded for low latency, without sound.

    url: rtmp://, rtmps:// (Twitch, YouTube, MediaMTX, ...), rtsp://, whip:// and whips:// (also http:// and https://),
    udp://HOST:PORT, tcp://HOST:PORT (MPEG-TS) and rtp://HOST:PORT (MPEG-TS in RTP).
    width, height: of the pictures; of odd ones the last row or column is cut off. frame_rate: roughly.
    name: the address without what is secret in it. notice: what is wrong at present, one line; None while all is well.

    A process of its own encodes and sends. Pictures that it cannot take in time are left out, and one that makes no
    progress for five seconds is replaced, so write() never waits for the peer, nor fails because of it.

    Raises OutputError: the address makes no sense, or within three seconds turns out to be wrong, or refuses us. A peer
    that has not answered by then is waited for.
    """

    on_main_thread = False
    steady = False
    seconds_between = 0.5
    capacity = 1

    def __init__(self, url: str, width: int, height: int, frame_rate: Fraction) -> None:
        address, muxer, self.name = _parsed(url)
        if muxer == "whip" and importlib.util.find_spec("cryptography") is None:
            raise OutputError(f"{self.name}: WHIP needs another package; pip install 'dped-live[whip]'")
        self.notice: str | None = None
        self._shape = (height, width, 3)
        self._interval = float(1 / frame_rate)
        self._memory = SharedMemory(create=True, size=height * width * 3)
        self._job = (address, muxer, self._memory.name, width, height, frame_rate)
        self._sender: _Sender | None = _Sender(*self._job)
        self._pause = _SHORTEST_PAUSE
        self._resume_at = 0.0
        self._last: LivePicture | None = None
        self._age = self._sent_at = 0.0
        until = time.monotonic() + _FIRST_ANSWER
        try:
            while self._sender.connected_at is None and time.monotonic() < until:
                self._sender.listen(0.1)
        except _FailedError as error:
            self.close()
            raise OutputError(f"{self.name}: {error}; check the address, and whether somebody listens there") from error
        except BaseException:
            self.close()
            raise
        if self._sender.connected_at is None:
            self.notice = f"{self.name}: no answer yet; waiting for it"

    def write(self, picture: LivePicture, stats: LiveStats) -> None:  # noqa: ARG002 - a LiveSink's
        """Send the picture if the peer is ready for it. The last one again tells that the stream goes on."""
        self._watch()
        now = time.monotonic()
        if picture is not self._last:
            self._last, self._age = picture, now - picture.captured_at
        elif now - self._sent_at < self._interval:
            return
        if self._sender is not None and self._sender.is_ready:
            np.copyto(np.ndarray(self._shape, np.uint8, self._memory.buf), picture.after)
            self._sender.give(now - self._age)
            self._sent_at = now

    def close(self) -> None:
        """End the stream, in two seconds at most."""
        if self._sender is not None:
            self._sender.end(_TIME_TO_DRAIN)
        self._memory.close()
        self._memory.unlink()

    def _watch(self) -> None:
        """Hear what the process says; replace it if it has failed."""
        if self._sender is None:
            if time.monotonic() < self._resume_at:
                return
            self._sender = _Sender(*self._job)
        try:
            self._sender.listen()
        except _FailedError as error:
            now, connected_at = time.monotonic(), self._sender.connected_at
            if connected_at is not None and now - connected_at > _STEADY:
                self._pause = _SHORTEST_PAUSE
            self._sender.end()
            self._sender = None
            self._resume_at = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self.notice = f"{self.name}: {error}; trying again"
            return
        if self._sender.connected_at is not None:
            self.notice = None


class _FailedError(Exception):
    """The message says why."""


class _Sender:
    """A process that sends, and how far it has come. connected_at: None as long as it is not."""

    def __init__(self, *job: object) -> None:
        self.connected_at: float | None = None
        self._child = Child(send, *job)
        self._deadline: float | None = time.monotonic() + _START

    @property
    def is_ready(self) -> bool:
        """Whether it is connected, and has taken the last picture."""
        return self._deadline is None

    def listen(self, seconds: float = 0) -> None:
        """Hear what it says, until it has said nothing for so long. Raises _FailedError."""
        try:
            while (message := self._child.hear(seconds)) is not None:
                if "failed" in message:
                    raise _FailedError(message["failed"])
                if "connected" in message:
                    self.connected_at = time.monotonic()
                self._deadline = time.monotonic() + _PATIENCE if "connecting" in message else None
        except EndedError as error:
            raise _FailedError("the process that sends has ended") from error
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _FailedError("no answer" if self.connected_at is None else "it takes no more pictures")

    def give(self, moment: float) -> None:
        """There is a picture in the memory, which this process may not write to before `is_ready`."""
        with contextlib.suppress(EndedError):  # listen() will tell
            self._child.tell(picture=moment)
        self._deadline = time.monotonic() + _PATIENCE

    def end(self, seconds: float = 0) -> None:
        self._child.end(seconds)


def _parsed(url: str) -> tuple[str, str, str]:
    """The address and muxer for FFmpeg, and a name without password and key. Raises OutputError."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    protocol = _PROTOCOLS.get(scheme)
    if not separator or protocol is None:
        known = ", ".join(f"{name}://" for name in _PROTOCOLS)
        raise OutputError(f"{scheme}{separator}: FFmpeg as it comes with PyAV cannot send this way; use one of {known}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise OutputError(f"{scheme}://: {error}; write {scheme}://HOST:PORT") from error
    name = f"{scheme}://{parts.netloc.rpartition('@')[2]}"
    if not host:
        raise OutputError(f"{name}: there is no host in it; write {scheme}://HOST:PORT")
    if protocol.needs_port and port is None:
        raise OutputError(f"{name}: there is no port in it; write {name}:5000, for example")
    query = f"?{protocol.query}" if protocol.query and "?" not in rest else ""
    return f"{protocol.scheme or scheme}://{rest}{query}", protocol.muxer, name
