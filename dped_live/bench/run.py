"""The order of the measurements, and what each may cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from dped_live.backends import Precision, Runner
from dped_live.bench.budget import Budget, weight_of
from dped_live.bench.results import FILM_RATE, Live, Machine, Parts, Report, Size, Speed, Subject, Timing
from dped_live.bench.work import Way, default_models, label, load, ways
from dped_live.bench.worker import Answer, StoppedError, UnmeasuredError, Worker
from dped_live.errors import BackendError
from dped_live.table_filter import filter_of

_END = 3.0
"""Seconds kept for ending."""

_FIRST, _DEFAULT, _OTHER = 5, 3, 2
"""What subjects weigh: the first, with which the parts of films and live runs are measured; those that dped-live takes
by itself; the others."""

_QUICK = 0.5
"""Seconds. A frame that takes less may be done once before it counts."""

_ENOUGH = 1.5
"""Seconds after which more frames would not tell more."""

_MACHINE = 2.5
"""Seconds that measuring what the machine can do takes."""

_LIVE_SECONDS = 5.0
_LIVE_START = 4.0
"""Seconds that a live run takes before its pictures count."""

_LEAST_LIVE = 1.5
_LIVE = _LIVE_START + _LIVE_SECONDS
_MOST_LIVE = 0.4
"""Part of the time left that is kept for live runs."""

_FRAMES_OF_FILE = 5
"""A file's frame loop takes at least as long as so many frames: what is under way is finished."""

_MOST_FILE = 8.0
"""Seconds of a file's frame loop after which it is broken off."""

_LOOKED_AT = 4
"""Looking at a scene takes about as long as enhancing so many frames: the statistics of five are measured."""

_LEAST_FILM = 12
"""Frames; see Measurements.encode."""

_NO_TIME = "no time left"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. models: names; none: the default ones. device, runner, precision: see work.ways.
    seconds: in which all of it is to be done."""

    models: Sequence[str] = ()
    sizes: Sequence[Size] = ((640, 360), (1280, 720), (1920, 1080), (3840, 2160))
    device: str = "auto"
    runner: Runner = "auto"
    precision: Precision = "auto"
    seconds: float = 120.0


def measure(options: Options, tell: Tell, stop: Callable[[], bool], gone: float = 0.0) -> Report:
    """Measure until all is done, the time is over or `stop` says so.

    tell: gets what is being done. gone: seconds of the time that were used before.

    Raises WeightsError for a model that is not here, and BackendError if nothing can run any.
    """
    budget = Budget(max(0.0, options.seconds - gone - _END))
    report = Report(version("dped-live"), options.seconds)
    tell("looking at what there is")
    pairs = [
        (_subject(model, way, is_default=number == 0), way)
        for model in options.models or default_models()
        for number, way in enumerate(ways(load(model), options.device, options.runner, options.precision))
    ]
    report.subjects = [subject for subject, _ in pairs]
    weights = [_FIRST, *(_DEFAULT if subject.is_default else _OTHER for subject, _ in pairs[1:])]
    frames_of_films: dict[Size, int] = {}
    with TemporaryDirectory(prefix="dped-live-bench-", ignore_cleanup_errors=True) as folder:
        try:
            for number, (subject, way) in enumerate(pairs):
                share = budget.share(weights[number], weights[number + 1 :])
                section = _Section(report, subject, way, Path(folder), frames_of_films, budget, share, tell, stop)
                section.run(options.sizes)
        except StoppedError:
            report.interrupted = True
    report.seconds = gone + budget.used
    for subject in report.subjects:
        _compare(subject, report.machine)
    if all(subject.failed for subject in report.subjects):
        raise BackendError(report.subjects[0].failed)
    return report


def _subject(model: str, way: Way, is_default: bool) -> Subject:
    return Subject(
        model,
        label(model),
        way.device,
        way.runner,
        way.precision,
        is_default,
        is_followed=filter_of(model) is not None,
    )


def _compare(subject: Subject, machine: Machine | None) -> None:
    """Say how much of what the machine can do the network makes use of."""
    if machine is None:
        return
    product = machine.matmul_gflops.get(f"{subject.device} {subject.precision}")
    bandwidth = machine.bandwidth_gb_per_second.get(subject.device)
    for speed in subject.sizes:
        if speed.network.seconds is None:
            continue
        rate = speed.width * speed.height / speed.network.seconds / 1e9
        if product is not None and subject.multiply_adds_per_pixel is not None:
            speed.matmul_percent = 100 * 2 * subject.multiply_adds_per_pixel * rate / product
        if bandwidth is not None and subject.bytes_per_pixel is not None:
            speed.bandwidth_percent = 100 * subject.bytes_per_pixel * rate / bandwidth


class _Section:
    """All of one subject.

    frames_of_films: of those in the folder; more are made of sizes that have none. whole: the time of all that is still
    to be done; budget: what of it is for this.
    """

    def __init__(
        self,
        report: Report,
        subject: Subject,
        way: Way,
        folder: Path,
        frames_of_films: dict[Size, int],
        whole: Budget,
        budget: Budget,
        tell: Tell,
        stop: Callable[[], bool],
    ) -> None:
        self._report, self._subject, self._way = report, subject, way
        self._folder, self._films = folder, frames_of_films
        self._whole, self._budget = whole, budget
        self._tell, self._stop = tell, stop
        self._per_pixel = 0.0

    def run(self, sizes: Sequence[Size]) -> None:
        if not self._budget.has(max((subject.ready_seconds or 0.0 for subject in self._report.subjects), default=0.0)):
            self._subject.failed = _NO_TIME
            return
        self._tell(f"{self._subject.label}: getting ready")
        self._worker = Worker(self._subject.model, self._way, self._folder, min(sizes, key=_pixels), self._stop)
        try:
            began = self._whole.used
            about = self._worker.opened(self._patience).values
            self._subject.ready_seconds = self._whole.used - began
            self._subject.backend, self._subject.device = about["backend"], about["device"]
            self._per_pixel = about["seconds_per_pixel"]
            self._subject.multiply_adds_per_pixel = about["multiply_adds"]
            self._subject.bytes_per_pixel = about["bytes"]
            self._machine()
            self._measure(sorted(sizes, key=_pixels))
            if self._budget.has(_MACHINE):
                self._machine()  # again: it may have been busy with something else
        except UnmeasuredError as error:
            self._subject.failed = str(error)
        finally:
            self._worker.close()

    def _machine(self) -> None:
        """What it can do, beside what is compared with it; the best of all times counts."""
        self._tell("the machine's matrix product and memory")
        machine = Machine(**self._worker.ask(self._patience, "machine").values)
        self._report.machine = machine if self._report.machine is None else self._report.machine.best_of(machine)

    def _measure(self, sizes: Sequence[Size]) -> None:
        for number, size in enumerate(sizes):
            predicted = self._per_pixel * _pixels(size)
            speed = Speed(*size, network=Timing.missing(_NO_TIME, predicted))
            self._subject.sizes.append(speed)
            live = [later for later in sizes[number:] if self._may_be_live(self._per_pixel * _pixels(later))]
            budget = self._budget.without(min(_LIVE * len(live), _MOST_LIVE * self._budget.left))
            if not budget.has(predicted):
                continue
            # Of what is slow the first may be all, and the whole way, once, then says more than another size.
            share = budget.share(1, [1]) if number == 0 else budget.share(*_weights(sizes[number:]))
            try:
                self._size(size, speed, share)
            except UnmeasuredError as error:
                self._note_failure(speed, str(error))
            if speed.network.seconds is not None and self._may_be_live(speed.network.seconds):
                self._live(size)

    def _may_be_live(self, seconds: float) -> bool:
        """Whether a live run would say anything: half of the camera's rate at least, and no smaller size too much.

        seconds: that a frame takes the network alone.
        """
        is_lost = any(run.fps is not None and not run.keeps_up for run in self._subject.live)
        return self._subject.is_default and not is_lost and seconds * FILM_RATE < 2

    def _size(self, size: Size, speed: Speed, budget: Budget) -> None:
        warm_up = self._per_pixel * _pixels(size) < _QUICK
        enough = min(_ENOUGH, 0.15 * budget.left)
        answer = self._ask("network", size, seconds=enough, photo=False, warm_up=warm_up)
        speed.network = Timing.of(answer.values["times"])
        assert speed.network.seconds is not None
        self._per_pixel = speed.network.seconds / _pixels(size)
        speed.memory_mb, speed.card_memory_mb = answer.memory_mb, answer.values["card_mb"]
        speed.photo = Timing.missing(_NO_TIME)
        if budget.has(2 * speed.network.seconds):
            enough = min(_ENOUGH, 0.1 * budget.left)
            answer = self._ask("network", size, seconds=enough, photo=True, warm_up=warm_up)
            speed.photo = Timing.of(answer.values["times"])
        parts = self._parts(size, budget)
        if parts is not None:
            self._file(size, speed, parts, budget)

    def _parts(self, size: Size, budget: Budget) -> Parts | None:
        """Those of a film of this size, measured now or earlier; None if there is no time for a film."""
        earlier = {(parts.width, parts.height): parts for parts in self._report.parts}
        if size in earlier:
            return earlier[size] if size in self._films else None
        missing = Timing.missing(_NO_TIME)
        parts = Parts(*size, missing, missing, missing)
        self._report.parts.append(parts)
        if earlier:
            last = max(earlier.values(), key=lambda parts: parts.width * parts.height)
            scale = _pixels(size) / (last.width * last.height)
            parts.convert, parts.decode, parts.encode = (
                Timing.missing(_NO_TIME, None if part.seconds is None else scale * part.seconds)
                for part in (last.convert, last.decode, last.encode)
            )
        predicted = sum(part.predicted_milliseconds or 0.0 for part in (parts.decode, parts.encode)) / 1000
        if not self._budget.has(_LEAST_FILM * predicted):
            return None
        answer = self._ask("convert", size, seconds=min(_ENOUGH, 0.1 * budget.left))
        parts.convert = Timing.of(answer.values["times"])
        values = self._ask("encode", size, seconds=0.25 * budget.left).values
        parts.encode = Timing.mean(values["seconds"], values["frames"])
        self._films[size] = values["frames"]
        values = self._ask("decode", size).values
        parts.decode = Timing.mean(values["seconds"], values["frames"])
        return parts

    def _file(self, size: Size, speed: Speed, parts: Parts, budget: Budget) -> None:
        alone = [part.seconds for part in (speed.network, parts.convert, parts.decode, parts.encode)]
        known = [seconds for seconds in alone if seconds is not None]
        # No core is left idle: what is done at the same time takes as long as one after the other.
        frame = sum(known)
        ahead = _LOOKED_AT * known[0] + self._films[size] * (parts.decode.seconds or 0.0)
        least = ahead + _FRAMES_OF_FILE * frame
        # This is what users wait for: worth more than its share.
        if least > max(budget.left, self._budget.left / 2):
            speed.file = Timing.missing(_NO_TIME)
            return
        answer = self._ask("file", size, seconds=min(_MOST_FILE, max(0.0, budget.left - least)))
        speed.file = Timing.mean(answer.values["seconds"], answer.values["frames"])
        speed.file_of_slowest_percent = 100 * max(known) / answer.values["seconds"]
        speed.file_memory_mb = answer.memory_mb

    def _live(self, size: Size) -> None:
        run = Live(*size, FILM_RATE, why_not=_NO_TIME)
        if self._budget.has(_LIVE_START + _LEAST_LIVE):
            seconds = min(_LIVE_SECONDS, self._budget.left - _LIVE_START)
            try:
                run = Live(**self._ask("live", size, seconds=seconds).values)
            except UnmeasuredError as error:
                run.why_not = str(error)
        self._subject.live.append(run)

    def _note_failure(self, speed: Speed, why: str) -> None:
        """In the first place of those that have not been measured."""
        if speed.network.milliseconds is None:
            speed.network = Timing.missing(why)
        else:
            speed.file = Timing.missing(why)

    def _ask(self, task: str, size: Size, **arguments: object) -> Answer:
        width, height = size
        self._tell(f"{self._subject.label}, {self._subject.backend}: {_WORDS[task]} at {width}x{height}")
        return self._worker.ask(self._patience, task, width=width, height=height, **arguments)

    @property
    def _patience(self) -> float:
        """Seconds after which something that was thought to have time enough is broken off."""
        return min(self._whole.left, 1.5 * self._budget.left + 2)


_WORDS = {
    "network": "the network alone",
    "convert": "colour conversion",
    "encode": "encoding",
    "decode": "decoding",
    "file": "from file to file",
    "live": "live",
}


def _pixels(size: Size) -> int:
    return size[0] * size[1]


def _weights(sizes: Sequence[Size]) -> tuple[float, list[float]]:
    """Of the first, and of the others."""
    first, *others = (weight_of(_pixels(size)) for size in sizes)
    return first, others
