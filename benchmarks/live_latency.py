"""How old pictures are when they reach an output, by the numbers in the test picture; and how memory goes over time.

    python benchmarks/live_latency.py [--size 1280x720] [--fps 30] [--minutes 1] [--model lite] [--output none web ...]

Two runs for each output: with the picture left as it is (--strength 0: what the program itself adds) and with the
model, on the ladder. A picture's age counts from when it was due at the source until the output has taken it; its
number is read out of its pixels, so that one that is shown twice, late or not at all is seen as such. Memory is that of
all processes.

Outputs: none (only the number is read), window (drawn; needs a display, such as `xvfb-run`'s), web (what a viewer of
the page's stream has decoded, in this process), record (encoded, to a temporary MP4), stream (given to the process that
encodes and sends it, by UDP), virtual-cam.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import psutil

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.backends.reduced import ReducedBackend
from dped_live.bench.live import Probe, watched
from dped_live.ladder import Ladder, Rung
from dped_live.live import LiveSource
from dped_live.live_state import Controls, LiveSink, LiveStats
from dped_live.sinks.recording import RecordingSink
from dped_live.sinks.stream import StreamSink
from dped_live.sinks.virtual_camera import VirtualCameraSink
from dped_live.sinks.web import WebSink
from dped_live.sinks.window import WindowSink
from dped_live.sources.live import open_live_source
from dped_live.sources.testcard import frame_number

OUTPUTS = ("none", "window", "web", "record", "stream", "virtual-cam")


def resident(processes: list[psutil.Process]) -> float:
    """MB."""
    return sum(process.memory_info().rss for process in processes) / 1e6


def rungs(model: str) -> Iterator[Rung]:
    backend = open_backend(weights.load(model), "cpu")
    yield Rung("exactly", backend)
    for factor in (2, 3):
        yield Rung(f"at 1/{factor} of the size", ReducedBackend(backend, factor))


class Viewer:
    """Looks at the stream of a page, and notes each new picture's number and when it was decoded."""

    def __init__(self, url: str) -> None:
        self.seen: dict[int, float] = {}
        self._url = url
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        with urllib.request.urlopen(f"{self._url}/stream.mjpg") as stream:
            while line := stream.readline():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
                    stream.readline()
                    picture = cv2.imdecode(np.frombuffer(stream.read(length), np.uint8), cv2.IMREAD_COLOR_RGB)
                    assert picture is not None
                    self.seen.setdefault(frame_number(picture), time.monotonic())

    def ages(self, probe: Probe) -> list[float]:
        """Of what it saw, by when the pictures were due."""
        due = {n: at - age for n, at, age in zip(probe.numbers, probe.moments, probe.ages, strict=True)}
        return [at - due[number] for number, at in self.seen.items() if number in due]


def opened(output: str, controls: Controls, source: LiveSource, folder: str) -> LiveSink | None:
    width, height, rate = source.format.width, source.format.height, source.frame_rate
    if output == "window":
        return WindowSink(controls, "latency", width, height)
    if output == "web":
        return WebSink(controls, 0)
    if output == "record":
        return RecordingSink(Path(folder, f"{time.monotonic_ns()}.mp4"), width, height, rate)
    if output == "stream":
        return StreamSink("udp://127.0.0.1:23450", width, height, rate)
    if output == "virtual-cam":
        return VirtualCameraSink(width, height, float(rate), None)
    return None


def measure(output: str, strength: float, options: argparse.Namespace, folder: str) -> None:
    width, height = map(int, options.size.split("x"))
    source = open_live_source("test", (width, height), options.fps)
    ladder = Ladder([options.model], lambda model: list(rungs(model)), source.format, options.fps, pinned=False)
    # Looked for once: going through all processes of the machine would itself make pictures late.
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    controls = Controls(strength, model=options.model)
    sink = opened(output, controls, source, folder)
    run, probe = watched(source, ladder, controls, print, sink)
    viewer = Viewer(sink.name) if output == "web" and sink is not None else None
    begin = time.monotonic()
    memory: list[float] = []

    def watch(_stats: LiveStats) -> None:
        if time.monotonic() - begin > 5:  # what is used for the first time is there by then
            memory.append(resident(processes))

    stats = run.run(lambda: time.monotonic() - begin > 60 * options.minutes, watch)
    found = probe.ages if viewer is None else viewer.ages(probe)
    ages = 1e3 * np.array(found[len(found) // 20 :])  # the first pictures find caches empty
    numbers = np.array(probe.numbers)
    lost = numbers[-1] - numbers[0] + 1 - len(numbers)
    p50, p95, p99 = np.percentile(ages, (50, 95, 99))
    early, late = (part.mean() for part in np.array_split(np.array(memory), 2))
    halves = [np.median(part) for part in np.array_split(ages, 2)]
    print(
        f"| {output} | {'left as it is' if strength == 0 else f'{options.model}, {stats.rung}'} | {options.size} "
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
    parser.add_argument("--output", nargs="+", default=["none"], choices=OUTPUTS)
    options = parser.parse_args()
    print("| output | | size | fps out | ms p50 | p95 | p99 | not shown | p50, first to second half | MB, by halves |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for output in options.output:
            for strength in (0.0, 1.0):
                measure(output, strength, options, folder)


if __name__ == "__main__":
    main()
