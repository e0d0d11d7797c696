"""Several subjects beside each other: one table of all, and a series where the same arms come in several sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rankkit.report.figures import measure_by_step
from rankkit.report.page.answer import headline_row
from rankkit.report.page.blocks import (
    Block,
    Cell,
    Forest,
    ForestPanel,
    ForestRow,
    Section,
    Table,
    Text,
    interval_cell,
)
from rankkit.report.page.colours import arm_variables
from rankkit.report.page.drawings import Drawing, drawing
from rankkit.report.page.subject import Subject
from rankkit.studies.decomposition import Decomposition, Row
from rankkit.studies.words import decimals_of_rows, interval_text, region_words, spoken

__all__ = ["Side", "overview"]

_PARTS = {"gap": "gap", "mask_effect": "mask effect", "learned_effect": "learned effect", "interaction": "interaction"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One subject as the others see it."""

    subject: Subject
    measure: str
    found: Decomposition | None
    """Of the measure at the last step."""

    @property
    def row(self) -> Row | None:
        """What answers for it."""
        return None if self.found is None else headline_row(self.found, self.measure)

    @property
    def size(self) -> int | None:
        """Non-embedding parameters of its models; None without a run."""
        losses = self.subject.losses
        return None if losses is None else losses.arms[0].non_embedding_parameters


def overview(sides: Sequence[Side]) -> Section:
    """What compares the subjects.

    Args:
        sides: at least two.
    """
    return Section(key="all", title="Side by side", blocks=tuple(_blocks(sides)))


def _blocks(sides: Sequence[Side]) -> Iterator[Block]:
    yield Text(
        "Differences between rows are of different models, texts or settings: no interval here is of such a difference."
    )
    yield _table(sides)
    series = _series(sides)
    if len(series) > 1:
        yield Text(f"A series of {len(series)} sizes, by non-embedding parameters N.", "note")
        yield from _pictures(series)


def _table(sides: Sequence[Side]) -> Table:
    headings = (
        "target", "arms", "non-embedding N", "seeds", "losses (nats per token)", "loss difference", "measure",
        "part of the matrix", "of each arm", *_PARTS.values(),
    )  # fmt: skip
    return Table(caption="All targets", headings=headings, rows=tuple(_line(side) for side in sides))


def _line(side: Side) -> tuple[Cell | str, ...]:
    losses, numbers, row = side.subject.losses, side.subject.numbers, side.row
    arms = [arm.arm for arm in losses.arms] if losses else [arm.name for arm in numbers.arms] if numbers else []
    seeds = len(losses.arms[0].seeds) if losses else len(numbers.arms[0].seeds) if numbers else 0
    difference: Cell | str = "-"
    if losses is not None and losses.differences:
        difference = interval_cell(losses.differences[0].interval, 4)
    return (
        side.subject.name,
        ", ".join(arms),
        "-" if side.size is None else f"{side.size:,}",
        str(seeds),
        " / ".join(f"{arm.loss:.4f}" for arm in losses.arms) if losses else "-",
        difference,
        spoken(side.measure),
        *_effects(row),
    )


def _effects(row: Row | None) -> list[Cell | str]:
    if row is None:
        return ["-"] * (2 + len(_PARTS))
    decimals = decimals_of_rows([row])
    own = " / ".join(interval_text(interval, decimals, sign="") for interval in row.own)
    return [region_words(row.region), own, *(interval_cell(row.effects[name], decimals) for name in _PARTS)]


def _series(sides: Sequence[Side]) -> list[Side]:
    """Subjects that compare the same arms in the same measure and region, sizes rising; empty where two share a size."""
    having = [side for side in sides if side.size is not None and side.row is not None and side.found is not None]
    first = next(iter(having), None)
    alike = [side for side in having if first is not None and _kind(side) == _kind(first)]
    ordered = sorted(alike, key=lambda side: side.size or 0)
    sizes = [side.size for side in ordered]
    return ordered if len(set(sizes)) == len(sizes) else []


def _kind(side: Side) -> tuple[object, ...]:
    assert side.found is not None, "it has a comparison"
    assert side.row is not None, "it has a row"
    return side.found.arms, side.measure, side.row.region


def _pictures(series: Sequence[Side]) -> Iterator[Block]:
    """Effects by size, and where every size has the same number of seeds the measure and the loss of each arm."""
    rows = [side.row for side in series if side.row is not None]
    decimals = decimals_of_rows(rows)
    panels = tuple(
        ForestPanel(
            title=title,
            rows=tuple(_forest_row(side, row, name, decimals) for side, row in zip(series, rows, strict=True)),
        )
        for name, title in _PARTS.items()
    )
    words = f"{spoken(series[0].measure)}, {region_words(rows[0].region)}"
    gaps = [interval_text(row.effects["gap"], decimals) for row in rows]
    said = "; ".join(f"{_short(side)}: gap {gap}" for side, gap in zip(series, gaps, strict=True))
    yield Forest(
        key="series",
        panels=panels,
        says=f"{words}, by size. {said}.",
        caption=f"{words.capitalize()}: gap and its parts by size, means over trained layers with their 95% intervals.",
    )
    yield from _levels(series, words)


def _forest_row(side: Side, row: Row, name: str, decimals: int) -> ForestRow:
    control = row.control.pooled_between_means if name == "gap" else math.nan
    return ForestRow(
        label=_short(side),
        interval=row.effects[name],
        control=control,
        text=interval_text(row.effects[name], decimals),
        strong=True,
    )


def _short(side: Side) -> str:
    """N to three digits."""
    size = side.size or 0
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:.3g}{letter}"
    return str(size)


def _levels(series: Sequence[Side], words: str) -> Iterator[Drawing]:
    assert series[0].found is not None, "a series has comparisons"
    arms = series[0].found.arms
    sizes = [side.size or 0 for side in series]
    tables = {
        f"{words}, mean over trained layers": {arm: [_ranks(side, arm) for side in series] for arm in arms},
        "validation loss (nats per token)": {arm: [_loss(side, arm) for side in series] for arm in arms},
    }
    for number, (label, by_arm) in enumerate(tables.items()):
        lengths = {len(seeds) for columns in by_arm.values() for seeds in columns}
        if len(lengths) != 1 or 0 in lengths:
            continue
        values = {arm: np.array(columns).T for arm, columns in by_arm.items()}
        if not all(np.isfinite(table).all() for table in values.values()):
            continue
        axes = measure_by_step(values, steps=sizes, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("non-embedding parameters N")
        said = "; ".join(
            f"{arm} {', '.join(f'{mean:.4g}' for mean in table.mean(axis=0))}" for arm, table in values.items()
        )
        yield drawing(
            axes,
            f"series{number}x",
            says=f"{label} against N = {', '.join(f'{size:,}' for size in sizes)}: {said}.",
            caption=f"{label.capitalize()}, against non-embedding parameters.",
            arm_colours=arm_variables(arms),
        )


def _ranks(side: Side, arm: str) -> list[float]:
    """The measure of every seed, mean over trained layers."""
    assert side.subject.numbers is not None, "it was compared"
    assert side.row is not None, "it was compared"
    table = side.subject.numbers.arm(arm).measured(side.measure).by_step(side.row.region, "own")
    return [] if table is None else [float(value) for value in table[:, -1]]


def _loss(side: Side, arm: str) -> list[float]:
    losses = side.subject.losses
    found = [] if losses is None else [one for one in losses.arms if one.arm == arm]
    return [float(value) for value in found[0].by_seed] if found else []
