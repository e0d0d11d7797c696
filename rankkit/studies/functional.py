"""Functional rank: what a model loses when attention matrices are cut to their k leading singular triplets.

The link from spectrum to function. With A_k = sum_{i<=k} sigma_i u_i v_i^T, the heads of a scope (all of the model, one
layer, one head) attend with a cut matrix while everything else runs as before:

    remasked    A_k where the mask allows, 0 elsewhere: no row mixes in a value that it may not see
    plain       A_k itself: rows mix in values of their future, so its loss is not a language model's, nor a bound on one

Extra loss = suffix loss with the cut - suffix loss without, over the same sequences, paired. Rows are not normalised
again. Re-masking takes more from a triangular matrix than from one with a full block. Beside every loss stand therefore
what it takes (`removed_share`), how far the result lies from A (`cut_error`), and the plain cut, so that two arms can be
held against each other at equal damage and not at equal k alone.

Two things a remasked cut is not. Its rank is in general higher than k, the number of triplets kept. And a row's weights
still depend on later rows through the singular vectors, so its loss is not strictly that of a causal model either; on the
tiny pair, putting another sequence's future in the place of the true one changed the mean loss by 0.02 +- 0.04 nats at
k = 32 (and by 0.03 +- 0.04 without re-masking), no gain from knowing the true one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError
from rankkit.statistics import Interval, between_seeds, bootstrap_over_documents, mean_interval

__all__ = ["CUTS", "SCOPES", "THRESHOLD", "ArmCuts", "Cut", "CutRow", "FunctionalRank", "Scope"]

Array: TypeAlias = NDArray[np.float64]
Cut: TypeAlias = Literal["remasked", "plain"]
Scope: TypeAlias = Literal["all", "layer", "head"]

CUTS: Final[tuple[Cut, ...]] = ("remasked", "plain")
"""In the order of the axis `cut`."""
SCOPES: Final[tuple[Scope, ...]] = ("all", "layer", "head")
"""Which heads are cut at once: every one of the model, those of one layer, a single one."""
THRESHOLD: Final = 0.01  # nats per token: a perplexity 1% higher


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmCuts:
    """One arm under every cut."""

    arm: str
    """Name."""
    seeds: tuple[int, ...]
    """That were measured."""
    loss_uncut: Array
    """"seed sequence": mean suffix loss without a cut, nats per token."""
    extra_loss: Mapping[Scope, Array]
    """Loss with the cut minus `loss_uncut`, nats per token, by scope: `all` "seed sequence kept_rank cut", `layer` "seed
    sequence layer kept_rank cut", `head` "seed sequence layer head kept_rank cut"."""
    removed_share: Array
    """"seed sequence layer head kept_rank": share of ||A_k||_F^2 that re-masking removes, of the uncut model's matrices."""
    cut_error: Array
    """"seed sequence layer head kept_rank cut": ||A - cut A||_F / ||A||_F, of the same matrices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRow:
    """One line of a table: all arms under one cut."""

    extra_loss: Mapping[str, Interval]
    """By arm, nats per token; over the seeds, or with one seed over documents."""
    difference: Interval | None
    """Extra loss of the causal minus that of the prefix arm, paired; None for a single head, since heads of two models have
    no common order, and where the run has no such two arms."""
    same_mask: float
    """Root mean square difference of the extra loss between two seeds of one arm, over those two arms: what another seed
    alone does. nan where there is no difference, or one seed."""
    removed_share: Mapping[str, float]
    """Mean share of A_k's energy that re-masking removes, by arm."""
    cut_error: Mapping[str, float]
    """Mean relative distance of the cut matrix from A, by arm."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FunctionalRank:
    """Extra losses of every arm, cut, rank and scope of a run."""

    ranks: tuple[int, ...]
    """Triplets kept, ascending: the axis `kept_rank`."""
    scopes: tuple[Scope, ...]
    """That were measured."""
    sequence_length: int
    """n: a cut to n triplets changes nothing but roundings."""
    prefix_length: int
    """Of every sequence."""
    documents: NDArray[np.int64]
    """"sequence": the held-out document of each."""
    arms: tuple[ArmCuts, ...]
    """In the order of the run."""
    pair: tuple[str, str] | None
    """(causal arm, prefix arm) with the same objective, the first of each; None where the run has none."""

    def arm(self, name: str) -> ArmCuts:
        """One arm."""
        return next(arm for arm in self.arms if arm.arm == name)

    def row(
        self,
        rank: int,
        *,
        scope: Scope = "all",
        cut: Cut = "remasked",
        layer: int | None = None,
        head: int | None = None,
    ) -> CutRow:
        """What a cut to `rank` triplets costs.

        Args:
            rank: one of `ranks`.
            scope: which heads were cut at once.
            cut: `remasked` or `plain`.
            layer: for the scopes `layer` and `head`: that one, or None for the mean over all of them cut one at a time.
            head: for the scope `head` and one layer: that one, or None for the mean likewise.

        Raises:
            ConfigurationError: a rank, scope, layer or head that was not measured.
        """
        tables = {
            arm.arm: self.by_sequence(arm.arm, rank, scope=scope, cut=cut, layer=layer, head=head) for arm in self.arms
        }
        k, c, matrices = self.ranks.index(rank), CUTS.index(cut), _places(layer, head)
        difference, same_mask = None, float("nan")
        if self.pair is not None and head is None:
            causal, prefix = (tables[name] for name in self.pair)
            difference = self._interval(causal - prefix)
            squares = [between_seeds(table.mean(axis=1)) ** 2 for table in (causal, prefix)]
            same_mask = float(np.sqrt(np.mean(squares)))
        return CutRow(
            extra_loss={arm: self._interval(table) for arm, table in tables.items()},
            difference=difference,
            same_mask=same_mask,
            removed_share={arm.arm: float(arm.removed_share[..., *matrices, k].mean()) for arm in self.arms},
            cut_error={arm.arm: float(arm.cut_error[..., *matrices, k, c].mean()) for arm in self.arms},
        )

    def needed(
        self,
        arm: str,
        *,
        threshold: float = THRESHOLD,
        scope: Scope = "all",
        cut: Cut = "remasked",
        layer: int | None = None,
        head: int | None = None,
    ) -> tuple[int | None, ...]:
        """The functional rank of each seed: the least k from which on the extra loss stays below the threshold.

        Only tested k are known, so the value is an upper bound within one step of `ranks`; None where even the largest
        of them costs more. With ranks a factor of two apart an interval over seeds would show the grid, so there is none:
        the values of the seeds are the result.

        Args:
            arm: name.
            threshold: nats per token.
            scope: as in `row`, like the following.
            cut: `remasked` or `plain`.
            layer: that one, or None for the mean over all.
            head: that one, or None for the mean over all.

        Raises:
            ConfigurationError: a scope, layer or head that was not measured.
        """
        by_rank = [
            self.by_sequence(arm, rank, scope=scope, cut=cut, layer=layer, head=head).mean(axis=1)
            for rank in self.ranks
        ]
        below = np.stack(by_rank) < threshold  # "kept_rank seed"
        stays = np.logical_and.accumulate(below[::-1], axis=0)[::-1]
        return tuple(self.ranks[int(seed.argmax())] if seed.any() else None for seed in stays.T)

    def by_sequence(
        self,
        arm: str,
        rank: int,
        *,
        scope: Scope = "all",
        cut: Cut = "remasked",
        layer: int | None = None,
        head: int | None = None,
    ) -> Array:
        """Extra loss of one arm, "seed sequence"; the mean over layers and heads that are not named.

        Args:
            arm: name.
            rank: one of `ranks`.
            scope: as in `row`, like the following.
            cut: `remasked` or `plain`.
            layer: that one, or None for the mean over all.
            head: that one, or None for the mean over all.

        Raises:
            ConfigurationError: a rank, scope, layer or head that was not measured.
        """
        for name, value, known in (("scope", scope, self.scopes), ("cut", cut, CUTS), ("rank", rank, self.ranks)):
            if value not in known:
                raise ConfigurationError(f"{name} must be one of {known}, got {value!r}. Choose one that was measured.")
        chosen = self.arm(arm)
        self._check_place(scope, layer, head, chosen.removed_share.shape)
        table = chosen.extra_loss[scope][..., self.ranks.index(rank), CUTS.index(cut)]
        places = _places(layer, head)[: table.ndim - 2]
        return np.asarray(table[:, :, *places].mean(axis=tuple(range(2, table.ndim))))

    def _check_place(self, scope: Scope, layer: int | None, head: int | None, shape: tuple[int, ...]) -> None:
        layers = 0 if scope == "all" else shape[2]
        heads = 0 if scope != "head" or layer is None else shape[3]
        for name, place, count in (("layer", layer, layers), ("head", head, heads)):
            if place is not None and not 0 <= place < count:
                allowed = f"None or within 0..{count - 1}" if count else "None"
                raise ConfigurationError(
                    f"{name} must be {allowed} for scope {scope}, got {place!r}. Name a layer only for the scopes layer "
                    "and head, and a head only together with its layer."
                )

    def _interval(self, table: Array) -> Interval:
        """Over the seeds of "seed sequence", or with one seed over documents."""
        if len(table) > 1:
            return mean_interval(table.mean(axis=1))
        return bootstrap_over_documents(table[0], self.documents)


def _places(layer: int | None, head: int | None) -> tuple[slice, slice]:
    """Index of one layer and head or of all, both axes kept."""
    one, other = (slice(None) if place is None else slice(place, place + 1) for place in (layer, head))
    return one, other
