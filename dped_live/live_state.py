"""What the parts of a live run tell one another: pictures, wishes of the user, figures. numpy only, no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

Request = Literal["quit", "screenshot", "record"]


@dataclass(frozen=True, slots=True)
class LivePicture:
    """One picture on its way to the outputs, which share it and only read.

    before, after: (H, W, 3), RGB, uint8: as the camera gave it (turned round if it is mirrored), and enhanced.
    pts: seconds since the source began, exact. captured_at: when the camera gave it, on the clock of time.monotonic().
    """

    before: np.ndarray
    after: np.ndarray
    pts: Fraction
    captured_at: float


@dataclass(slots=True)
class Controls:
    """What the user wants. Any output's thread may change a field; the run reads them before each picture.

    strength: 0..1, see Enhancer. model: the name of one of LiveStats.models. paused: the last picture stays.
    """

    strength: float = 1.0
    mirror: bool = False
    paused: bool = False
    model: str = ""
    requests: deque[Request] = field(default_factory=deque)

    def ask(self, request: Request) -> None:
        """Ask for something that is done once: end the run, save a screenshot, begin or end a recording."""
        self.requests.append(request)


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from a picture's capture until an output has it, over the last seconds."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class LiveStats:
    """The figures of a run, of its last seconds, and since its beginning where it says so.

    source: its name. width, height: of its pictures. models: that may be chosen. model: the one at work, rung: how
    (exactly, at a reduced size, ...), for people. fps_in: pictures a second from the source; fps_out: enhanced.
    dropped: pictures since the beginning that were too late to be enhanced.
    latency: by output. notice: what is wrong at present, one line ("the camera was unplugged; waiting for it"), or what
    has just been done ("saved picture.png"); None mostly. recording: the file that is being written.
    """

    source: str
    width: int
    height: int
    models: tuple[str, ...]
    model: str
    rung: str
    fps_in: float
    fps_out: float
    dropped: int
    latency: Mapping[str, Latency]
    notice: str | None
    recording: Path | None


class LiveSink(Protocol):
    """An output of a live run. Used by one thread: a thread of its own, or if `on_main_thread` the program's first.

    name: for people: "window", "/dev/video2", "http://127.0.0.1:8080".
    steady: it gets a picture every `seconds_between`, new or not. Else it gets each new one at once, and the last one
    again after so many seconds without.
    capacity: how many pictures may wait for it; the oldest is dropped where there are more. notice: what is wrong with
    it at present, one line; read by any thread.
    """

    name: str
    on_main_thread: bool
    steady: bool
    seconds_between: float
    capacity: int

    @property
    def notice(self) -> str | None: ...

    def write(self, picture: LivePicture, stats: LiveStats) -> None:
        """Show, send or save. Raises OutputError if this output cannot go on; the others will."""
        ...

    def close(self) -> None:
        """Called exactly once, after the last write, by the same thread. May raise OutputError."""
        ...
