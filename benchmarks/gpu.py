"""What an NVIDIA card does: a table to send to the project, of one that it has not seen yet.

    python benchmarks/gpu.py [--models lite iphone] [--sizes 1280x720 1920x1080 3840x2160] [--frames 100] > gpu.md

Models that are not there are fetched. Engines are built as they are needed, into the usual folder. For each model, size
and backend, with a scene's statistics, as for a video:

    network     milliseconds for one picture in the card's memory, by events of the card, the median
    frames      pictures a second from planes (8-bit 4:2:0) in the host's memory to planes there, as in a video
    one by one  milliseconds from planes to planes where each picture waits for the one before, as live: the median
    error       of a 320x180 part: PSNR against float32 on the CPU, and the greatest difference in levels of 255
    memory      GB of the card that are taken

Then cuda_layers.py's report on DPED's network by torch, and the whole program on a clip, from decoding to encoding, by
the CPU's codecs and by the card's: the difference between a long and a short clip, which leaves out the start; and its
slowest stage alone. All of it takes less than ten minutes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from dped_live import weights
from dped_live.backends import Backend, Runner, open_backend
from dped_live.enhance import Enhancer
from dped_live.errors import DpedError
from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.scene_statistics import ScenePolicy, SceneStatistics
from dped_live.statistics import Statistics

import cuda_layers

_RUNNERS: tuple[Runner, ...] = ("torch", "tensorrt")

_WARM_UP = 10

_CLIPS = (5, 25)
"""Seconds."""

_CODECS = {
    "the CPU's codecs": (),
    "NVDEC": ("--decode", "cuda"),
    "NVENC": ("--codec", "h264_nvenc"),
    "NVDEC and NVENC": ("--decode", "cuda", "--codec", "h264_nvenc"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure an NVIDIA card.")
    parser.add_argument("--models", nargs="+", default=["lite", "iphone"])
    parser.add_argument("--sizes", nargs="+", default=["1280x720", "1920x1080", "3840x2160"])
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--clip", type=Path, default=Path(__file__).parents[1] / "samples" / "lake.mp4")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch finds no GPU; see dped-live doctor", file=sys.stderr)
        return 1
    _print_machine()
    print("| model | size | backend | network, ms | frames, 1/s | one by one, ms | error | memory, GB |")
    print("|---|---|---|---|---|---|---|---|")
    for model in options.models:
        network = weights.load(model)
        for size in options.sizes:
            width, height = map(int, size.split("x"))
            for runner in _RUNNERS:
                print(f"| {model} | {size} | {_row(network, runner, width, height, options.frames)} |", flush=True)
        if isinstance(network, Generator):
            print()
            for line in cuda_layers.report(network, [cuda_layers.as_size(size) for size in options.sizes]):
                print(line, flush=True)
    for model in options.models:
        print(f"\n| the whole program, {model}, 1280x720 | frames, 1/s |")
        print("|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            clips = {seconds: Path(folder, f"{seconds}.mp4") for seconds in _CLIPS}
            for seconds, clip in clips.items():
                _enlarged(options.clip, clip, seconds)
            for name, fps in _stages(weights.load(model), clips[_CLIPS[0]]).items():
                print(f"| {name} alone | {fps:.0f} |", flush=True)
            for name, arguments in _CODECS.items():
                print(f"| {name} | {_whole_program(clips, model, arguments)} |", flush=True)
    return 0


def _print_machine() -> None:
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or "driver unknown"
    print(f"{properties.name}, compute capability {properties.major}.{properties.minor}, {driver}")
    print(
        f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__}"
    )
    print(time.strftime("%Y-%m-%d\n"))


def _row(network: Network, runner: Runner, width: int, height: int, count: int) -> str:
    """The cells after the size."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    try:
        backend = open_backend(network, "cuda", tile="off", notify=_tell, runner=runner)
        scene = backend.statistics(_picture(180, 320).cuda())
        milliseconds = _network_time(backend, scene, width, height, count)
        fps, latency = _frame_times(backend, scene, width, height, count)
        error = _error(network, backend, scene)
    except DpedError as reason:
        return f"{runner} | {reason} | | | |"
    taken = (free - torch.cuda.mem_get_info()[0]) / 1e9
    return f"{backend.description} | {milliseconds:.2f} | {fps:.0f} | {latency:.1f} | {error} | {taken:.1f}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _picture(height: int, width: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, -(-height // 8), -(-width // 8), generator=random)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def _network_time(backend: Backend, scene: Statistics, width: int, height: int, count: int) -> float:
    image = _picture(height, width).cuda()
    result = torch.empty_like(image)
    times = []
    for _ in range(_WARM_UP + count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        backend.enhance(image, scene, out=result)
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return statistics.median(times[_WARM_UP:])


def _frame_times(backend: Backend, scene: Statistics, width: int, height: int, count: int) -> tuple[float, float]:
    """Frames a second, several under way; and milliseconds of one alone."""
    fmt = VideoFormat(width, height, PIXEL_FORMATS["yuv420p"], "bt709", full_range=False, time_base=Fraction(1, 30))
    policy = ScenePolicy([SceneStatistics(Fraction(0), None, scene, 0.01, Frame((), fmt).whole)])
    enhancer = Enhancer(backend, fmt, policy)
    for _ in enhancer.map(_frames(fmt, _WARM_UP)):
        pass
    began = time.perf_counter()
    for _ in enhancer.map(_frames(fmt, count)):
        pass
    fps = count / (time.perf_counter() - began)
    times = []
    for frame in _frames(fmt, count):
        began = time.perf_counter()
        enhancer.enhance(frame)
        times.append(time.perf_counter() - began)
    return fps, 1000 * statistics.median(times)


def _frames(fmt: VideoFormat, count: int) -> Iterator[Frame]:
    random = np.random.default_rng(0)
    shapes = [(fmt.height, fmt.width), *[(fmt.height // 2, fmt.width // 2)] * 2]
    planes = tuple(random.integers(16, 236, shape, np.uint8) for shape in shapes)
    for number in range(count):
        yield Frame(planes, fmt, Fraction(number, 30), Fraction(1, 30))


def _error(network: Network, backend: Backend, scene: Statistics) -> str:
    image = _picture(180, 320)
    with torch.inference_mode():
        expected = network(image, Statistics(scene.mean.cpu(), scene.variance.cpu()))
    error = (backend.enhance(image.cuda(), scene).cpu() - expected).abs()
    return f"{-10 * torch.log10(error.square().mean() + 1e-20):.1f} dB, {255 * error.max():.2f}"


def _enlarged(clip: Path, out: Path, seconds: int) -> int:
    """Write the clip at 1280x720, again and again; returns the number of frames."""
    with av.open(f"file:{clip}") as source:
        frames = [frame.reformat(1280, 720, "yuv420p") for frame in source.decode(video=0)]
    count = 30 * seconds
    with av.open(f"file:{out}", "w") as target:
        stream = target.add_stream("libx264", 30, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number in range(count):
            frame = frames[number % len(frames)]
            frame.pts, frame.time_base = number, Fraction(1, 30)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return count


def _stages(network: Network, clip: Path) -> dict[str, float]:
    """Frames a second of each stage of the whole program with the CPU's codecs."""
    began = time.perf_counter()
    with av.open(f"file:{clip}") as source:
        source.streams.video[0].thread_type = "AUTO"
        pictures = [frame.to_ndarray() for frame in source.decode(video=0)]
    decoded = len(pictures) / (time.perf_counter() - began)
    backend = open_backend(network, "cuda", tile="off", notify=_tell)
    scene = backend.statistics(_picture(180, 320).cuda())
    enhanced, _ = _frame_times(backend, scene, 1280, 720, 100)
    began = time.perf_counter()
    with av.open(str(clip.with_name("encoded.mp4")), "w") as target:
        stream = target.add_stream("libx264", 30, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number, planes in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    encoded = len(pictures) / (time.perf_counter() - began)
    return {"decoding": decoded, "planes to planes by the network": enhanced, "encoding": encoded}


def _whole_program(clips: dict[int, Path], model: str, arguments: tuple[str, ...]) -> str:
    """clips: by their seconds."""
    taken = {}
    # The first run may build engines and compile kernels, and does not count.
    for seconds, clip in (next(iter(clips.items())), *clips.items()):
        out = clip.with_name("out.mp4")
        command = [sys.executable, "-m", "dped_live", str(clip), "-y", "-q", "--model", model, "-o", str(out)]
        began = time.perf_counter()
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if result.returncode:
            return result.stderr.strip()
        taken[seconds] = time.perf_counter() - began
    (short, least), (long, most) = taken.items()
    return f"{30 * (long - short) / (most - least):.0f}"


if __name__ == "__main__":
    sys.exit(main())
