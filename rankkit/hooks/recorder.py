"""From a call of attention, as a model makes it, to what capture hands over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankkit.errors import CaptureError
from rankkit.hooks.factors import LayerAttention, LayerFactors, LayerMatrices
from rankkit.hooks.masks_seen import HIDDEN, MaskReader, SeenMask, classify
from rankkit.hooks.modules import check_whole_sequences, select_heads
from rankkit.hooks.parts import gives_back, keys_of_heads, of_heads, with_four_axes, without_padding
from rankkit.hooks.places import Place, Places, is_cross

__all__ = ["AttentionCall", "Recorder"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionCall:
    """Everything that decides the attention matrices of one call."""

    module: str
    """Name of the calling module."""
    query: Tensor
    """"sequence head query feature"."""
    key: Tensor
    """"sequence group key feature"; the number of heads is a multiple of that of groups."""
    mask: Tensor | None = None
    """Bool, True where a query sees a key, or added; axes that broadcast to "sequence head query key"."""
    causal: bool = False
    """Whether row i sees keys 0..i alone; decides where there is no mask."""
    scale: float | None = None
    """None for feature^-1/2."""
    softcap: float | None = None
    """As of `LayerFactors`."""
    bias: Tensor | None = None
    """Added beside the mask, same axes."""
    sink: Tensor | None = None
    """"head"."""
    accumulation: torch.dtype | None = None
    """As of `LayerFactors`."""
    keeps_cache: bool = False
    """Whether more keys than queries can only come from a key-value cache."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sequences, queries, keys."""
        return max(len(self.query), len(self.key)), self.query.shape[-2], self.key.shape[-2]


class Recorder:
    """Numbers the attentions of each forward pass, chooses among them, and hands them over."""

    def __init__(
        self,
        model: nn.Module,
        layers: Collection[int] | None,
        heads: Collection[int] | None,
        receive: Callable[[LayerAttention], None],
    ) -> None:
        self._model, self._receive = model, receive
        self._layers = None if layers is None else sorted(set(layers))
        self._heads = None if heads is None else sorted(set(heads))
        self._masks, self._places = MaskReader(), Places(model)
        self._running: list[tuple[nn.Module, set[tuple[int, int]]]] = []
        self._found: set[int] = set()
        self._closed: set[str] = set()
        if self._layers is not None and (not self._layers or self._layers[0] < 0):
            raise CaptureError(
                f"layers must be one or more, counted from 0, got {self._layers}. Name layers to capture."
            )

    @contextmanager
    def watching(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Follow which of these modules run: each outermost call is a forward pass of its own."""
        handles: list[RemovableHandle] = []
        try:
            for module in modules:
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._masks.forget()

    @property
    def innermost(self) -> nn.Module | None:
        """The watched module that runs now; None outside a forward pass."""
        return self._running[-1][0] if self._running else None

    @property
    def lengths(self) -> set[tuple[int, int]]:
        """Batch size and length of the sequences that the running modules were given."""
        return set().union(*(lengths for _, lengths in self._running))

    def name(self, module: nn.Module) -> str:
        """In the model."""
        return self._places.name(module)

    def note_closed(self, name: str) -> None:
        """Remember an attention that runs as one call and cannot be looked into."""
        self._closed.add(name)

    def record(self, call: AttentionCall, weights: Tensor | None = None) -> None:
        """Hand over one call's factors, if its layer was asked for.

        Args:
            call: what the model computes attention from.
            weights: "sequence head query key" that came of it, where that is known: handed over instead of factors that
                do not give it back.

        Raises:
            CaptureError: a key-value cache is in use, or a head was asked for that is not there.
        """
        if _recomputing():
            return
        _, queries, keys = call.shape
        differ = queries != keys
        if differ and call.keeps_cache and not is_cross(call.module):
            check_whole_sequences(call.query, call.key)
        place = self._next(call.module, cross=differ)
        if place is None:
            return
        seen = self._read(call.mask, call.bias, causal=call.causal, shape=call.shape, kind=place.kind)
        factors = self._factors(call, place, seen)
        if weights is None or gives_back(factors, self._chosen(weights, place.layer)):
            self._receive(factors)
        else:
            self._hand_over(place, weights, seen, "its own eager attention is not that of its queries and keys")

    def record_weights(self, call: AttentionCall, weights: Tensor, reason: str) -> None:
        """Hand over the matrices "sequence head query key" that came of a call, instead of its factors."""
        _, queries, keys = call.shape
        place = self._next(call.module, cross=queries != keys)
        if place is not None:
            seen = self._read(call.mask, call.bias, causal=call.causal, shape=call.shape, kind=place.kind)
            self._hand_over(place, weights, seen, reason)

    def record_matrices(self, module: str, weights: Tensor, logits: Tensor, reason: str) -> None:
        """Hand over matrices "sequence head query key", with the masked logits that they come from."""
        sequences, _, queries, keys = weights.shape
        place = None if _recomputing() else self._next(module, cross=queries != keys)
        if place is not None:
            seen = classify(logits > HIDDEN, None, causal=False, shape=(sequences, queries, keys), kind=place.kind)
            self._hand_over(place, weights, seen, reason)

    def _next(self, module: str, *, cross: bool) -> Place | None:
        place = self._places.next(module, cross=cross)
        self._found.add(place.layer)
        return place if self._layers is None or place.layer in self._layers else None

    def _read(
        self, mask: Tensor | None, bias: Tensor | None, *, causal: bool, shape: tuple[int, int, int], kind: str
    ) -> tuple[SeenMask, ...]:
        mask, bias = (None if given is None else with_four_axes(given.detach()) for given in (mask, bias))
        seen = self._masks.read(mask, bias, causal=causal, shape=shape, kind=kind)
        return seen if self._heads is None else of_heads(seen, self._heads)

    def _factors(self, call: AttentionCall, place: Place, seen: tuple[SeenMask, ...]) -> LayerFactors:
        heads = call.query.shape[1]
        query = self._chosen(call.query, place.layer)
        return LayerFactors(
            layer=place.layer,
            kind=place.kind,
            stack=place.stack,
            module=place.module,
            query=query.expand(len(seen), -1, -1, -1),
            key=keys_of_heads(call.key.detach(), heads, self._heads).expand(len(seen), -1, -1, -1),
            masks=tuple(each.mask for each in seen),
            seen=seen,
            scale=query.shape[-1] ** -0.5 if call.scale is None else call.scale,
            softcap=call.softcap,
            accumulation=call.accumulation,
            sink=None if call.sink is None else call.sink.detach()[slice(None) if self._heads is None else self._heads],
        )

    def _hand_over(self, place: Place, weights: Tensor, seen: tuple[SeenMask, ...], reason: str) -> None:
        self._receive(
            LayerMatrices(
                layer=place.layer,
                kind=place.kind,
                stack=place.stack,
                module=place.module,
                matrices=without_padding(self._chosen(weights, place.layer), seen),
                seen=seen,
                reason=reason,
            )
        )

    def _chosen(self, tensor: Tensor, layer: int) -> Tensor:
        return select_heads(tensor, self._heads, layer)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._running:
            self._places.restart()
            self._found.clear()
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        sequences = {(t.shape[0], t.shape[1]) for t in given if t.dim() == 2 + t.is_floating_point()}
        self._running.append((module, sequences))

    def _leave(self, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        running = [entered for entered, _ in self._running]
        if module in running:  # it is not where another hook refused its inputs
            del self._running[len(running) - 1 - running[::-1].index(module) :]
        if self._running:
            return
        self._masks.forget()
        if module is self._model and output is not None and not _recomputing():  # None where the forward pass failed
            self._check()

    def _check(self) -> None:
        """After a forward pass.

        Raises:
            CaptureError: it had no attention that can be seen, or lacks a layer that was asked for.
        """
        if not self._found:
            closed = f" ({', '.join(sorted(self._closed))})" if self._closed else ""
            raise CaptureError(
                f"attention must be seen while {type(self._model).__name__} runs, got no matrix. Attention that is one "
                f"call, as of nn.MultiheadAttention and nn.TransformerEncoder{closed}, cannot be looked into: let the "
                "module call torch.nn.functional.scaled_dot_product_attention with its queries and keys."
            )
        last = max(self._found)
        if self._layers is not None and not self._found.issuperset(self._layers):
            raise CaptureError(f"layers must be within 0..{last}, got {self._layers}. Choose layers of this model.")


def _recomputing() -> bool:
    """Whether this is a backward pass, in which gradient checkpointing runs blocks once more."""
    return bool(torch._C._current_graph_task_id() != -1)
