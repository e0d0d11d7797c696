"""One small model with random weights for each family of Hugging Face models that capture is tested with."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankkit.hooks.transformers_models import with_attention

SEQUENCES, LENGTH, SOURCE = 3, 12, 9
"""Of a batch; `SOURCE` is the length of an encoder's sequences beside a decoder of `LENGTH`."""
VOCABULARY = 50
PADDED = (4, 1, 0)
"""Padding of each sequence of a batch."""

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, **_COMMON,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How to make a model, and what capture does with it."""

    build: Callable[[], Any]
    mode: str
    paddings: tuple[str, ...] = ("none", "right", "left")
    kinds: tuple[tuple[str, str], ...] = (("", "self"),)
    """Stack and kind of the maps, as `output_attentions` has them."""
    mask: str = "causal"
    """Class of the first layer's mask without padding."""
    inputs: str = "tokens"
    spread: float = 0.3
    """Of the weights."""
    twice: bool = False
    """Whether its eager attention adds ALiBi twice (Falcon in transformers 5.23), so that it is no reference."""


def _model(name: str, configuration: str, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        return getattr(transformers, name)(getattr(transformers, configuration)(**settings))

    return build


_ENCODER_DECODER = (("encoder", "self"), ("decoder", "self"), ("decoder", "cross"))
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "decoder_start_token_id": 1,
    "forced_eos_token_id": 2, **_COMMON,
}  # fmt: skip
_GEMMA = {
    "head_dim": 8, "num_key_value_heads": 2, "sliding_window": 5, "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 2.0, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "bart": Family(
        _model("BartModel", "BartConfig", **_BART), "qk", ("none", "right"), _ENCODER_DECODER, "bidirectional", "pair"
    ),
    "bert": Family(
        _model("BertModel", "BertConfig", max_position_embeddings=64, **_SIZES), "qk", ("none", "right"),
        mask="bidirectional",
    ),
    "bloom": Family(
        _model("BloomForCausalLM", "BloomConfig", hidden_size=32, n_layer=2, n_head=4, **_COMMON), "torch"
    ),
    "esm": Family(
        _model("EsmModel", "EsmConfig", max_position_embeddings=64, position_embedding_type="rotary",
               mask_token_id=3, **_SIZES),
        "qk", ("none", "right"), mask="bidirectional",
    ),
    "falcon": Family(
        _model("FalconForCausalLM", "FalconConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **_COMMON),
        "torch",
    ),
    "falcon-alibi": Family(
        _model("FalconForCausalLM", "FalconConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
               alibi=True, **_COMMON),
        "torch", twice=True,
    ),
    "gemma2": Family(_model("Gemma2ForCausalLM", "Gemma2Config", **_GEMMA, **_SIZES), "eager", mask="window"),
    "gpt-neox": Family(
        _model("GPTNeoXForCausalLM", "GPTNeoXConfig", max_position_embeddings=64, rotary_pct=0.5, **_SIZES), "qk"
    ),
    "gpt-oss": Family(
        _model("GptOssForCausalLM", "GptOssConfig", head_dim=8, num_key_value_heads=2, num_local_experts=4,
               num_experts_per_tok=2, sliding_window=5, max_position_embeddings=64,
               layer_types=["sliding_attention", "full_attention", "sliding_attention"],
               rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **_SIZES),
        "eager", mask="window",
    ),
    "gpt2": Family(
        _model("GPT2LMHeadModel", "GPT2Config", n_layer=3, n_head=4, n_embd=32, n_positions=64,
               scale_attn_by_inverse_layer_idx=True, **_COMMON),
        "qk",
    ),
    "gptj": Family(
        _model("GPTJForCausalLM", "GPTJConfig", n_layer=2, n_head=4, n_embd=32, rotary_dim=4, n_positions=64, **_COMMON),
        "torch",
    ),
    "llama": Family(_model("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **_SIZES), "qk"),
    "llama-mqa": Family(_model("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=1, **_SIZES), "qk"),
    "mistral": Family(
        _model("MistralForCausalLM", "MistralConfig", num_key_value_heads=2, sliding_window=5, **_SIZES), "qk",
        mask="window",
    ),
    "modernbert": Family(
        _model("ModernBertModel", "ModernBertConfig", local_attention=6, max_position_embeddings=64,
               global_attn_every_n_layers=3, cls_token_id=1, sep_token_id=2, **_SIZES),
        "qk", ("none", "right"), mask="bidirectional",
    ),
    "mpt": Family(
        _model("MptForCausalLM", "MptConfig", d_model=32, n_layers=2, n_heads=4, max_seq_len=64, vocab_size=VOCABULARY),
        "torch",
    ),
    "opt": Family(
        _model("OPTForCausalLM", "OPTConfig", hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
               max_position_embeddings=64, word_embed_proj_dim=32, **_COMMON),
        "qk",
    ),
    "qwen3": Family(
        _model("Qwen3ForCausalLM", "Qwen3Config", num_key_value_heads=2, head_dim=16, **_SIZES), "qk"
    ),
    "t5": Family(
        _model("T5Model", "T5Config", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
               relative_attention_num_buckets=8, relative_attention_max_distance=16, decoder_start_token_id=0,
               vocab_size=VOCABULARY),
        "qk", ("none", "right"), _ENCODER_DECODER, "bidirectional", "pair", spread=0.2,
    ),
    "vit": Family(
        _model("ViTModel", "ViTConfig", image_size=12, patch_size=4, hidden_size=32, intermediate_size=48,
               num_hidden_layers=2, num_attention_heads=4),
        "qk", ("none",), mask="bidirectional", inputs="image",
    ),
}  # fmt: skip


def tiny_model(family: str, padding: str = "none") -> tuple[Any, dict[str, Tensor]]:
    """A model in evaluation mode whose attention is far from uniform, and a batch for it.

    Args:
        family: a key of `FAMILIES`.
        padding: `none`, `right` or `left`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(family.encode()))
        model = FAMILIES[family].build().eval()
        for parameter in model.parameters():
            wide = parameter.dim() > 1
            parameter.data = torch.randn_like(parameter) * (FAMILIES[family].spread if wide else 0.1) + (
                0 if wide else parameter.data
            )
        return model, _inputs(FAMILIES[family].inputs, padding)


def _inputs(kind: str, padding: str) -> dict[str, Tensor]:
    if kind == "image":
        return {"pixel_values": torch.randn(SEQUENCES, 3, 12, 12)}
    length = SOURCE if kind == "pair" else LENGTH
    inputs = {"input_ids": torch.randint(3, VOCABULARY, (SEQUENCES, length))}
    if kind == "pair":
        inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (SEQUENCES, LENGTH))
    if padding != "none":
        inputs["attention_mask"] = _padded(length, padding)
        if kind == "pair":
            inputs["decoder_attention_mask"] = _padded(LENGTH, padding)
    return inputs


def _padded(length: int, side: str) -> Tensor:
    """1 where a token is one."""
    mask = torch.ones(SEQUENCES, length, dtype=torch.int64)
    for sequence, count in enumerate(PADDED):
        if count:
            mask[sequence, slice(length - count, None) if side == "right" else slice(count)] = 0
    return mask


def eager_maps(model: Any, inputs: dict[str, Tensor]) -> dict[tuple[str, str], list[Tensor]]:
    """The model's own maps by stack and kind, "sequence head query key" for each layer."""
    with torch.no_grad(), with_attention(model, "eager"):
        output = model(**inputs, output_attentions=True)
    if "encoder_attentions" not in output:
        return {("", "self"): list(output.attentions)}
    return {
        ("encoder", "self"): list(output.encoder_attentions),
        ("decoder", "self"): list(output.decoder_attentions),
        ("decoder", "cross"): list(output.cross_attentions),
    }


def applied_maps(model: Any, inputs: dict[str, Tensor]) -> dict[tuple[str, str], list[Tensor]]:
    """The maps of a model whose eager attention is not what it computes under SDPA, from the arguments of SDPA."""
    maps: list[Tensor] = []

    class Slow(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.scaled_dot_product_attention:
                query, key, _ = args
                logits = query @ key.mT / query.shape[-1] ** 0.5 + kwargs["attn_mask"]
                maps.append(logits.softmax(dim=-1))
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Slow():
        model(**inputs)
    return {("", "self"): maps}
