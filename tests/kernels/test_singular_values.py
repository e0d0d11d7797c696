"""Singular values against spectra that are known, and the promises about threads, failures and inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from rankkit_kernels import singular_values as kernel
from rankkit_kernels.singular_values import singular_values

EPS = 2.0**-52
METHODS = ("gram", "svd")
FLOOR = {"gram": lambda size: (size * EPS) ** 0.5, "svd": lambda size: size * EPS}  # relative to sigma_1
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def reference(matrix):
    return np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)


def error(matrix, method):
    """Largest error of any singular value, in units of sigma_1."""
    exact = reference(matrix)
    return np.abs(singular_values(matrix, method=method, workers=1).values.numpy() - exact).max() / exact.max()


def batch(count, size, seed=0):
    kinds = ("causal", "prefix", "bidirectional", "backward")
    return np.stack([matrices.attention(kinds[index % 4], size, seed=seed + index) for index in range(count)])


def blas_threads():
    return {
        library["filepath"]: library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


# Values.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(30, 30), (50, 20), (20, 50), (1, 9), (9, 1)])
def test_a_prescribed_spectrum_is_found_below_the_floor(method, shape):
    size = min(shape)
    spectrum = np.linspace(3, 0.01, size)
    found = singular_values(matrices.prescribed(spectrum, *shape), method=method)
    assert found.values.shape == (size,)
    # 4: the rounding of the construction itself
    assert np.abs(found.values.numpy() - spectrum).max() < 4 * FLOOR["svd"](max(shape)) * 3


@pytest.mark.parametrize("kind", ["causal", "prefix"])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([48, 96, 160]),
    std=st.sampled_from([0.1, 0.3, 1.0, 2.0]),
)
def test_gram_errs_by_less_than_1e8_of_the_largest_on_random_attention(kind, seed, size, std):
    assert error(matrices.attention(kind, size, std=std, seed=seed), "gram") < 1e-8


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", ["causal", "prefix", "bidirectional", "backward"])
@pytest.mark.parametrize("method", METHODS)
def test_errors_stay_below_the_floor_on_uniform_attention(method, kind, size):
    assert error(matrices.uniform(kind, size), method) < FLOOR[method](size)


@pytest.mark.parametrize("kind", ["causal", "prefix", "bidirectional"])
@pytest.mark.parametrize("strength", [3.0, 8.0, 30.0, 800.0])
def test_gram_stays_below_its_floor_on_sinks_of_any_strength_and_place(kind, strength):
    for position in (0, 41):
        assert error(matrices.sink(kind, 128, position=position, strength=strength), "gram") < FLOOR["gram"](128)


@pytest.mark.parametrize("shape", [(128, 128), (64, 128), (128, 64)])
def test_gram_stays_below_its_floor_on_rank_one(shape):
    assert error(matrices.rank_one(*shape), "gram") < FLOOR["gram"](128)


def test_gram_grades_its_columns_so_that_a_displaced_sink_keeps_its_small_values():
    # Unsorted, the tridiagonal reduction starts beside the sink and errs by 2e-8 here.
    assert error(matrices.sink("bidirectional", 128, position=41, strength=30.0), "gram") < 1e-12
    assert error(matrices.attention("backward", 128, std=2.0), "gram") < 5e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [*matrices.SCALES, 2.0**-900, 2.0**900])
def test_values_scale_with_the_matrix_from_tiny_to_huge(method, scale):
    matrix = matrices.attention("bidirectional", 24)
    expected = singular_values(matrix, method=method).values * scale
    found = singular_values(matrix * scale, method=method).values
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * FLOOR["svd"](24) * float(expected[0]))


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_one_by_one_matrices_are_exact(method):
    assert singular_values(matrices.zero(4, 3), method=method).values.tolist() == [0, 0, 0]
    assert singular_values(matrices.one_by_one(-2.5), method=method).values.tolist() == [2.5]
    assert not singular_values(matrices.zero(4, 3), method=method).failed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 7])
def test_values_descend_and_are_never_negative(method, rank):
    values = singular_values(np.stack([matrices.rank_deficient(40, rank, seed=k) for k in range(5)]), method=method)
    assert bool((values.values.diff(dim=-1) <= 0).all())
    assert bool((values.values >= 0).all())


# Threads.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [5, 33, 128])
def test_bits_do_not_depend_on_workers_chunks_or_neighbours(method, size, monkeypatch):
    stack = batch(23, size)
    together = singular_values(stack, method=method, workers=1).values
    for workers in (2, 3):
        assert torch.equal(singular_values(stack, method=method, workers=workers).values, together)
    monkeypatch.setattr(kernel, "TASK_SECONDS", 1e-9)  # one matrix a task
    assert torch.equal(singular_values(stack, method=method, workers=2).values, together)
    alone = torch.stack([singular_values(matrix, method=method).values for matrix in stack])
    assert torch.equal(alone, together)


@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_the_callers_blas_threads_which_come_back(method):
    matrix = batch(2, 300)  # a size at which one and two BLAS threads give other bits where nobody limits them
    with threadpool_limits(limits=1, user_api="blas"):
        expected = singular_values(matrix, method=method).values
    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        assert torch.equal(singular_values(matrix, method=method).values, expected)
        assert blas_threads() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_blas_works_with_one_thread_inside_the_pool(workers, monkeypatch):
    seen = []
    solve = kernel._solve_svd
    monkeypatch.setattr(kernel, "TASK_SECONDS", 1e-9)
    monkeypatch.setitem(kernel._SOLVERS, "svd", lambda chunk: (seen.append(blas_threads()), solve(chunk))[1])
    with threadpool_limits(limits=2, user_api="blas"):
        singular_values(batch(3, 8), method="svd", workers=workers)
    assert [set(threads.values()) for threads in seen] == [{1}] * 3


def test_blas_works_with_one_thread_in_whatever_thread_calls(monkeypatch):
    seen = []
    solve = kernel._solve_svd
    monkeypatch.setitem(kernel._SOLVERS, "svd", lambda chunk: (seen.append(blas_threads()), solve(chunk))[1])
    with threadpool_limits(limits=2, user_api="blas"):
        singular_values(batch(1, 8), method="svd", workers=1)  # threadpoolctl now takes this thread for the one to obey
        with ThreadPoolExecutor(1) as other:
            other.submit(singular_values, batch(1, 8), method="svd", workers=1).result()
        assert set(blas_threads().values()) == {2}
    assert [set(threads.values()) for threads in seen] == [{1}] * 2


def test_the_blas_threads_come_back_after_an_error(monkeypatch):
    def broken(chunk):
        raise MemoryError

    monkeypatch.setitem(kernel._SOLVERS, "svd", broken)
    before = blas_threads()
    with pytest.raises(MemoryError):
        singular_values(batch(2, 8), method="svd")
    assert blas_threads() == before


def test_tasks_are_cut_so_that_each_is_worth_a_thread(monkeypatch):
    sizes = []
    solve = kernel._solve_gram
    monkeypatch.setitem(kernel._SOLVERS, "gram", lambda chunk: (sizes.append(len(chunk)), solve(chunk))[1])
    singular_values(np.zeros((9, 512, 512)), method="gram", workers=2)
    assert sizes[0] == 2  # 18 ms each
    sizes.clear()
    singular_values(np.zeros((400, 16, 16)), method="gram", workers=2)
    assert sizes == [400]


# Failures.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_matrix_that_is_not_finite_fails_alone(method, wrong):
    stack = batch(6, 20).reshape(2, 3, 20, 20)
    expected = singular_values(stack, method=method).values
    broken = stack.copy()
    broken[1, 0, 3, 7] = wrong
    found = singular_values(broken, method=method)
    assert found.failed.tolist() == [[False, False, False], [True, False, False]]
    assert bool(found.values[1, 0].isnan().all())
    assert torch.equal(found.values[~found.failed], expected[~found.failed])


@pytest.mark.parametrize(("method", "routine"), [("gram", "eigvalsh"), ("svd", "svd")])
def test_a_matrix_that_does_not_converge_fails_alone(method, routine, monkeypatch):
    stack = batch(5, 12)
    expected = singular_values(stack, method=method).values
    stack[3] = 0.0
    original = getattr(np.linalg, routine)

    def refuses_zero(array, **options):
        if not np.any(array, axis=(-2, -1)).all():
            raise np.linalg.LinAlgError("did not converge")
        return original(array, **options)

    monkeypatch.setattr(np.linalg, routine, refuses_zero)
    found = singular_values(stack, method=method)
    assert found.failed.tolist() == [False, False, False, True, False]
    assert bool(found.values[3].isnan().all())
    assert torch.equal(found.values[~found.failed], expected[~found.failed])


# Inputs.


@pytest.mark.parametrize("method", METHODS)
def test_float32_and_float64_tensors_are_read_in_place_and_left_alone(method):
    for dtype in (torch.float32, torch.float64):
        tensor = torch.from_numpy(batch(3, 16)).to(dtype)
        before = tensor.clone()
        assert kernel._as_array(tensor).ctypes.data == tensor.data_ptr()
        singular_values(tensor, method=method)
        assert torch.equal(tensor, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_is_widened_not_computed_in(method, dtype):
    low = torch.from_numpy(batch(3, 16)).to(dtype)
    assert torch.equal(singular_values(low, method=method).values, singular_values(low.double(), method=method).values)


@pytest.mark.parametrize("method", METHODS)
def test_arrays_tensors_views_and_gradients_give_the_same_bits(method):
    stack = batch(4, 18)
    expected = singular_values(stack, method=method).values
    stack.flags.writeable = False
    strided = np.repeat(np.repeat(stack, 2, axis=0), 2, axis=2)[::2, :, ::2]
    leaf = torch.tensor(stack, requires_grad=True)
    for same in (stack, strided, leaf, torch.tensor(stack).mT.contiguous().mT):
        assert torch.equal(singular_values(same, method=method).values, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,), (2, 0)])
def test_leading_axes_are_kept(method, leading):
    found = singular_values(torch.ones(*leading, 5, 3), method=method)
    assert found.values.shape == (*leading, 3)
    assert found.failed.shape == leading
    assert (found.values.dtype, found.failed.dtype) == (torch.float64, torch.bool)
    assert (found.method, found.backend) == (method, "numpy")


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 3, 0)])
def test_matrices_without_rows_or_columns_are_refused(shape):
    with pytest.raises(ValueError, match=r"matrices must have at least one row and one column .* got \("):
        singular_values(np.zeros(shape), method="svd")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_matrices_that_are_not_real_floating_point_are_refused(dtype):
    for wrong in (torch.ones(2, 2).to(dtype), torch.ones(2, 2).to(dtype).numpy()):
        with pytest.raises(TypeError, match=r"matrices must be real floating point, got .*\. Convert them to float64"):
            singular_values(wrong, method="svd")


def test_a_list_is_refused():
    with pytest.raises(TypeError, match=r"matrices must be a torch tensor or a NumPy array, got 'list'\. Stack"):
        singular_values([[1.0]], method="svd")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method must be one of \('gram', 'svd'\), got 'qr'\. Choose"):
        singular_values(np.eye(2), method="qr")


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_below_one_are_refused(workers):
    with pytest.raises(ValueError, match=rf"workers must be at least 1, got {workers}\. Omit"):
        singular_values(np.eye(2), method="svd", workers=workers)


# CUDA.


@pytest.mark.parametrize("shape", [(24, 24), (30, 12), (12, 30)])
def test_grams_of_the_device_path_are_those_of_the_cpu_path(shape):
    stack = np.stack([matrices.gaussian(*shape, seed=seed) * scale for seed, scale in enumerate((1, 1e-160, 1e200))])
    grams, exponents, finite = kernel._device_grams(torch.from_numpy(stack))
    for index, matrix in enumerate(stack):
        exponent = kernel._exponent(matrix)
        expected = kernel._gram(matrix, exponent)
        assert int(exponents[index]) == exponent
        np.testing.assert_allclose(grams[index].numpy(), expected, rtol=0, atol=30 * EPS * expected.max())
    assert finite.tolist() == [True] * 3


@pytest.mark.parametrize(("threshold", "backend"), [(1, "cuda"), (99, "cuda gram, numpy eigenvalues")])
def test_the_device_path_agrees_with_the_cpu_path_whichever_side_solves(threshold, backend, monkeypatch):
    monkeypatch.setattr(kernel, "DEVICE_EIGENVALUES_FROM", threshold)
    stack = torch.from_numpy(batch(6, 32)).reshape(2, 3, 32, 32)
    stack[1, 2, 0, 0] = torch.inf
    found = kernel._on_cuda(stack, 2)  # the same torch calls on a CPU tensor
    expected = singular_values(stack, method="gram")
    assert (found.method, found.backend) == ("gram", backend)
    assert torch.equal(found.failed, expected.failed)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=FLOOR["gram"](32) * 2, equal_nan=True)


def test_a_matrix_that_does_not_converge_on_the_device_fails_alone(monkeypatch):
    original = torch.linalg.eigvalsh

    def refuses_zero(gram):
        if not bool(gram.any()):
            raise torch.linalg.LinAlgError("did not converge")
        return original(gram)

    monkeypatch.setattr(kernel, "DEVICE_EIGENVALUES_FROM", 1)
    monkeypatch.setattr(torch.linalg, "eigvalsh", refuses_zero)
    stack = torch.from_numpy(batch(3, 8))
    stack[1] = 0.0
    found = kernel._on_cuda(stack, 1)
    assert found.failed.tolist() == [False, True, False]
    assert found.values.isnan().all(dim=-1).tolist() == [False, True, False]


@on_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", [1, 4096])
def test_a_cuda_tensor_has_the_values_of_its_copy_on_the_cpu(method, threshold, monkeypatch):
    monkeypatch.setattr(kernel, "DEVICE_EIGENVALUES_FROM", threshold)
    stack = torch.from_numpy(batch(8, 96))
    found = singular_values(stack.cuda(), method=method)
    expected = singular_values(stack, method=method).values
    assert found.backend == {"svd": "numpy"}.get(method, "cuda" if threshold == 1 else "cuda gram, numpy eigenvalues")
    torch.testing.assert_close(found.values, expected, rtol=0, atol=FLOOR[method](96) * 2)
    assert not bool(found.failed.any())
