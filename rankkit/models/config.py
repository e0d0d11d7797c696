"""What a model is: every choice, none of them hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rankkit.errors import ConfigurationError
from rankkit.masks import LayerMask, MaskKind

__all__ = ["ModelConfig", "Position"]

Position = Literal["rope", "learned", "none", "alibi"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One pre-norm Transformer; `mask` is the only free choice under study."""

    mask: MaskKind = MaskKind.CAUSAL
    """Kind of attention mask; `mask_in(layer, prefix_length)` is what a layer applies to one sequence."""
    vocab_size: int = 257
    """Rows of the embedding, which is also the output projection; the tokenizer decides."""
    sequence_length: int = 256
    """Tokens per sequence, n."""
    num_layers: int = 4
    """Transformer blocks."""
    d_model: int = 128
    """Width of the residual stream."""
    num_heads: int = 4
    """Attention heads per layer."""
    head_dim: int = 32
    """Width of a head; independent of d_model."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over d_model."""
    position: Position = "rope"
    """Position encoding: rotary, a learned vector per position, none, or logits that fall with the distance."""
    rope_base: float = 10000.0
    """Wavelength base of `rope`."""
    initial_std: float = 0.02
    """Standard deviation of initial weights; residual outputs have it over sqrt(2 num_layers)."""

    def __post_init__(self) -> None:
        if self.mask not in list(MaskKind):
            raise ConfigurationError(
                f"mask must be one of {', '.join(MaskKind)}, got {self.mask!r}. Choose one of them."
            )
        object.__setattr__(self, "mask", MaskKind(self.mask))  # a plain string names its kind
        for name in ("vocab_size", "num_layers", "d_model", "num_heads", "head_dim", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be at least 1, got {getattr(self, name)}. Choose a positive number."
                )
        self._check_mixture()
        if self.sequence_length < 2:
            raise ConfigurationError(
                f"sequence_length must be at least 2, got {self.sequence_length}. One token predicts nothing."
            )
        if self.position not in get_args(Position):
            raise ConfigurationError(
                f"position must be one of {', '.join(get_args(Position))}, got {self.position!r}. Choose one of them."
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ConfigurationError(
                f"head_dim must be even with rope, got {self.head_dim}. Choose an even head_dim or another position."
            )
        for name in ("initial_std", "rope_base"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(
                    f"{name} must be positive, got {getattr(self, name)}. Choose a positive number."
                )

    def _check_mixture(self) -> None:
        needed = {MaskKind.MIXED_HEADS: "num_heads", MaskKind.MIXED_LAYERS: "num_layers"}
        name = needed.get(self.mask)
        if name is not None and getattr(self, name) < 2:
            raise ConfigurationError(
                f"{name} must be at least 2 with mask {self.mask}, got 1. Choose more of them, or another mask."
            )

    def mask_in(self, layer: int, prefix_length: int) -> LayerMask:
        """What a layer, counted from 0, applies to a sequence with this prefix length."""
        return self.mask.in_layer(layer, self.num_heads, prefix_length)

    @property
    def non_embedding_parameters(self) -> int:
        """N of the scaling laws: weights that are neither token nor position embeddings."""
        attention = 4 * self.d_model * self.num_heads * self.head_dim
        mlp = 2 * self.mlp_ratio * self.d_model**2
        return self.num_layers * (attention + mlp + 2 * self.d_model) + self.d_model

    @property
    def parameters(self) -> int:
        """All weights; the embedding is tied, so it counts once."""
        positions = self.sequence_length if self.position == "learned" else 0
        return self.non_embedding_parameters + (self.vocab_size + positions) * self.d_model
