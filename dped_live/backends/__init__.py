"""What runs the network. `open_backend` is the only place that chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from dped_live.errors import BackendError
from dped_live.generator import WHOLE, Generator, Region
from dped_live.statistics import Statistics

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tile = int | Literal["auto", "off"]

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Backend(Protocol):
    """A generator on a device.

    Pictures are float32 (1, 3, H, W), RGB in [0, 1], on `device`; results have the same shape, are NOT clamped and
    belong to the caller. On a GPU the work is enqueued on the current stream and nothing is waited for. Used by one
    thread at a time. Raises TooLargeError where a picture does not fit into memory.
    """

    device: torch.device
    description: str
    """For people: what runs, where, in which precision, and why so."""

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        """Generator.forward on the device.

        out: written to and returned, instead of new memory; may be the image itself.
        """
        ...

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        """Generator.measure on the device."""
        ...

    def statistics(self, image: Tensor) -> Statistics:
        """The picture's own, as `measure` finds them, without the picture."""
        ...


class WholeBackend(Backend, Protocol):
    """A backend that takes a picture as a whole, and what tiled.py needs to give it parts of one."""

    bytes_per_pixel: int
    """About what it allocates for a picture, besides the picture and the result."""

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        """Generator.measure on the device."""
        ...

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        """Generator.measure_next on the device."""
        ...


def open_backend(
    generator: Generator,
    device: str = "auto",
    precision: Precision = "auto",
    tile: Tile = "auto",
    notify: Callable[[str], None] = lambda _line: None,
) -> Backend:
    """Put a generator on a device.

    device: "auto" (the first GPU that torch can use, else the CPU), "cpu", "cuda" or "cuda:N".
    precision: "auto" is fp16 on a GPU, on a CPU bf16 where it has instructions for it, else fp32.
    tile: side in pixels of the tiles in which larger pictures are enhanced; "auto" uses tiles only for pictures that
    do not fit into memory, and tells `notify`, once; "off" refuses these. The result is the same; see tiled.py.
    An explicit choice is honoured or raises BackendError.
    """
    backend = _open(generator, device, precision)
    if tile == "off":
        return backend
    from dped_live.backends.tiled import TiledBackend

    return TiledBackend(backend, generator, None if tile == "auto" else tile, notify)


def _open(generator: Generator, device: str, precision: Precision) -> WholeBackend:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return _open_cpu(generator, precision)
    if device.split(":")[0] != "cuda":
        raise BackendError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N")
    return _open_cuda(generator, device, precision)


def _open_cpu(generator: Generator, precision: Precision) -> WholeBackend:
    why = ""
    if precision == "auto":
        precision, why = ("bf16", ": this CPU has it") if _cpu_has_bf16() else ("fp32", ": this CPU has no fast bf16")
    if precision == "fp16":
        raise BackendError("fp16 is for GPUs; on a CPU use --precision bf16 or fp32")
    description = f"CPU, {precision}{why}"
    if generator.shuffle > 1:
        from dped_live.backends.torch_module import TorchModuleBackend

        return TorchModuleBackend(generator, torch.device("cpu"), _TYPES[precision], description)
    from dped_live.backends.torch_cpu import TorchCpuBackend

    return TorchCpuBackend(generator, _TYPES[precision], description)


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


def _open_cuda(generator: Generator, device: str, precision: Precision) -> WholeBackend:
    from dped_live.backends.torch_module import TorchModuleBackend

    if not torch.cuda.is_available():
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise BackendError(
            f"no device {device}: {built}; use --device cpu, or see https://pytorch.org for a CUDA build"
        )
    target = torch.device(device)
    if target.index is not None and target.index >= torch.cuda.device_count():
        raise BackendError(f"no device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    chosen: Precision = "fp16" if precision == "auto" else precision
    name = torch.cuda.get_device_name(target)
    return TorchModuleBackend(generator, target, _TYPES[chosen], f"{name}, {chosen}")
