"""Statistics are a value: shapes are checked, gain and bias are the norm."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dped_live.statistics import EPSILON, Statistics


def test_gain_and_bias_are_the_instance_norm() -> None:
    random = torch.Generator().manual_seed(1)
    mean = torch.randn(1, 8, 5, generator=random)
    variance = torch.rand(1, 8, 5, generator=random)
    scale = torch.randn(8, 5, generator=random)
    shift = torch.randn(8, 5, generator=random)
    x = torch.randn(2, 8, 5, generator=random)
    gain, bias = Statistics(mean, variance).gain_and_bias(scale, shift)
    expected = scale * (x - mean[0]) / (variance[0] + EPSILON) ** 0.5 + shift
    torch.testing.assert_close(gain * x + bias, expected, rtol=1e-5, atol=1e-5)


def test_a_channel_that_does_not_vary_stays_finite() -> None:
    gain, bias = Statistics(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)).gain_and_bias(
        torch.ones(1, 1), torch.ones(1, 1)
    )
    assert gain.item() == pytest.approx(EPSILON**-0.5)
    assert bias.item() == 1


@pytest.mark.parametrize("shapes", [((8, 4), (8, 4)), ((1, 8, 4), (1, 8, 5))])
def test_wrong_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="frames, norms, channels"):
        Statistics(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_statistics_cannot_be_changed() -> None:
    statistics = Statistics(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics.mean = torch.ones(1, 1, 1)  # type: ignore[misc]
