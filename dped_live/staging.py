"""Planes between host and device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Staging:
    """Moves planes between host and device.

    On a GPU through pinned memory, on the current stream. The upload buffers are reused: `upload` waits for the
    copies of the call before. `download` waits for everything.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    def upload(self, planes: tuple[np.ndarray, ...]) -> list[Tensor]:
        # torch warns of arrays that must not be written to, and cannot promise; nobody here writes.
        tensors = [torch.from_numpy(np.require(plane, requirements="W")) for plane in planes]
        if self._device.type == "cpu":
            return tensors
        if [(p.shape, p.dtype) for p in self._pinned] != [(t.shape, t.dtype) for t in tensors]:
            self._pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        if self._copied is not None:
            self._copied.synchronize()
        for pinned, tensor in zip(self._pinned, tensors, strict=True):
            pinned.copy_(tensor)
        uploaded = [pinned.to(self._device, non_blocking=True) for pinned in self._pinned]
        self._copied = torch.cuda.current_stream(self._device).record_event()
        return uploaded

    def download(self, planes: list[Tensor]) -> tuple[np.ndarray, ...]:
        if self._device.type == "cpu":
            return tuple(plane.numpy() for plane in planes)
        host = [torch.empty(plane.shape, dtype=plane.dtype, pin_memory=True) for plane in planes]
        for target, plane in zip(host, planes, strict=True):
            target.copy_(plane, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return tuple(plane.numpy() for plane in host)
