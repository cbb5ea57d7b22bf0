"""Planes <-> RGB in [0, 1], exactly: matrix, range, depth and chroma position, on any device.

Matrices are derived from the luma coefficients of ITU-R BT.601, BT.709, BT.2020 (non-constant luminance), FCC 1953 and
SMPTE 240M; ranges and quantisation from BT.709-6 and BT.2100 (H.273 section 8.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dped_live.frame import ChromaLocation, PixelFormat, VideoFormat

_ROWS = 128
"""So many rows of an RGB picture are converted at a time: a photo of 50 megapixels is 600 MB in float32, and what a
conversion needs on the way would be as much again."""

_LUMA = {
    "bt709": (0.2126, 0.0722),
    "bt601": (0.299, 0.114),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}
"""Kr and Kb: what red and blue contribute to luma."""


def to_rgb(planes: Sequence[Tensor], fmt: VideoFormat) -> Tensor:
    """Planes of one picture as RGB.

    planes: tensors as frame.PixelFormat says, uint8 or uint16, on any device.
    Returns float32 (1, 3, H, W) in [0, 1] on the same device; what lies outside RGB is clipped, as in every player.

    8-bit RGB is rounded to half precision on the way, because the original reads a picture as `float16(uint8) / 255`
    (test_model.py); the difference is below 0.07 of an 8-bit level.
    """
    pixel = fmt.pixel_format
    if pixel.kind == "rgb":
        height, width, _ = planes[0].shape
        rgb = torch.empty((1, 3, height, width), device=planes[0].device)
        for source, target in zip(torch.split(planes[0], _ROWS), torch.split(rgb, _ROWS, dim=2), strict=True):
            values = source.permute(2, 0, 1).float() / _maximum(pixel)
            target[0] = values.half() if pixel.depth == 8 else values
        return rgb
    luma_offset, luma_scale, chroma_offset, chroma_scale = _range(fmt)
    y = ((planes[0].float() - luma_offset) / luma_scale)[None, None]
    if pixel.kind == "gray":
        return y.clamp(0, 1).expand(1, 3, -1, -1).contiguous()
    cb, cr = (
        _upsample((plane.float() - chroma_offset) / chroma_scale, fmt)[None, None] for plane in (planes[1], planes[2])
    )
    kr, kb = _LUMA[fmt.matrix]
    r = y + 2 * (1 - kr) * cr
    b = y + 2 * (1 - kb) * cb
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    return torch.cat((r, g, b), dim=1).clamp_(0, 1)


def from_rgb(rgb: Tensor, fmt: VideoFormat) -> list[Tensor]:
    """RGB as planes of `fmt`: clipped and rounded, never stretched.

    rgb: float32 (1, 3, H, W), any values; H and W are those of fmt. Must not hold NaN.
    Returns tensors as frame.PixelFormat says, contiguous, on the same device.
    """
    pixel = fmt.pixel_format
    if pixel.kind == "rgb":
        rows = rgb[0].permute(1, 2, 0)
        levels = torch.empty(rows.shape, dtype=torch.uint8 if pixel.depth == 8 else torch.uint16, device=rgb.device)
        for values, target in zip(torch.split(rows, _ROWS), torch.split(levels, _ROWS), strict=True):
            target.copy_(_quantise(values.clamp(0, 1) * _maximum(pixel), pixel))
        return [levels]
    rgb = rgb.clamp(0, 1)
    luma_offset, luma_scale, chroma_offset, chroma_scale = _range(fmt)
    kr, kb = _LUMA["bt709" if fmt.matrix == "rgb" else fmt.matrix]
    r, g, b = rgb[0]
    y = kr * r + (1 - kr - kb) * g + kb * b
    planes = [_quantise(y * luma_scale + luma_offset, pixel)]
    if pixel.kind == "yuv":
        for chroma in ((b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))):
            planes.append(_quantise(_downsample(chroma, fmt) * chroma_scale + chroma_offset, pixel))
    return planes


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
    values = values.add(0.5).clamp_(0, _maximum(pixel))
    return values.to(torch.uint8 if pixel.depth == 8 else torch.uint16).contiguous()


def _cosited(location: ChromaLocation) -> tuple[bool, bool]:
    """Whether a subsampled chroma sample lies on a luma sample: horizontally, vertically (otherwise between two)."""
    return location in ("left", "topleft"), location == "topleft"


def _upsample(chroma: Tensor, fmt: VideoFormat) -> Tensor:
    """Linear interpolation of a chroma plane (h, w) to the size of luma."""
    cosited_x, cosited_y = _cosited(fmt.chroma_location)
    if fmt.pixel_format.chroma_shift_y:
        chroma = _double_columns(chroma.T, cosited_y)[:, : fmt.height].T
    if fmt.pixel_format.chroma_shift_x:
        chroma = _double_columns(chroma, cosited_x)[:, : fmt.width]
    return chroma


def _downsample(chroma: Tensor, fmt: VideoFormat) -> Tensor:
    """Average a full-size chroma plane to its subsampled positions; the picture's last row and column repeat."""
    cosited_x, cosited_y = _cosited(fmt.chroma_location)
    if fmt.pixel_format.chroma_shift_x:
        chroma = _halve_columns(chroma, cosited_x)
    if fmt.pixel_format.chroma_shift_y:
        chroma = _halve_columns(chroma.T, cosited_y).T
    return chroma


def _double_columns(x: Tensor, cosited: bool) -> Tensor:
    """(h, w) -> (h, 2w) by linear interpolation, the border repeated."""
    after = torch.cat((x[:, 1:], x[:, -1:]), dim=1)
    if cosited:
        even, odd = x, (x + after) / 2
    else:
        before = torch.cat((x[:, :1], x[:, :-1]), dim=1)
        even, odd = 0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after
    return torch.stack((even, odd), dim=2).flatten(1)


def _halve_columns(x: Tensor, cosited: bool) -> Tensor:
    """(h, w) -> (h, ceil(w / 2)): the weights 1 2 1 around a co-sited sample, else the mean of two."""
    if x.shape[1] % 2:
        x = torch.cat((x, x[:, -1:]), dim=1)
    even, odd = x[:, 0::2], x[:, 1::2]
    if not cosited:
        return (even + odd) / 2
    before = torch.cat((even[:, :1], odd[:, :-1]), dim=1)
    return (before + 2 * even + odd) / 4
