"""The `dped-live bench` command: arguments, the table, progress."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from tqdm import tqdm

from dped_live.terminal import interruptible, say

if TYPE_CHECKING:
    from dped_live.bench.results import Report, Subject, Timing

_SIZES = [(640, 360), (1280, 720), (1920, 1080), (3840, 2160)]

_LEAST_SECONDS = 10.0

_WIDEST = 100
"""Columns of text."""

_SIGNS = {"file": "", "network": "> ", "prediction": "~ "}
"""Of the time for a film, by how it is known."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code. Raises DpedError."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="dped-live bench",
        description="Measure how fast this machine is: does it keep up with a camera, and how long does a film take?",
        epilog="network: alone, with a scene's statistics, as for films and live; photo: with the picture's own; % of "
        "this machine's largest matrix product and memory bandwidth. RAM: at most, Python included. file to file: all "
        "of `dped-live film.mp4 -o out.mp4`; % of slowest: of the rate of its slowest part alone. What is predicted "
        "is called so. Nothing is fetched: where iphone is not here, a network of its shape with random weights stands "
        "for it. docs/bench.md tells all this in full.",
    )
    parser.add_argument("--model", metavar="NAME", nargs="+", help="as for enhancing (default: lite and iphone)")
    parser.add_argument(
        "--size",
        metavar="WxH",
        nargs="+",
        type=_size,
        default=_SIZES,
        help=f"of the pictures, even numbers (default: {' '.join(f'{w}x{h}' for w, h in _SIZES)})",
    )
    parser.add_argument("--device", metavar="auto|cpu|cuda[:N]", default="auto", help="only this one (default: all)")
    parser.add_argument(
        "--backend", choices=["auto", "torch", "tensorrt", "openvino"], default="auto", help="only this one"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16", "int8"],
        default="auto",
        help="only this one; lite has its own",
    )
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=_seconds,
        default=120.0,
        help="what all of it may take, from 10 up (default: %(default).0f)",
    )
    parser.add_argument("--json", action="store_true", help="a JSON document instead of the tables")
    options = parser.parse_args(arguments)

    from dped_live.bench import run
    from dped_live.bench.run import Options

    wanted = Options(
        tuple(dict.fromkeys(options.model or ())),
        tuple(dict.fromkeys(options.size)),
        options.device,
        options.backend,
        options.precision,
        options.seconds,
    )
    with interruptible("stopping") as interrupt, _progress() as tell:
        report = run.measure(wanted, tell, interrupt.asked, time.monotonic() - began)
    if options.json:
        print(json.dumps(_document(report), indent=2))
    else:
        for line in _lines(report):
            print(line)
    if report.interrupted:
        say("interrupted; this is what was measured until then")
    return 130 if report.interrupted else 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text, re.ASCII)
    if match is None or int(match[1]) % 2 or int(match[2]) % 2 or min(int(match[1]), int(match[2])) < 48:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1280x720: even numbers from 48 up")
    return int(match[1]), int(match[2])


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _LEAST_SECONDS <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {_LEAST_SECONDS:.0f} up")
    return seconds


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that is renewed, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _line: None
        return
    with tqdm(bar_format="{desc} ({elapsed})", dynamic_ncols=True, leave=False) as bar:
        yield bar.set_description_str


def _document(report: Report) -> dict[str, object]:
    from dped_live.bench.results import camera_sentence, film_time

    document = asdict(report)
    document["camera"] = [sentence for s in report.subjects if s.is_default and (sentence := camera_sentence(s))]
    document["film"] = [
        {"model": s.model, "backend": s.backend, "width": speed.width, "height": speed.height, **asdict(found)}
        for s in report.subjects
        for speed in s.sizes
        if (found := film_time(s, speed.width, speed.height)) is not None
    ]
    return document


def _lines(report: Report) -> Iterator[str]:
    yield from _machine(report)
    for subject in report.subjects:
        yield from _speeds(subject)
    yield from _parts(report)
    yield from _live(report)
    yield from _answers(report)


def _machine(report: Report) -> Iterator[str]:
    machine = report.machine
    if machine is None:
        return
    gpu = machine.gpu or "no GPU that torch can use"
    threads = f"torch {machine.torch} with {machine.threads} threads"
    yield from _wrapped(f"{machine.processor}, {machine.cores} cores; {gpu}; {threads}")
    products = [f"{name} {gflops:.0f} GFLOP/s" for name, gflops in machine.matmul_gflops.items()]
    copies = [f"{name} {speed:.0f} GB/s" for name, speed in machine.bandwidth_gb_per_second.items()]
    matmul = f"matmul: {', '.join(products)}; " if products else ""
    yield from _wrapped(f"{matmul}memory copied: {', '.join(copies)}")


def _speeds(subject: Subject) -> Iterator[str]:
    from dped_live.bench.results import number

    yield ""
    if subject.failed:
        backend = subject.backend or f"{subject.device}, {subject.precision}"
        yield from _wrapped(f"{subject.label} on {backend}: not measured: {subject.failed}")
    if not subject.sizes:
        return
    ready = f" (ready in {subject.ready_seconds:.1f} s)" if subject.ready_seconds is not None else ""
    yield f"{subject.label} on {subject.backend}{ready}"
    header = [
        ("", "network", "", "photo", "% of", "% of", "RAM", "file to", "% of", "RAM"),
        ("size", "ms", "fps", "ms", "matmul", "memory", "MB", "file fps", "slowest", "MB"),
    ]
    rows: list[Sequence[str] | str] = []
    for speed in subject.sizes:
        size = f"{speed.width}x{speed.height}"
        if speed.network.milliseconds is None:
            rows.append(f"{size:9}  not measured: {_why_not(speed.network)}")
            continue
        rows.append(
            (
                size,
                number(speed.network.milliseconds),
                number(speed.network.fps or 0),
                _cell(speed.photo.milliseconds),
                _whole(speed.matmul_percent),
                _whole(speed.bandwidth_percent),
                _whole(speed.memory_mb),
                _cell(speed.file.fps),
                _whole(speed.file_of_slowest_percent),
                _whole(speed.file_memory_mb),
            )
        )
    yield from _table(header, rows)


def _why_not(timing: Timing) -> str:
    from dped_live.bench.results import duration, number

    if timing.predicted_milliseconds is None:
        return timing.why_not or ""
    seconds = timing.predicted_milliseconds / 1000
    rate = f"~{number(1 / seconds)} fps, " if seconds < 100 else ""
    return f"{timing.why_not} (predicted: {rate}{duration(seconds)} a frame)"


def _parts(report: Report) -> Iterator[str]:
    if not report.parts:
        return
    yield ""
    yield "What a film takes whatever the network, each part alone, fps"
    header = [("size", "convert", "decode", "encode (libx264)")]
    rows = [
        (f"{p.width}x{p.height}", _cell(p.convert.fps), _cell(p.decode.fps), _cell(p.encode.fps)) for p in report.parts
    ]
    yield from _table(header, rows)


def _live(report: Report) -> Iterator[str]:
    from dped_live.bench.results import number

    runs = [(subject, run) for subject in report.subjects for run in subject.live]
    if not runs:
        return
    yield ""
    yield f"Live, from a test camera of {runs[0][1].camera_fps:.3g} fps; ms from the camera to the output"
    header = [("size", "fps", "p50 ms", "p95 ms", "missed", "")]
    rows: list[Sequence[str] | str] = []
    for subject, run in runs:
        size = f"{run.width}x{run.height}"
        if run.fps is None or run.p50_milliseconds is None or run.p95_milliseconds is None:
            rows.append(f"{size:9}  not measured: {run.why_not}")
            continue
        missed = f"{run.missed} of {run.missed + run.shown}"
        p50, p95 = f"{run.p50_milliseconds:.0f}", f"{run.p95_milliseconds:.0f}"
        rows.append((size, number(run.fps), p50, p95, missed, f"{subject.label} on {subject.backend}"))
    yield from _table(header, rows)


def _answers(report: Report) -> Iterator[str]:
    """What was asked: does it keep up, and how long does a film take."""
    from dped_live.bench.results import FILM_RATE, camera_sentence, duration, film_time

    subjects = [subject for subject in report.subjects if subject.sizes]
    if not subjects:
        return
    yield ""
    yield f"An hour of film at {FILM_RATE} fps takes"
    header: list[Sequence[str]] = [
        ("", *(_short(subject) for subject in subjects)),
        ("size", *(subject.backend.partition(":")[0] for subject in subjects)),
    ]
    rows = []
    by = set()
    for width, height in dict.fromkeys((s.width, s.height) for subject in subjects for s in subject.sizes):
        cells = [f"{width}x{height}"]
        for subject in subjects:
            found = film_time(subject, width, height)
            if found is None:
                cells.append("-")
                continue
            by.add(found.by)
            cells.append(f"{_SIGNS[found.by]}{duration(3600 * found.seconds)}")
        rows.append(cells)
    yield from _table(header, rows)
    if "prediction" in by:
        yield "  ~ not measured: predicted from a smaller size, by the number of pixels"
    if "network" in by:
        yield "  > by the network alone; decoding and encoding come on top"
    yield ""
    for subject in subjects:
        if subject.is_default and (sentence := camera_sentence(subject)) is not None:
            yield from _wrapped(sentence)


def _short(subject: Subject) -> str:
    return subject.label.partition(" (")[0]


def _table(header: Sequence[Sequence[str]], rows: Sequence[Sequence[str] | str]) -> Iterator[str]:
    """Columns as wide as they must be, the first to the left, the others to the right; none in which there is nothing.
    A row that is a string stands for itself."""
    filled = [row for row in rows if not isinstance(row, str)]
    shown = [column for column in range(len(header[0])) if any(row[column] != "-" for row in filled)]
    widths = {column: max(len(row[column]) for row in [*header, *filled]) for column in shown}
    for row in [*header, *rows]:
        if isinstance(row, str):
            yield f"  {row}"
        else:
            cells = (f"{row[column]:{'>' if column else '<'}{widths[column]}}" for column in shown)
            yield f"  {'  '.join(cells)}".rstrip()


def _cell(value: float | None) -> str:
    from dped_live.bench.results import number

    return "-" if value is None else number(value)


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _wrapped(text: str) -> Iterator[str]:
    width = max(40, min(get_terminal_size().columns, _WIDEST))
    yield from textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
