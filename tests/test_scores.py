"""Attention with a soft cap, a bias and a sink against its definition, written out in NumPy float64."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rankkit.errors import ConfigurationError
from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Padded, Prefix, PrefixTransposed, Window
from rankkit.operators import AttentionOperator, DenseBias, OffsetBias
from rankkit.operators.attention import product_path
from rankkit.spectra import spectrum
from rankkit.spectra.baselines import baseline
from rankkit.spectra.measures import MEASURES
from rankkit.spectra.result import STATUSES
from rankkit_kernels.adjoint import adjoint_path, attend_adjoint
from rankkit_kernels.attention import FusedCall
from rankkit_kernels.row_blocks import adjoint_product, product, row_statistics
from rankkit_kernels.scores import Scores

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def draw_numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks(n: int, keys: int, p: int, behind: int, ahead: int) -> list[Mask]:
    p, inside = min(p, n), max(1, n - p)
    padded = [Padded(Causal(), inside, n - inside), Padded(Window(behind, ahead), inside, (n - inside) // 2)]
    windows = [Window(behind), Window(0, ahead), Window(behind, ahead)]
    return [Causal(), Backward(), Bidirectional(), Prefix(p), PrefixTransposed(p), Cross(n, keys), *windows, *padded]


@st.composite
def operators(draw: st.DrawFn, masks: Any = masks, **fixed: Any) -> AttentionOperator:
    """Two sequences with three heads; any cap, bias and sink; logits up to about 6."""
    n, keys = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    mask = draw(st.sampled_from(masks(n, keys, *(draw(st.integers(0, 6)) for _ in range(3)))))
    keys, seed = mask.columns(n), draw(st.integers(0, 99))
    leading = draw(st.sampled_from([(2, 3), (3,), (1, 1)]))  # of bias and sink: those of the factors, or fewer
    offsets = OffsetBias(values=2 * draw_numbers(seed + 1, *leading, n + keys - 1).float())
    dense = DenseBias(values=2 * draw_numbers(seed + 2, *leading, n, keys))
    options = {
        "softcap": draw(st.sampled_from([None, 0.5, 3.0])),
        "bias": draw(st.sampled_from([None, offsets, dense])),
        "sink": draw(st.sampled_from([None, 3 * draw_numbers(seed + 3, *leading)])),
    }
    return AttentionOperator(
        query=draw_numbers(seed + 4, 2, 3, n, 4), key=draw_numbers(seed + 5, 2, 3, keys, 4), mask=mask, scale=0.8,
        **options | fixed,
    )  # fmt: skip


def logits_of(op: AttentionOperator) -> np.ndarray:
    found = op.scale * (op.query.double().numpy() @ np.swapaxes(op.key.double().numpy(), -1, -2))
    if op.softcap is not None:
        found = op.softcap * np.tanh(found / op.softcap)
    if isinstance(op.bias, OffsetBias):
        i, j = np.indices((op.rows, op.columns))
        found = found + op.bias.values.double().numpy()[..., j - i + op.rows - 1]
    elif op.bias is not None:
        found = found + op.bias.values.double().numpy()
    return found


def written_out(op: AttentionOperator) -> Tensor:
    """The sink as one more key, whose column is left out again."""
    visible = op.mask.allowed(op.rows).numpy()
    weights = np.where(visible, np.exp(np.where(visible, logits_of(op), -np.inf)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    if op.sink is not None:
        total = total + np.exp(op.sink.double().numpy())[..., None, None]
    return torch.from_numpy(weights / np.where(total == 0, 1, total))


# Against the definition.


@settings(max_examples=150)
@given(operators())
def test_matrices_and_products_are_those_of_the_definition(op: AttentionOperator) -> None:
    expected = written_out(op)
    torch.testing.assert_close(op.dense(), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(op.logits(), torch.from_numpy(logits_of(op)), rtol=0, atol=1e-13)
    part = op.block(slice(1, None), slice(0, -1))
    torch.testing.assert_close(part, expected[..., 1:, :-1], rtol=0, atol=1e-14)
    x, y = draw_numbers(1, 2, 3, op.columns, 5), draw_numbers(2, 2, 3, op.rows, 5)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-4)):
        given_x, given_y = x.to(dtype), y.to(dtype)
        found, gram = op.gram_product(given_x)
        for value, true in (
            (op @ given_x, expected @ x),
            (found, expected @ x),
            (op.T @ given_y, expected.mT @ y),
            (gram, expected.mT @ (expected @ x)),
        ):
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), true, rtol=0, atol=tolerance)


@settings(max_examples=100)
@given(operators())
def test_row_statistics_are_those_of_the_definition(op: AttentionOperator) -> None:
    found, inside = op.row_statistics, op.mask.visible_positions(op.rows)
    rows = slice(inside.start, inside.stop)
    columns = rows if isinstance(op.mask, Padded) else slice(None)
    attention, allowed = written_out(op)[..., rows, columns], op.mask.allowed(op.rows)[rows, columns]
    logits = torch.from_numpy(logits_of(op))[..., rows, columns].masked_fill(~allowed, -torch.inf)
    joined = (
        logits if op.sink is None else torch.cat([logits, op.sink[..., None, None].expand(*logits.shape[:-1], 1)], -1)
    )
    centred = (logits - (logits.masked_fill(~allowed, 0).sum(-1) / allowed.sum(-1))[..., None]).masked_fill(~allowed, 0)
    expected = {
        "log_sum_exp": joined.logsumexp(dim=-1),
        "column_sums": attention.sum(dim=-2),
        "entropy": torch.special.entr(attention).sum(dim=-1),
        "squared_norm": attention.square().sum(dim=(-2, -1)),
        "logit_squares": centred.square().sum(dim=-1),
    }
    if attention.shape[-1] == attention.shape[-2]:
        expected["diagonal"] = attention.diagonal(dim1=-2, dim2=-1)
        expected["diagonal_logit"] = logits.diagonal(dim1=-2, dim2=-1)
    for name, values in expected.items():
        torch.testing.assert_close(getattr(found, name), values, rtol=1e-12, atol=1e-12, msg=name)
    assert torch.equal(found.visible, allowed.sum(dim=-1))


@settings(max_examples=60)
@given(operators())
def test_parts_of_a_batch_are_the_matrices_of_the_batch(op: AttentionOperator) -> None:
    flat, expected = op.flattened(), op.dense()
    assert flat.batch_shape == (6,)
    torch.testing.assert_close(flat[2:5].dense(), expected.flatten(0, 1)[2:5], rtol=0, atol=1e-15)
    torch.testing.assert_close(op[1:].dense(), expected[1:], rtol=0, atol=1e-15)
    x = draw_numbers(1, 3, op.columns, 2)
    torch.testing.assert_close(flat[2:5] @ x, expected.flatten(0, 1)[2:5] @ x, rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(operators(), st.integers(1, 20))
def test_the_leading_block_is_attention_of_the_first_positions_alone(op: AttentionOperator, size: int) -> None:
    size = min(size, op.rows)
    try:
        found = op.leading(size)
    except ConfigurationError:
        return
    torch.testing.assert_close(found.dense(), op.dense()[..., :size, :size], rtol=0, atol=1e-14)


@settings(max_examples=60)
@given(operators())
def test_without_the_first_key_the_others_share_what_it_had_with_the_sink(op: AttentionOperator) -> None:
    if isinstance(op.mask, Cross) or len(op.mask.visible_positions(op.rows)) < 2:
        return
    found = op.without_first_key()
    first = op.mask.visible_positions(op.rows).start
    logits = torch.from_numpy(logits_of(op))[..., 1:, 1:]
    expected = replace(
        op, query=op.query[..., 1:, :], key=op.key[..., 1:, :], mask=found.mask, softcap=None,
        bias=DenseBias(values=logits), scale=0.0,
    )  # fmt: skip
    torch.testing.assert_close(found.dense(), written_out(expected), rtol=0, atol=1e-14)
    assert not bool(found.mask.allowed(op.rows - 1)[:first].any())


def test_another_mask_keeps_cap_bias_and_sink() -> None:
    op = example()
    swapped = op.with_mask(Prefix(5))
    assert swapped.softcap == op.softcap == 2.0
    assert torch.equal(swapped.bias.values, op.bias.values)
    assert torch.equal(swapped.sink, op.sink)
    torch.testing.assert_close(swapped.dense(), written_out(swapped), rtol=0, atol=1e-14)


# A sink.


def example(**options: Any) -> AttentionOperator:
    """Two matrices of 12 positions with everything; `options` in place of it."""
    given_options: dict[str, Any] = {
        "softcap": 2.0, "bias": OffsetBias(values=draw_numbers(3, 23)), "sink": draw_numbers(4, 2), "mask": Causal(),
    }  # fmt: skip
    return AttentionOperator(
        query=draw_numbers(1, 2, 12, 4), key=draw_numbers(2, 2, 12, 4), scale=0.7, **given_options | options
    )


def test_a_sink_takes_from_every_row_and_says_so_in_the_structure() -> None:
    op = example()
    assert op.structure == {"attention", "non_negative", "square", "triangular"}
    assert example(sink=None).structure == op.structure | {"rows_sum_to_one"}
    sums = op.dense().sum(dim=-1)
    taken = (op.sink[:, None] - op.row_statistics.log_sum_exp).exp()
    assert bool((sums < 1).all())
    torch.testing.assert_close(sums, 1 - taken, rtol=0, atol=1e-14)


def test_a_sink_of_minus_infinity_is_none_and_a_huge_one_takes_everything() -> None:
    nothing, everything = (example(sink=torch.tensor([0.0, sink])) for sink in (-torch.inf, 1000.0))
    torch.testing.assert_close(nothing.dense()[1], example(sink=None).dense()[1], rtol=0, atol=1e-15)
    x = draw_numbers(5, 2, 12, 3)
    torch.testing.assert_close((nothing @ x)[1], (example(sink=None) @ x)[1], rtol=0, atol=1e-14)
    torch.testing.assert_close(
        nothing.row_statistics.log_sum_exp[1], example(sink=None).row_statistics.log_sum_exp[1], rtol=0, atol=1e-14
    )
    assert not bool(everything.dense()[1].any())
    assert not bool((everything @ x)[1].any())
    statistics = everything.row_statistics
    assert torch.equal(statistics.log_sum_exp[1], torch.full((12,), 1000.0, dtype=torch.float64))
    assert torch.equal(statistics.entropy[1], torch.zeros(12, dtype=torch.float64))


@pytest.mark.parametrize("gap", [1e-9, 3.0, 40.0, 300.0, 700.0])
@pytest.mark.parametrize("sink", [-900.0, -37.0, 0.0, 1e-9, 40.0, 300.0])
def test_entropy_beside_a_sink_keeps_its_digits(gap: float, sink: float) -> None:
    """One key `gap` above five others; the sink above or below it, relative to it."""
    key = torch.zeros(6, 1, dtype=torch.float64)
    key[2] = gap
    plan = (FusedCall((0, 1), (0, 6), "all"),)
    scores = Scores(sink=torch.tensor(gap + sink, dtype=torch.float64))
    found = row_statistics(torch.ones(1, 1).double(), key, plan, scale=1.0, scores=scores)
    with mpmath.workdps(800):
        exact_gap, drain = mpmath.mpf(gap), mpmath.exp(mpmath.mpf(gap + sink) - mpmath.mpf(gap))
        weights = [mpmath.mpf(1), *[mpmath.exp(-exact_gap)] * 5]
        total = mpmath.fsum(weights) + drain
        entropy = float(mpmath.fsum(-w / total * mpmath.log(w / total) for w in weights))
        log_sum_exp = float(exact_gap + mpmath.log(total))
    assert float(found.entropy[0]) == pytest.approx(entropy, rel=2e-14, abs=0)
    assert float(found.log_sum_exp[0]) == pytest.approx(log_sum_exp, rel=1e-15, abs=1e-15)


def test_measures_that_need_rows_that_sum_to_one_are_switched_off_by_name_beside_a_sink() -> None:
    found = spectrum(example(), measures=tuple(MEASURES))
    off = {"attention_entropy", "attention_entropy_relative", "mean_ipr"}
    assert set(found.unavailable) == off
    assert all("rows that sum to 1" in reason for reason in found.unavailable.values())
    assert not spectrum(example(sink=None), measures=tuple(MEASURES)).unavailable


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
@pytest.mark.parametrize("mask", [Causal(), Window(3, 2), Padded(Window(4), 8, 2)], ids=str)
def test_spectra_are_those_of_the_definition(method: Any, mask: Mask) -> None:
    for options in ({}, {"sink": None, "bias": DenseBias(values=draw_numbers(5, 2, 12, 12))}, {"bias": None}):
        op = example(mask=mask, **options)
        names = ("spectral_norm", "frobenius_norm", "sink_position", "sink_mass", "logit_std", "stable_rank")
        found, dense = spectrum(op, measures=names, method=method), written_out(op)
        values = torch.linalg.svdvals(dense)
        count = found.singular_values.shape[-1]
        torch.testing.assert_close(found.singular_values, values[:, :count], rtol=0, atol=1e-7)
        torch.testing.assert_close(found.frobenius_norm, torch.linalg.matrix_norm(dense), rtol=1e-12, atol=0)
        sums, rows = dense.sum(dim=-2), len(mask.visible_positions(12))
        assert torch.equal(found.sink_position, sums.argmax(dim=-1).double())
        torch.testing.assert_close(found.sink_mass, sums.amax(dim=-1) / rows, rtol=1e-12, atol=0)


def test_padding_on_either_side_changes_no_measure_but_the_place_of_the_sink() -> None:
    names = tuple(name for name, measure in MEASURES.items() if measure.needs in ("attention", "logits"))
    for bias in (None, OffsetBias(values=draw_numbers(7, 15))):
        alone = example(bias=bias, sink=None).leading(8) if bias is None else None
        plain = replace(example(sink=None, bias=None).leading(8), bias=bias) if alone is None else alone
        expected = spectrum(plain, measures=names, method="exact")
        for start in (0, 1, 4):
            query, key = (
                torch.nn.functional.pad(t, (0, 0, start, 4 - start), value=3.0) for t in (plain.query, plain.key)
            )
            wide = bias and OffsetBias(values=torch.nn.functional.pad(bias.values, (4, 4), value=9.0))
            op = replace(plain, query=query, key=key, bias=wide, mask=Padded(Causal(), 8, start))
            for method in ("exact", "matrix-free"):
                found = spectrum(op, measures=names, method=method)
                for name, value in found.measures.items():
                    true = expected.measures[name] + (start if name == "sink_position" else 0)
                    torch.testing.assert_close(value, true, rtol=1e-10, atol=1e-12, msg=f"{name} {method} {start}")
                assert "previous_key_mass" in found.measures


# Rows and matrices that are not finite.


def test_a_bias_of_minus_infinity_hides_a_key() -> None:
    hidden = torch.zeros(12, 12, dtype=torch.float64).masked_fill(~Window(3).allowed(12), -torch.inf)
    op, windowed = example(bias=DenseBias(values=hidden)), example(bias=None, mask=Window(3))
    torch.testing.assert_close(op.dense(), windowed.dense(), rtol=0, atol=1e-15)
    x = draw_numbers(5, 2, 12, 3)
    torch.testing.assert_close(op @ x, windowed @ x, rtol=0, atol=1e-14)
    torch.testing.assert_close(op.T @ x, windowed.T @ x, rtol=0, atol=1e-14)
    found, expected = (spectrum(each, measures=("log_abs_det", "sink_mass")) for each in (op, windowed))
    torch.testing.assert_close(found.log_abs_det, expected.log_abs_det, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        found.floor_model, expected.floor_model, rtol=1e-12, atol=0
    )  # what is hidden has no error


@pytest.mark.parametrize("sink", [None, torch.tensor([0.5, 0.5])])
def test_a_row_whose_biases_are_all_minus_infinity_is_zero(sink: Tensor | None) -> None:
    values = torch.zeros(2, 12, 12, dtype=torch.float64)
    values[1, 5] = -torch.inf
    op = example(bias=DenseBias(values=values), sink=sink)
    dense = written_out(op)
    assert not bool(dense[1, 5].any())
    x = draw_numbers(5, 2, 12, 3)
    torch.testing.assert_close(op.dense(), dense, rtol=0, atol=1e-14)
    torch.testing.assert_close(op @ x, dense @ x, rtol=0, atol=1e-13)
    torch.testing.assert_close(op.T @ x, dense.mT @ x, rtol=0, atol=1e-13)
    statistics = op.row_statistics
    assert float(statistics.log_sum_exp[1, 5]) == (-torch.inf if sink is None else 0.5)
    assert float(statistics.entropy[1, 5]) == 0
    found = spectrum(op, measures=("log_abs_det", "log_abs_det_bound", "sink_mass"))
    assert found.log_abs_det.isneginf().tolist() == [False, True]
    assert float(found.log_abs_det_bound[1]) == 0
    assert bool(found.sink_mass.isfinite().all())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["bias", "sink"])
def test_a_bias_or_a_sink_that_is_not_a_number_fails_its_own_matrix_alone(where: str, wrong: float) -> None:
    values, sink = draw_numbers(3, 2, 23), draw_numbers(4, 2)
    (values[1] if where == "bias" else sink)[..., 1] = wrong
    op, sound = (
        example(bias=OffsetBias(values=values), sink=sink),
        example(bias=OffsetBias(values=draw_numbers(3, 2, 23))),
    )
    found, expected = spectrum(op), spectrum(sound)
    assert [STATUSES[code] for code in found.status] == ["ok", "failed"]
    assert bool(found.floor_model.isnan()[1])
    torch.testing.assert_close(found.singular_values[0], expected.singular_values[0], rtol=0, atol=1e-15)


def test_what_padding_holds_does_not_count() -> None:
    values = draw_numbers(3, 2, 12, 12)
    values[:, :2], values[:, :, 10:] = torch.nan, torch.inf
    found = spectrum(example(bias=DenseBias(values=values), mask=Padded(Causal(), 8, 2)))
    assert [STATUSES[code] for code in found.status] == ["ok", "ok"]


@pytest.mark.parametrize(
    "options", [{"bias": None, "mask": Window(5, 5)}, {"mask": Bidirectional()}, {"mask": Prefix(6)}]
)
def test_equal_queries_make_no_equal_rows_where_position_counts(options: dict[str, Any]) -> None:
    op = example(**options)
    op.query[1, 2] = op.query[1, 4]
    exact = np.linalg.slogdet(written_out(op).numpy())[1]
    found = spectrum(op, measures=("log_abs_det", "log_abs_det_bound"))
    assert bool((found.log_abs_det_bound < 1e-6).all())
    np.testing.assert_allclose(found.log_abs_det.numpy(), exact, rtol=1e-9)


def test_equal_queries_make_equal_rows_beside_a_sink_and_under_a_cap() -> None:
    op = example(bias=None, mask=Prefix(6))
    op.query[1, 2] = op.query[1, 4]
    assert spectrum(op, measures=("log_abs_det",)).log_abs_det.isneginf().tolist() == [False, True]


# Baselines.


@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_baselines_of_logits_have_neither_cap_nor_bias_nor_sink(name: str) -> None:
    op = example(mask=Window(4))
    found = baseline(name, op, seed=1, names=["one", "other"])
    assert not found.scores
    torch.testing.assert_close(found.dense().sum(dim=-1), torch.ones(2, 12, dtype=torch.float64))
    assert bool((found.dense() > 0).eq(Window(4).allowed(12)).all())
    if name == "gaussian":
        stds = [spectrum(each, measures=("logit_std",)).logit_std for each in (found, op)]
        torch.testing.assert_close(*stds, rtol=1e-12, atol=0)


def test_the_baseline_of_logits_has_them_after_cap_and_bias_and_0_for_padding() -> None:
    op = example(mask=Padded(Causal(), 8, 3))
    matrix, logits = baseline("logits", op, seed=1, names=["one", "other"]).dense(), torch.from_numpy(logits_of(op))
    torch.testing.assert_close(matrix[:, 3:11, 3:11], logits[:, 3:11, 3:11], rtol=0, atol=1e-13)
    matrix[:, 3:11, 3:11] = 0
    assert not bool(matrix.any())


def test_shuffled_rows_keep_what_the_sink_left_them() -> None:
    op = example(mask=Window(4))
    found = baseline("shuffled", op, seed=1, names=["one", "other"])
    torch.testing.assert_close(found.dense().sum(dim=-1), op.dense().sum(dim=-1), rtol=0, atol=1e-14)
    assert "rows_sum_to_one" not in found.structure


# The rule, and what runs.


def test_fused_calls_are_taken_for_plain_attention_alone() -> None:
    plain = Scores()
    assert product_path(CPU, torch.float64, plain) == product_path(CUDA, torch.float32, plain) == "fused"
    assert product_path(CUDA, torch.float64, plain) == "row-blocks"
    for scores in (Scores(softcap=1.0), Scores(bias=OffsetBias(values=torch.zeros(3))), Scores(sink=torch.zeros(()))):
        assert product_path(CPU, torch.float32, scores) == "row-blocks"
    sunk, capped = Scores(sink=torch.zeros(())), Scores(softcap=1.0)
    for scores, path in ((sunk, "fused"), (capped, "row-blocks"), (plain, "fused"), (None, "fused")):
        assert adjoint_path(CPU, torch.float32, has_statistics=True, scores=scores) == path


FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def kernels_of(work: Any) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    return {event.key for event in recorded.key_averages()}


def test_what_the_rule_says_is_what_runs() -> None:
    x = torch.ones(2, 12, 3)
    for op in (
        example(),
        example(sink=None),
        example(bias=None, softcap=None),
        example(bias=None, sink=None, softcap=None),
    ):
        assert (FUSED in kernels_of(lambda op=op: op @ x)) == (not op.scores)
        fusible = op.bias is None and op.softcap is None
        assert (FUSED in kernels_of(lambda op=op: op.T @ x)) == fusible


def test_a_window_is_fused() -> None:
    op = example(bias=None, sink=None, softcap=None, mask=Window(3, 1))
    assert FUSED in kernels_of(lambda: op @ torch.ones(2, 12, 3))


def test_nothing_beside_the_products_changes_no_bit() -> None:
    op, x = example(bias=None, sink=None, softcap=None), draw_numbers(5, 2, 12, 3)
    plan = Causal().fused_plan(12)
    plain = product(op.query, op.key, x, plan, scale=op.scale)
    assert torch.equal(product(op.query, op.key, x, plan, scale=op.scale, scores=Scores()), plain)
    assert not op.scores


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fused_and_row_block_adjoints_agree_beside_a_sink(dtype: torch.dtype) -> None:
    op = example(bias=None, softcap=None, mask=Prefix(4))
    y, scores, plan = draw_numbers(5, 2, 12, 3).to(dtype), op.scores, Prefix(4).fused_plan(12)
    factors, transposed = (op.query.to(dtype), op.key.to(dtype)), Prefix(4).transposed().fused_plan(12)
    expected = adjoint_product(*factors, y, plan, scale=op.scale, scores=scores)
    torch.testing.assert_close(expected.double(), op.dense().mT @ y.double(), rtol=0, atol=1e-5)
    for path in ("fused", "row-blocks"):
        found = attend_adjoint(*factors, y, plan, transposed, scale=op.scale, scores=scores, path=path)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 if dtype == torch.float64 else 1e-5)


def test_bits_depend_neither_on_threads_nor_on_the_batch() -> None:
    query, key, x = (draw_numbers(seed, 3, 201, 7) for seed in range(3))
    scores = {"softcap": 3.0, "bias": OffsetBias(values=draw_numbers(3, 3, 401)), "sink": draw_numbers(4, 3)}
    op = AttentionOperator(query=query, key=key, mask=Window(150, 20), scale=0.5, **scores)

    def everything(one: AttentionOperator, given_x: Tensor) -> list[Tensor]:
        names = ("log_sum_exp", "column_sums", "entropy", "squared_norm", "diagonal", "logit_squares")
        return [*one.gram_product(given_x), *(getattr(one.row_statistics, name) for name in names)]

    expected = everything(op, x)
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, everything(replace(op), x), expected))
    finally:
        torch.set_num_threads(1)
    for index in range(3):
        alone = everything(op[index : index + 1], x[index : index + 1])
        assert all(torch.equal(one[0], all_of[index]) for one, all_of in zip(alone, expected, strict=True))


# Memory.

MEMORY_PROBE = """
import torch
from rankkit.masks import Causal, Window
from rankkit.operators import AttentionOperator, OffsetBias

def peak():  # not getrusage, whose maximum a process takes over from the one that started it
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

def work(n, mask):
    query, key, x = (torch.rand(1, 1, n, 64, dtype=torch.float64) for _ in range(3))
    bias, sink = OffsetBias(values=torch.rand(1, 1, 2 * n - 1)), torch.rand(1, 1)
    op = AttentionOperator(query=query, key=key, mask=mask, scale=0.125, softcap=5.0, bias=bias, sink=sink)
    op @ x, op.T @ x, op.gram_product(x), op.row_statistics

torch.set_num_threads(1)
for mask in (Causal(), Window(16)):
    work(64, mask)  # what the libraries allocate once is not ours
before = peak()
for mask in (Causal(), Window(1000)):
    work(4096, mask)
print((peak() - before) / (3 * 4096 * 64 * 8))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of resident memory here")
def test_peak_memory_with_a_bias_by_offset_stays_below_ten_times_the_factors() -> None:
    # The matrix alone would be 21 times Q + K + X.
    result = subprocess.run([sys.executable, "-c", MEMORY_PROBE], capture_output=True, text=True, check=True)
    assert 1 < float(result.stdout) < 10


# CUDA.


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("mask", [Causal(), Window(3), Window(2, 4), Padded(Prefix(3), 8, 2)], ids=str)
def test_cuda_products_are_those_of_the_definition(mask: Mask) -> None:
    x = draw_numbers(5, 2, 12, 3)
    dense = DenseBias(values=draw_numbers(5, 2, 12, 12))
    for options in (
        {},
        {"bias": dense},
        {"bias": None, "sink": None, "softcap": None},
        {"bias": None, "softcap": None},
    ):
        here = example(mask=mask, **options)
        bias = here.bias and replace(here.bias, values=here.bias.values.cuda())
        sink = None if here.sink is None else here.sink.cuda()
        op, expected = (
            replace(here, query=here.query.cuda(), key=here.key.cuda(), bias=bias, sink=sink),
            written_out(here),
        )
        torch.testing.assert_close(op.dense().cpu(), expected, rtol=0, atol=1e-13)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
            given_x = x.to(dtype).cuda()
            torch.testing.assert_close((op @ given_x).cpu().double(), expected @ x, rtol=0, atol=tolerance)
            torch.testing.assert_close((op.T @ given_x).cpu().double(), expected.mT @ x, rtol=0, atol=tolerance)
            gram = op.gram_product(given_x)[1].cpu().double()
            torch.testing.assert_close(gram, expected.mT @ expected @ x, rtol=0, atol=tolerance)
        for name in ("log_sum_exp", "entropy", "column_sums", "logit_squares"):
            found, true = (getattr(each.row_statistics, name) for each in (op, here))
            torch.testing.assert_close(found.cpu(), true, rtol=1e-12, atol=1e-12)


# Misuse.


def test_scores_that_do_not_fit_are_refused() -> None:
    for softcap in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="softcap must be a finite number above 0"):
            example(softcap=softcap)
    for values in (torch.zeros(22), torch.zeros(3, 23), torch.zeros(1, 2, 23), torch.zeros(())):
        with pytest.raises(
            ConfigurationError, match=r"bias must have 23 offsets behind leading axes that broadcast to \(2,\)"
        ):
            example(bias=OffsetBias(values=values))
    for values in (torch.zeros(12, 11), torch.zeros(12), torch.zeros(3, 12, 12)):
        with pytest.raises(ConfigurationError, match="bias must have 12 queries and 12 keys"):
            example(bias=DenseBias(values=values))
    for sink in (torch.zeros(3), torch.zeros(1, 2)):
        with pytest.raises(ConfigurationError, match=r"sink must broadcast to \(2,\)"):
            example(sink=sink)
    with pytest.raises(ConfigurationError, match="sink must be floating-point numbers on cpu"):
        example(sink=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match="bias must be floating-point numbers on cpu"):
        example(bias=DenseBias(values=torch.zeros(12, 12, device="meta")))
    op, plan = example(), Causal().fused_plan(12)
    x = draw_numbers(5, 2, 12, 3)
    with pytest.raises(ValueError, match="bias must have 23 offsets"):
        product(op.query, op.key, x, plan, scale=1.0, scores=Scores(bias=OffsetBias(values=torch.zeros(5))))
    with pytest.raises(ValueError, match="path must be 'row-blocks' for capped or biased logits, got 'fused'"):
        attend_adjoint(op.query, op.key, x, plan, plan, scale=1.0, scores=op.scores, path="fused")


def test_a_cap_bounds_logits_and_leaves_small_ones() -> None:
    op = example(bias=None, sink=None, softcap=1e-3)
    assert float(op.logits().abs().max()) <= 1e-3
    small = replace(op, softcap=1e6)
    torch.testing.assert_close(small.logits(), replace(op, softcap=None).logits(), rtol=1e-9, atol=0)
