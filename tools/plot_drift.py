"""Draw how a still background drifts while a dark disc slides into the picture: its brightness, and two frames.

    python tools/plot_drift.py [OUT.png] [--model iphone] [--photos FOLDER] [--frames 40]

Writes samples/drift.png unless told otherwise. Clip and policies are those of benchmarks/flicker.py.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

# The folders of scripts are no packages, so that nothing of them is installed.
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from flicker import enhance, tensor
from sequences import load_photos, sliding_disc

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.metrics import luma

LABELS = {"exact": "statistics of each frame (original DPED)", "scene": "statistics of the scene (dped-live)"}
COLOURS = {"exact": "#d1495b", "scene": "#00798c"}
BASELINE = "#8a8a8a"


def halves(first: torch.Tensor, last: torch.Tensor) -> np.ndarray:
    """The same part of the background, right of the disc, in two frames side by side: (H, W, 3)."""
    part = slice(first.shape[2] * 5 // 8, None)
    joined: np.ndarray = torch.cat((first[:, :, part], last[:, :, part]), dim=2).permute(1, 2, 0).numpy()
    return joined


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parents[1] / "samples" / "drift.png")
    parser.add_argument("--model", default="iphone")
    parser.add_argument("--photos", type=Path, help="folder of PNG or JPEG photos (default: a synthetic picture)")
    parser.add_argument("--frames", type=int, default=40)
    options = parser.parse_args()
    try:
        # By name: matplotlib is no dependency, and type checks must not depend on its being there.
        figure_class = import_module("matplotlib.figure").Figure
    except ImportError:
        sys.exit("plot_drift.py: matplotlib is not installed; type: pip install matplotlib")

    clip = sliding_disc(load_photos(options.photos)[0], (320, 216), options.frames, level=8)
    assert clip.static is not None
    still = torch.from_numpy(clip.static)

    def background(pictures: torch.Tensor) -> torch.Tensor:
        """Mean luma of the background in each frame, less that of the first frame."""
        levels = luma(pictures)[:, still].mean(1)
        return levels - levels[0]

    with torch.inference_mode():
        backend = open_backend(weights.load(options.model), "cpu")
        clips = {name: enhance(backend, clip, name) for name in LABELS}
        lines = {name: background(pictures) for name, pictures in clips.items()}
        source = background(torch.cat([tensor(picture) for picture in clip.frames]))

    figure = figure_class(figsize=(7.2, 5.6), dpi=110, layout="constrained")
    mosaic = figure.subplot_mosaic([["plot"] * 2, ["exact"] * 1 + ["scene"] * 1])
    axes = mosaic["plot"]
    axes.plot(source, color=BASELINE, linewidth=5, alpha=0.4, label="input")
    for name, levels in lines.items():
        axes.plot(levels, color=COLOURS[name], linewidth=2, label=LABELS[name])
    axes.set_title("A dark object slides in. What does the background do?", loc="left", fontsize=10)
    axes.set_xlabel("frame")
    axes.set_ylabel("background luma,\nchange in 8-bit levels")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    for name, pictures in clips.items():
        mosaic[name].imshow(halves(pictures[0], pictures[-1]))
        mosaic[name].set_title(LABELS[name], fontsize=9)
        mosaic[name].set_xlabel("first frame | last frame", fontsize=8)
        mosaic[name].set_xticks([])
        mosaic[name].set_yticks([])
    figure.savefig(options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
