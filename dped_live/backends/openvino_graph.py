"""The generator as OpenVINO's graph, of its own operations.

What goes into all convolutions but the first has been through a ReLU, so that 8 bits without a sign hold it.
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

    ranges: what each convolution that can compute in 8 bits is to take at most, in their order: all but the first and
    the one behind the blocks, which takes the sum of them all; that in 8 bits would lose more than all the others
    together. None: in the precision of the rest. splits: a picture has more digits than bf16, and rounding it is most
    of what bf16 costs in exactness; so the first layer gets what is rounded away as three more channels.
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
        for number, convolution in enumerate(generator.tail):
            assert isinstance(convolution, nn.Conv2d)
            weight = _array(convolution.weight)
            convolved = _convolution(x, _constant(weight), 1) if number == 0 else self._in_8_bits(x, weight)
            x = ops.relu(ops.add(convolved, _by_channel(convolution.bias)))
        self._inputs, self._outputs = inputs, [self._enhanced(x, generator, height, width)]

    def model(self) -> ov.Model:
        """Its output is the enhanced picture, float32 (1, 3, H, W), not clamped."""
        return ov.Model(self._outputs, self._inputs)

    def watched(self) -> ov.Model:
        """The model with more outputs: the largest number that each convolution takes which can compute in 8 bits."""
        whole = _integers(0, 1, 2, 3)
        largest = [ops.reduce_max(taken, whole, keep_dims=False) for taken in self._taken]
        return ov.Model([*self._outputs, *largest], self._inputs)

    def _residual(self, x: ov.Node, generator: Generator, layer: int, inputs: list[ov.Node]) -> ov.Node:
        y = self._in_8_bits(x, _array(generator.residual_weights[layer]))
        if len(inputs) == 1:
            y = ops.mvn(y, _integers(2, 3), True, EPSILON, "INSIDE_SQRT")
            gain, bias = _by_channel(generator.norm_scale[layer]), _by_channel(generator.norm_shift[layer])
        else:
            gain, bias = (
                ops.reshape(ops.gather(inputs[which], _integers(layer), _integers(0)), _integers(1, -1, 1, 1), False)
                for which in (GAIN, BIAS)
            )
        return ops.relu(ops.add(ops.multiply(y, gain), bias))

    def _enhanced(self, x: ov.Node, generator: Generator, height: int, width: int) -> ov.Node:
        weight, bias = four_pixels_at_once(generator.last.weight, generator.last.bias)
        odd = [height % 2, width % 2]
        pairs = self._in_8_bits(x, _array(weight), 4, [4 + more for more in odd], 2)
        y = ops.depth_to_space(ops.add(pairs, _by_channel(bias)), "depth_first", 2)
        if any(odd):
            y = ops.slice(y, _integers(0, 0), _integers(height, width), _integers(1, 1), _integers(2, 3))
        return ops.add(ops.multiply(ops.tanh(y), _constant(TANH_SCALE)), _constant(TANH_OFFSET))

    def _in_8_bits(
        self,
        x: ov.Node,
        weight: NDArray[np.float32],
        padding: int = 1,
        ends: Sequence[int] | None = None,
        stride: int = 1,
    ) -> ov.Node:
        """A convolution, in 8 bits where the graph has ranges."""
        values = _constant(weight)
        self._taken.append(x)
        if self._ranges is not None:
            most = self._ranges[len(self._taken) - 1]
            x = _in_steps(x, np.zeros(1), np.array(most), 256)
            largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
            values = _in_steps(values, -largest, largest, 255)
        return _convolution(x, values, padding, ends, stride)


def _convolution(
    x: ov.Node, weight: ov.Node, padding: int, ends: Sequence[int] | None = None, stride: int = 1
) -> ov.Node:
    """padding: at the top and left, and at the bottom and right unless `ends` says otherwise."""
    before = [padding] * 2
    return ops.convolution(x, weight, [stride] * 2, before, before if ends is None else list(ends), [1, 1])


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
