"""Sources of attention operators: models that run as they would have run."""

from __future__ import annotations

from rankkit.hooks.capture import Captured, capture
from rankkit.hooks.factors import LayerFactors

__all__ = ["Captured", "LayerFactors", "capture"]
