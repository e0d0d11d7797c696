"""`rankkit.spectra.spectrum` of any matrix: a status for each, neighbours untouched, a reason for all that is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import matrices
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Padded, Prefix
from rankkit.operators import AttentionOperator, DenseOperator
from rankkit.spectra import (
    MEASURES,
    METHODS,
    STATUSES,
    MatrixFreeConfig,
    Spectrum,
    check_measures,
    chosen_method,
    exact,
    matrix_free,
    spectrum,
)

ALL = tuple(MEASURES)
N = 24
EXACT = ("exact", "gram", "svd")
EVERY = (*EXACT, "matrix-free")
FAST = MatrixFreeConfig(leading=8, probes=8, steps=40, half_width=0.2)
WITHOUT_A_BOUND = {"log_abs_det_bound", "decay_exponent_standard_error", "decay_exponent_r_squared"}
TAIL = {"decay_exponent", "decay_exponent_standard_error", "decay_exponent_r_squared"}


def tensor(*given: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.stack(given))


def attention(
    mask: Mask, count: int = 3, *, n: int = N, features: int = 4, spread: float = 1.5, seed: int = 0
) -> AttentionOperator:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, n, features), (count, mask.columns(n), features))
    query, key = (spread * torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return AttentionOperator(query=query, key=key, mask=mask, scale=features**-0.5)


def collapsed(noise: float = 1e-8) -> NDArray[np.float64]:
    """One row for all queries, plus noise."""
    random = np.random.default_rng(0)
    matrix = np.tile(random.dirichlet(np.ones(N)), (N, 1)) + noise * random.random((N, N))
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))


def measured(matrix: Any, method: Any = "exact", **settings: Any) -> Spectrum:
    return spectrum(matrix, **{"measures": ALL, "method": method, "matrix_free": FAST, "workers": 1, **settings})


def parts(found: Spectrum) -> dict[str, Tensor]:
    """Every number of a spectrum."""
    names = ("singular_values", "floor_arithmetic", "floor_model", "method", "status")
    ends = {f"{name}_{end}": pair[end] for name, pair in found.brackets.items() for end in (0, 1)}
    errors = {f"{name}_error": error for name, error in found.errors.items()}
    return {name: getattr(found, name) for name in names} | dict(found.measures) | errors | ends


def statuses(found: Spectrum) -> list[str]:
    return [STATUSES[code] for code in found.status.flatten().tolist()]


def unknown(found: Spectrum, index: int) -> set[str]:
    """Measures of one matrix that have neither a value nor a bracket, though nobody switched them off."""
    exact_ones = {name for name, values in found.measures.items() if bool(values[index].isnan())}
    return exact_ones | {name for name, ends in found.brackets.items() if any(bool(end[index].isnan()) for end in ends)}


def assert_every_error_is_known(found: Spectrum) -> None:
    """An error beside every value, at least 0, nan only where there is no finite value or the documentation says so."""
    assert found.errors.keys() == found.measures.keys()
    for name, error in found.errors.items():
        assert not bool((error < 0).any()), name
        known = found.measures[name].isfinite()
        if name not in WITHOUT_A_BOUND:
            assert not bool(error[known].isnan().any()), name


# Any tensor.


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (N, N), (1, 7), (7, 1), (2, 3, 9, 12)])
def test_a_signed_tensor_of_any_shape_has_the_singular_values_of_numpy(shape: tuple[int, ...], method: str) -> None:
    matrix = np.random.default_rng(1).normal(size=shape)
    found = measured(torch.from_numpy(matrix), method)
    expected = np.linalg.svd(matrix, compute_uv=False)
    error = np.abs(found.singular_values.numpy() - expected).max(axis=-1)
    assert (error <= found.floor_arithmetic.numpy()).all()
    assert found.status.shape == shape[:-2]
    shares = expected / expected.sum(axis=-1, keepdims=True)
    ranks = np.exp(-(shares * np.log(shares)).sum(axis=-1))
    np.testing.assert_allclose(found.effective_rank.numpy(), ranks, rtol=1e-9)
    assert_every_error_is_known(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_tensor_of_any_real_dtype_is_measured_as_the_numbers_it_holds(dtype: torch.dtype) -> None:
    matrix = (3 * torch.from_numpy(matrices.gaussian(9, 12))).to(dtype)
    found = measured(matrix)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.singular_values.numpy(), expected, rtol=0, atol=float(found.floor_arithmetic))
    rounded = dtype in (torch.float32, torch.bfloat16)  # whole numbers are held exactly
    assert (float(found.floor_model) > 0) == rounded


# A status for every matrix.


@pytest.mark.parametrize("method", EVERY)
def test_the_zero_matrix_is_degenerate_beside_others(method: str) -> None:
    found = measured(tensor(matrices.gaussian(N, N), matrices.zero(N, N)), method)
    assert statuses(found) == ["estimated" if method == "matrix-free" else "ok", "degenerate"]
    kept = parts(found)
    alone = parts(measured(tensor(matrices.gaussian(N, N)), method))
    for name, values in alone.items():
        assert torch.equal(kept[name][0].nan_to_num(-1.0), values[0].nan_to_num(-1.0)), name
    ratios = {name for name in found.measures.keys() | found.brackets.keys() if not name.endswith("_norm")}
    assert unknown(found, 1) == ratios - {"numerical_rank"}  # 0 / 0
    assert unknown(found, 0) == set()
    assert found.spectral_norm[1] == 0
    assert_every_error_is_known(found)


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_one_row_or_column_is_degenerate_with_its_norm_for_a_singular_value(
    shape: tuple[int, int], method: str
) -> None:
    matrix = matrices.rank_one(*shape)
    found = measured(tensor(matrix, -matrix), method)
    assert statuses(found) == ["degenerate"] * 2
    np.testing.assert_allclose(found.singular_values.numpy(), np.linalg.norm(matrix), rtol=1e-12)
    ends = found.brackets.get("effective_rank", (found.measures.get("effective_rank"),) * 2)
    for end in ends:
        assert end is not None
        np.testing.assert_allclose(end.numpy(), 1, rtol=1e-9)
    assert unknown(found, 0) == TAIL & found.measures.keys()  # a slope takes eight points
    assert_every_error_is_known(found)


@pytest.mark.parametrize("method", EVERY)
def test_attention_over_one_key_is_degenerate_and_has_nothing_to_compare(method: str) -> None:
    found = measured(attention(Causal(), n=1), method)
    assert statuses(found) == ["degenerate"] * 3
    without = {"attention_entropy_relative", "previous_key_mass"} | (TAIL & found.measures.keys())
    assert unknown(found, 0) == without
    assert found.diagonal_mass.tolist() == [1.0] * 3
    assert_every_error_is_known(found)


@pytest.mark.parametrize("method", EVERY)
def test_a_collapsed_head_keeps_its_rank_one_and_noise_stays_below_the_floors(method: str) -> None:
    found = measured(tensor(collapsed(), matrices.attention("bidirectional", N)), method)
    assert statuses(found) == (["estimated"] * 2 if method == "matrix-free" else ["ok"] * 2)
    lower, upper = found.brackets.get("effective_rank", (found.measures.get("effective_rank"),) * 2)
    assert lower is not None
    assert upper is not None
    assert 1 <= float(lower[0]) <= float(upper[0]) + 1e-12
    assert float(upper[0]) < 1 + 1e-4
    assert float(lower[1]) > 5
    assert unknown(found, 0) == (TAIL if method == "gram" else set())  # gram does not see 1e-8
    noise = np.linalg.svd(collapsed(), compute_uv=False)[1]
    if method in ("exact", "svd"):
        assert found.method[0] == METHODS.index("svd")
        assert float(found.spectral_ratio[0]) == pytest.approx(float(found.singular_values[0, 0]) / noise, rel=1e-5)
    in_float32 = measured(attention(Bidirectional(), 1), method)
    query = torch.ones(1, N, 4) + 1e-8 * in_float32.singular_values.new_ones(1)
    head = replace(attention(Bidirectional(), 1), query=query.float())
    assert int(measured(head, method).resolved_model[0]) == 1
    assert_every_error_is_known(found)


@pytest.mark.parametrize("method", EVERY)
def test_an_all_sink_head_has_rank_one_and_the_norm_of_its_column(method: str) -> None:
    key = torch.zeros(2, N, 4, dtype=torch.float64)
    key[:, 0] = 1000.0
    head = AttentionOperator(query=torch.ones_like(key), key=key, mask=Causal(), scale=0.5)
    found = measured(head, method)
    assert statuses(found) == (["estimated"] * 2 if method == "matrix-free" else ["ok"] * 2)
    np.testing.assert_allclose(found.spectral_norm.numpy(), math.sqrt(N), rtol=1e-9)
    assert found.sink_mass.tolist() == [1.0] * 2
    assert found.spectral_ratio.tolist() == [math.inf] * 2
    assert bool(found.errors["spectral_ratio"].isnan().all())  # no bound of an infinity
    tail = TAIL | {"log10_smallest_singular_value"}  # e^-2000 is beyond its triangular solves
    assert unknown(found, 0) == tail & found.measures.keys()
    assert_every_error_is_known(found)


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("mask", [Causal(), Prefix(5), Bidirectional()], ids=str)
def test_rows_that_are_padding_add_zeros_and_nothing_else(mask: Mask, method: str) -> None:
    padded = attention(Padded(mask, 15))
    short = replace(padded, query=padded.query[:, :15], key=padded.key[:, :15], mask=mask)
    found, expected = measured(padded, method), measured(short, method)
    assert statuses(found) == statuses(expected)
    count = 8 if method == "matrix-free" else 15
    np.testing.assert_allclose(
        found.singular_values[:, :count].numpy(), expected.singular_values[:, :count].numpy(), atol=1e-6
    )  # matrix-free values to their residual
    assert bool((found.singular_values[:, count:] <= found.floor_arithmetic[:, None]).all())
    for name in ("attention_entropy", "attention_entropy_relative", "mean_ipr", "sink_mass", "logit_std"):
        torch.testing.assert_close(found.measures[name], expected.measures[name], rtol=1e-12, atol=0)
    assert "log10_smallest_singular_value" in found.unavailable
    assert_every_error_is_known(found)


# What fails, fails alone.


def assert_second_alone_failed(found: Spectrum, whole: Spectrum) -> None:
    """Of three matrices the second failed; the others have the very numbers of a batch without a failure."""
    assert statuses(found)[1] == "failed"
    assert "failed" not in (statuses(found)[0], statuses(found)[2])
    assert found.failed.tolist() == [False, True, False]
    assert whole.unavailable == found.unavailable
    kept, expected = parts(found), parts(whole)
    assert kept.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(kept[name][[0, 2]].nan_to_num(-1.0), values[[0, 2]].nan_to_num(-1.0)), name
        assert name in ("status", "method", "floor_model") or bool(kept[name][1].isnan().all()), name
    assert (int(found.resolved[1]), int(found.resolved_model[1])) == (0, 0)
    assert_every_error_is_known(found)


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", ["query", "key"])
def test_logits_that_are_not_finite_fail_one_matrix(factor: str, wrong: float, method: str) -> None:
    whole = attention(Prefix(10))
    values = getattr(whole, factor).clone()
    values[1, 3, 2] = wrong
    assert_second_alone_failed(measured(replace(whole, **{factor: values}), method), measured(whole, method))


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("wrong", [(math.nan,), (math.inf,), (-math.inf,), (math.inf, -1.0)], ids=str)
def test_entries_that_are_not_finite_fail_one_matrix_whatever_stands_beside_them(
    wrong: tuple[float, ...], method: str
) -> None:
    whole = tensor(*(matrices.attention("causal", N, seed=seed) for seed in range(3)))
    broken = whole.clone()
    broken[1, 5, : len(wrong)] = torch.tensor(wrong, dtype=torch.float64)
    assert_second_alone_failed(measured(broken, method), measured(whole, method))
    both, other = attention(Causal()), DenseOperator(matrix=broken)
    for found in (measured(0.5 * both + 0.5 * other, method), measured(other, method)):
        assert found.failed.tolist() == [False, True, False]
        assert "sink_mass" in found.measures or method == "matrix-free"


@pytest.mark.parametrize("method", EVERY)
def test_an_infinite_factor_fails_its_matrix_even_where_no_weight_is_lost_to_it(method: str) -> None:
    """Logits of minus infinity are weights of 0, but there is no bound of what rounding did to the others."""
    given = attention(Causal())
    whole = replace(given, query=given.query.abs() + 0.1)
    key = given.key.clone()
    key[1, 7] = -math.inf
    assert bool(replace(whole, key=key).dense().isfinite().all())
    assert_second_alone_failed(measured(replace(whole, key=key), method), measured(whole, method))


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("anything", [math.nan, math.inf, -math.inf])
def test_padding_may_hold_anything(anything: float, method: str) -> None:
    whole = attention(Padded(Prefix(5), 15))
    query, key = whole.query.clone(), whole.key.clone()
    query[1, 15:], key[1, 15:] = anything, anything
    found, expected = measured(replace(whole, query=query, key=key), method), measured(whole, method)
    assert statuses(found) == statuses(expected)
    assert "failed" not in statuses(found)


def failing(monkeypatch: pytest.MonkeyPatch, marked: float, methods: tuple[str, ...]) -> None:
    """LAPACK does not converge on matrices whose first entry is `marked`."""
    true = exact.singular_values

    def values(given: Tensor, *, method: Any, workers: int | None) -> Any:
        result = true(given, method=method, workers=workers)
        lost = (given[..., 0, 0] == marked) & (method in methods)
        return replace(
            result, values=result.values.where(~lost[..., None], math.nan), failed=result.failed | lost
        )  # fmt: skip

    monkeypatch.setattr(exact, "singular_values", values)


@pytest.mark.parametrize("method", EXACT)
def test_a_matrix_on_which_lapack_does_not_converge_fails_alone(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensor(*(matrices.gaussian(N, N, seed=seed) for seed in range(3)))
    expected = measured(whole, method)
    failing(monkeypatch, float(whole[1, 0, 0]), ("gram", "svd"))
    assert_second_alone_failed(measured(whole, method), expected)


def test_where_gram_does_not_converge_exact_takes_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensor(*(matrices.gaussian(N, N, seed=seed) for seed in range(3)))
    settings = {"measures": ("effective_rank",)}
    by_gram, by_svd = measured(whole, **settings), measured(whole, "svd", **settings)
    failing(monkeypatch, float(whole[1, 0, 0]), ("gram",))
    found = measured(whole, **settings)
    assert statuses(found) == ["ok"] * 3
    assert [METHODS[code] for code in found.method.tolist()] == ["gram", "svd", "gram"]
    assert torch.equal(found.singular_values[1], by_svd.singular_values[1])
    assert torch.equal(found.singular_values[[0, 2]], by_gram.singular_values[[0, 2]])
    assert measured(whole, "gram", **settings).failed.tolist() == [False, True, False]


# What is switched off, by name.


CASES = {
    "signed": (
        tensor(matrices.gaussian(N, N)),
        {
            "attention_entropy": "needs rows that sum to 1",
            "mean_ipr": "entries of at least 0, and some are negative",
            "sink_mass": "entries of at least 0, and some are negative",
            "off_diagonal_block_rank": "needs a triangular matrix",
            "logit_std": "this matrix is not attention made from them",
        },
    ),
    "rectangular": (
        tensor(matrices.gaussian(N, 2 * N) ** 2),
        {
            "attention_entropy": "needs rows that sum to 1, and these do not",
            "diagonal_mass": "needs as many rows as columns",
            "log10_smallest_singular_value": "needs as many rows as columns; its theorem needs a triangular matrix",
        },
    ),
    "attention as a tensor": (
        tensor(matrices.attention("causal", N)),
        {
            "attention_entropy_relative": "needs logits and a mask",
            "log_abs_det": "needs logits and a mask",
            "logit_std": "needs logits and a mask",
        },
    ),
    "prefix": (attention(Prefix(9)), {"off_diagonal_block_rank": "needs a triangular matrix"}),
    "cross": (attention(Cross(N, 9)), {"log_abs_det": "needs as many rows as columns"}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_hold_is_switched_off_by_name_with_its_reason(case: str) -> None:
    matrix, reasons = CASES[case]
    found = measured(matrix)
    for name, reason in reasons.items():
        assert reason in found.unavailable[name]
        with pytest.raises(AttributeError, match=rf"{name} must be defined for this operator, but it.*{reason}"):
            getattr(found, name)
    assert found.measures.keys() | found.unavailable.keys() == set(ALL)
    assert not found.measures.keys() & found.unavailable.keys()
    every = {"effective_rank", "numerical_rank", "nuclear_norm", "decay_exponent"}
    assert every <= found.measures.keys()


def test_nothing_is_switched_off_for_triangular_attention() -> None:
    for mask in (Causal(), Backward()):
        assert measured(attention(mask)).unavailable == {}


def test_a_measure_of_an_estimate_or_of_nobody_is_no_attribute() -> None:
    found = measured(attention(Causal()), "matrix-free", measures=("effective_rank", "mean_ipr", "decay_exponent"))
    assert found.mean_ipr is found.measures["mean_ipr"]
    with pytest.raises(AttributeError, match=r"effective_rank must be known exactly to be a value, got an estimate\. Read "
                       r"spectrum\.brackets\['effective_rank'\]"):  # fmt: skip
        found.effective_rank  # noqa: B018
    with pytest.raises(
        AttributeError, match="decay_exponent must be defined for this operator, but it needs all singular"
    ):
        found.decay_exponent  # noqa: B018
    with pytest.raises(
        AttributeError, match=r"measure must have been asked for, got 'stable_rank'\. Measured: mean_ipr"
    ):
        found.stable_rank  # noqa: B018


def test_the_reasons_of_both_a_structure_and_a_size_are_kept_without_the_matrix() -> None:
    found = measured(tensor(matrices.gaussian(N, N)), "matrix-free")
    assert "some are negative" in found.unavailable["sink_mass"]
    assert "needs the inverse" not in found.unavailable["log10_smallest_singular_value"]
    assert "needs all singular values" in found.unavailable["decay_exponent"]
    assert found.measures.keys() | found.brackets.keys() | found.unavailable.keys() == set(ALL)


# Sums of operators.


def by_numpy(operator: AttentionOperator) -> NDArray[np.float64]:
    logits = operator.scale * operator.query.numpy() @ np.swapaxes(operator.key.numpy(), -1, -2)
    return matrices.softmax(logits, operator.mask.allowed(operator.rows).numpy())


@pytest.mark.parametrize("mask", [Causal(), Prefix(9)], ids=str)
def test_differential_attention_has_the_spectrum_of_the_difference_and_no_theorem(mask: Mask) -> None:
    first, second = attention(mask), attention(mask, seed=1)
    found = measured(first - 0.3 * second)
    expected = np.linalg.svd(by_numpy(first) - 0.3 * by_numpy(second), compute_uv=False)
    assert statuses(found) == ["ok"] * 3
    np.testing.assert_allclose(found.singular_values.numpy(), expected, rtol=0, atol=1e-12)
    assert (np.abs(found.singular_values.numpy() - expected) <= found.floor_arithmetic.numpy()[:, None]).all()
    off = {name for name, measure in MEASURES.items() if measure.requires}
    assert found.unavailable.keys() == off
    for reason in ("log_abs_det", "attention_entropy", "sink_position"):
        with pytest.raises(AttributeError, match=f"{reason} must be defined for this operator, but it"):
            getattr(found, reason)
    shares = expected / expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found.effective_rank.numpy(), np.exp(-(shares * np.log(shares)).sum(axis=-1)), rtol=1e-9)
    assert_every_error_is_known(found)


def test_a_mean_of_two_heads_is_still_attention_but_has_no_logits() -> None:
    first, second = attention(Causal()), attention(Causal(), seed=1)
    found = measured(0.5 * first + 0.5 * second)
    matrix = 0.5 * (by_numpy(first) + by_numpy(second))
    entropy = -np.where(matrix > 0, matrix * np.log(np.where(matrix > 0, matrix, 1)), 0).sum(axis=(-2, -1)) / N
    np.testing.assert_allclose(found.attention_entropy.numpy(), entropy, rtol=1e-12)
    assert {"logit_std", "log_abs_det", "attention_entropy_relative"} <= found.unavailable.keys()


# The method.


def test_auto_is_exact_as_long_as_one_matrix_and_its_copies_fit() -> None:
    needed = exact.COPIES * 64 * 48 * 8
    assert chosen_method("auto", 64, 48, needed) == (
        "exact", "auto: a 64 x 48 matrix with its working copies takes 0.141 MiB of 0.141"
    )  # fmt: skip
    method, rule = chosen_method("auto", 64, 48, needed - 1)
    assert method == "matrix-free"
    assert rule.startswith("auto: a 64 x 48 matrix")
    for asked in EVERY:
        assert chosen_method(asked, 10**6, 10**6, 1) == (asked, "asked for")  # type: ignore[arg-type]


def test_auto_reckons_with_measures_that_take_more_copies() -> None:
    budget = exact.COPIES * 64 * 64 * 8
    for measures, method in ((("effective_rank",), "exact"), (("mean_ipr", "off_diagonal_block_rank"), "matrix-free")):
        assert chosen_method("auto", 64, 64, budget, measures)[0] == method
        found = spectrum(attention(Causal(), 1, n=64), measures=measures, memory_budget=budget, matrix_free=FAST)
        assert found.singular_values.shape[-1] == (64 if method == "exact" else FAST.leading)


@pytest.mark.parametrize("budget", [1, exact.COPIES * N * N * 8])
def test_the_rule_of_auto_is_recorded_with_what_it_chose(budget: int) -> None:
    found = measured(attention(Causal()), "auto", memory_budget=budget, measures=("effective_rank",))
    method, rule = chosen_method("auto", N, N, budget)
    assert found.rule.startswith(rule)
    assert ("effective_rank" in found.brackets) == (method == "matrix-free")
    assert ("; probes ended by " in found.rule) == (method == "matrix-free")


def test_an_unknown_method_or_measure_is_refused() -> None:
    message = "method must be one of auto, exact, gram, svd, matrix-free, got 'lanczos'. Choose one"
    for call in (lambda: measured(attention(Causal()), "lanczos"), lambda: chosen_method("lanczos", 1, 1, 1)):  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=message):
            call()
    with pytest.raises(ConfigurationError, match=r"measure must be one of numerical_rank, .*, got 'rank'\. Choose one"):
        check_measures(("effective_rank", "rank"))
    assert [measure.name for measure in check_measures(("mean_ipr", "effective_rank"))] == [
        "mean_ipr",
        "effective_rank",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leading": 0}, "leading must be at least 1, got 0. Raise it"),
        ({"probes": 7}, "probes must be at least 8, got 7. Raise it"),
        ({"steps": 1}, "steps must be at least 2, got 1. Raise it"),
        ({"half_width": 0.0}, "half_width must be between 0 and 1, got 0.0. Pass 0.05 for 5%"),
        ({"half_width": 1.0}, "half_width must be between 0 and 1, got 1.0"),
        ({"half_width": math.nan}, "half_width must be between 0 and 1, got nan"),
    ],
)
def test_an_estimate_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MatrixFreeConfig(**settings)


def test_an_estimate_takes_the_settings_that_spectrum_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    true = matrix_free.matrix_free_spectrum

    def listening(operator: Any, **settings: Any) -> Spectrum:
        taken.update(settings)
        return true(operator, **settings)

    monkeypatch.setattr(matrix_free, "matrix_free_spectrum", listening)
    heard: list[float] = []
    settings = {"workers": 1, "memory_budget": 12345, "precision": torch.bfloat16, "on_progress": heard.append}
    found = measured(attention(Causal()), "matrix-free", measures=("effective_rank",), **settings)
    assert settings.items() <= taken.items()
    assert (taken["config"], taken["rule"]) == (FAST, "asked for")
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    coarse = measured(attention(Causal()), "matrix-free", measures=("effective_rank",))
    assert bool((found.floor_model > 100 * coarse.floor_model).all())


@pytest.mark.parametrize("size", [64, 96])
def test_brackets_hold_what_the_exact_method_finds_and_statuses_agree(size: int) -> None:
    """Brackets are 95% intervals: of all, no more than that share may miss, and none by more than its own width."""
    masks = (Causal(), Prefix(30), Bidirectional(), Padded(Causal(), 50), Cross(size, 30), Cross(size, size + 30))
    signed = [tensor(*(matrices.gaussian(size, 70, seed=seed) for seed in range(2)))]
    given: list[Any] = [attention(mask, 2, n=size, features=16) for mask in masks] + signed
    config = MatrixFreeConfig(leading=12, probes=16, steps=80)
    distances: list[float] = []
    for matrix in given:
        found, expected = measured(matrix, "matrix-free", matrix_free=config), measured(matrix, "svd")
        assert (statuses(found), statuses(expected)) == (["estimated"] * 2, ["ok"] * 2)
        assert found.measures.keys() | found.brackets.keys() | found.unavailable.keys() == set(ALL)
        assert {"effective_rank", "numerical_rank", "energy_rank_90", "mass_rank_80"} <= found.brackets.keys()
        for name, (lower, upper) in found.brackets.items():
            true, half = expected.measures[name], (upper - lower) / 2 + 1e-6 * upper
            distances += ((true - (lower + upper) / 2).abs() / half).tolist()
            assert bool((lower <= upper).all())
        for name, value in found.measures.items():
            torch.testing.assert_close(value, expected.measures[name], rtol=1e-5, atol=1e-9)
        values = expected.singular_values[:, :12]
        assert bool(((found.singular_values - values).abs() <= found.floor_arithmetic[:, None] + 1e-12).all())
    assert np.mean(np.array(distances) <= 1) >= 0.95
    assert max(distances) <= 2


# One for many.


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_a_spectrum_of_one_matrix_expands_to_equal_ones(method: str) -> None:
    one = measured(attention(Causal(), 1), method)
    many = one.expanded((2, 3))
    assert many.singular_values.shape == (2, 3, one.singular_values.shape[-1])
    assert (many.unavailable, many.rule) == (one.unavailable, one.rule)
    assert parts(many).keys() == parts(one).keys()
    for name, values in parts(many).items():
        assert values.shape[:2] == (2, 3)
        assert torch.equal(values.nan_to_num(-1.0), parts(one)[name].nan_to_num(-1.0).expand(values.shape)), name
    assert torch.equal(many.resolved, one.resolved.expand(2, 3))
    assert torch.equal(many.floor, torch.maximum(many.floor_arithmetic, many.floor_model))
