"""A^T Y without a backward pass and without A, by one of two paths.

`fused` is forward attention in which queries and keys have changed places. Row i of A is exp(s_ij - lse_i), so with the
column sums c_j = sum_i A_ij the j-th row of A^T is c_j times a softmax over i:

    q~_i = [q_i, -lse_i / scale]        k~_j = [k_j, 1]
    (A^T Y)_j = c_j softmax_i(scale k~_j . q~_i, transposed mask) Y

It needs lse and c, which take one pass over blocks of rows. That same pass could multiply by A^T (`row-blocks`), so fused
calls pay only where lse and c are already there. `adjoint_path` is the rule. A sink is in lse and c, and changes nothing
else here; a soft cap or a bias cannot be had from products of features, and takes blocks of rows.
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rankkit_kernels.attention import attend
from rankkit_kernels.plans import Plan
from rankkit_kernels.row_blocks import adjoint_product, row_statistics
from rankkit_kernels.scores import Scores

__all__ = ["AdjointPath", "Statistics", "adjoint_path", "attend_adjoint"]

AdjointPath: TypeAlias = Literal["fused", "row-blocks"]

Statistics: TypeAlias = tuple[Tensor, Tensor]
"""`log_sum_exp` "... query" and `column_sums` "... key" of `row_blocks.row_statistics`, from float64 factors."""

HEAD_STEP: Final = 8  # fused kernels want a head size that is a multiple of it


def adjoint_path(
    device: torch.device, dtype: torch.dtype, *, has_statistics: bool, scores: Scores | None = None
) -> AdjointPath:
    """The path that `attend_adjoint` takes unless told.

    Measured on the CPU at n = 4096, d = 64, 64 probes, causal and prefix n/2, ns per visible pair of one core: float64
    fused 8.6 to 10.4, row blocks 8.3 to 9.5; float32 fused 4.0 to 4.7, row blocks 4.4 to 5.3; statistics 9 to 11. So
    fused calls are taken in float32 where statistics are at hand. In float64 CUDA has no fused kernel, and the CPU's is
    no faster. CUDA in float32 follows the same rule, unmeasured. Few probes favour row blocks, whose cost falls with them.

    Args:
        device: where the tensors live.
        dtype: float64 or float32.
        has_statistics: whether log-sum-exps and column sums are known from an earlier pass.
        scores: of the matrix; a soft cap or a bias leaves blocks of rows alone.

    Returns:
        `fused` or `row-blocks`.
    """
    if device.type not in ("cpu", "cuda") or not _fusible(scores):
        return "row-blocks"
    return "fused" if has_statistics and dtype == torch.float32 else "row-blocks"


def attend_adjoint(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    transposed_plan: Plan,
    *,
    scale: float,
    scores: Scores | None = None,
    statistics: Statistics | None = None,
    path: AdjointPath | None = None,
) -> Tensor:
    """A^T Y for the A that `plan` describes.

    Error of the fused path, for each key j, with u the unit roundoff of the dtype, d features and n queries:

        |error_j| <= eta_j (A^T |Y|)_j,    eta_j = 2 (d + 6) u max_i (|scale| sum_f |q_if k_jf| + |lse_i|) + (2 n + 50) u

    (a dot product of d + 1 terms, the shift by its largest, sums of n terms, torch's exponential). The added feature
    cancels most of s_ij, but |lse_i| is at most the largest |s_ij| plus log n: the bound is about twice that of forward
    attention. Measured at n = 512, d = 64: 1e-5 in float32 at logits of standard deviation 10, 3e-6 at 3, by row
    blocks the same; in float64 1e-14, row blocks 4e-16. Products below the smallest number of the dtype are lost.

    Args:
        query: "... query feature", float64 or float32; half precision is refused, for sums over rows lose it.
        key: "... key feature"; leading axes, dtype and device as the query's.
        value: "... query probe", Y; any number of probes.
        plan: the calls of A.
        transposed_plan: the calls of A^T, whose rows are the keys; only read by fused calls.
        scale: of the products of queries and keys; not 0 for fused calls.
        scores: as for `row_blocks.product`; neither a cap nor a bias for fused calls.
        statistics: to be used by fused calls; they are computed where `path` asks for fused calls without them.
        path: `fused` or `row-blocks`; by default what `adjoint_path` says.

    Returns:
        "... key probe", without gradients. A query whose visible logits are all -inf adds nothing, a key that nobody sees
        gets zeros, and a logit that is nan or +inf leaves nan in its own matrix alone.

    Raises:
        TypeError: a dtype other than float64 and float32, or several.
        ValueError: shapes, devices, plans or statistics do not fit; fused calls with a cap or a bias, or in float64 on
            CUDA, where torch would build the matrix.
    """
    if path is None:
        path = adjoint_path(query.device, query.dtype, has_statistics=statistics is not None, scores=scores)
    _check(query, key, value, scale, statistics, path)
    if path == "row-blocks":
        return adjoint_product(query, key, value, plan, scale=scale, scores=scores)
    if not _fusible(scores):
        raise ValueError(
            "path must be 'row-blocks' for capped or biased logits, got 'fused'. Leave it out for the rule."
        )
    if statistics is None:
        found = row_statistics(query.double(), key.double(), plan, scale=scale, scores=scores)
        statistics = (found.log_sum_exp, found.column_sums)
    return _fused(query, key, value, transposed_plan, scale, *statistics)


def _fusible(scores: Scores | None) -> bool:
    """Whether logits are products of features: without a cap and a bias; a sink is in the log-sum-exps."""
    return scores is None or (scores.softcap is None and scores.bias is None)


def _check(
    query: Tensor, key: Tensor, value: Tensor, scale: float, statistics: Statistics | None, path: AdjointPath
) -> None:
    """What `row_blocks` and `attend` do not see to themselves."""
    if path not in get_args(AdjointPath):
        raise ValueError(f"path must be one of {get_args(AdjointPath)}, got {path!r}. Leave it out for the rule.")
    if path == "row-blocks":
        return
    if scale == 0:
        raise ValueError("scale must not be 0 for fused calls, got 0. Take path='row-blocks'.")
    if query.dtype not in (torch.float64, torch.float32) or not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"query, key and value must all be float64 or all float32, got {[query.dtype, key.dtype, value.dtype]}. "
            "Convert them to one of the two."
        )
    if query.device.type == "cuda" and query.dtype == torch.float64:
        raise ValueError(
            "path must be 'row-blocks' for float64 on CUDA, got 'fused'. Torch has no fused kernel for it."
        )
    if value.shape[:-1] != query.shape[:-1]:
        raise ValueError(
            f"value must be {(*query.shape[:-1], 'probe')}, got {tuple(value.shape)}. Y has a row for every query."
        )
    shapes = statistics and tuple(tuple(part.shape) for part in statistics)
    if statistics is not None and shapes != (query.shape[:-1], key.shape[:-1]):
        raise ValueError(
            f"statistics must be {tuple(query.shape[:-1])} log-sum-exps and {tuple(key.shape[:-1])} column sums, got "
            f"{shapes}. Take both from row_statistics of the same factors."
        )


def _fused(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float, log_sum_exp: Tensor, column_sums: Tensor
) -> Tensor:
    """c_j softmax_i(scale k~_j . q~_i) Y, with the probes in blocks as wide as the padded head."""
    queries, keys = _exchanged(query.detach(), key.detach(), scale, log_sum_exp)
    width = queries.shape[-1]
    missing = max(1, math.ceil(value.shape[-1] / width)) * width - value.shape[-1]
    blocks = F.pad(_batched(value.detach()), (0, missing)).split(width, dim=-1)
    mixed = torch.cat([attend(keys, queries, block, plan, scale=scale) for block in blocks], dim=-1)
    sums = rearrange(column_sums, "... key -> 1 (...) key 1").to(mixed)
    weighted = (mixed * sums).masked_fill_(sums == 0, 0.0)  # kernels differ on a softmax over nothing
    return weighted[..., : value.shape[-1]].reshape(*key.shape[:-1], value.shape[-1])


def _exchanged(query: Tensor, key: Tensor, scale: float, log_sum_exp: Tensor) -> tuple[Tensor, Tensor]:
    """q~ and k~, "1 matrix position feature"; a query that sees nothing gets logits of -inf for every key."""
    blind = rearrange(log_sum_exp == -torch.inf, "... query -> ... query 1")
    shift = rearrange(log_sum_exp / -scale, "... query -> ... query 1").masked_fill(blind, -torch.inf / scale)
    queries = torch.cat([query.masked_fill(blind, 0.0), shift.to(query)], dim=-1)
    keys = torch.cat([key, torch.ones_like(key[..., :1])], dim=-1)
    padding = (0, -keys.shape[-1] % HEAD_STEP)
    return _batched(F.pad(queries, padding)), _batched(F.pad(keys, padding))


def _batched(factor: Tensor) -> Tensor:
    return rearrange(factor, "... position feature -> 1 (...) position feature")
