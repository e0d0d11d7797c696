"""Loss by position in the sequence, and the paired difference of two arms below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import ConfigurationError
from rankkit.report.figures.arguments import Array, common_length, given_axes, non_empty, subset_of_arms
from rankkit.report.figures.paired import Runs, differences_of, draw_arms, draw_differences, two_panels
from rankkit.report.style import arm_styles, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["losses_by_position"]

PARTS: Final = 8  # the running mean spans an eighth of the positions: eight numbers that share no token


def losses_by_position(
    values: Mapping[str, ArrayLike],
    *,
    prefix_length: int,
    seeds: Mapping[str, Sequence[int]] | None = None,
    differences: Sequence[tuple[str, str]] | None = None,
    window: int | None = None,
    task: str = "suffix",
    ax: Iterable[Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Draw the loss of every arm by position, and below it the paired difference of two arms.

    Each seed is smoothed by a running mean: the mean loss of the predicted positions among `window` neighbouring ones,
    drawn at their centre; only whole windows are drawn. A thin line is one seed, a thick one the mean over seeds.
    Differences are taken within each seed before they are smoothed. Bands are 95% t intervals over seeds, at each
    position by itself; neighbouring positions share tokens, so one crossing of zero is no finding.

    Args:
        values: arm to "seed position", nats per token; nan where an arm predicts nothing in any sequence.
        prefix_length: how many tokens precede the first position, and are not predicted.
        seeds: arm to the numbers of its seeds, "seed"; 0, 1, ... unless given. Differences pair equal numbers.
        differences: pairs (a, b) drawn as a - b in the colour of a, over the seeds that both have; by default
            (unilm, gpt) where both are there, otherwise the second arm minus the first.
        window: positions in a running mean, 1 for none; an eighth of the positions unless given.
        task: what is predicted, `suffix` or `masked`; the same for all arms.
        ax: two axes, for the losses and the differences; by default those of a new figure.

    Returns:
        The axes of the losses and the axes of the differences.

    Raises:
        ConfigurationError: an argument that is empty, infinite, mismatched or outside its range, or a pair that shares
            no seed.
    """
    tables = _checked_values(values)
    count = common_length("values", tables, 1, "positions")
    width = max(1, count // PARTS) if window is None else window
    if not 1 <= width <= count:
        raise ConfigurationError(f"window must be between 1 and {count} (positions), got {window!r}. Narrow it.")
    if prefix_length < 0:
        raise ConfigurationError(f"prefix_length must be at least 0, got {prefix_length!r}. Count the given tokens.")
    arms = _runs(tables, seeds or {}, prefix_length)
    gaps = {pair: _smoothed(runs, width) for pair, runs in differences_of(arms, differences).items()}
    means = {arm: _smoothed(runs, width) for arm, runs in arms.items()}
    upper, lower = two_panels() if ax is None else given_axes(ax, 2)
    styles = arm_styles(arms)
    label = _x_label(prefix_length, width)
    dress(upper, x=label, y=f"{task} loss\n(nats per token)")
    draw_arms(upper, means, styles)
    draw_differences(lower, gaps, styles, x=label)
    if ax is None:
        upper.label_outer()
    return upper, lower


def _checked_values(values: Mapping[str, ArrayLike]) -> dict[str, Array]:
    non_empty("values", values, "arm")
    tables = {}
    for arm, given in values.items():
        wanted = "an array of axes (seed position)"
        table = np.asarray(given, dtype=np.float64)
        if table.ndim != 2 or table.size == 0:
            raise ConfigurationError(
                f"values[{arm!r}] must be {wanted}, not empty, got shape {table.shape}. Pass {wanted}."
            )
        if np.isinf(table).any() or np.isnan(table).all(axis=1).any():
            raise ConfigurationError(
                f"values[{arm!r}] must be finite, or nan where nothing is predicted, got inf or a seed of nan alone. "
                "Leave such seeds out."
            )
        tables[arm] = table
    return tables


def _runs(tables: Mapping[str, Array], seeds: Mapping[str, Sequence[int]], first: int) -> dict[str, Runs]:
    """By arm and seed, positions and losses."""
    subset_of_arms("seeds", seeds, tables)
    arms = {}
    for arm, table in tables.items():
        numbers = list(seeds.get(arm, range(len(table))))
        if len(set(numbers)) != len(table) or len(numbers) != len(table):
            raise ConfigurationError(
                f"seeds[{arm!r}] must hold {len(table)} different numbers, got {numbers}. Give one for each row."
            )
        positions = first + np.arange(table.shape[1], dtype=np.float64)
        arms[arm] = {number: (positions, row) for number, row in zip(numbers, table, strict=True)}
    return arms


def _smoothed(runs: Runs, window: int) -> Runs:
    """Running means at the centres of their windows; those without any loss are left out of all seeds."""
    means = {}
    for seed, (positions, values) in runs.items():
        known = ~np.isnan(values)
        ones = np.ones(window)
        counts = np.convolve(known, ones, mode="valid")
        sums = np.convolve(np.where(known, values, 0.0), ones, mode="valid")
        means[seed] = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        centres = positions[: counts.size] + (window - 1) / 2
    kept = ~np.isnan(np.stack([*means.values()])).any(axis=0)
    if not kept.any():
        raise ConfigurationError(
            f"values must share a position with a loss over seeds and pairs, got none within {window} positions. "
            "Widen window."
        )
    return {seed: (centres[kept], values[kept]) for seed, values in means.items()}


def _x_label(prefix_length: int, window: int) -> str:
    notes = [f"prefix: 0 to {prefix_length - 1}"] if prefix_length else []
    notes += [f"running mean of {window}"] if window > 1 else []
    return "position in the sequence" + (f" ({'; '.join(notes)})" if notes else "")
