"""The kind of network that lite is: what holds for any weights, and the CPU's compiled form beside torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dped_live import table_network, weights
from dped_live.backends import Precision, open_backend
from dped_live.errors import BackendError, WeightsError
from dped_live.statistics import Statistics, blend, combine, distance
from dped_live.table_network import REACH, VALUES, TableNetwork, look_up

from conftest import random_generator, random_table_network

NETWORK = random_table_network()
SIZES = [(1, 1), (1, 9), (5, 3), (8, 8), (31, 33), (67, 101), (200, 40)]


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Noise, some of it beyond [0, 1]."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 1.1 - 0.05


def scene(seed: int) -> Statistics:
    means = torch.rand(1, 1, VALUES, generator=torch.Generator().manual_seed(seed)) * 6 - 3
    return Statistics(means, torch.ones_like(means))


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# What holds for any weights and any values.


@pytest.mark.parametrize("seed", range(3))
def test_grey_stays_grey_black_black_and_white_white(seed: int) -> None:
    network = random_table_network(seed)
    grey = picture(40, 50)[:, :1].expand(-1, 3, -1, -1).clamp(0, 1)
    result = network(grey, scene(seed))
    assert (result.amax(1) - result.amin(1)).max() < 1e-6
    assert (result - grey).abs().max() > 0.02
    for level in (0.0, 1.0):
        assert torch.equal(network(torch.full((1, 3, 9, 9), level), scene(seed)), torch.full((1, 3, 9, 9), level))


def test_a_black_pixel_stays_black_beside_white() -> None:
    image = torch.ones(1, 3, 20, 20)
    image[:, :, 8:12, 8:12] = 0
    assert NETWORK(image, scene(0))[:, :, 8:12, 8:12].abs().max() == 0


def test_a_moved_picture_gives_the_moved_result_to_the_bit() -> None:
    backend = open_backend(NETWORK, "cpu")
    image = picture(60, 80)
    whole = backend.enhance(image, scene(1))
    moved = backend.enhance(image[:, :, 1:, 3:].contiguous(), scene(1))
    inner = (slice(None), slice(None), slice(REACH, -REACH), slice(REACH, -REACH))
    assert torch.equal(moved[inner], whole[:, :, 1:, 3:][inner])


def test_it_sees_so_far_and_no_farther() -> None:
    image = picture(30, 30).clamp(0, 1)
    changed = image.clone()
    changed[:, :, 15, 15] = 1 - changed[:, :, 15, 15]
    places = (NETWORK(changed, scene(0)) - NETWORK(image, scene(0))).abs().amax((0, 1)).nonzero()
    assert (places - 15).abs().max() == REACH


def test_tables_are_interpolated_between_their_entries() -> None:
    """An affine map is met exactly; outside of [0, 1] the nearest colour counts."""
    matrix = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.3, 0.6]])
    entries = NETWORK.first.mixed(torch.zeros(1, VALUES))  # no change
    image = picture(20, 20)
    expected = torch.einsum("ij,njhw->nihw", matrix, image.clamp(0, 1))
    same(look_up(entries @ matrix.T, image), expected, 1e-6)


# Scenes.


def test_statistics_are_the_values_of_a_scene() -> None:
    image = picture(50, 70).clamp(0, 1)
    enhanced, measured = NETWORK.measure(image)
    assert measured.mean.shape == (1, 1, VALUES)
    assert torch.equal(measured.variance, torch.ones(1, 1, VALUES))
    assert torch.equal(NETWORK.statistics(image).mean, measured.mean)
    same(NETWORK(image, measured), enhanced)
    same(NETWORK(image), enhanced)
    given, own = NETWORK.measure(image, scene(2))
    same(given, NETWORK(image, scene(2)))
    assert torch.equal(own.mean, measured.mean)
    assert (given - enhanced).abs().max() > 0.01


def test_scenes_are_mixed_and_compared() -> None:
    a, b = scene(0), scene(1)
    expected = (a.mean - b.mean).square().mean().sqrt().item()
    assert distance(a, b) == pytest.approx(expected, rel=1e-3)
    same(combine([a, b]).mean, (a.mean + b.mean) / 2, 1e-6)
    same(blend(a, b, 0.25).mean, 0.75 * a.mean + 0.25 * b.mean, 1e-6)


def test_statistics_of_another_network_are_refused() -> None:
    image = picture(9, 9)
    for other in (random_generator().statistics(image), Statistics(*[torch.ones(2, 1, VALUES)] * 2)):
        with pytest.raises(ValueError, match="statistics of one frame and 8 values"):
            NETWORK(image, other)


def test_several_pictures_are_each_enhanced_by_their_own_values() -> None:
    pictures = torch.cat([picture(40, 40, seed) * (0.5 + 0.25 * seed) for seed in range(3)])
    same(NETWORK(pictures), torch.cat([NETWORK(one[None]) for one in pictures]), 1e-5)


def test_strips_and_gradients_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture in strips, and as training sees it."""
    monkeypatch.setattr(table_network, "_STRIP_PIXELS", 600)
    image = picture(70, 30)
    with torch.inference_mode():
        in_strips, measured = NETWORK.measure(image)
    assert torch.is_grad_enabled()
    whole = NETWORK(image, measured)
    monkeypatch.undo()
    same(in_strips, whole)
    same(measured.mean, NETWORK.statistics(image).mean, 1e-6)


# On a CPU.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_compiled_form_agrees_with_torch(size: tuple[int, int], threads: int) -> None:
    backend = open_backend(NETWORK, "cpu", "fp32")
    image, before = picture(*size), torch.get_num_threads()
    with torch.inference_mode():
        expected, own = NETWORK.measure(image)
        given = NETWORK(image, scene(3))
    torch.set_num_threads(threads)
    try:
        same(backend.enhance(image), expected)
        same(backend.enhance(image, scene(3)), given)
        enhanced, measured = backend.measure(image, scene(3))
    finally:
        torch.set_num_threads(before)
    same(enhanced, given)
    assert torch.equal(measured.mean, own.mean)
    assert torch.equal(backend.statistics(image).mean, own.mean)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_result_can_replace_the_input(threads: int) -> None:
    backend = open_backend(NETWORK, "cpu")
    image, before = picture(163, 71), torch.get_num_threads()
    expected = backend.enhance(image, scene(0))
    replaced = image.clone()
    torch.set_num_threads(threads)
    try:
        assert backend.enhance(replaced, scene(0), out=replaced) is replaced
    finally:
        torch.set_num_threads(before)
    assert torch.equal(replaced, expected), "and threads change no bit"


def test_any_layout_is_taken_and_written_to() -> None:
    backend = open_backend(NETWORK, "cpu")
    image = picture(20, 30)
    expected = backend.enhance(image, scene(0))
    assert torch.equal(image, picture(20, 30)), "the input is left alone"
    other = image.to(memory_format=torch.channels_last)
    assert torch.equal(backend.enhance(other, scene(0), out=other), expected)
    part = torch.zeros(1, 3, 40, 50)[:, :, 10:30, 10:40]
    assert torch.equal(backend.enhance(image, scene(0), out=part), expected)
    assert torch.equal(part, expected)


def test_tiles_are_accepted_and_change_nothing() -> None:
    image = picture(100, 90)
    expected = open_backend(NETWORK, "cpu", tile="off").enhance(image)
    assert torch.equal(open_backend(NETWORK, "cpu", tile=64).enhance(image), expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_computes_in_fp32_only(precision: Precision) -> None:
    with pytest.raises(BackendError, match=f"fp32 only, not in {precision}; use --precision fp32"):
        open_backend(NETWORK, "cpu", precision)


def test_a_gpu_agrees() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    backend, image = open_backend(NETWORK, "cuda"), picture(67, 101)
    same(backend.enhance(image.cuda(), scene(0)).cpu(), NETWORK(image, scene(0)), 1e-4)


# Its files.


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "tables.safetensors"
    weights.save(NETWORK, path, {"steps": "3"})
    loaded = weights.load(str(path))
    assert isinstance(loaded, TableNetwork)
    assert weights.digest(loaded) == weights.digest(NETWORK)
    assert torch.equal(loaded(picture(9, 9)), NETWORK(picture(9, 9)))


def test_a_file_whose_metadata_are_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tables.safetensors"
    tensors = dict(NETWORK.state_dict())
    right = {"format": "dped-live table network 1", "sha256": weights.digest(NETWORK)}
    without = {name: tensor for name, tensor in tensors.items() if name != "detail.threshold"}
    for content, metadata, expected in (
        (tensors, right | {"format": "dped-live table network 2"}, "not weights of dped-live"),
        (tensors, {"sha256": right["sha256"]}, "not weights of dped-live"),
        (tensors, right | {"format": "dped-live generator 1"}, "the metadata are wrong"),
        (tensors, right | {"sha256": "0"}, "the checksum is wrong"),
        (without, right, "does not hold the tensors of a table network"),
        (tensors | {"detail.threshold": torch.full((8,), torch.nan)}, right, "is not finite"),
    ):
        safetensors.torch.save_file(content, path, metadata)
        with pytest.raises(WeightsError, match=expected):
            weights.load(str(path))
