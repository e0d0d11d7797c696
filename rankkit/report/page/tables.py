"""What stands in tables: losses, effects by layer and measure, what was not resolved, what was compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rankkit.report.page.blocks import Cell, Table, interval_cell, number_cell
from rankkit.report.page.effects import MeanEffects
from rankkit.report.page.numbers import ArmNumbers
from rankkit.statistics import Interval, resolvable_by
from rankkit.studies.decomposition import EFFECTS, Decomposition, Row
from rankkit.studies.losses import LossComparison
from rankkit.studies.words import decimals_of, decimals_of_rows, number_text, region_words, spoken

__all__ = [
    "certificate_table",
    "difference_table",
    "hash_table",
    "layer_table",
    "loss_table",
    "matrix_table",
    "mean_table",
    "measures_table",
    "position_table",
    "unresolved_table",
]

_LOSS_DECIMALS = 4  # nats per token, as `train-pair` prints them
_POSITION_BINS = 8  # of the target positions


def loss_table(comparison: LossComparison, task: str) -> Table:
    """Every arm's loss with its error, beside what uniform attention and counting reach."""
    rows: list[tuple[Cell | str, ...]] = [
        (
            arm.arm,
            str(len(arm.seeds)),
            number_cell(arm.loss, _LOSS_DECIMALS),
            number_cell(arm.loss_error, _LOSS_DECIMALS),
            number_cell(float(arm.uniform_attention.mean()), _LOSS_DECIMALS),
            "yes" if arm.is_trained_enough else "no",
            f"{arm.parameters:,}",
            f"{arm.tokens:,}",
            f"{arm.compute:.2e}",
        )
        for arm in comparison.arms
        if arm.task == task
    ]
    rows += [
        (f"{name.replace('_', ' ')} model", "", number_cell(value, _LOSS_DECIMALS), "", "", "", "", "", "")
        for name, value in comparison.references[task].items()
    ]
    headings = (
        "arm", "seeds", "loss (nats per token)", "standard error", "with uniform attention", "trained enough",
        "parameters", "tokens read", "compute 6ND",
    )  # fmt: skip
    where = f"prefix of {comparison.prefix_length} tokens" if task == "suffix" else "every predicted token hidden"
    caption = f"{task} loss on {comparison.sequences} held-out sequences of {comparison.documents} documents, {where}"
    return Table(caption=caption.capitalize(), headings=headings, rows=tuple(rows))


def difference_table(comparison: LossComparison) -> Table | None:
    """The paired difference of every two arms; None where there are none."""
    if not comparison.differences:
        return None
    rows = tuple(
        (
            f"{one.arms[0]} - {one.arms[1]}",
            " and ".join(one.declared) or "nothing",
            interval_cell(one.interval, _LOSS_DECIMALS),
            one.interval.words(_LOSS_DECIMALS),
            number_cell(one.same_mask, _LOSS_DECIMALS),
            number_cell(resolvable_by(one.interval), _LOSS_DECIMALS),
        )
        for one in comparison.differences
    )
    headings = (
        "difference", "differ in", "mean ± half of the 95% interval", "95% interval", "same-mask control (rms)",
        "smallest that could be resolved",
    )  # fmt: skip
    return Table(caption="Paired differences of losses, nats per token", headings=headings, rows=rows)


def position_table(comparison: LossComparison, task: str) -> Table:
    """The loss along the sequence, in bins of target positions: mean over seeds, and their standard error."""
    arms = [arm for arm in comparison.arms if arm.task == task]
    count = arms[0].by_position.shape[1]
    bins = [part for part in np.array_split(np.arange(count), _POSITION_BINS) if part.size]
    rows: list[tuple[Cell | str, ...]] = []
    for part in bins:
        cells: list[Cell | str] = [f"{part[0] + 1} to {part[-1] + 1}" if part.size > 1 else str(part[0] + 1)]
        for arm in arms:
            by_seed = [float(np.nanmean(row)) for row in arm.by_position[:, part] if np.isfinite(row).any()]
            mean = float(np.mean(by_seed)) if by_seed else math.nan
            error = float(np.std(by_seed, ddof=1) / np.sqrt(len(by_seed))) if len(by_seed) > 1 else math.nan
            text = number_text(mean, 3) if math.isnan(error) else f"{mean:.3f} (standard error {error:.3f})"
            cells.append(Cell(text, (f"{mean:.8g}",)))
        rows.append(tuple(cells))
    what = "target of the suffix, from its first" if task == "suffix" else "position"
    return Table(
        caption=f"Loss by {what}, nats per token", headings=(what, *(arm.arm for arm in arms)), rows=tuple(rows)
    )


def layer_table(found: Decomposition, measure: str, region: str) -> Table:
    """Both arms and the parts of their gap, a row for each layer and for their mean."""
    rows = [row for row in found.rows[measure] if row.region == region]
    decimals = decimals_of_rows(rows)
    control = ["A/A"] if found.seeds > 1 else []
    headings = ("layer", *found.arms, "gap", *control, "mask effect", "learned effect", "interaction")
    return Table(
        caption=f"{spoken(measure)}, {region_words(region)}",
        headings=headings,
        rows=tuple(_layer_row(row, decimals, control=bool(control)) for row in rows),
        strong=tuple(number for number, row in enumerate(rows) if row.layer is None),
    )


def _layer_row(row: Row, decimals: int, *, control: bool) -> tuple[Cell | str, ...]:
    label = "mean" if row.layer is None else f"{row.layer}{'*' if row.untrained else ''}"
    own = [interval_cell(interval, decimals, sign="") for interval in row.own]
    gap, *others = (interval_cell(row.effects[name], decimals) for name in EFFECTS)
    between = " / ".join(number_text(value, decimals) for value in row.control.between_means)
    return f"{label}{'~' if row.order_matters else ''}", *own, gap, *([between] if control else []), *others


def mean_table(arms: Sequence[ArmNumbers], measure: str, region: str) -> Table | None:
    """The mean of every arm by layer, under its own mask and the other one; None without a value."""
    headings, columns = ["layer"], list[Mapping[int, float]]()
    for arm in arms:
        if region not in arm.labels("region") or measure not in arm.description.measures:
            continue
        one = arm.measured(measure)
        for applied in arm.labels("applied_mask"):
            means = one.by_layer(region, str(applied))
            if means is not None:
                by_layer = np.nanmean(means, axis=0) if np.isfinite(means).any() else means.mean(axis=0)
                headings.append(arm.name if applied == "own" else f"{arm.name}, other mask")
                columns.append(dict(zip(arm.labels("layer"), by_layer.tolist(), strict=True)))
    layers = sorted({layer for column in columns for layer in column})
    if not columns:
        return None
    rows = [_line(str(layer), [number_cell(column.get(layer, math.nan), 2) for column in columns]) for layer in layers]
    caption = f"{spoken(measure)}, {region_words(region)}, mean over heads, sequences and seeds"
    return Table(caption=caption, headings=tuple(headings), rows=tuple(rows))


def measures_table(effects: Sequence[MeanEffects], region: str) -> Table | None:
    """The parts of the gap in every measure, in one region at the last step; None where there are none."""
    last = max((one.step for one in effects), default=0)
    chosen = [one for one in effects if one.region == region and one.step == last]
    if not chosen:
        return None
    rows = tuple(_line(spoken(one.measure), _effect_cells(one)) for one in chosen)
    caption = f"All measures, {region_words(region)}: mean over trained layers, ± half of the 95% interval"
    return Table(caption=caption, headings=("measure", "gap", "A/A of single seeds", *_PARTS), rows=rows)


def _line(label: str, cells: Sequence[Cell]) -> tuple[Cell | str, ...]:
    return (label, *cells)


_PARTS = ("mask effect", "learned effect", "interaction")


def _effect_cells(one: MeanEffects) -> list[Cell]:
    """Gap, same-mask control and the other effects."""
    intervals = list(one.effects.values())
    decimals = decimals_of(intervals, [interval.mean for interval in intervals])
    gap, *others = (interval_cell(one.effects[name], decimals) for name in EFFECTS)
    return [gap, number_cell(one.same_mask, decimals), *others]


def unresolved_table(comparison: LossComparison | None, found: Decomposition | None, measure: str) -> Table | None:
    """What has an interval that includes 0, and what could have been found; None where there is nothing of the kind."""
    rows = [*_losses_unresolved(comparison), *_effects_unresolved(found, measure)]
    headings = ("what", "mean", "95% interval", "seeds", "smallest that these seeds could have resolved")
    if not rows:
        return None
    return Table(caption="Differences whose 95% interval includes 0", headings=headings, rows=tuple(rows))


def _losses_unresolved(comparison: LossComparison | None) -> Iterable[tuple[Cell | str, ...]]:
    for one in comparison.differences if comparison else ():
        if not one.interval.resolved:
            yield _unresolved(f"{one.task} loss, {one.arms[0]} - {one.arms[1]}", one.interval, len(one.seeds), 4)


def _effects_unresolved(found: Decomposition | None, measure: str) -> Iterable[tuple[Cell | str, ...]]:
    for row in found.means(measure) if found else ():
        decimals = decimals_of_rows([row])
        for name in EFFECTS[:3]:
            if not row.effects[name].resolved:
                what = f"{spoken(measure)}, {region_words(row.region)}: {name.replace('_', ' ')}"
                yield _unresolved(what, row.effects[name], found.seeds if found else 0, decimals)


def _unresolved(what: str, interval: Interval, seeds: int, decimals: int) -> tuple[Cell | str, ...]:
    least = number_cell(resolvable_by(interval), decimals) if seeds > 1 else "nothing: one seed"
    return what, number_cell(interval.mean, decimals, sign="+"), interval.words(decimals), str(seeds), least


def matrix_table(arms: Sequence[ArmNumbers]) -> Table:
    """How many matrices stand behind the numbers, how they were measured and what became of them."""
    rows = []
    for arm in arms:
        one = arm.description
        counts = {**{axis: len(labels) for axis, labels in one.labels.items()}, "seed": len(arm.seeds)}
        sizes = ", ".join(f"{count} {axis.replace('_', ' ')}{'s' * (count != 1)}" for axis, count in counts.items())
        rows.append(
            (
                one.name,
                str(one.attributes["mask"]),
                str(one.attributes["objective"]),
                sizes,
                ", ".join(f"{count:,} {method}" for method, count in one.methods.items()),
                ", ".join(f"{count:,} {status}" for status, count in one.statuses.items()),
                f"{one.resolved_fraction:.1%} / {one.resolved_model_fraction:.1%}",
            )
        )
    headings = (
        "group", "mask", "objective", "labels on its axes", "matrices by method", "by status",
        "singular values above the arithmetic / model floor",
    )  # fmt: skip
    return Table(caption="What was measured", headings=headings, rows=tuple(rows))


def certificate_table(certificate: Mapping[str, Any]) -> Table:
    """For every two arms under every seed: in what they differ, what was compared, and whether it matched."""
    rows = tuple(
        (
            " and ".join(map(str, pair["arms"])),
            str(pair["seed"]),
            "; ".join(f"{name}: {_both(values)}" for name, values in pair["fields"].items()),
            " and ".join(map(str, pair["declared"])),
            ", ".join(map(str, pair["compared"])),
            str(len(pair.get("same", ()))),
            ", ".join(map(str, pair["steps"])),
            "yes" if pair["matched"] else "no: " + "; ".join(map(str, pair["problems"])),
        )
        for pair in certificate["pairs"]
    )
    headings = (
        "arms", "seed", "settings that differ", "declared to differ", "compared", "settings that are the same",
        "at steps", "matched",
    )  # fmt: skip
    return Table(caption="Every two arms, seed by seed", headings=headings, rows=rows)


def _both(values: object) -> str:
    return " / ".join(map(str, values)) if isinstance(values, list) else str(values)


def hash_table(certificate: Mapping[str, Any]) -> Table:
    """What every unit hashed of what it consumed, at its last checkpoint."""
    rows = []
    for unit in certificate["units"]:
        steps = sorted(unit["checkpoints"], key=lambda step: (len(str(step)), str(step)))
        last: Mapping[str, Any] = {"consumed": {}, "weights_sha256": ""}
        if steps:
            last = unit["checkpoints"][steps[-1]]
        chains = "; ".join(
            f"{str(name).replace('_', ' ')} {str(digest)[:16]}" for name, digest in last["consumed"].items()
        )
        rows.append(
            (
                str(unit["arm"]),
                str(unit["seed"]),
                str(steps[-1]) if steps else "",
                chains,
                str(last["weights_sha256"])[:16],
            )
        )
    return Table(
        caption="SHA-256 (16 digits) of what entered every unit's loss up to its last checkpoint, and of its weights there",
        headings=("arm", "seed", "step", "consumed", "weights"),
        rows=tuple(rows),
    )
