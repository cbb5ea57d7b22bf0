"""A TensorRT engine on a card: its buffers, its CUDA graph, its warm-up.

tensorrt-rtx compiles an engine's kernels for the card when it is first loaded, keeps them in a runtime cache, which is
written to a file beside the engine, and captures CUDA graphs by itself. With tensorrt torch captures them. Both need a
stream other than CUDA's default one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dped_live import weights
from dped_live.backends import engine_export
from dped_live.backends.engine import ENHANCED, IMAGE, Package
from dped_live.errors import BackendError, TooLargeError

_WARM_UP = 3
"""Runs before an engine is used: in the first kernels are compiled, after it graphs are captured."""

_RESERVE = 0.9
"""Part of the free memory that an engine may take; what is enhanced needs some too."""


class UnusableEngineError(Exception):
    """TensorRT does not take a plan, though it is as it was built: why."""


class RunningEngine:
    """An engine for pictures of one size, ready to run.

    plan: see engine.read_plan. height, width: of the pictures; a dynamic engine is set to them. cache: the file of the
    runtime cache; what TensorRT does not accept of it is replaced.
    note: what is not as usual, for people.

    The buffers of inputs and outputs are allocated once, for a CUDA graph holds their addresses. They belong to this
    object. Used by one thread at a time; streams are put in order.

    Raises UnusableEngineError, TooLargeError and BackendError.
    """

    def __init__(
        self, package: Package, plan: bytes, height: int, width: int, device: torch.device, cache: Path
    ) -> None:
        self.note: str | None = None
        self._package = package
        self._device = device
        self._complaints: list[str] = []
        self._logger = _logger(package.module, self._complaints)
        self._graph: torch.cuda.CUDAGraph | None = None
        with torch.cuda.device(device):
            self._runtime = package.module.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise UnusableEngineError(self._last_complaint())
            check_memory(device, self._engine.device_memory_size_v2, height, width)
            if package.is_rtx:
                self._config = self._configured()
                self._kernels = self._config.create_runtime_cache()
                with contextlib.suppress(OSError):  # there is none yet
                    # It refuses what another version or card has left.
                    self._kernels.deserialize(cache.read_bytes())
                self._config.set_runtime_cache(self._kernels)
                self._context = self._engine.create_execution_context(runtime_config=self._config)
            else:
                self._context = self._engine.create_execution_context()
            if self._context is None:
                raise TooLargeError(
                    f"{package.title} cannot prepare the engine for {width}x{height} ({self._last_complaint()}); "
                    "use --tile auto or --backend torch"
                )
            self._buffers = self._bound(height, width)
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._warm_up()
            if package.is_rtx:
                _keep(self._kernels, cache)

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All outputs for all inputs, on the device, by name. What is returned is valid until the next run.

        Inputs of another type are rounded to the engine's. The picture and what is enhanced are as engine_graph.Form
        has them, all else is float32. Enqueues on the current stream, and waits for nothing.
        """
        for name, tensor in inputs.items():
            self._buffers[name].copy_(tensor)
        if self._graph is not None:
            self._graph.replay()
        else:
            with self._off_the_default_stream() as stream:
                self._execute(stream)
        return self._buffers

    def _configured(self) -> Any:
        """How tensorrt-rtx runs the engine."""
        trt = self._package.module
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Compiled at once: otherwise the first pictures would be slower than the others.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return config

    def _bound(self, height: int, width: int) -> dict[str, Tensor]:
        """A buffer for each input and output, by our name for it."""
        trt = self._package.module
        types = {trt.uint8: torch.uint8, trt.float16: torch.float16, trt.float32: torch.float32}
        is_bytes = self._engine.get_tensor_dtype(IMAGE) == trt.uint8
        if not self._context.set_input_shape(IMAGE, (1, height, width, 3) if is_bytes else (1, 3, height, width)):
            raise UnusableEngineError(self._last_complaint())
        buffers = {}
        for number in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(number)
            kind, shape = types[self._engine.get_tensor_dtype(name)], self._context.get_tensor_shape(name)
            buffer = torch.zeros(tuple(shape), dtype=kind, device=self._device)
            self._context.set_tensor_address(name, buffer.data_ptr())
            buffers[ENHANCED if name == engine_export.ENHANCED else name] = buffer
        return buffers

    def _warm_up(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for _ in range(_WARM_UP):
            self._execute(self._stream)
        self._stream.synchronize()
        if self._package.is_rtx:
            return
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do, such as decoding on the card, must not end the capture.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._execute(self._stream)
        except RuntimeError as error:
            self.note = (
                f"{self._package.title} runs without a CUDA graph, somewhat slower: {str(error).splitlines()[0]}"
            )
        else:
            self._graph = graph

    def _execute(self, stream: torch.cuda.Stream) -> None:
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise BackendError(
                f"{self._package.title} cannot run its engine ({self._last_complaint()}); use --backend torch"
            )

    @contextmanager
    def _off_the_default_stream(self) -> Iterator[torch.cuda.Stream]:
        """The current stream, or one of our own before and after which it waits."""
        current = torch.cuda.current_stream(self._device)
        if current != torch.cuda.default_stream(self._device):
            yield current
            return
        self._stream.wait_stream(current)
        yield self._stream
        current.wait_stream(self._stream)

    def _last_complaint(self) -> str:
        return self._complaints[-1] if self._complaints else "it does not say why"


def check_memory(device: torch.device, needed: float, height: int, width: int) -> None:
    """Raise TooLargeError where a card has no such memory free for an engine. needed: bytes."""
    free, _ = torch.cuda.mem_get_info(device)
    if needed > _RESERVE * free:
        # What torch keeps for itself may be enough.
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
    if needed > _RESERVE * free:
        raise TooLargeError(
            f"an engine for {width}x{height} needs {needed / 1e9:.1f} GB of the card's memory, and {free / 1e9:.1f} GB "
            "are free; use --tile auto, or close other programs"
        )


def _keep(kernels: Any, path: Path) -> None:
    """Write a runtime cache beside its engine."""
    content = bytes(kernels.serialize())
    with contextlib.suppress(OSError):  # it only saves time
        if not path.exists() or path.read_bytes() != content:
            weights.replace_file(path, content)


def _logger(trt: Any, complaints: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                complaints.append(" ".join(message.split()))

    return Logger()
