"""What attention a model has: one forward pass, seen layer by layer, sorted by stack and kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks.capture import capture
from rankkit.hooks.factors import LayerAttention, LayerFactors
from rankkit.masks import Bidirectional, Causal, Cross, Mask, Padded, Prefix, Window
from rankkit.operators import AttentionOperator, Operator
from rankkit.studies.measuring.plan import EXAMPLE_SIZE, dense_example

__all__ = ["AttentionGroup", "LayerFacts", "attention_groups", "class_of", "in_words"]

OTHER: Final = "other"
MIXED: Final = "mixed"
_PADDED: Final = "padded "


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerFacts:
    """What is known of one layer's attention before it is measured."""

    layer: int
    """Counted from 0 over its stack."""
    name: str
    """Class of its mask: causal, window, cross, ..., or `other`."""
    mask: Mask
    """The mask of the positions that are not padding."""
    heads: int
    """How many."""
    features: int | None
    """Of a head's queries and keys; None where only matrices can be had."""
    scale: float | None
    """Of the logits, the same."""
    softcap: float | None
    """Of the logits; None where there is none."""
    has_bias: bool
    """Whether something is added to the logits."""
    has_sink: bool
    """Whether rows lose mass to a learned logit."""
    structure: frozenset[str]
    """What holds for every matrix."""
    reason: str
    """Why there are only matrices; empty where there are factors."""

    @property
    def has_plain_logits(self) -> bool:
        """Whether the matrix is the softmax of scale Q K^T under a mask that is known."""
        return not (self.reason or self.softcap or self.has_bias or self.has_sink or self.name == OTHER)

    def covers(self, seen: LayerAttention) -> bool:
        """Whether sequences are so short that this window hides of them what they were masked with, and no more."""
        if not isinstance(self.mask, Window) or OTHER in seen.mask_names:
            return False
        queries = (seen.query if isinstance(seen, LayerFactors) else seen.matrices).shape[-2]
        masks = {(_inner(each.mask), len(each.mask.visible_positions(queries))) for each in seen.seen}
        return all(torch.equal(mask.allowed(n), self.mask.allowed(n)) for mask, n in masks)

    @property
    def logits(self) -> str:
        """In words, where they are not plain."""
        if self.reason:
            return f"none: {self.reason}"
        parts = [f"softcap {self.softcap:g}" if self.softcap else "", "bias" if self.has_bias else ""]
        return ", ".join(filter(None, [*parts, "sink" if self.has_sink else ""])) or "plain"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionGroup:
    """The layers of one stack and kind: one group in a file."""

    stack: str
    """`encoder`, `decoder`, ...; empty in a model of one stack."""
    kind: str
    """`self` or `cross`."""
    name: str
    """Of the part behind the model's name; empty where the model has one group."""
    layers: tuple[LayerFacts, ...]
    """Rising."""
    queries: int
    """Positions of the query side, padding among them."""
    keys: int
    """Positions of the key side."""

    @property
    def mask(self) -> str:
        """Class of all layers' masks, or `mixed`."""
        names = {layer.name for layer in self.layers}
        return names.pop() if len(names) == 1 else MIXED

    @property
    def masks(self) -> str:
        """Masks in words, by layers."""
        return in_words({layer.layer: _mask_in_words(layer) for layer in self.layers})

    @property
    def logits(self) -> str:
        """What the logits are beside scale Q K^T, by layers."""
        return in_words({layer.layer: layer.logits for layer in self.layers})

    @property
    def has_factors(self) -> bool:
        """Whether every layer has queries and keys."""
        return not any(layer.reason for layer in self.layers)

    def only(self, layers: Sequence[int]) -> tuple[LayerFacts, ...]:
        """Of those layers."""
        return tuple(facts for facts in self.layers if facts.layer in layers)

    def examples(self, layers: Sequence[int], prefix_length: int, sequence_length: int) -> dict[str, Operator]:
        """Small matrices with the structures that there are, by words for the layers that have them."""
        found: dict[tuple[bool, frozenset[str]], list[LayerFacts]] = {}
        for facts in self.only(layers):
            found.setdefault((bool(facts.reason), facts.structure), []).append(facts)
        return {
            f"layers {_ranges([one.layer for one in alike])}": _example(alike[0], prefix_length, sequence_length)
            for alike in found.values()
        }


def attention_groups(model: nn.Module, arguments: Mapping[str, Tensor]) -> tuple[AttentionGroup, ...]:
    """Run a model once and tell what attention it has.

    Args:
        model: any that `rankkit.capture` knows.
        arguments: of its forward pass, one sequence.

    Returns:
        A group for every stack and kind, in the order of the forward pass.

    Raises:
        CaptureError: its attention cannot be seen, or heads differ in number between the layers of one group.
    """
    found: dict[tuple[str, str], list[tuple[LayerFacts, int, int]]] = {}

    def look(seen: LayerAttention) -> None:
        found.setdefault((seen.stack, seen.kind), []).append(_facts(seen))

    with torch.no_grad(), capture(model, on_layer=look):
        model(**arguments)
    names = dict(zip(found, _names(list(found)), strict=True))
    return tuple(_group(stack, kind, names[stack, kind], layers) for (stack, kind), layers in found.items())


def _group(stack: str, kind: str, name: str, layers: list[tuple[LayerFacts, int, int]]) -> AttentionGroup:
    shapes = {(facts.heads, queries, keys) for facts, queries, keys in layers}
    if len(shapes) > 1:
        raise CaptureError(
            f"layers of {name or 'a model'} must have as many heads, queries and keys, got {sorted(shapes)}. Capture them "
            "with rankkit.capture."
        )
    ((_, queries, keys),) = shapes
    known = tuple(sorted((facts for facts, _, _ in layers), key=lambda facts: facts.layer))
    return AttentionGroup(stack=stack, kind=kind, name=name, layers=known, queries=queries, keys=keys)


def _facts(seen: LayerAttention) -> tuple[LayerFacts, int, int]:
    """Of one sequence, with the positions of both sides, padding among them."""
    operator = next(iter(seen.operators()))
    factors = isinstance(seen, LayerFactors)
    keys = seen.key.shape[-2] if isinstance(seen, LayerFactors) else seen.matrices.shape[-1]
    name = class_of(seen)
    facts = LayerFacts(
        layer=seen.layer,
        name=name,
        mask=_inner(seen.seen[0].mask),
        heads=operator.batch_shape[-1],
        features=operator.query.shape[-1] if isinstance(operator, AttentionOperator) else None,
        scale=seen.scale if isinstance(seen, LayerFactors) else None,
        softcap=seen.softcap if isinstance(seen, LayerFactors) else None,
        has_bias=isinstance(operator, AttentionOperator) and operator.bias is not None and name != OTHER,
        has_sink=isinstance(operator, AttentionOperator) and operator.sink is not None,
        structure=_structure(operator),
        reason="" if factors else getattr(seen, "reason", ""),
    )
    return facts, operator.rows, keys


def class_of(seen: LayerAttention) -> str:
    """The class of all sequences' masks, padding aside.

    Raises:
        CaptureError: sequences differ in it.
    """
    names = {name.removeprefix(_PADDED) for name in seen.mask_names}
    if len(names) > 1:
        raise CaptureError(
            f"sequences of one batch must have one kind of mask, got {', '.join(sorted(names))}. Use --batch 1."
        )
    return names.pop()


def _mask_in_words(facts: LayerFacts) -> str:
    """Sizes of cross attention differ from sequence to sequence."""
    return facts.name if isinstance(facts.mask, Cross) or facts.name == OTHER else repr(facts.mask)


def _inner(mask: Mask) -> Mask:
    return mask.mask if isinstance(mask, Padded) else mask


def _structure(operator: Operator) -> frozenset[str]:
    """Without padding, which makes empty rows."""
    if isinstance(operator, AttentionOperator) and isinstance(operator.mask, Padded):
        inside = operator.mask.visible_positions(operator.rows)
        plain = AttentionOperator(
            query=operator.query[..., inside.start : inside.stop, :],
            key=operator.key[..., inside.start : inside.stop, :],
            mask=operator.mask.mask,
            scale=operator.scale,
            sink=operator.sink,
        )
        return plain.structure
    return operator.structure


def _names(places: list[tuple[str, str]]) -> Iterator[str]:
    """What tells the groups of one model apart."""
    crossing = sum(kind == "cross" for _, kind in places)
    for stack, kind in places:
        parts = ([stack] if kind == "self" or crossing > 1 else []) + (["cross"] if kind == "cross" else [])
        yield "" if len(places) == 1 else re.sub(r"[^a-z0-9_.-]+", "-", "-".join(filter(None, parts)).lower()) or "self"


def _example(facts: LayerFacts, prefix_length: int, sequence_length: int) -> Operator:
    """A small matrix with a layer's structure."""
    if facts.reason:
        return dense_example(facts.structure)
    prefix = min(prefix_length, EXAMPLE_SIZE)
    size = prefix + min(sequence_length - prefix_length, EXAMPLE_SIZE)
    factor = torch.linspace(-1, 1, size, dtype=torch.float64).reshape(1, size, 1)
    query = factor[:, : max(1, size - 1)] if isinstance(facts.mask, Cross) else factor
    mask = Cross(query.shape[-2], size) if isinstance(facts.mask, Cross) else _small(facts.mask)
    sink = torch.zeros(1, dtype=torch.float64) if facts.has_sink else None
    return AttentionOperator(query=query, key=factor, mask=mask, scale=1.0, sink=sink)


def _small(mask: Mask) -> Mask:
    """Of the same class, for a few positions."""
    if isinstance(mask, Window):
        return Window(min(mask.behind, 1), min(mask.ahead, 1))
    return mask if isinstance(mask, Causal) else Prefix(1) if isinstance(mask, Prefix) else Bidirectional()


def in_words(by_layer: Mapping[int, str]) -> str:
    """What is said of layers; by layers, where it is not the same of all."""
    groups: dict[str, list[int]] = {}
    for layer, said in by_layer.items():
        groups.setdefault(said, []).append(layer)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"layers {_ranges(layers)}: {said}" for said, layers in groups.items())


def _ranges(numbers: Sequence[int]) -> str:
    """0-3, 5 for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
