"""Make samples/lake.mp4: a synthetic scene as a poor camera would see it. Nobody's picture, nobody's rights.

    python tools/make_sample.py [OUT.mp4]

A lake between hills, rendered from noise, filmed in a slow pan with drifting clouds; then what a cheap camera does to
it: soft optics, low contrast, a colour cast, sensor noise. With a quiet chord as sound.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, RATE, SECONDS = 320, 180, 24, 3
WORLD = 480  # the pan moves over a scene wider than the picture
SAMPLE_RATE = 48000


def noise(random: np.random.Generator, height: int, width: int, coarsest: int, octaves: int = 6) -> np.ndarray:
    """Sum of smoothly enlarged white noise at halving scales, (height, width) in [0, 1], periodic in x."""
    total: np.ndarray = np.zeros((height, width))
    for octave in range(octaves):
        step = max(1, coarsest >> octave)
        rows, columns = height // step + 3, width // step
        lattice = random.random((rows, columns))
        y, x = np.arange(height) / step, np.arange(width) / width * columns
        i, j = y.astype(int), x.astype(int)
        fy, fx = (t * t * (3 - 2 * t) for t in (y - i, x - j))
        a, b = lattice[i][:, j % columns], lattice[i][:, (j + 1) % columns]
        c, d = lattice[i + 1][:, j % columns], lattice[i + 1][:, (j + 1) % columns]
        upper, lower = a + (b - a) * fx, c + (d - c) * fx
        total += (upper + (lower - upper) * fy[:, None]) * 0.5**octave
    total -= total.min()
    total /= total.max()
    return total


def ridge(random: np.random.Generator, level: float, height: float) -> np.ndarray:
    """The row of a chain of hills at each column of the world."""
    top: np.ndarray = level - height * noise(random, 1, WORLD, 160)[0]
    return top


def world(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The scene without clouds, (HEIGHT, WORLD, 3) in [0, 1], and where its sky is."""
    rows = np.arange(HEIGHT)[:, None]
    up = 1 - rows / (0.6 * HEIGHT)
    scene = np.stack([0.80 - 0.45 * up, 0.86 - 0.28 * up, 0.92 + 0.02 * up], axis=2).repeat(WORLD, 1)
    sky = np.ones((HEIGHT, WORLD), bool)
    colours = [(0.48, 0.56, 0.66), (0.30, 0.42, 0.38), (0.18, 0.33, 0.16)]
    for depth, colour in enumerate(colours):
        top = ridge(random, HEIGHT * (0.52 + 0.05 * depth), HEIGHT * (0.32 - 0.09 * depth))
        mask = (rows >= top[None]) & (rows < 0.62 * HEIGHT)
        light = 0.7 + 0.6 * noise(random, HEIGHT, WORLD, 64 >> depth)
        scene[mask] = (np.array(colour) * light[..., None])[mask]
        sky &= ~mask
    shore = int(0.62 * HEIGHT)
    mirrored = scene[np.clip(shore - 1 - np.arange(HEIGHT - shore), 0, None)]
    ripple = noise(random, HEIGHT - shore, WORLD, 16)[..., None]
    scene[shore:] = 0.55 * mirrored + 0.1 * ripple + np.array([0.05, 0.12, 0.2])
    sky[shore:] = False
    bank = HEIGHT * (0.93 - 0.1 * noise(random, 1, WORLD, 120)[0])
    grass = 0.5 + 0.9 * noise(random, HEIGHT, WORLD, 8)
    mask = rows >= bank[None]
    scene[mask] = (np.array([0.36, 0.42, 0.12]) * grass[..., None])[mask]
    for _ in range(160):  # flowers
        x, y = random.integers(0, WORLD - 2), random.integers(int(0.88 * HEIGHT), HEIGHT - 2)
        if mask[y, x]:
            scene[y : y + 2, x : x + 2] = [(0.9, 0.25, 0.2), (0.95, 0.85, 0.2), (0.92, 0.92, 0.95)][random.integers(3)]
    return scene, sky


def cheap_camera(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What a poor phone makes of a picture (H, W, 3) in [0, 1]: uint8."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = picture.shape[:2]
    soft = sum(
        weight * padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        for dy, dx, weight in ((0, 0, 0.6), (0, 1, 0.1), (0, -1, 0.1), (1, 0, 0.1), (-1, 0, 0.1))
    )
    flat = (0.10 + 0.62 * soft) * np.array([1.0, 0.95, 0.84])
    noisy = flat + random.normal(0, 0.008, picture.shape)
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "samples" / "lake.mp4"
    random = np.random.default_rng(2017)
    scene, sky = world(random)
    clouds = (
        np.clip((noise(random, HEIGHT, WORLD, 96) - 0.5) * 3, 0, 1)[..., None]
        * np.linspace(1, 0.2, HEIGHT)[:, None, None]
    )
    with av.open(str(out), "w") as container:
        video = container.add_stream("libx264", RATE, options={"crf": "23", "preset": "veryslow"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", SAMPLE_RATE, layout="mono")
        audio.codec_context.bit_rate = 48000
        for number in range(RATE * SECONDS):
            moved = np.roll(clouds, number // 2, axis=1)
            picture = np.where(sky[..., None], scene + (0.97 - scene) * moved, scene)
            left = number * (WORLD - WIDTH) // (RATE * SECONDS)
            shot = cheap_camera(picture[:, left : left + WIDTH], random)
            container.mux(video.encode(av.VideoFrame.from_ndarray(shot, format="rgb24")))
        time = np.arange(SAMPLE_RATE * SECONDS) / SAMPLE_RATE
        fade = np.clip(np.minimum(time, SECONDS - time) * 2, 0, 1)
        chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.2, 329.6)) * fade * 0.1
        sound = av.AudioFrame.from_ndarray(chord.astype(np.float32)[None], format="fltp", layout="mono")
        sound.sample_rate, sound.time_base, sound.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
        container.mux(video.encode(None))


if __name__ == "__main__":
    main()
