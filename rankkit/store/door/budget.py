"""What a file asks for, against what it holds.

A few kilobytes of HDF5 can declare terabytes, or a million variables of one number. Compressed data unpacks to at most 1032
times its size, and every chunk takes some bytes of index, so that what a file may ask for is bounded by what it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store.door.blueprint import LONGEST_TEXT, Entry, Fact
from rankkit.store.schema import AXIS_VARIABLES, COMPARISON, FUNCTIONAL

__all__ = ["check_budget"]

_LABELS_LIMIT: Final = (
    100_000  # along one axis of SPECTRUM_AXES, and texts in one file: each becomes an object of Python
)
_POSITIONS_LIMIT = 1 << 20  # labels along any other axis, such as key and component
_WHOLE_LIMIT = 64 << 20  # bytes that variables read at once take, of one group: tokens for 13 million positions
_CHUNK_LIMIT = 4 << 20  # bytes of one chunk, which is unpacked whole; ours are at most 1 MiB
_UNPACKED = 1032  # deflate packs no better than 1032 to 1
_INDEX_BYTES = 8  # of an entry of the smallest index of chunks
_FEW_CHUNKS = 10_000  # of variables with one chunk each, which need no index
_SLACK = 1 << 20  # bytes that any file may declare: a small one with a lost chunk is damaged, not hostile
_DATA_TYPES = {"<f8", "<f4", "<i8", "<i4", "<i1"}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_ATTRIBUTES_LIMIT = 200  # of one group or variable; ours have about 20
_NUMBERS_LIMIT = 1024  # in one attribute of a variable, such as its codes; groups have single values
_BOOKKEEPING = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates"}
_BOOKKEEPING_NUMBERS = 64  # an HDF5 dataset has at most 32 axes
_SCALE = b"DIMENSION_SCALE"  # of another class HDF5 2.0.0 frees something twice, and the process ends


@dataclass(slots=True)
class _Asked:
    """What a file has asked for so far."""

    path: Path
    size: int
    limit: int
    declared: int = 0
    chunks: int = 0
    labels: int = 0
    whole: int = 0

    def refuse(self, name: str, must: str, found: object) -> SpectrumFileError:
        """The error for what no version of rankkit writes."""
        return SpectrumFileError(
            f"{self.path}: {name} must {must}, got {found}. Do not use this file; no version of rankkit writes such."
        )

    def add_variable(self, entry: Entry, shape: tuple[int, ...]) -> None:
        """Count what a variable declares, against what the file can hold."""
        assert entry.kind is not None, "a variable has a type"
        text, count = entry.kind.family == "text", math.prod(shape)
        if not text and entry.kind.name not in _DATA_TYPES:
            raise self.refuse(entry.path, "hold numbers or UTF-8 text", f"type {entry.kind.name}")
        if text and count > _LABELS_LIMIT:
            raise self.refuse(entry.path, f"hold at most {_LABELS_LIMIT} plain labels", count)
        axis = entry.path.rpartition("/")[2]
        most = _LABELS_LIMIT if axis in SPECTRUM_AXES else _POSITIONS_LIMIT
        if axis in AXIS_VARIABLES and count > most:
            raise self.refuse(entry.path, f"hold at most {most} labels", count)
        size, chunk = count * entry.kind.size, math.prod(entry.chunk) * entry.kind.size if entry.chunk else 0
        if size > self.limit or chunk > _CHUNK_LIMIT:
            raise SpectrumFileError(
                f"{self.path}: {entry.path} must take at most {self.limit} bytes, in chunks of at most "
                f"{_CHUNK_LIMIT}, got {size} in chunks of {chunk}. Raise the limit if you trust the file."
            )
        self.labels += count if text else 0
        self.declared += size
        self.chunks += math.prod(
            -(-length // part) for length, part in zip(shape, entry.chunk or shape, strict=True) if part
        )
        first = entry.path.split("/")[1]
        self.whole += size if len(shape) <= 2 or first in (COMPARISON, FUNCTIONAL) else 0
        self._check_sums(entry.path)

    def _check_sums(self, path: str) -> None:
        if self.labels > _LABELS_LIMIT:
            raise self.refuse(path, f"hold at most {_LABELS_LIMIT} labels together", self.labels)
        for found, most, what in (
            (self.declared, _UNPACKED * self.size + _SLACK, "bytes declared"),
            (self.chunks, self.size // _INDEX_BYTES + _FEW_CHUNKS, "chunks"),
        ):
            if found > most:
                raise self.refuse(path, "hold what it declares", f"{found} {what} in a file of {self.size}")

    def check_attributes(self, entry: Entry) -> None:
        """Look at the attributes of a group or variable."""
        if len(entry.facts) > _ATTRIBUTES_LIMIT:
            raise self.refuse(entry.path, f"have at most {_ATTRIBUTES_LIMIT} attributes", len(entry.facts))
        for fact in entry.facts:
            if not _NAME.fullmatch(fact.name):
                raise self.refuse(entry.path, "have plain names", f"{fact.name[:40]!r}")
            if fact.name in _BOOKKEEPING:
                self._check_bookkeeping(entry, fact)
            else:
                self._check_value(entry, fact)

    def _check_value(self, entry: Entry, fact: Fact) -> None:
        what = f"attribute {fact.name!r}"
        text = fact.kind.family == "text"
        if not text and fact.kind.family != "number":
            raise self.refuse(f"{entry.path}: {what}", "be text or a number", f"type {fact.kind.name}")
        most = _NUMBERS_LIMIT if entry.shape is not None and not text else 1
        if len(fact.shape) > (most > 1) or math.prod(fact.shape) > most:
            raise self.refuse(f"{entry.path}: {what}", "be small", f"shape {fact.shape}")
        if len(fact.text) > LONGEST_TEXT:
            raise self.refuse(f"{entry.path}: {what}", "be small", f"more than {LONGEST_TEXT} bytes")
        try:
            fact.text.decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"{entry.path}: {what}", "be UTF-8", f"{fact.text[:40]!r}") from None

    def _check_bookkeeping(self, entry: Entry, fact: Fact) -> None:
        """What dimension scales and netCDF-4 keep for themselves.

        HDF5's library copies some of it into buffers without asking how large it is.
        """
        what, found = f"{fact.name} of {entry.path}", f"type {fact.kind.name} of shape {fact.shape}"
        if fact.name in ("CLASS", "NAME"):
            if fact.kind.family != "fixed text" or fact.shape:
                raise self.refuse(what, "be a short text", found)
            if fact.name == "CLASS" and fact.text.rstrip(b"\0 ") != _SCALE:
                raise self.refuse(what, f"be {_SCALE.decode()}", repr(fact.text[:40]))
        elif fact.name == "DIMENSION_LIST":
            axes = len(entry.shape or ())
            if fact.kind.family != "references" or fact.shape != (axes,):
                raise self.refuse(what, f"be a list of references for each of {axes} axes", found)
        elif fact.name == "REFERENCE_LIST":
            if fact.kind.family != "pairs" or len(fact.shape) != 1:
                raise self.refuse(what, "be a list of references and axes", found)
        elif (
            not fact.kind.name[1:].startswith(("i", "u"))
            or len(fact.shape) > 1
            or sum(fact.shape) > _BOOKKEEPING_NUMBERS
        ):
            raise self.refuse(what, "be a few whole numbers", found)


def check_budget(path: Path, entries: Iterable[Entry], *, size: int, limit: int) -> None:
    """Refuse a file that asks for more than it can hold, or than a reader can take.

    Args:
        path: the file.
        entries: everything in it, the entries of a group one after another.
        size: bytes of the file.
        limit: bytes that one array may take in memory.

    Raises:
        SpectrumFileError: naming the entry.
    """
    asked, group = _Asked(path, size, limit), ""
    for entry in entries:
        parent, _, name = entry.path.rpartition("/")
        if name and not _NAME.fullmatch(name):
            raise asked.refuse(parent or "/", "have plain names", f"{name[:40]!r}")
        asked.check_attributes(entry)
        if parent != group:
            asked.whole, group = 0, parent
        if entry.shape is None:
            continue
        asked.add_variable(entry, entry.shape)
        if asked.whole > _WHOLE_LIMIT:
            raise SpectrumFileError(
                f"{path}: {group} must take at most {_WHOLE_LIMIT} bytes in variables that are read at once, got "
                f"{asked.whole}. Measure fewer sequences into one file."
            )
