"""Short clips made from photos, of which is known what moves and what does not.

Every maker takes photos as uint8 arrays (H, W, 3), the size of the frames and their count. All are deterministic.
`all_clips` makes what benchmarks/flicker.py measures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from dped_live.metrics import RECEPTIVE_RADIUS

Size = tuple[int, int]
"""Width, height."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames and what is known of them.

    frames: uint8 (H, W, 3) each. static: (H, W), true where the scene stands still and nothing that moves comes into
    the generator's sight; None where nothing stands still. shift: (dx, dy) of the content from frame to frame, whole
    pixels, None where it is no pan. cuts: the first frame of each new scene. bar: height of the black bars above and
    below.
    """

    name: str
    frames: list[np.ndarray]
    static: np.ndarray | None = None
    shift: tuple[int, int] | None = None
    cuts: tuple[int, ...] = ()
    bar: int = 0


def fit(photo: np.ndarray, size: Size) -> np.ndarray:
    """The whole photo at the frames' size; what is too much of its height or width is cut off evenly."""
    return np.asarray(ImageOps.fit(Image.fromarray(photo), size, Image.Resampling.LANCZOS))


def sliding_disc(photo: np.ndarray, size: Size, count: int, level: int) -> Clip:
    """A still scene into which a disc of one grey level slides from the left, to a bit before the middle."""
    width, height = size
    still = fit(photo, size).astype(np.float32)
    radius = height / 4
    y, x = np.mgrid[:height, :width]
    frames = []
    for centre in np.linspace(-radius, 0.4 * width, count):
        # The edge is one pixel soft, so that the disc moves smoothly at any speed.
        covered = np.clip(radius + 0.5 - np.hypot(x - centre, y - 0.55 * height), 0, 1)[..., None]
        frames.append(_bytes(still + (level - still) * covered))
    return Clip(f"{'dark' if level < 128 else 'bright'} disc", frames, static=_out_of_sight_of_motion(frames))


def pan(photo: np.ndarray, size: Size, count: int, step: int) -> Clip:
    """A window of the photo moves right by `step` whole pixels a frame."""
    width, height = size
    if photo.shape[0] < height or photo.shape[1] < width + step * (count - 1):
        raise ValueError(f"a photo of {photo.shape[1]}x{photo.shape[0]} is too small for a pan")
    top = (photo.shape[0] - height) // 2
    frames = [photo[top : top + height, left : left + width] for left in range(0, step * count, step)]
    return Clip(f"pan, {step} px", frames, shift=(-step, 0))


def zoom(photo: np.ndarray, size: Size, count: int, factor: float = 1.3) -> Clip:
    """The camera slowly comes nearer, from the whole window to 1/factor of it."""
    picture = Image.fromarray(fit(photo, size))
    width, height = size
    frames = []
    for share in np.linspace(1, 1 / factor, count):
        dx, dy = (1 - share) * width / 2, (1 - share) * height / 2
        box = (dx, dy, width - dx, height - dy)
        frames.append(np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=box)))
    return Clip("zoom", frames)


def sensor_noise(photo: np.ndarray, size: Size, count: int, sigma: float = 5) -> Clip:
    """A still scene with new Gaussian noise in every frame, sigma in 8-bit levels."""
    still = fit(photo, size)
    random = np.random.default_rng(0)
    frames = [_bytes(still + random.normal(0, sigma, still.shape)) for _ in range(count)]
    return Clip("noise", frames, static=np.ones(still.shape[:2], bool))


def exposure_ramp(photo: np.ndarray, size: Size, count: int, stops: float = 1.5) -> Clip:
    """A still scene that the camera's auto-exposure brings from `stops` too dark to right, then holds.

    A stop doubles the LIGHT; with a transfer curve of gamma 2.2 that multiplies the coded value by 2^(1/2.2).
    """
    still = fit(photo, size)
    ramp = np.minimum(np.linspace(-stops, stops / 2, count), 0)
    return Clip("exposure ramp", [_bytes(still * 2 ** (stop / 2.2)) for stop in ramp])


def hard_cut(photo: np.ndarray, other: np.ndarray, size: Size, count: int) -> Clip:
    """One photo, then another."""
    half = count // 2
    return Clip("hard cut", [fit(photo, size)] * half + [fit(other, size)] * (count - half), cuts=(half,))


def dissolve(photo: np.ndarray, other: np.ndarray, size: Size, count: int) -> Clip:
    """One photo mixes into another over the middle half of the clip."""
    a, b = fit(photo, size).astype(np.float32), fit(other, size)
    shares = np.clip(np.linspace(-0.5, 1.5, count), 0, 1)
    return Clip("dissolve", [_bytes(a + (b - a) * share) for share in shares])


def flash(photo: np.ndarray, size: Size, count: int) -> Clip:
    """A still scene; the frame in the middle is lit by a photographer's flash."""
    frames = [fit(photo, size)] * count
    frames[count // 2] = _bytes(0.3 * frames[0] + 0.7 * 255)
    return Clip("flash", frames)


def fade(photo: np.ndarray, size: Size, count: int) -> Clip:
    """From black in, and out to black, a third of the clip each. The first and the last frame are black."""
    still = fit(photo, size)
    gains = np.clip(1.5 - np.abs(np.linspace(-1.5, 1.5, count)), 0, 0.5) * 2
    return Clip("fade", [_bytes(still * gain) for gain in gains])


def letterboxed(clip: Clip, bar: int) -> Clip:
    """The clip with black bars of `bar` rows above and below it. `static` keeps the picture only."""
    rows = ((bar, bar), (0, 0))
    frames = [np.pad(picture, (*rows, (0, 0))) for picture in clip.frames]
    static = None if clip.static is None else np.pad(clip.static, rows)
    return replace(clip, name=f"{clip.name}, bars", frames=frames, static=static, bar=bar)


def all_clips(photo: np.ndarray, other: np.ndarray, size: Size, count: int) -> list[Clip]:
    """One of each kind. The photo must be wider than the frames, for the pans."""
    fast = (photo.shape[1] - size[0]) // (count - 1)
    dark = sliding_disc(photo, size, count, level=8)
    return [
        dark,
        sliding_disc(photo, size, count, level=247),
        letterboxed(dark, bar=size[1] // 6),
        sensor_noise(photo, size, count),
        pan(photo, size, count, step=min(2, fast)),
        pan(photo, size, count, step=fast),
        zoom(photo, size, count),
        exposure_ramp(photo, size, count),
        fade(photo, size, count),
        flash(photo, size, count),
        dissolve(photo, other, size, count),
        hard_cut(photo, other, size, count),
    ]


def load_photos(folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """The first two PNG or JPEG pictures of a folder by name; two synthetic ones where there is no folder."""
    if folder is None:
        return synthetic_photo(0), synthetic_photo(1)
    names = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(names) < 2:
        raise SystemExit(f"{folder} has {len(names)} PNG or JPEG pictures, two are needed")
    # Scans of film, as Kodak's, have black edges of up to three pixels.
    first, second = (np.asarray(Image.open(path).convert("RGB"))[4:-4, 4:-4] for path in names[:2])
    return first, second


def synthetic_photo(seed: int, size: Size = (768, 512)) -> np.ndarray:
    """Coloured noise with the spectrum of photos, lighter above than below. Nobody's picture."""
    width, height = size
    random = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, 3, height, width)
    for octave in range(8):
        coarse = torch.randn(1, 3, 2 + (height >> (8 - octave)), 2 + (width >> (8 - octave)), generator=random)
        # Photos vary in light more than in colour.
        coarse = 0.3 * coarse + coarse.mean(1, keepdim=True)
        picture += F.interpolate(coarse, (height, width), mode="bicubic") * 0.6**octave
    slope = torch.linspace(0.6, -0.6, height)[:, None]
    bright = torch.sigmoid(picture / picture.std() + slope)[0].permute(1, 2, 0)
    return _bytes(bright.numpy() * 200 + 20)


def _out_of_sight_of_motion(frames: list[np.ndarray]) -> np.ndarray:
    """(H, W): true where no pixel within the generator's sight ever changes."""
    changes = np.any([(frame != frames[0]).any(2) for frame in frames], axis=0)
    seen = F.max_pool2d(
        torch.from_numpy(changes)[None].float(), 2 * RECEPTIVE_RADIUS + 1, stride=1, padding=RECEPTIVE_RADIUS
    )
    static: np.ndarray = (seen[0] == 0).numpy()
    return static


def _bytes(picture: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = (np.clip(picture, 0, 255) + 0.5).astype(np.uint8)
    return rounded
