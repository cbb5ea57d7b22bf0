"""How old pictures are when they reach an output, by the numbers in the test picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from dped_live.backends import Backend
from dped_live.bench.results import Live
from dped_live.ladder import Ladder, Rung
from dped_live.live import LiveRun, LiveSource
from dped_live.live_state import Controls, LivePicture, LiveSink, LiveStats
from dped_live.sources.live import open_live_source
from dped_live.sources.testcard import frame_number

_WARM_UP = 1.0
"""Seconds from the first picture on that do not count."""

_PATIENCE = 10.0
"""Seconds after which a run is over that has shown no picture."""


class Probe:
    """An output that notes of each new picture its number, when it had been taken, on the clock of time.monotonic(),
    and its age then, in seconds from when it was due at the source. A picture that is shown twice, late or not at all
    is seen as such, for the number is read out of its pixels.

    sink: an output that is to take them first; belongs to this then.
    """

    def __init__(self, sink: LiveSink | None = None) -> None:
        self._sink = sink
        self.name = "probe" if sink is None else sink.name
        self.on_main_thread = sink is not None and sink.on_main_thread
        self.steady = sink is not None and sink.steady
        self.seconds_between = 0.5 if sink is None else sink.seconds_between
        self.capacity = 1 if sink is None else sink.capacity
        self.numbers: list[int] = []
        self.moments: list[float] = []
        self.ages: list[float] = []

    @property
    def notice(self) -> str | None:
        return None if self._sink is None else self._sink.notice

    def write(self, picture: LivePicture, stats: LiveStats) -> None:
        if self._sink is not None:
            self._sink.write(picture, stats)
        now = time.monotonic()
        number = frame_number(picture.after)
        if not self.numbers or number != self.numbers[-1]:
            self.numbers.append(number)
            self.moments.append(now)
            self.ages.append(now - picture.captured_at)

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()


def watched(
    source: LiveSource,
    ladder: Ladder,
    controls: Controls,
    notify: Callable[[str], None],
    sink: LiveSink | None = None,
) -> tuple[LiveRun, Probe]:
    """A live run whose only output is a Probe, of another one if there is one."""
    probe = Probe(sink)
    run = LiveRun(
        source, ladder, [probe], controls, recording=_no_recording, screenshot=lambda _: Path(), notify=notify
    )
    return run, probe


def measure(backend: Backend, width: int, height: int, rate: int, seconds: float, look: Callable[[], object]) -> Live:
    """Run live for about so many seconds, with the test camera and every picture enhanced as it is (--ladder off).

    look: called now and then; an exception of it ends the run.
    """
    source = open_live_source("test", (width, height), Fraction(rate))
    ladder = Ladder(["model"], lambda _: [Rung("exactly", backend)], source.format, Fraction(rate), pinned=True)
    run, probe = watched(source, ladder, Controls(model="model"), lambda _line: None)
    began = time.monotonic()

    def stop() -> bool:
        look()
        if probe.moments:
            return time.monotonic() > probe.moments[0] + _WARM_UP + seconds
        return time.monotonic() > began + _PATIENCE

    run.run(stop)
    return found(probe, Live(width, height, float(source.frame_rate)))


def found(probe: Probe, live: Live) -> Live:
    """Fill in what a probe has noted, but for its first second."""
    kept = [index for index, moment in enumerate(probe.moments) if moment >= probe.moments[0] + _WARM_UP]
    if len(kept) < 2:
        live.why_not = "no picture came in time"
        return live
    first, last = kept[0], kept[-1]
    live.shown = len(kept)
    live.missed = probe.numbers[last] - probe.numbers[first] + 1 - len(kept)
    live.fps = (len(kept) - 1) / (probe.moments[last] - probe.moments[first])
    p50, p95 = np.percentile(1000 * np.array(probe.ages)[kept], (50, 95))
    live.p50_milliseconds, live.p95_milliseconds = float(p50), float(p95)
    return live


def _no_recording() -> tuple[Path, LiveSink]:
    raise AssertionError("nobody asks for one")
