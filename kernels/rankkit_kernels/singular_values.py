"""Exact singular values of many matrices at once, by two named methods, in float64.

`gram` takes the eigenvalues of A^T A (or A A^T, whichever is smaller): about half the time of an SVD, and blind below
sqrt(n eps) sigma_1. `svd` is LAPACK's SVD without vectors: n eps sigma_1. Both reach LAPACK through NumPy, which lets
go of the interpreter lock (SciPy's wrappers hold it), so a pool of threads works on chunks of matrices with BLAS at
one thread each. One matrix is always computed alone: its values do not depend on its neighbours, on the chunks or on
the number of workers, to the last bit. (Where threadpoolctl cannot pin the BLAS, as with Accelerate on macOS, the
last bits may vary.)

Gram's error depends on the order of the columns. With the columns sorted by falling norm the matrix handed to the
tridiagonal reduction is graded from its large end down, and small eigenvalues survive. Measured at n = 512, in units
of sigma_1: backward attention 1.1e-8 unsorted, 4e-10 sorted; a hard sink at column n/3 2.9e-8 and 2e-16; A A^T
instead of A^T A on causal attention 1.2e-8, sorted or not, so square matrices take A^T A.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

__all__ = ["Method", "SingularValues", "singular_values"]

Method: TypeAlias = Literal["gram", "svd"]
Backend: TypeAlias = Literal["numpy", "cuda", "cuda gram, numpy eigenvalues"]
Array: TypeAlias = NDArray[Any]
Solution: TypeAlias = tuple[NDArray[np.float64], NDArray[np.bool_]]

TASK_SECONDS: Final = 0.02  # a task shorter than this gains nothing from a second thread (measured at n <= 256)
COST: Final[dict[Method, tuple[float, float]]] = {"gram": (1.0e-10, 1.9e-8), "svd": (2.2e-10, 3.0e-8)}
"""Seconds per n^3 and per n^2 of one matrix on one core: fitted within 30% at n = 64 to 1024; only sizes the tasks."""
SAFE_EXPONENT: Final = 400  # entries up to 2^400 have squares and sums of squares well inside float64
DEVICE_EIGENVALUES_FROM: Final = 2048
"""Gram matrices of at least this size keep their eigenvalue problem on the GPU, smaller ones go to the CPU pool.

A stated rule, not a measured optimum: cuSOLVER solves a batch one matrix after the other and has open reports of 30 to
130 times slowdowns below this size (pytorch#174674, #183806), while the copy of an n x n matrix costs microseconds.
"""

_BLAS_LOCK = threading.Lock()  # guards the count of callers below
_BLAS_CALLERS: list[object] = []
"""Callers inside the kernel now. The BLAS thread count belongs to the process, so the first sets it and the last
restores it: callers may overlap without undoing each other's limit."""
_LIMITS: list[Any] = []
"""The limit in force, while there are callers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SingularValues:
    """Singular values of a batch of matrices and how they were made."""

    values: Tensor
    """"... component", float64 on the CPU, descending, at least 0; nan throughout a matrix that failed."""
    failed: Tensor
    """"...", bool on the CPU: the matrix is not finite, or LAPACK did not converge on it."""
    method: Method
    """`gram` or `svd`."""
    backend: Backend
    """Where the work was done: `numpy`, `cuda`, or `cuda gram, numpy eigenvalues`."""


def singular_values(matrices: Tensor | Array, /, *, method: Method, workers: int | None = None) -> SingularValues:
    """All singular values of every matrix, computed in float64.

    Args:
        matrices: "... query key", a floating-point tensor on any device or NumPy array; float32 and float64 on the CPU
            are read in place. The leading axes may be absent or empty.
        method: `gram`, error up to sqrt(n eps) sigma_1 with n = max(query, key); `svd`, up to n eps sigma_1.
        workers: threads of the pool on the CPU, at least 1; the cores available to this process by default.

    Returns:
        min(query, key) values per matrix. A CUDA tensor with `gram` is multiplied on its device, and
        `DEVICE_EIGENVALUES_FROM` says where the eigenvalues are found; with `svd` it is copied to the CPU.

    Raises:
        TypeError: matrices of a type or dtype that is not real floating point.
        ValueError: fewer than two axes, a side of length 0, an unknown method, or workers below 1.
    """
    _check(matrices, method, workers)
    workers = _available_cores() if workers is None else workers
    if isinstance(matrices, Tensor) and matrices.is_cuda and method == "gram":
        return _on_cuda(matrices.detach(), workers)
    array = _as_array(matrices)
    return _gather(_in_parallel(_SOLVERS[method], array, COST[method], workers), array.shape[:-2], method, "numpy")


def _check(matrices: object, method: object, workers: int | None) -> None:
    if isinstance(matrices, Tensor):
        real = matrices.is_floating_point()
    elif isinstance(matrices, np.ndarray):
        real = np.issubdtype(matrices.dtype, np.floating)
    else:
        raise TypeError(
            f"matrices must be a torch tensor or a NumPy array, got {type(matrices).__name__!r}. "
            "Stack the matrices along a leading axis."
        )
    if not real:
        raise TypeError(f"matrices must be real floating point, got {matrices.dtype!r}. Convert them to float64.")
    shape = tuple(matrices.shape)
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(
            f"matrices must have at least one row and one column on their last two axes, got {shape!r}. "
            "Pass an array of shape (..., query, key)."
        )
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}. Choose 'gram' or 'svd'.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers!r}. Omit it to use every available core.")


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # absent on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _as_array(matrices: Tensor | Array) -> Array:
    """The matrices in host memory, sharing it where NumPy knows the dtype."""
    if not isinstance(matrices, Tensor):
        return matrices
    host = matrices.detach().cpu()
    if host.dtype not in (
        torch.float32,
        torch.float64,
    ):  # NumPy has no bfloat16; the smaller formats are exact in float32
        host = host.to(torch.float32)
    return host.numpy()


def _gather(solution: Solution, leading: tuple[int, ...], method: Method, backend: Backend) -> SingularValues:
    values, failed = solution
    return SingularValues(
        values=torch.from_numpy(values.reshape(*leading, values.shape[-1])),
        failed=torch.from_numpy(failed.reshape(leading)),
        method=method,
        backend=backend,
    )


# The pool.


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")  # finding the libraries takes milliseconds: once per process


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    caller = object()
    with _BLAS_LOCK:
        if not _BLAS_CALLERS:
            with _blas_obeys_this_thread():
                _LIMITS.append(_blas().limit(limits=1))
        _BLAS_CALLERS.append(caller)
    try:
        yield
    finally:
        with _BLAS_LOCK:
            _BLAS_CALLERS.remove(caller)
            if not _BLAS_CALLERS:
                with _blas_obeys_this_thread():
                    _LIMITS.pop().restore_original_limits()


@contextmanager
def _blas_obeys_this_thread() -> Iterator[None]:
    """Set limits from any thread: threadpoolctl 3.8 obeys one thread and ignores every other in silence."""
    forget = [getattr(library, "clear_controlling_thread", None) for library in _blas().lib_controllers]
    for clear in filter(None, forget):
        clear(force=True)
    try:
        yield
    finally:
        for clear in filter(None, forget):
            clear(force=True)


def _in_parallel(solve: Callable[[Array], Solution], array: Array, cost: tuple[float, float], workers: int) -> Solution:
    """Solve "... query key" in chunks on a pool of threads, and join the parts in their order."""
    stack = rearrange(array, "... query key -> (...) query key")
    small, large = sorted(stack.shape[1:])
    seconds = small * large * (cost[0] * small + cost[1])
    size = max(1, math.ceil(TASK_SECONDS / seconds))
    chunks = [stack[start : start + size] for start in range(0, max(1, len(stack)), size)]
    with _one_blas_thread():
        if min(workers, len(chunks)) == 1:
            parts = [solve(chunk) for chunk in chunks]
        else:
            with ThreadPoolExecutor(min(workers, len(chunks)), "singular-values") as pool:
                parts = list(pool.map(solve, chunks))
    return np.concatenate([values for values, _ in parts]), np.concatenate([failed for _, failed in parts])


# What one worker does with one chunk, "matrix query key".


def _solve_svd(chunk: Array) -> Solution:
    matrices = np.asarray(chunk, dtype=np.float64)
    values, converged = _each(lambda stack: np.linalg.svd(stack, compute_uv=False), matrices, _finite(matrices))
    return values, ~converged


def _solve_gram(chunk: Array) -> Solution:
    size = min(chunk.shape[1:])
    grams = np.zeros((len(chunk), size, size))
    exponents = np.zeros(len(chunk), dtype=np.int64)
    finite = np.zeros(len(chunk), dtype=np.bool_)
    for index, matrix in enumerate(chunk):
        exponent = _exponent(matrix)
        if exponent is not None:
            finite[index], exponents[index] = True, exponent
            grams[index] = _gram(matrix, exponent)
    eigenvalues, converged = _each(np.linalg.eigvalsh, grams, finite)
    return _roots(eigenvalues, exponents), ~converged


def _solve_eigenvalues(grams: Array) -> Solution:
    eigenvalues, converged = _each(np.linalg.eigvalsh, grams, _finite(grams))
    return eigenvalues, ~converged


def _finite(stack: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(stack).all(axis=(1, 2)))


def _exponent(matrix: Array) -> int | None:
    """The power of two to divide by before squaring, usually 0; None where an entry is not finite."""
    largest = float(max(matrix.max(), -matrix.min()))
    if not math.isfinite(largest):
        return None
    exponent = math.frexp(largest)[1]
    return exponent if abs(exponent) > SAFE_EXPONENT else 0


def _gram(matrix: Array, exponent: int) -> NDArray[np.float64]:
    """Product of the matrix with its transpose on the smaller side, graded by falling norm."""
    tall = np.asarray(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T, dtype=np.float64)
    if exponent:
        tall = np.ldexp(tall, -exponent)
    order = np.argsort(-np.einsum("ij,ij->j", tall, tall), kind="stable")
    graded = tall.take(order, axis=1)
    return graded.T @ graded  # one buffer and its transpose: NumPy takes syrk, half the work and exactly symmetric


def _roots(eigenvalues: NDArray[np.float64], exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Singular values, descending, from the ascending eigenvalues of scaled Gram matrices."""
    roots = np.sqrt(np.maximum(eigenvalues[:, ::-1], 0))  # rounding makes some negative; maximum keeps nan
    return np.ldexp(roots, exponents[:, None])


def _each(
    routine: Callable[[Array], Array], matrices: NDArray[np.float64], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Apply a LAPACK routine to the usable matrices; one that does not converge takes no other with it.

    NumPy runs the routine matrix by matrix, so the bits are the same alone or in a batch.
    """
    values = np.full((len(matrices), min(matrices.shape[1:])), np.nan)
    converged = usable.copy()
    try:
        values[usable] = routine(matrices if usable.all() else matrices[usable])
    except np.linalg.LinAlgError:
        for index in np.flatnonzero(usable):
            try:
                values[index] = routine(matrices[index])
            except np.linalg.LinAlgError:
                converged[index] = False
    return values, converged


_SOLVERS: Final[dict[Method, Callable[[Array], Solution]]] = {"gram": _solve_gram, "svd": _solve_svd}


# CUDA: the product on the device, the eigenvalues where the rule says.


def _on_cuda(matrices: Tensor, workers: int) -> SingularValues:
    grams, exponents, finite = _device_grams(matrices)
    if grams.shape[-1] >= DEVICE_EIGENVALUES_FROM:
        eigenvalues, converged = _device_eigenvalues(grams)
        backend: Backend = "cuda"
    else:
        eigenvalues, failed = _in_parallel(_solve_eigenvalues, grams.cpu().numpy(), COST["gram"], workers)
        converged = ~failed
        backend = "cuda gram, numpy eigenvalues"
    converged &= finite.cpu().numpy()
    values = _roots(eigenvalues, exponents.cpu().numpy())
    values[~converged] = np.nan
    return _gather((values, ~converged), tuple(matrices.shape[:-2]), "gram", backend)


def _device_grams(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `_gram` and `_exponent` do, for a batch in torch: Gram matrices, exponents, and which are finite."""
    stack = rearrange(matrices, "... query key -> (...) query key").to(torch.float64)
    tall = stack if stack.shape[1] >= stack.shape[2] else stack.mT
    finite = tall.isfinite().all(dim=-1).all(dim=-1)
    tall = torch.where(rearrange(finite, "matrix -> matrix 1 1"), tall, 0.0)
    exponents = torch.frexp(tall.abs().amax(dim=(-2, -1))).exponent
    exponents = torch.where(exponents.abs() > SAFE_EXPONENT, exponents, 0)
    tall = torch.ldexp(tall, -rearrange(exponents, "matrix -> matrix 1 1"))
    order = tall.square().sum(dim=-2, keepdim=True).argsort(dim=-1, descending=True, stable=True)
    graded = torch.take_along_dim(tall, order, dim=-1)
    return graded.mT @ graded, exponents.to(torch.int64), finite


def _device_eigenvalues(grams: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Ascending eigenvalues on the device, one matrix after the other as cuSOLVER does, so that each may fail alone."""
    values = np.full(grams.shape[:-1], np.nan)
    converged = np.ones(len(grams), dtype=np.bool_)
    for index, gram in enumerate(grams):
        try:
            values[index] = torch.linalg.eigvalsh(gram).cpu().numpy()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            converged[index] = False
    return values, converged
