"""What is expected of each real file, and what is found: the table real_files.tsv, and how to fill it anew.

    python tests/real_files.py [DATA FOLDER] > tests/real_files.tsv

fills every column from what our source gives, but for `cut` and `differs`, which are kept. Then each change is to be
looked at by eye: the table says what should be, not what is. tests/test_real_files.py compares it with what comes out,
and with what FFmpeg's own program says.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from dped_live.errors import DpedError
from dped_live.frame import VideoFormat
from dped_live.sources.file import FileSource

TABLE = Path(__file__).with_suffix(".tsv")


@dataclass(frozen=True)
class Row:
    """A line of the table; all as text.

    file: in the folder `video`. cut: seconds of it that are looked at; empty: all. error: how its message ends, if it
    is one, and then there is nothing more. frames, first, last: their number, and the times of the first and the last.
    start: what was taken off the file's own. size, pixels, colour: of the frames; colour is range/matrix/primaries/
    transfer, the latter two as numbers of H.273. rotation: degrees. streams: of each kind, for who copies them.
    notes: what is said of the file; shortfall: why it is shorter than it promises. differs: why FFmpeg's program says
    something else.
    """

    file: str
    cut: str = ""
    error: str = ""
    frames: str = ""
    first: str = ""
    last: str = ""
    start: str = ""
    size: str = ""
    pixels: str = ""
    colour: str = ""
    rotation: str = ""
    streams: str = ""
    notes: str = ""
    shortfall: str = ""
    differs: str = ""


def read_table() -> list[Row]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [Row(**line) for line in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def colour_of(fmt: VideoFormat) -> str:
    return f"{'full' if fmt.full_range else 'limited'}/{fmt.matrix}/{fmt.primaries}/{fmt.transfer}"


def look_at(path: Path, row: Row) -> tuple[Row, list[Fraction]]:
    """What the source makes of a file, and the times of all frames."""
    end = Fraction(row.cut) if row.cut else None
    try:
        source = FileSource(path, end=end)
    except DpedError as error:
        message = str(error).removeprefix(f"{path}: ")
        return Row(row.file, row.cut, error=message, differs=row.differs), []
    try:
        times = [frame.pts for frame in source.frames()]
    finally:
        source.close()
    fmt = source.format
    with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
        streams = Counter(stream.type for stream in container.streams)
        picture: Any = next(container.decode(container.streams[source.video_index]))
        rotation = picture.rotation
    found = Row(
        row.file,
        row.cut,
        "",
        str(len(times)),
        str(times[0]),
        str(times[-1]),
        str(source.start),
        f"{fmt.width}x{fmt.height}",
        fmt.pixel_format.name,
        colour_of(fmt),
        str(rotation),
        " ".join(f"{kind}:{count}" for kind, count in sorted(streams.items())),
        "; ".join(source.notes),
        source.shortfall or "",
        row.differs,
    )
    return found, times


def fill(folder: Path) -> None:
    """Write the table of all files of the folder to standard output."""
    known = {row.file: row for row in read_table()} if TABLE.exists() else {}
    names = [f"{part}/{path.name}" for part in ("real", "odd") for path in sorted((folder / part).iterdir())]
    columns = [column.name for column in fields(Row)]
    lines = ["\t".join(columns)]
    for name in names:
        found, _ = look_at(folder / name, known.get(name, Row(name)))
        lines.append("\t".join(getattr(found, column) for column in columns))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    from conftest import SHARED

    fill((Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED) / "video")
