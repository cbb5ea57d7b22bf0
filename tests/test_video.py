"""Videos from file to file: times, sound, colours and shape, and what is left when something goes wrong."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from dped_live import batch, weights
from dped_live.backends import Backend, open_backend
from dped_live.errors import DpedError, InputError, OutputError
from dped_live.pipeline import Stats
from dped_live.sinks.companion import Companion, StreamFate
from dped_live.sinks.encoding import Encoding, encoded_format
from dped_live.sinks.file import FileSink
from dped_live.sources.file import FileSource
from dped_live.statistics import Statistics

from conftest import random_generator

FFMPEG, FFPROBE = shutil.which("ffmpeg"), shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(not FFMPEG or not FFPROBE, reason="needs the ffmpeg program as an independent judge")

FAST = Encoding(preset="ultrafast")
LOSSLESS = Encoding(crf=0, preset="ultrafast")
SECONDS = 60
"""How long a child process may take: a hang must fail, and a busy machine must not."""

LIMITED, FULL = 1, 2


class Identity:
    """A backend that changes nothing: what differs then is the way from file to file."""

    device = torch.device("cpu")
    description = "identity"
    in_float32 = None
    shares = False

    def change(self, image: Tensor) -> Tensor:
        return image.clone()

    def enhance(
        self,
        image: Tensor,
        statistics: Statistics | None = None,  # noqa: ARG002
        out: Tensor | None = None,
    ) -> Tensor:
        changed = self.change(image)
        return changed if out is None else out.copy_(changed)

    def measure(
        self,
        image: Tensor,
        statistics: Statistics | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Statistics]:
        return self.change(image), self.statistics(image)

    def statistics(self, image: Tensor) -> Statistics:  # noqa: ARG002
        return Statistics(torch.zeros(1, 0, 1), torch.zeros(1, 0, 1))


class Black(Identity):
    """A backend whose result nobody can take for the input."""

    def change(self, image: Tensor) -> Tensor:
        return torch.zeros_like(image)


class Given(Identity):
    """A backend that keeps what it was given, and gives a picture of its own: both can be compared with the truth."""

    def __init__(self, result: np.ndarray) -> None:
        self.result = torch.from_numpy(result / np.float32(255)).permute(2, 0, 1)[None]
        self.given = torch.empty(0)

    def change(self, image: Tensor) -> Tensor:
        self.given = image.clone()
        return self.result.clone()


class Slow(Identity):
    def change(self, image: Tensor) -> Tensor:
        time.sleep(0.02)
        return image.clone()


class Broken(Identity):
    """A backend that fails at its sixth picture."""

    def __init__(self) -> None:
        self.left = 6

    def change(self, image: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            raise DpedError("the backend is broken")
        return image.clone()


# Making clips.


@dataclass(frozen=True)
class Sound:
    """A sine, its first sample at `start` seconds."""

    seconds: float = 1.0
    start: Fraction = Fraction(0)
    codec: str = "aac"
    rate: int = 44100


def gradient(width: int, height: int, phase: float = 0.0) -> np.ndarray:
    """A smooth picture (H, W, 3) of many colours, some saturated."""
    y, x = np.mgrid[0:height, 0:width]
    x, y = x / max(1, width - 1), y / max(1, height - 1)
    rgb = np.stack([x, y, 0.5 + 0.5 * np.sin(math.pi * (x - y + phase))], axis=2)
    picture: np.ndarray = np.rint(rgb * 255).astype(np.uint8)
    return picture


def as_frame(planes: Sequence[np.ndarray], pix_fmt: str) -> av.VideoFrame:
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(memoryview(plane), values.dtype).reshape(-1, plane.line_size // values.dtype.itemsize)
        rows[: values.shape[0], : values.shape[1]] = values
    return frame


def write_clip(
    path: Path,
    pictures: Sequence[np.ndarray | av.VideoFrame],
    *,
    ticks: Sequence[int] | None = None,
    last: int | None = None,
    clock: Fraction = Fraction(1, 12800),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    sound: Sound | None = None,
    configure: Callable[[av.VideoStream], None] | None = None,
) -> Path:
    """Encode RGB pictures, or frames of pix_fmt.

    ticks: the time of each, counted in `clock`; 25 fps without them. last: the ticks that the last one is shown for.
    """
    step = round(1 / (25 * clock))
    # For MP4 and MOV: a start that is no whole millisecond is written exactly.
    exact = {"movie_timescale": str(math.lcm(clock.denominator, sound.rate if sound else 1))}
    with av.open(f"file:{path}", "w", container_options=exact) as container:
        options = {"preset": "ultrafast", "crf": "10"} if options is None else options
        stream: Any = container.add_stream(codec, 25, options=options)
        first = pictures[0]
        stream.height, stream.width = (
            (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
        )
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = clock
        stream.codec_context.flags |= av.codec.context.Flags.frame_duration
        if configure:
            configure(stream)
        packets = []
        times = list(ticks) if ticks is not None else [step * index for index in range(len(pictures))]
        audio: Any = container.add_stream(sound.codec, sound.rate, layout="mono") if sound else None
        container.start_encoding()
        for picture, tick, following in zip(pictures, times, [*times[1:], times[-1] + (last or step)], strict=True):
            frame = picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, "rgb24")
            if frame.format.name != pix_fmt:
                frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base, frame.duration = tick, clock, following - tick
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if sound:
            packets += encode_sine(audio, sound)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def encode_sine(stream: Any, sound: Sound) -> list[av.Packet[Any]]:
    size = stream.codec_context.frame_size or 1024
    planar = stream.codec_context.format.name
    packets = []
    for first in range(0, round(sound.seconds * sound.rate), size):
        samples = 0.3 * np.sin(2 * math.pi * 440 * (first + np.arange(size)) / sound.rate)
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], "fltp", "mono")
        frame.sample_rate = sound.rate
        (frame,) = av.AudioResampler(planar).resample(frame) if planar != "fltp" else (frame,)
        frame.pts = first + round(sound.start * sound.rate)
        frame.time_base = Fraction(1, sound.rate)
        packets += stream.encode(frame)
    return packets + list(stream.encode(None))


def moving(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    return [gradient(width, height, index / 7) for index in range(count)]


# Judging clips.


def times(path: Path) -> list[Fraction]:
    """When each picture is shown."""
    with av.open(f"file:{path}") as container:
        stream = container.streams.video[0]
        frames = [frame for packet in container.demux(stream) for frame in packet.decode()]
        assert stream.time_base is not None
        assert all(frame.pts is not None for frame in frames)
        return [Fraction(frame.pts or 0) * stream.time_base for frame in frames]


def sound_of(path: Path) -> list[tuple[Fraction, bytes]]:
    """Time and payload of every packet of the first sound."""
    with av.open(f"file:{path}") as container:
        stream = container.streams.audio[0]
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.pts is not None
        ]


def decode_rgb(path: Path, *, turned: bool = False) -> np.ndarray:
    """All pictures as (N, H, W, 3), decoded by the ffmpeg program if there is one. turned: as a player shows them."""
    if FFMPEG is None:
        assert not turned
        with av.open(f"file:{path}") as container:
            accurate = 2 | 0x2000 | 0x4000 | 0x40000
            return np.stack(
                [
                    frame.reformat(format="rgb24", interpolation=accurate, src_colorspace=frame.colorspace).to_ndarray()
                    for frame in container.decode(video=0)
                ]
            )
    command = [FFMPEG, "-v", "error", *([] if turned else ["-noautorotate"]), "-i", f"file:{path}"]
    accurate_flags = "bilinear+full_chroma_int+full_chroma_inp+accurate_rnd"
    command += ["-fps_mode", "passthrough", "-vf", f"scale=flags={accurate_flags},format=rgb24"]
    # NUT says the size of the pictures, which autorotation may have changed.
    command += ["-c:v", "rawvideo", "-f", "nut", "-"]
    data = subprocess.run(command, check=True, capture_output=True, timeout=SECONDS).stdout
    raw = path.with_name(path.name + ".nut")
    raw.write_bytes(data)
    with av.open(f"file:{raw}") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def ffprobe(path: Path, entries: str) -> dict[str, Any]:
    assert FFPROBE is not None
    command = [FFPROBE, "-v", "error", "-select_streams", "v:0", "-show_entries", entries, "-of", "json", str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, timeout=SECONDS).stdout
    (stream,) = json.loads(answer)["streams"]
    return dict(stream)


def error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in 8-bit levels."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def convert(
    source: Path,
    target: Path,
    backend: Backend | None = None,
    encoding: Encoding = FAST,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Stats, int | None], None] | None = None,
    **settings: Any,
) -> tuple[batch.Outcome, list[str]]:
    """The way that the command line takes; returns what came of it, and all that it tells the user."""
    notes: list[str] = []

    def begun(streams: Sequence[StreamFate], _notes: Sequence[str]) -> None:
        notes.extend(str(stream) for stream in streams if stream.fate in ("converted", "dropped"))

    job = batch.Job(source, target, is_photo=False)
    chosen = batch.Settings(encoding=encoding, **settings)
    outcome = batch.enhance_video(job, backend or Identity(), chosen, notes.append, stop, progress, begun)
    return outcome, notes + ([outcome.shortfall] if outcome.shortfall else [])


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", moving(15), sound=Sound(0.6))


# Times.

VARIABLE = [0, 512, 1024, 2000, 2001, 4096, 4600, 9000, 9512, 9600, 20000, 20512, 30000, 30100, 30200]
B_FRAMES = {"preset": "medium", "bf": "3", "b_strategy": "0", "crf": "20"}


def has_b_frames(path: Path) -> bool:
    with av.open(f"file:{path}") as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    return stamps != sorted(stamps)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_variable_frame_rate_with_b_frames_keeps_every_time_exactly(tmp_path: Path, suffix: str) -> None:
    source = write_clip(tmp_path / f"in{suffix}", moving(15), ticks=VARIABLE, options=B_FRAMES)
    target = tmp_path / f"out{suffix}"
    convert(source, target, encoding=Encoding())
    assert has_b_frames(source)
    assert has_b_frames(target)
    assert times(target) == times(source) == [Fraction(tick, 12800) for tick in VARIABLE]


def test_last_picture_keeps_its_duration(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", moving(5), ticks=[0, 512, 1024, 1536, 2048], last=12800)
    convert(source, tmp_path / "out.mp4")
    with av.open(str(source)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        assert after.streams.video[0].duration == before.streams.video[0].duration == 2048 + 12800


def test_times_are_kept_to_the_tick_in_matroska(tmp_path: Path) -> None:
    # Whose tick is a millisecond.
    distinct = [tick for tick in VARIABLE if tick != 2001]
    source = write_clip(tmp_path / "in.mkv", moving(14), ticks=distinct, options=B_FRAMES)
    for name in ("out.mkv", "out.mp4"):
        convert(source, tmp_path / name, encoding=Encoding())
        assert times(tmp_path / name) == times(source)
    source = write_clip(tmp_path / "in.mp4", moving(14), ticks=distinct, options=B_FRAMES)
    convert(source, tmp_path / "from_mp4.mkv", encoding=Encoding())
    nearest = [Fraction(math.floor(1000 * moment + Fraction(1, 2)), 1000) for moment in times(source)]
    assert times(tmp_path / "from_mp4.mkv") == nearest


def test_pictures_of_one_time_are_all_kept(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", moving(15), ticks=VARIABLE)
    assert len(set(times(source))) == 14
    _, notes = convert(source, tmp_path / "out.mp4")
    shown = times(tmp_path / "out.mp4")
    assert len(shown) == len(set(shown)) == 15
    assert notes[-1].endswith("1 pictures had a time not after the one before; moved on by a tick")


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1", "libvpx-vp9"])
def test_every_encoder_of_ours_keeps_the_times(tmp_path: Path, codec: str) -> None:
    source = write_clip(tmp_path / "in.mp4", moving(15), ticks=VARIABLE)
    presets = {"libx265": "ultrafast", "libsvtav1": "12", "libvpx-vp9": None}
    target = tmp_path / "out.mp4"
    convert(source, target, encoding=Encoding(codec, preset=presets[codec]))
    assert times(target) == times(source)


def test_odd_clocks_are_kept(tmp_path: Path) -> None:
    for index, clock in enumerate([Fraction(1001, 30000), Fraction(1, 25), Fraction(1, 90000), Fraction(1, 1000000)]):
        step = max(1, round(Fraction(1, 25) / clock))
        source = write_clip(tmp_path / f"{index}.mp4", moving(5), ticks=[step * i for i in range(5)], clock=clock)
        convert(source, tmp_path / f"{index}_out.mp4")
        assert times(tmp_path / f"{index}_out.mp4") == times(source) == [step * i * clock for i in range(5)]


def test_avi_with_b_frames_is_shown_at_an_even_pace(tmp_path: Path) -> None:
    # AVI has no presentation times; FFmpeg's guesses at them run back and forth.
    source = write_clip(tmp_path / "in.avi", moving(20), clock=Fraction(1, 25), options=B_FRAMES, sound=Sound(0.8))
    _, notes = convert(source, tmp_path / "out.mp4")
    shown = times(tmp_path / "out.mp4")
    assert len(shown) == 20
    assert {b - a for a, b in itertools.pairwise(shown)} == {Fraction(1, 25)}
    assert not [note for note in notes if "time" in note]


def test_raw_stream_without_times_gets_the_frame_rate(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.h264", moving(10), clock=Fraction(1, 25))
    outcome, notes = convert(source, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == [Fraction(index, 25) for index in range(10)]
    assert outcome.frames == 10
    assert notes[-1].endswith("10 pictures have no timestamp; they follow each other at the frame rate")


# Sound.


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(7, 10)], ids=["together", "700 ms later"])
def test_sound_is_copied_packet_by_packet(tmp_path: Path, suffix: str, start: Fraction) -> None:
    source = write_clip(tmp_path / f"in{suffix}", moving(30), sound=Sound(1.2, start))
    target = tmp_path / f"out{suffix}"
    convert(source, target)
    assert sound_of(target) == sound_of(source)  # times and payload of every packet, AAC's priming included
    assert times(target) == times(source)
    assert sound_of(source)[0][0] == start - Fraction(1024, 44100)


def test_sound_before_the_pictures_is_kept(tmp_path: Path) -> None:
    late = [9000 + 512 * index for index in range(10)]  # 703.125 ms
    source = write_clip(tmp_path / "in.mp4", moving(10), ticks=late, sound=Sound(1.2))
    convert(source, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == times(source) == [Fraction(tick, 12800) for tick in late]
    assert sound_of(tmp_path / "out.mp4") == sound_of(source)


def test_start_that_is_no_whole_millisecond_is_kept(tmp_path: Path) -> None:
    # The edit list of an MP4 counts in milliseconds unless told otherwise.
    late = [int(0.0664 * 90000) + 3003 * index for index in range(10)]
    sound = Sound(0.5, Fraction(1940, 44100))
    source = write_clip(tmp_path / "in.mkv", moving(10), clock=Fraction(1, 90000), ticks=late, sound=sound)
    for name in ("out.mp4", "out.mov"):
        convert(source, tmp_path / name)
        assert times(tmp_path / name) == times(source)
        for (before, payload), (after, same) in zip(sound_of(source), sound_of(tmp_path / name), strict=True):
            assert same == payload
            assert abs(after - before) <= Fraction(1, 44100)


def test_matroska_keeps_sound_and_pictures_together(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", moving(30), sound=Sound(1.2, Fraction(7, 10)))
    convert(source, tmp_path / "out.mkv")
    before, after = sound_of(source), sound_of(tmp_path / "out.mkv")
    assert [payload for _, payload in after] == [payload for _, payload in before]
    shift = times(tmp_path / "out.mkv")[0] - times(source)[0]
    assert all(abs(b[0] - a[0] - shift) <= Fraction(1, 1000) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_transport_stream_that_starts_after_hours_starts_at_zero(tmp_path: Path, suffix: str) -> None:
    hours = 8 * 3600
    ticks = [90000 * hours + 3600 * index for index in range(20)]
    # MP2 is the same bytes in all containers; AAC is not.
    sound = Sound(0.8, Fraction(hours) + Fraction(1, 10), "mp2", 48000)
    source = write_clip(tmp_path / "in.ts", moving(20), ticks=ticks, clock=Fraction(1, 90000), sound=sound)
    target = tmp_path / f"out{suffix}"
    convert(source, target)
    assert times(source)[0] >= hours
    assert times(target)[0] == 0
    shift = times(source)[0]
    rounding = Fraction(1, 1000)
    assert all(abs(a - b - shift) <= rounding for a, b in zip(times(source), times(target), strict=True))
    before, after = sound_of(source), sound_of(target)
    assert [payload for _, payload in before] == [payload for _, payload in after]
    assert all(abs(a[0] - b[0] - shift) <= rounding for a, b in zip(before, after, strict=True))


def test_sound_that_the_container_cannot_hold_is_left_out_with_a_note(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", moving(10), sound=Sound(0.4, codec="pcm_s16le"))
    for name, has_sound in (("out.mov", True), ("out.h264", False)):
        _, notes = convert(source, tmp_path / name)
        with av.open(str(tmp_path / name)) as container:
            assert bool(container.streams.audio) == has_sound
            assert sum(1 for _ in container.decode(video=0)) == 10
        dropped = "audio 1 (pcm_s16le) dropped: h264 cannot hold pcm_s16le; use .mkv"
        assert any(dropped in note for note in notes) != has_sound


def test_sound_is_left_out_on_request(clip: Path, tmp_path: Path) -> None:
    convert(clip, tmp_path / "out.mp4", audio=False)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio
        assert container.streams.video


def test_title_and_the_like_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    write_clip(tmp_path / "plain.mkv", moving(3))
    with av.open(str(tmp_path / "plain.mkv")) as plain, av.open(str(source), "w") as titled:
        titled.metadata["title"] = "Été à la plage"
        stream = titled.add_stream_from_template(plain.streams.video[0])
        for packet in plain.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                titled.mux(packet)
    for name in ("out.mp4", "out.mkv"):
        convert(source, tmp_path / name)
        with av.open(str(tmp_path / name)) as container:
            assert {key.lower(): value for key, value in container.metadata.items()}["title"] == "Été à la plage"


# Colour.

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
CODE = {"bt709": 1, "bt601": 6, "bt2020": 9}


def to_planes(rgb: np.ndarray, matrix: str, full: bool, shape: str) -> list[np.ndarray]:
    """8-bit Y'CbCr of H.273, computed here anew; chroma at the left as H.264 has it."""
    kr, kb = LUMA[matrix]
    r, g, b = np.moveaxis(rgb / 255.0, 2, 0)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    chroma = []
    for c in (cb, cr):
        if shape != "444":
            before = np.concatenate([c[:, :1], c[:, :-1]], axis=1)
            after = np.concatenate([c[:, 1:], c[:, -1:]], axis=1)
            c = ((before + 2 * c + after) / 4)[:, ::2]
        if shape == "420":
            c = (c[::2] + c[1::2]) / 2
        chroma.append(c)
    scales = [(255.0, 0.0), (255.0, 128.0), (255.0, 128.0)] if full else [(219.0, 16.0), (224.0, 128.0), (224.0, 128.0)]
    return [
        np.clip(np.rint(plane * scale + offset), 0, 255).astype(np.uint8)
        for plane, (scale, offset) in zip([y, *chroma], scales, strict=True)
    ]


def tagged(matrix: int, colour_range: int, primaries: int = 2, transfer: int = 2) -> Callable[[Any], None]:
    def configure(stream: Any) -> None:
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, colour_range
        context.color_primaries, context.color_trc = primaries, transfer

    return configure


def tags(path: Path) -> tuple[int, int, int, int]:
    """Matrix, range, primaries, transfer, as in the bit stream."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return int(frame.colorspace), int(frame.color_range), int(frame.color_primaries), int(frame.color_trc)


@pytest.mark.parametrize("shape", ["420", "422", "444"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
def test_colours_arrive_as_they_were(tmp_path: Path, matrix: str, full: bool, shape: str) -> None:
    truth, other = gradient(64, 48), gradient(64, 48, phase=0.7)
    pix_fmt = f"yuv{shape}p"
    frames = [as_frame(to_planes(truth, matrix, full, shape), pix_fmt) for _ in range(2)]
    tag = tagged(CODE[matrix], FULL if full else LIMITED)
    lossless = {"preset": "ultrafast", "qp": "0"}
    source = write_clip(tmp_path / "in.mp4", frames, pix_fmt=pix_fmt, options=lossless, configure=tag)
    target = tmp_path / "out.mp4"
    backend = Given(other)
    convert(source, target, backend, LOSSLESS)
    assert error(255 * backend.given[0].permute(1, 2, 0).numpy(), truth) < 0.7  # 0.5 is what the rounding costs
    assert tags(target)[:2] == (CODE[matrix], FULL if full else LIMITED)
    with av.open(str(target)) as container:
        frame = next(container.decode(video=0))
        assert frame.format.name.replace("yuvj", "yuv") == pix_fmt
        for plane, expected in zip(frame.planes, to_planes(other, matrix, full, shape), strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            assert abs(rows[: expected.shape[0], : expected.shape[1]] - expected.astype(int)).max() <= 1
    for picture in decode_rgb(target):
        assert error(picture, other) < 1.5  # swscale is half a sample of chroma off


def test_wrong_matrix_and_wrong_range_would_be_seen() -> None:
    # What the test above is worth: any mix-up of two of its cases is many levels off.
    truth = gradient(64, 48)
    planes = {
        (matrix, full): np.stack(to_planes(truth, matrix, full, "444")) for matrix in LUMA for full in (False, True)
    }
    assert min(error(a, b) for a, b in itertools.combinations(planes.values(), 2)) > 1.5


@pytest.mark.parametrize(
    ("width", "height", "matrix"), [(320, 240, "bt601"), (1280, 720, "bt709")], ids=["small", "high definition"]
)
def test_untagged_video_is_understood_by_its_size_and_tagged(
    tmp_path: Path, width: int, height: int, matrix: str
) -> None:
    truth = gradient(width, height)
    frames = [as_frame(to_planes(truth, matrix, False, "420"), "yuv420p")]
    source = write_clip(tmp_path / "in.mp4", frames, options={"preset": "ultrafast", "qp": "0"})
    assert tags(source) == (2, 0, 2, 2)
    backend = Given(truth[::-1].copy())
    convert(source, tmp_path / "out.mp4", backend, LOSSLESS)
    assert error(255 * backend.given[0].permute(1, 2, 0).numpy(), truth) < 1.5
    assert tags(tmp_path / "out.mp4") == (CODE[matrix], LIMITED, 2, 2)
    assert error(decode_rgb(tmp_path / "out.mp4")[0], truth[::-1]) < 1.5


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_tags_and_depth_are_kept(tmp_path: Path, suffix: str) -> None:
    # BT.2020 in 10 bits, and BT.601 of PAL, whose primaries and transfer have other numbers.
    for matrix, colour_range, primaries, transfer, pix_fmt in (
        (9, LIMITED, 9, 14, "yuv422p10le"),
        (6, FULL, 5, 6, "yuv420p"),
    ):
        tag = tagged(matrix, colour_range, primaries, transfer)
        source = write_clip(tmp_path / f"in{suffix}", moving(3), pix_fmt=pix_fmt, configure=tag)
        target = tmp_path / f"out{suffix}"
        convert(source, target)
        assert tags(target) == (matrix, colour_range, primaries, transfer)
        with av.open(str(target)) as container:
            assert next(container.decode(video=0)).format.name.replace("yuvj", "yuv") == pix_fmt
        target.unlink()


@needs_ffmpeg
@pytest.mark.parametrize(
    ("pix_fmt", "codec", "result"),
    [
        ("gray", "ffv1", "yuv420p"),
        ("gray10le", "ffv1", "yuv420p10le"),
        ("gray16le", "ffv1", "yuv420p10le"),
        ("bgr0", "ffv1", "yuv420p"),
        ("gbrp10le", "ffv1", "yuv420p10le"),
        ("rgb24", "libx264rgb", "yuv420p"),
        ("rgb24", "png", "yuv420p"),
        ("yuv411p", "ffv1", "yuv422p"),
        ("yuv440p", "ffv1", "yuv444p"),
        ("yuv410p", "ffv1", "yuv420p"),
        ("gbrp12le", "ffv1", "yuv420p10le"),
        ("yuv444p", "ffv1", "yuv444p"),
        ("yuva420p", "ffv1", "yuv420p"),
        ("yuv420p9le", "ffv1", "yuv420p10le"),
        ("yuv422p10le", "ffv1", "yuv422p10le"),
        ("yuv420p14le", "ffv1", "yuv420p10le"),
        ("yuv444p16le", "ffv1", "yuv444p10le"),
        ("yuvj420p", "mjpeg", "yuvj420p"),
    ],
)
def test_pixel_formats_of_every_kind_keep_their_colours(tmp_path: Path, pix_fmt: str, codec: str, result: str) -> None:
    name = "in.mov" if codec == "png" else "in.mkv"
    source = write_clip(tmp_path / name, moving(2), codec=codec, pix_fmt=pix_fmt, options={"strict": "-2"})
    target = tmp_path / "out.mp4"
    convert(source, target, encoding=LOSSLESS)
    assert error(decode_rgb(target), decode_rgb(source)) < 2.5  # 8-bit 4:2:0 of RGB loses most of it
    with av.open(str(target)) as container:
        assert next(container.decode(video=0)).format.name == result


@needs_ffmpeg
@pytest.mark.parametrize("pix_fmt", ["yuv411p", "yuv440p", "yuva420p", "yuv420p9le"])
def test_pixel_formats_that_are_converted_keep_their_full_range(tmp_path: Path, pix_fmt: str) -> None:
    tag = tagged(CODE["bt601"], FULL)
    options = {"strict": "-2"}
    source = write_clip(tmp_path / "in.mkv", moving(2), codec="ffv1", pix_fmt=pix_fmt, options=options, configure=tag)
    assert tags(source)[:2] == (CODE["bt601"], FULL)
    target = tmp_path / "out.mp4"
    convert(source, target, encoding=LOSSLESS)
    assert error(decode_rgb(target), decode_rgb(source)) < 2.5


def test_animated_gif_becomes_a_video(tmp_path: Path) -> None:
    flat = [np.full((48, 64, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255), (255, 255, 255))]
    clock, ticks = Fraction(1, 100), [0, 5, 50]
    source = write_clip(tmp_path / "in.gif", flat, codec="gif", pix_fmt="rgb8", options={}, clock=clock, ticks=ticks)
    convert(source, tmp_path / "out.mp4", encoding=LOSSLESS)
    assert error(decode_rgb(tmp_path / "out.mp4"), np.stack(flat)) < 4  # eight bits for all three channels
    assert times(tmp_path / "out.mp4") == [tick * clock for tick in ticks]


def test_matrix_without_support_is_refused(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", moving(2), configure=tagged(8, LIMITED), pix_fmt="yuv444p")
    with pytest.raises(InputError, match=r"in\.mp4: its colour matrix \(H\.273 code 8\) is not supported"):
        convert(source, tmp_path / "out.mp4")
    assert left_over(tmp_path) == ["in.mp4"]


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_nothing_changes_but_for_the_encoder(tmp_path: Path, strength: float) -> None:
    source = write_clip(tmp_path / "in.mp4", moving(5))
    backend = Black() if strength == 0 else Identity()
    convert(source, tmp_path / "out.mp4", backend, LOSSLESS, strength=strength)
    assert error(decode_rgb(tmp_path / "out.mp4"), decode_rgb(source)) <= (0 if strength == 0 else 1)
    convert(source, tmp_path / "default.mp4", backend, Encoding(), strength=strength)
    assert error(decode_rgb(tmp_path / "default.mp4"), decode_rgb(source)) < 3


def test_strength_mixes(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", moving(2))
    convert(source, tmp_path / "out.mp4", Black(), LOSSLESS, strength=0.25)
    assert error(decode_rgb(tmp_path / "out.mp4"), 0.75 * decode_rgb(source)) < 1.5


# Shape.


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 5), (2, 2), (16, 2), (33, 20), (20, 33)])
@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("libx264", "yuv444p"), ("rawvideo", "yuv420p"), ("rawvideo", "yuv422p"), ("rawvideo", "gray")],
)
def test_odd_and_tiny_sizes(tmp_path: Path, width: int, height: int, codec: str, pix_fmt: str) -> None:
    source = write_clip(tmp_path / "in.nut", moving(3, width, height), codec=codec, pix_fmt=pix_fmt, options={})
    outcome, _ = convert(source, tmp_path / "out.mp4")
    pictures = decode_rgb(tmp_path / "out.mp4")
    assert pictures.shape == (3, height, width, 3)
    assert outcome.frames == 3
    convert(source, tmp_path / "both.mp4", before_after=True)
    assert decode_rgb(tmp_path / "both.mp4").shape == (3, height, 2 * width, 3)


def test_real_network_on_a_tiny_picture(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", moving(3, 7, 5), codec="ffv1", options={})
    backend = open_backend(random_generator(2, 1), "cpu", "fp32")
    outcome, _ = convert(source, tmp_path / "out.mp4", backend)
    assert outcome.frames == 3
    assert decode_rgb(tmp_path / "out.mp4").shape == (3, 5, 7, 3)


def test_sample_aspect_ratio_is_kept(tmp_path: Path) -> None:
    def anamorphic(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)

    for suffix in (".mp4", ".mkv"):
        source = write_clip(tmp_path / f"in{suffix}", moving(3), configure=anamorphic)
        convert(source, tmp_path / f"out{suffix}")
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert container.streams.video[0].sample_aspect_ratio == Fraction(64, 45)


ONE = 1 << 16
# The first two rows and columns of the display matrix, which turns and flips.
TURNS = {
    "upright": (ONE, 0, 0, ONE),
    "90": (0, ONE, -ONE, 0),
    "180": (-ONE, 0, 0, -ONE),
    "270": (0, -ONE, ONE, 0),
    "mirrored": (-ONE, 0, 0, ONE),
    "upside down": (ONE, 0, 0, -ONE),
    "transposed": (0, ONE, ONE, 0),
    "transversed": (0, -ONE, -ONE, 0),
}


def turning(name: str) -> Callable[[av.VideoStream], None]:
    a, b, c, d = TURNS[name]
    return lambda stream: stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_rotation_is_kept(tmp_path: Path, suffix: str) -> None:
    # Matroska knows rotations, and of mirrored pictures only some.
    for name in ("upright", "90", "180", "270") if suffix == ".mkv" else TURNS:
        source = write_clip(tmp_path / f"in{suffix}", moving(2), configure=turning(name))
        target = tmp_path / f"out{suffix}"
        convert(source, target)
        before, after = (ffprobe(path, "stream_side_data=rotation,displaymatrix") for path in (source, target))
        assert after == before
        assert bool(after.get("side_data_list")) == (name != "upright")
        target.unlink()


@needs_ffmpeg
@pytest.mark.parametrize("name", TURNS)
def test_before_is_left_and_after_right_as_seen(tmp_path: Path, name: str) -> None:
    bright = [255 - picture // 2 for picture in moving(2)]
    source = write_clip(tmp_path / "in.mp4", bright, configure=turning(name))
    convert(source, tmp_path / "out.mp4", Black(), before_after=True)
    seen = decode_rgb(tmp_path / "out.mp4", turned=True)[0]
    once = decode_rgb(source, turned=True)[0]
    if name in ("90", "270"):
        assert once.shape == (64, 48, 3)
    height, width, _ = once.shape
    assert seen.shape == (height, 2 * width, 3)
    assert error(seen[:, : width - 4], once[:, :-4]) < 6
    assert seen[:, width + 4 :].max() < 40


def test_pictures_that_change_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    # Two raw streams of one codec behind each other are a stream that changes its size.
    def bright(width: int, height: int) -> list[av.VideoFrame]:
        planes = [np.full((height, width), 250, np.uint8), *[np.full((height // 2, width // 2), 128, np.uint8)] * 2]
        return [as_frame(planes, "yuv420p") for _ in range(4)]

    tag = tagged(CODE["bt601"], FULL)
    small = write_clip(tmp_path / "a.h264", bright(64, 48), configure=tag)
    large = write_clip(tmp_path / "b.h264", bright(128, 96), configure=tag)
    source = tmp_path / "in.h264"
    source.write_bytes(small.read_bytes() + large.read_bytes())
    outcome, notes = convert(source, tmp_path / "out.mp4", encoding=LOSSLESS)
    assert outcome.frames == 8
    assert any("the size changes in mid-stream; all pictures are scaled to 64x48" in note for note in notes)
    pictures = decode_rgb(tmp_path / "out.mp4")
    assert pictures.shape == (8, 48, 64, 3)
    assert abs(pictures.astype(int) - 250).max() <= 3  # the range, too, is the same before and after


# What may stand in the way.


def test_existing_file_is_not_replaced(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"out\.mp4 exists; add -y to replace it"):
        convert(clip, target)
    assert target.read_bytes() == b"precious"
    assert left_over(tmp_path) == ["clip.mp4", "out.mp4"]


def test_rest_of_another_run_is_not_replaced(clip: Path, tmp_path: Path) -> None:
    rest = tmp_path / "out.part.mp4"
    rest.write_bytes(b"hours of work")
    with pytest.raises(
        OutputError, match=r"out\.part\.mp4 exists, from a run that did not finish; add -y to begin anew"
    ):
        convert(clip, tmp_path / "out.mp4")
    assert rest.read_bytes() == b"hours of work"
    convert(clip, tmp_path / "out.mp4", overwrite=True)
    assert left_over(tmp_path) == ["clip.mp4", "out.mp4"]


def test_failure_keeps_the_file_that_was_to_be_replaced(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="cannot hold libvpx"):
        convert(clip, target, encoding=Encoding("libvpx"), overwrite=True)
    assert target.read_bytes() == b"precious"
    assert left_over(tmp_path) == ["clip.mp4", "out.mp4"]


def test_input_is_never_its_own_output(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(clip)
    for output in (clip, tmp_path / "." / "clip.mp4", tmp_path / "link.mp4"):
        plan = batch.plan([clip], str(output), recursive=False, before_after=False)
        assert not plan.jobs
        assert "would be replaced by its own result" in str(plan.failed[0][1])


@pytest.mark.parametrize(
    ("name", "encoding", "message"),
    [
        ("out.xyz", FAST, r"no container has the suffix '\.xyz'; use \.mp4, \.mkv or \.mov"),
        ("out", FAST, r"no container has the suffix ''; use \.mp4"),
        ("out.webm", FAST, r"\.webm files cannot hold libx264; use --codec for another, or \.mkv"),
        ("out.mp4", Encoding("nosuch"), r"there is no encoder 'nosuch'; try --codec libx264"),
        ("out.mp4", Encoding("aac"), r"the encoder aac takes none of .*; use --codec libx264"),
        ("out.mkv", Encoding("ffv1", crf=3), r"the encoder ffv1 has no --crf; use it with libx264"),
        ("out.mkv", Encoding("mpeg4", preset="fast"), r"the encoder mpeg4 has no --preset"),
        ("out.mp4", Encoding(crf=-3), r"cannot be made \(.*\); check --crf, --preset and -e"),
        ("out.mp4", Encoding("libsvtav1", preset="fast"), r"cannot be made \(.*\); check --crf, --preset and -e"),
        ("no/such/folder/../out.mp4", FAST, "there is no folder|cannot be made"),
        ("folder.mp4", FAST, r"folder\.mp4 is a folder; name a file in it"),
        ("n" * 300 + ".mp4", FAST, "File name too long"),
    ],
)
def test_impossible_output_is_refused_and_leaves_nothing(
    clip: Path, tmp_path: Path, name: str, encoding: Encoding, message: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    source = FileSource(clip)
    with pytest.raises(OutputError, match=message):
        FileSink(tmp_path / name, encoded_format(source.format, encoding), Fraction(25), encoding)
    source.close()
    assert left_over(tmp_path) == ["clip.mp4", "folder.mp4"]


def test_unreadable_input_is_one_line(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "clip.mp4", moving(10)).read_bytes()
    (tmp_path / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "headless.mp4").write_bytes(data[: len(data) // 2])  # without the index at the end
    for name in ("garbage.mp4", "empty.mp4", "headless.mp4", "missing.mp4"):
        with pytest.raises(InputError) as caught:
            convert(tmp_path / name, tmp_path / "out.mp4")
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)
    assert "out.mp4" not in left_over(tmp_path)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("aac", 44100, layout="mono")
        for packet in encode_sine(stream, Sound(0.2)):
            container.mux(packet)
    with pytest.raises(InputError, match=r"no video stream in it \(1 audio stream\); nothing written"):
        convert(tmp_path / "in.mp4", tmp_path / "out.mp4")


def test_file_that_vanishes_is_an_error_of_the_input(clip: Path, tmp_path: Path) -> None:
    source = FileSource(clip)
    clip.unlink()
    with pytest.raises(InputError, match=r"clip\.mp4: No such file"):
        Companion(clip, source.video_index, source.start)
    source.close()
    assert left_over(tmp_path) == []


def test_truncated_file_gives_what_is_there_and_a_note(tmp_path: Path) -> None:
    noise = [np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8) for index in range(75)]
    whole = write_clip(tmp_path / "whole.mkv", noise)
    source = tmp_path / "in.mkv"
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    outcome, notes = convert(source, tmp_path / "out.mp4")
    assert 10 < outcome.frames < 40
    assert len(times(tmp_path / "out.mp4")) == outcome.frames
    assert any("the pictures end at " in note and note.endswith(" of 3.0 s") for note in notes)


def test_damage_is_passed_over_and_told(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", moving(50, 160, 120), options={"preset": "ultrafast", "g": "10"})
    data = bytearray(whole.read_bytes())
    for place in range(len(data) // 3, len(data) // 3 * 2, 997):
        data[place] ^= 0xFF
    source = tmp_path / "in.mkv"
    source.write_bytes(data)
    outcome, notes = convert(source, tmp_path / "out.mp4")
    assert 20 < outcome.frames <= 50
    assert len(times(tmp_path / "out.mp4")) == outcome.frames
    assert any("damaged" in note for note in notes)


def test_odd_files(shared: Path, tmp_path: Path) -> None:
    """Files of the wild: a strange one works, and a bad one is an error of one line."""
    hopeless = {"audio_only.mp4", "random.mp4", "trunc_no_moov.mp4"}
    for source in sorted((shared / "video" / "odd").iterdir()):
        target = tmp_path / f"{source.stem}.mkv"
        if source.name in hopeless:
            with pytest.raises(InputError) as caught:
                convert(source, target)
            assert "\n" not in str(caught.value)
            continue
        outcome, notes = convert(source, target, strength=0)
        shown = times(target)
        assert len(shown) == outcome.frames > 0, source.name
        assert shown == sorted(shown), source.name
        assert all("\n" not in note for note in notes)
        with av.open(str(source), metadata_errors="replace") as container:
            has_sound = bool(container.streams.audio)
        left_out = any("the sound" in note for note in notes)
        with av.open(str(target)) as container:
            assert bool(container.streams.audio) == (has_sound and not left_out), source.name
        target.unlink()
    assert left_over(tmp_path) == []


# Interruption.


def test_interruption_leaves_a_playable_beginning(tmp_path: Path) -> None:
    for name in ("out.mp4", "out.mkv"):
        stop = threading.Event()
        source = write_clip(tmp_path / "long.mp4", moving(200), sound=Sound(8))

        def after_three(stats: Stats, total: int | None, stop: threading.Event = stop) -> None:
            assert total == 200
            if stats.written[0] >= 3:
                stop.set()

        outcome, _ = convert(source, tmp_path / name, Slow(), stop=stop.is_set, progress=after_three)
        assert outcome.interrupted
        assert 3 <= outcome.frames < 200
        assert outcome.kept == tmp_path / name.replace("out.", "out.part.")
        assert not (tmp_path / name).exists()
        assert outcome.kept is not None
        shown = times(outcome.kept)
        assert [moment - shown[0] for moment in shown] == times(source)[: outcome.frames]
        assert len(sound_of(outcome.kept)) > 0
        assert sound_of(outcome.kept)[-1][0] <= times(source)[outcome.frames] + shown[0]


def test_interruption_before_the_first_picture_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    outcome, _ = convert(clip, tmp_path / "out.mp4", stop=lambda: True)
    assert (outcome.interrupted, outcome.frames, outcome.kept) == (True, 0, None)
    assert left_over(tmp_path) == ["clip.mp4"]


def test_failing_backend_keeps_what_was_done(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(DpedError, match=r"the backend is broken; the pictures before it are in .*out\.part\.mp4$"):
        convert(clip, tmp_path / "out.mp4", Broken())
    assert left_over(tmp_path) == ["clip.mp4", "out.part.mp4"]
    assert 0 < len(times(tmp_path / "out.part.mp4")) <= 5


# The command line, as a process.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(random_generator(2, 1), path)
    return path


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `dped-live ARGUMENTS` in the test's folder; ends what is left of it."""
    children = []

    def begin(*arguments: str | Path, preexec_fn: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        # The threads of two processes that wait for each other on two cores are slow beyond measure.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        command = [sys.executable, "-m", "dped_live", "--model", str(model), "--preset", "ultrafast", *arguments]
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
            preexec_fn=preexec_fn,
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert child.poll() is None, "the process has ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_disk_that_takes_no_more_is_one_line(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    noise = [np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8) for index in range(300)]
    write_clip(tmp_path / "in.mp4", noise, sound=Sound(12))

    def limit(size: int) -> Callable[[], None]:
        def apply() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        return apply

    expected = {
        "header.mp4": (1, ""),
        "out.mp4": (100_000, "; the pictures before it are in out.part.mp4"),
        "out.mkv": (100_000, "; the pictures before it are in out.part.mkv"),
    }
    children = {name: start("in.mp4", "-o", name, preexec_fn=limit(size)) for name, (size, _) in expected.items()}
    for name, child in children.items():
        output, errors = child.communicate(timeout=SECONDS)
        assert child.returncode == 1
        assert output == ""
        assert errors.splitlines()[-1] == f"dped-live: in.mp4: {name}: File too large{expected[name][1]}"
        assert sum("File too large" in line for line in errors.splitlines()) == 1
        assert "Traceback" not in errors
    assert left_over(tmp_path) == ["in.mp4", "out.part.mkv", "out.part.mp4"]
    assert len(times(tmp_path / "out.part.mkv")) > 5


def test_control_c_finishes_what_is_begun(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mp4", moving(50) * 100, sound=Sound(10))
    child = start("in.mp4", "-o", "out.mp4")
    part = tmp_path / "out.part.mp4"
    wait_for(lambda: part.exists() and part.stat().st_size > 30_000, child)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == 130
    assert output == ""
    assert "finishing what is begun; Ctrl-C again leaves at once" in errors
    frames = len(times(part))
    assert 0 < frames < 5000
    kept = f"dped-live: in.mp4: interrupted; the first {frames} frames are in out.part.mp4"
    assert f"{kept}; the same command with --resume goes on\n" in errors
    assert left_over(tmp_path) == ["in.mp4", "out.part.mp4"]


def test_control_c_twice_leaves_at_once(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    # A network that takes seconds for a picture, so that finishing would take long.
    weights.save(random_generator(64, 4), tmp_path / "large.safetensors")
    write_clip(tmp_path / "in.mp4", moving(50, 640, 480))
    child = start("in.mp4", "-o", "out.mp4", "--model", "large.safetensors", "--precision", "fp32")
    wait_for((tmp_path / "out.part.mp4").exists, child)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    assert child.stderr is not None
    while "Ctrl-C again leaves at once" not in child.stderr.readline():
        assert child.poll() is None
    before = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(SECONDS) == 130
    assert time.monotonic() - before < 2
    assert not (tmp_path / "out.mp4").exists()
