"""The commands `train` and `evaluate`: arguments, printing, exit codes."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from dped_live.errors import TrainingError
from dped_live.partial import PartialFile
from dped_live.terminal import LINE_EVERY, clock, fetch_progress, ignore, interruptible, say

if TYPE_CHECKING:
    from dped_live.network import Network
    from dped_live.training.trainer import Losses

_LEAST_PATCH = 17
"""Pixels; what the discriminator needs."""

_DEFAULT = "(default: %(default)s)"


def main(arguments: Sequence[str]) -> int:
    """Run `train` or `evaluate`, the first argument, and return the exit code; raises as dped_live.cli.main expects."""
    command, *rest = arguments
    return {"train": _train, "evaluate": _evaluate}[command](rest)


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dped-live train",
        description="Train a network on pairs of pictures of one scene, a phone's and a good camera's.",
        epilog="docs/training.md tells how to take and align the pairs, and what the figures mean. Several GPUs: "
        "torchrun --nproc-per-node N -m dped_live train ...",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        required=True,
        help="PHONE/training_data/{PHONE,canon} and PHONE/test_data/patches/{PHONE,canon} in it, or two folders, PHONE "
        "and canon, with pictures of equal names",
    )
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the folder for all that is written")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN from its last checkpoint")
    _add_phone(parser)
    parser.add_argument(
        "--hold-out",
        metavar="N",
        type=_whole(1),
        help="of two plain folders, so many pairs are for testing, the last (default: a tenth, at most 400)",
    )

    group = parser.add_argument_group("network")
    group.add_argument(
        "--model", metavar="NAME", help="build it like lite, iphone or resnet_8_32 (default: iphone, or like --init)"
    )
    group.add_argument("--init", metavar="MODEL", help="start from a published name or a file (default: random values)")
    group.add_argument(
        "--channels", metavar="N", type=_whole(1, 999), help="of every layer (default: those of --model; lite has none)"
    )
    group.add_argument("--blocks", metavar="N", type=_whole(1, 999), help="residual blocks (default: those of --model)")

    group = parser.add_argument_group("training")
    group.add_argument(
        "--steps", metavar="N", type=_whole(1), default=20_000, help=f"updates of both networks {_DEFAULT}"
    )
    group.add_argument("--batch", metavar="N", type=_whole(1), default=50, help=f"pairs for each update {_DEFAULT}")
    group.add_argument("--learning-rate", metavar="X", type=_positive, default=5e-4, help=f"of both Adams {_DEFAULT}")
    group.add_argument(
        "--patch", metavar="PIXELS", type=_whole(_LEAST_PATCH), default=100, help=f"side of the patches {_DEFAULT}"
    )
    group.add_argument(
        "--recipe",
        choices=["repository", "paper"],
        default="repository",
        help=f"weights of the loss's terms: those of the authors' code or of their paper {_DEFAULT}",
    )
    group.add_argument(
        "--content",
        choices=["vgg", "off"],
        default="vgg",
        help=f"compare features of VGG-19, or leave this term out {_DEFAULT}",
    )
    group.add_argument(
        "--vgg", metavar="PATH", type=Path, help="weights of VGG-19 (default: fetched once, 575 MB, and kept)"
    )
    group.add_argument("--augment", action="store_true", help="flip and turn the patches at random")
    group.add_argument("--seed", metavar="N", type=_whole(0), default=0, help=f"of all that is random {_DEFAULT}")

    group = parser.add_argument_group("compute")
    _add_device(group)
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="of the convolutions (default: %(default)s: bf16 on a GPU that has it, else fp16; fp32 on a CPU)",
    )
    group.add_argument(
        "--workers",
        metavar="N",
        type=_whole(0),
        default=min(8, max(1, (os.cpu_count() or 2) - 1)),
        help="processes that read pictures (default: a core each but one, at most 8; here %(default)s)",
    )

    group = parser.add_argument_group("telling")
    group.add_argument(
        "--evaluate-every",
        metavar="N",
        type=_whole(1),
        default=1000,
        help=f"steps from one measurement and checkpoint to the next {_DEFAULT}",
    )
    group.add_argument(
        "--keep", metavar="N", type=_whole(1), default=3, help=f"checkpoints that are kept, besides the best {_DEFAULT}"
    )
    group.add_argument("--tensorboard", action="store_true", help="write for TensorBoard too, in RUN/tensorboard")
    _add_quiet(group)
    return parser


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dped-live evaluate",
        description="Measure how near a network brings a phone's pictures to a good camera's.",
    )
    parser.add_argument("--model", required=True, help="a published name, or the path of a .safetensors or checkpoint")
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        required=True,
        help="PHONE/test_data/patches/{PHONE,canon} in it, or two folders, PHONE and canon, with pictures of equal "
        "names, of which all count",
    )
    _add_phone(parser)
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the scores of every picture (default: no)")
    parser.add_argument("-y", "--overwrite", action="store_true", help="replace FILE if it exists")
    _add_device(parser)
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="fp32",
        help=f"fp32 gives exact scores {_DEFAULT}",
    )
    _add_quiet(parser)
    return parser


def _add_phone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--phone", metavar="NAME", help="the phone's folder in DIR (default: the only one)")


def _add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", metavar="auto|cpu|cuda[:N]", default="auto", help=f"what computes {_DEFAULT}")


def _add_quiet(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="only errors")


def _whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    """The type of an option that takes a whole number in this range."""

    def parsed(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            to = f" to {most}" if most < math.inf else " up"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}{to}")
        return int(text)

    return parsed


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _with_environment(arguments: list[str], *names: str) -> list[str]:
    """Arguments, after those of these names that the environment gives: what comes later wins.

    DPED_LIVE_PRECISION is not asked: what is good enough for pictures need not be for training or for scores.
    """
    values = {name: os.environ.get(f"DPED_LIVE_{name.upper()}") for name in names}
    return [f"--{name}={value}" for name, value in values.items() if value] + arguments


def _train(arguments: list[str]) -> int:
    parser = _train_parser()
    options = parser.parse_args(_with_environment(arguments, "device"))
    if options.content == "off" and options.vgg:
        parser.error("--vgg has no use with --content off")

    # torch takes seconds to import: not before the arguments are known to be right.
    from dped_live import weights
    from dped_live.training import loop, vgg
    from dped_live.training.configuration import Configuration, fingerprint
    from dped_live.training.pairs import find_pairs
    from dped_live.training.processes import joined
    from dped_live.training.trainer import resolve_precision

    with joined(options.device) as processes:
        quiet = options.quiet or not processes.is_first
        tell = ignore if quiet else say
        features = init = None
        with processes.first_alone():
            if processes.is_first:
                loop.expect_usable(options.out, options.resume)
            with fetch_progress(quiet) as fetched:
                if options.content == "vgg":
                    features = vgg.load_features(vgg.find(options.vgg, progress=fetched))
                if options.init:
                    init = weights.load(options.init, progress=fetched, notify=tell)
        if features is None:
            tell("--content off: without VGG's features this is not the loss of the paper")
        pairs = find_pairs(options.data, options.phone, tell, options.hold_out)
        shape = _shape(options, init)
        configuration = Configuration(
            channels=shape[0],
            blocks=shape[1],
            phone=(pairs.train or pairs.test)[0].phone.parent.name,
            hold_out=options.hold_out,
            recipe=options.recipe,
            content=options.content,
            batch=options.batch,
            learning_rate=options.learning_rate,
            patch=options.patch,
            augment=options.augment,
            seed=options.seed,
            precision=options.precision,
            init=options.init,
            data=fingerprint(pairs),
        )
        precision = str(resolve_precision(options.precision, processes.device)).removeprefix("torch.")
        tell(f"{len(pairs.train)} pairs to train on, {len(pairs.test)} to test on; {processes.device}, {precision}")
        with (
            _stoppable(processes.is_first) as stop,
            _training_progress(options.out.name, options.steps, quiet) as progress,
        ):
            try:
                outcome = loop.train(
                    pairs,
                    options.out,
                    configuration,
                    steps=options.steps,
                    features=features,
                    init=init,
                    processes=processes,
                    resume=options.resume,
                    workers=options.workers,
                    evaluate_every=options.evaluate_every,
                    keep=options.keep,
                    tensorboard=options.tensorboard,
                    notify=tell,
                    progress=progress,
                    stop=stop,
                )
            except TrainingError:
                # A failed step has failed in all processes; that is said once.
                if processes.is_first:
                    raise
                return 1
    if outcome.interrupted:
        if processes.is_first:
            say(f"interrupted after step {outcome.step}, which is saved; the same command with --resume goes on")
        return 130
    if not quiet:
        best = f"the best, {outcome.best_psnr:.2f} dB after step {outcome.best_step}, is best.safetensors"
        print(f"{options.out / 'model.safetensors'} (step {outcome.step}; {best})")
    return 0


def _shape(options: argparse.Namespace, init: Network | None) -> tuple[int, int] | tuple[None, None]:
    """Channels and blocks: those of --init, or of --model with what is said of them besides; none for lite's kind."""
    from dped_live import weights
    from dped_live.generator import Generator

    if init is None:
        like = weights.shape(options.model or "iphone")
    else:
        like = (init.channels, init.blocks) if isinstance(init, Generator) else None
        if options.model and weights.shape(options.model) != like:
            raise TrainingError(f"{options.init} is not built like {options.model}; leave out --model")
    if like is None:
        if options.channels or options.blocks:
            raise TrainingError("the size of networks like lite is fixed; leave out --channels and --blocks")
        return None, None
    if init is None:
        return options.channels or like[0], options.blocks or like[1]
    for name, asked, value in (("channels", options.channels, like[0]), ("blocks", options.blocks, like[1])):
        if asked not in (None, value):
            raise TrainingError(f"{options.init} has {value} {name}; leave out --{name}")
    return like


@contextmanager
def _stoppable(is_first: bool) -> Iterator[Callable[[], bool]]:
    """Handles Ctrl-C. Of several processes, which all get it, the first decides for all."""
    if is_first:
        with interruptible() as interrupt:
            yield interrupt.asked
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield lambda: False


@contextmanager
def _training_progress(name: str, steps: int, quiet: bool) -> Iterator[Callable[[int, Losses], None]]:
    """A bar with the losses and the time left on a terminal, a line now and then without one."""
    if quiet:
        yield lambda _step, _losses: None
    elif sys.stderr.isatty():
        bars: list[tqdm[NoReturn]] = []

        def update(step: int, losses: Losses) -> None:
            if not bars:  # only now it is known at which step this begins
                bars.append(tqdm(desc=name, initial=step - 1, total=steps, unit=" steps", dynamic_ncols=True))
            bars[0].set_postfix_str(_figures(losses), refresh=False)
            bars[0].update()

        try:
            yield update
        finally:
            for bar in bars:
                bar.close()
    else:
        begin = last = time.monotonic()
        first = 0

        def line(step: int, losses: Losses) -> None:
            nonlocal begin, last, first
            now = time.monotonic()
            if not first:
                begin, first = now, step
            if now - last < LINE_EVERY or step == first:
                return
            last = now
            left = (now - begin) / (step - first) * (steps - step)
            say(f"step {step}/{steps}, {clock(left)} left: {_figures(losses)}")

        yield line


def _figures(losses: Losses) -> str:
    content = f"content {losses.content:.3g}, " if losses.content else ""  # just 0 where it is off
    terms = ", ".join(f"{name} {getattr(losses, name):.3g}" for name in ("color", "texture", "tv", "accuracy"))
    return f"generator {losses.generator:.3g}, {content}{terms}"


def _evaluate(arguments: list[str]) -> int:
    options = _evaluate_parser().parse_args(_with_environment(arguments, "model", "device"))

    from dped_live import weights
    from dped_live.backends import open_backend
    from dped_live.training.evaluation import BATCH, evaluate, write_csv
    from dped_live.training.pairs import find_pairs

    tell = ignore if options.quiet else say
    if options.csv:
        PartialFile(options.csv, options.overwrite)  # it is refused now rather than after all the work
    with fetch_progress(options.quiet) as fetched:
        generator = weights.load(options.model, progress=fetched, notify=tell)
    pairs = find_pairs(options.data, options.phone, tell, "all").test
    backend = open_backend(generator, options.device, options.precision, notify=tell)
    tell(f"{options.model} on {backend.description}")
    is_hidden = options.quiet or not sys.stderr.isatty()
    with tqdm(total=len(pairs), unit=" pictures", leave=False, disable=is_hidden) as bar:

        def shown(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        scores = evaluate(backend.enhance, backend.device, pairs, shown)
    if options.csv:
        write_csv(scores, options.csv, overwrite=options.overwrite)
    print(f"{f'{len(pairs)} pictures':40}{'input':>10}{'enhanced':>10}")
    for name, measure in (
        ("PSNR in dB, mean of the pictures", "psnr"),
        (f"PSNR in dB, one error for each {BATCH}", "batch_psnr"),
        ("the original's MS-SSIM, of pictures", "ms_ssim_original"),
        (f"the original's MS-SSIM, of each {BATCH}", "batch_ms_ssim_original"),
        ("MS-SSIM", "ms_ssim"),
    ):
        values = [getattr(likeness, measure) for likeness in (scores.input, scores.enhanced)]
        digits = 2 if "psnr" in measure else 4
        print(f"{name:40}" + "".join(f"{'-' if value is None else f'{value:.{digits}f}':>10}" for value in values))
    for name, likeness in (("input", scores.input), ("enhanced", scores.enhanced)):
        if likeness.equal:
            tell(f"{name}: {likeness.equal} pictures equal the camera's; the mean PSNR is without them")
    return 0
