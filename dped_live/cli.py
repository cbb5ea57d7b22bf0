"""The command line: arguments, signals, printing, exit codes. No pipeline logic."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from dped_live.errors import DpedError, InputError
from dped_live.report import JsonReport, Report
from dped_live.terminal import LINE_EVERY, Interrupt, fetch_progress, ignore, interruptible, say

if TYPE_CHECKING:
    from dped_live.backends import Backend, Precision, Runner
    from dped_live.batch import Job, Settings
    from dped_live.doctor import Check
    from dped_live.live import LiveSource
    from dped_live.live_state import Controls, LiveSink, LiveStats
    from dped_live.network import Network
    from dped_live.table_filter import Filter

_LEAST_TILE = 64
"""Pixels; smaller ones would mostly be halo."""

_PREVIEW_PORT = 8080

_FROM_ENVIRONMENT = (
    *("model", "strength", "statistics", "device", "backend", "precision", "tile"),
    *("codec", "crf", "preset", "pix-fmt", "deinterlace", "hdr", "decode"),
)
"""Options whose default may be set by DPED_LIVE_NAME."""

_OF_FILES = (
    *("before_after", "recursive", "start", "end", "resume", "strict"),
    *("deinterlace", "hdr", "decode", "pix_fmt", "encoder_options"),
)
_OF_LIVE = ("size", "fps", "preview", "serve", "virtual_cam", "record", "audio_input", "mirror")
"""Options that say nothing of the other."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 something failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read when torch is imported. Its threads would spin while they wait for one another: where another program has
    # work too, as in a video call, a frame takes ten times as long (benchmarks/NOTES.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The names of files are printed as they are, even if they are no text.
        sys.stdout.reconfigure(errors="backslashreplace" if os.name == "nt" else "surrogateescape")
    try:
        try:
            if arguments[:1] == ["models"]:
                return _models(arguments[1:])
            if arguments[:1] == ["cameras"]:
                return _cameras(arguments[1:])
            if arguments[:1] == ["doctor"]:
                return _doctor(arguments[1:])
            if arguments[:1] == ["build"]:
                from dped_live import build

                return build.main(arguments[1:])
            if arguments[:1] == ["bench"]:
                from dped_live.bench import cli as bench

                return bench.main(arguments[1:])
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
        epilog="Other commands: dped-live doctor (what works on this machine), dped-live cameras (list them), "
        "dped-live models (list and fetch the networks), dped-live bench (how fast this machine is), "
        "dped-live build (engines for NVIDIA cards), "
        "dped-live train (make one of your own from pairs of pictures) and dped-live evaluate (measure one); each has "
        "its own --help. "
        "An option's default can be set by an environment variable, DPED_LIVE_MODEL=sony for instance.",
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", type=Path, help="photos, videos and folders of them")
    parser.add_argument(
        "-i", dest="more_inputs", action="append", metavar="INPUT", type=Path, default=[], help=argparse.SUPPRESS
    )
    parser.add_argument("--version", action="version", version=f"dped-live {version('dped-live')}")

    group = parser.add_argument_group("live input")
    group.add_argument(
        "--webcam",
        metavar="CAMERA",
        help="enhance live: a camera's number, path or name, the address of a stream, a file that is played again and "
        "again, or test for a moving test picture",
    )
    group.add_argument("--size", metavar="WxH", type=_size, help="ask the camera for it (default: 1280x720)")
    group.add_argument("--fps", metavar="N", type=_rate, help="ask for this rate, and hold it (default: the camera's)")
    group.add_argument("--mirror", action="store_true", help="show the picture as a mirror does")

    group = parser.add_argument_group("live output")
    group.add_argument(
        "--preview",
        choices=["window", "web", "none"],
        help="where to look at it (default: window, unless another live output is named)",
    )
    group.add_argument(
        "--serve",
        metavar="[HOST:]PORT",
        type=_address,
        help="a page with the picture and its controls; without HOST for this machine alone (--preview web is 8080)",
    )
    group.add_argument(
        "--virtual-cam",
        metavar="DEVICE",
        nargs="?",
        const="",
        help="a camera that OBS, Zoom and browsers can pick (default: the first that is free)",
    )
    group.add_argument("--record", metavar="FILE", type=Path, help="a video file, with the camera's own times")
    group.add_argument("--audio-input", metavar="NAME", help="record this microphone too")
    group.add_argument(
        "--ladder",
        choices=["on", "off"],
        default="on",
        help="on: where the model asked for is too slow, hold the rate with a lighter one (default: %(default)s)",
    )

    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE|FOLDER|URL",
        help="where the result goes (default: NAME_dped.EXT beside the input); live: a video file, or rtmp://, udp://, "
        "rtsp://, ...",
    )
    group.add_argument("-r", "--recursive", action="store_true", help="also the folders in a folder")
    group.add_argument("-y", "--overwrite", action="store_true", help="replace files that exist")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with what a run that was killed or interrupted has left, and skip what it had finished",
    )

    group = parser.add_argument_group("picture")
    group.add_argument(
        "--model",
        default="lite",
        help="lite, which is quick and needs no download; DPED's own: iphone, blackberry, sony, resnet_8_32; or the "
        "path of a .safetensors or of a TensorFlow checkpoint (default: %(default)s)",
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
    group.add_argument(
        "--follow",
        choices=["on", "off", "auto"],
        default="auto",
        help="a model too slow for its frames can be followed: they go through tables of colours and a small filter, "
        "fitted again each second to what the model makes of parts of them; nearly the same, many times faster "
        "(default: %(default)s: live where it is needed, never for files)",
    )
    group.add_argument("--before-after", action="store_true", help="write the picture before and after side by side")

    group = parser.add_argument_group("compute")
    group.add_argument(
        "--device",
        metavar="auto|cpu|cuda[:N]|openvino:GPU[.N]|openvino:NPU",
        default="auto",
        help="what computes; openvino: Intel's graphics and neural processors (default: %(default)s)",
    )
    group.add_argument(
        "--backend",
        choices=["auto", "torch", "tensorrt", "openvino"],
        default="auto",
        help="what runs the network: on an NVIDIA card tensorrt, by engines, which are built when they are first "
        "needed; on a CPU openvino; or torch (default: %(default)s: for videos and live pictures TensorRT and OpenVINO "
        "where they are there and work)",
    )
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16", "int8"],
        default="auto",
        help="fp32 is exact; bf16 and fp16 are faster and differ by one or two of 255 levels; int8, by OpenVINO on a "
        "CPU, is the fastest and says how much it differs "
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

    group = parser.add_argument_group("video input")
    group.add_argument(
        "--start",
        metavar="TIME",
        type=_moment,
        help="begin there: seconds, MM:SS or HH:MM:SS.mmm as a player shows them (default: at the beginning)",
    )
    group.add_argument("--end", metavar="TIME", type=_moment, help="stop there (default: at the end)")
    group.add_argument(
        "--deinterlace",
        choices=["auto", "off"],
        default="auto",
        help="auto: where the file is interlaced (default: %(default)s)",
    )
    group.add_argument(
        "--hdr",
        choices=["sdr", "keep"],
        default="sdr",
        help="what becomes of HDR: sdr, which the networks were made for, or kept as it is (default: %(default)s)",
    )

    group.add_argument(
        "--decode",
        choices=["auto", "cpu", "cuda"],
        default="cpu",
        help="what decodes: cuda, an NVIDIA card's decoder; auto, that where it works (default: %(default)s)",
    )

    group = parser.add_argument_group("video encoding")
    group.add_argument(
        "--codec",
        default="libx264",
        help="FFmpeg's name of the encoder: libx264, libx265, libsvtav1, ...; of NVIDIA cards h264_nvenc, hevc_nvenc, "
        "av1_nvenc; or auto: h264_nvenc where that works, else libx264 (default: %(default)s)",
    )
    group.add_argument("--crf", type=int, help="quality, lower is better (default: 18 for libx264)")
    group.add_argument("--preset", help="speed of the encoder (default: veryfast for libx264)")
    group.add_argument(
        "--pix-fmt",
        metavar="NAME",
        help="FFmpeg's name of the pixel format: yuv420p, yuv420p10le, ... (default: as near to the source's as the "
        "encoder takes)",
    )
    group.add_argument(
        "-e",
        dest="encoder_options",
        metavar="KEY=VALUE",
        action="append",
        type=_encoder_option,
        default=[],
        help="an option of the encoder, as FFmpeg names it: -e tune=film; may be repeated",
    )
    group.add_argument("--no-audio", action="store_true", help="leave the sound out")
    group.add_argument(
        "--strict",
        action="store_true",
        help="fail before the first frame if the output cannot hold all streams and colours of the source",
    )

    group = parser.add_argument_group("telling")
    group.add_argument(
        "--json",
        action="store_true",
        help="on standard output a line of JSON for each thing that happens; live: the figures each second",
    )
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="only errors")
    loudness.add_argument(
        "-v", "--verbose", action="store_true", help="also the streams that are kept, all that is passed over, versions"
    )
    return parser


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit() and int(width) * int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1280x720")
    return int(width), int(height)


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 1 <= rate <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate from 1 to 1000 pictures a second")
    return rate


def _address(text: str) -> tuple[str | None, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port or HOST:PORT")
    return host.strip("[]") or None, int(port)


def _moment(text: str) -> Fraction:
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)", text, re.ASCII)
    hours, minutes, seconds = (Fraction(part or 0) for part in match.groups()) if match else (Fraction(-1),) * 3
    if not match or (match[1] and minutes >= 60) or (match[2] and seconds >= 60):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90, 1:30 or 0:01:30.5")
    return 3600 * hours + 60 * minutes + seconds


def _encoder_option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


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
    values = {name: os.environ.get(f"DPED_LIVE_{name.upper().replace('-', '_')}") for name in _FROM_ENVIRONMENT}
    return [f"--{name}={value}" for name, value in values.items() if value] + arguments


def _enhance(arguments: list[str]) -> int:
    parser = _enhance_parser()
    # Options may stand between inputs; what follows a "--" is none (argparse cannot do both before Python 3.13).
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(_with_environment(arguments[:end]))
    typed = parser.parse_intermixed_args(arguments[:end])
    inputs = [*options.inputs, *options.more_inputs, *map(Path, arguments[end + 1 :])]

    def refuse(names: Sequence[str], advice: str) -> None:
        for name in names:
            if getattr(typed, name) != parser.get_default(name):
                option = {"encoder_options": "-e"}.get(name, f"--{name.replace('_', '-')}")
                parser.error(f"{option} {advice}")

    if options.webcam is not None:
        if inputs:
            parser.error(f"--webcam and {inputs[0]}: one of them")
        refuse(_OF_FILES, "is for files, not for --webcam")
        if typed.statistics == "exact":
            parser.error("--statistics exact is for files, not for --webcam, whose pictures would flicker")
        return _live(options)
    if options.follow == "on" and options.statistics == "exact":
        parser.error("--follow on and --statistics exact: one of them; what follows a model is not exact")
    refuse(_OF_LIVE, "is for live pictures: name a --webcam")
    if options.output == "":
        parser.error("--output: an empty name")
    if options.end is not None and options.end <= (options.start or 0):
        parser.error(f"--end must be after {'--start' if options.start else 'the beginning'}")
    if not inputs:
        parser.error("no INPUT: name a photo, a video or a folder, or a --webcam")

    # torch and av take seconds to import: not before the arguments are known to be right.
    from dped_live import batch, weights
    from dped_live.backends import open_backend
    from dped_live.sinks.encoding import Encoding

    plan = batch.plan(inputs, options.output, options.recursive, options.before_after)
    if plan.jobs and all(job.is_photo for job in plan.jobs):
        for option, value in (("--start", options.start), ("--end", options.end), ("-e", options.encoder_options)):
            if value:
                parser.error(f"{option} is for videos, and there are only photos")
        if options.follow == "on":
            raise InputError("--follow on is for videos; photos are enhanced exactly")
    report = (JsonReport if options.json else Report)(options.model, options.quiet, options.verbose)
    report.planned(plan)
    if not plan.jobs:
        report.end()
        return 1
    if options.verbose:
        report.tell(_versions())
    with fetch_progress(options.quiet) as fetched:
        network = weights.load(options.model, progress=fetched, notify=report.tell)
    digest = weights.digest(network)  # now: the backend may change what it is given
    # A photo takes less time by torch than its engine to be built, and the next one has another size.
    engines = not all(job.is_photo for job in plan.jobs)
    backend = open_backend(
        network, options.device, options.precision, options.tile, report.tell, options.backend, engines=engines
    )
    report.ready(backend.description)
    settings = batch.Settings(
        follow=_filter_of(options.model) if options.follow == "on" else None,
        strength=options.strength,
        before_after=options.before_after,
        exact=options.statistics == "exact",
        encoding=Encoding(
            options.codec,
            options.crf,
            options.preset,
            pixel_format=options.pix_fmt,
            options=tuple(options.encoder_options),
        ),
        audio=not options.no_audio,
        overwrite=options.overwrite,
        strict=options.strict,
        resume=options.resume,
        begin=options.start,
        end=options.end,
        deinterlace=options.deinterlace == "auto",
        hdr=options.hdr,
        decode=options.decode,
    )

    with interruptible() as interrupt:
        for job in plan.jobs:
            if interrupt.asked():
                break
            try:
                _make(job, digest, backend, settings, report, interrupt)
            except DpedError as error:
                report.failed(job.source, str(error))
            except Exception:  # noqa: BLE001 - a bug; the user's other files are worth more than a tidy end
                report.crashed(job.source)
        report.end(interrupt.asked())
        if interrupt.asked():
            return 130
    return 1 if report.has_failures else 0


def _make(job: Job, digest: str, backend: Backend, settings: Settings, report: Report, interrupt: Interrupt) -> None:
    from dped_live import batch

    def note(line: str) -> None:
        report.tell(f"{job.source}: {line}")

    key = None if job.is_photo else batch.job_key(job.source, settings, digest, backend)
    if settings.resume and batch.is_done(job, settings, key):
        if batch.was_short(job):
            report.failed(job.source, f"has fewer pictures than it promises; what there is is in {job.target} already")
        else:
            report.skipped(job, f"{job.target} is there already")
    elif job.is_photo:
        report.begun(job, [], [])
        report.done(job, batch.enhance_photo(job, backend, settings, note))
    else:
        with report.progress(job) as progress:
            outcome = batch.enhance_video(
                job, backend, settings, note, interrupt.asked, progress, partial(report.begun, job), key
            )
        report.done(job, outcome)


def _versions() -> str:
    libraries = {"torch": "torch", "PyAV": "av", "Pillow": "pillow", "numba": "numba"}
    used = ", ".join(f"{name} {version(package)}" for name, package in libraries.items())
    return f"dped-live {version('dped-live')}, Python {platform.python_version()}, {used}"


def _live(options: argparse.Namespace) -> int:
    from dped_live import weights
    from dped_live.backends import open_backend
    from dped_live.backends.reduced import ReducedBackend
    from dped_live.ladder import Ladder, Rung
    from dped_live.live import LiveRun
    from dped_live.live_state import Controls
    from dped_live.live_statistics import LivePolicy
    from dped_live.sinks.images import save_screenshot
    from dped_live.sources.live import open_live_source

    tell = ignore if options.quiet else say
    controls = Controls(options.strength, options.mirror, model=options.model)

    def network_of(model: str) -> Network:
        with fetch_progress(options.quiet) as fetched:
            return weights.load(model, progress=fetched, notify=tell)

    def open_(network: Network, model: str, runner: Runner = options.backend) -> Backend:
        # Where lite only helps out, what is asked of another model is not asked of it.
        helps_out = model == weights.LITE != options.model
        precision: Precision = "auto" if helps_out else options.precision
        device = options.device
        if helps_out and (runner == "openvino" or device.startswith("openvino:")):
            runner, device = "auto", "cpu"
        return open_backend(network, device, precision, options.tile, tell, runner)

    def rungs(model: str) -> list[Rung]:
        network = network_of(model)
        backend = open_(network, model)
        tell(f"{model} on {backend.description}")
        filter_ = None
        if model != weights.LITE and options.follow != "off":
            filter_ = _filter_of(model, options.follow == "on")
        found = [] if filter_ is not None and options.follow == "on" else [Rung("exactly", backend)]
        if filter_ is not None:
            from dped_live.follower import Follower

            tell(f"{model} can be followed; getting ready, the first time takes some seconds")
            # It gives the network parts of many sizes.
            follower = Follower(open_(network, model, "torch"), backend, filter_, LivePolicy(), live=True)
            found.append(Rung(lambda: follower.state, follower, follower, is_quick=True))
        lite = backend if model == weights.LITE else open_(network_of(weights.LITE), weights.LITE)
        if lite is not backend:
            found.append(Rung("lite to hold the rate", lite))
        instead = "" if lite is backend else "lite "
        for factor in (2, 3):
            found.append(Rung(f"{instead}at 1/{factor} of the size to hold the rate", ReducedBackend(lite, factor)))
        return found

    if options.follow == "on":
        _filter_of(options.model)
    rungs_of_asked = rungs(options.model)  # before anything is opened: what is wrong with the model is said at once
    here = [name for name in weights.PUBLISHED if weights.state(name) in ("cached", "in DPED_LIVE_WEIGHTS")]
    source = open_live_source(options.webcam, options.size, options.fps)
    sinks: list[LiveSink] = []
    try:
        for note in source.notes:
            tell(f"{source.name}: {note}")
        ladder = Ladder(
            list(dict.fromkeys((options.model, weights.LITE, *here))),
            lambda model: rungs_of_asked if model == options.model else rungs(model),
            source.format,
            options.fps or source.frame_rate,
            options.ladder == "off",
        )
        for sink in _live_sinks(options, controls, source):
            sinks.append(sink)
            tell(f"{source.name} to {sink.name}")
    except BaseException:
        source.close()
        for sink in sinks:
            with suppress(DpedError):  # a recording of nothing, for instance
                sink.close()
        raise

    def begin_recording() -> tuple[Path, LiveSink]:
        file = Path(f"dped-live_{datetime.now():%Y-%m-%d_%H-%M-%S}.mp4")
        return file, _recording(file, source, options)

    run = LiveRun(
        source,
        ladder,
        sinks,
        controls,
        recording=begin_recording,
        screenshot=lambda picture: save_screenshot(picture.after, Path()),
        notify=tell,
    )
    with interruptible("ending") as interrupt, _live_progress(options.json, options.quiet) as progress:
        run.run(interrupt.asked, progress)
    return 130 if interrupt.asked() else 0


def _filter_of(model: str, wanted: bool = True) -> Filter | None:
    """What it takes to follow a model. wanted: raise if that cannot be done."""
    from dped_live import weights
    from dped_live.table_filter import filter_of

    filter_ = filter_of(model)
    if filter_ is None and wanted:
        if model == weights.LITE:
            raise InputError("lite is quick enough by itself; name another --model to be followed")
        raise InputError(f"{model}: cannot be followed without its filter; make it with tools/fit_filter.py")
    return filter_


def _live_sinks(options: argparse.Namespace, controls: Controls, source: LiveSource) -> Iterator[LiveSink]:
    """Opens one after the other."""
    width, height, rate = source.format.width, source.format.height, options.fps or source.frame_rate
    streamed = options.output if "://" in (options.output or "") else None
    recorded = [Path(file) for file in (options.record, None if streamed else options.output) if file is not None]
    named = options.serve or options.virtual_cam is not None or streamed or recorded
    preview = options.preview or ("none" if named else "window")
    if streamed:
        from dped_live.sinks.stream import StreamSink

        yield StreamSink(streamed, width, height, rate)
    for file in recorded:
        yield _recording(file, source, options)
    if options.virtual_cam is not None:
        from dped_live.sinks.virtual_camera import VirtualCameraSink

        camera = VirtualCameraSink(width, height, float(rate), options.virtual_cam or None)
        for note in camera.notes:
            say(note)
        yield camera
    if options.serve or preview == "web":
        from dped_live.sinks.web import WebSink

        host, port = options.serve or (None, _PREVIEW_PORT)
        web = WebSink(controls, port, host)
        for note in web.notes:
            say(note)
        yield web
    if preview == "window":
        from dped_live.sinks.window import WindowSink

        yield WindowSink(controls, f"dped-live: {source.name}", width, height)


def _recording(file: Path, source: LiveSource, options: argparse.Namespace) -> LiveSink:
    from dped_live.sinks.encoding import Encoding
    from dped_live.sinks.recording import ENCODING, RecordingSink
    from dped_live.sources.microphone import Microphone

    as_usual = options.codec == ENCODING.codec and options.crf is None
    encoding = Encoding(options.codec, ENCODING.crf if as_usual else options.crf, options.preset)
    microphone = Microphone(options.audio_input) if options.audio_input else None
    width, height = source.format.width, source.format.height
    sink = RecordingSink(file, width, height, source.frame_rate, encoding, microphone, options.overwrite)
    for note in sink.notes:
        say(note)
    return sink


@contextmanager
def _live_progress(as_json: bool, quiet: bool) -> Iterator[Callable[[LiveStats], None] | None]:
    """A line of figures that is renewed on a terminal, printed now and then without one; or JSON, each second."""
    if as_json:
        yield lambda stats: print(json.dumps(asdict(stats), default=str), flush=True)
    elif quiet:
        yield None
    elif sys.stderr.isatty():
        with tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False) as bar:
            yield lambda stats: bar.set_description_str(_figures(stats))
    else:
        told = time.monotonic()

        def line(stats: LiveStats) -> None:
            nonlocal told
            if time.monotonic() - told >= LINE_EVERY:
                told = time.monotonic()
                say(_figures(stats))

        yield line


def _figures(stats: LiveStats) -> str:
    latencies = ", ".join(
        f"{name} {latency.p50:.0f} ms (p95 {latency.p95:.0f})" for name, latency in stats.latency.items()
    )
    notice = f"; {stats.notice}" if stats.notice else ""
    rates = f"{stats.fps_in:.1f} fps in, {stats.fps_out:.1f} out, {stats.dropped} dropped"
    return f"{stats.model}, {stats.rung}: {rates}; {latencies}{notice}"


def _cameras(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dped-live cameras", description="List the cameras of this machine.")
    parser.parse_args(arguments)

    from dped_live.sources.cameras import list_cameras

    cameras = list_cameras()
    for camera in cameras:
        print(camera)
    if not cameras:
        say("no camera found; plug one in, or try --webcam test")
    return 0 if cameras else 1


def _doctor(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dped-live doctor",
        description="Try everything that dped-live uses on this machine, and tell what to do about what does not work.",
        epilog="The exit code is 0 if the main jobs can be done: enhancing a photo (a picture is computed, there is "
        "memory, the current folder can be written), a video (H.264 is encoded and decoded) and "
        "live pictures (which at least get to a browser). A camera, a display, a microphone and a GPU need not "
        "be there; but a GPU that torch would use must work.",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each thing that was tried")
    options = parser.parse_args(arguments)

    from dped_live import doctor

    failed = []
    for check in doctor.examine():
        print(json.dumps(asdict(check)) if options.json else _row(check), flush=True)
        if check.needed and check.state != "ok":
            failed.append(check.name)
    if not options.json:
        able = "Photos, videos and live pictures in a browser can be enhanced here."
        print(f"\nNot everything can be enhanced here: mend {', '.join(failed)}." if failed else f"\n{able}")
    return 1 if failed else 0


def _row(check: Check) -> str:
    """A row of the doctor's table, broken between words; but what is to be typed is not, or it could not be copied."""
    indent = " " * 29
    width = max(2 * len(indent), min(shutil.get_terminal_size().columns, 120))
    row = f"{check.name:17}  {check.state:8}  {check.what}"
    fix = "" if check.fix is None else f"fix: {check.fix}"
    if fix and len(row) + 2 + len(fix) <= width:
        return f"{row}; {fix}"
    wrapped = textwrap.fill(row, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return f"{wrapped}\n    {fix}" if fix else wrapped


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
    parameters = sum(parameter.numel() for parameter in weights.load(weights.LITE).parameters())
    print(
        f"{weights.LITE:12} tables of colours and a filter, {parameters:,} parameters, "
        f"{weights.lite_path().stat().st_size / 1e6:.1f} MB   part of dped-live, the default"
    )
    print(f"{'':12} licence: that of dped-live; its teachers, iphone and resnet_8_32, have none (see the README)")
    for model in weights.PUBLISHED.values():
        print(
            f"{model.name:12} {model.layers:2} layers x {model.channels} channels, {model.parameters:,} parameters, "
            f"{model.size / 1e6:.1f} MB   {weights.state(model.name)}"
        )
        print(f"{'':12} from {model.url}/{model.files[0].name}")
        print(f"{'':12} licence: {model.licence}")
    return 0
