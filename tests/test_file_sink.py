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
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dped_live.frame import VideoFormat
from dped_live.sinks.companion import Companion
from dped_live.sinks.encoding import Encoding
from dped_live.sinks.file import FileSink
from dped_live.sinks.finished_part import FinishedPart, JobKey
from dped_live.sources.file import FileSource

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
    return sum(1 << bit for bit in range(BITS) if luma[4:12, 8 * bit + 2 : 8 * bit + 6].mean() > 125)


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
sys.path.insert(0, sys.argv[1])
import test_file_sink as t
from dped_live.sources.file import FileSource
from dped_live.sinks.file import FileSink
write = FileSink.write
def slowly(self, frame):
    time.sleep(0.002)
    write(self, frame)
FileSink.write = slowly
print("begun", flush=True)
t.copy(Path(sys.argv[2]), Path(sys.argv[3]), t.Encoding(sys.argv[4], preset=sys.argv[5] or None), t.JOB, resume=True)
"""


def start_child(source: Path, target: Path, codec: str, preset: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(source), str(target), codec, preset]
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
        child = start_child(source, target, "libx264", "veryfast")
        try:
            child.wait(moments.uniform(0.3, 1.6))
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
    sink = FileSink(target, encoded(first, encoding), first.frame_rate, encoding, companion, job=JOB)
    for frame in itertools.islice(first.frames(), 170):
        sink.write(frame)
    sink.close(complete=False)
    first.close()
    assert sink.kept == part_of(target)

    companion = Companion(source, 0, audio=sound)
    sink = FileSink(target, sink._format, Fraction(25), encoding, companion, job=JOB, resume=True)
    assert 100 <= sink.done <= 170
    rest = FileSource(source, skip=sink.done)
    for frame in rest.frames():
        sink.write(frame)
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


def encoded(source: FileSource, encoding: Encoding) -> VideoFormat:
    from dped_live.sinks.encoding import encoded_format

    fmt = encoded_format(source.format, encoding.codec)
    if fmt.pixel_format.name != "yuv420p":
        pytest.skip(f"{encoding.codec} takes no 4:2:0; the frames of this test are")
    return fmt
