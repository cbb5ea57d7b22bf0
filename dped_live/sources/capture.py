"""What runs in the process that reads a camera, stream or file; sources/live.py starts it, watches it and kills it.

The two talk as child_process.py says, and the picture itself is in shared memory. From here:

    {"opening": name, "silent": [reason, advice]}           once; what to tell the user if nothing more comes
    {"alive": true}                                         there will be a picture, but not yet
    {"opened": [width, height], "rate": ..., "notes": ...}  the first picture is there
    {"picture": captured_at}                                in the shared memory
    {"failed": [reason, advice]}                            the last message

and to here {"memory": name} once, and then {} for every picture that was taken out of it. The memory belongs to this
process until it tells of a picture in it, and to the other until that sends the next message. What comes in between is
dropped: nobody waits, and the next picture is always the newest.
"""

from __future__ import annotations

import time
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter

from dped_live.child_process import Parent
from dped_live.sources.cameras import SourceError
from dped_live.sources.inputs import Image, Input, find_input

_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}

_ACCURATE = 2 | 0x2000 | 0x4000 | 0x40000
"""swscale: bilinear, full chroma both ways, accurate rounding. Its default repeats chroma samples."""


def capture(
    parent: Parent,
    what: str,
    size: tuple[int, int] | None,
    fps: Fraction | None,
    shape: tuple[int, int] | None,
) -> None:
    """Read `what` until there is an error, which it tells.

    size, fps: asked of a camera or the test picture. shape: (H, W) to scale to; None: as the pictures come.
    """
    try:
        source = find_input(what, size, fps)
        parent.tell(opening=source.name, silent=source.silent)
        _deliver(source, parent, size, fps, shape)
    except SourceError as error:
        parent.tell(failed=[error.reason, error.advice])


def _deliver(
    source: Input,
    parent: Parent,
    size: tuple[int, int] | None,
    fps: Fraction | None,
    shape: tuple[int, int] | None,
) -> None:
    converter = VideoReformatter()
    memory: SharedMemory | None = None
    for item in source.pictures():
        if item is None:
            parent.tell(alive=True)
            continue
        moment, image = item
        if memory is None:
            notes = _differences(source, _shape(image), size, fps)
            height, width = shape or _shape(image)
            parent.tell(opened=[width, height], rate=str(source.frame_rate), notes=notes)
            while (answer := parent.hear(1)) is None:
                pass
            memory = SharedMemory(answer["memory"])
            wanted = True
        else:
            wanted = _is_wanted(parent, moment)
        if wanted:
            _write(image, converter, np.ndarray((height, width, 3), np.uint8, memory.buf))
        while (left := moment - time.monotonic()) > 0:
            time.sleep(min(left, 1))
            if left > 1 and parent.hear() is None and wanted:
                parent.tell(alive=True)
        if wanted:
            parent.tell(picture=moment)


def _is_wanted(parent: Parent, moment: float) -> bool:
    """Whether the memory has been handed back, at once or before this moment."""
    while True:
        left = moment - time.monotonic()
        if parent.hear(max(0, min(left, 1))) is not None:
            return True
        if left <= 0:
            return False


def _shape(image: Image) -> tuple[int, int]:
    """(H, W) of the picture once it is turned upright."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return (image.width, image.height) if _quarters(image) % 2 else (image.height, image.width)


def _quarters(picture: av.VideoFrame) -> int:
    """How often the picture must be turned by 90 degrees, counterclockwise. Some files say what cannot be."""
    return picture.rotation // 90 % 4 if abs(picture.rotation) <= 180 else 0


def _write(image: Image, converter: VideoReformatter, target: np.ndarray) -> None:
    """Convert, scale and turn a picture into the target, (H, W, 3), RGB, uint8."""
    if isinstance(image, np.ndarray):
        target[:] = image
        return
    quarters = _quarters(image)
    height, width = target.shape[1::-1] if quarters % 2 else target.shape[:2]
    rgb = converter.reformat(
        image, width, height, "rgb24", dst_color_range=ColorRange.JPEG, interpolation=_ACCURATE, threads=1
    )
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)[:, : 3 * width]
    upright: np.ndarray = rows.reshape(height, width, 3)
    if quarters:
        # numpy takes ten times as long
        upright = cv2.rotate(upright, _TURNS[quarters])
    target[:] = upright


def _differences(
    source: Input, shape: tuple[int, int], size: tuple[int, int] | None, fps: Fraction | None
) -> list[str]:
    """What the user asked for and did not get, as notes."""
    height, width = shape
    if (size or (width, height)) == (width, height) and abs((fps or source.frame_rate) / source.frame_rate - 1) < 0.01:
        return []
    asked = [f"{size[0]}x{size[1]}"] if size else []
    asked += [f"{float(fps):.4g} fps"] if fps else []
    return [
        f"asked for {' at '.join(asked)}, {source.name} gives {width}x{height} at {float(source.frame_rate):.4g} fps"
    ]
