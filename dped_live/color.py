"""Planes <-> RGB in [0, 1], exactly: matrix, range, depth and chroma position, on any device.

Matrices are derived from the luma coefficients of ITU-R BT.601, BT.709, BT.2020 (non-constant luminance), FCC 1953 and
SMPTE 240M; ranges and quantisation from BT.709-6 and BT.2100 (H.273 section 8.3). PQ is brought near to what SDR looks
like, for the networks know no other; see _PQ_WHITE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dped_live.frame import PQ, ChromaLocation, PixelFormat, VideoFormat

_PIXELS = 1 << 18
"""About so many pixels are converted at a time on a CPU: they stay in its caches, and a photo of 50 megapixels, which
is 600 MB in float32, does not need as much again on the way. A GPU has its memory, and wants few large steps."""

_LUMA = {
    "bt709": (0.2126, 0.0722),
    "bt601": (0.299, 0.114),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}
"""Kr and Kb: what red and blue contribute to luma."""


_PQ_WHITE = 203.0
"""The white of BT.2408, in cd/m2.

PQ's signal is flat and grey where SDR's is not. On the way to RGB each channel becomes linear light (SMPTE ST 2084), in
units of that white; (1 + v / peak^2) v / (1 + v) (Reinhard et al. 2002, equation 4) makes of it 0 to 1 with white at
half; the power of 1 / 2.2 follows, and white is at 74 %, as in HLG, which is left as it is. The way back is the exact
inverse. Light above the peak, of which there should be none, is cut off."""

_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
"""The constants of SMPTE ST 2084."""


def to_rgb(planes: Sequence[Tensor], fmt: VideoFormat) -> Tensor:
    """Planes of one picture as RGB.

    planes: tensors as frame.PixelFormat says, uint8 or uint16, on any device.
    Returns float32 (1, 3, H, W) in [0, 1] on the same device; what lies outside RGB is clipped, as in every player.
    Of PQ not the signal, but what looks like SDR; from_rgb has the inverse.

    8-bit RGB is rounded to half precision on the way, because the original reads a picture as `float16(uint8) / 255`
    (test_model.py); the difference is below 0.07 of an 8-bit level.
    """
    pixel = fmt.pixel_format
    rgb = torch.empty((1, 3, fmt.height, fmt.width), device=planes[0].device)
    if pixel.kind == "rgb":
        for rows in _rows(rgb):
            values = planes[0][rows].permute(2, 0, 1).float() / _maximum(pixel)
            rgb[0, :, rows] = values.half() if pixel.depth == 8 else values
        return _without_pq(rgb, fmt)
    luma_offset, luma_scale, chroma_offset, chroma_scale = _range(fmt)
    if pixel.kind == "gray":
        y = (planes[0].float() - luma_offset) / luma_scale
        return _without_pq(rgb.copy_(y.clamp_(0, 1)), fmt)
    cb, cr = (_upsample((plane.float() - chroma_offset) / chroma_scale, fmt) for plane in (planes[1], planes[2]))
    kr, kb = _LUMA[fmt.matrix]
    for rows in _rows(rgb):
        # Into the result and in place: on a CPU the time goes into memory.
        r, g, b = rgb[0, :, rows]
        y = planes[0][rows].float().sub_(luma_offset).div_(luma_scale)
        torch.add(y, cr[rows], alpha=2 * (1 - kr), out=r)
        torch.add(y, cb[rows], alpha=2 * (1 - kb), out=b)
        # kr R + kg G + kb B = Y, solved for G.
        torch.add(y, cr[rows], alpha=-2 * (1 - kr) * kr / (1 - kr - kb), out=g)
        g.add_(cb[rows], alpha=-2 * (1 - kb) * kb / (1 - kr - kb))
        rgb[0, :, rows].clamp_(0, 1)
    return _without_pq(rgb, fmt)


def from_rgb(rgb: Tensor, fmt: VideoFormat) -> list[Tensor]:
    """RGB as planes of `fmt`: clipped and rounded, never stretched.

    rgb: float32 (1, 3, H, W), any values; H and W are those of fmt. Must not hold NaN.
    Returns tensors as frame.PixelFormat says, contiguous, on the same device.
    """
    rgb = _with_pq(rgb, fmt)
    pixel = fmt.pixel_format
    kind = torch.uint8 if pixel.depth == 8 else torch.uint16
    if pixel.kind == "rgb":
        levels = torch.empty((fmt.height, fmt.width, 3), dtype=kind, device=rgb.device)
        for rows in _rows(rgb):
            channels = _quantise(rgb[0, :, rows] * _maximum(pixel), pixel)
            torch.stack(channels.unbind(), dim=-1, out=levels[rows])
        return [levels]
    luma_offset, luma_scale, chroma_offset, chroma_scale = _range(fmt)
    kr, kb = _LUMA["bt709" if fmt.matrix == "rgb" else fmt.matrix]
    luma = torch.empty((fmt.height, fmt.width), dtype=kind, device=rgb.device)
    differences = [torch.empty(luma.shape, device=rgb.device) for _ in range(2 if pixel.kind == "yuv" else 0)]
    for rows in _rows(rgb):
        r, g, b = rgb[0, :, rows].clamp(0, 1)
        y = (kr * r).add_(g, alpha=1 - kr - kb).add_(b, alpha=kb)
        if differences:
            torch.sub(b, y, out=differences[0][rows])
            torch.sub(r, y, out=differences[1][rows])
        luma[rows] = _quantise(y.mul_(luma_scale).add_(luma_offset), pixel)
    planes = [luma]
    for k in (kb, kr):
        if differences:
            chroma = _downsample(differences.pop(0), fmt)
            planes.append(_quantise(chroma.mul_(chroma_scale / (2 * (1 - k))).add_(chroma_offset), pixel))
    return planes


def _without_pq(rgb: Tensor, fmt: VideoFormat) -> Tensor:
    """What looks like SDR, of RGB in PQ; written to the same tensor. Other RGB as it is."""
    if fmt.transfer != PQ:
        return rgb
    peak = fmt.peak / _PQ_WHITE
    for rows in _rows(rgb):
        power = rgb[0, :, rows] ** (1 / _M2)
        light = ((power - _C1).clamp_(min=0) / (_C2 - _C3 * power)) ** (1 / _M1) * (10_000 / _PQ_WHITE)
        rgb[0, :, rows] = ((1 + light / peak**2) * light / (1 + light)).clamp_(max=1) ** (1 / 2.2)
    return rgb


def _with_pq(rgb: Tensor, fmt: VideoFormat) -> Tensor:
    """The inverse of _without_pq; leaves its input as it is."""
    if fmt.transfer != PQ:
        return rgb
    peak = fmt.peak / _PQ_WHITE
    signal = torch.empty_like(rgb)
    for rows in _rows(rgb):
        tone = rgb[0, :, rows].clamp(0, 1) ** 2.2
        # The positive root of v^2 / peak^2 + v (1 - tone) - tone = 0, in the form that is exact for small ones.
        rest = 1 - tone
        light = 2 * tone / (rest + (rest**2 + 4 * tone / peak**2).sqrt())
        power = (light * (_PQ_WHITE / 10_000)) ** _M1
        signal[0, :, rows] = ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
    return signal


def _rows(rgb: Tensor) -> Iterator[slice]:
    """The rows to convert at a time."""
    height, width = rgb.shape[2:]
    step = height if rgb.is_cuda else max(1, _PIXELS // width)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _maximum(pixel: PixelFormat) -> int:
    return (1 << pixel.depth) - 1


def _range(fmt: VideoFormat) -> tuple[float, float, float, float]:
    """Offset and scale of luma, then of chroma, in code values."""
    depth = fmt.pixel_format.depth
    half = 1 << (depth - 1)
    if fmt.full_range:
        return 0, _maximum(fmt.pixel_format), half, _maximum(fmt.pixel_format)
    step = 1 << (depth - 8)
    return 16 * step, 219 * step, half, 224 * step


def _quantise(values: Tensor, pixel: PixelFormat) -> Tensor:
    """Overwrites the values."""
    values = values.add_(0.5).clamp_(0, _maximum(pixel))
    return values.to(torch.uint8 if pixel.depth == 8 else torch.uint16).contiguous()


def _cosited(location: ChromaLocation) -> tuple[bool, bool]:
    """Whether a subsampled chroma sample lies on a luma sample: horizontally, vertically (otherwise between two)."""
    return location in ("left", "topleft"), location == "topleft"


def _upsample(chroma: Tensor, fmt: VideoFormat) -> Tensor:
    """Linear interpolation of a chroma plane (h, w) to the size of luma."""
    cosited_x, cosited_y = _cosited(fmt.chroma_location)
    for shift in reversed(range(fmt.pixel_format.chroma_shift_y)):
        chroma = _double(chroma, 0, cosited_y)[: -(-fmt.height >> shift)]
    for shift in reversed(range(fmt.pixel_format.chroma_shift_x)):
        chroma = _double(chroma, 1, cosited_x)[:, : -(-fmt.width >> shift)]
    return chroma


def _downsample(chroma: Tensor, fmt: VideoFormat) -> Tensor:
    """Average a full-size chroma plane to its subsampled positions; the picture's last row and column repeat."""
    cosited_x, cosited_y = _cosited(fmt.chroma_location)
    for _ in range(fmt.pixel_format.chroma_shift_x):
        chroma = _halve_columns(chroma, cosited_x)
    for _ in range(fmt.pixel_format.chroma_shift_y):
        chroma = _halve_columns(chroma.T, cosited_y).T
    return chroma


def _double(x: Tensor, axis: int, cosited: bool) -> Tensor:
    """(h, w) -> (2h, w) for axis 0, (h, 2w) for 1, by linear interpolation, the border repeated."""
    length = x.shape[axis]
    shape = [*x.shape[: axis + 1], 2, *x.shape[axis + 1 :]]
    doubled = x.new_empty(shape)
    even, odd = doubled.unbind(axis + 1)
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, length - 1, 1)
    here, after = x.narrow(axis, 0, length - 1), x.narrow(axis, 1, length - 1)
    weight = 0.5 if cosited else 0.25
    torch.lerp(here, after, weight, out=odd.narrow(axis, 0, length - 1))
    odd.narrow(axis, length - 1, 1).copy_(last)
    if cosited:
        even.copy_(x)
    else:
        torch.lerp(after, here, weight, out=even.narrow(axis, 1, length - 1))
        even.narrow(axis, 0, 1).copy_(first)
    return doubled.flatten(axis, axis + 1)


def _halve_columns(x: Tensor, cosited: bool) -> Tensor:
    """(h, w) -> (h, ceil(w / 2)): the weights 1 2 1 around a co-sited sample, else the mean of two."""
    if x.shape[1] % 2:
        x = torch.cat((x, x[:, -1:]), dim=1)
    even, odd = x[:, 0::2], x[:, 1::2]
    if not cosited:
        return (even + odd) / 2
    before = torch.cat((even[:, :1], odd[:, :-1]), dim=1)
    return (before + 2 * even + odd) / 4
