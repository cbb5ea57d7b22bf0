"""What a scene's statistics are, and how strongly the network may act on a frame of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch

from dped_live import color
from dped_live.backends import Backend
from dped_live.frame import Frame
from dped_live.scenes import Scene, find_scenes, is_blank, thumbnail
from dped_live.staging import Staging
from dped_live.statistics import Statistics, combine

DARKEST = 0.04
"""Mean luma, of 1, below which a scene is measured as if exposed up to it, and so is lifted less than the original
would: its statistics would stretch the noise of a nearly black scene to mid-grey. No photo of Kodak's set or of
BSDS300's test set is darker than 0.13, and 95 of 100 of the models' training patches are not darker than 0.09. Chosen
by eye: with a floor of 0.12 scenes at a twentieth of their light turn green."""

_FADED = 0.25
"""Brightness of a frame, of its scene's, below which the network's part fades out; see SceneStatistics.weight."""


@dataclass(frozen=True, slots=True)
class SceneStatistics:
    """Statistics for all frames from `start` (seconds) until the next scene's.

    statistics: None for a scene that shows nothing, of one colour: it stays as it is.
    brightness: mean luma, of 1, of the pictures that the statistics stand for.
    """

    start: Fraction
    statistics: Statistics | None
    brightness: float

    def weight(self, frame: Frame) -> float:
        """How much of the network's output a frame gets, 0..1; 1 but for frames far darker than the scene.

        With its scene's statistics the network maps black to a grey, of 10 to 66 levels (benchmarks/NOTES.md). So the
        last quarter of a fade goes over to the input, smoothly, and black stays black.
        """
        if self.statistics is None:
            return 0
        part = min(1.0, max(0.0, float(thumbnail(frame).mean())) / (_FADED * self.brightness))
        return part * part * (3 - 2 * part)


def measure_scenes(frames: Iterable[Frame], backend: Backend) -> list[SceneStatistics]:
    """Find the scenes of a video and measure each on up to five of its frames. In order of time."""
    staging = Staging(backend.device)
    return [_measure(scene, backend, staging) for scene in find_scenes(frames)]


def _measure(scene: Scene, backend: Backend, staging: Staging) -> SceneStatistics:
    pictures = [thumbnail(frame) for frame in scene.frames]
    brightness = sum(float(picture.mean()) for picture in pictures) / len(pictures)
    if all(is_blank(picture) for picture in pictures):
        return SceneStatistics(scene.start, None, brightness)
    # Twice the light is twice the value in linear light only; here it only has to be a picture of usual brightness.
    exposure = max(1.0, DARKEST / max(brightness, 1e-3))
    measured = []
    with torch.inference_mode():
        for frame in scene.frames:
            rgb = color.to_rgb(staging.upload(frame.planes), frame.format)
            measured.append(backend.measure((rgb * exposure).clamp_(0, 1))[1])
    return SceneStatistics(scene.start, combine(measured), max(brightness, DARKEST))
