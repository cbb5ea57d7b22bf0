"""One process, or several that train together, as torchrun starts them: each with its slice of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dped_live.backends import open_backend
from dped_live.errors import BackendError
from dped_live.generator import Generator

PATIENCE = timedelta(hours=1)
"""How long processes wait for one another: the first may be fetching VGG-19, or reading a large test set."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together. device: what it computes on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up the values of all processes, in place. values: on the processes' device."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process; all of them get the same answer."""
        return flag if self.world_size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, to be called in its place where its gradients are wanted: these become the processes' mean."""
        if self.world_size == 1:
            return network
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(network, device_ids=devices)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """What is done here, the first process has done before the others begin."""
        if not self.is_first:
            dist.barrier()
        yield
        if self.is_first and self.world_size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other processes, if torchrun has started several.

    device: "auto", "cpu", "cuda" or "cuda:N"; of several processes each takes the GPU of its own number.
    Raises BackendError as open_backend does.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and device.startswith("cuda:"):
        raise BackendError(f"{device} is one GPU, and there are {world_size} processes; use --device cuda")
    if world_size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    # Of the choice and of its errors there is one place.
    chosen = open_backend(Generator(1, 1), device, "fp32", "off").device
    if world_size == 1:
        yield Processes(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=chosen)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(chosen, dist.get_rank(), world_size)
    finally:
        dist.destroy_process_group()
