"""The frame loop: threads, bounded hand-offs and shutdown. No pixels, no devices.

    source thread --channel--> enhancer thread --channel--> one thread for each sink

The first failure in any thread cancels every channel, everything unwinds, and `run` raises it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from dped_live.channel import Cancelled, Channel
from dped_live.errors import DpedError
from dped_live.frame import Frame, VideoFormat

_CAPACITY = 2
"""Frames waiting between two threads: enough to keep both busy, few enough to bound memory."""


class Source(Protocol):
    """Where frames come from. Used by one thread."""

    @property
    def format(self) -> VideoFormat: ...

    def frames(self) -> Iterator[Frame]:
        """Every frame once, in presentation order."""
        ...

    def close(self) -> None:
        """Release the file or device. Called exactly once."""
        ...


class FrameMap(Protocol):
    """What happens to the frames in between: see enhance.Enhancer."""

    def map(self, frames: Iterable[Frame]) -> Iterator[Frame]: ...


class Sink(Protocol):
    """Where frames go. Used by one thread."""

    def write(self, frame: Frame) -> None: ...

    def close(self, complete: bool) -> None:
        """Called exactly once, after the last write.

        complete: every frame of the source has been written. Otherwise the run failed or was interrupted, and
        nothing may appear under the name the user asked for.
        """
        ...


@dataclass
class Stats:
    """Counts of a run, up to date while it runs. `written` has one count for each sink."""

    read: int
    enhanced: int
    written: list[int]
    interrupted: bool = False


def run(
    source: Source,
    enhancer: FrameMap,
    sinks: Sequence[Sink],
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Stats], None] | None = None,
) -> Stats:
    """Move every frame of the source through the enhancer into all sinks, and close them all.

    stop: asked before each frame; once it says yes, the frames already read are finished, the sinks are closed with
    complete=False, and Stats.interrupted is true.
    progress: called about five times a second, and once at the end, from the calling thread.

    Raises the first error of any stage; the exception's note names the stage. Source and sinks belong to this
    function from the call on: they are closed whatever happens.
    """
    stats = Stats(0, 0, [0] * len(sinks))
    incoming: Channel[Frame] = Channel(_CAPACITY)
    outgoing: list[Channel[Frame]] = [Channel(_CAPACITY) for _ in sinks]
    failures: list[BaseException] = []
    lock = threading.Lock()

    def cancel() -> None:
        for channel in (incoming, *outgoing):
            channel.cancel()

    def fail(stage: str, error: BaseException) -> None:
        with lock:
            if not failures:
                error.add_note(f"in the {stage} thread")
                failures.append(error)
        cancel()

    def read() -> None:
        try:
            for frame in source.frames():
                if stop():
                    stats.interrupted = True
                    break
                stats.read += 1
                incoming.put(frame)
        finally:
            source.close()
        incoming.end()

    def enhance() -> None:
        for frame in enhancer.map(incoming):
            stats.enhanced += 1
            for channel in outgoing:
                channel.put(frame)
        for channel in outgoing:
            channel.end()

    def write(index: int) -> None:
        sink = sinks[index]
        try:
            for frame in outgoing[index]:
                sink.write(frame)
                stats.written[index] += 1
            if stats.written[index] != stats.read:
                raise RuntimeError(f"{stats.read} frames were read and {stats.written[index]} written")
        except BaseException as error:
            try:
                sink.close(complete=False)
            except DpedError as second:
                error.add_note(f"and closing then failed: {second}")
            raise
        sink.close(complete=not stats.interrupted)

    def guarded(stage: str, work: Callable[[], None]) -> Callable[[], None]:
        def body() -> None:
            try:
                work()
            except Cancelled:
                pass
            except BaseException as error:  # noqa: BLE001 - a thread's boundary: run() raises it
                fail(stage, error)

        return body

    stages = [("source", read), ("enhancer", enhance)]
    threads = [threading.Thread(target=guarded(stage, work), name=stage, daemon=True) for stage, work in stages]
    threads += [
        threading.Thread(target=guarded(f"sink {index}", partial(write, index)), name=f"sink {index}", daemon=True)
        for index in range(len(sinks))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                if progress is not None:
                    progress(stats)
    except BaseException as error:
        # The caller's progress failed, or Ctrl-C came without a handler: nothing may go on behind its back.
        fail("calling", error)
        for thread in threads:
            thread.join()
        raise
    if failures:
        raise failures[0]
    if progress is not None:
        progress(stats)
    return stats
