"""The network against an independent computation in float64 numpy, and its statistics as a value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dped_live.generator import Generator, moments

from conftest import random_generator


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """Zero-padded correlation of (H, W, in) with (out, in, k, k), straight from the definition."""
    height, width, _ = x.shape
    half = weight.shape[2] // 2
    padded = np.pad(x, ((half, half), (half, half), (0, 0)))
    out: np.ndarray = np.zeros((height, width, weight.shape[0])) + bias
    for dy in range(weight.shape[2]):
        for dx in range(weight.shape[3]):
            out += padded[dy : dy + height, dx : dx + width] @ weight[:, :, dy, dx].T
    return out


def reference(generator: Generator, image: np.ndarray) -> np.ndarray:
    """`resnet` of the original's models.py for one picture (H, W, 3), in float64."""
    weights: dict[str, np.ndarray] = {name: value.double().numpy() for name, value in generator.state_dict().items()}

    def norm(x: np.ndarray, index: int) -> np.ndarray:
        normalised = (x - x.mean(axis=(0, 1))) / np.sqrt(x.var(axis=(0, 1)) + 1e-3)
        scaled: np.ndarray = weights["norm_scale"][index] * normalised + weights["norm_shift"][index]
        return scaled

    x = np.maximum(convolve(image, weights["first.weight"], weights["first.bias"]), 0)
    for block in range(generator.blocks):
        y = x
        for index in (2 * block, 2 * block + 1):
            y = np.maximum(norm(convolve(y, weights[f"residual.{index}.weight"]), index), 0)
        x = x + y
    for index in range(2):
        x = np.maximum(convolve(x, weights[f"tail.{index}.weight"], weights[f"tail.{index}.bias"]), 0)
    enhanced: np.ndarray = np.tanh(convolve(x, weights["last.weight"], weights["last.bias"])) * 0.58 + 0.5
    return enhanced


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (19, 23)])
def test_output_is_the_original_s(blocks: int, size: tuple[int, int]) -> None:
    generator = random_generator(6, blocks)
    image = picture(*size)
    with torch.inference_mode():
        enhanced = generator(image)
    expected = reference(generator, image[0].permute(1, 2, 0).double().numpy())
    assert np.abs(enhanced[0].permute(1, 2, 0).numpy() - expected).max() < 5e-6


def test_parameter_counts_are_the_originals_without_the_biases_that_norms_cancel() -> None:
    def count(generator: Generator) -> int:
        return sum(parameter.numel() for parameter in generator.parameters())

    assert count(Generator(64, 4)) == 401_475 - 8 * 64
    assert count(Generator(32, 2)) == 71_331 - 4 * 32


def test_given_its_own_statistics_a_picture_comes_out_the_same() -> None:
    generator, image = random_generator(), picture(24, 31)
    with torch.inference_mode():
        exact, measured = generator.measure(image)
        assert measured.mean.shape == (1, 4, 8)
        torch.testing.assert_close(generator(image, measured), exact, rtol=0, atol=2e-6)
        torch.testing.assert_close(generator(image), exact, rtol=0, atol=0)


def test_given_statistics_are_applied_and_others_measured_at_once() -> None:
    generator, image = random_generator(), picture(24, 31)
    with torch.inference_mode():
        _, other = generator.measure(picture(20, 20, seed=1) * 0.3)
        given, measured = generator.measure(image, other)
        torch.testing.assert_close(given, generator(image, other), rtol=0, atol=2e-6)
        assert (given - generator(image)).abs().max() > 0.01, "the given statistics changed nothing"
        # The first norm sees the same picture either way; later ones see what the given statistics made of it.
        exact = generator.measure(image)[1]
        torch.testing.assert_close(measured.mean[:, 0], exact.mean[:, 0])
        assert (measured.mean[:, 1] - exact.mean[:, 1]).abs().max() > 1e-3


def test_given_statistics_make_the_network_local() -> None:
    """The reason why tiles can be exact: 18 pixels away from a change nothing changes."""
    generator, image = random_generator(8, 4), picture(64, 64)
    changed = image.clone()
    changed[:, :, 40:] = 0
    with torch.inference_mode():
        statistics = generator.measure(image)[1]
        difference = (generator(image, statistics) - generator(changed, statistics)).abs().amax(dim=(0, 1, 3))
    assert difference[: 40 - 18].max() == 0
    assert difference[40 - 18] > 0


def test_pictures_of_a_batch_do_not_mix() -> None:
    generator = random_generator()
    images = torch.cat([picture(12, 17), picture(12, 17, seed=1) * 0.2])
    with torch.inference_mode():
        together, statistics = generator.measure(images)
        assert statistics.mean.shape == (2, 4, 8)
        for index in range(2):
            torch.testing.assert_close(together[index : index + 1], generator(images[index : index + 1]))


def test_statistics_of_two_frames_cannot_be_applied_at_once() -> None:
    generator, images = random_generator(), picture(8, 8).repeat(2, 1, 1, 1)
    statistics = generator.measure(images)[1]
    with pytest.raises(ValueError, match="one frame"):
        generator(images, statistics)


def test_moments_keep_their_digits_over_millions_of_pixels() -> None:
    """A float32 running sum of 4 million values near 100 is off by more than the variance's third digit."""
    random = torch.Generator().manual_seed(2)
    x = torch.randn(1, 2, 2000, 2000, generator=random) + 100
    mean, variance = moments(x)
    exact = x.double()
    torch.testing.assert_close(mean, exact.mean(dim=(2, 3)).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance, exact.var(dim=(2, 3), correction=0).float(), rtol=1e-3, atol=0)


def test_half_precision_with_float32_statistics_stays_within_a_level() -> None:
    """Sums of pixels would overflow in FP16 and are taken in float32. (The published models keep 80 dB.)"""
    generator, image = random_generator(16, 4), picture(64, 96)
    with torch.inference_mode():
        exact = generator(image)
        half = generator.half()(image.half()).float()
    error = (half - exact).abs()
    assert error.max() < 1 / 255
    assert -10 * torch.log10(error.square().mean()) > 60


def test_gradients_reach_every_parameter() -> None:
    generator = random_generator().train()
    generator(picture(12, 12)).square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_output_is_not_clamped() -> None:
    generator = random_generator()
    with torch.no_grad():
        assert isinstance(generator.last, nn.Conv2d)
        assert generator.last.bias is not None
        generator.last.bias.fill_(20)
        assert generator(picture(4, 4)).max().item() == pytest.approx(1.08)
        generator.last.bias.fill_(-20)
        assert generator(picture(4, 4)).min().item() == pytest.approx(-0.08)
