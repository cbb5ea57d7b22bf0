"""Table, filter, table: the compiled path against torch's, and what its form promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dped_live import table_kernels, weights
from dped_live.table_filter import (
    SIDE,
    USUAL_SIDE,
    Filter,
    TableFilter,
    filter_of,
    filter_path,
    identity,
    refined,
    save_filter,
)

SIZES = [(1, 1), (5, 3), (37, 64), (90, 41)]


def nothing() -> Filter:
    """A filter that changes nothing, in a basis of its own."""
    basis = np.array([[0.3, 0.6, 0.1], [1, -1, 0.2], [0.5, 0.4, -1]], np.float32)
    wide, narrow = np.zeros((9, 9), np.float32), np.zeros((2, 5, 5), np.float32)
    wide[4, 4] = narrow[:, 2, 2] = 1
    return Filter(basis, wide, narrow, identity(USUAL_SIDE), identity(USUAL_SIDE))


def anything(seed: int = 0) -> TableFilter:
    random = np.random.default_rng(seed)
    plain = nothing()
    filter_ = replace(
        plain,
        wide=plain.wide + random.normal(0, 0.02, plain.wide.shape).astype(np.float32),
        narrow=plain.narrow + random.normal(0, 0.02, plain.narrow.shape).astype(np.float32),
    )
    first, second = (identity() + random.normal(0, 0.03, (SIDE,) * 3 + (3,)).astype(np.float32) for _ in range(2))
    return TableFilter(first, filter_, second)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Some colours outside, some on the entries of a table."""
    random = np.random.default_rng(seed)
    values = random.uniform(-0.1, 1.1, (1, 3, height, width)).astype(np.float32)
    values[:, :, ::3] = (values[:, :, ::3] * (SIDE - 1)).round() / (SIDE - 1)
    return torch.from_numpy(values)


@pytest.mark.parametrize("size", SIZES)
def test_tables_and_a_filter_that_change_nothing(size: tuple[int, int]) -> None:
    image = picture(*size)
    same = TableFilter(identity(), nothing(), identity()).enhance(image)
    assert (same - image.clamp(0, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_the_compiled_path_does_what_torch_does(size: tuple[int, int]) -> None:
    both, image = anything(), picture(*size)
    assert (both.enhance(image) - both._enhance_by_torch(image)).abs().max() < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_in_place_and_in_threads_it_is_the_same_to_the_bit(threads: int) -> None:
    image = picture(200, 33)
    expected = anything().enhance(image)
    apart = torch.empty_like(image)
    assert anything().enhance(image, apart, threads) is apart
    assert torch.equal(apart, expected)
    assert anything().enhance(image, image, threads) is image
    assert torch.equal(image, expected)


def test_any_layout_can_be_read_and_written() -> None:
    image = picture(60, 50)
    expected = anything().enhance(image)
    across = image.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(anything().enhance(across), expected)
    whole = torch.zeros(1, 3, 70, 50)
    anything().enhance(image, whole[:, :, 5:65])
    assert torch.equal(whole[:, :, 5:65], expected)
    assert not whole[:, :, :5].any()


def test_a_moved_picture_gives_the_moved_result() -> None:
    image = picture(60, 80)
    here, moved = anything().enhance(image), anything().enhance(image[:, :, 3:, 7:])
    assert torch.equal(here[:, :, 7:-4, 11:-4], moved[:, :, 4:-4, 4:-4])


def test_what_is_grey_depends_on_the_entries_of_greys_alone() -> None:
    grey = torch.linspace(0, 1, 300).expand(1, 3, 12, 300)
    tables = anything()
    first = np.full_like(tables.first, 7)
    every = np.arange(SIDE)
    first[every, every, every] = identity()[every, every, every]
    result = TableFilter(first, nothing(), identity()).enhance(grey)
    assert (result - grey).abs().max() < 1e-5


def test_on_the_way_to_others() -> None:
    a, b = anything(1), anything(2)
    there = TableFilter(b.first, a.filter, b.second)
    assert np.allclose(a.towards(there, 1).first, b.first, atol=1e-6)
    assert np.allclose(a.towards(there, 0.25).second, 0.75 * a.second + 0.25 * b.second, atol=1e-6)


@pytest.mark.parametrize("name", weights.PUBLISHED)
def test_the_published_models_have_filters(name: str) -> None:
    filter_ = filter_of(name)
    assert filter_ is not None
    kernels = (filter_.wide, *filter_.narrow)
    assert all(0.9 < kernel.sum() < 1.1 for kernel in kernels), "what is flat stays as light as it is"
    assert filter_.wide[4, 4] == filter_.wide.max(), "and where it is"


def test_other_models_have_theirs_beside_them(tmp_path: Path) -> None:
    model = tmp_path / "mine.safetensors"
    assert filter_of(str(model)) is None
    model.touch()
    assert save_filter(str(model), anything().filter) == filter_path(str(model)) == tmp_path / "mine.filter.safetensors"
    read = filter_of(str(model))
    assert read is not None
    assert np.array_equal(read.wide, anything().filter.wide)
    assert np.array_equal(read.basis @ read.back.astype(np.float32), read.basis @ anything().filter.back)


def test_a_refined_table_is_the_same_table() -> None:
    random = np.random.default_rng(0)
    table = random.uniform(0, 1, (USUAL_SIDE,) * 3 + (3,)).astype(np.float32)
    assert np.allclose(refined(table)[::2, ::2, ::2], table, atol=1e-6)
    assert np.allclose(refined(identity(USUAL_SIDE)), identity(), atol=1e-6)


def test_a_filter_of_another_shape_is_refused() -> None:
    plain = nothing()
    with pytest.raises(ValueError, match="not a filter"):
        replace(plain, wide=plain.narrow[0])


def test_the_functions_are_compiled_once() -> None:
    """For another layout of an array they would be again, in the middle of a run, for seconds."""
    strided = picture(80, 60)[0, :, ::2].numpy()
    anything().filtered(strided)
    anything().enhance(picture(80, 60), threads=2)
    assert len(table_kernels.filter_rows.signatures) == 1  # type: ignore[attr-defined]
