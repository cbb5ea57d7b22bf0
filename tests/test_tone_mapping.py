"""HDR video: PQ and HLG mapped to SDR, or kept with all that is said of them."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from dped_live.frame import HLG, PQ, MasteringData
from dped_live.sinks.encoding import Encoding, configure, encoded_format, hdr_options, lost_in, to_picture
from dped_live.sources.file import FileSource
from dped_live.sources.tone_mapping import ToneMapper

from test_video import FFPROBE, as_frame, moving, needs_ffmpeg, write_clip

P3_DISPLAY = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,50)"
"""DCI-P3 at 4000 cd/m2, as x265 takes it."""


def pq(light: float) -> float:
    """The signal of a light in cd/m2, by SMPTE ST 2084."""
    y = (light / 10_000) ** (2610 / 16384)
    return float(((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32))


def patches(signals: list[float], transfer: int, chroma: tuple[int, int] = (512, 512)) -> av.VideoFrame:
    """Grey (or coloured) columns of 4:2:0 in 10 bits, eight wide each."""
    luma = np.rint(64 + 876 * np.array(signals)).astype(np.uint16).repeat(8)[None].repeat(16, 0)
    differences = [np.full((8, luma.shape[1] // 2), code, np.uint16) for code in chroma]
    picture = as_frame([luma, *differences], "yuv420p10le")
    picture.colorspace, picture.color_primaries, picture.color_trc, picture.color_range = 9, 9, transfer, 1
    picture.pts, picture.time_base = 7, Fraction(1, 50)
    return picture


def planes(picture: av.VideoFrame) -> list[np.ndarray]:
    return [
        np.frombuffer(memoryview(plane), np.uint16).reshape(-1, plane.line_size // 2)[: plane.height, : plane.width]
        for plane in picture.planes
    ]


def test_pq_without_mastering_data_is_mapped_from_1000() -> None:
    lights = [0.0, 1, 26, 203, 600, 1000, 4000]
    grey = ToneMapper("yuv420p10le", peak=False).map(patches([pq(light) for light in lights], PQ))
    assert (grey.colorspace, grey.color_primaries, grey.color_trc, grey.color_range) == (1, 1, 1, 1)
    assert (grey.pts, grey.time_base, grey.format.name) == (7, Fraction(1, 50), "yuv420p10le")
    luma, cb, cr = planes(grey)
    assert np.abs(cb.astype(int) - 512).max() <= 1
    assert np.abs(cr.astype(int) - 512).max() <= 1
    black, dim, middle, white, bright, peak, above = ((luma[8, 4::8].astype(float) - 64) / 876).tolist()
    assert abs(black) < 0.005
    assert 0.05 < dim < middle < white < bright < 0.95
    # BT.2446 and BT.2408 have middle grey (26 cd/m2) between 0.35 and 0.45 of an SDR signal, and white below its end.
    assert 0.3 < middle < 0.45
    assert 0.6 < white < 0.9
    assert abs(peak - 1) < 0.01
    assert abs(above - 1) < 0.01


def test_hlg_is_mapped_and_depth_is_kept() -> None:
    signals = np.linspace(0, 1, 877)
    luma, cb, _ = planes(ToneMapper("yuv420p10le", peak=False).map(patches(signals.tolist(), HLG)))
    levels = luma[8, 4::8].astype(int)
    assert (np.diff(levels) >= 0).all()
    # Through eight bits there would be at most 220.
    assert len(set(levels.tolist())) > 700
    assert (levels[0], levels[-1]) == (64, pytest.approx(940, abs=3))
    assert np.abs(cb.astype(int) - 512).max() <= 1


def test_pictures_that_are_no_hdr_come_back() -> None:
    picture = patches([0.5], 1)
    assert ToneMapper("yuv420p10le", peak=False).map(picture) is picture


@pytest.fixture(scope="module")
def hdr10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def tag(stream: av.VideoStream) -> None:
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, PQ, 1

    options = {"preset": "ultrafast", "x265-params": f"log-level=error:master-display={P3_DISPLAY}:max-cll=1234,321"}
    path = tmp_path_factory.mktemp("hdr") / "in.mp4"
    return write_clip(path, moving(3), codec="libx265", pix_fmt="yuv420p10le", options=options, configure=tag)


def test_mastering_data_are_read(hdr10: Path) -> None:
    source = FileSource(hdr10, hdr="keep")
    assert (source.format.transfer, source.format.matrix, source.format.primaries) == (PQ, "bt2020", 9)
    data = source.format.mastering
    assert data == MasteringData(
        red=(Fraction("0.68"), Fraction("0.32")),
        green=(Fraction("0.265"), Fraction("0.69")),
        blue=(Fraction("0.15"), Fraction("0.06")),
        white=(Fraction("0.3127"), Fraction("0.329")),
        luminance=(Fraction("0.005"), Fraction(4000)),
        max_cll=1234,
        max_fall=321,
    )
    assert source.format.peak == 4000
    assert source.notes == ["HDR video (PQ): kept; the models are made for SDR"]
    source.close()


def test_by_default_files_become_sdr(hdr10: Path) -> None:
    source = FileSource(hdr10)
    assert source.notes == ["HDR video (PQ): mapped to SDR (BT.709); --hdr keep keeps it"]
    fmt = source.format
    assert (fmt.transfer, fmt.matrix, fmt.primaries, fmt.full_range, fmt.mastering) == (1, "bt709", 1, False, None)
    assert fmt.pixel_format.name == "yuv420p10le"
    frames = [(frame.pts, frame.planes[0].astype(int)) for frame in source.frames()]
    source.close()
    kept = FileSource(hdr10, hdr="keep")
    as_it_is = [(frame.pts, frame.planes[0].astype(int)) for frame in kept.frames()]
    kept.close()
    assert [pts for pts, _ in frames] == [pts for pts, _ in as_it_is]
    assert all(np.abs(a - b).mean() > 10 for (_, a), (_, b) in zip(frames, as_it_is, strict=True))


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["libx265", "libsvtav1"])
def test_mastering_data_are_carried(hdr10: Path, tmp_path: Path, codec: str) -> None:
    source = FileSource(hdr10, hdr="keep")
    fmt = encoded_format(source.format, Encoding(codec))
    assert lost_in(source.format, fmt) == []
    options = hdr_options(codec, fmt)
    if codec == "libx265":
        options["x265-params"] += ":log-level=error"
    target = tmp_path / "out.mp4"
    with av.open(str(target), "w") as container:
        stream = container.add_stream(codec, 25, options=options)
        assert isinstance(stream, av.VideoStream)
        configure(stream.codec_context, fmt)
        for number, frame in enumerate(source.frames()):
            container.mux(stream.encode(to_picture(frame, fmt, number * 512)))
        container.mux(stream.encode(None))
    source.close()
    assert FFPROBE is not None
    command = [FFPROBE, "-v", "error", "-show_frames", "-read_intervals", "%+#1", "-of", "json", str(target)]
    (frame,) = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["frames"]
    assert (frame["color_transfer"], frame["color_primaries"], frame["color_space"]) == (
        "smpte2084",
        "bt2020",
        "bt2020nc",
    )
    said = {data["side_data_type"]: data for data in frame["side_data_list"]}
    display = said["Mastering display metadata"]
    values = {key: float(Fraction(value)) for key, value in display.items() if "/" in value}
    expected = {
        "red_x": 0.68,
        "red_y": 0.32,
        "green_x": 0.265,
        "green_y": 0.69,
        "blue_x": 0.15,
        "blue_y": 0.06,
        "white_point_x": 0.3127,
        "white_point_y": 0.329,
        "min_luminance": 0.005,
        "max_luminance": 4000,
    }
    assert values == pytest.approx(expected, abs=1e-4)
    light = said["Content light level metadata"]
    assert (light["max_content"], light["max_average"]) == (1234, 321)


def test_encoders_that_cannot_say_them_lose_mastering_data(hdr10: Path) -> None:
    source = FileSource(hdr10, hdr="keep")
    source.close()
    fmt = encoded_format(source.format, Encoding("libx264"))
    assert lost_in(source.format, fmt) == ["HDR10 mastering data"]
    assert hdr_options("libx264", fmt) == {}
    assert fmt.peak == source.format.peak


@pytest.mark.parametrize(("name", "kind"), [("media__hdr10-av1.mp4", "PQ"), ("media__sample_edit_list.mp4", "HLG")])
def test_real_files(shared: Path, name: str, kind: str) -> None:
    """Cloudy skies over a town: as bright as a photo, and the clouds not cut off."""
    source = FileSource(shared / "video" / "real" / name)
    assert source.format.pixel_format.depth == 10
    assert source.notes[0].startswith(f"HDR video ({kind}): mapped to SDR")
    for frame in islice(source.frames(), 2):
        luma = (frame.planes[0] / 4 - 16) / 219
        assert 0.4 < luma.mean() < 0.6
        assert (luma > 0.99).mean() < 0.01
    source.close()
