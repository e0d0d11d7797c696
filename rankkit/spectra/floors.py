"""What a singular value must exceed to be a property of the model and not of the arithmetic.

Two floors stand beside every spectrum, in its own units, so that values compare with them directly. The arithmetic
floor bounds what the method that computed the singular values can move them by. The model floor bounds how far the
attention that the model applied, in its own precision, can lie from the exact softmax of its own logits; of a matrix that
was only handed over, `entry_floor` bounds what storing its entries moved.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.operators import AttentionOperator, Bias, DenseOperator, OffsetBias, Operator, SumOperator

__all__ = [
    "UNIT_ROUNDOFF",
    "applied_floor",
    "arithmetic_floor",
    "entry_error",
    "entry_floor",
    "largest_added",
    "model_floor",
    "resolved",
]

UNIT_ROUNDOFF: Final = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
"""Largest relative error of one rounding to nearest: half the spacing of the numbers just above 1, `finfo.eps / 2`."""

_UNDERFLOW: Final = {
    torch.float64: 0.0,  # 2^-1075, which float64 cannot hold
    torch.float32: 2.0**-150,
    torch.float16: 2.0**-25,
    torch.bfloat16: 2.0**-134,
}
"""Largest absolute error of one rounding below the normal numbers: half the spacing of the subnormal ones."""

SOFTMAX_ROUNDINGS: Final = 8
"""Roundings in exp, row sum and quotient of short rows: measured 7.5 u at most (float32, n <= 128)."""
_BESIDE_SUM: Final = 4  # of the roundings, those of exp, quotient and the sum of the lanes
_KEYS_PER_ROUNDING: Final = 32
"""Keys that cost a row sum one rounding. Each of 8 lanes (AVX2) adds n / 8 terms one by one, and equal terms round the same
way: by up to half an ulp all through the last binade, half of the terms, but then by next to nothing in the one before, so
by n / 8 / 4 in all. Measured on rows of one key at logit 0 and n - 1 at one other: (n / 31.6) u at most, n <= 4096."""
_FUSED_BLOCK: Final = 512
"""Keys whose sum a fused kernel takes by itself (torch's on the CPU); the sums are added one after another."""
_KEYS_PER_BLOCK_ROUNDING: Final = 1024
"""The k-th of N equal blocks added rounds k of N parts: N / 2 roundings for 512 N keys. Measured at 65536: half of that."""
_EAGER_ROUNDINGS: Final = 2
"""Of a logit stored in half precision: as product, which torch sums in float32, and when scaled; adding 0 of a mask is
exact."""
CAP_ROUNDINGS: Final = 7
"""Of c tanh(s / c), each of at most min(c, |s|): quotient, product, c itself, and 4 for a tanh that is off by two units in
the last place, as CUDA's may be; measured 2.7 u at most on the CPU."""
SHIFT_ROUNDINGS: Final = 3
"""Of what is added: the sum, and the difference to a row's largest, which may be twice as large."""
_NEGLIGIBLE: Final = (
    800.0  # a logit so far below its row's largest adds exactly 0 in every dtype: exp(-746) is 0 in float64
)

_EPS = 2.0**-52  # eps64, the spacing above 1: the unit of LAPACK's own error bounds


def arithmetic_floor(method: str, rows: int | Tensor, columns: int | Tensor, largest: Tensor) -> Tensor:
    """What the method that computed a spectrum may have moved each singular value by.

    With n = max(rows, columns): `svd`: n eps64 sigma_1; `gram`: sqrt(n eps64) sigma_1, because an eigenvalue of A^T A
    moves by up to n eps64 sigma_1^2 and sigma is its square root.

    Args:
        method: `svd` or `gram`.
        rows: number of queries, or one per matrix, broadcasting with `largest`.
        columns: number of keys, likewise.
        largest: "...", sigma_1 of each matrix.

    Returns:
        "...", float64, in the units of the singular values; nan where `largest` is nan.

    Raises:
        ConfigurationError: an unknown method.

    Source: Golub and Van Loan (2013), Matrix Computations, 8.6; Weyl's inequality.
    """
    sigma = largest.to(torch.float64)
    size = torch.maximum(torch.as_tensor(rows), torch.as_tensor(columns)).to(sigma)
    if method == "svd":
        return size * _EPS * sigma
    if method == "gram":
        return (size * _EPS).sqrt() * sigma
    raise ConfigurationError(f"method must be 'svd' or 'gram', got {method!r}. Name the method that made the spectrum.")


def model_floor(
    queries: Tensor,
    keys: Tensor,
    /,
    *,
    scale: float,
    largest: Tensor,
    probabilities: torch.dtype,
    accumulation: torch.dtype | None = None,
    softcap: float | None = None,
    added: Tensor | None = None,
    visible: int | None = None,
) -> Tensor:
    """How far the attention that the model applied may lie from the exact one, in every singular value.

    eta = u(probabilities) + r u(accumulation) + 2 max |ds|, with |ds| <= (d + 2) u(accumulation) scale |q| |k|, taken
    at the longest query and the longest key, and r the roundings of a softmax over m visible keys, which is
    max(8, 4 + min(m, 512) / 32 + max(m - 512, 0) / 1024) in a fused kernel, and max(8, 4 + m / 32) where a model writes its
    attention out (see the constants above). The applied matrix differs from the exact one entrywise by at most eta A;
    A >= 0, so its norm moves by at most eta sigma_1, and by Weyl's inequality so does every singular value.

    With L = scale |q| |k| the largest |s|: a cap c tanh(s / c), whose slope is at most 1, passes |ds| on and adds its own
    7 u min(c, L). A bias b or a sink z adds 3 u (min(c, L) + max(|b|, |z|)), for the sum with b and for the difference to
    the row's largest logit, the sink among them: a sink is exact, and beyond that one more term of the row sum.

    A model that writes its attention out in half precision stores logits in it that were summed in float32: then
    |ds| <= (2 u(accumulation) + (d + 2) u(float32)) scale |q| |k|, and what r exceeds 8 by counts in float32.

    Assumes inner products accumulated so on inputs held exactly (no TF32), and bias and sink as held. The row sums are
    those of torch's kernels on the CPU, the lanes those of AVX2; rows of few equal logits are the worst ones found. An
    entry that underflows leaves the relative bound, by less than the smallest number of its dtype.

    Args:
        queries: "... query feature", as they enter the product, after the position encoding; d is their last axis.
        keys: "... key feature".
        scale: factor of the inner products, usually 1/sqrt(d).
        largest: "...", sigma_1 of each matrix, broadcasting with the leading axes.
        probabilities: dtype the probabilities are rounded to before they meet the values.
        accumulation: dtype of logits and softmax of a model that writes its attention out; None for a fused kernel,
            which takes float64 for float64 probabilities and float32 below.
        softcap: c, where logits are capped.
        added: "...", the largest |b| of a visible key, or |z| of a sink if larger; None where there is neither.
        visible: most keys that a row sees; None for all.

    Returns:
        "...", float64, in the units of the singular values.

    Raises:
        ConfigurationError: a dtype other than the four of `UNIT_ROUNDOFF`.

    Source: Higham (2002), Accuracy and Stability of Numerical Algorithms, 3.1 for the inner product; Weyl's inequality.
    """
    softmax_error = _softmax_error(keys.shape[-2] if visible is None else visible, accumulation, probabilities)
    if accumulation is None:
        accumulation = torch.float64 if probabilities == torch.float64 else torch.float32
    longest = _longest(queries) * _longest(keys)
    logit_error = (queries.shape[-1] + 2) * _summing_roundoff(accumulation) * abs(scale) * longest
    size = abs(scale) * longest
    if accumulation in (torch.float16, torch.bfloat16):
        logit_error = logit_error + _EAGER_ROUNDINGS * _unit_roundoff(accumulation) * size
    if softcap is not None:
        size = size.clamp(max=softcap)
        logit_error = logit_error + CAP_ROUNDINGS * _unit_roundoff(accumulation) * size
    if added is not None:
        logit_error = logit_error + SHIFT_ROUNDINGS * _unit_roundoff(accumulation) * (size + added)
    eta = _unit_roundoff(probabilities) + softmax_error + 2 * logit_error
    return eta * largest.to(torch.float64)


def _softmax_error(visible: int, accumulation: torch.dtype | None, probabilities: torch.dtype) -> float:
    """Relative, of exp, row sum and quotient over that many keys."""
    fused = accumulation is None
    if accumulation is None:
        accumulation = torch.float64 if probabilities == torch.float64 else torch.float32
    block = min(visible, _FUSED_BLOCK) if fused else visible
    roundings = _BESIDE_SUM + block / _KEYS_PER_ROUNDING + (visible - block) / _KEYS_PER_BLOCK_ROUNDING
    more = max(0.0, roundings - SOFTMAX_ROUNDINGS)
    return SOFTMAX_ROUNDINGS * _unit_roundoff(accumulation) + more * _summing_roundoff(accumulation)


def _summing_roundoff(accumulation: torch.dtype) -> float:
    """Of sums of products and of rows, which torch takes in float32 at least."""
    return min(_unit_roundoff(accumulation), UNIT_ROUNDOFF[torch.float32])


def largest_added(operator: AttentionOperator, /) -> Tensor | None:
    """What `model_floor` takes as `added`: the largest |b| of a key that a row sees, or |z| of the sink if larger.

    Keys whose bias lies so far below the largest of their row that they get exactly 0 in every precision do not count: a
    mask may have been added as the lowest number of a dtype.

    Args:
        operator: any.

    Returns:
        "...", float64, on the CPU; None without a bias and a sink.
    """
    if operator.bias is None and operator.sink is None:
        return None
    found = torch.zeros(operator.batch_shape, dtype=torch.float64)
    if operator.sink is not None:
        found = operator.sink.cpu().double().abs().nan_to_num(posinf=0.0)  # a sink of -inf is none
    if operator.bias is not None:
        spread = 2 * abs(operator.scale) * _longest(operator.query) * _longest(operator.key)
        if operator.softcap is not None:
            spread = spread.clamp(max=2 * operator.softcap)
        found = torch.maximum(found, _largest_bias(operator, operator.bias, spread).cpu())
    return found


def _largest_bias(operator: AttentionOperator, bias: Bias, spread: Tensor) -> Tensor:
    """Of visible keys, "...", those left out that lie below their row's largest by more than logits can make up for."""
    values = bias.values.double()
    if isinstance(bias, OffsetBias):
        seen = _visible_offsets(operator).to(values.device) & values.isfinite()
        return values.abs().where(seen, 0.0).amax(dim=-1)
    seen = operator.allowed() & values.isfinite()
    largest = values.where(seen, -torch.inf).amax(dim=-1, keepdim=True)
    seen &= values >= largest - spread[..., None, None] - _NEGLIGIBLE
    return values.abs().where(seen, 0.0).amax(dim=(-2, -1))


def _visible_offsets(operator: AttentionOperator) -> Tensor:
    """Which j - i + queries - 1 some row sees, "offset", bool."""
    seen = torch.zeros(operator.rows + operator.columns - 1, dtype=torch.bool)
    for call in operator.mask.fused_plan(operator.rows):
        (start, stop), (first, last) = call.rows, call.columns
        lowest = 0 if call.sees == "future" else first - stop + 1
        highest = 0 if call.sees == "past" else last - 1 - start
        if call.sees == "band":
            lowest, highest = max(lowest, -call.behind), min(highest, call.ahead)
        seen[lowest + operator.rows - 1 : highest + operator.rows] = True
    return seen


def entry_floor(matrix: Tensor, /, *, largest: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What rounding every entry of a matrix to a dtype may have moved each singular value by.

    A stored entry a comes from one within u |a| + e of it: u the unit roundoff, e half the spacing of the subnormal numbers,
    where entries below the normal ones round. So the rounding is a matrix E with |E_ij| <= u |A_ij| + e, and by Weyl's
    inequality every singular value moved by at most

        ||E|| <= u || |A| || + e sqrt(rows columns),

    where || |A| || is sigma_1 of a matrix without negative entries, and at most the smaller of ||A||_F and
    sqrt(||A||_1 ||A||_inf) of any. Of float16 the second term counts: attention over 512 keys falls below 2^-14 in places.

    Nothing is bounded but this one rounding: what made the entries, a softmax in the same dtype say, errs by more.

    Args:
        matrix: "... row column", as stored.
        largest: "...", sigma_1 of each.
        dtype: that entries were rounded to, where it is not that of the tensor (bfloat16 kept in float32, say).

    Returns:
        "...", float64, on the CPU; 0 for whole numbers, which are held exactly; nan where a matrix is not finite.

    Raises:
        ConfigurationError: a floating-point dtype other than the four of `UNIT_ROUNDOFF`.

    Source: Higham (2002), Accuracy and Stability of Numerical Algorithms, 2.1 and theorem 2.3; Weyl's inequality.
    """
    sigma, dtype = largest.to(torch.float64).cpu(), matrix.dtype if dtype is None else dtype
    roundoff, (rows, columns) = _entry_roundoff(dtype), matrix.shape[-2:]
    if roundoff == 0:
        return 0 * sigma
    return roundoff * _norm_of_absolute(matrix, sigma) + _UNDERFLOW[dtype] * math.sqrt(rows * columns)


def _norm_of_absolute(matrix: Tensor, sigma: Tensor) -> Tensor:
    """At least the norm of |A|, "...", float64, on the CPU; nan where A is not finite."""
    signed = (matrix < 0).flatten(-2).any(dim=-1).cpu()
    if not bool(signed.any()):
        return sigma
    absolute = matrix.abs()
    frobenius: Tensor = torch.linalg.vector_norm(absolute, dim=(-2, -1), dtype=torch.float64)
    row_sums, column_sums = (absolute.sum(dim=axis, dtype=torch.float64).amax(dim=-1) for axis in (-1, -2))
    bound = torch.minimum(frobenius, row_sums.sqrt() * column_sums.sqrt()).cpu()
    return bound.where(signed, sigma)


def applied_floor(operator: Operator, /, *, largest: Tensor, probabilities: torch.dtype) -> Tensor:
    """The model floor of any operator.

    Attention: `model_floor`; beside a sink, which may leave a row next to nothing, with what entries lose that underflow,
    as in `entry_floor`, but no more than all of them: an entry that rounds to a subnormal number or 0 moves by at most
    itself. A matrix of one's own: `entry_floor`, of its precision, on top of the error that it brought along. A sum: the
    terms' floors, weighted; the norm of a term of attention, whose rows sum to 1 or less, is at most the root of its
    largest column sum.

    Args:
        operator: what was measured.
        largest: "...", sigma_1 of each matrix.
        probabilities: dtype in which a model applied its attention.

    Returns:
        "...", float64, on the CPU; nan where a matrix is not finite.
    """
    sigma = largest.to(torch.float64).cpu()
    if isinstance(operator, AttentionOperator):
        eta = _attention_error(operator, probabilities)
        underflow = 0.0 if operator.sink is None else _UNDERFLOW[probabilities]
        lost = underflow * math.sqrt(operator.rows * operator.columns)
        return eta * sigma + ((1 + eta) * sigma).clamp(max=lost)
    if isinstance(operator, DenseOperator):
        return entry_floor(operator.matrix, largest=sigma, dtype=operator.precision) + _brought_along(operator) * sigma
    assert isinstance(operator, SumOperator)
    floors = [
        abs(weight) * applied_floor(term, largest=_norm_bound(term), probabilities=probabilities)
        for weight, term in operator.terms
    ]
    return torch.stack(floors).sum(dim=0)


def entry_error(operator: Operator, /, *, probabilities: torch.dtype) -> Tensor:
    """The largest relative error of an entry of the matrix that the model applied, whatever the matrix's scale.

    Attention: the eta of `model_floor`. A matrix of one's own: the error that it brought along and the roundoff of its
    precision, which entries below its normal numbers may exceed (6e-5 in float16; `entry_floor` has them). A sum: the
    largest of its terms' where no entry can cancel; nan where terms have both signs, because nothing then bounds it.

    Args:
        operator: what was measured.
        probabilities: dtype in which a model applied its attention.

    Returns:
        "...", float64, on the CPU.
    """
    ones = torch.ones(operator.batch_shape, dtype=torch.float64)
    if isinstance(operator, AttentionOperator):
        return _attention_error(operator, probabilities) * ones
    if isinstance(operator, DenseOperator):
        return (_entry_roundoff(operator.precision or operator.matrix.dtype) + _brought_along(operator)) * ones
    assert isinstance(operator, SumOperator)
    if "non_negative" not in operator.structure:
        return torch.nan * ones
    return torch.stack([entry_error(term, probabilities=probabilities) for _, term in operator.terms]).amax(dim=0)


def _brought_along(operator: DenseOperator) -> Tensor | float:
    """The error that matrices had before their entries were rounded, "...", relative."""
    return 0.0 if operator.applied_error is None else operator.applied_error.to(torch.float64).cpu()


def _attention_error(operator: AttentionOperator, probabilities: torch.dtype) -> Tensor:
    """The eta of `model_floor`, "..."."""
    return model_floor(
        operator.query.cpu(), operator.key.cpu(), scale=operator.scale, probabilities=probabilities,
        largest=torch.ones(operator.batch_shape, dtype=torch.float64), softcap=operator.softcap,
        added=largest_added(operator), accumulation=operator.accumulation, visible=_most_visible(operator),
    )  # fmt: skip


def _most_visible(operator: AttentionOperator) -> int:
    """Keys of the row that sees the most."""
    found = 0
    for call in operator.mask.fused_plan(operator.rows):
        first, last = call.columns
        width = call.behind + call.ahead + 1 if call.sees == "band" else last - first
        found = max(found, min(width, last - first))
    return found


def _norm_bound(operator: Operator) -> Tensor:
    """An upper bound of sigma_1, "...", in O(n) memory beyond what the operator holds."""
    if isinstance(operator, AttentionOperator):
        return operator.row_statistics.column_sums.amax(dim=-1).sqrt().cpu()
    if isinstance(operator, DenseOperator):
        return operator.matrix.to(torch.float64).square().sum(dim=(-2, -1)).sqrt().cpu()
    assert isinstance(operator, SumOperator)
    return torch.stack([abs(weight) * _norm_bound(term) for weight, term in operator.terms]).sum(dim=0)


def resolved(singular_values: Tensor, floor: Tensor, /) -> Tensor:
    """How many singular values lie above a floor.

    Args:
        singular_values: "... component", any order; nan (padding, or a matrix that failed) counts as unresolved.
        floor: "...", in the same units; nan resolves nothing.

    Returns:
        "...", int64, from 0 to the number of components.
    """
    return (singular_values.to(torch.float64) > floor.unsqueeze(-1)).sum(dim=-1)


def _unit_roundoff(dtype: torch.dtype) -> float:
    if dtype not in UNIT_ROUNDOFF:
        known = ", ".join(str(known) for known in UNIT_ROUNDOFF)
        raise ConfigurationError(
            f"dtype must be one of {known}, got {dtype!r}. Name the floating-point format the model computes in."
        )
    return UNIT_ROUNDOFF[dtype]


def _entry_roundoff(dtype: torch.dtype) -> float:
    """Of entries of that dtype; whole numbers are held exactly."""
    return _unit_roundoff(dtype) if dtype.is_floating_point else 0.0


def _longest(vectors: Tensor) -> Tensor:
    return vectors.to(torch.float64).square().sum(dim=-1).amax(dim=-1).sqrt()
