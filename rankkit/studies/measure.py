"""Measure a run: the spectrum of every head of every arm, under its own mask and the other arm's, into one file."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.axes import REGIONS
from rankkit.data.evaluation import evaluation_sequences
from rankkit.errors import ConfigurationError, MatchError, RankkitError, RunError
from rankkit.hooks.capture import capture
from rankkit.hooks.factors import LayerFactors
from rankkit.masks import Mask, MaskKind
from rankkit.models.transformer import Transformer
from rankkit.operators import AttentionOperator
from rankkit.spectra import DEFAULT_MEMORY_BUDGET, Spectrum, check_measures, spectrum
from rankkit.spectra.measures import DEFAULT_MEASURES, MEASURES
from rankkit.store import METHODS, SEQUENCES_PER_CHUNK, STATUSES, GroupLayout, MeasureDescription, Slab, SpectrumWriter
from rankkit.studies.certificate import build_certificate, certificate_problems
from rankkit.studies.decomposition import Decomposition, decompose
from rankkit.studies.run import Run
from rankkit.training.checkpoints import load_model, read_facts
from rankkit.training.config import Objective
from rankkit.training.environment import environment, prepare_device

__all__ = [
    "MeasureConfig",
    "MeasurementInterruptedError",
    "Plan",
    "Progress",
    "expected_seconds",
    "measure_run",
    "plan_measurement",
]

DEFAULT_SAMPLES: Final = 32  # means over heads and sequences are then known to a few percent of a head's spread
APPLIED: Final = ("own", "swapped")
_SWAPPED: Final = {MaskKind.CAUSAL: MaskKind.PREFIX, MaskKind.PREFIX: MaskKind.CAUSAL}


class MeasurementInterruptedError(RankkitError):
    """The measurement was stopped as asked; nothing was left behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureConfig:
    """What to measure."""

    samples: int | None = None
    """Held-out sequences, spread over those that the evaluation used; None for 32, or all where there are fewer."""
    sequence_length: int | None = None
    """Tokens per sequence; None for the run's."""
    prefix_length: int | None = None
    """p, one for all samples, because every measure of the prefix block grows with it; None for the evaluation's."""
    layers: tuple[int, ...] | None = None
    """None for all."""
    heads: tuple[int, ...] | None = None
    """None for all."""
    regions: tuple[str, ...] = REGIONS
    """Parts of each matrix."""
    measures: tuple[str, ...] = DEFAULT_MEASURES
    """Names from `rankkit.spectra.MEASURES`."""
    method: Literal["auto", "gram", "svd"] = "auto"
    """How singular values are computed."""
    memory_budget: int = DEFAULT_MEMORY_BUDGET
    """Bytes for dense matrices at any time."""
    workers: int | None = None
    """Threads for singular values; None for the available cores."""

    def __post_init__(self) -> None:
        check_measures(self.measures)
        if self.samples is not None and self.samples < 1:
            raise ConfigurationError(f"samples must be at least 1, got {self.samples}. Ask for one sequence or more.")
        unknown = [region for region in self.regions if region not in REGIONS]
        if unknown or not self.regions:
            raise ConfigurationError(
                f"regions must be among {', '.join(REGIONS)}, got {list(self.regions)}. Choose from them."
            )
        for name, chosen in (("regions", self.regions), ("measures", self.measures)):
            if not chosen or len(set(chosen)) < len(chosen):
                raise ConfigurationError(
                    f"{name} must hold at least one name and none twice, got {list(chosen)}. Name each once."
                )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a measurement is."""

    done: int
    """Matrices measured."""
    total: int
    """Matrices to measure."""
    label: str
    """What is being measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a measurement would do."""

    sequence_length: int
    prefix_length: int
    regions: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    units: tuple[tuple[str, int], ...]
    """Finished (arm, seed)."""
    sequences: NDArray[np.int64]
    """"sequence position"."""
    documents: NDArray[np.int64]
    """"sequence": the held-out document each starts in."""
    applied: tuple[str, ...]
    """Masks put on the logits."""

    @property
    def matrices(self) -> int:
        """How many spectra."""
        per_unit = len(self.sequences) * len(self.layers) * len(self.heads) * len(self.regions) * len(self.applied)
        return per_unit * len(self.units)

    def size(self, region: str) -> int:
        """Rows and columns of a region's matrices."""
        return self.sequence_length if region == "full" else self.prefix_length


def plan_measurement(run: Run, config: MeasureConfig) -> Plan:
    """Resolve what to measure against a run, and refuse what cannot be measured, before anything is computed.

    Raises:
        RunError: no arm has finished a seed, or arms have finished different seeds.
        ConfigurationError: layers, heads, lengths or regions that this run does not have.
    """
    model = run.config.base.model
    n = config.sequence_length or model.sequence_length
    if n > model.sequence_length and model.position == "learned":
        raise ConfigurationError(
            f"sequence_length must be at most {model.sequence_length} with learned positions, got {n}. Shorten it."
        )
    p = run.prefix_length * n // model.sequence_length if config.prefix_length is None else config.prefix_length
    if not 0 <= p <= n:
        raise ConfigurationError(f"prefix_length must be between 0 and {n} (sequence_length), got {p}. Shorten it.")
    regions = tuple(region for region in config.regions if region == "full" or p > 0)
    if not regions:
        raise ConfigurationError("regions must exist, got prefix_block with a prefix of 0. Measure region full.")
    sequences, documents = _samples(run, config.samples, n)
    return Plan(
        sequence_length=n,
        prefix_length=p,
        regions=regions,
        layers=_chosen("layers", config.layers, model.num_layers),
        heads=_chosen("heads", config.heads, model.num_heads),
        units=_finished_units(run),
        sequences=sequences,
        documents=documents,
        applied=APPLIED,
    )


def expected_seconds(plan: Plan, config: MeasureConfig) -> float:
    """Time a few random matrices of every region's size here and now, and multiply."""
    total = 0.0
    for region in plan.regions:
        n = plan.size(region)
        query, key = torch.randn(2, 8, n, 64, generator=torch.Generator().manual_seed(0)).unbind(0)
        operator = AttentionOperator(query=query, key=key, mask=MaskKind.CAUSAL.at(0), scale=0.125)
        for _ in range(2):  # the first starts the threads
            started = perf_counter()
            spectrum(operator, measures=config.measures, method=config.method, workers=config.workers)
        total += (perf_counter() - started) / len(query) * plan.matrices / len(plan.regions)
    return total


def _chosen(name: str, wanted: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    chosen = tuple(range(count)) if wanted is None else tuple(sorted(set(wanted)))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise ConfigurationError(
            f"{name} must be within 0..{count - 1}, got {list(chosen)}. Choose {name} of this model."
        )
    return chosen


def _finished_units(run: Run) -> tuple[tuple[str, int], ...]:
    units = tuple(unit for unit in run.config.units if run.finished(*unit))
    seeds = {arm: tuple(seed for name, seed in units if name == arm) for arm in run.config.arms}
    if not units or len(set(seeds.values())) > 1:
        raise RunError(
            f"{run.directory.path} must have finished the same seeds in every arm, got {seeds}. Continue it with "
            f"rankkit train-pair --resume {shlex.quote(str(run.directory.path))}."
        )
    return units


def _samples(run: Run, wanted: int | None, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Evenly spread windows, from those of the evaluation when the length is the run's."""
    train, trained = run.config.base.train, run.config.base.model.sequence_length
    count = DEFAULT_SAMPLES if wanted is None else wanted
    evaluated = train.evaluation_sequences if n == trained else count
    windows = evaluation_sequences(run.tokens(), count=evaluated, sequence_length=n)
    available = len(windows.tokens)
    if wanted is not None and wanted > available:
        raise ConfigurationError(
            f"samples must be at most {available} (evaluation sequences of this run), got {wanted}. Ask for fewer."
        )
    count = min(count, available)
    picked = [index * available // count for index in range(count)]
    return windows.tokens[picked], windows.documents[picked]


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
) -> Decomposition | None:
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
        on_progress: told after every slab.
        stop: asked after every slab.

    Returns:
        The decomposition of the rank gap, where the run has a causal and a prefix arm with the same objective.

    Raises:
        MeasurementInterruptedError: stopped as asked; nothing was left behind.
        RankkitError: as the parts raise; nothing was left behind.
    """
    plan = plan_measurement(run, config)
    prepare_device(device, torch.get_num_threads())
    certificate = build_certificate(run)
    unmatched = certificate_problems(certificate)
    if unmatched:
        raise MatchError(f"arms must match to be compared, but {unmatched[0]}. See rankkit inspect RUN --verify.")
    writer = SpectrumWriter(
        path,
        title=f"Attention spectra of {' and '.join(dict.fromkeys(arm for arm, _ in plan.units))}",
        configuration=run.directory.configuration.read_text(encoding="utf-8"),
        certificate=_json(certificate),
        command=command,
        attributes=_host_attributes(device, _precision(run, device)),
        force=force,
    )
    measurement = _Measurement(run, config, plan, device, on_progress, stop)
    with writer:
        for arm in run.config.arms:
            measurement.arm(writer, arm)
        found = decompose(run, measurement.values, plan.documents, plan.layers, plan.regions)
        if found is not None:
            writer.comparison(
                measures=found.measures, regions=found.regions, layers=found.layers, attributes=found.attributes,
                **{name: found.bounds(name) for name in ("gap", "mask_effect", "learned_effect", "interaction")},
            )  # fmt: skip
    return found


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=1, sort_keys=True)


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
    """Captures each layer and writes its spectra as they come."""

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
        self.values: dict[str, dict[str, NDArray[np.float64]]] = {}
        """By arm and measure: "seed region applied_mask sequence layer head"."""

    def arm(self, writer: SpectrumWriter, arm: str) -> None:
        """Measure one arm under all its seeds."""
        plan = self._plan
        seeds = [seed for name, seed in plan.units if name == arm]
        steps = self._run.config.base.train.steps
        group = writer.group(arm, self._layout(arm, seeds, steps))
        shape = (
            len(seeds),
            len(plan.regions),
            len(plan.applied),
            len(plan.sequences),
            len(plan.layers),
            len(plan.heads),
        )
        self.values[arm] = {name: np.full(shape, np.nan) for name in self._config.measures}
        for index, seed in enumerate(seeds):
            folder = self._run.directory.checkpoint(arm, seed, steps)
            model = load_model(folder, self._run.config.arm(arm).model).to(self._device)
            for start in range(0, len(plan.sequences), SEQUENCES_PER_CHUNK):
                rows = slice(start, min(start + SEQUENCES_PER_CHUNK, len(plan.sequences)))
                self._batch(group, arm, index, seed, model, rows)

    def _batch(self, group: Any, arm: str, index: int, seed: int, model: Transformer, rows: slice) -> None:
        def receive(factors: LayerFactors) -> None:
            (_, own), *others = factors.operators_by_mask()
            assert not others  # one prefix length for all samples gives one mask
            layer = self._plan.layers.index(factors.layer)
            for (r, region), (a, applied) in product(enumerate(self._plan.regions), enumerate(self._plan.applied)):
                operator = self._operator(own, region, applied, model.config.mask)
                found = self._spectrum(operator)
                where = {"seed": index, "step": 0, "region": r, "applied_mask": a, "sequence": rows, "layer": layer}
                group.write(where, _slab(found))
                for name, values in found.measures.items():
                    self.values[arm][name][index, r, a, rows, layer] = values.numpy()
                self._advance(found, f"{arm}, seed {seed}, layer {factors.layer}")

        tokens = torch.from_numpy(self._plan.sequences[rows].copy()).to(self._device)
        autocast: AbstractContextManager[object] = nullcontext()
        if self._precision != torch.float32:
            autocast = torch.autocast(self._device.type, dtype=self._precision)
        listening = capture(model, layers=self._plan.layers, heads=self._plan.heads, on_layer=receive)
        with torch.no_grad(), autocast, listening:
            model(tokens, self._plan.prefix_length)

    def _spectrum(self, operator: AttentionOperator) -> Spectrum:
        return spectrum(
            operator,
            measures=self._config.measures,
            method=self._config.method,
            precision=self._precision,
            workers=self._config.workers,
            memory_budget=self._config.memory_budget,
        )

    def _operator(self, own: AttentionOperator, region: str, applied: str, kind: MaskKind) -> AttentionOperator:
        mask: Mask = own.mask if applied == "own" else _SWAPPED[kind].at(self._plan.prefix_length)
        operator = own.with_mask(mask)
        return operator if region == "full" else operator.leading(self._plan.prefix_length)

    def _advance(self, found: Spectrum, label: str) -> None:
        self._done += found.failed.numel()
        self._on_progress(Progress(self._done, self._plan.matrices, label))
        if self._stop():
            raise MeasurementInterruptedError(
                "measurement was interrupted, and nothing was kept. Run the same command again."
            )

    def _layout(self, arm: str, seeds: Sequence[int], step: int) -> GroupLayout:
        plan, config = self._plan, self._run.config.arm(arm)
        sizes = [[plan.size(region)] * len(plan.sequences) for region in plan.regions]
        last = config.model.num_layers - 1
        untrained = [
            [region == "prefix_block" and layer == last and config.train.objective is Objective.SUFFIX
             for layer in plan.layers]
            for region in plan.regions
        ]  # fmt: skip
        facts = [read_facts(self._run.directory.checkpoint(arm, seed, step)) for seed in seeds]
        return GroupLayout(
            mask=str(config.model.mask),
            objective=str(config.train.objective),
            kind="self",
            seeds=list(seeds),
            steps=[step],
            regions=plan.regions,
            applied_masks=plan.applied,
            layers=plan.layers,
            heads=plan.heads,
            tokens=plan.sequences.astype(np.int32),
            prefix_length=np.full(len(plan.sequences), plan.prefix_length, dtype=np.int32),
            valid_row=np.ones(plan.sequences.shape, dtype=np.int8),
            rows=np.array(sizes, dtype=np.int32),
            columns=np.array(sizes, dtype=np.int32),
            untrained=np.array(untrained, dtype=np.int8),
            checkpoint_sha256=[[entry.weights_sha256] for entry in facts],
            measures=_descriptions(self._config.measures),
            attributes=_token_policy(self._run),
        )


def _descriptions(names: Sequence[str]) -> Mapping[str, MeasureDescription]:
    return {
        name: MeasureDescription(
            long_name=MEASURES[name].long_name,
            definition=MEASURES[name].definition,
            source=MEASURES[name].source,
            units=MEASURES[name].units,
        )
        for name in names
    }


def _token_policy(run: Run) -> dict[str, str]:
    described = run.tokens().description
    separator = "each ended by the document token" if described.get("document_token") is not None else "as they come"
    return {
        "bos": "none: sequences are windows of the packed tokens",
        "packing": f"documents one after another, {separator}; split: {described['split']}",
        "truncation": "none: windows do not overlap",
    }


def _slab(found: Spectrum) -> Slab:
    """A spectrum "sequence head" as the writer takes it."""
    size = found.singular_values.shape[-1]
    ok, degenerate, failed = (STATUSES.index(name) for name in ("ok", "degenerate", "failed"))
    status = np.where(found.failed.numpy(), failed, degenerate if size == 1 else ok).astype(np.int8)
    codes = np.array([METHODS.index(name) for name in ("gram", "svd")], dtype=np.int8)
    return Slab(
        singular_values=found.singular_values.numpy(),
        floor_arithmetic=found.floor_arithmetic.numpy(),
        floor_model=found.floor_model.numpy(),
        resolved=found.resolved.numpy(),
        resolved_model=found.resolved_model.numpy(),
        method=codes[found.method.numpy()],
        status=status,
        measures={name: values.numpy() for name, values in found.measures.items()},
    )
