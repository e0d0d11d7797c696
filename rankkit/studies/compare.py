"""Two models side by side: means by layer, their difference and its interval over documents, or over seeds that are paired.

With y(side, mask) the measure under a mask, averaged over heads and sequences: gap = y(first, own) - y(second, own). Where
each side was also measured under the other's mask, the gap is split as for a trained pair (`rankkit.studies.decomposition`).
Heads are averaged before anything is subtracted: heads of two networks do not correspond.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from rankkit.errors import MatchError
from rankkit.statistics import Interval
from rankkit.studies.compared_side import SEPARATOR, Array, Side, interval_of
from rankkit.studies.decomposition import EFFECTS, effects
from rankkit.studies.head_means import HeadMeans

__all__ = ["ComparedRow", "Comparison", "SideRow", "compare", "side_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRow:
    """One line about one side."""

    region: str
    """Part of the matrix."""
    layer: int | None
    """None for the mean over layers."""
    own: Interval
    """Mean under its own mask."""
    swapped: Interval | None
    """Under the mask that was swapped in, of the matrices that have a value under both."""
    change: Interval | None
    """What the swap changes: own minus swapped."""
    matrices: int
    """How many stand behind the row."""
    missing: int
    """How many of them have no finite value and were left out."""
    estimated: int
    """How many have a bracket instead of a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """One line about two sides."""

    region: str
    """Part of the matrix."""
    layer: int | None
    """None for the mean over layers."""
    own: tuple[Interval, Interval]
    """Means under their own masks."""
    effects: Mapping[str, Interval]
    """`gap`; and where masks were swapped against each other mask_effect, learned_effect and interaction."""
    matrices: int
    """How many stand behind the row, of both sides."""
    missing: int
    """How many of them have no finite value and were left out."""
    estimated: int
    """How many have a bracket instead of a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sides, measured on the same tokens."""

    sides: tuple[Side, Side]
    """The first and the second."""
    rows: Mapping[str, tuple[ComparedRow, ...]]
    """By measure: for each region its layers, then their mean."""
    seeds: int
    """Paired seeds behind the intervals; 1 where they are over documents."""
    layers_correspond: bool
    """Whether both have the same layers; else there are means over layers alone."""
    is_split: bool
    """Whether each side was measured under the other's mask, so that the gap has parts."""


def compare(first: Side, second: Side) -> Comparison:
    """Hold two sides against each other.

    Args:
        first: from `read_side`.
        second: the same.

    Raises:
        MatchError: they did not read the same tokens, or share no region or no measure.
    """
    _check_same_tokens(first, second)
    regions = _shared("region", first.regions, second.regions)
    measures = _shared("measure", first.values, second.values)
    sides = (first, second)
    paired = first.seeds == second.seeds and len(first.seeds) > 1
    is_split = (first.mask, first.swapped) == (second.swapped, second.mask) and first.swapped is not None
    layers_correspond = first.layers == second.layers
    rows = {}
    for measure in measures:
        means = (first.means(measure, both_masks=is_split), second.means(measure, both_masks=is_split))
        rows[measure] = tuple(
            _row(sides, means, region, layer, paired=paired, is_split=is_split)
            for region in regions
            for layer in (*(first.layers if layers_correspond else ()), None)
        )
    return Comparison(
        sides=sides,
        rows=rows,
        seeds=len(first.seeds) if paired else 1,
        layers_correspond=layers_correspond,
        is_split=is_split,
    )


def side_rows(side: Side, measure: str) -> tuple[SideRow, ...]:
    """One side by itself: for each region its layers, then their mean.

    Args:
        side: from `read_side`.
        measure: from its values.
    """
    both, rows = side.swapped is not None, []
    means = side.means(measure, both_masks=both)
    for region in side.regions:
        for layer in (*side.layers, None):
            part = _over(side, means, region, layer)
            (own, other), error = part.paired, part.error.tolist()
            rows.append(
                SideRow(
                    region=region,
                    layer=layer,
                    own=interval_of(own, side.documents, error[0], "t over seeds"),
                    swapped=interval_of(other, side.documents, error[1], "t over seeds") if both else None,
                    change=interval_of(own - other, side.documents, sum(error), "paired t over seeds")
                    if both
                    else None,
                    **_counts([part], halved=not both),
                )
            )
    return tuple(rows)


def _check_same_tokens(first: Side, second: Side) -> None:
    if first.lengths != second.lengths or first.tokens_sha256 != second.tokens_sha256:
        names = [
            side.group if first.group != second.group else f"{side.path}{SEPARATOR}{side.group}"
            for side in (first, second)
        ]
        raise MatchError(
            f"sides must have read the same tokens, but those of {names[1]} differ from those of {names[0]} "
            f"(SHA-256 {second.tokens_sha256[:8]} and {first.tokens_sha256[:8]}; {len(second.lengths)} and "
            f"{len(first.lengths)} sequences). Measure both with the same text, samples and --sequence-length; models with "
            "different tokenizers cannot be compared by tokens."
        )


def _shared(name: str, first: Iterable[str], second: Iterable[str]) -> list[str]:
    other = list(second)
    found = [entry for entry in first if entry in other]
    if not found:
        raise MatchError(f"sides must share a {name}, got none in common. Measure both alike.")
    return found


def _over(side: Side, means: HeadMeans, region: str, layer: int | None) -> HeadMeans:
    """One layer, or the mean over those that the loss reaches."""
    r = side.regions.index(region)
    places = [side.layers.index(layer)] if layer is not None else np.flatnonzero(side.trained[r]).tolist()
    return means.over(r, places or list(range(len(side.layers))))


def _row(
    sides: tuple[Side, Side],
    means: tuple[HeadMeans, HeadMeans],
    region: str,
    layer: int | None,
    *,
    paired: bool,
    is_split: bool,
) -> ComparedRow:
    first, second = (_over(side, mean, region, layer) for side, mean in zip(sides, means, strict=True))
    own = [_seed_tables(part.paired[0], paired=paired) for part in (first, second)]
    swapped = [_seed_tables(part.paired[1], paired=paired) for part in (first, second)]
    parts = effects(own[0], swapped[0], own[1], swapped[1])
    own_error, total = float(first.error[0] + second.error[0]), float(first.error.sum() + second.error.sum())
    errors = {"gap": own_error, "mask_effect": total / 2, "learned_effect": total / 2, "interaction": total}
    documents = sides[0].documents
    return ComparedRow(
        region=region,
        layer=layer,
        own=(
            interval_of(own[0], documents, float(first.error[0]), "t over seeds"),
            interval_of(own[1], documents, float(second.error[0]), "t over seeds"),
        ),
        effects={
            name: interval_of(parts[name], documents, errors[name], "paired t over seeds")
            for name in (EFFECTS if is_split else EFFECTS[:1])
        },
        **_counts([first, second], halved=not is_split),
    )


def _seed_tables(table: Array, *, paired: bool) -> Array:
    """Seeds that have no partner are averaged: what is left is the error of the evaluation."""
    return table if paired else table.mean(axis=0, keepdims=True)


def _counts(parts: Iterable[HeadMeans], *, halved: bool) -> dict[str, int]:
    """Of all parts; halved where one mask stood for both."""
    found = dict.fromkeys(("matrices", "missing", "estimated"), 0)
    for part in parts:
        for name in found:
            found[name] += int(getattr(part, name)) // (2 if halved else 1)
    return found
