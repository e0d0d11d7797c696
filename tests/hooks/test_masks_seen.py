"""Masks and biases are told exactly from tensors, and what has no name keeps its numbers and loses its theorems."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rankkit.hooks import masks_seen
from rankkit.hooks.masks_seen import MaskReader, SeenMask, classify, mask_name
from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, Padded, Prefix, Window
from rankkit.operators import AttentionOperator, DenseBias, OffsetBias

N = 9
MASKS: list[Mask] = [
    Causal(), Backward(), Bidirectional(), Prefix(2), Prefix(N - 1), Window(0), Window(3), Window(2, 4), Window(N - 1, 1),
]  # fmt: skip
FLOATS = [torch.finfo(torch.float32).min, -torch.inf, torch.finfo(torch.float16).min]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def one(mask: Tensor | None, added: Tensor | None = None, *, causal: bool = False, kind: str = "self") -> SeenMask:
    queries, keys = (mask if mask is not None else added).shape[-2:]  # type: ignore[union-attr]
    mask, added = (None if t is None else t.reshape(1, -1, *t.shape[-2:]) for t in (mask, added))
    (seen,) = classify(mask, added, causal=causal, shape=(1, queries, keys), kind=kind)
    return seen


def operator(seen: SeenMask, query: Tensor, key: Tensor) -> AttentionOperator:
    key = key if seen.keys is None else key[..., seen.keys, :]
    return AttentionOperator(query=query, key=key, mask=seen.mask, scale=0.7, bias=seen.bias)


def applied(mask: Tensor, query: Tensor, key: Tensor, added: Any = 0.0) -> Tensor:
    """Attention as the model computes it, zero where a row sees nothing."""
    logits = 0.7 * query.double() @ key.double().mT + added
    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1).nan_to_num(nan=0.0)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_boolean_tensor_gives_the_mask_that_defines_it(mask: Mask) -> None:
    seen = one(mask.allowed(N))
    assert seen.mask == mask
    assert seen.name == type(mask).__name__.lower()
    assert seen.bias is None


@pytest.mark.parametrize("hidden", FLOATS)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_tensor_that_is_added_gives_the_same_mask(mask: Mask, hidden: float) -> None:
    seen = one(torch.where(mask.allowed(N), 0.0, hidden))
    assert (seen.mask, seen.bias) == (mask, None)


@pytest.mark.parametrize(("start", "length"), [(0, 6), (3, 6), (2, 5), (8, 1), (0, 1)])
@pytest.mark.parametrize("mask", [Causal(), Bidirectional(), Window(2), Prefix(3)], ids=str)
def test_padding_is_told_on_both_sides_whatever_its_own_rows_see(mask: Mask, start: int, length: int) -> None:
    if isinstance(mask, Prefix) and length < 5:
        return  # as long as the sequence, a prefix is another mask
    expected = Padded(mask if length > 2 else Causal(), length, start)
    bare = expected.allowed(N)
    full = bare.clone()
    full[:start, start : start + length] = True
    full[start + length :, start : start + length] = True
    for allowed in (bare, full):
        seen = one(allowed)
        assert seen.mask == expected
        assert seen.name == f"padded {mask_name(expected.mask)}"


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_one_other_entry_makes_it_another_mask(mask: Mask) -> None:
    for row, column in np.random.default_rng(0).integers(0, N, (6, 2)):
        allowed = mask.allowed(N)
        allowed[row, column] ^= True
        seen = one(allowed)
        if seen.name == "other":
            assert len(seen.mask.triangular_rows(N)) == 0
            query, key = random(1, N, 4), random(1, N, 4, seed=1)
            expected = applied(allowed, query, key)
            torch.testing.assert_close(operator(seen, query, key).dense(), expected, rtol=0, atol=1e-12)
        else:
            inside = seen.mask.visible_positions(N)
            rows, columns = slice(inside.start, inside.stop), slice(None)
            assert torch.equal(seen.mask.allowed(N)[rows, columns], allowed[rows, columns])


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_without_a_name_keeps_its_numbers(seed: int) -> None:
    allowed = random(N, N, seed=seed) > 0.3
    allowed[2] = False
    query, key = random(2, N, 4), random(2, N, 4, seed=1)
    for mask in (allowed, torch.where(allowed, random(2, N, N, seed=2), -torch.inf)):
        seen = one(mask)
        assert seen.name == "other"
        found = operator(seen, query, key)
        expected = applied(mask, query, key)
        torch.testing.assert_close(found.dense(), expected, rtol=0, atol=1e-12)
        x, y = random(2, N, 3, seed=3).double(), random(2, N, 3, seed=4).double()
        torch.testing.assert_close(found @ x, expected @ x, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.adjoint_product(y), expected.mT @ y, rtol=0, atol=1e-12)
        assert "triangular" not in found.structure


def test_heads_with_masks_of_their_own_are_other() -> None:
    allowed = torch.stack([Causal().allowed(N), Backward().allowed(N)])
    seen = one(allowed)
    assert seen.name == "other"
    query, key = random(2, N, 4), random(2, N, 4, seed=1)
    torch.testing.assert_close(operator(seen, query, key).dense(), applied(allowed, query, key), rtol=0, atol=1e-12)


def test_a_sequence_that_is_all_padding_gives_zero() -> None:
    seen = one(torch.zeros(N, N, dtype=torch.bool))
    assert seen.name == "other"
    assert not operator(seen, random(1, N, 4), random(1, N, 4)).dense().any()


@pytest.mark.parametrize(("causal", "kind", "expected"), [
    (True, "self", Causal()), (False, "self", Bidirectional()), (False, "cross", Cross(4, 4)),
])  # fmt: skip
def test_without_a_tensor_the_flag_decides(causal: bool, kind: str, expected: Mask) -> None:
    seen = classify(None, None, causal=causal, shape=(2, 4, 4), kind=kind)
    assert [each.mask for each in seen] == [expected] * 2


def test_a_causal_rectangle_is_aligned_to_the_upper_left_as_in_sdpa() -> None:
    (seen,) = classify(None, None, causal=True, shape=(1, 3, 5), kind="cross")
    query, key = random(1, 3, 4), random(1, 5, 4, seed=1)
    mask = torch.ones(3, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(operator(seen, query, key).dense(), applied(mask, query, key), rtol=0, atol=1e-12)
    assert seen.name == "other"


def test_padding_of_another_sequence_is_left_out() -> None:
    allowed = torch.ones(3, 5, dtype=torch.bool)
    assert one(allowed, kind="cross").keys is None
    allowed[:, 0] = allowed[:, 4] = False
    query, key = random(1, 3, 4), random(1, 5, 4, seed=1)
    for mask in (allowed, torch.where(allowed, random(3, 5, seed=2), -torch.inf)):
        seen = one(mask, kind="cross")
        assert (seen.mask, seen.keys, seen.name) == (Cross(3, 3), slice(1, 4), "padded cross")
        expected = applied(mask, query, key)[..., 1:4]
        torch.testing.assert_close(operator(seen, query, key).dense(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [Causal(), Bidirectional(), Window(3), Padded(Causal(), 5, 2)], ids=str)
@pytest.mark.parametrize("form", ["beside", "inside"])
def test_relative_positions_become_one_number_per_offset(mask: Mask, form: str) -> None:
    strip = random(2, 2 * N - 1)
    bias = OffsetBias(values=strip).block((0, N), (0, N), N)
    allowed = mask.allowed(N)
    inside = torch.where(allowed, bias, torch.finfo(torch.float32).min)
    seen = one(allowed, bias) if form == "beside" else one(inside)
    assert seen.mask == mask
    assert isinstance(seen.bias, OffsetBias)
    query, key = random(2, N, 4), random(2, N, 4, seed=1)
    expected = applied(allowed, query, key, bias)
    torch.testing.assert_close(operator(seen, query, key).dense(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slopes", [[0.5, 0.25], [0.3, 0.7]])
def test_slopes_on_the_key_alone_are_offsets_but_for_a_number_per_row(slopes: list[float]) -> None:
    bias = (torch.tensor(slopes)[:, None] * torch.arange(N)).float()[:, None, :].expand(2, N, N)
    seen = one(torch.where(Causal().allowed(N), bias, -torch.inf))
    assert (seen.mask, type(seen.bias)) == (Causal(), OffsetBias)
    query, key = random(2, N, 4), random(2, N, 4, seed=1)
    expected = applied(Causal().allowed(N), query, key, bias)
    torch.testing.assert_close(operator(seen, query, key).dense(), expected, rtol=0, atol=2e-6)


def test_a_bias_that_offsets_do_not_give_back_stays_dense() -> None:
    bias = OffsetBias(values=random(1, 2 * N - 1)).block((0, N), (0, N), N).clone()
    bias[0, 5, 3] += 1e-3
    seen = one(Causal().allowed(N), bias)
    assert (seen.mask, type(seen.bias)) == (Causal(), DenseBias)
    query, key = random(1, N, 4), random(1, N, 4, seed=1)
    expected = applied(Causal().allowed(N), query, key, bias)
    torch.testing.assert_close(operator(seen, query, key).dense(), expected, rtol=0, atol=1e-12)


def test_a_causal_flag_holds_beside_a_bias() -> None:
    seen = one(None, random(1, N, N), causal=True)
    assert (seen.mask, type(seen.bias)) == (Causal(), DenseBias)


def test_zeros_are_no_bias() -> None:
    assert one(Causal().allowed(N), torch.zeros(2, N, N)).bias is None
    assert one(None, torch.zeros(2, 3, 5), kind="cross").bias is None


def test_sequences_with_equal_masks_share_one_value() -> None:
    masks = torch.stack([m.allowed(N) for m in (Causal(), Causal(), Padded(Causal(), 4), Causal())])[:, None]
    seen = classify(masks, None, causal=False, shape=(4, N, N), kind="self")
    assert seen[0] is seen[1]
    assert [each.mask for each in seen] == [Causal(), Causal(), Padded(Causal(), 4), Causal()]


def test_one_tensor_is_classified_once_in_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(masks_seen, "classify", lambda *_, **__: calls.append(1) or ())
    reader, mask = MaskReader(), Causal().allowed(N)[None, None]
    settings: Any = {"causal": False, "shape": (1, N, N), "kind": "self"}
    for _ in range(3):
        reader.read(mask[:, :, :, :N], None, **settings)  # a view made anew for every layer
    assert len(calls) == 1
    mask[0, 0, 0, 1] = True
    reader.read(mask, None, **settings)
    assert len(calls) == 2  # written to in place, it is another mask
    reader.forget()
    reader.read(mask, None, **settings)
    assert len(calls) == 3


def test_a_mask_made_in_inference_mode_is_read() -> None:
    with torch.inference_mode():
        mask = Window(2).allowed(N)[None, None].clone()
        (seen,) = MaskReader().read(mask, None, causal=False, shape=(1, N, N), kind="self")
    assert seen.mask == Window(2)
