"""Attention matrices, or the queries and keys they come from, that other tools saved.

    with read_arrays("attention.npz") as given:
        given.what, given.sequences, given.layers, given.heads
        given.block(slice(0, 8), layer=3, heads=range(given.heads))["attention"]    # "sequence head query key"

A file holds one of these, under these names:

- `attention`: "... query key";
- `queries` and `keys`, or `query` and `key`, `q` and `k`, `Q` and `K`: "... query feature" and "... key feature";
- exactly one array with two axes or more, of floats if anything is, under any other name: attention. So a .npy.

In HDF5 the named ones lie at the root. Anything else in the file is left alone. The axes are the trailing ones of "sequence
layer head query key": with two, one matrix; with three, a matrix for each head; with four, for each layer and head. Queries
and keys have as many axes as each other and the same sequences, layers and features. Keys may have fewer heads, whose number
divides that of the queries (grouped-query attention): with g heads of the queries for each of the keys, head j of the keys
serves heads j g to j g + g - 1 of the queries. Tools that store columns first, MATLAB among them, must reverse their axes
before they save to HDF5.

float16, float32 and float64 are read; bfloat16, for which files have no type, is to be saved as float32. What rounded the
entries then no longer shows in the type, but in the entries: see `GivenArrays.precision`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from rankkit.errors import SpectrumFileError
from rankkit.store.arrays.given import MOST_AXES, GivenArrays, all_axes
from rankkit.store.arrays.hdf5_files import open_hdf5
from rankkit.store.arrays.numpy_files import open_npy, open_npz
from rankkit.store.arrays.stored import ArrayEntry, ArrayFile, StoredArray, damage, shown
from rankkit.store.door.hdf5 import DEFAULT_LIMIT
from rankkit.store.door.library import h5py

__all__ = ["ATTENTION_NAME", "FACTOR_NAMES", "GivenArrays", "read_arrays"]

ATTENTION_NAME: Final = "attention"
"""What attention is called in a file."""

FACTOR_NAMES: Final = (("queries", "keys"), ("query", "key"), ("q", "k"), ("Q", "K"))
"""What queries and keys are called in a file."""

_LISTED = 8  # arrays named in a message


def read_arrays(path: str | Path, *, limit: int = DEFAULT_LIMIT) -> GivenArrays:
    """Open attention matrices, or queries and keys, that another tool saved; see the module's text for names and axes.

    Only what is declared is read now: names, shapes and types.

    Args:
        path: .npy, .npz or HDF5.
        limit: bytes that one array may take in memory.

    Returns:
        What reads the arrays by piece; close it, or use it as a context manager.

    Raises:
        SpectrumFileError: the file is missing, damaged or hostile, or does not hold what is described.
    """
    file = _file(Path(path), limit)
    try:
        names = _roles(file.path, file.entries)
        stored = {role: file.entries[name].open() for role, name in names.items()}
        for array in stored.values():
            _check_axes(file.path, array)
        if "queries" in stored:
            _check_factors(file.path, stored["queries"], stored["keys"])
    except BaseException:
        file.close()
        raise
    return GivenArrays(path=file.path, stored=stored, close=file.close)


def _file(path: Path, limit: int) -> ArrayFile:
    """What a file holds, by its first bytes and not by its name."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise SpectrumFileError(f"{path} must be a file of arrays, got {found}. Check the path.")
    with damage(path, "the file"):
        start = _first_bytes(path)
        if start.startswith(np.lib.format.MAGIC_PREFIX):
            return open_npy(path, limit)
        if start.startswith(b"PK"):
            return open_npz(path, limit)
        if start and h5py.is_hdf5(path):
            return open_hdf5(path, limit)
    raise SpectrumFileError(
        f"{path} must be a .npy, .npz or HDF5 file, got {f'one that starts with {start!r}' if start else 'an empty one'}. "
        "Save the arrays with numpy.savez."
    )


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            return raw.read(8)
    except PermissionError as error:
        raise SpectrumFileError(
            f"{path} must be readable, got: permission denied. Ask its owner for access."
        ) from error


def _roles(path: Path, entries: Mapping[str, ArrayEntry]) -> dict[str, str]:
    """The names of the arrays to read, by what they are."""
    found = [{"attention": ATTENTION_NAME}] if ATTENTION_NAME in entries else []
    found += [{"queries": q, "keys": k} for q, k in FACTOR_NAMES if q in entries and k in entries]
    if len(found) > 1:
        both = " and ".join(", ".join(roles.values()) for roles in found)
        raise SpectrumFileError(
            f"{path} must hold attention or one pair of queries and keys, got {both}. Save one of them."
        )
    return found[0] if found else {"attention": _only(path, entries)}


def _only(path: Path, entries: Mapping[str, ArrayEntry]) -> str:
    """The name of the only array that can be meant."""
    of_factors = {name for pair in FACTOR_NAMES for name in pair}
    matrices = [name for name, entry in entries.items() if len(entry.shape) >= 2]
    floats = [name for name in matrices if entries[name].is_float]
    candidates = floats or matrices
    if not candidates and set(entries) == {""}:  # a .npy, which has no names
        entry = entries[""]
        raise SpectrumFileError(
            f"{path} must hold floats with 2 to {MOST_AXES} axes, the last of (sequence, layer, head, row, column), got "
            f"{entry.kind[:20]} of shape {entry.shape[:8]}. Save it with that shape and type."
        )
    if len(candidates) != 1 or candidates[0].rpartition("/")[2] in of_factors:
        raise SpectrumFileError(
            f"{path} must hold {ATTENTION_NAME}, or queries and keys, or a single array, got {_listing(entries)}. "
            "Save them under these names."
        )
    return candidates[0]


def _listing(entries: Mapping[str, ArrayEntry]) -> str:
    """What there is, in words."""
    found = [f"{shown(name)} ({entry.kind[:20]} {entry.shape})" for name, entry in list(entries.items())[:_LISTED]]
    more = [f"{len(entries) - _LISTED} more"] if len(entries) > _LISTED else []
    return ", ".join(found + more) or "nothing"


def _check_axes(path: Path, array: StoredArray) -> None:
    if not 2 <= len(array.shape) <= MOST_AXES:
        raise SpectrumFileError(
            f"{path}: {shown(array.name)} must have 2 to {MOST_AXES} axes, the last of (sequence, layer, head, row, "
            f"column), got shape {array.shape[:8]}. Reshape it."
        )


def _check_factors(path: Path, queries: StoredArray, keys: StoredArray) -> None:
    """Refuse queries and keys that do not fit each other."""
    of_queries, of_keys = all_axes(queries), all_axes(keys)
    same = len(queries.shape) == len(keys.shape) and of_queries[:2] == of_keys[:2] and of_queries[4] == of_keys[4]
    if not same or of_queries[2] % of_keys[2]:
        raise SpectrumFileError(
            f"{path}: keys must have the sequences, layers and features of the queries, and a number of heads that divides "
            f"theirs, got shapes {queries.shape} and {keys.shape}. Save both as (sequence, layer, head, position, feature)."
        )
    if queries.dtype != keys.dtype:
        raise SpectrumFileError(
            f"{path}: queries and keys must be of one type, got {queries.dtype} and {keys.dtype}. Save both as float32."
        )
