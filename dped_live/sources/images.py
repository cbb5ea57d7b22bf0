"""Photos: the first picture of a file as a Frame, with everything else that belongs into the enhanced file."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError
from PIL.ExifTags import IFD, Base
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dped_live.errors import InputError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.photo import PHOTO_TAGS, Photo

MAX_PIXELS = 2**30
"""Larger pictures are refused: a small file that claims such a size would take all memory."""

# Pillow's own bound would warn of a photo of 90 megapixels and refuse one of 180: read_photo applies MAX_PIXELS.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = 2**24  # 2**20 would make a PNG with a large ICC profile unreadable

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")

# What Pillow raises for damaged files, found by damaging files at random.
_DAMAGE = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, struct.error)

_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))([1-8])')


def is_photo(path: Path) -> bool:
    """Whether a file holds a picture of _FORMATS that is no animation, whatever its name.

    Decodes no pixels: read_photo may still find them damaged. Raises InputError if the file cannot be opened, or if it
    begins as a picture does but its header is damaged.
    """
    try:
        with _opened(path) as image:
            return not _is_animation(image)
    except _UnknownFormatError:
        return False


def photo_size(path: Path) -> tuple[int, int]:
    """Width and height of a photo once turned upright, from its header. Raises InputError if it is none."""
    with _opened(path) as image:
        _, orientation = _exif(image, [])
        if orientation is None:
            orientation = _xmp_orientation(_xmp(image))
        width, height = image.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def read_photo(path: Path) -> Photo:
    """Decode a photo to RGB of its own depth, 8 or 16 bits, and turn it upright. The arrays belong to the caller.

    RGB values stay as they are: their ICC profile is kept, not applied. CMYK, CIELAB, and grey with a profile of its
    own become sRGB. Raises InputError if the file is missing, damaged, an animation, too large, or holds pixels of
    another kind.
    """
    notes: list[str] = []
    with _opened(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{path}: {image.width}x{image.height} is over {MAX_PIXELS:,} pixels; scale it down first")
        if _is_animation(image):
            raise InputError(f"{path}: an animation, not a photo")
        if isinstance(image, TiffImageFile):
            _check_tiff(path, image)
        if (pictures := getattr(image, "n_frames", 1)) > 1:
            notes.append(f"only the first of its {pictures} pictures is enhanced")

        is_16_bit = _is_16_bit(image)
        if not is_16_bit and (bits := _bits(image)) > 8:
            notes.append(f"of the {bits} bits of its channels 8 are kept")
        exif, orientation = _exif(image, notes)
        # Not before, for it closes a TIFF. For 16 bits as well: of a damaged file, OpenCV prints and tells no reason.
        image.load()

        xmp = _xmp(image)
        if orientation is None:
            orientation = _xmp_orientation(xmp)
        decode = _decode_16_bit if is_16_bit else _decode_8_bit
        pixels, alpha, icc_profile = decode(path, image, notes)
        dpi = _dpi(image)

    pixels = _turn(pixels, orientation)
    height, width, _ = pixels.shape
    return Photo(
        Frame(
            planes=(pixels,),
            format=VideoFormat(width, height, PIXEL_FORMATS["rgb48le" if is_16_bit else "rgb24"]),
            alpha=None if alpha is None else _turn(alpha, orientation),
        ),
        icc_profile,
        exif,
        xmp and _XMP_ORIENTATION.sub(rb"\g<1>1", xmp),
        dpi,
        tuple(notes),
    )


class _UnknownFormatError(InputError):
    """The file is none of _FORMATS."""


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    """The picture with its header read; whatever Pillow raises while it is open becomes an InputError."""
    try:
        # Pillow warns of odd metadata, about which the user could do nothing. Given a path, it maps some files into
        # memory, and then (13.0) returns mixed-up rows for a TIFF that is to be turned.
        quiet = warnings.catch_warnings(action="ignore")
        with quiet, path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise _UnknownFormatError(
            f"{path}: no JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PNM picture, or a damaged one"
        ) from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: {error.strerror}") from error
        raise InputError(f"{path}: damaged ({error}); get an undamaged copy") from error


def _is_animation(image: ImageFile) -> bool:
    """The further pictures of a TIFF are pages; those of an MPO are other views, depth or gain maps."""
    return image.format in ("PNG", "WEBP", "GIF", "AVIF") and bool(getattr(image, "is_animated", False))


def _check_tiff(path: Path, image: TiffImageFile) -> None:
    tags = image.tag_v2
    if tags.get(Base.NewSubfileType, 0) & 1:
        raise InputError(f"{path}: its first picture is a preview (a camera's raw file?); export it as full TIFF")
    # Neither Pillow nor OpenCV knows this layout, and both return noise.
    if 16 in tags.get(Base.BitsPerSample, ()) and tags.get(Base.PlanarConfiguration) == 2:
        raise InputError(f"{path}: 16-bit channels one after the other; save it as interleaved TIFF")


def _is_16_bit(image: ImageFile) -> bool:
    """Whether the channels have 16 bits, of which Pillow keeps 8 in all but grey pictures."""
    if image.format in ("JPEG2000", "PPM"):
        return _bits(image) == 16
    if image.mode not in ("I;16", "I;16B", "RGB", "RGBA"):
        return False
    if isinstance(image, TiffImageFile):
        return 16 in image.tag_v2.get(Base.BitsPerSample, ())
    return image.format == "PNG" and ";16" in str(image.tile[0].args)  # the name of the layout in the file


def _bits(image: ImageFile) -> int:
    """The bits of a channel in a file of the formats of which Pillow gives 8 without saying so; of others 8."""
    if image.format == "PPM":
        layout = image.tile[0].args  # "RGB", or "RGB" and the highest value, or for grey of this value "I;16B"
        return 16 if layout == "I;16B" else (int(layout[1]).bit_length() if isinstance(layout, tuple) else 8)
    if image.format not in ("JPEG2000", "AVIF") or image.fp is None:
        return 8
    image.fp.seek(0)
    head = image.fp.read(1 << 16)
    if image.format == "AVIF":
        place = head.find(b"pixi")  # a box: version and flags, the number of channels, the bits of each
        return 8 if place < 0 else head[place + 9]
    place = head.find(b"\xff\x4f\xff\x51")  # where the code stream begins: ISO 15444-1, A.5.1
    return 8 if place < 0 else (head[place + 42] & 0x7F) + 1


_Decoded = tuple[np.ndarray, np.ndarray | None, bytes | None]
"""RGB (H, W, 3), alpha (H, W), and the profile of these values."""


def _decode_8_bit(path: Path, image: ImageFile, notes: list[str]) -> _Decoded:
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{path}: its pixels are neither 8 nor 16 bits deep; save it as 16-bit TIFF or PNG")
    # Grey multiplied by alpha: Pillow converts it to nothing else.
    picture = image.convert("LA") if image.mode == "La" else image
    rgb, icc_profile = _to_rgb(picture, notes)
    alpha = np.array(picture.convert("RGBA").getchannel("A")) if picture.has_transparency_data else None
    return np.array(rgb), alpha, icc_profile


def _to_rgb(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """The colours of a decoded picture of any 8-bit mode as RGB, and the profile of these values."""
    profile: bytes | None = image.info.get("icc_profile")
    space = profile[16:20] if profile else b""
    if image.mode == "LAB":
        return _to_srgb(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))), None
    if profile and (image.mode, space) in (("CMYK", b"CMYK"), ("1", b"GRAY"), ("L", b"GRAY"), ("LA", b"GRAY")):
        try:
            cms_profile = ImageCms.ImageCmsProfile(BytesIO(profile))
            return _to_srgb(image if image.mode == "CMYK" else image.convert("L"), cms_profile), None
        except (OSError, ValueError):
            notes.append("its ICC profile is damaged and is dropped")
            profile = None
    elif profile and space != b"RGB ":
        notes.append("its ICC profile is for other pixels and is dropped")
        profile = None
    if image.mode == "CMYK" and not profile:
        notes.append("its colours are approximate, for it is CMYK without an ICC profile")
    return image.convert("RGB"), profile


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    return ImageCms.ImageCmsTransform(profile, srgb, image.mode, "RGB", intent, flags=flags).apply(image)


def _decode_16_bit(path: Path, image: ImageFile, notes: list[str]) -> _Decoded:
    profile: bytes | None = image.info.get("icc_profile")
    if profile and profile[16:20] != b"RGB ":
        notes.append("its ICC profile is dropped, for 16-bit grey is taken for sRGB")
        profile = None
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise InputError(f"{path}: 16 bits in an uncommon layout; save it as 16-bit PNG or interleaved TIFF")
    if pixels.ndim == 2:
        if tags.get(Base.PhotometricInterpretation) == 0:  # white is zero
            pixels = 65535 - pixels
        transparent = image.info.get("transparency")
        alpha = None if transparent is None else np.where(pixels == transparent, 0, 65535).astype(np.uint16)
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), alpha, profile
    rgb = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)
    if not image.has_transparency_data:
        return rgb, None, profile
    if tags.get(Base.ExtraSamples) == (1,):  # the colours are multiplied by alpha
        straight = rgb * (65535 / np.maximum(pixels[..., 3:], 1))
        rgb = np.rint(np.minimum(straight, 65535)).astype(np.uint16)
    return rgb, pixels[..., 3], profile


def _exif(image: ImageFile, notes: list[str]) -> tuple[bytes | None, int | None]:
    """The EXIF for the photo once it is upright, and how it must be turned, None if EXIF does not tell."""
    try:
        if isinstance(image, TiffImageFile):
            return _tiff_exif(image), 1  # for Pillow and OpenCV turn a TIFF themselves
        block = image.info.get("exif")
        if block is None and (text := image.info.get("Raw profile type exif")):  # PNG from older ImageMagick
            block = bytes.fromhex("".join(text.split("\n")[3:]))
        return _upright(block) if block else (None, None)
    except _DAMAGE:
        notes.append("its EXIF is damaged and is dropped")
        return None, 1


def _tiff_exif(image: TiffImageFile) -> bytes | None:
    """EXIF made anew, for in the file it lies between the pixels."""
    exif, kept = image.getexif(), Image.Exif()
    for tag in PHOTO_TAGS.intersection(exif):
        if tag not in (IFD.Exif, IFD.GPSInfo):
            kept[tag] = _as_bytes(exif[tag])
        elif directory := exif.get_ifd(tag):
            kept[tag] = {key: _as_bytes(value) for key, value in directory.items()}
            if IFD.Interop in directory:
                kept[tag][IFD.Interop] = exif.get_ifd(IFD.Interop)
    return kept.tobytes().removeprefix(b"Exif\0\0") if len(kept) else None


def _as_bytes(value: Any) -> Any:
    """Text that is not ASCII as it was before Pillow decoded it, because it would write "?"."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def _upright(block: bytes) -> tuple[bytes, int | None]:
    """EXIF with its orientation set to 1 and without the thumbnail, and the orientation that it had.

    Only these bytes change: a MakerNote may point to others by their place.
    """
    exif = bytearray(re.sub(rb"^(Exif\0\0)+", b"", block))
    order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(exif[:4])]
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, directory)
    end = directory + 2 + 12 * count
    orientation = None
    for entry in range(directory + 2, end, 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
        if tag == Base.Orientation:
            orientation = value
            struct.pack_into(order + "HHIHH", exif, entry, tag, 3, 1, 1, 0)
    # The next directory would be the thumbnail's, which shows the photo as it was before.
    struct.pack_into(order + "I", exif, end, 0)
    return bytes(exif), orientation


def _xmp(image: ImageFile) -> bytes | None:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return xmp if isinstance(xmp, bytes) else None


def _xmp_orientation(xmp: bytes | None) -> int | None:
    match = _XMP_ORIENTATION.search(xmp or b"")
    return None if match is None else int(match[2])


def _dpi(image: ImageFile) -> tuple[float, float] | None:
    x, y = (float(value) for value in image.info.get("dpi", (0, 0)))
    return (x, y) if 0 < x < 65535 and 0 < y < 65535 else None  # zero, unknown, or more than JPEG has digits for


def _turn(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    """(H, W, ...) turned upright from an EXIF orientation, contiguous."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
