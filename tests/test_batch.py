"""Folders, links, pipes and names; what is passed over, skipped and summed up; and the same as JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from dped_live import batch, weights
from dped_live.backends import open_backend
from dped_live.cli import _moment
from dped_live.errors import InputError
from dped_live.sinks.encoding import Encoding
from dped_live.table_filter import save_filter
from dped_live.terminal import fetch_progress

from conftest import random_generator
from test_cli import SECONDS, Said, clean, clip, files, photo, picture, pixels, runner
from test_table_filter import nothing
from test_video import times, write_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(random_generator(2, 1), path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return clean(tmp_path, monkeypatch)


@pytest.fixture
def dped_live(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return runner(model, capsys)


def child(model: Path, *arguments: str, before: tuple[str, ...] = ()) -> Said:
    """The command line in a process of its own: it may hang."""
    command = [*before, sys.executable, "-m", "dped_live", "--model", str(model), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, env=environment)
    return Said(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


def passed_over(said: Said) -> list[str]:
    start = "dped-live: passed over: "
    return [line.removeprefix(start) for line in said.err.splitlines() if line.startswith(start)]


def events(said: Said) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.out.splitlines()]


# Folders.


def test_slash_makes_a_folder(dped_live: Callable[..., Said]) -> None:
    photo("a.png")
    assert dped_live("a.png", "-o", "new/deep/").code == 0
    assert dped_live("a.png", "-o", "file.png").code == 0
    assert files() == ["a.png", "file.png", "new/deep/a.png"]


def test_what_is_no_picture_is_named(dped_live: Callable[..., Said]) -> None:
    photo("in/a.png")
    Path("in/notes.txt").write_text("P6 is how some pictures begin")
    Path("in/x.pdf").write_bytes(b"%PDF-1.7")
    Path("in/._a.png").write_bytes(b"\0\5\x16\7")
    said = dped_live("in", "-o", "out")
    assert said.code == 0
    assert passed_over(said) == ["in/._a.png, in/notes.txt, in/x.pdf (neither photos nor videos)"]
    for number in range(6):
        Path(f"in/{number}.txt").write_text("")
    (line,) = passed_over(dped_live("in", "-o", "out", "-y"))
    assert line == "in/._a.png, in/0.txt, in/1.txt and 6 more (neither photos nor videos)"
    assert dped_live("in", "-o", "out", "-y", "-v").err.count(".txt") == 7
    assert dped_live("in", "-o", "out", "-y", "-q").err == ""


def test_folder_can_be_run_twice(dped_live: Callable[..., Said]) -> None:
    photo("in/a.png"), photo("in/alone_dped.png"), clip("in/b.mp4"), photo("in/b.part.jpg", kind=".jpg")
    assert dped_live("in").code == 0
    assert dped_live("in", "--before-after").code == 0
    made = files("in")
    assert {"a_before_after.png", "a_dped.png", "alone_dped_dped.png", "b_before_after.mp4", "b_dped.mp4"} < set(made)
    assert len(made) == 4 + 6
    said = dped_live("in", "-y")
    assert files("in") == made
    assert said.code == 0
    unfinished, results = passed_over(said)
    assert unfinished == "in/b.part.jpg (of runs that did not finish)"
    assert results.endswith(" and 3 more (results of earlier runs)")


def test_results_inside_the_folder_of_the_originals(dped_live: Callable[..., Said]) -> None:
    photo("in/a.png"), photo("in/deep/b.png")
    for arguments in ([], ["-y"]):
        said = dped_live("in", "-r", "-o", "in/out", *arguments)
        assert said.code == 0
        assert files("in") == ["a.png", "deep/b.png", "out/a.png", "out/deep/b.png"]
    assert passed_over(said) == ["in/out (the folder of the results)"]


def test_originals_inside_the_folder_of_the_results(dped_live: Callable[..., Said]) -> None:
    original = photo("out/in/a.png").read_bytes()
    photo("out/in/in/a.png", seed=1)
    said = dped_live("out/in", "-r", "-o", "out", "-y")
    assert said.code == 1
    assert said.errors[0] == (
        "dped-live: out/in/in/a.png: its result would replace out/in/a.png, another input; use another -o"
    )
    assert files("out") == ["a.png", "in/a.png", "in/in/a.png"]
    assert Path("out/in/a.png").read_bytes() == original


def test_folder_and_a_folder_in_it(dped_live: Callable[..., Said]) -> None:
    photo("in/deep/a.png")
    assert dped_live("in", "in", "in/deep", "-r", "-o", "out").code == 0
    assert len(files("out")) == 1


def test_links(dped_live: Callable[..., Said]) -> None:
    photo("elsewhere/a.png"), photo("elsewhere/b.png"), photo("in/c.png")
    Path("in/link.png").symlink_to("../elsewhere/a.png")
    Path("in/folder").symlink_to("../elsewhere")
    Path("in/loop").symlink_to(".")
    Path("in/itself").symlink_to("itself")
    Path("in/gone.mp4").symlink_to("nowhere.mp4")
    Path("results").mkdir()
    Path("out").symlink_to("results")
    said = dped_live("in", "-r", "-o", "out")
    assert said.code == 0
    assert files("results") == ["c.png", "link.png"]
    assert passed_over(said) == [
        "in/gone.mp4, in/itself (links that lead nowhere)",
        "in/folder, in/loop (links to folders, which are not followed)",
    ]
    assert dped_live("in/folder", "-o", "out").code == 0  # one that is named is followed
    assert files("results") == ["a.png", "b.png", "c.png", "link.png"]
    assert dped_live("in/itself").errors == ["dped-live: in/itself: a link that leads nowhere"]
    assert dped_live("in/c.png", "-o", "in/itself").code == 1
    Path("same").symlink_to("in")
    said = dped_live("in/c.png", "same/c.png")
    assert said.errors[0] == (
        "dped-live: same/c.png: its result would be same/c_dped.png, as that of in/c.png; use another -o"
    )


def test_names_that_differ_only_in_case(dped_live: Callable[..., Said]) -> None:
    photo("in/a.png", 1), photo("in/A.PNG", 2)
    if Path("in/a.png").samefile("in/A.PNG"):
        pytest.skip("this file system takes them for one")
    assert dped_live("in", "-o", "results").code == 0
    assert files("results") == ["A.PNG", "a.png"]
    # A folder that has both names, as all have where case does not matter.
    Path("out").mkdir()
    Path("OUT").symlink_to("out")
    said = dped_live("in", "-o", "out", "-y")
    assert said.errors[0] == "dped-live: in/a.png: its result would be out/a.png, as that of in/A.PNG; use another -o"
    assert files("out") == ["A.PNG"]


# What is no file.


def test_pipes_and_devices_are_never_opened(model: Path) -> None:
    photo("in/a.png")
    for name in ("in/pipe.mp4", "in/pipe", "in/pipe.png"):
        os.mkfifo(name)
    Path("in/null.jpg").symlink_to("/dev/null")
    said = child(model, "in", "in/pipe.mp4", "/dev/zero", "-o", "out")
    assert said.code == 1
    assert files("out") == ["a.png"]
    assert passed_over(said) == ["in/null.jpg, in/pipe, in/pipe.mp4, in/pipe.png (pipes and devices)"]
    assert said.errors == [
        "dped-live: in/pipe.mp4: a named pipe, not a file",
        "dped-live: /dev/zero: a device, not a file",
        "dped-live: 1 files done, 2 failed",
    ]


@pytest.mark.parametrize("name", ["out.png", "out.part.png"])
def test_pipe_is_not_replaced(model: Path, name: str) -> None:
    photo("a.png")
    os.mkfifo(name)
    said = child(model, "a.png", "-o", "out.png", "-y")
    assert said.code == 1
    assert said.errors == [f"dped-live: a.png: {name} is no file that could be replaced; name another one"]
    assert Path(name).is_fifo()


def test_what_may_not_be_read_or_written(model: Path) -> None:
    photo("in/a.png"), photo("in/b.png"), photo("in/closed/c.png"), photo("d.png"), clip("in/e.mp4")
    Path("in/f.txt").write_text("")
    Path("read-only").mkdir()
    for name in ("in/b.png", "in/e.mp4", "in/f.txt"):
        Path(name).chmod(0)
    Path("read-only").chmod(0o500)
    Path("in/closed").chmod(0)
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may read and write everywhere")
        before = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
    try:
        said = child(model, "in", "-r", "-o", "out", before=before)
        second = child(model, "d.png", "-o", "read-only/", before=before)
    finally:
        Path("in/closed").chmod(0o700)
    assert (said.code, second.code) == (1, 1)
    assert files("out") == ["a.png"]
    assert said.errors == [
        "dped-live: in/closed: Permission denied",
        "dped-live: in/b.png: Permission denied",
        "dped-live: in/e.mp4: Permission denied",
        "dped-live: 1 files done, 3 failed",
    ]
    assert passed_over(said) == ["in/f.txt (neither photos nor videos)"]
    assert second.errors == [
        "dped-live: d.png: read-only/d.png: the folder read-only is not writable; name another one"
    ]


def test_unfinished_result_that_is_the_input(dped_live: Callable[..., Said]) -> None:
    original = clip("a.part.mp4").read_bytes()
    said = dped_live("a.part.mp4", "-o", "a.mp4", "-y")
    assert said.errors == ["dped-live: a.part.mp4: would be replaced by its own result; name another with -o"]
    assert Path("a.part.mp4").read_bytes() == original


# Photos that are stored as videos are, and the reverse.


def test_still_pictures_are_photos(dped_live: Callable[..., Said]) -> None:
    still = [Image.fromarray(picture(seed, 64, 48)) for seed in range(2)]
    Path("in").mkdir()
    for name in ("a.gif", "b.avif", "c.jp2", "d.ppm", "e.pgm", "f.xyz"):
        still[0].convert("L" if name == "e.pgm" else "RGB").save(f"in/{name}", "GIF" if name == "f.xyz" else None)
    still[0].save("in/moving.gif", save_all=True, append_images=still[1:], duration=100)
    assert dped_live("in", "-o", "out").code == 0
    assert files("out") == ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png", "moving.mkv"]
    assert all(pixels(f"out/{name}").shape == (48, 64, 3) for name in files("out") if name.endswith(".png"))


def test_video_in_a_folder_that_is_named_like_a_photo(dped_live: Callable[..., Said]) -> None:
    Path("in").mkdir()
    clip("in/a.mp4").rename("in/a.jpg")
    Path("in/empty.png").write_bytes(b"")
    said = dped_live("in", "-o", "out")
    assert said.code == 1
    assert files("out") == ["a.mkv"]
    assert said.errors[0].startswith("dped-live: in/empty.png: ")


# Going on.


def test_photos_that_are_there_are_skipped(dped_live: Callable[..., Said]) -> None:
    for name in "abc":
        photo(f"in/{name}.png")
    assert dped_live("in/a.png", "in/b.png", "-o", "out").code == 0
    first = {name: (Path("out") / name).stat().st_mtime_ns for name in files("out")}
    Path("out/c.part.png").write_bytes(b"of a run that was killed")
    said = dped_live("in", "-o", "out", "--resume")
    assert said.code == 0
    assert said.errors == [
        "dped-live: in/a.png: skipped: out/a.png is there already",
        "dped-live: in/b.png: skipped: out/b.png is there already",
        "dped-live: 1 files done, 2 skipped",
    ]
    assert files("out") == ["a.png", "b.png", "c.png"]
    assert {name: (Path("out") / name).stat().st_mtime_ns for name in first} == first


def test_photo_that_is_newer_or_of_another_size_is_not_skipped(dped_live: Callable[..., Said]) -> None:
    photo("a.png"), photo("b.png")
    assert dped_live("a.png", "b.png", "-o", "out").code == 0
    later = time.time() + 10
    os.utime("a.png", (later, later))
    Path("out/b.png").write_bytes(cv2.imencode(".png", picture(1, 8, 8))[1].tobytes())
    os.utime("out/b.png", (later, later))
    said = dped_live("a.png", "b.png", "-o", "out", "--resume")
    assert said.code == 1
    assert said.errors == [
        "dped-live: a.png: out/a.png exists; add -y to replace it",
        "dped-live: b.png: out/b.png exists; add -y to replace it",
        "dped-live: 0 files done, 2 failed",
    ]
    assert dped_live("a.png", "b.png", "-o", "out", "--resume", "-y").errors == []
    assert pixels("out/b.png").shape == (12, 16, 3)
    photo("c.png")
    assert dped_live("c.png", "-o", "c2.png", "--before-after").code == 0
    assert "is there already" in dped_live("c.png", "-o", "c2.png", "--before-after", "--resume").err
    assert "exists; add -y" in dped_live("c.png", "-o", "c2.png", "--resume").err


def test_unfinished_video_names_both_ways_out(dped_live: Callable[..., Said]) -> None:
    clip("c.mp4")
    Path("c_dped.part.mp4").write_bytes(b"precious")
    said = dped_live("c.mp4")
    assert said.code == 1
    assert said.errors == [
        "dped-live: c.mp4: c_dped.part.mp4 exists, from a run that did not finish; "
        "add --resume to go on with it, or -y to begin anew"
    ]
    assert Path("c_dped.part.mp4").read_bytes() == b"precious"
    assert dped_live("c.mp4", "-y").code == 0
    assert files() == ["c.mp4", "c_dped.mp4"]


def test_key_of_a_job_says_what_changes_its_result(tmp_path: Path) -> None:
    source = clip("a.mp4")
    backend = open_backend(random_generator(2, 1), "cpu", "fp32")
    settings = batch.Settings()
    key = batch.job_key(source, settings, "weights", backend)
    assert all(re.fullmatch("[0-9a-f]{12}", part) for part in (key.program, key.source, key.options))

    shutil.copy(source, "copy.mp4")
    os.utime("copy.mp4", (0, 0))
    for unchanged in (settings, replace(settings, overwrite=True), replace(settings, resume=True, strict=True)):
        assert batch.job_key(tmp_path / "copy.mp4", unchanged, "weights", backend) == key
    for changed in (
        replace(settings, strength=0.5),
        replace(settings, before_after=True),
        replace(settings, exact=True),
        replace(settings, follow=nothing()),
        replace(settings, encoding=Encoding(crf=3)),
        replace(settings, encoding=Encoding(options=(("tune", "film"),))),
        replace(settings, audio=False),
        replace(settings, begin=Fraction(1)),
        replace(settings, end=Fraction(1)),
        replace(settings, deinterlace=False),
        replace(settings, hdr="keep"),
    ):
        other = batch.job_key(source, changed, "weights", backend)
        assert other.options != key.options
        assert (other.program, other.source) == (key.program, key.source)
    other_filter = replace(nothing(), narrow=2 * nothing().narrow)
    first, second = (replace(settings, follow=follow) for follow in (nothing(), other_filter))
    assert batch.job_key(source, first, "", backend).options != batch.job_key(source, second, "", backend).options

    assert batch.job_key(source, settings, "other weights", backend).program != key.program
    other_backend = open_backend(random_generator(2, 1), "cpu", "bf16")
    assert batch.job_key(source, settings, "weights", other_backend).program != key.program

    whole = np.random.default_rng(0).bytes(200_000)
    source.write_bytes(whole)
    key = batch.job_key(source, settings, "weights", backend)
    for changed_file in (whole + b"x", b"x" + whole[1:], whole[:-1] + b"x"):
        source.write_bytes(changed_file)
        assert batch.job_key(source, settings, "weights", backend).source != key.source
    with pytest.raises(InputError, match=r"missing\.mp4: No such file"):
        batch.job_key(tmp_path / "missing.mp4", settings, "weights", backend)


def test_finished_videos_are_skipped(dped_live: Callable[..., Said]) -> None:
    photo("in/c.png"), clip("in/a.mp4"), clip("in/b.mkv")
    assert dped_live("in/a.mp4", "in/c.png", "-o", "out").code == 0
    first = {name: (Path("out") / name).stat().st_mtime_ns for name in files("out")}
    said = dped_live("in", "-o", "out", "--resume")
    assert said.code == 0
    assert said.errors == [
        "dped-live: in/a.mp4: skipped: out/a.mp4 is there already",
        "dped-live: in/c.png: skipped: out/c.png is there already",
        "dped-live: 1 files done, 2 skipped",
    ]
    assert files("out") == ["a.mp4", "b.mkv", "c.png"]
    assert {name: (Path("out") / name).stat().st_mtime_ns for name in first} == first
    said = dped_live("in/a.mp4", "-o", "out/a.mp4", "--resume", "--crf", "30")
    assert said.errors == [
        "dped-live: in/a.mp4: out/a.mp4 exists, and is not what this program makes of this source with these options; "
        "add -y to replace it"
    ]
    assert dped_live("in/a.mp4", "-o", "out/a.mp4", "--resume", "--crf", "30", "-y").errors == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_short_result_stays_a_failure(dped_live: Callable[..., Said], suffix: str) -> None:
    noise = [np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8) for number in range(100)]
    Path("in").mkdir()
    write_clip(Path("whole.mkv"), noise)
    Path("in/a.mkv").write_bytes(Path("whole.mkv").read_bytes()[: Path("whole.mkv").stat().st_size // 3])
    said = dped_live("in/a.mkv", "-o", f"out/a{suffix}")
    assert said.code == 1
    assert "the pictures end at" in said.err
    frames = len(times(Path(f"out/a{suffix}")))
    assert 10 < frames < 60
    if ffprobe := shutil.which("ffprobe"):
        seen = subprocess.run([ffprobe, "-v", "warning", f"out/a{suffix}"], capture_output=True, check=True)
        assert seen.stderr == b"", "the mark disturbs nobody"
    again = dped_live("in/a.mkv", "-o", f"out/a{suffix}", "--resume")
    assert again.code == 1
    assert again.errors == [
        f"dped-live: in/a.mkv: has fewer pictures than it promises; what there is is in out/a{suffix} already"
    ]


@pytest.mark.parametrize(("name", "number"), [("c.mp4", signal.SIGINT), ("c.mkv", signal.SIGKILL)])
def test_video_is_gone_on_with(dped_live: Callable[..., Said], model: Path, name: str, number: signal.Signals) -> None:
    clip(name, frames=1500)
    command = [sys.executable, "-m", "dped_live", "--model", str(model), name, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["frames"] > 200:
                process.send_signal(number)
                break
        rest, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    part, result = (name.replace(".", ending) for ending in ("_dped.part.", "_dped."))
    assert files() == sorted([name, part])
    if number == signal.SIGINT:
        assert process.returncode == 130
        interrupted, summary = map(json.loads, rest.splitlines()[-2:])
        assert (interrupted["event"], interrupted["kept"], interrupted["frames"] > 200) == ("interrupted", part, True)
        assert summary == {"event": "summary", "done": 0, "skipped": 0, "failed": 0, "left": 1}
        assert "with --resume goes on" in errors.splitlines()[-1]
    # Refused where it would not be the same, or is not asked for.
    assert "add --resume to go on with it, or -y" in dped_live(name).errors[0]
    assert "other options" in dped_live(name, "--resume", "--strength", "0.5").errors[0]
    assert files() == sorted([name, part])

    said = child(model, name, "--resume", "--json")
    assert said.code == 0, said.err
    done = next(event for event in events(said) if event["event"] == "done")
    assert done["frames"] == done["verification"]["frames"] == 1500
    assert 0 < done["earlier"] < 1500
    assert f"goes on after the {done['earlier']} frames of an earlier run" in said.err
    assert files() == sorted([name, result])
    with av.open(result) as container:
        stamps = sorted(float(p.pts * p.time_base) for p in container.demux(video=0) if p.pts is not None)
    assert np.allclose(stamps, np.arange(1500) / 25, atol=1e-3)


def test_what_follows_cannot_be_gone_on_with(dped_live: Callable[..., Said], model: Path) -> None:
    shutil.copy(model, "own.safetensors")
    save_filter("own.safetensors", nothing())
    clip("c.mp4")
    Path("c_dped.part.mp4").write_bytes(b"precious")
    arguments = ("c.mp4", "--model", "own.safetensors", "--follow", "on", "--resume")
    assert dped_live(*arguments).errors == [
        "dped-live: c.mp4: c_dped.part.mp4: with --follow on a frame depends on all those before, so it cannot be gone "
        "on with; add -y to begin anew"
    ]
    assert Path("c_dped.part.mp4").read_bytes() == b"precious"
    assert dped_live(*arguments, "-y").code == 0
    assert "is there already" in dped_live(*arguments).err


# The way of a video's streams and frames.


def test_cut(dped_live: Callable[..., Said]) -> None:
    clip("c.mp4", frames=50)
    for arguments, frames in (
        (["--start", "0.4", "--end", "0:01.2"], 20),
        (["--end", "0:00:00.8"], 20),
        (["--start=1.2"], 20),
    ):
        assert dped_live("c.mp4", *arguments, "-y").code == 0
        with av.open("c_dped.mp4") as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
    lake = Path(__file__).parents[1] / "samples/lake.mp4"
    assert dped_live(lake, "-o", "lake.mp4", "--start", "1", "--end", "2").code == 0
    with av.open("lake.mp4") as container:
        ends = [float(s.duration or 0) * float(s.time_base or 0) for s in container.streams]
    assert ends == pytest.approx([1, 1], abs=0.05)
    said = dped_live("c.mp4", "--start", "2", "-o", "late.mp4")
    assert said.code == 1
    assert "ended before" in said.errors[0]
    photo("a.png")
    assert dped_live("c.mp4", "a.png", "-o", "out", "--start", "1").code == 0
    assert files("out") == ["a.png", "c.mp4"]


def test_video_that_is_cut_off_is_written_and_counts_as_failed(dped_live: Callable[..., Said]) -> None:
    whole = clip("c.mkv", frames=250).read_bytes()
    Path("c.mkv").write_bytes(whole[: len(whole) // 2])
    said = dped_live("c.mkv")
    assert said.code == 1
    assert re.fullmatch(
        r"dped-live: c\.mkv: the pictures end at \d\.\d s of 10\.0 s; what there is is in c_dped\.mkv", said.errors[-1]
    )
    assert files() == ["c.mkv", "c_dped.mkv"]
    (failed,) = (event for event in events(dped_live("c.mkv", "-y", "--json")) if event["event"] == "failed")
    assert failed["error"].startswith("the pictures end at ")
    assert 50 < failed["frames"] == failed["verification"]["frames"] < 200


def test_streams_that_are_dropped_are_told(dped_live: Callable[..., Said]) -> None:
    clip("c.mkv")
    with av.open("c.mkv") as source, av.open("in.mkv", "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        target.add_attachment("notes.txt", "text/plain", b"some words")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    Path("c.mkv").unlink()
    said = dped_live("in.mkv", "-o", "out.mp4")
    assert said.code == 0
    (line,) = said.errors
    assert re.match(r"dped-live: in\.mkv: attachment 1 .*dropped: ", line)
    assert dped_live("in.mkv", "-o", "out.mkv").errors == []
    assert " video 0 (h264) enhanced" in dped_live("in.mkv", "-o", "out.mkv", "-y", "-v").err
    start = events(dped_live("in.mkv", "-o", "out.mp4", "-y", "--json"))[0]
    assert [(stream["kind"], stream["fate"]) for stream in start["streams"]] == [
        ("video", "enhanced"),
        ("attachment", "dropped"),
    ]
    said = dped_live("in.mkv", "-o", "strict.mp4", "--strict")
    assert said.code == 1
    assert "attachment 1" in said.errors[-1]
    assert not Path("strict.mp4").exists()


def test_options_of_the_encoder(dped_live: Callable[..., Said]) -> None:
    clip("c.mp4", frames=20)
    assert dped_live("c.mp4", "-e", "x264-params=keyint=5:scenecut=0", "-e", "profile=high444").code == 0
    with av.open("c_dped.mp4") as container:
        assert [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame] == [0, 5, 10, 15]
    said = dped_live("c.mp4", "-y", "-e", "nosuch=1")
    assert said.code == 1
    assert "'nosuch'" in said.errors[-1]


def test_pixel_format(dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    clip("c.mp4")
    assert dped_live("c.mp4", "--pix-fmt", "yuv444p").code == 0
    with av.open("c_dped.mp4") as container:
        assert container.streams.video[0].pix_fmt == "yuv444p"
    monkeypatch.setenv("DPED_LIVE_PIX_FMT", "yuv422p")
    assert dped_live("c.mp4", "-y").code == 0
    with av.open("c_dped.mp4") as container:
        assert container.streams.video[0].pix_fmt == "yuv422p"
    said = dped_live("c.mp4", "-o", "grey.mp4", "--pix-fmt", "gray", "--strict")
    assert said.code == 1
    assert said.errors[-1] == (
        "dped-live: c.mp4: grey.mp4: --strict, and not kept: colour; use another --codec or --pix-fmt"
    )
    assert not Path("grey.mp4").exists()
    assert "c.mp4: not kept: colour" in dped_live("c.mp4", "-o", "grey.mp4", "--pix-fmt", "gray").err


# What is told.


def test_failures_are_summed_up(dped_live: Callable[..., Said]) -> None:
    photo("a.png"), photo("long name.png")
    Path("b.png").write_bytes(b"")
    said = dped_live("a.png", "b.png", "long name.png", "mis\nsing.png", "-o", "out")
    assert said.code == 1
    *_, summary, first, second = said.err.splitlines()
    assert summary == "dped-live: 2 files done, 2 failed"
    assert first == r"dped-live:   mis\nsing.png  no such file"
    assert second.startswith("dped-live:   b.png          not a video or photo")
    photo("c.png")
    assert dped_live("a.png", "c.png").err.splitlines()[-1] == "dped-live: 2 files done"


def test_json_tells_everything(dped_live: Callable[..., Said]) -> None:
    photo("in/a.png"), clip("in/b.mp4", frames=30)
    photo("in/z.png"), photo("out/z.png")
    Path("in/notes.txt").write_text("")
    Path("in/c.png").write_bytes(b"")
    said = dped_live("in", "missing.png", "-o", "out", "--json", "--resume")
    assert said.code == 1
    told = events(said)
    assert told[0] == {"event": "passed_over", "inputs": ["in/notes.txt"], "reason": "neither photos nor videos"}
    assert told[1] == {"event": "failed", "input": "missing.png", "error": "missing.png: no such file"}
    start, done = (event for event in told if event.get("input") == "in/a.png")
    assert (start["event"], start["output"]) == ("start", "out/a.png")
    assert start["model"].endswith("tiny.safetensors")
    assert start["backend"].startswith("CPU, ")
    assert (start["notes"], start["streams"]) == ([], [])
    assert done["verification"] is None
    assert (done["event"], done["output"], done["frames"], done["notes"]) == ("done", "out/a.png", 1, [])
    done = next(event for event in told if event["event"] == "done" and event["input"] == "in/b.mp4")
    assert done["frames"] == 30
    assert done["seconds"] > 0
    assert done["verification"]["frames"] == 30
    assert [event["input"] for event in told if event["event"] == "failed"] == ["missing.png", "in/c.png"]
    assert {"event": "skipped", "input": "in/z.png", "output": "out/z.png", "reason": "out/z.png is there already"} in (
        told
    )
    assert told[-1] == {"event": "summary", "done": 2, "skipped": 1, "failed": 2, "left": 0}
    assert len(said.errors) == 4  # standard error as without --json


def test_json_of_progress(dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dped_live.report._EVENT_EVERY", 0.0)
    clip("c.mp4", frames=30)
    told = [event for event in events(dped_live("c.mp4", "--json")) if event["event"] == "progress"]
    assert told[-1]["frames"] == told[-1]["total"] == 30
    assert told[-1]["fps"] > 0
    assert told[-1]["seconds_left"] == 0
    assert all(event["input"] == "c.mp4" for event in told)


def test_json_of_names_that_are_no_text(model: Path) -> None:
    try:
        name = photo(os.fsdecode(b"not utf-8 \xe9\n.png")).name
    except OSError:
        pytest.skip("a file system that takes only UTF-8")
    said = child(model, name, "--json", "-q")
    assert (said.code, said.err) == (0, "")
    assert [event["event"] for event in events(said)] == ["start", "done", "summary"]
    assert os.fsencode(events(said)[1]["input"]) == b"not utf-8 \xe9\n.png"
    assert Path(events(said)[1]["output"]).exists()


def test_verbose_tells_versions(dped_live: Callable[..., Said]) -> None:
    photo("a.png")
    assert " PyAV 18." in dped_live("a.png", "-v").err.splitlines()[0]
    assert "PyAV" not in dped_live("a.png", "-y").err


def test_fetching_is_a_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with fetch_progress(quiet=False) as progress:
        assert progress is not None
        for done in (1000, 800_000, 1_606_000):
            progress("iphone", done, 1_606_000)
    assert tuple(capsys.readouterr()) == ("", "dped-live: fetching iphone, 1.6 MB\n")


# Options.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", Fraction(0)),
        ("90", Fraction(90)),
        ("0.1", Fraction(1, 10)),
        ("1:30", Fraction(90)),
        ("90:00.001", Fraction(5400001, 1000)),
        ("1:02:03.5", Fraction(7447, 2)),
        ("100:00:00", Fraction(360000)),
    ],
)
def test_times_are_exact(text: str, seconds: Fraction) -> None:
    assert _moment(text) == seconds


LIVE_REFUSED = [
    ["--start", "1"],
    ["--end", "1"],
    ["--resume"],
    ["--strict"],
    ["--deinterlace", "off"],
    ["--hdr", "keep"],
    ["--pix-fmt", "yuv444p"],
    ["-e", "tune=film"],
    ["--recursive"],
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *((["c.mp4", "--start", text], f"{text!r} is not a time such as 90") for text in ("", "x", "1:60", "1:2:3:4")),
        *((["c.mp4", "--end", text], f"{text!r} is not a time such as 90") for text in ("1:60:00", "1.", "٣", "1e3")),
        (["c.mp4", "--start", "2", "--end", "0:02"], "--end must be after --start"),
        (["c.mp4", "--end", "0"], "--end must be after the beginning"),
        (["c.mp4", "-e", "tune"], "'tune' is not KEY=VALUE"),
        (["c.mp4", "-e", "=film"], "'=film' is not KEY=VALUE"),
        (["c.mp4", "-q", "-v"], "not allowed with argument -q"),
        (["c.mp4", "--hdr", "hlg"], "argument --hdr: invalid choice: 'hlg'"),
        (["c.mp4", "-o", ""], "--output: an empty name"),
        (["a.png", "--start", "1"], "--start is for videos, and there are only photos"),
        (["a.png", "--end", "1"], "--end is for videos, and there are only photos"),
        (["a.png", "-e", "tune=film"], "-e is for videos, and there are only photos"),
        *((["--webcam", "test", *given], f"{given[0]} is for files, not for --webcam") for given in LIVE_REFUSED),
    ],
)
def test_wrong_usage(dped_live: Callable[..., Said], arguments: list[str], message: str) -> None:
    photo("a.png"), clip("c.mp4")
    said = dped_live(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert message in said.err.splitlines()[-1]
    assert files() == ["a.png", "c.mp4"]


def test_environment_for_files_is_none_for_cameras(
    dped_live: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPED_LIVE_HDR", "keep")
    monkeypatch.setenv("DPED_LIVE_PIX_FMT", "yuv444p")
    said = dped_live("--webcam", "no such camera", "--preview", "none")
    assert said.code == 1
    assert "no such camera" in said.err.splitlines()[-1]
    monkeypatch.setenv("DPED_LIVE_DEINTERLACE", "perhaps")
    assert "argument --deinterlace: invalid choice: 'perhaps'" in dped_live("c.mp4").err
