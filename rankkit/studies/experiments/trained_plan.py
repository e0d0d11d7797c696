"""What an experiment would still train, and what its seeds could show, before it starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rankkit.statistics import detectable_over_seeds, seeds_needed, smallest_resolvable_difference
from rankkit.studies.experiments.study import Study
from rankkit.studies.experiments.trained_runs import missing_units, run_folder
from rankkit.studies.plan import SEED_DEVIATION, plan_training

__all__ = ["PlannedRun", "StudyPlan", "plan_study"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run."""

    name: str
    """As claims call it."""
    folder: str
    """Where it lies or would lie, in the folder of all runs."""
    arms: tuple[str, ...]
    """Names."""
    seeds: int
    """How many."""
    tokens: int
    """Read by each unit."""
    units: int
    """Arms times seeds."""
    missing: int
    """Units that nobody has trained to the end."""
    seconds: float
    """Expected for those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """All of it."""

    runs: tuple[PlannedRun, ...]
    """In the order of training."""
    resolvable: tuple[str, ...]
    """A sentence for every claim: what its seeds can find."""

    @property
    def seconds(self) -> float:
        """Of training."""
        return sum(run.seconds for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "seconds": self.seconds}


def plan_study(study: Study, root: Path, *, device: torch.device) -> StudyPlan:
    """Count what is missing and time one step of every run that misses something.

    Args:
        study: the experiment.
        root: folder of all experiments' runs.
        device: where it would train.

    Raises:
        RankkitError: the text cannot be read, or a run that is there is damaged.
    """
    return StudyPlan(
        runs=tuple(_planned(name, study, root, device) for name in study.runs), resolvable=tuple(_resolvable(study))
    )


def _planned(name: str, study: Study, root: Path, device: torch.device) -> PlannedRun:
    config = study.runs[name].config
    missing, seconds = missing_units(name, study, root), 0.0
    if missing:
        plan = plan_training(config, device=device)
        whole = math.ceil(plan.units / plan.workers)
        seconds = plan.seconds * math.ceil(len(missing) / plan.workers) / whole
    return PlannedRun(
        name=name,
        folder=run_folder(name, study, root).name,
        arms=config.arms,
        seeds=len(config.seeds),
        tokens=config.base.train.steps * config.base.train.batch_size * config.base.model.sequence_length,
        units=len(config.units),
        missing=len(missing),
        seconds=seconds,
    )


def _resolvable(study: Study) -> Iterator[str]:
    """From the spread of losses in a pilot; how much ranks vary is known only afterwards."""
    for claim, contrast in zip(study.config.claims, study.contrasts, strict=True):
        seeds = len(set.intersection(*(set(study.runs[run].config.seeds) for run, _ in contrast.cells)))
        text = f"{contrast.text} ({claim.words}): {seeds} seeds"
        if claim.of == "loss":
            weights = math.sqrt(sum(weight**2 for weight in contrast.weights.values()) / 2)
            deviation = SEED_DEVIATION * weights
            found = smallest_resolvable_difference(seeds, deviation)
            text += (
                f" find {found:.3f} nats with 80% power, if paired differences vary by {SEED_DEVIATION} between seeds"
            )
            if claim.effect is not None:
                text += f"; {claim.effect:g} nats take {seeds_needed(claim.effect, deviation)} seeds"
        else:
            deviations = smallest_resolvable_difference(seeds, 1.0)
            text += f" find {deviations:.2f} standard deviations of the paired difference with 80% power"
        yield text
    for number, correlation in enumerate(study.config.correlations):
        cells = study.cells(number)
        seeds = len(set.intersection(*(set(study.runs[run].config.seeds) for run, _ in cells)))
        text = f"{correlation.words}, over {correlation.over}: {seeds} seeds"
        if correlation.over == "seeds":
            least = detectable_over_seeds(seeds, len(correlation.controls))
            text += " give no interval" if math.isnan(least) else f" find a correlation of {least:.2f} with 80% power"
        yield text
