"""Video decoded and encoded by NVIDIA cards: what is said where there is none, and what else shows without one.

On a machine with a card the tests marked for it run instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from dped_live import staging, weights
from dped_live.backends import open_backend
from dped_live.enhance import Enhancer
from dped_live.errors import OutputError
from dped_live.frame import PIXEL_FORMATS, Area, CardPlanes, Frame, VideoFormat
from dped_live.scene_statistics import ExactPolicy
from dped_live.sinks.encoding import Encoding, check_hardware, encoded_format, options_of, resolved
from dped_live.sources.file import FileSource
from dped_live.sources.picture import PictureReader, another_decoder

from conftest import random_generator
from test_cli import Said, clean, clip, files, runner

ENCODERS = ["h264_nvenc", "hevc_nvenc", "av1_nvenc"]
FORMAT = VideoFormat(64, 48, PIXEL_FORMATS["yuv420p"], "bt709", full_range=False, time_base=Fraction(1, 25))

HAS_DRIVER = Path("/proc/driver/nvidia/version").exists() or os.name == "nt"

without_card = pytest.mark.skipif(HAS_DRIVER, reason="needs a machine without an NVIDIA driver")


@pytest.fixture
def card() -> None:
    if not HAS_DRIVER:
        if os.environ.get("DPED_REQUIRE_GPU") == "1":
            pytest.fail("DPED_REQUIRE_GPU=1, and there is no NVIDIA driver")
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture
def dped_live(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Said]:
    clean(tmp_path, monkeypatch)
    model = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(random_generator(2, 1), model)
    return runner(model, capsys)


@without_card
@pytest.mark.parametrize("codec", ENCODERS)
def test_without_a_card_its_encoder_is_refused_in_one_line(dped_live: Callable[..., Said], codec: str) -> None:
    clip("a.mp4")
    said = dped_live("a.mp4", "--codec", codec, "-o", "b.mp4")
    assert said.code == 1
    assert said.errors == [
        f"dped-live: a.mp4: {codec} does not encode 64x48 yuv420p here (no NVIDIA driver is loaded); "
        "use --codec libx264"
    ]
    assert files() == ["a.mp4"]


@without_card
def test_without_a_card_its_decoder_is_refused_in_one_line(dped_live: Callable[..., Said]) -> None:
    clip("a.mp4")
    said = dped_live("a.mp4", "--decode", "cuda", "-o", "b.mp4")
    assert said.code == 1
    assert said.errors == ["dped-live: a.mp4: --decode cuda: no NVIDIA driver is loaded; use --decode cpu"]
    assert files() == ["a.mp4"]


@without_card
def test_auto_does_without_a_card_and_says_so(dped_live: Callable[..., Said]) -> None:
    clip("a.mp4")
    dped_live("a.mp4", "-o", "usual.mp4")
    said = dped_live("a.mp4", "--decode", "auto", "--codec", "auto", "-o", "auto.mp4")
    assert said.code == 0
    assert said.errors == [
        "dped-live: a.mp4: decoded by the CPU, since no NVIDIA driver is loaded",
        "dped-live: a.mp4: --codec auto: libx264, since h264_nvenc does not encode 64x48 yuv420p here (no NVIDIA "
        "driver is loaded)",
    ]
    assert _pictures("auto.mp4") == _pictures("usual.mp4")


def test_what_one_encoder_alone_understands_cannot_go_to_any(dped_live: Callable[..., Said]) -> None:
    clip("a.mp4")
    said = dped_live("a.mp4", "--codec", "auto", "--preset", "fast", "-o", "b.mp4")
    assert said.code == 1
    assert said.errors == [
        "dped-live: a.mp4: --preset and -e are for one encoder; name it with --codec, instead of auto",
    ]
    assert files() == ["a.mp4"]


@pytest.mark.parametrize("codec", ENCODERS)
def test_quality_is_nvenc_s_own(codec: str) -> None:
    usual = options_of(codec, Encoding(codec), FORMAT)
    assert usual["rc"] == "vbr"
    chosen = options_of(codec, Encoding(codec, crf=30, preset="p7"), FORMAT)
    assert (chosen["cq"], chosen["preset"]) == ("30", "p7")
    assert "crf" not in chosen
    for crf in (0, 52):
        with pytest.raises(OutputError, match=f"--crf {crf}: of {codec} it is from 1"):
            options_of(codec, Encoding(codec, crf=crf), FORMAT)


@without_card
@pytest.mark.parametrize("codec", ENCODERS)
def test_nvenc_understands_our_options(codec: str) -> None:
    """FFmpeg reads their values before it looks for a driver."""
    for pixel in ("yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le"):
        fmt = encoded_format(replace(FORMAT, pixel_format=PIXEL_FORMATS[pixel]), Encoding(codec))
        with pytest.raises(OutputError, match="no NVIDIA driver is loaded"):
            check_hardware(Encoding(codec, crf=51, preset="p1"), fmt)
    with pytest.raises(OutputError, match="it does not take --preset, --crf or -e as given"):
        check_hardware(Encoding(codec, preset="veryfast"), FORMAT)


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1", "ffv1"])
def test_other_encoders_need_no_trial(codec: str) -> None:
    check_hardware(Encoding(codec), FORMAT)
    assert resolved(Encoding(codec), FORMAT) == (Encoding(codec), None)


@pytest.mark.parametrize(
    ("source", "codec", "given"),
    [
        ("yuv420p", "h264_nvenc", "yuv420p"),
        ("yuv420p10le", "h264_nvenc", "yuv420p"),
        ("yuv420p10le", "hevc_nvenc", "yuv420p10le"),
        ("yuv420p10le", "av1_nvenc", "yuv420p10le"),
        ("yuv420p12le", "hevc_nvenc", "yuv420p10le"),
        ("yuv444p10le", "hevc_nvenc", "yuv444p10le"),
        ("yuv422p", "hevc_nvenc", "yuv444p"),
        ("rgb24", "hevc_nvenc", "yuv420p"),
        ("gbrp16le", "hevc_nvenc", "yuv420p10le"),
    ],
)
def test_nvenc_gets_the_nearest_format_that_it_takes(source: str, codec: str, given: str) -> None:
    fmt = VideoFormat(64, 48, PIXEL_FORMATS[source], "bt709" if source.startswith("yuv") else "rgb")
    assert encoded_format(fmt, Encoding(codec)).pixel_format.name == given


@pytest.mark.parametrize(
    ("packed", "planar", "kind"), [("nv12", "yuv420p", np.uint8), ("p010le", "yuv420p10le", np.uint16)]
)
def test_what_cards_decode_to_becomes_planes_exactly(packed: str, planar: str, kind: type[Any], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ours = av.VideoFrame(64, 48, planar)
    for own in ours.planes:
        rows = np.frombuffer(memoryview(own), kind).reshape(own.height, -1)
        rows[:] = random.integers(0, 256 if kind is np.uint8 else 1024, rows.shape)
    stored = ours.reformat(format=packed)
    with av.open(f"file:{clip(tmp_path / 'a.mp4')}") as container:
        reader = PictureReader(tmp_path / "a.mp4", container.streams.video[0], stored)
        assert reader.format.pixel_format.name == planar
        planes = reader.frame(stored, Fraction(0), None).planes
    for plane, truth in zip(planes, ours.planes, strict=True):
        rows = np.frombuffer(memoryview(truth), kind).reshape(truth.height, -1)
        np.testing.assert_array_equal(plane, rows[:, : truth.width])


@pytest.mark.parametrize(
    ("packed", "planar", "kind"), [("nv12", "yuv420p", np.uint8), ("p010le", "yuv420p10le", np.uint16)]
)
@pytest.mark.parametrize("size", [(64, 48), (70, 50)])
def test_what_a_card_keeps_becomes_planes_without_the_host(
    packed: str, planar: str, kind: type[Any], size: tuple[int, int]
) -> None:
    """FFmpeg's memory, rows with a gap and all, through DLPack; here it is the host's."""
    random, (width, height) = np.random.default_rng(0), size
    ours = av.VideoFrame(width, height, planar)
    truths = []
    for own in ours.planes:
        rows = np.frombuffer(memoryview(own), kind).reshape(own.height, -1)
        rows[:] = random.integers(0, 256 if kind is np.uint8 else 1024, rows.shape)
        truths.append(rows[:, : own.width])
    stored = ours.reformat(format=packed)
    assert stored.planes[0].line_size > width * np.dtype(kind).itemsize or size == (64, 48)
    planes = staging.planar(CardPlanes(0, stored.planes, lambda: ()))
    for plane, truth in zip(planes, truths, strict=True):
        assert plane.is_contiguous()
        np.testing.assert_array_equal(plane.numpy(), truth)
    before = [plane.clone() for plane in planes]
    for packed_plane in stored.planes:
        np.frombuffer(memoryview(packed_plane), np.uint8)[:] = 0
    assert all(torch.equal(plane.int(), kept.int()) for plane, kept in zip(planes, before, strict=True))


def test_a_picture_on_a_card_comes_to_the_host_when_it_is_looked_at_and_once() -> None:
    came: list[int] = []

    def download() -> tuple[np.ndarray, ...]:
        came.append(1)
        return tuple(np.full((48 >> shift, 64 >> shift), shift, np.uint8) for shift in (0, 1, 1))

    planes = CardPlanes(0, (), download)
    frame = Frame(planes, FORMAT)
    assert len(frame.planes) == 3
    assert replace(frame, pts=Fraction(1)).planes is planes
    assert came == []
    part, _ = frame.cropped(Area(2, 10, 0, 64))
    assert [plane.shape for plane in part.planes] == [(8, 64), (4, 32), (4, 32)]
    assert [int(plane[0, 0]) for plane in frame.planes] == [0, 1, 1]
    assert came == [1]


def test_where_the_card_does_not_enhance_its_pictures_come_to_the_host() -> None:
    random = np.random.default_rng(0)
    host = tuple(random.integers(0, 256, (48 >> shift, 64 >> shift)).astype(np.uint8) for shift in (0, 1, 1))
    frame = Frame(host, FORMAT)
    kept = replace(frame, planes=CardPlanes(0, (), lambda: host))
    backend = open_backend(random_generator(), "cpu", "fp32")
    for strength, before_after in ((1.0, False), (0.5, False), (0.0, False), (1.0, True)):
        results = [
            Enhancer(backend, FORMAT, ExactPolicy(), strength, before_after).enhance(given) for given in (frame, kept)
        ]
        for plane, truth in zip(results[1].planes, results[0].planes, strict=True):
            np.testing.assert_array_equal(plane, truth)


def test_a_decoder_of_our_own_is_told_what_the_container_says(tmp_path: Path) -> None:
    """The card's is one."""
    path = tmp_path / "a.mp4"
    with av.open(f"file:{path}", "w") as container:
        stream: Any = container.add_stream("mpeg4", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.color_primaries = stream.codec_context.color_trc = 9
        stream.codec_context.colorspace = 9
        for index in range(5):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    pictures = []
    with av.open(f"file:{path}") as container:
        video = container.streams.video[0]
        other = another_decoder(video, "mpeg4")
        for packet in container.demux(video):
            pictures += other.decode(packet)
    assert len(pictures) == 5
    assert {(p.colorspace, p.color_primaries, p.color_trc, p.width) for p in pictures} == {(9, 9, 9, 64)}


@pytest.mark.usefixtures("card")
def test_a_card_decodes_the_same_pictures(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    by_card, by_cpu = FileSource(path, decode="cuda"), FileSource(path)
    assert by_card.format == by_cpu.format
    for frame, expected in zip(by_card.frames(), by_cpu.frames(), strict=True):
        assert (frame.pts, frame.duration) == (expected.pts, expected.duration)
        for plane, truth in zip(frame.planes, expected.planes, strict=True):
            np.testing.assert_array_equal(plane, truth)
    by_card.close()
    by_cpu.close()


@pytest.mark.usefixtures("card")
@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("DPED_REQUIRE_GPU") != "1", reason="torch has none"
)
@pytest.mark.parametrize(("codec", "pixel"), [("libx264", "yuv420p"), ("libx265", "yuv420p10le")])
def test_pictures_that_stay_on_a_card_are_the_same(tmp_path: Path, codec: str, pixel: str) -> None:
    path = tmp_path / "a.mp4"
    with av.open(f"file:{path}", "w") as container:
        stream: Any = container.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt = 322, 182, pixel
        for index in range(40):
            picture = np.random.default_rng(index).integers(0, 256, (182, 322, 3)).astype(np.uint8)
            coded = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixel)
            coded.pts, coded.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(coded))
        container.mux(stream.encode(None))
    by_cpu = FileSource(path)
    device = torch.device("cuda")
    with staging.current(device) as number:
        kept = FileSource(path, decode="cuda", card=number)
    on_card = staging.Staging(device)
    frames = list(kept.frames())  # more of them than a decoder has surfaces
    assert all(isinstance(frame.planes, CardPlanes) for frame in frames)
    kept.close()
    for frame, expected in zip(frames, by_cpu.frames(), strict=True):
        assert (frame.pts, frame.duration) == (expected.pts, expected.duration)
        with on_card.computing():
            uploaded = on_card.upload(frame.planes)
            back = on_card.download(uploaded)
        for plane, own, truth in zip(back.planes(), frame.planes, expected.planes, strict=True):
            np.testing.assert_array_equal(plane, truth)
            np.testing.assert_array_equal(own, truth)
    by_cpu.close()


@pytest.mark.usefixtures("card")
def test_a_file_decoded_on_a_card_comes_out_the_same(dped_live: Callable[..., Said]) -> None:
    clip("a.mp4", 60)
    for decode in ("cpu", "cuda"):
        said = dped_live("a.mp4", "--decode", decode, "--codec", "ffv1", "-o", f"{decode}.mkv")
        assert said.code == 0, said.err
    assert _pictures("cuda.mkv") == _pictures("cpu.mkv")


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("codec", ["h264_nvenc", "hevc_nvenc"])
def test_a_card_encodes(dped_live: Callable[..., Said], codec: str) -> None:
    with av.open("file:a.mp4", "w") as container:
        stream: Any = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((360, 640, 3), 20 * index, np.uint8), "rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    said = dped_live("a.mp4", "--codec", codec, "--strength", "0", "-o", "b.mp4")
    assert said.code == 0, said.err
    for before, after in zip(_pictures("a.mp4"), _pictures("b.mp4"), strict=True):
        assert abs(before[0] - after[0]) < 3
        assert before[1] == after[1]


def _pictures(path: str) -> list[tuple[float, int]]:
    """Mean luma and time of each."""
    with av.open(f"file:{path}") as container:
        return [
            (float(np.frombuffer(memoryview(frame.planes[0]), np.uint8).mean()), frame.pts or 0)
            for frame in container.decode(video=0)
        ]
