"""A film made on the spot: a pan over something with the structure of a photo, with a camera's grain."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F

from dped_live.bench.results import FILM_RATE
from dped_live.frame import PIXEL_FORMATS, Frame, Matrix, VideoFormat

_MARGIN = 64
"""Pixels by which the pan goes to and fro."""

_CONTRAST = 14.0
"""Levels, standard deviation, of each octave from _FINEST pixels up. Photos have about as much in each."""

_FINEST = 4
_CHROMA = 0.3
"""Of luma's contrast."""

_GRAINS, _GRAIN = 4, 2.5
"""So many pictures of grain follow one another; levels, standard deviation."""


class Film:
    """An endless film of one size, both sides even: 8-bit 4:2:0, the same each time."""

    def __init__(self, width: int, height: int) -> None:
        matrix: Matrix = "bt709" if height >= 720 else "bt601"
        pixel = PIXEL_FORMATS["yuv420p"]
        rate = Fraction(FILM_RATE)
        self.format = VideoFormat(width, height, pixel, matrix, full_range=False, time_base=1 / rate)
        random = np.random.default_rng(0)
        whole, half = (height + _MARGIN, width + _MARGIN), ((height + _MARGIN) // 2, (width + _MARGIN) // 2)
        luma = _texture(whole, random, _CONTRAST) + 110
        self._lumas = []
        for _ in range(_GRAINS):
            grain = random.standard_normal(whole, np.float32)
            self._lumas.append(np.clip(luma + _GRAIN * grain, 16, 235).astype(np.uint8))
        self._chromas = [
            np.clip(_texture(half, random, _CHROMA * _CONTRAST) + 128, 16, 240).astype(np.uint8) for _ in range(2)
        ]

    def frames(self) -> Iterator[Frame]:
        """They are views, so that making them takes no time."""
        number = 0
        while True:
            x, y = _to_and_fro(2 * number), _to_and_fro(number)
            luma = self._lumas[number % _GRAINS]
            planes = [luma[y : y + self.format.height, x : x + self.format.width]]
            for chroma in self._chromas:
                planes.append(chroma[y // 2 :, x // 2 :][: self.format.height // 2, : self.format.width // 2])
            tick = self.format.time_base
            yield Frame(tuple(planes), self.format, number * tick, tick)
            number += 1


def _to_and_fro(position: int) -> int:
    """Even, from 0 to _MARGIN and back."""
    return (_MARGIN - abs(position % (2 * _MARGIN) - _MARGIN)) & -2


def _texture(shape: tuple[int, int], random: np.random.Generator, contrast: float) -> np.ndarray:
    """(H, W), float32, mean about 0: as much contrast in each octave, as photos have."""
    total = torch.zeros(shape)
    cell = _FINEST
    while cell < max(shape):
        coarse = random.standard_normal((1, 1, shape[0] // cell + 2, shape[1] // cell + 2), np.float32)
        total += contrast * F.interpolate(torch.from_numpy(coarse), shape, mode="bilinear")[0, 0]
        cell *= 2
    return total.numpy()
