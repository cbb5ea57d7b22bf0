"""A model followed by its surrogate, live: how fast, how near to the exact network, and how soon after a cut.

    python benchmarks/following.py --photos FOLDER [--model iphone] [--sizes 640x360,1280x720,1920x1080] [--seconds 10]

First, for each size, frames one after the other as fast as they go, beside the exact network. Then a pan over each
photo, 30 frames a second by the clock: each half second's picture against that of the exact network by the same
statistics. Then a cut from each photo to the next.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dped_live import weights
from dped_live.backends import Backend, open_backend
from dped_live.enhance import Enhancer
from dped_live.follower import Follower
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.live_statistics import LivePolicy
from dped_live.metrics import psnr, ssim
from dped_live.scene_statistics import Normalisation
from dped_live.statistics import Statistics
from dped_live.table_filter import Filter, filter_of

RATE = 30


class Noting(LivePolicy):
    """Notes the statistics that each frame gets."""

    statistics: Statistics | None = None

    def normalisation(self, frame: Frame) -> Normalisation:
        plan = super().normalisation(frame)
        self.statistics = plan.statistics
        return plan

    def learn(self, measured: Statistics) -> None:
        super().learn(measured)
        self.statistics = measured if self.statistics is None else self.statistics


class Run:
    """A live run without the program around it."""

    def __init__(self, backends: tuple[Backend, Backend], filter_: Filter, width: int, height: int) -> None:
        self.format = VideoFormat(width, height, PIXEL_FORMATS["rgb24"], time_base=Fraction(1, RATE))
        self.policy = Noting()
        self.follower = Follower(*backends, filter_, self.policy, live=True)
        self.enhancer = Enhancer(self.follower, self.format, self.follower)
        self.refits: list[float] = []
        self.times: list[float] = []
        self.number = 0

    def show(self, picture: np.ndarray) -> np.ndarray:
        before = self.follower._refit_at
        began = time.monotonic()
        after: np.ndarray = self.enhancer.enhance(Frame((picture,), self.format, Fraction(self.number, RATE))).planes[0]
        self.times.append(time.monotonic() - began)
        if before and self.follower._refit_at != before:
            self.refits.append(self.follower._refit_at - before)
        self.number += 1
        return after


def tensor(picture: np.ndarray) -> Tensor:
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255


def window(photo: np.ndarray, width: int, height: int) -> Callable[[int], np.ndarray]:
    """A pan to and fro, two pixels a frame, over a photo; larger windows over an enlarged one."""
    scale = max(1.0, 1.25 * width / photo.shape[1], height / photo.shape[0])
    large = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    reach = large.shape[1] - width

    def at(number: int) -> np.ndarray:
        left = abs((2 * number) % (2 * reach) - reach)
        return np.ascontiguousarray(large[:height, left : left + width])

    return at


def speed(backends: tuple[Backend, Backend], filter_: Filter, photo: np.ndarray, size: str, seconds: float) -> None:
    width, height = map(int, size.split("x"))
    at = window(photo, width, height)
    run = Run(backends, filter_, width, height)
    pictures = [at(number) for number in range(30)]
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        run.show(pictures[run.number % 30])
    rate = run.number / (time.monotonic() - began)
    run.follower._take_over()
    image = tensor(pictures[0])
    began = time.monotonic()
    backends[1].enhance(image, run.policy.statistics)
    exact = time.monotonic() - began
    p50, p95 = np.percentile(1e3 * np.array(run.times[1:]), (50, 95))
    refit = np.median(run.refits) if run.refits else float("nan")
    print(
        f"| {size} | {1e3 * run.times[0]:.0f} | {p50:.1f} | {p95:.1f} | {rate:.1f} | {refit:.2f} "
        f"| {1e3 * exact:.0f} | {1e3 * exact / p50:.0f} |",
        flush=True,
    )


def pan(backends: tuple[Backend, Backend], filter_: Filter, photo: np.ndarray, seconds: float) -> list[float]:
    """dB every half second."""
    width, height = 640, 400
    at = window(photo, width, height)
    run = Run(backends, filter_, width, height)
    kept: list[tuple[np.ndarray, np.ndarray, Statistics | None]] = []
    began = time.monotonic()
    while run.number < seconds * RATE:
        picture = at(run.number)
        shown = run.show(picture)
        if run.number % (RATE // 2) == 1:
            kept.append((picture, shown, run.policy.statistics))
        # What comes too late is not shown, as live.
        run.number = max(run.number, int((time.monotonic() - began) * RATE))
        time.sleep(max(0.0, run.number / RATE - (time.monotonic() - began)))
    found = []
    for picture, shown, statistics in kept:
        exact = backends[1].enhance(tensor(picture), statistics).clamp(0, 1)
        found.append(psnr(tensor(shown), exact))
    return found


def cuts(backends: tuple[Backend, Backend], filter_: Filter, photos: list[np.ndarray]) -> None:
    width, height = 640, 400
    run = Run(backends, filter_, width, height)
    for number, photo in enumerate(photos):
        picture = window(photo, width, height)(0)
        scene = run.follower._scene
        waited, took = 0, 0.0
        while True:
            shown = run.show(picture)
            waited, took = waited + 1, took + run.times[-1]
            if run.follower._scene is not scene:
                break
            if waited == 30:
                print(f"| photo {number} | not taken for a cut | | | |")
                break
        exact = backends[1].enhance(tensor(picture), run.policy.statistics).clamp(0, 1)
        near = psnr(tensor(shown), exact), float(ssim(tensor(shown), exact))
        if waited < 30:
            print(
                f"| photo {number} | {waited} | {1e3 * run.times[-1]:.0f} | {near[0]:.1f} | {near[1]:.3f} |", flush=True
            )
        for _ in range(15):
            run.show(picture)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", default="iphone")
    parser.add_argument("--sizes", default="640x360,1280x720,1920x1080")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    generator = weights.load(options.model)
    backends = open_backend(generator, "cpu"), open_backend(generator, "cpu")
    filter_ = filter_of(options.model)
    if filter_ is None:
        raise SystemExit(f"{options.model} has no filter")
    paths = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in (".png", ".jpg"))
    photos = [
        np.ascontiguousarray(photo[4:-4, 4:-4, ::-1]) for path in paths if (photo := cv2.imread(str(path))) is not None
    ]
    photos = [photo for photo in photos if photo.shape[1] > photo.shape[0]]
    Run(backends, filter_, 64, 64)  # compiles
    print(f"{options.model}, {backends[0].description}, {torch.get_num_threads()} threads\n")
    print("| size | first frame, ms | ms p50 | p95 | fps | refit, s | exact, ms | times |")
    print("|---|---|---|---|---|---|---|---|")
    for size in options.sizes.split(","):
        speed(backends, filter_, photos[0], size, options.seconds)
    print("\nPan, dB to exact: at first, then each half second\n")
    means = []
    for photo in photos:
        found = pan(backends, filter_, photo, options.seconds)
        means.append(np.mean(found))
        print(
            f"- mean {means[-1]:.1f}, least {min(found):.1f}: {' '.join(f'{value:.1f}' for value in found)}", flush=True
        )
    print(f"\nmean {np.mean(means):.1f}\n\n| cut to | frames until known | ms | dB | SSIM |\n|---|---|---|---|---|")
    cuts(backends, filter_, photos)


if __name__ == "__main__":
    main()
