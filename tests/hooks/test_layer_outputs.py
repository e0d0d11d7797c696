"""A layer's output: what the attention of all heads adds to the residual stream, seen without a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import model_config, widen
from torch import Tensor, nn

from rankkit.hooks import LayerFactors, capture
from rankkit.masks import MaskKind
from rankkit.models import Transformer, transformer

LENGTH, LAYERS, PREFIXES = 12, 3, [5, 5, 0, 11]


def model_of(mask: MaskKind = MaskKind.PREFIX) -> Transformer:
    return widen(Transformer(model_config(mask=mask, num_layers=LAYERS, vocab_size=40)))


def some_tokens() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 40, (len(PREFIXES), LENGTH)))


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def by_layer(model: Transformer, **chosen: Any) -> dict[int, LayerFactors]:
    with torch.no_grad(), capture(model, outputs=True, **chosen) as captured:
        model(some_tokens(), PREFIXES)
    return {factors.layer: factors for factors in captured.layers}


@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX])
def test_the_output_is_the_sum_over_heads_of_attention_times_input_times_both_weights(mask: MaskKind) -> None:
    model, inputs = model_of(mask), []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    for layer, factors in by_layer(model).items():
        attention, x = model.blocks[layer].attention, inputs[layer]
        value_weights = attention.projection.weight[48:].reshape(3, 8, 16)  # head feature d_model, after Q and K
        output_weights = attention.output.weight.reshape(16, 3, 8)
        dense = torch.stack([operator.dense() for operator in factors.operators()])
        expected = sum(
            dense[:, head] @ x @ value_weights[head].T @ output_weights[:, head].T for head in range(3)
        )  # fmt: skip
        assert factors.output is not None
        torch.testing.assert_close(factors.output, expected, rtol=0, atol=1e-11)


def test_choosing_heads_does_not_change_the_output() -> None:
    model = model_of()
    whole, one = by_layer(model), by_layer(model, heads=[1], layers=[0, 2])
    assert sorted(one) == [0, 2]
    for layer, factors in one.items():
        assert factors.query.shape[1] == 1
        assert factors.output is not None
        assert torch.equal(factors.output, whole[layer].output)


def test_without_being_asked_for_there_is_no_output() -> None:
    model = model_of()
    with torch.no_grad(), capture(model) as captured:
        model(some_tokens(), PREFIXES)
    assert [factors.output for factors in captured.layers] == [None] * LAYERS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_forward_pass_keeps_its_bits_and_the_output_its_dtype(dtype: torch.dtype) -> None:
    model, tokens = model_of().to(dtype), some_tokens()
    with torch.no_grad():
        before = model(tokens, PREFIXES)
        with capture(model, outputs=True) as captured:
            during = model(tokens, PREFIXES)
    assert torch.equal(during, before)
    assert all(factors.output is not None and factors.output.dtype == dtype for factors in captured.layers)


def test_outputs_carry_no_gradient_and_leave_that_of_the_model_alone() -> None:
    model, tokens, found = model_of(), some_tokens(), []
    for outputs in (False, True):
        model.zero_grad()
        with capture(model, outputs=outputs) as captured:
            model(tokens, PREFIXES).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert not any(factors.output is None or factors.output.requires_grad for factors in captured.layers)
    assert all(torch.equal(plain, captured) for plain, captured in zip(*found, strict=True))


def test_each_layer_is_handed_over_once_with_factors_and_output_before_the_next_one_begins() -> None:
    model, events = model_of(), []
    for layer, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _, __, layer=layer: events.append(("begin", layer)))

    def receive(factors: LayerFactors) -> None:
        assert factors.output is not None
        assert factors.output.shape == (len(PREFIXES), LENGTH, 16)
        events.append(("received", factors.layer))

    with torch.no_grad(), capture(model, outputs=True, on_layer=receive) as kept:
        model(some_tokens(), PREFIXES)
    assert events == [(what, layer) for layer in range(LAYERS) for what in ("begin", "received")]
    assert kept.layers == []


def test_a_forward_pass_that_failed_leaves_nothing_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    with torch.no_grad(), capture(model, outputs=True, layers=[1]) as captured:
        with monkeypatch.context() as broken:
            broken.setattr(transformer, "attend_groups", lambda *_, **__: {}["nothing"])
            with pytest.raises(KeyError):
                model(some_tokens(), PREFIXES)
        model(some_tokens()[:2], 4)
    (factors,) = captured.layers
    assert factors.output is not None
    assert len(factors.query) == len(factors.output) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_removed_however_the_context_ends(fails: bool) -> None:
    model = model_of()
    try:
        with capture(model, outputs=True, layers=[0, 2]):
            assert hooks_of(model) == 4
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert hooks_of(model) == 0
