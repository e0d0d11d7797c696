"""Padding around another mask's positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks.base import Mask
from rankkit.masks.cross import Cross
from rankkit_kernels.attention import FusedCall

__all__ = ["Padded"]


@dataclass(frozen=True, slots=True)
class Padded(Mask):
    """Positions start .. start + length attend under another mask; padding around them sees nothing and is seen by none."""

    mask: Mask
    """Of the positions that are not padding."""
    length: int
    """How many they are."""
    start: int = 0
    """The first of them: above 0 where padding stands on the left."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.start < 0 or isinstance(self.mask, Cross | Padded):
            raise ConfigurationError(
                f"length must be at least 1, start at least 0 and mask one of self-attention, got {self.length}, "
                f"{self.start} and {self.mask}. Leave out sequences that are all padding."
            )

    def visible_positions(self, n: int) -> range:
        """Those between the padding."""
        if self.start + self.length > n:
            raise ConfigurationError(
                f"start + length must be between 1 and {n} (positions), got {self.start} + {self.length}. Count the "
                "positions that are not padding."
            )
        return range(self.start, self.start + self.length)

    def allowed(self, n: int) -> Tensor:
        """The other mask in the block of its positions, False elsewhere."""
        allowed = torch.zeros(n, n, dtype=torch.bool)
        inside = self.visible_positions(n)
        allowed[inside.start : inside.stop, inside.start : inside.stop] = self.mask.allowed(self.length)
        return allowed

    def fused_plan(self, n: int) -> tuple[FusedCall, ...]:
        """The other mask's, for the positions that are not padding alone."""
        return tuple(_moved(call, self.start) for call in self.mask.fused_plan(len(self.visible_positions(n))))

    def transposed(self) -> Mask:
        """The other mask's transpose, padded alike."""
        return Padded(self.mask.transposed(), self.length, self.start)

    def visible_pairs(self, n: int) -> int:
        """Those between the padding."""
        return self.mask.visible_pairs(len(self.visible_positions(n)))

    def triangular_rows(self, n: int) -> range:
        """None: empty rows make the determinant 0."""
        return range(0)

    def foreseeing_rows(self, n: int) -> range:
        """The other mask's, where they stand."""
        rows = self.mask.foreseeing_rows(len(self.visible_positions(n)))
        return range(rows.start + self.start, rows.stop + self.start)

    def leading(self, size: int) -> Mask:
        """The other mask's, without padding where the block has none.

        Raises:
            ConfigurationError: as the other mask's, and where the block is all padding.
        """
        length = min(size - self.start, self.length)
        if length < 1:
            raise ConfigurationError(
                f"size must be at least {self.start + 1} (padding before the first position), got {size}. Take a larger "
                "block."
            )
        inner = self.mask if length == self.length else self.mask.leading(length)
        return inner if length == size else Padded(inner, length, self.start)

    def without_first_key(self) -> Mask:
        """One position less between the padding; the first that was seen is padding where some stands on the left."""
        if self.length == 1:
            raise ConfigurationError("length must be at least 2, got 1. There is no other key.")
        return Padded(self.mask.without_first_key(), self.length - 1, self.start)


def _moved(call: FusedCall, start: int) -> FusedCall:
    """A call as many positions later."""
    rows, columns = ((first + start, last + start) for first, last in (call.rows, call.columns))
    return replace(call, rows=rows, columns=columns)
