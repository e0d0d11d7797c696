"""How attention scores its keys beyond scale Q K^T and the mask: a soft cap, a bias, a sink.

    s_ij = c tanh(scale q_i . k_j / c) + b_ij           A_ij = exp(s_ij) / (exp(sink) + sum over visible k of exp(s_ik))

in the order of the models that have them: scale, cap, bias, mask, softmax with the sink in the denominator. A bias of
relative positions is kept as one number per offset j - i (ALiBi, T5), so that it takes O(n) memory; any other is dense.
A sink is the logit of a key that has no value: rows then sum to less than 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["Bias", "DenseBias", "OffsetBias", "Scores", "softmax_with_sink"]

Range: TypeAlias = tuple[int, int]
"""First position, and one past the last."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OffsetBias:
    """b_ij depends on j - i alone: ALiBi, T5's relative positions."""

    values: Tensor
    """"... offset": b_ij = values[..., j - i + queries - 1], with queries + keys - 1 offsets."""
    axes: ClassVar[int] = 1  # behind the leading ones

    def fits(self, queries: int, keys: int) -> bool:
        """Whether there is a number for every pair of positions."""
        return self.values.dim() >= 1 and self.values.shape[-1] == queries + keys - 1

    def within(self, rows: Range, columns: Range, queries: int) -> OffsetBias:
        """The bias of some rows and columns as one of their own.

        Args:
            rows: which queries.
            columns: which keys.
            queries: how many there are.
        """
        start = columns[0] - rows[1] + queries
        length = rows[1] - rows[0] + columns[1] - columns[0] - 1
        return OffsetBias(values=self.values[..., start : start + length])

    def block(self, rows: Range, columns: Range, queries: int) -> Tensor:
        """The numbers "... row column" of some rows and columns; the other arguments as for `within`."""
        if rows[0] == rows[1]:
            return self.values.new_empty((*self.values.shape[:-1], 0, columns[1] - columns[0]))
        strip = self.within(rows, columns, queries).values
        return strip.unfold(-1, columns[1] - columns[0], 1).flip(-2)  # with the rows reversed it depends on r + c


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseBias:
    """Any bias, one number per pair of positions."""

    values: Tensor
    """"... query key"."""
    axes: ClassVar[int] = 2

    def fits(self, queries: int, keys: int) -> bool:
        """Whether there is a number for every pair of positions."""
        return self.values.dim() >= 2 and tuple(self.values.shape[-2:]) == (queries, keys)

    def within(self, rows: Range, columns: Range, queries: int) -> DenseBias:
        """The bias of some rows and columns as one of their own; arguments as of `OffsetBias.within`."""
        return DenseBias(values=self.values[..., slice(*rows), slice(*columns)])

    def block(self, rows: Range, columns: Range, queries: int) -> Tensor:
        """The numbers "... row column" of some rows and columns."""
        return self.within(rows, columns, queries).values


Bias: TypeAlias = OffsetBias | DenseBias


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """What there is beside scale Q K^T; by default nothing."""

    softcap: float | None = None
    """c of c tanh(s / c), above 0; None for no cap."""
    bias: Bias | None = None
    """Added after the cap; -inf hides a key, which still counts as visible."""
    sink: Tensor | None = None
    """"...": one logit per matrix of a key that nobody reads."""

    def __post_init__(self) -> None:
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ValueError(
                f"softcap must be a finite number above 0, got {self.softcap!r}. Leave it out for logits without a cap."
            )

    def __bool__(self) -> bool:
        return self.softcap is not None or self.bias is not None or self.sink is not None

    def expanded(self, leading: tuple[int, ...], queries: int, keys: int) -> Scores:
        """With the leading axes of the factors, where fewer or shorter ones broadcast to them.

        Args:
            leading: axes of the factors before position and feature.
            queries: how many.
            keys: how many.

        Raises:
            ValueError: a bias or a sink does not fit them.
        """
        if self.bias is not None and not (
            self.bias.fits(queries, keys) and _broadcasts(self.bias.values.shape[: -self.bias.axes], leading)
        ):
            wanted = f"{queries + keys - 1} offsets" if self.bias.axes == 1 else f"{queries} queries and {keys} keys"
            raise ValueError(
                f"bias must have {wanted} behind leading axes that broadcast to {tuple(leading)}, got "
                f"{tuple(self.bias.values.shape)}. Make it for these positions."
            )
        if self.sink is not None and not _broadcasts(self.sink.shape, leading):
            raise ValueError(
                f"sink must broadcast to {tuple(leading)}, got {tuple(self.sink.shape)}. Pass one logit per matrix."
            )
        return self._with(lambda values, axes: values.expand((*leading, *values.shape[values.dim() - axes :])))

    def flattened(self) -> Scores:
        """With one leading axis, "matrix"."""
        patterns = ("... -> (...)", "... offset -> (...) offset", "... query key -> (...) query key")
        return self._with(lambda values, axes: rearrange(values, patterns[axes]))

    def __getitem__(self, matrices: int | slice) -> Scores:
        """Those of some matrices along the first axis."""
        return self._with(lambda values, axes: values[matrices])

    def within(self, rows: Range, columns: Range, queries: int) -> Scores:
        """Those of some rows and columns alone, of `queries` rows."""
        return replace(self, bias=None if self.bias is None else self.bias.within(rows, columns, queries))

    def apply_(self, products: Tensor, rows: Range, columns: Range, queries: int) -> Tensor:
        """The logits "... row column" of some rows and columns, in place of scale Q K^T.

        Args:
            products: scale Q K^T; overwritten.
            rows: which queries they are of.
            columns: which keys.
            queries: how many there are.

        Returns:
            `products`.
        """
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.bias is not None:
            products.add_(self.bias.block(rows, columns, queries))
        return products

    def _with(self, change: Callable[[Tensor, int], Tensor]) -> Scores:
        """Bias and sink changed; the function is told how many axes stand behind the leading ones."""
        bias, sink = self.bias, self.sink
        if bias is not None:
            bias = replace(bias, values=change(bias.values, bias.axes))
        return replace(self, bias=bias, sink=None if sink is None else change(sink, 0))


def softmax_with_sink(logits: Tensor, sink: Tensor, /) -> Tensor:
    """exp(s_ij) / (exp(sink) + sum_k exp(s_ik)), in place of the logits; a row of zeros where all of them are -inf.

    Args:
        logits: "... row column", -inf where hidden; overwritten.
        sink: "...".

    Returns:
        `logits`; rows are nan throughout where one of theirs is nan or +inf.
    """
    drain = rearrange(sink, "... -> ... 1 1").to(logits)
    largest = torch.maximum(logits.amax(dim=-1, keepdim=True), drain)
    largest = largest.masked_fill_(largest == -torch.inf, 0.0)
    weights = logits.sub_(largest).exp_()
    total = weights.sum(dim=-1, keepdim=True) + (drain - largest).exp_()
    return weights.div_(total.masked_fill_(total == 0, 1.0))


def _broadcasts(shape: tuple[int, ...], leading: tuple[int, ...]) -> bool:
    """Whether axes of this shape expand to those, aligned at their ends."""
    if len(shape) > len(leading):
        return False
    return all(size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(leading), strict=False))
