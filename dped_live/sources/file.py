"""Frames of a video file, through PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from dped_live.errors import InputError
from dped_live.frame import Frame, Hdr
from dped_live.sources.deinterlace import Deinterlacer
from dped_live.sources.picture import PictureReader, decoder_of

_STARTS_ANYWHERE = {"mpegts", "mpeg", "vob"}
"""Containers of a running clock: their first timestamp means nothing and is taken off."""


class FileSource:
    """The frames of a file's video stream, every one with its own presentation time.

    Opens the file and decodes the first picture at once, so that `format` is what the decoder really gives. Of several
    video streams the default one, else the longest, is taken; cover pictures never.

    deinterlace: whether interlaced pictures become progressive. hdr: see PictureReader.

    format: see VideoFormat; pictures that change size or format in mid-stream are converted to the first one's.
    start: seconds that were taken off every timestamp; who copies other streams of the file takes off the same.
    frame_rate: average, a hint for encoders. frame_count: an estimate, None if nothing is known.
    duration: seconds from time 0 to the end of the longest stream, as the file says it; None if it does not.
    notes: what a user should know of this file; may grow until the last frame.

    Raises InputError from the constructor and from frames().
    """

    def __init__(self, path: Path, *, deinterlace: bool = True, hdr: Hdr = "sdr") -> None:
        self.path = path
        self._own_notes: list[str] = []
        self._damaged = 0
        try:
            # The prefix keeps FFmpeg from reading a protocol into a name such as `a:b.mp4`.
            self._container = av.open(f"file:{path}", metadata_errors="surrogateescape")
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{path}: {_reason(error)}") from error
        try:
            self._stream = _video_stream(self._container, path)
            self._decoder = decoder_of(self._stream)
            self._decoder.thread_type = "AUTO"
            self._deinterlacer = Deinterlacer(deinterlace)
            self._decoded = self._deinterlacer.map(self._decode())
            self._first = next(self._decoded, None)
            if self._first is None:
                raise InputError(f"{path}: no picture in it can be decoded; nothing written")
            self._reader = PictureReader(path, self._stream, self._first, hdr)
            self.format = self._reader.format
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

    @property
    def notes(self) -> list[str]:
        return [*self._deinterlacer.notes, *self._reader.notes, *self._own_notes]

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
            yield self._reader.frame(picture, time, known)
            time += known or duration
            self._first = next(self._decoded, None)
        if invented:
            self._own_notes.append(f"{invented} pictures have no timestamp; they follow each other at the frame rate")
        if self._damaged:
            self._own_notes.append(f"{self._damaged} damaged packets were passed over")
        if corrupt:
            self._own_notes.append(f"{corrupt} pictures are damaged")
        if self.duration is not None and time < 0.9 * self.duration and self.duration - time > 1:
            self._own_notes.append(f"the pictures end at {float(time):.1f} s of {float(self.duration):.1f} s")

    def close(self) -> None:
        """Release the file."""
        if hasattr(self, "_decoder"):
            # One with frame threads that is closed in mid-stream may otherwise never return.
            self._decoder.flush_buffers()
        self._container.close()

    def _decode(self) -> Iterator[av.VideoFrame]:
        try:
            for packet in self._container.demux(self._stream):
                try:
                    yield from self._decoder.decode(packet)
                except av.FFmpegError:
                    self._damaged += 1
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{self.path}: {_reason(error)}") from error

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


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "not a video or photo that can be read, or damaged at its very beginning"
    return getattr(error, "strerror", None) or str(error)
