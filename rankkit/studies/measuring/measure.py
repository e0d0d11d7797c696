"""Measure attention: the spectrum of every head of every arm, under its own mask and the other arm's, into one file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankkit.display import html_table, short
from rankkit.errors import ConfigurationError
from rankkit.files import check_output_file
from rankkit.masks import Mask
from rankkit.operators import AttentionOperator, Operator
from rankkit.spectra import Spectrum, layer_output_spectrum, spectrum
from rankkit.spectra.baselines import baseline
from rankkit.store import GroupWriter, LayerSlab, Slab, SpectrumWriter
from rankkit.store.journal.slabs import Journal
from rankkit.studies.arm_values import ArmValues, decompositions, write_comparison
from rankkit.studies.decomposition import Decomposition
from rankkit.studies.functional import FunctionalRank
from rankkit.studies.functional_sweep import CutProgress, FunctionalPlan, functional_rank, plan_functional_rank
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.journal import FINISHED, finished_slab, open_journal
from rankkit.studies.measuring.plan import APPLIED, MeasurementInterruptedError, Plan, PlannedArm, measured_part
from rankkit.studies.measuring.run_source import RunSource
from rankkit.studies.measuring.slabs import (
    LAYER_MEASURES,
    beside,
    group_layout,
    kept_names,
    kept_slabs,
    layer_slab,
    slab,
    write_functional,
)
from rankkit.studies.measuring.source import Place, Source, SourceFacts
from rankkit.studies.run import Run
from rankkit.training.environment import environment, prepare_device

__all__ = [
    "Measured",
    "MeasurementInterruptedError",
    "Progress",
    "check_kept",
    "kept_bytes",
    "measure_attention",
    "measure_run",
    "plan_functional",
]

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
    unit: str = "matrix"
    """What is counted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Measured:
    """What a measurement found, beside its file."""

    plan: Plan
    """What was measured."""
    values: Mapping[str, ArmValues]
    """By arm."""
    by_step: Mapping[int, Decomposition] = field(default_factory=dict)
    """The decomposition at every step measured; empty where there are no causal and prefix arm with one objective."""
    functional: FunctionalRank | None = None
    """What cutting attention costs, where that was asked for."""
    resumed: int = 0
    """Slabs that an interrupted measurement had finished."""
    damaged: int = 0
    """Slabs that it had finished, but that the disk did not keep: they were computed again."""

    @property
    def decomposition(self) -> Decomposition | None:
        """That of the last step."""
        return self.by_step[self.plan.steps[-1]] if self.by_step else None

    def __repr__(self) -> str:
        return f"Measured({self._setting()})"

    def _setting(self) -> str:
        plan, arms = self.plan, ", ".join(arm.name for arm in self.plan.arms)
        return (
            f"matrices {plan.matrices:,} of {arms}; n = {plan.sequence_length}, sequences {len(plan.sequences)}, layers "
            f"{len(plan.layers)}, heads {len(plan.heads)}, step {', '.join(map(str, plan.steps))}"
        )

    def _repr_html_(self) -> str:
        """What was measured, the means of every measure, and the split of the gap where there is one, for notebooks."""
        regions = {part.arms[0].name: part.regions for part in self.plan.parts}
        rows = [
            [
                name,
                region.replace("_", " "),
                *(short(self._own_mean(arm, name, regions[arm], region)) for arm in self.values),
            ]
            for name in next(iter(self.values.values())).measures
            for region in self.plan.regions
        ]
        note = "Means over heads, layers, sequences and seeds at the last step, each arm under its own mask."
        table = html_table(self._setting(), ("measure", "region", *self.values), rows, notes=[note])
        split = self.decomposition
        return table if split is None else f"{table}{split._repr_html_()}"

    def _own_mean(self, arm: str, measure: str, regions: tuple[str, ...], region: str) -> float:
        """Of the finite values at the last step under the arm's own mask; nan where there are none."""
        if region not in regions:
            return math.nan
        values = self.values[arm].measures[measure][:, -1, regions.index(region), APPLIED.index("own")]
        known = values[np.isfinite(values)]
        return float(known.mean()) if known.size else math.nan


def measure_run(run: Run, config: MeasureConfig, path: Path, *, device: torch.device, **options: Any) -> Measured:
    """Capture, measure and write the spectra of every finished arm and seed of a run.

    Args:
        run: with at least one finished seed in every arm.
        config: what to measure.
        path: of the HDF5 file.
        device: where the model runs; dense matrices are formed there too.
        options: as for `measure_attention`.

    Returns:
        Values and, where the run has a causal and a prefix arm with the same objective, the split of their gap.

    Raises:
        RankkitError: as `measure_attention`.
    """
    return measure_attention(RunSource(run, device), config, path, device=device, **options)


def measure_attention(
    source: Source,
    config: MeasureConfig,
    path: Path,
    *,
    device: torch.device,
    command: str,
    force: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Measured:
    """Measure and write the spectra of every arm and seed of a source.

    Layer by layer and sample by sample: no more than one layer's Q and K, and matrices within the memory budget, are in
    memory at once. The file appears under its name only when it is whole; until then every finished slab is kept beside
    it (`store.journal_path`), and the file that resuming makes has the bytes of one that was never interrupted, but for its
    time.

    Args:
        source: where the matrices come from.
        config: what to measure.
        path: of the HDF5 file.
        device: where models run; dense matrices are formed there too.
        command: recorded in the file; of a resumed measurement the first.
        force: replace an existing file, and what an interrupted measurement of it has kept.
        resume: take over what an interrupted measurement has kept.
        on_progress: told after every slab, and within long estimates.
        stop: asked as often.

    Returns:
        Values and, where there are a causal and a prefix arm with the same objective, the split of their gap.

    Raises:
        MeasurementInterruptedError: stopped as asked; what was finished is kept.
        OutputExistsError: the file exists, or what an interrupted measurement of it has kept.
        RankkitError: as the parts raise; what was finished is kept.
    """
    plan = source.plan(config)
    plan_functional(source, config)
    check_kept(plan, config)
    prepare_device(device, torch.get_num_threads())
    facts = source.facts
    host = _host_attributes(device, facts)
    if not resume:
        check_output_file(path, force=force)
    with open_journal(path, facts, plan, config, host, command=command, force=force, resume=resume) as journal:
        resumed, damaged = len(journal), len(journal.damaged)
        writer = SpectrumWriter(
            path,
            title=f"Attention spectra of {' and '.join(arm.name for arm in plan.arms)}",
            configuration=facts.configuration,
            certificate=facts.certificate,
            command=journal.notes["command"],
            attributes=host,
            force=force or journal.notes["force"] == "1" or FINISHED in journal,
        )
        with writer:
            found = _measure_into(writer, source, config, plan, facts, journal, device, on_progress, stop)
            if FINISHED not in journal:
                journal.put(FINISHED, {})  # what has the name after this is the file that this journal made
        journal.discard()
    return replace(found, resumed=resumed, damaged=damaged)


def _measure_into(
    writer: SpectrumWriter,
    source: Source,
    config: MeasureConfig,
    plan: Plan,
    facts: SourceFacts,
    journal: Journal,
    device: torch.device,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> Measured:
    measurement = _Measurement(source, config, plan, facts.precision, journal, on_progress, stop)
    for arm in plan.arms:
        measurement.arm(writer, arm)
    values, by_step = measurement.values, {}
    if plan.applied == APPLIED and plan.documents is not None:
        by_step = dict(decompositions(plan.facts, values, plan.steps, plan.documents, plan.layers, plan.regions))
    write_comparison(writer, by_step)
    found = Measured(plan=plan, values=values, by_step=by_step)
    if config.functional_scopes:
        assert isinstance(source, RunSource), "plan_functional has refused others"
        functional = _functional(source.run, config, plan, device, journal, on_progress, stop)
        write_functional(writer, source.run, functional)
        found = replace(found, functional=functional)
    return found


def plan_functional(source: Source, config: MeasureConfig) -> FunctionalPlan | None:
    """What cutting attention would take; None where it was not asked for.

    Raises:
        ConfigurationError: ranks, samples or a prefix that this run does not have, or another length than its own; or the
            source has no model.
    """
    if not config.functional_scopes:
        return None
    if not isinstance(source, RunSource):
        raise ConfigurationError(
            "functional rank must have the model, got attention without it. Name the run directory instead."
        )
    run = source.run
    n = run.config.base.model.sequence_length
    if config.sequence_length not in (None, n):
        raise ConfigurationError(
            f"sequence_length must be {n} (the run's) for functional rank, got {config.sequence_length}. Measure the two "
            "one after the other."
        )
    if config.shard != (0, 1):
        raise ConfigurationError(
            "shard must be 0/1 for functional rank, whose losses are means over all samples, got "
            f"{config.shard[0]}/{config.shard[1]}. Measure it in a file of its own."
        )
    return plan_functional_rank(run, **_functional_settings(config))


def _functional_settings(config: MeasureConfig) -> dict[str, Any]:
    return {
        "ranks": config.functional_ranks,
        "scopes": config.functional_scopes,
        "seeds": config.seeds,
        "samples": config.samples,
        "prefix_length": config.prefix_length,
        "memory_budget": config.memory_budget,
    }


def _functional(
    run: Run,
    config: MeasureConfig,
    plan: Plan,
    device: torch.device,
    journal: Journal,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> FunctionalRank:
    def tell(step: CutProgress) -> None:
        on_progress(Progress(step.done, step.total, f"functional rank: {step.label}", "forward pass"))

    return functional_rank(
        run,
        **_functional_settings(config),
        device=device,
        workers=config.workers,
        on_progress=tell,
        stop=stop,
        journal=journal,
    )


def kept_bytes(plan: Plan, config: MeasureConfig) -> int:
    """Bytes of the factors and matrices that would be kept, before compression."""
    names, total = kept_names(config), 0
    for part in plan.parts:
        (arm,), queries, keys = part.arms, part.queries, part.sequence_length
        numbers = ("queries" in names) * (queries + keys) * (arm.features or 0) + (
            "attention" in names
        ) * queries * keys
        counts = (arm.seeds, part.steps, part.sequences, part.layers, part.heads)
        total += 4 * numbers * math.prod(map(len, counts))
    return total


def check_kept(plan: Plan, config: MeasureConfig) -> None:
    """Refuse to keep more than is allowed.

    Raises:
        ConfigurationError: it is more, or there are no factors to keep, or padding beside them.
    """
    if (config.keep_qk or config.keep_attention) and any(part.valid_rows is not None for part in plan.parts):
        raise ConfigurationError("keep_qk and keep_attention must have whole sequences, got padding. Pack the text.")
    if config.keep_qk and any(arm.features is None for arm in plan.arms):
        raise ConfigurationError("keep_qk must have queries and keys, got attention matrices. Use --keep-attention.")
    needed = kept_bytes(plan, config)
    if needed > config.keep_limit:
        raise ConfigurationError(
            f"kept factors and matrices must take at most {config.keep_limit / 2**30:.3g} GiB, got {needed / 2**30:.3g} "
            "GiB. Raise --keep-limit, or keep fewer samples, layers, heads or steps."
        )


def _host_attributes(device: torch.device, facts: SourceFacts) -> dict[str, Any]:
    here = environment(device, facts.precision, torch.get_num_threads())
    here |= {"precision": str(facts.precision).removeprefix("torch.")}
    renamed = {"processor": "cpu", "attention_kernel": "kernel"}
    return {renamed.get(key, key): value for key, value in here.items() if key != "rankkit_version"} | dict(
        facts.attributes
    )


class _Measurement:
    """Measures arm by arm, checkpoint by checkpoint, layer by layer, and writes spectra as they come."""

    def __init__(
        self,
        source: Source,
        config: MeasureConfig,
        plan: Plan,
        precision: torch.dtype,
        journal: Journal,
        on_progress: Callable[[Progress], None],
        stop: Callable[[], bool],
    ) -> None:
        self._source, self._config, self._whole, self._precision = source, config, plan, precision
        self._plan = plan
        self._journal, self._on_progress, self._stop, self._done = journal, on_progress, stop, 0
        self._begun = 0  # matrices of the slab's parts that are measured
        self._uniform: dict[tuple[int, Mask], Spectrum] = {}
        self.values: dict[str, ArmValues] = {}
        """By arm."""

    def arm(self, writer: SpectrumWriter, arm: PlannedArm) -> None:
        """Measure one arm under all its seeds, at all steps, and its baselines."""
        (plan,) = (part for part in self._whole.parts if part.arms[0].name == arm.name)
        self._plan = plan
        groups = {_ARM: writer.group(arm.name, group_layout(self._config, plan, arm))}
        for name in plan.baselines:
            layout = group_layout(self._config, plan, arm, baseline=name)
            groups[name] = writer.group(f"baselines/{name}/{arm.name}", layout)
        axes = (arm.seeds, plan.steps, plan.regions, plan.applied, plan.sequences, plan.layers, plan.heads)
        self.values[arm.name] = ArmValues.unfilled(self._config.measures, tuple(map(len, axes)))
        for index, seed in enumerate(arm.seeds):
            for position, step in enumerate(plan.steps):
                visited = [name for name in groups if name != "init"]
                self._checkpoint(groups, visited, Place(arm.name, seed, step, index, position), arm)
            if "init" in groups:
                self._checkpoint(groups, ["init"], Place(arm.name, seed, 0, index, 0), arm)

    def _checkpoint(self, groups: Mapping[str, GroupWriter], visited: list[str], place: Place, arm: PlannedArm) -> None:
        """One model on all sequences, for some of the groups."""
        outputs = self._config.layer_output and _ARM in visited
        kept = kept_names(self._config) if _ARM in visited else ()
        for rows in self._plan.batches:

            def receive(layer: int, own: Sequence[Operator] | None, output: Tensor | None, rows: slice = rows) -> None:
                for name in visited:
                    self._layer(groups[name], name, layer, own, arm, place, rows)
                if outputs:
                    self._output(groups[_ARM], layer, output, place, rows)
                if kept and own is not None:
                    self._keep(groups[_ARM], layer, own, place, rows)

            keys = [key for name in visited for key in self._keys(name, place, rows)]
            keys += [self._key(_ARM, place, rows, layer, "output") for layer in self._plan.layers if outputs]
            if not kept and all(key in self._journal for key in keys):
                for layer in self._plan.layers:
                    receive(layer, None, None)
            else:
                self._source.visit(self._plan, place, rows, receive, outputs=outputs)

    def _key(self, name: str, place: Place, rows: slice, layer: int, *rest: str) -> str:
        """Of a slab in the journal."""
        return "/".join((name, place.arm, *map(str, (place.seed, place.step, rows.start, layer)), *rest))

    def _keys(self, name: str, place: Place, rows: slice) -> list[str]:
        """Of every slab that a checkpoint gives one group on some sequences."""
        cells = product(self._plan.layers, self._plan.regions, self._applied(name))
        return [self._key(name, place, rows, layer, region, applied) for layer, region, applied in cells]

    def _applied(self, name: str) -> tuple[str, ...]:
        return self._plan.applied if name == _ARM else self._plan.applied[:1]

    def _layer(
        self,
        group: GroupWriter,
        name: str,
        layer: int,
        own: Sequence[Operator] | None,
        arm: PlannedArm,
        place: Place,
        rows: slice,
    ) -> None:
        """One layer of a batch: every region under every mask."""
        position = self._plan.layers.index(layer)
        found: list[Slab] = []
        for (r, region), (a, applied) in product(enumerate(self._plan.regions), enumerate(self._applied(name))):
            label = f"{place.arm}, seed {place.seed}, step {place.step}, layer {layer}{name and f', {name}'}"

            def compute(region: str = region, applied: str = applied, label: str = label) -> Slab:
                assert own is not None, "a batch without its slabs in the journal is visited"
                names, parts, first = self._matrix_names(place, layer, region, rows), [], 0
                for part in own:
                    operator = measured_part(part, region, applied, arm, self._plan.prefix_length)
                    heads = slice(first, first + part.batch_shape[1])
                    found = self._measured(operator, name, label, names[:, heads].ravel().tolist())
                    parts.append(slab(found, self._config.measures, min(operator.rows, operator.columns)))
                    first = heads.stop
                    self._begun += 0 if name == "uniform" else torch.Size(operator.batch_shape).numel()
                return beside(parts)

            key = self._key(name, place, rows, layer, region, applied)
            taken = finished_slab(self._journal, key, Slab, compute)
            found.append(taken)
            if name == _ARM:
                self.values[place.arm].fill(taken, (place.seed_index, place.step_index, r, a, rows, position))
            self._advance(np.size(taken.status), name, label)
        axes = len(self._plan.regions), len(self._applied(name))
        everywhere = {"region": slice(0, axes[0]), "applied_mask": slice(0, axes[1])}
        group.write({**self._where(name, place, rows, layer), **everywhere}, Slab.stacked(found, axes))

    def _where(self, name: str, place: Place, rows: slice, layer: int) -> dict[str, int | slice]:
        step = 0 if name == "init" else place.step_index
        return {"seed": place.seed_index, "step": step, "sequence": rows, "layer": self._plan.layers.index(layer)}

    def _output(self, group: GroupWriter, layer: int, output: Tensor | None, place: Place, rows: slice) -> None:
        """What a layer adds to the residual stream."""

        def compute() -> LayerSlab:
            assert output is not None, "a batch without its slabs in the journal is visited"
            return layer_slab(layer_output_spectrum(output, measures=LAYER_MEASURES, workers=self._config.workers))

        key = self._key(_ARM, place, rows, layer, "output")
        taken = finished_slab(self._journal, key, LayerSlab, compute)
        group.write_layer_output(self._where(_ARM, place, rows, layer), taken)

    def _keep(self, group: GroupWriter, layer: int, own: Sequence[Operator], place: Place, rows: slice) -> None:
        """Factors and matrices; not in the journal, for a forward pass gives them again."""
        where = self._where(_ARM, place, rows, layer)
        for number, kept in zip(range(rows.start, rows.stop), kept_slabs(own, kept_names(self._config)), strict=True):
            group.write_kept({**where, "sequence": number}, kept)

    def _matrix_names(self, place: Place, layer: int, region: str, rows: slice) -> NDArray[np.object_]:
        """What keys the random baselines of a batch, whatever else is measured beside it: "sequence head"."""
        where = f"{place.arm} seed {place.seed} step {place.step} {region} layer {layer}"
        return np.array(
            [
                [f"{where} sequence {sequence} head {head}" for head in self._plan.heads]
                for sequence in self._plan.sequence_numbers[rows]
            ],
            dtype=object,
        )

    def _measured(self, operator: Operator, name: str, label: str, names: list[str]) -> Spectrum:
        """The spectrum of an operator, or of a baseline made from it."""
        if name in (_ARM, "init"):
            return self._spectrum(operator, label)
        assert isinstance(operator, AttentionOperator), "the plan has baselines only where there are logits"
        if name == "uniform":
            return self._uniform_spectrum(operator, label)
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
            on_progress=lambda share: self._report(self._done + self._begun + share * count, label),
        )

    def _advance(self, matrices: int, name: str, label: str) -> None:
        self._done, self._begun = self._done + (0 if name == "uniform" else matrices), 0
        self._report(self._done, label)

    def _report(self, done: float, label: str) -> None:
        self._on_progress(Progress(done, self._whole.matrices, label))
        if self._stop():
            raise MeasurementInterruptedError(
                f"measurement was interrupted; {len(self._journal)} finished slabs are kept. Run the same command with "
                "--resume."
            )
