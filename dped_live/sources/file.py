"""Frames of a video file, through PyAV (FFmpeg)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.packet import PacketSideData, packet_sidedata_type_from_literal

from dped_live.clock import STARTS_ANYWHERE, Clock
from dped_live.errors import InputError
from dped_live.frame import Decode, Frame, Hdr
from dped_live.sources.deinterlace import Deinterlacer
from dped_live.sources.picture import PictureReader, decoder_of, decoder_on_card

_MATROSKA = frozenset({"matroska"})
_MOV = frozenset({"mov"})
_INDEXED = _MATROSKA | _MOV
"""Containers that say where each keyframe is. In others it would be guessed."""

_AVI = frozenset({"avi"})
_PROMISING = _INDEXED | _AVI | {"flv", "asf", "mxf"}
"""Containers whose header says how long they are. For the others FFmpeg looks at what there is."""

_ENOUGH_ERRORS = 100
"""So many errors of reading in a row are the end of the file."""

_CHECKED_BLOCKS = 16
"""Of a megabyte: what is read of a file, after its last packet, to know whether the file has come to its end."""

_REORDERED, _AHEAD = 32, 1 << 26
"""Packets, and bytes of them, that are looked at to find out when pictures without a timestamp are shown."""

_FEW = 3
"""Pictures that may be missing or damaged without a word about the whole."""

_Timed = tuple[av.VideoFrame, Fraction, Fraction | None]
"""A picture, when it is shown, and for how long if that is known."""


class FileSource:
    """The frames of a file's video stream, every one with its own presentation time.

    Opens the file and decodes the first picture at once, so that `format` is what the decoder really gives. Of several
    video streams the default one, else the longest, is taken; cover pictures never.

    begin, end: seconds of the clock that a player shows. The frames from begin on, with the one that is on screen then,
    up to but without end; their times count from begin, rounded down to a tick of the video.
    skip: so many of them are decoded and not given.
    deinterlace: whether interlaced pictures become progressive. hdr: see PictureReader.
    decode: "cuda": by an NVIDIA card; "auto": where that works; a first picture is decoded to know.
    card: the number of the card on which pictures stay that it decodes, if they can (see frame.CardPlanes). CUDA's
    context there must be the current one of the calling thread. None: they come to the host.

    format: see VideoFormat; pictures that change size or format in mid-stream are converted to the first one's.
    video_index: which stream of the file the pictures are from.
    start: seconds that were taken off every timestamp, after the file's Clock has corrected it; who copies other
    streams of the file does the same.
    frame_rate: average, a hint for encoders. frame_count: an estimate, None if nothing is known.
    duration: seconds from time 0 to the end of the longest stream, as the file says it; None if it does not.
    notes: what a user should know of this file; may grow until the last frame.
    shortfall: after the last frame, one line that says why there are fewer pictures than the file promises; None: all
    are there.

    Raises InputError from the constructor and from frames().
    """

    def __init__(
        self,
        path: Path,
        *,
        begin: Fraction | None = None,
        end: Fraction | None = None,
        deinterlace: bool = True,
        hdr: Hdr = "sdr",
        skip: int = 0,
        decode: Decode = "cpu",
        card: int | None = None,
    ) -> None:
        self.path = path
        self.shortfall: str | None = None
        self._skip = skip
        self._deinterlace = deinterlace
        self._decode_by = decode
        self._card = None if decode == "cpu" else card
        self._own_notes: list[str] = []
        self._open()
        try:
            zero = _clock_start(self._container)
            self.start = zero + (begin or 0) // self._tick * self._tick
            self._begin = None if begin is None else self.start
            self._end = None if end is None else zero + end
            self._first = self._first_picture()
            if self._first is None and self._card is not None:
                # It may be that only the pictures cannot stay there.
                self._card = None
                self.close()
                self._open()
                self._first = self._first_picture()
            if self._first is None and self._decode_by != "cpu":
                self._leave_card("the NVIDIA card decodes no picture of it")
                self.close()
                self._open()
                self._first = self._first_picture()
            if self._first is None:
                raise InputError(f"{path}: {self._why_nothing()}; nothing written")
            if begin is None:
                # What is before time 0 would not be shown.
                stamp = self._first.pts
                first = self._unstamped_begin() if stamp is None else stamp * self._tick
                self.start = min(self.start, round(first / self._tick) * self._tick)
            self._reader = PictureReader(path, self._stream, self._first, hdr, self._card)
            self.format = self._reader.format
            self.frame_rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
            self.duration = self._whole_duration()
            if self.duration is not None and self.duration < -1 and self._promises():
                raise self._nothing_left()
        except BaseException:
            self.close()
            raise
        self.frame_count = self._estimate()

    @property
    def notes(self) -> list[str]:
        return [*self._deinterlacer.notes, *self._reader.notes, *self._own_notes]

    def frames(self) -> Iterator[Frame]:
        """Every picture once, in presentation order. The planes are views of the decoder's own, which it keeps."""
        for picture, time, duration in itertools.islice(self._cut(), self._skip, None):
            yield self._reader.frame(picture, time - self.start, duration)

    def close(self) -> None:
        """Release the file."""
        if hasattr(self, "_decoder"):
            # One with frame threads that is closed in mid-stream may otherwise never return.
            self._decoder.flush_buffers()
        self._container.close()

    # From packets in the file's order to pictures in the order of their presentation.

    def _open(self) -> None:
        path = self.path
        try:
            self._size = path.stat().st_size
            if not path.is_file():
                raise InputError(f"{path}: not a regular file")
            # The prefix keeps FFmpeg from reading a protocol into a name such as `a:b.mp4`.
            self._container = av.open(f"file:{path}", metadata_errors="surrogateescape")
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{path}: {_reason(error)}") from error
        try:
            self._stream = _video_stream(self._container, path)
            self._decoder = self._open_decoder()
        except BaseException:
            self._container.close()
            raise
        self._deinterlacer = Deinterlacer(self._deinterlace)
        self.video_index = self._stream.index
        self._tick = self._stream.time_base or Fraction(1, 90000)
        self._clock = Clock(self._container.format.name)
        self._packets = self._damaged = self._encrypted = 0
        self._position = 0
        self._last_end = 0.0
        self._decoded: Iterator[av.VideoFrame] = iter(())
        self._before_stamps: Fraction | None = None

    def _open_decoder(self) -> av.VideoCodecContext:
        if self._decode_by != "cpu":
            try:
                return decoder_on_card(self._stream, self._card)
            except InputError as error:
                self._leave_card(str(error))
        decoder = decoder_of(self._stream)
        decoder.thread_type = "AUTO"
        return decoder

    def _leave_card(self, reason: str) -> None:
        """Go on without the card, or raise InputError if it was asked for."""
        if self._decode_by == "cuda":
            raise InputError(f"{self.path}: --decode cuda: {reason}; use --decode cpu")
        self._decode_by = "cpu"
        self._note(f"decoded by the CPU, since {reason}")

    def _is(self, containers: frozenset[str]) -> bool:
        return not containers.isdisjoint(self._container.format.name.split(","))

    def _first_picture(self) -> av.VideoFrame | None:
        """Decode the first picture, as late in the file as nothing is lost of what is shown from `begin` on."""
        back = Fraction(0)
        while self._begin is not None and self._begin > back and self._is(_INDEXED):
            try:
                self._container.seek(int((self._begin - back) // self._tick), stream=self._stream)
            except (av.FFmpegError, OSError):
                break
            packets = self._video_packets()
            keyframe = next(packets, None)
            self._decoded = self._deinterlacer.map(
                self._decode(itertools.chain([] if keyframe is None else [keyframe], packets))
            )
            first = next(self._decoded, None)
            # Seeking goes by times of decoding, and what is shown before a keyframe needs what comes before it. Some
            # keyframes need several pictures to become whole, and are not shown.
            whole = None if keyframe is None else keyframe.pts
            shown = None if first is None else first.pts
            if whole is not None and shown is not None and shown <= whole <= self._begin / self._tick:
                return first
            back = 2 * back + 1
            self.close()
            self._open()
        self._decoded = self._deinterlacer.map(self._decode(self._timed_ahead(self._video_packets())))
        return next(self._decoded, None)

    def _timed_ahead(self, packets: Iterator[av.Packet[Any]]) -> Iterator[av.Packet[Any]]:
        """The packets; where the first have no timestamps, they are counted up to where there are some."""
        ahead: list[av.Packet[Any]] = []
        stamps: list[int] = []
        size = 0
        for packet in packets:
            ahead.append(packet)
            size += packet.size
            stamps += [] if packet.pts is None else [packet.pts]
            # The first ones in the file's order need not be the first to be shown.
            if (len(ahead) == 1 and (stamps or packet.dts is not None)) or len(stamps) > _REORDERED or size > _AHEAD:
                break
        missing = len(ahead) - len(stamps)
        if stamps and missing:
            self._before_stamps = min(stamps) * self._tick - missing / (self._stream.average_rate or Fraction(25))
        return itertools.chain(ahead, packets)

    def _video_packets(self) -> Iterator[av.Packet[Any]]:
        """The stream's packets that hold data. Every timestamp is on the one clock of the file."""
        errors = 0
        while errors < _ENOUGH_ERRORS:
            try:
                # Of all streams: the clock needs them, and FFmpeg reads them anyway.
                for packet in self._container.demux():
                    errors = 0
                    if packet.size:
                        self._position = max(self._position, packet.pos or 0)
                        self._put_on_clock(packet)
                        if packet.stream_index == self._stream.index:
                            yield packet
                break
            except IndexError:
                # PyAV, at the end: of a stream that was not there at the beginning.
                break
            except (av.FFmpegError, OSError) as error:
                if isinstance(error, OSError):
                    self._check_that_it_can_be_read()
                # What comes after it may be whole.
                self._damaged += 1
                errors += 1
        self._check_that_it_can_be_read()

    def _put_on_clock(self, packet: av.Packet[Any]) -> None:
        self._clock.correct(packet)
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            self._last_end = max(self._last_end, float((stamp + (packet.duration or 0)) * packet.time_base))

    def _check_that_it_can_be_read(self) -> None:
        """Raise InputError if it cannot, where reading came to its end.

        To some of FFmpeg's demuxers that is the end of the file, and to others a short file is an error of reading.
        """
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                file.seek(self._position)
                for _ in range(_CHECKED_BLOCKS):
                    if not file.read(1 << 20):
                        break
        except FileNotFoundError:  # it was removed, and what is open can still be read
            return
        except OSError as error:
            raise InputError(f"{self.path}: {_reason(error)}") from error
        if size < self._size:
            raise InputError(
                f"{self.path}: has become shorter while it was read; copy it to a local disk and try again"
            )

    def _decode(self, packets: Iterable[av.Packet[Any]]) -> Iterator[av.VideoFrame]:
        context = self._decoder
        for packet in packets:
            self._packets += 1
            if packet.has_sidedata("encryption_info"):
                self._encrypted += 1
                continue
            try:
                yield from context.decode(packet)
            except av.FFmpegError:
                self._damaged += 1
            if self._decode_by != "cpu" and self._damaged == self._packets == _ENOUGH_ERRORS:
                return  # the card does not decode such a stream
        # An error ends PyAV's draining, and what the decoder's other threads hold would be lost. To FFmpeg a packet
        # with nothing but side data is not the end, but as good for getting what one more thread has made.
        abilities, ability = context.codec.capabilities, av.codec.Capabilities
        last: list[av.Packet[Any] | None] = [None]
        if abilities & ability.frame_threads:
            last = [*(_packet_without_data() for _ in range(context.thread_count)), None]
        for nothing in last:
            try:
                for picture in context.decode(nothing):
                    picture.time_base = self._tick  # which PyAV knows from packets with data only
                    yield picture
            except av.FFmpegError:
                # Decoders that hold no pictures back find fault with the packet itself.
                self._damaged += bool(abilities & ability.delay)

    # From pictures to frames.

    def _pictures(self) -> Iterator[av.VideoFrame]:
        """The first one, which was decoded to know the format, and the others."""
        # What comes before the first whole picture is not shown; what comes later and refers to lost ones, rather than
        # nothing up to the next keyframe.
        self._decoder.flags |= av.codec.context.Flags.output_corrupt
        while self._first is not None:
            picture, self._first = self._first, None
            yield picture
            self._first = next(self._decoded, None)

    def _timed(self) -> Iterator[_Timed]:
        """All pictures with their times, as the file counts them."""
        tick, usual = self._tick, 1 / self.frame_rate
        exact = self._unstamped_begin()
        before: Fraction | None = None
        longest = Fraction(0)
        invented = corrupt = 0
        # AVI has times of decoding only; what FFmpeg makes of them for B-frames goes back and forth.
        by_decoding = self._is(_AVI)
        for picture in self._pictures():
            stamp = picture.dts if by_decoding else picture.pts
            if stamp is not None:
                exact = stamp * tick
            elif not by_decoding:
                invented += 1
            time = round(exact / tick) * tick
            longest, before = max(longest, time - (time if before is None else before)), time
            corrupt += picture.is_corrupt
            known = picture.duration * tick if picture.duration else None
            yield picture, time, known
            # A duration in ticks is less exact than the rate.
            exact += known if known is not None and abs(known - usual) > tick else usual
        time = round(exact / tick) * tick
        if invented:
            self._note(f"{_pictures(invented, 'has', 'have')} no timestamp; they follow each other at the frame rate")
        if self._clock.joins:
            where = ", ".join(f"{join - float(self.start):.1f} s" for join in self._clock.joins[:5])
            self._note(f"its clock starts anew at {where}: joined recordings, which now come one after the other")
        if self._damaged:
            self._note(f"{self._damaged} damaged packet{' was' if self._damaged == 1 else 's were'} passed over")
        if self._encrypted:
            self._note(f"{self._encrypted} encrypted packet{' was' if self._encrypted == 1 else 's were'} passed over")
        if corrupt:
            self._note(f"{_pictures(corrupt, 'is', 'are')} damaged")
        self.shortfall = self._what_is_missing(time, max(longest, _FEW * usual))

    def _unstamped_begin(self) -> Fraction:
        """When pictures without a timestamp begin; usually a file has none at all."""
        if self._before_stamps is not None:
            return self._before_stamps
        return Fraction(self._container.start_time or 0, av.time_base)

    def _shown(self) -> Iterator[_Timed]:
        """The same, each up to the next one: what files call a duration is often the distance of decoding times."""
        last: _Timed | None = None
        for following in self._timed():
            if last is not None:
                gap = following[1] - last[1]
                yield last[0], last[1], gap if gap > 0 else last[2]
            last = following
        if last is not None:
            picture, time, duration = last
            end = self._promised_end() if self._is(_MOV) else None
            if duration is not None and end is not None and end > time:
                duration = min(duration, end - time)
            yield picture, time, duration

    def _cut(self) -> Iterator[_Timed]:
        """The pictures from begin up to but without end; the first is shown at begin at the earliest."""
        on_screen: _Timed | None = None
        begin, end = self._begin, self._end
        for picture, time, duration in self._shown():
            if end is not None and time >= end:
                if on_screen is not None and begin is not None:
                    yield on_screen[0], begin, end - begin
                return
            if begin is not None and time <= begin:
                on_screen = picture, time, duration
                continue
            if on_screen is not None and begin is not None:
                yield on_screen[0], begin, time - begin
                on_screen = None
            begin = None
            yield picture, time, duration if duration is None or end is None else min(duration, end - time)
        if begin is not None:
            last = None if on_screen is None else on_screen[1] + (on_screen[2] or 1 / self.frame_rate)
            if on_screen is None or last is None or last <= begin:
                raise self._nothing_left()
            yield on_screen[0], begin, (last if end is None else min(last, end)) - begin

    # What the file says of itself.

    def _promises(self) -> bool:
        return self._is(_PROMISING)

    def _container_end(self) -> Fraction | None:
        """When the longest stream ends, in seconds as the file counts them."""
        if self._container.duration is None:
            return None
        # FFmpeg's durations count from the first timestamp on, but for Matroska's.
        begin = 0 if self._is(_MATROSKA) else self._container.start_time or 0
        return Fraction(begin + self._container.duration, av.time_base)

    def _whole_duration(self) -> Fraction | None:
        end = self._container_end()
        return None if end is None else (end if self._end is None else min(end, self._end)) - self.start

    def _estimate(self) -> int | None:
        if self._stream.frames and self._begin is None and self._end is None:
            return self._stream.frames
        seconds = self._stream.duration * self._tick if self._stream.duration else None
        if self.duration is not None:
            late = max(Fraction(0), (self._stream.start_time or 0) * self._tick - self.start)
            seconds = min(seconds or self.duration, self.duration - late)
        # Some files name their clock as their frame rate.
        return round(seconds * self.frame_rate) if seconds and self.frame_rate <= 240 else None

    def _what_is_missing(self, end: Fraction, pause: Fraction) -> str | None:
        """end: of the last picture; pause: how long a picture may stand, in seconds."""
        if self._damaged + self._encrypted > max(_FEW, self._packets / 10):
            return f"{self._damaged + self._encrypted} of {self._packets} packets could not be decoded"
        promised = self._promised_end() if self._promises() else None
        if promised is None or promised - end <= max(pause, min(Fraction(1), promised / 10)):
            return None
        shown, whole = float(end - self.start), float(promised - self.start)
        return f"the pictures end at {shown:.1f} s of {whole:.1f} s"

    def _promised_end(self) -> Fraction | None:
        """When the pictures should end, in seconds as the file counts them; None if it does not say."""
        if not self._is(_MATROSKA):
            # Of a shortened AVI FFmpeg tells the duration by what is left, and the number of pictures as it was.
            length = max(self._stream.duration or 0, self._stream.frames if self._is(_AVI) else 0)
            if length:
                return ((self._stream.start_time or 0) + length) * self._tick
        elif told := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", self._stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(Fraction, told.groups())
            return 3600 * hours + 60 * minutes + seconds
        # The end of the longest stream, which may not be ours; but if the file was cut, that one is too short as well.
        end = self._container_end()
        return end if end is not None and self._last_end <= 0.9 * end else None

    def _why_nothing(self) -> str:
        if self._encrypted:
            return "its pictures are encrypted"
        return "no picture in it can be decoded"

    def _nothing_left(self) -> InputError:
        begin = float((self._begin or 0) - _clock_start(self._container))
        return InputError(f"{self.path}: it has ended before {begin:.6g} s, where --start is; nothing written")

    def _note(self, note: str) -> None:
        self._own_notes.append(note)


def _clock_start(container: av.container.InputContainer) -> Fraction:
    """What the clock of a file shows at its first moment, if that means nothing; else 0."""
    if STARTS_ANYWHERE.isdisjoint(container.format.name.split(",")):
        return Fraction(0)
    # Not the container's own start_time, which is rounded to microseconds.
    starts = [
        stream.start_time * stream.time_base
        for stream in container.streams
        if stream.start_time is not None and stream.time_base is not None
    ]
    return min(starts, default=Fraction(0))


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
    known = [stream for stream in videos if stream.codec_context is not None]
    if not known:
        raise InputError(f"{path}: FFmpeg has no decoder for its video; nothing written")
    return max(
        known,
        key=lambda stream: (bool(stream.disposition & av.stream.Disposition.default), stream.frames, -stream.index),
    )


def _packet_without_data() -> av.Packet[Any]:
    packet: av.Packet[Any] = av.Packet()
    data = PacketSideData(packet_sidedata_type_from_literal("fallback_track"), 4)  # type: ignore[call-arg]
    data.update(bytes(4))
    packet.set_sidedata(data)
    return packet


def _pictures(count: int, one: str, several: str) -> str:
    return f"{count} picture{f' {one}' if count == 1 else f's {several}'}"


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "not a video or photo that can be read, or damaged at its very beginning"
    return getattr(error, "strerror", None) or str(error)
