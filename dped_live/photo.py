"""A photo on the host: its picture, and what its file says besides."""

from __future__ import annotations

from dataclasses import dataclass

from PIL.ExifTags import IFD, Base

from dped_live.frame import Frame

PHOTO_TAGS = {
    *(Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist, Base.Copyright),
    *(Base.HostComputer, Base.Rating, Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject),
    *(IFD.Exif, IFD.GPSInfo),
}
"""The tags of a TIFF that tell of the photo, rather than of how its pixels are stored."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo, upright, and what its file says besides the pixels.

    frame: rgb24 or rgb48le, the plane contiguous; alpha (H, W) of its type where the file has transparency.
    icc_profile: what the RGB values mean, byte for byte as in the file; None for sRGB.
    exif: a TIFF structure from its byte order mark on, without "Exif\\0\\0"; it says that the photo is upright.
    xmp: an XMP packet, which says that the photo is upright or nothing of it.
    dpi: print resolution (horizontal, vertical) in pixels per inch.
    notes: what of the file is not in here, each a phrase for the user.
    """

    frame: Frame
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
