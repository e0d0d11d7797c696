"""The model whose only free choice under study is the mask."""

from __future__ import annotations

from rankkit.models.config import ModelConfig, Position
from rankkit.models.generation import generate
from rankkit.models.initialization import initialize, uniform_tensor
from rankkit.models.transformer import FusedAttention, KeyValueCache, Transformer, uniform_attention

__all__ = [
    "FusedAttention",
    "KeyValueCache",
    "ModelConfig",
    "Position",
    "Transformer",
    "generate",
    "initialize",
    "uniform_attention",
    "uniform_tensor",
]
