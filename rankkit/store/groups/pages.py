"""One number per matrix, held in memory until those of a whole checkpoint are there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.store.variables import Variable

__all__ = ["Page", "Pages"]

Selection = tuple[int | slice, ...]


@dataclass(slots=True)
class Page:
    """The numbers of one checkpoint."""

    place: tuple[int, int]
    """Position of its seed and step."""
    arrays: dict[str, NDArray[Any]]
    """By variable, along the axes after seed and step."""
    missing: int
    """Matrices whose numbers are not there yet."""


class Pages:
    """Gathers the slabs of each checkpoint, so that every variable is stored in one call.

    HDF5 takes about as long for one number as for a thousand, and slabs are small where variables are many. What waits
    takes 8 bytes per variable and matrix of the checkpoints that are begun and not finished.

    Args:
        variables: all with the same axes, the first two of which are seed and step.
        shape: lengths of these axes.
    """

    def __init__(self, variables: Sequence[Variable], shape: Sequence[int]) -> None:
        self._types = {variable.name: np.dtype(variable.dtype) for variable in variables}
        self._shape = tuple(shape)
        self._begun: dict[tuple[int, int], Page] = {}

    def put(self, selection: Selection, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Page]:
        """Take a slab.

        Args:
            selection: an index or a slice with both ends along every axis; cells that were not put before.
            arrays: by variable, over the selection.

        Yields:
            The checkpoints that are complete with it, each once.
        """
        seeds, steps = (range(position, position + 1) if isinstance(position, int) else
                        range(position.start, position.stop) for position in selection[:2])  # fmt: skip
        shape = tuple(1 if isinstance(position, int) else position.stop - position.start for position in selection)
        whole = {name: array.reshape(shape) for name, array in arrays.items()}
        inside = tuple(
            slice(position, position + 1) if isinstance(position, int) else position for position in selection
        )
        for (i, seed), (j, step) in product(enumerate(seeds), enumerate(steps)):
            page = self._page(seed, step)
            for name, array in whole.items():
                page.arrays[name][inside[2:]] = array[i, j]
            page.missing -= math.prod(shape[2:])
            if not page.missing:
                yield self._begun.pop(page.place)

    def _page(self, seed: int, step: int) -> Page:
        if (seed, step) not in self._begun:
            inner = self._shape[2:]
            blank = {name: np.empty(inner, dtype=dtype) for name, dtype in self._types.items()}
            self._begun[seed, step] = Page(place=(seed, step), arrays=blank, missing=math.prod(inner))
        return self._begun[seed, step]
