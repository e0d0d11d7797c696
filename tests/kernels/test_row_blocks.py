"""Products and statistics by blocks of rows against attention written out in float64, and what is promised of both."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matrices
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Prefix, PrefixTransposed, Window
from rankkit_kernels import row_blocks as kernel
from rankkit_kernels.attention import FusedCall
from rankkit_kernels.row_blocks import adjoint_product, gram_product, product, row_statistics

LENGTHS = (1, 2, 7, 95, 96, 97, 200)  # blocks have 96 rows
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
DTYPES = tuple(UNIT)
SCALE = 0.3
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def masks(n: int) -> list[Mask]:
    prefixes = [kind(p) for kind in (Prefix, PrefixTransposed) for p in sorted({0, 1, n // 2, n - 1, n})]
    windows = [Window(n // 2), Window(0, 3), Window(2, 5), Window(100, 1), Window(0)]
    return [Causal(), Backward(), Bidirectional(), Cross(n, n + 3), Cross(n, max(1, n // 3)), *prefixes, *windows]


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def factors(mask: Mask, *leading: int, n: int, dtype: torch.dtype = torch.float64, std: float = 1.5, d: int = 8) -> Any:
    """Query, key, probes of A and probes of A^T; logits of about the standard deviation `std`."""
    columns, size = mask.columns(n), std / (SCALE * d**0.5)
    query, key = size * draw(*leading, n, d, seed=1), draw(*leading, columns, d, seed=2)
    x, y = draw(*leading, columns, 5, seed=3), draw(*leading, n, 5, seed=4)
    return [tensor.to(dtype) for tensor in (query, key, x, y)]


def dense(query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """The oracle: softmax in NumPy, float64."""
    logits = SCALE * (query.double().numpy() @ np.swapaxes(key.double().numpy(), -1, -2))
    return torch.from_numpy(matrices.softmax(logits, allowed.numpy()))


def relative_errors(query: Tensor, key: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What rounding may do to entries of a row of A, and of a column, relative to each; a row's sums included.

    A logit is a dot product of d terms, scaled and shifted by the largest; softmax divides by a sum of m terms, and the
    exponential errs by up to 4 units. The oracle's own error is that of float64.
    """
    u = UNIT[dtype] + UNIT[torch.float64]
    sizes = SCALE * query.double().abs() @ key.double().abs().mT
    d, longest = query.shape[-1], max(query.shape[-2], key.shape[-2])
    bounds = 2 * (d + 4) * u * sizes.amax(dim=-1, keepdim=True) + (2 * longest + 20) * u
    return bounds, bounds.amax(dim=-2, keepdim=True)


def assert_within(found: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Within a bound, and within the smallest numbers of the dtype."""
    tiny = 1e3 * torch.finfo(found.dtype).tiny
    error = (found.double() - expected).abs()
    assert (error <= bound + tiny).all(), float((error / (bound + tiny)).max())


def assert_products(query: Tensor, key: Tensor, x: Tensor, y: Tensor, plan: Any, attention: Tensor) -> None:
    by_row, by_matrix = relative_errors(query, key, query.dtype)
    found, gram = gram_product(query, key, x, plan, scale=SCALE)
    assert (found.dtype, found.shape) == (query.dtype, y.shape)
    assert (gram.dtype, gram.shape) == (query.dtype, x.shape)
    x, y64 = x.double(), y.double()
    assert_within(found, attention @ x, by_row * (attention @ x.abs()))
    assert_within(gram, attention.mT @ (attention @ x), 3 * by_matrix * (attention.mT @ (attention @ x.abs())))
    adjoint = adjoint_product(query, key, y, plan, scale=SCALE)
    assert_within(adjoint, attention.mT @ y64, by_matrix * (attention.mT @ y64.abs()))


# Products.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_products_are_those_of_the_dense_matrix_for_every_mask(n: int, dtype: torch.dtype) -> None:
    for mask in masks(n):
        query, key, x, y = factors(mask, 2, n=n, dtype=dtype)
        assert_products(query, key, x, y, mask.fused_plan(n), dense(query, key, mask.allowed(n)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("std", [0.1, 3.0, 30.0, 1000.0])
def test_products_keep_to_the_error_of_their_logits_however_large_these_are(std: float, dtype: torch.dtype) -> None:
    for mask in (Causal(), Prefix(40), Bidirectional()):
        query, key, x, y = factors(mask, 1, n=110, dtype=dtype, std=std)
        assert_products(query, key, x, y, mask.fused_plan(110), dense(query, key, mask.allowed(110)))


def test_float64_products_are_right_to_thirteen_digits() -> None:
    """The bounds above grow with the logits and would hide a float32 step in the middle."""
    for mask in masks(130):
        query, key, x, _ = factors(mask, n=130)
        attention = dense(query, key, mask.allowed(130))
        found, gram = gram_product(query, key, x, mask.fused_plan(130), scale=SCALE)
        torch.testing.assert_close(found, attention @ x, rtol=0, atol=1e-13)
        torch.testing.assert_close(gram, attention.mT @ (attention @ x), rtol=0, atol=1e-12)  # columns add up to 100


@st.composite
def plans(draw: st.DrawFn) -> tuple[tuple[FusedCall, ...], int, int]:
    """Any calls that share out some rows, and a number of columns."""
    rows, spare = draw(st.integers(1, 24)), draw(st.integers(0, 6))
    cuts = sorted(draw(st.sets(st.integers(1, rows), max_size=3)) | {0, rows})
    calls = []
    for start, stop in itertools.pairwise(cuts):
        sees = draw(st.sampled_from(["all", "past", "future", "band"]))
        first = start if sees == "future" else draw(st.integers(0, start))
        last = stop if sees == "past" else draw(st.integers(stop, rows + spare))
        reach = [draw(st.integers(0, 8)) for _ in range(2)] if sees == "band" else []
        calls.append(FusedCall((start, stop), (first, last), sees, *reach))
    return tuple(calls), rows, rows + spare


def seen_by(plan: Any, rows: int, columns: int) -> Tensor:
    """What a plan lets every row see, from the meaning of its calls."""
    i, j = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    allowed = torch.zeros(rows, columns, dtype=torch.bool)
    for call in plan:
        inside = (i >= call.rows[0]) & (i < call.rows[1]) & (j >= call.columns[0]) & (j < call.columns[1])
        near = (j >= i - call.behind) & (j <= i + call.ahead)
        allowed |= inside & {"all": j >= 0, "past": j <= i, "future": j >= i, "band": near}[call.sees]
    return allowed


@settings(max_examples=30)
@given(plans(), st.integers(1, 9), st.integers(0, 5))
def test_any_plan_is_multiplied_and_measured_as_it_says(case: Any, block: int, probes: int) -> None:
    plan, rows, columns = case
    query, key, x, y = (
        draw(rows, 4),
        draw(columns, 4, seed=1),
        draw(columns, probes, seed=2),
        draw(rows, probes, seed=3),
    )
    allowed = seen_by(plan, rows, columns)
    attention = dense(query, key, allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CPU_BLOCK_ROWS", block)
        patch.setattr(kernel, "RUN_PAIRS", 20)  # several runs, whose sums are added
        found, gram = gram_product(query, key, x, plan, scale=SCALE)
        adjoint = adjoint_product(query, key, y, plan, scale=SCALE)
        statistics = row_statistics(query, key, plan, scale=SCALE)
    torch.testing.assert_close(found, attention @ x, rtol=0, atol=1e-13)
    torch.testing.assert_close(gram, attention.mT @ attention @ x, rtol=0, atol=1e-12)
    torch.testing.assert_close(adjoint, attention.mT @ y, rtol=0, atol=1e-13)
    torch.testing.assert_close(statistics.column_sums, attention.sum(dim=0), rtol=0, atol=1e-13)
    assert torch.equal(statistics.visible, allowed.sum(dim=1))
    assert abs(float((found * y).sum() - (x * adjoint).sum())) < 1e-12  # <A x, y> = <x, A^T y>


def test_gram_product_is_product_and_its_adjoint_to_the_last_bit() -> None:
    query, key, x, _ = factors(Prefix(70), 2, n=150, dtype=torch.float32)
    plan = Prefix(70).fused_plan(150)
    found, gram = gram_product(query, key, x, plan, scale=SCALE)
    assert torch.equal(found, product(query, key, x, plan, scale=SCALE))
    assert torch.equal(gram, adjoint_product(query, key, found, plan, scale=SCALE))


def test_a_column_of_ones_is_kept_and_its_adjoint_is_the_column_sums() -> None:
    query, key, x, y = factors(Causal(), n=120)
    plan = Causal().fused_plan(120)
    torch.testing.assert_close(product(query, key, torch.ones_like(x), plan, scale=SCALE), torch.ones_like(y))
    sums = adjoint_product(query, key, torch.ones_like(y), plan, scale=SCALE)[:, 0]
    torch.testing.assert_close(sums, row_statistics(query, key, plan, scale=SCALE).column_sums)


# Statistics.


@pytest.mark.parametrize("n", LENGTHS)
def test_statistics_are_those_of_the_dense_matrix_for_every_mask(n: int) -> None:
    for mask in masks(n):
        query, key, _, _ = factors(mask, 2, n=n, std=2.0)
        allowed = mask.allowed(n)
        found = row_statistics(query, key, mask.fused_plan(n), scale=SCALE)
        logits = (SCALE * query @ key.mT).masked_fill(~allowed, -torch.inf)
        attention = dense(query, key, allowed)
        count = allowed.sum(dim=-1)
        mean = logits.masked_fill(~allowed, 0.0).sum(dim=-1) / count
        squares = (logits - mean[..., None]).masked_fill(~allowed, 0.0).square().sum(dim=-1)
        expected = {
            "log_sum_exp": logits.logsumexp(dim=-1),
            "column_sums": attention.sum(dim=-2),
            "entropy": torch.special.entr(attention).sum(dim=-1),
            "squared_norm": attention.square().sum(dim=(-2, -1)),
            "logit_squares": squares,
        }
        if mask.columns(n) == n:
            expected["diagonal"] = attention.diagonal(dim1=-2, dim2=-1)
            expected["diagonal_logit"] = logits.diagonal(dim1=-2, dim2=-1)
            lower = attention.diagonal(-1, -2, -1)
            expected["previous"] = torch.cat([lower.new_full((2, 1), torch.nan), lower], dim=-1)
        else:
            nothing = logits.new_full((2, n), torch.nan)
            expected |= {"diagonal": nothing, "diagonal_logit": nothing, "previous": nothing}
        for name, values in expected.items():
            torch.testing.assert_close(getattr(found, name), values, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)
        assert torch.equal(found.visible, count)


def test_statistics_of_uniform_causal_attention_are_harmonic_numbers() -> None:
    n = 300
    found = row_statistics(torch.zeros(n, 4).double(), draw(n, 4), Causal().fused_plan(n), scale=SCALE)
    rows = torch.arange(1, n + 1, dtype=torch.float64)
    torch.testing.assert_close(found.entropy, rows.log(), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(found.log_sum_exp, rows.log(), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(found.diagonal, 1 / rows, rtol=1e-15, atol=0)
    torch.testing.assert_close(found.squared_norm, (1 / rows).sum(), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.column_sums, (1 / rows).flip(0).cumsum(0).flip(0), rtol=1e-13, atol=0)
    assert torch.equal(found.logit_squares, torch.zeros(n, dtype=torch.float64))


@pytest.mark.parametrize("gap", [1e-9, 0.1, 3.0, 30.0, 40.0, 300.0, 700.0])
def test_entropy_of_a_row_that_is_almost_one_hot_keeps_its_digits(gap: float) -> None:
    """One key `gap` above five others; from 37 on the largest p is 1 in float64, and -sum p log p 2% too small."""
    key = torch.zeros(6, 1, dtype=torch.float64)
    key[2] = gap
    found = row_statistics(torch.ones(1, 1).double(), key, (FusedCall((0, 1), (0, 6), "all"),), scale=1.0)
    with mpmath.workdps(400):
        weight = mpmath.exp(-mpmath.mpf(gap))
        total = 1 + 5 * weight
        expected = float(mpmath.log(total) + 5 * weight * mpmath.mpf(gap) / total)
    assert float(found.entropy[0]) == pytest.approx(expected, rel=1e-14, abs=0)


def test_squares_of_logits_are_taken_around_their_mean_however_far_it_is() -> None:
    """The mean of squares less the square of the mean would keep 4 digits here."""
    key = torch.cat([1e6 * torch.ones(150, 1).double(), draw(150, 1)], dim=-1)
    found = row_statistics(torch.ones(150, 2).double(), key, Causal().fused_plan(150), scale=1.0)
    sums = key.sum(dim=-1)  # what float64 keeps of the logits
    expected = torch.stack([(sums[: i + 1] - sums[: i + 1].mean()).square().sum() for i in range(150)])
    torch.testing.assert_close(found.logit_squares, expected, rtol=1e-9, atol=1e-12)  # 1e6 eps64 of spread 1


@pytest.mark.parametrize("std", [3.0, 30.0, 1000.0])
def test_the_diagonal_is_the_exponential_of_its_logit_less_the_log_sum_exp(std: float) -> None:
    query, key, _, _ = factors(Causal(), 2, n=130, std=std)
    found = row_statistics(query, key, Causal().fused_plan(130), scale=SCALE)
    exponent = found.diagonal_logit - found.log_sum_exp
    assert torch.equal(exponent[:, 0], torch.zeros(2, dtype=torch.float64))  # one visible key
    torch.testing.assert_close(found.diagonal, exponent.exp(), rtol=4 * 2.0**-52 * 10 * std, atol=1e-300)


# Rows that see nothing, and logits that are not finite.


def blind(n: int = 130) -> tuple[Any, Tensor, Tensor]:
    """Factors whose query 5 and 100 have only logits of -inf, and the same without these rows."""
    query, key, x, y = factors(Causal(), 3, n=n)
    key[..., 0] = key[..., 0].abs() + 1
    rows = torch.tensor([5, 100])
    query[1, rows, 0] = -torch.inf
    attention = dense(query.nan_to_num(neginf=0.0), key, Causal().allowed(n))
    attention[1, rows] = 0.0
    return (query, key, x, y), attention, rows


def test_rows_whose_logits_are_all_minus_infinity_are_zero_and_hurt_no_other() -> None:
    (query, key, x, y), attention, rows = blind()
    plan = Causal().fused_plan(130)
    found, gram = gram_product(query, key, x, plan, scale=SCALE)
    torch.testing.assert_close(found, attention @ x, rtol=0, atol=1e-13)
    torch.testing.assert_close(gram, attention.mT @ attention @ x, rtol=0, atol=1e-12)
    torch.testing.assert_close(adjoint_product(query, key, y, plan, scale=SCALE), attention.mT @ y, rtol=0, atol=1e-12)
    statistics = row_statistics(query, key, plan, scale=SCALE)
    assert (statistics.log_sum_exp[1, rows] == -torch.inf).all()
    assert (statistics.diagonal_logit[1, rows] == -torch.inf).all()
    assert statistics.logit_squares[1, rows].isnan().all()
    for name in ("entropy", "diagonal", "previous"):
        assert torch.equal(getattr(statistics, name)[1, rows], torch.zeros(2, dtype=torch.float64)), name
    torch.testing.assert_close(statistics.column_sums, attention.sum(dim=-2), rtol=0, atol=1e-12)
    torch.testing.assert_close(statistics.squared_norm, attention.square().sum(dim=(-2, -1)))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_leaves_nan_in_its_own_matrix_alone(wrong: float) -> None:
    query, key, x, y = factors(Causal(), 3, n=100)
    plan = Causal().fused_plan(100)
    whole = [*gram_product(query, key, x, plan, scale=SCALE), adjoint_product(query, key, y, plan, scale=SCALE)]
    statistics = row_statistics(query, key, plan, scale=SCALE)
    query[1, 40, 2], key[1, :, 2] = wrong, -key[1, :, 2].abs()
    key[1, 3, 2] = 1.0  # so that in row 40 one logit is +inf, the others -inf, or all are nan
    broken = [*gram_product(query, key, x, plan, scale=SCALE), adjoint_product(query, key, y, plan, scale=SCALE)]
    for found, expected in zip(broken, whole, strict=True):
        assert torch.equal(found[::2], expected[::2])
        assert found[1].isnan().any()
    found = row_statistics(query, key, plan, scale=SCALE)
    for name in ("log_sum_exp", "entropy", "diagonal", "previous", "logit_squares"):
        assert getattr(found, name)[1, 40].isnan(), name
        assert torch.equal(getattr(found, name)[::2].nan_to_num(), getattr(statistics, name)[::2].nan_to_num()), name
    assert found.column_sums[1, :41].isnan().all()
    assert found.squared_norm[1].isnan()


# Bits, axes and threads.


def everything(query: Tensor, key: Tensor, x: Tensor, plan: Any) -> list[Tensor]:
    statistics = row_statistics(query, key, plan, scale=SCALE)
    names = [name for name in kernel.RowStatistics.__slots__ if name != "visible"]
    return [
        *gram_product(query, key, x, plan, scale=SCALE),
        *(getattr(statistics, name).nan_to_num() for name in names),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "count"), [(33, 5), (200, 3), (1700, 1)])  # 1700: two runs
def test_bits_depend_neither_on_threads_nor_on_the_batch(n: int, count: int, dtype: torch.dtype) -> None:
    query, key, x, _ = factors(Causal(), count, n=n, dtype=dtype, d=7)  # odd sizes: matrices lie unaligned in memory
    plan = Causal().fused_plan(n)
    expected = everything(query, key, x, plan)
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, everything(query, key, x, plan), expected))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    for index in range(count):
        alone = everything(query[index].clone(), key[index].clone(), x[index].clone(), plan)
        assert all(torch.equal(one, all_of[index]) for one, all_of in zip(alone, expected, strict=True))


def test_torch_threads_come_back_after_an_error_and_after_callers_that_overlap(monkeypatch: Any) -> None:
    query, key, x, _ = factors(Causal(), 4, n=60)
    plan = Causal().fused_plan(60)
    expected = product(query, key, x, plan, scale=SCALE)

    def broken(*_: Any, **__: Any) -> None:
        assert torch.get_num_threads() == 1
        raise MemoryError

    try:
        torch.set_num_threads(2)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(product, query, key, x, plan, scale=SCALE) for _ in range(12)]
            assert all(torch.equal(call.result(), expected) for call in calls)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(kernel, "_softmax", broken)
        with pytest.raises(MemoryError):
            product(query, key, x, plan, scale=SCALE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,), (2, 0, 1)])
def test_leading_axes_come_back(leading: tuple[int, ...]) -> None:
    mask, n = Cross(9, 4), 9
    query, key, x, _ = factors(mask, *leading, n=n)
    found, gram = gram_product(query, key, x, mask.fused_plan(n), scale=SCALE)
    assert (found.shape, gram.shape) == ((*leading, 9, 5), (*leading, 4, 5))
    statistics = row_statistics(query, key, mask.fused_plan(n), scale=SCALE)
    shapes = {name: getattr(statistics, name).shape for name in kernel.RowStatistics.__slots__}
    assert (shapes.pop("column_sums"), shapes.pop("squared_norm")) == ((*leading, 4), leading)
    assert shapes.pop("visible") == (9,)
    assert set(shapes.values()) == {(*leading, 9)}


def test_gradients_are_cut_and_inference_tensors_taken_by_every_thread() -> None:
    query, key, x, _ = factors(Causal(), 2, n=40)
    plan = Causal().fused_plan(40)
    expected = product(query, key, x, plan, scale=SCALE)
    try:
        torch.set_num_threads(2)
        found = product(query.requires_grad_(), key, x.requires_grad_(), plan, scale=SCALE)
        assert torch.equal(found, expected)
        assert not found.requires_grad
        with torch.inference_mode():
            inside = query * 1
            assert torch.equal(product(inside, key, x, plan, scale=SCALE), expected)
        assert torch.equal(product(inside, key, x, plan, scale=SCALE), expected)
    finally:
        torch.set_num_threads(1)


def test_inputs_are_not_changed() -> None:
    query, key, x, y = given_factors = factors(Prefix(20), 2, n=50)
    before = [tensor.clone() for tensor in given_factors]
    everything(query, key, x, Prefix(20).fused_plan(50))
    adjoint_product(query, key, y, Prefix(20).fused_plan(50), scale=SCALE)
    assert all(map(torch.equal, given_factors, before))


# Memory.

MEMORY_PROBE = """
import torch
from rankkit.masks import Prefix
from rankkit_kernels.adjoint import attend_adjoint
from rankkit_kernels.row_blocks import adjoint_product, gram_product, row_statistics

def peak():  # not getrusage, whose maximum a process takes over from the one that started it
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

def work(n, mask):
    query, key, x = (torch.rand(1, 1, n, 64, dtype=torch.float64) for _ in range(3))
    plan, transposed = mask.fused_plan(n), mask.transposed().fused_plan(n)
    gram_product(query, key, x, plan, scale=0.125)
    adjoint_product(query, key, x, plan, scale=0.125)
    statistics = row_statistics(query, key, plan, scale=0.125)
    known = (statistics.log_sum_exp, statistics.column_sums)
    attend_adjoint(query, key, x, plan, transposed, scale=0.125, statistics=known, path="fused")

torch.set_num_threads(2)
work(64, Prefix(32))  # what the libraries allocate once is not ours
before = peak()
work(8192, Prefix(4096))
print((peak() - before) / (3 * 8192 * 64 * 8))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of resident memory here")
def test_peak_memory_at_8192_positions_stays_below_ten_times_the_factors() -> None:
    # One head: the matrix alone would be 43 times Q + K + X, a boolean mask 5.3 times.
    result = subprocess.run([sys.executable, "-c", MEMORY_PROBE], capture_output=True, text=True, check=True)
    assert 1 < float(result.stdout) < 10


# CUDA.


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_products_and_statistics_are_those_of_the_dense_matrix(dtype: torch.dtype) -> None:
    for n in (1, 7, 130, 1500):
        for mask in masks(n):
            query, key, x, _ = factors(mask, 2, n=n, dtype=dtype)
            plan = mask.fused_plan(n)
            device = [tensor.cuda() for tensor in (query, key, x)]
            for found, expected in zip(everything(*device, plan), everything(query, key, x, plan), strict=True):
                tolerance = 1e-11 if dtype == torch.float64 else 2e-5 * math.sqrt(n)
                torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


# Misuse.


def test_misuse_is_refused() -> None:
    query, key, x, y = factors(Cross(9, 4), 2, n=9)
    plan = Cross(9, 4).fused_plan(9)
    for wrong in (torch.bfloat16, torch.int64):
        with pytest.raises(TypeError, match="query, key and probes must all be float64 or all float32"):
            product(query.to(wrong), key.to(wrong), x.to(wrong), plan, scale=SCALE)
    with pytest.raises(TypeError, match="query, key and probes must all be float64 or all float32"):
        product(query, key, x.float(), plan, scale=SCALE)
    shapes = "query, key and probes must be .* Expand the leading axes"
    with pytest.raises(ValueError, match=shapes):
        product(query, key, y, plan, scale=SCALE)
    with pytest.raises(ValueError, match=shapes):
        adjoint_product(query, key, x, plan, scale=SCALE)
    with pytest.raises(ValueError, match=shapes):
        gram_product(query, key[0], x, plan, scale=SCALE)
    with pytest.raises(ValueError, match=shapes):
        row_statistics(query[..., :3], key, plan, scale=SCALE)
    with pytest.raises(ValueError, match=shapes):
        row_statistics(query[0, 0], key, plan, scale=SCALE)
    with pytest.raises(ValueError, match=r"plan must share out rows 0\.\.9"):
        row_statistics(query, key, Cross(8, 4).fused_plan(8), scale=SCALE)
