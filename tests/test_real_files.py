"""Every real file against the table of what is expected of it (real_files.py), and against FFmpeg's own programs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from dped_live import batch, weights
from dped_live.backends import open_backend
from dped_live.errors import InputError
from dped_live.sinks.companion import StreamFate
from dped_live.sinks.encoding import Encoding
from dped_live.sources.file import FileSource

from real_files import Row, look_at, read_table
from test_video import Identity

FFPROBE = shutil.which("ffprobe")
ROWS = read_table()
WHOLE = [row for row in ROWS if not row.error]
SMALL = 400 * 300 * 100
"""Pixels of all pictures of a file, up to which all of them go the whole way. Of others the first second does."""

MATRICES = {
    **dict.fromkeys(("bt470bg", "smpte170m"), "bt601"),
    **dict.fromkeys(("bt2020nc", "bt2020c"), "bt2020"),
    "bt709": "bt709",
}
PRIMARIES = {"bt709": 1, "unknown": 2, "bt470bg": 5, "smpte170m": 6, "bt2020": 9}
TRANSFERS = {"bt709": 1, "unknown": 2, "smpte170m": 6, "iec61966-2-1": 13, "smpte2084": 16, "arib-std-b67": 18}


BACK_AND_FORTH = {"real/mp4parse-rust__no_timescale.mp4", "odd/res_change.ts"}
"""Of damaged pictures, and where two recordings overlap by a picture."""


def name_of(row: Row) -> str:
    return row.file


def without_counts_of_damage(row: Row) -> Row:
    """How much of a picture is damaged depends on which of the decoder's threads was first."""
    return replace(row, notes=re.sub(r"\d+ pictures? (is|are) damaged", "some pictures are damaged", row.notes))


def test_table_has_every_file(shared: Path) -> None:
    files = [f"{part}/{path.name}" for part in ("real", "odd") for path in sorted((shared / "video" / part).iterdir())]
    assert [row.file for row in ROWS] == files


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_file_is_what_the_table_says(shared: Path, row: Row) -> None:
    found, times = look_at(shared / "video" / row.file, row)
    assert without_counts_of_damage(found) == without_counts_of_damage(row)
    if row.file not in BACK_AND_FORTH:
        assert times == sorted(times)


@pytest.mark.skipif(FFPROBE is None, reason="needs ffprobe as an independent judge")
@pytest.mark.parametrize("row", WHOLE, ids=name_of)
def test_ffprobe_says_the_same(shared: Path, row: Row) -> None:
    path = shared / "video" / row.file
    source = FileSource(path, end=Fraction(row.cut) if row.cut else None, hdr="keep")
    times = [frame.pts + source.start for frame in source.frames()]
    fmt, index = source.format, source.video_index
    source.close()
    said = ffprobe(path, index, row.cut)
    stream, frames = said["streams"][0], said["frames"]
    assert Fraction(stream["time_base"]) == fmt.time_base or row.differs
    if row.differs:
        assert abs(len(frames) - len(times)) <= 1
    else:
        ticks = [frame["best_effort_timestamp"] for frame in frames]
        ticks = [tick for tick in ticks if not row.cut or tick * fmt.time_base < Fraction(row.cut)]
        assert times == [tick * fmt.time_base for tick in ticks]
    assert (stream["width"], stream["height"]) == (fmt.width, fmt.height)
    if fmt.pixel_format.kind != "yuv":
        return
    guess = "bt709" if fmt.height >= 720 else "bt601"
    assert fmt.matrix == MATRICES.get(stream.get("color_space", "unknown"), guess)
    assert fmt.full_range == (stream.get("color_range") == "pc")
    assert fmt.primaries == PRIMARIES[stream.get("color_primaries", "unknown")]
    assert fmt.transfer == TRANSFERS[stream.get("color_transfer", "unknown")]
    if row.rotation != "0":
        turns = [data["rotation"] for data in stream["side_data_list"] if "rotation" in data]
        assert int(row.rotation) in turns or row.differs


def ffprobe(path: Path, index: int, cut: str) -> dict[str, Any]:
    entries = "frame=best_effort_timestamp:stream=time_base,width,height,color_space,color_range,color_primaries"
    command = [str(FFPROBE), "-v", "error", "-select_streams", str(index), "-of", "json"]
    command += ["-show_entries", f"{entries},color_transfer:stream_side_data=rotation"]
    command += ["-read_intervals", f"%+{cut}"] if cut else []
    answer = subprocess.run([*command, f"file:{path}"], check=True, capture_output=True, timeout=120).stdout
    said: dict[str, Any] = json.loads(answer)
    return said


def first_second(row: Row) -> dict[str, Any]:
    width, height = map(int, row.size.split("x"))
    if width * height * int(row.frames) <= SMALL:
        return {"end": Fraction(row.cut)} if row.cut else {}
    return {"end": Fraction(row.first) + (1 if width <= 1920 else Fraction(1, 5))}


@pytest.mark.parametrize("row", WHOLE, ids=name_of)
def test_every_picture_goes_the_whole_way(shared: Path, tmp_path: Path, row: Row) -> None:
    # HDR is mapped in the test of the table; it takes seconds.
    path, cut = shared / "video" / row.file, first_second(row) | {"hdr": "keep"}
    source = FileSource(path, **cut)
    frames = [frame.pts for frame in source.frames()]
    source.close()
    for suffix in (".mp4",) if "end" in cut else (".mkv", ".mp4"):  # large ones take their time
        target = tmp_path / f"out{suffix}"
        notes: list[str] = []
        settings = batch.Settings(strength=0.0, encoding=Encoding(preset="ultrafast"), **cut)
        planned: list[StreamFate] = []
        outcome = batch.enhance_video(
            batch.Job(path, target, False), Identity(), settings, notes.append, begun=remember(planned)
        )
        assert outcome.frames == len(frames)
        assert outcome.verification is not None
        assert FFPROBE is None or streams_of(target) == Counter(
            fate.kind for fate in planned if fate.fate != "dropped" and fate.kind in ("video", "audio", "subtitle")
        )
        with av.open(f"file:{target}", metadata_errors="surrogateescape") as container:
            stream = container.streams.video[0]
            tick = stream.time_base
            assert tick is not None
            shown = sorted(packet.pts * tick for packet in container.demux(stream) if packet.pts is not None)
            first = next(iter_pictures(target))
        expected = moved_on(moved_on(frames, source.format.time_base), tick)
        # Matroska has no times before 0: where sound begins before it (AAC does), everything is later.
        shift = shown[0] - expected[0] if suffix == ".mkv" else 0
        assert 0 <= shift <= Fraction(1, 20)
        slack = 0 if suffix == ".mp4" else Fraction(2 if row.file in BACK_AND_FORTH else 1, 1000)
        assert [b for a, b in zip(shown, expected, strict=True) if abs(a - shift - b) > slack] == []
        if source.format.pixel_format.kind == "yuv" and not source.format.has_alpha:
            assert first.color_primaries == source.format.primaries
            assert first.color_trc == source.format.transfer
            assert (first.color_range == 2) == source.format.full_range
        target.unlink()
    assert list(tmp_path.iterdir()) == []


def remember(planned: list[StreamFate]) -> Callable[[Sequence[StreamFate], Sequence[str]], None]:
    return lambda streams, _notes: planned.extend(streams)


def streams_of(path: Path) -> Counter[str]:
    """As FFmpeg's own program sees them, without covers, data and attachments."""
    command = [str(FFPROBE), "-v", "error", "-of", "json", "-show_entries", "stream=codec_type:stream_disposition"]
    found = json.loads(subprocess.run([*command, f"file:{path}"], check=True, capture_output=True, timeout=60).stdout)
    kinds = [s["codec_type"] for s in found["streams"] if not s["disposition"]["attached_pic"]]
    return Counter(kind for kind in kinds if kind in ("video", "audio", "subtitle"))


def iter_pictures(path: Path) -> Any:
    with av.open(f"file:{path}", metadata_errors="surrogateescape") as container:
        yield from container.decode(video=0)


def moved_on(times: list[Fraction], tick: Fraction) -> list[Fraction]:
    """These times in ticks of an output, each at least one after the one before: no container can say it otherwise."""
    ticks: list[int] = []
    for time in times:
        ticks.append(max(round(time / tick), ticks[-1] + 1 if ticks else round(time / tick)))
    return [number * tick for number in ticks]


@pytest.mark.parametrize("row", [row for row in ROWS if row.error], ids=name_of)
def test_what_cannot_be_read_is_one_line_and_leaves_nothing(shared: Path, tmp_path: Path, row: Row) -> None:
    path = shared / "video" / row.file
    with pytest.raises(InputError) as caught:
        batch.enhance_video(
            batch.Job(path, tmp_path / "out.mkv", False), Identity(), batch.Settings(strength=0.0), lambda _: None
        )
    assert str(caught.value) == f"{path}: {row.error}"
    assert list(tmp_path.iterdir()) == []


SAMPLE = [
    "real/decord__flipping_a_pancake.mkv",
    "real/torchcodec__h264_10bits.mp4",
    "real/photoprism__earth.avi",
    "odd/vfr.mp4",
    "odd/rot270.mp4",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_sample_goes_through_the_real_network(shared: Path, tmp_path: Path, name: str) -> None:
    backend = open_backend(weights.load(weights.LITE), "cpu", "auto")
    target = tmp_path / "out.mkv"
    settings = batch.Settings(encoding=Encoding(preset="ultrafast"), end=Fraction(1))
    outcome = batch.enhance_video(batch.Job(shared / "video" / name, target, False), backend, settings, lambda _: None)
    assert outcome.frames == sum(1 for _ in iter_pictures(target))
    assert outcome.frames > 10
