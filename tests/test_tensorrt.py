"""Engines run by TensorRT: what is said where that cannot be, which engine is taken, and on a card what comes of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dped_live import cli, color, weights
from dped_live.backends import Backend, BytesBackend, Runner, engine, open_backend, tensorrt
from dped_live.backends.engine_graph import NETWORKS, Graph
from dped_live.backends.table import TableBackend
from dped_live.backends.tiled import TiledBackend
from dped_live.backends.torch_module import TorchModuleBackend
from dped_live.enhance import Enhancer
from dped_live.errors import BackendError
from dped_live.frame import PIXEL_FORMATS, PQ, Area, Frame, VideoFormat
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.scene_statistics import ExactPolicy, Normalisation
from dped_live.statistics import Statistics
from dped_live.table_network import TableNetwork

import network_definition
from conftest import random_generator, random_table_network
from test_cli import Said, clean, clip, files, photo, runner

NETWORK = random_generator(8, 1)

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")

NO_DRIVER = (
    "--backend tensorrt: no NVIDIA driver is loaded; install it from https://www.nvidia.com/drivers, or use "
    "--backend torch"
)


@pytest.fixture
def dped_live(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Said]:
    clean(tmp_path, monkeypatch)
    model = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(random_generator(2, 1), model)
    return runner(model, capsys)


def engines(folder: Path, notify: Callable[[str], None], capability: tuple[int, int] = (8, 9)) -> tensorrt.Engines:
    package = engine.installed_package("tensorrt_rtx")
    return tensorrt.Engines(
        NETWORK, torch.device("cuda"), package, capability, required=True, notify=notify, folder=folder
    )


# Refusals.


@without_gpu
@pytest.mark.parametrize("named", ["a.png", "a.mp4"])
def test_without_a_driver_tensorrt_is_refused_in_one_line(dped_live: Callable[..., Said], named: str) -> None:
    if tensorrt._has_driver():
        pytest.skip("there is a driver, and no card that torch can use")
    photo("a.png")
    clip("a.mp4")
    said = dped_live(named, "--backend", "tensorrt", "-o", f"b{Path(named).suffix}")
    assert said.code == 1
    assert said.errors == [f"dped-live: {NO_DRIVER}"]
    assert files() == ["a.mp4", "a.png"]


def test_tensorrt_and_a_cpu_exclude_one_another() -> None:
    with pytest.raises(BackendError, match=r"^--backend tensorrt needs an NVIDIA card; leave out --device cpu, or use"):
        open_backend(NETWORK, "cpu", runner="tensorrt")


@without_gpu
@pytest.mark.parametrize("choice", ["auto", "torch"])
def test_without_a_card_auto_is_what_it_was(choice: Runner) -> None:
    said: list[str] = []
    assert open_backend(NETWORK, notify=said.append, runner=choice).device.type == "cpu"
    assert said == []


@needs_rtx
@pytest.mark.parametrize(
    ("card", "capability", "message"),
    [
        (
            "NVIDIA GeForce GTX 1080",
            (6, 1),
            "TensorRT does not support NVIDIA GeForce GTX 1080 (compute capability 6.1), only cards from 7.5 up; use "
            "--backend torch",
        ),
        (
            "NVIDIA H200",
            (9, 0),
            "{title} does not support NVIDIA H200 (compute capability 9.0); type: pip install tensorrt, or use "
            "--backend torch",
        ),
        (
            "NVIDIA B200",
            (10, 0),
            "{title} does not support NVIDIA B200 (compute capability 10.0); type: pip install tensorrt, or use "
            "--backend torch",
        ),
    ],
)
@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="needs a machine without tensorrt")
def test_a_card_that_is_not_supported_is_named(card: str, capability: tuple[int, int], message: str) -> None:
    with pytest.raises(BackendError) as raised:
        tensorrt.package_for(card, capability)
    assert str(raised.value) == message.format(title=engine.installed_package("tensorrt_rtx").title)


@needs_rtx
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0)])
def test_cards_of_tensorrt_rtx(capability: tuple[int, int]) -> None:
    assert tensorrt.package_for("a card", capability).name == "tensorrt_rtx"


@without_gpu
def test_without_a_card_torch_tensorrt_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(tmp_path, monkeypatch)
    assert cli.main(["build", "--via", "torch-tensorrt", "--out", "engines"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "dped-live: --via torch-tensorrt: it cannot even be loaded without an NVIDIA card, and torch finds none here; "
        "without --via the networks of dped-live are built on any machine"
    ]
    assert files() == []


def test_torch_tensorrt_builds_for_one_size_and_this_card(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["build", "--via", "torch-tensorrt", "--dynamic"])
    assert "leave out --dynamic and --target" in capsys.readouterr().err


# Which engine is taken.


@needs_rtx
def test_what_another_builder_makes_is_kept_by_the_same_rules(tmp_path: Path) -> None:
    key = replace(engines(tmp_path, print)._key("exact", "float16", 20, 20, None), graph="torch-tensorrt 0")
    path = engine.build(NETWORK, key, tmp_path, lambda *_: True, lambda *_: b"a plan")
    assert engine.read_plan(path, key) == b"a plan"
    assert engine.find(engines(tmp_path, print)._key("exact", "float16", 20, 20, None), [tmp_path]) is None


@needs_rtx
def test_a_damaged_engine_is_told_and_not_taken(tmp_path: Path) -> None:
    said: list[str] = []
    ours = engines(tmp_path, said.append)
    assert ours._found("given", "float16", 20, 24) is None
    key = ours._key("given", "float16", 20, 24, None)
    path = ours._newly_built(key)
    assert ours._found("given", "float16", 20, 24) == (path, key)
    assert ours._found("exact", "float16", 20, 24) is None
    whole = path.read_bytes()
    said.clear()
    for damaged, reason in [
        (whole[:-10], "cut off"),
        (whole[:-10] + bytes(10), "its checksum is wrong"),
        (b"something else", "not an engine of dped-live"),
    ]:
        path.write_bytes(damaged)
        assert ours._found("given", "float16", 20, 24) is None
        assert reason in said.pop()
        assert ours._newly_built(key) == path
        assert path.read_bytes() == whole
        said.clear()


@needs_rtx
def test_an_engine_for_larger_pictures_serves_where_there_is_none_for_the_size(tmp_path: Path) -> None:
    ours = engines(tmp_path, lambda _line: None)
    for size in (64, 48, 32):
        ours._newly_built(ours._key("exact", "float16", size, size, None, dynamic=True))
    for (height, width), side in {(20, 20): 32, (20, 40): 48, (48, 48): 48, (33, 16): 48, (64, 50): 64}.items():
        found = ours._found("exact", "float16", height, width)
        assert found is not None
        assert (found[1].height, found[1].dynamic) == (side, True)
    assert ours._found("exact", "float16", 65, 20) is None
    assert ours._found("exact", "float16", 20, 15) is None
    own = ours._newly_built(ours._key("exact", "float16", 20, 20, None))
    found = ours._found("exact", "float16", 20, 20)
    assert found is not None
    assert found[0] == own


@needs_rtx
def test_an_engine_for_this_card_alone_is_taken_too(tmp_path: Path) -> None:
    lines: list[str] = []
    ours, other = engines(tmp_path, lines.append), engines(tmp_path, lines.append, (8, 6))
    path = ours._newly_built(ours._key("exact", "float16", 20, 20, "8.9"))
    found = ours._found("exact", "float16", 20, 20)
    assert found is not None
    assert found[0] == path
    assert other._found("exact", "float16", 20, 20) is None
    turing = engines(tmp_path, lines.append, (7, 5))
    assert turing._key("exact", "float16", 20, 20, turing._targets[0]).target == "7.5"


# What is run, computed layer by layer on a CPU.


class Interpreted(tensorrt.Engines):
    """Engines that are not built; what they are asked to be is computed. used: their modes and forms."""

    def __init__(self, network: Network) -> None:
        super().__init__(
            network,
            torch.device("cpu"),
            engine.installed_package("tensorrt_rtx"),
            (8, 9),
            required=True,
            notify=lambda _line: None,
        )
        self.used: list[tuple[engine.Mode, engine.Form]] = []

    def running(self, statistics: engine.Mode, form: engine.Form, height: int, width: int) -> Any:
        self.used.append((statistics, form))
        return InterpretedEngine(self.package.module, self._network, statistics, form, height, width)


class InterpretedEngine:
    """See RunningEngine."""

    def __init__(
        self, trt: Any, network: Network, statistics: engine.Mode, form: engine.Form, height: int, width: int
    ) -> None:
        self._trt = trt
        self._definition = trt.Builder(trt.Logger()).create_network(0)
        self._graph = Graph(trt, self._definition, form, height, width)  # owns the weights
        NETWORKS[type(network)](self._graph, network, statistics)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        given = {}
        for number in range(self._definition.num_inputs):
            tensor = self._definition.get_input(number)
            buffer = torch.from_numpy(np.empty(tuple(tensor.shape), self._trt.nptype(tensor.dtype)))
            given[tensor.name] = buffer.copy_(inputs[tensor.name])
        assert inputs.keys() == given.keys()
        return network_definition.run(self._trt, self._definition, given)


def interpreted(network: Network) -> tuple[Backend, Interpreted]:
    engines = Interpreted(network)
    cpu = torch.device("cpu")
    if isinstance(network, Generator):
        beside = TorchModuleBackend(network, cpu, torch.float16, "half")
        backend = TiledBackend(tensorrt.TensorRtBackend(network, beside, engines), network, None, lambda _line: None)
        return backend, engines
    assert isinstance(network, TableNetwork)
    return tensorrt.TensorRtTableBackend(TableBackend(network, cpu), engines), engines


RGB = VideoFormat(40, 32, PIXEL_FORMATS["rgb24"])
YUV = VideoFormat(40, 32, PIXEL_FORMATS["yuv420p"], "bt709", full_range=False)
YUV_10 = replace(YUV, pixel_format=PIXEL_FORMATS["yuv420p10le"])
RGB_16 = replace(RGB, pixel_format=PIXEL_FORMATS["rgb48le"])
PQ_8 = replace(RGB, transfer=PQ)


class Fixed(ExactPolicy):
    """Given statistics for all of a picture, or for less than all of it; the first are measured."""

    def __init__(self, statistics: Statistics | None, area: Area | None = None) -> None:
        self._statistics = statistics
        self._area = area

    def normalisation(self, frame: Frame) -> Normalisation:
        return Normalisation(self._statistics, 1, self._area or frame.whole, measured=self._statistics is None)

    def learn(self, measured: Statistics) -> None:
        self._statistics = measured


def frame(fmt: VideoFormat) -> Frame:
    planes = color.from_rgb(picture(fmt.height, fmt.width), fmt)
    return Frame(tuple(plane.numpy() for plane in planes), fmt)


@needs_rtx
@pytest.mark.parametrize("fmt", [RGB, YUV, YUV_10, RGB_16, PQ_8], ids=["rgb", "yuv", "10 bit", "16 bit", "PQ"])
@pytest.mark.parametrize("network", [random_generator(16, 3), random_table_network()], ids=["generator", "table"])
def test_frames_go_as_bytes_or_half_and_come_out_as_in_float32(network: Network, fmt: VideoFormat) -> None:
    backend, engines = interpreted(network)
    exact = open_backend(network, "cpu", "fp32")
    with torch.inference_mode():
        other = network.statistics(picture(40, 40, 1))
    for statistics in (other, None):
        result = Enhancer(backend, fmt, Fixed(statistics)).enhance(frame(fmt))
        truth = Enhancer(exact, fmt, Fixed(statistics)).enhance(frame(fmt))
        step = 1 << (fmt.pixel_format.depth - 8)
        for plane, expected in zip(result.planes, truth.planes, strict=True):
            error = np.abs(plane.astype(float) - expected) / step
            assert error.max() <= 1
            # Of 8 bits one in eight may be rounded to the other side.
            assert np.square(error).mean() < (1 / 8 if fmt.pixel_format.depth == 8 else (255 / 1000) ** 2)
    form = "uint8" if fmt == RGB else "float16"
    measuring = [("measuring", "float16")] if isinstance(network, Generator) else []
    assert engines.used == [("given", form), *measuring, ("given", form)]


@needs_rtx
def test_only_whole_pictures_at_full_strength_go_as_bytes() -> None:
    network = random_generator()
    backend, engines = interpreted(network)
    with torch.inference_mode():
        given = network.statistics(picture(40, 40, 1))
    Enhancer(backend, RGB, Fixed(given), 0.7).enhance(frame(RGB))
    Enhancer(backend, RGB, Fixed(given, Area(4, 28, 0, 40))).enhance(frame(RGB))
    Enhancer(backend, RGB_16, Fixed(given)).enhance(frame(RGB))
    assert engines.used == 3 * [("given", "float16")]
    exact = Enhancer(open_backend(network, "cpu", "fp32"), RGB, ExactPolicy(), before_after=True)
    both = Enhancer(backend, RGB, ExactPolicy(), before_after=True).enhance(frame(RGB)).planes[0]
    assert engines.used[3:] == [("exact", "uint8")]
    assert np.abs(both.astype(int) - exact.enhance(frame(RGB)).planes[0]).max() <= 1


@needs_rtx
def test_a_picture_in_tiles_goes_as_half() -> None:
    network = random_generator()
    beside = TorchModuleBackend(network, torch.device("cpu"), torch.float16, "half")
    engines = Interpreted(network)
    backend = TiledBackend(tensorrt.TensorRtBackend(network, beside, engines), network, 36, lambda _line: None)
    with torch.inference_mode():
        given = network.statistics(picture(40, 40, 1))
    Enhancer(backend, RGB, Fixed(given)).enhance(frame(RGB))
    assert engines.used == 2 * [("given", "float16")]


@needs_rtx
def test_bytes_of_a_picture_that_overflows_in_half_are_computed_again_in_float32() -> None:
    network = random_generator()
    with torch.no_grad():
        network.first.weight.mul_(1e5)
        network.tail[0].weight.mul_(1e-5)  # type: ignore[operator]
    backend, engines = interpreted(network)
    said: list[str] = []
    enhancer = Enhancer(backend, RGB, ExactPolicy(), notify=said.append)
    truth = Enhancer(open_backend(network, "cpu", "fp32"), RGB, ExactPolicy()).enhance(frame(RGB))
    for _ in range(2):
        np.testing.assert_allclose(enhancer.enhance(frame(RGB)).planes[0].astype(int), truth.planes[0], atol=1)
    assert engines.used == 2 * [("exact", "uint8")]
    assert len(said) == 1
    assert said[0].startswith("half precision overflowed in the picture at 0.000 s")


# On a card.


@pytest.fixture(scope="module")
def card() -> engine.Package:
    """What serves the card that there is."""
    reason = "needs a GPU that TensorRT supports, and its package"
    if torch.cuda.is_available() and tensorrt.is_installed():
        try:
            return tensorrt.package_for(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
        except BackendError as error:
            reason = str(error)
    if os.environ.get("DPED_REQUIRE_GPU") == "1":
        pytest.fail(f"DPED_REQUIRE_GPU=1: {reason}")
    pytest.skip(reason)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engine, "engine_folder", lambda: tmp_path)
    return tmp_path


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=random)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """As close as 8 bits tell: 60 dB, and no value off by more than a level."""
    error = (actual.cpu() - expected).abs()
    assert error.max() <= 1 / 255
    assert -10 * torch.log10(error.square().mean()) >= 60


def opened(network: Generator, said: list[str]) -> Backend:
    return open_backend(network, "cuda", tile="off", notify=said.append, runner="tensorrt")


@pytest.mark.usefixtures("card", "folder")
def test_engines_give_what_the_cpu_gives_in_float32() -> None:
    network, image, said = random_generator(64, 4), picture(360, 640), list[str]()
    backend = opened(network, said)
    with torch.inference_mode():
        exact, own = network.measure(image)
        other = network.statistics(picture(200, 200, 1))
        given = network(image, other)
    for _ in range(4):  # the first runs are not from a CUDA graph
        close(backend.enhance(image.cuda()), exact)
        close(backend.enhance(image.cuda(), _on_card(other)), given)
    found = backend.statistics(image.cuda())
    torch.testing.assert_close(found.mean.cpu(), own.mean, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.variance.cpu(), own.variance, rtol=0.02, atol=0.02)
    assert len([line for line in said if line.startswith("building an engine")]) == 3


@pytest.mark.usefixtures("card", "folder")
def test_an_engine_of_lite_s_kind_gives_what_the_cpu_gives() -> None:
    network, image = random_table_network(), picture(360, 640)
    backend = open_backend(network, "cuda", runner="tensorrt")
    with torch.inference_mode():
        expected = network(image)
    close(backend.enhance(image.cuda()), expected)


@pytest.mark.usefixtures("card", "folder")
def test_a_result_belongs_to_the_caller_and_may_replace_the_input() -> None:
    backend = opened(random_generator(), [])
    image = picture(64, 80).cuda()
    first = backend.enhance(image)
    kept = first.clone()
    backend.enhance(picture(64, 80, 1).cuda())
    assert torch.equal(first, kept)
    assert backend.enhance(image, out=image) is image
    assert torch.equal(image, kept)


@pytest.mark.usefixtures("card")
def test_an_engine_is_kept_and_not_built_again(folder: Path) -> None:
    said: list[str] = []
    first = opened(random_generator(), said).enhance(picture(64, 80).cuda())
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.engine")}
    assert len(said) == len(kept) == 1
    assert torch.equal(opened(random_generator(), said).enhance(picture(64, 80).cuda()), first)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.engine")} == kept
    assert len(said) == 1


@pytest.mark.usefixtures("card")
def test_a_plan_that_tensorrt_refuses_is_built_anew_once(folder: Path) -> None:
    """Its checksum is right: it is of another driver, or a fault of ours."""
    said: list[str] = []
    opened(random_generator(), said).enhance(picture(64, 80).cuda())
    (path,) = folder.glob("*.engine")
    whole = path.read_bytes()
    header = json.loads(whole[len(engine.FORMAT) :].partition(b"\n")[0])
    plan = b"not a plan" * 100
    header |= {"size": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    path.write_bytes(engine.FORMAT + json.dumps(header).encode() + b"\n" + plan)
    said.clear()
    opened(random_generator(), said).enhance(picture(64, 80).cuda())
    assert "TensorRT does not take it" in said[0]
    assert said[1].startswith("building an engine")
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("card", "folder")
def test_where_an_engine_cannot_be_built_auto_goes_on_with_torch_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    network, said, image = random_generator(), list[str](), picture(64, 80)
    backend = open_backend(network, "cuda", "fp16", "off", said.append)
    assert isinstance(backend, tensorrt.TensorRtBackend)
    backend._engines._folder = tmp_path / "file"
    with torch.inference_mode():
        expected = network(image)
    for _ in range(2):
        close(backend.enhance(image.cuda()), expected)
    assert [line for line in said if line.endswith("; going on with torch")] == said[-1:]


@pytest.mark.usefixtures("card", "folder")
def test_tiles_go_through_engines() -> None:
    network, image = random_generator(16, 2), picture(400, 400)
    backend = open_backend(network, "cuda", tile=256, runner="tensorrt")
    with torch.inference_mode():
        other = network.statistics(picture(200, 200, 1))
        expected = network(image, other)
    close(backend.enhance(image.cuda(), _on_card(other)), expected)


@pytest.mark.usefixtures("card", "folder")
@pytest.mark.parametrize("network", [random_generator(64, 4), random_table_network()], ids=["generator", "table"])
def test_bytes_go_through_engines(network: Network) -> None:
    backend, image = open_backend(network, "cuda", tile="off", runner="tensorrt"), picture(360, 640)
    assert isinstance(backend, BytesBackend)
    (levels,) = color.from_rgb(image, replace(RGB, width=640, height=360))
    with torch.inference_mode():
        given = network.statistics(picture(200, 200, 1))
        (expected,) = color.from_rgb(network(color.to_rgb([levels], replace(RGB, width=640, height=360)), given), RGB)
    for _ in range(4):  # the first runs are not from a CUDA graph
        enhanced = backend.enhance_bytes(levels.cuda(), _on_card(given))
        assert enhanced is not None
        error = (enhanced[0].cpu().int() - expected.int()).abs()
        assert error.max() <= 1
        assert error.float().mean() < 1 / 8
        assert enhanced[1] is None or bool(enhanced[1])


def _on_card(statistics: Statistics) -> Statistics:
    return Statistics(statistics.mean.cuda(), statistics.variance.cuda())
