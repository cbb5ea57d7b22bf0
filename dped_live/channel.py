"""Bounded hand-offs between two threads: one that waits, and carries its end and its error; one that never waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Cancelled(Exception):  # noqa: N818 - not an error: it unwinds a thread whose work nobody wants any more
    """Raised by every call on a channel that was cancelled."""


class Channel(Generic[T]):
    """One thread puts, one thread iterates; at most `capacity` items wait in between.

    Ends in one of two ways: `end()`, after which the reader gets what is still waiting and then stops; or `cancel()`,
    after which both sides get Cancelled at once and what was waiting is dropped.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a channel holds at least one item, not {capacity}")
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._cancelled = False

    def put(self, item: T) -> None:
        """Hand over an item; waits while the channel is full. Raises Cancelled."""
        with self._changed:
            if self._ended:
                raise ValueError("put() after end()")
            self._changed.wait_for(lambda: self._cancelled or len(self._items) < self._capacity)
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Unblock both sides with Cancelled. May be called from any thread, any number of times."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Yield items until the end; waits while the channel is empty. Raises Cancelled."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._cancelled or self._ended or self._items)
                if self._cancelled:
                    raise Cancelled
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


class Latest(Generic[T]):
    """One thread puts and never waits, one thread takes; of more than `capacity` items the oldest is dropped.

    dropped: how many were.
    """

    def __init__(self, capacity: int = 1) -> None:
        if capacity < 1:
            raise ValueError(f"at least one item must have room, not {capacity}")
        self.dropped = 0
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._cancelled = False

    def put(self, item: T) -> None:
        """Hand over an item. Raises Cancelled."""
        with self._changed:
            if self._cancelled:
                raise Cancelled
            if len(self._items) == self._capacity:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()

    def __len__(self) -> int:
        """How many wait."""
        with self._changed:
            return len(self._items)

    def take(self, timeout: float) -> T | None:
        """The oldest of those that wait; None if none came for so many seconds. Raises Cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or self._items, timeout)
            if self._cancelled:
                raise Cancelled
            return self._items.popleft() if self._items else None

    def cancel(self) -> None:
        """Unblock both sides with Cancelled. May be called from any thread, any number of times."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()
