"""The `dped-live build` command: TensorRT engines, made before they are needed or for another machine."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from dped_live.terminal import fetch_progress, ignore, interruptible, say


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code. Raises DpedError."""
    parser = argparse.ArgumentParser(
        prog="dped-live build",
        description="Build TensorRT engines, which run a network on an NVIDIA card faster than PyTorch does.",
        epilog="It needs tensorrt-rtx (GeForce and RTX cards; builds on any machine) or tensorrt (other cards; builds "
        "for the card of this machine). An engine is for one network, size and version of that package. What is there "
        "already is not built again.",
    )
    parser.add_argument("--model", default="lite", help="as for enhancing (default: %(default)s)")
    parser.add_argument(
        "--size",
        metavar="WxH",
        nargs="+",
        type=_size,
        default=[(1280, 720)],
        help="of the pictures (default: 1280x720); several are built one after the other",
    )
    parser.add_argument(
        "--dynamic", action="store_true", help="engines for all sizes up to that, somewhat slower than for one"
    )
    parser.add_argument(
        "--target",
        metavar="CAPABILITY",
        nargs="+",
        help="compute capabilities of the cards, such as 7.5 8.9, which NVIDIA lists (default: all from 8.0 up that "
        "tensorrt-rtx supports; with tensorrt it is this machine's card)",
    )
    parser.add_argument(
        "--via",
        choices=["torch-tensorrt"],
        help="let torch-tensorrt build it, for this machine's card and exact statistics; for networks that dped-live "
        "does not define for TensorRT itself",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="where to (default: engines/ of a checkout, else the user's cache)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only errors, and the files")
    options = parser.parse_args(arguments)
    if options.via and (options.dynamic or options.target):
        parser.error("--via torch-tensorrt is for one size and this machine's card: leave out --dynamic and --target")

    from dped_live import weights
    from dped_live.backends import engine, engine_export
    from dped_live.backends.engine_graph import FORMS, MODES

    tell = ignore if options.quiet else say
    package = engine_export.package() if options.via else engine.installed_package()
    target = None if options.target is None else " ".join(options.target)
    package.target(target)  # what cannot be is said before anything is fetched
    folder = engine.engine_folder() if options.out is None else options.out
    with fetch_progress(options.quiet) as fetched:
        network = weights.load(options.model, progress=fetched, notify=tell)
    keys = [
        engine.key_for(network, statistics, form, height, width, options.dynamic, package, target)
        for width, height in options.size
        for statistics in MODES[type(network)]
        for form in FORMS[statistics]
    ]
    if options.via:
        keys = [engine_export.key_for_module(network, height, width) for width, height in options.size]
    build = engine_export.build if options.via else engine.build
    seconds = "some seconds" if package.is_rtx else "minutes"
    tell(f"{len(keys)} engines of {options.model} for {_cards(keys[0].target, package.is_rtx)}, by {package.title}")
    with interruptible("stopping") as interrupt, _progress(options.quiet, interrupt.asked) as progress:
        for number, key in enumerate(keys, 1):
            path = engine.find(key, [folder], tell)
            if path is not None:
                tell(f"{number} of {len(keys)}: {key}; it is there already, {_megabytes(path)}")
            else:
                tell(f"{number} of {len(keys)}: {key}; building it takes {seconds}")
                try:
                    path = build(network, key, folder, progress)
                except KeyboardInterrupt:
                    say("interrupted; the engines that were finished are kept")
                    return 130
                tell(f"built, {_megabytes(path)}")
            print(path, flush=True)
    return 0


def _cards(target: str, is_rtx: bool) -> str:
    return f"cards of compute capability {', '.join(target.split())}" if is_rtx else target


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1280x720")
    return int(match[1]), int(match[2])


@contextmanager
def _progress(quiet: bool, stop: Callable[[], bool]) -> Iterator[Callable[[str, int, int], bool]]:
    """What shows a bar of the present step, on a terminal only."""
    with tqdm(leave=False, disable=True if quiet else None) as bar:

        def update(what: str, done: int, steps: int) -> bool:
            bar.set_description(what, refresh=False)
            bar.total, bar.n = steps, done
            bar.refresh()
            return not stop()

        yield update
