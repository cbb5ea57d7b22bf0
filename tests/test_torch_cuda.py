"""What of the CUDA path needs no GPU: the layers in blocks, static weights, the order of layers, the choice of ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from dped_live.backends import space_to_depth, torch_cuda
from dped_live.backends.torch_cuda import StaticWeights, Ways, fastest, padded_picture
from dped_live.generator import Generator
from dped_live.statistics import Statistics, combine

from conftest import random_generator

CPU = torch.device("cpu")

SIZES = [(1, 1), (1, 9), (10, 1), (4, 4), (5, 6), (8, 3), (23, 30)]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def padded(weights: StaticWeights, image: torch.Tensor) -> torch.Tensor:
    whole, place = padded_picture(weights, *image.shape[2:])
    place.copy_(image)
    return whole


def ways_of(weights: StaticWeights, nine: str) -> Ways:
    return Ways(
        torch_cuda.first_ways(weights, None)[nine],
        torch_cuda.middle_ways(None)["cuDNN"],
        torch_cuda.last_ways(weights, None)[nine],
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_9x9_layers_in_blocks_are_the_same_sums(size: tuple[int, int]) -> None:
    generator, image = random_generator(8, 1), picture(*size)
    x = torch.rand(1, 8, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        weights = StaticWeights(generator, CPU, torch.float32)
        first = torch_cuda.first_ways(weights, None)["cuDNN in blocks"](padded(weights, image), *size)
        assert first.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(first, F.relu(generator.first(image)), rtol=1e-5, atol=1e-5)
        last = space_to_depth.last_layer(
            x, space_to_depth.last_weight(generator.last.weight), weights.last.bias.repeat_interleave(16)
        )
        torch.testing.assert_close(last, generator.last(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nine", ["cuDNN", "cuDNN in blocks"])
def test_the_layers_together_are_the_generator(nine: str) -> None:
    generator, image = random_generator(8, 2), picture(23, 30)
    with torch.inference_mode():
        weights = StaticWeights(generator, CPU, torch.float32)
        ways = ways_of(weights, nine)
        for seed in (1, 2):
            given = generator.statistics(picture(20, 20, seed))
            weights.fold(given)
            enhanced = ways.enhance(weights, padded(weights, image), 23, 30)
            torch.testing.assert_close(enhanced, generator(image, given), rtol=0, atol=1e-5)


def test_in_half_precision_on_a_cpu() -> None:
    generator, image = random_generator(16, 2), picture(19, 26)
    with torch.inference_mode():
        weights = StaticWeights(generator, CPU, torch.float16)
        own = generator.statistics(image)
        weights.fold(own)
        enhanced = ways_of(weights, "cuDNN in blocks").enhance(weights, padded(weights, image), 19, 26)
        error = (enhanced - generator(image, own)).abs()
    assert enhanced.dtype == torch.float32
    assert error.max() <= 1 / 255
    assert -10 * torch.log10(error.square().mean()) >= 60


def test_statistics_are_folded_into_memory_that_stays() -> None:
    generator = random_generator(8, 2)
    with torch.inference_mode():
        weights = StaticWeights(generator, CPU, torch.float16)
        places = [layer.weight.data_ptr() for layer in weights.residual]
        one, other = (generator.statistics(picture(12, 12, seed)) for seed in (1, 2))
        weights.fold(one)
        before = [layer.weight.clone() for layer in weights.residual]
        weights.fold(other)
        assert not torch.equal(weights.residual[0].weight, before[0])
        weights.fold(one)
        for layer, weight in zip(weights.residual, before, strict=True):
            assert torch.equal(layer.weight, weight)
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(layer.bias.float(), layer.bias_float, rtol=1e-3, atol=1e-3)
        assert [layer.weight.data_ptr() for layer in weights.residual] == places


def test_statistics_are_folded_once() -> None:
    """A video's frames bring the same object; folding costs a card several launches."""
    generator = random_generator(8, 1)
    with torch.inference_mode():
        weights = StaticWeights(generator, CPU, torch.float32)
        own = generator.statistics(picture(12, 12))
        weights.fold(own)
        weights.residual[0].weight.zero_()
        weights.fold(own)
        assert not weights.residual[0].weight.any()
        weights.fold(Statistics(own.mean, own.variance))
        assert weights.residual[0].weight.any()


def test_statistics_of_several_frames_are_refused() -> None:
    generator = Generator(8, 1).requires_grad_(False)
    one = generator.statistics(picture(8, 8))
    several = Statistics(torch.cat((one.mean, one.mean)), torch.cat((one.variance, one.variance)))
    with torch.inference_mode():
        weights = StaticWeights(generator, CPU, torch.float32)
        with pytest.raises(ValueError, match="these are of 2"):
            weights.fold(several)
        weights.fold(combine([one]))


def test_the_fastest_is_chosen_of_what_works() -> None:
    times = {"a": 3.0, "b": 1.0, "c": 2.0}

    def fails() -> float:
        raise OSError("no compiler")

    works: dict[str, Callable[[], object]] = {name: partial(times.__getitem__, name) for name in times}

    def milliseconds(work: Callable[[], object]) -> float:
        return cast(float, work())

    assert fastest(works, milliseconds, ()) == ("b", {})
    chosen, errors = fastest(works | {"b": fails}, milliseconds, (OSError,))
    assert chosen == "c"
    assert str(errors["b"]) == "no compiler"
    with pytest.raises(OSError, match="no compiler"):
        fastest(works | {"b": fails}, milliseconds, (RuntimeError,))
    # The first is what everything else is compared with.
    with pytest.raises(OSError, match="no compiler"):
        fastest(works | {"a": fails}, milliseconds, (OSError,))
