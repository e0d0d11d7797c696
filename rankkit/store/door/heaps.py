"""HDF5's text heaps, looked at before HDF5 does.

Variable-length text lies in "global heap collections". They carry no checksum, and HDF5 2.0.0 never returns from reading
one whose free space says it has no size: one zeroed or flipped byte is enough. So their chain of objects is followed
here first. Layout (HDF5 File Format Specification, III.E): "GCOL", version 1, three zero bytes, size of the collection;
then objects, each with index (2 bytes), references (2), zero (4), size (8) and its data, padded to 8 bytes; the object of
index 0 is the free space, whose size includes its own header.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path

__all__ = ["broken_heap"]

_SIGNATURE = re.compile(rb"GCOL\x01\x00\x00\x00")
_COLLECTION_HEADER = 16  # bytes
_OBJECT_HEADER = struct.Struct("<HHIQ")
_SMALLEST_COLLECTION = 4096  # bytes; HDF5 refuses smaller ones itself


def broken_heap(path: Path) -> int | None:
    """The position of the first text heap that does not add up, or None; reads the whole file once.

    Heaps that lie inside one another do not add up either: each would be followed through all the others.

    Args:
        path: a file that is not empty.

    Returns:
        Offset in bytes.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        room = len(data) // _OBJECT_HEADER.size  # objects, in heaps that lie side by side
        for match in _SIGNATURE.finditer(data):
            found = _objects(data, match.start())
            if found is None or found > room:
                return match.start()
            room -= found
    return None


def _objects(data: mmap.mmap, start: int) -> int | None:
    """How many objects fill one collection exactly; None where they do not."""
    if start + _COLLECTION_HEADER > len(data):
        return None
    end = start + int.from_bytes(data[start + 8 : start + 16], "little")
    if end - start < _SMALLEST_COLLECTION or end > len(data):
        return 0  # not a collection that HDF5 would read: it checks the size itself
    position, found = start + _COLLECTION_HEADER, 0
    while position + _OBJECT_HEADER.size <= end:
        index, _, _, size = _OBJECT_HEADER.unpack_from(data, position)
        step = size if index == 0 else _OBJECT_HEADER.size + -(-size // 8) * 8
        if step < _OBJECT_HEADER.size or position + step > end:
            return None
        position, found = position + step, found + 1
    return found
