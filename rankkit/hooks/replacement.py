"""Putting something else in the place of chosen heads' attention while the rest of the model runs as it would have run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeAlias

from torch import Tensor, nn

from rankkit.hooks.modules import AttentionLayer, attention_layers, select_heads
from rankkit.hooks.own_models import kernel_factors
from rankkit.operators import AttentionOperator

__all__ = ["Replacement", "replaced_attention"]

Replacement: TypeAlias = Callable[[AttentionOperator, Tensor], Tensor]
"""From the operator "sequence head query feature" of the chosen heads (its label `layer` says which layer) and their
values "sequence head key feature" to what stands for A V, "sequence head query feature", in any dtype."""


@contextlib.contextmanager
def replaced_attention(
    model: nn.Module,
    replacement: Replacement,
    *,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
) -> Iterator[None]:
    """Let a function compute the output of chosen heads while the context lasts.

    Heads that were not chosen keep the bits of the fused kernel. The model is left as it was, also after an exception.

    Args:
        model: a rankkit `Transformer`.
        replacement: called for each chosen layer with every run of sequences and heads that share a mask; what it returns is
            cast to the model's dtype. It gets detached tensors, so gradients do not flow through it.
        layers: which, counted from 0; None for all.
        heads: which of each of those layers; None for all.

    Raises:
        CaptureError: the model has no fused attention, lacks a layer or head that was asked for, or runs with a cache.
    """
    chosen = None if heads is None else sorted(set(heads))
    found = attention_layers(model, layers)
    handles = [layer.fused.register_forward_hook(_hook(layer, chosen, replacement)) for layer in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    layer: AttentionLayer, heads: list[int] | None, replacement: Replacement
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        factors = kernel_factors(layer.number, heads, inputs)
        value = select_heads(inputs[2], heads, layer.number)
        numbers = range(output.shape[1]) if heads is None else heads
        changed = output.clone()
        for (sequences, part), operator in factors.operators_by_mask():
            changed[sequences][:, list(numbers[part])] = replacement(operator, value[sequences, part]).to(output)
        return changed

    return hook
