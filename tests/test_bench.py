"""`dped-live bench`: what it measures and says, and that it keeps to its time. How fast anything is is not tested."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dped_live import weights
from dped_live.bench import run, work
from dped_live.bench.budget import Budget
from dped_live.bench.film import Film
from dped_live.bench.live import Probe, found
from dped_live.bench.results import Live, Machine, Speed, Subject, Timing, camera_sentence, duration, film_time, number
from dped_live.errors import WeightsError

from conftest import random_generator, random_table_network
from test_cli import SECONDS, Said, clean, runner

DOCUMENTED = (Path(__file__).parents[1] / "docs" / "bench.md").read_text(encoding="utf-8")

PARTS = ("convert", "decode", "encode")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command in this process, with few repetitions."""
    clean(tmp_path, monkeypatch)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(run, "_ENOUGH", 0.1)
    monkeypatch.setattr(run, "_LIVE_SECONDS", 1.0)
    monkeypatch.setattr(run, "_MOST_FILE", 0.5)
    monkeypatch.setenv("DPED_LIVE_MODEL", "not asked")
    dped_live = runner(Path(), capsys)
    return lambda *arguments: dped_live("bench", *arguments)


def values_in(document: Any, path: str = "") -> dict[str, Any]:
    """All keys of a document, each with one of its values; those of figures by device are no keys."""
    if isinstance(document, list):
        return {key: value for part in document for key, value in values_in(part, path).items()}
    if not isinstance(document, dict) or path in ("matmul_gflops", "bandwidth_gb_per_second"):
        return {}
    return document | {key: value for name, part in document.items() for key, value in values_in(part, name).items()}


def left_in(folder: Path) -> list[Path]:
    """Of the benchmark's own; torch may leave an empty folder."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"] + [
        *folder.glob("dped-live*")
    ]


def test_json_document(bench: Callable[..., Said], tmp_path: Path) -> None:
    said = bench("--model", "lite", "--size", "160x96", "--seconds", "100", "--json")
    assert said.code == 0, said.err
    assert said.err == ""
    document = json.loads(said.out)
    assert not document["interrupted"]
    assert 0 < document["seconds"] < 100
    assert document["machine"]["threads"] >= 1
    assert document["machine"]["bandwidth_gb_per_second"]["cpu"] > 0.1
    (subject,) = [subject for subject in document["subjects"] if subject["device"] == "cpu"]
    assert (subject["model"], subject["precision"], subject["failed"]) == ("lite", "auto", None)
    (speed,) = subject["sizes"]
    for timing in (speed["network"], speed["photo"], speed["file"], *[document["parts"][0][p] for p in PARTS]):
        assert timing["milliseconds"] * timing["fps"] == pytest.approx(1000)
        assert timing["repetitions"] > 0
        assert timing["why_not"] is None
    assert speed["file"]["milliseconds"] > speed["network"]["least_milliseconds"]
    assert 0 < speed["file_of_slowest_percent"] < 200
    assert speed["matmul_percent"] is None
    assert speed["bandwidth_percent"] > 0
    assert 50 < speed["memory_mb"] < 8000
    assert 50 < speed["file_memory_mb"] < 8000
    (live,) = subject["live"]
    assert 0 < live["fps"] < 33
    assert 0 < live["p50_milliseconds"] <= live["p95_milliseconds"]
    assert "lite on CPU, fp32" in document["camera"][0]
    assert [film["by"] for film in document["film"] if film["backend"] == "CPU, fp32"] == ["file"]
    assert not [key for key in values_in(document) if f"`{key}`" not in DOCUMENTED and f".{key}`" not in DOCUMENTED]
    assert not left_in(tmp_path)


def test_table(bench: Callable[..., Said], tmp_path: Path) -> None:
    """What would take hours is not begun, and what it might take is called a prediction."""
    weights.save(random_generator(64, 4), tmp_path / "own.safetensors")
    said = bench(
        *("--model", "own.safetensors", "--size", "99998x99998", "128x96", "--precision", "fp32", "--device", "cpu"),
        *("--seconds", "100"),
    )
    assert said.code == 0, said.err
    assert said.err == ""
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    at = lines.index(next(line for line in lines if line.startswith("own.safetensors on CPU, fp32 (ready in ")))
    assert re.fullmatch(r"  size +ms +fps +ms +matmul +memory +MB +file fps +slowest +MB", lines[at + 2])
    assert re.fullmatch(r"  128x96( +[\d.]+){9}", lines[at + 3])
    assert re.fullmatch(
        r"  99998x99998  not measured: no time left \(predicted: .*\d (min|h|d) a frame\)", lines[at + 4]
    )
    films = {line.split()[0]: line for line in lines[lines.index("An hour of film at 30 fps takes") :] if line.strip()}
    assert "~" not in films["128x96"]
    assert "~" in films["99998x99998"]
    assert not left_in(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "nikon"], 1, "nikon: no such model or file"),
        (["--model", "sony"], 1, "sony is not on this machine; fetch it with: dped-live models fetch sony"),
        (["--model", "lite", "--device", "cuda:9"], 1, "no device cuda:9"),
        (["--size", "641x360"], 2, "even numbers"),
        (["--seconds", "1"], 2, "from 10 up"),
        (["--backend", "abacus"], 2, "invalid choice"),
    ],
)
def test_wrong_arguments(bench: Callable[..., Said], arguments: list[str], code: int, message: str) -> None:
    said = bench(*arguments)
    assert said.code == code
    assert message in said.err
    assert said.out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for one process")
def test_interrupted(tmp_path: Path) -> None:
    """What was measured is told, and nothing is left behind."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "dped_live", "bench", "--model", "lite", "--size", "128x96", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        until = time.monotonic() + SECONDS
        while not list(tmp_path.glob("*/128x96.mp4")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    assert err.splitlines() == [
        "dped-live: stopping",
        "dped-live: interrupted; this is what was measured until then",
    ]
    document = json.loads(out)
    assert document["interrupted"]
    assert document["subjects"][0]["sizes"][0]["network"]["fps"] > 0
    assert not left_in(tmp_path)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_budget() -> None:
    clock = Clock()
    budget = Budget(100, clock)
    first = budget.share(3, [1, 1])
    assert first.left == pytest.approx(60)
    assert first.has(59)
    assert not first.has(61)
    clock.now += 10
    assert (budget.used, budget.left) == (10, 90)
    assert budget.share(1, [1]).left == pytest.approx(45), "what the first left over"
    clock.now += 55
    assert first.left == 0
    assert budget.without(20).left == pytest.approx(15)
    assert budget.without(50).left == 0
    clock.now += 50
    assert budget.left == 0
    assert budget.has(0)
    assert not budget.has(0.1)


def speed(width: int, height: int, network: float | None, file: float | None) -> Speed:
    times = (Timing.missing("no time left", 9.0) if s is None else Timing.of([s]) for s in (network, file))
    one, other = times
    return Speed(width, height, one, file=other)


def subject(*sizes: Speed, live: list[Live] | None = None) -> Subject:
    return Subject("net", "net", "cpu", "torch", "fp32", True, backend="CPU", sizes=list(sizes), live=live or [])


def test_time_of_a_film() -> None:
    tried = subject(
        speed(100, 100, 0.1, 0.2), speed(200, 100, 0.2, None), speed(400, 100, 1.0, None), speed(800, 100, None, None)
    )
    found = [film_time(tried, width, 100) for width in (100, 200, 400, 800)]
    assert [time.by for time in found if time] == ["file", "prediction", "prediction", "prediction"]
    # 400x100 takes the network alone longer than the film at 100x100 lets expect.
    assert [time.seconds for time in found if time] == pytest.approx([6, 12, 30, 48])
    assert film_time(tried, 50, 100) is None
    tried = subject(speed(100, 100, 0.1, None), speed(200, 100, None, None))
    found = [film_time(tried, width, 100) for width in (100, 200)]
    assert [time.by for time in found if time] == ["network", "prediction"]
    assert [time.seconds for time in found if time] == pytest.approx([3, 6])


def test_sentences_about_a_camera() -> None:
    runs = [Live(640, 360, 30, fps=29.9), Live(1280, 720, 30, fps=18.2), Live(1920, 1080, 30, why_not="no time left")]
    assert camera_sentence(subject(live=runs)) == (
        "net on CPU keeps up with a camera of 30 fps up to 640x360; 18.2 fps at 1280x720."
    )
    assert camera_sentence(subject(live=runs[1:])) == (
        "net on CPU does not keep up with a camera of 30 fps: 18.2 fps at 1280x720."
    )
    assert camera_sentence(subject(speed(640, 360, 0.5, None))) == (
        "net on CPU does not keep up with a camera: 2.00 fps at 640x360 by the network alone."
    )
    assert camera_sentence(subject(speed(640, 360, 0.01, None))) is None, "nothing live was measured"


def test_numbers_for_people() -> None:
    assert [number(value) for value in (1234.5, 99.96, 45.67, 9.999, 0.514, 0.0123)] == [
        *("1234", "100", "45.7", "10.0", "0.51", "0.012"),
    ]
    seconds = (0.4, 59, 100, 4200, 7200, 40_000, 180_000, 172_800, 2_000_000)
    assert [duration(value) for value in seconds] == [
        *("0.40 s", "59 s", "2 min", "70 min", "2 h", "11 h", "2 d 2 h", "2 d", "23 d"),
    ]


def test_a_machine_at_its_best() -> None:
    one, other = (
        Machine("CPU", 2, 2, None, "Linux", "2", {"cpu fp32": fast, **more}, {"cpu": slow})
        for fast, slow, more in ((10.0, 3.0, {}), (8.0, 4.0, {"cpu bf16": 5.0}))
    )
    best = one.best_of(other)
    assert best.matmul_gflops == {"cpu fp32": 10, "cpu bf16": 5}
    assert best.bandwidth_gb_per_second == {"cpu": 4}


def test_work_of_a_pixel() -> None:
    generator = random_generator(64, 4)
    assert work.multiply_adds(generator) == 399_744
    assert work.bytes_moved(generator, 2) == 3340  # as counted by hand for CONTRIBUTING.md
    assert work.bytes_moved(random_table_network(), 4) == 24


def test_stand_in_for_a_network_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(tmp_path, monkeypatch)
    assert work.default_models() == ["lite", work.RANDOM]
    assert work.multiply_adds(work.load(work.RANDOM)) == 399_744  # type: ignore[arg-type]
    assert work.label(work.RANDOM) == "12 layers, 64 channels (random weights: same work as iphone)"
    with pytest.raises(WeightsError, match="models fetch iphone"):
        work.load("iphone")


def test_ways_to_run_a_network() -> None:
    generator, tables = random_generator(2, 1), random_table_network()
    exact = work.Way("cpu", "torch", "fp32")
    assert exact in work.ways(generator)
    assert work.ways(generator, "cpu", "torch", "fp32") == [exact]
    assert set(work.ways(generator, "cpu", precision="fp32")) <= {exact, work.Way("cpu", "openvino", "fp32")}
    assert work.ways(tables, "cpu", precision="bf16") == [work.Way("cpu", "torch", "auto")]
    assert work.ways(generator, "cpu", "tensorrt") == [work.Way("cpu", "tensorrt", "auto")], "opening it says why not"


def test_film_moves_and_has_grain() -> None:
    film = Film(96, 64)
    frames = list(islice(film.frames(), 80))
    again = next(Film(96, 64).frames())
    for plane, other, shape in zip(frames[0].planes, again.planes, [(64, 96), (32, 48), (32, 48)], strict=True):
        assert plane.shape == shape
        assert np.array_equal(plane, other)
        assert 5 < plane.std() < 60
        assert plane.min() >= 16
    assert [frame.pts * 30 for frame in frames] == list(range(80))
    first, second, third = (frame.planes[0].astype(int) for frame in frames[:3])
    assert np.abs(second - first).mean() > 1
    # One column and row a frame, to even places: what is left is grain.
    assert np.abs(third[:-2, :-4] - first[2:, 4:]).mean() < 5


def test_what_a_probe_has_seen() -> None:
    probe = Probe()
    probe.numbers = [0, 1, 2, *range(10, 70, 2)]
    probe.moments = [0, 0.1, 0.2, *(1 + step / 15 for step in range(30))]
    probe.ages = [9, 9, 9, *([0.02] * 28), 0.3, 0.3]
    live = found(probe, Live(64, 48, 30))
    assert (live.shown, live.missed) == (30, 29)
    assert live.fps == pytest.approx(15)
    assert live.p50_milliseconds == pytest.approx(20)
    assert live.p95_milliseconds is not None
    assert 20 < live.p95_milliseconds <= 300
    assert found(Probe(), Live(64, 48, 30)).why_not == "no picture came in time"
