"""The values that training starts from: `weight_variable`, `bias_variable` and `_instance_norm` of models.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dped_live.generator import Generator

DEVIATION = 0.01
"""Of the weights, before what lies beyond two deviations is drawn again."""

BIAS = 0.01


@torch.no_grad()
def initialise(module: nn.Module, random: torch.Generator) -> None:
    """Set the parameters of a generator or discriminator, in place, to what the original starts from.

    Weights are drawn from a normal distribution of deviation 0.01, truncated at two deviations; biases are 0.01;
    norms scale by 1 and shift by 0.

    random: the source of all randomness. The values depend on its state and device alone, not on the module's device
    or memory format. The original gives all convolutions of its discriminator one fixed seed; this is not followed.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            _draw(part.weight, random)
            if part.bias is not None:
                part.bias.fill_(BIAS)
        elif isinstance(part, nn.InstanceNorm2d):
            part.reset_parameters()
        elif isinstance(part, Generator):
            part.norm_scale.fill_(1)
            part.norm_shift.fill_(0)


def _draw(weight: Tensor, random: torch.Generator) -> None:
    values = torch.empty(weight.shape, device=random.device)
    nn.init.trunc_normal_(values, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION, generator=random)
    weight.copy_(values)
