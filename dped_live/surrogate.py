"""The surrogate of a network for one scene, fitted to what the network makes of parts of its pictures.

With given statistics the network does the same to each picture, so what it made of a part of one stays true while the
scene lasts: the parts are kept, and the fit gets better with each. See table_filter.py for its form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dped_live.table_filter import SIDE, Filter, TableFilter, identity, refined
from dped_live.table_kernels import Array, accumulate, as_array, empty_equations, look_up, packed, solve

RIM = 8
"""Pixels at a sample's sides that are not fitted to: the network sees there what is not around the sample in the
picture. Its field reaches 18 pixels, but without what lies beyond 8 the result agrees to 78 dB (in FP16 to 81)."""

_BEND, _PULL = 1e-2, 1e-2
"""Weights, against the mean squared error, of the squared second differences of what a table adds to the usual one, and
of that itself; for each entry of the table. The one forbids bands; both together let colours that no sample has follow
their neighbours, and far from these be as usual."""

_STEPS = 40
_MOST = 120_000
"""About so many pixels are used of all samples: more only take longer."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A part of a picture, and what the network makes of it: (3, H, W), float32, RGB. More than 2 RIM wide and high."""

    before: Array
    after: Array


def fit(samples: Sequence[Sample], filter_: Filter, begin: TableFilter | None = None, rounds: int = 2) -> TableFilter:
    """The tables with which table, filter, table comes nearest to the network on the samples.

    begin: a fit to similar samples, which is gone on from. rounds: how often both tables are fitted, in turn.
    """
    inner = (slice(None), slice(RIM, -RIM), slice(RIM, -RIM))
    pixels = sum(sample.before[inner][0].size for sample in samples)
    step = max(1, round(pixels / _MOST))

    def pooled(pictures: Sequence[Array]) -> Array:
        return as_array(np.concatenate([picture[inner].reshape(3, -1)[:, ::step] for picture in pictures], axis=1))

    before = pooled([sample.before for sample in samples])
    after = pooled([sample.after for sample in samples])
    usual_first, usual_second = refined(filter_.first), refined(filter_.second)
    first = _table(before, after, usual_first, usual_first) if begin is None else begin.first
    second = usual_second if begin is None else begin.second
    for number in range(rounds):
        whole = TableFilter(first, filter_, identity())
        filtered = pooled([whole.filtered(sample.before) for sample in samples])
        second = _table(filtered, after, usual_second, second)
        if number + 1 < rounds:
            # What is still missing after both is asked of the first.
            missing = after - _looked_up(second, filtered)
            first = _table(before, _looked_up(first, before) + missing, usual_first, first)
    return TableFilter(first, filter_, second)


def _looked_up(table: Array, colours: Array) -> Array:
    out = np.empty_like(colours)
    look_up(packed(table), SIDE, colours, out)
    return out


def _table(colours: Array, targets: Array, usual: Array, begin: Array) -> Array:
    """The table that turns colours into targets, both (3, P). begin: where the search begins."""
    products, sums = empty_equations(SIDE)
    accumulate(colours, targets - _looked_up(usual, colours), products, sums)
    each = colours.shape[1] / SIDE**3
    added = solve(products, sums, _BEND * each, _PULL * each, begin - usual, _STEPS)
    return (usual + added).clip(-0.25, 1.25)
