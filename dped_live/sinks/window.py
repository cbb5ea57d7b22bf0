"""The preview: a window of OpenCV's highgui with the newest picture, keys and a before/after wipe.

What highgui cannot do decides some of it. It scales pictures by repeating pixels, so the picture is fitted to the
window here, with the lettering drawn at the window's own resolution, and highgui has nothing left to scale. It reports
no key's release, so `b` shows the original for as long as the keyboard repeats it, and a short press for a moment. It
remembers only the last key, so of two pressed within a sixtieth of a second one is lost.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

import cv2
import numpy as np

from dped_live.errors import OutputError
from dped_live.live_state import Controls, LivePicture, LiveStats
from dped_live.sinks.overlay import fitted, wiped, with_notice, with_statistics

_LARGEST = 1280, 720
"""The window's size at first, at most: there is no way to ask for the screen's. It can be resized."""

_DENSITY = 2 if sys.platform == "darwin" else 1
"""Pixels of the screen for one of the window's units: macOS counts in points, of 2x2 pixels on all its own displays."""

_FIRST_HOLD, _NEXT_HOLD = 0.75, 0.2
"""Seconds that `b` counts as held: until the keyboard begins to repeat it (0.25 to 0.66 s), and between repetitions."""

_MESSAGE = 1.5
"""Seconds that the answer to a key is shown."""


class WindowSink:
    """A window on the picture, in the program's first thread.

    controls: what its keys change. title: of the window. width, height: of the pictures, for its first size.

    Keys: q, Esc: end the run; Space: pause; b: the original; c: before/after wipe, its line follows the mouse while the
    left button is down; [ ]: strength; s: screenshot; r: recording; i: statistics; f: full screen; m: mirror. Closing
    the window ends the run, too.

    Raises OutputError if there is no display, or an OpenCV without windows.
    """

    name = "window"
    on_main_thread = True
    steady = False
    seconds_between = 1 / 60
    capacity = 1
    notice: str | None = None

    def __init__(self, controls: Controls, title: str, width: int, height: int) -> None:
        _require_display()
        self._controls = controls
        self._title = title
        self._wipe: float | None = None
        self._statistics = self._closed = False
        self._original_until = self._message_until = 0.0
        self._message = ""
        self._picture: LivePicture | None = None
        self._shown: object = None
        scale = min(1.0, _LARGEST[0] / width, _LARGEST[1] / height)
        self._size = round(width * scale), round(height * scale)
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_FREERATIO | cv2.WINDOW_GUI_NORMAL)
        self._show(with_notice(np.zeros((self._size[1], self._size[0], 3), np.uint8), "waiting for the first picture"))
        cv2.resizeWindow(title, *self._size)
        cv2.setMouseCallback(title, self._on_mouse)
        cv2.waitKey(1)

    def write(self, picture: LivePicture, stats: LiveStats) -> None:
        """Show the picture if it, the window or what is drawn on it has changed; then look for a key."""
        if self._closed:
            return
        if not self._is_open():
            self._closed = True
            self._controls.ask("quit")
            return
        _, _, width, height = cv2.getWindowImageRect(self._title)
        size = max(1, width) * _DENSITY, max(1, height) * _DENSITY
        now = time.monotonic()
        original, line = now < self._original_until, self._line(stats, now)
        # The picture is kept in self._picture, so that no other can have its id.
        view = (id(picture), size, original, self._wipe, line, stats if self._statistics else None)
        if view != self._shown:
            self._shown, self._picture, self._size = view, picture, size
            drawn = fitted(picture.before if original else picture.after, *size)
            if self._wipe is not None and not original:
                drawn = wiped(fitted(picture.before, *size), drawn, self._wipe)
            if self._statistics:
                drawn = with_statistics(drawn, stats)
            if line is not None:
                drawn = with_notice(drawn, line)
            self._show(drawn)
        # Not waitKey: it drops the upper bits, and the left arrow becomes a Q. This is what paints the window, too.
        key = cv2.waitKeyEx(1)
        if 0 <= key < 128:
            self._on_key(chr(key).lower())

    def close(self) -> None:
        """Take the window away, if the user has not."""
        if self._is_open():
            cv2.destroyWindow(self._title)
            cv2.waitKey(1)

    def _is_open(self) -> bool:
        try:
            return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # Qt, once its last window is closed
            return False

    def _show(self, picture: np.ndarray) -> None:
        cv2.imshow(self._title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def _line(self, stats: LiveStats, now: float) -> str | None:
        """The one line at the lower edge: the answer to a key, else what the run has to say, else what is unusual."""
        if now < self._message_until:
            return self._message
        if stats.notice is not None:
            return stats.notice
        if now < self._original_until:
            return "original"
        return "paused" if self._controls.paused else None

    def _say(self, message: str) -> None:
        self._message, self._message_until = message, time.monotonic() + _MESSAGE

    def _on_key(self, key: str) -> None:
        controls, now = self._controls, time.monotonic()
        if key in ("q", "\x1b"):
            controls.ask("quit")
        elif key == " ":
            controls.paused = not controls.paused
            self._say("paused" if controls.paused else "going on")
        elif key == "b":
            hold = _NEXT_HOLD if now < self._original_until else _FIRST_HOLD
            self._original_until = max(self._original_until, now + hold)
        elif key == "c":
            self._wipe = 0.5 if self._wipe is None else None
        elif key in ("[", "]"):
            step = 0.1 if key == "]" else -0.1
            controls.strength = round(min(1.0, max(0.0, controls.strength + step)), 1)
            self._say(f"strength {controls.strength:.1f}")
        elif key == "s":
            controls.ask("screenshot")
        elif key == "r":
            controls.ask("record")
        elif key == "i":
            self._statistics = not self._statistics
        elif key == "f":
            full = cv2.getWindowProperty(self._title, cv2.WND_PROP_FULLSCREEN) == cv2.WINDOW_FULLSCREEN
            state = cv2.WINDOW_NORMAL if full else cv2.WINDOW_FULLSCREEN
            cv2.setWindowProperty(self._title, cv2.WND_PROP_FULLSCREEN, state)
        elif key == "m":
            controls.mirror = not controls.mirror
            self._say("mirrored" if controls.mirror else "not mirrored")

    def _on_mouse(self, event: int, x: int, y: int, flags: int, _: object) -> None:  # noqa: ARG002 - highgui's callback
        dragged = event == cv2.EVENT_MOUSEMOVE and flags & cv2.EVENT_FLAG_LBUTTON
        if self._wipe is not None and (event == cv2.EVENT_LBUTTONDOWN or dragged):
            self._wipe = min(1.0, max(0.0, x / self._size[0]))


def _require_display() -> None:
    """Raise OutputError if no window can be opened. Asked beforehand: Qt would abort the whole program."""
    if not cv2.currentUIFramework():
        raise OutputError(
            "this OpenCV has no windows: pip uninstall opencv-python-headless, then "
            "pip install --force-reinstall opencv-python; or use --preview web"
        )
    if sys.platform in ("darwin", "win32"):
        return
    # The Qt in opencv-python can do X11 only, and aborts if told to use Wayland.
    os.environ["QT_QPA_PLATFORM"] = "xcb"
    try:
        x11 = ctypes.CDLL("libX11.so.6")
    except OSError as error:
        raise OutputError(f"no window can be opened ({error}); use --preview web") from error
    x11.XOpenDisplay.restype = ctypes.c_void_p
    # Stays open: an X server resets itself when its last client leaves, and refuses new ones meanwhile.
    display = x11.XOpenDisplay(None)
    if display is not None:
        return
    if name := os.environ.get("DISPLAY"):
        raise OutputError(f"the display {name} cannot be opened; use --preview web")
    if "WAYLAND_DISPLAY" in os.environ:
        raise OutputError(
            "opencv-python's window needs X11 and DISPLAY is not set; install Xwayland or use --preview web"
        )
    raise OutputError("no display to open a window on (DISPLAY is not set); use --preview web")
