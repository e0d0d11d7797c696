"""What a measurement would do, settled and refused before anything is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.axes import REGIONS
from rankkit.errors import ConfigurationError, RankkitError
from rankkit.masks import Causal, Mask, MaskKind
from rankkit.operators import AttentionOperator, DenseOperator, Operator
from rankkit.spectra import MethodName, chosen_method, expected_products, spectrum
from rankkit.store import SEQUENCES_PER_CHUNK
from rankkit.studies.decomposition import ArmFacts
from rankkit.studies.measuring.config import MeasureConfig

__all__ = [
    "APPLIED",
    "EXAMPLE_SIZE",
    "MeasurementInterruptedError",
    "Plan",
    "PlannedArm",
    "chosen_numbers",
    "dense_example",
    "expected_seconds",
    "factor_example",
    "measured_part",
    "own_regions",
    "region_methods",
    "region_size",
    "shard_rows",
    "spread",
    "swapped_mask",
]

APPLIED: Final = ("own", "swapped")
EXAMPLE_SIZE: Final = 4
"""Prefix and suffix of the small matrices that are asked what holds for large ones."""

_OF_THE_PREFIX: Final = ("prefix_block", "prefix_block_first_key_removed")


class MeasurementInterruptedError(RankkitError):
    """The measurement was stopped as asked; what it had finished is kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedArm:
    """One arm, as it will be measured."""

    facts: ArmFacts
    """Its name, mask, objective and hardly trained layers."""
    kind: str = "self"
    """Kind of attention."""
    seeds: tuple[int, ...]
    """Finished seeds."""
    checkpoint_sha256: tuple[tuple[str, ...], ...]
    """[seed][step], of what is measured."""
    initial_sha256: tuple[tuple[str, ...], ...] = ()
    """[seed][0], of the models at their initialisation, where that baseline is measured."""
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    """Token policy, and whatever else the group says of itself."""
    example: Operator
    """A small matrix with the structure of this arm's, under its own mask: what cannot be measured of it cannot be measured
    of them."""
    output_components: int | None = None
    """Singular values of a layer's output, where outputs are measured."""
    features: int | None = None
    """Of a head's queries and keys, where there are any."""
    logit_scale: float | None = None
    """Of the logits, where there are any."""
    swapped: MaskKind | None = None
    """What is put on the logits as `swapped`; None for what `swapped_mask` says."""
    examples: Mapping[str, Operator] = field(default_factory=dict)
    """Small matrices of layers or heads that differ in mask or structure, by words for them; `example` is then the first."""
    part: Plan | None = None
    """The plan of this arm alone, where its matrices have other axes than those of the first arm."""

    @property
    def name(self) -> str:
        """Of its group."""
        return self.facts.name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What a measurement would do."""

    sequence_length: int
    """Keys of every matrix."""
    queries: int
    """Its rows."""
    prefix_length: int
    regions: tuple[str, ...]
    applied: tuple[str, ...]
    """From `APPLIED`: the arm's own mask, and the other's where there are logits to put it on."""
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    arms: tuple[PlannedArm, ...]
    steps: tuple[int, ...]
    """Training steps of the checkpoints."""
    sequences: NDArray[np.int64]
    """"sequence position", token ids; -1 where they are not known."""
    sequence_numbers: tuple[int, ...]
    """Labels of the sequences."""
    documents: NDArray[np.int64] | None
    """"sequence": the held-out document each starts in; None where that is not known."""
    baselines: tuple[str, ...]
    """Measured beside every arm."""
    methods: Mapping[str, tuple[MethodName, str]]
    """By region: how singular values are computed, and why so."""
    valid_rows: NDArray[np.bool_] | None = None
    """"sequence query", False for padding, which is left out of the matrices; None where there is none."""
    valid_keys: NDArray[np.bool_] | None = None
    """"sequence key", the same."""
    batch: int = SEQUENCES_PER_CHUNK
    """Sequences in one forward pass, at most."""

    @property
    def parts(self) -> tuple[Plan, ...]:
        """A plan for each arm, with its own axes."""
        return tuple(arm.part or replace(self, arms=(arm,)) for arm in self.arms)

    @property
    def units(self) -> tuple[tuple[str, int], ...]:
        """(arm, seed), arm by arm."""
        return tuple((arm.name, seed) for arm in self.arms for seed in arm.seeds)

    @property
    def facts(self) -> tuple[ArmFacts, ...]:
        """Of the arms."""
        return tuple(arm.facts for arm in self.arms)

    @property
    def batches(self) -> list[slice]:
        """The sequences in turn, as many at once as have matrices of one shape, share a chunk and fit a forward pass."""
        lengths, found, start = self._lengths.tolist(), [], 0
        for number in range(1, len(lengths) + 1):
            ended = number == len(lengths) or lengths[number] != lengths[start]
            if ended or number - start == self.batch or number % SEQUENCES_PER_CHUNK == 0:
                found.append(slice(start, number))
                start = number
        return found

    @property
    def _lengths(self) -> NDArray[np.int64]:
        """Rows and columns without padding, "sequence side"."""
        whole = np.full((len(self.sequences), 2), (self.queries, self.sequence_length))
        for side, valid in enumerate((self.valid_rows, self.valid_keys)):
            if valid is not None:
                whole[:, side] = valid.sum(axis=1)
        return whole

    @property
    def matrices(self) -> int:
        """How many spectra."""
        return sum(part.matrices_per_region * len(part.regions) for part in self.parts)

    @property
    def matrices_per_region(self) -> int:
        """How many spectra of one region.

        Under all masks and once for each baseline at every step; but `init` is of one step, and `uniform` is one matrix.
        """
        every_step = len(self.applied) + len(set(self.baselines) - {"uniform", "init"})
        per_head = len(self.steps) * every_step + ("init" in self.baselines)
        return len(self.units) * len(self.sequences) * len(self.layers) * len(self.heads) * per_head

    def shapes(self, region: str) -> NDArray[np.int64]:
        """Rows and columns of a region's matrices, "sequence side"."""
        if region.startswith("prefix_block"):
            return np.full_like(self._lengths, region_size(region, self.sequence_length, self.prefix_length))
        return self._lengths - int(region.endswith("first_key_removed"))

    def shape(self, region: str) -> tuple[int, int]:
        """Rows and columns of a region's largest matrices."""
        rows, columns = self.shapes(region).max(axis=0).tolist()
        return rows, columns

    def size(self, region: str) -> int:
        """Singular values of a region's largest matrices."""
        return int(self.shapes(region).min(axis=1).max())


def measured_part(own: Operator, region: str, applied: str, arm: PlannedArm, prefix_length: int) -> Operator:
    """A region of attention under its own mask or another.

    Args:
        own: as the model applied it; a matrix without factors has the region `full` and its own mask alone.
        region: from `axes.REGIONS`.
        applied: from `APPLIED`.
        arm: whose it is.
        prefix_length: p.
    """
    if not isinstance(own, AttentionOperator):
        assert (region, applied) == ("full", "own"), "the plan holds nothing else of such matrices"
        return own
    swapped = arm.swapped or swapped_mask(arm.facts.mask)
    assert applied == "own" or swapped is not None, "the plan swaps only where it knows a mask"
    operator = own if applied == "own" or swapped is None else own.with_mask(swapped.at(prefix_length))
    if region.startswith("prefix_block"):
        operator = operator.leading(prefix_length)
    return operator.without_first_key() if region.endswith("first_key_removed") else operator


def region_size(region: str, n: int, p: int) -> int:
    """Rows and columns of a region of an n x n matrix with a prefix of p; 0 or less where there is none."""
    return (p if region.startswith("prefix_block") else n) - region.endswith("first_key_removed")


def region_methods(config: MeasureConfig, n: int, p: int) -> dict[str, tuple[MethodName, str]]:
    """Those of the regions that hold a matrix, with how its singular values are computed and why so.

    Raises:
        ConfigurationError: none does.
    """
    asked = [region for region in REGIONS if region in config.regions]  # one order, whatever order was typed
    sizes = {region: region_size(region, n, p) for region in asked if region_size(region, n, p) > 0}
    if not sizes:
        raise ConfigurationError(
            f"regions must exist, got {', '.join(config.regions)} with {n} tokens and a prefix of {p}. "
            "Measure region full."
        )
    return {
        region: chosen_method(config.method, size, size, config.memory_budget, config.measures)
        for region, size in sizes.items()
    }


def swapped_mask(mask: str) -> MaskKind | None:
    """What is put on the logits of an arm as `swapped`, unless the arm says otherwise; None for a mask that is no kind.

    Causal and prefix in each other's place; bidirectional for a mixture, whose parts each see one half of it; causal for
    every other mask.
    """
    if mask not in set(MaskKind):
        return None
    if MaskKind(mask).is_mixed:
        return MaskKind.BIDIRECTIONAL
    return MaskKind.PREFIX if mask == MaskKind.CAUSAL else MaskKind.CAUSAL


def own_regions(masks: Iterable[Mask], regions: Sequence[str], n: int, p: int) -> tuple[str, ...]:
    """The regions that an arm has: a prefix block is attention by itself where no row of the prefix sees beyond it.

    Args:
        masks: the arm's own and those that are swapped in.
        regions: that were asked for.
        n: positions.
        p: of them the prefix.
    """
    closed = all(p - 1 not in mask.foreseeing_rows(n) for mask in masks)
    return tuple(region for region in regions if closed or region not in _OF_THE_PREFIX)


def factor_example(mask: str, prefix_length: int, sequence_length: int, *, which: int = 0) -> AttentionOperator:
    """A small attention matrix with the structure of one of that size under that mask, or one of a mixture's masks."""
    prefix = min(prefix_length, EXAMPLE_SIZE)
    size = prefix + min(sequence_length - prefix_length, EXAMPLE_SIZE)
    factor = torch.linspace(-1, 1, size, dtype=torch.float64).reshape(1, size, 1)
    return AttentionOperator(query=factor, key=factor, mask=MaskKind(mask).masks(prefix)[which], scale=1.0)


def dense_example(structure: Collection[str]) -> DenseOperator:
    """A small matrix with that structure, as `Operator.structure` names it, and no more."""
    matrix = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]], dtype=torch.float64)
    if "triangular" in structure:
        matrix = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]], dtype=torch.float64)
    if "non_negative" not in structure:
        matrix = matrix @ torch.tensor([[[1.0, 0.0], [3.0, -2.0]]], dtype=torch.float64)  # rows of sum 1, one negative
    if "rows_sum_to_one" not in structure:
        matrix = 3 * matrix
    return DenseOperator(matrix=matrix if "square" in structure else torch.nn.functional.pad(matrix, (0, 1)))


def chosen_numbers(name: str, wanted: Sequence[int] | None, known: Sequence[int]) -> tuple[int, ...]:
    """The numbers asked for, rising; all that are known where none are.

    Raises:
        ConfigurationError: one is not known.
    """
    chosen = tuple(sorted(set(known if wanted is None else wanted)))
    if not chosen or not set(chosen) <= set(known):
        whole = list(known) == list(range(len(known)))
        there = f"0..{len(known) - 1}" if whole else ", ".join(map(str, known))
        raise ConfigurationError(f"{name} must be within {there}, got {list(chosen)}. Choose {name} that there are.")
    return chosen


def spread(available: int, wanted: int) -> list[int]:
    """Positions of `wanted` evenly spread entries of `available`."""
    return [index * available // wanted for index in range(wanted)]


def shard_rows(count: int, shard: tuple[int, int]) -> slice:
    """The sequences of shard i of n: whole batches, so that every number is the one that a single run would give.

    Raises:
        ConfigurationError: there are fewer batches than shards.
    """
    index, shards = shard
    batches = -(-count // SEQUENCES_PER_CHUNK)
    if shards > batches:
        raise ConfigurationError(
            f"shard must be of at most {batches} here, because a shard holds whole batches of {SEQUENCES_PER_CHUNK} "
            f"sequences and there are {count}, got {index}/{shards}. Ask for fewer shards or more --samples."
        )
    first, last = (batches * part // shards * SEQUENCES_PER_CHUNK for part in (index, index + 1))
    return slice(first, min(last, count))


def expected_seconds(plan: Plan, config: MeasureConfig) -> float:
    """Time a little of the work here and now, once for every size of matrix, and multiply."""
    counts: Counter[tuple[bool, int]] = Counter()
    for part in plan.parts:
        for region in part.regions:
            counts[part.methods[region][0] == "matrix-free", part.size(region)] += part.matrices_per_region
    timed = {True: _matrix_free_seconds, False: _exact_seconds}
    return sum(timed[estimated](size, config) * count for (estimated, size), count in counts.items())


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
    for passes, vectors in expected_products(n, config.matrix_free).values():
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
