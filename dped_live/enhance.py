"""Frames in, enhanced frames out: colour conversion, the network, mixing. Device staging, no threads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dped_live import color
from dped_live.backends import Backend, BytesBackend
from dped_live.frame import PQ, Area, Frame, VideoFormat
from dped_live.scene_statistics import Normalisation, Policy, picture_of
from dped_live.staging import Staging

_ROWS = 32
"""So many rows of an RGB picture are mixed with the input at a time: of 50 megapixels a copy in float32 is 600 MB."""


_AT_ONCE = 4
"""Frames that a CPU computes at a time, at most. More threads would crowd each other out of the cache."""

_AT_ONCE_PIXELS = 1 << 21
"""Larger ones than of 1080p it computes one by one: they would take too much memory, and threads that work at the same
one wait for one another for less of the time."""


class Enhancer:
    """Applies a backend to frames.

    output: the pixel format, matrix and range of the frames that come out; size, times and everything else follow
    the frames that go in. policy: what normalises each frame.
    strength: 0 gives the input, 1 the network's output, linear in between in RGB; may be changed between frames.
    before_after: the picture before and after side by side, as a viewer sees them (the original's second picture).
    notify: is told, once, if the network's result had to be computed in float32; see Backend.in_float32.

    Not thread-safe: one thread uses it at a time.
    """

    def __init__(
        self,
        backend: Backend,
        output: VideoFormat,
        policy: Policy,
        strength: float = 1.0,
        before_after: bool = False,
        notify: Callable[[str], None] = lambda _line: None,
    ) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is from 0 to 1, not {strength}")
        self._backend = backend
        self._output = output
        self._policy = policy
        self.strength = strength
        self._before_after = before_after
        self._notify = notify
        self._told_of_float32 = False
        self._staging = Staging(backend.device)

    def map(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Enhance each frame; order, times and alpha stay. The frames returned own their planes.

        On a GPU some frames are under way at a time: one comes in and one goes out while another is computed. On a CPU
        several are computed at a time where their statistics are given, each by its share of torch's threads: these
        need not wait for one another then (benchmarks/NOTES.md).
        """
        under_way: deque[Callable[[], Frame]] = deque()
        with _workers(self._backend) as (workers, count):
            ahead = self._staging.ahead if workers is None else count
            for frame in frames:
                under_way.append(self._begun(frame, workers))
                if len(under_way) > ahead:
                    yield under_way.popleft()()
            while under_way:
                yield under_way.popleft()()

    def enhance(self, frame: Frame) -> Frame:
        """Enhance one frame; those of a video in order."""
        finish = self._begun(frame)
        self._staging.join()  # a follower's other thread may work on it
        return finish()

    def _begun(self, frame: Frame, workers: Executor | None = None) -> Callable[[], Frame]:
        """Enqueue what the device does with a frame. What is returned waits for it and gives the enhanced frame."""
        with torch.inference_mode(), self._staging.computing():
            plan = self._policy.normalisation(frame)
            is_small = frame.format.width * frame.format.height <= _AT_ONCE_PIXELS
            if workers is not None and is_small and plan.statistics is not None and not plan.measured:
                return workers.submit(self._computed, frame, plan).result
            finish, is_finite = self._enqueued(frame, plan, self._backend)
            verdict = None if is_finite is None else self._staging.download([is_finite])
        instead = self._backend.in_float32
        if verdict is None or instead is None:
            return finish

        def finished() -> Frame:
            if verdict.planes()[0]:
                return finish()
            self._tell_of_float32(frame)
            with torch.inference_mode(), self._staging.computing():
                # The policy has learnt what it wanted to know.
                finish_again, _ = self._enqueued(frame, replace(plan, measured=False), instead)
            return finish_again()

        return finished

    def _computed(self, frame: Frame, plan: Normalisation) -> Frame:
        """A frame, by the thread that calls."""
        with torch.inference_mode():
            finish, _ = self._enqueued(frame, plan, self._backend)
            return finish()

    def _enqueued(
        self, frame: Frame, plan: Normalisation, backend: Backend
    ) -> tuple[Callable[[], Frame], Tensor | None]:
        """What waits for the frame enhanced by a backend, and whether all that came of the backend is finite."""
        enhanced, is_finite = self._enhanced(frame, plan, backend)
        if self._before_after:
            return self._beside(frame, enhanced), is_finite
        return self._alone(frame, plan.area, enhanced), is_finite

    def _tell_of_float32(self, frame: Frame) -> None:
        if not self._told_of_float32:
            self._told_of_float32 = True
            self._notify(
                f"half precision overflowed in the picture at {float(frame.pts):.3f} s; it was computed again in fp32, "
                "as any other of this kind will be; --precision fp32 does so from the beginning"
            )

    def _alone(self, frame: Frame, area: Area, enhanced: Tensor | None) -> Callable[[], Frame]:
        """The enhanced frame. area: of it, that was enhanced."""
        same = _same_planes(frame.format, self._output)
        if enhanced is None and same:
            return lambda: frame
        fmt = replace(self._output, width=frame.format.width, height=frame.format.height)
        rgb = picture_of(frame, frame.whole, self._staging) if enhanced is None else enhanced
        download = self._staging.download(_planes_of(rgb, fmt))

        def finished() -> Frame:
            planes = download.planes()
            if same and area != frame.whole:
                _restore_borders(planes, frame, area)
            return replace(frame, planes=planes, format=fmt, alpha=_alpha(frame, fmt))

        return finished

    def _enhanced(self, frame: Frame, plan: Normalisation, backend: Backend) -> tuple[Tensor | None, Tensor | None]:
        """The frame as RGB (see picture_of) or as a plane of bytes, enhanced as much as it is to be, None where it
        stays as it is; and whether what the backend gave is finite, where that is not certain."""
        strength = self.strength * plan.weight
        if strength == 0 and not plan.measured:
            return None, None
        picture = None
        statistics = plan.statistics
        if plan.measured:
            picture = picture_of(frame, plan.area, self._staging)
            found = backend.statistics(picture)
            self._policy.learn(found)
            # In two runs, so that the frames that get the same statistics later come out the same to the bit.
            statistics = found if statistics is None else statistics
        if strength == 1 and plan.area == frame.whole and isinstance(backend, BytesBackend) and self._is_bytes(frame):
            in_bytes = backend.enhance_bytes(self._staging.upload(frame.planes)[0], statistics)
            if in_bytes is not None:
                return in_bytes
        if picture is None:
            picture = picture_of(frame, plan.area, self._staging)
        enhanced = backend.enhance(picture, statistics, out=picture)
        is_finite = None if backend.in_float32 is None else enhanced.isfinite().all()
        if strength < 1:
            self._mix(enhanced, frame, plan.area, strength)
        if plan.area == frame.whole:
            return enhanced, is_finite
        whole = picture_of(frame, frame.whole, self._staging)
        whole[:, :, plan.area.top : plan.area.bottom, plan.area.left : plan.area.right] = enhanced
        return whole, is_finite

    def _is_bytes(self, frame: Frame) -> bool:
        """Whether the frame is stored as 8-bit RGB, before and after."""
        fmt = frame.format
        is_rgb = fmt.pixel_format.kind == "rgb" and fmt.pixel_format.depth == 8
        return is_rgb and fmt.transfer != PQ and _same_planes(fmt, self._output)

    def _mix(self, enhanced: Tensor, frame: Frame, area: Area, strength: float) -> None:
        """Put the input's part into the enhanced picture. It is converted anew, for the result has taken its place."""
        step = _ROWS if frame.format.pixel_format.kind == "rgb" else area.bottom - area.top
        for top in range(area.top, area.bottom, step):
            rows = replace(area, top=top, bottom=min(top + step, area.bottom))
            before = picture_of(frame, rows, self._staging)
            enhanced[:, :, rows.top - area.top : rows.bottom - area.top].lerp_(before, 1 - strength)

    def _beside(self, frame: Frame, enhanced: Tensor | None) -> Callable[[], Frame]:
        """The frame before and after."""
        axis, before_first = _side_by_side(frame.format.display_matrix)
        fmt = side_by_side_format(replace(self._output, width=frame.format.width, height=frame.format.height))
        is_joined_later = fmt.pixel_format.kind == "rgb" and _same_planes(frame.format, fmt) and enhanced is not None
        if is_joined_later:
            # As bytes: two large photos in float32 need more memory than the network.
            assert enhanced is not None
            single = replace(fmt, width=frame.format.width, height=frame.format.height)
            download = self._staging.download(_planes_of(enhanced, single))
        else:
            rgb = picture_of(frame, frame.whole, self._staging)
            pair = (rgb, rgb if enhanced is None else enhanced)
            joined = torch.cat(pair if before_first else pair[::-1], dim=axis + 2)
            download = self._staging.download(color.from_rgb(joined, fmt))

        def finished() -> Frame:
            planes = download.planes()
            if is_joined_later:
                (before,), (after,) = frame.planes, planes
                planes = (np.concatenate((before, after) if before_first else (after, before), axis=axis),)
            alpha = _alpha(frame, fmt)
            alpha = None if alpha is None else np.concatenate((alpha, alpha), axis=axis)
            return replace(frame, planes=planes, format=fmt, alpha=alpha)

        return finished


@contextmanager
def _workers(backend: Backend) -> Iterator[tuple[Executor | None, int]]:
    """Threads among which torch's are divided, and how many; None, where a backend does not share."""
    threads = torch.get_num_threads()
    count, each = _division(threads)
    if not backend.shares or count == 1:
        yield None, 0
        return
    try:
        with ThreadPoolExecutor(count, "enhancer", torch.set_num_threads, (each,)) as pool:
            yield pool, count
    finally:
        torch.set_num_threads(threads)


def _division(threads: int) -> tuple[int, int]:
    """Frames at a time, and threads for each: as few as keep all busy."""
    each = math.ceil(threads / _AT_ONCE)
    return math.ceil(threads / each), each


def _planes_of(enhanced: Tensor, fmt: VideoFormat) -> list[Tensor]:
    """The planes of what is enhanced; bytes are one already."""
    return [enhanced] if enhanced.dtype == torch.uint8 else color.from_rgb(enhanced, fmt)


def _alpha(frame: Frame, fmt: VideoFormat) -> np.ndarray | None:
    """The frame's alpha, of the depth of `fmt`."""
    before, after = frame.format.pixel_format.depth, fmt.pixel_format.depth
    if frame.alpha is None or before == after:
        return frame.alpha
    scale = ((1 << after) - 1) / ((1 << before) - 1)
    return np.rint(frame.alpha * scale).astype(np.uint8 if after == 8 else np.uint16)


def _restore_borders(planes: tuple[np.ndarray, ...], frame: Frame, area: Area) -> None:
    """Put the frame's own samples around the area: chroma does not survive the way to RGB and back to the bit."""
    pixel = frame.format.pixel_format
    for number, (plane, own) in enumerate(zip(planes, frame.planes, strict=True)):
        y, x = (pixel.chroma_shift_y, pixel.chroma_shift_x) if number else (0, 0)
        top, bottom, left, right = area.top >> y, -(-area.bottom >> y), area.left >> x, -(-area.right >> x)
        plane[:top], plane[bottom:] = own[:top], own[bottom:]
        plane[:, :left], plane[:, right:] = own[:, :left], own[:, right:]


def side_by_side_format(fmt: VideoFormat) -> VideoFormat:
    """The format of before/after frames made from frames of `fmt`."""
    if _side_by_side(fmt.display_matrix)[0] == 1:
        return replace(fmt, width=2 * fmt.width)
    return replace(fmt, height=2 * fmt.height)


def _side_by_side(display_matrix: tuple[int, ...] | None) -> tuple[int, bool]:
    """The axis of (H, W) along which a viewer sees left and right, and whether its beginning is left.

    The matrix maps coded to shown positions, x' = a x + c y (ISO 14496-12, 6.2.2), so x' grows along the axis whose
    coefficient is not zero.
    """
    if display_matrix is None:
        return 1, True
    a, c = display_matrix[0], display_matrix[3]
    return (1, a >= 0) if abs(a) >= abs(c) else (0, c > 0)


def _same_planes(a: VideoFormat, b: VideoFormat) -> bool:
    return (a.pixel_format, a.matrix, a.full_range, a.chroma_location) == (
        b.pixel_format,
        b.matrix,
        b.full_range,
        b.chroma_location,
    )
