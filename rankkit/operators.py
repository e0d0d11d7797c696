"""Matrices as linear maps: attention from its factors, matrices of one's own, and sums of either.

Capture makes operators and spectra consume them; neither knows the other. An operator is a batch of matrices that share
one shape. Nothing is computed until it is asked for, and products with vectors never form a matrix of attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import Mask, Padded
from rankkit_kernels.adjoint import attend_adjoint
from rankkit_kernels.attention import attend
from rankkit_kernels.row_blocks import RowStatistics, gram_product, row_statistics

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["AttentionOperator", "DenseOperator", "Operator", "SumOperator", "Transposed"]

ROW_SUM_TOLERANCE = 1e-5
"""Rows of a matrix of one's own count as summing to 1 within this: a float32 softmax over 10^4 keys is off by 1e-6."""


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
        against `rows_sum_to_one`.
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

    def gram_product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A X and A^T A X of "... column probe"."""
        product = self @ x
        return product, self.adjoint_product(product)

    @property
    def T(self) -> Transposed:  # noqa: N802 (as NumPy, SciPy and torch call it)
        """The transposes, for `A.T @ Y`."""
        return Transposed(self)

    def __add__(self, other: Operator) -> SumOperator:
        return SumOperator(terms=(*_weighted(1.0, self), *_weighted(1.0, other)))

    def __sub__(self, other: Operator) -> SumOperator:
        return SumOperator(terms=(*_weighted(1.0, self), *_weighted(-1.0, other)))

    def __mul__(self, weight: float) -> SumOperator:
        return SumOperator(terms=_weighted(float(weight), self))

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


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionOperator(Operator):
    """softmax(scale Q K^T, masked) for any number of heads and sequences that share one mask, not yet computed.

    Every entry of the matrix is recomputed from the factors in the dtype asked for, float64 by default, so what is
    measured is the exact softmax of the logits that the model's own Q and K define. A row that sees nothing is zero.
    """

    query: Tensor
    """"... query feature", as the model used it: after the position encoding."""
    key: Tensor
    """"... key feature", same leading axes."""
    mask: Mask
    """Who sees whom."""
    scale: float
    """Factor of the logits; 1/sqrt(feature) in most models."""
    labels: Mapping[str, int | str] = field(default_factory=dict)
    """Where it comes from: `layer`, `kind`, `sequence`."""

    def __post_init__(self) -> None:
        same = self.query.shape[:-2] == self.key.shape[:-2] and self.query.shape[-1:] == self.key.shape[-1:]
        if self.query.dim() < 2 or self.key.dim() < 2 or not same:
            raise ConfigurationError(
                f"query and key must both be (..., position, feature), got {tuple(self.query.shape)} and "
                f"{tuple(self.key.shape)}. Expand grouped keys to one per query head first."
            )
        expected = self.mask.columns(self.rows)
        if self.columns != expected:
            raise ConfigurationError(
                f"key must have {expected} positions for {self.rows} queries under {self.mask}, got {self.columns}. "
                "Use Cross(queries, keys) for two sequences."
            )

    @property
    def size(self) -> int:
        """Rows of each matrix, and columns but under `Cross`."""
        return self.rows

    @property
    def rows(self) -> int:
        """Queries."""
        return self.query.shape[-2]

    @property
    def columns(self) -> int:
        """Keys."""
        return self.key.shape[-2]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes: one matrix for each of their entries."""
        return tuple(self.query.shape[:-2])

    @property
    def device(self) -> torch.device:
        """Of the factors."""
        return self.query.device

    @property
    def structure(self) -> frozenset[str]:
        """Attention has non-negative rows that sum to 1."""
        found = {"attention", "rows_sum_to_one", "non_negative"}
        if self.rows == self.columns:
            found.add("square")
            if len(self.mask.triangular_rows(self.rows)) == self.rows:
                found.add("triangular")
        return frozenset(found)

    def logits(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Scale Q K^T before the mask, "... query key"."""
        return self.scale * (self.query.to(dtype) @ self.key.to(dtype).transpose(-1, -2))

    def allowed(self) -> Tensor:
        """The mask's definition at this size, "query key", bool, on the factors' device."""
        return self.mask.allowed(self.size).to(self.query.device)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrices themselves.

        Args:
            dtype: of the whole computation, logits included.

        Returns:
            "... query key", rows summing to 1 (0 where a row sees nothing), zero where the mask forbids.
        """
        return masked_softmax(self.logits(dtype), self.allowed())

    def block(self, rows: slice, columns: slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """Some rows and columns of the dense matrix, with memory for those rows only.

        Rows are normalised over all their columns, so this is a part of the matrix and not attention within the block;
        for that, see `leading`.

        Args:
            rows: which queries.
            columns: which keys.
            dtype: of the computation.

        Returns:
            "... query key" of the block.
        """
        logits = self.scale * (self.query[..., rows, :].to(dtype) @ self.key.to(dtype).transpose(-1, -2))
        return masked_softmax(logits, self.allowed()[rows])[..., columns]

    def __matmul__(self, x: Tensor) -> Tensor:
        """A X as fused attention with X for values, in blocks as wide as a head."""
        inner = self._without_padding()
        query, key, values = inner._batched(x[..., : inner.columns, :])
        plan, width = inner.mask.fused_plan(inner.rows), query.shape[-1]
        blocks = F.pad(values, (0, -values.shape[-1] % width)).split(width, dim=-1)
        mixed = torch.cat([attend(query, key, block, plan, scale=self.scale) for block in blocks], dim=-1)
        return _padded(mixed[0, ..., : x.shape[-1]].reshape(*self.batch_shape, inner.rows, x.shape[-1]), self.rows)

    def adjoint_product(self, y: Tensor) -> Tensor:
        """A^T Y as fused attention with queries and keys exchanged, or by blocks of rows (`rankkit_kernels.adjoint`)."""
        inner = self._without_padding()
        query, key, values = inner._batched(y[..., : inner.rows, :])
        plan, transposed = inner.mask.fused_plan(inner.rows), inner.mask.transposed().fused_plan(inner.columns)
        statistics = None
        if y.dtype == torch.float32:  # in float64 fused calls are no faster than blocks of rows, which need none
            sums, columns = self.row_statistics.log_sum_exp, self.row_statistics.column_sums
            statistics = (sums.reshape(query.shape[:-1]), columns.reshape(key.shape[:-1]))
        mixed = attend_adjoint(query, key, values, plan, transposed, scale=self.scale, statistics=statistics)
        return _padded(mixed[0].reshape(*self.batch_shape, inner.columns, y.shape[-1]), self.columns)

    def gram_product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A X and A^T A X in one pass over blocks of rows, which computes every entry of A once."""
        inner = self._without_padding()
        plan, seen = inner.mask.fused_plan(inner.rows), x[..., : inner.columns, :]
        query, key = inner.query.to(x.dtype), inner.key.to(x.dtype)
        product, gram = gram_product(query, key, seen, plan, scale=self.scale)
        return _padded(product, self.rows), _padded(gram, self.columns)

    @cached_property
    def row_statistics(self) -> RowStatistics:
        """What one pass over the rows gives, in float64 and O(n) memory; of the positions that are not padding."""
        inner = self._without_padding()
        plan = inner.mask.fused_plan(inner.rows)
        return row_statistics(inner.query.double(), inner.key.double(), plan, scale=self.scale)

    def _without_padding(self) -> AttentionOperator:
        """The positions that take part."""
        if not isinstance(self.mask, Padded):
            return self
        length = self.mask.visible_length(self.rows)
        query, key = self.query[..., :length, :], self.key[..., :length, :]
        return replace(self, query=query, key=key, mask=self.mask.mask)

    def _batched(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and values as the kernels take them, "1 matrix position feature", in the dtype of the values."""
        tensors = (self.query.to(values.dtype), self.key.to(values.dtype), values)
        query, key, value = (rearrange(t, "... position feature -> 1 (...) position feature") for t in tensors)
        return query, key, value

    def flattened(self) -> AttentionOperator:
        """One leading axis, "matrix"."""
        query, key = (rearrange(t, "... position feature -> (...) position feature") for t in (self.query, self.key))
        return replace(self, query=query, key=key)

    def __getitem__(self, matrices: slice) -> AttentionOperator:
        return replace(self, query=self.query[matrices], key=self.key[matrices])

    def leading(self, size: int) -> AttentionOperator:
        """The leading size x size block as an operator of its own.

        Exact, because it is only granted where the first `size` rows see nothing beyond it: `prefix_block` is
        `leading(prefix_length)`.

        Raises:
            ConfigurationError: the mask lets those rows see further, or `size` is not within 1..n.
        """
        if not 1 <= size <= self.size:
            raise ConfigurationError(
                f"size must be between 1 and {self.size}, got {size}. Choose a block inside the matrix."
            )
        if size == self.size:
            return self
        return replace(self, query=self.query[..., :size, :], key=self.key[..., :size, :], mask=self.mask.leading(size))

    def without_first_key(self) -> AttentionOperator:
        """The sink-removed control: attention of the positions after the first, from their logits.

        A sink at the first key decides every rank; dividing its column out of A would not give attention. Rows are
        normalised anew over the keys that are left, and the first row, which saw only that key, goes with it.

        Raises:
            ConfigurationError: there is no second position, or queries and keys are two sequences.
        """
        if self.size < 2:
            raise ConfigurationError(f"size must be at least 2, got {self.size}. There is no other key.")
        query, key = self.query[..., 1:, :], self.key[..., 1:, :]
        return replace(self, query=query, key=key, mask=self.mask.without_first_key())

    def with_mask(self, mask: Mask) -> AttentionOperator:
        """The same factors under another mask: the mask-swap control."""
        return replace(self, mask=mask)


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


@dataclass(frozen=True, kw_only=True, eq=False)
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


def _weighted(weight: float, operator: Operator) -> tuple[tuple[float, Operator], ...]:
    """An operator's terms times a weight; a sum of sums is one sum."""
    terms = operator.terms if isinstance(operator, SumOperator) else ((1.0, operator),)
    return tuple((weight * inner, term) for inner, term in terms)


def masked_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over what the mask allows; zeros in a row that sees nothing, nan where a visible logit is nan or +inf.

    Args:
        logits: "... query key"; overwritten.
        allowed: "query key", bool.
    """
    hidden = ~allowed
    largest = logits.masked_fill_(hidden, -torch.inf).amax(dim=-1, keepdim=True)
    attention = torch.softmax(logits, dim=-1)
    attention.masked_fill_(hidden, 0.0)  # in a row with a nan, hidden entries would be nan too
    return attention.masked_fill_(largest == -torch.inf, 0.0)


def _padded(product: Tensor, length: int) -> Tensor:
    """Zeros for the positions that are padding."""
    missing = length - product.shape[-2]
    return F.pad(product, (0, 0, 0, missing)) if missing else product
