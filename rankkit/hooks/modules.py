"""Where a model's attention happens: its kernel calls in order of depth, and which of them were asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.models.transformer import FusedAttention

__all__ = ["AttentionLayer", "attention_layers", "check_whole_sequences", "select_heads"]


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention layer of a model."""

    number: int
    """Counted from 0 at the embedding."""
    fused: FusedAttention
    """The module that calls the kernel: queries, keys, values and masks in, one output per head."""
    whole: nn.Module
    """The module around it, whose output is what the layer adds to the residual stream."""


def attention_layers(model: nn.Module, layers: Collection[int] | None) -> list[AttentionLayer]:
    """The layers that were asked for, in order of depth.

    Args:
        model: a rankkit `Transformer`.
        layers: which, counted from 0; None for all.

    Raises:
        CaptureError: the model has no attention that can be hooked, or lacks a layer that was asked for.
    """
    found = [
        (child, module)
        for module in model.modules()
        for child in module.children()
        if isinstance(child, FusedAttention)
    ]
    if not found:
        raise CaptureError(
            f"model must be a rankkit Transformer, got {type(model).__name__} without fused attention in it. "
            "Load it with rankkit.load_model."
        )
    wanted = sorted(range(len(found)) if layers is None else set(layers))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(found):
        raise CaptureError(f"layers must be within 0..{len(found) - 1}, got {wanted}. Choose layers of this model.")
    return [AttentionLayer(number, *found[number]) for number in wanted]


def check_whole_sequences(query: Tensor, key: Tensor) -> None:
    """Refuse the rows that a key-value cache leaves over: they are no square matrix.

    Raises:
        CaptureError: fewer queries than keys.
    """
    if query.shape[-2] != key.shape[-2]:
        raise CaptureError(
            f"attention must be captured over whole sequences, got {query.shape[-2]} queries for {key.shape[-2]} "
            "keys. Run the model without a key-value cache."
        )


def select_heads(tensor: Tensor, heads: list[int] | None, layer: int) -> Tensor:
    """The chosen heads of "sequence head position feature", without gradients.

    Args:
        tensor: of one layer.
        heads: in ascending order; None for all.
        layer: named in the message.

    Raises:
        CaptureError: the layer lacks a head that was asked for.
    """
    if heads is None:
        return tensor.detach()
    if not heads or heads[0] < 0 or heads[-1] >= tensor.shape[1]:
        raise CaptureError(
            f"heads must be within 0..{tensor.shape[1] - 1} (layer {layer}), got {heads}. Choose heads of this model."
        )
    return tensor.detach()[:, heads]
