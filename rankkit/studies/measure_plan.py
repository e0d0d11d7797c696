"""What a measurement would do, settled and refused before anything is computed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.data.evaluation import evaluation_sequences
from rankkit.errors import ConfigurationError, RankkitError, RunError
from rankkit.masks import Causal, MaskKind
from rankkit.operators import AttentionOperator
from rankkit.spectra import MethodName, chosen_method, expected_products, spectrum
from rankkit.studies.measure_config import MeasureConfig
from rankkit.studies.run import Run

__all__ = ["APPLIED", "MeasurementInterruptedError", "Plan", "expected_seconds", "measured_part", "plan_measurement"]

APPLIED: Final = ("own", "swapped")
_SWAPPED: Final = {MaskKind.CAUSAL: MaskKind.PREFIX, MaskKind.PREFIX: MaskKind.CAUSAL}
DEFAULT_SAMPLES: Final = 32  # means over heads and sequences are then known to a few percent of a head's spread


class MeasurementInterruptedError(RankkitError):
    """The measurement was stopped as asked; nothing was left behind."""


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
    steps: tuple[int, ...]
    """Training steps of the checkpoints."""
    sequences: NDArray[np.int64]
    """"sequence position"."""
    documents: NDArray[np.int64]
    """"sequence": the held-out document each starts in."""
    baselines: tuple[str, ...]
    """Measured beside every arm."""
    methods: Mapping[str, tuple[MethodName, str]]
    """By region: how singular values are computed, and why so."""

    @property
    def matrices(self) -> int:
        """How many spectra."""
        return self.matrices_per_region * len(self.regions)

    @property
    def matrices_per_region(self) -> int:
        """How many spectra of one region.

        Under both masks and once for each baseline at every step; but `init` is of one step, and `uniform` is one matrix.
        """
        every_step = len(APPLIED) + len(set(self.baselines) - {"uniform", "init"})
        per_head = len(self.steps) * every_step + ("init" in self.baselines)
        return len(self.units) * len(self.sequences) * len(self.layers) * len(self.heads) * per_head

    def size(self, region: str) -> int:
        """Rows and columns of a region's matrices."""
        return _size(region, self.sequence_length, self.prefix_length)


def measured_part(
    own: AttentionOperator, region: str, applied: str, kind: MaskKind, prefix_length: int
) -> AttentionOperator:
    """A region of attention under its own mask or the other arm's.

    Args:
        own: as the model applied it.
        region: from `axes.REGIONS`.
        applied: from `APPLIED`.
        kind: of the model's own mask, causal or prefix.
        prefix_length: p.
    """
    operator = own if applied == "own" else own.with_mask(_SWAPPED[kind].at(prefix_length))
    if region.startswith("prefix_block"):
        operator = operator.leading(prefix_length)
    return operator.without_first_key() if region.endswith("first_key_removed") else operator


def _size(region: str, n: int, p: int) -> int:
    return (p if region.startswith("prefix_block") else n) - region.endswith("first_key_removed")


def plan_measurement(run: Run, config: MeasureConfig) -> Plan:
    """Resolve what to measure against a run.

    Raises:
        RunError: no arm has finished a seed, arms have finished different seeds, or checkpoints differ between units.
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
    units = _finished_units(run)
    sizes = _region_sizes(config, n, p)
    methods = {region: _method(config, size) for region, size in sizes.items()}
    estimated = any(method == "matrix-free" for method, _ in methods.values())
    tokens, documents = _samples(run, config, n, default=1 if estimated else DEFAULT_SAMPLES)
    return Plan(
        sequence_length=n,
        prefix_length=p,
        regions=tuple(sizes),
        layers=_chosen("layers", config.layers, model.num_layers),
        heads=_chosen("heads", config.heads, model.num_heads),
        units=units,
        steps=config.steps(_saved_steps(run, units)),
        sequences=tokens,
        documents=documents,
        baselines=config.baselines,
        methods=methods,
    )


def _region_sizes(config: MeasureConfig, n: int, p: int) -> dict[str, int]:
    """Those of the regions that hold a matrix, with its size."""
    sizes = {region: _size(region, n, p) for region in config.regions if _size(region, n, p) > 0}
    if not sizes:
        raise ConfigurationError(
            f"regions must exist, got {', '.join(config.regions)} with {n} tokens and a prefix of {p}. "
            "Measure region full."
        )
    return sizes


def expected_seconds(plan: Plan, config: MeasureConfig) -> float:
    """Time a little of the work here and now, for every region's size, and multiply."""
    total = 0.0
    for region in plan.regions:
        timed = _matrix_free_seconds if plan.methods[region][0] == "matrix-free" else _exact_seconds
        total += timed(plan.size(region), config) * plan.matrices_per_region
    return total


def _exact_seconds(n: int, config: MeasureConfig) -> float:
    """Of one of eight matrices measured together."""
    operator, seconds = _random_operator(8, n), 0.0
    method = "exact" if config.method == "auto" else config.method
    for _ in range(2):  # the first starts the threads
        started = perf_counter()
        spectrum(operator, measures=config.measures, method=method, workers=config.workers)
        seconds = perf_counter() - started
    return seconds / 8


def _matrix_free_seconds(n: int, config: MeasureConfig) -> float:
    """Of one matrix, if its brackets close after as many steps as usual."""
    operator, total = _random_operator(1, min(n, 2048)), 0.0
    for passes, vectors in expected_products(config.matrix_free).values():
        block = torch.ones(1, operator.rows, max(1, vectors), dtype=torch.float64)
        seconds = 0.0
        for _ in range(2):
            started = perf_counter()
            operator.gram_product(block)
            seconds = perf_counter() - started
        total += passes * seconds
    return total * (n / operator.rows) ** 2


def _random_operator(count: int, n: int) -> AttentionOperator:
    query, key = torch.randn(2, count, n, 64, generator=torch.Generator().manual_seed(0)).unbind(0)
    return AttentionOperator(query=query, key=key, mask=Causal(), scale=0.125)


def _method(config: MeasureConfig, size: int) -> tuple[MethodName, str]:
    return chosen_method(config.method, size, size, config.memory_budget, config.measures)


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


def _saved_steps(run: Run, units: tuple[tuple[str, int], ...]) -> tuple[int, ...]:
    """Steps at which every unit has a checkpoint: an interruption leaves one more in some of them."""
    saved = [set(run.directory.checkpoint_steps(*unit)) for unit in units]
    return tuple(sorted(set.intersection(*saved)))


def _samples(run: Run, config: MeasureConfig, n: int, *, default: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Evenly spread windows, from those of the evaluation when the length is the run's."""
    train, trained, wanted = run.config.base.train, run.config.base.model.sequence_length, config.samples
    count = default if wanted is None else wanted
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
