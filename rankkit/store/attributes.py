"""Attributes, looked at before they are believed, and their checksum.

Dimension scales and netCDF-4 keep books of their own in attributes. HDF5's library copies some of them into buffers
without asking how large they are, so that their types and sizes are checked here before any label of an axis is read.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from rankkit.store.library import h5py, is_text, refusal
from rankkit.store.schema import ATTRIBUTES_SUM

__all__ = ["attributes_of", "check_bookkeeping", "check_name", "sha256_of_attributes", "sha256_of_strings"]

Entry: TypeAlias = h5py.File | h5py.Group | h5py.Dataset

_NUMBERS_LIMIT = 1024  # numbers in one attribute
_TEXT_LIMIT = 1 << 16  # characters of one attribute; the longest that we write has 16384
_COUNT_LIMIT = 200  # attributes of one group or dataset; ours have about 20
_BOOKKEEPING = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates"}
_SCALE = b"DIMENSION_SCALE"  # of another class HDF5 2.0.0 frees something twice, and the process ends
_BOOKKEEPING_TEXT = 256  # bytes; HDF5 writes 16, netCDF-4 64
_BOOKKEEPING_NUMBERS = 64  # an HDF5 dataset has at most 32 axes
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def check_name(entry: Entry, name: str) -> None:
    """Check that the name of an entry or attribute can be shown as it is.

    Args:
        entry: where it stands.
        name: as HDF5 gives it.

    Raises:
        SpectrumFileError: it is not of letters, digits, "_", "-" and ".".
    """
    if not _NAME.fullmatch(name):
        raise refusal(entry, f"{entry.name}", "have plain names", f"{name[:40]!r}")


def attributes_of(entry: Entry) -> dict[str, Any]:
    """The attributes of a file, group or dataset, without those that belong to netCDF-4's own bookkeeping.

    Returns:
        str, int or float by name; a one-dimensional attribute becomes an array.

    Raises:
        SpectrumFileError: an attribute is of a name, type or size that we never write.
    """
    if len(entry.attrs) > _COUNT_LIMIT:
        raise refusal(entry, entry.name, f"have at most {_COUNT_LIMIT} attributes", len(entry.attrs))
    return {name: _attribute(entry, name) for name in entry.attrs if name not in _BOOKKEEPING}


def _attribute(entry: Entry, name: str) -> Any:
    """One attribute, of which type and size are looked at first."""
    check_name(entry, name)
    identifier = entry.attrs.get_id(name)
    text, shape, what = is_text(identifier.dtype), identifier.shape, f"attribute {name!r}"
    if not text and identifier.dtype.kind not in "iuf":
        raise refusal(entry, what, "be text or a number", f"type {identifier.dtype}")
    if identifier.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        raise refusal(entry, what, "hold something", "an empty one")
    if len(shape) > 1 or math.prod(shape) > _NUMBERS_LIMIT or (text and shape):
        raise refusal(entry, what, "be small", f"shape {shape}")
    value = entry.attrs[name]
    if isinstance(value, str):
        value.encode("utf-8")  # h5py lets other bytes through as surrogates, which nothing can print: damage
        if len(value) > _TEXT_LIMIT:
            raise refusal(entry, what, "be small", f"{len(value)} characters")
    return value.item() if isinstance(value, np.generic) else value


def check_bookkeeping(entry: Entry) -> None:
    """Check what dimension scales and netCDF-4 keep in attributes, before HDF5 reads it.

    Raises:
        SpectrumFileError: it is of a type or size that would let HDF5 read or write past a buffer, or that no library
            writes.
    """
    for name in _BOOKKEEPING & set(entry.attrs):
        identifier = entry.attrs.get_id(name)
        dtype, shape, what = identifier.dtype, identifier.shape, f"{name} of {entry.name}"
        if name in ("CLASS", "NAME"):
            if dtype.kind != "S" or shape or dtype.itemsize > _BOOKKEEPING_TEXT:
                raise refusal(entry, what, "be a short text", f"type {dtype} of shape {shape}")
            if name == "CLASS" and entry.attrs[name] != _SCALE:
                raise refusal(entry, what, f"be {_SCALE.decode()}", repr(entry.attrs[name]))
        elif name == "DIMENSION_LIST":
            axes = entry.ndim if isinstance(entry, h5py.Dataset) else 0
            lists = h5py.check_vlen_dtype(dtype)
            if lists is None or h5py.check_ref_dtype(lists) is not h5py.Reference or shape != (axes,):
                raise refusal(
                    entry, what, f"be a list of references for each of {axes} axes", f"type {dtype} of shape {shape}"
                )
        elif name == "REFERENCE_LIST":
            if dtype.names is None or len(dtype.names) != 2 or len(shape) != 1:
                raise refusal(entry, what, "be a list of references and axes", f"type {dtype} of shape {shape}")
        elif dtype.kind not in "iu" or len(shape) > 1 or math.prod(shape) > _BOOKKEEPING_NUMBERS:
            raise refusal(entry, what, "be a few whole numbers", f"type {dtype} of shape {shape}")


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
