"""Our CPU backends against the original's network in TensorFlow, side by side in one run.

    python -m venv /tmp/tensorflow && /tmp/tensorflow/bin/pip install tensorflow-cpu
    python benchmarks/tensorflow_cpu.py --tensorflow /tmp/tensorflow/bin/python [--size 1280x720] [--rounds 3]

Needs the authors' weights of `iphone` as they are published; DPED_LIVE_WEIGHTS names their folder. Rounds are
interleaved, each side waits while the other runs, and the best of each counts, because machines are shared. "own": each
picture is normalised by its own statistics, as the original does; "given": by those of its scene, as in a video.

TensorFlow runs twice: as it is by default today, with oneDNN's convolutions, and without them, as in the TensorFlow 1
that the original was written for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.generator import Generator

from cpu_backend import openers, smooth_picture, timed

ORIGINAL = Path(__file__).with_name("tensorflow_original.py")


@contextmanager
def answering(process: subprocess.Popen[str]) -> Iterator[Callable[[], float]]:
    """What makes the original compute one picture, and gives its seconds."""
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def seconds() -> float:
            asked.write("\n")
            asked.flush()
            return float(answers.readline())

        yield seconds
        asked.close()


def computed(name: str, run: Callable[[], Tensor], outputs: dict[str, Tensor]) -> float:
    """Seconds; the picture is in `outputs` then."""

    def work() -> None:
        outputs[name] = run()

    return timed(work)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensorflow", required=True, help="a Python that has tensorflow")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = os.environ.get("DPED_LIVE_WEIGHTS")
    if folder is None:
        parser.error("set DPED_LIVE_WEIGHTS to the folder of iphone_orig.index, which TensorFlow is to read")
    generator = weights.load("iphone")
    assert isinstance(generator, Generator)
    image = smooth_picture(options.size)
    height, width = image.shape[2:]
    given = open_backend(generator, "cpu", "fp32", runner="torch").statistics(image)
    runs = {name: partial(open_(), image) for name, open_ in openers(generator, given).items()}
    threads = str(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        picture, result = Path(scratch, "image.npy"), Path(scratch, "result.npy")
        np.save(picture, image.permute(0, 2, 3, 1).numpy())
        command = [options.tensorflow, ORIGINAL, Path(folder, "iphone_orig"), picture, result, threads]
        seconds_of: dict[str, Callable[[], float]] = {}
        for name, onednn in (("TensorFlow", "1"), ("TensorFlow without oneDNN", "0")):
            environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": onednn}
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            seconds_of[name] = stack.enter_context(answering(process))
        outputs: dict[str, Tensor] = {}
        for name, run in runs.items():
            seconds_of[name] = partial(computed, name, run, outputs)
        best = dict.fromkeys(seconds_of, float("inf"))
        # The first round warms up.
        for round_number in range(options.rounds + 1):
            for name, measure in seconds_of.items():
                seconds = measure()
                if round_number > 0:
                    best[name] = min(best[name], seconds)
        exact = torch.from_numpy(np.load(result)).permute(0, 3, 1, 2)
    print(f"{options.size}, {threads} threads, torch {torch.__version__}\n")
    print("| | s a frame | s/MP | times TensorFlow | dB to TensorFlow | largest difference in levels |")
    print("|---|---|---|---|---|---|")
    for name, seconds_best in best.items():
        agreement = "| |"
        if name in outputs:
            difference = (outputs[name] - exact).double()
            agreement = f"| {-10 * difference.square().mean().log10():.1f} | {255 * difference.abs().max():.2f} |"
        ratio = best["TensorFlow"] / seconds_best
        print(f"| {name} | {seconds_best:.2f} | {seconds_best / width / height * 1e6:.2f} | {ratio:.2f} {agreement}")


if __name__ == "__main__":
    main()
