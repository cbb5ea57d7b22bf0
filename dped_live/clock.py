"""One clock for a file whose timestamps start anew in the middle, as those of joined transport streams do."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

_STEADY = frozenset({"mov", "matroska", "avi"})
"""Containers with one index, and so one clock. Pictures and clocks may stand still in them for as long as they like."""

STARTS_ANYWHERE = frozenset({"mpegts", "mpeg", "vob"})
"""Containers of a running clock: their first timestamp means nothing."""

_BACK, _FORWARD = 0.1, 600.0
"""Seconds that the timestamps of a stream may go back, as careless muxers let them, or go on, as where reception was
lost, before it is another clock. Steps forward are looked at in containers of a running clock only."""

_LONGEST = Fraction(1)
"""Seconds that a packet is taken to last, at most, where the file does not say."""

_AHEAD, _BEHIND = 10.0, 2.0
"""Seconds by which streams may be apart where a recording begins."""


class Clock:
    """What to add to the timestamps of a file, so that what was joined comes one after the other.

    One Clock goes with one reading of a file from its beginning, and is told of every packet of all its streams in the
    file's order. What it answers depends on nothing else: whoever reads the file again with a Clock of his own gets the
    same answers, so that what is copied stays with the pictures. A file with one clock has its timestamps unchanged.

    Where the next recording begins is found by each stream for itself, because their packets overlap there. The first
    of sound and pictures that is found to jump continues without a gap. The others keep their distance to it, unless
    they would overlap with their own past: then all are moved on.

    container: FFmpeg's name of the format. joins: where further recordings begin, in seconds, as corrected.
    """

    def __init__(self, container: str) -> None:
        names = set(container.split(","))
        self._steady = not names.isdisjoint(_STEADY)
        self._furthest = float("inf") if names.isdisjoint(STARTS_ANYWHERE) else _FORWARD
        self._offsets = [Fraction(0)]
        self._recording: dict[int, int] = {}
        self._last: dict[int, Fraction] = {}
        self._end: dict[int, Fraction] = {}
        self._now = Fraction(0)
        self.joins: list[float] = []

    def correct(self, packet: Any) -> None:
        """Put the timestamps of an av.Packet, the next of the file, on the clock."""
        tick = packet.time_base
        offset = self.offset(packet.stream_index, packet.stream.type, tick, packet.dts, packet.pts, packet.duration)
        if offset:
            ticks = round(offset / tick)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks

    def offset(
        self, stream: int, kind: str, tick: Fraction, dts: int | None, pts: int | None, duration: int | None
    ) -> Fraction:
        """Seconds to add to both timestamps of a packet, which are given in ticks; None where there is none.

        stream: its number. kind: PyAV's word for it.
        """
        stamps = [stamp * tick for stamp in (dts, pts) if stamp is not None]
        if self._steady or not stamps:
            return self._offsets[self._recording.get(stream, -1)]
        decoded, shown = stamps[0], stamps[-1]
        if kind not in ("audio", "video"):
            number = self._recording[stream] = self._nearest(decoded)
            return self._offsets[number]
        number = self._recording[stream] = self._which(stream, decoded, shown)
        offset = self._offsets[number]
        self._now = decoded + offset
        # Where a packet does not say how long it lasts: as long as after the one before.
        span = duration * tick if duration else min(_LONGEST, self._now - self._last.get(stream, self._now))
        self._last[stream] = self._now
        self._end[stream] = max(shown + offset + span, self._end.get(stream, shown))
        return offset

    def _nearest(self, decoded: Fraction) -> int:
        """The recording of a packet of a stream that may be silent for long: where the others are."""
        return min(range(len(self._offsets)), key=lambda n: abs(decoded + self._offsets[n] - self._now))

    def _which(self, stream: int, decoded: Fraction, shown: Fraction) -> int:
        """The recording that a packet belongs to; a new one if there is none."""
        offsets = self._offsets
        last = self._last.get(stream)
        if last is None:
            return len(offsets) - 1
        steps = [float(decoded + offset - last) for offset in offsets]
        present = self._recording[stream]
        if -_BACK <= steps[present] <= self._furthest:
            return present
        # Another stream may have found the next one already; and after a single wrong timestamp all is as before.
        known = [n for n, step in enumerate(steps) if -(_BEHIND if n > present else _BACK) <= step <= _AHEAD]
        if known := [n for n in known if n != present]:
            number = min(known, key=lambda n: abs(steps[n]))
            if number > present:
                offsets[number] += max(Fraction(0), self._end[stream] - shown - offsets[number])
            return number
        offsets.append(self._end[stream] - shown)
        self.joins.append(float(self._end[stream]))
        return len(offsets) - 1
