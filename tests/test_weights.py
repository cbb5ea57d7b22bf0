"""Weights: conversion, our own file format, the cache, and downloads from a server on this machine.

What needs a published model's files uses a model of random weights that is added to the table of the published ones;
the tests that take the `shared` fixture use the real ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from dped_live import weights
from dped_live.errors import WeightsError
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.weights import PublishedFile, PublishedModel, digest, load, save

from conftest import random_generator
from test_tensor_bundle import write_bundle

Array = NDArray[np.generic]

INDEX, DATA = "tiny_orig.index", "tiny_orig.data-00000-of-00001"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cached models: an own one, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WIN_PD_OVERRIDE_LOCAL_APPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv("DPED_LIVE_WEIGHTS", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = weights.cache_path("any").parent
    assert folder.is_relative_to(tmp_path)
    return folder


def checkpoint_tensors(generator: Generator) -> dict[str, Array]:
    """What the original's train_model.py would save of this generator, with the biases that do not matter."""
    layers = 4 + 2 * generator.blocks
    convolutions = [generator.first, *generator.residual, *generator.tail, generator.last]
    tensors: dict[str, Array] = {}
    for number, convolution in enumerate(convolutions, 1):
        assert isinstance(convolution, torch.nn.Conv2d)
        tensors[f"generator/W{number}"] = convolution.weight.detach().permute(2, 3, 1, 0).numpy()
        bias = torch.full((generator.channels,), 7.0) if convolution.bias is None else convolution.bias.detach()
        tensors[f"generator/b{number}"] = bias.numpy()
    for norm in range(layers - 4):
        suffix = "" if norm == 0 else f"_{2 * norm}"
        tensors[f"generator/Variable{suffix}"] = generator.norm_shift[norm].detach().numpy()
        tensors[f"generator/Variable_{2 * norm + 1}"] = generator.norm_scale[norm].detach().numpy()
    return tensors


def train_leftovers(tensors: dict[str, Array]) -> dict[str, Array]:
    """What training saves besides: Adam's slots, its powers of beta, and a counter."""
    slots: dict[str, Array] = {
        f"{name}/{slot}": np.zeros_like(tensor) for name, tensor in tensors.items() for slot in ("Adam", "Adam_1")
    }
    scalar = np.array(0.9, np.float32)
    return slots | {
        "beta1_power": scalar,
        "generator/beta2_power": scalar,
        "generator/global_step": np.array(1, np.int64),
    }


def complaint(model: str | Path) -> str:
    """The one line that says why a model cannot be loaded."""
    with pytest.raises(WeightsError) as error:
        load(str(model))
    line = str(error.value)
    assert "\n" not in line
    return line


def assert_same(generator: Network, expected: Generator) -> None:
    assert digest(generator) == digest(expected)
    image = torch.rand(1, 3, 20, 23, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(generator(image), expected(image), rtol=0, atol=1e-5)


# Checkpoints of TensorFlow.


@pytest.mark.parametrize(("channels", "blocks"), [(4, 1), (8, 2), (3, 5)])
def test_a_checkpoint_of_training_is_converted(tmp_path: Path, channels: int, blocks: int) -> None:
    expected = random_generator(channels, blocks)
    tensors = checkpoint_tensors(expected)
    prefix = tmp_path / "iphone_iteration_20000.ckpt"
    write_bundle(prefix, tensors | train_leftovers(tensors))
    for name in (prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001"):
        generator = load(str(name))
        assert (generator.channels, generator.blocks) == (channels, blocks)
        assert_same(generator, expected)


def test_a_loaded_generator_is_for_use(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", checkpoint_tensors(random_generator()))
    before = torch.get_rng_state()
    checkpoint = load(str(tmp_path / "model"))
    save(checkpoint, tmp_path / "model.safetensors")
    for generator in (checkpoint, load(str(tmp_path / "model.safetensors"))):
        assert not generator.training
        for parameter in generator.parameters():
            assert not parameter.requires_grad
            assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu")
            assert parameter.is_contiguous()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", sorted(checkpoint_tensors(random_generator(4, 1))))
def test_every_missing_or_misshapen_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = checkpoint_tensors(random_generator(4, 1))
    original = tensors.pop(name)
    write_bundle(tmp_path / "model", tensors)
    line = complaint(tmp_path / "model")
    assert line.startswith(f"{tmp_path / 'model.index'}: not DPED's generator")
    assert f"{name} is missing" in line or (name == "generator/W6" and "5 convolutions" in line)

    write_bundle(tmp_path / "model", tensors | {name: original[..., :-1]})
    line = complaint(tmp_path / "model")
    assert name in line or name == "generator/b1"  # which says how many channels all the others must have
    assert "has the shape" in line


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["generator/W9"], "9 convolutions"),
        (["generator/W9", "generator/W10"], "generator of 10 layers: generator/Variable_10 is missing"),
        (["generator/W999"], "999 convolutions"),
        (["generator/W01"], "generator of 8 layers: generator/W01 is one too many"),
        (["generator/b9"], "generator of 8 layers: generator/b9 is one too many"),
        (["generator/Variable_8"], "generator of 8 layers: generator/Variable_8 is one too many"),
    ],
)
def test_a_generator_with_more_than_dped_has_is_refused(tmp_path: Path, extra: list[str], expected: str) -> None:
    tensors = checkpoint_tensors(random_generator())
    write_bundle(tmp_path / "model", tensors | {name: np.zeros(8, np.float32) for name in extra})
    assert expected in complaint(tmp_path / "model")


def test_another_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", {"discriminator/W1": np.zeros((3, 3), np.float32)})
    assert "not DPED's generator: 0 convolutions" in complaint(tmp_path / "model.index")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    generator = random_generator()
    with torch.no_grad():
        generator.norm_scale[1, 2] = value
    write_bundle(tmp_path / "model", checkpoint_tensors(generator))
    assert "norm_scale is not finite" in complaint(tmp_path / "model")
    save(generator, tmp_path / "model.safetensors")
    assert "norm_scale is not finite" in complaint(tmp_path / "model.safetensors")


# Our own files.


def test_save_and_load(tmp_path: Path) -> None:
    generator = random_generator(5, 3)
    path = tmp_path / "model.safetensors"
    save(generator, path)
    for module in generator.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    save(generator, path)  # over the other, and from another order in memory
    assert_same(load(str(path)), generator)
    assert [*tmp_path.iterdir()] == [path]


def test_the_digest_tells_weights_apart_and_nothing_else() -> None:
    generator = random_generator()
    expected = digest(generator)
    assert digest(random_generator().train().requires_grad_(False)) == expected
    assert digest(generator.double()) == expected
    with torch.no_grad():
        generator.get_parameter("last.bias")[0] += 1e-6
    assert digest(generator) != expected
    # Pinned, since digests are kept in files: sha256 over names, shapes and values, here of ones.
    ones = Generator(1, 1)
    torch.nn.init.ones_(ones.first.weight)
    sha256 = hashlib.sha256()
    with torch.no_grad():
        for name, shape in [
            ("first.bias", (1,)),
            ("first.weight", (1, 3, 9, 9)),
            ("last.bias", (3,)),
            ("last.weight", (3, 1, 9, 9)),
            ("norm_scale", (2, 1)),
            ("norm_shift", (2, 1)),
            ("residual.0.weight", (1, 1, 3, 3)),
            ("residual.1.weight", (1, 1, 3, 3)),
            ("tail.0.bias", (1,)),
            ("tail.0.weight", (1, 1, 3, 3)),
            ("tail.1.bias", (1,)),
            ("tail.1.weight", (1, 1, 3, 3)),
        ]:
            ones.get_parameter(name).fill_(1)
            sha256.update(f"{name} {shape}\n".encode() + struct.pack("<f", 1) * int(np.prod(shape)))
    assert digest(ones) == sha256.hexdigest()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be written: "):
        save(random_generator(), tmp_path / "missing" / "model.safetensors")
    folder = tmp_path / "model.safetensors"
    folder.mkdir()
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be written: "):
        save(random_generator(), folder)
    assert [*tmp_path.iterdir()] == [folder]


def test_flipped_bits_of_our_file_are_noticed(tmp_path: Path) -> None:
    generator = random_generator(2, 1)
    path = tmp_path / "model.safetensors"
    save(generator, path)
    content = path.read_bytes()
    start = 8 * (8 + int.from_bytes(content[:8], "little"))
    random = Random(4)
    unnoticed = []
    for bit in random.sample(range(start), 2000) + random.sample(range(start, 8 * len(content)), 200):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert digest(load(str(path))) == digest(generator)
            unnoticed.append(bit)
        except WeightsError as error:
            message = str(error)
            if not message.startswith(f"{path}: ") or "\n" in message:
                raise
    # JSON is free about white space.
    assert len(unnoticed) < 20
    assert all(bit < start for bit in unnoticed)


def test_every_truncation_of_our_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(random_generator(2, 1), path)
    content = path.read_bytes()
    for size in [*range(0, 1200, 7), *range(1200, len(content), 101), len(content) - 1]:
        path.write_bytes(content[:size])
        assert complaint(path).startswith(f"{path}: ")
    path.write_bytes(content + b"\0")
    complaint(path)


def rewrite(path: Path, metadata: dict[str, str], **changes: str) -> None:
    """Replace what the file says of itself, without a change to its tensors."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = metadata
    text = json.dumps(header)
    for old, new in changes.items():
        text = text.replace(old, new)
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + content[8 + size :])


def test_what_the_metadata_claim_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    generator = random_generator()
    save(generator, path)
    right = {"format": "dped-live generator 1", "channels": "8", "blocks": "2", "sha256": digest(generator)}
    rewrite(path, right)
    assert_same(load(str(path)), generator)
    for change, expected in [
        ({"format": "dped-live generator 2"}, "not weights of dped-live"),
        ({"format": "dped-live table network 1"}, "does not hold the tensors of a table network"),
        ({"channels": "9"}, "does not hold 9 channels and 2 blocks"),
        ({"blocks": "1"}, "does not hold 8 channels and 1 blocks"),
        ({"channels": "999", "blocks": "999"}, "does not hold 999 channels"),
        ({"channels": "9" * 30}, "metadata are wrong"),
        ({"channels": "-8"}, "metadata are wrong"),
        ({"blocks": "0"}, "metadata are wrong"),
        ({"sha256": "0" * 64}, "checksum is wrong"),
    ]:
        rewrite(path, right | change)
        assert expected in complaint(path)
    for key in right:
        rewrite(path, {name: value for name, value in right.items() if name != key})
        assert complaint(path).startswith(f"{path}: ")
    rewrite(path, right, F32="I32")
    assert "not float32" in complaint(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(3)}, path)
    assert "not weights of dped-live" in complaint(path)


# What is not a model.


class Dangerous:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("zipped", [False, True])
def test_pickles_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    if zipped:
        torch.save(Dangerous(), name)
    else:
        Path(name).write_bytes(pickle.dumps(Dangerous()))
    line = complaint(name)
    assert ("which can run code" in line) == (not name.endswith(".safetensors"))
    assert not Path("executed").exists()


def test_what_does_not_exist_is_answered_with_what_does() -> None:
    for name in ("ipone", "./iphone", "model.pt", "model.safetensors", "a\0b"):
        line = complaint(name)
        assert "no such model or file; give one of lite, iphone, blackberry, sony, resnet_8_32" in line
    assert complaint("model.index").startswith("model.index: no such file")
    assert "File name too long" in complaint("x" * 5000)


def test_what_is_not_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG")
    assert complaint(path).startswith(f"{path}: not weights; give a .safetensors file")
    assert complaint(tmp_path).startswith(f"{tmp_path}: not a file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("pipe.safetensors", "pipe.index", "pipe.pt"):
        os.mkfifo(tmp_path / name)
        assert "a file" in complaint(tmp_path / name) or "no such file" in complaint(tmp_path / name)


# A published model, and where it may be.


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The two files of "tiny", a model that is published as long as a test runs."""
    folder = tmp_path / "original"
    folder.mkdir()
    generator = random_generator()
    write_bundle(folder / "tiny_orig", checkpoint_tensors(generator))
    contents = {name: (folder / name).read_bytes() for name in (INDEX, DATA)}
    index, data = (
        PublishedFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    )
    tiny = PublishedModel("tiny", 8, 2, "http://127.0.0.1:9/nobody-listens", (index, data), digest(generator))
    monkeypatch.setitem(weights.PUBLISHED, "tiny", tiny)
    return contents


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_published_models_are_described() -> None:
    described = {model.name: (model.layers, model.parameters, model.size) for model in weights.PUBLISHED.values()}
    assert described["iphone"] == described["blackberry"] == described["sony"] == (12, 400_963, 1_607_157)
    assert described["resnet_8_32"] == (8, 71_203, 286_129)
    for model in weights.PUBLISHED.values():
        assert model.url.startswith("https://raw.githubusercontent.com/aiff22/")
        assert "licence" not in model.licence
        assert model.licence


def test_the_folder_the_user_names_comes_first(
    tmp_path: Path, cache: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(folder))
    assert weights.state("tiny") == "not in DPED_LIVE_WEIGHTS"
    line = complaint("tiny")
    assert line.startswith(f"{folder / INDEX}: no such file; put http://127.0.0.1:9/nobody-listens/{INDEX} into")

    put(folder, files)
    assert weights.state("tiny") == "in DPED_LIVE_WEIGHTS"
    assert_same(load("tiny"), random_generator())
    assert not cache.exists()

    for damaged in (files[DATA][:-1], bytes(len(files[DATA])), files[DATA] + b"\0"):
        (folder / DATA).write_bytes(damaged)
        assert weights.state("tiny") == "not in DPED_LIVE_WEIGHTS"
        assert complaint("tiny").startswith(f"{folder / DATA}: not the published file")
    (folder / DATA).unlink()
    assert complaint("tiny").startswith(f"{folder / DATA}: no such file")

    monkeypatch.setenv("DPED_LIVE_WEIGHTS", "")
    assert weights.state("tiny") == "not fetched"


def test_what_is_cached_is_used_without_a_network(cache: Path, files: dict[str, bytes]) -> None:  # noqa: ARG001
    cache.mkdir(parents=True)
    save(random_generator(), weights.cache_path("tiny"))
    assert weights.state("tiny") == "cached"
    assert_same(load("tiny"), random_generator())


# Downloads.


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` on the loopback, well or, as `behaviour` says, badly."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.behaviour = "well"
        self.requests: list[str] = []
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/folder"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.respond(self.path.rpartition("/")[2])

    def respond(self, name: str) -> None:
        self.server.requests.append(name)
        content = self.server.files.get(name, b"<html>not found</html>")
        behaviour = self.server.behaviour
        if behaviour == "silent":
            self.server.stopped.wait()
        elif behaviour == "garbage":
            self.wfile.write(b"\x1b[31mSSH-2.0\r\n\r\n")
        elif behaviour == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.wfile = io.BytesIO()
        elif behaviour == "404":
            self.send_error(404, "\x1b[31m")
        elif behaviour.startswith("redirect"):
            self.send_response(302)
            self.send_header("Location", behaviour.partition(" ")[2])
            self.end_headers()
        elif behaviour == "chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(content) + content[: len(content) // 2])
        elif behaviour == "endless":
            self.send_response(200)
            self.end_headers()
            while not self.server.stopped.is_set():
                self.wfile.write(bytes(1 << 16))
        else:
            if behaviour == "wrong":
                content = bytes(len(content))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if behaviour == "short":
                content = content[: len(content) // 2]
            self.wfile.write(content[:100])
            self.wfile.flush()
            if behaviour == "stalls":
                self.server.stopped.wait()
            self.wfile.write(content[100:])


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[Server]:
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
        thread.join()


def test_fetch(server: Server, cache: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    path = weights.fetch("tiny", url=server.url, progress=lambda *call: calls.append(call))
    assert path == cache / "tiny.safetensors"
    assert [*cache.iterdir()] == [path]
    assert server.requests == [INDEX, DATA]
    assert weights.state("tiny") == "cached"
    assert_same(load("tiny"), random_generator())

    total = sum(map(len, server.files.values()))
    assert {(name, size) for name, _, size in calls} == {("tiny", total)}
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    assert len(server.files[INDEX]) in done
    assert done[-1] == total


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("404", f"{INDEX}: the server answers 404"),
        ("short", rf"{INDEX} ended after \d+ of \d+ bytes"),
        ("chunks", rf"{INDEX}: IncompleteRead|{INDEX} ended after"),
        ("wrong", f"{INDEX} is not the published file"),
        ("endless", rf"{INDEX} has more than its \d+ bytes"),
        ("silent", f"{INDEX}: timed out"),
        ("stalls", f"{INDEX}: .*timed out"),
        ("reset", f"{INDEX}: .*reset"),
        ("garbage", f"{INDEX}: .*SSH-2.0"),
        ("redirect file:///etc/passwd", f"{INDEX}: the server answers 302"),
        ("redirect http://127.0.0.1:9/", f"{INDEX}: .*refused"),
        ("redirect /for/ever", f"{INDEX}: the server answers 302"),
    ],
)
def test_a_failed_fetch_says_why_and_what_to_do(server: Server, cache: Path, behaviour: str, reason: str) -> None:
    server.behaviour = behaviour
    start = time.monotonic()
    with pytest.raises(WeightsError, match=rf"^cannot fetch tiny \({reason}") as error:
        weights.fetch("tiny", url=server.url, timeout=0.3)
    assert time.monotonic() - start < 5
    assert str(error.value).endswith(
        f"): put {server.url}/{INDEX} and {server.url}/{DATA} into a folder and set DPED_LIVE_WEIGHTS to it"
    )
    assert str(error.value).isprintable()
    assert not cache.exists() or not [*cache.iterdir()]
    assert weights.state("tiny") == "not fetched"


def test_a_redirect_to_a_page_is_not_taken_for_weights(server: Server) -> None:
    server.files = {}
    with pytest.raises(WeightsError, match=f"{INDEX} ended after 22 of"):
        weights.fetch("tiny", url=server.url)


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_a_callback_that_stops_the_fetch_leaves_nothing(
    server: Server, cache: Path, error: type[BaseException]
) -> None:
    def stop(_: str, done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(error):
        weights.fetch("tiny", url=server.url, progress=stop)
    assert not cache.exists() or not [*cache.iterdir()]


def test_offline_and_without_a_cache_the_error_says_what_to_do(files: dict[str, bytes]) -> None:  # noqa: ARG001
    url = "http://127.0.0.1:9/nobody-listens"
    assert re.match(rf"cannot fetch tiny \({INDEX}: .*refused.*\): put {url}/{INDEX} and", complaint("tiny"))


def test_a_cache_that_cannot_be_written_is_named(server: Server, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where a folder should be")
    with pytest.raises(WeightsError, match=rf"cannot fetch tiny \({cache} cannot be written: .*DPED_LIVE_WEIGHTS"):
        weights.fetch("tiny", url=server.url)


def test_a_url_that_is_none_is_refused(files: dict[str, bytes]) -> None:  # noqa: ARG001
    with pytest.raises(WeightsError, match=rf"^cannot fetch tiny \({INDEX}: unknown url type: 'folder/"):
        weights.fetch("tiny", url="folder")


def test_an_unknown_name_is_not_fetched() -> None:
    with pytest.raises(WeightsError, match="ipone: no such model; there are lite, iphone, blackberry, sony"):
        weights.fetch("ipone")


def point_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server be where "tiny" is published."""
    tiny = weights.PUBLISHED["tiny"]
    monkeypatch.setitem(weights.PUBLISHED, "tiny", PublishedModel("tiny", 8, 2, server.url, tiny.files, tiny.digest))


def test_load_fetches_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(server, monkeypatch)
    calls: list[tuple[str, int, int]] = []
    notes: list[str] = []
    for _ in range(2):
        assert_same(load("tiny", progress=lambda *call: calls.append(call), notify=notes.append), random_generator())
    assert server.requests == [INDEX, DATA]
    assert calls[-1][1] == calls[-1][2]
    assert notes == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "of another model", "a folder's"])
def test_a_damaged_cache_is_fetched_anew(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    point_to(server, monkeypatch)
    path = weights.fetch("tiny")
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "of another model":
        save(random_generator(seed=1), path)
    else:
        path.unlink()
        path.mkdir()
    assert weights.state("tiny") == "damaged"

    notes: list[str] = []
    if damage == "a folder's":  # which cannot be replaced
        with pytest.raises(WeightsError, match="cannot be written"):
            load("tiny", notify=notes.append)
    else:
        assert_same(load("tiny", notify=notes.append), random_generator())
        assert weights.state("tiny") == "cached"
    assert notes == [f"{path} is damaged; tiny is fetched anew"]
    assert [*cache.iterdir()] == [path]


def test_fetches_at_the_same_time_do_not_disturb_each_other(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(server, monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        generators = [*pool.map(load, ["tiny"] * 16)]
    for generator in generators:
        assert digest(generator) == digest(random_generator())
    assert [*cache.iterdir()] == [cache / "tiny.safetensors"]


# The real models.


@pytest.mark.parametrize("name", ["iphone", "blackberry", "sony", "resnet_8_32"])
def test_the_published_models_have_the_pinned_digests(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = weights.PUBLISHED[name]
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped" / "weights"))
    assert weights.state(name) == "in DPED_LIVE_WEIGHTS"
    generator = load(name)
    assert isinstance(generator, Generator)
    assert digest(generator) == model.digest
    assert (generator.channels, generator.blocks) == (model.channels, model.blocks)
    assert sum(parameter.numel() for parameter in generator.parameters()) == model.parameters
    # What the original counts besides: the biases that its norms cancel.
    assert model.parameters + generator.norms * model.channels == {64: 401_475, 32: 71_331}[model.channels]

    save(generator, tmp_path / "model.safetensors")
    assert digest(load(str(tmp_path / "model.safetensors"))) == model.digest


def test_a_real_model_is_fetched_and_converted(shared: Path, server: Server) -> None:
    folder = shared / "dped" / "weights"
    model = weights.PUBLISHED["resnet_8_32"]
    server.files = {file.name: (folder / file.name).read_bytes() for file in model.files}
    weights.fetch("resnet_8_32", url=server.url)
    assert weights.state("resnet_8_32") == "cached"
    assert digest(load("resnet_8_32")) == model.digest
