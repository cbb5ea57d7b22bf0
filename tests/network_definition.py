"""What a TensorRT network definition computes, layer by layer in PyTorch: no GPU is needed, and nothing is optimised.

It reads the definition itself, as TensorRT's builder gets it: kinds of layers, weights, paddings, types. So what it
computes is what the engine is asked to be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def run(trt: Any, definition: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The definition's outputs by name, of their types."""
    values = dict(inputs)
    for number in range(definition.num_inputs):
        tensor = definition.get_input(number)
        assert values[tensor.name].dtype == _dtype(trt, tensor.dtype)
        assert all(a in (b, -1) for a, b in zip(tensor.shape, values[tensor.name].shape, strict=True))
    for number in range(definition.num_layers):
        layer = definition.get_layer(number)
        arguments = [values[layer.get_input(i).name] for i in range(layer.num_inputs) if layer.get_input(i) is not None]
        floating = {argument.dtype for argument in arguments if argument.is_floating_point()}
        assert len(floating) < 2, f"{layer.name} mixes types"
        output = layer.get_output(0)
        result = _computed(trt, layer, arguments, output)
        values[output.name] = result.to(_dtype(trt, output.dtype)) if result.is_floating_point() else result
    return {output.name: values[output.name] for output in map(definition.get_output, range(definition.num_outputs))}


def _dtype(trt: Any, kind: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, trt.nptype(kind))).dtype


def _computed(trt: Any, layer: Any, arguments: list[Tensor], output: Any) -> Tensor:
    kinds, kind = trt.LayerType, layer.type
    x = arguments[0] if arguments else torch.empty(0)
    if kind == kinds.CONSTANT:
        layer.__class__ = trt.IConstantLayer
        return torch.from_numpy(np.array(layer.weights).reshape(tuple(layer.shape)))
    if kind == kinds.CAST:
        assert x.dtype != torch.uint8 or output.dtype == trt.float32
        return x.to(_dtype(trt, output.dtype))
    if kind == kinds.SHAPE:
        return torch.tensor(x.shape)
    if kind == kinds.CONVOLUTION:
        layer.__class__ = trt.IConvolutionLayer
        kernel = torch.from_numpy(np.array(layer.kernel))
        kernel = kernel.reshape(layer.num_output_maps, x.shape[1], *layer.kernel_size_nd)
        bias = torch.from_numpy(np.array(layer.bias)).float() if layer.bias.size else None
        assert x.dtype == kernel.dtype
        padding, dilation = tuple(layer.padding_nd), tuple(layer.dilation_nd)
        # Half is accumulated in float32 on a GPU.
        return F.conv2d(x.float(), kernel.float(), bias, padding=padding, dilation=dilation)
    if kind == kinds.ACTIVATION:
        layer.__class__ = trt.IActivationLayer
        return torch.relu(x) if layer.type == trt.ActivationType.RELU else torch.tanh(x)
    if kind == kinds.UNARY:
        layer.__class__ = trt.IUnaryLayer
        if layer.op == trt.UnaryOperation.FLOOR:
            return x.floor()
        return x.sqrt() if layer.op == trt.UnaryOperation.SQRT else x.reciprocal()
    if kind == kinds.ELEMENTWISE:
        layer.__class__ = trt.IElementWiseLayer
        operation = trt.ElementWiseOperation
        binary: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
            operation.SUM: torch.add,
            operation.SUB: torch.sub,
            operation.PROD: torch.mul,
            operation.DIV: torch.div,
            operation.MAX: torch.maximum,
            operation.MIN: torch.minimum,
            operation.GREATER: torch.gt,
        }
        assert x.ndim == arguments[1].ndim
        return binary[layer.op](arguments[0], arguments[1])
    if kind == kinds.SELECT:
        return torch.where(arguments[0], arguments[1], arguments[2])
    if kind == kinds.REDUCE:
        layer.__class__ = trt.IReduceLayer
        axes = [axis for axis in range(x.ndim) if layer.axes >> axis & 1]
        assert layer.keep_dims
        if layer.op == trt.ReduceOperation.MAX:
            return x.amax(axes, keepdim=True)
        assert x.dtype == torch.float32, "a sum of half ends at 65504"
        if layer.op == trt.ReduceOperation.SUM:
            return x.sum(axes, keepdim=True)
        assert layer.op == trt.ReduceOperation.AVG
        return x.double().mean(axes, keepdim=True)
    if kind == kinds.GATHER:
        layer.__class__ = trt.IGatherLayer
        indices = arguments[1].long()
        taken = x.index_select(layer.axis, indices.flatten())
        return taken.reshape(*x.shape[: layer.axis], *indices.shape, *x.shape[layer.axis + 1 :])
    if kind == kinds.CONCATENATION:
        layer.__class__ = trt.IConcatenationLayer
        return torch.cat(arguments, layer.axis)
    if kind == kinds.SHUFFLE:
        layer.__class__ = trt.IShuffleLayer
        x = x.permute(tuple(layer.first_transpose)[: x.ndim])
        return x.reshape(_shape(layer.reshape_dims, x))
    assert kind == kinds.SLICE, f"{kind} is not known here"
    layer.__class__ = trt.ISliceLayer
    start = tuple(layer.start)
    shape = tuple(layer.shape) if len(arguments) == 1 else tuple(arguments[1].tolist())
    if layer.mode == trt.SampleMode.CLAMP:
        for axis, (begin, size) in enumerate(zip(start, shape, strict=True)):
            indices = torch.arange(begin, begin + size).clamp(0, x.shape[axis] - 1)
            x = x.index_select(axis, indices)
        return x
    for axis, (begin, size) in enumerate(zip(start, shape, strict=True)):
        assert begin + size <= x.shape[axis]
        x = x.narrow(axis, begin, size)
    return x


def _shape(wanted: Any, x: Tensor) -> tuple[int, ...]:
    """Of what a shuffle gives; 0: as before."""
    try:
        shape = tuple(wanted)
    except (TypeError, ValueError):  # it does not change it
        return tuple(x.shape)
    return tuple(size or x.shape[axis] for axis, size in enumerate(shape))
