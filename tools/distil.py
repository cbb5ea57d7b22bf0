"""Distil lite, the model that ships with dped-live, from DPED's networks and from pairs of pictures.

    python tools/distil.py OUT.safetensors --pairs DIR --photos FOLDER [FOLDER ...] [--minutes 20]
                           [--channels 32] [--blocks 2] [--shuffle 4] [--crops 2500] [--seed 0]

DIR: dped/patches of the developers' data, or any folder with two folders of aligned 100x100 pictures, iphone and canon.
Its last 50 pairs are only judged. The teacher is a mixture: 0.4 of the iphone network's picture, 0.4 of resnet_8_32's
and 0.2 of the input: on the pairs it is nearer to the camera than either, and not as hard. It looks at crops of the
photos, at several scales and in other light, as webcams and phones see, and at the training pairs, for which half of
the target is the camera's picture. benchmarks/LITE.md has what was tried.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dped_live import weights
from dped_live.backends import open_backend
from dped_live.generator import Generator
from dped_live.metrics import decibels, mean_squared_error, ms_ssim_of_original
from dped_live.sources.images import read_photo
from dped_live.training.pairs import Pair, find_pairs, read_pair

SIDE = 100
BATCH, OF_PAIRS = 16, 4
LEARNING_RATE = 2e-3
TEACHERS = {"iphone": 0.4, "resnet_8_32": 0.4}
HELD_OUT = 50
SUFFIXES = {".jpg", ".jpeg", ".png"}


def read_photos(folders: list[Path]) -> list[np.ndarray]:
    """RGB, uint8, (H, W, 3), without the black edges that scans have."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [read_photo(path).frame.planes[0][4:-4, 4:-4] for path in paths]


def crops(photos: list[np.ndarray], count: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Float32 (SIDE, SIDE, 3) in 0..255: parts of photos, of large ones more, as worse cameras see them."""
    areas = np.array([photo.shape[0] * photo.shape[1] for photo in photos], float)
    for number in random.choice(len(photos), count, p=areas / areas.sum()):
        photo = photos[number]
        side = min(int(random.choice([SIDE, SIDE, 160, 240])), *photo.shape[:2])
        top, left = (random.integers(length - side + 1) for length in photo.shape[:2])
        crop = cv2.resize(photo[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        picture = crop.astype(np.float32)
        if random.random() < 0.5:
            picture *= 2 ** random.uniform(-1, 0.4)  # exposure
        if random.random() < 0.5:
            picture *= random.uniform(0.88, 1.12, 3)  # white balance
        if random.random() < 0.4:
            mean = picture.mean((0, 1))
            picture = mean + (picture - mean) * random.uniform(0.5, 1)  # haze
        if random.random() < 0.5:
            picture = picture + random.normal(0, random.uniform(0, 3), picture.shape)
        yield picture.astype(np.float32)


def stacked(pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """Phone and camera, float32 (N, 3, SIDE, SIDE) in [0, 1]."""
    phone, camera = zip(*map(read_pair, pairs), strict=True)
    return torch.stack(phone).float() / 255, torch.stack(camera).float() / 255


def taught(pictures: Tensor) -> Tensor:
    """What the teacher makes of pictures (N, 3, H, W), each by its own statistics."""
    result = (1 - sum(TEACHERS.values())) * pictures
    for name, share in TEACHERS.items():
        backend = open_backend(weights.load(name), "cpu")
        for number, picture in enumerate(pictures):
            result[number] += share * backend.enhance(picture[None])[0]
    return result


def unlikeness(a: Tensor, b: Tensor) -> Tensor:
    """1 - structural similarity (Wang et al. 2004), in windows of 7x7 pixels."""
    window = torch.ones(3, 1, 7, 7) / 49

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=3)

    ma, mb = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    luminance = (2 * ma * mb + 1e-4) / (ma * ma + mb * mb + 1e-4)
    return 1 - (luminance * (2 * covariance + 9e-4) / (va + vb + 9e-4)).mean()


def loss(picture: Tensor, target: Tensor) -> Tensor:
    total = F.l1_loss(picture, target) + 2 * F.mse_loss(picture, target)
    for scale, share in ((1, 0.25), (2, 0.25), (4, 0.1)):
        total = total + share * unlikeness(F.avg_pool2d(picture, scale), F.avg_pool2d(target, scale))
    return total


def turned(picture: Tensor, turn: int) -> Tensor:
    """One of the eight ways to turn and flip a square."""
    for bit, axes in ((1, [3]), (2, [2])):
        picture = picture.flip(axes) if turn & bit else picture
    return picture.transpose(2, 3) if turn & 4 else picture


@torch.no_grad()
def score(student: Generator, phone: Tensor, camera: Tensor) -> str:
    enhanced = student(phone)
    errors = [mean_squared_error(a[None], b[None]) for a, b in zip(enhanced, camera, strict=True)]
    psnr = np.mean([decibels(float(error)) for error in errors])
    return f"PSNR {psnr:.2f} dB (mean of {len(phone)} pictures), MS-SSIM {ms_ssim_of_original(enhanced, camera):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--shuffle", type=int, default=4)
    parser.add_argument("--crops", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pairs = find_pairs(options.pairs, "iphone", print, HELD_OUT)
    phone, camera = stacked(pairs.train)
    judged = stacked(pairs.test)
    random = np.random.default_rng(options.seed)
    parts = np.stack(list(crops(read_photos(options.photos), options.crops, random)))
    pictures = torch.cat((phone, torch.from_numpy(parts).permute(0, 3, 1, 2).clamp(0, 255).round() / 255))
    targets = taught(pictures)
    targets[: len(phone)].lerp_(camera, 0.5)
    print(f"{len(pictures)} pictures with their targets")

    torch.manual_seed(options.seed)
    student = Generator(options.channels, options.blocks, options.shuffle)
    for parameter in student.last.parameters():
        torch.nn.init.zeros_(parameter)  # it begins with no change
    averaged = Generator(options.channels, options.blocks, options.shuffle).requires_grad_(False)
    averaged.load_state_dict(student.state_dict())
    adam = torch.optim.Adam(student.parameters())
    begin, step, told = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - begin) / (60 * options.minutes)) < 1:
        for group in adam.param_groups:
            group["lr"] = LEARNING_RATE * (0.5 + 0.5 * math.cos(math.pi * progress)) * min(1, (step + 1) / 50) + 1e-5
        chosen = np.r_[
            random.integers(len(phone), size=OF_PAIRS), random.integers(len(pictures), size=BATCH - OF_PAIRS)
        ]
        turn = int(random.integers(8))
        value = loss(student(turned(pictures[chosen], turn)), turned(targets[chosen], turn))
        adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        adam.step()
        step += 1
        with torch.no_grad():
            for average, parameter in zip(averaged.parameters(), student.parameters(), strict=True):
                average.lerp_(parameter, 1 - min(0.998, step / (step + 20)))
        if progress >= told:
            told += 0.1
            print(f"step {step}: loss {value.item():.4f}; {score(averaged, *judged)}", flush=True)
    how = {"recipe": "tools/distil.py", "teachers": "0.4 iphone, 0.4 resnet_8_32, 0.2 input", "steps": str(step)}
    weights.save(averaged, options.out, how)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} KB, step {step}; {score(averaged, *judged)}")


if __name__ == "__main__":
    main()
