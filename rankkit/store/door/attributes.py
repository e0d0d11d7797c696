"""Attributes of what was looked at before, and their checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from rankkit.store.door.library import damage, h5py
from rankkit.store.schema import ATTRIBUTES_SUM

__all__ = ["attributes_of", "sha256_of_attributes", "sha256_of_strings"]

Entry: TypeAlias = h5py.File | h5py.Group | h5py.Dataset

_BOOKKEEPING = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates"}


def attributes_of(entry: Entry) -> dict[str, Any]:
    """The attributes of a file, group or dataset, without those that belong to netCDF-4's own bookkeeping.

    Args:
        entry: in a file from `rankkit.store.door.hdf5.opened`, or one that is being written.

    Returns:
        str, int or float by name; a one-dimensional attribute of a variable becomes an array.

    Raises:
        SpectrumFileError: they are damaged.
    """
    with damage(entry.file.filename, f"the attributes of {entry.name}"):
        values = {name: entry.attrs[name] for name in entry.attrs if name not in _BOOKKEEPING}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


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
    digest, separator = hashlib.sha256(), b""
    for text in texts:
        digest.update(separator + text.encode("utf-8"))
        separator = b"\0"
    return digest.hexdigest()
