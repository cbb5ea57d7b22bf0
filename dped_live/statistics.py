"""Instance-norm statistics as a value.

DPED normalises every channel after each convolution of its residual blocks by the mean and variance of that channel
over the frame. Here these numbers are not hidden in a layer: they can be measured, kept, and given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

EPSILON = 1e-3
"""Added to the variance under the root (`_instance_norm` in the original's models.py)."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and biased variance of every normalised convolution, taken before the norm and without a bias.

    The convolutions' own biases are left out because the norm cancels them.

    mean, variance: float32, shape (frames, norms, channels), on any device; `frames` is 1 where they describe one
    picture or are to be applied. A value: nobody writes to the tensors after construction.
    """

    mean: torch.Tensor
    variance: torch.Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 3 or self.mean.shape != self.variance.shape:
            raise ValueError(
                f"statistics must be two tensors of one shape (frames, norms, channels), "
                f"not {tuple(self.mean.shape)} and {tuple(self.variance.shape)}"
            )

    def gain_and_bias(self, scale: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm as `gain * x + bias`.

        scale, shift: the norms' learnt parameters, shape (norms, channels).
        Returns two float32 tensors of shape (frames, norms, channels).
        """
        gain = scale * torch.rsqrt(self.variance + EPSILON)
        return gain, shift - self.mean * gain


def combine(several: Sequence[Statistics]) -> Statistics:
    """The statistics of several pictures of one size taken as one, for one frame.

    Exact for the first norm: the variance is that within the pictures and that between their means. For the later
    norms it stands for pictures that had each been normalised by itself.
    """
    mean = torch.cat([statistics.mean for statistics in several]).double()
    variance = torch.cat([statistics.variance for statistics in several]).double()
    common = mean.mean(dim=0, keepdim=True)
    spread = (variance + mean.square()).mean(dim=0, keepdim=True) - common.square()
    return Statistics(common.float(), spread.clamp_min(0).float())
