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
    mean_p_value,
    minimum_detectable_effect,
    seeds_needed,
)
from rankkit.studies.experiments.contrasts import Array, Cell, Contrast

__all__ = ["LARGEST_DETECTABLE", "WIDENED", "Outcome", "Verdict", "corrected", "judge", "outcome_of"]

LARGEST_DETECTABLE: Final = 0.1
"""Of a rank measure: a study that can only find larger effects than this share of it has too few seeds."""

_ROUNDING: Final = 1e-14  # of the largest part: a few units of the last place of float64
WIDENED: Final = "widened by the errors of its numbers"
"""How such an interval says so."""


class Outcome(StrEnum):
    """What became of a claim."""

    SUPPORTED = "supported"
    """The interval lies on the side that was claimed."""
    CONTRADICTED = "contradicted"
    """It lies on the other side."""
    NOT_RESOLVED = "not resolved at this scale"
    """It holds 0, there is none, or it is what so many claims let one find by chance."""
    DESCRIPTIVE = "descriptive, no verdict"
    """A number that nothing was tested on: a correlation over too few arms."""
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
    """What the interval is of: `left - right`, `correlation`, or by how much it exceeds its control."""
    outcome: Outcome
    """What became of it."""
    interval: Interval
    """95% over seeds."""
    p_value: float
    """Two-sided; nan where there is no test."""
    adjusted: float
    """The same after Holm's correction over all claims of the experiment: the outcome is that of this one."""
    error: float
    """By which the interval is widened: how far the numbers themselves may be off; nan where nobody knows."""
    detectable: float
    """Minimum detectable effect: what these seeds find with probability 0.8."""
    same_mask: float
    """Same-mask control: what left minus right is between two single seeds of the same arms, root mean square; of a
    correlation, what it is with another seed's losses."""
    scale: float
    """Mean of the quantity over the arms."""
    by_seed: tuple[float, ...]
    """What the interval is of, of each seed; over seeds there is none, and over arms it is each seed's correlation."""
    seeds: tuple[int, ...]
    """That all arms have."""
    untrained: tuple[str, ...]
    """Arms whose loss is not below their n-gram reference."""
    needed: int | None
    """Seeds that it would take: for the effect that was declared, or for a tenth of a rank measure; of what is descriptive,
    arms for a test. None where these do."""
    differs: tuple[str, ...]
    """Settings in which the arms differ: what the difference may be due to."""
    correlation: float | None = None
    """Of a correlation, itself, whatever the interval is of."""

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
        if self.correlation is not None and self.found_as != "correlation":
            text += f", correlation {self.correlation:+.4g}"
        text += f", same-mask control {self.same_mask:.2g}"
        if self.untrained:
            text += f"; {', '.join(self.untrained)} not below the n-gram reference"
        if self.p_value <= LEVEL < self.adjusted:
            text += f"; not resolved after Holm's correction over all claims (p = {self.adjusted:.2g})"
        if len(self.seeds) < 2:
            return f"{text}; one seed gives no verdict"
        if self.needed is not None:
            is_descriptive = self.outcome is Outcome.DESCRIPTIVE
            units, count = ("arms", interval.count) if is_descriptive else ("seeds", len(self.seeds))
            text += f"; {self.needed} {units} are needed, {count} are there"
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
            "error": self.error,
            "minimum_detectable_effect": self.detectable,
            "same_mask_rms": self.same_mask,
            "measure_mean": self.scale,
            "seeds": list(self.seeds),
            "by_seed": list(self.by_seed),
            "not_trained_enough": list(self.untrained),
            "seeds_needed": None if self.outcome is Outcome.DESCRIPTIVE else self.needed,
            "arms_needed": self.needed if self.outcome is Outcome.DESCRIPTIVE else None,
            "correlation": self.correlation,
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
    error: float = 0.0,
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
        error: how far left minus right may be off whatever the seeds; nan where no bound is known.
        untrained: arms whose loss is not below their reference.
        differs: settings in which the arms differ.
    """
    differences = _differences(parts)
    interval = mean_interval(differences).widened(error, WIDENED) if seeds else _nothing()
    detectable = minimum_detectable_effect(differences) + error
    p_value = mean_p_value(differences, error=error)
    return Verdict(
        claim=contrast.text,
        of=of,
        outcome=outcome_of(interval.mean, p_value, contrast.direction, trained=not untrained),
        interval=interval,
        p_value=p_value,
        adjusted=p_value,
        error=error,
        detectable=detectable,
        same_mask=math.sqrt(sum(between_seeds(part) ** 2 / 2 for part in parts.values())),
        scale=scale,
        by_seed=tuple(differences.tolist()),
        seeds=seeds,
        untrained=tuple(untrained),
        needed=_needed(differences, detectable, [limit and limit * abs(scale), effect]),
        differs=tuple(differs),
    )


def outcome_of(found: float, p_value: float, direction: int, *, trained: bool) -> Outcome:
    """What a test says of a claim.

    Args:
        found: what is claimed to lie on one side of 0.
        p_value: two-sided, of its being 0; nan for no test.
        direction: 1 where it is claimed to be above 0, -1 where below.
        trained: whether every arm is below its reference.
    """
    if not trained:
        return Outcome.NOT_TRAINED
    if not p_value <= LEVEL:
        return Outcome.NOT_RESOLVED
    return Outcome.SUPPORTED if found * direction > 0 else Outcome.CONTRADICTED


def corrected(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The same with p values corrected for how many they are, and the outcomes that these allow."""
    adjusted = holm([verdict.p_value for verdict in verdicts]).tolist() if verdicts else []
    return tuple(_corrected(verdict, p) for verdict, p in zip(verdicts, adjusted, strict=True))


def _corrected(verdict: Verdict, adjusted: float) -> Verdict:
    is_called = verdict.outcome in (Outcome.SUPPORTED, Outcome.CONTRADICTED)
    outcome = Outcome.NOT_RESOLVED if is_called and adjusted > LEVEL else verdict.outcome
    return replace(verdict, adjusted=adjusted, outcome=outcome)


def _differences(parts: Mapping[Cell, Array]) -> Array:
    """Left minus right by seed; a spread that only the rounding of its parts makes is none."""
    table = np.stack(list(parts.values()))
    differences = table.sum(axis=0)
    if differences.size and np.ptp(differences) <= _ROUNDING * np.abs(table).max():
        return np.full_like(differences, differences[0])
    return np.asarray(differences)


def _nothing() -> Interval:
    return Interval(mean=math.nan, lower=math.nan, upper=math.nan, count=0, kind="paired t over seeds")


def _needed(differences: Array, detectable: float, wanted: Sequence[float | None]) -> int | None:
    """Seeds that find the smallest effect that is wanted, where these do not."""
    sizes = [size for size in wanted if size]
    if differences.size < 2 or not sizes or math.isnan(detectable) or detectable <= min(sizes):
        return None
    return seeds_needed(min(sizes), float(differences.std(ddof=1)))
