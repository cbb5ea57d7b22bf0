"""Colour tables and filters on a CPU, compiled by numba when first imported and kept in numba's cache.

Arrays are float32. A picture is (3, H, W); a table is (N, N, N, 3), its axes red, green and blue from 0 to 1 and its
entries three values of any meaning. In between it is interpolated tetrahedrally, from the corners of a cell that are
passed when the largest of red, green and blue within it is followed first, then the next, then the least; so greys
depend on the entries of greys alone. Outside the nearest place counts. Where pictures go through a table it is
`packed`. The functions release the interpreter's lock and use one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

WIDE, NARROW = 9, 5
"""Sides of the three kernels of a filter: the first one's, and the others'."""

_REACH = WIDE // 2

_Function = TypeVar("_Function", bound=Callable[..., None])

_ZERO, _ONE = np.float32(0), np.float32(1)


def _compiled(function: _Function) -> _Function:
    try:
        compiled = numba.njit(fastmath=True, nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written to: compiled at each start, for seconds.
        compiled = numba.njit(fastmath=True, nogil=True)(function)
    return cast(_Function, compiled)


@_compiled
def _place(side: int, colours: Array, corners: NDArray[np.int32], weights: Array) -> None:
    """Where a row of colours (3, W) is in a table: the entries of the first three of four corners, (3, W), and the
    weights of all four, (4, W)."""
    last, cells, n = np.float32(side - 1), np.int32(side - 2), np.int32(side)
    red, green, blue = n * n, n, np.int32(1)
    for x in range(colours.shape[1]):
        fr = min(max(colours[0, x], _ZERO), _ONE) * last
        fg = min(max(colours[1, x], _ZERO), _ONE) * last
        fb = min(max(colours[2, x], _ZERO), _ONE) * last
        i, j, k = min(np.int32(fr), cells), min(np.int32(fg), cells), min(np.int32(fb), cells)
        fr, fg, fb = fr - np.float32(i), fg - np.float32(j), fb - np.float32(k)
        most = red if fr >= fg and fr >= fb else (green if fg >= fb else blue)
        least = blue if fb <= fr and fb <= fg else (green if fg <= fr else red)
        high, low = max(fr, max(fg, fb)), min(fr, min(fg, fb))
        middle = fr + fg + fb - high - low
        at = (i * n + j) * n + k
        corners[0, x], corners[1, x], corners[2, x] = at, at + most, at + red + green + blue - least
        weights[0, x], weights[1, x], weights[2, x], weights[3, x] = _ONE - high, high - middle, middle - low, low


@_compiled
def _look_up(table: Array, side: int, colours: Array, out: Array, corners: NDArray[np.int32], weights: Array) -> None:
    """What a packed table says of a row of colours (3, W); out: (3, W), may be the same. The others: to work in.

    Indices without a sign, because others would each be looked at for one.
    """
    _place(side, colours, corners, weights)
    across = np.uint64(4 * (side * side + side + 1))
    four, one, two = np.uint64(4), np.uint64(1), np.uint64(2)
    for x in range(colours.shape[1]):
        a, b, c = np.uint64(corners[0, x]) * four, np.uint64(corners[1, x]) * four, np.uint64(corners[2, x]) * four
        d = a + across
        u, v, w, z = weights[0, x], weights[1, x], weights[2, x], weights[3, x]
        first = u * table[a] + v * table[b] + w * table[c] + z * table[d]
        second = u * table[a + one] + v * table[b + one] + w * table[c + one] + z * table[d + one]
        third = u * table[a + two] + v * table[b + two] + w * table[c + two] + z * table[d + two]
        out[0, x], out[1, x], out[2, x] = first, second, third


@_compiled
def _read(picture: Array, start: int, end: int, above: Array, below: Array, at: int, row: Array) -> None:
    """Row `at` of a picture, for one who may read it from `start` to `end`, and around that `above` and `below`."""
    if at < start:
        rows, y = above, above.shape[1] + at - start
    elif at < end:
        rows, y = picture, at
    else:
        rows, y = below, at - end
    for c in range(3):
        for x in range(row.shape[1]):
            row[c, x] = rows[c, y, x]


@_compiled
def _write(row: Array, out: Array, y: int) -> None:
    for c in range(3):
        for x in range(row.shape[1]):
            out[c, y, x] = row[c, x]


@_compiled
def _filter_wide(rows: Array, first: int, kernel: Array, out: Array) -> None:
    """out (W,): 9x9 over a ring of nine rows of W + 8, the uppermost of which is `first`."""
    out[:] = 0
    for dy in range(9):
        s = rows[(first + dy) % 9]
        k0, k1, k2, k3, k4 = kernel[dy, 0], kernel[dy, 1], kernel[dy, 2], kernel[dy, 3], kernel[dy, 4]
        k5, k6, k7, k8 = kernel[dy, 5], kernel[dy, 6], kernel[dy, 7], kernel[dy, 8]
        for x in range(out.shape[0]):
            left = k0 * s[x] + k1 * s[x + 1] + k2 * s[x + 2] + k3 * s[x + 3] + k4 * s[x + 4]
            out[x] += left + k5 * s[x + 5] + k6 * s[x + 6] + k7 * s[x + 7] + k8 * s[x + 8]


@_compiled
def _filter_narrow(rows: Array, first: int, kernel: Array, out: Array) -> None:
    """As _filter_wide, 5x5."""
    out[:] = 0
    for dy in range(5):
        s = rows[(first + 2 + dy) % 9]
        k0, k1, k2, k3, k4 = kernel[dy, 0], kernel[dy, 1], kernel[dy, 2], kernel[dy, 3], kernel[dy, 4]
        for x in range(out.shape[0]):
            out[x] += k0 * s[x + 2] + k1 * s[x + 3] + k2 * s[x + 4] + k3 * s[x + 5] + k4 * s[x + 6]


@_compiled
def filter_rows(
    picture: Array,
    start: int,
    end: int,
    above: Array,
    below: Array,
    side: int,
    table: Array,
    wide: Array,
    narrow: Array,
    other: Array,
    back: Array,
    last: Array,
    out: Array,
) -> None:
    """Table, filter and, if `last` is not empty, a second table, for the rows from `start` to `end`, in one pass.

    picture, out: (3, H, W), may be the same. above, below: (3, 0 to 4, W), the rows next to these; where there are
    none, and on the left and right, the border is repeated. side: of the packed tables. wide (9, 9), narrow, other
    (5, 5): kernels of the three values that the table gives; back (3, 3): from these to RGB.
    """
    width = picture.shape[2]
    ring = np.empty((3, 9, width + 8), np.float32)
    row = np.empty((3, width), np.float32)
    filtered = np.empty((3, width), np.float32)
    corners = np.empty((3, width), np.int32)
    weights = np.empty((4, width), np.float32)
    done = start - _REACH  # the next row to go through the table
    for y in range(start, end):
        while done <= y + _REACH:
            at = min(max(done, start - above.shape[1]), end + below.shape[1] - 1)
            to = (done - start + 9) % 9
            _read(picture, start, end, above, below, at, row)
            _look_up(table, side, row, row, corners, weights)
            for c in range(3):
                for x in range(width):
                    ring[c, to, x + 4] = row[c, x]
                for x in range(4):
                    ring[c, to, x] = row[c, 0]
                    ring[c, to, width + 4 + x] = row[c, width - 1]
            done += 1
        first = (y - start - _REACH + 9) % 9
        _filter_wide(ring[0], first, wide, filtered[0])
        _filter_narrow(ring[1], first, narrow, filtered[1])
        _filter_narrow(ring[2], first, other, filtered[2])
        for c in range(3):
            b0, b1, b2 = back[c, 0], back[c, 1], back[c, 2]
            for x in range(width):
                row[c, x] = b0 * filtered[0, x] + b1 * filtered[1, x] + b2 * filtered[2, x]
        if last.shape[0] > 0:
            _look_up(last, side, row, row, corners, weights)
        _write(row, out, y)


@_compiled
def _add_two(
    above: Array,
    here: Array,
    below: Array,
    spread: NDArray[np.bool_],
    one: Array,
    other: Array,
    out: Array,
    more: Array,
) -> None:
    """Add 3x3 convolutions of three padded rows to two rows (W,), with one (3, 3) kernel for each.

    Two at a time, for what is loaded serves both. spread: not empty where the taps are two pixels apart.
    """
    width = out.shape[0]
    a0, a1, a2, b0, b1, b2 = one[0, 0], one[0, 1], one[0, 2], one[1, 0], one[1, 1], one[1, 2]
    c0, c1, c2 = one[2, 0], one[2, 1], one[2, 2]
    d0, d1, d2, e0, e1, e2 = other[0, 0], other[0, 1], other[0, 2], other[1, 0], other[1, 1], other[1, 2]
    f0, f1, f2 = other[2, 0], other[2, 1], other[2, 2]
    if spread.shape[0] == 0:
        for x in range(width):
            p, q, r = above[x], above[x + 1], above[x + 2]
            s, t, u = here[x], here[x + 1], here[x + 2]
            v, w, z = below[x], below[x + 1], below[x + 2]
            out[x] += a0 * p + a1 * q + a2 * r + b0 * s + b1 * t + b2 * u + c0 * v + c1 * w + c2 * z
            more[x] += d0 * p + d1 * q + d2 * r + e0 * s + e1 * t + e2 * u + f0 * v + f1 * w + f2 * z
    else:
        for x in range(width):
            p, q, r = above[x], above[x + 2], above[x + 4]
            s, t, u = here[x], here[x + 2], here[x + 4]
            v, w, z = below[x], below[x + 2], below[x + 4]
            out[x] += a0 * p + a1 * q + a2 * r + b0 * s + b1 * t + b2 * u + c0 * v + c1 * w + c2 * z
            more[x] += d0 * p + d1 * q + d2 * r + e0 * s + e1 * t + e2 * u + f0 * v + f1 * w + f2 * z


@_compiled
def _add(above: Array, here: Array, below: Array, kernel: Array, out: Array) -> None:
    """As _add_two, for one row."""
    a0, a1, a2, b0, b1, b2 = kernel[0, 0], kernel[0, 1], kernel[0, 2], kernel[1, 0], kernel[1, 1], kernel[1, 2]
    c0, c1, c2 = kernel[2, 0], kernel[2, 1], kernel[2, 2]
    for x in range(out.shape[0]):
        row = a0 * above[x] + a1 * above[x + 1] + a2 * above[x + 2] + b0 * here[x] + b1 * here[x + 1] + b2 * here[x + 2]
        out[x] += row + c0 * below[x] + c1 * below[x + 1] + c2 * below[x + 2]


@_compiled
def _continue(row: Array, margin: int) -> None:
    """Repeat the ends of padded rows (C, W + 2 margin)."""
    width = row.shape[1] - 2 * margin
    for c in range(row.shape[0]):
        for x in range(margin):
            row[c, x] = row[c, margin]
            row[c, margin + width + x] = row[c, margin + width - 1]


@_compiled
def enhance_rows(
    picture: Array,
    start: int,
    end: int,
    above: Array,
    below: Array,
    side: int,
    table: Array,
    first: Array,
    threshold: Array,
    strength: Array,
    middle: Array,
    last: Array,
    second: Array,
    out: Array,
) -> None:
    """table_network.py: table, filter and table for the rows from `start` to `end`, in one pass.

    picture, out, above, below, side: as in filter_rows. table, second: packed. first (C, 3, 3, 3), middle (C, C, 3, 3),
    last (C, 3, 3): kernels. threshold, strength (C,). C is even.
    """
    height, width = picture.shape[1], picture.shape[2]
    channels = first.shape[0]
    # Rings of rows, each continued at its ends: RGB by the first table, and the two layers. Row y lies at y mod 5.
    colours = np.empty((5, 3, width + 2), np.float32)
    edges = np.empty((5, channels, width + 4), np.float32)
    sums = np.empty((5, channels, width + 2), np.float32)
    row = np.empty((3, width), np.float32)
    two = np.empty((2, width), np.float32)
    corners = np.empty((3, width), np.int32)
    weights = np.empty((4, width), np.float32)
    close, spread = np.empty(0, np.bool_), np.empty(1, np.bool_)
    for y in range(start - 8, end):
        # Each layer is as far ahead as the next one looks down.
        at = y + 4
        if max(0, start - 4) <= at < min(height, end + 4):
            _read(picture, start, end, above, below, at, row)
            _look_up(table, side, row, row, corners, weights)
            to = colours[at % 5]
            for c in range(3):
                for x in range(width):
                    to[c, x + 1] = row[c, x]
            _continue(to, 1)
        at = y + 3
        if max(0, start - 3) <= at < min(height, end + 3):
            a, b, d = colours[max(0, at - 1) % 5], colours[at % 5], colours[min(height - 1, at + 1) % 5]
            to = edges[at % 5]
            for c in range(0, channels, 2):
                for k in range(2):
                    two[k] = -threshold[c + k]
                for i in range(3):
                    _add_two(a[i], b[i], d[i], close, first[c, i], first[c + 1, i], two[0], two[1])
                for k in range(2):
                    gain = strength[c + k]
                    for x in range(width):
                        to[c + k, x + 2] = gain * max(two[k, x], _ZERO)
            _continue(to, 2)
        at = y + 1
        if max(0, start - 1) <= at < min(height, end + 1):
            a, b, d = edges[max(0, at - 2) % 5], edges[at % 5], edges[min(height - 1, at + 2) % 5]
            to = sums[at % 5]
            for c in range(0, channels, 2):
                two[:] = 0
                for i in range(channels):
                    _add_two(a[i], b[i], d[i], spread, middle[c, i], middle[c + 1, i], two[0], two[1])
                for k in range(2):
                    for x in range(width):
                        to[c + k, x + 1] = b[c + k, x + 2] + max(two[k, x], _ZERO)
            _continue(to, 1)
        if y < start:
            continue
        a, b, d = sums[max(0, y - 1) % 5], sums[y % 5], sums[min(height - 1, y + 1) % 5]
        two[0] = 0
        for i in range(channels):
            _add(a[i], b[i], d[i], last[i], two[0])
        colour = colours[y % 5]
        for x in range(width):
            red, green, blue = colour[0, x + 1], colour[1, x + 1], colour[2, x + 1]
            most = max(red, max(green, blue))
            change = min(max(two[0, x], -most), most)
            row[0, x], row[1, x], row[2, x] = red + change, green + change, blue + change
        _look_up(second, side, row, row, corners, weights)
        _write(row, out, y)


@_compiled
def look_up(table: Array, side: int, colours: Array, out: Array) -> None:
    """What a packed table says of colours; both (3, P)."""
    corners = np.empty((3, colours.shape[1]), np.int32)
    weights = np.empty((4, colours.shape[1]), np.float32)
    _look_up(table, side, colours, out, corners, weights)


def in_parts(
    function: Callable[..., None], picture: Array, reach: int, threads: int, arguments: tuple[object, ...]
) -> None:
    """Call filter_rows or enhance_rows for parts of a picture (3, H, W), each on a thread of its own.

    reach: rows that the function looks up and down. arguments: those that follow the rows.
    """
    height = picture.shape[1]
    count = max(1, min(threads, height // (8 * reach)))
    parts = []
    for start, end in pairwise(height * part // count for part in range(count + 1)):
        # Copies: when the picture itself is written to, a neighbour may have come there first.
        above = picture[:, max(0, start - reach) : start].copy()
        parts.append((picture, start, end, above, picture[:, end : end + reach].copy(), *arguments))
    if count == 1:
        function(*parts[0])
        return
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(function, *part) for part in parts]:
            done.result()


def packed(table: Array) -> Array:
    """A table as one row, four numbers for each entry."""
    return np.concatenate((table, np.zeros_like(table[..., :1])), axis=-1, dtype=np.float32).ravel()


@_compiled
def accumulate(colours: Array, targets: Array, products: Array, sums: Array) -> None:
    """Add to the normal equations of a table that turns colours into targets, both (3, P).

    products: (N, N, N, 3, 3, 3), of each entry's weight with that of its neighbours; sums: (N, N, N, 3).
    """
    n = sums.shape[0]
    corners = np.empty((3, colours.shape[1]), np.int32)
    weights = np.empty((4, colours.shape[1]), np.float32)
    _place(n, colours, corners, weights)
    # The neighbours of an entry, in steps of the flat tables.
    at = np.empty(4, np.int64)
    flat, flat_sums = products.reshape(-1, 27), sums.reshape(-1, 3)
    for p in range(colours.shape[1]):
        at[:3] = corners[:, p]
        at[3] = at[0] + n * n + n + 1
        for a in range(4):
            here, weight = at[a], weights[a, p]
            for c in range(3):
                flat_sums[here, c] += weight * targets[c, p]
            for b in range(4):
                step = at[b] - here
                # Steps along red, green and blue are all upwards or all downwards.
                sign = 1 if step >= 0 else -1
                steps = abs(step)
                di, rest = steps // (n * n), steps % (n * n)
                dj, dk = rest // n, rest % n
                flat[here, 13 + sign * (9 * di + 3 * dj + dk)] += weight * weights[b, p]


@_compiled
def _bend(table: Array, out: Array, share: float) -> None:
    """Add share * (second differences)^T (second differences) of the table along its three axes."""
    n = table.shape[0]
    s = np.float32(share)
    two = np.float32(2)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                for c in range(3):
                    if 0 < i < n - 1:
                        d = s * (table[i - 1, j, k, c] - two * table[i, j, k, c] + table[i + 1, j, k, c])
                        out[i - 1, j, k, c] += d
                        out[i, j, k, c] -= two * d
                        out[i + 1, j, k, c] += d
                    if 0 < j < n - 1:
                        d = s * (table[i, j - 1, k, c] - two * table[i, j, k, c] + table[i, j + 1, k, c])
                        out[i, j - 1, k, c] += d
                        out[i, j, k, c] -= two * d
                        out[i, j + 1, k, c] += d
                    if 0 < k < n - 1:
                        d = s * (table[i, j, k - 1, c] - two * table[i, j, k, c] + table[i, j, k + 1, c])
                        out[i, j, k - 1, c] += d
                        out[i, j, k, c] -= two * d
                        out[i, j, k + 1, c] += d


@_compiled
def _times(products: Array, table: Array, bend: float, pull: float, out: Array) -> None:
    """out: the matrix of the normal equations, regularised, times the table."""
    n = table.shape[0]
    for i in range(n):
        for j in range(n):
            for k in range(n):
                for c in range(3):
                    total = np.float32(pull) * table[i, j, k, c]
                    out[i, j, k, c] = total
                if products[i, j, k, 1, 1, 1] == 0:
                    continue
                for di in range(max(0, i - 1), min(n, i + 2)):
                    for dj in range(max(0, j - 1), min(n, j + 2)):
                        for dk in range(max(0, k - 1), min(n, k + 2)):
                            w = products[i, j, k, di - i + 1, dj - j + 1, dk - k + 1]
                            for c in range(3):
                                out[i, j, k, c] += w * table[di, dj, dk, c]
    _bend(table, out, bend)


def solve(products: Array, sums: Array, bend: float, pull: float, begin: Array, steps: int) -> Array:
    """Least squares, by so many steps of conjugate gradients from `begin`; the three columns by themselves.

    Minimises the sum of squares that `accumulate` collected, plus `bend` times the squared second differences between
    neighbouring entries, plus `pull` times the squared entries. Returns the table.
    """
    diagonal = products[:, :, :, 1, 1, 1, None] + np.float32(18 * bend + pull)
    table, product = begin.copy(), np.empty_like(begin)
    _times(products, table, bend, pull, product)
    residual = sums - product
    scaled = residual / diagonal
    direction = scaled.copy()
    size = (residual * scaled).sum((0, 1, 2))
    for _ in range(steps):
        _times(products, direction, bend, pull, product)
        along = (direction * product).sum((0, 1, 2))
        # A column that has nothing left to be done keeps still.
        step = np.divide(size, along, out=np.zeros_like(size), where=along > 0)
        table += step * direction
        residual -= step * product
        scaled = residual / diagonal
        new = (residual * scaled).sum((0, 1, 2))
        direction = scaled + np.divide(new, size, out=np.zeros_like(size), where=size > 0) * direction
        size = new
    return table


def empty_equations(side: int) -> tuple[Array, Array]:
    """Normal equations of a table with `side` entries along each axis, to accumulate in."""
    return np.zeros((side, side, side, 3, 3, 3), np.float32), np.zeros((side, side, side, 3), np.float32)


def as_array(values: Any) -> Array:
    """Contiguous, as the compiled functions want it."""
    return np.ascontiguousarray(values, np.float32)
