"""Attention from its factors, not yet computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import Mask, Padded
from rankkit.operators.base import Operator
from rankkit_kernels.adjoint import adjoint_path, attend_adjoint
from rankkit_kernels.attention import FusedCall, attend
from rankkit_kernels.row_blocks import RowStatistics, gram_product, product, row_statistics
from rankkit_kernels.scores import Bias, Scores, softmax_with_sink

__all__ = ["AttentionOperator", "ProductPath", "masked_softmax", "product_path"]

ProductPath: TypeAlias = Literal["fused", "row-blocks"]


def product_path(device: torch.device, dtype: torch.dtype, scores: Scores) -> ProductPath:
    """How A X is computed: fused where torch has a kernel for it that takes O(n) memory, else by blocks of rows.

    A cap no kernel of torch's SDPA has, a sink neither, and a bias would have to be n x n. In float64 CUDA has no fused
    kernel at all. The path of A^T Y is chosen by `rankkit_kernels.adjoint.adjoint_path`.

    Args:
        device: where the factors live.
        dtype: of the product.
        scores: cap, bias and sink.

    Returns:
        `fused` or `row-blocks`.
    """
    return "row-blocks" if scores or (device.type == "cuda" and dtype == torch.float64) else "fused"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttentionOperator(Operator):
    """softmax(scale Q K^T, masked) for any number of heads and sequences that share one mask, not yet computed.

        s_ij = c tanh(scale q_i . k_j / c) + b_ij       A_ij = exp(s_ij) / (exp(sink) + sum over visible k of exp(s_ik))

    where the model has a soft cap c, a bias b or a sink; without them these steps are left out, and cost nothing.

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
    """Factor of the products of queries and keys; 1/sqrt(feature) in most models."""
    softcap: float | None = None
    """c of c tanh(s / c), applied to the scaled products (Gemma 2); None for no cap."""
    bias: Bias | None = None
    """Added after the cap, by offset (ALiBi, T5) or dense; leading axes that broadcast. -inf hides a key, which still counts
    as visible: what the mask can say is better said by the mask."""
    sink: Tensor | None = None
    """"...", one logit per matrix of a key that nobody reads (GPT-OSS): rows then sum to less than 1."""
    accumulation: torch.dtype | None = None
    """Precision in which the model wrote its attention out, for the noise floor; None for a fused kernel, which takes logits
    and softmax in float32 or better."""
    labels: Mapping[str, int | str] = field(default_factory=dict)
    """Where it comes from: `layer`, `kind`, `sequence`."""

    def __post_init__(self) -> None:
        same = self.query.shape[:-2] == self.key.shape[:-2] and self.query.shape[-1:] == self.key.shape[-1:]
        if self.query.dim() < 2 or self.key.dim() < 2 or not same:
            raise ConfigurationError(
                f"query and key must both be (..., position, feature), got {tuple(self.query.shape)} and "
                f"{tuple(self.key.shape)}. Expand grouped keys to one per query head first."
            )
        if not isinstance(self.mask, Mask):
            raise ConfigurationError(
                f"mask must be one for all matrices, got {self.mask!r}. Make an operator for each run of heads."
            )
        expected = self.mask.columns(self.rows)
        if self.columns != expected:
            raise ConfigurationError(
                f"key must have {expected} positions for {self.rows} queries under {self.mask}, got {self.columns}. "
                "Use Cross(queries, keys) for two sequences."
            )
        self._expand_scores()

    def _expand_scores(self) -> None:
        """Bias and sink with the leading axes of the factors."""
        try:
            scores = Scores(softcap=self.softcap, bias=self.bias, sink=self.sink)
            scores = scores.expanded(self.batch_shape, self.rows, self.columns)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        for name, values in (("bias", None if scores.bias is None else scores.bias.values), ("sink", scores.sink)):
            if values is not None and (values.device != self.device or not values.is_floating_point()):
                raise ConfigurationError(
                    f"{name} must be floating-point numbers on {self.device} (as the query), got {values.dtype} on "
                    f"{values.device}. Convert it."
                )
        object.__setattr__(self, "bias", scores.bias)
        object.__setattr__(self, "sink", scores.sink)

    def facts(self) -> dict[str, str]:
        """Sizes, mask, scale, and what else enters the logits."""
        dtype = str(self.query.dtype).removeprefix("torch.")
        found = {
            **super().facts(),
            "mask": repr(self.mask),
            "scale": f"{self.scale:.4g}",
            "queries and keys": f"{self.query.shape[-1]} features, {dtype}",
            "softcap": "" if self.softcap is None else f"{self.softcap:g}",
            "bias": "" if self.bias is None else type(self.bias).__name__,
            "sink": "" if self.sink is None else "a logit for each matrix",
            **{name: str(label) for name, label in self.labels.items()},
        }
        return {name: text for name, text in found.items() if text}

    @property
    def scores(self) -> Scores:
        """Cap, bias and sink as the kernels take them; false where there is none."""
        return Scores(softcap=self.softcap, bias=self.bias, sink=self.sink)

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
        """Attention has non-negative rows, which sum to 1 where there is no sink."""
        found = {"attention", "non_negative"}
        if self.sink is None:
            found.add("rows_sum_to_one")
        if self.rows == self.columns:
            found.add("square")
            if len(self.mask.triangular_rows(self.rows)) == self.rows:
                found.add("triangular")
        return frozenset(found)

    def logits(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """What enters the softmax, "... query key": scale Q K^T, capped and biased, before the mask."""
        return self._logits((0, self.rows), dtype)

    def _logits(self, rows: tuple[int, int], dtype: torch.dtype) -> Tensor:
        query, key = self.query[..., slice(*rows), :].to(dtype), self.key.to(dtype)
        return self.scores.apply_(self.scale * (query @ key.mT), rows, (0, self.columns), self.rows)

    def allowed(self) -> Tensor:
        """The mask's definition at this size, "query key", bool, on the factors' device."""
        return self.mask.allowed(self.size).to(self.query.device)

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrices themselves.

        Args:
            dtype: of the whole computation, logits included.

        Returns:
            "... query key", rows summing to 1, or less beside a sink (0 where a row sees nothing), zero where the mask
            forbids.
        """
        return masked_softmax(self.logits(dtype), self.allowed(), self.sink)

    def block(self, rows: slice, columns: slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """Some rows and columns of the dense matrix, with memory for those rows only.

        Rows are normalised over all their columns, so this is a part of the matrix and not attention within the block;
        for that, see `leading`.

        Args:
            rows: which queries, without a step.
            columns: which keys.
            dtype: of the computation.

        Returns:
            "... query key" of the block.
        """
        start, stop, _ = rows.indices(self.rows)
        return masked_softmax(self._logits((start, stop), dtype), self.allowed()[start:stop], self.sink)[..., columns]

    def __matmul__(self, x: Tensor) -> Tensor:
        """A X as fused attention with X for values, in blocks as wide as a head, or by blocks of rows (`product_path`)."""
        inner = self._without_padding()
        seen = self._taking_part(x, self.columns)
        if product_path(x.device, x.dtype, self.scores) == "row-blocks":
            found = product(*inner._factors(x.dtype), seen, inner._plan, scale=self.scale, scores=inner.scores)
            return self._padded(found, self.rows)
        query, key, values = inner._batched(seen)
        width = query.shape[-1]
        blocks = F.pad(values, (0, -values.shape[-1] % width)).split(width, dim=-1)
        mixed = torch.cat([attend(query, key, block, inner._plan, scale=self.scale) for block in blocks], dim=-1)
        mixed = mixed[0, ..., : x.shape[-1]].reshape(*self.batch_shape, inner.rows, x.shape[-1])
        return self._padded(mixed, self.rows)

    def adjoint_product(self, y: Tensor) -> Tensor:
        """A^T Y as fused attention with queries and keys exchanged, or by blocks of rows (`rankkit_kernels.adjoint`)."""
        inner = self._without_padding()
        query, key, values = inner._batched(self._taking_part(y, self.rows))
        transposed = inner.mask.transposed().fused_plan(inner.columns)
        statistics, scores = None, inner.scores.flattened()
        if adjoint_path(y.device, y.dtype, has_statistics=True, scores=scores) == "fused":  # else none are needed
            sums, columns = self.row_statistics.log_sum_exp, self.row_statistics.column_sums
            statistics = (sums.reshape(query.shape[:-1]), columns.reshape(key.shape[:-1]))
        mixed = attend_adjoint(
            query, key, values, inner._plan, transposed, scale=self.scale, scores=scores, statistics=statistics
        )
        return self._padded(mixed[0].reshape(*self.batch_shape, inner.columns, y.shape[-1]), self.columns)

    def gram_product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A X and A^T A X in one pass over blocks of rows, which computes every entry of A once."""
        inner = self._without_padding()
        seen = self._taking_part(x, self.columns)
        found, gram = gram_product(*inner._factors(x.dtype), seen, inner._plan, scale=self.scale, scores=inner.scores)
        return self._padded(found, self.rows), self._padded(gram, self.columns)

    @cached_property
    def row_statistics(self) -> RowStatistics:
        """What one pass over the rows gives, in float64 and O(n) memory; of the positions that are not padding."""
        inner = self._without_padding()
        return row_statistics(*inner._factors(torch.float64), inner._plan, scale=self.scale, scores=inner.scores)

    @property
    def _plan(self) -> tuple[FusedCall, ...]:
        return self.mask.fused_plan(self.rows)

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.query.to(dtype), self.key.to(dtype)

    def _without_padding(self) -> AttentionOperator:
        """The positions that take part."""
        if not isinstance(self.mask, Padded):
            return self
        return self._within(self.mask.visible_positions(self.rows), self.mask.mask)

    def _within(self, positions: range, mask: Mask) -> AttentionOperator:
        """Some of the positions, as queries and keys, under a mask of theirs."""
        part = (positions.start, positions.stop)
        query, key = self.query[..., slice(*part), :], self.key[..., slice(*part), :]
        return replace(self, query=query, key=key, mask=mask, bias=self.scores.within(part, part, self.rows).bias)

    def _taking_part(self, x: Tensor, length: int) -> Tensor:
        """The rows of "... position probe" that are not padding's."""
        if not isinstance(self.mask, Padded):
            return x
        positions = self.mask.visible_positions(length)
        return x[..., positions.start : positions.stop, :]

    def _padded(self, found: Tensor, length: int) -> Tensor:
        """Zeros for the positions that are padding."""
        if not isinstance(self.mask, Padded):
            return found
        positions = self.mask.visible_positions(length)
        return F.pad(found, (0, 0, positions.start, length - positions.stop))

    def _batched(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and values as the kernels take them, "1 matrix position feature", in the dtype of the values."""
        tensors = (*self._factors(values.dtype), values)
        query, key, value = (rearrange(t, "... position feature -> 1 (...) position feature") for t in tensors)
        return query, key, value

    def flattened(self) -> AttentionOperator:
        """One leading axis, "matrix"; a dense bias that broadcasts is copied for each."""
        query, key = (rearrange(t, "... position feature -> (...) position feature") for t in (self.query, self.key))
        scores = self.scores.flattened()
        return replace(self, query=query, key=key, bias=scores.bias, sink=scores.sink)

    def __getitem__(self, matrices: slice) -> AttentionOperator:
        scores = self.scores[matrices]
        return replace(
            self, query=self.query[matrices], key=self.key[matrices], bias=scores.bias, sink=scores.sink
        )  # fmt: skip

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
        return self._within(range(size), self.mask.leading(size))

    def without_first_key(self) -> AttentionOperator:
        """The sink-removed control: attention of the positions after the first, from their logits.

        A sink at the first key decides every rank; dividing its column out of A would not give attention. Rows are
        normalised anew over the keys that are left, and the first row, which saw only that key, goes with it. A learned sink
        is no key, and stays.

        Raises:
            ConfigurationError: there is no second position, or queries and keys are two sequences.
        """
        if self.size < 2:
            raise ConfigurationError(f"size must be at least 2, got {self.size}. There is no other key.")
        return self._within(range(1, self.size), self.mask.without_first_key())

    def with_mask(self, mask: Mask) -> AttentionOperator:
        """The same factors, cap, bias and sink under another mask: the mask-swap control."""
        return replace(self, mask=mask)


def masked_softmax(logits: Tensor, allowed: Tensor, sink: Tensor | None = None) -> Tensor:
    """Softmax over what the mask allows; zeros in a row that sees nothing, nan where a visible logit is nan or +inf.

    Args:
        logits: "... query key"; overwritten.
        allowed: "query key", bool.
        sink: "...", logits of a key that is left out again; None for none.
    """
    hidden = ~allowed
    logits.masked_fill_(hidden, -torch.inf)
    if sink is not None:
        return softmax_with_sink(logits, sink).masked_fill_(hidden, 0.0)
    largest = logits.amax(dim=-1, keepdim=True)
    attention = torch.softmax(logits, dim=-1)
    attention.masked_fill_(hidden, 0.0)  # in a row with a nan, hidden entries would be nan too
    return attention.masked_fill_(largest == -torch.inf, 0.0)
