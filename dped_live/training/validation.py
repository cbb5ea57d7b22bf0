"""The test set while training goes on, measured as train_model.py does: losses, PSNR and MS-SSIM of whole batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dped_live.errors import InputError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.metrics import ms_ssim_of_original, psnr
from dped_live.photo import Photo
from dped_live.training.losses import (
    color_loss,
    discriminator_accuracy,
    discriminator_loss,
    greyscale,
    swapped,
    total_variation_loss,
)
from dped_live.training.pairs import Pair, PatchPairs, read_pair
from dped_live.training.processes import Processes
from dped_live.training.trainer import Losses, Trainer, expect_finite

CROPS = 5
"""So many test patches are shown before and after."""


class ValidationScores(NamedTuple):
    """Means over the batches of the test set.

    losses: as in training, but texture is MINUS the discriminator's loss on the batch that it is shown, of which some
    are the camera's pictures; so it is in train_model.py.
    psnr: in dB, of one mean squared error a batch. ms_ssim: the original's, of a batch.
    """

    losses: Losses
    psnr: float
    ms_ssim: float


class Validation:
    """The test set in memory, as bytes: of each picture the patch in its middle.

    As in train_model.py it is taken in batches of the size of training, and a remainder is dropped; where there is no
    whole batch, all there is makes one. Which pictures the discriminator is shown, and which patches are `crops`, is
    a matter of the seed, and the same every time. Each of several processes takes every so-manyth batch.
    """

    def __init__(
        self, pairs: Sequence[Pair], patch_size: int, batch_size: int, seed: int, processes: Processes
    ) -> None:
        """Raises InputError if there are no pairs, or if one is smaller than a patch or cannot be read."""
        if not pairs:
            raise InputError("no pairs to test on: all are for training; leave out --hold-out, or type a larger one")
        self._processes = processes
        size = min(batch_size, len(pairs))
        self._count = len(pairs) // size
        random = np.random.default_rng([seed, 0, 2])  # not the numbers of a step or of a pool, see PatchBatches
        picks = random.choice(len(pairs), min(CROPS, len(pairs)), replace=False)
        swaps = torch.from_numpy(random.integers(2, size=(self._count, size), dtype=np.uint8))
        self._batches = [
            (_read(pairs[number * size : (number + 1) * size], patch_size), swaps[number])
            for number in range(processes.rank, self._count, processes.world_size)
        ]
        self._crops = _read([pairs[pick] for pick in picks], patch_size) if processes.is_first else None

    @torch.no_grad()
    def scores(self, trainer: Trainer) -> ValidationScores:
        """Measure the networks as they are, in float32; every process gets the same answer.

        Raises FloatingPointError, which says what is not finite.
        """
        total = torch.zeros(8, dtype=torch.float64)
        for patches, swaps in self._batches:
            total += torch.tensor(self._measure(trainer, patches, swaps), dtype=torch.float64)
        *losses, batch_psnr, ms_ssim = (self._processes.sum(total.to(self._processes.device)) / self._count).tolist()
        scores = ValidationScores(trainer.losses(*losses), batch_psnr, ms_ssim)
        expect_finite(scores.losses)
        if math.isnan(batch_psnr):
            raise FloatingPointError("the enhanced pictures are not numbers")
        return scores

    def _measure(self, trainer: Trainer, patches: PatchPairs, swaps: Tensor) -> list[float]:
        """Content, colour, texture, TV and discriminator's loss, accuracy, PSNR and MS-SSIM of a batch."""
        phone, camera = trainer.pictures(patches)
        is_target = swaps.to(phone.device)
        enhanced = trainer.generator(phone)
        logits = trainer.discriminator(swapped(greyscale(enhanced), greyscale(camera), is_target))
        loss = discriminator_loss(logits, is_target)
        return [
            trainer.content_loss(enhanced, camera).item(),
            color_loss(enhanced, camera).item(),
            -loss.item(),
            total_variation_loss(enhanced).item(),
            loss.item(),
            discriminator_accuracy(logits, is_target).item(),
            psnr(enhanced, camera),
            ms_ssim_of_original(enhanced, camera),
        ]

    @torch.no_grad()
    def crops(self, trainer: Trainer) -> Photo:
        """Patches of the test set, one a row: before, after, and the camera's. For the first process only."""
        assert self._crops is not None
        phone, camera = trainer.pictures(self._crops)
        enhanced = trainer.generator(phone).clamp(0, 1)
        rows = torch.cat([phone, enhanced, camera], 3).permute(0, 2, 3, 1).flatten(0, 1)
        plane = (rows * 255).round().byte().contiguous().cpu().numpy()
        height, width, _ = plane.shape
        return Photo(Frame((plane,), VideoFormat(width, height, PIXEL_FORMATS["rgb24"])))


def _read(pairs: Sequence[Pair], patch_size: int) -> PatchPairs:
    """The patch in the middle of each."""
    phone, camera = (torch.empty(len(pairs), 3, patch_size, patch_size, dtype=torch.uint8) for _ in range(2))
    for number, pair in enumerate(pairs):
        if min(pair.width, pair.height) < patch_size:
            size = f"{pair.width}x{pair.height}"
            raise InputError(f"{pair.phone}: {size}, smaller than a patch of {patch_size}; remove this pair")
        top, left = (pair.height - patch_size) // 2, (pair.width - patch_size) // 2
        for picture, patches in zip(read_pair(pair), (phone, camera), strict=True):
            patches[number] = picture[:, top : top + patch_size, left : left + patch_size]
    return PatchPairs(phone, camera)
