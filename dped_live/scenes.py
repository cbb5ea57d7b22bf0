"""Where one scene of a video ends and the next begins, and which of its frames stand for it. numpy only.

Statistics belong to a scene: taken anew within one they make the picture flicker, carried over a cut they give it the
colours of another. A detector of our own, because it must run along with decoding and because what matters here is
not what matters to an editor: a cut that is missed costs more than one that is not there, a flash or a fade must not
count, and frames in the dark belong to the scene beside them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import numpy as np

from dped_live.frame import Frame

_ROWS, _COLUMNS = 18, 32
_DIFFERENT = 0.6
"""Correlation of two thumbnails below which they show different things. Neighbours of one shot have 0.9 and more."""

_CHANGE = 0.01
"""Mean difference of two thumbnails, of 1, below which they never count as different."""

_BLANK = 0.004
"""Standard deviation of a thumbnail, of 1, below which it shows nothing: black, white, the end of a fade."""

_LOOKAHEAD = 5
"""Frames in which the old picture may come back: what was between was a flash."""

_KEPT = 5
"""At most so many frames stand for a scene."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A part of a video between two cuts.

    start: time of its first frame. frames: up to five of its frames, spread over it, in order; those that are much
    darker or flatter than the others (fades, flashes) are not among them unless there are no others.
    """

    start: Fraction
    frames: tuple[Frame, ...]


def thumbnail(frame: Frame) -> np.ndarray:
    """Luma of a frame, averaged down to (18, 32) (or the frame's size if smaller), float64, nominally in [0, 1]."""
    pixel, plane = frame.format.pixel_format, frame.planes[0]
    height, width = plane.shape[:2]
    # Every few pixels are enough to average over.
    luma = plane[:: max(1, height // (4 * _ROWS)), :: max(1, width // (4 * _COLUMNS))].astype(np.float64)
    if luma.ndim == 3:
        luma = luma.mean(axis=2)
    maximum = (1 << pixel.depth) - 1
    luma /= maximum
    if pixel.kind == "yuv" and not frame.format.full_range:
        luma = (luma * 255 - 16) / 219
    rows = np.linspace(0, luma.shape[0], min(_ROWS, luma.shape[0]), endpoint=False).astype(int)
    columns = np.linspace(0, luma.shape[1], min(_COLUMNS, luma.shape[1]), endpoint=False).astype(int)
    sums = np.add.reduceat(np.add.reduceat(luma, rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff([*rows, luma.shape[0]]), np.diff([*columns, luma.shape[1]]))
    average: np.ndarray = sums / counts
    return average


def is_blank(picture: np.ndarray) -> bool:
    """Whether a thumbnail shows nothing: one colour."""
    return bool(picture.std() < _BLANK)


def find_scenes(frames: Iterable[Frame]) -> Iterator[Scene]:
    """Scenes of a video, each as soon as the next has begun. Holds at most about twenty frames at a time."""
    # Not yet decided, with their thumbnails; the first is the next to decide on.
    ahead: deque[tuple[Frame, np.ndarray]] = deque()
    scene = _Growing()
    for frame in chain(frames, [None] * _LOOKAHEAD):
        if frame is not None:
            ahead.append((frame, thumbnail(frame)))
            if len(ahead) <= _LOOKAHEAD:
                continue
        if ahead:
            current, picture = ahead.popleft()
            if scene.begins_anew_with(picture, [later for _, later in ahead]):
                yield scene.finished()
                scene = scene.next(current.pts)
            scene.take(current, picture)
    if not scene.is_empty:
        yield scene.finished()


class _Growing:
    """The scene that the frames now belong to."""

    def __init__(self, start: Fraction | None = None) -> None:
        self._start = start
        self._anchor: np.ndarray | None = None  # the last picture that certainly belongs to the scene
        self._samples: list[tuple[Frame, np.ndarray]] = []
        self._stride = 1
        self._count = 0
        # Since when frames have shown nothing: they belong to the end of this scene or to the beginning of the next.
        self._blank_since: Fraction | None = None

    @property
    def is_empty(self) -> bool:
        return self._count == 0

    def begins_anew_with(self, picture: np.ndarray, later: Sequence[np.ndarray]) -> bool:
        """Whether a picture is of another scene, given the few that follow it.

        A new scene begins with a picture that lasts: where each differs from the next, something passes the lens.
        """
        anchor = self._anchor
        if is_blank(picture) or anchor is None or not _different(anchor, picture):
            return False
        lasts = not later or not _different(picture, later[0])
        return lasts and all(_different(anchor, other) for other in later)

    def next(self, time: Fraction) -> _Growing:
        """The scene that begins now, or with the blank frames before."""
        return _Growing(time if self._blank_since is None else self._blank_since)

    def take(self, frame: Frame, picture: np.ndarray) -> None:
        """Add a frame to the scene."""
        if is_blank(picture):
            if self._blank_since is None:
                self._blank_since = frame.pts
        elif self._anchor is None or not _different(self._anchor, picture):
            self._anchor, self._blank_since = picture, None
        if self._start is None:
            self._start = frame.pts
        if self._count % self._stride == 0:
            self._samples.append((frame, picture))
            if len(self._samples) > _KEPT:
                # Twice as far apart, so that however long the scene, they are spread over it.
                self._samples = self._samples[::2]
                self._stride *= 2
        self._count += 1

    def finished(self) -> Scene:
        """The scene; there must be a frame in it."""
        assert self._start is not None
        return Scene(self._start, tuple(_typical(self._samples)))


def _different(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two thumbnails show different things; exposure does not matter, only what is brighter than what."""
    if a.shape != b.shape:
        return True
    if np.abs(a - b).mean() < _CHANGE:
        return False
    deviations = a.std() * b.std()
    if deviations == 0:
        return True
    return bool(((a - a.mean()) * (b - b.mean())).mean() / deviations < _DIFFERENT)


def _typical(samples: list[tuple[Frame, np.ndarray]]) -> list[Frame]:
    """Without fades and flashes: frames of at least half the contrast, and near the middle in brightness."""
    contrasts = np.array([picture.std() for _, picture in samples])
    lumas = np.array([picture.mean() for _, picture in samples])
    enough = contrasts >= 0.5 * contrasts.max()
    usual = np.abs(lumas - np.median(lumas[enough])) < 0.25
    chosen = enough & usual if (enough & usual).any() else enough
    return [frame for (frame, _), wanted in zip(samples, chosen, strict=True) if wanted]
