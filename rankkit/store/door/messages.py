"""The messages of an object header, decoded by us before HDF5 decodes them.

Every message of a file is held against the form in which HDF5's writer leaves it in our files (HDF5 File Format
Specification version 4, IV.A.2), and anything else is refused: see rankkit.store.door.blueprint. Numbers are little-endian;
addresses and lengths have 8 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from rankkit.store.door.cursor import UNDEFINED, Cursor, Odd

__all__ = [
    "MESSAGES",
    "Attribute",
    "Dense",
    "Kind",
    "Layout",
    "Link",
    "read_attribute",
    "read_dense",
    "read_fill",
    "read_filters",
    "read_group",
    "read_kind",
    "read_layout",
    "read_link",
    "read_space",
]

MESSAGES: Final = {
    0x00: "nil",
    0x01: "space",
    0x02: "links",
    0x03: "kind",
    0x05: "fill",
    0x06: "link",
    0x07: "external",
    0x08: "layout",
    0x0A: "group",
    0x0B: "filters",
    0x0C: "attribute",
    0x10: "continuation",
    0x15: "attributes",
    0x16: "references",
}
"""The messages that are known here, by number."""

Family = Literal["number", "text", "fixed text", "references", "pairs"]

_AXES_LIMIT = 32  # of a dataset in HDF5
_FIXED_LIMIT = 256  # bytes of a text of fixed length: the marks of dimension scales, of which netCDF-4's have 64
_NUMBERS = {  # fixed-point without padding: class and version, sign, size, bit offset, precision
    bytes([0x10, sign, 0, 0])
    + size.to_bytes(4, "little")
    + bytes(2)
    + (8 * size).to_bytes(2, "little"): f"<{letter}{size}"
    for size in (1, 2, 4, 8)
    for sign, letter in ((0, "u"), (8, "i"))
} | {  # IEEE 754
    bytes.fromhex("11201f000400000000002000170800177f000000"): "<f4",
    bytes.fromhex("11203f000800000000004000340b0034ff030000"): "<f8",
}
_TEXT = bytes.fromhex("1901010010000000100000000100000000000800")  # of variable length, UTF-8
_REFERENCES = bytes.fromhex("19000000100000001700000008000000")  # lists of references to objects
_PAIRS = bytes.fromhex(  # of a reference and an axis: what a dimension scale notes of those who use it
    "3602000010000000646174617365740000170000000800000064696d656e73696f6e0008100000000400000000002000"
)
_CLASSES = {
    0: "whole numbers", 1: "floats", 3: "text of fixed length", 4: "bits", 5: "opaque bytes", 6: "compound", 7: "references",
    8: "named codes", 9: "lists or text", 10: "arrays", 11: "complex numbers",
}  # fmt: skip
_PAGE_BITS = 10  # of a list of chunks: HDF5's own choice
_SHUFFLE, _DEFLATE, _FLETCHER = 2, 1, 3


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a variable or attribute."""

    family: Family
    """What it is."""
    size: int
    """Bytes of an element, as stored."""
    name: str
    """Of a number NumPy's, such as "<f8"; else the family."""

    @property
    def unit(self) -> int:
        """Bytes that a text heap holds per counted unit; 0 where it holds nothing."""
        return {"text": 1, "references": 8}.get(self.family, 0)


@dataclass(frozen=True, slots=True)
class Link:
    """A name in a group."""

    name: str
    """Decoded."""
    address: int
    """Of the object's header."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute without its value."""

    name: str
    """Decoded."""
    kind: Kind
    """Its type."""
    shape: tuple[int, ...]
    """Of the value."""
    place: int
    """First byte of the value."""

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Dense:
    """Where links or attributes lie that are too many for the header."""

    heap: int
    """Address of the fractal heap, or UNDEFINED."""
    trees: tuple[int, ...]
    """Addresses of its indexes, by name and by order of creation."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the numbers of a variable lie."""

    index: Literal["one piece", "one chunk", "fixed array"]
    """How they are found."""
    address: int
    """Of the data, of the one chunk, or of the array's header."""
    size: int = 0
    """Bytes of the piece; of the one chunk, 0 where it went through no filter."""
    mask: int = 0
    """Filters that the one chunk skipped."""
    chunk: tuple[int, ...] = ()
    """Shape of a chunk, and last the bytes of an element."""
    page_bits: int = 0
    """Of the fixed array."""


def read_space(cursor: Cursor) -> tuple[int, ...]:
    """Shape of a variable or attribute; that of a single value is empty."""
    version = cursor.one_of(1, (1, 2), "a dataspace of version")
    rank, flags = cursor.number(1), cursor.number(1)
    kind = cursor.number(1) if version == 2 else int(rank > 0)
    cursor.skip(5 if version == 1 else 0)
    if kind == 2:
        raise Odd("have a shape", "an empty one")
    if rank > _AXES_LIMIT or flags > 1 or kind != (rank > 0):
        raise Odd("have a plain shape", f"{rank} axes, flags {flags}, kind {kind}")
    shape = tuple(cursor.number(8) for _ in range(rank))
    if flags and shape != tuple(cursor.number(8) for _ in range(rank)):
        raise Odd("have a fixed shape", "one that may grow")
    cursor.end("shape")
    if math.prod(max(size, 1) for size in shape) >= 1 << 60:
        raise Odd("be of a size that can be counted", f"shape {shape}")
    return shape


def read_kind(cursor: Cursor) -> Kind:
    """Type of a variable or attribute, one of the few that our files have."""
    stored = cursor.take(cursor.left)
    if stored in _NUMBERS:
        return Kind("number", int(_NUMBERS[stored][-1]), _NUMBERS[stored])
    known: dict[bytes, Family] = {_TEXT: "text", _REFERENCES: "references", _PAIRS: "pairs"}
    if stored in known:
        return Kind(known[stored], 16, known[stored])
    size = int.from_bytes(stored[4:8], "little")
    if (
        len(stored) == 8
        and stored[0] == 0x13
        and stored[1] < 0x20
        and stored[2:4] == b"\0\0"
        and 0 < size <= _FIXED_LIMIT
    ):
        return Kind("fixed text", size, "fixed text")
    name = _CLASSES.get(stored[0] & 15, "something else") if stored else "nothing"
    raise Odd("hold numbers or UTF-8 text", f"type {name} in {size} bytes")


def read_fill(cursor: Cursor) -> int | None:
    """Bytes of the fill value, or None where there is none."""
    cursor.one_of(1, (3,), "a fill value of version")
    flags = cursor.number(1)
    if flags & 0xC0 or (flags & 0x30) == 0x30:
        raise Odd("have a plain fill value", f"flags {flags}")
    size = cursor.number(4) if flags & 0x20 else None
    cursor.skip(size or 0)
    cursor.end("fill value")
    return size


def read_link(cursor: Cursor) -> Link:
    """A link to an object of this file."""
    cursor.one_of(1, (1,), "a link of version")
    flags = cursor.number(1)
    if flags & 0xE0:
        raise Odd("have plain links", f"flags {flags}")
    kind = cursor.number(1) if flags & 8 else 0
    cursor.skip(8 if flags & 4 else 0)
    if flags & 16:
        cursor.one_of(1, (0, 1), "names in the alphabet")
    name = cursor.take(cursor.number(1 << (flags & 3))).decode("utf-8", "backslashreplace")
    if kind:
        raise Odd("be inside the file", "a link to elsewhere", name)
    address = cursor.number(8)
    cursor.end("link")
    return Link(name, address)


def read_attribute(cursor: Cursor) -> Attribute:
    """An attribute; its value must be as long as type and shape say.

    Version 1, in which every part fills up to 8 bytes, is what h5py leaves when it changes an attribute of a finished file.
    """
    version = cursor.one_of(1, (1, 3), "an attribute of version")
    cursor.one_of(1, (0,), "an attribute with flags")
    sizes = [cursor.number(2) for _ in range(3)]
    if version == 3:
        cursor.one_of(1, (0, 1), "names in the alphabet")
    name, kind, shape = (_filled(cursor, size, 8 if version == 1 else 1) for size in sizes)
    stored = name.take(name.left)
    if not stored.endswith(b"\0") or b"\0" in stored[:-1]:
        raise Odd("have attributes with a name", repr(stored[:40]))
    shown = stored[:-1].decode("utf-8", "backslashreplace")
    try:
        found = Attribute(shown, read_kind(kind), read_space(shape), cursor.place)
        if cursor.left != found.count * found.kind.size:
            raise Odd("be as long as its shape says", f"{cursor.left} bytes for {found.count} of {found.kind.size}")
    except Odd as odd:
        raise Odd(f"have attributes that {odd.must}", f"{odd.found} in {shown[:40]!r}") from odd
    return found


def _filled(cursor: Cursor, size: int, unit: int) -> Cursor:
    """The next bytes, and past what fills them up."""
    part = cursor.part(size)
    cursor.skip(-size % unit)
    return part


def read_dense(cursor: Cursor, *, width: int) -> Dense:
    """Where many links or attributes lie.

    Args:
        cursor: of a link info or attribute info message.
        width: bytes of the highest order of creation.
    """
    cursor.one_of(1, (0,), "an index of version")
    flags = cursor.number(1)
    if flags > 3:
        raise Odd("have a plain index", f"flags {flags}")
    cursor.skip(width if flags & 1 else 0)
    heap = cursor.number(8)
    trees = tuple(cursor.number(8) for _ in range(2 if flags & 2 else 1))
    cursor.end("index")
    if (heap == UNDEFINED) != (trees[0] == UNDEFINED) or any(
        (tree == UNDEFINED) != (heap == UNDEFINED) for tree in trees
    ):
        raise Odd("have an index to what it lists", f"addresses {heap} and {trees}")
    return Dense(heap, trees)


def read_group(cursor: Cursor) -> None:
    """How many links a group keeps in its header."""
    cursor.one_of(1, (0,), "a group of version")
    flags = cursor.number(1)
    if flags > 3:
        raise Odd("be a plain group", f"flags {flags}")
    cursor.skip((4 if flags & 1 else 0) + (4 if flags & 2 else 0))
    cursor.end("group")


def read_filters(cursor: Cursor, kind_size: int) -> tuple[int, ...]:
    """Numbers of the filters, in the order in which they are applied.

    Args:
        cursor: of the message.
        kind_size: bytes of an element, which shuffle must know.
    """
    cursor.one_of(1, (2,), "filters of version")
    filters = []
    for _ in range(cursor.number(1)):
        number = cursor.number(2)
        if number not in (_SHUFFLE, _DEFLATE, _FLETCHER):
            raise Odd("use gzip, shuffle and fletcher32 only", f"filter {number}")
        flags, count = cursor.number(2), cursor.number(2)
        values = [cursor.number(4) for _ in range(count)]
        right = {_SHUFFLE: values == [kind_size], _DEFLATE: len(values) == 1 and values[0] <= 9, _FLETCHER: not values}
        if flags > 1 or number in filters or not right[number]:
            raise Odd("have filters as HDF5 sets them", f"filter {number} with {values} and flags {flags}")
        filters.append(number)
    cursor.end("filters")
    return tuple(filters)


def read_layout(cursor: Cursor) -> Layout:
    """Where the numbers of a variable lie: in one piece, or in chunks of a fixed shape."""
    version, kind = cursor.one_of(1, (3, 4), "a layout of version"), cursor.number(1)
    if kind == 3:
        raise Odd("hold its data", "a virtual dataset")
    if kind == 1:
        layout = Layout("one piece", cursor.number(8), cursor.number(8))
        cursor.end("layout")
        return layout
    if kind != 2 or version != 4:
        raise Odd("have chunks of version 4, or lie in one piece", f"layout {kind} of version {version}")
    flags, rank, width = cursor.number(1), cursor.number(1), cursor.number(1)
    if flags & ~2 or not 2 <= rank <= _AXES_LIMIT + 1 or not 1 <= width <= 8:
        raise Odd("have plain chunks", f"{rank} axes, flags {flags}, numbers of {width} bytes")
    chunk = tuple(cursor.number(width) for _ in range(rank))
    if 0 in chunk or math.prod(chunk) >= 1 << 32:
        raise Odd("have chunks of less than 4 GiB", f"{chunk}")
    layout = _chunked(cursor, chunk, filtered=bool(flags & 2))
    cursor.end("layout")
    return layout


def _chunked(cursor: Cursor, chunk: tuple[int, ...], *, filtered: bool) -> Layout:
    index = cursor.number(1)
    if index == 1:
        size, mask = (cursor.number(8), cursor.number(4)) if filtered else (0, 0)
        return Layout("one chunk", cursor.number(8), size, mask, chunk)
    if index == 3 and not filtered:
        bits = cursor.one_of(1, (_PAGE_BITS,), "pages of bits")
        return Layout("fixed array", cursor.number(8), chunk=chunk, page_bits=bits)
    raise Odd("have its chunks in a fixed array", f"index {index}")
