"""Attention masks as values: who sees whom, how to compute it fused, and which theorems hold.

`allowed(n)` is the definition. Everything else about a mask (the fused plan, the transpose, the count of visible
pairs, the triangular rows) is tested against it. Adding a mask is one class in a module here and its tests.

Shapes: n query positions, n key positions; A = softmax(scale Q K^T, masked) is n x n and row-stochastic.
Positions are 0-based.
"""

from __future__ import annotations

from rankkit.masks.base import Mask
from rankkit.masks.cross import Cross
from rankkit.masks.kinds import MaskKind, batch_groups
from rankkit.masks.mixed import LayerMask, Mixed
from rankkit.masks.padded import Padded
from rankkit.masks.plain import Backward, Bidirectional, Causal
from rankkit.masks.prefix import Prefix, PrefixTransposed
from rankkit.masks.window import Window

__all__ = [
    "Backward",
    "Bidirectional",
    "Causal",
    "Cross",
    "LayerMask",
    "Mask",
    "MaskKind",
    "Mixed",
    "Padded",
    "Prefix",
    "PrefixTransposed",
    "Window",
    "batch_groups",
]
