"""Statistics of a scene: no flicker, fades that fade, black that is black; on the real models where they are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dped_live import color, weights
from dped_live.backends import Backend, open_backend
from dped_live.enhance import Enhancer
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.scene_statistics import ExactPolicy, ScenePolicy, measure_scenes
from dped_live.statistics import Statistics, blend, combine, distance

from conftest import random_generator

RATE = 25


def frames(pictures: Sequence[np.ndarray]) -> list[Frame]:
    """pictures: (H, W, 3), 0..255."""
    fmt = VideoFormat(pictures[0].shape[1], pictures[0].shape[0], PIXEL_FORMATS["rgb24"], time_base=Fraction(1, RATE))
    return [
        Frame(((picture.clip(0, 255) + 0.5).astype(np.uint8),), fmt, Fraction(number, RATE))
        for number, picture in enumerate(pictures)
    ]


def enhance(backend: Backend, pictures: Sequence[np.ndarray], scene: bool = True) -> list[np.ndarray]:
    """Levels of every frame, as the file path makes them."""
    sequence = frames(pictures)
    policy = ScenePolicy(measure_scenes(sequence, backend)) if scene else ExactPolicy()
    enhancer = Enhancer(backend, sequence[0].format, policy)
    return [frame.planes[0].astype(float) for frame in enhancer.map(sequence)]


@pytest.fixture(scope="module")
def small() -> Backend:
    return open_backend(random_generator(), "cpu", "fp32")


@pytest.fixture(params=["iphone", "blackberry", "sony"])
def published(request: pytest.FixtureRequest, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped" / "weights"))
    return open_backend(weights.load(request.param), "cpu", "fp32")


@pytest.fixture(scope="module")
def photo(shared: Path) -> np.ndarray:
    picture = Image.open(shared / "photos" / "kodak" / "13.png").convert("RGB").resize((180, 120))
    return np.asarray(picture).astype(float)


def textured(seed: int, height: int = 36, width: int = 64) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.random((height // 6 + 1, width // 6 + 1, 3)) * 200 + 30
    picture: np.ndarray = np.kron(coarse, np.ones((6, 6, 1)))[:height, :width]
    return picture


def test_combined_statistics_are_those_of_all_pixels() -> None:
    random = torch.Generator().manual_seed(0)
    pictures = torch.randn(3, 4, 50, generator=random) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1) + 3
    several = [Statistics(p.mean(1)[None, None], p.var(1, correction=0)[None, None]) for p in pictures]
    together = pictures.transpose(0, 1).reshape(4, -1)
    combined = combine(several)
    torch.testing.assert_close(combined.mean[0, 0], together.mean(1))
    torch.testing.assert_close(combined.variance[0, 0], together.var(1, correction=0))


def test_a_still_scene_comes_out_as_with_exact_statistics(small: Backend) -> None:
    pictures = [textured(1)] * 12
    for ours, exact in zip(enhance(small, pictures), enhance(small, pictures, scene=False), strict=True):
        assert np.abs(ours - exact).max() <= 1
        assert (ours != exact).mean() < 0.01


def test_statistics_change_at_a_cut_and_nowhere_else(small: Backend) -> None:
    a, b = textured(1), textured(2)
    scenes = measure_scenes(frames([a] * 10 + [b] * 10), small)
    assert [scene.start for scene in scenes] == [0, Fraction(10, RATE)]
    results = enhance(small, [a] * 10 + [b] * 10)
    assert all(np.array_equal(result, results[0]) for result in results[:10])
    assert all(np.array_equal(result, results[10]) for result in results[10:])
    assert np.abs(results[10] - enhance(small, [b])[0]).max() <= 1


def test_two_runs_are_identical(small: Backend) -> None:
    pictures = [textured(1) * (1 - number / 40) for number in range(20)]
    for one, other in zip(enhance(small, pictures), enhance(small, pictures), strict=True):
        assert np.array_equal(one, other)


def test_a_run_that_starts_in_the_middle_gives_the_same_pictures(small: Backend) -> None:
    """The policy is asked by time: if the look-ahead saw the whole video, it does not matter where enhancing starts."""
    pictures = [textured(1)] * 10 + [textured(1) + (textured(2) - textured(1)) * number / 20 for number in range(20)]
    sequence = frames(pictures)
    scenes = measure_scenes(sequence, small)
    whole = list(Enhancer(small, sequence[0].format, ScenePolicy(scenes)).map(sequence))
    part = list(Enhancer(small, sequence[0].format, ScenePolicy(scenes)).map(sequence[17:]))
    for one, other in zip(whole[17:], part, strict=True):
        assert np.array_equal(one.planes[0], other.planes[0])


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 90)])
@pytest.mark.parametrize("size", [(1, 1), (20, 30)])
def test_a_video_of_one_colour_stays_as_it_is(
    small: Backend, colour: tuple[int, int, int], size: tuple[int, int]
) -> None:
    picture = np.tile(np.array(colour, float), (*size, 1))
    for result in enhance(small, [picture] * 3):
        assert np.array_equal(result, picture)


def fade(photo: np.ndarray) -> list[np.ndarray]:
    return [photo] * 8 + [photo * part for part in np.linspace(1, 0, 17)] + [photo * 0] * 3


def check_fade(results: Sequence[np.ndarray]) -> None:
    means = np.array([result.mean() for result in results])
    assert (np.diff(means) <= 0.05).all(), "a fade must not become brighter"
    assert results[-1].max() <= 2, "black must stay black"


def test_a_fade_to_black_ends_at_black(small: Backend) -> None:
    results = enhance(small, fade(textured(3)))
    assert results[-1].max() <= 2


def test_a_fade_of_a_photo_is_monotonic_and_ends_at_black(published: Backend, photo: np.ndarray) -> None:
    check_fade(enhance(published, fade(photo)))


@pytest.mark.parametrize("level", [0.0, 255.0], ids=["dark", "bright"])
def test_static_background_does_not_drift(published: Backend, photo: np.ndarray, level: float) -> None:
    """An object slides into a still scene; what is 45 pixels away from it stays within a tenth of a level."""
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    pictures = [
        np.where(((x - (210 - 8 * number)) ** 2 + (y - 60) ** 2 < 30**2)[..., None], level, photo)
        for number in range(11)
    ]
    far = (slice(None), slice(0, 55))  # the object's left edge ends at 100
    scene = [result[far].mean() for result in enhance(published, pictures)]
    exact = [result[far].mean() for result in enhance(published, pictures, scene=False)]
    assert np.ptp(scene) <= 0.1
    assert np.ptp(exact) > 1, "the original drifts, or this measures nothing"


def test_a_dark_scene_is_lifted_but_not_into_noise(published: Backend, photo: np.ndarray) -> None:
    random = np.random.default_rng(0)
    pictures = [photo * 0.05 + random.normal(0, 1, photo.shape) for _ in range(4)]
    scene, exact = (enhance(published, pictures, scene=scene) for scene in (True, False))
    assert np.std(scene, axis=0).mean() < np.std(exact, axis=0).mean()
    assert pictures[0].mean() < scene[0].mean() < exact[0].mean()


def test_within_a_dissolve_the_statistics_go_over_from_one_scene_to_the_other(small: Backend) -> None:
    a, b = textured(1), textured(2)
    pictures = [a] * 20 + [a + (b - a) * number / 20 for number in range(1, 20)] + [b] * 20
    scenes = measure_scenes(frames(pictures), small)
    assert len(scenes) == 2
    assert scenes[0].end is not None
    results = enhance(small, pictures)
    for number, alone in ((0, a), (-1, b)):
        assert np.abs(results[number] - enhance(small, [alone])[0]).max() <= 1, "the scenes' own, at both ends"
    way = [np.abs(result - results[0]).mean() for result in results]
    assert (np.diff(way) > -0.1).all(), "no step back on the way"
    assert np.max(np.diff(way)) < 0.2 * way[-1], "and no jump"


def test_a_long_shot_keeps_its_statistics_unless_its_light_changes(small: Backend) -> None:
    a = textured(1)
    still = measure_scenes(frames([a] * (21 * RATE)), small)
    assert len(still) == 1
    darker = [a * (1 - 0.8 * min(1.0, max(0.0, (number - 200) / 300))) for number in range(30 * RATE)]
    moving = measure_scenes(frames(darker), small)
    assert len(moving) == 3
    results = [result.mean() / 255 for result in enhance(small, darker)]
    assert np.abs(np.diff(results)).max() < 0.01, "what changes, changes slowly"
    exact = enhance(small, [darker[-1]], scene=False)[0].mean() / 255
    assert abs(results[-1] - exact) < 0.02


@pytest.mark.parametrize("name", ["rgb24", "yuv420p"])
def test_bars_change_nothing_within_and_stay_what_they_were(published: Backend, photo: np.ndarray, name: str) -> None:
    bar = 24
    barred = np.pad(photo, ((bar, bar), (0, 0), (0, 0)))
    results = []
    for picture in (photo, barred):
        frame = in_format(picture, name)
        policy = ScenePolicy(measure_scenes([frame], published))
        results.append(Enhancer(published, frame.format, policy).enhance(frame).planes)
    for number, (plain, with_bars) in enumerate(zip(*results, strict=True)):
        inside = bar // 2 if number else bar
        # Chroma beside the bar is mixed with it, before and after.
        close = 1 if number else 0
        difference = with_bars[inside + close : -inside - close].astype(int) - plain[close : len(plain) - close]
        assert np.abs(difference).max() <= (1 if number else 0)
        before = in_format(barred, name).planes[number]
        assert np.array_equal(with_bars[: inside - close], before[: inside - close])
        assert np.array_equal(with_bars[-inside + close :], before[-inside + close :])


def in_format(picture: np.ndarray, name: str) -> Frame:
    if name == "rgb24":
        return frames([picture])[0]
    fmt = VideoFormat(picture.shape[1], picture.shape[0], PIXEL_FORMATS[name], "bt709", full_range=False)
    rgb = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return Frame(tuple(plane.numpy() for plane in color.from_rgb(rgb, fmt)), fmt)


def test_distance_and_blend() -> None:
    a = Statistics(torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    b = Statistics(torch.ones(1, 2, 3), torch.full((1, 2, 3), 4.0))
    assert distance(a, a) == 0
    # (0 - 1) / 2 and 1 / 2 - 1.
    assert distance(a, b) == pytest.approx(0.5**0.5, rel=1e-3)
    middle = blend(a, b, 0.5)
    torch.testing.assert_close(middle.mean, torch.full((1, 2, 3), 0.5))
    torch.testing.assert_close(middle.variance, torch.full((1, 2, 3), 2.25))
