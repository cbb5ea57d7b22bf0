"""The generator by OpenVINO, on CPUs and on Intel's GPUs and NPUs.

With given statistics a picture goes through the graph in tiles of one shape. What they overlap is computed twice; where
one is cut off, it is further away than an output pixel looks (Generator.halo), and the outermost end where the picture
does, where the zeros around it belong. So there is one graph, and a bounded memory, for a picture of any size. The
statistics are inputs of the graph: a new scene needs no compiling.

A picture that fits into one tile can be normalised by its own statistics, too. For larger ones torch needs less memory,
and it is torch that measures: OpenVINO's sums have too few digits for float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import openvino as ov
import torch
from torch import Tensor

from dped_live.backends import Backend, Computing
from dped_live.backends.openvino_graph import BIAS, GAIN, IMAGE, GeneratorGraph, Norm
from dped_live.errors import BackendError
from dped_live.generator import Generator
from dped_live.statistics import Statistics

CORE = ov.Core()
"""The only one of this process, and to its end.

On Linux each Core that has used a CPU gives the thread that made it a stack for signals, and unmaps it when it goes
(intel_cpu's SigAltStackSetup). With a second one that stack may still be in use then: the next Ctrl-C, or child that
ends, would be a segmentation fault.
"""

_ACTIVATIONS = 500_000_000
"""Bytes of all tiles that graphs are kept for. A frame of 1080p then takes less than 600 MB in all; how little larger
tiles would win is in benchmarks/NOTES.md."""

_LIVING = 4
"""So many activations are in memory at once, as measured."""

_MOST_GRAPHS = 4
"""A camera or a video needs one or two; photos are of many sizes."""

_LEAST_INTERIOR = 64
"""Tiles that are less high are not thought of, unless there is no other way."""

_TEST_SIDE, _TEST_LEAVES = 256, 400
"""Size of the picture that ranges are taken from, and what is on it."""

_MARGIN = 1.25
"""Of the ranges, over what that picture needs. Photos need up to twice as much, in a few pixels."""


def check_target(target: str) -> None:
    """Raise BackendError unless OpenVINO finds a device of this name: "GPU", "GPU.1" or "NPU"."""
    found = CORE.available_devices
    if target not in {*found, *(name.split(".")[0] for name in found)}:
        raise BackendError(
            f"no device openvino:{target}: OpenVINO finds {' and '.join(found)}; use --device cpu, or install the "
            "device's driver, see https://docs.openvino.ai"
        )


class OpenVinoBackend:
    """Runs a generator by OpenVINO; see backends.Backend. Pictures and results are the host's.

    precision: of weights and activations. in_8_bits: those of most convolutions, for a CPU; what range they need is
    found with a synthetic picture, and so depends on the weights only. The description tells the error.
    beside: the same generator by torch, in float32 if `precision` is fp16, in tiles where it needs them.
    target: OpenVINO's name of the device. side: of the largest tiles; None leaves it to the memory.
    """

    device = torch.device("cpu")
    shares = False

    def __init__(
        self,
        generator: Generator,
        precision: Computing,
        beside: Backend,
        description: str,
        *,
        in_8_bits: bool = False,
        target: str = "CPU",
        side: int | None = None,
    ) -> None:
        self.description = description
        self._generator = generator
        self._precision = precision
        self._beside = beside
        self._target = target
        self._side = side
        self._most_pixels = _ACTIVATIONS // (_LIVING * generator.channels * (4 if precision == "fp32" else 2))
        self._scale = generator.norm_scale.detach().float()
        self._shift = generator.norm_shift.detach().float()
        self._planned = (0, 0)
        self._cut: tuple[list[_Cut], list[_Cut]] = ([], [])
        self._requests: dict[tuple[Norm, int, int], ov.InferRequest] = {}
        self._ranges: list[float] | None = None
        # OpenVINO's norm is not exact enough for float32, and on other devices it has not been tried.
        self._has_norm = target == "CPU" and (precision == "bf16" or in_8_bits)
        self._leaves_to_torch = target == "CPU" and not in_8_bits
        if in_8_bits:
            picture = _dead_leaves()
            exact, largest = self._watched(picture)
            self._ranges = [_MARGIN * value for value in largest]
            error = (self.enhance(picture) - exact).abs()
            decibels = -10 * math.log10(float(error.square().mean()) + 1e-20)
            levels = math.ceil(255 * float(error.max()))
            self.description += f": {decibels:.0f} dB to float32 on a test picture, up to {levels} levels off"

    @property
    def in_float32(self) -> Backend | None:
        return self._beside if self._precision == "fp16" else None

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            rows, columns = self._cuts(image)
            if statistics is None and not (self._has_norm and len(rows) == len(columns) == 1):
                if self._leaves_to_torch:
                    return self._by_torch(image).enhance(image, None, out)
                statistics = self.statistics(image)
            result = torch.empty_like(image) if out is None else out
            # The result may be the image: rows are read before what they overlap is overwritten.
            bands = (image[:, :, cut.outer].clone() for cut in rows)
            band = next(bands)
            for cut in rows:
                below = next(bands, band)
                for across in columns:
                    enhanced = self._enhanced(band[..., across.outer], statistics)
                    result[:, :, cut.place, across.place] = enhanced[:, :, cut.interior, across.interior]
                band = below
            return result

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        return self._by_torch(image).measure(image, statistics)

    def statistics(self, image: Tensor) -> Statistics:
        return self._by_torch(image).statistics(image)

    def _by_torch(self, image: Tensor) -> Backend:
        """Only one of the two has large buffers at a time."""
        if 4 * image.shape[2] * image.shape[3] > self._most_pixels:
            self._requests.clear()
        return self._beside

    def _enhanced(self, tile: Tensor, statistics: Statistics | None) -> Tensor:
        """Of the request, until the next call."""
        request = self._request("exact" if statistics is None else "given", tile.shape[2], tile.shape[3])
        _input(request, IMAGE).copy_(tile)
        if statistics is not None:
            gain, bias = statistics.gain_and_bias(self._scale, self._shift)
            _input(request, GAIN).copy_(gain)
            _input(request, BIAS).copy_(bias)
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data)

    def _request(self, norm: Norm, height: int, width: int) -> ov.InferRequest:
        """The newest ones are kept, as many as have room together."""
        key = norm, height, width
        if (request := self._requests.pop(key, None)) is None:
            while self._requests and (
                len(self._requests) == _MOST_GRAPHS or height * width + self._kept_pixels() > self._most_pixels
            ):
                del self._requests[next(iter(self._requests))]
            # Beside the error of 8 bits what bf16 takes off the picture does not count.
            splits = self._precision == "bf16" and self._ranges is None
            graph = GeneratorGraph(self._generator, norm, height, width, splits, self._ranges)
            request = self._compiled(graph.model(), self._precision)
        self._requests[key] = request
        return request

    def _kept_pixels(self) -> int:
        return sum(height * width for _, height, width in self._requests)

    def _compiled(self, model: ov.Model, precision: Computing) -> ov.InferRequest:
        hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if self._target == "CPU":
            settings |= {"INFERENCE_NUM_THREADS": str(torch.get_num_threads()), "ENABLE_CPU_PINNING": "NO"}
        try:
            return CORE.compile_model(model, self._target, settings).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise BackendError(
                f"OpenVINO cannot compile the network for {self._target} ({reason}); use --backend torch"
            ) from error

    def _watched(self, picture: Tensor) -> tuple[Tensor, list[float]]:
        """What float32 makes of a picture, and what its convolutions in 8 bits take at most."""
        graph = GeneratorGraph(self._generator, "exact", picture.shape[2], picture.shape[3])
        request = self._compiled(graph.watched(), "fp32")
        _input(request, IMAGE).copy_(picture)
        request.infer()
        enhanced, *largest = (tensor.data for tensor in request.output_tensors)
        return torch.from_numpy(enhanced.copy()), [float(value) for value in largest]

    def _cuts(self, image: Tensor) -> tuple[list[_Cut], list[_Cut]]:
        """The tiles of a picture, as rows and columns."""
        height, width = image.shape[2:]
        if self._planned != (height, width):
            halo = self._generator.halo
            longest = max(height, width) if self._side is None else self._side + 2 * halo
            tall, wide = _tile(height, width, halo, self._most_pixels, longest)
            self._cut = list(_cuts(height, tall, halo)), list(_cuts(width, wide, halo))
            self._planned = height, width
        return self._cut


def _input(request: ov.InferRequest, which: int) -> Tensor:
    return torch.from_numpy(request.get_input_tensor(which).data)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A tile along one axis. outer: in the picture; place: what it is computed for; interior: that, within outer."""

    outer: slice
    place: slice
    interior: slice


def _tile(height: int, width: int, halo: int, most_pixels: int, longest: int) -> tuple[int, int]:
    """Height and width, halo included, of tiles that compute the fewest pixels in all."""
    best = math.inf
    found = height, width
    for rows in range(1, height + 1):
        tall = _outer(height, halo, rows)
        wide = min(width, longest, most_pixels // tall)
        if tall <= longest and (wide == width or wide > 2 * halo):
            columns = 1 if wide == width else math.ceil((width - 2 * halo) / (wide - 2 * halo))
            wide = _outer(width, halo, columns)
            if rows * tall * columns * wide < best:
                best = rows * tall * columns * wide
                found = tall, wide
        if tall <= 2 * halo + _LEAST_INTERIOR and best < math.inf:
            break
    return found


def _outer(length: int, halo: int, count: int) -> int:
    """Of `count` equal tiles, the length with the halo."""
    return length if count == 1 else min(length, math.ceil((length - 2 * halo) / count) + 2 * halo)


def _cuts(length: int, outer: int, halo: int) -> Iterator[_Cut]:
    """From border to border; the last two overlap by more than the halo if they have to."""
    start = end = 0
    while end < length:
        start = min(max(0, end - halo), length - outer)
        first, end = end, length if start + outer == length else start + outer - halo
        yield _Cut(slice(start, start + outer), slice(first, end), slice(first - start, end - start))


def _dead_leaves() -> Tensor:
    """A picture whose edges and sizes are distributed as in photos: discs of all sizes that hide one another (Lee,
    Mumford and Huang: Occlusion models for natural images, 2001). float32 (1, 3, H, W)."""
    random = torch.Generator().manual_seed(0)
    down, across = torch.meshgrid(torch.arange(_TEST_SIDE), torch.arange(_TEST_SIDE), indexing="ij")
    picture = torch.rand(3, 1, 1, generator=random).expand(3, _TEST_SIDE, _TEST_SIDE).clone()
    least, most = 2, _TEST_SIDE / 3
    for x, y, share, *color in torch.rand(_TEST_LEAVES, 6, generator=random).tolist():
        # As many are larger than r as r to the power of -2.
        radius = (share * least**-2 + (1 - share) * most**-2) ** -0.5
        disc = (across - x * _TEST_SIDE).square() + (down - y * _TEST_SIDE).square() < radius**2
        picture[:, disc] = torch.tensor(color)[:, None]
    return picture[None]
