"""Extra loss against the number of singular triplets kept: every seed, the mean of each arm and its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, finite_array, given_axes, non_empty, subset_of_arms
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
    blank_key,
    dress,
    interval_notes,
    legend_look,
    new_figure,
    outline_interval,
    outline_key,
    size_in_points,
)
from rankkit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["extra_loss_by_rank"]

X_LABEL: Final = "singular triplets kept, $k$"
Y_LABEL: Final = "extra suffix loss (nats per token)"
PANEL_HEIGHT: Final = 2.0  # inches
LEAST_HEIGHT: Final = 3.6  # inches, of a figure with a single panel
COLUMNS: Final = 3  # panels side by side: the labels of nine ranks need two inches
MOST_LABELS: Final = 5  # ranks that are named under a panel of a grid
SEED_WIDTH: Final = 0.6  # points
MEAN_WIDTH: Final = 1.5  # points
MARKER_SIZE: Final = 3.2  # points
PLAIN_DASHES: Final = (0, (3, 2))  # points
INTERVAL: Final = "95% t interval"


def extra_loss_by_rank(
    extra_loss: Mapping[str, ArrayLike],
    *,
    ranks: Sequence[int],
    panels: Sequence[str] = ("all heads",),
    plain: Mapping[str, ArrayLike] | None = None,
    threshold: float = 0.01,
    ax: Iterable[Axes] | None = None,
) -> tuple[Axes, ...]:
    """Draw what each arm loses when attention keeps k singular triplets, one panel for each set of heads.

    A thin line is one seed, a thick one the mean with its 95% t interval over seeds. The vertical axis is linear between
    plus and minus the threshold and logarithmic beyond, since a cut may also lower the loss by chance.

    Args:
        extra_loss: arm to "seed panel kept_rank", nats per token, of the re-masked cut.
        ranks: "kept_rank", ascending.
        panels: what is cut in each panel, its title.
        plain: arm to arrays like `extra_loss`, of the cut without re-masking; means dashed, intervals as outlines.
        threshold: nats per token, drawn as a line: the functional rank is where a curve falls below it for good.
        ax: one axes per panel; by default those of a new figure.

    Returns:
        The axes of the panels.

    Raises:
        ConfigurationError: an argument that is empty, not finite or mismatched.
    """
    kept = _checked_ranks(ranks)
    if not 0 < threshold < np.inf:
        raise ConfigurationError(f"threshold must be above 0, got {threshold!r}. Give a loss in nats per token.")
    shape = (len(panels), kept.size)
    non_empty("extra_loss", extra_loss, "arm")
    values = {arm: _checked(f"extra_loss[{arm!r}]", table, shape) for arm, table in extra_loss.items()}
    subset_of_arms("plain", plain or {}, values)
    leaking = {arm: _checked(f"plain[{arm!r}]", table, shape) for arm, table in (plain or {}).items()}
    styles = arm_styles(values)
    axes = _new_axes(len(panels), kept) if ax is None else given_axes(ax, len(panels))
    for index, (panel, title) in enumerate(zip(axes, panels, strict=True)):
        _dress_panel(panel, title, threshold)
        for arm, table in values.items():
            _draw_arm(panel, arm, kept, table[:, index], styles[arm])
            if arm in leaking:
                _draw_plain(panel, arm, kept, leaking[arm][:, index], styles[arm])
    _label(axes, _keys(values, styles, threshold, leaking), each=ax is not None)
    return axes


def _checked_ranks(ranks: Sequence[int]) -> Array:
    kept = finite_array("ranks", ranks, "kept_rank")
    if kept[0] < 1 or (np.diff(kept) <= 0).any():
        raise ConfigurationError(f"ranks must ascend from at least 1, got {kept.tolist()!r}. Sort them, each once.")
    return kept


def _checked(name: str, table: ArrayLike, shape: tuple[int, int]) -> Array:
    values = finite_array(name, table, "seed panel kept_rank")
    if values.shape[1:] != shape:
        raise ConfigurationError(
            f"{name} must hold {shape[0]} panels of {shape[1]} ranks for each seed, got {values.shape[1:]}. "
            "Pass one value for every title and rank."
        )
    return values


def _new_axes(count: int, ranks: Array) -> tuple[Axes, ...]:
    """Panels in a grid with shared axes; ranks are named under the lowest of each column."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(max(LEAST_HEIGHT, PANEL_HEIGHT * rows + 0.8))
    grid = figure.add_gridspec(rows, columns)
    panels: list[Axes] = []
    for index in range(count):
        shared = panels[0] if panels else None
        panel = figure.add_subplot(grid[index // columns, index % columns], sharex=shared, sharey=shared)
        panel.tick_params(labelleft=index % columns == 0, labelbottom=index + columns >= count)
        panels.append(panel)
    every = 1 if count == 1 else -(-ranks.size // MOST_LABELS)
    panels[0].set_xscale("log", base=2)
    named = ranks[::-1][::every][::-1]  # n, where nothing is cut, is always named
    panels[0].set_xticks(named, [f"{rank:g}" for rank in named])
    panels[0].minorticks_off()
    return tuple(panels)


def _dress_panel(axes: Axes, title: str, threshold: float) -> None:
    from matplotlib.ticker import FuncFormatter

    dress(axes)
    if axes.get_xscale() != "log":  # setting it anew would take the named ranks off
        axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", linthresh=threshold)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    axes.axhline(threshold, color=MUTED, linewidth=0.9, linestyle=(0, (1.5, 1.5)), zorder=1, label="_threshold")
    axes.set_title(title, fontsize=SMALL_SIZE, color=INK, pad=3)


def _draw_arm(axes: Axes, arm: str, ranks: Array, table: Array, style: ArmStyle) -> None:
    """Seeds, interval and mean of "seed kept_rank"."""
    for seed, values in enumerate(table):
        axes.plot(ranks, values, color=style.colour, linewidth=SEED_WIDTH, alpha=0.6, label=f"_{arm} seed {seed}")
    if len(table) > 1:
        intervals = [mean_interval(column) for column in table.T]
        lower, upper = [interval.lower for interval in intervals], [interval.upper for interval in intervals]
        axes.fill_between(
            ranks, lower, upper, color=style.colour, alpha=BAND_ALPHA, linewidth=0, label=f"_{arm} interval"
        )
    axes.plot(
        ranks, table.mean(axis=0), color=style.colour, linewidth=MEAN_WIDTH, marker=style.marker,
        markersize=MARKER_SIZE, label=f"_{arm} mean",
    )  # fmt: skip


def _draw_plain(axes: Axes, arm: str, ranks: Array, table: Array, style: ArmStyle) -> None:
    """Mean and outlined interval of "seed kept_rank"."""
    if len(table) > 1:
        outline_interval(axes, ranks, table, style.colour, f"_{arm} plain interval")
    axes.plot(ranks, table.mean(axis=0), color=style.colour, linewidth=1, linestyle=PLAIN_DASHES, label=f"_{arm} plain")


def _keys(
    values: Mapping[str, Array], styles: Mapping[str, ArmStyle], threshold: float, plain: Mapping[str, Array]
) -> list[Key]:
    from matplotlib.lines import Line2D

    keys: list[Key] = [
        Line2D([], [], color=style.colour, linewidth=MEAN_WIDTH, marker=style.marker, markersize=MARKER_SIZE, label=arm)
        for arm, style in styles.items()
    ]
    drawn, note = interval_notes({arm: len(table) for arm, table in values.items()}, kind=INTERVAL)
    if drawn:
        keys.append(band_key(drawn, [styles[arm].colour for arm, table in values.items() if len(table) > 1]))
    if plain:
        keys.append(
            Line2D([], [], color=INK, linewidth=1, linestyle=PLAIN_DASHES, label="not re-masked: mixes in the future")
        )
        keys += [outline_key()] if any(len(table) > 1 for table in plain.values()) else []
    keys.append(Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (1.5, 1.5)), label=f"{threshold:g} nats"))
    return [*keys, *([blank_key(note)] if note else [])]


def _label(axes: Sequence[Axes], keys: Sequence[Key], *, each: bool) -> None:
    """Axis labels, on every panel of somebody else's figure or once for ours, and one legend above all panels."""
    container = axes[0].figure
    if each:
        for panel in axes:
            panel.set_xlabel(X_LABEL, fontsize=LABEL_SIZE, color=INK)
            panel.set_ylabel(Y_LABEL, fontsize=LABEL_SIZE, color=INK)
    else:
        container.supxlabel(X_LABEL, fontsize=LABEL_SIZE, color=INK)
        container.supylabel(Y_LABEL, fontsize=LABEL_SIZE, color=INK)
    width, _ = size_in_points(container)
    container.legend(loc="outside upper left", frameon=False, **legend_look(keys, width))
