"""Colour conversion against the standards' numbers, an independent float64 computation, and FFmpeg."""

from __future__ import annotations

from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from dped_live.color import from_rgb, to_rgb
from dped_live.frame import PIXEL_FORMATS, ChromaLocation, Matrix, VideoFormat

LUMA: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}


def fmt(name: str, matrix: Matrix = "bt709", full: bool = False, size: tuple[int, int] = (4, 4)) -> VideoFormat:
    return VideoFormat(size[1], size[0], PIXEL_FORMATS[name], matrix, full)


def random_planes(f: VideoFormat, seed: int = 0) -> list[torch.Tensor]:
    random = np.random.default_rng(seed)
    pixel = f.pixel_format
    dtype = np.uint8 if pixel.depth == 8 else np.uint16
    shapes: list[tuple[int, ...]] = [(f.height, f.width)]
    if pixel.kind == "rgb":
        shapes = [(f.height, f.width, 3)]
    elif pixel.kind == "yuv":
        shapes += [(-(-f.height >> pixel.chroma_shift_y), -(-f.width >> pixel.chroma_shift_x))] * 2
    return [torch.from_numpy(random.integers(0, 1 << pixel.depth, shape).astype(dtype)) for shape in shapes]


@pytest.mark.parametrize(
    ("matrix", "codes", "rgb"),
    [
        # Nominal colour bars: BT.709-6 and BT.601-7 limited range, 8 bit.
        ("bt709", (235, 128, 128), (1, 1, 1)),
        ("bt709", (16, 128, 128), (0, 0, 0)),
        ("bt709", (63, 102, 240), (1, 0, 0)),
        ("bt709", (173, 42, 26), (0, 1, 0)),
        ("bt709", (32, 240, 118), (0, 0, 1)),
        ("bt601", (81, 90, 240), (1, 0, 0)),
        ("bt601", (145, 54, 34), (0, 1, 0)),
        ("bt601", (41, 240, 110), (0, 0, 1)),
    ],
)
def test_colour_bars(matrix: Matrix, codes: tuple[int, int, int], rgb: tuple[int, int, int]) -> None:
    f = fmt("yuv444p", matrix, size=(1, 1))
    planes = [torch.tensor([[code]], dtype=torch.uint8) for code in codes]
    # The bars' codes are rounded, so their colours are off by up to 1.5 levels.
    torch.testing.assert_close(to_rgb(planes, f).flatten(), torch.tensor(rgb).float(), rtol=0, atol=1.5 / 255)
    back = from_rgb(torch.tensor(rgb).float().view(1, 3, 1, 1), f)
    assert [int(plane) for plane in back] == list(codes)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["yuv444p", "yuv444p10le", "yuv444p12le", "yuv444p16le"])
@pytest.mark.parametrize("matrix", LUMA)
def test_every_matrix_range_and_depth_against_float64(matrix: Matrix, name: str, full: bool) -> None:
    f = fmt(name, matrix, full, (16, 16))
    depth = f.pixel_format.depth
    planes = random_planes(f)
    y, cb, cr = (plane.numpy().astype(np.float64) for plane in planes)
    scale = 2.0 ** (depth - 8)
    if full:
        y, cb, cr = (
            y / (2**depth - 1),
            (cb - 2 ** (depth - 1)) / (2**depth - 1),
            (cr - 2 ** (depth - 1)) / (2**depth - 1),
        )
    else:
        y, cb, cr = (y / scale - 16) / 219, (cb / scale - 128) / 224, (cr / scale - 128) / 224
    kr, kb = LUMA[matrix]
    # The inverse of [Y; Cb; Cr] = M [R; G; B], M as the standards define it.
    m = np.array([[kr, 1 - kr - kb, kb], [-kr, kr + kb - 1, 1 - kb], [1 - kr, kr + kb - 1, -kb]])
    m[1] /= 2 * (1 - kb)
    m[2] /= 2 * (1 - kr)
    expected = np.einsum("ij,jhw->ihw", np.linalg.inv(m), np.stack([y, cb, cr])).clip(0, 1)
    assert np.abs(to_rgb(planes, f)[0].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("depth", [8, 10, 12])
def test_rgb_of_the_depth_survives_the_way_to_444_and_back(depth: int, matrix: Matrix, full: bool) -> None:
    """To a deeper 4:4:4 and back nothing is lost: offsets, scales and rounding agree both ways."""
    deeper = {8: "yuv444p10le", 10: "yuv444p12le", 12: "yuv444p16le"}[depth]
    random = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 1 << depth, (1, 3, 16, 16), generator=random)
    rgb = levels / ((1 << depth) - 1)
    f = fmt(deeper, matrix, full, (16, 16))
    back = to_rgb(from_rgb(rgb, f), f) * ((1 << depth) - 1)
    assert torch.equal(back.round().long(), levels)


@pytest.mark.parametrize("location", ["left", "center", "topleft"])
def test_chroma_lies_where_its_location_says(location: ChromaLocation) -> None:
    """A chroma ramp that is linear in the picture is sampled and restored without a shift."""
    height, width = 16, 24
    f = replace(fmt("yuv420p16le", full=True, size=(height, width)), chroma_location=location)
    x, y = torch.arange(width) * 1.0, torch.arange(height) * 1.0
    ramp = 0.3 + 0.01 * x[None] + 0.005 * y[:, None]
    # Grey luma with a red-green ramp: r - y is linear, and so is Cr.
    kr, kb = LUMA["bt709"]
    red = ramp
    green = (0.5 - kr * red - kb * 0.5) / (1 - kr - kb)
    rgb = torch.stack([red, green, torch.full_like(red, 0.5)])[None]
    planes = from_rgb(rgb, f)
    cr = (planes[2].float() - 32768) / 65535 * 2 * (1 - kr) + 0.5  # r, since y is 0.5
    at_x = 2 * torch.arange(width // 2) + (0.5 if location == "center" else 0)
    at_y = 2 * torch.arange(height // 2) + (0 if location == "topleft" else 0.5)
    expected = 0.3 + 0.01 * at_x[None] + 0.005 * at_y[:, None]
    inner = (slice(1, -1), slice(1, -1))
    torch.testing.assert_close(cr[inner], expected[inner], rtol=0, atol=1e-4)
    inner = (slice(2, -2), slice(2, -2))
    torch.testing.assert_close(to_rgb(planes, f)[0, 0][inner], red[inner], rtol=0, atol=1e-4)


@pytest.mark.parametrize("location", ["left", "center"])
def test_chroma_of_every_fourth_column_lies_where_its_location_says(location: ChromaLocation) -> None:
    """4:1:1: a ramp is one, at the places of the samples."""
    f = replace(fmt("yuv411p", full=True, size=(1, 32)), chroma_location=location)
    cr = np.arange(100, 156, 7, dtype=np.uint8)[None]
    planes = [torch.full((1, 32), 128, dtype=torch.uint8), torch.full((1, 8), 128, dtype=torch.uint8), torch.tensor(cr)]
    at = 4 * np.arange(8) + (1.5 if location == "center" else 0)
    red = 128 / 255 + 2 * (1 - 0.2126) * (np.interp(np.arange(32), at, cr[0]) - 128) / 255
    assert np.abs(to_rgb(planes, f)[0, 0, 0].numpy() - red)[3:-4].max() < 1e-5


def test_pq_looks_like_sdr_and_comes_back() -> None:
    """Levels by the formula of SMPTE ST 2084 in float64, of lights in cd/m2."""
    f = replace(fmt("gbrp12le", "rgb", True, (1, 7)), transfer=16)
    lights = np.array([0, 0.1, 5, 26, 203, 600, 1000])
    power = (lights / 10_000) ** 0.1593017578125
    signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    codes = np.rint(signal * 4095).astype(np.uint16)[None, :, None].repeat(3, 2)
    tones = to_rgb([torch.tensor(codes)], f)
    # White at half of linear light by the curve (and a little more, for it ends at the peak), hence 0.74 of the signal.
    white = (0.5 * (1 + (203 / 1000) ** 2)) ** (1 / 2.2)
    assert tones[0, 0, 0, 4] == pytest.approx(white, abs=1e-3)
    assert tones[0, 0, 0, 0] == 0
    assert tones[0, 0, 0, 6] == pytest.approx(1, abs=1e-3)
    assert 0.3 < tones[0, 0, 0, 3] < 0.45
    ramp = np.arange(3079, dtype=np.uint16)[None, :, None].repeat(3, 2)  # 3079 of 4095 is 1000 cd/m2
    f = replace(f, width=3079)
    assert np.array_equal(from_rgb(to_rgb([torch.tensor(ramp)], f), f)[0].numpy(), ramp)
    # Of a video that says that it goes up to 10,000 nothing is cut off.
    f = replace(f, width=4096, peak=10_000.0)
    ramp = np.arange(4096, dtype=np.uint16)[None, :, None].repeat(3, 2)
    assert np.array_equal(from_rgb(to_rgb([torch.tensor(ramp)], f), f)[0].numpy(), ramp)


def test_hlg_is_left_as_it_is() -> None:
    f = fmt("yuv444p10le", "bt2020", size=(4, 4))
    planes = random_planes(f)
    assert torch.equal(to_rgb(planes, f), to_rgb(planes, replace(f, transfer=18)))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (7, 4), (8, 9)])
@pytest.mark.parametrize(
    "name",
    ["yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "yuv420p10le", "gray", "rgb24", "rgb48le"],
)
def test_shapes_and_types_of_all_sizes(name: str, size: tuple[int, int]) -> None:
    f = fmt(name, "rgb" if name.startswith(("rgb", "gray")) else "bt709", size=size)
    planes = random_planes(f)
    rgb = to_rgb(planes, f)
    assert rgb.shape == (1, 3, *size)
    assert rgb.dtype == torch.float32
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    back = from_rgb(rgb, f)
    assert [(p.shape, p.dtype) for p in back] == [(p.shape, p.dtype) for p in planes]


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "yuv440p", "yuv411p", "yuv410p"])
def test_flat_colours_survive_subsampling(name: str) -> None:
    f = fmt(name, "bt601", size=(6, 6))
    planes = [torch.full_like(plane, code) for plane, code in zip(random_planes(f), (120, 100, 150), strict=True)]
    for plane, before in zip(from_rgb(to_rgb(planes, f), f), planes, strict=True):
        assert torch.equal(plane, before)


def test_8_bit_rgb_is_read_as_the_original_reads_it() -> None:
    """test_model.py: np.float16(image) / 255."""
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    expected = (np.float16(levels) / 255).astype(np.float32)
    rgb = to_rgb([torch.from_numpy(levels)], fmt("rgb24", "rgb", True, (16, 16)))
    assert np.array_equal(rgb[0].permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(from_rgb(rgb, fmt("rgb24", "rgb", True, (16, 16)))[0].numpy(), levels)


def test_16_bit_rgb_keeps_every_level() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (32, 32, 3)).astype(np.uint16)
    f = fmt("rgb48le", "rgb", True, (32, 32))
    assert np.array_equal(from_rgb(to_rgb([torch.from_numpy(levels)], f), f)[0].numpy(), levels)


def test_results_are_clipped_and_rounded_never_stretched() -> None:
    values = torch.tensor([-0.08, 0.0, 0.4 / 255, 0.6 / 255, 100.5001 / 255, 254.4 / 255, 1.0, 1.08])
    rgb = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    f = fmt("rgb24", "rgb", True, (1, 8))
    assert from_rgb(rgb, f)[0][0, :, 0].tolist() == [0, 0, 0, 1, 101, 254, 255, 255]


def test_codes_outside_the_nominal_range_are_clipped_as_in_every_player() -> None:
    f = fmt("yuv444p", size=(1, 2))
    planes = [torch.tensor([[0, 255]], dtype=torch.uint8), *[torch.full((1, 2), 128, dtype=torch.uint8)] * 2]
    assert to_rgb(planes, f)[0, 0].tolist() == [[0.0, 1.0]]


def test_grey_is_grey() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = to_rgb([torch.from_numpy(levels)], fmt("gray", "rgb", True, (16, 16)))
    for channel in rgb[0]:
        assert np.array_equal((channel.numpy() * 255).round().astype(np.uint8), levels)


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize(("matrix", "code"), [("bt601", 5), ("bt709", 1), ("bt2020", 9)])
@pytest.mark.parametrize("full", [False, True])
def test_agrees_with_ffmpeg(name: str, matrix: Matrix, code: int, full: bool) -> None:
    """swscale with accurate flags, on a smooth picture: its own rounding is the difference.

    Told nothing else, swscale takes chroma to lie in the middle.
    """
    height, width = 48, 64
    y, x = np.mgrid[:height, :width].astype(np.float64)
    smooth = np.stack([np.sin(x / 9 + y / 7), np.cos(x / 11), np.sin(y / 8 - x / 13)], axis=2) * 0.35 + 0.5
    f = replace(fmt(name, matrix, full, (height, width)), chroma_location="center")
    planes = from_rgb(torch.from_numpy(smooth).float().permute(2, 0, 1)[None], f)
    picture = av.VideoFrame(width, height, name)
    for plane, values in zip(picture.planes, planes, strict=True):
        array = values.numpy()
        rows = np.frombuffer(memoryview(plane), array.dtype).reshape(-1, plane.line_size // array.itemsize)
        rows[: array.shape[0], : array.shape[1]] = array
    picture.colorspace, picture.color_range = code, 2 if full else 1
    judged = picture.reformat(
        format="rgb24", src_colorspace=code, dst_colorspace=code, interpolation=2 | 0x2000 | 0x4000 | 0x40000
    ).to_ndarray()
    ours = from_rgb(to_rgb(planes, f), fmt("rgb24", "rgb", True, (height, width)))[0].numpy()
    difference = np.abs(ours.astype(int) - judged.astype(int))[2:-2, 2:-2]
    assert difference.mean() < 0.6
    assert difference.max() <= 3
