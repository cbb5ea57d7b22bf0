"""Tiles change nothing but the memory they need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dped_live.backends import Backend, Precision, Tile, open_backend, tiled
from dped_live.backends.tiled import TiledBackend
from dped_live.backends.torch_cpu import TorchCpuBackend
from dped_live.errors import BackendError, TooLargeError
from dped_live.generator import WHOLE, Region
from dped_live.statistics import Statistics

from conftest import random_generator

GENERATOR = random_generator(16, 4)


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def opened(tile: Tile, precision: Precision = "fp32") -> Backend:
    return open_backend(GENERATOR, "cpu", precision, tile, runner="torch")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "size",
    [(40, 50), (64, 65), (65, 64), (64, 129), (131, 67), (193, 40)],
    ids=["smaller than a tile", "column over", "row over", "three columns", "odd", "thin"],
)
def test_tiles_give_the_same_bits_with_the_same_statistics(precision: Precision, size: tuple[int, int]) -> None:
    image = picture(*size)
    statistics = opened("off", precision).measure(image * 0.7)[1]
    whole, found = opened("off", precision).measure(image, statistics)
    enhanced = opened("off", precision).enhance(image, statistics)
    assert torch.equal(opened(64, precision).enhance(image, statistics), enhanced)
    assert torch.equal(opened(64, precision).measure(image, statistics)[0], whole)
    agree(opened(64, precision).measure(image, statistics)[1], found, 2e-6 if precision == "fp32" else 1e-4)


@pytest.mark.parametrize("size", [(101, 203), (160, 129)])
def test_measured_statistics_are_the_picture_s(size: tuple[int, int]) -> None:
    image = picture(*size)
    enhanced, statistics = opened("off").measure(image)
    tiled_enhanced, measured = opened(64).measure(image)
    agree(measured, statistics, 2e-6)
    assert (tiled_enhanced - enhanced).abs().max() < 1e-5
    assert (opened(64).enhance(image) - enhanced).abs().max() < 1e-5


def agree(actual: Statistics, expected: Statistics, relative: float) -> None:
    """Means relative to the values' size: many are near zero."""
    size = (expected.mean.square() + expected.variance).sqrt()
    assert ((actual.mean - expected.mean).abs() <= relative * size).all()
    torch.testing.assert_close(actual.variance, expected.variance, rtol=relative, atol=0)


class SmallBackend:
    """Has memory for so many pixels; what it does with them is the CPU backend's."""

    in_float32 = None
    shares = False

    def __init__(self, pixels: int) -> None:
        self._whole = TorchCpuBackend(GENERATOR, torch.float32)
        self._pixels = pixels
        self.device = self._whole.device
        self.description = "small"
        self.bytes_per_pixel = self.bytes_per_pixel_given = 2 * 16 * 4

    def _check(self, image: Tensor) -> None:
        if image.shape[2] * image.shape[3] > self._pixels:
            raise TooLargeError("too large")

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        self._check(image)
        return self._whole.enhance(image, statistics, out)

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        self._check(image)
        return self._whole.measure(image, statistics, interior)

    def statistics(self, image: Tensor) -> Statistics:
        self._check(image)
        return self._whole.statistics(image)

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        self._check(image)
        return self._whole.measure_next(image, before, interior)


def test_when_memory_runs_out_tiles_get_smaller_and_it_is_said_once() -> None:
    image, lines = picture(150, 200), list[str]()
    whole = opened("off")
    statistics = whole.measure(image)[1]
    backend = TiledBackend(SmallBackend(120 * 120), GENERATOR, None, lines.append)
    in_place = image.clone()
    assert torch.equal(backend.enhance(in_place, statistics, out=in_place), whole.enhance(image, statistics))
    assert (backend.enhance(image) - whole.enhance(image)).abs().max() < 1e-5
    assert torch.equal(backend.measure(image, statistics)[0], whole.measure(image, statistics)[0])
    assert lines == ["memory ran out; going on in smaller tiles"]


def test_it_ends_where_even_the_smallest_tiles_do_not_fit() -> None:
    for side in (None, 100):
        backend = TiledBackend(SmallBackend(50 * 50), GENERATOR, side, lambda _line: None)
        with pytest.raises(TooLargeError):
            backend.enhance(picture(150, 200))


def test_memory_that_runs_out_in_the_middle_of_a_picture_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second row of tiles fails after its first tile, when the first row has replaced the picture's own."""
    image = picture(200, 200)
    statistics = opened("off").measure(image)[1]
    small = SmallBackend(200 * 200)
    backend = TiledBackend(small, GENERATOR, None, lambda _line: None)
    monkeypatch.setattr(backend, "_planned_side", lambda *_: 90)
    calls = 0

    def check(_image: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise TooLargeError("too large")

    monkeypatch.setattr(small, "_check", check)
    in_place = image.clone()
    assert torch.equal(backend.enhance(in_place, statistics, out=in_place), opened("off").enhance(image, statistics))
    assert calls > 9 + 1


def test_auto_plans_tiles_for_what_does_not_fit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    image, lines = picture(150, 200), list[str]()
    whole = opened("off").enhance(image)
    backend = TiledBackend(SmallBackend(200 * 150), GENERATOR, None, lines.append)
    assert torch.equal(backend.enhance(image), whole)
    assert lines == []
    monkeypatch.setattr(tiled, "_HOST_BYTES", 0)
    monkeypatch.setattr(tiled, "_TILE_BYTES", (2 * 16 * 4 + 48) * 136**2)  # 100 and two halos of 18
    backend = TiledBackend(SmallBackend(136 * 136), GENERATOR, None, lines.append)
    assert (backend.enhance(image) - whole).abs().max() < 1e-5
    assert not torch.equal(backend.enhance(image), whole)
    assert len(lines) == 1
    assert lines[0].startswith("pictures of 200x150 are enhanced in tiles of 100x100, for a whole one needs ")


def test_a_cpu_measures_norm_by_norm_what_does_not_fit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    image, lines = picture(150, 200), list[str]()
    whole, statistics = opened("off").measure(image)
    monkeypatch.setattr(tiled, "_HOST_BYTES", 0)
    backend = open_backend(GENERATOR, "cpu", "fp32", "auto", lines.append, "torch")
    assert torch.equal(backend.enhance(image, statistics), opened("off").enhance(image, statistics))
    enhanced, measured = backend.measure(image)
    agree(measured, statistics, 2e-6)
    assert (enhanced - whole).abs().max() < 1e-5
    assert (backend.enhance(image) - whole).abs().max() < 1e-5
    agree(backend.statistics(image), statistics, 2e-6)
    assert len(lines) == 1
    assert lines[0].startswith(
        "pictures of 200x150 are measured norm by norm, which takes five times as long; at once "
    )


def test_off_refuses_and_names_auto() -> None:
    huge = torch.zeros(1, 3, 1, 1).expand(1, 3, 200_000, 200_000)
    with pytest.raises(BackendError, match="use --tile auto"):
        opened("off").enhance(huge)


@pytest.mark.parametrize(
    ("length", "side", "halo"), [(1, 64, 18), (64, 64, 18), (65, 64, 18), (1000, 64, 14), (5, 1, 2)]
)
def test_spans_cover_an_axis_once_with_their_halo(length: int, side: int, halo: int) -> None:
    covered: list[int] = []
    for span in tiled._spans(length, side, halo):
        pixels = range(length)[span.place]
        covered += pixels
        assert list(range(length)[span.outer][span.interior]) == list(pixels)
        assert span.outer.start == max(0, pixels[0] - halo)
        assert span.outer.stop == min(length, pixels[-1] + 1 + halo)
        assert side / 2 <= len(pixels) <= side or length <= side
    assert covered == list(range(length))
