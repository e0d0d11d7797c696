"""Rows that see what is near them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks.base import Mask, open_block
from rankkit.masks.plain import Backward, Bidirectional, Causal
from rankkit_kernels.attention import FusedCall

__all__ = ["Window"]


@dataclass(frozen=True, slots=True)
class Window(Mask):
    """Sliding window: i - behind <= j <= i + ahead. Mistral's `sliding_window=w` is `Window(w - 1)`.

    Without `ahead` A is lower-triangular with a positive diagonal, and the theorems of `Causal` hold; without `behind` those
    of `Backward`. A window ahead and behind has no theorem.
    """

    behind: int
    """How many positions before its own a row sees."""
    ahead: int = 0
    """How many after it."""

    def __post_init__(self) -> None:
        for name, length in (("behind", self.behind), ("ahead", self.ahead)):
            if isinstance(length, bool) or not isinstance(length, int) or length < 0:
                raise ConfigurationError(
                    f"{name} must be an integer of at least 0, got {length!r}. A row sees itself; count the others."
                )

    def allowed(self, n: int) -> Tensor:
        """True where i - behind <= j <= i + ahead."""
        positions = torch.arange(n)
        offset = positions[None, :] - positions[:, None]
        return (offset >= -self.behind) & (offset <= self.ahead)

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """One call on a band; that of `Causal`, `Backward` or `Bidirectional` where the window reaches the ends."""
        behind, ahead = min(self.behind, n - 1), min(self.ahead, n - 1)
        if behind == n - 1 and ahead in (0, n - 1):
            return Causal().fused_plan(n) if ahead < behind else Bidirectional().fused_plan(n)
        if behind == 0 and ahead == n - 1:
            return Backward().fused_plan(n)
        return (FusedCall((0, n), (0, n), "band", behind, ahead),)

    def transposed(self) -> Mask:
        """Behind and ahead exchanged."""
        return Window(self.ahead, self.behind)

    def visible_pairs(self, n: int) -> int:
        """The diagonals of the band."""
        sides = (min(self.behind, n - 1), min(self.ahead, n - 1))
        return n + sum(side * n - side * (side + 1) // 2 for side in sides)

    def triangular_rows(self, n: int) -> range:
        """All of them where the window has one side, else none."""
        return range(n) if self.behind == 0 or self.ahead == 0 else range(0)

    def foreseeing_rows(self, n: int) -> range:
        """All that have a next position, where the window has any ahead."""
        return range(n - 1) if self.ahead else range(0)

    def leading(self, size: int) -> Mask:
        """The window again; refused where rows see ahead."""
        if self.ahead:
            raise open_block(self, size)
        return self
