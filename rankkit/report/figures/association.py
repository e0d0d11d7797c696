"""A rank measure against the loss: the course of every seed, or one point for each, and the means where they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, finite_array, non_empty
from rankkit.report.style import INK, Key, arm_styles, blank_key, dress, interval_notes, legend_above, new_figure
from rankkit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["measure_against_loss"]

HEIGHT: Final = 3.4  # inches
LINE_WIDTH: Final = 0.8  # points
MARKER_SIZE: Final = 3.0  # points
CROSS_SIZE: Final = 7  # points, in the legend
MEAN: Final = "mean, 95% t intervals"
DASHES: Final = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
"""Of arms that share a colour: the same arm in several runs."""


def measure_against_loss(
    points: Mapping[str, tuple[str, ArrayLike, ArrayLike]], *, label: str, ax: Axes | None = None
) -> Axes:
    """Draw the measure against the loss: a line for each seed where there are several steps, else points.

    A cross is the mean over seeds at the last step with the 95% t intervals of both. One seed gives none, and the legend
    says so.

    Args:
        points: name on the legend to the arm (its colour), measure and loss, both "seed step".
        label: of the horizontal axis.
        ax: where to draw; by default the axes of a new figure.

    Returns:
        The axes.

    Raises:
        ConfigurationError: nothing to draw, or numbers that are not finite or do not match.
    """
    from matplotlib.lines import Line2D

    non_empty("points", points, "arm")
    tables = {}
    for name, (arm, measure, loss) in points.items():
        x, y = (finite_array(f"points[{name!r}]", values, "seed step") for values in (measure, loss))
        if x.shape != y.shape:
            raise ConfigurationError(
                f"points[{name!r}] must hold a loss for every measure, got shapes {x.shape} and {y.shape}. Give both."
            )
        tables[name] = arm, x, y
    axes = new_figure(HEIGHT).add_subplot() if ax is None else ax
    dress(axes, x=label, y="loss (nats per token)")
    styles, seen, keys = arm_styles([arm for arm, _, _ in tables.values()]), dict[str, int](), list[Key]()
    for name, (arm, x, y) in tables.items():
        number = seen[arm] = seen.get(arm, -1) + 1
        line = DASHES[number % len(DASHES)] if x.shape[1] > 1 else ""
        look: dict[str, Any] = {
            "color": styles[arm].colour,
            "marker": styles[arm].marker,
            "markersize": MARKER_SIZE,
            "linestyle": line,
            "linewidth": LINE_WIDTH,
            "fillstyle": "full" if number == 0 else "none",
        }
        for seed in range(len(x)):
            axes.plot(x[seed], y[seed], label=f"_{name} seed {seed}", **look)
        _draw_mean(axes, name, x[:, -1], y[:, -1], styles[arm].colour)
        keys.append(Line2D([], [], label=name, **look))
    kind = "mean of the last step, 95% t intervals" if any(x.shape[1] > 1 for _, x, _ in tables.values()) else MEAN
    drawn, note = interval_notes({name: len(x) for name, (_, x, _) in tables.items()}, kind=kind)
    if drawn:
        keys.append(Line2D([], [], color=INK, linestyle="", marker="+", markersize=CROSS_SIZE, label=drawn))
    legend_above(axes, [*keys, *([blank_key(note)] if note else [])])
    return axes


def _draw_mean(axes: Axes, name: str, x: Array, y: Array, colour: str) -> None:
    """A cross of two intervals over seeds, "seed" each."""
    if x.size < 2:
        return
    across, up = mean_interval(x), mean_interval(y)
    cross = axes.errorbar(
        across.mean, up.mean, xerr=across.half_width, yerr=up.half_width, fmt="none", ecolor=colour, elinewidth=1.2,
        capsize=2,
    )  # fmt: skip
    cross.set_label(f"_{name} intervals")
