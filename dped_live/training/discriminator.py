"""The discriminator (Ignatov et al., ICCV 2017, section 3.2; `adversarial` in the original's models.py).

    11x11 conv 1->48, stride 4       leaky ReLU
    5x5 conv 48->128, stride 2       leaky ReLU, norm
    3x3 conv 128->192                leaky ReLU, norm
    3x3 conv 192->192                leaky ReLU, norm
    3x3 conv 192->128, stride 2      leaky ReLU, norm
    fully connected 1024             leaky ReLU
    fully connected 2

The leaky ReLU has a slope of 0.2. The instance norm comes AFTER it, so every bias counts. Convolutions pad as
TensorFlow's SAME does, which is not symmetric: a patch of 100 pixels gets 3 before and 4 after it in the first layer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dped_live.statistics import EPSILON

SLOPE = 0.2

CONVOLUTIONS = ((1, 48, 11, 4), (48, 128, 5, 2), (128, 192, 3, 1), (192, 192, 3, 1), (192, 128, 3, 2))
"""Channels in, channels out, size, stride."""

STRIDE = 16
"""Of all convolutions together."""


class Discriminator(nn.Module):
    """Tells enhanced pictures from those of the good camera, without seeing colour.

    patch: height and width of the pictures, from 17 up, where a norm still has more than one position.
    `initialise` gives it the original's initial values; PyTorch's own are others.
    """

    def __init__(self, patch: int = 100) -> None:
        super().__init__()
        if patch <= STRIDE:
            raise ValueError(f"the discriminator needs patches of more than {STRIDE} pixels, not {patch}")
        self.convolutions = nn.ModuleList(_Convolution(*numbers) for numbers in CONVOLUTIONS)
        self.norms = nn.ModuleList(
            nn.InstanceNorm2d(channels, eps=EPSILON, affine=True) for _, channels, _, _ in CONVOLUTIONS[1:]
        )
        positions = -(-patch // STRIDE)
        self.hidden = nn.Linear(CONVOLUTIONS[-1][1] * positions**2, 1024)
        self.output = nn.Linear(1024, 2)

    def forward(self, grey: Tensor) -> Tensor:
        """Judge pictures.

        grey: (N, 1, patch, patch), in nominal [0, 1], of the parameters' type and device.
        Returns logits (N, 2), column 0 for "of the good camera", column 1 for "enhanced". The original returns their
        softmax.
        """
        x = F.leaky_relu(self.convolutions[0](grey), SLOPE)
        for convolution, norm in zip(self.convolutions[1:], self.norms, strict=True):
            x = norm(F.leaky_relu(convolution(x), SLOPE))
        logits: Tensor = self.output(F.leaky_relu(self.hidden(x.flatten(1)), SLOPE))
        return logits


class _Convolution(nn.Conv2d):
    """Pads with zeros so that there is an output for every `stride` pixels, with the odd one after the picture."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Conv2d gives it
        size, stride = self.kernel_size[0], self.stride[0]
        padding: list[int] = []
        for length in (input.shape[3], input.shape[2]):  # columns first, as F.pad wants it
            outputs = -(-length // stride)
            missing = max((outputs - 1) * stride + size - length, 0)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(input, padding))
