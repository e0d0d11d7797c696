"""One measure of the attention matrices by layer: every seed, the mean of each arm and its interval."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import (
    Array,
    common_length,
    finite_array,
    non_empty,
    numbered_layers,
    subset_of_arms,
    untrained_by_layer,
    untrained_label,
)
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

__all__ = ["measure_by_layer"]

HEIGHT: Final = 3.4  # inches
SPREAD: Final = 0.7  # of a layer's width, shared by the series standing side by side in it
MOST_TICKS: Final = 16  # layer numbers that fit side by side at paper width
TICK_LETTERS: Final = 10  # on one line under a layer: a twelfth of paper width
DOT_SIZE: Final = 3.2  # points
SWAPPED_DASHES: Final = (0, (3, 2))  # points
BASELINE_DASHES: Final = ((0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (7, 2)))  # points, one for each baseline


def measure_by_layer(
    values: Mapping[str, ArrayLike],
    *,
    label: str,
    untrained_layers: Collection[int] | Mapping[str, Collection[int]] = (),
    layer_numbers: Sequence[int] | None = None,
    swapped: Mapping[str, ArrayLike] | None = None,
    baselines: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one measure by layer: a dot per seed, the mean of each arm and its 95% t interval over seeds.

    Arms stand side by side within a layer. The line of means leaves out the layers that its arm did not train; their
    values are shown on hatched ground. One seed gives no interval, and the legend says so.

    Args:
        values: arm to "seed layer", the measure averaged over sequences and heads of each seed.
        label: of the vertical axis, with the unit if there is one.
        untrained_layers: places along `layer` whose matrix the loss hardly reaches, from 0: of all arms, or by arm.
        layer_numbers: "layer", their numbers in the model where only some are drawn; 0, 1, ... unless given.
        swapped: arm to "seed layer" like its values: the same Q and K under the other arm's mask, hollow and dashed.
        baselines: name to arm to "layer", up to three names: levels across each layer, dotted in the colour of the arm.
        ax: where to draw; by default the axes of a new figure.

    Returns:
        The axes.

    Raises:
        ConfigurationError: an argument that is empty, not finite or mismatched.
    """
    own = _checked_values(values)
    other = _checked_swapped(swapped or {}, own)
    layers = common_length("values", own, 1, "layers")
    levels = _checked_baselines(baselines or {}, own, layers)
    flags = untrained_by_layer(untrained_layers, list(own), layers)
    numbers = numbered_layers(layer_numbers, layers)
    axes = new_figure(HEIGHT).add_subplot() if ax is None else ax
    styles = arm_styles(own)
    dress(axes, x="layer (0 = next to the embedding)", y=label)
    _draw_ground(axes, numbers, flags, list(own))
    series = [(arm, part) for arm in own for part in (own, other) if arm in part]
    offsets = SPREAD * ((np.arange(len(series)) + 0.5) / len(series) - 0.5)
    for (arm, part), offset in zip(series, offsets.tolist(), strict=True):
        trained = np.array([arm not in flags.get(layer, []) for layer in range(layers)])
        _draw_series(axes, part[arm], offset, trained, arm, styles[arm], is_swapped=part is other)
    for dashes, (name, by_arm) in zip(BASELINE_DASHES, levels.items(), strict=False):
        for arm, heights in by_arm.items():
            ends = np.arange(layers) - 0.5, np.arange(layers) + 0.5
            colour = styles[arm].colour
            axes.hlines(heights, *ends, color=colour, linewidth=1.2, linestyle=dashes, label=f"_{arm} {name}")
    legend_above(axes, [*_keys(own, styles, has_swapped=bool(other)), *_baseline_keys(levels)])
    return axes


def _checked_values(values: Mapping[str, ArrayLike]) -> dict[str, Array]:
    non_empty("values", values, "arm")
    return {arm: finite_array(f"values[{arm!r}]", array, "seed layer") for arm, array in values.items()}


def _checked_swapped(swapped: Mapping[str, ArrayLike], own: Mapping[str, Array]) -> dict[str, Array]:
    subset_of_arms("swapped", swapped, own)
    checked = {arm: finite_array(f"swapped[{arm!r}]", array, "seed layer") for arm, array in swapped.items()}
    for arm, array in checked.items():
        if array.shape != own[arm].shape:
            raise ConfigurationError(
                f"swapped[{arm!r}] must have the shape of its values, {own[arm].shape}, got {array.shape}. "
                "Measure both for the same seeds and layers."
            )
    return checked


def _checked_baselines(
    baselines: Mapping[str, Mapping[str, ArrayLike]], own: Mapping[str, Array], layers: int
) -> dict[str, dict[str, Array]]:
    if len(baselines) > len(BASELINE_DASHES):
        raise ConfigurationError(
            f"baselines must hold at most {len(BASELINE_DASHES)} names, got {', '.join(baselines)}. Draw fewer."
        )
    checked: dict[str, dict[str, Array]] = {}
    for name, by_arm in baselines.items():
        subset_of_arms(f"baselines[{name!r}]", by_arm, own)
        checked[name] = {
            arm: finite_array(f"baselines[{name!r}][{arm!r}]", array, "layer") for arm, array in by_arm.items()
        }
        for arm, array in checked[name].items():
            if array.size != layers:
                raise ConfigurationError(
                    f"baselines[{name!r}][{arm!r}] must hold {layers} layers, got {array.size}. Measure the same layers."
                )
    return checked


def _draw_ground(axes: Axes, numbers: Sequence[int], flags: Mapping[int, list[str]], arms: list[str]) -> None:
    """Layer numbers, and hatched ground under hardly trained layers, named below the axis where nothing is hidden."""
    layers = len(numbers)
    step = -(-layers // MOST_TICKS)
    shown = sorted(
        {layer for layer in range(0, layers, step) if all(abs(layer - flag) >= step for flag in flags)} | {*flags}
    )
    texts = {layer: str(numbers[layer]) for layer in shown}
    for layer, untrained in flags.items():
        axes.axvspan(layer - 0.5, layer + 0.5, facecolor="0.95", edgecolor="0.82", hatch="////", linewidth=0, zorder=0)
        texts[layer] += "\n" + textwrap.fill(untrained_label(untrained, arms), TICK_LETTERS)
    axes.set_xticks(shown, [texts[layer] for layer in shown])
    axes.set_xlim(-0.5, layers - 0.5)


def _draw_series(
    axes: Axes, values: Array, offset: float, trained: NDArray[np.bool_], arm: str, style: ArmStyle, *, is_swapped: bool
) -> None:
    """Dots of the seeds, the mean with its interval, and the line through the means of trained layers."""
    seeds, layers = values.shape
    at, mean = np.arange(layers) + offset, values.mean(axis=0)
    name = f"_{arm} swapped" if is_swapped else f"_{arm}"
    dashes = SWAPPED_DASHES if is_swapped else "solid"
    line = np.where(trained, mean, np.nan)
    axes.plot(at, line, color=style.colour, linewidth=1.2, linestyle=dashes, label=f"{name} mean")
    if seeds > 1:
        half = [mean_interval(column).half_width for column in values.T]
        bars = axes.errorbar(at, mean, yerr=half, fmt="_", markersize=6, capsize=2, elinewidth=1, color=style.colour)
        bars.set_label(f"{name} interval")
    face = "white" if is_swapped else style.colour
    axes.plot(
        np.tile(at, seeds),
        values.ravel(),
        linestyle="none",
        marker=style.marker,
        markersize=DOT_SIZE,
        markerfacecolor=face,
        markeredgecolor=style.colour,
        markeredgewidth=0.6,
        label=f"{name} seeds",
    )


def _keys(own: Mapping[str, Array], styles: Mapping[str, ArmStyle], *, has_swapped: bool) -> list[Key]:
    from matplotlib.lines import Line2D

    handles: list[Key] = [
        Line2D([], [], color=style.colour, linewidth=1.2, marker=style.marker, markersize=DOT_SIZE, label=arm)
        for arm, style in styles.items()
    ]
    drawn, note = interval_notes({arm: array.shape[0] for arm, array in own.items()}, kind="mean, 95% t interval")
    if drawn:
        handles.append(Line2D([], [], color=INK, linestyle="none", marker="o", markersize=DOT_SIZE, label="one seed"))
        handles.append(Line2D([], [], color=INK, linestyle="none", marker="|", markersize=7, label=drawn))
    if has_swapped:
        swapped = Line2D([], [], color=INK, linewidth=1.2, linestyle=SWAPPED_DASHES, marker="o", markersize=DOT_SIZE)
        swapped.set(markerfacecolor="white", label="under the other arm's mask")
        handles.append(swapped)
    return [*handles, *([blank_key(note)] if note else [])]


def _baseline_keys(names: Iterable[str]) -> list[Key]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=INK, linewidth=1.2, linestyle=dashes, label=f"{name} baseline")
        for name, dashes in zip(names, BASELINE_DASHES, strict=False)
    ]
