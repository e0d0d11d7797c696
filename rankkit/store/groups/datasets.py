"""Datasets: their type, chunks, filters, attributes and axes, the same way everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import SPECTRUM_AXES
from rankkit.store.door.chunks import DEFLATE_LEVEL
from rankkit.store.door.hdf5 import h5py, sha256_of_strings
from rankkit.store.schema import AXIS_VARIABLES
from rankkit.store.variables import Variable

__all__ = ["SEQUENCES_PER_CHUNK", "create_axes", "create_dataset", "has_type", "set_attributes"]

SEQUENCES_PER_CHUNK = 8
"""Sequences whose singular values share a chunk: slabs of a multiple of 8 sequences are compressed once, at 512 keys a
chunk has 32 KiB, and one layer and head is read without touching another."""

_ALONE = ("seed", "step", "region", "applied_mask", "layer")  # axes along which a chunk of results holds one entry
_ALONE_IN_SPECTRA = (*_ALONE, "head")
_ALONE_IN_MATRICES = (*_ALONE_IN_SPECTRA, "sequence")
_CHUNK_BYTES = 1 << 20  # at most: HDF5 reads and checks whole chunks
_CACHE_BYTES = (
    32 << 20
)  # per variable of spectra: keeps unfinished chunks of narrower slabs until their last sequence arrives
_CACHE_SLOTS_PER_CHUNK = 10  # chunks that share a hash slot push each other out; HDF5 advises 10 to 100
_DEFAULT_CACHE_SLOTS = 521


def set_attributes(entry: h5py.File | h5py.Group | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Attach attributes, Python numbers as 64-bit ones and texts as UTF-8."""
    types = {int: np.int64, float: np.float64}
    for name, value in attributes.items():
        plain = str(value) if isinstance(value, str) else value  # h5py refuses kinds of text such as torch.__version__
        entry.attrs[name] = types[type(plain)](plain) if type(plain) in types else plain


def create_axes(group: h5py.Group, labels: Mapping[str, Sequence[object]]) -> None:
    """A coordinate variable for every axis: netCDF-4 readers refuse a group where one is missing."""
    for axis, values in labels.items():
        variable = AXIS_VARIABLES[axis]
        array = np.asarray(values, dtype=object if variable.dtype == "string" else variable.dtype)
        create_dataset(group, variable, labels, array).make_scale(axis)


def create_dataset(
    group: h5py.Group, variable: Variable, labels: Mapping[str, Sequence[object]], data: NDArray[Any] | None
) -> h5py.Dataset:
    """One dataset with its attributes and axes; without data it waits for slabs."""
    shape = tuple(len(labels[axis]) for axis in variable.dimensions)
    if variable.dtype == "string":
        dataset = group.create_dataset(variable.name, shape, h5py.string_dtype("utf-8"), data=data)
        assert data is not None, "texts are written at once"
        dataset.attrs["sha256"] = sha256_of_strings(data.ravel().tolist())
    else:
        dataset = group.create_dataset(
            variable.name,
            shape,
            np.dtype(variable.dtype).newbyteorder("<"),
            data=data,
            compression="gzip",
            compression_opts=DEFLATE_LEVEL,
            shuffle=True,
            fletcher32=True,
            fillvalue=np.nan if "float" in variable.dtype else -1,  # no code, so a lost chunk does not look like data
            **_chunking(variable, shape),
        )
    set_attributes(dataset, variable.attributes)
    if variable.dimensions != (variable.name,):
        for number, axis in enumerate(variable.dimensions):
            dataset.dims[number].attach_scale(group[axis])
    return dataset


def has_type(dataset: h5py.Dataset, variable: Variable) -> bool:
    """Whether a dataset is of the type that `create_dataset` gives it."""
    if variable.dtype == "string":
        return h5py.check_string_dtype(dataset.dtype) is not None
    return bool(dataset.dtype == np.dtype(variable.dtype).newbyteorder("<"))


def _chunking(variable: Variable, shape: tuple[int, ...]) -> dict[str, Any]:
    """Chunk shape and cache: a layer of one arm is alone in its chunks, and unfinished chunks stay in memory.

    A matrix is alone too, in blocks of its rows.
    """
    axes = set(variable.dimensions)
    in_slabs = {"seed", "step", "layer"} <= axes
    of_matrices = in_slabs and bool({"query", "key"} & axes)
    of_spectra = in_slabs and bool({"component", "output_component"} & axes)
    alone = _ALONE_IN_MATRICES if of_matrices else _ALONE_IN_SPECTRA if of_spectra else _ALONE if in_slabs else ()
    chunk = [1 if axis in alone else size for axis, size in zip(variable.dimensions, shape, strict=True)]
    if of_spectra:
        sequence = variable.dimensions.index("sequence")
        chunk[sequence] = min(chunk[sequence], SEQUENCES_PER_CHUNK)
    itemsize = np.dtype(variable.dtype).itemsize
    while math.prod(chunk) * itemsize > _CHUNK_BYTES:
        first = next(number for number, size in enumerate(chunk) if size > 1)
        chunk[first] = -(-chunk[first] // 2)
    comes_whole = of_matrices or variable.dimensions == SPECTRUM_AXES  # see rankkit.store.groups.pages
    held = 0 if comes_whole else min(_CACHE_BYTES, math.prod(shape) * itemsize)
    slots = _CACHE_SLOTS_PER_CHUNK * (held // (math.prod(chunk) * itemsize))
    return {
        "chunks": tuple(chunk),
        "rdcc_nbytes": max(held, _CHUNK_BYTES),
        "rdcc_nslots": max(slots, _DEFAULT_CACHE_SLOTS) | 1,
    }
