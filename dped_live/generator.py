"""The DPED generator (Ignatov et al., ICCV 2017, section 3.2; `resnet` in the original's models.py).

    9x9 conv 3->C, ReLU
    B residual blocks:  x + ReLU(norm(3x3 conv(ReLU(norm(3x3 conv(x))))))    - the skip is added AFTER the last ReLU
    two 3x3 convs, each with ReLU
    9x9 conv C->3, tanh * 0.58 + 0.5

The published models have C = 64, B = 4 (12 layers); the authors' small one, `resnet_8_32`, C = 32, B = 2 (8 layers).
All convolutions pad with zeros and keep the size, so any picture from 1x1 up is accepted.
lite is another kind of network: table_network.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dped_live.statistics import EPSILON, Statistics, unfolded

TANH_SCALE = 0.58
TANH_OFFSET = 0.5

Region = tuple[slice, slice]
"""Rows and columns of a picture."""

WHOLE: Region = (slice(None), slice(None))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel over its picture.

    x: (N, C, H, W), any floating type. Returns two float32 tensors of shape (N, C).

    Rows are summed in float32 and the rows' sums in float64: one running float32 (or FP16) sum over millions of
    pixels loses digits or overflows, and a 12-megapixel picture must be as exact as a small one.
    """
    pixels = x.shape[2] * x.shape[3]
    mean = x.sum(dim=3, dtype=torch.float32).sum(dim=2, dtype=torch.float64) / pixels
    row_norms = torch.linalg.vector_norm(x, dim=3, dtype=torch.float32).double()
    variance = row_norms.square().sum(dim=2) / pixels - mean.square()
    return mean.float(), variance.clamp_min(0).float()


class Generator(nn.Module):
    """RGB picture in, enhanced RGB picture out.

    The biases of the convolutions before a norm do not exist here: the norm cancels them exactly, so the 401,475
    parameters of the original become 400,963 that matter.
    """

    def __init__(self, channels: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.channels = channels
        self.blocks = blocks
        self.first = nn.Conv2d(3, channels, 9, padding=4)
        self.residual = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(self.norms)
        )
        self.norm_scale = nn.Parameter(torch.ones(self.norms, channels))
        self.norm_shift = nn.Parameter(torch.zeros(self.norms, channels))
        self.tail = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(channels, 3, 9, padding=4)

    @property
    def norms(self) -> int:
        """How many instance norms there are: two in each residual block."""
        return 2 * self.blocks

    @property
    def halo(self) -> int:
        """How far, in pixels, an output pixel looks: 9x9, 3x3 for each norm, two of 3x3, 9x9."""
        return 4 + self.norms + 2 + 4

    def reach(self, norm: int) -> int:
        """How far, in pixels, what this norm measures looks."""
        return 4 + norm + 1

    @property
    def residual_weights(self) -> list[Tensor]:
        """The convolutions before each norm, (C, C, 3, 3)."""
        return [convolution.weight for convolution in self.residual if isinstance(convolution, nn.Conv2d)]

    def forward(self, image: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Enhance pictures.

        image: (N, 3, H, W), RGB in [0, 1], on the parameters' device, of any floating type.
        statistics: None normalises each picture by its own (the original); otherwise these, for one frame, are
        folded into the convolutions, so that applying them costs nothing.
        Returns (N, 3, H, W), NOT clamped: tanh * 0.58 + 0.5 reaches from -0.08 to 1.08. Of the parameters' type.
        """
        if statistics is None:
            return self.measure(image)[0]
        gain, bias = statistics.gain_and_bias(*self._scale_and_shift(self.norms))
        x = self._begin(image)
        for block in range(self.blocks):
            y = x
            for norm in (2 * block, 2 * block + 1):
                y = F.relu(self._convolved(norm, y, gain[norm], bias[norm]))
            x = x + y
        return self._finish(x)

    def measure(
        self, image: Tensor, statistics: Statistics | None = None, interior: Region = WHOLE
    ) -> tuple[Tensor, Statistics]:
        """Enhance pictures as `forward` does, and return the statistics found on the way.

        With `statistics` given, these are applied, to the same picture as `forward` gives, and what each norm would
        have measured is returned; without, what is measured is applied. interior: where it is measured.
        Returns the pictures and Statistics with one frame for each of the N pictures.
        """
        x, measured = self._measure(image, statistics, interior, self.norms)
        return self._finish(x), measured

    def statistics(self, image: Tensor) -> Statistics:
        """The pictures' own statistics, as `measure` finds them, without the pictures."""
        return self._measure(image, None, WHOLE, self.norms)[1]

    def measure_next(self, image: Tensor, before: Statistics, interior: Region = WHOLE) -> Statistics:
        """Apply statistics of the first norms only, and return what the norm after them measures, for that alone.

        before: of 0 to norms - 1 norms. interior: where it is measured.
        """
        norm = before.mean.shape[1]
        measured = self._measure(image, before, interior, norm + 1)[1]
        return Statistics(measured.mean[:, norm:], measured.variance[:, norm:])

    def _measure(
        self, image: Tensor, given: Statistics | None, interior: Region, norms: int
    ) -> tuple[Tensor, Statistics]:
        """The first `norms` residual layers; where `given` ends, what is measured is applied."""
        x = y = self._begin(image)
        means, variances = [], []
        folded = None if given is None else given.gain_and_bias(*self._scale_and_shift(given.mean.shape[1]))
        for norm in range(norms):
            if folded is not None and norm < len(folded[0]):
                gain, bias = folded[0][norm], folded[1][norm]
                y = self._convolved(norm, y, gain, bias)
                mean, variance = unfolded(*moments(y[(..., *interior)]), gain, bias)
            else:
                y = self.residual[norm](y)
                mean, variance = moments(y[(..., *interior)])
                scale = self.norm_scale[norm] * torch.rsqrt(variance + EPSILON)
                shift = self.norm_shift[norm] - mean * scale
                y = torch.addcmul(shift[:, :, None, None].to(y.dtype), y, scale[:, :, None, None].to(y.dtype))
            means.append(mean)
            variances.append(variance)
            y = F.relu(y)
            if norm % 2:
                x = y = x + y
        return x, Statistics(torch.stack(means, 1), torch.stack(variances, 1))

    def _scale_and_shift(self, norms: int) -> tuple[Tensor, Tensor]:
        """Of the first norms."""
        return self.norm_scale[:norms].float(), self.norm_shift[:norms].float()

    def _convolved(self, norm: int, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """A residual convolution and what follows it as `gain * x + bias`, in one."""
        weight = self.residual_weights[norm]
        folded = (weight * gain[:, None, None, None]).to(weight.dtype)
        return F.conv2d(x, folded, bias.to(weight.dtype), padding=1)

    def _begin(self, image: Tensor) -> Tensor:
        return F.relu(self.first(image.to(self.first.weight.dtype)))

    def _finish(self, x: Tensor) -> Tensor:
        for convolution in self.tail:
            x = F.relu(convolution(x))
        return torch.tanh(self.last(x)) * TANH_SCALE + TANH_OFFSET
