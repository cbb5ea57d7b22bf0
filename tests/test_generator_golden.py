"""The generator with the published weights against what the original TensorFlow code gives."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dped_live.backends import Runner, open_backend

from conftest import load_generator

MODELS = ["iphone", "blackberry", "sony"]
PICTURES = ["astronaut", "coffee", "odd101x67", "tiny16x16"]


@pytest.fixture(autouse=True)
def _published_weights(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped" / "weights"))


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def enhance(model: str, picture: NDArray[np.uint8], runner: Runner | None = None) -> NDArray[np.float32]:
    """As test_model.py: the bytes are made float16 and divided by 255 in float16; the rest is float32.

    runner: of the backend that is given the statistics; None: the generator itself.
    """
    values = torch.from_numpy((picture.astype(np.float16) / np.float16(255)).astype(np.float32)).permute(2, 0, 1)[None]
    generator = load_generator(model)
    with torch.inference_mode():
        if runner is None:
            enhanced = generator(values)
        else:
            backend = open_backend(generator, "cpu", "fp32", runner=runner)
            enhanced = backend.enhance(values, generator.statistics(values))
    return np.asarray(enhanced[0].permute(1, 2, 0).numpy(), np.float32)


def to_bytes(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    return levels


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("runner", [None, "openvino"])
def test_the_output_is_the_originals(shared: Path, model: str, picture: str, runner: Runner | None) -> None:
    if runner == "openvino" and find_spec("openvino") is None:
        pytest.skip("needs the openvino package")
    reference = shared / "dped" / "reference"
    enhanced = enhance(model, read(reference / "in" / f"{picture}.png"), runner)

    expected = read(reference / "out" / f"{model}_{picture}.png")
    difference = np.abs(to_bytes(enhanced).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.002

    floats = reference / "out" / f"{model}_{picture}.npy"
    if floats.exists():
        np.testing.assert_allclose(enhanced, np.load(floats, allow_pickle=False), rtol=0, atol=1e-4)


def test_the_small_model_enhances_phone_pictures(shared: Path) -> None:
    """There is no output of the original for resnet_8_32: it must bring phone pictures nearer to the camera's."""
    before, after = 0.0, 0.0
    for path in sorted((shared / "dped" / "patches" / "iphone").iterdir())[:50]:
        phone, camera = read(path), read(path.parents[1] / "canon" / path.name) / np.float32(255)
        before += np.square(phone / np.float32(255) - camera).mean()
        after += np.square(enhance("resnet_8_32", phone).clip(0, 1) - camera).mean()
    # 3.95 dB; with the norms in a wrong order 1.9, with shift and scale exchanged -2.8.
    assert 10 * np.log10(before / after) > 3.5
