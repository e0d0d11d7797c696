"""Fused attention for masks that are not one SDPA flag, through torch SDPA alone.

A mask is given as a *plan*: calls that share out the query rows, each a rectangle of rows and columns in
which a row sees all columns, those up to its own position, those from it on, or those near it. Softmax is per row, so
calls on disjoint rows are independent and their outputs are simply put side by side:

    causal       rows 0..n see columns 0..n up to themselves
    prefix p     rows 0..p see columns 0..p;  rows p..n see columns 0..n up to themselves
    window w     rows 0..n see columns 0..n up to themselves, but for those more than w before

Three properties hold for every plan, forward and backward: only fused kernels run, no n x n mask is built, and
extra memory is O(n). On the CPU a rectangle whose diagonal ends in its lower right corner needs an
explicit mask. The rectangle is cut in blocks of rows, and the mask of a block is a Toeplitz matrix: with
the rows reversed, entry (i, j) depends on i + j alone, so one strip of rows + columns numbers seen through strides
(1, 1) is the whole mask. On CUDA, where an explicit mask never reaches the flash kernel, torch's lower-right
causal bias object is used instead. A band is such a matrix too, over the columns that the block's rows see; it has no
bias object, so that on CUDA it is left to the memory-efficient kernel. A bias of relative positions (ALiBi) is one more
number per offset: it is laid over the same strip, one for each head, and every call becomes a band.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from rankkit_kernels.plans import FusedCall, Group, Plan, Visibility, check_plan
from rankkit_kernels.scores import OffsetBias

__all__ = ["FusedCall", "Group", "Plan", "Visibility", "attend", "attend_groups", "backend", "dense_attention"]

_BLOCK_ROWS = 256
"""Query rows per masked CPU call. 64 to 512 measured within 6% of each other at n = 1024 and 2048; smaller blocks
compute fewer masked entries, larger ones launch fewer kernels."""
_CUDA_STRIP_ROWS = 1024
"""Query rows per call with a band or a bias on CUDA; chosen, not measured. Its numbers lie in memory there, for a bias
heads x 1024 x columns of them, once for all sequences, and are kept for the backward pass."""

_HALF = (torch.bfloat16, torch.float16)
"""Computed in float32 on the CPU, for every plan alike. The CPU kernel sums gradients over rows in the input's own
precision: in bfloat16 a plan of two calls, or one on a reversed sequence, had up to 5 times the error of torch's
dense-mask SDPA, and two arms would have had different ones."""


def backend(device: torch.device, dtype: torch.dtype, *, masked: bool = False) -> str:
    """The fused kernel that every call on this device and dtype is pinned to.

    torch may otherwise choose different kernels for two arms of one experiment (on Hopper cuDNN for one,
    something else for the other), which would differ in rounding.

    Args:
        device: where the tensors live.
        dtype: of queries, keys and values.
        masked: whether there is a band or a bias, whose numbers the flash kernel does not take.

    Returns:
        `cpu-flash`, `flash`, `efficient` or `math`; `math`, torch's unfused path, serves float64 on CUDA, which has no
        other, and devices that offer no choice (`mps`) report `default`.

    Source: torch 2.13 `sdp_utils.cpp`: flash takes half precision, memory-efficient adds float32, float64 is math only.
    """
    if device.type == "cpu":
        return "cpu-flash"
    if device.type != "cuda":
        return "default"
    if dtype in (torch.float16, torch.bfloat16):
        return "efficient" if masked else "flash"
    return "efficient" if dtype == torch.float32 else "math"


_CUDA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def _pinned(query: Tensor, *, masked: bool) -> contextlib.AbstractContextManager[None]:
    name = backend(query.device, query.dtype, masked=masked)
    if name in _CUDA_BACKENDS:
        return sdpa_kernel(_CUDA_BACKENDS[name])
    return contextlib.nullcontext()


def _reversed_lower_right_mask(rows: int, columns: int, like: Tensor) -> Tensor:
    """Additive mask "row column" for reversed rows: row r sees columns up to columns - 1 - r.

    Entry (r, c) is strip[r + c], so the mask is a view of rows + columns - 1 numbers.
    """
    strip = torch.zeros(rows + columns - 1, dtype=like.dtype, device=like.device)
    strip[columns:] = -torch.inf
    return strip.as_strided((rows, columns), (1, 1))


def _lower_right(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Row i of r sees columns 0 .. columns - r + i: the diagonal ends in the lower right corner."""
    rows, columns = query.shape[-2], key.shape[-2]
    if rows == columns:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    if rows == 1:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    if query.device.type == "cuda":
        bias = causal_lower_right(rows, columns)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    outputs = []
    blocks = query.split(_BLOCK_ROWS, dim=-2)
    stop = columns - rows
    for block in blocks:
        stop += block.shape[-2]
        mask = _reversed_lower_right_mask(block.shape[-2], stop, query)
        seen_key, seen_value = _rows(key, 0, stop), _rows(value, 0, stop)
        output = F.scaled_dot_product_attention(block.flip(-2), seen_key, seen_value, attn_mask=mask, scale=scale)
        outputs.append(output.flip(-2))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)


def _reversed_strip_mask(block: FusedCall, bias: OffsetBias | None, like: Tensor, queries: int) -> Tensor:
    """Additive mask "... row column" for the reversed rows of a block, a view of rows + columns - 1 numbers per head.

    Row r is position rows[1] - 1 - r, so what decides, column - row, depends on r + c alone.
    """
    (start, stop), (first, last) = block.rows, block.columns
    offset = torch.arange(first - stop + 1, last - start, device=like.device)
    hidden = _hidden(offset, block)
    if bias is None:
        strip = torch.zeros(len(offset), dtype=like.dtype, device=like.device)
    else:
        strip = bias.within(block.rows, block.columns, queries).values.to(like)[None]  # fused calls want four axes
    mask = strip.masked_fill(hidden, -torch.inf).unfold(-1, last - first, 1)
    return mask.contiguous() if like.device.type == "cuda" else mask  # its kernel wants rows aligned in memory


def _hidden(offset: Tensor, call: FusedCall) -> Tensor:
    """Which offsets, column - row, a call does not see."""
    if call.sees == "band":
        return (offset < -call.behind) | (offset > call.ahead)
    if call.sees == "past":
        return offset > 0
    return offset < 0 if call.sees == "future" else torch.zeros_like(offset, dtype=torch.bool)


def _by_strips(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: FusedCall,
    bias: OffsetBias | None,
    scale: float | None,
    queries: int,
) -> Tensor:
    """A call by blocks of rows, each with its strip as a mask; key and value are those of the call."""
    size = _CUDA_STRIP_ROWS if query.device.type == "cuda" else _BLOCK_ROWS
    outputs = []
    for block in call.blocks(size):
        rows = query[..., block.rows[0] - call.rows[0] : block.rows[1] - call.rows[0], :].flip(-2)
        seen = (block.columns[0] - call.columns[0], block.columns[1] - call.columns[0])
        mask = _reversed_strip_mask(block, bias, query, queries)
        output = F.scaled_dot_product_attention(
            rows, _rows(key, *seen), _rows(value, *seen), attn_mask=mask, scale=scale
        )
        outputs.append(output.flip(-2))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows start..stop, without a slice (and its zero-filled gradient) when that is all of them."""
    if start == 0 and stop == tensor.shape[-2]:
        return tensor
    return tensor[..., start:stop, :]


def _one_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: FusedCall,
    bias: OffsetBias | None,
    scale: float | None,
    queries: int,
) -> Tensor:
    key, value = _rows(key, *call.columns), _rows(value, *call.columns)
    if bias is not None or call.sees == "band":
        return _by_strips(query, key, value, call, bias, scale, queries)
    if call.sees == "all":
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    if call.sees == "past":
        return _lower_right(query, key, value, scale)
    # A row that sees its own position and later ones is, with both sequences reversed, one that sees earlier ones.
    return _lower_right(query.flip(-2), key.flip(-2), value.flip(-2), scale).flip(-2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, *, scale: float | None = None, bias: OffsetBias | None = None
) -> Tensor:
    """softmax(scale Q K^T + bias, masked) V, fused, for the mask that `plan` describes.

    Args:
        query: "batch head query feature", float64, float32, bfloat16 or float16.
        key: "batch head key feature", same dtype and device.
        value: "batch head key feature"; its width must equal the query's, else torch leaves the fused path.
        plan: calls whose rows are 0..n in order, without gap or overlap.
        scale: of the logits; None for 1/sqrt(feature).
        bias: "head offset", added to the logits of every sequence, rounded to the dtype that is computed in; it has no
            gradient.

    Returns:
        "batch head query feature", differentiable in all three; the same dtype.

    Raises:
        ValueError: shapes, the plan or the bias do not fit.

    Source: prefix attention as two calls on truncated keys; see the module docstring for the masks.
    """
    _check_shapes(query, key, value)
    check_plan(plan, query.shape[-2], key.shape[-2])
    _check_bias(bias, query, key)
    if query.device.type == "cpu" and query.dtype in _HALF:
        return attend(query.float(), key.float(), value.float(), plan, scale=scale, bias=bias).to(query.dtype)
    queries = query.shape[-2]
    with _pinned(query, masked=bias is not None or any(call.sees == "band" for call in plan)):
        if len(plan) == 1:
            return _one_call(query, key, value, plan[0], bias, scale, queries)
        outputs = []
        for rows, call in zip(query.split([call.rows[1] - call.rows[0] for call in plan], dim=-2), plan, strict=True):
            outputs.append(_one_call(rows, key, value, call, bias, scale, queries))
        return torch.cat(outputs, dim=-2)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    *,
    scale: float | None = None,
    bias: OffsetBias | None = None,
) -> Tensor:
    """The oracle of `attend`: softmax written out in float64 over an explicit mask.

    Args:
        query: "... query feature".
        key: "... key feature".
        value: "... key feature".
        allowed: "query key", bool; a row that sees nothing gives zeros.
        scale: of the logits; None for 1/sqrt(feature).
        bias: "... offset", added to the logits.

    Returns:
        "... query feature", float64, differentiable in all three.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * query.double() @ key.double().transpose(-1, -2)
    if bias is not None:
        rows, columns = logits.shape[-2:]
        logits = logits + bias.block((0, rows), (0, columns), rows)
    logits = logits.masked_fill(~allowed, -torch.inf)
    largest = logits.detach().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).min)
    weights = torch.exp(logits - largest)
    return weights @ value.double() / weights.sum(dim=-1, keepdim=True).clamp(min=1.0)


def attend_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Group],
    *,
    scale: float | None = None,
    bias: OffsetBias | None = None,
) -> Tensor:
    """`attend` for a batch whose sequences, or their heads, have different masks: one plan for each run of equal ones.

    Args:
        query: "batch head query feature".
        key: "batch head key feature".
        value: "batch head key feature".
        groups: consecutive runs that share out the batch.
        scale: of the logits; None for 1/sqrt(feature).
        bias: as for `attend`.

    Returns:
        "batch head query feature".

    Raises:
        ValueError: the groups do not add up to the batch or runs of heads to the heads, or as `attend`.
    """
    sizes = [group.size for group in groups]
    if sum(sizes) != query.shape[0]:
        raise ValueError(
            f"groups must share out the batch of {query.shape[0]}, got sizes {sizes}. Group the whole batch."
        )
    if len(groups) == 1:
        return _attend_group(query, key, value, groups[0], scale, bias)
    parts = zip(query.split(sizes), key.split(sizes), value.split(sizes), groups, strict=True)
    return torch.cat([_attend_group(q, k, v, group, scale, bias) for q, k, v, group in parts])


def _attend_group(
    query: Tensor, key: Tensor, value: Tensor, group: Group, scale: float | None, bias: OffsetBias | None
) -> Tensor:
    """`attend` for sequences that share a plan, or one for each run of heads."""
    if not group.heads:
        return attend(query, key, value, group.plan, scale=scale, bias=bias)
    sizes = [run.size for run in group.heads]
    if sum(sizes) != query.shape[1]:
        raise ValueError(f"heads must share out the {query.shape[1]} heads, got sizes {sizes}. Give every head a plan.")
    parts = zip(*(tensor.split(sizes, dim=1) for tensor in (query, key, value)), _split(bias, sizes), strict=True)
    outputs = [
        attend(q, k, v, run.plan, scale=scale, bias=part)
        for (q, k, v, part), run in zip(parts, group.heads, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _split(bias: OffsetBias | None, sizes: list[int]) -> Sequence[OffsetBias | None]:
    """The bias of every run of heads."""
    return [None] * len(sizes) if bias is None else [OffsetBias(values=part) for part in bias.values.split(sizes)]


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.dim() != 4 or key.dim() != 4 or key.shape != value.shape or query.shape[-1] != key.shape[-1]:
        shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
        raise ValueError(
            f"query, key and value must be (batch, head, position, feature) with equal features and equal keys and "
            f"values, got {shapes}. Add the missing axes; pad values to the head size."
        )


def _check_bias(bias: OffsetBias | None, query: Tensor, key: Tensor) -> None:
    if bias is None:
        return
    wanted = (query.shape[1], query.shape[-2] + key.shape[-2] - 1)
    if tuple(bias.values.shape) != wanted or bias.values.device != query.device or bias.values.requires_grad:
        raise ValueError(
            f"bias must be (head, offset) numbers {wanted} on {query.device} without a gradient, got "
            f"{tuple(bias.values.shape)} on {bias.values.device}, requires_grad {bias.values.requires_grad}. Make it for "
            "these heads and positions, and detach it."
        )
