"""The closing tables of `spectrum`: ranks, gaps and their parts, each with its interval, its control and its meaning."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rankkit.cli.console import Output, counted, few_seeds, new_table
from rankkit.cli.effect_table import UNTRAINED, WIDTH, Line, decimals_of, fitted_table, interval_text, number_text
from rankkit.statistics import Interval
from rankkit.studies.decomposition import EFFECTS, Decomposition, Row
from rankkit.studies.same_mask import PairsCalled, SameMask

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["decomposition_as_dict", "show_companions", "show_decomposition", "show_training"]

_WORDS = {
    "full": "whole matrix",
    "prefix_block": "prefix block",
    "first_key_removed": "first key removed",
    "prefix_block_first_key_removed": "prefix block, first key removed",
}
_COMPANIONS = ("logit_std", "attention_entropy", "mean_ipr", "sink_mass")
_TELLING = 0.25  # share of same-mask pairs called different from which the test is said to see seeds, not masks


def show_decomposition(found: Decomposition, measure: str, output: Output) -> None:
    """Effective rank (or another measure) of both arms by layer, with gap and parts: a table for each region, then help.

    Args:
        found: the last step of training, or the only one.
        measure: from its measures.
        output: where to.
    """
    for region in found.regions:
        rows = [row for row in found.rows[measure] if row.region == region]
        title = f"{_words(region)}: {_spoken(measure)} ({_over(found)})"
        output.table(_table(title, "layer", [(_layer(row), row) for row in rows], found))
    for line in (*_help(found, measure, found.rows[measure]), *_verdicts(found, measure)):
        _say(line, output)


def show_training(steps: Sequence[Decomposition], measure: str, output: Output) -> None:
    """The means over trained layers at every step that was measured: a table for each region.

    Args:
        steps: in the order of training, all of the same regions.
        measure: from their measures.
        output: where to.
    """
    last = steps[-1]
    for region in last.regions:
        rows = [(one.step, row) for one in steps for row in one.means(measure) if row.region == region]
        if rows:
            title = f"through training, {_words(region)}: {_spoken(measure)}, mean over trained layers ({_over(last)})"
            output.table(_table(title, "step", [(f"{step:,}", row) for step, row in rows], last))


def show_companions(found: Decomposition, output: Output) -> None:
    """What a rank means nothing without: logit spread, entropy and concentration of both arms, by region and layer."""
    companions = [name for name in _COMPANIONS if name in found.measures]
    if not companions:
        return
    title = f"beside every rank: {found.arms[0]} / {found.arms[1]}"
    output.say()
    table = new_table(title, ["region", "layer", *(_spoken(name) for name in companions)])
    for number, row in enumerate(found.rows[companions[0]]):
        rows = [found.rows[name][number] for name in companions]
        values = [f"{number_text(entry.causal, 3)} / {number_text(entry.prefix, 3)}" for entry in rows]
        table.add_row(_words(row.region), _layer(row).rstrip("~"), *values, end_section=row.layer is None)
    output.table(table)
    for name in companions:
        _say(f"{_spoken(name)} = {_definition(name)}.", output)


def _table(title: str, first: str, rows: Sequence[tuple[str, Row]], found: Decomposition) -> Table:
    """With as many decimals as say something, and fit."""
    control = ["A/A"] if found.seeds > 1 else []
    headings = [first, *found.arms, "gap", *control, "mask effect", "learned effect", "interaction"]
    lines: list[Line] = [(label, partial(_cells, row, control=bool(control)), row.layer is None) for label, row in rows]
    return fitted_table(title, headings, lines, _decimals([row for _, row in rows]))


def _cells(row: Row, decimals: int, *, control: bool) -> list[str]:
    own = [interval_text(interval, decimals, sign="") for interval in row.own]
    gap, *others = (interval_text(row.effects[name], decimals) for name in EFFECTS)
    between = [_both(row.control.between_means, decimals)] if control else []
    return [*own, gap, *between, *others]


def _help(found: Decomposition, measure: str, rows: Sequence[Row]) -> Iterable[str]:
    """One line for each column, and one for each mark that occurs."""
    causal, prefix = found.arms
    words = _spoken(measure)
    yield f"{words} = {_definition(measure)}, of each matrix by itself; then averaged over heads and sequences."
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
    of_all = f"of {counted(sum(row.matrices for row in layers), 'matrix')}"
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


def _verdicts(found: Decomposition, measure: str) -> Iterable[str]:
    """What the means over trained layers show, of all regions, in one sentence; and what another test would have shown."""
    rows = found.means(measure)
    if found.seeds == 1:
        yield "No verdict: one seed, and its intervals are the error of the evaluation alone. Train at least three seeds."
    elif not rows:
        yield "No verdict: in these regions no trained layer was measured."
    else:
        shown = "; ".join(f"{_words(row.region)}: {_effects(row, _decimals(rows))}" for row in rows)
        yield f"{_spoken(measure)}, mean over trained layers, {found.seeds} seeds: {shown}."
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
        f"{_words(row.region)}: {_called(row.control.within)} of one mask, {_called(row.control.across)} across masks"
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


def _over(found: Decomposition) -> str:
    return f"{found.seeds} seeds" if found.seeds > 1 else "one seed: no verdict"


def _decimals(rows: Sequence[Row]) -> int:
    """As many as say something of these rows."""
    intervals = [interval for row in rows for interval in (*row.own, *row.effects.values())]
    return decimals_of(intervals, [interval.mean for row in rows for interval in row.own])


def _layer(row: Row) -> str:
    number = "mean" if row.layer is None else f"{row.layer}{'*' if row.untrained else ''}"
    return f"{number}{'~' if row.order_matters else ''}"


def _both(values: tuple[float, float], decimals: int) -> str:
    return " / ".join(number_text(value, decimals) for value in values)


def _say(line: str, output: Output) -> None:
    """One line of help, folded where a table would end."""
    output.say(textwrap.fill(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def _words(region: str) -> str:
    return _WORDS.get(region, region)


def _spoken(measure: str) -> str:
    return measure.replace("_", " ")


def _definition(measure: str) -> str:
    from rankkit.spectra.measures import MEASURES

    known = MEASURES[measure]
    return f"{known.definition} [{known.source}]" if known.source else known.definition


def decomposition_as_dict(found: Decomposition) -> dict[str, Any]:
    """Every measure's rows as plain values."""
    return {
        "arms": {"causal": found.arms[0], "prefix": found.arms[1]},
        "step": found.step,
        "seeds": found.seeds,
        "definitions": {measure: _definition(measure) for measure in found.measures},
        "measures": {measure: [_row_as_dict(row) for row in rows] for measure, rows in found.rows.items()},
    }


def _row_as_dict(row: Row) -> dict[str, Any]:
    causal, prefix = row.own
    return {
        "region": row.region,
        "layer": row.layer,
        "untrained": row.untrained,
        "causal": row.causal,
        "prefix": row.prefix,
        "intervals": {"causal": _bounds(causal), "prefix": _bounds(prefix)},
        "same_mask_rms": row.same_mask,
        "same_mask": _control_as_dict(row.control),
        "matrices": row.matrices,
        "missing": row.missing,
        "estimated": row.estimated,
        **{name: _bounds(interval) for name, interval in row.effects.items()},
    }


def _control_as_dict(control: SameMask) -> dict[str, Any]:
    """`between_seeds` compares single seeds, `between_means` means of as many seeds as the gap."""
    seeds, means = control.between_seeds, control.between_means
    return {
        "causal": {"between_seeds": seeds[0], "between_means": means[0]},
        "prefix": {"between_seeds": seeds[1], "between_means": means[1]},
        "pooled": {"between_seeds": control.pooled_between_seeds, "between_means": control.pooled_between_means},
        "called_over_sequences": {
            "within": {"called": control.within.called, "pairs": control.within.pairs},
            "across": {"called": control.across.called, "pairs": control.across.pairs},
        },
    }


def _bounds(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "lower": interval.lower, "upper": interval.upper}
