"""How ranks, gaps and their parts are said, wherever they are shown: the same words in a terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from rankkit.statistics import Interval
from rankkit.studies.decomposition import Decomposition, Row
from rankkit.studies.same_mask import PairsCalled

__all__ = [
    "UNTRAINED",
    "conclusions",
    "decimals_of",
    "decimals_of_rows",
    "definition",
    "explanations",
    "few_seeds",
    "interval_text",
    "number_text",
    "region_words",
    "spoken",
]

UNTRAINED: Final = (
    "* rows before p - 1 of the last layer enter the loss only where a shorter prefix was drawn, in the two arms "
    "unequally: this prefix block is left out of the mean. Whole matrices of that layer hold those rows too."
)
"""What the mark of a hardly trained layer means."""

_WORDS = {
    "full": "whole matrix",
    "prefix_block": "prefix block",
    "first_key_removed": "first key removed",
    "prefix_block_first_key_removed": "prefix block, first key removed",
}
_TELLING = 0.25  # share of same-mask pairs called different from which the test is said to see seeds, not masks
_MOST_DECIMALS = 4  # a table's numbers stay comparable at a glance


def region_words(region: str) -> str:
    """What a region is called in a sentence."""
    return _WORDS.get(region, region)


def spoken(measure: str) -> str:
    """What a measure is called in a sentence."""
    return measure.replace("_", " ")


def definition(measure: str) -> str:
    """The formula of one of our measures, and who defined it."""
    from rankkit.spectra.measures import MEASURES

    known = MEASURES[measure]
    return f"{known.definition} [{known.source}]" if known.source else known.definition


def decimals_of(intervals: Iterable[Interval], means: Iterable[float]) -> int:
    """Two significant digits for a typical half-width; without any, four for the largest mean."""
    halves = [interval.half_width for interval in intervals]
    known = [half for half in halves if math.isfinite(half) and half > 0]
    sizes = [abs(mean) for mean in means if math.isfinite(mean)]
    scale, digits = (float(np.quantile(known, 0.25)), 1) if known else (max(sizes, default=0.0), 3)
    return 2 if scale == 0 else min(max(digits - math.floor(math.log10(scale)), 0), _MOST_DECIMALS)


def interval_text(interval: Interval, decimals: int, *, sign: str = "+") -> str:
    """Its mean ± half its width, where it has one."""
    mean = number_text(interval.mean, decimals, sign=sign)
    return mean if math.isnan(interval.half_width) else f"{mean} ± {number_text(interval.half_width, decimals)}"


def number_text(value: float, decimals: int, *, sign: str = "") -> str:
    """A dash where there is none."""
    return "-" if math.isnan(value) else f"{value:{sign}.{decimals}f}"


def decimals_of_rows(rows: Sequence[Row]) -> int:
    """As many as say something of these rows."""
    intervals = [interval for row in rows for interval in (*row.own, *row.effects.values())]
    return decimals_of(intervals, [interval.mean for row in rows for interval in row.own])


def few_seeds(seeds: int) -> tuple[str, ...]:
    """What to say wherever two seeds make an interval: one line for two, none for another number."""
    if seeds != 2:
        return ()
    return (
        "Two seeds make an interval of one degree of freedom, which hardly knows its own width: train three or more.",
    )


def explanations(found: Decomposition, measure: str, rows: Sequence[Row], *, defined: str) -> Iterable[str]:
    """One line for each column of a table of effects, and one for each mark that occurs.

    Args:
        found: what is shown.
        measure: which of its measures.
        rows: those that are shown.
        defined: the measure's definition.
    """
    causal, prefix = found.arms
    words = spoken(measure)
    yield f"{words} = {defined}, of each matrix by itself; then averaged over heads and sequences."
    yield f"{causal}, {prefix} = that mean under the arm's own mask."
    yield f"gap = {causal} - {prefix} = mask effect + learned effect."
    if found.seeds > 1:
        yield (
            f"A/A = what a gap between two arms of one mask would typically be (root mean square difference of two means "
            f"of {found.seeds} seeds), {causal} / {prefix}."
        )
    yield "mask effect = what changes when only the mask over the same Q and K changes, averaged over both arms' Q and K."
    yield (
        "learned effect = what changes when only Q and K change under the same mask, averaged over both masks. Q and K are "
        "those of each arm's own forward pass, so what its mask did in lower layers is in them."
    )
    yield f"interaction = what going from causal to prefix does to {prefix}'s Q and K, minus what it does to {causal}'s."
    yield _interval_help(rows)
    if any(row.untrained for row in rows):
        yield UNTRAINED
    if any(row.order_matters for row in rows):
        yield "~ the interaction exceeds the smaller effect: there the split depends on the order of the factors."
    layers = [row for row in rows if row.layer is not None]
    of_all = f"of {sum(row.matrices for row in layers):,} matrices"
    if missing := sum(row.missing for row in layers):
        yield (
            f"{missing:,} {of_all} have no finite value of this measure (failed, infinite, not defined) and were left "
            "out, each with its partner under the other mask."
        )
    if estimated := sum(row.estimated for row in layers):
        yield (
            f"{estimated:,} {of_all} have a bracket instead of a value: its middle enters the means, and every interval is "
            "wider by the mean half-brackets. Brackets are of the exact softmax: the model's own rounding is not in them."
        )


def _interval_help(rows: Sequence[Row]) -> str:
    gaps = [row.effects["gap"] for row in rows if not math.isnan(row.effects["gap"].half_width)]
    if not gaps:
        return "No intervals: that takes several seeds, or sequences of several documents."
    return (
        f"± = half of the 95% interval ({gaps[0].kind}), of each number alone: of 100 effects that are zero, about 5 "
        "intervals exclude it."
    )


def conclusions(found: Decomposition, measure: str) -> Iterable[str]:
    """What the means over trained layers show, of all regions, in one sentence; and what another test would have shown.

    Args:
        found: what is shown.
        measure: which of its measures.
    """
    rows = found.means(measure)
    if found.seeds == 1:
        yield "No verdict: one seed, and its intervals are the error of the evaluation alone. Train at least three seeds."
    elif not rows:
        yield "No verdict: in these regions no trained layer was measured."
    else:
        shown = "; ".join(f"{region_words(row.region)}: {_effects(row, decimals_of_rows(rows))}" for row in rows)
        yield f"{spoken(measure)}, mean over trained layers, {found.seeds} seeds: {shown}."
        yield from few_seeds(found.seeds)
        yield _over_sequences(rows)


def _effects(row: Row, decimals: int) -> str:
    said = []
    for name in ("gap", "mask_effect", "learned_effect"):
        interval = row.effects[name]
        resolved = "resolved" if interval.resolved else "not resolved"
        said.append(f"{name.replace('_', ' ')} {number_text(interval.mean, decimals, sign='+')} ({resolved})")
    return ", ".join(said)


def _over_sequences(rows: Sequence[Row]) -> str:
    """What a test that knows of no seeds would have said, within one mask and across."""
    counts = [
        f"{region_words(row.region)}: {_called(row.control.within)} of one mask, {_called(row.control.across)} across masks"
        for row in rows
    ]
    said = (
        f'over sequences alone (t test over documents, 5%) pairs of seeds differ "significantly": {"; ".join(counts)}'
    )
    total = sum((row.control.within for row in rows), PairsCalled(called=0, pairs=0))
    if not total.pairs:
        return "over sequences alone nothing can be tested here: that takes sequences of at least two documents."
    if total.pairs and total.share >= _TELLING:
        return f"{said}. That test takes another seed for another mask: it says nothing of the mask."
    return f"{said}. About 5% are expected where nothing differs."


def _called(count: PairsCalled) -> str:
    return f"{count.called} of {count.pairs}"
