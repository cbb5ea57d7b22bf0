"""Interlaced video: found, said, made progressive, with its times."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dped_live.sources.file import FileSource

from test_video import tagged, write_clip

WIDTH, HEIGHT = 96, 64


def bar(moment: int) -> np.ndarray:
    """A white bar that moves to the right by four columns a field, before a grey ramp; (H, W, 3)."""
    picture = np.linspace(40, 160, WIDTH)[None].repeat(HEIGHT, 0)
    picture[8:56, 8 + 4 * moment : 20 + 4 * moment] = 235
    return np.rint(picture[:, :, None].repeat(3, 2)).astype(np.uint8)


def woven(number: int, top_first: bool) -> np.ndarray:
    """A picture of two fields, the second of which was taken half a picture later."""
    picture = bar(2 * number)
    picture[1 if top_first else 0 :: 2] = bar(2 * number + 1)[1 if top_first else 0 :: 2]
    return picture


def comb(luma: np.ndarray) -> float:
    """How much neighbouring lines differ, against lines two apart."""
    lines = luma[10:54].astype(float)
    return float(np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean())


def clip(path: Path, pictures: list[np.ndarray], order: str, pix_fmt: str = "yuv420p", **arguments: Any) -> Path:
    """order: tff or bff, or nothing for progressive."""
    frames = [av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt) for picture in pictures]
    options = {"crf": "12", "preset": "ultrafast", **({"x264-params": "tff=1"} if order else {})}
    return write_clip(path, [in_fields(f, order) for f in frames], pix_fmt=pix_fmt, options=options, **arguments)


def in_fields(frame: av.VideoFrame, order: str) -> av.VideoFrame:
    """The encoder asks each picture which field is the first; PyAV cannot set that."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("setfield", order or "prog"), graph.add("buffersink")).configure()
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    graph.push(frame)
    return graph.vpull()


def lumas(
    path: Path, deinterlace: bool = True
) -> tuple[list[np.ndarray], list[tuple[Fraction, Fraction | None]], list[str]]:
    source = FileSource(path, deinterlace=deinterlace)
    frames = [(frame.planes[0].copy(), (frame.pts, frame.duration)) for frame in source.frames()]
    source.close()
    return [luma for luma, _ in frames], [time for _, time in frames], source.notes


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "nv12"])
@pytest.mark.parametrize("order", ["tff", "bff"])
def test_fields_are_taken_apart(tmp_path: Path, order: str, pix_fmt: str) -> None:
    pictures = [woven(number, order == "tff") for number in range(8)]
    source = clip(tmp_path / "in.mp4", pictures, order, pix_fmt=pix_fmt, last=900)
    found, times, notes = lumas(source)
    as_it_is, same_times, _ = lumas(source, deinterlace=False)
    assert len(found) == 8
    assert times == same_times
    assert notes == ["the video is interlaced; deinterlaced"]
    scale = 4 if "10" in pix_fmt else 1
    for number, (after, before) in enumerate(zip(found, as_it_is, strict=True)):
        assert comb(before) > 4 * scale
        assert comb(after) < 2 * scale
        # The first field of each picture is kept, and so is where the bar is at its time.
        first = slice(0 if order == "tff" else 1, None, 2)
        assert np.array_equal(after[first], before[first])
        if 0 < number < 7:
            expected = 16 + bar(2 * number)[:, :, 0] * (219 / 255)
            assert np.abs(after / scale - expected).mean() < 3


def test_is_left_on_request_and_said(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", [woven(number, True) for number in range(3)], "tff")
    found, _, notes = lumas(source, deinterlace=False)
    assert comb(found[1]) > 4
    assert notes == ["the video is interlaced; left as it is, since --deinterlace is off"]


def test_progressive_video_is_left_alone(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", [bar(number) for number in range(4)], "")
    found, times, notes = lumas(source)
    same, same_times, _ = lumas(source, deinterlace=False)
    assert notes == []
    assert times == same_times
    assert all(np.array_equal(a, b) for a, b in zip(found, same, strict=True))


def test_progressive_pictures_between_interlaced_ones_stay(tmp_path: Path) -> None:
    """Two files end to end, as broadcasts have it: the filter starts where it is needed and passes the rest on."""
    parts = [
        clip(tmp_path / "a.ts", [bar(number) for number in range(3)], ""),
        clip(tmp_path / "b.ts", [woven(number, True) for number in range(3)], "tff"),
        clip(tmp_path / "c.ts", [bar(number) for number in range(3)], ""),
    ]
    joined = tmp_path / "in.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    found, _, notes = lumas(joined)
    as_it_is, _, _ = lumas(joined, deinterlace=False)
    assert len(found) == len(as_it_is) == 9
    assert notes == ["the video is interlaced; deinterlaced"]
    same = [np.array_equal(a, b) for a, b in zip(found, as_it_is, strict=True)]
    assert same == [True] * 3 + [False] * 3 + [True] * 3


def test_change_of_size_loses_no_picture(tmp_path: Path) -> None:
    small = [woven(number, True) for number in range(3)]
    large = [np.kron(picture, np.ones((2, 2, 1), np.uint8)) for picture in small]
    parts = [clip(tmp_path / f"{name}.ts", pictures, "tff") for name, pictures in (("a", small), ("b", large))]
    joined = tmp_path / "in.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    found, _, _ = lumas(joined)
    assert [luma.shape for luma in found] == [(HEIGHT, WIDTH)] * 6


@pytest.mark.parametrize(("width", "height"), [(2, 8), (4, 4), (6, 8), (8, 12)])
@pytest.mark.parametrize("count", [1, 2])
def test_tiny_and_short(tmp_path: Path, width: int, height: int, count: int) -> None:
    """What is too small for the filter stays; a clip that ends while the filter waits for more is whole."""
    source = clip(tmp_path / "in.mp4", [bar(number)[:height, :width] for number in range(count)], "tff")
    found, times, notes = lumas(source)
    assert len(found) == count
    assert [time for time, _ in times] == [Fraction(number, 25) for number in range(count)]
    assert bool(notes) == (width >= 6)


def test_colours_are_described_as_before(tmp_path: Path) -> None:
    pictures = [woven(number, True) for number in range(3)]
    source = clip(tmp_path / "in.mp4", pictures, "tff", configure=tagged(9, 2, 9, 14))
    with_filter, without = FileSource(source), FileSource(source, deinterlace=False)
    assert with_filter.format == without.format
    assert (with_filter.format.matrix, with_filter.format.full_range) == ("bt2020", True)
    with_filter.close()
    without.close()


def test_real_file(shared: Path) -> None:
    path = shared / "video" / "odd" / "interlaced_1440x1080.mp4"
    source = FileSource(path)
    frames = list(itertools.islice(source.frames(), 30))
    source.close()
    with av.open(str(path)) as container:
        clock = container.streams.video[0].time_base
        assert clock is not None
        stamps = [(frame.pts or 0) * clock for frame in container.decode(video=0)]
    assert [frame.pts for frame in frames] == stamps
    assert source.notes[0] == "the video is interlaced; deinterlaced"
