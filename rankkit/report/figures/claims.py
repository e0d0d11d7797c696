"""Claims beside each other: the difference of every claim with its interval, what could have been found, and the control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import finite_array, given_axes, non_empty
from rankkit.report.style import (
    INK,
    LABEL_SIZE,
    MUTED,
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

__all__ = ["ClaimMark", "claims_by_quantity"]

ROW_HEIGHT: Final = 0.42  # inches a claim, its words above its line
PANEL_HEIGHT: Final = 0.55  # inches a panel beside its rows: title and axis
LEGEND_HEIGHT: Final = 0.45  # inches
MEAN_SIZE: Final = 4.5  # points
LOOKS: Final[Mapping[str, dict[str, Any]]] = {
    "supported": {"marker": "o", "color": INK, "fillstyle": "full"},
    "contradicted": {"marker": "X", "color": INK, "fillstyle": "full"},
    "not resolved at this scale": {"marker": "o", "color": MUTED, "fillstyle": "none"},
    "descriptive, no verdict": {"marker": "D", "color": MUTED, "fillstyle": "none"},
    "not trained enough": {"marker": "v", "color": MUTED, "fillstyle": "none"},
}
"""By outcome, in ink and grey: every colour is an arm's. The words stand beside each line too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMark:
    """One claim as it is drawn; bounds, detectable and control may be nan."""

    label: str
    """The claim."""
    outcome: str
    """What became of it."""
    found_as: str
    """What the numbers are, with their unit, the same in one panel: `left - right (nats per token)`, `correlation`."""
    mean: float
    """What was found."""
    lower: float
    """Of the 95% interval."""
    upper: float
    """The same."""
    detectable: float
    """Minimum detectable effect."""
    control: float
    """Same-mask control."""


def claims_by_quantity(
    panels: Mapping[str, tuple[ClaimMark, ...]], *, ax: Iterable[Axes] | None = None
) -> tuple[Axes, ...]:
    """Draw every claim as a line, one panel for each quantity.

    Args:
        panels: quantity to its claims, in the order in which they are drawn from the top.
        ax: one axes per quantity; by default those of a new figure. The legend goes above them all, to the top of their
            figure or subfigure.

    Returns:
        The axes, one per quantity.

    Raises:
        ConfigurationError: nothing to draw, a difference that is not finite, or an outcome that no claim has.
    """
    non_empty("panels", panels, "panel")
    for title, marks in panels.items():
        non_empty(f"panels[{title!r}]", {mark.label: mark for mark in marks}, "claim")
        finite_array(f"panels[{title!r}]", [mark.mean for mark in marks], "claim")
        unknown = sorted({mark.outcome for mark in marks} - LOOKS.keys())
        if unknown:
            raise ConfigurationError(
                f"outcome must be one of {', '.join(LOOKS)}, got {', '.join(unknown)}. Take it from the verdict."
            )
    axes = _new_axes([len(marks) for marks in panels.values()]) if ax is None else given_axes(ax, len(panels))
    for panel, (title, marks) in zip(axes, panels.items(), strict=True):
        _draw(panel, title, marks)
    figure = axes[0].figure
    keys = _keys([mark for marks in panels.values() for mark in marks])
    figure.legend(loc="outside upper left", frameon=False, **legend_look(keys, size_in_points(figure)[0]))
    return axes


def _new_axes(rows: Sequence[int]) -> tuple[Axes, ...]:
    """Panels as high as their claims need."""
    heights = [PANEL_HEIGHT + ROW_HEIGHT * count for count in rows]
    grid = new_figure(LEGEND_HEIGHT + sum(heights)).subplots(len(rows), 1, squeeze=False, height_ratios=heights)
    return tuple(grid[:, 0])


def _keys(marks: Sequence[ClaimMark]) -> list[Key]:
    """What is drawn, and nothing else."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    drawn = {mark.outcome for mark in marks}
    keys: list[Key] = [
        Line2D([], [], markersize=MEAN_SIZE, label=outcome, **look)
        for outcome, look in LOOKS.items()
        if outcome in drawn
    ]
    if any(np.isfinite(mark.lower) for mark in marks):
        keys.append(Line2D([], [], color=INK, linewidth=2, label="95% interval"))
    if any(np.isfinite(mark.detectable) for mark in marks):
        keys.append(Patch(facecolor="0.88", label="below the minimum detectable effect"))
    if any(np.isfinite(mark.control) for mark in marks):
        keys.append(Line2D([], [], color=INK, linestyle="", marker="|", markersize=9, label="± same-mask control"))
    without = any(np.isnan(mark.lower) for mark in marks)
    return [*keys, *([blank_key("no line: no interval")] if without else [])]


def _draw(axes: Axes, title: str, marks: tuple[ClaimMark, ...]) -> None:
    dress(axes, x=marks[0].found_as)
    axes.set_title(title, loc="left", fontsize=LABEL_SIZE, color=INK)
    axes.grid(visible=False)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(yticks=[], ylim=(len(marks) - 0.5, -0.6))
    axes.spines["left"].set_visible(False)
    for row, mark in enumerate(marks):
        look = LOOKS[mark.outcome]
        if np.isfinite(mark.detectable):
            axes.fill_betweenx([row - 0.12, row + 0.12], -mark.detectable, mark.detectable, color="0.88", linewidth=0)
        if np.isfinite(mark.control):
            axes.plot([-mark.control, mark.control], [row, row], color=INK, linestyle="", marker="|", markersize=9)
        if np.isfinite(mark.lower):
            bounds = [mark.lower, mark.upper]
            axes.plot(bounds, [row, row], color=look["color"], linewidth=2, label=f"_{mark.label} interval")
        axes.plot([mark.mean], [row], markersize=MEAN_SIZE, label=f"_{mark.label}", **look)
        words = f"{mark.label}: {mark.outcome}"
        axes.text(
            0, row - 0.2, words, transform=axes.get_yaxis_transform(), fontsize=SMALL_SIZE, color=INK, va="bottom",
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
        )  # fmt: skip
