"""How pictures are encoded: the encoder, its options, and the pixel format that it is given."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import av

from dped_live.errors import OutputError
from dped_live.frame import HLG, PIXEL_FORMATS, PQ, WITH_ALPHA, Frame, Matrix, PixelFormat, VideoFormat
from dped_live.layout import pack

QUALITY: dict[str, dict[str, str]] = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "libx265": {"crf": "20", "preset": "medium", "x265-params": "log-level=error:open-gop=0"},
    "libsvtav1": {"crf": "24", "preset": "8"},
    "libvpx-vp9": {"crf": "24", "b:v": "0", "row-mt": "1", "deadline": "good", "cpu-used": "2"},
}
"""Visually near lossless. Encoders that are not here keep their own defaults."""

_NVENC: dict[str, dict[str, str]] = {
    "h264_nvenc": {"rc": "vbr", "cq": "19", "preset": "p5", "tune": "hq"},
    "hevc_nvenc": {"rc": "vbr", "cq": "21", "preset": "p5", "tune": "hq"},
    "av1_nvenc": {"rc": "vbr", "cq": "26", "preset": "p5", "tune": "hq"},
}
"""The encoders of NVIDIA cards, with values near those above; they were chosen by reading, on no card. --crf is their
constant quality `cq`, from 1 to 51; 0 would mean that the encoder chooses."""

_NVENC_FORMATS = {"yuv420p": "yuv420p", "yuv444p": "yuv444p", "yuv420p10le": "p010le", "yuv444p10le": "yuv444p16le"}
"""What NVENC is given for our pixel formats; PyAV converts, exactly. RGB, which it takes too, it would turn into YUV by
itself."""

_NVENC_FAILURES = {
    errno.EPERM: "no NVIDIA driver is loaded",
    errno.EINVAL: "it does not take --preset, --crf or -e as given",
    errno.ENOSYS: "the card cannot encode this, or its driver is too old for this FFmpeg",
    errno.ENOMEM: "the card has no memory, or no session, left for it",
}
"""What FFmpeg's errors of opening it mean; its log, which says more, must not be read (see _check_list)."""

_H273: dict[Matrix, int] = {"rgb": 0, "bt709": 1, "fcc": 4, "bt601": 6, "smpte240m": 7, "bt2020": 9}
_UNSPECIFIED = 2

_SHAPES = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (0, 1): "440", (2, 0): "411", (2, 2): "410"}
"""How chroma is subsampled, by its shifts."""

_NEAREST = {
    "444": ("444", "422", "420"),
    "422": ("422", "444", "420"),
    "420": ("420", "422", "444"),
    "440": ("440", "444", "422", "420"),
    "411": ("411", "422", "444", "420"),
    "410": ("410", "420", "422", "444"),
}
"""What to try instead: first that which has all of the samples, with the fewest more."""

_NAMES = {"bt709": "BT.709", "bt601": "BT.601", "bt2020": "BT.2020"}

_ALPHA = {
    "ffv1": frozenset(WITH_ALPHA.values()),
    "prores_ks": frozenset({"yuva444p10le"}),
    "libvpx-vp9": frozenset({"yuva420p"}),
}
"""What keeps transparency, as decoding shows. Others name such formats and refuse them, or drop it in silence."""

_LIMITED_ONLY = {"prores", "prores_aw", "prores_ks", "mpeg2video", "mpeg4"}
"""Encoders of formats that cannot say that they are in full range."""

_FULL_ONLY = {"mjpeg"}

_SAYS_MASTERING = {"libx265", "libsvtav1"}


_LISTS = ("x264-params", "x264opts", "x265-params", "svtav1-params")
"""Options that are lists of options, KEY=VALUE:KEY=VALUE."""

_OPEN_ENCODER = """
import io, sys, av
av.logging.set_level(av.logging.WARNING)
with av.logging.Capture() as log:
    container = av.open(io.BytesIO(), "w", format="matroska")
    stream = container.add_stream(sys.argv[1], 25, options={sys.argv[2]: sys.argv[3]})
    stream.codec_context.open()
print(*(message.strip() for _, _, message in log if "option" in message))
"""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pictures are encoded.

    codec: the name of an FFmpeg encoder, or "auto" for what `resolved` chooses. crf, preset: if not our default for it.
    pixel_format: FFmpeg's name of what it is given; None for the one nearest to the source. options: of the encoder, by
    FFmpeg's names.
    """

    codec: str = "libx264"
    crf: int | None = None
    preset: str | None = None
    pixel_format: str | None = None
    options: tuple[tuple[str, str], ...] = ()


def encoded_format(source: VideoFormat, encoding: Encoding) -> VideoFormat:
    """The format nearest to `source` that an encoder takes: transparency, subsampling and depth kept where it can.

    RGB and grey become BT.709 (BT.601 below 720 lines) 4:2:0 in limited range, which every player shows, unless
    encoding.pixel_format or the encoder wants otherwise; odd sizes become 4:4:4, because 4:2:0 encoders want even ones.
    Raises OutputError if there is no such encoder, or no format.
    """
    codec = encoder_of(encoding.codec)
    choices = _choices(codec)
    if encoding.pixel_format is None:
        wanted = _nearest(source)
        name = next((name for name in wanted if name in choices), None)
        if name is None:
            raise OutputError(f"the encoder {codec.name} takes none of {', '.join(wanted)}; use --codec libx264")
    else:
        name = encoding.pixel_format
        if name not in choices:
            raise OutputError(f"the encoder {codec.name} takes no --pix-fmt {name}; use one of {', '.join(choices)}")
    pixel, has_alpha = choices[name]
    target = replace(source, pixel_format=pixel, has_alpha=has_alpha, chroma_location="left")
    if codec.name not in _SAYS_MASTERING:
        target = replace(target, mastering=None)
    if pixel.kind == "rgb":
        return replace(target, matrix="rgb", full_range=True)
    if pixel.kind == "gray":
        return replace(target, matrix="rgb", full_range=source.full_range or source.pixel_format.kind == "rgb")
    if source.pixel_format.kind != "yuv":
        matrix: Matrix = "bt709" if source.height >= 720 else "bt601"
        target = replace(target, matrix="bt2020" if source.transfer in (PQ, HLG) else matrix, full_range=False)
    if codec.name in _FULL_ONLY:
        return replace(target, full_range=True)
    return replace(target, full_range=target.full_range and codec.name not in _LIMITED_ONLY)


def _choices(codec: av.Codec) -> dict[str, tuple[PixelFormat, bool]]:
    """The pixel formats, with or without alpha, that both an encoder and color.py can make, by FFmpeg's names."""
    ours = {name: (pixel, False) for name, pixel in PIXEL_FORMATS.items()}
    ours |= {
        stored: (PIXEL_FORMATS[name], True)
        for name, stored in WITH_ALPHA.items()
        if stored in _ALPHA.get(codec.name, ())
    }
    if codec.name in _NVENC:
        # H.264 of 10 bits is encoded by few cards, and played by few devices.
        ours = {name: ours[name] for name in _NVENC_FORMATS if codec.name != "h264_nvenc" or ours[name][0].depth == 8}
        return ours
    return {fmt.name: ours[fmt.name] for fmt in codec.video_formats or [] if fmt.name in ours}


def _nearest(source: VideoFormat) -> list[str]:
    """Pixel formats for a source, the best first."""
    pixel = source.pixel_format
    shape = _SHAPES[pixel.chroma_shift_x, pixel.chroma_shift_y] if pixel.kind == "yuv" else "420"
    shapes = _NEAREST[shape]
    if (shape in ("420", "440", "410") and source.height % 2) or (shape not in ("444", "440") and source.width % 2):
        shapes = _NEAREST["444"]
    depths = {8, 10, 12, 16, pixel.depth}
    deeper, less_deep = (sorted(d for d in depths if d >= pixel.depth), sorted(d for d in depths if d < pixel.depth))
    suffixes = ["" if depth == 8 else f"{depth}le" for depth in (*deeper, *reversed(less_deep))]
    names = [f"yuv{shape}p{suffix}" for shape in shapes for suffix in suffixes]
    names += [f"gbrp{suffix}" for suffix in suffixes] + ["rgb24", "bgr0", "rgb48le"]
    transparent = [WITH_ALPHA[name] for name in names if name in WITH_ALPHA] if source.has_alpha else []
    return transparent + [name for name in names if name in PIXEL_FORMATS]


def configure(context: av.VideoCodecContext, fmt: VideoFormat) -> None:
    """Tell an encoder what it will be given, and what to say of it."""
    context.width, context.height = fmt.width, fmt.height
    context.pix_fmt = _NVENC_FORMATS[fmt.stored_as] if context.codec.name in _NVENC else fmt.stored_as
    context.time_base = fmt.time_base
    # Without it FFmpeg throws away the duration of each frame, and the last one's is lost.
    context.flags |= av.codec.context.Flags.frame_duration
    _describe(context, fmt)
    context.sample_aspect_ratio = fmt.sample_aspect_ratio


def _describe(described: av.VideoCodecContext | av.VideoFrame, fmt: VideoFormat) -> None:
    described.colorspace = _UNSPECIFIED if fmt.pixel_format.kind == "gray" else _H273[fmt.matrix]
    described.color_range = 2 if fmt.full_range else 1
    described.color_primaries = fmt.primaries
    described.color_trc = fmt.transfer


def lost_in(source: VideoFormat, encoded: VideoFormat) -> list[str]:
    """What of `source` is not in `encoded`: one phrase each."""
    before, after = source.pixel_format, encoded.pixel_format
    lost = []
    if source.has_alpha and not encoded.has_alpha:
        lost.append("transparency")
    if after.depth < before.depth:
        lost.append(f"{before.depth} bits become {after.depth}")
    if after.kind == "gray" and before.kind != "gray":
        lost.append("colour")
    elif before.kind == "rgb" and after.kind == "yuv":
        lost.append(f"RGB becomes {_NAMES[encoded.matrix]} {_ratio(after)}")
    elif before.kind == "yuv" and (
        after.chroma_shift_x > before.chroma_shift_x or after.chroma_shift_y > before.chroma_shift_y
    ):
        lost.append(f"{_ratio(before)} becomes {_ratio(after)}")
    if source.mastering is not None and encoded.mastering is None:
        lost.append("HDR10 mastering data")
    return lost


def _ratio(pixel: PixelFormat) -> str:
    return ":".join(_SHAPES[pixel.chroma_shift_x, pixel.chroma_shift_y])


def hdr_options(codec: str, fmt: VideoFormat) -> dict[str, str]:
    """Options that make an encoder say the mastering data of `fmt`; joined to others of the same key by a colon."""
    data = fmt.mastering
    if data is None or codec not in _SAYS_MASTERING:
        return {}
    parts = []
    points = {"G": data.green, "B": data.blue, "R": data.red, "WP": data.white}
    if codec == "libx265":
        # In steps of 0.00002, and of 0.0001 cd/m2.
        if data.luminance is not None:
            dark, bright = (round(value * 10_000) for value in data.luminance)
            where = "".join(f"{name}({round(p[0] * 50_000)},{round(p[1] * 50_000)})" for name, p in points.items() if p)
            parts.append(f"master-display={where}L({bright},{dark})")
        if data.max_cll or data.max_fall:
            parts.append(f"max-cll={data.max_cll},{data.max_fall}")
        return {"x265-params": ":".join(parts)} if parts else {}
    if data.luminance is not None:
        least, most = data.luminance
        where = "".join(f"{name}({float(p[0]):.5f},{float(p[1]):.5f})" for name, p in points.items() if p)
        parts.append(f"mastering-display={where}L({float(most):.4f},{float(least):.4f})")
    if data.max_cll or data.max_fall:
        parts.append(f"content-light={data.max_cll},{data.max_fall}")
    return {"svtav1-params": ":".join(parts)} if parts else {}


def encoder_of(name: str) -> av.Codec:
    """FFmpeg's encoder of that name. Raises OutputError if there is none."""
    try:
        return av.Codec(name, "w")
    except ValueError as error:
        raise OutputError(f"there is no encoder {name!r}; try --codec {', '.join(QUALITY)}") from error


def options_of(codec: str, encoding: Encoding, fmt: VideoFormat) -> dict[str, str]:
    """What to open an encoder with. codec: its own name; encoding.codec may be another, such as h264. fmt: of what it
    is given.

    Raises OutputError for what the encoder does not have.
    """
    options = dict(QUALITY.get(codec) or _NVENC.get(codec, {}))
    if codec in _NVENC and encoding.crf is not None and not 1 <= encoding.crf <= 51:
        raise OutputError(f"--crf {encoding.crf}: of {codec} it is from 1 (best) to 51")
    for key, value in (("crf", encoding.crf), ("preset", encoding.preset)):
        if value is not None:
            name = "cq" if key == "crf" and codec in _NVENC else key
            if name not in options:
                raise OutputError(f"the encoder {codec} has no --{key}; use it with {', '.join(QUALITY)}")
            options[name] = str(value)
    for key, value in encoding.options:
        if key in _LISTS:
            _check_list(codec, key, value)
    for key, value in (*hdr_options(codec, fmt).items(), *encoding.options):
        options[key] = f"{options[key]}:{value}" if key in _LISTS and key in options else value
    return options


def resolved(encoding: Encoding, fmt: VideoFormat) -> tuple[Encoding, str | None]:
    """The encoding with a codec by name, and if it was "auto", what was chosen and why.

    fmt: of the source. auto is H.264 by the NVIDIA card, where that works, else by libx264.
    """
    if encoding.codec != "auto":
        return encoding, None
    if encoding.preset is not None or encoding.options:
        raise OutputError("--preset and -e are for one encoder; name it with --codec, instead of auto")
    on_card = replace(encoding, codec="h264_nvenc")
    try:
        check_hardware(on_card, encoded_format(fmt, on_card))
    except OutputError as error:
        why = str(error).partition(";")[0]
        return replace(encoding, codec="libx264"), f"--codec auto: libx264, since {why}"
    return on_card, "--codec auto: h264_nvenc, which works here"


def check_hardware(encoding: Encoding, fmt: VideoFormat) -> None:
    """Raise OutputError if the encoder is a card's, and does not encode a picture of that format here."""
    codec = encoder_of(encoding.codec).name
    if codec not in _NVENC:
        return
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    configure(context, fmt)
    context.framerate = Fraction(25)
    context.options = options_of(codec, encoding, fmt)
    try:
        packets = [*context.encode(av.VideoFrame(fmt.width, fmt.height, fmt.stored_as)), *context.encode(None)]
    except (av.FFmpegError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = _NVENC_FAILURES.get(number) if number is not None else None
        raise OutputError(
            f"{codec} does not encode {fmt.width}x{fmt.height} {fmt.stored_as} here "
            f"({reason or getattr(error, 'strerror', None) or error}); use --codec libx264"
        ) from error
    if not packets:
        raise OutputError(f"{codec} encodes nothing here; use --codec libx264")


def check_used(encoding: Encoding, left: Mapping[str, str]) -> None:
    """Raise OutputError if an encoder that was opened has left an option of ours unused: it has none of that name."""
    for key, _ in encoding.options:
        if key in left:
            name = encoder_of(encoding.codec).name
            raise OutputError(f"the encoder {name} has no option {key!r}; see: ffmpeg -h encoder={name}")


def _check_list(codec: str, key: str, value: str) -> None:
    """Raise OutputError if an encoder does not understand a list of options, of which it only warns in its log.

    In another process: to read FFmpeg's log in this one would hang decoders (CONTRIBUTING.md).
    """
    command = [sys.executable, "-c", _OPEN_ENCODER, codec, key, value]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    if result.returncode or result.stdout.strip():
        reason = (result.stdout.strip() or result.stderr.strip() or "it crashes").splitlines()[-1]
        raise OutputError(f"the encoder {codec} does not understand -e {key}={value}: {reason}")


def to_picture(frame: Frame, fmt: VideoFormat, tick: int) -> av.VideoFrame:
    """A copy of a frame of that format for an encoder. tick: its time, in units of fmt.time_base."""
    picture = av.VideoFrame(fmt.width, fmt.height, fmt.stored_as)
    pack(frame.planes, frame.alpha, picture.planes, fmt)
    # ProRes' encoder asks the pictures and not its context.
    _describe(picture, fmt)
    picture.pts = tick
    picture.time_base = fmt.time_base
    picture.duration = round((frame.duration or 0) / fmt.time_base)
    return picture
