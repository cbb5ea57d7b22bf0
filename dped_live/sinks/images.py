"""Photos: a Frame and what was kept beside it, into one picture file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffTags
from PIL.ExifTags import Base

from dped_live.errors import OutputError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.partial import PartialFile
from dped_live.photo import PHOTO_TAGS, Photo


def write_photo(photo: Photo, path: Path, *, overwrite: bool = False, quality: int = 95) -> tuple[str, ...]:
    """Write a photo in the format that the name ends with; the file appears when it is complete, or not at all.

    PNG and TIFF keep 16 bits, JPEG, WebP and BMP round to 8. quality is that of JPEG (which keeps the chroma of every
    pixel) and of WebP (lossless at 100); the others are always lossless. ICC profile, EXIF, XMP and dpi are written
    as far as the format has a place for them. Returns what it has none for, each a phrase for the user.

    Raises OutputError if the file exists and overwrite is false, if the format cannot hold this picture, and if the
    file cannot be written.
    """
    container = _CONTAINERS.get(path.suffix.lower())
    if container is None:
        raise OutputError(f"{path}: not a picture format known here; name it {', '.join(_CONTAINERS)}")
    partial = PartialFile(path, overwrite)
    width, height, alpha = photo.frame.format.width, photo.frame.format.height, photo.frame.alpha
    if max(width, height) > container.max_side:
        limit = f"{container.name}'s {container.max_side} pixels"
        raise OutputError(f"{path}: {width}x{height} is over {limit}; name a .tif file")
    if not container.has_alpha and alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        raise OutputError(f"{path}: {container.name} has no alpha, and parts of the photo are transparent; name a .png")

    notes: list[str] = []
    data = container.encode(photo, quality, notes)
    try:
        partial.path.write_bytes(data)
    except OSError as error:
        partial.discard()
        raise OutputError(f"{path}: {error.strerror}; nothing is written") from error
    partial.publish()
    return tuple(notes)


def save_screenshot(picture: np.ndarray, folder: Path) -> Path:
    """Write a picture (H, W, 3), RGB, uint8, as dped-live_DATE_TIME.png, and return its path. Raises OutputError."""
    height, width, _ = picture.shape
    path = folder / f"dped-live_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}.png"
    frame = Frame((picture,), VideoFormat(width, height, PIXEL_FORMATS["rgb24"]))
    write_photo(Photo(frame), path)
    return path


def _jpeg(photo: Photo, quality: int, notes: list[str]) -> bytes:
    # One JPEG segment holds 65533 bytes, with the name of what it is.
    exif = b"Exif\0\0" + photo.exif if photo.exif else b""
    if len(exif) > 65533:
        notes.append("its EXIF is too long for JPEG and is dropped")
        exif = b""
    xmp = photo.xmp or b""
    if len(xmp) > 65533 - len(b"http://ns.adobe.com/xap/1.0/\0"):
        notes.append("its XMP is too long for JPEG and is dropped")
        xmp = b""
    file = BytesIO()
    Image.fromarray(_to_8_bits(photo.frame.planes[0])).save(
        file,
        "JPEG",
        quality=quality,
        subsampling="4:4:4",
        icc_profile=photo.icc_profile,
        exif=exif,
        xmp=xmp,
        dpi=photo.dpi or (0, 0),
    )
    return file.getvalue()


def _webp(photo: Photo, quality: int, _notes: list[str]) -> bytes:
    file = BytesIO()
    Image.fromarray(_to_8_bits(_channels(photo.frame))).save(
        file,
        "WEBP",
        quality=quality,
        lossless=quality == 100,
        exact=True,  # colours under full transparency, too
        icc_profile=photo.icc_profile,
        exif=photo.exif or b"",
        xmp=photo.xmp or b"",
    )
    return file.getvalue()


def _bmp(photo: Photo, _quality: int, notes: list[str]) -> bytes:
    if photo.icc_profile or photo.exif or photo.xmp:
        notes.append("BMP has no place for its ICC profile, EXIF or XMP")
    file = BytesIO()
    Image.fromarray(_to_8_bits(photo.frame.planes[0])).save(file, "BMP", dpi=photo.dpi or (0, 0))
    return file.getvalue()


def _png(photo: Photo, _quality: int, _notes: list[str]) -> bytes:
    # Pillow writes 8 bits only; OpenCV writes both, but not the resolution.
    channels = _channels(photo.frame)
    bgr = cv2.cvtColor(channels, cv2.COLOR_RGB2BGR if channels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()
    chunks = []
    if photo.icc_profile:
        chunks.append(b"iCCP" + b"ICC Profile\0\0" + zlib.compress(photo.icc_profile))
    if photo.dpi:
        chunks.append(b"pHYs" + struct.pack(">IIB", *(round(value / 0.0254) for value in photo.dpi), 1))
    if photo.exif:
        chunks.append(b"eXIf" + photo.exif)
    if photo.xmp:
        chunks.append(b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + photo.xmp)
    header = 8 + 25  # the signature and the IHDR chunk
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return png[:header] + b"".join(framed) + png[header:]


_TIFF_LETTERS = {
    TiffTags.BYTE: "B",
    TiffTags.UNDEFINED: "B",
    TiffTags.SHORT: "H",
    TiffTags.LONG: "I",
    TiffTags.RATIONAL: "I",  # two for each value
}


def _tiff(photo: Photo, _quality: int, _notes: list[str]) -> bytearray:
    # Pillow writes no 16-bit RGB, OpenCV no metadata. But EXIF is a TIFF file without pixels: they go behind it, and
    # then a directory that takes over its tags. Whatever points into the EXIF, as a MakerNote does, remains true.
    file = bytearray(photo.exif or b"II*\0\x08\0\0\0" + bytes(6))
    order = "<" if file.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", file, 4)
    (count,) = struct.unpack_from(order + "H", file, start)
    entries = {}
    for place in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(order + "H", file, place)
        if tag in PHOTO_TAGS:
            entries[tag] = bytes(file[place : place + 12])

    def append(data: bytes) -> int:
        file.extend(bytes(len(file) % 2))
        file.extend(data)
        return len(file) - len(data)

    def add(tag: int, kind: int, *values: int) -> None:
        data = struct.pack(f"{order}{len(values)}{_TIFF_LETTERS[kind]}", *values)
        count = len(values) // 2 if kind == TiffTags.RATIONAL else len(values)
        if len(data) > 4:
            data = struct.pack(order + "I", append(data))
        entries[tag] = struct.pack(order + "HHI4s", tag, kind, count, data)

    channels = _channels(photo.frame)
    height, width, samples = channels.shape
    rows = max(1, 2**20 // channels[0].nbytes)
    strips = [_strip(channels[top : top + rows], order) for top in range(0, height, rows)]
    add(Base.ImageWidth, TiffTags.LONG, width)
    add(Base.ImageLength, TiffTags.LONG, height)
    add(Base.BitsPerSample, TiffTags.SHORT, *[8 * channels.itemsize] * samples)
    add(Base.Compression, TiffTags.SHORT, 8)  # deflate
    add(Base.PhotometricInterpretation, TiffTags.SHORT, 2)  # RGB
    add(Base.StripOffsets, TiffTags.LONG, *map(append, strips))
    add(Base.SamplesPerPixel, TiffTags.SHORT, samples)
    add(Base.RowsPerStrip, TiffTags.LONG, rows)
    add(Base.StripByteCounts, TiffTags.LONG, *map(len, strips))
    add(Base.Predictor, TiffTags.SHORT, 2)  # differences along the row
    if samples == 4:
        add(Base.ExtraSamples, TiffTags.SHORT, 2)  # alpha by which the colours are not multiplied
    if photo.dpi:
        add(Base.XResolution, TiffTags.RATIONAL, round(photo.dpi[0] * 1000), 1000)
        add(Base.YResolution, TiffTags.RATIONAL, round(photo.dpi[1] * 1000), 1000)
        add(Base.ResolutionUnit, TiffTags.SHORT, 2)  # inch
    if photo.xmp:
        add(Base.XMLPacket, TiffTags.BYTE, *photo.xmp)
    if photo.icc_profile:
        add(Base.InterColorProfile, TiffTags.UNDEFINED, *photo.icc_profile)

    directory = struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    struct.pack_into(order + "I", file, 4, append(directory))
    return file


def _strip(rows: np.ndarray, order: str) -> bytes:
    differences = np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1]))
    return zlib.compress(differences.astype(differences.dtype.newbyteorder(order)).tobytes())


def _channels(frame: Frame) -> np.ndarray:
    """(H, W, 3), or (H, W, 4) with alpha."""
    return frame.planes[0] if frame.alpha is None else np.dstack((frame.planes[0], frame.alpha))


def _to_8_bits(channels: np.ndarray) -> np.ndarray:
    """The nearest of 256 levels: 65535 is 255 * 257."""
    if channels.dtype == np.uint8:
        return channels
    level, rest = np.divmod(channels, 257)
    return (level + (rest > 128)).astype(np.uint8)


class _Container(NamedTuple):
    name: str
    encode: Callable[[Photo, int, list[str]], bytes | bytearray]
    max_side: int
    has_alpha: bool


_JPEG = _Container("JPEG", _jpeg, 65500, False)  # libjpeg's limit; the format's is 65535
_TIFF = _Container("TIFF", _tiff, 2**31 - 1, True)

_CONTAINERS = {
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".png": _Container("PNG", _png, 1_000_000, True),  # libpng's limit
    ".webp": _Container("WebP", _webp, 16383, True),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _Container("BMP", _bmp, 2**31 - 1, False),
}

PHOTO_SUFFIXES = frozenset(_CONTAINERS)
"""The suffixes, in lower case, of the formats that photos can be written in."""
