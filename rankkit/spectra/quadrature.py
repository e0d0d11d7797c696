"""The spectrum of a matrix seen by random probes: sums over all singular values from products alone.

With x = sigma^2 and B = A^T A, sum f(x_i) = trace f(B) is the mean of z^T f(B) z over random signs z, and each of these is
an integral of f against the spectral measure of z. Lanczos from z gives the Jacobi matrix J of that measure: its
eigenvalues are the nodes and the squared first components of its eigenvectors the weights of a Gauss rule, exact
for polynomials of degree 2 steps - 1. Nothing is reorthogonalised: three vectors a probe, and the copies of an
eigenvalue that rounding brings in share the weight of one.

The leading triplets (U, sigma, V) are taken out first. With P the projector off V, the recurrence runs on P B P, and what
it sees is added to the found values. This removes most of the probes' variance, and it brings the end of the spectrum from
sigma_1^2 down to sigma_{k+1}^2, which is worth four times as many steps (measured at n = 1024).

What that costs: with R = P A^T U, whose columns r_i are the residuals, A differs from U U^T A V V^T + (I - U U^T) A P by
U R^T, and (I - U U^T) A P from A P likewise. By Mirsky's inequality the values of A and those of the two parts together
differ by at most `displacement` = 2 sum_i |r_i| in total, and so does each.

Everything is in units of sigma_1.

Source: Golub and Meurant (2010), Matrices, Moments and Quadrature; Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A))
via stochastic Lanczos quadrature; Greenbaum (1989) for the recurrence in floating point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.operators import Operator
from rankkit.spectra.leading import Leading
from rankkit.spectra.probes import signs
from rankkit.spectra.threads import one_thread, threads_for_products

__all__ = ["FEWEST_PROBES", "Probed", "Rule", "probe"]

EPS: Final = 2.0**-52
ROUNDING: Final = 32 * EPS
"""What rounding may have moved an eigenvalue of B by, in units of sigma_1^2: products are off by a few eps."""
BREAKDOWN: Final = 64 * EPS  # a residual below it, in the same units, is rounding: the probe's space is closed
DEFLATABLE: Final = 1e-5  # a triplet with a larger residual, relative to sigma_1, stays with the probes
FEWEST_PROBES: Final = 8
FIRST_CHECK: Final = 20  # steps; later checks each come after a quarter as many again
GROWTH: Final = 1.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """A quadrature rule for each probe."""

    nodes: Tensor
    """"probe node", ascending, in units of sigma_1^2; rounding may leave some below 0."""
    weights: Tensor
    """"probe node", summing to the probe's |P z|^2."""
    ends: Tensor
    """"probe node": squared last components of J's eigenvectors."""

    def integrate(self, values: Tensor) -> Tensor:
        """Sum of weights times values "probe node": "probe"."""
        return (self.weights * values).sum(dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Probed:
    """What probes have seen of one matrix after some steps: found values, and Jacobi matrices of the rest."""

    size: int
    """min(n, m): how many singular values there are."""
    largest: float
    """sigma_1, the unit of everything else."""
    found: Tensor
    """"component": the values taken out, descending."""
    displacement: float
    """By how much the found values and the rest together may differ from the true ones, summed over all values."""
    edge: float
    """An upper bound of the other values, but with `Leading.missed_probability`."""
    energy: float | None
    """||A||_F^2 where it is known."""
    masses: Tensor
    """"probe": |P z|^2."""
    diagonal: Tensor
    """"probe step": of J."""
    coupling: Tensor
    """"probe step": beside the diagonal of J, and last the residual."""

    @property
    def steps(self) -> int:
        """Lanczos steps taken."""
        return self.diagonal.shape[1]

    @property
    def rest(self) -> int:
        """How many values are left to the probes."""
        return self.size - len(self.found)

    @property
    def closed(self) -> bool:
        """Whether every probe's space is invariant, so that its quadrature is exact."""
        return self.rest == 0 or bool((self.coupling[:, -1] == 0).all())

    @cached_property
    def gauss(self) -> Rule:
        """The Gauss rule."""
        return self._rule(torch.zeros(len(self.masses), 0, dtype=torch.float64))

    @cached_property
    def radau(self) -> Rule:
        """The Gauss-Radau rule with one node at 0, a hair's breadth below what rounding can tell from it."""
        return self.with_node(-ROUNDING)

    def with_node(self, node: float) -> Rule:
        """The Gauss-Radau rule with one node fixed.

        The last diagonal entry is node + coupling^2 (J - node)^-1_{last, last}, from the Gauss rule's eigenvectors.
        """
        gap = self.gauss.nodes - node
        gap = torch.where(gap.abs() < ROUNDING / 2, ROUNDING / 2, gap)
        return self._rule(node + self.coupling[:, -1:].square() * (self.gauss.ends / gap).sum(dim=-1, keepdim=True))

    def _rule(self, last: Tensor) -> Rule:
        """The rule of J, grown by a row with `last` on the diagonal where it is not empty."""
        diagonal = torch.cat([self.diagonal, last], dim=1)
        beside = torch.diag_embed(self.coupling[:, : diagonal.shape[1] - 1], offset=-1)
        with one_thread():
            nodes, vectors = torch.linalg.eigh(torch.diag_embed(diagonal) + beside)
        weights = rearrange(self.masses, "probe -> probe 1") * vectors[:, 0].square()
        return Rule(nodes=nodes, weights=weights, ends=vectors[:, -1].square())


def probe(
    operator: Operator,
    leading: Leading,
    /,
    *,
    energy: float | None,
    probes: int = 32,
    steps: int = 240,
    seed: int = 0,
) -> Iterator[Probed]:
    """Look at one matrix with random signs, more closely from one item to the next.

    Args:
        operator: one matrix along its leading axis.
        leading: its triplets, with vectors.
        energy: ||A||_F^2 where it is known.
        probes: how many; all go through one product per step.
        steps: of Lanczos at most.
        seed: of the signs.

    Yields:
        What is known after 20, 25, 31, ... steps, and after the last; nothing for a matrix that is not finite or zero.

    Raises:
        ConfigurationError: fewer than 8 probes or 2 steps; a leading without vectors or for several matrices.
    """
    if probes < FEWEST_PROBES or steps < 2:
        raise ConfigurationError(
            f"probes must be at least {FEWEST_PROBES} and steps at least 2, got {probes} and {steps}. Take 32 and 240."
        )
    if leading.left is None or leading.right is None or len(leading.values) != 1:
        raise ConfigurationError(
            f"leading must be of one matrix and keep its vectors, got {len(leading.values)}. Pass vectors=True."
        )
    largest = float(leading.values[0, 0])
    if not largest > 0:
        return
    recurrence = _Recurrence(operator, leading, probes, steps, seed)
    checks = _checks(steps)
    for step in range(1, steps + 1):
        if recurrence.rest > 0:
            with one_thread():
                recurrence.advance()
        if not recurrence.finite:
            return
        if step == steps or step in checks or recurrence.closed:
            yield recurrence.seen(leading, energy)
        if recurrence.closed:
            return


def _checks(steps: int) -> frozenset[int]:
    found = [FIRST_CHECK]
    while found[-1] < steps:
        found.append(round(GROWTH * found[-1]))
    return frozenset(found)


class _Recurrence:
    """Three-term Lanczos on P B P for all probes at once, on the shorter side of A."""

    def __init__(self, operator: Operator, leading: Leading, probes: int, steps: int, seed: int) -> None:
        assert leading.left is not None
        assert leading.right is not None
        self.operator, self.wide = operator, operator.columns > operator.rows
        size = min(operator.rows, operator.columns)
        values, residuals = leading.values[0], leading.residuals[0]
        certain = residuals <= torch.minimum(values, DEFLATABLE * values[0])
        self.taken = certain.cumprod(dim=0).bool()  # those before the first that is not, so that the rest are smaller
        vectors = (leading.left if self.wide else leading.right)[0]
        self.vectors = vectors[:, self.taken.to(vectors.device)]
        self.rest = size - self.vectors.shape[1]
        self.unit = float(values[0]) ** 2
        self.finite, self.closed = True, self.rest == 0
        start = self._project(signs(seed, "signs", size, probes, device=operator.device))
        norms = torch.linalg.vector_norm(start, dim=0) if self.rest else start.new_zeros(probes)
        self.masses = norms.square()
        self.vector = torch.where(norms > 0, start / norms, 0.0)
        self.previous = torch.zeros_like(start)
        # Filled in step by step: small results kept between large temporaries would pin them all.
        self.diagonal, self.coupling = (start.new_zeros(probes, max(2, steps)) for _ in range(2))
        self.steps = 0

    def _project(self, x: Tensor) -> Tensor:
        return x - self.vectors @ (self.vectors.mT @ x)

    def _product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A X and A^T A X, or A^T X and A A^T X where A is wide."""
        with threads_for_products():
            if self.wide:
                half = self.operator.adjoint_product(x[None])
                return half[0], (self.operator @ half)[0]
            half, whole = self.operator.gram_product(x[None])
            return half[0], whole[0]

    def advance(self) -> None:
        half, whole = self._product(self.vector)
        diagonal = half.square().sum(dim=0) / self.unit
        following = self._project(whole) / self.unit - diagonal * self.vector
        if self.steps:
            following -= self.coupling[:, self.steps - 1] * self.previous
        coupling = torch.linalg.vector_norm(following, dim=0)
        coupling = coupling.where(~(coupling <= BREAKDOWN), 0.0)
        self.finite = bool(coupling.isfinite().all())
        self.previous = self.vector
        self.vector = torch.where(coupling > 0, following / coupling, 0.0)  # once closed, all that follows is 0
        self.diagonal[:, self.steps], self.coupling[:, self.steps] = diagonal, coupling
        self.steps += 1
        self.closed = bool((coupling == 0).all()) or self.steps >= 2 * self.rest + 2

    def seen(self, leading: Leading, energy: float | None) -> Probed:
        values, residuals = leading.values[0], leading.residuals[0]
        largest = float(values[0])
        left = torch.cat([values[~self.taken], leading.missed_bound.clamp(min=0)])
        edge = float(left.max() + torch.linalg.vector_norm(residuals[~self.taken])) / largest
        taken = max(self.steps, 2) if self.rest == 0 else self.steps  # zeros where nothing is left
        return Probed(
            size=min(self.operator.rows, self.operator.columns),
            largest=largest,
            found=values[self.taken] / largest,
            displacement=2 * float(residuals[self.taken].sum()) / largest,
            edge=edge,
            energy=None if energy is None else energy / self.unit,
            masses=self.masses.cpu(),
            diagonal=self.diagonal[:, :taken].cpu().clone(),
            coupling=self.coupling[:, :taken].cpu().clone(),
        )
