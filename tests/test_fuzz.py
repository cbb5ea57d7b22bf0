"""Thousands of damaged files: each is read, or refused in one line. Never a crash, never a hang, never half a result.

Child processes do the reading, each many files, and say which file they begin: so a crash or a hang has a name, and
the next child goes on after it. What is done to a file follows from its number alone; to see one again:

    python tests/test_fuzz.py FOLDER read|convert FIRST LAST

where FOLDER is the test's (its message tells), with the seeds in it.
"""

from __future__ import annotations

import os
import queue
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from dped_live.errors import DpedError
from dped_live.sources.file import FileSource

from test_video import Sound, convert, moving, write_clip

FILES = {
    "read": int(os.environ.get("DPED_FUZZ_READ", "6000")),
    "convert": int(os.environ.get("DPED_FUZZ_CONVERT", "300")),
}
"""How many files, by what is done with them: all frames read, or the whole way into a new file."""

CHILDREN = 2
PATIENCE = 60
"""Seconds without a sign of life that are a hang: a file takes a hundredth of one, on a machine that may be busy."""

MOST_FRAMES = 2000
"""No mutation of twelve pictures makes more than these, unless timestamps or packets are invented without end."""

MEMORY = 8 << 30


def make_seeds(folder: Path) -> None:
    os.environ.setdefault("SVT_LOG", "1")  # or SVT-AV1 prints a page of its settings
    clock, ts = Fraction(1, 25), Fraction(1, 90000)
    pictures = moving(12)
    b_frames = {"preset": "fast", "bf": "2", "g": "6"}
    x265 = {"preset": "ultrafast", "x265-params": "log-level=error:keyint=6"}
    plain, realtime = {"g": "6"}, {"deadline": "realtime", "cpu-used": "8", "g": "6"}
    shifted = [90000 * 3600 + 3600 * n for n in range(12)]
    write_clip(folder / "0.mp4", pictures, options=b_frames, sound=Sound(0.5))
    write_clip(folder / "1.mov", pictures, codec="libx265", options=x265, ticks=[n * 700 + n % 3 for n in range(12)])
    write_clip(folder / "2.mkv", pictures, options=b_frames, sound=Sound(0.5, codec="libopus", rate=48000))
    write_clip(folder / "3.webm", pictures, codec="libvpx-vp9", options=realtime)
    write_clip(
        folder / "4.ts", pictures, options=b_frames, ticks=shifted, clock=ts, sound=Sound(0.5, Fraction(3600), "mp2")
    )
    write_clip(folder / "5.avi", pictures, codec="mpeg4", options=plain, clock=clock, sound=Sound(0.5, codec="mp2"))
    write_clip(folder / "6.flv", pictures, options=b_frames, clock=Fraction(1, 1000), sound=Sound(0.5))
    write_clip(folder / "7.mpg", pictures, codec="mpeg2video", options=plain | {"bf": "2"}, clock=clock)
    write_clip(folder / "8.nut", pictures, codec="ffv1", options={}, clock=clock)
    write_clip(folder / "9.h264", pictures, options=b_frames, clock=clock)
    write_clip(folder / "10.gif", pictures, codec="gif", pix_fmt="rgb8", options={}, clock=Fraction(1, 100))
    write_clip(folder / "11.wmv", pictures, codec="wmv2", options=plain, clock=Fraction(1, 1000))
    write_clip(folder / "12.mkv", pictures, codec="libsvtav1", options={"preset": "12"}, clock=clock)
    write_clip(folder / "13.mov", pictures, codec="prores", pix_fmt="yuv422p10le", options={}, clock=clock)


def mutated(number: int, seeds: list[Path]) -> tuple[str, bytes]:
    """The suffix and the bytes of the damaged file of this number."""
    chance = random.Random(number)
    seed = chance.choice(seeds)
    data = bytearray(seed.read_bytes())

    def place(length: int = 1) -> int:
        return chance.randrange(max(1, len(data) - length))

    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if len(data) < 64:
            break
        kind = chance.randrange(8)
        if kind == 0:
            for _ in range(chance.choice([1, 3, 10, 100])):
                data[place()] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[max(64, place()) :]
        elif kind == 2:
            length = chance.randrange(1, 2000)
            begin = place(length)
            data[begin : begin + length] = bytes(len(data[begin : begin + length]))
        elif kind == 3:
            other = chance.choice(seeds).read_bytes()
            begin, length = chance.randrange(len(other)), chance.randrange(1, 2000)
            where = place()
            data[where : where + chance.choice([0, length])] = other[begin : begin + length]
        elif kind == 4:
            del data[place() : place() + chance.randrange(1, 200)]
        elif kind == 5:
            # Where headers and indices are: the beginning and the end.
            for _ in range(chance.choice([1, 2, 5])):
                near = chance.randrange(min(len(data), 700))
                where = chance.choice([near, len(data) - 1 - near])
                data[where] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif kind == 6:
            where = chance.choice([place(4), chance.randrange(min(len(data), 700))])
            value = chance.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, chance.randrange(1 << 32)])
            data[where : where + 4] = value.to_bytes(4, chance.choice(["big", "little"]))
        else:
            data += chance.choice(seeds).read_bytes()
    return seed.suffix, bytes(data)


# In a child.


def read(path: Path) -> None:
    source = FileSource(path)
    try:
        count = sum(1 for _ in source.frames())
    finally:
        source.close()
    assert count <= MOST_FRAMES, f"{count} frames"
    assert not any("\n" in note for note in source.notes)


def convert_whole(path: Path) -> None:
    target = path.with_name(f"out{random.Random(path.name).choice(['.mp4', '.mkv', '.mov'])}")
    try:
        outcome, _ = convert(path, target, strength=0.0)
        assert outcome.frames > 0
        assert target.exists()
    except DpedError:
        assert not target.exists()
        raise
    finally:
        for left in path.parent.iterdir():
            if left != path:
                left.unlink()


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def work(folder: Path, task: str, first: int, last: int) -> None:
    """Damage and use the files of these numbers; say what is begun and what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seeds = sorted((folder / "seeds").iterdir())
    here = folder / f"{task}{first}"
    here.mkdir(exist_ok=True)
    for number in range(first, last):
        suffix, data = mutated(number, seeds)
        path = here / f"{number}{suffix}"
        path.write_bytes(data)
        tell(f"begun {path}")
        try:
            (read if task == "read" else convert_whole)(path)
            tell("fine")
        except DpedError as error:
            line = str(error)
            tell("refused" if "\n" not in line and path.name in line else f"bad message: {line!r}")
        path.unlink()


# In the test.


def lines_of(child: subprocess.Popen[str]) -> Iterator[str | None]:
    """The child's lines as they come; None where there is none for too long."""
    lines: queue.Queue[str] = queue.Queue()
    assert child.stdout is not None
    output = child.stdout

    def forward() -> None:
        for line in output:
            lines.put(line.rstrip("\n"))
        lines.put("")

    threading.Thread(target=forward, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=PATIENCE)
        except queue.Empty:
            yield None
            return
        if not line:
            return
        yield line


def run_children(folder: Path, task: str, first: int, last: int) -> tuple[dict[str, int], list[str]]:
    """Work through these files; returns how often each thing happened, and what must not."""
    counts: dict[str, int] = {}
    failures: list[str] = []
    while first < last:
        command = [sys.executable, __file__, str(folder), task, str(first), str(last)]
        with (
            (folder / f"{task}{first}.errors").open("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
        ):
            current, hung = "none", False
            for line in lines_of(child):
                if line is None:
                    hung = True
                    child.kill()
                elif line.startswith("begun "):
                    current = line.removeprefix("begun ")
                    first = int(Path(current).stem) + 1
                else:
                    counts[line] = counts.get(line, 0) + 1
                    if line not in ("fine", "refused"):
                        failures.append(f"{current}: {line}")
            code = child.wait()
            if hung or code:
                errors.seek(0)
                said = errors.read().strip().splitlines()[-1:]
                failures.append(f"{current}: {'hangs' if hung else f'exit {code}'} {said}")
                if current == "none" or len(failures) > 20:
                    break
    return counts, failures


@pytest.mark.parametrize("task", FILES)
def test_damaged_files_are_read_or_refused(tmp_path: Path, task: str) -> None:
    (tmp_path / "seeds").mkdir()
    make_seeds(tmp_path / "seeds")
    total = FILES[task]
    found: list[tuple[dict[str, int], list[str]]] = []

    def share(number: int) -> None:
        found.append(run_children(tmp_path, task, total * number // CHILDREN, total * (number + 1) // CHILDREN))

    threads = [threading.Thread(target=share, args=(number,)) for number in range(CHILDREN)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [failure for _, some in found for failure in some]
    assert not failures, "\n".join(failures)
    counts = {key: sum(some.get(key, 0) for some, _ in found) for key in ("fine", "refused")}
    assert sum(counts.values()) == total
    # Neither would tell anything: mutations that hurt nothing, and such that leave nothing to read.
    assert min(counts.values()) > total / 20, counts


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
