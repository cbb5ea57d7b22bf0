"""What goes beside the pictures of a file: its other streams, attachments, chapters and metadata.

What the new container takes is copied as it is; text and sound that it does not take are converted; what is left is
dropped. All of it is known before the first picture is written.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import av
from av.bitstream import BitStreamFilterContext
from av.subtitles.codeccontext import SubtitleCodecContext

from dped_live.clock import Clock
from dped_live.errors import InputError

_PRIMING = Fraction(1, 10)
"""Seconds of sound before the first that is heard: AAC needs up to three packets (64 ms) to start up."""

_TEXT = {"mp4": "mov_text", "mov": "mov_text", "matroska": "ass", "webm": "webvtt"}
"""Container -> what text subtitles are converted to: of what it takes, the one that keeps most of their style."""

_PICTURES = {"dvbsub", "dvdsub", "pgssub", "xsub"}
"""Subtitles that are pictures of text."""

_SOUND = {"webm": "libopus"}
"""Container -> what sound is converted to; AAC where it is not named."""

_IN_QUICKTIME = {
    "bod": "tib",
    "cym": "wel",
    "cze": "ces",
    "deu": "ger",
    "ell": "gre",
    "eus": "baq",
    "fas": "per",
    "fre": "fra",
    "hye": "arm",
    "isl": "ice",
    "kat": "geo",
    "mkd": "mac",
    "msa": "may",
    "mya": "bur",
    "nld": "dut",
    "rum": "ron",
    "slo": "slk",
    "sqi": "alb",
    "zho": "chi",
}
"""ISO 639-2 has two codes for these languages; FFmpeg's MOV muxer knows the one on the right."""

_ENOUGH_ERRORS = 100
"""So many errors of reading in a row are the end of the file."""

_LEAP = 3600
"""Seconds from one packet of sound to the next, beyond which the second is taken for damaged."""

_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""What sound of so many channels is converted to: of all their orders the one that encoders know."""

_SOUND_RATE = 96_000
"""Bits a second for each channel of converted sound: enough for nobody to hear it."""

_OLD = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration", "handler_name", "vendor_id")
"""Metadata that describe the old file rather than its content; muxers write their own."""

_MATROSKA_STATISTICS = ("BPS", "DURATION", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES")

_Kind = Literal["video", "audio", "subtitle", "data", "attachment", "cover", "chapters"]
Fate = Literal["enhanced", "kept", "converted", "dropped", "left out"]


@dataclass(frozen=True, slots=True)
class StreamFate:
    """What becomes of one stream of a source.

    index: in the source; -1 for chapters, which are the container's own. codec: FFmpeg's name. fate: left out is what
    was not wanted, dropped what cannot be kept. why: one phrase, for what is not simply kept.
    """

    index: int
    kind: _Kind
    codec: str
    fate: Fate
    language: str | None = None
    title: str | None = None
    why: str = ""

    def __str__(self) -> str:
        details = ", ".join(filter(None, (self.codec, self.language, self.title)))
        number = "" if self.index < 0 else f" {self.index}"
        what = f"{self.kind}{number} ({details})" if details else f"{self.kind}{number}"
        return f"{what} {self.fate}: {self.why}" if self.why else f"{what} {self.fate}"


class _Track(Protocol):
    """One stream of the output that is made from one of the source. Packets come in the source's order."""

    target: Any

    def accept(self, packet: av.Packet[Any]) -> Iterator[av.Packet[Any]]:
        """What becomes of a packet, whose times are the output's already."""
        ...

    def finish(self) -> Iterator[av.Packet[Any]]:
        """What is still held back."""
        ...


class Companion:
    """The other streams of a file, on their way into a new one.

    path: the file that the frames come from. video: the index of the stream that they are from. start: seconds that
    were taken off the frames' times (FileSource.start). length: seconds from there at which everything ends, if the
    file is cut; cut_begin: whether what is before `start` is cut off, too. audio: whether sound goes along.

    fates: see StreamFate; after add_to(). notes: what went wrong with a stream; may grow until the last packet.

    Owns the file that it opens; close() releases it. Raises InputError. Used by one thread at a time.
    """

    def __init__(
        self,
        path: Path,
        video: int,
        start: Fraction = Fraction(0),
        length: Fraction | None = None,
        cut_begin: bool = False,
        audio: bool = True,
    ) -> None:
        self.path = path
        self.fates: list[StreamFate] = []
        self.notes: list[str] = []
        self._video = video
        self._start = start
        self._length = length
        self._cut_begin = cut_begin
        self._audio = audio
        self._tracks: dict[int, _Track] = {}
        self._times: dict[int, Fraction] = {}
        self._damaged: Counter[int] = Counter()
        self._covers: list[av.Packet[Any]] = []
        self._input = self._opened()

    def close(self) -> None:
        """Release the file."""
        self._input.close()

    def add_to(self, container: av.container.OutputContainer, picture: av.VideoStream) -> None:
        """Add to a container, whose header is not written yet, all that it takes. picture: its stream of our frames."""
        form = container.format.name
        container.metadata.update(_carried(self._input.metadata))
        for stream in self._input.streams:
            if stream.index == self._video:
                picture.metadata.update(_carried(stream.metadata))
                picture.disposition = stream.disposition
                self.fates.append(_fate(stream, "enhanced"))
            else:
                self.fates.append(self._add(container, form, stream, picture))
        self._add_chapters(container, form)

    def packets(self) -> Iterator[av.Packet[Any]]:
        """All packets for the new container, each with its stream, roughly in order of time."""
        yield from self._covers
        if self._tracks:
            yield from self._demuxed()
            for track in self._tracks.values():
                yield from track.finish()
        for fate in self.fates:
            if count := self._damaged[fate.index]:
                self.notes.append(f"{count} damaged packets of {fate.kind} {fate.index} were passed over")

    def _demuxed(self) -> Iterator[av.Packet[Any]]:
        for packet in self._packets_on_clock():
            index = packet.stream.index
            if index in self._tracks and self._placed(packet):
                try:
                    yield from self._tracks[index].accept(packet)
                except av.FFmpegError:
                    self._damaged[index] += 1

    def _packets_on_clock(self) -> Iterator[av.Packet[Any]]:
        """All packets of all streams, as the source reads them: the file's Clock has to see them all."""
        clock = Clock(self._input.format.name)
        errors = 0
        while errors < _ENOUGH_ERRORS:
            try:
                for packet in self._input.demux():
                    errors = 0
                    if packet.size:
                        clock.correct(packet)
                        yield packet
                return
            except IndexError:
                return  # PyAV, at the end: of a stream that was not there at the beginning
            except (av.FFmpegError, OSError):
                # What comes after it may be whole. Where the file has gone, the source of the pictures says so.
                errors += 1

    def _opened(self) -> av.container.InputContainer:
        try:
            return av.open(f"file:{self.path}", metadata_errors="surrogateescape")
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{self.path}: {_reason(error)}") from error

    def _placed(self, packet: av.Packet[Any]) -> bool:
        """Give a packet its time in the output; False where it has no place there."""
        dts = packet.pts if packet.dts is None else packet.dts
        if dts is None:
            return False
        # Exact where the file has one clock, as all that need a shift do.
        tick = packet.time_base
        shift = round(self._start / tick)
        packet.dts = dts - shift
        pts = packet.pts if packet.stream.type == "video" else None  # of sound and text the next is the next shown
        packet.pts = packet.dts if pts is None else pts - shift
        time, duration = packet.pts * tick, (packet.duration or 0) * tick
        if not self._is_possible(packet.stream, time):
            return False
        # What an edit list cuts off goes, but for what the decoder needs to start up.
        if packet.is_discard and time < -_PRIMING:
            return False
        if self._length is not None and time >= self._length:
            return False
        if self._cut_begin and time < 0:
            if time + duration <= 0:
                return False
            if packet.stream.type == "subtitle":  # on screen already when the file begins
                packet.pts = packet.dts = 0
                time, duration = Fraction(0), time + duration
        if packet.stream.type == "subtitle":
            remains = duration if self._length is None else min(duration, self._length - time)
            packet.duration = round(remains / tick)
        return True

    def _is_possible(self, stream: Any, time: Fraction) -> bool:
        """Whether a packet may have this time after the one before; what is damaged may have any."""
        before = self._times.get(stream.index, time)
        self._times[stream.index] = time
        if stream.type == "subtitle" or abs(time - before) <= _LEAP:
            return True
        self._damaged[stream.index] += 1
        return False

    def _add(self, container: Any, form: str, stream: Any, picture: av.VideoStream) -> StreamFate:
        if stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic:
            return self._add_cover(container, form, stream)
        if stream.type == "attachment":
            return self._add_attachment(container, form, stream)
        if stream.type == "audio" and not self._audio:
            return _fate(stream, "left out", "--no-audio")
        if stream.type == "data" and "timecode" in stream.metadata:
            return self._add_timecode(stream, picture)
        if stream.type == "data" and self._is_chapters(stream):
            return _fate(stream, "converted", "written anew from the chapters")
        refused = _refusal(stream, form)
        if form == "mp4" and stream.type == "audio" and _codec(stream).startswith("pcm_"):
            refused = "few players read it from MP4; use .mov or .mkv to keep it"
        if refused is None and form in ("mp4", "mov") and _is_framed(stream):
            first = self._first_packet(stream.index)
            if first is not None and _parameters(stream, first) is not None:
                target = container.add_stream_from_template(stream, opaque=True)
                target.codec_context.extradata = _parameters(stream, first)
                _describe(target, stream)
                self._tracks[stream.index] = _Unframed(stream, target)
                return _fate(stream, "kept")
            refused = "sound without the parameters that a decoder needs"
        if refused is None:
            target = container.add_stream_from_template(stream, opaque=True)
            _describe(target, stream)
            self._tracks[stream.index] = _Copied(target)
            why = "as it is; only one video stream is enhanced" if stream.type == "video" else ""
            return _fate(stream, "kept", why)
        if stream.codec_context is not None:
            if stream.type == "subtitle" and form in _TEXT and stream.codec_context.name not in _PICTURES:
                self._tracks[stream.index] = text = _ConvertedText(container, stream, _TEXT[form])
                _describe(text.target, stream)
                return _fate(stream, "converted", f"to {_TEXT[form]}, which {_name(form)} can hold")
            codec = _SOUND.get(form, "aac")
            if stream.type == "audio" and _is_known(stream) and codec in container.supported_codecs:
                self._tracks[stream.index] = sound = _ConvertedSound(container, stream, codec)
                _describe(sound.target, stream)
                return _fate(stream, "converted", f"to {codec}; {refused}")
        return _fate(stream, "dropped", refused)

    def _add_cover(self, container: Any, form: str, stream: Any) -> StreamFate:
        packet = self._first_packet(stream.index)
        data = None if packet is None else bytes(packet)
        kinds = {"mjpeg": "jpg", "png": "png", "bmp": "bmp", "gif": "gif", "webp": "webp"}
        kind = kinds.get(stream.codec_context.name)
        if packet is None or data is None or kind is None:
            return _fate(stream, "dropped", "a picture that cannot be read")
        if form == "matroska":
            name = stream.metadata.get("filename", f"cover.{kind}")
            mime = stream.metadata.get("mimetype", f"image/{'jpeg' if kind == 'jpg' else kind}")
            container.add_attachment(name, mime, data)
        elif form == "mp4" and _refusal(stream, form) is None:
            target = container.add_stream_from_template(stream, opaque=True)
            target.disposition = av.stream.Disposition.attached_pic
            packet.stream, packet.pts, packet.dts = target, 0, 0
            self._covers.append(packet)
        else:
            return _fate(stream, "dropped", f"{_name(form)} has no place for it; use .mp4 or .mkv")
        return _fate(stream, "kept")

    def _first_packet(self, index: int) -> av.Packet[Any] | None:
        """From the file opened anew: what is demuxed here would be missing later."""
        with self._opened() as container, contextlib.suppress(av.FFmpegError):
            for packet in container.demux(container.streams[index]):
                return packet if packet.size else None
        return None

    def _add_attachment(self, container: Any, form: str, stream: Any) -> StreamFate:
        if form != "matroska":
            return _fate(stream, "dropped", f"{_name(form)} cannot hold attachments; use .mkv")
        name = stream.metadata.get("filename", f"attachment {stream.index}")
        container.add_attachment(name, stream.mimetype or "application/octet-stream", stream.data)
        return _fate(stream, "kept")

    def _add_timecode(self, stream: Any, picture: av.VideoStream) -> StreamFate:
        if self._cut_begin:
            return _fate(stream, "dropped", "the timecode of a cut file would be wrong")
        # As the pictures' metadata, from which the MP4 and MOV muxers make the stream anew.
        picture.metadata["timecode"] = stream.metadata["timecode"]
        return _fate(stream, "kept")

    def _is_chapters(self, stream: Any) -> bool:
        """Whether a data stream of an MP4 or MOV file is the text of its chapters: one packet for each."""
        chapters = len(self._input.chapters())
        return "mp4" in self._input.format.name and stream.name == "bin_data" and 0 < chapters == stream.frames

    def _add_chapters(self, container: Any, form: str) -> None:
        chapters = []
        for chapter in self._input.chapters():
            tick = chapter["time_base"] or Fraction(1, 1000)
            begin, end = (chapter[side] * tick - self._start for side in ("start", "end"))
            if self._length is not None:
                end = min(end, self._length)
            begin = max(begin, Fraction(0))
            if begin >= end and not (begin == end and self._length is None):
                continue
            chapters.append({**chapter, "start": round(begin / tick), "end": round(end / tick)})
        if not chapters:
            return
        holds = form in ("mp4", "mov", "matroska", "webm")
        if holds:
            container.set_chapters(chapters)
        why = "" if holds else f"{_name(form)} cannot hold them; use .mp4 or .mkv"
        self.fates.append(StreamFate(-1, "chapters", "", "kept" if holds else "dropped", why=why))


class _Copied:
    """Packets as they are."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def accept(self, packet: av.Packet[Any]) -> Iterator[av.Packet[Any]]:
        packet.stream = self.target
        yield packet

    def finish(self) -> Iterator[av.Packet[Any]]:
        return iter(())


class _Unframed:
    """AAC as a transport stream has it, each packet with a header of its own, without these."""

    def __init__(self, source: Any, target: Any) -> None:
        self._filter = BitStreamFilterContext("aac_adtstoasc", in_stream=source)
        self.target = target

    def accept(self, packet: av.Packet[Any]) -> Iterator[av.Packet[Any]]:
        tick = packet.time_base
        for bare in self._filter.filter(packet):
            bare.stream, bare.time_base = self.target, tick
            yield bare

    def finish(self) -> Iterator[av.Packet[Any]]:
        return iter(())


def _is_framed(stream: Any) -> bool:
    return stream.type == "audio" and stream.codec_context.name == "aac" and not stream.codec_context.extradata


def _parameters(stream: Any, packet: av.Packet[Any]) -> bytes | None:
    """The decoder's parameters, from the header of a packet. An MP4 that grows has to have them before its first."""
    try:
        for bare in BitStreamFilterContext("aac_adtstoasc", in_stream=stream).filter(packet):
            if bare.has_sidedata("new_extradata"):
                return bytes(bare.get_sidedata("new_extradata"))
    except av.FFmpegError:
        pass
    return None


class _ConvertedText:
    """Subtitles of text, decoded to events of ASS, as FFmpeg knows text, and encoded for the container."""

    def __init__(self, container: av.container.OutputContainer, source: Any, codec: str) -> None:
        self._decoder: Any = source.codec_context
        self._decoder.open(strict=False)
        self.target: Any = container.add_stream(codec)
        self.target.time_base = self._tick = source.time_base
        self._encoder = cast(SubtitleCodecContext, self.target.codec_context)
        self._encoder.subtitle_header = self._decoder.subtitle_header
        self._encoder.time_base = source.time_base

    def accept(self, packet: av.Packet[Any]) -> Iterator[av.Packet[Any]]:
        found = self._decoder.decode2(packet)
        lines = [line.ass for line in found or () if line.ass]
        if not lines:
            return
        # Several at once become one event: the encoder takes one.
        text = lines[0] + b"".join(b"\\N" + line.split(b",", 8)[-1] for line in lines[1:])
        shown = packet.duration or round(found.end_display_time / 1000 / self._tick)
        encoded = self._encoder.encode_subtitle(av.subtitles.subtitle.SubtitleSet.create(text, 0, shown))
        encoded.stream, encoded.time_base = self.target, self._tick
        encoded.pts = encoded.dts = packet.pts
        encoded.duration = shown
        encoded.is_keyframe = True
        yield encoded

    def finish(self) -> Iterator[av.Packet[Any]]:
        return iter(())


class _ConvertedSound:
    """Sound decoded and encoded again, each sample at its time."""

    def __init__(self, container: av.container.OutputContainer, source: Any, codec: str) -> None:
        rate = source.codec_context.sample_rate
        if rate not in (av.Codec(codec, "w").audio_rates or ()):
            rate = 48000
        layout = _LAYOUTS[source.codec_context.channels]
        bits = _SOUND_RATE * source.codec_context.channels
        self.target: Any = container.add_stream(codec, rate, layout=layout, bit_rate=bits)

    def accept(self, packet: av.Packet[Any]) -> Iterator[av.Packet[Any]]:
        for frame in packet.decode():  # the decoder has its times from the packet, which has the output's
            yield from self.target.encode(frame)

    def finish(self) -> Iterator[av.Packet[Any]]:
        with contextlib.suppress(av.FFmpegError):  # nothing was ever encoded
            yield from self.target.encode(None)


def _refusal(stream: Any, form: str) -> str | None:
    """Why a container does not take a stream as it is; None if it does. Found out by writing a header to nowhere."""
    name = _codec(stream)
    cannot = f"{_name(form)} cannot hold {name}"
    if stream.type in ("subtitle", "data") and form not in ("mp4", "mov", "matroska", "webm"):
        return f"{cannot}; use .mkv"  # these muxers take anything, and nobody can read it
    unknown = stream.codec_context is None or (stream.type == "audio" and not stream.codec_context.sample_rate)
    if unknown and stream.type != "data":
        return "its codec is unknown"
    trial = av.open(io.BytesIO(), "w", format=form)
    try:
        trial.add_stream_from_template(stream, opaque=True)
        trial.start_encoding()
    except (av.FFmpegError, ValueError):
        # Not closed: without a header there is nothing to finish.
        return f"{cannot}; use .{'mov' if stream.type == 'data' else 'mkv'}"
    with contextlib.suppress(av.FFmpegError):  # some do not end a file without a packet
        trial.close()
    return None


def _name(form: str) -> str:
    """For people."""
    return {"mp4": "MP4", "mov": "MOV", "matroska": "Matroska", "webm": "WebM", "mpegts": "MPEG-TS"}.get(form, form)


def _is_known(sound: Any) -> bool:
    """Of a stream that FFmpeg cannot make out there is a codec without a sample rate."""
    return bool(sound.codec_context.sample_rate) and sound.codec_context.channels in _LAYOUTS


def _fate(stream: Any, fate: Fate, why: str = "") -> StreamFate:
    kind: _Kind = stream.type
    if kind == "video" and stream.disposition & av.stream.Disposition.attached_pic:
        kind = "cover"
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    language = tags.get("language")
    return StreamFate(
        stream.index, kind, _codec(stream), fate, None if language == "und" else language, tags.get("title"), why
    )


def _codec(stream: Any) -> str:
    if stream.codec_context is None:
        return getattr(stream, "name", None) or "unknown"
    return str(stream.codec_context.name)


def _describe(target: Any, source: Any) -> None:
    target.metadata.update(_carried(source.metadata))
    if target.container.format.name == "mov":
        language = target.metadata.get("language", "")
        target.metadata["language"] = _IN_QUICKTIME.get(language, language)
    target.disposition = source.disposition


def _carried(metadata: dict[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _OLD and not key.startswith("_") and not key.startswith(_MATROSKA_STATISTICS)
    }


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
