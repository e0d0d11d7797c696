"""The leading singular triplets of a matrix of which only products are known.

Block Lanczos on A^T A with full reorthogonalisation: the space spanned by X, A^T A X, (A^T A)^2 X, ... for a random block
X, an orthonormal basis of it, and the best that the space holds (Rayleigh-Ritz). A^T A X is one pass over the rows of A
where A X and A^T Y are two, so the squared matrix is the cheaper one. What squaring costs: with V the found right
vectors and r_i = A^T A v_i - sigma_i^2 v_i,

    |sigma_i - a singular value| <= |r_i| / (sigma_i + it) <= min(|r_i| / sigma_i, sqrt(|r_i|))

so a value is known to eps sigma_1^2 / sigma_i, and one that is 0 to sqrt(eps) sigma_1 = 1.5e-8 sigma_1. V is rotated so that
the columns of A V are orthogonal, and sigma_i are their norms, so that values are not rounded as squares.

That nothing larger was missed is not what residuals say. Three numbers stand beside them: the next Ritz value, what is
left of ||A||_F^2 (certain), and a bound that a fresh random block gives. With P the projector off V, C = P A^T A P, a
polynomial p, and w a vector of independent uniform entries, |p(C) w| >= |p(lambda)| |v . w| for every eigenpair of C, and
v . w is small only by chance (`probes.CUBE_SLICING`). So the largest eigenvalue of C has

    |p(lambda)| <= sqrt(2/3) alpha max_i |p(C) w_i|    but with probability alpha^-(number of w_i)

p is the Chebyshev polynomial on [0, next Ritz value], which is at most 1 there and grows fastest beyond. Multiple singular
values, which a Krylov space cannot see more often than its block is wide, are seen here.

Source: Golub and Underwood (1977), The block Lanczos method; Kahan (1967) for the residuals; Dixon (1983) for the fresh
block, with the constant of Ball (1986).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.operators import AttentionOperator, DenseOperator, Operator
from rankkit.spectra.probes import CUBE_SLICING, uniform
from rankkit.spectra.threads import one_thread, threads_for_products

__all__ = [
    "Complement",
    "Leading",
    "default_block",
    "expected_passes",
    "krylov_bytes",
    "leading_triplets",
    "squared_norm",
]

EPS: Final = 2.0**-52
BASIS_VECTORS: Final = 1024  # at most; beyond it the space is restarted from its best half
BASIS_BYTES: Final = 256 << 20  # at most, too
CHECK_VECTORS: Final = 32
CHECK_DEGREE: Final = 4  # the bound is then 1.2 to 1.3 times the true next value, for 4 passes of 32 vectors
CHECK_SLACK: Final = 2.4  # alpha; 2.4^-32 = 7e-13
NEGLIGIBLE: Final = 64 * EPS
"""Directions of a residual below this times sigma_1^2 are rounding: products are off by a few eps sigma_1^2."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leading:
    """The largest singular values of a batch of matrices, and what certifies them."""

    values: Tensor
    """"matrix component", float64, descending; nan throughout a matrix that failed."""
    residuals: Tensor
    """"matrix component": how far each value is at most from a singular value of A, in the same units."""
    left: Tensor | None
    """"matrix row component": A v / sigma, orthonormal."""
    right: Tensor | None
    """"matrix column component", orthonormal."""
    converged: Tensor
    """"matrix", bool: every residual is at most the tolerance times sigma_1."""
    failed: Tensor
    """"matrix", bool: a product was not finite."""
    next_value: Tensor
    """"matrix": the next Ritz value, a lower bound of sigma_{count + 1}; 0 where there is none."""
    energy_bound: Tensor
    """"matrix": sqrt(||A||_F^2 - sum of the found sigma^2), which no singular value beyond those found exceeds; inf where
    ||A||_F is not known."""
    missed_bound: Tensor
    """"matrix": no singular value of A P exceeds it, but with `missed_probability`; at most `energy_bound`."""
    missed_probability: float
    """That a larger one escaped the fresh block."""
    passes: Tensor
    """"matrix", int64: products with A^T A, of a block of vectors each."""


def default_block(count: int) -> int:
    """Vectors in a block: somewhat more than the wanted ones, so that the last of them converge as the first do."""
    return max(8, 16 * math.ceil((count + 8) / 16))


def expected_passes(count: int) -> tuple[int, int]:
    """Passes over a matrix, and vectors in each: 6 to 12 were needed for 32 values of attention at n = 512 to 4096."""
    return 10 + 1 + CHECK_DEGREE, default_block(count)


def krylov_bytes(rows: int, columns: int, count: int, sums: int) -> int:
    """Most memory that `leading_triplets` takes for one matrix, where a product of one vector takes `sums` numbers."""
    block = default_block(count)
    basis = 1.5 * columns * _capacity(columns, count, block)  # half again for a restart
    return round(8 * (basis + block * (sums + 6 * (rows + columns)) + 3 * BASIS_VECTORS**2))


def squared_norm(operator: Operator) -> Tensor | None:
    """||A||_F^2 of every matrix, "...", float64, exactly and in O(n) memory; None where only products are known."""
    if isinstance(operator, AttentionOperator):
        return operator.row_statistics.squared_norm
    if isinstance(operator, DenseOperator):
        norms: Tensor = torch.linalg.matrix_norm(operator.matrix.to(torch.float64))
        return norms.square()
    return None


def leading_triplets(
    operator: Operator,
    count: int,
    /,
    *,
    tolerance: float = 1e-6,
    block: int | None = None,
    max_steps: int = 100,
    seed: int = 0,
    vectors: bool = False,
    energy: Tensor | None = None,
) -> Leading:
    """The largest singular values of every matrix, with certified residuals.

    Matrices are worked on one after the other, each from the same random block.

    Args:
        operator: any batch of matrices.
        count: how many triplets; fewer are returned where a side of the matrix is shorter.
        tolerance: largest residual, relative to sigma_1.
        block: vectors in a block; `default_block` if None.
        max_steps: products with A^T A at most, before the check.
        seed: of the random blocks.
        vectors: whether to keep the left and right vectors.
        energy: "...", ||A||_F^2 of each matrix; found by `squared_norm` if None.

    Returns:
        The triplets of each matrix along one axis "matrix".

    Raises:
        ConfigurationError: a count, block or number of steps below 1, or a negative tolerance.
    """
    if min(count, max_steps, 1 if block is None else block) < 1 or not tolerance >= 0:
        raise ConfigurationError(
            f"count, block and max_steps must be at least 1 and tolerance at least 0, got {count}, {block}, {max_steps} "
            f"and {tolerance}. Ask for one triplet at least."
        )
    matrices = operator.flattened()
    count = min(count, operator.rows, operator.columns)
    found: list[_Found | None] = []
    for index in range(matrices.batch_shape[0]):
        one = matrices[index : index + 1]
        known = _energy(one) if energy is None else energy.reshape(-1)[index]
        with one_thread():
            krylov = _Krylov(one, count, block or default_block(count), seed)
            finite = (known is None or bool(known.isfinite())) and krylov.run(tolerance, max_steps)
            found.append(_certified(one, krylov, known, tolerance, seed) if finite else None)
    return _stacked(found, matrices, count, vectors)


def _energy(one: Operator) -> Tensor | None:
    total = squared_norm(one)
    return None if total is None else total.reshape(())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What is known of one matrix, on its device."""

    values: Tensor
    residuals: Tensor
    left: Tensor
    right: Tensor
    converged: bool
    next_value: float
    energy_bound: float
    missed_bound: float
    passes: int


def _stacked(found: list[_Found | None], matrices: Operator, count: int, vectors: bool) -> Leading:
    lost = _lost(matrices, count)
    every = [lost if one is None else one for one in found]

    def numbers(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor([getattr(one, name) for one in every], dtype=dtype)

    def tensors(name: str, *shape: int) -> Tensor:
        return torch.stack([getattr(one, name) for one in every]) if every else torch.empty(0, *shape)

    return Leading(
        values=tensors("values", count).cpu(),
        residuals=tensors("residuals", count).cpu(),
        left=tensors("left", matrices.rows, count) if vectors else None,
        right=tensors("right", matrices.columns, count) if vectors else None,
        converged=numbers("converged", torch.bool),
        failed=torch.tensor([one is None for one in found], dtype=torch.bool),
        next_value=numbers("next_value"),
        energy_bound=numbers("energy_bound"),
        missed_bound=numbers("missed_bound"),
        missed_probability=CHECK_SLACK**-CHECK_VECTORS,
        passes=numbers("passes", torch.int64),
    )


def _lost(matrices: Operator, count: int) -> _Found:
    """A matrix that failed."""

    def nan(*shape: int) -> Tensor:
        return torch.full(shape, torch.nan, dtype=torch.float64, device=matrices.device)

    return _Found(
        values=nan(count), residuals=nan(count), left=nan(matrices.rows, count), right=nan(matrices.columns, count),
        converged=False, next_value=math.nan, energy_bound=math.nan, missed_bound=math.nan, passes=0,
    )  # fmt: skip


def _capacity(columns: int, count: int, block: int) -> int:
    """Vectors in a basis at most; three blocks beside the wanted vectors leave room to grow after a restart."""
    return min(columns, max(count + 3 * block, min(BASIS_VECTORS, BASIS_BYTES // (8 * columns))))


class _Krylov:
    """A growing orthonormal basis "vector column" of one matrix's Krylov space, and A^T A projected on it."""

    def __init__(self, operator: Operator, count: int, block: int, seed: int) -> None:
        self.operator, self.count, self.seed = operator, count, seed
        self.columns, self.device = operator.columns, operator.device
        self.block = min(block, self.columns)
        self.capacity = _capacity(self.columns, count, self.block)
        self.basis = torch.empty(self.capacity, self.columns, dtype=torch.float64, device=self.device)
        self.projected = torch.zeros(self.capacity, self.capacity, dtype=torch.float64, device=self.device)
        self.size = 0  # vectors of the basis that A^T A has been applied to
        self.passes = 0
        self.ritz_values = torch.zeros(0, dtype=torch.float64)
        self.ritz_vectors = torch.zeros(0, 0, dtype=torch.float64)

    def run(self, tolerance: float, max_steps: int) -> bool:
        """Grow the space until the wanted values have converged; False if a product is not finite."""
        fresh = self._orthonormal(self._random(self.block))
        while True:
            product = self._extend(fresh)
            if product is None:
                return False
            coupling, following = self._following(product)
            if self._converged(coupling, tolerance) or self.passes >= max_steps:
                return True
            if self.size == self.columns:
                return True
            if self.size + self.block > self.capacity and self.capacity < self.columns:
                self._restart()
            fresh = self._orthonormal(self._filled(following))

    def _extend(self, fresh: Tensor) -> Tensor | None:
        """Take a block into the basis; returns A^T A of it, orthogonal to the basis: "vector column"."""
        first, last = self.size, self.size + len(fresh)
        self.basis[first:last] = fresh
        product = _gram(self.operator, fresh.mT)[1].mT
        self.passes += 1
        if not bool(product.isfinite().all()):
            return None
        self.size = last
        basis = self.basis[:last]
        for _ in range(2):  # twice is enough: Parlett (1980)
            overlap = basis @ product.mT
            self.projected[:last, first:last] += overlap
            product = product - overlap.mT @ basis
        self.projected[first:last, :first] = self.projected[:first, first:last].mT
        corner = self.projected[first:last, first:last]
        self.projected[first:last, first:last] = (corner + corner.mT) / 2
        values, vectors = torch.linalg.eigh(self.projected[:last, :last])
        self.ritz_values, self.ritz_vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        return product

    def _following(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """The residual block's coupling "vector of the last block, direction", and its directions, "vector column"."""
        columns, triangle = torch.linalg.qr(product.mT)
        left, sizes, right = torch.linalg.svd(triangle)
        kept = sizes > NEGLIGIBLE * self.ritz_values[0]
        return sizes[:, None] * right, (columns @ left[:, kept]).mT

    def _converged(self, coupling: Tensor, tolerance: float) -> bool:
        if self.size < self.count:
            return False
        last = self.ritz_vectors[self.size - coupling.shape[1] : self.size, : self.count]
        residuals = torch.linalg.vector_norm(coupling @ last, dim=0)
        values = self.ritz_values[: self.count].sqrt()
        return bool((_distance(residuals, values) <= tolerance * values[0]).all())

    def _filled(self, following: Tensor) -> Tensor:
        """The block to take in next; where the space closed on itself, new random directions stand in."""
        width = min(self.block, self.columns - self.size, self.capacity - self.size)
        return torch.cat([following, self._random(self.block)])[:width]

    def _random(self, vectors: int) -> Tensor:
        return uniform(self.seed, f"block {self.passes}", vectors, self.columns, device=self.device)

    def _orthonormal(self, fresh: Tensor) -> Tensor:
        """Orthonormal to each other and to the basis."""
        basis = self.basis[: self.size]
        for _ in range(2):
            fresh = fresh - (fresh @ basis.mT) @ basis
            fresh = torch.linalg.qr(fresh.mT).Q.mT
        return fresh

    def _restart(self) -> None:
        """Keep the best half of the space."""
        keep = max(self.count + self.block, self.capacity // 2)
        self.basis[:keep] = self.ritz_vectors[:, :keep].mT @ self.basis[: self.size]
        self.projected.zero_()
        self.projected[:keep, :keep] = self.ritz_values[:keep].diag()
        self.size = keep

    def vectors(self) -> Tensor:
        """The wanted Ritz vectors, "column component"."""
        return (self.ritz_vectors[:, : self.count].mT @ self.basis[: self.size]).mT


def _gram(operator: Operator, x: Tensor) -> tuple[Tensor, Tensor]:
    """A X and A^T A X of one matrix, "column vector"."""
    with threads_for_products():
        product, gram = operator.gram_product(x.contiguous()[None])
    return product[0], gram[0]


def _distance(residuals: Tensor, values: Tensor) -> Tensor:
    """From |A^T A v - sigma^2 v| to how far sigma is from a singular value at most."""
    return torch.minimum(residuals / values, residuals.sqrt()).where(residuals > 0, 0.0)


def _certified(one: Operator, krylov: _Krylov, energy: Tensor | None, tolerance: float, seed: int) -> _Found:
    """Values and residuals from an explicit product, and the check."""
    vectors = krylov.vectors()
    product, gram = _gram(one, vectors)
    orthonormal, triangle = torch.linalg.qr(product)
    rotation, values, turned = torch.linalg.svd(triangle)
    right = vectors @ turned.mT
    residuals = _distance(torch.linalg.vector_norm(gram @ turned.mT - right * values.square(), dim=0), values)
    following = float(krylov.ritz_values[krylov.count]) if krylov.size > krylov.count else 0.0
    edge = max(following, one.columns * EPS * float(values[0]) ** 2)  # Ritz values below that are rounding
    left_over = _left_over(energy, values)
    return _Found(
        values=values,
        residuals=residuals,
        left=orthonormal @ rotation,
        right=right,
        converged=bool((residuals <= tolerance * values[0]).all()),
        next_value=math.sqrt(following),
        energy_bound=left_over,
        missed_bound=min(left_over, _missed(Complement(one, right), edge, seed)),
        passes=krylov.passes + 1 + CHECK_DEGREE,
    )


def _left_over(energy: Tensor | None, values: Tensor) -> float:
    """sqrt(||A||_F^2 - sum sigma^2), with what rounding may have taken from it."""
    if energy is None:
        return math.inf
    total = float(energy)
    return math.sqrt(max(0.0, total - float(values.square().sum())) + NEGLIGIBLE * total)


class Complement:
    """C = P A^T A P of one matrix, with P the projector off orthonormal vectors "column component"."""

    def __init__(self, operator: Operator, vectors: Tensor) -> None:
        self.operator, self.vectors = operator, vectors

    def project(self, x: Tensor) -> Tensor:
        """P X, "column vector"."""
        return x - self.vectors @ (self.vectors.mT @ x)

    def product(self, x: Tensor) -> Tensor:
        """C X of X in the range of P."""
        return self.project(_gram(self.operator, x)[1])


def _missed(complement: Complement, edge: float, seed: int) -> float:
    """Bound of the root of C's largest eigenvalue, from a fresh block; it is tightest where C's spectrum ends at `edge`."""
    if edge == 0:
        return 0.0  # A = 0
    one = complement.operator
    earlier = complement.project(uniform(seed, "check", one.columns, CHECK_VECTORS, device=one.device))
    later = 2 / edge * complement.product(earlier) - earlier
    for _ in range(CHECK_DEGREE - 1):
        earlier, later = later, 2 * (2 / edge * complement.product(later) - later) - earlier
    largest = CUBE_SLICING * CHECK_SLACK * float(torch.linalg.vector_norm(later, dim=0).max())
    return math.sqrt(edge * (1 + math.cosh(math.acosh(max(1.0, largest)) / CHECK_DEGREE)) / 2)
