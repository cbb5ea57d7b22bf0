"""A live run: the newest frame of a source, enhanced, to several outputs, each at its own pace. Threads; no pixels.

    source thread --newest--> enhancer thread --newest--> one thread for each output; the window's is the caller's

No queue grows: what comes too late is dropped, and counted. An output that fails is reported, and the others go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Protocol

from dped_live.channel import Cancelled, Latest
from dped_live.errors import DpedError
from dped_live.frame import Frame, VideoFormat
from dped_live.live_state import Controls, Latency, LivePicture, LiveSink, LiveStats, Request

_WINDOW = 2.0
"""Seconds over which rates are counted."""

_PICTURES = 120
"""So many of the last pictures count for a latency."""

_PATIENCE = 0.5
"""Seconds that the enhancer waits for a frame before it looks whether the run is over."""

_NOTICE = 4.0
"""Seconds that something which was done is told for."""

_TICK = 0.05
"""Seconds between two looks at what the user asks for, where no window is polled anyway."""


class LiveSource(Protocol):
    """Where live frames come from. Used by one thread; `notice` may be read by others.

    format: rgb24. frame_rate: obtained. name: for people. notes: of its opening. notice: what is wrong at present.
    """

    format: VideoFormat
    frame_rate: Fraction
    name: str
    notes: list[str]
    notice: str | None

    def frames(self) -> Iterator[Frame | None]:
        """Frames with captured_at; None when nothing came for a moment. Ends when the source is over for good."""
        ...

    def close(self) -> None:
        """Release the device, in a second or two whatever it does. Called exactly once."""
        ...


class LiveEnhancer(Protocol):
    """What happens to the frames in between; see ladder.Ladder. Used by one thread; `state` may be read by others."""

    models: tuple[str, ...]
    state: tuple[str, str]
    """The model at work, and how, for people."""

    def enhance(self, frame: Frame, controls: Controls) -> LivePicture: ...


OpenRecording = Callable[[], tuple[Path, LiveSink]]
"""Begins a recording: the file's name and what writes it. Raises OutputError."""

SaveScreenshot = Callable[[LivePicture], Path]
"""Raises OutputError."""


class LiveRun:
    """A live run; `run` does it.

    recording, screenshot: what is done when the user asks for it. notify: gets a line when something has happened.
    """

    def __init__(
        self,
        source: LiveSource,
        enhancer: LiveEnhancer,
        sinks: Sequence[LiveSink],
        controls: Controls,
        *,
        recording: OpenRecording,
        screenshot: SaveScreenshot,
        notify: Callable[[str], None],
    ) -> None:
        self._source = source
        self._enhancer = enhancer
        self._controls = controls
        self._open_recording = recording
        self._save_screenshot = screenshot
        self._notify = notify
        self._incoming: Latest[Frame] = Latest()
        self._outputs = [_Output(sink) for sink in sinks]  # replaced, not changed: other threads go through it
        self._recording: tuple[Path, _Output] | None = None
        self._newest: LivePicture | None = None
        self._arrivals, self._departures = _Rate(), _Rate()
        self._done: tuple[str, float] | None = None  # what was done, and when
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(
        self,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[LiveStats], None] | None = None,
    ) -> LiveStats:
        """Go on until the user quits, `stop` says so, the source is over or no output is left.

        progress: called about once a second from the calling thread. Returns the last figures. Raises the source's
        error, that of the last output, and any that is a bug. Source and sinks are closed whatever happens.
        """
        main = next((output for output in self._outputs if output.sink.on_main_thread), None)
        for output in self._outputs:
            if output is not main:
                self._start(output)
        self._start_thread("enhancer", self._enhance)
        self._start_thread("source", self._read)
        told = time.monotonic()
        try:
            while not self._over.is_set() and not stop():
                if main is not None and not main.ended:
                    self._write_once(main)
                else:
                    self._over.wait(_TICK)
                self._answer_requests()
                if progress is not None and time.monotonic() - told >= 1:
                    told = time.monotonic()
                    progress(self.stats())
        except BaseException as error:  # noqa: BLE001 - raised below, when all is closed
            self._fail(error)
        finally:
            stats = self.stats()
            self._end()
            if main is not None:
                self._close(main)
            for thread in self._threads:
                thread.join()
        if self._failures:
            raise self._failures[0]
        return stats

    def stats(self) -> LiveStats:
        """The figures at this moment. May be called from any thread."""
        now = time.monotonic()
        done = self._done[0] if self._done is not None and now - self._done[1] < _NOTICE else None
        wrong = (self._source.notice, *(output.sink.notice for output in self._outputs))
        notice = next((line for line in (*wrong, done) if line is not None), None)
        recording = self._recording
        model, rung = self._enhancer.state
        return LiveStats(
            source=self._source.name,
            width=self._source.format.width,
            height=self._source.format.height,
            models=self._enhancer.models,
            model=model,
            rung=rung,
            fps_in=self._arrivals.at(now),
            fps_out=self._departures.at(now),
            dropped=self._incoming.dropped,
            latency={output.sink.name: output.latency() for output in self._outputs},
            notice=notice,
            recording=None if recording is None else recording[0],
        )

    def _read(self) -> None:
        try:
            for frame in self._source.frames():
                if self._over.is_set():
                    break
                if frame is not None:
                    self._arrivals.count()
                    self._incoming.put(frame)
        finally:
            self._source.close()
        self._over.set()

    def _enhance(self) -> None:
        while not self._over.is_set():
            frame = self._incoming.take(_PATIENCE)
            if frame is None or (self._controls.paused and self._newest is not None):
                continue
            try:
                picture = self._enhancer.enhance(frame, self._controls)
            except DpedError as error:
                if self._newest is None:
                    raise
                # Another model was asked for, and cannot be had.
                self._controls.model = self._enhancer.state[0]
                self._tell(str(error))
                continue
            self._newest = picture
            self._departures.count()
            for output in self._outputs:
                output.give(picture)

    def _write(self, output: _Output) -> None:
        try:
            while not self._over.is_set() and not output.ended:
                self._write_once(output)
            while output.has_waiting and not output.failed:
                self._write_once(output)
        finally:
            self._close(output)

    def _write_once(self, output: _Output) -> None:
        """Wait for a picture as long as the output says, and write it or the last one."""
        try:
            output.write(self.stats)
        except DpedError as error:
            self._drop(output, error)

    def _drop(self, output: _Output, error: DpedError) -> None:
        """Go on without an output, if there is another."""
        output.failed = True
        self._remove(output)
        if self._recording is not None and self._recording[1] is output:
            self._recording = None
        if self._outputs:
            self._tell(str(error))
        else:
            self._fail(error)

    def _remove(self, output: _Output) -> None:
        with self._lock:
            self._outputs = [other for other in self._outputs if other is not output]
        output.ended = True

    def _close(self, output: _Output) -> None:
        try:
            output.sink.close()
        except DpedError as error:
            self._tell(str(error))

    def _answer_requests(self) -> None:
        while self._controls.requests:
            try:
                self._answer(self._controls.requests.popleft())
            except DpedError as error:
                self._tell(str(error))

    def _answer(self, request: Request) -> None:
        if request == "quit":
            self._over.set()
        elif request == "screenshot" and self._newest is not None:
            self._tell(f"saved {self._save_screenshot(self._newest)}")
        elif request == "record" and self._recording is None:
            path, sink = self._open_recording()
            output = _Output(sink)
            self._recording = path, output
            with self._lock:
                self._outputs = [*self._outputs, output]
            self._start(output)
            self._tell(f"recording {path}")
        elif request == "record" and self._recording is not None:
            path, output = self._recording
            self._recording = None
            self._remove(output)
            self._tell(f"recorded {path}")

    def _tell(self, line: str) -> None:
        self._done = line, time.monotonic()
        self._notify(line)

    def _start(self, output: _Output) -> None:
        self._start_thread(output.sink.name, partial(self._write, output))

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Cancelled:
                pass
            except BaseException as error:  # noqa: BLE001 - a thread's boundary: run() raises it
                error.add_note(f"in the {name} thread")
                self._fail(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failures.append(error)
        self._end()

    def _end(self) -> None:
        self._over.set()
        self._incoming.cancel()


class _Output:
    """A sink with the pictures that wait for it, and its latency.

    ended: it gets no further pictures; failed: not even those that wait.
    """

    def __init__(self, sink: LiveSink) -> None:
        self.sink = sink
        self.ended = self.failed = False
        self._waiting: Latest[LivePicture] = Latest(sink.capacity)
        self._last: LivePicture | None = None
        self._next = time.monotonic()
        self._latencies: deque[float] = deque(maxlen=_PICTURES)

    def give(self, picture: LivePicture) -> None:
        self._waiting.put(picture)

    @property
    def has_waiting(self) -> bool:
        return len(self._waiting) > 0

    def write(self, stats: Callable[[], LiveStats]) -> None:
        pace = self.sink.seconds_between
        if self.sink.steady:
            self._next = max(self._next + pace, time.monotonic() - pace)
            time.sleep(max(0.0, self._next - time.monotonic()))
            new = self._waiting.take(0)
        else:
            new = self._waiting.take(pace)
        picture = new or self._last
        if picture is None:
            return
        self._last = picture
        self.sink.write(picture, stats())
        if new is not None:
            self._latencies.append(time.monotonic() - new.captured_at)

    def latency(self) -> Latency:
        values = list(self._latencies)
        if len(values) < 2:
            return Latency(*(1000 * value for value in (values * 2 or (0.0, 0.0))))
        cuts = quantiles(values, n=20, method="inclusive")
        return Latency(1000 * cuts[9], 1000 * cuts[18])


class _Rate:
    """How many a second, over the last seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def count(self) -> None:
        now = time.monotonic()
        self._times.append(now)
        while now - self._times[0] > _WINDOW:
            self._times.popleft()

    def at(self, now: float) -> float:
        times = [moment for moment in list(self._times) if now - moment <= _WINDOW]
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
