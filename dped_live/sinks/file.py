"""Frames into a video file, through PyAV (FFmpeg), with the sound of the file they came from."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from dped_live.errors import InputError, OutputError
from dped_live.frame import PIXEL_FORMATS, Frame, Matrix, VideoFormat
from dped_live.partial import PartialFile

_QUALITY: dict[str, dict[str, str]] = {
    "libx264": {"crf": "17", "preset": "veryfast"},
    "libx265": {"crf": "20", "preset": "medium", "x265-params": "log-level=error"},
    "libsvtav1": {"crf": "24", "preset": "8"},
    "libvpx-vp9": {"crf": "24", "b:v": "0", "row-mt": "1", "deadline": "good", "cpu-used": "2"},
}
"""Visually near lossless. Encoders that are not here keep their own defaults."""

_OF_THE_DISK = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}
"""Errors of writing a header that have nothing to do with what is written."""

_PRIMING = Fraction(1, 10)
"""Seconds of sound before the first that is heard: AAC needs up to three packets (64 ms) to start up."""

_IN_FRAGMENTS = {"movflags": "hybrid_fragmented+delay_moov", "frag_duration": "500000"}
_CRASH_SAFE = {"mp4": _IN_FRAGMENTS, "mov": _IN_FRAGMENTS, "matroska": {"cluster_time_limit": "500"}}
"""By container: what half a second (500,000 us) needs to be played by itself. An MP4 that is finished is an ordinary
one."""

_H273: dict[Matrix, int] = {"bt709": 1, "fcc": 4, "bt601": 6, "smpte240m": 7, "bt2020": 9}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pictures are encoded: the name of an FFmpeg encoder, and its quality if not our default for it."""

    codec: str = "libx264"
    crf: int | None = None
    preset: str | None = None


@dataclass(frozen=True, slots=True)
class Companion:
    """The file that the frames come from, for what goes into the output unchanged: metadata, and the first sound.

    start: seconds that its source took off the frames' times (FileSource.start).
    """

    path: Path
    start: Fraction
    audio: bool = True


class LiveSound(Protocol):
    """Sound that is encoded while it comes."""

    def add_to(self, container: av.container.OutputContainer) -> av.AudioStream:
        """Called once, before the first packet is asked for."""
        ...

    def next_packet(self) -> av.Packet[av.AudioStream] | None:
        """The oldest that was not taken yet; None if there is none yet."""
        ...


def encoded_format(source: VideoFormat, codec: str) -> VideoFormat:
    """The format nearest to `source` that an encoder takes: depth and subsampling kept where it can.

    RGB becomes BT.709 (BT.601 below 720 lines) 4:2:0 in limited range, which every player shows; odd sizes become
    4:4:4, because 4:2:0 encoders want even ones. Raises OutputError if there is no such encoder, or no format.
    """
    supported = {fmt.name for fmt in _encoder(codec).video_formats or []}
    pixel = source.pixel_format
    layout = (
        "420"
        if pixel.kind != "yuv"
        else {(1, 1): "420", (1, 0): "422", (0, 0): "444"}[(pixel.chroma_shift_x, pixel.chroma_shift_y)]
    )
    if (layout == "420" and source.height % 2) or (layout != "444" and source.width % 2):
        layout = "444"
    suffixes = {8: ["", "10le"], 10: ["10le", "12le", ""], 12: ["12le", "10le", ""]}.get(
        pixel.depth, ["12le", "10le", ""]
    )
    if pixel.kind == "rgb":
        suffixes = ["" if pixel.depth == 8 else "10le", ""]
    names = [f"yuv{shape}p{suffix}" for shape in dict.fromkeys((layout, "444", "422", "420")) for suffix in suffixes]
    name = next((name for name in names if name in supported), None)
    if name is None:
        raise OutputError(f"the encoder {codec} takes none of {', '.join(names)}; use --codec libx264")
    target = replace(source, pixel_format=PIXEL_FORMATS[name], chroma_location="left")
    if pixel.kind != "yuv":
        hd = source.height >= 720
        target = replace(target, matrix="bt709" if hd else "bt601", full_range=False)
    return target


def configure(context: av.VideoCodecContext, fmt: VideoFormat) -> None:
    """Tell an encoder what it will be given, and what to say of it."""
    context.width, context.height = fmt.width, fmt.height
    context.pix_fmt = fmt.pixel_format.name
    context.time_base = fmt.time_base
    # Without it FFmpeg throws away the duration of each frame, and the last one's is lost.
    context.flags |= av.codec.context.Flags.frame_duration
    context.colorspace = _H273[fmt.matrix]
    context.color_range = 2 if fmt.full_range else 1
    context.color_primaries = fmt.primaries
    context.color_trc = fmt.transfer
    context.sample_aspect_ratio = fmt.sample_aspect_ratio


class FileSink:
    """A video file, written under a temporary name and renamed when complete.

    path: the suffix names the container. fmt: of every frame that will be written. frame_rate: a hint for the
    encoder; each frame keeps its own time. Frames that do not move forward in time are moved on by one tick.
    sound: instead of a companion's.
    crash_safe: what is under the temporary name can be played at any moment, up to the last second or so (the half
    second that is being collected, and what the encoder has not given yet), with a keyframe every two seconds;
    MP4, MOV and Matroska only.
    `notes` and `kept` may be read after close(): what a user should know, and where an incomplete file was left.

    Raises OutputError. Used by one thread at a time.
    """

    def __init__(
        self,
        path: Path,
        fmt: VideoFormat,
        frame_rate: Fraction,
        encoding: Encoding,
        companion: Companion | None = None,
        overwrite: bool = False,
        sound: LiveSound | None = None,
        crash_safe: bool = False,
    ) -> None:
        self.notes: list[str] = []
        self.kept: Path | None = None
        self._path = path
        self._format = fmt
        self._companion = companion
        self._last_tick: int | None = None
        self._moved = self._written = self._packets = 0
        self._end = Fraction(0)
        self._partial = PartialFile(path, overwrite)
        self._input: av.container.InputContainer | None = None
        try:
            self._open(frame_rate, encoding, sound, crash_safe)
        except BaseException:
            self._release()
            self._partial.discard()
            raise

    def _open(self, frame_rate: Fraction, encoding: Encoding, sound: LiveSound | None, crash_safe: bool) -> None:
        path = self._path
        try:
            self._container = av.open(f"file:{self._partial.path}", "w", metadata_errors="surrogateescape")
        except ValueError as error:
            raise OutputError(f"{path}: no container has the suffix {path.suffix!r}; use .mp4, .mkv or .mov") from error
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        codec = _encoder(encoding.codec)
        # SVT-AV1 would print a page of its settings; there is no option for it.
        os.environ.setdefault("SVT_LOG", "1")
        try:
            stream = self._container.add_stream(codec.name, frame_rate, options=_options(codec.name, encoding))
        except ValueError as error:
            raise OutputError(
                f"{path}: {path.suffix} files cannot hold {encoding.codec}; use --codec for another, or .mkv"
            ) from error
        if not isinstance(stream, av.VideoStream):
            raise OutputError(f"{encoding.codec} is no encoder for video; try --codec {', '.join(_QUALITY)}")
        self._video = stream
        configure(self._video.codec_context, self._format)
        if self._format.display_matrix is not None:
            self._video.set_display_matrix(self._format.display_matrix)
        self._audio_out: av.AudioStream | None = None
        self._next_audio: Callable[[], av.Packet[av.AudioStream] | None] = lambda: None
        if self._companion is not None:
            self._open_companion(self._companion)
        if sound is not None:
            self._audio_out, self._next_audio = sound.add_to(self._container), sound.next_packet
        self._pending = self._next_audio()
        if crash_safe:
            self._make_crash_safe(frame_rate)
        self._container.container_options["movie_timescale"] = str(self._movie_clock())
        try:
            # Explicitly: if writing the header failed inside mux(), the next mux() would crash the process.
            self._container.start_encoding()
        except (av.FFmpegError, OSError, ValueError) as error:
            if getattr(error, "errno", None) in _OF_THE_DISK:
                raise OutputError(f"{path}: {_reason(error)}") from error
            with_sound = "" if self._audio_out is None else f" with {self._audio_out.codec_context.name} sound"
            tuned = encoding.crf is not None or encoding.preset is not None
            raise OutputError(
                f"{path}: a {path.suffix} file of {encoding.codec}{with_sound} at {self._format.width}x"
                f"{self._format.height} cannot be made ({_reason(error)}); "
                f"{'check --crf and --preset' if tuned else 'try a .mkv, or another --codec'}"
            ) from error

    def _make_crash_safe(self, frame_rate: Fraction) -> None:
        options = _CRASH_SAFE.get(self._container.format.name)
        if options is None:
            raise OutputError(f"{self._path}: only a .mp4, .mov or .mkv file survives a crash; record to one of these")
        self._container.container_options.update(options)
        # FFmpeg would keep the last quarter of a megabyte, and wait ten seconds for sound that does not come.
        self._container.container_options.update({"flush_packets": "1", "max_interleave_delta": "1000000"})
        self._video.codec_context.gop_size = round(2 * frame_rate)

    def _movie_clock(self) -> int:
        """Ticks a second in which an MP4 or MOV says where a stream begins (by default only 1000; rounded down).

        A multiple of the video's clock, and fine enough to hit the right tick of the sound's.
        """
        video = self._format.time_base.denominator
        audio = 1 if self._audio_out is None else self._audio_out.codec_context.sample_rate
        return video * -(-max(2 * audio, 1000) // video)

    def _open_companion(self, companion: Companion) -> None:
        try:
            self._input = av.open(f"file:{companion.path}", metadata_errors="surrogateescape")
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{companion.path}: {_reason(error)}") from error
        self._container.metadata.update(_carried(self._input.metadata))
        if not companion.audio or not self._input.streams.audio:
            return
        source = self._input.streams.audio[0]
        # Of a stream that FFmpeg cannot make out there is no codec, or one without a sample rate.
        known = source.codec_context is not None and source.codec_context.sample_rate
        try:
            if not known:
                raise ValueError("unknown codec")
            self._audio_out = self._container.add_stream_from_template(source)
        except ValueError:
            name = source.codec_context.name if known else "of an unknown codec"
            self.notes.append(f"the sound ({name}) cannot go into a {self._path.suffix} file and is left out")
            return
        self._audio_out.metadata.update(_carried(source.metadata))
        self._next_audio = partial(next, self._copied(self._input, source, self._audio_out), None)

    def _copied(
        self, container: av.container.InputContainer, source: av.AudioStream, target: av.AudioStream
    ) -> Iterator[av.Packet[av.AudioStream]]:
        assert self._companion is not None
        # Exact where the file has one clock, as all that need a shift do.
        shift = round(self._companion.start / (source.time_base or 1))
        for packet in container.demux(source):
            # The last one is empty. What an edit list cuts off goes, but for what the decoder needs to start up.
            if packet.dts is None or (packet.is_discard and _time(packet) < -_PRIMING):
                continue
            packet.stream = target
            packet.dts -= shift
            packet.pts = None if packet.pts is None else packet.pts - shift
            yield packet

    def write(self, frame: Frame) -> None:
        """Encode a frame of the sink's format. Reads the planes before it returns."""
        tick = round(frame.pts / self._format.time_base)
        if self._last_tick is not None and tick <= self._last_tick:
            tick = self._last_tick + 1
            self._moved += 1
        self._last_tick = tick
        self._end = frame.pts + (frame.duration or 0)
        self._written += 1
        self._encode(_picture(frame, self._format, tick))

    def close(self, complete: bool) -> None:
        """Finish the file; under its final name if complete, else what there is stays under the temporary one.

        Raises OutputError if the file cannot be finished, or holds another number of pictures than were written.
        """
        finished = False
        try:
            if self._written:
                self._encode(None)
                self._copy_audio(until=None if complete else self._end)
            self._container.close()
            if self._packets != self._written:
                raise OutputError(
                    f"{self._path}: {self._written} pictures were written and {self._packets} came out of the encoder"
                )
            finished = True
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: {_reason(error)}") from error
        finally:
            self._release()
            if not (complete and finished):
                if self._written and _is_playable(self._partial.path):
                    self.kept = self._partial.path
                else:
                    self._partial.discard()
        if complete:
            self._partial.publish()
        if self._moved:
            self.notes.append(f"{self._moved} pictures had a time not after the one before; moved on by a tick")

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            for packet in self._video.encode(picture):
                self._packets += 1
                self._copy_audio(until=_time(packet))
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: {_reason(error)}") from error

    def _copy_audio(self, until: Fraction | None) -> None:
        """Sound up to a time in seconds; to the end if None. Keeps the streams interleaved in the file."""
        if self._pending is None:
            self._pending = self._next_audio()
        while self._pending is not None:
            packet = self._pending
            if until is not None and _time(packet) > until:
                return
            self._container.mux(packet)
            self._pending = self._next_audio()

    def _release(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None
        if hasattr(self, "_container"):
            # What cannot be written now could not be before, which was raised then.
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()


def _encoder(name: str) -> av.Codec:
    try:
        return av.Codec(name, "w")
    except ValueError as error:
        raise OutputError(f"there is no encoder {name!r}; try --codec {', '.join(_QUALITY)}") from error


def _options(codec: str, encoding: Encoding) -> dict[str, str]:
    """codec: the encoder's own name; encoding.codec may be another, such as h264."""
    options = dict(_QUALITY.get(codec, {}))
    for key, value in (("crf", encoding.crf), ("preset", encoding.preset)):
        if value is not None:
            if key not in options:
                raise OutputError(f"the encoder {codec} has no --{key}; use it with {', '.join(_QUALITY)}")
            options[key] = str(value)
    return options


def _picture(frame: Frame, fmt: VideoFormat, tick: int) -> av.VideoFrame:
    picture = av.VideoFrame(fmt.width, fmt.height, fmt.pixel_format.name)
    for plane, source in zip(picture.planes, frame.planes, strict=True):
        rows = np.frombuffer(memoryview(plane), source.dtype).reshape(-1, plane.line_size // source.dtype.itemsize)
        rows[: source.shape[0], : source.shape[1]] = source
    picture.pts = tick
    picture.time_base = fmt.time_base
    picture.duration = round((frame.duration or 0) / fmt.time_base)
    return picture


def _time(packet: av.Packet[Any]) -> Fraction:
    """Decoding time in seconds."""
    assert packet.dts is not None
    assert packet.time_base is not None
    return packet.dts * packet.time_base


def _is_playable(path: Path) -> bool:
    """An MP4 that was not finished is not: where its pictures lie is written last."""
    try:
        with av.open(f"file:{path}") as container:
            return next(container.decode(video=0), None) is not None
    except (av.FFmpegError, OSError, IndexError):
        return False


def _carried(metadata: dict[str, str]) -> dict[str, str]:
    """Without what describes the old file rather than its content; muxers write their own."""
    old = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration", "handler_name", "vendor_id")
    return {key: value for key, value in metadata.items() if key.lower() not in old and not key.startswith("_")}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
