"""Our causal Transformer as a model of the transformers library: Arcee, which is Llama without the gate in its MLP.

Llama's own class would take half again as many MLP weights, zero but for a gate that is always one.

    blocks.I.attention_norm        model.layers.I.input_layernorm
    blocks.I.attention.projection  model.layers.I.self_attn.{q,k,v}_proj, one below the other
    blocks.I.attention.output      model.layers.I.self_attn.o_proj
    blocks.I.mlp_norm              model.layers.I.post_attention_layernorm
    blocks.I.mlp.{input,output}    model.layers.I.mlp.{up,down}_proj
    norm, embedding                model.norm, model.embed_tokens and, tied to it, lm_head

Both rotate the pairs (k, k + head_dim / 2) of queries and keys, so no row changes its place.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models.config import ModelConfig
from rankkit.models.transformer import Transformer
from rankkit.studies.pretrained.files import transformers

__all__ = ["ARCHITECTURE", "check_expressible", "stock_config", "stock_weights"]

ARCHITECTURE: Final = "ArceeForCausalLM"

_BLOCK: Final = {
    "attention_norm": "input_layernorm",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.input": "mlp.up_proj",
    "mlp.output": "mlp.down_proj",
}
_WHOLE: Final = {"embedding": "model.embed_tokens", "norm": "model.norm"}


def check_expressible(config: ModelConfig) -> None:
    """Refuse a model that the stock architecture cannot be.

    Raises:
        ConfigurationError: its mask, positions or widths are not the architecture's.
    """
    if config.mask is not MaskKind.CAUSAL:
        raise ConfigurationError(
            f"mask must be causal for {ARCHITECTURE}, got {config.mask}. Export a causal arm; rankkit.load_model loads this "
            "one, and rankkit.capture and rankkit.spectrum measure it."
        )
    if config.position != "rope":
        raise ConfigurationError(
            f"position must be rope for {ARCHITECTURE}, got {config.position}. Load this model with rankkit.load_model."
        )
    if config.d_model % config.num_heads:
        raise ConfigurationError(
            f"d_model must be a multiple of num_heads for {ARCHITECTURE}, got {config.d_model} and {config.num_heads}. Load "
            "this model with rankkit.load_model."
        )


def stock_config(config: ModelConfig, *, document_token: int | None) -> Any:
    """The architecture's configuration.

    Args:
        config: of our model.
        document_token: the id that ends every document; None where the tokenizer is not known.

    Returns:
        An `ArceeConfig`.

    Raises:
        ConfigurationError: transformers is not installed, or the model cannot be expressed.
    """
    check_expressible(config)
    return transformers().ArceeConfig(
        architectures=[ARCHITECTURE],
        dtype=torch.float32,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.sequence_length,
        num_hidden_layers=config.num_layers,
        hidden_size=config.d_model,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        head_dim=config.head_dim,
        intermediate_size=config.mlp_ratio * config.d_model,
        hidden_act="gelu",
        rms_norm_eps=1e-6,  # as in rankkit.models.transformer
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        tie_word_embeddings=True,
        initializer_range=config.initial_std,
        bos_token_id=None,
        eos_token_id=document_token,
        pad_token_id=None,
    )


def stock_weights(model: Transformer) -> dict[str, Tensor]:
    """The model's weights under the architecture's names, on the CPU; the tied `lm_head` is left out.

    Args:
        model: one that `check_expressible` accepts.
    """
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    theirs = {f"{name}.weight": ours[f"{own}.weight"] for own, name in _WHOLE.items()}
    for layer in range(model.config.num_layers):
        own_block, block = f"blocks.{layer}", f"model.layers.{layer}"
        parts = rearrange(
            ours[f"{own_block}.attention.projection.weight"], "(three row) column -> three row column", three=3
        )
        theirs |= {
            f"{block}.self_attn.{name}_proj.weight": part for name, part in zip("qkv", parts.unbind(0), strict=True)
        }
        theirs |= {f"{block}.{name}.weight": ours[f"{own_block}.{own}.weight"] for own, name in _BLOCK.items()}
    return {name: tensor.contiguous() for name, tensor in theirs.items()}
