"""Frames in, enhanced frames out: colour conversion, the network, mixing. Device staging, no threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dped_live import color
from dped_live.backends import Backend
from dped_live.frame import Area, Frame, VideoFormat
from dped_live.scene_statistics import Normalisation, Policy, picture_of
from dped_live.staging import Staging

_ROWS = 32
"""So many rows of an RGB picture are mixed with the input at a time: of 50 megapixels a copy in float32 is 600 MB."""


class Enhancer:
    """Applies a backend to frames.

    output: the pixel format, matrix and range of the frames that come out; size, times and everything else follow
    the frames that go in. policy: what normalises each frame.
    strength: 0 gives the input, 1 the network's output, linear in between in RGB; may be changed between frames.
    before_after: the picture before and after side by side, as a viewer sees them (the original's second picture).

    Not thread-safe: one thread uses it at a time.
    """

    def __init__(
        self,
        backend: Backend,
        output: VideoFormat,
        policy: Policy,
        strength: float = 1.0,
        before_after: bool = False,
    ) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is from 0 to 1, not {strength}")
        self._backend = backend
        self._output = output
        self._policy = policy
        self.strength = strength
        self._before_after = before_after
        self._staging = Staging(backend.device)

    def map(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Enhance each frame; order, times and alpha stay. The frames returned own their planes."""
        for frame in frames:
            yield self.enhance(frame)

    def enhance(self, frame: Frame) -> Frame:
        """Enhance one frame; those of a video in order."""
        with torch.inference_mode():
            plan = self._policy.normalisation(frame)
            if self._before_after:
                return self._beside(frame, self._enhanced(frame, plan))
            enhanced = self._enhanced(frame, plan)
            same = _same_planes(frame.format, self._output)
            if enhanced is None and same:
                return frame
            fmt = replace(self._output, width=frame.format.width, height=frame.format.height)
            rgb = picture_of(frame, frame.whole, self._staging) if enhanced is None else enhanced
            planes = self._staging.download(color.from_rgb(rgb, fmt))
            if same:
                _restore_borders(planes, frame, plan.area)
            return replace(frame, planes=planes, format=fmt, alpha=_alpha(frame, fmt))

    def _enhanced(self, frame: Frame, plan: Normalisation) -> Tensor | None:
        """The frame as RGB, enhanced as much as it is to be; None where it stays as it is."""
        strength = self.strength * plan.weight
        if strength == 0 and not plan.measured:
            return None
        picture = picture_of(frame, plan.area, self._staging)
        statistics = plan.statistics
        if plan.measured:
            found = self._backend.statistics(picture)
            self._policy.learn(found)
            # In two runs, so that the frames that get the same statistics later come out the same to the bit.
            statistics = found if statistics is None else statistics
        enhanced = self._backend.enhance(picture, statistics, out=picture)
        if strength < 1:
            self._mix(enhanced, frame, plan.area, strength)
        if plan.area == frame.whole:
            return enhanced
        whole = picture_of(frame, frame.whole, self._staging)
        whole[:, :, plan.area.top : plan.area.bottom, plan.area.left : plan.area.right] = enhanced
        return whole

    def _mix(self, enhanced: Tensor, frame: Frame, area: Area, strength: float) -> None:
        """Put the input's part into the enhanced picture. It is converted anew, for the result has taken its place."""
        step = _ROWS if frame.format.pixel_format.kind == "rgb" else area.bottom - area.top
        for top in range(area.top, area.bottom, step):
            rows = replace(area, top=top, bottom=min(top + step, area.bottom))
            before = picture_of(frame, rows, self._staging)
            enhanced[:, :, rows.top - area.top : rows.bottom - area.top].lerp_(before, 1 - strength)

    def _beside(self, frame: Frame, enhanced: Tensor | None) -> Frame:
        """The frame before and after."""
        axis, before_first = _side_by_side(frame.format.display_matrix)
        fmt = side_by_side_format(replace(self._output, width=frame.format.width, height=frame.format.height))
        if fmt.pixel_format.kind == "rgb" and _same_planes(frame.format, fmt) and enhanced is not None:
            # Joined as bytes: two large photos in float32 need more memory than the network.
            single = replace(fmt, width=frame.format.width, height=frame.format.height)
            (after,) = self._staging.download(color.from_rgb(enhanced, single))
            del enhanced
            (before,) = frame.planes
            planes: tuple[np.ndarray, ...] = (
                np.concatenate((before, after) if before_first else (after, before), axis=axis),
            )
        else:
            rgb = picture_of(frame, frame.whole, self._staging)
            pair = (rgb, rgb if enhanced is None else enhanced)
            joined = torch.cat(pair if before_first else pair[::-1], dim=axis + 2)
            planes = self._staging.download(color.from_rgb(joined, fmt))
        alpha = _alpha(frame, fmt)
        alpha = None if alpha is None else np.concatenate((alpha, alpha), axis=axis)
        return replace(frame, planes=planes, format=fmt, alpha=alpha)


def _alpha(frame: Frame, fmt: VideoFormat) -> np.ndarray | None:
    """The frame's alpha, of the depth of `fmt`."""
    before, after = frame.format.pixel_format.depth, fmt.pixel_format.depth
    if frame.alpha is None or before == after:
        return frame.alpha
    scale = ((1 << after) - 1) / ((1 << before) - 1)
    return np.rint(frame.alpha * scale).astype(np.uint8 if after == 8 else np.uint16)


def _restore_borders(planes: tuple[np.ndarray, ...], frame: Frame, area: Area) -> None:
    """Put the frame's own samples around the area: chroma does not survive the way to RGB and back to the bit."""
    pixel = frame.format.pixel_format
    for number, (plane, own) in enumerate(zip(planes, frame.planes, strict=True)):
        y, x = (pixel.chroma_shift_y, pixel.chroma_shift_x) if number else (0, 0)
        top, bottom, left, right = area.top >> y, -(-area.bottom >> y), area.left >> x, -(-area.right >> x)
        plane[:top], plane[bottom:] = own[:top], own[bottom:]
        plane[:, :left], plane[:, right:] = own[:, :left], own[:, right:]


def side_by_side_format(fmt: VideoFormat) -> VideoFormat:
    """The format of before/after frames made from frames of `fmt`."""
    if _side_by_side(fmt.display_matrix)[0] == 1:
        return replace(fmt, width=2 * fmt.width)
    return replace(fmt, height=2 * fmt.height)


def _side_by_side(display_matrix: tuple[int, ...] | None) -> tuple[int, bool]:
    """The axis of (H, W) along which a viewer sees left and right, and whether its beginning is left.

    The matrix maps coded to shown positions, x' = a x + c y (ISO 14496-12, 6.2.2), so x' grows along the axis whose
    coefficient is not zero.
    """
    if display_matrix is None:
        return 1, True
    a, c = display_matrix[0], display_matrix[3]
    return (1, a >= 0) if abs(a) >= abs(c) else (0, c > 0)


def _same_planes(a: VideoFormat, b: VideoFormat) -> bool:
    return (a.pixel_format, a.matrix, a.full_range, a.chroma_location) == (
        b.pixel_format,
        b.matrix,
        b.full_range,
        b.chroma_location,
    )
