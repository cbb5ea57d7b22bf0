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
        """The norms as `gain * x + bias`, by the statistics of one frame.

        scale, shift: the norms' learnt parameters, shape (norms, channels), of the type to compute in.
        Returns two tensors of that shape and type. Raises ValueError if these statistics are of more than one frame.
        """
        if len(self.mean) != 1:
            raise ValueError(f"statistics of one frame can be applied, these are of {len(self.mean)}")
        gain = scale * torch.rsqrt(self.variance[0].to(scale.dtype) + EPSILON)
        return gain, shift - self.mean[0].to(scale.dtype) * gain


def unfolded(
    mean: torch.Tensor, variance: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of x, from those of `gain * x + bias`. Tensors of one shape; any.

    So what is measured while statistics are applied costs no other picture. Where the gain is next to nothing, so is
    what can be told of x, and what depends on it: its mean is then taken for 0 and its variance for 1.
    """
    told = gain.abs() > 1e-4
    safe = torch.where(told, gain, 1)
    return torch.where(told, (mean - bias) / safe, 0), torch.where(told, variance / safe.square(), 1)


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


def blend(a: Statistics, b: Statistics, share: float) -> Statistics:
    """Statistics on the way from `a` (share 0) to `b` (share 1); standard deviations, not variances, are mixed."""
    deviation = torch.lerp(a.variance.sqrt(), b.variance.sqrt(), share)
    return Statistics(torch.lerp(a.mean, b.mean, share), deviation.square())


def distance(a: Statistics, b: Statistics) -> float:
    """How differently two statistics of one frame normalise what `a` was measured on.

    The root mean square, over norms and channels, of the difference of the two normalised values, which with `a` have
    mean 0 and variance 1. 0 if they are equal; what it means for the picture is in benchmarks/NOTES.md.
    """
    deviation, other = (torch.sqrt(statistics.variance.double() + EPSILON) for statistics in (a, b))
    moved = (a.mean.double() - b.mean.double()) / other
    return float((moved.square() + (deviation / other - 1).square()).mean().sqrt())
