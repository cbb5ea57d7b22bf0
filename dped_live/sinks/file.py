"""Frames into a video file, through PyAV (FFmpeg), beside all else of the file that they came from."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import av

from dped_live.errors import OutputError
from dped_live.frame import Frame, VideoFormat
from dped_live.partial import PartialFile, shortened
from dped_live.sinks.companion import Companion, StreamFate
from dped_live.sinks.encoding import (
    QUALITY,
    Encoding,
    check_hardware,
    check_used,
    configure,
    encoder_of,
    options_of,
    to_picture,
)
from dped_live.sinks.finished_part import FinishedPart, JobKey, job_of
from dped_live.sinks.verification import Tally, Verification, verify

_OF_THE_DISK = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}
"""Errors of writing a header that have nothing to do with what is written."""

_IN_FRAGMENTS = {"movflags": "hybrid_fragmented+delay_moov+frag_keyframe"}
_GROWING = {"mp4": _IN_FRAGMENTS, "mov": _IN_FRAGMENTS, "matroska": {"cluster_time_limit": "2000"}, "webm": {}}
"""By container: what makes a file that can be played while it grows. An MP4 that is finished is an ordinary one."""

_AT_ONCE = {
    "mp4": {"frag_duration": "500000"},
    "mov": {"frag_duration": "500000"},
    "matroska": {"cluster_time_limit": "500"},
}
"""By container: what half a second (500,000 us) needs to be played by itself."""

_NOTHING = 4096
"""Bytes of a file in which there is no group of pictures yet."""

_REFUSED = 100
"""Packets that a container may refuse, as it does with some that are damaged, before the run fails."""

_KEYFRAMES = 2
"""Seconds from one keyframe to the next, at most: what is between them is lost if the program is killed."""

_LONGEST_GROUP = 250
"""Pictures, at most; x264's own."""


class LiveSound(Protocol):
    """Sound that is encoded while it comes."""

    def add_to(self, container: av.container.OutputContainer) -> av.AudioStream:
        """Called once, before the first packet is asked for."""
        ...

    def next_packet(self) -> av.Packet[av.AudioStream] | None:
        """The oldest that was not taken yet; None if there is none yet."""
        ...


class FileSink:
    """A video file, written under a temporary name, and renamed when it is complete and was read back.

    path: the suffix names the container. fmt: of every frame that will be written. frame_rate: a hint for the
    encoder; each frame keeps its own time. Frames that do not move forward in time are moved on by one tick.
    companion: what goes into the file beside the frames; becomes this sink's, which closes it. sound: instead.
    live: what is under the temporary name is never older than a second or so; MP4, MOV and Matroska only.
    strict: raise if a stream of the companion would be dropped. job: written into the file. resume: if the temporary
    file of the same job is there, go on with it.

    In MP4, MOV, Matroska and WebM what is under the temporary name can be played at any moment, even if the program is
    killed, but for what the encoder has not given yet and for the last group of pictures, of two seconds at most.

    done: frames that the file has already; write() is to be called with those after. streams: what becomes of each
    stream of the companion. `notes`, `kept` and `report` may be read after close(): what a user should know, where an
    incomplete file was left, and what reading the file back has found.

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
        live: bool = False,
        *,
        strict: bool = False,
        job: JobKey | None = None,
        resume: bool = False,
    ) -> None:
        self.notes: list[str] = []
        self.kept: Path | None = None
        self.report: Verification | None = None
        self.done = 0
        self._path = path
        self._format = fmt
        self._companion = companion
        self._last_tick: int | None = None
        self._moved = self._written = self._encoded = self._refused = 0
        self._end = Fraction(0)
        self._tallies: dict[int, Tally] = {}
        self._last_dts: dict[int, int] = {}  # in ticks of the container
        self._earlier: FinishedPart | None = None
        self._reordered: deque[Fraction] = deque()
        self._first_own = Fraction(0)
        try:
            self._partial = PartialFile(path, overwrite, None if job is None else resume)
            self._aside = path.with_name(shortened(path.stem, f".part-earlier{path.suffix}"))
            if resume:
                self._earlier = self._find_earlier(job)
        except BaseException:
            self._release()
            raise
        try:
            self._open(frame_rate, encoding, sound, live, job)
            if strict and (dropped := [str(fate) for fate in self.streams if fate.fate == "dropped"]):
                raise OutputError(f"{path}: --strict, and {'; '.join(dropped)}")
            if self._earlier is not None:
                self._check_encoder(self._earlier)
                self.done = self._written = self._encoded = self._earlier.frames
        except BaseException:
            self._release()
            self._partial.discard()
            if self._earlier is not None:
                self._earlier.path.replace(self._partial.path)
            raise

    @staticmethod
    def is_result(path: Path, job: JobKey) -> bool:
        """Whether a finished file is what a job has written. It has its name only if reading it back found it whole."""
        return path.is_file() and job_of(path) == job

    @property
    def streams(self) -> list[StreamFate]:
        return [] if self._companion is None else self._companion.fates

    def _find_earlier(self, job: JobKey | None) -> FinishedPart | None:
        """What an earlier run has finished. It is moved aside, and stays until this run has more."""
        found = [
            FinishedPart(path)
            for path in (self._partial.path, self._aside)
            if path.exists() and path.stat().st_size > _NOTHING
        ]
        if not found:
            return None
        best = max(found, key=lambda part: part.frames)
        key = job_of(best.path)
        if key is None or job is None:
            raise OutputError(f"{best.path}: nothing in it says what it was made from; add -y to begin anew")
        if (difference := key.difference(job)) is not None:
            raise OutputError(f"{best.path}: was made from or with {difference}; add -y to begin anew")
        if not best.frames:
            return None
        best.move_to(self._aside)
        return best

    def _open(
        self, frame_rate: Fraction, encoding: Encoding, sound: LiveSound | None, live: bool, job: JobKey | None
    ) -> None:
        path = self._path
        # FFmpeg would make an iPod's file of a .m4v, which holds less.
        form = "mp4" if path.suffix.lower() == ".m4v" else None
        try:
            self._container = av.open(f"file:{self._partial.path}", "w", form, metadata_errors="surrogateescape")
        except ValueError as error:
            raise OutputError(f"{path}: no container has the suffix {path.suffix!r}; use .mp4, .mkv or .mov") from error
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        name = self._container.format.name
        if (live and name not in _AT_ONCE) or (self._earlier is not None and name not in _GROWING):
            what = "survives a crash; record to" if live else "can be gone on with; write"
            raise OutputError(f"{path}: only a .mp4, .mov or .mkv file {what} one of these")
        self._video = self._add_video(frame_rate, encoding)
        self._next_packet: Callable[[], av.Packet[Any] | None] = lambda: None
        beside: list[str] = []
        if self._companion is not None:
            self._companion.add_to(self._container, self._video)
            self._next_packet = partial(next, self._companion.packets(), None)
            beside = [fate.codec for fate in self.streams if fate.fate in ("kept", "converted") and fate.codec]
        if sound is not None:
            beside = [f"{sound.add_to(self._container).codec_context.name} sound"]
            self._next_packet = sound.next_packet
        if job is not None:
            self._video.metadata["handler_name"] = job.tag
        # FFmpeg would keep the last quarter of a megabyte, which may be minutes.
        self._container.container_options.update({"flush_packets": "1", **_GROWING.get(name, {})})
        if live:
            # ... and wait ten seconds for sound that does not come.
            self._container.container_options.update({"max_interleave_delta": "1000000", **_AT_ONCE[name]})
        self._container.container_options["movie_timescale"] = str(self._movie_clock())
        self._write_header(encoding, beside)
        self._tallies = {
            stream.index: Tally(stream.type)
            for stream in self._container.streams
            if stream.type != "attachment" and not stream.disposition & av.stream.Disposition.attached_pic
        }
        self._pending = self._next_packet()

    def _add_video(self, frame_rate: Fraction, encoding: Encoding) -> av.VideoStream:
        codec = encoder_of(encoding.codec)
        check_hardware(encoding, self._format)
        # SVT-AV1 would print a page of its settings; there is no option for it.
        os.environ.setdefault("SVT_LOG", "1")
        options = options_of(codec.name, encoding, self._format)
        try:
            stream = self._container.add_stream(codec.name, frame_rate, options=options)
        except ValueError as error:
            suffix = self._path.suffix
            raise OutputError(
                f"{self._path}: {suffix} files cannot hold {encoding.codec}; use --codec for another, or .mkv"
            ) from error
        if not isinstance(stream, av.VideoStream):
            raise OutputError(f"{encoding.codec} is no encoder for video; try --codec {', '.join(QUALITY)}")
        configure(stream.codec_context, self._format)
        if self._format.has_alpha and codec.name == "libvpx-vp9" and self._container.format.name in ("mp4", "mov"):
            raise OutputError(
                f"{self._path}: only a .webm or .mkv file can hold the transparency of VP9; use one of these, or "
                f"--pix-fmt yuv420p"
            )
        if self._format.display_matrix is not None:
            stream.set_display_matrix(self._format.display_matrix)
        if not codec.intra_only:
            stream.codec_context.gop_size = max(1, min(round(_KEYFRAMES * frame_rate), _LONGEST_GROUP))
        return stream

    def _write_header(self, encoding: Encoding, beside: list[str]) -> None:
        """beside: what there is but pictures, for the message."""
        try:
            # Explicitly: if writing the header failed inside mux(), the next mux() would crash the process.
            self._container.start_encoding()
        except (av.FFmpegError, OSError, ValueError) as error:
            if getattr(error, "errno", None) in _OF_THE_DISK:
                raise OutputError(f"{self._path}: {_reason(error)}") from error
            tuned = encoding.crf is not None or encoding.preset is not None or encoding.options
            what = f"{encoding.codec}{' with ' if beside else ''}{', '.join(beside)}"
            raise OutputError(
                f"{self._path}: a {self._path.suffix} file of {what} at {self._format.width}x{self._format.height} "
                f"cannot be made ({_reason(error)}); "
                f"{'check --crf, --preset and -e' if tuned else 'try a .mkv, or another --codec'}"
            ) from error
        check_used(encoding, self._video.codec_context.options)

    def _movie_clock(self) -> int:
        """Ticks a second in which an MP4 or MOV says where a stream begins (by default only 1000; rounded down).

        A multiple of the video's clock, and fine enough to hit the right tick of the sound's.
        """
        video = self._format.time_base.denominator
        rates = [stream.codec_context.sample_rate for stream in self._container.streams.audio]
        return video * -(-max(2 * max(rates, default=0), 1000) // video)

    def _check_encoder(self, earlier: FinishedPart) -> None:
        """Decoders get the parameters of an encoder once for all of a file."""
        if earlier.extradata and (own := self._extradata()) and own != earlier.extradata:
            raise OutputError(
                f"{earlier.path}: its pictures were encoded in another way than here (on another machine, or by "
                f"another version of the encoder); add -y to begin anew"
            )

    def _go_on(self, earlier: FinishedPart, frame: Frame) -> None:
        """Begin with the pictures that an earlier run has finished. frame: the one that follows them."""
        assert earlier.after is not None
        # A container that begins at 0 moves all of its streams on by the little that sound is ahead.
        tick = earlier.tick
        ahead = round((earlier.after - frame.pts) / tick)
        if not 0 <= ahead * tick < 1:
            raise OutputError(
                f"{earlier.path}: it ends at {float(earlier.after):.3f} s, where this video has no picture; "
                f"add -y to begin anew"
            )
        times = [time - ahead * tick for time in earlier.times]
        for packet in earlier.packets():
            assert packet.dts is not None
            assert packet.pts is not None
            packet.dts -= ahead
            packet.pts -= ahead
            packet.stream = self._video
            self._mux_beside(until=_time(packet))
            self._mux(packet)
        self._last_tick = round(times[-1] / self._format.time_base)
        # An encoder decodes B-frames ahead of their time: what of the last times is left is for the next packets.
        last = self._last_dts[self._video.index] * (self._video.time_base or 1)
        self._reordered.extend(time for time in times if time > last)
        self._first_own = frame.pts

    def _extradata(self) -> bytes:
        """The encoder's parameters as containers have them; none where an MP4 does not hold what it makes."""
        memory = io.BytesIO()
        try:
            with av.open(memory, "w", format="mp4") as container:
                container.add_stream_from_template(self._video, opaque=True)
                container.container_options["movflags"] = "empty_moov"
                container.start_encoding()
            memory.seek(0)
            with av.open(memory) as container:
                return container.streams.video[0].codec_context.extradata or b""
        except (av.FFmpegError, ValueError, IndexError):
            return b""

    def write(self, frame: Frame) -> None:
        """Encode a frame of the sink's format. Reads the planes before it returns."""
        tick = round(frame.pts / self._format.time_base)
        if self._earlier is not None and self._written == self.done:
            self._go_on(self._earlier, frame)
        if self._last_tick is not None and tick <= self._last_tick:
            tick = self._last_tick + 1
            self._moved += 1
        self._last_tick = tick
        self._end = frame.pts + (frame.duration or 0)
        self._written += 1
        self._encode(to_picture(frame, self._format, tick))

    def close(self, complete: bool) -> None:
        """Finish the file; under its final name if complete, else what there is stays under the temporary one.

        Raises OutputError if the file cannot be finished, or does not hold what was written; it stays under its
        temporary name then.
        """
        finished = False
        try:
            if self._written > self.done:
                self._encode(None)
                self._mux_beside(until=None if complete else self._end)
            elif self.done and complete:
                raise OutputError(f"{self._path}: this video has no picture after the {self.done} that were finished")
            self._container.close()
            if self._encoded != self._written:
                raise OutputError(
                    f"{self._path}: {self._written} pictures were written and {self._encoded} came out of the encoder"
                )
            if complete:
                try:
                    self.report = verify(self._partial.path, list(self._tallies.values()), self._refused)
                except OutputError as error:
                    raise OutputError(f"{self._path}: {error}") from error
            finished = True
        except av.error.ArgumentError as error:
            # An MP4 says of some sound, as AC-3, what only its first packet tells.
            empty = [tally.kind for tally in self._tallies.values() if not tally.packets]
            hint = f"; there is no {' and '.join(dict.fromkeys(empty))} in this part of it: use a .mkv" if empty else ""
            raise OutputError(f"{self._path}: {_reason(error)}{hint}") from error
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: {_reason(error)}") from error
        finally:
            self._release()
            if not (complete and finished):
                self._keep()
        if complete:
            self._partial.publish()
            self._aside.unlink(missing_ok=True)
        if self._companion is not None:
            self.notes += self._companion.notes
        if self._refused:
            self.notes.append(f"{self._refused} damaged packets of sound or text were left out")
        if self._moved:
            self.notes.append(f"{self._moved} pictures had a time not after the one before; moved on by a tick")

    def _keep(self) -> None:
        """Of what there is under temporary names, keep the one with most pictures."""
        if self._written > self.done and _is_playable(self._partial.path):
            self.kept = self._partial.path
            self._aside.unlink(missing_ok=True)
            return
        self._partial.discard()
        if self._earlier is not None:
            self._earlier.path.replace(self._partial.path)
            self.kept = self._partial.path

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            for packet in self._video.encode(picture):
                self._encoded += 1
                if picture is None and self._written == 1:
                    packet.dts = packet.pts  # libx265 leaves it unset
                if self._reordered and packet.dts is not None and _time(packet) < self._first_own:
                    packet.dts = round(self._reordered.popleft() / packet.time_base)
                self._mux_beside(until=_time(packet))
                self._mux(packet)
                if packet.is_keyframe and not self._partial.path.exists():
                    # A system lets a program write to what was removed, for hours and in vain.
                    raise OutputError(f"{self._path}: {self._partial.path} was removed while it was written")
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: {_reason(error)}") from error

    def _mux_beside(self, until: Fraction | None) -> None:
        """Packets of the other streams up to a time in seconds; all if None. Keeps the file interleaved."""
        if self._pending is None:
            self._pending = self._next_packet()
        while self._pending is not None:
            packet = self._pending
            if until is not None and _time(packet) > until:
                return
            self._mux(packet)
            self._pending = self._next_packet()

    def _mux(self, packet: av.Packet[Any]) -> None:
        """Write a packet, its time of decoding after the last one's of its stream, in ticks of the container."""
        index, tick, container_tick = packet.stream.index, packet.time_base, packet.stream.time_base
        if packet.dts is None:
            packet.dts = packet.pts
        assert packet.dts is not None
        last = self._last_dts.get(index)
        if last is not None and round(_time(packet) / container_tick) <= last:
            packet.dts = math.ceil((last + 1) * container_tick / tick)
        if packet.pts is None or packet.pts < packet.dts:
            packet.pts = packet.dts
        self._last_dts[index] = round(_time(packet) / container_tick)
        if index in self._tallies:
            self._tallies[index].count(packet)
        try:
            self._container.mux(packet)
        except av.error.ArgumentError:
            # It may be another one that was waiting. If it was one of the pictures', reading the file back will tell.
            self._refused += 1
            if self._companion is None or self._refused > _REFUSED:
                raise

    def _release(self) -> None:
        if self._companion is not None:
            self._companion.close()
        if hasattr(self, "_container"):
            # What cannot be written now could not be before, which was raised then.
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()


def _time(packet: av.Packet[Any]) -> Fraction:
    """Decoding time in seconds."""
    assert packet.dts is not None
    assert packet.time_base is not None
    return packet.dts * packet.time_base


def _is_playable(path: Path) -> bool:
    """A file that is not finished may not be: where the pictures lie may be written last."""
    try:
        with av.open(f"file:{path}") as container:
            return next(container.decode(video=0), None) is not None
    except (av.FFmpegError, OSError, IndexError):
        return False


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
