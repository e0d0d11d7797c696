"""One part of a tidy table: a row for every cell of some axes of one group, read a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Any, Final

import numpy as np
from einops import repeat
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store.door.hdf5 import h5py, has_all_chunks, read_array
from rankkit.store.door.library import refusal
from rankkit.store.tables.selection import Selection
from rankkit.store.variables import Variable

__all__ = ["BLOCK_ROWS", "Field", "Part"]

BLOCK_ROWS: Final = 65_536
"""Rows in memory at a time: with 60 columns 30 MiB, and enough for a row group of Parquet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field:
    """A column that is read from a variable."""

    column: Variable
    """Its name, type and meaning in the table."""
    dataset: h5py.Dataset
    """Where its numbers are."""
    axes: tuple[str, ...]
    """Those of the dataset, in storage order."""
    fixed: Mapping[str, int] = field(default_factory=dict)
    """The position along axes that the rows do not have."""
    words: tuple[str, ...] = ()
    """What the codes 0, 1, ... mean, where the column is of words."""

    @property
    def pattern(self) -> str:
        """The axes of what is read, as einops writes them."""
        return " ".join("1" if axis in self.fixed else axis for axis in self.axes)

    def read(self, places: Mapping[str, NDArray[np.intp]]) -> NDArray[Any]:
        """Read some cells, and no chunk that holds none of them.

        Args:
            places: ascending positions along every axis that is not fixed; others are passed over.

        Returns:
            Numbers in the stored type, or words; the axes of `pattern`.

        Raises:
            SpectrumFileError: it is damaged, or a code has no meaning.
        """
        fixed = {axis: np.array([place]) for axis, place in self.fixed.items()}
        every = {**places, **fixed}
        wanted = [every[axis] for axis in self.axes]
        found = np.empty([chosen.size for chosen in wanted], dtype=self.dataset.dtype)
        for runs in product(*map(_runs, wanted)):
            into, source = zip(*runs, strict=True)
            found[into] = read_array(self.dataset, source)
        return self._in_words(found) if self.words else found

    def check(self) -> None:
        """Refuse a variable that lost a chunk, which would read as numbers.

        Raises:
            SpectrumFileError: it did.
        """
        if self.dataset.chunks and not has_all_chunks(self.dataset):
            raise SpectrumFileError(
                f"{self.dataset.file.filename}: {self.dataset.name} must have every chunk, got a lost or unchecked one. "
                "The file is damaged; restore a copy of it or measure again."
            )

    def _in_words(self, codes: NDArray[Any]) -> NDArray[np.str_]:
        strange = codes[(codes < 0) | (codes >= len(self.words))]
        if strange.size:
            raise refusal(
                self.dataset, self.dataset.name, f"hold codes from 0 to {len(self.words) - 1}", str(strange.flat[0])
            )
        words: NDArray[np.str_] = np.asarray(self.words)[codes]
        return words


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Rows that are alike: those of one group, or of one variable of it."""

    constants: Mapping[str, str | int]
    """Columns that are the same in all its rows, such as the arm."""
    labels: Mapping[str, NDArray[Any]]
    """Labels by axis, in the order of the rows, the last fastest."""
    fields: Sequence[Field]
    """The other columns; their axes are among those of the rows."""
    places: Mapping[str, NDArray[np.intp]]
    """By axis, the ascending positions that are taken."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return math.prod(chosen.size for chosen in self.places.values())

    def chosen(self, selection: Selection) -> Part | None:
        """What a selection leaves, or None; a part without an axis that a choice is about is left out."""
        if not set(selection.choices) <= {*self.constants, *self.labels}:
            return None
        if not all(selection.places(name, np.array([value])).size for name, value in self.constants.items()):
            return None
        left = replace(self, places={axis: selection.places(axis, labels) for axis, labels in self.labels.items()})
        return left if left.rows else None

    def blocks(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The columns by name, at most BLOCK_ROWS rows at a time.

        Raises:
            SpectrumFileError: a number cannot be read.
        """
        for entry in self.fields:
            entry.check()
        for box in _boxes([chosen.size for chosen in self.places.values()]):
            at = {axis: chosen[taken] for (axis, chosen), taken in zip(self.places.items(), box, strict=True)}
            yield self._block(at)

    def _block(self, at: Mapping[str, NDArray[np.intp]]) -> dict[str, NDArray[Any]]:
        sizes = {axis: chosen.size for axis, chosen in at.items()}
        columns: dict[str, NDArray[Any]] = {
            name: np.full(math.prod(sizes.values()), value) for name, value in self.constants.items()
        }
        columns |= {axis: _spread(self.labels[axis][chosen], axis, sizes) for axis, chosen in at.items()}
        return columns | {f.column.name: _spread(f.read(at), f.pattern, sizes) for f in self.fields}


def _spread(values: NDArray[Any], pattern: str, sizes: Mapping[str, int]) -> NDArray[Any]:
    """Values over some of the rows' axes as one column, repeated along the other axes."""
    others = {axis: size for axis, size in sizes.items() if axis not in pattern.split()}
    return np.asarray(repeat(values, f"{pattern} -> ({' '.join(sizes)})", **others))


def _runs(places: NDArray[np.intp]) -> list[tuple[slice, slice]]:
    """Neighbours among ascending positions: where they go in the result, and where they are."""
    cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), places.size]
    return [(slice(a, b), slice(int(places[a]), int(places[b - 1]) + 1)) for a, b in pairwise(cuts)]


def _boxes(sizes: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """A grid cut into boxes of at most BLOCK_ROWS cells, whose order is that of the cells."""
    room = BLOCK_ROWS
    sides: list[int] = []
    for size in reversed(sizes):
        sides.insert(0, min(size, max(1, room)))
        room //= size
    for corner in product(*(range(0, size, side) for size, side in zip(sizes, sides, strict=True))):
        yield tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
