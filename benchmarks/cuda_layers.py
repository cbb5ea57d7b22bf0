"""The torch path on a card, layer by layer, against what the card can do; gpu.py runs this, too.

    python benchmarks/cuda_layers.py [--model iphone] [--sizes 1280x720 1920x1080 3840x2160]

The card's ceilings are measured first: a product of 8192 x 8192 half-precision matrices and a copy of 1 GB. A layer's
roofline is the time in which the card does its arithmetic or moves its activations, each once, whichever takes longer;
the network's is the sum. Then:

    paths    pictures a second in the card's memory, with given and exact statistics, of each step of the way from
             torch's modules to what open_backend gives
    layers   milliseconds and part of the roofline, of every way to compute each layer
    FP8      the 3x3 layer in e4m3, if the card has it, beside the half-precision one; and what it does to the picture,
             which needs no card: ten layers with inputs and weights rounded to e4m3, against float32 on the CPU
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from dped_live import weights
from dped_live.backends import open_backend, torch_cuda
from dped_live.backends.torch_cuda import (
    Middle,
    StaticWeights,
    TorchCudaBackend,
    Ways,
    milliseconds,
    padded_picture,
)
from dped_live.errors import DpedError
from dped_live.generator import Generator

SIZES = ("1280x720", "1920x1080", "3840x2160")

_timed = partial(milliseconds, runs=15)

_E4M3_LARGEST = 448
_E4M3_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class Cost:
    """For each pixel: floating-point operations, and bytes of activations in half precision read or written."""

    operations: float
    moved: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a card does in a second: floating-point operations of matrix products, and bytes read or written."""

    operations: float
    moved: float

    def milliseconds(self, cost: Cost, pixels: int) -> float:
        return 1000 * pixels * max(cost.operations / self.operations, cost.moved / self.moved)


def layer_costs(channels: int) -> dict[str, Cost]:
    """Of each kind of layer, its input read once and its output written once."""
    nine, three = 2 * 81 * 3 * channels, 2 * 9 * channels * channels
    activation = 2 * channels
    return {
        "9x9, first": Cost(nine, 6 + activation),
        "3x3": Cost(three, 2 * activation),
        "3x3 with skip": Cost(three, 3 * activation),
        "9x9, last": Cost(nine, activation + 6),
    }


def network_costs(channels: int, blocks: int, is_exact: bool) -> list[Cost]:
    """Of all layers. Exact: with the sums in the convolutions, and the norm where the next one reads."""
    costs = layer_costs(channels)
    plain = costs["3x3"]
    if not is_exact:
        return [costs["9x9, first"], *[plain, costs["3x3 with skip"]] * blocks, plain, plain, costs["9x9, last"]]
    # A block ends where the next layer reads: its input, too, and but for the last one the sum is written.
    joining = Cost(plain.operations, 4 * 2 * channels)
    residual = [plain, plain, *[joining, plain] * (blocks - 1)]
    return [costs["9x9, first"], *residual, costs["3x3 with skip"], plain, costs["9x9, last"]]


def roofline(ceilings: Ceilings, network: Generator, pixels: int, is_exact: bool) -> float:
    """Milliseconds."""
    costs = network_costs(network.channels, network.blocks, is_exact)
    return sum(ceilings.milliseconds(cost, pixels) for cost in costs)


def as_size(text: str) -> tuple[int, int]:
    """Width and height, of WIDTHxHEIGHT."""
    width, height = map(int, text.split("x"))
    return width, height


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def cell(milliseconds: float, least: float) -> str:
    return f"{milliseconds:.3f} ms, {1000 / milliseconds:.0f} fps, {100 * least / milliseconds:.0f} %"


def report(network: Generator, sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Lines of Markdown. Needs a card. sizes: width and height."""
    with torch.inference_mode():
        ceilings = _ceilings()
        yield (
            f"Ceilings: {ceilings.operations / 1e12:.0f} TFLOP/s in half-precision products of 8192, "
            f"{ceilings.moved / 1e12:.2f} TB/s in copies of 1 GB\n"
        )
        for width, height in sizes:
            yield from _paths(network, ceilings, height, width)
            yield from _layers(network, ceilings, height, width)
        yield from _fp8(network, *sizes[0][::-1])


def _ceilings() -> Ceilings:
    side = 8192
    a, b = torch.randn((2, side, side), device="cuda").half()
    source = torch.randint(255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    product = _timed(partial(torch.matmul, a, b))
    copied = _timed(partial(target.copy_, source))
    return Ceilings(2 * side**3 / (product / 1000), 2 * source.numel() / (copied / 1000))


def _paths(network: Generator, ceilings: Ceilings, height: int, width: int) -> Iterator[str]:
    image = torch.rand((1, 3, height, width), device="cuda")
    said: list[str] = []
    backend = open_backend(network, "cuda", tile="off", notify=said.append, runner="torch")
    assert isinstance(backend, TorchCudaBackend)
    modules, static = backend._beside, backend._weights
    own = backend.statistics(image)
    # What has been chosen is known when a size has come twice.
    for given in (own, None):
        for _ in range(3):
            backend.enhance(image, given)
    padded, place = padded_picture(static, height, width)
    place.copy_(image)
    static.fold(own)
    first, middle, last = backend._first, backend._middle, backend._last
    eager = {
        "folded": Ways(first["cuDNN"], middle["cuDNN"], last["cuDNN"]),
        "ReLU in cuDNN": Ways(first["cuDNN"], middle["cuDNN with its ReLU"], last["cuDNN"]),
        "and 9x9 in blocks": Ways(first["cuDNN in blocks"], middle["cuDNN with its ReLU"], last["cuDNN in blocks"]),
        "the fastest of each": backend._ways[torch_cuda._magnitude(height, width)],
    }
    least, least_exact = (roofline(ceilings, network, height * width, is_exact) for is_exact in (False, True))
    rows = [
        [
            "torch's modules",
            cell(_timed(partial(modules.enhance, image, own)), least),
            cell(_timed(partial(modules.enhance, image)), least_exact),
        ]
    ]
    for name, ways in eager.items():
        rows.append([name, _tried(partial(ways.enhance, static, padded, height, width), least, backend._failures), ""])
        if name == "folded":
            with torch.backends.cudnn.flags(benchmark=True, allow_tf32=False):
                timed = _tried(partial(ways.enhance, static, padded, height, width), least, backend._failures)
            rows.append(["folded, cuDNN choosing by trial", timed, ""])
    rows.append(
        [
            "and as a CUDA graph: what dped-live runs",
            cell(_timed(partial(backend.enhance, image, own, image.clone())), least),
            cell(_timed(partial(backend.enhance, image, None, image.clone())), least_exact),
        ]
    )
    yield from table([f"{width}x{height}", "given statistics, of the roofline", "exact statistics"], rows)
    yield f"\n{backend.ways}; exact: {_name_of_exact(backend, height, width)}"
    yield from said
    yield ""


def _name_of_exact(backend: TorchCudaBackend, height: int, width: int) -> str:
    exact = backend._exact[torch_cuda._magnitude(height, width)]
    return "torch's modules" if exact is None else f"Triton, {exact.keywords['tiling']}"  # type: ignore[attr-defined]


def _tried(work: Callable[[], object], least: float, failures: tuple[type[Exception], ...]) -> str:
    """A time, or why there is none."""
    try:
        return cell(_timed(work), least)
    except failures as error:
        return (str(error) or type(error).__name__).splitlines()[0]


def _layers(network: Generator, ceilings: Ceilings, height: int, width: int) -> Iterator[str]:
    backend = open_backend(network, "cuda", tile="off", runner="torch")
    assert isinstance(backend, TorchCudaBackend)
    static, costs = backend._weights, layer_costs(network.channels)
    padded, place = padded_picture(static, height, width)
    place.copy_(torch.rand((1, 3, height, width), device="cuda"))
    x = backend._first["cuDNN"](padded, height, width)
    layer = static.tail[0]

    def row(kind: str, name: str, work: Callable[[], object]) -> list[str]:
        return [kind, name, _tried(work, ceilings.milliseconds(costs[kind], height * width), backend._failures)]

    rows = [row("9x9, first", name, partial(way, padded, height, width)) for name, way in backend._first.items()]
    for name, middle in backend._middle.items():
        rows.append(row("3x3", name, partial(middle, x, layer, None)))
        rows.append(row("3x3 with skip", name, partial(middle, x, layer, x)))
    rows += [row("9x9, last", name, partial(last, x)) for name, last in backend._last.items()]
    kernels = backend._kernels
    if kernels is not None:
        scale, shift = static.scale[0], static.shift[0]
        for tiling in kernels.MIDDLE_TILINGS:
            measuring = partial(kernels.convolve_and_measure, x, None, layer.weight, scale, shift, tiling)
            rows.append(row("3x3", f"Triton, measuring, {tiling}", measuring))
            norm = kernels.Norm(shift, scale, scale, shift)
            normalising = partial(kernels.convolve_and_measure, x, norm, layer.weight, scale, shift, tiling)
            rows.append(row("3x3", f"Triton, normalising and measuring, {tiling}", normalising))
    yield from table([f"layer at {width}x{height}", "computed by", "time, of the roofline"], rows)
    yield ""


def _fp8(network: Generator, height: int, width: int) -> Iterator[str]:
    picture = torch.rand((1, 3, 23, 40), generator=torch.Generator().manual_seed(0))
    picture = F.interpolate(picture, (180, 320), mode="bilinear")
    yield f"FP8 (e4m3) in all 3x3 layers, against float32: {fp8_error(network, picture):.1f} dB"
    backend = open_backend(network, "cuda", tile="off", runner="torch")
    assert isinstance(backend, TorchCudaBackend)
    kernels, static = backend._kernels, backend._weights
    if kernels is None or torch.cuda.get_device_capability() < _E4M3_CAPABILITY:
        yield "This card, or its Triton, has no kernel for it."
        return
    x = torch.rand((1, network.channels, height, width), device="cuda").half()
    x = x.contiguous(memory_format=torch.channels_last)
    layer = static.tail[0]
    small, multiplier = quantised(layer.weight.float())
    narrow, weight = x.to(torch.float8_e4m3fn), small.to(torch.float8_e4m3fn)
    expected = F.relu(F.conv2d(narrow.half(), (small * multiplier[:, None, None, None]).half(), layer.bias, padding=1))
    rows = []
    for tiling in kernels.MIDDLE_TILINGS:
        middle: Middle = backend._middle[f"Triton, {tiling}"]
        by_eight = partial(kernels.convolve, narrow, weight, layer.bias_float, tiling, None, multiplier, torch.half)
        try:
            error = float((by_eight() - expected).abs().max() / expected.abs().max())
            times = (_timed(work) for work in (partial(middle, x, layer, None), by_eight))
            rows.append([str(tiling), *(f"{time:.3f}" for time in times), f"{error:.1e}"])
        except backend._failures as reason:
            rows.append([str(tiling), str(reason).splitlines()[0], "", ""])
    head = [f"3x3 at {width}x{height}, Triton", "half, ms", "e4m3 in, half out, ms", "greatest error, of the largest"]
    yield from table(head, rows)


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, in, 3, 3) rounded to e4m3 with one factor for each output, and these factors."""
    factor = weight.abs().amax(dim=(1, 2, 3)) / _E4M3_LARGEST
    small = (weight / factor[:, None, None, None]).clamp(-_E4M3_LARGEST, _E4M3_LARGEST)
    return small.to(torch.float8_e4m3fn).float(), factor


def fp8_error(network: Generator, image: torch.Tensor) -> float:
    """PSNR in dB, against float32, of a network whose 3x3 layers read inputs and weights in e4m3.

    Inputs are scaled by one factor for a layer, weights by one for each output; sums and skips are float32.
    """
    own = network.statistics(image)
    static = StaticWeights(network, torch.device("cpu"), torch.float32)
    static.fold(own)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        factor = x.abs().max() / _E4M3_LARGEST
        return (x / factor).to(torch.float8_e4m3fn).float() * factor

    def middle(x: torch.Tensor, layer: torch_cuda.Layer, skip: torch.Tensor | None) -> torch.Tensor:
        small, factor = quantised(layer.weight)
        weight = small * factor[:, None, None, None]
        result = F.relu(F.conv2d(rounded(x), weight, layer.bias, padding=1))
        return result if skip is None else result + skip

    ways = Ways(torch_cuda.first_ways(static, None)["cuDNN"], middle, torch_cuda.last_ways(static, None)["cuDNN"])
    height, width = image.shape[2:]
    padded, place = padded_picture(static, height, width)
    place.copy_(image)
    error = ways.enhance(static, padded, height, width).clamp(0, 1) - network(image, own).clamp(0, 1)
    return float(-10 * torch.log10(error.square().mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the torch path on an NVIDIA card, layer by layer.")
    parser.add_argument("--model", default="iphone")
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch finds no GPU; see dped-live doctor", file=sys.stderr)
        return 1
    try:
        network = weights.load(options.model)
        if not isinstance(network, Generator):
            print(f"{options.model} has no layers of this kind; use --model iphone", file=sys.stderr)
            return 1
        for line in report(network, [as_size(size) for size in options.sizes]):
            print(line, flush=True)
    except DpedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
