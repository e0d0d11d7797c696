"""A rank gap between two arms, split into what the mask makes and what was learned.

With y(arm, mask) the measure of one arm's own Q and K under a mask, averaged over heads and sequences:

    gap            = y(causal arm, causal) - y(prefix arm, prefix)
    mask effect    = 1/2 [y(c, causal) - y(c, prefix) + y(p, causal) - y(p, prefix)]
    learned effect = 1/2 [y(c, causal) - y(p, causal) + y(c, prefix) - y(p, prefix)]
    interaction    = [y(p, prefix) - y(p, causal)] - [y(c, prefix) - y(c, causal)]

gap = mask effect + learned effect exactly (Shapley, two factors). Where the interaction exceeds the smaller effect, the
split depends on the order in which the factors are taken. Heads are averaged first, then arms subtracted: heads of
separately trained models do not correspond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from einops import reduce
from numpy.typing import NDArray

from rankkit.masks import MaskKind
from rankkit.statistics import Interval, bootstrap_over_documents, mean_interval
from rankkit.studies.run import Run
from rankkit.training.config import Objective

__all__ = ["EFFECTS", "Decomposition", "Row", "decompose", "effects"]

EFFECTS: Final = ("gap", "mask_effect", "learned_effect", "interaction")

Array = NDArray[np.float64]

_NAMES_OF_KEYS: Final = ("sink_position",)  # a key's index has no mean over heads, and no difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the closing table of `spectrum`."""

    region: str
    """Part of the matrix."""
    layer: int | None
    """None for the mean over trained layers."""
    untrained: bool
    """Rows of this block before p - 1 enter the loss only where training drew a shorter prefix, so it is left out of the
    mean."""
    causal: float
    """Mean of the causal arm under its own mask."""
    prefix: float
    """Mean of the prefix arm under its own mask."""
    effects: Mapping[str, Interval]
    """Gap, mask effect, learned effect and interaction."""
    same_mask: float
    """Root mean square difference between two seeds of one arm: what another seed alone does. nan with one seed."""

    @property
    def order_matters(self) -> bool:
        """Whether the interaction exceeds the smaller effect, so that the split depends on its order."""
        smaller = min(abs(self.effects[name].mean) for name in ("mask_effect", "learned_effect"))
        return abs(self.effects["interaction"].mean) > smaller


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decomposition:
    """Gap and its parts for every measure, region and layer."""

    arms: tuple[str, str]
    """(causal arm, prefix arm)."""
    measures: tuple[str, ...]
    regions: tuple[str, ...]
    layers: tuple[int, ...]
    untrained: NDArray[np.bool_]
    """"region layer"."""
    rows: Mapping[str, tuple[Row, ...]]
    """By measure: for each region its layers, then their mean."""
    seeds: int
    """How many seeds stand behind the intervals."""

    @property
    def attributes(self) -> dict[str, str | int]:
        """What the HDF5 group says of itself."""
        kind = next(iter(self.rows.values()))[0].effects["gap"].kind
        return {"causal_arm": self.arms[0], "prefix_arm": self.arms[1], "seeds": self.seeds, "interval": kind}

    def bounds(self, effect: str) -> Array:
        """Mean, lower and upper bound, "measure region layer bound"."""
        table = np.full((len(self.measures), len(self.regions), len(self.layers), 3), np.nan)
        for m, measure in enumerate(self.measures):
            for row in self.rows[measure]:
                if row.layer is not None:
                    interval = row.effects[effect]
                    where = (m, self.regions.index(row.region), self.layers.index(row.layer))
                    table[where] = (interval.mean, interval.lower, interval.upper)
        return table


def effects(causal_own: Array, causal_swapped: Array, prefix_own: Array, prefix_swapped: Array) -> dict[str, Array]:
    """The four effects, elementwise.

    Args:
        causal_own: y(causal arm, causal).
        causal_swapped: y(causal arm, prefix).
        prefix_own: y(prefix arm, prefix).
        prefix_swapped: y(prefix arm, causal).

    Returns:
        By name from `EFFECTS`, the arguments' shape; gap = mask_effect + learned_effect.

    Source: Shapley value of a game of two players.
    """
    return {
        "gap": causal_own - prefix_own,
        "mask_effect": 0.5 * (causal_own - causal_swapped + prefix_swapped - prefix_own),
        "learned_effect": 0.5 * (causal_own - prefix_swapped + causal_swapped - prefix_own),
        "interaction": (prefix_own - prefix_swapped) - (causal_swapped - causal_own),
    }


def _pair(run: Run) -> tuple[str, str] | None:
    """The first causal and the first prefix arm that share an objective."""
    for causal in run.config.arms:
        for prefix in run.config.arms:
            one, other = run.config.arm(causal), run.config.arm(prefix)
            masks = (one.model.mask, other.model.mask)
            if masks == (MaskKind.CAUSAL, MaskKind.PREFIX) and one.train.objective == other.train.objective:
                return causal, prefix
    return None


def decompose(
    run: Run,
    values: Mapping[str, Mapping[str, Array]],
    documents: NDArray[np.int64],
    layers: tuple[int, ...],
    regions: tuple[str, ...],
) -> Decomposition | None:
    """Split every measure's gap.

    Args:
        run: whose arms were measured.
        values: by arm and measure, "seed region applied_mask sequence layer head" with applied masks own, swapped.
        documents: "sequence", the held-out document of each.
        layers: that were measured.
        regions: that were measured.

    Returns:
        None where the run has no causal and prefix arm with the same objective, or nothing was measured that has a mean.
    """
    pair = _pair(run)
    if pair is None or not values[pair[0]].keys() - set(_NAMES_OF_KEYS):
        return None
    suffix = run.config.arm(pair[0]).train.objective is Objective.SUFFIX
    last = run.config.base.model.num_layers - 1
    untrained = np.array(
        [[region == "prefix_block" and layer == last and suffix for layer in layers] for region in regions]
    )
    rows = {
        measure: _rows(values[pair[0]][measure], values[pair[1]][measure], documents, layers, regions, untrained)
        for measure in values[pair[0]]
        if measure not in _NAMES_OF_KEYS
    }
    return Decomposition(
        arms=pair,
        measures=tuple(rows),
        regions=regions,
        layers=layers,
        untrained=untrained,
        rows=rows,
        seeds=next(iter(values[pair[0]].values())).shape[0],
    )


def _rows(
    causal: Array,
    prefix: Array,
    documents: NDArray[np.int64],
    layers: tuple[int, ...],
    regions: tuple[str, ...],
    untrained: NDArray[np.bool_],
) -> tuple[Row, ...]:
    """Lines of one measure."""
    pattern = "seed region applied_mask sequence layer head -> applied_mask region layer seed sequence"
    c, p = reduce(causal, pattern, "mean"), reduce(prefix, pattern, "mean")
    rows = []
    for r, region in enumerate(regions):
        kept = [index for index in range(len(layers)) if not untrained[r, index]]
        for index, layer in enumerate(layers):
            rows.append(_row(region, layer, bool(untrained[r, index]), c[:, r, index], p[:, r, index], documents))
        if kept:
            rows.append(_row(region, None, False, c[:, r, kept].mean(axis=1), p[:, r, kept].mean(axis=1), documents))
    return tuple(rows)


def _row(
    region: str, layer: int | None, untrained: bool, causal: Array, prefix: Array, documents: NDArray[np.int64]
) -> Row:
    """One line from "applied_mask seed sequence" of both arms; applied masks own, swapped."""
    parts = effects(causal[0], causal[1], prefix[0], prefix[1])
    return Row(
        region=region,
        layer=layer,
        untrained=untrained,
        causal=float(causal[0].mean()),
        prefix=float(prefix[0].mean()),
        effects={name: _interval(part, documents) for name, part in parts.items()},
        same_mask=_same_mask(causal[0].mean(axis=1), prefix[0].mean(axis=1)),
    )


def _interval(table: Array, documents: NDArray[np.int64]) -> Interval:
    """Over the seeds of "seed sequence", or with one seed over documents."""
    if len(table) > 1:
        return mean_interval(table.mean(axis=1))
    return bootstrap_over_documents(table[0], documents)


def _same_mask(*by_seed: Array) -> float:
    squares = [(a - b) ** 2 for means in by_seed for a, b in combinations(means.tolist(), 2)]
    return float(np.sqrt(np.mean(squares))) if squares else float("nan")
