"""Matrices whose measures are known in closed form, from the matrix through the kernel to the number."""

from __future__ import annotations

import math

import matrices
import mpmath
import numpy as np
import pytest
import torch
from properties import spectrum

from rankkit.spectra import measures


@pytest.mark.parametrize("size", [1, 7, 40, 64])
@pytest.mark.parametrize("orthogonal", [np.eye, matrices.permutation, lambda n: matrices.orthogonal(n, 3)])
def test_every_rank_of_an_orthogonal_matrix_is_its_size(orthogonal, size):
    sigma = spectrum(orthogonal(size))
    flat_ranks = (
        measures.effective_rank,
        measures.effective_rank_energy,
        measures.stable_rank,
        measures.participation_ratio,
    )
    for rank in flat_ranks:
        assert float(rank(sigma)) == pytest.approx(size, rel=1e-12)
    assert float(measures.numerical_rank(sigma, tolerance=1e-6)) == size
    for fraction in (0.8, 0.9, 0.95, 0.99):
        at_least = math.ceil(round(fraction * size, 9))  # round: 0.9 * 40 is a hair above 36 in float64
        assert float(measures.energy_rank(sigma, fraction=fraction)) == at_least
        assert float(measures.mass_rank(sigma, fraction=fraction)) == at_least
    assert float(measures.mass_at_quarter(sigma)) == pytest.approx(math.ceil(size / 4) / size, rel=1e-12)


@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.9])
def test_geometric_spectrum_has_the_effective_and_stable_rank_of_its_series(ratio):
    sigma = torch.from_numpy(ratio ** np.arange(600.0))  # 0.9^600 is 4e-28: the series has ended
    expected = 1 / ((1 - ratio) * ratio ** (ratio / (1 - ratio)))
    assert float(measures.effective_rank(sigma)) == pytest.approx(expected, rel=1e-12)
    assert float(measures.stable_rank(sigma)) == pytest.approx(1 / (1 - ratio**2), rel=1e-12)


def test_geometric_matrix_measures_as_its_series():
    sigma = spectrum(matrices.geometric(96, 0.7))
    assert float(measures.effective_rank(sigma)) == pytest.approx(1 / (0.3 * 0.7 ** (7 / 3)), rel=1e-10)


@pytest.mark.parametrize("size", [1, 2, 33, 128])
def test_lower_triangular_ones_have_cosecant_singular_values(size):
    k = np.arange(1, size + 1)
    expected = 1 / (2 * np.sin((2 * k - 1) * np.pi / (4 * size + 2)))
    tolerance = size * 2.0**-52 * expected[0]  # the error bound of LAPACK's SVD
    np.testing.assert_allclose(spectrum(matrices.lower_ones(size)), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("size", "largest", "smallest"),
    [(64, 1.5978545967061857, 0.00835142412421076), (512, 1.7202833149903822, 0.0009936936528424371)],
)
def test_uniform_causal_attention_has_the_known_extreme_singular_values(size, largest, smallest):
    sigma = spectrum(matrices.uniform("causal", size))
    tolerance = size * 2.0**-52 * largest
    assert float(sigma[0]) == pytest.approx(largest, abs=tolerance)
    assert float(sigma[-1]) == pytest.approx(smallest, abs=tolerance)


@pytest.mark.parametrize(("size", "expected"), [(64, 21.1), (128, 32.0), (256, 47.8), (512, 70.5), (1024, 102.7)])
def test_uniform_causal_attention_has_the_known_effective_rank(size, expected):
    assert float(measures.effective_rank(spectrum(matrices.uniform("causal", size)))) == pytest.approx(
        expected, abs=0.05
    )


def test_uniform_causal_attention_has_the_determinant_of_a_factorial():
    sigma = spectrum(matrices.uniform("causal", 64))
    assert float(sigma.log().sum()) == pytest.approx(-math.lgamma(65), rel=1e-12)


def test_uniform_causal_singular_values_agree_with_fifty_digits():
    size = 24
    with mpmath.workdps(50):
        cesaro = mpmath.matrix(size, size)
        for i in range(size):
            for j in range(i + 1):
                cesaro[i, j] = mpmath.mpf(1) / (i + 1)
        expected = [float(value) for value in mpmath.svd_r(cesaro, compute_uv=False)]
    np.testing.assert_allclose(spectrum(matrices.uniform("causal", size)), expected, rtol=0, atol=size * 2.0**-52 * 2)


@pytest.mark.parametrize("size", [4, 64])
def test_uniform_bidirectional_attention_has_rank_one(size):
    sigma = spectrum(matrices.uniform("bidirectional", size))
    assert float(sigma[0]) == pytest.approx(1, rel=1e-12)
    assert float(measures.effective_rank(sigma)) == pytest.approx(1, abs=1e-10)
    assert float(measures.numerical_rank(sigma, tolerance=1e-12)) == 1


def test_a_full_sink_has_rank_one_and_the_largest_norm_that_rows_summing_to_one_allow():
    full_sink = matrices.sink("causal", 100, strength=800.0)
    sigma = spectrum(full_sink)
    assert float(measures.spectral_norm(sigma)) == pytest.approx(10, rel=1e-12)
    assert float(measures.numerical_rank(sigma, tolerance=1e-12)) == 1


def test_gaussian_matrices_have_the_shares_of_the_quarter_circle_law():
    sigma = spectrum(matrices.gaussian(512, 512, seed=5))
    assert float(measures.effective_rank(sigma)) / 512 == pytest.approx(0.8050, abs=0.004)
    assert float(measures.stable_rank(sigma)) / 512 == pytest.approx(1 / 4, abs=0.01)  # sigma_1 moves by n^(-2/3)
    assert float(measures.participation_ratio(sigma)) / 512 == pytest.approx(1 / 2, abs=0.004)


@pytest.mark.parametrize("kind", ["causal", "prefix", "bidirectional", "backward"])
@pytest.mark.parametrize("std", [0.1, 1.0, 4.0])
def test_attention_keeps_the_bounds_of_a_stochastic_matrix(kind, std):
    matrix = matrices.attention(kind, 48, std=std, seed=7)
    sigma, slack = spectrum(matrix), 1 + 1e-12
    assert float(measures.spectral_norm(sigma)) * slack >= 1
    assert float(measures.spectral_norm(sigma)) <= math.sqrt(matrix.sum(axis=0).max()) * slack
    energy = float(measures.frobenius_norm(sigma)) ** 2
    assert energy * slack >= 1
    assert energy <= 48 * slack
    assert float(measures.stable_rank(sigma)) <= energy * slack
    assert float(measures.mean_ipr(torch.from_numpy(matrix))) == pytest.approx(energy / 48, rel=1e-12)


def test_a_rectangular_stochastic_matrix_keeps_its_bounds():
    matrix = matrices.softmax(matrices.random_logits(40, 90, seed=2), np.ones((40, 90), dtype=bool))
    sigma = spectrum(matrix)
    assert math.sqrt(40 / 90) <= float(sigma[0]) * (1 + 1e-12)
    assert float(sigma[0]) <= math.sqrt(40)
    assert float(measures.stable_rank(sigma)) <= float(sigma.square().sum()) * 90 / 40 * (1 + 1e-12)
