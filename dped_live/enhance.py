"""Frames in, enhanced frames out: colour conversion, the network, mixing. Device staging, no threads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from dped_live import color
from dped_live.backends import Backend
from dped_live.frame import Frame, VideoFormat
from dped_live.scene_statistics import SceneStatistics
from dped_live.staging import Staging


class Enhancer:
    """Applies a backend to frames.

    output: the pixel format, matrix and range of the frames that come out; size, times and everything else follow
    the frames that go in. strength: 0 gives the input, 1 the network's output, linear in between in RGB.
    before_after: the picture before and after side by side, as a viewer sees them (the original's second picture).
    scenes: the statistics that apply from each scene's start on, in order of time; None normalises each frame by its
    own, as the original does.

    Not thread-safe: one thread uses it at a time.
    """

    def __init__(
        self,
        backend: Backend,
        output: VideoFormat,
        strength: float = 1.0,
        before_after: bool = False,
        scenes: Sequence[SceneStatistics] | None = None,
    ) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is from 0 to 1, not {strength}")
        self._backend = backend
        self._output = output
        self._strength = strength
        self._before_after = before_after
        self._scenes = scenes
        self._staging = Staging(backend.device)

    def map(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Enhance each frame; order, times and alpha stay. The frames returned own their planes."""
        for frame in frames:
            yield self.enhance(frame)

    def enhance(self, frame: Frame) -> Frame:
        """Enhance one frame, whatever came before it."""
        untouched = self._strength == 0 and not self._before_after
        if untouched and _same_planes(frame.format, self._output):
            return frame
        with torch.inference_mode():
            before = color.to_rgb(self._staging.upload(frame.planes), frame.format)
            statistics, strength = None, self._strength
            if self._scenes is not None:
                scene = self._scenes[max(0, bisect_right(self._scenes, frame.pts, key=lambda scene: scene.start) - 1)]
                statistics, strength = scene.statistics, strength * scene.weight(frame)
            after = before
            if strength > 0:
                replaced = strength == 1 and not self._before_after
                after = self._backend.enhance(before, statistics, out=before if replaced else None)
            if 0 < strength < 1:
                after = torch.lerp(before, after, strength)
            alpha = frame.alpha
            if self._before_after:
                axis, before_first = _side_by_side(frame.format.display_matrix)
                after = torch.cat((before, after) if before_first else (after, before), dim=axis + 2)
                alpha = None if alpha is None else np.concatenate((alpha, alpha), axis=axis)
            fmt = replace(self._output, width=after.shape[3], height=after.shape[2])
            planes = self._staging.download(color.from_rgb(after, fmt))
        return replace(frame, planes=planes, format=fmt, alpha=alpha)


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
