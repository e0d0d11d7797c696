"""How a whole file is laid out, read by us before HDF5 reads it.

HDF5 2.0.0 believes what it reads: a few changed bytes in its metadata, with a checksum that a forger computes again, end the
process (division by zero, writes past a buffer), take gigabytes, or keep it for ever. So every block that HDF5 would decode
is decoded here first, from the root on, in a language that checks its bounds, and held against the one form in which our
writer leaves files (`messages`, `dense`). No two blocks may overlap, so that nothing runs in circles and nothing is counted
twice. What passes is read by HDF5 without surprises; what does not is damaged, hostile, or was written by another program.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from rankkit.errors import SpectrumFileError
from rankkit.store.door.claims import Claims
from rankkit.store.door.cursor import UNDEFINED, Cursor, Odd
from rankkit.store.door.dense import Of, dense_messages
from rankkit.store.door.messages import (
    MESSAGES,
    Attribute,
    Dense,
    Kind,
    Layout,
    Link,
    read_attribute,
    read_dense,
    read_fill,
    read_filters,
    read_group,
    read_kind,
    read_layout,
    read_link,
    read_space,
)
from rankkit.store.door.texts import TextHeaps

__all__ = ["LONGEST_TEXT", "Entry", "Fact", "blueprint_of"]

LONGEST_TEXT: Final = 1 << 16
"""Bytes of one attribute; the longest that we write has 16384. Of a longer one a byte more is kept, to tell."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK_BYTES, _CHECKSUM = 48, 4
_OBJECTS_LIMIT = 10_000  # groups and datasets in one file; two arms with all baselines and brackets hold 2000
_DEPTH_LIMIT = 8  # groups inside groups; ours reach 3
_FACTS_LIMIT = 200_000  # attributes in one file; ours have about ten for each of its entries
_TEXT_LIMIT = 16 << 20  # bytes of all their names and texts, many of which may lie at one place
_IN_HEADER_LIMIT = 1000  # attributes in the header of one entry; more than 8 go elsewhere
_LABELS_LIMIT = 8  # of one axis; ours have one
_TEXTS_LIMIT = 100_000  # in one variable
_DEFLATE, _FLETCHER = 1, 3


@dataclass(frozen=True, slots=True)
class Fact:
    """An attribute."""

    name: str
    """As it stands in the file."""
    kind: Kind
    """Type."""
    shape: tuple[int, ...]
    """Of its value."""
    text: bytes
    """Its value, where it is a text; the first, where it has several; cut after LONGEST_TEXT + 1 bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A group or variable."""

    path: str
    """From "/"."""
    facts: tuple[Fact, ...]
    """Its attributes."""
    shape: tuple[int, ...] | None = None
    """Of a variable; None for a group."""
    kind: Kind | None = None
    """Type of a variable."""
    chunk: tuple[int, ...] = ()
    """Shape of a chunk; empty where there is none."""


@dataclass(slots=True)
class _Header:
    """What the messages of one object say."""

    links: list[Link] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    dense_links: Dense | None = None
    dense_attributes: Dense | None = None
    shape: tuple[int, ...] | None = None
    kind: Kind | None = None
    layout: Layout | None = None
    filters: Cursor | None = None
    fill: int | None = None


def blueprint_of(path: Path) -> list[Entry]:
    """Read how a file is laid out, and refuse one whose layout is not that of our writer.

    Args:
        path: a file that is not empty.

    Returns:
        Everything in it, the root first, the entries of a group one after another.

    Raises:
        SpectrumFileError: naming the part and what is wrong with it.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        blueprint = _Blueprint(data)
        try:
            return blueprint.entries()
        except Odd as odd:
            where = f"{blueprint.at.rstrip('/')}/{odd.name}" if odd.name else blueprint.at
            shown = where[:200].encode("unicode_escape").decode()  # a name may be anything here
            raise SpectrumFileError(
                f"{path}: {shown} must {odd.must}, got {str(odd.found)[:200]}. rankkit leaves no such file: this one is "
                "damaged, hostile, or from another program. Use the original, or measure again."
            ) from odd


class _Blueprint:
    """One reading of one file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._claims = Claims(len(data))
        self._heaps = TextHeaps(data, self._claims.add)
        self._objects: dict[int, bool] = {}
        self._axes: list[tuple[str, int]] = []
        self._facts_left, self._text_left = _FACTS_LIMIT, _TEXT_LIMIT
        self.at = "/"

    def entries(self) -> list[Entry]:
        """Read everything, group by group.

        Raises:
            Odd: something is not as our writer leaves it; `at` tells where.
        """
        found, waiting = [], [("/", self._superblock(), 0)]
        while waiting:
            self.at, address, depth = waiting.pop(0)
            if address in self._objects:
                raise Odd("have one name", "a second name for the same object")
            header = self._header(address)
            self._objects[address] = header.layout is not None
            if len(self._objects) > _OBJECTS_LIMIT or depth > _DEPTH_LIMIT:
                raise Odd("be small", f"more than {_OBJECTS_LIMIT} objects or {_DEPTH_LIMIT} levels")
            facts = tuple(map(self._fact, self._attributes(header)))
            if header.layout is not None:
                self._dataset(header)
                found.append(Entry(self.at, facts, header.shape, header.kind, header.layout.chunk[:-1]))
            else:
                names = self._group(header)
                waiting += [(f"{self.at.rstrip('/')}/{link.name}", link.address, depth + 1) for link in names]
                found.append(Entry(self.at, facts))
        for path, address in self._axes:
            self.at = path
            if not self._objects.get(address, False):
                raise Odd("have its axes labelled by variables of the file", f"a label at {address}")
        self.at = "/"
        self._claims.check()
        return found

    def _superblock(self) -> int:
        """Address of the root."""
        cursor = Cursor(self._data, 0, _SUPERBLOCK_BYTES)
        cursor.expect(_SIGNATURE, "a file that begins with")
        cursor.one_of(1, (2, 3), "a superblock of version")
        cursor.expect(b"\x08\x08\0" + bytes(8) + UNDEFINED.to_bytes(8, "little"), "a superblock with")
        end, root = cursor.number(8), cursor.number(8)
        if end > len(self._data):
            raise Odd("be whole", f"{len(self._data)} of {end} bytes: it is cut short")
        self._claims.add(0, _SUPERBLOCK_BYTES)
        return root

    def _header(self, address: int) -> _Header:
        """All messages of one object."""
        cursor = Cursor(self._data, address, min(len(self._data), address + 64))
        cursor.expect(b"OHDR\2", "a header that begins with")
        flags = cursor.number(1)
        if flags & 0xD0:
            raise Odd("have a plain header", f"flags {flags}")
        cursor.skip(16 if flags & 0x20 else 0)
        size = cursor.number(1 << (flags & 3))
        self._claims.add(address, cursor.place + size + _CHECKSUM - address)
        header, parts = _Header(), [Cursor(self._data, cursor.place, cursor.place + size)]
        while parts:
            for name, body in self._messages(parts.pop(), 6 if flags & 4 else 4):
                if name == "continuation":
                    parts.append(self._continued(body))
                else:
                    _note(header, name, body)
        return header

    def _messages(self, part: Cursor, before: int) -> Iterator[tuple[str, Cursor]]:
        while part.left >= before:
            number, size, flags = part.number(1), part.number(2), part.number(1)
            if flags & ~5 or number not in MESSAGES:
                raise Odd("have a header of known messages", f"message {number} with flags {flags}")
            part.skip(before - 4)
            yield MESSAGES[number], part.part(size)

    def _continued(self, body: Cursor) -> Cursor:
        start, size = body.number(8), body.number(8)
        body.end("continuation")
        if size < 4 + _CHECKSUM:
            raise Odd("have a header that goes on", f"in {size} bytes")
        self._claims.add(start, size)
        cursor = Cursor(self._data, start, start + size - _CHECKSUM)
        cursor.expect(b"OCHK", "a header that goes on with")
        return cursor

    def _dense(self, place: Dense | None, of: Of) -> Iterator[Cursor]:
        if place is not None and place.heap != UNDEFINED:
            yield from dense_messages(self._data, place.heap, place.trees, of, self._claims.add)

    def _group(self, header: _Header) -> list[Link]:
        if header.dense_links is None:
            raise Odd("be a dataset or a group", "a named type" if header.kind else "neither")
        found = header.links + [read_link(cursor) for cursor in self._dense(header.dense_links, "links")]
        if len({link.name for link in found}) != len(found):
            raise Odd("have different names", "one twice")
        return found

    def _attributes(self, header: _Header) -> Iterator[Attribute]:
        yield from header.attributes
        for cursor in self._dense(header.dense_attributes, "attributes"):
            yield read_attribute(cursor)

    def _fact(self, attribute: Attribute) -> Fact:
        """What is kept of an attribute, whose value may point into text heaps or at the scales of axes."""
        text, kind = b"", attribute.kind
        if kind.family == "fixed text":
            text = self._data[attribute.place : attribute.place + kind.size]
        elif kind.unit:
            for start, size in self._heaps.check(attribute.place, attribute.count, kind.unit):
                if kind.family == "text":
                    text = text or self._data[start : start + min(size, LONGEST_TEXT + 1)]
                elif size > _LABELS_LIMIT * kind.unit:
                    raise Odd("have few labels for each axis", size // kind.unit)
                else:
                    found = np.frombuffer(self._data[start : start + size], dtype="<u8")
                    self._axes += [(self.at, int(address)) for address in found]
        self._facts_left -= 1
        self._text_left -= len(attribute.name) + len(text)
        if self._facts_left < 0 or self._text_left < 0:
            raise Odd(f"have at most {_FACTS_LIMIT} attributes, of {_TEXT_LIMIT} bytes of text", "more")
        return Fact(attribute.name, kind, attribute.shape, text)

    def _dataset(self, header: _Header) -> None:
        """Type, shape, fill value and filters must fit, and the data lie where it can be read."""
        shape, kind, layout = header.shape, header.kind, header.layout
        if shape is None or kind is None or layout is None or header.links or header.dense_links is not None:
            raise Odd("be a dataset with type and shape", "one without, or with links")
        if kind.family not in ("number", "text"):
            raise Odd("hold numbers or UTF-8 text", f"type {kind.family}")
        if header.fill is not None and header.fill != kind.size:
            raise Odd("have a fill value of its type", f"{header.fill} bytes for {kind.size}")
        filters = () if header.filters is None else read_filters(header.filters, kind.size)
        if layout.index == "one piece":
            self._piece(layout, math.prod(shape), kind, filters)
        else:
            self._chunks(layout, shape, kind, filters)

    def _piece(self, layout: Layout, count: int, kind: Kind, filters: tuple[int, ...]) -> None:
        if filters or layout.size != count * kind.size:
            raise Odd(
                "take the bytes that its shape needs", f"{layout.size} for {count} of {kind.size}, filters {filters}"
            )
        if layout.address == UNDEFINED:
            return
        if kind.family == "text" and count > _TEXTS_LIMIT:
            raise Odd(f"hold at most {_TEXTS_LIMIT} plain labels", count)
        if layout.size:
            self._claims.add(layout.address, layout.size)
        if kind.family == "text":
            for _ in self._heaps.check(layout.address, count, kind.unit):
                pass

    def _chunks(self, layout: Layout, shape: tuple[int, ...], kind: Kind, filters: tuple[int, ...]) -> None:
        *chunk, size = layout.chunk
        if len(chunk) != len(shape) or size != kind.size or kind.family != "number":
            raise Odd("have chunks of its own type and axes", f"{layout.chunk} for {shape} of {kind.size} bytes")
        count = math.prod(-(-length // part) for length, part in zip(shape, chunk, strict=True))
        full = math.prod(layout.chunk)
        if layout.address == UNDEFINED:
            return
        if layout.index == "one chunk":
            found = np.array([(layout.address, layout.size or full, layout.mask)], dtype=_ENTRY)
            if count != 1 or bool(layout.size) != bool(filters):
                raise Odd("have one chunk", f"{count}, filtered by {filters}")
        else:
            found = self._fixed_array(layout, count, full, filters)
        self._stored(found[found["address"] != UNDEFINED], full, filters)

    def _stored(self, chunks: np.ndarray, full: int, filters: tuple[int, ...]) -> None:
        """Chunks that are not compressed must be of the size that HDF5 will read of them."""
        skipped = np.stack([chunks["mask"] >> place & 1 for place in range(len(filters))] or [chunks["mask"]])
        if (chunks["mask"] >> len(filters)).any() or (chunks["size"] == 0).any():
            raise Odd("have chunks that went through its filters", "another mask, or nothing")
        exact = np.full(chunks.shape, full)
        free = np.zeros(chunks.shape, dtype=np.bool_)
        for place, number in enumerate(filters):
            exact += np.where(skipped[place], 0, _CHECKSUM) if number == _FLETCHER else 0
            free |= (skipped[place] == 0) if number == _DEFLATE else free
        if (~free & (chunks["size"] != exact)).any():
            raise Odd("have chunks of their size", "another size")
        self._claims.add_data(chunks["address"], chunks["size"])

    def _fixed_array(self, layout: Layout, count: int, full: int, filters: tuple[int, ...]) -> np.ndarray:
        """Address, size and mask of every chunk, those that are not there at UNDEFINED."""
        cursor = Cursor(self._data, layout.address, layout.address + 24)
        self._claims.add(layout.address, 24 + _CHECKSUM)
        client = int(bool(filters))
        cursor.expect(b"FAHD\0" + bytes([client]), "an array of chunks that begins with")
        width = 1 + ((full.bit_length() - 1) + 8) // 8 if filters else 0
        entry = cursor.one_of(1, (8 + (width and min(8, width) + 4),), "entries of bytes")
        bits = cursor.one_of(1, (layout.page_bits,), "pages of bits")
        cursor.one_of(8, (count,), "chunks")
        address = cursor.number(8)
        if address == UNDEFINED:
            return np.empty(0, dtype=_ENTRY)
        return _entries(self._pages(layout.address, address, count, entry, bits, client), entry, full)

    def _pages(self, header: int, address: int, count: int, entry: int, bits: int, client: int) -> bytes:
        """The entries of an array of chunks; those on pages that were never written are undefined."""
        page = 1 << min(bits, 32)
        pages = -(-count // page) if count > page else 0
        before = 14 + -(-pages // 8)
        size = before + _CHECKSUM + count * entry + _CHECKSUM * pages
        self._claims.add(address, size)
        cursor = Cursor(self._data, address, address + size)
        cursor.expect(b"FADB\0" + bytes([client]) + header.to_bytes(8, "little"), "a list of chunks that begins with")
        if not pages:
            return cursor.take(count * entry)
        written = np.unpackbits(np.frombuffer(cursor.take(before - 14), dtype=np.uint8))
        cursor.skip(_CHECKSUM)
        found = []
        for number in range(pages):
            part = cursor.take(min(page, count - number * page) * entry)
            cursor.skip(_CHECKSUM)
            found.append(part if written[number] else b"\xff" * len(part))
        return b"".join(found)


_ENTRY = np.dtype([("address", "<u8"), ("size", "<u8"), ("mask", "<u4")])


def _entries(stored: bytes, entry: int, full: int) -> np.ndarray:
    """Entries of a list of chunks as numbers."""
    rows = np.frombuffer(stored, dtype=np.uint8).reshape(-1, entry)
    found = np.zeros(len(rows), dtype=_ENTRY)
    found["address"] = np.ascontiguousarray(rows[:, :8]).view("<u8")[:, 0]
    found["size"] = full
    if entry > 8:
        sizes = np.zeros((len(rows), 8), dtype=np.uint8)
        sizes[:, : entry - 12] = rows[:, 8 : entry - 4]
        found["size"] = sizes.view("<u8")[:, 0]
        found["mask"] = np.ascontiguousarray(rows[:, entry - 4 :]).view("<u4")[:, 0]
    return found


def _note(header: _Header, name: str, body: Cursor) -> None:
    """Decode one message into what is known of the object; each but links and attributes may be there once."""
    match name:
        case "link":
            header.links.append(read_link(body))
            if len(header.links) > _OBJECTS_LIMIT:
                raise Odd("be small", f"more than {_OBJECTS_LIMIT} objects")
        case "attribute":
            header.attributes.append(read_attribute(body))
            if len(header.attributes) > _IN_HEADER_LIMIT:
                raise Odd(f"have at most {_IN_HEADER_LIMIT} attributes in its header", "more")
        case "group":
            read_group(body)
        case "external":
            raise Odd("hold its data", "external storage")
        case "references":
            raise Odd("have one name", "a second name for the same object")
        case "links" if header.dense_links is None:
            header.dense_links = read_dense(body, width=8)
        case "attributes" if header.dense_attributes is None:
            header.dense_attributes = read_dense(body, width=2)
        case "space" if header.shape is None:
            header.shape = read_space(body)
        case "kind" if header.kind is None:
            header.kind = read_kind(body)
        case "layout" if header.layout is None:
            header.layout = read_layout(body)
        case "filters" if header.filters is None:
            header.filters = body
        case "fill" if header.fill is None:
            header.fill = read_fill(body)
        case "nil":
            pass
        case _:
            raise Odd("have a header of different messages", f"{name} twice")
