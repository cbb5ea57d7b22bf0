"""Pairs found in real folders, and the batches made of them, told apart by what their pixels say."""

from __future__ import annotations

import multiprocessing
import os
import signal
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

from dped_live.errors import DpedError, InputError
from dped_live.training.pairs import Batch, Pair, PatchBatches, PatchPairs, batches, find_pairs, read_pair, to_float

RANDOM = np.random.default_rng(1)


def no_line_expected(line: str) -> None:
    raise AssertionError(line)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def plain(number: int, height: int = 8, width: int = 8) -> np.ndarray:
    """A picture of one colour, which says in its red what number it has."""
    return np.full((height, width, 3), (number, 100, 200), np.uint8)


def coordinates(number: int, height: int, width: int) -> np.ndarray:
    """A picture whose pixels say where they are: column in red, row in green, the picture's number in blue."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.full_like(rows, number)], 2).astype(np.uint8)


def plain_pairs(folder: Path, count: int, side: int = 8) -> list[Pair]:
    """The phone's pictures are numbered from 0, the camera's from 100."""
    return [
        Pair(
            write(folder / "phone" / f"{n}.png", plain(n, side, side)),
            write(folder / "canon" / f"{n}.png", plain(100 + n, side, side)),
            side,
            side,
        )
        for n in range(count)
    ]


def cut_short(path: Path) -> None:
    """Put a picture of 32x32 there of which the pixels break off."""
    noise = BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(noise, "PNG")
    path.write_bytes(noise.getvalue()[: len(noise.getvalue()) // 2])


# Finding pairs.


def test_the_layout_of_the_original(tmp_path: Path) -> None:
    root = tmp_path / "sony"
    for n in (0, 1, 2, 10):
        for folder in ("sony", "canon"):
            write(root / "training_data" / folder / f"{n}.jpg", plain(n))
            write(root / "test_data" / "patches" / folder / f"{n + 1}.jpg", plain(n))
    write(root / "test_data" / "full_size_test_images" / "0.jpg", plain(0))

    for phone in ("sony", None):
        pairs = find_pairs(tmp_path, phone, no_line_expected)
        assert [pair.name for pair in pairs.train] == ["0", "1", "2", "10"]
        assert [pair.name for pair in pairs.test] == ["1", "2", "3", "11"]
        training, testing = root / "training_data", root / "test_data" / "patches"
        assert pairs.train[3] == Pair(training / "sony" / "10.jpg", training / "canon" / "10.jpg", 8, 8)
        assert pairs.test[0] == Pair(testing / "sony" / "1.jpg", testing / "canon" / "1.jpg", 8, 8)

    with pytest.raises(InputError, match="leave out --hold-out"):
        find_pairs(tmp_path, "sony", no_line_expected, hold_out=1)
    with pytest.raises(InputError, match=r"type --phone sony$"):
        find_pairs(tmp_path, "soni", no_line_expected)
    (tmp_path / "iphone" / "training_data").mkdir(parents=True)
    with pytest.raises(InputError, match=r"type --phone iphone or --phone sony$"):
        find_pairs(tmp_path, None, no_line_expected)
    with pytest.raises(InputError, match=r"test_data.patches: no such folder; .* name .*training_data$"):
        find_pairs(tmp_path, "iphone", no_line_expected)


def test_two_folders_with_pictures_of_equal_names(tmp_path: Path) -> None:
    for n in range(1, 26):
        write(tmp_path / "nokia" / f"shot {n}.PNG", plain(n))
        write(tmp_path / "canon" / f"shot {n}.tif", plain(n))
    (tmp_path / "nokia" / "notes.txt").write_text("no picture")
    (tmp_path / "nokia" / "._shot 1.PNG").write_bytes(b"what another system left")
    (tmp_path / "empty").mkdir()

    pairs = find_pairs(tmp_path, None, no_line_expected)
    assert [pair.name for pair in pairs.train] == [f"shot {n}" for n in range(1, 24)]
    assert [pair.name for pair in pairs.test] == ["shot 24", "shot 25"]
    assert pairs.train[0] == Pair(tmp_path / "nokia" / "shot 1.PNG", tmp_path / "canon" / "shot 1.tif", 8, 8)
    assert len(find_pairs(tmp_path, "nokia", no_line_expected, hold_out=7).test) == 7
    assert not find_pairs(tmp_path, "nokia", no_line_expected, hold_out=0).test
    assert not find_pairs(tmp_path, "nokia", no_line_expected, hold_out=25).train
    with pytest.raises(InputError, match="25 pairs, not 26"):
        find_pairs(tmp_path, "nokia", no_line_expected, hold_out=26)


def test_a_few_pairs_keep_one_for_testing(tmp_path: Path) -> None:
    plain_pairs(tmp_path, 3)
    assert len(find_pairs(tmp_path, None, no_line_expected).test) == 1


def test_which_folder_is_whose(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "1.png", plain(1))
    assert find_pairs(tmp_path, "b", no_line_expected).test[0].camera == tmp_path / "a" / "1.png"
    with pytest.raises(InputError, match=r"type --phone a or --phone b$"):
        find_pairs(tmp_path, None, no_line_expected)
    with pytest.raises(InputError, match=r"no pictures here; type --phone a or --phone b$"):
        find_pairs(tmp_path, "c", no_line_expected)
    write(tmp_path / "c" / "1.png", plain(1))
    with pytest.raises(InputError, match="name their folder canon"):
        find_pairs(tmp_path, "b", no_line_expected)
    write(tmp_path / "canon" / "1.png", plain(1))
    assert find_pairs(tmp_path, "b", no_line_expected).test[0].camera == tmp_path / "canon" / "1.png"
    with pytest.raises(InputError, match=r"type --phone a or --phone b or --phone c$"):
        find_pairs(tmp_path, None, no_line_expected)


def test_no_pairs_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        find_pairs(tmp_path / "missing", None, no_line_expected)
    with pytest.raises(InputError, match="it must hold PHONE/training_data/PHONE"):
        find_pairs(tmp_path, None, no_line_expected)
    write(tmp_path / "canon" / "1.png", plain(1))
    with pytest.raises(InputError, match="it must hold PHONE/training_data/PHONE"):
        find_pairs(tmp_path, None, no_line_expected)
    write(tmp_path / "phone" / "2.png", plain(1))
    lines: list[str] = []
    with pytest.raises(InputError, match="no two readable pictures of one name"):
        find_pairs(tmp_path, None, lines.append)
    assert len(lines) == 2


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    plain_pairs(tmp_path, 4)
    (tmp_path / "canon" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nno header")
    (tmp_path / "phone" / "2.png").unlink()
    lines: list[str] = []
    pairs = find_pairs(tmp_path, None, lines.append)
    assert [pair.name for pair in pairs.train + pairs.test] == ["0", "3"]
    damaged, alone = lines
    assert damaged.startswith(f"{tmp_path / 'canon' / '1.png'}: ")
    assert alone == f"{tmp_path / 'canon' / '2.png'}: no picture of this name in {tmp_path / 'phone'}; it is left out"


def test_ten_are_named_and_the_others_counted(tmp_path: Path) -> None:
    plain_pairs(tmp_path, 15)
    for n in range(13):
        (tmp_path / "phone" / f"{n}.png").unlink()
    lines: list[str] = []
    find_pairs(tmp_path, None, lines.append)
    assert [line.split(": ")[0] for line in lines[:10]] == [str(tmp_path / "canon" / f"{n}.png") for n in range(10)]
    assert lines[10:] == [f"{tmp_path / 'phone'}, {tmp_path / 'canon'}: 3 more are left out"]


def test_pairs_of_different_sizes(tmp_path: Path) -> None:
    phone = write(tmp_path / "phone" / "1.png", plain(1, 10, 8))
    camera = write(tmp_path / "canon" / "1.png", plain(1, 8, 10))
    with pytest.raises(InputError) as error:
        find_pairs(tmp_path, None, no_line_expected)
    assert str(error.value).startswith(f"{phone} is 8x10, {camera} is 10x8; ")


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    plain_pairs(tmp_path, 2)
    write(tmp_path / "canon" / "1.jpg", plain(1))
    with pytest.raises(InputError, match="have one name"):
        find_pairs(tmp_path, None, no_line_expected)


@pytest.mark.parametrize("name", ["1.jpg", "1.tif", "1.webp"])
def test_the_size_is_that_of_the_upright_picture(tmp_path: Path, name: str) -> None:
    write(tmp_path / "canon" / "1.png", coordinates(0, 20, 30))
    (tmp_path / "phone").mkdir()
    picture, exif = Image.fromarray(coordinates(0, 30, 20)), Image.Exif()
    exif[Base.Orientation] = 6
    if name == "1.webp":
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
        picture.save(tmp_path / "phone" / name, xmp=xmp)
    else:
        picture.save(tmp_path / "phone" / name, exif=exif.tobytes())
    (pair,) = find_pairs(tmp_path, None, no_line_expected).test
    assert (pair.width, pair.height) == (30, 20)
    assert [picture.shape for picture in read_pair(pair)] == [(3, 20, 30)] * 2


# Pixels.


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    values = np.array([0, 128, 129, 257, 40000, 65535], np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.repeat(values[None, :, None], 3, axis=2))
    write(tmp_path / "b.png", coordinates(0, 1, 6))
    phone, camera = read_pair(Pair(tmp_path / "a.png", tmp_path / "b.png", 6, 1))
    assert phone.dtype == camera.dtype == torch.uint8
    assert phone[:, 0].tolist() == [[0, 0, 1, 1, 156, 255]] * 3
    assert camera[0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_values_are_divided_as_in_the_original() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    result = to_float(every)
    assert result.dtype == torch.float32
    assert result.shape == (2, 128)
    # load_dataset.py: np.float16(I) / 255
    assert result.flatten().tolist() == (np.arange(256).astype(np.float16) / 255).tolist()
    # 1/255 with the 11 digits of float16
    assert to_float(torch.tensor([0, 1, 255], dtype=torch.uint8)).tolist() == [0, 1028 / 2**18, 1]
    assert (result.flatten() - torch.arange(256) / 255).abs().max() > 2e-4


# Batches.


def numbers(patches: PatchPairs) -> list[int]:
    """Which of plain_pairs each patch is of, having checked that both pictures are of one pair."""
    assert torch.equal(patches.phone[:, 0] + 100, patches.camera[:, 0])
    return patches.phone[:, 0, 0, 0].tolist()


def item(patches: PatchBatches, step: int) -> Batch:
    result = patches[step]
    assert isinstance(result, Batch)
    return result


def concatenated(parts: list[PatchPairs]) -> PatchPairs:
    return PatchPairs(torch.cat([part.phone for part in parts]), torch.cat([part.camera for part in parts]))


def equal(a: Batch, b: Batch) -> bool:
    def tensors(batch: Batch) -> list[Tensor]:
        pairs = (batch.generator, batch.discriminator)
        return [*(t for pair in pairs for t in (pair.phone, pair.camera)), batch.swaps]

    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_a_batch(tmp_path: Path) -> None:
    batch = item(PatchBatches(plain_pairs(tmp_path, 40), seed=3, patch_size=8), 17)
    for patches in (batch.generator, batch.discriminator):
        assert patches.phone.shape == patches.camera.shape == (50, 3, 8, 8)
        assert patches.phone.dtype == patches.camera.dtype == torch.uint8
        # With replacement: 50 draws of 40 pairs are of about 29 different ones.
        assert 20 < len(set(numbers(patches))) < 37
    assert numbers(batch.generator) != numbers(batch.discriminator)
    assert batch.swaps.shape == (50,)
    assert batch.swaps.dtype == torch.uint8
    assert set(batch.swaps.tolist()) == {0, 1}
    assert 15 < batch.swaps.sum() < 35
    assert batch.notes == ()


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    pairs = plain_pairs(tmp_path, 40)
    one, other = (PatchBatches(pairs, seed=3, patch_size=8, pool=9, redraw=2) for _ in range(2))
    forwards = [item(one, step) for step in range(5)]
    for step in reversed(range(5)):
        assert equal(item(other, step), forwards[step])
    assert not equal(forwards[1], forwards[2])
    for step in (1, 2):
        reseeded = item(PatchBatches(pairs, seed=4, patch_size=8, pool=9, redraw=2), step)
        assert numbers(reseeded.generator) != numbers(forwards[step].generator)
        assert not torch.equal(reseeded.swaps, forwards[step].swaps)


def test_the_pool_is_redrawn_when_the_original_redraws_it(tmp_path: Path) -> None:
    """After step 0, for train_model.py redraws after every step that 1000 divides, and so on."""
    patches = PatchBatches(plain_pairs(tmp_path, 40), seed=0, patch_size=8, pool=5, redraw=3)
    pools = [{*numbers((batch := item(patches, step)).generator), *numbers(batch.discriminator)} for step in range(8)]
    assert [len(pool) for pool in pools] == [5] * 8
    assert pools[1] == pools[2] == pools[3]
    assert pools[4] == pools[5] == pools[6]
    different = [pools[step] for step in (0, 1, 4, 7)]
    assert all(a != b for n, a in enumerate(different) for b in different[:n])


def test_patches_of_larger_pictures_are_aligned_and_everywhere(tmp_path: Path) -> None:
    pair = Pair(
        write(tmp_path / "1.png", coordinates(1, 12, 11)), write(tmp_path / "2.png", coordinates(2, 12, 11)), 11, 12
    )
    patches = item(PatchBatches([pair], seed=0, batch_size=200, patch_size=8), 0).generator
    assert (patches.phone[:, 2] == 1).all()
    assert (patches.camera[:, 2] == 2).all()
    assert torch.equal(patches.phone[:, :2], patches.camera[:, :2])
    corners = patches.phone[:, :2, 0, 0]
    assert {tuple(corner) for corner in corners.tolist()} == {(x, y) for x in range(4) for y in range(5)}
    step = torch.arange(8, dtype=torch.uint8)
    assert torch.equal(patches.phone[:, 0], corners[:, 0, None, None] + step.expand(200, 8, 8))
    assert torch.equal(patches.phone[:, 1], corners[:, 1, None, None] + step[:, None].expand(200, 8, 8))


def test_ten_patches_come_from_one_photo(tmp_path: Path) -> None:
    """Pictures of 17x17 are over four patches of 8x8, those of 16x16 are not."""
    photos = item(PatchBatches(plain_pairs(tmp_path / "photos", 40, 17), seed=1, patch_size=8), 1)
    for patches in (photos.generator, photos.discriminator):
        tens = [numbers(patches)[first : first + 10] for first in range(0, 50, 10)]
        assert all(len(set(ten)) == 1 for ten in tens)
        assert len({ten[0] for ten in tens}) > 2
    smaller = item(PatchBatches(plain_pairs(tmp_path / "smaller", 40, 16), seed=1, patch_size=8), 1)
    assert len(set(numbers(smaller.generator)[:10])) > 5


def test_augmentation_turns_both_pictures_alike(tmp_path: Path) -> None:
    picture = coordinates(0, 4, 4)
    pair = Pair(write(tmp_path / "1.png", picture), write(tmp_path / "2.png", 100 + picture), 4, 4)
    patches = item(PatchBatches([pair], seed=0, batch_size=100, patch_size=4, augment=True), 0).generator
    assert torch.equal(patches.phone + 100, patches.camera)
    original = torch.from_numpy(picture).permute(2, 0, 1)
    symmetries = {turned.numpy().tobytes() for turned in patches.phone}
    for mirrored in (original, original.flip(1)):
        for turns in range(4):
            symmetries.remove(mirrored.rot90(turns, (1, 2)).contiguous().numpy().tobytes())
    assert not symmetries


def test_processes_share_a_batch(tmp_path: Path) -> None:
    """Photos and small pictures, placed and turned at random."""
    pairs = []
    for n in range(40):
        side = 17 if n % 2 else 10
        picture = coordinates(n, side, side)
        phone, camera = (write(tmp_path / f"{folder}{n}.png", picture) for folder in ("a", "b"))
        pairs.append(Pair(phone, camera, side, side))
    whole = item(PatchBatches(pairs, seed=2, batch_size=30, patch_size=8, augment=True), 4)
    parts = [
        item(PatchBatches(pairs, seed=2, batch_size=30, patch_size=8, augment=True, rank=rank, world_size=5), 4)
        for rank in range(5)
    ]
    assert parts[0].swaps.shape == (6,)
    joined = Batch(
        generator=concatenated([part.generator for part in parts]),
        discriminator=concatenated([part.discriminator for part in parts]),
        swaps=torch.cat([part.swaps for part in parts]),
        notes=(),
    )
    assert equal(joined, whole)
    with pytest.raises(DpedError, match="a batch of 30 cannot be divided among 4 processes"):
        PatchBatches(pairs, seed=2, batch_size=30, patch_size=8, world_size=4)


def test_pictures_smaller_than_a_patch_are_refused(tmp_path: Path) -> None:
    pairs = plain_pairs(tmp_path, 2)
    with pytest.raises(InputError, match=r"0\.png: 8x8, smaller than a patch of 9"):
        PatchBatches(pairs, seed=0, patch_size=9)
    with pytest.raises(InputError, match="no pairs to train on"):
        PatchBatches([], seed=0)


def test_a_damaged_picture_is_replaced_by_the_next_and_named_once(tmp_path: Path) -> None:
    pairs = plain_pairs(tmp_path, 4, 32)
    intact = PatchBatches(pairs, seed=5, patch_size=32)
    drawn = [numbers(item(intact, step).generator) for step in range(3)]
    cut_short(pairs[3].camera)
    cut_short(pairs[0].phone)
    assert find_pairs(tmp_path, None, no_line_expected, hold_out=0).train == pairs, "their headers are whole"
    write(pairs[1].phone, plain(1, 33, 33))  # replaced by another while training

    made = list(batches(intact, range(3), workers=0))
    assert all(set(numbers(batch.generator)) == {2} for batch in made)
    assert any({0, 1, 2, 3} == set(row) for row in drawn)
    assert sorted(note.split(": ")[0] for note in made[0].notes) == sorted(
        str(path) for path in (pairs[3].camera, pairs[0].phone, pairs[1].phone)
    )
    assert not made[1].notes
    assert not made[2].notes


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_workers_change_nothing_and_their_errors_are_one_line(tmp_path: Path) -> None:
    pairs = plain_pairs(tmp_path, 10, 32)
    patches = PatchBatches(pairs, seed=1, batch_size=4, patch_size=8, pool=3, redraw=2)
    torch.manual_seed(0)
    alone = list(batches(patches, range(6), workers=0))
    resumed = batches(patches, range(2, 1000), workers=2)
    for batch in alone[2:4]:
        assert equal(next(resumed), batch)
    # Each of the two has made one. Now Ctrl-C in a terminal would reach them too.
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    for batch in alone[4:]:
        assert equal(next(resumed), batch)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))

    for pair in pairs:
        cut_short(pair.phone)
    # Some batches are made already; then the pictures that are not the pool's are tried as well.
    with pytest.raises(InputError, match="none of the 10 training pairs can be read") as error:
        for _ in resumed:
            pass
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)
