"""VGG-19's features against the original's and against float64 NumPy; its files, which are of random weights here."""

from __future__ import annotations

import copy
import functools
import hashlib
import http.server
import itertools
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.io
import torch
from numpy.typing import NDArray
from torch import Tensor

from dped_live.errors import WeightsError
from dped_live.training import vgg
from dped_live.training.losses import content_loss
from dped_live.training.vgg import Features, load_features
from dped_live.weights import PublishedFile

Array = NDArray[np.float64]
Kernels = list[tuple[NDArray[np.float32], NDArray[np.float32]]]

CHANNELS = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
NUMBERS = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
"""Of the convolutions among all layers."""

BETA16 = ["weights", "pad", "type", "name", "stride"]
LATER = ["name", "type", "weights", "size", "pad", "stride", "precious", "dilate", "opts"]
"""The fields of a convolution in the two published .mat, in their order."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is fetched: an own one, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WIN_PD_OVERRIDE_LOCAL_APPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert vgg.cache_path().is_relative_to(tmp_path)
    return vgg.cache_path().parent


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """Kernels (3, 3, in, out) and biases as MatConvNet stores them, from NumPy's frozen RandomState."""
    result = []
    for number, (ins, outs) in enumerate(itertools.pairwise(CHANNELS)):
        random = np.random.RandomState(200 + number)
        reach = (6 / (9 * ins)) ** 0.5
        kernel = random.uniform(-reach, reach, (3, 3, ins, outs)).astype(np.float32)
        result.append((kernel, random.uniform(-2, 2, (1, outs)).astype(np.float32)))
    return result


def write_mat(path: Path, kernels: Kernels, fields: list[str]) -> None:
    """What MatConvNet publishes: a row of cells with a structure each, its field `weights` a cell of two."""
    cells = np.empty((1, 43), object)
    convolutions = dict(zip(NUMBERS, kernels, strict=True))
    for number in range(43):
        values: dict[str, object] = {field: f"{field} of {number}" for field in fields}
        if number in convolutions:
            weights = np.empty((1, 2), object)
            weights[0, 0], weights[0, 1] = convolutions[number]
            values["weights"] = weights
        else:
            del values["weights"]
        cells[0, number] = np.empty((1, 1), [(field, object) for field in values])
        cells[0, number][0, 0] = tuple(values.values())
    scipy.io.savemat(path, {"layers": cells, "classes": "none", "normalization": np.ones(3)}, appendmat=False)


def state_dict(kernels: Kernels) -> dict[str, Tensor]:
    """What torchvision publishes. `kernels` are taken as the original takes them: first axis columns, second rows."""
    state = {"classifier.6.bias": torch.zeros(1000)}
    for number, (kernel, bias) in zip(NUMBERS, kernels, strict=True):
        state[f"features.{number}.weight"] = torch.from_numpy(kernel).permute(3, 2, 1, 0).contiguous()
        state[f"features.{number}.bias"] = torch.from_numpy(bias[0])
    return state


def save(state: object, path: Path) -> None:
    """In the format of the published file, which is older than torch.save's zip."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.fixture(scope="module")
def files(kernels: Kernels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same weights in every kind of file, with names that say nothing."""
    folder = tmp_path_factory.mktemp("vgg")
    paths = {
        kind: folder / str(number) for number, kind in enumerate(["beta16", "later", "torchvision", "safetensors"])
    }
    write_mat(paths["beta16"], kernels, BETA16)
    write_mat(paths["later"], kernels, LATER)
    save(state_dict(kernels), paths["torchvision"])
    safetensors.torch.save_file(state_dict(kernels), paths["safetensors"])
    yield paths
    shutil.rmtree(folder)  # 320 MB


def publish(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let a file, as it is now, be the published one as long as a test runs."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(vgg, "PUBLISHED", PublishedFile("vgg19.pth", len(content), sha256))
    monkeypatch.setattr(
        vgg, "MATCONVNET_CHECKSUMS", (("sha256", sha256[::-1]), ("md5", hashlib.md5(content).hexdigest()))
    )


@pytest.fixture(scope="module")
def networks(files: dict[str, Path]) -> dict[str, Features]:
    """What is loaded from each of the files."""
    result = {}
    for kind, path in files.items():
        with pytest.MonkeyPatch.context() as monkeypatch:
            publish(monkeypatch, path)
            result[kind] = load_features(path)
    return result


def pictures(height: int = 50, width: int = 37) -> Tensor:
    values = np.random.RandomState(7).uniform(-0.08, 1.08, (2, 3, height, width)).astype(np.float32)
    values[1, :, 20:] = 0.9
    return torch.from_numpy(values)


# The features.


@torch.inference_mode()
def test_the_originals_features(networks: dict[str, Features]) -> None:
    """What `net` of the original's vgg.py gives at relu5_4 for these pictures times 255, and its `loss_content`.

    Run by TensorFlow 2.21 on a CPU with tf.compat.v1.disable_v2_behavior(), on the file that `write_mat` makes of
    `kernels` and the fields BETA16; the other pictures are those of `noise`.
    """
    features = networks["beta16"]
    found = features(pictures())
    assert found.shape == (2, 512, 4, 3)
    assert found.double().sum().item() == pytest.approx(447487.6726, rel=1e-5)
    for (image, row, column), expected in [
        ((0, 0, 0), {3: 151.0572052, 4: 44.57202911, 5: 37.25473785, 6: 0.7210663}),
        ((0, 3, 2), {1: 27.34565163, 3: 108.4329071, 4: 63.10336304, 7: 109.397079}),
        ((1, 2, 1), {3: 40.35417175, 4: 145.0935059, 9: 146.618042, 11: 30.70030403}),
    ]:
        place = found[image, :, row, column]
        assert {channel: place[channel].item() for channel in expected} == pytest.approx(expected, rel=1e-4, abs=1e-3)
    noise = np.random.RandomState(8).uniform(-0.08, 1.08, (2, 3, 50, 37)).astype(np.float32)
    assert content_loss(found, features(torch.from_numpy(noise))).item() == pytest.approx(286.6119, rel=1e-5)


def convolved(x: Array, kernel: Array, bias: Array) -> Array:
    """A 3x3 convolution of (rows, columns, channels) that keeps the size, then ReLU."""
    height, width = x.shape[:2]
    padded, result = np.pad(x, ((1, 1), (1, 1), (0, 0))), np.tile(bias, (height, width, 1))
    for row in range(3):
        for column in range(3):
            result += padded[row : row + height, column : column + width] @ kernel[row, column]
    return np.maximum(result, 0)


def pooled(x: Array, keeps_rest: bool) -> Array:
    height, width = x.shape[:2]
    if keeps_rest:
        x = np.pad(x, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=-np.inf)
    rows, columns = x.shape[0] // 2, x.shape[1] // 2
    return np.asarray(x[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, -1).max((1, 3)))


def expected_features(picture: Array, kernels: Kernels, keeps_rest: bool) -> Array:
    """Of a picture (rows, columns, channels) that is what the weights want."""
    x = picture
    for number, (kernel, bias) in enumerate(kernels):
        if number in (2, 4, 8, 12):
            x = pooled(x, keeps_rest)
        x = convolved(x, kernel.transpose(1, 0, 2, 3).astype(np.float64), bias[0].astype(np.float64))
    return np.asarray(x.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["beta16", "later", "torchvision", "safetensors"])
@torch.inference_mode()
def test_features(networks: dict[str, Features], kernels: Kernels, kind: str) -> None:
    picture = pictures(34, 21)
    rgb = picture[1].permute(1, 2, 0).double().numpy()
    matconvnet = kind in ("beta16", "later")
    if matconvnet:
        wanted = 255 * rgb - [123.68, 116.779, 103.939]
    else:
        wanted = (rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = expected_features(wanted, kernels, keeps_rest=matconvnet)
    found = networks[kind](picture)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())

    features = copy.deepcopy(networks[kind])
    features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = features(picture.to(memory_format=torch.channels_last))[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())


@pytest.mark.parametrize(("size", "by_matconvnet", "by_torchvision"), [(25, 2, 1), (100, 7, 6), (16, 1, 1)])
@torch.inference_mode()
def test_what_does_not_fill_a_window_is_pooled_by_one_and_not_by_the_other(
    networks: dict[str, Features], size: int, by_matconvnet: int, by_torchvision: int
) -> None:
    picture = torch.zeros(1, 3, size, 16)
    assert networks["beta16"](picture).shape == (1, 512, by_matconvnet, 1)
    assert networks["torchvision"](picture).shape == (1, 512, by_torchvision, 1)
    assert networks["beta16"](picture.mT).shape == (1, 512, 1, by_matconvnet)


def test_they_are_frozen_and_pass_gradients_on(networks: dict[str, Features], files: dict[str, Path]) -> None:
    for features in networks.values():
        assert not features.training
        for parameter in features.parameters():
            assert not parameter.requires_grad
            assert (parameter.dtype, parameter.device.type, parameter.is_contiguous()) == (torch.float32, "cpu", True)
    picture = pictures(16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(features(picture).square().mean(), picture)
    assert gradient.isfinite().all()
    assert gradient.any()

    before = torch.get_rng_state()
    load_features(files["safetensors"])
    assert torch.equal(torch.get_rng_state(), before)


@torch.inference_mode()
def test_autocast(networks: dict[str, Features]) -> None:
    features, picture = networks["beta16"], pictures(16, 16)
    expected = features(picture)
    with torch.autocast("cpu", torch.bfloat16):
        found = features(picture)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


# The files.


def complaint(path: Path) -> str:
    """The one line that says why a file cannot be loaded."""
    with pytest.raises(WeightsError) as error:
        load_features(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    return line


@pytest.mark.parametrize("kind", ["beta16", "later", "torchvision"])
def test_what_is_not_the_published_file_is_not_opened(
    tmp_path: Path, cache: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with files[kind].open("rb") as file:
        content = bytearray(file.read(1 << 20))
    path = tmp_path / "file"
    path.write_bytes(content)
    publish(monkeypatch, path)
    content[-1] ^= 1
    path.write_bytes(content)
    line = complaint(path)
    assert "not a published file of VGG-19, its checksum is another, so it is not opened; give https://" in line
    cache.mkdir(parents=True)
    path.rename(vgg.cache_path())
    assert complaint(vgg.cache_path()).endswith("; delete it to have it fetched again")


@pytest.mark.parametrize("kind", ["beta16", "later", "torchvision", "safetensors"])
def test_what_is_cut_off_is_refused(tmp_path: Path, files: dict[str, Path], kind: str) -> None:
    with files[kind].open("rb") as file:
        content = file.read(1 << 20)
    for size in (0, 1, 5, 9, 19, 200, 5000, len(content)):
        (tmp_path / "cut").write_bytes(content[:size])
        complaint(tmp_path / "cut")


class Dangerous:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["vgg19.pth", "vgg19.mat", "vgg19.safetensors"])
@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle", "pickle 0"])
def test_a_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: str) -> None:
    monkeypatch.chdir(tmp_path)
    if protocol.startswith("pickle"):
        Path(name).write_bytes(pickle.dumps(Dangerous(), protocol=0 if protocol == "pickle 0" else None))
    else:
        torch.save(Dangerous(), name, _use_new_zipfile_serialization=protocol == "zip")
    assert ("not opened" if protocol != "pickle 0" else "not weights of VGG-19") in complaint(Path(name))
    if protocol in ("zip", "legacy"):  # not even if it had the right checksum
        publish(monkeypatch, Path(name))
        with pytest.raises(pickle.UnpicklingError, match="mkdir"):
            load_features(Path(name))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"features.34.bias": None}, "not torchvision's VGG-19, 'features.34.bias' is missing"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 4)}, r"layer 0 has \(64, 3, 3, 4\) of torch.float32, not \(64, 3"),
        ({"features.7.bias": torch.zeros(64)}, r"layer 7 has \(64,\) of torch.float32, not \(128,\) of float32"),
        ({"features.5.bias": torch.zeros(128).half()}, r"layer 5 has \(128,\) of torch.float16"),
        ({"features.2.bias": torch.full((64,), torch.nan)}, "damaged: layer 2 is not finite"),
    ],
)
def test_another_network_is_refused(
    tmp_path: Path,
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Tensor | None],
    expected: str,
) -> None:
    state = state_dict(kernels)
    # Layers that are not come to need not be large.
    state |= {name: torch.zeros(1) for name, tensor in state.items() if tensor.numel() > 200_000}
    changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    safetensors.torch.save_file(changed, tmp_path / "file")
    save(changed, tmp_path / "pickle")
    publish(monkeypatch, tmp_path / "pickle")
    for path in (tmp_path / "file", tmp_path / "pickle"):
        with pytest.raises(WeightsError, match=expected):
            load_features(path)


def test_the_pinned_checksum_begins_as_the_name_says() -> None:
    assert vgg.PUBLISHED.name == f"vgg19-{vgg.PUBLISHED.sha256[:8]}.pth"
    assert [len(vgg.PUBLISHED.sha256), *(len(checksum) for _, checksum in vgg.MATCONVNET_CHECKSUMS)] == [64, 64, 32]


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    assert "no such file; give https://download.pytorch.org/models/vgg19-dcbb9e9d.pth, " in complaint(tmp_path / "x")
    assert "not a file" in complaint(tmp_path)
    (tmp_path / "picture.mat").write_bytes(b"\x89PNG")
    assert "not weights of VGG-19" in complaint(tmp_path / "picture.mat")


def test_without_scipy_the_error_says_what_to_type(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, files["beta16"])
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert complaint(files["beta16"]).endswith('only SciPy reads .mat files; run pip install "scipy>=1.14"')


# Fetching. How a download can go wrong is tested with the generator's weights, which come the same way.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address that it is served at."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_fetch_and_find(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    folder, url = server
    (folder / "vgg19.pth").write_bytes(b"weights" * 20_000)
    publish(monkeypatch, folder / "vgg19.pth")
    calls: list[tuple[str, int, int]] = []
    path = vgg.fetch(url=url, progress=lambda *call: calls.append(call))
    assert path == vgg.cache_path() == cache / "vgg19.pth"
    assert path.read_bytes() == b"weights" * 20_000
    assert [*cache.iterdir()] == [path]
    assert calls[-1] == ("VGG-19", 140_000, 140_000)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)

    assert vgg.find(None) == path
    assert vgg.find(folder / "mine") == folder / "mine"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"weighty", "vgg19.pth is not the published file, its checksum is another"),
        (b"weigh", "vgg19.pth ended after 5 of 7 bytes"),
        (b"weights!", "vgg19.pth has more than its 7 bytes"),
        (None, "vgg19.pth: the server answers 404"),
    ],
)
def test_what_is_not_the_published_file_is_not_kept(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, cache: Path, content: bytes | None, reason: str
) -> None:
    folder, url = server
    (folder / "vgg19.pth").write_bytes(b"weights")
    publish(monkeypatch, folder / "vgg19.pth")
    (folder / "vgg19.pth").unlink()
    if content is not None:
        (folder / "vgg19.pth").write_bytes(content)
    with pytest.raises(WeightsError) as error:
        vgg.fetch(url=url)
    advice = f"download {url}/vgg19.pth where there is a network, and add --vgg PATH of it"
    assert str(error.value) == f"cannot fetch VGG-19 ({reason}): {advice}"
    assert not cache.exists()


def test_find_fetches_what_is_not_there(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = server
    (folder / "vgg19.pth").write_bytes(b"weights")
    publish(monkeypatch, folder / "vgg19.pth")
    monkeypatch.setattr(vgg, "URL", url)
    assert vgg.find(None) == vgg.cache_path()
    assert vgg.cache_path().read_bytes() == b"weights"


def test_a_cache_that_cannot_be_written_is_named(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder, url = server
    (folder / "vgg19.pth").write_bytes(b"weights")
    publish(monkeypatch, folder / "vgg19.pth")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where a folder should be")
    with pytest.raises(WeightsError, match=rf"cannot fetch VGG-19 \({cache} cannot be written: .*--vgg PATH"):
        vgg.fetch(url=url)
