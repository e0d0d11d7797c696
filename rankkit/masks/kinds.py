"""What a configuration holds of a mask, and what the kernel gets of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import groupby

from rankkit.errors import ConfigurationError
from rankkit.masks.base import Mask
from rankkit.masks.mixed import LayerMask, Mixed
from rankkit.masks.plain import Backward, Bidirectional, Causal
from rankkit.masks.prefix import Prefix
from rankkit_kernels.attention import Group

__all__ = ["MaskKind", "batch_groups"]


class MaskKind(StrEnum):
    """What a configuration holds; `kind.in_layer(...)` makes the value for one layer and one sequence."""

    CAUSAL = "causal"
    PREFIX = "prefix"
    BIDIRECTIONAL = "bidirectional"
    BACKWARD = "backward"
    MIXED_HEADS = "mixed-heads"
    """The first half of every layer's heads causal, the others backward; of an odd number the middle one is causal."""
    MIXED_LAYERS = "mixed-layers"
    """Layers 0, 2, ... causal, layers 1, 3, ... backward."""

    @property
    def is_mixed(self) -> bool:
        """Whether heads or layers of one model have different masks."""
        return self in (MaskKind.MIXED_HEADS, MaskKind.MIXED_LAYERS)

    def masks(self, prefix_length: int) -> tuple[Mask, ...]:
        """The masks that a model has for one sequence, in about equal shares; only `PREFIX` depends on its prefix."""
        if self.is_mixed:
            return Causal(), Backward()
        if self is MaskKind.PREFIX:
            return (Prefix(prefix_length),)
        plain = {
            MaskKind.CAUSAL: Causal(),
            MaskKind.BIDIRECTIONAL: Bidirectional(),
            MaskKind.BACKWARD: Backward(),
        }
        return (plain[self],)

    def at(self, prefix_length: int) -> Mask:
        """The mask of a sequence with this prefix length.

        Raises:
            ConfigurationError: heads or layers have different ones.
        """
        if self.is_mixed:
            raise ConfigurationError(f"mask must be one for all heads and layers, got {self}. Choose another mask.")
        return self.masks(prefix_length)[0]

    def in_layer(self, layer: int, num_heads: int, prefix_length: int) -> LayerMask:
        """What one layer, counted from 0, applies to a sequence with this prefix length."""
        masks = self.masks(prefix_length)
        if self is MaskKind.MIXED_HEADS:
            forward = -(-num_heads // 2)
            return Mixed((masks[0],) * forward + (masks[1],) * (num_heads - forward))
        return masks[layer % len(masks)]

    def foreseeing_rows(self, prefix_length: int, n: int) -> range:
        """Rows t that see position t + 1 in some head of some layer: no next token may be predicted there."""
        found = [rows for mask in self.masks(prefix_length) if (rows := mask.foreseeing_rows(n))]
        return range(min(rows.start for rows in found), max(rows.stop for rows in found)) if found else range(0)


def batch_groups(masks: Sequence[LayerMask], n: int) -> tuple[Group, ...]:
    """Runs of equal consecutive masks with their fused plans, for `rankkit_kernels.attention.attend_groups`.

    Args:
        masks: one per sequence of the batch; sort the batch so that equal ones stand together.
        n: sequence length.
    """
    return tuple(_group(len(list(run)), mask, n) for mask, run in groupby(masks))


def _group(size: int, mask: LayerMask, n: int) -> Group:
    """Sequences that share a mask."""
    if isinstance(mask, Mixed):
        return Group(size, heads=mask.fused_plans(n))
    return Group(size, mask.fused_plan(n))
