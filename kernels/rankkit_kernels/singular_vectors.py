"""Right singular vectors of many matrices at once, in float64.

They are the eigenvectors of A^T A: half the time of an SVD with vectors (n = 256 / 512 / 1024 on one core: 5.4 / 34 / 196
against 11.5 / 78 / 437 ms). A cut to the k leading triplets, A V_k V_k^T, misses the best rank-k approximation by what
rounding does to A^T A, n eps sigma_1^2 of energy: 1e-10 sigma_1 in norm, measured on 80 attention matrices at n = 256,
causal and not, with sinks, trained and random. Where sigma_k is far from sigma_{k+1} the entries agree with an SVD's to
1e-12; between values that are equal, or that both lie under sqrt(n eps) sigma_1, any choice of vectors is as good.

LAPACK runs on the CPU in a pool of threads, also for a CUDA tensor: a batch is solved one matrix after the other on
either side, and moving an n x n matrix costs microseconds.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from rankkit_kernels.singular_values import Array, Solution, _available_cores, _check, _exponent, _in_parallel

__all__ = ["right_singular_vectors"]

COST: Final = (2.0e-10, 3.0e-8)  # seconds per n^3 and per n^2 on one core, as in singular_values; sizes the tasks


def right_singular_vectors(matrices: Tensor, /, *, workers: int | None = None) -> tuple[Tensor, Tensor]:
    """Orthonormal eigenvectors of A^T A for every matrix, by falling eigenvalue.

    Args:
        matrices: "... query key", real floating point on any device; computed in float64.
        workers: threads of the pool, at least 1; the cores available to this process by default. One matrix is always
            computed alone, so the vectors do not depend on it.

    Returns:
        "... key component", float64 on the device of the matrices, as many components as keys; and "...", bool on the
        CPU: matrices that are not finite or on which LAPACK did not converge, whose vectors are nan.

    Raises:
        TypeError: matrices of a type or dtype that is not real floating point.
        ValueError: fewer than two axes, a side of length 0, or workers below 1.
    """
    _check(matrices, "gram", workers)
    stack = rearrange(matrices.detach(), "... query key -> (...) query key").to("cpu", torch.float64)
    vectors, failed = _in_parallel(_solve, stack.numpy(), COST, _available_cores() if workers is None else workers)
    leading, keys = tuple(matrices.shape[:-2]), matrices.shape[-1]
    return (
        torch.from_numpy(vectors.reshape(*leading, keys, keys)).to(matrices.device),
        torch.from_numpy(failed.reshape(leading)),
    )


def _solve(chunk: Array) -> Solution:
    """What one worker does with "matrix query key"."""
    keys = chunk.shape[2]
    vectors = np.full((len(chunk), keys, keys), np.nan)
    failed = np.ones(len(chunk), dtype=np.bool_)
    for index, matrix in enumerate(chunk):
        exponent = _exponent(matrix)
        if exponent is None:
            continue
        scaled: NDArray[np.float64] = np.ldexp(matrix, -exponent) if exponent else matrix
        try:
            vectors[index] = np.linalg.eigh(scaled.T @ scaled).eigenvectors[:, ::-1]
        except np.linalg.LinAlgError:
            continue
        failed[index] = False
    return vectors, failed
