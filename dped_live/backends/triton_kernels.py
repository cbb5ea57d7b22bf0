"""DPED's layers as Triton kernels, for pictures in half precision whose channels lie side by side.

Activations are (1, C, H, W) in torch's channels_last layout; all sums are float32. A kernel's program walks down a
strip of the picture with the weights in shared memory. In a 3x3 layer each row is read once for each of the three
horizontal taps and goes into the sums of the three rows of output that it touches; when a row has met its last, it is
finished: bias, ReLU, skip, one store. So an input is fetched three times from the second-level cache and not nine
times, which is what bounds a plain implicit product at 64 channels (benchmarks/NOTES.md).

The exact statistics are gathered on the way, of what is stored: each program keeps mean and sum of squares about it for
every column of its strip, by Welford's recurrence, and one kernel pools the programs' in a fixed order. Nothing is
added atomically, so results are the same each time.

Numbers of pixels are not specialised: a kernel is compiled once for all sizes.

Importing this needs Triton, which comes with torch's CUDA builds on Linux. TRITON_INTERPRET=1, set before, runs the
kernels on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dped_live.generator import TANH_OFFSET, TANH_SCALE
from dped_live.statistics import EPSILON

_TANH_SCALE, _TANH_OFFSET, _EPSILON = tl.constexpr(TANH_SCALE), tl.constexpr(TANH_OFFSET), tl.constexpr(EPSILON)

WIDE = 9
"""Side of the first and the last layer's kernel."""

_MARGIN = WIDE // 2

_ROW_OF_TAPS = 32
"""A row of 9 taps of 3 channels, as many as a product wants."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a kernel is cut.

    pixels: of a strip's width. warps: of a program. stages: of its pipeline; 1: none. programs: for how many a
    multiprocessor has room.
    """

    pixels: int
    warps: int
    stages: int
    programs: int = 1

    def __str__(self) -> str:
        return f"{self.pixels} pixels, {self.warps} warps, {self.stages} stages"


MIDDLE_TILINGS = (Tiling(128, 8, 2), Tiling(64, 4, 3), Tiling(64, 4, 2), Tiling(64, 4, 1, 2), Tiling(32, 4, 1))
"""For the 3x3 layers, from Hopper with 227 KB of shared memory down to Ada and small Ampere with 99. Those that a card
has no room for are refused by Triton."""

FIRST_TILINGS = (Tiling(128, 8, 2), Tiling(64, 4, 3, 3), Tiling(64, 4, 1, 3))
LAST_TILINGS = (Tiling(64, 8, 2), Tiling(128, 16, 2), Tiling(64, 4, 3, 2))


@triton.jit
def _tap(weight, tap: tl.constexpr, channels: tl.constexpr):
    """One tap of weights (out, 3, 3, in), as (in, out)."""
    inner = tl.arange(0, channels)[:, None]
    outer = tl.arange(0, channels)[None, :]
    return tl.load(weight + outer * (9 * channels) + tap * channels + inner)


@triton.jit
def _line(width, channels: tl.constexpr):
    """Values of a row, as a 64-bit number: those of a whole picture may be more than 32 bits count."""
    return tl.full((), channels, tl.int64) * width


@triton.jit
def _relu(values):
    """As torch's: what is not a number stays so, and tells that half precision has overflowed."""
    return tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _read(x, at, is_inside, gain, shift, normalised: tl.constexpr):
    """Activations at some places; outside they are zero, after the norm too."""
    values = tl.load(x + at, mask=is_inside, other=0.0)
    if normalised:
        active = _relu(values.to(tl.float32) * gain[None, :] + shift[None, :])
        values = tl.where(is_inside, active, 0.0).to(x.dtype.element_ty)
    return values


@triton.jit(do_not_specialize=["height", "width", "rows"])
def _convolve3x3(
    x,
    weight,
    multiplier,
    bias,
    skip,
    gain,
    shift,
    y,
    means,
    squares,
    height,
    width,
    rows,
    channels: tl.constexpr,
    pixels: tl.constexpr,
    stages: tl.constexpr,
    scaled: tl.constexpr,
    skipped: tl.constexpr,
    normalised: tl.constexpr,
    measured: tl.constexpr,
):
    channel = tl.arange(0, channels)
    column = tl.program_id(0) * pixels + tl.arange(0, pixels)
    top = tl.program_id(1) * rows
    end = tl.minimum(top + rows, height)
    w00, w01, w02 = _tap(weight, 0, channels), _tap(weight, 1, channels), _tap(weight, 2, channels)
    w10, w11, w12 = _tap(weight, 3, channels), _tap(weight, 4, channels), _tap(weight, 5, channels)
    w20, w21, w22 = _tap(weight, 6, channels), _tap(weight, 7, channels), _tap(weight, 8, channels)
    if normalised:
        gains, shifts = tl.load(gain + channel), tl.load(shift + channel)
    else:
        gains, shifts = channel, channel
    if not measured:
        biases = tl.load(bias + channel)
    if scaled:
        multipliers = tl.load(multiplier + channel)
    line = _line(width, channels)
    at = column[:, None] * channels + channel[None, :]
    has_left = ((column >= 1) & (column <= width))[:, None]
    is_inside = (column < width)[:, None]
    has_right = (column + 1 < width)[:, None]
    above = tl.zeros((pixels, channels), tl.float32)
    here = tl.zeros((pixels, channels), tl.float32)
    if measured:
        mean = tl.zeros((pixels, channels), tl.float32)
        square = tl.zeros((pixels, channels), tl.float32)
    for row in tl.range(top - 1, end + 1, num_stages=stages):
        is_row = (row >= 0) & (row < height)
        left = _read(x + row * line, at - channels, has_left & is_row, gains, shifts, normalised)
        middle = _read(x + row * line, at, is_inside & is_row, gains, shifts, normalised)
        right = _read(x + row * line, at + channels, has_right & is_row, gains, shifts, normalised)
        below = tl.dot(left, w00)
        below = tl.dot(middle, w01, below)
        below = tl.dot(right, w02, below)
        here = tl.dot(left, w10, here)
        here = tl.dot(middle, w11, here)
        here = tl.dot(right, w12, here)
        above = tl.dot(left, w20, above)
        above = tl.dot(middle, w21, above)
        above = tl.dot(right, w22, above)
        # The row above has met its last row of input, and is ours from the third turn on.
        done = (row - 1) * line
        is_ours = is_inside & (row > top)
        if measured:
            value = above.to(y.dtype.element_ty)
            count = row - top
            change = tl.where(count > 0, value.to(tl.float32) - mean, 0.0)
            mean += change / tl.maximum(count, 1)
            square += change * (value.to(tl.float32) - mean)
        else:
            active = above
            if scaled:
                active = active * multipliers[None, :]
            active = _relu(active + biases[None, :])
            if skipped:
                active += tl.load(skip + done + at, mask=is_ours, other=0.0).to(tl.float32)
            value = active.to(y.dtype.element_ty)
        tl.store(y + done + at, value, mask=is_ours)
        above = here
        here = below
    if measured:
        columns = tl.minimum(width - tl.program_id(0) * pixels, pixels)
        whole = tl.sum(tl.where(is_inside, mean, 0.0), axis=0) / columns
        apart = mean - whole[None, :]
        about = tl.sum(tl.where(is_inside, square + (end - top) * apart * apart, 0.0), axis=0)
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(means + program * channels + channel, whole)
        tl.store(squares + program * channels + channel, about)


@triton.jit
def _pixels_of(program, strips, rows, height, width, pixels: tl.constexpr):
    """How many pixels a program of _convolve3x3 measured."""
    tall = tl.minimum(rows, height - program // strips * rows)
    return (tall * tl.minimum(pixels, width - program % strips * pixels)).to(tl.float32)


@triton.jit(do_not_specialize=["programs", "strips", "rows", "height", "width"])
def _pool(
    means,
    squares,
    scale,
    offset,
    mean,
    variance,
    gain,
    shift,
    programs,
    strips,
    rows,
    height,
    width,
    channels: tl.constexpr,
    pixels: tl.constexpr,
    at_once: tl.constexpr,
    some_channels: tl.constexpr,
):
    channel = tl.program_id(0) * some_channels + tl.arange(0, some_channels)
    total = tl.full((), 1.0, tl.float32) * height * width
    sums = tl.zeros((at_once, some_channels), tl.float32)
    for begin in range(0, programs, at_once):
        program = begin + tl.arange(0, at_once)
        is_one = (program < programs)[:, None]
        share = _pixels_of(program, strips, rows, height, width, pixels)[:, None] / total
        at = program[:, None] * channels + channel[None, :]
        sums += tl.where(is_one, share * tl.load(means + at, mask=is_one, other=0.0), 0.0)
    common = tl.sum(sums, axis=0)
    sums = tl.zeros((at_once, some_channels), tl.float32)
    for begin in range(0, programs, at_once):
        program = begin + tl.arange(0, at_once)
        is_one = (program < programs)[:, None]
        share = _pixels_of(program, strips, rows, height, width, pixels)[:, None] / total
        at = program[:, None] * channels + channel[None, :]
        apart = tl.load(means + at, mask=is_one, other=0.0) - common[None, :]
        within = tl.load(squares + at, mask=is_one, other=0.0) / total
        sums += tl.where(is_one, within + share * apart * apart, 0.0)
    spread = tl.sum(sums, axis=0)
    factor = tl.load(scale + channel) / tl.sqrt(spread + _EPSILON)
    tl.store(mean + channel, common)
    tl.store(variance + channel, spread)
    tl.store(gain + channel, factor)
    tl.store(shift + channel, tl.load(offset + channel) - common * factor)


@triton.jit(do_not_specialize=["values"])
def _join(x, y, gain, shift, joined, values, channels: tl.constexpr, at_once: tl.constexpr):
    """x + ReLU(gain * y + shift)."""
    at = tl.program_id(0).to(tl.int64) * at_once + tl.arange(0, at_once)
    is_inside = at < values
    channel = tl.arange(0, at_once) % channels
    gains, shifts = tl.load(gain + channel), tl.load(shift + channel)
    active = _relu(tl.load(y + at, mask=is_inside, other=0.0).to(tl.float32) * gains + shifts)
    total = tl.load(x + at, mask=is_inside, other=0.0).to(tl.float32) + active
    tl.store(joined + at, total.to(joined.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize=["height", "width", "length", "rows"])
def _convolve_first(
    picture,
    weight,
    bias,
    y,
    height,
    width,
    length,
    rows,
    channels: tl.constexpr,
    pixels: tl.constexpr,
    stages: tl.constexpr,
    taps: tl.constexpr,
):
    """length: of the padded picture's rows, in values. A row of taps is 27 values of it, one after the other."""
    channel = tl.arange(0, channels)
    column = tl.program_id(0) * pixels + tl.arange(0, pixels)
    top = tl.program_id(1) * rows
    tap = tl.arange(0, taps)
    is_inside = (column < width)[:, None]
    at = column[:, None] * 3 + tap[None, :]
    is_tap = is_inside & (tap < 27)[None, :]
    line = _line(length, 1)
    there = column[:, None] * channels + channel[None, :]
    biases = tl.load(bias + channel)
    for row in range(top, tl.minimum(top + rows, height)):
        total = tl.zeros((pixels, channels), tl.float32)
        for dy in tl.range(0, 9, num_stages=stages):
            seen = tl.load(picture + (row + dy) * line + at, mask=is_tap, other=0.0)
            part = tl.load(weight + (dy * taps + tap[:, None]) * channels + channel[None, :])
            total = tl.dot(seen, part, total)
        value = _relu(total + biases[None, :]).to(y.dtype.element_ty)
        tl.store(y + row * _line(width, channels) + there, value, mask=is_inside)


@triton.jit
def _part(weight, dy: tl.constexpr, channels: tl.constexpr, taps: tl.constexpr):
    inner = tl.arange(0, channels)[:, None]
    return tl.load(weight + (dy * channels + inner) * taps + tl.arange(0, taps)[None, :])


@triton.jit(do_not_specialize=["height", "width", "rows"])
def _convolve_last(
    x,
    weight,
    parts,
    height,
    width,
    rows,
    channels: tl.constexpr,
    pixels: tl.constexpr,
    stages: tl.constexpr,
    taps: tl.constexpr,
):
    """The last layer but for its horizontal sum: a row for each row of the picture, horizontal tap and colour."""
    channel = tl.arange(0, channels)
    column = tl.program_id(0) * pixels + tl.arange(0, pixels)
    top = tl.program_id(1) * rows
    end = tl.minimum(top + rows, height)
    tap = tl.arange(0, taps)
    w0, w1, w2 = _part(weight, 0, channels, taps), _part(weight, 1, channels, taps), _part(weight, 2, channels, taps)
    w3, w4, w5 = _part(weight, 3, channels, taps), _part(weight, 4, channels, taps), _part(weight, 5, channels, taps)
    w6, w7, w8 = _part(weight, 6, channels, taps), _part(weight, 7, channels, taps), _part(weight, 8, channels, taps)
    at = column[:, None] * channels + channel[None, :]
    is_inside = (column < width)[:, None]
    line = _line(width, channels)
    place = tap[None, :] * width + column[:, None]
    is_tap = is_inside & (tap < 27)[None, :]
    # Sums of the rows of output from four above the row of input, which it completes, to three below.
    sum8 = tl.zeros((pixels, taps), tl.float32)
    sum7, sum6, sum5, sum4, sum3, sum2, sum1 = sum8, sum8, sum8, sum8, sum8, sum8, sum8
    for row in tl.range(top - 4, end + 4, num_stages=stages):
        is_row = (row >= 0) & (row < height)
        values = tl.load(x + row * line + at, mask=is_inside & is_row, other=0.0)
        sum0 = tl.dot(values, w0)
        sum1 = tl.dot(values, w1, sum1)
        sum2 = tl.dot(values, w2, sum2)
        sum3 = tl.dot(values, w3, sum3)
        sum4 = tl.dot(values, w4, sum4)
        sum5 = tl.dot(values, w5, sum5)
        sum6 = tl.dot(values, w6, sum6)
        sum7 = tl.dot(values, w7, sum7)
        sum8 = tl.dot(values, w8, sum8)
        done = row - 4
        tl.store(parts + done * _line(width, 27) + place, sum8, mask=is_tap & (done >= top))
        sum8, sum7, sum6, sum5 = sum7, sum6, sum5, sum4
        sum4, sum3, sum2, sum1 = sum3, sum2, sum1, sum0


@triton.jit(do_not_specialize=["height", "width"])
def _finish(parts, bias, result, height, width, pixels: tl.constexpr):
    """The horizontal sum of one row of one colour, and the tanh that ends the network."""
    column = tl.program_id(0) * pixels + tl.arange(0, pixels)
    row = tl.program_id(1)
    colour = tl.program_id(2)
    total = tl.zeros((pixels,), tl.float32) + tl.load(bias + colour)
    for dx in tl.static_range(9):
        there = column + (dx - 4)
        part = parts + row * _line(width, 27) + (dx * 3 + colour) * width
        total += tl.load(part + there, mask=(there >= 0) & (there < width), other=0.0)
    # tanh(x) = 2 / (1 + exp(-2 x)) - 1
    bent = 2.0 / (1.0 + tl.exp(-2.0 * total)) - 1.0
    value = bent * _TANH_SCALE + _TANH_OFFSET
    tl.store(result + (colour * height + row) * _line(width, 1) + column, value, mask=column < width)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    tiling: Tiling,
    skip: Tensor | None = None,
    multiplier: Tensor | None = None,
    out_type: torch.dtype | None = None,
) -> Tensor:
    """ReLU(convolution + bias) + skip, of a 3x3 layer.

    x: (1, C, H, W), C a power of two from 16 up. weight: (C, C, 3, 3) of x's type. bias: (C), float32. multiplier: (C),
    float32, of the convolution before the bias, for weights in FP8. out_type: x's, unless given.
    """
    x, skip = _laid_out(x), None if skip is None else _laid_out(skip)
    result = torch.empty_like(x, dtype=out_type)
    _launch(x, weight, bias, result, tiling, skip=skip, multiplier=multiplier)
    return result


@dataclass(frozen=True, slots=True)
class Norm:
    """Mean and variance of a layer's channels, and what they make of it as `gain * x + shift`; all float32, (C)."""

    mean: Tensor
    variance: Tensor
    gain: Tensor
    shift: Tensor


def convolve_and_measure(
    x: Tensor, before: Norm | None, weight: Tensor, scale: Tensor, offset: Tensor, tiling: Tiling
) -> tuple[Tensor, Norm]:
    """A 3x3 layer without bias and ReLU, and the norm that follows it, not yet applied.

    before: the norm, followed by a ReLU, that x still waits for. scale, offset: the norm's learnt parameters, (C),
    float32.
    """
    x = _laid_out(x)
    height, width = x.shape[2:]
    channels = x.shape[1]
    result = torch.empty_like(x)
    strips, rows, segments = _cut(height, width, tiling, x.device, halo=2)
    means, squares = torch.empty((2, segments * strips, channels), device=x.device)
    _launch(x, weight, None, result, tiling, before=before, sums=(means, squares))
    norm = Norm(*torch.empty((4, channels), device=x.device))
    some_channels = min(channels, 16)
    _pool[(channels // some_channels,)](
        means,
        squares,
        scale,
        offset,
        norm.mean,
        norm.variance,
        norm.gain,
        norm.shift,
        segments * strips,
        strips,
        rows,
        height,
        width,
        channels=channels,
        pixels=tiling.pixels,
        at_once=64,
        some_channels=some_channels,
    )
    return result, norm


def join(x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """x + ReLU(norm(y)): the end of a residual block."""
    x, y = _laid_out(x), _laid_out(y)
    result = torch.empty_like(x)
    at_once = 1024
    _join[(triton.cdiv(x.numel(), at_once),)](
        x, y, norm.gain, norm.shift, result, x.numel(), channels=x.shape[1], at_once=at_once
    )
    return result


def first_weight(weight: Tensor) -> Tensor:
    """The first layer's weight (C, 3, 9, 9) as `convolve_first` wants it."""
    rows = weight.permute(2, 3, 1, 0).reshape(WIDE, 3 * WIDE, -1)
    return torch.nn.functional.pad(rows, (0, 0, 0, _ROW_OF_TAPS - 3 * WIDE)).contiguous()


def convolve_first(padded: Tensor, height: int, width: int, weight: Tensor, bias: Tensor, tiling: Tiling) -> Tensor:
    """ReLU(convolution + bias) of the first layer.

    padded: (1, 3, at least H + 8, at least W + 8), channels_last, with 4 zeros above and on the left, and zeros after
    the picture. weight: see first_weight. bias: (C), float32. Returns (1, C, H, W), channels_last.
    """
    channels = len(bias)
    result = padded.new_empty((1, height, width, channels)).permute(0, 3, 1, 2)
    strips, rows, segments = _cut(height, width, tiling, padded.device, halo=0)
    _convolve_first[(strips, segments)](
        padded,
        weight,
        bias,
        result,
        height,
        width,
        3 * padded.shape[3],
        rows,
        channels=channels,
        pixels=tiling.pixels,
        stages=tiling.stages,
        taps=_ROW_OF_TAPS,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return result


def last_weight(weight: Tensor) -> Tensor:
    """The last layer's weight (3, C, 9, 9) as `convolve_last` wants it."""
    rows = weight.permute(2, 1, 3, 0).reshape(WIDE, -1, 3 * WIDE)
    return torch.nn.functional.pad(rows, (0, _ROW_OF_TAPS - 3 * WIDE)).contiguous()


def convolve_last(x: Tensor, weight: Tensor, bias: Tensor, tiling: Tiling) -> Tensor:
    """The last layer and the tanh after it. weight: see last_weight. bias: (3), float32.

    Returns (1, 3, H, W), float32.
    """
    x = _laid_out(x)
    height, width = x.shape[2:]
    parts = torch.empty((height, 3 * WIDE, width), device=x.device)
    strips, rows, segments = _cut(height, width, tiling, x.device, halo=2 * _MARGIN)
    _convolve_last[(strips, segments)](
        x,
        weight,
        parts,
        height,
        width,
        rows,
        channels=x.shape[1],
        pixels=tiling.pixels,
        stages=tiling.stages,
        taps=_ROW_OF_TAPS,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    result = torch.empty((1, 3, height, width), device=x.device)
    pixels = 512
    _finish[(triton.cdiv(width, pixels), height, 3)](parts, bias, result, height, width, pixels=pixels)
    return result


def _laid_out(x: Tensor) -> Tensor:
    """As the kernels read it. What cuDNN gives is so already, but for pictures of one row it need not be."""
    return x.contiguous(memory_format=torch.channels_last)


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    result: Tensor,
    tiling: Tiling,
    skip: Tensor | None = None,
    multiplier: Tensor | None = None,
    before: Norm | None = None,
    sums: tuple[Tensor, Tensor] | None = None,
) -> None:
    height, width = x.shape[2:]
    strips, rows, segments = _cut(height, width, tiling, x.device, halo=2)
    means, squares = (None, None) if sums is None else sums
    _convolve3x3[(strips, segments)](
        x,
        weight,
        multiplier,
        bias,
        skip,
        None if before is None else before.gain,
        None if before is None else before.shift,
        result,
        means,
        squares,
        height,
        width,
        rows,
        channels=x.shape[1],
        pixels=tiling.pixels,
        stages=tiling.stages,
        scaled=multiplier is not None,
        skipped=skip is not None,
        normalised=before is not None,
        measured=sums is not None,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )


def _cut(height: int, width: int, tiling: Tiling, device: torch.device, halo: int) -> tuple[int, int, int]:
    """Strips, rows of a program and segments of a strip."""
    processors = 4
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    strips = math.ceil(width / tiling.pixels)
    rows = rows_of_a_program(height, strips, processors * tiling.programs, halo)
    return strips, rows, math.ceil(height / rows)


def rows_of_a_program(height: int, strips: int, at_once: int, halo: int) -> int:
    """How many rows of its strip a program should do, where so many programs run at once: the fewest turns of all of
    them, each with `halo` rows that do not count."""

    def turns(segments: int) -> int:
        return math.ceil(strips * segments / at_once) * (math.ceil(height / segments) + halo)

    segments = min(range(1, min(height, 4 * at_once) + 1), key=turns)
    return math.ceil(height / segments)
