"""Attention that cannot choose: uniform over what is visible, and only while the context lasts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from tiny import model_config, widen
from torch import Tensor

from rankkit.hooks import capture
from rankkit.masks import MaskKind
from rankkit.models import Transformer, uniform_attention

LENGTH = 10
TOKENS = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 35, 8, 9]])


def model_of(mask: MaskKind, position: Any = "rope") -> Transformer:
    return widen(Transformer(model_config(mask=mask, position=position, vocab_size=40)))


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    return model.logits(model(TOKENS, 4))[0]


@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX])
def test_every_head_is_uniform_over_its_visible_keys(mask: MaskKind, position: Any) -> None:
    model = model_of(mask, position)
    with uniform_attention(model), capture(model) as operators:
        logits(model)
    allowed = mask.at(4).allowed(LENGTH).double()
    expected = (allowed / allowed.sum(dim=1, keepdim=True)).expand(3, LENGTH, LENGTH)
    assert len(operators) == 2
    for operator in operators:
        torch.testing.assert_close(operator.dense(), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX])
def test_predictions_are_those_of_a_model_with_uniform_matrices(mask: MaskKind) -> None:
    model = model_of(mask)
    with uniform_attention(model):
        found = logits(model).numpy()
    allowed = mask.at(4).allowed(LENGTH).numpy()
    expected = reference.forward(model, TOKENS[0].tolist(), allowed, uniform=True).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert np.abs(found - logits(model).numpy()).max() > 1e-3


def test_the_model_is_restored_at_the_end_and_after_an_exception() -> None:
    model = model_of(MaskKind.PREFIX)
    before = logits(model)
    with uniform_attention(model):
        logits(model)
    assert torch.equal(logits(model), before)
    with pytest.raises(KeyError), uniform_attention(model):
        raise KeyError
    assert torch.equal(logits(model), before)
    assert all(not module._forward_pre_hooks for module in model.modules())
