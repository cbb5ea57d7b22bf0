"""One contract for every backend: the generator's numbers, whatever runs it."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

from dped_live.backends import Backend, Precision, Runner, Tile, open_backend, torch_cpu
from dped_live.errors import BackendError
from dped_live.generator import Generator
from dped_live.statistics import Statistics

from conftest import random_generator

# Largest error and least PSNR against float32 of the generator; reduced precisions as measured on the real models.
TOLERANCE: dict[Precision, tuple[float, float]] = {
    "fp32": (5e-6, 110),
    "bf16": (0.08, 42),
    "fp16": (1 / 255, 60),
    "int8": (0.35, 28),
}

Choice = tuple[str, Precision, Tile, Runner]

BACKENDS: list[Choice] = [
    ("cpu", "fp32", "off", "torch"),
    ("cpu", "bf16", "off", "torch"),
    ("cpu", "fp32", 32, "torch"),
    ("cpu", "bf16", 32, "torch"),
    ("cpu", "fp32", "auto", "openvino"),
    ("cpu", "bf16", "auto", "openvino"),
    ("cpu", "int8", "auto", "openvino"),
    ("cpu", "fp32", 32, "openvino"),
    ("cpu", "bf16", 32, "openvino"),
    ("cuda", "fp32", "off", "torch"),
    ("cuda", "fp16", "off", "torch"),
    ("cuda", "fp16", 32, "torch"),
]


@pytest.fixture(params=BACKENDS, ids=lambda backend: "-".join(map(str, backend)))
def choice(request: pytest.FixtureRequest) -> Choice:
    device, precision, tile, runner = request.param
    if device == "cuda" and not torch.cuda.is_available():
        if os.environ.get("DPED_REQUIRE_GPU") == "1":
            pytest.fail("DPED_REQUIRE_GPU=1, and torch finds no GPU")
        pytest.skip("needs an NVIDIA GPU")
    if runner == "openvino" and find_spec("openvino") is None:
        pytest.skip("needs the openvino package")
    return device, precision, tile, runner


def opened(generator: Generator, choice: Choice) -> Backend:
    device, precision, tile, runner = choice
    return open_backend(generator, device, precision, tile, runner=runner)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def check(actual: torch.Tensor, expected: torch.Tensor, precision: Precision) -> None:
    largest, psnr = TOLERANCE[precision]
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    error = (actual.cpu() - expected).abs()
    assert error.max() <= largest
    assert -10 * torch.log10(error.square().mean() + 1e-20) >= psnr


@pytest.mark.parametrize("network", [(8, 2), (16, 4)])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (7, 5), (67, 101), (96, 64)])
def test_enhances_as_the_generator(choice: Choice, network: tuple[int, int], size: tuple[int, int]) -> None:
    generator, image = random_generator(*network), picture(*size)
    backend = opened(generator, choice)
    with torch.inference_mode():
        expected = generator(image)
    # Twice: buffers are kept, and what the first run left in them must not show.
    check(backend.enhance(image.to(backend.device)), expected, choice[1])
    check(backend.enhance(image.to(backend.device)), expected, choice[1])


def test_applies_and_measures_statistics_as_the_generator(choice: Choice) -> None:
    generator, image = random_generator(16, 3), picture(45, 70)
    backend = opened(generator, choice)
    with torch.inference_mode():
        other = generator.measure(picture(30, 30, seed=1) * 0.5)[1]
        expected, exact_statistics = generator.measure(image)
        expected_given, given_statistics = generator.measure(image, other)
    on_device = image.to(backend.device)
    rtol, atol = (1e-4, 1e-5) if choice[1] == "fp32" else (0.1, 0.05)
    for given, output, statistics in ((None, expected, exact_statistics), (other, expected_given, given_statistics)):
        enhanced, measured = backend.measure(on_device, given)
        check(enhanced, output, choice[1])
        torch.testing.assert_close(measured.mean.cpu(), statistics.mean, rtol=rtol, atol=atol)
        torch.testing.assert_close(measured.variance.cpu(), statistics.variance, rtol=rtol, atol=atol)
    check(backend.enhance(on_device, other), expected_given, choice[1])


def test_statistics_of_two_frames_are_refused(choice: Choice) -> None:
    generator = random_generator()
    backend = opened(generator, choice)
    nothing = torch.zeros(2, generator.norms, generator.channels, device=backend.device)
    with pytest.raises(ValueError, match="statistics of one frame can be applied, these are of 2"):
        backend.enhance(picture(20, 20).to(backend.device), Statistics(nothing, nothing + 1))


def test_sizes_may_change_between_frames(choice: Choice) -> None:
    generator = random_generator()
    backend = opened(generator, choice)
    for size in ((40, 30), (12, 50), (40, 30), (41, 30)):
        image = picture(*size)
        with torch.inference_mode():
            check(backend.enhance(image.to(backend.device)), generator(image), choice[1])


def test_a_result_belongs_to_the_caller(choice: Choice) -> None:
    backend = opened(random_generator(), choice)
    first = backend.enhance(picture(20, 20).to(backend.device))
    kept = first.clone()
    backend.enhance(picture(20, 20, seed=1).to(backend.device))
    assert torch.equal(first, kept)


def test_the_input_is_left_alone(choice: Choice) -> None:
    backend = opened(random_generator(), choice)
    image = picture(20, 20).to(backend.device)
    before = image.clone()
    backend.enhance(image)
    assert torch.equal(image, before)


def test_the_result_can_replace_the_input(choice: Choice) -> None:
    backend = opened(random_generator(), choice)
    image = picture(90, 71).to(backend.device)
    for statistics in (None, backend.measure(image)[1]):
        # A card may choose another way to compute the second picture of a size, and keeps to it.
        backend.enhance(image, statistics)
        expected = backend.enhance(image, statistics)
        replaced = image.clone()
        assert backend.enhance(replaced, statistics, out=replaced) is replaced
        assert torch.equal(replaced, expected)


@pytest.mark.parametrize("band_bytes", [1, 3000, 20000])
def test_bands_of_any_height_give_the_same_picture(band_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random_generator(8, 3)
    for size in ((1, 1), (2, 5), (37, 11)):
        image = picture(*size)
        with torch.inference_mode():
            expected, statistics = generator.measure(image)
            monkeypatch.setattr(torch_cpu, "_BAND_BYTES", band_bytes)
            backend = open_backend(generator, "cpu", "fp32")
            check(backend.enhance(image), expected, "fp32")
            check(backend.enhance(image, statistics), expected, "fp32")


@pytest.mark.parametrize("size", [(1, 1), (37, 11), (90, 70)])
def test_one_plane_does_where_two_take_too_much_memory(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random_generator(16, 3)
    image = picture(*size)
    with torch.inference_mode():
        expected, statistics = generator.measure(image)
    monkeypatch.setattr(torch_cpu, "_PLANE_BYTES", 0)
    backend = open_backend(generator, "cpu", "fp32", "off")
    check(backend.enhance(image), expected, "fp32")
    enhanced, measured = backend.measure(image)
    check(enhanced, expected, "fp32")
    torch.testing.assert_close(measured.mean, statistics.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured.variance, statistics.variance, rtol=1e-4, atol=1e-6)
    assert torch.equal(backend.statistics(image).mean, measured.mean)


def test_statistics_of_twelve_megapixels_are_exact() -> None:
    """Values near 10 that vary little: one float32 sum over all of them would lose the variance's digits."""
    generator = Generator(1, 1).requires_grad_(False)
    for parameter in (*generator.first.parameters(), *generator.residual_weights):
        parameter.zero_()
    generator.first.weight[0, :2, 4, 4] = torch.tensor([1.0, 10.0])
    generator.residual_weights[0][0, 0, 1, 1] = 1
    image = picture(3000, 4000)
    image[:, 1] = 1
    measured = open_backend(generator, "cpu", "fp32").measure(image)[1]
    exact = (image[0, 0] + 10).double()
    assert measured.mean[0, 0, 0].item() == pytest.approx(exact.mean().item(), rel=5e-7)
    assert measured.variance[0, 0, 0].item() == pytest.approx(exact.var().item(), rel=2e-5)


def test_a_picture_too_large_for_memory_is_refused_before_it_is_tried() -> None:
    backend = open_backend(random_generator(64, 4), "cpu", "fp32", tile="off")
    huge = torch.zeros(1, 3, 1, 1).expand(1, 3, 200_000, 200_000)
    with pytest.raises(BackendError, match=r"a 200000x200000 picture needs .* GB .* are free"):
        backend.enhance(huge)


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cpu", "fp16", "use --precision bf16 or fp32"),
        ("tpu", "auto", "unknown device 'tpu'"),
        ("cuda:99", "auto", "no device cuda:99"),
    ],
)
def test_a_choice_that_cannot_be_is_an_error(device: str, precision: Precision, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(random_generator(), device, precision)


def test_auto_says_what_it_chose() -> None:
    backend: Backend = open_backend(random_generator())
    assert any(name in backend.description for name in ("fp32", "bf16", "fp16"))
