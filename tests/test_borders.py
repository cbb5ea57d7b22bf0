"""Borders are found to the line, and what only looks like one is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dped_live import color
from dped_live.borders import find_area
from dped_live.frame import PIXEL_FORMATS, Area, Frame, VideoFormat

HEIGHT, WIDTH = 90, 160


def photo(seed: int = 0) -> np.ndarray:
    """A random picture (HEIGHT, WIDTH, 3) of 40..220."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(40, 220, (HEIGHT // 5, WIDTH // 5, 3))
    picture: np.ndarray = np.kron(coarse, np.ones((5, 5, 1)))
    return picture


def frame(picture: np.ndarray, name: str = "yuv420p") -> Frame:
    height, width, _ = picture.shape
    yuv = PIXEL_FORMATS[name].kind == "yuv"
    fmt = VideoFormat(width, height, PIXEL_FORMATS[name], "bt709" if yuv else "rgb", full_range=not yuv)
    rgb = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return Frame(tuple(plane.numpy() for plane in color.from_rgb(rgb, fmt)), fmt)


def bordered(picture: np.ndarray, area: Area, colour: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    result = np.tile(np.asarray(colour, float), (*picture.shape[:2], 1))
    inside = slice(area.top, area.bottom), slice(area.left, area.right)
    result[inside] = picture[inside]
    return result


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p10le", "yuv444p", "rgb24", "rgb48le", "gray"])
@pytest.mark.parametrize(
    "area",
    [
        Area(12, 78, 0, WIDTH),
        Area(0, HEIGHT, 21, 139),
        Area(13, 80, 7, 150),
        Area(0, 81, 0, WIDTH),
        Area(0, HEIGHT, 0, WIDTH),
    ],
    ids=["letterbox", "pillarbox", "windowbox, odd", "one side", "none"],
)
def test_black_bars_are_found_to_the_line(name: str, area: Area) -> None:
    frames = [frame(bordered(photo(seed), area), name) for seed in range(3)]
    assert find_area(frames) == area


def test_bars_of_a_lossy_coder_are_found() -> None:
    random = np.random.default_rng(0)
    area = Area(12, 78, 0, WIDTH)
    noisy = bordered(photo(), area) + random.integers(0, 3, (HEIGHT, WIDTH, 1))
    assert find_area([frame(noisy)]) == area


def test_light_borders_are_believed_in_pairs() -> None:
    margins = Area(0, HEIGHT, 30, 130)
    assert find_area([frame(bordered(photo(), margins, (250, 250, 250)))]) == margins
    sky = Area(20, HEIGHT, 0, WIDTH)
    assert find_area([frame(bordered(photo(), sky, (250, 250, 250)))]) == Area(0, HEIGHT, 0, WIDTH)


def test_a_border_must_be_there_in_every_frame() -> None:
    area = Area(12, 78, 0, WIDTH)
    assert find_area([frame(bordered(photo(), area)), frame(photo(1))]) == Area(0, HEIGHT, 0, WIDTH)


def test_darkness_without_an_edge_is_no_border() -> None:
    dusk = photo() * np.clip((np.arange(HEIGHT) - 30) / 100, 0, 1)[:, None, None]
    lamp = np.zeros((HEIGHT, WIDTH, 3))
    lamp[40:50, 70:80] = 255
    for picture in (dusk, lamp, np.zeros((HEIGHT, WIDTH, 3)), np.full((HEIGHT, WIDTH, 3), 255.0)):
        assert find_area([frame(picture)]) == Area(0, HEIGHT, 0, WIDTH)


def test_in_a_dark_scene_the_borders_stay_those_of_before() -> None:
    area = Area(12, 78, 0, WIDTH)
    night = np.zeros((HEIGHT, WIDTH, 3))
    night[44:46, 80:84] = 200
    assert find_area([frame(night)], known=area) == area
    assert find_area([frame(photo())], known=area) == Area(0, HEIGHT, 0, WIDTH)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40)])
def test_tiny_pictures_have_no_borders(size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3))
    picture[-1, -1] = 255
    assert find_area([frame(picture, "rgb24")]) == Area(0, size[0], 0, size[1])


def test_photos_have_only_the_borders_they_have(shared: Path) -> None:
    """Scans of film have black edges of up to 8 lines, and one of these photos has pillars painted in."""
    found = {}
    for path in sorted((shared / "photos").glob("*/*")):
        picture = np.asarray(Image.open(path).convert("RGB")).astype(float)
        area = find_area([frame(picture)])
        cut = max(area.top, area.left, picture.shape[0] - area.bottom, picture.shape[1] - area.right)
        if cut:
            found[path.name] = cut
    assert {name for name, cut in found.items() if cut > 8} == {"59078.jpg"}
    assert len(found) < 12
