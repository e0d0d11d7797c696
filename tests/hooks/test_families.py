"""Captured operators are the model's own eager attention, and capture leaves the model's output its bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hooks.families import FAMILIES, applied_maps, eager_maps, tiny_model
from torch import Tensor

import rankkit
from rankkit.hooks import Captured

LIMIT = 5e-6  # float32: layers below differ by rounding between SDPA and eager attention

CASES = [(family, padding) for family, facts in FAMILIES.items() for padding in facts.paddings]


def first_output(output: Any) -> Tensor:
    return output.logits if "logits" in output else output.last_hidden_state


def by_place(captured: Captured) -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for layer in captured.layers + captured.matrices:
        found.setdefault((layer.stack, layer.kind), []).append(layer)
    return found


@pytest.mark.parametrize(("family", "padding"), CASES)
def test_operators_are_the_eager_maps_and_the_output_keeps_its_bits(family: str, padding: str) -> None:
    model, inputs = tiny_model(family, padding)
    with torch.no_grad():
        plain = first_output(model(**inputs))
        with rankkit.capture(model) as captured:
            during = first_output(model(**inputs))
        after = first_output(model(**inputs))
    assert captured.mode == FAMILIES[family].mode
    assert torch.equal(during, plain)
    assert torch.equal(after, plain)
    reference = applied_maps if FAMILIES[family].twice else eager_maps
    expected, found = reference(model, inputs), by_place(captured)
    assert found.keys() == set(FAMILIES[family].kinds)
    for place, maps in expected.items():
        assert [layer.layer for layer in found[place]] == list(range(len(maps)))
        for layer, map_ in zip(found[place], maps, strict=True):
            for operator, theirs in zip(layer.operators(), map_, strict=True):
                ours = operator.dense(torch.float32)
                rows = (ours.sum(dim=-1) > 0).all(dim=0)
                assert rows.sum() >= 5
                ours = torch.nn.functional.pad(ours, (0, theirs.shape[-1] - ours.shape[-1]))
                assert float((ours - theirs)[:, rows].abs().max()) <= LIMIT
                assert float(theirs[:, rows].std()) > 0.02  # not uniform
