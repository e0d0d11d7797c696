"""No perturbation within delta or eta moves a measure by more than its error says, and the errors are not idle."""

from __future__ import annotations

import itertools
import math

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankkit.masks import Bidirectional, Causal
from rankkit.operators import AttentionOperator
from rankkit.spectra.measures import MEASURES
from rankkit.spectra.measures.errors_of_singular_values import moved_numerical_rank, moved_share_rank
from rankkit.spectra.measures.off_diagonal_blocks import moved_off_diagonal_block_rank
from rankkit.spectra.triangular import log10_smallest_singular_value

OF_VALUES = {name: entry for name, entry in MEASURES.items() if entry.needs == "singular_values"}
UNKNOWN = ("decay_exponent_standard_error", "decay_exponent_r_squared")
BOUNDED = [name for name in OF_VALUES if name not in UNKNOWN]
COUNTS = [
    name for name in BOUNDED if name == "numerical_rank" or ("_rank_" in name and name != "effective_rank_energy")
]
SMOOTH = [name for name in BOUNDED if name not in (*COUNTS, "spectral_ratio", "decay_exponent")]
OF_ENTRIES = [name for name, entry in MEASURES.items() if entry.needs in ("attention", "logits")]
TRIALS = 60
SLACK = 1e-12  # some thousand roundings of float64
quick = settings(max_examples=40)


@st.composite
def spectra(draw: st.DrawFn) -> Tensor:
    """Descending, of five kinds, sigma_1 anywhere between 1e-3 and 1e3."""
    size, seed = draw(st.integers(1, 40)), draw(st.integers(0, 9999))
    random = np.random.default_rng(seed)
    values = {
        "random": random.random(size),
        "geometric": 10.0 ** -np.linspace(0, draw(st.floats(0, 16)), size),
        "flat": np.ones(size),
        "rank one": np.eye(size)[0],
        "half empty": random.random(size) * (random.random(size) < 0.5),
    }[draw(st.sampled_from(["random", "geometric", "flat", "rank one", "half empty"]))]
    values[0] = max(values[0], 0.1)
    return torch.from_numpy(np.sort(values * 10.0 ** draw(st.integers(-3, 3)))[::-1].copy())


def moves(size: int, seed: int) -> Tensor:
    """Signs "trial component": random ones, and those that pull apart the first and the rest, or everything one way."""
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], size=(TRIALS, size)))
    signs[0], signs[1], signs[2], signs[3] = 1, -1, -1, 1
    signs[2, 0], signs[3, 0] = 1, -1
    for trial, share in ((4, 2), (5, 4)):
        signs[trial] = torch.where(torch.arange(size) < size // share, 1.0, -1.0)
    return signs


def changes(name: str, values: Tensor, floor: Tensor, delta: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Every trial's change, and the error."""
    entry, size = OF_VALUES[name], values.shape[-1]
    value = entry.compute(values, size, size, floor)
    moved = entry.compute((values + delta * moves(size, seed)).clamp(min=0), size, size, floor)
    return (moved - value).abs(), entry.error(values, size, size, floor, delta)


@pytest.mark.parametrize("name", BOUNDED)
@quick
@given(values=spectra(), order=st.floats(-13, -2.3), seed=st.integers(0, 99), above=st.sampled_from([0.01, 0.5, 1.0]))
def test_no_spectrum_within_delta_is_further_off_than_the_error(
    name: str, values: Tensor, order: float, seed: int, above: float
) -> None:
    """Delta from the SVD's floor to that of bfloat16; the floor that cuts the tail is at most delta."""
    delta = values[0] * 10.0**order
    change, error = changes(name, values, above * delta, delta, seed)
    assert bool((change <= error).all() | error.isnan() | change.isnan().all()), (change.max(), error)


def corners_of_blocks(sizes: tuple[int, ...]) -> Tensor:
    """Every block still, up, down, alternating or split in two, in every combination: "corner component"."""
    patterns = []
    for size in sizes:
        place = np.arange(size)
        ways = [1.0 - 2 * (place % 2), np.where(place < size // 2, 1, -1), np.where(place < 1, 1, -1), np.ones(size)]
        patterns.append([np.zeros(size), *ways, *(-way for way in ways)])
    return torch.from_numpy(np.array([np.concatenate(parts) for parts in itertools.product(*patterns)]))


@pytest.mark.parametrize("ones", [20, 200])
@pytest.mark.parametrize("delta", [1e-2, 1e-3])
def test_flat_values_that_spread_while_the_zeros_stay_are_within_the_error(ones: int, delta: float) -> None:
    """20 ones and 16 zeros, only the ones moved by +-delta: to second order, the ratio falls by 4 delta^2 for each."""
    entry, size = OF_VALUES["participation_ratio"], ones * 9 // 5
    values, step = (torch.arange(size) < ones).double(), torch.tensor(delta, dtype=torch.float64)
    spread = torch.where(torch.arange(size) < ones, 1.0 - 2.0 * (torch.arange(size) % 2), 0.0).double()
    change = (entry.compute(values + delta * spread, size, size, step) - ones).abs()
    assert float(change) == pytest.approx(4 * ones * delta**2, rel=20 * delta**2)
    assert change <= entry.error(values, size, size, step, step) <= 3 * change


BLOCKS = {
    "flat": ((1.0, 9),),
    "flat and zeros": ((1.0, 20), (0.0, 16)),
    "mostly flat": ((1.0, 30), (0.0, 2)),
    "two levels": ((1.0, 6), (0.9, 11)),
    "two levels and zeros": ((1.0, 12), (0.5, 12), (0.0, 12)),
    "near the noise": ((1.0, 12), (0.02, 24)),
    "a sink": ((1.0, 1), (0.3, 24), (0.0, 9)),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_no_corner_of_blocks_is_further_off_than_the_error(name: str, blocks: str) -> None:
    entry, sizes = OF_VALUES[name], tuple(size for _, size in BLOCKS[blocks])
    values = torch.cat([torch.full((size,), level, dtype=torch.float64) for level, size in BLOCKS[blocks]])
    n, signs = len(values), corners_of_blocks(sizes)
    for delta in torch.tensor([1e-2, 3e-3, 1e-4], dtype=torch.float64):
        value, error = entry.compute(values, n, n, delta), entry.error(values, n, n, delta, delta)
        change = (entry.compute((values + delta * signs).clamp(min=0), n, n, delta) - value).abs().max()
        assert change <= error <= 5 * change, (delta, change, error)


@pytest.mark.parametrize("name", SMOOTH)
@settings(max_examples=25)
@given(
    levels=st.lists(st.sampled_from([1.0, 0.98, 0.5, 0.1, 0.02, 0.0]), min_size=1, max_size=4),
    order=st.floats(-5, -2),
)
def test_no_corner_of_a_few_values_is_further_off_than_the_error(name: str, levels: list[float], order: float) -> None:
    entry, values = OF_VALUES[name], torch.tensor([1.0, *sorted(levels, reverse=True)], dtype=torch.float64)
    n, delta = len(values), torch.tensor(10.0**order, dtype=torch.float64)
    signs = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=n)), dtype=torch.float64)
    value, error = entry.compute(values, n, n, delta), entry.error(values, n, n, delta, delta)
    change = (entry.compute((values + delta * signs).clamp(min=0), n, n, delta) - value).abs().max()
    assert change <= error * (1 + SLACK) + SLACK, (change, error)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("order", [-9.0, -5.0, -2.5])
@pytest.mark.parametrize("kind", ["causal", "prefix", "bidirectional"])
def test_errors_of_smooth_measures_are_within_fifty_times_what_noise_does(name: str, order: float, kind: str) -> None:
    values = torch.from_numpy(np.linalg.svd(matrices.attention(kind, 24, std=1.0), compute_uv=False))
    delta = values[0] * 10.0**order
    change, error = changes(name, values, delta, delta, 0)
    assert change.max() <= error <= 50 * change.max()


@pytest.mark.parametrize("name", ["spectral_ratio", "decay_exponent", *COUNTS])
def test_errors_of_counts_and_tails_are_reached(name: str) -> None:
    random, most = np.random.default_rng(0), 0.0
    for _ in range(30):
        values = torch.from_numpy(np.sort(random.random(24) * 10.0 ** -np.linspace(0, 3, 24))[::-1].copy())
        delta = 0.01 * values[0]
        change, error = changes(name, values, 0.1 * delta, delta, 0)
        if float(error) > 0 and math.isfinite(float(error)):
            most = max(most, float(change[change.isfinite()].max() / error))
    assert most > 0.5


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "prefix"])
@pytest.mark.parametrize("order", [-12.0, -7.0, -2.5])
def test_no_perturbation_of_the_matrix_moves_a_measure_by_more_than_its_error(kind: str, order: float) -> None:
    """Weyl's inequality: a perturbation of norm delta moves no singular value by more."""
    matrix, random = matrices.attention(kind, 20, std=1.0, seed=2), np.random.default_rng(1)
    values = torch.from_numpy(np.linalg.svd(matrix, compute_uv=False))
    delta = values[0] * 10.0**order
    noise = random.standard_normal((30, 20, 20))
    noise *= (float(delta) / np.linalg.norm(noise, 2, axis=(1, 2)))[:, None, None]
    moved = torch.from_numpy(np.linalg.svd(matrix + noise, compute_uv=False))
    rounding = 20 * 2.0**-52 * values[0]  # of NumPy's two decompositions
    for name in BOUNDED:
        entry = OF_VALUES[name]
        change = (entry.compute(moved, 20, 20, delta) - entry.compute(values, 20, 20, delta)).abs()
        error = entry.error(values, 20, 20, delta, delta + 2 * rounding)
        assert bool((change <= error).all() | error.isnan()), name


@pytest.mark.parametrize("name", OF_VALUES)
def test_errors_belong_to_each_matrix_of_a_batch_and_are_nan_where_it_failed(name: str) -> None:
    entry, random = OF_VALUES[name], np.random.default_rng(3)
    values = torch.from_numpy(np.sort(random.random((2, 3, 12)))[..., ::-1].copy())
    values[1, 2] = torch.nan
    delta = torch.linspace(1e-3, 1e-2, 6, dtype=torch.float64).reshape(2, 3)
    found = entry.error(values, 12, 12, delta, delta)
    assert found.shape == (2, 3)
    assert bool(found[1, 2].isnan())
    for index in np.ndindex(2, 3):
        alone = entry.error(values[index], 12, 12, delta[index], delta[index])
        torch.testing.assert_close(found[index], alone, rtol=1e-12, atol=0, equal_nan=True)
    assert bool(entry.error(values, 12, 12, delta, torch.full_like(delta, torch.nan)).isnan().all())
    assert entry.error(torch.ones(0, 12), 12, 12, torch.ones(0), torch.ones(0)).shape == (0,)


@pytest.mark.parametrize("name", OF_VALUES)
def test_padding_does_not_change_an_error(name: str) -> None:
    entry = OF_VALUES[name]
    values, delta = torch.linspace(1, 0.01, 16, dtype=torch.float64), torch.tensor(1e-3, dtype=torch.float64)
    padded = torch.cat([values, torch.full((5,), torch.nan, dtype=torch.float64)])
    expected = entry.error(values, 21, 21, delta, delta)
    torch.testing.assert_close(entry.error(padded, 21, 21, delta, delta), expected, rtol=1e-9, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", OF_VALUES)
def test_errors_of_the_zero_matrix_are_zero_for_norms_and_counts_and_nan_for_ratios(name: str) -> None:
    error = OF_VALUES[name].error(torch.zeros(12), 12, 12, torch.zeros(()), torch.zeros(()))
    has_value = name in ("numerical_rank", "nuclear_norm", "frobenius_norm", "spectral_norm")
    assert float(error) == pytest.approx(0.0 if has_value else math.nan, nan_ok=True)


def test_errors_are_computed_without_gradients_and_in_inference_mode() -> None:
    entry = OF_VALUES["effective_rank"]
    values, delta = torch.linspace(1, 0.1, 9), torch.tensor(1e-3)
    expected = entry.error(values, 9, 9, None, delta)
    with torch.inference_mode():
        assert torch.equal(entry.error(values.clone(), 9, 9, None, delta.clone()), expected)
    with torch.no_grad():
        assert torch.equal(entry.error(values, 9, 9, None, delta), expected)


def test_a_second_value_that_may_be_noise_has_no_ratio() -> None:
    entry, delta = OF_VALUES["spectral_ratio"], torch.tensor([0.01, 0.2, 0.2], dtype=torch.float64)
    values = torch.tensor([[1.0, 0.3], [1.0, 0.3], [1.0, 0.1]], dtype=torch.float64)
    error = entry.error(values, 2, 2, delta, delta)
    assert float(error[0]) == pytest.approx(1.01 / 0.29 - 1 / 0.3, rel=1e-9)
    assert float(error[1]) == math.inf
    assert bool(error[2].isnan())


def test_counts_move_by_what_is_worked_out_by_hand() -> None:
    delta = torch.tensor(0.02, dtype=torch.float64)
    values = torch.tensor([1.0, 0.52, 0.48], dtype=torch.float64)
    # Above half of sigma_1: 2; at most 0.54 and 0.50 above 0.49: 3; at least 0.50 above 0.51: 1.
    assert float(moved_numerical_rank(values, delta, tolerance=torch.tensor(0.5))) == 1
    assert float(moved_numerical_rank(values, delta / 4, tolerance=torch.tensor(0.5))) == 0
    mass = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    # Shares of the first two: 0.8 as they are, between 0.78 / 0.99 and 0.82 / 1.01 when moved.
    for fraction, error in ((0.79, 1), (0.805, 1), (0.77, 0), (0.83, 0)):
        assert float(moved_share_rank(mass, delta / 2, fraction=fraction, power=1)) == error, fraction


def test_a_block_rank_moves_with_its_smallest_counted_value() -> None:
    matrix = torch.eye(16, dtype=torch.float64)
    matrix[8, 0], matrix[9, 1] = 0.5, 0.1
    for eta, error in ((0.01, 0), (0.2, 8)):  # 8: zeros may count as well
        assert float(moved_off_diagonal_block_rank(matrix, torch.tensor(eta), tolerance=0.05)) <= error
    assert float(moved_off_diagonal_block_rank(matrix, torch.tensor(0.2), tolerance=0.05)) > 0


def test_the_rank_one_residual_moves_by_its_formula() -> None:
    entry, matrix = MEASURES["rank_one_residual"], torch.from_numpy(matrices.attention("causal", 9))
    visible, residual = torch.ones(9, 9, dtype=torch.bool), float(MEASURES["rank_one_residual"].compute(matrix, None))
    for eta in (1e-3, 0.5):
        error = float(entry.error(matrix, visible, torch.tensor(eta, dtype=torch.float64)))
        assert error == pytest.approx(eta * (1 + residual) / (1 - eta), rel=1e-12)
    assert float(entry.error(matrix, visible, torch.tensor(1.0))) == math.inf


def test_what_has_no_known_bound_says_nan() -> None:
    values = torch.linspace(1, 0.1, 20, dtype=torch.float64)
    for name in UNKNOWN:
        assert bool(MEASURES[name].error(values, 20, 20, None, torch.tensor(1e-9)).isnan())
    shape = (2, 3)
    op = AttentionOperator(query=torch.randn(*shape, 6, 4), key=torch.randn(*shape, 6, 4), mask=Causal(), scale=0.5)
    assert MEASURES["log_abs_det_bound"].error(op, torch.zeros(shape)).isnan().all()


# Measures of attention and of logits.


def perturbed(matrix: Tensor, eta: float, seed: int) -> Tensor:
    """Every entry times 1 +- eta, the signs at random, all one way, and by whether it is above its row's mean."""
    shape = (TRIALS, *matrix.shape)
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], size=shape))
    signs[0], signs[1] = 1, -1
    signs[2] = torch.where(matrix > 1 / math.e, 1.0, -1.0)
    signs[3] = -signs[2]
    signs[4] = torch.where(torch.arange(matrix.shape[-1]) == matrix.sum(dim=-2).argmax(), -1.0, 1.0)
    return matrix * (1 + eta * signs)


@pytest.mark.parametrize("name", [name for name in OF_ENTRIES if MEASURES[name].needs == "attention"])
@pytest.mark.parametrize("kind", ["causal", "bidirectional", "prefix"])
@pytest.mark.parametrize("eta", [1e-7, 4e-3, 0.3])
def test_no_entrywise_change_moves_a_measure_of_attention_by_more_than_its_error(
    name: str, kind: str, eta: float
) -> None:
    entry, size = MEASURES[name], 16
    for std in (0.2, 1.0, 4.0):
        matrix = torch.from_numpy(matrices.attention(kind, size, std=std, seed=5))
        visible = torch.from_numpy(matrices.allowed(kind, size))
        value, error = entry.compute(matrix, visible), entry.error(matrix, visible, torch.tensor(eta).double())
        change = (entry.compute(perturbed(matrix, eta, 0), visible) - value).abs()
        assert error.isnan() == value.isnan()
        assert bool((change <= error * (1 + 1e-9) + 1e-13).all() | error.isnan()), (change.max(), error)
        if name not in ("sink_position", "off_diagonal_block_rank") and not bool(error.isnan()):
            assert error <= 50 * change.max()


def test_a_sink_that_has_a_rival_may_stand_where_the_rival_stands() -> None:
    matrix = torch.full((8, 8), 1 / 8, dtype=torch.float64)
    matrix[:, 2] += 0.01
    matrix[:, 6] += 0.009
    entry, visible = MEASURES["sink_position"], torch.ones(8, 8, dtype=torch.bool)
    for eta, distance in ((1e-4, 0), (0.01, 4), (0.2, 5)):
        assert float(entry.error(matrix, visible, torch.tensor(eta))) == distance


@pytest.mark.parametrize("name", [name for name in OF_ENTRIES if MEASURES[name].needs == "attention"])
def test_errors_of_attention_belong_to_each_matrix_and_are_nan_where_it_failed(name: str) -> None:
    entry, visible = MEASURES[name], torch.ones(9, 9, dtype=torch.bool).tril()
    batch = torch.stack([torch.from_numpy(matrices.attention("causal", 9, seed=seed)) for seed in range(4)])
    batch[2, 5, 1] = torch.nan
    eta = torch.tensor([1e-3, 1e-2, 1e-3, torch.nan], dtype=torch.float64)
    found = entry.error(batch, visible, eta)
    assert found.isnan().tolist() == [False, False, True, True]
    for index in range(2):
        torch.testing.assert_close(found[index], entry.error(batch[index], visible, eta[index]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shift", [1e-6, 0.05])
def test_no_error_of_the_logits_moves_their_std_by_more_than_half_of_eta(shift: float) -> None:
    logits, visible = torch.from_numpy(matrices.random_logits(12, 12)), torch.from_numpy(matrices.allowed("prefix", 12))
    entry, random = MEASURES["logit_std"], np.random.default_rng(0)
    value, error = entry.compute(logits, visible), entry.error(logits, visible, torch.tensor(2 * shift).double())
    centred = logits - logits.where(visible, 0).sum(dim=1, keepdim=True) / visible.sum(dim=1, keepdim=True)
    signs = [centred.sign(), -centred.sign(), *torch.from_numpy(random.choice([-1.0, 1.0], size=(50, 12, 12)))]
    change = torch.stack([(entry.compute(logits + shift * sign, visible) - value).abs() for sign in signs]).max()
    assert change <= error <= 2 * change
    logits[3, 1] = torch.nan
    assert bool(entry.error(logits, visible, torch.tensor(1e-3)).isnan())


# Measures of operators.


def operator(n: int, *leading: int, std: float = 1.0) -> AttentionOperator:
    query, key = torch.from_numpy(std * np.random.default_rng(7).standard_normal((2, *leading, n, 8)))
    return AttentionOperator(query=query, key=key, mask=Causal(), scale=8**-0.5)


@pytest.mark.parametrize("eta", [1e-8, 1e-4])
def test_no_entrywise_change_moves_log10_sigma_min_by_more_than_its_error(eta: float) -> None:
    op, entry = operator(14), MEASURES["log10_smallest_singular_value"]
    value, error = entry.compute(op), entry.error(op, torch.tensor(eta))
    change = (log10_smallest_singular_value(perturbed(op.dense(), eta, 2)) - value).abs().max()
    assert change <= error <= 50 * change


def test_sigma_min_of_operators_has_an_answer_or_none() -> None:
    entry = MEASURES["log10_smallest_singular_value"]
    op = operator(6, 2, 3)
    assert entry.compute(op).shape == entry.error(op, torch.full((2, 3), 1e-6)).shape == (2, 3)
    assert entry.error(op, torch.full((2, 3), 0.5)).isnan().all()  # it could become 0
    assert entry.compute(operator(6, 0)).shape == (0,)
    assert entry.compute(op.with_mask(Causal().transposed())).isfinite().all()
    assert entry.compute(op.with_mask(Bidirectional())).isnan().all()


def test_sigma_min_that_float64_cannot_hold_comes_from_the_logits_or_is_unresolved() -> None:
    """A_ii = e^-900 underflows: known where it alone decides, unresolved where entries that underflowed do."""
    entry = MEASURES["log10_smallest_singular_value"]
    key = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)

    def op(*rows: tuple[float, float]) -> AttentionOperator:
        return AttentionOperator(query=torch.tensor(rows, dtype=torch.float64), key=key, mask=Causal(), scale=1.0)

    # Rows of A: (1), (1, e^-900), (1, 1, 1) / 3. Rows of the inverse: (1), (-1, 1) e^900, and minus that.
    assert float(entry.compute(op((0, 0), (900, 0), (0, 0)))) == pytest.approx(-(900 + math.log(2)) / math.log(10))
    # Row 3 of A: (1, e^-900, e^-1000). The largest entry of the inverse is -A_32 / (A_22 A_33), and A_32 is gone.
    unresolved = op((0, 0), (1500, 0), (1000, 100))
    assert bool(entry.compute(unresolved).isnan())
    assert bool(entry.error(unresolved, torch.tensor(1e-9)).isnan())
