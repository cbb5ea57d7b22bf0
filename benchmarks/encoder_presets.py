"""Which preset of an encoder is worth its time beside the network: size, likeness, and CPU seconds a frame.

    python benchmarks/encoder_presets.py VIDEO [--codec libx264] [--crf 18] [--presets superfast veryfast ...]

The pictures are those of the video as they are. Likeness is PSNR of luma and SSIM (metrics.ssim) to them; CPU seconds
are of the whole process, encoding only: the pictures wait in memory. All presets in one run, to be compared with one
another.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from dped_live.frame import Frame
from dped_live.metrics import ssim
from dped_live.sinks.encoding import Encoding, encoded_format
from dped_live.sinks.file import FileSink
from dped_live.sources.file import FileSource


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--codec", default="libx264")
    parser.add_argument("--crf", type=int, default=18)
    parser.add_argument("--presets", nargs="+", default=["ultrafast", "superfast", "veryfast", "faster", "medium"])
    parser.add_argument("--frames", type=int, default=120)
    options = parser.parse_args()
    source = FileSource(options.video)
    frames = [_copied(frame) for frame in itertools.islice(source.frames(), options.frames)]
    rate = source.frame_rate
    source.close()
    fmt = encoded_format(frames[0].format, Encoding(options.codec))
    print(f"{options.video.name}, {fmt.width}x{fmt.height}, {len(frames)} frames, {options.codec}, CRF {options.crf}\n")
    print("| preset | CPU ms a frame | kbit/s | PSNR of luma | SSIM |\n|---|---|---|---|---|")
    for preset in options.presets:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out.mkv"
            encoding = Encoding(options.codec, options.crf, preset)
            begin = time.process_time()
            sink = FileSink(path, fmt, Fraction(rate), encoding)
            for frame in frames:
                sink.write(frame)
            sink.close(complete=True)
            cpu = 1000 * (time.process_time() - begin) / len(frames)
            size = path.stat().st_size * 8 / 1000 / float(len(frames) / rate)
            psnr, similarity = _likeness(frames, path)
        print(f"| {preset} | {cpu:.1f} | {size:.0f} | {psnr:.2f} | {similarity:.4f} |", flush=True)


def _copied(frame: Frame) -> Frame:
    return Frame(tuple(plane.copy() for plane in frame.planes), frame.format, frame.pts, frame.duration)


def _likeness(frames: list[Frame], path: Path) -> tuple[float, float]:
    written = FileSource(path)
    errors, similarities = [], []
    for number, (before, after) in enumerate(zip(frames, written.frames(), strict=True)):
        peak = (1 << before.format.pixel_format.depth) - 1
        lumas = [frame.planes[0].astype(np.float32) / peak for frame in (before, after)]
        errors.append(float(np.mean((lumas[0] - lumas[1]) ** 2)))
        if number % 10 == 0:
            pair = [torch.from_numpy(luma)[None, None].expand(1, 3, -1, -1) for luma in lumas]
            similarities.append(float(ssim(*pair)))
    written.close()
    return -10 * float(np.log10(np.mean(errors))), float(np.mean(similarities))


if __name__ == "__main__":
    main()
