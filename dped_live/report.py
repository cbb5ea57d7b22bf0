"""What a run over files tells: lines, a bar and a table; with --json one event a line."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dped_live.terminal import LINE_EVERY, clock, printable, say

if TYPE_CHECKING:
    from pathlib import Path

    from dped_live.batch import Job, Outcome, Plan
    from dped_live.pipeline import Stats
    from dped_live.sinks.companion import StreamFate

Progress = Callable[["Stats", int | None], None]
"""Called with the counts, and how many frames there will be, None if unknown."""

_NAMED = 3
"""How many of the files that are passed over are named; of the others there is the number."""

_EVENT_EVERY = 1.0
"""Seconds."""


class Report:
    """Lines on standard error, and on standard output the name of each file that was made.

    quiet: only errors. verbose: also what is as it should be.
    """

    def __init__(self, model: str, quiet: bool = False, verbose: bool = False) -> None:
        self._model, self._quiet, self._verbose = model, quiet, verbose
        self._backend = ""
        self._files = self._done = self._skipped = 0
        self._failures: list[tuple[Path, str]] = []

    @property
    def has_failures(self) -> bool:
        return bool(self._failures)

    def tell(self, line: str) -> None:
        """A line that is no error."""
        if not self._quiet:
            say(line)

    def planned(self, plan: Plan) -> None:
        """What will be tried, and what cannot be."""
        self._files = len(plan.jobs) + len(plan.failed)
        for reason, paths in plan.passed_over.items():
            more = len(paths) - _NAMED
            named = ", ".join(map(str, paths if self._verbose or more <= 1 else paths[:_NAMED]))
            self.tell(f"passed over: {named}{'' if self._verbose or more <= 1 else f' and {more} more'} ({reason})")
        for path, error in plan.failed:
            self.failed(path, str(error))

    def ready(self, backend: str) -> None:
        """What computes."""
        self._backend = backend
        self.tell(f"{self._model} on {backend}")

    def begun(self, job: Job, streams: Sequence[StreamFate], notes: Sequence[str]) -> None:  # noqa: ARG002 - for JSON
        """Before the first frame: what becomes of the file's streams."""
        for stream in streams:
            if self._verbose or stream.fate in ("converted", "dropped"):
                self.tell(f"{job.source}: {stream}")

    def progress(self, job: Job) -> AbstractContextManager[Progress | None]:
        """A bar with fps and time left on a terminal, a line now and then without one."""
        return _drawn(job, self._quiet)

    def done(self, job: Job, outcome: Outcome) -> None:
        """A job that came to its end, or was interrupted."""
        if outcome.interrupted:
            self._interrupted(job, outcome)
            return
        if outcome.shortfall:
            self.failed(job.source, f"{outcome.shortfall}; what there is is in {job.target}", outcome)
        else:
            self._done += 1
        if not self._quiet:
            self._written(job, outcome)

    def skipped(self, job: Job, reason: str) -> None:
        """A job that was done in an earlier run."""
        self._skipped += 1
        self.tell(f"{job.source}: skipped: {reason}")

    def failed(self, source: Path, error: str, outcome: Outcome | None = None) -> None:  # noqa: ARG002 - for JSON
        """What could not be made, or not all of it."""
        is_named = error.startswith(f"{source}") or f" {source}" in error  # which out/a.png does not do for a.png
        say(error if is_named else f"{source}: {error}")
        self._failures.append((source, error))

    def crashed(self, source: Path) -> None:
        """The exception that is being handled is a bug."""
        self.failed(source, "this is a bug in dped-live, please report it")
        tqdm.write(traceback.format_exc(), file=sys.stderr)

    def end(self, interrupted: bool = False) -> None:
        """The sum of several files, and once more what failed."""
        if self._files <= 1 or (self._quiet and not self._failures and not interrupted):
            return
        failed = len(self._failures)
        sums = [f"{self._done} of {self._files} files done" if interrupted else f"{self._done} files done"]
        if self._skipped:
            sums.append(f"{self._skipped} skipped")
        if failed or interrupted:
            sums.append(f"{failed} failed")
        if interrupted:
            sums.append(f"{self._files - self._done - self._skipped - failed} not")
        say(f"{'interrupted: ' * interrupted}{', '.join(sums)}")
        if not self._quiet:
            width = max((min(len(printable(str(source))), 40) for source, _ in self._failures), default=0)
            for source, error in self._failures:
                say(f"  {printable(str(source)):{width}}  {error.removeprefix(f'{source}: ')}")

    def _written(self, job: Job, outcome: Outcome) -> None:
        if job.is_photo:
            print(f"{job.target} ({outcome.seconds:.1f} s)", flush=True)
        else:
            made = outcome.frames - outcome.earlier
            rest = f"the last {made} of " if outcome.earlier else ""
            rate = f"{outcome.seconds:.1f} s, {made / max(outcome.seconds, 1e-9):.2f} fps"
            print(f"{job.target} ({rest}{outcome.frames} frames in {rate})", flush=True)

    def _interrupted(self, job: Job, outcome: Outcome) -> None:
        left = "nothing written"
        if outcome.kept:
            left = f"the first {outcome.frames} frames are in {outcome.kept}"
            left += "; the same command with --resume goes on" if outcome.resumable else ""
        self.tell(f"{job.source}: interrupted; {left}")


class JsonReport(Report):
    """The same on standard error, but for the progress; on standard output events, one JSON object a line.

    Each has "event", the names of files as they are ("input", "output"), and: start (model, backend, streams, notes),
    progress (frames, total, fps, seconds_left), done (frames, earlier, seconds, verification, notes), skipped (reason),
    passed_over (inputs, reason), failed (error; and if something was written all of done), interrupted (frames, kept),
    and at the end summary (done, skipped, failed, left). What is not known is null.
    """

    def planned(self, plan: Plan) -> None:
        for reason, paths in plan.passed_over.items():
            _event("passed_over", inputs=[str(path) for path in paths], reason=reason)
        super().planned(plan)

    def begun(self, job: Job, streams: Sequence[StreamFate], notes: Sequence[str]) -> None:
        about = {"model": self._model, "backend": self._backend, "streams": list(map(asdict, streams))}
        about["notes"] = list(notes)
        _event("start", input=str(job.source), output=str(job.target), **about)
        super().begun(job, streams, notes)

    def progress(self, job: Job) -> AbstractContextManager[Progress | None]:
        return _reported(job)

    def skipped(self, job: Job, reason: str) -> None:
        _event("skipped", input=str(job.source), output=str(job.target), reason=reason)
        super().skipped(job, reason)

    def failed(self, source: Path, error: str, outcome: Outcome | None = None) -> None:
        _event("failed", input=str(source), error=error, **({} if outcome is None else _result(outcome)))
        super().failed(source, error, outcome)

    def done(self, job: Job, outcome: Outcome) -> None:
        if not outcome.interrupted and not outcome.shortfall:
            _event("done", input=str(job.source), output=str(job.target), **_result(outcome))
        super().done(job, outcome)

    def end(self, interrupted: bool = False) -> None:
        failed = len(self._failures)
        left = self._files - self._done - self._skipped - failed
        _event("summary", done=self._done, skipped=self._skipped, failed=failed, left=left)
        super().end(interrupted)

    def _written(self, job: Job, outcome: Outcome) -> None:
        """Told as an event."""

    def _interrupted(self, job: Job, outcome: Outcome) -> None:
        kept = None if outcome.kept is None else str(outcome.kept)
        _event("interrupted", input=str(job.source), frames=outcome.frames, kept=kept)
        super()._interrupted(job, outcome)


def _event(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}, default=str), flush=True)


def _result(outcome: Outcome) -> dict[str, Any]:
    return {
        "frames": outcome.frames,
        "seconds": round(outcome.seconds, 3),
        "earlier": outcome.earlier,
        "verification": None if outcome.verification is None else asdict(outcome.verification),
        "notes": list(outcome.notes),
    }


@contextmanager
def _drawn(job: Job, quiet: bool) -> Iterator[Progress | None]:
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with tqdm(desc=printable(job.source.name), unit=" frames", dynamic_ncols=True, leave=False) as bar:

            def update(stats: Stats, total: int | None) -> None:
                bar.total = total if total is None else max(total, stats.written[0])
                bar.update(stats.written[0] - bar.n)

            yield update
    else:
        begin = last = time.monotonic()

        def line(stats: Stats, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < LINE_EVERY:
                return
            last = now
            rate = stats.written[0] / (now - begin)
            seconds = _seconds_left(stats.written[0], total, rate)
            left = "" if seconds is None else f", {clock(seconds)} left"
            of = f"/{total}" if total else ""
            say(f"{job.source}: {stats.written[0]}{of} frames, {rate:.2f} fps{left}")

        yield line


@contextmanager
def _reported(job: Job) -> Iterator[Progress]:
    begin = last = time.monotonic()

    def event(stats: Stats, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _EVENT_EVERY:
            return
        last = now
        rate = stats.written[0] / (now - begin)
        left = _seconds_left(stats.written[0], total, rate)
        _event(
            "progress",
            input=str(job.source),
            frames=stats.written[0],
            total=total,
            fps=round(rate, 2),
            seconds_left=None if left is None else round(left, 1),
        )

    yield event


def _seconds_left(frames: int, total: int | None, rate: float) -> float | None:
    return (total - frames) / rate if total and rate and total >= frames else None
