"""lite beside the original's network, in one run: seconds for a megapixel, pictures a second, and the whole program.

    python benchmarks/lite_speed.py [--rounds 5] [--clip samples/lake.mp4] [--seconds 10]

The original is benchmarks/cpu_backend.py's plain port of its models.py. Rounds are interleaved and the best of each
counts, because the machine is shared. The clip is enlarged to 1280x720 and repeated; all of `dped-live` then runs on it
as a user runs it, from decoding to encoding, and the time includes its start.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import av
import torch

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.bench.work import random_generator

from cpu_backend import BLOCKS, CHANNELS, PlainPort, timed

SIZES = {"1280x720": (720, 1280), "640x360": (360, 640)}


def enlarged(clip: Path, out: Path, seconds: float) -> int:
    """Write the clip at 1280x720, again and again; returns the number of frames."""
    with av.open(str(clip)) as source:
        frames = [frame.reformat(1280, 720) for frame in source.decode(video=0)]
    count = int(30 * seconds)
    with av.open(str(out), "w") as target:
        stream = target.add_stream("libx264", 30, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number, frame in enumerate(islice(cycle(frames), count)):
            frame.pts, frame.time_base = number, Fraction(1, 30)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clip", type=Path, default=Path(__file__).parents[1] / "samples" / "lake.mp4")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    lite = weights.load(weights.LITE)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, OMP_WAIT_POLICY "
        f"{os.environ.get('OMP_WAIT_POLICY', 'not set')}\n"
    )
    print("| | size | ms a frame | fps | s/MP | times the original's |")
    print("|---|---|---|---|---|---|")
    original = PlainPort(random_generator(CHANNELS, BLOCKS), module_norm=False)
    for name, (height, width) in SIZES.items():
        image = torch.rand(1, 3, height, width)
        works: dict[str, Callable[[], object]] = {"the original's network, fp32": partial(original, image)}
        backend = open_backend(lite, "cpu")
        given, out = backend.statistics(image), torch.empty_like(image)
        works["lite"] = partial(backend.enhance, image, given, out)
        works["lite, measuring only"] = partial(backend.statistics, image)
        best = dict.fromkeys(works, float("inf"))
        with torch.inference_mode():
            for _ in range(options.rounds):
                for what, work in works.items():
                    for _ in range(1 if "original" in what else 30):
                        best[what] = min(best[what], timed(work))
        slowest = max(best.values())
        for what, seconds in best.items():
            print(
                f"| {what} | {name} | {1e3 * seconds:.1f} | {1 / seconds:.1f} "
                f"| {seconds / height / width * 1e6:.3f} | {slowest / seconds:.0f} |"
            )
    with tempfile.TemporaryDirectory() as folder:
        clip, result = Path(folder) / "clip.mp4", Path(folder) / "out.mp4"
        count = enlarged(options.clip, clip, options.seconds)
        command = [sys.executable, "-m", "dped_live", str(clip), "-o", str(result), "-q"]
        times: list[float] = []
        for _ in range(3):
            result.unlink(missing_ok=True)
            begin = time.perf_counter()
            subprocess.run(command, check=True)
            times.append(time.perf_counter() - begin)
    print(
        f"\ndped-live clip.mp4 -o out.mp4, 1280x720, {count} frames: "
        + ", ".join(f"{count / value:.1f}" for value in times)
        + " fps with its start"
    )


if __name__ == "__main__":
    main()
