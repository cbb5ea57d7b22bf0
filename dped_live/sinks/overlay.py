"""Text and the before/after wipe on live pictures. All take and return RGB, uint8, (H, W, 3), and write to no input.

Lettering is sized by the picture it is drawn on: whoever shows a picture larger or smaller scales first, then draws.
OpenCV 5 has the letters of most scripts; OpenCV 4 shows question marks for those that are not ASCII.
"""

from __future__ import annotations

import textwrap
from functools import lru_cache

import cv2
import numpy as np

from dped_live.live_state import LiveStats

Rows = tuple[tuple[str, ...], ...]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE = (255, 255, 255)
_DARK = (40, 40, 40)
_SHADE = 0.3
"""What is left of the picture under lettering: white letters on it are legible on any picture."""

_LONGEST = 56
"""Characters of one figure of the statistics; a stream's address may have hundreds."""


def fitted(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture as large as fits into width x height pixels, with black bars; itself if it has that size."""
    rows, columns = picture.shape[:2]
    if (columns, rows) == (width, height):
        return picture
    scale = min(width / columns, height / rows)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    canvas = np.zeros((height, width, 3), np.uint8)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = resized
    return canvas


def wiped(before: np.ndarray, after: np.ndarray, position: float) -> np.ndarray:
    """`before` left of a line and `after` right of it, with a handle to drag. position: of the line, 0..1 of the width.

    A side that is too narrow for its label has none.
    """
    height, width = after.shape[:2]
    x = round(position * width)
    picture = np.hstack((before[:, :x], after[:, x:]))
    unit = _scale(picture) * 20
    thickness, radius, middle = max(2, round(unit * 0.2)), round(unit * 1.4), height // 2
    for color, extra in ((_DARK, 2), (_WHITE, 0)):
        cv2.line(picture, (x, 0), (x, height), color, thickness + extra)
        cv2.circle(picture, (x, middle), radius + extra // 2, color, -1, cv2.LINE_AA)
    for side in (-1, 1):
        arrow = [(0.9, 0.0), (0.3, 0.5), (0.3, -0.5)]
        points = [(round(x + side * radius * along), round(middle + radius * across)) for along, across in arrow]
        cv2.fillConvexPoly(picture, np.array(points), _DARK, cv2.LINE_AA)
    for text, side in (("before", -1), ("after", 1)):
        label = _lettering(((text,),), _scale(picture))
        gap = radius // 2
        left = x + gap if side == 1 else x - gap - label.shape[1]
        if 0 <= left <= width - label.shape[1]:
            _print(picture, label, left, round(height * 0.85) - label.shape[0])
    return picture


def with_statistics(picture: np.ndarray, stats: LiveStats) -> np.ndarray:
    """The picture with the figures of the run in its upper left corner."""
    rows = [
        ("source", f"{stats.source}, {stats.width}x{stats.height}"),
        ("model", f"{stats.model}, {stats.rung}"),
        ("pictures", f"{stats.fps_in:.1f} in, {stats.fps_out:.1f} out a second; {stats.dropped} dropped"),
    ]
    for name, latency in stats.latency.items():
        rows.append((f"to {name}", f"{latency.p50:.0f} ms, 95 % within {latency.p95:.0f} ms"))
    if stats.recording is not None:
        rows.append(("recording", stats.recording.name))
    texts = tuple(tuple(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..." for text in row) for row in rows)
    lettering = _lettering(texts, _scale(picture))
    widest = round(picture.shape[1] * 0.95)
    if lettering.shape[1] > widest:
        lettering = _lettering(texts, max(0.1, _scale(picture) * widest / lettering.shape[1]))
    picture = picture.copy()
    margin = round(_scale(picture) * 20)
    _print(picture, lettering, margin, margin)
    return picture


def with_notice(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with a line or more of text at its lower edge, in the middle."""
    scale = _scale(picture)
    (letter, _), _ = cv2.getTextSize("n", _FONT, scale, 1)
    lines = textwrap.wrap(text, max(10, round(picture.shape[1] * 0.85 / letter)))
    lettering = _lettering(tuple((line,) for line in lines), scale)
    picture = picture.copy()
    height, width = picture.shape[:2]
    _print(picture, lettering, (width - lettering.shape[1]) // 2, height - lettering.shape[0] - round(scale * 20))
    return picture


def _scale(picture: np.ndarray) -> float:
    """The font's scale for a picture: 0.65, which is about 16 pixels for a capital letter, at 720 rows."""
    height, width, _ = picture.shape
    return max(0.4, 0.65 * float(min(height, width)) / 720)


@lru_cache(maxsize=8)
def _lettering(rows: Rows, scale: float) -> np.ndarray:
    """A table in white on black, with a margin around it. Cached: figures change less often than pictures."""
    thickness = max(1, round(scale * 1.7))
    sizes = [[cv2.getTextSize(text, _FONT, scale, thickness)[0][0] for text in row] for row in rows]
    widths = [max(column) for column in zip(*sizes, strict=True)]
    line, margin, gap = round(scale * 40), round(scale * 16), round(scale * 28)
    table = np.zeros((line * len(rows) + margin, 2 * margin + sum(widths) + gap * (len(widths) - 1), 3), np.uint8)
    for number, row in enumerate(rows):
        x = margin
        for text, width in zip(row, widths, strict=True):
            baseline = margin // 2 + line * number + round(line * 0.7)
            cv2.putText(table, text, (x, baseline), _FONT, scale, _WHITE, thickness, cv2.LINE_AA)
            x += width + gap
    return table


def _print(picture: np.ndarray, lettering: np.ndarray, left: int, top: int) -> None:
    """Put lettering on a darkened part of the picture, in place; what reaches beyond its borders is cut off."""
    left, top = max(0, left), max(0, top)
    part = picture[top : top + lettering.shape[0], left : left + lettering.shape[1]]
    if part.size:
        part[:] = cv2.addWeighted(part, _SHADE, lettering[: part.shape[0], : part.shape[1]], 1, 0)
