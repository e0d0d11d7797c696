"""The closing table of `spectrum`."""

from __future__ import annotations

from typing import Any

from rankkit.cli.console import Output, new_table
from rankkit.statistics import Interval
from rankkit.studies.decomposition import EFFECTS, Decomposition, Row

__all__ = ["decomposition_as_dict", "show_companions", "show_decomposition"]

_WORDS = {"full": "whole matrix", "prefix_block": "prefix block"}


def show_decomposition(found: Decomposition, measure: str, output: Output) -> None:
    """Effective rank (or another measure) of both arms by region and layer, with gap, mask and learned effect."""
    causal, prefix = found.arms
    over = f"{found.seeds} seeds" if found.seeds > 1 else "one seed: error of the evaluation alone, no verdict"
    known = any(
        interval.half_width == interval.half_width for row in found.rows[measure] for interval in row.effects.values()
    )
    spread = "mean ± half of the 95% interval" if known else "means without an interval: too few documents"
    title = f"{measure.replace('_', ' ')}, {spread} ({over})"
    headings = ("region", "layer", causal, prefix, "gap", "mask effect", "learned effect", "interaction", "same mask")
    table = new_table(title, headings)
    for row in found.rows[measure]:
        table.add_row(*_cells(row), end_section=row.layer is None)
    output.table(table)
    output.say(
        f"gap = {causal} - {prefix} = mask effect + learned effect. Mask effect: what changes when only the mask over the "
        "same Q and K changes.\nsame mask: rms difference between two seeds of one arm, to be held against the gap "
        "of a single seed."
    )
    if any(row.untrained for row in found.rows[measure]):
        output.say(
            "* rows before p - 1 of the last layer enter the loss only where a shorter prefix was drawn, in the two arms "
            "unequally: this prefix block is left out of the mean."
        )
    if any(row.order_matters for row in found.rows[measure]):
        output.say(
            "~ the interaction (how far the mask effect differs between the two arms' Q and K) exceeds the smaller effect: "
            "there the split depends on the order of the factors."
        )
    if found.seeds > 1:
        output.say(_sentence(found, measure))


def show_companions(found: Decomposition, output: Output) -> None:
    """What a rank means nothing without: logit spread, entropy and concentration of both arms, by region and layer."""
    companions = [
        name for name in ("logit_std", "attention_entropy", "mean_ipr", "sink_mass") if name in found.measures
    ]
    if not companions:
        return
    title = f"what decides a rank besides the mask: {found.arms[0]} / {found.arms[1]}"
    table = new_table(title, ["region", "layer", *(name.replace("_", " ") for name in companions)])
    for number, row in enumerate(found.rows[companions[0]]):
        rows = [found.rows[name][number] for name in companions]
        layer = "mean" if row.layer is None else f"{row.layer}{'*' if row.untrained else ''}"
        values = [f"{entry.causal:.3f} / {entry.prefix:.3f}" for entry in rows]
        table.add_row(_WORDS.get(row.region, row.region), layer, *values, end_section=row.layer is None)
    output.table(table)


def _sentence(found: Decomposition, measure: str) -> str:
    """What the mean over the layers of the last region shows, in words."""
    row = [row for row in found.rows[measure] if row.layer is None][-1]
    words = f"{measure.replace('_', ' ')} of the {_WORDS.get(row.region, row.region)}, mean over trained layers"
    parts = {name: row.effects[name] for name in ("gap", "mask_effect", "learned_effect")}
    said = [
        f"{name.replace('_', ' ')} {interval.mean:+.2f} ({'resolved' if interval.resolved else 'not resolved'})"
        for name, interval in parts.items()
    ]
    return f"{words}: {', '.join(said)} over {found.seeds} seeds."


def _cells(row: Row) -> list[str]:
    layer = (
        "mean" if row.layer is None else f"{row.layer}{'*' if row.untrained else ''}{'~' if row.order_matters else ''}"
    )
    if row.layer is None and row.order_matters:
        layer += "~"
    effects = [_interval(row.effects[name]) for name in EFFECTS]
    same = "-" if row.same_mask != row.same_mask else f"{row.same_mask:.2f}"
    return [_WORDS.get(row.region, row.region), layer, f"{row.causal:.2f}", f"{row.prefix:.2f}", *effects, same]


def _interval(interval: Interval) -> str:
    if interval.half_width != interval.half_width:
        return f"{interval.mean:+.2f}"
    return f"{interval.mean:+.2f} ± {interval.half_width:.2f}"


def decomposition_as_dict(found: Decomposition) -> dict[str, Any]:
    """Every measure's rows as plain values."""
    return {
        "arms": {"causal": found.arms[0], "prefix": found.arms[1]},
        "seeds": found.seeds,
        "measures": {
            measure: [
                {
                    "region": row.region,
                    "layer": row.layer,
                    "untrained": row.untrained,
                    "causal": row.causal,
                    "prefix": row.prefix,
                    "same_mask_rms": row.same_mask,
                    **{
                        name: {"mean": interval.mean, "lower": interval.lower, "upper": interval.upper}
                        for name, interval in row.effects.items()
                    },
                }
                for row in rows
            ]
            for measure, rows in found.rows.items()
        },
    }
