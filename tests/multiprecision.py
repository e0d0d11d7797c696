"""Attention in as many digits as a theorem needs, by mpmath alone: the other side of every comparison with float64."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

Rows = list[list[Any]]
"""A matrix as rows of mpmath numbers."""


def numbers(matrix: NDArray[np.float64]) -> Rows:
    """Float64 entries, exactly."""
    return [[mpmath.mpf(entry) for entry in row] for row in np.asarray(matrix, dtype=np.float64).tolist()]


def logits(query: NDArray[np.float64], key: NDArray[np.float64], scale: float) -> Rows:
    """Scale Q K^T."""
    queries, keys, factor = numbers(query), numbers(key), mpmath.mpf(scale)
    return [[factor * mpmath.fdot(zip(q, k, strict=True)) for k in keys] for q in queries]


def softmax(scores: Rows, allowed: NDArray[np.bool_]) -> Rows:
    """Masked row softmax, from its definition; a row that sees nothing is zero."""
    rows = []
    for score, visible in zip(scores, allowed.tolist(), strict=True):
        weights = [mpmath.exp(s) if seen else mpmath.mpf(0) for s, seen in zip(score, visible, strict=True)]
        total = mpmath.fsum(weights)
        rows.append([weight / total if total else total for weight in weights])
    return rows


def attention(query: NDArray[np.float64], key: NDArray[np.float64], allowed: NDArray[np.bool_], scale: float) -> Rows:
    """softmax(scale Q K^T, masked)."""
    return softmax(logits(query, key, scale), allowed)


def floats(rows: Rows) -> NDArray[np.float64]:
    """Every entry rounded once."""
    return np.array([[float(entry) for entry in row] for row in rows])


def log_abs_det(rows: Rows) -> Any:
    """log |det| by elimination of the whole matrix, which knows nothing of its triangles; -inf if singular."""
    determinant = mpmath.det(mpmath.matrix(rows))
    return mpmath.log(abs(determinant)) if determinant else -mpmath.inf


def singular_values(rows: Rows) -> list[Any]:
    """All of them, descending."""
    return sorted(mpmath.svd_r(mpmath.matrix(rows), compute_uv=False), reverse=True)


def rank(rows: Rows, digits: int) -> int:
    """By elimination with full pivoting: pivots above 10^-digits of the largest entry."""
    left = [list(row) for row in rows]
    if not left or not left[0]:
        return 0
    largest = max(abs(entry) for row in left for entry in row)
    found = 0
    while found < min(len(left), len(left[0])):
        size, row, column = max(
            (abs(left[i][j]), i, j) for i in range(found, len(left)) for j in range(found, len(left[0]))
        )
        if size <= largest * mpmath.mpf(10) ** -digits:
            break
        left[found], left[row] = left[row], left[found]
        for line in left:
            line[found], line[column] = line[column], line[found]
        for i in range(found + 1, len(left)):
            factor = left[i][found] / left[found][found]
            left[i] = [a - factor * b for a, b in zip(left[i], left[found], strict=True)]
        found += 1
    return found


def log10_smallest_singular_value(lower: Rows) -> float:
    """Of a lower-triangular matrix: its inverse column by column, and the norm of that over its largest entry."""
    n = len(lower)
    inverse = [[mpmath.mpf(0)] * n for _ in range(n)]
    for column in range(n):
        inverse[column][column] = 1 / lower[column][column]
        for row in range(column + 1, n):
            seen = ((lower[row][k], inverse[k][column]) for k in range(column, row))
            inverse[row][column] = -mpmath.fdot(seen) / lower[row][row]
    largest = max(abs(entry) for row in inverse for entry in row)
    norm = np.linalg.norm(floats([[entry / largest for entry in row] for row in inverse]), 2)
    return -float(mpmath.log10(largest) + mpmath.log10(mpmath.mpf(float(norm))))
