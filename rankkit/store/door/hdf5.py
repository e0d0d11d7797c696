"""The one door to h5py: files are looked at before they are read.

`opened` reads how the whole file is laid out before HDF5 does, without reading data, and refuses what points elsewhere, runs
in circles or would be too much for HDF5 (rankkit.store.door.blueprint), and what asks for more than it can hold
(rankkit.store.door.budget); nothing else in this package opens a spectrum file for reading.
"""

from __future__ import annotations

import contextlib
import math
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store.door.attributes import attributes_of, sha256_of_attributes, sha256_of_strings
from rankkit.store.door.blueprint import Entry, blueprint_of
from rankkit.store.door.budget import check_budget
from rankkit.store.door.chunks import whole_chunks
from rankkit.store.door.library import damage, h5py, is_text, refusal
from rankkit.store.door.unpacking import ChunkReader
from rankkit.store.schema import SCHEMA_VERSION

__all__ = [
    "DEFAULT_LIMIT",
    "array_reader",
    "attributes_of",
    "axis_names",
    "blocks_of",
    "datasets_in",
    "entries_of",
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

_STRING_LIMIT = 16 << 20  # bytes of text read from one dataset; a configuration is a few kilobytes
_LABEL_LIMIT = 4096  # characters of one label in an array of labels
_LABELS_BYTES = 64 << 20  # of an array of labels, in which NumPy gives every label the room of the longest
_CACHE_BYTES = 1 << 20  # of chunks, for each open dataset: hundreds are open while a file is verified
_VERSION = re.compile(r"\d[0-9A-Za-z.+]{0,30}")


@contextlib.contextmanager
def opened(path: str | Path, *, limit: int = DEFAULT_LIMIT) -> Iterator[h5py.File]:
    """Open one of our files for reading, once it is known how it is laid out.

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
    file, entries = _open(path)
    try:
        with damage(path, "its structure"):
            _check_identity(file, path)
            check_budget(path, entries, size=path.stat().st_size, limit=limit)
            file.visit(lambda name: None)  # HDF5 looks at every header, and compares its checksum
            if attributes_of(file).get("complete") != 1:
                raise SpectrumFileError(f"{path} must be complete, got an unfinished file. Measure again.")
        yield file
    finally:
        file.close()


def _open(path: Path) -> tuple[h5py.File, list[Entry]]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise SpectrumFileError(f"{path} must be an HDF5 file, got {found}. Check the path.")
    with damage(path, "the file"):
        start = _first_bytes(path)
        if not start:
            raise SpectrumFileError(f"{path} must be an HDF5 file, got an empty one. Measure again.")
        if not h5py.is_hdf5(path):
            raise SpectrumFileError(f"{path} must be an HDF5 file, got one that starts with {start!r}. Check the path.")
        entries = blueprint_of(path)
        return h5py.File(path, "r", locking="best-effort", rdcc_nbytes=_CACHE_BYTES), entries


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
    if not (major.isdecimal() and major.isascii()):
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


def axis_names(dataset: h5py.Dataset) -> list[list[str]]:
    """The names of the dimension scales attached to every axis; one that stands nowhere in the file is "".

    Raises:
        SpectrumFileError: the labels are damaged.
    """
    with damage(dataset.file.filename, f"the axes of {dataset.name}"):
        return [[(scale.name or "").rpartition("/")[2] for scale in axis.values()] for axis in dataset.dims]


def has_all_chunks(dataset: h5py.Dataset) -> bool:
    """Whether every chunk is stored once, through every filter, and one of these is a checksum.

    A lost chunk reads as fill values and a chunk that skips a filter evades its checksum, both in silence.

    Raises:
        SpectrumFileError: the index is damaged.
    """
    plan = dataset.id.get_create_plist()
    if h5py.h5z.FILTER_FLETCHER32 not in {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}:
        return False
    counts = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    stored, strange = (
        array("q"),
        array("q"),
    )  # of places in the grid of chunks; lists of tuples would take 30 times more

    def visit(chunk: Any) -> None:
        place = 0
        for offset, size, count in zip(chunk.chunk_offset, dataset.chunks, counts, strict=True):
            place = place * count + offset // size
        stored.append(place)
        if chunk.filter_mask:
            strange.append(place)

    with damage(dataset.file.filename, f"the chunks of {dataset.name}"):
        dataset.id.chunk_iter(visit)
    expected = math.prod(counts)
    return not strange and len(stored) == expected and bool((np.sort(stored) == np.arange(expected)).all())


def blocks_of(dataset: h5py.Dataset) -> Iterator[tuple[slice, ...]]:
    """Selections that together are a numeric variable, by `whole_chunks`."""
    chunks = dataset.chunks or (1,) * dataset.ndim
    return whole_chunks(dataset.shape, chunks, dataset.dtype.itemsize)


def datasets_in(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The datasets directly inside a group, by name."""
    return {name: entry for name, entry in entries_of(group) if isinstance(entry, h5py.Dataset)}


def entries_of(group: h5py.Group) -> list[tuple[str, h5py.Group | h5py.Dataset]]:
    """What lies directly inside a group, by name; `group.items()` would hold h5py's lock from one to the next."""
    return [(name, group[name]) for name in list(group)]


def read_strings(dataset: h5py.Dataset) -> list[str]:
    """Read a text dataset, entry by entry so that many entries cannot all point at one large text.

    Returns:
        The texts, in storage order.

    Raises:
        SpectrumFileError: it holds no text, is damaged, not UTF-8, or longer than any we write.
    """
    if not is_text(dataset.dtype):
        raise refusal(dataset, dataset.name, "hold UTF-8 text", f"type {dataset.dtype}")
    texts: list[str] = []
    total = longest = 0
    with damage(dataset.file.filename, dataset.name):
        for index in np.ndindex(dataset.shape):
            stored = dataset[index]
            texts.append(stored.decode("utf-8"))
            total, longest = total + len(stored), max(longest, len(texts[-1]))
            if total > _STRING_LIMIT or (dataset.shape and longest > _LABEL_LIMIT):
                raise refusal(dataset, dataset.name, "hold short texts", f"more than {longest} characters")
    if dataset.shape and 4 * longest * len(texts) > _LABELS_BYTES:
        raise refusal(dataset, dataset.name, "hold short texts", f"{len(texts)} of up to {longest} characters")
    return texts


def read_array(dataset: h5py.Dataset, selection: Any = ...) -> NDArray[Any]:
    """Read a dataset, or a selection of a numeric one.

    Returns:
        Numbers in the stored type; texts as NumPy strings, whatever the selection.

    Raises:
        SpectrumFileError: it is damaged.
    """
    return array_reader(dataset)(selection)


def array_reader(dataset: h5py.Dataset) -> Callable[[Any], NDArray[Any]]:
    """What reads one dataset again and again, as `read_array` does, and unpacks no chunk twice in a row.

    Args:
        dataset: of an open file.

    Returns:
        Takes a selection.
    """
    path, name = dataset.file.filename, dataset.name
    if is_text(dataset.dtype):
        return lambda _: np.asarray(read_strings(dataset), dtype=np.str_).reshape(dataset.shape)
    with damage(path, name):
        read = ChunkReader(dataset).read if dataset.chunks else dataset.__getitem__

    def guarded(selection: Any) -> NDArray[Any]:
        with damage(path, name):
            return np.asarray(read(selection))

    return guarded
