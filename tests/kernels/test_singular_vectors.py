"""Right singular vectors against NumPy's SVD, alone and in company."""

from __future__ import annotations

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.masks import MaskKind
from rankkit_kernels.singular_vectors import right_singular_vectors

KINDS = [kind for kind in MaskKind if not kind.is_mixed]


def tensor(*stack: matrices.Matrix) -> torch.Tensor:
    return torch.from_numpy(np.stack(stack))


def assert_decomposes(matrix: matrices.Matrix, vectors: torch.Tensor) -> None:
    """V is orthogonal, and A V has orthogonal columns whose norms are the singular values in falling order."""
    right, scale = vectors.numpy(), np.abs(matrix).max() or 1.0
    np.testing.assert_allclose(right.T @ right, np.eye(right.shape[1]), rtol=0, atol=1e-13)
    left = (matrix / scale) @ right
    expected = np.zeros(right.shape[1])
    values = np.linalg.svd(matrix / scale, compute_uv=False)
    expected[: values.size] = values
    largest = max(values[0], 1.0)
    np.testing.assert_allclose(left.T @ left, np.diag(expected**2), rtol=0, atol=1e-13 * largest**2 * len(right))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 99), st.sampled_from([-300, -10, 0, 10, 300]))
def test_the_gram_matrix_is_diagonal_in_the_vectors(rows: int, columns: int, seed: int, exponent: int) -> None:
    matrix = matrices.gaussian(rows, columns, seed=seed)
    vectors, failed = right_singular_vectors(tensor(matrix * 2.0**exponent))
    assert not failed.any()
    assert_decomposes(matrix, vectors[0])


@pytest.mark.parametrize(
    "matrix", [matrices.zero(6, 6), matrices.one_by_one(-3.0), matrices.rank_one(7, 4), matrices.permutation(5)]
)
def test_degenerate_matrices_have_orthonormal_vectors_too(matrix: matrices.Matrix) -> None:
    vectors, failed = right_singular_vectors(tensor(matrix))
    assert not failed.any()
    assert_decomposes(matrix, vectors[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_to_k_triplets_is_as_near_as_the_best_one(kind: MaskKind) -> None:
    matrix = matrices.attention(kind, 48, std=2.0)
    vectors, _ = right_singular_vectors(tensor(matrix))
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, 49):
        kept = vectors[0, :, :rank].numpy()
        distance = np.linalg.norm(matrix - matrix @ kept @ kept.T)
        assert distance <= np.linalg.norm(values[rank:]) + 1e-7 * values[0]  # sqrt(n eps) for what lies under it


def test_one_matrix_has_the_same_bits_alone_in_a_batch_and_with_any_number_of_workers() -> None:
    stack = tensor(*(matrices.attention(kind, 40, seed=seed) for kind in KINDS for seed in range(3)))
    together, _ = right_singular_vectors(stack, workers=1)
    shared, _ = right_singular_vectors(stack.reshape(3, 4, 40, 40), workers=3)
    assert torch.equal(shared.reshape(together.shape), together)
    for matrix, vectors in zip(stack, together, strict=True):
        assert torch.equal(right_singular_vectors(matrix)[0], vectors)


def test_a_matrix_that_is_not_finite_is_flagged_and_leaves_its_neighbours_alone() -> None:
    good = matrices.attention(MaskKind.CAUSAL, 9)
    bad = good.copy()
    bad[3, 3] = np.nan
    vectors, failed = right_singular_vectors(tensor(good, bad, np.where(good > 0.5, np.inf, good)))
    assert failed.tolist() == [False, True, True]
    assert torch.equal(vectors[0], right_singular_vectors(tensor(good))[0][0])
    assert vectors[1:].isnan().all()


def test_a_matrix_on_which_lapack_gives_up_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise np.linalg.LinAlgError

    monkeypatch.setattr(np.linalg, "eigh", refuse)
    vectors, failed = right_singular_vectors(tensor(matrices.permutation(4)))
    assert failed.all()
    assert vectors.isnan().all()


def test_what_is_no_stack_of_real_matrices_is_refused() -> None:
    with pytest.raises(TypeError, match=r"matrices must be real floating point, got torch\.int64"):
        right_singular_vectors(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"matrices must have at least one row and one column"):
        right_singular_vectors(torch.ones(3))
    with pytest.raises(ValueError, match=r"workers must be at least 1, got 0"):
        right_singular_vectors(torch.ones(3, 3), workers=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_cuda_tensor_has_the_bits_of_the_cpu_and_stays_on_its_device() -> None:
    stack = tensor(*(matrices.attention(kind, 32) for kind in KINDS))
    on_device, failed = right_singular_vectors(stack.cuda())
    assert on_device.is_cuda
    assert not failed.any()
    assert torch.equal(on_device.cpu(), right_singular_vectors(stack)[0])
