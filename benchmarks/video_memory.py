"""Resident memory over a long video: flat, whatever its length.

    python benchmarks/video_memory.py [--frames 2000]

Makes a clip of small frames, enhances it through the whole pipeline (decoder, tiny network, encoder) and prints the
process's resident memory on the way.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import av
import numpy as np
import psutil
import torch

from dped_live.backends import open_backend
from dped_live.batch import Job, Settings, enhance_video
from dped_live.generator import Generator
from dped_live.pipeline import Stats
from dped_live.sinks.encoding import Encoding

WIDTH, HEIGHT = 96, 64


def make_clip(path: Path, frames: int) -> None:
    random = np.random.default_rng(0)
    texture = random.integers(0, 255, (HEIGHT, WIDTH * 2, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 30, options={"preset": "ultrafast", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(frames):
            left = number % WIDTH
            picture = np.ascontiguousarray(texture[:, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=2000)
    options = parser.parse_args()
    torch.manual_seed(0)
    backend = open_backend(Generator(16, 2), "cpu", "fp32")
    process = psutil.Process()
    seen: dict[int, float] = {}

    def progress(stats: Stats, _total: int | None) -> None:
        tenth = 10 * stats.written[0] // options.frames
        seen.setdefault(tenth, process.memory_info().rss / 2**20)

    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        make_clip(clip, options.frames)
        job = Job(clip, clip.with_name("out.mp4"), is_photo=False)
        outcome = enhance_video(job, backend, Settings(encoding=Encoding(preset="ultrafast")), print, progress=progress)
    print(f"{outcome.frames} frames of {WIDTH}x{HEIGHT} in {outcome.seconds:.0f} s")
    print("resident MB at each tenth: " + " ".join(f"{megabytes:.0f}" for _, megabytes in sorted(seen.items())))
    settled = [megabytes for tenth, megabytes in seen.items() if tenth >= 2]
    print(f"growth from 20 % on: {100 * (max(settled) / settled[0] - 1):.1f} %")


if __name__ == "__main__":
    main()
