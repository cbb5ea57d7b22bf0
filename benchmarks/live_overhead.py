"""What following a live picture costs beside enhancing it: the live policy against fixed statistics, side by side.

python benchmarks/live_overhead.py [--model resnet_8_32] [--size 640x360] [--frames 64] [--photos FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from flicker import frames_of, parse_size
from sequences import load_photos, sensor_noise

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.enhance import Enhancer
from dped_live.live_statistics import LivePolicy
from dped_live.scene_statistics import ScenePolicy, measure_scenes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet_8_32")
    parser.add_argument("--size", type=parse_size, default=(640, 360))
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--photos", type=Path, help="folder of PNG or JPEG photos (default: a synthetic picture)")
    options = parser.parse_args()
    clip = sensor_noise(load_photos(options.photos)[0], options.size, options.frames, sigma=2)
    frames = frames_of(clip)
    backend = open_backend(weights.load(options.model), "cpu")
    fixed = Enhancer(backend, frames[0].format, ScenePolicy(measure_scenes(frames[:5], backend)))
    live_policy = LivePolicy()
    live = Enhancer(backend, frames[0].format, live_policy)
    seconds: dict[str, list[float]] = {"fixed": [], "live": []}
    for frame in frames:
        for name, enhancer in (("fixed", fixed), ("live", live)):
            begin = time.perf_counter()
            enhancer.enhance(frame)
            seconds[name].append(time.perf_counter() - begin)
    # The policy alone, without measuring: what is left of it however fast the network is.
    begin = time.perf_counter()
    for frame in frames:
        live_policy.normalisation(frame)
    alone = (time.perf_counter() - begin) / len(frames)
    mean, plain = (float(np.mean(seconds[name][1:])) for name in ("live", "fixed"))
    print(f"{options.model}, {options.size[0]}x{options.size[1]}, {backend.description}: {1e3 * plain:.1f} ms a frame")
    more = 100 * (mean / plain - 1)
    print(f"following costs {more:.1f} % more; without its measurements {1e3 * alone:.2f} ms a frame")


if __name__ == "__main__":
    main()
