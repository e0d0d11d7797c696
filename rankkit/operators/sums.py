"""Weighted sums of operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.operators.base import ROW_SUM_TOLERANCE, Operator

__all__ = ["SumOperator", "weighted_sum"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SumOperator(Operator):
    """A weighted sum of operators of one shape: differential attention is one operator minus another."""

    terms: Sequence[tuple[float, Operator]]
    """Weights and operators."""

    def __post_init__(self) -> None:
        shapes = {(operator.batch_shape, operator.rows, operator.columns) for _, operator in self.terms}
        if len(shapes) != 1:
            raise ConfigurationError(
                f"terms must have one shape, got {sorted(map(str, shapes))}. Add operators of equal shape."
            )

    @property
    def _first(self) -> Operator:
        return self.terms[0][1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The terms'."""
        return self._first.batch_shape

    @property
    def rows(self) -> int:
        """The terms'."""
        return self._first.rows

    @property
    def columns(self) -> int:
        """The terms'."""
        return self._first.columns

    @property
    def device(self) -> torch.device:
        """The first term's."""
        return self._first.device

    @property
    def structure(self) -> frozenset[str]:
        """What the terms share and the weights keep."""
        found = set(self._first.structure - {"attention", "triangular"})
        for _, operator in self.terms:
            found &= operator.structure
        if any(weight < 0 for weight, _ in self.terms):
            found.discard("non_negative")
        if abs(sum(weight for weight, _ in self.terms) - 1) > ROW_SUM_TOLERANCE:
            found.discard("rows_sum_to_one")
        return frozenset(found)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The weighted sum of the terms' matrices."""
        return self._sum(operator.dense(dtype) for _, operator in self.terms)

    def __matmul__(self, x: Tensor) -> Tensor:
        """A X."""
        return self._sum(operator @ x for _, operator in self.terms)

    def adjoint_product(self, y: Tensor) -> Tensor:
        """A^T Y."""
        return self._sum(operator.adjoint_product(y) for _, operator in self.terms)

    def _sum(self, products: Iterator[Tensor]) -> Tensor:
        weighted = [weight * product for (weight, _), product in zip(self.terms, products, strict=True)]
        return torch.stack(weighted).sum(dim=0) if len(weighted) > 1 else weighted[0]

    def flattened(self) -> SumOperator:
        """One leading axis, "matrix"."""
        return replace(self, terms=tuple((weight, operator.flattened()) for weight, operator in self.terms))

    def __getitem__(self, matrices: slice) -> SumOperator:
        return replace(self, terms=tuple((weight, operator[matrices]) for weight, operator in self.terms))


def weighted_sum(*terms: tuple[float, Operator]) -> SumOperator:
    """The operators times their weights; a sum of sums is one sum."""
    return SumOperator(
        terms=tuple((weight * inner, term) for weight, operator in terms for inner, term in _terms(operator))
    )


def _terms(operator: Operator) -> Sequence[tuple[float, Operator]]:
    return operator.terms if isinstance(operator, SumOperator) else ((1.0, operator),)
