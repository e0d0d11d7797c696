"""Attention matrices, or queries and keys, in an open file: read by piece, and what their entries say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rankkit.store.arrays.entries import EntryFacts
from rankkit.store.arrays.stored import StoredArray

__all__ = ["MOST_AXES", "GivenArrays", "all_axes"]

MOST_AXES: Final = 5
"""Sequence, layer, head, and the two of a matrix."""

_PIECE_BYTES = 64 << 20  # read at a time while all entries are looked at; one matrix at least


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenArrays:
    """Attention matrices, or queries and keys, in a file that stays open; a context manager."""

    path: Path
    """Where they are."""
    stored: Mapping[str, StoredArray]
    """`attention`, or `queries` and `keys`."""
    close: Callable[[], None]
    """Lets go of the file."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    @property
    def what(self) -> Literal["attention", "factors"]:
        """Matrices themselves, or queries and keys."""
        return "attention" if "attention" in self.stored else "factors"

    @property
    def sequences(self) -> int:
        """Entries of the sequence axis."""
        return all_axes(self._first)[0]

    @property
    def layers(self) -> int:
        """Entries of the layer axis."""
        return all_axes(self._first)[1]

    @property
    def heads(self) -> int:
        """Matrices of one layer; of queries and keys, heads of the queries."""
        return all_axes(self._first)[2]

    @property
    def queries_count(self) -> int:
        """Rows of every matrix."""
        return all_axes(self._first)[3]

    @property
    def keys_count(self) -> int:
        """Columns of every matrix."""
        return all_axes(self.stored["attention"])[4] if self.what == "attention" else all_axes(self.stored["keys"])[3]

    @property
    def features(self) -> int | None:
        """Length of a query and of a key; None of attention."""
        return None if self.what == "attention" else all_axes(self._first)[4]

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored: float16, float32 or float64."""
        return self._first.dtype

    @property
    def precision(self) -> str:
        """The format that the entries were rounded to: float64, float32, float16 or bfloat16. Reads everything, once.

        The stored one, unless every finite entry is held exactly by a narrower one, the narrowest of which it then is:
        bfloat16 saved as float32 is as coarse as before. At least 64 entries that are not powers of two must say so, for an
        identity matrix fits every format and shows none.
        """
        return self._facts.precision

    @property
    def rows_sum_to_one(self) -> bool:
        """Whether the matrices are attention, to the roundings of `precision`. Reads everything, once.

        A row of zeros, which sees nothing, is allowed. Matrices that hold something that is not finite have no say. Queries
        and keys give nothing else.
        """
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the matrices are not attention, in words that name a row; empty where they are."""
        if self.what == "factors":
            return ""
        return self._facts.negative or self._facts.sums(self.keys_count)

    @property
    def structure(self) -> frozenset[str]:
        """What holds for the entries of every matrix, as `Operator.structure` names it. Reads everything, once."""
        if self.what == "factors":
            return frozenset({"non_negative", "rows_sum_to_one"})
        found = {"non_negative": self._facts.negative, "rows_sum_to_one": self._facts.sums(self.keys_count)}
        return frozenset(name for name, reason in found.items() if not reason)

    def hidden_mass(self, allowed: NDArray[np.bool_]) -> float:
        """The largest absolute entry where a mask hides the key from the query. Reads everything.

        Args:
            allowed: "query key", true where query i may see key j.

        Returns:
            At least 0; 0 where the mask holds, where nothing is hidden, and of queries and keys. Entries that are nan have
            no say.

        Raises:
            ValueError: the mask is of another size.
            SpectrumFileError: the file is damaged.
        """
        expected = (self.queries_count, self.keys_count)
        if allowed.shape != expected:
            raise ValueError(
                f"allowed must have shape {expected}, got {allowed.shape}. Make the mask for these arrays."
            )
        if self.what == "factors":
            return 0.0
        largest = 0.0
        for _, piece in self._pieces("attention"):
            largest = float(np.fmax.reduce(np.abs(piece[:, ~allowed]), axis=None, initial=largest))
        return largest

    def block(self, sequence: slice, layer: int, heads: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Read some matrices of one layer, and no others; of a .npz, whose arrays are read whole once, take them.

        Args:
            sequence: which sequences, in steps of 1.
            layer: which layer, from 0.
            heads: which heads, from 0, in any order.

        Returns:
            `attention`: "sequence head query key"; or `queries`: "sequence head query feature" and `keys`: "sequence head
            key feature", those of grouped-query attention repeated for every head of the queries. In the stored dtype,
            writable.

        Raises:
            ValueError: there is no such layer or head, or the sequences are not in steps of 1.
            SpectrumFileError: the file is damaged.
        """
        start, stop, step = sequence.indices(self.sequences)
        if step != 1:
            raise ValueError(f"sequence must be in steps of 1, got {sequence}. Read neighbouring sequences.")
        if not 0 <= layer < self.layers:
            raise ValueError(f"layer must be between 0 and {self.layers - 1}, got {layer}. Choose one of them.")
        if not heads or min(heads) < 0 or max(heads) >= self.heads:
            raise ValueError(f"heads must be between 0 and {self.heads - 1}, got {list(heads)}. Choose some of them.")
        return {role: self._heads(role, slice(start, max(start, stop)), layer, heads) for role in self.stored}

    def _heads(self, role: str, sequence: slice, layer: int, heads: Sequence[int]) -> NDArray[Any]:
        """Some heads of one array, "sequence head row column", read in runs of neighbours."""
        array = self.stored[role]
        served = self.heads // all_axes(array)[2]
        wanted = [head // served for head in heads]
        distinct = list(dict.fromkeys(wanted))
        runs = [_piece(array, sequence, layer, run) for run in _runs(distinct)]
        found = np.concatenate(runs, axis=1, dtype=array.dtype)
        return found if wanted == distinct else found[:, [distinct.index(head) for head in wanted]]

    @property
    def _first(self) -> StoredArray:
        return next(iter(self.stored.values()))

    @cached_property
    def _facts(self) -> EntryFacts:
        """What the entries say of what made them, from one look at them all."""
        facts = EntryFacts(self.dtype, stochastic=self.what == "attention")
        for role in self.stored:
            for place, piece in self._pieces(role):
                facts.look(piece, place)
                if facts.settled:
                    return facts
        return facts

    def _pieces(self, role: str) -> Iterator[tuple[tuple[int, int, int], NDArray[Any]]]:
        """All of one array as "head row column", each piece with its first sequence, layer and head."""
        array = self.stored[role]
        sequences, layers, heads, rows, columns = all_axes(array)
        together = max(1, _PIECE_BYTES // (rows * columns * array.dtype.itemsize))
        for sequence, layer, head in product(range(sequences), range(layers), range(0, heads, together)):
            chosen = slice(head, min(head + together, heads))
            piece = _piece(array, slice(sequence, sequence + 1), layer, chosen)[0]
            yield (sequence, layer, head), piece.astype(array.dtype, copy=False)


def all_axes(array: StoredArray) -> tuple[int, ...]:
    """All five axes: those that an array lacks have one entry."""
    return (1,) * (MOST_AXES - len(array.shape)) + array.shape


def _piece(array: StoredArray, sequence: slice, layer: int, heads: slice) -> NDArray[Any]:
    """Part of an array, "sequence head row column"."""
    lacking = MOST_AXES - len(array.shape)
    where = (sequence, slice(layer, layer + 1), heads, slice(None), slice(None))
    piece = array.read(where[lacking:])[(np.newaxis,) * lacking]
    return np.asarray(piece[where[:lacking]][:, 0])


def _runs(numbers: Collection[int]) -> Iterator[slice]:
    """Neighbours that rise by one, together."""
    start = stop = None
    for number in numbers:
        if start is not None and number != stop:
            yield slice(start, stop)
            start = None
        start, stop = (number if start is None else start), number + 1
    yield slice(start, stop)
