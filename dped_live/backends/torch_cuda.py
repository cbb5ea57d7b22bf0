"""The generator in half precision on an NVIDIA card, for sizes that come again and again.

Statistics are folded into weights in static memory when they change, not with each frame; bias, ReLU and skip are part
of the convolution where something can do that; the 9x9 layers are computed in blocks or by kernels of our own; and the
whole picture is one CUDA graph. Which of the ways to compute a layer is the fastest depends on the card, on cuDNN and
on the picture's size, and is measured.

A picture whose size comes for the first time is computed by whatever has been chosen for ones about as large, else by
cuDNN: photos are of any size, and measuring takes longer than one of them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from types import ModuleType
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dped_live.backends import space_to_depth
from dped_live.backends.torch_module import TorchModuleBackend, memory_error
from dped_live.errors import TooLargeError
from dped_live.generator import TANH_OFFSET, TANH_SCALE, WHOLE, Generator, Region
from dped_live.statistics import Statistics

_GRAPHS = 2
"""Graphs that are kept, each with the memory of its activations. More sizes than that have none."""

_WARM_UP = 2
"""Runs before a graph is captured: in the first kernels are compiled and workspaces allocated."""

_TIMED = 5
"""Runs of which the median counts where ways are compared."""

_TRITON_CHANNELS = (16, 32, 64)
_LEAST_CAPABILITY = (8, 0)
"""For which the Triton kernels are written: powers of two whose weights have room beside the picture, and cards with
asynchronous copies."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's static memory: weight, channels_last, its bias in the same precision, and in float32."""

    weight: Tensor
    bias: Tensor
    bias_float: Tensor


class StaticWeights:
    """A generator's weights on a device, where they stay: a CUDA graph holds their addresses.

    precision: of weights and activations. Used by one stream at a time.
    """

    def __init__(self, generator: Generator, device: torch.device, precision: torch.dtype) -> None:
        self.precision = precision
        self.device = device
        self.channels, self.blocks = generator.channels, generator.blocks
        with torch.inference_mode():
            self.scale = generator.norm_scale.detach().to(device, torch.float32)
            self.shift = generator.norm_shift.detach().to(device, torch.float32)
            self._full = torch.stack([w.detach() for w in generator.residual_weights]).to(device, torch.float32)
            self.unfolded = self._static(self._full)
            self._weights = torch.stack([weight.permute(0, 2, 3, 1) for weight in self.unfolded]).permute(0, 1, 4, 2, 3)
            self._biases = torch.zeros_like(self.shift, dtype=precision)
            self._biases_float = torch.zeros_like(self.shift)
            parts = zip(self._weights, self._biases, self._biases_float, strict=True)
            self.residual = [Layer(weight, bias, bias_float) for weight, bias, bias_float in parts]
            self.tail = [self._layer(layer) for layer in generator.tail if isinstance(layer, nn.Conv2d)]
            self.first = self._layer(generator.first)
            self.last = self._layer(generator.last)
        self._folded: Statistics | None = None

    def fold(self, statistics: Statistics) -> None:
        """Make `residual` apply these, of one frame. What the current stream has before is not disturbed."""
        if statistics is self._folded:
            return
        gain, bias = statistics.gain_and_bias(self.scale, self.shift)
        self._folded = None
        self._weights.copy_(self._full * gain[:, :, None, None, None])
        self._biases.copy_(bias)
        self._biases_float.copy_(bias)
        self._folded = statistics

    def _layer(self, layer: nn.Conv2d) -> Layer:
        assert layer.bias is not None
        bias = layer.bias.detach().to(self.device, torch.float32)
        (weight,) = self._static(layer.weight.detach()[None].to(self.device))
        return Layer(weight, bias.to(self.precision), bias)

    def _static(self, weights: Tensor) -> list[Tensor]:
        return [weight.to(self.precision, memory_format=torch.channels_last, copy=True) for weight in weights]


First = Callable[[Tensor, int, int], Tensor]
"""The first layer. Takes the padded picture, see space_to_depth.first_layer, and its height and width."""

Middle = Callable[[Tensor, Layer, Tensor | None], Tensor]
"""ReLU(layer(x)) + skip."""

Last = Callable[[Tensor], Tensor]
"""The last layer and what ends the network. Gives float32."""

Exact = Callable[[Tensor, int, int], Tensor]
"""The whole network by the picture's own statistics, from the padded picture."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How the layers are computed. Activations are (1, C, H, W), channels_last."""

    first: First
    middle: Middle
    last: Last

    def enhance(self, weights: StaticWeights, padded: Tensor, height: int, width: int) -> Tensor:
        """The network with the statistics that are folded into `weights`."""
        x = self.first(padded, height, width)
        for before, after in zip(weights.residual[::2], weights.residual[1::2], strict=True):
            x = self.middle(self.middle(x, before, None), after, x)
        return self.finish(weights, x)

    def finish(self, weights: StaticWeights, x: Tensor) -> Tensor:
        """What follows the residual blocks."""
        for layer in weights.tail:
            x = self.middle(x, layer, None)
        return self.last(x)


def padded_picture(weights: StaticWeights, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Memory for a picture as the first layer takes it, and the part of it that the picture goes to."""
    tall, wide = space_to_depth.padded_size(height, width)
    padded = torch.zeros((1, tall, wide, 3), dtype=weights.precision, device=weights.device).permute(0, 3, 1, 2)
    begin = space_to_depth.BLOCK
    return padded, padded[:, :, begin : begin + height, begin : begin + width]


def first_ways(weights: StaticWeights, kernels: ModuleType | None) -> dict[str, First]:
    """Every way to compute the first layer, by what computes it. kernels: triton_kernels, where there is Triton."""
    layer = weights.first
    blocks = space_to_depth.first_weight(layer.weight).contiguous(memory_format=torch.channels_last)
    block_bias = layer.bias.repeat(space_to_depth.BLOCK**2)

    def plain(padded: Tensor, height: int, width: int) -> Tensor:
        return F.conv2d(padded[:, :, : height + 8, : width + 8], layer.weight, layer.bias).relu_()

    ways: dict[str, First] = {
        "cuDNN": plain,
        "cuDNN in blocks": partial(space_to_depth.first_layer, weight=blocks, bias=block_bias),
    }
    if kernels is not None:
        weight = kernels.first_weight(layer.weight)
        for tiling in kernels.FIRST_TILINGS:
            ways[f"Triton, {tiling}"] = partial(
                kernels.convolve_first, weight=weight, bias=layer.bias_float, tiling=tiling
            )
    return ways


def middle_ways(kernels: ModuleType | None) -> dict[str, Middle]:
    """Every way to compute a 3x3 layer."""

    def plain(x: Tensor, layer: Layer, skip: Tensor | None) -> Tensor:
        result = F.conv2d(x, layer.weight, layer.bias, padding=1).relu_()
        return result if skip is None else result.add_(skip)

    def fused(x: Tensor, layer: Layer, skip: Tensor | None) -> Tensor:
        result = torch.cudnn_convolution_relu(x, layer.weight, layer.bias, (1, 1), (1, 1), (1, 1), 1)
        return result if skip is None else result.add_(skip)

    ways: dict[str, Middle] = {"cuDNN": plain, "cuDNN with its ReLU": fused}
    if kernels is not None:
        for tiling in kernels.MIDDLE_TILINGS:
            ways[f"Triton, {tiling}"] = _by_triton(kernels, tiling)
    return ways


def _by_triton(kernels: ModuleType, tiling: object) -> Middle:
    def middle(x: Tensor, layer: Layer, skip: Tensor | None) -> Tensor:
        result: Tensor = kernels.convolve(x, layer.weight, layer.bias_float, tiling, skip=skip)
        return result

    return middle


def last_ways(weights: StaticWeights, kernels: ModuleType | None) -> dict[str, Last]:
    """Every way to compute the last layer."""
    layer = weights.last
    blocks = space_to_depth.last_weight(layer.weight).contiguous(memory_format=torch.channels_last)
    block_bias = layer.bias.repeat_interleave(space_to_depth.BLOCK**2)

    def ended(x: Tensor) -> Tensor:
        return torch.tanh(x.float()).mul_(TANH_SCALE).add_(TANH_OFFSET)

    ways: dict[str, Last] = {
        "cuDNN": lambda x: ended(F.conv2d(x, layer.weight, layer.bias, padding=4)),
        "cuDNN in blocks": lambda x: ended(space_to_depth.last_layer(x, blocks, block_bias)),
    }
    if kernels is not None:
        weight = kernels.last_weight(layer.weight)
        for tiling in kernels.LAST_TILINGS:
            ways[f"Triton, {tiling}"] = partial(
                kernels.convolve_last, weight=weight, bias=layer.bias_float, tiling=tiling
            )
    return ways


def exact_ways(weights: StaticWeights, ways: Ways, kernels: ModuleType) -> dict[str, Exact]:
    """Every way of Triton to compute the network by the picture's own statistics, with `ways` around them."""

    def exact(padded: Tensor, height: int, width: int, tiling: object) -> Tensor:
        x = ways.first(padded, height, width)
        for norm in range(0, len(weights.unfolded), 2):
            y, before = x, None
            for number in (norm, norm + 1):
                y, before = kernels.convolve_and_measure(
                    y, before, weights.unfolded[number], weights.scale[number], weights.shift[number], tiling
                )
            x = kernels.join(x, y, before)
        return ways.finish(weights, x)

    return {f"Triton, {tiling}": partial(exact, tiling=tiling) for tiling in kernels.MIDDLE_TILINGS}


def fastest(
    candidates: Mapping[str, Callable[[], object]],
    milliseconds: Callable[[Callable[[], object]], float],
    failures: tuple[type[Exception], ...],
) -> tuple[str, dict[str, Exception]]:
    """The name of the candidate that takes the least time, and what went wrong with those that cannot be run.

    The first one must run; of the others those that raise one of `failures` are left out. Want of memory is one.
    """
    times, errors = {}, {}
    for name, candidate in candidates.items():
        try:
            times[name] = milliseconds(candidate)
        except failures as error:
            if not times:
                raise
            errors[name] = error
    return min(times, key=lambda name: times[name]), errors


def milliseconds(work: Callable[[], object], runs: int = _TIMED) -> float:
    """Of the card, for work that is enqueued on the current stream; the median, after one run more. Waits for it."""
    work()
    times = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return median(times)


class Graph:
    """A picture's way through the network, captured. Its memory is its own. Used by one stream at a time.

    network: takes a padded picture and gives the result. The example is what it is warmed up with, on `stream`.
    Raises RuntimeError where torch cannot capture it.
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], padded: Tensor, place: Tensor, stream: torch.cuda.Stream
    ) -> None:
        self._place = place
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                network(padded)
            # What other threads do, such as decoding on the card, must not end the capture.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._result = network(padded)

    def run(self, image: Tensor) -> Tensor:
        """The result is valid until the next run. Enqueues on the current stream, and waits for nothing."""
        self._place.copy_(image)
        self._graph.replay()
        return self._result


class TorchCudaBackend:
    """Runs a generator on a card; see backends.WholeBackend.

    beside: the same by torch's modules, in half precision, which also measures. notify: is told, once each, of what
    cannot be used. Streams are put in order.
    """

    shares = False

    def __init__(
        self, generator: Generator, beside: TorchModuleBackend, notify: Callable[[str], None] = lambda _line: None
    ) -> None:
        self.device = beside.device
        self.description = beside.description
        self.bytes_per_pixel = beside.bytes_per_pixel
        self.bytes_per_pixel_given = beside.bytes_per_pixel_given
        self._beside = beside
        self._notify = notify
        self._told: set[str] = set()
        with torch.cuda.device(self.device):
            self._weights = StaticWeights(generator, self.device, torch.float16)
            self._kernels, self._failures, without = _kernels(generator.channels, self.device)
            self._first = first_ways(self._weights, self._kernels)
            self._middle = middle_ways(self._kernels)
            self._last = last_ways(self._weights, self._kernels)
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._plain = Ways(self._first["cuDNN"], self._middle["cuDNN"], self._last["cuDNN"])
        self._ways: dict[int, Ways] = {}
        self._exact: dict[int, Exact | None] = {}
        self._graphs: dict[tuple[bool, int, int], Graph] = {}
        self._not_again: set[tuple[bool, int, int]] = set()
        self._latest: tuple[bool, int, int] | None = None
        self._is_short_of_memory = False
        self._done: torch.cuda.Event | None = None
        self.ways = without
        """For people: how the layers are computed, or why not by Triton; changes when it has been measured."""

    @property
    def in_float32(self) -> TorchModuleBackend | None:
        return self._beside.in_float32

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        def enhanced() -> Tensor:
            with torch.inference_mode(), memory_error(image), torch.cuda.device(self.device):
                current = torch.cuda.current_stream(self.device)
                if self._done is not None:
                    current.wait_event(self._done)
                if statistics is not None:
                    self._weights.fold(statistics)
                result = self._enhanced(image, statistics is None, out)
                self._done = current.record_event()
                return result

        return self._with_room(enhanced)

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        return self._with_room(lambda: self._beside.measure(image, statistics, interior))

    def statistics(self, image: Tensor) -> Statistics:
        return self._with_room(lambda: self._beside.statistics(image))

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        return self._with_room(lambda: self._beside.measure_next(image, before, interior))

    def _with_room(self, work: Callable[[], _Result]) -> _Result:
        """Do work; where there is no memory left for it, without the graphs and theirs."""
        try:
            return work()
        except TooLargeError:
            if not self._graphs:
                raise
        self._is_short_of_memory = True
        self._drop(list(self._graphs))
        self._tell("the GPU's memory is short; going on without CUDA graphs")
        return work()

    def _enhanced(self, image: Tensor, is_exact: bool, out: Tensor | None) -> Tensor:
        height, width = image.shape[2:]
        key = is_exact, height, width
        comes_again = key == self._latest
        self._latest = key
        if comes_again and key not in self._graphs and key not in self._not_again and not self._is_short_of_memory:
            self._prepare(image, key)
        if key in self._graphs:
            result = self._graphs[key].run(image)
            return result.clone() if out is None else out.copy_(result)
        exact = self._exact.get(_magnitude(height, width))
        if is_exact and exact is None:
            return self._beside.enhance(image, out=out)
        padded, place = padded_picture(self._weights, height, width)
        place.copy_(image)
        if is_exact:
            assert exact is not None
            result = exact(padded, height, width)
        else:
            ways = self._ways.get(_magnitude(height, width), self._plain)
            result = ways.enhance(self._weights, padded, height, width)
        return result if out is None else out.copy_(result)

    def _prepare(self, image: Tensor, key: tuple[bool, int, int]) -> None:
        """Choose the ways for pictures of about this size, and capture a graph for those of just this one.

        Waits for the card.
        """
        is_exact, height, width = key
        self._not_again.add(key)
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            padded, place = padded_picture(self._weights, height, width)
            place.copy_(image)
            self._choose(padded, height, width, is_exact)
        if len(self._graphs) == _GRAPHS:
            self._drop([next(iter(self._graphs))])
        try:
            self._graphs[key] = Graph(self._network(is_exact, height, width), padded, place, self._stream)
        except RuntimeError as error:
            self._tell(f"torch runs without a CUDA graph, somewhat slower: {_first_line(error)}")
        current.wait_stream(self._stream)

    def _network(self, is_exact: bool, height: int, width: int) -> Callable[[Tensor], Tensor]:
        ways = self._ways[_magnitude(height, width)]
        exact = self._exact.get(_magnitude(height, width))
        if not is_exact:
            return lambda padded: ways.enhance(self._weights, padded, height, width)
        if exact is None:
            return self._by_modules(height, width)
        return lambda padded: exact(padded, height, width)

    def _by_modules(self, height: int, width: int) -> Callable[[Tensor], Tensor]:
        begin = space_to_depth.BLOCK
        return lambda padded: self._beside.enhance(padded[:, :, begin : begin + height, begin : begin + width])

    def _choose(self, padded: Tensor, height: int, width: int, is_exact: bool) -> None:
        size = _magnitude(height, width)
        if self._kernels is not None:
            self._tell(
                "trying kernels of cuDNN and Triton on this card; they are compiled once, which takes some seconds"
            )
        if size not in self._ways:
            first = self._fastest("first", self._first, lambda way: way(padded, height, width))
            x = self._first[first](padded, height, width)
            layer = self._weights.tail[0]
            middle = self._fastest("3x3", self._middle, lambda way: way(x, layer, x))
            last = self._fastest("last", self._last, lambda way: way(x))
            self._ways[size] = Ways(self._first[first], self._middle[middle], self._last[last])
            self.ways = f"at {width}x{height} 9x9 by {first}, 3x3 by {middle}, 9x9 by {last}"
        if is_exact and size not in self._exact:
            modules = self._by_modules(height, width)
            ways: dict[str, Exact | None] = {"modules": None}
            if self._kernels is not None:
                ways |= exact_ways(self._weights, self._ways[size], self._kernels)
            chosen = self._fastest(
                "exact", ways, lambda way: modules(padded) if way is None else way(padded, height, width)
            )
            self._exact[size] = ways[chosen]

    def _fastest(self, what: str, ways: Mapping[str, _Result], run: Callable[[_Result], Tensor]) -> str:
        candidates = {name: partial(run, way) for name, way in ways.items()}
        chosen, errors = fastest(candidates, milliseconds, self._failures)
        of_triton = [name for name in ways if name.startswith("Triton")]
        if of_triton and all(name in errors for name in of_triton):
            self._tell(f"Triton cannot compute {what} layers here: {_first_line(errors[of_triton[-1]])}; using cuDNN")
        return chosen

    def _drop(self, keys: Iterable[tuple[bool, int, int]]) -> None:
        torch.cuda.synchronize(self.device)  # some may be running
        for key in keys:
            del self._graphs[key]
        torch.cuda.empty_cache()

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._notify(line)


def _magnitude(height: int, width: int) -> int:
    """One number for sizes for which the same ways are taken."""
    return (height * width).bit_length()


def _kernels(channels: int, device: torch.device) -> tuple[ModuleType | None, tuple[type[Exception], ...], str]:
    """triton_kernels if it can be used, what may go wrong in a layer, and why it cannot be used."""
    failures: tuple[type[Exception], ...] = (RuntimeError,)
    if channels not in _TRITON_CHANNELS:
        return None, failures, f"no Triton kernels for {channels} channels"
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return None, failures, "no Triton kernels for this card"
    if find_spec("triton") is None:
        return None, failures, "Triton is not installed"
    from triton.errors import TritonError

    from dped_live.backends import triton_kernels

    # Triton compiles by programs of its own, and its launchers by the machine's C compiler.
    return triton_kernels, (*failures, TritonError, OSError, subprocess.SubprocessError), ""


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
