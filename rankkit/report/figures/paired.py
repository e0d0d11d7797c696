"""Curves of several seeds with their interval, and below them the paired difference of two arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, subset_of_arms, two
from rankkit.report.style import (
    BAND_ALPHA,
    INK,
    SMALL_SIZE,
    ArmStyle,
    Key,
    band_key,
    blank_key,
    dress,
    interval_notes,
    legend_above,
    new_figure,
)
from rankkit.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Runs", "common_points", "default_pairs", "differences_of", "draw_arms", "draw_differences", "two_panels"]

Runs: TypeAlias = dict[int, tuple[Array, Array]]
"""Seed to (places "point", ascending; values "point")."""

HEIGHT: Final = 5.0  # inches: half a page with its caption
MEAN_WIDTH: Final = 1.6  # points
SEED_WIDTH: Final = 0.6  # points: thin enough for the mean to stand out
MARKER_SIZE: Final = 3.5  # points
MARKERS: Final = 8  # about so many on each mean
NO_PAIR: Final = "no seed was trained in two arms: no paired difference"


def common_points(name: str, runs: Runs, /) -> tuple[Array, Array]:
    """The places that every seed has, and the values there: "point", "seed point".

    Raises:
        ConfigurationError: there is no such place.
    """
    places = np.array(sorted(set.intersection(*(set(at.tolist()) for at, _ in runs.values()))))
    if places.size == 0:
        raise ConfigurationError(
            f"{name} must share at least one step over its seeds, got none. Evaluate every seed at the same steps."
        )
    return places, np.stack([values[np.isin(at, places)] for at, values in runs.values()])


def default_pairs(arms: Mapping[str, Runs], /) -> list[tuple[str, str]]:
    """The pair under study; none where no seed was trained in both arms, as in one shard of many."""
    names = list(arms)
    if len(names) < 2:
        return []
    first, second = ("unilm", "gpt") if {"unilm", "gpt"} <= set(names) else (names[1], names[0])
    return [(first, second)] if arms[first].keys() & arms[second].keys() else []


def differences_of(arms: Mapping[str, Runs], pairs: Sequence[tuple[str, str]] | None, /) -> dict[tuple[str, str], Runs]:
    """First minus second of each pair, within each seed and at the places that both have.

    Args:
        arms: what is subtracted.
        pairs: by default the pair under study.

    Raises:
        ConfigurationError: not a pair, an unknown arm, or a pair that shares no seed or place.
    """
    chosen = default_pairs(arms) if pairs is None else [two("differences", pair) for pair in pairs]
    return {(first, second): _difference(arms, first, second) for first, second in chosen}


def _difference(arms: Mapping[str, Runs], first: str, second: str) -> Runs:
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
        (at_first, of_first), (at_second, of_second) = arms[first][seed], arms[second][seed]
        places, one, other = np.intersect1d(at_first, at_second, assume_unique=True, return_indices=True)
        gaps[seed] = (places, of_first[one] - of_second[other])
    common_points(name, gaps)
    return gaps


def two_panels() -> tuple[Axes, Axes]:
    """The axes of a new figure: curves above, differences below."""
    figure = new_figure(HEIGHT)
    grid = figure.add_gridspec(2, 1, height_ratios=(2, 1.2))
    upper = figure.add_subplot(grid[0])
    lower = figure.add_subplot(grid[1], sharex=upper)
    return upper, lower


def draw_arms(axes: Axes, arms: Mapping[str, Runs], styles: Mapping[str, ArmStyle], /) -> None:
    """Every seed of each arm, the mean and its 95% t interval, with a legend above."""
    _draw_curves(axes, arms, styles, kind="95% t interval", widths=True)


def draw_differences(
    axes: Axes, gaps: Mapping[tuple[str, str], Runs], styles: Mapping[str, ArmStyle], /, *, x: str
) -> None:
    """Differences in the colour of their first arm, around a line at zero.

    Args:
        axes: where.
        gaps: pair to differences, nats per token.
        styles: of the arms.
        x: label of the horizontal axis.
    """
    labelled = {f"{first} \N{MINUS SIGN} {second}": runs for (first, second), runs in gaps.items()}
    looks = {label: styles[first] for label, (first, _) in zip(labelled, gaps, strict=True)}
    what = next(iter(labelled)) if len(labelled) == 1 else "paired difference"
    dress(axes, x=x, y=f"{what}\n(nats per token)")
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    if not labelled:
        axes.set_ylim(-1, 1)
        axes.set_yticks([0])
        axes.text(0.5, 0.6, NO_PAIR, transform=axes.transAxes, ha="center", fontsize=SMALL_SIZE, color=INK)
        return
    _draw_curves(axes, labelled, looks, kind="95% paired t interval", widths=False)


def _draw_curves(
    axes: Axes, curves: Mapping[str, Runs], styles: Mapping[str, ArmStyle], *, kind: str, widths: bool
) -> None:
    """Bands, lines and their legend; `widths` explains there what thin and thick lines are."""
    from matplotlib.lines import Line2D

    for place, (label, runs) in enumerate(curves.items()):
        if len(runs) > 1:
            _draw_band(axes, label, runs, styles[label])
        _draw_runs(axes, label, runs, styles[label], place / len(curves))
    keys: list[Key] = [
        Line2D([], [], color=styles[label].colour, linewidth=MEAN_WIDTH, marker=styles[label].marker,
               markersize=MARKER_SIZE, label=label)
        for label in curves
    ]  # fmt: skip
    several = [label for label, runs in curves.items() if len(runs) > 1]
    if widths and several:
        thin_and_thick = {"one seed": SEED_WIDTH, "mean over seeds": MEAN_WIDTH}
        keys += [Line2D([], [], color=INK, linewidth=width, label=label) for label, width in thin_and_thick.items()]
    drawn, note = interval_notes({label: len(runs) for label, runs in curves.items()}, kind=kind)
    keys += [band_key(drawn, [styles[label].colour for label in several])] if drawn else []
    legend_above(axes, [*keys, *([blank_key(note)] if note else [])])


def _draw_runs(axes: Axes, label: str, runs: Runs, style: ArmStyle, phase: float) -> None:
    """One thin line per seed and a thick one for their mean.

    A few markers on the mean show which arms a line stands for where several coincide; `phase` in [0, 1) keeps those
    of different arms apart.
    """
    for seed, (places, values) in runs.items():
        axes.plot(places, values, color=style.colour, linewidth=SEED_WIDTH, alpha=0.6, label=f"_{label} seed {seed}")
    places, values = common_points(label, runs)
    every = max(1, places.size // MARKERS)
    axes.plot(
        places,
        values.mean(axis=0),
        color=style.colour,
        linewidth=MEAN_WIDTH,
        marker=style.marker,
        markersize=MARKER_SIZE,
        markevery=(int(phase * every), every),
        label=f"_{label} mean",
    )


def _draw_band(axes: Axes, label: str, runs: Runs, style: ArmStyle) -> None:
    places, values = common_points(label, runs)
    intervals = [mean_interval(column) for column in values.T]
    lower, upper = [interval.lower for interval in intervals], [interval.upper for interval in intervals]
    axes.fill_between(
        places, lower, upper, color=style.colour, alpha=BAND_ALPHA, linewidth=0, label=f"_{label} interval"
    )
