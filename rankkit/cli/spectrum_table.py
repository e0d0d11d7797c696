"""The closing tables of `spectrum`: ranks, gaps and their parts, each with its interval, its control and its meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rankkit.cli.console import Output, new_table
from rankkit.cli.effect_table import WIDTH, Line, fitted_table
from rankkit.statistics import Interval
from rankkit.studies.decomposition import EFFECTS, Decomposition, Row
from rankkit.studies.same_mask import SameMask
from rankkit.studies.words import (
    conclusions,
    decimals_of_rows,
    definition,
    explanations,
    interval_text,
    number_text,
    region_words,
    spoken,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["decomposition_as_dict", "show_companions", "show_decomposition", "show_training"]

_COMPANIONS = ("logit_std", "attention_entropy", "mean_ipr", "sink_mass")


def show_decomposition(found: Decomposition, measure: str, output: Output) -> None:
    """Effective rank (or another measure) of both arms by layer, with gap and parts: a table for each region, then help.

    Args:
        found: the last step of training, or the only one.
        measure: from its measures.
        output: where to.
    """
    for region in found.regions:
        rows = [row for row in found.rows[measure] if row.region == region]
        title = f"{region_words(region)}: {spoken(measure)} ({_over(found)})"
        output.table(_table(title, "layer", [(_layer(row), row) for row in rows], found))
    for line in (
        *explanations(found, measure, found.rows[measure], defined=definition(measure)),
        *conclusions(found, measure),
    ):
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
            title = (
                f"through training, {region_words(region)}: {spoken(measure)}, mean over trained layers ({_over(last)})"
            )
            output.table(_table(title, "step", [(f"{step:,}", row) for step, row in rows], last))


def show_companions(found: Decomposition, output: Output) -> None:
    """What a rank means nothing without: logit spread, entropy and concentration of both arms, by region and layer."""
    companions = [name for name in _COMPANIONS if name in found.measures]
    if not companions:
        return
    title = f"beside every rank: {found.arms[0]} / {found.arms[1]}"
    output.say()
    table = new_table(title, ["region", "layer", *(spoken(name) for name in companions)])
    for number, row in enumerate(found.rows[companions[0]]):
        rows = [found.rows[name][number] for name in companions]
        values = [f"{number_text(entry.causal, 3)} / {number_text(entry.prefix, 3)}" for entry in rows]
        table.add_row(region_words(row.region), _layer(row).rstrip("~"), *values, end_section=row.layer is None)
    output.table(table)
    for name in companions:
        _say(f"{spoken(name)} = {definition(name)}.", output)


def _table(title: str, first: str, rows: Sequence[tuple[str, Row]], found: Decomposition) -> Table:
    """With as many decimals as say something, and fit."""
    control = ["A/A"] if found.seeds > 1 else []
    headings = [first, *found.arms, "gap", *control, "mask effect", "learned effect", "interaction"]
    lines: list[Line] = [(label, partial(_cells, row, control=bool(control)), row.layer is None) for label, row in rows]
    return fitted_table(title, headings, lines, decimals_of_rows([row for _, row in rows]))


def _cells(row: Row, decimals: int, *, control: bool) -> list[str]:
    own = [interval_text(interval, decimals, sign="") for interval in row.own]
    gap, *others = (interval_text(row.effects[name], decimals) for name in EFFECTS)
    between = [_both(row.control.between_means, decimals)] if control else []
    return [*own, gap, *between, *others]


def _over(found: Decomposition) -> str:
    return f"{found.seeds} seeds" if found.seeds > 1 else "one seed: no verdict"


def _layer(row: Row) -> str:
    number = "mean" if row.layer is None else f"{row.layer}{'*' if row.untrained else ''}"
    return f"{number}{'~' if row.order_matters else ''}"


def _both(values: tuple[float, float], decimals: int) -> str:
    return " / ".join(number_text(value, decimals) for value in values)


def _say(line: str, output: Output) -> None:
    """One line of help, folded where a table would end."""
    output.say(textwrap.fill(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def decomposition_as_dict(found: Decomposition) -> dict[str, Any]:
    """Every measure's rows as plain values."""
    return {
        "arms": {"causal": found.arms[0], "prefix": found.arms[1]},
        "step": found.step,
        "seeds": found.seeds,
        "definitions": {measure: definition(measure) for measure in found.measures},
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
