"""What capture hands over: the attention of one layer for one batch, as its factors or as the matrices themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from torch import Tensor

from rankkit.hooks.masks_seen import SeenMask, mask_name
from rankkit.masks import Mask
from rankkit.operators import AttentionOperator, Bias, DenseOperator

__all__ = ["LayerAttention", "LayerFactors", "LayerMatrices"]


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
    masks: tuple[Mask, ...]
    """One per sequence."""
    scale: float
    """Of the logits."""
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

    @property
    def mask_names(self) -> tuple[str, ...]:
        """The class of each sequence's mask: `causal`, `padded causal`, ..., or `other`."""
        return tuple(map(mask_name, self.masks)) if not self.seen else tuple(seen.name for seen in self.seen)

    def operators(self) -> Iterator[AttentionOperator]:
        """One operator "head query feature" per sequence."""
        for sequence, mask in enumerate(self.masks):
            yield self._operator(sequence, mask, {"sequence": sequence})

    def operators_by_mask(self) -> Iterator[tuple[slice, AttentionOperator]]:
        """One operator "sequence head query feature" per run of sequences with equal masks, with their slice."""
        start = 0
        for (mask, _, _), run in groupby(range(len(self.masks)), key=self._alike):
            stop = start + len(list(run))
            yield slice(start, stop), self._operator(slice(start, stop), mask, {})
            start = stop

    def _alike(self, sequence: int) -> tuple[Mask, int | None, slice | None]:
        """What sequences that are handed over together share."""
        bias = self._bias(sequence)
        return self.masks[sequence], None if bias is None else id(bias), self._keys(sequence)

    def _bias(self, sequence: int) -> Bias | None:
        return self.seen[sequence].bias if self.seen else None

    def _keys(self, sequence: int) -> slice | None:
        return self.seen[sequence].keys if self.seen else None

    def _operator(self, sequences: int | slice, mask: Mask, labels: dict[str, int | str]) -> AttentionOperator:
        first = sequences.start if isinstance(sequences, slice) else sequences
        key = self.key[sequences]
        keys = self._keys(first)
        return AttentionOperator(
            query=self.query[sequences],
            key=key if keys is None else key[..., keys, :],
            mask=mask,
            scale=self.scale,
            softcap=self.softcap,
            bias=self._bias(first),
            sink=self.sink,
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

    def operators_by_mask(self) -> Iterator[tuple[slice, DenseOperator]]:
        """One operator "sequence head query key" per run of sequences with equal masks, with their slice."""
        start = 0
        for _, run in groupby(self.seen, key=lambda seen: (seen.mask, seen.name, seen.keys)):
            stop = start + len(list(run))
            yield slice(start, stop), self._operator(slice(start, stop), {})
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
