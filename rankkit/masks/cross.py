"""Two sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks.base import Mask, open_block
from rankkit_kernels.attention import FusedCall

__all__ = ["Cross"]


@dataclass(frozen=True, slots=True)
class Cross(Mask):
    """All queries of one sequence see all keys of another: A is queries x keys, rectangular."""

    queries: int
    """Rows."""
    keys: int
    """Columns."""

    def __post_init__(self) -> None:
        if self.queries < 1 or self.keys < 1:
            raise ConfigurationError(
                f"queries and keys must be at least 1, got {self.queries} and {self.keys}. Count the positions of both."
            )

    def _checked(self, n: int) -> int:
        if n != self.queries:
            raise ConfigurationError(
                f"n must be {self.queries} (queries of {self}), got {n}. Make the mask for n rows."
            )
        return n

    def columns(self, n: int) -> int:
        """The other sequence's length."""
        self._checked(n)
        return self.keys

    def allowed(self, n: int) -> Tensor:
        """True everywhere."""
        return torch.ones(self._checked(n), self.keys, dtype=torch.bool)

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One call without a mask."""
        return (FusedCall((0, self._checked(n)), (0, self.keys), "all"),)

    def transposed(self) -> Mask:
        """Queries and keys exchanged."""
        return Cross(self.keys, self.queries)

    def visible_pairs(self, n: int) -> int:
        """All."""
        return self._checked(n) * self.keys

    def triangular_rows(self, n: int) -> range:
        """None."""
        return range(0)

    def foreseeing_rows(self, n: int) -> range:
        """None: the keys are not what the queries predict."""
        return range(0)

    def leading(self, size: int) -> Mask:
        """Refused: no block of it is attention by itself."""
        raise open_block(self, size)

    def without_first_key(self) -> Mask:
        """Refused: the first query does not belong to the first key."""
        raise ConfigurationError(f"mask must be one of self-attention, got {self}. Measure region `full`.")
