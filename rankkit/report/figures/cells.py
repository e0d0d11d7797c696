"""Numbers of arms beside each other: every seed, the mean with its interval, and the model that only counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rankkit.report.figures.arguments import finite_array, non_empty
from rankkit.report.style import (
    INK,
    LABEL_SIZE,
    MUTED,
    Key,
    arm_styles,
    dress,
    legend_look,
    new_figure,
    size_in_points,
)
from rankkit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CellNumbers", "numbers_by_cell"]

PANEL_HEIGHT: Final = 2.1  # inches
LEGEND_HEIGHT: Final = 0.4  # inches
SEED_SIZE: Final = 3.0  # points
MEAN_WIDTH: Final = 0.25  # of the distance between two arms, each side
MOST_LEVEL: Final = 6  # arms whose names fit side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class CellNumbers:
    """One arm in one panel."""

    arm: str
    """Decides its colour."""
    by_seed: Mapping[int, float]
    """By seed."""
    reference: float = math.nan
    """Of the n-gram model on the same targets; nan where there is none."""


def numbers_by_cell(panels: Mapping[str, Mapping[str, CellNumbers]]) -> tuple[Axes, ...]:
    """Draw a panel for every quantity: a dot for each seed, a line from arm to arm, mean and 95% t interval.

    Args:
        panels: quantity to arms by their names on the axis.

    Returns:
        The axes of a new figure, one per quantity.

    Raises:
        ConfigurationError: nothing to draw, or a number that is not finite.
    """
    from matplotlib.lines import Line2D

    non_empty("panels", panels, "panel")
    for title, cells in panels.items():
        non_empty(f"panels[{title!r}]", cells, "arm")
        for name, cell in cells.items():
            finite_array(f"panels[{title!r}][{name!r}]", [*cell.by_seed.values()], "seed")
    figure = new_figure(LEGEND_HEIGHT + PANEL_HEIGHT * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for panel, (title, cells) in zip(axes, panels.items(), strict=True):
        _draw(panel, title, cells)
    keys: list[Key] = [
        Line2D([], [], color=MUTED, linewidth=0.6, marker="o", markersize=SEED_SIZE, label="one seed"),
        Line2D([], [], color=INK, linewidth=2, label="mean, 95% t interval over seeds"),
    ]
    if any(math.isfinite(cell.reference) for cells in panels.values() for cell in cells.values()):
        keys.append(Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)), label="n-gram model"))
    figure.legend(loc="outside upper left", frameon=False, **legend_look(keys, size_in_points(figure)[0]))
    return tuple(axes)


def _draw(axes: Axes, title: str, cells: Mapping[str, CellNumbers]) -> None:
    dress(axes)
    axes.set_title(title, loc="left", fontsize=LABEL_SIZE, color=INK)
    styles = arm_styles([cell.arm for cell in cells.values()])
    for seed in sorted({seed for cell in cells.values() for seed in cell.by_seed}):
        line = [cell.by_seed.get(seed, math.nan) for cell in cells.values()]
        axes.plot(range(len(cells)), line, color=MUTED, linewidth=0.5, alpha=0.6, label=f"_seed {seed}")
    for place, (name, cell) in enumerate(cells.items()):
        style, values = styles[cell.arm], np.array([*cell.by_seed.values()])
        axes.plot(
            np.full(values.size, place), values, color=style.colour, linestyle="", marker=style.marker,
            markersize=SEED_SIZE, label=f"_{name} seeds",
        )  # fmt: skip
        interval, ends = mean_interval(values), [place - MEAN_WIDTH, place + MEAN_WIDTH]
        axes.plot(ends, [interval.mean] * 2, color=style.colour, linewidth=2, label=f"_{name} mean")
        if math.isfinite(interval.lower):
            axes.fill_between(ends, interval.lower, interval.upper, color=style.colour, alpha=0.15, linewidth=0)
        if math.isfinite(cell.reference):
            axes.plot(ends, [cell.reference] * 2, color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)))
    axes.set_xticks(range(len(cells)), list(cells), rotation=0 if len(cells) <= MOST_LEVEL else 30, ha="center")
