"""What travels through the pipeline: one picture, with its format and its time. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np

Matrix = Literal["rgb", "bt709", "bt601", "bt2020", "fcc", "smpte240m"]
"""How Y'CbCr relates to R'G'B'; "rgb" where the planes hold RGB or grey itself."""

ChromaLocation = Literal["left", "center", "topleft"]
"""Where a subsampled chroma sample lies among its luma samples (H.264 default: left)."""


Hdr = Literal["sdr", "keep"]
"""What becomes of HDR video (PQ, HLG): mapped to SDR, or kept as it is."""

Decode = Literal["auto", "cpu", "cuda"]
"""What decodes video."""

PQ, HLG = 16, 18
"""The transfer functions of HDR: SMPTE ST 2084 and ARIB STD-B67 (both in ITU-R BT.2100), as code points of H.273."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """Layout of the planes. `name` is FFmpeg's for what is stored; layout.py turns one into the other.

    kind "yuv": three planes (H, W), chroma planes smaller by the shifts, rounded up; "gray": one plane (H, W);
    "rgb": one plane (H, W, 3), in whatever order the channels are stored. uint8 where depth is 8, else uint16 with the
    value in the low `depth` bits.
    """

    name: str
    kind: Literal["yuv", "gray", "rgb"]
    depth: int
    chroma_shift_x: int = 0
    chroma_shift_y: int = 0


_SUFFIXES = {8: "", 9: "9le", 10: "10le", 12: "12le", 14: "14le", 16: "16le"}
_SUBSAMPLING = {"444": (0, 0), "422": (1, 0), "420": (1, 1), "440": (0, 1), "411": (2, 0), "410": (2, 2)}
_ONLY = {"440": (8, 10, 12), "411": (8,), "410": (8,)}
"""Where FFmpeg has not every depth."""

PIXEL_FORMATS: dict[str, PixelFormat] = {
    p.name: p
    for p in [
        PixelFormat("rgb24", "rgb", 8),
        PixelFormat("bgr24", "rgb", 8),
        PixelFormat("bgr0", "rgb", 8),
        PixelFormat("rgb48le", "rgb", 16),
        *(PixelFormat(f"gbrp{suffix}", "rgb", depth) for depth, suffix in _SUFFIXES.items()),
        *(PixelFormat(f"gray{suffix}", "gray", depth) for depth, suffix in _SUFFIXES.items()),
        *(
            PixelFormat(f"yuv{shape}p{suffix}", "yuv", depth, *shifts)
            for shape, shifts in _SUBSAMPLING.items()
            for depth, suffix in _SUFFIXES.items()
            if depth in _ONLY.get(shape, _SUFFIXES)
        ),
    ]
}
"""The pixel formats that color.py converts. Sources convert any other to the nearest of these."""

WITH_ALPHA: dict[str, str] = {
    "rgb24": "rgba",
    "bgr0": "bgra",
    "rgb48le": "rgba64le",
    "gray": "ya8",
    "gray16le": "ya16le",
    **{f"gbrp{suffix}": f"gbrap{suffix}" for depth, suffix in _SUFFIXES.items() if depth != 9},
    **{
        f"yuv{shape}p{suffix}": f"yuva{shape}p{suffix}"
        for shape in ("444", "422", "420")
        for depth, suffix in _SUFFIXES.items()
        if depth != 14 and (shape, depth) != ("420", 12)
    },
}
"""What a pixel format is called where it is stored with transparency, if that is possible."""


@dataclass(frozen=True, slots=True)
class MasteringData:
    """What HDR10 says of a whole video (SMPTE ST 2086, CTA-861.3); carried, not converted.

    red, green, blue, white: chromaticities (x, y) of the display that it was graded on; luminance: that display's
    least and greatest, in cd/m2. All of these or none. max_cll, max_fall: the brightest pixel and the brightest mean of
    a picture, in cd/m2, 0 if unknown.
    """

    red: tuple[Fraction, Fraction] | None = None
    green: tuple[Fraction, Fraction] | None = None
    blue: tuple[Fraction, Fraction] | None = None
    white: tuple[Fraction, Fraction] | None = None
    luminance: tuple[Fraction, Fraction] | None = None
    max_cll: int = 0
    max_fall: int = 0


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """What is the same for all pictures of a stream.

    width, height: of the coded picture, before `rotation`.
    full_range: whether luma uses 0..2^depth-1 rather than 16..235 (scaled to the depth).
    primaries, transfer: code points of ITU-T H.273, 2 where unspecified; carried, not converted.
    sample_aspect_ratio: width / height of one pixel.
    time_base: the tick, in seconds, of which every pts is a multiple.
    display_matrix: how a player must turn the picture, as nine integers of ISO 14496-12 (None: not at all).
    has_alpha: whether a video's pictures are stored with transparency, which frames have in Frame.alpha.
    mastering: HDR10's static metadata, if there is any. peak: the brightest light of PQ video, in cd/m2; what players
    assume where it is not said.
    """

    width: int
    height: int
    pixel_format: PixelFormat
    matrix: Matrix = "rgb"
    full_range: bool = True
    chroma_location: ChromaLocation = "left"
    primaries: int = 2
    transfer: int = 2
    sample_aspect_ratio: Fraction = Fraction(1)
    time_base: Fraction = Fraction(1)
    display_matrix: tuple[int, ...] | None = None
    has_alpha: bool = False
    mastering: MasteringData | None = None
    peak: float = 1000.0

    @property
    def stored_as(self) -> str:
        """FFmpeg's name of the pixel format with the transparency, if it has any."""
        return WITH_ALPHA[self.pixel_format.name] if self.has_alpha else self.pixel_format.name

    def around(self, area: Area) -> tuple[Area, Area]:
        """The least area around another that can be cut out of a picture, and where in it that one lies: chroma samples
        are not divided."""
        pixel = self.pixel_format
        # Down and up to a multiple of the pixels that share a chroma sample, but not beyond the picture.
        top, left = area.top & -(1 << pixel.chroma_shift_y), area.left & -(1 << pixel.chroma_shift_x)
        bottom = min(self.height, -(-area.bottom & -(1 << pixel.chroma_shift_y)))
        right = min(self.width, -(-area.right & -(1 << pixel.chroma_shift_x)))
        within = Area(area.top - top, area.bottom - top, area.left - left, area.right - left)
        return Area(top, bottom, left, right), within


@dataclass(frozen=True, slots=True)
class Area:
    """Part of a picture: rows from `top` up to but without `bottom`, columns from `left` up to but without `right`."""

    top: int
    bottom: int
    left: int
    right: int

    def union(self, other: Area) -> Area:
        """The least area that holds both."""
        return Area(
            min(self.top, other.top),
            max(self.bottom, other.bottom),
            min(self.left, other.left),
            max(self.right, other.right),
        )


class CardPlanes(Sequence[np.ndarray]):
    """The planes of a picture that an NVIDIA card has decoded and that is still there.

    To whoever looks at them they are arrays on the host like any others: the first look brings them there. Staging
    takes them on the card.

    card: its number, as CUDA counts. stored: what lies there, with `__dlpack__`: luma (H, W) and chroma (H / 2, W / 2,
    2), as FFmpeg's nv12 or p010le have it, where 10 bits are the high ones. The memory is the decoder's, which writes
    on its context's default stream: what is read on another one comes after that, and it may be given back only after
    what was read. download: gives the planes on the host, and waits for the decoder.
    """

    def __init__(self, card: int, stored: Sequence[Any], download: Callable[[], tuple[np.ndarray, ...]]) -> None:
        self.card = card
        self.stored = stored
        self._download = download

    @cached_property
    def _on_host(self) -> tuple[np.ndarray, ...]:
        return self._download()

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[np.ndarray, ...]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | tuple[np.ndarray, ...]:
        return self._on_host[index]

    def __len__(self) -> int:
        return 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture.

    planes: arrays as `format.pixel_format` says, or CardPlanes. They belong to the frame: whoever made it does not
    write to them again, and whoever receives it only reads.
    pts: presentation time in seconds, exact, a multiple of format.time_base; duration likewise, None if unknown.
    alpha: (H, W) of the planes' type, or None; carried beside the colours and never enhanced.
    captured_at: when a camera gave it, on the clock of time.monotonic(); None for files.
    """

    planes: Sequence[np.ndarray]
    format: VideoFormat
    pts: Fraction = Fraction(0)
    duration: Fraction | None = None
    alpha: np.ndarray | None = None
    captured_at: float | None = None

    @property
    def whole(self) -> Area:
        """All of the picture."""
        return Area(0, self.format.height, 0, self.format.width)

    def cropped(self, area: Area) -> tuple[Frame, Area]:
        """The least part of the frame around an area that can be cut out: chroma samples are not divided.

        Returns the part, whose planes are views of this frame's, and where in it the area lies.
        """
        outer, within = self.format.around(area)
        part = replace(
            self,
            planes=cut(self.planes, self.format.pixel_format, outer),
            format=replace(self.format, width=outer.right - outer.left, height=outer.bottom - outer.top),
            alpha=None if self.alpha is None else self.alpha[outer.top : outer.bottom, outer.left : outer.right],
        )
        return part, within


def cut(planes: Sequence[Any], pixel: PixelFormat, area: Area) -> tuple[Any, ...]:
    """Views of an area of planes, of numpy or torch; see VideoFormat.around for areas that can be cut out."""
    shifts = [(0, 0), *[(pixel.chroma_shift_y, pixel.chroma_shift_x)] * (len(planes) - 1)]
    return tuple(
        plane[area.top >> y : -(-area.bottom >> y), area.left >> x : -(-area.right >> x)]
        for plane, (y, x) in zip(planes, shifts, strict=True)
    )
