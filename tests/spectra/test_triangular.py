"""Smallest singular values far below what an SVD sees, against closed forms and 90 digits."""

from __future__ import annotations

import math

import matrices
import mpmath
import multiprecision
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.errors import ConfigurationError
from rankkit.spectra.triangular import log10_smallest_singular_value, smallest_singular_value

ROUNDOFF = 2.0**-53


def measured(matrix: np.ndarray) -> float:
    return float(log10_smallest_singular_value(torch.from_numpy(matrix)))


def off(found: float, expected: float) -> float:
    """Relative error of sigma_min."""
    return abs(found - expected) * math.log(10)


def doubling(size: int) -> np.ndarray:
    """Ones on the diagonal and twos below it: the inverse has entries (-2)^(i - j), so sigma_min = 3 / 2^(n + 1)."""
    return np.eye(size) + 2 * np.eye(size, k=-1)


# Closed forms.


@pytest.mark.parametrize(("size", "smallest"), [(64, 0.00835142412421076), (512, 0.0009936936528424371)])
def test_uniform_causal_attention_has_the_known_smallest_singular_value(size: int, smallest: float) -> None:
    assert off(measured(matrices.uniform("causal", size)), math.log10(smallest)) < 1e-13


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 200])
def test_lower_triangular_ones_have_a_cosecant(size: int) -> None:
    expected = 1 / (2 * math.sin((2 * size - 1) * math.pi / (4 * size + 2)))
    assert off(measured(matrices.lower_ones(size)), math.log10(expected)) < 1e-13


@pytest.mark.parametrize("size", [40, 129, 2048])
def test_the_doubling_matrix_is_right_at_every_order_of_magnitude(size: int) -> None:
    """log10 is -616 at n = 2048, where sigma_min and the inverse have left float64."""
    assert off(measured(doubling(size)), math.log10(3) - (size + 1) * math.log10(2)) < 1e-12


def test_a_diagonal_matrix_has_its_smallest_entry() -> None:
    entries = np.array([1e-300, 3.0, 1e200, 5e-310])
    assert measured(np.diag(entries)) == pytest.approx(math.log10(5e-310), abs=1e-13)
    assert measured(np.diag([2.0**-1074, 2.0**-1070])) == pytest.approx(-1074 * math.log10(2), rel=1e-14)
    assert measured(np.array([[-0.25]])) == pytest.approx(math.log10(0.25), abs=1e-15)


# Many digits.


@pytest.mark.parametrize("size", [16, 48, 96])
@pytest.mark.parametrize("std", [0.3, 1.0, 4.0, 30.0])
def test_sigma_min_of_attention_agrees_with_ninety_digits_and_keeps_its_bound(size: int, std: float) -> None:
    """Down to 1e-700, and 1e-16 from where LAPACK has nothing but noise."""
    matrix = matrices.attention("causal", size, std=std, seed=size)
    with mpmath.workdps(90):
        expected = multiprecision.log10_smallest_singular_value(multiprecision.numbers(matrix))
    found = smallest_singular_value(torch.from_numpy(matrix))
    bound = size * ROUNDOFF * float(found.condition) + 4 * ROUNDOFF * abs(expected)
    assert off(float(found.log10), expected) < min(bound, 1e-12)


def test_sigma_min_is_that_of_the_singular_value_decomposition_in_sixty_digits() -> None:
    matrix = matrices.attention("causal", 20, std=4.0, seed=3)
    with mpmath.workdps(60):
        expected = float(mpmath.log10(multiprecision.singular_values(multiprecision.numbers(matrix))[-1]))
    assert off(measured(matrix), expected) < 1e-13
    assert expected < -16  # where float64's own SVD is right to no digit


@settings(max_examples=30)
@given(size=st.integers(1, 12), seed=st.integers(0, 999), std=st.floats(0.01, 2.0))
def test_sigma_min_is_numpys_where_numpy_can_see_it(size: int, seed: int, std: float) -> None:
    matrix = matrices.attention("causal", size, std=std, seed=seed)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert 10 ** measured(matrix) == pytest.approx(values[-1], abs=size * 2.0**-52 * values[0])


# Properties.


@pytest.mark.parametrize("power", [-1000, -300, 300, 1000])
def test_sigma_min_is_homogeneous_and_its_condition_scale_invariant(power: int) -> None:
    matrix = torch.from_numpy(matrices.attention("causal", 70, seed=1))
    one, other = smallest_singular_value(matrix), smallest_singular_value(matrix * 2.0**power)
    assert float(other.log10) == pytest.approx(float(one.log10) + power * math.log10(2), abs=1e-12)
    assert float(other.condition) == pytest.approx(float(one.condition), rel=1e-9)


def test_transposed_and_reversed_matrices_have_the_same_sigma_min() -> None:
    matrix = torch.from_numpy(matrices.attention("causal", 90, std=2.0))
    expected = float(log10_smallest_singular_value(matrix))
    for other in (matrix.mT, matrix.flip(0, 1), -matrix):
        assert off(float(log10_smallest_singular_value(other)), expected) < 1e-12


def test_a_batch_is_measured_matrix_by_matrix() -> None:
    batch = torch.stack([torch.from_numpy(matrices.attention("causal", 40, seed=seed)) for seed in range(6)])
    alone = torch.stack([log10_smallest_singular_value(matrix) for matrix in batch])
    found = smallest_singular_value(batch.reshape(2, 3, 40, 40))
    assert torch.equal(found.log10.flatten(), alone)
    assert found.condition.shape == (2, 3)
    assert log10_smallest_singular_value(torch.ones(0, 4, 4)).shape == (0,)


def test_float32_entries_are_taken_as_they_are() -> None:
    matrix = torch.from_numpy(matrices.attention("causal", 30)).float()
    assert torch.equal(log10_smallest_singular_value(matrix), log10_smallest_singular_value(matrix.double()))


def test_a_zero_on_the_diagonal_is_minus_infinity_and_what_is_not_finite_nan_alone_in_its_batch() -> None:
    batch = torch.from_numpy(matrices.attention("causal", 9)).repeat(5, 1, 1)
    batch[1, 4, 4] = 0.0
    batch[2, 5, 3] = torch.nan
    batch[3, 5, 5] = torch.inf
    batch[4] = torch.nan
    found = smallest_singular_value(batch)
    assert bool(found.log10[0].isfinite())
    assert float(found.log10[1]) == -math.inf
    assert found.log10.isnan().tolist() == [False, False, True, True, True]
    assert found.condition.isnan().tolist() == [False, True, True, True, True]


def test_an_underflowed_diagonal_is_taken_from_its_logarithm() -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[2, 0], matrix[2, 2] = 1.0, 0.0
    logs = torch.tensor([0.0, 0.0, -1000.0], dtype=torch.float64)
    found = smallest_singular_value(matrix, log_diagonal=logs)
    # the last row of the inverse is (-1, 0, 1) e^1000, of norm sqrt(2) e^1000
    assert float(found.log10) == pytest.approx((-1000 - math.log(2) / 2) / math.log(10), rel=1e-14)
    assert float(log10_smallest_singular_value(matrix)) == -math.inf


def test_entries_that_underflow_where_they_decide_show_in_the_condition() -> None:
    """Two rows that see themselves through 1e-320, whose digits float64 does not hold."""
    matrix = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-320, 0.0], [0.0, 1.0, 1e-320]], dtype=torch.float64)
    assert float(smallest_singular_value(matrix).condition) > 1 / ROUNDOFF


# The condition.


@pytest.mark.parametrize("size", [6, 24])
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_no_entrywise_change_moves_sigma_min_by_more_than_its_condition_says(size: int, std: float) -> None:
    matrix, share = matrices.attention("causal", size, std=std, seed=size), 1e-7
    found = smallest_singular_value(torch.from_numpy(matrix))
    left, _, right = np.linalg.svd(np.linalg.inv(matrix))
    worst = np.outer(right[0], left[:, 0])  # d sigma_min / dA, up to a factor
    random = np.random.default_rng(0)
    signs = [np.sign(worst), -np.sign(worst), *(random.choice([-1.0, 1.0], size=(20, size, size)))]
    changes = [off(measured(matrix * (1 + share * sign)), float(found.log10)) for sign in signs]
    assert max(changes) <= share * float(found.condition) * 1.01  # second order, and rounding
    assert max(changes) >= share * float(found.condition) / 10


# Refusals.


def test_matrices_that_are_not_triangular_or_not_square_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"matrix must be triangular, got entries on both sides .* matrix 1"):
        log10_smallest_singular_value(torch.stack([torch.eye(3), torch.ones(3, 3)]))
    for shape in [(3,), (3, 4), (2, 0, 0)]:
        with pytest.raises(ConfigurationError, match=r"matrix must be square on its last two axes, got shape"):
            log10_smallest_singular_value(torch.ones(shape))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_cuda_matrix_has_the_sigma_min_of_its_copy() -> None:
    matrix = torch.from_numpy(matrices.attention("causal", 150, std=4.0))
    assert (
        off(float(log10_smallest_singular_value(matrix.cuda())), float(log10_smallest_singular_value(matrix))) < 1e-12
    )
