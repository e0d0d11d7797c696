"""Tables of one model by itself, and of two side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rankkit.cli.console import Output, counted, new_table, visible
from rankkit.statistics import Interval
from rankkit.studies.words import UNTRAINED, few_seeds

if TYPE_CHECKING:
    from rankkit.studies.compare import ComparedRow, Comparison, SideRow
    from rankkit.studies.compared_side import Side

__all__ = ["comparison_as_dict", "show_compared", "show_side", "show_steps", "side_as_dict"]

_COMPANIONS = ("logit_std", "attention_entropy", "sink_mass")
_SAID = ("gap", "mask_effect", "learned_effect")  # in the verdict
_DIGITS = 4  # significant, of a mean


def show_side(side: Side, measure: str, output: Output) -> None:
    """One measure of one group by region and layer, under its own mask and, where there is one, under another.

    Args:
        side: from `rankkit.studies.compared_side.read_side`.
        measure: from its values.
        output: where to.
    """
    from rankkit.studies.compare import side_rows

    swapped = [] if side.swapped is None else [f"under {visible(side.swapped)}", "own - swapped"]
    companions = [name for name in _COMPANIONS if name in side.values and name != measure]
    beside = {name: side_rows(side, name) for name in companions}
    rows = side_rows(side, measure)
    for region in side.regions:
        title = f"{visible(side.group)} ({visible(side.mask)}), {region.replace('_', ' ')}: {_spoken(measure)}"
        table = new_table(title, ["layer", "own mask", *swapped, *map(_spoken, companions)])
        for number, row in enumerate(rows):
            if row.region == region:
                both = [_number(row.swapped), _number(row.change, "+")] if row.swapped and row.change else []
                others = [_plain(beside[name][number].own.mean) for name in companions]
                table.add_row(_layer(row), _number(row.own), *both, *others)
        output.table(table)
    output.say("Means over heads and sequences, of each matrix by itself.")
    for line in _notes(rows):
        output.say(line)


def show_steps(sides: Sequence[Side], measure: str, output: Output) -> None:
    """The means over layers at every step, where there are several.

    Args:
        sides: one group at all its steps.
        measure: from its values.
        output: where to.
    """
    from rankkit.studies.compare import side_rows

    if len(sides) == 1:
        return
    regions = [region.replace("_", " ") for region in sides[0].regions]
    table = new_table(f"{visible(sides[0].group)} through training: {_spoken(measure)}", ["step", *regions])
    for side in sides:
        means = [_number(row.own) for row in side_rows(side, measure) if row.layer is None]
        table.add_row(f"{side.step:,}", *means)
    output.table(table)


def show_compared(found: Comparison, measure: str, output: Output) -> None:
    """One measure of two groups by region and layer, their gap, and its parts where there are any.

    Args:
        found: from `rankkit.studies.compare.compare`.
        measure: from its rows.
        output: where to.
    """
    rows = found.rows[measure]
    labels = side_labels(found)
    effects = [name.replace("_", " ") for name in rows[0].effects]
    for region in dict.fromkeys(row.region for row in rows):
        title = f"{region.replace('_', ' ')}: {_spoken(measure)} ({_over(found)})"
        table = new_table(title, ["layer", *labels, *effects])
        for row in (row for row in rows if row.region == region):
            own = [_number(interval) for interval in row.own]
            mark = "*" if _is_untrained(found, row) else ""
            table.add_row(f"{_layer(row)}{mark}", *own, *(_number(interval, "+") for interval in row.effects.values()))
        output.table(table)
    untrained = [UNTRAINED] if any(_is_untrained(found, row) for row in rows) else []
    for line in (*_sides(found, labels), *_notes(rows), *untrained, *_verdict(found, measure)):
        output.say(line)


def _is_untrained(found: Comparison, row: ComparedRow) -> bool:
    """Whether the loss hardly reaches this layer's part of the matrix, in either of the two."""
    if row.layer is None:
        return False
    return any(not side.trained[side.regions.index(row.region), side.layers.index(row.layer)] for side in found.sides)


def side_labels(found: Comparison) -> tuple[str, str]:
    """Names of the groups, told apart where they are the same."""
    first, second = (visible(side.group) for side in found.sides)
    return (first, second) if first != second else (f"{first} (A)", f"{second} (B)")


def _sides(found: Comparison, labels: tuple[str, str]) -> Iterator[str]:
    for label, side in zip(labels, found.sides, strict=True):
        yield f"{label} = {side.path}, group {visible(side.group)}, mask {visible(side.mask)}, step {side.step}."
    sequences = counted(len(found.sides[0].lengths), "sequence")
    yield f"gap = {labels[0]} - {labels[1]}, on the same {sequences}; heads are averaged first."
    if found.is_split:
        yield "mask effect = what changes when only the mask over the same Q and K changes."
        yield "learned effect = what changes when only Q and K change under the same mask; both averaged over the other."
    if not found.layers_correspond:
        yield "The two have other layers: there are means over layers alone."


def _notes(rows: Sequence[ComparedRow] | Sequence[SideRow]) -> Iterator[str]:
    """How sure the numbers are, and what they lack."""
    layers = [row for row in rows if row.layer is not None] or list(rows)
    kinds = {_own(row).kind for row in layers if math.isfinite(_own(row).half_width)}
    if kinds:
        yield f"± = half of the 95% interval ({min(kinds)})."
    else:
        yield "No intervals: that takes sequences of several documents, or several seeds."
    of_all = f"of {counted(sum(row.matrices for row in layers), 'matrix')}"
    if missing := sum(row.missing for row in layers):
        yield f"{missing:,} {of_all} have no finite value of this measure and were left out."
    if estimated := sum(row.estimated for row in layers):
        yield f"{estimated:,} {of_all} have a bracket instead of a value, whose middle enters the means."


def _own(row: ComparedRow | SideRow) -> Interval:
    return row.own[0] if isinstance(row.own, tuple) else row.own


def _verdict(found: Comparison, measure: str) -> Iterator[str]:
    if found.seeds == 1:
        yield (
            "No verdict: without paired seeds the intervals are the error of the evaluation alone. Two trained models "
            "differ by chance too."
        )
        return
    for row in found.rows[measure]:
        if row.layer is None:
            said = [
                f"{name.replace('_', ' ')} {_number(effect, '+')} ({'' if effect.resolved else 'not '}resolved)"
                for name, effect in row.effects.items()
                if name in _SAID
            ]
            yield f"{_region(row)}, mean over trained layers, {found.seeds} seeds: {', '.join(said)}."
    yield from few_seeds(found.seeds)


def _over(found: Comparison) -> str:
    return f"{found.seeds} seeds" if found.seeds > 1 else "no paired seeds: no verdict"


def _region(row: ComparedRow | SideRow) -> str:
    return row.region.replace("_", " ")


def _layer(row: ComparedRow | SideRow) -> str:
    return "mean" if row.layer is None else str(row.layer)


def _number(interval: Interval, sign: str = "") -> str:
    if math.isnan(interval.mean):
        return "-"
    half = "" if math.isnan(interval.half_width) else f" ± {interval.half_width:.2g}"
    return f"{interval.mean:{sign}.{_DIGITS}g}{half}"


def _plain(mean: float) -> str:
    return "-" if math.isnan(mean) else f"{mean:.3g}"


def _spoken(measure: str) -> str:
    return measure.replace("_", " ")


def side_as_dict(side: Side) -> dict[str, Any]:
    """Every measure's rows as plain values."""
    from rankkit.studies.compare import side_rows

    rows = {measure: [_side_row(row) for row in side_rows(side, measure)] for measure in side.values}
    return {"mask": side.mask, "swapped_mask": side.swapped, "step": side.step, "measures": rows}


def comparison_as_dict(found: Comparison) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "sides": [
            {
                "file": str(side.path),
                "group": side.group,
                "mask": side.mask,
                "step": side.step,
                "seeds": list(side.seeds),
            }
            for side in found.sides
        ],
        "tokens_sha256": found.sides[0].tokens_sha256,
        "seeds": found.seeds,
        "verdict": found.seeds > 1,
        "layers_correspond": found.layers_correspond,
        "measures": {measure: [_compared_row(row) for row in rows] for measure, rows in found.rows.items()},
    }


def _side_row(row: SideRow) -> dict[str, Any]:
    return {
        "region": row.region,
        "layer": row.layer,
        "own": _bounds(row.own),
        "swapped": None if row.swapped is None else _bounds(row.swapped),
        "change": None if row.change is None else _bounds(row.change),
        "matrices": row.matrices,
        "missing": row.missing,
        "estimated": row.estimated,
    }


def _compared_row(row: ComparedRow) -> dict[str, Any]:
    return {
        "region": row.region,
        "layer": row.layer,
        "own": [_bounds(interval) for interval in row.own],
        **{name: _bounds(interval) for name, interval in row.effects.items()},
        "matrices": row.matrices,
        "missing": row.missing,
        "estimated": row.estimated,
    }


def _bounds(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "lower": interval.lower, "upper": interval.upper}
