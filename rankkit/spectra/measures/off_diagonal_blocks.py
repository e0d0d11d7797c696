"""Rank of what a triangular matrix says about the far side of its diagonal.

Under a causal mask softmax attention, linear attention and state-space mixers all have full rank: their diagonal makes
it. What separates them is the rank of the blocks below it, A[i:, :i]: at most the size of the state for linear
attention and state spaces, up to n/2 for softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.spectra.floors import arithmetic_floor
from rankkit.spectra.measures.of_singular_values import default_tolerance
from rankkit_kernels.singular_values import Method, singular_values

__all__ = ["moved_off_diagonal_block_rank", "off_diagonal_block_rank"]

SPLITS: Final = 8  # split points are i = n/8, 2n/8, ..., 7n/8


def off_diagonal_block_rank(matrix: Tensor, /, *, tolerance: float | None = None) -> Tensor:
    """Largest number of singular values above tolerance * sigma_1(A) of the blocks A[i:, :i], i = n/8, ..., 7n/8.

    Of an upper-triangular matrix the blocks A[:i, i:] are taken. Seven split points, and not all n - 1, because the rank
    changes by at most 1 from one to the next.

    Args:
        matrix: "... query key", lower- or upper-triangular, rows of any sum.
        tolerance: relative to sigma_1 of the whole matrix; max(n, m) eps(float32) by default.

    Returns:
        "...", float64, a whole number in 0..n/2, 0 for n = 1 and for the zero matrix; nan where the matrix is not
        triangular, not square or not finite.

    Raises:
        ConfigurationError: fewer than two axes, or none.
    """
    (rank,) = _ranks(matrix, tolerance, [torch.zeros(matrix.shape[:-2], dtype=torch.float64)])
    return rank


def moved_off_diagonal_block_rank(matrix: Tensor, eta: Tensor, /, *, tolerance: float | None = None) -> Tensor:
    """Largest change of `off_diagonal_block_rank` when A moves by at most eta sigma_1 in norm, and so do its blocks."""
    n, one = matrix.shape[-1], torch.ones((), dtype=torch.float64)
    share = eta.to("cpu", torch.float64) + arithmetic_floor(_method(n, tolerance), n, n, one)
    count, most, least = _ranks(matrix, tolerance, [way * share for way in (0, 1, -1)])
    return torch.maximum(most - count, count - least).where(~share.isnan(), torch.nan)


def _ranks(matrix: Tensor, tolerance: float | None, shifts: Sequence[Tensor]) -> list[Tensor]:
    """The rank "..." if values were larger and sigma_1 smaller by a shift "..." of sigma_1, for each shift; on the CPU."""
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        raise ConfigurationError(
            f"matrix must have at least one row and one column on its last two axes, got shape "
            f"{tuple(matrix.shape)!r}. Pass an array of shape (..., query, key)."
        )
    shape, n = matrix.shape[:-2], matrix.shape[-1]
    if matrix.shape[-2] != n:
        return [torch.full(shape, torch.nan, dtype=torch.float64) for _ in shifts]
    method = _method(n, tolerance)
    lower, triangular = _lower(rearrange(matrix.to(torch.float64), "... query key -> (...) query key"))
    largest = singular_values(lower, method=method, workers=1).values[:, :1]
    limit = float(default_tolerance(n, n)) if tolerance is None else tolerance
    moved = [rearrange(shift.expand(shape), "... -> (...) 1") for shift in shifts]
    thresholds = [(limit * (1 - shift).clamp(min=0.0) - shift) * largest for shift in moved]
    ranks = [torch.zeros(len(lower), dtype=torch.float64) for _ in shifts]
    for split in sorted({part * n // SPLITS for part in range(1, SPLITS)} - {0}):
        values = singular_values(lower[:, split:, :split], method=method, workers=1).values
        counts = [(values > threshold).sum(dim=-1).to(torch.float64) for threshold in thresholds]
        ranks = [torch.maximum(rank, count) for rank, count in zip(ranks, counts, strict=True)]
    known = triangular & ~largest.squeeze(-1).isnan()
    return [rank.where(known, torch.nan).reshape(shape) for rank in ranks]


def _method(n: int, tolerance: float | None) -> Method:
    """Gram where it resolves the tolerance, as it does the default one at every size."""
    floor = arithmetic_floor("gram", n, n, torch.ones((), dtype=torch.float64))
    return "gram" if tolerance is None or tolerance > float(floor) else "svd"


def _lower(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Upper-triangular matrices transposed, "matrix query key", and which are triangular at all, "matrix" on the CPU."""
    sides = [[not bool(part.any()) for part in (matrix.triu(1), matrix.tril(-1))] for matrix in matrices]
    is_lower, is_upper = torch.tensor(sides, dtype=torch.bool).reshape(-1, 2).unbind(dim=1)
    if not bool((is_upper & ~is_lower).any()):
        return matrices, is_lower
    flipped = rearrange(is_upper & ~is_lower, "matrix -> matrix 1 1").to(matrices.device)
    return torch.where(flipped, matrices.mT, matrices), is_lower | is_upper
