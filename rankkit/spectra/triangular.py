"""Smallest singular value of a triangular matrix, where every SVD returns noise.

    sigma_min(A) = 1 / ||A^-1||_2

Random causal attention has sigma_min near 1e-140 at n = 512 and 1e-540 at n = 2048, and an SVD cannot see below 1e-13.
The inverse can: forward substitution is accurate in every entry that matters for the norm, however small sigma_min is.
What fails is the range of float64, so the inverse is held as m 2^e with one exponent for each column and block of rows.
Its norm needs its largest entries only, and is taken from the Gram matrix of the inverse over its largest power of two,
whose largest eigenvalue is right to n eps64.

Error: each column of the computed inverse is that of a matrix within n u |A| of A, entry by entry (u = 2^-53; Higham
2002, 8.1), so to first order sigma_min is off by at most the relative amount n u condition: 1e-12 at n = 64 and 1e-8
at n = 2048 under random logits. Against 90 digits at n = 16 to 300 it was never off by more than 4e-14.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit_kernels.singular_values import singular_values

__all__ = ["SmallestSingularValue", "log10_smallest_singular_value", "smallest_singular_value"]

BLOCK_ROWS: Final = 64  # rows solved at once; 32 and 128 measured within 20% of it at n = 2048
BLOCK_RANGE: Final = 900.0  # powers of two by which values may grow while a block is solved; float64 has 1023
USUAL: Final = 20  # largest entries within 2^20 of 1 are left as they are
UNDERFLOW: Final = 2.0**-1000
"""Part of a matrix's largest entry below which entries, and what they add to the inverse, may be lost."""

_NOTHING: Final = -(2.0**40)  # exponent of 0: below every other
_LOG10_2: Final = math.log10(2)
_DOUBT: Final = UNDERFLOW * 2.0**53  # an entry known to `UNDERFLOW` only, as one known to the unit roundoff

Scaled: TypeAlias = tuple[Tensor, Tensor]
"""Numbers m 2^e: mantissas in [0.5, 1) and whole exponents, both float64 (whose whole numbers exp2 takes exactly)."""


class SmallestSingularValue(NamedTuple):
    """sigma_min of every matrix and how well it is determined; float64, on the CPU."""

    log10: Tensor
    """"...": log10 sigma_min; -inf where a diagonal entry is 0, nan where a matrix is not finite."""
    condition: Tensor
    """"...": relative change of sigma_min per relative change of the entries, at least 1; inf where that leaves float64, nan
    where sigma_min is 0 or nan."""


def log10_smallest_singular_value(matrix: Tensor, /) -> Tensor:
    """log10 sigma_min of triangular matrices: `smallest_singular_value` without its condition, in half the time."""
    return _smallest(matrix, None, with_condition=False).log10


def smallest_singular_value(matrix: Tensor, /, *, log_diagonal: Tensor | None = None) -> SmallestSingularValue:
    """log10 sigma_min of triangular matrices, also where sigma_min lies below the smallest float64, and its condition.

    If |dA| <= t |A| entry by entry then d(A^-1) = -A^-1 dA A^-1, and sigma_min moves, to first order in t, by at most t
    times || |A^-1| |A| |A^-1| || / ||A^-1|| of itself: the condition. The norm of the product is bounded by
    sqrt(||.||_1 ||.||_inf), at most 4.2 times too large where that was measured. Entries that underflow, zeros among
    them, count as errors of `UNDERFLOW`.

    Args:
        matrix: "... n n", lower- or upper-triangular, any real dtype; computed in float64, one matrix at a time.
        log_diagonal: "... n", log |A_ii| in nats, where it is known though A_ii may have underflowed.

    Returns:
        Both with the leading axes of the matrix.

    Raises:
        ConfigurationError: a matrix that is not square or not triangular.

    Source: Skeel (1979), Scaling for numerical stability in Gaussian elimination; Higham (2002), 7.2 and 8.1.
    """
    return _smallest(matrix, log_diagonal, with_condition=True)


def _smallest(matrix: Tensor, log_diagonal: Tensor | None, *, with_condition: bool) -> SmallestSingularValue:
    found = [_measure(triangle, with_condition=with_condition) for triangle in _triangles(matrix, log_diagonal)]
    values = torch.tensor(found, dtype=torch.float64).reshape(-1, 2)
    return SmallestSingularValue(*(column.reshape(matrix.shape[:-2]) for column in values.unbind(dim=1)))


def _measure(triangle: _Triangle, *, with_condition: bool) -> tuple[float, float]:
    """log10 sigma_min of one matrix and its condition, nan if that is not wanted."""
    if not bool(triangle.lower.isfinite().all() & triangle.diagonal[1].isfinite().all()):
        return math.nan, math.nan
    if bool((triangle.diagonal[0] == 0).any()):
        return -math.inf, math.nan
    inverse = _invert(triangle)
    changes = [inverse.log2_change(transposed=transposed) for transposed in (False, True)] if with_condition else []
    norm = inverse.log2_norm_at_last()
    log10 = (inverse.scale - norm) * _LOG10_2
    if not with_condition:
        return log10, math.nan
    condition = sum(changes) / 2 - norm
    return log10, 2.0**condition if condition < 1023 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Triangle:
    """A lower-triangular matrix, and its diagonal where that is known better."""

    lower: Tensor
    """"row column", float64."""
    diagonal: Scaled
    """"row"."""
    doubt: Tensor
    """"row": what an underflowed diagonal entry can have lost, over the unit roundoff; 0 where nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Inverse:
    """The inverse of a triangle divided by 2^scale, which makes its largest entry less than 1."""

    triangle: _Triangle
    """Divided by 2^scale."""
    scale: float
    """Whole."""
    mantissa: Tensor
    """"row column", at most 1 in size."""
    exponent: Tensor
    """"block column": the inverse is mantissa 2^exponent."""
    block: Tensor
    """"row", int64: which block it belongs to."""

    def log2_norm_at_last(self) -> float:
        """log2 of the norm of the inverse; its mantissas are overwritten, for want of memory, and it is of no more use."""
        top = self.exponent.max()
        for number, factors in enumerate(torch.exp2(self.exponent - top)):
            self.mantissa[self.block == number] *= factors
        return float(top) + math.log2(float(singular_values(self.mantissa, method="gram", workers=1).values[0]))

    def log2_change(self, *, transposed: bool) -> float:
        """log2 of the largest row sum of |X| |A 2^-scale| |X|, X the inverse, or of the largest column sum."""
        n = len(self.block)
        sums = _split(torch.ones(n, dtype=torch.float64, device=self.mantissa.device))
        for part in (self._part, self._entries, self._part):
            chunks = [
                _product(part(slice(start, start + BLOCK_ROWS), transposed), sums) for start in range(0, n, BLOCK_ROWS)
            ]
            sums = torch.cat([mantissa for mantissa, _ in chunks]), torch.cat([exponent for _, exponent in chunks])
        top = sums[1].max()
        return float(top) + math.log2(float((sums[0] * torch.exp2(sums[1] - top)).max()))

    def _part(self, lines: slice, transposed: bool) -> Scaled:
        """|X|, some rows of it, or some columns as rows."""
        if transposed:
            return self.mantissa[:, lines].mT.abs(), self.exponent[:, lines][self.block].mT
        return self.mantissa[lines].abs(), self.exponent[self.block[lines]]

    def _entries(self, lines: slice, transposed: bool) -> Scaled:
        """|A 2^-scale| with what its entries can have lost to underflow, likewise."""
        triangle, doubtful = self.triangle, self.triangle.doubt > 0
        entries = triangle.lower[:, lines].mT.abs() if transposed else triangle.lower[lines].abs()
        row, column = torch.arange(lines.start, lines.start + len(entries)), torch.arange(len(self.block))
        below = (column[None, :] > row[:, None]) if transposed else (column[None, :] < row[:, None])
        entries = (entries + _DOUBT).where(below.to(entries.device), 0.0)
        powers = torch.zeros_like(entries)
        diagonal = torch.where(doubtful, triangle.doubt, triangle.diagonal[0].abs())
        entries.diagonal(offset=lines.start)[:] = diagonal[lines]
        powers.diagonal(offset=lines.start)[:] = triangle.diagonal[1].where(~doubtful, 0.0)[lines]
        return entries, powers


def _triangles(matrix: Tensor, log_diagonal: Tensor | None) -> Iterator[_Triangle]:
    """Each matrix in float64, transposed if it is upper-triangular."""
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] < 1:
        raise ConfigurationError(
            f"matrix must be square on its last two axes, got shape {tuple(matrix.shape)!r}. "
            "Measure a triangular block of it."
        )
    stack = rearrange(matrix, "... row column -> (...) row column")
    logs = None if log_diagonal is None else rearrange(log_diagonal, "... row -> (...) row")
    for index, entries in enumerate(stack):
        lower = entries.to(torch.float64)
        if bool(lower.isfinite().all()) and bool(lower.triu(1).any()):  # nan has no side
            if bool(lower.tril(-1).any()):
                raise ConfigurationError(
                    f"matrix must be triangular, got entries on both sides of the diagonal in matrix {index}. "
                    "Its singular values come from an SVD, its determinant from `log_abs_det`."
                )
            lower = lower.mT
        yield _triangle(lower, None if logs is None else logs[index])


def _triangle(lower: Tensor, log_diagonal: Tensor | None) -> _Triangle:
    mantissa, exponent = _split(lower.diagonal())
    lost = lower.diagonal().abs() < lower.abs().max() * UNDERFLOW
    if log_diagonal is None:
        return _Triangle(lower=lower, diagonal=(mantissa, exponent), doubt=lost.to(lower) * _DOUBT)
    log2 = log_diagonal.to(lower) / math.log(2)
    whole = log2.floor() + 1
    diagonal = torch.where(lost, torch.exp2(log2 - whole), mantissa), torch.where(lost, whole, exponent)
    return _Triangle(lower=lower, diagonal=diagonal, doubt=torch.zeros_like(log2))


def _invert(triangle: _Triangle) -> _Inverse:
    """Forward substitution by blocks of rows; the largest exponent so far is kept for every column."""
    lower, scale = _normalised(triangle.lower)
    diagonal = triangle.diagonal[0], triangle.diagonal[1] - scale
    blocks = _row_blocks(lower, diagonal)
    block = torch.repeat_interleave(
        torch.arange(len(blocks)), torch.tensor([stop - start for start, stop in blocks])
    ).to(lower.device)
    mantissa, exponent = torch.zeros_like(lower), lower.new_full((len(blocks), len(lower)), _NOTHING)
    top = lower.new_full((len(lower),), _NOTHING)
    for number, (start, stop) in enumerate(blocks):
        known = lower.new_zeros(stop - start, start)
        for earlier, (first, last) in enumerate(blocks[:number]):  # a copy of one block of rows at a time
            seen = mantissa[first:last, :last] * torch.exp2(exponent[earlier, :last] - top[:last])
            known[:, :last] -= lower[start:stop, first:last] @ seen
        unit = torch.eye(stop - start, dtype=torch.float64, device=lower.device)
        solved, extra = _solve(lower, diagonal, start, torch.cat([known, unit], dim=1))
        largest = solved.abs().amax(dim=0)
        kept = largest > UNDERFLOW
        grown = torch.where(kept, _split(largest)[1], 0.0)
        begun = torch.cat([top[:start], torch.zeros_like(top[start:stop])])  # the unit vectors stand at 2^0
        mantissa[start:stop, :stop] = (solved * torch.exp2(-grown)).where(kept, 0.0)
        exponent[number, :stop] = (begun + grown + extra).where(kept, _NOTHING)
        top[:stop] = torch.maximum(top[:stop], exponent[number, :stop])
    scaled = _Triangle(lower=lower, diagonal=diagonal, doubt=triangle.doubt)
    return _Inverse(triangle=scaled, scale=scale, mantissa=mantissa, exponent=exponent, block=block)


def _normalised(lower: Tensor) -> tuple[Tensor, float]:
    """The matrix over a power of two, and its exponent: 0, and no copy, where the largest entry is near 1 as it is."""
    largest = float(torch.maximum(lower.max(), -lower.min()))
    scale = math.frexp(largest)[1]
    if abs(scale) <= USUAL:
        return lower, 0.0
    half = scale // 2  # 2^-scale itself may overflow
    return lower * 2.0**-half * 2.0 ** (half - scale), float(scale)


def _solve(lower: Tensor, diagonal: Scaled, start: int, right: Tensor) -> tuple[Tensor, float]:
    """The rows from `start` on against "row column": a solution and the exponent of a power of two it is to be taken by."""
    rows = slice(start, start + len(right))
    if len(right) == 1:  # its diagonal entry may be as small as it likes
        return right / diagonal[0][start], -float(diagonal[1][start])
    return torch.linalg.solve_triangular(lower[rows, rows], right, upper=False), 0.0


def _row_blocks(lower: Tensor, diagonal: Scaled) -> list[tuple[int, int]]:
    """Rows to solve together: as many as cannot leave float64's range, whatever the numbers are.

    Row i makes at most (1 + sum_j |A_ij|) / |A_ii| of the largest value before it.
    """
    growth = ((1 + lower.abs().sum(dim=1)).log2() - diagonal[1] + 1).tolist()
    blocks, start, grown = [], 0, 0.0
    for row, powers in enumerate(growth):
        if row > start and (row - start == BLOCK_ROWS or grown + powers > BLOCK_RANGE):
            blocks.append((start, row))
            start, grown = row, 0.0
        grown += powers
    return [*blocks, (start, len(growth))]


def _product(matrix: Scaled, vector: Scaled) -> Scaled:
    """A matrix "row column" of numbers at least 0 times such a vector "column": nothing cancels, nothing underflows."""
    exponents = (matrix[1] + vector[1]).where((matrix[0] > 0) & (vector[0] > 0), _NOTHING)
    top = exponents.amax(dim=1)
    mantissa, exponent = _split((matrix[0] * torch.exp2(exponents - top[:, None]) * vector[0]).sum(dim=1))
    return mantissa, (top + exponent).where(mantissa > 0, _NOTHING)


def _split(values: Tensor) -> Scaled:
    """Mantissa and exponent, both float64."""
    mantissa, exponent = torch.frexp(values)
    return mantissa, exponent.to(torch.float64)
