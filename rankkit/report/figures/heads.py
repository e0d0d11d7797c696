"""One measure of every head of one arm, and what the other arm's mask does to it: two maps for each seed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, given_axes, numbered_layers, untrained_by_layer
from rankkit.report.style import (
    INK,
    LABEL_SIZE,
    SMALL_SIZE,
    Key,
    blank_key,
    legend_look,
    new_figure,
    size_in_points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

__all__ = ["measure_by_head"]

VALUES: Final = "cividis"  # lightness rises evenly, also for colour-blind eyes
CHANGES: Final = "PuOr_r"  # white at no change, orange above, purple below: apart in every kind of colour vision
NO_VALUE: Final = "0.8"  # grey: in neither colour map
CELL_HEIGHT: Final = 0.26  # inches, of one layer where there are few
MOST_HEIGHT: Final = 8.5  # inches, of all maps together: a page with its caption
FURNITURE: Final = 1.3  # inches, of legend, titles, labels and colour bars together
MAP_GAP: Final = 0.12  # inches, from one seed's map to the next
TICK_SPACE: Final = 1.5  # of the type size: what the number of a layer or head needs
DOT: Final = 0.4  # of the shorter side of a cell
DOT_SIZES: Final = (1.0, 4.0)  # points: seen in the smallest cell, modest in the largest


def measure_by_head(
    own: ArrayLike,
    change: ArrayLike,
    *,
    changed: ArrayLike,
    label: str,
    mark_label: str,
    seeds: Sequence[int] | None = None,
    layer_numbers: Sequence[int] | None = None,
    head_numbers: Sequence[int] | None = None,
    untrained_layers: Collection[int] = (),
    limits: tuple[float, float] | None = None,
    change_limit: float | None = None,
    ax: Iterable[Axes] | None = None,
) -> tuple[Axes, ...]:
    """Draw one arm's heads: the measure under its own mask, and its change under the other arm's, seed below seed.

    All seeds share their colours, but head h of one seed is no relative of head h of another. Cells without a value are
    grey.

    Args:
        own: "seed layer head", the measure averaged over sequences; nan for a head without a value.
        change: "seed layer head", what putting the other arm's mask on the same Q and K adds; nan like `own`.
        changed: "seed layer head", bool: heads to mark in the map of changes.
        label: of the measure, with its unit if there is one.
        mark_label: what a mark says, for the legend: the test, its correction and its family.
        seeds: "seed", their numbers; 0, 1, ... unless given.
        layer_numbers: "layer", their numbers in the model; 0, 1, ... unless given.
        head_numbers: "head", their numbers in the layer; 0, 1, ... unless given.
        untrained_layers: places along `layer` whose matrices the loss hardly reaches, from 0.
        limits: ends of the colours of `own`; its extremes unless given. Give both arms the same to compare them.
        change_limit: the change at both ends of its colours; the largest unless given.
        ax: two axes for each seed, its values and its changes; by default those of a new figure. Colour bars are added
            below each column, and the legend above, to the top of their figure or subfigure.

    Returns:
        The axes of the maps, two for each seed.

    Raises:
        ConfigurationError: an argument that is empty, infinite, mismatched or outside its range.
    """
    values, changes = _checked("own", own), _checked("change", change)
    marks = np.asarray(changed)
    if changes.shape != values.shape or marks.shape != values.shape or marks.dtype != np.bool_:
        raise ConfigurationError(
            f"change and changed must have the shape of own, {values.shape}, the latter of bool, got {changes.shape} and "
            f"{marks.shape} of {marks.dtype}. Take them from one set of maps."
        )
    numbers = [
        numbered_layers(layer_numbers, values.shape[1]),
        _numbered("head_numbers", head_numbers, values.shape[2]),
        _numbered("seeds", seeds, values.shape[0]),
    ]
    flags = list(untrained_by_layer(untrained_layers, ["all"], values.shape[1]))
    low, high = _limits(values) if limits is None else limits
    most = float(np.nanmax(np.abs(changes), initial=0.0)) if change_limit is None else change_limit
    if not (low <= high and most >= 0):
        raise ConfigurationError(
            f"limits must ascend and change_limit must be at least 0, got {low}, {high} and {most}. Leave them out."
        )
    panels = _new_axes(*values.shape) if ax is None else given_axes(ax, 2 * len(values))
    for row, seed in enumerate(numbers[2]):
        left, right = panels[2 * row : 2 * row + 2]
        first = _draw_map(left, values[row], VALUES, (low, high), numbers, flags)
        second = _draw_map(right, changes[row], CHANGES, (-most or -1.0, most or 1.0), numbers, flags)
        _draw_marks(right, marks[row])
        left.set_ylabel(f"seed {seed}\nlayer", fontsize=LABEL_SIZE, color=INK)
    _label(panels, (first, second), label)
    container = panels[0].figure
    keys = _keys(mark_label, starred=bool(flags), greyed=bool(np.isnan(values).any() or np.isnan(changes).any()))
    width, _ = size_in_points(container)
    container.legend(loc="outside upper left", frameon=False, **legend_look(keys, width))
    return panels


def _checked(name: str, values: ArrayLike) -> Array:
    wanted = "an array of axes (seed layer head)"
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3 or array.size == 0:
        raise ConfigurationError(f"{name} must be {wanted}, not empty, got shape {array.shape}. Pass {wanted}.")
    if np.isinf(array).any():
        raise ConfigurationError(f"{name} must be finite, or nan for no value, got inf. Leave such heads out as nan.")
    return array


def _numbered(name: str, numbers: Sequence[int] | None, count: int) -> list[int]:
    found = list(range(count)) if numbers is None else list(numbers)
    if len(found) != count:
        raise ConfigurationError(f"{name} must hold {count} numbers, got {found}. Give one for each that is drawn.")
    return found


def _limits(values: Array) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _new_axes(seeds: int, layers: int, heads: int) -> tuple[Axes, ...]:
    """Two columns, values and changes; one row for each seed."""
    height = min(CELL_HEIGHT * layers, MOST_HEIGHT / seeds - MAP_GAP)
    figure = new_figure(FURNITURE + seeds * (height + MAP_GAP))
    grid = figure.subplots(seeds, 2, sharex=True, sharey=True, squeeze=False)
    return tuple(grid.ravel())


def _draw_map(
    axes: Axes,
    table: Array,
    colours: str,
    limits: tuple[float, float],
    numbers: Sequence[Sequence[int]],
    flags: Collection[int],
) -> QuadMesh:
    """Cells of one map, as rectangles: an image inside an SVG is neither sharp nor editable."""
    layers, heads = table.shape
    mesh = axes.pcolormesh(
        np.arange(heads + 1) - 0.5,
        np.arange(layers + 1) - 0.5,
        np.ma.masked_invalid(table),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
    )
    axes.set_facecolor(NO_VALUE)
    axes.tick_params(labelsize=SMALL_SIZE, colors=INK, length=2)
    axes.spines[:].set_visible(False)
    width, height = size_in_points(axes)
    starred = [f"{number}*" if place in flags else str(number) for place, number in enumerate(numbers[0])]
    _ticks(axes.set_yticks, starred, height / layers, always=flags)
    _ticks(axes.set_xticks, [str(number) for number in numbers[1]], width / heads, always=())
    return mesh


def _ticks(set_ticks: object, texts: Sequence[str], cell: float, *, always: Collection[int]) -> None:
    """As many numbers as fit beside each other, those of hardly trained layers among them."""
    assert callable(set_ticks)
    step = math.ceil(TICK_SPACE * SMALL_SIZE / cell)
    shown = {place for place in range(0, len(texts), step) if all(abs(place - flag) >= step for flag in always)}
    places = sorted(shown | {*always})
    set_ticks(places, [texts[place] for place in places])


def _draw_marks(axes: Axes, marked: NDArray[np.bool_]) -> None:
    layer, head = np.nonzero(marked)
    width, height = size_in_points(axes)
    size = DOT * min(width / marked.shape[1], height / marked.shape[0])
    axes.plot(
        head,
        layer,
        linestyle="none",
        marker="o",
        markersize=min(max(size, DOT_SIZES[0]), DOT_SIZES[1]),
        markerfacecolor=INK,
        markeredgecolor="white",
        markeredgewidth=0.4,
        label="_changed",
    )


def _label(panels: Sequence[Axes], meshes: tuple[QuadMesh, QuadMesh], label: str) -> None:
    """Titles above, heads and colour bars below, each once for a column."""
    container = panels[0].figure
    titles = ("under its own mask", "change under the other arm's mask")
    for column, (mesh, title) in enumerate(zip(meshes, titles, strict=True)):
        axes = list(panels[column::2])
        axes[0].set_title(title, fontsize=SMALL_SIZE, color=INK, pad=3)
        axes[-1].set_xlabel("head", fontsize=LABEL_SIZE, color=INK)
        bar = container.colorbar(mesh, ax=axes, location="bottom", aspect=40, pad=0.02)
        bar.set_label(label if column == 0 else f"change of {label}", fontsize=SMALL_SIZE, color=INK)
        bar.ax.tick_params(labelsize=SMALL_SIZE, colors=INK, length=2)
        bar.outline.set_visible(False)


def _keys(mark_label: str, *, starred: bool, greyed: bool) -> list[Key]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dot = Line2D([], [], color=INK, linestyle="none", marker="o", markersize=DOT_SIZES[1], label=mark_label)
    dot.set(markeredgecolor="white", markeredgewidth=0.4)
    keys: list[Key] = [dot]
    if greyed:
        keys.append(Patch(facecolor=NO_VALUE, label="no value"))
    if starred:
        keys.append(blank_key("* hardly trained layer"))
    return keys
