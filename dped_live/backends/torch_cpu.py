"""The generator on a CPU, in bands of rows that stay in the processor's cache.

A frame-wide layer-by-layer run spends most of its time moving activations: 64 channels at 1080p are half a gigabyte,
and every fresh output is page-faulted in. Here two buffers live as long as the frame size does, and each layer walks
down the picture band by band: normalise the band's input in place, convolve it, sum its output while it is still in
cache, store it.

The second of the two 3x3 convolutions of a block reads and writes the same buffer. Its output is stored one row
higher than its input, which keeps the row of input that the next band still needs: a buffer's `top` says where row 0
of the picture lies at the moment. Rows above and below the picture are kept at zero: they are the padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dped_live.generator import TANH_OFFSET, TANH_SCALE, Generator
from dped_live.statistics import EPSILON, Statistics

_BAND_BYTES = 1 << 20
"""Activations of one band: small enough for a core's second-level cache, see benchmarks/NOTES.md."""


class TorchCpuBackend:
    """Runs a generator on the CPU.

    precision: torch.float32 or torch.bfloat16 for weights and activations; sums, statistics, tanh and the result
    are float32 or better in both.
    """

    device = torch.device("cpu")

    def __init__(self, generator: Generator, precision: torch.dtype) -> None:
        self.precision = precision
        self._channels = generator.channels
        self._blocks = generator.blocks

        def weight(w: Tensor) -> Tensor:
            return w.detach().to(precision).contiguous(memory_format=torch.channels_last)

        self._first = weight(generator.first.weight), generator.first.bias.detach().to(precision)
        self._residual = [weight(c.weight) for c in generator.residual]
        self._scale = generator.norm_scale.detach().double()
        self._shift = generator.norm_shift.detach().double()
        self._tail = [(weight(c.weight), c.bias.detach().to(precision)) for c in generator.tail]
        self._last = (weight(_unshuffled(generator.last.weight.detach())),
                      generator.last.bias.detach().repeat_interleave(4).to(precision))
        self._size = (0, 0)

    def enhance(self, image: Tensor, statistics: Statistics | None = None) -> Tensor:
        return self.measure(image, statistics)[0]

    def measure(self, image, statistics=None):
        with torch.inference_mode():
            return self._run(image, statistics)

    def _allocate(self, height, width):
        if self._size == (height, width):
            return
        C = self._channels
        self._x = torch.zeros((height + 2, width, C), dtype=self.precision)
        self._margin = self._blocks + 1 + 4
        self._r = torch.zeros((self._margin + height + 5, width, C), dtype=self.precision)
        self._size = (height, width)

    def _run(self, image, given):
        height, width = image.shape[2:]
        self._allocate(height, width)
        rows = max(1, _BAND_BYTES // (width * self._channels * self._x.element_size()))
        bands = [(y, min(height, y + rows)) for y in range(0, height, rows)]
        X, R = self._x, self._r
        pixels = height * width
        top = self._margin
        R[:top].zero_()
        R[top + height:].zero_()
        padded = F.pad(image.to(self.precision), (0, 0, 4, 4)).contiguous(memory_format=torch.channels_last)
        for y, end in bands:
            out = F.conv2d(padded[:, :, y:end + 8], *self._first, padding=(0, 4))
            torch.clamp_min(out[0].permute(1, 2, 0), 0, out=X[1 + y:1 + end])
        means, variances = [], []
        gain = bias = None
        for layer in range(2 * self._blocks + 1):
            joins = layer % 2 == 0
            tail = layer == 2 * self._blocks
            w, b = self._tail[0] if tail else (self._residual[layer], None)
            total = torch.zeros(self._channels, dtype=torch.float64)
            squares = torch.zeros(self._channels, dtype=torch.float64)
            ready = 0
            for y, end in bands:
                ahead = min(height, end + 1)
                if gain is not None:
                    part = R[top + ready:top + ahead]
                    torch.addcmul(bias, part, gain, out=part).relu_()
                    if joins:
                        X[1 + ready:1 + ahead] += part
                ready = ahead
                source = X[y:end + 2] if joins else R[top + y - 1:top + end + 1]
                out = F.conv2d(source.permute(2, 0, 1)[None], w, b, padding=(0, 1))
                out = out[0].permute(1, 2, 0)
                at = top + y - (0 if joins else 1)
                if tail:
                    torch.clamp_min(out, 0, out=R[at:at + end - y])
                    continue
                R[at:at + end - y] = out
                m, v = torch.batch_norm_update_stats(out.permute(2, 0, 1)[None], None, None, 0.0)
                m = m.double()
                n = (end - y) * width
                total += m * n
                squares += (v.double() + m * m) * n
            if not joins:
                top -= 1
                R[top + height] = 0
            if not tail:
                m = total / pixels
                v = (squares / pixels - m * m).clamp_min_(0)
                means.append(m); variances.append(v)
                if given is not None:
                    m, v = given.mean[0, layer].double(), given.variance[0, layer].double()
                g = self._scale[layer] * torch.rsqrt(v + EPSILON)
                bias = (self._shift[layer] - m * g).to(self.precision)
                gain = g.to(self.precision)
        for y, end in bands:
            out = F.conv2d(R[top + y - 1:top + end + 1].permute(2, 0, 1)[None], *self._tail[1], padding=(0, 1))
            torch.clamp_min(out[0].permute(1, 2, 0), 0, out=R[top + y - 1:top + end - 1])
        top -= 1
        R[top + height:].zero_()
        result = torch.empty((1, 3, height, width))
        for y in range(0, height, 2 * ((rows + 1) // 2)):
            end = min(height, y + 2 * ((rows + 1) // 2))
            even = end + (end - y) % 2
            out = F.conv2d(R[top + y - 4:top + even + 4].permute(2, 0, 1)[None], *self._last, stride=2,
                           padding=(0, 4 + width % 2))
            out = F.pixel_shuffle(out.float(), 2)[:, :, :end - y, width % 2:width % 2 + width]
            result[:, :, y:end] = torch.tanh(out) * TANH_SCALE + TANH_OFFSET
        stats = Statistics(torch.stack(means)[None].float(), torch.stack(variances)[None].float())
        return result, stats


def _unshuffled(weight: Tensor) -> Tensor:
    """The 9x9 convolution as a 10x10 one of stride 2 that gives four pixels at once (pixel_shuffle order)."""
    out, channels = weight.shape[:2]
    wide = weight.new_zeros((out, 2, 2, channels, 10, 10))
    for dy in range(2):
        for dx in range(2):
            wide[:, dy, dx, :, dy:dy + 9, dx:dx + 9] = weight
    return wide.reshape(out * 4, channels, 10, 10)
