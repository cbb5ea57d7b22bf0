"""A finished file read back: whether it holds what was put into it. Packets are counted, pictures are not decoded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from dped_live.errors import OutputError

_EXACT, _ROUGH = Fraction(1, 1000), Fraction(2, 1000)
_TOLERANCE = {"mov": _EXACT, "mpegts": _EXACT, "matroska": _ROUGH}
"""Container -> seconds by which a time may differ from the one that was written: Matroska rounds to milliseconds.
Others, such as AVI, keep times in ways of their own; there only the counts are compared."""


@dataclass(slots=True)
class Tally:
    """What was written to one stream, or read from it; times in seconds, None before the first packet."""

    kind: str
    packets: int = 0
    first: Fraction | None = None
    last: Fraction | None = None
    end: Fraction | None = None

    def count(self, packet: av.Packet[Any]) -> None:
        """Add a packet. Of raw streams they have no times."""
        self.packets += 1
        if packet.pts is None:
            return
        time = packet.pts * packet.time_base
        self.first = time if self.first is None else min(self.first, time)
        self.last = time if self.last is None else max(self.last, time)
        end = time + (packet.duration or 0) * packet.time_base
        self.end = end if self.end is None else max(self.end, end)


@dataclass(frozen=True, slots=True)
class Verification:
    """What a finished file holds.

    frames, seconds: of the pictures. streams: of each stream its kind, number of packets, and the times in seconds
    where it begins and ends.
    """

    frames: int
    seconds: float
    streams: list[dict[str, Any]] = field(default_factory=list)


def verify(path: Path, written: list[Tally], refused: int = 0) -> Verification:
    """Read a file back, and compare it with what was written: the first Tally is of the pictures.

    refused: packets that may be missing, but not of the pictures.

    Raises OutputError: the file cannot be read, or a stream is missing, or has other packets or times.
    """
    try:
        with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
            read = _tallies(container)
            name = container.format.name
    except (av.FFmpegError, OSError) as error:
        raise OutputError(f"cannot be read back ({getattr(error, 'strerror', None) or error})") from error
    tolerance = next((seconds for key, seconds in _TOLERANCE.items() if key in name), None)
    pictures = written[0]
    found = _by_kind(read)
    for kind, expected in _by_kind(written).items():
        # Muxers add streams of data: timecodes, the text of chapters.
        if len(found[kind]) < len(expected):
            raise OutputError(f"{len(expected)} {kind} streams were written and {len(found[kind])} can be read back")
        for number, (one, other) in enumerate(zip(expected, found[kind], strict=False), 1):
            if one is not pictures and 0 < one.packets - other.packets <= refused:
                continue
            _compare(f"{kind} stream {number}", one, other, (pictures, found["video"][0]), tolerance)
    begin, end = found["video"][0].first or Fraction(0), found["video"][0].end or Fraction(0)
    streams = [
        {"kind": tally.kind, "packets": tally.packets, "begin": _seconds(tally.first), "end": _seconds(tally.end)}
        for tally in read
    ]
    return Verification(found["video"][0].packets, float(end - begin), streams)


def _tallies(container: av.container.InputContainer) -> list[Tally]:
    kept = [stream for stream in container.streams if stream.type != "attachment" and not _is_cover(stream)]
    tallies = {stream.index: Tally(stream.type) for stream in kept}
    for packet in container.demux(*kept):
        # A gap between two subtitles of an MP4 file is a packet of its own, of two bytes.
        is_gap = packet.stream.type == "subtitle" and packet.size <= 2 and packet.stream.codec.name == "mov_text"
        if packet.size and not is_gap:
            tallies[packet.stream.index].count(packet)
    return list(tallies.values())


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _by_kind(tallies: list[Tally]) -> defaultdict[str, list[Tally]]:
    found = defaultdict(list)
    for tally in tallies:
        found[tally.kind].append(tally)
    return found


def _compare(name: str, written: Tally, read: Tally, pictures: tuple[Tally, Tally], tolerance: Fraction | None) -> None:
    if written.packets != read.packets:
        raise OutputError(f"{written.packets} packets of {name} were written and {read.packets} can be read back")
    if tolerance is None or not written.packets:
        return
    # A container may count from another moment; but for all of its streams.
    origins = [tally.first or Fraction(0) for tally in pictures]
    times = {"begins": (written.first, read.first), "has its last picture or sound": (written.last, read.last)}
    for what, pair in times.items():
        one, other = (float((time or 0) - origin) for time, origin in zip(pair, origins, strict=True))
        if abs(one - other) > tolerance:
            raise OutputError(f"{name} {what} at {other:.3f} s of the file instead of {one:.3f} s")


def _seconds(time: Fraction | None) -> float | None:
    return None if time is None else float(time)
