"""The check compares what was captured with the model itself, and finds out what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hooks.families import FAMILIES, LENGTH, SEQUENCES, tiny_model
from tiny import model_config
from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks import Agreement, check_against_eager
from rankkit.hooks.recorder import Recorder
from rankkit.models import Transformer

LIMIT = 5e-6


@pytest.mark.parametrize(("family", "padding", "against", "matrices"), [
    ("gpt2", "left", "eager", 36), ("llama", "right", "eager", 36), ("t5", "right", "eager", 72),
    ("bart", "left", "eager", 72),
    ("gemma2", "left", "eager", 36), ("gpt-oss", "none", "eager", 36), ("modernbert", "right", "eager", 36),
    ("falcon-alibi", "left", "values", 24), ("bloom", "right", "softmax", 0),
])  # fmt: skip
def test_capture_agrees_with_the_model(family: str, padding: str, against: str, matrices: int) -> None:
    model, inputs = tiny_model(family, padding)
    before = model.config._attn_implementation
    found = check_against_eager(model, inputs)
    assert (found.mode, found.against, found.compared) == (FAMILIES[family].mode, against, matrices)
    assert found.matrices <= LIMIT
    assert found.outputs == 0
    assert found.holds
    assert found.reason
    assert model.config._attn_implementation == before


def test_layers_and_heads_are_chosen() -> None:
    for family in ("llama", "falcon-alibi"):
        model, inputs = tiny_model(family, "left")
        found = check_against_eager(model, inputs, layers=[1], heads=[0, 3])
        assert found.compared == 2 * SEQUENCES
        assert found.holds


def test_a_model_that_was_made_eager_is_compared_under_sdpa() -> None:
    model, inputs = tiny_model("llama")
    model.set_attn_implementation("eager")
    found = check_against_eager(model, inputs)
    assert (found.mode, found.outputs) == ("qk", 0)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(("family", "change"), [
    ("llama", {"scale": 0.4}), ("llama", {"mask": None}), ("gpt2", {"mask": None, "causal": False}),
    ("falcon", {"scale": 0.4}), ("falcon-alibi", {"mask": None, "causal": True}),
])  # fmt: skip
def test_a_wrong_capture_does_not_hold(family: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_model(family, "right")
    record = Recorder.record
    monkeypatch.setattr(Recorder, "record", lambda self, call, *rest: record(self, replace(call, **change), *rest))
    found = check_against_eager(model, inputs)
    assert found.matrices > 0.01
    assert not found.holds


def test_an_output_that_changes_does_not_hold() -> None:
    class Drifting(nn.Module):
        passes = 0

        def forward(self, x: Tensor) -> dict[str, Any]:
            self.passes += 1
            return {"states": [F.scaled_dot_product_attention(x, x, x)], "passes": torch.tensor([float(self.passes)])}

    found = check_against_eager(Drifting().eval(), (torch.randn(2, 3, LENGTH, 4),))
    assert (found.outputs, found.against, found.compared, found.holds) == (1.0, "values", 6, False)


def test_a_module_of_one_s_own_is_compared_by_its_values() -> None:
    class Call(nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, key, enable_gqa=True, is_causal=True)

    query, key = torch.randn(2, 4, LENGTH, 4), torch.randn(2, 2, LENGTH, 4)
    found = check_against_eager(Call().eval(), {"query": query, "key": key})
    assert found.matrices <= LIMIT
    assert (found.outputs, found.compared, found.tolerance) == (0, 8, 1e-4)
    assert check_against_eager(Call().eval(), (query.double(), key.double())).tolerance == 1e-9


def test_half_precision_has_its_own_tolerance() -> None:
    model, inputs = tiny_model("llama", "right")
    found = check_against_eager(model.to(torch.bfloat16), inputs)
    assert found.tolerance == 0.25
    assert found.matrices > 1e-4
    assert found.outputs == 0


def test_what_it_takes_to_hold() -> None:
    fair = Agreement(
        mode="qk", reason="", against="eager", matrices=1e-4, outputs=0.0, compared=1, tolerance=1e-4,
    )  # fmt: skip
    assert fair.holds
    assert not replace(fair, matrices=1.1e-4).holds
    assert not replace(fair, matrices=float("inf")).holds
    assert not replace(fair, outputs=1e-9).holds


def test_models_that_cannot_be_checked_are_refused() -> None:
    model, inputs = tiny_model("gpt2")
    with pytest.raises(CaptureError, match=r"model must be in evaluation mode, got GPT2LMHeadModel .*Call model\.eval"):
        check_against_eager(model.train(), inputs)
    with pytest.raises(
        CaptureError, match=r"model must not be rankkit's own, got Transformer\. Its kernel is what is hooked"
    ):
        check_against_eager(Transformer(model_config()).eval(), {})
