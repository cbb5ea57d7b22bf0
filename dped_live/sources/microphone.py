"""A microphone, read in a process of its own: a driver may block for ever.

FFmpeg opens it: ALSA on Linux, which PipeWire and PulseAudio answer to as well, DirectShow on Windows, AVFoundation on
macOS. Run with PulseAudio on Linux; never with hardware, and never on Windows or macOS, for want of such machines.

A sample's moment is when it was handed over, less what came after it in the same piece: what the device and the sound
server keep to themselves before, 10 to 30 ms as a rule, is not known.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import av
import av.device
import numpy as np

from dped_live.child_process import Child, EndedError, Parent
from dped_live.errors import InputError

_DEVICES = {"win32": "dshow", "darwin": "avfoundation"}.get(sys.platform, "alsa")
"""FFmpeg's name for what opens microphones here."""

_ALSA_FILES = {
    "ALSA_CONFIG_DIR": ["/usr/share/alsa"],
    "ALSA_CONFIG_PATH": ["/usr/share/alsa/alsa.conf"],
    "ALSA_PLUGIN_DIR": [
        f"/usr/lib/{platform.machine()}-linux-gnu/alsa-lib",
        "/usr/lib64/alsa-lib",
        "/usr/lib/alsa-lib",
    ],
}
"""The ALSA library in PyAV's wheel looks for them where they were on the machine that built it."""

_RATE = 48_000
_SAMPLES = 20 * _RATE
"""Kept for the reader."""

_START, _PATIENCE = 30.0, 4.0
"""Seconds for the process to start on a machine that is busy; for the microphone's first sound."""

_SILENT = 1.0
"""Seconds without sound after which there is a notice."""


class Microphone:
    """The sound of a microphone, mono, of which the last twenty seconds are kept. Used by one thread, but for `notice`.

    what: "default", a name, or part of a name or a description; or a file, which is played once, in real time.
    name: for people. rate: samples a second. notice: what is wrong at present, None while there is sound.

    Raises InputError if there is no such microphone, another program uses it, or it gives nothing.
    """

    rate = _RATE

    def __init__(self, what: str) -> None:
        self.notice: str | None = None
        self._memory = SharedMemory(create=True, size=_Ring.SIZE)
        self._child = Child(_listen, what, self._memory.name)
        try:
            self.name = _opened(self._child, what)
        except BaseException:
            self.close()
            raise
        self._position = 0
        self._heard_at = time.monotonic()

    def read(self) -> tuple[float, np.ndarray]:
        """What has come since the last call, and when the first of these samples was captured.

        Seconds on the clock of time.monotonic(), and (n,), int16. Never waits and never fails: where a microphone is
        unplugged nothing more comes.
        """
        before, now = self._position, time.monotonic()
        moment, samples, self._position = _Ring(self._memory).read(before)
        if self._position > before:
            self._heard_at, self.notice = now, None
        elif now - self._heard_at > _SILENT:
            self.notice = f"{self.name}: the microphone gives no more sound"
        return moment, samples

    def close(self) -> None:
        """Let the microphone go."""
        self._child.end()
        self._memory.close()
        self._memory.unlink()


def _opened(child: Child, what: str) -> str:
    """The microphone's name, when its first sound has come. Raises InputError."""
    until = time.monotonic() + _START
    while time.monotonic() < until:
        try:
            message = child.hear(0.2) or {}
        except EndedError as error:
            raise InputError(f"{what}: the process that listens to the microphone has ended; try again") from error
        if "opening" in message:
            until = time.monotonic() + _PATIENCE
        if "failed" in message:
            raise InputError(message["failed"])
        if "opened" in message:
            name: str = message["opened"]
            return name
    raise InputError(f"{what}: the microphone gives no sound; choose another with --audio-input")


class _Ring:
    """The newest samples in shared memory, counted from the first; one process writes, another reads.

    Before them four numbers: when the first would have been captured if the clock had always run as it does now; how
    many there are; and of the second that is not full yet, its first sample and by how much all of it is late.
    """

    _HEAD = 4 * 8
    SIZE = _HEAD + 2 * _SAMPLES

    def __init__(self, memory: SharedMemory) -> None:
        self._clock = np.ndarray(4, np.float64, memory.buf)
        self._samples = np.ndarray(_SAMPLES, np.int16, memory.buf, self._HEAD)

    def write(self, samples: np.ndarray, now: float) -> None:
        """Add what is handed over now.

        Sound may be handed over late, if this process or the driver has to wait, and never early. So of each second
        the soonest piece tells the time: how far the two clocks have run apart, or how much was lost.
        """
        origin, written, second, least = self._clock
        end = written + samples.size
        late = now - origin - end / _RATE
        if written == 0 or late < 0:
            origin, late = origin + late, 0.0
        least = min(least, late) if written > second else late
        if end - second >= _RATE:
            origin, second = origin + least, end
        kept = samples[-_SAMPLES:]
        self._samples[np.arange(end - kept.size, end, dtype=np.int64) % _SAMPLES] = kept
        self._clock[:] = origin, end, second, least

    def read(self, position: int) -> tuple[float, np.ndarray, int]:
        """From this sample on: moment, samples, and where to go on; without what was overwritten or soon will be."""
        origin, end = float(self._clock[0]), int(self._clock[1])
        begin = max(position, end - _SAMPLES + _RATE)
        return origin + begin / _RATE, self._samples[np.arange(begin, end) % _SAMPLES], end


def _listen(parent: Parent, what: str, memory: str) -> None:
    """The work of the process."""
    shared = SharedMemory(memory)
    parent.tell(opening=what)
    try:
        if Path(what).is_file():
            name, pieces = what, _played(Path(what))
        else:
            name, container = _open(what)
            pieces = _captured(container)
        for number, samples in enumerate(pieces):
            parent.hear()
            _Ring(shared).write(samples, time.monotonic())
            if number == 0:
                parent.tell(opened=name)
    except (av.FFmpegError, IndexError) as error:
        reason = error.strerror if isinstance(error, av.FFmpegError) else "there is no sound in it"
        others = ", ".join(device.name for device in _microphones()) or "none was found"
        parent.tell(
            failed=f"{what}: no such microphone, or another program uses it ({reason}); "
            f"choose one with --audio-input: {others}"
        )


def _open(what: str) -> tuple[str, av.container.InputContainer]:
    """Its name and what it gives. Raises av.FFmpegError."""
    devices = _microphones()
    found = [device for device in devices if what == device.name]
    found += [device for device in devices if what.casefold() in f"{device.name} {device.description}".casefold()]
    address = found[0].name if found else what
    name = found[0].description if found else what
    if _DEVICES == "dshow":
        return name, av.open(f"audio={address}", format=_DEVICES, options={"audio_buffer_size": "50"})
    if _DEVICES == "avfoundation":
        return name, av.open(f":{address}", format=_DEVICES)
    with _without_standard_error():
        try:
            return name, av.open(address, format=_DEVICES)
        except av.FFmpegError:  # it has not two channels, or cannot be opened at all
            return name, av.open(address, format=_DEVICES, options={"channels": "1"})


def _microphones() -> list[av.device.DeviceInfo]:
    if _DEVICES == "alsa":
        for variable, places in _ALSA_FILES.items():
            os.environ.setdefault(variable, next((place for place in places if Path(place).exists()), places[0]))
    with _without_standard_error():
        return [device for device in av.device.enumerate_input_devices(_DEVICES) if "audio" in device.media_types]


@contextlib.contextmanager
def _without_standard_error() -> Iterator[None]:
    """ALSA writes there what the caller is told anyway."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _captured(container: av.container.InputContainer) -> Iterator[np.ndarray]:
    """The sound as it comes."""
    stream = container.streams.audio[0]
    resampler = av.AudioResampler("s16", "mono", _RATE)
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except BlockingIOError:  # AVFoundation does not wait for the next
            time.sleep(0.003)
            packets = container.demux(stream)
            continue
        yield _samples(resampler, packet.decode())


def _played(path: Path) -> Iterator[np.ndarray]:
    """A file's sound, as if it came from a microphone."""
    with av.open(f"file:{path}") as container:
        resampler = av.AudioResampler("s16", "mono", _RATE)
        begin, played = time.monotonic(), 0
        for frame in container.decode(container.streams.audio[0]):
            samples = _samples(resampler, [frame])
            played += samples.size
            time.sleep(max(0.0, begin + played / _RATE - time.monotonic()))
            yield samples


def _samples(resampler: av.AudioResampler, frames: list[av.AudioFrame]) -> np.ndarray:
    parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    return np.concatenate([np.zeros(0, np.int16), *parts])
