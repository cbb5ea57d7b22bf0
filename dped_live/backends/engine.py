"""TensorRT engines: what identifies one, where it is kept, how it is built. Nothing here runs frames, or needs a GPU.

tensorrt-rtx builds for GeForce and RTX cards on any machine, in a second. tensorrt builds for the card that it finds,
by trying kernels there, in minutes. Both are served by what is the same in either.

An engine's file is a line that names the format, a line of JSON with the key, and the size and sha256 of what follows:
TensorRT's plan. It is used only if all of these are right; so what another network, version, card or size left, what is
cut off or has changed on the disk is told and built anew. One file, because two could belong to different engines.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import torch

from dped_live import weights
from dped_live.backends.engine_graph import (
    BIAS,
    ENHANCED,
    FINITE,
    FORMS,
    GAIN,
    GRAPH_VERSION,
    IMAGE,
    MEAN,
    MODES,
    NETWORKS,
    VARIANCE,
    Form,
    Graph,
    Mode,
)
from dped_live.errors import BackendError
from dped_live.generator import Generator
from dped_live.network import Network

# What runs engines needs to know no other module.
__all__ = [
    "BIAS",
    "ENHANCED",
    "FINITE",
    "GAIN",
    "IMAGE",
    "MEAN",
    "VARIANCE",
    "EngineKey",
    "Form",
    "Mode",
    "Package",
    "Progress",
    "build",
    "engine_folder",
    "find",
    "installed_package",
    "key_for",
    "read_plan",
]

FORMAT = b"dped-live engine 1\n"

LEAST_SIDE = 16
"""The smallest picture of a dynamic engine, in pixels."""

Progress = Callable[[str, int, int], bool]
"""Called while an engine is built, with what is done now, the steps of it that are done and how many it has. False ends
the build."""

_MODULES = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
"""What serves, the first that is there, with what pip calls it."""

_LEAST_USUAL = 80
"""Compute capability, times ten, from which tensorrt-rtx builds unless told otherwise: with 7.5 an engine is three
times as large."""


@dataclass(frozen=True, slots=True)
class Package:
    """tensorrt-rtx or tensorrt. name: of the module. version: exact."""

    name: str
    version: str
    module: Any

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    @property
    def title(self) -> str:
        """For people."""
        return f"{_MODULES[self.name]} {self.version}"

    @property
    def capabilities(self) -> list[str]:
        """What tensorrt-rtx can build for: "7.5", "8.0", ..."""
        return [_dotted(number) for number in self._numbers]

    def target(self, asked: str | None = None) -> str:
        """What an engine is for: for tensorrt-rtx compute capabilities, such as "8.0 8.6 8.9", for tensorrt a card.

        asked: None for the usual. Raises BackendError where this cannot be had.
        """
        if not self.is_rtx:
            here = _card()
            if asked not in (None, here):
                raise BackendError(f"tensorrt builds for the card that it runs on, {here}, and not for {asked}")
            return here
        if asked is None:
            return " ".join(_dotted(number) for number in self._numbers if number >= _LEAST_USUAL)
        known = self.capabilities
        for capability in asked.split():
            if capability not in known:
                raise BackendError(
                    f"{self.title} does not build for compute capability {capability}, only for {', '.join(known)}; "
                    f"for others, pip install tensorrt on the machine with the card"
                )
        return " ".join(sorted(set(asked.split()), key=known.index))

    @property
    def _numbers(self) -> list[int]:
        members = self.module.ComputeCapability.__members__
        return sorted(int(name.removeprefix("SM")) for name in members if name.startswith("SM"))


def _dotted(number: int) -> str:
    return f"{number // 10}.{number % 10}"


def _card() -> str:
    if not torch.cuda.is_available():
        raise BackendError(
            "tensorrt builds for the card that it runs on, and torch finds none here; "
            "for GeForce and RTX cards, pip install tensorrt-rtx builds anywhere"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} {major}.{minor}"


def installed_package(name: str | None = None) -> Package:
    """The package to build and run engines with: tensorrt-rtx, else tensorrt, or the one whose module has this name.

    Raises BackendError where it is not there or cannot be loaded.
    """
    for module in _MODULES if name is None else [name]:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise _unloadable(module, error) from error
        except (ImportError, OSError) as error:
            raise _unloadable(module, error) from error
        else:
            return Package(module, str(loaded.__version__), loaded)
    if name is not None:
        raise BackendError(f"{_MODULES[name]} is not installed; type: pip install {_MODULES[name]}")
    raise BackendError(
        "TensorRT is not installed; type: pip install tensorrt-rtx (GeForce and RTX cards) "
        "or pip install tensorrt (other NVIDIA cards)"
    )


def _unloadable(module: str, error: Exception) -> BackendError:
    package = _MODULES[module]
    return BackendError(f"{package} cannot be loaded ({error}); type: pip install --force-reinstall {package}")


# What identifies an engine.


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that decides what an engine is; engines of other keys are not loaded.

    weights: weights.digest. network: its kind and size. graph: GRAPH_VERSION. height, width: of the picture, the
    largest where `dynamic` lets it be smaller. package, version: what builds and runs it. target: Package.target.
    """

    weights: str
    network: str
    graph: str
    statistics: Mode
    form: Form
    height: int
    width: int
    dynamic: bool
    package: str
    version: str
    target: str

    @property
    def file_name(self) -> str:
        """Another for each key, and of some use to people."""
        sha256 = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        size = f"{'up_to_' if self.dynamic else ''}{self.width}x{self.height}"
        return f"{self.weights[:8]}_{self.statistics}_{self.form}_{size}_{sha256[:16]}.engine"

    def __str__(self) -> str:
        size = f"{'up to ' if self.dynamic else ''}{self.width}x{self.height}"
        return f"{self.network}, {size}, {self.form}, {self.statistics} statistics"


def key_for(
    network: Network,
    statistics: Mode,
    form: Form,
    height: int,
    width: int,
    dynamic: bool = False,
    package: Package | None = None,
    target: str | None = None,
) -> EngineKey:
    """The key of a network's engine.

    package: None for the installed one. target: None for the usual, see Package.target. Raises BackendError.
    """
    if statistics not in MODES[type(network)]:
        raise ValueError(f"a {type(network).__name__} has no engine with {statistics} statistics")
    if form not in FORMS[statistics]:
        raise ValueError(f"there is no engine with {statistics} statistics for {form}")
    package = package or installed_package()
    least = LEAST_SIDE if dynamic else 1
    if min(height, width) < least:
        raise BackendError(f"an engine of {width}x{height} cannot be built; from {least}x{least} up it can")
    kind = "table network"
    if isinstance(network, Generator):
        kind = f"generator of {network.channels} channels and {network.blocks} blocks"
    return EngineKey(
        weights.digest(network),
        kind,
        GRAPH_VERSION,
        statistics,
        form,
        height,
        width,
        dynamic,
        package.name,
        package.version,
        package.target(target),
    )


# Where engines are kept.


def engine_folder() -> Path:
    """Where engines are built unless told otherwise: the checkout's engines/, or the user's cache."""
    checkout = Path(__file__).parents[2] / "engines"
    if (checkout / "README.md").is_file():
        return checkout
    return platformdirs.user_cache_path("dped-live", appauthor=False) / "engines"


def find(key: EngineKey, folders: Sequence[Path], notify: Callable[[str], None] = lambda _line: None) -> Path | None:
    """The first engine of this key that is whole. A file that should be it and is not is told to `notify`."""
    for path in (folder / key.file_name for folder in folders):
        try:
            _plan(path, key)
        except _AbsentError:
            continue
        except _UnusableError as error:
            notify(f"{path}: {error}; it is not used")
        else:
            return path
    return None


def read_plan(path: Path, key: EngineKey) -> bytes:
    """What TensorRT deserializes. Raises BackendError unless it is the engine of this key, and whole."""
    try:
        return _plan(path, key)
    except _UnusableError as error:
        raise BackendError(f"{path}: {error}; build it anew with dped-live build") from error


class _UnusableError(Exception):
    """Why a file is not the engine that it should be."""


class _AbsentError(_UnusableError):
    """There is none."""


def _plan(path: Path, key: EngineKey) -> bytes:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _AbsentError("no such file") from error
    except OSError as error:
        raise _UnusableError(f"cannot be read: {error.strerror}") from error
    if not content.startswith(FORMAT):
        raise _UnusableError("not an engine of dped-live")
    header, _, plan = content[len(FORMAT) :].partition(b"\n")
    try:
        claimed = json.loads(header)
        built_for, size, sha256 = dict(claimed["key"]), int(claimed["size"]), str(claimed["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise _UnusableError("damaged, its header cannot be read") from error
    wanted = asdict(key)
    for name in sorted(wanted.keys() | built_for.keys()):
        if built_for.get(name) != wanted.get(name):
            raise _UnusableError(f"stale, its {name} is {built_for.get(name)} and not {wanted.get(name)}")
    if len(plan) < size:
        raise _UnusableError(f"cut off after {len(plan)} of {size} bytes")
    if len(plan) != size or hashlib.sha256(plan).hexdigest() != sha256:
        raise _UnusableError("damaged, its checksum is wrong")
    return plan


# Building.


def build(
    network: Network,
    key: EngineKey,
    folder: Path,
    progress: Progress,
    make: Callable[[Network, EngineKey, Progress], bytes] | None = None,
) -> Path:
    """The engine of this key in a folder, built unless it is there and whole. Returns its file.

    network: the one that the key was made for. make: what builds the plan; None for build_plan. Processes that build
    into one folder wait for one another; what another one has built meanwhile is taken. The file is there only when it
    is complete. Raises BackendError if it cannot be built or written, and KeyboardInterrupt if `progress` ends it.
    """
    path = folder / key.file_name
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress("waiting for another dped-live that builds here", 0, 1)
            lock.acquire()
        try:
            if find(key, [folder]) is None:
                plan = (make or build_plan)(network, key, progress)
                claims = {"key": asdict(key), "size": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
                weights.replace_file(path, FORMAT + json.dumps(claims).encode() + b"\n" + plan)
        finally:
            lock.release()
    except OSError as error:
        raise BackendError(
            f"{path}: cannot be written: {error.strerror}; make room, or name another folder with dped-live build --out"
        ) from error
    return path


def build_plan(
    network: Network,
    key: EngineKey,
    progress: Progress,
    log: Callable[[str], None] | None = None,
) -> bytes:
    """What `build` writes. log: told all that TensorRT says, its list of layers among it. Raises as `build`."""
    package = installed_package(key.package)
    trt = package.module
    complaints: list[str] = []
    logger = _logger(trt, complaints, log)
    try:
        builder = trt.Builder(logger)
    except (RuntimeError, TypeError) as error:  # pybind11 tells so that the constructor has failed
        raise _failure(package, key, complaints or [str(error)]) from error
    graph, config = _defined(package, builder, network, key)
    ended = False

    def go_on(what: str, done: int, steps: int) -> bool:
        nonlocal ended
        ended = ended or not progress(what, done, steps)
        return not ended

    monitor = _monitor(trt, go_on)  # must outlive the build
    config.progress_monitor = monitor
    if log is not None:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = builder.build_serialized_network(graph.definition, config)
    if ended:
        raise KeyboardInterrupt
    if plan is None:
        raise _failure(package, key, complaints)
    return bytes(plan)


def _defined(package: Package, builder: Any, network: Network, key: EngineKey) -> tuple[Graph, Any]:
    """The network definition and the builder's configuration."""
    trt = package.module
    # Of no effect in tensorrt-rtx and tensorrt 11, which have no other typing.
    flag = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    definition = builder.create_network(0 if flag is None else 1 << int(flag))
    height, width = (-1, -1) if key.dynamic else (key.height, key.width)
    graph = Graph(trt, definition, key.form, height, width)
    NETWORKS[type(network)](graph, network, key.statistics)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if package.is_rtx:
        capabilities = key.target.split()
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = trt.ComputeCapability.__members__[f"SM{capability.replace('.', '')}"]
            config.set_compute_capability(member, index)
    if key.dynamic:
        profile = builder.create_optimization_profile()
        least, largest = _shape(key.form, LEAST_SIDE, LEAST_SIDE), _shape(key.form, key.height, key.width)
        profile.set_shape(IMAGE, least, largest, largest)
        config.add_optimization_profile(profile)
    return graph, config


def _shape(form: Form, height: int, width: int) -> tuple[int, ...]:
    return (1, height, width, 3) if form == "uint8" else (1, 3, height, width)


def _failure(package: Package, key: EngineKey, complaints: list[str]) -> BackendError:
    # TensorRT begins with the place in its source.
    reason = re.sub(r"^(\[[^]]*\]|\w+::\w+:) *", "", complaints[-1]) if complaints else "it does not say why"
    return BackendError(f"{package.title} cannot build the engine ({key}): {' '.join(reason.split())}")


def _logger(trt: Any, complaints: list[str], log: Callable[[str], None] | None) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                complaints.append(message)
            if log is not None:
                log(message)

    return Logger()


def _monitor(trt: Any, go_on: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            return go_on(phase_name, step + 1, self._steps[phase_name])

        def phase_finish(self, _phase_name: str) -> None:
            pass

    return Monitor()
