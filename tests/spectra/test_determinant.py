"""Log-determinants against eighty digits, their bounds, and what has none."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import multiprecision
import numpy as np
import pytest
import torch

from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Padded, Prefix, PrefixTransposed
from rankkit.operators import AttentionOperator
from rankkit.spectra.determinant import UNRESOLVED_FROM, log_abs_det, moved_log_abs_det

N, FEATURES = 24, 6
TRIANGULAR = [Causal(), Backward(), Prefix(0), Prefix(1)]
MASKS = [*TRIANGULAR, Prefix(9), Prefix(N), PrefixTransposed(7), Bidirectional(), Padded(Prefix(4), N)]


def operator(mask: Mask, *leading: int, n: int = N, std: float = 1.5, seed: int = 0) -> AttentionOperator:
    shape = (*leading, n, FEATURES)
    query, key = torch.from_numpy(std * np.random.default_rng(seed).standard_normal((2, *shape)))
    return AttentionOperator(query=query, key=key, mask=mask, scale=0.5)


def exact(op: AttentionOperator, digits: int = 80) -> float:
    """Of the only matrix, all of it eliminated."""
    query, key, allowed = op.query.double().numpy(), op.key.double().numpy(), op.allowed().numpy()
    with mpmath.workdps(digits):
        return float(multiprecision.log_abs_det(multiprecision.attention(query, key, allowed, op.scale)))


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("std", [0.1, 0.7, 1.5])
def test_log_abs_det_agrees_with_eighty_digits_within_its_bound(mask: Mask, std: float) -> None:
    op = operator(mask, std=std)
    found, expected = log_abs_det(op), exact(op)
    assert float(found.bound) < UNRESOLVED_FROM
    assert abs(float(found.value) - expected) <= float(found.bound)


def test_log_abs_det_is_right_where_numpy_is_not() -> None:
    op = operator(Prefix(32), n=64)
    matrix = op.dense().numpy()
    found, expected = float(log_abs_det(op).value), exact(op)
    assert found == pytest.approx(expected, rel=1e-13)
    assert abs(np.linalg.slogdet(matrix)[1] - expected) > 1
    assert abs(np.log(np.linalg.svd(matrix, compute_uv=False)).sum() - expected) > 1


@pytest.mark.parametrize("mask", [Causal(), Prefix(9), Bidirectional()], ids=str)
def test_the_bound_knows_of_large_logits_that_cancel(mask: Mask) -> None:
    """All logits raised by 1e8: the matrix is what it was, its entries are right to 1e-8 only."""
    op = operator(mask)
    shifted = AttentionOperator(
        query=torch.cat([op.query, torch.full((N, 1), 2e4, dtype=torch.float64)], dim=1),
        key=torch.cat([op.key, torch.full((N, 1), 1e4, dtype=torch.float64)], dim=1),
        mask=mask,
        scale=0.5,
    )
    found, expected = log_abs_det(shifted), float(log_abs_det(op).value)
    error = abs(float(found.value) - expected)
    assert 1e-10 < error <= float(found.bound) < UNRESOLVED_FROM


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
def test_leading_axes_come_back(shape: tuple[int, ...]) -> None:
    op = operator(Prefix(9), *shape)
    found = log_abs_det(op)
    assert found.value.shape == found.bound.shape == shape
    for index in np.ndindex(shape):
        alone = AttentionOperator(query=op.query[index], key=op.key[index], mask=op.mask, scale=op.scale)
        assert float(found.value[index]) == pytest.approx(float(log_abs_det(alone).value), rel=1e-13)


def test_one_position_has_determinant_one() -> None:
    for mask in (Causal(), Prefix(1), Bidirectional()):
        assert float(log_abs_det(operator(mask, n=1)).value) == pytest.approx(0, abs=1e-15)


def test_half_precision_factors_are_taken_as_they_are() -> None:
    op = operator(Prefix(9))
    half = AttentionOperator(query=op.query.bfloat16(), key=op.key.bfloat16(), mask=op.mask, scale=op.scale)
    same = AttentionOperator(query=half.query.double(), key=half.key.double(), mask=op.mask, scale=op.scale)
    assert float(log_abs_det(half).value) == float(log_abs_det(same).value)


def test_the_triangular_part_never_forms_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("n x n")

    for name in ("dense", "block", "logits", "allowed"):
        monkeypatch.setattr(AttentionOperator, name, refuse)
    assert bool(log_abs_det(operator(Causal(), 2)).value.isfinite().all())


def test_only_the_block_of_the_other_rows_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, dense = [], AttentionOperator.dense

    def watched(op: AttentionOperator, *given: Any) -> Any:
        sizes.append(tuple(op.query.shape))
        return dense(op, *given)

    monkeypatch.setattr(AttentionOperator, "dense", watched)
    log_abs_det(operator(Prefix(9), 2))
    assert sizes == [(1, 9, FEATURES)] * 2


# What has no determinant, or none that float64 resolves.


def test_equal_queries_or_keys_in_the_block_make_it_singular_for_certain() -> None:
    for factor in ("query", "key"):
        op = operator(Prefix(9), 2)
        getattr(op, factor)[1, 3] = getattr(op, factor)[1, 7]
        found = log_abs_det(op)
        assert found.value.isneginf().tolist() == [False, True]
        assert float(found.bound[1]) == 0
    outside = operator(Prefix(9), 2)
    outside.query[1, 3] = outside.query[1, 12]  # a row of the suffix
    assert bool(log_abs_det(outside).value.isfinite().all())


@pytest.mark.parametrize("mask", [Prefix(2), Prefix(9), Bidirectional()], ids=str)
def test_uniform_attention_is_singular_for_certain(mask: Mask) -> None:
    op = operator(mask)
    for uniform in (
        AttentionOperator(query=torch.zeros_like(op.query), key=op.key, mask=mask, scale=0.5),
        AttentionOperator(query=op.query, key=op.key, mask=mask, scale=0.0),
    ):
        assert float(log_abs_det(uniform).value) == -math.inf


def test_padding_makes_a_matrix_singular() -> None:
    found = log_abs_det(operator(Padded(Causal(), N - 1), 3))
    assert found.value.isneginf().all()
    assert not found.bound.any()


def test_a_block_that_is_singular_to_working_precision_is_unresolved_and_keeps_its_bound() -> None:
    found = log_abs_det(operator(Bidirectional(), 2, std=0.005))  # nearly uniform: rank one and little else
    assert found.value.isnan().all()
    assert (found.bound > UNRESOLVED_FROM).all()
    almost = operator(Prefix(9))
    almost.query[3] = almost.query[7] * (1 + 1e-15)
    assert float(log_abs_det(almost).bound) > UNRESOLVED_FROM


def test_rectangular_attention_has_no_determinant() -> None:
    query, key = torch.randn(2, 5, 3), torch.randn(2, 7, 3)
    found = log_abs_det(AttentionOperator(query=query, key=key, mask=Cross(5, 7), scale=1.0))
    assert found.value.isnan().all()
    assert found.bound.isnan().all()


@pytest.mark.parametrize("mask", [Causal(), Prefix(9), Bidirectional()], ids=str)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_not_finite_have_no_determinant_alone_in_their_batch(mask: Mask, wrong: float) -> None:
    op = operator(mask, 2)
    op.key[1, 5, 2] = wrong
    found = log_abs_det(op)
    assert found.value.isnan().tolist() == [False, True]
    assert found.bound.isnan().tolist() == [False, True]


# How far it can have moved.


@pytest.mark.parametrize("mask", [Causal(), Prefix(9), PrefixTransposed(7), Bidirectional()], ids=str)
@pytest.mark.parametrize("eta", [1e-9, 1e-6, 1e-4])
def test_no_entrywise_change_moves_log_abs_det_by_more_than_its_error(mask: Mask, eta: float) -> None:
    op = operator(mask, n=10)
    matrix, bound = op.dense().numpy(), float(moved_log_abs_det(op, torch.tensor(eta, dtype=torch.float64)))
    value = np.linalg.slogdet(matrix)[1]
    random = np.random.default_rng(1)
    worst = np.sign(np.linalg.inv(matrix).T)
    signs = [worst, -worst, *random.choice([-1.0, 1.0], size=(50, 10, 10))]
    changes = [abs(np.linalg.slogdet(matrix * (1 + eta * sign))[1] - value) for sign in signs]
    assert max(changes) <= bound
    assert bound <= 1.5 * max(changes) + 1e-9


def test_a_change_that_can_make_the_block_singular_has_no_bound() -> None:
    op = operator(Prefix(9), 2)
    op.query[1, 3] = op.query[1, 7]
    assert moved_log_abs_det(op, torch.tensor([0.9, 1e-6])).isnan().all()
    assert bool(moved_log_abs_det(op, torch.tensor(1e-6))[0].isfinite())
