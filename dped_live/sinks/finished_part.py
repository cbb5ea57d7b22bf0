"""What is finished of a file whose making was broken off, so that it can be gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

_TAG = "dped-live"


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


class FinishedPart:
    """The pictures of an unfinished file that are whole: all before its last keyframe, which begins a closed group.

    path: of the file. frames: how many. times: of those that are kept, in presentation order. after: of the keyframe,
    which is not among them. extradata: of the encoder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames = 0
        self.after: Fraction | None = None
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
                time = packet.pts * packet.time_base
                if packet.is_keyframe and time > latest:
                    self.frames, self.after = len(times), time
                latest = max(latest, time)
                times.append(time)
        self.times = sorted(times[: self.frames])

    def move_to(self, path: Path) -> None:
        """Rename the file."""
        self.path.replace(path)
        self.path = path

    def packets(self) -> Iterator[av.Packet[Any]]:
        """The packets of the pictures, in the order of decoding."""
        if not self.frames:
            return
        with av.open(f"file:{self.path}") as container:
            left = self.frames
            for packet in container.demux(container.streams.video[0]):
                if _is_whole(packet):
                    yield packet
                    left -= 1
                    if not left:
                        return


def _is_whole(packet: av.Packet[Any]) -> bool:
    return bool(packet.size) and packet.pts is not None and not packet.is_corrupt
