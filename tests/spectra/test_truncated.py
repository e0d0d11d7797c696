"""Attention cut to k triplets against NumPy's SVD, and what re-masking does to it."""

from __future__ import annotations

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.errors import ConfigurationError, NonFiniteLossError
from rankkit.masks import MaskKind
from rankkit.operators import AttentionOperator
from rankkit.spectra.truncated import Triplets, cut_product, singular_triplets

N = 20
KINDS = [kind for kind in MaskKind if not kind.is_mixed]


def operator(kind: MaskKind, *, sequences: int = 2, heads: int = 3, n: int = N, std: float = 1.5) -> AttentionOperator:
    draw = torch.Generator().manual_seed(n)
    query, key = (std * torch.randn(2, sequences, heads, n, 8, generator=draw)).unbind(0)
    return AttentionOperator(query=query, key=key, mask=kind.at(n // 2), scale=8**-0.5)


def by_svd(matrix: matrices.Matrix, rank: int) -> matrices.Matrix:
    left, values, right = np.linalg.svd(matrix)
    return np.asarray((left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(2, 24), st.data())
def test_cuts_are_those_of_an_svd_masked_or_not(kind: MaskKind, n: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, n))
    attention = operator(kind, n=n)
    triplets = singular_triplets(attention)
    expected = by_svd(attention.dense().numpy(), rank)
    allowed = attention.allowed().numpy()
    # Far from sqrt(eps): values closer together than 1e-7 may be told apart in another order.
    np.testing.assert_allclose(triplets.cut(rank, remask=False).numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(triplets.cut(rank).numpy(), np.where(allowed, expected, 0), rtol=0, atol=1e-6)
    assert not triplets.cut(rank).numpy()[..., ~allowed].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remask", [True, False])
def test_all_triplets_give_the_matrix_back(kind: MaskKind, remask: bool) -> None:
    attention = operator(kind)
    found = singular_triplets(attention).cut(N, remask=remask)
    torch.testing.assert_close(found, attention.dense(), rtol=0, atol=1e-14)


def test_triplets_have_falling_values_and_orthonormal_right_vectors() -> None:
    triplets = singular_triplets(operator(MaskKind.PREFIX))
    values = triplets.left.norm(dim=-2)
    assert (values.diff(dim=-1) <= 1e-12).all()
    eye = torch.eye(N, dtype=torch.float64).expand(2, 3, N, N)
    torch.testing.assert_close(triplets.right.mT @ triplets.right, eye, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 5, N])
def test_effects_are_the_norms_written_out(kind: MaskKind, rank: int) -> None:
    attention = operator(kind)
    matrix, triplets = attention.dense(), singular_triplets(attention)
    plain, remasked, hidden = triplets.cut(rank, remask=False), triplets.cut(rank), ~attention.allowed()

    def energy(stack: torch.Tensor) -> torch.Tensor:
        return stack.square().sum(dim=(-2, -1))

    effect = triplets.effect(rank)
    torch.testing.assert_close(effect.removed, energy(plain * hidden) / energy(plain), rtol=1e-10, atol=1e-15)
    for found, cut in ((effect.error, remasked), (effect.error_plain, plain)):
        expected = (energy(matrix - cut) / energy(matrix)).sqrt()
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=2e-8)  # a root of rounding: sqrt(eps)


@pytest.mark.parametrize("kind", KINDS)
def test_remasking_takes_nothing_where_all_is_visible_and_brings_a_triangular_matrix_nearer(kind: MaskKind) -> None:
    effect = singular_triplets(operator(kind)).effect(4)
    if kind is MaskKind.BIDIRECTIONAL:
        assert not effect.removed.any()
        assert torch.equal(effect.error, effect.error_plain)
    else:
        assert (effect.removed > 1e-4).all()
        assert (effect.error < effect.error_plain).all()


def test_a_remasked_row_mixes_in_no_later_value_and_a_plain_one_does() -> None:
    triplets = singular_triplets(operator(MaskKind.CAUSAL))
    value = torch.randn(2, 3, N, 8)
    other = torch.cat((value[..., :12, :], torch.randn(2, 3, N - 12, 8)), dim=-2)
    for remask in (True, False):
        before, after = (triplets.product(given, 3, remask=remask)[..., :12, :] for given in (value, other))
        assert torch.equal(before, after) is remask


def test_the_weights_of_a_remasked_row_still_depend_on_later_rows_through_the_singular_vectors() -> None:
    attention = operator(MaskKind.CAUSAL)
    before = singular_triplets(attention).cut(3)
    attention.query[..., 15:, :] *= -1
    change = (singular_triplets(attention).cut(3) - before)[..., :15, :].abs()
    assert torch.equal(attention.dense()[..., :15, :], operator(MaskKind.CAUSAL).dense()[..., :15, :])
    assert change.max() > 1e-3  # were this 0, the docstring would promise too little


def test_a_remasked_cut_has_a_higher_rank_than_its_k() -> None:
    cut = singular_triplets(operator(MaskKind.CAUSAL, std=0.1)).cut(1)[0, 0]
    assert torch.linalg.matrix_rank(cut) == N  # the lower triangle of an outer product without zeros
    assert torch.linalg.matrix_rank(singular_triplets(operator(MaskKind.CAUSAL)).cut(1, remask=False)[0, 0]) == 1


@pytest.mark.parametrize("remask", [True, False])
def test_products_are_those_of_the_cut_matrix_whatever_the_memory_and_the_workers(remask: bool) -> None:
    attention = operator(MaskKind.PREFIX, sequences=5)
    value = torch.randn(5, 3, N, 8)
    triplets = singular_triplets(attention)
    expected = triplets.cut(6, remask=remask) @ value.double()
    torch.testing.assert_close(triplets.product(value, 6, remask=remask), expected, rtol=0, atol=1e-13)
    whole = cut_product(attention, value, rank=6, remask=remask)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-13)
    for budget, workers in ((1, 1), (6 * 8 * 3 * N * N * 2, 2)):
        parts = cut_product(attention, value, rank=6, remask=remask, memory_budget=budget, workers=workers)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-13)


def test_heads_are_chosen_on_the_leading_axes() -> None:
    triplets = singular_triplets(operator(MaskKind.CAUSAL))
    chosen = triplets[:, 1:2]
    assert isinstance(chosen, Triplets)
    assert torch.equal(chosen.cut(3), triplets.cut(3)[:, 1:2])


@pytest.mark.parametrize("rank", [0, -1, N + 1, True, 2.0])
def test_ranks_that_no_cut_has_are_refused(rank: int) -> None:
    triplets = singular_triplets(operator(MaskKind.CAUSAL))
    with pytest.raises(ConfigurationError, match=rf"rank must be a whole number from 1 to {N} \(keys\), got {rank}\."):
        triplets.cut(rank)


def test_attention_that_is_not_finite_is_refused() -> None:
    attention = operator(MaskKind.CAUSAL)
    attention.query[1, 2, 5] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"attention must be finite to be cut, got 1 of 6 matrices .* earlier"):
        singular_triplets(attention)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_cut_on_cuda_is_that_of_the_cpu() -> None:
    attention = operator(MaskKind.PREFIX)
    there = AttentionOperator(
        query=attention.query.cuda(), key=attention.key.cuda(), mask=attention.mask, scale=attention.scale
    )
    found = singular_triplets(there)
    assert found.left.is_cuda
    torch.testing.assert_close(found.cut(5).cpu(), singular_triplets(attention).cut(5), rtol=0, atol=1e-9)
