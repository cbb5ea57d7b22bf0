"""How old pictures are when they reach an output, by the numbers in the test picture; and how memory goes over time.

    python benchmarks/live_latency.py [--size 1280x720] [--fps 30] [--minutes 1] [--model lite]

Two runs: with the picture left as it is (--strength 0: what the program itself adds) and with the model, on the ladder.
A picture's age counts from when it was due at the source until the output has it; an output reads its number out of its
pixels, so that a picture that is shown twice, late or not at all is seen as such. Memory is that of all processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import psutil

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.backends.reduced import ReducedBackend
from dped_live.bench.live import watched
from dped_live.ladder import Ladder, Rung
from dped_live.live_state import Controls, LiveStats
from dped_live.sources.live import open_live_source


def resident(processes: list[psutil.Process]) -> float:
    """MB."""
    return sum(process.memory_info().rss for process in processes) / 1e6


def rungs(model: str) -> Iterator[Rung]:
    backend = open_backend(weights.load(model), "cpu")
    yield Rung("exactly", backend)
    for factor in (2, 3):
        yield Rung(f"at 1/{factor} of the size", ReducedBackend(backend, factor))


def measure(strength: float, options: argparse.Namespace) -> None:
    width, height = map(int, options.size.split("x"))
    source = open_live_source("test", (width, height), options.fps)
    ladder = Ladder([options.model], lambda model: list(rungs(model)), source.format, options.fps, pinned=False)
    # Looked for once: going through all processes of the machine would itself make pictures late.
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    run, probe = watched(source, ladder, Controls(strength, model=options.model), print)
    begin = time.monotonic()
    memory: list[float] = []

    def watch(_stats: LiveStats) -> None:
        if time.monotonic() - begin > 5:  # what is used for the first time is there by then
            memory.append(resident(processes))

    stats = run.run(lambda: time.monotonic() - begin > 60 * options.minutes, watch)
    ages = 1e3 * np.array(probe.ages[len(probe.ages) // 20 :])  # the first pictures find caches empty
    numbers = np.array(probe.numbers)
    lost = numbers[-1] - numbers[0] + 1 - len(numbers)
    p50, p95, p99 = np.percentile(ages, (50, 95, 99))
    early, late = (part.mean() for part in np.array_split(np.array(memory), 2))
    halves = [np.median(part) for part in np.array_split(ages, 2)]
    print(
        f"| {'left as it is' if strength == 0 else f'{options.model}, {stats.rung}'} | {options.size} "
        f"| {stats.fps_out:.1f} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {lost} of {len(numbers) + lost} "
        f"| {halves[0]:.1f} to {halves[1]:.1f} | {early:.0f} to {late:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--fps", type=Fraction, default=Fraction(30))
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--model", default=weights.LITE)
    options = parser.parse_args()
    print(
        "| | size | fps out | ms p50 | p95 | p99 | not shown | p50, first to second half | MB, first to second half |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for strength in (0.0, 1.0):
        measure(strength, options)


if __name__ == "__main__":
    main()
