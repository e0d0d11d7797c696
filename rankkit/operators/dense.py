"""Matrices that are already there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.operators.base import ROW_SUM_TOLERANCE, Operator

__all__ = ["DenseOperator"]

SUM_ROUNDINGS = 4  # of an entry in its format: storing it, and up to three in a softmax of that precision


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DenseOperator(Operator):
    """Matrices that are already there: somebody else's attention, a kernel without a softmax, anything."""

    matrix: Tensor
    """"... row column", any real dtype."""
    precision: torch.dtype | None = None
    """Format that the entries were rounded to, where it is not that of the tensor: bfloat16 kept in float32, say."""
    applied_error: Tensor | None = None
    """"...", relative to sigma_1: how far what a model applied may lie from these matrices before their entries were
    rounded; None where that is not known or nothing."""
    labels: Mapping[str, int | str] = field(default_factory=dict)
    """Where it comes from."""

    def __post_init__(self) -> None:
        if self.matrix.dim() < 2 or 0 in self.matrix.shape[-2:] or self.matrix.is_complex():
            raise ConfigurationError(
                f"matrix must be real with at least one row and one column on its last two axes, got "
                f"{self.matrix.dtype} {tuple(self.matrix.shape)}. Pass an array of shape (..., row, column)."
            )
        if self.precision is not None and not self.precision.is_floating_point:
            raise ConfigurationError(
                f"precision must be a floating-point dtype, got {self.precision}. Leave it out for that of the matrix."
            )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes."""
        return tuple(self.matrix.shape[:-2])

    @property
    def rows(self) -> int:
        """Rows."""
        return self.matrix.shape[-2]

    @property
    def columns(self) -> int:
        """Columns."""
        return self.matrix.shape[-1]

    @property
    def device(self) -> torch.device:
        """Of the tensor."""
        return self.matrix.device

    def facts(self) -> dict[str, str]:
        """Sizes, dtype and labels."""
        dtype = str(self.matrix.dtype).removeprefix("torch.")
        return {**super().facts(), "entries": dtype, **{name: str(label) for name, label in self.labels.items()}}

    @cached_property
    def structure(self) -> frozenset[str]:
        """What every matrix without a non-finite entry turns out to have."""
        finite = self.matrix[self.matrix.isfinite().flatten(-2).all(dim=-1)]
        found = {"square"} if self.rows == self.columns else set()
        if bool((finite >= 0).all()):
            found.add("non_negative")
        sums = finite.sum(dim=-1, dtype=torch.float64)
        if bool((((sums - 1).abs() <= self._row_sum_tolerance) | (finite == 0).all(dim=-1)).all()):
            found.add("rows_sum_to_one")
        if "square" in found and (not finite.triu(1).any() or not finite.tril(-1).any()):
            found.add("triangular")
        return frozenset(found)

    @property
    def _row_sum_tolerance(self) -> float:
        """By how much storing the entries, and a softmax in their format, may move a row's sum from 1."""
        precision = self.precision or self.matrix.dtype
        if not precision.is_floating_point:
            return ROW_SUM_TOLERANCE
        format_ = torch.finfo(precision)
        underflow = self.columns * format_.smallest_normal * format_.eps / 2
        return max(ROW_SUM_TOLERANCE, SUM_ROUNDINGS * format_.eps / 2) + underflow

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The tensor in that dtype."""
        return self.matrix.to(dtype)

    def __matmul__(self, x: Tensor) -> Tensor:
        """A X."""
        return self.matrix.to(x.dtype) @ x

    def adjoint_product(self, y: Tensor) -> Tensor:
        """A^T Y."""
        return self.matrix.to(y.dtype).mT @ y

    def flattened(self) -> DenseOperator:
        """One leading axis, "matrix"."""
        error = None if self.applied_error is None else self.applied_error.reshape(-1)
        return replace(self, matrix=rearrange(self.matrix, "... row column -> (...) row column"), applied_error=error)

    def __getitem__(self, matrices: slice) -> DenseOperator:
        error = None if self.applied_error is None else self.applied_error[matrices]
        return replace(self, matrix=self.matrix[matrices], applied_error=error)
