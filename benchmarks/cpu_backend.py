"""The CPU backends against a plain port, side by side in one run.

    python benchmarks/cpu_backend.py [--size 1280x720] [--rounds 3] [--model iphone]

Both plain ports follow models.py line by line in eager PyTorch, float32, NCHW: one with the norm written out as
there, one with torch's InstanceNorm2d. Ours run with each picture's own statistics, as for photos, and with given ones,
as for videos; by torch and, where it is installed, by OpenVINO. Rounds are interleaved, and the best of each counts,
because the machine is shared. Also printed: the share of this machine's matmul peak (int8: of bf16's), peak memory, and
the agreement with float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dped_live import weights
from dped_live.backends import Precision, Runner, open_backend
from dped_live.bench.work import multiply_adds, random_generator
from dped_live.generator import Generator
from dped_live.statistics import Statistics

CHANNELS, BLOCKS = 64, 4


class PlainPort(nn.Module):
    """What one writes after reading models.py."""

    def __init__(self, generator: Generator, module_norm: bool) -> None:
        super().__init__()
        self.generator, self.module_norm = generator, module_norm
        self.norms = nn.ModuleList(nn.InstanceNorm2d(CHANNELS, eps=1e-3, affine=True) for _ in range(2 * BLOCKS))
        for index, norm in enumerate(self.norms):
            norm.weight.data, norm.bias.data = generator.norm_scale[index].data, generator.norm_shift[index].data

    def norm(self, x: Tensor, index: int) -> Tensor:
        if self.module_norm:
            normalised: Tensor = self.norms[index](x)
            return normalised
        mean = x.mean(dim=(2, 3), keepdim=True)
        variance = x.var(dim=(2, 3), keepdim=True, correction=0)
        scale = self.generator.norm_scale[index][None, :, None, None]
        return scale * (x - mean) / (variance + 1e-3) ** 0.5 + self.generator.norm_shift[index][None, :, None, None]

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.generator.first(image))
        for block in range(BLOCKS):
            y = x
            for index in (2 * block, 2 * block + 1):
                y = F.relu(self.norm(self.generator.residual[index](y), index))
            x = x + y
        for convolution in self.generator.tail:
            x = F.relu(convolution(x))
        return torch.tanh(self.generator.last(x)) * 0.58 + 0.5


def matmul_peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a large product."""
    a = torch.randn(2048, 2048).to(dtype)
    best = min(timed(lambda: a @ a) for _ in range(8))
    return 2 * 2048**3 / best / 1e9


def resident_peak() -> float:
    """MB. From /proc, because getrusage() gives a child its parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def smooth_picture(size: str) -> Tensor:
    """(1, 3, H, W) in [0, 1], of "WxH". White noise is not what the models were made for."""
    width, height = map(int, size.split("x"))
    noise = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, (height, width), mode="bicubic").clamp_(0, 1)


CHOICES: list[tuple[Runner, Precision]] = [("torch", "fp32"), ("torch", "bf16")]
if find_spec("openvino") is not None:
    CHOICES += [("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")]


Opener = Callable[[], Callable[[Tensor], Tensor]]


def openers(generator: Generator, given: Statistics) -> dict[str, Opener]:
    """Ours. One backend for each, since all that it keeps takes room."""

    def opened(runner: Runner, precision: Precision, statistics: Statistics | None) -> Callable[[Tensor], Tensor]:
        return partial(open_backend(generator, "cpu", precision, runner=runner).enhance, statistics=statistics)

    found: dict[str, Opener] = {}
    for runner, precision in CHOICES:
        found[f"{runner}, {precision}, own statistics"] = partial(opened, runner, precision, None)
        found[f"{runner}, {precision}, given"] = partial(opened, runner, precision, given)
    return found


def all_openers(generator: Generator, given: Statistics) -> dict[str, Opener]:
    """The plain ports', and ours."""
    return {
        "plain port, norm written out": partial(PlainPort, generator, module_norm=False),
        "plain port, InstanceNorm2d": partial(PlainPort, generator, module_norm=True),
        **openers(generator, given),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="a 12-layer model for the agreement (default: random weights)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    image = smooth_picture(options.size)
    height, width = image.shape[2:]
    generator = weights.load(options.model) if options.model else random_generator(CHANNELS, BLOCKS)
    if not isinstance(generator, Generator):
        parser.error(f"{options.model} is not DPED's kind of network")
    if options.memory_of:
        nothing = torch.zeros(1, generator.norms, generator.channels)
        run = all_openers(generator, Statistics(nothing, nothing + 1))[options.memory_of]()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident_peak()
        with torch.inference_mode():
            run(image)
        print(resident_peak() - before)
        return
    given = open_backend(generator, "cpu", "fp32", runner="torch").statistics(image)
    chosen = {name: open_() for name, open_ in all_openers(generator, given).items()}
    with torch.inference_mode():
        outputs = {name: run(image) for name, run in chosen.items()}
        best = dict.fromkeys(chosen, float("inf"))
        for _ in range(options.rounds):
            for name, run in chosen.items():
                best[name] = min(best[name], timed(lambda run=run: run(image)))  # type: ignore[misc]
    peaks = {"fp32": matmul_peak(torch.float32), "bf16": matmul_peak(torch.bfloat16)}
    print(f"{options.size}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("matmul: " + ", ".join(f"{name} {peak:.0f} GFLOP/s" for name, peak in peaks.items()) + "\n")
    slowest = best["plain port, norm written out"]
    exact = outputs["plain port, norm written out"]
    print("| | s a frame | s/MP | times the plain port | of matmul | dB to float32 | levels off | extra MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, seconds in best.items():
        command = [sys.executable, __file__, "--size", options.size, "--memory-of", name]
        memory = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rate = 2 * multiply_adds(generator) * width * height / seconds / 1e9
        share = rate / peaks["bf16" if "bf16" in name or "int8" in name else "fp32"]
        error = (outputs[name] - exact).abs()
        psnr = -10 * torch.log10(error.square().mean() + 1e-15)
        print(
            f"| {name} | {seconds:.2f} | {seconds / width / height * 1e6:.2f} | {slowest / seconds:.2f} "
            f"| {100 * share:.0f} % | {psnr:.0f} | {255 * error.max():.2f} | {memory:.0f} |"
        )


if __name__ == "__main__":
    main()
