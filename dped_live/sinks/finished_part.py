"""What is finished of a file whose making was broken off, so that it can be gone on with."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.bitstream import BitStreamFilterContext

_TAG = "dped-live"

_BOX, _ELEMENT = b"\0\0\0\x18freedped-live: short", b"\xec\x90dped-live: short"
_SHORT = {".mp4": _BOX, ".m4v": _BOX, ".mov": _BOX, ".mkv": _ELEMENT, ".webm": _ELEMENT}
"""A free box (ISO 14496-12, 8.1.2) and a void element (RFC 8794, 11.3.2), which mean nothing to anybody else."""

_AS_ENCODED = {
    "h264": "h264_mp4toannexb,filter_units=remove_types=7-8",
    "hevc": "hevc_mp4toannexb,filter_units=remove_types=32-34",
}
"""What makes of a container's packets those of the encoder: other marks between the units, and the parameters that the
container has in its header are not repeated (ITU-T H.264, table 7-1; H.265, table 7-1)."""


@dataclass(frozen=True, slots=True)
class JobKey:
    """What a file is made by, of and with; two runs with equal keys write the same pictures.

    program, source, options: short hashes, in hexadecimal.
    """

    program: str
    source: str
    options: str

    def difference(self, other: JobKey) -> str | None:
        """What two keys do not have in common, for people; None if they are equal."""
        for what in ("source", "options", "program"):
            if getattr(self, what) != getattr(other, what):
                return {"source": "another source", "options": "other options"}.get(what, "another version or model")
        return None

    @property
    def tag(self) -> str:
        """As it stands in a file: as the name of the program that wrote the pictures."""
        return f"{_TAG} {self.program} {self.source} {self.options}"


def job_of(path: Path) -> JobKey | None:
    """The key that a file was written with, finished or not; None if there is none that can be read."""
    try:
        with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
            for stream in container.streams.video:
                tags = {key.lower(): value for key, value in stream.metadata.items()}
                name, *hashes = tags.get("handler_name", "").split()
                if name == _TAG and len(hashes) == 3:
                    return JobKey(*hashes)
    except (av.FFmpegError, OSError, ValueError):
        pass
    return None


def mark_short(path: Path) -> None:
    """Write behind a finished file that it has fewer pictures than its source promised; players pass over it."""
    if (mark := _SHORT.get(path.suffix.lower())) is not None:
        with path.open("ab") as file:
            file.write(mark)


def is_short(path: Path) -> bool:
    """Whether a file has that mark."""
    mark = _SHORT.get(path.suffix.lower(), b"")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(mark)))
        return bool(mark) and file.read() == mark


class FinishedPart:
    """The pictures of an unfinished file that are whole: all before its last keyframe, which begins a closed group.

    path: of the file. frames: how many. times: of those that are kept, in presentation order. after: of the keyframe,
    which is not among them. tick: of these times. All in seconds. extradata: the encoder's parameters.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames = 0
        self.after: Fraction | None = None
        self.tick = Fraction(1)
        self.extradata = b""
        times: list[Fraction] = []
        latest = Fraction(-1 << 62)
        # Its end is missing; that is why it is gone on with.
        with contextlib.suppress(av.FFmpegError, OSError, IndexError), av.open(f"file:{path}") as container:
            stream = container.streams.video[0]
            self.extradata = stream.codec_context.extradata or b""
            for packet in container.demux(stream):
                if not _is_whole(packet):
                    continue
                assert packet.pts is not None
                self.tick = packet.time_base
                time = packet.pts * self.tick
                if packet.is_keyframe and time > latest:
                    self.frames, self.after = len(times), time
                latest = max(latest, time)
                times.append(time)
        del times[self.frames :]
        self.times = sorted(times)
        # So many packets come before others that are shown earlier.
        rank = {time: number for number, time in enumerate(self.times)}
        self._delay = max((number - rank[time] for number, time in enumerate(times)), default=0)

    def move_to(self, path: Path) -> None:
        """Rename the file."""
        self.path.replace(path)
        self.path = path

    def packets(self) -> Iterator[av.Packet[Any]]:
        """The packets of the pictures, in the order of decoding, as the encoder gave them."""
        with av.open(f"file:{self.path}") as container:
            stream = container.streams.video[0]
            name = _AS_ENCODED.get(stream.codec_context.codec.canonical_name)
            restored = None if name is None else BitStreamFilterContext(name, in_stream=stream)
            whole = itertools.islice(filter(_is_whole, container.demux(stream)), self.frames)
            for number, packet in enumerate(whole):
                if packet.dts is None:
                    packet.dts = self._decoded_at(number)
                if restored is None:
                    yield packet
                    continue
                tick = packet.time_base
                for own in restored.filter(packet):
                    own.time_base = tick
                    yield own

    def _decoded_at(self, number: int) -> int:
        """When a packet is decoded, in ticks; Matroska does not keep it."""
        before = max(0, self._delay - number)
        return round(self.times[max(0, number - self._delay)] / self.tick) - before


def _is_whole(packet: av.Packet[Any]) -> bool:
    return bool(packet.size) and packet.pts is not None and not packet.is_corrupt
