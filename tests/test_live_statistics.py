"""The live policy: steady while the scene is, soon right after it changed. What a future frame brings is not known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch

from dped_live.backends import Backend, open_backend
from dped_live.enhance import Enhancer
from dped_live.frame import PIXEL_FORMATS, Area, Frame, VideoFormat
from dped_live.live_statistics import LivePolicy
from dped_live.metrics import psnr
from dped_live.scene_statistics import DARKEST, ExactPolicy, Policy
from dped_live.statistics import Statistics

from conftest import random_generator

RATE = 30
HEIGHT, WIDTH = 54, 96


@pytest.fixture(scope="module")
def backend() -> Backend:
    return open_backend(random_generator(), "cpu", "fp32")


def scene(seed: int, width: int = WIDTH) -> np.ndarray:
    """A random picture (HEIGHT, width, 3) of 30..230, with structure at all scales."""
    random = np.random.default_rng(seed)
    picture = np.zeros((HEIGHT, width, 3))
    for step in (18, 9, 3):
        coarse = random.random((HEIGHT // step, width // step + 1, 3)) + random.random(
            (HEIGHT // step, width // step + 1, 1)
        )
        picture += np.kron(coarse, np.ones((step, step, 1)))[:, :width] * step
    picture -= picture.min()
    result: np.ndarray = picture / picture.max() * 200 + 30
    return result


def frames(pictures: Sequence[np.ndarray]) -> list[Frame]:
    height, width, _ = pictures[0].shape
    fmt = VideoFormat(width, height, PIXEL_FORMATS["rgb24"], time_base=Fraction(1, RATE))
    return [
        Frame(((picture.clip(0, 255) + 0.5).astype(np.uint8),), fmt, Fraction(number, RATE))
        for number, picture in enumerate(pictures)
    ]


def enhance(backend: Backend, pictures: Sequence[np.ndarray], policy: Policy | None = None) -> list[np.ndarray]:
    sequence = frames(pictures)
    enhancer = Enhancer(backend, sequence[0].format, policy or LivePolicy())
    return [frame.planes[0].astype(float) for frame in enhancer.map(sequence)]


def agreement(backend: Backend, pictures: Sequence[np.ndarray], number: int) -> float:
    """dB between the live picture of this number and the exact one."""
    live = enhance(backend, pictures)[number]
    exact = enhance(backend, [pictures[number]], ExactPolicy())[0]
    return psnr(torch.from_numpy(live / 255), torch.from_numpy(exact / 255))


def test_the_first_picture_is_exact_and_a_still_one_never_changes(backend: Backend) -> None:
    pictures = [scene(1)] * 40
    results = enhance(backend, pictures)
    assert all(np.array_equal(result, results[0]) for result in results)
    assert agreement(backend, pictures[:1], 0) > 60


def test_rounding_is_not_followed(backend: Backend) -> None:
    """The same picture measured again, on other processors, differs in the last digits."""
    policy = LivePolicy()
    random = np.random.default_rng(0)
    first = backend.statistics(torch.rand(1, 3, 20, 20))
    for number, frame in enumerate(frames([scene(1)] * 80)):
        plan = policy.normalisation(frame)
        if plan.measured:
            rounding = 1 + 1e-6 * random.standard_normal() if number else 1
            policy.learn(Statistics(first.mean * rounding, first.variance * rounding))
        if number:
            assert plan.statistics is not None
            assert torch.equal(plan.statistics.mean, first.mean)
            assert torch.equal(plan.statistics.variance, first.variance)


def test_what_passes_the_lens_changes_nothing(backend: Backend) -> None:
    """An object slides in, a hand comes and goes within two seconds, a flash: the scene after it is what it was."""
    still = scene(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    slid = [np.where(((x - 3 * number) ** 2 + (y - 30) ** 2 < 15**2)[..., None], 0, still) for number in range(-5, 12)]
    random = np.random.default_rng(0)
    hand = [90 + 10 * random.random((1, 1, 3)) + 4 * scene(5) / 255 for _ in range(30)]
    for passing in (slid, hand, [still * 0.3 + 180], [still * 0.3 + 180] * 2):
        results = enhance(backend, [still] * 12 + list(passing) + [still] * 3)
        assert np.abs(results[-1] - results[0]).max() <= 1
        assert abs(results[-1].mean() - results[0].mean()) < 0.1


def test_a_pan_does_not_flicker(backend: Backend) -> None:
    wide = scene(2, 4 * WIDTH)
    results = enhance(backend, [wide[:, number : number + WIDTH] for number in range(60)])
    column = [result[20:34, 60 - number].mean() for number, result in enumerate(results[:40])]  # one of the scene's
    assert np.std(column) <= 0.1


def test_after_a_cut_it_is_right_within_three_frames(backend: Backend) -> None:
    pictures = [scene(1)] * 20 + [scene(2)] * 10
    assert agreement(backend, pictures, 22) > 50
    assert agreement(backend, pictures, 20) < 45, "or this measures nothing"


def test_it_follows_the_light_within_a_second_or_two(backend: Backend) -> None:
    pictures = [scene(1) * 0.5] * 30 + [scene(1)] * 60
    assert agreement(backend, pictures, 30) < 35, "or this measures nothing"
    assert agreement(backend, pictures, 89) > 38


def test_it_follows_exposure_that_settles_at_the_beginning_at_once(backend: Backend) -> None:
    pictures = [scene(1) * part for part in np.linspace(0.3, 1, 10)] + [scene(1)] * 2
    assert agreement(backend, pictures, 11) > 40


def test_another_scene_that_came_slowly_is_followed_after_two_seconds(backend: Backend) -> None:
    wide = np.concatenate([scene(1), 255 - scene(1) * 0.8], axis=1)
    pan = [wide[:, 2 * number : 2 * number + WIDTH] for number in range(WIDTH // 2 + 1)]
    pictures = [scene(1)] * 10 + pan + [pan[-1]] * 400
    assert agreement(backend, pictures, -1) > agreement(backend, pictures, 62) + 5


def test_darkness_is_not_stretched(backend: Backend) -> None:
    random = np.random.default_rng(0)
    dark = [random.random((HEIGHT, WIDTH, 3)) * 2 * 255 * DARKEST * 0.8 for _ in range(5)]
    for before, after in zip(frames(dark), enhance(backend, dark), strict=True):
        assert np.array_equal(before.planes[0], after)
    black = enhance(backend, [scene(1)] * 5 + [scene(1) * 0] * 5)
    assert black[-1].max() == 0


def test_borders_stay_and_are_not_measured(backend: Backend) -> None:
    barred = [np.pad(scene(1), ((12, 12), (0, 0), (0, 0)))] * 40
    results = enhance(backend, barred)
    plain = enhance(backend, [scene(1)] * 2)
    for result in results:
        assert result[:12].max() == result[-12:].max() == 0
        assert np.abs(result[12:-12] - plain[0]).max() <= 1


def test_borders_that_vanish_are_noticed_within_two_seconds(backend: Backend) -> None:
    fmt = frames([scene(1)])[0].format
    barred = scene(1).copy()
    barred[:12] = 0
    policy = LivePolicy()
    areas = []
    for frame in frames([barred] * 10 + [scene(1)] * 70):
        plan = policy.normalisation(frame)
        areas.append(plan.area)
        if plan.measured:
            policy.learn(backend.statistics(torch.rand(1, 3, 20, 20)))
    assert areas[0] == Area(12, fmt.height, 0, fmt.width)
    assert areas[-1] == Area(0, fmt.height, 0, fmt.width)


def test_measuring_is_rare(backend: Backend) -> None:
    policy = LivePolicy()
    asked = 0
    for frame in frames([scene(1)] * 160):
        plan = policy.normalisation(frame)
        if plan.measured:
            asked += 1
            policy.learn(backend.statistics(torch.rand(1, 3, 20, 20)))
    assert asked <= 11


def test_the_size_may_change(backend: Backend) -> None:
    policy = LivePolicy()
    enhancer = Enhancer(backend, frames([scene(1)])[0].format, policy)
    for picture in (scene(1), scene(1)[:30], scene(2)[:1, :1]):
        frame = frames([picture])[0]
        assert enhancer.enhance(frame).planes[0].shape == picture.shape


def test_two_runs_are_identical(backend: Backend) -> None:
    pictures = [scene(1) * (1 - number / 100) for number in range(30)]
    for one, other in zip(enhance(backend, pictures), enhance(backend, pictures), strict=True):
        assert np.array_equal(one, other)
