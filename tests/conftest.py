"""Fixtures of the whole suite.

SHARED: the developers' folder of checkpoints, reference outputs and real videos, beside the checkout or named by
DPED_LIVE_SHARED. It is not part of the project: tests that need it skip where it is not.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dped_live.generator import Generator

SHARED = Path(os.environ.get("DPED_LIVE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the developers' data folder, and {SHARED} does not exist")
    return SHARED


def random_generator(channels: int = 8, blocks: int = 2, seed: int = 0, shuffle: int = 1) -> Generator:
    """A generator with weights of about the published models' size, for tests that need no real model."""
    generator = Generator(channels, blocks, shuffle)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.parameters():
            fan_in = parameter[0].numel() if parameter.ndim == 4 else 100
            parameter.normal_(0, fan_in**-0.5, generator=random)
        if shuffle > 1:
            generator.last.weight *= 0.1  # it is a change to the picture
        generator.norm_scale.uniform_(0.5, 1.5, generator=random)
    return generator.eval()
