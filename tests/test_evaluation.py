"""Scores worked out by hand, and those of the original's own network and scorer.

The golden figures are what tools/original_scores.py printed, with TensorFlow 2.21 and scipy 1.17.1 on a CPU, of the
pairs in the developers' data folder.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dped_live.backends import open_backend
from dped_live.errors import InputError, OutputError
from dped_live.metrics import ms_ssim, ms_ssim_of_original, psnr
from dped_live.training.evaluation import Likeness, evaluate, write_csv
from dped_live.training.pairs import Pair, find_pairs, to_float
from dped_live.weights import load

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(1)


def write_pair(folder: Path, name: str, phone: np.ndarray, camera: np.ndarray) -> Pair:
    for parent, pixels in (("phone", phone), ("canon", camera)):
        (folder / parent).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / parent / f"{name}.png")
    height, width, _ = phone.shape
    return Pair(folder / "phone" / f"{name}.png", folder / "canon" / f"{name}.png", width, height)


def noisy_pair(folder: Path, name: str, height: int, width: int) -> Pair:
    camera = PIXELS.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return write_pair(folder, name, camera // 2 + PIXELS.integers(0, 50, camera.shape, dtype=np.uint8), camera)


def plain_pairs(folder: Path, levels: list[int]) -> list[Pair]:
    """The camera's pictures are black, the phone's of these 8-bit levels."""
    black = np.zeros((4, 4, 3), np.uint8)
    return [write_pair(folder, str(n), black + np.uint8(level), black) for n, level in enumerate(levels)]


def unchanged(picture: Tensor) -> Tensor:
    return picture


def tensor(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return to_float(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])


def decibels(level: float) -> float:
    """PSNR of a picture that is off by so many 8-bit levels everywhere, divided by 255 exactly."""
    return -20 * math.log10(level / 255)


def test_psnr_of_pictures_and_of_batches(tmp_path: Path) -> None:
    levels = [10] * 50 + [40] * 25 + [80] * 25 + [200] * 3
    scores = evaluate(lambda picture: picture / 2, CPU, plain_pairs(tmp_path, levels))
    for likeness, factor in ((scores.input, 1), (scores.enhanced, 0.5)):
        singles = [decibels(level * factor) for level in levels]
        # The levels are float16: up to 4 dB / 10000 off.
        assert [picture.psnr for picture in likeness.pictures] == pytest.approx(singles, abs=5e-3)
        assert likeness.psnr == pytest.approx(sum(singles) / 103, abs=5e-3)
        # One error for each 50: 10^2, and the mean of 40^2 and 80^2. The last 3 are dropped.
        batches = [decibels(10 * factor), decibels(math.sqrt(4000) * factor)]
        assert likeness.batch_psnr == pytest.approx(sum(batches) / 2, abs=5e-3)
        assert likeness.equal == 0
    assert scores.names == [str(n) for n in range(103)]


def test_pictures_equal_to_the_cameras_are_left_out_of_the_mean(tmp_path: Path) -> None:
    pairs = plain_pairs(tmp_path, [0, 51, 0])
    likeness = evaluate(unchanged, CPU, pairs).input
    assert [picture.psnr for picture in likeness.pictures] == pytest.approx(
        [math.inf, decibels(51), math.inf], abs=5e-3
    )
    assert likeness.psnr == pytest.approx(decibels(51), abs=5e-3)
    assert likeness.equal == 2
    assert math.isnan(evaluate(unchanged, CPU, pairs[:1]).input.psnr)


def test_what_is_not_a_number_is_not_taken_for_equal(tmp_path: Path) -> None:
    likeness = evaluate(lambda picture: picture * math.nan, CPU, plain_pairs(tmp_path, [51, 51])).enhanced
    assert math.isnan(likeness.psnr)
    assert likeness.equal == 0


def test_values_beyond_white_are_scored_as_they_are(tmp_path: Path) -> None:
    """The pictures are black; clipped, they would be perfect."""
    scores = evaluate(lambda picture: picture - 0.1, CPU, plain_pairs(tmp_path, [0]))
    assert scores.enhanced.psnr == pytest.approx(20, abs=1e-4)


def test_ms_ssim_of_pictures_and_of_batches(tmp_path: Path) -> None:
    pairs = [noisy_pair(tmp_path, str(n), 20, 30) for n in range(52)]
    likeness = evaluate(unchanged, CPU, pairs).input
    phone, camera = (torch.cat([tensor(getattr(pair, side)) for pair in pairs]) for side in ("phone", "camera"))
    singles = [ms_ssim_of_original(phone[n : n + 1], camera[n : n + 1]) for n in range(52)]
    assert [picture.ms_ssim_original for picture in likeness.pictures] == pytest.approx(singles, abs=1e-12)
    assert likeness.ms_ssim_original == pytest.approx(sum(singles) / 52, abs=1e-12)
    of_batch = ms_ssim_of_original(phone[:50], camera[:50])
    assert likeness.batch_ms_ssim_original == pytest.approx(of_batch, abs=1e-12)
    assert abs(of_batch - sum(singles[:50]) / 50) > 1e-5
    assert likeness.batch_psnr == pytest.approx(psnr(phone[:50], camera[:50]), abs=1e-9)
    assert likeness.ms_ssim is None


def test_the_standard_ms_ssim_needs_large_pictures(tmp_path: Path) -> None:
    large, small = noisy_pair(tmp_path, "large", 161, 170), noisy_pair(tmp_path, "small", 160, 170)
    expected = ms_ssim(tensor(large.phone), tensor(large.camera)).item()
    alone = evaluate(unchanged, CPU, [large]).input
    assert alone.pictures[0].ms_ssim == alone.ms_ssim == pytest.approx(expected, abs=1e-12)
    both = evaluate(unchanged, CPU, [large, small]).input
    assert [picture.ms_ssim is None for picture in both.pictures] == [False, True]
    assert both.ms_ssim is None


def test_batches_need_fifty_pictures_of_one_size(tmp_path: Path) -> None:
    pairs = plain_pairs(tmp_path, [10] * 50)
    assert evaluate(unchanged, CPU, pairs).input.batch_psnr is not None
    others = ([*pairs[:49]], [*pairs, noisy_pair(tmp_path, "larger", 5, 4)])
    for some in others:
        likeness = evaluate(unchanged, CPU, some).input
        assert likeness.batch_psnr is None
        assert likeness.batch_ms_ssim_original is None


def test_the_function_gets_one_picture_at_a_time_without_gradients(tmp_path: Path) -> None:
    shapes, progress = [], []

    def enhance(picture: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        assert picture.dtype == torch.float32
        shapes.append(tuple(picture.shape))
        return picture

    pairs = [*plain_pairs(tmp_path, [3]), noisy_pair(tmp_path, "other", 7, 9)]
    evaluate(enhance, CPU, pairs, lambda done, total: progress.append((done, total)))
    assert shapes == [(1, 3, 4, 4), (1, 3, 7, 9)]
    assert progress == [(1, 2), (2, 2)]


def test_no_score_without_every_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pairs to test on"):
        evaluate(unchanged, CPU, [])
    pairs = [noisy_pair(tmp_path, name, 30, 30) for name in "ab"]
    pairs[1].camera.write_bytes(pairs[1].camera.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"canon.b\.png: damaged"):
        evaluate(unchanged, CPU, pairs)


def test_csv(tmp_path: Path) -> None:
    pairs = [*plain_pairs(tmp_path, [0]), noisy_pair(tmp_path, "large, noisy", 161, 161)]
    scores = evaluate(lambda picture: picture * 0.9, CPU, pairs)
    table = tmp_path / "scores.csv"
    write_csv(scores, table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["0", "large, noisy"]
    assert rows[0]["psnr"] == "inf"
    assert rows[0]["ms_ssim"] == rows[0]["ms_ssim_input"] == ""
    for suffix, likeness in (("", scores.enhanced), ("_input", scores.input)):
        for column in ("psnr", "ms_ssim_original", "ms_ssim"):
            assert float(rows[1][column + suffix]) == pytest.approx(getattr(likeness.pictures[1], column), abs=1e-6)

    with pytest.raises(OutputError, match="add -y"):
        write_csv(scores, table)
    write_csv(evaluate(unchanged, CPU, pairs[:1]), table, overwrite=True)
    assert len(table.read_text().splitlines()) == 2
    assert not list(tmp_path.glob("*.part*"))


# Against the original: PSNR and MS-SSIM of batches of 50, then the means over single pictures.

OF_200 = (14.80859, 0.841774, 17.15053, 0.838343)
"""All pairs, the phone's pictures as they are."""

OF_50 = {
    "iphone": (20.18612, 0.923753, 22.04266, 0.923108),
    "blackberry": (19.30327, 0.902212, 21.56404, 0.901467),
}
"""The first 50 pairs, enhanced by the authors' models."""


def assert_scores(likeness: Likeness, expected: tuple[float, float, float, float]) -> None:
    assert likeness.batch_psnr == pytest.approx(expected[0], abs=0.001)
    assert likeness.batch_ms_ssim_original == pytest.approx(expected[1], abs=0.00002)
    assert likeness.psnr == pytest.approx(expected[2], abs=0.001)
    assert likeness.ms_ssim_original == pytest.approx(expected[3], abs=0.00002)


def pairs_of(shared: Path) -> list[Pair]:
    return find_pairs(shared / "dped" / "patches", "iphone", pytest.fail, hold_out=200).test


def test_the_input_scores_as_with_the_original(shared: Path) -> None:
    likeness = evaluate(unchanged, CPU, pairs_of(shared)).input
    assert_scores(likeness, OF_200)
    assert likeness.equal == 2  # 103 and 177 are white in both


@pytest.mark.parametrize("model", OF_50)
def test_models_score_as_with_the_original(shared: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped" / "weights"))
    backend = open_backend(load(model), "cpu", "fp32")
    assert_scores(evaluate(backend.enhance, backend.device, pairs_of(shared)[:50]).enhanced, OF_50[model])
