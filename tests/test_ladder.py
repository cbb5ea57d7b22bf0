"""The ladder: which rung at which load, by simulated times and on real networks."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.backends.reduced import ReducedBackend
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.ladder import Climb, Ladder, Rung
from dped_live.live_state import Controls
from dped_live.metrics import psnr
from dped_live.sources.images import read_photo

from conftest import random_generator, random_table_network

ALLOWED = 1 / 30


def climbed(climb: Climb, seconds: list[float], frames: int) -> list[int]:
    """The rung at each frame, where the rungs take so many seconds each."""
    rungs = []
    for _ in range(frames):
        took = seconds[climb.rung]
        climb.took(took, max(took, ALLOWED))
        rungs.append(climb.rung)
    return rungs


def test_it_begins_on_the_best_rung_that_will_do() -> None:
    assert Climb([2.0, 0.03, 0.01], ALLOWED).rung == 1
    assert Climb([0.02, 0.01], ALLOWED).rung == 0
    assert Climb([2.0, 1.0], ALLOWED).rung == 1, "or on the last"


def test_it_stays_where_the_rate_is_held() -> None:
    assert set(climbed(Climb([2.0, 0.02, 0.01], ALLOWED), [2.0, 0.02, 0.01], 3000)) == {1}


def test_it_leaves_a_rung_that_is_too_slow_within_half_a_second() -> None:
    climb = Climb([0.02, 0.01], ALLOWED)
    rungs = climbed(climb, [0.05, 0.02], 20)
    assert rungs.index(1) * 0.05 <= 0.5
    assert rungs[-1] == 1


def test_one_late_frame_is_no_reason() -> None:
    climb = Climb([0.02, 0.01], ALLOWED)
    climbed(climb, [0.02, 0.01], 100)
    climb.took(0.1, 0.1)
    assert set(climbed(climb, [0.02, 0.01], 100)) == {0}


def test_it_climbs_again_when_the_load_is_gone() -> None:
    climb = Climb([0.02, 0.008], ALLOWED)
    assert climbed(climb, [0.06, 0.024], 300)[-1] == 1
    rungs = climbed(climb, [0.02, 0.008], 600)
    assert rungs[-1] == 0
    assert rungs.index(0) <= 330


def test_it_does_not_pump() -> None:
    """A rung that promises enough and then does not keep it: tried ever less often."""
    climb = Climb([0.02, 0.01], ALLOWED)
    busy = [0.04, 0.01]  # alone on the second rung the machine looks idle
    rungs: list[int] = []
    changes = 0
    for _ in range(30 * 600):
        before = climb.rung
        if climb.rung == 1:
            climb._expected[0] = 0.02
        climb.took(busy[climb.rung], max(busy[climb.rung], ALLOWED))
        changes += climb.rung != before
        rungs.append(climb.rung)
    assert changes <= 2 * 8, "in ten minutes"
    assert np.mean(rungs) > 0.98


FORMAT = VideoFormat(64, 48, PIXEL_FORMATS["rgb24"], time_base=Fraction(1, 30))


def frame(number: int = 0, seed: int = 0) -> Frame:
    random = np.random.default_rng(seed)
    picture = np.kron(random.integers(20, 230, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    return Frame((picture,), FORMAT, Fraction(number, 30), captured_at=time.monotonic())


@pytest.fixture
def ladder() -> Ladder:
    light = open_backend(random_table_network(), "cpu", "fp32")

    def rungs(model: str) -> list[Rung]:
        backend = open_backend(random_generator(8, 2, seed=len(model)), "cpu", "fp32")
        return [Rung(model, backend), Rung("lite", light), Rung("lite at 1/2 size", ReducedBackend(light, 2))]

    return Ladder(["one", "other"], rungs, FORMAT, Fraction(1, 10), pinned=False)


def test_it_enhances_and_says_how(ladder: Ladder) -> None:
    controls = Controls(model="one")
    picture = ladder.enhance(frame(), controls)
    assert ladder.state == ("one", "one")
    assert np.array_equal(picture.before, frame().planes[0])
    assert picture.after.shape == picture.before.shape
    assert not np.array_equal(picture.before, picture.after)


def test_controls_are_followed(ladder: Ladder) -> None:
    controls = Controls(model="one")
    plain = ladder.enhance(frame(), controls)
    controls.strength = 0
    assert np.array_equal(ladder.enhance(frame(1), controls).after, plain.before)
    controls.strength = 0.5
    halfway = ladder.enhance(frame(2), controls).after.astype(float)
    inside = (plain.after > 0) & (plain.after < 255)  # the mixture is of what is not yet clipped
    assert np.abs(halfway - (plain.before.astype(float) + plain.after) / 2)[inside].max() <= 1.5
    controls.strength, controls.mirror = 1, True
    mirrored = ladder.enhance(frame(3), controls)
    assert np.array_equal(mirrored.before, plain.before[:, ::-1])
    controls.mirror, controls.model = False, "other"
    assert not np.array_equal(ladder.enhance(frame(4), controls).after, plain.after)
    assert ladder.state == ("other", "other")


def test_pinned_means_the_model_asked_for_and_no_other() -> None:
    slow = open_backend(random_generator(16, 2), "cpu", "fp32")
    light = open_backend(random_table_network(), "cpu", "fp32")
    for pinned, label in ((True, "slow"), (False, "light")):
        ladder = Ladder(["slow"], lambda _: [Rung("slow", slow), Rung("light", light)], FORMAT, Fraction(10**5), pinned)
        for number in range(20):
            ladder.enhance(frame(number), Controls(model="slow"))
        assert ladder.state[1] == label


@pytest.mark.parametrize("factor", [2, 3])
def test_a_reduced_backend_adds_the_change_of_a_smaller_picture(factor: int) -> None:
    whole = open_backend(random_table_network(), "cpu", "fp32")
    reduced = ReducedBackend(whole, factor)
    picture = torch.rand(1, 3, 12 * factor, 8 * factor + 1, generator=torch.Generator().manual_seed(0))
    statistics = reduced.statistics(picture)
    given = picture.clone()
    result = reduced.enhance(given, statistics, out=given)
    assert result is given
    small = torch.nn.functional.avg_pool2d(picture, factor, ceil_mode=True)
    change = whole.enhance(small, whole.statistics(small)) - small
    added = torch.nn.functional.avg_pool2d((result - picture)[..., : 8 * factor], factor)
    assert torch.corrcoef(torch.stack((added.flatten(), change[..., :8].flatten())))[0, 1] > 0.8
    assert torch.allclose(reduced.measure(picture)[0], result, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_reduced_lite_does_nearly_what_lite_does(factor: int, shared: Path) -> None:
    lite = open_backend(weights.load(weights.LITE), "cpu", "fp32")
    for path in sorted((shared / "photos" / "kodak").glob("*.png"))[:3]:
        photo = read_photo(path).frame.planes[0][8:-8, 8:-8]
        picture = torch.tensor(photo).permute(2, 0, 1)[None].float() / 255
        exact, result = (backend.enhance(picture).clamp(0, 1) for backend in (lite, ReducedBackend(lite, factor)))
        assert psnr(result, exact) > psnr(picture, exact) + 3
