"""What the pictures of a decoder become: planes of one format, with their colours described."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from dped_live.errors import InputError
from dped_live.frame import PIXEL_FORMATS, ChromaLocation, Matrix, PixelFormat, VideoFormat

_MATRICES: dict[int, Matrix] = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
}
"""By ITU-T H.273 code point. 2 is 'unspecified'; the rest are not linear in R'G'B'."""

_ACCURATE = 2 | 0x2000 | 0x4000 | 0x40000
"""swscale: bilinear, full chroma both ways, accurate rounding. Its default repeats chroma samples."""


class PictureReader:
    """Reads the planes of a stream's decoded pictures.

    path: of the file, for messages. first: the picture that decides the format; others are converted to it.
    format: see VideoFormat. notes: what a user should know; may grow.

    Raises InputError: the colours are of a kind that cannot be converted.
    """

    def __init__(self, path: Path, stream: av.VideoStream, first: av.VideoFrame) -> None:
        self.notes: list[str] = []
        self._path = path
        self._stream = stream
        self._pixel_format = self._stored_as(first)
        self.format = self._format(first)

    def _stored_as(self, picture: av.VideoFrame) -> PixelFormat:
        """The pixel format of our frames: the decoder's, or the nearest that loses nothing but alpha."""
        name = _without_j(picture.format.name)
        if name in PIXEL_FORMATS:
            return PIXEL_FORMATS[name]
        components = picture.format.components
        depth = max(component.bits for component in components)
        if any(component.is_alpha for component in components):
            self.notes.append("the video's transparency is not kept")
        if picture.format.is_rgb or picture.format.has_palette:
            return PIXEL_FORMATS["rgb24" if depth <= 8 else "rgb48le"]
        stored = next((d for d in (8, 10, 12) if depth <= d), 16)
        suffix = "" if stored == 8 else f"{stored}le"
        if len(components) <= 2:
            return PIXEL_FORMATS[f"gray{suffix}"]
        layout = {(4, 4): "420", (4, 8): "422"}.get(
            (picture.format.chroma_width(8), picture.format.chroma_height(8)), "444"
        )
        return PIXEL_FORMATS[f"yuv{layout}p{suffix}"]

    def _format(self, picture: av.VideoFrame) -> VideoFormat:
        kind = self._pixel_format.kind
        matrix: Matrix = "rgb"
        if kind == "yuv":
            if picture.colorspace == 2:
                # What decoders of untagged video assume: high definition is BT.709.
                matrix = "bt709" if picture.height >= 720 else "bt601"
            elif picture.colorspace in _MATRICES and picture.colorspace != 0:
                matrix = _MATRICES[picture.colorspace]
            else:
                raise InputError(
                    f"{self._path}: its colour matrix (H.273 code {int(picture.colorspace)}) is not supported; "
                    f"convert it to BT.709 first"
                )
        full_by_nature = kind != "yuv" or picture.format.name.startswith("yuvj")
        full_range = full_by_nature if picture.color_range == 0 else picture.color_range == 2
        if picture.color_trc in (16, 18):
            self.notes.append("HDR video: enhanced as if it were SDR, which the models were made for")
        codec = self._stream.codec_context.name
        location: ChromaLocation = "center" if codec in ("mjpeg", "mpeg1video") else "left"
        return VideoFormat(
            width=picture.width,
            height=picture.height,
            pixel_format=self._pixel_format,
            matrix=matrix,
            full_range=full_range or kind == "rgb",
            chroma_location=location,
            primaries=int(picture.color_primaries),
            transfer=int(picture.color_trc),
            sample_aspect_ratio=self._stream.sample_aspect_ratio or Fraction(1),
            time_base=self._stream.time_base or Fraction(1, 90000),
            display_matrix=_display_matrix(picture),
        )

    def planes(self, picture: av.VideoFrame) -> tuple[np.ndarray, ...]:
        """The planes of a picture: views of the decoder's own, which they keep, where it has the format already."""
        pixel = self._pixel_format
        width, height = self.format.width, self.format.height
        if (picture.width, picture.height) != (width, height):
            note = f"the size changes in mid-stream; all pictures are scaled to {width}x{height}"
            if note not in self.notes:
                self.notes.append(note)
        if (picture.width, picture.height, _without_j(picture.format.name)) != (width, height, pixel.name):
            picture = picture.reformat(width, height, pixel.name, interpolation=_ACCURATE)
        dtype = np.dtype(np.uint8 if pixel.depth == 8 else np.uint16)
        planes = []
        for index, plane in enumerate(picture.planes):
            samples = 3 if pixel.kind == "rgb" else 1
            rows = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
            if index == 0:
                rows = rows[:height, : width * samples]
            else:
                rows = rows[: -(-height >> pixel.chroma_shift_y), : -(-width >> pixel.chroma_shift_x)]
            planes.append(rows.reshape(height, width, 3) if samples == 3 else rows)
        return tuple(planes)


def _display_matrix(picture: av.VideoFrame) -> tuple[int, ...] | None:
    try:
        data: Any = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know every kind of side data there is
        return None
    if data is None:
        return None
    matrix = tuple(int(value) for value in np.frombuffer(memoryview(data), "<i4", 9))
    identity = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    return None if matrix == identity else matrix


def _without_j(name: str) -> str:
    """FFmpeg's deprecated yuvj420p is yuv420p in full range."""
    return name.replace("yuvj", "yuv")
