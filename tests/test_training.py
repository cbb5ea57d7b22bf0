"""Training of a tiny network on pairs made here: that it learns, resumes to the bit, and stops when it must."""

from __future__ import annotations

import copy
import csv
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dped_live import weights
from dped_live.errors import BackendError, InputError, OutputError, TrainingError
from dped_live.metrics import ms_ssim_of_original, psnr
from dped_live.training import checkpoint
from dped_live.training.configuration import Configuration, fingerprint
from dped_live.training.discriminator import Discriminator
from dped_live.training.initialise import initialise
from dped_live.training.loop import Outcome, train
from dped_live.training.losses import (
    RECIPES,
    color_loss,
    content_loss,
    discriminator_loss,
    greyscale,
    swapped,
    texture_loss,
    total_variation_loss,
)
from dped_live.training.pairs import Batch, Pair, Pairs, PatchBatches, find_pairs, read_pair, to_float
from dped_live.training.processes import Processes
from dped_live.training.trainer import Losses, Trainer, resolve_precision
from dped_live.training.validation import Validation

from conftest import load_generator, random_generator

CPU = torch.device("cpu")
ALONE = Processes(CPU)
PATCH = 20
"""Side of the patches, in pixels; the discriminator takes no fewer than 17."""


def write_pairs(folder: Path, count: int = 12, side: int = 32) -> Path:
    """Smooth pictures of an iphone, and what a colour curve makes of them."""
    random = np.random.default_rng(0)
    for name in ("iphone", "canon"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        phone = cv2.resize(random.integers(0, 256, (4, 4, 3), dtype=np.uint8), (side, side))
        camera = np.rint(255 * (phone / 255) ** 0.3 * (1, 0.95, 0.9)).astype(np.uint8)
        cv2.imwrite(str(folder / "iphone" / f"{number}.png"), phone)
        cv2.imwrite(str(folder / "canon" / f"{number}.png"), camera)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return find_pairs(write_pairs(tmp_path_factory.mktemp("pairs")), "iphone", print, hold_out=3)


def configuration(pairs: Pairs, **choices: Any) -> Configuration:
    small: dict[str, Any] = {"batch": 2, "patch": PATCH, "channels": 4, "blocks": 1, "content": "off"}
    return Configuration(phone="iphone", data=fingerprint(pairs), **small | choices)


def run_of(pairs: Pairs, folder: Path, steps: int, evaluate_every: int = 2, **how: Any) -> Outcome:
    return train(pairs, folder, configuration(pairs), steps=steps, evaluate_every=evaluate_every, **how)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def assert_same_run(run: Path, expected: Path) -> None:
    """That all that is in two folders agrees to the bit."""
    assert files(run) == files(expected)
    for name in files(run):
        content, wanted = (run / name).read_bytes(), (expected / name).read_bytes()
        if not name.endswith(".safetensors"):
            assert content == wanted, name
            continue
        assert metadata(run / name) == metadata(expected / name)
        tensors, wanted_tensors = safetensors.torch.load(content), safetensors.torch.load(wanted)
        assert tensors.keys() == wanted_tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, wanted_tensors[key]), f"{name}: {key}"


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def random_trainer(features: nn.Module | None = None, precision: torch.dtype = torch.float32, seed: int = 0) -> Trainer:
    generator, discriminator = random_generator(4, 1), Discriminator(PATCH)
    initialise(discriminator, torch.Generator().manual_seed(seed))
    with torch.no_grad():  # so that its judgements differ
        for parameter in discriminator.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return Trainer(generator, discriminator, features, RECIPES["repository"], 5e-4, precision, ALONE)


def batch_of(pairs: Pairs, size: int = 4) -> Batch:
    batch = PatchBatches(pairs.train, 0, batch_size=size, patch_size=PATCH)[0]
    assert isinstance(batch, Batch)
    return batch


# What it learns.


@pytest.fixture(scope="module")
def learnt(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[str], list[int]]:
    """A run, its outcome, what was said and the steps that were reported."""
    run = tmp_path_factory.mktemp("learnt") / "run"
    said: list[str] = []
    steps: list[int] = []
    choices = configuration(pairs, batch=4, channels=8, learning_rate=2e-3)
    outcome = train(
        pairs,
        run,
        choices,
        steps=45,
        evaluate_every=20,
        keep=1,
        notify=said.append,
        progress=lambda step, _losses: steps.append(step),
    )
    return run, outcome, said, steps


def test_losses_fall(learnt: tuple[Path, Outcome, list[str], list[int]]) -> None:
    run, outcome, said, steps = learnt
    table = rows(run)
    assert [int(row["step"]) for row in table] == [0, 20, 40, 45]
    for term in ("train_color", "test_color", "test_generator"):
        values = [float(row[term]) for row in table if row[term]]
        assert values[-1] < values[0] / 2, term
    scores = [float(row["psnr"]) for row in table]
    assert scores[-1] > scores[0] + 5
    assert {row["train_content"] for row in table} == {row["test_content"] for row in table} == {""}
    assert {key for key, value in table[0].items() if not value} >= {"train_generator", "train_accuracy"}
    best = scores.index(max(scores))
    assert outcome[:3] == (45, False, (0, 20, 40, 45)[best])
    assert outcome.best_psnr == pytest.approx(scores[best], abs=1e-3)
    assert steps == [*range(1, 46)]
    assert len(said) == 4
    assert said[-1].startswith(f"step 45: PSNR {scores[-1]:.2f} dB, MS-SSIM ")


def test_what_a_run_leaves(learnt: tuple[Path, Outcome, list[str], list[int]], pairs: Pairs) -> None:
    run, outcome, _, _ = learnt
    kept = sorted({outcome.best_step, 45})
    assert files(run) == [
        "best.safetensors",
        *(f"checkpoints/step_{step:06}.safetensors" for step in kept),
        *(f"crops/step_{step:06}.png" for step in (0, 20, 40, 45)),
        "log.csv",
        "model.safetensors",
    ]
    saved = safetensors.torch.load_file(run / "checkpoints" / "step_000045.safetensors")
    model = weights.load(str(run / "model.safetensors"))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[f"generator.{name}"])
    expected = {"recipe": "repository", "content": "off", "phone": "iphone", "steps": "45", "data": fingerprint(pairs)}
    assert expected == {
        key.removeprefix("training."): value
        for key, value in metadata(run / "model.safetensors").items()
        if key.startswith("training.")
    }
    best = weights.load(str(run / "best.safetensors"))
    patches = [tuple(middle(picture) for picture in read_pair(pair)) for pair in pairs.test]
    phone, camera = (to_float(torch.stack(pictures)) for pictures in zip(*patches, strict=True))
    assert psnr(best(phone), camera) == pytest.approx(outcome.best_psnr, abs=1e-3)


def middle(picture: Tensor) -> Tensor:
    top = (picture.shape[1] - PATCH) // 2
    return picture[:, top : top + PATCH, top : top + PATCH]


def test_crops_show_before_after_and_the_cameras(
    learnt: tuple[Path, Outcome, list[str], list[int]], pairs: Pairs
) -> None:
    crops = cv2.imread(str(learnt[0] / "crops" / "step_000045.png"))
    assert crops is not None
    assert crops.shape == (3 * PATCH, 3 * PATCH, 3)  # all three test pictures, for there are no five
    model = weights.load(str(learnt[0] / "model.safetensors"))
    shown = torch.from_numpy(crops[..., ::-1].copy()).permute(2, 0, 1)
    rows_shown = {tuple(row[:, :, :PATCH].flatten().tolist()): row for row in torch.split(shown, PATCH, 1)}
    for pair in pairs.test:
        phone, camera = (middle(picture) for picture in read_pair(pair))
        row = rows_shown[tuple(phone.flatten().tolist())]
        assert torch.equal(row[:, :, 2 * PATCH :], camera)
        enhanced: Tensor = model(to_float(phone[None]))[0].clamp(0, 1) * 255
        assert (row[:, :, PATCH : 2 * PATCH] - enhanced).abs().max() < 0.51


# One step.


def first_adam_step(network: nn.Module, loss: Tensor) -> None:
    """What Adam's first step comes to: every parameter moves by the learning rate."""
    parameters = list(network.parameters())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.sub_(5e-4 * gradient / (gradient.abs() + 1e-8))


def test_a_step_is_that_of_the_original(pairs: Pairs) -> None:
    """Both updates worked out here: their losses, which batch is for whom, and who sees whose new parameters."""
    features = nn.AvgPool2d(4)
    trained, batch = random_trainer(features), batch_of(pairs)
    generator, discriminator = copy.deepcopy(trained.generator), copy.deepcopy(trained.discriminator)
    losses = trained.step(batch)

    phone, camera = to_float(batch.generator.phone), to_float(batch.generator.camera)
    enhanced = generator(phone)
    terms = (
        content_loss(features(enhanced), features(camera)),
        color_loss(enhanced, camera),
        texture_loss(discriminator(greyscale(enhanced))),
        total_variation_loss(enhanced),
    )
    total = 10 * terms[0] + 0.5 * terms[1] + terms[2] + 2000 * terms[3]
    assert losses[:5] == pytest.approx([total.item(), *(term.item() for term in terms)], rel=1e-4)
    assert losses.content > 0
    first_adam_step(generator, total)

    phone, camera = to_float(batch.discriminator.phone), to_float(batch.discriminator.camera)
    assert 0 < batch.swaps.sum() < 4
    logits = discriminator(swapped(greyscale(generator(phone)), greyscale(camera), batch.swaps))
    loss = discriminator_loss(logits, batch.swaps)
    right = (logits[:, 0] >= logits[:, 1]) == batch.swaps.bool()
    assert losses.discriminator == pytest.approx(loss.item(), rel=1e-4)
    assert losses.accuracy == right.float().mean()
    first_adam_step(discriminator, loss)

    for network, expected in ((trained.generator, generator), (trained.discriminator, discriminator)):
        moved = wrong = 0
        for name, parameter in network.named_parameters():
            # A gradient that is nothing but rounding moves a parameter as far, in either direction.
            wrong += int(((parameter - expected.get_parameter(name)).abs() > 1e-5).sum())
            moved += parameter.numel()
        assert wrong < moved / 200


def test_the_content_term_is_added_with_its_weight(pairs: Pairs) -> None:
    with_features, without = (random_trainer(features).step(batch_of(pairs)) for features in (nn.AvgPool2d(4), None))
    assert with_features.content > 0
    assert without.content == 0
    assert with_features[2:5] == without[2:5]
    assert with_features.generator == pytest.approx(without.generator + 10 * with_features.content)


def test_features_without_a_place_in_the_configuration(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="features are given where"):
        run_of(pairs, tmp_path / "run", 1, features=nn.AvgPool2d(4))
    train(pairs, tmp_path / "run", configuration(pairs, content="vgg"), steps=1, features=nn.AvgPool2d(4))
    assert float(rows(tmp_path / "run")[1]["train_content"]) > 0
    assert float(rows(tmp_path / "run")[1]["test_content"]) > 0


def test_bf16_is_near_float32(pairs: Pairs) -> None:
    exact, rounded = (random_trainer(nn.AvgPool2d(4), precision) for precision in (torch.float32, torch.bfloat16))
    expected, losses = exact.step(batch_of(pairs)), rounded.step(batch_of(pairs))
    assert losses != expected
    assert losses[:6] == pytest.approx(expected[:6], rel=0.03)
    for parameter in rounded.generator.parameters():
        assert parameter.dtype == torch.float32


def test_fp16_leaves_out_steps_that_overflow(pairs: Pairs) -> None:
    """On a CPU, which has it, though training there is not offered it: only few have a GPU to run this on."""
    trained, batch = random_trainer(precision=torch.float16), batch_of(pairs)
    weight = trained.generator.get_parameter("first.weight")
    before = weight.detach().clone()
    trained.step(batch)
    assert torch.equal(weight, before)
    while torch.equal(weight, before):
        trained.step(batch)
    saved = {name: tensor.clone() for name, tensor in trained.tensors().items()}
    assert 1 <= saved["scaler.scale"] < 65536
    losses = trained.step(batch)
    after = {name: tensor.clone() for name, tensor in trained.tensors().items()}
    trained.restore(saved)
    assert trained.step(batch) == losses
    for name, tensor in trained.tensors().items():
        assert torch.equal(tensor, after[name]), name

    saved["scaler.scale"] = torch.tensor(0.5)
    trained.restore(saved)
    with pytest.raises(FloatingPointError, match="gradients overflow in fp16"):
        trained.step(batch)


def test_precisions_of_a_cpu() -> None:
    assert resolve_precision("auto", CPU) == resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    with pytest.raises(BackendError, match="fp16 is for GPUs"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_trains_as_the_cpu_does(pairs: Pairs, precision: torch.dtype) -> None:
    if not torch.cuda.is_available():
        if os.environ.get("DPED_REQUIRE_GPU") == "1":
            pytest.fail("DPED_REQUIRE_GPU=1, and torch finds no GPU")
        pytest.skip("needs an NVIDIA GPU")
    expected = random_trainer(nn.AvgPool2d(4)).step(batch_of(pairs))
    copied = random_trainer(nn.AvgPool2d(4))
    device = Processes(torch.device("cuda"))
    choices = (RECIPES["repository"], 5e-4, precision, device)
    trained = Trainer(copied.generator, copied.discriminator, nn.AvgPool2d(4), *choices)
    losses = trained.step(batch_of(pairs))
    assert losses[:6] == pytest.approx(expected[:6], rel=0.03)
    for _ in range(3):
        trained.step(batch_of(pairs))
    saved = {name: tensor.clone() for name, tensor in trained.tensors().items()}
    trained.step(batch_of(pairs))
    trained.restore(saved)
    for name, tensor in trained.tensors().items():
        assert torch.equal(tensor.cpu(), saved[name].cpu()), name


# The test set.


def test_batches_of_the_test_set_drop_a_remainder(pairs: Pairs) -> None:
    taught = random_trainer()
    validation = Validation(pairs.test + pairs.train[:2], PATCH, 2, 0, ALONE)
    scores = validation.scores(taught)
    expected = []
    for pair_of_pairs in (pairs.test[:2], [pairs.test[2], pairs.train[0]]):
        pictures = [[middle(picture) for picture in read_pair(pair)] for pair in pair_of_pairs]
        phone, camera = (to_float(torch.stack(side)) for side in zip(*pictures, strict=True))
        with torch.no_grad():
            enhanced = taught.generator(phone)
        expected.append(
            [psnr(enhanced, camera), ms_ssim_of_original(enhanced, camera), color_loss(enhanced, camera).item()]
        )
    means = [sum(values) / 2 for values in zip(*expected, strict=True)]
    # MS-SSIM is not a number for pictures as unlike as these may be.
    assert [scores.psnr, scores.ms_ssim, scores.losses.color] == pytest.approx(means, rel=1e-5, nan_ok=True)
    assert scores.losses.texture == -scores.losses.discriminator
    again = validation.scores(taught)
    assert (again.losses, again.psnr) == (scores.losses, scores.psnr)


def test_a_test_set_smaller_than_a_batch_is_one(pairs: Pairs) -> None:
    taught = random_trainer()
    alone, whole = (Validation(pairs.test, PATCH, size, 0, ALONE).scores(taught) for size in (50, 3))
    assert (alone.losses, alone.psnr) == (whole.losses, whole.psnr)


def test_processes_share_the_batches_of_the_test_set(pairs: Pairs) -> None:
    """Together they have each batch once, with the very pictures the discriminator is shown in one process."""
    everything = Validation(pairs.train, PATCH, 2, 0, ALONE)
    shares = [Validation(pairs.train, PATCH, 2, 0, Processes(CPU, rank, 3)) for rank in range(3)]
    whole = [(patches.phone, swaps) for patches, swaps in everything._batches]
    parts: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(whole)
    for rank, share in enumerate(shares):
        parts[rank::3] = [(patches.phone, swaps) for patches, swaps in share._batches]
    for (phone, swaps), (own_phone, own_swaps) in zip(whole, parts, strict=True):
        assert torch.equal(phone, own_phone)
        assert torch.equal(swaps, own_swaps)


def test_a_test_set_that_is_none(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pairs to test on.*--hold-out"):
        run_of(Pairs(pairs.train, []), tmp_path / "run", 1)
    small = Pair(pairs.test[0].phone, pairs.test[0].camera, PATCH - 1, 32)
    with pytest.raises(InputError, match=r"19x32, smaller than a patch of 20; remove this pair"):
        run_of(Pairs(pairs.train, [small]), tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()


# Interrupted and resumed.


@pytest.fixture(scope="module")
def straight(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps that nothing interrupted; no two of its six parts are equal."""
    run = tmp_path_factory.mktemp("straight") / "run"
    run_of(pairs, run, 6, keep=9)
    return run


def test_after_a_kill_it_resumes_to_the_bit(pairs: Pairs, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "import os, signal, test_training\n"
        "from pathlib import Path\n"
        "from dped_live.training.pairs import find_pairs\n"
        f"pairs = find_pairs(Path({str(pairs.test[0].phone.parents[1])!r}), 'iphone', print, hold_out=3)\n"
        "kill = lambda step, _losses: step == 5 and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"test_training.run_of(pairs, Path({str(run)!r}), 6, keep=9, progress=kill)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, timeout=60, check=False)
    assert result.returncode == -9
    assert checkpoint.saved_steps(run) == [0, 2, 4]
    steps: list[int] = []
    run_of(pairs, run, 6, keep=9, resume=True, progress=lambda step, _losses: steps.append(step))
    assert steps == [5, 6]
    assert_same_run(run, straight)


def test_rows_of_the_log_that_no_checkpoint_knows_of_are_made_again(
    pairs: Pairs, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_of(pairs, run, 6, keep=9)
    for step in (4, 6):
        checkpoint.path_of(run, step).unlink()
    run_of(pairs, run, 6, keep=9, resume=True)
    assert_same_run(run, straight)


def test_asked_to_stop_it_saves_and_resumes_to_the_bit(pairs: Pairs, straight: Path, tmp_path: Path) -> None:
    """Between two evaluations, so that the next one's means are over steps of both parts."""
    run = tmp_path / "run"
    asked = iter([False, False, True])
    outcome = run_of(pairs, run, 6, keep=9, stop=lambda: next(asked))
    assert outcome[:2] == (3, True)
    assert [row["step"] for row in rows(run)] == ["0", "2"]
    model = load_generator(run / "model.safetensors")
    saved = safetensors.torch.load_file(checkpoint.path_of(run, 3))
    assert torch.equal(model.first.weight, saved["generator.first.weight"])
    assert not run_of(pairs, run, 6, keep=9, resume=True).interrupted
    checkpoint.path_of(run, 3).unlink()
    assert_same_run(run, straight)


def test_more_steps_later(pairs: Pairs, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_of(pairs, run, 2, keep=9)
    run_of(pairs, run, 6, keep=9, resume=True)
    assert_same_run(run, straight)
    assert run_of(pairs, run, 6, resume=True).step == 6
    with pytest.raises(TrainingError, match="6 steps are done already; type a larger --steps than 5"):
        run_of(pairs, run, 5, resume=True)


def test_the_last_checkpoints_and_the_best_are_kept(pairs: Pairs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    best = run_of(pairs, run, 6, evaluate_every=1, keep=2).best_step
    assert checkpoint.saved_steps(run) == sorted({best, 5, 6})
    for step in range(3):
        (run / "checkpoints" / f"step_{step:06}.safetensors").write_bytes(b"")
    checkpoint.remove_others(run, 1, 2)
    assert checkpoint.saved_steps(run) == [2, 6]


@pytest.mark.parametrize(
    ("option", "value"),
    [("recipe", "paper"), ("learning_rate", 1e-3), ("channels", 5), ("seed", 1), ("augment", True), ("patch", 21)],
)
def test_another_configuration_is_not_resumed(pairs: Pairs, straight: Path, option: str, value: object) -> None:
    before = {name: (straight / name).read_bytes() for name in files(straight)}
    with pytest.raises(TrainingError) as error:
        train(pairs, straight, configuration(pairs, **{option: value}), steps=6, resume=True)
    assert f"begun with another --{option.replace('_', '-')} (" in str(error.value)
    assert f", now {value}); type what" in str(error.value)
    assert {name: (straight / name).read_bytes() for name in files(straight)} == before


def test_other_pairs_are_not_resumed(pairs: Pairs, straight: Path) -> None:
    fewer = Pairs(pairs.train[1:], pairs.test)
    with pytest.raises(TrainingError, match=r"another --data \(9 pairs to train on, .* now 8 pairs"):
        run_of(fewer, straight, 6, resume=True)


def test_folders_that_are_refused(pairs: Pairs, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"run is not empty; add --resume"):
        run_of(pairs, straight, 6)
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(TrainingError, match="there is no run to resume; leave out --resume"):
            run_of(pairs, folder, 6, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory; name another folder"):
        run_of(pairs, tmp_path / "file", 6)
    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        run_of(pairs, tmp_path, 6, resume=True)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def foreign(_content: bytes) -> bytes:
    return safetensors.torch.save({"x": torch.zeros(1)})


@pytest.mark.parametrize(("damage", "said"), [(cut, "damaged; delete it to resume"), (foreign, "not a checkpoint")])
def test_damaged_checkpoints(
    pairs: Pairs, tmp_path: Path, damage: Callable[[bytes], bytes], said: str, straight: Path
) -> None:
    path = checkpoint.path_of(tmp_path, 6)
    path.parent.mkdir()
    path.write_bytes(damage(checkpoint.path_of(straight, 6).read_bytes()))
    with pytest.raises(TrainingError, match=rf"step_000006\.safetensors: {said}"):
        run_of(pairs, tmp_path, 6, resume=True)


# When training fails.


def test_a_loss_that_is_not_finite_stops_it(pairs: Pairs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingError) as error:
        train(pairs, run, configuration(pairs, learning_rate=1e30), steps=9, evaluate_every=9)
    said = str(error.value)
    assert "training failed at step 1: the " in said
    assert f"the last good checkpoint is {checkpoint.path_of(run, 0)}; begin another run with a smaller" in said
    assert "\n" not in said
    assert checkpoint.saved_steps(run) == [0]
    assert len(rows(run)) == 1
    weights.load(str(run / "model.safetensors"))


def test_a_gradient_that_is_not_finite_stops_it(pairs: Pairs) -> None:
    """The square root of 0, whose derivative is infinite."""

    class Root(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return (pictures - pictures).sqrt()

    with pytest.raises(FloatingPointError, match="the generator's gradient is nan"):
        random_trainer(Root()).step(batch_of(pairs))


def test_a_test_loss_that_is_not_finite_stops_it(pairs: Pairs) -> None:
    spoilt = random_trainer()
    with torch.no_grad():
        spoilt.generator.get_parameter("first.weight").fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the color loss is nan"):
        Validation(pairs.test, PATCH, 2, 0, ALONE).scores(spoilt)


# Beginnings and reports.


def test_it_begins_with_the_model_it_is_given(pairs: Pairs, tmp_path: Path) -> None:
    generator = random_generator(4, 1)
    expected = weights.digest(generator)
    weights.save(generator, tmp_path / "start.safetensors")
    init = weights.load(str(tmp_path / "start.safetensors"))
    steps_of: list[tuple[int, Losses]] = []

    def keep_first(step: int, losses: Losses) -> None:
        if not steps_of:
            model = weights.load(str(tmp_path / "run" / "model.safetensors"))
            assert weights.digest(model) == expected
        steps_of.append((step, losses))

    run_of(pairs, tmp_path / "run", 2, init=init, progress=keep_first)
    assert len(steps_of) == 2
    trained = load_generator(tmp_path / "run" / "model.safetensors")
    assert 0 < (trained.first.weight - generator.first.weight).abs().max() < 3 * 5e-4


def test_seeds_differ_and_the_global_random_numbers_are_left_alone(pairs: Pairs, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for seed in (0, 1):
        train(pairs, tmp_path / str(seed), configuration(pairs, seed=seed), steps=1)
    assert torch.equal(torch.get_rng_state(), before)
    models = [load_generator(tmp_path / str(seed) / "model.safetensors") for seed in (0, 1)]
    assert not torch.equal(models[0].first.weight, models[1].first.weight)


def test_unreadable_pictures_are_told_once(pairs: Pairs, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(pairs.train[0].phone.read_bytes()[:-100])
    broken = Pairs([Pair(damaged, pairs.train[0].camera, 32, 32), *pairs.train[1:]], pairs.test)
    said: list[str] = []
    train(broken, tmp_path / "run", configuration(broken), steps=20, evaluate_every=99, notify=said.append)
    assert len([line for line in said if str(damaged) in line and "left out" in line]) == 1


def test_tensorboard(pairs: Pairs, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accumulators = import_module("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    run_of(pairs, run, 4, tensorboard=True)
    board = accumulators.EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("psnr")] == [0, 2, 4]
    assert [event.step for event in board.Scalars("train/color")] == [2, 4]
    assert [event.value for event in board.Scalars("psnr")] == pytest.approx(
        [float(row["psnr"]) for row in rows(run)], abs=1e-3
    )


def test_without_tensorboard_the_error_says_what_to_type(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r'run pip install "tensorboard>=2.19"$'):
        run_of(pairs, tmp_path / "run", 1, tensorboard=True)
    assert not (tmp_path / "run").exists()
