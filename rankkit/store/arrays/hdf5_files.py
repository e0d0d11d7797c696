"""Arrays in HDF5 files of any origin: no link is followed, no other file read, no plugin loaded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store.arrays.stored import ArrayEntry, ArrayFile, StoredArray, check, damage, no_array, shown
from rankkit.store.door.heaps import broken_heap
from rankkit.store.door.inflation import InflationGuard
from rankkit.store.door.library import h5py

__all__ = ["open_hdf5"]

_CHUNK_LIMIT = 64 << 20  # bytes of one chunk, which HDF5 allocates whole, thrice
_OBJECTS_LIMIT = 10_000  # groups and datasets: one per head of a large model
_DEPTH_LIMIT = 8  # groups inside groups
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}


def open_hdf5(path: Path, limit: int) -> ArrayFile:
    """An HDF5 file of any origin.

    Args:
        path: plain, or with gzip, shuffle, fletcher32 or lzf.
        limit: bytes that one array may take in memory.

    Returns:
        What it holds; only headers are read.

    Raises:
        SpectrumFileError: it is one of our own files.
        OSError, RuntimeError, KeyError, ValueError: it is damaged, or holds too many objects.
    """
    heap = broken_heap(path)
    if heap is not None:
        raise ValueError(f"a broken text heap at byte {heap}")
    with contextlib.ExitStack() as opening:
        file = opening.enter_context(h5py.File(path, "r", locking="best-effort"))
        if "rankkit_schema" in file.attrs:
            raise SpectrumFileError(
                f"{path} must hold arrays of another tool, got a file that rankkit wrote. Measure it without --mask."
            )
        return ArrayFile(path=path, entries=dict(_entries(file, path, limit)), close=opening.pop_all().close)


def _entries(root: h5py.File, path: Path, limit: int) -> Iterator[tuple[str, ArrayEntry]]:
    """Every dataset and link, visited once, without reading data."""
    seen = {h5py.h5o.get_info(root["/"].id).addr}
    waiting: list[tuple[str, h5py.Group]] = [("", root)]
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            inner = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield inner, no_array(path, inner, "a link")
                continue
            entry = group[name]
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _OBJECTS_LIMIT or inner.count("/") > _DEPTH_LIMIT:
                raise ValueError(f"more than {_OBJECTS_LIMIT} objects or {_DEPTH_LIMIT} levels")
            if isinstance(entry, h5py.Group):
                waiting.append((f"{inner}/", entry))
            elif isinstance(entry, h5py.Dataset):
                yield inner, _dataset(path, inner, entry, limit)


def _dataset(path: Path, name: str, dataset: h5py.Dataset, limit: int) -> ArrayEntry:
    if dataset.shape is None or dataset.id.get_type().get_class() not in (h5py.h5t.FLOAT, h5py.h5t.INTEGER):
        return no_array(path, name, "no numbers")
    shape, dtype = dataset.shape, dataset.dtype

    def opened() -> StoredArray:
        check(path, name, shape, dtype, limit)
        _check_storage(path, name, dataset)
        with damage(path, shown(name)):
            guard = InflationGuard(dataset)

        def read(part: tuple[slice, ...]) -> NDArray[Any]:
            with damage(path, shown(name)):
                guard.check(part)
                return np.asarray(dataset[part])

        return StoredArray(name=name, shape=shape, dtype=dtype.newbyteorder("="), read=read)

    return ArrayEntry(shape=shape, kind=dtype.name, open=opened)


def _check_storage(path: Path, name: str, dataset: h5py.Dataset) -> None:
    """Refuse a dataset whose values lie elsewhere, go through unknown filters, or come in huge chunks."""
    with damage(path, shown(name)):
        plan = dataset.id.get_create_plist()
        elsewhere = plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count()
        filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
        chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if elsewhere:
        raise SpectrumFileError(
            f"{path}: {shown(name)} must hold its values, got a view of other files. Copy the values into this file."
        )
    if not filters <= _FILTERS:
        raise SpectrumFileError(
            f"{path}: {shown(name)} must be plain or use gzip, lzf, shuffle and fletcher32 only, got filters "
            f"{sorted(filters - _FILTERS)}. Copy it with h5repack -f GZIP=1."
        )
    if chunk > _CHUNK_LIMIT:
        raise SpectrumFileError(
            f"{path}: {shown(name)} must have chunks of at most {_CHUNK_LIMIT} bytes, got {chunk}. Copy it with h5repack -l."
        )
