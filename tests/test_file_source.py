"""What holds for the frames of every file, whatever its codec, container and clock; and of damaged ones.

The pictures are numbered (testcard.py), so that a frame tells which one it is.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dped_live.clock import Clock
from dped_live.errors import InputError
from dped_live.frame import Frame
from dped_live.sources.file import FileSource
from dped_live.sources.testcard import draw, frame_number

from test_video import Sound, write_clip

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(not FFMPEG, reason="needs the ffmpeg program, to make a clip or to count")

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


# Joined files.


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("second", [1, 3600, 9 * 3600], ids=["back", "an hour on", "nine hours on"])
def test_joined_recordings_come_one_after_the_other(tmp_path: Path, second: int) -> None:
    parts = []
    for number, begin in enumerate((1, second)):
        sound = Sound(1.6, Fraction(begin), "mp2", 48000)
        kind = Kind(".ts", clock=TS, ticks=steps(40, 3600, 90000 * begin), sound=sound)
        parts.append(make(tmp_path / f"{number}.ts", kind, first=100 * number))
    path = joined(tmp_path / "in.ts", *parts)
    found, _, source = read(path)
    assert [number for number, _ in found] == [*range(40), *range(100, 140)]
    gaps = [b - a for (_, a), (_, b) in itertools.pairwise(found)]
    assert set(gaps[:39] + gaps[45:]) == {Fraction(1, 25)}
    assert min(gaps) == Fraction(1, 25)
    assert sum(gaps[39:45]) <= Fraction(6, 25) + Fraction(1, 10)
    assert source.notes == ["its clock starts anew at 1.6 s: joined recordings, which now come one after the other"]
    assert source.shortfall is None
    # Sound keeps its distance to the pictures.
    heard = sound_on_clock(path, source)
    assert heard == sorted(heard)
    half = len(heard) // 2
    assert len(heard) == 2 * half
    assert abs((heard[half + 9] - heard[9]) - (found[50][1] - found[10][1])) <= Fraction(1, 1000)
    cut = found[55][1]
    assert read(path, begin=cut)[0] == cut_of(found, cut, None)


def sound_on_clock(path: Path, source: FileSource) -> list[Fraction]:
    """When each packet of sound is heard, as whoever copies it finds out."""
    with av.open(str(path)) as container:
        clock = Clock(container.format.name)
        heard = []
        for packet in container.demux():
            if packet.size:
                clock.correct(packet)
                if packet.stream.type == "audio":
                    assert packet.pts is not None
                    heard.append(packet.pts * packet.time_base - source.start)
    return heard


def test_three_joined_recordings(tmp_path: Path) -> None:
    kind = Kind(".ts", clock=TS, ticks=steps(20, 3600, 90000))
    part = make(tmp_path / "part.ts", kind)
    found, _, _ = read(joined(tmp_path / "in.ts", part, part, part))
    assert found == [(n % 20, n * Fraction(1, 25)) for n in range(60)]


def test_wrong_timestamp_moves_nothing_else() -> None:
    clock = Clock("mpegts")
    stamps = [*range(0, 36000, 3600), 90000 * 7200, *range(39600, 72000, 3600)]
    offsets = [clock.offset(0, "video", TS, stamp, stamp, 3600) for stamp in stamps]
    assert [offset for offset in offsets if offset] == offsets[10:11]


def test_long_pause_is_kept_where_clocks_do_not_start_anywhere() -> None:
    for container in ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "flv"):
        clock = Clock(container)
        assert {clock.offset(0, "video", MS, stamp, stamp, 40) for stamp in (0, 40, 9_000_000)} == {0}


# Damage.


def noisy(path: Path, codec: str, options: dict[str, str], count: int = 75) -> Path:
    noise = [np.random.default_rng(n).integers(0, 256, (48, 64, 3), dtype=np.uint8) for n in range(count)]
    return write_clip(path, noise, codec=codec, options=options, sound=Sound(count / 25))


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".flv"])
def test_truncated_file_falls_short(tmp_path: Path, suffix: str) -> None:
    whole = noisy(tmp_path / f"whole{suffix}", "mpeg4" if suffix == ".avi" else "libx264", {"g": "10"})
    path = tmp_path / f"in{suffix}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    source = FileSource(path)
    count = sum(1 for _ in source.frames())
    source.close()
    assert 20 < count < 50
    assert source.shortfall is not None
    assert re.fullmatch(r"the pictures end at 1\.\d s of 3\.\d s", source.shortfall)
    # What is cut before the truncation is whole.
    source = FileSource(path, end=Fraction(1, 2))
    assert (
        sum(1 for _ in source.frames()) == {".mkv": 13, ".avi": 12, ".flv": 11}[suffix]
    )  # of which the latter two are late
    source.close()
    assert source.shortfall is None


def test_truncated_mp4_with_its_index_in_front_falls_short(tmp_path: Path) -> None:
    noisy(tmp_path / "whole.mp4", "libx264", {"g": "10"})
    with av.open(str(tmp_path / "whole.mp4")) as whole:
        fast = {"movflags": "faststart"}
        with av.open(str(tmp_path / "in.mp4"), "w", options=fast) as target:
            streams = {stream.index: target.add_stream_from_template(stream) for stream in whole.streams}
            for packet in whole.demux():
                if packet.size:
                    packet.stream = streams[packet.stream_index]
                    target.mux(packet)
    path = tmp_path / "in.mp4"
    os.truncate(path, path.stat().st_size // 2)
    source = FileSource(path)
    assert 20 < sum(1 for _ in source.frames()) < 60
    source.close()
    assert source.shortfall is not None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_may_be_longer_than_the_pictures(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"in{suffix}", numbered(range(10)), sound=Sound(5))
    source = FileSource(path)
    assert sum(1 for _ in source.frames()) == 10
    source.close()
    assert source.shortfall is None
    assert source.duration is not None
    assert source.duration > 4


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("in.mkv", "libx264", {"preset": "medium", "g": "12"}),
        ("in.mp4", "libx265", {"preset": "ultrafast", "x265-params": "bframes=3:keyint=12:log-level=error"}),
        ("in.avi", "mpeg4", {"bf": "2", "g": "12"}),
        ("in.ts", "libx264", {"preset": "medium", "g": "12"}),
        ("in.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "12"}),
    ],
)
def test_no_fewer_pictures_than_ffmpeg_finds(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    """Damage at the end is what PyAV would lose pictures by: an error ends its draining of the decoder."""
    whole = write_clip(tmp_path / name, numbered(range(40)), codec=codec, options=options, clock=Fraction(1, 25))
    data = whole.read_bytes()
    for seed in range(6):
        damaged = bytearray(data)
        chance = np.random.default_rng(seed)
        for place in chance.integers(len(data) * (3 if seed % 2 else 2) // 4, len(data), 12):
            damaged[place] ^= 1 << int(chance.integers(8))
        whole.write_bytes(damaged)
        try:
            count = len(read_pictures(whole))
        except InputError:
            count = 0
        # Where a slice's header is broken, FFmpeg 5's HEVC decoder shows a picture all the same.
        assert count >= counted_by_ffmpeg(whole) - (codec == "libx265"), seed


def read_pictures(path: Path) -> list[Fraction]:
    source = FileSource(path)
    try:
        return [frame.pts for frame in source.frames()]
    finally:
        source.close()


def counted_by_ffmpeg(path: Path) -> int:
    command = [str(FFMPEG), "-nostdin", "-v", "quiet", "-i", f"file:{path}", "-map", "0:V:0", "-fps_mode"]
    command += ["passthrough", "-enc_time_base", "-1", "-f", "framecrc", "-"]
    lines = subprocess.run(command, capture_output=True, timeout=60, check=False).stdout.splitlines()
    return sum(not line.startswith(b"#") for line in lines)


def test_a_tenth_of_undecodable_packets_is_a_shortfall(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", numbered(range(60)), options={"preset": "ultrafast", "g": "1"})
    with av.open(str(whole)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for damaged, falls_short in ((2, False), (20, True)):
        data = whole.read_bytes()
        for packet in packets[30 : 30 + damaged]:
            data = data.replace(packet, bytes([255]) * len(packet))
        (tmp_path / "in.mkv").write_bytes(data)
        source = FileSource(tmp_path / "in.mkv")
        count = sum(1 for _ in source.frames())
        source.close()
        assert count == 60 - damaged
        assert any(note == f"{damaged} damaged packets were passed over" for note in source.notes)
        told = f"{damaged} of 60 packets could not be decoded" if falls_short else None
        assert source.shortfall == told


def test_recording_that_begins_in_mid_group_begins_with_its_first_whole_picture(tmp_path: Path) -> None:
    kind = Kind(".ts", clock=TS, ticks=steps(60, 3600, 90000), options=(("preset", "fast"), ("g", "20"), ("bf", "3")))
    data = make(tmp_path / "whole.ts", kind).read_bytes()
    cut = len(data) // 188 // 2
    (tmp_path / "in.ts").write_bytes(data[: 3 * 188] + data[cut * 188 :])
    found, _, source = read(tmp_path / "in.ts")
    assert [number for number, _ in found] == list(range(found[0][0], 60))
    assert found[0][0] in (20, 40)
    assert source.shortfall is None


# What cannot be read.


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="not a regular file"):
            FileSource(path)


@needs_ffmpeg
def test_encrypted_pictures_are_called_so(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mp4", numbered(range(10)))
    command = [str(FFMPEG), "-v", "error", "-i", str(tmp_path / "in.mp4"), "-c", "copy", "-encryption_scheme"]
    command += ["cenc-aes-ctr", "-encryption_key", "0" * 31 + "1", "-encryption_kid", "0" * 31 + "2"]
    subprocess.run([*command, str(tmp_path / "locked.mp4")], check=True, timeout=60)
    with pytest.raises(InputError, match=r"locked\.mp4: its pictures are encrypted; nothing written"):
        FileSource(tmp_path / "locked.mp4")


def test_file_that_becomes_shorter_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    path = noisy(tmp_path / "in.ts", "libx264", {"g": "10"}, count=250)
    source = FileSource(path)
    frames = source.frames()
    next(frames)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"in\.ts: has become shorter while it was read; copy it to a local disk"):
        list(frames)
    source.close()


def test_file_that_is_removed_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    path = make(tmp_path / "in.mp4", KINDS["b-frames"])
    source = FileSource(path)
    path.unlink()
    assert sum(1 for _ in source.frames()) == 40
    source.close()


@needs_ffmpeg
def test_stream_that_can_be_decoded_is_taken(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mkv", numbered(range(10)))
    command = [str(FFMPEG), "-v", "error", "-i", str(tmp_path / "in.mkv"), "-map", "0:v", "-map", "0:v", "-c", "copy"]
    subprocess.run([*command, "-disposition:0", "default", str(tmp_path / "two.mkv")], check=True, timeout=60)
    data = (tmp_path / "two.mkv").read_bytes()
    (tmp_path / "two.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XXX", 1))
    found, _, source = read(tmp_path / "two.mkv")
    assert [number for number, _ in found] == list(range(10))
    assert source.video_index == 1
    data = data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XXX")
    (tmp_path / "none.mkv").write_bytes(data)
    with pytest.raises(InputError, match="FFmpeg has no decoder for its video; nothing written"):
        FileSource(tmp_path / "none.mkv")
