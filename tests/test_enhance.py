"""Frames in, frames out: mixing, times, alpha, and left and right, on every device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from threading import get_ident

import numpy as np
import pytest
import torch
from torch import Tensor

from dped_live import color
from dped_live.backends import Backend, open_backend
from dped_live.backends.torch_module import TorchModuleBackend
from dped_live.enhance import Enhancer, _division, side_by_side_format
from dped_live.frame import PIXEL_FORMATS, Area, Frame, VideoFormat
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.scene_statistics import ExactPolicy, Normalisation
from dped_live.statistics import Statistics

from conftest import random_generator, random_table_network

RGB = VideoFormat(20, 12, PIXEL_FORMATS["rgb24"])
YUV = VideoFormat(20, 12, PIXEL_FORMATS["yuv420p"], "bt709", full_range=False)


@pytest.fixture(params=["cpu", "cuda"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("DPED_REQUIRE_GPU") == "1":
            pytest.fail("DPED_REQUIRE_GPU=1, and torch finds no GPU")
        pytest.skip("needs an NVIDIA GPU")
    return open_backend(random_generator(), request.param, "fp32")


def frame(fmt: VideoFormat = RGB, seed: int = 0, alpha: bool = False) -> Frame:
    random = np.random.default_rng(seed)
    shapes = [(fmt.height, fmt.width, 3)]
    if fmt.pixel_format.kind == "yuv":
        shapes = [(fmt.height, fmt.width), *[(fmt.height // 2, fmt.width // 2)] * 2]  # type: ignore[list-item]
    planes = tuple(random.integers(0, 256, shape).astype(np.uint8) for shape in shapes)
    for plane in planes:
        plane.setflags(write=False)  # whoever receives a frame only reads
    mask = random.integers(0, 256, (fmt.height, fmt.width)).astype(np.uint8) if alpha else None
    return Frame(planes, fmt, Fraction(7, 30), Fraction(1, 30), mask)


def network_output(backend: Backend, picture: Frame) -> np.ndarray:
    """Levels (H, W, 3), not rounded."""
    image = torch.from_numpy(picture.planes[0].astype(np.float16) / 255).float().permute(2, 0, 1)[None]
    enhanced = backend.enhance(image.to(backend.device)).cpu()
    levels: np.ndarray = enhanced[0].permute(1, 2, 0).numpy().clip(0, 1) * 255
    return levels


def test_full_strength_is_the_network_s_output(backend: Backend) -> None:
    picture = frame()
    result = Enhancer(backend, RGB, ExactPolicy()).enhance(picture)
    expected = network_output(backend, picture)
    assert np.abs(result.planes[0] - expected).max() <= 0.51
    assert (result.pts, result.duration, result.format) == (picture.pts, picture.duration, RGB)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_strength_mixes_linearly(backend: Backend, strength: float) -> None:
    picture = frame()
    image = torch.from_numpy(picture.planes[0].astype(np.float16) / 255).float().permute(2, 0, 1)[None]
    after = backend.enhance(image.to(backend.device)).cpu()
    expected = ((1 - strength) * image + strength * after).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(Enhancer(backend, RGB, ExactPolicy(), strength).enhance(picture).planes[0] - expected).max() <= 0.51


def test_no_strength_leaves_the_planes_alone(backend: Backend) -> None:
    picture = frame(YUV)
    result = Enhancer(backend, YUV, ExactPolicy(), strength=0).enhance(picture)
    assert all(after is before for after, before in zip(result.planes, picture.planes, strict=True))


def test_frames_of_a_video_keep_their_times_and_do_not_mix(backend: Backend) -> None:
    pictures = [replace(frame(YUV, seed), pts=Fraction(seed * seed, 90000)) for seed in range(5)]

    def endless() -> Iterator[Frame]:
        yield from pictures

    enhancer = Enhancer(backend, YUV, ExactPolicy())
    results = list(enhancer.map(endless()))
    assert [result.pts for result in results] == [picture.pts for picture in pictures]
    # Kept results are not written to by later frames, though the staging is reused.
    for picture, result in zip(pictures, results, strict=True):
        again = Enhancer(backend, YUV, ExactPolicy()).enhance(picture)
        for one, other in zip(result.planes, again.planes, strict=True):
            assert np.array_equal(one, other)


def rgb_of(picture: Frame) -> Tensor:
    return color.to_rgb([torch.from_numpy(plane.copy()) for plane in picture.planes], picture.format)


class Given:
    """A policy that gives all frames the same statistics, and notes which thread asks."""

    def __init__(self, statistics: Statistics) -> None:
        self._plan = Normalisation(statistics, 1, Area(0, RGB.height, 0, RGB.width))
        self.asked_by: set[int] = set()

    def normalisation(self, frame: Frame) -> Normalisation:  # noqa: ARG002
        self.asked_by.add(get_ident())
        return self._plan

    def learn(self, measured: Statistics) -> None:
        raise AssertionError(measured)


@pytest.fixture
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("network", [random_generator(), random_table_network()], ids=["generator", "tables"])
def test_frames_computed_at_a_time_come_in_order_as_if_one_by_one(network: Network) -> None:
    backend = open_backend(network, "cpu", "fp32", runner="torch" if isinstance(network, Generator) else "auto")
    frames = [replace(frame(seed=seed), pts=Fraction(seed, 30)) for seed in range(11)]
    statistics = backend.statistics(rgb_of(frames[3]))
    policy = Given(statistics)
    one_by_one = Enhancer(backend, RGB, policy)
    computed_by = set()

    class Noting:
        """The backend, which notes which thread it runs in."""

        def __getattr__(self, name: str) -> object:
            computed_by.add(get_ident())
            return getattr(backend, name)

    results = list(Enhancer(Noting(), RGB, policy).map(frames))  # type: ignore[arg-type]
    assert [result.pts for result in results] == [before.pts for before in frames]
    for result, before in zip(results, frames, strict=True):
        assert np.array_equal(result.planes[0], one_by_one.enhance(before).planes[0])
    assert policy.asked_by == {get_ident()}
    assert len(computed_by - {get_ident()}) > 1
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 18])
def test_no_core_is_left_idle(threads: int) -> None:
    count, each = _division(threads)
    assert count <= 4
    assert threads <= count * each < threads + each


@pytest.mark.usefixtures("three_threads")
def test_what_fails_in_one_of_several_threads_is_raised() -> None:
    backend = open_backend(random_generator(), "cpu", "fp32", runner="torch")
    good = frame()
    statistics = backend.statistics(rgb_of(good))
    bad = replace(good, planes=(good.planes[0][:, :, 0],))
    results = Enhancer(backend, RGB, Given(statistics)).map([good, bad, good])
    assert next(results).pts == good.pts
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        list(results)
    assert torch.get_num_threads() == 3


def test_alpha_is_carried_beside_the_colours(backend: Backend) -> None:
    picture = frame(alpha=True)
    assert picture.alpha is not None
    result = Enhancer(backend, RGB, ExactPolicy()).enhance(picture)
    assert result.alpha is picture.alpha
    both = Enhancer(backend, RGB, ExactPolicy(), before_after=True).enhance(picture)
    assert both.alpha is not None
    assert np.array_equal(both.alpha, np.concatenate([picture.alpha, picture.alpha], axis=1))


@pytest.mark.parametrize(
    ("quarter_turns", "matrix"),
    [
        # Nine numbers of ISO 14496-12; how often np.rot90 turns the coded picture into the shown one.
        (0, None),
        (-1, (0, 1 << 16, 0, -(1 << 16), 0, 0, 12 << 16, 0, 1 << 30)),
        (2, (-(1 << 16), 0, 0, 0, -(1 << 16), 0, 20 << 16, 12 << 16, 1 << 30)),
        (1, (0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 20 << 16, 1 << 30)),
    ],
)
def test_before_is_left_and_after_right_as_seen(
    backend: Backend, quarter_turns: int, matrix: tuple[int, ...] | None
) -> None:
    fmt = replace(RGB, display_matrix=matrix)
    picture = frame(fmt)
    result = Enhancer(backend, fmt, ExactPolicy(), before_after=True).enhance(picture)
    assert (result.format.width, result.format.height) == (
        side_by_side_format(fmt).width,
        side_by_side_format(fmt).height,
    )
    assert result.planes[0].shape[:2] == (result.format.height, result.format.width)
    shown = np.rot90(result.planes[0], quarter_turns)
    before, after = np.split(shown, 2, axis=1)
    assert np.array_equal(before, np.rot90(picture.planes[0], quarter_turns))
    expected = np.rot90(network_output(backend, picture), quarter_turns)
    assert np.abs(after - expected).max() <= 0.51


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(backend: Backend, strength: float) -> None:
    with pytest.raises(ValueError, match="strength is from 0 to 1"):
        Enhancer(backend, RGB, ExactPolicy(), strength)


@pytest.mark.parametrize("fmt", [RGB, YUV], ids=["rgb", "yuv"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_borders_are_left_as_they_are(backend: Backend, fmt: VideoFormat, strength: float) -> None:
    class Bordered(ExactPolicy):
        def normalisation(self, frame: Frame) -> Normalisation:
            return Normalisation(None, 1, Area(2, 8, 4, frame.format.width))

    picture = frame(fmt)
    picture = replace(picture, planes=tuple(plane // 4 + 96 for plane in picture.planes))  # colours that exist
    both = Enhancer(backend, fmt, Bordered(), strength, before_after=True).enhance(picture)
    result = Enhancer(backend, fmt, Bordered(), strength).enhance(picture)
    inside = Enhancer(backend, fmt, ExactPolicy(), strength).enhance(picture.cropped(Area(2, 8, 4, fmt.width))[0])
    for after, before, part, joined in zip(result.planes, picture.planes, inside.planes, both.planes, strict=True):
        scale = 12 // len(before)
        rows, columns = slice(2 // scale, 8 // scale), slice(4 // scale, None)
        changed = after != before
        changed[rows, columns] = False
        assert not changed[:, : max(0, 4 // scale - 1)].any()
        assert not changed[: 2 // scale].any()
        assert not changed[8 // scale :].any()
        if scale == 1:
            assert np.array_equal(after[rows, columns], part)
        if fmt == RGB:
            assert np.array_equal(joined, np.concatenate([before, after], axis=1))


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p10le", "yuv444p", "rgb24", "gray"])
@pytest.mark.parametrize("size", [(12, 20), (11, 19)])
def test_a_cropped_frame_is_that_part(name: str, size: tuple[int, int]) -> None:
    fmt = VideoFormat(size[1], size[0], PIXEL_FORMATS[name], "bt709" if "yuv" in name else "rgb", full_range=False)
    rgb = torch.rand(1, 3, *size)
    whole = Frame(tuple(plane.numpy() for plane in color.from_rgb(rgb, fmt)), fmt)
    for area in (Area(0, size[0], 0, size[1]), Area(3, 8, 5, 11), Area(4, size[0], 6, size[1])):
        part, within = whole.cropped(area)
        assert part.planes[0].shape[:2] == (part.format.height, part.format.width)
        rows, columns = slice(within.top, within.bottom), slice(within.left, within.right)
        expected = whole.planes[0][area.top : area.bottom, area.left : area.right]
        assert np.array_equal(part.planes[0][rows, columns], expected)
        color.to_rgb([torch.from_numpy(plane) for plane in part.planes], part.format)  # the planes fit together


def overflowing() -> Backend:
    """A network in half precision whose activations are greater than that can hold."""
    generator = random_generator()
    with torch.no_grad():
        generator.first.weight.mul_(1e6)
        generator.tail[0].weight.mul_(1e-5)  # type: ignore[operator]
    return TorchModuleBackend(generator, torch.device("cpu"), torch.float16, "half")


@pytest.mark.parametrize("before_after", [False, True])
def test_a_picture_that_overflows_in_half_precision_is_computed_again_in_float32(before_after: bool) -> None:
    backend = overflowing()
    exact = backend.in_float32
    assert exact is not None
    assert exact.in_float32 is None
    pictures, said = [frame(YUV, seed) for seed in range(3)], list[str]()
    assert not backend.enhance(torch.rand(1, 3, 12, 20)).isfinite().all()
    results = list(Enhancer(backend, YUV, ExactPolicy(), 0.8, before_after, said.append).map(pictures))
    expected = list(Enhancer(exact, YUV, ExactPolicy(), 0.8, before_after).map(pictures))
    for result, right in zip(results, expected, strict=True):
        for plane, truth in zip(result.planes, right.planes, strict=True):
            np.testing.assert_array_equal(plane, truth)
    assert said == [
        "half precision overflowed in the picture at 0.233 s; it was computed again in fp32, as any other of this kind "
        "will be; --precision fp32 does so from the beginning"
    ]
    statistics = backend.statistics(torch.rand(1, 3, 12, 20))
    assert statistics.mean.isfinite().all()
    assert statistics.variance.isfinite().all()
