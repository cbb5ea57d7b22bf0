"""The frame loop: a failure in any stage ends the run at once, with that error, and everything is closed once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from dped_live.errors import OutputError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.pipeline import Sink, Stats, run

FORMAT = VideoFormat(4, 2, PIXEL_FORMATS["gray"], time_base=Fraction(1, 30))


class InjectedError(Exception):
    pass


class CountingSource:
    """Frames whose pixels are their number; may fail before a given one, or on close."""

    def __init__(self, count: int, fail_at: int | None = None, fail_close: bool = False) -> None:
        self.format = FORMAT
        self.closed = 0
        self._count, self._fail_at, self._fail_close = count, fail_at, fail_close

    def frames(self) -> Iterator[Frame]:
        for number in range(self._count):
            if number == self._fail_at:
                raise InjectedError("read")
            yield Frame((np.full((2, 4), number % 256, np.uint8),), FORMAT, Fraction(number, 30))

    def close(self) -> None:
        self.closed += 1
        if self._fail_close:
            raise InjectedError("close source")


class AddOne:
    """Stands for the enhancer."""

    def __init__(self, fail_at: int | None = None) -> None:
        self._fail_at = fail_at

    def map(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for number, frame in enumerate(frames):
            if number == self._fail_at:
                raise InjectedError("enhance")
            yield replace(frame, planes=(frame.planes[0] + 1,))


class ListSink:
    def __init__(self, fail_at: int | None = None, fail_close: bool = False, delay: float = 0) -> None:
        self.frames: list[Frame] = []
        self.closed: list[bool] = []
        self._fail_at, self._fail_close, self._delay = fail_at, fail_close, delay

    def write(self, frame: Frame) -> None:
        if len(self.frames) == self._fail_at:
            raise InjectedError("write")
        time.sleep(self._delay)
        self.frames.append(frame)

    def close(self, complete: bool) -> None:
        self.closed.append(complete)
        if self._fail_close:
            raise InjectedError("close sink")


def run_within(
    seconds: float, source: CountingSource, enhancer: AddOne, sinks: list[ListSink]
) -> Stats | BaseException:
    """run() in a thread of its own, so that a hang fails the test instead of hanging it."""
    outcome: list[Stats | BaseException] = []

    def body() -> None:
        try:
            outcome.append(run(source, enhancer, list[Sink](sinks)))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            outcome.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, "the run hangs"
    return outcome[0]


def test_every_frame_reaches_every_sink_in_order() -> None:
    source, sinks = CountingSource(200), [ListSink(), ListSink(delay=0.001)]
    stats = run_within(60, source, AddOne(), sinks)
    assert isinstance(stats, Stats)
    assert (stats.read, stats.enhanced, stats.written, stats.interrupted) == (200, 200, [200, 200], False)
    for sink in sinks:
        assert [frame.pts for frame in sink.frames] == [Fraction(number, 30) for number in range(200)]
        assert [int(frame.planes[0][0, 0]) for frame in sink.frames] == [number + 1 for number in range(200)]
        assert sink.closed == [True]
    assert source.closed == 1


@pytest.mark.parametrize(
    ("stage", "source", "enhancer", "sink"),
    [
        ("read", CountingSource(50, fail_at=0), AddOne(), ListSink()),
        ("read", CountingSource(50, fail_at=20), AddOne(), ListSink()),
        ("enhance", CountingSource(50), AddOne(fail_at=0), ListSink()),
        ("enhance", CountingSource(50), AddOne(fail_at=20), ListSink()),
        ("write", CountingSource(50), AddOne(), ListSink(fail_at=0)),
        ("write", CountingSource(50), AddOne(), ListSink(fail_at=20)),
        ("close source", CountingSource(50, fail_close=True), AddOne(), ListSink()),
        ("close sink", CountingSource(50), AddOne(), ListSink(fail_close=True)),
        ("close sink", CountingSource(0), AddOne(), ListSink(fail_close=True)),
    ],
)
@pytest.mark.parametrize("bystander", [False, True])
def test_a_failure_in_any_stage_ends_the_run_with_that_error(
    stage: str, source: CountingSource, enhancer: AddOne, sink: ListSink, bystander: bool
) -> None:
    source.closed, sink.frames, sink.closed = 0, [], []
    other = ListSink()
    begin = time.monotonic()
    error = run_within(60, source, enhancer, [sink, other] if bystander else [sink])
    assert isinstance(error, InjectedError)
    assert str(error) == stage
    assert time.monotonic() - begin < 3
    assert source.closed == 1
    assert len(sink.closed) == 1
    if stage != "close sink":
        assert sink.closed == [False], "a run that failed may not publish"
        assert not bystander or other.closed == [False]


def test_the_first_of_two_errors_is_raised() -> None:
    sink = ListSink(fail_at=3, fail_close=True)
    error = run_within(60, CountingSource(50), AddOne(), [sink])
    # close() of a failing sink raises too; only DpedErrors are expected of it, and then noted.
    assert isinstance(error, InjectedError)


def test_a_dped_error_on_the_way_out_is_a_note_on_the_first_error() -> None:
    class Failing(ListSink):
        def close(self, complete: bool) -> None:
            super().close(complete)
            raise OutputError("no trailer")

    error = run_within(60, CountingSource(50), AddOne(), [Failing(fail_at=3)])
    assert isinstance(error, InjectedError)
    assert str(error) == "write"
    assert any("no trailer" in note for note in error.__notes__)
    assert any("sink 0" in note for note in error.__notes__)


def test_stop_delivers_what_was_read_and_publishes_nothing() -> None:
    source, sink, stop = CountingSource(10_000), ListSink(delay=0.002), threading.Event()
    threading.Timer(0.2, stop.set).start()
    stats = run(source, AddOne(), [sink], stop.is_set)
    assert stats.interrupted
    assert 0 < stats.read < 10_000
    assert len(sink.frames) == stats.read == stats.enhanced == stats.written[0]
    assert sink.closed == [False]
    assert source.closed == 1


def test_an_enhancer_that_loses_a_frame_is_found_out() -> None:
    class Loses(AddOne):
        def map(self, frames: Iterable[Frame]) -> Iterator[Frame]:
            for number, frame in enumerate(super().map(frames)):
                if number != 7:
                    yield frame

    sink = ListSink()
    error = run_within(60, CountingSource(20), Loses(), [sink])
    assert isinstance(error, RuntimeError)
    assert "20 frames were read and 19 written" in str(error)
    assert sink.closed == [False]


def test_progress_sees_the_end_and_its_failure_ends_the_run() -> None:
    seen: list[int] = []
    run(CountingSource(5), AddOne(), [ListSink()], progress=lambda stats: seen.append(stats.written[0]))
    assert seen[-1] == 5

    sink = ListSink(delay=0.05)

    def fail(_: Stats) -> None:
        raise InjectedError("progress")

    with pytest.raises(InjectedError, match="progress"):
        run(CountingSource(1000), AddOne(), [sink], progress=fail)
    assert sink.closed == [False]
    assert len(sink.frames) < 100


def test_memory_is_bounded_by_the_channels() -> None:
    """A slow sink slows the source: no more frames are under way than the channels and stages hold."""
    ahead: list[int] = []

    class Watching(ListSink):
        def write(self, frame: Frame) -> None:
            super().write(frame)
            ahead.append(stats_read[0] - len(self.frames))

    stats_read = [0]

    class Watched(CountingSource):
        def frames(self) -> Iterator[Frame]:
            for frame in super().frames():
                stats_read[0] += 1
                yield frame

    run(Watched(200), AddOne(), [Watching(delay=0.001)])
    assert max(ahead) <= 8
