"""How FFmpeg stores a picture <-> the planes of a Frame: which sample of which plane is what. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dped_live.frame import VideoFormat

_PACKED = {
    "rgb24": "rgb",
    "bgr24": "bgr",
    "bgr0": "bgr0",
    "rgba": "rgba",
    "bgra": "bgra",
    "rgb48le": "rgb",
    "rgba64le": "rgba",
    "ya8": "ya",
    "ya16le": "ya",
}
"""Formats whose samples lie side by side in one plane. All others have a plane for each."""

_PLANAR = {"gbra": "gbra", "gbr": "gbr", "yuva": "yuva", "yuv": "yuv", "gray": "y"}
"""The order of the planes, by how the format's name begins."""


def unpack(stored: Sequence[Any], fmt: VideoFormat) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
    """Planes and alpha of a stored picture of fmt.stored_as: views of it, except for RGB in another order.

    stored: its planes, with the buffer interface and a `line_size`, the bytes from row to row.
    """
    samples = _samples(stored, fmt)
    if fmt.pixel_format.kind != "rgb":
        return tuple(samples[name] for name in "yuv" if name in samples), samples.get("a")
    if _PACKED.get(fmt.stored_as, "").startswith("rgb"):
        return (_rows(stored[0], fmt).reshape(fmt.height, fmt.width, -1)[:, :, :3],), samples.get("a")
    return (np.stack([samples[name] for name in "rgb"], axis=2),), samples.get("a")


def pack(planes: Sequence[np.ndarray], alpha: np.ndarray | None, stored: Sequence[Any], fmt: VideoFormat) -> None:
    """Copy planes and alpha into a stored picture of fmt.stored_as, as in unpack; without alpha it becomes opaque."""
    samples = _samples(stored, fmt)
    if fmt.pixel_format.kind == "rgb":
        planes = [planes[0][:, :, channel] for channel in range(3)]
    for name, plane in zip("rgb" if fmt.pixel_format.kind == "rgb" else "yuv", planes, strict=False):
        samples[name][:] = plane
    if "a" in samples:
        samples["a"][:] = (1 << fmt.pixel_format.depth) - 1 if alpha is None else alpha


def _samples(stored: Sequence[Any], fmt: VideoFormat) -> dict[str, np.ndarray]:
    """Views (H, W) of each kind of sample."""
    name, pixel = fmt.stored_as, fmt.pixel_format
    if name in _PACKED:
        whole = _rows(stored[0], fmt).reshape(fmt.height, fmt.width, -1)
        return {sample: whole[:, :, index] for index, sample in enumerate(_PACKED[name])}
    order = next(order for start, order in _PLANAR.items() if name.startswith(start))
    found = {}
    for sample, plane in zip(order, stored, strict=True):
        y, x = (pixel.chroma_shift_y, pixel.chroma_shift_x) if sample in "uv" and pixel.kind == "yuv" else (0, 0)
        found[sample] = _rows(plane, fmt)[: -(-fmt.height >> y), : -(-fmt.width >> x)]
    return found


def _rows(plane: Any, fmt: VideoFormat) -> np.ndarray:
    """The samples of a plane by rows; of a packed one without what follows them."""
    kind = np.dtype(np.uint8 if fmt.pixel_format.depth == 8 else np.uint16)
    rows = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
    packed = _PACKED.get(fmt.stored_as)
    return rows[: fmt.height, : fmt.width * len(packed)] if packed else rows
