"""rankkit's own models: a forward pre-hook on the module that calls the kernel sees the kernel's very inputs.

On request a forward hook on the module around it sees what the layer adds to the residual stream. Nothing is recomputed
and nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rankkit.hooks.factors import LayerFactors
from rankkit.hooks.modules import AttentionLayer, attention_layers, check_whole_sequences, select_heads
from rankkit.masks import LayerMask, Mixed
from rankkit.operators import OffsetBias

__all__ = ["hooked_kernels", "kernel_factors"]


@contextmanager
def hooked_kernels(
    model: nn.Module,
    layers: Collection[int] | None,
    heads: Collection[int] | None,
    receive: Callable[[LayerFactors], None],
    *,
    outputs: bool,
) -> Iterator[None]:
    """Hand over the factors of a rankkit `Transformer` while the context lasts; arguments as of `capture`."""
    found = attention_layers(model, layers)
    chosen = None if heads is None else sorted(set(heads))
    with ExitStack() as undo:
        for layer in found:
            for handle in _hooks(layer, chosen, receive, outputs):
                undo.callback(handle.remove)
        yield


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
        receive(kernel_factors(layer, heads, inputs))

    return hook


def kernel_factors(layer: int, heads: list[int] | None, inputs: tuple[Any, ...]) -> LayerFactors:
    """The factors that a layer's kernel is called with.

    Args:
        layer: its number.
        heads: which are wanted, ascending; None for all.
        inputs: of `FusedAttention`.

    Raises:
        CaptureError: the layer lacks a head that was asked for, or runs with a key-value cache.
    """
    query, key, _value, masks, bias = inputs
    check_whole_sequences(query, key)
    return LayerFactors(
        layer=layer,
        kind="self",
        query=select_heads(query, heads, layer),
        key=select_heads(key, heads, layer),
        masks=tuple(_of_heads(mask, heads) for mask in masks),
        scale=query.shape[-1] ** -0.5,
        bias=None if bias is None else OffsetBias(values=bias if heads is None else bias[heads]),
    )


def _of_heads(mask: LayerMask, heads: list[int] | None) -> LayerMask:
    return mask.of_heads(heads) if isinstance(mask, Mixed) and heads is not None else mask
