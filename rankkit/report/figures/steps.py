"""One measure of the attention matrices through training: every seed, the mean of each arm and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, finite_array, non_empty, subset_of_arms
from rankkit.report.style import (
    BAND_ALPHA,
    INK,
    ArmStyle,
    Key,
    arm_styles,
    band_key,
    blank_key,
    dress,
    interval_notes,
    legend_above,
    new_figure,
    outline_interval,
    outline_key,
)
from rankkit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["measure_by_step"]

HEIGHT: Final = 3.4  # inches
MEAN_WIDTH: Final = 1.6  # points
SEED_WIDTH: Final = 0.6  # points: thin enough for the mean to stand out
MARKER_SIZE: Final = 3.5  # points
MOST_MARKED: Final = 25  # checkpoints that markers can stand on without touching
SWAPPED_DASHES: Final = (0, (3, 2))  # points


def measure_by_step(
    values: Mapping[str, ArrayLike],
    *,
    steps: Sequence[int],
    label: str,
    swapped: Mapping[str, ArrayLike] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one measure against the training step: a thin line per seed, a thick one for the mean of each arm.

    The band is the 95% t interval over seeds at each step by itself. One seed gives no interval, and the legend says so.

    Args:
        values: arm to "seed step", the measure averaged over sequences, heads and trained layers of each seed.
        steps: "step", ascending, the same for every arm.
        label: of the vertical axis, with the unit if there is one.
        swapped: arm to "seed step" like its values: the same Q and K under the other arm's mask; its mean is dashed, its
            interval an outline.
        ax: where to draw; by default the axes of a new figure.

    Returns:
        The axes.

    Raises:
        ConfigurationError: an argument that is empty, not finite or mismatched, or steps that do not ascend.
    """
    non_empty("values", values, "arm")
    at = finite_array("steps", steps, "step")
    if (np.diff(at) <= 0).any():
        raise ConfigurationError(f"steps must ascend, got {at.tolist()!r}. Sort them and keep each once.")
    own = {arm: _checked(f"values[{arm!r}]", array, at.size) for arm, array in values.items()}
    subset_of_arms("swapped", swapped or {}, own)
    other = {arm: _checked(f"swapped[{arm!r}]", array, at.size) for arm, array in (swapped or {}).items()}
    axes = new_figure(HEIGHT).add_subplot() if ax is None else ax
    dress(axes, x="optimizer step", y=label)
    styles = arm_styles(own)
    for arm, table in own.items():
        _draw_arm(axes, arm, at, table, styles[arm])
    for arm, table in other.items():
        if len(table) > 1:
            outline_interval(axes, at, table, styles[arm].colour, f"_{arm} swapped interval")
        axes.plot(
            at, table.mean(axis=0), color=styles[arm].colour, linewidth=1.2, linestyle=SWAPPED_DASHES,
            label=f"_{arm} swapped mean",
        )  # fmt: skip
    legend_above(axes, _keys(own, styles, other))
    return axes


def _checked(name: str, values: ArrayLike, steps: int) -> Array:
    array = finite_array(name, values, "seed step")
    if array.shape[1] != steps:
        raise ConfigurationError(f"{name} must hold {steps} steps, got {array.shape[1]}. Give one value for each step.")
    return array


def _draw_arm(axes: Axes, arm: str, steps: Array, table: Array, style: ArmStyle) -> None:
    if len(table) > 1:
        for number, seed in enumerate(table):
            axes.plot(steps, seed, color=style.colour, linewidth=SEED_WIDTH, alpha=0.6, label=f"_{arm} seed {number}")
        intervals = [mean_interval(column) for column in table.T]
        bounds = ([interval.lower for interval in intervals], [interval.upper for interval in intervals])
        axes.fill_between(steps, *bounds, color=style.colour, alpha=BAND_ALPHA, linewidth=0, label=f"_{arm} interval")
    axes.plot(
        steps,
        table.mean(axis=0),
        color=style.colour,
        linewidth=MEAN_WIDTH,
        marker=style.marker if steps.size <= MOST_MARKED else "",
        markersize=MARKER_SIZE,
        label=f"_{arm} mean",
    )


def _keys(own: Mapping[str, Array], styles: Mapping[str, ArmStyle], other: Mapping[str, Array]) -> list[Key]:
    from matplotlib.lines import Line2D

    handles: list[Key] = [
        Line2D([], [], color=style.colour, linewidth=MEAN_WIDTH, marker=style.marker, markersize=MARKER_SIZE, label=arm)
        for arm, style in styles.items()
    ]
    drawn, note = interval_notes({arm: len(table) for arm, table in own.items()}, kind="95% t interval")
    if drawn:
        handles.append(Line2D([], [], color=INK, linewidth=SEED_WIDTH, label="one seed"))
        handles.append(band_key(drawn, [styles[arm].colour for arm, table in own.items() if len(table) > 1]))
    if other:
        handles.append(
            Line2D([], [], color=INK, linewidth=1.2, linestyle=SWAPPED_DASHES, label="under the other arm's mask")
        )
        handles += [outline_key()] if any(len(table) > 1 for table in other.values()) else []
    return [*handles, *([blank_key(note)] if note else [])]
