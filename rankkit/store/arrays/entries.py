"""What entries say of what made them: the format they were rounded to, and whether rows are distributions."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["EntryFacts"]

_ROUNDOFF: Final = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
"""Largest relative error of one rounding, by format, the coarsest first."""
_NARROWER: Final = {
    "float16": ("bfloat16",),
    "float32": ("bfloat16", "float16"),
    "float64": ("bfloat16", "float16", "float32"),
}
_SMALLEST: Final = {"float16": 2.0**-24}  # spacing of subnormal numbers, where attention gets as small as they are

_TELLING_ENTRIES: Final = 64
"""Entries, not powers of two, that show a format: by chance a float32 number fits bfloat16 once in 2^16."""
_SUM_TOLERANCE: Final = 1e-5  # as of any matrix (rankkit.operators): a float32 softmax over 10^4 keys is off by 1e-6
_SUM_ROUNDINGS: Final = 4  # of an entry in its format: storing it, and up to three in a softmax of that precision


class EntryFacts:
    """What is known of matrices from the entries seen so far.

    Args:
        dtype: that they are stored in: float16, float32 or float64.
        stochastic: whether rows are to be held against distributions.
    """

    def __init__(self, dtype: np.dtype[Any], *, stochastic: bool) -> None:
        self._dtype = dtype.name
        self._stochastic = stochastic
        self._formats = list(_NARROWER[dtype.name])
        self._telling = 0
        self._negative = ""
        self._worst, self._worst_row = 0.0, ""

    @property
    def precision(self) -> str:
        """The coarsest format that holds all entries, if enough of them show it; else the stored one."""
        return self._formats[0] if self._formats and self._telling >= _TELLING_ENTRIES else self._dtype

    @property
    def settled(self) -> bool:
        """Whether no further entry can change anything."""
        return not self._formats and not self._stochastic

    @property
    def negative(self) -> str:
        """The first matrix with a negative entry, in words that name it; nothing where there is none."""
        return self._negative

    def sums(self, columns: int) -> str:
        """Why rows do not sum to 1, or nothing.

        Args:
            columns: of a matrix: each may have underflowed.
        """
        tolerance = max(_SUM_TOLERANCE, _SUM_ROUNDINGS * _ROUNDOFF[self.precision])
        tolerance += columns * _SMALLEST.get(self.precision, 0.0) / 2
        return f"{self._worst_row}, not to 1 within {tolerance:.2g}" if self._worst > tolerance else ""

    def look(self, piece: NDArray[Any], place: tuple[int, int, int]) -> None:
        """Take more entries into account.

        Args:
            piece: "head row column".
            place: its sequence, its layer, and its first head.
        """
        finite = np.isfinite(piece)
        if self._formats:
            self._compare(piece[finite])
        if self._stochastic:
            whole = finite.all(axis=(-2, -1))
            names = [f"sequence {place[0]}, layer {place[1]}, head {place[2] + head}" for head in np.flatnonzero(whole)]
            self._sum(piece if whole.all() else piece[whole], names)

    def _compare(self, values: NDArray[Any]) -> None:
        """Drop formats that do not hold these finite values."""
        self._formats = [name for name in self._formats if _holds(name, values)]
        if self._formats and self._telling < _TELLING_ENTRIES:
            mantissas, _ = np.frexp(np.abs(values))
            self._telling += int(np.count_nonzero((mantissas != 0.5) & (mantissas != 0)))

    def _sum(self, matrices: NDArray[Any], names: list[str]) -> None:
        """Note the first negative entry, and the row whose sum is farthest from 1."""
        if not names:
            return
        if not self._negative and matrices.min() < 0:
            head, row, column = np.unravel_index(int(matrices.argmin()), matrices.shape)
            value = float(matrices[head, row, column])
            self._negative = f"entry ({row}, {column}) of {names[int(head)]} is {value:.3g}, less than 0"
        with np.errstate(over="ignore"):  # infinite is as far from 1 as any
            sums = matrices.sum(axis=-1, dtype=np.float64)
        errors = np.where(sums == 0, 0.0, np.abs(sums - 1))
        head, row = np.unravel_index(int(errors.argmax()), errors.shape)
        if errors[head, row] > self._worst:
            self._worst = float(errors[head, row])
            self._worst_row = f"row {row} of {names[int(head)]} sums to {sums[head, row]:.6g}"


def _holds(name: str, values: NDArray[Any]) -> bool:
    """Whether a format holds finite values exactly."""
    with np.errstate(over="ignore"):  # what becomes infinite is not held
        if name != "bfloat16":
            return bool((values.astype(name) == values).all())
        single = values.astype(np.float32)
    return bool((single == values).all()) and not bool(
        (single.view(np.uint32) & 0xFFFF).any()
    )  # bfloat16 is its upper half
