"""What runs the network. `open_backend` is the only place that chooses."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from dped_live.errors import BackendError
from dped_live.generator import WHOLE, Generator, Region
from dped_live.network import Network
from dped_live.statistics import Statistics
from dped_live.table_network import TableNetwork

if TYPE_CHECKING:
    from dped_live.backends.tensorrt import Engines

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Tile = int | Literal["auto", "off"]
Runner = Literal["auto", "torch", "tensorrt", "openvino"]
Computing = Literal["fp32", "bf16", "fp16"]
"""What a generator's weights and activations are."""

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Backend(Protocol):
    """A network on a device.

    Pictures are float32 (1, 3, H, W), RGB in [0, 1], on `device`; results have the same shape, are NOT clamped and
    belong to the caller. On a GPU the work is enqueued on the current stream and nothing is waited for. Used by one
    thread at a time, but see `shares`. Raises TooLargeError where a picture does not fit into memory.
    """

    device: torch.device
    description: str
    """For people: what runs, where, in which precision, and why so."""

    shares: bool
    """Whether several threads may enhance pictures of one size with given statistics at a time."""

    @property
    def in_float32(self) -> Backend | None:
        """The same network in float32, for a picture whose result is not finite: half precision ends at 65,504. None
        where that cannot happen."""
        ...

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        """Network.forward on the device.

        out: written to and returned, instead of new memory; may be the image itself.
        """
        ...

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        """Network.measure on the device."""
        ...

    def statistics(self, image: Tensor) -> Statistics:
        """The picture's own, as `measure` finds them, without the picture. Always finite."""
        ...


@runtime_checkable
class BytesBackend(Protocol):
    """What a Backend may be able to do besides."""

    def enhance_bytes(
        self, levels: Tensor, statistics: Statistics | None = None
    ) -> tuple[Tensor, Tensor | None] | None:
        """Backend.enhance of an 8-bit picture as it is stored, with no conversion before or after it.

        levels: uint8 (H, W, 3), RGB, on `device`. Returns the result in the same form, clipped and rounded, which
        belongs to the caller, and a boolean tensor (): whether all of it was finite, None where that is certain. None:
        it cannot do this for such a picture, and `enhance` is to be used.
        """
        ...


class WholeBackend(Backend, Protocol):
    """A backend that takes a picture as a whole, and what tiled.py needs to give it parts of one."""

    bytes_per_pixel: int
    """About what it allocates for a picture that is normalised by its own statistics, besides the picture and the
    result."""

    bytes_per_pixel_given: int
    """The same where the statistics are given, and for measure_next."""

    @property
    def in_float32(self) -> WholeBackend | None: ...

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        """Generator.measure on the device."""
        ...

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        """Generator.measure_next on the device."""
        ...


def open_backend(
    network: Network,
    device: str = "auto",
    precision: Precision = "auto",
    tile: Tile = "auto",
    notify: Callable[[str], None] = lambda _line: None,
    runner: Runner = "auto",
    *,
    engines: bool = True,
) -> Backend:
    """Put a network on a device.

    device: "auto" (the first GPU that torch can use, else the CPU), "cpu", "cuda" or "cuda:N"; "openvino:GPU",
    "openvino:GPU.N" and "openvino:NPU" are Intel's: pictures and results are then on the CPU.
    precision: "auto" is fp16 on a GPU, on a CPU bf16 where it has instructions for it, else fp32; a
    table network computes in fp32 everywhere. "int8" is for OpenVINO on a CPU.
    tile: side in pixels of the tiles in which larger pictures are enhanced; "auto" uses tiles only for pictures that
    do not fit into memory, and tells `notify`, once; "off" refuses these. The result is the same; see tiled.py. A table
    network needs little memory, and no tiles.
    runner: "auto" is TensorRT on a GPU where it is installed and the precision is that of its engines, and OpenVINO on
    a CPU where that is installed, for generators; where it then cannot be used, `notify` is told why, once.
    engines: False keeps "auto" from TensorRT, whose engines are for few sizes.
    An explicit choice is honoured or raises BackendError.
    """
    if device.startswith("openvino:"):
        return _open_openvino_device(network, device.removeprefix("openvino:"), precision, tile, notify, runner)
    if runner == "openvino":
        if device not in ("auto", "cpu"):
            raise BackendError(f"--backend openvino does not run on {device}; use --device cpu, or --backend torch")
        device = "cpu"
    if runner == "tensorrt" and device == "cpu":
        raise BackendError("--backend tensorrt needs an NVIDIA card; leave out --device cpu, or use --backend torch")
    if runner == "tensorrt" and not torch.cuda.is_available():
        from dped_live.backends.tensorrt import refusal_without_cuda

        raise refusal_without_cuda()
    target = _device(device)
    if target.type == "cuda" and runner == "auto" and not engines:
        runner = "torch"
    if isinstance(network, TableNetwork):
        if precision not in ("auto", "fp32"):
            raise BackendError(f"networks like lite compute in fp32 only, not in {precision}; use --precision fp32")
        if runner == "openvino":
            raise _only_generators()
        from dped_live.backends.table import TableBackend

        beside = TableBackend(network, target)
        loaded = _engines(network, target, runner, notify)
        if loaded is None:
            return beside
        from dped_live.backends.tensorrt import TensorRtTableBackend

        return TensorRtTableBackend(beside, loaded)
    if target.type == "cpu":
        return _open_cpu(network, precision, tile, notify, runner)
    return _in_tiles(_open_cuda(network, target, precision, runner, notify), network, tile, notify)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name.split(":")[0] != "cuda":
        raise BackendError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise BackendError(f"no device {name}: {built}; use --device cpu, or see https://pytorch.org for a CUDA build")
    target = torch.device(name)
    if target.index is not None and target.index >= torch.cuda.device_count():
        raise BackendError(f"no device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return target


def _in_tiles(backend: WholeBackend, generator: Generator, tile: Tile, notify: Callable[[str], None]) -> Backend:
    if tile == "off":
        return backend
    from dped_live.backends.tiled import TiledBackend

    return TiledBackend(backend, generator, None if tile == "auto" else tile, notify)


def _open_cpu(
    generator: Generator, precision: Precision, tile: Tile, notify: Callable[[str], None], runner: Runner
) -> Backend:
    why = ""
    if precision == "auto":
        precision, why = ("bf16", ": this CPU has it") if cpu_has_bf16() else ("fp32", ": this CPU has no fast bf16")
    if precision == "fp16":
        raise BackendError("fp16 is for GPUs; on a CPU use --precision bf16 or fp32")
    by_openvino = runner == "openvino" or (runner == "auto" and find_spec("openvino") is not None)
    if precision == "int8" and not by_openvino:
        raise BackendError("--precision int8 needs OpenVINO; use --backend openvino, after: pip install openvino")
    has_bf16 = precision == "bf16" or (precision == "int8" and cpu_has_bf16())
    computing: Computing = "bf16" if has_bf16 else "fp32"
    if by_openvino:
        description = f"CPU, {precision} by OpenVINO{why}"
        try:
            return _by_openvino(generator, computing, "CPU", description, tile, notify, in_8_bits=precision == "int8")
        except BackendError as error:
            if runner == "openvino" or precision == "int8":
                raise
            notify(f"{error}; going on with torch")
    from dped_live.backends.torch_cpu import TorchCpuBackend

    return _in_tiles(TorchCpuBackend(generator, _TYPES[computing], f"CPU, {precision}{why}"), generator, tile, notify)


def _open_openvino_device(
    network: Network, target: str, precision: Precision, tile: Tile, notify: Callable[[str], None], runner: Runner
) -> Backend:
    """target: of OpenVINO's devices, one that is not the CPU."""
    if runner not in ("auto", "openvino"):
        raise BackendError(f"--device openvino:{target} is for --backend openvino, not {runner}")
    if not re.fullmatch(r"GPU(\.\d+)?|NPU", target):
        raise BackendError(f"unknown device openvino:{target}: use openvino:GPU, openvino:GPU.N or openvino:NPU")
    if isinstance(network, TableNetwork):
        raise _only_generators()
    offered: list[Precision] = ["auto", "fp16"] if target == "NPU" else ["auto", "fp16", "fp32"]
    if precision not in offered:
        raise BackendError(f"openvino:{target} does not compute in {precision}; use --precision {offered[-1]}")
    computing: Computing = "fp32" if precision == "fp32" else "fp16"
    return _by_openvino(network, computing, target, f"{target}, {computing} by OpenVINO", tile, notify)


def _by_openvino(
    generator: Generator,
    precision: Computing,
    target: str,
    description: str,
    tile: Tile,
    notify: Callable[[str], None],
    *,
    in_8_bits: bool = False,
) -> Backend:
    """target: OpenVINO's name of a device. Raises BackendError where that or OpenVINO is not there or does not work."""
    if find_spec("openvino") is None:
        raise BackendError("OpenVINO is not installed; type: pip install openvino, or use --backend torch")
    # On import it reports to Google Analytics, unless its telemetry is not there.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        from dped_live.backends.openvino import OpenVinoBackend, check_target
    except ImportError as error:
        raise BackendError(
            f"OpenVINO cannot be imported ({error}); type: pip install --force-reinstall openvino, "
            "or use --backend torch"
        ) from error
    check_target(target)
    from dped_live.backends.torch_cpu import TorchCpuBackend

    whole = TorchCpuBackend(generator, torch.bfloat16 if precision == "bf16" else torch.float32)
    return OpenVinoBackend(
        generator,
        precision,
        _in_tiles(whole, generator, tile, notify),
        description,
        in_8_bits=in_8_bits,
        target=target,
        side=tile if isinstance(tile, int) else None,
    )


def _only_generators() -> BackendError:
    return BackendError("OpenVINO runs DPED's networks, not those like lite; use --backend auto and --device auto")


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16, without which it is slower than fp32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


def _open_cuda(
    generator: Generator,
    device: torch.device,
    precision: Precision,
    runner: Runner,
    notify: Callable[[str], None],
) -> WholeBackend:
    from dped_live.backends.torch_cuda import TorchCudaBackend
    from dped_live.backends.torch_module import TorchModuleBackend

    chosen: Precision = "fp16" if precision == "auto" else precision
    if chosen == "int8":
        raise BackendError("--precision int8 is for CPUs; use --device cpu, or --precision fp16")
    if runner == "tensorrt" and chosen != "fp16":
        raise BackendError(f"--backend tensorrt computes in fp16, not in {chosen}; use --backend torch")
    name = torch.cuda.get_device_name(device)
    modules = TorchModuleBackend(generator, device, _TYPES[chosen], f"{name}, {chosen}")
    if chosen != "fp16":
        return modules
    beside = TorchCudaBackend(generator, modules, notify)
    engines = _engines(generator, device, runner, notify)
    if engines is None:
        return beside
    from dped_live.backends.tensorrt import TensorRtBackend

    return TensorRtBackend(generator, beside, engines)


def _engines(network: Network, device: torch.device, runner: Runner, notify: Callable[[str], None]) -> Engines | None:
    """What runs a network by TensorRT; None where torch is to run it."""
    if runner == "torch" or device.type == "cpu":
        return None
    from dped_live.backends import tensorrt

    if runner == "auto" and not tensorrt.is_installed():
        return None
    capability = torch.cuda.get_device_capability(device)
    try:
        package = tensorrt.package_for(torch.cuda.get_device_name(device), capability)
    except BackendError as error:
        if runner == "tensorrt":
            raise
        notify(f"{error}; going on with torch")
        return None
    return tensorrt.Engines(network, device, package, capability, required=runner == "tensorrt", notify=notify)
