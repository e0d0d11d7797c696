"""Measure a run: the spectrum of every head of every arm, under its own mask and the other arm's, into one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError, MatchError
from rankkit.hooks.capture import capture
from rankkit.hooks.factors import LayerFactors
from rankkit.masks import Mask, MaskKind
from rankkit.models.transformer import Transformer
from rankkit.operators import AttentionOperator, Operator
from rankkit.spectra import MEASURES, Spectrum, layer_output_spectrum, spectrum
from rankkit.spectra.baselines import baseline
from rankkit.store import SEQUENCES_PER_CHUNK, GroupWriter, Slab, SpectrumWriter
from rankkit.studies.certificate import build_certificate, certificate_problems
from rankkit.studies.decomposition import Decomposition, decompose
from rankkit.studies.functional import FunctionalRank
from rankkit.studies.functional_sweep import CutProgress, FunctionalPlan, functional_rank, plan_functional_rank
from rankkit.studies.measure_config import MeasureConfig
from rankkit.studies.measure_plan import (
    APPLIED,
    MeasurementInterruptedError,
    Plan,
    measured_part,
    plan_measurement,
)
from rankkit.studies.run import Run
from rankkit.studies.slabs import LAYER_MEASURES, group_layout, layer_slab, slab, write_functional
from rankkit.training.checkpoints import load_model
from rankkit.training.environment import environment, prepare_device

__all__ = ["Measured", "MeasurementInterruptedError", "Progress", "measure_run", "plan_functional"]

Array: TypeAlias = NDArray[np.float64]

_ARM: Final = ""  # the group of the arm itself, beside its baselines


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a measurement is."""

    done: float
    """Matrices measured; a part of one where it is estimated."""
    total: int
    """Matrices to measure."""
    label: str
    """What is being measured."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """What was measured of one arm."""

    measures: dict[str, Array]
    """By name, "seed step region applied_mask sequence layer head"; nan where there is only an estimate, or nothing."""
    brackets: dict[str, tuple[Array, Array]]
    """Lower and upper ends by name, the same axes; nan where the value is exact."""
    status: NDArray[np.int8]
    """Index into `store.STATUSES`, the same axes."""

    def fill(self, taken: Slab, where: tuple[int | slice, ...]) -> None:
        """Take over a batch "sequence head"."""
        self.status[where] = taken.status
        for name, values in taken.measures.items():
            self.measures[name][where] = values
        for name, ends in taken.brackets.items():
            for table, values in zip(self.brackets[name], ends, strict=True):
                table[where] = values


@dataclass(frozen=True, slots=True)
class _Place:
    """Which checkpoint, by label and by position."""

    arm: str
    seed: int
    step: int
    seed_index: int
    step_index: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What a measurement found, beside its file."""

    plan: Plan
    """What was measured."""
    values: Mapping[str, Values]
    """By arm."""
    by_step: Mapping[int, Decomposition] = field(default_factory=dict)
    """The decomposition at every step measured; empty where the run has no causal and prefix arm with one objective."""
    functional: FunctionalRank | None = None
    """What cutting attention costs, where that was asked for."""

    @property
    def decomposition(self) -> Decomposition | None:
        """That of the last step."""
        return self.by_step[self.plan.steps[-1]] if self.by_step else None


def measure_run(
    run: Run,
    config: MeasureConfig,
    path: Path,
    *,
    device: torch.device,
    command: str,
    force: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Measured:
    """Capture, measure and write the spectra of every finished arm and seed of a run.

    Layer by layer and sample by sample: no more than one layer's Q and K, and matrices within the memory budget, are in
    memory at once. The file appears under its name only when it is whole.

    Args:
        run: with at least one finished seed in every arm.
        config: what to measure.
        path: of the HDF5 file.
        device: where the model runs; dense matrices are formed there too.
        command: recorded in the file.
        force: replace an existing file.
        on_progress: told after every slab, and within long estimates.
        stop: asked as often.

    Returns:
        Values and, where the run has a causal and a prefix arm with the same objective, the split of their gap.

    Raises:
        MeasurementInterruptedError: stopped as asked; nothing was left behind.
        RankkitError: as the parts raise; nothing was left behind.
    """
    plan = plan_measurement(run, config)
    plan_functional(run, config)
    prepare_device(device, torch.get_num_threads())
    certificate = build_certificate(run)
    unmatched = certificate_problems(certificate)
    if unmatched:
        raise MatchError(f"arms must match to be compared, but {unmatched[0]}. See rankkit inspect RUN --verify.")
    writer = SpectrumWriter(
        path,
        title=f"Attention spectra of {' and '.join(dict.fromkeys(arm for arm, _ in plan.units))}",
        configuration=run.directory.configuration.read_text(encoding="utf-8"),
        certificate=json.dumps(certificate, indent=1, sort_keys=True),
        command=command,
        attributes=_host_attributes(device, _precision(run, device)),
        force=force,
    )
    with writer:
        measurement = _Measurement(run, config, plan, device, on_progress, stop)
        for arm in run.config.arms:
            measurement.arm(writer, arm)
        by_step = dict(_decompositions(run, plan, measurement.values))
        found = Measured(plan=plan, values=measurement.values, by_step=by_step)
        _write_comparison(writer, found)
        if config.functional_scopes:
            functional = _functional(run, config, device, on_progress, stop)
            write_functional(writer, run, functional)
            found = replace(found, functional=functional)
    return found


def plan_functional(run: Run, config: MeasureConfig) -> FunctionalPlan | None:
    """What cutting attention would take; None where it was not asked for.

    Raises:
        ConfigurationError: ranks, samples or a prefix that this run does not have, or another length than its own.
    """
    if not config.functional_scopes:
        return None
    n = run.config.base.model.sequence_length
    if config.sequence_length not in (None, n):
        raise ConfigurationError(
            f"sequence_length must be {n} (the run's) for functional rank, got {config.sequence_length}. Measure the two "
            "one after the other."
        )
    return plan_functional_rank(run, **_functional_settings(config))


def _functional_settings(config: MeasureConfig) -> dict[str, Any]:
    return {
        "ranks": config.functional_ranks,
        "scopes": config.functional_scopes,
        "samples": config.samples,
        "prefix_length": config.prefix_length,
        "memory_budget": config.memory_budget,
    }


def _functional(
    run: Run,
    config: MeasureConfig,
    device: torch.device,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> FunctionalRank:
    def tell(step: CutProgress) -> None:
        on_progress(Progress(step.done, step.total, f"functional rank: {step.label}"))

    settings = _functional_settings(config)
    return functional_rank(run, **settings, device=device, workers=config.workers, on_progress=tell, stop=stop)


def _decompositions(run: Run, plan: Plan, values: Mapping[str, Values]) -> Iterator[tuple[int, Decomposition]]:
    for index, step in enumerate(plan.steps):
        of_step = {
            arm: {name: table[:, index] for name, table in of_arm.measures.items()} for arm, of_arm in values.items()
        }
        brackets = {
            arm: {name: (lower[:, index], upper[:, index]) for name, (lower, upper) in of_arm.brackets.items()}
            for arm, of_arm in values.items()
        }
        found = decompose(run, of_step, plan.documents, plan.layers, plan.regions, step=step, brackets=brackets)
        if found is not None:
            yield step, found


def _write_comparison(writer: SpectrumWriter, found: Measured) -> None:
    if not found.by_step:
        return
    parts = list(found.by_step.values())
    tables = [part.arrays() for part in parts]
    arrays: dict[str, Any] = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    writer.comparison(
        measures=parts[-1].measures,
        regions=parts[-1].regions,
        layers=parts[-1].layers,
        attributes=parts[-1].attributes,
        steps=list(found.by_step),
        **arrays,
    )


def _precision(run: Run, device: torch.device) -> torch.dtype:
    """Dtype in which the models run here: their own on CUDA, float32 where there is no autocast for it."""
    own = run.config.base.train.precision == "bfloat16" and device.type == "cuda"
    return torch.bfloat16 if own else torch.float32


def _host_attributes(device: torch.device, precision: torch.dtype) -> dict[str, Any]:
    facts = environment(device, precision, torch.get_num_threads()) | {
        "precision": str(precision).removeprefix("torch.")
    }
    renamed = {"processor": "cpu", "attention_kernel": "kernel"}
    return {renamed.get(key, key): value for key, value in facts.items() if key != "rankkit_version"}


class _Measurement:
    """Measures arm by arm, checkpoint by checkpoint, layer by layer, and writes spectra as they come."""

    def __init__(
        self,
        run: Run,
        config: MeasureConfig,
        plan: Plan,
        device: torch.device,
        on_progress: Callable[[Progress], None],
        stop: Callable[[], bool],
    ) -> None:
        self._run, self._config, self._plan, self._device = run, config, plan, device
        self._on_progress, self._stop, self._done = on_progress, stop, 0
        self._precision = _precision(run, device)
        self._uniform: dict[tuple[int, Mask], Spectrum] = {}
        self.values: dict[str, Values] = {}
        """By arm."""

    def arm(self, writer: SpectrumWriter, arm: str) -> None:
        """Measure one arm under all its seeds, at all steps, and its baselines."""
        plan = self._plan
        seeds = [seed for name, seed in plan.units if name == arm]
        groups = {_ARM: writer.group(arm, group_layout(self._run, self._config, plan, arm))}
        for name in plan.baselines:
            layout = group_layout(self._run, self._config, plan, arm, baseline=name)
            groups[name] = writer.group(f"baselines/{name}/{arm}", layout)
        self.values[arm] = _unfilled(plan, self._config, len(seeds))
        for index, seed in enumerate(seeds):
            for position, step in enumerate(plan.steps):
                visited = [name for name in groups if name != "init"]
                self._checkpoint(groups, visited, _Place(arm, seed, step, index, position))
            if "init" in groups:
                self._checkpoint(groups, ["init"], _Place(arm, seed, 0, index, 0))

    def _checkpoint(self, groups: Mapping[str, GroupWriter], visited: list[str], place: _Place) -> None:
        """One model on all sequences, for some of the groups."""
        folder = self._run.directory.checkpoint(place.arm, place.seed, place.step)
        model = load_model(folder, self._run.config.arm(place.arm).model).to(self._device)
        for start in range(0, len(self._plan.sequences), SEQUENCES_PER_CHUNK):
            rows = slice(start, min(start + SEQUENCES_PER_CHUNK, len(self._plan.sequences)))

            def receive(factors: LayerFactors, rows: slice = rows) -> None:
                for name in visited:
                    self._layer(groups[name], name, factors, model.config.mask, place, rows)

            self._forward(model, rows, receive, outputs=self._config.layer_output and _ARM in visited)

    def _forward(
        self, model: Transformer, rows: slice, receive: Callable[[LayerFactors], None], *, outputs: bool
    ) -> None:
        tokens = torch.from_numpy(self._plan.sequences[rows].copy()).to(self._device)
        autocast: AbstractContextManager[object] = nullcontext()
        if self._precision != torch.float32:
            autocast = torch.autocast(self._device.type, dtype=self._precision)
        listening = capture(model, layers=self._plan.layers, heads=self._plan.heads, on_layer=receive, outputs=outputs)
        with torch.no_grad(), autocast, listening:
            model(tokens, self._plan.prefix_length)

    def _layer(
        self, group: GroupWriter, name: str, factors: LayerFactors, kind: MaskKind, place: _Place, rows: slice
    ) -> None:
        """One layer of a batch: every region under every mask."""
        (_, own), *others = factors.operators_by_mask()
        assert not others  # one prefix length for all samples gives one mask
        layer = self._plan.layers.index(factors.layer)
        step = 0 if name == "init" else place.step_index
        where: dict[str, int | slice] = {"seed": place.seed_index, "step": step, "sequence": rows, "layer": layer}
        applied = APPLIED if name == _ARM else ("own",)
        for (r, region), (a, mask) in product(enumerate(self._plan.regions), enumerate(applied)):
            operator = measured_part(own, region, mask, kind, self._plan.prefix_length)
            label = f"{place.arm}, seed {place.seed}, step {place.step}, layer {factors.layer}{name and f', {name}'}"
            names = self._matrix_names(place, factors.layer, region, rows)
            taken = slab(self._measured(operator, name, label, names), self._config.measures, operator.size)
            group.write({**where, "region": r, "applied_mask": a}, taken)
            if name == _ARM:
                self.values[place.arm].fill(taken, (place.seed_index, step, r, a, rows, layer))
            self._advance(np.size(taken.status), name, label)
        if factors.output is not None and name == _ARM:
            output = layer_output_spectrum(factors.output, measures=LAYER_MEASURES, workers=self._config.workers)
            group.write_layer_output(where, layer_slab(output))

    def _matrix_names(self, place: _Place, layer: int, region: str, rows: slice) -> list[str]:
        """What keys the random baselines of a batch, whatever else is measured beside it."""
        return [
            f"{place.arm} seed {place.seed} step {place.step} {region} layer {layer} sequence {sequence} head {head}"
            for sequence, head in product(range(len(self._plan.sequences))[rows], self._plan.heads)
        ]

    def _measured(self, operator: AttentionOperator, name: str, label: str, names: list[str]) -> Spectrum:
        """The spectrum of an operator, or of a baseline made from it."""
        if name == "uniform":
            return self._uniform_spectrum(operator, label)
        if name in (_ARM, "init"):
            return self._spectrum(operator, label)
        return self._spectrum(baseline(name, operator, seed=self._config.matrix_free.seed, names=names), label)

    def _uniform_spectrum(self, operator: AttentionOperator, label: str) -> Spectrum:
        """Equal logits give every head and sequence the same matrix: it is measured once."""
        key = (operator.size, operator.mask)
        if key not in self._uniform:
            one = operator.flattened()[0:1]
            self._uniform[key] = self._spectrum(baseline("uniform", one, seed=0, names=["uniform"]), label)
        return self._uniform[key].expanded(operator.batch_shape)

    def _spectrum(self, operator: Operator, label: str) -> Spectrum:
        count = torch.Size(operator.batch_shape).numel()
        return spectrum(
            operator,
            measures=self._config.measures,
            method=self._config.method,
            matrix_free=self._config.matrix_free,
            precision=self._precision,
            workers=self._config.workers,
            memory_budget=self._config.memory_budget,
            on_progress=lambda share: self._report(self._done + share * count, label),
        )

    def _advance(self, matrices: int, name: str, label: str) -> None:
        self._done += 0 if name == "uniform" else matrices
        self._report(self._done, label)

    def _report(self, done: float, label: str) -> None:
        self._on_progress(Progress(done, self._plan.matrices, label))
        if self._stop():
            raise MeasurementInterruptedError(
                "measurement was interrupted, and nothing was kept. Run the same command again."
            )


def _unfilled(plan: Plan, config: MeasureConfig, seeds: int) -> Values:
    shape = (
        seeds,
        len(plan.steps),
        len(plan.regions),
        len(APPLIED),
        len(plan.sequences),
        len(plan.layers),
        len(plan.heads),
    )
    return Values(
        measures={name: np.full(shape, np.nan) for name in config.measures},
        brackets={
            name: (np.full(shape, np.nan), np.full(shape, np.nan))
            for name in config.measures
            if MEASURES[name].needs == "singular_values"
        },
        status=np.zeros(shape, dtype=np.int8),
    )
