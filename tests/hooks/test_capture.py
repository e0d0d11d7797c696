"""Capture sees the kernel's own inputs, changes nothing, keeps nothing it was not asked to, and leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import reference
import torch
from tiny import model_config, widen
from torch import Tensor, nn

from rankkit.errors import CaptureError
from rankkit.hooks import LayerFactors, capture
from rankkit.masks import Backward, Causal, MaskKind
from rankkit.models import KeyValueCache, Transformer, transformer
from rankkit.operators import OffsetBias

LENGTH = 12
PREFIXES = [5, 5, 0, 11]
LAYERS, HEADS = 3, 3


def model_of(mask: MaskKind = MaskKind.PREFIX, position: Any = "rope") -> Transformer:
    config = model_config(mask=mask, position=position, num_layers=LAYERS, num_heads=HEADS, vocab_size=40)
    return widen(Transformer(config))


def some_tokens(sequences: int = len(PREFIXES)) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 40, (sequences, LENGTH)))


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX])
def test_the_forward_pass_is_bit_identical_to_the_one_without_capture(mask: MaskKind, dtype: torch.dtype) -> None:
    model, tokens = model_of(mask).to(dtype), some_tokens()
    with torch.no_grad():
        before = model(tokens, PREFIXES)
        with capture(model):
            during = model(tokens, PREFIXES)
        with capture(model, layers=[1], heads=[0], on_layer=lambda factors: None):
            streamed = model(tokens, PREFIXES)
    assert torch.equal(during, before)
    assert torch.equal(streamed, before)


def test_gradients_are_bit_identical_too() -> None:
    model, tokens, found = model_of(), some_tokens(), []
    for captured in (False, True):
        model.zero_grad()
        if captured:
            with capture(model):
                model(tokens, PREFIXES).square().sum().backward()
        else:
            model(tokens, PREFIXES).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(plain, captured) for plain, captured in zip(*found, strict=True))


@pytest.mark.parametrize("position", ["rope", "learned", "none", "alibi"])
@pytest.mark.parametrize("mask", list(MaskKind))
def test_factors_and_matrices_are_those_of_the_model_written_slowly(mask: MaskKind, position: Any) -> None:
    model, tokens = model_of(mask, position), some_tokens()
    with torch.no_grad(), capture(model) as operators:
        model(tokens, PREFIXES)
    runs = [slice(0, 2), slice(2, 3)] if mask is MaskKind.MIXED_HEADS else [slice(0, 3)]
    assert len(operators) == LAYERS * len(PREFIXES) * len(runs)
    for number, operator in enumerate(operators):
        layer, sequence = int(operator.labels["layer"]), int(operator.labels["sequence"])
        heads = runs[number % len(runs)]
        assert operator.labels.get("heads") == (None if len(runs) == 1 else f"{heads.start}..{heads.stop - 1}")
        allowed = reference.allowed(model.config, PREFIXES[sequence], LENGTH)
        assert torch.equal(operator.mask.allowed(LENGTH), torch.from_numpy(allowed[layer, heads.start]))
        assert operator.labels["kind"] == "self"
        assert operator.scale == 8**-0.5
        slow = reference.forward(model, tokens[sequence].tolist(), allowed)
        for found, expected in (
            (operator.query, slow.queries), (operator.key, slow.keys), (operator.dense(), slow.attention),
        ):  # fmt: skip
            np.testing.assert_allclose(found.numpy(), np.stack(expected[layer][heads]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX, MaskKind.MIXED_HEADS])
def test_products_under_alibi_are_those_of_the_models_matrices_without_them(mask: MaskKind) -> None:
    model, tokens = model_of(mask, "alibi"), some_tokens()
    with torch.no_grad(), capture(model) as operators:
        model(tokens, PREFIXES)
    for operator in operators:
        assert isinstance(operator.bias, OffsetBias)
        sequence, heads = int(operator.labels["sequence"]), operator.batch_shape[0]
        slow = reference.forward(
            model, tokens[sequence].tolist(), reference.allowed(model.config, PREFIXES[sequence], LENGTH)
        )
        first = int(str(operator.labels.get("heads", "0")).split("..")[0])
        matrix = torch.from_numpy(np.stack(slow.attention[int(operator.labels["layer"])][first : first + heads]))
        probes = torch.randn(heads, LENGTH, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(operator @ probes, matrix @ probes, rtol=0, atol=1e-11)
        torch.testing.assert_close(operator.T @ probes, matrix.mT @ probes, rtol=0, atol=1e-11)
        torch.testing.assert_close(operator.gram_product(probes)[1], matrix.mT @ matrix @ probes, rtol=0, atol=1e-11)


def test_chosen_heads_keep_their_masks_and_biases() -> None:
    model, tokens = model_of(MaskKind.MIXED_HEADS, "alibi"), some_tokens()
    with torch.no_grad(), capture(model) as everything:
        model(tokens, PREFIXES)
    with torch.no_grad(), capture(model, heads=[2, 1]) as chosen:
        model(tokens, PREFIXES)
    for whole, some in zip(everything.layers, chosen.layers, strict=True):
        (_, looking_back), (_, looking_ahead) = some.operators_by_mask()
        assert (looking_back.mask, looking_ahead.mask) == (Causal(), Backward())
        both = torch.cat([operator.dense() for _, operator in whole.operators_by_mask()], dim=1)
        assert torch.equal(torch.cat([looking_back.dense(), looking_ahead.dense()], dim=1), both[:, 1:])


def test_dense_times_values_is_what_the_fused_kernel_returned() -> None:
    model, tokens = model_of(), some_tokens()
    values, outputs = [], []

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        values.append(inputs[2])
        outputs.append(output)

    for block in model.blocks:
        block.attention.fused.register_forward_hook(keep)
    with torch.no_grad(), capture(model) as operators:
        model(tokens, PREFIXES)
    for operator in operators:
        layer, sequence = int(operator.labels["layer"]), int(operator.labels["sequence"])
        torch.testing.assert_close(
            operator.dense() @ values[layer][sequence], outputs[layer][sequence], rtol=0, atol=1e-12
        )


def test_operators_come_by_layer_then_sequence_and_pass_after_pass() -> None:
    model = model_of()
    with torch.no_grad(), capture(model) as operators:
        model(some_tokens(), PREFIXES)
        model(some_tokens(2), 4)
    order = [(operator.labels["layer"], operator.labels["sequence"]) for operator in operators]
    assert order == [(layer, s) for layer in range(LAYERS) for s in range(4)] + [
        (layer, s) for layer in range(LAYERS) for s in range(2)
    ]
    assert len(operators) == len(order)
    assert [factors.layer for factors in operators.layers] == [0, 1, 2, 0, 1, 2]


def test_layers_and_heads_are_chosen() -> None:
    model, tokens = model_of(), some_tokens()
    with torch.no_grad(), capture(model) as everything:
        model(tokens, PREFIXES)
    with torch.no_grad(), capture(model, layers=[2, 0, 2], heads=(2, 0)) as chosen:
        model(tokens, PREFIXES)
    whole = {factors.layer: factors for factors in everything.layers}
    assert [factors.layer for factors in chosen.layers] == [0, 2]
    for factors in chosen.layers:
        assert torch.equal(factors.query, whole[factors.layer].query[:, [0, 2]])
        assert torch.equal(factors.key, whole[factors.layer].key[:, [0, 2]])


def test_operators_by_mask_join_equal_neighbours_into_the_same_matrices() -> None:
    model = model_of()
    with torch.no_grad(), capture(model, layers=[1]) as captured:
        model(some_tokens(), PREFIXES)
    (factors,) = captured.layers
    single = [operator.dense() for operator in factors.operators()]
    runs = list(factors.operators_by_mask())
    assert [(part.start, part.stop, operator.mask) for (part, _), operator in runs] == [
        (0, 2, MaskKind.PREFIX.at(5)), (2, 3, MaskKind.PREFIX.at(0)), (3, 4, MaskKind.PREFIX.at(11)),
    ]  # fmt: skip
    assert torch.equal(torch.cat([operator.dense() for _, operator in runs]), torch.stack(single))
    assert dict(runs[0][1].labels) == {"layer": 1, "kind": "self"}


def test_streaming_keeps_at_most_one_layer_alive_without_waiting_for_the_garbage_collector() -> None:
    model, seen = model_of(), []
    alive: list[weakref.ref[Any]] = []

    def watch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        alive.extend(weakref.ref(tensor) for tensor in inputs[:2])

    def receive(factors: LayerFactors) -> None:
        older = [tensor for reference in alive[:-2] if (tensor := reference()) is not None]
        assert not older, f"layer {factors.layer} met the factors of an older one"
        alive.extend((weakref.ref(factors.query), weakref.ref(factors.key)))
        seen.append(factors.layer)

    for block in model.blocks:
        block.attention.fused.register_forward_pre_hook(watch)  # runs before capture's: its two are the current layer's
    gc.disable()
    try:
        with torch.no_grad(), capture(model, on_layer=receive) as kept:
            model(some_tokens(), PREFIXES)
            model(some_tokens(), PREFIXES)
    finally:
        gc.enable()
    assert seen == [0, 1, 2, 0, 1, 2]
    assert kept.layers == []
    assert len(kept) == 0


def test_a_collector_that_is_still_empty_gets_its_layers() -> None:
    class Collector(list[int]):
        def __call__(self, factors: LayerFactors) -> None:
            self.append(factors.layer)

    collector = Collector()
    with torch.no_grad(), capture(model_of(), on_layer=collector) as kept:
        pass
    model = model_of()
    with torch.no_grad(), capture(model, on_layer=collector) as kept:
        model(some_tokens(), PREFIXES)
    assert collector == [0, 1, 2]
    assert kept.layers == []


def test_captured_factors_carry_no_gradient() -> None:
    model = model_of()
    with capture(model) as operators:
        model(some_tokens(), PREFIXES)
    assert not any(operator.query.requires_grad or operator.key.requires_grad for operator in operators)


def test_nothing_is_captured_outside_the_context() -> None:
    model = model_of()
    model(some_tokens(), PREFIXES)
    with capture(model, layers=[0]) as operators:
        model(some_tokens(), PREFIXES)
    model(some_tokens(), PREFIXES)
    assert len(operators) == len(PREFIXES)


@pytest.mark.parametrize("failure", ["none", "body", "receiver", "forward"])
def test_hooks_are_removed_however_the_context_ends(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()

    def receive(factors: LayerFactors) -> None:
        if failure == "receiver":
            raise KeyError

    if failure == "forward":
        monkeypatch.setattr(transformer, "attend_groups", lambda *_, **__: {}["nothing"])
    try:
        with capture(model, on_layer=receive):
            assert hooks_of(model) == LAYERS
            model(some_tokens(), PREFIXES)
            if failure == "body":
                raise KeyError
    except KeyError:
        assert failure != "none"
    assert hooks_of(model) == 0


def test_captures_nest() -> None:
    model = model_of()
    with torch.no_grad(), capture(model, layers=[0]) as outer, capture(model, layers=[0, 1]) as inner:
        model(some_tokens(), PREFIXES)
    assert ([f.layer for f in outer.layers], [f.layer for f in inner.layers]) == ([0], [0, 1])
    assert hooks_of(model) == 0


@pytest.mark.parametrize("layers", [[], [-1], [3], [0, 7]])
def test_layers_that_are_not_there_are_refused_before_anything_runs(layers: list[int]) -> None:
    model = model_of()
    with pytest.raises(CaptureError, match=r"layers must be within 0\.\.2, got .*Choose layers of this model"), \
            capture(model, layers=layers):  # fmt: skip
        pass
    assert hooks_of(model) == 0


@pytest.mark.parametrize("heads", [[], [-1], [3]])
def test_heads_that_are_not_there_are_refused(heads: list[int]) -> None:
    model = model_of()
    with pytest.raises(CaptureError, match=r"heads must be within 0\.\.2 \(layer 0\), got .*Choose heads"), \
            capture(model, heads=heads):  # fmt: skip
        model(some_tokens(), PREFIXES)
    assert hooks_of(model) == 0


def test_a_mode_of_other_models_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"mode must be auto for a rankkit Transformer, got 'torch'\. Leave it out"), \
            capture(model_of(), mode="torch"):  # fmt: skip
        pass


def test_a_capture_that_saw_nothing_says_so() -> None:
    with capture(model_of()) as operators:
        pass
    with pytest.raises(CaptureError, match=r"capture must have seen a forward pass, got none\. Call the model inside"):
        list(operators)


def test_cached_rows_are_refused_because_they_are_no_square_matrix() -> None:
    model, cache = model_of(), KeyValueCache()
    model(some_tokens(1), 5, cache=cache)
    with pytest.raises(CaptureError, match="attention must be captured over whole sequences, got 1 queries for 13 keys"), \
            capture(model):  # fmt: skip
        model(torch.tensor([[1]]), 0, cache=cache)
