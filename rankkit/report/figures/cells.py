"""Numbers of arms beside each other: every seed, the mean with its interval, and the model that only counts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rankkit.report.figures.arguments import finite_array, given_axes, non_empty
from rankkit.report.style import (
    BAND_ALPHA,
    INK,
    MUTED,
    Key,
    arm_styles,
    band_key,
    blank_key,
    dress,
    interval_notes,
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
LABEL_LETTERS: Final = 30  # on one line beside a panel
N_GRAM_DASHES: Final = (0, (1, 1.5))  # points


@dataclass(frozen=True, slots=True, kw_only=True)
class CellNumbers:
    """One arm in one panel."""

    arm: str
    """Decides its colour."""
    by_seed: Mapping[int, float]
    """By seed."""
    reference: float = math.nan
    """Of the n-gram model on the same targets; nan where there is none."""


def numbers_by_cell(
    panels: Mapping[str, Mapping[str, CellNumbers]], *, ax: Iterable[Axes] | None = None
) -> tuple[Axes, ...]:
    """Draw a panel for every quantity: a dot for each seed, a line from arm to arm, mean and 95% t interval.

    Args:
        panels: quantity, with its unit if it has one, to arms by their names on the axis.
        ax: one axes per quantity; by default those of a new figure. The legend goes above them all, to the top of their
            figure or subfigure.

    Returns:
        The axes, one per quantity.

    Raises:
        ConfigurationError: nothing to draw, or a number that is not finite.
    """
    non_empty("panels", panels, "panel")
    for title, cells in panels.items():
        non_empty(f"panels[{title!r}]", cells, "arm")
        for name, cell in cells.items():
            finite_array(f"panels[{title!r}][{name!r}]", [*cell.by_seed.values()], "seed")
        arm_styles(cell.arm for cell in cells.values())
    axes = _new_axes(len(panels)) if ax is None else given_axes(ax, len(panels))
    for panel, (quantity, cells) in zip(axes, panels.items(), strict=True):
        _draw(panel, quantity, cells)
    figure = axes[0].figure
    keys = _keys([(name, cell) for cells in panels.values() for name, cell in cells.items()])
    figure.legend(loc="outside upper left", frameon=False, **legend_look(keys, size_in_points(figure)[0]))
    return axes


def _new_axes(count: int) -> tuple[Axes, ...]:
    grid = new_figure(LEGEND_HEIGHT + PANEL_HEIGHT * count).subplots(count, 1, squeeze=False)
    return tuple(grid[:, 0])


def _draw(axes: Axes, quantity: str, cells: Mapping[str, CellNumbers]) -> None:
    dress(axes, y=textwrap.fill(quantity, LABEL_LETTERS))
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
            axes.fill_between(
                ends, interval.lower, interval.upper, color=style.colour, alpha=BAND_ALPHA, linewidth=0,
                label=f"_{name} interval",
            )  # fmt: skip
        if math.isfinite(cell.reference):
            axes.plot(ends, [cell.reference] * 2, color=MUTED, linewidth=1, linestyle=N_GRAM_DASHES)
    axes.set_xticks(range(len(cells)), list(cells), rotation=0 if len(cells) <= MOST_LEVEL else 30, ha="center")


def _keys(cells: Sequence[tuple[str, CellNumbers]]) -> list[Key]:
    from matplotlib.lines import Line2D

    keys: list[Key] = [
        Line2D([], [], color=MUTED, linewidth=0.6, marker="o", markersize=SEED_SIZE, label="one seed"),
        Line2D([], [], color=INK, linewidth=2, label="mean over seeds"),
    ]
    drawn, note = interval_notes(_fewest_seeds(cells), kind="95% t interval")
    keys += [band_key(drawn, [INK])] if drawn else []
    keys += [blank_key(note)] if note else []
    if any(math.isfinite(cell.reference) for _, cell in cells):
        keys.append(Line2D([], [], color=MUTED, linewidth=1, linestyle=N_GRAM_DASHES, label="n-gram model"))
    return keys


def _fewest_seeds(cells: Sequence[tuple[str, CellNumbers]]) -> dict[str, int]:
    """By name on the axis, over the panels."""
    counts: dict[str, int] = {}
    for name, cell in cells:
        counts[name] = min(len(cell.by_seed), counts.get(name, len(cell.by_seed)))
    return counts
