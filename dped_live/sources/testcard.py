"""The test picture: moving, and numbered so that a program can tell which picture it is looking at.

From the top down, for a picture of height H and width W:

    0    .. H/12   the number in 24 columns of equal width, the most significant bit left. A column is white over black
                   for 1 and black over white for 0, each H/24 high; the middles of the cells are what counts
    H/12 .. 2H/3   colour bars of 75 %: white, yellow, cyan, green, magenta, red, blue, black
    2H/3 .. 5H/6   eleven greys from 0 to 255
    5H/6 .. H      the number and the seconds in digits, white on black

A white disc goes through the bars and greys, in three seconds from left to right.
"""

from __future__ import annotations

import cv2
import numpy as np

_BITS = 24


def draw(number: int, seconds: float, width: int, height: int) -> np.ndarray:
    """The picture (H, W, 3), RGB, uint8, of this number (modulo 2^24) and time. It belongs to the caller."""
    picture = np.zeros((height, width, 3), np.uint8)
    bits = np.array([number >> place & 1 for place in reversed(range(_BITS))], np.uint8)
    _fill(picture[: height // 24], bits[:, None] * np.full(3, 255, np.uint8))
    _fill(picture[height // 24 : height // 12], (1 - bits[:, None]) * np.full(3, 255, np.uint8))
    bars = [[r, g, b] for g in (191, 0) for r in (191, 0) for b in (191, 0)]
    _fill(picture[height // 12 : height * 2 // 3], np.array(bars, np.uint8))
    _fill(picture[height * 2 // 3 : height * 5 // 6], np.rint(np.linspace(0, 255, 11))[:, None].repeat(3, 1))
    where = (round(seconds % 3 / 3 * width), height * 3 // 8)
    cv2.circle(picture, where, height // 10, (255, 255, 255), -1, cv2.LINE_AA)
    text = f"{number:06d}  {int(seconds) // 60:02d}:{seconds % 60:06.3f}"
    scale = min(height / 400, width / 500)
    cv2.putText(picture, text, (width // 40, height * 19 // 20), 0, scale, (255, 255, 255), max(1, round(scale * 2)))
    return picture


def frame_number(picture: np.ndarray) -> int:
    """The number in a test picture (H, W, 3) or (H, W), uint8, as it is after JPEG, scaling or enhancement.

    Raises ValueError if it cannot be read, as in every other picture.
    """
    height, width = picture.shape[:2]
    number = 0
    for column in range(_BITS):
        left, right = (round((column + part) * width / _BITS) for part in (0.3, 0.7))
        upper, lower = (
            float(
                picture[round((row + 0.3) * height / 24) : max(round((row + 0.7) * height / 24), 1), left:right].mean()
            )
            for row in (0, 1)
        )
        if abs(upper - lower) < 64:
            raise ValueError(f"no number is in this picture (column {column}: {upper:.0f} over {lower:.0f})")
        number = number << 1 | (upper > lower)
    return number


def _fill(area: np.ndarray, colours: np.ndarray) -> None:
    """Columns of equal width in these colours (N, 3)."""
    area[:] = colours[np.arange(area.shape[1]) * len(colours) // area.shape[1]]
