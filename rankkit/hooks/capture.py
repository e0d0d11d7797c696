"""Capturing attention as its factors while the forward pass stays fused.

A forward pre-hook on the module that calls the kernel sees the kernel's very inputs, and on request a forward hook on
the module around it sees what the layer adds to the residual stream. Nothing is recomputed and nothing is replaced, so
the output is bit-identical to that of a forward pass without hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks.factors import LayerFactors
from rankkit.hooks.modules import AttentionLayer, attention_layers, check_whole_sequences, select_heads
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
    outputs: bool = False,
    on_layer: Callable[[LayerFactors], None] | None = None,
) -> Iterator[Captured]:
    """Capture queries and keys of a model's attention while it runs as it would have run.

        with rankkit.capture(model, layers=[0, 3]) as attention:
            model(tokens, prefix_lengths)
        for operator in attention: ...

    Args:
        model: a rankkit `Transformer`. (Other models come with later versions.)
        layers: which, counted from 0; None for all.
        heads: which of each layer; None for all. A layer's output is that of all its heads, whatever is chosen here.
        outputs: whether to keep each layer's output too, sum_h A_h X W_V^h W_O^h, as `LayerFactors.output`.
        on_layer: called with each layer's factors during the forward pass. They are then not kept, so that no more than
            one layer's Q and K live at once.

    Yields:
        The captured operators; empty when `on_layer` is given.

    Raises:
        CaptureError: the model has no attention that can be captured, or lacks a layer or head that was asked for.
    """
    found = attention_layers(model, layers)
    captured = Captured()
    chosen_heads = None if heads is None else sorted(set(heads))
    receive = captured.add if on_layer is None else on_layer  # a collector may be empty, and so false
    handles = [handle for layer in found for handle in _hooks(layer, chosen_heads, receive, outputs)]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _hooks(
    layer: AttentionLayer, heads: list[int] | None, receive: Callable[[LayerFactors], None], outputs: bool
) -> list[Any]:
    """Hand over a layer's factors before its kernel is called; with its output, once that is there."""
    if not outputs:
        return [layer.fused.register_forward_pre_hook(_on_inputs(layer.number, heads, receive))]
    waiting: list[LayerFactors] = []

    def on_output(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        receive(replace(waiting.pop(), output=output.detach()))

    def hold(factors: LayerFactors) -> None:
        waiting[:] = [factors]  # a forward pass that failed half way may have left others

    return [
        layer.fused.register_forward_pre_hook(_on_inputs(layer.number, heads, hold)),
        layer.whole.register_forward_hook(on_output),
    ]


def _on_inputs(
    layer: int, heads: list[int] | None, receive: Callable[[LayerFactors], None]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        query, key, _value, masks = inputs
        check_whole_sequences(query, key)
        receive(
            LayerFactors(
                layer=layer,
                kind="self",
                query=select_heads(query, heads, layer),
                key=select_heads(key, heads, layer),
                masks=tuple(masks),
                scale=query.shape[-1] ** -0.5,
            )
        )

    return hook
