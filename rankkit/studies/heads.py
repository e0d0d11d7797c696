"""Maps over heads: one measure of every head of one arm, under its own mask and under the other arm's.

Heads of separately trained networks do not correspond. So a map belongs to one arm under one seed: nothing here takes two
arms, subtracts heads of different networks or averages a head's number over seeds.

The family of tests is every head of every seed in one set of maps, because that is what one figure shows: the chance that
any head of it is marked where the other mask changes nothing is at most 5%. Regions, measures and arms are figures, and
families, of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from rankkit.statistics import LEVEL, clustered_t_test, documents_needed, holm
from rankkit.studies.head_means import mean_of_known

__all__ = ["HeadMaps", "head_maps"]

Array = NDArray[np.float64]

_UNCHANGED: Final = 1e-9  # relative; float64 measures of one matrix in two orders of summation differ by less


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadMaps:
    """One measure of all heads of one arm in one region, a map for each seed; all arrays are "seed layer head"."""

    arm: str
    measure: str
    region: str
    step: int
    """Of the checkpoints."""
    seeds: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    untrained: NDArray[np.bool_]
    """"layer": whether the loss hardly reaches this region there."""
    documents: int
    """How many documents the sequences come from."""
    own: Array
    """Mean over sequences under the arm's own mask; nan where no sequence has a value."""
    swapped: Array
    """The same Q and K under the other arm's mask."""
    change: Array
    """swapped - own, mean over the sequences that have a value under both masks."""
    lower: Array
    """Lower 95% bound of the change over documents, of this head alone: not corrected for the number of heads."""
    upper: Array
    """Upper 95% bound."""
    p_values: Array
    """Of the change, two-sided; nan for fewer than two documents."""
    adjusted: Array
    """The p values after Holm's correction for all heads of all seeds here."""
    sequences: NDArray[np.int64]
    """How many sequences have a value under both masks."""

    @property
    def family(self) -> int:
        """How many heads were tested."""
        return int((~np.isnan(self.p_values)).sum())

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Heads whose change survives the correction."""
        return self.adjusted <= LEVEL

    @property
    def rests_on_normality(self) -> bool:
        """Whether there are too few documents for any test without a distribution to call a head of so many."""
        return self.family > 0 and self.documents < documents_needed(self.family)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, arrays as nested lists."""
        arrays = ("own", "swapped", "change", "lower", "upper", "p_values", "adjusted", "sequences", "changed")
        return {
            "arm": self.arm,
            "measure": self.measure,
            "region": self.region,
            "step": self.step,
            "seeds": list(self.seeds),
            "layers": list(self.layers),
            "heads": list(self.heads),
            "untrained": self.untrained.tolist(),
            "documents": self.documents,
            "family": self.family,
            "rests_on_normality": self.rests_on_normality,
            **{name: getattr(self, name).tolist() for name in arrays},
        }


def head_maps(
    values: Array,
    documents: NDArray[np.int64],
    *,
    arm: str,
    measure: str,
    seeds: Sequence[int],
    regions: Sequence[str],
    layers: Sequence[int],
    heads: Sequence[int],
    untrained: NDArray[np.bool_],
    step: int,
) -> tuple[HeadMaps, ...]:
    """Maps of one measure of one arm.

    Args:
        values: "seed region applied_mask sequence layer head" with applied masks own, swapped; what is not finite has no
            value. Brackets of estimates have no place in a map.
        documents: "sequence", the document of each.
        arm: its name.
        measure: its name.
        seeds: "seed", labels of the axis.
        regions: "region", labels of the axis.
        layers: "layer", labels of the axis.
        heads: "head", labels of the axis.
        untrained: "region layer", what the loss hardly reaches.
        step: of the checkpoints.

    Returns:
        One for each region.
    """
    known = np.where(np.isfinite(values), values, np.nan)
    own, swapped = rearrange(
        known, "seed region applied_mask sequence layer head -> applied_mask region seed layer head sequence"
    )
    found = []
    for region, flags, one, other in zip(regions, untrained, own, swapped, strict=True):
        difference = other - one
        difference[np.abs(difference) <= _UNCHANGED * np.abs(one)] = 0.0
        test = clustered_t_test(difference, documents)
        found.append(
            HeadMaps(
                arm=arm,
                measure=measure,
                region=region,
                step=step,
                seeds=tuple(seeds),
                layers=tuple(layers),
                heads=tuple(heads),
                untrained=np.asarray(flags, dtype=np.bool_),
                documents=len(np.unique(documents)),
                own=mean_of_known(one, axis=-1),
                swapped=mean_of_known(other, axis=-1),
                change=test.mean,
                lower=test.lower,
                upper=test.upper,
                p_values=test.p_value,
                adjusted=holm(test.p_value),
                sequences=(~np.isnan(difference)).sum(axis=-1),
            )
        )
    return tuple(found)
