"""How good and how steady enhanced pictures are: tensors in, numbers out.

How near a picture comes to another is told by PSNR and by MS-SSIM, in the standard form and in that of the original
repository.

What a viewer calls flicker is that one and the same thing of the scene changes its brightness. So the measures here
follow things: pixels that do not move (`static_flicker`), points of a scene under a pan known to the pixel
(`pan_flicker`), and the frame as a whole (`mean_luma_jump`). These are in levels of an 8-bit picture.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The exponents of MS-SSIM's five scales, from the full size down (Wang, Simoncelli and Bovik 2003, section 3.2)."""

MS_SSIM_LEAST_SIDE = 161
"""The shortest side, in pixels, that still holds the 11x11 window at the fifth scale."""

RECEPTIVE_RADIUS = 18
"""How far, in pixels, the 12-layer generator looks: 9x9, ten times 3x3, 9x9. Nearer to the border it sees padding."""


class Blocks(NamedTuple):
    """A measure taken of every block of pixels, in 8-bit levels."""

    worst: float
    mean: float


@dataclass(frozen=True, slots=True)
class StaticFlicker:
    """How the mean luma of still blocks changes over time, in 8-bit levels.

    deviation: standard deviation over time (biased). peak_to_peak: largest minus smallest over time.
    largest_step: largest absolute change from one frame to the next.
    """

    deviation: Blocks
    peak_to_peak: Blocks
    largest_step: Blocks


@dataclass(frozen=True, slots=True)
class PanFlicker:
    """How points of the scene change while the camera moves, in 8-bit levels.

    warped_rmse, largest_warped_rmse: root mean squared difference of successive frames, aligned; mean and largest
    over the pairs of frames.
    point_deviation: standard deviation over time of one scene point, pooled over the points:
    sqrt(sum of squared deviations from each point's own mean / sum of (sightings - 1)).
    """

    warped_rmse: float
    largest_warped_rmse: float
    point_deviation: float


@dataclass(frozen=True, slots=True)
class Jump:
    """Absolute change of the mean luma from a frame to the next, in 8-bit levels, over the pairs of frames."""

    mean: float
    largest: float


def luma(images: Tensor) -> Tensor:
    """Luma as a screen shows it (ITU-R BT.709, full range).

    images: (T, 3, H, W), R'G'B' in [0, 1]; values beyond are clamped, as the 8-bit picture is.
    Returns float32 (T, H, W) in 8-bit levels, 0 to 255, not rounded.
    """
    red, green, blue = images.float().clamp(0, 1).unbind(1)
    return 255 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for a peak of 1 and ONE mean squared error over all elements.

    a, b: of one shape, values in [0, 1]; nothing is clamped. Infinite where they are equal. Averaging the PSNR of
    single pictures instead gives other numbers (2 dB on the pairs of DPED).
    """
    return decibels(mean_squared_error(a, b))


def mean_squared_error(a: Tensor, b: Tensor) -> float:
    """Of all elements; a, b: of one shape."""
    _expect(a.shape == b.shape, f"pictures of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    return (a.double() - b.double()).square().mean().item()


def decibels(error: float) -> float:
    """PSNR in dB of a mean squared error, for a peak of 1; infinite for 0."""
    return -10 * math.log10(error) if error else math.inf


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of pictures (Wang et al. 2004): Gaussian windows of 11x11, each channel by itself.

    a, b: (N, C, H, W) of one shape, values in [0, 1]; nothing is clamped. Returns float64 (N,); 1 where they are equal.
    """
    _expect(a.shape == b.shape, f"pictures of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    return _similarity(a.double(), b.double())[0].mean(1)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of pictures, the standard one.

    a, b: (N, C, H, W) of one shape, H and W at least MS_SSIM_LEAST_SIDE, values in [0, 1]; nothing is clamped.
    Returns float64 (N,); 1 where they are equal.

    Z. Wang, E. Simoncelli, A. Bovik, "Multiscale structural similarity for image quality assessment", 2003, in the
    form of tf.image.ssim_multiscale: each channel by itself, a negative scale counts as 0, the mean over channels
    last.
    """
    _expect(min(a.shape[2:]) >= MS_SSIM_LEAST_SIDE, f"pictures of at least {MS_SSIM_LEAST_SIDE} pixels a side")
    return combine_scales(ms_ssim_scales(a, b).clamp_min(0)).mean(1)


def ms_ssim_of_original(a: Tensor, b: Tensor) -> float:
    """MS-SSIM of a batch of pictures as the original repository computes it (MultiScaleSSIM in ssim.py).

    a, b: (N, C, H, W) of one shape and any size, values in [0, 1]; nothing is clamped. Returns one number.

    It differs from the standard in two ways. Each scale is averaged over the WHOLE batch before the exponents, so
    that the mean of batches of one is another number. And the window shrinks to pictures below 11 pixels, which a
    patch of 100 is at the fifth scale. NaN where a scale's average is negative, as there.
    """
    return combine_scales(ms_ssim_scales(a, b).mean((0, 1))).item()


def ms_ssim_scales(a: Tensor, b: Tensor) -> Tensor:
    """What MS-SSIM is made of: contrast and structure at the first four scales, SSIM at the fifth.

    a, b: (N, C, H, W) of one shape and any size, values in [0, 1]. Returns float64 (N, C, 5), averages over pixels.
    From a scale to the next, pixels are averaged 2x2; an odd last row or column counts twice.
    """
    _expect(a.shape == b.shape, f"pictures of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    scales = []
    for _ in MS_SSIM_WEIGHTS[1:]:
        scales.append(_similarity(a, b)[1])
        a, b = (F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (a, b))
    scales.append(_similarity(a, b)[0])
    return torch.stack(scales, -1)


def combine_scales(scales: Tensor) -> Tensor:
    """MS-SSIM from its five scales: (..., 5) to (...), the product of each to the power of its weight."""
    return scales.pow(scales.new_tensor(MS_SSIM_WEIGHTS)).prod(-1)


def static_flicker(luma_sequence: Tensor, mask: Tensor, block: int = 16) -> StaticFlicker:
    """Flicker of what stands still.

    luma_sequence: (T, H, W), T >= 2, in 8-bit levels. mask: (H, W), bool, true where the scene is static.

    The picture is cut into blocks of `block` x `block` pixels from its top left corner; what does not fill a block at
    the right and the bottom is left out, and so is every block with a pixel that is not static. The luma of a block
    is averaged over its pixels in each frame, which leaves drift and removes noise; each measure is taken of a block
    over time, and given of the worst block and as the mean over blocks.
    """
    frames, height, width = _three(luma_sequence)
    _expect(frames >= 2, "at least two frames")
    _expect(mask.shape == (height, width), f"a mask of {height}x{width}, not {tuple(mask.shape)}")
    rows, columns = height // block, width // block
    whole = slice(rows * block), slice(columns * block)
    still = mask[whole].reshape(rows, block, columns, block).all(3).all(1)
    _expect(bool(still.any()), f"at least one static block of {block}x{block}")
    means = luma_sequence[:, *whole].double().reshape(frames, rows, block, columns, block).mean((2, 4))[:, still]
    return StaticFlicker(
        deviation=_blocks(means.std(0, correction=0)),
        peak_to_peak=_blocks(means.amax(0) - means.amin(0)),
        largest_step=_blocks(means.diff(dim=0).abs().amax(0)),
    )


def pan_flicker(luma_sequence: Tensor, shift: tuple[int, int], border: int = RECEPTIVE_RADIUS) -> PanFlicker:
    """Flicker of a scene that moves by whole pixels, so that aligning needs no interpolation.

    luma_sequence: (T, H, W), T >= 2, in 8-bit levels.
    shift: (dx, dy), how far the CONTENT moves from a frame to the next, in pixels, right and down positive.
    border: pixels left out at each side, where the padding of the convolutions shows.

    The warped RMSE is the one of the literature on consistency of video (Lai et al., "Learning Blind Video Temporal
    Consistency", ECCV 2018) with the exact motion in place of an estimated one.
    """
    frames, height, width = _three(luma_sequence)
    _expect(frames >= 2, "at least two frames")
    before, after = _aligned(luma_sequence.double(), shift, border)
    rmse = (after - before).square().mean((1, 2)).sqrt()

    inner = luma_sequence[:, border : height - border, border : width - border].double()
    rows, columns = inner.shape[1:]
    dx, dy = shift
    scene = torch.zeros(3, rows + abs(dy) * (frames - 1), columns + abs(dx) * (frames - 1), dtype=torch.float64)
    for number, frame in enumerate(inner):
        # Against the content's motion, and never below 0: from the far end where the content moves right or down.
        top = -dy * number if dy < 0 else dy * (frames - 1 - number)
        left = -dx * number if dx < 0 else dx * (frames - 1 - number)
        seen = scene[:, top : top + rows, left : left + columns]
        seen += torch.stack([torch.ones_like(frame), frame, frame.square()])
    sightings, total, squares = scene[:, scene[0] >= 2]
    deviations = (squares - total.square() / sightings).clamp_min(0)
    return PanFlicker(
        warped_rmse=rmse.mean().item(),
        largest_warped_rmse=rmse.max().item(),
        point_deviation=(deviations.sum() / (sightings - 1).sum()).sqrt().item(),
    )


def mean_luma_jump(
    luma_sequence: Tensor, shift: tuple[int, int] = (0, 0), border: int = 0, cuts: Collection[int] = ()
) -> Jump:
    """How far the brightness of the picture jumps from a frame to the next.

    luma_sequence: (T, H, W), T >= 2, in 8-bit levels.
    shift, border: as for `pan_flicker`; only what both frames of a pair show is averaged.
    cuts: the first frame of each new scene; a jump there is wanted, so it does not count.
    """
    frames, _, _ = _three(luma_sequence)
    pairs = [number - 1 for number in range(1, frames) if number not in cuts]
    _expect(bool(pairs), "two successive frames of one scene")
    before, after = _aligned(luma_sequence.double(), shift, border)
    jumps = (after.mean((1, 2)) - before.mean((1, 2))).abs()[pairs]
    return Jump(mean=jumps.mean().item(), largest=jumps.max().item())


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and its factor for contrast and structure alone, averaged over pixels: float64 (N, C) each."""
    size = min(11, *a.shape[2:])
    mean_a, mean_b = _smoothed(a, size), _smoothed(b, size)
    squares, product = mean_a.square() + mean_b.square(), mean_a * mean_b
    variances = _smoothed(a.square(), size) + _smoothed(b.square(), size) - squares
    covariance = _smoothed(a * b, size) - product
    structure = (2 * covariance + 0.03**2) / (variances + 0.03**2)
    luminance = (2 * product + 0.01**2) / (squares + 0.01**2)
    return (luminance * structure).mean((2, 3)), structure.mean((2, 3))


def _smoothed(x: Tensor, size: int) -> Tensor:
    """Gaussian-weighted average over windows of size x size pixels that lie within the picture.

    The standard deviation is 1.5 pixels for 11, and in proportion. Tap by tap, for torch's convolution in float64
    is several times slower on a CPU and takes eleven times the picture in memory.
    """
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = torch.exp(-offsets.square() / (2 * (1.5 * size / 11) ** 2))
    taps = (window / window.sum()).tolist()
    for axis in (2, 3):
        length = x.shape[axis] - size + 1
        smoothed = taps[0] * x.narrow(axis, 0, length)
        for place, tap in enumerate(taps[1:], 1):
            smoothed.add_(x.narrow(axis, place, length), alpha=tap)
        x = smoothed
    return x


def _aligned(sequence: Tensor, shift: tuple[int, int], border: int) -> tuple[Tensor, Tensor]:
    """Frames 0..T-2 and 1..T-1, cropped so that the same point of the scene lies at the same place."""
    height, width = sequence.shape[1:]
    (columns_before, columns_after), (rows_before, rows_after) = (
        _overlap(length, step, border) for length, step in ((width, shift[0]), (height, shift[1]))
    )
    return sequence[:-1, rows_before, columns_before], sequence[1:, rows_after, columns_after]


def _overlap(length: int, step: int, border: int) -> tuple[slice, slice]:
    """Along one axis, where a frame and the next one see the same part of the scene."""
    common = length - 2 * border - abs(step)
    _expect(common > 0, f"frames that overlap: {length} pixels, a shift of {step}, borders of {border}")
    first = border + max(-step, 0)
    return slice(first, first + common), slice(first + step, first + step + common)


def _blocks(values: Tensor) -> Blocks:
    return Blocks(values.max().item(), values.mean().item())


def _three(sequence: Tensor) -> tuple[int, int, int]:
    _expect(sequence.ndim == 3, f"a sequence (T, H, W), not {tuple(sequence.shape)}")
    frames, height, width = sequence.shape
    return frames, height, width


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"this measure needs {what}")
