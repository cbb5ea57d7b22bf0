"""`dped-live --webcam ...` as a user meets it, as processes: from the test picture to a page, to files and to JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from dped_live import cli, weights
from dped_live.sources.testcard import frame_number
from dped_live.table_filter import save_filter

from conftest import random_generator
from test_table_filter import nothing

SECONDS = 60


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DPED_LIVE_")}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("DISPLAY", None)
    environment.pop("WAYLAND_DISPLAY", None)
    command = [sys.executable, "-m", "dped_live", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def soon(condition: Callable[[], object]) -> object:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def ask(address: str, request: str) -> None:
    body = json.dumps({"request": request}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{address}/controls", body, headers), timeout=SECONDS).close()


def test_a_page_a_recording_and_figures(tmp_path: Path) -> None:
    arguments = ("--webcam", "test", "--size", "320x180", "--fps", "15", "--serve", "0", "--record", "a.mp4", "--json")
    with started(tmp_path, *arguments) as process:
        assert process.stdout is not None
        figures = json.loads(process.stdout.readline())
        address = next(name for name in figures["latency"] if name.startswith("http://127.0.0.1:"))
        assert set(figures["latency"]) == {address, "a.mp4"}
        assert (figures["source"], figures["width"], figures["model"]) == ("test picture", 320, "lite")
        figures = [json.loads(process.stdout.readline()) for _ in range(3)][-1]
        assert figures["fps_out"] > 5
        with urllib.request.urlopen(f"{address}/picture.png", timeout=SECONDS) as answer:
            assert answer.read(8) == b"\x89PNG\r\n\x1a\n"
        ask(address, "screenshot")
        soon(lambda: list(tmp_path.glob("dped-live_*.png")))
        ask(address, "quit")
        assert process.wait(SECONDS) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert "dped-live: lite on CPU" in said
    assert re.search(r"^dped-live: saved dped-live_[-_0-9]+\.png$", said, re.MULTILINE)
    assert "Traceback" not in said
    assert "leaked" not in said
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".mp4", ".png"]
    with av.open(str(tmp_path / "a.mp4")) as container:
        pictures = [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    times, numbers = zip(*((at, frame_number(picture)) for at, picture in pictures), strict=True)
    assert len(numbers) > 15
    assert np.diff(numbers).min() >= 1
    # Its times are the camera's: a picture's number tells when it was due.
    assert np.abs((np.array(times) - times[0]) - (np.array(numbers) - numbers[0]) / 15).max() < 0.02


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, number: int) -> None:
    with started(tmp_path, "--webcam", "test", "--size", "320x180", "-o", "b.mkv", "--json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(SECONDS) == 130
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 5


@pytest.mark.parametrize("follow", ["on", "off"])
def test_a_model_is_followed_as_asked(tmp_path: Path, follow: str) -> None:
    weights.save(random_generator(64, 4), tmp_path / "own.safetensors")
    save_filter(str(tmp_path / "own.safetensors"), nothing())
    arguments = ("--webcam", "test", "--size", "320x180", "--model", "own.safetensors", "--preview", "none", "--json")
    with started(tmp_path, *arguments, "--serve", "0", "--follow", follow) as process:
        assert process.stdout is not None
        soon(lambda: (stats := json.loads(process.stdout.readline()))["rung"] and stats["fps_out"] > 1)  # type: ignore[union-attr]
        stats = json.loads(process.stdout.readline())
    assert stats["model"] == "own.safetensors"
    assert (re.fullmatch(r"followed, refit \d+\.\d s ago", stats["rung"]) is not None) == (follow == "on")


def test_without_a_display_another_preview_is_offered(tmp_path: Path) -> None:
    with started(tmp_path, "--webcam", "test") as process:
        assert process.wait(SECONDS) == 1
        assert process.stderr is not None
        line = process.stderr.read().splitlines()[-1]
    assert "display" in line
    assert "--preview web" in line


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--webcam", "0", "a.mp4"], 2, "--webcam and a.mp4: one of them"),
        (["a.mp4", "--serve", "8080"], 2, "--serve is for live pictures: name a --webcam"),
        (["--webcam", "test", "--before-after"], 2, "--before-after is for files, not for --webcam"),
        (["--webcam", "test", "--statistics", "exact"], 2, "--statistics exact is for files, not for --webcam"),
        (["--webcam", "test", "--size", "big"], 2, "'big' is not a size such as 1280x720"),
        (["--webcam", "test", "--fps", "0"], 2, "'0' is not a rate from 1 to 1000 pictures a second"),
        (["--webcam", "test", "--serve", "x:y"], 2, "'x:y' is not a port or HOST:PORT"),
        (["a.mp4", "--follow", "on", "--statistics", "exact"], 2, "--follow on and --statistics exact: one of them"),
        (["--webcam", "test", "--follow", "on"], 1, "lite is quick enough by itself; name another --model"),
        (["--webcam", "no such camera"], 1, "no such camera: there is no camera of this name, and no file"),
        (["--webcam", "test", "--model", "nosuch"], 1, "nosuch: no such model or file"),
        (["--webcam", "test", "--preview", "none", "-o", "no/where.mp4"], 1, "no/where.mp4: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        assert cli.main(arguments) == code
    except SystemExit as stop:
        assert stop.code == code  # noqa: PT017 - argparse ends like this
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def test_cameras_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["cameras"])
    said = capsys.readouterr()
    if code:
        assert said.err == "dped-live: no camera found; plug one in, or try --webcam test\n"
    else:
        assert said.out
