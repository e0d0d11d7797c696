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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rankkit.display import html_table, plus_minus
from rankkit.masks import MaskKind
from rankkit.statistics import Interval, bootstrap_over_documents, mean_interval
from rankkit.studies.head_means import Bracket, HeadMeans, head_means
from rankkit.studies.run import Run
from rankkit.studies.same_mask import SameMask, same_mask
from rankkit.training.config import ArmConfig, Objective

__all__ = ["EFFECTS", "ArmFacts", "Decomposition", "Row", "arms_of", "causal_and_prefix", "decompose", "effects"]

EFFECTS: Final = ("gap", "mask_effect", "learned_effect", "interaction")

Array = NDArray[np.float64]

_NAMES_OF_KEYS: Final = ("sink_position",)  # a key's index has no mean over heads, and no difference
_OF_THE_PREFIX: Final = ("prefix_block", "prefix_block_first_key_removed")
_ROWS_SHOWN: Final = 60  # of a notebook's table: what a screen or two hold; else the means over layers
_WIDENED: Final = "widened by the brackets of estimates"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmFacts:
    """What a comparison needs to know of an arm, wherever its numbers come from."""

    name: str
    """Of its group."""
    mask: str
    """Name of its own mask."""
    objective: str
    """What its loss covered."""
    untrained: NDArray[np.bool_]
    """"region layer": where the loss hardly reaches its attention."""


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
    own: tuple[Interval, Interval]
    """(causal arm, prefix arm): mean under its own mask, of the matrices that enter the effects; where the
    measure exists under one mask alone, of those that have it."""
    effects: Mapping[str, Interval]
    """Gap, mask effect, learned effect and interaction, of the matrices that have a value under both masks."""
    control: SameMask
    """The same-mask control: how far seeds of one arm differ."""
    matrices: int
    """How many matrices stand behind the row: both arms, both masks, all seeds, sequences and heads."""
    missing: int
    """How many of them have no finite value (their spectrum failed, or the measure is infinite or not defined for them) and
    were left out, each with its partner under the other mask."""
    estimated: int
    """How many of them have a bracket instead of a value."""

    @property
    def causal(self) -> float:
        """Mean of the causal arm under its own mask."""
        return self.own[0].mean

    @property
    def prefix(self) -> float:
        """Mean of the prefix arm under its own mask."""
        return self.own[1].mean

    @property
    def same_mask(self) -> float:
        """Root mean square difference between two single seeds of one arm, over both arms; nan with one seed."""
        return self.control.pooled_between_seeds

    @property
    def order_matters(self) -> bool:
        """Whether the interaction exceeds the smaller effect, so that the split depends on its order."""
        smaller = min(abs(self.effects[name].mean) for name in ("mask_effect", "learned_effect"))
        return abs(self.effects["interaction"].mean) > smaller


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Decomposition:
    """Gap and its parts for every measure, region and layer at one step of training."""

    arms: tuple[str, str]
    """(causal arm, prefix arm)."""
    step: int
    """Of the checkpoints that were measured."""
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
        kinds = (row.effects["gap"].kind for rows in self.rows.values() for row in rows if row.effects["gap"].count)
        return {
            "causal_arm": self.arms[0],
            "prefix_arm": self.arms[1],
            "seeds": self.seeds,
            "interval": next(kinds, "no matrix has a value"),
        }

    def means(self, measure: str) -> tuple[Row, ...]:
        """The rows over all trained layers, one for each region that has such a layer."""
        return tuple(row for row in self.rows[measure] if row.layer is None)

    @property
    def _headline(self) -> str:
        """The measure that is shown where there is room for one: the effective rank, or the first."""
        return "effective_rank" if "effective_rank" in self.measures else self.measures[0]

    def __repr__(self) -> str:
        return (
            f"Decomposition({' - '.join(self.arms)} at step {self.step}, {self.seeds} seeds, {len(self.layers)} layers; "
            f"measures {', '.join(self.measures)})"
        )

    def _repr_html_(self) -> str:
        """Both arms, gap and parts of the headline measure, for notebooks."""
        every = self.rows[self._headline]
        rows = every if len(every) <= _ROWS_SHOWN else self.means(self._headline)
        kind = next((row.effects["gap"].kind for row in rows if row.effects["gap"].count), "no matrix has a value")
        notes = [
            f"{self._headline} averaged over heads and sequences; gap = mask effect + learned effect; ± half of the 95% "
            f"interval ({kind}). An effect whose interval holds 0 is not resolved"
            + ("." if self.seeds > 1 else ": one seed, no verdict."),
        ]
        if any(row.untrained for row in rows):
            notes.append("* hardly reached by the loss, and left out of the mean.")
        if any(row.order_matters for row in rows):
            notes.append("~ the interaction exceeds the smaller effect: the split depends on the order of the factors.")
        if len(rows) < len(every):
            notes.append(f"By layer: .rows[{self._headline!r}].")
        caption = f"{self._headline.replace('_', ' ')} at step {self.step}, {self.seeds} seed{'s' * (self.seeds > 1)}"
        headings = ("region", "layer", *self.arms, *(name.replace("_", " ") for name in EFFECTS))
        return html_table(caption, headings, [_cells(row) for row in rows], notes=notes)

    def bounds(self, effect: str) -> Array:
        """Mean, lower and upper bound, "measure region layer bound"."""
        return self.arrays()[effect]

    def arrays(self) -> dict[str, Array]:
        """What the HDF5 group holds; nan where there is no interval, or no trained layer to average.

        Returns:
            Each of `EFFECTS`, "measure region layer bound", and `same_mask`, "measure region layer", the root mean square
            difference between two seeds of one arm; and the same of the mean over trained layers, without the axis layer,
            under `mean_` and their name.
        """
        places = (len(self.measures), len(self.regions))
        shapes = {"": (*places, len(self.layers)), "mean_": places}
        found: dict[str, Array] = {}
        for prefix, shape in shapes.items():
            found |= {f"{prefix}{name}": np.full((*shape, 3), np.nan) for name in EFFECTS}
            found[f"{prefix}same_mask"] = np.full(shape, np.nan)
        for m, measure in enumerate(self.measures):
            for row in self.rows[measure]:
                prefix = "mean_" if row.layer is None else ""
                where: tuple[int, ...] = (m, self.regions.index(row.region))
                where += () if row.layer is None else (self.layers.index(row.layer),)
                found[f"{prefix}same_mask"][where] = row.same_mask
                for name, interval in row.effects.items():
                    found[f"{prefix}{name}"][where] = (interval.mean, interval.lower, interval.upper)
        return found


def _cells(row: Row) -> list[str]:
    """Of a notebook's table."""
    layer = "mean" if row.layer is None else str(row.layer)
    own = [plus_minus(interval.mean, interval.half_width) for interval in row.own]
    effects = [plus_minus(row.effects[name].mean, row.effects[name].half_width, sign="+") for name in EFFECTS]
    return [row.region.replace("_", " "), f"{layer}{'*' * row.untrained}{'~' * row.order_matters}", *own, *effects]


def arms_of(run: Run, regions: Sequence[str] = (), layers: Sequence[int] = ()) -> tuple[ArmFacts, ...]:
    """The arms of a run.

    Args:
        run: finished or not.
        regions: to flag as trained or hardly trained.
        layers: the same.
    """
    return tuple(_arm(name, run.config.arm(name), regions, layers) for name in run.config.arms)


def _arm(name: str, config: ArmConfig, regions: Sequence[str], layers: Sequence[int]) -> ArmFacts:
    flags = [[_untrained(region, layer, config) for layer in layers] for region in regions]
    return ArmFacts(
        name=name,
        mask=str(config.model.mask),
        objective=str(config.train.objective),
        untrained=np.array(flags, dtype=np.bool_).reshape(len(regions), len(layers)),
    )


def _untrained(region: str, layer: int, config: ArmConfig) -> bool:
    """Whether the loss hardly reaches this part of a layer's attention.

    Under a suffix loss the last layer's rows before p - 1 enter the loss only where training drew a shorter prefix.
    """
    last = config.model.num_layers - 1
    return region in _OF_THE_PREFIX and layer == last and config.train.objective is Objective.SUFFIX


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


def causal_and_prefix(arms: Iterable[ArmFacts]) -> tuple[str, str] | None:
    """The first causal and the first prefix arm that share an objective; None where there are no such two."""
    for causal, prefix in product(tuple(arms), repeat=2):
        masks = (causal.mask, prefix.mask)
        if masks == (str(MaskKind.CAUSAL), str(MaskKind.PREFIX)) and causal.objective == prefix.objective:
            return causal.name, prefix.name
    return None


def decompose(
    arms: Sequence[ArmFacts],
    values: Mapping[str, Mapping[str, Array]],
    documents: NDArray[np.int64],
    layers: tuple[int, ...],
    regions: tuple[str, ...],
    *,
    step: int,
    brackets: Mapping[str, Mapping[str, Bracket]] | None = None,
) -> Decomposition | None:
    """Split every measure's gap, at one step of training.

    Args:
        arms: that were measured.
        values: by arm and measure, "seed region applied_mask sequence layer head" with applied masks own, swapped; what
            is not finite has no value.
        documents: "sequence", the held-out document of each.
        layers: that were measured.
        regions: that were measured.
        step: of the checkpoints.
        brackets: by arm and measure, (lower, upper) like the values: what stands for a value that is not there. Means take
            the middle, and every interval is widened by the mean half-brackets as if all errors had one sign.

    Returns:
        None where there are no causal and prefix arm with the same objective, or nothing was measured that has a mean.

    Raises:
        ConfigurationError: a bracket of another shape than its values, or upside down.
    """
    pair = causal_and_prefix(arms)
    if pair is None or not values[pair[0]].keys() - set(_NAMES_OF_KEYS):
        return None
    flags = next(arm.untrained for arm in arms if arm.name == pair[0])
    rows = {}
    for measure in values[pair[0]]:
        if measure not in _NAMES_OF_KEYS:
            known = [(brackets or {}).get(arm, {}).get(measure) for arm in pair]
            means = [head_means(values[arm][measure], bracket) for arm, bracket in zip(pair, known, strict=True)]
            rows[measure] = _rows(means[0], means[1], documents, layers, regions, flags)
    return Decomposition(
        arms=pair,
        step=step,
        measures=tuple(rows),
        regions=regions,
        layers=layers,
        untrained=flags,
        rows=rows,
        seeds=next(iter(values[pair[0]].values())).shape[0],
    )


def _rows(
    causal: HeadMeans,
    prefix: HeadMeans,
    documents: NDArray[np.int64],
    layers: tuple[int, ...],
    regions: tuple[str, ...],
    untrained: NDArray[np.bool_],
) -> tuple[Row, ...]:
    """Lines of one measure."""
    rows = []
    for r, region in enumerate(regions):
        for index, layer in enumerate(layers):
            one, other = causal.over(r, [index]), prefix.over(r, [index])
            rows.append(_row(region, layer, bool(untrained[r, index]), one, other, documents))
        if kept := np.flatnonzero(~untrained[r]).tolist():
            rows.append(_row(region, None, False, causal.over(r, kept), prefix.over(r, kept), documents))
    return tuple(rows)


def _row(
    region: str,
    layer: int | None,
    untrained: bool,
    causal: HeadMeans,
    prefix: HeadMeans,
    documents: NDArray[np.int64],
) -> Row:
    """One line from the means of both arms in one place."""
    parts = effects(causal.paired[0], causal.paired[1], prefix.paired[0], prefix.paired[1])
    own_error = causal.error[0] + prefix.error[0]
    total = float(causal.error.sum() + prefix.error.sum())
    errors = {"gap": float(own_error), "mask_effect": total / 2, "learned_effect": total / 2, "interaction": total}
    shown = [arm.own if np.isnan(arm.paired[0]).all() else arm.paired[0] for arm in (causal, prefix)]
    own = [
        _interval(table, documents, float(arm.error[0]), "t over seeds")
        for table, arm in zip(shown, (causal, prefix), strict=True)
    ]
    return Row(
        region=region,
        layer=layer,
        untrained=untrained,
        own=(own[0], own[1]),
        effects={name: _interval(part, documents, errors[name]) for name, part in parts.items()},
        control=same_mask(shown[0], shown[1], documents),
        matrices=int(causal.matrices + prefix.matrices),
        missing=int(causal.missing + prefix.missing),
        estimated=int(causal.estimated + prefix.estimated),
    )


def _interval(table: Array, documents: NDArray[np.int64], error: float, kind: str = "paired t over seeds") -> Interval:
    """Over the seeds of "seed sequence" that have a value, or with one seed over documents."""
    by_seed = table.mean(axis=1)
    known = by_seed[~np.isnan(by_seed)]
    if known.size == 0:
        return Interval(mean=np.nan, lower=np.nan, upper=np.nan, count=0, kind=kind)
    if len(table) > 1:
        return mean_interval(known, kind=kind).widened(error, _WIDENED)
    return bootstrap_over_documents(table[0], documents).widened(error, _WIDENED)
