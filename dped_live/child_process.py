"""A process of its own for what may block for ever, or crash: it can be killed whatever it does.

The two talk in JSON over a pipe. Pictures and sound go through shared memory beside it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_ORPHANED = 10
"""Seconds after which a child that no longer looks for messages ends by itself: its parent would have killed it."""

_DYING = 0.5
"""Seconds that a process which was killed is waited for."""

Message = dict[str, Any]


class EndedError(Exception):
    """The process at the other end has ended."""


class Child:
    """A process, as the one that has started it sees it. Used by one thread at a time."""

    def __init__(self, work: Callable[..., None], *arguments: object, is_slow: bool = False) -> None:
        """Run work(parent, *arguments) in it: a function of a module, its parent being a Parent.

        is_slow: it may be busy for minutes without a look for messages, and have children of its own.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_run, args=(other_end, is_slow, work, *arguments), daemon=not is_slow)
        with _interrupt_held_back():
            self._process.start()
        other_end.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    def hear(self, seconds: float = 0) -> Message | None:
        """The next message; None if there is none in this time. Raises EndedError if there will be none."""
        return _hear(self._pipe, seconds)

    def tell(self, **message: object) -> None:
        """Raises EndedError."""
        _tell(self._pipe, message)

    def end(self, seconds: float = 0) -> None:
        """Tell it to end by closing the pipe, and kill it if it has not after so many seconds. May be called again."""
        if not self._pipe.closed:
            self._pipe.close()
            self._process.join(seconds)
            self._process.kill()
            # Not for ever: what is stuck in a driver ends when that lets it.
            self._process.join(_DYING)


class Parent:
    """The process that has started this one. Used by one thread, which calls hear() every few seconds, or is_slow."""

    def __init__(self, pipe: Connection[Any, Any], is_slow: bool) -> None:
        self._pipe = pipe
        self._is_slow = is_slow
        self._nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as this process is
        self._put_off()

    def hear(self, seconds: float = 0) -> Message | None:
        """The next message; None if there is none in this time. Raises EndedError."""
        self._put_off()
        return _hear(self._pipe, seconds)

    def tell(self, **message: object) -> None:
        """Raises EndedError."""
        _tell(self._pipe, message)

    def _put_off(self) -> None:
        if self._is_slow:
            return
        # Of what can end a thread that is stuck in a driver or in the network, this works on every system.
        faulthandler.dump_traceback_later(_ORPHANED, exit=True, file=self._nowhere)


def _run(pipe: Connection[Any, Any], is_slow: bool, work: Callable[..., None], *arguments: object) -> None:
    # Ctrl-C goes to every process of the terminal; when it is over is for the first one to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EndedError):
        work(Parent(pipe, is_slow), *arguments)


def _hear(pipe: Connection[Any, Any], seconds: float) -> Message | None:
    try:
        return json.loads(pipe.recv_bytes()) if pipe.poll(seconds) else None
    except (EOFError, OSError) as error:
        raise EndedError from error


def _tell(pipe: Connection[Any, Any], message: Message) -> None:
    try:
        pipe.send_bytes(json.dumps(message).encode())
    except OSError as error:
        raise EndedError from error


@contextlib.contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """A process that is started in here never gets SIGINT: Ctrl-C during its start would print a traceback."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # otherwise started together with the process, and lets SIGINT through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
