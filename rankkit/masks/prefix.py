"""A prefix that everybody sees, and its transpose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks.base import Mask, open_block
from rankkit_kernels.attention import FusedCall

__all__ = ["Prefix", "PrefixTransposed"]


@dataclass(frozen=True, slots=True)
class Prefix(Mask):
    """UniLM: j < length, or j <= i. A = [[P, 0], [C, L]] with P full and L lower-triangular.

    rank A = rank P + (n - length), and log|det A| = log|det P| + sum over i >= length of log A_ii.
    """

    length: int
    """How many positions, from the first, are seen by everybody."""

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 0:
            raise ConfigurationError(
                f"prefix_length must be an integer of at least 0, got {self.length!r}. "
                "Choose a length within the sequence."
            )

    def _checked(self, n: int) -> int:
        if self.length > n:
            raise ConfigurationError(
                f"prefix_length must be between 0 and {n} (sequence_length), got {self.length}. "
                "Shorten the prefix or raise sequence_length."
            )
        return self.length

    def allowed(self, n: int) -> Tensor:
        """True where j < length or j <= i."""
        positions = torch.arange(n)
        return (positions < self._checked(n))[None, :] | (positions[None, :] <= positions[:, None])

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """The prefix alone without a mask, then the suffix rows aligned to the lower right."""
        p = self._checked(n)
        prefix = (FusedCall((0, p), (0, p), "all"),) if p > 0 else ()
        suffix = (FusedCall((p, n), (0, n), "past"),) if p < n else ()
        return prefix + suffix

    def transposed(self) -> Mask:
        """`PrefixTransposed` of the same length."""
        return PrefixTransposed(self.length)

    def visible_pairs(self, n: int) -> int:
        """A triangle and the prefix's upper triangle."""
        p = self._checked(n)
        return n * (n + 1) // 2 + p * (p - 1) // 2

    def triangular_rows(self, n: int) -> range:
        """The suffix rows."""
        return range(self._checked(n), n)

    def foreseeing_rows(self, n: int) -> range:
        """Those inside the prefix, but for its last."""
        return range(max(self._checked(n) - 1, 0))

    def leading(self, size: int) -> Mask:
        """Prefix again; refused inside the prefix, whose rows see all of it."""
        if size < self.length:
            raise ConfigurationError(
                f"size must be at least {self.length} (prefix_length), got {size}. "
                "Rows of the prefix see all of it; take the whole prefix."
            )
        return self

    def without_first_key(self) -> Mask:
        """One position of the prefix less."""
        return Prefix(max(self.length - 1, 0))


@dataclass(frozen=True, slots=True)
class PrefixTransposed(Mask):
    """The transpose of `Prefix`: rows before `length` see all, later ones what does not come before them."""

    length: int
    """The prefix length of the mask that this one transposes."""

    def allowed(self, n: int) -> Tensor:
        """True where i < length or j >= i."""
        positions = torch.arange(n)
        return (positions < Prefix(self.length)._checked(n))[:, None] | (positions[None, :] >= positions[:, None])

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """The first rows without a mask, the others as a reversed causal call among themselves."""
        p = Prefix(self.length)._checked(n)
        first = (FusedCall((0, p), (0, n), "all"),) if p > 0 else ()
        later = (FusedCall((p, n), (p, n), "future"),) if p < n else ()
        return first + later

    def transposed(self) -> Mask:
        """`Prefix` of the same length."""
        return Prefix(self.length)

    def visible_pairs(self, n: int) -> int:
        """As many as the transpose has."""
        return Prefix(self.length).visible_pairs(n)

    def triangular_rows(self, n: int) -> range:
        """Those from `length` on."""
        return Prefix(self.length).triangular_rows(n)

    def foreseeing_rows(self, n: int) -> range:
        """All that have a next position."""
        return range(n - 1)

    def leading(self, size: int) -> Mask:
        """Refused: the first rows see every later key."""
        raise open_block(self, size)

    def without_first_key(self) -> Mask:
        """One position of the prefix less."""
        return PrefixTransposed(max(self.length - 1, 0))
