"""Planes between host and device.

On a GPU three streams work side by side: one copies planes in, one copies them out, and one computes, so that a frame
comes in and another goes out while a third is enhanced. Events keep the order of each frame's own work.

What a card has decoded (frame.CardPlanes) is copied within its memory. FFmpeg writes such pictures on the default
stream of torch's own context (see sources/picture.decoder_on_card); nothing here keeps that stream waiting for the
computing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from dped_live.frame import CardPlanes

_AHEAD = 2
"""Frames whose work may be enqueued before the first of them is waited for: one computes while one comes in, and the
first goes out. More would only take memory."""

_SLOTS = 2 * (_AHEAD + 1)
"""Upload buffers: some frames need their planes twice, for what is around a picture or to be mixed with it."""

_ALIGNMENT = 256
"""Bytes to a multiple of which each plane begins: what CUDA aligns its own allocations to."""


class Event(Protocol):
    """A point in a stream's work, such as torch.cuda.Event."""

    def synchronize(self) -> None:
        """Wait until the work before it is done."""
        ...


@dataclass(slots=True)
class Slot:
    """A buffer of a Ring. copied: after what was last enqueued with it."""

    memory: Tensor
    copied: Event | None = None


class Ring:
    """Buffers in host memory that are used in turn.

    A buffer belongs to the caller of `next` until `next` gives it again, which waits for its `copied` first; whoever
    enqueues a copy sets that. pinned: for copies beside other work; needs a GPU.
    """

    def __init__(self, count: int, pinned: bool) -> None:
        self._slots = [Slot(torch.empty(0, dtype=torch.uint8)) for _ in range(count)]
        self._pinned = pinned
        self._used = 0

    def next(self, size: int) -> Slot:
        """The buffer that was not used for longest, with at least `size` bytes."""
        slot = self._slots[self._used % len(self._slots)]
        self._used += 1
        if slot.copied is not None:
            slot.copied.synchronize()
            slot.copied = None
        if slot.memory.numel() < size:
            slot.memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return slot


class Download:
    """Planes on their way to the host. They belong to whoever takes them."""

    def __init__(self, planes: Sequence[Tensor], arrived: Event | None) -> None:
        self._planes = planes
        self._arrived = arrived

    def planes(self) -> tuple[np.ndarray, ...]:
        """Wait until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return tuple(plane.numpy() for plane in self._planes)


class Staging:
    """Moves planes between host and device; on a CPU there is nothing to move.

    ahead: how many frames' work should be enqueued before the first frame's is waited for.
    Used by one thread at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.ahead = 0 if device.type == "cpu" else _AHEAD
        if device.type != "cpu":
            self._ring = Ring(_SLOTS, pinned=True)
            streams = [torch.cuda.Stream(device) for _ in range(3)]  # type: ignore[no-untyped-call]
            self._copy_in, self._compute, self._copy_out = streams

    @contextmanager
    def computing(self) -> Iterator[None]:
        """What is enqueued within goes to the computing stream, after all that the caller's stream has by then. Whoever
        waits for what is downloaded has waited for all before it; others see `join`."""
        if self._device.type == "cpu":
            yield
            return
        callers = torch.cuda.current_stream(self._device)
        self._compute.wait_stream(callers)
        with torch.cuda.stream(self._compute):
            yield

    def join(self) -> None:
        """What the caller enqueues from now on comes after all that is computed."""
        if self._device.type != "cpu":
            torch.cuda.current_stream(self._device).wait_stream(self._compute)

    def holds(self, planes: Sequence[np.ndarray]) -> TypeGuard[CardPlanes]:
        """Whether planes are on the device already."""
        return isinstance(planes, CardPlanes) and self._device.type == "cuda" and planes.card == _number(self._device)

    def upload(self, planes: Sequence[np.ndarray]) -> list[Tensor]:
        """Planes on the device, for the current stream. On a CPU they are the very same, else they belong to the caller
        and the given ones are free again."""
        if self.holds(planes):
            return self._taken(planes)
        # torch warns of arrays that must not be written to, and cannot promise; nobody here writes.
        tensors = [torch.from_numpy(np.require(plane, requirements="W")) for plane in planes]
        if self._device.type == "cpu":
            return tensors
        slot = self._ring.next(packed_size(tensors))
        for target, tensor in zip(views(slot.memory, tensors), tensors, strict=True):
            target.copy_(tensor)
        with torch.cuda.stream(self._copy_in):
            packed = slot.memory[: packed_size(tensors)].to(self._device, non_blocking=True)
            copied = self._copy_in.record_event()
        slot.copied = copied
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        # It was allocated for the copying stream, and must not be given to another copy while this one reads it.
        packed.record_stream(current)
        return views(packed, tensors)

    def _taken(self, planes: CardPlanes) -> list[Tensor]:
        """What a card's decoder holds, as planes that belong to the caller."""
        decoders, current = torch.cuda.default_stream(self._device), torch.cuda.current_stream(self._device)
        self._copy_in.wait_stream(decoders)
        with torch.cuda.stream(self._copy_in):
            tensors = planar(planes)
            copied = self._copy_in.record_event()
        # Before the decoder writes there again.
        decoders.wait_event(copied)
        current.wait_event(copied)
        for tensor in tensors:
            tensor.record_stream(current)
        return tensors

    def download(self, planes: Sequence[Tensor]) -> Download:
        """Planes that the current stream computes, to the host. What they are in belongs to this from now on."""
        if self._device.type == "cpu":
            return Download(planes, None)
        # torch keeps pinned memory that is no longer used, and gives it again once the copies to it are done.
        host = [torch.empty(plane.shape, dtype=plane.dtype, pin_memory=True) for plane in planes]
        self._copy_out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copy_out):
            for target, plane in zip(host, planes, strict=True):
                target.copy_(plane, non_blocking=True)
                plane.record_stream(self._copy_out)
            return Download(host, self._copy_out.record_event())


@contextmanager
def current(device: torch.device) -> Iterator[int | None]:
    """The context that torch has on a device is the calling thread's current one within. Gives the device's number,
    None for a CPU, which has no context."""
    if device.type == "cpu":
        yield None
        return
    with torch.cuda.device(device):
        # Any call of CUDA's runtime that does something makes it current.
        torch.cuda.synchronize()
        yield torch.cuda.current_device()


def planar(planes: CardPlanes) -> list[Tensor]:
    """Copies of a card's planes, on the current stream: contiguous, as frame.PixelFormat says."""
    luma, chroma = _stored(planes)
    return [_low(plane).contiguous() for plane in (luma, chroma[..., 0], chroma[..., 1])]


def samples(planes: CardPlanes, rows: slice, columns: slice) -> np.ndarray:
    """A few samples of the luma that a card holds. Waits for its decoder, and for nothing else."""
    stream = _looking(planes.card)
    stream.wait_stream(torch.cuda.default_stream(planes.card))
    with torch.cuda.stream(stream):
        few: np.ndarray = _low(_stored(planes)[0][rows, columns]).cpu().numpy()
    return few


@cache
def _looking(card: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(card)  # type: ignore[no-untyped-call]


def _stored(planes: CardPlanes) -> list[Tensor]:
    # PyAV knows no streams, of which torch would speak to the planes themselves; the callers have seen to them.
    return [from_dlpack(plane.__dlpack__()) for plane in planes.stored]


def _low(plane: Tensor) -> Tensor:
    """New memory, with 10 bits the low ones; torch shifts no uint16."""
    if plane.dtype == torch.uint8:
        return plane.clone()
    return ((plane.view(torch.int16) >> 6) & 1023).view(torch.uint16)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def packed_size(like: Sequence[Tensor]) -> int:
    """Bytes of a buffer that holds tensors like these one after the other."""
    return sum(_padded(tensor) for tensor in like)


def views(memory: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Parts of a buffer of bytes, as contiguous tensors of the given ones' shapes and types."""
    parts, begin = [], 0
    for tensor in like:
        end = begin + tensor.numel() * tensor.itemsize
        parts.append(memory[begin:end].view(tensor.dtype).view(tensor.shape))
        begin += _padded(tensor)
    return parts


def _padded(tensor: Tensor) -> int:
    return math.ceil(tensor.numel() * tensor.itemsize / _ALIGNMENT) * _ALIGNMENT
