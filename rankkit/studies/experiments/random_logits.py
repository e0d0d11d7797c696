"""Attention of random logits: what mask, logit std and n/d alone make of every measure, and where two masks cross.

Nothing here was trained. Every number is a mean over seeds; one draw of Q and K serves all masks and all standard
deviations of its seed, so that masks are compared on the same logits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rankkit.masks import MaskKind
from rankkit.operators import AttentionOperator
from rankkit.spectra import spectrum
from rankkit.spectra.baselines import normal_numbers
from rankkit.statistics import standard_error
from rankkit.studies.experiments.findings import Finding
from rankkit.studies.experiments.random_logits_config import (
    SECOND,
    ClaimConfig,
    CrossingsConfig,
    ExpectedRow,
    Family,
    MatricesConfig,
    RandomLogitsConfig,
)
from rankkit.studies.measuring.measure import MeasurementInterruptedError, Progress

__all__ = [
    "Crossing",
    "RandomLogits",
    "RandomLogitsConfig",
    "crossing_std",
    "descents",
    "expected_seconds",
    "measure_random_logits",
    "null_operator",
]

Array: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """Where one mask's mean falls below another's."""

    family: MatricesConfig
    """Which matrices."""
    first: str
    """The mask that is higher below it."""
    second: str
    """The mask that is higher above it."""
    measure: str
    """Of what."""
    std: float
    """The last crossing; nan where there is none."""
    standard_error: float
    """Over seeds, by the jackknife; nan for one seed, or where a seed left out leaves no crossing."""
    every: tuple[float, ...]
    """All crossings in that direction: several where a whole-numbered measure ties."""

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "logits": self.family.logits,
            "n": self.family.n,
            "head_dim": self.family.head_dim,
            "first": self.first,
            "second": self.second,
            "measure": self.measure,
            "std": self.std,
            "standard_error": self.standard_error,
            "every": list(self.every),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLogits:
    """What was measured."""

    config: RandomLogitsConfig
    """What was declared."""
    values: Mapping[Family, Mapping[str, Array]]
    """By family and measure: "mask std seed"."""

    def of(self, family: MatricesConfig, measure: str, mask: str, seeds: Sequence[int]) -> Array:
        """One measure under one mask, "std seed"."""
        places = [self.config.seeds.index(seed) for seed in seeds]
        found: Array = self.values[family.family][measure][family.masks.index(mask)][:, places]
        return found

    def crossing(self, family: MatricesConfig, pair: CrossingsConfig, measure: str, seeds: Sequence[int]) -> Crossing:
        """Locate one crossing over some of the seeds."""
        first, second = (self.of(family, measure, mask, seeds) for mask in (pair.first, pair.second))
        std, error = crossing_std(family.stds, first - second)
        every = descents(family.stds, (first - second).mean(axis=-1))
        return Crossing(
            family=family, first=pair.first, second=pair.second, measure=measure, std=std, standard_error=error,
            every=every,
        )  # fmt: skip

    def crossings(self) -> Iterator[Crossing]:
        """Every declared pair of masks in every family that has both, over all seeds."""
        for pair, family in itertools.product(self.config.crossings, self.config.matrices):
            if {pair.first, pair.second} <= {*family.masks}:
                for measure in pair.measures:
                    yield self.crossing(family, pair, measure, self.config.seeds)

    def findings(self) -> Iterator[Finding]:
        """Every expectation with its verdict, in the order of the declaration."""
        families = {family.family: family for family in self.config.matrices}
        for claim in (*self.config.crossings, *self.config.values):
            for row in claim.rows:
                for measure, expected in zip(claim.measures, row.expected, strict=True):
                    yield self._finding(claim, row, families[row.family], measure, expected)

    def _finding(
        self, claim: ClaimConfig, row: ExpectedRow, family: MatricesConfig, measure: str, expected: str
    ) -> Finding:
        (found, error), (overall, overall_error) = (
            self._number(claim, row, family, measure, seeds) for seeds in (claim.seeds, self.config.seeds)
        )
        masks = "/".join(claim.masks_of(row))
        is_crossing = isinstance(claim, CrossingsConfig)
        return Finding(
            where=f"{family.label}, {masks} crossing" if is_crossing else family.label,
            what=measure if is_crossing else f"{masks}, std {row.std:g}: {measure}",
            expected=expected,
            found=found,
            standard_error=error,
            seeds=len(claim.seeds),
            allowed=claim.tolerance.allowed(expected, error),
            overall=overall,
            overall_error=overall_error,
            overall_seeds=len(self.config.seeds),
        )

    def _number(
        self, claim: ClaimConfig, row: ExpectedRow, family: MatricesConfig, measure: str, seeds: Sequence[int]
    ) -> tuple[float, float]:
        """What an expectation is of, over these seeds, with its standard error."""
        if isinstance(claim, CrossingsConfig):
            crossing = self.crossing(family, claim, measure, seeds)
            return crossing.std, crossing.standard_error
        by_seed = self.of(family, measure, row.mask, seeds)[family.stds.index(row.std or 0.0)]
        return float(by_seed.mean()), standard_error(by_seed)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per matrix with all its measures, for a table file."""
        for family in self.config.matrices:
            found = self.values[family.family]
            axes = (enumerate(family.masks), enumerate(family.stds), enumerate(self.config.seeds))
            for (m, mask), (s, std), (k, seed) in itertools.product(*axes):
                numbers = {measure: float(found[measure][m, s, k]) for measure in self.config.measures}
                place = {"logits": family.logits, "n": family.n, "head_dim": family.head_dim, "mask": mask}
                yield {**place, "std": std, "seed": seed, **numbers}

    def means(self) -> Iterator[dict[str, Any]]:
        """Mean and standard error over all seeds of every kind of matrix."""
        for family in self.config.matrices:
            for (m, mask), (s, std) in itertools.product(enumerate(family.masks), enumerate(family.stds)):
                by_seed = {name: array[m, s] for name, array in self.values[family.family].items()}
                yield {
                    "logits": family.logits, "n": family.n, "head_dim": family.head_dim, "mask": mask, "std": std,
                    "mean": {name: float(values.mean()) for name, values in by_seed.items()},
                    "standard_error": {name: standard_error(values) for name, values in by_seed.items()},
                }  # fmt: skip


def descents(stds: Sequence[float], differences: ArrayLike, /) -> tuple[float, ...]:
    """Where a difference goes from above 0 to 0 or below, on the straight line between neighbouring points.

    Args:
        stds: "std", ascending.
        differences: "std".
    """
    values = np.asarray(differences, dtype=np.float64)
    found = []
    for (low, high), (before, after) in zip(itertools.pairwise(stds), itertools.pairwise(values.tolist()), strict=True):
        if before > 0 >= after:
            found.append(low + (high - low) * before / (before - after))
    return tuple(found)


def crossing_std(stds: Sequence[float], differences: ArrayLike, /) -> tuple[float, float]:
    """The last descent of the mean difference over seeds, and its standard error by the jackknife over seeds.

    Means of whole-numbered measures tie and cross several times within a step or two of the grid; above the last
    descent the difference stays where it is.

    Args:
        stds: "std", ascending.
        differences: "std seed", first mask minus second.

    Returns:
        The crossing, nan where there is none; its standard error, nan where there is none to be had.
    """
    array = np.asarray(differences, dtype=np.float64)
    seeds = array.shape[-1]

    def last(columns: Array) -> float:
        return (descents(stds, columns.mean(axis=-1)) or (math.nan,))[-1]

    if seeds < 2:
        return last(array), math.nan
    without = np.array([last(np.delete(array, seed, axis=-1)) for seed in range(seeds)])
    return last(array), float(np.sqrt((seeds - 1) * np.square(without - without.mean()).mean()))


def measure_random_logits(
    config: RandomLogitsConfig,
    *,
    device: torch.device,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> RandomLogits:
    """Draw and measure every declared matrix.

    Args:
        config: the declaration.
        device: where matrices are formed.
        on_progress: told after every mask and standard deviation.
        stop: asked before every one.

    Raises:
        MeasurementInterruptedError: stopped as asked.
    """
    done, found = 0, {}
    for family in config.matrices:
        draws = _draws(config, family, device)
        shape = (len(family.masks), len(family.stds), len(config.seeds))
        arrays: dict[str, Array] = {measure: np.empty(shape) for measure in config.measures}
        for (m, mask), (s, std) in itertools.product(enumerate(family.masks), enumerate(family.stds)):
            if stop():
                raise MeasurementInterruptedError(
                    "random logits were not all measured; nothing was written. Run it again."
                )
            for name, values in _measured(null_operator(family, draws, std, mask), config.measures).items():
                arrays[name][m, s] = values
            done += len(config.seeds)
            on_progress(Progress(done, config.total, f"{family.label}, {mask}, std {std:g}"))
        found[family.family] = arrays
    return RandomLogits(config=config, values=found)


def _draws(config: RandomLogitsConfig, family: MatricesConfig, device: torch.device) -> Draw:
    """What a family's logits are made from, each "seed row column"."""
    by_seed = [_draw(config.generator, family, seed) for seed in config.seeds]
    return tuple(torch.stack(numbers).to(device) for numbers in zip(*by_seed, strict=True))


def _draw(generator: str, family: MatricesConfig, seed: int) -> Draw:
    size = (family.n, family.n if family.logits == "independent" else family.head_dim)
    count = 1 if family.logits == "independent" else 2
    if generator == "numpy":
        random = np.random.default_rng(seed)
        return tuple(torch.from_numpy(random.standard_normal(size)) for _ in range(count))
    return tuple(normal_numbers(seed, f"random logits {family.family} {part}", size) for part in range(count))


def null_operator(family: MatricesConfig, draws: Draw, std: float, mask: str) -> AttentionOperator:
    """Attention of random logits.

    Logits that are no inner products of short vectors are written as inner products with the unit vectors, exactly, and
    linear attention as the softmax of the logarithms of its weights: so that one operator serves every mask.

    Args:
        family: which logits.
        draws: Q and K, "seed position feature" each, or the logits alone, "seed query key"; standard normal.
        std: of the logits, or (linear attention) of the entries of Q and K.
        mask: kind of mask.

    Returns:
        One matrix per seed, "seed".
    """
    applied = MaskKind(mask).at(family.prefix)
    if family.logits == "dot-product":
        query, key = draws
        return AttentionOperator(query=query, key=key, mask=applied, scale=std / math.sqrt(family.head_dim))
    if family.logits == "independent":
        logits = std * draws[0]
    else:
        features = [F.elu(std * numbers) + 1 for numbers in draws]
        logits = (features[0] @ features[1].mT).log()
    unit = torch.eye(family.n, dtype=torch.float64, device=logits.device).expand_as(logits)
    return AttentionOperator(query=logits, key=unit, mask=applied, scale=1.0)


def _measured(operator: AttentionOperator, measures: Sequence[str]) -> dict[str, Array]:
    """Each measure, "seed"."""
    found = spectrum(operator, measures=[measure for measure in measures if measure != SECOND])
    return {
        measure: (found.singular_values[..., 1] if measure == SECOND else found.measures[measure]).numpy()
        for measure in measures
    }


def expected_seconds(config: RandomLogitsConfig, *, device: torch.device) -> float:
    """Time one kind of matrix of every size here and now, and multiply."""
    total, by_size = 0.0, {}
    for family in config.matrices:
        if family.n not in by_size:
            probe = MatricesConfig(n=family.n, head_dim=family.head_dim)
            draws = tuple(torch.stack([part] * 2).to(device) for part in _draw("philox", probe, 0))
            for _ in range(2):  # the first starts the threads
                started = perf_counter()
                _measured(null_operator(probe, draws, 1.0, "causal"), config.measures)
            by_size[family.n] = (perf_counter() - started) / 2
        total += by_size[family.n] * len(config.seeds) * len(family.masks) * len(family.stds)
    return total
