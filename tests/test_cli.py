"""The command line as a user meets it: what it writes where, what it says, and its exit codes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import pytest
import torch

from dped_live import cli, report, weights
from dped_live.table_filter import save_filter

from conftest import random_generator
from test_table_filter import nothing

SECONDS = 60
"""How long a child process may take."""


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on standard error but for those that say what computes, what it is at and what was done, and the
        table of what failed, which was told before."""
        usual = r" on CPU, |looking ahead|^dped-live: (  |\d+ files done$|passed over: )"
        return [line for line in self.err.splitlines() if not re.search(usual, line)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(random_generator(2, 1), path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an environment that says nothing."""
    return clean(tmp_path, monkeypatch)


def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("DPED_LIVE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dped_live(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line in this process, with a small network unless another is named."""
    return runner(model, capsys)


def runner(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*arguments: str | Path) -> Said:
        given = [str(argument) for argument in arguments]
        if given[:1] != ["models"] and "DPED_LIVE_MODEL" not in os.environ:
            given = ["--model", str(model), *given]
        try:
            code = cli.main(given)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = Said(code, *capsys.readouterr())
        assert "Traceback" not in said.err
        return said

    return run


def picture(seed: int = 0, width: int = 16, height: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(path: str | Path, seed: int = 0, kind: str = ".png") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(cv2.imencode(kind, picture(seed))[1].tobytes())
    return Path(path)


def pixels(path: str | Path) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def clip(path: str | Path, frames: int = 10) -> Path:
    with av.open(f"file:{path}", "w") as container:
        stream: Any = container.add_stream("libx264", 25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, 64, 48), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def files(folder: str | Path = ".") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


# What becomes of what.


def test_photo_gets_a_name_beside_the_original(dped_live: Callable[..., Said]) -> None:
    photo("a.png")
    said = dped_live("a.png")
    assert said.code == 0
    assert re.fullmatch(r"a_dped\.png \(\d+\.\d s\)\n", said.out)
    assert re.fullmatch(r"dped-live: .*tiny\.safetensors on CPU, \w+.*\n", said.err)
    assert files() == ["a.png", "a_dped.png"]
    assert pixels("a_dped.png").shape == (12, 16, 3)
    assert np.array_equal(pixels("a.png"), picture())
    assert not np.array_equal(pixels("a_dped.png"), picture())


def test_output_file_may_be_of_another_kind_in_a_new_folder(dped_live: Callable[..., Said]) -> None:
    photo("a.png")
    assert dped_live("a.png", "-o", "new/folder/b.jpg").code == 0
    assert Path("new/folder/b.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_several_photos_go_into_a_folder_under_their_names(dped_live: Callable[..., Said]) -> None:
    photo("a.png", 1), photo("b.jpg", 2, ".jpg"), photo("deep/c.tif", 3, ".tif")
    said = dped_live("a.png", "-i", "b.jpg", "-o", "out", "deep/c.tif")
    assert said.code == 0
    assert files("out") == ["a.png", "b.jpg", "c.tif"]
    assert len(said.out.splitlines()) == 3


def test_folder_stands_for_the_photos_and_videos_in_it(dped_live: Callable[..., Said]) -> None:
    photo("in/a.png"), photo("in/without suffix"), clip("in/b.mp4"), photo("in/deep/c.png")
    Path("in/readme.txt").write_text("nothing to see")
    said = dped_live("in", "-o", "out")
    assert said.code == 0
    assert files("out") == ["a.png", "b.mp4", "without suffix.png"]
    assert re.search(r"^out/b\.mp4 \(10 frames in \d+\.\d s, \d+\.\d\d fps\)$", said.out, re.MULTILINE)


def test_recursion_keeps_the_structure(dped_live: Callable[..., Said]) -> None:
    for name in ("a.png", "x/a.png", "x/y/a.png"):
        photo(f"in/{name}")
    assert dped_live("-r", "in", "-o", "out").code == 0
    assert files("out") == ["a.png", "x/a.png", "x/y/a.png"]
    assert dped_live("in", "--recursive").code == 0
    assert len(files("in")) == 6
    assert Path("in/x/y/a_dped.png").exists()


def test_folder_without_pictures_is_an_error_that_helps(dped_live: Callable[..., Said]) -> None:
    photo("in/deep/a.png")
    said = dped_live("in")
    assert said.code == 1
    assert said.err == "dped-live: in: no photo or video in this folder; add -r for the folders in it\n"


@pytest.mark.parametrize(
    ("name", "kind", "result", "magic"),
    [
        ("UP.PNG", ".png", "UP_dped.PNG", b"\x89PNG"),
        ("a.JPeG", ".jpg", "a_dped.JPeG", b"\xff\xd8"),
        ("none", ".png", "none_dped.png", b"\x89PNG"),
        ("two.dots.png", ".png", "two.dots_dped.png", b"\x89PNG"),
        ("wrong.jpg", ".png", "wrong_dped.jpg", b"\xff\xd8"),
        ("wrong.png", ".jpg", "wrong_dped.png", b"\x89PNG"),
        ("wrong.mp4", ".png", "wrong_dped.png", b"\x89PNG"),
        ("unknown.xyz", ".jpg", "unknown_dped.png", b"\x89PNG"),
        (".hidden", ".png", ".hidden_dped.png", b"\x89PNG"),
    ],
)
def test_content_decides_what_a_file_is_and_its_name_what_it_becomes(
    dped_live: Callable[..., Said], name: str, kind: str, result: str, magic: bytes
) -> None:
    photo(name, kind=kind)
    assert dped_live(name).code == 0
    assert files() == sorted([name, result])
    assert Path(result).read_bytes().startswith(magic)


def test_video_that_is_named_like_a_photo(dped_live: Callable[..., Said]) -> None:
    clip("a.mp4").rename("a.jpg")
    assert dped_live("a.jpg").code == 0
    assert files() == ["a.jpg", "a_dped.mkv"]


def test_before_and_after_side_by_side(dped_live: Callable[..., Said]) -> None:
    photo("a.png"), clip("b.mp4")
    assert dped_live("a.png", "b.mp4", "--before-after").code == 0
    assert files() == ["a.png", "a_before_after.png", "b.mp4", "b_before_after.mp4"]
    both = pixels("a_before_after.png")
    assert both.shape == (12, 32, 3)
    assert np.array_equal(both[:, :16], picture())
    dped_live("a.png")
    assert np.array_equal(both[:, 16:], pixels("a_dped.png"))
    with av.open("b_before_after.mp4") as container:
        assert next(container.decode(video=0)).width == 128


# Names.

ODD_NAMES = [
    b"with space.png",
    b"quote'\".png",
    b"percent %d %s %05d.png",
    b"-leading.png",
    b"--help.png",
    b"new\nline.png",
    b"esc\x1b[31m.png",
    b"back\\slash.png",
    b"$HOME `id` ;&|.png",
    b"a:b.png",
    b"http:.png",
    b"star*?[x].png",
    "été 写真 🎞.png".encode(),
    b"not utf-8 \xe9\xff.png",
    b"n" * 251 + b".png",
    "é".encode() * 125 + b".png",
]


def test_names_of_every_kind(model: Path) -> None:
    given = []
    for encoded in ODD_NAMES:
        try:
            given.append(photo(os.fsdecode(b"in/" + encoded)).name)
        except OSError:  # a file system that takes only UTF-8
            continue
    clip("in/vidéo -x %d.mp4")
    given.append("vidéo -x %d.mp4")
    command = [sys.executable, "-m", "dped_live", "--model", str(model), "-o", "../out", "--", *given]
    # Python's own output refuses what is no text, as it does in most terminals.
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd="in", capture_output=True, timeout=SECONDS, env=environment)
    assert done.returncode == 0
    assert files("out") == sorted(given)
    # A name is printed as it is, so that a program can use it.
    for name in given:
        assert b"../out/" + os.fsencode(name) + b" (" in done.stdout
    assert Said(0, "", os.fsdecode(done.stderr)).errors == []


def test_messages_are_one_line_without_control_of_the_terminal(dped_live: Callable[..., Said]) -> None:
    Path("bad\n\x1b[31m.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    said = dped_live("bad\n\x1b[31m.png", "missing\r.png")
    assert said.code == 1
    missing, bad, _ = said.errors
    assert bad.startswith(r"dped-live: bad\n\x1b[31m.png: ")
    assert missing == r"dped-live: missing\r.png: no such file"


def test_leading_dash(dped_live: Callable[..., Said]) -> None:
    photo("-x.png")
    assert dped_live("./-x.png").code == 0
    assert dped_live("-y", "--", "-x.png").code == 0
    assert files() == ["-x.png", "-x_dped.png"]


def test_options_may_stand_anywhere(dped_live: Callable[..., Said]) -> None:
    for name in ("a.png", "b.png", "c.png", "-d.png"):
        photo(name)
    assert dped_live("a.png", "-y", "b.png", "--strength", "0", "c.png", "-o", "out", "--", "-d.png").code == 0
    assert files("out") == ["-d.png", "a.png", "b.png", "c.png"]
    assert all(np.array_equal(pixels(f"out/{name}"), picture()) for name in files("out"))


def test_name_that_leaves_no_room_for_the_default_name(dped_live: Callable[..., Said]) -> None:
    # Letters of two bytes, which are not to be divided; and no room for .png at all.
    names = ["n" * 251 + ".png", "x" + "é" * 125 + ".png", "o" * 255]
    for name in names:
        photo(name)
    assert dped_live(*names).code == 0
    assert files() == sorted([*names, "n" * 246 + "_dped.png", "x" + "é" * 122 + "_dped.png", "o" * 246 + "_dped.png"])
    assert dped_live(".", "-o", "out").code == 0  # the results are known as such, though their names were shortened
    assert files("out") == sorted([*names[:2], "o" * 251 + ".png"])
    assert dped_live("m" * 256).errors == [f"dped-live: {'m' * 256}: File name too long"]


# What stands in the way.


def test_bad_files_leave_the_good_ones_alone(dped_live: Callable[..., Said]) -> None:
    good = photo("a.png").read_bytes()
    Path("b.png").write_bytes(good[: len(good) // 2])
    Path("c.png").write_bytes(good[:8] + b"a damaged header")
    Path("d.jpg").write_bytes(b"")
    Path("e.mp4").write_bytes(np.random.default_rng(0).bytes(1000))
    Path("f.png").mkdir()
    clip("y.mp4"), photo("z.png")
    names = ["a.png", "b.png", "c.png", "d.jpg", "e.mp4", "f.png", "missing.png", "y.mp4", "z.png"]
    said = dped_live(*names, "-o", "out")
    assert said.code == 1
    assert files("out") == ["a.png", "y.mp4", "z.png"]
    for name in names[1:7]:
        assert sum(line.startswith(f"dped-live: {name}: ") for line in said.errors) == 1
    assert said.errors[-1] == "dped-live: 3 files done, 6 failed"
    assert len(said.errors) == 7


def test_damaged_photo_in_a_folder_is_told_and_the_others_are_done(dped_live: Callable[..., Said]) -> None:
    photo("in/a.png"), photo("in/c.png")
    Path("in/b.png").write_bytes(b"\x89PNG\r\n\x1a\na damaged header")
    said = dped_live("in", "-o", "out")
    assert said.code == 1
    assert files("out") == ["a.png", "c.png"]
    assert said.errors[0].startswith("dped-live: in/b.png: damaged")
    assert said.errors[1:] == ["dped-live: 2 files done, 1 failed"]


def test_results_with_the_same_name_are_refused(dped_live: Callable[..., Said]) -> None:
    photo("x/a.png", 1), photo("y/a.png", 2)
    said = dped_live("x/a.png", "y/a.png", "-o", "out")
    assert said.code == 1
    assert said.errors[0] == "dped-live: y/a.png: its result would be out/a.png, as that of x/a.png; use another -o"
    assert files("out") == ["a.png"]


def test_file_named_twice_is_done_once(dped_live: Callable[..., Said]) -> None:
    photo("a.png")
    said = dped_live("a.png", "./a.png")
    assert said.code == 0
    assert len(said.out.splitlines()) == 1


@pytest.mark.parametrize("overwrite", [[], ["-y"]], ids=["", "-y"])
def test_no_input_is_ever_replaced(dped_live: Callable[..., Said], overwrite: list[str]) -> None:
    names = ["a.png", "a_dped.png", "b.png", "x/b.png"]
    originals = {name: photo(name, seed).read_bytes() for seed, name in enumerate(names)}
    Path("link.png").symlink_to("a.png")
    Path("hard.png").hardlink_to("a.png")
    for arguments, message in (
        (["a.png", "-o", "a.png"], "a.png: would be replaced by its own result; name another with -o"),
        (["a.png", "-o", "link.png"], "a.png: would be replaced by its own result; name another with -o"),
        (["a.png", "-o", "hard.png"], "a.png: would be replaced by its own result; name another with -o"),
        (["a.png", "a_dped.png"], "a.png: its result would replace a_dped.png, another input; use another -o"),
        (["x/b.png", "b.png", "-o", "."], "x/b.png: its result would replace b.png, another input; use another -o"),
    ):
        said = dped_live(*arguments, *overwrite)
        assert said.code == 1
        assert said.errors[0] == f"dped-live: {message}"
        assert {name: Path(name).read_bytes() for name in originals} == originals
        for name in files():
            if name not in originals and not name.endswith(("link.png", "hard.png")):
                Path(name).unlink()


def test_folder_of_the_originals_may_be_that_of_the_results(dped_live: Callable[..., Said]) -> None:
    photo("in/a.png")
    assert dped_live("in", "-o", "in").code == 0
    assert files("in") == ["a.png", "a_dped.png"]


def test_existing_result_is_kept_unless_asked(dped_live: Callable[..., Said]) -> None:
    photo("a.png"), clip("b.mp4")
    Path("a_dped.png").write_bytes(b"precious")
    Path("b_dped.mp4").write_bytes(b"precious")
    said = dped_live("a.png", "b.mp4")
    assert said.code == 1
    assert said.errors == [
        "dped-live: a.png: a_dped.png exists; add -y to replace it",
        "dped-live: b.mp4: b_dped.mp4 exists; add -y to replace it",
        "dped-live: 0 files done, 2 failed",
    ]
    assert Path("a_dped.png").read_bytes() == Path("b_dped.mp4").read_bytes() == b"precious"
    assert dped_live("a.png", "b.mp4", "--overwrite").code == 0
    assert pixels("a_dped.png").shape == (12, 16, 3)
    assert files() == ["a.png", "a_dped.png", "b.mp4", "b_dped.mp4"]


def test_file_where_a_folder_is_needed(dped_live: Callable[..., Said]) -> None:
    photo("a.png"), clip("b.mp4")
    Path("file").write_bytes(b"precious")
    said = dped_live("a.png", "b.mp4", "-o", "file")
    assert said.code == 1
    assert said.errors == [
        "dped-live: a.png: file: this folder cannot be made: File exists; use another -o",
        "dped-live: b.mp4: file: this folder cannot be made: File exists; use another -o",
        "dped-live: 0 files done, 2 failed",
    ]
    assert dped_live("a.png", "-o", "file/a.png").code == 1
    assert Path("file").read_bytes() == b"precious"


# Options.


def test_strength_0_is_the_input(dped_live: Callable[..., Said]) -> None:
    photo("a.png")
    dped_live("a.png", "--strength", "0", "-o", "0.png")
    dped_live("a.png", "--strength", "1", "-o", "1.png")
    dped_live("a.png", "--strength=0.5", "-o", "half.png")
    before, after = pixels("0.png").astype(float), pixels("1.png").astype(float)
    assert np.array_equal(before, picture())
    unclipped = (after > 0) & (after < 255)
    assert np.abs(pixels("half.png") - (before + after) / 2)[unclipped].max() <= 1


def test_a_video_is_followed_and_a_photo_beside_it_is_not(dped_live: Callable[..., Said], model: Path) -> None:
    shutil.copy(model, "own.safetensors")
    save_filter("own.safetensors", nothing())
    photo("a.png"), clip("c.mp4")
    said = dped_live("a.png", "c.mp4", "-o", "out", "--model", "own.safetensors", "--follow", "on")
    assert said.code == 0, said.err
    dped_live("a.png", "c.mp4", "-o", "exact", "--model", "own.safetensors")
    assert np.array_equal(pixels("out/a.png"), pixels("exact/a.png"))
    with av.open("out/c.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 10
    assert Path("out/c.mp4").read_bytes() != Path("exact/c.mp4").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no INPUT: name a photo, a video or a folder"),
        (["a.png", "--strength", "nan"], "argument --strength: 'nan' is not a number from 0 to 1"),
        (["a.png", "--strength", "inf"], "argument --strength: 'inf' is not a number from 0 to 1"),
        (["a.png", "--strength", "-1"], "argument --strength: '-1' is not a number from 0 to 1"),
        (["a.png", "--strength", "1.01"], "argument --strength: '1.01' is not a number from 0 to 1"),
        (["a.png", "--strength", "half"], "argument --strength: 'half' is not a number from 0 to 1"),
        (["a.png", "--strength", ""], "argument --strength: '' is not a number from 0 to 1"),
        (["a.png", "--strength"], "argument --strength: expected one argument"),
        (["a.png", "--precision", "fp8"], "argument --precision: invalid choice: 'fp8'"),
        (["a.png", "--crf", "good"], "argument --crf: invalid int value: 'good'"),
        (["a.png", "--fast"], "unrecognized arguments: --fast"),
        (["-x.png"], "unrecognized arguments: -x.png"),
        (["models", "burn"], "invalid choice: 'burn'"),
        (["models", "fetch"], "the following arguments are required: NAME"),
    ],
)
def test_wrong_usage(dped_live: Callable[..., Said], arguments: list[str], message: str) -> None:
    photo("a.png")
    said = dped_live(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("usage: dped-live")
    assert message in said.err.splitlines()[-1]
    assert files() == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "--model", "nosuch"], "nosuch: no such model or file; give one of lite, iphone, blackberry"),
        (["a.png", "--model", "a.png"], "a.png: not weights; give a .safetensors file of dped-live"),
        (
            ["a.png", "--precision", "fp16", "--device", "cpu"],
            "fp16 is for GPUs; on a CPU use --precision bf16",
        ),
        (["a.png", "--device", "gpu"], "unknown device 'gpu': use auto, cpu, cuda or cuda:N"),
        (["a.png", "-o", "b.xyz"], "b.xyz: a.png is a photo; name it "),
        (["a.png", "-o", "b.mp4"], "b.mp4: a.png is a photo; name it "),
        (["missing.png"], "missing.png: no such file"),
        (
            ["c.mp4", "--follow", "on", "--model", "m.safetensors"],
            "m.safetensors: cannot be followed without its filter",
        ),
        (["a.png", "--follow", "on"], "--follow on is for videos; photos are enhanced exactly"),
        (["/dev/null"], "/dev/null: a device, not a file"),
        (["c.mp4", "-o", "d.xyz"], "c.mp4: d.xyz: no container has the suffix '.xyz'; use .mp4, .mkv or .mov"),
        (["c.mp4", "-o", "d.png"], "c.mp4: d.png: .png files cannot hold libx264"),
        (["c.mp4", "--codec", "nosuch"], "c.mp4: there is no encoder 'nosuch'; try --codec libx264"),
        (["c.mp4", "--codec", "mpeg4", "--crf", "3"], "c.mp4: the encoder mpeg4 has no --crf; use it with libx264"),
        (["c.mp4", "-o", "d.webm"], "c.mp4: d.webm: .webm files cannot hold libx264; use --codec for another, or .mkv"),
    ],
)
def test_what_cannot_be_is_one_line(dped_live: Callable[..., Said], arguments: list[str], message: str) -> None:
    photo("a.png"), clip("c.mp4")
    weights.save(random_generator(2, 1), Path("m.safetensors"))
    said = dped_live(*arguments)
    assert said.code == 1
    assert said.out == ""
    assert len(said.errors) == 1
    assert said.errors[0].startswith(f"dped-live: {message}")
    assert files() == ["a.png", "c.mp4", "m.safetensors"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_that_is_not_there_is_an_error(dped_live: Callable[..., Said]) -> None:
    photo("a.png")
    for device in ("cuda", "cuda:1"):
        said = dped_live("a.png", "--device", device)
        assert said.code == 1
        assert len(said.errors) == 1
        assert said.errors[0].startswith(f"dped-live: no device {device}: ")
        assert "use --device cpu" in said.errors[0]


def test_environment_sets_defaults_and_flags_override_it(
    dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo("a.png")
    dped_live("a.png", "-o", "default.png")
    monkeypatch.setenv("DPED_LIVE_STRENGTH", "0")
    dped_live("a.png", "-o", "environment.png")
    dped_live("a.png", "-o", "flag.png", "--strength", "1")
    assert np.array_equal(pixels("environment.png"), picture())
    assert np.array_equal(pixels("flag.png"), pixels("default.png"))
    monkeypatch.setenv("DPED_LIVE_STRENGTH", "")  # as good as unset
    dped_live("a.png", "-o", "empty.png")
    assert np.array_equal(pixels("empty.png"), pixels("default.png"))


@pytest.mark.parametrize(
    ("name", "value", "code", "message"),
    [
        ("STRENGTH", "2", 2, "argument --strength: '2' is not a number from 0 to 1"),
        ("STRENGTH", "nan", 2, "argument --strength: 'nan' is not a number from 0 to 1"),
        ("PRECISION", "fp8", 2, "argument --precision: invalid choice: 'fp8'"),
        ("TILE", "63", 2, "argument --tile: '63' is not auto, off or a number of pixels from 64 up"),
        ("TILE", "big", 2, "argument --tile: 'big' is not auto, off or a number of pixels from 64 up"),
        ("CRF", "good", 2, "argument --crf: invalid int value: 'good'"),
        ("MODEL", "nosuch", 1, "nosuch: no such model or file"),
        ("DEVICE", "gpu", 1, "unknown device 'gpu'"),
        ("CODEC", "nosuch", 1, "there is no encoder 'nosuch'"),
        ("PRESET", "nosuch", 1, "; check --crf"),
    ],
)
def test_bad_environment_is_an_error_like_a_bad_flag(
    dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, name: str, value: str, code: int, message: str
) -> None:
    clip("c.mp4")
    monkeypatch.setenv(f"DPED_LIVE_{name}", value)
    said = dped_live("c.mp4")
    assert said.code == code
    assert message in said.err.splitlines()[-1]
    assert files() == ["c.mp4"]


# What it says.


def test_quiet_is_silent_but_for_errors(dped_live: Callable[..., Said]) -> None:
    photo("a.png"), clip("c.mp4")
    assert dped_live("-q", "a.png", "c.mp4") == (0, "", "")
    assert files() == ["a.png", "a_dped.png", "c.mp4", "c_dped.mp4"]
    assert dped_live("--quiet", "a.png", "missing.png") == (
        1,
        "",
        "dped-live: missing.png: no such file\n"
        "dped-live: a.png: a_dped.png exists; add -y to replace it\n"
        "dped-live: 0 files done, 2 failed\n",
    )


def test_progress_is_lines_where_there_is_no_terminal(
    dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "LINE_EVERY", 0.0)
    clip("c.mp4", frames=30)
    said = dped_live("c.mp4")
    assert said.code == 0
    assert said.errors
    pattern = r"dped-live: c\.mp4: \d+/30 frames, \d+\.\d\d fps(, \d+:\d\d left)?"
    assert all(re.fullmatch(pattern, line) for line in said.errors)
    assert said.errors[-1].startswith("dped-live: c.mp4: 30/30 frames, ")
    assert "\r" not in said.err


def test_help_names_every_default(dped_live: Callable[..., Said]) -> None:
    said = dped_live("--help")
    assert said.code == 0
    for default in ("lite", "1.0", "auto", "libx264", "18 for libx264", "veryfast for libx264", "NAME_dped.EXT"):
        assert f"default: {default}" in " ".join(said.out.split())


def test_models_are_listed(dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    said = dped_live("models")
    assert (said.code, said.err) == (0, "")
    for name in ("iphone", "blackberry", "sony", "resnet_8_32"):
        assert re.search(rf"^{name} .* parameters, .* MB   not fetched$", said.out, re.MULTILINE)
    assert "licence: " in said.out
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", ".")
    assert "not in DPED_LIVE_WEIGHTS" in dped_live("models").out


def test_unknown_model_cannot_be_fetched(dped_live: Callable[..., Said]) -> None:
    expected = "dped-live: nosuch: no such model; there are lite, iphone, blackberry, sony, resnet_8_32\n"
    assert dped_live("models", "fetch", "nosuch") == (1, "", expected)


# As a process of its own.


def test_version() -> None:
    command = [sys.executable, "-m", "dped_live", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert re.fullmatch(r"dped-live \d+\.\d+\S*\n", done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize("argument", ["models", "--help"])
def test_reader_that_goes_away_is_no_failure_to_tell(argument: str) -> None:
    # As in `dped-live models | head -1`.
    command = [sys.executable, "-m", "dped_live", argument]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered, timeout=SECONDS)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_control_c_between_photos(model: Path) -> None:
    for index in range(500):
        photo(f"in/{index:03}.png", index)
    command = [sys.executable, "-m", "dped_live", "--model", str(model), "in", "missing.png", "-o", "out"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + SECONDS
        while not Path("out/000.png").exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=SECONDS)
    finally:
        child.kill()
    done = files("out")
    assert child.returncode == 130
    assert 0 < len(done) < 500
    assert all(re.fullmatch(r"\d{3}\.png", name) for name in done)
    assert len(output.splitlines()) == len(done)
    *_, summary, missing = errors.splitlines()
    assert missing == "dped-live:   missing.png  no such file"
    assert summary == (f"dped-live: interrupted: {len(done)} of 501 files done, 1 failed, {500 - len(done)} not")
