"""Measures without the matrix against the same measures of the dense one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import attention, gaussian, rank_one, sink
from torch import Tensor

from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Padded, Prefix
from rankkit.operators import AttentionOperator, DenseOperator, Operator
from rankkit.spectra import matrix_free, measurement, quadrature
from rankkit.spectra.matrix_free import expected_products, matrix_free_spectrum, memory_bytes
from rankkit.spectra.measurement import MatrixFreeConfig, switched_off
from rankkit.spectra.measures import MEASURES
from rankkit.spectra.result import STATUSES, Spectrum
from rankkit.spectra.row_measures import ROW_MEASURES, row_measures

CONFIG = MatrixFreeConfig(leading=12, probes=16, steps=60)


def operator(mask: Mask, size: int = 48, *, matrices: int = 2, spread: float = 1.5, seed: int = 0) -> AttentionOperator:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((matrices, size, 8), (matrices, mask.columns(size), 8))
    query, key = (spread * (2 * torch.rand(s, dtype=torch.float64, generator=generator) - 1) for s in shapes)
    return AttentionOperator(query=query, key=key, mask=mask, scale=1.0)


def measured(matrices: Operator, *, measures: Sequence[str] = tuple(MEASURES), **changes: object) -> Spectrum:
    usable, _ = switched_off([MEASURES[name] for name in measures], matrices.structure)
    settings = {"config": CONFIG, "precision": torch.float64, "workers": 1, **changes}
    return matrix_free_spectrum(matrices, measures=usable, **settings)  # type: ignore[arg-type]


def of_dense(name: str, matrices: Operator, allowed: Tensor, logits: Tensor | None) -> Tensor:
    """The exact definition on the matrix itself."""
    measure, matrix = MEASURES[name], matrices.dense()
    if measure.needs == "singular_values":
        return measure.compute(torch.linalg.svdvals(matrix), *matrix.shape[-2:])
    if measure.needs == "attention":
        return measure.compute(matrix, allowed)
    if measure.needs == "logits":
        return measure.compute(logits, allowed)
    return measure.compute(matrices)


def assert_holds(found: Spectrum, matrices: Operator, allowed: Tensor, logits: Tensor | None = None) -> None:
    """Exact values within their error, brackets around the truth."""
    for name, value in found.measures.items():
        true, error = of_dense(name, matrices, allowed, logits), found.errors[name].nan_to_num(nan=0.0, posinf=0.0)
        distance = (value - true).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs()  # inf - inf where both are
        assert torch.equal(value.isnan(), true.isnan()), name
        assert bool((distance <= error + 1e-12 * (1 + true.nan_to_num(posinf=0.0).abs())).all()), name
    for name, (lower, upper) in found.brackets.items():
        true = of_dense(name, matrices, allowed, logits)
        slack = 1e-6 * true.abs()
        assert bool(((lower - slack <= true) & (true <= upper + slack)).all()), (name, lower, true, upper)


MASKS = [Causal(), Prefix(20), Bidirectional(), Backward(), Cross(48, 30), Cross(48, 70), Padded(Causal(), 41)]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_every_measure_is_exact_bracketed_or_refused_with_a_reason(mask: Mask) -> None:
    matrices = operator(mask)
    found = measured(matrices)
    usable, _ = switched_off(list(MEASURES.values()), matrices.structure)
    groups = (found.measures.keys(), found.brackets.keys(), found.unavailable.keys())
    assert set().union(*groups) == {measure.name for measure in usable}
    assert sum(map(len, groups)) == len(usable)
    assert_holds(found, matrices, matrices.allowed(), matrices.logits())
    true = torch.linalg.svdvals(matrices.dense())[:, :12]
    assert bool(((found.singular_values - true).abs() <= found.floor_arithmetic[:, None] + 1e-13).all())
    assert found.status.tolist() == [STATUSES.index("estimated")] * 2


def test_what_needs_the_whole_spectrum_is_named_with_its_reason() -> None:
    found = measured(operator(Causal()))
    assert "it needs all singular values" in found.unavailable["decay_exponent"]
    assert "it needs the inverse" in found.unavailable["log10_smallest_singular_value"]
    assert "log_abs_det" in found.measures
    assert "only triangular masks" in measured(operator(Prefix(20))).unavailable["log_abs_det"]
    with pytest.raises(AttributeError, match="decay_exponent must be defined for this operator"):
        _ = found.decay_exponent


@settings(max_examples=25)
@given(
    mask=st.sampled_from([*MASKS, Padded(Prefix(3), 20), Prefix(0), Prefix(48)]),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_measures_of_rows_equal_their_definitions(mask: Mask, spread: float, seed: int) -> None:
    matrices = operator(mask, spread=spread, seed=seed)
    found = row_measures(matrices.row_statistics, torch.zeros(2, dtype=torch.float64))
    assert set(found) == set(ROW_MEASURES)
    for name, (value, error) in found.items():
        true = of_dense(name, matrices, matrices.allowed(), matrices.logits())
        assert torch.equal(value.isnan(), true.isnan()), name
        distance, error = (value - true).nan_to_num(nan=0.0).abs(), error.nan_to_num(nan=0.0)
        assert bool((distance <= error + 1e-13).all()), name


def test_errors_of_rows_are_those_of_the_dense_measures_or_looser() -> None:
    matrices = operator(Causal())
    eta = torch.tensor([1e-3, 1e-6], dtype=torch.float64)
    found = row_measures(matrices.row_statistics, eta)
    for name, (_, error) in found.items():
        measure = MEASURES[name]
        given_to = matrices.logits() if measure.needs == "logits" else matrices.dense()
        true = measure.error(given_to, matrices.allowed(), eta)
        assert bool((error >= true * (1 - 1e-9)).all()), name
        assert bool((error <= 4 * true + 1e-12).all()), name  # entropies know 1 + H_i, not every entry


def test_equal_rows_have_a_rank_one_residual_of_zero_within_an_error_that_knows_cancellation() -> None:
    matrices = operator(Bidirectional(), spread=0.0)
    value, error = row_measures(matrices.row_statistics, torch.zeros(2, dtype=torch.float64))["rank_one_residual"]
    assert bool((value <= error).all())
    assert bool((error < 1e-5).all())


def test_rows_that_see_nothing_do_not_count() -> None:
    padded, alone = operator(Padded(Causal(), 30)), operator(Padded(Causal(), 30))
    alone = AttentionOperator(query=alone.query[:, :30], key=alone.key[:, :30], mask=Causal(), scale=1.0)
    long, short = (measured(one, measures=ROW_MEASURES).measures for one in (padded, alone))
    for name in ROW_MEASURES:
        torch.testing.assert_close(long[name], short[name])


def test_a_row_whose_visible_logits_are_all_minus_infinity_counts_as_seeing_nothing() -> None:
    matrices = operator(Causal())
    query, key = matrices.query.abs() + 0.1, matrices.key.clone()
    key[:, 0] = -torch.inf  # the first row sees nothing else
    blind = AttentionOperator(query=query, key=key, mask=Causal(), scale=1.0)
    found = row_measures(blind.row_statistics, torch.zeros(2, dtype=torch.float64))
    for name in set(ROW_MEASURES) - {"logit_std"}:
        true = of_dense(name, blind, blind.allowed(), None)
        torch.testing.assert_close(found[name][0], true, rtol=1e-12, atol=0)


def test_the_spectral_ratio_does_not_need_two_values_to_be_asked_for() -> None:
    matrices = operator(Causal())
    found = measured(matrices, config=MatrixFreeConfig(leading=1, probes=8, steps=2))
    true = torch.linalg.svdvals(matrices.dense())
    torch.testing.assert_close(found.measures["spectral_ratio"], true[:, 0] / true[:, 1], rtol=1e-6, atol=0)
    assert found.singular_values.shape == (2, 1)


def test_a_matrix_of_ones_own_is_measured_too() -> None:
    matrices = DenseOperator(matrix=torch.from_numpy(np.stack([attention("causal", 60), sink("causal", 60)])))
    found = measured(matrices)
    assert_holds(found, matrices, torch.ones(60, 60, dtype=torch.bool))
    assert "attention_entropy" in found.measures
    signed = DenseOperator(matrix=torch.from_numpy(gaussian(40, 60)))
    assert_holds(measured(signed), signed, torch.ones(40, 60, dtype=torch.bool))


def test_a_difference_of_operators_is_estimated_and_its_rows_are_refused() -> None:
    matrices = operator(Causal()) - 0.4 * operator(Causal(), seed=1)
    found = measured(matrices)
    assert_holds(found, matrices, torch.ones(48, 48, dtype=torch.bool))
    assert {"frobenius_norm", "stable_rank"} <= found.brackets.keys()
    weighted = 0.5 * operator(Causal()) + 0.5 * operator(Causal(), seed=1)
    refused = measured(weighted, measures=("mean_ipr", "sink_mass")).unavailable
    assert all("a sum of operators gives products only" in reason for reason in refused.values())
    assert len(refused) == 2


def test_a_matrix_that_is_not_finite_fails_alone() -> None:
    matrices = operator(Causal(), matrices=3)
    broken = matrices.query.clone()
    broken[1, 7, 2] = torch.nan
    found = measured(AttentionOperator(query=broken, key=matrices.key, mask=Causal(), scale=1.0))
    assert found.failed.tolist() == [False, True, False]
    whole = measured(matrices)
    for name, value in found.measures.items():
        assert bool(value[1].isnan()), name
        assert torch.equal(value[[0, 2]].nan_to_num(), whole.measures[name][[0, 2]].nan_to_num()), name
    for name, ends in found.brackets.items():
        for end, other in zip(ends, whole.brackets[name], strict=True):
            assert bool(end[1].isnan())
            assert torch.equal(end[[0, 2]], other[[0, 2]])
    assert bool(found.singular_values[1].isnan().all())
    assert bool(found.floor_arithmetic[1].isnan())


def test_the_zero_matrix_measures_what_it_measures_exactly() -> None:
    matrices = DenseOperator(matrix=torch.zeros(2, 10, 10, dtype=torch.float64))
    found = measured(matrices)
    assert found.status.tolist() == [STATUSES.index("degenerate")] * 2
    zeros = torch.zeros(2, 10, dtype=torch.float64)
    for name, (lower, upper) in found.brackets.items():
        torch.testing.assert_close(lower, MEASURES[name].compute(zeros, 10, 10), equal_nan=True)
        torch.testing.assert_close(upper, lower, equal_nan=True)
    for name in ("frobenius_norm", "spectral_norm", "stable_rank", "spectral_ratio"):
        torch.testing.assert_close(found.measures[name], MEASURES[name].compute(zeros, 10, 10), equal_nan=True)


@pytest.mark.parametrize("mask", [Causal(), Cross(1, 5), Cross(5, 1)], ids=str)
def test_one_row_or_column_is_degenerate_and_exact(mask: Mask) -> None:
    size = mask.queries if isinstance(mask, Cross) else 1
    matrices = operator(mask, size)
    found = measured(matrices)
    assert found.status.tolist() == [STATUSES.index("degenerate")] * 2
    assert_holds(found, matrices, matrices.allowed(), matrices.logits())
    assert found.measures["spectral_ratio"].tolist() == [math.inf] * 2


def test_a_rank_one_matrix_has_no_second_value_to_divide_by() -> None:
    found = measured(DenseOperator(matrix=torch.from_numpy(rank_one(40, 40))), measures=("spectral_ratio",))
    assert float(found.measures["spectral_ratio"]) == math.inf
    assert bool(found.errors["spectral_ratio"].isnan())


def test_leading_axes_come_back() -> None:
    flat = operator(Causal(), matrices=4)
    query, key = (factor.reshape(2, 2, 48, 8) for factor in (flat.query, flat.key))
    found = measured(AttentionOperator(query=query, key=key, mask=Causal(), scale=1.0))
    assert found.singular_values.shape == (2, 2, 12)
    assert found.brackets["effective_rank"][0].shape == found.measures["mean_ipr"].shape == (2, 2)
    alone = measured(AttentionOperator(query=query[0, 1], key=key[0, 1], mask=Causal(), scale=1.0))
    assert alone.brackets["effective_rank"][0].shape == ()
    assert torch.equal(found.singular_values[0, 1], alone.singular_values)


def test_results_do_not_depend_on_the_workers() -> None:
    matrices = operator(Prefix(30), size=64, matrices=3)
    one, three = (measured(matrices, workers=workers) for workers in (1, 3))
    assert torch.equal(one.singular_values, three.singular_values)
    for name, ends in one.brackets.items():
        assert all(torch.equal(end, other) for end, other in zip(ends, three.brackets[name], strict=True)), name


def test_probes_are_only_sent_where_a_measure_needs_them() -> None:
    matrices = operator(Causal())
    assert "probes" not in measured(matrices, measures=("spectral_norm", "mean_ipr"), rule="small").rule
    assert measured(matrices, rule="large").rule.startswith("large; probes ended by ")


def test_what_ended_the_probes_is_recorded() -> None:
    matrices = operator(Causal(), size=96, matrices=1)
    for config, reason in (
        (MatrixFreeConfig(leading=2, probes=16, steps=2, half_width=1e-6), "steps (1)"),
        (MatrixFreeConfig(leading=8, probes=8, steps=200, half_width=1e-6), "probes (1)"),
        (MatrixFreeConfig(leading=8, probes=64, steps=200, half_width=0.3), "half-width (1)"),
        (MatrixFreeConfig(leading=96, probes=8, steps=20, half_width=0.1), "closed spaces (1)"),
    ):
        assert measured(matrices, config=config).rule.endswith(reason), reason


def test_a_narrower_half_width_is_reached_where_it_can_be() -> None:
    matrices = operator(Bidirectional(), size=160, matrices=1)
    for half_width in (0.1, 0.04):
        config = MatrixFreeConfig(leading=16, probes=64, steps=240, half_width=half_width)
        lower, upper = measured(matrices, config=config, measures=("effective_rank",)).brackets["effective_rank"]
        assert float((upper - lower) / (upper + lower)) <= half_width


def test_progress_rises_to_one() -> None:
    shares: list[float] = []
    measured(operator(Causal(), matrices=3), on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) >= 6


def test_an_empty_batch_measures_nothing() -> None:
    found = measured(operator(Causal())[0:0])
    assert found.singular_values.shape == (0, 12)
    assert found.brackets["effective_rank"][0].shape == (0,)


def test_memory_grows_like_n_and_stays_under_a_gibibyte_at_16384() -> None:
    config = MatrixFreeConfig()
    needs = [memory_bytes(n, n, config) for n in (8192, 16384, 32768)]
    assert needs[1] <= 2 * needs[0]
    assert needs[2] <= 2 * needs[1]
    assert needs[1] < 2**30


def test_larger_matrices_take_fewer_probes_and_never_a_larger_error() -> None:
    config = MatrixFreeConfig()
    assert [config.probes_of(size) for size in (1, 4096, 4097, 8192, 16384, 10**6)] == [32, 32, 32, 16, 12, 12]
    assert all(size * config.probes_of(size) >= 4096 * 32 for size in range(4096, 40000, 997))
    assert [MatrixFreeConfig(probes=probes).probes_of(16384) for probes in (8, 64)] == [8, 16]


def test_as_many_probes_are_taken_as_the_size_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def spy(*arguments: Any, probes: int, **settings: Any) -> Any:
        taken.append(probes)
        return quadrature.probe(*arguments, probes=probes, **settings)

    monkeypatch.setattr(matrix_free, "probe", spy)
    monkeypatch.setattr(measurement, "_ALL_PROBES_UP_TO", 64)
    measured(operator(Causal(), size=96, matrices=1), config=MatrixFreeConfig(leading=4, probes=30, steps=20))
    assert taken == [20]


def test_expected_products_name_every_stage() -> None:
    products = expected_products(4096, MatrixFreeConfig(leading=32, probes=16, steps=40))
    assert products["statistics"] == (1, 0)
    assert products["probes"] == (40, 16)
    assert expected_products(16384, MatrixFreeConfig())["probes"][1] == 12
    assert products["leading"][1] >= 32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mask", [Causal(), Prefix(20), Cross(48, 70)], ids=str)
def test_cuda_gives_what_the_cpu_gives(mask: Mask) -> None:
    here = operator(mask)
    there = AttentionOperator(query=here.query.cuda(), key=here.key.cuda(), mask=mask, scale=1.0)
    found, expected = measured(there), measured(here)
    torch.testing.assert_close(found.singular_values, expected.singular_values, rtol=1e-9, atol=1e-9)
    for name, value in expected.measures.items():
        torch.testing.assert_close(found.measures[name], value, rtol=1e-8, atol=1e-8, equal_nan=True)
    assert_holds(found, here, here.allowed(), here.logits())
