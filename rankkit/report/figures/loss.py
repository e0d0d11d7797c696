"""Validation loss against the step, and the paired difference of two arms below it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, finite_array, given_axes, non_empty, subset_of_arms, two
from rankkit.report.style import (
    BAND_ALPHA,
    INK,
    MUTED,
    SMALL_SIZE,
    ArmStyle,
    arm_styles,
    band_key,
    blank_key,
    dress,
    interval_notes,
    legend_above,
    new_figure,
    size_in_points,
)
from rankkit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["losses"]

Runs: TypeAlias = dict[int, tuple[Array, Array]]

HEIGHT: Final = 5.0  # inches: half a page with its caption
MEAN_WIDTH: Final = 1.6  # points
SEED_WIDTH: Final = 0.6  # points: thin enough for the mean to stand out
MARKER_SIZE: Final = 3.5  # points
MARKERS: Final = 8  # about so many on each mean
MARGIN_LETTERS: Final = 16  # of a baseline's name on one line: the margin takes an inch from the data
LINE_SPACING: Final = 1.4  # of the type size, from one line to the next
INTERVAL: Final = "95% paired t interval"
NO_PAIR: Final = "no seed was trained in two arms: no paired difference"


def losses(
    curves: Mapping[str, Mapping[int, tuple[ArrayLike, ArrayLike]]],
    *,
    differences: Sequence[tuple[str, str]] | None = None,
    baselines: Mapping[str, float] | None = None,
    task: str = "suffix",
    ax: Iterable[Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Draw the validation loss of every arm, and below it the paired difference of two arms.

    A thin line is one seed, a thick one the mean over the seeds at the steps that all of them have. The difference
    is taken within each seed, then averaged; its band is the 95% paired t interval over seeds, step by step.

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
    pairs = _default_pairs(arms) if differences is None else list(differences)
    gaps = {
        (first, second): _difference(arms, first, second) for first, second in (two("differences", p) for p in pairs)
    }
    levels = {name: float(finite_array(f"baselines[{name!r}]", level, "")) for name, level in (baselines or {}).items()}
    upper, lower = _new_axes() if ax is None else given_axes(ax, 2)
    styles = arm_styles(arms)
    _draw_losses(upper, arms, styles, task)
    _draw_baselines(upper, levels)
    _draw_differences(lower, gaps, styles)
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
        _stack(f"curves[{arm!r}]", checked[arm])
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


def _stack(name: str, runs: Runs) -> tuple[Array, Array]:
    """The steps that every seed has, and the values there: "step", "seed step"."""
    steps = np.array(sorted(set.intersection(*(set(at.tolist()) for at, _ in runs.values()))))
    if steps.size == 0:
        raise ConfigurationError(
            f"{name} must share at least one step over its seeds, got none. Evaluate every seed at the same steps."
        )
    return steps, np.stack([values[np.isin(at, steps)] for at, values in runs.values()])


def _default_pairs(arms: Mapping[str, Runs]) -> list[tuple[str, str]]:
    """The pair under study; none where no seed was trained in both arms, as in one shard of many."""
    names = list(arms)
    if len(names) < 2:
        return []
    first, second = ("unilm", "gpt") if {"unilm", "gpt"} <= set(names) else (names[1], names[0])
    return [(first, second)] if arms[first].keys() & arms[second].keys() else []


def _difference(arms: Mapping[str, Runs], first: str, second: str) -> Runs:
    """First minus second within each common seed, at the steps that both have."""
    name = f"the pair {first}, {second}"
    subset_of_arms("differences", (first, second), arms)
    seeds = sorted(arms[first].keys() & arms[second].keys())
    if not seeds:
        raise ConfigurationError(
            f"{name} must share a seed, got {sorted(arms[first])!r} and {sorted(arms[second])!r}. "
            "Train both arms with the same seeds."
        )
    gaps: Runs = {}
    for seed in seeds:
        (at_first, loss_first), (at_second, loss_second) = arms[first][seed], arms[second][seed]
        steps, of_first, of_second = np.intersect1d(at_first, at_second, assume_unique=True, return_indices=True)
        gaps[seed] = (steps, loss_first[of_first] - loss_second[of_second])
    _stack(name, gaps)
    return gaps


def _new_axes() -> tuple[Axes, Axes]:
    figure = new_figure(HEIGHT)
    grid = figure.add_gridspec(2, 1, height_ratios=(2, 1.2))
    upper = figure.add_subplot(grid[0])
    lower = figure.add_subplot(grid[1], sharex=upper)
    return upper, lower


def _draw_losses(axes: Axes, arms: Mapping[str, Runs], styles: Mapping[str, ArmStyle], task: str) -> None:
    dress(axes, x="optimizer step", y=f"validation {task} loss\n(nats per token)")
    for place, (arm, runs) in enumerate(arms.items()):
        _draw_runs(axes, arm, runs, styles[arm], place / len(arms))
    legend_above(axes, [*_line_keys({arm: styles[arm] for arm in arms}), *_seed_keys(arms)])


def _draw_runs(axes: Axes, label: str, runs: Runs, style: ArmStyle, phase: float) -> None:
    """One thin line per seed and a thick one for their mean.

    A few markers on the mean show which arms a line stands for where several coincide; `phase` in [0, 1) keeps those
    of different arms apart.
    """
    for seed, (steps, values) in runs.items():
        axes.plot(steps, values, color=style.colour, linewidth=SEED_WIDTH, alpha=0.6, label=f"_{label} seed {seed}")
    steps, values = _stack(label, runs)
    every = max(1, steps.size // MARKERS)
    axes.plot(
        steps,
        values.mean(axis=0),
        color=style.colour,
        linewidth=MEAN_WIDTH,
        marker=style.marker,
        markersize=MARKER_SIZE,
        markevery=(int(phase * every), every),
        label=f"_{label} mean",
    )


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


def _draw_differences(axes: Axes, gaps: Mapping[tuple[str, str], Runs], styles: Mapping[str, ArmStyle]) -> None:
    labelled = {f"{first} \N{MINUS SIGN} {second}": (styles[first], runs) for (first, second), runs in gaps.items()}
    what = next(iter(labelled)) if len(labelled) == 1 else "paired difference"
    dress(axes, x="optimizer step", y=f"{what}\n(nats per token)")
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    if not labelled:
        axes.set_ylim(-1, 1)
        axes.set_yticks([0])
        axes.text(0.5, 0.6, NO_PAIR, transform=axes.transAxes, ha="center", fontsize=SMALL_SIZE, color=INK)
        return
    for place, (label, (style, runs)) in enumerate(labelled.items()):
        if len(runs) > 1:
            _draw_band(axes, label, runs, style)
        _draw_runs(axes, label, runs, style, place / len(labelled))
    pairs = {label: style for label, (style, _) in labelled.items()}
    drawn, note = interval_notes({label: len(runs) for label, (_, runs) in labelled.items()}, kind=INTERVAL)
    band = [band_key(drawn, [style.colour for style, runs in labelled.values() if len(runs) > 1])] if drawn else []
    legend_above(axes, [*_line_keys(pairs), *band, *([blank_key(note)] if note else [])])


def _draw_band(axes: Axes, label: str, runs: Runs, style: ArmStyle) -> None:
    steps, values = _stack(label, runs)
    intervals = [mean_interval(column) for column in values.T]
    lower, upper = [interval.lower for interval in intervals], [interval.upper for interval in intervals]
    axes.fill_between(
        steps, lower, upper, color=style.colour, alpha=BAND_ALPHA, linewidth=0, label=f"_{label} interval"
    )


def _line_keys(styles: Mapping[str, ArmStyle]) -> list[Artist]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [], [], color=style.colour, linewidth=MEAN_WIDTH, marker=style.marker, markersize=MARKER_SIZE, label=label
        )
        for label, style in styles.items()
    ]


def _seed_keys(arms: Mapping[str, Runs]) -> list[Artist]:
    """What thin and thick mean; nothing to tell apart where every arm has one seed."""
    from matplotlib.lines import Line2D

    if all(len(runs) == 1 for runs in arms.values()):
        return []
    widths = {"one seed": SEED_WIDTH, "mean over seeds": MEAN_WIDTH}
    return [Line2D([], [], color=INK, linewidth=width, label=label) for label, width in widths.items()]
