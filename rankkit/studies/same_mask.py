"""The same-mask control (A/A): what another seed alone does to an arm, beside what the mask is said to do.

A gap between two masks means nothing without it: two runs of one mask differ too, and a test over sequences takes that
difference for an effect, because the sequences of one network say nothing of another network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from rankkit.statistics import LEVEL, between_seeds, clustered_t_test

__all__ = ["PairsCalled", "SameMask", "same_mask"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsCalled:
    """How many pairs of networks a test over sequences alone calls different."""

    called: int
    """Pairs whose mean difference has p <= 0.05 in `clustered_t_test`, not corrected for their number."""
    pairs: int
    """Pairs that could be tested: none where all sequences come from one document."""

    def __add__(self, other: PairsCalled) -> PairsCalled:
        return PairsCalled(called=self.called + other.called, pairs=self.pairs + other.pairs)

    @property
    def share(self) -> float:
        """Called out of tested; nan where none was tested."""
        return self.called / self.pairs if self.pairs else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class SameMask:
    """How far runs of one mask differ, in one region and layer, on the scale of one seed and on that of the gap."""

    between_seeds: tuple[float, float]
    """(causal arm, prefix arm): root mean square difference between two seeds of one arm; nan with one seed."""
    seeds: int
    """S, how many seeds the gap is a mean of."""
    within: PairsCalled
    """Two seeds of one arm, all S (S - 1) / 2 pairs of both arms together."""
    across: PairsCalled
    """A seed of the causal arm and one of the prefix arm, all S^2 pairs."""

    @property
    def between_means(self) -> tuple[float, float]:
        """(causal arm, prefix arm): what a gap between two arms of this one mask would be, root mean square.

        Two means of S seeds each, drawn apart: `between_seeds` / sqrt(S). The gap itself pairs arms by seed, which share
        initial weights and batches, so it may vary less than this.
        """
        causal, prefix = self.between_seeds
        return causal / math.sqrt(self.seeds), prefix / math.sqrt(self.seeds)

    @property
    def pooled_between_seeds(self) -> float:
        """`between_seeds` over both arms together."""
        causal, prefix = self.between_seeds
        return math.sqrt((causal**2 + prefix**2) / 2)

    @property
    def pooled_between_means(self) -> float:
        """`between_means` over both arms together."""
        return self.pooled_between_seeds / math.sqrt(self.seeds)


def same_mask(causal: Array, prefix: Array, documents: NDArray[np.int64]) -> SameMask:
    """Hold the seeds of each arm against each other.

    Args:
        causal: "seed sequence", the causal arm's measure under its own mask; nan for a seed without a value.
        prefix: the same of the prefix arm.
        documents: "sequence", the document of each.
    """
    arms = (causal, prefix)
    within = [one - other for arm in arms for one, other in combinations(arm, 2)]
    across = [one - other for one, other in product(*arms)]
    return SameMask(
        between_seeds=(between_seeds(causal.mean(axis=1)), between_seeds(prefix.mean(axis=1))),
        seeds=len(causal),
        within=_called(within, documents),
        across=_called(across, documents),
    )


def _called(differences: list[Array], documents: NDArray[np.int64]) -> PairsCalled:
    if not differences:
        return PairsCalled(called=0, pairs=0)
    p_values = clustered_t_test(np.stack(differences), documents).p_value
    return PairsCalled(called=int((p_values <= LEVEL).sum()), pairs=int((~np.isnan(p_values)).sum()))
