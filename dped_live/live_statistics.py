"""Statistics of a live picture, whose future is not known: steady while the scene is, and soon right after it changed.

What a viewer would see as flicker comes from statistics that follow the picture; what he would see as wrong colours,
from statistics that do not. So they are taken from the first picture that shows something, and then follow

    - by half a percent a second, always: less than a tenth of a level, and after minutes all of it;
    - with a time constant of half a second while the light of the whole picture differs from what the statistics stand
      for: the camera's exposure settles, lamps are switched on;
    - with one of four seconds while the picture has shown something else for two seconds, and its statistics are far;
    - at once, when after a cut three pictures show the same new scene.

An object that passes, a hand before the lens and a flash are none of these.
"""

from __future__ import annotations

import math
from collections import deque
from fractions import Fraction

import numpy as np

from dped_live.borders import find_area
from dped_live.frame import Area, Frame
from dped_live.scene_statistics import DARKEST, Normalisation, brightness_weight
from dped_live.scenes import are_different, is_blank, thumbnail
from dped_live.statistics import Statistics, blend, distance

_ALWAYS = 200.0
_LIGHT = 0.5
_SCENE = 4.0
"""Time constants, seconds; see above."""

_LIGHT_CHANGED, _LIGHT_SETTLED = 0.02, 0.005
"""Change of the median cell of the thumbnail, of 1, from which on the light has changed, and until it is followed."""

_STEADY = 10
"""As long as there have not been so many in the same light, each other light begins anew: cameras start in the dark,
and videos fade in."""

_PICTURES_CHANGED = 3
"""So many pictures in a row must agree on a change of light or on a cut; a flash lasts one or two."""

_SECONDS_CHANGED = 2
"""So long another picture must last where there was no cut; a hand before the lens mostly does not."""

_FAR, _NEAR = 0.2, 0.05
"""Distance of statistics, at about 30 dB of agreement, up to which another picture is no reason to hurry, and that at
which it is reached."""

_SAME = 1e-4
"""Distance up to which a measurement is the same again and its rounding is not followed: 96 dB of agreement."""

_COVERED = 0.4
"""Contrast, of what it was, below which a new picture is no cut: something covers the lens."""

_INTERVALS = {_ALWAYS: 32, _SCENE: 8, _LIGHT: 4}
"""Every how many pictures are measured. Measuring takes three quarters of the time of enhancing: with 32, 2.4 %."""

_BORDER_SECONDS = 2
"""How often borders are looked for."""


class LivePolicy:
    """Follows a live picture; see Policy. Holds no picture, and the same pictures at the same times give the same.

    A picture darker than DARKEST is never measured, so that noise is not stretched; until there is a lighter one, the
    picture stays as it is.
    """

    def __init__(self) -> None:
        self._statistics: Statistics | None = None
        self._target: Statistics | None = None  # the last measurement
        self._stands_for = np.empty(0)  # the thumbnail of what was measured, moved as the statistics are
        self._recent: deque[np.ndarray] = deque(maxlen=_PICTURES_CHANGED)
        self._pictures = 0  # since the beginning
        self._light_changed = 0  # pictures in a row
        self._other_since: Fraction | None = None
        self._is_other = False  # is being followed because it is another
        self._until_measured = 0  # pictures
        self._time = Fraction(0)
        self._borders = _Borders()

    def normalisation(self, frame: Frame) -> Normalisation:
        area = self._borders.area_of(frame)
        picture = thumbnail(frame.cropped(area)[0])
        passed = max(0.0, float(frame.pts - self._time))
        self._time = frame.pts
        worth_measuring = not is_blank(picture) and picture.mean() >= DARKEST
        if self._statistics is None or picture.shape != self._stands_for.shape:
            if worth_measuring:
                return self._begin(frame, picture, area)
            return Normalisation(None, 0, area)
        if worth_measuring and self._is_cut(picture):
            return self._begin(frame, picture, self._borders.look_again(frame))
        if worth_measuring and self._pictures < _STEADY and self._change_of_light(picture) > _LIGHT_CHANGED:
            return self._begin(frame, picture, area)
        if worth_measuring:
            self._pictures += 1
            self._recent.append(picture)
            time_constant = self._time_constant(frame.pts, picture)
            self._follow(picture, 1 - math.exp(-passed / time_constant))
            self._until_measured = min(self._until_measured, _INTERVALS[time_constant]) - 1
        return Normalisation(
            self._statistics,
            brightness_weight(frame, area, max(float(self._stands_for.mean()), DARKEST)),
            area,
            measured=worth_measuring and self._until_measured <= 0,
        )

    def learn(self, measured: Statistics) -> None:
        if self._statistics is None:
            self._statistics = measured
        is_same = distance(measured, self._statistics) <= _SAME
        self._target = self._statistics if is_same else measured
        self._until_measured = _INTERVALS[_ALWAYS]

    def _begin(self, frame: Frame, picture: np.ndarray, area: Area) -> Normalisation:
        """Start with this picture's own statistics."""
        self._statistics = self._target = None
        self._stands_for = thumbnail(frame.cropped(area)[0])
        self._recent.clear()
        self._recent.append(picture)
        self._pictures, self._light_changed = 0, 0
        self._other_since, self._is_other = None, False
        return Normalisation(None, 1, area, measured=True)

    def _is_cut(self, picture: np.ndarray) -> bool:
        """Whether the last pictures show one thing, and what was before them another.

        What passes the lens comes in over some pictures, which differ from one another.
        """
        if len(self._recent) < _PICTURES_CHANGED or not are_different(self._stands_for, picture):
            return False
        before, *new = self._recent
        if before.shape != picture.shape or picture.std() < _COVERED * self._stands_for.std():
            return False
        return not any(are_different(picture, other) for other in new) and all(
            are_different(before, other) for other in (*new, picture)
        )

    def _time_constant(self, time: Fraction, picture: np.ndarray) -> float:
        if are_different(self._stands_for, picture):
            self._light_changed = 0
            if self._other_since is None:
                self._other_since = time
            if time - self._other_since >= _SECONDS_CHANGED and self._distance() > _FAR:
                self._is_other = True
        else:
            self._other_since = None
            limit = _LIGHT_SETTLED if self._light_changed >= _PICTURES_CHANGED else _LIGHT_CHANGED
            self._light_changed = self._light_changed + 1 if self._change_of_light(picture) > limit else 0
        if self._is_other:
            self._is_other = self._distance() > _NEAR
            return _SCENE
        return _LIGHT if self._light_changed >= _PICTURES_CHANGED else _ALWAYS

    def _change_of_light(self, picture: np.ndarray) -> float:
        return abs(float(np.median(picture - self._stands_for)))

    def _distance(self) -> float:
        """How far there is to go."""
        assert self._statistics is not None
        assert self._target is not None
        return distance(self._target, self._statistics)

    def _follow(self, picture: np.ndarray, share: float) -> None:
        """Move by a share of the way."""
        assert self._statistics is not None
        assert self._target is not None
        if self._target is not self._statistics:
            self._statistics = blend(self._statistics, self._target, share)
        self._stands_for = self._stands_for + share * (picture - self._stands_for)


class _Borders:
    """The borders of a live picture. They come when they have been seen twice, and go at once when seen gone."""

    def __init__(self) -> None:
        self._area: Area | None = None
        self._whole: Area | None = None
        self._seen: Area | None = None
        self._looked_at = Fraction(0)

    def area_of(self, frame: Frame) -> Area:
        if self._area is None or self._whole != frame.whole:
            self._area = None
            return self.look_again(frame)
        if frame.pts - self._looked_at >= _BORDER_SECONDS:
            found = find_area([frame], self._area)
            # Seen twice: what both have found to be a picture.
            self._area = found if self._seen is None else found.union(self._seen)
            self._seen, self._looked_at = found, frame.pts
        return self._area

    def look_again(self, frame: Frame) -> Area:
        """After a cut: as this frame says."""
        self._area = self._seen = find_area([frame], self._area)
        self._whole, self._looked_at = frame.whole, frame.pts
        return self._area
