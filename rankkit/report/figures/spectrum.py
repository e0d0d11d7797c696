"""Mean normalised singular values of every arm, one panel per layer, with both noise floors."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import (
    Array,
    common_length,
    finite_array,
    given_axes,
    non_empty,
    numbered_layers,
    subset_of_arms,
    two,
    untrained_by_layer,
    untrained_label,
)
from rankkit.report.style import (
    BAND_ALPHA,
    INK,
    LABEL_SIZE,
    MUTED,
    SMALL_SIZE,
    ArmStyle,
    Key,
    arm_styles,
    band_key,
    dress,
    legend_look,
    new_figure,
    size_in_points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["spectra_by_layer"]

X_LABEL: Final = "component $i$ (1 = largest)"
Y_LABEL: Final = r"singular value $\sigma_i\,/\,\sigma_1$"
PANEL_HEIGHT: Final = 1.6  # inches
LEAST_HEIGHT: Final = 2.6  # inches, of a figure with a single row
TITLE_LETTERS: Final = 14  # on one line of a title: what the narrowest panel has room for
FLOOR_DASHES: Final = {"arithmetic": (0, (6, 2)), "model": (0, (1.5, 1.5))}  # dash patterns in points
FLOOR_ALPHA: Final = 0.14  # below both floors the two shades add up
BELOW_FLOOR: Final = 30.0  # how far under the lower floor the frame ends: room to write in, no room for noise
ROUNDING: Final = 1e-6  # relative: a mean of values that are exactly 1 may exceed 1 by its own rounding


def spectra_by_layer(
    spectra: Mapping[str, ArrayLike],
    *,
    floors: Mapping[str, ArrayLike],
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    band_label: str = "quantile band",
    untrained_layers: Collection[int] | Mapping[str, Collection[int]] = (),
    layer_numbers: Sequence[int] | None = None,
    ax: Iterable[Axes] | None = None,
) -> tuple[Axes, ...]:
    """Draw mean normalised singular values of every arm, one panel per layer, with both noise floors.

    Values below the arithmetic floor are rounding of the decomposition; values below the model floor may be rounding
    of the attention that the model applied. Both regions are shaded as not resolved, the common one darker. The frame
    ends a factor of 30 below the lower floor, zeros included.

    Args:
        spectra: arm to "layer component", sigma_i / sigma_1 in [0, 1]: a mean or median that the caller made.
        floors: `arithmetic` and `model`, relative to sigma_1, in (0, 1): one number, or "layer".
        bands: arm to (low, high), each "layer component" in [0, 1]: quantiles over seeds, sequences and heads.
        band_label: which quantiles the bands are, for the legend.
        untrained_layers: places along `layer` whose matrix the loss hardly reaches, from 0: of all arms, or by arm.
        layer_numbers: "layer", their numbers in the model where only some are drawn; 0, 1, ... unless given.
        ax: one axes per layer; by default those of a new figure. The legend goes above them all, to the top of their
            figure or subfigure.

    Returns:
        One axes per layer.

    Raises:
        ConfigurationError: an argument that is empty, not finite, mismatched or outside its range, or a missing floor.
    """
    values = _checked_spectra(spectra)
    layers = common_length("spectra", values, 0, "layers")
    levels = _checked_floors(floors, layers)
    limits = {arm: _checked_band(arm, band, values) for arm, band in (bands or {}).items()}
    untrained = untrained_by_layer(untrained_layers, list(values), layers)
    numbers = numbered_layers(layer_numbers, layers)
    styles = arm_styles(values)
    panels = _new_axes(layers) if ax is None else given_axes(ax, layers)
    bottom = min(float(level.min()) for level in levels.values()) / BELOW_FLOOR
    for layer, axes in enumerate(panels):
        _draw_floors(axes, {name: float(level[layer]) for name, level in levels.items()}, bottom)
        _draw_layer(axes, layer, values, limits, styles)
        _draw_title(axes, numbers[layer], untrained.get(layer, []), values)
    _label(panels, _keys(styles, limits, band_label), each=ax is not None)
    return panels


def _checked_spectra(spectra: Mapping[str, ArrayLike]) -> dict[str, Array]:
    non_empty("spectra", spectra, "arm")
    values = {arm: _normalised(f"spectra[{arm!r}]", spectrum) for arm, spectrum in spectra.items()}
    common_length("spectra", values, 1, "components")
    return values


def _normalised(name: str, values: ArrayLike) -> Array:
    array = finite_array(name, values, "layer component")
    if array.min() < 0 or array.max() > 1 + ROUNDING:
        raise ConfigurationError(
            f"{name} must be between 0 and 1, got {array.min():.3g} to {array.max():.3g}. "
            "Divide the singular values by the largest one of their matrix."
        )
    return array


def _checked_band(arm: str, band: tuple[ArrayLike, ArrayLike], values: Mapping[str, Array]) -> tuple[Array, Array]:
    subset_of_arms("bands", [arm], values)
    name = f"bands[{arm!r}]"
    low, high = (
        _normalised(f"{name} {side}", part) for side, part in zip(("low", "high"), two(name, band), strict=True)
    )
    if low.shape != values[arm].shape or high.shape != values[arm].shape:
        raise ConfigurationError(
            f"{name} must be shaped like its spectra, {values[arm].shape}, got {low.shape} and {high.shape}. "
            "Take the quantiles over the same layers and components."
        )
    if (low > high).any():
        raise ConfigurationError(f"{name} must be (low, high), got a low above its high. Swap the two.")
    return low, high


def _checked_floors(floors: Mapping[str, ArrayLike], layers: int) -> dict[str, Array]:
    """Each floor as "layer"."""
    if set(floors) != set(FLOOR_DASHES):
        raise ConfigurationError(
            f"floors must be {' and '.join(FLOOR_DASHES)}, got {sorted(floors)!r}. "
            "A spectrum is not drawn without both."
        )
    levels = {}
    for name in FLOOR_DASHES:
        level = finite_array(f"floors[{name!r}]", floors[name], "" if np.ndim(floors[name]) == 0 else "layer")
        if level.size not in (1, layers) or level.min() <= 0 or level.max() >= 1:
            raise ConfigurationError(
                f"floors[{name!r}] must be one number or one per layer ({layers}), between 0 and 1, "
                f"got {level.tolist()!r}. Divide the floor by sigma_1."
            )
        levels[name] = np.broadcast_to(level, layers)
    return levels


def _new_axes(layers: int) -> tuple[Axes, ...]:
    """A grid of panels with shared axes; tick labels only at the left and at the bottom of each column."""
    columns = next(width for most, width in ((4, layers), (6, 3), (16, 4), (layers, 6)) if layers <= most)
    rows = -(-layers // columns)
    figure = new_figure(max(LEAST_HEIGHT, PANEL_HEIGHT * rows + 0.6))
    grid = figure.add_gridspec(rows, columns)
    panels: list[Axes] = []
    for layer in range(layers):
        shared = panels[0] if panels else None
        axes = figure.add_subplot(grid[layer // columns, layer % columns], sharex=shared, sharey=shared)
        axes.tick_params(labelleft=layer % columns == 0, labelbottom=layer + columns >= layers)
        panels.append(axes)
    return tuple(panels)


def _draw_floors(axes: Axes, levels: Mapping[str, float], bottom: float) -> None:
    dress(axes)
    axes.set_yscale("log")
    axes.set_ylim(bottom, 2)
    for name, level in levels.items():
        axes.axhspan(bottom, level, color=MUTED, alpha=FLOOR_ALPHA, linewidth=0, zorder=0)
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=FLOOR_DASHES[name], zorder=1, label=f"_{name} floor")


def _draw_layer(
    axes: Axes,
    layer: int,
    values: Mapping[str, Array],
    limits: Mapping[str, tuple[Array, Array]],
    styles: Mapping[str, ArmStyle],
) -> None:
    for arm, spectrum in values.items():
        component = np.arange(1, spectrum.shape[1] + 1)
        colour = styles[arm].colour
        if arm in limits:
            low, high = limits[arm]
            axes.fill_between(component, low[layer], high[layer], color=colour, alpha=BAND_ALPHA, linewidth=0)
        marker = styles[arm].marker if component.size == 1 else ""
        axes.plot(component, spectrum[layer], color=colour, linewidth=1.3, marker=marker, label=f"_{arm}")


def _draw_title(axes: Axes, layer: int, untrained: list[str], arms: Collection[str]) -> None:
    flag = untrained_label(untrained, arms)
    title = f"layer {layer}\n{textwrap.fill(flag, TITLE_LETTERS)}".strip()
    axes.set_title(title, fontsize=SMALL_SIZE, color=MUTED if flag else INK, pad=3)


def _keys(styles: Mapping[str, ArmStyle], banded: Iterable[str], band_label: str) -> list[Key]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines: list[Key] = [Line2D([], [], color=style.colour, linewidth=1.3, label=arm) for arm, style in styles.items()]
    swatches = band_key(band_label, [styles[arm].colour for arm in banded])
    floors = [
        Line2D([], [], color=MUTED, linewidth=0.9, linestyle=dashes, label=f"{name} floor")
        for name, dashes in FLOOR_DASHES.items()
    ]
    return [
        *lines,
        *([swatches] if swatches else []),
        *floors,
        Patch(facecolor=MUTED, alpha=2 * FLOOR_ALPHA, label="not resolved"),
    ]


def _label(panels: Sequence[Axes], handles: Sequence[Key], *, each: bool) -> None:
    """Axis labels, on every panel of somebody else's figure or once for ours, and one legend above all panels."""
    container = panels[0].figure
    if each:
        for axes in panels:
            axes.set_xlabel(X_LABEL, fontsize=LABEL_SIZE, color=INK)
            axes.set_ylabel(Y_LABEL, fontsize=LABEL_SIZE, color=INK)
    else:
        container.supxlabel(X_LABEL, fontsize=LABEL_SIZE, color=INK)
        container.supylabel(Y_LABEL, fontsize=LABEL_SIZE, color=INK)
    width, _ = size_in_points(container)
    container.legend(loc="outside upper left", frameon=False, **legend_look(handles, width))
