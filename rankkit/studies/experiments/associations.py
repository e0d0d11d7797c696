"""Whether a rank measure and the loss go together: over steps, over arms, over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from rankkit.statistics import (
    Interval,
    correlation_over_seeds,
    correlation_within_seeds,
    correlations_by_seed,
    detectable_over_seeds,
    detectable_within_seeds,
)
from rankkit.studies.experiments.contrasts import Array, Cell
from rankkit.studies.experiments.trained_config import CorrelationConfig
from rankkit.studies.experiments.verdicts import Verdict, outcome_of

__all__ = ["Association", "Points", "associate"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """What is correlated."""

    seeds: tuple[int, ...]
    """That all arms have."""
    steps: tuple[tuple[int, ...], ...]
    """[cell][step], as many for each."""
    values: Array
    """"variable cell seed step": loss (nats per token), measure, then the controls."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Association:
    """A correlation, its verdict and the points behind it."""

    config: CorrelationConfig
    """As declared."""
    cells: tuple[Cell, ...]
    """Arms."""
    points: Points
    """Their numbers."""
    verdict: Verdict
    """What the seeds say."""

    @property
    def loss(self) -> Array:
        """Of each arm, "cell seed step", nats per token."""
        return np.asarray(self.points.values[0])

    @property
    def measure(self) -> Array:
        """Of each arm, "cell seed step"."""
        return np.asarray(self.points.values[1])

    def values(self) -> Iterator[dict[str, Any]]:
        """One row for every number, for a table file."""
        region = self.config.region.replace("_", " ")
        names = [f"{name.replace('_', ' ')}, {region}" for name in (self.config.measure, *self.config.controls)]
        for name, by_cell in zip(["loss", *names], self.points.values, strict=True):
            for cell, steps, by_seed in zip(self.cells, self.points.steps, by_cell, strict=True):
                for seed, by_step in zip(self.points.seeds, by_seed.tolist(), strict=True):
                    for step, value in zip(steps, by_step, strict=True):
                        yield {"cell": "/".join(cell), "of": name, "seed": seed, "step": step, "value": value}


def associate(
    config: CorrelationConfig,
    cells: tuple[Cell, ...],
    points: Points,
    *,
    untrained: Sequence[str] = (),
) -> Association:
    """Correlate and judge.

    Over steps the points of a seed are the checkpoints of all its arms, each arm's mean removed; over arms they are its
    arms. Over seeds a point is a seed: each arm's mean over seeds removed, then the arms averaged, because arms of one seed
    share batches and initial weights. The same-mask control puts the loss of the next seed in the place of a seed's own:
    what is left then is what all seeds have in common, such as the course of training.

    Args:
        config: the declaration.
        cells: arms.
        points: their numbers.
        untrained: arms whose loss is not below their n-gram reference.
    """
    seeds, table = points.seeds, points.values
    interval, detectable, by_seed = _correlated(config, table)
    control, _, _ = _correlated(config, np.concatenate([np.roll(table[:1], 1, axis=2), table[1:]]))
    verdict = Verdict(
        claim=f"{config.claim} over {config.over}: {', '.join('/'.join(cell) for cell in cells)}",
        of=config.words,
        found_as="correlation",
        outcome=outcome_of(interval, 1 if config.claim == "positive" else -1, trained=not untrained),
        interval=interval,
        p_value=_p_value(interval, by_seed),
        adjusted=math.nan,
        detectable=detectable,
        same_mask=control.mean if len(seeds) > 1 else math.nan,
        scale=1.0,
        by_seed=tuple(by_seed.tolist()),
        seeds=seeds,
        untrained=tuple(untrained),
        needed=None,
        differs=(),
    )
    return Association(config=config, cells=cells, points=points, verdict=verdict)


def _correlated(config: CorrelationConfig, table: Array) -> tuple[Interval, float, Array]:
    """The correlation, what could be detected, and each seed's own ("seed", none over seeds)."""
    if config.over == "seeds":
        last = table[..., -1]
        loss, measure, *controls = (last - last.mean(axis=2, keepdims=True)).mean(axis=1)
        found = correlation_over_seeds(measure, loss, controls, method=config.method)
        return found, detectable_over_seeds(loss.size, len(controls)), np.array([])
    within = table - table.mean(axis=3, keepdims=True) if config.over == "steps" else table[..., -1:]
    loss, measure, *controls = rearrange(within, "variable cell seed step -> variable seed (cell step)")
    arguments = (measure, loss, controls)
    return (
        correlation_within_seeds(*arguments, method=config.method),
        detectable_within_seeds(*arguments, method=config.method),
        correlations_by_seed(*arguments, method=config.method),
    )


def _p_value(interval: Interval, by_seed: Array) -> float:
    """Two-sided, of the test that the interval inverts."""
    from scipy.special import ndtr, ndtri, stdtr

    known = by_seed[~np.isnan(by_seed)]
    if math.isnan(interval.lower):
        return math.nan
    mean, upper = (math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12)) for value in (interval.mean, interval.upper))
    if known.size == 0:
        return float(2 * ndtr(-abs(mean) / ((upper - mean) / ndtri(0.975))))
    z = np.arctanh(np.clip(known, -1 + 1e-12, 1 - 1e-12))
    error = float(z.std(ddof=1)) / math.sqrt(z.size)
    return float(2 * stdtr(z.size - 1, -abs(mean) / error)) if error else float(mean == 0)
