"""How steady the enhanced picture is, and how near to the original's, with each way to choose the statistics.

    python benchmarks/flicker.py [--models iphone,sony] [--photos FOLDER] [--size 320x216] [--frames 48]
                                 [--precision bf16] [--sheet OUT.png]

Prints one Markdown table a model: a row is one measure of one clip (benchmarks/sequences.py), a column one policy:
"exact" normalises each frame by itself, as the original does; "scene" is what files get, "live" what cameras get, both
through dped_live.enhance as in the program; "followed" is a file with --follow on. Levels are of an 8-bit picture.
--sheet draws the frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from sequences import Clip, Size, all_clips, load_photos
from torch import Tensor

from dped_live import weights
from dped_live.backends import Backend, open_backend
from dped_live.enhance import Enhancer
from dped_live.follower import Follower
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.live_statistics import LivePolicy
from dped_live.metrics import RECEPTIVE_RADIUS, luma, mean_luma_jump, pan_flicker, psnr, static_flicker
from dped_live.scene_statistics import ExactPolicy, Policy, ScenePolicy, measure_scenes
from dped_live.table_filter import Filter, filter_of

RATE = 30
THUMBNAIL_COLUMNS = 6

POLICIES: dict[str, Callable[[list[Frame], Backend], Policy]] = {
    "exact": lambda _frames, _backend: ExactPolicy(),
    "scene": lambda frames, backend: ScenePolicy(measure_scenes(frames, backend)),
    "live": lambda _frames, _backend: LivePolicy(),
}


def frames_of(clip: Clip) -> list[Frame]:
    height, width, _ = clip.frames[0].shape
    fmt = VideoFormat(width, height, PIXEL_FORMATS["rgb24"], time_base=Fraction(1, RATE))
    return [Frame((picture,), fmt, Fraction(number, RATE)) for number, picture in enumerate(clip.frames)]


def tensor(picture: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [0, 1]."""
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255


def enhance(backend: Backend, clip: Clip, policy: str, filter_: Filter | None = None) -> Tensor:
    """The clip under a policy, (T, 3, H, W) in [0, 1], in 8 bits as a viewer gets it; with a filter, followed."""
    frames = frames_of(clip)
    chosen = POLICIES[policy](frames, backend)
    if filter_ is not None:
        backend = chosen = Follower(backend, backend, filter_, chosen, live=False)
    enhancer = Enhancer(backend, frames[0].format, chosen)
    return torch.cat([tensor(frame.planes[0]) for frame in enhancer.map(frames)])


def measures(clip: Clip, pictures: Tensor, unbarred: Tensor, original: Tensor) -> Iterator[tuple[str, str]]:
    """The measures that make sense for a clip: their names and values.

    pictures: what is measured. unbarred: the same without bars. original: that with exact statistics.
    """
    inside = pictures[:, :, clip.bar : pictures.shape[2] - clip.bar]
    lumas = luma(inside)
    if clip.static is not None:
        still = static_flicker(luma(pictures), torch.from_numpy(clip.static))
        for name, blocks in (("peak to peak", still.peak_to_peak), ("largest step", still.largest_step)):
            yield f"still blocks, {name}: worst / mean", f"{blocks.worst:.2f} / {blocks.mean:.2f}"
    elif clip.shift is not None:
        moving = pan_flicker(lumas, clip.shift)
        yield "warped RMSE: mean / max", f"{moving.warped_rmse:.2f} / {moving.largest_warped_rmse:.2f}"
        yield "scene point, deviation", f"{moving.point_deviation:.3f}"
        jump = mean_luma_jump(lumas, clip.shift, RECEPTIVE_RADIUS)
        yield "jump of mean luma: mean / max", f"{jump.mean:.2f} / {jump.largest:.2f}"
    else:
        jump = mean_luma_jump(lumas, cuts=clip.cuts)
        yield "jump of mean luma: mean / max", f"{jump.mean:.2f} / {jump.largest:.2f}"
        levels = lumas.mean((1, 2))
        yield (
            "mean luma: first / darkest / lightest / last",
            " / ".join(f"{level:.0f}" for level in (levels[0], levels.min(), levels.max(), levels[-1])),
        )
    if clip.bar:
        outside = torch.cat((pictures[:, :, : clip.bar], pictures[:, :, pictures.shape[2] - clip.bar :]), dim=2)
        yield (
            "bars: lightest level; picture: largest difference to that without bars",
            (f"{outside.max() * 255:.0f}; {(inside - unbarred).abs().max() * 255:.0f}"),
        )
    each = [psnr(one, other) for one, other in zip(inside, original, strict=True)]
    yield (
        "dB to exact: first / worst / last / all",
        " / ".join(f"{value:.1f}" for value in (each[0], min(each), each[-1], psnr(inside, original))),
    )
    for cut in clip.cuts:
        recovered = next((number - cut for number, value in enumerate(each) if number >= cut and value > 50), None)
        yield "frames after the cut until 50 dB", str(recovered)


def treated(backend: Backend, clip: Clip, filter_: Filter | None) -> dict[str, Tensor]:
    """The clip as it is, under each policy, and followed."""
    followed = {} if filter_ is None else {"followed": enhance(backend, clip, "scene", filter_)}
    return {
        "input": torch.cat([tensor(picture) for picture in clip.frames]),
        **{name: enhance(backend, clip, name) for name in POLICIES},
        **followed,
    }


def measured(backend: Backend, clip: Clip, unbarred: Clip, filter_: Filter | None) -> tuple[list[str], Image.Image]:
    """The clip's rows of the table, and its contact sheet."""
    results = treated(backend, clip, filter_)
    plain = treated(backend, unbarred, filter_) if clip.bar else results
    columns = [dict(measures(clip, results[name], plain[name], plain["exact"])) for name in results]
    lines = [f"| {clip.name} | {name} | {' | '.join(column[name] for column in columns)} |" for name in columns[0]]
    return lines, contact_sheet(clip.name, results)


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
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--sheet", type=Path, help="picture to write; the model's name is added where several run")
    options = parser.parse_args()
    clips = all_clips(*load_photos(options.photos), options.size, options.frames)
    models = options.models.split(",")
    with torch.inference_mode():
        for model in models:
            backend = open_backend(weights.load(model), "cpu", options.precision)
            print(f"{model}, {backend.description}, {options.frames} frames:\n")
            filter_ = filter_of(model)
            columns = ["input", *POLICIES, *([] if filter_ is None else ["followed"])]
            print(f"| clip | measure | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
            sheets = []
            for clip in clips:
                lines, sheet = measured(backend, clip, clips[0], filter_)
                print(*lines, sep="\n", flush=True)
                sheets.append(sheet)
            print()
            if options.sheet is not None:
                several = len(models) > 1
                path = options.sheet.with_stem(f"{options.sheet.stem}-{model}") if several else options.sheet
                stacked(sheets).save(path)


if __name__ == "__main__":
    main()
