"""Sources of attention operators: models that run as they would have run, or with chosen heads replaced."""

from __future__ import annotations

from rankkit.hooks.capture import Captured, capture
from rankkit.hooks.factors import LayerFactors
from rankkit.hooks.replacement import replaced_attention

__all__ = ["Captured", "LayerFactors", "capture", "replaced_attention"]
