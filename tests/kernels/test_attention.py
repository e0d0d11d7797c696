"""Fused attention against the float64 dense reference: outputs and all three gradients, over one zoo."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rankkit.masks import Backward, Bidirectional, Causal, Mask, Mixed, Prefix, PrefixTransposed, Window, batch_groups
from rankkit_kernels.attention import FusedCall, Group, attend, attend_groups, backend, dense_attention
from rankkit_kernels.scores import OffsetBias

LENGTHS = (1, 2, 7, 64, 129, 512)
HEAD_DIMS = (16, 32, 64)
EXTENTS = ((1, 1), (2, 3))  # batch, heads
# Relative to the largest entry. float64: a few hundred roundings of 1.1e-16. float32: the same of 6e-8.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6}
MIXTURES = (
    Mixed((Causal(), Causal(), Backward())),
    Mixed((Backward(), Prefix(3), Backward())),
    Mixed((Bidirectional(),) * 3),
)


def prefix_lengths(n: int) -> list[int]:
    return sorted({0, 1, n // 2, n - 1, n} & set(range(n + 1)))


def masks(n: int) -> list[Mask]:
    prefixes = [kind(p) for kind in (Prefix, PrefixTransposed) for p in prefix_lengths(n)]
    windows = [Window(n // 2), Window(0, 3), Window(2, n)]
    return [Causal(), Backward(), Bidirectional(), *prefixes, *windows]


def factors(
    batch: int, heads: int, n: int, head_dim: int, dtype: torch.dtype, spread: float = 1.0, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed + n + head_dim)
    shape = (batch, heads, n, head_dim)
    drawn = [torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(4)]
    drawn[0] *= spread * 3  # uniform on [-1, 1] has variance 1/3 each: logits of standard deviation `spread`
    return [tensor.to(dtype).requires_grad_(index < 3) for index, tensor in enumerate(drawn)]


def outputs_and_gradients(compute, query: Tensor, key: Tensor, value: Tensor, cotangent: Tensor) -> list[Tensor]:
    output = compute(query, key, value)
    gradients = torch.autograd.grad(output, (query, key, value), cotangent.to(output.dtype))
    return [output.detach().double(), *(gradient.double() for gradient in gradients)]


def relative_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    # Each tensor against its own largest entry. With one or two keys some gradients are zero in exact arithmetic (one
    # key: queries do not matter), so there the largest output stands in.
    output = float(expected[0].abs().max())
    floor = output if expected[0].shape[-2] <= 2 else 1e-3 * output
    return [float((f - e).abs().max()) / max(float(e.abs().max()), floor) for f, e in zip(found, expected, strict=True)]


def alibi(heads: int, n: int, dtype: torch.dtype = torch.float64) -> OffsetBias:
    """-m_h |i - j|, by offset."""
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
    return OffsetBias(values=(-slopes[:, None] * torch.arange(1 - n, n).abs()).to(dtype))


def reference(mask: Mask | Mixed, tensors: list[Tensor], bias: OffsetBias | None = None) -> list[Tensor]:
    query, key, value, cotangent = (tensor.detach().double() for tensor in tensors)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    allowed = mask.allowed(query.shape[-2])
    return outputs_and_gradients(lambda q, k, v: dense_attention(q, k, v, allowed, bias=bias), *leaves, cotangent)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", LENGTHS)
def test_fused_equals_dense_float64_in_outputs_and_all_gradients(n: int, dtype: torch.dtype) -> None:
    for head_dim in HEAD_DIMS:
        for batch, heads in EXTENTS:
            tensors = factors(batch, heads, n, head_dim, dtype)
            for mask in masks(n):
                found = outputs_and_gradients(lambda q, k, v, m=mask, n=n: attend(q, k, v, m.fused_plan(n)), *tensors)
                errors = relative_errors(found, reference(mask, tensors))
                assert max(errors) < TOLERANCES[dtype], (mask, head_dim, batch, heads, errors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fused_equals_dense_float64_with_large_logits(dtype: torch.dtype) -> None:
    for n in (7, 129):
        # Logits up to about 200. Each is a rounded sum, so probabilities move by up to logit * u: that, not the kernel,
        # is what a float32 kernel cannot do better than; 2e-6 holds for logits of order 10, and grows with them.
        tensors = factors(2, 2, n, 32, dtype, spread=40.0)
        logits = (tensors[0].detach() @ tensors[1].detach().transpose(-1, -2)).abs().max() / 32**0.5
        tolerance = TOLERANCES[dtype] * max(1.0, float(logits) / 10)
        for mask in masks(n):
            found = outputs_and_gradients(lambda q, k, v, m=mask, n=n: attend(q, k, v, m.fused_plan(n)), *tensors)
            assert max(relative_errors(found, reference(mask, tensors))) < tolerance, mask


@pytest.mark.parametrize("n", LENGTHS)
def test_bfloat16_error_is_at_most_one_and_a_half_times_that_of_torch_dense_mask_sdpa(n: int) -> None:
    for head_dim in HEAD_DIMS:
        tensors = factors(2, 3, n, head_dim, torch.bfloat16)
        for mask in masks(n):
            expected = reference(mask, tensors)
            allowed = mask.allowed(n)
            found = outputs_and_gradients(lambda q, k, v, m=mask, n=n: attend(q, k, v, m.fused_plan(n)), *tensors)
            dense = outputs_and_gradients(
                lambda q, k, v, a=allowed: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=a),
                *tensors,
            )
            for ours, theirs in zip(relative_errors(found, expected), relative_errors(dense, expected), strict=True):
                # Where torch happens to round exactly (one key), half the unit roundoff (2^-8) is allowed.
                assert ours <= max(1.5 * theirs, 2.0**-9), (mask, head_dim)


def test_groups_equal_one_call_per_sequence() -> None:
    n, lengths = 64, [8, 8, 24, 64, 0]
    tensors = factors(len(lengths), 2, n, 16, torch.float64)
    masks_of_batch = [Prefix(p) for p in lengths]
    groups = batch_groups(masks_of_batch, n)
    assert [group.size for group in groups] == [2, 1, 1, 1]
    found = outputs_and_gradients(lambda q, k, v: attend_groups(q, k, v, groups), *tensors)
    for row, mask in enumerate(masks_of_batch):
        alone = [tensor.detach()[row : row + 1].requires_grad_() for tensor in tensors[:3]] + [
            tensors[3][row : row + 1]
        ]
        for whole, single in zip(found, reference(mask, alone), strict=True):
            torch.testing.assert_close(whole[row : row + 1], single, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 129, 512])
def test_heads_under_masks_of_their_own_equal_dense_float64_in_outputs_and_all_gradients(n: int) -> None:
    for dtype, tolerance in TOLERANCES.items():
        tensors = factors(2, 3, n, 16, dtype)
        for mask in MIXTURES if n > 2 else MIXTURES[::2]:
            for applied in (mask, mask.transposed()):
                groups = batch_groups([applied] * 2, n)
                found = outputs_and_gradients(lambda q, k, v, g=groups: attend_groups(q, k, v, g), *tensors)
                assert max(relative_errors(found, reference(applied, tensors))) < tolerance, applied


def test_heads_that_share_a_mask_have_the_bits_of_one_plan() -> None:
    tensors, alike = factors(2, 3, 300, 16, torch.float32), Mixed((Prefix(20),) * 3)
    (one,) = (outputs_and_gradients(lambda q, k, v: attend(q, k, v, Prefix(20).fused_plan(300)), *tensors),)
    found = outputs_and_gradients(lambda q, k, v: attend_groups(q, k, v, batch_groups([alike] * 2, 300)), *tensors)
    assert all(map(torch.equal, found, one))


def test_batches_of_sequences_and_heads_with_their_own_masks_equal_one_call_each() -> None:
    n, masks_of_batch = 64, [MIXTURES[0], MIXTURES[0], Causal(), MIXTURES[1]]
    tensors = factors(4, 3, n, 16, torch.float64)
    groups = batch_groups(masks_of_batch, n)
    found = outputs_and_gradients(lambda q, k, v: attend_groups(q, k, v, groups), *tensors)
    for row, mask in enumerate(masks_of_batch):
        alone = [tensor.detach()[row : row + 1] for tensor in tensors]
        for whole, single in zip(found, reference(mask, alone), strict=True):
            torch.testing.assert_close(whole[row : row + 1], single, rtol=1e-12, atol=1e-12)


def test_groups_of_heads_that_do_not_fit_are_refused() -> None:
    query, key, value, _ = factors(1, 3, 8, 16, torch.float32)
    plan = Causal().fused_plan(8)
    with pytest.raises(ValueError, match=r"heads must share out the 3 heads, got sizes \[2\]"):
        attend_groups(query, key, value, [Group(1, heads=(Group(2, plan),))])
    for arguments in ({}, {"plan": plan, "heads": (Group(3, plan),)}):
        with pytest.raises(ValueError, match="a group must have either a plan or runs of heads, got"):
            Group(1, **arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_a_bias_by_offset_equals_dense_float64_in_outputs_and_all_gradients(n: int, dtype: torch.dtype) -> None:
    tensors, bias = factors(2, 3, n, 16, dtype), alibi(3, n)
    # float32 numbers of -n / 16 are rounded to 1e-6 of them; bfloat16 factors are computed in float32, outputs rounded.
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6 + n * 1e-8, torch.bfloat16: 2.0**-7}[dtype]
    for mask in [*masks(n), *(MIXTURES if n > 2 else MIXTURES[:1])]:
        groups = batch_groups([mask] * 2, n)
        found = outputs_and_gradients(lambda q, k, v, g=groups: attend_groups(q, k, v, g, bias=bias), *tensors)
        assert max(relative_errors(found, reference(mask, tensors, bias))) < tolerance, mask


def test_any_bias_by_offset_may_hide_keys_and_lies_over_the_masks_strip() -> None:
    n, generator = 300, torch.Generator().manual_seed(0)
    values = torch.randn(2, 2 * n - 1, generator=generator, dtype=torch.float64)
    values[1, n + 4 :] = -torch.inf  # the second head sees no further than five ahead
    tensors, bias = factors(1, 2, n, 16, torch.float64), OffsetBias(values=values)
    for mask in (Causal(), Backward(), Bidirectional(), Prefix(100), Window(40, 9)):
        found = outputs_and_gradients(lambda q, k, v, m=mask: attend(q, k, v, m.fused_plan(n), bias=bias), *tensors)
        assert max(relative_errors(found, reference(mask, tensors, bias))) < 1e-12, mask


def test_biases_that_do_not_fit_are_refused() -> None:
    query, key, value, _ = factors(1, 3, 8, 16, torch.float32)
    plan = Causal().fused_plan(8)
    for values in (torch.zeros(3, 14), torch.zeros(2, 15), torch.zeros(15), torch.zeros(3, 15, requires_grad=True)):
        with pytest.raises(
            ValueError, match=r"bias must be \(head, offset\) numbers \(3, 15\) on cpu without a gradient"
        ):
            attend(query, key, value, plan, bias=OffsetBias(values=values))


def test_scale_is_applied() -> None:
    query, key, value, _ = factors(1, 2, 7, 16, torch.float64)
    expected = dense_attention(query, key, value, Prefix(3).allowed(7), scale=0.7)
    torch.testing.assert_close(attend(query, key, value, Prefix(3).fused_plan(7), scale=0.7), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_call_stays_on_the_fused_cpu_kernel_forward_and_backward(dtype: torch.dtype) -> None:
    n = 300  # more than one block of rows
    tensors = factors(1, 1, n, 16, dtype)
    for mask in (Causal(), Backward(), Bidirectional(), Prefix(20), PrefixTransposed(20), Window(50), Window(9, 9)):
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for bias in (None, alibi(1, n)):
                outputs_and_gradients(
                    lambda q, k, v, m=mask, b=bias: attend(q, k, v, m.fused_plan(n), bias=b), *tensors
                )
        names = {event.key for event in recorded.key_averages()}
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
        assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names
        assert not {name for name in names if "softmax" in name or "math" in name}


MEMORY_PROBE = """
import resource, sys, threading, time
import torch
from rankkit.masks import Backward, Causal, Prefix, Window
from rankkit_kernels.attention import attend
from rankkit_kernels.scores import OffsetBias

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
n = 8192
def run(n, mask, bias=None):
    query, key, value = (torch.rand(1, 1, n, 64, requires_grad=True) for _ in range(3))
    attend(query, key, value, mask.fused_plan(n), bias=bias).sum().backward()
run(64, Prefix(32))  # what the libraries allocate once is not ours
peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.0005)
before = resident()
thread = threading.Thread(target=watch)
thread.start()
for mask in (Causal(), Prefix(n // 2), Prefix(3 * n // 4), Backward(), Window(n // 2, 100)):
    run(n, mask)
bias = OffsetBias(values=-torch.arange(1.0 - n, n).abs()[None] / 256)
for mask in (Causal(), Prefix(n // 2)):
    run(n, mask, bias)
done = True
thread.join()
print((peak - before) / (3 * n * 64 * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_peak_memory_at_8192_positions_with_gradients_stays_below_ten_times_the_factors() -> None:
    # One head: a boolean n x n mask alone would be 10.7 times, a float one 43 times Q + K + V.
    result = subprocess.run([sys.executable, "-c", MEMORY_PROBE], capture_output=True, text=True, check=True)
    assert 2 < float(result.stdout) < 10


def test_backend_names_the_pinned_kernel() -> None:
    assert backend(torch.device("cpu"), torch.float64) == "cpu-flash"
    assert backend(torch.device("cuda"), torch.bfloat16) == "flash"
    assert backend(torch.device("cuda"), torch.bfloat16, masked=True) == "efficient"
    assert backend(torch.device("cuda"), torch.float32) == "efficient"
    assert backend(torch.device("cuda"), torch.float64) == "math"
    assert backend(torch.device("mps"), torch.float32) == "default"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_equals_dense_float64(dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]  # tensor-core accumulation, not the CPU's
    for n in (7, 129, 512):
        tensors = factors(2, 2, n, 32, dtype)
        for mask, bias in [(mask, bias) for mask in masks(n) for bias in (None, alibi(2, n))]:
            on_device = [tensor.detach().cuda().requires_grad_() for tensor in tensors[:3]] + [
                tensors[3].detach().cuda()
            ]
            there = None if bias is None else OffsetBias(values=bias.values.cuda())
            found = outputs_and_gradients(
                lambda q, k, v, m=mask, n=n, b=there: attend(q, k, v, m.fused_plan(n), bias=b), *on_device
            )
            errors = relative_errors([tensor.cpu() for tensor in found], reference(mask, tensors, bias))
            assert max(errors) < tolerance, mask


@pytest.mark.parametrize(
    ("rows", "columns", "sees", "message"),
    [
        ((0, 0), (0, 4), "all", "rows and columns must be non-empty ranges"),
        ((0, 3), (0, 4), "past", "rows of a `past` call must end with its columns"),
        ((1, 4), (0, 4), "future", "rows of a `future` call must start with its columns"),
    ],
)
def test_impossible_calls_are_refused(rows, columns, sees, message) -> None:
    with pytest.raises(ValueError, match=message):
        FusedCall(rows, columns, sees)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (((1, 3), (0, 2), "band", 1, 0), "rows of a `band` call must lie within its columns"),
        (((0, 3), (1, 3), "band", 1, 0), "rows of a `band` call must lie within its columns"),
        (((0, 3), (0, 3), "band", -1, 0), "see 0 or more on each side"),
        (((0, 3), (0, 3), "past", 1, 0), "behind and ahead must be 0 but for a `band`"),
    ],
)
def test_impossible_bands_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        FusedCall(*call)


def test_shapes_and_plans_that_do_not_fit_are_refused() -> None:
    query, key, value, _ = factors(1, 1, 8, 16, torch.float32)
    with pytest.raises(ValueError, match="query, key and value must be"):
        attend(query[0], key[0], value[0], Causal().fused_plan(8))
    with pytest.raises(ValueError, match="query, key and value must be"):
        attend(query, key, value[..., :8], Causal().fused_plan(8))
    with pytest.raises(ValueError, match=r"plan must share out rows 0\.\.8"):
        attend(query, key, value, Causal().fused_plan(7))
    with pytest.raises(ValueError, match=r"plan must share out rows 0\.\.8"):
        attend(query, key, value, (FusedCall((4, 8), (0, 8), "past"),))
    with pytest.raises(ValueError, match="groups must share out the batch of 1"):
        attend_groups(query, key, value, batch_groups([Causal(), Causal()], 8))
