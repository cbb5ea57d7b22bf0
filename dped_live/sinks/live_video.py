"""Live pictures, which are RGB, as the frames of Y'CbCr that an encoder takes. Shared by recording and streaming."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from dped_live.frame import PIXEL_FORMATS, VideoFormat
from dped_live.sinks.encoding import Encoding, encoded_format

_TICK = Fraction(1, 90_000)
"""The clock of MPEG transport streams and RTP."""

_BT709 = 1
"""The primaries, which are sRGB's too, and the transfer function that players take for a screen's."""

_ACCURATE = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
"""Within 0.55 of a level of the exact result. swscale's default leaves out every second column's chroma."""


def live_format(width: int, height: int, codec: str) -> VideoFormat:
    """What live pictures become for an encoder. Raises OutputError as encoded_format does."""
    rgb = VideoFormat(width, height, PIXEL_FORMATS["rgb24"], primaries=_BT709, transfer=_BT709, time_base=_TICK)
    return encoded_format(rgb, Encoding(codec))


class Converter:
    """RGB to the pixel format, matrix and range of `fmt`, a live_format."""

    def __init__(self, fmt: VideoFormat) -> None:
        self._format = fmt
        self._matrix = Colorspace.ITU709 if fmt.matrix == "bt709" else Colorspace.ITU601
        self._range = ColorRange.JPEG if fmt.full_range else ColorRange.MPEG
        self._reformatter = VideoReformatter()

    def convert(self, picture: np.ndarray) -> av.VideoFrame:
        """picture: (H, W, 3), RGB, uint8, full range; it is read before this returns. The frame has no time yet."""
        rows = picture if picture.strides[1:] == (3, 1) else np.ascontiguousarray(picture)
        frame = self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(rows, "rgb24"),
            format=self._format.pixel_format.name,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=self._matrix,
            dst_color_range=self._range,
            interpolation=_ACCURATE,
            threads=1,
        )
        frame.time_base = self._format.time_base
        return frame
