"""TensorRT engines are built, and their layers looked at, on machines without a GPU; their numbers are those of the
network definition. What runs them is tested elsewhere."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from torch import Tensor

from dped_live import cli, weights
from dped_live.backends import engine
from dped_live.backends.engine import EngineKey, Form, Mode, Package, find, installed_package, key_for, read_plan
from dped_live.backends.engine_graph import FORMS, MODES, NETWORKS, Graph, normalised
from dped_live.errors import BackendError
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.statistics import EPSILON

from conftest import random_generator, random_table_network
from network_definition import run

WIDTH, HEIGHT = 1280, 720


@pytest.fixture(scope="module")
def package() -> Package:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install tensorrt-rtx")
    return installed_package("tensorrt_rtx")


@pytest.fixture(scope="module")
def key(package: Package) -> EngineKey:
    """Of a small engine."""
    return key_for(random_generator(), "given", "uint8", 48, 64, package=package, target="8.9")


@pytest.fixture(scope="module")
def built(key: EngineKey, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of that engine."""
    return engine.build(random_generator(), key, tmp_path_factory.mktemp("engines"), go_on).read_bytes()


def go_on(_what: str, _done: int, _steps: int) -> bool:
    return True


# What is built.


@dataclass(frozen=True)
class Layer:
    """As TensorRT lists it. tensors: element type and shape of all that it reads and writes."""

    name: str
    kind: str
    inputs: list[tuple[str, tuple[int, ...]]]
    outputs: list[tuple[str, tuple[int, ...]]]

    @property
    def convolves(self) -> bool:
        return self.kind == "correlation" or "Corr" in self.name

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """Type and channels of the tensors as large as the picture."""
        found = []
        for kind, shape in self.inputs + self.outputs:
            axes = [size for size in shape if size > WIDTH or size not in (WIDTH, HEIGHT, -1)]
            if len(shape) - len(axes) >= 2:
                found.append((kind, math.prod(axes)))
        return found

    @property
    def traffic(self) -> float:
        """Gigabytes of large tensors."""
        size = {"Half": 2, "Float": 4, "UInt8": 1, "Int32": 4}
        tensors = [size[kind] * math.prod(shape) for kind, shape in self.inputs + self.outputs]
        return sum(tensor for tensor in tensors if tensor > 1e6) / 1e9


def layers_of(lines: list[str]) -> list[Layer]:
    found = []
    for line in "\n".join(lines).split("\n"):
        match = re.match(r"Name: (.*?), LayerType: (\w+), Inputs: (.*), Constants: .*?, Outputs: (.*)", line)
        if match:
            name, kind, *ends = match.groups()
            tensors = [
                [
                    (element, tuple(int(size) for size in shape.split(",") if size))
                    for shape, element in re.findall(r"Dimensions: \[(.*?)\].*?Datatype: (\w+)", end)
                ]
                for end in ends
            ]
            found.append(Layer(name, kind, *tensors))
    return found


def built_twice(network: Network, key: EngineKey) -> list[Layer]:
    """The layers of an engine that comes out the same each time."""
    lines: list[str] = []
    first = engine.build_plan(network, key, go_on, lines.append)
    assert engine.build_plan(network, key, go_on, lines.append) == first
    found = layers_of(lines)
    assert found[: len(found) // 2] == found[len(found) // 2 :]
    return found[: len(found) // 2]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mode", ["exact", "given", "measuring"])
def test_a_generator_keeps_to_half(package: Package, mode: Mode, dynamic: bool) -> None:
    network = random_generator(64, 4)
    form = FORMS[mode][0]
    layers = built_twice(network, key_for(network, mode, form, HEIGHT, WIDTH, dynamic, package))
    convolutions = [layer for layer in layers if layer.convolves]
    assert len(convolutions) == 12
    for layer in layers:
        for kind, channels in layer.pictures:
            assert kind == "Half" or (kind, channels) == ("UInt8", 3), layer
    others = [layer for layer in layers if not layer.convolves and layer.pictures]
    ends = 2 + (form == "uint8")  # before the first convolution, after the last, and whether that is finite
    if mode == "given":
        assert len(others) == ends
        assert sum("MulAdd" in layer.name for layer in convolutions) == 8
    else:
        assert len(others) == ends + 3 * 8  # a sum, a sum of squares, the norm itself
        assert sum("Mean" in layer.name for layer in others) == ends - 2 + 2 * 8
    if not dynamic:
        assert sum(layer.traffic for layer in layers) < (3.2 if mode == "given" else 7)


def test_half_costs_no_more_than_bytes(package: Package) -> None:
    network = random_generator(64, 4)
    layers = built_twice(network, key_for(network, "given", "float16", HEIGHT, WIDTH, package=package))
    assert {kind for layer in layers for kind, _ in layer.pictures} == {"Half"}
    assert sum(layer.traffic for layer in layers) < 3.12


def test_the_small_generator(package: Package) -> None:
    network = random_generator(32, 2)
    layers = built_twice(network, key_for(network, "given", "uint8", HEIGHT, WIDTH, package=package))
    assert sum(layer.convolves for layer in layers) == 8
    assert all(kind != "Float" for layer in layers for kind, _ in layer.pictures)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("form", ["uint8", "float16"])
def test_a_table_network_is_a_few_kernels(package: Package, form: Form, dynamic: bool) -> None:
    network = random_table_network()
    layers = built_twice(network, key_for(network, "given", form, HEIGHT, WIDTH, dynamic, package))
    assert sum(layer.convolves for layer in layers) == 3
    assert sum(bool(layer.pictures) for layer in layers) <= (12 if not dynamic else 16)
    if not dynamic:
        assert sum(layer.traffic for layer in layers) < 0.7


def test_a_table_network_takes_its_statistics(package: Package) -> None:
    with pytest.raises(ValueError, match="a TableNetwork has no engine with exact statistics"):
        key_for(random_table_network(), "exact", "uint8", 48, 64, package=package)


def test_bytes_are_not_measured(package: Package) -> None:
    with pytest.raises(ValueError, match="there is no engine with measuring statistics for uint8"):
        key_for(random_generator(), "measuring", "uint8", 48, 64, package=package)


# What it computes.


def computed(
    package: Package, network: Network, mode: Mode, form: Form, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    trt = package.module
    definition = trt.Builder(trt.Logger()).create_network(0)
    graph = Graph(trt, definition, form, -1, -1)  # owns the weights
    NETWORKS[type(network)](graph, network, mode)
    return run(trt, definition, inputs)


def picture(height: int = 45, width: int = 37) -> Tensor:
    """Bytes (1, H, W, 3), smooth and with noise."""
    random = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    rgb = torch.stack((y, x, (x - y).abs()), dim=-1) * 0.9 + 0.1 * torch.rand((height, width, 3), generator=random)
    return (255 * rgb)[None].to(torch.uint8)


def agreement(result: Tensor, expected: Tensor) -> float:
    return -10 * math.log10((result.double() - expected.double()).square().mean().item())


@pytest.mark.parametrize(("mode", "form"), [(mode, form) for mode, forms in FORMS.items() for form in forms])
@pytest.mark.parametrize("kind", ["generator", "table network"])
@torch.inference_mode()
def test_it_computes_what_the_network_does(package: Package, kind: str, mode: Mode, form: Form) -> None:
    network: Network = random_generator(16, 3) if kind == "generator" else random_table_network()
    if mode not in MODES[type(network)]:
        return  # test_a_table_network_takes_its_statistics
    bytes_ = picture()
    rgb = (bytes_.permute(0, 3, 1, 2).float() / 255).half()
    expected, statistics = network.measure(rgb.float())
    inputs = {"image": bytes_ if form == "uint8" else rgb}
    if isinstance(network, Generator) and mode == "given":
        gain, bias = statistics.gain_and_bias(network.norm_scale, network.norm_shift)
        inputs |= {"gain": gain, "bias": bias}
    elif mode == "given":
        inputs["mean"] = statistics.mean[0]
    results = computed(package, network, mode, form, inputs)
    others = {"mean", "variance"} if mode == "measuring" else set()
    if form == "uint8" and kind == "generator":
        others = {"finite"}
        assert results["finite"].isfinite().all()
    assert results.keys() == {"enhanced"} | others
    enhanced = results["enhanced"]
    assert enhanced.dtype == inputs["image"].dtype
    assert enhanced.shape == inputs["image"].shape
    if form == "uint8":
        levels = (expected.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
        assert (enhanced.int() - levels.int()).abs().max() <= 1
        assert (enhanced != levels).float().mean() < 0.1
    else:
        assert agreement(enhanced, expected) > 65
    if mode == "measuring":
        deviation = statistics.variance[0].sqrt()
        assert ((results["mean"] - statistics.mean[0]) / deviation).abs().max() < 2e-3
        assert (results["variance"] / statistics.variance[0] - 1).abs().max() < 2e-3


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (-100, 0.5), (0.02, 0.001), (5, 150)])
@torch.inference_mode()
def test_the_norm(package: Package, mean: float, deviation: float) -> None:
    """It takes deviations from the mean in half: what that loses of a large mean must come back."""
    trt = package.module
    definition = trt.Builder(trt.Logger()).create_network(0)
    graph = Graph(trt, definition, "float16", -1, -1)
    scale, shift = (np.full((1, 3, 1, 1), value, np.float32) for value in (1.5, 0.25))
    for name, part in zip(
        ("y", "mean", "variance"), normalised(graph, graph.image(trt.float16), scale, shift), strict=True
    ):
        graph.output(name, part)
    y = (mean + deviation * torch.randn((1, 3, 50, 60), generator=torch.Generator().manual_seed(0))).half()
    results = run(trt, definition, {"image": y})
    expected_mean, exact = y.double().mean((2, 3), keepdim=True), y.double().var((2, 3), correction=0, keepdim=True)
    expected = (y.double() - expected_mean) / (exact + EPSILON).sqrt() * 1.5 + 0.25
    assert (results["mean"] - expected_mean).abs().max() <= 1e-6 * abs(mean) + 1e-6
    assert ((results["variance"] - exact) / (exact + EPSILON)).abs().max() < 1e-3
    assert (results["y"] - expected).abs().max() < 5e-3


@torch.inference_mode()
def test_a_flat_picture(package: Package) -> None:
    flat = torch.full((1, 3, 20, 20), 0.5).half()
    results = computed(package, random_generator(16, 3), "measuring", "float16", {"image": flat})
    assert results["enhanced"].isfinite().all()
    assert (results["variance"] >= 0).all()


@torch.inference_mode()
def test_bytes_do_not_hide_that_half_overflowed(package: Package) -> None:
    network = random_generator()
    network.first.weight.mul_(1e5)
    results = computed(package, network, "exact", "uint8", {"image": picture()})
    assert results["enhanced"].dtype == torch.uint8
    assert not results["finite"].isfinite().any()


# Which engine it is.


def test_every_part_of_a_key_counts(key: EngineKey) -> None:
    others = (
        *(("weights", "0" * 64), ("network", "table network"), ("graph", "0" * 12), ("statistics", "exact")),
        *(("form", "float16"), ("height", 49), ("width", 65), ("dynamic", True), ("package", "tensorrt")),
        *(("version", "1.7.2"), ("target", "8.6")),
    )
    other = dict(others)
    assert other.keys() == asdict(key).keys()
    names = {replace(key, **{name: value}).file_name for name, value in other.items()}  # type: ignore[arg-type]
    assert len(names | {key.file_name}) == len(other) + 1
    assert key_for(random_generator(seed=1), "given", "uint8", 48, 64, target="8.9") != key


def test_targets(package: Package, key: EngineKey) -> None:
    assert package.target() == "8.0 8.6 8.9 12.0 12.1"
    assert package.target("12.0 8.6 8.6") == "8.6 12.0"
    assert key.target == "8.9"
    with pytest.raises(BackendError) as failure:
        package.target("8.6 9.0")
    assert str(failure.value) == (
        f"tensorrt-rtx {package.version} does not build for compute capability 9.0, only for 7.5, 8.0, 8.6, 8.9, 12.0, "
        "12.1; for others, pip install tensorrt on the machine with the card"
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_turing_cards(package: Package, dynamic: bool) -> None:
    """They are built for only if asked for, and cannot do all that the others can."""
    for network in (random_generator(), random_table_network()):
        for mode in MODES[type(network)]:
            key = key_for(network, mode, FORMS[mode][0], 480, 640, dynamic, package, "7.5")
            assert engine.build_plan(network, key, go_on)


def test_a_target_is_what_is_built_for(package: Package) -> None:
    network = random_generator()
    plans = {
        engine.build_plan(network, key_for(network, "given", "uint8", 48, 64, package=package, target=target), go_on)
        for target in ("8.6", "8.9", "8.6 8.9")
    }
    assert len(plans) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_needs_the_card() -> None:
    with pytest.raises(BackendError) as failure:
        Package("tensorrt", "10.9.0", importlib).target()
    assert str(failure.value) == (
        "tensorrt builds for the card that it runs on, and torch finds none here; "
        "for GeForce and RTX cards, pip install tensorrt-rtx builds anywhere"
    )


def test_sizes_that_cannot_be(package: Package) -> None:
    with pytest.raises(BackendError, match=r"^an engine of 15x15 cannot be built; from 16x16 up it can$"):
        key_for(random_generator(), "given", "uint8", 15, 15, dynamic=True, package=package)
    key = key_for(random_generator(), "given", "uint8", 1 << 31, 1 << 31, package=package)
    start = re.escape(f"tensorrt-rtx {package.version} cannot build the engine ({key}): ")
    with pytest.raises(BackendError, match=f"^{start}\\w.*") as failure:
        engine.build_plan(random_generator(), key, go_on)
    assert "\n" not in str(failure.value)


def test_without_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("tensorrt_rtx", "tensorrt"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError) as failure:
        installed_package()
    assert str(failure.value) == (
        "TensorRT is not installed; type: pip install tensorrt-rtx (GeForce and RTX cards) "
        "or pip install tensorrt (other NVIDIA cards)"
    )
    with pytest.raises(BackendError, match=r"^tensorrt is not installed; type: pip install tensorrt$"):
        installed_package("tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    (tmp_path / "tensorrt_rtx.py").write_text("raise OSError('libtensorrt_rtx.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendError) as failure:
        installed_package()
    assert str(failure.value) == (
        "tensorrt-rtx cannot be loaded (libtensorrt_rtx.so: cannot open shared object file); "
        "type: pip install --force-reinstall tensorrt-rtx"
    )


# Its file.


def test_a_whole_file_is_found(key: EngineKey, built: bytes, tmp_path: Path) -> None:
    assert find(key, [tmp_path, tmp_path / "none"]) is None
    path = tmp_path / key.file_name
    path.write_bytes(built)
    told: list[str] = []
    assert find(key, [tmp_path / "none", tmp_path], told.append) == path
    assert told == []
    assert built.endswith(read_plan(path, key))
    with pytest.raises(BackendError) as failure:
        read_plan(tmp_path / "none", key)
    assert str(failure.value) == f"{tmp_path / 'none'}: no such file; build it anew with dped-live build"


def damage(built: bytes, what: str) -> bytes:
    header, plan = built.split(b"\n", 2)[1:]
    claims = json.loads(header)
    if what == "another version":
        claims["key"]["version"] = "1.0.0"
    elif what == "a key of before":
        del claims["key"]["graph"]
    elif what == "another network":
        claims["key"]["weights"] = "0" * 64
    start = engine.FORMAT + json.dumps(claims).encode() + b"\n"
    return {
        "empty": b"",
        "foreign": os.urandom(1000),
        "a plan alone": plan,
        "no header": engine.FORMAT + b"{]\n" + plan,
        "no key": engine.FORMAT + b"{}\n" + plan,
        "cut off": built[:-1],
        "cut off early": built[: len(engine.FORMAT) + 30],
        "a bit": built[:-1000] + bytes([built[-1000] ^ 1]) + built[-999:],
        "longer": built + b"\0",
    }.get(what, start + plan)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("empty", "not an engine of dped-live"),
        ("foreign", "not an engine of dped-live"),
        ("a plan alone", "not an engine of dped-live"),
        ("no header", "damaged, its header cannot be read"),
        ("no key", "damaged, its header cannot be read"),
        ("cut off", "cut off after {less} of {size} bytes"),
        ("cut off early", "damaged, its header cannot be read"),
        ("a bit", "damaged, its checksum is wrong"),
        ("longer", "damaged, its checksum is wrong"),
        ("another version", "stale, its version is 1.0.0 and not {version}"),
        ("a key of before", "stale, its graph is None and not {graph}"),
        ("another network", "stale, its weights is {zeros} and not {weights}"),
    ],
)
def test_nothing_else_is_trusted(key: EngineKey, built: bytes, tmp_path: Path, what: str, why: str) -> None:
    path = tmp_path / key.file_name
    path.write_bytes(damage(built, what))
    size = len(built.split(b"\n", 2)[2])
    why = why.format(less=size - 1, size=size, zeros="0" * 64, **asdict(key))
    told: list[str] = []
    assert find(key, [tmp_path], told.append) is None
    assert told == [f"{path}: {why}; it is not used"]
    with pytest.raises(BackendError) as failure:
        read_plan(path, key)
    assert str(failure.value) == f"{path}: {why}; build it anew with dped-live build"
    assert engine.build(random_generator(), key, tmp_path, go_on) == path
    assert path.read_bytes() == built


def test_what_is_there_is_not_built_again(key: EngineKey, built: bytes, tmp_path: Path) -> None:
    (tmp_path / key.file_name).write_bytes(built)
    before = (tmp_path / key.file_name).stat().st_ino
    engine.build(random_generator(), key, tmp_path, go_on)
    assert (tmp_path / key.file_name).stat().st_ino == before


def test_progress(key: EngineKey, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []

    def note(what: str, done: int, of: int) -> bool:
        steps.append((what, done, of))
        return True

    engine.build(random_generator(), key, tmp_path, note)
    assert len({what for what, _, _ in steps}) > 3
    assert all(1 <= done <= of for _, done, of in steps)
    (tmp_path / key.file_name).unlink()
    with pytest.raises(KeyboardInterrupt):
        engine.build(random_generator(), key, tmp_path, lambda *_: False)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    engine.build(random_generator(), key, tmp_path, go_on)  # the lock is free


@pytest.mark.parametrize("other_succeeds", [True, False])
def test_one_waits_for_another(key: EngineKey, built: bytes, tmp_path: Path, other_succeeds: bool) -> None:
    other = filelock.FileLock(tmp_path / ".lock")
    other.acquire()
    steps: list[str] = []

    def note(what: str, _done: int, _of: int) -> bool:
        if not steps:
            if other_succeeds:
                (tmp_path / key.file_name).write_bytes(built)
            other.release()
        else:
            with pytest.raises(filelock.Timeout):
                other.acquire(timeout=0)
        steps.append(what)
        return True

    path = engine.build(random_generator(), key, tmp_path, note)
    assert steps[0] == "waiting for another dped-live that builds here"
    assert (len(steps) == 1) == other_succeeds
    assert path.read_bytes() == built
    other.acquire(timeout=0)
    other.release()


@pytest.fixture
def limited_files() -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="needs a limit of the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("limited_files")
def test_no_room(key: EngineKey, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as failure:
        engine.build(random_generator(), key, tmp_path, go_on)
    assert str(failure.value) == (
        f"{tmp_path / key.file_name}: cannot be written: File too large; "
        "make room, or name another folder with dped-live build --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# The command.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights.save(random_generator(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


Build = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def build(model: Path, capsys: pytest.CaptureFixture[str]) -> Build:
    """Runs the command; gives its code, what it printed and what it said."""

    def run_it(*arguments: str | Path) -> tuple[int, list[str], list[str]]:
        code = cli.main(["build", "--model", str(model), *map(str, arguments)])
        printed, said = capsys.readouterr()
        return code, printed.splitlines(), said.splitlines()

    return run_it


def test_the_command(package: Package, build: Build, tmp_path: Path) -> None:
    out = tmp_path / "engines"
    code, printed, said = build("--size", "64x48", "48x64", "--target", "8.9", "--out", out)
    assert code == 0
    assert len(set(printed)) == 10
    assert sorted(map(Path, printed)) == sorted(out.glob("*.engine"))
    key = key_for(random_generator(), "given", "float16", 48, 64, package=package, target="8.9")
    path = out / key.file_name
    assert str(path) in printed
    assert said[0].endswith(
        f": 10 engines of {tmp_path}/small.safetensors for cards of compute capability 8.9, by {package.title}"
    )
    assert said[1] == (
        "dped-live: 1 of 10: generator of 8 channels and 2 blocks, 64x48, uint8, exact statistics; "
        "building it takes some seconds"
    )
    assert re.fullmatch(r"dped-live: built, [\d.]+ MB", said[2])

    path.write_bytes(b"")
    code, again, said = build("--size", "64x48", "48x64", "--target", "8.9", "--out", out)
    assert (code, again) == (0, printed)
    assert f"dped-live: {path}: not an engine of dped-live; it is not used" in said
    assert sum("it is there already" in line for line in said) == 9

    code, again, said = build("--size", "64x48", "--target", "8.9", "--out", tmp_path / "other", "-q")
    assert (code, said) == (0, [])
    for one, other in zip(printed[:5], again, strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


@pytest.mark.usefixtures("package")
def test_engines_for_all_sizes(build: Build, tmp_path: Path) -> None:
    code, printed, said = build("--dynamic", "--target", "8.9", "--out", tmp_path)
    assert code == 0
    assert all("_up_to_1280x720_" in name for name in printed)
    assert "generator of 8 channels and 2 blocks, up to 1280x720, uint8, exact statistics" in said[1]


def test_wrong_usage(package: Package, build: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for size in ("1280", "0x720", "1280x", "1e3x720"):
        with pytest.raises(SystemExit):
            build("--size", size)
        assert f"{size!r} is not a size such as 1280x720" in capsys.readouterr().err
    code, printed, said = build("--target", "9.0", "--out", tmp_path / "out")
    assert (code, printed) == (1, [])
    assert said[0].startswith(f"dped-live: {package.title} does not build for compute capability 9.0")
    code, printed, said = build("--size", "64x48", "--out", tmp_path / "small.safetensors")
    assert (code, printed) == (1, [])
    assert said[-1].endswith(
        ": cannot be written: File exists; make room, or name another folder with dped-live build --out"
    )


def command(model: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "dped_live", "build", "--model", str(model), "--size", "64x48", *map(str, arguments)]


@pytest.mark.usefixtures("package")
def test_two_at_once(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "engines"
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command(model, "--out", out), stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    printed = []
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        printed.append(output.splitlines())
    assert printed[0] == printed[1]
    assert sorted(out.iterdir()) == sorted([out / ".lock", *map(Path, printed[0])])


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.usefixtures("package")
def test_it_can_be_broken_off(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "engines"
    sizes = ["64x48", "1280x720", "1920x1080"]
    arguments = command(model, "--out", out, "--size", *sizes)
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("1 of 15" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert said[-1] == "dped-live: interrupted; the engines that were finished are kept"
    assert {path.suffix for path in out.iterdir()} <= {"", ".engine"}


@pytest.mark.usefixtures("package")
def test_a_folder_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    before = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere")
        before = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]
    out = tmp_path / "engines"
    out.mkdir(mode=0o500)
    result = subprocess.run(
        [*before, *command(model, "--out", out)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(
        rf"dped-live: {re.escape(str(out))}/\w+\.engine: cannot be written: Permission denied; "
        "make room, or name another folder with dped-live build --out",
        result.stderr.splitlines()[-1],
    )
    assert "Traceback" not in result.stderr


def test_where_engines_are_kept() -> None:
    assert engine.engine_folder() == Path(__file__).parents[1] / "engines"
