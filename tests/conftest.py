"""Fixtures of the whole suite.

SHARED: the developers' folder of checkpoints, reference outputs and real videos, beside the checkout or named by
DPED_LIVE_SHARED. It is not part of the project: tests that need it skip where it is not.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when torch is imported. Two processes run the tests, and more threads would be in each other's way.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")

import torch

from dped_live import weights
from dped_live.generator import Generator
from dped_live.table_network import TableNetwork

SHARED = Path(os.environ.get("DPED_LIVE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the developers' data folder, and {SHARED} does not exist")
    return SHARED


def random_generator(channels: int = 8, blocks: int = 2, seed: int = 0) -> Generator:
    """A generator with weights of about the published models' size, for tests that need no real model."""
    generator = Generator(channels, blocks)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.parameters():
            fan_in = parameter[0].numel() if parameter.ndim == 4 else 100
            parameter.normal_(0, fan_in**-0.5, generator=random)
        generator.norm_scale.uniform_(0.5, 1.5, generator=random)
    return generator.eval()


def random_table_network(seed: int = 0) -> TableNetwork:
    """A table network that changes pictures by some levels."""
    random = torch.Generator().manual_seed(seed)
    network = TableNetwork().requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.normal_(0, {3: 0.05, 1: 0.02}.get(parameter.ndim, parameter[0].numel() ** -0.5), generator=random)
        if name.startswith("detail.last"):
            parameter.mul_(0.3)
    return network.eval()


def load_generator(model: str | Path) -> Generator:
    """weights.load, of what is DPED's kind."""
    network = weights.load(str(model))
    assert isinstance(network, Generator)
    return network
