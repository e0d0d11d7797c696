"""HDF5's checksummed blocks of metadata: where they lie, and how to make their checksums right again.

From format 1.10 on HDF5 refuses metadata whose checksum is wrong, so that a flipped bit there never reaches the code that
decodes it. A forger computes the checksum again, and so does the fuzzer. Layouts: HDF5 File Format Specification,
sections II to IV; every block found here is checked against the checksum that it has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Block", "blocks_in", "lookup3", "reseal"]

_MASK = 0xFFFFFFFF
_SIGNATURES = re.compile(rb"OHDR\x02|FAHD\x00|FRHP\x00|BTHD\x00")
_CONTINUATION = 0x10  # type of the message that says where the next block of an object header lies
_SUPERBLOCK, _FIXED_ARRAY, _HEAP, _TREE = 44, 24, 142, 34  # bytes before the checksum


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes whose checksum follows them."""

    kind: str
    """Its signature, such as "OHDR"; "superblock"."""
    start: int
    """First byte."""
    stop: int
    """First byte of the checksum."""


def lookup3(data: bytes | bytearray) -> int:
    """Bob Jenkins's lookup3 hash, as HDF5 uses it: `hashlittle` with the initial value 0."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    whole = max(0, (len(data) - 1) // 12)
    for place in range(0, 12 * whole, 12):
        a, b, c = _added(a, b, c, data[place : place + 12])
        for first, second, third in ((4, 6, 8), (16, 19, 4)):
            a = ((a - c) ^ _rotated(c, first)) & _MASK
            c = (c + b) & _MASK
            b = ((b - a) ^ _rotated(a, second)) & _MASK
            a = (a + c) & _MASK
            c = ((c - b) ^ _rotated(b, third)) & _MASK
            b = (b + a) & _MASK
    tail = data[12 * whole :]
    if not tail:
        return c
    a, b, c = _added(a, b, c, bytes(tail).ljust(12, b"\0"))
    for first, second, third in ((14, 11, 25), (16, 4, 14)):
        c = ((c ^ b) - _rotated(b, first)) & _MASK
        a = ((a ^ c) - _rotated(c, second)) & _MASK
        b = ((b ^ a) - _rotated(a, third)) & _MASK
    return ((c ^ b) - _rotated(b, 24)) & _MASK


def _rotated(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def _added(a: int, b: int, c: int, twelve: bytes | bytearray) -> tuple[int, int, int]:
    return (
        (a + _number(twelve, 0, 4)) & _MASK,
        (b + _number(twelve, 4, 4)) & _MASK,
        (c + _number(twelve, 8, 4)) & _MASK,
    )


def _number(data: bytes | bytearray, place: int, size: int) -> int:
    return int.from_bytes(data[place : place + size], "little")


def reseal(data: bytearray, block: Block) -> None:
    """Write the checksum that the block's bytes have now."""
    data[block.stop : block.stop + 4] = lookup3(data[block.start : block.stop]).to_bytes(4, "little")


def blocks_in(data: bytes) -> list[Block]:
    """Every block whose layout is known here and whose checksum is right, in the order in which they are found."""
    candidates = [Block("superblock", 0, _SUPERBLOCK)]
    for match in _SIGNATURES.finditer(data):
        start, kind = match.start(), match.group()[:4].decode()
        candidates += {"OHDR": _headers, "FAHD": _arrays, "FRHP": _heaps, "BTHD": _trees}[kind](data, start)
    return [block for block in candidates if _holds(data, block)]


def _holds(data: bytes, block: Block) -> bool:
    return block.stop + 4 <= len(data) and _number(data, block.stop, 4) == lookup3(data[block.start : block.stop])


def _headers(data: bytes, start: int) -> Iterator[Block]:
    """An object header and the blocks that continue it."""
    flags = data[start + 5]
    before = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    first = Block("OHDR", start, before + width + _number(data, before, width))
    if not _holds(data, first):
        return
    yield first
    waiting = [(before + width, first.stop)]
    while waiting:
        for offset, length in _continuations(data, *waiting.pop(), tracked=bool(flags & 0x04)):
            yield Block("OCHK", offset, offset + length - 4)
            waiting.append((offset + 4, offset + length - 4))


def _continuations(data: bytes, place: int, stop: int, *, tracked: bool) -> Iterator[tuple[int, int]]:
    head = 6 if tracked else 4
    while place + head <= stop:
        size = _number(data, place + 1, 2)
        if data[place] == _CONTINUATION:
            yield _number(data, place + head, 8), _number(data, place + head + 8, 8)
        place += head + size


def _arrays(data: bytes, start: int) -> Iterator[Block]:
    """The fixed array that lists a dataset's chunks: its header and, where it is not paged, its elements."""
    yield Block("FAHD", start, start + _FIXED_ARRAY)
    entry, count, place = data[start + 6], _number(data, start + 8, 8), _number(data, start + 16, 8)
    yield Block("FADB", place, place + 14 + entry * count)


def _heaps(data: bytes, start: int) -> Iterator[Block]:
    yield Block("FRHP", start, start + _HEAP)


def _trees(data: bytes, start: int) -> Iterator[Block]:
    """The index of many attributes or links, and its one leaf."""
    yield Block("BTHD", start, start + _TREE)
    record, place, count = _number(data, start + 10, 2), _number(data, start + 16, 8), _number(data, start + 24, 2)
    yield Block("BTLF", place, place + 6 + record * count)
