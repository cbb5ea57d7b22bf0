"""The way of a frame can be read off the imports: they point down only, and heavy things stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dped_live"

LAYERS = [
    {"errors", "frame"},
    {
        "live_state",
        "photo",
        "partial",
        "channel",
        "child_process",
        "clock",
        "borders",
        "color",
        "layout",
        "metrics",
        "scenes",
        "staging",
        "statistics",
        "tensor_bundle",
    },
    {"generator", "table_kernels", "table_network"},
    {"network", "table_filter"},
    {"surrogate"},
    {"weights", "sources", "sinks"},
    {"backends"},
    {"scene_statistics"},
    {"live_statistics"},
    {"enhance", "follower"},
    {"pipeline", "ladder", "training"},
    {"live"},
    {"batch", "doctor"},
    {"bench"},
    {"terminal"},
    {"report", "build"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up. A module imports from layers below its own; `color` and `photo` may import `frame`."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The module or folder of the layout that a file belongs to; all that talks to the user is the command line."""
    return "cli" if path.name == "cli.py" else path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names |= {node.module} if node.module != "dped_live" else {f"dped_live.{a.name}" for a in node.names}
    return names


def test_every_module_has_a_layer() -> None:
    assert {part_of(path) for path in modules()} - {"__init__"} == set(RANK)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = part_of(path)
    if own == "__init__":
        assert not imported(path)
        return
    for name in imported(path):
        if name.startswith("dped_live."):
            other = name.split(".")[1]
            assert other == own or RANK[other] < RANK[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_imports_stay_where_they_belong(path: Path) -> None:
    own, roots = part_of(path), {name.split(".")[0] for name in imported(path)}
    if own in ("sources", "sinks", "frame", "photo", "partial", "pipeline", "channel", "cli"):
        assert "torch" not in roots
    if own not in ("sources", "sinks"):
        assert not roots & {"av", "cv2", "PIL"} or own == "photo"
    # In the browser output viewers come and go, and each is served by a thread of its own.
    if own not in ("pipeline", "live", "channel") and path != PACKAGE / "sinks/web.py":
        assert "threading" not in roots, "threads belong to the pipeline"
    assert not roots & {"pickle", "shelve", "marshal"}
    if own == "frame":
        assert "numpy" in roots


def test_sources_and_sinks_do_not_know_each_other() -> None:
    for path in modules():
        if part_of(path) in ("sources", "sinks"):
            other = {"sources": "sinks", "sinks": "sources"}[part_of(path)]
            assert not any(name.startswith(f"dped_live.{other}") for name in imported(path)), path


@pytest.mark.parametrize("module", ["sources.file", "sinks.file", "sources.images", "training.loop", "batch", "cli"])
def test_cv2_is_imported_before_av(module: str) -> None:
    """The other order hangs the first preview window for ever."""
    code = f"import sys, dped_live.{module}; names = list(sys.modules); print([n for n in names if n in ('cv2', 'av')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() in ("['cv2', 'av']", "['cv2']", "[]")


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["build"], ["bench"]])
def test_help_needs_neither_torch_nor_av(command: list[str]) -> None:
    code = (
        "import sys, dped_live.cli\n"
        f"try: dped_live.cli.main([*{command}, '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'av', 'cv2'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
