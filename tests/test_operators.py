"""The lazy attention matrix against softmax written out."""

import numpy as np
import pytest
import torch

from rankkit.errors import ConfigurationError
from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Mixed, Padded, Prefix, PrefixTransposed, Window
from rankkit.operators import AttentionOperator, DenseOperator
from rankkit.spectra import spectrum

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
        AttentionOperator(query=op.query, key=op.key[:, :3], mask=Causal(), scale=1.0)
    with pytest.raises(ConfigurationError, match="key must have 12 positions for 12 queries under Causal"):
        AttentionOperator(query=op.query, key=op.key[:3], mask=Causal(), scale=1.0)
    with pytest.raises(ConfigurationError, match=r"mask must be one for all matrices, got Mixed.* each run of heads"):
        operator(Mixed((Causal(), Backward())), 2)
    with pytest.raises(ConfigurationError, match="operator must hold one matrix, got 2"):
        operator(Causal(), 2).as_linear_operator()
    with pytest.raises(ConfigurationError, match="terms must have one shape"):
        operator(Causal()) - operator(Causal(), 2)
    with pytest.raises(ConfigurationError, match="matrix must be real with at least one row"):
        DenseOperator(matrix=torch.zeros(3, 0))
    with pytest.raises(ConfigurationError, match="size must be at least 2, got 1"):
        operator(Causal()).leading(1).without_first_key()


MASKS = [
    Causal(), Backward(), Bidirectional(), Prefix(5), Prefix(N), PrefixTransposed(5), Padded(Prefix(3), 7),
    Window(4), Window(0, 2), Window(3, 1), Padded(Causal(), 7, 5), Padded(Window(2, 2), 8, 3),
]  # fmt: skip


def factors(rows: int, columns: int, *leading: int, std: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((*leading, rows, FEATURES), (*leading, columns, FEATURES))
    query, key = (std * (torch.rand(shape, generator=generator, dtype=torch.float64) * 4 - 2) for shape in shapes)
    return query, key


def probes(length: int, width: int, *leading: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand((*leading, length, width), generator=generator, dtype=torch.float64).to(dtype) - 0.5


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("width", [1, 4, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_products_are_those_of_the_dense_matrix(mask: Mask, width: int, dtype: torch.dtype, tolerance: float) -> None:
    query, key = factors(N, N, 2, 3)
    op = AttentionOperator(query=query, key=key, mask=mask, scale=0.5)
    x, dense = probes(N, width, 2, 3, dtype=dtype), op.dense()
    expected = dense @ x.double()
    product, gram = op.gram_product(x)
    for found, value in (
        (op @ x, expected),
        (op.T @ x, dense.mT @ x.double()),
        (product, expected),
        (gram, dense.mT @ expected),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), value, rtol=0, atol=tolerance)


def test_cross_attention_is_rectangular_in_every_product() -> None:
    query, key = factors(N, 7, 2)
    op = AttentionOperator(query=query, key=key, mask=Cross(N, 7), scale=0.5)
    dense = op.dense()
    assert dense.shape == (2, N, 7)
    assert op.structure == {"attention", "rows_sum_to_one", "non_negative"}
    x, y = probes(7, 3, 2), probes(N, 3, 2)
    torch.testing.assert_close(op @ x, dense @ x, rtol=0, atol=1e-13)
    torch.testing.assert_close(op.T @ y, dense.mT @ y, rtol=0, atol=1e-13)
    torch.testing.assert_close(op.gram_product(x)[1], dense.mT @ (dense @ x), rtol=0, atol=1e-13)


def test_the_transpose_of_the_transpose_is_the_operator() -> None:
    op = operator(Causal())
    assert op.T.T is op


@pytest.mark.parametrize("mask", MASKS)
def test_scipy_gets_one_matrix_as_a_linear_operator(mask: Mask) -> None:
    query, key = factors(N, N, 1)
    op = AttentionOperator(query=query, key=key, mask=mask, scale=0.5)
    linear, dense = op.as_linear_operator(), op.dense()[0].numpy()
    vector = probes(N, 1)[:, 0].numpy()
    np.testing.assert_allclose(linear @ vector, dense @ vector, rtol=0, atol=1e-13)
    np.testing.assert_allclose(linear.H @ vector, dense.T @ vector, rtol=0, atol=1e-13)
    np.testing.assert_allclose(linear @ np.eye(N), dense, rtol=0, atol=1e-13)
    np.testing.assert_allclose(linear.H @ np.eye(N), dense.T, rtol=0, atol=1e-13)


def test_rows_that_see_nothing_are_zero_everywhere() -> None:
    query, key = factors(N, N, 2)
    op = AttentionOperator(query=query, key=key, mask=Padded(Causal(), 8), scale=0.5)
    dense = op.dense()
    assert bool((dense[:, 8:] == 0).all())
    assert bool((dense[..., 8:] == 0).all())
    torch.testing.assert_close(dense[:, :8, :8], op.leading(8).dense())
    x = probes(N, 2, 2)
    assert bool(((op @ x)[:, 8:] == 0).all())
    assert bool(((op.T @ x)[:, 8:] == 0).all())


def test_a_row_whose_visible_logits_are_all_minus_infinity_is_zero_and_others_are_what_they_were() -> None:
    query, key = factors(3, 3)
    query[1] = torch.tensor([-torch.inf, 0, 0, 0])
    key[:, 0] = 1.0
    dense = AttentionOperator(query=query, key=key, mask=Causal(), scale=0.5).dense()
    assert dense[1].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(dense.sum(-1), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("mask", "left"),
    [(Causal(), Causal()), (Prefix(5), Prefix(4)), (Prefix(0), Prefix(0)), (Bidirectional(), Bidirectional())],
)
def test_removing_the_first_key_leaves_the_softmax_over_the_other_keys(mask: Mask, left: Mask) -> None:
    op = operator(mask, 2)
    removed = op.without_first_key()
    assert removed.mask == left
    rest = op.dense()[:, 1:, 1:]
    torch.testing.assert_close(removed.dense(), rest / rest.sum(-1, keepdim=True), rtol=0, atol=1e-13)


def test_a_sink_that_is_removed_leaves_the_rank_that_it_hid() -> None:
    query, key = factors(64, 64, std=0.5)
    query[:, 0], key[:, 0] = 1.0, 0.0
    plain = AttentionOperator(query=query, key=key, mask=Causal(), scale=0.5)
    sunk = key.clone()
    sunk[0, 0] = 40.0  # logit 20: nearly all attention goes to key 0
    op = AttentionOperator(query=query, key=sunk, mask=Causal(), scale=0.5)
    assert float(torch.linalg.matrix_norm(op.dense(), 2)) > 7.9  # sqrt(64) = 8: rank one
    torch.testing.assert_close(op.without_first_key().dense(), plain.without_first_key().dense())


def test_operators_add_and_scale_as_matrices_do() -> None:
    one, other = operator(Causal(), 2).flattened(), operator(Prefix(5), 2)
    x = probes(N, 3, 2)
    difference = one - 0.3 * other
    dense = one.dense() - 0.3 * other.dense()
    torch.testing.assert_close(difference.dense(), dense)
    torch.testing.assert_close(difference @ x, dense @ x, rtol=0, atol=1e-13)
    torch.testing.assert_close(difference.T @ x, dense.mT @ x, rtol=0, atol=1e-13)
    torch.testing.assert_close(difference.gram_product(x)[1], dense.mT @ (dense @ x), rtol=0, atol=1e-13)
    torch.testing.assert_close(difference[1:].dense(), dense[1:])
    assert difference.structure == {"square"}
    assert (0.5 * one + 0.5 * other).structure == {"square", "non_negative", "rows_sum_to_one"}
    assert (one + other).structure == {"square", "non_negative"}


def test_a_matrix_of_ones_own_says_what_holds_for_it() -> None:
    attention = operator(Causal(), 2).dense()
    assert DenseOperator(matrix=attention).structure == {"square", "non_negative", "rows_sum_to_one", "triangular"}
    assert DenseOperator(matrix=attention.mT.contiguous()).structure == {"square", "non_negative", "triangular"}
    assert DenseOperator(matrix=attention[..., :5]).structure == {"non_negative"}
    assert DenseOperator(matrix=operator(Prefix(5)).dense() - 0.5).structure == {"square"}
    attention[0, 3, 3] = torch.nan  # one matrix that failed does not decide for the other
    assert "rows_sum_to_one" in DenseOperator(matrix=attention).structure


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_attention_that_was_saved_in_half_precision_is_still_attention(dtype: torch.dtype) -> None:
    """Many of 3000 entries round alike, or underflow: rows are 1e-3 to 1e-2 off."""
    generator = torch.Generator().manual_seed(1)
    query, key = (2 * torch.rand(2, 3000, 4, generator=generator) for _ in range(2))
    op = AttentionOperator(query=query[:, :8], key=key, mask=Cross(8, 3000), scale=0.5)
    stored = op.dense().to(dtype)
    for computed in (stored, torch.softmax(op.logits().to(dtype), dim=-1)):
        assert float((computed.double().sum(dim=-1) - 1).abs().max()) > 1e-5
        assert "rows_sum_to_one" in DenseOperator(matrix=computed).structure
        assert "rows_sum_to_one" in DenseOperator(matrix=computed.float(), precision=dtype).structure
    assert "rows_sum_to_one" not in DenseOperator(matrix=stored.float()).structure
    assert "rows_sum_to_one" not in DenseOperator(matrix=0.9 * stored).structure


def test_the_precision_of_entries_decides_their_error() -> None:
    matrix = operator(Causal()).dense().bfloat16()
    stored, kept = DenseOperator(matrix=matrix), DenseOperator(matrix=matrix.float(), precision=torch.bfloat16)
    given = {"measures": ("effective_rank", "attention_entropy"), "method": "svd"}
    found, expected = spectrum(kept, **given), spectrum(stored, **given)
    assert (
        float(found.floor_model) == float(expected.floor_model) > float(spectrum(matrix.float(), **given).floor_model)
    )
    assert found.errors["attention_entropy"] == expected.errors["attention_entropy"]
    assert kept.flattened().precision == torch.bfloat16
    with pytest.raises(ConfigurationError, match=r"precision must be a floating-point dtype, got torch\.int8"):
        DenseOperator(matrix=matrix, precision=torch.int8)


def test_parts_of_a_batch_are_the_matrices_of_the_batch() -> None:
    op = operator(Prefix(5), 2, 3)
    torch.testing.assert_close(op.flattened()[2:5].dense(), op.dense().reshape(6, N, N)[2:5])
    dense = DenseOperator(matrix=op.dense())
    torch.testing.assert_close(dense.flattened()[2:5].dense(), op.dense().reshape(6, N, N)[2:5])
