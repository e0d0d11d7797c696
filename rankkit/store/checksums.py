"""Whether every chunk and every text of a file is what was written: each is read once and held against its checksum."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankkit.errors import SpectrumFileError
from rankkit.store.door.chunks import matches_checksum
from rankkit.store.door.hdf5 import (
    attributes_of,
    blocks_of,
    h5py,
    has_all_chunks,
    read_array,
    read_strings,
    sha256_of_attributes,
    sha256_of_strings,
)
from rankkit.store.door.library import damage
from rankkit.store.schema import ATTRIBUTES_SUM

__all__ = ["damaged_parts"]


def damaged_parts(file: h5py.File, *, unpack: bool = True) -> Iterator[str]:
    """What does not match its checksum: fletcher32 speaks up on numbers, SHA-256 on texts and text attributes.

    Args:
        file: from `rankkit.store.door.hdf5.opened`, with the structure of the schema.
        unpack: whether chunks are also unpacked. In a file of our own the checksum of what is stored says it all.

    Yields:
        One line for each variable, and one for the attributes.
    """
    if sha256_of_attributes(file) != attributes_of(file).get(ATTRIBUTES_SUM):
        yield "attributes must match their checksum, got other texts"
    datasets: list[h5py.Dataset] = []

    def collect(_: str, entry: h5py.Group | h5py.Dataset) -> None:
        if isinstance(entry, h5py.Dataset):
            datasets.append(entry)

    file.visititems(collect)
    with Path(file.filename).open("rb") as raw:
        for dataset in datasets:
            name = dataset.name.removeprefix("/")
            try:
                yield from (
                    f"{name} must {problem}" for problem in _problems(dataset, None if unpack else raw.fileno())
                )
            except SpectrumFileError:
                yield f"{name} must match its checksum, got a damaged chunk"


def _problems(dataset: h5py.Dataset, descriptor: int | None) -> Iterator[str]:
    """What is wrong with one variable, whose stored chunks are read from a descriptor, or through HDF5."""
    if dataset.chunks and descriptor is not None:
        yield from _stored_problems(dataset, descriptor)
    elif dataset.chunks:
        if not has_all_chunks(dataset):
            yield "have every chunk, got a lost or unchecked one"
        for block in blocks_of(dataset):
            read_array(dataset, block)
    elif dataset.dtype.kind in "iuf":
        yield "have a checksum, got numbers that lie in one piece"
    elif sha256_of_strings(read_strings(dataset)) != attributes_of(dataset).get("sha256"):
        yield "match its checksum, got another text"


def _stored_problems(dataset: h5py.Dataset, descriptor: int) -> Iterator[str]:
    """The same of a variable whose chunks all have a checksum and are asked for it as they lie in the file."""
    places: set[tuple[int, int]] = set()
    filters = 0

    def visit(chunk: Any) -> None:
        nonlocal filters
        places.add((chunk.byte_offset, chunk.size))
        filters |= chunk.filter_mask

    with damage(dataset.file.filename, f"the chunks of {dataset.name}"):
        dataset.id.chunk_iter(visit)
    expected = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    if filters or len(places) != expected:
        yield "have every chunk, got a lost or unchecked one"
    elif not all(matches_checksum(os.pread(descriptor, size, offset)) for offset, size in sorted(places)):
        yield "match its checksum, got a damaged chunk"
