"""Sources of attention operators: models that run as they would have run, or with chosen heads replaced."""

from __future__ import annotations

from rankkit.hooks.capture import Captured, capture, capture_mode
from rankkit.hooks.factors import LayerAttention, LayerFactors, LayerMatrices
from rankkit.hooks.replacement import replaced_attention

__all__ = [
    "Captured",
    "LayerAttention",
    "LayerFactors",
    "LayerMatrices",
    "capture",
    "capture_mode",
    "replaced_attention",
]
