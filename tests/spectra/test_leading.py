"""Leading singular triplets against dense float64, and what certifies them against what is true."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import (
    SCALES,
    Matrix,
    attention,
    gaussian,
    geometric,
    lower_ones,
    one_by_one,
    permutation,
    prescribed,
    rank_deficient,
    rank_one,
    sink,
    uniform,
    zero,
)

from rankkit.errors import ConfigurationError
from rankkit.masks import Bidirectional, Causal, Prefix
from rankkit.operators import AttentionOperator, DenseOperator
from rankkit.spectra import leading
from rankkit.spectra.leading import Leading, leading_triplets

ROUNDING = 1e-13  # of sigma_1: some hundred roundings, of ours and of LAPACK's


def dense(*matrices: Matrix) -> DenseOperator:
    return DenseOperator(matrix=torch.from_numpy(np.stack(matrices)))


def exact(matrix: Matrix) -> torch.Tensor:
    return torch.from_numpy(np.linalg.svd(matrix, compute_uv=False))


def assert_certified(found: Leading, matrix: Matrix) -> None:
    """Every value lies within its residual of the truth, and the truth beyond them within the bounds."""
    true, count = exact(matrix), found.values.shape[1]
    slack = ROUNDING * float(true[0])
    assert bool(((found.values[0] - true[:count]).abs() <= found.residuals[0] + slack).all())
    following = float(true[count]) if len(true) > count else 0.0
    assert float(found.missed_bound) >= following - slack
    assert float(found.energy_bound) >= following - slack


CASES = {
    "causal": attention("causal", 200),
    "causal, weak logits": attention("causal", 200, std=0.3),
    "prefix": attention("prefix", 200),
    "bidirectional": attention("bidirectional", 200),
    "backward, strong logits": attention("backward", 200, std=4.0),
    "sink": sink("causal", 200),
    "uniform": uniform("causal", 200),
    "lower ones": lower_ones(200),
    "gaussian": gaussian(200, 200),
    "tall": gaussian(300, 40),
    "wide": gaussian(40, 300),
    "geometric": geometric(150, 0.6),
    "rank 5": rank_deficient(150, 5),
    "permutation": permutation(150),
}


@pytest.mark.parametrize("name", CASES)
def test_values_equal_the_dense_ones_to_the_tolerance_and_within_their_residuals(name: str) -> None:
    matrix = CASES[name]
    found = leading_triplets(dense(matrix), 16)
    true = exact(matrix)
    assert bool(found.converged)
    assert not bool(found.failed)
    torch.testing.assert_close(found.values[0], true[:16], rtol=0, atol=1e-6 * float(true[0]))
    assert bool((found.residuals <= 1e-6 * true[0]).all())
    assert_certified(found, matrix)


@settings(max_examples=25)
@given(
    spectrum=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    shape=st.tuples(st.integers(30, 60), st.integers(30, 60)),
    count=st.integers(1, 40),
    block=st.integers(1, 12),
    steps=st.integers(1, 12),
)
def test_residuals_hold_for_any_spectrum_even_before_convergence(
    spectrum: list[float], shape: tuple[int, int], count: int, block: int, steps: int
) -> None:
    matrix = prescribed(np.array(spectrum), *shape)
    found = leading_triplets(dense(matrix), count, block=block, max_steps=steps)
    true, slack = exact(matrix), ROUNDING * max(spectrum) + 1e-300
    distances = (found.values[0][:, None] - torch.cat([true, torch.zeros(1)])).abs().amin(dim=1)
    assert bool((distances <= found.residuals[0] + slack).all())
    assert bool((found.values[0].diff() <= slack).all())
    if found.converged and float(found.missed_bound) < float(found.values[0, -1]):  # then none was missed
        assert_certified(found, matrix)


@pytest.mark.parametrize("name", ["causal", "tall", "wide", "rank 5"])
def test_vectors_are_singular_vectors(name: str) -> None:
    matrix = CASES[name]
    found = leading_triplets(dense(matrix), 8, vectors=True)
    assert found.left is not None
    assert found.right is not None
    left, right, values = found.left[0].numpy(), found.right[0].numpy(), found.values[0].numpy()
    np.testing.assert_allclose(left.T @ left, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(right.T @ right, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(matrix @ right, left * values, atol=1e-12 * values[0])
    large = values > 1e-6 * values[0]  # below, the residual is that of the square
    errors = np.linalg.norm(matrix.T @ left - right * values, axis=0)
    assert (errors <= found.residuals[0].numpy() + 1e-12 * values[0])[large].all()


def test_vectors_are_kept_on_request_only() -> None:
    found = leading_triplets(dense(CASES["causal"]), 4)
    assert found.left is None
    assert found.right is None


def test_the_zero_matrix_has_zero_values() -> None:
    found = leading_triplets(dense(zero(20, 30)), 5)
    assert bool(found.converged)
    assert not found.values.any()
    assert not found.residuals.any()
    assert float(found.missed_bound) == 0


@pytest.mark.parametrize(
    ("matrix", "count"), [(one_by_one(-3.0), 4), (gaussian(1, 7), 4), (gaussian(7, 1), 4), (gaussian(5, 9), 32)]
)
def test_no_more_values_than_the_shorter_side(matrix: Matrix, count: int) -> None:
    found = leading_triplets(dense(matrix), count)
    assert found.values.shape == (1, min(matrix.shape))
    torch.testing.assert_close(found.values[0], exact(matrix), rtol=1e-12, atol=0)
    assert bool(found.converged)


def test_a_rank_one_matrix_has_one_value_and_zeros_to_the_root_of_eps() -> None:
    matrix = rank_one(120, 80)
    found = leading_triplets(dense(matrix), 6)
    largest = float(exact(matrix)[0])
    assert float(found.values[0, 0]) == pytest.approx(largest, rel=1e-13)
    assert bool((found.values[0, 1:] <= 1e-7 * largest).all())
    assert bool((found.residuals[0, 1:] <= 1e-7 * largest).all())


@pytest.mark.parametrize("block", [1, 3, 64])
def test_equal_values_are_found_though_they_outnumber_the_block(block: int) -> None:
    found = leading_triplets(dense(permutation(90)), 20, block=block)
    torch.testing.assert_close(found.values[0], torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool(found.converged)


def test_copies_that_the_krylov_space_cannot_see_are_seen_by_the_fresh_block() -> None:
    matrix = prescribed(np.array([1.0] * 10 + [0.1] * 60), 70, 70)
    found = leading_triplets(dense(matrix), 3, block=3)
    assert float(found.next_value) < 0.2  # the space holds three of the ten copies
    assert float(found.missed_bound) >= 1.0
    assert float(found.energy_bound) >= 1.0


def test_the_fresh_block_bounds_the_next_value_closely() -> None:
    for name in ("causal", "prefix", "gaussian", "bidirectional"):
        found = leading_triplets(dense(CASES[name]), 16)
        following = float(exact(CASES[name])[16])
        assert following <= float(found.missed_bound) <= 1.4 * following, name
        assert float(found.next_value) <= following * (1 + 1e-9)
    assert found.missed_probability < 1e-12


def test_the_energy_bound_is_what_is_left_of_the_norm() -> None:
    matrix = CASES["prefix"]
    found = leading_triplets(dense(matrix), 8)
    true = exact(matrix)
    assert float(found.energy_bound) == pytest.approx(float(true[8:].square().sum().sqrt()), rel=1e-6)
    one = DenseOperator(matrix=torch.from_numpy(matrix)[None])
    assert float(leading_triplets(one + one, 8).energy_bound) == torch.inf


@pytest.mark.parametrize("mask", [Causal(), Prefix(50), Bidirectional()])
def test_attention_gives_what_its_dense_matrix_gives(mask: Causal | Prefix | Bidirectional) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.rand(2, 96, 16, dtype=torch.float64, generator=generator) for _ in range(2))
    operator = AttentionOperator(query=query, key=key, mask=mask, scale=2.0)
    found = leading_triplets(operator, 6)
    true = torch.linalg.svdvals(operator.dense())[:, :6]
    torch.testing.assert_close(found.values, true, rtol=0, atol=1e-6)


def test_a_matrix_that_is_not_finite_fails_alone_and_leaves_the_others_bits() -> None:
    good, other = attention("causal", 64), gaussian(64, 64)
    bad = good.copy()
    bad[5, 3] = np.nan
    infinite = good.copy()
    infinite[5, 3] = np.inf
    found = leading_triplets(dense(good, bad, infinite, other), 5, vectors=True)
    assert found.failed.tolist() == [False, True, True, False]
    assert found.converged.tolist() == [True, False, False, True]
    assert bool(found.values[1:3].isnan().all())
    assert bool(found.missed_bound[1:3].isnan().all())
    for place, matrix in ((0, good), (3, other)):
        alone = leading_triplets(dense(matrix), 5, vectors=True)
        for name in ("values", "residuals", "left", "right", "missed_bound"):
            assert torch.equal(getattr(found, name)[place], getattr(alone, name)[0]), name


@pytest.mark.parametrize("scale", SCALES)
def test_scaling_the_matrix_scales_everything(scale: float) -> None:
    matrix = CASES["causal"]
    found, scaled = leading_triplets(dense(matrix), 5), leading_triplets(dense(scale * matrix), 5)
    torch.testing.assert_close(scaled.values, scale * found.values, rtol=1e-11, atol=0)
    assert float(scaled.missed_bound) == pytest.approx(scale * float(found.missed_bound), rel=1e-6)


def test_a_space_that_outgrows_its_memory_is_restarted_and_still_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "BASIS_VECTORS", 40)
    matrix = gaussian(250, 250)
    found = leading_triplets(dense(matrix), 6, block=8)
    assert int(found.passes) > 40 // 8 + 5
    assert bool(found.converged)
    assert_certified(found, matrix)


def test_too_few_steps_are_told_and_residuals_still_hold() -> None:
    matrix = gaussian(200, 200)
    found = leading_triplets(dense(matrix), 16, max_steps=1)
    assert not bool(found.converged)
    distances = (found.values[0][:, None] - exact(matrix)).abs().amin(dim=1)
    assert bool((distances <= found.residuals[0]).all())


def test_another_seed_takes_other_vectors_and_finds_the_same_values() -> None:
    first, second = (leading_triplets(dense(CASES["prefix"]), 5, seed=seed) for seed in (0, 1))
    torch.testing.assert_close(first.values, second.values, rtol=1e-9, atol=0)
    assert not torch.equal(first.missed_bound, second.missed_bound)


def test_the_memory_need_grows_like_n_beside_the_basis() -> None:
    needs = [leading.krylov_bytes(n, n, 32, 16 * n) for n in (8192, 16384, 32768)]
    assert needs[1] < 2 * needs[0] < 2**30
    assert needs[2] < 2 * needs[1]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"block": 0}, {"max_steps": 0}, {"tolerance": -1.0}])
def test_misuse_is_refused(wrong: dict[str, float]) -> None:
    arguments = {"count": 3, **wrong}
    count = int(arguments.pop("count"))
    with pytest.raises(ConfigurationError, match="count, block and max_steps must be at least 1"):
        leading_triplets(dense(CASES["causal"]), count, **arguments)  # type: ignore[arg-type]
