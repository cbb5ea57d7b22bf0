"""`dped-live train` and `dped-live evaluate` as a user meets them, in one process and in two."""

from __future__ import annotations

import csv
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from dped_live import cli, weights
from dped_live.metrics import ms_ssim_of_original, psnr
from dped_live.training import checkpoint
from dped_live.training.pairs import find_pairs, read_pair, to_float

from conftest import random_generator
from test_tensor_bundle import write_bundle
from test_training import files, rows, write_pairs
from test_weights import checkpoint_tensors

SECONDS = 60
"""How long a child process may take."""

TINY = [
    *("--data", "pairs", "--phone", "iphone", "--content", "off", "--hold-out", "3", "--workers", "0"),
    *("--batch", "2", "--patch", "20", "--channels", "4", "--blocks", "1", "--device", "cpu"),
]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with pairs of pictures, and an environment that says nothing."""
    for name in os.environ:
        if name.startswith("DPED_LIVE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs")
    return tmp_path


@pytest.fixture
def dped_live(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line in this process."""

    def run(*arguments: str) -> Said:
        try:
            code = cli.main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = Said(code, *capsys.readouterr())
        assert "Traceback" not in said.err
        return said

    return run


# Training.


def test_a_trained_model_is_judged_and_used(dped_live: Callable[..., Said]) -> None:
    said = dped_live("train", *TINY, "--out", "run", "--steps", "4", "--evaluate-every", "2")
    assert said.code == 0
    assert re.fullmatch(
        r"run/model\.safetensors \(step 4; the best, \d+\.\d\d dB after step [024], is best\.safetensors\)\n", said.out
    )
    lines = said.err.splitlines()
    assert lines[0] == "dped-live: --content off: without VGG's features this is not the loss of the paper"
    assert lines[1] == "dped-live: 9 pairs to train on, 3 to test on; cpu, float32"
    assert [line[:18] for line in lines[2:]] == [f"dped-live: step {step}:" for step in (0, 2, 4)]

    said = dped_live("evaluate", "--model", "run/model.safetensors", "--data", "pairs", "--phone", "iphone")
    assert said.code == 0
    said = dped_live("pairs/iphone/0.png", "--model", "run/model.safetensors", "--precision", "fp32", "-o", "out.png")
    assert said.code == 0
    shown = cv2.imread("out.png")
    assert shown is not None
    phone = read_pair(find_pairs(Path("pairs"), "iphone", print, "all").test[0])[0]
    expected = weights.load("run/model.safetensors")(to_float(phone[None]))[0].clamp(0, 1) * 255
    assert np.abs(shown[..., ::-1] - expected.permute(1, 2, 0).numpy()).max() < 1


def test_progress_without_a_terminal(dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dped_live.training.cli.LINE_EVERY", 0.0)
    said = dped_live("train", *TINY, "--out", "run", "--steps", "3")
    number = r"-?\d[\d.e+-]*"
    terms = rf"generator {number}, color {number}, texture {number}, tv {number}, accuracy {number}"
    for step in (2, 3):
        assert re.search(rf"^dped-live: step {step}/3, \d+:\d\d left: {terms}$", said.err, re.MULTILINE)


def test_quiet(dped_live: Callable[..., Said]) -> None:
    assert dped_live("train", *TINY, "--out", "run", "--steps", "1", "-q") == (0, "", "")


def test_resume(dped_live: Callable[..., Said]) -> None:
    assert dped_live("train", *TINY, "--out", "run", "--steps", "1").code == 0
    said = dped_live("train", *TINY, "--out", "run", "--steps", "2")
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        "dped-live: run is not empty; add --resume to go on with the run in it, or name another folder"
    )
    said = dped_live("train", *TINY, "--out", "run", "--steps", "2", "--resume", "--hold-out", "4")
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        "dped-live: this run was begun with another --hold-out (3, now 4); type what it was begun with, or begin "
        "another with --out"
    )
    assert dped_live("train", *TINY, "--out", "run", "--steps", "2", "--resume").code == 0
    assert [row["step"] for row in rows(Path("run"))] == ["0", "1", "2"]


def test_a_wrong_phone(dped_live: Callable[..., Said]) -> None:
    said = dped_live("train", *TINY, "--phone", "nokia", "--out", "run")
    assert said.code == 1
    assert said.err.splitlines()[-1] == "dped-live: pairs/nokia: no pictures here; type --phone canon or --phone iphone"
    assert not Path("run").exists()


def test_without_vgg_nothing_is_begun(dped_live: Callable[..., Said]) -> None:
    said = dped_live("train", *TINY, "--content", "vgg", "--vgg", "vgg19.pth", "--data", "missing", "--out", "run")
    assert said.code == 1
    assert re.fullmatch(r"dped-live: vgg19\.pth: no such file; give .*\n", said.err)
    assert not Path("run").exists()


def test_failed_training(dped_live: Callable[..., Said]) -> None:
    said = dped_live("train", *TINY, "--out", "run", "--learning-rate", "1e30")
    assert said.code == 1
    assert re.fullmatch(
        r"dped-live: training failed at step 1: the .* is nan; the last good checkpoint is "
        r"run/checkpoints/step_000000\.safetensors; begin another run with a smaller --learning-rate.*",
        said.err.splitlines()[-1],
    )


def test_fine_tuning(dped_live: Callable[..., Said]) -> None:
    weights.save(random_generator(3, 2), Path("start.safetensors"))
    fitting = TINY[: TINY.index("--channels")]
    said = dped_live(
        "train", *fitting, "--device", "cpu", "--out", "run", "--steps", "1", "--init", "start.safetensors"
    )
    assert said.code == 0
    model = weights.load("run/model.safetensors")
    assert (model.channels, model.blocks) == (3, 2)
    said = dped_live("train", *TINY, "--out", "other", "--init", "start.safetensors")
    assert said.code == 1
    assert said.err.splitlines()[-1] == "dped-live: start.safetensors has 3 channels; leave out --channels"


def test_lite_is_tuned_and_trained_anew(dped_live: Callable[..., Said]) -> None:
    lite = weights.load("lite").state_dict()
    fitting = [*TINY[: TINY.index("--channels")], "--device", "cpu", "--steps", "1", "--model", "lite"]
    assert dped_live("train", *fitting, "--init", "lite", "--out", "tuned").code == 0
    assert dped_live("train", *fitting, "--out", "anew").code == 0
    tuned, anew = (weights.load(f"{name}/model.safetensors").state_dict() for name in ("tuned", "anew"))
    assert tuned.keys() == anew.keys() == lite.keys()
    for name in ("scene.last.weight", "first.offsets", "detail.middle.weight", "second.offsets"):
        moved = (tuned[name] - lite[name]).abs().max()
        assert 0 < moved < 0.01 < (anew[name] - lite[name]).abs().max(), name
    said = dped_live("evaluate", "--model", "tuned/model.safetensors", "--data", "pairs", "--phone", "iphone")
    assert said.code == 0
    said = dped_live("train", *fitting, "--out", "tuned", "--resume", "--steps", "2")
    assert said.err.splitlines()[-1].startswith("dped-live: this run was begun with another --init (lite, now none)")
    assert dped_live("train", *fitting, "--init", "lite", "--out", "tuned", "--resume", "--steps", "2").code == 0
    said = dped_live("train", *fitting, "--channels", "4", "--out", "x")
    assert said.err.splitlines()[-1] == (
        "dped-live: the size of networks like lite is fixed; leave out --channels and --blocks"
    )
    weights.save(random_generator(3, 2), Path("start.safetensors"))
    said = dped_live("train", *fitting, "--init", "start.safetensors", "--out", "x")
    assert (said.code, said.err.splitlines()[-1]) == (
        1,
        "dped-live: start.safetensors is not built like lite; leave out --model",
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "--data", "pairs"], "the following arguments are required: --out"),
        (["train", *TINY, "--out", "run", "--patch", "16"], "--patch: '16' is not a whole number from 17 up"),
        (["train", *TINY, "--out", "run", "--channels", "1000"], "'1000' is not a whole number from 1 to 999"),
        (["train", *TINY, "--out", "run", "--learning-rate", "0"], "'0' is not a positive number"),
        (["train", *TINY, "--out", "run", "--vgg", "x"], "--vgg has no use with --content off"),
        (["evaluate", "--data", "pairs"], "the following arguments are required: --model"),
    ],
)
def test_wrong_usage(dped_live: Callable[..., Said], arguments: list[str], complaint: str) -> None:
    said = dped_live(*arguments)
    assert said.code == 2
    assert complaint in said.err
    assert not Path("run").exists()


def test_every_default_is_in_the_help(dped_live: Callable[..., Said]) -> None:
    for command in ("train", "evaluate"):
        said = dped_live(command, "--help")
        assert said.code == 0
        # What takes a value and is not required has a default.
        for option in re.findall(r"\n  (--.*?)(?=\n  -|\n\n)", said.out, re.DOTALL):
            is_switch = option.split()[0] in ("--resume", "--augment", "--tensorboard")
            is_required = option.split()[0] in ("--data", "--out", "--model")
            assert is_switch or is_required or "(default:" in " ".join(option.split()), option


# Interrupted.


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_saves(folder: Path) -> None:
    """Also while the processes that read pictures are about to start: Ctrl-C reaches all that a terminal runs."""
    options = [*TINY, "--workers", "1", "--out", "run", "--steps", "1000000"]
    command = [sys.executable, "-m", "dped_live", "train", *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, cwd=folder, start_new_session=True)
    until(lambda: checkpoint.path_of(Path("run"), 0).exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert out == ""
    step = checkpoint.saved_steps(Path("run"))[-1]
    assert err.splitlines()[-2:] == [
        "dped-live: finishing what is begun; Ctrl-C again leaves at once",
        f"dped-live: interrupted after step {step}, which is saved; the same command with --resume goes on",
    ]
    assert step > 0
    assert [row["step"] for row in rows(Path("run"))] == ["0"]
    saved = safetensors.torch.load_file(checkpoint.path_of(Path("run"), step))
    assert saved["generator_adam.first.weight.step"] == step


# Several processes.


def test_two_processes_train_as_one(dped_live: Callable[..., Said], folder: Path) -> None:
    """In the environment that torchrun gives them. Their gradients are those of one process with the whole batch.

    After a step that is told by Adam's moments. The discriminator's parameters themselves part: where a norm cancels
    a bias, its gradient is nothing but rounding, and Adam makes a whole step of that, in either direction.
    """
    options = [*TINY, "--batch", "4", "--steps", "3", "--evaluate-every", "1", "--keep", "9"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command, pipe = [sys.executable, "-m", "dped_live", "train", *options, "--out", "two"], subprocess.PIPE
    processes = [
        subprocess.Popen(
            command,
            stderr=pipe,
            stdout=pipe,
            text=True,
            env={**os.environ, **address, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    assert dped_live("train", *options, "--out", "one").code == 0
    first, second = (process.communicate(timeout=SECONDS) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (first, second)
    assert second == ("", "")
    assert first[0].startswith("two/model.safetensors (step 3; ")
    assert [line[:18] for line in first[1].splitlines()[2:]] == [f"dped-live: step {step}:" for step in range(4)]
    assert files(folder / "two") == files(folder / "one")

    one, two = (safetensors.torch.load_file(checkpoint.path_of(Path(name), 1)) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        if not name.startswith("discriminator."):
            assert apart(two[name], one[name]) < 1e-5, name
    one, two = (safetensors.torch.load_file(checkpoint.path_of(Path(name), 3)) for name in ("one", "two"))
    for name in one:
        if name.startswith("generator."):
            assert apart(two[name], one[name]) < 1e-3, name
    for row, expected in zip(rows(Path("two")), rows(Path("one")), strict=True):
        for column, value in expected.items():
            assert row[column] == value or float(row[column]) == pytest.approx(float(value), rel=0.02), column


def apart(tensor: Tensor, expected: Tensor) -> float:
    """The norm of the difference, in parts of the norm of what is expected."""
    return float((tensor - expected).norm() / expected.norm().clamp_min(1e-20))


def test_one_gpu_is_not_for_two_processes(dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = dped_live("train", *TINY, "--device", "cuda:0", "--out", "run")
    assert said.code == 1
    assert said.err == "dped-live: cuda:0 is one GPU, and there are 2 processes; use --device cuda\n"


# Judging.


def test_scores_are_those_of_the_metrics(dped_live: Callable[..., Said], folder: Path) -> None:
    model = random_generator(4, 1)
    weights.save(model, Path("model.safetensors"))
    options = ("--model", "model.safetensors", "--data", "pairs", "--phone", "iphone", "--device", "cpu")
    said = dped_live("evaluate", *options, "--csv", "scores.csv")
    assert said.code == 0

    pairs = find_pairs(folder / "pairs", "iphone", print, "all").test
    assert len(pairs) == 12
    expected: dict[str, list[float]] = {}
    with torch.no_grad():
        for pair in pairs:
            phone, camera = (to_float(picture[None]) for picture in read_pair(pair))
            both = [(psnr(picture, camera), ms_ssim_of_original(picture, camera)) for picture in (model(phone), phone)]
            expected[pair.name] = [value for scores in both for value in scores]
    with Path("scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == list(expected)
    columns = ("psnr", "ms_ssim_original", "psnr_input", "ms_ssim_original_input")
    for row in table:
        scores = [float(row[column]) for column in columns]
        assert scores == pytest.approx(expected[row["name"]], abs=2e-5, nan_ok=True)

    means = [sum(values) / 12 for values in zip(*expected.values(), strict=True)]
    lines = [line.rsplit(maxsplit=2) for line in said.out.splitlines()]
    assert lines[:2] == [
        ["12 pictures", "input", "enhanced"],
        ["PSNR in dB, mean of the pictures", f"{means[2]:.2f}", f"{means[0]:.2f}"],
    ]
    assert lines[3] == ["the original's MS-SSIM, of pictures", f"{means[3]:.4f}", f"{means[1]:.4f}"]
    for line in (lines[2], lines[4], lines[5]):  # too few pictures, and too small ones
        assert line[1:] == ["-", "-"]

    said = dped_live("evaluate", *options, "--csv", "scores.csv")
    assert (said.code, said.out) == (1, "")
    assert said.err == "dped-live: scores.csv exists; add -y to replace it\n"
    assert dped_live("evaluate", *options, "--csv", "scores.csv", "-y").code == 0


def test_of_the_originals_layout_the_test_set_is_judged(dped_live: Callable[..., Said]) -> None:
    weights.save(random_generator(2, 1), Path("model.safetensors"))
    for group, count in (("training_data", 2), ("test_data/patches", 3)):
        write_pairs(Path("dped") / "iphone" / group, count)
    said = dped_live("evaluate", "--model", "model.safetensors", "--data", "dped", "-q")
    assert said.code == 0
    assert said.out.startswith("3 pictures ")


# A checkpoint of TensorFlow.


def test_a_checkpoint_is_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random_generator(4, 1)
    write_bundle(folder / "iphone_iteration_19000.ckpt", checkpoint_tensors(generator))
    tool = str(Path(__file__).parents[1] / "tools" / "import_checkpoint.py")

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        runpy.run_path(tool, run_name="__main__")

    run("iphone_iteration_19000.ckpt", "mine.safetensors")
    assert weights.digest(weights.load("mine.safetensors")) == weights.digest(generator)
    with pytest.raises(SystemExit, match=r"mine\.safetensors exists"):
        run("iphone_iteration_19000.ckpt", "mine.safetensors")
    with pytest.raises(SystemExit, match=r"other\.ckpt: no such model or file"):
        run("other.ckpt", "other.safetensors")
