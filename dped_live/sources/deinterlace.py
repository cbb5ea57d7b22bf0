"""Interlaced pictures become progressive ones, by FFmpeg's bwdif."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av

from dped_live.sources.picture import on_host


class Deinterlacer:
    """Makes the interlaced pictures of a stream progressive.

    enabled: otherwise they stay as they are, and only the note is made. notes: what a user should know; may grow.

    A picture comes out for every one that goes in, with its times. The filter begins with the first interlaced picture,
    so that progressive video pays nothing; from there on it holds one back, and passes on what is progressive.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.notes: list[str] = []
        self._enabled = enabled

    def map(self, pictures: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """The pictures in their order. What the pictures' iterator raises passes through."""
        graph: av.filter.Graph | None = None
        kind: tuple[int, int, str] | None = None
        held: deque[av.VideoFrame] = deque()
        for picture in pictures:
            interlaced = _is_interlaced(picture)
            if interlaced and not self.notes:
                what = "deinterlaced" if self._enabled else "left as it is, since --deinterlace is off"
                self.notes.append(f"the video is interlaced; {what}")
            if graph is not None and kind != _kind(picture):
                yield from _rest(graph, held)
                graph = None
            if graph is None and self._enabled and interlaced:
                graph, kind = _bwdif(on_host(picture)), _kind(picture)
            if graph is None:
                yield picture
                continue
            held.append(picture)
            graph.push(on_host(picture))
            yield from _ready(graph, held)
        if graph is not None:
            yield from _rest(graph, held)


def _is_interlaced(picture: av.VideoFrame) -> bool:
    """Whether there is something to do. Of planes with less than 3 columns or 4 lines the filter takes none."""
    return picture.interlaced_frame and all(plane.width > 2 and plane.height > 3 for plane in picture.planes)


def _kind(picture: av.VideoFrame) -> tuple[int, int, str]:
    return picture.width, picture.height, picture.format.name


def _bwdif(picture: av.VideoFrame) -> av.filter.Graph:
    """Pixel formats that bwdif does not take are converted by the graph."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        time_base=picture.time_base or Fraction(1, 90000),
    )
    # A frame for each frame, not for each field; only where the stream says so.
    bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    return graph


def _ready(graph: av.filter.Graph, held: deque[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    while held:
        try:
            picture = graph.vpull()
        except (BlockingIOError, EOFError):
            return
        # The filter counts in half ticks, and knows no duration of the last picture.
        before = held.popleft()
        if before.time_base is not None:  # what a decoder gives at its end has none
            picture.time_base = before.time_base
        picture.pts, picture.dts, picture.duration = before.pts, before.dts, before.duration
        yield picture


def _rest(graph: av.filter.Graph, held: deque[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """What the filter holds back."""
    graph.push(None)
    yield from _ready(graph, held)
