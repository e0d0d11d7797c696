"""What every operator is: a batch of matrices of one shape, as linear maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankkit.display import html_table
from rankkit.errors import ConfigurationError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from rankkit.operators.sums import SumOperator

__all__ = ["ROW_SUM_TOLERANCE", "Operator", "Transposed"]

ROW_SUM_TOLERANCE = 1e-5
"""Rows count as summing to 1 within this: a float32 softmax over 10^4 keys is off by 1e-6."""


class Operator(ABC):
    """A batch of matrices A, "... row column", each a linear map."""

    @property
    @abstractmethod
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes: one matrix for each of their entries."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows of each matrix: queries."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """Columns of each matrix: keys."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where products are computed."""

    @property
    @abstractmethod
    def structure(self) -> frozenset[str]:
        """What holds for every matrix, among `attention`, `rows_sum_to_one`, `non_negative`, `square`, `triangular`.

        A measure that rests on something that does not hold is switched off by name. Empty rows (padding) do not count
        against `rows_sum_to_one`; rows beside a sink, which sum to less, do.
        """

    @abstractmethod
    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrices themselves, "... row column"; memory for all of them."""

    @abstractmethod
    def __matmul__(self, x: Tensor) -> Tensor:
        """A X: "... column probe" to "... row probe", in the dtype of X."""

    @abstractmethod
    def adjoint_product(self, y: Tensor) -> Tensor:
        """A^T Y: "... row probe" to "... column probe", in the dtype of Y."""

    @abstractmethod
    def flattened(self) -> Operator:
        """The same matrices along one leading axis, "matrix"."""

    @abstractmethod
    def __getitem__(self, matrices: slice) -> Operator:
        """Some of them along the first axis."""

    def facts(self) -> dict[str, str]:
        """What there is to say of the matrices without computing anything, by what it is."""
        return {
            "matrices": " x ".join(map(str, self.batch_shape)) or "1",
            "size": f"{self.rows} x {self.columns}",
            "device": str(self.device),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}: {text}' for name, text in self.facts().items())})"

    def _repr_html_(self) -> str:
        """The facts, for notebooks."""
        return html_table(type(self).__name__, (), list(self.facts().items()))

    def gram_product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A X and A^T A X of "... column probe"."""
        product = self @ x
        return product, self.adjoint_product(product)

    @property
    def T(self) -> Transposed:  # noqa: N802 (as NumPy, SciPy and torch call it)
        """The transposes, for `A.T @ Y`."""
        return Transposed(self)

    def __add__(self, other: Operator) -> SumOperator:
        return _sum((1.0, self), (1.0, other))

    def __sub__(self, other: Operator) -> SumOperator:
        return _sum((1.0, self), (-1.0, other))

    def __mul__(self, weight: float) -> SumOperator:
        return _sum((float(weight), self))

    __rmul__ = __mul__

    def as_linear_operator(self) -> LinearOperator:
        """One matrix for SciPy: `svds`, `lsqr` and whatever else takes vectors.

        Returns:
            A `scipy.sparse.linalg.LinearOperator` of shape (rows, columns), float64.

        Raises:
            ConfigurationError: there are several matrices.
        """
        from scipy.sparse.linalg import LinearOperator

        count = torch.Size(self.batch_shape).numel()
        if count != 1:
            raise ConfigurationError(
                f"operator must hold one matrix, got {count}. Take one of them: operator.flattened()[0:1]."
            )

        def tensor(vectors: Any) -> Tensor:
            return torch.as_tensor(vectors, dtype=torch.float64, device=self.device).reshape(
                *self.batch_shape, len(vectors), -1
            )

        def product(vectors: Any) -> Any:
            return (self @ tensor(vectors)).reshape(self.rows, -1).numpy(force=True)

        def adjoint(vectors: Any) -> Any:
            return self.adjoint_product(tensor(vectors)).reshape(self.columns, -1).numpy(force=True)

        shape = (self.rows, self.columns)
        return LinearOperator(
            shape, dtype="float64", matvec=product, matmat=product, rmatvec=adjoint, rmatmat=adjoint
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Transposed:
    """A^T, for products."""

    operator: Operator
    """A."""

    def __matmul__(self, y: Tensor) -> Tensor:
        return self.operator.adjoint_product(y)

    @property
    def T(self) -> Operator:  # noqa: N802
        """A again."""
        return self.operator


def _sum(*terms: tuple[float, Operator]) -> SumOperator:
    from rankkit.operators.sums import weighted_sum  # which is an operator itself

    return weighted_sum(*terms)
