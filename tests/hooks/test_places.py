"""Layers are numbered over their stack, as their blocks are where these have numbers."""

from __future__ import annotations

import pytest
from torch import nn

from rankkit.hooks.places import Places, is_cross


class Attention(nn.Module):
    pass


def block(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def blocks(count: int, *, attention: tuple[int, ...] | None = None) -> nn.ModuleList:
    """Blocks of which some have attention."""
    chosen = range(count) if attention is None else attention
    return nn.ModuleList(block(attn=Attention()) if i in chosen else block(mlp=nn.Linear(1, 1)) for i in range(count))


def numbers(model: nn.Module, *modules: str) -> list[tuple[str, int, str]]:
    places = Places(model)
    found = [places.next(module, cross=False) for module in modules]
    return [(place.stack, place.layer, place.kind) for place in found]


def test_one_stack_has_no_name_and_blocks_keep_their_numbers() -> None:
    model = block(transformer=block(h=blocks(5, attention=(1, 4)), experts=nn.ModuleList([nn.Linear(1, 1)])))
    assert numbers(model, "transformer.h.1.attn", "transformer.h.4.attn") == [("", 1, "self"), ("", 4, "self")]


def test_several_stacks_are_named_where_their_paths_part() -> None:
    model = block(model=block(vision=block(encoder=block(layers=blocks(2))), text=block(layers=blocks(2))))
    assert numbers(
        model, "model.vision.encoder.layers.0.attn", "model.text.layers.0.attn", "model.text.layers.1.attn"
    ) == [("vision", 0, "self"), ("text", 0, "self"), ("text", 1, "self")]


def test_self_and_cross_attention_are_counted_apart() -> None:
    layer = nn.ModuleList([block(SelfAttention=Attention()), block(EncDecAttention=Attention())])
    model = block(decoder=block(block=nn.ModuleList([block(layer=layer), block(layer=layer)])))
    assert numbers(
        model, "decoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.1.EncDecAttention",
        "decoder.block.1.layer.0.SelfAttention", "decoder.block.1.layer.1.EncDecAttention",
    ) == [("", 0, "self"), ("", 0, "cross"), ("", 1, "self"), ("", 1, "cross")]  # fmt: skip


def test_blocks_that_are_used_again_are_counted() -> None:
    model = block(groups=blocks(1))
    assert [layer for _, layer, _ in numbers(model, *["groups.0.attn"] * 3)] == [0, 1, 2]


def test_blocks_inside_blocks_are_counted() -> None:
    model = block(layers=nn.ModuleList([block(blocks=blocks(2)), block(blocks=blocks(2))]))
    names = [f"layers.{i}.blocks.{j}.attn" for i in range(2) for j in range(2)]
    assert [layer for _, layer, _ in numbers(model, *names)] == [0, 1, 2, 3]


def test_a_sequence_of_blocks_may_be_the_model_itself() -> None:
    assert numbers(nn.Sequential(*blocks(2)), "0.attn", "1.attn") == [("", 0, "self"), ("", 1, "self")]


def test_attention_outside_blocks_is_counted() -> None:
    assert numbers(block(pool=Attention()), "pool", "pool") == [("", 0, "self"), ("", 1, "self")]


def test_another_pass_starts_again() -> None:
    places = Places(block(h=blocks(2)))
    assert [places.next("h.0.attn", cross=False).layer, places.next("h.0.attn", cross=False).layer] == [0, 1]
    places.restart()
    assert places.next("h.0.attn", cross=False).layer == 0


def test_a_module_from_elsewhere_is_called_by_its_class() -> None:
    assert Places(block(h=blocks(1))).name(Attention()) == "Attention"


@pytest.mark.parametrize(("name", "expected"), [
    ("decoder.layers.0.encoder_attn", True), ("bert.encoder.layer.0.crossattention.self", True),
    ("decoder.block.0.layer.1.EncDecAttention", True), ("blocks.0.cross_attn", True),
    ("encoder.layers.0.self_attn", False), ("encoder.attention.self", False), ("h.0.attn", False),
])  # fmt: skip
def test_names_tell_cross_attention(name: str, expected: bool) -> None:
    assert is_cross(name) is expected
