"""What a hook hands over: the attention factors of one layer for one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from rankkit.masks import Mask
from rankkit.operators import AttentionOperator

__all__ = ["LayerFactors"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerFactors:
    """Queries and keys as the kernel got them, of one layer and one batch."""

    layer: int
    """Index of the layer."""
    kind: str
    """`self` attention; other kinds come with other models."""
    query: Tensor
    """"sequence head query feature", after the position encoding."""
    key: Tensor
    """"sequence head key feature"."""
    masks: tuple[Mask, ...]
    """One per sequence."""
    scale: float
    """Of the logits."""
    output: Tensor | None = None
    """"sequence query d_model": what the layer adds to the residual stream, sum_h A_h X W_V^h W_O^h over all heads; None
    unless it was asked for."""

    def operators(self) -> Iterator[AttentionOperator]:
        """One operator "head query feature" per sequence."""
        for sequence, mask in enumerate(self.masks):
            yield AttentionOperator(
                query=self.query[sequence],
                key=self.key[sequence],
                mask=mask,
                scale=self.scale,
                labels={"layer": self.layer, "kind": self.kind, "sequence": sequence},
            )

    def operators_by_mask(self) -> Iterator[tuple[slice, AttentionOperator]]:
        """One operator "sequence head query feature" per run of sequences with equal masks, with their slice."""
        start = 0
        for mask, run in groupby(self.masks):
            stop = start + len(list(run))
            yield (
                slice(start, stop),
                AttentionOperator(
                    query=self.query[start:stop],
                    key=self.key[start:stop],
                    mask=mask,
                    scale=self.scale,
                    labels={"layer": self.layer, "kind": self.kind},
                ),
            )
            start = stop
