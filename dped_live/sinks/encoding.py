"""How pictures are encoded: the encoder, its options, and the pixel format that it is given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import av
import numpy as np

from dped_live.errors import OutputError
from dped_live.frame import PIXEL_FORMATS, Frame, Matrix, VideoFormat

QUALITY: dict[str, dict[str, str]] = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "libx265": {"crf": "20", "preset": "medium", "x265-params": "log-level=error:open-gop=0"},
    "libsvtav1": {"crf": "24", "preset": "8"},
    "libvpx-vp9": {"crf": "24", "b:v": "0", "row-mt": "1", "deadline": "good", "cpu-used": "2"},
}
"""Visually near lossless. Encoders that are not here keep their own defaults."""

_H273: dict[Matrix, int] = {"bt709": 1, "fcc": 4, "bt601": 6, "smpte240m": 7, "bt2020": 9}


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

    codec: the name of an FFmpeg encoder. crf, preset: if not our default for it. options: of the encoder, by
    FFmpeg's names.
    """

    codec: str = "libx264"
    crf: int | None = None
    preset: str | None = None
    options: tuple[tuple[str, str], ...] = ()


def encoded_format(source: VideoFormat, codec: str) -> VideoFormat:
    """The format nearest to `source` that an encoder takes: depth and subsampling kept where it can.

    RGB becomes BT.709 (BT.601 below 720 lines) 4:2:0 in limited range, which every player shows; odd sizes become
    4:4:4, because 4:2:0 encoders want even ones. Raises OutputError if there is no such encoder, or no format.
    """
    supported = {fmt.name for fmt in encoder_of(codec).video_formats or []}
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


def encoder_of(name: str) -> av.Codec:
    """FFmpeg's encoder of that name. Raises OutputError if there is none."""
    try:
        return av.Codec(name, "w")
    except ValueError as error:
        raise OutputError(f"there is no encoder {name!r}; try --codec {', '.join(QUALITY)}") from error


def options_of(codec: str, encoding: Encoding) -> dict[str, str]:
    """What to open an encoder with. codec: its own name; encoding.codec may be another, such as h264.

    Raises OutputError for what the encoder does not have.
    """
    options = dict(QUALITY.get(codec, {}))
    for key, value in (("crf", encoding.crf), ("preset", encoding.preset)):
        if value is not None:
            if key not in options:
                raise OutputError(f"the encoder {codec} has no --{key}; use it with {', '.join(QUALITY)}")
            options[key] = str(value)
    for key, value in encoding.options:
        if key in _LISTS:
            _check_list(codec, key, value)
        options[key] = f"{options[key]}:{value}" if key in _LISTS and key in options else value
    return options


def check_used(codec: str, encoding: Encoding, left: Mapping[str, str]) -> None:
    """Raise OutputError if an encoder that was opened has left an option of ours unused: it has none of that name."""
    for key, _ in encoding.options:
        if key in left:
            raise OutputError(f"the encoder {codec} has no option {key!r}; see: ffmpeg -h encoder={codec}")


def _check_list(codec: str, key: str, value: str) -> None:
    """Raise OutputError if an encoder does not understand a list of options, of which it only warns in its log.

    In another process: to read FFmpeg's log in this one would hang decoders (see FACTS of PyAV in CONTRIBUTING.md).
    """
    command = [sys.executable, "-c", _OPEN_ENCODER, codec, key, value]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    if result.returncode or result.stdout.strip():
        reason = (result.stdout.strip() or result.stderr.strip() or "it crashes").splitlines()[-1]
        raise OutputError(f"the encoder {codec} does not understand -e {key}={value}: {reason}")


def to_picture(frame: Frame, fmt: VideoFormat, tick: int) -> av.VideoFrame:
    """A copy of a frame of that format for an encoder. tick: its time, in units of fmt.time_base."""
    picture = av.VideoFrame(fmt.width, fmt.height, fmt.pixel_format.name)
    for plane, source in zip(picture.planes, frame.planes, strict=True):
        rows = np.frombuffer(memoryview(plane), source.dtype).reshape(-1, plane.line_size // source.dtype.itemsize)
        rows[: source.shape[0], : source.shape[1]] = source
    picture.pts = tick
    picture.time_base = fmt.time_base
    picture.duration = round((frame.duration or 0) / fmt.time_base)
    return picture
