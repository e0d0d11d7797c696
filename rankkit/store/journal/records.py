"""How a journal lies on disk: records that are found by position and believed for their sums.

    "rankkit journal 1"  length, check  facts and notes as JSON  sum          once
    mark  lengths  key, types and shapes as JSON  sum  the arrays' bytes  sum     for each slab

Arrays are stored as they lie in memory, so that every bit comes back, and their types as NumPy's names of numbers: nothing
is unpickled or evaluated. Sums are taken over the header's sum, the record's position and its bytes. What a disk
changed, what a power loss never wrote, even with later pages written, and what a file system left there of another
journal is then no record, while later ones are still found by their mark. SHA-256 takes 56 us
for 100 kB where a CRC takes 24 (beside seconds of measuring) and lets no damage pass.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import RunError

__all__ = ["Arrays", "Header", "Records", "Scan", "check_family", "header_bytes", "read_header", "write_bytes"]

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Buffer: TypeAlias = bytes | memoryview

_FAMILY: Final = b"rankkit journal "
_MAGIC: Final = _FAMILY + b"1\n"
_HEADER: Final = struct.Struct(
    "<II"
)  # length of the JSON, and a check of it: a wrong one would look like a torn header
_PREFIX: Final = struct.Struct("<8sIQ")  # mark, length of the JSON, length of the arrays
_MARK: Final = b"\x93slab\r\n\x1a"  # not text, and no likely number
_SUM: Final = hashlib.sha256().digest_size
_BLOCK: Final = 1 << 20  # bytes read at a time
_HEADER_LIMIT: Final = 16 << 20  # bytes of facts and notes; a configuration is a few kilobytes
_HEAD_LIMIT: Final = 1 << 18  # bytes that describe one slab, of thousands of arrays
_BODY_LIMIT: Final = 16 << 30  # bytes of one slab: more than the kept matrices of one layer and batch take
_DTYPE: Final = re.compile(r"[<>|][biufc][0-9]{1,2}")
_SIZE_LIMIT: Final = 1 << 62  # bytes of an array, axes of length 0 aside: NumPy refuses more, even of an empty one

_Layout: TypeAlias = tuple[str, np.dtype[Any], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Header:
    """What a journal is about."""

    facts: Mapping[str, str]
    """What determines the numbers, by name."""
    notes: Mapping[str, str]
    """Whatever else is worth keeping, by name."""
    sum: bytes
    """Distinguishes its records from those of others."""
    end: int
    """Where the first record begins."""


@dataclass(frozen=True, slots=True)
class _Head:
    """The description of one slab."""

    position: int
    key: str
    arrays: tuple[_Layout, ...]
    sum: bytes
    body: int
    """Where the arrays begin."""
    length: int
    """Of the arrays."""

    @property
    def end(self) -> int:
        return self.body + self.length + _SUM


@dataclass(frozen=True, slots=True)
class Scan:
    """What a journal holds."""

    positions: Mapping[str, int]
    """Of whole records, by key; of two with one key, the later."""
    damaged: tuple[str, ...]
    """What lies between whole records and is none: keys where they can be read and have no whole record, else the range of
    bytes."""
    end: int
    """Of the last whole record; what follows is torn."""


def check_family(descriptor: int, path: Path) -> None:
    """Refuse a file that no version of rankkit wrote.

    Raises:
        RunError: it is something else.
    """
    start = bytes(_read(descriptor, 0, len(_FAMILY)))
    if not _FAMILY.startswith(start):
        raise RunError(f"{path} must be a rankkit journal, got something else. Move it away, or choose another --out.")


def header_bytes(facts: Mapping[str, str], notes: Mapping[str, str]) -> bytes:
    """The beginning of a new journal.

    Raises:
        ValueError: facts and notes are too long.
    """
    text = json.dumps({"facts": dict(facts), "notes": dict(notes)}).encode()
    if len(text) > _HEADER_LIMIT:
        raise ValueError(f"facts must take at most {_HEADER_LIMIT} bytes, got {len(text)}. Give hashes of long texts.")
    content = _MAGIC + _HEADER.pack(len(text), _check(len(text))) + text
    return content + hashlib.sha256(content).digest()


def read_header(descriptor: int, path: Path) -> Header | None:
    """The beginning of a journal, or None where it was never finished, so that nothing can follow.

    Raises:
        RunError: it is damaged, or of another version.
    """
    start = bytes(_read(descriptor, 0, len(_MAGIC) + _HEADER.size))
    if not _MAGIC.startswith(start[: len(_MAGIC)]):
        version = start[len(_FAMILY) :].split(b"\n")[0].decode("ascii", "replace")
        raise RunError(
            f"{path} must be a journal of version 1, got version {version!r}. Continue it with the rankkit that began it, "
            "or add --force without --resume to begin again."
        )
    if len(start) < len(_MAGIC) + _HEADER.size:
        return None
    length, check = _HEADER.unpack_from(start, len(_MAGIC))
    if check == _check(length) and length <= _HEADER_LIMIT:
        rest = bytes(_read(descriptor, len(start), length + _SUM))
        if len(rest) < length + _SUM:
            return None
        total = hashlib.sha256(start + rest[:length]).digest()
        texts = _texts(rest[:length])
        if total == rest[length:] and texts is not None:
            return Header(*texts, total, len(start) + len(rest))
    raise RunError(f"{path} must have a whole header, got a damaged one. Add --force without --resume to begin again.")


def write_bytes(descriptor: int, buffer: Buffer, position: int) -> int:
    """Write all of it; returns where it ends.

    Raises:
        OSError: the file system refuses; a part may have been written.
    """
    view = memoryview(buffer)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written
    return position


class Records:
    """The records after a header."""

    def __init__(self, descriptor: int, header: Header) -> None:
        self._descriptor, self._salt = descriptor, header.sum

    def encode(self, position: int, key: str, arrays: Arrays) -> list[Buffer]:
        """What is to be written at a position, piece by piece.

        Raises:
            ValueError: an array does not hold numbers, or all of it is too large.
        """
        numbers = {name: _numbers(name, array) for name, array in arrays.items()}
        length = sum(array.nbytes for array in numbers.values())
        layouts = [[name, array.dtype.str, list(array.shape)] for name, array in numbers.items()]
        text = json.dumps({"key": key, "arrays": layouts}).encode()
        if len(text) > _HEAD_LIMIT or length > _BODY_LIMIT:
            raise ValueError(
                f"{key} must take at most {_BODY_LIMIT} bytes, and {_HEAD_LIMIT} for its names and shapes, got {length} and "
                f"{len(text)}. Put less into one slab."
            )
        head = _PREFIX.pack(_MARK, len(text), length) + text
        head_sum = self._sum(position, head)
        total, pieces = hashlib.sha256(head_sum), [array.reshape(-1).view(np.uint8).data for array in numbers.values()]
        for piece in pieces:
            total.update(piece)
        return [head + head_sum, *pieces, total.digest()]

    def arrays(self, position: int, key: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of the record at a position, None where it is not whole."""
        head = self._head(position)
        if head is None or head.key != key:
            return None
        content = _read(self._descriptor, head.body, head.length + _SUM)
        total = hashlib.sha256(head.sum)
        total.update(memoryview(content)[: head.length])
        if total.digest() != content[head.length :]:
            return None
        found, offset = {}, 0
        for name, dtype, shape in head.arrays:
            array: NDArray[Any] = np.ndarray(shape, dtype, buffer=content, offset=offset)
            found[name] = array.copy()  # aligned, and without the others behind it
            offset += array.nbytes
        return found

    def scan(self, start: int) -> Scan:
        """Find every whole record; reads the whole file, block by block."""
        positions: dict[str, int] = {}
        damaged: list[str] = []
        suspects: list[str] = []  # damaged only if a whole record follows, else torn
        position = end = start
        while (head := self._next(position)) is not None:
            if head.position > position:
                suspects.append(f"bytes {position} to {head.position}")
            position = head.end
            if self._is_whole(head):
                positions[head.key], end = head.position, head.end
                damaged, suspects = damaged + suspects, []
            else:
                suspects.append(head.key)
        return Scan(positions, tuple(name for name in damaged if name not in positions), end)

    def _next(self, position: int) -> _Head | None:
        """The first description from a position on."""
        heads = map(self._head, chain([position], self._marks(position + 1)))
        return next((head for head in heads if head is not None), None)

    def _marks(self, start: int) -> Iterator[int]:
        while block := _read(self._descriptor, start, _BLOCK):
            found = block.find(_MARK)
            while found >= 0:
                yield start + found
                found = block.find(_MARK, found + 1)
            start += max(1, len(block) - len(_MARK) + 1)

    def _head(self, position: int) -> _Head | None:
        prefix = bytes(_read(self._descriptor, position, _PREFIX.size))
        if len(prefix) < _PREFIX.size:
            return None
        mark, length, body = _PREFIX.unpack(prefix)
        if mark != _MARK or length > _HEAD_LIMIT or body > _BODY_LIMIT:
            return None
        rest = bytes(_read(self._descriptor, position + len(prefix), length + _SUM))
        total = self._sum(position, prefix + rest[:length])
        described = _described(rest[:length]) if rest[length:] == total else None
        if described is None or sum(map(_size, described[1])) != body:
            return None
        return _Head(position, *described, total, position + len(prefix) + len(rest), body)

    def _is_whole(self, head: _Head) -> bool:
        total, position = hashlib.sha256(head.sum), head.body
        while position < head.body + head.length:
            block = _read(self._descriptor, position, min(_BLOCK, head.body + head.length - position))
            if not block:
                return False
            total.update(block)
            position += len(block)
        return total.digest() == _read(self._descriptor, position, _SUM)

    def _sum(self, position: int, head: bytes) -> bytes:
        return hashlib.sha256(self._salt + position.to_bytes(8, "little") + head).digest()


def _read(descriptor: int, position: int, length: int) -> bytearray:
    """So many bytes, or as many as there are."""
    found = bytearray()
    while len(found) < length:
        block = os.pread(descriptor, min(length - len(found), _BLOCK), position + len(found))
        if not block:
            break
        found += block
    return found


def _check(length: int) -> int:
    return zlib.crc32(length.to_bytes(4, "little"))


def _numbers(name: str, array: NDArray[Any]) -> NDArray[Any]:
    found = np.asarray(array, order="C")
    if found.dtype.kind not in "biufc":
        raise ValueError(f"{name} must hold numbers, got {found.dtype}. Convert it.")
    return found


def _json(text: bytes) -> object:
    """None for what is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # only a forger gets here: the sum was right
        return None


def _texts(text: bytes) -> tuple[dict[str, str], dict[str, str]] | None:
    match _json(text):
        case {"facts": dict(facts), "notes": dict(notes)}:
            values = chain(facts.values(), notes.values())
            return (facts, notes) if all(isinstance(value, str) for value in values) else None
    return None


def _described(text: bytes) -> tuple[str, tuple[_Layout, ...]] | None:
    match _json(text):
        case {"key": str(key), "arrays": list(entries)}:
            layouts = [_layout(entry) for entry in entries]
            known = tuple(layout for layout in layouts if layout is not None)
            return (key, known) if len(known) == len(entries) else None
    return None


def _layout(entry: object) -> _Layout | None:
    match entry:
        case [str(name), str(kind), list(shape)] if _DTYPE.fullmatch(kind) and len(shape) <= 32:
            try:
                dtype = np.dtype(kind)
            except TypeError:  # no such number
                return None
            if all(type(length) is int and length >= 0 for length in shape):
                extent = math.prod(max(1, length) for length in shape) * dtype.itemsize
                return (name, dtype, tuple(shape)) if extent < _SIZE_LIMIT else None
    return None


def _size(layout: _Layout) -> int:
    _, dtype, shape = layout
    return math.prod(shape) * dtype.itemsize
