"""Frames of a video file, through PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from dped_live.errors import InputError
from dped_live.frame import PIXEL_FORMATS, ChromaLocation, Frame, Matrix, PixelFormat, VideoFormat

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

_STARTS_ANYWHERE = {"mpegts", "mpeg", "vob"}
"""Containers of a running clock: their first timestamp means nothing and is taken off."""


class FileSource:
    """The frames of a file's video stream, every one with its own presentation time.

    Opens the file and decodes the first picture at once, so that `format` is what the decoder really gives. Of several
    video streams the default one, else the longest, is taken; cover pictures never.

    format: see VideoFormat; pictures that change size or format in mid-stream are converted to the first one's.
    start: seconds that were taken off every timestamp; who copies other streams of the file takes off the same.
    frame_rate: average, a hint for encoders. frame_count: an estimate, None if nothing is known.
    duration: seconds from time 0 to the end of the longest stream, as the file says it; None if it does not.
    notes: what a user should know of this file; may grow until the last frame.

    Raises InputError from the constructor and from frames().
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._damaged = 0
        try:
            # The prefix keeps FFmpeg from reading a protocol into a name such as `a:b.mp4`.
            self._container = av.open(f"file:{path}", metadata_errors="surrogateescape")
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{path}: {_reason(error)}") from error
        try:
            self._stream = _video_stream(self._container, path)
            self._stream.thread_type = "AUTO"
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
            if self._first is None:
                raise InputError(f"{path}: no picture in it can be decoded; nothing written")
            self._pixel_format = self._stored_as(self._first)
            self.format = self._format(self._first)
        except BaseException:
            self.close()
            raise
        self.start = self._clock_start()
        self.frame_rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.duration: Fraction | None = None
        if self._container.duration is not None:
            end = (self._container.start_time or 0) + self._container.duration
            self.duration = Fraction(end, av.time_base) - self.start
        self.frame_count = self._estimate()

    def frames(self) -> Iterator[Frame]:
        """Every picture once, in presentation order. The planes are views of the decoder's own, which it keeps."""
        tick = self.format.time_base
        duration = 1 / self.frame_rate // tick * tick
        # Where pictures without a timestamp begin: usually the file has none at all.
        time = Fraction(self._container.start_time or 0, av.time_base) // tick * tick - self.start
        invented = corrupt = 0
        # AVI has times of decoding only; what FFmpeg makes of them for B-frames goes back and forth.
        by_decoding = self._container.format.name == "avi"
        while self._first is not None:
            picture, self._first = self._first, None
            stamp = picture.dts if by_decoding else picture.pts
            if stamp is not None:
                time = stamp * tick - self.start
            elif not by_decoding:
                invented += 1
            corrupt += picture.is_corrupt
            known = picture.duration * tick if picture.duration else None
            yield Frame(self._planes(picture), self.format, time, known)
            time += known or duration
            self._first = next(self._decoded, None)
        if invented:
            self.notes.append(f"{invented} pictures have no timestamp; they follow each other at the frame rate")
        if self._damaged:
            self.notes.append(f"{self._damaged} damaged packets were passed over")
        if corrupt:
            self.notes.append(f"{corrupt} pictures are damaged")
        if self.duration is not None and time < 0.9 * self.duration and self.duration - time > 1:
            self.notes.append(f"the pictures end at {float(time):.1f} s of {float(self.duration):.1f} s")

    def close(self) -> None:
        """Release the file."""
        if hasattr(self, "_stream"):
            # A decoder with frame threads that is closed in mid-stream may otherwise never return.
            self._stream.codec_context.flush_buffers()
        self._container.close()

    def _decode(self) -> Iterator[av.VideoFrame]:
        try:
            for packet in self._container.demux(self._stream):
                try:
                    yield from packet.decode()
                except av.FFmpegError:
                    self._damaged += 1
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{self.path}: {_reason(error)}") from error

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
                    f"{self.path}: its colour matrix (H.273 code {int(picture.colorspace)}) is not supported; "
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

    def _planes(self, picture: av.VideoFrame) -> tuple[np.ndarray, ...]:
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

    def _clock_start(self) -> Fraction:
        if _STARTS_ANYWHERE.isdisjoint(self._container.format.name.split(",")):
            return Fraction(0)
        # Not the container's own start_time, which is rounded to microseconds.
        starts = [
            stream.start_time * stream.time_base
            for stream in self._container.streams
            if stream.start_time is not None and stream.time_base is not None
        ]
        return min(starts, default=Fraction(0))

    def _estimate(self) -> int | None:
        if self._stream.frames:
            return self._stream.frames
        seconds = self._stream.duration * self.format.time_base if self._stream.duration else self.duration
        # Some files name their clock as their frame rate.
        return round(seconds * self.frame_rate) if seconds and self.frame_rate <= 240 else None


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    videos = [
        stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not videos:
        others = [
            f"{len(streams)} {kind} stream{'s' * (len(streams) > 1)}"
            for kind, streams in (("audio", container.streams.audio), ("subtitle", container.streams.subtitles))
            if streams
        ]
        raise InputError(f"{path}: no video stream in it ({', '.join(others) or 'no stream at all'}); nothing written")
    return max(
        videos,
        key=lambda stream: (bool(stream.disposition & av.stream.Disposition.default), stream.frames, -stream.index),
    )


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


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "not a video or photo that can be read, or damaged at its very beginning"
    return getattr(error, "strerror", None) or str(error)
