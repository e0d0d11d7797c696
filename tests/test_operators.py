"""The lazy attention matrix against softmax written out."""

import numpy as np
import pytest
import torch

from rankkit.errors import ConfigurationError
from rankkit.masks import Backward, Bidirectional, Causal, Mask, Prefix
from rankkit.operators import AttentionOperator

N, FEATURES = 12, 4


def operator(mask: Mask, *leading: int, dtype: torch.dtype = torch.float32) -> AttentionOperator:
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.rand((*leading, N, FEATURES), generator=generator).to(dtype) * 4 - 2 for _ in range(2))
    return AttentionOperator(query=query, key=key, mask=mask, scale=0.5, labels={"layer": 1})


def written_out(op: AttentionOperator) -> np.ndarray:
    query, key = op.query.double().numpy(), op.key.double().numpy()
    matrix = np.zeros((*op.batch_shape, N, N))
    for index in np.ndindex(*op.batch_shape):
        for i in range(N):
            seen = [j for j in range(N) if bool(op.mask.allowed(N)[i, j])]
            weights = [np.exp(0.5 * float(query[index][i] @ key[index][j])) for j in seen]
            for j, weight in zip(seen, weights, strict=True):
                matrix[(*index, i, j)] = weight / sum(weights)
    return matrix


@pytest.mark.parametrize("mask", [Causal(), Prefix(0), Prefix(5), Prefix(N), Bidirectional(), Backward()])
def test_dense_equals_softmax_written_out(mask: Mask) -> None:
    op = operator(mask, 2, 3)
    dense = op.dense()
    assert dense.dtype == torch.float64
    np.testing.assert_allclose(dense.numpy(), written_out(op), rtol=1e-13, atol=1e-15)


def test_rows_sum_to_one_and_forbidden_entries_are_exactly_zero() -> None:
    dense = operator(Prefix(5), 2).dense()
    torch.testing.assert_close(dense.sum(-1), torch.ones(2, N, dtype=torch.float64), rtol=0, atol=1e-14)
    assert bool((dense[:, ~Prefix(5).allowed(N)] == 0).all())


def test_block_is_the_part_of_the_dense_matrix() -> None:
    op = operator(Prefix(5), 2)
    torch.testing.assert_close(op.block(slice(3, 9), slice(0, 7)), op.dense()[:, 3:9, 0:7], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("mask", "size"), [(Causal(), 5), (Prefix(5), 5), (Prefix(5), 8), (Bidirectional(), N)])
def test_leading_block_is_attention_of_the_first_positions_alone(mask: Mask, size: int) -> None:
    op = operator(mask, 2)
    torch.testing.assert_close(op.leading(size).dense(), op.dense()[:, :size, :size], rtol=0, atol=1e-15)
    torch.testing.assert_close(op.leading(size).dense().sum(-1), torch.ones(2, size, dtype=torch.float64))


def test_with_mask_keeps_factors_and_labels() -> None:
    op = operator(Causal(), 2)
    swapped = op.with_mask(Prefix(5))
    assert swapped.query is op.query
    assert swapped.labels == {"layer": 1}
    torch.testing.assert_close(swapped.dense(), operator(Prefix(5), 2).dense())


def test_low_precision_factors_are_measured_in_float64() -> None:
    op = operator(Causal(), dtype=torch.bfloat16)
    np.testing.assert_allclose(op.dense().numpy(), written_out(op), rtol=1e-13, atol=1e-15)


def test_misuse_is_refused() -> None:
    op = operator(Bidirectional())
    with pytest.raises(ConfigurationError, match="mask must close its first 4 positions"):
        op.leading(4)
    with pytest.raises(ConfigurationError, match="size must be between 1 and 12, got 0"):
        op.leading(0)
    with pytest.raises(ConfigurationError, match=r"query and key must both be \(\.\.\., position, feature\)"):
        AttentionOperator(query=op.query, key=op.key[:3], mask=Causal(), scale=1.0)
