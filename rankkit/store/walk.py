"""A walk through a whole file that reads no data, and what it refuses.

A few kilobytes of HDF5 can point at other files, name filters to load from shared libraries, run in circles, declare
terabytes, or a million variables of one number. What a file may ask for is bounded by what it holds: compressed data
unpacks to at most 1032 times its size, and every chunk takes some bytes of index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store.attributes import attributes_of, check_bookkeeping, check_name
from rankkit.store.library import h5py, is_text, refusal
from rankkit.store.schema import AXIS_VARIABLES, COMPARISON, FUNCTIONAL

__all__ = ["LABELS_LIMIT", "walk"]

LABELS_LIMIT: Final = 100_000
"""Labels along one axis of SPECTRUM_AXES, and texts in one file: every one becomes an object of Python."""

_POSITIONS_LIMIT = 1 << 20  # labels along any other axis, such as key and component
_WHOLE_LIMIT = 64 << 20  # bytes that variables read at once take, of one group: tokens for 13 million positions
_CHUNK_LIMIT = 16 << 20  # bytes of one chunk, which HDF5 allocates whole, thrice; ours are at most 1 MiB
_UNPACKED = 1032  # deflate packs no better than 1032 to 1
_INDEX_BYTES = 8  # of an entry of the smallest index of chunks
_SLACK = 1 << 20  # bytes that any file may declare: a small one with a lost chunk is damaged, not hostile
_OBJECTS_LIMIT = 10_000  # groups and datasets in one file; two arms with all baselines and brackets hold 2000
_DEPTH_LIMIT = 8  # groups inside groups; ours reach 3
_ATTRIBUTES_LIMIT = 16 << 20  # characters of all attributes together
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_NUMBERS = {np.dtype(name) for name in ("<f8", "<f4", "<i8", "<i4", "<i1")}


def walk(root: h5py.File, *, size: int, limit: int) -> None:
    """Visit every object once, without reading data, and refuse what could read elsewhere or ask for too much.

    Args:
        root: an open file.
        size: bytes of the file.
        limit: bytes that one array may take in memory.

    Raises:
        SpectrumFileError: the file holds something that no version of rankkit writes, or an array beyond the limit.
    """
    seen: set[int] = {h5py.h5o.get_info(root["/"].id).addr}
    waiting: list[tuple[h5py.Group, int]] = [(root["/"], 0)]
    asked = _Asked(size)
    while waiting:
        group, depth = waiting.pop()
        asked.add_attributes(group)
        whole = 0
        for name in group:
            entry = _entry(group, name)
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen:
                raise refusal(root, _path(group, name), "have one name", "a second name for the same object")
            seen.add(address)
            if len(seen) > _OBJECTS_LIMIT or depth >= _DEPTH_LIMIT:
                found = f"more than {_OBJECTS_LIMIT} objects or {_DEPTH_LIMIT} levels"
                raise refusal(root, group.name, "be small", found)
            if isinstance(entry, h5py.Group):
                waiting.append((entry, depth + 1))
            elif isinstance(entry, h5py.Dataset):
                _check_dataset(entry, limit)
                asked.add_dataset(entry)
                whole += _read_at_once(entry)
            else:
                raise refusal(root, entry.name, "be a dataset or a group", "a named type")
        if whole > _WHOLE_LIMIT:
            raise SpectrumFileError(
                f"{root.filename}: {group.name} must take at most {_WHOLE_LIMIT} bytes in variables that are read at once, "
                f"got {whole}. Measure fewer sequences into one file."
            )


def _entry(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """What stands behind a link, once the link itself was looked at."""
    check_name(group, name)
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise refusal(group, _path(group, name), "be inside the file", "a link to elsewhere")
    return group[name]


def _path(group: h5py.Group, name: str) -> str:
    return f"{group.name.rstrip('/')}/{name}"


def _check_dataset(dataset: h5py.Dataset, limit: int) -> None:
    """Where the data lies, through which filters it goes, and what it takes in memory."""
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise refusal(dataset, dataset.name, "hold its data", "a virtual dataset")
    if plan.get_external_count():
        raise refusal(dataset, dataset.name, "hold its data", "external storage")
    filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    if not filters <= _FILTERS:
        raise refusal(dataset, dataset.name, "use gzip, shuffle and fletcher32 only", f"filters {sorted(filters)}")
    if dataset.shape is None:
        raise refusal(dataset, dataset.name, "have a shape", "an empty one")
    text, count = is_text(dataset.dtype), math.prod(dataset.shape)
    if not text and dataset.dtype not in _NUMBERS:
        raise refusal(dataset, dataset.name, "hold numbers or UTF-8 text", f"type {dataset.dtype}")
    if text and (filters or dataset.chunks or count > LABELS_LIMIT):
        raise refusal(dataset, dataset.name, f"hold at most {LABELS_LIMIT} plain labels", count)
    axis = dataset.name.rpartition("/")[2]
    if axis in AXIS_VARIABLES and count > (most := LABELS_LIMIT if axis in SPECTRUM_AXES else _POSITIONS_LIMIT):
        raise refusal(dataset, dataset.name, f"hold at most {most} labels", count)
    size, chunk = count * dataset.dtype.itemsize, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if size > limit or chunk > _CHUNK_LIMIT:
        raise SpectrumFileError(
            f"{dataset.file.filename}: {dataset.name} must take at most {limit} bytes, in chunks of at most "
            f"{_CHUNK_LIMIT}, got {size} in chunks of {chunk}. Raise the limit if you trust the file."
        )


def _read_at_once(dataset: h5py.Dataset) -> int:
    """Bytes of a variable that readers take whole: what does not depend on a matrix, and everything of comparisons."""
    few_axes = dataset.ndim <= 2
    first = dataset.name.split("/")[1]
    return int(dataset.nbytes) if few_axes or first in (COMPARISON, FUNCTIONAL) else 0


@dataclass(slots=True)
class _Asked:
    """What a file has asked for so far."""

    size: int
    declared: int = 0
    chunks: int = 0
    texts: int = 0
    characters: int = 0

    def add_attributes(self, entry: h5py.Group | h5py.Dataset) -> None:
        """Look at all attributes of an entry and count their characters."""
        check_bookkeeping(entry)
        texts = (value for value in attributes_of(entry).values() if isinstance(value, str))
        self.characters += sum(map(len, texts))
        if self.characters > _ATTRIBUTES_LIMIT:
            raise refusal(entry, "attributes", "be small together", f"more than {_ATTRIBUTES_LIMIT} characters")

    def add_dataset(self, dataset: h5py.Dataset) -> None:
        """Count what a dataset declares, against what the file can hold."""
        self.add_attributes(dataset)
        self.declared += int(dataset.nbytes)
        pairs = zip(dataset.shape, dataset.chunks or dataset.shape, strict=True)
        self.chunks += math.prod(-(-length // part) for length, part in pairs if part)
        self.texts += math.prod(dataset.shape) if is_text(dataset.dtype) else 0
        if self.texts > LABELS_LIMIT:
            raise refusal(dataset, dataset.name, f"hold at most {LABELS_LIMIT} labels together", self.texts)
        for found, most, what in (
            (self.declared, _UNPACKED * self.size + _SLACK, "bytes declared"),
            (self.chunks, self.size // _INDEX_BYTES + _OBJECTS_LIMIT, "chunks"),
        ):
            if found > most:
                raise refusal(
                    dataset, dataset.name, "hold what it declares", f"{found} {what} in a file of {self.size}"
                )
