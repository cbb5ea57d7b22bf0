"""The contract of the file sink: every stream, every time, whatever ends the program; judged by FFmpeg's own tools."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dped_live.enhance import Enhancer
from dped_live.errors import OutputError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.scene_statistics import ExactPolicy
from dped_live.sinks.companion import Companion
from dped_live.sinks.encoding import Encoding, encoded_format
from dped_live.sinks.file import FileSink
from dped_live.sinks.finished_part import FinishedPart, JobKey, job_of
from dped_live.sinks.verification import Tally, verify
from dped_live.sources.file import FileSource

from test_video import Identity

FFMPEG, FFPROBE = shutil.which("ffmpeg"), shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None or FFPROBE is None, reason="FFmpeg's programs are not installed")

FAST = Encoding(preset="ultrafast", crf=10)
JOB = JobKey("aaaa", "bbbb", "cccc")
WIDTH, HEIGHT, BITS = 128, 64, 16
KILLS = 20


def numbered(number: int) -> np.ndarray:
    """A grey picture that has its number in it, as bits of black and white, over a moving background."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    luma = (96 + 40 * np.sin((x + 2 * number) / 9) * np.cos(y / 7)).astype(np.uint8)
    for bit in range(BITS):
        luma[:16, 8 * bit : 8 * bit + 8] = 235 if number >> bit & 1 else 16
    return np.asarray(luma)


def number_of(luma: np.ndarray) -> int:
    bits = luma[4:12].reshape(8, BITS, 8)[:, :, 2:6].mean(axis=(0, 2)) > 125
    return int((bits << np.arange(BITS)).sum())


def numbers(path: Path) -> list[int]:
    """Of all pictures; of a file that was broken off the last packet may be half there, as in any player."""
    found = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.error.InvalidDataError):
                found += [number_of(picture.to_ndarray(format="gray")) for picture in packet.decode()]
    return found


def write_source(path: Path, frames: int, rate: int = 25) -> Path:
    """Numbered pictures with sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate, options={"preset": "ultrafast", "crf": "4", "bf": "2"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = container.add_stream("aac", 48000, layout="mono")
        samples = (8000 * np.sin(np.arange(48000 * frames // rate) / 20)).astype(np.int16)
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(numbered(number), "gray").reformat(format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, rate)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for begin in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024], "s16", "mono")
            frame.sample_rate, frame.pts = 48000, begin
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def probe(path: Path, *arguments: str) -> dict[str, Any]:
    assert FFPROBE is not None
    command = [FFPROBE, "-v", "error", "-of", "json", *arguments, str(path)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def packets(path: Path, stream: str) -> list[tuple[str, int]]:
    """Time and size of each packet, as ffprobe reads them."""
    found = probe(path, "-select_streams", stream, "-show_entries", "packet=pts_time,size")
    return [(packet["pts_time"], int(packet["size"])) for packet in found["packets"]]


def copy(
    source: Path, target: Path, encoding: Encoding = FAST, job: JobKey | None = None, resume: bool = False
) -> FileSink:
    """The pictures of one file into another, with all that is beside them."""
    first = FileSource(source)
    fmt, rate, index, start = first.format, first.frame_rate, first.video_index, first.start
    first.close()
    sink = FileSink(target, fmt, rate, encoding, Companion(source, index, start), job=job, resume=resume)
    frames = FileSource(source, skip=sink.done)
    for frame in frames.frames():
        sink.write(frame)
    frames.close()
    sink.close(complete=True)
    return sink


CHILD = """
import sys, time
from pathlib import Path
from dped_live.sinks.companion import Companion
from dped_live.sinks.encoding import Encoding
from dped_live.sinks.file import FileSink
from dped_live.sinks.finished_part import JobKey
from dped_live.sources.file import FileSource
print("begun", flush=True)
source, target = map(Path, sys.argv[1:])
first = FileSource(source)
encoding, companion = Encoding(preset="veryfast"), Companion(source, first.video_index, first.start)
job = JobKey("aaaa", "bbbb", "cccc")
sink = FileSink(target, first.format, first.frame_rate, encoding, companion, job=job, resume=True)
first.close()
frames = FileSource(source, skip=sink.done)
for frame in frames.frames():
    time.sleep(0.002)
    sink.write(frame)
sink.close(complete=True)
"""
"""What copy() does, slowly and without torch, whose import would take most of the time."""


def start_child(source: Path, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(source), str(target)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    return child


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.stem}.part{target.suffix}")


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_killed_at_random_moments_it_is_playable_and_goes_on(suffix: str, tmp_path: Path) -> None:
    """Twenty kills in all over the two containers, each followed by a --resume of what was left."""
    frames = 400
    source = write_source(tmp_path / "in.mp4", frames)
    target = tmp_path / f"out{suffix}"
    moments = random.Random(suffix)
    progress = [0]
    kills = 0
    while kills < KILLS // 2:
        child = start_child(source, target)
        try:
            child.wait(moments.uniform(0.2, 1.1))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        _, errors = child.communicate()
        assert "Error" not in errors
        kills += 1
        if target.exists():  # it had got to the end
            assert numbers(target) == list(range(frames))
            target.unlink()
            progress.append(0)
            continue
        kept = sorted(tmp_path.glob(f"out.part*{suffix}"))
        best = max((FinishedPart(path).frames for path in kept), default=0)
        assert best >= progress[-1], "what was finished is kept"
        progress.append(best)
        for path in kept:
            if FinishedPart(path).frames:
                shown = numbers(path)
                assert shown == list(range(len(shown))), "what is there can be played, in order"
    assert max(progress) > 50, "the test must have seen some progress"
    copy(source, target, Encoding(preset="veryfast"), JOB, resume=True)
    assert numbers(target) == list(range(frames))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", target.name]
    assert [size for _, size in packets(target, "a")] == [size for _, size in packets(source, "a")]
    assert len(packets(target, "v")) == frames
    whole = tmp_path / f"whole{suffix}"
    copy(source, whole, Encoding(preset="veryfast"), JOB)
    assert [at for at, _ in packets(target, "v")] == [at for at, _ in packets(whole, "v")]
    assert packets(target, "a") == packets(whole, "a")


@needs_ffmpeg
@pytest.mark.parametrize(
    ("codec", "preset", "suffix"),
    [("libx264", "medium", ".mp4"), ("libx265", "ultrafast", ".mp4"), ("libsvtav1", "12", ".mkv"),
     ("libvpx-vp9", "", ".webm"), ("ffv1", "", ".mkv"), ("prores_ks", "", ".mov")],
)  # fmt: skip
def test_every_encoder_goes_on_without_a_seam(codec: str, preset: str, suffix: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "in.mkv", 260)
    sound = suffix != ".webm"
    encoding = Encoding(codec, preset=preset or None)
    target = tmp_path / f"out{suffix}"
    first = FileSource(source)
    companion = Companion(source, first.video_index, audio=sound)
    fmt = encoded_format(first.format, encoding)
    converted = Enhancer(Identity(), fmt, ExactPolicy()).enhance
    sink = FileSink(target, fmt, first.frame_rate, encoding, companion, job=JOB)
    for frame in itertools.islice(first.frames(), 170):
        sink.write(converted(frame))
    sink.close(complete=False)
    first.close()
    assert sink.kept == part_of(target)

    companion = Companion(source, 0, audio=sound)
    sink = FileSink(target, fmt, Fraction(25), encoding, companion, job=JOB, resume=True)
    assert 100 <= sink.done <= 170
    rest = FileSource(source, skip=sink.done)
    for frame in rest.frames():
        sink.write(converted(frame))
    rest.close()
    sink.close(complete=True)
    assert numbers(target) == list(range(260))
    found = packets(target, "v")
    assert len({at for at, _ in found}) == 260
    times = sorted(float(at) for at, _ in found)
    assert times == pytest.approx([number / 25 for number in range(260)], abs=0.001)
    decoded = subprocess.run(
        [str(FFMPEG), "-v", "warning", "-i", str(target), "-f", "null", "-"], capture_output=True, check=True
    )
    assert decoded.stderr == b"", "an independent decoder finds no fault with it"


# What goes along.

SRT = "1\n00:00:00,500 --> 00:00:01,500\nHello, <i>world</i>\n\n2\n00:00:02,000 --> 00:00:03,250\nTwo\nlines\n"
ASS = """[Script Info]
ScriptType: v4.00+
PlayResX: 384
PlayResY: 288

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,20,&H0000FFFF,&H000000FF,&H00000000,&H00000000,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{\\b1}Bold{\\b0} words
"""
CHAPTERS = """;FFMETADATA1
title=A film
artist=Somebody
[CHAPTER]
TIMEBASE=1/1000
START=0
END=1500
title=One
[CHAPTER]
TIMEBASE=1/1000
START=1500
END=4000
title=Two
"""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Matroska file with everything that there is."""
    if FFMPEG is None or FFPROBE is None:
        pytest.skip("FFmpeg's programs are not installed")
    folder = tmp_path_factory.mktemp("film")
    for name, text in {"s.srt": SRT, "s.ass": ASS, "c.txt": CHAPTERS}.items():
        (folder / name).write_text(text)
    (folder / "font.ttf").write_bytes(b"\0\1\0\0" + bytes(500))
    Image.fromarray(numbered(7)).save(folder / "cover.png")
    film = folder / "film.mkv"
    command = [
        *(FFMPEG, "-v", "error", "-y"),
        *("-f", "lavfi", "-i", f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25:duration=4"),
        *("-f", "lavfi", "-i", "sine=440:duration=4:sample_rate=48000"),
        *("-f", "lavfi", "-i", "sine=880:duration=4:sample_rate=44100"),
        *("-i", "s.srt", "-i", "s.ass", "-i", "c.txt"),
        *("-map", "0", "-map", "1", "-map", "2", "-map", "3", "-map", "4", "-map_metadata", "5", "-map_chapters", "5"),
        *("-c:v", "libx264", "-preset", "ultrafast", "-c:a:0", "flac", "-c:a:1", "flac", "-c:s:0", "srt", "-c:s:1"),
        *("ass", "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=fre", "-metadata:s:a:1"),
        *("title=Commentaire", "-disposition:a:0", "default", "-disposition:a:1", "comment"),
        *("-metadata:s:s:0", "language=ger", "-metadata:s:s:1", "language=jpn", "-disposition:s:0", "forced"),
        *("-attach", "font.ttf", "-metadata:s:t:0", "mimetype=font/ttf"),
        *("-attach", "cover.png", "-metadata:s:t:1", "mimetype=image/png", film.name),
    ]
    subprocess.run(command, cwd=folder, check=True)
    return film


def fates(sink: FileSink) -> list[tuple[str, str]]:
    return [(fate.kind, fate.fate) for fate in sink.streams]


def streams(path: Path, kind: str) -> list[dict[str, Any]]:
    return [stream for stream in probe(path, "-show_streams")["streams"] if stream["codec_type"] == kind]


def language(stream: dict[str, Any]) -> str | None:
    return {key.lower(): value for key, value in stream["tags"].items()}.get("language")


def test_matroska_keeps_everything(film: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mkv"
    sink = copy(film, target)
    assert fates(sink) == [
        *(("video", "enhanced"), ("audio", "kept"), ("audio", "kept"), ("subtitle", "kept"), ("subtitle", "kept")),
        *(("attachment", "kept"), ("cover", "kept"), ("chapters", "kept")),
    ]
    first, second = streams(target, "audio")
    assert (first["codec_name"], language(first), first["disposition"]["default"]) == ("flac", "eng", 1)
    assert (second["codec_name"], language(second), second["disposition"]["comment"]) == ("flac", "fre", 1)
    assert second["tags"]["title"] == "Commentaire"
    srt, ass = streams(target, "subtitle")
    assert (srt["codec_name"], language(srt), srt["disposition"]["forced"]) == ("subrip", "ger", 1)
    assert (ass["codec_name"], language(ass)) == ("ass", "jpn")
    (font,) = streams(target, "attachment")
    assert (font["tags"]["filename"], font["extradata_size"]) == ("font.ttf", 504)
    cover = streams(target, "video")[1]
    assert (cover["codec_name"], cover["disposition"]["attached_pic"], cover["width"]) == ("png", 1, WIDTH)
    found = probe(target, "-show_chapters", "-show_format")
    assert [(c["start_time"], c["end_time"], c["tags"]["title"]) for c in found["chapters"]] == [
        ("0.000000", "1.500000", "One"),
        ("1.500000", "4.000000", "Two"),
    ]
    tags = {key.lower(): value for key, value in found["format"]["tags"].items()}
    assert (tags["title"], tags["artist"]) == ("A film", "Somebody")
    for stream in ("a:0", "a:1", "s:0", "s:1"):
        assert packets(target, stream) == packets(film, stream)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_mp4_gets_what_it_takes_and_the_rest_is_told(suffix: str, film: Path, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix}"
    sink = copy(film, target)
    cover = "kept" if suffix == ".mp4" else "dropped"
    flac = "kept" if suffix == ".mp4" else "converted"
    assert fates(sink) == [
        *(("video", "enhanced"), ("audio", flac), ("audio", flac), ("subtitle", "converted")),
        *(("subtitle", "converted"), ("attachment", "dropped"), ("cover", cover), ("chapters", "kept")),
    ]
    assert "subtitle 3 (srt, ger) converted: to mov_text" in str(sink.streams[3])
    # Of the two codes of a language QuickTime knows one.
    french = "fra" if suffix == ".mov" else "fre"
    assert [language(stream) for stream in streams(target, "audio")] == ["eng", french]
    assert [(s["codec_name"], language(s)) for s in streams(target, "subtitle")] == [
        ("mov_text", "ger"),
        ("mov_text", "jpn"),
    ]
    assert len(probe(target, "-show_chapters")["chapters"]) == 2
    pictures = [stream for stream in streams(target, "video") if stream["disposition"]["attached_pic"]]
    assert len(pictures) == (suffix == ".mp4")
    for number, expected in enumerate((SRT, None)):
        command = [str(FFMPEG), "-v", "error", "-i", str(target), "-map", f"0:s:{number}", "-f", "srt", "-"]
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        if expected:
            assert text.strip() == expected.strip()
        else:
            assert "00:00:01,000 --> 00:00:02,000" in text
            assert '<b>Bold</b></font><font size="20" color="#ffff00"> words' in text


def test_webm_has_opus_and_webvtt(film: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.webm"
    sink = copy(film, target, Encoding("libvpx-vp9", options=(("cpu-used", "8"), ("deadline", "realtime"))))
    assert [fate.fate for fate in sink.streams[:5]] == ["enhanced", *["converted"] * 4]
    assert [stream["codec_name"] for stream in streams(target, "audio")] == ["opus", "opus"]
    assert [stream["codec_name"] for stream in streams(target, "subtitle")] == ["webvtt", "webvtt"]


def test_strict_refuses_before_the_first_frame(film: Path, tmp_path: Path) -> None:
    source = FileSource(film)
    companion = Companion(film, source.video_index)
    with pytest.raises(OutputError, match=r"--strict, and attachment 5 .* dropped: MP4 cannot hold attachments"):
        FileSink(tmp_path / "out.mp4", source.format, Fraction(25), FAST, companion, strict=True)
    source.close()
    assert list(tmp_path.iterdir()) == []


def test_without_sound(film: Path, tmp_path: Path) -> None:
    source = FileSource(film)
    sink = FileSink(
        tmp_path / "out.mkv", source.format, Fraction(25), FAST, Companion(film, source.video_index, audio=False)
    )
    for frame in source.frames():
        sink.write(frame)
    source.close()
    sink.close(complete=True)
    assert not streams(tmp_path / "out.mkv", "audio")
    assert len(streams(tmp_path / "out.mkv", "subtitle")) == 2


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_everything_is_cut_at_once(suffix: str, film: Path, tmp_path: Path) -> None:
    begin, end = Fraction(1), Fraction(3)
    source = FileSource(film, begin=begin, end=end)
    companion = Companion(film, source.video_index, source.start, end - begin, cut_begin=True)
    sink = FileSink(target := tmp_path / f"out{suffix}", source.format, Fraction(25), FAST, companion)
    for frame in source.frames():
        sink.write(frame)
    source.close()
    sink.close(complete=True)
    assert len(packets(target, "v:0")) == 50
    for stream in ("a:0", "a:1"):
        shown = [float(at) - float(packets(target, "v:0")[0][0]) for at, _ in packets(target, stream)]
        assert -0.1 < shown[0] <= 0.03
        assert 1.9 < shown[-1] < 2.03
    chapters = probe(target, "-show_chapters")["chapters"]
    assert [(float(c["start_time"]), float(c["end_time"])) for c in chapters] == [(0, 0.5), (0.5, 2)]
    command = [str(FFMPEG), "-v", "error", "-i", str(target), "-map", "0:s:0", "-f", "srt", "-"]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    if suffix == ".mp4":  # in Matroska nothing is before 0, and the sound begins a little before the pictures
        assert "00:00:00,000 --> 00:00:00,500" in text
        assert "00:00:01,000 --> 00:00:02,000" in text


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "codec"), [("in.ts", "aac"), ("in.mkv", "aac"), ("in.avi", "mp3"), ("in.mkv", "pcm_s24le")]
)
def test_sound_stays_with_the_pictures(name: str, codec: str, tmp_path: Path) -> None:
    """A click at 1 s is at 1 s, to the millisecond, whether sound is copied, unframed or converted."""
    source = tmp_path / name
    rate = 48000
    samples = np.zeros(2 * rate, np.int16)
    samples[rate : rate + 200] = 20000
    raw = tmp_path / "click.raw"
    raw.write_bytes(samples.tobytes())
    command = [
        *(str(FFMPEG), "-v", "error", "-f", "lavfi", "-i", f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25:duration=2"),
        *("-f", "s16le", "-ar", str(rate), "-ac", "1", "-i", str(raw), "-c:v", "mpeg2video", "-q:v", "2"),
        *("-c:a", codec, str(source)),
    ]
    subprocess.run(command, check=True)
    target = tmp_path / "out.mp4"
    copy(source, target)

    def click(path: Path) -> float:
        """Seconds from the first picture to the click, as FFmpeg plays it."""
        command = [str(FFMPEG), "-v", "error", "-i", str(path), "-map", "0:a", "-f", "s16le", "-ac", "1", "-af"]
        command += ["aresample=48000:first_pts=0", "-"]
        heard = subprocess.run(command, capture_output=True, check=True).stdout
        loud = np.abs(np.frombuffer(heard, np.int16).astype(int)) > 8000
        return float(np.flatnonzero(loud)[0]) / rate

    assert click(target) == pytest.approx(click(source), abs=0.001)


# What may go wrong.


@needs_ffmpeg
def test_reading_back_finds_what_is_not_as_written(tmp_path: Path) -> None:
    whole = write_source(tmp_path / "whole.mp4", 50)
    report = verify(whole, [Tally("video", 50, Fraction(0), Fraction(49, 25), Fraction(2))])
    assert (report.frames, report.seconds) == (50, 2.0)
    wrong = {
        r"49 packets of video stream 1 were written and 50 can be read back": Tally("video", 49, Fraction(0), None),
        r"video stream 1 has its last .* at 1\.960 s of the file instead of 1\.920 s": Tally(
            "video", 50, Fraction(0), Fraction(48, 25), Fraction(2)
        ),
    }
    for message, tally in wrong.items():
        with pytest.raises(OutputError, match=message):
            verify(whole, [tally])
    with pytest.raises(OutputError, match="1 subtitle streams were written and 0 can be read back"):
        verify(whole, [Tally("video", 50, Fraction(0), Fraction(49, 25)), Tally("subtitle")])
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(OutputError, match="cannot be read back"):
        verify(tmp_path / "cut.mp4", [tally])


def test_what_was_left_is_gone_on_with_only_for_the_same_job(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in.mp4", 120)
    first = FileSource(source)
    fmt = first.format
    sink = FileSink(tmp_path / "out.mp4", fmt, Fraction(25), FAST, job=JOB)
    for frame in itertools.islice(first.frames(), 110):
        sink.write(frame)
    first.close()
    sink.close(complete=False)
    kept = part_of(tmp_path / "out.mp4")
    assert sink.kept == kept
    before = kept.read_bytes()
    for other, what in (
        (JobKey("aaaa", "xxxx", "cccc"), "another source"),
        (JobKey("aaaa", "bbbb", "xxxx"), "other options"),
        (JobKey("xxxx", "bbbb", "cccc"), "another version or model"),
    ):
        with pytest.raises(OutputError, match=rf"out\.part\.mp4: was made from or with {what}; add -y"):
            FileSink(tmp_path / "out.mp4", fmt, Fraction(25), FAST, job=other, resume=True)
    with pytest.raises(OutputError, match="encoded in another way"):
        FileSink(tmp_path / "out.mp4", fmt, Fraction(25), Encoding(preset="medium"), job=JOB, resume=True)
    assert kept.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.part.mp4"]
    assert job_of(kept) == JOB

    # Broken off before anything new: what was there stays.
    sink = FileSink(tmp_path / "out.mp4", fmt, Fraction(25), FAST, job=JOB, resume=True)
    assert sink.done == 100
    sink.close(complete=False)
    assert kept.read_bytes() == before

    kept.write_bytes(b"hours of somebody's work" * 200)
    with pytest.raises(OutputError, match=r"out\.part\.mp4: nothing in it says what it was made from; add -y"):
        FileSink(tmp_path / "out.mp4", fmt, Fraction(25), FAST, job=JOB, resume=True)
    assert kept.read_bytes() == b"hours of somebody's work" * 200


def test_name_of_255_bytes_has_room_for_what_is_temporary(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in.mp4", 120)
    target = tmp_path / f"{'n' * 251}.mp4"
    frames = FileSource(source)
    sink = FileSink(target, frames.format, Fraction(25), FAST, job=JOB)
    for frame in itertools.islice(frames.frames(), 110):
        sink.write(frame)
    frames.close()
    sink.close(complete=False)
    copy(source, target, FAST, JOB, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", target.name]


def test_only_a_verified_file_is_a_result(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in.mp4", 10)
    for name in ("out.mp4", "out.mkv"):
        assert not FileSink.is_result(tmp_path / name, JOB)
        sink = copy(source, tmp_path / name, job=JOB)
        assert sink.report is not None
        assert sink.report.frames == 10
        assert FileSink.is_result(tmp_path / name, JOB)
        assert not FileSink.is_result(tmp_path / name, JobKey("aaaa", "bbbb", "xxxx"))
    assert not FileSink.is_result(source, JOB)


def test_target_that_vanishes_is_noticed_within_a_group(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in.mp4", 200)
    (tmp_path / "folder").mkdir()
    frames = FileSource(source)
    sink = FileSink(tmp_path / "folder" / "out.mp4", frames.format, Fraction(25), FAST)
    waiting = frames.frames()
    for frame in itertools.islice(waiting, 60):
        sink.write(frame)
    shutil.rmtree(tmp_path / "folder")
    with pytest.raises(OutputError, match=r"out\.part\.mp4 was removed while it was written"):
        deque(map(sink.write, itertools.islice(waiting, 50)))
    frames.close()
    sink.close(complete=False)
    assert sink.kept is None


def test_target_that_vanishes_at_the_end_is_one_line(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in.mp4", 10)
    (tmp_path / "folder").mkdir()
    frames = FileSource(source)
    sink = FileSink(tmp_path / "folder" / "out.mp4", frames.format, Fraction(25), FAST)
    for frame in frames.frames():
        sink.write(frame)
    frames.close()
    shutil.rmtree(tmp_path / "folder")
    with pytest.raises(OutputError, match=r"out\.mp4: .*(removed while it was written|cannot be read back)"):
        sink.close(complete=True)
    assert sink.kept is None


@pytest.mark.parametrize(
    ("codec", "key", "value", "message"),
    [
        ("libx264", "crff", "3", "the encoder libx264 has no option 'crff'"),
        ("libx264", "x264-params", "ref=2:crff=3", "does not understand -e x264-params=ref=2:crff=3: .*crff"),
        ("libx265", "x265-params", "crff=3", "does not understand -e x265-params=crff=3: .*crff"),
        ("libx264", "tune", "flim", r"cannot be made \(.*\); check --crf, --preset and -e"),
    ],
)
def test_misspelt_option_is_an_error(codec: str, key: str, value: str, message: str, tmp_path: Path) -> None:
    fmt = VideoFormat(64, 64, PIXEL_FORMATS["yuv420p"], "bt601", full_range=False, time_base=Fraction(1, 25))
    with pytest.raises(OutputError, match=message):
        FileSink(tmp_path / "out.mp4", fmt, Fraction(25), Encoding(codec, options=((key, value),)))
    assert list(tmp_path.iterdir()) == []


def test_option_reaches_the_encoder(tmp_path: Path) -> None:
    """x264 writes its settings into the first picture."""
    planes = tuple(np.full(shape, 128, np.uint8) for shape in ((64, 64), (32, 32), (32, 32)))
    for name, options in (("plain", ()), ("tuned", (("bf", "0"), ("x264-params", "ref=5:me=umh")))):
        fmt = VideoFormat(64, 64, PIXEL_FORMATS["yuv420p"], "bt601", full_range=False, time_base=Fraction(1, 25))
        sink = FileSink(tmp_path / f"{name}.mp4", fmt, Fraction(25), Encoding(options=options))
        sink.write(Frame(planes, fmt))
        sink.close(complete=True)
        settings = (tmp_path / f"{name}.mp4").read_bytes()
        assert all(text in settings for text in (b"ref=5 ", b"me=umh ", b"bframes=0 ")) == (name == "tuned")
