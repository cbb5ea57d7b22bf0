"""Every measure against values worked out by hand, or by the code that defines it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dped_live.metrics import (
    Jump,
    luma,
    mean_luma_jump,
    ms_ssim,
    ms_ssim_of_original,
    pan_flicker,
    psnr,
    static_flicker,
)


def test_luma_weighs_and_clamps_the_colours() -> None:
    red, green, blue = torch.eye(3)[:, :, None, None].unbind(0)
    beyond = torch.tensor([1.5, -0.5, 1.0])[:, None, None]
    levels = luma(torch.stack([red, green, blue, beyond]))
    assert levels.shape == (4, 1, 1)
    # 255 * .2126, .7152, .0722; clamped to (1, 0, 1) the last is the sum of red and blue.
    assert levels.flatten().tolist() == pytest.approx([54.213, 182.376, 18.411, 72.624], abs=1e-3)


def test_psnr_is_of_one_mean_squared_error() -> None:
    a = torch.full((2, 3, 4, 4), 0.5)
    b = a.clone()
    b[0] += 0.1
    # Half of the elements are off by 0.1: MSE 0.005. The mean of the two pictures' PSNR would be infinite.
    assert psnr(a, b) == pytest.approx(10 * math.log10(200), abs=1e-4)
    assert psnr(a, a + 1) == pytest.approx(0, abs=1e-6)
    assert psnr(a, a) == math.inf


def test_psnr_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))


def made_up(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two batches of pictures, float64 (N, 3, H, W), that formulas describe; the second reaches beyond [0, 1]."""
    n, c, y, x = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float64) for size in (count, 3, height, width)), indexing="ij"
    )
    a = 0.5 + 0.25 * (0.11 * x + 0.07 * y + n + c).sin() + 0.2 * (0.9 * x - 0.5 * y * (c + 1) + n).sin()
    return a, 0.9 * a + 0.08 * (1.7 * x + 1.3 * y + c).cos() + 0.05 * (n + 1) * (0.23 * x).sin()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 100, 100), 0.8542231971479716),
        ((1, 100, 100), 0.9605335052723556),
        ((1, 101, 67), 0.9616549851974839),
        ((2, 10, 33), 0.930227748255511),
        ((1, 37, 256), 0.9540805221935355),
        ((2, 177, 203), 0.9295500502857854),
    ],
)
def test_ms_ssim_of_original(shape: tuple[int, int, int], expected: float) -> None:
    """MultiScaleSSIM(255 * a, 255 * b) of the original's ssim.py, with scipy 1.17.1."""
    assert ms_ssim_of_original(*made_up(*shape)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 161, 161), [0.9598987698554993, 0.898848831653595]),
        ((2, 177, 203), [0.9598615169525146, 0.89892578125]),
        ((1, 256, 192), [0.9598246216773987]),
    ],
)
def test_ms_ssim(shape: tuple[int, int, int], expected: list[float]) -> None:
    """tf.image.ssim_multiscale(a, b, 1.0) of TensorFlow 2.21, which computes in float32."""
    assert ms_ssim(*made_up(*shape)).tolist() == pytest.approx(expected, abs=2e-6)


def test_ms_ssim_of_equal_and_of_inverted_pictures() -> None:
    a, _ = made_up(2, 180, 180)
    assert ms_ssim(a, a).tolist() == pytest.approx([1, 1], abs=1e-12)
    assert ms_ssim_of_original(a, a) == pytest.approx(1, abs=1e-12)
    # TensorFlow gives 0 and the original NaN.
    assert ms_ssim(a, 1 - a).tolist() == [0, 0]
    assert math.isnan(ms_ssim_of_original(a, 1 - a))


def test_ms_ssim_refuses_what_it_is_not_defined_for() -> None:
    with pytest.raises(ValueError, match="161 pixels"):
        ms_ssim(*made_up(1, 160, 200))
    a, _ = made_up(2, 161, 161)
    with pytest.raises(ValueError, match="one shape"):
        ms_ssim(a, a[:1])


def blocks_over_time(left: list[float], right: list[float], size: int = 16) -> Tensor:
    """Two blocks side by side, each of one level in each frame."""
    sequence = torch.empty(len(left), size, 2 * size)
    sequence[:, :, :size] = torch.tensor(left)[:, None, None]
    sequence[:, :, size:] = torch.tensor(right)[:, None, None]
    return sequence


def test_static_flicker_of_two_blocks() -> None:
    sequence = blocks_over_time([10, 12, 14, 12], [100, 100, 100, 92])
    result = static_flicker(sequence, torch.ones(16, 32, dtype=torch.bool))
    # Left: deviations -2, 0, 2, 0 -> sqrt(8/4). Right: mean 98, deviations 2, 2, 2, -6 -> sqrt(48/4).
    assert result.deviation == pytest.approx((math.sqrt(12), (math.sqrt(2) + math.sqrt(12)) / 2))
    assert result.peak_to_peak == pytest.approx((8, (4 + 8) / 2))
    assert result.largest_step == pytest.approx((8, (2 + 8) / 2))


def test_static_flicker_averages_noise_within_a_block() -> None:
    """A checkerboard that inverts in each frame keeps the mean of a block, and of no pixel."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 50.0
    sequence = torch.stack([board, 50 - board, board])
    everywhere = torch.ones(16, 16, dtype=torch.bool)
    blocks = static_flicker(sequence, everywhere)
    pixels = static_flicker(sequence, everywhere, block=1)
    assert blocks.peak_to_peak == pytest.approx((0, 0))
    assert pixels.peak_to_peak == pytest.approx((50, 50))


def test_static_flicker_leaves_out_what_moves() -> None:
    sequence = blocks_over_time([10, 11], [0, 200])
    mask = torch.ones(16, 32, dtype=torch.bool)
    mask[3, 20] = False  # one moving pixel disqualifies the right block
    assert static_flicker(sequence, mask).peak_to_peak == pytest.approx((1, 1))
    mask[0, 0] = False
    with pytest.raises(ValueError, match="static block"):
        static_flicker(sequence, mask)


def test_static_flicker_leaves_out_incomplete_blocks() -> None:
    sequence = torch.zeros(2, 20, 20)
    sequence[1, 16:] = 100
    sequence[1, :, 16:] = 100
    assert static_flicker(sequence, torch.ones(20, 20, dtype=torch.bool)).peak_to_peak == pytest.approx((0, 0))


def moving_window(shift: tuple[int, int], frames: int = 4, size: int = 12) -> Tensor:
    """Frames over a fixed random scene whose content moves by `shift`, written without the metric's own arithmetic."""
    scene = torch.rand(100, 100, generator=torch.Generator().manual_seed(1)) * 255
    dx, dy = shift
    tops, lefts = [50 - dy * number for number in range(frames)], [50 - dx * number for number in range(frames)]
    return torch.stack([scene[y : y + size, x : x + size] for y, x in zip(tops, lefts, strict=True)])


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (-2, 0), (0, 3), (0, -3), (1, -2), (-2, 1), (-1, -1)])
def test_pan_flicker_follows_the_content(shift: tuple[int, int]) -> None:
    sequence = moving_window(shift)
    steady = pan_flicker(sequence, shift, border=1)
    assert steady.warped_rmse == 0
    assert steady.largest_warped_rmse == 0
    assert steady.point_deviation == pytest.approx(0, abs=1e-5)
    if shift != (0, 0):
        assert pan_flicker(sequence, (-shift[0], -shift[1]), border=1).warped_rmse > 50


def test_pan_flicker_of_a_known_change() -> None:
    sequence = moving_window((-2, 1), frames=3, size=8)
    sequence[1] += 3
    sequence[2] -= 1
    result = pan_flicker(sequence, (-2, 1), border=0)
    # The steps are +3 and -4, the same at every pixel.
    assert result.warped_rmse == pytest.approx(3.5, abs=1e-4)
    assert result.largest_warped_rmse == pytest.approx(4, abs=1e-4)
    # Sightings of 8x8 windows that move by (2, 1): frames 0 and 1 share 6*7 = 42 points, as 1 and 2 do, and 0 and 2
    # share 4*6 = 24, which frame 1 sees as well. So 24 points are seen at 0, +3, -1 and 18 at 0, +3 and 18 at +3, -1:
    # squared deviations 26/3, 9/2 and 8; sightings less one 2, 1 and 1.
    pooled = (24 * 26 / 3 + 18 * 9 / 2 + 18 * 8) / (24 * 2 + 18 + 18)
    assert result.point_deviation == pytest.approx(math.sqrt(pooled), abs=1e-4)


def test_pan_flicker_averages_over_pairs_and_takes_the_root_over_pixels() -> None:
    sequence = torch.zeros(3, 4, 4)
    sequence[1, :2] = 2  # half of the pixels by 2: RMSE sqrt(2)
    sequence[2] = sequence[1]
    result = pan_flicker(sequence, (0, 0), border=0)
    assert result.warped_rmse == pytest.approx(math.sqrt(2) / 2)
    assert result.largest_warped_rmse == pytest.approx(math.sqrt(2))


def test_pan_flicker_leaves_out_the_border() -> None:
    sequence = moving_window((1, 0), frames=3)
    sequence[:, :2] = torch.tensor([0.0, 200.0, 0.0])[:, None, None]
    sequence[:, :, -2:] = torch.tensor([0.0, 200.0, 0.0])[:, None, None]
    assert pan_flicker(sequence, (1, 0), border=2).warped_rmse == 0
    assert pan_flicker(sequence, (1, 0), border=2).point_deviation == pytest.approx(0, abs=1e-5)
    assert pan_flicker(sequence, (1, 0), border=1).warped_rmse > 10
    assert pan_flicker(sequence, (1, 0), border=1).point_deviation > 10


def test_pan_flicker_needs_an_overlap() -> None:
    with pytest.raises(ValueError, match="overlap"):
        pan_flicker(torch.zeros(2, 40, 40), (5, 0))


def test_mean_luma_jump() -> None:
    sequence = torch.tensor([10.0, 13.0, 11.0, 90.0])[:, None, None].repeat(1, 6, 6)
    sequence[:, ::2] += 5
    sequence[:, 1::2] -= 5
    assert mean_luma_jump(sequence) == Jump(mean=(3 + 2 + 79) / 3, largest=79)
    assert mean_luma_jump(sequence, cuts=(3,)) == Jump(mean=2.5, largest=3)


def test_mean_luma_jump_compares_what_both_frames_show() -> None:
    """A pan over a slope of 4 levels a pixel: the frame's mean changes, no point of the scene does."""
    slope = 4.0 * torch.arange(30).repeat(10, 1)
    sequence = torch.stack([slope[:, left : left + 10] for left in (0, 2, 4)])
    assert mean_luma_jump(sequence) == Jump(mean=8, largest=8)
    assert mean_luma_jump(sequence, shift=(-2, 0)) == Jump(mean=0, largest=0)
    sequence[2] += 3
    assert mean_luma_jump(sequence, shift=(-2, 0), border=1) == Jump(mean=1.5, largest=3)


@pytest.mark.parametrize("sequence", [torch.zeros(1, 16, 16), torch.zeros(16, 16)])
def test_one_frame_does_not_flicker(sequence: Tensor) -> None:
    with pytest.raises(ValueError, match=r"two|sequence"):
        static_flicker(sequence, torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"two|sequence"):
        pan_flicker(sequence, (0, 0), border=0)
    with pytest.raises(ValueError, match=r"two|sequence"):
        mean_luma_jump(sequence)
