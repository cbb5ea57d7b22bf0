"""Fit the filter and the usual tables with which a model can be followed (see dped_live/table_filter.py).

    python tools/fit_filter.py MODEL [MODEL ...] --photos FOLDER [FOLDER ...] [--every N] [--dry]

MODEL: a name or a path, as for `dped-live --model`; a name's filter goes into the package, a file's beside it. Prints
how well table, filter, table agrees with the model on each photo, with the filter of all the others.
benchmarks/NOTES.md has the figures; with torch 2.13 on two cores a model takes three minutes for 40 photos.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.metrics import decibels, mean_squared_error, ssim
from dped_live.sources.images import read_photo
from dped_live.surrogate import Sample, fit
from dped_live.table_filter import USUAL_SIDE, Filter, identity, save_filter
from dped_live.table_kernels import NARROW, WIDE, Array, accumulate, as_array, empty_equations, solve

SUFFIXES = {".jpg", ".jpeg", ".png"}
ROUNDS = 6
"""As many as a follower has done after three turns."""

STEP = 5
"""Every so many rows and columns of a photo are fitted to."""

PIXELS = 50_000
"""So many of each photo's pixels the usual tables are fitted to."""

CENTRE = WIDE // 2

Equations = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Products, (3, 81, 3, 81), and sums, (3, 81, 3), of the least squares of a filter from three channels to three."""


def samples(model: str, folders: list[Path], every: int) -> dict[str, Sample]:
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    backend = open_backend(weights.load(model), "cpu", "fp32")
    result = {}
    for path in paths[::every]:
        rgb = read_photo(path).frame.planes[0][4:-4, 4:-4]  # scans have black edges
        before = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255
        result[path.stem] = Sample(as_array(before[0].numpy()), as_array(backend.enhance(before)[0].numpy()))
    return result


def equations(toned: Array, after: Array) -> Equations:
    """toned: the photo after the first table, (3, H, W)."""
    height, width = toned.shape[1:]
    padded = np.pad(toned, ((0, 0), (CENTRE, CENTRE), (CENTRE, CENTRE)), mode="edge")
    columns = [
        padded[c, dy : dy + height : STEP, dx : dx + width : STEP].ravel()
        for c in range(3)
        for dy in range(WIDE)
        for dx in range(WIDE)
    ]
    x = np.stack(columns, 1).astype(np.float64)
    y = after[:, ::STEP, ::STEP].reshape(3, -1).T.astype(np.float64)
    taps = WIDE**2
    return (x.T @ x / len(x)).reshape(3, taps, 3, taps), (x.T @ y / len(x)).reshape(3, taps, 3)


def least_squares(products: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    damping = 1e-7 * np.trace(products) / len(products) * np.eye(len(products))
    return np.linalg.solve(products + damping, sums)


@dataclass
class Pool:
    """Least squares of a table, of many photos."""

    products: Array
    sums: Array

    @classmethod
    def empty(cls) -> Pool:
        return cls(*empty_equations(USUAL_SIDE))

    def add(self, colours: Array, targets: Array) -> None:
        """Both (3, H, W); a few of their pixels, as many of each photo."""
        step = max(1, colours[0].size // PIXELS)
        few = [as_array(picture.reshape(3, -1)[:, ::step]) for picture in (colours, targets)]
        accumulate(few[0], few[1] - few[0], self.products, self.sums)

    def table(self) -> Array:
        each = float(self.products[:, :, :, 1, 1, 1].sum()) / USUAL_SIDE**3
        # Colours of no photo follow their neighbours, or stay as they are.
        return identity(USUAL_SIDE) + solve(
            self.products, self.sums, 0.1 * each, 1e-3 * each, np.zeros_like(self.sums), 400
        )


def with_usual_tables(filter_: Filter, photos: list[Sample]) -> Filter:
    first, second = Pool.empty(), Pool.empty()
    for photo in photos:
        first.add(photo.before, photo.after)
    filter_ = replace(filter_, first=first.table())
    for photo in photos:
        toned = fit([photo], filter_, rounds=1)
        second.add(toned.filtered(photo.before), photo.after)
    return replace(filter_, second=second.table())


def solved(of_photos: list[Equations]) -> Filter:
    """The filter of some photos.

    The best one from all channels to all is a 3x3 matrix for each of its taps. The matrix most like all of these has
    three directions that it does not mix; in these the filter is fitted again, each by itself.
    """
    products = sum((products for products, _ in of_photos), np.zeros(()))
    sums = sum((sums for _, sums in of_photos), np.zeros(()))
    taps = WIDE**2
    full = least_squares(products.reshape(3 * taps, 3 * taps), sums.reshape(3 * taps, 3)).reshape(3, taps, 3)
    likest = np.linalg.svd(full.transpose(1, 2, 0).reshape(taps, 9))[2][0].reshape(3, 3)
    # What it does most to comes first: that is light, and needs the wide kernel.
    gains, directions = np.linalg.eig(likest)
    if np.iscomplex(gains).any():
        raise SystemExit("this model's filter mixes colours in a way that has no directions of its own")
    directions = directions.real[:, np.argsort(-np.abs(gains))]
    basis = np.linalg.inv(directions)
    kernels = []
    for number, side in enumerate((WIDE, NARROW, NARROW)):
        rim = (WIDE - side) // 2
        inside = np.arange(taps).reshape(WIDE, WIDE)[rim : WIDE - rim, rim : WIDE - rim].ravel()
        part = products[:, inside][..., inside]
        own_products = np.einsum("c,cidj,d->ij", basis[number], part, basis[number])
        own_sums = np.einsum("c,cio,o->i", basis[number], sums[:, inside], basis[number])
        kernels.append(least_squares(own_products, own_sums).reshape(side, side))
    plain = identity(USUAL_SIDE)
    return Filter(as_array(basis), as_array(kernels[0]), as_array(np.stack(kernels[1:])), plain, plain)


def first_tables(photos: dict[str, Sample]) -> dict[str, Equations]:
    """Each photo's equations, behind a table that takes it as near as one can without a filter."""
    centre, nothing = np.zeros((WIDE, WIDE)), np.zeros((2, NARROW, NARROW))
    centre[CENTRE, CENTRE] = 1
    nothing[:, NARROW // 2, NARROW // 2] = 1
    plain = identity(USUAL_SIDE)
    unfiltered = Filter(as_array(np.eye(3)), as_array(centre), as_array(nothing), plain, plain)
    result = {}
    for name, photo in photos.items():
        toned = fit([photo], unfiltered, rounds=1).enhance(torch.from_numpy(photo.before)[None])[0].numpy()
        result[name] = equations(toned, photo.after)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--every", type=int, default=1, help="only each Nth photo")
    parser.add_argument("--dry", action="store_true", help="only print")
    options = parser.parse_args()
    for model in options.models:
        photos = samples(model, options.photos, options.every)
        of_photos = first_tables(photos)
        scores = []
        for name, photo in photos.items():
            others = [other for other in photos if other != name]
            filter_ = solved([of_photos[other] for other in others])
            filter_ = with_usual_tables(filter_, [photos[other] for other in others])
            before, after = (torch.from_numpy(picture)[None] for picture in (photo.before, photo.after))
            followed = fit([photo], filter_, rounds=ROUNDS).enhance(before).clamp(0, 1)
            after = after.clamp(0, 1)
            scores.append((decibels(float(mean_squared_error(followed, after))), float(ssim(followed, after))))
            print(f"{model} {name}: {scores[-1][0]:.2f} dB, SSIM {scores[-1][1]:.4f}", flush=True)
        mean, least = np.mean(scores, axis=0), np.min(scores, axis=0)
        print(
            f"{model}: {len(scores)} photos, each by the filter of the others: mean {mean[0]:.2f} dB, "
            f"SSIM {mean[1]:.4f}; least {least[0]:.2f} dB, SSIM {least[1]:.4f}",
            flush=True,
        )
        if not options.dry:
            filter_ = with_usual_tables(solved(list(of_photos.values())), list(photos.values()))
            print(f"{model}: {save_filter(model, filter_)}")


if __name__ == "__main__":
    main()
