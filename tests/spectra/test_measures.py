"""Measures: their properties over the zoo, their edge cases, and what they refuse."""

from __future__ import annotations

import math

import matrices
import numpy as np
import properties
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rankkit.errors import ConfigurationError
from rankkit.spectra import measures
from rankkit.spectra.measures import DEFAULT_MEASURES, MEASURES

NAN = float("nan")
RATIOS = {
    "effective_rank": measures.effective_rank,
    "effective_rank_energy": measures.effective_rank_energy,
    "stable_rank": measures.stable_rank,
    "participation_ratio": measures.participation_ratio,
    "energy_rank": lambda sigma: measures.energy_rank(sigma, fraction=0.9),
    "mass_rank": lambda sigma: measures.mass_rank(sigma, fraction=0.8),
    "mass_at_quarter": measures.mass_at_quarter,
    "numerical_rank": lambda sigma: measures.numerical_rank(sigma, tolerance=1e-5),
}
NORMS = {
    "nuclear": measures.nuclear_norm,
    "frobenius": measures.frobenius_norm,
    "spectral": measures.spectral_norm,
}
EVERY = RATIOS | NORMS
OF_ATTENTION = {
    name: entry
    for name, entry in MEASURES.items()
    if entry.needs == "attention" and name != "off_diagonal_block_rank"  # which takes any triangular matrix
}
OF_TAIL = {
    "spectral_ratio": measures.spectral_ratio,
    "decay_exponent": measures.decay_exponent,
    "decay_exponent_standard_error": measures.decay_exponent_standard_error,
    "decay_exponent_r_squared": measures.decay_exponent_r_squared,
}
SMOOTH = [name for name in RATIOS if "rank_" not in name and name not in ("energy_rank", "mass_rank")]

spectra = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.floats(0, 1, width=32).map(lambda value: value if value > 1e-6 else 0.0),
).map(torch.from_numpy)
quick = settings(max_examples=40, deadline=None)


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def rank_of(values, name):
    return float(EVERY[name](torch.as_tensor(values, dtype=torch.float64)))


# Functions of the singular values.


@pytest.mark.parametrize("name", RATIOS)
@quick
@given(values=spectra, power=st.integers(-300, 300))
def test_ratios_are_scale_invariant(name, values, power):
    properties.assert_scale_invariant(RATIOS[name], values, 2.0**power)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("scale", matrices.SCALES)
def test_ratios_are_scale_invariant_for_scales_that_are_no_powers_of_two(name, scale):
    values = torch.from_numpy(np.random.default_rng(0).random((5, 9)))
    properties.assert_scale_invariant(RATIOS[name], values, scale)


@pytest.mark.parametrize("name", NORMS)
@quick
@given(values=spectra, power=st.integers(-300, 300))
def test_norms_are_homogeneous(name, values, power):
    properties.assert_homogeneous(NORMS[name], values, 2.0**power)


@pytest.mark.parametrize("name", EVERY)
@quick
@given(values=spectra, seed=st.integers(0, 99), padding=st.integers(1, 3))
def test_measures_ignore_order_padding_and_neighbours(name, values, seed, padding):
    properties.assert_order_free(EVERY[name], values, seed=seed)
    properties.assert_padding_free(EVERY[name], values, padding=padding)
    properties.assert_batched(EVERY[name], values)


@pytest.mark.parametrize("name", [*SMOOTH, *NORMS])
@pytest.mark.parametrize("shape", [(24, 24), (24, 11), (7, 24)])
def test_measures_are_unitarily_invariant(name, shape):
    properties.assert_unitarily_invariant(EVERY[name], matrices.gaussian(*shape, seed=1), seed=5)


@quick
@given(values=spectra)
def test_ranks_stand_in_the_renyi_order(values):
    nonzero = values[values.amax(dim=-1) > 0]
    properties.assert_renyi_order(nonzero)


@pytest.mark.parametrize("kind", ["causal", "prefix", "bidirectional"])
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_ranks_of_attention_stand_in_the_renyi_order(kind, std):
    properties.assert_renyi_order(properties.spectrum(matrices.attention(kind, 40, std=std)))


@quick
@given(values=spectra, fraction=st.floats(0.05, 1.0))
def test_share_ranks_are_the_least_count_that_reaches_the_share(values, fraction):
    for row in values[values.amax(dim=-1) > 0]:
        for rank, weights in ((measures.energy_rank, row.square()), (measures.mass_rank, row)):
            ordered = np.sort(weights.numpy())[::-1]
            shares = [math.fsum(ordered[: k + 1]) / math.fsum(ordered) for k in range(len(ordered))]
            expected = next(k for k, share in enumerate(shares, start=1) if share >= fraction - 1e-12)
            slack = min(abs(share - fraction + 1e-12) for share in shares)
            assert float(rank(row, fraction=fraction)) == expected or slack < 1e-14


def test_a_share_reached_exactly_counts():
    assert rank_of([1.0] * 10, "energy_rank") == 9  # the ninth brings 0.9 of the energy, rounding aside
    assert rank_of([1.0] * 10, "mass_rank") == 8
    ninety = MEASURES["mass_rank_90"].compute(torch.ones(10), 10, 10)
    assert float(ninety) == 9


def test_mass_and_energy_ranks_differ():
    values = torch.linspace(1, 0.01, 100)
    assert float(measures.mass_rank(values, fraction=0.9)) > float(measures.energy_rank(values, fraction=0.9))


def test_measures_of_a_small_spectrum_are_the_ones_worked_out_by_hand():
    sigma = [4.0, 3.0, 0.0]
    p, q = 4 / 7, 16 / 25
    assert rank_of(sigma, "effective_rank") == pytest.approx(p**-p * (1 - p) ** -(1 - p), rel=1e-14)
    assert rank_of(sigma, "effective_rank_energy") == pytest.approx(q**-q * (1 - q) ** -(1 - q), rel=1e-14)
    assert rank_of(sigma, "stable_rank") == pytest.approx(25 / 16, rel=1e-14)
    assert rank_of(sigma, "participation_ratio") == pytest.approx(625 / (256 + 81), rel=1e-14)
    assert rank_of(sigma, "mass_at_quarter") == pytest.approx(4 / 7, rel=1e-14)
    assert rank_of(sigma, "numerical_rank") == 2
    assert [rank_of(sigma, name) for name in NORMS] == [7, 5, 4]


def test_a_quarter_of_the_components_does_not_count_padding():
    assert rank_of([4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], "mass_at_quarter") == pytest.approx(0.6)
    assert rank_of([4.0, 2.0, 1.0, 1.0, 1.0, 1.0, NAN, NAN], "mass_at_quarter") == pytest.approx(0.6)
    assert rank_of([4.0, 2.0, 1.0, 1.0, NAN, NAN, NAN, NAN], "mass_at_quarter") == pytest.approx(0.5)


def test_numerical_rank_compares_with_the_largest_value_and_strictly():
    values = tensor([10.0, 1.0, 0.1], [1e-10, 1e-11, 0.0])
    assert measures.numerical_rank(values, tolerance=0.1).tolist() == [1, 1]
    assert measures.numerical_rank(values, tolerance=0.05).tolist() == [2, 2]
    assert measures.numerical_rank(values, tolerance=torch.tensor([0.001, 0.5])).tolist() == [3, 1]


def test_the_default_tolerance_is_the_longer_side_times_eps_of_float32():
    assert float(measures.default_tolerance(100, 512)) == 512 * 2.0**-23
    assert measures.default_tolerance(torch.tensor([1, 9]), 4).tolist() == [4 * 2.0**-23, 9 * 2.0**-23]


@pytest.mark.parametrize("name", RATIOS)
def test_ratios_of_the_zero_matrix_are_nan_and_its_rank_zero(name):
    assert rank_of([0.0, 0.0], name) == pytest.approx(0 if name == "numerical_rank" else NAN, nan_ok=True)


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_the_zero_matrix_are_zero(name):
    assert rank_of([0.0, 0.0], name) == 0


@pytest.mark.parametrize("name", EVERY)
def test_a_failed_matrix_measures_nan_beside_a_good_one(name):
    both = EVERY[name](tensor([2.0, 1.0], [NAN, NAN]))
    assert both.isnan().tolist() == [False, True]


@pytest.mark.parametrize("name", RATIOS)
def test_every_ratio_of_a_one_by_one_matrix_is_one(name):
    assert rank_of([1e-200], name) == 1


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("extreme", [1e-300, 1e300])
def test_measures_neither_overflow_nor_vanish_at_extreme_scales(name, extreme):
    expected = rank_of([2.0, 1.0, 0.5], name) * (extreme if name in NORMS else 1)
    assert rank_of([2.0 * extreme, extreme, 0.5 * extreme], name) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_measures_answer_in_float64(name, dtype):
    assert EVERY[name](torch.tensor([2.0, 1.0], dtype=dtype)).dtype == torch.float64


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wrong", [-1.0, float("inf")])
def test_values_no_matrix_has_are_refused(name, wrong):
    with pytest.raises(ConfigurationError, match=rf"must be finite and at least 0 \(nan pads\), got {wrong}\. Compute"):
        EVERY[name](tensor([1.0, wrong]))


def test_a_spectrum_without_components_is_refused():
    with pytest.raises(ConfigurationError, match=r"at least one component, got shape \(3, 0\)\. Pass an array"):
        measures.effective_rank(torch.ones(3, 0))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, NAN])
def test_fractions_outside_the_unit_interval_are_refused(fraction):
    with pytest.raises(
        ConfigurationError, match=rf"fraction must be above 0 and at most 1, got {fraction}\. Pass 0\.9"
    ):
        measures.energy_rank(torch.ones(2), fraction=fraction)


@pytest.mark.parametrize("tolerance", [-1e-9, NAN])
def test_a_tolerance_below_zero_is_refused(tolerance):
    with pytest.raises(ConfigurationError, match=rf"tolerance must be at least 0, got {tolerance}\. Omit"):
        measures.numerical_rank(torch.ones(2), tolerance=tolerance)


# Functions of the values above a floor.


def power_law(size, exponent, *, seed=None):
    values = torch.arange(1, size + 1, dtype=torch.float64) ** exponent
    return values if seed is None else values * torch.from_numpy(np.random.default_rng(seed).lognormal(0, 0.1, size))


@pytest.mark.parametrize("name", OF_TAIL)
@quick
@given(values=spectra, power=st.integers(-300, 300), seed=st.integers(0, 99))
def test_measures_of_the_tail_are_scale_invariant_and_ignore_order_and_padding(name, values, power, seed):
    measure = OF_TAIL[name]
    floor = 1e-3 * values.amax(dim=-1)
    expected, scale = measure(values, floor=floor), 2.0**power
    torch.testing.assert_close(
        measure(scale * values, floor=scale * floor), expected, rtol=1e-9, atol=1e-12, equal_nan=True
    )
    shuffled = values[..., torch.from_numpy(np.random.default_rng(seed).permutation(values.shape[-1]))]
    padded = torch.cat([shuffled, torch.full((len(values), 2), NAN, dtype=torch.float64)], dim=-1)
    torch.testing.assert_close(measure(padded, floor=floor), expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_spectral_ratio_is_infinite_where_the_second_value_is_zero_noise_or_absent():
    values = tensor([6.0, 3.0], [6.0, 1e-9], [6.0, 0.0], [0.0, 0.0], [6.0, NAN], [NAN, NAN])
    floor = torch.full((6,), 1e-8)
    assert measures.spectral_ratio(values, floor=floor)[:3].tolist() == [2, math.inf, math.inf]
    assert measures.spectral_ratio(values)[1:3].tolist() == [pytest.approx(6e9), math.inf]
    assert measures.spectral_ratio(values)[3:].tolist() == pytest.approx([NAN, math.inf, NAN], nan_ok=True)
    assert float(measures.spectral_ratio(tensor(5.0))) == math.inf
    assert measures.spectral_ratio(tensor([3.0, 1.5]), floor=torch.tensor([1.5])).tolist() == [math.inf]


@pytest.mark.parametrize("exponent", [-0.5, -1.0, -3.0])
def test_the_decay_exponent_of_a_power_law_is_its_exponent(exponent):
    values = power_law(40, exponent)
    values[0] = 77.0  # the sink does not count
    assert float(measures.decay_exponent(values)) == pytest.approx(exponent, rel=1e-12)
    assert float(measures.decay_exponent_standard_error(values)) == pytest.approx(0, abs=1e-14)
    assert float(measures.decay_exponent_r_squared(values)) == pytest.approx(1, rel=1e-12)


def test_the_decay_is_fitted_as_scipy_fits_lines():
    from scipy.stats import linregress

    values = power_law(50, -1.3, seed=3).sort(descending=True).values
    expected = linregress(np.log(np.arange(2, 31)), np.log(values[1:30].numpy()))
    floor = values[30]
    assert float(measures.decay_exponent(values, floor=floor)) == pytest.approx(expected.slope, rel=1e-12)
    assert float(measures.decay_exponent_standard_error(values, floor=floor)) == pytest.approx(
        expected.stderr, rel=1e-9
    )
    assert float(measures.decay_exponent_r_squared(values, floor=floor)) == pytest.approx(expected.rvalue**2, rel=1e-9)


def test_the_decay_of_fewer_than_eight_points_is_nan():
    values = power_law(20, -1.0)
    for name, known in (("decay_exponent", 9), ("decay_exponent_standard_error", 9), ("decay_exponent_r_squared", 9)):
        measure = OF_TAIL[name]
        assert bool(measure(values[: known - 1]).isnan())  # points 2..8
        assert not bool(measure(values[:known]).isnan())
        assert bool(measure(values, floor=values[known - 1]).isnan())
        assert not bool(measure(values, floor=values[known]).isnan())
        assert measure(torch.zeros(2, 20)).isnan().all()


def test_noise_under_the_floor_does_not_bend_the_decay():
    values = power_law(30, -2.0)
    noisy = torch.cat([values, torch.full((30,), 1e-9, dtype=torch.float64)])
    assert float(measures.decay_exponent(noisy, floor=torch.tensor(1e-8))) == pytest.approx(-2, rel=1e-12)
    assert float(measures.decay_exponent(noisy)) < -4


# Blocks off the diagonal.


def linear_attention(size, state, *, seed=0):
    random = np.random.default_rng(seed)
    weights = np.tril(random.random((size, state)) @ random.random((state, size)))
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))


def test_off_diagonal_rank_is_that_of_numpys_blocks():
    matrix = matrices.attention("causal", 32, std=2.0, seed=1)
    largest = np.linalg.norm(matrix, 2)
    for tolerance in (1e-6, 1e-3, 0.05):
        counts = [
            int((np.linalg.svd(matrix[split:, :split], compute_uv=False) > tolerance * largest).sum())
            for split in range(4, 32, 4)
        ]
        assert float(measures.off_diagonal_block_rank(torch.from_numpy(matrix), tolerance=tolerance)) == max(counts)


def test_a_tolerance_below_grams_floor_is_resolved():
    state = linear_attention(48, 5)
    assert float(measures.off_diagonal_block_rank(state, tolerance=1e-13)) == 5


@pytest.mark.parametrize("state", [1, 3, 8])
def test_linear_attention_has_off_diagonal_rank_of_its_state_and_softmax_more(state):
    assert float(measures.off_diagonal_block_rank(linear_attention(64, state))) == state
    assert float(measures.off_diagonal_block_rank(causal(64, std=2.0))) > 8


@pytest.mark.parametrize("split", range(2, 16, 2))
def test_off_diagonal_rank_looks_at_seven_splits(split):
    """Two entries that only the block A[split:, :split] holds both of."""
    matrix = torch.eye(16)
    matrix[split, split - 1], matrix[split + 1, split - 2] = 0.5, 0.5
    assert float(measures.off_diagonal_block_rank(matrix)) == 2


def test_upper_triangles_have_the_off_diagonal_rank_of_their_transposes():
    batch = torch.stack([causal(24, seed=1), causal(24, seed=1).mT, linear_attention(24, 2)])
    found = measures.off_diagonal_block_rank(batch).tolist()
    assert found[0] == found[1]
    assert found[2] == 2


def test_off_diagonal_rank_has_an_answer_for_every_matrix():
    full = torch.full((8, 8), 1 / 8)
    full[0, 0] = 0.5
    batch = torch.stack([torch.eye(8), torch.zeros(8, 8), full, torch.full((8, 8), NAN).tril()])
    assert measures.off_diagonal_block_rank(batch).tolist() == pytest.approx([0, 0, NAN, NAN], nan_ok=True)
    assert float(measures.off_diagonal_block_rank(torch.ones(1, 1))) == 0
    assert float(measures.off_diagonal_block_rank(torch.ones(2, 2).tril())) == 1
    assert bool(measures.off_diagonal_block_rank(torch.ones(3, 5)).isnan())
    assert measures.off_diagonal_block_rank(torch.ones(0, 4, 4)).shape == (0,)
    assert measures.off_diagonal_block_rank(torch.ones(2, 3, 4, 4).tril()).shape == (2, 3)
    with pytest.raises(
        ConfigurationError, match=r"matrix must have at least one row and one column .* got shape \(3,\)"
    ):
        measures.off_diagonal_block_rank(torch.ones(3))


# Functions of the attention matrix.


def causal(size, **options):
    return torch.from_numpy(matrices.attention("causal", size, **options))


def measured(name, matrix, visible=None):
    visible = torch.ones(matrix.shape[-2:], dtype=torch.bool) if visible is None else visible
    return MEASURES[name].compute(matrix, visible)


def test_measures_of_a_small_attention_matrix_are_the_ones_worked_out_by_hand():
    matrix = tensor([1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25])
    visible = torch.ones(3, 3, dtype=torch.bool).tril()
    second, third = math.log(4) - 0.75 * math.log(3), 1.5 * math.log(2)
    expected = {
        "attention_entropy": (second + third) / 3,
        "attention_entropy_relative": (second / math.log(2) + third / math.log(3)) / 2,
        "mean_ipr": (1 + 10 / 16 + 6 / 16) / 3,
        "sink_position": 0,
        "sink_mass": 1.75 / 3,
        "diagonal_mass": 2 / 3,
        "previous_key_mass": 0.25,
    }
    for name, value in expected.items():
        assert float(measured(name, matrix, visible)) == pytest.approx(value, rel=1e-14), name


def test_rank_one_residual_is_the_distance_from_the_mean_row():
    matrix = matrices.attention("prefix", 20, seed=4)
    expected = np.linalg.norm(matrix - matrix.mean(axis=0)) / np.linalg.norm(matrix)
    assert float(measures.rank_one_residual(torch.from_numpy(matrix))) == pytest.approx(expected, rel=1e-13)


def test_rank_one_residual_is_zero_for_equal_rows_and_known_for_the_identity():
    assert float(measures.rank_one_residual(torch.full((8, 5), 0.2))) == pytest.approx(0, abs=1e-15)
    assert float(measures.rank_one_residual(torch.eye(9))) == pytest.approx(math.sqrt(8 / 9), rel=1e-14)


@pytest.mark.parametrize("size", [2, 17])
def test_uniform_attention_has_the_largest_entropy(size):
    uniform = torch.full((size, size), 1 / size, dtype=torch.float64)
    visible = torch.ones(size, size, dtype=torch.bool)
    assert float(measures.attention_entropy(uniform)) == pytest.approx(math.log(size), rel=1e-13)
    assert float(measures.attention_entropy_relative(uniform, allowed=visible)) == pytest.approx(1, rel=1e-13)
    assert float(measures.mean_ipr(uniform)) == pytest.approx(1 / size, rel=1e-13)


def test_uniform_causal_attention_has_relative_entropy_one():
    uniform = torch.from_numpy(matrices.uniform("causal", 12))
    visible = torch.from_numpy(matrices.allowed("causal", 12))
    assert float(measures.attention_entropy_relative(uniform, allowed=visible)) == pytest.approx(1, rel=1e-13)


@pytest.mark.parametrize("position", [0, 9])
def test_the_sink_is_found_where_it_was_put(position):
    matrix = torch.from_numpy(matrices.sink("bidirectional", 30, position=position))
    assert float(measures.sink_position(matrix)) == position
    assert float(measures.sink_mass(matrix)) == pytest.approx(float(matrix[:, position].mean()), rel=1e-14)


def test_the_first_of_equal_sinks_is_named():
    assert float(measures.sink_position(torch.full((4, 6), 1 / 6))) == 0


def test_a_previous_key_head_is_told_from_one_that_attends_to_itself():
    previous = torch.eye(6).roll(-1, dims=1)
    previous[0] = torch.eye(6)[0]
    assert float(measures.previous_key_mass(previous)) == 1
    assert float(measures.diagonal_mass(previous)) == pytest.approx(1 / 6)
    assert float(measures.diagonal_mass(torch.eye(6))) == 1
    assert float(measures.previous_key_mass(torch.eye(6))) == 0


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_rows_that_see_nothing_are_left_out(name):
    matrix = causal(10)
    padded = torch.cat([matrix, torch.zeros(3, 10, dtype=torch.float64)])
    visible = torch.ones(10, 10, dtype=torch.bool).tril()
    if name in ("diagonal_mass", "previous_key_mass"):
        padded = torch.nn.functional.pad(padded, (0, 3))
        expected = measured(name, matrix)
    else:
        expected = measured(name, matrix, visible)
    shape = padded.shape
    visible = torch.zeros(shape, dtype=torch.bool)
    visible[:10, :10] = torch.ones(10, 10, dtype=torch.bool).tril()
    torch.testing.assert_close(measured(name, padded, visible), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_attention_measures_of_a_batch_are_those_of_its_members(name):
    batch = torch.stack([causal(8, seed=seed) for seed in range(6)]).reshape(2, 3, 8, 8)
    visible = torch.ones(8, 8, dtype=torch.bool).tril()
    alone = torch.stack([measured(name, matrix, visible) for matrix in batch.flatten(0, 1)]).reshape(2, 3)
    torch.testing.assert_close(measured(name, batch, visible), alone, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_a_batch_without_matrices_has_no_measures(name):
    assert measured(name, torch.ones(0, 4, 4)).shape == (0,)


@pytest.mark.parametrize("name", OF_ATTENTION)
@pytest.mark.parametrize("wrong", [NAN, float("inf")])
def test_a_matrix_that_is_not_finite_measures_nan_alone_in_its_batch(name, wrong):
    batch = causal(6).repeat(2, 1, 1)
    batch[1, 3, 2] = wrong
    assert measured(name, batch).isnan().tolist() == [False, True]


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_a_matrix_of_empty_rows_measures_nan(name):
    assert bool(measured(name, torch.zeros(5, 5)).isnan())


def test_attention_of_one_position_has_a_defined_answer_everywhere():
    expected = {
        "attention_entropy": 0.0,
        "attention_entropy_relative": NAN,
        "mean_ipr": 1.0,
        "rank_one_residual": 0.0,
        "sink_position": 0.0,
        "sink_mass": 1.0,
        "diagonal_mass": 1.0,
        "previous_key_mass": NAN,
    }
    found = {name: float(measured(name, torch.ones(1, 1))) for name in OF_ATTENTION}
    assert found == pytest.approx(expected, nan_ok=True)


def test_rows_with_one_visible_key_have_no_entropy():
    visible = torch.eye(4, dtype=torch.bool)
    assert float(measures.attention_entropy(torch.eye(4))) == 0
    assert bool(measures.attention_entropy_relative(torch.eye(4), allowed=visible).isnan())
    assert float(measures.logit_std(torch.randn(4, 4), allowed=visible)) == 0


def test_the_diagonal_of_a_rectangular_matrix_means_nothing():
    matrix = torch.full((3, 5), 0.2)
    assert bool(measures.diagonal_mass(matrix).isnan())
    assert bool(measures.previous_key_mass(matrix).isnan())
    assert float(measures.attention_entropy(matrix)) == pytest.approx(math.log(5))


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_negative_attention_is_refused(name):
    with pytest.raises(
        ConfigurationError, match=r"attention must be at least 0, got -1\.0\. Pass it after the softmax"
    ):
        measured(name, -torch.eye(3))


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 3, 0)])
def test_attention_without_rows_or_columns_is_refused(shape):
    with pytest.raises(ConfigurationError, match=r"at least one row and one column .* got shape"):
        measures.mean_ipr(torch.ones(shape))


@pytest.mark.parametrize("visible", [torch.ones(3, 3), torch.ones(3, 4, dtype=torch.bool)])
def test_a_mask_of_another_kind_or_shape_is_refused(visible):
    for call in (measures.attention_entropy_relative, measures.logit_std):
        with pytest.raises(ConfigurationError, match=r"allowed must be a boolean mask of shape \(\.\.\., 3, 3\), got"):
            call(torch.eye(3), allowed=visible)


# Functions of the logits.


def test_logit_std_is_that_of_the_row_centred_visible_entries():
    logits, visible = matrices.random_logits(15, 15, std=2.0), matrices.allowed("causal", 15)
    centred = [logits[i, : i + 1] - logits[i, : i + 1].mean() for i in range(15)]
    expected = np.sqrt(np.mean(np.concatenate(centred) ** 2))
    found = measures.logit_std(torch.from_numpy(logits), allowed=torch.from_numpy(visible))
    assert float(found) == pytest.approx(expected, rel=1e-13)


def test_logit_std_sees_neither_row_shifts_nor_hidden_entries():
    logits = torch.from_numpy(matrices.random_logits(12, 12))
    visible = torch.from_numpy(matrices.allowed("prefix", 12))
    shifted = (logits + torch.arange(12.0)[:, None]).where(visible, -torch.inf)
    shifted[0, 11] = NAN
    expected = measures.logit_std(logits, allowed=visible)
    torch.testing.assert_close(measures.logit_std(shifted, allowed=visible), expected, rtol=1e-12, atol=0)


def test_logit_std_leaves_out_rows_that_see_nothing():
    logits = torch.from_numpy(matrices.random_logits(9, 9))
    visible = torch.ones(9, 9, dtype=torch.bool)
    visible[6:] = False
    expected = measures.logit_std(logits[:6], allowed=visible[:6])
    torch.testing.assert_close(measures.logit_std(logits, allowed=visible), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("wrong", [NAN, float("inf"), -float("inf")])
def test_logit_std_of_visible_infinities_is_nan_alone_in_its_batch(wrong):
    logits = torch.zeros(2, 3, 3)
    logits[1, 2, 0] = wrong
    found = measures.logit_std(logits, allowed=torch.ones(3, 3, dtype=torch.bool).tril())
    assert found.isnan().tolist() == [False, True]


def test_logit_std_is_nan_where_nothing_is_visible():
    assert bool(measures.logit_std(torch.ones(2, 2), allowed=torch.zeros(2, 2, dtype=torch.bool)).isnan())


def test_logit_std_of_random_logits_is_the_one_they_were_drawn_with():
    logits = torch.from_numpy(matrices.random_logits(256, 256, std=1.5))
    found = measures.logit_std(logits, allowed=torch.ones(256, 256, dtype=torch.bool))
    assert float(found) == pytest.approx(1.5, rel=0.05)


# The registry.


def test_every_public_measure_is_registered_under_its_name():
    helpers = {"DEFAULT_MEASURES", "MEASURES", "Measure", "default_tolerance", "energy_rank", "mass_rank"}
    shares = {f"energy_rank_{percent}" for percent in (90, 95, 99)} | {f"mass_rank_{percent}" for percent in (80, 90)}
    assert set(MEASURES) == (set(measures.__all__) - helpers) | shares
    assert all(entry.name == name for name, entry in MEASURES.items())
    assert measures.__all__ == sorted(measures.__all__)


def test_the_defaults_are_registered_and_distinct():
    assert set(DEFAULT_MEASURES) <= set(MEASURES)
    assert len(set(DEFAULT_MEASURES)) == len(DEFAULT_MEASURES)


def test_every_entry_carries_one_line_of_words_for_the_file():
    for entry in MEASURES.values():
        for text in (entry.long_name, entry.definition):
            assert text.strip()
            assert "\n" not in text
        assert entry.units == "1"


def test_registered_measures_compute_what_their_names_say():
    matrix = matrices.attention("causal", 24)
    sigma = properties.spectrum(matrix)
    floor = 1e-9 * sigma[0]
    expected = {
        "numerical_rank": measures.numerical_rank(sigma, tolerance=24 * 2.0**-23),
        "effective_rank": measures.effective_rank(sigma),
        "effective_rank_energy": measures.effective_rank_energy(sigma),
        "stable_rank": measures.stable_rank(sigma),
        "participation_ratio": measures.participation_ratio(sigma),
        "energy_rank_90": measures.energy_rank(sigma, fraction=0.90),
        "energy_rank_95": measures.energy_rank(sigma, fraction=0.95),
        "energy_rank_99": measures.energy_rank(sigma, fraction=0.99),
        "mass_rank_80": measures.mass_rank(sigma, fraction=0.8),
        "mass_rank_90": measures.mass_rank(sigma, fraction=0.9),
        "mass_at_quarter": measures.mass_at_quarter(sigma),
        "nuclear_norm": torch.tensor(np.linalg.norm(matrix, "nuc")),
        "frobenius_norm": torch.tensor(np.linalg.norm(matrix)),
        "spectral_norm": torch.tensor(np.linalg.norm(matrix, 2)),
        "spectral_ratio": sigma[0] / sigma[1],
        "decay_exponent": measures.decay_exponent(sigma, floor=floor),
        "decay_exponent_standard_error": measures.decay_exponent_standard_error(sigma, floor=floor),
        "decay_exponent_r_squared": measures.decay_exponent_r_squared(sigma, floor=floor),
    }
    assert set(expected) == {name for name, entry in MEASURES.items() if entry.needs == "singular_values"}
    for name, value in expected.items():
        torch.testing.assert_close(MEASURES[name].compute(sigma, 24, 24, floor), value, rtol=1e-12, atol=0)


def test_measures_of_the_tail_are_given_the_floor_and_the_others_do_without():
    sigma, floor = power_law(20, -1.0), torch.tensor(0.08)
    for name, entry in MEASURES.items():
        if entry.needs == "singular_values":
            with_floor, without = entry.compute(sigma, 20, 20, floor), entry.compute(sigma, 20, 20)
            assert torch.equal(with_floor, without) or name in OF_TAIL


def test_measures_say_what_they_require():
    required = {name: set(entry.requires) for name, entry in MEASURES.items() if entry.requires}
    assert required == {
        "attention_entropy": {"non_negative", "rows_sum_to_one"},
        "attention_entropy_relative": {"attention", "rows_sum_to_one"},
        "mean_ipr": {"non_negative", "rows_sum_to_one"},
        "rank_one_residual": {"non_negative"},
        "sink_position": {"non_negative"},
        "sink_mass": {"non_negative"},
        "diagonal_mass": {"non_negative", "square"},
        "previous_key_mass": {"non_negative", "square"},
        "off_diagonal_block_rank": {"square", "triangular"},
        "logit_std": {"attention"},
        "log_abs_det": {"attention", "square"},
        "log_abs_det_bound": {"attention", "square"},
        "log10_smallest_singular_value": {"square", "triangular"},
    }


def test_only_counts_and_the_tail_need_values_told_from_noise():
    needing = {name: entry for name, entry in MEASURES.items() if entry.relative_threshold is not None}
    assert set(needing) == {"numerical_rank", *OF_TAIL}
    assert float(needing["numerical_rank"].relative_threshold(512, 256)) == 512 * 2.0**-23
    for name in OF_TAIL:
        assert float(needing[name].relative_threshold(512, 256)) == 512 * 2.0**-52
