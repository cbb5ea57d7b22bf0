"""The checkpoint reader, against bundles from a writer that shares nothing with it, whole and damaged."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from dped_live.errors import WeightsError
from dped_live.tensor_bundle import MAX_INDEX_SIZE, MAX_TENSORS_SIZE, crc32c, read_tensor_bundle

Array = NDArray[np.generic]
Items = list[tuple[bytes, bytes]]

TENSORFLOW_TYPES = {"float32": 1, "float64": 2, "int64": 9}


# The writer.


def bitwise_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return (rotated + 0xA282EAD8) % 2**32


def varint(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(
    dtype: int = 1, shape: tuple[int, ...] = (), shard: int = 0, offset: int = 0, size: int = 0, crc: int = 0
) -> bytes:
    """A BundleEntryProto; as protocol buffers do, without what is zero."""
    dims = b"".join(field(2, field(1, length)) for length in shape)
    message = field(1, dtype) + field(2, dims)
    for number, value in ((3, shard), (4, offset), (5, size)):
        if value:
            message += field(number, value)
    return message + varint(6 << 3 | 5) + struct.pack("<I", crc)


def header(shards: int = 1, big_endian: int = 0) -> bytes:
    return field(1, shards) + (field(2, big_endian) if big_endian else b"") + field(3, field(1, 1))


def block(items: Items, restart_interval: int = 16) -> bytes:
    content, restarts, last = b"", [], b""
    for number, (key, value) in enumerate(items):
        shared = 0
        if number % restart_interval == 0:
            restarts.append(len(content))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return content + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


class Table:
    """A table under construction: append blocks, then get the whole with the index and the footer."""

    def __init__(self) -> None:
        self.data = b""
        self.handles: Items = []

    def append(self, content: bytes, compression: int = 0) -> bytes:
        """Returns the block's handle."""
        handle = varint(len(self.data)) + varint(len(content))
        trailer = bytes([compression])
        self.data += content + trailer + struct.pack("<I", masked(bitwise_crc32c(content + trailer)))
        return handle

    def finish(self) -> bytes:
        handles = self.append(block([])) + self.append(block(self.handles, restart_interval=1))
        return self.data + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def table(items: Items, block_items: int = 16) -> bytes:
    result = Table()
    for start in range(0, len(items), block_items):
        part = items[start : start + block_items]
        result.handles.append((part[-1][0], result.append(block(part))))
    return result.finish()


def write_files(prefix: Path, index: bytes, data: bytes) -> None:
    Path(f"{prefix}.index").write_bytes(index)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)


def write_bundle(prefix: Path, tensors: Mapping[str, Array], block_items: int = 16) -> None:
    """Write a checkpoint as TensorFlow's Saver does: tensors in the order of their names, C order, little endian."""
    data = b""
    items = [(b"", header())]
    for name in sorted(tensors, key=str.encode):
        array = tensors[name]
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        # The reader's checksum, which is tested below against the slow one, to keep the writer quick.
        values = entry(
            TENSORFLOW_TYPES[array.dtype.name], array.shape, 0, len(data), len(content), masked(crc32c(content))
        )
        items.append((name.encode(), values))
        data += content
    write_files(prefix, table(items, block_items), data)


# Whole bundles.


def everything(_: str) -> bool:
    return True


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


def small_tensors() -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "generator/W1": random.standard_normal((3, 2, 3, 4)).astype(np.float32),
        "generator/W10": random.standard_normal(5).astype(np.float32),
        "generator/scalar": np.array(0.5, np.float32),
    }


def test_crc32c_of_known_strings() -> None:
    # RFC 3720, B.4, and the usual check value.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


def test_crc32c_of_every_length_is_the_bitwise_one() -> None:
    data = np.random.default_rng(1).bytes(1000)
    for size in [*range(70), 255, 256, 257, 1000]:
        assert crc32c(data[:size]) == bitwise_crc32c(data[:size])


def test_crc32c_is_quick() -> None:
    data = bytes(1_600_000)
    start = time.perf_counter()
    crc32c(data)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("block_items", [1, 3, 100])
def test_round_trip(prefix: Path, block_items: int) -> None:
    tensors = small_tensors() | {f"generator/Variable_{i}": np.full(7, i, np.float32) for i in range(40)}
    write_bundle(prefix, tensors, block_items)
    read = read_tensor_bundle(prefix, everything)
    assert read.keys() == tensors.keys()
    for name, array in read.items():
        assert array.dtype == np.float32
        assert array.flags.writeable
        assert array.flags.owndata
        np.testing.assert_array_equal(array, tensors[name], strict=True)


def test_what_is_not_wanted_may_be_of_any_type_and_damaged(prefix: Path) -> None:
    tensors = small_tensors()
    extra: dict[str, Array] = {
        "beta1_power": np.array(0.9, np.float32),
        "generator/W1/Adam": np.ones((3, 2, 3, 4), np.float64),
        "global_step": np.array(20000, np.int64),
    }
    write_bundle(prefix, tensors | extra)
    with Path(f"{prefix}.data-00000-of-00001").open("r+b") as file:
        file.write(b"\xff\xff\xff\xff")  # of beta1_power, the first
    assert read_tensor_bundle(prefix, lambda name: name in tensors).keys() == tensors.keys()
    with pytest.raises(WeightsError, match=r"data-00000-of-00001: damaged, the checksum of beta1_power is wrong"):
        read_tensor_bundle(prefix, lambda name: name == "beta1_power")
    with pytest.raises(WeightsError, match=r"ckpt.index: global_step is not float32 .*type 9"):
        read_tensor_bundle(prefix, lambda name: name == "global_step")


# Damaged bundles. Nothing but a WeightsError of one line that names one of the files may come of them.


def read_or_refuse(prefix: Path) -> dict[str, NDArray[np.float32]] | None:
    """What is read, or None if it is refused as it should be."""
    try:
        return read_tensor_bundle(prefix, everything)
    except WeightsError as error:
        message = str(error)
    assert message.startswith((f"{prefix}.index: ", f"{prefix}.data-00000-of-00001: "))
    assert "\n" not in message
    return None


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def test_every_flipped_bit_of_the_index_is_noticed(prefix: Path) -> None:
    write_bundle(prefix, small_tensors())
    expected = read_tensor_bundle(prefix, everything)
    path = Path(f"{prefix}.index")
    index = path.read_bytes()
    for bit in range(8 * len(index)):
        path.write_bytes(flipped(index, bit))
        read = read_or_refuse(prefix)
        if read is not None:
            assert len(index) - 48 <= bit // 8 < len(index) - 8  # the footer's padding
            assert read.keys() == expected.keys()
            assert all(np.array_equal(read[name], expected[name]) for name in expected)


def test_flipped_bits_of_the_data_are_noticed(prefix: Path) -> None:
    write_bundle(prefix, small_tensors())
    path = Path(f"{prefix}.data-00000-of-00001")
    data = path.read_bytes()
    for bit in np.random.default_rng(2).choice(8 * len(data), 300, replace=False):
        path.write_bytes(flipped(data, int(bit)))
        assert read_or_refuse(prefix) is None


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_every_truncation_is_noticed(prefix: Path, suffix: str) -> None:
    write_bundle(prefix, small_tensors())
    path = Path(f"{prefix}{suffix}")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert read_or_refuse(prefix) is None


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_a_missing_file_is_named(prefix: Path, suffix: str) -> None:
    write_bundle(prefix, small_tensors())
    path = Path(f"{prefix}{suffix}")
    path.unlink()
    with pytest.raises(WeightsError, match=f"{suffix}: no such file"):
        read_tensor_bundle(prefix, everything)
    path.mkdir()
    with pytest.raises(WeightsError, match=f"{suffix}: no such file"):
        read_tensor_bundle(prefix, everything)


# Bundles whose checksums are right and whose content is hostile.


HUGE = 2**64 - 1
CRC = masked(bitwise_crc32c(bytes(4)))
CRC_OF_NOTHING = masked(bitwise_crc32c(b""))
RIGHT = entry(shape=(1,), size=4, crc=CRC)


def test_the_hostile_bundles_would_be_read_were_they_not(prefix: Path) -> None:
    write_files(prefix, table([(b"", header()), (b"a", RIGHT)]), bytes(4))
    assert read_tensor_bundle(prefix, everything)["a"] == 0


@pytest.mark.parametrize(
    "items",
    {
        "no header": [(b"a", RIGHT)],
        "nothing": [],
        "two shards": [(b"", header(shards=2)), (b"a", RIGHT)],
        "big endian": [(b"", header(big_endian=1)), (b"a", RIGHT)],
        "header of bytes": [(b"", field(1, b"\1")), (b"a", RIGHT)],
        "second shard": [(b"", header()), (b"a", entry(shape=(1,), shard=1, size=4, crc=CRC))],
        "size of another shape": [(b"", header()), (b"a", entry(shape=(2,), size=4, crc=CRC))],
        "empty": [(b"", header()), (b"a", entry(shape=(0,), crc=CRC_OF_NOTHING))],
        "empty and huge": [(b"", header()), (b"a", entry(shape=(0, HUGE, HUGE), crc=CRC_OF_NOTHING))],
        "huge": [(b"", header()), (b"a", entry(shape=(2**61,), size=2**63))],
        "many dimensions": [(b"", header()), (b"a", entry(shape=(1,) * 20, size=4, crc=CRC))],
        "far away": [(b"", header()), (b"a", entry(shape=(1,), offset=HUGE, size=4, crc=CRC))],
        "slices": [(b"", header()), (b"a", RIGHT + field(7, b""))],
        "endless varint": [(b"", header()), (b"a", b"\xff" * 100)],
        "wrong wire type": [(b"", header()), (b"a", b"\x0b\x0b")],
        "bytes cut short": [(b"", header()), (b"a", varint(2 << 3 | 2) + varint(HUGE))],
        "checksum cut short": [(b"", header()), (b"a", RIGHT[:-1])],
        "keys out of order": [(b"", header()), (b"b", RIGHT), (b"a", RIGHT)],
        "a key twice": [(b"", header()), (b"a", RIGHT), (b"a", RIGHT)],
        "a long key": [(b"", header()), (b"a" * 5000, RIGHT)],
    }.items(),
    ids=lambda item: item[0],
)
def test_hostile_entries_are_refused(prefix: Path, items: tuple[str, Items]) -> None:
    write_files(prefix, table(items[1]), bytes(4))
    assert read_or_refuse(prefix) is None


def hostile_tables() -> Iterator[bytes]:
    good = block([(b"", header()), (b"a", RIGHT)])
    compressed = Table()
    compressed.handles.append((b"a", compressed.append(good, compression=1)))
    yield compressed.finish()

    repeated = Table()  # were it read, a large block without items could be read for hours
    handle = repeated.append(block([]))
    repeated.handles += [(b"a", handle), (b"b", handle), (b"c", repeated.append(good))]
    yield repeated.finish()

    for handle in (b"", b"\x80", varint(HUGE) + varint(1), varint(1) + varint(HUGE), varint(0) + varint(0)):
        lost = Table()
        lost.append(good)
        lost.handles.append((b"a", handle))
        yield lost.finish()

    for content in (
        b"",
        b"\1\0\0",
        struct.pack("<I", 2**32 - 1),
        good[:-4] + struct.pack("<I", 10**6),
        # A key that shares a byte with one of no bytes.
        b"\0\0"
        + varint(len(header()))
        + header()
        + varint(1)
        + varint(1)
        + varint(len(RIGHT))
        + b"a"
        + RIGHT
        + good[-8:],
        varint(0) + varint(HUGE) + varint(0) + good[-8:],
        varint(0) + varint(0) + varint(HUGE) + good[-8:],
        b"\xff" * 50 + good[-8:],
    ):
        broken = Table()
        broken.handles.append((b"a", broken.append(content)))
        yield broken.finish()


def test_hostile_tables_are_refused(prefix: Path) -> None:
    for index in hostile_tables():
        write_files(prefix, index, bytes(4))
        assert read_or_refuse(prefix) is None


def test_random_bytes_under_right_checksums_are_refused_or_read(prefix: Path) -> None:
    """Whatever a mutation makes of the block, the reader ends, quickly, with tensors or a WeightsError."""
    random = Random(3)
    write_bundle(prefix, small_tensors())
    data = Path(f"{prefix}.data-00000-of-00001").read_bytes()
    items = [(b"", header())]
    for name in (b"a", b"b", b"bc"):
        items.append((name, entry(shape=(2, 3), size=24, crc=masked(bitwise_crc32c(data[:24])))))
    good = block(items)
    refused = 0
    for _ in range(500):
        content = bytearray(good)
        for position in random.sample(range(len(content)), random.randrange(1, 4)):
            content[position] = random.choice([0, 1, 127, 128, 255, random.randrange(256)])
        mutated = Table()
        mutated.handles.append((b"z", mutated.append(bytes(content))))
        write_files(prefix, mutated.finish(), data)
        refused += read_or_refuse(prefix) is None
    assert 100 < refused < 500


def test_sizes_are_limited_before_anything_is_allocated(prefix: Path) -> None:
    values = MAX_TENSORS_SIZE // 8
    half = entry(shape=(values,), size=4 * values)
    write_files(prefix, table([(b"", header()), (b"a", half), (b"b", half), (b"c", RIGHT)]), b"")
    with pytest.raises(WeightsError, match=r"\.index: more than 64 MB of weights"):
        read_tensor_bundle(prefix, everything)
    with Path(f"{prefix}.index").open("r+b") as file:
        file.truncate(MAX_INDEX_SIZE + 1)
    with pytest.raises(WeightsError, match=r"\.index: larger than any index"):
        read_tensor_bundle(prefix, everything)
