"""Networks on NVIDIA cards by TensorRT's engines, which are found or built when a picture of their size first comes.

What there is no engine for, such as the statistics of parts of a picture, is done by torch beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from dped_live.backends import WholeBackend, engine, engine_export
from dped_live.backends.engine import EngineKey, Form, Mode, Package
from dped_live.backends.engine_run import RunningEngine, UnusableEngineError, check_memory
from dped_live.backends.table import TableBackend
from dped_live.backends.torch_module import is_finite, memory_error
from dped_live.errors import BackendError, TooLargeError
from dped_live.generator import WHOLE, Generator, Region
from dped_live.network import Network
from dped_live.statistics import Statistics

_BYTES = 6.5
"""About what a generator's engine takes for each pixel and channel: 349 MiB at 1280x720 for 64, as TensorRT says."""

_TABLE_BYTES = 200
"""The same for each pixel of a table network's; an upper bound, from its layers."""

_SIZES = 2
"""Of so many sizes are engines built without being asked for: a camera or a video has one, or another without its
borders. Photos are of any size."""

_LEAST_CAPABILITY = (7, 5)
"""Compute capability of the oldest cards that TensorRT supports."""


def refusal_without_cuda() -> BackendError:
    """Why TensorRT cannot be used where torch finds no CUDA."""
    if not _has_driver():
        reason = "no NVIDIA driver is loaded; install it from https://www.nvidia.com/drivers"
    elif torch.version.cuda is None:
        reason = "this torch was built without CUDA; see https://pytorch.org for one that is not"
    else:
        reason = "torch finds no usable NVIDIA card; see dped-live doctor"
    return BackendError(f"--backend tensorrt: {reason}, or use --backend torch")


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def package_for(name: str, capability: tuple[int, int]) -> Package:
    """What serves a card, by its name and compute capability. Raises BackendError, with what to install."""
    dotted = "{}.{}".format(*capability)
    card = f"{name} (compute capability {dotted})"
    if capability < _LEAST_CAPABILITY:
        raise BackendError(f"TensorRT does not support {card}, only cards from 7.5 up; use --backend torch")
    if find_spec("tensorrt_rtx") is None:
        return engine.installed_package()
    rtx = engine.installed_package("tensorrt_rtx")
    if dotted in rtx.capabilities:
        return rtx
    if find_spec("tensorrt") is not None:
        return engine.installed_package("tensorrt")
    raise BackendError(f"{rtx.title} does not support {card}; type: pip install tensorrt, or use --backend torch")


def is_installed() -> bool:
    """Whether there is anything to run engines."""
    return find_spec("tensorrt_rtx") is not None or find_spec("tensorrt") is not None


class Engines:
    """The engines of one network on one card.

    capability: the card's compute capability. required: raise BackendError where there is no engine, instead of telling
    `notify` and doing without. folder: where they are kept.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        package: Package,
        capability: tuple[int, int],
        *,
        required: bool,
        notify: Callable[[str], None],
        folder: Path | None = None,
    ) -> None:
        self.package = package
        self._network = network
        self._device = device
        self._required = required
        self._notify = notify
        self._folder = engine.engine_folder() if folder is None else folder
        # What engines are usually for, and for this card alone; Turing is not among the usual. See Package.target.
        own = "{}.{}".format(*capability)
        self._targets: list[str | None] = [None]
        if package.is_rtx:
            self._targets = [own] if own == "7.5" else [None, own]
        self._running: dict[tuple[Mode, Form, int, int], RunningEngine | None] = {}
        self._built: set[tuple[int, int]] = set()
        self._has_given_up = self._has_told = False

    def running(self, statistics: Mode, form: Form, height: int, width: int) -> RunningEngine | None:
        """The engine for pictures of a size, built if there is none; None: use torch. Raises TooLargeError."""
        which = statistics, form, height, width
        if which not in self._running:
            if self._has_given_up:
                return None
            try:
                self._running[which] = self._opened_with_room(*which)
            except BackendError as error:
                # Of a picture that is too large there are parts that are not.
                has_parts = isinstance(error, TooLargeError) and isinstance(self._network, Generator)
                if self._required or has_parts:
                    raise
                self._has_given_up = True
                self._notify(f"{error}; going on with torch")
                return None
        return self._running[which]

    def _opened_with_room(self, statistics: Mode, form: Form, height: int, width: int) -> RunningEngine | None:
        try:
            return self._opened(statistics, form, height, width)
        except TooLargeError:
            if not self._running:
                raise
        # Those of other sizes, which may not be needed again.
        torch.cuda.synchronize(self._device)
        self._running.clear()
        return self._opened(statistics, form, height, width)

    def _opened(self, statistics: Mode, form: Form, height: int, width: int) -> RunningEngine | None:
        per_pixel = _BYTES * self._network.channels if isinstance(self._network, Generator) else _TABLE_BYTES
        check_memory(self._device, per_pixel * height * width, height, width)
        found = self._found(statistics, form, height, width)
        if found is None:
            if not self._required and (height, width) not in self._built and len(self._built) == _SIZES:
                self._tell_of_torch(height, width)
                return None
            key = self._key(statistics, form, height, width, self._targets[0])
            found = self._newly_built(key), key
        path, key = found
        try:
            return self._loaded(path, key, height, width)
        except UnusableEngineError as error:
            self._notify(f"{path}: TensorRT does not take it ({error}); building it anew")
        with contextlib.suppress(OSError):
            path.unlink()
        try:
            return self._loaded(self._newly_built(key), key, height, width)
        except UnusableEngineError as error:
            raise BackendError(
                f"{self.package.title} does not take the engine that it has just built ({error}); use --backend torch"
            ) from error

    def _tell_of_torch(self, height: int, width: int) -> None:
        if not self._has_told:
            self._has_told = True
            self._notify(
                f"pictures of further sizes, such as {width}x{height}, are computed by torch; "
                f"dped-live build --size {width}x{height} makes engines for one"
            )

    def _key(
        self, statistics: Mode, form: Form, height: int, width: int, target: str | None, dynamic: bool = False
    ) -> EngineKey:
        return engine.key_for(self._network, statistics, form, height, width, dynamic, self.package, target)

    def _found(self, statistics: Mode, form: Form, height: int, width: int) -> tuple[Path, EngineKey] | None:
        """An engine that was built before: for this size, else the one for the fewest larger sizes."""
        keys = [self._key(statistics, form, height, width, target) for target in self._targets]
        sizes = set()
        for path in self._folder.glob("*_up_to_*.engine"):
            if match := re.search(r"_up_to_(\d+)x(\d+)_", path.name):
                sizes.add((int(match[2]), int(match[1])))
        for tall, wide in sorted(sizes, key=lambda size: size[0] * size[1]):
            if height <= tall and width <= wide and min(height, width) >= engine.LEAST_SIDE:
                keys += [self._key(statistics, form, tall, wide, target, dynamic=True) for target in self._targets]
        if (statistics, form) == ("exact", "float16") and (exported := engine_export.graph()) is not None:
            keys += [replace(key, graph=exported) for key in keys]
        for key in keys:
            whole = engine.find(key, [self._folder], self._notify)
            if whole is not None:
                return whole, key
        return None

    def _newly_built(self, key: EngineKey) -> Path:
        seconds = "some seconds" if self.package.is_rtx else "minutes"
        self._notify(f"building an engine by {self.package.title}: {key}; it takes {seconds}, and is kept")
        path = engine.build(self._network, key, self._folder, lambda *_: True)
        self._built.add((key.height, key.width))
        return path

    def _loaded(self, path: Path, key: EngineKey, height: int, width: int) -> RunningEngine:
        cache = path.with_suffix(".kernels")
        running = RunningEngine(self.package, engine.read_plan(path, key), height, width, self._device, cache)
        if running.note is not None:
            self._notify(running.note)
        return running


class TensorRtBackend:
    """Runs a generator's engines; see backends.WholeBackend.

    beside: what runs the same in half precision by torch.
    """

    shares = False

    def __init__(self, generator: Generator, beside: WholeBackend, engines: Engines) -> None:
        self.device = beside.device
        self.description = f"{beside.description}, {engines.package.title}"
        self.bytes_per_pixel = beside.bytes_per_pixel
        self.bytes_per_pixel_given = beside.bytes_per_pixel_given
        self._beside = beside
        self._engines = engines
        self._scale = generator.norm_scale.detach().float().to(self.device)
        self._shift = generator.norm_shift.detach().float().to(self.device)

    @property
    def in_float32(self) -> WholeBackend | None:
        return self._beside.in_float32

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        height, width = image.shape[2:]
        with torch.inference_mode(), memory_error(image):
            running = self._engines.running("exact" if statistics is None else "given", "float16", height, width)
            if running is None:
                return self._beside.enhance(image, statistics, out)
            enhanced = running.run({engine.IMAGE: image} | self._applied(statistics))[engine.ENHANCED]
            return enhanced.float() if out is None else out.copy_(enhanced)

    def enhance_bytes(
        self, levels: Tensor, statistics: Statistics | None = None
    ) -> tuple[Tensor, Tensor | None] | None:
        height, width = levels.shape[:2]
        with torch.inference_mode(), memory_error(levels.permute(2, 0, 1)[None]):
            running = self._engines.running("exact" if statistics is None else "given", "uint8", height, width)
            if running is None:
                return None
            outputs = running.run({engine.IMAGE: levels} | self._applied(statistics))
            return outputs[engine.ENHANCED][0].clone(), outputs[engine.FINITE].isfinite().all()

    def _applied(self, statistics: Statistics | None) -> dict[str, Tensor]:
        """The inputs that apply given statistics."""
        if statistics is None:
            return {}
        gain, bias = statistics.gain_and_bias(self._scale, self._shift)
        return {engine.GAIN: gain, engine.BIAS: bias}

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        return self._beside.measure(image, statistics, interior)

    def statistics(self, image: Tensor) -> Statistics:
        height, width = image.shape[2:]
        with torch.inference_mode(), memory_error(image):
            running = self._engines.running("measuring", "float16", height, width)
            if running is None:
                return self._beside.statistics(image)
            outputs = running.run({engine.IMAGE: image})
            found = Statistics(outputs[engine.MEAN][None].clone(), outputs[engine.VARIANCE][None].clone())
            if is_finite(found):
                return found
        return self._beside.statistics(image)

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        return self._beside.measure_next(image, before, interior)


class TensorRtTableBackend:
    """Runs a table network's engines; see backends.Backend. beside: what finds the values of a scene, by torch."""

    in_float32 = None
    shares = False

    def __init__(self, beside: TableBackend, engines: Engines) -> None:
        self.device = beside.device
        self.description = f"{beside.description}, {engines.package.title}"
        self._beside = beside
        self._engines = engines

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        height, width = image.shape[2:]
        with torch.inference_mode(), memory_error(image):
            own = self._beside.statistics(image) if statistics is None else statistics
            running = self._engines.running("given", "float16", height, width)
            if running is None:
                return self._beside.enhance(image, own, out)
            enhanced = running.run({engine.IMAGE: image, engine.MEAN: own.mean[:, 0]})[engine.ENHANCED]
            return enhanced.float() if out is None else out.copy_(enhanced)

    def enhance_bytes(
        self, levels: Tensor, statistics: Statistics | None = None
    ) -> tuple[Tensor, Tensor | None] | None:
        height, width = levels.shape[:2]
        with torch.inference_mode(), memory_error(levels.permute(2, 0, 1)[None]):
            # What its own are is found on RGB.
            running = None if statistics is None else self._engines.running("given", "uint8", height, width)
            if statistics is None or running is None:
                return None
            enhanced = running.run({engine.IMAGE: levels, engine.MEAN: statistics.mean[:, 0]})[engine.ENHANCED]
            return enhanced[0].clone(), None

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        own = self.statistics(image)
        return self.enhance(image, statistics or own), own

    def statistics(self, image: Tensor) -> Statistics:
        return self._beside.statistics(image)
