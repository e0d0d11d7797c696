"""Floors of attention with a soft cap, a bias and a sink bound what a model's precision moves, and are not idle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rankkit.masks import Bidirectional, Causal, Cross, Mask, Padded, Prefix, Window
from rankkit.operators import AttentionOperator, DenseBias, OffsetBias
from rankkit.spectra.floors import UNIT_ROUNDOFF, applied_floor, entry_error, largest_added, model_floor
from rankkit_kernels.singular_values import singular_values

SIZE, FEATURES = 48, 16


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alibi(slopes: Tensor, size: int = SIZE) -> OffsetBias:
    return OffsetBias(values=(-slopes[:, None] * torch.arange(1 - size, size).abs()).float())


SCORES: dict[str, dict[str, Any]] = {
    "cap": {"softcap": 2.0},
    "wide cap": {"softcap": 50.0},
    "alibi": {"bias": alibi(torch.tensor([0.5, 0.01, 8.0]))},
    "relative": {"bias": OffsetBias(values=3 * draw(1, 3, 2 * SIZE - 1).float())},
    "dense": {"bias": DenseBias(values=3 * draw(2, 3, SIZE, SIZE).float())},
    "far bias": {"bias": OffsetBias(values=(400 + draw(3, 3, 2 * SIZE - 1)).float())},
    "sink": {"sink": torch.tensor([-3.0, 2.0, 9.0])},
    "everything": {"softcap": 5.0, "bias": alibi(torch.tensor([0.5, 0.01, 8.0])), "sink": torch.tensor([-3.0, 2.0, 50.0])},
}  # fmt: skip


def operator(name: str, mask: Mask, *, spread: float = 2.0) -> AttentionOperator:
    query, key = (spread**0.5 * draw(seed, 3, SIZE, FEATURES).float() for seed in (4, 5))
    return AttentionOperator(query=query, key=key, mask=mask, scale=FEATURES**-0.5, **SCORES[name])


def applied(op: AttentionOperator, accumulation: torch.dtype, probabilities: torch.dtype) -> Tensor:
    """What a model computes, every operation rounding to `accumulation`: the sink as one more column, dropped again."""
    logits = (op.query.to(accumulation) @ op.key.to(accumulation).mT) * op.scale
    if op.softcap is not None:
        logits = torch.tanh(logits / op.softcap) * op.softcap
    if op.bias is not None:
        size = (0, SIZE)
        logits = logits + op.bias.block(size, size, SIZE).to(accumulation)
    logits = logits.masked_fill(~op.allowed(), -torch.inf)
    if op.sink is not None:
        logits = torch.cat([logits, op.sink.to(accumulation)[:, None, None].expand(-1, SIZE, 1)], dim=-1)
    return torch.softmax(logits, dim=-1)[..., :SIZE].to(probabilities).double()


def distances(op: AttentionOperator, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """sigma_1, and how far singular values lie apart."""
    exact, moved = (singular_values(each, method="svd", workers=1).values for each in (op.dense(), matrix))
    return exact[:, 0], (moved - exact).abs().amax(dim=-1)


@pytest.mark.parametrize("probabilities", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [1e-3, 2.0, 40.0])
@pytest.mark.parametrize("name", SCORES)
def test_the_floor_bounds_what_the_models_precision_moves(name: str, spread: float, probabilities: torch.dtype) -> None:
    for mask in (Causal(), Bidirectional(), Window(9, 3)):
        op = operator(name, mask, spread=spread)
        largest, moved = distances(op, applied(op, torch.float32, probabilities))
        floor = applied_floor(op, largest=largest, probabilities=probabilities)
        assert bool((moved < floor + SIZE * 2.0**-52 * largest).all()), (mask, moved / floor)


@pytest.mark.parametrize("name", SCORES)
def test_the_floor_bounds_every_entry_and_sum(name: str) -> None:
    for mask in (Causal(), Window(9, 3)):
        op = operator(name, mask)
        exact, found = op.dense(), applied(op, torch.float32, torch.float32)
        eta = entry_error(op, probabilities=torch.float32)[:, None, None]
        assert bool(((found - exact).abs() <= eta * exact + 1e-44).all())


@pytest.mark.parametrize("name", ["wide cap", "relative", "far bias", "sink"])
def test_the_floor_is_not_idle(name: str) -> None:
    """An entry errs by at least a fiftieth of its bound, which counts every rounding as the worst."""
    shares = []
    for spread in (1e-3, 2.0):
        op = operator(name, Bidirectional(), spread=spread)
        exact, found = op.dense(), applied(op, torch.float32, torch.float32)
        error = ((found - exact).abs() / exact).amax(dim=(-2, -1))
        shares.append((error / entry_error(op, probabilities=torch.float32)).max())
    assert max(shares) > 0.02


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["cap", "relative", "sink"])
def test_eager_attention_in_half_precision_lies_within_the_floor_of_its_accumulation(
    name: str, precision: torch.dtype
) -> None:
    op = operator(name, Causal())
    rounded = {}
    if op.bias is not None:
        rounded["bias"] = replace(op.bias, values=op.bias.values.to(precision))
    op = replace(op, query=op.query.to(precision), key=op.key.to(precision), **rounded)
    largest, moved = distances(op, applied(op, precision, precision))
    floor = model_floor(
        op.query, op.key, scale=op.scale, largest=largest, probabilities=precision, accumulation=precision,
        softcap=op.softcap, added=largest_added(op),
    )  # fmt: skip
    assert bool((moved < floor).all())
    assert bool((moved > floor / 1e4).all())


def test_the_floor_follows_its_formula() -> None:
    queries, keys = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    common = {"scale": 0.5, "largest": torch.tensor(2.0), "probabilities": torch.bfloat16}
    plain = 2.0**-8 + 2.0**-24 * (8 + 2 * (2 + 2) * 5)
    for softcap, added, size, more in (
        (3.0, None, 3, 7 * 3),
        (30.0, None, 5, 7 * 5),
        (None, 7.0, 5, 3 * (5 + 7.0)),
        (3.0, 7.0, 3, 51),
    ):
        floor = model_floor(
            queries, keys, softcap=softcap, added=None if added is None else torch.tensor(added), **common
        )
        assert float(floor) == pytest.approx(2 * (plain + 2 * 2.0**-24 * more), rel=1e-13), size


def test_a_cap_and_a_sink_that_do_nothing_leave_the_floor_near_that_without_them() -> None:
    op = AttentionOperator(query=draw(1, 3, 8, 16), key=draw(2, 3, 8, 16), mask=Causal(), scale=0.25)
    plain = applied_floor(op, largest=torch.ones(3), probabilities=torch.float32)
    capped = applied_floor(replace(op, softcap=1e6), largest=torch.ones(3), probabilities=torch.float32)
    assert bool(((plain < capped) & (capped < 1.5 * plain)).all())


# A sink far above every logit.


@pytest.mark.parametrize("height", [9.0, 30.0, 80.0, 100.0])
@pytest.mark.parametrize("probabilities", [torch.float32, torch.float16], ids=str)
def test_what_underflows_beside_a_far_sink_is_no_more_than_all_there_is(
    height: float, probabilities: torch.dtype
) -> None:
    op = replace(operator("sink", Causal()), sink=torch.full((3,), height))
    largest, moved = distances(op, applied(op, torch.float32, probabilities))
    floor = applied_floor(op, largest=largest, probabilities=probabilities)
    assert bool((moved < floor + SIZE * 2.0**-52 * largest).all())
    assert bool((floor < 1.1 * largest).all())


# Rows of many keys.


def long_rows(keys: int, features: int) -> tuple[AttentionOperator, Tensor]:
    """A key at logit 0 and all others at one equal logit, another in each of 11 rows; with the exact first column."""
    query, key = torch.zeros(1, 11, features), torch.zeros(1, keys, features)
    query[..., 0] = -0.02 * torch.arange(1, 12)
    key[:, 1:, 0] = 1
    exact = 1 / (1 + (keys - 1) * query[..., 0].double().exp())
    return AttentionOperator(query=query, key=key, mask=Cross(11, keys), scale=1.0), exact


@pytest.mark.parametrize("keys", [128, 1024, 4096, 16384, 65536])
def test_fused_rows_of_equal_terms_lie_within_the_floor_however_long(keys: int) -> None:
    """Equal terms of a row sum round the same way, and are added in lanes and blocks."""
    op, exact = long_rows(keys, 8)
    values = torch.zeros(1, keys, 8)
    values[:, 0, 0] = 1
    share = (((op @ values)[..., 0].double() - exact) / exact).abs() / entry_error(op, probabilities=torch.float32)
    assert 1 / 12 < float(share.max()) < 1


@pytest.mark.parametrize("keys", [128, 4096, 65536])
def test_eager_rows_of_equal_terms_lie_within_the_floor_of_attention_that_was_written_out(keys: int) -> None:
    op, exact = long_rows(keys, 8)
    op = replace(op, accumulation=torch.float32)
    found = (op.query @ op.key.mT).softmax(dim=-1)[..., 0].double()
    share = ((found - exact) / exact).abs() / entry_error(op, probabilities=torch.float32)
    assert 1 / 12 < float(share.max()) < 1


def test_the_roundings_of_a_softmax_grow_with_the_keys_that_a_row_sees() -> None:
    def roundings(mask: Mask, size: int = 2560, accumulation: torch.dtype | None = None) -> float:
        zeros = torch.zeros(1, size, 1)
        op = AttentionOperator(query=zeros, key=zeros, mask=mask, scale=1.0, accumulation=accumulation)
        return float(entry_error(op, probabilities=torch.float32)) * 2**24 - 1

    assert roundings(Causal(), 64) == roundings(Bidirectional(), 128) == roundings(Window(100, 27)) == 8
    assert roundings(Window(127, 128)) == 12
    assert roundings(Causal()) == roundings(Bidirectional()) == roundings(Prefix(9)) == 4 + 16 + 2
    assert roundings(Padded(Causal(), 512)) == 4 + 16
    assert roundings(Causal(), accumulation=torch.float32) == 4 + 80


# Attention that a model wrote out in half precision.


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_attention_written_out_in_half_precision_lies_within_its_floor_and_not_within_that_of_a_fused_kernel(
    spread: float, precision: torch.dtype
) -> None:
    op = operator("cap", Causal(), spread=spread)
    op = replace(op, query=op.query.to(precision), key=op.key.to(precision), softcap=None, accumulation=precision)
    largest, moved = distances(op, applied(op, precision, precision))
    floor = applied_floor(op, largest=largest, probabilities=precision)
    assert bool((moved < floor).all())
    exact, found = op.dense(), applied(op, precision, precision)
    share = ((found - exact) / exact).abs().where(exact > 1e-3, 0).amax(dim=(-2, -1))
    assert bool((share < entry_error(op, probabilities=precision)).all())
    assert bool((share > entry_error(replace(op, accumulation=None), probabilities=precision)).any())


# What counts as added.


def added(mask: Mask, columns: int | None = None, **scores: Any) -> float:
    factor = torch.ones(1, 4, 1)
    key = factor if columns is None else torch.ones(1, columns, 1)
    found = largest_added(AttentionOperator(query=factor, key=key, mask=mask, scale=1.0, **scores))
    assert found is not None
    return float(found)


def test_only_offsets_that_a_row_sees_count() -> None:
    bias = OffsetBias(values=torch.tensor([1.0, 2, 3, 4, -5, 6, 7]))  # offsets -3 to 3
    assert added(Causal(), bias=bias) == 4
    assert added(Window(1, 1), bias=bias) == 5
    assert added(Window(0), bias=bias) == 4
    assert added(Bidirectional(), bias=bias) == added(Window(0, 9), bias=bias) == 7
    assert added(Prefix(2), bias=bias) == 5
    assert added(Padded(Bidirectional(), 3, 1), bias=bias) == 6
    assert added(Cross(4, 2), columns=2, bias=OffsetBias(values=torch.tensor([9.0, 1, 1, 1, 8]))) == 9


def test_a_dense_bias_counts_where_it_can_be_seen_and_is_not_lost() -> None:
    values = torch.zeros(4, 4)
    values[3, 0], values[0, 3], values[2, 1], values[1, 1] = -6, 90, -1e30, -torch.inf
    assert added(Causal(), bias=DenseBias(values=values)) == 6
    assert added(Bidirectional(), bias=DenseBias(values=values)) == 90
    values[2] = -1e30  # the whole row: softmax is then over equal numbers
    assert added(Causal(), bias=DenseBias(values=values)) == pytest.approx(1e30)


def test_a_sink_counts_where_it_is_larger() -> None:
    bias = OffsetBias(values=torch.full((7,), -3.0))
    assert added(Causal(), bias=bias, sink=torch.tensor([2.0])) == 3
    assert added(Causal(), bias=bias, sink=torch.tensor([-4.0])) == 4
    assert added(Causal(), sink=torch.tensor([-torch.inf])) == 0
    plain = AttentionOperator(query=torch.ones(1, 4, 1), key=torch.ones(1, 4, 1), mask=Causal(), scale=1.0, softcap=1.0)
    assert largest_added(plain) is None


def test_unit_roundoffs_are_those_that_the_floor_is_made_of() -> None:
    op = AttentionOperator(query=torch.zeros(1, 4, 4), key=torch.zeros(1, 4, 4), mask=Causal(), scale=1.0, softcap=3.0)
    for dtype, u in UNIT_ROUNDOFF.items():
        accumulated = 2.0**-53 if dtype == torch.float64 else 2.0**-24
        assert float(entry_error(op, probabilities=dtype)) == pytest.approx(u + 8 * accumulated, rel=1e-13)
