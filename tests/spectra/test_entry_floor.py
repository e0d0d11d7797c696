"""What a dtype leaves of a matrix that was handed over: every singular value within the floor, and the floor not far off."""

from __future__ import annotations

import matrices
import numpy as np
import pytest
import torch

from rankkit.errors import ConfigurationError
from rankkit.operators import DenseOperator
from rankkit.spectra import spectrum
from rankkit.spectra.floors import UNIT_ROUNDOFF, applied_floor, entry_floor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ["causal", "prefix", "bidirectional"]


def singular_values(matrix: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


def moved_and_floor(exact: np.ndarray, dtype: torch.dtype) -> tuple[float, float]:
    """How far storing an exact matrix moves a singular value, beyond what computing them does, and the floor."""
    stored = torch.from_numpy(exact).to(dtype)
    values = singular_values(stored)
    computing = max(exact.shape) * 2.0**-52 * values[0]
    moved = np.abs(values - np.linalg.svd(exact, compute_uv=False)).max() - computing
    return moved, float(entry_floor(stored, largest=torch.tensor(values[0])))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("std", [0.0, 0.1, 1.0, 4.0, 12.0])
def test_storing_attention_moves_no_singular_value_by_more_than_the_floor(
    kind: str, std: float, dtype: torch.dtype
) -> None:
    for seed in range(3):
        moved, floor = moved_and_floor(matrices.attention(kind, 96, std=std, seed=seed), dtype)
        assert moved < floor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_floor_of_attention_is_within_ten_times_of_what_storing_moves(dtype: torch.dtype) -> None:
    shares = []
    for kind in KINDS:
        for std in (1.0, 4.0, 12.0):
            moved, floor = moved_and_floor(matrices.attention(kind, 32, std=std), dtype)
            shares.append(moved / floor)
    assert max(shares) > 0.1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_floor_is_reached_where_all_entries_err_alike(dtype: torch.dtype) -> None:
    just_above = 1 + 0.98 * UNIT_ROUNDOFF[dtype]  # rounds down to 1 by almost the unit roundoff
    moved, floor = moved_and_floor(just_above * np.ones((40, 60)), dtype)
    assert 0.97 < moved / floor <= 1


def test_entries_below_the_normal_numbers_of_float16_are_bounded_too() -> None:
    moved, floor = moved_and_floor(np.full((40, 60), 1.49 * 2.0**-24), torch.float16)
    assert 0.9 < moved / floor <= 1
    moved, floor = moved_and_floor(np.full((40, 60), 0.49 * 2.0**-24), torch.float16)  # to zero, all of them
    assert 0.9 < moved / floor <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_signed_matrices_are_bounded_by_the_smaller_of_two_norms_of_their_absolute_values(dtype: torch.dtype) -> None:
    for exact in (
        matrices.gaussian(30, 50),
        matrices.attention("causal", 40) - matrices.attention("causal", 40, seed=1),
    ):
        moved, floor = moved_and_floor(exact, dtype)
        assert moved < floor
    roundoff = UNIT_ROUNDOFF[dtype]
    wide = torch.from_numpy(matrices.gaussian(30, 50)).to(dtype)
    assert float(entry_floor(wide, largest=torch.tensor(1.0))) == pytest.approx(
        roundoff * np.linalg.norm(wide.double().numpy()), rel=1e-3
    )
    diagonal = -torch.eye(100, dtype=dtype)
    assert float(entry_floor(diagonal, largest=torch.tensor(1.0))) == pytest.approx(roundoff, rel=0.01)


def test_every_matrix_of_a_batch_has_its_own_bound() -> None:
    batch = torch.stack([torch.ones(8, 8), -torch.eye(8), torch.full((8, 8), torch.nan)])
    floor = entry_floor(batch, largest=torch.tensor([8.0, 1.0, torch.nan]))
    np.testing.assert_allclose(floor, 2.0**-24 * np.array([8.0, 1.0, np.nan]), rtol=1e-12)


def test_a_coarser_dtype_than_the_tensors_own_can_be_named() -> None:
    matrix = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    one = torch.ones(())
    assert entry_floor(matrix, largest=one, dtype=torch.bfloat16) == entry_floor(matrix.bfloat16(), largest=one)
    assert entry_floor(matrix, largest=one, dtype=torch.bfloat16) > 60000 * entry_floor(matrix, largest=one)


def test_whole_numbers_are_held_exactly_and_unknown_dtypes_are_refused() -> None:
    assert entry_floor(-torch.ones(3, 3, dtype=torch.int64), largest=torch.ones(())) == 0
    assert entry_floor(torch.ones(3, 3, dtype=torch.bool), largest=torch.ones(())) == 0
    with pytest.raises(ConfigurationError, match=r"dtype must be one of torch\.float64.*got torch\.float8_e5m2"):
        entry_floor(torch.ones(3, 3), largest=torch.ones(()), dtype=torch.float8_e5m2)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_a_spectrum_reports_the_floor_of_its_own_dtype(dtype: torch.dtype) -> None:
    matrix = torch.from_numpy(matrices.attention("causal", 40)).to(dtype)
    found = spectrum(matrix, measures=("effective_rank",), method="svd")
    floor = entry_floor(matrix, largest=found.singular_values[0])
    assert found.floor_model == floor
    operator = DenseOperator(matrix=matrix)
    assert applied_floor(operator, largest=found.singular_values[0], probabilities=torch.bfloat16) == floor
    exact = singular_values(torch.from_numpy(matrices.attention("causal", 40)))
    assert np.abs(found.singular_values.numpy() - exact).max() <= float(floor + found.floor_arithmetic)
