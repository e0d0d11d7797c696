"""Masks against their definition; the theorems on what they make stand in `test_theorems`."""

import itertools

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
    Mixed,
    Padded,
    Prefix,
    PrefixTransposed,
    Window,
    batch_groups,
)
from rankkit_kernels.attention import Group


@st.composite
def masks_and_lengths(draw: st.DrawFn) -> tuple[Mask, int]:
    n = draw(st.integers(1, 24))
    p = draw(st.integers(0, n))
    window = Window(draw(st.integers(0, n + 2)), draw(st.integers(0, n + 2)))
    one_sided = (Window(window.behind), Window(0, window.ahead))
    plain = (Causal(), Backward(), Bidirectional(), Prefix(p), PrefixTransposed(p))
    return draw(st.sampled_from([*plain, *one_sided, window])), n


def coverage(mask: Mask, n: int) -> torch.Tensor:
    """What the fused plan lets every row see, straight from the meaning of a call."""
    seen = torch.zeros(n, n, dtype=torch.bool)
    for call in mask.fused_plan(n):
        for row in range(*call.rows):
            for column in range(*call.columns):
                visible = {
                    "all": True,
                    "past": column <= row,
                    "future": column >= row,
                    "band": row - call.behind <= column <= row + call.ahead,
                }
                seen[row, column] = visible[call.sees]
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
        closed = isinstance(mask, Causal | Prefix) or (isinstance(mask, Window) and mask.ahead == 0)
        assert bool(mask.allowed(n)[:size, size:].any()) or not closed
    else:
        assert not bool(mask.allowed(n)[:size, size:].any())
        assert torch.equal(leading.allowed(size), mask.allowed(n)[:size, :size])


@given(masks_and_lengths())
def test_without_its_first_key_a_mask_is_its_own_later_rows_and_columns(case: tuple[Mask, int]) -> None:
    mask, n = case
    assert torch.equal(mask.without_first_key().allowed(n)[: n - 1, : n - 1], mask.allowed(n)[1:, 1:])


@given(masks_and_lengths(), st.integers(0, 5), st.integers(0, 5))
def test_padding_sees_nothing_and_is_seen_by_none(case: tuple[Mask, int], padding: int, start: int) -> None:
    inner, length = case
    mask, n = Padded(inner, length, start), start + length + padding
    expected = torch.zeros(n, n, dtype=torch.bool)
    expected[start : start + length, start : start + length] = inner.allowed(length)
    assert torch.equal(mask.allowed(n), expected)
    assert torch.equal(coverage(mask, n), expected)
    assert torch.equal(mask.transposed().allowed(n), expected.T)
    assert mask.visible_pairs(n) == int(expected.sum())
    assert mask.visible_positions(n) == range(start, start + length)
    assert list(mask.foreseeing_rows(n)) == [row for row in range(n - 1) if bool(expected[row, row + 1])]
    assert list(mask.triangular_rows(n)) == []
    assert mask.leading(start + length) == (inner if start == 0 else mask)
    assert torch.equal(mask.leading(n).allowed(n), expected)
    if length > 1:
        left = expected.clone()
        left[start], left[:, start] = False, False
        assert torch.equal(mask.without_first_key().allowed(n - 1), left[1:, 1:])


def test_the_leading_block_of_a_padded_mask_keeps_the_padding_before_it() -> None:
    mask = Padded(Causal(), 4, 2)
    assert mask.leading(5) == Padded(Causal(), 3, 2)
    assert mask.leading(9) == mask
    assert Padded(Causal(), 4).leading(3) == Causal()
    with pytest.raises(ConfigurationError, match="size must be at least 3"):
        mask.leading(2)
    with pytest.raises(ConfigurationError, match="mask must close its first 3 positions"):
        Padded(Bidirectional(), 4, 2).leading(5)


@given(st.integers(1, 16), st.integers(0, 20))
def test_a_window_that_reaches_the_ends_is_the_mask_without_one(n: int, more: int) -> None:
    assert torch.equal(Window(n - 1 + more).allowed(n), Causal().allowed(n))
    assert Window(n - 1 + more, n - 1 + more).fused_plan(n) == Bidirectional().fused_plan(n)
    if n > 1:
        assert Window(n - 1 + more).fused_plan(n) == Causal().fused_plan(n)
        assert Window(0, n - 1 + more).fused_plan(n) == Backward().fused_plan(n)


def test_a_window_has_the_rows_of_a_triangle_where_it_has_one_side() -> None:
    assert Window(3).triangular_rows(9) == Window(0, 3).triangular_rows(9) == Window(0).triangular_rows(9) == range(9)
    assert Window(3, 1).triangular_rows(9) == range(0)
    assert Window(2).allowed(4).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]
    assert Window(0, 1).allowed(3).int().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]


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
        Padded(Causal(), 3, 1).allowed(3)
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


def test_a_kind_that_mixes_masks_shares_them_out_over_heads_or_layers() -> None:
    heads, layers = MaskKind("mixed-heads"), MaskKind("mixed-layers")
    halves = {4: (2, 2), 5: (3, 2), 2: (1, 1)}  # of an odd number the middle head looks back
    for count, (back, ahead) in halves.items():
        assert heads.in_layer(1, count, 3) == Mixed((Causal(),) * back + (Backward(),) * ahead)
    assert [layers.in_layer(layer, 4, 3) for layer in range(3)] == [Causal(), Backward(), Causal()]
    assert [kind for kind in MaskKind if kind.is_mixed] == [heads, layers]
    for kind in (heads, layers):
        assert kind.masks(3) == (Causal(), Backward())
        with pytest.raises(ConfigurationError, match=f"mask must be one for all heads and layers, got {kind}"):
            kind.at(3)
    for kind in set(MaskKind) - {heads, layers}:
        assert kind.in_layer(1, 4, 3) == kind.at(3)
        assert kind.masks(3) == (kind.at(3),)


@given(st.sampled_from(list(MaskKind)), st.integers(1, 12), st.data())
def test_rows_of_a_kind_foresee_where_any_of_its_masks_does(kind: MaskKind, n: int, data: st.DataObject) -> None:
    p = data.draw(st.integers(0, n))
    seen = torch.stack([mask.allowed(n) for mask in kind.masks(p)]).any(dim=0)
    assert list(kind.foreseeing_rows(p, n)) == [row for row in range(n - 1) if bool(seen[row, row + 1])]


@given(st.integers(1, 12), st.data())
def test_mixed_masks_are_those_of_their_heads_in_runs_of_equal_ones(n: int, data: st.DataObject) -> None:
    kinds = [Causal(), Backward(), Bidirectional(), Prefix(n // 2), Window(2, 1)]
    mixed = Mixed(tuple(data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))))
    for head, mask in enumerate(mixed.masks):
        assert torch.equal(mixed.allowed(n)[head], mask.allowed(n))
        assert torch.equal(mixed.transposed().allowed(n)[head], mask.allowed(n).T)
    assert [mask for heads, mask in mixed.runs for _ in range(heads.start, heads.stop)] == list(mixed.masks)
    assert all(one != other for (_, one), (_, other) in itertools.pairwise(mixed.runs))
    assert [group.plan for group in mixed.fused_plans(n)] == [mask.fused_plan(n) for _, mask in mixed.runs]
    assert [group.size for group in mixed.fused_plans(n)] == [heads.stop - heads.start for heads, _ in mixed.runs]
    assert mixed.of_heads([len(mixed.masks) - 1, 0]).masks == (mixed.masks[-1], mixed.masks[0])


def test_mixtures_of_no_heads_or_of_two_sequences_are_refused() -> None:
    for masks in ((), (Causal(), Cross(3, 3)), (Mixed((Causal(),)),)):
        with pytest.raises(ConfigurationError, match="masks must hold one mask of self-attention for each head, got"):
            Mixed(masks)


def test_batch_groups_join_equal_neighbours() -> None:
    groups = batch_groups([Prefix(2), Prefix(2), Prefix(4), Causal()], 8)
    assert [(group.size, group.plan) for group in groups] == [
        (2, Prefix(2).fused_plan(8)),
        (1, Prefix(4).fused_plan(8)),
        (1, Causal().fused_plan(8)),
    ]
    mixed = Mixed((Causal(), Causal(), Backward()))
    assert batch_groups([mixed, mixed, Causal()], 8) == (
        Group(2, heads=(Group(2, Causal().fused_plan(8)), Group(1, Backward().fused_plan(8)))),
        Group(1, Causal().fused_plan(8)),
    )


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
    for mask in (Bidirectional(), Backward(), PrefixTransposed(2), Cross(4, 4), Window(3, 1)):
        with pytest.raises(
            ConfigurationError, match=f"mask must close its first 3 positions.*got {type(mask).__name__}"
        ):
            mask.leading(3)
    with pytest.raises(ConfigurationError, match="behind must be an integer of at least 0, got -1"):
        Window(-1)
    with pytest.raises(ConfigurationError, match="ahead must be an integer of at least 0, got True"):
        Window(2, True)
    with pytest.raises(ConfigurationError, match=r"size must be at least 5 \(prefix_length\), got 3"):
        Prefix(5).leading(3)
