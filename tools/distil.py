"""Distil lite, the model that ships with dped-live, from DPED's networks and from pairs of pictures.

    python tools/distil.py OUT.safetensors --pairs DIR --photos FOLDER [FOLDER ...] [--steps 24000]
                           [--channels 32] [--blocks 3] [--shuffle 4] [--crops 5000] [--seed 0]
                           [--init MODEL] [--learning-rate 2e-3]

DIR: dped/patches of the developers' data, or any folder with two folders of aligned 100x100 pictures, iphone and canon.
Its last 50 pairs are only judged. The teacher is a mixture: 0.4 of the iphone network's picture, 0.4 of resnet_8_32's
and 0.2 of the input: on the pairs it is nearer to the camera than either, and not as hard. It looks at crops of the
photos, at several scales and in other light; what the student sees of them is also as a webcam sees: blurred, noisy,
compressed. And it looks at the training pairs, for which half of the target is the camera's picture. The same seed,
torch and processor give the same weights. benchmarks/LITE.md has what was tried, and how long it takes.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
BATCH, OF_PAIRS = 16, 5
OF_GREY = 4
"""So many pictures of each batch are shown once more, in grey."""

GREY = 20.0
"""Weight of the chroma that the student gives them."""

SCALES = ((0.3, 3), (0.3, 2), (0.3, 2), (0.15, 1))
"""Weight of the structure, and distance of its windows, in the picture and in its halves, quarters and eighths."""

TEACHERS = {"iphone": 0.4, "resnet_8_32": 0.4}
HELD_OUT = 50
SUFFIXES = {".jpg", ".jpeg", ".png"}


def read_photos(folders: list[Path]) -> list[np.ndarray]:
    """RGB, uint8, (H, W, 3), without the black edges that scans have."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [read_photo(path).frame.planes[0][4:-4, 4:-4] for path in paths]


def crops(photos: list[np.ndarray], count: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Float32 (SIDE, SIDE, 3) in 0..255: parts of photos, of large ones more, in other light."""
    areas = np.array([photo.shape[0] * photo.shape[1] for photo in photos], float)
    for number in random.choice(len(photos), count, p=areas / areas.sum()):
        photo = photos[number]
        side = min(int(random.choice([70, SIDE, SIDE, 160, 240])), *photo.shape[:2])
        top, left = (random.integers(length - side + 1) for length in photo.shape[:2])
        interpolation = cv2.INTER_AREA if side >= SIDE else cv2.INTER_CUBIC
        crop = cv2.resize(photo[top : top + side, left : left + side], (SIDE, SIDE), interpolation=interpolation)
        picture = crop.astype(np.float32)
        if random.random() < 0.06:
            paint(picture, random)
        if random.random() < 0.5:
            picture *= 2 ** random.uniform(-1, 0.4)  # exposure
        if random.random() < 0.1:
            picture[:] = picture.mean(2, keepdims=True)  # grey has to stay grey
        elif random.random() < 0.5:
            picture *= random.uniform(0.88, 1.12, 3).astype(np.float32)  # white balance
        if random.random() < 0.4:
            mean = picture.mean((0, 1))
            picture = mean + (picture - mean) * random.uniform(0.5, 1)  # haze
        yield picture.astype(np.float32).clip(0, 255)


def paint(picture: np.ndarray, random: np.random.Generator) -> None:
    """Cover a part with one colour, or with one turning into another: titles, slides and walls are so, photos seldom.

    Without such parts the student puts the pattern of its squares into them.
    """
    height, width = random.integers(16, SIDE // 2, 2)
    top, left = random.integers(SIDE - height), random.integers(SIDE - width)
    colours = random.uniform(0, 255, (2, 3))
    if random.random() < 0.4:
        colours = colours.mean(1, keepdims=True).repeat(3, 1)
    share = np.linspace(0, random.integers(2), width)[:, None]
    picture[top : top + height, left : left + width] = (1 - share) * colours[0] + share * colours[1]


def seen_by_a_webcam(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A crop with what cheap lenses, sensors and encoders do to it; uint8."""
    grey = np.ptp(picture, axis=2).max() == 0
    if random.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.3, 0.7))
    if random.random() < 0.5:
        noise = random.normal(0, random.uniform(0, 3), picture.shape)
        picture = picture + (noise[..., :1] if grey else noise)
    seen = (picture + 0.5).clip(0, 255).astype(np.uint8)
    if random.random() < 0.3:
        encoded = cv2.imencode(".jpg", seen, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(60, 96))])[1]
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded is not None
        seen = decoded.astype(np.uint8)
    return seen


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


def unlikeness(a: Tensor, b: Tensor, step: int) -> Tensor:
    """1 - structural similarity (Wang et al. 2004), in windows of 8x8 pixels, `step` pixels apart."""
    ma, mb, maa, mbb, mab = (F.avg_pool2d(x, 8, step) for x in (a, b, a * a, b * b, a * b))
    va, vb, covariance = maa - ma * ma, mbb - mb * mb, mab - ma * mb
    luminance = (2 * ma * mb + 1e-4) / (ma * ma + mb * mb + 1e-4)
    return 1 - (luminance * (2 * covariance + 9e-4) / (va + vb + 9e-4)).mean()


def loss(picture: Tensor, target: Tensor) -> Tensor:
    total = F.l1_loss(picture, target) + 2 * F.mse_loss(picture, target)
    for scale, (share, step) in enumerate(SCALES):
        if scale:
            picture, target = F.avg_pool2d(picture, 2), F.avg_pool2d(target, 2)
        total = total + share * unlikeness(picture, target, step)
    return total


def turned(picture: Tensor, turn: int) -> Tensor:
    """One of the eight ways to turn and flip a square."""
    for bit, axes in ((1, [3]), (2, [2])):
        picture = picture.flip(axes) if turn & bit else picture
    return picture.transpose(2, 3) if turn & 4 else picture


def tint(picture: Tensor) -> Tensor:
    """Mean square of how far the channels are from their mean."""
    return (picture - picture.mean(1, keepdim=True)).square().mean()


@torch.no_grad()
def score(student: Generator, phone: Tensor, camera: Tensor) -> str:
    enhanced = student(phone)
    errors = [mean_squared_error(a[None], b[None]) for a, b in zip(enhanced, camera, strict=True)]
    psnr = np.mean([decibels(float(error)) for error in errors])
    return f"PSNR {psnr:.2f} dB (mean of {len(phone)} pictures), MS-SSIM {ms_ssim_of_original(enhanced, camera):.4f}"


@dataclass(frozen=True)
class Lesson:
    """What the student sees, and what it is to make of it: float32 (N, 3, SIDE, SIDE). The first are of pairs."""

    seen: Tensor
    targets: Tensor
    pairs: int


def prepare(pairs: list[Pair], parts: list[np.ndarray], random: np.random.Generator) -> Lesson:
    """parts: of photos, as `crops` makes them."""
    phone, camera = stacked(pairs)
    of_pairs = taught(phone).lerp_(camera, 0.5)
    pictures = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2) / 255
    of_parts = taught(pictures)
    # The teachers tint what is grey, by 3 levels of chroma in the mean.
    is_grey = pictures.amax(1).sub(pictures.amin(1)).amax((1, 2)) == 0
    of_parts[is_grey] = of_parts[is_grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    seen = np.stack([seen_by_a_webcam(part, random) for part in parts])
    return Lesson(
        torch.cat((phone, torch.from_numpy(seen).permute(0, 3, 1, 2) / 255)),
        torch.cat((of_pairs, of_parts)),
        len(pairs),
    )


def teach(
    student: Generator,
    lesson: Lesson,
    steps: int,
    learning_rate: float,
    random: np.random.Generator,
    judged: tuple[Tensor, Tensor],
) -> Generator:
    """The running mean of the student's weights."""
    averaged = copy.deepcopy(student).requires_grad_(False)
    adam = torch.optim.Adam(student.parameters())
    begin = time.monotonic()
    for step in range(steps):
        for group in adam.param_groups:
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            group["lr"] = learning_rate * cosine * min(1, (step + 1) / 50) + 1e-5
        chosen = np.r_[
            random.integers(lesson.pairs, size=OF_PAIRS), random.integers(len(lesson.seen), size=BATCH - OF_PAIRS)
        ]
        turn = int(random.integers(8))
        with torch.autocast("cpu", torch.bfloat16):
            seen = turned(lesson.seen[chosen], turn)
            grey = seen[-OF_GREY:].mean(1, keepdim=True).expand(-1, 3, -1, -1)
            enhanced, enhanced_grey = student(torch.cat((seen, grey))).float().split((len(seen), OF_GREY))
        value = loss(enhanced, turned(lesson.targets[chosen], turn)) + GREY * tint(enhanced_grey)
        adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            for average, parameter in zip(averaged.parameters(), student.parameters(), strict=True):
                average.lerp_(parameter, 1 - min(0.999, (step + 1) / (step + 20)))
        if step % (steps // 20) == 0:
            minutes = (time.monotonic() - begin) / 60
            print(f"step {step}, {minutes:.0f} min: loss {value.item():.4f}; {score(averaged, *judged)}", flush=True)
    return averaged


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=24000)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--shuffle", type=int, default=4)
    parser.add_argument("--crops", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", help="go on with this model")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    pairs = find_pairs(options.pairs, "iphone", print, HELD_OUT)
    lesson = prepare(pairs.train, list(crops(read_photos(options.photos), options.crops, random)), random)
    print(f"{len(lesson.seen)} pictures with their targets", flush=True)
    # Such small pictures gain nothing from more, and so the weights are the same however many cores there are.
    torch.set_num_threads(1)
    if options.init:
        student = weights.load(options.init).train().requires_grad_(True)
    else:
        student = Generator(options.channels, options.blocks, options.shuffle)
        for parameter in student.last.parameters():
            torch.nn.init.zeros_(parameter)  # it begins with no change
    averaged = teach(student, lesson, options.steps, options.learning_rate, random, stacked(pairs.test))
    how = {"recipe": "tools/distil.py", "teachers": "0.4 iphone, 0.4 resnet_8_32, 0.2 input"}
    weights.save(averaged, options.out, {**how, "steps": str(options.steps), "seed": str(options.seed)})
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} KB; {score(averaged, *stacked(pairs.test))}")


if __name__ == "__main__":
    main()
