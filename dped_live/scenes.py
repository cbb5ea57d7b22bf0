"""Where one scene of a video ends and the next begins, and which of its frames stand for it. numpy only.

Statistics belong to a scene: taken anew within one they make the picture flicker, carried over a cut they give it the
colours of another. A detector of our own, because it must run along with decoding and because what matters here is
not what matters to an editor: a cut that is missed costs more than one that is not there, a flash or a fade must not
count, and frames in the dark belong to the scene beside them. A dissolve lies between two scenes and in neither.
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

_LASTING = 0.5
"""The last two pictures of a scene, and the first two of the next, differ by less than this part of what the cut has
changed."""

_LOOKAHEAD = 5
"""Frames in which the old picture may come back: what was between was a flash."""

_KEPT = 5
"""At most so many frames stand for a scene."""

_LONGEST = 10
"""Seconds of a shot that become one scene at most: in a longer one the light may change for good."""

_LONGEST_DISSOLVE = 4
"""Seconds; what changes more slowly is no dissolve."""

_MIXING = 0.012
"""Difference, root mean square of 1, over twice _LOOKAHEAD frames, from which on these can be part of a dissolve."""

_FADED = 0.15
"""Contrast of one end of a dissolve, of the other's, below which it is a fade, perhaps with a title in the dark."""

_MIXED = 0.25
"""How far, relative to the difference of its ends, a picture in a dissolve may be from a mixture of these."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A part of a video between two cuts or dissolves, or ten seconds of it.

    start: time of its first frame. end: time of its last frame where a dissolve follows, None where the next scene
    begins at once. continues: it shows the same as the scene before, whose ten seconds were over.
    frames: up to five of its frames, spread over it, in order; those that are much darker or flatter than the others
    (fades, flashes) are not among them unless there are no others.
    """

    start: Fraction
    frames: tuple[Frame, ...]
    end: Fraction | None = None
    continues: bool = False


def thumbnail(frame: Frame) -> np.ndarray:
    """Luma of a frame, averaged down to (18, 32) (or the frame's size if smaller), float64, nominally in [0, 1]."""
    pixel, plane = frame.format.pixel_format, frame.planes[0]
    height, width = plane.shape[:2]
    down, across = steps(height, width)
    luma = plane[::down, ::across].astype(np.float64)
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


def steps(height: int, width: int) -> tuple[int, int]:
    """Of a picture, one row and one column of so many is looked at for its thumbnail: they are enough to average over.
    Of what they leave, all is."""
    return max(1, height // (4 * _ROWS)), max(1, width // (4 * _COLUMNS))


def is_blank(picture: np.ndarray) -> bool:
    """Whether a thumbnail shows nothing: one colour."""
    return bool(picture.std() < _BLANK)


def find_scenes(frames: Iterable[Frame]) -> Iterator[Scene]:
    """Scenes of a video, each as soon as the next has begun. Holds at most about twenty frames at a time."""
    # Not yet decided, with their thumbnails; the first is the next to decide on.
    ahead: deque[tuple[Frame, np.ndarray]] = deque()
    before: deque[tuple[Fraction, np.ndarray]] = deque(maxlen=_LOOKAHEAD)
    scene = _Growing()
    dissolve = _Dissolve()
    for frame in chain(frames, [None] * _LOOKAHEAD):
        if frame is not None:
            ahead.append((frame, thumbnail(frame)))
            if len(ahead) <= _LOOKAHEAD:
                continue
        if not ahead:
            break
        current, picture = ahead.popleft()
        later = [other for _, other in ahead]
        if scene.begins_anew_with(picture, later):
            yield scene.finished()
            scene = scene.next(current.pts)
            dissolve = _Dissolve()
        elif len(before) == len(later) == _LOOKAHEAD:
            mixing = _is_mixture(picture, before[0][1], later[-1])
            if mixing:
                dissolve.add(before[0], (current.pts, picture))
            elif dissolve.is_one(end=later[-2]) and scene.starts_before(dissolve.start):
                yield scene.finished(dissolve.start)
                scene = _Growing(ahead[-2][0].pts)
            if not mixing:
                dissolve = _Dissolve()
        if dissolve.is_empty and scene.lasts_long_at(current.pts):
            yield scene.finished()
            scene = scene.continued(current.pts)
        scene.take(current, picture)
        before.append((current.pts, picture))
    if not scene.is_empty:
        yield scene.finished()


class _Growing:
    """The scene that the frames now belong to.

    start: when it begins; frames that come before that time are not taken for it. None: with the first.
    """

    def __init__(self, start: Fraction | None = None, anchor: np.ndarray | None = None) -> None:
        self._start = start
        self._anchor = anchor  # the last picture that certainly belongs to the scene
        self._continues = anchor is not None
        self._motion = 0.0  # what changed from the picture before the anchor to it
        self._away = 0  # pictures in a row that differ from the anchor
        self._previous = np.empty((0, 0))
        self._samples: list[tuple[Frame, np.ndarray]] = []
        self._stride = 1
        self._count = 0
        # Since when frames have shown nothing: they belong to the end of this scene or to the beginning of the next.
        self._blank_since: Fraction | None = None

    @property
    def is_empty(self) -> bool:
        return self._count == 0

    def starts_before(self, time: Fraction) -> bool:
        """Whether there is a frame to stand for what was until then."""
        return bool(self._samples) and self._samples[0][0].pts <= time

    def lasts_long_at(self, time: Fraction) -> bool:
        return self._start is not None and self._blank_since is None and time - self._start >= _LONGEST

    def begins_anew_with(self, picture: np.ndarray, later: Sequence[np.ndarray]) -> bool:
        """Whether a picture is of another scene, given the few that follow it.

        A new scene begins with a picture that lasts: where each differs from the next, something passes the lens. The
        last picture of a video begins none.
        """
        anchor = self._anchor
        if is_blank(picture) or anchor is None:
            return False
        if not later or not all(are_different(anchor, other) for other in (picture, *later)):
            return False
        if are_different(picture, later[0]):
            return False
        if self._blank_since is not None:
            return True
        # What has changed since the anchor may just be in motion, and a fast pan goes on as it came.
        motion = max(self._motion, _change(picture, later[0]))
        return are_different(self._previous, picture) and motion < _LASTING * _change(anchor, picture)

    def next(self, time: Fraction) -> _Growing:
        """The scene that begins now, or with the blank frames before."""
        return _Growing(time if self._blank_since is None else self._blank_since)

    def continued(self, time: Fraction) -> _Growing:
        """The same shot from now on."""
        return _Growing(time, self._anchor)

    def take(self, frame: Frame, picture: np.ndarray) -> None:
        """Add a frame to the scene."""
        if is_blank(picture):
            if self._blank_since is None:
                self._blank_since = frame.pts
        else:
            self._away = self._away + 1 if self._anchor is not None and are_different(self._anchor, picture) else 0
            if self._away in (0, 2 * _LOOKAHEAD):
                # Away for so long without a cut: things have moved.
                self._motion = _change(self._previous, picture) if self._previous.size else 0.0
                self._anchor, self._blank_since, self._away = picture, None, 0
        self._previous = picture
        if self._start is None:
            self._start = frame.pts
        if frame.pts < self._start:
            return  # the end of the dissolve before
        if self._count % self._stride == 0:
            self._samples.append((frame, picture))
            if len(self._samples) > _KEPT:
                # Twice as far apart, so that however long the scene, they are spread over it.
                self._samples = self._samples[::2]
                self._stride *= 2
        self._count += 1

    def finished(self, end: Fraction | None = None) -> Scene:
        """The scene; there must be a frame in it, before `end` if that is given."""
        assert self._start is not None
        samples = [sample for sample in self._samples if end is None or sample[0].pts <= end]
        return Scene(self._start, tuple(_typical(samples)), end, self._continues)


class _Dissolve:
    """Frames that may be one picture turning into another."""

    def __init__(self) -> None:
        self._pictures: list[tuple[Fraction, np.ndarray]] = []

    @property
    def is_empty(self) -> bool:
        return not self._pictures

    @property
    def start(self) -> Fraction:
        return self._pictures[0][0]

    def add(self, before: tuple[Fraction, np.ndarray], current: tuple[Fraction, np.ndarray]) -> None:
        """One more frame that lies between others; `before` is where it started if this is the first."""
        if self.is_empty:
            self._pictures.append(before)
        self._pictures.append(current)
        if current[0] - self.start > _LONGEST_DISSOLVE:
            del self._pictures[0]

    def is_one(self, end: np.ndarray) -> bool:
        """Whether they lead to another scene, and each of them is a mixture of the first and of the end."""
        if self.is_empty:
            return False
        first = self._pictures[0][1]
        if not are_different(first, end) or min(first.std(), end.std()) < _FADED * max(first.std(), end.std()):
            return False
        way = end - first
        length = float((way * way).sum())
        for _, picture in self._pictures:
            share = float(((picture - first) * way).sum()) / length
            if float(np.square(picture - first - share * way).sum()) > _MIXED**2 * length:
                return False
        return True


def _change(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def _is_mixture(picture: np.ndarray, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a picture is halfway between two others, and these differ."""
    if before.shape != after.shape or before.shape != picture.shape:
        return False
    change = float(np.square(after - before).mean()) ** 0.5
    return change > _MIXING and bool(np.square(picture - (before + after) / 2).mean() ** 0.5 < _MIXED * change)


def are_different(a: np.ndarray, b: np.ndarray) -> bool:
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
