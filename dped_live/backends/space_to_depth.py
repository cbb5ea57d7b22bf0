"""The two 9x9 layers in blocks of 4x4 pixels.

A GPU's matrix units work on 16 channels and more; the first layer reads 3 and the last writes 3. With the pixels of a
block taken for channels the first becomes a 3x3 layer from 48 to 16 C channels, the last one of 12x12 with stride 4 to
48. The sums are the same, with zeros among them: 55 kFLOP a pixel instead of 31 for 64 channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 4
"""Pixels of a side. As many as the 9x9 layers reach, so that a block needs the blocks beside it and no others."""


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Of a picture in whole blocks, with one more on each side."""
    return BLOCK * (math.ceil(height / BLOCK) + 2), BLOCK * (math.ceil(width / BLOCK) + 2)


def first_weight(weight: Tensor) -> Tensor:
    """The first layer's weight (C, 3, 9, 9) as (16 C, 48, 3, 3): out and in are (row, column, channel) of a block."""
    channels = len(weight)
    wide = weight.new_zeros((BLOCK, BLOCK, channels, 3, 3 * BLOCK, 3 * BLOCK))
    for y in range(BLOCK):
        for x in range(BLOCK):
            wide[y, x, :, :, y : y + 9, x : x + 9] = weight
    blocks = wide.reshape(BLOCK * BLOCK * channels, 3, 3, BLOCK, 3, BLOCK)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(-1, 3 * BLOCK * BLOCK, 3, 3)


def first_layer(padded: Tensor, height: int, width: int, weight: Tensor, bias: Tensor) -> Tensor:
    """ReLU(convolution + bias) of the first layer.

    padded: (1, 3, *padded_size(height, width)), channels_last: the picture with a block of zeros above and on the left
    and zeros after it. weight: see first_weight. bias: (16 C), C numbers again and again. Returns (1, C, H, W),
    channels_last.
    """
    tall, wide = padded.shape[2] // BLOCK, padded.shape[3] // BLOCK
    blocks = padded.reshape(1, 3, tall, BLOCK, wide, BLOCK).permute(0, 3, 5, 1, 2, 4)
    blocks = blocks.reshape(1, 3 * BLOCK * BLOCK, tall, wide).contiguous(memory_format=torch.channels_last)
    convolved = F.conv2d(blocks, weight, bias)
    channels = len(bias) // BLOCK**2
    result = convolved.new_empty((tall - 2, BLOCK, wide - 2, BLOCK, channels))
    # (row, column, channel) of blocks that lie side by side, to pixels that do: one pass, which the ReLU shares.
    source = convolved[0].view(BLOCK, BLOCK, channels, tall - 2, wide - 2).permute(3, 0, 4, 1, 2)
    torch.clamp_min(source, 0, out=result)
    whole = result.view(1, BLOCK * (tall - 2), BLOCK * (wide - 2), channels)[:, :height, :width]
    return whole.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def last_weight(weight: Tensor) -> Tensor:
    """The last layer's weight (3, C, 9, 9) as (48, C, 12, 12), in the order of pixel_shuffle."""
    channels = weight.shape[1]
    wide = weight.new_zeros((3, BLOCK, BLOCK, channels, 3 * BLOCK, 3 * BLOCK))
    for y in range(BLOCK):
        for x in range(BLOCK):
            wide[:, y, x, :, y : y + 9, x : x + 9] = weight
    return wide.reshape(3 * BLOCK * BLOCK, channels, 3 * BLOCK, 3 * BLOCK)


def last_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last layer, without tanh. weight: see last_weight. bias: (48). Returns (1, 3, H, W)."""
    height, width = x.shape[2:]
    # What is missing to whole blocks is padded at the end; padding is symmetric, so the beginning gets it too.
    down, right = -height % BLOCK, -width % BLOCK
    blocks = F.conv2d(x, weight, bias, stride=BLOCK, padding=(BLOCK + down, BLOCK + right))
    return F.pixel_shuffle(blocks, BLOCK)[:, :, down : down + height, right : right + width]
