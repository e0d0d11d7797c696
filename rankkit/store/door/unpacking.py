"""Numbers out of chunks, with their filters undone here.

HDF5 2.0.0 believes a compressed chunk to unpack to its size: from one that unpacks to less it copies what lies behind in
memory into the result, and one that unpacks to more takes all that memory first. So HDF5 only says where the bytes of a
chunk are; checksum, size and order of bytes are looked at here. Source: HDF5 File Format Specification (filter pipeline).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.store.door.chunks import fletcher32
from rankkit.store.door.library import h5py

__all__ = ["ChunkReader"]

_CHECKSUM_BYTES = 4
_KEPT_BYTES = 1 << 20  # of a chunk that is kept: the largest that our writer makes
_INDEXED = slice | int | np.integer[Any] | Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class _Run:
    """Positions along one axis that lie in one chunk."""

    start: int
    """Where the chunk begins."""
    inside: slice | NDArray[np.intp]
    """In the chunk."""
    result: slice
    """In what is returned."""


class ChunkReader:
    """Reads numbers of one variable in chunks; the chunk that was unpacked last is kept for the next time.

    Args:
        dataset: in chunks, with gzip, shuffle and fletcher32 at most.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        plan = dataset.id.get_create_plist()
        self._filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
        self._id, self._fill = dataset.id, dataset.fillvalue
        self._shape, self._chunk, self._dtype = dataset.shape, dataset.chunks, dataset.dtype
        self._size = math.prod(self._chunk) * self._dtype.itemsize
        pairs = zip(self._shape, self._chunk, strict=True)
        # Where one chunk is lost each is asked for, which is slow: HDF5 looks at every chunk then.
        self._some_are_lost = dataset.id.get_num_chunks() < math.prod(-(-length // part) for length, part in pairs)
        self._last: tuple[tuple[int, ...], NDArray[Any]] | None = None

    def read(self, selection: Any) -> NDArray[Any]:
        """Read some numbers.

        Args:
            selection: as NumPy takes it: an index, a slice that rises or a list of positions for the first axes, or `...`.

        Returns:
            Numbers in the stored type; axes with an index are gone. A chunk that is not there reads as the fill value.

        Raises:
            ValueError: a chunk does not match its checksum or its size.
            zlib.error: it cannot be unpacked.
            OSError: HDF5 cannot find it.
        """
        chosen = _per_axis(selection, len(self._shape))
        places = [_positions(one, size) for one, size in zip(chosen, self._shape, strict=True)]
        found = np.empty([positions.size for positions in places], dtype=self._dtype)
        runs = [_runs(positions, chunk) for positions, chunk in zip(places, self._chunk, strict=True)]
        for box in product(*runs):
            values = self._unpacked(tuple(run.start for run in box))
            inside = [run.inside for run in box]
            if not all(isinstance(one, slice) for one in inside):
                inside = list(np.ix_(*(np.arange(n)[one] for n, one in zip(self._chunk, inside, strict=True))))
            found[tuple(run.result for run in box)] = values[tuple(inside)]
        return np.asarray(found[tuple(0 if _is_index(one) else slice(None) for one in chosen)])

    def _unpacked(self, offset: tuple[int, ...]) -> NDArray[Any]:
        """One chunk, told by the position of its first number."""
        if self._last is not None and self._last[0] == offset:
            return self._last[1]
        if self._some_are_lost and self._id.get_chunk_info_by_coord(offset).byte_offset is None:
            return np.full(self._chunk, self._fill, dtype=self._dtype)
        values = self._decoded(*self._id.read_direct_chunk(offset))
        if self._size <= _KEPT_BYTES:
            self._last = (offset, values)
        return values

    def _decoded(self, skipped: int, data: bytes | memoryview) -> NDArray[Any]:
        """A chunk, from the filters that it skipped and what is stored."""
        shuffled = False
        for place, number in reversed(list(enumerate(self._filters))):
            if skipped >> place & 1:
                continue
            if number == h5py.h5z.FILTER_FLETCHER32:
                data = _without_checksum(bytes(data))
            elif number == h5py.h5z.FILTER_DEFLATE:
                data = _inflated(data, self._size)
            else:
                shuffled = True  # always the first filter, undone last
        if len(data) != self._size:
            raise ValueError(f"a chunk must unpack to {self._size} bytes, got {len(data)}. Restore a copy.")
        values = np.frombuffer(data, dtype=np.uint8)
        if shuffled:
            values = np.ascontiguousarray(values.reshape(self._dtype.itemsize, -1).T)
        return np.asarray(values.reshape(-1).view(self._dtype).reshape(self._chunk))


def _per_axis(selection: Any, axes: int) -> list[_INDEXED]:
    """What is chosen along every axis."""
    given = list(selection) if isinstance(selection, tuple) else [selection]
    place = next((number for number, one in enumerate(given) if one is Ellipsis), len(given))
    before, after = given[:place], given[place + 1 :]
    return [*before, *[slice(None)] * (axes - len(before) - len(after)), *after]


def _is_index(one: _INDEXED) -> bool:
    return isinstance(one, int | np.integer)


def _positions(one: _INDEXED, size: int) -> NDArray[np.intp]:
    """Positions along one axis; negative ones count from its end."""
    if isinstance(one, slice):
        return np.arange(*one.indices(size))
    found = np.atleast_1d(np.asarray(one, dtype=np.intp))
    found = np.where(found < 0, found + size, found)
    if ((found < 0) | (found >= size)).any():
        raise ValueError(f"positions must be from 0 to {size - 1}, got {one!r:.40}. Choose less.")
    return found


def _runs(positions: NDArray[np.intp], chunk: int) -> list[_Run]:
    """Neighbours in one chunk, one run after another."""
    runs, done = [], 0
    for number, members in groupby((positions // chunk).tolist()):
        count = sum(1 for _ in members)
        inside = positions[done : done + count] - number * chunk
        first = int(inside[0])
        together = bool((np.diff(inside) == 1).all())
        place = slice(first, first + count) if together else inside
        runs.append(_Run(number * chunk, place, slice(done, done + count)))
        done += count
    return runs


def _without_checksum(stored: bytes) -> memoryview:
    data, checksum = memoryview(stored)[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
    if len(stored) < _CHECKSUM_BYTES or fletcher32(data) != int.from_bytes(checksum, "little"):
        raise ValueError("a chunk must match its checksum, got another. Restore a copy.")
    return data


def _inflated(packed: bytes | memoryview, size: int) -> bytes:
    """What compressed bytes unpack to, or one byte more than should be there."""
    return zlib.decompressobj().decompress(packed, size + 1)
