"""lite, the model that ships: it is small, needs nothing, and makes pictures that people would leave switched on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dped_live import weights
from dped_live.backends import Backend, open_backend
from dped_live.enhance import Enhancer
from dped_live.errors import WeightsError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.live_statistics import LivePolicy
from dped_live.metrics import decibels, mean_squared_error, ms_ssim_of_original
from dped_live.network import Network
from dped_live.scene_statistics import ExactPolicy, Policy, ScenePolicy, measure_scenes
from dped_live.training.pairs import find_pairs, read_pair

HEIGHT, WIDTH = 120, 160


@pytest.fixture(scope="module")
def lite() -> Network:
    return weights.load(weights.LITE)


@pytest.fixture(scope="module")
def backend(lite: Network) -> Backend:
    return open_backend(lite, "cpu")


def test_it_is_small(lite: Network) -> None:
    assert weights.lite_path().stat().st_size <= 250_000
    assert sum(parameter.numel() for parameter in lite.parameters()) == 54_120


def test_it_needs_no_network_no_cache_and_no_checkout(tmp_path: Path) -> None:
    code = "from dped_live import weights; print(weights.digest(weights.load('lite')))"
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == weights.digest(weights.load(weights.LITE))
    assert not any(tmp_path.iterdir())


def test_it_is_never_fetched() -> None:
    with pytest.raises(WeightsError, match="lite is part of dped-live, there is nothing to fetch"):
        weights.fetch(weights.LITE)


def test_it_is_nearer_to_the_camera_than_iphone(lite: Network, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the 50 pairs that it was not trained on, those of benchmarks/LITE.md. One is white in both pictures, and lite
    keeps white: PSNR is the mean of the other 49."""
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped" / "weights"))
    pairs = find_pairs(shared / "dped" / "patches", "iphone", lambda _: None, 50).test
    phone, camera = (torch.stack(pictures) / 255 for pictures in zip(*map(read_pair, pairs), strict=True))
    differ = [not torch.equal(a, b) for a, b in zip(phone, camera, strict=True)]
    assert sum(differ) == 49
    scores = []
    for network in (lite, weights.load("iphone")):
        with torch.inference_mode():
            enhanced = torch.cat([network(picture[None]) for picture in phone]).clamp(0, 1)
        errors = [mean_squared_error(a[None], b[None]) for a, b in zip(enhanced[differ], camera[differ], strict=True)]
        scores.append(
            (float(np.mean([decibels(float(e)) for e in errors])), float(ms_ssim_of_original(enhanced, camera)))
        )
    (psnr, ms_ssim), (psnr_of_iphone, ms_ssim_of_iphone) = scores
    assert psnr >= 21.9
    assert psnr_of_iphone == pytest.approx(20.63, abs=0.02)
    assert ms_ssim >= ms_ssim_of_iphone + 0.003


def picture_of(levels: np.ndarray) -> Tensor:
    return torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("level", [1, 0.75, 0.5])
def test_saturated_colours_stay_what_they_are(backend: Backend, level: float) -> None:
    """A test card; the training's pictures have hardly any of its colours."""
    card = np.zeros((64, 7 * 16, 3))
    for number in range(7):
        card[:, 16 * number : 16 * number + 16] = [255 * level * bool((number + 1) & bit) for bit in (1, 2, 4)]
    result = backend.enhance(picture_of(card)).clamp(0, 1) * 255
    middles = result[0, :, 32, 8::16].T.numpy() - card[32, 8::16]
    assert np.abs(middles).max() <= np.abs(middles[6]).max() + 25, "hardly more than grey"
    for number, moved in enumerate(middles[:6]):
        absent = [not (number + 1) & bit for bit in (1, 2, 4)]
        assert moved[absent].max() <= 20, "no other colour comes in"


def video(pictures: list[np.ndarray]) -> list[Frame]:
    fmt = VideoFormat(WIDTH, HEIGHT, PIXEL_FORMATS["rgb24"], time_base=Fraction(1, 30))
    return [Frame((picture,), fmt, Fraction(number, 30)) for number, picture in enumerate(pictures)]


def enhance(backend: Backend, pictures: list[np.ndarray], policy: str = "scene") -> list[np.ndarray]:
    frames = video(pictures)
    policies: dict[str, Callable[[], Policy]] = {
        "exact": ExactPolicy,
        "scene": lambda: ScenePolicy(measure_scenes(frames, backend)),
        "live": LivePolicy,
    }
    return [f.planes[0] for f in Enhancer(backend, frames[0].format, policies[policy]()).map(frames)]


def grey_scene(seed: int) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3) of shades of grey: ramps, edges and texture."""
    random = np.random.default_rng(seed)
    coarse = cv2.resize(random.uniform(20, 230, (5, 7)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    edges = np.kron(random.uniform(-40, 40, (12, 16)), np.ones((10, 10)))
    return np.repeat((coarse + edges).clip(5, 250).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("brightness", [0.3, 0.6, 1])
def test_grey_stays_grey(backend: Backend, brightness: float) -> None:
    picture = (grey_scene(0) * brightness).astype(np.uint8)
    (result,) = enhance(backend, [picture], "exact")
    assert np.ptp(result.astype(int), axis=2).max() == 0
    assert np.abs(result.astype(int) - picture).max() > 5, "and it is enhanced"


@pytest.mark.parametrize("policy", ["scene", "live"])
def test_black_stays_black_and_fades_fade(backend: Backend, policy: str) -> None:
    picture = cv2.applyColorMap(grey_scene(0), cv2.COLORMAP_TURBO).astype(float)
    steps = [min(1, number / 20, (79 - number) / 20) for number in range(80)]
    results = enhance(backend, [(picture * step).astype(np.uint8) for step in steps], policy)
    lumas = [result.mean() for result in results]
    assert lumas[0] == lumas[-1] == 0
    assert np.all(np.diff(lumas[60:]) <= 0.1), "down to black"
    black = enhance(backend, [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3, policy)
    assert max(result.max() for result in black) == 0


@pytest.mark.parametrize("policy", ["scene", "live"])
def test_letterbox_bars_are_not_touched(backend: Backend, policy: str) -> None:
    picture = cv2.applyColorMap(grey_scene(1), cv2.COLORMAP_TURBO)
    picture[:20], picture[-20:] = 0, 0
    for result in enhance(backend, [picture] * 10, policy):
        assert result[:20].max() == result[-20:].max() == 0
        assert result[20:-20].mean() > 20


def test_what_is_blown_out_stays_white(backend: Backend) -> None:
    picture = cv2.applyColorMap(grey_scene(1), cv2.COLORMAP_TURBO)
    picture[:40] = 255
    (result,) = enhance(backend, [picture], "exact")
    assert result[:36].min() == 255


def test_a_sky_gets_no_bands(backend: Backend) -> None:
    """Over a landscape; neighbouring columns of it differ by a level or less, in one direction."""
    picture = cv2.applyColorMap(grey_scene(0), cv2.COLORMAP_TURBO).astype(float) * 0.7
    ramp = np.linspace(90, 200, WIDTH)
    picture[:70] = np.stack([ramp * 0.7, ramp * 0.85, ramp], axis=1)
    picture += np.random.default_rng(0).uniform(-0.5, 0.5, picture.shape)
    (result,) = enhance(backend, [(picture + 0.5).clip(0, 255).astype(np.uint8)], "exact")
    gradient = np.diff(result[16:48, 16:-16].astype(float).mean(0), axis=0)
    assert np.abs(gradient - gradient.mean(0)).max() <= 1


def test_it_brightens_what_is_dark_and_keeps_what_is_bright(backend: Backend) -> None:
    picture = cv2.applyColorMap(grey_scene(2), cv2.COLORMAP_TURBO)
    (result,) = enhance(backend, [(picture * 0.5).astype(np.uint8)], "exact")
    assert result.mean() > 1.1 * (picture * 0.5).mean()
    (result,) = enhance(backend, [picture], "exact")
    assert (result == 255).mean() <= (picture >= 200).mean(), "only what was bright becomes white"
