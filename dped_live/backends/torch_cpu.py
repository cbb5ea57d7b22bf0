"""The generator on a CPU, in bands of rows that stay in the processor's caches.

Run frame by frame and layer by layer, the network spends most of its time on memory: 64 channels at 1080p are half a
gigabyte in float32, and every fresh output of a layer is page-faulted in. Here a band of rows goes down a chain of
layers, each of which keeps the few rows that its next convolution needs from the band before, and is some rows behind
the layer above it. No activation of the frame's size exists.

With given statistics the chain is the whole network. A picture's own cut it, for each norm waits for the whole picture,
and between two chains something must be kept:

    two planes, a block's input x and what is on its way through the block: every layer is computed once;
    one plane, x, where two take too much memory: up to a norm a block is computed again, 2.1 times the work;
    nothing: norm by norm with those before given, `measure_next`, 5 times the work; see tiled.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dped_live.errors import TooLargeError
from dped_live.generator import TANH_OFFSET, TANH_SCALE, WHOLE, Generator, Region
from dped_live.statistics import Statistics, unfolded

_BAND_BYTES = 4 << 20
"""One band's activations in one layer; measured in benchmarks/NOTES.md."""

_PLANE_BYTES = 1_000_000_000
"""Two planes are kept of pictures for which they take no more than this."""

_SUM_PIXELS = 1 << 10
"""At most so many go into one float32 sum of the statistics, which then agree to 1e-6, however a picture is cut."""

Parameters = tuple[Tensor, Tensor | None]
"""A convolution's weight and bias."""

Feed = Callable[[int, int, Tensor], None]
"""Writes rows y to end of a chain's input to (end - y, width, channels)."""


class TorchCpuBackend:
    """Runs a generator on the CPU; see backends.WholeBackend.

    precision: torch.float32 or torch.bfloat16, for weights and activations. Sums, statistics, tanh and the result
    are float32 or better in both.
    """

    device = torch.device("cpu")
    in_float32 = None
    shares = True
    bytes_per_pixel_given = 0

    def __init__(self, generator: Generator, precision: torch.dtype, description: str = "CPU") -> None:
        self.description = description
        self.bytes_per_pixel = generator.channels * precision.itemsize  # at least x
        self._precision = precision
        self._channels = generator.channels
        self._norms = generator.norms
        self._scale = generator.norm_scale.detach().double()
        self._shift = generator.norm_shift.detach().double()
        # Full-precision weights of the residual blocks: statistics are folded into them before rounding.
        self._residual = [weight.detach() for weight in generator.residual_weights]
        first = generator.first.weight
        if precision == torch.bfloat16:
            first = torch.cat((first, first), dim=1)  # see _image_rows
        self._first = self._parameters(first, generator.first.bias)
        self._tail = [self._parameters(c.weight, c.bias) for c in generator.tail if isinstance(c, nn.Conv2d)]
        self._last = self._parameters(*four_pixels_at_once(generator.last.weight, generator.last.bias))

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            if statistics is None:
                return self._by_its_own(image, out)[0]
            result = torch.empty(image.shape) if out is None else out
            self._walk(image, _image_rows(image), [*self._begin(statistics), *self._end(result)])
            return result

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        with torch.inference_mode():
            if statistics is None:
                return self._by_its_own(image, None, interior)
            moments = [_Moments(self._channels, interior) for _ in range(self._norms)]
            result = torch.empty(image.shape)
            self._walk(image, _image_rows(image), [*self._begin(statistics, moments), *self._end(result)])
            measured = [
                unfolded(*found.result(), *self._gain_and_bias(norm, statistics)) for norm, found in enumerate(moments)
            ]
            return result, _as_statistics(measured)

    def statistics(self, image: Tensor) -> Statistics:
        with torch.inference_mode():
            return self._own(image, *self._planes(image))

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        with torch.inference_mode():
            moments = _Moments(self._channels, interior)
            measuring = _Layer(self._without_norm(before.mean.shape[1]), activate=False, moments=moments)
            self._walk(image, _image_rows(image), [*self._begin(before), measuring])
            return _as_statistics([moments.result()])

    def _by_its_own(self, image: Tensor, out: Tensor | None, interior: Region = WHOLE) -> tuple[Tensor, Statistics]:
        x, r = self._planes(image)  # refuses what is too large, before anything else is allocated
        result = torch.empty(image.shape) if out is None else out
        statistics = self._own(image, x, r, interior)
        feed, layers = self._input_of(self._norms, statistics, x, r)
        self._walk(image, feed, [*layers, *self._end(result)])
        return result, statistics

    def _own(self, image: Tensor, x: Tensor, r: Tensor | None, interior: Region = WHOLE) -> Statistics:
        """Measure the picture. What the layer after the last norm needs is left in the planes."""
        measured: list[tuple[Tensor, Tensor]] = []
        for norm in range(self._norms):
            feed, layers = _image_rows(image), [_Layer(self._first, keep=x)]
            if norm > 0:
                feed, layers = self._input_of(norm, _as_statistics(measured), x, r)
            moments = _Moments(self._channels, interior)
            measuring = _Layer(self._without_norm(norm), activate=False, keep=r, moments=moments)
            self._walk(image, feed, [*layers, measuring])
            measured.append(moments.result())
        return _as_statistics(measured)

    def _input_of(self, norm: int, known: Statistics, x: Tensor, r: Tensor | None) -> tuple[Feed, list[_Layer]]:
        """What gives the input of a norm's convolution, or of the tail, from what the one before left in the planes.

        At the end of a block its sum takes x's place.
        """
        if r is not None:
            return self._normalised(r, norm - 1, known, None if norm % 2 else x), []
        if norm % 2:
            return _rows_of(x), [self._layer(norm - 1, known)]
        first = self._layer(norm - 2, known)
        return _rows_of(x), [first, self._layer(norm - 1, known, skip=first, keep=x)]

    def _planes(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """x, and r if there is memory for it; with whatever is in them."""
        height, width = image.shape[2:]
        shape = (height, width, self._channels)
        size = math.prod(shape)
        free = 0.9 * psutil.virtual_memory().available
        count = 2 if 2 * size * self._precision.itemsize <= min(_PLANE_BYTES, free) else 1
        needed = count * size * self._precision.itemsize
        if needed > free:
            raise TooLargeError(
                f"a {width}x{height} picture needs {needed / 1e9:.1f} GB of memory in this precision and "
                f"{free / 1e9:.1f} GB are free; use --tile auto, --precision bf16 or a smaller picture"
            )
        x, *more = (torch.empty(shape, dtype=self._precision) for _ in range(count))
        return x, more[0] if more else None

    # Feeds.

    def _normalised(self, r: Tensor, norm: int, known: Statistics, x: Tensor | None) -> Feed:
        """What a norm makes of r, and at the end of a block the sum of it and x, which becomes the next block's."""
        gain, bias = (value.to(self._precision) for value in self._gain_and_bias(norm, known))

        def feed(y: int, end: int, rows: Tensor) -> None:
            torch.addcmul(bias, r[y:end], gain, out=rows).relu_()
            if x is not None:
                x[y:end] += rows
                rows.copy_(x[y:end])

        return feed

    # Parts of a chain.

    def _begin(self, given: Statistics, moments: Sequence[_Moments | None] | None = None) -> list[_Layer]:
        """The first layer, and one for each norm that is given."""
        layers = [_Layer(self._first)]
        for norm in range(given.mean.shape[1]):
            skip = layers[-1] if norm % 2 else None
            layers.append(self._layer(norm, given, skip, moments=None if moments is None else moments[norm]))
        return layers

    def _layer(
        self,
        norm: int,
        known: Statistics,
        skip: _Layer | None = None,
        keep: Tensor | None = None,
        moments: _Moments | None = None,
    ) -> _Layer:
        """A residual convolution with the norm after it folded in."""
        gain, bias = self._gain_and_bias(norm, known)
        parameters = self._parameters(self._residual[norm] * gain[:, None, None, None], bias)
        return _Layer(parameters, skip=skip, keep=keep, moments=moments)

    def _end(self, result: Tensor) -> list[_Layer]:
        return [*(_Layer(parameters) for parameters in self._tail), _LastLayer(self._last, result)]

    def _without_norm(self, norm: int) -> Parameters:
        return self._parameters(self._residual[norm], None)

    def _parameters(self, weight: Tensor, bias: Tensor | None) -> Parameters:
        weight = weight.detach().to(self._precision).contiguous(memory_format=torch.channels_last)
        return weight, None if bias is None else bias.detach().to(self._precision)

    def _gain_and_bias(self, norm: int, known: Statistics) -> tuple[Tensor, Tensor]:
        norms = known.mean.shape[1]
        gain, bias = known.gain_and_bias(self._scale[:norms], self._shift[:norms])
        return gain[norm], bias[norm]

    # The way down.

    def _walk(self, image: Tensor, feed: Feed, layers: Sequence[_Layer]) -> None:
        """Send a picture down a chain of layers."""
        height, width = image.shape[2:]
        bands = list(self._bands(height, width))
        rows = max(end - y for y, end in bands)
        for layer in layers:
            layer.begin(height, width, rows)
            rows += layer.below + 1  # at the end all that it is behind comes at once
        for y, end in bands:
            feed(y, end, layers[0].room(end - y))
            for layer, following in zip_longest(layers, layers[1:]):
                if not layer.advance(following):
                    break
            for layer in layers:
                layer.forget()

    def _bands(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """First row and end row of each band.

        The last takes a rest of less than half a band with it: torch gives inputs of up to 20,480 numbers to another
        convolution, which rounds differently, and a tile must not differ from the picture.
        """
        pixels = _BAND_BYTES // (self._channels * self._precision.itemsize)
        rows = max(1, pixels // width)
        last = max(0, round(height / rows) - 1)
        for band in range(last):
            yield band * rows, (band + 1) * rows
        yield last * rows, height


class _Layer:
    """A convolution on its way down a picture: rows of its input come in order, and rows of its output go.

    activate: with a ReLU. skip: the layer whose input is added after it. keep: a plane (height, width, channels) that
    gets what comes out. moments: measure the convolution.
    """

    def __init__(
        self,
        parameters: Parameters,
        *,
        activate: bool = True,
        skip: _Layer | None = None,
        keep: Tensor | None = None,
        moments: _Moments | None = None,
    ) -> None:
        self._weight, self._bias = parameters
        self._activate = activate
        self._skip = skip
        self._keep = keep
        self._moments = moments
        side = self._weight.shape[2]
        self.above, self.below = (side - 1) // 2, side // 2
        """Rows of the input around an output row that go into it."""

    def begin(self, height: int, width: int, rows: int) -> None:
        """rows: as many as come at once at most."""
        self._height = height
        # One more below, for the last layer's pairs.
        shape = (self.above + self.below + rows + self.below + 1, width, self._weight.shape[1])
        self._window = self._weight.new_empty(shape)
        self._window[: self.above] = 0
        self._first = -self.above  # the picture's row that the window begins with
        self._ready = self.done = 0

    def room(self, rows: int) -> Tensor:
        """Where the next rows of its input are to be written: (rows, width, channels)."""
        begin = self._ready - self._first
        self._ready += rows
        end = self._ready - self._first
        if self._ready == self._height:
            self._window[end : end + self.below + 1] = 0
        return self._window[begin:end]

    def advance(self, following: _Layer | None) -> bool:
        """Compute what can be computed, and give it to the following layer; False: nothing could."""
        y, end = self.done, self._end()
        if end <= y:
            return False
        self._compute(y, end, following)
        self.done = end
        return True

    def forget(self) -> None:
        """Make room: what is above the next output row's is not needed any more, by what adds it either."""
        first = self.done - self.above
        if first > self._first:
            kept = self._window[first - self._first : self._ready - self._first + self.below + 1].clone()
            self._window[: len(kept)] = kept
            self._first = first

    def _end(self) -> int:
        """The output row after the last that can be computed."""
        return self._height if self._ready == self._height else self._ready - self.below

    def _compute(self, y: int, end: int, following: _Layer | None) -> None:
        convolved = self._convolved(y, end)
        if self._moments is not None:
            self._moments.add(convolved, y)
        if following is not None:
            target = following.room(end - y)
        elif self._keep is not None:
            target = self._keep[y:end]
        else:
            return
        if self._activate:
            torch.clamp_min(convolved, 0, out=target)
        else:
            target.copy_(convolved)
        if self._skip is not None:
            target += self._skip.input(y, end)
        if following is not None and self._keep is not None:
            self._keep[y:end] = target

    def input(self, y: int, end: int) -> Tensor:
        """Rows of its input that it has not forgotten."""
        return self._window[y - self._first : end - self._first]

    def _convolved(self, y: int, end: int) -> Tensor:
        """Rows y to end of the convolution: (end - y, width, channels)."""
        rows = _as_picture(self.input(y - self.above, end + self.below))
        return F.conv2d(rows, self._weight, self._bias, padding=(0, self.above))[0].permute(1, 2, 0)


class _LastLayer(_Layer):
    """The last one, of four_pixels_at_once, which fills a picture (1, 3, H, W) by pairs of rows."""

    def __init__(self, parameters: Parameters, result: Tensor) -> None:
        super().__init__(parameters)
        self._result = result

    def _end(self) -> int:
        end = super()._end()
        return end if end == self._height else end // 2 * 2

    def _compute(self, y: int, end: int, following: _Layer | None) -> None:
        assert following is None
        width = self._result.shape[3]
        # An odd width needs one more column on the right; padding is symmetric, so the left gets it too.
        odd = width % 2
        rows = _as_picture(self.input(y - self.above, end + (end - y) % 2 + self.below - 1))
        pairs = F.conv2d(rows, self._weight, self._bias, stride=2, padding=(0, self.above + odd))
        band = F.pixel_shuffle(pairs.float(), 2)[:, :, : end - y, odd : odd + width]
        self._result[:, :, y:end] = torch.tanh(band).mul_(TANH_SCALE).add_(TANH_OFFSET)


class _Moments:
    """Mean and variance of each channel in the interior: of a few rows' pixels in float32, of all in float64."""

    def __init__(self, channels: int, interior: Region) -> None:
        self._interior = interior
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, rows: Tensor, y: int) -> None:
        """rows: (rows, width, channels), from row y on."""
        begin, end = self._interior[0].start or 0, self._interior[0].stop
        inside = slice(max(0, begin - y), None if end is None else max(0, end - y))
        channels = rows.shape[2]
        pixels = rows[inside, self._interior[1]].reshape(-1, channels)
        # Every ways-th pixel goes into another sum, so that one call makes many short ones.
        ways = math.ceil(len(pixels) / _SUM_PIXELS)
        rest = len(pixels) - len(pixels) % max(1, ways)
        for part, sums in ((pixels[:rest], ways), (pixels[rest:], 1)):
            if not len(part):
                continue
            # Not used, but for its type: without it the results of a bf16 band are rounded to bf16.
            running = torch.zeros(sums * channels)
            # The only call that reads a channels-last band once, at memory speed. Momentum 0.
            picture = _as_picture(part.reshape(-1, 1, sums * channels))
            mean, variance = torch.batch_norm_update_stats(picture, running, running, 0.0)
            mean, variance = mean.double().view(sums, channels), variance.double().view(sums, channels)
            self._count += len(part)
            self._sum += mean.sum(dim=0) * (len(part) // sums)
            self._squares += (variance + mean.square()).sum(dim=0) * (len(part) // sums)

    def result(self) -> tuple[Tensor, Tensor]:
        mean = self._sum / self._count
        return mean, (self._squares / self._count - mean.square()).clamp_min_(0)


def _image_rows(image: Tensor) -> Feed:
    """Of six channels the last three are what the first three lose when they are rounded to eight bits: most of what
    bfloat16 would do to the picture."""

    def feed(y: int, end: int, rows: Tensor) -> None:
        part = image[0, :, y:end].permute(1, 2, 0)
        rows[:, :, :3] = part
        if rows.shape[2] == 6:
            rows[:, :, 3:] = part - rows[:, :, :3]

    return feed


def _rows_of(x: Tensor) -> Feed:
    def feed(y: int, end: int, rows: Tensor) -> None:
        rows.copy_(x[y:end])

    return feed


def _as_statistics(norms: Sequence[tuple[Tensor, Tensor]]) -> Statistics:
    means, variances = zip(*norms, strict=True)
    return Statistics(torch.stack(means)[None].float(), torch.stack(variances)[None].float())


def _as_picture(rows: Tensor) -> Tensor:
    """(rows, width, channels) seen as a channels-last (1, channels, rows, width); no copy."""
    return rows.permute(2, 0, 1)[None]


def four_pixels_at_once(weight: Tensor, bias: Tensor | None) -> Parameters:
    """The 9x9 layer to 3 channels as a 10x10 one with stride 2 to 12, in the order of pixel_shuffle.

    Exactly the same sums; with 3 output channels a processor's vector units stay empty, with 12 they do not.
    """
    out, channels = weight.shape[:2]
    wide = weight.new_zeros((out, 2, 2, channels, 10, 10))
    for dy in range(2):
        for dx in range(2):
            wide[:, dy, dx, :, dy : dy + 9, dx : dx + 9] = weight.detach()
    return wide.reshape(4 * out, channels, 10, 10), None if bias is None else bias.detach().repeat_interleave(4)
