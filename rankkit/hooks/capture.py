"""Capturing attention as its factors while the forward pass stays fused.

A forward pre-hook on the module that calls the kernel sees the kernel's very inputs. Nothing is recomputed and
nothing is replaced, so the output is bit-identical to that of a forward pass without hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks.factors import LayerFactors
from rankkit.models.transformer import FusedAttention
from rankkit.operators import AttentionOperator

__all__ = ["Captured", "capture"]


class Captured:
    """What a `capture` has seen: one `AttentionOperator` per (layer, sequence), in the order of the forward passes.

    Empty until the model has run inside the context.
    """

    def __init__(self) -> None:
        self._factors: list[LayerFactors] = []

    def add(self, factors: LayerFactors) -> None:
        """Keep the factors of one layer."""
        self._factors.append(factors)

    @property
    def layers(self) -> list[LayerFactors]:
        """The factors by layer and forward pass."""
        return list(self._factors)

    def __iter__(self) -> Iterator[AttentionOperator]:
        if not self._factors:
            raise CaptureError(
                "capture must have seen a forward pass, got none. Call the model inside the `with` block, and leave "
                "on_layer out if you want the operators afterwards."
            )
        for factors in self._factors:
            yield from factors.operators()

    def __len__(self) -> int:
        return sum(len(factors.masks) for factors in self._factors)


@contextlib.contextmanager
def capture(
    model: nn.Module,
    *,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
    on_layer: Callable[[LayerFactors], None] | None = None,
) -> Iterator[Captured]:
    """Capture queries and keys of a model's attention while it runs as it would have run.

        with rankkit.capture(model, layers=[0, 3]) as attention:
            model(tokens, prefix_lengths)
        for operator in attention: ...

    Args:
        model: a rankkit `Transformer`. (Other models come with later versions.)
        layers: which, counted from 0; None for all.
        heads: which of each layer; None for all.
        on_layer: called with each layer's factors during the forward pass. They are then not kept, so that no more than
            one layer's Q and K live at once.

    Yields:
        The captured operators; empty when `on_layer` is given.

    Raises:
        CaptureError: the model has no attention that can be captured, or lacks a layer or head that was asked for.
    """
    modules = [module for module in model.modules() if isinstance(module, FusedAttention)]
    if not modules:
        raise CaptureError(
            f"model must be a rankkit Transformer, got {type(model).__name__} without fused attention in it. "
            "Load it with rankkit.load_model."
        )
    wanted = sorted(range(len(modules)) if layers is None else set(layers))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(modules):
        raise CaptureError(f"layers must be within 0..{len(modules) - 1}, got {wanted}. Choose layers of this model.")
    captured = Captured()
    chosen_heads = None if heads is None else sorted(set(heads))
    receive = captured.add if on_layer is None else on_layer  # a collector may be empty, and so false
    handles = [modules[layer].register_forward_pre_hook(_hook(layer, chosen_heads, receive)) for layer in wanted]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    layer: int, heads: list[int] | None, receive: Callable[[LayerFactors], None]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        query, key, _value, masks = inputs
        if query.shape[-2] != key.shape[-2]:
            raise CaptureError(
                f"attention must be captured over whole sequences, got {query.shape[-2]} queries for {key.shape[-2]} "
                "keys. Run the model without a key-value cache."
            )
        receive(
            LayerFactors(
                layer=layer,
                kind="self",
                query=_select(query, heads, layer),
                key=_select(key, heads, layer),
                masks=tuple(masks),
                scale=query.shape[-1] ** -0.5,
            )
        )

    return hook


def _select(tensor: Tensor, heads: list[int] | None, layer: int) -> Tensor:
    """The chosen heads of "sequence head position feature", without gradients."""
    if heads is None:
        return tensor.detach()
    if not heads or heads[0] < 0 or heads[-1] >= tensor.shape[1]:
        raise CaptureError(
            f"heads must be within 0..{tensor.shape[1] - 1} (layer {layer}), got {heads}. Choose heads of this model."
        )
    return tensor.detach()[:, heads]
