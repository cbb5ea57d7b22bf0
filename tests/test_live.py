"""Live runs: the newest frame wins, each output has its own pace, and a failure of one stage ends as it should."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest

from dped_live.errors import InputError, OutputError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.live import LiveRun
from dped_live.live_state import Controls, LivePicture, LiveSink, LiveStats

FORMAT = VideoFormat(16, 8, PIXEL_FORMATS["rgb24"], time_base=Fraction(1, 1000))


class Source:
    """Frames of one colour, `seconds` apart, that count upwards; `stall`: nothing more after so many."""

    format = FORMAT
    frame_rate = Fraction(100)
    name = "counter"

    def __init__(self, count: int, seconds: float = 0.01, stall: int | None = None, error: Exception | None = None):
        self.notes: list[str] = []
        self.notice: str | None = None
        self.closed = 0
        self._count, self._seconds, self._stall, self._error = count, seconds, stall, error

    def frames(self) -> Iterator[Frame | None]:
        for number in range(self._count):
            time.sleep(self._seconds)
            if self._stall is not None and number >= self._stall:
                self.notice = "the camera was unplugged; waiting for it"
                yield None
                continue
            picture = np.full((8, 16, 3), number % 256, np.uint8)
            yield Frame((picture,), FORMAT, Fraction(number, 100), captured_at=time.monotonic())
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed += 1


class Same:
    """Gives every picture as it is, after a while."""

    models: tuple[str, ...] = ("same", "other")

    def __init__(self, seconds: float = 0.0, error: Exception | None = None):
        self.state = ("same", "as it is")
        self._seconds, self._error = seconds, error

    def enhance(self, frame: Frame, controls: Controls) -> LivePicture:
        if controls.model == "other":
            raise InputError("other cannot be had")
        if self._error:
            raise self._error
        time.sleep(self._seconds)
        assert frame.captured_at is not None
        return LivePicture(frame.planes[0], frame.planes[0], frame.pts, frame.captured_at)


class Sink:
    """Notes what it gets."""

    on_main_thread = False
    capacity = 1
    notice: str | None = None

    def __init__(
        self,
        name: str = "sink",
        steady: float | None = None,
        seconds: float = 0.0,
        fail_at: int | None = None,
        error: Exception | None = None,
    ):
        self.name = name
        self.steady = steady is not None
        self.seconds_between = steady or 0.5
        self.closed = 0
        self.got: list[tuple[int, float, LiveStats]] = []
        self._seconds, self._fail_at, self._error = seconds, fail_at, error

    def write(self, picture: LivePicture, stats: LiveStats) -> None:
        assert not self.closed
        if self._fail_at == len(self.got):
            raise self._error or OutputError(f"{self.name}: gone")
        time.sleep(self._seconds)
        self.got.append((int(picture.after[0, 0, 0]), time.monotonic(), stats))

    def close(self) -> None:
        self.closed += 1

    @property
    def numbers(self) -> list[int]:
        return [number for number, _, _ in self.got]


class MainSink(Sink):
    on_main_thread = True


def run(
    source: Source,
    *sinks: Sink,
    enhancer: Same | None = None,
    controls: Controls | None = None,
    stop: Callable[[], bool] = lambda: False,
    recording: Sink | None = None,
) -> tuple[LiveStats, list[str]]:
    said: list[str] = []

    def begin() -> tuple[Path, LiveSink]:
        assert recording is not None
        return Path("recorded.mp4"), recording

    live = LiveRun(
        source,
        enhancer or Same(),
        sinks,
        controls or Controls(model="same"),
        recording=begin,
        screenshot=lambda picture: Path(f"shot{picture.after[0, 0, 0]}.png"),
        notify=said.append,
    )
    try:
        return live.run(stop), said
    finally:
        assert source.closed == 1
        assert all(sink.closed == 1 for sink in sinks)


@pytest.mark.parametrize("kind", [Sink, MainSink])
def test_every_picture_arrives_where_all_are_quick_enough(kind: type[Sink]) -> None:
    sink = kind()
    stats, said = run(Source(30, 0.04), sink)
    assert sink.numbers == sorted(sink.numbers)
    assert len(set(sink.numbers)) >= 25, "the machine may be busy"
    assert 5 < stats.fps_in < 26
    assert 0 < stats.latency["sink"].p50 < 100
    assert (stats.model, stats.rung, stats.notice, said) == ("same", "as it is", None, [])


def test_the_newest_frame_wins_where_the_network_is_slow() -> None:
    sink = Sink()
    stats, _ = run(Source(60), sink, enhancer=Same(0.05))
    assert stats.dropped > 30
    ages = [at for _, at, _ in sink.got]
    assert len(ages) >= 5
    assert stats.latency["sink"].p95 < 500, "no queue grows"


def test_a_slow_output_holds_nobody_up() -> None:
    quick, slow = Sink("quick"), Sink("slow", seconds=0.2)
    stats, _ = run(Source(60), quick, slow)
    assert len(quick.numbers) >= 30
    assert len(slow.numbers) <= 5
    assert slow.numbers[-1] - slow.numbers[0] > 15, "it gets the newest, too"
    assert stats.latency["quick"].p50 < stats.latency["slow"].p50


def test_a_steady_output_gets_pictures_at_its_own_pace_and_keeps_the_last() -> None:
    sink, patient = Sink(steady=0.02), Sink("patient")
    run(Source(100, stall=20), sink, patient)
    times = [at for _, at, _ in sink.got]
    assert len(times) >= 35
    assert np.median(np.diff(times)) == pytest.approx(0.02, abs=0.006)
    assert sink.numbers[-1] == 19
    assert sink.got[-1][2].notice == "the camera was unplugged; waiting for it"
    assert patient.numbers.count(19) >= 2, "the last one again, twice a second"
    assert patient.got[-1][2].notice is not None


def test_what_is_wrong_with_an_output_is_told_to_the_others() -> None:
    waiting, sink = Sink("waiting"), Sink()
    waiting.notice = "rtmp://nobody: no answer; trying again"
    run(Source(10), waiting, sink)
    assert {stats.notice for _, _, stats in sink.got} == {waiting.notice}


def test_one_output_fails_and_the_others_go_on() -> None:
    failing, good = Sink("failing", fail_at=3), Sink("good")
    stats, said = run(Source(40), failing, good)
    assert said == ["failing: gone"]
    assert len(good.numbers) >= 20
    assert list(stats.latency) == ["good"]
    assert any(told.notice == "failing: gone" for _, _, told in good.got)


@pytest.mark.parametrize("kind", [Sink, MainSink])
def test_the_last_output_fails(kind: type[Sink]) -> None:
    with pytest.raises(OutputError, match="only: gone"):
        run(Source(1000), kind("only", fail_at=2))


@pytest.mark.parametrize("stage", ["source", "enhancer", "sink", "main sink"])
def test_a_bug_in_any_stage_ends_the_run(stage: str) -> None:
    bug = ZeroDivisionError("bug")
    source = Source(2 if stage == "source" else 1000, error=bug if stage == "source" else None)
    sinks = [
        Sink(fail_at=2 if stage == "sink" else None, error=bug),
        MainSink("main", fail_at=2 if stage == "main sink" else None, error=bug),
    ]
    with pytest.raises(ZeroDivisionError):
        run(source, *sinks, enhancer=Same(error=bug if stage == "enhancer" else None))


def test_a_source_that_is_over_ends_the_run_with_its_error() -> None:
    with pytest.raises(InputError, match="no answer"):
        run(Source(3, error=InputError("camera: no answer")), Sink())


def test_quit_and_stop() -> None:
    controls = Controls(model="same")
    controls.ask("quit")
    stats, _ = run(Source(1000), Sink(), controls=controls)
    assert stats.fps_in < 1000
    run(Source(1000), MainSink(), stop=lambda: True)


def test_screenshots_recordings_and_pause() -> None:
    controls = Controls(model="same")
    recording = Sink("recorded.mp4")

    class Asking(Sink):
        def write(self, picture: LivePicture, stats: LiveStats) -> None:
            super().write(picture, stats)
            if len(self.got) in (10, 40):
                controls.ask("record")
            if len(self.got) == 20:
                controls.ask("screenshot")
            if len(self.got) == 60:
                controls.paused = True

    sink = Asking()
    _, said = run(Source(200), sink, controls=controls, recording=recording)
    assert said[0] == "recording recorded.mp4"
    assert said[1].startswith("saved shot")
    assert said[2:] == ["recorded recorded.mp4"]
    assert 15 <= len(recording.numbers) <= 45
    assert recording.closed == 1
    assert {str(stats.recording) for _, _, stats in sink.got} == {"None", "recorded.mp4"}
    assert set(sink.numbers[61:]) <= set(sink.numbers[58:61]), "paused: the last picture stays"


def test_a_recording_gets_what_waits_for_it_at_the_end() -> None:
    recording = Sink("recording", seconds=0.03)
    recording.capacity = 100
    stats, _ = run(Source(60), recording)
    assert len(recording.numbers) > 40
    assert stats.fps_out > 20


def test_a_recording_that_fails_can_be_begun_anew() -> None:
    controls = Controls(model="same")
    recording = Sink("recorded.mp4", fail_at=2)

    class Asking(Sink):
        def write(self, picture: LivePicture, stats: LiveStats) -> None:
            super().write(picture, stats)
            if len(self.got) == 5:
                controls.ask("record")

    sink = Asking()
    _, said = run(Source(60), sink, controls=controls, recording=recording)
    assert said == ["recording recorded.mp4", "recorded.mp4: gone"]
    assert sink.got[-1][2].recording is None


def test_another_model_that_cannot_be_had_leaves_the_one_at_work() -> None:
    controls = Controls(model="same")

    class Choosing(Sink):
        def write(self, picture: LivePicture, stats: LiveStats) -> None:
            super().write(picture, stats)
            if len(self.got) == 10:
                controls.model = "other"

    sink = Choosing()
    _, said = run(Source(40), sink, controls=controls)
    assert said == ["other cannot be had"]
    assert controls.model == "same"
    assert len(sink.numbers) > 20


def test_memory_and_latency_stay_flat() -> None:
    """In little of an hour: a thousand pictures. benchmarks/live_latency.py takes its time."""
    memory: list[int] = []
    ages: list[float] = []

    class Watching(Sink):
        def write(self, picture: LivePicture, stats: LiveStats) -> None:  # noqa: ARG002
            ages.append(time.monotonic() - picture.captured_at)
            memory.append(psutil.Process().memory_info().rss)

    run(Source(1000, 0.005), Watching())
    assert len(ages) > 500
    early, late = memory[len(memory) // 5], memory[-1]
    assert late <= 1.02 * early
    first, second = np.array_split(np.array(ages), 2)
    assert np.median(second) <= 2 * np.median(first) + 0.005
