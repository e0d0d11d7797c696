"""Named assertions about measures, each a sentence about mathematics."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from matrices import Matrix, orthogonal
from torch import Tensor

from rankkit.spectra import measures
from rankkit_kernels.singular_values import singular_values

ROUNDING = 1e-12  # a few hundred roundings of float64, the length of the sums involved

SpectralMeasure = Callable[[Tensor], Tensor]


def spectrum(matrix: Matrix) -> Tensor:
    return singular_values(matrix, method="svd", workers=1).values


def assert_scale_invariant(measure: SpectralMeasure, values: Tensor, scale: float) -> None:
    """The measure of c sigma is the measure of sigma."""
    torch.testing.assert_close(measure(scale * values), measure(values), rtol=ROUNDING, atol=0, equal_nan=True)


def assert_homogeneous(measure: SpectralMeasure, values: Tensor, scale: float) -> None:
    """The measure of c sigma is c times the measure of sigma."""
    torch.testing.assert_close(measure(scale * values), scale * measure(values), rtol=ROUNDING, atol=0)


def assert_unitarily_invariant(measure: SpectralMeasure, matrix: Matrix, *, seed: int, rtol: float = 1e-9) -> None:
    """The measure of U A V is the measure of A for orthogonal U and V."""
    rotated = orthogonal(matrix.shape[0], seed) @ matrix @ orthogonal(matrix.shape[1], seed + 1)
    torch.testing.assert_close(measure(spectrum(rotated)), measure(spectrum(matrix)), rtol=rtol, atol=0)


def assert_order_free(measure: SpectralMeasure, values: Tensor, *, seed: int) -> None:
    """The order in which the singular values are given does not matter."""
    shuffled = values[..., torch.from_numpy(np.random.default_rng(seed).permutation(values.shape[-1]))]
    torch.testing.assert_close(measure(shuffled), measure(values), rtol=0, atol=0, equal_nan=True)


def assert_padding_free(measure: SpectralMeasure, values: Tensor, *, padding: int) -> None:
    """Trailing nan does not matter."""
    padded = torch.cat([values, torch.full((*values.shape[:-1], padding), torch.nan, dtype=values.dtype)], dim=-1)
    torch.testing.assert_close(measure(padded), measure(values), rtol=ROUNDING, atol=0, equal_nan=True)


def assert_batched(measure: SpectralMeasure, values: Tensor) -> None:
    """A batch measures what its members measure one by one."""
    alone = torch.stack([measure(row) for row in values.flatten(0, -2)]).reshape(values.shape[:-1])
    torch.testing.assert_close(measure(values), alone, rtol=ROUNDING, atol=0, equal_nan=True)


def assert_renyi_order(values: Tensor) -> None:
    """Stable rank <= participation ratio <= erank of sigma^2 <= erank of sigma <= rank, and 1 <= all of them."""
    ranks = [
        torch.ones(values.shape[:-1], dtype=torch.float64),
        measures.stable_rank(values),
        measures.participation_ratio(values),
        measures.effective_rank_energy(values),
        measures.effective_rank(values),
        measures.numerical_rank(values, tolerance=0.0),
    ]
    for smaller, larger in itertools.pairwise(ranks):
        assert bool((smaller <= larger * (1 + ROUNDING)).all()), (smaller, larger)
