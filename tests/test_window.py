"""The preview window, on an X server of its own, with real keys and mouse movements, and what is drawn on pictures.

Each window lives in a process of its own, as Qt ends the whole process where it finds no display, and as the order of
imports matters.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dped_live.live_state import Latency, LiveStats
from dped_live.sinks.overlay import fitted, wiped, with_notice, with_statistics

WITH_AV = [
    f"{folder}.{path.stem}"
    for folder in ("sources", "sinks")
    for path in sorted((Path(__file__).parents[1] / "dped_live" / folder).glob("*.py"))
    if "import av\n" in path.read_text(encoding="utf-8")
]
STATS = LiveStats(
    "HD Webcam (/dev/video0)",
    960,
    540,
    ("iphone",),
    "iphone",
    "exactly",
    30.0,
    27.5,
    12,
    {"window": Latency(45, 60)},
    None,
    Path("live.mp4"),
)

SCRIPT = """
import ctypes, subprocess, time
from dataclasses import replace
from fractions import Fraction
import numpy as np
from PIL import ImageGrab
from dped_live.live_state import Controls, Latency, LivePicture, LiveStats
from dped_live.sinks.window import WindowSink

BEFORE, AFTER, BLACK, WHITE = (200, 40, 20), (20, 90, 210), (0, 0, 0), (255, 255, 255)
def of(color): return np.full((540, 960, 3), color, np.uint8)
picture = LivePicture(of(BEFORE), of(AFTER), Fraction(0), time.monotonic())
stats = LiveStats("HD Webcam (/dev/video0)", 960, 540, ("iphone",), "iphone", "exactly", 30.0, 27.5, 12,
                  {"window": Latency(45, 60)}, None, None)
controls = Controls()
window = WindowSink(controls, "dped-live", 960, 540)

def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        window.write(picture, stats)
        time.sleep(1 / 60)

def run(seconds):
    until(lambda: False, seconds)

def expect(value, wanted):
    until(lambda: value() == wanted)
    assert value() == wanted, f"{value()}, not {wanted}"

def colors(*points):  # of the screen; the window is in its upper left corner
    screen = ImageGrab.grab()
    return [screen.getpixel(point) for point in points]

def shown():
    return colors((480, 200))[0]

def xdotool(*arguments):
    return subprocess.run(["xdotool", *arguments], check=True, capture_output=True, text=True).stdout

def focus():
    xdotool("windowfocus", handle)
    expect(lambda: xdotool("getwindowfocus").strip(), handle)

handle = xdotool("search", "--name", "^dped-live$").split()[-1]
until(lambda: shown() == AFTER, 1)
if shown() != AFTER:
    # In OpenCV 5.0.0 Qt sometimes loses the event that the window is there, if there is no window manager.
    xdotool("windowunmap", handle, "windowmap", handle)
expect(shown, AFTER)
focus()
"""

CLOSE = """
class Message(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("serial", ctypes.c_ulong), ("send_event", ctypes.c_int),
                ("display", ctypes.c_void_p), ("window", ctypes.c_ulong), ("message_type", ctypes.c_ulong),
                ("format", ctypes.c_int), ("data", ctypes.c_long * 5), ("rest", ctypes.c_long * 12)]
# What a window manager sends when the cross in the title bar is clicked.
x11 = ctypes.CDLL("libX11.so.6")
x11.XOpenDisplay.restype, x11.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
display = ctypes.c_void_p(x11.XOpenDisplay(None))
def atom(name): return x11.XInternAtom(display, name, 0)
message = Message(33, 0, 1, display, int(handle), atom(b"WM_PROTOCOLS"), 32, (atom(b"WM_DELETE_WINDOW"), 0, 0, 0, 0))
x11.XSendEvent(display, ctypes.c_ulong(int(handle)), 0, 0, ctypes.byref(message))
x11.XCloseDisplay(display)
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """The name of a display with 1600x1000 pixels and no window manager."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1600x1000x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield f":{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def python(code: str, **environment: str) -> str:
    """What a Python process prints that ends well, within a minute and without a word on standard error."""
    inherited = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=inherited | environment,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture
def at_window(screen: str) -> Callable[[str], object]:
    """Runs code after SCRIPT; what it asserts must hold."""
    if shutil.which("xdotool") is None:
        pytest.skip("needs xdotool")
    return lambda code: python(f"{SCRIPT}\n{code}\nwindow.close()", DISPLAY=screen)


def test_keys_change_the_controls(at_window: Callable[[str], object]) -> None:
    at_window("""
def state(): return controls.strength, controls.mirror, controls.paused, tuple(controls.requests)
def press(key, *wanted):
    xdotool("key", key)
    expect(state, wanted)
press("bracketleft", 0.9, False, False, ())
press("bracketleft", 0.8, False, False, ())
press("bracketright", 0.9, False, False, ())
press("bracketright", 1.0, False, False, ())
press("m", 1.0, True, False, ())
press("space", 1.0, True, True, ())
press("s", 1.0, True, True, ("screenshot",))
press("r", 1.0, True, True, ("screenshot", "record"))
for nothing in ("Left", "bracketright"):  # the lower bits of the left arrow's code are those of Q; strength ends at 1
    xdotool("key", nothing)
    run(0.2)
    assert state() == (1.0, True, True, ("screenshot", "record"))
press("q", 1.0, True, True, ("screenshot", "record", "quit"))
press("Escape", 1.0, True, True, ("screenshot", "record", "quit", "quit"))
""")


def test_the_wipe_follows_the_mouse(at_window: Callable[[str], object]) -> None:
    at_window("""
def wiped_at(x):
    expect(lambda: colors((x - 20, 200), (x, 200), (x + 20, 200)), [BEFORE, WHITE, AFTER])
xdotool("key", "c")
wiped_at(480)
xdotool("mousemove", "480", "270", "mousedown", "1", "mousemove", "300", "300")
wiped_at(300)
xdotool("mousemove", "240", "300", "mouseup", "1")
wiped_at(240)
xdotool("mousemove", "700", "300")
run(0.2)
wiped_at(240)
xdotool("mousemove", "600", "100", "click", "1")
wiped_at(600)
xdotool("mousedown", "1", "mousemove", "1500", "100", "mouseup", "1")
expect(lambda: colors((10, 200), (900, 200)), [BEFORE, BEFORE])
xdotool("key", "c")
expect(lambda: colors((10, 200), (900, 200)), [AFTER, AFTER])
assert np.all(picture.before == BEFORE) and np.all(picture.after == AFTER)
""")


def test_b_shows_the_original_for_as_long_as_it_is_held(at_window: Callable[[str], object]) -> None:
    at_window("""
xdotool("keydown", "b")
expect(shown, BEFORE)
for _ in range(4):  # longer than a short press would show it
    run(0.3)
    assert shown() == BEFORE
xdotool("keyup", "b")
expect(shown, AFTER)
xdotool("key", "b")
expect(shown, BEFORE)
expect(shown, AFTER)
""")


def test_statistics_and_notices_come_and_go(at_window: Callable[[str], object]) -> None:
    at_window("""
def lettering():
    screen = np.asarray(ImageGrab.grab())[:540, :960]
    return bool(screen[10:130, 10:300].max() == 255), bool(screen[440:, 300:660].max() == 255)
xdotool("key", "i")
expect(lettering, (True, False))
xdotool("key", "i")
expect(lettering, (False, False))
running, stats = stats, replace(stats, notice="the camera was unplugged; waiting for it")
expect(lettering, (False, True))
stats = running
expect(lettering, (False, False))
xdotool("key", "bracketleft")
expect(lettering, (False, True))
expect(lettering, (False, False))
""")


def test_the_picture_fills_the_window_and_keeps_its_shape(at_window: Callable[[str], object]) -> None:
    at_window("""
xdotool("windowsize", handle, "600", "900")
expect(lambda: colors((300, 10), (5, 450), (595, 450), (300, 890)), [BLACK, AFTER, AFTER, BLACK])
xdotool("windowsize", handle, "1500", "300")
expect(lambda: colors((10, 150), (750, 5), (750, 295), (1490, 150)), [BLACK, AFTER, AFTER, BLACK])
""")


@pytest.mark.skipif(shutil.which("openbox") is None, reason="needs a window manager: openbox")
def test_full_screen_and_back(at_window: Callable[[str], object]) -> None:
    at_window("""
corners = (20, 500), (1580, 500), (800, 20)
def full(): return colors(*corners) == [AFTER, AFTER, BLACK]  # 16:9 on 16:10
with subprocess.Popen(["openbox"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as manager:
    try:
        managed = ["xdotool", "get_desktop"]
        expect(lambda: subprocess.run(managed, capture_output=True).returncode, 0)
        focus()
        xdotool("key", "f")
        expect(full, True)
        xdotool("key", "f")
        expect(full, False)
    finally:
        manager.terminate()
""")


def test_closing_the_window_asks_to_quit_and_it_stays_closed(at_window: Callable[[str], object]) -> None:
    at_window(f"""
{CLOSE}
expect(lambda: tuple(controls.requests), ("quit",))
run(0.2)
assert tuple(controls.requests) == ("quit",)
assert shown() == BLACK
""")


@pytest.mark.parametrize("first", WITH_AV)
def test_a_window_opens_whichever_module_was_imported_first(first: str, screen: str) -> None:
    """Had `av` come before cv2, the first window would hang for ever."""
    output = python(
        f"import dped_live.{first}, dped_live.sources.file, dped_live.sinks.file, av, cv2\n"
        "from dped_live.live_state import Controls\n"
        "from dped_live.sinks.window import WindowSink\n"
        "window = WindowSink(Controls(), 'dped-live', 960, 540)\n"
        "window.close()\n"
        "print('opened and closed')",
        DISPLAY=screen,
    )
    assert output == "opened and closed\n"


@pytest.mark.skipif(sys.platform != "linux", reason="about X11")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no display to open a window on (DISPLAY is not set); use --preview web"),
        ({"DISPLAY": ":4711"}, "the display :4711 cannot be opened; use --preview web"),
        (
            {"WAYLAND_DISPLAY": "wayland-0"},
            "opencv-python's window needs X11 and DISPLAY is not set; install Xwayland or use --preview web",
        ),
    ],
)
def test_no_display_is_an_error_and_not_the_end_of_the_process(environment: dict[str, str], message: str) -> None:
    output = python(
        "from dped_live.errors import OutputError\n"
        "from dped_live.live_state import Controls\n"
        "from dped_live.sinks.window import WindowSink\n"
        "try: WindowSink(Controls(), 'dped-live', 960, 540)\n"
        "except OutputError as error: print(error)",
        **environment,
    )
    assert output == f"{message}\n"


@pytest.mark.parametrize("size", [(480, 640), (1280, 720), (2160, 3840)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_lettering_is_legible_on_any_picture_and_at_any_size(size: tuple[int, int], level: int) -> None:
    picture = np.full((*size, 3), level, np.uint8)
    notice = with_notice(picture, "the camera was unplugged; waiting for HD Webcam (/dev/video0)")
    statistics = with_statistics(picture, STATS)
    assert np.all(picture == level)
    for drawn, part in ((notice, np.s_[size[0] // 2 :]), (statistics, np.s_[: size[0] // 2])):
        assert drawn.shape == picture.shape
        changed = drawn[part][(drawn[part] != level).any(axis=2)] if level else drawn[part]
        assert changed.max() > 220
        # Contrast of at least 7:1 between letters and ground, the enhanced level of WCAG 2.
        assert changed.min() <= 77


def test_the_statistics_never_reach_beyond_the_picture() -> None:
    for width in (160, 640, 1280):
        picture = np.full((720, width, 3), 255, np.uint8)
        drawn = with_statistics(picture, replace(STATS, source="x" * 300))
        assert np.all(drawn[:, -width // 50 :] == 255)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 3), (20, 20)])
def test_a_window_may_be_too_small_for_anything(size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 90, np.uint8)
    for drawn in (with_notice(picture, "paused"), with_statistics(picture, STATS), wiped(picture, picture, 0.5)):
        assert drawn.shape == picture.shape


def test_wiped_draws_a_line_between_the_two() -> None:
    before, after = np.full((360, 640, 3), 50, np.uint8), np.full((360, 640, 3), 200, np.uint8)
    for position, x in ((0.0, 0), (0.25, 160), (1.0, 640)):
        picture = wiped(before, after, position)
        assert picture.shape == (360, 640, 3)
        assert np.all(picture[20, : max(0, x - 6)] == 50)
        assert np.all(picture[20, x + 6 :] == 200)
        assert np.all(picture[20, min(x, 639)] == 255)
    assert np.all(before == 50)
    assert np.all(after == 200)


def test_fitted_keeps_the_shape_and_touches_nothing_that_fits() -> None:
    picture = np.full((90, 160, 3), 77, np.uint8)
    assert fitted(picture, 160, 90) is picture
    for width, height, inside in ((320, 180, 320 * 180), (320, 320, 320 * 180), (40, 90, 40 * 22)):
        result = fitted(picture, width, height)
        assert result.shape == (height, width, 3)
        assert abs(int((result == 77).all(axis=2).sum()) - inside) <= max(width, height)
        assert set(np.unique(result)) <= {0, 77}
