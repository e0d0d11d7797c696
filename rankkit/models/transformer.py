"""The model: one pre-norm Transformer, read in one sitting.

    tokens -> embedding (+ learned positions) -> [norm, attention, add; norm, MLP, add] x num_layers -> norm

The output projection is the embedding. A layer asks the configuration for its masks, one per sequence, and knows nothing
else about arms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rankkit.errors import ConfigurationError
from rankkit.masks import LayerMask, batch_groups
from rankkit.models.config import ModelConfig
from rankkit.models.initialization import initialize
from rankkit.models.positions import alibi, rotate, rotation_angles
from rankkit_kernels.attention import attend_groups
from rankkit_kernels.scores import OffsetBias

__all__ = ["FusedAttention", "KeyValueCache", "Transformer", "uniform_attention"]


class KeyValueCache:
    """Keys and values of the positions so far, one pair per layer."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Positions held."""
        return self._layers[0][0].shape[-2] if self._layers else 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append "batch head key feature" and return all of them."""
        if layer in self._layers:
            before_key, before_value = self._layers[layer]
            key, value = torch.cat((before_key, key), dim=-2), torch.cat((before_value, value), dim=-2)
        self._layers[layer] = (key, value)
        return key, value


class FusedAttention(nn.Module):
    """The call that mixes positions, a module without weights so that a hook sees exactly what the kernel gets.

    Its inputs are the query and key after the position encoding, "batch head position feature", and what `alibi` adds to
    their products, "head offset".
    """

    # Prefix lengths change from batch to batch: compiled around, not through.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, masks: Sequence[LayerMask], bias: Tensor | None
    ) -> Tensor:
        """Attention under one mask per sequence; with a cache, the one new row sees every key."""
        if query.shape[-2] != key.shape[-2]:
            # Offsets of one row are its keys.
            row = None if bias is None else rearrange(bias, "head key -> 1 head 1 key")
            return F.scaled_dot_product_attention(query, key, value, attn_mask=row)
        added = None if bias is None else OffsetBias(values=bias)
        return attend_groups(query, key, value, batch_groups(masks, query.shape[-2]), bias=added)


class Attention(nn.Module):
    """Multi-head self-attention with the head size independent of the width."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.num_heads = layer, config.num_heads
        width = config.num_heads * config.head_dim
        self.projection = nn.Linear(config.d_model, 3 * width, bias=False)
        self.fused = FusedAttention()
        self.output = nn.Linear(width, config.d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        masks: Sequence[LayerMask],
        rotation: tuple[Tensor, Tensor] | None,
        bias: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """Mix positions; x is "batch position d_model"."""
        projected = rearrange(
            self.projection(x), "batch position (three head feature) -> three batch head position feature",
            three=3, head=self.num_heads,
        )  # fmt: skip
        query, key, value = projected.unbind(0)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if bias is not None:
            bias = bias.to(query.dtype)  # under autocast that is not the residual stream's
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        mixed = self.fused(query, key, value, masks, bias)
        return self.output(rearrange(mixed, "batch head position feature -> batch position (head feature)"))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.d_model, config.mlp_ratio * config.d_model, bias=False)
        self.output = nn.Linear(config.mlp_ratio * config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Work on each position alone."""
        return self.output(F.gelu(self.input(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=1e-6)  # far below the mean square of any used width
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        masks: Sequence[LayerMask],
        rotation: tuple[Tensor, Tensor] | None,
        bias: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """One layer; x is "batch position d_model"."""
        x = x + self.attention(self.attention_norm(x), masks, rotation, bias, cache)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A decoder-shaped Transformer whose attention mask is a value of the configuration.

    Args:
        config: everything about it.
        seed: of the initial weights.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.positions = nn.Embedding(config.sequence_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        initialize(self, config, seed)

    def forward(
        self, tokens: Tensor, prefix_lengths: Sequence[int] | int, *, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Hidden states of every position; `logits` turns those asked for into predictions.

        Args:
            tokens: "batch position", int64, ids below vocab_size.
            prefix_lengths: how many first positions are prefix, one per sequence or one for all; batches whose equal
                lengths stand together run fastest.
            cache: of the positions before these; None to start and keep nothing.

        Returns:
            "batch position d_model", after the last norm.

        Raises:
            ConfigurationError: too many positions, a prefix longer than the sequence (whatever the mask), or several
                positions after cached ones: they would see each other.
        """
        batch, length = tokens.shape
        start = cache.length if cache is not None else 0
        self._check_length(start, length)
        lengths = self._checked_lengths(prefix_lengths, batch, length)
        positions = torch.arange(start, start + length, device=tokens.device)
        x = self.embedding(tokens)
        if self.config.position == "learned":
            x = x + self.positions(positions)
        rotation = bias = None
        if self.config.position == "rope":
            rotation = rotation_angles(positions, self.config.head_dim, self.config.rope_base, x.dtype)
        if self.config.position == "alibi":
            bias = alibi(self.config.num_heads, length, start + length, device=x.device, dtype=x.dtype)
        for layer, block in enumerate(self.blocks):
            masks = [self.config.mask_in(layer, prefix_length) for prefix_length in lengths]
            x = block(x, masks, rotation, bias, cache)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, "... vocabulary", from hidden states "... d_model"."""
        return F.linear(hidden, self.embedding.weight)

    def _checked_lengths(self, prefix_lengths: Sequence[int] | int, batch: int, length: int) -> list[int]:
        """One prefix length per sequence."""
        lengths = [prefix_lengths] * batch if isinstance(prefix_lengths, int) else list(prefix_lengths)
        if len(lengths) != batch:
            raise ConfigurationError(
                f"prefix_lengths must have one entry for each of {batch} sequences, got {len(lengths)}. Pass one each."
            )
        for prefix_length in lengths:
            if not 0 <= prefix_length <= length:
                raise ConfigurationError(
                    f"prefix_length must be between 0 and {length} (tokens of the sequence), got {prefix_length}. "
                    "Shorten the prefix."
                )
        return lengths

    def _check_length(self, cached: int, length: int) -> None:
        # Beyond the trained length rotary positions only extrapolate, so `rankkit spectrum` warns; a learned table ends.
        if self.config.position == "learned" and cached + length > self.config.sequence_length:
            raise ConfigurationError(
                f"tokens must be at most {self.config.sequence_length} (sequence_length of learned positions), "
                f"got {cached + length}. Shorten the input."
            )
        if cached and length != 1:
            raise ConfigurationError(
                f"tokens must come one at a time once the cache holds positions, got {length}. Pass the rest one by one."
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device


@contextlib.contextmanager
def uniform_attention(model: Transformer) -> Iterator[None]:
    """Every head attends to all it may see alike, while the context lasts: all logits are zero, biases too.

    The mask stays, so the loss under it says what is left of the model when attention cannot choose.
    """

    def zero_query(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        query, key, value, masks, _bias = inputs
        return torch.zeros_like(query), key, value, masks, None

    handles = [
        module.register_forward_pre_hook(zero_query) for module in model.modules() if isinstance(module, FusedAttention)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
