"""The generator as PyTorch runs it: channels-last convolutions of cuDNN or oneDNN, statistics in float32.
For GPUs; on CPUs torch_cpu.py is faster.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from dped_live.errors import TooLargeError
from dped_live.generator import WHOLE, Generator, Region
from dped_live.statistics import Statistics


class TorchModuleBackend:
    """Runs a generator on a device; see backends.Backend.

    precision: of weights and activations: torch.float16, torch.bfloat16 or torch.float32 (never TF32).
    """

    shares = False

    def __init__(self, generator: Generator, device: torch.device, precision: torch.dtype, description: str) -> None:
        self.device = device
        self.description = description
        # The block's input, a layer's input and its output, one more while ReLU copies, and cuDNN's workspace.
        self.bytes_per_pixel = self.bytes_per_pixel_given = 5 * generator.channels * precision.itemsize
        if device.type == "cuda":
            # fp32 was asked for where it is used: TF32 has the ten-bit mantissa of fp16.
            torch.backends.cudnn.allow_tf32 = False
        self._original = generator
        self._is_half = precision == torch.float16
        self._generator: Generator = copy.deepcopy(generator).to(device, precision)
        self._generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def in_float32(self) -> TorchModuleBackend | None:
        if not self._is_half:
            return None
        return TorchModuleBackend(self._original, self.device, torch.float32, f"{self.description}, in fp32")

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        with torch.inference_mode(), memory_error(image):
            enhanced: Tensor = self._generator.forward(_laid_out(image), statistics)
            return enhanced.float() if out is None else out.copy_(enhanced)

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        with torch.inference_mode(), memory_error(image):
            enhanced, measured = self._generator.measure(_laid_out(image), statistics, interior)
            return enhanced.float(), measured

    def statistics(self, image: Tensor) -> Statistics:
        with torch.inference_mode(), memory_error(image):
            found = self._generator.statistics(_laid_out(image))
            # This waits for a GPU; but whoever asks for statistics looks at them.
            if self.in_float32 is None or is_finite(found):
                return found
        return self.in_float32.statistics(image)

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        with torch.inference_mode(), memory_error(image):
            return self._generator.measure_next(_laid_out(image), before, interior)


def is_finite(statistics: Statistics) -> bool:
    """Whether all of it can be computed with."""
    return bool(statistics.mean.isfinite().all() & statistics.variance.isfinite().all())


def _laid_out(image: Tensor) -> Tensor:
    """As the first convolution wants it."""
    return image.contiguous(memory_format=torch.channels_last)


@contextmanager
def memory_error(image: Tensor) -> Iterator[None]:
    """Raises TooLargeError where a GPU has no memory left for this picture."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise TooLargeError(
            f"a {image.shape[3]}x{image.shape[2]} picture does not fit into the GPU's memory; "
            f"use --tile auto or --device cpu"
        ) from error
