"""A network that is too slow for the frame rate, followed by its surrogate.

Every frame goes through table, filter, table (see table_filter.py). Beside that the network itself, given the
statistics of the scene, works on as many parts of the newest frame as it manages in about a second; the tables are then
fitted to all that is known of the scene, and the picture goes over to them so slowly that nobody sees it.

A scene begins with what the network makes of small parts from all over its first frame, in a tenth of a second or two.
Put together as one picture, they also tell the statistics of all of it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dped_live.backends import Backend
from dped_live.errors import DpedError
from dped_live.frame import Frame
from dped_live.scene_statistics import Normalisation, Policy
from dped_live.statistics import Statistics, distance
from dped_live.surrogate import RIM, Sample, fit
from dped_live.table_filter import Filter, TableFilter
from dped_live.table_kernels import as_array

_TILE = 96
"""Side of the parts that the network works on, without the rim of a sample."""

_LEAST_SIDE = 2 * RIM + 32
"""Smaller pictures are quick enough for the network itself."""

_SMALL, _QUICK, _MEASURED = 40, 40_000, 115_000
"""Side of the small parts; about how many pixels of them a scene begins with, and how many statistics are measured
from: a 23rd and an eighth of 1280x720. Pictures by these statistics agree with the exact ones to 34 and 38 dB."""

_SECONDS = 0.7
"""How long the network may work on parts of one frame, live; with the fit a second."""

_FIRST = 8
"""Parts to begin with, while it is not known how long one takes."""

_SHARE = 0.25
"""Part of the picture that the network works on where there is no hurry, in a file."""

_INTERVAL = Fraction(1)
"""Seconds of a file from one fit to the next."""

_SOONEST, _UNKNOWN = Fraction(1, 5), 0.01
"""Seconds after which there is another fit in a file if such a part of the picture has colours of no sample."""

_KEPT = 0.6
"""So much of a scene's samples are kept, of the area of its pictures; the oldest go."""

_GOES_OVER = 0.3
"""Time constant of going over to new tables, in seconds; slower where a still scene would be seen to change."""

_STEP = 0.05 / 255
"""Change of luma, of nearly all colours of the picture, from one frame to the next, while the light is steady."""

_STEADY, _STILL = 1e-3, 1 / 255
"""Distance of the statistics of neighbouring frames up to which it is; and change, of more than half of the picture, up
to which that is still. Where nearly all of it moves or fades, nobody sees smaller changes."""

_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)

_PROBES, _OF_PROBES = 16, 0.97
"""Every how many rows and columns a colour of the picture is looked at for that, and the part of them that counts."""

_ALIKE = 0.05
"""Distance of statistics up to which a sample is true under others: about 40 dB."""

_COLOURS = 9
"""Entries along each axis of the histograms by which parts are chosen."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Samples of one frame, and the statistics that the network was given."""

    samples: tuple[Sample, ...]
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class _Refit:
    """What a turn of the network has given. measured: the frame's own statistics, if they were wanted."""

    scene: _Scene
    tables: TableFilter
    measured: Statistics | None


class _Scene:
    """What is known of a scene, and the tables that were fitted to it. Used by one thread at a time."""

    def __init__(
        self, network: Backend, filter_: Filter, tables: TableFilter | None = None, batch: _Batch | None = None
    ) -> None:
        self._network = network
        self._filter = filter_
        self._tables = tables
        self._batches = [] if batch is None else [batch]
        self._seen = _seen(self._known())
        self._seconds = 0.0  # that the network takes for a pixel; 0: not known yet

    def refit(self, image: Tensor, statistics: Statistics, share: float | None, measure: bool) -> _Refit:
        """Let the network work on parts of a picture, and fit the tables again.

        share: of the picture; None: as much as is done in _SECONDS.
        """
        places = _places(image.shape[2], image.shape[3])
        size = places[0].height * places[0].width
        if share is not None:
            count = math.ceil(share * len(places))
        elif self._seconds > 0:
            count = int(_SECONDS / (self._seconds * size))
        else:
            count = _FIRST
        self._batches = [batch for batch in self._batches if distance(statistics, batch.statistics) <= _ALIKE]
        picture = image[0].cpu().numpy()
        chosen = _chosen(picture, places, max(1, count), self._seen)
        # Side by side, as one picture: what a part gets from its neighbour stays within the rim.
        row = torch.cat([image[:, :, p.top : p.top + p.height, p.left : p.left + p.width] for p in chosen], dim=3)
        began = time.monotonic()
        after = self._network.enhance(row, statistics)
        samples = _parts(row, after, places[0].width)
        took = (time.monotonic() - began) / (row.shape[2] * row.shape[3])
        self._seconds = took if self._seconds == 0 else 0.5 * (took + self._seconds)
        self._batches.append(_Batch(samples, statistics))
        kept = max(count, math.ceil(_KEPT * len(places)))
        while sum(len(batch.samples) for batch in self._batches[1:]) >= kept:
            del self._batches[0]
        known = self._known()
        self._tables = fit(known, self._filter, self._tables)
        self._seen = _seen(known)
        measured = self._network.statistics(_gathered(image, _MEASURED)) if measure else None
        return _Refit(self, self._tables, measured)

    def unknown(self, image: Tensor) -> float:
        """The part of a picture that has colours of no sample."""
        found = _histogram(image[0].cpu().numpy())
        return float(found[self._seen == 0].sum() / found.sum())

    def _known(self) -> list[Sample]:
        return [sample for batch in self._batches for sample in batch.samples]


class Follower:
    """Both the Backend and the Policy of an Enhancer; see there.

    network, quick: two backends of one generator, the first for the follower's own thread, the second for the caller's.
    filter_: the model's. policy: asked for each frame's statistics; what it wants to be measured is measured on parts
    of the picture, in the background, and told to it some frames later.
    live: the network works in the background, on whichever frame is the newest. Else, in a file, it works at fixed
    times, and frames wait for it: the same file gives the same pictures.
    """

    shares = False

    def __init__(self, network: Backend, quick: Backend, filter_: Filter, policy: Policy, live: bool) -> None:
        self.device = quick.device
        self.description = f"{network.description}, followed"
        self._network = network
        self._quick = quick
        self._filter = filter_
        self._policy = policy
        self._threads = 1 if live else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "follower", _stand_back) if live else None
        self._turn: Future[_Refit] | None = None
        self._scene: _Scene | None = None
        self._shown: TableFilter | None = None
        self._target: TableFilter | None = None
        self._announced: tuple[Normalisation, Fraction] | None = None
        self._time = Fraction(0)
        self._fitted_at = Fraction(0)
        self._refit_at = 0.0  # time.monotonic()
        self._statistics: Statistics | None = None
        self._difference, self._left = 0.0, 0.0  # of the tables shown to the target: of luma, and the part still to go
        self._reduced: Tensor | None = None  # the last frame
        self._trouble: str | None = None
        # numba compiles now, or reads what it has kept, and not when the first frame waits.
        grey = np.full((3, _LEAST_SIDE, _LEAST_SIDE), 0.5, np.float32)
        fit([Sample(grey, grey)], filter_).enhance(torch.from_numpy(grey)[None])

    @property
    def state(self) -> str:
        """For people: how old the tables are, and what the network failed at."""
        if self._shown is None:
            return "followed"
        trouble = f"; the network failed: {self._trouble}" if self._trouble else ""
        return f"followed, refit {time.monotonic() - self._refit_at:.1f} s ago{trouble}"

    @property
    def in_float32(self) -> None:
        """Tables cannot overflow."""

    def normalisation(self, frame: Frame) -> Normalisation:
        self._take_over()
        plan = self._policy.normalisation(frame)
        self._announced = plan, frame.pts
        return replace(plan, measured=False)

    def learn(self, measured: Statistics) -> None:  # noqa: ARG002
        raise AssertionError("nothing was asked for")

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        """A frame that `normalisation` was asked for moves the tables; any other picture only goes through them."""
        if min(image.shape[2:]) < _LEAST_SIDE:
            return self._quick.enhance(image, statistics, out)
        announced, self._announced = self._announced, None
        if announced is not None:
            self._follow(image, statistics, *announced)
        if self._shown is None:
            self._begin(image, statistics)
        assert self._shown is not None
        return self._shown.enhance(image, out, self._threads)

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        """By the network itself."""
        return self._quick.measure(image, statistics)

    def statistics(self, image: Tensor) -> Statistics:
        return self._quick.statistics(image)

    def _follow(self, image: Tensor, statistics: Statistics | None, plan: Normalisation, now: Fraction) -> None:
        passed = max(0.0, float(now - self._time))
        self._time = now
        before, self._statistics = self._statistics, statistics
        steady = statistics is not None and before is not None and distance(statistics, before) < _STEADY
        steady = self._is_still(image) and steady
        if self._pool is None:
            self._follow_in_turn(image, statistics, before, now)
            self._go_over(image, passed, steady)
        elif statistics is None or self._scene is None:
            self._begin(image, statistics)
        else:
            self._go_over(image, passed, steady)
            if self._turn is None:
                scene = self._scene
                self._turn = self._pool.submit(scene.refit, image.clone(), statistics, None, plan.measured)

    def _is_still(self, image: Tensor) -> bool:
        """Whether most of the picture is as it was in the frame before; noise does not count."""
        before, self._reduced = self._reduced, F.avg_pool2d(image[:, :, ::4, ::4], 4)
        if before is None or before.shape != self._reduced.shape:
            return False
        return float((self._reduced - before).abs().median()) < _STILL

    def _begin(self, image: Tensor, statistics: Statistics | None) -> None:
        """Begin a scene with small parts of its first picture."""
        gathered = _gathered(image, _QUICK)
        after, measured = self._quick.measure(gathered, statistics)
        if statistics is None:
            self._policy.learn(measured)
        batch = _Batch(_parts(gathered, after, _SMALL), measured if statistics is None else statistics)
        tables = fit(batch.samples, self._filter)
        self._jump(tables)
        self._scene = _Scene(self._network, self._filter, tables, batch)

    def _follow_in_turn(
        self, image: Tensor, statistics: Statistics | None, before: Statistics | None, now: Fraction
    ) -> None:
        assert statistics is not None, "a file is followed by given statistics"
        if self._scene is None or before is None or distance(statistics, before) > _ALIKE:
            self._scene = _Scene(self._network, self._filter)
            self._jump(self._scene.refit(image, statistics, 1, False).tables)
            self._fitted_at = now
            return
        passed = now - self._fitted_at
        if passed >= _INTERVAL or (passed >= _SOONEST and self._scene.unknown(image) > _UNKNOWN):
            self._aim(self._scene.refit(image, statistics, _SHARE, False).tables)
            self._fitted_at = now

    def _jump(self, tables: TableFilter) -> None:
        self._shown, self._left = tables, 0
        self._aim(tables)

    def _aim(self, tables: TableFilter) -> None:
        self._target, self._refit_at = tables, time.monotonic()
        self._difference, self._left = math.nan, 0 if tables is self._shown else 1

    def _go_over(self, image: Tensor, passed: float, steady: bool) -> None:
        """A frame's step towards the target."""
        assert self._shown is not None
        assert self._target is not None
        if self._left < 1e-3:
            return
        if math.isnan(self._difference):
            probes = as_array(image[0, :, ::_PROBES, ::_PROBES].cpu().numpy().reshape(3, -1))
            change = _LUMA @ (self._target.of_flat(probes) - self._shown.of_flat(probes))
            self._difference = float(np.quantile(np.abs(change), _OF_PROBES))
        share = 1 - math.exp(-passed / _GOES_OVER)
        if steady:
            share = min(share, _STEP / max(_STEP, self._difference * self._left))
        self._shown = self._shown.towards(self._target, share)
        self._left *= 1 - share

    def _take_over(self) -> None:
        """What the network's last turn has given, if it is done and of this scene."""
        if self._turn is None or not self._turn.done():
            return
        turn, self._turn = self._turn, None
        try:
            refit = turn.result()
        except DpedError as error:
            self._trouble = str(error)
            return
        self._trouble = None
        if refit.scene is not self._scene:
            return
        if refit.measured is not None:
            self._policy.learn(refit.measured)
        self._aim(refit.tables)


def _stand_back() -> None:
    """The background leaves a core, and the right of way, to the frames."""
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 15)  # there, of this thread alone


def _gathered(image: Tensor, pixels: int) -> Tensor:
    """Small parts of a picture, spread evenly, put together as one; all of it where it has not many more pixels."""
    height, width = image.shape[2:]
    share = pixels / (height * width)
    if share > 0.7:
        return image
    rows, columns = (max(1, round(length * math.sqrt(share) / _SMALL)) for length in (height, width))
    lefts = np.linspace(0, width - _SMALL, columns).astype(int)
    return torch.cat(
        [
            torch.cat([image[:, :, top : top + _SMALL, left : left + _SMALL] for left in lefts], dim=3)
            for top in np.linspace(0, height - _SMALL, rows).astype(int)
        ],
        dim=2,
    )


def _parts(before: Tensor, after: Tensor, width: int) -> tuple[Sample, ...]:
    """Pictures put together of parts, as samples of one part each; a picture that is no multiple of them, as one."""
    height = before.shape[2] if before.shape[2] % width else width
    if before.shape[3] % width:
        width = before.shape[3]
    hosts = before[0].cpu().numpy(), after[0].cpu().numpy()
    return tuple(
        Sample(*(host[:, top : top + height, left : left + width] for host in hosts))
        for top in range(0, before.shape[2], height)
        for left in range(0, before.shape[3], width)
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of a picture, its rim included. All of a picture's are of one size."""

    top: int
    left: int
    height: int
    width: int


def _places(height: int, width: int) -> list[_Place]:
    """The parts of a picture: as many as fit side by side without their rims, spread evenly."""
    tall, wide = min(height, _TILE + 2 * RIM), min(width, _TILE + 2 * RIM)
    rows, columns = ((length - 2 * RIM) // _TILE for length in (height, width))
    return [
        _Place(round(top), round(left), tall, wide)
        for top in np.linspace(0, height - tall, max(1, rows))
        for left in np.linspace(0, width - wide, max(1, columns))
    ]


def _chosen(picture: np.ndarray, places: Sequence[_Place], count: int, seen: np.ndarray) -> list[_Place]:
    """The places that show most of what was seldom or never seen, and is often in the picture (3, H, W)."""
    if count >= len(places):
        return list(places)
    histograms = np.stack([_histogram(picture[:, p.top : p.top + p.height, p.left : p.left + p.width]) for p in places])
    often = histograms.sum(0)
    left = list(range(len(places)))
    chosen: list[_Place] = []
    while len(chosen) < count:
        gains = np.log((1 + seen + histograms[left]) / (1 + seen)) @ often
        best = left.pop(int(gains.argmax()))
        seen = seen + histograms[best]
        chosen.append(places[best])
    return chosen


def _seen(samples: Sequence[Sample]) -> np.ndarray:
    """How often each colour is in samples."""
    return sum((_histogram(sample.before) for sample in samples), np.zeros(_COLOURS**3))


def _histogram(picture: np.ndarray) -> np.ndarray:
    """Of each fourth row and column."""
    r, g, b = (picture[:, ::4, ::4].clip(0, 1) * (_COLOURS - 1) + 0.5).astype(np.int64).reshape(3, -1)
    counts: np.ndarray = np.bincount((r * _COLOURS + g) * _COLOURS + b, minlength=_COLOURS**3).astype(np.float64)
    return counts
