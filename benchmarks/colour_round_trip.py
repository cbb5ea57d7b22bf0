"""What becomes of a video's colours on the way through dped-live: a table of every kind of video, in COLOUR.md.

    python benchmarks/colour_round_trip.py > benchmarks/COLOUR.md

Each clip is made from samples/lake.mp4 in the format to be judged and stored without loss (FFV1 in Matroska). It is
read with FileSource and written with FileSink three times: as it is (the encoder alone), through an Enhancer at
strength 0, and through one at strength 1 with a network that changes nothing, so that the planes really become RGB
and planes again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dped_live import color
from dped_live.enhance import Enhancer
from dped_live.frame import HLG, PIXEL_FORMATS, PQ, Frame, Matrix, VideoFormat
from dped_live.pipeline import run
from dped_live.scene_statistics import ExactPolicy
from dped_live.sinks.encoding import Encoding, encoded_format, lost_in
from dped_live.sinks.file import FileSink
from dped_live.sources.file import FileSource
from dped_live.statistics import Statistics

FRAMES, WIDTH, HEIGHT = 3, 192, 108
RATE = Fraction(25)
LAKE = Path(__file__).parents[1] / "samples/lake.mp4"
MATRICES: tuple[Matrix, ...] = ("bt601", "bt709", "bt2020", "fcc", "smpte240m")
ENCODERS = {8: "libx264", 10: "libx264", 12: "libx265"}


HEAD = """# Colours: what becomes of them on the way through

Made by [colour_round_trip.py](colour_round_trip.py), which says how: clips of samples/lake.mp4 at 192x108, stored
without loss, through FileSource, Enhancer and FileSink, and read again. PSNR is in dB, of code values. Encoders have
the quality that dped-live gives them."""

SAME_KIND = """
## Planes that stay what they are

**alone**: source to sink with nothing between, so the encoder's loss. **strength 0**: through the Enhancer, which
hands on the planes themselves. **pass-through**: strength 1 with a network that changes nothing: planes to RGB and
back. Each: luma / chroma. The last columns are the loss of the conversion alone (pass-through into FFV1, which has
none of its own): largest (mean) error in code values of the format's own depth. Chroma that is subsampled loses fine
detail: it is interpolated to the size of luma and averaged back. libx264 does not always make the same of the same
pictures, hence the tenths of a dB between the first two. Of PQ the pictures end at 1000 cd/m2. The
clips have no colours outside RGB; those of other videos are clipped, as by players.

| planes | matrix | range | encoder | alone | strength 0 | pass-through | luma error | chroma error |
|---|---|---|---|---|---|---|---|---|"""

OTHER_KIND = """
## RGB, grey and transparency

Judged as RGB, at pass-through; transparency by itself. Of RGB in 4:2:0 the colours of single pixels are lost,
whatever the encoder; with `--pix-fmt` it stays RGB. Grey stays so to the encoder's loss. "given up" is what dped-live
says before it begins.

| planes | encoder | becomes | PSNR | of the transparency | given up |
|---|---|---|---|---|---|"""


class PassThrough:
    """A backend that changes nothing."""

    device = torch.device("cpu")
    description = "pass-through"
    in_float32 = None
    shares = False

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return image.clone() if out is None else out.copy_(image)

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:  # noqa: ARG002
        return image.clone(), self.statistics(image)

    def statistics(self, image: Tensor) -> Statistics:  # noqa: ARG002
        return Statistics(torch.zeros(1, 0, 1), torch.zeros(1, 0, 1))


class Unchanged:
    """Frames as they come."""

    def map(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        yield from frames


def pictures() -> list[Tensor]:
    """RGB (1, 3, H, W) in [0, 1], in more than 8 bits: pixels are averaged."""
    source = FileSource(LAKE)
    found = []
    for frame in source.frames():
        rgb = color.to_rgb([torch.from_numpy(plane.copy()) for plane in frame.planes], frame.format)
        found.append(torch.nn.functional.interpolate(rgb, size=(HEIGHT, WIDTH), mode="area"))
        if len(found) == FRAMES:
            break
    source.close()
    return found


def clip(path: Path, fmt: VideoFormat, rgb: list[Tensor]) -> Path:
    """A lossless one of that format."""
    ramp = np.linspace(0, (1 << fmt.pixel_format.depth) - 1, WIDTH)[None].repeat(HEIGHT, axis=0)
    alpha = ramp.astype(np.uint8 if fmt.pixel_format.depth == 8 else np.uint16) if fmt.has_alpha else None
    sink = FileSink(path, fmt, RATE, Encoding("ffv1"), overwrite=True)
    for number, picture in enumerate(rgb):
        planes = tuple(plane.numpy() for plane in color.from_rgb(picture, fmt))
        sink.write(Frame(planes, fmt, number / RATE, 1 / RATE, alpha))
    sink.close(complete=True)
    return path


def read(path: Path) -> list[Frame]:
    source = FileSource(path, hdr="keep")
    frames = [
        replace(
            frame,
            planes=tuple(plane.copy() for plane in frame.planes),
            alpha=None if frame.alpha is None else frame.alpha.copy(),
        )
        for frame in source.frames()
    ]
    source.close()
    return frames


def convert(path: Path, target: Path, encoding: Encoding, strength: float | None) -> tuple[VideoFormat, VideoFormat]:
    """The way of a file; strength None: without an Enhancer. Returns the formats before and after."""
    source = FileSource(path, hdr="keep")
    encoded = encoded_format(source.format, encoding)
    sink = FileSink(target, encoded, source.frame_rate, encoding, overwrite=True)
    way = Unchanged() if strength is None else Enhancer(PassThrough(), encoded, ExactPolicy(), strength)
    run(source, way, [sink])
    return source.format, encoded


def luma_and_chroma(frames: list[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """All samples of each kind."""
    luma = [frame.planes[0].ravel() for frame in frames]
    chroma = [plane.ravel() for frame in frames for plane in frame.planes[1:]]
    return np.concatenate(luma).astype(np.float64), np.concatenate(chroma).astype(np.float64)


def as_rgb(frame: Frame) -> np.ndarray:
    planes = [torch.from_numpy(plane) for plane in frame.planes]
    values: np.ndarray = color.to_rgb(planes, frame.format).double().numpy()
    return values


def psnr(a: np.ndarray, b: np.ndarray, peak: float) -> str:
    error = float(((a - b) ** 2).mean())
    return "exact" if error == 0 else f"{10 * np.log10(peak**2 / error):.1f}"


def compare(before: list[Frame], after: list[Frame]) -> str:
    """PSNR of luma / chroma."""
    peak = (1 << before[0].format.pixel_format.depth) - 1
    pairs = zip(luma_and_chroma(before), luma_and_chroma(after), strict=True)
    return " / ".join(psnr(a, b, peak) for a, b in pairs)


def errors(before: list[Frame], after: list[Frame]) -> str:
    """Largest and mean error of luma, then of chroma, in code values."""
    pairs = zip(luma_and_chroma(before), luma_and_chroma(after), strict=True)
    return " | ".join(f"{np.abs(a - b).max():.0f} ({np.abs(a - b).mean():.2f})" for a, b in pairs)


def same_tags(a: VideoFormat, b: VideoFormat) -> bool:
    def tags(f: VideoFormat) -> tuple[object, ...]:
        return f.matrix, f.full_range, f.primaries, f.transfer, f.has_alpha, f.mastering

    return tags(a) == tags(b)


def planes_row(folder: Path, rgb: list[Tensor], fmt: VideoFormat, codec: str) -> str:
    """A row for a format that stays what it is."""
    source = clip(folder / "in.mkv", fmt, rgb)
    original = read(source)
    assert same_tags(original[0].format, fmt), original[0].format
    results = {}
    for name, encoding, strength in (
        ("alone", Encoding(codec), None),
        ("zero", Encoding(codec), 0.0),
        ("one", Encoding(codec), 1.0),
        ("lossless", Encoding("ffv1"), 1.0),
    ):
        _, encoded = convert(source, folder / "out.mkv", encoding, strength)
        results[name] = read(folder / "out.mkv")
        assert results[name][0].format.stored_as == fmt.stored_as
        assert same_tags(results[name][0].format, encoded), (results[name][0].format, encoded)
    matrix = fmt.matrix + {PQ: ", PQ", HLG: ", HLG"}.get(fmt.transfer, "")
    span = "full" if fmt.full_range else "limited"
    figures = " | ".join(compare(original, results[name]) for name in ("alone", "zero", "one"))
    return f"| {fmt.stored_as} | {matrix} | {span} | {codec} | {figures} | {errors(original, results['lossless'])} |"


def rgb_row(folder: Path, rgb: list[Tensor], fmt: VideoFormat, encoding: Encoding) -> str:
    """A row for a format that becomes another, judged as RGB."""
    source = clip(folder / "in.mkv", fmt, rgb)
    original = read(source)
    before, encoded = convert(source, folder / "out.mkv", encoding, 1.0)
    after = read(folder / "out.mkv")
    a, b = (np.stack([as_rgb(frame) for frame in frames]) for frames in (original, after))
    alpha = "-"
    if original[0].alpha is not None and after[0].alpha is not None:
        peaks = [(1 << frames[0].format.pixel_format.depth) - 1 for frames in (original, after)]
        was, became = (
            np.stack([frame.alpha / peak for frame in frames if frame.alpha is not None])
            for frames, peak in zip((original, after), peaks, strict=True)
        )
        alpha = psnr(was, became, 1)
    lost = "; ".join(lost_in(before, encoded)) or "nothing"
    return f"| {fmt.stored_as} | {encoding.codec} | {after[0].format.stored_as} | {psnr(a, b, 1)} | {alpha} | {lost} |"


def same_kind(rgb: list[Tensor], folder: Path) -> None:
    base = VideoFormat(WIDTH, HEIGHT, PIXEL_FORMATS["yuv420p"], "bt709", False, time_base=1 / RATE)
    print(SAME_KIND)
    for depth, shape, matrix, full in product(ENCODERS, ("420", "422", "444"), MATRICES, (False, True)):
        pixel = PIXEL_FORMATS[f"yuv{shape}p{'' if depth == 8 else f'{depth}le'}"]
        fmt = replace(base, pixel_format=pixel, matrix=matrix, full_range=full)
        print(planes_row(folder, rgb, fmt, ENCODERS[depth]), flush=True)
    for name in ("yuv411p", "yuv440p", "yuv410p", "yuv420p9le", "yuv422p14le", "yuv444p16le"):
        print(planes_row(folder, rgb, replace(base, pixel_format=PIXEL_FORMATS[name]), "ffv1"), flush=True)
    hdr = replace(base, pixel_format=PIXEL_FORMATS["yuv420p10le"], matrix="bt2020", primaries=9)
    for transfer, codec in product((PQ, HLG), ("libx264", "libx265", "libsvtav1")):
        print(planes_row(folder, rgb, replace(hdr, transfer=transfer), codec), flush=True)
    fmt = replace(base, pixel_format=PIXEL_FORMATS["yuv422p10le"])
    print(planes_row(folder, rgb, fmt, "prores_ks"), flush=True)
    print(planes_row(folder, rgb, base, "libvpx-vp9"), flush=True)


def other_kind(rgb: list[Tensor], folder: Path) -> None:
    print(OTHER_KIND)
    own = VideoFormat(WIDTH, HEIGHT, PIXEL_FORMATS["bgr0"], time_base=1 / RATE)
    ycc = replace(own, matrix="bt709", full_range=False)
    for name in ("gray", "gray10le", "gray12le", "gray16le", "bgr0", "gbrp10le", "gbrp12le", "gbrp16le"):
        for codec in ("libx264", "libx265", "ffv1"):
            print(rgb_row(folder, rgb, replace(own, pixel_format=PIXEL_FORMATS[name]), Encoding(codec)), flush=True)
    for name in ("bgr0", "gbrp10le", "gbrp16le"):
        fmt = replace(own, pixel_format=PIXEL_FORMATS[name])
        print(rgb_row(folder, rgb, fmt, Encoding("ffv1", pixel_format=name)), flush=True)
    print(rgb_row(folder, rgb, own, Encoding("libx264rgb")), flush=True)
    print(rgb_row(folder, rgb, own, Encoding("libx265", pixel_format="gbrp")), flush=True)
    for name in ("yuv420p", "yuv422p10le", "yuv444p", "yuv444p10le", "yuv444p12le", "gray", "bgr0", "gbrp10le"):
        pixel = PIXEL_FORMATS[name]
        for codec in ("ffv1", "prores_ks", "libvpx-vp9", "libx264"):
            fmt = replace(ycc if pixel.kind == "yuv" else own, pixel_format=pixel, has_alpha=True)
            print(rgb_row(folder, rgb, fmt, Encoding(codec)), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    rgb = pictures()
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        same_kind(rgb, Path(folder))
        other_kind(rgb, Path(folder))


if __name__ == "__main__":
    main()
