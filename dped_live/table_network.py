"""Table, filter, table: a small network of our own, whose every weight is told by what it is.

    values = eight numbers from -1 to 1 that describe the scene's light, found on a copy of 32x32 pixels
    first  = a 3D table of colours, mixed of eight by the values
    filter = 3x3 conv 3->8 without a mean, less a threshold, ReLU, times a strength that the values give
             x + ReLU(3x3 conv 8->8, dilated by 2)
             3x3 conv 8->1, added to red, green and blue alike
    second = a 3D table of colours, as the first

All that comes after the values is a fixed function of a pixel's 9x9 surroundings: a picture moved by a pixel gives the
result moved by a pixel, and with given values nothing flickers. Grey stays grey, black black and white white, for any
weights and values: the tables map the grey diagonal to itself and keep its ends, and the filter adds one number to all
channels, 0 where the picture is flat, and at most the pixel's largest channel. Pictures are continued at their borders
by their last pixels. Sizes from 1x1 up.

The idea of a few tables mixed by a small network's look at a small copy is from Zeng et al., Learning Image-adaptive 3D
Lookup Tables, TPAMI 2020.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dped_live.statistics import Statistics

VALUES = 8
"""How many describe a scene."""

SIDE = 9
"""Entries of a table along each axis."""

CHANNELS = 8
"""Of the filter."""

REACH = 4
"""How far, in pixels, the filter looks."""

UNIT = 3.0
"""What a difference of 1 between values counts in Statistics. With it a distance of scenes means about what it does for
DPED's networks, to which the thresholds of those who choose statistics belong (benchmarks/NOTES.md)."""

_COPY = 32
_LUMA = (0.299, 0.587, 0.114)
_STRIP_PIXELS = 1 << 20
"""So many are enhanced at once where no gradients are recorded: all of 1280x720, and large photos in bounded memory."""


class Tables(nn.Module):
    """A colour table for each value, which together make the scene's.

    offsets: (VALUES, SIDE^3, 3), what is added to a colour; entries in the order of red, green, blue, the last fastest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Parameter(0.005 * torch.randn(VALUES, SIDE**3, 3))

    def mixed(self, values: Tensor) -> Tensor:
        """values (N, VALUES): the tables (N, SIDE^3, 3) of N scenes."""
        # No matrix product: autocast would round it.
        axis = torch.linspace(0, 1, SIDE, device=values.device)
        identity = torch.cartesian_prod(axis, axis, axis)
        return identity + (values[:, :, None, None] * _grey_kept(self.offsets)).sum(1)


def _grey_kept(offsets: Tensor) -> Tensor:
    """The nearest offsets that map grey to grey, black to black and white to white."""
    diagonal = slice(None, None, SIDE * SIDE + SIDE + 1)
    grey = offsets[:, diagonal].mean(2, keepdim=True).expand(-1, -1, 3)
    result = offsets.clone()
    result[:, diagonal] = F.pad(grey[:, 1:-1], (0, 0, 1, 1))
    return result


def look_up(tables: Tensor, image: Tensor) -> Tensor:
    """Pictures (N, 3, H, W), clamped to [0, 1], through their tables (N, SIDE^3, 3), as table_kernels.py does it."""
    count, _, height, width = image.shape
    places = image.clamp(0, 1).flatten(2).transpose(1, 2) * (SIDE - 1)
    cells = places.detach().floor().clamp_max(SIDE - 2)
    # Along the axes in the order of what is left: the largest first.
    within, order = (places - cells).sort(dim=2, descending=True, stable=True)
    steps = torch.tensor([SIDE * SIDE, SIDE, 1], device=image.device)
    base = (cells.long() * steps).sum(2, keepdim=True)
    base = base + SIDE**3 * torch.arange(count, device=image.device)[:, None, None]
    corners = base + F.pad(steps[order].cumsum(2), (1, 0))
    weights = F.pad(within, (1, 0), value=1) - F.pad(within, (0, 1))
    entries = F.embedding(corners, tables.flatten(0, 1))
    return (weights[..., None] * entries).sum(2).transpose(1, 2).reshape(count, 3, height, width)


class Scene(nn.Module):
    """What a picture is like: (N, 3, H, W) -> values (N, VALUES)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.hidden = nn.Linear(2 * 32 + 2 * 3 + 1, 48)
        self.last = nn.Linear(48, VALUES)

    def forward(self, image: Tensor) -> Tensor:
        copy = F.adaptive_avg_pool2d(image, _COPY)
        described = [
            part
            for picture in (self.features(copy), copy)
            for part in (picture.mean((2, 3)), picture.var((2, 3)).add(1e-4).sqrt())
        ]
        described.append(10 * _detail(image))
        return torch.tanh(self.last(F.relu(self.hidden(torch.cat(described, 1))))).float()


def _detail(image: Tensor) -> Tensor:
    """How much luma differs from its mean over 3x3 pixels: (N, 3, H, W) -> (N, 1)."""
    total = torch.zeros(image.shape[0], dtype=torch.float64, device=image.device)
    for rows, above, below in _strips(image, 1):
        strip = image[:, :, rows.start - above : rows.stop + below]
        luma = sum(share * strip[:, c : c + 1] for c, share in enumerate(_LUMA))
        assert isinstance(luma, Tensor)
        around = F.avg_pool2d(_continued(luma, 1), 3, 1)
        total = total + (luma - around)[:, :, above : above + rows.stop - rows.start].abs().sum((1, 2, 3)).double()
    return (total / (image.shape[2] * image.shape[3])).float()[:, None]


class Detail(nn.Module):
    """The filter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, bias=False)
        self.threshold = nn.Parameter(torch.full((CHANNELS,), 0.01))
        self.middle = nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False, dilation=2)
        self.last = nn.Conv2d(CHANNELS, 1, 3, bias=False)
        self.strength = nn.Linear(VALUES, CHANNELS)
        nn.init.zeros_(self.last.weight)  # it begins with no change
        nn.init.zeros_(self.strength.weight)
        nn.init.ones_(self.strength.bias)

    @property
    def kernel(self) -> Tensor:
        """Of the first layer, (CHANNELS, 3, 3, 3): without a mean, and with no bias after it, what is flat gives 0."""
        return self.first.weight - self.first.weight.mean((2, 3), keepdim=True)

    def forward(self, image: Tensor, values: Tensor) -> Tensor:
        """image (N, 3, H, W), values (N, VALUES)."""
        x = F.relu(F.conv2d(_continued(image, 1), self.kernel) - self.threshold.abs().view(1, -1, 1, 1))
        x = x * self.strength(values)[:, :, None, None]
        x = x + F.relu(self.middle(_continued(x, 2)))
        change = self.last(_continued(x, 1))
        most = image.amax(1, keepdim=True)  # so that no light spills on what is black
        return image + torch.minimum(torch.maximum(change, -most), most)


class TableNetwork(nn.Module):
    """RGB picture in, enhanced RGB picture out.

    The values of a scene are told as Statistics, like those of Generator: the means are the values times UNIT,
    (frames, 1, VALUES), the variances are 1. So the distance of two scenes is UNIT times the root mean square
    difference of their values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene()
        self.first = Tables()
        self.detail = Detail()
        self.second = Tables()

    def forward(self, image: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Enhance pictures.

        image: (N, 3, H, W), RGB in [0, 1], on the parameters' device, float32.
        statistics: None takes each picture's own values; otherwise those of one frame are applied to all.
        Returns (N, 3, H, W), NOT clamped, though hardly beyond [0, 1].
        """
        return self.enhanced(image, self.scene(image) if statistics is None else values_of(statistics))

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        """Enhance pictures as `forward` does, and return their own statistics, with one frame for each."""
        own = self.statistics(image)
        return self.enhanced(image, values_of(statistics) if statistics else own.mean[:, 0] / UNIT), own

    def statistics(self, image: Tensor) -> Statistics:
        """The pictures' own, as `measure` finds them, without the pictures."""
        means = UNIT * self.scene(image)[:, None]
        return Statistics(means, torch.ones_like(means))

    def enhanced(self, image: Tensor, values: Tensor) -> Tensor:
        """values: of each picture, (N, VALUES), or of one for all, (1, VALUES)."""
        values = values.expand(image.shape[0], -1)
        first, second = self.first.mixed(values), self.second.mixed(values)
        if torch.is_grad_enabled():
            return look_up(second, self.detail(look_up(first, image), values))
        result = torch.empty_like(image)
        for rows, above, below in _strips(image, REACH):
            strip = look_up(first, image[:, :, rows.start - above : rows.stop + below])
            strip = self.detail(strip, values)[:, :, above : above + rows.stop - rows.start]
            result[:, :, rows] = look_up(second, strip)
        return result


def values_of(statistics: Statistics) -> Tensor:
    """The values (1, VALUES) of one frame's statistics. Raises ValueError if they are of more or of another network."""
    if statistics.mean.shape != (1, 1, VALUES):
        raise ValueError(f"statistics of one frame and {VALUES} values can be applied, not {statistics.mean.shape}")
    return statistics.mean[:, 0] / UNIT


def _strips(image: Tensor, reach: int) -> Iterator[tuple[slice, int, int]]:
    """Rows of a picture, so many at a time that memory is bounded, and how many there are to see above and below."""
    height = image.shape[2]
    step = max(4 * REACH, _STRIP_PIXELS // image.shape[3])
    for start in range(0, height, step):
        end = min(height, start + step)
        yield slice(start, end), min(reach, start), min(reach, height - end)


def _continued(x: Tensor, margin: int) -> Tensor:
    return F.pad(x, (margin,) * 4, mode="replicate")
