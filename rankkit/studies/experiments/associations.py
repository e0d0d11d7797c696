"""Whether a rank measure and the loss go together: over steps, over arms, over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from einops import rearrange

from rankkit.statistics import (
    Interval,
    correlation_over_seeds,
    correlations_by_seed,
    detectable_over_seeds,
    fisher_z,
    mean_interval,
    mean_p_value,
    minimum_detectable_effect,
    partial_correlation,
    permutation_p_value,
)
from rankkit.studies.experiments.contrasts import Array, Cell
from rankkit.studies.experiments.trained_config import CorrelationConfig
from rankkit.studies.experiments.verdicts import Outcome, Verdict, outcome_of

__all__ = ["FEWEST_ARMS", "Association", "Points", "associate"]

FEWEST_ARMS: Final = 6
"""More than controls, for a test over arms: they have 720 orders, so that p can be 0.0014; five have 120."""


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

    Over steps the points of a seed are the checkpoints of all its arms, each arm's mean removed. Training moves every number
    in one direction, so that two clocks correlate; the same-mask control puts the loss of the next seed in the place of a
    seed's own, and what is judged is by how much a seed's own correlation exceeds it (Fisher's z), paired over seeds.

    Over arms the points are arms, each its mean over seeds, and orders of arms are the test: repeating a seed brings no new
    arm. With fewer than `FEWEST_ARMS` more than controls there is no verdict.

    Over seeds a point is a seed: each arm's mean over seeds removed, then the arms averaged, because arms of one seed share
    batches and initial weights.

    Args:
        config: the declaration.
        cells: arms.
        points: their numbers.
        untrained: arms whose loss is not below their n-gram reference.
    """
    over = {"steps": _over_steps, "arms": _over_arms, "seeds": _over_seeds}[config.over]
    found, seeds = over(config, points.values), points.seeds
    p_value = found.p_value if len(seeds) > 1 else math.nan
    outcome = outcome_of(found.interval.mean, p_value, 1 if config.claim == "positive" else -1, trained=not untrained)
    verdict = Verdict(
        claim=f"{config.claim} over {config.over}: {', '.join('/'.join(cell) for cell in cells)}",
        of=f"{config.words}, over {config.over}",
        found_as=found.found_as,
        outcome=Outcome.DESCRIPTIVE if found.needed is not None and not untrained else outcome,
        interval=found.interval,
        p_value=p_value,
        adjusted=p_value,
        error=0.0,
        detectable=found.detectable,
        same_mask=found.control if len(seeds) > 1 else math.nan,
        scale=1.0,
        by_seed=tuple(found.by_seed.tolist()),
        seeds=seeds,
        untrained=tuple(untrained),
        needed=found.needed,
        differs=(),
        correlation=found.correlation,
    )
    return Association(config=config, cells=cells, points=points, verdict=verdict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What the points say."""

    correlation: float
    interval: Interval
    p_value: float
    detectable: float
    control: float
    by_seed: Array
    found_as: str = "correlation"
    needed: int | None = None


def _over_steps(config: CorrelationConfig, table: Array) -> _Found:
    own, other = (_by_seed(config, one - one.mean(axis=3, keepdims=True)) for one in (table, _with_next_losses(table)))
    excess = own - other
    known = excess[~np.isnan(excess)]
    nothing = Interval(mean=math.nan, lower=math.nan, upper=math.nan, count=0, kind="paired t over seeds")
    return _Found(
        correlation=_mean_correlation(own),
        interval=mean_interval(known) if known.size else nothing,
        p_value=mean_p_value(known),
        detectable=minimum_detectable_effect(known),
        control=_mean_correlation(other),
        by_seed=excess,
        found_as="Fisher's z of the correlation, own loss - next seed's",
    )


def _over_arms(config: CorrelationConfig, table: Array) -> _Found:
    last = table[..., -1:]
    loss, measure, *controls = last.mean(axis=(2, 3))
    found = partial_correlation(measure, loss, controls, method=config.method)
    arms, needed = loss.size, FEWEST_ARMS + len(controls)
    has_test = arms >= needed
    return _Found(
        correlation=found,
        interval=Interval(mean=found, lower=math.nan, upper=math.nan, count=arms, kind="orders of arms"),
        p_value=permutation_p_value(measure, loss, controls, method=config.method) if has_test else math.nan,
        detectable=detectable_over_seeds(arms, len(controls)),
        control=_mean_correlation(_by_seed(config, _with_next_losses(last))),
        by_seed=np.tanh(_by_seed(config, last)),
        needed=None if has_test else needed,
    )


def _over_seeds(config: CorrelationConfig, table: Array) -> _Found:
    own, other = (
        correlation_over_seeds(measure, loss, controls, method=config.method)
        for loss, measure, *controls in map(_seeds_alone, (table, _with_next_losses(table)))
    )
    return _Found(
        correlation=own.mean,
        interval=own,
        p_value=_fisher_p_value(own),
        detectable=detectable_over_seeds(table.shape[2], len(config.controls)),
        control=other.mean,
        by_seed=np.array([]),
    )


def _seeds_alone(table: Array) -> Array:
    """The last step without what arms differ in, "variable seed"."""
    last = table[..., -1]
    return np.asarray((last - last.mean(axis=2, keepdims=True)).mean(axis=1))


def _with_next_losses(table: Array) -> Array:
    """The next seed's loss in the place of each seed's own."""
    return np.concatenate([np.roll(table[:1], 1, axis=2), table[1:]])


def _by_seed(config: CorrelationConfig, table: Array) -> Array:
    """Fisher's z of each seed's correlation over its arms and steps, "seed"."""
    loss, measure, *controls = rearrange(table, "variable cell seed step -> variable seed (cell step)")
    found = correlations_by_seed(measure, loss, controls, method=config.method)
    return np.array([fisher_z(value) for value in found.tolist()])


def _mean_correlation(z: Array) -> float:
    known = z[~np.isnan(z)]
    return math.tanh(known.mean()) if known.size else math.nan


def _fisher_p_value(interval: Interval) -> float:
    """Two-sided, of the test that Fisher's interval inverts."""
    from scipy.special import ndtr, ndtri

    if math.isnan(interval.lower):
        return math.nan
    mean, upper = fisher_z(interval.mean), fisher_z(interval.upper)
    return float(2 * ndtr(-abs(mean) / ((upper - mean) / ndtri(0.975))))
