"""The losses against float64 NumPy and SciPy, and against numbers that the original's own graph gives.

How the golden numbers were obtained: `loss_color`, `loss_tv`, `loss_content`, `loss_discrim`, `discim_accuracy` and
tf.image.rgb_to_grayscale as in the original's train_model.py and utils.py, run by TensorFlow 2.21 on a CPU with
tf.compat.v1.disable_v2_behavior(), batch_size set to N; gradients by tf.gradients. The pictures were `pictures(...)`
below, which NumPy's frozen RandomState makes the same everywhere, and the logits `LOGITS`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from dped_live.training import losses
from dped_live.training.losses import (
    RECIPES,
    LossWeights,
    blur,
    color_loss,
    content_loss,
    discriminator_accuracy,
    discriminator_loss,
    greyscale,
    swapped,
    texture_loss,
    total_variation_loss,
)

Array = NDArray[np.float64]

SIZES = [(2, 37, 30), (3, 100, 100), (1, 5, 64)]

LOGITS = torch.tensor([[0.3, -1.2], [25, 0], [0, 25], [-22, 1], [3, 3.5], [-60, 60]])
"""Of which three are judged so surely that the softmax of the other column is below 1e-10, but (-22, 1) just not."""

MIXED = torch.tensor([1.0, 0, 0, 1, 0, 1])
"""What these six pictures may be: 1 for a target, 0 for an enhanced one."""


def pictures(seed: int, number: int, height: int, width: int) -> Tensor:
    """Noise over the range of the generator's output, beyond [0, 1]."""
    values = np.random.RandomState(seed).uniform(-0.08, 1.08, (number, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def array(x: Tensor) -> Array:
    return x.detach().double().numpy()


def kernel() -> Array:
    """The two-dimensional kernel as the original defines it, from SciPy's normal distribution."""
    profile = np.diff(scipy.stats.norm.cdf(np.linspace(-3 - 7 / 42, 3 + 7 / 42, 22)))
    root = np.sqrt(np.outer(profile, profile))
    return np.asarray(root / root.sum())


def blurred(picture: Array) -> Array:
    return np.array([[scipy.signal.correlate2d(plane, kernel(), "same") for plane in image] for image in picture])


# Each term against NumPy.


@pytest.mark.parametrize("size", SIZES)
def test_blur(size: tuple[int, int, int]) -> None:
    picture = pictures(1, *size)
    expected = blurred(array(picture))
    np.testing.assert_allclose(blur(picture), expected, rtol=1e-5, atol=1e-6)
    channels_last = blur(picture.to(memory_format=torch.channels_last))
    np.testing.assert_allclose(channels_last, expected, rtol=1e-5, atol=1e-6)


def test_the_blur_is_no_gaussian_of_sigma_3() -> None:
    picture = torch.zeros(1, 3, 25, 25)
    picture[:, 1, 12, 12] = 1
    response = array(blur(picture))[0]
    assert not response[[0, 2]].any()
    assert not response[1, [0, 1, -2, -1]].any()
    found = response[1, 2:-2, 2:-2]
    np.testing.assert_allclose(found, kernel(), rtol=1e-5)

    def gaussian(sigma: float) -> Array:
        profile = np.exp(-np.square(np.arange(-10, 11) / sigma) / 2)
        return np.asarray(np.outer(profile, profile) / profile.sum() ** 2)

    assert gaussian(3).max() > 2 * found.max()
    integrals = np.diff(scipy.stats.norm.cdf(np.linspace(-3 - 7 / 42, 3 + 7 / 42, 22)))
    assert np.outer(integrals, integrals).max() > 1.8 * found.max()  # what there would be without the root
    np.testing.assert_allclose(found, gaussian(4.707), rtol=1e-3)  # what it comes to, as the docstring says


@pytest.mark.parametrize("size", SIZES)
def test_color_loss(size: tuple[int, int, int]) -> None:
    enhanced, target = pictures(1, *size), pictures(2, *size)
    expected = np.square(blurred(array(enhanced)) - blurred(array(target))).sum() / (2 * size[0])
    assert color_loss(enhanced, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_total_variation_loss(size: tuple[int, int, int]) -> None:
    enhanced = pictures(1, *size)
    number, height, width = size
    x, rows, columns = array(enhanced), 0.0, 0.0
    for row in range(height - 1):
        rows += np.square(x[:, :, row + 1] - x[:, :, row]).sum()
    for column in range(width - 1):
        columns += np.square(x[..., column + 1] - x[..., column]).sum()
    expected = (rows / (3 * (height - 1) * width) + columns / (3 * height * (width - 1))) / number
    assert total_variation_loss(enhanced).item() == pytest.approx(expected, rel=1e-5)


def test_content_loss() -> None:
    random = np.random.RandomState(0)
    enhanced, target = (torch.from_numpy(random.uniform(0, 9, (3, 16, 7, 5)).astype(np.float32)) for _ in range(2))
    expected = np.square(array(enhanced) - array(target)).sum() / (16 * 7 * 5 * 3)
    assert content_loss(enhanced, target).item() == pytest.approx(expected, rel=1e-5)


def cross_entropy(logits: Tensor, is_target: list[int]) -> float:
    total = 0.0
    for (target, enhanced), truth in zip(array(logits).tolist(), is_target, strict=True):
        probability = 1 / (1 + np.exp(enhanced - target if truth else target - enhanced))
        total -= np.log(max(probability, 1e-10))
    return total


@pytest.mark.parametrize("is_target", [[1, 0, 0, 1, 0, 1], [0] * 6, [1] * 6])
def test_discriminator_loss(is_target: list[int]) -> None:
    expected = pytest.approx(cross_entropy(LOGITS, is_target), rel=1e-5)
    assert discriminator_loss(LOGITS, torch.tensor(is_target, dtype=torch.bool)).item() == expected
    assert discriminator_loss(LOGITS, torch.tensor(is_target, dtype=torch.float32)).item() == expected


def test_texture_loss_is_minus_the_discriminators_on_enhanced_pictures() -> None:
    assert texture_loss(LOGITS).item() == pytest.approx(-cross_entropy(LOGITS, [0] * 6), rel=1e-5)
    found_out, passed = torch.tensor([[-9.0, 9]]), torch.tensor([[9.0, -9]])
    assert -1e-6 < texture_loss(found_out).item() <= 0
    assert texture_loss(passed).item() == pytest.approx(-18, rel=1e-5)
    assert texture_loss(3 * passed).item() == pytest.approx(np.log(1e-10), rel=1e-5)


def test_greyscale() -> None:
    picture = pictures(1, 2, 7, 5)
    x = array(picture)
    expected = 0.2989 * x[:, 0] + 0.5870 * x[:, 1] + 0.1140 * x[:, 2]
    assert greyscale(picture).shape == (2, 1, 7, 5)
    np.testing.assert_allclose(greyscale(picture)[:, 0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_swapped(kind: torch.dtype) -> None:
    enhanced, target = greyscale(pictures(1, 3, 4, 5)), greyscale(pictures(2, 3, 4, 5))
    batch = swapped(enhanced, target, torch.tensor([0, 1, 0]).to(kind))
    assert torch.equal(batch, torch.stack([enhanced[0], target[1], enhanced[2]]))


def test_discriminator_accuracy() -> None:
    logits = torch.tensor([[2.0, 1], [2.0, 1], [-1.0, 1], [-1.0, 1]])
    for truth, expected in [([1, 1, 0, 0], 1), ([0, 0, 1, 1], 0), ([1, 0, 1, 0], 0.5), ([1, 1, 1, 0], 0.75)]:
        assert discriminator_accuracy(logits, torch.tensor(truth, dtype=torch.bool)).item() == expected
        assert discriminator_accuracy(logits, torch.tensor(truth, dtype=torch.float32)).item() == expected


# The original's own numbers.


@pytest.mark.parametrize(
    ("size", "color", "variation", "content", "greys"),
    [
        ((2, 37, 30), 1.44407, 0.44838667, 0.22132449, (0.40153858, 0.74484754, 1120.02417)),
        ((3, 100, 100), 12.267304, 0.45343694, 0.2257404, (0.69240105, 0.48021156, 14984.903)),
    ],
)
def test_the_originals_values(
    size: tuple[int, int, int], color: float, variation: float, content: float, greys: tuple[float, float, float]
) -> None:
    enhanced, target = pictures(1, *size), pictures(2, *size)
    assert color_loss(enhanced, target).item() == pytest.approx(color, rel=1e-5)
    assert total_variation_loss(enhanced).item() == pytest.approx(variation, rel=1e-5)
    # The pictures stand in for features.
    assert content_loss(pictures(3, *size), pictures(4, *size)).item() == pytest.approx(content, rel=1e-5)
    grey = greyscale(enhanced)
    found = (grey[0, 0, 0, 0].item(), grey[-1, 0, -1, -1].item(), grey.double().sum().item())
    assert found == pytest.approx(greys, rel=1e-6)


def test_the_originals_blur() -> None:
    result = blur(pictures(1, 2, 37, 30))
    for place, expected in [
        ((0, 0, 0), (0.12418445, 0.142893, 0.15123785)),
        ((0, 18, 15), (0.4992413, 0.54899657, 0.47628832)),
        ((1, 36, 29), (0.13669603, 0.15767415, 0.14294428)),
    ]:
        image, row, column = place
        assert result[image, :, row, column].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_originals_gradients_of_the_pictures() -> None:
    enhanced, target = pictures(1, 2, 37, 30).requires_grad_(), pictures(2, 2, 37, 30)
    (color,) = torch.autograd.grad(color_loss(enhanced, target), enhanced)
    assert color[0, :, 0, 0].tolist() == pytest.approx([0.00193439, 0.00198562, -0.00241043], rel=1e-5)
    (variation,) = torch.autograd.grad(total_variation_loss(enhanced), enhanced)
    assert variation[0, :, 0, 0].tolist() == pytest.approx([4.7953872e-06, 1.5761997e-04, 3.3348438e-04], rel=1e-4)


@pytest.mark.parametrize(
    ("is_target", "value", "accuracy", "gradient"),
    [
        (
            MIXED,
            69.72719,
            1 / 2,
            [[-0.18242557, 0.18242551], [0, 0], [1.3888e-11, 0], [-1, 1], [0.37754065, -0.37754065], [0, 0]],
        ),
        (
            torch.zeros(6),
            25.201344,
            2 / 3,
            [[0.81757444, -0.8175745], [0, 0], [1.3888e-11, 0], [1.0262e-10, 0], [0.37754065, -0.37754065], [0, 0]],
        ),
        (
            torch.ones(6),
            70.22719,
            1 / 3,
            [[-0.18242557, 0.18242551], [0, 1.3888e-11], [0, 0], [-1, 1], [-0.62245935, 0.62245935], [0, 0]],
        ),
    ],
)
def test_the_originals_cross_entropy_and_where_its_gradient_ends(
    is_target: Tensor, value: float, accuracy: float, gradient: list[list[float]]
) -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = discriminator_loss(logits, is_target)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert discriminator_accuracy(logits, is_target).item() == pytest.approx(accuracy)
    (found,) = torch.autograd.grad(loss, logits)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-15)
    if not is_target.any():
        (found,) = torch.autograd.grad(texture_loss(logits), logits)
        np.testing.assert_allclose(found, -np.array(gradient), rtol=1e-4, atol=1e-15)


# What holds for all.

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "color": lambda x: color_loss(x, 1 - x.detach().flip(3)),
    "tv": total_variation_loss,
    "content": lambda x: content_loss(x, 1 - x.detach().flip(3)),
    "texture": lambda x: texture_loss(x.mean((2, 3))[:, :2]),
    "discriminator": lambda x: discriminator_loss(x.mean((2, 3))[:, :2], torch.arange(len(x)) % 2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite(name: str) -> None:
    picture = pictures(1, 2, 21, 23).requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](picture), picture)
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_how_a_term_grows_with_the_batch(name: str) -> None:
    """The module says which terms to add up over processes and which to average."""
    parts = pictures(1, 2, 21, 23), pictures(2, 2, 21, 23)
    first, second = (LOSSES[name](part).item() for part in parts)
    combined = first + second if name in ("texture", "discriminator") else (first + second) / 2
    assert LOSSES[name](torch.cat(parts)).item() == pytest.approx(combined, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    picture = pictures(1, 2, 21, 23)
    with torch.autocast("cpu", torch.bfloat16):
        result = LOSSES[name](picture)
        of_half_precision = LOSSES[name](picture.bfloat16())
    assert torch.equal(result, LOSSES[name](picture))
    assert result.dtype == of_half_precision.dtype == torch.float32
    assert result.shape == ()


def test_the_blur_can_be_trained_through_after_a_judgement() -> None:
    losses._blur_kernel.cache_clear()
    picture = pictures(1, 1, 5, 5)
    with torch.inference_mode():
        blur(picture)
    torch.autograd.grad(blur(picture.requires_grad_()).sum(), picture)


def test_recipes() -> None:
    assert RECIPES["repository"] == LossWeights(content=10, color=0.5, texture=1, tv=2000)
    assert RECIPES["paper"] == LossWeights(content=1, color=0.1, texture=0.4, tv=400)
