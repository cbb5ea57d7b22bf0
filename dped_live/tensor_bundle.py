"""A reader of TensorFlow's checkpoints: PREFIX.index, a sorted table of what there is, and PREFIX.data-00000-of-00001.

Written from the formats' descriptions, TensorFlow's tensor_bundle.proto and LevelDB's table_format.md. Only what
DPED's checkpoints need: one shard, little endian, blocks without compression, float32. Nothing in a file is trusted:
every length is compared with the bytes there are before it is used, and every byte returned is covered by a checksum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dped_live.errors import WeightsError

TABLE_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER_SIZE = 48
FLOAT32 = 1  # DT_FLOAT of TensorFlow's types.proto

# DPED's index has 1 KB, with the optimizer's state 3 KB; its tensors have 1.6 MB. The limits bound the time and memory
# that a hostile file can cost.
MAX_INDEX_SIZE = 1 << 16
MAX_KEY_SIZE = 1 << 10
MAX_TENSORS_SIZE = 1 << 26


def read_tensor_bundle(prefix: Path, wanted: Callable[[str], bool]) -> dict[str, NDArray[np.float32]]:
    """Read the tensors whose name is `wanted`; the others may be of any type and size, and are not read.

    prefix: the checkpoint's path without ".index".
    Returns new arrays, which belong to the caller. Raises WeightsError if a file is missing or damaged, or if a
    wanted tensor is not float32.
    """
    with _opened(Path(f"{prefix}.index")) as file:
        items = ((key.decode(errors="replace"), value) for key, value in _table_items(file.read(MAX_INDEX_SIZE + 1)))
        messages = {name: message for name, message in items if name == "" or wanted(name)}
        header = dict(_fields(messages.pop("", b"")))
        if header.get(1) != 1 or header.get(2, 0) != 0:
            raise ValueError("not a checkpoint of one data file, little endian; save it so with TensorFlow")
        entries = {name: _Entry.parse(name, message) for name, message in messages.items()}
        if sum(entry.size for entry in entries.values()) > MAX_TENSORS_SIZE:
            raise ValueError(f"more than {MAX_TENSORS_SIZE >> 20} MB of weights; this is no checkpoint of DPED")
    with _opened(Path(f"{prefix}.data-00000-of-00001")) as file:
        return {name: entry.read(name, file) for name, entry in entries.items()}


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, opened; inside, an OSError or ValueError becomes a WeightsError that names it."""
    try:
        if not path.is_file():
            raise ValueError("no such file; a TensorFlow checkpoint is an .index and a .data-00000-of-00001 file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _damage(what: str) -> ValueError:
    return ValueError(f"damaged, {what}; copy the checkpoint's two files again")


class _Bytes:
    """A cursor over bytes that never reads beyond their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def __bool__(self) -> bool:
        return self.position < len(self.data)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.position:
            raise _damage("it ends too early")
        self.position += size
        return self.data[self.position - size : self.position]

    def varint(self) -> int:
        """A number in groups of seven bits, the lowest first; at most 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise _damage("a number has no end")


# The table: blocks of sorted keys and values, found through an index block of the same form, found through the footer.


def _table_items(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) > MAX_INDEX_SIZE:
        raise ValueError("larger than any index of a DPED checkpoint")
    if not data.endswith(TABLE_MAGIC):
        raise ValueError("not the index of a TensorFlow checkpoint, or cut short; copy the checkpoint's files again")
    footer = _Bytes(data[-FOOTER_SIZE:])
    _read_block(data, footer.varint(), footer.varint())  # the meta-index, which TensorFlow leaves empty
    end, last_key = 0, None
    for _, handle in _block_items(_read_block(data, footer.varint(), footer.varint())):
        numbers = _Bytes(handle)
        offset, size = numbers.varint(), numbers.varint()
        if offset < end:
            raise _damage("its blocks overlap")
        end = offset + size
        for key, value in _block_items(_read_block(data, offset, size)):
            if last_key is not None and key <= last_key:
                raise _damage("its keys are not in order")
            yield key, value
            last_key = key


def _read_block(data: bytes, offset: int, size: int) -> bytes:
    """A block's content, once its checksum is right. After it come the kind of compression and the checksum."""
    if offset + size + 5 > len(data) - FOOTER_SIZE:
        raise _damage("a block lies outside the file")
    block, checksum = data[offset : offset + size + 1], data[offset + size + 1 : offset + size + 5]
    if _masked(crc32c(block)) != int.from_bytes(checksum, "little"):
        raise _damage("a block's checksum is wrong")
    if block[-1] != 0:
        raise ValueError("a compressed index, which TensorFlow does not write")
    return block[:-1]


def _block_items(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values. A key says how many bytes it shares with the one before; where it shares none is listed at
    the block's end, which serves to search and is skipped here."""
    restarts = int.from_bytes(block[-4:], "little")
    if 4 * (restarts + 1) > len(block):
        raise _damage("a block is too short")
    items = _Bytes(block[: len(block) - 4 * (restarts + 1)])
    key = b""
    while items:
        shared, unshared, value_size = items.varint(), items.varint(), items.varint()
        if shared > len(key) or shared + unshared > MAX_KEY_SIZE:
            raise _damage("a key is impossible")
        key = key[:shared] + items.take(unshared)
        yield key, items.take(value_size)


# The values: messages of protocol buffers.


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each field's number and value: an int of a varint or fixed number, the bytes of anything else."""
    rest = _Bytes(message)
    while rest:
        number, kind = divmod(rest.varint(), 8)
        if kind == 0:
            yield number, rest.varint()
        elif kind == 2:
            yield number, rest.take(rest.varint())
        elif kind in (1, 5):
            yield number, int.from_bytes(rest.take(8 if kind == 1 else 4), "little")
        else:
            raise _damage("a message is not one")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What BundleEntryProto says of a tensor: where its bytes lie in the data file, and their checksum."""

    shape: tuple[int, ...]
    offset: int
    size: int
    checksum: int

    @classmethod
    def parse(cls, name: str, message: bytes) -> _Entry:
        numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}  # dtype, shard, offset, size, checksum; zeros are not written
        shape: list[int] = []
        for number, value in _fields(message):
            if number in numbers and isinstance(value, int):
                numbers[number] = value
            elif number == 2 and isinstance(value, bytes):  # TensorShapeProto, whose field 2 is a Dim, whose 1 a size
                dims = [dict(_fields(dim)) for n, dim in _fields(value) if n == 2 and isinstance(dim, bytes)]
                shape = [size for dim in dims if isinstance(size := dim.get(1, 0), int)]
            elif number == 7:
                raise ValueError(f"{name} is stored in slices, which cannot be read; save it unpartitioned")
        dtype, shard, offset, size, checksum = numbers.values()
        if dtype != FLOAT32:
            raise ValueError(f"{name} is not float32 (TensorFlow's type {dtype}); save the checkpoint in float32")
        if shard != 0 or len(shape) > 8 or size == 0 or math.prod(shape) * 4 != size:
            raise _damage(f"{name} has an impossible size")
        return cls(tuple(shape), offset, size, checksum)

    def read(self, name: str, file: BinaryIO) -> NDArray[np.float32]:
        if self.offset + self.size > file.seek(0, 2):
            raise _damage(f"it ends before {name} does")
        file.seek(self.offset)
        data = file.read(self.size)
        if _masked(crc32c(data)) != self.checksum:
            raise _damage(f"the checksum of {name} is wrong")
        return np.frombuffer(data, "<f4").reshape(self.shape).astype(np.float32)


# The checksum: CRC-32C (Castagnoli), whose polynomial, its bits reflected, is 0x82F63B78.

START = (0x641F6454).to_bytes(4, "little")
"""The word that brings a register of zeros to the checksum's first state, 0xFFFFFFFF."""


def crc32c(data: bytes) -> int:
    """The CRC-32C of data.

    A checksum is linear: that of two words in a row is the first's, advanced by one word, XOR the second's. So it is
    taken of all pairs of words at once, then of all pairs of pairs, and so on: numpy's speed in a few lines.
    """
    zeros = bytes(-len(data) % 4)  # in front they change nothing, as the register is still zero there
    words = np.frombuffer(zeros + START + data, np.dtype("<u4"))
    power = 0
    while words.size > 1:
        if words.size % 2:
            words = np.concatenate([np.zeros(1, np.uint32), words])
        words = _advance(_zeros(power), words[0::2]) ^ words[1::2]
        power += 1
    return int(_advance(_zeros(0), words)[0]) ^ 0xFFFFFFFF


def _advance(table: NDArray[np.uint32], words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Apply a linear map of registers, given as its values (4, 256) for the values of each of a register's bytes."""
    advanced = np.zeros_like(words)
    for byte, values in enumerate(table):
        advanced ^= values[words >> (8 * byte) & 255]
    return advanced


@cache
def _zeros(power: int) -> NDArray[np.uint32]:
    """The map of a register to what it is after 2^power words of zeros."""
    if power:
        half = _zeros(power - 1)
        return _advance(half, half)
    registers = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(32):
        registers = registers >> np.uint32(1) ^ (registers & np.uint32(1)) * np.uint32(0x82F63B78)
    return registers


def _masked(crc: int) -> int:
    """As tables store it, because the checksum of data that hold their own checksum is weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
