"""HDR pictures (PQ and HLG of ITU-R BT.2100) as SDR ones of BT.709, by FFmpeg's colour management (libswscale)."""

from __future__ import annotations

from fractions import Fraction

import av

from dped_live.frame import HLG, PQ

_BT2020 = "bt2020"
_UNSPECIFIED = 2

_TO_SDR = (
    "scale=flags=bicubic:intent=perceptual:out_primaries=bt709:out_transfer=bt709:out_color_matrix=bt709:out_range=tv"
    ":out_chroma_loc=left"
)
"""Perceptual: tones and colours that SDR has not are moved in, not cut off. Of a video that goes up to 1000 cd/m2 the
white of BT.2408, 203 cd/m2, becomes 68 % of the signal. With other flags than the default ones (bilinear with
full_chroma_int) FFmpeg 8.1 gives stripes of wrong colours."""

_TO_HLG = (
    "scale=flags=bicubic:intent=relative_colorimetric:out_primaries=bt2020:out_transfer=arib-std-b67"
    ":out_color_matrix=bt2020nc:out_range=tv"
)
"""The same light up to 1000 cd/m2, and that for all above it."""


def is_hdr(picture: av.VideoFrame) -> bool:
    """Whether a picture says that it is of PQ or HLG."""
    return picture.color_trc in (PQ, HLG)


class ToneMapper:
    """Maps HDR pictures to SDR.

    pixel_format: FFmpeg's name of that of the results; the mapping itself is one of 16 bits. peak: whether the pictures
    say how bright their brightest light is (HDR10's mastering data); where PQ does not, 1000 cd/m2 are assumed, as by
    players, instead of the 10,000 that it could have.

    The first picture takes seconds, for its table of colours is made; as does one of another size or format.
    """

    def __init__(self, pixel_format: str, peak: bool) -> None:
        self._pixel_format = pixel_format
        self._peak = peak
        self._kind: tuple[object, ...] = ()
        self._graph: av.filter.Graph | None = None

    def map(self, picture: av.VideoFrame) -> av.VideoFrame:
        """The picture in BT.709, limited range, with its times. Pictures that are no HDR come back as they are."""
        if not is_hdr(picture):
            return picture
        kind = (picture.width, picture.height, picture.format.name, picture.color_trc, picture.color_primaries)
        if self._graph is None or kind != self._kind:
            self._graph, self._kind = self._filters(picture), kind
        self._graph.push(picture)
        mapped = self._graph.vpull()
        if picture.time_base is not None:  # what a decoder gives at its end has none
            mapped.time_base = picture.time_base
        mapped.pts, mapped.dts, mapped.duration = picture.pts, picture.dts, picture.duration
        return mapped

    def _filters(self, picture: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        nodes = [
            graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=picture.time_base or Fraction(1, 90000),
            ),
            # A table for each picture would take seconds, and make its treatment depend on the ones before.
            graph.add("sidedata", "mode=delete:type=DYNAMIC_HDR_PLUS"),
        ]
        known = ""
        if picture.color_primaries == _UNSPECIFIED:
            known += f":in_primaries={_BT2020}"
        if picture.colorspace == _UNSPECIFIED and not picture.format.is_rgb:
            known += ":in_color_matrix=bt2020nc"
        if picture.color_trc == PQ and not self._peak:
            nodes += [_add(graph, _TO_HLG + known), graph.add("format", "rgba64le")]
            known = ""
        nodes += [_add(graph, _TO_SDR + known), graph.add("format", self._pixel_format), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        return graph


def _add(graph: av.filter.Graph, described: str) -> av.filter.FilterContext:
    name, arguments = described.split("=", 1)
    return graph.add(name, arguments)
