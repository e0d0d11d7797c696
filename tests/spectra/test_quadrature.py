"""Quadratures against the sums they bound, and brackets against exact measures: theorems first, then coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import (
    Matrix,
    attention,
    gaussian,
    geometric,
    lower_ones,
    one_by_one,
    orthogonal,
    permutation,
    prescribed,
    rank_deficient,
    rank_one,
    sink,
    uniform,
    zero,
)
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.operators import DenseOperator, Operator
from rankkit.spectra import brackets, measures
from rankkit.spectra.brackets import Bracket, Estimates
from rankkit.spectra.density import density
from rankkit.spectra.leading import leading_triplets, squared_norm
from rankkit.spectra.probes import CUBE_SLICING, signs
from rankkit.spectra.probes import uniform as uniform_vectors
from rankkit.spectra.quadrature import Probed, probe

CPU = torch.device("cpu")


def dense(matrix: Matrix) -> DenseOperator:
    return DenseOperator(matrix=torch.from_numpy(np.ascontiguousarray(matrix))[None])


def exact(matrix: Matrix) -> Tensor:
    return torch.from_numpy(np.linalg.svd(matrix, compute_uv=False))


def seen(
    matrix: Matrix | Operator, *, steps: int = 45, count: int = 8, probes: int = 16, seed: int = 0, energy: bool = True
) -> Probed:
    """What is known after the last step."""
    operator = matrix if isinstance(matrix, Operator) else dense(matrix)
    known = squared_norm(operator) if energy else None
    leading = leading_triplets(operator, count, vectors=True, energy=known, seed=seed)
    total = None if known is None else float(known)
    *_, last = probe(operator, leading, energy=total, probes=probes, steps=steps, seed=seed)
    return last


def covers(bracket: Bracket, value: float) -> bool:
    slack = 1e-9 * abs(value)
    return bracket.lower - slack <= value <= bracket.upper + slack


# The theorems behind the brackets.


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_derivatives_have_the_signs_that_make_gauss_and_radau_bounds(steps: int) -> None:
    # (-1)^(m - 1) for m = 2 k and 2 k + 1, of h, of t_c with the largest c, and of -x log x, on all of (0, b].
    with mpmath.workdps(40):
        for b in (mpmath.mpf("0.02"), mpmath.mpf(1)):
            c = -(mpmath.mpf(brackets._order_sum(2 * steps)) + mpmath.log(b)) / 2
            functions = {
                "h": mpmath.sqrt,
                "t_c": lambda x, c=c: -mpmath.sqrt(x) * (mpmath.log(x) / 2 + c),
                "energy": lambda x: -x * mpmath.log(x),
            }
            for name, function in functions.items():
                for order, part in itertools.product((2 * steps, 2 * steps + 1), ("0.01", "0.999999")):
                    series = mpmath.taylor(function, b * mpmath.mpf(part), order)
                    assert series[order] * (-1) ** (order - 1) >= 0, (name, order, part)


def test_the_bound_on_c_is_sharp() -> None:
    with mpmath.workdps(40):
        c = -mpmath.mpf(brackets._order_sum(10)) / 2 + mpmath.mpf("0.01")
        assert mpmath.taylor(lambda x: -mpmath.sqrt(x) * (mpmath.log(x) / 2 + c), mpmath.mpf(1), 10)[10] > 0


@settings(max_examples=20)
@given(
    spectrum=st.lists(st.floats(1e-3, 1), min_size=40, max_size=40),
    steps=st.integers(2, 12),
    seed=st.integers(0, 99),
    wide=st.booleans(),
)
def test_gauss_and_radau_bracket_every_probe(spectrum: list[float], steps: int, seed: int, wide: bool) -> None:
    matrix = prescribed(np.array(spectrum), *((40, 45) if wide else (45, 40)), seed=seed)
    found = seen(matrix, steps=steps, count=3, probes=8, seed=seed)
    assume(found.rest == 37)
    side = matrix.T if wide else matrix
    leading = leading_triplets(dense(matrix), 3, vectors=True, seed=seed)
    vectors = leading.left if wide else leading.right
    assert vectors is not None
    outside = np.eye(40) - vectors[0].numpy() @ vectors[0].numpy().T
    x, eigenvectors = np.linalg.eigh(outside @ side.T @ side @ outside / found.largest**2)
    weights = torch.from_numpy((eigenvectors.T @ outside @ signs(seed, "signs", 40, 8, device=CPU).numpy()) ** 2).T
    nodes = torch.from_numpy(np.maximum(x, 0))
    allowed = -(brackets._order_sum(2 * found.steps) + 2 * math.log(found.edge)) / 2
    functions: list[Callable[[Tensor], Tensor]] = [brackets._root, brackets._energy_entropy]
    functions += [lambda x, c=c: brackets._entropy(x, c) for c in (0.0, allowed, allowed - 1)]
    for function in functions:
        true = (weights * function(nodes)).sum(dim=1)
        assert bool((found.radau.integrate(function(found.radau.nodes)) <= true + 1e-7).all())
        assert bool((found.gauss.integrate(function(found.gauss.nodes)) >= true - 1e-7).all())
    below, beyond = Estimates(found)._moved_rules()
    for threshold in (0.01, 0.2):
        above = (weights * (nodes > threshold)).sum(dim=1)
        assert bool((found.gauss.integrate((below > threshold).double()) <= above + 1e-7).all())
        assert bool((found.gauss.integrate((beyond > threshold).double()) >= above - 1e-7).all())
        assert bool((brackets._above(found, threshold, strictly=True) <= above + 1e-7).all())
        assert bool((brackets._above(found, threshold, strictly=False) >= above - 1e-7).all())


def test_gauss_is_exact_for_polynomials_and_radau_has_its_node() -> None:
    matrix = attention("prefix", 80)
    found = seen(matrix, steps=6, count=2)
    longer = seen(matrix, steps=30, count=2)
    for power in range(12):  # degree 2 steps - 1
        torch.testing.assert_close(
            found.gauss.integrate(found.gauss.nodes**power), longer.gauss.integrate(longer.gauss.nodes**power)
        )
    for power in range(13):
        torch.testing.assert_close(
            found.radau.integrate(found.radau.nodes**power), longer.gauss.integrate(longer.gauss.nodes**power)
        )
    node = found.with_node(0.01).nodes
    assert bool(((node - 0.01).abs().amin(dim=1) < 1e-14).all())


def test_the_effective_rank_is_bracketed_by_plug_in_values_once_c_is_large_enough() -> None:
    # The box of N and T, c = 0, is the wider one: what the derivation gains.
    found = seen(attention("causal", 200, std=0.3), steps=20, count=2)
    estimates = Estimates(found)
    lower, upper = estimates._nuclear
    entropy = [
        estimates._mean(rule.integrate(brackets._entropy(rule.nodes))) + brackets._entropy(found.found.square()).sum()
        for rule in (found.radau, found.gauss)
    ]
    plug_in = [float(n[0] * (t[0] / n[0]).exp()) for n, t in zip((lower, upper), entropy, strict=True)]
    assert estimates.effective_rank().quadrature == pytest.approx(plug_in[1] - plug_in[0], rel=1e-4)
    box = float(lower[0] * (entropy[1][0] / lower[0]).exp()) - float(upper[0] * (entropy[0][0] / upper[0]).exp())
    assert box > 1.3 * estimates.effective_rank().quadrature


def test_the_effective_rank_is_bracketed_by_extremes_where_c_is_too_small() -> None:
    # Few steps, a long tail far below the edge: W > N, and plug-in values are not proven to bracket.
    matrix = prescribed(np.array([1.0, 0.9, *np.linspace(0.03, 0.07, 98)]), 100, 100)
    found = seen(matrix, steps=2, count=1)
    estimates = Estimates(found)
    lower, upper = estimates._nuclear
    t, n = (
        [float(rule.integrate(function(rule.nodes)) @ estimates._weights[0]) for rule in (found.radau, found.gauss)]
        for function in (brackets._entropy, brackets._root)
    )
    plug_in = [(1 + n[side]) * math.exp(t[side] / (1 + n[side])) for side in (0, 1)]
    assert estimates.effective_rank().quadrature > 1.2 * (plug_in[1] - plug_in[0])
    assert float(lower[0]) < float(upper[0])
    assert covers(estimates.effective_rank(), float(measures.effective_rank(exact(matrix))))


def test_counts_above_any_threshold_are_bracketed_between_whole_numbers() -> None:
    matrix = attention("causal", 96, std=2.0)
    true = exact(matrix)
    estimates = Estimates(seen(matrix, steps=20, probes=32))
    for threshold in (0.0, 0.003, 0.03, 0.1, 0.3, 0.9, 1.1):
        bracket = estimates.count_above(threshold)
        assert covers(bracket, float((true > threshold * true[0]).sum())), threshold
        assert bracket.lower == int(bracket.lower)
        assert bracket.upper == int(bracket.upper)


# Brackets against exact measures.

MEASURES: dict[str, tuple[Callable[[Estimates], Bracket], Callable[[Tensor], Tensor]]] = {
    "nuclear_norm": (Estimates.nuclear_norm, measures.nuclear_norm),
    "frobenius_norm": (Estimates.frobenius_norm, measures.frobenius_norm),
    "stable_rank": (Estimates.stable_rank, measures.stable_rank),
    "effective_rank": (Estimates.effective_rank, measures.effective_rank),
    "effective_rank_energy": (Estimates.effective_rank_energy, measures.effective_rank_energy),
    "participation_ratio": (Estimates.participation_ratio, measures.participation_ratio),
    "numerical_rank": (lambda e: e.count_above(0.02), lambda s: measures.numerical_rank(s, tolerance=0.02)),
    "energy_rank_90": (lambda e: e.share_rank("energy", 0.9), lambda s: measures.energy_rank(s, fraction=0.9)),
    "energy_rank_99": (lambda e: e.share_rank("energy", 0.99), lambda s: measures.energy_rank(s, fraction=0.99)),
    "mass_rank_80": (lambda e: e.share_rank("mass", 0.8), lambda s: measures.mass_rank(s, fraction=0.8)),
    "mass_at_quarter": (Estimates.mass_at_quarter, measures.mass_at_quarter),
}


def test_brackets_cover_what_they_say_over_masks_logits_and_probes() -> None:
    # 60 trials: a true 95% gives fewer than 52 with a probability of 0.3%, a true 80% gives 52 or more with 12%.
    # Measures whose bracket is mostly quadrature, which is certain, cover all; the others show the probes' error.
    kinds = ("causal", "prefix", "bidirectional", "backward")
    covered = dict.fromkeys(MEASURES, 0)
    for trial in range(60):
        deviation = 0.1 * 40 ** np.random.default_rng(trial).random()  # 0.1 to 4
        matrix = attention(kinds[trial % 4], 96, std=deviation, seed=trial)
        estimates = Estimates(seen(matrix, steps=20 if trial % 2 else 45, count=16, seed=trial))
        true = exact(matrix)
        for name, (estimate, measure) in MEASURES.items():
            covered[name] += covers(estimate(estimates), float(measure(true)))
    assert min(covered.values()) >= 52, covered


@pytest.mark.parametrize(
    "matrix",
    [
        permutation(60),
        rank_deficient(60, 5),
        rank_one(50, 30),
        rank_one(30, 50),
        one_by_one(2.0),
        gaussian(5, 9),
        gaussian(12, 40),
        lower_ones(40),
        geometric(60, 0.3),
        1e10 * gaussian(30, 30),
        1e-10 * gaussian(30, 30),
        uniform("bidirectional", 64),
    ],
)
def test_brackets_close_where_few_directions_matter(matrix: Matrix) -> None:
    # Every probe's space closes on itself, or all values were taken out; what is left is rounding, sqrt(eps) per value.
    true = exact(matrix)
    estimates = Estimates(seen(matrix, count=8, steps=100))
    for name, (estimate, measure) in MEASURES.items():
        bracket, value = estimate(estimates), float(measure(true))
        slack = 1e-6 * value + 2e-7 * len(true) * value
        assert bracket.lower - slack <= value <= bracket.upper + slack, name
    assert estimates.effective_rank().half_width < 0.05


def test_the_cesaro_matrix_has_the_effective_rank_of_its_closed_form() -> None:
    # Uniform causal attention: 70.5 at n = 512, to the one digit that the statement has.
    bracket = Estimates(seen(uniform("causal", 512), count=32, steps=100, probes=32)).effective_rank()
    assert bracket.lower < 70.5 < bracket.upper
    assert bracket.half_width < 0.03


def test_a_sink_that_holds_nearly_everything_is_taken_out_and_the_rest_bracketed() -> None:
    matrix = sink("causal", 256)
    bracket = Estimates(seen(matrix, count=16, steps=68, probes=32)).effective_rank()
    assert covers(bracket, float(measures.effective_rank(exact(matrix))))
    assert bracket.half_width < 0.05


def test_energy_ranks_that_the_leading_values_reach_are_exact() -> None:
    matrix = attention("bidirectional", 128, std=0.3)
    true = float(measures.energy_rank(exact(matrix), fraction=0.9))
    assert true <= 4
    bracket = Estimates(seen(matrix, count=8)).share_rank("energy", 0.9)
    assert (bracket.lower, bracket.upper) == (true, true)


def test_more_steps_narrow_the_quadrature_and_more_probes_the_rest() -> None:
    matrix = attention("causal", 300, std=0.5)
    widths = [Estimates(seen(matrix, steps=steps)).effective_rank().quadrature for steps in (20, 45, 102)]
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0
    rest = []
    for probes in (8, 32, 128):
        bracket = Estimates(seen(matrix, steps=68, probes=probes)).effective_rank()
        rest.append(bracket.upper - bracket.lower - bracket.quadrature)
    assert rest[0] > 1.5 * rest[1] > 2 * rest[2]


def test_taking_the_leading_values_out_narrows_the_bracket() -> None:
    matrix = attention("prefix", 256, std=0.3)
    little, much = (Estimates(seen(matrix, count=count, steps=30)).effective_rank() for count in (1, 24))
    assert much.half_width < little.half_width / 1.5
    assert much.quadrature < little.quadrature / 2


def test_what_the_leading_values_are_off_by_is_in_the_bracket() -> None:
    # Triplets with residuals of 1e-6 sigma_1 or worse move every bracket's ends by what they may hide.
    matrix = attention("causal", 128)
    operator = dense(matrix)
    leading = leading_triplets(operator, 8, vectors=True, tolerance=1e-5, block=9)
    *_, last = probe(operator, leading, energy=float(squared_norm(operator)), probes=16, steps=45)
    assert last.displacement == pytest.approx(2 * float(leading.residuals.sum() / leading.values[0, 0]))
    bracket = Estimates(last).nuclear_norm()
    assert covers(bracket, float(exact(matrix).sum()))


def test_triplets_that_did_not_converge_stay_with_the_probes() -> None:
    matrix = gaussian(120, 120)
    operator = dense(matrix)
    leading = leading_triplets(operator, 8, vectors=True, max_steps=1)
    *_, last = probe(operator, leading, energy=float(squared_norm(operator)), probes=32, steps=68)
    assert len(last.found) == 0
    assert last.rest == 120
    # the unit is then the largest Ritz value, which is below sigma_1, and ratios do not see it
    assert covers(Estimates(last).effective_rank(), float(measures.effective_rank(exact(matrix))))


def test_an_unknown_norm_is_estimated_too() -> None:
    matrix = attention("causal", 128) - 0.5 * attention("causal", 128, seed=1)
    operator = dense(attention("causal", 128)) - 0.5 * dense(attention("causal", 128, seed=1))
    true = exact(matrix)
    estimates = Estimates(seen(operator, count=16, steps=45, probes=32))
    for name, (estimate, measure) in MEASURES.items():
        assert covers(estimate(estimates), float(measure(true))), name
    norm = estimates.frobenius_norm()
    assert norm.upper > norm.lower
    assert norm.quadrature == 0  # exact for every probe


def test_a_wide_matrix_gives_what_its_transpose_gives() -> None:
    matrix = gaussian(60, 150)
    true = float(measures.effective_rank(exact(matrix)))
    for one in (matrix, matrix.T):
        found = seen(one)
        assert found.size == 60
        assert covers(Estimates(found).effective_rank(), true)


def test_the_weights_of_probes_reproduce_the_known_sums() -> None:
    found = seen(attention("causal", 128), count=8)
    estimates = Estimates(found)
    assert found.energy is not None
    left = found.energy - float(found.found.square().sum())
    torch.testing.assert_close(estimates._weights.sum(dim=1), torch.ones(17, dtype=torch.float64))
    for values, known in ((found.masses, 120.0), (found.masses * found.diagonal[:, 0], left)):
        torch.testing.assert_close(estimates._mean(values), torch.full((17,), known, dtype=torch.float64))
    without_first = estimates._weights[1]
    assert float(without_first[0]) == 0


def test_two_known_sums_that_are_one_are_no_trouble() -> None:
    found = seen(permutation(40), count=4, probes=8)  # |P z|^2 twice, since all values are 1
    estimates = Estimates(found)
    torch.testing.assert_close(estimates._mean(found.masses), torch.full((9,), 36.0, dtype=torch.float64))
    assert bool((estimates._weights[0] > 0).all())


def test_the_distribution_counts_every_value_and_the_density_integrates_to_them() -> None:
    matrix = attention("bidirectional", 200)
    estimates = Estimates(seen(matrix, count=8))
    values, counts = estimates.distribution()
    assert float(counts.sum()) == pytest.approx(200)
    assert bool((values.diff() <= 0).all())
    torch.testing.assert_close(values[:8], exact(matrix)[:8], rtol=1e-9, atol=0)
    grid = torch.linspace(-12, 2, 5000, dtype=torch.float64)
    drawn = density(values, counts, grid)
    assert float(torch.trapezoid(drawn, grid)) == pytest.approx(float(counts[values > 0].sum()), rel=1e-6)
    true = density(exact(matrix), torch.ones(200), grid)
    assert float(torch.trapezoid((drawn - true).abs(), grid)) < 40  # a value in the wrong place counts twice


def test_a_density_needs_a_width() -> None:
    one = torch.ones(1)
    with pytest.raises(ConfigurationError, match=r"width must be above 0, got 0\.0"):
        density(one, one, one, width=0.0)


# Probing.


def test_looks_come_at_growing_distances_and_the_last_at_the_end() -> None:
    operator = dense(attention("causal", 200))
    leading = leading_triplets(operator, 8, vectors=True)
    looks = [look.steps for look in probe(operator, leading, energy=None, probes=8, steps=50)]
    assert looks == [20, 25, 31, 39, 49, 50]


def test_nothing_is_seen_of_a_zero_or_an_infinite_matrix() -> None:
    for matrix in (zero(10, 10), np.full((10, 10), np.nan)):
        leading = leading_triplets(dense(matrix), 2, vectors=True)
        assert list(probe(dense(matrix), leading, energy=None)) == []


def test_random_vectors_are_a_function_of_seed_and_name() -> None:
    one = signs(1, "a", 50, 40, device=CPU)
    assert set(one.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(one, signs(1, "a", 50, 40, device=CPU))
    assert not torch.equal(one, signs(2, "a", 50, 40, device=CPU))
    assert not torch.equal(one, signs(1, "b", 50, 40, device=CPU))
    assert abs(float(one.mean())) < 0.1
    numbers = uniform_vectors(1, "a", 200, 100, device=CPU)
    assert float(numbers.square().mean()) == pytest.approx(1, abs=0.03)
    assert float(numbers.abs().max()) < 3**0.5
    # the first numbers, pinned: they must not change with a library
    assert uniform_vectors(0, "block 0", 1, 2, device=CPU)[0].tolist() == [0.328207524974275, -1.0032096897670069]


def test_projections_of_uniform_vectors_are_small_as_rarely_as_cube_slicing_says() -> None:
    numbers = uniform_vectors(3, "slices", 20000, 12, device=CPU)
    directions = torch.from_numpy(orthogonal(12, 5))
    diagonal = torch.zeros(12, dtype=torch.float64)
    diagonal[:2] = 0.5**0.5  # the direction whose slice is largest
    for direction in (*directions, diagonal):
        for size in (0.05, 0.2, 0.5):
            share = float(((numbers @ direction).abs() <= size).double().mean())
            assert share <= CUBE_SLICING * size + 4 * math.sqrt(size / 20000)  # four standard errors


def test_misuse_is_refused() -> None:
    operator = dense(attention("causal", 40))
    leading = leading_triplets(operator, 4, vectors=True)
    for wrong in ({"probes": 7}, {"steps": 1}):
        with pytest.raises(ConfigurationError, match="probes must be at least 8 and steps at least 2"):
            next(probe(operator, leading, energy=None, **wrong))
    with pytest.raises(ConfigurationError, match="leading must be of one matrix and keep its vectors"):
        next(probe(operator, leading_triplets(operator, 4), energy=None))
    with pytest.raises(ConfigurationError, match=r"threshold must be at least 0, got -0\.1"):
        Estimates(seen(attention("causal", 40))).count_above(-0.1)
    with pytest.raises(ConfigurationError, match=r"fraction must be above 0 and at most 1, got 1\.5"):
        Estimates(seen(attention("causal", 40))).share_rank("energy", 1.5)
