"""Bytes of a file, read from left to right and never past their end."""

from __future__ import annotations

import mmap
from collections.abc import Collection

__all__ = ["UNDEFINED", "Cursor", "Odd"]

UNDEFINED = (1 << 64) - 1
"""The address of what is not there."""


class Odd(Exception):  # noqa: N818 - it never leaves the package: whoever knows the path makes an error of it
    """Something in a file that no writer of ours leaves there.

    Args:
        must: what holds in our files, without "must".
        found: what there is instead.
        name: of the entry inside the group that is being read, where it is about one.
    """

    def __init__(self, must: str, found: object, name: str = "") -> None:
        super().__init__(must, found)
        self.must = must
        self.found = found
        self.name = name


class Cursor:
    """A place in a range of bytes.

    Args:
        data: the whole file.
        start: first byte of the range.
        stop: first byte after it.

    Raises:
        Odd: the range is not inside the file.
    """

    __slots__ = ("data", "place", "stop")

    def __init__(self, data: bytes | mmap.mmap, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(data):
            raise Odd("lie inside the file", f"bytes {start} to {stop} of {len(data)}")
        self.data = data
        self.place = start
        self.stop = stop

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return self.stop - self.place

    def take(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            Odd: there are not as many.
        """
        if not 0 <= size <= self.left:
            raise Odd("hold what it announces", f"{self.left} of {size} bytes at {self.place}")
        self.place += size
        return self.data[self.place - size : self.place]

    def skip(self, size: int) -> None:
        """Pass over bytes that say nothing."""
        if not 0 <= size <= self.stop - self.place:
            raise Odd("hold what it announces", f"{self.left} of {size} bytes at {self.place}")
        self.place += size

    def number(self, size: int) -> int:
        """The next bytes as an unsigned number, the lowest first."""
        start = self.place
        if size > self.stop - start:
            raise Odd("hold what it announces", f"{self.left} of {size} bytes at {start}")
        self.place = start + size
        return int.from_bytes(self.data[start : self.place], "little")

    def one_of(self, size: int, known: Collection[int], what: str) -> int:
        """The next number, which must be among some."""
        value = self.number(size)
        if value not in known:
            raise Odd(f"have {what} {' or '.join(map(str, sorted(known)))}", value)
        return value

    def expect(self, constant: bytes, what: str) -> None:
        """Pass over bytes that are always the same."""
        found = self.take(len(constant))
        if found != constant:
            raise Odd(f"have {what} {constant.hex()}", found.hex())

    def part(self, size: int) -> Cursor:
        """A cursor of its own over the next bytes."""
        start = self.place
        self.skip(size)
        return Cursor(self.data, start, start + size)

    def end(self, what: str) -> None:
        """Nothing may be left."""
        if self.left:
            raise Odd(f"end with its {what}", f"{self.left} more bytes at {self.place}")
