"""Brackets of measures from probes: 95% intervals between a lower and an upper quadrature.

What bounds what, for every probe and up to rounding. With h(x) = sqrt(x) and t_c(x) = -sqrt(x) (log(x) / 2 + c), the sums
over all values are N = sum sigma and W = T - c N, T = -sum sigma log sigma. The m-th derivative of h has the sign of
(-1)^(m - 1); that of t_c is

    -a_m x^(1/2 - m) (log x + 2 c + H_m),    a_m = prod_{j<m} (1/2 - j),    H_m = sum_{j<m} 1 / (1/2 - j),

which has the same sign on (0, b] as long as c <= -(H_m + log b) / 2. So after k steps, with b a bound of the spectrum, Gauss
is an upper and Gauss-Radau with its node at 0 a lower bound of N, and of W for every c <= -(H_2k + log b) / 2. The effective
rank N exp(T / N) = N exp(W / N + c) rises with W, and with N where W <= N. There the pair of plug-in values brackets
it, and that is the rule, because the largest c grows like log k; elsewhere its extremes over the box of N and W do.
(c = 0, the box of N and T, is always allowed and much wider.) For the effective rank of sigma^2, -x log x has such
signs for every b.

Counts and partial sums rest on the inequality of Chebyshev, Markov and Stieltjes: the measure below a node of a Gauss
or Radau rule is at least the weight of the nodes before it, and up to and with the node at most their weight and its own.
For a count the rule has a node at the threshold. For sums over the k largest values, every k at once, a measure in
which each weight stands at the next (previous) node lies above (below) the true one.

Probes: they are averaged with weights under which two known sums come out exactly, the number of values and ||A||_F^2. Each
end of a bracket is moved out by Student's t times the jackknife error of that end.

Source: Golub and Meurant (2010), chapter 6; Karlin and Studden (1966), Tchebycheff systems; Deville and Sarndal (1992),
Calibration estimators in survey sampling; Efron and Stein (1981), The jackknife estimate of variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.spectra.quadrature import EPS, ROUNDING, Probed, Rule

__all__ = ["Bracket", "Estimates"]

CONFIDENCE: Final = 0.95
VARIES: Final = 1e-9  # a known sum whose relative spread over probes is smaller tells nothing but rounding
FARTHEST_NODE: Final = 4.0  # units of sigma_1^2; a node farther out takes the others' last digits
WHOLE: Final = 1e-6  # an end that misses a whole number by less is that number
REACHED: Final = 1e-12  # a share this close below its target counts as reaching it, as for the exact measures

Array: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["energy", "mass"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """A 95% interval of one number."""

    lower: float
    """Lower end."""
    upper: float
    """Upper end."""
    quadrature: float
    """Upper minus lower quadrature, the part that more steps would narrow; more probes would narrow the rest."""

    @property
    def half_width(self) -> float:
        """Half of the width relative to the midpoint; 0 where both ends are."""
        return (self.upper - self.lower) / (self.upper + self.lower) if self.upper > 0 else 0.0


class Estimates:
    """Measures of one matrix from what probes have seen of it.

    Inside, a number is a tensor "sample": from all probes first, then without the first probe, without the second, ...
    """

    def __init__(self, probed: Probed) -> None:
        self.probed = probed
        controls = _controls(probed)
        self._weights = _calibrated(controls, len(probed.masses))
        self._freedom = len(probed.masses) - 1 - len(controls)

    def nuclear_norm(self) -> Bracket:
        """Sum of the singular values, in the units of A."""
        lower, upper = self._nuclear
        return self._bracket(lower, upper, least=1.0, most=math.inf, unit=self.probed.largest)

    def effective_rank(self) -> Bracket:
        """exp(-sum p log p), p = sigma / N."""
        seen, (least, most) = self.probed, self._nuclear
        entropy = self._mean(seen.gauss.integrate(_entropy(seen.gauss.nodes))) + _entropy(seen.found.square()).sum()
        allowed = -(_order_sum(2 * seen.steps) + 2 * math.log(seen.edge)) / 2
        c = min(allowed, float(entropy[0] / most[0]))  # W <= N needs no more
        slack = self._rounding(_entropy) + abs(c) * self._rounding(_root) + self._moved_entropy(abs(c))
        found = _entropy(seen.found.square(), c).sum()
        low = found + self._mean(seen.radau.integrate(_entropy(seen.radau.nodes, c))) - slack
        high = found + self._mean(seen.gauss.integrate(_entropy(seen.gauss.nodes, c))) + slack
        lowest = torch.minimum(torch.maximum(low, least), most)  # N exp(low / N) has its minimum at N = low
        lower = lowest * (low / lowest + c).exp()
        upper = torch.maximum(least * (high / least + c).exp(), most * (high / most + c).exp())
        return self._bracket(lower, upper, least=1.0, most=seen.size)

    def effective_rank_energy(self) -> Bracket:
        """exp(-sum q log q), q = sigma^2 / ||A||_F^2."""
        seen, energy = self.probed, self._energy
        slack = self._rounding(_energy_entropy) + 2 * seen.displacement  # x log x has slope 2 at sigma = 1, less before
        found = _energy_entropy(seen.found.square()).sum()
        low = found + self._mean(seen.radau.integrate(_energy_entropy(seen.radau.nodes))) - slack
        high = found + self._mean(seen.gauss.integrate(_energy_entropy(seen.gauss.nodes))) + slack
        lower, upper = ((side / energy).exp() * energy for side in (low, high))
        return self._bracket(lower, upper, least=1.0, most=seen.size)

    def participation_ratio(self) -> Bracket:
        """||A||_F^4 / sum sigma^4: of degree 2, so that quadrature takes no error from the second step on."""
        seen = self.probed
        fourth = seen.found.pow(4).sum() + self._mean(seen.gauss.integrate(seen.gauss.nodes.square()))
        slack = 4 * seen.displacement
        lower, upper = (self._energy.square() / (fourth + side) for side in (slack, -slack))
        return self._bracket(lower, upper, least=1.0, most=seen.size)

    def frobenius_norm(self) -> Bracket:
        """||A||_F, exactly where it is known."""
        norm = self._energy.sqrt()
        return self._bracket(norm, norm, least=1.0, most=math.inf, unit=self.probed.largest)

    def stable_rank(self) -> Bracket:
        """||A||_F^2 / sigma_1^2, exactly where the first is known."""
        return self._bracket(self._energy, self._energy, least=1.0, most=self.probed.size)

    def count_above(self, threshold: float) -> Bracket:
        """Number of singular values above threshold * sigma_1.

        Args:
            threshold: relative to sigma_1, at least 0.

        Returns:
            A bracket between whole numbers. Thresholds that are small beside the width of a quadrature cell, 1 / steps^2
            in sigma^2, are hardly resolved, and the bracket says so.
        """
        if not threshold >= 0:
            raise ConfigurationError(f"threshold must be at least 0, got {threshold!r}. It is relative to sigma_1.")
        seen, error = self.probed, self.probed.displacement
        raised, lowered = threshold + error, max(0.0, threshold - error)
        lower = self._mean(_above(seen, raised**2 + ROUNDING, strictly=True)) + (seen.found > raised).sum()
        upper = self._mean(_above(seen, lowered**2 - ROUNDING, strictly=False)) + (seen.found > lowered).sum()
        return _whole(self._bracket(lower, upper, least=1.0 if raised < 1 else 0.0, most=seen.size))

    def share_rank(self, kind: Kind, fraction: float) -> Bracket:
        """Least k for which the k largest sigma^2 (`energy`) or sigma (`mass`) sum to the fraction of their total."""
        if not 0 < fraction <= 1:
            raise ConfigurationError(f"fraction must be above 0 and at most 1, got {fraction!r}. Pass 0.9 for 90%.")
        lower, upper = self._energy_shares if kind == "energy" else self._mass_shares
        least, most = (torch.tensor([_crossing(row, fraction - REACHED) for row in side]) for side in (upper, lower))
        bracket = self._bracket(least, most, least=1.0, most=self.probed.size)
        return _whole(replace(bracket, lower=math.ceil(bracket.lower - WHOLE)))  # a crossing lies below its k

    def mass_at_quarter(self) -> Bracket:
        """Share of N in the ceil(size / 4) largest values."""
        quarter = (self.probed.size + 3) // 4
        lower, upper = (torch.from_numpy(side[:, quarter].copy()) for side in self._mass_shares)
        return self._bracket(lower, upper, least=quarter / self.probed.size, most=1.0)

    def distribution(self) -> tuple[Tensor, Tensor]:
        """Values in the units of A, descending, "node", and how many singular values each stands for, "node"."""
        nodes, weights = _pooled(self.probed, self.probed.gauss.nodes, self._weights[:1])
        return nodes.clamp(min=0).sqrt() * self.probed.largest, weights[0]

    @cached_property
    def _nuclear(self) -> tuple[Tensor, Tensor]:
        seen = self.probed
        slack = self._rounding(_root) + seen.displacement
        lower = self._mean(seen.radau.integrate(_root(seen.radau.nodes))) - slack
        upper = self._mean(seen.gauss.integrate(_root(seen.gauss.nodes))) + slack
        return (seen.found.sum() + lower).clamp(min=1.0), (seen.found.sum() + upper).clamp(min=1.0)

    @cached_property
    def _energy(self) -> Tensor:
        if self.probed.energy is not None:
            return torch.full_like(self._weights[:, 0], self.probed.energy)
        return self.probed.found.square().sum() + self._mean(self.probed.masses * self.probed.diagonal[:, 0])

    @cached_property
    def _energy_shares(self) -> tuple[Array, Array]:
        return self._shares("energy")

    @cached_property
    def _mass_shares(self) -> tuple[Array, Array]:
        return self._shares("mass")

    def _shares(self, kind: Kind) -> tuple[Array, Array]:
        """Share of the k largest values at least and at most: "sample k", k = 0 .. size."""
        seen = self.probed
        function = _root if kind == "mass" else _identity
        totals = self._nuclear if kind == "mass" else (self._energy, self._energy)
        least, most = (rearrange(total, "sample -> sample 1").numpy() for total in totals)
        below, above = self._moved_rules()
        heads_below, tails_below = self._partial_sums(below, function)
        heads_above, tails_above = self._partial_sums(above, function)
        slack = (1 if kind == "mass" else 2) * seen.displacement / least
        lower = np.maximum.reduce([_ratio(heads_below, tails_above), 1 - tails_above / least, heads_below / most])
        upper = np.minimum.reduce([_ratio(heads_above, tails_below), 1 - tails_below / most, heads_above / least])
        lower, upper = lower - slack, upper + slack
        lower[:, -1] = upper[:, -1] = 1.0
        return lower, upper

    def _moved_rules(self) -> tuple[Tensor, Tensor]:
        """The Gauss rule's nodes each at the previous one, and each at the next."""
        nodes, seen = self.probed.gauss.nodes, self.probed
        top = min(seen.edge, float(seen.found[-1])) if len(seen.found) else seen.edge
        last = nodes[:, -1:].clamp(min=top**2)
        return torch.cat([torch.zeros_like(last), nodes[:, :-1]], dim=1), torch.cat([nodes[:, 1:], last], dim=1)

    def _partial_sums(self, nodes: Tensor, function: Callable[[Tensor], Tensor]) -> tuple[Array, Array]:
        """Sums over the k largest values, and over the others: "sample k"."""
        descending, weights = _pooled(self.probed, nodes, self._weights)
        counts = np.pad(weights.cumsum(dim=1).numpy(), ((0, 0), (1, 0)))
        sums = np.pad((weights * function(descending)).cumsum(dim=1).numpy(), ((0, 0), (1, 0)))
        k = np.arange(self.probed.size + 1)
        heads = np.stack([np.interp(k, count, total) for count, total in zip(counts, sums, strict=True)])
        tails: Array = heads[:, -1:] - heads
        return heads, tails

    def _mean(self, values: Tensor) -> Tensor:
        """Sum over the singular values that are left, from one number per probe."""
        return self._weights @ values

    def _rounding(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """By how much nodes that are off by `ROUNDING` may change a sum."""
        nodes = self.probed.gauss.nodes
        here = function(nodes)
        change = torch.maximum((function(nodes + ROUNDING) - here).abs(), (function(nodes - ROUNDING) - here).abs())
        return self._mean(self.probed.gauss.integrate(change))

    def _moved_entropy(self, c: float) -> float:
        """By how much values that move by `displacement` in total may change W.

        |s log s - t log t| <= -d log d for d = |s - t| <= 1/2 (Fannes, 1973), and the sum is largest for equal d.
        """
        moved = self.probed.displacement
        return moved * (math.log(self.probed.size / moved) + c) if moved > 0 else 0.0

    def _bracket(self, lower: Tensor, upper: Tensor, *, least: float, most: float, unit: float = 1.0) -> Bracket:
        """Each end moved out by its probe error, within what is possible."""
        from scipy.special import stdtrit  # quantile of Student's t; scipy.stats takes a second to load

        factor = float(stdtrit(self._freedom, (1 + CONFIDENCE) / 2))
        low = float(lower[0]) - factor * _jackknife_error(lower)
        high = float(upper[0]) + factor * _jackknife_error(upper)
        low, high = (min(max(end, least), most) for end in (low, high))
        return Bracket(lower=low * unit, upper=high * unit, quadrature=float(upper[0] - lower[0]) * unit)


# Functions of x = sigma^2 in units of sigma_1^2; rounding may have left x below 0.


def _identity(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def _root(x: Tensor) -> Tensor:
    return x.clamp(min=0).sqrt()


def _entropy(x: Tensor, c: float = 0.0) -> Tensor:
    """-sigma (log sigma + c)."""
    sigma = _root(x)
    return -torch.xlogy(sigma, sigma) - c * sigma


def _energy_entropy(x: Tensor) -> Tensor:
    return -torch.xlogy(_identity(x), _identity(x))


def _order_sum(order: int) -> float:
    """H_m of the module docstring."""
    return math.fsum(1 / (0.5 - j) for j in range(order))


# Counts and shares.


def _above(seen: Probed, x: float, *, strictly: bool) -> Tensor:
    """Weight that certainly lies above x, or, if not `strictly`, that possibly lies at or above it: "probe"."""
    count = _beyond(seen.gauss, x, margin=1, strictly=strictly)
    if x <= 0:
        return count
    fixed = seen.with_node(x)
    close = fixed.nodes.abs().amax(dim=1) <= FARTHEST_NODE
    other = _beyond(fixed, x, margin=0, strictly=strictly)
    better = torch.maximum(count, other) if strictly else torch.minimum(count, other)
    return better.where(close, count)


def _beyond(rule: Rule, x: float, *, margin: int, strictly: bool) -> Tensor:
    """Weight of the nodes above x without the `margin` lowest of them, or at or above it with as many from below."""
    above = rule.nodes > x + ROUNDING if strictly else rule.nodes >= x - ROUNDING
    places = torch.arange(rule.nodes.shape[1])
    first = rearrange((~above).sum(dim=1), "probe -> probe 1") + (margin if strictly else -margin)
    return rule.integrate((places >= first).to(torch.float64))


def _pooled(seen: Probed, nodes: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Found values and nodes together, sigma^2 "node" descending, and their weights, "sample node"."""
    weights = rearrange(samples.clamp(min=0), "sample probe -> sample probe 1") * seen.gauss.weights
    weights = rearrange(weights, "sample probe node -> sample (probe node)")
    weights = weights * (seen.rest / weights.sum(dim=1, keepdim=True).clamp(min=EPS))
    found = seen.found.square()
    pooled = torch.cat([found, nodes.flatten()])
    order = pooled.argsort(descending=True, stable=True)
    whole = torch.cat([found.new_ones(len(samples), len(found)), weights], dim=1)
    return pooled[order], whole[:, order]


def _ratio(head: Array, tail: Array) -> Array:
    return np.divide(head, head + tail, out=np.zeros_like(head), where=head > 0)


def _crossing(share: Array, fraction: float) -> float:
    """Where a share that rises with k = 0, 1, ... reaches the fraction, between two k by interpolation."""
    k = int(np.argmax(share >= fraction))
    if k == 0:
        return 0.0
    return float(k - (share[k] - fraction) / (share[k] - share[k - 1]))


def _whole(bracket: Bracket) -> Bracket:
    """Between whole numbers, outwards."""
    lower, upper = math.floor(bracket.lower + WHOLE), math.ceil(bracket.upper - WHOLE)
    return Bracket(lower=float(lower), upper=float(upper), quadrature=bracket.quadrature)


# Probes.


def _controls(seen: Probed) -> list[tuple[Tensor, float]]:
    """Numbers per probe whose sum over singular values is known: each probe's share, "probe", and that sum."""
    candidates = [(seen.masses, float(seen.rest), EPS * seen.size)]
    if seen.energy is not None:
        left = max(0.0, seen.energy - float(seen.found.square().sum()))
        candidates.append((seen.masses * seen.diagonal[:, 0], left, 1e3 * EPS * seen.energy))
    return [
        (values, known)
        for values, known, rounding in candidates
        if float(values.std()) > max(VARIES * float(values.mean()), rounding)
    ]


def _calibrated(controls: list[tuple[Tensor, float]], probes: int) -> Tensor:
    """Weights "sample probe" of the probes that sum to 1, reproduce the known sums and are otherwise as equal as can be."""
    kept = torch.cat([torch.ones(1, probes), 1 - torch.eye(probes)]).double()
    equal = kept / kept.sum(dim=1, keepdim=True)
    if not controls:
        return equal
    spread = torch.stack([values.std() for values, _ in controls])
    values = torch.stack([values for values, _ in controls], dim=1) / spread
    known = torch.tensor([known for _, known in controls], dtype=torch.float64) / spread
    means = equal @ values
    deviations = (values - rearrange(means, "sample control -> sample 1 control")) * rearrange(kept, "s p -> s p 1")
    squares = torch.linalg.pinv(deviations.mT @ deviations, hermitian=True, rtol=VARIES)
    return equal + torch.einsum("spc,scd,sd->sp", deviations, squares, known - means)


def _jackknife_error(samples: Tensor) -> float:
    """Standard error of the first of them from the others, each without one probe."""
    others = samples[1:]
    squares = (others - others.mean()).square().sum()
    return float((squares * (len(others) - 1) / len(others)).sqrt())
