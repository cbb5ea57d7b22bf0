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
from dped_live.backends import open_backend
from dped_live.enhance import Enhancer
from dped_live.frame import PIXEL_FORMATS, Area, CardPlanes, Frame, VideoFormat
from dped_live.network import Network
from dped_live.scene_statistics import ExactPolicy, ScenePolicy, SceneStatistics

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
