"""Validation loss against the step, and the paired difference of two arms below it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, finite_array, given_axes, non_empty, two
from rankkit.report.figures.paired import (
    Runs,
    common_points,
    differences_of,
    draw_arms,
    draw_differences,
    two_panels,
)
from rankkit.report.style import MUTED, SMALL_SIZE, arm_styles, dress, size_in_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["losses"]

X_LABEL: Final = "optimizer step"
MARGIN_LETTERS: Final = 16  # of a baseline's name on one line: the margin takes an inch from the data
LINE_SPACING: Final = 1.4  # of the type size, from one line to the next


def losses(
    curves: Mapping[str, Mapping[int, tuple[ArrayLike, ArrayLike]]],
    *,
    differences: Sequence[tuple[str, str]] | None = None,
    baselines: Mapping[str, float] | None = None,
    task: str = "suffix",
    ax: Iterable[Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Draw the validation loss of every arm, and below it the paired difference of two arms.

    A thin line is one seed, a thick one the mean over the seeds at the steps that all of them have, its band the 95% t
    interval over seeds, step by step. The difference is taken within each seed, then averaged; its band is the paired
    interval.

    Args:
        curves: arm to seed to (steps "step", ascending; loss "step" of the predicted tokens, nats per token).
        differences: pairs (a, b) drawn as a - b in the colour of a, over the seeds that both have; by default
            (unilm, gpt) where both are there, otherwise the second arm minus the first.
        baselines: name to loss in nats per token, drawn as labelled horizontal lines.
        task: what is predicted, `suffix` or `masked`; the same for all arms.
        ax: two axes, for the losses and the differences; by default those of a new figure.

    Returns:
        The axes of the losses and the axes of the differences.

    Raises:
        ConfigurationError: an argument that is empty, not finite or mismatched, or a pair that shares no seed or step.
    """
    arms = _checked_curves(curves)
    gaps = differences_of(arms, differences)
    levels = {name: float(finite_array(f"baselines[{name!r}]", level, "")) for name, level in (baselines or {}).items()}
    upper, lower = two_panels() if ax is None else given_axes(ax, 2)
    styles = arm_styles(arms)
    dress(upper, x=X_LABEL, y=f"validation {task} loss\n(nats per token)")
    draw_arms(upper, arms, styles)
    _draw_baselines(upper, levels)
    draw_differences(lower, gaps, styles, x=X_LABEL)
    if ax is None:
        upper.label_outer()
    return upper, lower


def _checked_curves(curves: Mapping[str, Mapping[int, tuple[ArrayLike, ArrayLike]]]) -> dict[str, Runs]:
    non_empty("curves", curves, "arm")
    checked: dict[str, Runs] = {}
    for arm, runs in curves.items():
        if not runs:
            raise ConfigurationError(f"curves[{arm!r}] must hold at least one seed, got none. Leave the arm out.")
        checked[arm] = {seed: _checked_curve(f"curves[{arm!r}][{seed!r}]", runs[seed]) for seed in sorted(runs)}
        common_points(f"curves[{arm!r}]", checked[arm])
    return checked


def _checked_curve(name: str, curve: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    steps, loss = two(name, curve)
    at, values = finite_array(f"{name} steps", steps, "step"), finite_array(f"{name} loss", loss, "step")
    if at.size != values.size:
        raise ConfigurationError(
            f"{name} must have one loss per step, got {at.size} steps and {values.size} losses. Pass them together."
        )
    if (np.diff(at) <= 0).any():
        raise ConfigurationError(f"{name} steps must ascend, got {at.tolist()!r}. Sort them and keep each once.")
    return at, values


def _draw_baselines(axes: Axes, levels: Mapping[str, float]) -> None:
    """Dashed lines, each named in the right margin; names of lines that are close move apart."""
    from scipy.optimize import isotonic_regression

    if not levels:
        return
    ordered = sorted(levels.items(), key=lambda item: item[1])
    texts = [textwrap.fill(f"{name} {level:.2f}", MARGIN_LETTERS) for name, level in ordered]
    for _, level in ordered:
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (5, 2)), zorder=1)
    low, high = axes.get_ylim()
    wanted = (np.array([level for _, level in ordered]) - low) / (high - low)
    lines = np.array([text.count("\n") + 1 for text in texts])
    line_height = LINE_SPACING * SMALL_SIZE / size_in_points(axes)[1]
    least = np.concatenate([[0], np.cumsum((lines[1:] + lines[:-1]) / 2 * line_height)])
    # Nearest places in least squares that keep the order and the gaps.
    places = isotonic_regression(wanted - least).x + least
    for text, place in zip(texts, places.tolist(), strict=True):
        axes.text(1.01, place, text, transform=axes.transAxes, va="center", fontsize=SMALL_SIZE, color=MUTED)
