"""Planes to the device and back; and the buffers in between, which are used again only when nothing reads them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from dped_live.staging import Ring, Staging, packed_size, views


class Point:
    """Where a stream is to come to; what waits for it is noted."""

    def __init__(self, name: str, waited: list[str]) -> None:
        self._name = name
        self._waited = waited

    def synchronize(self) -> None:
        self._waited.append(self._name)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("DPED_REQUIRE_GPU") == "1":
            pytest.fail("DPED_REQUIRE_GPU=1, and torch finds no GPU")
        pytest.skip("needs an NVIDIA GPU")
    return torch.device(request.param)


def test_a_buffer_is_given_again_after_all_others_and_when_its_copy_is_done() -> None:
    waited: list[str] = []
    ring = Ring(3, pinned=False)
    slots = [ring.next(10) for _ in range(3)]
    assert len({slot.memory.data_ptr() for slot in slots}) == 3
    slots[0].copied, slots[2].copied = Point("first", waited), Point("third", waited)
    assert ring.next(10) is slots[0]
    assert waited == ["first"]
    assert ring.next(10) is slots[1]  # nothing was enqueued with it
    assert waited == ["first"]
    assert ring.next(10) is slots[2]
    assert waited == ["first", "third"]
    assert ring.next(10) is slots[0]  # it was waited for once
    assert waited == ["first", "third"]


def test_a_buffer_grows_and_does_not_shrink() -> None:
    ring = Ring(1, pinned=False)
    small = ring.next(10).memory.data_ptr()
    assert ring.next(8).memory.data_ptr() == small
    assert ring.next(1000).memory.numel() == 1000
    assert ring.next(10).memory.numel() == 1000


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 32)])
def test_planes_lie_side_by_side_in_a_buffer(size: tuple[int, int]) -> None:
    planes = [
        torch.randint(0, 256, size).to(torch.uint8),
        torch.randint(0, 1024, size).to(torch.uint16),
        torch.randint(0, 256, (*size, 3)).to(torch.uint8),
    ]
    memory = torch.empty(packed_size(planes), dtype=torch.uint8)
    parts = views(memory, planes)
    for part, plane in zip(parts, planes, strict=True):
        part.copy_(plane)
    for part, plane in zip(parts, planes, strict=True):
        assert part.dtype == plane.dtype
        assert part.is_contiguous()
        assert torch.equal(part.int(), plane.int())
        assert (part.data_ptr() - memory.data_ptr()) % 256 == 0


def test_what_goes_to_the_device_comes_back(device: torch.device) -> None:
    staging, random = Staging(device), np.random.default_rng(0)
    downloads, expected = [], []
    for number in range(20):
        planes = (
            random.integers(0, 256, (64, 96 + number), np.uint8)[:, 3:],  # rows with a gap
            random.integers(0, 1024, (32, 48), np.uint16),
        )
        with staging.computing():
            uploaded = staging.upload(planes)
            downloads.append(staging.download([plane.clone() for plane in uploaded]))
        expected.append([plane.copy() for plane in planes])
    for download, planes_before in zip(downloads, expected, strict=True):
        for plane, before in zip(download.planes(), planes_before, strict=True):
            np.testing.assert_array_equal(plane, before)


def test_a_cpu_has_nothing_to_copy_and_nothing_to_wait_for() -> None:
    staging = Staging(torch.device("cpu"))
    plane = np.arange(12, dtype=np.uint8).reshape(3, 4)
    (uploaded,) = staging.upload((plane,))
    assert uploaded.data_ptr() == plane.ctypes.data
    (back,) = staging.download([uploaded]).planes()
    assert back.ctypes.data == plane.ctypes.data
    assert staging.ahead == 0
