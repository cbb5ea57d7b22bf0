"""VGG-19 up to relu5_4, whose features the content loss compares (Ignatov et al., section 3.1.3; vgg.py there).

Its weights are published in two files, which make different networks:

    imagenet-vgg-verydeep-19.mat  by MatConvNet, which the original uses. It wants RGB from 0 to 255 minus a mean, and
                                  the original pools as TensorFlow's SAME does: 25 pixels become 13.
    vgg19-dcbb9e9d.pth            by torchvision. It wants RGB in [0, 1], normalised by ImageNet's mean and deviation,
                                  and pools without what does not fill a window: 25 pixels become 12.

Neither is part of dped-live. A pickle can run code, and a damaged .mat makes SciPy crash, so these two are only opened
if they are the published ones to the bit.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dped_live.errors import WeightsError
from dped_live.weights import TIMEOUT, Failure, Progress, PublishedFile, cache_folder, download, replace_file

URL = "https://download.pytorch.org/models"

PUBLISHED = PublishedFile(
    "vgg19-dcbb9e9d.pth", 574_673_361, "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
)
"""torchvision's file. The checksum is the one that several public projects pin; its first digits are in the name."""

MATCONVNET_CHECKSUMS = (
    ("sha256", "abdb57167f82a2a1fbab1e1c16ad9373411883f262a1a37ee5db2e6fb0044695"),
    ("md5", "8ee3263992981a1d26e73b3ca028a123"),
)
"""Of the two published imagenet-vgg-verydeep-19.mat, as public projects pin them: the later one, and the one of
MatConvNet's beta 16, which has the layout that the original reads. Of this only the MD5 is known."""

ACCEPTED = (
    f"{URL}/{PUBLISHED.name}, MatConvNet's imagenet-vgg-verydeep-19.mat, "
    "or a .safetensors file with torchvision's names"
)

CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
"""Of the picture, and of what each convolution returns."""

LAYERS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
"""The numbers of the convolutions in both files, which count ReLU and pooling layers too."""

POOLED = (2, 4, 8, 12)
"""The convolutions, counted alone, that a pooling comes before."""


@dataclass(frozen=True, slots=True)
class Convention:
    """What weights expect of the network around them.

    scale, shift: scale * picture + shift is what they want, for RGB in [0, 1].
    pools_rest: whether pooling keeps the last row and column of an odd size.
    """

    scale: tuple[float, float, float]
    shift: tuple[float, float, float]
    pools_rest: bool


MATCONVNET = Convention((255, 255, 255), (-123.68, -116.779, -103.939), pools_rest=True)
TORCHVISION = Convention(
    (1 / 0.229, 1 / 0.224, 1 / 0.225), (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), pools_rest=False
)

Weights = list[tuple[Tensor, Tensor]]
"""Kernel (out, in, 3, 3) and bias (out,) of each of the 16 convolutions, in their order."""


class Features(nn.Module):
    """VGG-19 (Simonyan and Zisserman 2014, configuration E) up to its last ReLU before the last pooling.

    Frozen: no parameter takes a gradient. The target's features need none at all; torch.no_grad() saves their memory.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, weights: Weights, convention: Convention) -> None:
        super().__init__()
        with torch.device("meta"):  # without memory and random numbers of their own
            self.convolutions = nn.ModuleList(
                nn.Conv2d(ins, outs, 3, padding=1) for ins, outs in itertools.pairwise(CHANNELS)
            )
        for convolution, (kernel, bias) in zip(self.convolutions, weights, strict=True):
            convolution.load_state_dict({"weight": kernel, "bias": bias}, assign=True)
        self.pools_rest = convention.pools_rest
        self.register_buffer("scale", torch.tensor(convention.scale).view(3, 1, 1))
        self.register_buffer("shift", torch.tensor(convention.shift).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """The features of pictures.

        pictures: (N, 3, H, W), RGB in nominal [0, 1], H and W at least 16.
        Returns (N, 512, h, w) with h = H / 16, halved four times and rounded as the weights' convention says; in
        float32, or in the type of autocast.
        """
        x = torch.addcmul(self.shift, pictures, self.scale)
        for number, convolution in enumerate(self.convolutions):
            if number in POOLED:
                x = F.max_pool2d(x, 2, ceil_mode=self.pools_rest)
            x = F.relu_(convolution(x))
        return x


def find(path: Path | None, *, progress: Progress | None = None) -> Path:
    """Where weights are: at the path that the user gives, else in the cache, else fetched into it."""
    if path is not None:
        return path
    return cache_path() if cache_path().exists() else fetch(progress=progress)


def cache_path() -> Path:
    """Where torchvision's file is kept once it has been fetched."""
    return cache_folder() / PUBLISHED.name


def fetch(*, url: str | None = None, timeout: float = TIMEOUT, progress: Progress | None = None) -> Path:
    """Download torchvision's file (575 MB) and keep it in the cache, in place of what may be there.

    url: the folder to fetch from instead of the publisher's. timeout: seconds that the server may stay silent.
    Returns `cache_path()`. Raises WeightsError, and leaves the cache as it was, if the file does not come or is not
    the published one.
    """
    path = cache_path()
    url = url or URL
    failure = Failure("VGG-19", f"download {url}/{PUBLISHED.name} where there is a network, and add --vgg PATH of it")
    content = bytearray()
    for chunk in download(PUBLISHED, url, timeout, failure):
        content += chunk
        if progress:
            progress("VGG-19", len(content), PUBLISHED.size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise failure.because(f"{path.parent} cannot be written: {error.strerror}") from error
    return path


def load_features(path: Path) -> Features:
    """Load VGG-19 from a file, on the CPU. What the file is, its content says and not its name.

    path: one of the two published files (MatConvNet's in either of its two versions), or a .safetensors file with
    torchvision's names (features.0.weight ...). Layers after relu5_4 are not used and may be missing.
    Raises WeightsError if it is no such file, if it is damaged, or if SciPy, which reads .mat, is missing.
    """
    try:
        if not path.exists():
            raise WeightsError(f"{path}: no such file; give {ACCEPTED}")
        if not path.is_file():
            raise WeightsError(f"{path}: not a file; give {ACCEPTED}")
        with path.open("rb") as file:
            start = file.read(20)
        if start.startswith(b"MATLAB 5.0 MAT-file"):
            return Features(_read_matconvnet(path), MATCONVNET)
        if start.startswith((b"\x80", b"PK")):  # torch.save's two formats
            return Features(_read_torchvision(path), TORCHVISION)
        if start[8:9] == b"{":
            return Features(_read_safetensors(path), TORCHVISION)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise WeightsError(f"{path}: not weights of VGG-19; give {ACCEPTED}")


def _read_matconvnet(path: Path) -> Weights:
    try:
        import scipy.io
    except ImportError as error:
        raise WeightsError(f'{path}: only SciPy reads .mat files; run pip install "scipy>=1.14"') from error
    with path.open("rb") as file:
        _verify(path, file, MATCONVNET_CHECKSUMS)
        layers = scipy.io.loadmat(file, variable_names=["layers"])["layers"][0]
    weights = []
    for number in LAYERS:
        # A structure whose fields come in another order in the later version, and a cell of two.
        kernel, bias = layers[number]["weights"][0, 0][0]
        # The original takes the first axis for the columns.
        weights.append((torch.from_numpy(kernel.transpose(3, 2, 1, 0)), torch.from_numpy(bias.ravel())))
    return _validated(path, weights)


def _read_torchvision(path: Path) -> Weights:
    with path.open("rb") as file:
        _verify(path, file, (("sha256", PUBLISHED.sha256),))
        # The published file is in torch.save's first format, which cannot be mapped into memory.
        return _by_name(path, torch.load(file, map_location="cpu", weights_only=True))


def _verify(path: Path, file: io.BufferedReader, checksums: tuple[tuple[str, str], ...]) -> None:
    """Refuse a file with none of these checksums. It stays open, so that no other takes its place before it is read."""
    for algorithm, checksum in checksums:
        file.seek(0)
        if hashlib.file_digest(file, algorithm).hexdigest() == checksum:
            file.seek(0)
            return
    advice = "delete it to have it fetched again" if path == cache_path() else f"give {ACCEPTED}"
    raise WeightsError(
        f"{path}: not a published file of VGG-19, its checksum is another, so it is not opened; {advice}"
    )


def _read_safetensors(path: Path) -> Weights:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("features.")]  # noqa: SIM118 - it is no dict
            # Copied, because these lie in the file as long as they live, and a file can change.
            return _by_name(path, {name: file.get_tensor(name).clone() for name in names})
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: damaged, or not a .safetensors file; copy it again") from error


def _by_name(path: Path, tensors: dict[str, Tensor]) -> Weights:
    try:
        weights = [(tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"]) for number in LAYERS]
    except KeyError as error:
        raise WeightsError(f"{path}: not torchvision's VGG-19, {error} is missing; give {ACCEPTED}") from error
    return _validated(path, weights)


def _validated(path: Path, weights: Weights) -> Weights:
    for number, (kernel, bias), (ins, outs) in zip(LAYERS, weights, itertools.pairwise(CHANNELS), strict=True):
        for tensor, shape in ((kernel, (outs, ins, 3, 3)), (bias, (outs,))):
            if tensor.shape != shape or tensor.dtype != torch.float32:
                found = f"{tuple(tensor.shape)} of {tensor.dtype}"
                raise WeightsError(f"{path}: not VGG-19: layer {number} has {found}, not {shape} of float32")
            if not tensor.isfinite().all():
                raise WeightsError(f"{path}: damaged: layer {number} is not finite; copy it again")
    return weights
