"""Log-determinants of attention from its logits: theorem 1 for triangular masks, theorem 2 for those with a full block.

    log |det A| = log |det P| + sum over the triangular rows of (s_ii - lse_i)

s are the logits, after cap and bias, and lse their masked row log-sum-exp, with the sink if there is one; P is the block of
the other rows and columns: nothing under a causal mask, the prefix block of a prefix mask, all of A where no row is
triangular. The sum never sees A, so it is right where LAPACK's determinant of A and the sum of log singular values are noise
(-275 and -271 for -308 at n = 64). Only P is factorised, and its conditioning decides whether the result can be believed.

An entrywise perturbation |dP| <= t P moves log |det P| by at most -log det(I - t G), G = |P^-1| P, where t ||G|| < 1:
log det(I + E) is a series in traces of powers of E = P^-1 dP, and |E| <= t G.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from rankkit.masks import Padded
from rankkit.operators import AttentionOperator
from rankkit.spectra.floors import applied_floor

__all__ = ["UNRESOLVED_FROM", "LogAbsDet", "log_abs_det", "moved_log_abs_det"]

UNRESOLVED_FROM: Final = 1e-3  # nats; a determinant known no better is not reported

_EPS: Final = 2.0**-52


class LogAbsDet(NamedTuple):
    """log |det A| of every matrix, and how far off it can be; float64, on the CPU."""

    value: Tensor
    """"...", nats, at most 0; -inf where A is singular for certain; nan where the bound exceeds `UNRESOLVED_FROM`."""
    bound: Tensor
    """"...", nats: p eps64 cond_1(P) for the factorisation, and what rounding the logits can do; inf where P is singular to
    working precision, 0 where the value is -inf, nan where there is no determinant."""


class _Block(NamedTuple):
    """What is known of P."""

    value: float
    """log |det P|."""
    bound: float
    """p eps64 cond_1(P); inf where it has no inverse."""
    growth: Tensor
    """G = |P^-1| |P|, "row column"."""


def log_abs_det(operator: AttentionOperator, /) -> LogAbsDet:
    """Natural logarithm of |det A|, with its bound; O(n) memory for the triangular rows and some p x p for P.

    Singular for certain are a matrix with rows that see nothing, one with a bias of -inf on the diagonal of its triangular
    rows, and one whose P, without a bias and with rows that see the same keys, has two equal queries or two equal keys.

    Args:
        operator: "... query feature"; any leading axes.

    Returns:
        Both with the operator's leading axes, and nan where A is rectangular or a logit is not finite.

    Source: theorems 1 and 2, above; Higham (2002), 14.6, for determinants by LU with pivoting.
    """
    found, _ = _determinants(operator, torch.zeros(operator.batch_shape, dtype=torch.float64))
    return found


def moved_log_abs_det(operator: AttentionOperator, eta: Tensor, /) -> Tensor:
    """Largest change of log |det A| when every entry moves by at most eta times itself, added to its own bound.

    Args:
        operator: "... query feature".
        eta: "...", at least 0: the model floor over sigma_1.

    Returns:
        "...", nats, float64, on the CPU; nan where log |det A| is not finite, and where eta is too large for a bound.
    """
    found, change = _determinants(operator, eta.to("cpu", torch.float64).expand(operator.batch_shape))
    return (found.bound + change).where(found.value.isfinite() & change.isfinite(), torch.nan)


def _determinants(operator: AttentionOperator, eta: Tensor) -> tuple[LogAbsDet, Tensor]:
    """Values and bounds, and how far eta moves the values: "..."."""
    n, shape = operator.rows, operator.batch_shape
    if isinstance(operator.mask, Padded) and operator.mask.length == n:
        operator = operator.with_mask(operator.mask.mask)  # nothing is padding
    if operator.columns != n or len(operator.mask.visible_positions(n)) < n:
        numbers = (math.nan, math.nan) if operator.columns != n else (-math.inf, 0.0)
        return LogAbsDet(*(torch.full(shape, number, dtype=torch.float64) for number in numbers)), eta
    share, rounding = eta.reshape(-1), _rounding(operator)
    value, bound = _triangular_part(operator, rounding)
    change = -len(operator.mask.triangular_rows(n)) * torch.log1p(-share)
    for index, block in enumerate(_blocks(operator)):
        part = _factorised(block)
        value[index] += part.value
        bound[index] += part.bound + _moved(part.growth, float(rounding[index]))
        change[index] += _moved(part.growth, float(share[index]))
    finite = rounding.isfinite()
    singular = (_equal_positions(operator) | _zero_on_diagonal(operator)) & finite
    value = value.where(bound <= UNRESOLVED_FROM, torch.nan).where(~singular, -torch.inf)
    bound = bound.where(finite, torch.nan).where(~singular, 0.0)
    return LogAbsDet(value.reshape(shape), bound.reshape(shape)), change.reshape(shape)


def _rounding(operator: AttentionOperator) -> Tensor:
    """Relative error of the entries of A formed in float64, "matrix": the floor of a float64 model over sigma_1."""
    one = torch.ones(operator.batch_shape, dtype=torch.float64)
    return applied_floor(operator, largest=one, probabilities=torch.float64).reshape(-1)


def _block_size(operator: AttentionOperator) -> int:
    """Rows and columns of P: those before the triangular rows, which come last under every mask that has some."""
    rows = operator.mask.triangular_rows(operator.rows)
    assert len(rows) == 0 or rows.stop == operator.rows, f"triangular rows of {operator.mask} must come last"
    return rows.start if len(rows) else operator.rows


def _triangular_part(operator: AttentionOperator, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of s_ii - lse_i over the triangular rows, and what its rounding can be: "matrix"."""
    p, count = _block_size(operator), len(rounding)
    if p == operator.rows:
        return torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    statistics = operator.row_statistics
    logs = (statistics.diagonal_logit - statistics.log_sum_exp)[..., p:].reshape(count, operator.rows - p).cpu()
    return logs.sum(dim=-1), (operator.rows - p) * (rounding + _EPS * logs.abs().sum(dim=-1))


def _blocks(operator: AttentionOperator) -> Iterator[Tensor]:
    """P of one matrix after the other, "row column"; none where it is empty."""
    p, flat = _block_size(operator), operator.flattened()
    plan = operator.mask.fused_plan(operator.rows)
    closed = all(call.columns[1] <= p for call in plan if call.rows[0] < p)
    for index in range(len(flat.query) if p else 0):
        single = flat[index : index + 1]
        yield (single.leading(p).dense() if closed else single.block(slice(p), slice(p)))[0]


def _factorised(block: Tensor) -> _Block:
    """LU with partial pivoting of P, and its inverse."""
    factors, _, singular = torch.linalg.lu_factor_ex(block)
    inverse = torch.linalg.inv_ex(block).inverse
    condition = torch.linalg.matrix_norm(block, 1) * torch.linalg.matrix_norm(inverse, 1)
    bound = float(len(block) * _EPS * condition)
    resolved = not int(singular) and math.isfinite(bound)
    value = float(factors.diagonal().abs().log().sum())
    return _Block(value if resolved else math.nan, bound if resolved else math.inf, inverse.abs() @ block.abs())


def _moved(growth: Tensor, share: float) -> float:
    """-log det(I - share G), the most that relative changes of `share` do to log |det P|; inf where that may diverge."""
    if not share * float(torch.linalg.matrix_norm(growth, torch.inf)) < 1:
        return math.inf
    return -float(torch.linalg.slogdet(torch.eye(len(growth)).to(growth) - share * growth).logabsdet)


def _zero_on_diagonal(operator: AttentionOperator) -> Tensor:
    """Whether a triangular row gives itself nothing: "matrix", bool, on the CPU."""
    if operator.bias is None:
        return torch.zeros(math.prod(operator.batch_shape), dtype=torch.bool)
    diagonal = operator.row_statistics.diagonal_logit[..., _block_size(operator) :]
    return (diagonal == -torch.inf).any(dim=-1).reshape(-1).cpu()


def _equal_positions(operator: AttentionOperator) -> Tensor:
    """Whether two queries of P or two of its keys make equal rows or columns: "matrix", bool, on the CPU."""
    p, flat = _block_size(operator), operator.flattened()
    seen = {(call.sees, call.columns) for call in operator.mask.fused_plan(operator.rows) if call.rows[0] < p}
    if operator.bias is not None or len(seen) > 1 or any(sees != "all" for sees, _ in seen):  # position counts
        return torch.zeros(len(flat.query), dtype=torch.bool)
    factors = [(flat.query * operator.scale)[:, :p], flat.key[:, :p]]
    found = [[len(torch.unique(positions, dim=0)) < p for positions in factor] for factor in factors]
    return torch.tensor(found, dtype=torch.bool).reshape(2, -1).any(dim=0)
