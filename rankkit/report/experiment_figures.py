"""The figures of a declared experiment: what is averaged here, `figures` draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.report.figures import (
    CellNumbers,
    ClaimMark,
    claims_by_quantity,
    measure_against_loss,
    numbers_by_cell,
    phase_diagram,
)
from rankkit.report.style import save
from rankkit.spectra import MEASURES
from rankkit.statistics import mean_interval
from rankkit.studies.experiments.random_logits import RandomLogits
from rankkit.studies.experiments.random_logits_config import CrossingsConfig, MatricesConfig
from rankkit.studies.experiments.trained import TrainedResult

__all__ = ["draw_random_logits", "draw_trained"]

Array: TypeAlias = NDArray[np.float64]
Panels: TypeAlias = dict[str, dict[str, tuple[Array, Array, Array]]]
Points: TypeAlias = dict[str, dict[str, tuple[list[float], list[float]]]]

FEWEST_STDS = 3  # a line through two points shows nothing


def draw_random_logits(result: RandomLogits, folder: Path) -> list[Path]:
    """One mask over another for every declared pair, and the measures of every family that has expectations.

    Returns:
        The files, each PNG followed by its SVG.
    """
    written = []
    for pair in result.config.crossings:
        panels, points = _ratios(result, pair)
        if panels:
            axes = phase_diagram(
                panels, label=f"{pair.first} / {pair.second}", interval=_interval(result), reference=1.0, points=points,
                points_label="equal means", logarithmic=True,
            )  # fmt: skip
            written += save(axes[0].figure, folder, f"{pair.first}_over_{pair.second}")  # type: ignore[arg-type]
    for family in result.config.matrices:
        points = _expected(result, family)
        if points and len(_positive(family)) >= FEWEST_STDS:
            axes = phase_diagram(
                _measures(result, family, list(points)), label=f"measure ({family.label})", interval=_interval(result),
                points=points, points_label="expected",
            )  # fmt: skip
            name = f"measures_{family.logits}_{family.n}_{family.head_dim}"
            written += save(axes[0].figure, folder, name)  # type: ignore[arg-type]
    return written


def _unit(quantity: str) -> str:
    """Losses have one, ranks and correlations have none."""
    return " (nats per token)" if quantity.startswith(("loss", "extra loss")) else ""


def _interval(result: RandomLogits) -> str:
    return f"95% t interval, {len(result.config.seeds)} seeds"


def _positive(family: MatricesConfig) -> list[int]:
    """Places of the standard deviations that a logarithmic axis has."""
    return [place for place, std in enumerate(family.stds) if std > 0]


def _title(measure: str) -> str:
    return MEASURES[measure].long_name if measure in MEASURES else measure.replace("_", " ")


def _half_widths(by_seed: Array) -> Array:
    return np.array([mean_interval(seeds).half_width for seeds in by_seed])


def _ratios(result: RandomLogits, pair: CrossingsConfig) -> tuple[Panels, Points]:
    """Ratio of the means of two masks; its interval is that of the paired difference over the second mean."""
    panels: Panels = {}
    points: Points = {}
    seeds = result.config.seeds
    for family in result.config.matrices:
        places = _positive(family)
        if not {pair.first, pair.second} <= {*family.masks} or len(places) < FEWEST_STDS:
            continue
        for measure in pair.measures:
            first, second = (result.of(family, measure, mask, seeds)[places] for mask in (pair.first, pair.second))
            below = second.mean(axis=-1)
            curve = np.array(family.stds)[places], first.mean(axis=-1) / below, _half_widths(first - second) / below
            panels.setdefault(_title(measure), {})[family.label] = curve
            std = result.crossing(family, pair, measure, seeds).std
            if std > 0:
                points.setdefault(_title(measure), {})[family.label] = ([std], [1.0])
    return panels, points


def _expected(result: RandomLogits, family: MatricesConfig) -> Points:
    """Expected means at positive standard deviations, by measure and mask."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for claim in result.config.values:
        for row in claim.rows:
            if row.family == family.family and row.std:
                for measure, printed in zip(claim.measures, row.expected, strict=True):
                    found.setdefault(_title(measure), {}).setdefault(row.mask, {})[row.std] = float(printed)
    return {
        title: {mask: ([*marks], [*marks.values()]) for mask, marks in masks.items()} for title, masks in found.items()
    }


def _measures(result: RandomLogits, family: MatricesConfig, titles: list[str]) -> Panels:
    """Means of the measures that have expectations, one line per mask."""
    places, seeds = _positive(family), result.config.seeds
    panels: Panels = {}
    for measure in result.config.measures:
        if _title(measure) in titles:
            by_mask = {mask: result.of(family, measure, mask, seeds)[places] for mask in family.masks}
            panels[_title(measure)] = {
                mask: (np.array(family.stds)[places], values.mean(axis=-1), _half_widths(values))
                for mask, values in by_mask.items()
            }
    return panels


def draw_trained(result: TrainedResult, folder: Path) -> list[Path]:
    """Every number by arm, every claim with its interval, and every correlation; what is not finite is left out.

    Returns:
        The files, each PNG followed by its SVG.
    """
    written = []
    cells: dict[str, dict[str, CellNumbers]] = {}
    for row in result.rows:
        if np.isfinite([*row.by_seed.values()]).all():
            numbers = CellNumbers(arm=row.arm, by_seed=row.by_seed, reference=row.reference)
            cells.setdefault(f"{row.of}{_unit(row.of)}", {})[row.cell] = numbers
    if cells:
        written += save(numbers_by_cell(cells)[0].figure, folder, "numbers")  # type: ignore[arg-type]
    marks: dict[str, tuple[ClaimMark, ...]] = {}
    for verdict in result.verdicts:
        if np.isfinite(verdict.interval.mean):
            mark = ClaimMark(
                label=verdict.claim, outcome=str(verdict.outcome), found_as=f"{verdict.found_as}{_unit(verdict.of)}",
                mean=verdict.interval.mean, lower=verdict.interval.lower, upper=verdict.interval.upper,
                detectable=verdict.detectable,
                control=verdict.same_mask if verdict.correlation is None else math.nan,  # of another scale
            )  # fmt: skip
            marks[verdict.of] = (*marks.get(verdict.of, ()), mark)
    if marks:
        written += save(claims_by_quantity(marks)[0].figure, folder, "claims")  # type: ignore[arg-type]
    for number, found in enumerate(result.associations):
        points = {
            "/".join(cell): (cell[1], found.measure[place], found.loss[place]) for place, cell in enumerate(found.cells)
        }
        if np.isfinite(found.measure).all():
            label = f"{_title(found.config.measure)}, {found.config.region.replace('_', ' ')}"
            axes = measure_against_loss(points, label=label)
            written += save(axes.figure, folder, f"measure_against_loss_{number}")  # type: ignore[arg-type]
    return written
