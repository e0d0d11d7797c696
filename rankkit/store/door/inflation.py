"""Compressed chunks that unpack to more than a chunk.

A chunk's size is declared, and HDF5 2.0 looks at it only when everything that the stored bytes unpack to is in memory: 2 MB
of gzip are 2 GB of zeros. So whatever may grow that far is unpacked here first, piece by piece, and counted.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

from rankkit.store.door.library import h5py

__all__ = ["InflationGuard"]

_HARMLESS = 128 << 20  # bytes that a chunk may turn into unseen
_SLACK = 64  # bytes beside the values of a chunk: a checksum takes 4
_PIECE = 1 << 20  # bytes unpacked at a time

_RATIOS: Final = {h5py.h5z.FILTER_DEFLATE: 1032, h5py.h5z.FILTER_LZF: 88}
"""Most that a stored byte becomes: zlib's manual; an LZF reference of 3 bytes copies 264."""


class InflationGuard:
    """Looks at the compressed chunks of one dataset before HDF5 unpacks them, at each once.

    Args:
        dataset: any; without compression there is nothing to look at.

    Raises:
        ValueError: it is compressed twice, whose ratios multiply.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        plan = dataset.id.get_create_plist()
        filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
        packed = [(number, name) for number, name in enumerate(filters) if name in _RATIOS]
        if len(packed) > 1:
            raise ValueError("data that is compressed twice")
        self._dataset, self._packed = dataset, packed
        self._size = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        self._seen: set[tuple[int, ...]] = set()

    def check(self, part: Sequence[slice]) -> None:
        """Look at the chunks that a selection touches.

        Args:
            part: one slice for each axis.

        Raises:
            ValueError: one of them unpacks to more than its size, or is so large that it cannot be told.
            zlib.error: one is damaged.
            OSError: the file is.
        """
        for number, compressor in self._packed:
            for offset in self._offsets(part):
                if offset not in self._seen:
                    self._look(offset, number, compressor)
                    self._seen.add(offset)

    def _offsets(self, part: Sequence[slice]) -> Iterator[tuple[int, ...]]:
        """Where the chunks of a selection start."""
        axes = zip(part, self._dataset.shape, self._dataset.chunks, strict=True)
        ranges = []
        for chosen, length, chunk in axes:
            start, stop, _ = chosen.indices(length)
            ranges.append(range(start // chunk * chunk, stop, chunk))
        return product(*ranges)

    def _look(self, offset: tuple[int, ...], number: int, compressor: int) -> None:
        """One chunk, if it can grow at all."""
        stored = self._dataset.id.get_chunk_info_by_coord(offset).size
        if stored * _RATIOS[compressor] <= _HARMLESS:
            return
        if compressor != h5py.h5z.FILTER_DEFLATE:
            raise ValueError(f"a chunk of {stored} bytes in lzf, which only gzip may have")
        skipped, data = self._dataset.id.read_direct_chunk(offset)
        if not skipped >> number & 1 and _unpacks_beyond(data, self._size + _SLACK):
            raise ValueError(f"a chunk that unpacks to more than its {self._size} bytes")


def _unpacks_beyond(data: bytes, size: int) -> bool:
    """Whether a zlib stream holds more than so many bytes."""
    stream, total = zlib.decompressobj(), 0
    while data and total <= size:
        total += len(stream.decompress(data, _PIECE))
        data = stream.unconsumed_tail
    return total > size
