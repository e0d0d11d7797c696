"""Links and attributes that are too many for an object header: a fractal heap and the B-trees that index it.

HDF5 divides by sizes that it reads here, and allocates by others. They are constants of the library's writer (HDF5 File
Format Specification version 4, III.A.2 and III.G), so that nothing else is let through.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from rankkit.store.door.cursor import UNDEFINED, Cursor, Odd

__all__ = ["Of", "dense_messages"]

Of = Literal["links", "attributes"]
Claim = Callable[[int, int], None]
"""Takes the first byte and the length of a block that nothing else may overlap."""

_HEADER_BYTES = 142  # of a heap, before the checksum
_CHECKSUM = 4
_WIDTH = 4  # blocks in a row
_LARGEST_BLOCK = 1 << 16
_MANAGED = 4096  # bytes of the largest thing inside a block
_NODE = 512  # bytes of a node of a tree
_NODE_OVERHEAD = 10  # signature, version, type and checksum
_DEPTH_LIMIT = 3  # of a tree: 25 000 links lie in depth 2


@dataclass(frozen=True, slots=True)
class _Form:
    """What differs between links and attributes."""

    id_size: int
    """Bytes of an entry's place in the heap."""
    first_block: int
    """Bytes of a heap's first block."""
    heap_bits: int
    """Of an offset in the heap."""
    most: int
    """How many there may be in one heap."""
    facts: int
    """Bytes after the place that both indexes have: flags and order of creation."""
    trees: tuple[tuple[int, int, int], tuple[int, int, int]]
    """Of the index by name and that by order of creation: its type, bytes of a record, and where in it the place lies."""


_FORMS: Final[dict[Of, _Form]] = {
    "links": _Form(7, 512, 32, 10_000, 0, ((5, 11, 4), (6, 15, 8))),
    "attributes": _Form(8, 1024, 40, 1000, 5, ((8, 17, 0), (9, 13, 0))),
}


def dense_messages(
    data: bytes | mmap.mmap, heap: int, trees: tuple[int, ...], of: Of, claim: Claim
) -> Iterator[Cursor]:
    """The messages of links or attributes in a heap, one cursor each.

    Args:
        data: the whole file.
        heap: address of the heap.
        trees: addresses of the index by name and, where there is one, by order of creation.
        of: what they are.
        claim: told of every block.

    Raises:
        Odd: a block is not as HDF5's writer leaves it.
    """
    form = _FORMS[of]
    blocks = _Heap(data, heap, form, claim)
    found: list[set[bytes]] = []
    for address, (kind, size, place) in zip(trees, form.trees, strict=False):
        records = list(_records(data, address, kind, size, form.most, claim))
        found.append({record[place : place + form.id_size + form.facts] for record in records})
        if len(found[-1]) != len(records):
            raise Odd(f"list its {of} once", "one twice")
    if any(other != found[0] for other in found):
        raise Odd(f"list the same {of} by name and by order", "others")
    for record in sorted(found[0]):
        if form.facts and record[form.id_size]:
            raise Odd(f"have plain {of}", f"flags {record[form.id_size]}")  # HDF5 would look for it elsewhere
        yield blocks.thing(record[: form.id_size])


@dataclass(frozen=True, slots=True)
class _Block:
    """A piece of a heap."""

    offset: int
    """Of its first byte in the heap."""
    size: int
    """Bytes, header included."""
    address: int
    """In the file."""


class _Heap:
    """A heap, read from its header on."""

    def __init__(self, data: bytes | mmap.mmap, address: int, form: _Form, claim: Claim) -> None:
        self._data = data
        self._form = form
        self._claim = claim
        self._offset_bytes = form.heap_bits // 8
        self._start = address.to_bytes(8, "little")  # every block says whose it is
        cursor = Cursor(data, address, address + _HEADER_BYTES)
        claim(address, _HEADER_BYTES + _CHECKSUM)
        checked = _check_header(cursor, form)
        self._block_header = 13 + self._offset_bytes + _CHECKSUM * checked
        root, rows = cursor.number(8), cursor.number(2)
        self._blocks = list(self._listed(root, rows)) if rows else [self._block(root, 0, form.first_block)]

    def _listed(self, address: int, rows: int) -> Iterator[_Block]:
        """The blocks that a block of blocks lists."""
        sizes = [self._form.first_block << max(0, row - 1) for row in range(min(rows, 32))]
        if rows != len(sizes) or sizes[-1] > _LARGEST_BLOCK:
            raise Odd("have a heap of one level", f"{rows} rows")
        size = 13 + self._offset_bytes + 8 * _WIDTH * rows + _CHECKSUM
        self._claim(address, size)
        cursor = Cursor(self._data, address, address + size)
        cursor.expect(b"FHIB\0" + self._start + bytes(self._offset_bytes), "a list of blocks that begins with")
        offset = 0
        for row in sizes:
            for _ in range(_WIDTH):
                child = cursor.number(8)
                if child != UNDEFINED:
                    yield self._block(child, offset, row)
                offset += row

    def _block(self, address: int, offset: int, size: int) -> _Block:
        cursor = Cursor(self._data, address, address + size)
        self._claim(address, size)
        cursor.expect(b"FHDB\0" + self._start, "a block that begins with")
        cursor.one_of(self._offset_bytes, (offset,), "a block at offset")
        return _Block(offset, size, address)

    def thing(self, identifier: bytes) -> Cursor:
        """The bytes of one link or attribute, told by its place."""
        if identifier[0]:
            raise Odd("have everything inside the heap's blocks", f"a place of kind {identifier[0]}")
        middle = 1 + self._offset_bytes
        offset, length = (int.from_bytes(part, "little") for part in (identifier[1:middle], identifier[middle:]))
        if length > _MANAGED:
            raise Odd(f"have things in the heap of at most {_MANAGED} bytes", length)
        for block in self._blocks:
            if block.offset + self._block_header <= offset and offset + length <= block.offset + block.size:
                start = block.address + offset - block.offset
                return Cursor(self._data, start, start + length)
        raise Odd("have everything inside the heap's blocks", f"{length} bytes at {offset}")


def _check_header(cursor: Cursor, form: _Form) -> int:
    """Read a heap's header up to the address of its blocks: 1 where these have checksums, else 0."""
    cursor.expect(b"FRHP\0", "a heap that begins with")
    cursor.one_of(2, (form.id_size,), "places in the heap of bytes")
    cursor.one_of(2, (0,), "filters in the heap of bytes")
    checked = cursor.one_of(1, (0, 2), "a heap with flags") // 2
    cursor.one_of(4, (_MANAGED,), "things in the heap of at most bytes")
    cursor.skip(8)
    cursor.one_of(8, (UNDEFINED,), "large things at")
    cursor.skip(6 * 8)  # free space, which only a writer looks at, and counts
    for _ in range(4):
        cursor.one_of(8, (0,), "large or tiny things")
    cursor.one_of(2, (_WIDTH,), "blocks in a row")
    cursor.one_of(8, (form.first_block,), "a first block of bytes")
    cursor.one_of(8, (_LARGEST_BLOCK,), "a largest block of bytes")
    cursor.one_of(2, (form.heap_bits,), "offsets in the heap of bits")
    cursor.one_of(2, (1,), "rows at first")
    return checked


def _records(data: bytes | mmap.mmap, address: int, kind: int, size: int, most: int, claim: Claim) -> Iterator[bytes]:
    """The records of a tree."""
    cursor = Cursor(data, address, address + 34)
    claim(address, 34 + _CHECKSUM)
    cursor.expect(b"BTHD\0" + bytes([kind]), "a tree that begins with")
    cursor.one_of(4, (_NODE,), "nodes of bytes")
    cursor.one_of(2, (size,), "records of bytes")
    depth = cursor.one_of(2, range(_DEPTH_LIMIT + 1), "a depth of")
    cursor.expect(bytes([100, 40]), "limits of nodes")
    root, count, total = cursor.number(8), cursor.number(2), cursor.number(8)
    if total > most:
        raise Odd("be small", f"more than {most} things in one place: {total}")
    records = list(_Tree(data, kind, size, claim).node(root, count, depth)) if total else []
    if len(records) != total:
        raise Odd("list as many entries as it says", f"{len(records)} of {total}")
    yield from records


class _Tree:
    """The nodes of one tree."""

    def __init__(self, data: bytes | mmap.mmap, kind: int, size: int, claim: Claim) -> None:
        self._data = data
        self._kind = kind
        self._size = size
        self._claim = claim
        self._most = [(_NODE - _NODE_OVERHEAD) // size]  # records in a node, by its height
        self._total = [self._most[0]]  # records in and under a node
        self._count_size = _bytes_for(self._most[0])
        for height in range(1, _DEPTH_LIMIT + 1):
            pointer = self._pointer(height)
            most = (_NODE - _NODE_OVERHEAD - pointer) // (size + pointer)
            self._most.append(most)
            self._total.append((most + 1) * self._total[-1] + most)

    def _pointer(self, height: int) -> int:
        """Bytes that tell of a node one below: address, records in it, and, where it has others below, in all of them."""
        return 8 + self._count_size + (_bytes_for(self._total[height - 1]) if height > 1 else 0)

    def node(self, address: int, count: int, height: int) -> Iterator[bytes]:
        """The records in and under a node."""
        if count > self._most[height]:
            raise Odd(f"have nodes of at most {self._most[height]} records", count)
        self._claim(address, _NODE)
        cursor = Cursor(self._data, address, address + _NODE)
        cursor.expect((b"BTIN\0" if height else b"BTLF\0") + bytes([self._kind]), "a node that begins with")
        for _ in range(count):
            yield cursor.take(self._size)
        if height:
            for _ in range(count + 1):
                child, records = cursor.number(8), cursor.number(self._count_size)
                cursor.skip(self._pointer(height) - 8 - self._count_size)
                yield from self.node(child, records, height - 1)


def _bytes_for(most: int) -> int:
    """Bytes in which HDF5 stores numbers up to some."""
    return (most.bit_length() - 1) // 8 + 1
