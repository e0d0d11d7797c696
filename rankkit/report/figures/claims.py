"""Claims beside each other: the difference of every claim with its interval, what could have been found, and the control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rankkit.report.figures.arguments import finite_array, non_empty
from rankkit.report.style import INK, LABEL_SIZE, MUTED, SMALL_SIZE, Key, dress, legend_look, new_figure, size_in_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ClaimMark", "claims_by_quantity"]

ROW_HEIGHT: Final = 0.42  # inches a claim, its words above its line
PANEL_HEIGHT: Final = 0.55  # inches a panel beside its rows: title and axis
LEGEND_HEIGHT: Final = 0.45  # inches
MEAN_SIZE: Final = 4.5  # points
COLOURS: Final = {
    "supported": "#009E73",
    "contradicted": "#D55E00",
    "not resolved at this scale": MUTED,
    "descriptive, no verdict": MUTED,
    "not trained enough": "#CC79A7",
}
"""By outcome; the words stand beside each line too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMark:
    """One claim as it is drawn; bounds, detectable and control may be nan."""

    label: str
    """The claim."""
    outcome: str
    """What became of it."""
    found_as: str
    """What the numbers are, the same in one panel: `left - right` or `correlation`."""
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


def claims_by_quantity(panels: Mapping[str, tuple[ClaimMark, ...]]) -> tuple[Axes, ...]:
    """Draw every claim as a line, one panel for each quantity.

    Args:
        panels: quantity to its claims, in the order in which they are drawn from the top.

    Returns:
        The axes of a new figure, one per quantity.

    Raises:
        ConfigurationError: nothing to draw, or a difference that is not finite.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    non_empty("panels", panels, "panel")
    for title, marks in panels.items():
        non_empty(f"panels[{title!r}]", {mark.label: mark for mark in marks}, "claim")
        finite_array(f"panels[{title!r}]", [mark.mean for mark in marks], "claim")
    rows = [len(marks) for marks in panels.values()]
    figure = new_figure(LEGEND_HEIGHT + sum(PANEL_HEIGHT + ROW_HEIGHT * count for count in rows))
    axes = figure.subplots(
        len(rows), 1, squeeze=False, height_ratios=[PANEL_HEIGHT + ROW_HEIGHT * count for count in rows]
    )
    for panel, (title, marks) in zip(axes[:, 0], panels.items(), strict=True):
        _draw(panel, title, marks)
    drawn = {mark.outcome for marks in panels.values() for mark in marks}
    keys: list[Key] = [
        Line2D([], [], color=colour, marker="o", markersize=MEAN_SIZE, label=outcome)
        for outcome, colour in COLOURS.items()
        if outcome in drawn
    ]
    keys += [
        Patch(facecolor="0.88", label="below the minimum detectable effect"),
        Line2D([], [], color=INK, linestyle="", marker="|", markersize=9, label="± same-mask control"),
    ]
    figure.legend(loc="outside upper left", frameon=False, **legend_look(keys, size_in_points(figure)[0]))
    return tuple(axes[:, 0])


def _draw(axes: Axes, title: str, marks: tuple[ClaimMark, ...]) -> None:
    dress(axes, x=marks[0].found_as)
    axes.set_title(title, loc="left", fontsize=LABEL_SIZE, color=INK)
    axes.grid(visible=False)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(yticks=[], ylim=(len(marks) - 0.5, -0.6))
    axes.spines["left"].set_visible(False)
    for row, mark in enumerate(marks):
        colour = COLOURS[mark.outcome]
        if np.isfinite(mark.detectable):
            axes.fill_betweenx([row - 0.12, row + 0.12], -mark.detectable, mark.detectable, color="0.88", linewidth=0)
        if np.isfinite(mark.control):
            axes.plot([-mark.control, mark.control], [row, row], color=INK, linestyle="", marker="|", markersize=9)
        if np.isfinite(mark.lower):
            axes.plot([mark.lower, mark.upper], [row, row], color=colour, linewidth=2, label=f"_{mark.label} interval")
        axes.plot([mark.mean], [row], color=colour, marker="o", markersize=MEAN_SIZE, label=f"_{mark.label}")
        words = f"{mark.label}: {mark.outcome}"
        axes.text(
            0, row - 0.2, words, transform=axes.get_yaxis_transform(), fontsize=SMALL_SIZE, color=INK, va="bottom",
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
        )  # fmt: skip
