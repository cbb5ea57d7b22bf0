"""Pictures of any size, in tiles.

With given statistics the network is local: an output pixel depends on its surroundings, 18 pixels far for the models
of 12 layers. So tiles that bring such a halo with them, cut off at the picture's borders, give exactly the pixels of
the whole picture.

A picture's own statistics can be measured on tiles too. A norm's depend only on those of the norms before it, so for
each norm in turn all tiles go through the network up to it, with the norms before as found, and what they measure is
pooled. This costs 36 residual layers instead of 8; how long it takes is in benchmarks/NOTES.md. A CPU needs next to no
memory where statistics are given (torch_cpu.py), and so goes norm by norm without tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import psutil
import torch
from torch import Tensor

from dped_live.backends import BytesBackend, WholeBackend
from dped_live.errors import TooLargeError
from dped_live.generator import Generator
from dped_live.statistics import Statistics

_HOST_BYTES = 1_000_000_000
"""What a CPU may use for a picture and its activations even if more is free. With Python, torch and the decoder a
process stays below 1.5 GB, and tiles cost no more than a tenth where the statistics are given."""

_PICTURE_BYTES = 48
"""Planned for each pixel beside the activations: RGB in float32 four times, as in the conversion from YUV."""

_TILE_BYTES = 20_000_000
"""No smaller tiles than for so many bytes are planned: 220 pixels a side for the 64 channels of iphone in bf16. A row
of them lies in memory beside the picture."""

_LEAST_SIDE = 64
"""No smaller tiles are tried where memory runs out nevertheless."""


class TiledBackend:
    """Runs another backend norm by norm, and on a picture's tiles, if the picture is too large for it; see
    backends.Backend.

    side: of the tiles; larger pictures are cut. None chooses it by the free memory when a picture of another size
    comes, and halves it whenever memory runs out; `notify` is told of either, once.

    In float32 on a CPU the same statistics give the same bits as without tiles. Measured ones agree to 1e-6.
    """

    def __init__(
        self, backend: WholeBackend, generator: Generator, side: int | None, notify: Callable[[str], None]
    ) -> None:
        self.device = backend.device
        self.shares = backend.shares
        self.description = backend.description if side is None else f"{backend.description}, tiles of {side}x{side}"
        self._backend = backend
        self._generator = generator
        self._norms = generator.norms
        self._channels = generator.channels
        self._halo = generator.halo
        self._reach = generator.reach
        self._fixed_side = side
        self._notify = notify
        self._told: set[str] = set()
        self._size = (0, 0)
        self._side = 0
        self._measures_at_once = False

    @cached_property
    def in_float32(self) -> TiledBackend | None:
        instead = self._backend.in_float32
        return None if instead is None else TiledBackend(instead, self._generator, self._fixed_side, self._notify)

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        self._plan(image)
        if statistics is None:
            if self._measures_at_once:
                try:
                    return self._backend.enhance(image, None, out)
                except TooLargeError as error:
                    self._go_norm_by_norm(error)
            statistics = self._norm_by_norm(image)
        if self._fits(image):
            try:
                return self._backend.enhance(image, statistics, out)
            except TooLargeError as error:
                self._shrink(error)
        with torch.inference_mode():
            result = torch.empty_like(image) if out is None else out
            self._enhance(image, statistics, result)
            return result

    def enhance_bytes(
        self, levels: Tensor, statistics: Statistics | None = None
    ) -> tuple[Tensor, Tensor | None] | None:
        """See backends.BytesBackend; what does not fit goes by `enhance`, and that in tiles."""
        if not isinstance(self._backend, BytesBackend):
            return None
        image = levels.permute(2, 0, 1)[None]
        self._plan(image)
        if self._fits(image):
            try:
                return self._backend.enhance_bytes(levels, statistics)
            except TooLargeError as error:
                self._shrink(error)
        return None

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        self._plan(image)
        if statistics is None:
            if self._measures_at_once:
                try:
                    return self._backend.measure(image)
                except TooLargeError as error:
                    self._go_norm_by_norm(error)
            measured = self._norm_by_norm(image)
            return self.enhance(image, measured), measured
        if self._fits(image):
            try:
                return self._backend.measure(image, statistics)
            except TooLargeError as error:
                self._shrink(error)
        with torch.inference_mode():
            while True:
                try:
                    return self._measure(image, statistics)
                except TooLargeError as error:
                    self._shrink(error)

    def statistics(self, image: Tensor) -> Statistics:
        self._plan(image)
        if self._measures_at_once:
            try:
                return self._backend.statistics(image)
            except TooLargeError as error:
                self._go_norm_by_norm(error)
        return self._norm_by_norm(image)

    def _enhance(self, image: Tensor, statistics: Statistics, result: Tensor) -> None:
        """Row by row of tiles. `result` may be the image: a row of tiles is written when all of it is done, and what
        the next one needs of the picture above it is kept."""
        height = image.shape[2]
        above = image[:, :, :0]
        done = 0
        while done < height:
            rows = next(_spans(height, self._side, self._halo, done))
            try:
                enhanced = self._enhance_row(image, above, rows, statistics)
            except TooLargeError as error:
                self._shrink(error)
                continue
            above = torch.cat((above, image[:, :, rows.place][:, :, -self._halo :]), dim=2)[:, :, -self._halo :]
            result[:, :, rows.place] = enhanced
            done = rows.place.stop

    def _enhance_row(self, image: Tensor, above: Tensor, rows: _Span, statistics: Statistics) -> Tensor:
        """above: the rows of the picture's halo above the row of tiles."""
        enhanced = image.new_empty((1, 3, rows.place.stop - rows.place.start, image.shape[3]))
        for columns in _spans(image.shape[3], self._side, self._halo):
            below = image[:, :, rows.place.start : rows.outer.stop, columns.outer]
            tile = torch.cat((above[..., columns.outer], below), dim=2)
            part = self._backend.enhance(tile, statistics)
            enhanced[..., columns.place] = part[..., rows.interior, columns.interior]
        return enhanced

    def _measure(self, image: Tensor, statistics: Statistics) -> tuple[Tensor, Statistics]:
        result = torch.empty_like(image)
        measured = []
        for tile in _tiles(image, self._side, self._halo):
            enhanced, found = self._backend.measure(image[(..., *tile.outer)], statistics, tile.interior)
            result[(..., *tile.place)] = enhanced[(..., *tile.interior)]
            measured.append((found, tile.pixels))
        return result, _pool(measured)

    def _norm_by_norm(self, image: Tensor) -> Statistics:
        """The picture's own statistics."""
        nothing = torch.empty((1, 0, self._channels), device=self.device)
        found = Statistics(nothing, nothing)
        with torch.inference_mode():
            while found.mean.shape[1] < self._norms:
                try:
                    measured = self._measure_next(image, found)
                except TooLargeError as error:
                    self._shrink(error)
                    continue
                found = Statistics(
                    torch.cat((found.mean, measured.mean), dim=1), torch.cat((found.variance, measured.variance), dim=1)
                )
        return found

    def _measure_next(self, image: Tensor, before: Statistics) -> Statistics:
        halo = self._reach(before.mean.shape[1])
        return _pool(
            [
                (self._backend.measure_next(image[(..., *tile.outer)], before, tile.interior), tile.pixels)
                for tile in _tiles(image, self._side, halo)
            ]
        )

    def _plan(self, image: Tensor) -> None:
        """Choose, when a picture of another size comes, the side of its tiles and how it is measured."""
        height, width = image.shape[2:]
        if self._size == (height, width):
            return
        if self._fixed_side is not None:
            self._side = self._fixed_side
            self._measures_at_once = self._fits(image)
            return
        free = 0.8 * _free_memory(self.device)
        if self.device.type == "cpu":
            free = min(_HOST_BYTES, free)
        pixels = height * width
        free -= _PICTURE_BYTES * pixels
        self._side = self._planned_side(height, width, free)
        self._measures_at_once = self._fits(image) and pixels * self._backend.bytes_per_pixel <= free
        if self._fits(image) and not self._measures_at_once:
            self._tell(
                f"pictures of {width}x{height} are measured norm by norm, which takes five times as long; at once "
                f"needs {self._backend.bytes_per_pixel * pixels / 1e9:.1f} GB more memory"
            )
        self._size = (height, width)  # when all is chosen, for another thread

    def _planned_side(self, height: int, width: int, free: float) -> int:
        """free: bytes for activations, which may be less than none."""
        pixels, needed = height * width, self._backend.bytes_per_pixel_given
        if pixels * needed <= free or needed == 0:
            return max(height, width)
        pixels_at_once = max(free / needed, _TILE_BYTES / (needed + _PICTURE_BYTES))
        side = max(_LEAST_SIDE, math.isqrt(int(pixels_at_once)) - 2 * self._halo)
        self._tell(
            f"pictures of {width}x{height} are enhanced in tiles of {side}x{side}, for a whole one needs "
            f"{needed * pixels / 1e9:.1f} GB more memory"
        )
        return side

    def _fits(self, image: Tensor) -> bool:
        """Whether the picture needs no tiles."""
        return max(image.shape[2:]) <= self._side

    def _go_norm_by_norm(self, error: TooLargeError) -> None:
        """From now on, or raise the error."""
        if self._fixed_side is not None:
            raise error
        self._measures_at_once = False
        self._tell("memory ran out; going on norm by norm")

    def _shrink(self, error: TooLargeError) -> None:
        """Halve the tiles, or raise the error. What it keeps alive on the device is freed when its handler ends."""
        if self._fixed_side or self._side <= _LEAST_SIDE:
            raise error
        self._side = max(_LEAST_SIDE, self._side // 2)
        self._measures_at_once = False
        self._tell("memory ran out; going on in smaller tiles")

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._notify(line)


@dataclass(frozen=True, slots=True)
class _Span:
    """A tile along one axis. place: in the picture; outer: with its halo, in the picture; interior: within outer."""

    place: slice
    outer: slice
    interior: slice


@dataclass(frozen=True, slots=True)
class _Tile:
    place: tuple[slice, slice]
    outer: tuple[slice, slice]
    interior: tuple[slice, slice]

    @property
    def pixels(self) -> int:
        rows, columns = self.place
        return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _tiles(image: Tensor, side: int, halo: int) -> Iterator[_Tile]:
    height, width = image.shape[2:]
    for rows, columns in product(_spans(height, side, halo), _spans(width, side, halo)):
        yield _Tile((rows.place, columns.place), (rows.outer, columns.outer), (rows.interior, columns.interior))


def _spans(length: int, side: int, halo: int, start: int = 0) -> Iterator[_Span]:
    """From `start` on, as few as possible, and equal to a pixel: a narrow rest would be rounded differently (see
    TorchCpuBackend) and mostly be halo."""
    while start < length:
        count = math.ceil((length - start) / side)
        end = min(length, start + math.ceil((length - start) / count))
        first = max(0, start - halo)
        yield _Span(slice(start, end), slice(first, min(length, end + halo)), slice(start - first, end - first))
        start = end


def _pool(parts: Sequence[tuple[Statistics, int]]) -> Statistics:
    """The statistics of a picture from those of its parts and their numbers of pixels, in float64."""
    pixels = torch.tensor([count for _, count in parts], dtype=torch.float64, device=parts[0][0].mean.device)
    share = (pixels / pixels.sum())[:, None, None]
    means = torch.cat([statistics.mean for statistics, _ in parts]).double()
    variances = torch.cat([statistics.variance for statistics, _ in parts]).double()
    mean = (share * means).sum(dim=0, keepdim=True)
    variance = (share * (variances + (means - mean).square())).sum(dim=0, keepdim=True)
    return Statistics(mean.float(), variance.float())


def _free_memory(device: torch.device) -> int:
    if device.type == "cpu":
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info(device)
    # What torch has freed and kept is free to it.
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
