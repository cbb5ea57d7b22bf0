"""What a command line asks for: which file becomes which, and making one from the other. Prints nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from dped_live.backends import Backend
from dped_live.enhance import Enhancer, side_by_side_format
from dped_live.errors import DpedError, InputError, OutputError
from dped_live.frame import Decode, Hdr
from dped_live.partial import PartialFile, partial_path, shortened
from dped_live.pipeline import Stats, run
from dped_live.scene_statistics import ExactPolicy, Policy, ScenePolicy, measure_scenes
from dped_live.sinks.companion import Companion, StreamFate
from dped_live.sinks.encoding import Encoding, encoded_format, lost_in, resolved
from dped_live.sinks.file import FileSink
from dped_live.sinks.finished_part import JobKey, is_short, mark_short
from dped_live.sinks.images import PHOTO_SUFFIXES, write_photo
from dped_live.sinks.verification import Verification
from dped_live.sources.file import FileSource
from dped_live.sources.images import is_photo, photo_size, read_photo
from dped_live.staging import current

if TYPE_CHECKING:
    from dped_live.table_filter import Filter

_VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".hevc", ".ivf", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
"""What counts as a video in a folder. A file named on the command line is tried whatever its name."""

_KEPT_CONTAINERS = frozenset({".mp4", ".m4v", ".mov", ".mkv"})
"""Containers that take H.264. From all others a .mkv is made: it takes nearly any sound."""

_END_OF_FILE = 1 << 16
"""Bytes at either end of a file that it is known by."""

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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
    audio: copy the sound. begin, end, deinterlace, hdr, decode: see FileSource; of videos only. strict: what the output
    cannot hold is an error. resume: go on with what an earlier run left, instead of refusing it; see is_done for what
    it finished. overwrite: replace both.
    """

    strength: float = 1.0
    before_after: bool = False
    exact: bool = False
    follow: Filter | None = None
    encoding: Encoding = field(default_factory=Encoding)
    audio: bool = True
    overwrite: bool = False
    strict: bool = False
    resume: bool = False
    begin: Fraction | None = None
    end: Fraction | None = None
    deinterlace: bool = True
    hdr: Hdr = "sdr"
    decode: Decode = "cpu"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job that did not fail. frames: of the file; seconds: how long it took. kept: where an interrupted video's
    beginning was left; resumable: and can be gone on with.

    looking_ahead: of the seconds, how many a video's scenes took before the first frame.
    earlier: how many of the frames an earlier run had made. shortfall: why there are fewer than the source promises.
    verification: what reading a video back has found.
    """

    frames: int
    seconds: float
    interrupted: bool = False
    kept: Path | None = None
    resumable: bool = False
    earlier: int = 0
    shortfall: str | None = None
    verification: Verification | None = None
    notes: tuple[str, ...] = ()
    looking_ahead: float = 0.0


@dataclass(slots=True)
class Plan:
    """What inputs become. failed: what cannot become anything, and why; passed_over: what of the folders is left as it
    is, by the reason."""

    jobs: list[Job] = field(default_factory=list)
    failed: list[tuple[Path, DpedError]] = field(default_factory=list)
    passed_over: dict[str, list[Path]] = field(default_factory=dict)


def plan(inputs: Sequence[Path], output: str | None, recursive: bool, before_after: bool) -> Plan:
    """Turn inputs into jobs; what cannot become one leaves the others alone.

    Folders stand for the photos and videos in them, with `recursive` also in the folders below, whose structure is
    kept; links to folders are not followed, and neither our own results beside their sources nor unfinished ones are
    enhanced again. Nothing but regular files is ever opened: a pipe would block.
    output, as it was typed: None writes NAME_dped.EXT beside each input; a folder, a name with a slash at its end, or
    any path where there are several inputs takes files of their own names; else it is the one file to write.
    """
    several = len(inputs) > 1 or any(_is_folder(path) for path in inputs)
    target_path = None if output is None else Path(output)
    into_folder = target_path is not None and (
        several or _is_folder(target_path) or str(output).endswith((os.sep, os.altsep or os.sep))
    )
    search = _Search(recursive, target_path if into_folder else None)
    for given in inputs:
        try:
            search.add(given)
        except DpedError as error:
            search.plan.failed.append((given, error))
    # Of a link that leads nowhere, or to itself, Path.resolve() makes an error.
    originals = {os.path.realpath(source) for source in search.found}
    targets: dict[Path, Path] = {}
    for source, folder in search.found.items():
        try:
            photo = is_photo(source)
            name = _target_name(source, photo, before_after)
            if target_path is None:
                target = source.with_name(name)
            elif not into_folder:
                target = target_path
            else:
                target = target_path / folder / name
                plain = target.with_name(shortened(source.stem, Path(name).suffix))
                target = target if before_after or _same_file(plain, source) else plain
            if photo and target.suffix.lower() not in PHOTO_SUFFIXES:
                raise OutputError(f"{target}: {source} is a photo; name it {', '.join(sorted(PHOTO_SUFFIXES))}")
            for written in (target, partial_path(target)):
                if _same_file(written, source):
                    raise InputError(f"{source}: would be replaced by its own result; name another with -o")
                if os.path.realpath(written) in originals:
                    raise InputError(f"{source}: its result would replace {written}, another input; use another -o")
            into = Path(os.path.realpath(target.parent))
            key = Path(str(into / target.name).casefold()) if _ignores_case(into) else into / target.name
            if (other := targets.setdefault(key, source)) != source:
                raise InputError(f"{source}: its result would be {target}, as that of {other}; use another -o")
        except DpedError as error:
            search.plan.failed.append((source, error))
        else:
            search.plan.jobs.append(Job(source, target, photo))
    return search.plan


class _Search:
    """Finds files to enhance: `found` has each with its folder relative to the folder that was named."""

    def __init__(self, recursive: bool, results: Path | None) -> None:
        self.found: dict[Path, Path] = {}
        self.plan = Plan()
        self._recursive = recursive
        self._results = results

    def add(self, given: Path) -> None:
        """A file or folder that was named. Raises InputError if there is nothing in it."""
        try:
            mode = given.stat().st_mode
        except OSError as error:
            reason = error.strerror
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                reason = "a link that leads nowhere" if given.is_symlink() else "no such file"
            raise InputError(f"{given}: {reason}") from error
        if stat.S_ISREG(mode):
            self.found[given] = Path()
        elif stat.S_ISDIR(mode):
            if not self._add_folder(given, Path()):
                more = "" if self._recursive else "; add -r for the folders in it"
                raise InputError(f"{given}: no photo or video in this folder{more}")
        else:
            raise InputError(f"{given}: {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")

    def _add_folder(self, folder: Path, within: Path) -> bool:
        """Whether there was anything in it, or it could not be read, which is told."""
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self.plan.failed.append((folder, InputError(f"{folder}: {error.strerror}")))
            return True
        wanted, below = [], []
        for entry in entries:
            try:
                mode = entry.stat().st_mode
            except OSError:
                self._pass_over(entry, "links that lead nowhere" if entry.is_symlink() else "cannot be read")
                continue
            if stat.S_ISDIR(mode):
                below.append(entry)
            elif not stat.S_ISREG(mode):
                self._pass_over(entry, "pipes and devices")
            elif not _is_wanted(entry):
                self._pass_over(entry, "neither photos nor videos")
            elif entry.stem.endswith((".part", ".part-earlier")):
                self._pass_over(entry, "of runs that did not finish")
            else:
                wanted.append(entry)
        results = {
            Path(_target_name(file, photo, before_after)).stem
            for file in wanted
            for photo in (False, True)
            for before_after in (False, True)
        }
        sources = [file for file in wanted if file.stem not in results]
        for file in wanted:
            if file.stem in results:
                self._pass_over(file, "results of earlier runs")
        self.found.update((file, within) for file in sources)
        has_any = bool(sources)
        for entry in below if self._recursive else []:
            if entry.is_symlink():
                self._pass_over(entry, "links to folders, which are not followed")
            elif self._results is not None and _same_file(entry, self._results):
                self._pass_over(entry, "the folder of the results")
            else:
                has_any |= self._add_folder(entry, within / entry.name)
        return has_any

    def _pass_over(self, path: Path, reason: str) -> None:
        self.plan.passed_over.setdefault(reason, []).append(path)


def _is_wanted(file: Path) -> bool:
    suffix = file.suffix.lower()
    if file.name.startswith("._"):  # what macOS leaves on other systems' disks, named like the file it belongs to
        return False
    # What is named so and is none, or damaged, is not to be passed over in silence.
    if suffix in _VIDEO_SUFFIXES or suffix in PHOTO_SUFFIXES:
        return True
    try:
        return is_photo(file)
    except InputError:
        return False


def _target_name(source: Path, photo: bool, before_after: bool) -> str:
    kept = PHOTO_SUFFIXES if photo else _KEPT_CONTAINERS
    suffix = source.suffix if source.suffix.lower() in kept else (".png" if photo else ".mkv")
    return shortened(source.stem, f"_{'before_after' if before_after else 'dped'}{suffix}")


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


@cache
def _ignores_case(folder: Path) -> bool:
    """Whether names that differ only in case are one file in an absolute folder, or the nearest above that exists."""
    while not _is_folder(folder) and folder != folder.parent:
        folder = folder.parent
    return folder.name.swapcase() != folder.name and _same_file(folder.with_name(folder.name.swapcase()), folder)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: this folder cannot be made: {error.strerror}; use another -o") from error


def job_key(source: Path, settings: Settings, weights: str, backend: Backend) -> JobKey:
    """What a video is made from and by: with equal keys the same frames come out. weights: see weights.digest.

    The source is known by its size and both its ends, not by its time: a copy is the same. Raises InputError.
    """
    try:
        with source.open("rb") as file:
            head = file.read(_END_OF_FILE)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END_OF_FILE))
            ends = size, hashlib.sha256(head).hexdigest(), hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from error
    # The filter's arrays, whose repr is shortened.
    follow = (
        [] if settings.follow is None else [getattr(settings.follow, part.name) for part in fields(settings.follow)]
    )
    chosen = replace(settings, follow=None, overwrite=False, resume=False, strict=False)
    return JobKey(
        _short_hash(version("dped-live"), version("av"), weights, backend.description),
        _short_hash(ends),
        _short_hash(chosen, *(array.tobytes() for array in follow)),
    )


def _short_hash(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:12]


def is_done(job: Job, settings: Settings, key: JobKey | None) -> bool:
    """Whether an earlier run has done a job.

    A photo's result is not older than the photo, and has its size. key: of a video, whose result has it, and has its
    name because it was found to be whole.
    """
    if key is not None:
        return FileSink.is_result(job.target, key)
    try:
        if job.source.stat().st_mtime > job.target.stat().st_mtime:
            return False
        width, height = photo_size(job.source)
        return photo_size(job.target) == (width * (1 + settings.before_after), height)
    except (OSError, InputError):
        return False


def was_short(job: Job) -> bool:
    """Whether the result of an earlier run, which is_done, has fewer pictures than its source promises."""
    return not job.is_photo and is_short(job.target)


def enhance_photo(job: Job, backend: Backend, settings: Settings, notify: Callable[[str], None]) -> Outcome:
    """Read, enhance and write one photo. Raises DpedError; notify gets what a user should know of the result."""
    begin = time.monotonic()
    photo = read_photo(job.source)
    _make_folder(job.target.parent)
    # What a killed run left of a photo is made anew. This refuses now what write_photo would refuse after all the work.
    PartialFile(job.target, settings.overwrite, settings.resume)
    overwrite = settings.overwrite or settings.resume
    enhancer = Enhancer(backend, photo.frame.format, ExactPolicy(), settings.strength, settings.before_after, notify)
    enhanced = replace(photo, frame=enhancer.enhance(photo.frame))
    notes = (*photo.notes, *write_photo(enhanced, job.target, overwrite=overwrite))
    for note in notes:
        notify(note)
    return Outcome(1, time.monotonic() - begin, notes=notes)


def enhance_video(
    job: Job,
    backend: Backend,
    settings: Settings,
    notify: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Stats, int | None], None] | None = None,
    begun: Callable[[Sequence[StreamFate], Sequence[str]], None] = lambda _streams, _notes: None,
    key: JobKey | None = None,
) -> Outcome:
    """Read, enhance and write one video. Raises DpedError.

    notify: gets what a user should know. stop: see pipeline.run. progress: gets the counts and about how many frames
    this run will write, None if unknown. begun: called before the first frame, with what becomes of the source's
    streams and the notes so far. key: see job_key; without it the file cannot be gone on with.
    """
    started = time.monotonic()
    part = partial_path(job.target)
    resume = settings.resume and not settings.overwrite
    if resume and settings.follow is not None and part.exists():
        raise OutputError(
            f"{part}: with --follow on a frame depends on all those before, so it cannot be gone on with; "
            "add -y to begin anew"
        )
    if resume and job.target.exists():
        raise OutputError(
            f"{job.target} exists, and is not what this program makes of this source with these options; "
            "add -y to replace it"
        )
    with current(backend.device) as card:
        source = _open(job.source, settings, card=card)
    try:
        fmt = side_by_side_format(source.format) if settings.before_after else source.format
        encoding, choice = resolved(settings.encoding, fmt)
        encoded = encoded_format(fmt, encoding)
        lost = ", ".join(lost_in(fmt, encoded))
        if lost and settings.strict:
            raise OutputError(f"{job.target}: --strict, and not kept: {lost}; use another --codec or --pix-fmt")
        _make_folder(job.target.parent)
        length = None if settings.end is None else settings.end - (settings.begin or 0)
        companion = Companion(
            job.source, source.video_index, source.start, length, settings.begin is not None, settings.audio
        )
        sink = FileSink(
            job.target,
            encoded,
            source.frame_rate,
            encoding,
            companion,
            settings.overwrite,
            strict=settings.strict,
            job=key,
            resume=resume,
        )
    except BaseException:
        source.close()
        raise
    earlier = sink.done
    try:
        if earlier:
            source.close()
            with current(backend.device) as card:
                source = _open(job.source, settings, earlier, card)
    except BaseException:
        sink.close(complete=False)
        raise
    notes = [*source.notes, *filter(None, [choice, lost and f"not kept: {lost}"]), *sink.notes]
    if earlier:
        notes.append(f"goes on after the {earlier} frames of an earlier run")
    for note in notes:
        notify(note)
    begun(sink.streams, notes)
    ahead_since = time.monotonic()
    try:
        policy: Policy = ExactPolicy()
        if settings.strength > 0 and not settings.exact:
            notify("looking ahead for its scenes")
            policy = _look_ahead(job.source, settings, backend, stop)
            if settings.follow is not None:
                from dped_live.follower import Follower

                backend = policy = Follower(backend, backend, settings.follow, policy, live=False)
    except BaseException:
        source.close()
        sink.close(complete=False)
        raise
    looking_ahead = time.monotonic() - ahead_since

    def told(stats: Stats) -> None:
        total = source.frame_count
        if progress is not None:
            progress(stats, None if total is None else max(0, total - earlier))

    try:
        stats = run(
            source,
            Enhancer(backend, encoded, policy, settings.strength, settings.before_after, notify),
            [sink],
            stop,
            told,
        )
    except DpedError as error:
        if sink.kept is not None:
            raise type(error)(f"{error}; the pictures before it are in {sink.kept}") from error
        raise
    late = [note for note in [*source.notes, *sink.notes] if note not in notes]
    for note in late:
        notify(note)
    if source.shortfall is not None and not stats.interrupted:
        mark_short(job.target)
    return Outcome(
        frames=earlier + stats.written[0],
        seconds=time.monotonic() - started,
        interrupted=stats.interrupted,
        kept=sink.kept,
        resumable=key is not None and settings.follow is None,
        earlier=earlier,
        shortfall=None if stats.interrupted else source.shortfall,
        verification=sink.report,
        notes=(*notes, *late),
        looking_ahead=looking_ahead,
    )


def _open(path: Path, settings: Settings, skip: int = 0, card: int | None = None) -> FileSource:
    return FileSource(
        path,
        begin=settings.begin,
        end=settings.end,
        deinterlace=settings.deinterlace,
        hdr=settings.hdr,
        skip=skip,
        decode=settings.decode,
        card=card,
    )


def _look_ahead(path: Path, settings: Settings, backend: Backend, stop: Callable[[], bool]) -> Policy:
    """Read a video once for the statistics of its scenes: decoding costs little beside the network."""
    source = _open(path, settings)
    try:
        scenes = measure_scenes(takewhile(lambda _: not stop(), source.frames()), backend)
    finally:
        source.close()
    # Without a single frame there is nothing to normalise either.
    return ScenePolicy(scenes) if scenes else ExactPolicy()
