"""Flat borders of a picture: letterbox and pillarbox bars, the margins of screen recordings. numpy only.

They are not part of what the camera saw: measured with it they change its colours by up to 12 levels, and enhanced they
turn grey. A border is a run of lines of one colour, from the edge of the picture inwards, that is the same in all
frames looked at and ends at a straight edge, at once along a good part of its length. A dark sky or a blown-out window
has no such edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dped_live.frame import Area, Frame

_MEAN_DEVIATION, _LARGEST_DEVIATION = 1.5, 12
"""How far, in 8-bit levels, the values of a border's line may be from its colour: what coding makes of a flat one."""

_EDGE_STEP = 4
"""By so many 8-bit levels, at least, the picture differs from the border beside their edge..."""

_EDGE_SHARE = 0.3
"""...on so much of the edge's length, in one frame or another..."""

_EDGE_LINES = 2
"""...within so many lines from it: scaling makes edges soft."""

_LEAST_DEPTH = 2
"""Lines; a single one is mostly a flaw of the camera or of a decoder."""

_BLACK = 40
"""8-bit level up to which a border may be on one side alone. Lighter ones are believed only in pairs: an overcast sky
can end at a straight roof."""

_LEAST_PICTURE = 0.2, 16
"""Share and pixels of the height and of the width that must remain; else it is no picture with borders."""

_FIRST_LINES = 16
"""Looked at first, and four times as many where all are flat: mostly there is no border, and a live picture has no time
to lose."""

_SAMPLES = 256
"""About so many values of each line are looked at."""


def find_area(frames: Sequence[Frame], known: Area | None = None) -> Area:
    """The part inside the borders that some frames of one scene share; at least one frame, all of one format.

    known: the area of an earlier scene. Where a side now has no edge, because the picture beside it is as dark as the
    border, the border stays what it was.
    """
    whole = frames[0].whole
    if known is None:
        known = whole
    rows = [_planes_by_row(frame, whole) for frame in frames]
    top, below = _depths(rows, whole.bottom, (known.top, whole.bottom - known.bottom), frames[0])
    inside = Area(top, whole.bottom - below, 0, whole.right)
    # Left and right are looked for between these: all lines above and below would be one colour.
    columns = [_planes_by_column(frame, inside) for frame in frames]
    left, beyond = _depths(columns, whole.right, (known.left, whole.right - known.right), frames[0])
    return Area(top, whole.bottom - below, left, whole.right - beyond)


@dataclass(frozen=True, slots=True)
class _Plane:
    """lines: (count, values along each, channels). shift: 2^shift lines of luma share one of these."""

    lines: np.ndarray
    shift: int


def _planes_by_row(frame: Frame, inside: Area) -> list[_Plane]:
    pixel = frame.format.pixel_format
    part = frame.cropped(inside)[0]
    return [
        _Plane(_with_channels(plane), pixel.chroma_shift_y if number else 0) for number, plane in enumerate(part.planes)
    ]


def _planes_by_column(frame: Frame, inside: Area) -> list[_Plane]:
    pixel = frame.format.pixel_format
    part = frame.cropped(inside)[0]
    return [
        _Plane(_with_channels(plane).swapaxes(0, 1), pixel.chroma_shift_x if number else 0)
        for number, plane in enumerate(part.planes)
    ]


def _with_channels(plane: np.ndarray) -> np.ndarray:
    return plane[..., None] if plane.ndim == 2 else plane


def _depths(frames: list[list[_Plane]], count: int, known: tuple[int, int], example: Frame) -> tuple[int, int]:
    """How many of `count` lines are border, at the beginning and at the end."""
    depth = example.format.pixel_format.depth
    scale = 2.0 ** (depth - 8)
    sides = [
        _Side.of([[_side(plane, backwards) for plane in planes] for planes in frames], count, scale)
        for backwards in (False, True)
    ]
    pair = all(side.has_edge for side in sides) and abs(sides[0].colour - sides[1].colour) <= _MEAN_DEVIATION
    found = []
    for side, before in zip(sides, known, strict=True):
        if side.has_edge and (pair or side.colour <= _BLACK):
            found.append(side.depth)
        else:
            found.append(before if side.depth >= before else 0)
    first, last = found
    return (first, last) if count - first - last >= max(_LEAST_PICTURE[0] * count, _LEAST_PICTURE[1]) else (0, 0)


def _side(plane: _Plane, backwards: bool) -> _Plane:
    """From the outside inwards, and not more values of a line than are needed."""
    step = max(1, plane.lines.shape[1] // _SAMPLES)
    return _Plane(plane.lines[:: -1 if backwards else 1, ::step], plane.shift)


@dataclass(frozen=True, slots=True)
class _Side:
    """depth: lines of one colour. colour: of luma, in 8-bit levels. has_edge: whether it ends as borders do."""

    depth: int
    colour: float
    has_edge: bool

    @classmethod
    def of(cls, frames: list[list[_Plane]], count: int, scale: float) -> _Side:
        depth = count
        colour, deviations = 0.0, np.empty(0)
        for number, planes in enumerate(zip(*frames, strict=True)):
            level = np.median(planes[0].lines[0], axis=0).astype(np.float32)
            looked_at = _FIRST_LINES
            while True:
                # The largest over the frames: a border is there in all of them.
                lines = [plane.lines[:looked_at].astype(np.float32) for plane in planes]
                off = np.stack([np.abs(values - level) for values in lines]).max(0) / scale
                flat = (off.mean((1, 2)) <= _MEAN_DEVIATION) & (off.max((1, 2)) <= _LARGEST_DEVIATION)
                if looked_at >= len(planes[0].lines) or not flat[:-_EDGE_LINES].all():
                    break
                looked_at *= 4
            run = len(flat) if flat.all() else int(flat.argmin())
            # The chroma samples beside the edge are mixed from both sides of it.
            depth = min(depth, run if planes[0].shift == 0 else ((run + 2) << planes[0].shift) - 1)
            if number == 0:
                colour, deviations = float(level.mean()) / scale, off
        beside = deviations[depth : depth + _EDGE_LINES]
        edge = len(beside) > 0 and (beside.max((0, 2)) > _EDGE_STEP).mean() >= _EDGE_SHARE
        return cls(depth, colour, bool(edge) and depth >= _LEAST_DEPTH)
