"""Draw photos beside what models make of them, each as it is and as a poor webcam sees it.

    python tools/contact_sheet.py OUT.jpg --photos FOLDER [--models lite iphone sony] [--count 12] [--width 180]
                                  [--crop]

From left to right: the input and each model's picture; from top to bottom the photos, in two columns: as they are, and
a stop darker, blurred, noisy, warm and compressed. A model named followed:iphone is iphone's surrogate, fitted to the
photo. --crop shows the middle of the photos at 100 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.sources.images import read_photo
from dped_live.surrogate import Sample, fit
from dped_live.table_filter import filter_of

SUFFIXES = {".jpg", ".jpeg", ".png"}
BORDER = 8
"""Pixels that are cut off: scans have black edges."""


def seen_by_a_webcam(photo: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> the same, worse."""
    small = cv2.resize(photo, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    picture = cv2.resize(small, photo.shape[1::-1]).astype(float) * 0.6 * np.array([1.08, 1, 0.85])
    noisy = picture + np.random.default_rng(0).normal(0, 4, picture.shape)
    encoded = cv2.imencode(".jpg", noisy.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded.astype(np.uint8)


Enhance = Callable[[Tensor], Tensor]


def opened(model: str) -> Enhance:
    name = model.removeprefix("followed:")
    backend = open_backend(weights.load(name), "cpu")
    if name == model:
        return backend.enhance
    filter_ = filter_of(name)
    if filter_ is None:
        raise SystemExit(f"{name} has no filter; tools/fit_filter.py makes it")

    def follow(image: Tensor) -> Tensor:
        sample = Sample(image[0].numpy(), backend.enhance(image)[0].numpy())
        return fit([sample], filter_).enhance(image)

    return follow


def enhanced(photo: np.ndarray, enhance: Enhance) -> np.ndarray:
    image = torch.tensor(photo).permute(2, 0, 1)[None].float().contiguous() / 255
    levels = enhance(image)[0].clamp(0, 1).permute(1, 2, 0) * 255
    return levels.round().byte().numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["lite", "iphone", "sony"])
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--width", type=int, default=180)
    parser.add_argument("--crop", action="store_true")
    options = parser.parse_args()
    models = [opened(model) for model in options.models]
    paths = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in SUFFIXES)
    height = options.width * 2 // 3
    rows = []
    for path in paths[:: max(1, len(paths) // options.count)][: options.count]:
        photo = read_photo(path).frame.planes[0][BORDER:-BORDER, BORDER:-BORDER]
        if photo.shape[0] > photo.shape[1]:  # upright: its middle
            top = (photo.shape[0] - photo.shape[1] * 2 // 3) // 2
            photo = photo[top : top + photo.shape[1] * 2 // 3]
        photo = np.ascontiguousarray(photo)
        tiles = []
        for seen in (photo, seen_by_a_webcam(photo)):
            tiles += [seen, *(enhanced(seen, model) for model in models)]
        if options.crop:
            top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - options.width) // 2
            tiles = [tile[top : top + height, left : left + options.width] for tile in tiles]
        else:
            tiles = [cv2.resize(tile, (options.width, height), interpolation=cv2.INTER_AREA) for tile in tiles]
        rows.append(np.hstack(tiles))
    sheet = np.ascontiguousarray(np.vstack(rows)[..., ::-1])
    cv2.imwrite(str(options.out), sheet, [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()
