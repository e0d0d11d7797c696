"""The cells of a few axes: which of them an index means, and which were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rankkit.store.consistency import cell_name

__all__ = ["Grid"]

Number = TypeVar("Number", bound=np.generic)


class Grid:
    """Takes every cell once.

    Args:
        axes: names of the axes.
        labels: of these axes, and perhaps of others.
    """

    def __init__(self, axes: Sequence[str], labels: Mapping[str, Sequence[object]]) -> None:
        self._axes = axes
        self._labels = labels
        self._written = np.zeros([len(labels[axis]) for axis in axes], dtype=np.bool_)

    def select(self, index: Mapping[str, int | slice]) -> tuple[int | slice, ...]:
        """The selection along all axes that an index by name means.

        Args:
            index: position (not label) or contiguous slice by axis; an axis that is left out is taken whole.

        Raises:
            ValueError: an axis or position does not exist, or a cell was written before.
        """
        unknown = sorted(set(index) - set(self._axes))
        if unknown:
            raise ValueError(f"index must name axes among {', '.join(self._axes)}, got {unknown[0]!r}. Remove it.")
        selection = tuple(self._position(axis, index.get(axis, slice(None))) for axis in self._axes)
        if self._written[selection].any():
            raise ValueError(
                f"index must name cells that are not written yet, got {dict(index)!r}. Write each cell once."
            )
        return selection

    def shape(self, selection: tuple[int | slice, ...]) -> tuple[int, ...]:
        """The shape of an array over a selection."""
        shape: tuple[int, ...] = self._written[selection].shape
        return shape

    def spread(
        self, values: NDArray[Number], axes: Sequence[str], selection: tuple[int | slice, ...]
    ) -> NDArray[Number]:
        """An array over some of the axes, repeated along the others, over a selection."""
        others = [number for number, axis in enumerate(self._axes) if axis not in axes]
        return np.broadcast_to(np.expand_dims(values, others), self._written.shape)[selection]

    def mark(self, selection: tuple[int | slice, ...]) -> None:
        """Note that a selection was written."""
        self._written[selection] = True

    def first(self, selection: tuple[int | slice, ...], chosen: NDArray[np.bool_]) -> str:
        """In words, the first cell of a selection that is chosen; at least one is."""
        mask = np.zeros_like(self._written)
        mask[selection] = chosen
        return cell_name(self._labels, np.argwhere(mask)[0].tolist(), self._axes)

    def first_unwritten(self) -> str | None:
        """In words, the first cell that was not written, or None."""
        return None if self._written.all() else self.first((), ~self._written)

    def _position(self, axis: str, position: int | slice) -> int | slice:
        size = len(self._labels[axis])
        if isinstance(position, slice):
            start, stop, stride = position.indices(size)
            if stride != 1 or start >= stop or (position.stop is not None and position.stop > size):
                raise ValueError(f"{axis} must be a contiguous slice within 0 to {size}, got {position!r}. Correct it.")
            return slice(start, stop)
        if not 0 <= position < size:
            raise ValueError(
                f"{axis} must be a position from 0 to {size - 1}, got {position!r}. Pass positions, not labels."
            )
        return int(position)
