"""The weights: which models there are, where they come from, how they are fetched, converted, saved and loaded.

A model is loaded by its name (lite is part of the package, DPED's own are fetched), from a .safetensors file that
`save` wrote, or from a TensorFlow checkpoint as the original's train_model.py writes it. A pickle, which can run code,
is never opened, and no weights are used before their checksum is right. Nothing is printed: whoever wants to show what
happens passes callbacks.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dped_live.errors import WeightsError
from dped_live.generator import Generator
from dped_live.network import Network
from dped_live.table_network import TableNetwork
from dped_live.tensor_bundle import read_tensor_bundle

FORMATS = {Generator: "dped-live generator 1", TableNetwork: "dped-live table network 1"}
"""What a file's metadata call the kind of network that it holds."""

TIMEOUT = 30.0
"""Seconds that a server may stay silent."""

Progress = Callable[[str, int, int], None]
"""Called while a model is fetched, with its name, the bytes that have come and the bytes in all."""

Notify = Callable[[str], None]
"""Called with a line for the user when something was wrong and has been dealt with."""

State = Literal["in DPED_LIVE_WEIGHTS", "not in DPED_LIVE_WEIGHTS", "cached", "damaged", "not fetched"]

# What is published.


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of the authors' repository; size in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model of DPED's authors.

    url: the folder on the web that the files are in, at a fixed commit, without a slash at its end.
    files: the two of a TensorFlow checkpoint, the .index first.
    digest: what `digest` gives for the generator made of them.
    """

    name: str
    channels: int
    blocks: int
    url: str
    files: tuple[PublishedFile, PublishedFile]
    digest: str
    licence: str = "the authors name none; so it is not part of dped-live but fetched from their repository"

    @property
    def layers(self) -> int:
        """Convolutions."""
        return 4 + 2 * self.blocks

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in _empty_generator(self.channels, self.blocks).parameters())

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(file.size for file in self.files)


_DPED = "https://raw.githubusercontent.com/aiff22/DPED/ebb01315238430f7c66eaaf84996fcb59877f97f/models_orig"
_CHALLENGE = (
    "https://raw.githubusercontent.com/aiff22/ai-challenge/6d0aa25c84aeeed92f3233f7ee7966159ccc37db/models_pretrained"
)

PUBLISHED = {
    model.name: model
    for model in [
        PublishedModel(
            name="iphone",
            channels=64,
            blocks=4,
            url=_DPED,
            files=(
                PublishedFile(
                    "iphone_orig.index", 1257, "8777e61b30adb8c4e99eb22e5ecca3f80c237e6288dc07c8a3fb7e6fee6865a8"
                ),
                PublishedFile(
                    "iphone_orig.data-00000-of-00001",
                    1605900,
                    "9d289d0914ae0f41ded639e6282e6710ebb79ab8dc23865198c2748d7dc083fc",
                ),
            ),
            digest="ca3478e96499318d450c9eb36693550f560b507b6a7aee34c795837c42fd9430",
        ),
        PublishedModel(
            name="blackberry",
            channels=64,
            blocks=4,
            url=_DPED,
            files=(
                PublishedFile(
                    "blackberry_orig.index", 1257, "e907cd7a93831f9138f1706e6d40b997b18ca4b8afc5a6da5f0d3a2aab8aa0e1"
                ),
                PublishedFile(
                    "blackberry_orig.data-00000-of-00001",
                    1605900,
                    "ec3332ae3e03d4317fd4c88e3f1885c5df8722f34d4142ec8f77025c8b3add82",
                ),
            ),
            digest="5057b18bf3645bfaf4ddaa1209ed9667815a2a6a24b1cd12af096fbc553cafda",
        ),
        PublishedModel(
            name="sony",
            channels=64,
            blocks=4,
            url=_DPED,
            files=(
                PublishedFile(
                    "sony_orig.index", 1257, "5e56d778b4e9149883cc00a79e7f4f5dd2e1ee35e64e3419c64b5433b1891574"
                ),
                PublishedFile(
                    "sony_orig.data-00000-of-00001",
                    1605900,
                    "6338ab1c409a67c99ad5da416051887a63b576c351d8447741c8d378671e3ab8",
                ),
            ),
            digest="5520e0b19cb30640671ec3f16d779758d79f590b0f4e087ab66891df6d36fb5b",
        ),
        PublishedModel(
            name="resnet_8_32",
            channels=32,
            blocks=2,
            url=_CHALLENGE,
            files=(
                PublishedFile(
                    "dped_resnet_8_32.index", 805, "3a30c97bf26c14a8b0ff7bb883a8a9e8ea6ac0bd8ac2361a3f6721f653df94ff"
                ),
                PublishedFile(
                    "dped_resnet_8_32.data-00000-of-00001",
                    285324,
                    "9688357f08e38cc3ab91d43e5edb887c90b532e5b068f0f5685a76a272de47c4",
                ),
            ),
            digest="09d755460a972448eccb57516096b20965ace3e75fd0a90babce59633aaa97fe",
        ),
    ]
}


LITE = "lite"
"""The model of our own, and the default: models/lite.safetensors in this package, made by tools/distil.py."""

NAMES = (LITE, *PUBLISHED)


def lite_path() -> Path:
    return Path(__file__).parent / "models" / "lite.safetensors"


def shape(name: str) -> tuple[int, int] | None:
    """Channels and blocks of the generator of this name, which needs not be here; None for lite, which is none.

    Raises WeightsError.
    """
    if name == LITE:
        return None
    model = _published(name)
    return model.channels, model.blocks


def state(name: str) -> State:
    """Where a published model is now; a file only counts if its checksum is right. Fetches nothing."""
    model = _published(name)
    if folder := _original_folder():
        try:
            _check_original(model, folder)
        except WeightsError:
            return "not in DPED_LIVE_WEIGHTS"
        return "in DPED_LIVE_WEIGHTS"
    if not cache_path(name).exists():
        return "not fetched"
    try:
        _load_cached(model)
    except WeightsError:
        return "damaged"
    return "cached"


def cache_folder() -> Path:
    """Where everything that has been fetched is kept."""
    return platformdirs.user_cache_path("dped-live", appauthor=False) / "weights"


def cache_path(name: str) -> Path:
    """Where a published model is kept once it has been fetched."""
    return cache_folder() / f"{name}.safetensors"


# Loading.


def load(model: str, *, progress: Progress | None = None, notify: Notify | None = None) -> Network:
    """Load a network, for use: in eval mode, float32, on the CPU, its parameters without gradients.

    model: lite, a published name (fetched if it must be), the path of a .safetensors file that `save` wrote, or of a
    TensorFlow checkpoint: its prefix or one of its two files.
    Raises WeightsError if there is no such model, if it is damaged or of another kind, or cannot be fetched.
    """
    if model in PUBLISHED:
        return _load_published(PUBLISHED[model], progress, notify)
    path = lite_path() if model == LITE else Path(model)
    try:
        return _load_path(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def _load_published(model: PublishedModel, progress: Progress | None, notify: Notify | None) -> Generator:
    if folder := _original_folder():
        _check_original(model, folder)
        return _load_checkpoint(_prefix(model, folder))
    if cache_path(model.name).exists():
        try:
            return _load_cached(model)
        except WeightsError:
            if notify:
                notify(f"{cache_path(model.name)} is damaged; {model.name} is fetched anew")
    fetch(model.name, progress=progress)
    return _load_cached(model)


def _load_cached(model: PublishedModel) -> Generator:
    path = cache_path(model.name)
    generator = _load_safetensors(path)
    if not isinstance(generator, Generator) or digest(generator) != model.digest:
        raise WeightsError(f"{path}: not the published weights of {model.name}")
    return generator


def _original_folder() -> Path | None:
    folder = os.environ.get("DPED_LIVE_WEIGHTS")
    return Path(folder) if folder else None


def _check_original(model: PublishedModel, folder: Path) -> None:
    """Raise WeightsError unless the authors' files are in the folder that the user named."""
    for file in model.files:
        path = folder / file.name
        advice = f"put {model.url}/{file.name} into the folder that DPED_LIVE_WEIGHTS names, or unset it"
        try:
            if not path.is_file():
                raise WeightsError(f"{path}: no such file; {advice}")
            if path.stat().st_size != file.size or hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
                raise WeightsError(f"{path}: not the published file, its checksum is another; {advice}")
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def _load_path(path: Path) -> Network:
    prefix = Path(re.sub(r"\.(index|data-[0-9]{5}-of-[0-9]{5})$", "", str(path)))
    if prefix != path or Path(f"{path}.index").is_file():
        return _load_checkpoint(prefix)
    accepted = "a .safetensors file of dped-live or a TensorFlow checkpoint (its .index file)"
    if not path.exists():
        raise WeightsError(f"{path}: no such model or file; give one of {', '.join(NAMES)}, {accepted}")
    if not path.is_file():
        raise WeightsError(f"{path}: not a file; give {accepted}")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    with path.open("rb") as file:
        pickle = file.read(2).startswith((b"PK", b"\x80"))  # torch.save's zip, or the protocol from 2 on
    what = "a pickle, which can run code and is never loaded" if pickle else "not weights"
    raise WeightsError(f"{path}: {what}; give {accepted}")


# Our own format.


def digest(network: Network) -> str:
    """The sha256 of the weights: of the names, shapes and float32 bytes, little endian, of all tensors by name."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(_host_tensors(network).items()):
        sha256.update(f"{name} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.numpy().astype("<f4", copy=False).tobytes())
    return sha256.hexdigest()


def save(network: Network, path: Path, training: Mapping[str, str] | None = None) -> None:
    """Write a network to a .safetensors file, in float32, with its digest.

    training: how it came about, for people; it is written into the header, and `load` takes no notice of it.
    The file at `path` is the old one or the whole new one at any time. Raises WeightsError if it cannot be written.
    """
    metadata = {f"training.{key}": value for key, value in (training or {}).items()} | {
        "format": FORMATS[type(network)],
        "sha256": digest(network),
    }
    if isinstance(network, Generator):
        metadata |= {"channels": str(network.channels), "blocks": str(network.blocks)}
    try:
        replace_file(path, safetensors.torch.save(_host_tensors(network), metadata))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror}") from error


def replace_file(path: Path, content: bytes | bytearray) -> None:
    """Write a file that is the old one or the whole new one at any time. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _host_tensors(network: Network) -> dict[str, Tensor]:
    return {name: tensor.float().cpu().contiguous() for name, tensor in network.state_dict().items()}


def _load_safetensors(path: Path) -> Network:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            network, what = _claimed_network(path, metadata)
            shapes = {name: list(x.shape) for name, x in network.state_dict().items()}
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            if {name: tensor.get_shape() for name, tensor in tensors.items()} != shapes:
                raise _damaged(path, f"it does not hold {what}")
            if any(tensor.get_dtype() != "F32" for tensor in tensors.values()):
                raise _damaged(path, "a tensor is not float32")
            # Copied, because these lie in the file as long as they live, and a file can change.
            weights = {name: file.get_tensor(name).clone() for name in shapes}
    except safetensors.SafetensorError as error:
        raise _damaged(path, "or not a .safetensors file") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    _fill(network, weights, path)
    if digest(network) != metadata.get("sha256"):
        raise _damaged(path, "the checksum is wrong")
    return network


def _claimed_network(path: Path, metadata: Mapping[str, str]) -> tuple[Network, str]:
    """A network of the kind and size that a file says it holds, without memory, and its size in words.

    A file can claim any size, but such a network costs little, and its tensors must be there.
    """
    if metadata.get("format") == FORMATS[TableNetwork]:
        with torch.device("meta"):
            return TableNetwork(), "the tensors of a table network"
    if metadata.get("format") != FORMATS[Generator]:
        formats = " or ".join(map(repr, FORMATS.values()))
        raise WeightsError(f"{path}: not weights of dped-live; give a file whose format is {formats}")
    numbers = [metadata.get("channels", ""), metadata.get("blocks", "")]
    if not all(re.fullmatch("[1-9][0-9]{0,2}", number) for number in numbers):
        raise _damaged(path, "the metadata are wrong")
    channels, blocks = map(int, numbers)
    return _empty_generator(channels, blocks), f"{channels} channels and {blocks} blocks"


def _damaged(path: Path, what: str) -> WeightsError:
    return WeightsError(f"{path}: damaged, {what}; copy it again")


def _empty_generator(channels: int, blocks: int) -> Generator:
    """A generator with shapes but without memory, so that making it takes neither time nor random numbers."""
    with torch.device("meta"):
        return Generator(channels, blocks)


def _fill(network: Network, weights: dict[str, Tensor], path: Path) -> None:
    """Make weights, of the right names and shapes, a part of a network without memory."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: {name} is not finite; the training has failed, use an earlier checkpoint")
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)


# The original's format.


def _load_checkpoint(prefix: Path) -> Generator:
    """Convert a TensorFlow checkpoint of the original's `resnet` (models.py), of any number of channels and blocks.

    Its names: generator/W1, b1, W2 ... are the convolutions, kernels (height, width, in, out). Each norm has two
    nameless variables, its shift and then its scale, which TensorFlow counted: Variable, Variable_1 ... The biases
    before a norm, which cancels them, must be there but are dropped. What else training saves is not read.
    """
    path = Path(f"{prefix}.index")
    pattern = re.compile("generator/([Wb][0-9]{1,3}|Variable(_[0-9]{1,3})?)")
    arrays = read_tensor_bundle(prefix, lambda name: pattern.fullmatch(name) is not None)
    tensors = {name.removeprefix("generator/"): torch.from_numpy(array) for name, array in arrays.items()}

    layers = max((int(name[1:]) for name in tensors if name.startswith("W")), default=0)
    if layers < 6 or layers % 2:
        raise WeightsError(f"{path}: not DPED's generator: {layers} convolutions (generator/W...), not 6, 8, 10 ...")
    norms = layers - 4
    channels = tensors["b1"].numel() if "b1" in tensors else 0
    shapes = _checkpoint_shapes(channels, layers)
    for what, names in (("missing", shapes.keys() - tensors.keys()), ("one too many", tensors.keys() - shapes.keys())):
        if names:
            raise WeightsError(f"{path}: not DPED's generator of {layers} layers: generator/{min(names)} is {what}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise WeightsError(f"{path}: generator/{name} has the shape {tuple(tensors[name].shape)}, not {shape}")

    def kernel(layer: int) -> Tensor:
        return tensors[f"W{layer}"].permute(3, 2, 0, 1).contiguous()

    weights = {
        "first.weight": kernel(1),
        "first.bias": tensors["b1"],
        "norm_shift": torch.stack([tensors[_variable(2 * norm)] for norm in range(norms)]),
        "norm_scale": torch.stack([tensors[_variable(2 * norm + 1)] for norm in range(norms)]),
        "last.weight": kernel(layers),
        "last.bias": tensors[f"b{layers}"],
    }
    for norm in range(norms):
        weights[f"residual.{norm}.weight"] = kernel(2 + norm)
    for index in range(2):
        weights[f"tail.{index}.weight"] = kernel(2 + norms + index)
        weights[f"tail.{index}.bias"] = tensors[f"b{2 + norms + index}"]
    generator = _empty_generator(channels, norms // 2)
    _fill(generator, weights, path)
    return generator


def _variable(index: int) -> str:
    """What TensorFlow calls a nameless variable that `index` others come before."""
    return f"Variable_{index}" if index else "Variable"


def _checkpoint_shapes(channels: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(1, layers + 1):
        size = 9 if layer in (1, layers) else 3
        inputs = 3 if layer == 1 else channels
        outputs = 3 if layer == layers else channels
        shapes[f"W{layer}"] = size, size, inputs, outputs
        shapes[f"b{layer}"] = (outputs,)
    return shapes | {_variable(index): (channels,) for index in range(2 * (layers - 4))}


# Fetching.


def fetch(name: str, *, url: str | None = None, timeout: float = TIMEOUT, progress: Progress | None = None) -> Path:
    """Download a published model, convert it and keep it in the cache, in place of what may be there.

    url: the folder to fetch from instead of the authors'. timeout: seconds that the server may stay silent.
    Returns `cache_path(name)`. Raises WeightsError, and leaves the cache as it was, if the files do not come or are
    not the published ones. Processes that fetch at the same time do not disturb each other.
    """
    model = _published(name)
    url = url or model.url
    path = cache_path(name)
    files = " and ".join(f"{url}/{file.name}" for file in model.files)
    failure = Failure(name, f"put {files} into a folder and set DPED_LIVE_WEIGHTS to it")
    contents: dict[str, bytearray] = {}
    for file in model.files:
        content = contents[file.name] = bytearray()
        for chunk in download(file, url, timeout, failure):
            content += chunk
            if progress:
                progress(name, sum(map(len, contents.values())), model.size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=path.parent) as folder:
            for file_name, content in contents.items():
                Path(folder, file_name).write_bytes(content)
            save(_load_checkpoint(_prefix(model, Path(folder))), path)
    except OSError as error:
        raise failure.because(f"{path.parent} cannot be written: {error.strerror}") from error
    return path


@dataclass(frozen=True, slots=True)
class Failure:
    """What the user is told if something cannot be fetched.

    what: is fetched. advice: how to do without a network.
    """

    what: str
    advice: str

    def because(self, reason: str) -> WeightsError:
        """The error to raise; a part of the reason may be the server's words."""
        reason = "".join(filter(str.isprintable, reason))[:200]
        return WeightsError(f"cannot fetch {self.what} ({reason}): {self.advice}")


def download(file: PublishedFile, url: str, timeout: float, failure: Failure) -> Iterator[bytes]:
    """The bytes of a published file as they come. None may be used before the end, where the checksum is right.

    url: the folder that it is in. timeout: seconds that the server may stay silent.
    Raises the failure. Only what fails in here is the network's fault, and not that of who takes the bytes.
    """
    size, sha256 = 0, hashlib.sha256()
    try:
        with urllib.request.urlopen(f"{url}/{file.name}", timeout=timeout) as response:
            while chunk := response.read1(1 << 16):
                size += len(chunk)
                if size > file.size:
                    raise failure.because(f"{file.name} has more than its {file.size} bytes")
                sha256.update(chunk)
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        raise failure.because(f"{file.name}: the server answers {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise failure.because(f"{file.name}: {getattr(error, 'reason', error)}") from error
    if size < file.size:
        raise failure.because(f"{file.name} ended after {size} of {file.size} bytes")
    if sha256.hexdigest() != file.sha256:
        raise failure.because(f"{file.name} is not the published file, its checksum is another")


def _published(name: str) -> PublishedModel:
    if name == LITE:
        raise WeightsError("lite is part of dped-live, there is nothing to fetch")
    if name not in PUBLISHED:
        raise WeightsError(f"{name}: no such model; there are {', '.join(NAMES)}")
    return PUBLISHED[name]


def _prefix(model: PublishedModel, folder: Path) -> Path:
    """The prefix of a published model's checkpoint in a folder."""
    return folder / model.files[0].name.removesuffix(".index")
