"""What is OpenVINO's own; tests/test_backends.py holds what it shares with the other backends."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dped_live.backends import Backend, Precision, Runner, Tile, open_backend
from dped_live.errors import BackendError
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.statistics import Statistics

from conftest import load_generator, random_generator, random_table_network

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the openvino package")

GENERATOR = random_generator(16, 2)

# Least agreement with float32 in dB.
RANDOM_WEIGHTS: list[tuple[Precision, float]] = [("fp32", 110), ("bf16", 42), ("int8", 28)]
PUBLISHED_WEIGHTS: list[tuple[Precision, float]] = [("fp32", 100), ("bf16", 60), ("int8", 47)]


def opened(precision: Precision = "fp32", tile: Tile = "auto", generator: Generator = GENERATOR) -> Backend:
    return open_backend(generator, "cpu", precision, tile, runner="openvino")


@pytest.fixture
def module() -> ModuleType:
    """dped_live.backends.openvino, imported as open_backend does it."""
    opened()
    return sys.modules["dped_live.backends.openvino"]


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def decibels(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean() + 1e-20))


@pytest.mark.parametrize("size", [(150, 200), (200, 61), (61, 333), (131, 67), (2, 4000)])
@pytest.mark.parametrize("tile", ["auto", 40])
def test_tiles_of_one_shape_make_the_whole_picture(
    size: tuple[int, int], tile: Tile, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ACTIVATIONS", 4 * 16 * 4 * 7000)
    image, backend = picture(*size), opened(tile=tile)
    with torch.inference_mode():
        statistics = GENERATOR.statistics(image * 0.7)
        expected = GENERATOR(image, statistics)
    assert (backend.enhance(image, statistics) - expected).abs().max() < 5e-6
    assert backend.enhance(image, statistics, out=image) is image
    assert (image - expected).abs().max() < 5e-6
    (shape,) = backend._requests  # type: ignore[attr-defined]
    assert shape[1] * shape[2] <= 7000
    assert shape[1:] != size


@pytest.mark.parametrize(("length", "outer"), [(1, 1), (36, 36), (100, 37), (100, 60), (101, 99), (5000, 93)])
def test_tiles_cover_an_axis_and_have_their_halo(length: int, outer: int, module: ModuleType) -> None:
    halo, covered = 18, list[int]()
    for cut in module._cuts(length, outer, halo):
        pixels = range(length)[cut.place]
        covered += pixels
        seen = range(length)[cut.outer]
        assert len(seen) == outer
        assert list(seen[cut.interior]) == list(pixels)
        assert seen[0] == 0 or seen[0] <= pixels[0] - halo
        assert seen[-1] == length - 1 or seen[-1] >= pixels[-1] + halo
    assert covered == list(range(length))


def test_few_pixels_are_computed_twice(module: ModuleType) -> None:
    for height, width, most in (
        (720, 1280, 500_000),
        (1080, 1920, 976_562),
        (2160, 3840, 976_562),
        (6000, 200, 50_000),
    ):
        tall, wide = module._tile(height, width, 18, most, max(height, width))
        assert tall * wide <= most
        tiles = len(list(module._cuts(height, tall, 18))) * len(list(module._cuts(width, wide, 18)))
        assert tiles * tall * wide < (1.3 if width == 200 else 1.12) * height * width


def test_graphs_are_kept_while_there_is_room(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ACTIVATIONS", 4 * 16 * 4 * 5000)
    backend = opened()
    statistics = GENERATOR.statistics(picture(20, 20))
    for width in (40, 50, 40, 60):
        backend.enhance(picture(40, width), statistics)
    requests = backend._requests  # type: ignore[attr-defined]
    assert list(requests) == [("given", 40, 40), ("given", 40, 60)]
    kept = requests["given", 40, 60]
    backend.enhance(picture(40, 60), GENERATOR.statistics(picture(9, 9)))
    assert requests["given", 40, 60] is kept
    for width in range(1, 9):
        backend.enhance(picture(2, width), statistics)
    assert list(requests) == [("given", 2, width) for width in range(5, 9)]
    backend.statistics(picture(60, 60))  # by torch, whose buffers need the room
    assert not requests


def test_a_picture_s_own_statistics_do_in_any_size(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the graph, by torch, or measured by torch and then given."""
    image = picture(90, 120)
    with torch.inference_mode():
        expected = GENERATOR(image)
    for precision, least in RANDOM_WEIGHTS:
        whole = opened(precision)
        monkeypatch.setattr(module, "_ACTIVATIONS", 4 * 16 * 2 * 6000)
        cut = opened(precision)
        monkeypatch.undo()
        assert decibels(whole.enhance(image), expected) > least
        assert decibels(cut.enhance(image), expected) > least
        kinds = {kind for kind, *_ in cut._requests if _ != [256, 256]}  # type: ignore[attr-defined]
        assert kinds == ({"given"} if precision == "int8" else set())


@pytest.fixture(scope="module")
def photo(shared: Path) -> Tensor:
    with Image.open(shared / "dped" / "reference" / "in" / "astronaut.png") as opened_photo:
        values = np.asarray(opened_photo.convert("RGB"), np.float32)[:160, :240] / 255
    return torch.from_numpy(values).permute(2, 0, 1)[None]


@pytest.fixture
def _published_weights(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped" / "weights"))


@pytest.mark.usefixtures("_published_weights")
@pytest.mark.parametrize("model", ["iphone", "blackberry", "sony"])
def test_the_published_models_are_as_exact_as_is_said(model: str, photo: Tensor) -> None:
    generator = load_generator(model)
    with torch.inference_mode():
        exact, statistics = generator.measure(photo)
    for precision, least in PUBLISHED_WEIGHTS:
        backend = opened(precision, generator=generator)
        assert decibels(backend.enhance(photo, statistics), exact) > least
        assert decibels(backend.enhance(photo), exact) > least


@pytest.mark.usefixtures("_published_weights")
def test_bf16_keeps_the_digits_of_a_picture(photo: Tensor) -> None:
    """Rounding the picture alone leaves 59 dB."""
    generator = load_generator("iphone")
    with torch.inference_mode():
        exact = generator(photo)
    assert decibels(opened("bf16", generator=generator).enhance(photo), exact) > 63


def test_int8_computes_in_8_bits_and_tells_its_error() -> None:
    first, second = opened("int8"), opened("int8")
    assert re.fullmatch(
        r"CPU, int8 by OpenVINO: \d\d dB to float32 on a test picture, up to \d+ levels off", first.description
    )
    assert first.description == second.description
    image = picture(50, 60)
    second.enhance(picture(30, 30))  # ranges come from no picture that was seen
    assert torch.equal(first.enhance(image), second.enhance(image))
    *_, request = first._requests.values()  # type: ignore[attr-defined]
    operations = request.get_compiled_model().get_runtime_model().get_ordered_ops()
    layers = [operation.get_rt_info() for operation in operations]
    precisions = [layer["runtimePrecision"].value for layer in layers if layer["layerType"].value == "Convolution"]
    # The first takes the picture, and the one behind the two blocks their sum.
    assert [kind == "u8" for kind in precisions] == [False, *[True] * 4, False, True, True]


def test_statistics_are_those_of_the_torch_backend() -> None:
    image = picture(70, 80)
    with torch.inference_mode():
        expected = GENERATOR.statistics(image)
    found = opened().statistics(image)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-5, atol=1e-6)


def test_auto_takes_it_and_says_so() -> None:
    backend = open_backend(GENERATOR, "cpu")
    assert re.fullmatch(r"CPU, (fp32|bf16) by OpenVINO: this CPU has .*", backend.description)
    assert "OpenVINO" not in open_backend(random_table_network(), "cpu").description


def test_importing_it_reports_to_nobody() -> None:
    code = (
        "import sys\n"
        "used = []\n"
        "sys.addaudithook(lambda event, _: used.append(event) if event.startswith('socket.') else None)\n"
        "from dped_live.backends import open_backend\n"
        "from dped_live.generator import Generator\n"
        "assert 'openvino' not in sys.modules\n"
        "open_backend(Generator(4, 1), 'cpu', runner='openvino')\n"
        "assert 'openvino' in sys.modules\n"
        "assert not used, used\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no stack of signals")
def test_a_signal_is_survived_after_backends_have_gone() -> None:
    code = (
        "import os, signal, torch\n"
        "from dped_live.backends import open_backend\n"
        "from dped_live.generator import Generator\n"
        "def opened():\n"
        "    backend = open_backend(Generator(4, 1), 'cpu', runner='openvino')\n"
        "    backend.enhance(torch.rand(1, 3, 8, 8))\n"
        "    return backend\n"
        "backends = [opened(), opened(), opened()]\n"
        "while backends:\n"
        "    del backends[0]\n"
        "signal.signal(signal.SIGINT, lambda *arguments: print('interrupted'))\n"
        "os.kill(os.getpid(), signal.SIGINT)"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout) == (0, "interrupted\n"), ran.stderr


def test_without_the_package_the_choice_of_it_fails_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match="not installed; type: pip install openvino"):
        opened()
    with pytest.raises(BackendError, match=r"int8 needs OpenVINO; .* pip install openvino"):
        open_backend(GENERATOR, "cpu", "int8")
    assert "OpenVINO" not in open_backend(GENERATOR, "cpu").description


@pytest.mark.parametrize(
    ("network", "device", "precision", "runner", "message"),
    [
        (GENERATOR, "cuda", "auto", "openvino", "--backend openvino does not run on cuda"),
        (GENERATOR, "cpu", "fp16", "openvino", "use --precision bf16 or fp32"),
        (GENERATOR, "cpu", "int8", "torch", "int8 needs OpenVINO"),
        (GENERATOR, "openvino:TPU", "auto", "auto", "unknown device openvino:TPU: use openvino:GPU"),
        (GENERATOR, "openvino:CPU", "auto", "auto", "unknown device openvino:CPU"),
        (GENERATOR, "openvino:GPU", "auto", "torch", "is for --backend openvino, not torch"),
        (GENERATOR, "openvino:GPU", "int8", "auto", "does not compute in int8; use --precision fp32"),
        (GENERATOR, "openvino:NPU", "fp32", "auto", "does not compute in fp32; use --precision fp16"),
        (GENERATOR, "openvino:GPU.99", "auto", "auto", "no device openvino:GPU.99: OpenVINO finds .*CPU.*--device cpu"),
        (random_table_network(), "cpu", "auto", "openvino", "not those like lite"),
        (random_table_network(), "openvino:GPU", "auto", "auto", "not those like lite"),
        (random_table_network(), "cpu", "int8", "auto", "fp32 only, not in int8"),
    ],
)
def test_a_choice_that_cannot_be_is_an_error(
    network: Network, device: str, precision: Precision, runner: Runner, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(network, device, precision, runner=runner)


def test_a_network_whose_channels_are_silent_can_be_quantised() -> None:
    generator = random_generator(4, 1)
    with torch.no_grad():
        for parameter in generator.first.parameters():
            parameter.zero_()
    statistics = Statistics(torch.zeros(1, 2, 4), torch.ones(1, 2, 4))
    assert opened("int8", generator=generator).enhance(picture(20, 20), statistics).isfinite().all()
