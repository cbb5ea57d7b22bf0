"""How near int8 comes to float32, on photos.

    python benchmarks/int8_exactness.py PHOTO...

For each published model that is on this machine, and the upper left 600x400 of each photo: by the photo's own
statistics, and by those of the photo at 0.7 of its light, as a film's next frames may be. A Markdown table.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from dped_live import weights
from dped_live.backends import Backend, open_backend
from dped_live.sources.images import read_photo

SHAPE = (400, 600)
LIGHT = 0.7


def photo(path: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    (rgb,) = read_photo(path).frame.planes
    return torch.from_numpy(rgb[: SHAPE[0], : SHAPE[1]].copy()).permute(2, 0, 1)[None].float() / 255


def error(int8: Backend, exact: Backend, picture: Tensor, is_given: bool) -> tuple[float, float]:
    """dB, and the most levels of 255."""
    statistics = exact.statistics(picture * LIGHT) if is_given else None
    found, expected = (backend.enhance(picture, statistics).clamp(0, 1) for backend in (int8, exact))
    difference = (found - expected).abs()
    return -10 * math.log10(float(difference.square().mean())), 255 * float(difference.max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path, nargs="+")
    pictures = [photo(path) for path in parser.parse_args().photos]
    print("| model | statistics | mean dB | worst dB | most levels off |\n|---|---|---|---|---|")
    for model in weights.PUBLISHED:
        if weights.state(model) not in ("cached", "in DPED_LIVE_WEIGHTS"):
            continue
        network = weights.load(model)
        int8 = open_backend(network, "cpu", "int8")
        exact = open_backend(network, "cpu", "fp32", runner="torch")
        for is_given in (False, True):
            decibels, levels = zip(*(error(int8, exact, picture, is_given) for picture in pictures), strict=True)
            mean = sum(decibels) / len(decibels)
            kind = f"those at {LIGHT} of the light" if is_given else "its own"
            print(f"| {model} | {kind} | {mean:.1f} | {min(decibels):.1f} | {max(levels):.0f} |", flush=True)


if __name__ == "__main__":
    main()
