"""Masks without numbers: all that came before, all that comes after, all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankkit.masks.base import Mask, open_block
from rankkit_kernels.attention import FusedCall

__all__ = ["Backward", "Bidirectional", "Causal"]


@dataclass(frozen=True, slots=True)
class Causal(Mask):
    """GPT: j <= i. A is lower-triangular; det A = prod A_ii > 0 and rank A = n in exact arithmetic."""

    def allowed(self, n: int) -> Tensor:
        """True where j <= i."""
        return torch.ones(n, n, dtype=torch.bool).tril()

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One causal call."""
        return (FusedCall((0, n), (0, n), "past"),)

    def transposed(self) -> Mask:
        """Backward."""
        return Backward()

    def visible_pairs(self, n: int) -> int:
        """Entries of a triangle."""
        return n * (n + 1) // 2

    def triangular_rows(self, n: int) -> range:
        """All of them."""
        return range(n)

    def foreseeing_rows(self, n: int) -> range:
        """None."""
        return range(0)

    def leading(self, size: int) -> Mask:
        """Causal again."""
        return self


@dataclass(frozen=True, slots=True)
class Backward(Mask):
    """j >= i. A is upper-triangular, with the theorems of `Causal`."""

    def allowed(self, n: int) -> Tensor:
        """True where j >= i."""
        return torch.ones(n, n, dtype=torch.bool).triu()

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One causal call on the reversed sequence."""
        return (FusedCall((0, n), (0, n), "future"),)

    def transposed(self) -> Mask:
        """Causal."""
        return Causal()

    def visible_pairs(self, n: int) -> int:
        """Entries of a triangle."""
        return n * (n + 1) // 2

    def triangular_rows(self, n: int) -> range:
        """All of them."""
        return range(n)

    def foreseeing_rows(self, n: int) -> range:
        """All that have a next position."""
        return range(n - 1)

    def leading(self, size: int) -> Mask:
        """Refused: the first rows see every later key."""
        raise open_block(self, size)


@dataclass(frozen=True, slots=True)
class Bidirectional(Mask):
    """BERT, T5's encoder: everybody sees everybody. Full rank almost surely, but not triangular."""

    def allowed(self, n: int) -> Tensor:
        """True everywhere."""
        return torch.ones(n, n, dtype=torch.bool)

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One call without a mask."""
        return (FusedCall((0, n), (0, n), "all"),)

    def transposed(self) -> Mask:
        """Itself."""
        return self

    def visible_pairs(self, n: int) -> int:
        """All."""
        return n * n

    def triangular_rows(self, n: int) -> range:
        """None."""
        return range(0)

    def foreseeing_rows(self, n: int) -> range:
        """All that have a next position."""
        return range(n - 1)

    def leading(self, size: int) -> Mask:
        """Refused: the first rows see every later key."""
        raise open_block(self, size)
