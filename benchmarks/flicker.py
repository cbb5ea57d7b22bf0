"""How steady the enhanced picture is, with the statistics of each frame and with those of the scene.

    python benchmarks/flicker.py [--models iphone,sony] [--photos FOLDER] [--size 320x216] [--frames 24]
                                 [--precision bf16] [--sheet OUT.png]

Prints one Markdown table a model: a row is one measure of one clip (benchmarks/sequences.py), a column one policy,
that is, one way to choose the statistics for each frame. Levels are of an 8-bit picture. --sheet draws the frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from sequences import Clip, Size, all_clips, load_photos
from torch import Tensor

from dped_live import weights
from dped_live.backends import Backend, open_backend
from dped_live.metrics import RECEPTIVE_RADIUS, luma, mean_luma_jump, pan_flicker, psnr, static_flicker
from dped_live.statistics import Statistics, combine

SCENE_SAMPLES = 5
THUMBNAIL_COLUMNS = 6

Policy = Callable[[Backend, Clip], list[Statistics | None]]
"""What to apply to each frame of a clip; None stands for the frame's own statistics."""


def exact(_backend: Backend, clip: Clip) -> list[Statistics | None]:
    """Each frame's own statistics: the original."""
    return [None] * len(clip.frames)


def frozen(backend: Backend, clip: Clip) -> list[Statistics | None]:
    """Those of the first frame, for ever."""
    return [backend.measure(tensor(clip.frames[0]))[1]] * len(clip.frames)


def scene(backend: Backend, clip: Clip) -> list[Statistics | None]:
    """Those of a few frames spread evenly over the scene, taken together. Cuts, fades and flashes are known here."""
    chosen: list[Statistics | None] = []
    for numbers in clip.scenes():
        usual = [number for number in numbers if number not in clip.unusual]
        samples = min(SCENE_SAMPLES, len(usual))
        places = [usual[(2 * sample + 1) * len(usual) // (2 * samples)] for sample in range(samples)]
        together = combine([backend.measure(tensor(clip.frames[place]))[1] for place in places])
        chosen += [together] * len(numbers)
    return chosen


POLICIES: dict[str, Policy] = {"exact": exact, "frozen": frozen, "scene": scene}


def tensor(picture: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [0, 1]."""
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255


def enhance(backend: Backend, clip: Clip, policy: Policy) -> Tensor:
    """The clip under a policy, (T, 3, H, W) in [0, 1], rounded to 8 bits as a viewer gets it."""
    pictures = [
        backend.measure(tensor(picture), statistics)[0]
        for picture, statistics in zip(clip.frames, policy(backend, clip), strict=True)
    ]
    return torch.cat(pictures).clamp(0, 1).mul(255).round() / 255


def measures(clip: Clip, pictures: Tensor, original: Tensor) -> Iterator[tuple[str, str]]:
    """The measures that make sense for a clip: their names and values.

    pictures: what is measured. original: the clip with exact statistics.
    """
    lumas = luma(pictures)
    if clip.static is not None:
        still = static_flicker(lumas, torch.from_numpy(clip.static))
        for name, blocks in (
            ("deviation", still.deviation),
            ("peak to peak", still.peak_to_peak),
            ("largest step", still.largest_step),
        ):
            yield f"still blocks, {name}: worst / mean", f"{blocks.worst:.2f} / {blocks.mean:.2f}"
    elif clip.shift is not None:
        moving = pan_flicker(lumas, clip.shift)
        yield "warped RMSE: mean / max", f"{moving.warped_rmse:.2f} / {moving.largest_warped_rmse:.2f}"
        yield "scene point, deviation", f"{moving.point_deviation:.2f}"
        jump = mean_luma_jump(lumas, clip.shift, RECEPTIVE_RADIUS)
        yield "jump of mean luma: mean / max", f"{jump.mean:.2f} / {jump.largest:.2f}"
    else:
        jump = mean_luma_jump(lumas, cuts=clip.cuts)
        yield "jump of mean luma: mean / max", f"{jump.mean:.2f} / {jump.largest:.2f}"
        levels = lumas.mean((1, 2))
        yield "mean luma: darkest / lightest frame", f"{levels.min().item():.0f} / {levels.max().item():.0f}"
    yield "dB to exact", f"{psnr(pictures, original):.1f}"


def measured(backend: Backend, clip: Clip) -> tuple[list[str], Image.Image]:
    """The clip's rows of the table, and its contact sheet."""
    results = {"input": torch.cat([tensor(picture) for picture in clip.frames])}
    results |= {name: enhance(backend, clip, policy) for name, policy in POLICIES.items()}
    columns = [dict(measures(clip, pictures, results["exact"])) for pictures in results.values()]
    lines = [f"| {clip.name} | {name} | {' | '.join(column[name] for column in columns)} |" for name in columns[0]]
    return lines, contact_sheet(clip.name, {row: results[row] for row in ("input", "exact", "scene")})


def contact_sheet(name: str, rows: dict[str, Tensor]) -> Image.Image:
    """Time from left to right, each row a treatment, at half the frames' size."""
    count, _, height, _ = rows["input"].shape
    places = np.linspace(0, count - 1, THUMBNAIL_COLUMNS).round().astype(int)
    pictures = [
        np.concatenate([(row[place].permute(1, 2, 0).numpy() * 255).round() for place in places], axis=1)
        for row in rows.values()
    ]
    sheet = Image.fromarray(np.concatenate(pictures).astype(np.uint8)).reduce(2)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        label = f"{name}: {row}"
        place = (3, number * height // 2 + 2)
        draw.rectangle(draw.textbbox(place, label), fill="black")
        draw.text(place, label, fill="white")
    return sheet


def stacked(sheets: list[Image.Image]) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(sheet) for sheet in sheets]))


def parse_size(text: str) -> Size:
    width, height = map(int, text.split("x"))
    return width, height


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="iphone,blackberry,sony")
    parser.add_argument("--photos", type=Path, help="folder of PNG or JPEG photos (default: synthetic pictures)")
    parser.add_argument("--size", type=parse_size, default=(320, 216))
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--sheet", type=Path, help="picture to write; the model's name is added where several run")
    options = parser.parse_args()
    clips = all_clips(*load_photos(options.photos), options.size, options.frames)
    models = options.models.split(",")
    with torch.inference_mode():
        for model in models:
            backend = open_backend(weights.load(model), "cpu", options.precision)
            print(f"{model}, {backend.description}, {options.frames} frames:\n")
            print(f"| clip | measure | input | {' | '.join(POLICIES)} |\n|---|---|---|{'---|' * len(POLICIES)}")
            sheets = []
            for clip in clips:
                lines, sheet = measured(backend, clip)
                print(*lines, sep="\n", flush=True)
                sheets.append(sheet)
            print()
            if options.sheet is not None:
                several = len(models) > 1
                path = options.sheet.with_stem(f"{options.sheet.stem}-{model}") if several else options.sheet
                stacked(sheets).save(path)


if __name__ == "__main__":
    main()
