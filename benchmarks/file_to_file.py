"""How far decoding, enhancing and encoding a video overlap.

    python benchmarks/file_to_file.py VIDEO [--model lite] [--size 640x360] [--frames 240] [--rounds 3]

The video's first frames are made a clip of that size. Its parts are then run alone and all together, in turn, each by
the program's own classes; the best of each counts. "busy" is processor time over time: how many cores were at work. No
order of the parts can be quicker than the slowest alone, nor than the processor time of all of them on all cores; "of
the bound" compares with the larger of the two. The look ahead at the scenes, which comes before, is told by itself.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import torch

from dped_live import weights
from dped_live.backends import Precision, Runner, open_backend
from dped_live.enhance import Enhancer
from dped_live.pipeline import run
from dped_live.scene_statistics import ScenePolicy, measure_scenes
from dped_live.sinks.companion import Companion
from dped_live.sinks.encoding import Encoding, encoded_format
from dped_live.sinks.file import FileSink
from dped_live.sources.file import FileSource


def make_clip(video: Path, size: tuple[int, int], frames: int, target: Path) -> None:
    with av.open(f"file:{video}") as source, av.open(f"file:{target}", "w") as sink:
        stream = sink.add_stream("libx264", rate=30, options={"crf": "18"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(islice(source.decode(video=0), frames)):
            resized = frame.reformat(*size, format="yuv420p")
            resized.pts, resized.time_base, resized.pict_type = number, Fraction(1, 30), 0
            sink.mux(stream.encode(resized))
        sink.mux(stream.encode(None))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - begin_cpu


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    width, height = map(int, options.size.split("x"))
    precision: Precision = options.precision
    runner: Runner = options.backend
    backend = open_backend(weights.load(options.model), "cpu", precision, runner=runner)
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch, "clip.mp4")
        make_clip(options.video, (width, height), options.frames, clip)
        frames = list(FileSource(clip).frames())
        policy = ScenePolicy(measure_scenes(frames, backend))
        count = 0

        def sink(source: FileSource) -> FileSink:
            nonlocal count
            count += 1
            target, encoding = Path(scratch, f"{count}.mp4"), Encoding()
            companion = Companion(clip, source.video_index, source.start, None, False, True)
            return FileSink(
                target, encoded_format(source.format, encoding), source.frame_rate, encoding, companion, False
            )

        def enhancer(source: FileSource) -> Enhancer:
            return Enhancer(backend, source.format, policy)

        def decode() -> None:
            source = FileSource(clip)
            for _ in source.frames():
                pass
            source.close()

        def look_ahead() -> None:
            source = FileSource(clip)
            measure_scenes(source.frames(), backend)
            source.close()

        def enhance() -> None:
            source = FileSource(clip)
            for _ in enhancer(source).map(frames):
                pass
            source.close()

        def encode() -> None:
            source = FileSource(clip)
            target = sink(source)
            for frame in frames:
                target.write(frame)
            target.close(complete=True)
            source.close()

        def together() -> None:
            source = FileSource(clip)
            run(source, enhancer(source), [sink(source)])

        parts = {
            "decode": decode,
            "enhance": enhance,
            "encode": encode,
            "all three": together,
            "look ahead": look_ahead,
        }
        best = {name: timed(work) for name, work in parts.items()}
        for _ in range(options.rounds - 1):
            best = {name: min(best[name], timed(work)) for name, work in parts.items()}
    alone = [best[name] for name in ("decode", "enhance", "encode")]
    slowest = max(seconds for seconds, _ in alone)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = max(slowest, sum(busy for _, busy in alone) / cores)
    print(f"{options.model} ({backend.description}), {options.size}, {len(frames)} frames, {cores} cores")
    print(f"torch: {torch.get_num_threads()} threads\n")
    print("| | ms a frame | fps | busy |")
    print("|---|---|---|---|")
    for name, (seconds, busy) in best.items():
        print(f"| {name} | {1e3 * seconds / len(frames):.1f} | {len(frames) / seconds:.1f} | {busy / seconds:.2f} |")
    total = best["all three"][0]
    print(f"\nAll three: {total / slowest:.2f} of the slowest part alone, {total / bound:.2f} of the bound.")


if __name__ == "__main__":
    main()
