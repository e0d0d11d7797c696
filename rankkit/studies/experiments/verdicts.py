"""What seeds say of a claim: supported, contradicted, not resolved at this scale, or not trained enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import numpy as np

from rankkit.statistics import (
    LEVEL,
    Interval,
    between_seeds,
    holm,
    mean_interval,
    minimum_detectable_effect,
    seeds_needed,
)
from rankkit.studies.experiments.contrasts import Array, Cell, Contrast

__all__ = ["LARGEST_DETECTABLE", "Outcome", "Verdict", "corrected", "judge", "outcome_of"]

LARGEST_DETECTABLE: Final = 0.1
"""Of a rank measure: a study that can only find larger effects than this share of it has too few seeds."""


class Outcome(StrEnum):
    """What became of a claim."""

    SUPPORTED = "supported"
    """The interval lies on the side that was claimed."""
    CONTRADICTED = "contradicted"
    """It lies on the other side."""
    NOT_RESOLVED = "not resolved at this scale"
    """It holds 0, or there is none."""
    NOT_TRAINED = "not trained enough"
    """An arm is not better than a model that counts: its numbers are those of its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim, what was found, and how well it could have been found."""

    claim: str
    """As declared."""
    of: str
    """The quantity, in words."""
    found_as: str = "left - right"
    """What the interval is of: `left - right`, or `correlation`."""
    outcome: Outcome
    """What became of it."""
    interval: Interval
    """95% over seeds."""
    p_value: float
    """Two-sided; nan with one seed."""
    adjusted: float
    """The same after Holm's correction over all claims of the experiment."""
    detectable: float
    """Minimum detectable effect: what these seeds find with probability 0.8."""
    same_mask: float
    """Same-mask control: what left minus right is between two single seeds of the same arms, root mean square; of a
    correlation, what it is with another seed's losses."""
    scale: float
    """Mean of the quantity over the arms."""
    by_seed: tuple[float, ...]
    """Left minus right, or each seed's own correlation."""
    seeds: tuple[int, ...]
    """That all arms have."""
    untrained: tuple[str, ...]
    """Arms whose loss is not below their n-gram reference."""
    needed: int | None
    """Seeds that it would take: for the effect that was declared, or for a tenth of a rank measure; None where these do."""
    differs: tuple[str, ...]
    """Settings in which the arms differ: what the difference may be due to."""

    @property
    def relative(self) -> float:
        """The minimum detectable effect as a share of the measure."""
        return self.detectable / abs(self.scale) if self.scale else math.inf

    def sentence(self) -> str:
        """The verdict with its numbers, in one line."""
        interval = self.interval
        found = f"{interval.mean:+.4g}"
        if not math.isnan(interval.lower):
            found += f" (95% {interval.lower:+.4g} to {interval.upper:+.4g}, {interval.kind}, {interval.count})"
        text = f"{self.outcome}: {self.claim}: {self.of}, {self.found_as} {found}; minimum detectable {self.detectable:.2g}"
        text += f", same-mask control {self.same_mask:.2g}"
        if self.untrained:
            text += f"; {', '.join(self.untrained)} not below the n-gram reference"
        if self.outcome in (Outcome.SUPPORTED, Outcome.CONTRADICTED) and self.adjusted > LEVEL:
            text += f"; not after Holm's correction over all claims (p = {self.adjusted:.2g})"
        if len(self.seeds) < 2:
            return f"{text}; one seed gives no verdict"
        if self.needed is not None:
            text += f"; {self.needed} seeds are needed, {len(self.seeds)} are there"
        return text

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "claim": self.claim,
            "of": self.of,
            "found_as": self.found_as,
            "outcome": str(self.outcome),
            "mean": self.interval.mean,
            "lower": self.interval.lower,
            "upper": self.interval.upper,
            "interval": self.interval.kind,
            "p_value": self.p_value,
            "p_value_holm": self.adjusted,
            "minimum_detectable_effect": self.detectable,
            "same_mask_rms": self.same_mask,
            "measure_mean": self.scale,
            "seeds": list(self.seeds),
            "by_seed": list(self.by_seed),
            "not_trained_enough": list(self.untrained),
            "seeds_needed": self.needed,
            "differs": list(self.differs),
        }


def judge(
    contrast: Contrast,
    of: str,
    seeds: tuple[int, ...],
    parts: Mapping[Cell, Array],
    *,
    scale: float,
    limit: float | None = None,
    effect: float | None = None,
    untrained: Sequence[str] = (),
    differs: Sequence[str] = (),
) -> Verdict:
    """Hold a claim against the seeds.

    Args:
        contrast: the claim.
        of: its quantity, in words.
        seeds: behind the numbers.
        parts: "seed" of every arm, as `Contrast.parts` gives them.
        scale: mean of the quantity over the arms.
        limit: largest minimum detectable effect, as a share of `scale`; None for no limit.
        effect: the smallest difference that is worth finding; None where none was declared.
        untrained: arms whose loss is not below their reference.
        differs: settings in which the arms differ.
    """
    differences = np.sum(list(parts.values()), axis=0)
    interval = mean_interval(differences) if seeds else _nothing()
    detectable = minimum_detectable_effect(differences)
    p_value = _p_value(differences)
    return Verdict(
        claim=contrast.text,
        of=of,
        outcome=outcome_of(interval, contrast.direction, trained=not untrained),
        interval=interval,
        p_value=p_value,
        adjusted=p_value,
        detectable=detectable,
        same_mask=math.sqrt(sum(between_seeds(part) ** 2 / 2 for part in parts.values())),
        scale=scale,
        by_seed=tuple(differences.tolist()),
        seeds=seeds,
        untrained=tuple(untrained),
        needed=_needed(differences, detectable, [limit and limit * abs(scale), effect]),
        differs=tuple(differs),
    )


def outcome_of(interval: Interval, direction: int, *, trained: bool) -> Outcome:
    """What an interval says of a claim.

    Args:
        interval: of what is claimed to lie on one side of 0; bounds are nan for one seed.
        direction: 1 where it is claimed to be above 0, -1 where below.
        trained: whether every arm is below its reference.
    """
    if not trained:
        return Outcome.NOT_TRAINED
    if not interval.resolved:
        return Outcome.NOT_RESOLVED
    return Outcome.SUPPORTED if interval.mean * direction > 0 else Outcome.CONTRADICTED


def corrected(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The same with their p values corrected for how many they are."""
    adjusted = holm([verdict.p_value for verdict in verdicts]).tolist() if verdicts else []
    return tuple(replace(verdict, adjusted=p) for verdict, p in zip(verdicts, adjusted, strict=True))


def _nothing() -> Interval:
    return Interval(mean=math.nan, lower=math.nan, upper=math.nan, count=0, kind="paired t over seeds")


def _p_value(differences: Array) -> float:
    """Of the paired t test; differences that are all the same have 1 where they are 0 and 0 elsewhere."""
    from scipy.special import stdtr

    if differences.size < 2:
        return math.nan
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(differences.size)
    if error == 0:
        return float(mean == 0)
    return float(2 * stdtr(differences.size - 1, -abs(mean / error)))


def _needed(differences: Array, detectable: float, wanted: Sequence[float | None]) -> int | None:
    """Seeds that find the smallest effect that is wanted, where these do not."""
    sizes = [size for size in wanted if size]
    if differences.size < 2 or not sizes or detectable <= min(sizes):
        return None
    return seeds_needed(min(sizes), float(differences.std(ddof=1)))
