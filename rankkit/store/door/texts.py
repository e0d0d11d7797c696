"""HDF5's heaps of texts, and what points into them."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

from rankkit.store.door.cursor import Cursor, Odd

__all__ = ["TextHeaps"]

_POINTER = 16  # bytes: length, address of the heap, number in the heap
_HEADER = 16  # bytes, of a heap and of everything in it
_SMALLEST = 4096  # bytes
_TEXTS_LIMIT = 1_000_000  # in all heaps; ours have some ten thousand


class TextHeaps:
    """The "global heap collections" of a file, each looked through once, when something points into it.

    They have no checksum, and HDF5 2.0.0 never returns from one whose free space says it has no size. Layout (HDF5 File
    Format Specification, III.E): "GCOL", version 1, three zero bytes, size of the collection; then objects, each with
    number (2 bytes), references (2), zero (4), size (8) and its data, padded to 8 bytes; number 0 is free space, whose
    size includes its own header.

    Args:
        data: the whole file.
        claim: told of every heap.
    """

    def __init__(self, data: bytes | mmap.mmap, claim: Callable[[int, int], None]) -> None:
        self._data = data
        self._claim = claim
        self._left = _TEXTS_LIMIT
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def check(self, place: int, count: int, unit: int) -> Iterator[tuple[int, int]]:
        """Follow pointers.

        Args:
            place: of the first of them.
            count: how many there are, one after another.
            unit: bytes of what their lengths count.

        Yields:
            First byte and bytes of what each points at; those that point at nothing are left out.

        Raises:
            Odd: a heap does not add up, or what is pointed at is not there in that length.
        """
        cursor = Cursor(self._data, place, place + count * _POINTER)
        for _ in range(count):
            length, address, number = cursor.number(4), cursor.number(8), cursor.number(4)
            if not length:
                continue
            if address not in self._heaps:
                self._heaps[address] = dict(self._objects(address))
                self._left -= len(self._heaps[address])
                if self._left < 0:
                    raise Odd(f"have at most {_TEXTS_LIMIT} texts", "more")
            start, size = self._heaps[address].get(number, (0, -1))
            if size != length * unit:
                raise Odd("have its texts in whole heaps", f"{size} bytes for {length} of {unit}")
            yield start, size

    def _objects(self, address: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """What a heap holds: number, first byte and bytes of each."""
        head = Cursor(self._data, address, address + _HEADER)
        head.expect(b"GCOL\x01\0\0\0", "a heap that begins with")
        size = head.number(8)
        if size < _SMALLEST:
            raise Odd("have its texts in whole heaps", f"one of {size} bytes")
        self._claim(address, size)
        cursor, seen = Cursor(self._data, address + _HEADER, address + size), set()
        while cursor.left >= _HEADER:
            number, _, _, length = cursor.number(2), cursor.number(2), cursor.number(4), cursor.number(8)
            step = length - _HEADER if number == 0 else -(-length // 8) * 8
            if step < 0 or number in seen:
                raise Odd("have its texts in whole heaps", f"object {number} of {length} bytes, or twice")
            seen.add(number)
            yield number, (cursor.place, length)
            cursor.skip(step)
