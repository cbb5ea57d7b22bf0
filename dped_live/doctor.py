"""What works on this machine. Every part is really tried, and what is wrong with it comes with what to do about it.

Each probe runs in a process of its own: drivers hang and crash, broken libraries cannot be imported, and many print.
What a probe cannot catch is then a line like the others. (It is a plain child, not one of child_process.py: it may have
children itself, may take long to import torch, and what it printed last says why it died.)
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dped_live.errors import DpedError, InputError, OutputError

if TYPE_CHECKING:
    from dped_live.backends import Backend

State = Literal["ok", "not here", "broken"]

_PATIENCE = 60.0
"""Seconds that a probe may be silent. On a slow disk importing torch takes most of it."""

_MEMORY = 1e9
"""Bytes: what a 1080p video or a photo of 12 megapixels needs, libraries included."""

_ROOM = 100e6
"""Bytes: the least that is worth beginning with, about a minute of video."""

_WIDTH, _HEIGHT = 640, 360

_ENCODERS = ["libx264", "libx265", "libsvtav1", "libvpx-vp9"]
_HARDWARE_ENCODERS = {
    "darwin": {"h264_videotoolbox": "Macs"},
    "win32": {"h264_nvenc": "NVIDIA cards with an encoder", "h264_qsv": "Intel graphics"},
}.get(
    sys.platform,
    {
        "h264_nvenc": "NVIDIA cards with an encoder",
        "h264_qsv": "Intel graphics",
        "h264_vaapi": "AMD and Intel graphics",
    },
)
"""With what each is for."""

_TENSORRT = {
    "tensorrt": ("tensorrt", "NVIDIA cards for data centres"),
    "tensorrt_rtx": ("tensorrt-rtx", "GeForce and RTX cards"),
    "torch_tensorrt": ("'torch-tensorrt<2.14'", "networks of your own on NVIDIA cards"),
}
"""Modules, with what pip calls them and what they are for. A later torch-tensorrt would bring a torch that dped-live
does not know."""

_RTX = (7.5, 8.0, 8.6, 8.9, 12.0, 12.1)
"""Compute capabilities of the cards that tensorrt-rtx supports."""

_IN_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dped_live import doctor; "
    "doctor.answer(sys.argv[2], *sys.argv[3:])"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    state: "ok"; "not here": there is no such thing; "broken": there is, and it does not work. what: in words.
    fix: what to do or type, if anything helps. needed: by the main jobs.
    """

    name: str
    state: State
    what: str
    fix: str | None = None
    needed: bool = False


def examine() -> Iterator[Check]:
    """Try everything, and tell each result as soon as it is known. Never raises, and never hangs.

    The main jobs can be done if all that is needed is ok: enhancing a photo (torch computes a picture, there is memory,
    the current folder can be written), a video (H.264 is encoded and decoded) and live pictures
    (which at least get to a browser on this machine; there need be no camera and no display). A GPU need not be there,
    but the first that torch can use must work, for it would be used.

    For a moment it opens the cameras, the microphone and a window. It fetches nothing.
    """
    yield from _watched("system", _system, needed=True)
    yield from _watched("lite on CPU", _network, fix=_pip_install("torch", "safetensors"), needed=True)
    yield from _watched("GPU", _gpus, fix="use --device cpu", needed=True)
    cards = _cards()
    wanted = tensorrt_package(cards)
    for module, (package, purpose) in _TENSORRT.items():
        if find_spec(module) is None:
            fix = f"pip install {package}" if package == wanted else None
            yield Check(module, "not here", f"not installed; for {purpose}", fix)
        else:
            yield from _watched(module, _tensorrt, module, fix=_pip_install(package))
    if find_spec("openvino") is None:
        fix = None if cards else "pip install openvino"
        yield Check("openvino", "not here", "not installed; for DPED's networks on CPUs, Intel's above all", fix)
    else:
        yield from _watched("openvino", _openvino, fix=_pip_install("openvino"))
    for codec in [*_ENCODERS, *_HARDWARE_ENCODERS]:
        yield from _watched(codec, _codec, codec, fix=_MEND_AV, needed=codec == "libx264")
    yield from _watched("browser", _browser, fix=_MEND_AV, needed=True)
    yield from _watched("display", _display, fix="use --preview web")
    yield from _watched("cameras", _cameras, fix="try --webcam test")
    yield from _watched("microphone", _microphone)
    yield from _watched("virtual camera", _virtual_camera, fix=_pip_install("pyvirtualcam"))
    yield from _watched("weights", _weights)


def answer(probe: str, *arguments: str) -> None:
    """What runs in a probe's process: print its checks, a line of JSON each, and nothing else, and end the process."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print
        checks: Iterable[Check] = globals()[probe](*arguments)
        for check in checks:
            answers.write(json.dumps(asdict(check)) + "\n")
            answers.flush()
    os._exit(0)  # a library that crashes while it is put away has done its work


def _watched(
    name: str, probe: Callable[..., Iterator[Check]], *arguments: str, fix: str | None = None, needed: bool = False
) -> Iterator[Check]:
    """The checks of a probe, and one of this name, broken, if it crashes or does not end."""
    # -P: not a file of the current folder that happens to be called like a library.
    command = [sys.executable, "-P", "-c", _IN_CHILD, json.dumps(sys.path), probe.__name__, *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    told, heard_at = 0, time.monotonic()
    try:
        while True:
            try:
                output, printed = process.communicate(timeout=0.1)
            except subprocess.TimeoutExpired as pause:
                output = pause.output or b""  # Windows tells only at the end
            for line in output.split(b"\n")[told:-1]:
                yield Check(**json.loads(line))
                told, heard_at = told + 1, time.monotonic()
            if process.returncode is not None:
                break
            if time.monotonic() - heard_at > _PATIENCE:
                yield Check(name, "broken", f"no answer within {_PATIENCE:.0f} seconds", fix, needed)
                return
        if process.returncode:
            yield Check(name, "broken", _cause_of_death(process.returncode, printed), fix, needed)
    finally:
        if process.returncode is None:
            process.kill()
            # Not for ever: what is stuck in a driver ends when that lets it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=1)


def _cause_of_death(code: int, printed: bytes) -> str:
    lines = printed.decode(errors="replace").strip().splitlines()
    if code < 0:
        return f"it crashed ({signal.Signals(-code).name})"
    # Of a Python error the last line; it is long where a library explains itself.
    return lines[-1][:200] if lines else f"it crashed (exit code {code})"


def _pip_install(*packages: str) -> str:
    return f"pip install --force-reinstall {' '.join(packages)}"


_MEND_AV = _pip_install("av", "opencv-python")


def _parted(error: DpedError, at: str = "; ") -> tuple[str, str | None]:
    """What is wrong, and what to do about it."""
    what, _, fix = str(error).partition(at)
    return what, fix or None


# The probes.


def _system() -> Iterator[Check]:
    import psutil

    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Check("Python", "ok", f"{platform.python_version()}, dped-live {version('dped-live')}, {system}")
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    enough: State = "ok" if free > _MEMORY else "broken"
    what = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    fix = None if enough == "ok" else f"close other programs: a 1080p video takes {_MEMORY / 1e9:.0f} GB"
    yield Check("memory", enough, what, fix, needed=True)
    advice = "go (cd) to a folder that you can write to, or name one with -o"
    yield _written("current folder", Path(), advice, needed=True)


def _written(name: str, folder: Path, fix: str, without: str = "", needed: bool = False) -> Check:
    """Whether a folder can be written to; it is made if it does not exist. without: what that means, if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        path, free = folder.resolve(), shutil.disk_usage(folder).free
    except OSError as error:
        return Check(name, "broken", f"it cannot be written: {error.strerror}{without}", fix, needed)
    if free < _ROOM:
        return Check(name, "broken", f"{path}: only {free / 1e6:.0f} MB free", "delete what you can spare", needed)
    return Check(name, "ok", f"{path}: can be written, {free / 1e9:.0f} GB free", needed=needed)


def _network() -> Iterator[Check]:
    import psutil
    import torch

    from dped_live import weights
    from dped_live.backends import open_backend
    from dped_live.errors import WeightsError

    yield Check("torch", "ok", torch.__version__)
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    yield Check("processor", "ok", f"{processor()}, {cores} cores; torch uses {torch.get_num_threads()} threads")
    try:
        generator = weights.load(weights.LITE)
    except WeightsError as error:
        yield Check("lite on CPU", "broken", str(error), _pip_install("dped-live"), needed=True)
        return
    backend = open_backend(generator, "cpu")
    yield _computed("lite on CPU", backend, backend.description.removeprefix("CPU, "), _pip_install("torch"))


def _openvino() -> Iterator[Check]:
    import torch

    from dped_live.backends import open_backend
    from dped_live.generator import Generator

    backend = open_backend(Generator(16, 1), "cpu", runner="openvino")
    enhanced = backend.enhance(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    if not enhanced.isfinite().all():
        yield Check("openvino", "broken", "the picture it computes is not one", "use --backend torch")
        return
    from dped_live.backends.openvino import CORE  # now that open_backend has seen to it that it reports to nobody

    devices = ", ".join(CORE.available_devices)
    yield Check("openvino", "ok", f"{version('openvino')}, {backend.description}; it finds {devices}")


def processor() -> str:
    """The processor's name, as the system tells it."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def _computed(name: str, backend: Backend, description: str, fix: str) -> Check:
    """Whether a backend enhances a picture, and how fast."""
    import torch

    picture = torch.rand(1, 3, _HEIGHT, _WIDTH, generator=torch.Generator().manual_seed(0)).to(backend.device)
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        enhanced = backend.enhance(picture)
        right = enhanced.shape == picture.shape and bool(enhanced.isfinite().all())  # waits for a GPU
        seconds.append(time.monotonic() - begin)
    if not right:
        return Check(name, "broken", f"{description}; the picture it computes is not one", fix, needed=True)
    usual = sorted(seconds)[len(seconds) // 2]
    rates = f"{1 / usual:.0f} fps, and about {_WIDTH * _HEIGHT / usual / (1280 * 720):.0f} at 1280x720"
    return Check(name, "ok", f"{description}; {_WIDTH}x{_HEIGHT} in {usual:.3f} s, {rates}", needed=True)


class Card(NamedTuple):
    """An NVIDIA card; driver and capability (compute capability) are 0 where they are not known."""

    name: str
    driver: str
    capability: float


def _cards() -> list[Card]:
    """Those that the system knows, whatever torch thinks."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        parts = [[part.strip() for part in line.split(",")] for line in lines if line.strip()]
        return [Card(name, driver, float(capability)) for name, driver, capability in parts]
    driver = Path("/sys/module/nvidia/version")
    known = driver.read_text().strip() if driver.exists() else "0"
    models = [path.read_text() for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    return [Card(_model(text), known, 0) for text in models]


def _model(information: str) -> str:
    found = re.search(r"^Model:\s*(.+)$", information, re.MULTILINE)
    return found[1].strip() if found else "an NVIDIA GPU"


def _card_without_driver() -> bool:
    """Whether there is an NVIDIA display or compute device on the PCI bus (class 03, vendor 10de)."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text()[2:4] == "03":
                return True
    return False


def _gpus() -> Iterator[Check]:
    import torch

    from dped_live import weights
    from dped_live.backends import open_backend

    cards = _cards()
    if not torch.cuda.is_available():
        yield _without_cuda(cards)
        return
    generator = weights.load(weights.LITE)
    for number in range(torch.cuda.device_count()):
        name = f"GPU {number}"
        properties = torch.cuda.get_device_properties(number)
        driver = f"driver {cards[0].driver}, " if cards else ""
        description = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {driver}"
        try:
            backend = open_backend(generator, f"cuda:{number}", runner="torch")
            precision = backend.description.split(", ")[-1]
            check = _computed(name, backend, description + precision, "use --device cpu")
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            check = Check(name, "broken", f"{description}{reason}", cuda_build(cards), needed=True)
        # Where there is one, --device auto takes the first.
        yield check if number == 0 else Check(check.name, check.state, check.what, check.fix)


def _without_cuda(cards: list[Card]) -> Check:
    """Why torch has no GPU."""
    import torch

    if not cards:
        if _card_without_driver():
            advice = "install the driver: https://www.nvidia.com/drivers; of a container: docker run --gpus all"
            return Check("GPU", "broken", "there is an NVIDIA card, but not its driver", advice)
        return Check("GPU", "not here", "no NVIDIA card was found")
    card = f"{cards[0].name}, driver {cards[0].driver}"
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return Check("GPU", "not here", f"{card}: CUDA_VISIBLE_DEVICES={hidden} hides it", "unset CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        return Check("GPU", "broken", f"{card}: this torch was built without CUDA", cuda_build(cards))
    try:
        torch.zeros(1, device="cuda")
        reason = "torch does not find it"
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split(". ")[0]
    return Check("GPU", "broken", f"{card}: {reason}", cuda_build(cards))


def cuda_build(cards: list[Card]) -> str:
    """How to get the torch for a card: the builds of torch 2.11 to 2.13 that there are for all systems.

    CUDA 13.0 wants a driver from 580 on and a card from Turing (7.5) on; 12.6 takes older ones, but not Blackwell (10).
    """
    import torch

    driver, capability = (cards[0].driver, cards[0].capability) if cards else ("0", 0.0)
    new_driver = int(driver.split(".")[0]) >= 580
    if not new_driver and capability >= 10:
        return "update the driver to 580 or later: https://www.nvidia.com/drivers"
    tag = "cu130" if new_driver and not 0 < capability < 7.5 else "cu126"
    if f"cu{(torch.version.cuda or '').replace('.', '')}" == tag:
        return "restart the computer, then update the driver: https://www.nvidia.com/drivers; or use --device cpu"
    release = torch.__version__.split("+")[0]
    return f"pip install --force-reinstall torch=={release} --index-url https://download.pytorch.org/whl/{tag}"


def tensorrt_package(cards: list[Card]) -> str | None:
    """What of TensorRT to install for a card; None: there is nothing for it, or it is not known what it is."""
    if not cards or cards[0].capability < _RTX[0]:
        return None
    return "tensorrt-rtx" if cards[0].capability in _RTX else "tensorrt"


def _tensorrt(module: str) -> Iterator[Check]:
    yield Check(module, "ok", import_module(module).__version__)


def _codec(name: str) -> Iterator[Check]:
    import numpy as np

    from dped_live.frame import PIXEL_FORMATS, Frame, VideoFormat
    from dped_live.sinks.encoding import Encoding, encoded_format
    from dped_live.sinks.file import FileSink
    from dped_live.sources.file import FileSource

    hardware = name in _HARDWARE_ENCODERS
    fmt = VideoFormat(_WIDTH, _HEIGHT, PIXEL_FORMATS["yuv420p"], "bt709", False, time_base=Fraction(1, 30))
    try:
        fmt = encoded_format(fmt, Encoding(name))
    except OutputError as error:
        what = "it is not in this PyAV" if error.__cause__ else "it takes none of dped-live's pixel formats"
        what = f"for {_HARDWARE_ENCODERS[name]}; {what}" if hardware else what
        yield Check(name, "not here", what, None if hardware else _MEND_AV, needed=name == "libx264")
        return
    pixel = fmt.pixel_format
    heights, widths = (_HEIGHT, *[_HEIGHT >> pixel.chroma_shift_y] * 2), (_WIDTH, *[_WIDTH >> pixel.chroma_shift_x] * 2)
    ramps = [np.linspace(50, 200, h)[:, None] * np.linspace(0.5, 1, w) for h, w in zip(heights, widths, strict=True)]
    scale, kind = 1 << (pixel.depth - 8), np.uint8 if pixel.depth == 8 else np.uint16
    planes = tuple((scale * ramp).astype(kind) for ramp in ramps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "doctor.mkv")
        try:
            sink = FileSink(path, fmt, Fraction(30), Encoding(name))
            for number in range(3):
                sink.write(Frame(planes, fmt, Fraction(number, 30), Fraction(1, 30)))
            sink.close(complete=True)
            source = FileSource(path)
            lumas = [frame.planes[0] for frame in source.frames()]
            source.close()
        except (OutputError, InputError) as error:
            reason = getattr(error.__cause__, "strerror", None) or str(error).replace(f"{path}: ", "")
            if hardware:
                yield Check(name, "not here", f"for {_HARDWARE_ENCODERS[name]}; it does not open ({reason})")
            else:
                yield Check(name, "broken", reason, _MEND_AV, needed=name == "libx264")
            return
    off = max(float(np.abs(luma.astype(float) - planes[0]).mean()) / scale for luma in lumas)
    if len(lumas) != 3 or off > 4:
        what = f"of 3 pictures {len(lumas)} came back, up to {off:.0f} of 255 levels off"
        yield Check(name, "broken", what, "use --codec libx264" if hardware else _MEND_AV, needed=name == "libx264")
    else:
        yield Check(name, "ok", "encodes, and what it encodes is decoded", needed=name == "libx264")


def _browser() -> Iterator[Check]:
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    from dped_live.live_state import Controls, LivePicture, LiveStats
    from dped_live.sinks.web import WebSink
    from dped_live.sources.live import open_live_source

    try:
        source = open_live_source("test", (_WIDTH, _HEIGHT))
        web = WebSink(Controls(), 0)
    except (InputError, OutputError) as error:
        yield Check("browser", "broken", *_parted(error), needed=True)
        return
    frame = next(frame for frame in source.frames() if frame is not None)
    assert frame.captured_at is not None
    picture = LivePicture(frame.planes[0], frame.planes[0], frame.pts, frame.captured_at)
    web.write(picture, LiveStats(source.name, _WIDTH, _HEIGHT, (), "", "", 0, 0, 0, {}, None, None))
    connection = HTTPConnection(urlsplit(web.name).netloc, timeout=10)
    connection.request("GET", "/picture.png")
    response = connection.getresponse()
    arrived = response.status == 200 and response.read().startswith(b"\x89PNG")
    web.close()
    source.close()
    if arrived:
        yield Check("browser", "ok", f"the test picture came through {web.name}", needed=True)
    else:
        what = f"{web.name} answers {response.status} and no picture"
        yield Check("browser", "broken", what, "allow local connections in firewall and proxy", needed=True)


def _display() -> Iterator[Check]:
    from dped_live.live_state import Controls
    from dped_live.sinks.window import WindowSink

    try:
        window = WindowSink(Controls(), "dped-live doctor", _WIDTH, _HEIGHT)
    except OutputError as error:
        expected = sys.platform in ("darwin", "win32") or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}
        yield Check("display", "broken" if expected else "not here", *_parted(error))
        return
    window.close()
    yield Check("display", "ok", "a window can be opened")


def _cameras() -> Iterator[Check]:
    from dped_live.sources.cameras import list_cameras
    from dped_live.sources.live import open_live_source

    cameras = list_cameras()
    if not cameras:
        yield Check("cameras", "not here", "none was found", "plug one in, or try --webcam test")
    for camera in cameras:
        name = f"camera {camera.index}"
        if camera.problem:
            what, _, fix = camera.problem.partition("; ")
            yield Check(name, "broken", f"{camera.name}: {what}", fix or None)
            continue
        try:
            source = open_live_source(str(camera.index))  # waits for the first picture
        except InputError as error:
            # A virtual camera to which no program writes is silent; that is no fault.
            virtual = Path("/sys/devices/virtual/video4linux", Path(camera.path).name).exists()
            yield Check(name, "not here" if virtual else "broken", *_parted(error))
        else:
            size = f"{source.format.width}x{source.format.height}"
            source.close()
            yield Check(name, "ok", f"{source.name}: {size} at {float(source.frame_rate):.4g} fps")


def _microphone() -> Iterator[Check]:
    from dped_live.sources.microphone import Microphone

    try:
        microphone = Microphone("default")
    except InputError as error:
        what, _ = _parted(error)
        advice = "plug one in, or name another with --audio-input"
        yield Check("microphone", "not here", what.removeprefix("default: "), advice)
        return
    microphone.close()
    yield Check("microphone", "ok", f"{microphone.name}: gives sound")


def _virtual_camera() -> Iterator[Check]:
    import numpy as np

    from dped_live.live_state import LivePicture, LiveStats
    from dped_live.sinks.virtual_camera import VirtualCameraSink

    loopbacks = sorted(path.name for path in Path("/sys/devices/virtual/video4linux").glob("video*"))
    module = Path("/sys/module/v4l2loopback")
    if loopbacks and find_spec("pyvirtualcam"):
        # Releases before 0.13 may tell no version.
        release, exclusive = (
            path.read_text() if path.exists() else ""
            for path in (module / "version", module / "parameters" / "exclusive_caps")
        )
        if opens_once(release, exclusive):
            what = f"/dev/{loopbacks[0]}; not tried, because v4l2loopback before 0.13 can be used once only"
            yield Check("virtual camera", "ok", what)
            return
    try:
        camera = VirtualCameraSink(1280, 720, 30, None)
    except OutputError as error:
        state: State = "broken" if loopbacks and find_spec("pyvirtualcam") else "not here"
        yield Check("virtual camera", state, *_parted(error, "; " if "; " in str(error) else ": "))
        return
    grey = np.full((720, 1280, 3), 128, np.uint8)
    picture = LivePicture(grey, grey, Fraction(0), time.monotonic())
    camera.write(picture, LiveStats("", 1280, 720, (), "", "", 0, 0, 0, {}, None, None))
    camera.close()
    yield Check("virtual camera", "ok", f"{camera.name}: takes a picture")


def opens_once(release: str, exclusive: str) -> bool:
    """Whether a device of v4l2loopback can be used once only until the module is loaded anew.

    release, exclusive: the kernel's module version, and parameter exclusive_caps ("Y,N,...", one for each device).
    """
    major, minor = (int(number) for number in (*re.findall("[0-9]+", release), "0", "0")[:2])
    return (major, minor) < (0, 13) and exclusive.startswith("Y")


def _weights() -> Iterator[Check]:
    from dped_live import weights

    folder = weights.cache_folder()
    elsewhere = "" if sys.platform in ("darwin", "win32") else ", or set XDG_CACHE_HOME to another"
    # Without it lite does all the jobs: numba, which would keep what it compiles in a cache of its own, does without.
    without = "; models cannot be fetched, and each start may take some seconds longer"
    yield _written("cache folder", folder, f"see to it that you can write to {folder}{elsewhere}", without)
    for name in weights.PUBLISHED:
        where = weights.state(name)
        if where in ("cached", "in DPED_LIVE_WEIGHTS"):
            yield Check(f"model {name}", "ok", where)
        elif where == "not in DPED_LIVE_WEIGHTS":
            yield Check(f"model {name}", "not here", where, "unset DPED_LIVE_WEIGHTS, or see dped-live models")
        else:
            state: State = "broken" if where == "damaged" else "not here"
            yield Check(f"model {name}", state, where, f"dped-live models fetch {name}")
