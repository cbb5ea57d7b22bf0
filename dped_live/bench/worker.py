"""The process that measures: what it takes of memory is its own, it can be ended in time, and it may crash."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dped_live.bench.measure import Measurements
from dped_live.bench.results import Size
from dped_live.bench.work import Way
from dped_live.child_process import Child, EndedError, Parent
from dped_live.errors import DpedError

_LOOK = 0.02
"""Seconds between two looks at its memory."""

_TIDY = 2.0
"""Seconds that a process may take to put its things in order."""


class UnmeasuredError(Exception):
    """Something could not be measured; its text says why."""


class StoppedError(Exception):
    """The user does not want to go on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """values: what a method of Measurements returned. memory_mb: the most that was resident meanwhile."""

    values: dict[str, Any]
    memory_mb: float


class Worker:
    """A process with Measurements; `close` ends it.

    The arguments are Measurements's. stop: asked all the time; once it says yes, StoppedError is raised.
    """

    def __init__(self, model: str, way: Way, folder: Path, smallest: Size, stop: Callable[[], bool]) -> None:
        self._stop = stop
        self._child = Child(serve, model, way, str(folder), smallest, is_slow=True)
        self.is_open = True

    def opened(self, seconds: float) -> Answer:
        """Measurements.about(), once it is ready. To be called first. Raises as `ask`."""
        return self._answer(seconds)

    def ask(self, seconds: float, task: str, /, **arguments: object) -> Answer:
        """What a method of Measurements returns. Raises UnmeasuredError if that fails, or takes longer than so many
        seconds, or has ended the process; after the last two it is closed."""
        if not self.is_open:
            raise UnmeasuredError("its process has ended")
        try:
            self._child.tell(task=task, **arguments)
        except EndedError as error:
            raise self._crashed() from error
        return self._answer(seconds)

    def close(self) -> None:
        """May be called again."""
        self.is_open = False
        self._child.end(_TIDY)

    def _answer(self, seconds: float) -> Answer:
        until = time.monotonic() + seconds
        process = psutil.Process(self._child.pid)
        memory = 0.0
        while time.monotonic() < until:
            if self._stop():
                raise StoppedError
            with contextlib.suppress(psutil.Error):  # it has ended; hear() will tell
                memory = max(memory, process.memory_info().rss / 1e6)
            try:
                message = self._child.hear(_LOOK)
            except EndedError as error:
                raise self._crashed() from error
            if message is None:
                continue
            if "failed" in message:
                raise UnmeasuredError(message["failed"])
            return Answer(message["done"], memory)
        self.close()
        raise UnmeasuredError(f"not done within {seconds:.0f} s")

    def _crashed(self) -> UnmeasuredError:
        self.close()
        return UnmeasuredError("its process crashed, perhaps for want of memory")


def serve(parent: Parent, model: str, way: Way, folder: str, smallest: Size) -> None:
    """What runs in the process: answer until nobody asks any more."""
    try:
        measurements = Measurements(model, way, Path(folder), smallest, look=parent.hear)
        parent.tell(done=measurements.about())
    except DpedError as error:
        parent.tell(failed=str(error))
        return
    while True:
        task = parent.hear(60)
        if task is None:
            continue
        try:
            done = getattr(measurements, task.pop("task"))(**task)
        except DpedError as error:
            parent.tell(failed=str(error))
        else:
            parent.tell(done=done)
