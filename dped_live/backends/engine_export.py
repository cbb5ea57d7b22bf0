"""Engines by torch-tensorrt, of whatever torch can export: networks for which engine_graph.py has no function.

It needs an NVIDIA card, for it cannot even be imported without CUDA. What comes out is an engine like any other, under
the same rules, with torch-tensorrt's version in the key in the place of our graph's. Such an engine of a generator is
used for exact statistics where there is no other. What is made of another module is run by

    RunningEngine(package, read_plan(path, key), height, width, device, cache).run({IMAGE: image})[ENHANCED]

Not run on a card yet.
"""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dped_live import weights
from dped_live.backends import engine
from dped_live.backends.engine import EngineKey, Package, Progress
from dped_live.errors import BackendError
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.table_network import TableNetwork

ENHANCED = "output0"
"""What torch-tensorrt calls the result. Inputs have the names of forward's parameters."""

_INSTALL = "type: pip install 'torch-tensorrt<2.14'"
"""A later one would bring a torch that dped-live does not know."""


def graph() -> str | None:
    """EngineKey.graph of the engines that torch-tensorrt makes; None where it is not installed."""
    try:
        return f"torch-tensorrt {version('torch-tensorrt')}"
    except PackageNotFoundError:
        return None


def package() -> Package:
    """What runs the engines: torch-tensorrt builds by tensorrt. Raises BackendError where it cannot be used."""
    _module()
    return engine.installed_package("tensorrt")


def key_for_module(module: nn.Module, height: int, width: int) -> EngineKey:
    """The key of a module's engine for this machine's card.

    module: `forward(image)` takes half (1, 3, height, width), RGB in [0, 1], and returns the same. Raises BackendError
    where torch-tensorrt cannot be used.
    """
    runs = package()
    made_by = graph()
    assert made_by is not None, "it was imported"
    if isinstance(module, TableNetwork):
        raise BackendError("--via torch-tensorrt: an engine of lite's kind takes its statistics; leave out --via")
    if isinstance(module, Generator):
        return replace(engine.key_for(module, "exact", "float16", height, width, package=runs), graph=made_by)
    return EngineKey(
        weights.digest(cast(Network, module)),
        type(module).__qualname__,
        made_by,
        "exact",
        "float16",
        height,
        width,
        False,
        runs.name,
        runs.version,
        runs.target(),
    )


def build(module: nn.Module, key: EngineKey, folder: Path, progress: Progress) -> Path:
    """engine.build of a module; key: see key_for_module."""
    return engine.build(cast(Network, module), key, folder, progress, lambda *_: _plan(module, key, progress))


def _plan(module: nn.Module, key: EngineKey, progress: Progress) -> bytes:
    torch_tensorrt = _module()
    progress("exporting the module", 0, 2)
    exported = copy.deepcopy(module).half().cuda().eval()
    image = torch.zeros(1, 3, key.height, key.width, dtype=torch.float16, device="cuda")
    try:
        program = torch.export.export(exported, (image,))
        progress("building by torch-tensorrt, which takes minutes", 1, 2)
        plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program, arg_inputs=[image], use_explicit_typing=True, truncate_double=True, disable_tf32=True
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"torch-tensorrt cannot build the engine ({key}): {reason}") from error
    return bytes(plan)


def _module() -> Any:
    if not torch.cuda.is_available():
        raise BackendError(
            "--via torch-tensorrt: it cannot even be loaded without an NVIDIA card, and torch finds none here; "
            "without --via the networks of dped-live are built on any machine"
        )
    try:
        return importlib.import_module("torch_tensorrt")
    except ModuleNotFoundError as error:
        raise BackendError(f"--via torch-tensorrt: it is not installed; {_INSTALL}") from error
    except (ImportError, OSError) as error:
        raise BackendError(f"--via torch-tensorrt: it cannot be loaded ({error}); {_INSTALL}") from error
