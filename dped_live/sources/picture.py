"""What the pictures of a decoder become: planes of one format, with their colours described."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.hwaccel import HWAccel

from dped_live.errors import InputError
from dped_live.frame import (
    PIXEL_FORMATS,
    PQ,
    WITH_ALPHA,
    CardPlanes,
    Frame,
    Hdr,
    MasteringData,
    Matrix,
    PixelFormat,
    VideoFormat,
)
from dped_live.layout import unpack
from dped_live.sources.tone_mapping import ToneMapper, is_hdr

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

_CHROMA_IN_THE_MIDDLE = {"mjpeg", "mpeg1video", "theora", "h263", "flv"}
"""Decoders of codecs that put chroma between the luma samples. PyAV does not give what a stream says of it."""

_OPAQUE_OR_NOT = {"gif", "pal8"}
"""Decoders and pixel formats that always have transparency, whether it is used or not."""

_SEMI_PLANAR = {"nv12": "yuv420p", "p010le": "yuv420p10le"}
"""Of what cards decode to: what may stay there as CardPlanes, with what it becomes."""

_WITHOUT_ALPHA = {colour: stored for stored, colour in WITH_ALPHA.items()}


def decoder_of(stream: av.VideoStream) -> av.VideoCodecContext:
    """What decodes a stream's packets: its own decoder, or one that keeps transparency where that one would drop it.

    Of VP8 and VP9 it is a second stream inside the packets, which only libvpx reads.
    """
    own = stream.codec_context
    if stream.metadata.get("alpha_mode") != "1" or own.name not in ("vp8", "vp9"):
        return own
    return another_decoder(stream, "libvpx" if own.name == "vp8" else "libvpx-vp9")


def decoder_on_card(stream: av.VideoStream, card: int | None = None) -> av.VideoCodecContext:
    """The decoder of an NVIDIA card (NVDEC). Its pictures are copied to the host, as nv12 or p010le mostly.

    card: its pictures stay on this card, whose context is the current one of the calling thread: it becomes FFmpeg's.
    FFmpeg's own could not be read by others, and torch's primary one it does not take once torch has begun to use it,
    because of other flags. Such a picture has memory of its own, whoever keeps it.
    Raises InputError, with the reason only: no driver, no card, or none that decodes such a stream. A profile that the
    card does not know shows at the first packet.
    """
    own = stream.codec_context
    if decoder_of(stream) is not own:
        raise InputError("NVIDIA cards do not decode transparency")
    # FFmpeg's usual decoder of AV1, libdav1d, uses no card.
    name = "av1" if own.name == "libdav1d" else own.name
    try:
        kept: dict[str, Any] = {}
        if card is not None:
            kept = {"device": str(card), "options": {"primary_ctx": "0", "current_ctx": "1"}, "is_hw_owned": True}
        decoder = another_decoder(stream, name, HWAccel("cuda", allow_software_fallback=False, **kept))
    except PermissionError as error:
        raise InputError("no NVIDIA driver is loaded") from error
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"the NVIDIA card cannot be opened ({error.strerror})") from error
    if not decoder.is_hwaccel:
        raise InputError(f"no NVIDIA card decodes {name}")
    return decoder


def another_decoder(stream: av.VideoStream, name: str, accelerator: HWAccel | None = None) -> av.VideoCodecContext:
    """A decoder of that name, with what the container says of a stream."""
    own = stream.codec_context
    decoder = av.CodecContext.create(name, "r", accelerator)
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.extradata = own.extradata
    decoder.width, decoder.height = own.width, own.height
    # The container's word, which the stream itself may lack.
    decoder.color_primaries, decoder.color_trc = own.color_primaries, own.color_trc
    decoder.colorspace, decoder.color_range = own.colorspace, own.color_range
    return decoder


class PictureReader:
    """Reads the planes of a stream's decoded pictures.

    path: of the file, for messages. first: the picture that decides the format; others are converted to it.
    hdr: "sdr" maps PQ and HLG to SDR BT.709 in limited range, of the same depth. card: see decoder_on_card.
    format: see VideoFormat. notes: what a user should know; may grow.

    Raises InputError: the colours are of a kind that cannot be converted.
    """

    def __init__(
        self, path: Path, stream: av.VideoStream, first: av.VideoFrame, hdr: Hdr = "sdr", card: int | None = None
    ) -> None:
        self.notes: list[str] = []
        self._card = card
        self._path = path
        self._stream = stream
        self._pixel_format, self._has_alpha = _stored_as(first, stream)
        self._tone_mapper: ToneMapper | None = None
        mastering = _mastering(first)
        if is_hdr(first):
            name = "PQ" if first.color_trc == PQ else "HLG"
            if hdr == "keep":
                self.notes.append(f"HDR video ({name}): kept; the models are made for SDR")
            else:
                self.notes.append(f"HDR video ({name}): mapped to SDR (BT.709); --hdr keep keeps it")
                peak = mastering is not None and mastering.luminance is not None
                self._tone_mapper = ToneMapper(self._stored_name, peak)
        self.format = self._format(first, mastering)

    @property
    def _stored_name(self) -> str:
        return WITH_ALPHA[self._pixel_format.name] if self._has_alpha else self._pixel_format.name

    def _format(self, first: av.VideoFrame, mastering: MasteringData | None) -> VideoFormat:
        """The format of our frames, of which `first`, as it was decoded, is one."""
        kind = self._pixel_format.kind
        to_sdr = self._tone_mapper is not None
        matrix: Matrix = "rgb"
        if kind == "yuv":
            if to_sdr:
                matrix = "bt709"
            elif first.colorspace == 2:
                # What decoders of untagged video assume: high definition is BT.709. There is no HDR but in BT.2020.
                matrix = "bt2020" if is_hdr(first) else "bt709" if first.height >= 720 else "bt601"
            elif first.colorspace in _MATRICES and first.colorspace != 0:
                matrix = _MATRICES[first.colorspace]
            else:
                raise InputError(
                    f"{self._path}: its colour matrix (H.273 code {int(first.colorspace)}) is not supported; "
                    f"convert it to BT.709 first"
                )
        full_by_nature = kind != "yuv" or first.format.name.startswith("yuvj")
        full_range = full_by_nature if first.color_range == 0 else first.color_range == 2
        codec = self._stream.codec_context.name
        return VideoFormat(
            width=first.width,
            height=first.height,
            pixel_format=self._pixel_format,
            matrix=matrix,
            full_range=kind == "rgb" or (full_range and not to_sdr),
            chroma_location="center" if codec in _CHROMA_IN_THE_MIDDLE and not to_sdr else "left",
            primaries=1 if to_sdr else int(first.color_primaries),
            transfer=1 if to_sdr else int(first.color_trc),
            sample_aspect_ratio=self._stream.sample_aspect_ratio or Fraction(1),
            time_base=self._stream.time_base or Fraction(1, 90000),
            display_matrix=_display_matrix(first),
            has_alpha=self._has_alpha,
            mastering=None if to_sdr else mastering,
            peak=1000.0 if mastering is None or mastering.luminance is None else float(mastering.luminance[1]),
        )

    def frame(self, picture: av.VideoFrame, pts: Fraction, duration: Fraction | None) -> Frame:
        """A picture as a frame: its planes are views of the decoder's own, which they keep, where it has the format."""
        if self._card is not None and self._can_stay(picture):
            kept = CardPlanes(self._card, picture.planes, lambda: self._unpacked(picture)[0])
            return Frame(kept, self.format, pts, duration)
        if self._tone_mapper is not None:
            picture = self._tone_mapper.map(on_host(picture))
        planes, alpha = self._unpacked(picture)
        return Frame(planes, self.format, pts, duration, alpha)

    def _can_stay(self, picture: av.VideoFrame) -> bool:
        """Whether a picture is on a card, and is all that the frame's will be. PyAV drops the last chroma samples of
        odd sizes."""
        stored, fmt = picture.sw_format, self.format
        return (
            stored is not None
            and _SEMI_PLANAR.get(stored.name) == fmt.stored_as
            and (picture.width, picture.height) == (fmt.width, fmt.height)
            and fmt.width % 2 == fmt.height % 2 == 0
            and self._tone_mapper is None
        )

    def _unpacked(self, picture: av.VideoFrame) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
        """Planes and alpha of a picture in the frames' format."""
        width, height = self.format.width, self.format.height
        if (picture.width, picture.height) != (width, height):
            note = f"the size changes in mid-stream; all pictures are scaled to {width}x{height}"
            if note not in self.notes:
                self.notes.append(note)
        if (picture.width, picture.height, _without_j(picture.format.name)) != (width, height, self.format.stored_as):
            picture = picture.reformat(width, height, self.format.stored_as, interpolation=_ACCURATE)
        return unpack(picture.planes, self.format)


def on_host(picture: av.VideoFrame) -> av.VideoFrame:
    """A picture; of one that is on a card a copy that is not."""
    return picture if picture.sw_format is None else picture.reformat(format=picture.sw_format.name)


def _stored_as(picture: av.VideoFrame, stream: av.VideoStream) -> tuple[PixelFormat, bool]:
    """The pixel format of our frames, and whether they have alpha: the decoder's, or the nearest that loses nothing."""
    stored = picture.sw_format or picture.format
    name = _without_j(stored.name)
    has_alpha = any(component.is_alpha for component in stored.components)
    if {stream.codec_context.name, name} & _OPAQUE_OR_NOT:
        has_alpha = bool(picture.reformat(format="rgba").to_ndarray()[:, :, 3].min() < 255)
    if name in PIXEL_FORMATS:
        return PIXEL_FORMATS[name], has_alpha
    if has_alpha and name in _WITHOUT_ALPHA:
        return PIXEL_FORMATS[_WITHOUT_ALPHA[name]], True
    components = stored.components
    depth = max(component.bits for component in components)
    depth = next((d for d in (8, 10, 12) if depth <= d), 16)
    if stored.is_rgb or stored.has_palette:
        nearest = {8: "rgb24", 10: "gbrp10le", 12: "gbrp12le", 16: "rgb48le"}[depth]
    elif len([component for component in components if not component.is_alpha]) == 1:
        nearest = "gray" if depth == 8 else "gray16le" if has_alpha else f"gray{depth}le"
    else:
        sizes = (stored.chroma_width(8), stored.chroma_height(8))
        layout = {(4, 4): "420", (4, 8): "422"}.get(sizes, "444")
        nearest = f"yuv{layout}p{'' if depth == 8 else f'{depth}le'}"
        if has_alpha and nearest not in WITH_ALPHA:
            nearest = f"yuv{layout}p16le"
    return PIXEL_FORMATS[nearest], has_alpha


def _side_data(picture: av.VideoFrame, kind: str) -> memoryview | None:
    try:
        data: Any = picture.side_data.get(kind)
    except ValueError:  # PyAV does not know every kind of side data there is
        return None
    return None if data is None else memoryview(data)


def _mastering(picture: av.VideoFrame) -> MasteringData | None:
    """FFmpeg's AVMasteringDisplayMetadata (ten fractions and two flags) and AVContentLightMetadata (two integers)."""
    display, light = _side_data(picture, "MASTERING_DISPLAY_METADATA"), _side_data(picture, "CONTENT_LIGHT_LEVEL")
    if display is None and light is None:
        return None
    max_cll, max_fall = (0, 0) if light is None else (int(value) for value in np.frombuffer(light, "<u4", 2))
    if display is None:
        return MasteringData(max_cll=max_cll, max_fall=max_fall)
    values = np.frombuffer(display, "<i4", 22)
    if not all(values[20:]) or not all(values[1:20:2]):
        return MasteringData(max_cll=max_cll, max_fall=max_fall)
    numbers = [Fraction(int(above), int(below)) for above, below in values[:20].reshape(10, 2)]
    red, green, blue, white, luminance = ((numbers[i], numbers[i + 1]) for i in range(0, 10, 2))
    return MasteringData(red, green, blue, white, luminance, max_cll, max_fall)


def _display_matrix(picture: av.VideoFrame) -> tuple[int, ...] | None:
    data = _side_data(picture, "DISPLAYMATRIX")
    if data is None:
        return None
    matrix = tuple(int(value) for value in np.frombuffer(data, "<i4", 9))
    identity = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    return None if matrix == identity else matrix


def _without_j(name: str) -> str:
    """FFmpeg's deprecated yuvj420p is yuv420p in full range."""
    return name.replace("yuvj", "yuv")
