"""The stored comparison of two arms, as `inspect` shows it: read from the file, nothing computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.cli.console import Output, visible
from rankkit.cli.effect_table import Line, fitted_table
from rankkit.statistics import Interval
from rankkit.store import read_group
from rankkit.studies.words import decimals_of, few_seeds, interval_text, number_text

__all__ = ["show_comparison"]

_EFFECTS: Final = ("gap", "mask_effect", "learned_effect", "interaction")
_HEADLINE: Final = "effective_rank"

_Stored = Mapping[str, NDArray[Any]]


def show_comparison(path: Path, seeds: int, output: Output) -> None:
    """One measure's gap and its parts: a table for each region, with the same-mask control where it is known.

    Args:
        path: of a file with /comparison.
        seeds: of its arms.
        output: where to.
    """
    stored = read_group(path, "comparison")
    measures = [visible(name) for name in stored["measure"]]
    measure = _HEADLINE if _HEADLINE in measures else measures[0]
    has_control = "same_mask" in stored and bool(np.isfinite(stored["same_mask"][measures.index(measure)]).any())
    headings = ["layer", "gap", *(["A/A"] if has_control else []), "mask effect", "learned effect", "interaction"]
    for number, region in enumerate(map(visible, stored["region"])):
        rows = _rows(stored, measures.index(measure), number)
        effects = [effect for _, found, _ in rows for effect in found]
        decimals = decimals_of(effects, [effect.mean for effect in effects])
        lines: list[Line] = [
            (label, partial(_cells, found, [control] if has_control else []), label == "mean")
            for label, found, control in rows
        ]
        title = f"{region.replace('_', ' ')}: {measure.replace('_', ' ')}"
        output.table(fitted_table(title, headings, lines, decimals))
    output.say("± = half of the 95% interval; mean = over trained layers.")
    if has_control:
        output.say("A/A = root mean square difference between two single seeds of one arm.")
    for line in few_seeds(seeds):
        output.say(line)


def _rows(stored: _Stored, measure: int, region: int) -> list[tuple[str, list[Interval], float]]:
    """Label, effects and control of every layer, then of their mean where it is stored."""
    places: list[tuple[str, str, tuple[int, ...]]] = [
        (str(layer), "", (measure, region, number)) for number, layer in enumerate(stored["layer"].tolist())
    ]
    if all(f"mean_{name}" in stored for name in _EFFECTS):
        places.append(("mean", "mean_", (measure, region)))
    return [
        (label, [_interval(stored[f"{prefix}{name}"][where]) for name in _EFFECTS], _control(stored, prefix, where))
        for label, prefix, where in places
    ]


def _interval(bounds: NDArray[np.float64]) -> Interval:
    mean, lower, upper = bounds.tolist()
    return Interval(mean=mean, lower=lower, upper=upper, count=1, kind="stored")


def _control(stored: _Stored, prefix: str, where: tuple[int, ...]) -> float:
    return float(stored[f"{prefix}same_mask"][where]) if f"{prefix}same_mask" in stored else float("nan")


def _cells(effects: Sequence[Interval], control: Sequence[float], decimals: int) -> list[str]:
    gap, *others = (interval_text(effect, decimals) for effect in effects)
    return [gap, *(number_text(value, decimals) for value in control), *others]
