"""What holds for the frames of every file, whatever its codec, container and clock; and of damaged ones.

The pictures are numbered (testcard.py), so that a frame tells which one it is.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dped_live.errors import InputError
from dped_live.frame import Frame
from dped_live.sources.file import FileSource
from dped_live.sources.testcard import draw, frame_number

from test_video import Sound, write_clip

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(not FFMPEG, reason="needs the ffmpeg program to make the clip")

WIDTH, HEIGHT = 192, 144
WRAP = 1 << 33
"""Where the clock of a transport stream starts anew."""

Truth = list[tuple[int, Fraction]]
"""The number and the time of each picture."""


@dataclass(frozen=True)
class Kind:
    """A kind of clip: count pictures, at these ticks of this clock."""

    suffix: str
    codec: str = "libx264"
    options: tuple[tuple[str, str], ...] = (("preset", "fast"), ("bf", "3"), ("g", "12"), ("crf", "16"))
    clock: Fraction = Fraction(1, 12800)
    ticks: tuple[int, ...] = tuple(range(0, 40 * 512, 512))
    pix_fmt: str = "yuv420p"
    sound: Sound | None = None
    lag: int = 0
    """Ticks by which the pictures are shown later than they were to be, as AVI does with B-frames."""


def steps(count: int, step: int, first: int = 0) -> tuple[int, ...]:
    return tuple(range(first, first + count * step, step))


X265 = (("preset", "ultrafast"), ("x265-params", "open-gop=1:keyint=12:bframes=3:b-adapt=0:log-level=error"))
OPEN = (("preset", "fast"), ("x264-params", "open-gop=1:keyint=12:bframes=3:b-adapt=0"), ("crf", "16"))
REFRESH = (("preset", "fast"), ("x264-params", "intra-refresh=1:keyint=12:bframes=0"), ("crf", "16"))
PLAIN = (("g", "12"), ("b", "3M"))
UNEVEN = tuple(itertools.accumulate([7, 512, 512, 976, 1, 2095, 504, 4400, 512, 88, 10400, 512, 9488, 100, 100] * 3))
MS, TS = Fraction(1, 1000), Fraction(1, 90000)

KINDS = {
    "b-frames": Kind(".mp4"),
    "uneven": Kind(".mp4", ticks=UNEVEN),
    "uneven, open gop": Kind(".mov", ticks=UNEVEN, options=OPEN),
    "x265 open gop": Kind(".mp4", "libx265", X265),
    "x265 in matroska": Kind(".mkv", "libx265", X265, MS, steps(40, 40)),
    "open gop in matroska": Kind(".mkv", "libx264", OPEN, MS, steps(40, 40)),
    "intra refresh": Kind(".mkv", "libx264", REFRESH, MS, steps(60, 40)),
    "vp9": Kind(".webm", "libvpx-vp9", (("deadline", "realtime"), ("cpu-used", "8"), *PLAIN), MS, steps(40, 40)),
    "av1": Kind(".mkv", "libsvtav1", (("preset", "12"), ("g", "12"), ("crf", "20")), MS, steps(40, 40)),
    "sound": Kind(".mp4", sound=Sound(1.6)),
    "late": Kind(".mp4", ticks=steps(40, 512, 9000), sound=Sound(1.6)),
    "late in matroska": Kind(".mkv", clock=MS, ticks=steps(40, 40, 703)),
    "gap": Kind(".mkv", clock=MS, ticks=steps(20, 40) + steps(20, 40, 2_000_000)),
    "transport": Kind(".ts", clock=TS, ticks=steps(40, 3600, 90000)),
    "transport with a gap": Kind(".ts", clock=TS, ticks=steps(20, 3600, 90000) + steps(20, 3600, 90000 * 400)),
    "eight hours": Kind(".ts", clock=TS, ticks=steps(40, 3600, 90000 * 3600 * 8)),
    "wrap": Kind(".ts", clock=TS, ticks=steps(40, 3600, WRAP - 20 * 3600)),
    "mpeg-2": Kind(".ts", "mpeg2video", (*PLAIN, ("bf", "2")), Fraction(1, 25), steps(40, 1, 25)),
    "program stream": Kind(".mpg", "mpeg2video", (*PLAIN, ("bf", "2")), Fraction(1, 25), steps(40, 1, 25)),
    "avi": Kind(".avi", "mpeg4", PLAIN, Fraction(1, 25), steps(40, 1)),
    "avi with b-frames": Kind(".avi", clock=Fraction(1, 25), ticks=steps(40, 1), lag=2),
    "motion jpeg": Kind(".avi", "mjpeg", (("q:v", "3"),), Fraction(1, 25), steps(20, 1), "yuvj420p"),
    "flash": Kind(".flv", clock=MS, ticks=steps(40, 40), lag=80),
    "asf": Kind(".wmv", "wmv2", PLAIN, MS, steps(40, 40)),
    "raw": Kind(".h264", clock=Fraction(1, 25), ticks=steps(40, 1)),
    "same time twice": Kind(".mkv", "ffv1", (), Fraction(1, 10000), (0, 400, 800, 803, 1200, 1201, 1202, 1600)),
    "one picture": Kind(".mp4", ticks=(0,)),
    "one in five seconds": Kind(".mp4", ticks=steps(8, 5 * 12800)),
    "240 a second": Kind(".mp4", clock=Fraction(1, 240), ticks=steps(60, 1)),
    "ntsc": Kind(".mp4", clock=Fraction(1001, 30000), ticks=steps(40, 1)),
    "animation": Kind(".gif", "gif", (), Fraction(1, 100), (0, 5, 50, 54, 60), "rgb8"),
}


def numbered(numbers: Sequence[int]) -> list[np.ndarray]:
    return [draw(number, number / 25, WIDTH, HEIGHT) for number in numbers]


def make(path: Path, kind: Kind, first: int = 0) -> Path:
    count = len(kind.ticks)
    last = kind.ticks[-1] - kind.ticks[-2] if count > 1 else 512
    return write_clip(
        path,
        numbered(range(first, first + count)),
        ticks=kind.ticks,
        last=last,
        clock=kind.clock,
        codec=kind.codec,
        pix_fmt=kind.pix_fmt,
        options=dict(kind.options),
        sound=kind.sound,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Truth]]:
    """A clip of each kind, made once, with what is in it; the times count from where a player's clock does."""
    folder = tmp_path_factory.mktemp("clips")

    def clip(name: str) -> tuple[Path, Truth]:
        kind = KINDS[name]
        path = folder / f"{name}{kind.suffix}"
        if not path.exists():
            make(path, kind)
        first = kind.ticks[0] if kind.suffix in (".ts", ".mpg") else 0
        times = [(tick + kind.lag - first) * kind.clock for tick in kind.ticks]
        if kind.suffix == ".mkv":
            times = [round(time / MS) * MS for time in times]
        return path, list(enumerate(times))

    return clip


def number_of(frame: Frame) -> int:
    picture = frame.planes[0]
    if frame.format.pixel_format.kind == "yuv" and not frame.format.full_range:
        picture = np.clip((picture.astype(float) - 16) * 255 / 219, 0, 255)
    return frame_number(picture)


def read(path: Path, **cut: Any) -> tuple[Truth, list[Fraction | None], FileSource]:
    """Numbers and times of all frames, their durations, and the source, which is closed."""
    source = FileSource(path, **cut)
    try:
        frames = [(number_of(frame), frame.pts, frame.duration) for frame in source.frames()]
    finally:
        source.close()
    return [(number, time) for number, time, _ in frames], [duration for _, _, duration in frames], source


# Every kind.


@pytest.mark.parametrize("name", KINDS)
def test_every_picture_comes_once_in_order_at_its_time(clips: Any, name: str) -> None:
    path, truth = clips(name)
    found, durations, source = read(path)
    assert found == truth
    tick = source.format.time_base
    assert all(time % tick == 0 for _, time in found)
    assert source.shortfall is None
    expected = ["timestamp"] if name == "raw" else []
    assert all(any(word in note for word in expected) for note in source.notes), source.notes
    assert len(source.notes) == len(expected)
    # Where the duration is known, it is up to the next picture.
    distinct = len({time for _, time in truth}) == len(truth)
    if name in ("b-frames", "uneven", "x265 open gop", "one in five seconds", "240 a second", "ntsc"):
        ends = [*(time for _, time in truth[1:]), None]
        last = truth[-1][1] - truth[-2][1]
        assert durations == [last if end is None else end - time for (_, time), end in zip(truth, ends, strict=True)]
    assert distinct or name == "same time twice"


@pytest.mark.parametrize("name", KINDS)
def test_estimates_are_near(clips: Any, name: str) -> None:
    path, truth = clips(name)
    source = FileSource(path)
    source.close()
    if source.frame_count is not None and "gap" not in name and "uneven" not in name:
        assert abs(source.frame_count - len(truth)) <= 3
    if source.duration is not None:
        assert source.duration >= truth[-1][1] - Fraction(1, 10)


def cut_of(truth: Truth, begin: Fraction | None, end: Fraction | None) -> Truth:
    """What a cut should give: the picture that is on screen at begin, and those after it up to end."""
    chosen = [(number, time) for number, time in truth if end is None or time < end]
    if begin is not None:
        on_screen = [item for item in chosen if item[1] <= begin][-1:]
        chosen = [(number, begin) for number, _ in on_screen] + [item for item in chosen if item[1] > begin]
    return [(number, time - (begin or 0)) for number, time in chosen]


@pytest.mark.parametrize("name", KINDS)
def test_cuts_are_exact(clips: Any, name: str) -> None:
    path, truth = clips(name)
    tick = FileSource(path).format.time_base
    times = [time for _, time in truth]
    middle, third = times[len(times) // 2], times[len(times) // 3]
    between = (middle + times[min(len(times) // 2 + 1, len(times) - 1)]) / 2
    for begin, end in [
        (Fraction(0), None),
        (middle, None),
        (between, None),
        (times[-1], None),
        (None, middle),
        (None, between),
        (third, between),
        *((time, None) for time in times[1::7]),
        (between, between + tick),
    ]:
        if end is not None and end <= times[0]:
            continue
        wanted = cut_of(truth, None if begin is None else begin // tick * tick, end)
        found, durations, source = read(path, begin=begin, end=end)
        assert found == wanted, (begin, end)
        assert source.shortfall is None
        assert begin is None or all(time >= 0 for _, time in found)
        if end is not None:
            limit = end - (begin or 0) // tick * tick
            assert all(time + (duration or 0) <= limit for (_, time), duration in zip(found, durations, strict=True))


@pytest.mark.parametrize("name", ["b-frames", "x265 open gop", "transport", "avi", "raw"])
def test_skipped_frames_are_missing_and_nothing_else_changes(clips: Any, name: str) -> None:
    path, truth = clips(name)
    for skip in (0, 1, 17, len(truth)):
        found, _, source = read(path, skip=skip)
        assert found == truth[skip:]
        assert source.shortfall is None
    begin = truth[10][1]
    assert read(path, begin=begin, skip=5)[0] == cut_of(truth, begin, None)[5:]


@pytest.mark.parametrize("name", KINDS)
def test_closing_in_mid_stream_returns(clips: Any, name: str) -> None:
    path, truth = clips(name)
    for count in (0, 1, len(truth) // 2):
        source = FileSource(path)
        assert len(list(itertools.islice(source.frames(), count))) == min(count, len(truth))
        source.close()


@pytest.mark.parametrize("name", ["b-frames", "transport", "gap", "avi"])
def test_a_cut_after_the_end_is_one_line(clips: Any, name: str) -> None:
    path, _ = clips(name)
    with pytest.raises(InputError, match=r"it has ended before 5000 s, where --start is; nothing written"):
        read(path, begin=Fraction(5000))


def test_only_what_is_needed_is_decoded_where_there_is_an_index(clips: Any, tmp_path: Path) -> None:
    path, truth = clips("b-frames")
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 8
    data[begin : begin + 1000] = bytes(1000)
    (tmp_path / "in.mp4").write_bytes(data)
    whole, _, source = read(tmp_path / "in.mp4")
    assert source.notes
    cut = truth[26][1]
    found, _, source = read(tmp_path / "in.mp4", begin=cut)
    assert found == cut_of(truth, cut, None)
    assert not source.notes
    assert len(whole) <= len(truth)
