"""Which bytes of a file are spoken for.

No two blocks may overlap: nothing is read twice, whatever points at it, so the file's length bounds what reading takes.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from rankkit.store.door.cursor import Odd

__all__ = ["Claims"]

_MUST, _FOUND = "hold every block at a place of its own", "two that overlap, or one past the end"


class Claims:
    """The blocks of one file.

    Args:
        size: bytes of the file.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._data: list[NDArray[np.uint64]] = []

    def add(self, start: int, size: int) -> None:
        """Claim a block of metadata, before it is read.

        Raises:
            Odd: it overlaps another one, or is not inside the file.
        """
        stop, place = start + size, bisect_left(self._starts, start)
        after = place < len(self._starts) and self._starts[place] < stop
        before = place > 0 and self._stops[place - 1] > start
        if after or before or not 0 <= start < stop <= self._size:
            raise Odd(_MUST, _FOUND)
        self._starts.insert(place, start)
        self._stops.insert(place, stop)

    def add_data(self, starts: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> None:
        """Claim blocks of numbers, which nobody reads yet: `check` looks at them.

        Args:
            starts: "block".
            sizes: "block", in bytes.

        Raises:
            Odd: one is not inside the file.
        """
        if (sizes > self._size).any() or (starts > self._size - sizes).any():
            raise Odd(_MUST, _FOUND)
        self._data.append(np.stack([starts, starts + sizes]))

    def check(self) -> None:
        """Compare all claims.

        Raises:
            Odd: two overlap.
        """
        blocks = np.array([self._starts, self._stops], dtype=np.uint64)
        starts, stops = np.concatenate([blocks, *self._data], axis=1)
        order = np.argsort(starts, kind="stable")
        if (starts[order][1:] < stops[order][:-1]).any():
            raise Odd(_MUST, _FOUND)
