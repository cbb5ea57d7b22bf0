"""Recordings: the pictures' own times and colours, sound in time with them, and what is left after a crash."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dped_live.errors import InputError, OutputError
from dped_live.live_state import LivePicture, LiveStats
from dped_live.sinks.encoding import Encoding
from dped_live.sinks.recording import RecordingSink
from dped_live.sources.microphone import Microphone

RED, GREEN = (200, 30, 40), (20, 180, 60)
STATS = LiveStats("camera", 0, 0, (), "", "", 30, 30, 0, {}, None, None)
FAST = Encoding(preset="ultrafast")
RATE = Fraction(30)
SECONDS = 60
"""How long a child process may take: a hang must fail, and a busy machine must not."""


def picture(seconds: Fraction, width: int = 160, height: int = 90, captured_at: float | None = None) -> LivePicture:
    """Red on the left, green on the right."""
    after = np.empty((height, width, 3), np.uint8)
    after[:, : width // 2], after[:, width // 2 :] = RED, GREEN
    return LivePicture(after, after, seconds, float(seconds) if captured_at is None else captured_at)


def times(path: Path) -> list[Fraction]:
    """Of the pictures that can be decoded: the last piece of a file that was broken off may be incomplete."""
    found = []
    with av.open(path) as container, contextlib.suppress(av.error.InvalidDataError):
        for frame in container.decode(video=0):
            assert frame.pts is not None
            assert frame.time_base is not None
            found.append(frame.pts * frame.time_base)
    return found


def sound_of(path: Path) -> tuple[float, np.ndarray]:
    """When the first sample is heard, and all samples, -1..1."""
    with av.open(path) as container:
        frames = list(container.decode(audio=0))
        return frames[0].time or 0.0, np.concatenate([frame.to_ndarray()[0] for frame in frames])


# Pictures.


@pytest.mark.parametrize("name", ["r.mp4", "r.mov", "r.mkv"])
def test_every_picture_keeps_its_time(tmp_path: Path, name: str) -> None:
    """Counted from the first one. The last one is written twice, as it is when a camera hangs."""
    gaps = [3000, 3001, 12_000, 2999, 90_000, 3000, 4500] * 6
    ticks = [sum(gaps[:number]) for number in range(len(gaps))]
    sink = RecordingSink(tmp_path / name, 160, 90, RATE)
    for tick in ticks:
        last = picture(Fraction(53, 10) + Fraction(tick, 90_000))
        sink.write(last, STATS)
    sink.write(last, STATS)
    assert [path.name for path in tmp_path.iterdir()] == [name.replace(".", ".part.")]
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    exact = [Fraction(tick, 90_000) for tick in ticks]
    tolerance = Fraction(1, 2000) if name == "r.mkv" else 0
    assert len(times(tmp_path / name)) == len(exact)
    for found, expected in zip(times(tmp_path / name), exact, strict=True):
        assert abs(found - expected) <= tolerance


@pytest.mark.parametrize(("width", "height", "matrix"), [(160, 90, 6), (1280, 720, 1), (33, 17, 6)])
def test_colours_are_right_and_said_to_be(tmp_path: Path, width: int, height: int, matrix: int) -> None:
    sink = RecordingSink(tmp_path / "r.mp4", width, height, RATE)
    for number in range(3):
        sink.write(picture(number / RATE, width, height), STATS)
    sink.close()
    with av.open(tmp_path / "r.mp4") as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
    assert (frame.width, frame.height) == (width, height)
    assert (frame.colorspace, frame.color_range) == (matrix, 1)
    assert (context.color_primaries, context.color_trc) == (1, 1)
    rgb = frame.to_ndarray(format="rgb24", src_colorspace=matrix if matrix == 1 else 5).astype(int)
    assert np.abs(rgb[:, : width // 2 - 2] - RED).max() <= 6
    assert np.abs(rgb[:, width // 2 + 2 :] - GREEN).max() <= 6


def test_a_picture_that_is_part_of_another_can_be_recorded(tmp_path: Path) -> None:
    """Mirrored pictures are views that run backwards."""
    sink = RecordingSink(tmp_path / "r.mp4", 160, 90, RATE)
    mirrored = picture(Fraction(0)).after[:, ::-1]
    sink.write(LivePicture(mirrored, mirrored, Fraction(0), 0.0), STATS)
    sink.close()
    with av.open(tmp_path / "r.mp4") as container:
        rgb = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(rgb[45, 20] - GREEN).max() <= 6


def test_few_pictures_wait_where_they_are_large(tmp_path: Path) -> None:
    capacities = []
    for number, size in enumerate([(160, 90), (1920, 1080), (3840, 2160)]):
        sink = RecordingSink(tmp_path / f"{number}.mp4", *size, RATE, FAST)
        capacities.append(sink.capacity)
        with pytest.raises(OutputError, match="no picture"):
            sink.close()
    assert capacities[0] == 60
    assert all(
        6 * size * count <= 256 << 20 for size, count in zip((1920 * 1080, 3840 * 2160), capacities[1:], strict=True)
    )
    assert not list(tmp_path.iterdir())


# What can go wrong.


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("missing/r.mp4", "there is no folder"),
        ("old.mp4", "exists; add -y"),
        ("crashed.mp4", "crashed.part.mp4 exists, from a run that did not finish"),
        ("r.xyz", "no container has the suffix '.xyz'"),
        ("r.avi", "only a .mp4, .mov or .mkv file survives a crash"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "old.mp4").write_bytes(b"old")
    (tmp_path / "crashed.part.mp4").write_bytes(b"old")
    microphone = Clicks()
    with pytest.raises(OutputError, match=line) as error:
        RecordingSink(tmp_path / name, 160, 90, RATE, FAST, microphone)
    assert "\n" not in str(error.value)
    assert microphone.closed == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crashed.part.mp4", "old.mp4"]


RECORD = """
import sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from dped_live.errors import OutputError
from dped_live.live_state import LivePicture
from dped_live.sinks.recording import RecordingSink

random = np.random.default_rng(0)
sink = RecordingSink(Path(sys.argv[1]), 160, 90, Fraction(30))
number = 0
try:
    while True:
        after = np.full((90, 160, 3), number % 256, np.uint8)
        after[:40, :40] = random.integers(0, 256, (40, 40, 3), np.uint8)
        sink.write(LivePicture(after, after, Fraction(number, 30), number / 30), None)
        number += 1
        print(number, flush=True)
except OutputError as error:
    print(error)
    sink.close()
"""


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Begin to record to a file in another process; it prints how many pictures are written."""

    def begin(name: str, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RECORD, str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]

    return begin


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")
def test_a_recording_survives_a_kill(tmp_path: Path, record: Callable[..., subprocess.Popen[str]]) -> None:
    for name in ("r.mp4", "r.mov", "r.mkv"):
        child = record(name)
        assert child.stdout is not None
        while int(child.stdout.readline()) < 300:
            pass
        child.kill()
        written = 300 + len(child.stdout.readlines())
        child.wait(SECONDS)
        child.stdout.close()
        part = tmp_path / name.replace(".", ".part.")
        found = times(part)
        assert written - 90 <= len(found) <= written + 1
        assert all(abs(time - number / RATE) < 0.001 for number, time in enumerate(found))
        if ffprobe := shutil.which("ffprobe"):
            command = [
                ffprobe,
                "-v",
                "error",
                "-count_frames",
                "-show_entries",
                "stream=nb_read_frames",
                "-of",
                "csv=p=0",
            ]
            said = subprocess.run([*command, part], capture_output=True, text=True, timeout=SECONDS, check=True)
            assert abs(int(said.stdout.split(",")[0]) - len(found)) <= 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit the size of files")
def test_a_full_disk_ends_the_recording_and_leaves_what_there_is(
    tmp_path: Path, record: Callable[..., subprocess.Popen[str]]
) -> None:
    import resource

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    output, _ = record("r.mp4", preexec_fn=limit).communicate(timeout=SECONDS)
    part = tmp_path / "r.part.mp4"
    written = int(output.splitlines()[-2])
    assert output.splitlines()[-1] == f"{tmp_path}/r.mp4: File too large; what was recorded is in {part}"
    assert [path.name for path in tmp_path.iterdir()] == [part.name]
    assert len(times(part)) > written - 90


# Sound.


class Clicks:
    """A microphone that is read at moments the test chooses. Its samples come `speed` times as fast as they should.

    A click of 2 ms is heard at each full second of the clock; none is captured within `gap`.
    """

    rate = 48_000

    def __init__(self, speed: float = 1.0, gap: tuple[float, float] = (0.0, 0.0)) -> None:
        self.notice: str | None = None
        self.closed = 0
        self.now = 0.0
        self._speed, self._gap = speed, gap
        self._done = 0.0

    def read(self) -> tuple[float, np.ndarray]:
        begin, end = self._done, self.now
        self._done = end
        if begin < self._gap[1] and end > self._gap[0]:
            return begin, np.zeros(0, np.int16)
        moments = np.linspace(begin, end, round((end - begin) * self.rate * self._speed), endpoint=False)
        return begin, np.where(moments % 1 < 0.002, 20_000, 0).astype(np.int16)

    def close(self) -> None:
        self.closed += 1


def record_clicks(path: Path, microphone: Clicks, begin: float, seconds: float) -> list[float]:
    """Record so long from the moment `begin` on; when the clicks are heard, in the file's own time."""
    sink = RecordingSink(path, 160, 90, RATE, FAST, microphone)
    for number in range(round(seconds * RATE)):
        captured_at = begin + number / 30
        microphone.now = captured_at + 0.1  # a picture comes out of the network later than its sound
        sink.write(picture(7 + number / RATE, captured_at=captured_at), STATS)
    sink.close()
    assert microphone.closed == 1
    assert len(times(path)) == round(seconds * RATE)
    start, samples = sound_of(path)
    loud = np.flatnonzero(np.abs(samples) > 0.1) / microphone.rate
    return [start + moment for number, moment in enumerate(loud) if number == 0 or moment - loud[number - 1] > 0.1]


@pytest.mark.parametrize("name", ["r.mp4", "r.mov", "r.mkv"])
def test_sound_is_heard_when_it_was_captured(tmp_path: Path, name: str) -> None:
    """The microphone is on for 3.4 seconds before the first picture, whose time zero is."""
    heard = record_clicks(tmp_path / name, Clicks(), 3.4, 4)
    np.testing.assert_allclose(heard, [0.6, 1.6, 2.6, 3.6], atol=0.003)


@pytest.mark.parametrize("speed", [0.998, 1.002])
def test_sound_does_not_run_away(tmp_path: Path, speed: float) -> None:
    """A clock that is wrong by two thousandths, forty times as much as usual, is followed."""
    heard = record_clicks(tmp_path / "r.mp4", Clicks(speed), 0.5, 30)
    np.testing.assert_allclose(heard, np.arange(30) + 0.5, atol=0.02)


def test_sound_that_is_lost_is_silence(tmp_path: Path) -> None:
    heard = record_clicks(tmp_path / "r.mp4", Clicks(gap=(2.6, 4.7)), 0.5, 7)
    np.testing.assert_allclose(heard, [0.5, 1.5, 4.5, 5.5, 6.5], atol=0.01)


@pytest.fixture
def beep(tmp_path: Path) -> Path:
    """Two seconds, with a click of 5 ms after 1.5."""
    samples = np.zeros(2 * 44_100, np.int16)
    samples[66_150:66_370] = 20_000
    path = tmp_path / "beep.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(samples.tobytes())
    return path


def test_a_microphone_tells_when_it_heard_something(beep: Path, tmp_path: Path) -> None:
    """A file in its place; what it gives is recorded in time with the pictures, until there is no more of it."""
    before = time.monotonic()
    microphone = Microphone(str(beep))
    began, _ = microphone.read()
    assert before <= began <= time.monotonic()
    sink = RecordingSink(tmp_path / "r.mp4", 160, 90, RATE, FAST, microphone)
    first = time.monotonic()
    for number in range(100):
        captured_at = time.monotonic()
        sink.write(picture(Fraction(captured_at), captured_at=captured_at), STATS)
        time.sleep(1 / 30)
        assert sink.notice is None or number > 50
    assert sink.notice == f"{beep}: the microphone gives no more sound"
    sink.close()
    start, samples = sound_of(tmp_path / "r.mp4")
    heard = start + np.flatnonzero(np.abs(samples) > 0.1)[0] / 48_000
    assert heard == pytest.approx(began + 1.5 - first, abs=0.04)


def test_a_microphone_that_there_is_not() -> None:
    with pytest.raises(
        InputError, match=r"^a name nobody has: no such microphone.*choose one with --audio-input"
    ) as error:
        Microphone("a name nobody has")
    assert "\n" not in str(error.value)


def test_a_file_without_sound(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(os.urandom(1000))
    with pytest.raises(InputError, match=r"x\.wav: .*Invalid data"):
        Microphone(str(tmp_path / "x.wav"))
    sink = RecordingSink(tmp_path / "r.mp4", 160, 90, RATE, FAST)
    sink.write(picture(Fraction(0)), STATS)
    sink.close()
    with pytest.raises(InputError, match=r"r\.mp4: .*there is no sound in it"):
        Microphone(str(tmp_path / "r.mp4"))
