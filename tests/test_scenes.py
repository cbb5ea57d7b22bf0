"""Scenes are found where a person would see them: cuts count; flashes, fades, objects, pans and noise do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.scenes import find_scenes, steps, thumbnail

HEIGHT, WIDTH, RATE = 90, 160, 25


def landscape(seed: int, width: int = WIDTH) -> np.ndarray:
    """A smooth random picture (HEIGHT, width) in [0, 1] with structure at all scales."""
    random = np.random.default_rng(seed)
    total = np.zeros((HEIGHT, width))
    for step in (45, 15, 5):
        coarse = random.random((HEIGHT // step + 2, width // step + 2))
        total += np.kron(coarse, np.ones((step, step)))[:HEIGHT, :width] * step
    total -= total.min()
    total /= total.max()
    return total


def frames(pictures: Sequence[np.ndarray]) -> list[Frame]:
    fmt = VideoFormat(pictures[0].shape[1], pictures[0].shape[0], PIXEL_FORMATS["gray"], time_base=Fraction(1, RATE))
    return [
        Frame(((picture.clip(0, 1) * 255 + 0.5).astype(np.uint8),), fmt, Fraction(number, RATE))
        for number, picture in enumerate(pictures)
    ]


@pytest.mark.parametrize("size", [(1, 1), (71, 127), (72, 128), (143, 255), (144, 256), (215, 383), (1079, 1921)])
def test_a_thumbnail_needs_no_more_than_the_samples_it_looks_at(size: tuple[int, int]) -> None:
    """They are all that leaves a card."""
    plane = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    whole = Frame((plane,), VideoFormat(size[1], size[0], PIXEL_FORMATS["gray"]))
    down, across = steps(*size)
    few = replace(whole, planes=(plane[::down, ::across],))
    np.testing.assert_array_equal(thumbnail(few), thumbnail(whole))


def starts(pictures: Sequence[np.ndarray]) -> list[int]:
    """Numbers of the frames that scenes start with."""
    return [int(scene.start * RATE) for scene in find_scenes(frames(pictures))]


A, B, C = (landscape(seed) for seed in (1, 2, 3))


def test_hard_cuts_are_found_to_the_frame() -> None:
    assert starts([A] * 10 + [B] * 7 + [C] * 20) == [0, 10, 17]
    assert starts([A] * 10 + [B] * 10 + [A] * 10) == [0, 10, 20]


def test_a_cut_between_dark_scenes_is_found() -> None:
    assert starts([A * 0.15] * 10 + [B * 0.15] * 10) == [0, 10]


def test_a_still_scene_is_one_with_noise_too() -> None:
    random = np.random.default_rng(0)
    assert starts([A + random.normal(0, 0.05, A.shape) for _ in range(30)]) == [0]


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_an_object_that_slides_in_starts_no_scene(level: float) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pictures = []
    for number in range(30):
        inside = (x - (WIDTH + 30 - 5 * number)) ** 2 + (y - 45) ** 2 < 30**2
        pictures.append(np.where(inside, level, A))
    assert starts(pictures) == [0]


def test_a_pan_starts_no_scene() -> None:
    wide = landscape(4, WIDTH * 3)
    assert starts([wide[:, 4 * number : 4 * number + WIDTH] for number in range(60)]) == [0]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("flash", [np.ones((HEIGHT, WIDTH)), 0.9 + 0.1 * B], ids=["white", "blown out"])
def test_a_flash_starts_no_scene(length: int, flash: np.ndarray) -> None:
    scenes = list(find_scenes(frames([A] * 12 + [flash] * length + [A] * 12)))
    assert [scene.start for scene in scenes] == [0]
    for frame in scenes[0].frames:
        assert np.array_equal(frame.planes[0], frames([A])[0].planes[0]), "a flash must not stand for the scene"


def test_exposure_and_fades_start_no_scene() -> None:
    assert starts([A * (0.3 + 0.02 * number) for number in range(35)]) == [0]
    fade = [A * (1 - number / 15) for number in range(16)]
    scenes = list(find_scenes(frames([A] * 20 + fade)))
    assert len(scenes) == 1
    for frame in scenes[0].frames:
        assert frame.planes[0].std() > 0.5 * frames([A])[0].planes[0].std(), "a faded frame must not stand for it"


def test_a_fade_through_black_ends_one_scene_and_starts_the_next_in_the_black() -> None:
    out = [A * (1 - number / 10) for number in range(1, 11)]
    back = [B * (number / 10) for number in range(1, 11)]
    found = starts([A] * 10 + out + [A * 0] * 5 + back + [B] * 10)
    assert found[0] == 0
    assert len(found) == 2
    assert 18 <= found[1] <= 24


def test_a_fade_to_black_and_back_is_one_scene() -> None:
    out = [A * (1 - number / 10) for number in range(1, 11)]
    assert starts([A] * 10 + out + [A * 0] * 5 + out[::-1] + [A] * 10) == [0]


def test_frames_that_stand_for_a_long_scene_are_spread_over_it() -> None:
    pictures = [A + 0.001 * number for number in range(100)]
    (scene,) = find_scenes(frames(pictures))
    times = [float(frame.pts * RATE) for frame in scene.frames]
    assert 3 <= len(times) <= 5
    assert times[0] == 0
    assert times[-1] >= 60
    assert times == sorted(times)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_short_and_empty_videos(count: int) -> None:
    assert list(find_scenes([])) == []
    (scene,) = find_scenes(frames([A] * count))
    assert scene.start == 0
    assert len(scene.frames) >= 1
    (scene,) = find_scenes(frames([A * 0] * count))
    assert len(scene.frames) >= 1


def test_thumbnails_are_luma_in_the_nominal_range() -> None:
    for name, codes, expected in (
        ("yuv420p", (235, 128, 128), 1.0),
        ("yuv420p10le", (64, 512, 512), 0.0),
        ("yuv444p", (16 + 110, 128, 128), 110 / 219),
    ):
        pixel = PIXEL_FORMATS[name]
        dtype = np.uint8 if pixel.depth == 8 else np.uint16
        planes = tuple(np.full((4, 4), code, dtype) for code in codes)
        fmt = VideoFormat(4, 4, pixel, "bt709", full_range=False)
        assert thumbnail(Frame(planes, fmt)) == pytest.approx(expected, abs=0.005)
    rgb = np.zeros((2, 2, 3), np.uint8) + 51
    assert thumbnail(Frame((rgb,), VideoFormat(2, 2, PIXEL_FORMATS["rgb24"]))) == pytest.approx(0.2)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 5), (18, 32), (100, 300)])
def test_a_thumbnail_is_the_mean_of_its_parts(size: tuple[int, int]) -> None:
    fmt = VideoFormat(size[1], size[0], PIXEL_FORMATS["gray"])
    picture = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    small = thumbnail(Frame((picture,), fmt))
    assert small.shape == (min(18, size[0]), min(32, size[1]))
    assert small.mean() == pytest.approx(picture.mean() / 255, abs=0.04)


def ends(pictures: Sequence[np.ndarray]) -> list[tuple[int, int | None]]:
    """Numbers of the frames that scenes start with, and end with where a dissolve follows."""
    return [
        (int(scene.start * RATE), None if scene.end is None else int(scene.end * RATE))
        for scene in find_scenes(frames(pictures))
    ]


@pytest.mark.parametrize("length", [12, 25, 50])
def test_a_dissolve_lies_between_two_scenes(length: int) -> None:
    mixed = [A + (B - A) * number / length for number in range(1, length)]
    (first, end), (second, last) = ends([A] * 20 + mixed + [B] * 20)
    assert (first, last) == (0, None)
    assert end is not None
    assert 10 <= end <= 19 + length // 8
    assert 19 + length - length // 8 <= second <= 28 + length
    for scene, whole in zip(find_scenes(frames([A] * 20 + mixed + [B] * 20)), (A, B), strict=True):
        for frame in scene.frames:
            assert np.abs(frame.planes[0] / 255 - whole).mean() < 0.02, "a mixture must not stand for a scene"


def test_a_pan_is_no_dissolve() -> None:
    wide = landscape(4, WIDTH * 4)
    for step in (1, 2, 4):
        count = min(100, 3 * WIDTH // step)
        assert ends([wide[:, step * number : step * number + WIDTH] for number in range(count)]) == [(0, None)]


def test_a_title_in_the_dark_that_a_picture_fades_up_from_is_no_scene() -> None:
    title = A * 0
    title[40:46, 60:100] = 0.2
    assert ends([title] * 10 + [title + (A - title) * number / 20 for number in range(1, 21)] + [A] * 20) == [(0, None)]


def test_a_long_shot_is_ten_seconds_each() -> None:
    scenes = list(find_scenes(frames([A] * (25 * RATE))))
    assert [scene.start for scene in scenes] == [0, 10, 20]
    assert [scene.continues for scene in scenes] == [False, True, True]
    scenes = list(find_scenes(frames([A] * (5 * RATE) + [B] * (7 * RATE))))
    assert [scene.start for scene in scenes] == [0, 5]
    assert [scene.continues for scene in scenes] == [False, False]
