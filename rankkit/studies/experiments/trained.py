"""An experiment on trained arms, from its finished runs to its verdicts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import numpy as np
import torch

from rankkit.statistics import Interval, mean_interval
from rankkit.studies.decomposition import arms_of
from rankkit.studies.experiments.associations import Association, Points, associate
from rankkit.studies.experiments.contrasts import Array, Cell, Contrast, Place
from rankkit.studies.experiments.quantities import AttentionNumbers, evaluated_losses, measure_attention_of
from rankkit.studies.experiments.study import Study
from rankkit.studies.experiments.trained_config import ClaimConfig, CorrelationConfig
from rankkit.studies.experiments.verdicts import LARGEST_DETECTABLE, WIDENED, Verdict, corrected, judge
from rankkit.studies.losses import LossComparison, compare_losses
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.measure import Progress
from rankkit.studies.run import Run
from rankkit.training.config import differing_fields

__all__ = ["NumberRow", "TrainedResult", "analyse"]

BESIDE: Final = ("logit_std", "attention_entropy")
"""Beside every rank: what it would change without any structure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberRow:
    """One number of one arm over its seeds."""

    run: str
    """Name of the run."""
    arm: str
    """Name of the arm."""
    swapped: bool
    """Whether it is under the other arm's mask."""
    of: str
    """The quantity, in words."""
    by_seed: Mapping[int, float]
    """By seed."""
    reference: float
    """Of a loss: the n-gram model on the same targets; nan of anything else."""
    error: float
    """How far the number may be off whatever the seeds; nan where no bound is known."""

    @property
    def cell(self) -> str:
        """As claims name it."""
        return f"{self.run}/{self.arm}{'@swapped' if self.swapped else ''}"

    @property
    def interval(self) -> Interval:
        """Mean and 95% t interval over the seeds, widened by the error."""
        return mean_interval([*self.by_seed.values()], kind="t over seeds").widened(self.error, WIDENED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedResult:
    """What an experiment found."""

    study: Study
    """What was declared."""
    runs: Mapping[str, Run]
    """By name, finished."""
    rows: tuple[NumberRow, ...]
    """Every number that a claim is made of, and what belongs beside it."""
    verdicts: tuple[Verdict, ...]
    """One for each claim, then one for each correlation."""
    associations: tuple[Association, ...]
    """One for each correlation: the points behind it."""

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        config = self.study.config
        return {
            "question": config.question,
            "expectation": config.expectation,
            "source": config.source,
            "cost_minutes": config.cost,
            "runs": {
                name: {
                    "folder": str(run.directory.path),
                    "arms": list(run.config.arms),
                    "seeds": list(run.config.seeds),
                    "corpus_sha256": run.tokens().description["corpus"]["sha256"],
                    "environment": dict(run.facts["environment"]),
                }
                for name, run in self.runs.items()
            },
            "numbers": [
                {
                    "cell": row.cell,
                    "of": row.of,
                    "mean": row.interval.mean,
                    "lower": row.interval.lower,
                    "upper": row.interval.upper,
                    "reference": row.reference,
                    "error": row.error,
                    "by_seed": {str(seed): value for seed, value in row.by_seed.items()},
                }
                for row in self.rows
            ],
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
        }

    def values(self) -> Iterator[dict[str, Any]]:
        """One row for every number, for a table file; those behind a correlation at every step."""
        for row in self.rows:
            step = self.runs[row.run].config.base.train.steps
            for seed, value in row.by_seed.items():
                yield {"cell": row.cell, "of": row.of, "seed": seed, "step": step, "value": value}
        for found in self.associations:
            yield from found.values()


def analyse(
    study: Study,
    runs: Mapping[str, Run],
    *,
    device: torch.device,
    command: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainedResult:
    """Measure what claims need, and judge them.

    Args:
        study: the experiment.
        runs: by name, finished.
        device: where models are measured.
        command: recorded with measurements.
        on_progress: told how far a measurement is.
        stop: asked often.

    Raises:
        MeasurementInterruptedError: stopped as asked; what was finished is kept.
        RankkitError: as measuring raises.
    """
    options = {"device": device, "command": command, "on_progress": on_progress, "stop": stop}
    numbers = _Numbers(study, runs, options)
    claims = list(zip(study.config.claims, study.contrasts, strict=True))
    found = [numbers.verdict(claim, contrast) for claim, contrast in claims]
    associations = [numbers.association(number) for number in range(len(study.config.correlations))]
    rows = dict.fromkeys(chain.from_iterable(numbers.rows(claim, contrast) for claim, contrast in claims))
    verdicts = corrected([*found, *(association.verdict for association in associations)])
    return TrainedResult(
        study=study,
        runs=dict(runs),
        rows=tuple(numbers.row(*key) for key in rows),
        verdicts=verdicts,
        associations=tuple(
            replace(association, verdict=verdict)
            for association, verdict in zip(associations, verdicts[len(found) :], strict=True)
        ),
    )


def _words(claim: ClaimConfig, omitted: tuple[int, ...]) -> str:
    return f"{claim.words}, layers trained in every arm" if omitted else claim.words


class _Numbers:
    """Numbers of an experiment's runs, each made once."""

    def __init__(self, study: Study, runs: Mapping[str, Run], options: Mapping[str, Any]) -> None:
        self._study, self._runs, self._options = study, runs, options
        self._losses: Callable[[str], LossComparison] = functools.cache(lambda name: compare_losses(runs[name]))
        self._attention: Callable[[str], AttentionNumbers] = functools.cache(self._measured)
        self._histories: Callable[[CorrelationConfig, str], AttentionNumbers] = functools.cache(self._history)

    def verdict(self, claim: ClaimConfig, contrast: Contrast) -> Verdict:
        """What the seeds say of a claim."""
        omitted = self.omitted(claim, contrast.cells)
        values = {place: self.by_seed(claim, place, omitted) for place in contrast.weights}
        seeds, parts = contrast.parts(values)
        own = [np.mean([*self.by_seed(claim, (run, arm, False), omitted).values()]) for run, arm in contrast.cells]
        errors = (abs(weight) * self.error(claim, place, omitted) for place, weight in contrast.weights.items())
        return judge(
            contrast,
            _words(claim, omitted),
            seeds,
            parts,
            scale=float(np.mean(own)),
            limit=LARGEST_DETECTABLE if claim.is_rank else None,
            effect=claim.effect,
            error=sum(errors),
            untrained=self.untrained(contrast.cells),
            differs=self._differing(contrast.cells),
        )

    def association(self, number: int) -> Association:
        """What goes together in the arms of a correlation."""
        config, cells = self._study.config.correlations[number], self._study.cells(number)
        return associate(config, cells, self._points(config, cells), untrained=self.untrained(cells))

    def untrained(self, cells: tuple[Cell, ...]) -> tuple[str, ...]:
        """Those whose loss is not below that of their n-gram reference."""
        return tuple(f"{run}/{arm}" for run, arm in cells if not self._losses(run).arm(arm).is_trained_enough)

    def omitted(self, of: ClaimConfig | CorrelationConfig, cells: tuple[Cell, ...]) -> tuple[int, ...]:
        """Layers that the loss hardly reaches in one of these arms, by their distance from the last: left out of all."""
        if isinstance(of, ClaimConfig) and not self._is_measure(of):
            return ()
        found = set[int]()
        for name, arm in cells:
            config = self._runs[name].config.arm(arm)
            layers = range(config.model.num_layers)
            (facts,) = (one for one in arms_of(self._runs[name], (of.region,), layers) if one.name == arm)
            found |= {layers[-1] - layer for layer in np.flatnonzero(facts.untrained[0]).tolist()}
        return tuple(sorted(found))

    def rows(self, claim: ClaimConfig, contrast: Contrast) -> Iterator[tuple[ClaimConfig, Place, tuple[int, ...]]]:
        """What the table of numbers holds of a claim."""
        omitted = self.omitted(claim, contrast.cells)
        places = dict.fromkeys((run, arm, False) for run, arm in contrast.cells) | dict.fromkeys(contrast.weights)
        bare = ClaimConfig(of=claim.of, region=claim.region, kept=claim.kept, cut=claim.cut)
        for place in places:
            yield bare, place, omitted
            if not place[2]:
                yield ClaimConfig(), place, ()
                beside = BESIDE if self._is_measure(claim) else ()
                yield from ((ClaimConfig(of=name, region=claim.region), place, omitted) for name in beside)

    def row(self, claim: ClaimConfig, place: Place, omitted: tuple[int, ...]) -> NumberRow:
        """One line of that table."""
        run, arm, swapped = place
        return NumberRow(
            run=run,
            arm=arm,
            swapped=swapped,
            of=_words(claim, omitted),
            by_seed=self.by_seed(claim, place, omitted),
            error=self.error(claim, place, omitted),
            reference=self._losses(run).arm(arm).reference_loss if claim.of == "loss" else math.nan,
        )

    def by_seed(self, claim: ClaimConfig, place: Place, omitted: tuple[int, ...]) -> dict[int, float]:
        """The numbers of a claim's quantity in one place."""
        name, arm, _ = place
        if claim.of == "loss":
            found = self._losses(name).arm(arm)
            return dict(zip(found.seeds, found.by_seed.tolist(), strict=True))
        attention = self._attention(name)
        if claim.of == "extra_loss":
            table = attention.extra_losses[attention.cut_key(arm, self._kept(claim, name), claim.cut)]
        else:
            table = self._measure(claim, place, omitted)[0][:, -1]
        return dict(zip(attention.seeds, table.tolist(), strict=True))

    def error(self, claim: ClaimConfig, place: Place, omitted: tuple[int, ...]) -> float:
        """How far these numbers may be off; losses are what the models make of the sequences."""
        return float(self._measure(claim, place, omitted)[1][-1]) if self._is_measure(claim) else 0.0

    def _measure(self, claim: ClaimConfig, place: Place, omitted: tuple[int, ...]) -> tuple[Array, Array]:
        name, arm, swapped = place
        attention = self._attention(name)
        key = attention.key(arm, claim.of, claim.region, "swapped" if swapped else "own")
        return attention.over_layers(key, omitted)

    @staticmethod
    def _is_measure(claim: ClaimConfig) -> bool:
        return claim.of not in ("loss", "extra_loss")

    def _kept(self, claim: ClaimConfig, run: str) -> int:
        return max(1, round(claim.kept * self._runs[run].config.base.model.sequence_length))

    def _measured(self, name: str) -> AttentionNumbers:
        """All that claims want of one run, at its last checkpoint."""
        pairs = zip(self._study.config.claims, self._study.contrasts, strict=True)
        claims = [claim for claim, contrast in pairs if name in {run for run, _ in contrast.cells}]
        ranks = [claim for claim in claims if self._is_measure(claim)]
        kept = {self._kept(claim, name) for claim in claims if claim.of == "extra_loss"}
        config = MeasureConfig(
            samples=self._samples(name),
            measures=tuple(dict.fromkeys([*(claim.of for claim in ranks), *BESIDE])),
            regions=tuple(dict.fromkeys(claim.region for claim in ranks)) or ("full",),
            functional_scopes=("all",) if kept else (),
            functional_ranks=tuple(sorted(kept)) or None,
        )
        return measure_attention_of(self._runs[name], config, **self._options)

    def _history(self, config: CorrelationConfig, name: str) -> AttentionNumbers:
        """What a correlation wants of one run."""
        settings = MeasureConfig(
            samples=self._samples(name),
            measures=tuple(dict.fromkeys((config.measure, *config.controls))),
            regions=(config.region,),
            checkpoints="all" if config.over == "steps" else "last",
        )
        return measure_attention_of(self._runs[name], settings, **self._options)

    def _samples(self, name: str) -> int:
        """As many as declared, or all where there are fewer."""
        return min(self._study.config.samples, self._losses(name).sequences)

    def _points(self, config: CorrelationConfig, cells: tuple[Cell, ...]) -> Points:
        """Loss, measure and controls, of the seeds and steps that all cells have."""
        tables = {cell: self._history(config, cell[0]) for cell in cells}
        seeds = tuple(sorted(set.intersection(*(set(table.seeds) for table in tables.values()))))
        losses = {
            (cell, seed): evaluated_losses(self._runs[cell[0]], cell[1], seed) for cell in cells for seed in seeds
        }
        common = set.intersection(*(set(found) for found in losses.values()))
        if config.over == "steps":
            common &= set.intersection(*(set(table.steps) for table in tables.values())) - {0}
            steps = {cell: sorted(common) for cell in cells}
        else:
            steps = {cell: [table.steps[-1]] for cell, table in tables.items()}
        omitted = self.omitted(config, cells)
        found = [[[[losses[cell, seed][step] for step in steps[cell]] for seed in seeds] for cell in cells]]
        for name in (config.measure, *config.controls):
            by_cell = []
            for cell, table in tables.items():
                values, _ = table.over_layers(table.key(cell[1], name, config.region, "own"), omitted)
                places = np.ix_([table.seeds.index(s) for s in seeds], [table.steps.index(s) for s in steps[cell]])
                by_cell.append(values[places].tolist())
            found.append(by_cell)
        return Points(seeds=seeds, steps=tuple(map(tuple, steps.values())), values=np.array(found, dtype=np.float64))

    def _differing(self, cells: tuple[Cell, ...]) -> tuple[str, ...]:
        """Settings in which the arms of a claim are not all alike, what they begin with included."""
        (first, *others), declared = cells, self._study.runs
        configs = {cell: declared[cell[0]].config.arm(cell[1]) for cell in cells}
        names = [name for other in others for name in differing_fields(configs[first], configs[other])]
        begun = {declared[run].init_from for run, _ in cells}
        return tuple(dict.fromkeys([*names, *(["initial weights"] if len(begun) > 1 else [])]))
