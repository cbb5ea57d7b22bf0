"""Table - filter - table: what DPED's network does to the pictures of one scene, nearly, at a thousandth of its work.

    a table of colours    RGB -> three values, by a 3D table that belongs to the scene
    a small filter        each value by a kernel of its own, 9x9, 5x5 and 5x5, then back to RGB by a 3x3 matrix; both
                          belong to the model
    a table of colours    RGB -> RGB, again of the scene

The three values are the colour in a basis of the model's, in which its filters hardly mix: a 9x9 filter from each
channel to each would cost five times as much and be nearer to the network by half a decibel (benchmarks/NOTES.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from dped_live.table_kernels import NARROW, WIDE, Array, as_array, filter_rows, in_parts, look_up, packed

SIDE, USUAL_SIDE = 17, 9
"""Entries of a scene's table, and of a model's usual one, along each axis."""

PARTS = ("basis", "wide", "narrow", "first", "second")
"""What a filter is made of."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The filter of a model, and its usual tables. A value: nobody writes to the arrays.

    basis: (3, 3), from RGB to the three values; its inverse leads back. wide: (9, 9), of the first value; narrow:
    (2, 5, 5), of the others. first, second: (9, 9, 9, 3), tables fitted to many scenes at once, for colours of which a
    scene's samples say nothing. All float32.
    """

    basis: Array
    wide: Array
    narrow: Array
    first: Array
    second: Array

    def __post_init__(self) -> None:
        shapes = tuple(getattr(self, part).shape for part in PARTS)
        table = (USUAL_SIDE,) * 3 + (3,)
        if shapes != ((3, 3), (WIDE, WIDE), (2, NARROW, NARROW), table, table):
            raise ValueError(f"not a filter: shapes {shapes}")

    @property
    def back(self) -> Array:
        """From the three values to RGB."""
        return as_array(np.linalg.inv(self.basis.astype(np.float64)))


@dataclass(frozen=True, slots=True)
class TableFilter:
    """Two tables and the filter between. A value: nobody writes to the arrays.

    first, second: (17, 17, 17, 3), float32, indexed by red, green and blue from 0 to 1, with RGB as entries.
    """

    first: Array
    filter: Filter
    second: Array

    def enhance(self, image: Tensor, out: Tensor | None = None, threads: int = 1) -> Tensor:
        """image: (1, 3, H, W), RGB in [0, 1], float32, on any device. Returns the same shape, not clamped.

        out: written to and returned, instead of new memory; may be the image. threads: used on a CPU, where the work is
        done by table_kernels.py; elsewhere torch does it.
        """
        if image.device.type != "cpu":
            enhanced = self._enhance_by_torch(image)
            return enhanced if out is None else out.copy_(enhanced)
        result = torch.empty_like(image, memory_format=torch.contiguous_format) if out is None else out
        picture = image[0].contiguous()
        # Another layout is written to by a copy.
        target = picture if result.data_ptr() == image.data_ptr() else result[0]
        written = target if target.is_contiguous() else torch.empty_like(picture)
        self._filter(picture.numpy(), written.numpy(), self.second, threads)
        if written.data_ptr() != result.data_ptr():
            result[0] = written
        return result

    def filtered(self, picture: Array) -> Array:
        """picture: (3, H, W). What the second table gets."""
        # A view of another layout would be compiled for anew, while all else waits.
        picture = as_array(picture)
        out = np.empty_like(picture)
        self._filter(picture, out, np.empty((0, 0, 0, 3), np.float32), 1)
        return out

    def of_flat(self, colours: Array) -> Array:
        """colours: (3, P). What becomes of large parts of these colours, which the filter changes by its sum alone."""
        first, second = np.empty_like(colours), np.empty_like(colours)
        look_up(packed(self.first), SIDE, colours, first)
        sums = np.array([kernel.sum() for kernel in (self.filter.wide, *self.filter.narrow)])
        filtered = self.filter.back @ (sums[:, None] * (self.filter.basis @ first))
        look_up(packed(self.second), SIDE, as_array(filtered), second)
        return second

    def towards(self, other: TableFilter, share: float) -> TableFilter:
        """On the way to another of the same filter; share 1 is there."""
        part = np.float32(share)
        return TableFilter(
            self.first + part * (other.first - self.first),
            self.filter,
            self.second + part * (other.second - self.second),
        )

    def _filter(self, picture: Array, out: Array, second: Array, threads: int) -> None:
        table = packed(self.first @ self.filter.basis.T)
        kernels = self.filter.wide, self.filter.narrow[0], self.filter.narrow[1]
        arguments = (SIDE, table, *kernels, self.filter.back, packed(second), out)
        in_parts(filter_rows, picture, WIDE // 2, threads, arguments)

    def _enhance_by_torch(self, image: Tensor) -> Tensor:
        device = image.device
        values = _looked_up(self.first @ self.filter.basis.T, image)
        planes = zip(torch.split(values, 1, dim=1), (self.filter.wide, *self.filter.narrow), strict=True)
        filtered = [_convolved(plane, kernel) for plane, kernel in planes]
        back = torch.from_numpy(self.filter.back).to(device)[:, :, None, None]
        return _looked_up(self.second, F.conv2d(torch.cat(filtered, dim=1), back))


def _looked_up(table: Array, image: Tensor) -> Tensor:
    """As table_kernels.py does it."""
    entries = torch.from_numpy(as_array(table)).to(image.device).reshape(-1, 3)
    places = image[0].clamp(0, 1) * (SIDE - 1)
    cells = places.floor().clamp_max(SIDE - 2)
    # Along the axes in the order of what is left: the largest first.
    within, order = (places - cells).sort(dim=0, descending=True, stable=True)
    steps = torch.tensor([SIDE * SIDE, SIDE, 1], device=image.device)
    corner = (cells.long() * steps[:, None, None]).sum(0)
    low = torch.cat((torch.ones_like(within[:1]), within))
    weights = low - torch.cat((within, torch.zeros_like(within[:1])))
    result = weights[0] * entries[corner].movedim(-1, 0)
    for number in range(3):
        corner = corner + steps[order[number]]
        result += weights[number + 1] * entries[corner].movedim(-1, 0)
    return result[None]


def _convolved(plane: Tensor, kernel: Array) -> Tensor:
    reach = kernel.shape[0] // 2
    padded = F.pad(plane, (reach,) * 4, mode="replicate")
    return F.conv2d(padded, torch.from_numpy(kernel).to(plane.device)[None, None])


def refined(table: Array) -> Array:
    """A table of any side as one of SIDE."""
    out = np.empty((3, SIDE**3), np.float32)
    look_up(packed(table), table.shape[0], as_array(identity().reshape(-1, 3).T), out)
    return as_array(out.T.reshape(SIDE, SIDE, SIDE, 3))


def identity(side: int = SIDE) -> Array:
    """The table that changes nothing."""
    axis = np.linspace(0, 1, side, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


_PACKAGED = Path(__file__).parent / "models" / "filters.safetensors"


def filter_of(model: str) -> Filter | None:
    """The filter of a model, by its name or its file: those of DPED's models ship with the package, another one's lies
    beside it as NAME.filter.safetensors. None if there is none; tools/fit_filter.py makes them.
    """
    packaged = read_filters(_PACKAGED)
    if model in packaged:
        return packaged[model]
    path = filter_path(model)
    return next(iter(read_filters(path).values())) if path.is_file() else None


def filter_path(model: str) -> Path:
    """Where the filter of a model's file lies."""
    return Path(model).with_suffix(".filter.safetensors")


def read_filters(path: Path) -> dict[str, Filter]:
    """By the models' names."""
    arrays = safetensors.numpy.load_file(path)
    names = sorted({name.rpartition(".")[0] for name in arrays})
    return {name: Filter(*(arrays[f"{name}.{part}"] for part in PARTS)) for name in names}


def save_filter(model: str, filter_: Filter) -> Path:
    """Into the package for a name, else beside the model's file. Returns the file."""
    is_file = Path(model).is_file()
    path = filter_path(model) if is_file else _PACKAGED
    several = {} if is_file else read_filters(path)
    several[Path(model).stem if is_file else model] = filter_
    arrays = {f"{name}.{part}": getattr(one, part) for name, one in several.items() for part in PARTS}
    safetensors.numpy.save_file(arrays, path)
    return path
