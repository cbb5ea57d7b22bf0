"""Which networks are measured, by what, and what work they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import nn

from dped_live import weights
from dped_live.backends import Precision, Runner, cpu_has_bf16, tensorrt
from dped_live.errors import WeightsError
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.table_network import TableNetwork

EXACT = "iphone"
"""The model that stands for DPED's own."""

RANDOM = "random"
"""Stands for a network of EXACT's shape with random weights, where its own are not here."""

_RGB = 3 * 4
"""Bytes of a pixel in float32."""


@dataclass(frozen=True, slots=True)
class Way:
    """A choice of --device, --backend and --precision."""

    device: str
    runner: Runner
    precision: Precision


def ways(network: Network, device: str = "auto", runner: Runner = "auto", precision: Precision = "auto") -> list[Way]:
    """All ways to run a network on this machine, the one that dped-live takes by itself first.

    device, runner, precision: only those with these; what is asked for and not among them is tried nevertheless, and
    opening it will say what is wrong. Networks like lite have one precision, and `precision` is not asked of them.
    """
    is_table = isinstance(network, TableNetwork)
    found: list[Way] = []
    if torch.cuda.is_available():
        name = "cuda" if device == "auto" else device
        found += [Way(name, "tensorrt", "fp16")] if tensorrt.is_installed() else []
        found += [Way(name, "torch", "fp16")]
    by_openvino = find_spec("openvino") is not None and not is_table
    precisions: list[Precision] = ["bf16", "fp32"] if cpu_has_bf16() else ["fp32"]
    for each in precisions:
        found += [Way("cpu", "openvino", each)] if by_openvino else []
        found += [Way("cpu", "torch", each)]
    found += [Way("cpu", "openvino", "int8")] if by_openvino else []
    if is_table:
        # In whatever they have.
        found = list(dict.fromkeys(replace(way, precision="auto") for way in found))
        precision = "auto"
    chosen = [
        way
        for way in found
        if device in ("auto", way.device) and runner in ("auto", way.runner) and precision in ("auto", way.precision)
    ]
    return chosen or [Way(device, runner, precision)]


def default_models() -> list[str]:
    """lite and iphone; where that would have to be fetched, its like with random weights."""
    here = weights.state(EXACT) in ("cached", "in DPED_LIVE_WEIGHTS")
    return [weights.LITE, EXACT if here else RANDOM]


def label(model: str) -> str:
    """A model's name for people."""
    if model != RANDOM:
        return model
    published = weights.PUBLISHED[EXACT]
    return f"{published.layers} layers, {published.channels} channels (random weights: same work as {EXACT})"


def load(model: str) -> Network:
    """A network, for use. Fetches nothing. Raises WeightsError if it is not here."""
    if model == RANDOM:
        published = weights.PUBLISHED[EXACT]
        return random_generator(published.channels, published.blocks)
    if model in weights.PUBLISHED and weights.state(model) in ("not fetched", "damaged"):
        raise WeightsError(f"{model} is not on this machine; fetch it with: dped-live models fetch {model}")
    return weights.load(model)


def random_generator(channels: int, blocks: int) -> Generator:
    """Weights of about the published models' size, the same each time."""
    random = torch.Generator().manual_seed(0)
    generator = Generator(channels, blocks).eval().requires_grad_(False)
    for parameter in generator.parameters():
        parameter.normal_(0, parameter[0].numel() ** -0.5 if parameter.ndim == 4 else 0.1, generator=random)
    generator.norm_scale.uniform_(0.5, 1.5, generator=random)
    return generator


def multiply_adds(generator: Generator) -> int:
    """Of one pixel, in the convolutions: 399,744 for 12 layers of 64 channels."""
    return sum(parameter.numel() for parameter in generator.parameters() if parameter.ndim == 4)


def bytes_moved(network: Network, itemsize: int) -> int:
    """Of one pixel, if nothing stays in a cache from one layer to the next: what each layer reads and writes, and what
    is read once more for the sum that ends a block. Networks like lite read a picture and write one, in float32.

    itemsize: bytes of a number.
    """
    if isinstance(network, TableNetwork):
        return 2 * _RGB
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return itemsize * (sum(c.in_channels + c.out_channels for c in layers) + network.blocks * network.channels)
