"""The generator on a CPU, in bands of rows that stay in the processor's caches.

Run frame by frame and layer by layer, the network spends most of its time on memory: 64 channels at 1080p are half a
gigabyte in float32, and every fresh output of a layer is page-faulted in. Here two buffers live as long as the frame
size does, and each layer walks down the picture band by band: normalise the band's input in place, convolve it, sum
its output while that is still in cache, store it.

    x   the input of a residual block and, after the block, its sum
    r   what is on the way through a block

A convolution from x to r disturbs nothing. One from r to r would overwrite the row that the next band needs as the
neighbour of its first; so its output is stored one row higher than its input, and `top` says where row 0 of the
picture lies in r. Rows above and below the picture are zero: they are the padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dped_live.errors import TooLargeError
from dped_live.generator import TANH_OFFSET, TANH_SCALE, WHOLE, Generator, Region
from dped_live.statistics import EPSILON, Statistics, unfolded

_BAND_BYTES = 4 << 20
"""One band's activations. A few megabytes share the last-level cache with the band's output; measured in
benchmarks/NOTES.md."""


_SUM_PIXELS = {torch.float32: 1 << 10, torch.bfloat16: 1 << 14}
"""At most so many go into one float32 sum of the statistics. In float32 these then agree to 1e-6, however a picture is
cut; bf16 values are not worth the calls, which cost a tenth of its time."""


class TorchCpuBackend:
    """Runs a generator on the CPU; see backends.Backend.

    precision: torch.float32 or torch.bfloat16, for weights and activations. Sums, statistics, tanh and the result
    are float32 or better in both. The buffers stay allocated for pictures as large as the largest so far.
    """

    device = torch.device("cpu")
    in_float32 = None

    def __init__(self, generator: Generator, precision: torch.dtype, description: str = "CPU") -> None:
        self.description = description
        self.bytes_per_pixel = 2 * generator.channels * precision.itemsize  # x and r
        self._precision = precision
        self._channels = generator.channels
        self._norms = generator.norms
        self._scale = generator.norm_scale.detach().double()
        self._shift = generator.norm_shift.detach().double()
        # Full-precision weights of the residual blocks: statistics are folded into them before rounding.
        self._residual = [weight.detach() for weight in generator.residual_weights]
        self._first = self._weights(generator.first.weight, generator.first.bias)
        self._tail = [self._weights(c.weight, c.bias) for c in generator.tail if isinstance(c, nn.Conv2d)]
        self._last = self._weights(*four_pixels_at_once(generator.last.weight, generator.last.bias))
        # A layer from r to r moves the picture up by a row; there are B + 1 of them, then a 9x9 layer reads 4 above.
        self._margin = generator.blocks + 1 + 4
        self._memory = torch.empty(0, dtype=precision)

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            self._buffers(*image.shape[2:])  # refuses what is too large, before anything else is allocated
            result = torch.empty(image.shape) if out is None else out
            for _ in self._run(image, result, statistics, measured=statistics is None):
                pass
            return result

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        with torch.inference_mode():
            self._buffers(*image.shape[2:])
            result = torch.empty(image.shape)
            return result, _as_statistics(self._run(image, result, statistics, interior=interior))

    def statistics(self, image: Tensor) -> Statistics:
        with torch.inference_mode():
            # No result is needed, for the run is left after the last norm.
            return _as_statistics(islice(self._run(image, image, None), self._norms))

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        norm = before.mean.shape[1]
        with torch.inference_mode():
            return _as_statistics(islice(self._run(image, image, before, interior=interior), norm, norm + 1))

    def release(self) -> None:
        """Give the buffers' memory back; the next picture allocates them anew."""
        self._memory = self._memory.new_empty(0)

    def _run(
        self,
        image: Tensor,
        result: Tensor,
        given: Statistics | None,
        measured: bool = True,
        interior: Region = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each norm's mean and variance in the interior, then fill `result`, which may be the image.

        given: of as many of the first norms as the run is to pass with them; they go into the weights. measured: False
        where all are given and nothing is to be yielded.
        """
        height, width = image.shape[2:]
        x, r = self._buffers(height, width)
        top = self._margin
        x[0] = x[-1] = 0
        r[:top] = 0
        r[top + height :] = 0
        self._first_layer(image, x)

        inside_from, inside_to, _ = interior[0].indices(height)
        norms_given = 0 if given is None else given.mean.shape[1]
        norm: tuple[Tensor, Tensor] | None = None  # gain and bias that r still waits for
        for layer in range(self._norms + 1):
            in_tail = layer == self._norms
            joins = layer % 2 == 0  # reads x, after the block before has been added to it
            folded = None if given is None or layer >= norms_given else self._gain_and_bias(layer, given)
            weight, weight_bias = self._tail[0] if in_tail else self._layer(layer, folded)
            activate = in_tail or folded is not None
            sums = _Moments(self._channels)
            ready = 0
            for y, end in self._bands(height, width):
                # The band's convolution reads one row below it.
                ahead = min(height, end + 1)
                part = r[top + ready : top + ahead]
                if norm is not None:
                    torch.addcmul(norm[1], part, norm[0], out=part).relu_()
                if joins and layer > 0:
                    x[1 + ready : 1 + ahead] += part
                ready = ahead
                source = x[y : end + 2] if joins else r[top + y - 1 : top + end + 1]
                convolved = _convolve(source, weight, weight_bias)
                if measured and not in_tail:
                    inside = slice(max(0, inside_from - y), max(0, inside_to - y))
                    sums.add(convolved[inside, interior[1]])
                at = top + y if joins else top + y - 1
                _store(convolved, r[at : at + end - y], activate)
            if not joins:
                top -= 1
                r[top + height] = 0
            norm = None
            if in_tail:
                continue
            if measured:
                mean, variance = sums.result()
                yield (mean, variance) if folded is None else unfolded(mean, variance, *folded)
            if folded is None:
                gain = self._scale[layer] * torch.rsqrt(variance + EPSILON)
                norm = gain.to(self._precision), (self._shift[layer] - mean * gain).to(self._precision)

        for y, end in self._bands(height, width):
            convolved = _convolve(r[top + y - 1 : top + end + 1], *self._tail[1])
            _store(convolved, r[top + y - 1 : top + end - 1], activate=True)
        top -= 1
        r[top + height :] = 0
        self._last_layer(r[top - 4 :], result)

    def _buffers(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """x and r, with whatever was in them: tiles of a picture differ in size, and fresh memory costs time."""
        x_shape = (height + 2, width, self._channels)
        # Below: 4 rows of padding for the last layer and 1 for an odd height, computed in pairs of rows.
        r_shape = (self._margin + height + 5, width, self._channels)
        x_length, r_length = math.prod(x_shape), math.prod(r_shape)
        if self._memory.numel() < x_length + r_length:
            self._memory = self._memory.new_empty(0)
            needed = (x_length + r_length) * self._precision.itemsize
            available = psutil.virtual_memory().available
            if needed > 0.9 * available:
                raise TooLargeError(
                    f"a {width}x{height} picture needs {needed / 1e9:.1f} GB of memory in this precision and "
                    f"{available / 1e9:.1f} GB are free; use --tile auto, --precision bf16 or a smaller picture"
                )
            self._memory = self._memory.new_empty(x_length + r_length)
        return self._memory[:x_length].view(x_shape), self._memory[x_length:][:r_length].view(r_shape)

    def _bands(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """First row and end row of each band; every band but the last has an even number of rows.

        The last takes a rest of less than half a band with it: torch gives inputs of up to 20,480 numbers to another
        convolution, which rounds differently, and a tile must not differ from the picture.
        """
        pixels = _BAND_BYTES // (self._channels * self._precision.itemsize)
        rows = max(2, pixels // width // 2 * 2)
        last = max(0, round(height / rows) - 1)
        for band in range(last):
            yield band * rows, (band + 1) * rows
        yield last * rows, height

    def _weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight = weight.detach().to(self._precision).contiguous(memory_format=torch.channels_last)
        return weight, None if bias is None else bias.detach().to(self._precision)

    def _gain_and_bias(self, layer: int, given: Statistics) -> tuple[Tensor, Tensor]:
        gain = self._scale[layer] * torch.rsqrt(given.variance[0, layer].double() + EPSILON)
        return gain, self._shift[layer] - given.mean[0, layer].double() * gain

    def _layer(self, layer: int, folded: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor | None]:
        weight = self._residual[layer]
        if folded is None:
            return self._weights(weight, None)
        gain, bias = folded
        return self._weights(weight * gain[:, None, None, None], bias)

    def _first_layer(self, image: Tensor, x: Tensor) -> None:
        height, width = image.shape[2:]
        padded = F.pad(image.to(self._precision), (0, 0, 4, 4)).contiguous(memory_format=torch.channels_last)
        for y, end in self._bands(height, width):
            convolved = F.conv2d(padded[:, :, y : end + 8], *self._first, padding=(0, 4))
            _store(convolved[0].permute(1, 2, 0), x[1 + y : 1 + end], activate=True)

    def _last_layer(self, padded: Tensor, result: Tensor) -> None:
        """padded: rows of r from 4 above the picture on."""
        height, width = result.shape[2:]
        # An odd width needs one more column on the right; padding is symmetric, so the left gets it too.
        odd = width % 2
        for y, end in self._bands(height, width):
            even_end = end + (end - y) % 2
            pairs = F.conv2d(_as_picture(padded[y : even_end + 8]), *self._last, stride=2, padding=(0, 4 + odd))
            band = F.pixel_shuffle(pairs.float(), 2)[:, :, : end - y, odd : odd + width]
            result[:, :, y:end] = torch.tanh(band).mul_(TANH_SCALE).add_(TANH_OFFSET)


class _Moments:
    """Mean and variance of each channel over bands: of a few rows' pixels in float32, of all in float64."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)
        # Not used, but for its type: without it the results of a bf16 band are rounded to bf16.
        self._running = torch.zeros(channels)

    def add(self, band: Tensor) -> None:
        """band: (rows, width, channels)."""
        for part in torch.split(band.reshape(-1, 1, band.shape[2]), _SUM_PIXELS[band.dtype]):
            if not len(part):
                continue
            # The only call that reads a channels-last band once, at memory speed. Momentum 0.
            mean, variance = torch.batch_norm_update_stats(_as_picture(part), self._running, self._running, 0.0)
            self._count += len(part)
            self._sum += mean.double() * len(part)
            self._squares += (variance.double() + mean.double().square()) * len(part)

    def result(self) -> tuple[Tensor, Tensor]:
        mean = self._sum / self._count
        return mean, (self._squares / self._count - mean.square()).clamp_min_(0)


def _as_statistics(norms: Iterable[tuple[Tensor, Tensor]]) -> Statistics:
    means, variances = zip(*norms, strict=True)
    return Statistics(torch.stack(means)[None].float(), torch.stack(variances)[None].float())


def _as_picture(rows: Tensor) -> Tensor:
    """(rows, width, channels) seen as a channels-last (1, channels, rows, width); no copy."""
    return rows.permute(2, 0, 1)[None]


def _convolve(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 over rows that bring their own padding above and below; (rows, width, C) -> (rows - 2, width, C)."""
    return F.conv2d(_as_picture(rows), weight, bias, padding=(0, 1))[0].permute(1, 2, 0)


def _store(values: Tensor, target: Tensor, activate: bool) -> None:
    if activate:
        torch.clamp_min(values, 0, out=target)
    else:
        target.copy_(values)


def four_pixels_at_once(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The 9x9 layer to 3 channels as a 10x10 one with stride 2 to 12, in the order of pixel_shuffle.

    Exactly the same sums; with 3 output channels a processor's vector units stay empty, with 12 they do not.
    """
    out, channels = weight.shape[:2]
    wide = weight.new_zeros((out, 2, 2, channels, 10, 10))
    for dy in range(2):
        for dx in range(2):
            wide[:, dy, dx, :, dy : dy + 9, dx : dx + 9] = weight.detach()
    return wide.reshape(4 * out, channels, 10, 10), None if bias is None else bias.detach().repeat_interleave(4)
