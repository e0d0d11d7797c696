"""Sources of attention operators: models that run as they would have run, or with chosen heads replaced."""

from __future__ import annotations

from rankkit.hooks.capture import Captured, capture, capture_mode
from rankkit.hooks.check import Agreement, check_against_eager
from rankkit.hooks.factors import LayerAttention, LayerFactors, LayerMatrices
from rankkit.hooks.replacement import replaced_attention

__all__ = [
    "Agreement",
    "Captured",
    "LayerAttention",
    "LayerFactors",
    "LayerMatrices",
    "capture",
    "capture_mode",
    "check_against_eager",
    "replaced_attention",
]
