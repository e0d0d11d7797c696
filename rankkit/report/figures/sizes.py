"""A measure or loss over model sizes: every seed, the mean of each arm and its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, finite_array, non_empty
from rankkit.report.style import (
    INK,
    ArmStyle,
    Key,
    arm_styles,
    blank_key,
    dress,
    interval_notes,
    legend_above,
    new_figure,
)
from rankkit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["measure_by_size"]

HEIGHT: Final = 3.4  # inches
DOT_SIZE: Final = 3.2  # points
MEAN_WIDTH: Final = 1.2  # points
ASIDE: Final = 0.02  # of the axis: how far arms of one size stand apart
MARGIN: Final = 1.6  # beyond the smallest and largest size: with it one of 1, 2 and 5 is always in the frame


def measure_by_size(values: Mapping[str, Mapping[int, ArrayLike]], *, label: str, ax: Axes | None = None) -> Axes:
    """Draw one quantity against the size of the model: a dot per seed, the mean of each arm and its 95% t interval.

    Arms of one size stand side by side, a little off it. One seed gives no interval, and the legend says so.

    Args:
        values: arm to non-embedding parameters to "seed": a measure averaged over sequences, heads and layers, or a loss.
        label: of the vertical axis, with the unit if there is one.
        ax: where to draw; by default the axes of a new figure.

    Returns:
        The axes.

    Raises:
        ConfigurationError: nothing to draw, numbers that are not finite, or a size below 1.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    arms = _checked_values(values)
    styles = arm_styles(arms)
    sizes = [size for by_size in arms.values() for size in by_size]
    low, high = min(sizes) / MARGIN, max(sizes) * MARGIN
    axes = new_figure(HEIGHT).add_subplot() if ax is None else ax
    dress(axes, x="non-embedding parameters", y=label)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for number, (arm, by_size) in enumerate(arms.items()):
        factor = (high / low) ** (ASIDE * (number - (len(arms) - 1) / 2))
        _draw_arm(axes, arm, by_size, factor, styles[arm])
    legend_above(axes, _keys(arms, styles))
    return axes


def _checked_values(values: Mapping[str, Mapping[int, ArrayLike]]) -> dict[str, dict[int, Array]]:
    """Sizes ascending."""
    non_empty("values", values, "arm")
    arms = {}
    for arm, by_size in values.items():
        non_empty(f"values[{arm!r}]", {str(size): seeds for size, seeds in by_size.items()}, "size")
        if min(by_size) < 1:
            raise ConfigurationError(
                f"values[{arm!r}] must be of sizes of at least 1, got {min(by_size)!r}. Count parameters."
            )
        arms[arm] = {
            size: finite_array(f"values[{arm!r}][{size!r}]", by_size[size], "seed") for size in sorted(by_size)
        }
    return arms


def _draw_arm(axes: Axes, arm: str, by_size: Mapping[int, Array], factor: float, style: ArmStyle) -> None:
    """Dots of the seeds, the mean with its interval, and the line through the means."""
    at = factor * np.array([*by_size], dtype=np.float64)
    intervals = [mean_interval(seeds) for seeds in by_size.values()]
    mean = np.array([interval.mean for interval in intervals])
    axes.plot(at, mean, color=style.colour, linewidth=MEAN_WIDTH, label=f"_{arm} mean")
    several = np.array([seeds.size > 1 for seeds in by_size.values()])
    if several.any():
        half = np.array([interval.half_width for interval in intervals])
        bars = axes.errorbar(
            at[several], mean[several], yerr=half[several], fmt="_", markersize=6, capsize=2, elinewidth=1,
            color=style.colour,
        )  # fmt: skip
        bars.set_label(f"_{arm} interval")
    axes.plot(
        np.repeat(at, [seeds.size for seeds in by_size.values()]),
        np.concatenate([*by_size.values()]),
        linestyle="none",
        marker=style.marker,
        markersize=DOT_SIZE,
        color=style.colour,
        label=f"_{arm} seeds",
    )


def _keys(arms: Mapping[str, Mapping[int, Array]], styles: Mapping[str, ArmStyle]) -> list[Key]:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    short = EngFormatter(places=1, sep="")
    keys: list[Key] = [
        Line2D([], [], color=style.colour, linewidth=MEAN_WIDTH, marker=style.marker, markersize=DOT_SIZE, label=arm)
        for arm, style in styles.items()
    ]
    counts = {f"{arm} {short(size)}": seeds.size for arm, by_size in arms.items() for size, seeds in by_size.items()}
    drawn, note = interval_notes(counts, kind="mean, 95% t interval")
    if drawn:
        keys.append(Line2D([], [], color=INK, linestyle="none", marker="o", markersize=DOT_SIZE, label="one seed"))
        keys.append(Line2D([], [], color=INK, linestyle="none", marker="|", markersize=7, label=drawn))
    return [*keys, *([blank_key(note)] if note else [])]
