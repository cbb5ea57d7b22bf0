"""A network that looks at a smaller picture. What it changes there is enlarged and added to the whole one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dped_live.backends import Backend
from dped_live.statistics import Statistics


class ReducedBackend:
    """Runs another backend on pictures of a half (a third, ...) of the width and height; see backends.Backend.

    The picture keeps its detail, and gets the colours and light of the network's result but not its sharpening. Not
    exact, and so only a rung of the ladder, never chosen silently.
    """

    def __init__(self, backend: Backend, factor: int) -> None:
        self.device = backend.device
        self.shares = backend.shares
        self.description = f"{backend.description}, at 1/{factor} of the size"
        self._backend = backend
        self._factor = factor

    @property
    def in_float32(self) -> ReducedBackend | None:
        instead = self._backend.in_float32
        return None if instead is None else ReducedBackend(instead, self._factor)

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            small = self._reduced(image)
            return self._added(image, small, self._backend.enhance(small, statistics), out)

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        with torch.inference_mode():
            small = self._reduced(image)
            enhanced, measured = self._backend.measure(small, statistics)
            return self._added(image, small, enhanced, None), measured

    def statistics(self, image: Tensor) -> Statistics:
        return self._backend.statistics(self._reduced(image))

    def _reduced(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, self._factor, ceil_mode=True)

    def _added(self, image: Tensor, small: Tensor, enhanced: Tensor, out: Tensor | None) -> Tensor:
        height, width = image.shape[2:]
        change = F.interpolate(enhanced - small, scale_factor=self._factor, mode="bilinear")
        return torch.add(image, change[:, :, :height, :width], out=out)
