"""What normalises each frame: its own statistics, or those of its scene, found by looking ahead."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from dped_live import color
from dped_live.backends import Backend
from dped_live.borders import find_area
from dped_live.frame import Area, CardPlanes, Frame, cut
from dped_live.scenes import Scene, find_scenes, is_blank, steps, thumbnail
from dped_live.staging import Staging, samples
from dped_live.statistics import Statistics, blend, combine, distance

DARKEST = 0.04
"""Mean luma, of 1, below which a scene is measured as if exposed up to it, and so is lifted less than the original
would: its statistics would stretch the noise of a nearly black scene to mid-grey. The darkest hundredth of the models'
training patches (and no photo of Kodak's set or of BSDS300's test set) is below it; benchmarks/NOTES.md has the curve.
"""

_FADED = 0.25
"""Brightness of a frame, of its scene's, below which the network's part fades out; see brightness_weight."""

_ALIKE = 0.15
"""Distance up to which all of a shot gets the same statistics. At 0.15 pictures agree to 30 dB and more, which is what
an object that fills a quarter of the picture makes of the original's own; see benchmarks/NOTES.md."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How to normalise one frame.

    statistics: what to apply; None: the frame's own. weight: how much of the network's output it gets, 0..1.
    area: what of it is a picture; around are borders, which stay as they are.
    measured: whether the policy wants to know the frame's own statistics.
    """

    statistics: Statistics | None
    weight: float
    area: Area
    measured: bool = False


class Policy(Protocol):
    """Chooses the statistics of each frame."""

    def normalisation(self, frame: Frame) -> Normalisation:
        """For a frame; those of a video come in order."""
        ...

    def learn(self, measured: Statistics) -> None:
        """The frame's own statistics, where the Normalisation just given asks for them."""
        ...


class ExactPolicy:
    """Each frame by its own statistics, borders and all, as the original does."""

    def normalisation(self, frame: Frame) -> Normalisation:
        return Normalisation(None, 1, frame.whole)

    def learn(self, measured: Statistics) -> None:  # noqa: ARG002
        raise AssertionError("nothing was asked for")


@dataclass(frozen=True, slots=True)
class SceneStatistics:
    """Statistics for the frames from `start` to `end`, in seconds; from there they go over to the next scene's.

    end: None: until the next scene's start, where its statistics apply at once.
    statistics: None for a scene that shows nothing, of one colour: it stays as it is.
    brightness: mean luma, of 1, of the pictures that the statistics stand for.
    area: what of the frames is a picture; around are borders.
    """

    start: Fraction
    end: Fraction | None
    statistics: Statistics | None
    brightness: float
    area: Area


class ScenePolicy:
    """Each frame by the statistics of its scene.

    scenes: in order of time, at least one.
    """

    def __init__(self, scenes: Sequence[SceneStatistics]) -> None:
        self._scenes = scenes

    def normalisation(self, frame: Frame) -> Normalisation:
        scene = self._scene_at(frame.pts)
        if scene.statistics is None:
            return Normalisation(None, 0, scene.area)
        return Normalisation(scene.statistics, brightness_weight(frame, scene.area, scene.brightness), scene.area)

    def learn(self, measured: Statistics) -> None:  # noqa: ARG002
        raise AssertionError("nothing was asked for")

    def _scene_at(self, time: Fraction) -> SceneStatistics:
        number = max(0, bisect_right(self._scenes, time, key=lambda scene: scene.start) - 1)
        scene = self._scenes[number]
        if scene.end is None or time <= scene.end or number + 1 == len(self._scenes):
            return scene
        after = self._scenes[number + 1]
        if scene.statistics is None or after.statistics is None:
            return scene
        share = float((time - scene.end) / (after.start - scene.end))
        return SceneStatistics(
            time,
            None,
            blend(scene.statistics, after.statistics, share),
            scene.brightness + share * (after.brightness - scene.brightness),
            scene.area.union(after.area),
        )


def brightness_weight(frame: Frame, area: Area, brightness: float) -> float:
    """How much of the network's output a frame gets, 0..1; 1 but for frames far darker than their scene.

    With its scene's statistics the network maps black to a grey, of 10 to 66 levels (benchmarks/NOTES.md). So the last
    quarter of a fade goes over to the input, smoothly, and black stays black.
    """
    luma = float(_thumbnail(frame, area).mean())
    part = min(1.0, max(0.0, luma) / (_FADED * brightness))
    return part * part * (3 - 2 * part)


def _thumbnail(frame: Frame, area: Area) -> np.ndarray:
    """scenes.thumbnail of a part; of a picture on a card no more comes to the host than it looks at."""
    if isinstance(frame.planes, CardPlanes):
        outer, _ = frame.format.around(area)
        down, across = steps(outer.bottom - outer.top, outer.right - outer.left)
        rows, columns = slice(outer.top, outer.bottom, down), slice(outer.left, outer.right, across)
        return thumbnail(replace(frame, planes=(samples(frame.planes, rows, columns),)))
    return thumbnail(frame.cropped(area)[0])


def measure_scenes(frames: Iterable[Frame], backend: Backend) -> list[SceneStatistics]:
    """Find the scenes of a video and measure each on up to five of its frames. In order of time.

    A shot of several scenes, because it is long, gets one set of statistics, or where its light changes for good, some
    that move from one to the next over ten seconds.
    """
    staging = Staging(backend.device)
    found: list[SceneStatistics] = []
    shot: list[SceneStatistics] = []
    area: Area | None = None
    for scene in find_scenes(frames):
        measured = _measure(scene, backend, staging, area)
        if measured.area != scene.frames[0].whole:
            area = measured.area
        if not scene.continues:
            found += _steadied(shot)
            shot = []
        shot.append(measured)
    return found + _steadied(shot)


def _steadied(shot: list[SceneStatistics]) -> list[SceneStatistics]:
    """The scenes of one shot, as one if they are alike."""
    parts = [scene for scene in shot if scene.statistics is not None]
    if len(parts) < 2:
        return shot
    together = combine([scene.statistics for scene in parts if scene.statistics is not None])
    area = parts[0].area
    for scene in parts:
        area = area.union(scene.area)
    far = max(distance(scene.statistics, together) for scene in parts if scene.statistics is not None)
    if len(parts) == len(shot) and far <= _ALIKE:
        brightness = sum(scene.brightness for scene in shot) / len(shot)
        return [SceneStatistics(shot[0].start, shot[-1].end, together, brightness, area)]
    # Each holds at the middle of its ten seconds and from there moves on to the next; the last holds for all of its.
    middles = [(scene.start + after.start) / 2 for scene, after in pairwise(shot)]
    moved = [replace(scene, start=middle, end=middle) for scene, middle in zip(shot, middles, strict=False)]
    moved[0] = replace(moved[0], start=shot[0].start)
    return [replace(scene, area=area) for scene in [*moved, shot[-1]]]


def _measure(scene: Scene, backend: Backend, staging: Staging, known: Area | None) -> SceneStatistics:
    area = find_area(scene.frames, known)
    pictures = [thumbnail(frame.cropped(area)[0]) for frame in scene.frames]
    brightness = sum(float(picture.mean()) for picture in pictures) / len(pictures)
    if all(is_blank(picture) for picture in pictures):
        return SceneStatistics(scene.start, scene.end, None, brightness, area)
    # Twice the light is twice the value in linear light only; here it only has to be a picture of usual brightness.
    exposure = max(1.0, DARKEST / max(brightness, 1e-3))
    measured = []
    with torch.inference_mode():
        for frame in scene.frames:
            rgb = picture_of(frame, area, staging)
            if exposure > 1:
                rgb.mul_(exposure).clamp_(0, 1)
            measured.append(backend.statistics(rgb))
    return SceneStatistics(scene.start, scene.end, combine(measured), max(brightness, DARKEST), area)


def picture_of(frame: Frame, area: Area, staging: Staging) -> torch.Tensor:
    """The area of a frame as float32 RGB (1, 3, H, W) in [0, 1] on the device; what is around it has no part in it."""
    outer, within = frame.format.around(area)
    pixel = frame.format.pixel_format
    if staging.holds(frame.planes):
        planes: Sequence[torch.Tensor] = cut(staging.upload(frame.planes), pixel, outer)
    else:
        planes = staging.upload(cut(frame.planes, pixel, outer))
    fmt = replace(frame.format, width=outer.right - outer.left, height=outer.bottom - outer.top)
    rgb = color.to_rgb(planes, fmt)
    return rgb[:, :, within.top : within.bottom, within.left : within.right]
