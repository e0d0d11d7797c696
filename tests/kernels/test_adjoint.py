"""The adjoint of attention as attention, against A^T Y written out in float64."""

from __future__ import annotations

from typing import Any

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Prefix, PrefixTransposed, Window
from rankkit_kernels.adjoint import adjoint_path, attend_adjoint
from rankkit_kernels.attention import attend
from rankkit_kernels.row_blocks import adjoint_product, row_statistics

LENGTHS = (1, 2, 7, 64, 129, 300)  # attention masks in blocks of 256 rows
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
DTYPES = tuple(UNIT)
PATHS: Any = ("fused", "row-blocks")
SCALE = 0.3
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def masks(n: int) -> list[Mask]:
    prefixes = [kind(p) for kind in (Prefix, PrefixTransposed) for p in sorted({0, 1, n // 2, n - 1, n})]
    windows = [Window(n // 2), Window(0, 3), Window(2, 5)]
    return [Causal(), Backward(), Bidirectional(), Cross(n, n + 3), Cross(n, max(1, n // 3)), *prefixes, *windows]


def factors(
    mask: Mask, *leading: int, n: int, dtype: torch.dtype = torch.float64, std: float = 1.5, d: int = 8, probes: int = 5
) -> list[Tensor]:
    """Query, key and Y; logits of about the standard deviation `std`."""
    generator = torch.Generator().manual_seed(n + d)
    shapes = ((*leading, n, d), (*leading, mask.columns(n), d), (*leading, n, probes))
    query, key, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.to(dtype) for tensor in (std / (SCALE * d**0.5) * query, key, y)]


def adjoint(query: Tensor, key: Tensor, y: Tensor, mask: Mask, **options: Any) -> Tensor:
    n = query.shape[-2]
    plan, transposed = mask.fused_plan(n), mask.transposed().fused_plan(mask.columns(n))
    return attend_adjoint(query, key, y, plan, transposed, scale=SCALE, **options)


def statistics(query: Tensor, key: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    found = row_statistics(query.double(), key.double(), mask.fused_plan(query.shape[-2]), scale=SCALE)
    return found.log_sum_exp, found.column_sums


def dense(query: Tensor, key: Tensor, mask: Mask) -> Tensor:
    """The oracle: softmax in NumPy, float64."""
    logits = SCALE * (query.double().numpy() @ np.swapaxes(key.double().numpy(), -1, -2))
    return torch.from_numpy(matrices.softmax(logits, mask.allowed(query.shape[-2]).numpy()))


def bound(query: Tensor, key: Tensor, y: Tensor, attention: Tensor, log_sum_exp: Tensor) -> Tensor:
    """The bound of the docstring, eta_j (A^T |Y|)_j, and as much for the oracle's own rounding in float64."""
    u = UNIT[query.dtype] + UNIT[torch.float64]
    n, d = query.shape[-2:]
    sizes = SCALE * query.double().abs() @ key.double().abs().mT + log_sum_exp[..., None].abs()
    eta = 2 * (d + 6) * u * sizes.amax(dim=-2) + (2 * n + 50) * u
    return eta[..., None] * (attention.mT @ y.double().abs()) + 1e3 * torch.finfo(query.dtype).tiny


def assert_right(query: Tensor, key: Tensor, y: Tensor, mask: Mask, path: Any) -> None:
    attention, known = dense(query, key, mask), statistics(query, key, mask)
    found = adjoint(query, key, y, mask, statistics=known, path=path)
    assert (found.dtype, found.shape) == (query.dtype, (*key.shape[:-1], y.shape[-1]))
    error = (found.double() - attention.mT @ y.double()).abs()
    assert (error <= bound(query, key, y, attention, known[0])).all(), (mask, path, float(error.max()))


# Values.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_adjoint_is_that_of_the_dense_matrix_for_every_mask(n: int, dtype: torch.dtype, path: Any) -> None:
    for mask in masks(n):
        assert_right(*factors(mask, 2, n=n, dtype=dtype), mask, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("std", [0.1, 3.0, 30.0, 1000.0])
def test_adjoint_keeps_to_its_stated_error_however_large_the_logits(std: float, dtype: torch.dtype, path: Any) -> None:
    for mask in (Causal(), Prefix(70), Bidirectional(), Backward()):
        assert_right(*factors(mask, 1, n=140, dtype=dtype, std=std, d=64), mask, path)


@pytest.mark.parametrize("path", PATHS)
def test_float64_adjoint_is_right_to_thirteen_digits(path: Any) -> None:
    """The stated error grows with the logits and would hide a float32 step in the middle."""
    for mask in masks(130):
        query, key, y = factors(mask, n=130)
        expected = dense(query, key, mask).mT @ y
        torch.testing.assert_close(adjoint(query, key, y, mask, path=path), expected, rtol=0, atol=2e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("probes", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("d", [7, 8, 15])
def test_any_number_of_probes_is_packed_into_heads(probes: int, d: int, dtype: torch.dtype) -> None:
    query, key, y = factors(Prefix(9), 2, n=30, d=d, probes=probes, dtype=dtype)
    assert_right(query, key, y, Prefix(9), "fused")


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 9), st.sampled_from(PATHS), st.integers(0, 99))
def test_adjoint_moves_from_one_side_of_a_scalar_product_to_the_other(
    n: int, p: int, d: int, path: Any, seed: int
) -> None:
    """<A x, y> = <x, A^T y>, with A x by fused attention."""
    p = min(p, n)
    draw = torch.Generator().manual_seed(seed)
    query, key, x, y = (torch.randn(1, 2, n, d, generator=draw, dtype=torch.float64) for _ in range(4))
    for mask in (Causal(), Backward(), Bidirectional(), Prefix(p), PrefixTransposed(p)):
        left = (attend(query, key, x, mask.fused_plan(n), scale=SCALE) * y).sum()
        right = (x * adjoint(query, key, y, mask, path=path)).sum()
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adjoint_is_the_gradient_of_attention_with_respect_to_its_values(dtype: torch.dtype) -> None:
    for mask in (Causal(), Prefix(100), Backward()):
        query, key, y = (tensor[None] for tensor in factors(mask, 2, n=280, d=16, probes=16, dtype=dtype))
        value = torch.zeros_like(y, requires_grad=True)
        output = attend(query, key, value, mask.fused_plan(280), scale=SCALE)
        (expected,) = torch.autograd.grad(output, value, y)
        tolerance = 1e-12 if dtype == torch.float64 else 3e-5  # of sums over 280 rows
        for path in PATHS:
            torch.testing.assert_close(adjoint(query, key, y, mask, path=path), expected, rtol=0, atol=tolerance)


# Paths.


def test_the_path_is_a_rule_of_device_dtype_and_statistics() -> None:
    for device in (CPU, CUDA):
        assert adjoint_path(device, torch.float32, has_statistics=True) == "fused"
        assert adjoint_path(device, torch.float32, has_statistics=False) == "row-blocks"
        assert adjoint_path(device, torch.float64, has_statistics=True) == "row-blocks"
    assert adjoint_path(torch.device("mps"), torch.float32, has_statistics=True) == "row-blocks"


def kernels_of(query: Tensor, key: Tensor, y: Tensor, mask: Mask, **options: Any) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        adjoint(query, key, y, mask, **options)
    return {event.key for event in recorded.key_averages()}


FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_rule_says_is_what_runs(dtype: torch.dtype) -> None:
    for mask in (Causal(), Prefix(20), Cross(300, 40)):
        query, key, y = factors(mask, 1, n=300, dtype=dtype, d=16, probes=40)
        known = statistics(query, key, mask)
        for options in ({}, {"statistics": known}, {"statistics": known, "path": "fused"}, {"path": "row-blocks"}):
            path = options.get("path") or adjoint_path(CPU, dtype, has_statistics="statistics" in options)
            names = kernels_of(query, key, y, mask, **options)
            assert (FUSED in names) == (path == "fused")
            assert ("aten::_softmax" in names) == (path == "row-blocks")
        assert FUSED in kernels_of(query, key, y, mask, path="fused")


def test_fused_calls_compute_the_statistics_that_they_are_not_given() -> None:
    query, key, y = factors(Prefix(20), 3, n=60, dtype=torch.float32)
    known = statistics(query, key, Prefix(20))
    given = adjoint(query, key, y, Prefix(20), statistics=known, path="fused")
    assert torch.equal(adjoint(query, key, y, Prefix(20), path="fused"), given)


def test_row_blocks_are_those_of_adjoint_product() -> None:
    query, key, y = factors(Causal(), 3, n=60)
    expected = adjoint_product(query, key, y, Causal().fused_plan(60), scale=SCALE)
    assert torch.equal(adjoint(query, key, y, Causal()), expected)


# Rows that see nothing, and logits that are not finite.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mask", [Causal(), Backward(), Prefix(20), Bidirectional()], ids=str)
def test_a_query_whose_logits_are_all_minus_infinity_adds_nothing(mask: Mask, path: Any) -> None:
    query, key, y = factors(mask, 3, n=40)
    key[..., 0] = key[..., 0].abs() + 1
    rows = torch.tensor([0, 13, 39])  # under `Causal` only query 39 sees key 39, under `Backward` only query 0 key 0
    query[1, rows, 0] = -torch.inf
    attention = dense(query.nan_to_num(neginf=0.0), key, mask)
    attention[1, rows] = 0.0
    found = adjoint(query, key, y, mask, statistics=statistics(query, key, mask), path=path)
    torch.testing.assert_close(found, attention.mT @ y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mask", [Causal(), Backward(), Prefix(20), PrefixTransposed(20)], ids=str)
def test_a_query_that_sees_nothing_adds_nothing_though_logits_it_does_not_see_are_infinite(
    mask: Mask, path: Any
) -> None:
    query, key, y = factors(mask, 2, n=40)
    seen = mask.allowed(40)[25]
    key[..., 0] = torch.where(seen, key[..., 0].abs() + 1, -key[..., 0].abs() - 1)
    query[1, 25, 0] = -torch.inf
    attention = dense(query.nan_to_num(neginf=0.0), key, mask)
    attention[1, 25] = 0.0
    found = adjoint(query, key, y, mask, statistics=statistics(query, key, mask), path=path)
    torch.testing.assert_close(found, attention.mT @ y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_leaves_nan_in_its_own_matrix_alone(wrong: float, path: Any) -> None:
    query, key, y = factors(Causal(), 3, n=40)
    expected = adjoint(query, key, y, Causal(), path=path)
    query[1, 20, 2] = wrong
    found = adjoint(query, key, y, Causal(), path=path)
    assert torch.equal(found[::2], expected[::2])
    assert found[1, :21].isnan().all()


# Axes and gradients.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,)])
def test_leading_axes_come_back_and_members_are_what_they_are_alone(leading: tuple[int, ...], path: Any) -> None:
    query, key, y = factors(Cross(9, 4), *leading, n=9)
    found = adjoint(query, key, y, Cross(9, 4), path=path)
    assert found.shape == (*leading, 4, 5)
    for index in np.ndindex(*leading):
        alone = adjoint(query[index], key[index], y[index], Cross(9, 4), path=path)
        torch.testing.assert_close(found[index], alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_are_cut_and_inputs_not_changed(path: Any) -> None:
    tensors = factors(Causal(), 2, n=20)
    before = [tensor.clone() for tensor in tensors]
    assert not adjoint(*(tensor.requires_grad_() for tensor in tensors), Causal(), path=path).requires_grad
    assert all(map(torch.equal, tensors, before))


# CUDA.


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("path", "dtype"), [("fused", torch.float32), ("row-blocks", torch.float32), ("row-blocks", torch.float64)]
)
def test_cuda_adjoint_is_that_of_the_dense_matrix(path: Any, dtype: torch.dtype) -> None:
    for n in (7, 129, 512):
        for mask in masks(n):
            query, key, y = factors(mask, 2, n=n, dtype=dtype, d=16)
            expected = dense(query, key, mask).mT @ y.double()
            found = adjoint(query.cuda(), key.cuda(), y.cuda(), mask, path=path).cpu().double()
            tolerance = 1e-11 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Misuse.


def test_misuse_is_refused() -> None:
    mask = Cross(9, 4)
    query, key, y = factors(mask, 2, n=9)
    known = statistics(query, key, mask)
    with pytest.raises(ValueError, match=r"path must be one of .*, got 'dense'"):
        adjoint(query, key, y, mask, path="dense")
    for path in PATHS:
        for wrong in (torch.float16, torch.bfloat16):
            with pytest.raises(TypeError, match="must all be float64 or all float32"):
                adjoint(query.to(wrong), key.to(wrong), y.to(wrong), mask, path=path)
        with pytest.raises(TypeError, match="must all be float64 or all float32"):
            adjoint(query, key, y.float(), mask, path=path)
        with pytest.raises(ValueError, match=r"(value must be|query, key and probes must be)"):
            adjoint(query, key, y[:, :8], mask, path=path, statistics=known)
    for wrong_statistics in ((known[1], known[0]), (known[0][0], known[1]), (known[0], known[1][..., :3])):
        with pytest.raises(ValueError, match=r"statistics must be .* Take both from row_statistics"):
            adjoint(query, key, y, mask, path="fused", statistics=wrong_statistics)
    with pytest.raises(ValueError, match="scale must not be 0 for fused calls"):
        attend_adjoint(query, key, y, mask.fused_plan(9), mask.transposed().fused_plan(4), scale=0.0, path="fused")
    with pytest.raises(ValueError, match=r"plan must share out rows 0\.\.4"):
        attend_adjoint(query, key, y, mask.fused_plan(9), mask.fused_plan(9), scale=SCALE, path="fused")


def test_fused_calls_in_float64_on_cuda_are_refused() -> None:
    """Without a device, on tensors that only say that they are there."""

    class OnCuda(Tensor):
        @property
        def device(self) -> torch.device:
            return CUDA

    query, key, y = (tensor.as_subclass(OnCuda) for tensor in factors(Causal(), n=4))
    with pytest.raises(ValueError, match="path must be 'row-blocks' for float64 on CUDA, got 'fused'"):
        adjoint(query, key, y, Causal(), path="fused")
