"""What to measure of a run: the settings of `rankkit spectrum`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from rankkit.axes import REGIONS
from rankkit.errors import ConfigurationError
from rankkit.spectra import (
    DEFAULT_MEASURES,
    DEFAULT_MEMORY_BUDGET,
    MEASURES,
    MatrixFreeConfig,
    MethodName,
    check_measures,
)
from rankkit.spectra.baselines import BASELINES
from rankkit.studies.functional import SCOPES, Scope

__all__ = ["DEFAULT_KEEP_LIMIT", "MeasureConfig"]

DEFAULT_KEEP_LIMIT: Final = 2 << 30
"""Bytes of factors and matrices that are kept without asking: what a laptop's disk does not notice."""

_CHECKPOINTS: Final = re.compile(r"last|all|every:([1-9][0-9]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureConfig:
    """What to measure."""

    samples: int | None = None
    """Held-out sequences, spread over those that the evaluation used; None for 32 (1 without the matrix, which takes
    minutes each), or all where there are fewer."""
    sequence_length: int | None = None
    """Tokens per sequence; None for the run's."""
    prefix_length: int | None = None
    """p, one for all samples, because every measure of the prefix block grows with it; None for the evaluation's."""
    seeds: tuple[int, ...] | None = None
    """None for all that are finished."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): the i-th of n parts of the samples, in whole batches; `rankkit merge` puts the files together."""
    layers: tuple[int, ...] | None = None
    """None for all."""
    heads: tuple[int, ...] | None = None
    """None for all."""
    regions: tuple[str, ...] = REGIONS
    """Parts of each matrix; those that this length and prefix do not have are left out."""
    checkpoints: str = "last"
    """`last`, `all`, or `every:N` for the steps that N divides, the last one always among them."""
    measures: tuple[str, ...] = DEFAULT_MEASURES
    """Names from `rankkit.spectra.MEASURES`."""
    baselines: tuple[str, ...] = ()
    """Names from `rankkit.spectra.baselines.BASELINES`, measured beside every arm."""
    layer_output: bool = False
    """Also measure the output of every attention layer, sum_h A_h X W_V^h W_O^h: the rank of a head is not the layer's."""
    functional_scopes: tuple[Scope, ...] = ()
    """Also what cutting attention to k singular triplets costs, cutting at once all heads, a layer's, or one; none of it
    unless named."""
    functional_ranks: tuple[int, ...] | None = None
    """k; None for 1, 2, 4, ... and n."""
    keep_qk: bool = False
    """Also keep Q and K of every head, as the kernel got them: everything can be computed again from them."""
    keep_attention: bool = False
    """Also keep every attention matrix under its own mask, in float32."""
    keep_limit: int = DEFAULT_KEEP_LIMIT
    """Bytes that may be kept, before compression."""
    method: MethodName = "auto"
    """How singular values are computed; see `rankkit.spectrum`."""
    matrix_free: MatrixFreeConfig = field(default_factory=MatrixFreeConfig)
    """How far an estimate goes."""
    memory_budget: int = DEFAULT_MEMORY_BUDGET
    """Bytes for dense matrices at any time."""
    workers: int | None = None
    """Threads for singular values; None for the available cores."""

    def __post_init__(self) -> None:
        check_measures(self.measures)
        if self.samples is not None and self.samples < 1:
            raise ConfigurationError(f"samples must be at least 1, got {self.samples}. Ask for one sequence or more.")
        index, shards = self.shard
        if not 0 <= index < shards:
            raise ConfigurationError(f"shard must be i/n with 0 <= i < n, got {index}/{shards}. Count shards from 0.")
        _check_names("regions", self.regions, REGIONS)
        _check_names("baselines", self.baselines, BASELINES)
        _check_names("functional_scopes", self.functional_scopes, SCOPES)
        _check_names("measures", self.measures, tuple(MEASURES))
        for name, chosen in (("regions", self.regions), ("measures", self.measures)):
            if not chosen:
                raise ConfigurationError(f"{name} must hold at least one name, got none. Name one.")
        if not _CHECKPOINTS.fullmatch(self.checkpoints):
            raise ConfigurationError(
                f"checkpoints must be last, all or every:N, got {self.checkpoints!r}. Write every:100 for every 100 steps."
            )

    def steps(self, saved: Sequence[int]) -> tuple[int, ...]:
        """Which of the saved checkpoints' steps, ascending."""
        if self.checkpoints == "last":
            return (saved[-1],)
        if self.checkpoints == "all":
            return tuple(saved)
        stride = int(self.checkpoints.removeprefix("every:"))
        return tuple(step for step in saved if step % stride == 0 or step == saved[-1])


def _check_names(name: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    unknown = [entry for entry in chosen if entry not in known]
    if unknown:
        raise ConfigurationError(f"{name} must be among {', '.join(known)}, got {list(chosen)}. Choose from them.")
    if len(set(chosen)) < len(chosen):
        raise ConfigurationError(f"{name} must hold no name twice, got {list(chosen)}. Name each once.")
