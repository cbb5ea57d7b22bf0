"""How near a model brings the phone's pictures to the camera's, by the field's measures and by the original's."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from dped_live.errors import InputError, OutputError
from dped_live.metrics import MS_SSIM_LEAST_SIDE, combine_scales, decibels, mean_squared_error, ms_ssim_scales
from dped_live.partial import PartialFile
from dped_live.training.pairs import Pair, read_pair, to_float

BATCH = 50
"""Pictures of which train_model.py takes one mean squared error and one MS-SSIM."""


class PictureScores(NamedTuple):
    """One picture against the camera's.

    psnr: in dB, infinite where they are equal. ms_ssim_original: `ms_ssim_of_original` of a batch of one.
    ms_ssim: the standard one; None for pictures too small for it.
    """

    psnr: float
    ms_ssim_original: float
    ms_ssim: float | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """A set of pictures against the camera's.

    psnr: mean over the pictures, in dB, without those `equal` to the camera's, whose PSNR is infinite; NaN if all are.
    ms_ssim_original: mean over the pictures. ms_ssim: likewise; None unless every picture has it.
    batch_psnr, batch_ms_ssim_original: as train_model.py logs them, one mean squared error and one MS-SSIM of each
    BATCH pictures in order, averaged over the batches, a remainder dropped; None where pictures are fewer than that
    or differ in size.
    """

    pictures: list[PictureScores]
    psnr: float
    equal: int
    ms_ssim_original: float
    ms_ssim: float | None
    batch_psnr: float | None
    batch_ms_ssim_original: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """names: of the pictures, in their order. enhanced: what the model made of them. input: they themselves."""

    names: list[str]
    enhanced: Likeness
    input: Likeness


class _Measured(NamedTuple):
    """One picture: what all measures are made of. scales: (C, 5), see ms_ssim_scales."""

    error: float
    scales: Tensor
    shape: torch.Size


def evaluate(
    enhance: Callable[[Tensor], Tensor],
    device: torch.device,
    pairs: Sequence[Pair],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Scores:
    """Enhance every phone picture and compare it with the camera's.

    enhance: Backend.enhance, or any function from (1, 3, H, W) float32, RGB in [0, 1] on `device`, to the same;
    values beyond are scored as they are, as in the original. It runs without gradients.
    progress: called with the pictures done and all pictures.

    The comparison is in float64 on the CPU. Raises InputError if there are no pairs or one cannot be read: scores of
    fewer pictures would be others.
    """
    if not pairs:
        raise InputError("no pairs to test on; hold out at least one, or name a folder with more pairs")
    enhanced, unenhanced = [], []
    with torch.inference_mode():
        for done, pair in enumerate(pairs, 1):
            phone, camera = (to_float(picture[None]) for picture in read_pair(pair))
            enhanced.append(_measure(enhance(phone.to(device)).cpu(), camera))
            unenhanced.append(_measure(phone, camera))
            progress(done, len(pairs))
    return Scores([pair.name for pair in pairs], _likeness(enhanced), _likeness(unenhanced))


def write_csv(scores: Scores, path: Path, *, overwrite: bool = False) -> None:
    """Write a table with a row for each picture; the file appears when it is complete, or not at all.

    A cell is empty where a picture is too small for the measure. Raises OutputError as PartialFile does.
    """
    partial = PartialFile(path, overwrite)
    columns = PictureScores._fields
    try:
        with partial.path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(["name", *columns, *(f"{column}_input" for column in columns)])
            for name, *both in zip(scores.names, scores.enhanced.pictures, scores.input.pictures, strict=True):
                values = [value for picture in both for value in picture]
                table.writerow([name, *("" if value is None else f"{value:.6f}" for value in values)])
    except OSError as error:
        partial.discard()
        raise OutputError(f"{path}: {error.strerror}; nothing is written") from error
    partial.publish()


def _measure(picture: Tensor, camera: Tensor) -> _Measured:
    return _Measured(mean_squared_error(picture, camera), ms_ssim_scales(picture, camera)[0], camera.shape)


def _likeness(measured: list[_Measured]) -> Likeness:
    pictures = [_picture_scores(one) for one in measured]
    finite = [one.psnr for one in pictures if one.psnr != math.inf]
    standard = [one.ms_ssim for one in pictures if one.ms_ssim is not None]
    batch_psnr = batch_ms_ssim = None
    if len(measured) >= BATCH and len({one.shape for one in measured}) == 1:
        # Pictures are of one size, so the mean over a batch is the mean of its pictures' means.
        batches = [measured[end - BATCH : end] for end in range(BATCH, len(measured) + 1, BATCH)]
        batch_psnr = fmean(decibels(fmean(one.error for one in batch)) for batch in batches)
        batch_ms_ssim = fmean(_ms_ssim_original(torch.stack([one.scales for one in batch])) for batch in batches)
    return Likeness(
        pictures=pictures,
        psnr=fmean(finite) if finite else math.nan,
        equal=len(pictures) - len(finite),
        ms_ssim_original=fmean(one.ms_ssim_original for one in pictures),
        ms_ssim=fmean(standard) if len(standard) == len(pictures) else None,
        batch_psnr=batch_psnr,
        batch_ms_ssim_original=batch_ms_ssim,
    )


def _picture_scores(one: _Measured) -> PictureScores:
    is_large = min(one.shape[2:]) >= MS_SSIM_LEAST_SIDE
    standard = combine_scales(one.scales.clamp_min(0)).mean().item() if is_large else None
    return PictureScores(decibels(one.error), _ms_ssim_original(one.scales[None]), standard)


def _ms_ssim_original(scales: Tensor) -> float:
    """scales: (N, C, 5) of a batch."""
    return combine_scales(scales.mean((0, 1))).item()
