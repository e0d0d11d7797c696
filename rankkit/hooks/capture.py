"""Capturing attention as its factors while the forward pass stays what it is.

Nothing that the model computes is recomputed or replaced, so its output is bit-identical to that of a forward pass without
capture. How a model is looked into is chosen by its kind and recorded:

    own     a rankkit Transformer: hooks on the modules that call the kernel
    qk      a Hugging Face model that supports SDPA: runs SDPA, seen at its attention function
    eager   a Hugging Face model that does not: runs its own eager function, seen at its attention function
    torch   any other module: seen where it calls scaled_dot_product_attention, or else softmax over keys
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

from torch import nn

from rankkit.errors import CaptureError
from rankkit.hooks.any_module import watched_functions
from rankkit.hooks.factors import LayerAttention, LayerFactors, LayerMatrices
from rankkit.hooks.own_models import hooked_kernels
from rankkit.hooks.recorder import Recorder
from rankkit.hooks.transformers_models import attention_mode, pretrained_parts, registered_attention
from rankkit.models.transformer import FusedAttention
from rankkit.operators import AttentionOperator, DenseOperator

__all__ = ["Captured", "Mode", "capture", "capture_mode"]

Mode: TypeAlias = Literal["auto", "qk", "eager", "torch"]


class Captured:
    """What a `capture` has seen: one operator per (layer, sequence), in the order of the forward passes.

    Where heads of a layer have different masks it is one per (layer, sequence, run of heads with one mask).

    Empty until the model has run inside the context.
    """

    def __init__(self, mode: str = "own", reason: str = "") -> None:
        self._found: list[LayerAttention] = []
        self.mode = mode
        """`own`, `qk`, `eager` or `torch`."""
        self.reason = reason
        """Why that one."""

    def add(self, found: LayerAttention) -> None:
        """Keep the attention of one layer."""
        self._found.append(found)

    @property
    def found(self) -> list[LayerAttention]:
        """Factors and matrices by layer and forward pass."""
        return list(self._found)

    @property
    def layers(self) -> list[LayerFactors]:
        """The factors by layer and forward pass."""
        return [found for found in self._found if isinstance(found, LayerFactors)]

    @property
    def matrices(self) -> list[LayerMatrices]:
        """What layers without factors gave instead, by layer and forward pass."""
        return [found for found in self._found if isinstance(found, LayerMatrices)]

    def __iter__(self) -> Iterator[AttentionOperator | DenseOperator]:
        if not self._found:
            raise CaptureError(
                "capture must have seen a forward pass, got none. Call the model inside the `with` block, and leave "
                "on_layer out if you want the operators afterwards."
            )
        for found in self._found:
            yield from found.operators()

    def __len__(self) -> int:
        return sum(len(found.masks) * len(found.head_runs) for found in self._found)


@contextlib.contextmanager
def capture(
    model: nn.Module,
    *,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
    outputs: bool = False,
    on_layer: Callable[[Any], None] | None = None,
    mode: Mode = "auto",
) -> Iterator[Captured]:
    """Capture queries and keys of a model's attention while it runs as it would have run.

        with rankkit.capture(model, layers=[0, 3]) as attention:
            model(**inputs)
        for operator in attention: ...

    Afterwards the model is exactly as it was, also after an exception.

    Args:
        model: a rankkit `Transformer`, a Hugging Face model, or any module that calls `scaled_dot_product_attention`.
        layers: which of each stack, counted from 0; None for all.
        heads: which of each layer; None for all. A layer's output is that of all its heads, whatever is chosen here.
        outputs: whether to keep each layer's output too, sum_h A_h X W_V^h W_O^h, as `LayerFactors.output`; of a rankkit
            `Transformer` only.
        on_layer: called with each layer's `LayerFactors` during the forward pass, or `LayerMatrices` where a model has no
            factors (a rankkit `Transformer` always has). They are then not kept, so that no more than one layer's live at
            once.
        mode: how to look into a model that is not rankkit's; `auto` chooses as `capture_mode` does.

    Yields:
        The captured operators; empty when `on_layer` is given.

    Raises:
        CaptureError: the model has no attention that can be captured, lacks a layer or head that was asked for, does not
            have that mode, or runs with a key-value cache.
    """
    chosen, reason = capture_mode(model, mode)
    captured = Captured(chosen, reason)
    receive = captured.add if on_layer is None else on_layer  # a collector may be empty, and so false
    listening: AbstractContextManager[None]
    if chosen == "own":
        listening = hooked_kernels(model, layers, heads, receive, outputs=outputs)
    else:
        if outputs:
            raise CaptureError(
                f"outputs must be False for {type(model).__name__}, got True. Only a rankkit Transformer says what its "
                "layers add to the residual stream."
            )
        recorder = Recorder(model, layers, heads, receive)
        listening = (
            watched_functions(model, recorder) if chosen == "torch" else registered_attention(model, chosen, recorder)
        )
    with listening:
        yield captured


def capture_mode(model: nn.Module, mode: Mode = "auto") -> tuple[str, str]:
    """How `capture` looks into a model, and why.

    Args:
        model: any.
        mode: what was asked for.

    Returns:
        `own`, `qk`, `eager` or `torch`, and the reason.

    Raises:
        CaptureError: the model does not have that mode.
    """
    name = type(model).__name__
    if mode not in ("auto", "qk", "eager", "torch"):
        raise CaptureError(f"mode must be auto, qk, eager or torch, got {mode!r}. Leave it out to have it chosen.")
    if any(isinstance(module, FusedAttention) for module in model.modules()):
        if mode != "auto":
            raise CaptureError(f"mode must be auto for a rankkit Transformer, got {mode!r}. Leave it out.")
        return "own", f"{name} is a rankkit Transformer"
    if any(path.split(".")[-1] == "_orig_mod" for path, _ in model.named_modules()):
        raise CaptureError(f"model must not be compiled, got {name}. Capture what it was compiled from: its _orig_mod.")
    parts = pretrained_parts(model)
    if not parts:
        if mode in ("qk", "eager"):
            raise CaptureError(
                f"mode must be torch for {name}, which is no Hugging Face model, got {mode!r}. Leave it out."
            )
        return "torch", f"{name} is no Hugging Face model"
    chosen, reason = attention_mode(parts)
    if mode in ("auto", chosen):
        return chosen, reason
    if mode == "qk" or (mode == "eager" and chosen == "torch"):
        raise CaptureError(f"mode must be {chosen} because {reason}, got {mode!r}. Leave it out.")
    return mode, "asked for"
