"""Heads of one layer under masks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks.base import Mask
from rankkit.masks.cross import Cross
from rankkit_kernels.attention import Group

__all__ = ["LayerMask", "Mixed"]


@dataclass(frozen=True, slots=True)
class Mixed:
    """A mask for each head of a layer: heads that look back beside heads that look ahead.

    Not a `Mask`, which every matrix has one of: attention operators take `runs` of heads, each with its mask.
    """

    masks: tuple[Mask, ...]
    """By head."""

    def __post_init__(self) -> None:
        if not self.masks or any(isinstance(mask, Cross) or not isinstance(mask, Mask) for mask in self.masks):
            raise ConfigurationError(
                f"masks must hold one mask of self-attention for each head, got {self.masks!r}. Name a mask per head."
            )

    @property
    def runs(self) -> tuple[tuple[slice, Mask], ...]:
        """Neighbouring heads with equal masks, and that mask."""
        found, start = [], 0
        for mask, run in groupby(self.masks):
            stop = start + len(list(run))
            found.append((slice(start, stop), mask))
            start = stop
        return tuple(found)

    def allowed(self, n: int) -> Tensor:
        """The definition: "head query key", bool, True where query i of a head may see key j."""
        return torch.stack([mask.allowed(n) for mask in self.masks])

    def fused_plans(self, n: int) -> tuple[Group, ...]:
        """A plan for every run of heads."""
        return tuple(Group(heads.stop - heads.start, mask.fused_plan(n)) for heads, mask in self.runs)

    def transposed(self) -> Mixed:
        """Every head's transpose."""
        return Mixed(tuple(mask.transposed() for mask in self.masks))

    def of_heads(self, heads: Sequence[int]) -> Mixed:
        """Those of some heads, in the order given."""
        return Mixed(tuple(self.masks[head] for head in heads))


LayerMask: TypeAlias = Mask | Mixed
"""What one layer applies to one sequence: one mask for all heads, or one for each."""
