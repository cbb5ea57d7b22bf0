"""The Triton kernels: their numbers in Triton's interpreter, on a CPU, and that they compile for NVIDIA's cards.

Triton is interpreted or compiled as the environment says when it is first imported, so the tests of the numbers run in
a process of their own, which the first test here starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dped_live.backends import torch_cuda
from dped_live.backends.torch_cuda import StaticWeights, Ways, padded_picture

from conftest import random_generator

triton = pytest.importorskip("triton", minversion="3.7", reason="needs triton, 3.7 or later")

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="runs in the interpreter's process")

SIZES = [(1, 1), (1, 40), (9, 1), (3, 16), (6, 35)]
"""One pixel, one row, one column, just one strip, several with a rest; rows for one program and for several."""


@pytest.mark.skipif(IS_INTERPRETED, reason="is the interpreter's process")
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    from dped_live.backends import triton_kernels

    return triton_kernels


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal, in half precision and channels_last."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def close(actual: Tensor, expected: Tensor) -> None:
    """As a float32 result rounded to half."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.float(), expected, rtol=1e-3, atol=1e-3)


@interpreted
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("skipped", [False, True])
def test_a_3x3_layer(kernels: ModuleType, size: tuple[int, int], skipped: bool) -> None:
    x, weight, bias = random(1, 16, *size), random(16, 16, 3, 3) / 12, random(16).float()
    skip = random(1, 16, *size, seed=1) if skipped else None
    expected = F.relu(F.conv2d(x.float(), weight.float(), bias, padding=1)) + (skip.float() if skip is not None else 0)
    for tiling in (kernels.Tiling(32, 4, 1), kernels.Tiling(16, 4, 3)):
        close(kernels.convolve(x, weight, bias, tiling, skip=skip), expected)


@interpreted
def test_a_3x3_layer_in_fp8(kernels: ModuleType) -> None:
    x, weight, bias = random(1, 16, 6, 35).to(torch.float8_e4m3fn), random(16, 16, 3, 3), random(16).float()
    small, multiplier = weight.to(torch.float8_e4m3fn), torch.linspace(0.05, 0.2, 16)
    product = F.conv2d(x.float(), small.float(), padding=1) * multiplier[:, None, None]
    result = kernels.convolve(x, small, bias, kernels.Tiling(32, 4, 1), multiplier=multiplier, out_type=torch.half)
    close(result, F.relu(product + bias[:, None, None]))


@interpreted
@pytest.mark.parametrize("size", SIZES)
def test_a_layer_normalises_and_measures(kernels: ModuleType, size: tuple[int, int]) -> None:
    x, weight = random(1, 16, *size), random(16, 16, 3, 3) / 12
    scale, offset = random(16, seed=2).float(), random(16, seed=3).float()
    tiling = kernels.Tiling(32, 4, 1)
    y, norm = kernels.convolve_and_measure(x, None, weight, scale, offset, tiling)
    close(y, F.conv2d(x.float(), weight.float(), padding=1))
    check_norm(norm, y, scale, offset)
    z, after = kernels.convolve_and_measure(y, norm, weight, scale, offset, tiling)
    # What is outside the picture is zero after the norm, whatever its shift.
    active = F.relu(applied(norm, y)).half()
    close(z, F.conv2d(active.float(), weight.float(), padding=1))
    check_norm(after, z, scale, offset)
    close(kernels.join(x, z, after), x.float() + F.relu(applied(after, z)))


def applied(norm: Any, y: Tensor) -> Tensor:
    result: Tensor = y.float() * norm.gain[:, None, None] + norm.shift[:, None, None]
    return result


def check_norm(norm: Any, y: Tensor, scale: Tensor, offset: Tensor) -> None:
    """Mean and variance are those of what was stored; gain and shift follow from them."""
    exact_mean, exact_variance = y.double().mean((0, 2, 3)), y.double().var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(norm.mean.double(), exact_mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(norm.variance.double(), exact_variance, rtol=1e-5, atol=1e-9)
    gain = scale * torch.rsqrt(norm.variance + 1e-3)
    torch.testing.assert_close(norm.gain, gain)
    torch.testing.assert_close(norm.shift, offset - norm.mean * gain)


@interpreted
def test_no_digits_of_the_variance_are_lost(kernels: ModuleType) -> None:
    """Values near 1000 that vary by one: squares in float32 end at a sixteenth, and the mean's would be all of them."""
    x = torch.full((1, 16, 20, 40), 1000.0).half().contiguous(memory_format=torch.channels_last)
    x[:, :, ::2, ::3] += 1
    weight = torch.zeros(16, 16, 3, 3).half().contiguous(memory_format=torch.channels_last)
    weight[:, :, 1, 1] = torch.eye(16).half()
    nothing = torch.zeros(16)
    y, norm = kernels.convolve_and_measure(x, None, weight, nothing, nothing, kernels.Tiling(32, 4, 1))
    assert torch.equal(y, x)
    exact = x[0, 0].double().var(unbiased=False)
    torch.testing.assert_close(norm.variance, exact.float().expand(16), rtol=1e-5, atol=0)


@interpreted
@pytest.mark.parametrize("size", SIZES)
def test_the_first_layer(kernels: ModuleType, size: tuple[int, int]) -> None:
    picture, weight, bias = random(1, 3, *size), random(16, 3, 9, 9) / 16, random(16).float()
    padded = F.pad(picture, (4, 7, 4, 5)).contiguous(memory_format=torch.channels_last)
    for tiling in (kernels.Tiling(32, 4, 1), kernels.Tiling(16, 4, 2)):
        result = kernels.convolve_first(padded, *size, kernels.first_weight(weight), bias, tiling)
        assert result.is_contiguous(memory_format=torch.channels_last)
        close(result, F.relu(F.conv2d(picture.float(), weight.float(), bias, padding=4)))


@interpreted
@pytest.mark.parametrize("size", SIZES)
def test_the_last_layer(kernels: ModuleType, size: tuple[int, int]) -> None:
    x, weight, bias = random(1, 16, *size), random(3, 16, 9, 9) / 36, random(3).float()
    expected = torch.tanh(F.conv2d(x.float(), weight.float(), bias, padding=4)) * 0.58 + 0.5
    result = kernels.convolve_last(x, kernels.last_weight(weight), bias, kernels.Tiling(32, 4, 1))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@interpreted
def test_an_overflow_is_not_hidden(kernels: ModuleType) -> None:
    """Half precision ends at 65,504; what is infinite or no number must be so in the end, for Backend.in_float32."""
    x, weight, bias = random(1, 16, 3, 5), random(16, 16, 3, 3), random(16).float()
    x[0, 3, 1, 2] = torch.nan
    tiling = kernels.Tiling(16, 4, 1)
    assert kernels.convolve(x, weight, bias, tiling)[0, :, 1, 2].isnan().all()
    y, norm = kernels.convolve_and_measure(x, None, weight, bias, bias, tiling)
    assert kernels.join(x, y, norm).isnan().any()
    last = kernels.last_weight(random(3, 16, 9, 9))
    assert kernels.convolve_last(x, last, random(3).float(), tiling)[0, :, 1, 2].isnan().all()


@interpreted
@pytest.mark.parametrize("is_exact", [False, True])
def test_the_network_by_kernels(kernels: ModuleType, is_exact: bool) -> None:
    height, width = 9, 37
    generator = random_generator(16, 1)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        own = generator.statistics(image)
        expected = generator(image)
        weights = StaticWeights(generator, torch.device("cpu"), torch.float16)
        padded, place = padded_picture(weights, height, width)
        place.copy_(image)
        ways = by_kernels(kernels, weights)
        if is_exact:
            enhanced = torch_cuda.exact_ways(weights, ways, kernels)[f"Triton, {kernels.MIDDLE_TILINGS[1]}"](
                padded, height, width
            )
        else:
            weights.fold(own)
            enhanced = ways.enhance(weights, padded, height, width)
    error = (enhanced - expected).abs()
    assert error.max() <= 1 / 255
    assert -10 * torch.log10(error.square().mean()) >= 60


def by_kernels(kernels: ModuleType, weights: StaticWeights) -> Ways:
    return Ways(
        torch_cuda.first_ways(weights, kernels)[f"Triton, {kernels.FIRST_TILINGS[1]}"],
        torch_cuda.middle_ways(kernels)[f"Triton, {kernels.MIDDLE_TILINGS[1]}"],
        torch_cuda.last_ways(weights, kernels)[f"Triton, {kernels.LAST_TILINGS[2]}"],
    )


@pytest.mark.skipif(IS_INTERPRETED, reason="nothing is compiled in the interpreter's process")
@pytest.mark.parametrize("capability", [80, 89, 90])
def test_kernels_compile_for_a_card(kernels: ModuleType, capability: int, tmp_path: Path) -> None:
    """And the 3x3 layer uses the matrix units, in the shared memory that the card has."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        tiling = kernels.MIDDLE_TILINGS[0 if capability == 90 else 4]
        pointers = dict.fromkeys(("x", "weight", "skip", "y"), "*fp16") | {"bias": "*fp32"}
        layer = compiled(
            kernels._convolve3x3,
            capability,
            tiling,
            pointers,
            channels=64,
            pixels=tiling.pixels,
            stages=tiling.stages,
            scaled=False,
            skipped=True,
            normalised=False,
            measured=False,
        )
        assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in layer.asm["ptx"]
        assert "max.NaN.f32" in layer.asm["ptx"]  # the interpreter's maximum keeps what is not a number in any case
        assert layer.metadata.shared <= {80: 166_912, 89: 101_376, 90: 232_448}[capability]
        parts = {"x": "*fp16", "weight": "*fp16", "parts": "*fp32"}
        tiling = kernels.LAST_TILINGS[0]
        compiled(
            kernels._convolve_last,
            capability,
            tiling,
            parts,
            channels=64,
            pixels=tiling.pixels,
            stages=tiling.stages,
            taps=32,
        )


def compiled(kernel: Any, capability: int, tiling: Any, pointers: dict[str, str], **constants: int | bool) -> Any:
    """A kernel for a card that need not be there. Arguments that are none of these are numbers, or not given."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    numbers = ("height", "width", "rows", "length")
    names = kernel.arg_names
    signature = {name: pointers.get(name, "i32" if name in numbers else "constexpr") for name in names}
    absent = {name: None for name, kind in signature.items() if kind == "constexpr" and name not in constants}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name in pointers}
    source = ASTSource(kernel, signature, constexprs=constants | absent, attrs=aligned)
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def test_rows_are_shared_out(kernels: ModuleType) -> None:
    for height, strips, at_once in ((1080, 15, 132), (1, 1, 132), (2160, 30, 264), (7, 100, 4)):
        rows = kernels.rows_of_a_program(height, strips, at_once, halo=2)
        programs = strips * -(-height // rows)
        turns = -(-programs // at_once)
        assert 1 <= rows <= height
        # Nearly all that run at once have something to do, and the halo costs little.
        assert turns * at_once * (rows + 2) <= 1.15 * strips * (height + 2 * programs / strips) or programs <= at_once
