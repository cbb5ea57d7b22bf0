"""The fit: what it finds, what it does where it knows nothing, and how near it comes to DPED."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.metrics import psnr, ssim
from dped_live.sources.images import read_photo
from dped_live.surrogate import RIM, Sample, fit
from dped_live.table_filter import Filter, TableFilter, filter_of, identity
from dped_live.table_kernels import Array, as_array

from test_table_filter import anything, nothing


def scene(seed: int, height: int = 160, width: int = 200) -> Array:
    """Smooth colours and hard edges, (3, H, W)."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 1, (8, 10, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    smooth[40:90, 50:120] = coarse[0, 0]
    return as_array(smooth.clip(0, 1).transpose(2, 0, 1))


def toned() -> TableFilter:
    """Smooth tables with a filter that sharpens."""
    curve = identity() ** np.float32(0.7)
    return TableFilter(as_array(0.9 * curve + 0.05), anything(3).filter, as_array(np.sin(identity() * 1.4)))


def after(before: Array, by: TableFilter) -> Array:
    return by.enhance(torch.from_numpy(before)[None])[0].numpy()


def decibels(a: Array, b: Array) -> float:
    return psnr(torch.from_numpy(a).clamp(0, 1)[None], torch.from_numpy(b).clamp(0, 1)[None])


def usual(one: TableFilter) -> Filter:
    """The filter with tables that are nearly those."""
    tables = (0.95 * table[::2, ::2, ::2] + np.float32(0.02) for table in (one.first, one.second))
    first, second = map(as_array, tables)
    return replace(one.filter, first=first, second=second)


def test_it_finds_tables_of_its_own_form() -> None:
    true = toned()
    known = [Sample(scene(seed), after(scene(seed), true)) for seed in range(3)]
    found = fit(known, usual(true))
    assert decibels(after(scene(9), found), after(scene(9), true)) > 40
    assert decibels(scene(9), after(scene(9), true)) < 20


def test_a_second_round_and_going_on_make_it_better() -> None:
    true = anything(4)
    known = [Sample(scene(seed), after(scene(seed), true)) for seed in range(4)]
    once = fit(known, true.filter, rounds=1)
    fits = once, fit(known, true.filter), fit(known, true.filter, once, rounds=3)
    errors = [decibels(after(known[0].before, one), known[0].after) for one in fits]
    assert errors[0] < errors[1] < errors[2]


def test_the_rim_of_a_sample_counts_for_nothing() -> None:
    true = toned()
    sample = Sample(scene(0), after(scene(0), true))
    spoilt = sample.after.copy()
    spoilt[:, :RIM] = spoilt[:, -RIM:] = spoilt[:, :, :RIM] = spoilt[:, :, -RIM:] = 5
    a, b = fit([sample], true.filter), fit([Sample(sample.before, spoilt)], true.filter)
    assert np.array_equal(a.first, b.first)
    assert np.array_equal(a.second, b.second)


def test_colours_never_seen_follow_those_seen() -> None:
    """A scene of dull colours; a bright red comes in."""
    dull = as_array(0.35 + 0.3 * scene(1))
    brighter = as_array(dull * 1.2)
    found = fit([Sample(dull, brighter)], nothing())
    row = np.linspace(0, 1, 256, dtype=np.float32)
    reds = np.stack([row, 0.2 * row, 0.2 * row])[:, None]
    result = after(as_array(reds), found)[:, 0]
    assert (np.diff(result[0]) > -1e-3).all(), "more red in, more red out"
    assert np.abs(result[:, 230:] - reds[:, 0, 230:]).max() < 0.05, "far from all that was seen as usual"


def test_no_bands_in_a_sky() -> None:
    """A gradient stays one, though few of its colours were in the samples, and those noisy."""
    random = np.random.default_rng(0)
    top, bottom = np.array([0.25, 0.45, 0.8]), np.array([0.7, 0.8, 0.9])
    share = np.linspace(0, 1, 240)[None, :, None]
    sky = as_array(((1 - share) * top[:, None, None] + share * bottom[:, None, None]) * np.ones((1, 1, 100)))
    noisy = as_array(sky + random.normal(0, 0.01, sky.shape))
    found = fit([Sample(noisy, after(noisy, toned()))], toned().filter)
    result = after(sky, found)[:, 20:-20, 50]
    bend = np.abs(np.diff(result, 2, axis=1)).max()
    assert bend < 0.5 / 255, "no kink that an eye could see"


@pytest.mark.parametrize(("model", "least"), [("iphone", 31), ("blackberry", 31), ("sony", 31), ("resnet_8_32", 29)])
def test_it_comes_near_dped(model: str, least: float, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped" / "weights"))
    filter_ = filter_of(model)
    assert filter_ is not None
    backend = open_backend(weights.load(model), "cpu", "fp32")
    photo = read_photo(shared / "photos" / "kodak" / "23.png").frame.planes[0][100:340, 200:520]
    before = as_array(photo.transpose(2, 0, 1) / np.float32(255))
    exact = backend.enhance(torch.from_numpy(before)[None])[0].numpy()
    followed = after(before, fit([Sample(before, exact)], filter_, rounds=3))
    assert decibels(followed, exact) > least
    assert decibels(before, exact) < 24
    pair = [torch.from_numpy(one)[None].clamp(0, 1) for one in (followed, exact)]
    assert float(ssim(*pair)) > 0.93
