"""Masks against their definition; the theorems on what they make stand in `test_theorems`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankkit.errors import ConfigurationError
from rankkit.masks import (
    Backward,
    Bidirectional,
    Causal,
    Cross,
    Mask,
    MaskKind,
    Padded,
    Prefix,
    PrefixTransposed,
    batch_groups,
)


@st.composite
def masks_and_lengths(draw: st.DrawFn) -> tuple[Mask, int]:
    n = draw(st.integers(1, 24))
    p = draw(st.integers(0, n))
    return draw(st.sampled_from([Causal(), Backward(), Bidirectional(), Prefix(p), PrefixTransposed(p)])), n


def coverage(mask: Mask, n: int) -> torch.Tensor:
    """What the fused plan lets every row see, straight from the meaning of a call."""
    seen = torch.zeros(n, n, dtype=torch.bool)
    for call in mask.fused_plan(n):
        for row in range(*call.rows):
            for column in range(*call.columns):
                visible = {"all": True, "past": column <= row, "future": column >= row}[call.sees]
                seen[row, column] = visible
    return seen


@given(masks_and_lengths())
def test_fused_plan_covers_exactly_what_is_allowed_with_rows_in_order(case: tuple[Mask, int]) -> None:
    mask, n = case
    assert torch.equal(coverage(mask, n), mask.allowed(n))
    rows = [row for call in mask.fused_plan(n) for row in range(*call.rows)]
    assert rows == list(range(n))


@given(masks_and_lengths())
def test_transposed_mask_allows_the_transpose_and_is_an_involution(case: tuple[Mask, int]) -> None:
    mask, n = case
    assert torch.equal(mask.transposed().allowed(n), mask.allowed(n).T)
    assert mask.transposed().transposed() == mask


@given(masks_and_lengths())
def test_visible_pairs_and_flops_count_what_is_allowed(case: tuple[Mask, int]) -> None:
    mask, n = case
    assert mask.visible_pairs(n) == int(mask.allowed(n).sum())
    assert mask.attention_flops(n, 8) == 4 * 8 * int(mask.allowed(n).sum())


@given(masks_and_lengths())
def test_foreseeing_rows_are_those_that_see_their_successor(case: tuple[Mask, int]) -> None:
    mask, n = case
    allowed = mask.allowed(n)
    assert list(mask.foreseeing_rows(n)) == [row for row in range(n - 1) if bool(allowed[row, row + 1])]


@given(masks_and_lengths())
def test_every_row_sees_itself(case: tuple[Mask, int]) -> None:
    mask, n = case
    assert bool(mask.allowed(n).diagonal().all())


@given(masks_and_lengths(), st.integers(1, 24))
def test_leading_block_is_closed_or_refused(case: tuple[Mask, int], size: int) -> None:
    mask, n = case
    size = min(size, n)
    try:
        leading = mask.leading(size)
    except ConfigurationError:
        assert bool(mask.allowed(n)[:size, size:].any()) or not isinstance(mask, Causal | Prefix)
    else:
        assert not bool(mask.allowed(n)[:size, size:].any())
        assert torch.equal(leading.allowed(size), mask.allowed(n)[:size, :size])


@given(masks_and_lengths())
def test_without_its_first_key_a_mask_is_its_own_later_rows_and_columns(case: tuple[Mask, int]) -> None:
    mask, n = case
    assert torch.equal(mask.without_first_key().allowed(n)[: n - 1, : n - 1], mask.allowed(n)[1:, 1:])


@given(masks_and_lengths(), st.integers(0, 5))
def test_padding_sees_nothing_and_is_seen_by_none(case: tuple[Mask, int], padding: int) -> None:
    inner, length = case
    mask, n = Padded(inner, length), length + padding
    expected = torch.zeros(n, n, dtype=torch.bool)
    expected[:length, :length] = inner.allowed(length)
    assert torch.equal(mask.allowed(n), expected)
    assert torch.equal(coverage(mask, n), expected)
    assert torch.equal(mask.transposed().allowed(n), expected.T)
    assert mask.visible_pairs(n) == int(expected.sum())
    assert mask.visible_positions(n) == range(length)
    assert mask.leading(length) == inner
    if length > 1:
        assert torch.equal(mask.without_first_key().allowed(n - 1), expected[1:, 1:])


@given(st.integers(1, 9), st.integers(1, 9))
def test_cross_attention_lets_every_query_see_every_key(queries: int, keys: int) -> None:
    mask = Cross(queries, keys)
    assert torch.equal(mask.allowed(queries), torch.ones(queries, keys, dtype=torch.bool))
    assert mask.columns(queries) == keys
    assert mask.visible_pairs(queries) == queries * keys
    assert mask.transposed() == Cross(keys, queries)
    (call,) = mask.fused_plan(queries)
    assert (call.rows, call.columns, call.sees) == ((0, queries), (0, keys), "all")


def test_masks_of_two_sequences_and_of_padding_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="n must be 3"):
        Cross(3, 5).allowed(4)
    with pytest.raises(ConfigurationError, match="mask must be one of self-attention"):
        Cross(3, 5).without_first_key()
    with pytest.raises(ConfigurationError, match="queries and keys must be at least 1"):
        Cross(0, 5)
    with pytest.raises(ConfigurationError, match=r"start \+ length must be between 1 and 3"):
        Padded(Causal(), 4).allowed(3)
    with pytest.raises(
        ConfigurationError, match="length must be at least 1, start at least 0 and mask one of self-attention"
    ):
        Padded(Cross(2, 2), 2)
    with pytest.raises(ConfigurationError, match="length must be at least 2, got 1"):
        Padded(Causal(), 1).without_first_key()


@given(st.integers(1, 16))
def test_prefix_mask_equals_causal_when_prefix_is_empty_and_bidirectional_when_it_is_everything(n: int) -> None:
    assert torch.equal(Prefix(0).allowed(n), Causal().allowed(n))
    assert torch.equal(Prefix(1).allowed(n), Causal().allowed(n))
    assert torch.equal(Prefix(n).allowed(n), Bidirectional().allowed(n))


def test_kind_makes_the_value_for_one_sequence() -> None:
    assert MaskKind("prefix").at(5) == Prefix(5)
    assert MaskKind("causal").at(5) == Causal()
    assert MaskKind("bidirectional").at(5) == Bidirectional()
    assert MaskKind("backward").at(5) == Backward()


def test_batch_groups_join_equal_neighbours() -> None:
    groups = batch_groups([Prefix(2), Prefix(2), Prefix(4), Causal()], 8)
    assert [(group.size, group.plan) for group in groups] == [
        (2, Prefix(2).fused_plan(8)),
        (1, Prefix(4).fused_plan(8)),
        (1, Causal().fused_plan(8)),
    ]


def test_masks_are_values() -> None:
    assert Prefix(3) == Prefix(3)
    assert len({Prefix(3), Prefix(3), Prefix(4), Causal(), Causal()}) == 3
    with pytest.raises(AttributeError):
        Prefix(3).length = 4


def test_impossible_prefixes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="prefix_length must be an integer of at least 0, got -1"):
        Prefix(-1)
    with pytest.raises(ConfigurationError, match="prefix_length must be an integer of at least 0, got True"):
        Prefix(True)
    with pytest.raises(ConfigurationError, match=r"prefix_length must be between 0 and 8 \(sequence_length\), got 9"):
        Prefix(9).fused_plan(8)
    with pytest.raises(ConfigurationError, match="mask must close its first 3 positions"):
        Bidirectional().leading(3)
    with pytest.raises(ConfigurationError, match=r"size must be at least 5 \(prefix_length\), got 3"):
        Prefix(5).leading(3)
