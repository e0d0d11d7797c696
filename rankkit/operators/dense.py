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


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseOperator(Operator):
    """Matrices that are already there: somebody else's attention, a kernel without a softmax, anything."""

    matrix: Tensor
    """"... row column", any real dtype."""
    labels: Mapping[str, int | str] = field(default_factory=dict)
    """Where it comes from."""

    def __post_init__(self) -> None:
        if self.matrix.dim() < 2 or 0 in self.matrix.shape[-2:] or self.matrix.is_complex():
            raise ConfigurationError(
                f"matrix must be real with at least one row and one column on its last two axes, got "
                f"{self.matrix.dtype} {tuple(self.matrix.shape)}. Pass an array of shape (..., row, column)."
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

    @cached_property
    def structure(self) -> frozenset[str]:
        """What every matrix without a non-finite entry turns out to have."""
        finite = self.matrix[self.matrix.isfinite().flatten(-2).all(dim=-1)]
        found = {"square"} if self.rows == self.columns else set()
        if bool((finite >= 0).all()):
            found.add("non_negative")
        sums = finite.sum(dim=-1, dtype=torch.float64)
        if bool((((sums - 1).abs() <= ROW_SUM_TOLERANCE) | (finite == 0).all(dim=-1)).all()):
            found.add("rows_sum_to_one")
        if "square" in found and (not finite.triu(1).any() or not finite.tril(-1).any()):
            found.add("triangular")
        return frozenset(found)

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
        return replace(self, matrix=rearrange(self.matrix, "... row column -> (...) row column"))

    def __getitem__(self, matrices: slice) -> DenseOperator:
        return replace(self, matrix=self.matrix[matrices])
