"""What a configuration holds of a mask, and what the kernel gets of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import groupby

from rankkit.masks.base import Mask
from rankkit.masks.plain import Backward, Bidirectional, Causal
from rankkit.masks.prefix import Prefix
from rankkit_kernels.attention import Group

__all__ = ["MaskKind", "batch_groups"]


class MaskKind(StrEnum):
    """What a configuration holds; `kind.at(prefix_length)` makes the value for one sequence."""

    CAUSAL = "causal"
    PREFIX = "prefix"
    BIDIRECTIONAL = "bidirectional"
    BACKWARD = "backward"

    def at(self, prefix_length: int) -> Mask:
        """The mask of a sequence with this prefix length; only `PREFIX` depends on it."""
        if self is MaskKind.PREFIX:
            return Prefix(prefix_length)
        return {MaskKind.CAUSAL: Causal(), MaskKind.BIDIRECTIONAL: Bidirectional(), MaskKind.BACKWARD: Backward()}[self]


def batch_groups(masks: Sequence[Mask], n: int) -> tuple[Group, ...]:
    """Runs of equal consecutive masks with their fused plans, for `rankkit_kernels.attention.attend_groups`.

    Args:
        masks: one per sequence of the batch; sort the batch so that equal ones stand together.
        n: sequence length.
    """
    return tuple(Group(len(list(run)), mask.fused_plan(n)) for mask, run in groupby(masks))
