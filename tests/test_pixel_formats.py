"""Pixel formats from file to file: what is kept, what is given up and said, and what --pix-fmt can choose."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dped_live import color
from dped_live.enhance import Enhancer
from dped_live.errors import OutputError
from dped_live.frame import PIXEL_FORMATS, WITH_ALPHA, Frame, VideoFormat
from dped_live.layout import pack, unpack
from dped_live.pipeline import run
from dped_live.scene_statistics import ExactPolicy
from dped_live.sinks.encoding import Encoding, encoded_format, lost_in
from dped_live.sinks.file import FileSink
from dped_live.sources.file import FileSource

from test_video import Identity, gradient, moving, write_clip

WIDTH, HEIGHT = 64, 48


def video(name: str, has_alpha: bool = False, size: tuple[int, int] = (HEIGHT, WIDTH)) -> VideoFormat:
    pixel = PIXEL_FORMATS[name]
    yuv = pixel.kind == "yuv"
    return VideoFormat(
        size[1],
        size[0],
        pixel,
        "bt709" if yuv else "rgb",
        full_range=not yuv,
        time_base=Fraction(1, 25),
        has_alpha=has_alpha,
    )


def frame(fmt: VideoFormat) -> Frame:
    rgb = torch.from_numpy(gradient(fmt.width, fmt.height)).permute(2, 0, 1)[None] / 255
    planes = tuple(plane.numpy() for plane in color.from_rgb(rgb, fmt))
    alpha = None
    if fmt.has_alpha:
        ramp = np.linspace(0, (1 << fmt.pixel_format.depth) - 1, fmt.width)[None].repeat(fmt.height, 0)
        alpha = np.rint(ramp).astype(planes[0].dtype)
    return Frame(planes, fmt, alpha=alpha)


def convert(source: Path, target: Path, encoding: Encoding, strength: float = 1.0) -> tuple[VideoFormat, VideoFormat]:
    """Through a network that changes nothing; the formats before and after."""
    opened = FileSource(source)
    fmt = encoded_format(opened.format, encoding)
    sink = FileSink(target, fmt, Fraction(25), encoding)
    run(opened, Enhancer(Identity(), fmt, ExactPolicy(), strength), [sink])
    return opened.format, fmt


def first(path: Path) -> Frame:
    source = FileSource(path)
    (found, *_) = list(source.frames())
    source.close()
    return found


STORED = sorted([*PIXEL_FORMATS, *WITH_ALPHA.values()])


@pytest.mark.parametrize("stored", STORED)
def test_every_format_is_packed_as_ffmpeg_has_it(stored: str) -> None:
    """What pack writes, FFmpeg's own conversion to RGB reads as it was; and unpack gives the same back."""
    name = next((colour for colour, alpha in WITH_ALPHA.items() if alpha == stored), stored)
    fmt = video(name, stored != name)
    assert fmt.stored_as == stored
    given = frame(fmt)
    picture = av.VideoFrame(WIDTH, HEIGHT, stored)
    pack(given.planes, given.alpha, picture.planes, fmt)
    planes, alpha = unpack(picture.planes, fmt)
    assert all(np.array_equal(a, b) for a, b in zip(planes, given.planes, strict=True))
    assert (alpha is None) == (given.alpha is None)
    if alpha is not None:
        assert given.alpha is not None
        assert np.array_equal(alpha, given.alpha)
    if fmt.pixel_format.kind == "yuv":
        picture.colorspace, picture.color_range = 1, 1
    judged = picture.reformat(format="rgba", interpolation=2 | 0x2000 | 0x4000 | 0x40000).to_ndarray()
    truth = gradient(WIDTH, HEIGHT).astype(int)
    if fmt.pixel_format.kind == "gray":
        truth = np.rint(truth @ (0.2126, 0.7152, 0.0722))[:, :, None].repeat(3, 2)
    assert np.abs(judged[:, :, :3] - truth).mean() < (4.5 if fmt.pixel_format.chroma_shift_x == 2 else 2)
    if given.alpha is not None:
        scaled = given.alpha / ((1 << fmt.pixel_format.depth) - 1) * 255
        assert np.abs(judged[:, :, 3] - scaled).max() <= 1.5


@pytest.mark.parametrize(
    ("name", "codec", "stored", "decoded"),
    [
        ("yuv420p", "ffv1", "yuva420p", "yuva420p"),
        ("yuv444p10le", "ffv1", "yuva444p10le", "yuva444p10le"),
        ("yuv422p12le", "ffv1", "yuva422p12le", "yuva422p12le"),
        ("bgr0", "ffv1", "yuva420p", "yuva420p"),
        ("gray", "ffv1", "yuva420p", "yuva420p"),
        # FFmpeg decodes every 4444 in 12 bits.
        ("yuv444p", "prores_ks", "yuva444p10le", "yuva444p12le"),
        ("yuv420p", "libvpx-vp9", "yuva420p", "yuva420p"),
    ],
)
def test_transparency_is_kept(tmp_path: Path, name: str, codec: str, stored: str, decoded: str) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / ("out.mov" if codec == "prores_ks" else "out.mkv")
    given = frame(video(name, has_alpha=True))
    sink = FileSink(source, given.format, Fraction(25), Encoding("ffv1"))
    for number in range(3):
        sink.write(replace(given, pts=Fraction(number, 25)))
    sink.close(complete=True)
    before, after = convert(source, target, Encoding(codec))
    assert (before.has_alpha, after.stored_as) == (True, stored)
    assert "transparency" not in lost_in(before, after)
    found = first(target)
    assert found.format.stored_as == decoded
    assert found.alpha is not None
    assert given.alpha is not None
    peaks = [(1 << f.format.pixel_format.depth) - 1 for f in (found, given)]
    assert np.abs(found.alpha / peaks[0] - given.alpha / peaks[1]).max() < 2 / 255


def test_transparency_that_is_given_up_is_said() -> None:
    source = video("yuv420p", has_alpha=True)
    for codec in ("libx264", "libx265", "libsvtav1"):
        fmt = encoded_format(source, Encoding(codec))
        assert not fmt.has_alpha
        assert lost_in(source, fmt) == ["transparency"]


def test_real_transparent_files(shared: Path, tmp_path: Path) -> None:
    for name, decoded in (("real/moviepy__transparent.webm", "yuva420p"), ("odd/alpha_qtrle.mov", "rgba")):
        found = first(shared / "video" / name)
        assert found.format.stored_as == decoded
        assert found.alpha is not None
    source = FileSource(shared / "video/real/moviepy__transparent.webm")
    alphas = [frame.alpha for frame in source.frames() if frame.alpha is not None]
    source.close()
    assert len(alphas) == 150
    # A disc on nothing: both are there.
    assert all(0.9 < (alpha == 0).mean() < 1 and alpha.max() > 250 for alpha in alphas)
    convert(shared / "video/real/moviepy__transparent.webm", tmp_path / "out.mkv", Encoding("libvpx-vp9"), strength=0)
    found = first(tmp_path / "out.mkv")
    assert found.alpha is not None
    assert np.abs(found.alpha.astype(int) - alphas[0]).mean() < 2


def test_opaque_animation_is_not_transparent(tmp_path: Path) -> None:
    options: dict[str, str] = {}
    clip = write_clip(
        tmp_path / "in.gif", moving(2), codec="gif", pix_fmt="rgb8", options=options, clock=Fraction(1, 100)
    )
    source = FileSource(clip)
    assert not source.format.has_alpha
    source.close()


@pytest.mark.parametrize(
    ("source", "codec", "expected", "lost"),
    [
        ("yuv420p", "libx264", "yuv420p", []),
        ("yuv422p10le", "libx264", "yuv422p10le", []),
        ("yuv420p12le", "libx264", "yuv420p10le", ["12 bits become 10"]),
        ("yuv420p12le", "libx265", "yuv420p12le", []),
        ("yuv444p12le", "ffv1", "yuv444p12le", []),
        ("yuv420p12le", "libsvtav1", "yuv420p10le", ["12 bits become 10"]),
        ("yuv444p10le", "libsvtav1", "yuv420p10le", ["4:4:4 becomes 4:2:0"]),
        ("yuv420p10le", "libvpx-vp9", "yuv420p", ["10 bits become 8"]),
        ("yuv420p9le", "ffv1", "yuv420p9le", []),
        ("yuv420p9le", "libx264", "yuv420p10le", []),
        ("yuv411p", "libx264", "yuv422p", []),
        ("yuv411p", "ffv1", "yuv411p", []),
        ("yuv440p", "libx264", "yuv444p", []),
        ("yuv410p", "libx264", "yuv420p", []),
        ("yuv420p", "prores_ks", "yuv422p10le", []),
        ("gray", "libx264", "yuv420p", []),
        ("gray16le", "libx264", "yuv420p10le", ["16 bits become 10"]),
        ("gray16le", "ffv1", "yuv420p16le", []),
        ("bgr0", "libx264", "yuv420p", ["RGB becomes BT.601 4:2:0"]),
        ("gbrp12le", "libx264", "yuv420p10le", ["12 bits become 10", "RGB becomes BT.601 4:2:0"]),
        ("rgb24", "libx264rgb", "rgb24", []),
    ],
)
def test_nearest_format(source: str, codec: str, expected: str, lost: list[str]) -> None:
    before = video(source)
    after = encoded_format(before, Encoding(codec))
    assert after.stored_as == expected
    assert lost_in(before, after) == lost


def test_full_range_that_the_format_cannot_say_becomes_limited() -> None:
    full = replace(video("yuv422p10le"), full_range=True)
    assert encoded_format(video("yuv420p"), Encoding("mjpeg")).full_range
    assert encoded_format(full, Encoding("libx264")).full_range
    assert not encoded_format(full, Encoding("prores_ks")).full_range


@pytest.mark.parametrize(
    ("codec", "chosen"),
    [
        ("libx264", "yuv444p10le"),
        ("libx264", "gray"),
        ("libx264rgb", "bgr0"),
        ("libx265", "gbrp"),
        ("libx265", "gbrp12le"),
        ("libvpx-vp9", "gbrp"),
        ("ffv1", "bgr0"),
        ("ffv1", "gbrp10le"),
        ("ffv1", "bgra"),
        ("ffv1", "rgb48le"),
        ("ffv1", "gray16le"),
        ("libvpx-vp9", "yuv440p"),
    ],
)
def test_chosen_format_arrives_with_its_colours(tmp_path: Path, codec: str, chosen: str) -> None:
    source = write_clip(tmp_path / "in.mkv", moving(2), codec="ffv1", pix_fmt="bgr0", options={})
    encoding = Encoding(codec, crf=5 if codec in ("libx264", "libx265", "libvpx-vp9") else None, pixel_format=chosen)
    _, fmt = convert(source, tmp_path / "out.mkv", encoding)
    assert fmt.stored_as == chosen
    found = first(tmp_path / "out.mkv")
    assert found.format.pixel_format.depth == fmt.pixel_format.depth
    # FFmpeg gives grey H.264 a neutral chroma.
    assert found.format.pixel_format.kind == (
        "yuv" if (codec, chosen) == ("libx264", "gray") else fmt.pixel_format.kind
    )
    rgb = color.to_rgb([torch.from_numpy(plane.copy()) for plane in found.planes], found.format)[0].permute(1, 2, 0)
    truth = gradient(WIDTH, HEIGHT) / 255
    if fmt.pixel_format.kind == "gray":
        truth = (truth @ (0.2126, 0.7152, 0.0722))[:, :, None].repeat(3, 2)
    error = np.abs(rgb.numpy() - truth) * 255
    assert error.mean() < (0.3 if codec == "ffv1" else 2.5)
    if found.format.has_alpha:
        assert found.alpha is not None
        assert found.alpha.min() == 255


def test_format_that_cannot_be_chosen_names_those_that_can() -> None:
    with pytest.raises(
        OutputError, match=r"^the encoder libsvtav1 takes no --pix-fmt gbrp; use one of yuv420p, yuv420p10le$"
    ):
        encoded_format(video("rgb24"), Encoding("libsvtav1", pixel_format="gbrp"))
    # What libx265 names and refuses.
    with pytest.raises(OutputError, match="takes no --pix-fmt yuva420p"):
        encoded_format(video("rgb24"), Encoding("libx265", pixel_format="yuva420p"))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "ffv1", "libsvtav1", "prores_ks"])
def test_depth_of_ten_bits_goes_through_the_network(tmp_path: Path, codec: str) -> None:
    """A ramp of neighbouring 10-bit codes is still one; through eight bits it would be stairs of four."""
    codes = np.arange(400, 400 + 256, dtype=np.uint16).reshape(1, -1).repeat(64, 0)
    neutral = np.full((64, 128), 512, np.uint16)
    fmt = video("yuv422p10le", size=(64, 256))
    sink = FileSink(tmp_path / "in.mkv", fmt, Fraction(25), Encoding("ffv1"))
    for number in range(4):
        sink.write(Frame((codes, neutral, neutral), fmt, Fraction(number, 25), Fraction(1, 25)))
    sink.close(complete=True)
    convert(tmp_path / "in.mkv", tmp_path / "out.mkv", Encoding(codec))
    found = first(tmp_path / "out.mkv")
    assert found.format.pixel_format.depth == 10
    assert found.format.matrix == "bt709"  # small video without a tag is taken for BT.601
    assert len(np.unique(found.planes[0])) > 150
    assert np.abs(found.planes[0].astype(int) - codes).mean() < (0.01 if codec == "ffv1" else 1.5)
