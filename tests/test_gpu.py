"""What only a GPU shows: its numbers beside the CPU's, copies beside the computing, memory that does not grow.

These skip without a GPU, and fail instead with DPED_REQUIRE_GPU=1. Engines are in test_tensorrt.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from dped_live import weights
from dped_live.backends import open_backend, torch_cuda
from dped_live.backends.torch_cuda import TorchCudaBackend, Ways, padded_picture
from dped_live.enhance import Enhancer
from dped_live.frame import PIXEL_FORMATS, Area, CardPlanes, Frame, VideoFormat
from dped_live.network import Network
from dped_live.scene_statistics import ExactPolicy, ScenePolicy, SceneStatistics
from dped_live.statistics import Statistics

from conftest import random_generator, random_table_network
from test_cli import Said, clean, clip, runner
from test_tensorrt import close, picture

YUV = VideoFormat(1280, 720, PIXEL_FORMATS["yuv420p"], "bt709", full_range=False, time_base=Fraction(1, 30))
YUV_10 = replace(YUV, pixel_format=PIXEL_FORMATS["yuv420p10le"])

_COUNT, _WARM = 1000, 50


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        if os.environ.get("DPED_REQUIRE_GPU") == "1":
            pytest.fail("DPED_REQUIRE_GPU=1, and torch finds no GPU")
        pytest.skip("needs an NVIDIA GPU")


def frames(fmt: VideoFormat, count: int, different: int = 4) -> Iterator[Frame]:
    random = np.random.default_rng(0)
    depth, kind = fmt.pixel_format.depth, np.uint8 if fmt.pixel_format.depth == 8 else np.uint16
    shapes = [(fmt.height, fmt.width), *[(fmt.height // 2, fmt.width // 2)] * 2]
    pictures = [tuple(random.integers(0, 1 << depth, shape).astype(kind) for shape in shapes) for _ in range(different)]
    for number in range(count):
        yield Frame(pictures[number % different], fmt, Fraction(number, 30), Fraction(1, 30))


@pytest.mark.parametrize("network", [random_generator(64, 4), random_generator(32, 2), random_table_network()])
def test_torch_on_a_gpu_gives_what_the_cpu_gives_in_float32(network: Network) -> None:
    image = picture(360, 640)
    backend = open_backend(network, "cuda", runner="torch")
    with torch.inference_mode():
        own = network.statistics(image)
        expected = network(image, own)
    on_card = type(own)(own.mean.cuda(), own.variance.cuda())
    close(backend.enhance(image.cuda(), on_card), expected)
    close(backend.enhance(image.cuda()), expected)


@pytest.mark.parametrize("fmt", [YUV, YUV_10], ids=["8 bit", "10 bit"])
def test_frames_on_a_gpu_are_those_of_the_cpu(fmt: VideoFormat) -> None:
    network, small = random_generator(8, 2), replace(fmt, width=320, height=180)
    on_card = Enhancer(open_backend(network, "cuda", "fp32"), small, ExactPolicy())
    on_cpu = Enhancer(open_backend(network, "cpu", "fp32"), small, ExactPolicy())
    pictures = list(frames(small, 8))
    for frame, expected in zip(on_card.map(pictures), on_cpu.map(pictures), strict=True):
        assert frame.pts == expected.pts
        for plane, truth in zip(frame.planes, expected.planes, strict=True):
            # Another order of summing may round to the next level.
            assert np.abs(plane.astype(int) - truth).max() <= 1


def test_frames_under_way_give_the_same_as_one_by_one() -> None:
    backend = open_backend(random_generator(8, 2), "cuda", runner="torch")
    pictures = list(frames(YUV, 12, 12))
    together = list(Enhancer(backend, YUV, ExactPolicy(), 0.7).map(pictures))
    alone = Enhancer(backend, YUV, ExactPolicy(), 0.7)
    for frame, single in zip(together, map(alone.enhance, pictures), strict=True):
        for plane, truth in zip(frame.planes, single.planes, strict=True):
            np.testing.assert_array_equal(plane, truth)


@pytest.mark.parametrize("fmt", [YUV, YUV_10], ids=["8 bit", "10 bit"])
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_pictures_that_a_card_has_decoded_never_come_to_the_host(fmt: VideoFormat, strength: float) -> None:
    backend = open_backend(random_generator(8, 2), "cuda", runner="torch")
    area = Area(80, 640, 0, fmt.width)
    with torch.inference_mode():
        statistics = backend.statistics(picture(360, 640).cuda())
    policy = ScenePolicy([SceneStatistics(Fraction(0), None, statistics, 0.4, area)])

    def download() -> tuple[np.ndarray, ...]:
        raise AssertionError("not needed")

    def on_card(frame: Frame) -> Frame:
        y, u, v = (torch.from_numpy(plane.astype(np.int32)) for plane in frame.planes)
        shift, kind = (0, torch.uint8) if fmt == YUV else (6, torch.uint16)
        stored = [(part << shift).to(kind).cuda() for part in (y, torch.stack((u, v), dim=-1))]
        return replace(frame, planes=CardPlanes(torch.cuda.current_device(), stored, download))

    other = replace(fmt, chroma_location="center")  # else borders are copied from the host
    pictures = list(frames(fmt, 12, 12))
    expected = Enhancer(backend, other, policy, strength).map(pictures)
    results = Enhancer(backend, other, policy, strength).map(map(on_card, pictures))
    for result, truth in zip(results, expected, strict=True):
        for plane, own in zip(result.planes, truth.planes, strict=True):
            np.testing.assert_array_equal(plane, own)


def test_copies_run_beside_the_computing() -> None:
    backend = open_backend(random_generator(64, 4), "cuda", runner="torch")
    enhancer = Enhancer(backend, YUV, ExactPolicy())
    for _ in enhancer.map(frames(YUV, 5)):
        pass
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in enhancer.map(frames(YUV, 20)):
            pass
        torch.cuda.synchronize()
    copies: dict[str, list[tuple[float, float]]] = {"HtoD": [], "DtoH": []}
    kernels = []
    for event in profile.events() or []:
        span = event.time_range.start, event.time_range.end
        direction = next((name for name in copies if f"Memcpy {name}" in event.name), None)
        if direction is not None:
            copies[direction].append(span)
        elif str(event.device_type).endswith("CUDA") and not event.name.startswith(("Mem", "gpu")):
            kernels.append(span)
    for direction, spans in copies.items():
        big = [span for span in spans if span[1] - span[0] > 1]  # microseconds: not the flags
        beside = [span for span in big if any(begin < span[1] and span[0] < end for begin, end in kernels)]
        assert len(beside) >= len(big) // 2 > 0, f"{direction}: {len(beside)} of {len(big)} copies beside a kernel"


CHANNELS = [(64, 4), (32, 2), (8, 2)]
"""Of the published models, and of one for which there are no Triton kernels."""


def noise(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def on_card(own: Statistics) -> Statistics:
    return Statistics(own.mean.cuda(), own.variance.cuda())


def torch_backend(channels: int, blocks: int) -> TorchCudaBackend:
    """One that has nothing to complain of."""

    def notify(line: str) -> None:
        assert line.startswith("trying"), line

    backend = open_backend(random_generator(channels, blocks), "cuda", tile="off", runner="torch", notify=notify)
    assert isinstance(backend, TorchCudaBackend)
    return backend


def several_statistics(channels: int, blocks: int, count: int) -> list[Statistics]:
    generator = random_generator(channels, blocks)
    with torch.inference_mode():
        return [on_card(generator.statistics(picture(64, 64) ** (1 + number / 4))) for number in range(count)]


@pytest.mark.parametrize("network", CHANNELS)
@pytest.mark.parametrize("is_exact", [False, True])
def test_a_graph_gives_what_its_layers_give(network: tuple[int, int], is_exact: bool) -> None:
    backend, image = torch_backend(*network), noise(181, 323).cuda()
    statistics = None if is_exact else several_statistics(*network, 1)[0]
    first, captured, replayed = (backend.enhance(image, statistics) for _ in range(3))
    assert len(backend._graphs) == 1
    assert torch.equal(captured, replayed)
    close(captured, first.cpu())
    with torch.inference_mode():
        padded, place = padded_picture(backend._weights, 181, 323)
        place.copy_(image)
        assert torch.equal(backend._network(is_exact, 181, 323)(padded), captured)
    other = noise(181, 323).flip(3).contiguous()
    expected = torch_backend(*network).enhance(other.cuda(), statistics)
    close(backend.enhance(other.cuda(), statistics), expected.cpu())


def test_new_statistics_take_effect_in_a_graph() -> None:
    backend, image = torch_backend(64, 4), picture(180, 320)
    generator = random_generator(64, 4)
    for own in several_statistics(64, 4, 5):
        enhanced = backend.enhance(image.cuda(), own)
        with torch.inference_mode():
            close(enhanced, generator(image, Statistics(own.mean.cpu(), own.variance.cpu())))
    assert len(backend._graphs) == 1


def test_frames_on_their_way_keep_their_own_statistics() -> None:
    backend, image = torch_backend(64, 4), picture(360, 640).cuda()
    given = several_statistics(64, 4, 3)
    alone = []
    for number in range(12):
        alone.append(backend.enhance(image, given[number % 3]))
        torch.cuda.synchronize()
    together = [backend.enhance(image, given[number % 3]) for number in range(12)]
    # And from one stream to the next.
    streams = [torch.cuda.Stream() for _ in range(3)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    crossing = []
    for number in range(12):
        with torch.cuda.stream(streams[number % 3]):
            crossing.append(backend.enhance(image, given[number % 3]))
    torch.cuda.synchronize()
    for number in range(3, 12):
        assert torch.equal(together[number], alone[number])
        assert torch.equal(crossing[number], alone[number])


def test_sizes_take_turns() -> None:
    backend, generator = torch_backend(32, 2), random_generator(32, 2)
    own = several_statistics(32, 2, 1)[0]
    given = Statistics(own.mean.cpu(), own.variance.cpu())
    for height, width in [(90, 160), (97, 161), (33, 500), (90, 160), (1, 7), (97, 161)]:
        image = noise(height, width)
        with torch.inference_mode():
            expected = generator(image, given)
        for _ in range(3):
            close(backend.enhance(image.cuda(), own), expected)
        assert len(backend._graphs) <= 2


@pytest.mark.parametrize("channels", [64, 32])
@pytest.mark.parametrize("size", [(1, 1), (67, 131), (180, 320)])
def test_triton_kernels_on_a_card(channels: int, size: tuple[int, int]) -> None:
    """Every tiling that the card has room for, against float32 on the CPU."""
    pytest.importorskip("triton")
    from triton.errors import TritonError

    generator, image = random_generator(channels, 1), noise(*size)
    backend = torch_backend(channels, 1)
    weights, kernels = backend._weights, backend._kernels
    assert kernels is not None
    middle = torch_cuda.middle_ways(kernels)
    worked = 0
    with torch.inference_mode():
        own = generator.statistics(image)
        expected, exact = generator(image, own), generator(image)
        weights.fold(on_card(own))
        padded, place = padded_picture(weights, *size)
        place.copy_(image)
        for tiling in kernels.MIDDLE_TILINGS:
            name = f"Triton, {tiling}"
            for first in [first for key, first in backend._first.items() if key.startswith("Triton")]:
                for last in [last for key, last in backend._last.items() if key.startswith("Triton")]:
                    ways = Ways(first, middle[name], last)
                    try:
                        enhanced = ways.enhance(weights, padded, *size)
                        by_own = torch_cuda.exact_ways(weights, ways, kernels)[name](padded, *size)
                    except TritonError:
                        continue
                    worked += 1
                    close(enhanced, expected)
                    if min(size) > 1:
                        close(by_own, exact)
    assert worked


@pytest.mark.parametrize("is_exact", [False, True])
def test_an_overflow_is_seen_whatever_computes_it(is_exact: bool) -> None:
    generator = random_generator(64, 4)
    next(generator.tail.parameters()).detach().mul_(1e6)
    backend = open_backend(generator, "cuda", tile="off", runner="torch")
    own = several_statistics(64, 4, 1)[0]
    for _ in range(3):
        enhanced = backend.enhance(noise(90, 160).cuda(), None if is_exact else own)
        assert not enhanced.isfinite().all()


def test_memory_is_flat_while_sizes_and_statistics_change() -> None:
    backend = torch_backend(32, 2)
    given = several_statistics(32, 2, 4)
    pictures = [picture(180, 320).cuda(), noise(98, 161).cuda(), picture(180, 320).cuda()]
    held = []
    for number in range(300):
        backend.enhance(pictures[number // 20 % 3], given[number % 4])
        if number in (130, 299):
            torch.cuda.synchronize()
            held.append(torch.cuda.memory_reserved())
    assert held[1] <= held[0]


def test_memory_is_flat_over_a_thousand_frames() -> None:
    small = replace(YUV, width=320, height=180)
    enhancer = Enhancer(open_backend(random_generator(16, 2), "cuda", runner="torch"), small, ExactPolicy(), 0.9)
    held = []
    for number, _ in enumerate(enhancer.map(frames(small, _COUNT))):
        if number in (_WARM, _COUNT - 10):
            held.append(torch.cuda.memory_reserved() + _pinned())
    assert held[1] <= held[0]


def _pinned() -> int:
    """Bytes of pinned host memory that torch holds."""
    return int(torch.cuda.host_memory_stats().get("allocated_bytes.current", 0))


def test_a_file_end_to_end(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clean(tmp_path, monkeypatch)
    model = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(random_generator(8, 1), model)
    dped_live: Callable[..., Said] = runner(model, capsys)
    clip("a.mp4", 30)
    said = dped_live("a.mp4", "-o", "b.mp4")
    assert said.code == 0, said.err
    assert "fp16" in said.err
