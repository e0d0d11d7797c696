"""Parts of what a model computed: chosen heads, keys one per query head, rows that are not padding, rows to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from einops import rearrange, repeat
from torch import Tensor

from rankkit.hooks.factors import LayerFactors
from rankkit.hooks.masks_seen import SeenMask

__all__ = ["gives_back", "keys_of_heads", "of_heads", "visible_rows", "with_four_axes", "without_padding"]

DIFFERENCE: Final = 1e-4
"""Rows of attention that differ by more come of something beside their factors: float32 logits of 20 err by 1e-5."""
DIFFERENCE_HALF: Final = 0.1
"""The same where the model works in half precision: bfloat16 logits of 20 err by 0.1."""


def with_four_axes(tensor: Tensor) -> Tensor:
    """Leading axes of size 1 up to "sequence head query key"."""
    return tensor[(None,) * (4 - tensor.dim())]


def keys_of_heads(key: Tensor, heads: int, chosen: Sequence[int] | None) -> Tensor:
    """One key per query head; a view where there is one group or one head in each.

    Args:
        key: "sequence group key feature".
        heads: how many query heads there are.
        chosen: which of them; None for all.
    """
    size = heads // key.shape[1]
    if chosen is not None:
        return key[:, [head // size for head in chosen]]
    return key if size == 1 else repeat(key, "sequence group key feature -> sequence (group n) key feature", n=size)


def of_heads(seen: Sequence[SeenMask], heads: Sequence[int]) -> tuple[SeenMask, ...]:
    """With the biases of some heads; sequences that shared one still do."""
    chosen = {id(each): each for each in seen}
    for each in chosen.copy().values():
        if each.bias is not None and len(each.bias.values) > 1:
            chosen[id(each)] = replace(each, bias=replace(each.bias, values=each.bias.values[list(heads)]))
    return tuple(chosen[id(each)] for each in seen)


def visible_rows(seen: SeenMask, queries: int) -> Tensor:
    """Which rows are no padding and see a key: "query", bool."""
    rows = torch.zeros(queries, dtype=torch.bool)
    inside = seen.mask.visible_positions(queries)
    rows[inside.start : inside.stop] = True
    if seen.name == "other" and seen.bias is not None:
        rows &= (seen.bias.values > -torch.inf).any(dim=-1).all(dim=0).cpu()
    return rows


def without_padding(matrices: Tensor, seen: Sequence[SeenMask]) -> Tensor:
    """Rows of padding set to zero, in a copy where there are any: "sequence head query key"."""
    rows = torch.stack([visible_rows(each, matrices.shape[-2]) for each in seen])
    if bool(rows.all()):
        return matrices
    return torch.where(rearrange(rows, "sequence query -> sequence 1 query 1").to(matrices.device), matrices, 0)


def gives_back(factors: LayerFactors, weights: Tensor) -> bool:
    """Whether factors make the matrices that a model made, by three rows of each: first, middle and last.

    Args:
        factors: of one layer.
        weights: "sequence head query key", the model's.
    """
    limit = DIFFERENCE if weights.dtype in (torch.float32, torch.float64) else DIFFERENCE_HALF
    for (sequences, _), operator in factors.operators_by_mask():
        seen = factors.seen[sequences.start]
        rows = visible_rows(seen, operator.rows).nonzero()[:, 0].tolist()
        theirs = weights[sequences] if seen.keys is None else weights[sequences][..., seen.keys]
        for row in {rows[0], rows[len(rows) // 2], rows[-1]} if rows else ():
            ours = operator.block(slice(row, row + 1), slice(None), torch.float32)
            if not bool(((ours - theirs[..., row : row + 1, :]).abs() <= limit).all()):
                return False
    return True
