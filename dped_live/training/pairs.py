"""Aligned pictures of a phone and of a camera: finding them, and a batch of patches for every step of training.

What the original's load_dataset.py does, but streamed from disk: nothing is held in memory but the names.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dped_live.errors import DpedError, InputError
from dped_live.sinks.images import PHOTO_SUFFIXES
from dped_live.sources.images import photo_size, read_photo

CAMERA = "canon"
"""The folder of the good pictures, as the original names it."""

PATCHES_PER_PHOTO = 10
"""So many patches in a row are cut from one decoded photo; decoding one of 12 megapixels takes 0.1 s."""

LARGE = 4
"""Pictures of more than so many patches' area count as photos, of which several patches are cut."""

_TOLD = 10
"""So many skipped pictures are named, the others counted."""

Notify = Callable[[str], None]
"""Called with a line for the user."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one scene, equal in size and aligned pixel by pixel. width, height: once turned upright."""

    phone: Path
    camera: Path
    width: int
    height: int

    @property
    def name(self) -> str:
        return self.phone.stem


@dataclass(frozen=True, slots=True)
class Pairs:
    """What to train on and what to test on, each in natural order of the names: 2 before 10."""

    train: list[Pair]
    test: list[Pair]


@dataclass(frozen=True, slots=True)
class PatchPairs:
    """Patches of the phone and of the camera: uint8, RGB, (N, 3, P, P) each."""

    phone: Tensor
    camera: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of training needs.

    generator, discriminator: the independent pairs for the update of either.
    swaps: uint8 (N,), for each of the discriminator's pairs which of the two it is shown, at random: 1 the camera's
    picture, 0 the enhanced one.
    notes: lines for the user about pictures that could not be read.
    """

    generator: PatchPairs
    discriminator: PatchPairs
    swaps: Tensor
    notes: tuple[str, ...]


def find_pairs(folder: Path, phone: str | None, notify: Notify, hold_out: int | Literal["all"] | None = None) -> Pairs:
    """Find the pairs in a folder, and read the header of every picture.

    Two layouts are known. The original's: FOLDER/PHONE/training_data/{PHONE,canon}/N.jpg for training and
    FOLDER/PHONE/test_data/patches/{PHONE,canon}/N.jpg for testing. Or two folders in FOLDER, with pictures of equal
    names (their extensions may differ); of these the last `hold_out` are for testing, by default a tenth, at least 1
    and at most 400. "all": nothing is for training; in the original's layout only the pictures for testing are read.

    phone: the name of the phone's folder; None takes the only one, or the only one beside `canon`.
    notify gets a line for each picture that is skipped, unreadable or without partner, or their number if they are
    many. Raises InputError if there are no pairs, if it is not clear which folders are meant, or if the two pictures
    of a pair differ in size.
    """
    folders = _folders(folder)
    originals = [path.name for path in folders if (path / "training_data").is_dir()]
    with_pictures = [path.name for path in folders if _pictures(path)]
    if not originals and len(with_pictures) < 2:
        raise InputError(
            f"{folder}: no pairs of pictures here; it must hold PHONE/training_data/PHONE and PHONE/training_data/"
            f"{CAMERA}, or two folders, PHONE and {CAMERA}, with pictures of equal names"
        )
    if phone is None:
        phones = originals or with_pictures
        if not originals and CAMERA in with_pictures:
            phones = [name for name in with_pictures if name != CAMERA]
        if len(phones) > 1:
            raise InputError(f"{folder}: it is not clear which phone is meant; type {_choices(phones)}")
        phone = phones[0]
    if phone in originals:
        return _pairs_of_original(folder / phone, phone, notify, hold_out)
    if phone not in with_pictures:
        raise InputError(f"{folder / phone}: no pictures here; type {_choices(originals or with_pictures)}")
    others = [name for name in with_pictures if name != phone]
    if CAMERA not in others and len(others) != 1:
        raise InputError(f"{folder}: it is not clear which pictures are the camera's; name their folder {CAMERA}")
    pairs = _match(folder / phone, folder / (CAMERA if CAMERA in others else others[0]), notify)
    if hold_out == "all":
        return Pairs([], pairs)
    held = max(1, min(400, len(pairs) // 10)) if hold_out is None else hold_out
    if held > len(pairs):
        raise InputError(f"{folder}: it holds {len(pairs)} pairs, not {held}; type a smaller --hold-out")
    return Pairs(pairs[: len(pairs) - held], pairs[len(pairs) - held :])


def read_pair(pair: Pair) -> tuple[Tensor, Tensor]:
    """Decode the phone's and the camera's picture: uint8 (3, H, W) each, RGB. 16-bit pictures are rounded to 8 bits.

    Raises InputError if one cannot be decoded, or no longer has the size that it had.
    """
    return _read(pair.phone, pair), _read(pair.camera, pair)


def to_float(pixels: Tensor) -> Tensor:
    """8-bit values as the original's network gets them: divided by 255 in float16 (load_dataset.py, test_model.py).

    uint8 of any shape and device to float32 in [0, 1] of the same; up to 0.00024 from the exact quotient.
    """
    return _levels(pixels.device)[pixels.int()]


class PatchBatches(Dataset[Batch | DpedError]):
    """The batch of every step of training, as a pure function of (seed, step).

    So any step can be resumed at, and any number of workers gives the same. As in the original, steps draw with
    replacement from a pool of `pool` pairs, itself drawn without; a new one after steps 0, redraw, 2 * redraw ...

    Pictures larger than a patch give an aligned patch at random. Of photos (see LARGE), up to PATCHES_PER_PHOTO
    patches of a batch come from one. A pair that cannot be read is replaced by the next that can, and a line in the
    batch's notes says so. augment: one of the eight flips and quarter turns at random, the same for both pictures.

    rank, world_size: of `world_size` processes each gets its slice of the batch, and together these are exactly the
    batch that one process would get.

    An item is a DpedError, returned, if no pair at all can be read: raised in a worker it would reach the user as a
    traceback. `batches` raises it.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        seed: int,
        *,
        batch_size: int = 50,
        patch_size: int = 100,
        pool: int = 30_000,
        redraw: int = 1000,
        augment: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Raises DpedError if there are no pairs, one is smaller than a patch, or the batch cannot be divided."""
        if not pairs:
            raise InputError("no pairs to train on: all are held out for testing; type a smaller --hold-out")
        for pair in pairs:
            if min(pair.width, pair.height) < patch_size:
                size = f"{pair.width}x{pair.height}"
                raise InputError(f"{pair.phone}: {size}, smaller than a patch of {patch_size}; remove this pair")
        if batch_size % world_size:
            raise DpedError(f"a batch of {batch_size} cannot be divided among {world_size} processes; type another")
        # As arrays, for every worker gets a copy: of DPED's 160,000 pairs a list takes five times the memory.
        self._phones = np.array([os.fsencode(pair.phone) for pair in pairs])
        self._cameras = np.array([os.fsencode(pair.camera) for pair in pairs])
        self._sizes = np.array([(pair.width, pair.height) for pair in pairs])
        self._are_large = self._sizes.prod(axis=1) > LARGE * patch_size**2
        self._seed = seed
        self._batch_size = batch_size
        self._patch_size = patch_size
        self._pool_size = min(pool, len(pairs))
        self._redraw = redraw
        self._augment = augment
        share = batch_size // world_size
        self._slice = slice(rank * share, (rank + 1) * share)
        self._pool = (-1, np.empty(0, dtype=np.int64))

    def __getitem__(self, step: int) -> Batch | DpedError:
        random = np.random.default_rng([self._seed, step])
        notes: list[str] = []
        try:
            generator, discriminator = (self._draw(step, random, notes) for _ in range(2))
        except DpedError as error:
            return error
        swaps = random.integers(2, size=self._batch_size, dtype=np.uint8)[self._slice]
        return Batch(generator, discriminator, torch.from_numpy(swaps), tuple(notes))

    def _draw(self, step: int, random: np.random.Generator, notes: list[str]) -> PatchPairs:
        """Draw pairs of patches. What is random is drawn for all processes and all options, so that none differs."""
        pool = self._pool_at(step)
        picks = pool[random.integers(len(pool), size=self._batch_size)]
        places = random.random((self._batch_size, 2))[self._slice]
        turns = random.integers(8, size=self._batch_size)[self._slice]
        firsts = picks[np.arange(self._batch_size) // PATCHES_PER_PHOTO * PATCHES_PER_PHOTO]
        picks = np.where(self._are_large[firsts], firsts, picks)[self._slice]

        side = self._patch_size
        phone, camera = (torch.empty(len(picks), 3, side, side, dtype=torch.uint8) for _ in range(2))
        for pick in np.unique(picks):
            pictures = self._read_from(int(pick), notes)
            for n in np.flatnonzero(picks == pick):
                # Multiplied only now, for a pair that takes another's place may be of another size.
                top, left = (
                    int(u * (length - side + 1)) for u, length in zip(places[n], pictures[0].shape[1:], strict=True)
                )
                for picture, patches in zip(pictures, (phone, camera), strict=True):
                    patch = picture[:, top : top + side, left : left + side]
                    patches[n] = _turned(patch, int(turns[n])) if self._augment else patch
        return PatchPairs(phone, camera)

    def _pool_at(self, step: int) -> np.ndarray:
        """The numbers of the pairs from which a step draws."""
        number = -(-step // self._redraw)  # train_model.py redraws at the end of step 0, not before it
        if self._pool[0] != number:
            # Its own sequence of random numbers; a last 0 would be as good as none.
            random = np.random.default_rng([self._seed, number, 1])
            self._pool = number, random.choice(len(self._phones), self._pool_size, replace=False)
        return self._pool[1]

    def _read_from(self, index: int, notes: list[str]) -> tuple[Tensor, Tensor]:
        """Read the first readable pair from this one on, and from the beginning after the last."""
        count = len(self._phones)
        for number in chain(range(index, count), range(index)):
            phone, camera = (Path(os.fsdecode(names[number])) for names in (self._phones, self._cameras))
            width, height = self._sizes[number].tolist()
            try:
                return read_pair(Pair(phone, camera, width, height))
            except InputError as error:
                notes.append(f"{error}; this pair is left out")
        raise InputError(f"none of the {count} training pairs can be read; the last: {notes[-1]}")


def batches(patches: PatchBatches, steps: range, workers: int) -> Iterator[Batch]:
    """The batches of these steps, in order, read ahead by `workers` processes; by this one where that is 0.

    Each unreadable picture is noted only once. Raises DpedError if no pair can be read.
    """
    loader = DataLoader(
        patches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        # Processes that are forked may hang: this one runs threads, and may use a GPU.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_leave_interrupts_to_the_main_process,
        # Otherwise torch draws a seed from its global generator, which has to be left alone.
        generator=torch.Generator(),
    )
    noted: set[str] = set()
    with _interrupts_held_back():  # a worker that has not come to its first line yet would die of one
        items = iter(loader)
    for item in items:
        if isinstance(item, DpedError):
            raise item
        fresh = tuple(note for note in dict.fromkeys(item.notes) if note not in noted)
        noted.update(fresh)
        yield replace(item, notes=fresh)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches this process afterwards, and never one that is started here; but for Windows."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing would start it here, and then let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_interrupts_to_the_main_process(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and the main one may need another batch for a tidy end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def _levels(device: torch.device) -> Tensor:
    """The 256 values of to_float. As a table, for not every device divides float16 with correct rounding."""
    return torch.from_numpy((np.arange(256, dtype=np.float16) / np.float16(255)).astype(np.float32)).to(device)


def _turned(patch: Tensor, turn: int) -> Tensor:
    """One of the eight symmetries of a square: 0 to 3 quarter turns, and the same mirrored."""
    rotated = torch.rot90(patch, turn % 4, (1, 2))
    return rotated.flip(2) if turn >= 4 else rotated


def _read(path: Path, pair: Pair) -> Tensor:
    (pixels,) = read_photo(path).frame.planes
    height, width, _ = pixels.shape
    if (width, height) != (pair.width, pair.height):
        raise InputError(f"{path}: {width}x{height} now, no longer {pair.width}x{pair.height}; start anew")
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / np.float32(257)).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _pairs_of_original(root: Path, phone: str, notify: Notify, hold_out: int | Literal["all"] | None) -> Pairs:
    if isinstance(hold_out, int):
        raise InputError(f"{root} has test pictures of its own; leave out --hold-out")
    training, testing = root / "training_data", root / "test_data" / "patches"
    if not testing.is_dir():
        raise InputError(f"{testing}: no such folder; to test on a part of the training pairs, name {training}")
    train = [] if hold_out == "all" else _match(training / phone, training / CAMERA, notify)
    return Pairs(train, _match(testing / phone, testing / CAMERA, notify))


def _match(phone_folder: Path, camera_folder: Path, notify: Notify) -> list[Pair]:
    phones, cameras = _by_stem(phone_folder), _by_stem(camera_folder)
    pairs, skipped = [], []
    for stem in sorted(phones.keys() | cameras.keys(), key=lambda stem: (_natural(stem), stem)):
        if stem not in phones or stem not in cameras:
            alone, other = (phones[stem], camera_folder) if stem in phones else (cameras[stem], phone_folder)
            skipped.append(f"{alone}: no picture of this name in {other}; it is left out")
            continue
        phone, camera = phones[stem], cameras[stem]
        try:
            size, camera_size = photo_size(phone), photo_size(camera)
        except InputError as error:
            skipped.append(f"{error}; this pair is left out")
            continue
        if size != camera_size:
            sizes = f"{phone} is {size[0]}x{size[1]}, {camera} is {camera_size[0]}x{camera_size[1]}"
            raise InputError(f"{sizes}; make them equal, aligned pixel by pixel, or remove both")
        pairs.append(Pair(phone, camera, *size))
    for line in skipped[:_TOLD]:
        notify(line)
    if len(skipped) > _TOLD:
        notify(f"{phone_folder}, {camera_folder}: {len(skipped) - _TOLD} more are left out")
    if not pairs:
        raise InputError(f"{phone_folder}, {camera_folder}: no two readable pictures of one name, as N.jpg in both")
    return pairs


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; name the folder of the pairs") from error


def _pictures(folder: Path) -> list[Path]:
    """The files in a folder that are named as pictures."""
    try:
        return [
            path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
        ]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; it must hold pictures") from error


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _pictures(folder):
        if (other := found.setdefault(path.stem, path)) != path:
            raise InputError(f"{path} and {other.name} have one name; remove one of them")
    return found


def _choices(phones: list[str]) -> str:
    return " or ".join(f"--phone {name}" for name in phones)


def _natural(stem: str) -> list[str | int]:
    """A key that sorts digits as numbers."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", stem))]
