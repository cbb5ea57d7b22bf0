"""What a command line asks for: which file becomes which, and making one from the other. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from dped_live.backends import Backend
from dped_live.enhance import Enhancer, side_by_side_format
from dped_live.errors import DpedError, InputError, OutputError
from dped_live.partial import PartialFile
from dped_live.pipeline import Stats, run
from dped_live.scene_statistics import ExactPolicy, Policy, ScenePolicy, measure_scenes
from dped_live.sinks.companion import Companion
from dped_live.sinks.encoding import Encoding, encoded_format
from dped_live.sinks.file import FileSink
from dped_live.sinks.images import PHOTO_SUFFIXES, write_photo
from dped_live.sources.file import FileSource
from dped_live.sources.images import is_photo, read_photo

if TYPE_CHECKING:
    from dped_live.table_filter import Filter

_VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".hevc", ".ivf", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
"""What counts as a video in a folder. A file named on the command line is tried whatever its name."""

_KEPT_CONTAINERS = frozenset({".mp4", ".m4v", ".mov", ".mkv"})
"""Containers that take H.264. From all others a .mkv is made: it takes nearly any sound."""


@dataclass(frozen=True, slots=True)
class Job:
    """One file to make from another."""

    source: Path
    target: Path
    is_photo: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """How files are made.

    strength and before_after: see Enhancer. exact: normalise each frame of a video by itself, as the original does,
    instead of by its scene. follow: the model's filter, if videos are to be enhanced by its surrogate; see follower.py.
    audio: copy the first sound.
    """

    strength: float = 1.0
    before_after: bool = False
    exact: bool = False
    follow: Filter | None = None
    encoding: Encoding = field(default_factory=Encoding)
    audio: bool = True
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job that did not fail. seconds: how long it took. kept: where an interrupted video's beginning was left."""

    frames: int
    seconds: float
    interrupted: bool = False
    kept: Path | None = None


def plan(
    inputs: Sequence[Path], output: Path | None, recursive: bool, before_after: bool
) -> tuple[list[Job], list[DpedError]]:
    """Turn inputs into jobs; what cannot become one is returned as an error and leaves the others alone.

    Folders stand for the photos and videos in them, with `recursive` also in the folders below, whose structure is
    kept. output: None writes NAME_dped.EXT beside each input; a folder, or any path where there are several inputs,
    takes files of their own names; else it is the one file to write.
    """
    jobs: list[Job] = []
    errors: list[DpedError] = []
    several = len(inputs) > 1 or any(_is_folder(path) for path in inputs)
    into_folder = output is not None and (several or _is_folder(output))
    found: dict[Path, Path] = {}
    for given in inputs:
        try:
            found.update(_expand(given, recursive))
        except DpedError as error:
            errors.append(error)
    originals = {source.resolve() for source in found}
    targets: dict[Path, Path] = {}
    for source, folder in found.items():
        try:
            photo = is_photo(source)
            name = _target_name(source, photo, before_after)
            if output is None:
                target = source.with_name(name)
            elif not into_folder:
                target = output
            else:
                target = output / folder / name
                plain = target.with_name(source.stem + Path(name).suffix)
                target = target if before_after or _same_file(plain, source) else plain
            if photo and target.suffix.lower() not in PHOTO_SUFFIXES:
                raise OutputError(f"{target}: {source} is a photo; name it {', '.join(sorted(PHOTO_SUFFIXES))}")
            if _same_file(target, source):
                raise InputError(f"{source}: would be replaced by its own result; name another with -o")
            if target.resolve() in originals:
                raise InputError(f"{source}: its result would replace {target}, another input; use another -o")
            if (other := targets.setdefault(target, source)) != source:
                raise InputError(f"{source}: its result would be {target}, as that of {other}; use another -o")
        except DpedError as error:
            errors.append(error)
        else:
            jobs.append(Job(source, target, photo))
    return jobs, errors


def _expand(given: Path, recursive: bool) -> Iterable[tuple[Path, Path]]:
    """Files, each with its folder relative to the folder that was named."""
    try:
        if not given.is_dir():
            if not given.exists():
                raise InputError(f"{given}: no such file")
            if not given.is_file():
                raise InputError(f"{given}: not a regular file")
            return [(given, Path())]
        files = sorted(given.rglob("*") if recursive else given.iterdir())
        found = [(file, file.parent.relative_to(given)) for file in files if file.is_file() and _is_wanted(file)]
    except OSError as error:
        raise InputError(f"{given}: {error.strerror}") from error
    if not found:
        more = "" if recursive else "; add -r for the folders in it"
        raise InputError(f"{given}: no photo or video in this folder{more}")
    return found


def _is_wanted(file: Path) -> bool:
    if file.suffix.lower() in _VIDEO_SUFFIXES:
        return True
    try:
        return is_photo(file)
    except InputError:
        # It cannot be opened, or is a photo with a damaged header: not to be passed over in silence.
        return file.suffix.lower() in PHOTO_SUFFIXES


def _target_name(source: Path, photo: bool, before_after: bool) -> str:
    kept = PHOTO_SUFFIXES if photo else _KEPT_CONTAINERS
    suffix = source.suffix if source.suffix.lower() in kept else (".png" if photo else ".mkv")
    return f"{source.stem}_{'before_after' if before_after else 'dped'}{suffix}"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: this folder cannot be made: {error.strerror}; use another -o") from error


def enhance_photo(job: Job, backend: Backend, settings: Settings, notify: Callable[[str], None]) -> Outcome:
    """Read, enhance and write one photo. Raises DpedError; notify gets what a user should know of the result."""
    begin = time.monotonic()
    photo = read_photo(job.source)
    _make_folder(job.target.parent)
    PartialFile(job.target, settings.overwrite)  # refuses now what write_photo would refuse after all the work
    enhancer = Enhancer(backend, photo.frame.format, ExactPolicy(), settings.strength, settings.before_after)
    enhanced = replace(photo, frame=enhancer.enhance(photo.frame))
    for note in (*photo.notes, *write_photo(enhanced, job.target, overwrite=settings.overwrite)):
        notify(f"{job.source}: {note}")
    return Outcome(1, time.monotonic() - begin)


def enhance_video(
    job: Job,
    backend: Backend,
    settings: Settings,
    notify: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Stats, int | None], None] | None = None,
) -> Outcome:
    """Read, enhance and write one video. Raises DpedError.

    stop: see pipeline.run. progress: gets the counts and about how many frames there will be, None if unknown.
    """
    begin = time.monotonic()
    source = FileSource(job.source)
    try:
        fmt = side_by_side_format(source.format) if settings.before_after else source.format
        encoded = encoded_format(fmt, settings.encoding.codec)
        _make_folder(job.target.parent)
        companion = Companion(job.source, source.video_index, source.start, audio=settings.audio)
        sink = FileSink(job.target, encoded, source.frame_rate, settings.encoding, companion, settings.overwrite)
    except BaseException:
        source.close()
        raise
    fates = [str(fate) for fate in sink.streams if fate.fate in ("converted", "dropped")]
    notes = [*source.notes, *fates, *sink.notes]
    for note in notes:
        notify(f"{job.source}: {note}")
    try:
        policy: Policy = ExactPolicy()
        if settings.strength > 0 and not settings.exact:
            notify(f"{job.source}: looking ahead for its scenes")
            policy = _look_ahead(job.source, backend, stop)
            if settings.follow is not None:
                from dped_live.follower import Follower

                backend = policy = Follower(backend, backend, settings.follow, policy, live=False)
    except BaseException:
        source.close()
        sink.close(complete=False)
        raise
    try:
        stats = run(
            source,
            Enhancer(backend, encoded, policy, settings.strength, settings.before_after),
            [sink],
            stop,
            None if progress is None else lambda stats: progress(stats, source.frame_count),
        )
    except DpedError as error:
        if sink.kept is not None:
            raise type(error)(f"{error}; the pictures before it are in {sink.kept}") from error
        raise
    short = [] if source.shortfall is None else [source.shortfall]
    for note in [*source.notes, *short, *fates, *sink.notes]:
        if note not in notes:
            notify(f"{job.source}: {note}")
    return Outcome(stats.written[0], time.monotonic() - begin, stats.interrupted, sink.kept)


def _look_ahead(path: Path, backend: Backend, stop: Callable[[], bool]) -> Policy:
    """Read a video once for the statistics of its scenes: decoding costs little beside the network."""
    source = FileSource(path)
    try:
        scenes = measure_scenes(takewhile(lambda _: not stop(), source.frames()), backend)
    finally:
        source.close()
    # Without a single frame there is nothing to normalise either.
    return ScenePolicy(scenes) if scenes else ExactPolicy()
