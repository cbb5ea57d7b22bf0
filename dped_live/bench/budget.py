"""How the time is shared out. Knows no network, and no clock but the one it is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import sqrt


class Budget:
    """Seconds that may be used from now on.

    clock: seconds, as time.monotonic.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._until = self._began + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._until - self._clock())

    @property
    def used(self) -> float:
        return self._clock() - self._began

    def share(self, weight: float, later: Sequence[float]) -> Budget:
        """What of the time left is for something of this weight, where things of the later weights follow. What is not
        used of it is theirs."""
        return Budget(self.left * weight / (weight + sum(later)), self._clock)

    def without(self, seconds: float) -> Budget:
        """The same, but for so many seconds at its end."""
        return Budget(max(0.0, self.left - seconds), self._clock)

    def has(self, seconds: float) -> bool:
        """Whether something that takes so long may begin."""
        return seconds <= self.left


def weight_of(pixels: int) -> float:
    """What a size weighs among others: more than a smaller one, but not as much more as it takes, or it would leave
    nothing for these."""
    return sqrt(pixels)
