"""The networks as TensorRT layers, one function each.

Types are explicit: a generator's convolutions and activations are half; what is calculated from a channel's mean and
variance, and the last tanh, is float32. TensorRT runs what follows a convolution in the convolution itself where it
can, so that float32 costs no memory there; tests/test_engine.py looks at what is left. Nothing here needs a GPU, or
torch but for the weights.

A tensor of TensorRT has no type for mypy: it is Any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dped_live.generator import TANH_OFFSET, TANH_SCALE, Generator
from dped_live.network import Network
from dped_live.statistics import EPSILON
from dped_live.table_network import SIDE, UNIT, VALUES, TableNetwork, Tables

IMAGE, GAIN, BIAS = "image", "gain", "bias"
ENHANCED, FINITE, MEAN, VARIANCE = "enhanced", "finite", "mean", "variance"
"""Names of an engine's inputs and outputs.

FINITE: float32 (1, 3, 1, 1), a number for each channel, which is finite if all values of that channel are: bytes cannot
tell. Generators have it in the form "uint8".
"""

Mode = Literal["exact", "given", "measuring"]
"""What normalises: the picture's own statistics; given ones; its own, which are told."""

Form = Literal["uint8", "float16"]
"""Of the picture, both ways.

"uint8": (1, H, W, 3), 0 to 255, what comes out is clipped and rounded: an 8-bit RGB plane as it is.
"float16": (1, 3, H, W), RGB in [0, 1], what comes out is not clamped. Half tells 10 bits apart: its steps are 2^-11 at
most.
"""

GRAPH_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
"""Of this file, so that no engine outlives a change of it."""

_SMALLER = 0.125
"""Deviations from a channel's mean are squared in half, which ends at 65504, and reach 151 in iphone."""

Array = NDArray[Any]


class Graph:
    """Layers of a network definition.

    trt: the package's module. definition: its INetworkDefinition, which does not copy the weights: they live as long
    as this. height, width: -1 where they are not fixed.
    """

    def __init__(self, trt: Any, definition: Any, form: Form, height: int, width: int) -> None:
        self.trt = trt
        self.definition = definition
        self._form = form
        self._height = height
        self._width = width
        self._arrays: list[Array] = []

    # Ends.

    def image(self, kind: Any) -> Any:
        """The picture, (1, 3, H, W), RGB in [0, 1], of the type `kind`."""
        bytes_, half = self.trt.uint8, self.trt.float16
        shape = (1, self._height, self._width, 3) if self._form == "uint8" else (1, 3, self._height, self._width)
        x = self.definition.add_input(IMAGE, bytes_ if self._form == "uint8" else half, shape)
        if self._form == "uint8":
            # The first layer of bytes must be the cast. Half, as the original has it; color.to_rgb does the same.
            x = self.cast(self.divide(self.cast(x, self.trt.float32), 255), half)
            x = self.permuted(x, (0, 3, 1, 2))
        return self.cast(x, kind)

    def laid_out(self, x: Any) -> Any:
        """(1, 3, H, W) as the result will lie in memory."""
        return self.permuted(x, (0, 2, 3, 1)) if self._form == "uint8" else x

    def enhanced(self, x: Any) -> None:
        """Make a picture the result: of float32, not clamped, laid out."""
        if self._form == "uint8":
            # The cast cuts off, and must be the last layer.
            levels = self.add(self.multiply(self.least(self.most(x, 0), 1), 255), 0.5)
            self.output(ENHANCED, self.cast(levels, self.trt.uint8))
        else:
            self.output(ENHANCED, self.cast(x, self.trt.float16))

    def told_finite(self, x: Any) -> None:
        """Tell of a picture (1, 3, H, W) whether it is finite, where the result cannot."""
        if self._form == "uint8":
            # A mean that is accumulated in float32 cannot overflow by itself.
            self.output(FINITE, self.spatial_mean(self.cast(x, self.trt.float32)))

    def input(self, name: str, shape: tuple[int, ...]) -> Any:
        return self.definition.add_input(name, self.trt.float32, shape)

    def output(self, name: str, x: Any) -> None:
        x.name = name
        self.definition.mark_output(x)

    # Layers.

    def constant(self, array: Array) -> Any:
        return self.definition.add_constant(array.shape, self._weights(array)).get_output(0)

    def convolution(self, x: Any, kernel: Array, bias: Array | None = None, padding: int = 0, dilation: int = 1) -> Any:
        """kernel: (out, in, h, w), of the type of x, as is the bias; padding: zeros around the picture."""
        nothing = self.trt.Weights()
        offsets = nothing if bias is None else self._weights(bias)
        layer = self.definition.add_convolution_nd(x, kernel.shape[0], kernel.shape[2:], self._weights(kernel), offsets)
        layer.padding_nd = (padding, padding)
        layer.dilation_nd = (dilation, dilation)
        return layer.get_output(0)

    def cast(self, x: Any, kind: Any) -> Any:
        return x if x.dtype == kind else self.definition.add_cast(x, kind).get_output(0)

    def relu(self, x: Any) -> Any:
        return self.definition.add_activation(x, self.trt.ActivationType.RELU).get_output(0)

    def tanh(self, x: Any) -> Any:
        return self.definition.add_activation(x, self.trt.ActivationType.TANH).get_output(0)

    def floor(self, x: Any) -> Any:
        return self.definition.add_unary(x, self.trt.UnaryOperation.FLOOR).get_output(0)

    def inverse_root(self, x: Any) -> Any:
        root = self.definition.add_unary(x, self.trt.UnaryOperation.SQRT).get_output(0)
        return self.definition.add_unary(root, self.trt.UnaryOperation.RECIP).get_output(0)

    def add(self, a: Any, b: Any) -> Any:
        """This and the next: a number stands for a tensor of it."""
        return self._elementwise(a, b, self.trt.ElementWiseOperation.SUM)

    def subtract(self, a: Any, b: Any) -> Any:
        return self._elementwise(a, b, self.trt.ElementWiseOperation.SUB)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._elementwise(a, b, self.trt.ElementWiseOperation.PROD)

    def divide(self, a: Any, b: Any) -> Any:
        return self._elementwise(a, b, self.trt.ElementWiseOperation.DIV)

    def most(self, a: Any, b: Any) -> Any:
        return self._elementwise(a, b, self.trt.ElementWiseOperation.MAX)

    def least(self, a: Any, b: Any) -> Any:
        return self._elementwise(a, b, self.trt.ElementWiseOperation.MIN)

    def where(self, a: Any, exceeds: Any, then: Any, otherwise: Any) -> Any:
        """`then` where a > exceeds."""
        told = self._elementwise(a, exceeds, self.trt.ElementWiseOperation.GREATER)
        return self.definition.add_select(told, self._tensor(then, a), self._tensor(otherwise, a)).get_output(0)

    def spatial_mean(self, x: Any) -> Any:
        """(1, C, H, W) -> (1, C, 1, 1). Accumulated in float32 only if x is float32."""
        rows_and_columns = 1 << 2 | 1 << 3
        return self.definition.add_reduce(x, self.trt.ReduceOperation.AVG, rows_and_columns, True).get_output(0)

    def largest_channel(self, x: Any) -> Any:
        return self.definition.add_reduce(x, self.trt.ReduceOperation.MAX, 1 << 1, True).get_output(0)

    def weighted_sum(self, weights: Any, rows: Array) -> Any:
        """weights (1, N), rows (N, M): (1, M). No matrix product: TensorRT has none in float32 for Turing cards."""
        parts = self.multiply(self.reshaped(weights, (rows.shape[0], 1)), self.constant(rows))
        return self.definition.add_reduce(parts, self.trt.ReduceOperation.SUM, 1 << 0, True).get_output(0)

    def taken(self, x: Any, indices: Any, axis: int) -> Any:
        return self.definition.add_gather(x, indices, axis).get_output(0)

    def joined(self, several: list[Any]) -> Any:
        """Along the first axis."""
        layer = self.definition.add_concatenation(several)
        layer.axis = 0
        return layer.get_output(0)

    def permuted(self, x: Any, order: tuple[int, ...]) -> Any:
        layer = self.definition.add_shuffle(x)
        layer.first_transpose = order
        return layer.get_output(0)

    def reshaped(self, x: Any, shape: tuple[int, ...]) -> Any:
        """0 in the shape: as before."""
        layer = self.definition.add_shuffle(x)
        layer.reshape_dims = shape
        return layer.get_output(0)

    def rows(self, x: Any, count: int) -> list[Any]:
        """(count, C) in parts (1, C, 1, 1)."""
        channels = x.shape[1]
        # Reshaped before it is cut, TensorRT cuts it in one go.
        x = self.reshaped(x, (count, channels, 1, 1))
        return [
            self.definition.add_slice(x, (row, 0, 0, 0), (1, channels, 1, 1), (1, 1, 1, 1)).get_output(0)
            for row in range(count)
        ]

    def continued(self, x: Any, margin: int) -> Any:
        """A picture with its border repeated so many times around it."""
        shape = self.cast(self.definition.add_shape(x).get_output(0), self.trt.int32)
        wider = self.add(shape, self.constant(np.array([0, 0, 2 * margin, 2 * margin], np.int32)))
        layer = self.definition.add_slice(x, (0, 0, -margin, -margin), (0, 0, 0, 0), (1, 1, 1, 1))
        layer.set_input(2, wider)
        layer.mode = self.trt.SampleMode.CLAMP
        return layer.get_output(0)

    def _elementwise(self, a: Any, b: Any, operation: Any) -> Any:
        return self.definition.add_elementwise(self._tensor(a, b), self._tensor(b, a), operation).get_output(0)

    def _tensor(self, x: Any, like: Any) -> Any:
        if not isinstance(x, int | float):
            return x
        return self.constant(np.full((1,) * len(like.shape), x, self.trt.nptype(like.dtype)))

    def _weights(self, array: Array) -> Any:
        array = np.ascontiguousarray(array)
        self._arrays.append(array)
        return self.trt.Weights(array)


def generator(graph: Graph, network: Generator, mode: Mode) -> None:
    """Generator.forward and measure.

    "given" takes GAIN and BIAS, float32 (norms, channels), as Statistics.gain_and_bias has them, which run in the
    convolutions. "measuring" gives MEAN and VARIANCE, of this shape.
    """
    half, single = graph.trt.float16, graph.trt.float32
    shape = network.norms, network.channels
    gains, biases, means, variances = [], [], [], []
    if mode == "given":
        gains, biases = (graph.rows(graph.input(name, shape), network.norms) for name in (GAIN, BIAS))
    x = graph.relu(_convolved(graph, graph.image(half), network.first))
    for block in range(network.blocks):
        y = x
        for norm in (2 * block, 2 * block + 1):
            y = _convolved(graph, y, network.residual[norm])
            if mode == "given":
                y = graph.add(graph.multiply(graph.cast(y, single), gains[norm]), biases[norm])
            else:
                scale, shift = _single(network.norm_scale[norm]), _single(network.norm_shift[norm])
                y, mean, variance = normalised(graph, y, scale[None, :, None, None], shift[None, :, None, None])
                means.append(mean)
                variances.append(variance)
            y = graph.cast(graph.relu(y), half)
        x = graph.add(x, y)
    for layer in network.tail:
        x = graph.relu(_convolved(graph, x, layer))
    x = _convolved(graph, x, network.last)
    graph.told_finite(x)
    x = graph.tanh(graph.cast(graph.laid_out(x), single))
    graph.enhanced(graph.add(graph.multiply(x, TANH_SCALE), TANH_OFFSET))
    if mode == "measuring":
        graph.output(MEAN, graph.reshaped(graph.joined(means), shape))
        graph.output(VARIANCE, graph.reshaped(graph.joined(variances), shape))


def _convolved(graph: Graph, x: Any, layer: nn.Module) -> Any:
    """By a layer of a generator, which keeps the size, in half."""
    assert isinstance(layer, nn.Conv2d)
    kernel = _single(layer.weight).astype(np.float16)
    bias = None if layer.bias is None else _single(layer.bias).astype(np.float16)
    return graph.convolution(x, kernel, bias, padding=kernel.shape[2] // 2)


def normalised(graph: Graph, y: Any, scale: Array, shift: Array) -> tuple[Any, Any, Any]:
    """Instance norm of half (1, C, H, W), in float32, and the mean and variance (1, C, 1, 1) that it found.

    Written out, because TensorRT's own layer, and whatever uses a float32 copy of y twice, keeps that copy in memory:
    12.6 GB are moved for a picture of 1280x720 then, and 6.9 GB in this way. So y becomes float32 within the sums only.
    The deviations are from the mean rounded to half, and what the rounding took is brought back afterwards.
    They are calculated twice, in two ways: of the same one TensorRT would keep the result, too.
    """
    half, single = graph.trt.float16, graph.trt.float32
    mean = graph.spatial_mean(graph.cast(y, single))
    rounded = graph.cast(mean, half)
    rest = graph.subtract(mean, graph.cast(rounded, single))
    deviation = graph.multiply(graph.subtract(y, rounded), _SMALLER)
    squares = graph.spatial_mean(graph.cast(graph.multiply(deviation, deviation), single))
    variance = graph.subtract(graph.multiply(squares, _SMALLER**-2), graph.multiply(rest, rest))
    variance = graph.most(variance, 0)
    gain = graph.multiply(graph.constant(scale), graph.inverse_root(graph.add(variance, EPSILON)))
    bias = graph.subtract(graph.constant(shift), graph.multiply(rest, gain))
    opposite = graph.cast(graph.subtract(rounded, y), single)
    return graph.add(graph.multiply(opposite, graph.multiply(gain, -1)), bias), mean, variance


def table_network(graph: Graph, network: TableNetwork, mode: Mode) -> None:
    """TableNetwork.enhanced, in float32: TensorRT makes a few kernels of it, look-ups and all.

    Takes MEAN, float32 (1, VALUES), as its Statistics have it. What a scene's are is found before the first table, so
    "given" is all there is: `TableNetwork.statistics` measures.
    """
    if mode != "given":
        raise ValueError("a table network's engine takes its statistics")
    single = graph.trt.float32
    values = graph.multiply(graph.input(MEAN, (1, VALUES)), 1 / UNIT)
    detail = network.detail
    strength = graph.weighted_sum(values, _single(detail.strength.weight).T)
    strength = graph.add(strength, graph.constant(_single(detail.strength.bias)[None]))
    threshold = graph.constant(_single(detail.threshold.abs())[None, :, None, None])

    image = _looked_up(graph, _mixed(graph, network.first, values), graph.image(single))
    x = graph.convolution(graph.continued(image, 1), _single(detail.kernel))
    x = graph.relu(graph.subtract(x, threshold))
    x = graph.multiply(x, graph.reshaped(strength, (1, -1, 1, 1)))
    middle = graph.convolution(graph.continued(x, 2), _single(detail.middle.weight), dilation=2)
    x = graph.add(x, graph.relu(middle))
    change = graph.convolution(graph.continued(x, 1), _single(detail.last.weight))
    most = graph.largest_channel(image)
    change = graph.least(graph.most(change, graph.multiply(most, -1)), most)
    image = _looked_up(graph, _mixed(graph, network.second, values), graph.add(image, change))
    graph.enhanced(graph.laid_out(image))


def _mixed(graph: Graph, tables: Tables, values: Any) -> Any:
    """The table (SIDE^3, 3) of a scene."""
    with torch.inference_mode():
        unchanged = tables.mixed(torch.zeros(1, VALUES))
        offsets = tables.mixed(torch.eye(VALUES)) - unchanged
    flat = graph.weighted_sum(values, _single(offsets).reshape(VALUES, -1))
    return graph.reshaped(graph.add(flat, graph.constant(_single(unchanged).reshape(1, -1))), (SIDE**3, 3))


def _looked_up(graph: Graph, table: Any, image: Any) -> Any:
    """table_network.look_up."""
    places = graph.multiply(graph.least(graph.most(image, 0), 1), SIDE - 1)
    cells = graph.least(graph.floor(places), SIDE - 2)
    channels = [graph.constant(np.array([channel], np.int32)) for channel in range(3)]
    i, j, k = (graph.taken(cells, channel, 1) for channel in channels)
    red, green, blue = (graph.taken(graph.subtract(places, cells), channel, 1) for channel in channels)
    steps = SIDE * SIDE, SIDE, 1
    # Along the axes in the order of what is left: the largest first.
    first = graph.where(
        green, red, graph.where(blue, green, steps[2], steps[1]), graph.where(blue, red, steps[2], steps[0])
    )
    last = graph.where(
        blue, red, graph.where(green, red, steps[0], steps[1]), graph.where(blue, green, steps[1], steps[2])
    )
    high = graph.most(red, graph.most(green, blue))
    low = graph.least(red, graph.least(green, blue))
    middle = graph.subtract(graph.subtract(graph.add(graph.add(red, green), blue), high), low)
    corner = graph.add(graph.add(graph.multiply(i, steps[0]), graph.multiply(j, steps[1])), k)
    opposite = graph.add(corner, sum(steps))
    corners = corner, graph.add(corner, first), graph.subtract(opposite, last), opposite
    weights = graph.subtract(1, high), graph.subtract(high, middle), graph.subtract(middle, low), low
    result = None
    for place, weight in zip(corners, weights, strict=True):
        index = graph.reshaped(graph.permuted(graph.cast(place, graph.trt.int32), (0, 2, 3, 1)), (0, 0, 0))
        part = graph.multiply(graph.taken(table, index, 0), graph.permuted(weight, (0, 2, 3, 1)))  # (1, H, W, 3)
        result = part if result is None else graph.add(result, part)
    return graph.permuted(result, (0, 3, 1, 2))


def _single(tensor: Tensor) -> Array:
    return tensor.detach().cpu().float().numpy()


NETWORKS: dict[type[Network], Callable[[Graph, Any, Mode], None]] = {
    Generator: generator,
    TableNetwork: table_network,
}
"""What defines which kind of network."""

MODES: dict[type[Network], tuple[Mode, ...]] = {
    Generator: ("exact", "given", "measuring"),
    TableNetwork: ("given",),
}
"""What of it there is."""

FORMS: dict[Mode, tuple[Form, ...]] = {
    "exact": ("uint8", "float16"),
    "given": ("uint8", "float16"),
    "measuring": ("float16",),
}
"""What is run. Pictures are measured before the conversion to bytes is decided on, and live ones not each time."""
