"""Distil lite, the model that ships with dped-live, from DPED's networks and from pairs of pictures.

    python tools/distil.py OUT.safetensors --pairs DIR --photos FOLDER [FOLDER ...] [--crops 5000] [--seed 0]

DIR: dped/patches of the developers' data, or any folder with two folders of aligned 100x100 pictures, iphone and canon.
Its last 50 pairs are only judged. The teacher is a mixture: 0.4 of the iphone network's picture, 0.4 of resnet_8_32's
and 0.2 of the input: on the pairs it is nearer to the camera than either, and not as hard. It looks at crops of the
photos, at several scales and in other light; what the student sees of them is also as a webcam sees: blurred, noisy,
compressed. And it looks at the training pairs, for which half of the target is the camera's picture.

First all of the student is taught. Then entries of its tables that the lesson's colours hardly touch are made to
continue the others. Last the scene's part is taught anew, and briefly, for the tables and the filter as they are.
The same seed, torch and processor give the same weights. benchmarks/LITE.md has what was tried, and how long it takes.
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
from dped_live.metrics import decibels, mean_squared_error, ms_ssim_of_original
from dped_live.sources.images import read_photo
from dped_live.table_network import SIDE as ENTRIES
from dped_live.table_network import Scene, TableNetwork, look_up
from dped_live.training.pairs import Pair, find_pairs, read_pair

SIDE = 100
BATCH = 16

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
    """Cover a part with one colour, or one turning into another, as titles, slides and walls have."""
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


def roughness(tables: Tensor) -> Tensor:
    """Of mixed tables (N, ENTRIES^3, 3): slopes below a fifth of the identity's, and bends."""
    cube = tables.view(-1, *(ENTRIES,) * 3, 3)
    steps = ENTRIES - 1
    total = tables.new_zeros(())
    for channel in range(3):
        slopes = cube[..., channel].diff(dim=1 + channel)
        total = total + 3 * F.relu(0.2 / steps - slopes).mean()
        total = total + 0.02 * steps**2 * cube.diff(n=2, dim=1 + channel).square().mean()
    return total


@torch.no_grad()
def score(student: TableNetwork, phone: Tensor, camera: Tensor) -> str:
    """PSNR is the mean of the pictures that differ: of one judged pair both are white, and white stays white."""
    enhanced = torch.cat([student(picture[None]) for picture in phone]).clamp(0, 1)
    errors = [mean_squared_error(a[None], b[None]) for a, b in zip(enhanced, camera, strict=True)]
    psnr = [decibels(float(error)) for error in errors if error > 0]
    ms_ssim = ms_ssim_of_original(enhanced, camera)
    return f"PSNR {np.mean(psnr):.2f} dB (mean of {len(psnr)} pictures), MS-SSIM {ms_ssim:.4f} (of {len(phone)})"


@dataclass(frozen=True)
class Lesson:
    """What the student sees, uint8, and what it is to make of it, float16: (N, 3, SIDE, SIDE). The first are pairs."""

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
    seen = torch.from_numpy(np.stack([seen_by_a_webcam(part, random) for part in parts])).permute(0, 3, 1, 2)
    of_phone = (phone * 255).round().byte()
    return Lesson(torch.cat((of_phone, seen)), torch.cat((of_pairs, of_parts)).half(), len(pairs))


@dataclass(frozen=True)
class Stage:
    """How the student is taught.

    until: the step at which the learning rate would be 0. of_pairs: so many pictures of each batch.
    dropout: in the scene's part. noise: deviation of what is added to the values. cropped: share of the batches whose
    values are of a part of the picture, for they are to depend little on where a camera looks. smooth: weight of
    `roughness`.
    """

    steps: int
    until: int
    of_pairs: int
    dropout: float = 0
    noise: float = 0
    cropped: float = 0
    smooth: float = 0


ALL = Stage(4200, 10500, of_pairs=6, dropout=0.1, noise=0.02, cropped=0.4, smooth=1)
SCENE = Stage(300, 300, of_pairs=9)
"""Taught longer, the values come nearer to the teachers, and farther from the camera."""

LEARNING_RATE = 3e-3

BEND, PULL = 0.01, 0.03
"""Of `extend`."""


def teach(student: TableNetwork, taught: torch.nn.Module, lesson: Lesson, stage: Stage, seed: int) -> None:
    """Teach a part of the student, which becomes the running mean of its weights."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    scene = student.scene
    hooks = [
        layer.register_forward_pre_hook(lambda _layer, inputs: F.dropout(inputs[0], stage.dropout))
        for layer in (scene.hidden, scene.last)
    ]
    student.requires_grad_(False)
    taught.requires_grad_(True)
    averaged = copy.deepcopy(taught).requires_grad_(False)
    adam = torch.optim.Adam(taught.parameters())
    begin = time.monotonic()
    for step in range(stage.steps):
        for group in adam.param_groups:
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / stage.until)
            group["lr"] = LEARNING_RATE * cosine * min(1, (step + 1) / 50) + 1e-5
        chosen = np.r_[
            random.integers(lesson.pairs, size=stage.of_pairs),
            random.integers(len(lesson.seen), size=BATCH - stage.of_pairs),
        ]
        turn = int(random.integers(8))
        picture, target = turned(lesson.seen[chosen] / 255, turn), turned(lesson.targets[chosen].float(), turn)
        part = picture
        if random.random() < stage.cropped:
            side = int(random.integers(60, SIDE))
            top, left = random.integers(SIDE + 1 - side, size=2)
            part = picture[:, :, top : top + side, left : left + side]
        values = scene(part)
        values = values + stage.noise * torch.randn_like(values)
        value = loss(student.enhanced(picture, values), target)
        if stage.smooth:
            value = value + stage.smooth * sum(roughness(t.mixed(values)) for t in (student.first, student.second))
        adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            for average, parameter in zip(averaged.parameters(), taught.parameters(), strict=True):
                average.lerp_(parameter, 1 - min(0.999, (step + 1) / (step + 20)))
        if step % (stage.steps // 20) == 0:
            print(f"step {step}, {(time.monotonic() - begin) / 60:.0f} min: loss {value.item():.4f}", flush=True)
    taught.load_state_dict(averaged.state_dict())
    student.requires_grad_(False)
    for hook in hooks:
        hook.remove()


def extend(student: TableNetwork, seen: Tensor) -> None:
    """Let the entries of the tables that colours hardly touch continue the others, and go back to no change.

    Nothing else ties them: taught as they are, they moved saturated colours by up to 161 levels. Least squares: the
    squared differences from the entries as they are, each weighted by its use, of 1 in the mean, plus BEND times the
    squared second differences, plus PULL times the squared offsets.
    """
    used = [torch.zeros(ENTRIES**3) for _ in range(2)]
    for part in torch.split(seen, BATCH):
        picture = part / 255
        values = student.scene(picture)
        filtered = student.detail(look_up(student.first.mixed(values), picture), values)
        for number, colours in enumerate((picture, filtered)):
            used[number] += use(colours)
    entries = torch.eye(ENTRIES**3).reshape(-1, *(ENTRIES,) * 3)
    bends = torch.cat([entries.diff(n=2, dim=axis).flatten(1) for axis in (1, 2, 3)], 1).double()
    for tables, use_of in zip((student.first, student.second), used, strict=True):
        weight = use_of.double() / use_of.mean()
        system = torch.diag(weight + PULL) + BEND * bends @ bends.T
        tables.offsets.copy_(torch.linalg.solve(system, weight[:, None] * tables.offsets.double()))


def use(colours: Tensor) -> Tensor:
    """How much of each entry colours (N, 3, H, W) are mixed of, together."""
    entries = torch.zeros(1, ENTRIES**3, 3, requires_grad=True)
    with torch.enable_grad():
        mixture = look_up(entries.expand(len(colours), -1, -1), colours.detach())
    return torch.autograd.grad(mixture.sum(), entries)[0][0, :, 0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--crops", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    random = np.random.default_rng(options.seed)
    pairs = find_pairs(options.pairs, "iphone", print, HELD_OUT)
    lesson = prepare(pairs.train, list(crops(read_photos(options.photos), options.crops, random)), random)
    print(f"{len(lesson.seen)} pictures with their targets", flush=True)
    # Such small pictures gain nothing from more, and so the weights are the same however many cores there are.
    torch.set_num_threads(1)
    judged = stacked(pairs.test)
    torch.manual_seed(options.seed)
    student = TableNetwork()
    teach(student, student, lesson, ALL, options.seed)
    print(f"all: {score(student, *judged)}", flush=True)
    extend(student, lesson.seen)
    print(f"tables continued: {score(student, *judged)}", flush=True)
    torch.manual_seed(options.seed + 1)
    student.scene = Scene()
    teach(student, student.scene, lesson, SCENE, options.seed + 1)
    how = {"recipe": "tools/distil.py", "teachers": "0.4 iphone, 0.4 resnet_8_32, 0.2 input"}
    weights.save(student, options.out, {**how, "seed": str(options.seed)})
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} KB; {score(student, *judged)}")


if __name__ == "__main__":
    main()
