"""The one door to h5py: files are looked at before they are read.

An HDF5 file may point at other files (external links, external storage, virtual datasets), name filters to load from
shared libraries, declare terabytes in a few kilobytes, or run in circles. `opened` walks the whole file without
reading data and refuses all of that; nothing else in this package opens a file for reading.

Importing this module sets HDF5_PLUGIN_PRELOAD to "::", unless it is set already, before h5py is imported: HDF5 then
loads no filter plugin from anywhere. It is the only side effect of importing rankkit.store.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store.heaps import broken_heap
from rankkit.store.schema import ATTRIBUTES_SUM, SCHEMA_VERSION

os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")
import h5py  # after the environment variable, which HDF5 reads when it is loaded

__all__ = [
    "DEFAULT_LIMIT",
    "attributes_of",
    "axis_names",
    "datasets_in",
    "h5py",
    "has_all_chunks",
    "is_newer",
    "opened",
    "read_array",
    "read_strings",
    "sha256_of_attributes",
    "sha256_of_strings",
]

DEFAULT_LIMIT = 8 << 30
"""Bytes that one array may take in memory: more than the arrays we expect, less than a workstation has."""

_CHUNK_LIMIT = 64 << 20  # bytes of one chunk, which HDF5 allocates whole; ours are at most 1 MiB
_STRING_LIMIT = 64 << 20  # bytes of text read from one dataset; a configuration is a few kilobytes
_LABEL_LIMIT = 4096  # characters of one label in an array of labels
_LABELS_LIMIT = 100_000  # labels in one array
_OBJECTS_LIMIT = 10_000  # groups and datasets in one file; two arms with all baselines and brackets hold 2000
_DEPTH_LIMIT = 8  # groups inside groups; ours reach 3
_ATTRIBUTE_LIMIT = 1024  # numbers in one attribute
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_NUMBERS = {np.dtype(name) for name in ("<f8", "<f4", "<i8", "<i4", "<i1")}
_NETCDF_ATTRIBUTES = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates"}
_VERSION = re.compile(r"\d[0-9A-Za-z.+]{0,30}")

# What h5py raises on a damaged file: it maps each class of HDF5's own errors to one of these.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@contextlib.contextmanager
def _damage(path: str | Path, what: str) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into one line that names the file and the part."""
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise SpectrumFileError(
            f"{path}: {what} must be readable, got {reason!r}. The file is damaged or cut short; "
            "restore a copy of it or measure again."
        ) from error


def _refuse(file: h5py.File | h5py.Group | h5py.Dataset, name: str, must: str, found: object) -> SpectrumFileError:
    return SpectrumFileError(
        f"{file.file.filename}: {name} must {must}, got {found}. "
        "Do not use this file; no version of rankkit writes such."
    )


@contextlib.contextmanager
def opened(path: str | Path, *, limit: int = DEFAULT_LIMIT) -> Iterator[h5py.File]:
    """Open one of our files for reading, after a walk that reads no data.

    Args:
        path: the file.
        limit: bytes that one array may take in memory.

    Yields:
        The open file, in which every link is a plain one to a dataset or group inside the file, every dataset is of a
        known type and size, and the schema is one this version reads.

    Raises:
        SpectrumFileError: the file is missing, not HDF5, cut short, foreign, of a newer schema, unfinished, or holds
            something that no version of rankkit writes.
    """
    path = Path(path)
    file = _open(path)
    try:
        with _damage(path, "its structure"):
            _check_identity(file, path)
            _walk(file, limit)
            if attributes_of(file).get("complete") != 1:
                raise SpectrumFileError(f"{path} must be complete, got an unfinished file. Measure again.")
        yield file
    finally:
        file.close()


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise SpectrumFileError(f"{path} must be an HDF5 file, got {found}. Check the path.")
    with _damage(path, "the file"):
        start = _first_bytes(path)
        if not start:
            raise SpectrumFileError(f"{path} must be an HDF5 file, got an empty one. Measure again.")
        if not h5py.is_hdf5(path):
            raise SpectrumFileError(f"{path} must be an HDF5 file, got one that starts with {start!r}. Check the path.")
        heap = broken_heap(path)
        if heap is not None:
            raise SpectrumFileError(
                f"{path} must hold whole text heaps, got a broken one at byte {heap}. The file is damaged; "
                "restore a copy of it or measure again."
            )
        return h5py.File(path, "r", locking="best-effort")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            return raw.read(8)
    except PermissionError as error:
        raise SpectrumFileError(
            f"{path} must be readable, got: permission denied. Ask its owner for access."
        ) from error


def _check_identity(file: h5py.File, path: Path) -> None:
    if "rankkit_schema" not in file.attrs:
        raise SpectrumFileError(
            f"{path} must be written by rankkit, got an HDF5 file without rankkit_schema. Check the path."
        )
    attributes = attributes_of(file)
    schema, version = str(attributes["rankkit_schema"]), str(attributes.get("rankkit_version", ""))
    major = schema.split(".")[0]
    if not major.isdigit():
        raise SpectrumFileError(
            f"{path}: rankkit_schema must be a version such as {SCHEMA_VERSION}, got {schema[:20]!r}. Restore a copy."
        )
    ours = SCHEMA_VERSION.split(".")[0]
    if int(major) > int(ours):
        newer = version if _VERSION.fullmatch(version) else "of the machine that wrote it"
        raise SpectrumFileError(
            f"{path} must follow schema {ours}.x, got {schema[:20]!r}. Install rankkit {newer} or newer to read it."
        )


def is_newer(file: h5py.File) -> bool:
    """Whether a file follows a later minor schema than ours, and so may hold what we do not know."""
    major, _, minor = str(attributes_of(file)["rankkit_schema"]).partition(".")
    ours = tuple(map(int, SCHEMA_VERSION.split(".")))
    return minor.isdecimal() and minor.isascii() and (int(major), int(minor[:9])) > ours


def _walk(root: h5py.File, limit: int) -> None:
    """Visit every object once, without reading data, and refuse what could read elsewhere or ask for too much."""
    seen: set[int] = {h5py.h5o.get_info(root["/"].id).addr}
    waiting: list[tuple[h5py.Group, int]] = [(root, 0)]
    while waiting:
        group, depth = waiting.pop()
        attributes_of(group)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _refuse(root, f"{group.name}/{name}", "be inside the file", "a link to elsewhere")
            entry = group[name]
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen:
                raise _refuse(root, f"{group.name}/{name}", "have one name", "a second name for the same object")
            seen.add(address)
            if len(seen) > _OBJECTS_LIMIT or depth >= _DEPTH_LIMIT:
                raise _refuse(
                    root, group.name, "be small", f"more than {_OBJECTS_LIMIT} objects or {_DEPTH_LIMIT} levels"
                )
            if isinstance(entry, h5py.Group):
                waiting.append((entry, depth + 1))
            elif isinstance(entry, h5py.Dataset):
                _check_dataset(entry, limit)
            else:
                raise _refuse(root, entry.name, "be a dataset or a group", "a named type")


def _check_dataset(dataset: h5py.Dataset, limit: int) -> None:
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise _refuse(dataset, dataset.name, "hold its data", "a virtual dataset")
    if plan.get_external_count():
        raise _refuse(dataset, dataset.name, "hold its data", "external storage")
    filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    if not filters <= _FILTERS:
        raise _refuse(dataset, dataset.name, "use gzip, shuffle and fletcher32 only", f"filters {sorted(filters)}")
    if dataset.shape is None:
        raise _refuse(dataset, dataset.name, "have a shape", "an empty one")
    text = _is_text(dataset.dtype)
    if not text and dataset.dtype not in _NUMBERS:
        raise _refuse(dataset, dataset.name, "hold numbers or UTF-8 text", f"type {dataset.dtype}")
    count = math.prod(dataset.shape)
    if text and (filters or count > _LABELS_LIMIT):
        raise _refuse(dataset, dataset.name, f"hold at most {_LABELS_LIMIT} plain labels", f"{count}")
    size, chunk = count * dataset.dtype.itemsize, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if size > limit or chunk > _CHUNK_LIMIT:
        raise SpectrumFileError(
            f"{dataset.file.filename}: {dataset.name} must take at most {limit} bytes, in chunks of at most "
            f"{_CHUNK_LIMIT}, got {size} in chunks of {chunk}. Raise the limit if you trust the file."
        )
    attributes_of(dataset)


def _is_text(dtype: np.dtype[Any]) -> bool:
    info = h5py.check_string_dtype(dtype)
    return info is not None and info.length is None and info.encoding == "utf-8"


def attributes_of(entry: h5py.File | h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """The attributes of a file, group or dataset, without those that belong to netCDF-4's own bookkeeping.

    Returns:
        str, int or float by name; a one-dimensional attribute becomes an array.

    Raises:
        SpectrumFileError: an attribute is of a type or size that we never write.
    """
    attributes: dict[str, Any] = {}
    for name in entry.attrs:
        if name in _NETCDF_ATTRIBUTES:
            continue
        identifier = entry.attrs.get_id(name)
        text = _is_text(identifier.dtype)
        if not text and identifier.dtype.kind not in "iuf":
            raise _refuse(entry, f"attribute {name!r}", "be text or a number", f"type {identifier.dtype}")
        if len(identifier.shape) > 1 or math.prod(identifier.shape) > _ATTRIBUTE_LIMIT or (text and identifier.shape):
            raise _refuse(entry, f"attribute {name!r}", "be small", f"shape {identifier.shape}")
        value = entry.attrs[name]
        if isinstance(value, str):
            value.encode("utf-8")  # h5py lets other bytes through as surrogates, which nothing can print: damage
        attributes[name] = value.item() if isinstance(value, np.generic) else value
    return attributes


def axis_names(dataset: h5py.Dataset) -> list[list[str]]:
    """The names of the dimension scales attached to every axis.

    Raises:
        SpectrumFileError: the labels are damaged.
    """
    with _damage(dataset.file.filename, f"the axes of {dataset.name}"):
        return [[scale.name.rpartition("/")[2] for scale in axis.values()] for axis in dataset.dims]


def has_all_chunks(dataset: h5py.Dataset) -> bool:
    """Whether every chunk is stored once, through every filter.

    A lost chunk reads as fill values and a chunk that skips a filter evades its checksum, both in silence.

    Raises:
        SpectrumFileError: the index is damaged.
    """
    stored: list[tuple[int, ...]] = []
    filtered: list[bool] = []

    def visit(chunk: Any) -> None:
        stored.append(tuple(chunk.chunk_offset))
        filtered.append(chunk.filter_mask == 0)

    with _damage(dataset.file.filename, f"the chunks of {dataset.name}"):
        dataset.id.chunk_iter(visit)
    starts = [range(0, size, chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    return all(filtered) and sorted(stored) == list(product(*starts))


def datasets_in(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The datasets directly inside a group, by name."""
    return {name: entry for name, entry in group.items() if isinstance(entry, h5py.Dataset)}


def read_strings(dataset: h5py.Dataset) -> list[str]:
    """Read a text dataset, entry by entry so that many entries cannot all point at one large text.

    Returns:
        The texts, in storage order.

    Raises:
        SpectrumFileError: it is damaged, not UTF-8, or longer than any we write.
    """
    texts: list[str] = []
    total = 0
    with _damage(dataset.file.filename, dataset.name):
        for index in np.ndindex(dataset.shape):
            text = dataset[index].decode("utf-8")
            total += len(text)
            if total > _STRING_LIMIT or (dataset.shape and len(text) > _LABEL_LIMIT):
                raise _refuse(dataset, dataset.name, "hold short texts", f"more than {len(text)} characters")
            texts.append(text)
    return texts


def read_array(dataset: h5py.Dataset, selection: Any = ...) -> NDArray[Any]:
    """Read a dataset, or a selection of a numeric one.

    Returns:
        Numbers in the stored type; texts as NumPy strings, whatever the selection.

    Raises:
        SpectrumFileError: it is damaged.
    """
    if _is_text(dataset.dtype):
        return np.asarray(read_strings(dataset), dtype=np.str_).reshape(dataset.shape)
    with _damage(dataset.file.filename, dataset.name):
        return np.asarray(dataset[selection])


def sha256_of_attributes(file: h5py.File) -> str:
    """SHA-256, in hexadecimal, of every text attribute in a file, which HDF5 stores without a checksum.

    The root attribute that holds this very sum is left out.
    """
    entries: list[tuple[str, h5py.Group | h5py.Dataset]] = [("/", file)]
    file.visititems(lambda name, entry: entries.append((name, entry)))
    return sha256_of_strings(
        f"{path} {name} {value}"
        for path, entry in sorted(entries, key=lambda item: item[0])
        for name, value in sorted(attributes_of(entry).items())
        if isinstance(value, str) and (path, name) != ("/", ATTRIBUTES_SUM)
    )


def sha256_of_strings(texts: Iterable[str]) -> str:
    """SHA-256, in hexadecimal, of texts joined by NUL: the checksum of text, which fletcher32 cannot cover."""
    return hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()
