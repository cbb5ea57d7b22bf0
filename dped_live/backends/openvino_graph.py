"""The generator as OpenVINO's graph, of its own operations.

What goes into the 3x3 convolutions has been through a ReLU, so that 8 bits without a sign hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops
from torch import Tensor, nn

from dped_live.backends.torch_cpu import four_pixels_at_once
from dped_live.generator import TANH_OFFSET, TANH_SCALE, Generator
from dped_live.statistics import EPSILON

Norm = Literal["given", "exact"]
"""By given statistics, or by the picture's own."""

IMAGE, GAIN, BIAS = range(3)
"""The inputs, float32: (1, 3, H, W); for "given" also two of (norms, channels), see Statistics.gain_and_bias."""


class GeneratorGraph:
    """A generator for pictures of one size.

    ranges: what the 3x3 convolutions are to take at most, in their order; they then compute in 8 bits. None: in the
    precision of the rest. splits: a picture has more digits than bf16, and rounding it is most of what bf16 costs in
    exactness; so the first layer gets what is rounded away as three more channels.
    """

    def __init__(
        self,
        generator: Generator,
        norm: Norm,
        height: int,
        width: int,
        splits: bool = False,
        ranges: Sequence[float] | None = None,
    ) -> None:
        self._ranges = ranges
        self._taken: list[ov.Node] = []
        image = ops.parameter([1, 3, height, width], np.float32)
        inputs = [image]
        if norm == "given":
            inputs += [ops.parameter([generator.norms, generator.channels], np.float32) for _ in range(2)]

        weight = _array(generator.first.weight)
        picture: ov.Node = image
        if splits:
            rounded = ops.convert(ops.convert(image, "bf16"), "f32")
            picture = ops.concat([rounded, ops.subtract(image, rounded)], 1)
            weight = np.concatenate((weight, weight), axis=1)
        x = ops.relu(ops.add(_convolution(picture, _constant(weight), 4), _by_channel(generator.first.bias)))
        for block in range(generator.blocks):
            y = x
            for layer in (2 * block, 2 * block + 1):
                y = self._residual(y, generator, layer, inputs)
            x = ops.add(x, y)
        for convolution in generator.tail:
            assert isinstance(convolution, nn.Conv2d)
            x = ops.relu(ops.add(self._small(x, convolution.weight), _by_channel(convolution.bias)))
        self._inputs, self._outputs = inputs, [_enhanced(x, generator, height, width)]

    def model(self) -> ov.Model:
        """Its output is the enhanced picture, float32 (1, 3, H, W), not clamped."""
        return ov.Model(self._outputs, self._inputs)

    def watched(self) -> ov.Model:
        """The model with more outputs: the largest number that each 3x3 convolution takes, in their order."""
        whole = _integers(0, 1, 2, 3)
        largest = [ops.reduce_max(taken, whole, keep_dims=False) for taken in self._taken]
        return ov.Model([*self._outputs, *largest], self._inputs)

    def _residual(self, x: ov.Node, generator: Generator, layer: int, inputs: list[ov.Node]) -> ov.Node:
        y = self._small(x, generator.residual_weights[layer])
        if len(inputs) == 1:
            y = ops.mvn(y, _integers(2, 3), True, EPSILON, "INSIDE_SQRT")
            gain, bias = _by_channel(generator.norm_scale[layer]), _by_channel(generator.norm_shift[layer])
        else:
            gain, bias = (
                ops.reshape(ops.gather(inputs[which], _integers(layer), _integers(0)), _integers(1, -1, 1, 1), False)
                for which in (GAIN, BIAS)
            )
        return ops.relu(ops.add(ops.multiply(y, gain), bias))

    def _small(self, x: ov.Node, weight: Tensor) -> ov.Node:
        """A 3x3 convolution."""
        layer = len(self._taken)
        self._taken.append(x)
        values = _constant(_array(weight))
        if self._ranges is not None:
            x = _in_steps(x, np.zeros(1), np.array(self._ranges[layer]), 256)
            largest = np.abs(_array(weight)).max(axis=(1, 2, 3), keepdims=True)
            values = _in_steps(values, -largest, largest, 255)
        return _convolution(x, values, 1)


def _enhanced(x: ov.Node, generator: Generator, height: int, width: int) -> ov.Node:
    weight, bias = four_pixels_at_once(generator.last.weight, generator.last.bias)
    assert bias is not None
    odd = [height % 2, width % 2]
    ends = [4 + more for more in odd]
    pairs = ops.convolution(x, _constant(_array(weight)), [2, 2], [4, 4], ends, [1, 1])
    y = ops.depth_to_space(ops.add(pairs, _by_channel(bias)), "depth_first", 2)
    if any(odd):
        y = ops.slice(y, _integers(0, 0), _integers(height, width), _integers(1, 1), _integers(2, 3))
    return ops.add(ops.multiply(ops.tanh(y), _constant(TANH_SCALE)), _constant(TANH_OFFSET))


def _convolution(x: ov.Node, weight: ov.Node, padding: int) -> ov.Node:
    return ops.convolution(x, weight, [1, 1], [padding] * 2, [padding] * 2, [1, 1])


def _in_steps(x: ov.Node, least: NDArray[np.float64], most: NDArray[np.float64], levels: int) -> ov.Node:
    low, high = _constant(least), _constant(most)
    return ops.fake_quantize(x, low, high, low, high, levels)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def _by_channel(values: Tensor | None) -> ov.Node:
    assert values is not None
    return _constant(_array(values).reshape(1, -1, 1, 1))


def _constant(values: NDArray[np.floating] | float) -> ov.Node:
    return ops.constant(np.ascontiguousarray(values, np.float32))


def _integers(*values: int) -> ov.Node:
    return ops.constant(np.array(values, np.int64))
