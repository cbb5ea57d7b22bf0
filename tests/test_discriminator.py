"""The discriminator against the original's and against float64 NumPy, and the initial values of both networks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from dped_live.generator import Generator
from dped_live.training.discriminator import Discriminator
from dped_live.training.initialise import initialise

Array = NDArray[np.float64]


def tensorflow_variables(patch: int) -> Iterator[NDArray[np.float32]]:
    """Values for the original's variables, in the order in which its graph makes them and in its layout.

    Kernel (height, width, in, out), bias; after the first layer also the norm's shift, scale. Then both fully
    connected layers (in, out), bias.
    """
    shapes: list[tuple[int, ...]] = []
    for ins, outs, size in [(1, 48, 11), (48, 128, 5), (128, 192, 3), (192, 192, 3), (192, 128, 3)]:
        shapes += [(size, size, ins, outs), (outs,)] + ([(outs,), (outs,)] if ins > 1 else [])
    shapes += [(128 * math.ceil(patch / 16) ** 2, 1024), (1024,), (1024, 2), (2,)]
    for index, shape in enumerate(shapes):
        random = np.random.RandomState(100 + index)
        reach = (3 / math.prod(shape[:-1])) ** 0.5
        values = random.uniform(-reach, reach, shape) if len(shape) > 1 else random.uniform(-0.5, 1.5, shape)
        yield values.astype(np.float32)


@torch.no_grad()
def discriminator_of(patch: int) -> Discriminator:
    """With the values above, permuted from TensorFlow's order to PyTorch's."""
    discriminator, values = Discriminator(patch), tensorflow_variables(patch)
    positions = math.ceil(patch / 16)

    def take(parameter: Tensor, *order: int) -> None:
        parameter.copy_(torch.from_numpy(next(values)).permute(order or [*range(parameter.ndim)]))

    for layer, convolution in enumerate(discriminator.convolutions):
        take(convolution.get_parameter("weight"), 3, 2, 0, 1)
        take(convolution.get_parameter("bias"))
        if layer:
            take(discriminator.norms[layer - 1].get_parameter("bias"))
            take(discriminator.norms[layer - 1].get_parameter("weight"))
    flat = torch.from_numpy(next(values)).view(positions, positions, 128, 1024)  # TensorFlow flattens channels last
    discriminator.hidden.weight.copy_(flat.permute(3, 2, 0, 1).reshape(1024, -1))
    take(discriminator.hidden.bias)
    take(discriminator.output.weight, 1, 0)
    take(discriminator.output.bias)
    assert next(values, None) is None
    return discriminator


def grey_pictures(patch: int) -> Tensor:
    pictures = np.random.RandomState(0).uniform(0, 1, (3, 1, patch, patch)).astype(np.float32)
    pictures[1, :, :, 60:] = 0.8
    return torch.from_numpy(pictures)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.inference_mode()
def test_the_originals_logits(memory_format: torch.memory_format) -> None:
    """What `adversarial` of the original's models.py gives for these pictures and values, before its softmax.

    Run by TensorFlow 2.21 on a CPU with tf.compat.v1.disable_v2_behavior(), its 22 variables loaded, in the order of
    tf.compat.v1.global_variables(), from `tensorflow_variables(100)`.
    """
    discriminator = discriminator_of(100)
    discriminator.to(memory_format=memory_format)  # type: ignore[call-overload]
    logits = discriminator(grey_pictures(100).to(memory_format=memory_format))
    expected = [[0.14244264, -0.1279939], [0.10478386, -0.71736395], [1.04495823, -0.74235028]]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


def convolved(x: Array, kernel: Array, bias: Array, stride: int) -> Array:
    """A convolution of (rows, columns, channels) with TensorFlow's SAME padding, as its documentation defines it."""
    size = len(kernel)
    pads = []
    for length in x.shape[:2]:
        missing = max(size - (length % stride or stride), 0)
        pads.append((missing // 2, missing - missing // 2))
    windows = sliding_window_view(np.pad(x, [*pads, (0, 0)]), (size, size), (0, 1))[::stride, ::stride]
    return np.asarray(np.einsum("yxcij,ijco->yxo", windows, kernel, optimize=True) + bias)


def judged(picture: Array, patch: int) -> Array:
    """The original's forward pass in float64, for one (rows, columns, 1) picture."""
    values = (value.astype(np.float64) for value in tensorflow_variables(patch))
    x = picture
    for layer, stride in enumerate([4, 2, 1, 1, 2]):
        x = convolved(x, next(values), next(values), stride)
        x = np.maximum(0.2 * x, x)
        if layer:
            shift, scale = next(values), next(values)
            x = scale * (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-3) + shift
    x = x.reshape(-1) @ next(values) + next(values)
    return np.asarray(np.maximum(0.2 * x, x) @ next(values) + next(values))


@pytest.mark.parametrize("patch", [100, 37, 50, 17])
@torch.inference_mode()
def test_other_patches(patch: int) -> None:
    pictures = grey_pictures(patch)
    logits = discriminator_of(patch)(pictures)
    expected = [judged(picture[0, :, :, None].double().numpy(), patch) for picture in pictures]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_patches_too_small_for_its_norms_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 16 pixels, not 16"):
        Discriminator(16)


def test_every_parameter_is_trained() -> None:
    discriminator = discriminator_of(37)
    discriminator(grey_pictures(37)).square().sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name
    assert sum(parameter.numel() for parameter in Discriminator().parameters()) == 7_361_122


# Initial values.


@pytest.fixture(scope="module")
def networks() -> tuple[Generator, Discriminator]:
    generator, discriminator = Generator(), Discriminator()
    for number, network in enumerate((generator, discriminator)):
        for parameter in network.parameters():
            nn.init.constant_(parameter, 7)
        initialise(network, torch.Generator().manual_seed(number))
    return generator, discriminator


def test_the_initial_weights_are_a_truncated_normal_distribution(networks: tuple[Generator, Discriminator]) -> None:
    weights = [p for network in networks for p in network.parameters() if p.ndim > 1 and p.shape != (8, 64)]
    assert len(weights) == 12 + 7
    for weight in weights:
        assert weight.abs().max() <= 0.02
    values = torch.cat([weight.detach().flatten() for weight in weights]) / 0.01
    assert values.abs().max() > 1.999
    assert values.mean().item() == pytest.approx(0, abs=2e-3)
    # Of a normal distribution cut at 2: the deviation 0.8796, and within 1 lie 0.6827 / 0.9545 of the values.
    assert values.std().item() == pytest.approx(0.8796, abs=2e-3)
    assert (values.abs() < 1).float().mean().item() == pytest.approx(0.7152, abs=2e-3)


def test_the_initial_biases_and_norms(networks: tuple[Generator, Discriminator]) -> None:
    generator, discriminator = networks
    assert torch.equal(generator.norm_scale, torch.ones(8, 64))
    assert torch.equal(generator.norm_shift, torch.zeros(8, 64))
    for norm in discriminator.norms:
        assert (norm.get_parameter("weight") == 1).all()
        assert (norm.get_parameter("bias") == 0).all()
    biases = [
        bias
        for network in networks
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
        if (bias := layer.bias) is not None
    ]
    assert len(biases) == 4 + 7
    for bias in biases:
        assert torch.equal(bias, torch.full_like(bias, 0.01))


def test_initial_values_depend_on_the_given_random_numbers_alone(networks: tuple[Generator, Discriminator]) -> None:
    same, other = Generator(), Generator()
    same.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = torch.get_rng_state()
    initialise(same, torch.Generator().manual_seed(0))
    initialise(other, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in networks[0].named_parameters():
        assert torch.equal(same.get_parameter(name), parameter)
    assert not torch.equal(other.first.weight, same.first.weight)
