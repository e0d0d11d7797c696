"""Attention cut to its k leading singular triplets, re-masked or not.

A = sum_i sigma_i u_i v_i^T with sigma_1 >= sigma_2 >= ...; A_k keeps the first k terms. Two matrices are made of it:

    remasked    A_k where the mask allows, 0 elsewhere
    plain       A_k itself

A_k is the best approximation of rank k, and for a triangular A it is not triangular: `plain` mixes values of the future
into a row. Re-masking takes them out, and with them all of A_k's error above the diagonal:

    ||A - remasked||_F^2 = ||A - plain||_F^2 - ||A_k outside the mask||_F^2

so the remasked matrix always lies closer to A than A_k does, and its rank is in general larger than k: k counts what was
kept of the spectrum, not the rank of what is applied. One thing re-masking cannot undo: the triplets are those of the
whole matrix, so the weights of a row still depend, through the singular vectors, on the queries of later rows.

Neither matrix is made stochastic again: rows no longer sum to 1 and entries may be negative, because dividing them would
be a second change beside the cut.

Source: Eckart and Young (1936) for the best approximation; the identity is Pythagoras, since A is 0 outside the mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from einops import reduce
from torch import Tensor

from rankkit.errors import ConfigurationError, NonFiniteLossError
from rankkit.operators import AttentionOperator
from rankkit.spectra.exact import DEFAULT_MEMORY_BUDGET
from rankkit_kernels.singular_vectors import right_singular_vectors

__all__ = ["COPIES", "CutEffect", "Triplets", "cut_product", "singular_triplets"]

COPIES: Final = 6
"""Float64 copies of a matrix alive at once: attention, its vectors twice while the pool joins them, both factors, a cut."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CutEffect:
    """What a cut does to a batch of matrices, "..." each."""

    removed: Tensor
    """||A_k outside the mask||_F^2 / ||A_k||_F^2, what re-masking takes away: in [0, 1], 0 where everything is visible."""
    error: Tensor
    """||A - remasked||_F / ||A||_F."""
    error_plain: Tensor
    """||A - A_k||_F / ||A||_F."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Triplets:
    """All singular triplets of a batch of attention matrices that share one mask."""

    left: Tensor
    """"... query component", float64: sigma_i u_i, by falling sigma_i."""
    right: Tensor
    """"... key component", float64: v_i, orthonormal."""
    allowed: Tensor
    """"query key", bool: the mask."""

    def __getitem__(self, index: object) -> Triplets:
        """Some of the matrices, chosen on the leading axes."""
        return replace(self, left=self.left[index], right=self.right[index])  # type: ignore[index]

    def cut(self, rank: int, *, remask: bool = True) -> Tensor:
        """The matrices after the cut, "... query key", float64.

        Args:
            rank: k, from 1 to the number of keys.
            remask: `remasked` or `plain`, as the module says.

        Raises:
            ConfigurationError: a rank outside that range.
        """
        left, right = self._leading(rank)
        approximation = left @ right.mT
        return approximation.masked_fill_(~self.allowed, 0.0) if remask else approximation

    def product(self, value: Tensor, rank: int, *, remask: bool = True) -> Tensor:
        """The cut matrices times "... key feature", "... query feature" in float64; `plain` forms no matrix.

        Raises:
            ConfigurationError: as `cut`.
        """
        if remask:
            return self.cut(rank) @ value.double()
        left, right = self._leading(rank)
        return left @ (right.mT @ value.double())

    def effect(self, rank: int) -> CutEffect:
        """How much of A and of A_k the cut and the mask take away.

        Raises:
            ConfigurationError: as `cut`.
        """
        energy = reduce(self.left.square(), "... query component -> ... component", "sum")  # sigma_i^2
        kept, lost = energy[..., :rank].sum(dim=-1), energy[..., rank:].sum(dim=-1)
        outside = self.cut(rank, remask=False).masked_fill_(self.allowed, 0.0).square_()
        removed = reduce(outside, "... query key -> ...", "sum")
        whole = kept + lost
        return CutEffect(
            removed=removed / kept,
            error=((lost - removed).clamp(min=0) / whole).sqrt(),  # the difference of equals may round below 0
            error_plain=(lost / whole).sqrt(),
        )

    def _leading(self, rank: int) -> tuple[Tensor, Tensor]:
        most = self.right.shape[-1]
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
            raise ConfigurationError(
                f"rank must be a whole number from 1 to {most} (keys), got {rank!r}. Keep at least one triplet."
            )
        return self.left[..., :rank], self.right[..., :rank]


def singular_triplets(operator: AttentionOperator, /, *, workers: int | None = None) -> Triplets:
    """Form attention in float64 and decompose it; memory for `COPIES` of all its matrices.

    Args:
        operator: "... query feature"; any leading axes.
        workers: threads for LAPACK; the available cores by default. Results do not depend on it.

    Raises:
        NonFiniteLossError: a matrix that is not finite, or on which LAPACK did not converge.
    """
    attention = operator.dense()
    right, failed = right_singular_vectors(attention, workers=workers)
    if bool(failed.any()):
        raise NonFiniteLossError(
            f"attention must be finite to be cut, got {int(failed.sum())} of {failed.numel()} matrices that are not, or "
            "whose eigenvalues LAPACK did not find. The weights or their activations overflowed: take an earlier "
            "checkpoint."
        )
    return Triplets(left=attention @ right, right=right, allowed=operator.allowed())


def cut_product(
    operator: AttentionOperator,
    value: Tensor,
    /,
    *,
    rank: int,
    remask: bool = True,
    workers: int | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Tensor:
    """Attention after the cut, times the values.

    Args:
        operator: "sequence head query feature".
        value: "sequence head key feature", any dtype.
        rank: k, from 1 to the number of keys.
        remask: whether to set what the mask hides back to 0.
        workers: threads for LAPACK.
        memory_budget: bytes for dense matrices at any time; at least one sequence is always worked on.

    Returns:
        "sequence head query feature", float64.

    Raises:
        ConfigurationError: a rank outside that range.
        NonFiniteLossError: as `singular_triplets`.
    """
    per_sequence = COPIES * 8 * operator.rows * operator.columns * operator.batch_shape[1]
    chunk = max(1, memory_budget // per_sequence)
    products = [
        singular_triplets(operator[start : start + chunk], workers=workers).product(
            value[start : start + chunk], rank, remask=remask
        )
        for start in range(0, operator.batch_shape[0], chunk)
    ]
    return products[0] if len(products) == 1 else torch.cat(products)
