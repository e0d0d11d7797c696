"""Replaced attention: chosen heads get what the function returns, everything else keeps its bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import model_config, widen
from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks import capture, replaced_attention
from rankkit.masks import Backward, Causal, MaskKind
from rankkit.models import KeyValueCache, Transformer
from rankkit.operators import AttentionOperator

LENGTH, LAYERS, HEADS, PREFIXES = 12, 3, 3, [5, 5, 0, 11]


def model_of(mask: MaskKind = MaskKind.PREFIX) -> Transformer:
    return widen(Transformer(model_config(mask=mask, num_layers=LAYERS, num_heads=HEADS, vocab_size=40)))


def some_tokens(sequences: int = len(PREFIXES)) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 40, (sequences, LENGTH)))


def mixed_by(model: Transformer) -> dict[int, Tensor]:
    """What leaves the kernel's module in each layer, "sequence head query feature", as later modules get it."""
    found: dict[int, Tensor] = {}
    for layer, block in enumerate(model.blocks):
        block.attention.output.register_forward_pre_hook(
            lambda _, inputs, layer=layer: found.update(
                {layer: inputs[0].reshape(-1, LENGTH, HEADS, 8).transpose(1, 2)}
            )
        )
    return found


def dense_product(operator: AttentionOperator, value: Tensor) -> Tensor:
    return operator.dense() @ value.double()


@pytest.mark.parametrize("mask", list(MaskKind))
def test_attention_written_out_in_its_place_gives_the_models_own_output(mask: MaskKind) -> None:
    model, tokens = model_of(mask), some_tokens()
    with torch.no_grad():
        expected = model(tokens, PREFIXES)
        with replaced_attention(model, dense_product):
            found = model(tokens, PREFIXES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_only_the_chosen_heads_of_the_chosen_layers_change_and_the_others_keep_their_bits() -> None:
    model, tokens = model_of(), some_tokens()
    mixed = mixed_by(model)
    with torch.no_grad():
        model(tokens, PREFIXES)
        before = dict(mixed)
        with replaced_attention(model, lambda _, value: torch.full_like(value, 7), layers=[1], heads=[2, 0]):
            model(tokens, PREFIXES)
    assert torch.equal(mixed[0], before[0])
    assert torch.equal(mixed[1][:, 1], before[1][:, 1])
    assert (mixed[1][:, [0, 2]] == 7).all()
    assert not torch.equal(mixed[2], before[2])


def test_chosen_heads_of_a_mixture_are_replaced_under_their_own_masks() -> None:
    model, tokens, seen = model_of(MaskKind.MIXED_HEADS), some_tokens(), []
    mixed = mixed_by(model)

    def watch(operator: AttentionOperator, value: Tensor) -> Tensor:
        seen.append(operator.mask)
        return dense_product(operator, value) + 1

    with torch.no_grad():
        model(tokens, PREFIXES)
        before = dict(mixed)
        with replaced_attention(model, watch, layers=[0], heads=[2, 1]):
            model(tokens, PREFIXES)
    assert seen == [Causal(), Backward()]
    assert torch.equal(mixed[0][:, 0], before[0][:, 0])
    torch.testing.assert_close(mixed[0][:, 1:], before[0][:, 1:] + 1, rtol=0, atol=1e-11)


def test_the_function_gets_each_run_of_equal_masks_with_its_own_queries_keys_and_values() -> None:
    model, tokens, seen = model_of(), some_tokens(), []

    def watch(operator: AttentionOperator, value: Tensor) -> Tensor:
        seen.append((operator, value))
        return dense_product(operator, value)

    with (
        torch.no_grad(),
        capture(model, layers=[2]) as captured,
        replaced_attention(model, watch, layers=[2], heads=[1]),
    ):
        model(tokens, PREFIXES)
    (factors,) = captured.layers
    assert [operator.mask for operator, _ in seen] == [MaskKind.PREFIX.at(p) for p in (5, 0, 11)]
    assert [operator.batch_shape for operator, _ in seen] == [(2, 1), (1, 1), (1, 1)]
    assert all(operator.labels["layer"] == 2 for operator, _ in seen)
    assert torch.equal(torch.cat([operator.query for operator, _ in seen]), factors.query[:, 1:2])
    assert torch.equal(torch.cat([operator.key for operator, _ in seen]), factors.key[:, 1:2])
    assert sum(len(value) for _, value in seen) == len(PREFIXES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_returned_is_cast_to_the_models_dtype(dtype: torch.dtype) -> None:
    model = model_of().to(dtype)
    mixed = mixed_by(model)
    with torch.no_grad(), replaced_attention(model, lambda _, value: torch.full_like(value, 1 / 3).double()):
        model(some_tokens(), PREFIXES)
    assert all(found.dtype == dtype and (found == torch.tensor(1 / 3, dtype=dtype)).all() for found in mixed.values())


@pytest.mark.parametrize("failure", ["none", "body", "function"])
def test_the_model_is_as_it_was_however_the_context_ends(failure: str) -> None:
    model, tokens = model_of(), some_tokens()

    def spoil(operator: AttentionOperator, value: Tensor) -> Tensor:
        if failure == "function":
            raise KeyError
        return torch.zeros_like(value)

    with torch.no_grad():
        before = model(tokens, PREFIXES)
        try:
            with replaced_attention(model, spoil):
                assert not torch.equal(model(tokens, PREFIXES), before)
                if failure == "body":
                    raise KeyError
        except KeyError:
            assert failure != "none"
        assert torch.equal(model(tokens, PREFIXES), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_heads_models_and_caches_that_cannot_be_replaced_are_refused() -> None:
    model, cache = model_of(), KeyValueCache()
    with pytest.raises(CaptureError, match=r"layers must be within 0\.\.2, got \[3\]"), \
            replaced_attention(model, dense_product, layers=[3]):  # fmt: skip
        pass
    with pytest.raises(CaptureError, match=r"heads must be within 0\.\.2 \(layer 0\), got \[5\]"), \
            replaced_attention(model, dense_product, heads=[5]):  # fmt: skip
        model(some_tokens(), PREFIXES)
    with pytest.raises(CaptureError, match="model must be a rankkit Transformer, got Linear"), \
            replaced_attention(nn.Linear(2, 2), dense_product):  # fmt: skip
        pass
    model(some_tokens(1), 5, cache=cache)
    with pytest.raises(CaptureError, match="attention must be captured over whole sequences, got 1 queries for 13 keys"), \
            replaced_attention(model, dense_product):  # fmt: skip
        model(torch.tensor([[1]]), 0, cache=cache)


def test_other_models_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"model must be a rankkit Transformer, got Linear without fused attention"), \
            replaced_attention(nn.Linear(2, 2), lambda operator, values: values):  # fmt: skip
        pass
