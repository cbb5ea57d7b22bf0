"""The rate held: the network as asked for if it is quick enough for the frame rate, else a lighter one.

The rungs of the ladder, the best first: the model asked for; the same followed by its surrogate (follower.py); lite, if
that is another; lite on a smaller picture. It is entered at the best rung that a trial run says will do, left downwards
as soon as the rate is missed, and climbed only when the rung above would have a fifth of its time to spare, after five
seconds; after each vain climb, twice as long.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from dped_live.backends import Backend, BytesBackend
from dped_live.enhance import Enhancer
from dped_live.frame import Frame, VideoFormat
from dped_live.live_state import Controls, LivePicture
from dped_live.live_statistics import LivePolicy
from dped_live.scene_statistics import Policy
from dped_live.statistics import Statistics

_SPARE = 0.8
"""Part of the time for a frame that a rung may be expected to take for it to be climbed to."""

_LATE = 10
"""Frames that a rung is judged by; and as many are waited for before it is."""

_PATIENCE, _MOST_PATIENCE = 5.0, 320.0
"""Seconds before a climb, at first and at most."""

_TRIAL_SIDES = (8, 4, 2, 1)
"""A trial run is on 1/64, 1/16, 1/4 of the picture and on all of it, until it is clear."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to enhance, and what normalises its frames.

    label: for people, or what gives that of the moment. is_quick: a trial run may be on the whole picture at once.
    """

    label: str | Callable[[], str]
    backend: Backend
    policy: Policy = field(default_factory=LivePolicy)
    is_quick: bool = False


class Climb:
    """Which rung, by how long frames take. Knows no clock and no network.

    expected: seconds that each rung takes, the best first; allowed: seconds for each frame.
    """

    def __init__(self, expected: Sequence[float], allowed: float) -> None:
        self._expected = list(expected)
        self._allowed = allowed
        self.rung = next((rung for rung, seconds in enumerate(expected) if seconds <= allowed), len(expected) - 1)
        self._patience = [_PATIENCE] * len(expected)
        self._last: deque[float] = deque(maxlen=_LATE)  # seconds of the last frames on this rung
        self._since = 0.0  # seconds on this rung
        self._load: float | None = None  # when this rung was climbed to

    def took(self, seconds: float, passed: float) -> None:
        """Learn that a frame took so long, and that so much time has passed since the one before."""
        self._last.append(seconds)
        self._since += passed
        if len(self._last) < _LATE:
            return
        # But for the longest: a hiccup, or a new scene's beginning, is no reason to do less.
        mean = (sum(self._last) - max(self._last)) / (_LATE - 1)
        # How busy the machine is: the rungs above will take longer, too, or less long than was expected.
        load = mean / self._expected[self.rung]
        if mean > self._allowed and self.rung + 1 < len(self._expected):
            if self._load is not None and self._since < _PATIENCE:
                # A vain climb: it takes longer than was expected of the machine as busy as it is.
                self._expected[self.rung] = mean / self._load
                self._patience[self.rung] = min(_MOST_PATIENCE, 2 * self._patience[self.rung])
            self._move(self.rung + 1, None)
        elif (
            self.rung > 0
            and self._since > self._patience[self.rung - 1]
            and load * self._expected[self.rung - 1] < _SPARE * self._allowed
        ):
            self._move(self.rung - 1, load)

    def _move(self, rung: int, load: float | None) -> None:
        self.rung, self._load = rung, load
        self._last.clear()
        self._since = 0.0


class Ladder:
    """Enhances live frames at a frame rate; see live.LiveEnhancer.

    models: names that may be chosen. open_rungs: the rungs for one of them, the best first; only the first is used
    if `pinned`. fmt: of the frames, rgb24. May raise DpedError when another model is chosen.
    """

    def __init__(
        self,
        models: Sequence[str],
        open_rungs: Callable[[str], Sequence[Rung]],
        fmt: VideoFormat,
        frame_rate: Fraction,
        pinned: bool,
    ) -> None:
        self.models = tuple(models)
        self.state = ("", "")
        self._open_rungs = open_rungs
        self._format = fmt
        self._allowed = float(1 / frame_rate)
        self._pinned = pinned
        self._model = ""
        self._rungs: list[Rung] = []
        self._enhancers: list[Enhancer] = []
        self._climb = Climb([0.0], 1.0)
        self._before = time.monotonic()

    def enhance(self, frame: Frame, controls: Controls) -> LivePicture:
        if controls.model != self._model:
            self._choose(controls.model, frame)
        before = frame.planes[0]
        if controls.mirror:
            before = np.ascontiguousarray(before[:, ::-1])
            frame = replace(frame, planes=(before,))
        enhancer = self._enhancers[self._climb.rung]
        enhancer.strength = controls.strength
        began = time.monotonic()
        (after,) = enhancer.enhance(frame).planes
        ended = time.monotonic()
        if controls.strength > 0:
            self._climb.took(ended - began, ended - self._before)
        self._before = ended
        label = self._rungs[self._climb.rung].label
        self.state = self._model, label if isinstance(label, str) else label()
        assert frame.captured_at is not None, "live frames have it"
        return LivePicture(before, after, frame.pts, frame.captured_at)

    def _choose(self, model: str, frame: Frame) -> None:
        rungs = list(self._open_rungs(model))[: 1 if self._pinned else None]
        # There is nothing to choose from if it is pinned; but what a GPU compiles would hold the second frame up.
        is_tried = not self._pinned or rungs[0].backend.device.type != "cpu"
        expected = [_trial(rung, frame, self._allowed) if is_tried else 1.0 for rung in rungs]
        self._rungs = rungs
        self._enhancers = [Enhancer(rung.backend, self._format, rung.policy) for rung in rungs]
        self._climb = Climb(expected, self._allowed)
        self._model = model


def _trial(rung: Rung, frame: Frame, allowed: float) -> float:
    """About how many seconds a frame will take, found in not much more than `allowed`."""
    height, width = frame.format.height, frame.format.width
    device = rung.backend.device
    # On a GPU the whole picture at once: it is quick, and what is prepared for a size is then ready.
    is_on_gpu = device.type != "cpu"
    measured = (height, width) if is_on_gpu else (64, 64)
    grey = torch.full((1, 3, *measured), 0.5, device=device)
    statistics = rung.backend.statistics(grey)
    if isinstance(rung.backend, BytesBackend):
        # What frames go through at another strength; see _timed for the usual one.
        rung.backend.enhance(grey, statistics)
    estimate = 0.0
    for side in (1,) if rung.is_quick or is_on_gpu else _TRIAL_SIDES:
        picture = torch.full((1, 3, max(8, height // side), max(8, width // side)), 0.5, device=device)
        seconds = min(_timed(rung.backend, picture, statistics) for _ in range(2))
        # What does not grow with the picture counts too often: an upper bound.
        estimate = seconds * height * width / (picture.shape[2] * picture.shape[3])
        if estimate <= allowed or 4 * seconds > allowed:
            break
    return estimate


def _timed(backend: Backend, picture: Tensor, statistics: Statistics) -> float:
    levels = picture[0].permute(1, 2, 0).mul(255).to(torch.uint8)
    began = time.monotonic()
    if not isinstance(backend, BytesBackend) or backend.enhance_bytes(levels, statistics) is None:
        backend.enhance(picture, statistics)
    if picture.is_cuda:
        torch.cuda.synchronize(picture.device)
    return time.monotonic() - began
