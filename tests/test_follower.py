"""A network followed: what is shown when, on real networks, by the frames' own times."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from dped_live import weights
from dped_live.backends import Backend, open_backend
from dped_live.enhance import Enhancer
from dped_live.errors import TooLargeError
from dped_live.follower import Follower
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.live_statistics import LivePolicy
from dped_live.metrics import luma, psnr
from dped_live.scene_statistics import ScenePolicy, SceneStatistics
from dped_live.sources.images import read_photo
from dped_live.statistics import Statistics
from dped_live.surrogate import Sample, fit
from dped_live.table_filter import Filter, filter_of
from dped_live.table_kernels import as_array

from conftest import random_generator
from test_surrogate import scene
from test_table_filter import nothing

HEIGHT, WIDTH = 240, 320
FORMAT = VideoFormat(WIDTH, HEIGHT, PIXEL_FORMATS["rgb24"], time_base=Fraction(1, 30))


def backend(seed: int = 0) -> Backend:
    return open_backend(random_generator(8, 2, seed), "cpu", "fp32", tile="off")


def frame(number: int, seed: int = 0, left: int = 0) -> Frame:
    wide = scene(seed, HEIGHT, 2 * WIDTH)
    picture = (wide[:, :, left : left + WIDTH].transpose(1, 2, 0) * 255).round().astype(np.uint8)
    return Frame((np.ascontiguousarray(picture),), FORMAT, Fraction(number, 30))


def usual() -> Filter:
    """A filter that does nothing, with tables fitted to what the network makes of some scenes."""
    pictures = [scene(seed, HEIGHT, WIDTH) for seed in range(10, 16)]
    made = [backend().enhance(torch.from_numpy(picture)[None])[0].numpy() for picture in pictures]
    found = fit([Sample(*pair) for pair in zip(pictures, made, strict=True)], nothing())
    first, second = (as_array(table[::2, ::2, ::2]) for table in (found.first, found.second))
    return replace(nothing(), first=first, second=second)


USUAL = usual()


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255


def exact(one: Frame, statistics: Statistics | None = None) -> torch.Tensor:
    return backend().enhance(tensor(one.planes[0]), statistics).clamp(0, 1)


def live() -> tuple[Follower, Enhancer]:
    follower = Follower(backend(), backend(), USUAL, LivePolicy(), live=True)
    return follower, Enhancer(follower, FORMAT, follower)


def until(condition: Callable[[], bool], step: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it never came"
        step()
        time.sleep(0.002)


def shown(follower: Follower, one: Frame) -> torch.Tensor:
    """What the follower makes of a frame, not rounded."""
    plan = follower.normalisation(one)
    return follower.enhance(tensor(one.planes[0]), plan.statistics).clone()


def test_the_first_picture_is_near_and_the_next_ones_are_nearer(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped" / "weights"))
    filter_ = filter_of("resnet_8_32")
    assert filter_ is not None
    several = [open_backend(weights.load("resnet_8_32"), "cpu", "fp32", tile="off") for _ in range(2)]
    follower = Follower(several[0], several[1], filter_, LivePolicy(), live=True)
    photo = read_photo(shared / "photos" / "kodak" / "05.png").frame.planes[0][8:-8, 8:-8]
    fmt = replace(FORMAT, width=photo.shape[1], height=photo.shape[0])
    still = Frame((np.ascontiguousarray(photo),), fmt)
    first = shown(follower, still)
    statistics = follower._policy.normalisation(still).statistics
    wanted = several[1].enhance(tensor(photo), statistics)
    begun = psnr(first, wanted)
    assert begun > psnr(tensor(photo), wanted) + 6
    frames = 0

    def reached() -> float:
        assert follower._target is not None
        return psnr(follower._target.enhance(tensor(photo)), wanted)

    def step() -> None:
        nonlocal frames
        frames += 1
        shown(follower, replace(still, pts=Fraction(frames, 30)))

    until(lambda: reached() > begun + 0.5, step)


def test_it_says_how_old_its_tables_are() -> None:
    follower, enhancer = live()
    assert follower.state == "followed"
    enhancer.enhance(frame(0))
    assert re.fullmatch(r"followed, refit \d\.\d s ago", follower.state)
    follower._refit_at -= 2
    assert re.fullmatch(r"followed, refit [23]\.\d s ago", follower.state)


def test_still_pictures_go_over_unseen() -> None:
    """From the quick tables to those of the network, no colour's luma makes a step of a tenth of a level."""
    follower, _ = live()
    pictures = [shown(follower, frame(0))]
    begun = follower._target
    steps: list[float] = []

    def step() -> None:
        picture = shown(follower, replace(frame(0), pts=Fraction(len(steps) + 1, 30)))
        change = luma(picture) - luma(pictures.pop())
        steps.append(float(torch.nn.functional.avg_pool2d(change[None], 40).abs().max()))
        pictures.append(picture)

    until(lambda: len(steps) > 200 and follower._target is not begun, step)
    assert 0 < max(steps) < 0.1


def test_after_a_cut_the_third_picture_is_right() -> None:
    follower, enhancer = live()
    for number in range(8):
        enhancer.enhance(frame(number))
    after_cut = [enhancer.enhance(frame(8 + number, seed=5)).planes[0] for number in range(3)]
    wanted = exact(frame(8, seed=5))
    near = [psnr(tensor(picture), wanted) for picture in after_cut]
    assert near[2] > 23
    assert near[2] > near[0] + 1.5
    assert follower._scene is not None


def test_the_old_scene_s_fit_is_dropped_after_a_cut() -> None:
    follower, enhancer = live()
    for number in range(4):
        enhancer.enhance(frame(number))
    until(lambda: follower._turn is not None, lambda: enhancer.enhance(frame(5)))
    turn = follower._turn
    assert turn is not None
    for number in range(3):
        enhancer.enhance(frame(6 + number, seed=5))
    scene_now = follower._scene
    until(turn.done, lambda: None)
    assert turn.result().scene is not scene_now
    enhancer.enhance(frame(9, seed=5))
    assert follower._target is not turn.result().tables


class Failing:
    """A backend that runs out of memory."""

    device = torch.device("cpu")
    description = "failing"
    in_float32 = None
    shares = False

    def enhance(
        self, image: torch.Tensor, statistics: Statistics | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        raise TooLargeError(f"no memory for it: {image.shape, statistics, out}")

    def measure(self, image: torch.Tensor, statistics: Statistics | None = None) -> tuple[torch.Tensor, Statistics]:
        raise TooLargeError(f"no memory for it: {image.shape, statistics}")

    def statistics(self, image: torch.Tensor) -> Statistics:
        raise TooLargeError(f"no memory for it: {image.shape}")


def test_where_the_network_fails_it_says_so_and_the_last_tables_go_on() -> None:
    follower = Follower(Failing(), backend(), USUAL, LivePolicy(), live=True)
    enhancer = Enhancer(follower, FORMAT, follower)
    first = enhancer.enhance(frame(0)).planes[0]
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        assert np.array_equal(enhancer.enhance(replace(frame(0), pts=Fraction(number, 30))).planes[0], first)

    until(lambda: "the network failed: no memory for it" in follower.state, step)


def test_a_bug_of_the_network_is_not_hidden() -> None:
    class Broken(Failing):
        def enhance(self, image: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            raise ZeroDivisionError(f"{image.shape}")

    follower = Follower(Broken(), backend(), USUAL, LivePolicy(), live=True)
    enhancer = Enhancer(follower, FORMAT, follower)
    with pytest.raises(ZeroDivisionError):
        until(lambda: False, lambda: enhancer.enhance(frame(0)))


def test_a_small_picture_is_enhanced_by_the_network_itself() -> None:
    follower = Follower(Failing(), backend(), USUAL, LivePolicy(), live=True)
    image = torch.rand(1, 3, 40, 300)
    assert torch.equal(follower.enhance(image), backend().enhance(image))


def scenes() -> ScenePolicy:
    """Two shots, of twenty frames and of the rest."""
    whole = frame(0).whole
    found = [backend().statistics(tensor(frame(0, seed).planes[0])) for seed in (0, 5)]
    return ScenePolicy(
        [
            SceneStatistics(Fraction(0), None, found[0], 0.5, whole),
            SceneStatistics(Fraction(20, 30), None, found[1], 0.5, whole),
        ]
    )


def film() -> list[np.ndarray]:
    follower = Follower(backend(), backend(), USUAL, scenes(), live=False)
    enhancer = Enhancer(follower, FORMAT, follower)
    frames = [frame(number, 0 if number < 20 else 5, left=4 * (number % 20)) for number in range(70)]
    return [one.planes[0] for one in enhancer.map(frames)]


def test_a_file_comes_out_the_same_each_time_and_near_from_the_first_frame_of_each_shot() -> None:
    pictures = film()
    assert all(np.array_equal(a, b) for a, b in zip(pictures, film(), strict=True))
    statistics = scenes()
    for number in (0, 19, 20, 69):
        shown = frame(number, 0 if number < 20 else 5, left=4 * (number % 20))
        wanted = exact(shown, statistics.normalisation(shown).statistics)
        assert psnr(tensor(pictures[number]), wanted) > 24, number
