"""Measures over the standard deviation of the logits: one panel per measure, one line per kind of matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, finite_array, given_axes, non_empty
from rankkit.report.style import (
    BAND_ALPHA,
    INK,
    LABEL_SIZE,
    SMALL_SIZE,
    Key,
    blank_key,
    dress,
    legend_look,
    new_figure,
    size_in_points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["phase_diagram"]

Curve: TypeAlias = tuple[ArrayLike, ArrayLike, ArrayLike]
"""Standard deviations, means, and half widths of their intervals (nan where there is none), "std" each."""
Points: TypeAlias = tuple[ArrayLike, ArrayLike]
"""Standard deviations and heights."""

X_LABEL: Final = "standard deviation of the logits"
COLUMNS: Final = 3
ROW_HEIGHT: Final = 1.75  # inches: a panel a little wider than high at paper width
LINE_WIDTH: Final = 1.2  # points
POINT_SIZE: Final = 4.0  # points
DARKEST, LIGHTEST = 0.0, 0.85  # of the colour scale: its yellow end does not stand out on white
DASHES: Final[Sequence[tuple[float, tuple[float, ...]]]] = ((0, ()), (0, (4, 1.5)), (0, (1, 1)))


def phase_diagram(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    label: str,
    interval: str,
    reference: float | None = None,
    points: Mapping[str, Mapping[str, Points]] | None = None,
    points_label: str = "",
    logarithmic: bool = False,
    ax: Iterable[Axes] | None = None,
) -> tuple[Axes, ...]:
    """Draw curves over a logarithmic axis of standard deviations.

    Colours go from dark to light in the order of the lines, dashes repeat every third, so that neighbours differ in both.

    Args:
        panels: title of the panel to label of the line to its curve. A label keeps its colour in every panel.
        label: of the vertical axes.
        interval: what the bands are, such as `95% t interval over 20 seeds`.
        reference: height of a thin line across every panel.
        points: title to label of a line to points of its colour: crossings, or what somebody else found.
        points_label: what they are.
        logarithmic: vertical axes.
        ax: one axes per panel; by default those of a new figure. The legend of given axes goes above them all, to the
            top of their figure or subfigure.

    Returns:
        The axes, one per panel.

    Raises:
        ConfigurationError: an argument that is empty, not finite or mismatched, or not positive on a logarithmic axis.
    """
    drawn = _checked_panels(panels, logarithmic)
    marked = _checked_points(points or {}, drawn, logarithmic)
    styles = _styles(dict.fromkeys(name for curves in drawn.values() for name in curves))
    axes = _new_axes(len(drawn), label) if ax is None else given_axes(ax, len(drawn))
    for panel, (title, curves) in zip(axes, drawn.items(), strict=True):
        _draw_panel(panel, curves, styles, reference, marked.get(title, {}), logarithmic)
        panel.set_title(title, fontsize=SMALL_SIZE, color=INK, loc="left")
    has_bands = any(np.isfinite(half).any() for curves in drawn.values() for _, _, half in curves.values())
    keys = _keys(styles, interval if has_bands else "", points_label if marked else "")
    if ax is None:
        _legend_behind(axes, keys)
        return axes
    for panel in axes:
        panel.set_xlabel(X_LABEL, fontsize=LABEL_SIZE, color=INK)
        panel.set_ylabel(label, fontsize=LABEL_SIZE, color=INK)
    container = axes[0].figure
    container.legend(loc="outside upper left", frameon=False, **legend_look(keys, size_in_points(container)[0]))
    return axes


def _new_axes(count: int, label: str) -> tuple[Axes, ...]:
    """A grid with room for the legend behind the last panel."""
    rows = -(-(count + 1) // COLUMNS)
    figure = new_figure(rows * ROW_HEIGHT)
    figure.supxlabel(X_LABEL, fontsize=LABEL_SIZE, color=INK)
    figure.supylabel(label, fontsize=LABEL_SIZE, color=INK)
    return tuple(figure.add_subplot(rows, COLUMNS, place + 1) for place in range(count))


def _checked_panels(
    panels: Mapping[str, Mapping[str, Curve]], logarithmic: bool
) -> dict[str, dict[str, tuple[Array, Array, Array]]]:
    non_empty("panels", panels, "panel")
    checked: dict[str, dict[str, tuple[Array, Array, Array]]] = {}
    for title, curves in panels.items():
        non_empty(f"panels[{title!r}]", curves, "line")
        checked[title] = {}
        for name, (stds, values, half) in curves.items():
            where = f"panels[{title!r}][{name!r}]"
            x, y = finite_array(f"stds of {where}", stds, "std"), finite_array(where, values, "std")
            band = np.asarray(half, dtype=np.float64)
            _check(where, x, y, logarithmic)
            if band.shape != y.shape:
                raise ConfigurationError(
                    f"half widths of {where} must have shape {y.shape}, got {band.shape}. Give one per point, or nan."
                )
            checked[title][name] = (x, y, band)
    return checked


def _checked_points(
    points: Mapping[str, Mapping[str, Points]],
    drawn: Mapping[str, Mapping[str, tuple[Array, Array, Array]]],
    logarithmic: bool,
) -> dict[str, dict[str, tuple[Array, Array]]]:
    checked: dict[str, dict[str, tuple[Array, Array]]] = {}
    for title, marks in points.items():
        for name, (stds, heights) in marks.items():
            where = f"points[{title!r}][{name!r}]"
            if name not in drawn.get(title, {}):
                raise ConfigurationError(f"{where} must be of a line that is drawn, got another. Leave it out.")
            x, y = finite_array(f"stds of {where}", stds, "std"), finite_array(where, heights, "std")
            _check(where, x, y, logarithmic)
            checked.setdefault(title, {})[name] = (x, y)
    return checked


def _check(where: str, x: Array, y: Array, logarithmic: bool) -> None:
    if x.shape != y.shape:
        raise ConfigurationError(
            f"{where} must have shape {x.shape} as its stds have, got {y.shape}. Give one per std."
        )
    if x.min() <= 0 or (logarithmic and y.min() <= 0):
        raise ConfigurationError(
            f"{where} must be positive on a logarithmic axis, got {float(min(x.min(), y.min()))!r}. Leave 0 out."
        )


def _styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    from matplotlib import colormaps

    ordered = list(names)
    shades = np.linspace(DARKEST, LIGHTEST, len(ordered))
    return {
        name: {"color": colormaps["viridis"](shade), "linestyle": DASHES[place % len(DASHES)], "linewidth": LINE_WIDTH}
        for place, (name, shade) in enumerate(zip(ordered, shades.tolist(), strict=True))
    }


def _draw_panel(
    axes: Axes,
    curves: Mapping[str, tuple[Array, Array, Array]],
    styles: Mapping[str, dict[str, Any]],
    reference: float | None,
    marks: Mapping[str, tuple[Array, Array]],
    logarithmic: bool,
) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    dress(axes)
    axes.set_xscale("log")
    if logarithmic:
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis) if logarithmic else (axes.xaxis,):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    if reference is not None:
        axes.axhline(reference, color=INK, linewidth=0.8, zorder=1)
    for name, (x, y, half) in curves.items():
        lower = np.maximum(y - half, y.min() / 10) if logarithmic else y - half  # a band may reach below 0
        if np.isfinite(half).any():
            axes.fill_between(x, lower, y + half, color=styles[name]["color"], alpha=BAND_ALPHA, linewidth=0)
        axes.plot(x, y, label=name, **styles[name])
        if reference is not None and logarithmic:  # a panel that hardly leaves the line still needs two ticks
            axes.update_datalim([(x[0], reference / 2), (x[0], reference * 2)])
    for name, (x, y) in marks.items():
        axes.plot(
            x, y, linestyle="none", marker="o", markersize=POINT_SIZE, markerfacecolor=styles[name]["color"],
            markeredgecolor="white", markeredgewidth=0.6, label=f"_{name} points", zorder=4,
        )  # fmt: skip


def _keys(styles: Mapping[str, dict[str, Any]], interval: str, points_label: str) -> list[Key]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Key] = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    if points_label:
        keys.append(Line2D([], [], color=INK, linestyle="none", marker="o", markersize=POINT_SIZE, label=points_label))
    return [*keys, Patch(facecolor=INK, alpha=BAND_ALPHA, label=interval) if interval else blank_key("no intervals")]


def _legend_behind(axes: Sequence[Axes], keys: Sequence[Key]) -> None:
    """In the last cell of the grid."""
    rows = -(-(len(axes) + 1) // COLUMNS)
    cell = axes[0].figure.add_subplot(rows, COLUMNS, rows * COLUMNS)
    cell.set_axis_off()
    cell.legend(handles=[*keys], loc="center", frameon=False, fontsize=SMALL_SIZE)
