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

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store.array_files import ArrayEntry, StoredArray, array_file, shown
from rankkit.store.entries import EntryFacts
from rankkit.store.hdf5 import DEFAULT_LIMIT

__all__ = ["ATTENTION_NAME", "FACTOR_NAMES", "GivenArrays", "read_arrays"]

ATTENTION_NAME: Final = "attention"
"""What attention is called in a file."""

FACTOR_NAMES: Final = (("queries", "keys"), ("query", "key"), ("q", "k"), ("Q", "K"))
"""What queries and keys are called in a file."""

_AXES = 5  # sequence, layer, head, and the two of a matrix
_PIECE_BYTES = 64 << 20  # read at a time while all entries are looked at; one matrix at least
_LISTED = 8  # arrays named in a message


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
        return _shape(self._first)[0]

    @property
    def layers(self) -> int:
        """Entries of the layer axis."""
        return _shape(self._first)[1]

    @property
    def heads(self) -> int:
        """Matrices of one layer; of queries and keys, heads of the queries."""
        return _shape(self._first)[2]

    @property
    def queries_count(self) -> int:
        """Rows of every matrix."""
        return _shape(self._first)[3]

    @property
    def keys_count(self) -> int:
        """Columns of every matrix."""
        return _shape(self.stored["attention"])[4] if self.what == "attention" else _shape(self.stored["keys"])[3]

    @property
    def features(self) -> int | None:
        """Length of a query and of a key; None of attention."""
        return None if self.what == "attention" else _shape(self._first)[4]

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
        return self._facts.reason(self.keys_count) if self.what == "attention" else ""

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
        served = self.heads // _shape(array)[2]
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
        sequences, layers, heads, rows, columns = _shape(array)
        together = max(1, _PIECE_BYTES // (rows * columns * array.dtype.itemsize))
        for sequence, layer, head in product(range(sequences), range(layers), range(0, heads, together)):
            chosen = slice(head, min(head + together, heads))
            piece = _piece(array, slice(sequence, sequence + 1), layer, chosen)[0]
            yield (sequence, layer, head), piece.astype(array.dtype, copy=False)


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
    file = array_file(path, limit=limit)
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
    if not 2 <= len(array.shape) <= _AXES:
        raise SpectrumFileError(
            f"{path}: {shown(array.name)} must have 2 to {_AXES} axes, the last of (sequence, layer, head, row, column), "
            f"got shape {array.shape[:8]}. Reshape it."
        )


def _check_factors(path: Path, queries: StoredArray, keys: StoredArray) -> None:
    """Refuse queries and keys that do not fit each other."""
    of_queries, of_keys = _shape(queries), _shape(keys)
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


def _shape(array: StoredArray) -> tuple[int, ...]:
    """All five axes: those that an array lacks have one entry."""
    return (1,) * (_AXES - len(array.shape)) + array.shape


def _piece(array: StoredArray, sequence: slice, layer: int, heads: slice) -> NDArray[Any]:
    """Part of an array, "sequence head row column"."""
    lacking = _AXES - len(array.shape)
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
