"""What capture hands over: the attention of one layer for one batch, as its factors or as the matrices themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import TypeAlias

import torch
from torch import Tensor

from rankkit.hooks.masks_seen import SeenMask, mask_name
from rankkit.masks import LayerMask, Mask, Mixed
from rankkit.operators import AttentionOperator, Bias, DenseOperator, OffsetBias

__all__ = ["LayerAttention", "LayerFactors", "LayerMatrices", "Place"]

Place: TypeAlias = tuple[slice, slice]
"""Sequences, and heads among those that are handed over."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerFactors:
    """Queries and keys as the kernel got them, of one layer and one batch."""

    layer: int
    """Counted from 0 over the stack."""
    kind: str
    """`self` attention, or `cross`: to another sequence."""
    query: Tensor
    """"sequence head query feature", after the position encoding."""
    key: Tensor
    """"sequence head key feature", one for each query head."""
    masks: tuple[LayerMask, ...]
    """One per sequence, or one for each of its heads."""
    scale: float
    """Of the logits."""
    bias: OffsetBias | None = None
    """"head offset", added to the logits of every sequence of a rankkit model; of others' models `seen` has it."""
    output: Tensor | None = None
    """"sequence query d_model": what the layer adds to the residual stream, sum_h A_h X W_V^h W_O^h over all heads; None
    unless it was asked for."""
    stack: str = ""
    """`encoder`, `decoder` or whatever tells several stacks of blocks apart; empty in a model of one stack."""
    module: str = ""
    """Name of the module in the model."""
    seen: tuple[SeenMask, ...] = ()
    """What the masks were told from, one per sequence; empty for a rankkit model, which is given its masks."""
    softcap: float | None = None
    """c of c tanh(s / c), taken of the scaled logits."""
    sink: Tensor | None = None
    """"head": a logit per head of a key that nobody reads."""
    accumulation: torch.dtype | None = None
    """Precision in which the model's own eager attention ran; None for a fused kernel."""

    @property
    def mask_names(self) -> tuple[str, ...]:
        """The class of each sequence's mask: `causal`, `padded causal`, ..., or `other`."""
        return tuple(map(mask_name, self.masks)) if not self.seen else tuple(seen.name for seen in self.seen)

    @property
    def head_runs(self) -> tuple[slice, ...]:
        """Neighbouring heads with equal masks in every sequence; all heads where none has a mask of its own."""
        mixed = [mask for mask in self.masks if isinstance(mask, Mixed)]
        starts = sorted({heads.start for mask in mixed for heads, _ in mask.runs} | {0})
        stops = [*starts[1:], self.query.shape[1]]
        return tuple(slice(*ends) for ends in zip(starts, stops, strict=True))

    def operators(self) -> Iterator[AttentionOperator]:
        """One operator "head query feature" per sequence, or per sequence and run of heads with one mask.

        Its label `heads` then names them, counted among those that were captured: `0..1`.
        """
        for sequence, heads in product(range(len(self.masks)), self.head_runs):
            labels: dict[str, int | str] = {"sequence": sequence}
            if len(self.head_runs) > 1:
                labels["heads"] = f"{heads.start}..{heads.stop - 1}"
            yield self._of_heads(heads)._operator(sequence, labels)

    def operators_by_mask(self) -> Iterator[tuple[Place, AttentionOperator]]:
        """One operator "sequence head query feature" per run of sequences and heads with equal masks, with their place."""
        for heads in self.head_runs:
            part, start = self._of_heads(heads), 0
            for _, run in groupby(range(len(self.masks)), key=part._alike):
                stop = start + len(list(run))
                yield (slice(start, stop), heads), part._operator(slice(start, stop), {})
                start = stop

    def _of_heads(self, heads: slice) -> LayerFactors:
        """Neighbouring heads that share a mask in every sequence."""
        if heads == slice(0, self.query.shape[1]) and not any(isinstance(mask, Mixed) for mask in self.masks):
            return self
        masks = (mask.masks[heads.start] if isinstance(mask, Mixed) else mask for mask in self.masks)
        return replace(
            self,
            query=self.query[:, heads],
            key=self.key[:, heads],
            masks=tuple(masks),
            bias=None if self.bias is None else OffsetBias(values=self.bias.values[heads]),
            sink=None if self.sink is None else self.sink[heads],
        )

    def _alike(self, sequence: int) -> tuple[LayerMask, int | None, slice | None]:
        """What sequences that are handed over together share."""
        bias = self._bias(sequence)
        return self.masks[sequence], None if bias is None else id(bias), self._keys(sequence)

    def _bias(self, sequence: int) -> Bias | None:
        return self.seen[sequence].bias if self.seen else self.bias

    def _keys(self, sequence: int) -> slice | None:
        return self.seen[sequence].keys if self.seen else None

    def _operator(self, sequences: int | slice, labels: dict[str, int | str]) -> AttentionOperator:
        first = sequences.start if isinstance(sequences, slice) else sequences
        key, mask = self.key[sequences], self.masks[first]
        assert isinstance(mask, Mask), "heads with masks of their own are taken apart first"
        keys = self._keys(first)
        return AttentionOperator(
            query=self.query[sequences],
            key=key if keys is None else key[..., keys, :],
            mask=mask,
            scale=self.scale,
            softcap=self.softcap,
            bias=self._bias(first),
            sink=self.sink,
            accumulation=self.accumulation,
            labels={"layer": self.layer, "kind": self.kind, **({"stack": self.stack} if self.stack else {}), **labels},
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerMatrices:
    """Attention matrices of one layer and one batch, where a model gives no factors that make them."""

    layer: int
    """Counted from 0 over the stack."""
    kind: str
    """`self` or `cross`."""
    matrices: Tensor
    """"sequence head query key", in the model's dtype; rows of padding are zero."""
    seen: tuple[SeenMask, ...]
    """Masks told from the logits, one per sequence."""
    reason: str
    """Why there are no factors."""
    stack: str = ""
    """As for `LayerFactors`."""
    module: str = ""
    """Name of the module in the model."""

    @property
    def masks(self) -> tuple[Mask, ...]:
        """One per sequence."""
        return tuple(seen.mask for seen in self.seen)

    @property
    def mask_names(self) -> tuple[str, ...]:
        """The class of each sequence's mask."""
        return tuple(seen.name for seen in self.seen)

    def operators(self) -> Iterator[DenseOperator]:
        """One operator "head query key" per sequence."""
        for sequence in range(len(self.matrices)):
            yield self._operator(sequence, {"sequence": sequence})

    @property
    def head_runs(self) -> tuple[slice, ...]:
        """All heads, which share a mask."""
        return (slice(0, self.matrices.shape[1]),)

    def operators_by_mask(self) -> Iterator[tuple[Place, DenseOperator]]:
        """One operator "sequence head query key" per run of sequences with equal masks, with their place."""
        start = 0
        for _, run in groupby(self.seen, key=lambda seen: (seen.mask, seen.name, seen.keys)):
            stop = start + len(list(run))
            yield (slice(start, stop), self.head_runs[0]), self._operator(slice(start, stop), {})
            start = stop

    def _operator(self, sequences: int | slice, labels: dict[str, int | str]) -> DenseOperator:
        first = sequences.start if isinstance(sequences, slice) else sequences
        keys = self.seen[first].keys
        matrix = self.matrices[sequences]
        return DenseOperator(
            matrix=matrix if keys is None else matrix[..., keys],
            labels={"layer": self.layer, "kind": self.kind, **({"stack": self.stack} if self.stack else {}), **labels},
        )


LayerAttention: TypeAlias = LayerFactors | LayerMatrices
"""What capture hands over for one layer and one batch."""
