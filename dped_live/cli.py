"""The command line: arguments, signals, printing, exit codes. No pipeline logic."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from dped_live.errors import DpedError
from dped_live.terminal import LINE_EVERY, clock, fetch_progress, ignore, interruptible, say

if TYPE_CHECKING:
    from dped_live.batch import Job, Outcome
    from dped_live.pipeline import Stats

_LEAST_TILE = 64
"""Pixels; smaller ones would mostly be halo."""

_FROM_ENVIRONMENT = ("model", "strength", "statistics", "device", "precision", "tile", "codec", "crf", "preset")
"""Options whose default may be set by DPED_LIVE_NAME."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 something failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The names of files are printed as they are, even if they are no text.
        sys.stdout.reconfigure(errors="backslashreplace" if os.name == "nt" else "surrogateescape")
    try:
        try:
            if arguments[:1] == ["models"]:
                return _models(arguments[1:])
            if arguments[:1] in (["train"], ["evaluate"]):
                from dped_live.training import cli as training

                return training.main(arguments)
            return _enhance(arguments)
        finally:
            sys.stdout.flush()
    except DpedError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing written")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone, as in `dped-live models | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _enhance_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dped-live",
        description="Make photos and videos look as if a good camera had taken them.",
        epilog="Other commands: dped-live models (list and fetch the networks), dped-live train (make one of your own "
        "from pairs of pictures) and dped-live evaluate (measure one); each has its own --help. "
        "An option's default can be set by an environment variable, DPED_LIVE_MODEL=sony for instance.",
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", type=Path, help="photos, videos and folders of them")
    parser.add_argument(
        "-i", dest="more_inputs", action="append", metavar="INPUT", type=Path, default=[], help=argparse.SUPPRESS
    )
    parser.add_argument("--version", action="version", version=f"dped-live {version('dped-live')}")

    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE|FOLDER",
        type=Path,
        help="where the result goes (default: NAME_dped.EXT beside the input)",
    )
    group.add_argument("-r", "--recursive", action="store_true", help="also the folders in a folder")
    group.add_argument("-y", "--overwrite", action="store_true", help="replace files that exist")

    group = parser.add_argument_group("picture")
    group.add_argument(
        "--model",
        default="iphone",
        help="iphone, blackberry, sony, resnet_8_32, or the path of a .safetensors or of a TensorFlow "
        "checkpoint (default: %(default)s)",
    )
    group.add_argument(
        "--strength",
        metavar="0..1",
        type=_strength,
        default=1.0,
        help="how much of the change: 0 none, 1 all (default: %(default)s)",
    )
    group.add_argument(
        "--statistics",
        choices=["auto", "exact", "scene"],
        default="auto",
        help="normalise by each frame's own statistics, as the original does, or by its scene's, without flicker "
        "(default: %(default)s: exact for photos, scene for videos)",
    )
    group.add_argument("--before-after", action="store_true", help="write the picture before and after side by side")

    group = parser.add_argument_group("compute")
    group.add_argument(
        "--device", metavar="auto|cpu|cuda[:N]", default="auto", help="what computes (default: %(default)s)"
    )
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="fp32 is exact; the others are faster and differ by one or two of 255 levels "
        "(default: %(default)s: fp16 on a GPU, bf16 on a CPU that has it, else fp32)",
    )
    group.add_argument(
        "--tile",
        metavar="auto|off|PIXELS",
        type=_tile,
        default="auto",
        help="side of the tiles in which larger pictures are computed, with the same result in less memory and more "
        "time (default: %(default)s: only pictures that do not fit into memory)",
    )

    group = parser.add_argument_group("video encoding")
    group.add_argument(
        "--codec",
        default="libx264",
        help="FFmpeg's name of the encoder: libx264, libx265, libsvtav1, ... (default: %(default)s)",
    )
    group.add_argument("--crf", type=int, help="quality, lower is better (default: 17 for libx264)")
    group.add_argument("--preset", help="speed of the encoder (default: veryfast for libx264)")
    group.add_argument("--no-audio", action="store_true", help="leave the sound out")

    group = parser.add_argument_group("telling")
    group.add_argument("-q", "--quiet", action="store_true", help="only errors")
    return parser


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _tile(text: str) -> int | str:
    if text in ("auto", "off"):
        return text
    if not (text.isascii() and text.isdigit() and int(text) >= _LEAST_TILE):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, off or a number of pixels from {_LEAST_TILE} up")
    return int(text)


def _with_environment(arguments: list[str]) -> list[str]:
    """Arguments, after those that the environment gives: what comes later wins."""
    values = {name: os.environ.get(f"DPED_LIVE_{name.upper()}") for name in _FROM_ENVIRONMENT}
    return [f"--{name}={value}" for name, value in values.items() if value] + arguments


def _enhance(arguments: list[str]) -> int:
    parser = _enhance_parser()
    # Options may stand between inputs; what follows a "--" is none (argparse cannot do both before Python 3.13).
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(_with_environment(arguments[:end]))
    inputs = [*options.inputs, *options.more_inputs, *map(Path, arguments[end + 1 :])]
    if not inputs:
        parser.error("no INPUT: name a photo, a video or a folder")

    # torch and av take seconds to import: not before the arguments are known to be right.
    from dped_live import batch, weights
    from dped_live.backends import open_backend
    from dped_live.sinks.file import Encoding

    jobs, errors = batch.plan(inputs, options.output, options.recursive, options.before_after)
    for error in errors:
        say(str(error))
    failed = len(errors)
    if not jobs:
        return 1
    tell = ignore if options.quiet else say
    with fetch_progress(options.quiet) as fetched:
        generator = weights.load(options.model, progress=fetched, notify=tell)
    backend = open_backend(generator, options.device, options.precision, options.tile, tell)
    tell(f"{options.model} on {backend.description}")
    settings = batch.Settings(
        strength=options.strength,
        before_after=options.before_after,
        exact=options.statistics == "exact",
        encoding=Encoding(options.codec, options.crf, options.preset),
        audio=not options.no_audio,
        overwrite=options.overwrite,
    )

    done = 0
    total = len(jobs) + len(errors)
    with interruptible() as interrupt:
        for job in jobs:
            try:
                if job.is_photo:
                    outcome = batch.enhance_photo(job, backend, settings, tell)
                else:
                    with _video_progress(job, options.quiet) as progress:
                        outcome = batch.enhance_video(job, backend, settings, tell, interrupt.asked, progress)
            except DpedError as error:
                say(_with_name(str(error), job.source))
                failed += 1
            except Exception:  # noqa: BLE001 - a bug; the user's other files are worth more than a tidy end
                say(f"{job.source}: this is a bug in dped-live, please report it:")
                tqdm.write(traceback.format_exc(), file=sys.stderr)
                failed += 1
            else:
                if not options.quiet:
                    _print_outcome(job, outcome)
                done += not outcome.interrupted
            if interrupt.asked():
                if total > 1:
                    say(f"interrupted: {done} of {total} files done, {failed} failed, {total - done - failed} not")
                return 130
    if failed and total > 1:
        say(f"{done} files done, {failed} failed")
    return 1 if failed else 0


def _with_name(message: str, source: Path) -> str:
    return message if str(source) in message else f"{source}: {message}"


def _print_outcome(job: Job, outcome: Outcome) -> None:
    if outcome.interrupted:
        left = f"the first {outcome.frames} frames are in {outcome.kept}" if outcome.kept else "nothing written"
        say(f"{job.source}: interrupted; {left}")
    elif job.is_photo:
        print(f"{job.target} ({outcome.seconds:.1f} s)", flush=True)
    else:
        rate = outcome.frames / max(outcome.seconds, 1e-9)
        print(f"{job.target} ({outcome.frames} frames in {outcome.seconds:.1f} s, {rate:.2f} fps)", flush=True)


@contextmanager
def _video_progress(job: Job, quiet: bool) -> Iterator[Callable[[Stats, int | None], None] | None]:
    """A bar with fps and time left on a terminal, a line now and then without one."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with tqdm(desc=job.source.name, unit=" frames", dynamic_ncols=True, leave=False) as bar:

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
            frames = stats.written[0]
            rate = frames / (now - begin)
            left = f", {clock((total - frames) / rate)} left" if total and rate and total >= frames else ""
            say(f"{job.source}: {frames}{f'/{total}' if total else ''} frames, {rate:.2f} fps{left}")

        yield line


def _models(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dped-live models", description="List or fetch the published networks.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    fetch = commands.add_parser("fetch", help="fetch a network now, so that it can be used offline")
    fetch.add_argument("name", metavar="NAME", help="iphone, blackberry, sony or resnet_8_32")
    fetch.add_argument("-q", "--quiet", action="store_true", help="only errors")
    options = parser.parse_args(arguments)

    from dped_live import weights

    if options.command == "fetch":
        with fetch_progress(options.quiet) as progress:
            path = weights.fetch(options.name, progress=progress)
        print(path)
        return 0
    for model in weights.PUBLISHED.values():
        print(
            f"{model.name:12} {model.layers:2} layers x {model.channels} channels, {model.parameters:,} parameters, "
            f"{model.size / 1e6:.1f} MB   {weights.state(model.name)}"
        )
        print(f"{'':12} from {model.url}/{model.files[0].name}")
        print(f"{'':12} licence: {model.licence}")
    return 0
