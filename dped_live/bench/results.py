"""What the benchmark finds, and what it says of it. `dataclasses.asdict` of a Report is the document of --json, and
docs/bench.md describes its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

FILM_RATE = 30
"""Frames a second of the film whose hour is told of, and of the test camera."""

_KEEPS_UP = 0.95
"""Part of the camera's rate that an output must show to have kept up."""

Size = tuple[int, int]
"""Width and height."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one frame takes; either measured or not, and then predicted if anything is known.

    milliseconds, fps: the median; least: milliseconds of the quickest. repetitions: how many frames were measured.
    predicted_milliseconds: from a smaller size, by the number of pixels. why_not: why it was not measured.
    """

    milliseconds: float | None = None
    fps: float | None = None
    least_milliseconds: float | None = None
    repetitions: int = 0
    predicted_milliseconds: float | None = None
    why_not: str | None = None

    @staticmethod
    def of(seconds: Sequence[float]) -> Timing:
        """seconds: of each frame."""
        usual = median(seconds)
        return Timing(1000 * usual, 1 / usual, 1000 * min(seconds), len(seconds))

    @staticmethod
    def mean(seconds: float, frames: int) -> Timing:
        """seconds: of one frame, the mean of so many that were done in one go."""
        return Timing(1000 * seconds, 1 / seconds, None, frames)

    @staticmethod
    def missing(why: str, predicted: float | None = None) -> Timing:
        """predicted: seconds."""
        return Timing(predicted_milliseconds=None if predicted is None else 1000 * predicted, why_not=why)

    @property
    def seconds(self) -> float | None:
        return None if self.milliseconds is None else self.milliseconds / 1000


@dataclass(slots=True)
class Machine:
    """What it was measured on.

    threads: that torch uses. matmul: GFLOP/s of a large product, by "cpu fp32" and the like; bandwidth: GB/s of a large
    copy, read and written, by "cpu" and the like. gpu: its name.
    """

    processor: str
    cores: int
    threads: int
    gpu: str | None
    system: str
    torch: str
    matmul_gflops: dict[str, float] = field(default_factory=dict)
    bandwidth_gb_per_second: dict[str, float] = field(default_factory=dict)

    def best_of(self, other: Machine) -> Machine:
        """With the better figures of two measurements of one machine."""
        return replace(
            self,
            matmul_gflops=_greatest(self.matmul_gflops, other.matmul_gflops),
            bandwidth_gb_per_second=_greatest(self.bandwidth_gb_per_second, other.bandwidth_gb_per_second),
        )


def _greatest(*several: dict[str, float]) -> dict[str, float]:
    return {name: max(found[name] for found in several if name in found) for found in several for name in found}


@dataclass(slots=True)
class Parts:
    """What a film of one size costs whatever the network is: planes (8-bit 4:2:0) to RGB and back, reading, writing."""

    width: int
    height: int
    convert: Timing
    decode: Timing
    encode: Timing


@dataclass(slots=True)
class Speed:
    """One network by one backend at one size.

    network: alone, with given statistics, as for films and live. photo: alone, with the picture's own.
    matmul_percent, bandwidth_percent: of the machine's, by `network`; see Subject. None where that says nothing.
    memory_mb: most that was resident meanwhile, the whole process. card_memory_mb: taken of a GPU's.
    file: the whole program from one file to another, decoding and encoding included. file_of_slowest_percent: its
    rate, of that of the slowest of its parts alone.
    """

    width: int
    height: int
    network: Timing
    photo: Timing = Timing()
    matmul_percent: float | None = None
    bandwidth_percent: float | None = None
    memory_mb: float | None = None
    card_memory_mb: float | None = None
    file: Timing = Timing()
    file_of_slowest_percent: float | None = None
    file_memory_mb: float | None = None


@dataclass(slots=True)
class Live:
    """A live run with the test camera, whose rate is camera_fps.

    fps: new pictures at the output. p50, p95: milliseconds from when a picture was due at the camera until the output
    has it. missed: of the camera's pictures, how many did not get there; shown: how many did.
    """

    width: int
    height: int
    camera_fps: float
    fps: float | None = None
    p50_milliseconds: float | None = None
    p95_milliseconds: float | None = None
    shown: int = 0
    missed: int = 0
    why_not: str | None = None

    @property
    def keeps_up(self) -> bool:
        return self.fps is not None and self.fps >= _KEEPS_UP * self.camera_fps


@dataclass(slots=True)
class Subject:
    """A network by a backend, with all that was found of it.

    model: its name; label: the same for people. backend: what runs it, in words. ready_seconds: what was waited for
    before the first frame, once, which is not counted elsewhere: opening, and compiling where that is needed.
    multiply_adds_per_pixel, bytes_per_pixel: see work.py; the first is None where it says nothing.
    is_default: what `dped-live --model` would take by itself. is_followed: it has tables that stand in for it, live.
    failed: why it cannot be used.
    """

    model: str
    label: str
    device: str
    runner: str
    precision: str
    is_default: bool
    is_followed: bool = False
    backend: str = ""
    ready_seconds: float | None = None
    multiply_adds_per_pixel: int | None = None
    bytes_per_pixel: int | None = None
    failed: str | None = None
    sizes: list[Speed] = field(default_factory=list)
    live: list[Live] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """All of it. budget_seconds: what was allowed; seconds: what it took. interrupted: by the user, before the end."""

    version: str
    budget_seconds: float
    machine: Machine | None = None
    parts: list[Parts] = field(default_factory=list)
    subjects: list[Subject] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class FilmTime:
    """Seconds for a second of film.

    by: "file": measured from file to file; "network": by the network alone, which is the least; "prediction": from a
    smaller size, by the number of pixels.
    """

    seconds: float
    by: Literal["file", "network", "prediction"]


def film_time(subject: Subject, width: int, height: int) -> FilmTime | None:
    """How long a film takes; None if nothing is known of it."""
    here = next((speed for speed in subject.sizes if (speed.width, speed.height) == (width, height)), None)
    if here is not None and here.file.seconds is not None:
        return FilmTime(FILM_RATE * here.file.seconds, "file")
    smaller = [speed for speed in subject.sizes if speed.width * speed.height < width * height]
    network = None if here is None else here.network.seconds
    files = [(s.width * s.height, s.file.seconds) for s in smaller if s.file.seconds is not None]
    networks = [(s.width * s.height, s.network.seconds) for s in smaller if s.network.seconds is not None]
    if files or (network is None and networks):
        pixels, seconds = max(files or networks)
        return FilmTime(FILM_RATE * max(seconds * width * height / pixels, network or 0.0), "prediction")
    return None if network is None else FilmTime(FILM_RATE * network, "network")


def camera_sentence(subject: Subject) -> str | None:
    """Whether it keeps up with a camera, in words; None if nothing is known of that."""
    runs = [run for run in subject.live if run.fps is not None]
    if not runs:
        quickest = max(
            (speed for speed in subject.sizes if speed.network.fps), key=lambda s: s.network.fps or 0, default=None
        )
        if quickest is None or quickest.network.fps is None or quickest.network.fps >= FILM_RATE:
            return None
        instead = "; live it is followed by quick tables, see --follow" if subject.is_followed else ""
        return (
            f"{_first_words(subject)} does not keep up with a camera: {number(quickest.network.fps)} fps at "
            f"{quickest.width}x{quickest.height} by the network alone{instead}."
        )
    rate = f"{runs[0].camera_fps:.3g} fps"
    held = [run for run in runs if run.keeps_up]
    missed = [f"{number(run.fps)} fps at {run.width}x{run.height}" for run in runs if not run.keeps_up and run.fps]
    if not held:
        return f"{_first_words(subject)} does not keep up with a camera of {rate}: {', '.join(missed)}."
    best = max(held, key=lambda run: run.width * run.height)
    but = f"; {', '.join(missed)}" if missed else ""
    return f"{_first_words(subject)} keeps up with a camera of {rate} up to {best.width}x{best.height}{but}."


def _first_words(subject: Subject) -> str:
    return f"{subject.label} on {subject.backend}"


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """As exact as is of use: 0.45 s, 45 s, 12 min, 1 h 10 min, 14 h, 3 d 4 h, 12 d."""
    if seconds < 10:
        return f"{number(seconds)} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 10:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    hours = round(seconds / 3600)
    days, rest = divmod(hours, 24)
    if hours < 48:
        return f"{hours} h"
    return f"{days} d {rest} h" if rest and days < 10 else f"{round(hours / 24)} d"
