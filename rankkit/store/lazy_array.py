"""Arrays that stay in a spectrum file until they are read, for xarray; importing this module imports xarray."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from rankkit.errors import SpectrumFileError
from rankkit.store.door.hdf5 import attributes_of, h5py, opened, read_array
from rankkit.store.schema import ATTRIBUTES_SUM

__all__ = ["OpenFile", "lazy_array"]


class OpenFile:
    """A spectrum file that stays open for what is read from it later.

    A file that is replaced under its name meanwhile stays the one that was opened. Pickled, it becomes its path, and is
    opened again where it is needed.

    Args:
        path: the file.
        limit: bytes that one array may take in memory.

    Raises:
        SpectrumFileError: as `rankkit.store.door.hdf5.opened`.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path.absolute()
        self._limit = limit
        self._until_closed = contextlib.ExitStack()
        self._file = self._until_closed.enter_context(opened(self._path, limit=limit))
        self._identity = attributes_of(self._file).get(ATTRIBUTES_SUM), self._file.id.get_filesize()

    @property
    def file(self) -> h5py.File:
        """The open file.

        Raises:
            ValueError: it was closed.
        """
        if not self._file:  # an h5py file is true while it is open
            raise ValueError(f"{self._path} must be open to be read, got a closed file. Read or load() before close().")
        return self._file

    def close(self) -> None:
        """Close the file; what was not read can be read no more."""
        self._until_closed.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self._path, self._limit, self._identity)


def _opened_again(path: Path, limit: int, identity: tuple[object, int]) -> OpenFile:
    """What a pickled file becomes; refuses another file that has the name now."""
    again = OpenFile(path, limit)
    if again._identity != identity:
        again.close()
        raise SpectrumFileError(f"{path} must be the file that was opened, got another of that name. Open it again.")
    return again


class _StoredArray(BackendArray):
    """A numeric variable of an open file, read selection by selection."""

    def __init__(self, owner: OpenFile, dataset: h5py.Dataset) -> None:
        self._owner = owner
        self._name = dataset.name
        self.shape = dataset.shape
        self.dtype = dataset.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[Any]:
        # HDF5 takes one list of rising positions and slices along the other axes; xarray does the rest in memory.
        support = indexing.IndexingSupport.OUTER_1VECTOR
        selected: NDArray[Any] = indexing.explicit_indexing_adapter(key, self.shape, support, self._read)
        return selected

    def _read(self, selection: tuple[Any, ...]) -> NDArray[Any]:
        return read_array(self._owner.file[self._name], selection)


def lazy_array(owner: OpenFile, dataset: h5py.Dataset) -> indexing.ExplicitlyIndexed:
    """A numeric variable of an open file as xarray holds lazy data: read when used, kept then, never written back.

    Args:
        owner: the open file.
        dataset: a variable in it.

    Returns:
        What `xarray.Variable` takes as data. Reading from it raises SpectrumFileError where the file is damaged, and
        ValueError once the file is closed.
    """
    stored = indexing.LazilyIndexedArray(_StoredArray(owner, dataset))
    # xarray nests these three itself, but does not type them so.
    unwritten = indexing.CopyOnWriteArray(stored)  # type: ignore[arg-type]
    return indexing.MemoryCachedArray(unwritten)  # type: ignore[no-untyped-call]
