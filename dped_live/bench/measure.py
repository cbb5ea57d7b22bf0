"""The measurements of one network by one backend. They run in a process of their own (worker.py)."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch

from dped_live import batch, color
from dped_live.backends import Backend, open_backend
from dped_live.bench import live
from dped_live.bench.film import Film
from dped_live.bench.results import FILM_RATE, Live, Machine, Size
from dped_live.bench.work import Way, bytes_moved, load, multiply_adds
from dped_live.doctor import processor
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.pipeline import Stats
from dped_live.scene_statistics import picture_of
from dped_live.sinks.encoding import Encoding
from dped_live.sinks.file import FileSink
from dped_live.sources.file import FileSource
from dped_live.staging import Staging

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_PROBE = 96
"""Side of the picture by which the first prediction is made, and after which everything is compiled."""

_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices whose product is the machine's peak."""

_COPIED = 1 << 28
"""Bytes of each array that is copied: beyond all caches but those of the largest servers."""

_PEAK_SECONDS = 0.7
_MOST = 50
"""Frames of one measurement."""

_LEAST_FRAMES, _MOST_FRAMES = 12, 5 * FILM_RATE
"""Of a film."""


class Measurements:
    """Opens a network by a backend, and measures what it is asked. Each method returns plain values, for JSON.

    folder: for films. smallest: of the sizes that will be measured. look: called now and then while something lasts; an
    exception of it ends that.
    Raises DpedError.
    """

    def __init__(self, model: str, way: Way, folder: Path, smallest: Size, look: Callable[[], object]) -> None:
        self._folder = folder
        self._look = look
        self._film: Film | None = None
        self._network: Network = load(model)
        self._way = way
        # Most of what lite does is looking up colours.
        self._multiply_adds = multiply_adds(self._network) if isinstance(self._network, Generator) else None
        self._bytes = bytes_moved(self._network, _TYPES[way.precision].itemsize if way.precision in _TYPES else 4)
        self._card_before = _card_memory(way.device)
        self._backend: Backend = open_backend(
            self._network, way.device, way.precision, "auto", lambda _line: None, way.runner
        )
        self._staging = Staging(self._backend.device)
        # A card may need an engine for each size.
        width, height = smallest if self._backend.device.type != "cpu" else (_PROBE, _PROBE)
        small = torch.full((1, 3, height, width), 0.5, device=self._backend.device)
        self._scene = self._backend.statistics(small)
        times = self._times(lambda: self._backend.enhance(small, self._scene), 0.3)
        self._probed = min(times) / (width * height)

    def about(self) -> dict[str, Any]:
        """backend, device: what runs it, in words and torch's name. seconds_per_pixel: about. multiply_adds,
        bytes: of a pixel; see work.py."""
        return {
            "backend": self._backend.description,
            "device": str(self._backend.device),
            "seconds_per_pixel": self._probed,
            "multiply_adds": self._multiply_adds,
            "bytes": self._bytes,
        }

    def machine(self) -> dict[str, Any]:
        """Machine's fields, for the device and, if torch has it, the precision of this network."""
        device, precision = str(self._backend.device), self._way.precision
        products = {f"{device} {precision}": self._product(device, precision)} if precision in _TYPES else {}
        found = Machine(
            processor=processor(),
            cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
            threads=torch.get_num_threads(),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            system=f"{platform.system()} {platform.release()}, {platform.machine()}",
            torch=torch.__version__,
            matmul_gflops=products,
            bandwidth_gb_per_second={device: self._copy(device)},
        )
        return {name: getattr(found, name) for name in Machine.__slots__}

    def network(self, width: int, height: int, seconds: float, photo: bool, warm_up: bool) -> dict[str, Any]:
        """The network alone, for about so many seconds.

        photo: with the picture's own statistics. warm_up: with a frame before that does not count; for what is slow the
        size before has done it.
        times: seconds of each frame. card_mb: taken of a GPU's memory since before the network was opened.
        """
        fmt, frame = self._frame(width, height)
        picture = color.to_rgb(self._staging.upload(frame.planes), fmt)
        out = torch.empty_like(picture)
        given = None if photo else self._scene
        times = self._times(lambda: self._backend.enhance(picture, given, out=out), seconds, warm_up)
        return {"times": times, "card_mb": self._card_megabytes()}

    def convert(self, width: int, height: int, seconds: float) -> dict[str, Any]:
        """Planes to RGB to planes, as an Enhancer does it. times: seconds of each frame."""
        fmt, frame = self._frame(width, height)

        def work() -> None:
            rgb = picture_of(frame, frame.whole, self._staging)
            self._staging.download(color.from_rgb(rgb, fmt)).planes()

        return {"times": self._times(work, seconds)}

    def encode(self, width: int, height: int, seconds: float) -> dict[str, Any]:
        """Write a film by the default encoder, for about so many seconds. frames: it has; seconds: a frame, closing
        and reading back included."""
        film = self._film_of(width, height)
        sink = FileSink(self._path(width, height), film.format, Fraction(FILM_RATE), Encoding(), overwrite=True)
        began = time.perf_counter()
        frames = 0
        for frame in islice(film.frames(), _MOST_FRAMES):
            if frames >= _LEAST_FRAMES and time.perf_counter() - began > seconds:
                break
            sink.write(frame)
            self._look()
            frames += 1
        sink.close(complete=True)
        return {"frames": frames, "seconds": (time.perf_counter() - began) / frames}

    def decode(self, width: int, height: int) -> dict[str, Any]:
        """Read the film that encode() has written. frames: it has; seconds: a frame."""
        began = time.perf_counter()
        source = FileSource(self._path(width, height))
        try:
            frames = sum(1 for _ in source.frames())
        finally:
            source.close()
        return {"frames": frames, "seconds": (time.perf_counter() - began) / frames}

    def file(self, width: int, height: int, seconds: float) -> dict[str, Any]:
        """The whole program, on the film that encode() has written, for about so many seconds of its frame loop.

        frames: that were enhanced; seconds: a frame. Looking ahead goes through all of the film even if the loop is
        then broken off, and is counted by the film's frames.
        """
        path = self._path(width, height)
        target = path.with_name("enhanced.mp4")
        loop_since: float | None = None
        frames_of_film = 0

        def progress(_stats: Stats, total: int | None) -> None:
            nonlocal loop_since, frames_of_film
            self._look()
            loop_since = loop_since or time.monotonic()
            frames_of_film = total or 0

        def stop() -> bool:
            return loop_since is not None and time.monotonic() - loop_since > seconds

        job = batch.Job(path, target, is_photo=False)
        settings = batch.Settings(overwrite=True)
        outcome = batch.enhance_video(job, self._backend, settings, lambda _line: None, stop, progress)
        for left in (target, outcome.kept):
            if left is not None:
                left.unlink(missing_ok=True)
        loop = outcome.seconds - outcome.looking_ahead
        frame = loop / outcome.frames + outcome.looking_ahead / (frames_of_film or outcome.frames)
        return {"frames": outcome.frames, "seconds": frame}

    def live(self, width: int, height: int, seconds: float) -> dict[str, Any]:
        """A live run; Live's fields."""
        found = live.measure(self._backend, width, height, FILM_RATE, seconds, self._look)
        return {name: getattr(found, name) for name in Live.__slots__}

    def _times(self, work: Callable[[], object], seconds: float, warm_up: bool = True) -> list[float]:
        """Seconds that each of some runs takes, at least one. warm_up: one before that does not count."""
        times: list[float] = []
        with torch.inference_mode():
            if warm_up:
                _timed(work, self._backend.device)
            began = time.perf_counter()
            while True:
                self._look()
                times.append(_timed(work, self._backend.device))
                if len(times) >= _MOST or time.perf_counter() - began + times[-1] > seconds:
                    return times

    def _film_of(self, width: int, height: int) -> Film:
        if self._film is None or (self._film.format.width, self._film.format.height) != (width, height):
            self._film = None  # the old one's memory is not needed any more
            self._film = Film(width, height)
        return self._film

    def _frame(self, width: int, height: int) -> tuple[Any, Any]:
        film = self._film_of(width, height)
        return film.format, next(film.frames())

    def _path(self, width: int, height: int) -> Path:
        return self._folder / f"{width}x{height}.mp4"

    def _product(self, device: str, precision: str) -> float:
        """GFLOP/s of the best of some."""
        kind = device.split(":")[0]
        side = _SIDE[kind]
        a = torch.randn(side, side, device=device).to(_TYPES[precision])
        out = torch.empty_like(a)
        return 2 * side**3 / self._best(lambda: torch.mm(a, a, out=out), device) / 1e9

    def _copy(self, device: str) -> float:
        """GB/s, read and written, of the best of some."""
        a = torch.ones(_COPIED // 4, device=device)
        out = torch.zeros_like(a)
        return 2 * _COPIED / self._best(lambda: out.copy_(a), device) / 1e9

    def _best(self, work: Callable[[], object], device: str) -> float:
        return min(_timed(work, torch.device(device)) for _ in _for_seconds(_PEAK_SECONDS))

    def _card_megabytes(self) -> float | None:
        if self._card_before is None:
            return None
        free = _card_memory(self._way.device)
        return None if free is None else (self._card_before - free) / 1e6


def _timed(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _for_seconds(seconds: float) -> Iterator[int]:
    """At least twice."""
    until = time.perf_counter() + seconds
    count = 0
    while count < 2 or time.perf_counter() < until:
        yield count
        count += 1


def _card_memory(device: str) -> int | None:
    """Bytes that are free on a GPU; None for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") and torch.cuda.is_available() else None
