"""The generator on an NVIDIA GPU through PyTorch: channels-last convolutions of cuDNN, statistics in float32."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dped_live.errors import BackendError
from dped_live.generator import Generator
from dped_live.statistics import Statistics


class TorchCudaBackend:
    """Runs a generator on a CUDA device; see backends.Backend.

    precision: of weights and activations: torch.float16, torch.bfloat16 or torch.float32 (never TF32).
    """

    def __init__(self, generator: Generator, device: torch.device, precision: torch.dtype, description: str) -> None:
        self.device = device
        self.description = description
        self._precision = precision
        # fp32 was asked for where it is used: TF32 has the ten-bit mantissa of fp16.
        torch.backends.cudnn.allow_tf32 = False
        self._generator: Generator = copy.deepcopy(generator).to(device, precision)
        self._generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def enhance(self, image: Tensor, statistics: Statistics | None = None) -> Tensor:
        with torch.inference_mode(), _memory_error(image):
            enhanced: Tensor = self._generator.forward(self._input(image), statistics)
            return enhanced.float()

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        with torch.inference_mode(), _memory_error(image):
            enhanced, measured = self._generator.measure(self._input(image), statistics)
            return enhanced.float(), measured

    def _input(self, image: Tensor) -> Tensor:
        return image.to(self._precision, memory_format=torch.channels_last)


@contextmanager
def _memory_error(image: Tensor) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise BackendError(
            f"a {image.shape[3]}x{image.shape[2]} picture does not fit into the GPU's memory; "
            f"use --device cpu or a smaller picture"
        ) from error
