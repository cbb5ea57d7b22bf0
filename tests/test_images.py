"""Photos through files: what comes in is what a viewer would show, and what goes out holds it and its metadata."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from dped_live.errors import InputError, OutputError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.photo import Photo
from dped_live.sinks.images import write_photo
from dped_live.sources.images import is_photo, read_photo

RANDOM = np.random.default_rng(1)
RGB = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)
ALPHA = RANDOM.integers(0, 256, (20, 30), dtype=np.uint8)
RGB16 = RANDOM.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
ALPHA16 = RANDOM.integers(1, 65536, (20, 30), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKER_NOTE = b"Maker\0\xff\x01" * 9
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="%d"/></x:xmpmeta>'


def photo_of(rgb: np.ndarray, alpha: np.ndarray | None = None, **kept: Any) -> Photo:
    pixel_format = PIXEL_FORMATS["rgb24" if rgb.dtype == np.uint8 else "rgb48le"]
    return Photo(Frame((rgb,), VideoFormat(rgb.shape[1], rgb.shape[0], pixel_format), alpha=alpha), **kept)


def exif_block(orientation: int = 1) -> bytes:
    """Camera, place, dates, a MakerNote, text that is not ASCII, an unknown value, and a thumbnail."""
    exif = Image.Exif()
    exif[Base.Make] = "Camera"
    exif[Base.Artist] = "Zoë".encode()
    exif[Base.Orientation] = orientation
    exif[IFD.Exif] = {
        Base.DateTimeOriginal: "2020:01:02 03:04:05",
        Base.MakerNote: MAKER_NOTE,
        Base.LensSpecification: (IFDRational(28, 10), IFDRational(0, 0)),
        IFD.Interop: {1: "R98"},
    }
    exif[IFD.GPSInfo] = {1: "N", 2: (IFDRational(48), IFDRational(8), IFDRational(15, 10))}
    block = bytearray(exif.tobytes().removeprefix(b"Exif\0\0"))
    (entries,) = struct.unpack_from(">H", block, 8)
    thumbnail_directory = struct.pack(">HHHIII", 1, Base.ImageDescription, 2, 4, 0x41424300, 0)
    struct.pack_into(">I", block, 10 + 12 * entries, len(block))
    return bytes(block) + thumbnail_directory


def exif_values(block: bytes | None) -> dict[Any, Any]:
    """All of it but the orientation. Each directory is a value; unknown numbers compare by their name."""
    assert block is not None
    exif = Image.Exif()
    exif.load(block)
    values: dict[Any, Any] = {tag: exif[tag] for tag in exif if tag not in (Base.Orientation, *IFD)}
    for tag in (IFD.Exif, IFD.GPSInfo, IFD.Interop):
        values[tag] = {k: repr(v) for k, v in exif.get_ifd(tag).items() if k != IFD.Interop}
    return values


def orientation_of(block: bytes) -> Any:
    exif = Image.Exif()
    exif.load(block)
    return exif.get(Base.Orientation)


def png16(channels: np.ndarray, color_type: int, transparent: bytes = b"") -> bytes:
    """PNG of the kinds that no library here writes: 16 bits of grey with alpha, or with one transparent value."""
    height, width = channels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)]
    chunks += [b"tRNS" + transparent] if transparent else []
    chunks += [b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def tiff(channels: np.ndarray, photometric: int, tags: dict[int, Any] | None = None) -> bytes:
    """TIFF without compression of the kinds that no library here writes."""
    height, width, samples = channels.shape
    directory = ImageFileDirectory_v2()
    directory.update({Base.ImageWidth: width, Base.ImageLength: height, Base.SamplesPerPixel: samples})
    directory.update({Base.BitsPerSample: (channels.itemsize * 8,) * samples, Base.Compression: 1})
    directory.update({Base.PhotometricInterpretation: photometric, Base.RowsPerStrip: height})
    directory.update({Base.StripOffsets: 0, Base.StripByteCounts: channels.nbytes} | (tags or {}))
    file = BytesIO()
    directory.save(file)
    return file.getvalue() + channels.tobytes()


def decoded_by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and bool((first == second).all())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def icc_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC version 2 profile to Lab (CMYK) or XYZ (GRAY)."""
    offset, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, offset + len(data), len(tag))
        data += tag
    d50 = struct.pack(">iii", 63190, 65536, 54061)
    pcs = b"Lab " if space == b"CMYK" else b"XYZ "
    fields = struct.pack(">I4sI4s4s4s12s4s", offset + len(data), b"", 0x02400000, b"prtr", space, pcs, b"", b"acsp")
    return fields.ljust(68, b"\0") + d50.ljust(60, b"\0") + table + data


def linear_grey_profile() -> bytes:
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    return icc_profile(b"GRAY", {b"wtpt": white, b"kTRC": b"curv" + bytes(8)})


def half_black_profile() -> bytes:
    """CMYK whose black ink alone is a grey of L* 50; all inks together are black."""
    corners = b""
    for inks in range(16):
        cyan, magenta, yellow, black = (inks >> shift & 1 for shift in (3, 2, 1, 0))
        lightness = 255 * (1 - (cyan + magenta + yellow) / 3) * (1 - black / 2)
        corners += bytes((round(lightness), 128, 128))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + bytes(range(256)) * 4 + corners + bytes(range(256)) * 3
    return icc_profile(b"CMYK", {b"A2B0": lut})


# Reading: each kind of pixel


def test_rgb_of_8_bits(tmp_path: Path) -> None:
    for name in ("a.png", "a.tiff", "a.bmp", "a.webp"):
        Image.fromarray(RGB).save(tmp_path / name, lossless=True)
        frame = read_photo(tmp_path / name).frame
        (plane,) = frame.planes
        assert (plane == RGB).all(), name
        assert plane.dtype == np.uint8
        assert plane.flags.c_contiguous
        assert plane.flags.writeable  # torch.from_numpy warns of arrays that are not
        assert frame.format == VideoFormat(30, 20, PIXEL_FORMATS["rgb24"])
        assert frame.alpha is None


def test_a_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg")
    assert (read_photo(tmp_path / "a.jpg").frame.planes[0] == decoded_by_pillow(tmp_path / "a.jpg")).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_other_modes_of_8_bits(tmp_path: Path, mode: str, extension: str) -> None:
    picture = Image.fromarray(np.dstack((RGB, ALPHA)) if mode.endswith("A") else RGB).convert(mode)
    picture.save(tmp_path / f"a.{extension}")
    frame = read_photo(tmp_path / f"a.{extension}").frame
    assert (frame.planes[0] == np.asarray(picture.convert("RGB"))).all()
    assert same(frame.alpha, ALPHA if mode.endswith("A") else None)


def test_transparent_values(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "p.png", transparency=3)
    grey = Image.fromarray(RGB[..., 0])
    grey.save(tmp_path / "l.png", transparency=int(RGB[0, 0, 0]))
    Image.fromarray(RGB).save(tmp_path / "rgb.png", transparency=tuple(map(int, RGB[0, 0])))
    for name, opaque in [
        ("p.png", np.asarray(palette) != 3),
        ("l.png", RGB[..., 0] != RGB[0, 0, 0]),
        ("rgb.png", np.not_equal(RGB, RGB[0, 0]).any(axis=2)),
    ]:
        assert same(read_photo(tmp_path / name).frame.alpha, 255 * opaque), name


def test_tiff_whose_colours_are_multiplied_by_alpha(tmp_path: Path) -> None:
    half = np.full((4, 4, 1), 128, np.uint8)
    for colour, photometric in ((np.full((4, 4, 1), 50, np.uint8), 1), (np.full((4, 4, 3), 50, np.uint8), 2)):
        (tmp_path / "a.tif").write_bytes(tiff(np.dstack((colour, half)), photometric, {Base.ExtraSamples: (1,)}))
        if photometric == 1 and not is_photo(tmp_path / "a.tif"):
            continue  # Pillow 11 does not know such grey
        frame = read_photo(tmp_path / "a.tif").frame
        assert np.abs(frame.planes[0].astype(int) - 100).max() <= 1
        assert same(frame.alpha, half[..., 0])

    premultiplied = np.rint(RGB16 * (ALPHA16 / 65535)[..., None]).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(np.dstack((premultiplied, ALPHA16)), 2, {Base.ExtraSamples: (1,)}))
    frame = read_photo(tmp_path / "a.tif").frame
    assert (np.abs(frame.planes[0].astype(int) - RGB16) <= 1 + 65535 / ALPHA16[..., None]).all()
    assert same(frame.alpha, ALPHA16)


def test_16_bits_are_kept(tmp_path: Path) -> None:
    grey = np.repeat(RGB16[..., :1], 3, axis=2)
    bgr = RGB16[..., ::-1]
    for extension in ("png", "tiff"):
        for name, pixels, rgb, alpha in [
            ("grey", RGB16[..., 0], grey, None),
            ("rgb", bgr, RGB16, None),
            ("rgba", np.dstack((bgr, ALPHA16)), RGB16, ALPHA16),
        ]:
            path = tmp_path / f"{name}.{extension}"
            assert cv2.imwrite(str(path), pixels)
            frame = read_photo(path).frame
            assert (frame.planes[0] == rgb).all(), path
            assert frame.planes[0].flags.c_contiguous
            assert frame.format == VideoFormat(30, 20, PIXEL_FORMATS["rgb48le"])
            assert same(frame.alpha, alpha)


def test_16_bits_with_transparency_of_other_kinds(tmp_path: Path) -> None:
    grey, first = RGB16[..., 0], RGB16[0, 0, 0]
    keyed = np.where(grey == first, 0, 65535)
    one_value = png16(RGB16[..., :1], 0, struct.pack(">H", first))
    one_colour = png16(RGB16, 2, RGB16[0, 0].astype(">u2").tobytes())
    keyed_colour = 65535 * np.not_equal(RGB16, RGB16[0, 0]).any(axis=2)
    for name, data, rgb, alpha in [
        ("grey and alpha", png16(np.dstack((grey, ALPHA16)), 4), np.dstack([grey] * 3), ALPHA16),
        ("a transparent grey", one_value, np.dstack([grey] * 3), keyed),
        ("a transparent colour", one_colour, RGB16, keyed_colour),
        ("unused fourth channel", tiff(np.dstack((RGB16, ALPHA16)), 2, {Base.ExtraSamples: (0,)}), RGB16, None),
        ("white is zero", tiff(RGB16[..., :1], 0), np.dstack([65535 - grey] * 3), None),
    ]:
        (tmp_path / "a").write_bytes(data)
        frame = read_photo(tmp_path / "a").frame
        assert (frame.planes[0] == rgb).all(), name
        assert same(frame.alpha, alpha), name


def test_kinds_that_are_refused(tmp_path: Path) -> None:
    for message, data in [
        ("one after the other; save it as", tiff(RGB16, 2, {Base.PlanarConfiguration: 2})),
        ("neither 8 nor 16 bits deep", tiff(RGB16[..., :1].astype(np.float32), 1, {Base.SampleFormat: 3})),
        ("is a preview", tiff(RGB, 2, {Base.NewSubfileType: 1})),
    ]:
        (tmp_path / "a.tif").write_bytes(data)
        with pytest.raises(InputError, match=message):
            read_photo(tmp_path / "a.tif")


# Reading: colour


def test_a_profile_of_rgb_is_kept_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "a.tiff"):
        Image.fromarray(RGB).save(tmp_path / name, icc_profile=SRGB)
        assert read_photo(tmp_path / name).icc_profile == SRGB, name
    large = SRGB + bytes(2**21)
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png", icc_profile=large)
    assert read_photo(tmp_path / "grey.png").icc_profile == large


def test_grey_with_a_profile_becomes_srgb(tmp_path: Path) -> None:
    grey = Image.new("L", (4, 4), 55)  # 0.2157 of the light of white, which sRGB writes as 128
    grey.save(tmp_path / "l.png", icc_profile=linear_grey_profile())
    Image.merge("LA", (grey, grey)).save(tmp_path / "la.png", icc_profile=linear_grey_profile())
    for name in ("l.png", "la.png"):
        photo = read_photo(tmp_path / name)
        assert np.abs(photo.frame.planes[0].astype(int) - 128).max() <= 1, name
        assert photo.icc_profile is None
        assert photo.notes == ()
    assert same(photo.frame.alpha, np.full((4, 4), 55))


def test_cmyk_becomes_srgb_through_its_profile(tmp_path: Path) -> None:
    black = Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    for name in ("a.jpg", "a.tiff"):
        black.save(tmp_path / name, icc_profile=half_black_profile())
        photo = read_photo(tmp_path / name)
        assert np.abs(photo.frame.planes[0].astype(int) - 119).max() <= 2  # L* 50
        assert (photo.icc_profile, photo.notes) == (None, ())


def test_cmyk_without_a_profile_says_so(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    photo = read_photo(tmp_path / "a.jpg")
    assert np.abs(photo.frame.planes[0].astype(int) - (0, 255, 255)).max() <= 2
    assert "approximate" in photo.notes[0]


def test_lab_becomes_srgb(tmp_path: Path) -> None:
    color = Image.new("RGB", (4, 4), (200, 120, 40))
    lab = ImageCms.profileToProfile(
        color, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "a.tiff")
    assert np.abs(read_photo(tmp_path / "a.tiff").frame.planes[0].astype(int) - (200, 120, 40)).max() <= 3


def test_profiles_that_do_not_fit_are_dropped_aloud(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "rgb.png", icc_profile=linear_grey_profile())
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png", icc_profile=linear_grey_profile()[:140])
    Image.fromarray(RGB[..., 0]).save(tmp_path / "empty.png", icc_profile=icc_profile(b"GRAY", {}))
    Image.fromarray(RGB16[..., 0]).save(tmp_path / "grey16.png", icc_profile=linear_grey_profile())
    for name in ("rgb.png", "grey.png", "empty.png", "grey16.png"):
        photo = read_photo(tmp_path / name)
        assert photo.icc_profile is None
        assert "ICC profile" in photo.notes[0], name


# Reading: orientation and metadata

# What each orientation means, in words of the EXIF standard: where row 0 and column 0 of the file are to be seen.
UPRIGHT = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[10, 11, 12], [13, 14, 15], [16, 17, 18]]], np.uint8) * 14
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.transpose(1, 0, 2),  # left, top
    6: UPRIGHT[:, ::-1].transpose(1, 0, 2),  # right, top
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: UPRIGHT[::-1].transpose(1, 0, 2),  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
def test_orientation(tmp_path: Path, orientation: int) -> None:
    stored = np.ascontiguousarray(STORED[orientation])
    rgba = np.dstack((stored, stored[..., 0]))
    block = exif_block(orientation)
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=block)
    Image.fromarray(rgba).save(tmp_path / "a.webp", exif=block, lossless=True, exact=True)
    Image.fromarray(rgba).save(tmp_path / "a.tiff", tiffinfo={Base.Orientation: orientation})
    Image.fromarray(rgba).save(tmp_path / "b.tiff", tiffinfo={Base.Orientation: orientation}, compression="tiff_lzw")
    (tmp_path / "c.tiff").write_bytes(tiff(rgba.astype(np.uint16) * 257, 2, {Base.Orientation: orientation}))
    for name in ("a.png", "a.webp", "a.tiff", "b.tiff", "c.tiff"):
        photo = read_photo(tmp_path / name)
        (plane,), alpha = photo.frame.planes, photo.frame.alpha
        expected = UPRIGHT.astype(plane.dtype) * (257 if plane.dtype == np.uint16 else 1)
        assert plane.shape == UPRIGHT.shape
        assert (plane == expected).all(), name
        assert plane.flags.c_contiguous
        assert same(alpha, expected[..., 0])
        assert (photo.frame.format.width, photo.frame.format.height) == (3, 2)
        assert photo.exif is None or orientation_of(photo.exif) in (None, 1)


def test_orientation_of_a_jpeg(tmp_path: Path) -> None:
    stored = np.zeros((64, 32, 3), np.uint8)
    stored[:16] = 255  # row 0 is to be seen at the right
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif_block(6), xmp=XMP % 6)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.frame.planes[0].shape == (32, 64, 3)
    assert photo.frame.planes[0][:, 48:].min() > 200
    assert photo.frame.planes[0][:, :40].max() < 50
    assert photo.exif is not None
    assert orientation_of(photo.exif) == 1
    assert photo.xmp == XMP % 1


def test_orientation_that_only_xmp_tells(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", (XMP % 3).decode())
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", pnginfo=info)
    photo = read_photo(tmp_path / "a.png")
    assert (photo.frame.planes[0] == UPRIGHT[::-1, ::-1]).all()
    assert photo.xmp == XMP % 1


def test_exif_is_kept_but_for_orientation_and_thumbnail(tmp_path: Path) -> None:
    block = exif_block(6)
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=block)
    Image.fromarray(RGB).save(tmp_path / "a.webp", exif=block)
    for name in ("a.jpg", "a.png", "a.webp"):
        photo = read_photo(tmp_path / name)
        assert photo.exif is not None
        assert exif_values(photo.exif) == exif_values(block)
        assert len(photo.exif) == len(block)
        assert photo.exif.index(MAKER_NOTE) == block.index(MAKER_NOTE)
        exif = Image.Exif()
        exif.load(photo.exif)
        assert exif.get_ifd(IFD.IFD1) == {}
        assert photo.notes == ()


def test_damaged_exif_is_dropped_aloud(tmp_path: Path) -> None:
    for block in (b"MM\0*\0\0\xff\xff", b"nonsense", exif_block()[:30]):
        Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
        photo = read_photo(tmp_path / "a.jpg")
        assert photo.exif is None
        assert "EXIF is damaged" in photo.notes[0]


def test_dpi_is_kept(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.tiff", "a.bmp"):
        Image.fromarray(RGB).save(tmp_path / name, dpi=(300, 150))
        write_photo(read_photo(tmp_path / name), tmp_path / name, overwrite=True)
        with Image.open(tmp_path / name) as image:
            assert image.info["dpi"] == pytest.approx((300, 150), abs=0.1), name


def test_dpi_without_sense_is_dropped(tmp_path: Path) -> None:
    for dpi in ((1e6, 1e6), (0, 300)):
        Image.fromarray(RGB).save(tmp_path / "a.png", dpi=dpi)
        assert read_photo(tmp_path / "a.png").dpi is None


def test_further_pictures_are_counted(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (10, 200, 100)]
    for name in ("a.tiff", "a.mpo"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
        assert is_photo(tmp_path / name)
        photo = read_photo(tmp_path / name)
        assert np.abs(photo.frame.planes[0].astype(int) - 10).max() <= 1
        assert photo.notes == ("only the first of its 3 pictures is enhanced",)


# Reading: sizes, damage, and what is no photo


def test_one_pixel(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.bmp", "a.webp", "a.jpg"):
        write_photo(photo_of(np.full((1, 1, 3), 77, np.uint8)), tmp_path / name, quality=100)
        assert read_photo(tmp_path / name).frame.planes[0].tolist() == [[[77, 77, 77]]], name
    for name in ("b.png", "b.tif"):
        write_photo(photo_of(np.full((1, 1, 3), 7777, np.uint16)), tmp_path / name)
        assert read_photo(tmp_path / name).frame.planes[0].tolist() == [[[7777, 7777, 7777]]], name


def test_large_photos_open_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000), 1).save(tmp_path / "200.png")  # Pillow itself would refuse it
    assert is_photo(tmp_path / "200.png")
    Image.new("1", (10_000, 9_000), 1).save(tmp_path / "90.png")  # and warn of this one
    assert read_photo(tmp_path / "90.png").frame.planes[0].shape == (9_000, 10_000, 3)


def test_over_a_gigapixel_is_refused(tmp_path: Path) -> None:
    Image.new("1", (8, 8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    struct.pack_into(">II", data, 16, 40_000, 30_000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="40000x30000 is over 1,073,741,824 pixels"):
        read_photo(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.bmp", "16.png", "16.tiff"])
def test_truncated_files_are_errors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rgb = RANDOM.integers(0, 65536 if "16" in name else 256, (200, 200, 3), dtype=np.uint16)
    if "16" in name:
        cv2.imwrite(str(path), rgb)
    else:
        Image.fromarray(rgb.astype(np.uint8)).save(path)
    data = path.read_bytes()
    for kept in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(InputError) as caught:
            read_photo(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "damaged" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("Not a picture.\n")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "noise.jpg").write_bytes(RANDOM.bytes(5000))
    for name in ("a.jpg", "empty.png", "noise.jpg"):
        assert not is_photo(tmp_path / name)
        with pytest.raises(InputError, match="no JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF"):
            read_photo(tmp_path / name)
    for function in (is_photo, read_photo):
        with pytest.raises(InputError, match=r"missing\.jpg: No such file"):
            function(tmp_path / "missing.jpg")
        with pytest.raises(InputError, match="Is a directory"):
            function(tmp_path)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    for extension in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM"):
        with (tmp_path / "x.mp4").open("wb") as file:
            Image.fromarray(RGB).save(file, extension)
        assert is_photo(tmp_path / "x.mp4")
        assert read_photo(tmp_path / "x.mp4").frame.planes[0].shape == RGB.shape


def test_animations_are_no_photos(tmp_path: Path) -> None:
    pictures = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    for name in ("a.gif", "a.webp", "a.png", "a.avif"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
        assert not is_photo(tmp_path / name), name
        with pytest.raises(InputError):
            read_photo(tmp_path / name)
    pictures[0].save(tmp_path / "still.gif")
    assert is_photo(tmp_path / "still.gif")


def test_depth_of_what_pillow_reads_with_8_bits(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 16, (40, 60, 3), dtype=np.uint16)
    bgr = np.ascontiguousarray(deep[..., ::-1])
    cv2.imwrite(str(tmp_path / "a.ppm"), bgr)
    cv2.imwrite(str(tmp_path / "a.jp2"), bgr, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    cv2.imwrite(str(tmp_path / "a.pgm"), deep[..., 0])
    for name, expected in (("a.ppm", deep), ("a.jp2", deep), ("a.pgm", deep[..., :1])):
        photo = read_photo(tmp_path / name)
        assert photo.notes == ()
        assert np.array_equal(photo.frame.planes[0], np.broadcast_to(expected, deep.shape)), name
    (tmp_path / "ten.ppm").write_bytes(b"P6 60 40 1023\n" + (deep >> 6).astype(">u2").tobytes())
    cv2.imwrite(str(tmp_path / "ten.avif"), bgr >> 6, [cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 100])
    for name in ("ten.ppm", "ten.avif"):
        photo = read_photo(tmp_path / name)
        assert photo.notes == ("of the 10 bits of its channels 8 are kept",)
        assert photo.frame.format.pixel_format.name == "rgb24"


# Writing


def test_lossless_formats_keep_every_value(tmp_path: Path) -> None:
    cases: list[tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]] = [
        (RGB, None, ("png", "tif", "TIFF", "bmp", "webp")),
        (RGB, ALPHA, ("png", "tif", "webp")),
        (RGB16, None, ("png", "tif")),
        (RGB16, ALPHA16, ("png", "tif")),
    ]
    for rgb, alpha, names in cases:
        for extension in names:
            path = tmp_path / f"a.{extension}"
            assert write_photo(photo_of(rgb, alpha), path, overwrite=True, quality=100) == ()
            frame = read_photo(path).frame
            assert (frame.planes[0] == rgb).all(), path
            assert frame.planes[0].dtype == rgb.dtype
            assert same(frame.alpha, alpha)


def test_tiff_can_be_read_by_others(tmp_path: Path) -> None:
    tall = RANDOM.integers(0, 65536, (700, 500, 3), dtype=np.uint16)  # several strips
    write_photo(photo_of(tall, exif=exif_block()), tmp_path / "a.tif")  # big endian, as the EXIF is
    write_photo(photo_of(tall), tmp_path / "b.tif")
    for name in ("a.tif", "b.tif"):
        decoded = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
        assert decoded is not None
        assert (decoded[..., ::-1] == tall).all()


@pytest.mark.parametrize("rgb", [RGB, RGB16], ids=["8 bits", "16 bits"])
def test_metadata_is_written(tmp_path: Path, rgb: np.ndarray) -> None:
    block = exif_block()
    photo = photo_of(rgb, icc_profile=SRGB, exif=block, xmp=XMP % 1, dpi=(300.0, 300.0))
    for name in ("a.jpg", "a.jpeg", "a.png", "a.webp", "a.tif"):
        path = tmp_path / name
        assert write_photo(photo, path) == ()
        with Image.open(path) as image:
            image.load()
            assert image.info["icc_profile"] == SRGB
            assert image.getexif()[Base.Make] == "Camera"
        again = read_photo(path)
        assert again.icc_profile == SRGB
        assert again.xmp == XMP % 1
        values = exif_values(again.exif)
        if name == "a.tif":
            data = path.read_bytes()
            assert data[: len(block)].index(MAKER_NOTE) == block.index(MAKER_NOTE)
        assert values == exif_values(block), name
        assert again.notes == ()

    assert write_photo(photo, tmp_path / "a.bmp") == ("BMP has no place for its ICC profile, EXIF or XMP",)


def test_png_of_16_bits_has_the_chunks(tmp_path: Path) -> None:
    write_photo(photo_of(RGB16, icc_profile=SRGB, exif=exif_block(), dpi=(72, 72)), tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    place, names = 8, []
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        (check,) = struct.unpack_from(">I", data, place + 8 + length)
        assert check == zlib.crc32(data[place + 4 : place + 8 + length])
        names.append(data[place + 4 : place + 8])
        place += 12 + length
    assert names[:4] == [b"IHDR", b"iCCP", b"pHYs", b"eXIf"]
    assert data[24] == 16


def test_metadata_too_long_for_jpeg_is_dropped_aloud(tmp_path: Path) -> None:
    photo = photo_of(RGB, exif=exif_block() + bytes(70_000), xmp=XMP % 1 + b" " * 70_000, icc_profile=SRGB * 200)
    notes = write_photo(photo, tmp_path / "a.jpg")
    assert notes == ("its EXIF is too long for JPEG and is dropped", "its XMP is too long for JPEG and is dropped")
    assert read_photo(tmp_path / "a.jpg").icc_profile == SRGB * 200  # several segments


def test_jpeg_has_full_chroma_and_high_quality(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    write_photo(photo_of(stripes), tmp_path / "a.jpg")
    assert np.abs(read_photo(tmp_path / "a.jpg").frame.planes[0].astype(int) - stripes).max() < 12


def test_16_bits_round_to_the_nearest_of_8(tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_photo(photo_of(np.dstack([every] * 3), every), tmp_path / "a.webp", quality=100)
    frame = read_photo(tmp_path / "a.webp").frame
    nearest = np.rint(every / 257).astype(np.uint8)
    assert (frame.planes[0] == nearest[..., None]).all()
    assert same(frame.alpha, nearest)


def test_alpha_is_not_lost_silently(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.bmp"):
        with pytest.raises(OutputError, match=r"has no alpha.*name a \.png"):
            write_photo(photo_of(RGB, ALPHA), tmp_path / name)
        write_photo(photo_of(RGB, np.full_like(ALPHA, 255)), tmp_path / name)  # opaque: nothing is lost


def test_an_existing_file_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "a_dped.png"
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"a_dped\.png exists; add -y to replace it"):
        write_photo(photo_of(RGB), path)
    assert path.read_text() == "precious"
    write_photo(photo_of(RGB), path, overwrite=True)
    assert (read_photo(path).frame.planes[0] == RGB).all()
    assert names_in(tmp_path) == ["a_dped.png"]


def test_sizes_that_a_format_cannot_hold(tmp_path: Path) -> None:
    for name, side in (("a.jpg", 65_501), ("a.webp", 16_384), ("a.png", 1_000_001)):
        for shape in ((1, side, 3), (side, 1, 3)):
            with pytest.raises(OutputError, match=rf"{side}.* is over .* pixels; name a \.tif"):
                write_photo(photo_of(np.zeros(shape, np.uint8)), tmp_path / name)
        write_photo(photo_of(np.zeros((1, side - 1, 3), np.uint8)), tmp_path / name)
        assert read_photo(tmp_path / name).frame.format.width == side - 1


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name, message in [
        ("a.gif", r"a\.gif: not a picture format known here; name it \.jpg, \.jpeg, \.png"),
        ("a", "not a picture format known here"),
        ("folder.png", r"folder\.png is a folder"),
        ("missing/a.png", "there is no folder .*missing; make it first"),
        ("file/a.png", "there is no folder .*file; make it first"),
    ]:
        with pytest.raises(OutputError, match=message):
            write_photo(photo_of(RGB), tmp_path / name)
    assert names_in(tmp_path) == ["file", "folder.png"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        write_photo(photo_of(RGB), tmp_path / "a.png")


@pytest.mark.skipif(os.name != "posix", reason="needs a limit of the size of files")
def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    import resource

    (tmp_path / "a.png").write_text("precious")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"a\.png: File too large; nothing is written"):
            write_photo(photo_of(RGB), tmp_path / "a.png", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "precious"


def test_the_longest_names(tmp_path: Path) -> None:
    for name in ("a" * 251 + ".png", "ü" * 125 + ".jpg"):
        write_photo(photo_of(RGB), tmp_path / name)
    assert sorted(map(len, names_in(tmp_path))) == [129, 255]
    with pytest.raises(OutputError, match="File name too long"):
        write_photo(photo_of(RGB), tmp_path / ("a" * 252 + ".png"))


def test_an_enhanced_frame_keeps_the_rest(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif_block(6), icc_profile=SRGB)
    photo = read_photo(tmp_path / "a.jpg")
    brighter = photo.frame.planes[0] // 2 + 127
    write_photo(replace(photo, frame=replace(photo.frame, planes=(brighter,))), tmp_path / "b.png")
    again = read_photo(tmp_path / "b.png")
    assert (again.frame.planes[0] == brighter).all()
    assert again.icc_profile == SRGB
    assert exif_values(again.exif) == exif_values(exif_block())


# The developers' photos and videos


def test_real_photos(shared: Path) -> None:
    photos = sorted((shared / "photos/kodak").iterdir()) + sorted((shared / "photos/bsds").iterdir())[:20]
    for path in photos:
        assert is_photo(path), path
        photo = read_photo(path)
        assert photo.notes == (), path
        assert (photo.frame.planes[0] == decoded_by_pillow(path)).all(), path


def test_real_videos_are_no_photos(shared: Path) -> None:
    assert is_photo(shared / "video/odd/picture_named.mp4")
    assert not is_photo(shared / "video/odd/anim.gif")
    for path in sorted((shared / "video/real").iterdir()):
        assert not is_photo(path), path
