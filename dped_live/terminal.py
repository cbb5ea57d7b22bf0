"""What the commands share: lines on standard error, progress, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from tqdm import tqdm

LINE_EVERY = 10.0
"""Seconds between progress lines where there is no terminal."""


def printable(text: str) -> str:
    """One line, and without control of the terminal, whatever the names of files are."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(line: str) -> None:
    """Print a line, under the program's name."""
    tqdm.write(f"dped-live: {printable(line)}", file=sys.stderr)


def ignore(_line: str) -> None:
    """What a quiet program says."""


class Interrupt:
    """Handles SIGINT and SIGTERM: the first time it is noted, the second time the program leaves at once."""

    def __init__(self, first_time: str) -> None:
        self._asked = False
        self._first_time = first_time

    def asked(self) -> bool:
        return self._asked

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            os._exit(130)
        self._asked = True
        say(self._first_time)


@contextmanager
def interruptible(first_time: str = "finishing what is begun; Ctrl-C again leaves at once") -> Iterator[Interrupt]:
    """While this lasts, Ctrl-C, or `kill`, asks the Interrupt instead of raising KeyboardInterrupt.

    first_time: what it then says.
    """
    interrupt = Interrupt(first_time)
    before = [(number, signal.signal(number, interrupt)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield interrupt
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def clock(seconds: float) -> str:
    """A time as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


@contextmanager
def fetch_progress(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback for weights.load and the like that shows a bar for each file; a line where there is no terminal."""
    if quiet:
        yield None
        return
    bars: dict[str, tqdm[NoReturn]] = {}

    def update(name: str, done: int, total: int) -> None:
        if name not in bars:
            if not sys.stderr.isatty():
                say(f"fetching {name}, {total / 1e6:.1f} MB")
            # disable=None: it is drawn on a terminal only.
            bars[name] = tqdm(
                desc=f"fetching {name}", total=total, unit="B", unit_scale=True, leave=False, disable=None
            )
        bars[name].update(done - bars[name].n)

    try:
        yield update
    finally:
        for bar in bars.values():
            bar.close()
