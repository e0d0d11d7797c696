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
bias object, so that on CUDA it is left to the memory-efficient kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

__all__ = ["FusedCall", "Group", "Visibility", "attend", "attend_groups", "backend", "dense_attention"]

Visibility = Literal["all", "past", "future", "band"]
"""What a row sees of its columns: all, those at or before its own position, those at or after it, those near it."""

_BLOCK_ROWS = 256
"""Query rows per masked CPU call. 64 to 512 measured within 6% of each other at n = 1024 and 2048; smaller blocks
compute fewer masked entries, larger ones launch fewer kernels."""
_CUDA_BAND_ROWS = 1024  # query rows per band call on CUDA; chosen, not measured

_HALF = (torch.bfloat16, torch.float16)
"""Computed in float32 on the CPU, for every plan alike. The CPU kernel sums gradients over rows in the input's own
precision: in bfloat16 a plan of two calls, or one on a reversed sequence, had up to 5 times the error of torch's
dense-mask SDPA, and two arms would have had different ones."""


@dataclass(frozen=True, slots=True)
class FusedCall:
    """Rows of an attention matrix together with the columns that they see.

    Positions are absolute, so `past` means column <= row whatever the rectangle.
    """

    rows: tuple[int, int]
    """First query row, and one past the last."""
    columns: tuple[int, int]
    """First key column, and one past the last."""
    sees: Visibility
    """`past` needs rows that end where the columns end, `future` rows that start where they start, `band` rows within
    the columns."""
    behind: int = 0
    """How many columns before its own position a row of a `band` sees."""
    ahead: int = 0
    """How many after it."""

    def __post_init__(self) -> None:
        if not (0 <= self.rows[0] < self.rows[1] and 0 <= self.columns[0] < self.columns[1]):
            raise ValueError(
                f"rows and columns must be non-empty ranges, got {self.rows} and {self.columns}. Drop empty calls."
            )
        if self.sees == "past" and not (self.rows[1] == self.columns[1] and self.rows[0] >= self.columns[0]):
            raise ValueError(
                f"rows of a `past` call must end with its columns and start no earlier, got {self.rows} and "
                f"{self.columns}. Split the call."
            )
        if self.sees == "future" and not (self.rows[0] == self.columns[0] and self.rows[1] <= self.columns[1]):
            raise ValueError(
                f"rows of a `future` call must start with its columns and end no later, got {self.rows} and "
                f"{self.columns}. Split the call."
            )
        inside = self.columns[0] <= self.rows[0] and self.rows[1] <= self.columns[1]
        if self.sees == "band" and not (inside and self.behind >= 0 and self.ahead >= 0):
            raise ValueError(
                f"rows of a `band` call must lie within its columns and see 0 or more on each side, got {self.rows}, "
                f"{self.columns}, behind {self.behind} and ahead {self.ahead}. Split the call."
            )
        if self.sees != "band" and (self.behind or self.ahead):
            raise ValueError(
                f"behind and ahead must be 0 but for a `band`, got {self.behind} and {self.ahead} for "
                f"{self.sees!r}. Leave them out."
            )

    def blocks(self, size: int) -> Iterator[FusedCall]:
        """The call in blocks of `size` rows, each over the columns that its rows see."""
        for start in range(*self.rows, size):
            stop = min(start + size, self.rows[1])
            first, last = self.columns
            if self.sees == "band":
                first, last = max(first, start - self.behind), min(last, stop + self.ahead)
            elif self.sees == "future":
                first = start
            elif self.sees == "past":
                last = stop
            yield FusedCall((start, stop), (first, last), self.sees, self.behind, self.ahead)


Plan = Sequence[FusedCall]


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive sequences of a batch, or heads of a layer, that share a plan."""

    size: int
    """How many sequences or heads."""
    plan: tuple[FusedCall, ...] = ()
    """Their plan; its rows must be 0..n in order, without gap or overlap."""
    heads: tuple[Group, ...] = ()
    """Of sequences: runs of heads, each with a plan of its own, in the place of `plan`."""

    def __post_init__(self) -> None:
        if bool(self.plan) == bool(self.heads):
            raise ValueError(
                f"a group must have either a plan or runs of heads, got {self.plan} and {self.heads}. Leave one out."
            )


def backend(device: torch.device, dtype: torch.dtype, *, banded: bool = False) -> str:
    """The fused kernel that every call on this device and dtype is pinned to.

    torch may otherwise choose different kernels for two arms of one experiment (on Hopper cuDNN for one,
    something else for the other), which would differ in rounding.

    Args:
        device: where the tensors live.
        dtype: of queries, keys and values.
        banded: whether the plan has a band, whose explicit mask the flash kernel does not take.

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
        return "efficient" if banded else "flash"
    return "efficient" if dtype == torch.float32 else "math"


_CUDA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def _pinned(query: Tensor, plan: Plan) -> contextlib.AbstractContextManager[None]:
    name = backend(query.device, query.dtype, banded=any(call.sees == "band" for call in plan))
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


def _reversed_band_mask(block: FusedCall, like: Tensor) -> Tensor:
    """Additive mask "row column" for the reversed rows of a block, a view of rows + columns - 1 numbers.

    Row r is position rows[1] - 1 - r, so what decides, column - row, depends on r + c alone.
    """
    (start, stop), (first, last) = block.rows, block.columns
    offset = torch.arange(first - stop + 1, last - start, device=like.device)
    hidden = (offset < -block.behind) | (offset > block.ahead)
    strip = torch.zeros(len(offset), dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)
    mask = strip.as_strided((stop - start, last - first), (1, 1))
    return mask.contiguous() if like.device.type == "cuda" else mask  # its kernel wants rows aligned in memory


def _band(query: Tensor, key: Tensor, value: Tensor, call: FusedCall, scale: float | None) -> Tensor:
    """Every row sees what lies at most `behind` before and `ahead` after it; key and value are those of the call."""
    size = _CUDA_BAND_ROWS if query.device.type == "cuda" else _BLOCK_ROWS
    outputs = []
    for block in call.blocks(size):
        rows = query[..., block.rows[0] - call.rows[0] : block.rows[1] - call.rows[0], :].flip(-2)
        seen = (block.columns[0] - call.columns[0], block.columns[1] - call.columns[0])
        mask = _reversed_band_mask(block, query)
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


def _one_call(query: Tensor, key: Tensor, value: Tensor, call: FusedCall, scale: float | None) -> Tensor:
    key, value = _rows(key, *call.columns), _rows(value, *call.columns)
    if call.sees == "all":
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    if call.sees == "past":
        return _lower_right(query, key, value, scale)
    if call.sees == "band":
        return _band(query, key, value, call, scale)
    # A row that sees its own position and later ones is, with both sequences reversed, one that sees earlier ones.
    return _lower_right(query.flip(-2), key.flip(-2), value.flip(-2), scale).flip(-2)


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan, *, scale: float | None = None) -> Tensor:
    """softmax(scale Q K^T, masked) V, fused, for the mask that `plan` describes.

    Args:
        query: "batch head query feature", float64, float32, bfloat16 or float16.
        key: "batch head key feature", same dtype and device.
        value: "batch head key feature"; its width must equal the query's, else torch leaves the fused path.
        plan: calls whose rows are 0..n in order, without gap or overlap.
        scale: of the logits; None for 1/sqrt(feature).

    Returns:
        "batch head query feature", differentiable in all three; the same dtype.

    Raises:
        ValueError: shapes or the plan do not fit.

    Source: prefix attention as two calls on truncated keys; see the module docstring for the masks.
    """
    _check_shapes(query, key, value)
    _check_plan(plan, query.shape[-2], key.shape[-2])
    if query.device.type == "cpu" and query.dtype in _HALF:
        return attend(query.float(), key.float(), value.float(), plan, scale=scale).to(query.dtype)
    with _pinned(query, plan):
        if len(plan) == 1:
            return _one_call(query, key, value, plan[0], scale)
        outputs = []
        for rows, call in zip(query.split([call.rows[1] - call.rows[0] for call in plan], dim=-2), plan, strict=True):
            outputs.append(_one_call(rows, key, value, call, scale))
        return torch.cat(outputs, dim=-2)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, *, scale: float | None = None
) -> Tensor:
    """The oracle of `attend`: softmax written out in float64 over an explicit mask.

    Args:
        query: "... query feature".
        key: "... key feature".
        value: "... key feature".
        allowed: "query key", bool; a row that sees nothing gives zeros.
        scale: of the logits; None for 1/sqrt(feature).

    Returns:
        "... query feature", float64, differentiable in all three.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * query.double() @ key.double().transpose(-1, -2)
    logits = logits.masked_fill(~allowed, -torch.inf)
    largest = logits.detach().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).min)
    weights = torch.exp(logits - largest)
    return weights @ value.double() / weights.sum(dim=-1, keepdim=True).clamp(min=1.0)


def attend_groups(
    query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Group], *, scale: float | None = None
) -> Tensor:
    """`attend` for a batch whose sequences, or their heads, have different masks: one plan for each run of equal ones.

    Args:
        query: "batch head query feature".
        key: "batch head key feature".
        value: "batch head key feature".
        groups: consecutive runs that share out the batch.
        scale: of the logits; None for 1/sqrt(feature).

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
        return _attend_group(query, key, value, groups[0], scale)
    parts = zip(query.split(sizes), key.split(sizes), value.split(sizes), groups, strict=True)
    return torch.cat([_attend_group(q, k, v, group, scale) for q, k, v, group in parts])


def _attend_group(query: Tensor, key: Tensor, value: Tensor, group: Group, scale: float | None) -> Tensor:
    """`attend` for sequences that share a plan, or one for each run of heads."""
    if not group.heads:
        return attend(query, key, value, group.plan, scale=scale)
    sizes = [run.size for run in group.heads]
    if sum(sizes) != query.shape[1]:
        raise ValueError(f"heads must share out the {query.shape[1]} heads, got sizes {sizes}. Give every head a plan.")
    parts = zip(*(tensor.split(sizes, dim=1) for tensor in (query, key, value)), group.heads, strict=True)
    outputs = [attend(q, k, v, run.plan, scale=scale) for q, k, v, run in parts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.dim() != 4 or key.dim() != 4 or key.shape != value.shape or query.shape[-1] != key.shape[-1]:
        shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
        raise ValueError(
            f"query, key and value must be (batch, head, position, feature) with equal features and equal keys and "
            f"values, got {shapes}. Add the missing axes; pad values to the head size."
        )


def _check_plan(plan: Plan, rows: int, columns: int) -> None:
    position = 0
    for call in plan:
        if call.rows[0] != position or call.columns[1] > columns:
            raise ValueError(
                f"plan must share out rows 0..{rows} in order within {columns} columns, got {list(plan)}. "
                "Make the plan for this sequence length."
            )
        position = call.rows[1]
    if position != rows:
        raise ValueError(
            f"plan must share out rows 0..{rows}, got {list(plan)}. Make the plan for this sequence length."
        )
