"""dped-live doctor: what it finds on this machine, and on one that it is told to be broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dped_live import cli, doctor, weights
from dped_live.backends import engine
from dped_live.doctor import Card, Check
from dped_live.errors import InputError
from dped_live.sources import cameras, live
from dped_live.sources.cameras import Camera

from conftest import random_generator

DOCTOR = [sys.executable, "-m", "dped_live", "doctor"]
SECONDS = 120
"""How long a child process may take."""

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has this")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder and a cache of its own, and neither a display nor settings."""
    for name in [name for name in os.environ if name.startswith("DPED_LIVE_")] + ["DISPLAY", "WAYLAND_DISPLAY"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def only(checks: Iterator[Check]) -> Check:
    (check,) = checks
    return check


def library(folder: Path, name: str, code: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code)


def test_this_machine() -> None:
    """The tests need all that the main jobs need, so these can be done here."""
    ran = subprocess.run([*DOCTOR, "--json"], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stdout
    assert ran.stderr == ""
    checks = {check.name: check for check in (Check(**json.loads(line)) for line in ran.stdout.splitlines())}
    assert {check.state for check in checks.values()} <= {"ok", "not here", "broken"}
    needed = ["memory", "current folder", "lite on CPU", "libx264", "browser"]
    assert {name: checks[name].state for name in needed} == dict.fromkeys(needed, "ok")
    assert checks["cache folder"].state == "ok"
    assert {name for name, check in checks.items() if check.needed} - {"GPU 0"} == set(needed)
    assert checks["libx265"].state == checks["libsvtav1"].state == checks["libvpx-vp9"].state == "ok"
    assert {"GPU", "GPU 0"} & checks.keys()
    assert {"Python", "torch", "processor", "tensorrt", "display", "microphone", "virtual camera"} <= checks.keys()
    assert torch.__version__ in checks["torch"].what
    assert checks["openvino"].state == ("not here" if find_spec("openvino") is None else "ok")
    assert re.search(r"; 640x360 in \d\.\d{3} s, \d+ fps, and about \d+ at 1280x720$", checks["lite on CPU"].what)
    assert str(Path.cwd()) in checks["current folder"].what
    assert checks["model iphone"] == Check("model iphone", "not here", "not fetched", "dped-live models fetch iphone")
    assert list(Path.cwd().iterdir()) == []
    if sys.platform.startswith("linux"):
        assert checks["display"].state == "not here"
        assert checks["display"].fix == "use --preview web"


def test_table_and_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = "sudo modprobe v4l2loopback devices=1 exclusive_caps=1 card_label=dped-live"
    checks = [
        Check("memory", "ok", "7.9 of 16.0 GB free", needed=True),
        Check("model iphone", "not here", "not fetched", "dped-live models fetch iphone"),
        Check("virtual camera", "broken", "a reason of so many words that it takes two lines to tell it", command),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "memory             ok        7.9 of 16.0 GB free\n"
        "model iphone       not here  not fetched; fix: dped-live models fetch iphone\n"
        "virtual camera     broken    a reason of so many words that it takes two lines\n"
        "                             to tell it\n"
        f"    fix: {command}\n"
        "\n"
        "Photos, videos and live pictures in a browser can be enhanced here.\n"
    )
    checks.append(Check("libx264", "not here", "this PyAV has no such encoder", needed=True))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("\n\nNot everything can be enhanced here: mend libx264.\n")


def test_help_tells_what_the_exit_code_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--help"])
    assert stop.value.code == 0
    assert "exit code is 0 if the main jobs can be done" in " ".join(capsys.readouterr().out.split())


@LINUX
def test_file_in_place_of_the_cache(surroundings: Path) -> None:
    (surroundings / "cache").write_text("no folder")
    checks = {check.name: check for check in doctor._watched("weights", doctor._weights)}
    cache = checks["cache folder"]
    # lite works without it.
    assert (cache.state, cache.needed) == ("broken", False)
    assert cache.what.startswith("it cannot be written: Not a directory; models cannot be fetched, and each start may")
    assert cache.fix is not None
    assert cache.fix.endswith("cache/dped-live/weights, or set XDG_CACHE_HOME to another")


@LINUX
def test_deleted_current_folder() -> None:
    Path.cwd().rmdir()
    checks = {check.name: check for check in doctor._watched("system", doctor._system)}
    assert checks["Python"].state == "ok"
    assert checks["current folder"].state == "broken"
    assert checks["current folder"].what == "it cannot be written: No such file or directory"
    assert checks["current folder"].fix is not None
    assert checks["current folder"].needed


def test_too_little_memory_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MEMORY", 1e18)
    monkeypatch.setattr(doctor, "_ROOM", 1e21)
    _, memory, folder = doctor._system()
    assert (memory.state, folder.state) == ("broken", "broken")
    assert memory.fix == "close other programs: a 1080p video takes 1000000000 GB"
    assert re.search(r": only \d+ MB free$", folder.what)


def test_models_that_were_fetched(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.cache_folder().mkdir(parents=True)
    weights.save(random_generator(2, 1), weights.cache_path("sony"))
    checks = {check.name: check for check in doctor._weights()}
    assert checks["model sony"] == Check("model sony", "broken", "damaged", "dped-live models fetch sony")
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(surroundings))
    checks = {check.name: check for check in doctor._weights()}
    assert checks["model sony"].what == "not in DPED_LIVE_WEIGHTS"
    assert checks["model sony"].fix == "unset DPED_LIVE_WEIGHTS, or see dped-live models"


def test_models_that_are_whole(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPED_LIVE_WEIGHTS", str(shared / "dped/weights"))
    _, *models = doctor._weights()
    assert {(model.state, model.what) for model in models} == {("ok", "in DPED_LIVE_WEIGHTS")}


# What a probe cannot catch.


def test_library_that_cannot_be_imported(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(surroundings / "bad", "cv2", "raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(surroundings / "bad")
    check = only(doctor._watched("libx264", doctor._codec, "libx264", fix="mend it", needed=True))
    reason = "ImportError: libGL.so.1: cannot open shared object file"
    assert check == Check("libx264", "broken", reason, "mend it", True)


@LINUX
def test_library_that_crashes_after_it_has_printed(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print('hello', flush=True); os.write(1, b'{}\\n'); os.abort()"
    library(surroundings / "bad", "psutil", code)
    monkeypatch.syspath_prepend(surroundings / "bad")
    check = only(doctor._watched("system", doctor._system, needed=True))
    assert check == Check("system", "broken", "it crashed (SIGABRT)", None, True)


def test_library_that_hangs(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(surroundings / "bad", "psutil", "import time; time.sleep(1000)")
    monkeypatch.syspath_prepend(surroundings / "bad")
    monkeypatch.setattr(doctor, "_PATIENCE", 1.0)
    begin = time.monotonic()
    check = only(doctor._watched("system", doctor._system))
    assert time.monotonic() - begin < 10
    assert check == Check("system", "broken", "no answer within 1 seconds")


def test_file_of_the_current_folder_is_no_library() -> None:
    library(Path.cwd(), "json", "raise SystemExit('this is not json')")
    assert [check.state for check in doctor._watched("system", doctor._system)] == ["ok", "ok", "ok"]


# Parts of the machine.


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        name = f":{server.stdout.readline().strip()}"
        monkeypatch.setenv("DISPLAY", name)
        yield name
        server.terminate()


def test_display(display: str) -> None:
    assert display
    assert only(doctor._watched("display", doctor._display)) == Check("display", "ok", "a window can be opened")


@LINUX
def test_display_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":4321")
    check = only(doctor._watched("display", doctor._display))
    assert check == Check("display", "broken", "the display :4321 cannot be opened", "use --preview web")


def test_encoder_that_does_not_exist() -> None:
    check = only(doctor._watched("h999", doctor._codec, "h999"))
    assert (check.state, check.what) == ("not here", "it is not in this PyAV")


def test_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list and the opener are the test's: nobody can rely on a camera being there."""
    found = [
        Camera(0, "/dev/video0", "HD Webcam"),
        Camera(2, "/dev/video2", "Capture Card"),
        Camera(4, "/dev/video4", "Locked", problem="you may not open it; run `sudo usermod -aG video $USER`"),
    ]
    real_open = live.open_live_source

    def opened(what: str) -> live.LiveSource:
        if what == "2":
            raise InputError("Capture Card (/dev/video2): another program uses it; close that one")
        return real_open("test", (64, 48))

    monkeypatch.setattr(cameras, "list_cameras", lambda: found)
    monkeypatch.setattr(live, "open_live_source", opened)
    assert list(doctor._cameras()) == [
        Check("camera 0", "ok", "test picture: 64x48 at 30 fps"),
        Check("camera 2", "broken", "Capture Card (/dev/video2): another program uses it", "close that one"),
        Check("camera 4", "broken", "Locked: you may not open it", "run `sudo usermod -aG video $USER`"),
    ]


@pytest.fixture
def card(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An nvidia-smi that answers as given, where torch has no CUDA."""
    if torch.version.cuda is not None or sys.platform == "win32":
        pytest.skip("needs a torch without CUDA, and a shell")

    def answers(line: str) -> None:
        program = surroundings / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho '{line}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return answers


def test_card_that_torch_was_not_built_for(card: Callable[[str], None]) -> None:
    card("NVIDIA GeForce RTX 3060, 550.54.14, 8.6")
    check = only(doctor._watched("GPU", doctor._gpus, needed=True))
    what = "NVIDIA GeForce RTX 3060, driver 550.54.14: this torch was built without CUDA"
    release = torch.__version__.split("+")[0]
    fix = f"pip install --force-reinstall torch=={release} --index-url https://download.pytorch.org/whl/cu126"
    assert check == Check("GPU", "broken", what, fix, needed=False)


def test_card_that_is_hidden(card: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    card("NVIDIA GeForce RTX 3060, 550.54.14, 8.6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check = only(doctor._gpus())
    assert (check.state, check.fix) == ("not here", "unset CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("driver", "capability", "advice"),
    [
        ("580.95.05", 12.0, "/cu130"),
        ("550.54.14", 8.6, "/cu126"),
        ("580.95.05", 6.1, "/cu126"),  # Pascal
        ("550.54.14", 12.0, "update the driver to 580 or later"),  # Blackwell
        ("580.95.05", 0.0, "/cu130"),
    ],
)
def test_build_of_torch_for_a_card(
    monkeypatch: pytest.MonkeyPatch, driver: str, capability: float, advice: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert advice in doctor.cuda_build([Card("card", driver, capability)])


@pytest.mark.parametrize(
    ("name", "capability", "package"),
    [
        ("NVIDIA GeForce GTX 1080", 6.1, None),
        ("NVIDIA TITAN V", 7.0, None),
        ("Tesla T4", 7.5, "tensorrt-rtx"),
        ("NVIDIA GeForce RTX 4090", 8.9, "tensorrt-rtx"),
        ("NVIDIA H100", 9.0, "tensorrt"),
        ("NVIDIA B200", 10.0, "tensorrt"),
        ("NVIDIA GeForce RTX 5090", 12.0, "tensorrt-rtx"),
        ("a card of which only the driver is known", 0, None),
    ],
)
def test_tensorrt_for_a_card(name: str, capability: float, package: str | None) -> None:
    assert doctor.tensorrt_package([Card(name, "580.95.05", capability)]) == package


def test_tensorrt_without_a_card() -> None:
    assert doctor.tensorrt_package([]) is None


def test_cards_of_tensorrt_rtx_are_those_that_it_says() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install tensorrt-rtx")
    supported = engine.installed_package("tensorrt_rtx").capabilities
    for capability in ("6.1", "7.0", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"):
        is_named = doctor.tensorrt_package([Card("card", "580.95.05", float(capability))]) == "tensorrt-rtx"
        assert is_named == (capability in supported), capability


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("NVIDIA H100, 580.95.05, 9.0", {"tensorrt": "pip install tensorrt"}),
        ("Tesla T4, 580.95.05, 7.5", {"tensorrt_rtx": "pip install tensorrt-rtx"}),
        ("NVIDIA GeForce GTX 1080, 580.95.05, 6.1", {}),
    ],
)
def test_the_package_for_the_card_is_offered(
    card: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, line: str, offered: dict[str, str]
) -> None:
    card(line)
    monkeypatch.setattr(doctor, "find_spec", lambda _module: None)
    monkeypatch.setattr(doctor, "_watched", lambda *_, **__: iter(()))  # all else
    assert {check.name: check.fix for check in doctor.examine() if check.fix is not None} == offered


def test_build_of_torch_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor.cuda_build([Card("card", "580.95.05", 8.9)]).startswith("restart the computer")


@pytest.mark.parametrize(
    ("release", "exclusive", "once"),
    [
        ("0.12.7", "Y,N,N,N,N,N,N,N", True),
        ("0.12.7", "N,N,N,N,N,N,N,N", False),
        ("0.13.2", "Y,N,N,N,N,N,N,N", False),
        ("0.15", "Y", False),
        ("1", "Y", False),
    ],
)
def test_virtual_camera_that_trying_would_use_up(release: str, exclusive: str, once: bool) -> None:
    assert doctor.opens_once(f"{release}\n", f"{exclusive}\n") is once
