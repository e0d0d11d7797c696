"""Hugging Face models: what they do to their arguments is kept, and they are left exactly as they were."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hooks.families import LENGTH, SEQUENCES, VOCABULARY, eager_maps, tiny_model
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rankkit
from rankkit.errors import CaptureError
from rankkit.hooks import LayerFactors, LayerMatrices, capture_mode, transformers_models
from rankkit.hooks.transformers_models import attention_mode
from rankkit.masks import Bidirectional, Causal, Prefix, Window
from rankkit.operators import OffsetBias
from rankkit.spectra import applied_floor


def state_of(model: Any) -> tuple[Any, ...]:
    """Everything that capture touches."""
    from transformers import AttentionInterface, AttentionMaskInterface

    modules = list(model.modules())
    return (
        [getattr(getattr(m, "config", None), "_attn_implementation", None) for m in modules],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called)) for m in modules],
        dict(AttentionInterface._global_mapping),
        dict(AttentionMaskInterface._global_mapping),
        model.training,
    )


@pytest.mark.parametrize("failure", ["none", "body", "receiver", "forward"])
@pytest.mark.parametrize("family", ["llama", "t5", "gemma2", "falcon"])
@torch.no_grad()
def test_the_model_is_as_it_was_however_the_context_ends(family: str, failure: str) -> None:
    model, inputs = tiny_model(family)
    before, plain = state_of(model), model(**inputs)[0]

    def receive(factors: LayerFactors) -> None:
        if failure == "receiver" and factors.layer == 1:
            raise KeyError

    ids = inputs["input_ids"] + (VOCABULARY if failure == "forward" else 0)
    try:
        with rankkit.capture(model, on_layer=receive):
            assert state_of(model) != before
            model(**{**inputs, "input_ids": ids})
            if failure == "body":
                raise KeyError
    except (KeyError, IndexError):
        assert failure != "none"
    assert state_of(model) == before
    assert torch.equal(model(**inputs)[0], plain)


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon"])
@torch.no_grad()
def test_captures_nest_on_a_model_and_on_a_part_of_it(family: str) -> None:
    model, inputs = tiny_model(family)
    before, plain = state_of(model), model(**inputs)[0]
    part = getattr(model, model.base_model_prefix)
    with rankkit.capture(model, layers=[0]) as outer, rankkit.capture(part) as middle, \
            rankkit.capture(model, layers=[1], heads=[2]) as inner:  # fmt: skip
        assert torch.equal(model(**inputs)[0], plain)
    assert [[f.layer for f in captured.layers] for captured in (outer, inner)] == [[0], [1]]
    assert len(middle.layers) == model.config.num_hidden_layers
    assert torch.equal(middle.layers[0].query, outer.layers[0].query)
    assert torch.equal(middle.layers[1].query[:, [2]], inner.layers[0].query)
    assert state_of(model) == before


@torch.no_grad()
def test_nested_captures_of_different_modes_are_refused() -> None:
    model, _ = tiny_model("llama")
    before = state_of(model)
    with rankkit.capture(model), \
            pytest.raises(CaptureError, match=r"captures of one model must share a mode, got eager inside rankkit_qk_\d+"), \
            rankkit.capture(model, mode="eager"):  # fmt: skip
        pass
    assert state_of(model) == before


@torch.no_grad()
def test_one_capture_after_another_gives_the_same() -> None:
    model, inputs = tiny_model("gpt2")
    found = []
    for _ in range(2):
        with rankkit.capture(model) as captured:
            model(**inputs)
        found.append(captured.layers)
    assert all(torch.equal(first.query, second.query) for first, second in zip(*found, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "vit"])
@torch.no_grad()
def test_the_eager_mode_can_be_asked_for(family: str) -> None:
    model, inputs = tiny_model(family)
    with rankkit.capture(model, mode="eager") as captured:
        model(**inputs)
    assert (captured.mode, captured.reason) == ("eager", "asked for")
    for factors, maps in zip(captured.layers, eager_maps(model, inputs)["", "self"], strict=True):
        ((_, operator),) = factors.operators_by_mask()
        assert float((operator.dense(torch.float32) - maps).abs().max()) <= 2e-6


@pytest.mark.parametrize(("family", "mode"), [("llama", "eager"), ("gemma2", "auto"), ("gpt-oss", "auto")])
@torch.no_grad()
def test_factors_say_in_which_precision_eager_attention_ran_and_its_floor_bounds_what_that_moved(
    family: str, mode: Any
) -> None:
    model, inputs = tiny_model(family)
    model = model.bfloat16()
    with rankkit.capture(model, mode=mode) as captured:
        model(**inputs)
    for factors, maps in zip(captured.layers, eager_maps(model, inputs)["", "self"], strict=True):
        ((_, operator),) = factors.operators_by_mask()
        assert operator.accumulation == torch.bfloat16
        exact = torch.linalg.svdvals(operator.dense())
        floor = applied_floor(operator, largest=exact[..., 0], probabilities=torch.bfloat16)
        assert bool(((torch.linalg.svdvals(maps.double()) - exact).abs().amax(dim=-1) < floor).all())
        fused = replace(operator, accumulation=None)
        assert bool((applied_floor(fused, largest=exact[..., 0], probabilities=torch.bfloat16) < floor).all())


@torch.no_grad()
def test_factors_of_a_fused_kernel_have_no_precision_of_their_own() -> None:
    model, inputs = tiny_model("llama")
    with rankkit.capture(model.bfloat16()) as captured:
        model(**inputs)
    assert [factors.accumulation for factors in captured.layers] == [None] * len(captured.layers)


@pytest.mark.parametrize(("family", "mode", "match"), [
    ("gemma2", "qk", "mode must be eager because Gemma2ForCausalLM does not support SDPA, got 'qk'"),
    ("bloom", "qk", "mode must be torch because BloomForCausalLM does not let its attention function be set, got 'qk'"),
    ("bloom", "eager", "mode must be torch because BloomForCausalLM does not let .* be set, got 'eager'"),
])  # fmt: skip
def test_a_mode_that_a_model_does_not_have_is_refused(family: str, mode: Any, match: str) -> None:
    model, _ = tiny_model(family)
    with pytest.raises(CaptureError, match=match):
        capture_mode(model, mode)


def test_code_that_asks_for_sdpa_by_name_is_watched_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("llama")
    code = 'if self.config._attn_implementation in ("eager", "sdpa"):'
    monkeypatch.setattr(transformers_models, "_source", lambda _: code)
    assert attention_mode([model]) == ("torch", "LlamaForCausalLM asks for SDPA by name")


def test_a_model_without_sdpa_and_eager_function_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("gemma2")
    monkeypatch.delattr(sys.modules[type(model).__module__], "eager_attention_forward")
    assert attention_mode([model]) == (
        "torch", "Gemma2ForCausalLM supports no SDPA and has no eager function of its own",
    )  # fmt: skip


def test_a_model_inside_a_module_of_one_s_own_is_found() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = tiny_model("llama")[0].model, nn.Linear(32, 2)

        def forward(self, **inputs: Tensor) -> Tensor:
            return self.head(self.model(**inputs).last_hidden_state)

    probe, (_, inputs) = Probe(), tiny_model("llama")
    with torch.no_grad(), rankkit.capture(probe) as captured:
        probe(**inputs)
    assert captured.mode == "qk"
    assert [found.module for found in captured.layers] == [f"model.layers.{i}.self_attn" for i in range(3)]


@torch.no_grad()
def test_grouped_keys_come_one_per_query_head_and_heads_keep_theirs() -> None:
    model, inputs = tiny_model("llama")
    with rankkit.capture(model) as captured:
        model(**inputs)
    for factors in captured.layers:
        assert factors.key.shape == factors.query.shape
        assert torch.equal(factors.key[:, 0], factors.key[:, 1])
        assert not torch.equal(factors.key[:, 1], factors.key[:, 2])
    with rankkit.capture(model, heads=[3, 1]) as chosen:
        model(**inputs)
    for whole, part in zip(captured.layers, chosen.layers, strict=True):
        assert torch.equal(part.query, whole.query[:, [1, 3]])
        assert torch.equal(part.key, whole.key[:, [1, 3]])


@torch.no_grad()
def test_one_key_for_all_heads_takes_no_memory_of_its_own() -> None:
    model, inputs = tiny_model("llama-mqa")
    with rankkit.capture(model, layers=[0]) as captured:
        model(**inputs)
    (factors,) = captured.layers
    assert factors.key.shape == factors.query.shape
    assert factors.key.untyped_storage().nbytes() * 4 == factors.query.untyped_storage().nbytes()


@pytest.mark.parametrize(("family", "scale"), [
    ("opt", 1.0), ("esm", 1.0), ("t5", 1.0), ("bert", 8**-0.5), ("gemma2", 16**-0.5), ("qwen3", 16**-0.5),
])  # fmt: skip
@torch.no_grad()
def test_the_scale_is_the_model_s(family: str, scale: float) -> None:
    model, inputs = tiny_model(family)
    with rankkit.capture(model) as captured:
        model(**inputs)
    assert {factors.scale for factors in captured.layers} == {scale}


@torch.no_grad()
def test_gpt2_may_scale_by_layer() -> None:
    model, inputs = tiny_model("gpt2")
    with rankkit.capture(model) as captured:
        model(**inputs)
    assert [factors.scale for factors in captured.layers] == [8**-0.5 / (layer + 1) for layer in range(3)]


@pytest.mark.parametrize("padding", ["none", "right"])
@torch.no_grad()
def test_t5_biases_are_offsets_and_those_between_its_stacks_are_none(padding: str) -> None:
    model, inputs = tiny_model("t5", padding)
    for heads in (None, [1, 2]):
        with rankkit.capture(model, heads=heads) as captured:
            model(**inputs)
        for factors in captured.layers:
            for seen in factors.seen:
                assert isinstance(seen.bias, OffsetBias) == (factors.kind == "self")
                assert seen.bias is None or len(seen.bias.values) == len(heads or range(4))
        maps = eager_maps(model, inputs)
        for factors in captured.layers:
            theirs = maps[factors.stack, factors.kind][factors.layer][:, heads or range(4)]
            for operator, map_ in zip(factors.operators(), theirs, strict=True):
                ours = operator.dense(torch.float32)
                rows = ours.sum(dim=(0, -1)) > 0
                difference = ours[:, rows] - map_[:, rows, : ours.shape[-1]]
                assert float(difference.abs().max()) <= 5e-6


@torch.no_grad()
def test_caps_and_sinks_are_handed_over_with_their_heads() -> None:
    model, inputs = tiny_model("gemma2")
    with rankkit.capture(model) as captured:
        model(**inputs)
    assert {factors.softcap for factors in captured.layers} == {2.0}
    model, inputs = tiny_model("gpt-oss")
    with rankkit.capture(model, heads=[1, 3]) as captured:
        model(**inputs)
    for factors, layer in zip(captured.layers, model.model.layers, strict=True):
        assert factors.sink is not None
        assert torch.equal(factors.sink, layer.self_attn.sinks[[1, 3]])
        ((_, operator),) = factors.operators_by_mask()
        assert float(operator.dense().sum(dim=-1).max()) < 1
        assert "rows_sum_to_one" not in operator.structure


@pytest.mark.parametrize(("family", "expected"), [("llama", Causal()), ("bert", Bidirectional())])
@torch.no_grad()
def test_a_single_token_is_a_sequence(family: str, expected: Any) -> None:
    model, _ = tiny_model(family)
    with rankkit.capture(model) as captured:
        model(input_ids=torch.tensor([[5]]))
    for operator in captured:
        assert operator.mask == expected
        assert torch.equal(operator.dense(), torch.ones(4, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("family", ["llama", "bart", "falcon"])
@torch.no_grad()
def test_a_cache_may_be_filled_but_not_used(family: str) -> None:
    model, inputs = tiny_model(family)
    with rankkit.capture(model):
        cache = model(**inputs, use_cache=True).past_key_values
    assert cache is not None
    before = state_of(model)
    step = {**inputs, "decoder_input_ids" if family == "bart" else "input_ids": torch.tensor([[5]] * SEQUENCES)}
    match = f"attention must be captured over whole sequences, got 1 queries for {LENGTH + 1} keys. Run the model"
    with pytest.raises(CaptureError, match=match), rankkit.capture(model):
        model(**step, past_key_values=cache, use_cache=True)
    assert state_of(model) == before


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@torch.no_grad()
def test_a_mask_of_one_s_own_is_used_and_told(family: str) -> None:
    model, inputs = tiny_model(family)
    lengths = (5, 5, 8)
    allowed = torch.stack([Prefix(length).allowed(LENGTH) for length in lengths])[:, None]
    plain = model(**inputs, attention_mask=allowed)[0]
    with rankkit.capture(model) as captured:
        assert torch.equal(model(**inputs, attention_mask=allowed)[0], plain)
    assert captured.layers[0].masks == tuple(map(Prefix, lengths))
    assert captured.layers[0].mask_names == ("prefix",) * 3
    assert [part for (part, _), _ in captured.layers[0].operators_by_mask()] == [slice(0, 2), slice(2, 3)]
    added = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    for factors, maps in zip(
        captured.layers, eager_maps(model, {**inputs, "attention_mask": added})["", "self"], strict=True
    ):
        for operator, map_ in zip(factors.operators(), maps, strict=True):
            assert float((operator.dense(torch.float32) - map_).abs().max()) <= 5e-6


@torch.no_grad()
def test_packed_sequences_are_other_and_keep_their_matrices() -> None:
    model, inputs = tiny_model("llama")
    positions = torch.cat([torch.arange(7), torch.arange(LENGTH - 7)]).expand(SEQUENCES, -1)
    packed = {**inputs, "position_ids": positions, "use_cache": False}
    with rankkit.capture(model) as captured:
        model(**packed)
    for factors, maps in zip(captured.layers, eager_maps(model, packed)["", "self"], strict=True):
        assert factors.mask_names == ("other",) * SEQUENCES
        ((_, operator),) = factors.operators_by_mask()
        assert float((operator.dense(torch.float32) - maps).abs().max()) <= 5e-6
        assert not operator.dense()[..., 7:, :7].any()


@torch.no_grad()
def test_windows_and_full_layers_take_turns_in_one_pass() -> None:
    model, inputs = tiny_model("modernbert")
    with rankkit.capture(model) as captured:
        model(**inputs)
    assert [factors.masks[0] for factors in captured.layers] == [Bidirectional(), Window(3, 3), Window(3, 3)]


@torch.no_grad()
def test_factors_that_do_not_give_back_the_eager_attention_are_replaced_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_model("gemma2", "right")
    home = sys.modules[type(model).__module__]
    own = home.eager_attention_forward

    def squared(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = own(module, query, key, value, *args, **kwargs)
        return output, (weights**2 / (weights**2).sum(dim=-1, keepdim=True) if module.layer_idx == 1 else weights)

    monkeypatch.setattr(home, "eager_attention_forward", squared)
    with rankkit.capture(model) as captured:
        model(**inputs)
    assert [type(found) for found in captured.found] == [LayerFactors, LayerMatrices, LayerFactors]
    (found,) = captured.matrices
    assert found.reason == "its own eager attention is not that of its queries and keys"
    assert found.mask_names == ("padded causal", "padded causal", "causal")
    for sequence, operator in enumerate(found.operators()):
        visible = found.masks[sequence].visible_positions(LENGTH)
        assert not operator.matrix[:, visible.stop :].any()
        torch.testing.assert_close(operator.matrix[:, : visible.stop].sum(dim=-1), torch.ones(4, visible.stop))
    assert [part for (part, _), _ in found.operators_by_mask()] == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_dropout_and_gradients_do_not_keep_factors_from_being_captured(family: str) -> None:
    model, inputs = tiny_model(family)
    model.train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    with rankkit.capture(model) as captured:
        model(**inputs)[0].square().sum().backward()
    assert len(captured.layers) == 3
    assert not any(factors.query.requires_grad for factors in captured.layers)
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["qk", "eager", "torch"])
def test_what_gradient_checkpointing_computes_again_is_not_captured_again(mode: Any) -> None:
    model, inputs = tiny_model("llama")
    model.train()
    model.activation_checkpointing_enable()
    with rankkit.capture(model, mode=mode) as captured:
        for _ in range(2):
            model(**inputs, use_cache=False).logits.square().sum().backward()
    assert [factors.layer for factors in captured.layers] == [0, 1, 2] * 2


@torch.no_grad()
def test_a_shared_block_is_as_many_layers_as_it_is_run() -> None:
    import transformers

    model = transformers.AlbertModel(transformers.AlbertConfig(
        embedding_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=50,
    )).eval()  # fmt: skip
    with rankkit.capture(model) as captured:
        model(input_ids=torch.randint(3, 50, (2, 6)))
    assert [factors.layer for factors in captured.layers] == [0, 1, 2]
    assert len({factors.module for factors in captured.layers}) == 1


@torch.no_grad()
def test_two_towers_have_their_names() -> None:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.CLIPModel(transformers.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=16,
    )).eval()  # fmt: skip
    with rankkit.capture(model) as captured:
        model(input_ids=torch.randint(3, 50, (2, 6)), pixel_values=torch.randn(2, 3, 8, 8))
    found = {(factors.stack, factors.layer, factors.mask_names[0]) for factors in captured.layers}
    assert found == {
        ("text_model", 0, "causal"), ("text_model", 1, "causal"),
        ("vision_model", 0, "bidirectional"), ("vision_model", 1, "bidirectional"),
    }  # fmt: skip


@torch.no_grad()
def test_what_a_router_takes_softmax_of_is_no_attention() -> None:
    model, inputs = tiny_model("gpt-oss")  # its sink is a column more in the softmax, its router is over experts
    with pytest.raises(CaptureError, match="attention must be seen while GptOssForCausalLM runs, got no matrix"), \
            rankkit.capture(model, mode="torch"):  # fmt: skip
        model(**inputs)


@torch.no_grad()
def test_half_precision_is_captured_as_it_is() -> None:
    model, inputs = tiny_model("gemma2", "left")
    with rankkit.capture(model.to(torch.bfloat16)) as captured:
        model(**inputs)
    assert len(captured.layers) == 3
    assert {factors.query.dtype for factors in captured.layers} == {torch.bfloat16}


def test_without_transformers_every_module_is_just_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_model("llama")
    monkeypatch.delitem(sys.modules, "transformers.modeling_utils")
    assert capture_mode(model) == ("torch", "LlamaForCausalLM is no Hugging Face model")
    with torch.no_grad(), rankkit.capture(model) as captured:
        model(**inputs)
    assert [factors.masks for factors in captured.layers] == [(Causal(),) * SEQUENCES] * 3


class Memory(TorchDispatchMode):
    """The most bytes that tensors made inside the context held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._alive = 0, {}  # type: ignore[var-annotated]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() >= 2**20:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
                self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return output


LONG, LONG_HEADS, LONG_LAYERS = 2048, 2, 4


def long_model(family: str) -> Any:
    import transformers

    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LONG_LAYERS,
             "num_attention_heads": LONG_HEADS, "num_key_value_heads": 1, "head_dim": 8, **common}  # fmt: skip
    if family == "gptj":
        return transformers.GPTJForCausalLM(transformers.GPTJConfig(
            n_embd=32, n_layer=LONG_LAYERS, n_head=LONG_HEADS, rotary_dim=4, n_positions=LONG, **common,
        )).eval()  # fmt: skip
    name = {"llama": "Llama", "gemma2": "Gemma2"}[family]
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes)).eval()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
@torch.no_grad()
def test_at_2048_tokens_maps_of_no_more_than_one_layer_live(family: str) -> None:
    """Beyond the plain forward pass; keeping the maps shows that the test would see them."""
    model, tokens = long_model(family), torch.randint(3, VOCABULARY, (1, LONG))
    attention = torch.ones_like(tokens).index_fill(1, torch.arange(100), 0)

    def peak(capturing: AbstractContextManager[Any]) -> float:
        """In float32 maps of one layer."""
        with Memory() as memory, capturing:
            model(tokens, attention_mask=attention, use_cache=False)
        return memory.peak / (4 * LONG_HEADS * LONG**2)

    plain = peak(nullcontext())
    streamed = peak(rankkit.capture(model, on_layer=lambda _: None))
    assert streamed <= plain + 1.25
    if family == "gptj":
        assert peak(rankkit.capture(model)) >= plain + LONG_LAYERS - 1


def test_configurations_that_modules_share_are_set_once() -> None:
    from transformers import PreTrainedConfig

    shared = PreTrainedConfig()
    shared._attn_implementation_internal = "sdpa"
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    for module in model.modules():
        module.config = shared
    with transformers_models.with_attention(model, "eager"):
        assert shared._attn_implementation == "eager"
    assert shared._attn_implementation == "sdpa"


def test_an_attention_without_an_eager_function_says_what_to_do() -> None:
    with pytest.raises(
        CaptureError, match=r"SimpleNamespace must have an eager_attention_forward in types, got none\. Pass"
    ):
        transformers_models._own_eager(SimpleNamespace(), None, None, None, None)  # type: ignore[arg-type]
