"""Tiny Hugging Face models with random weights, saved as folders, with a tokenizer made on the spot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 300
WORDS = (
    "the mask decides what a row sees",
    "a sink draws the mass of every row",
    "rank is not a number but a spectrum",
)

COMMON = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": VOCABULARY}
SIZES: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "LlamaForCausalLM": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64,
    },
    "MistralForCausalLM": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 5,
    },
    "Gemma2ForCausalLM": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "sliding_window": 5,
        "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8,
    },
    "BertForMaskedLM": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "T5ForConditionalGeneration": {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 2,
    },
    "ViTForImageClassification": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 12, "patch_size": 4,
    },
}  # fmt: skip
"""Configuration by class, beside `COMMON`."""


def new_model(architecture: str, *, seed: int = 0, **changes: Any) -> Any:
    """A model with random weights, larger than at initialisation so that attention is not flat."""
    import transformers

    kind = getattr(transformers, architecture)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(kind.config_class(**COMMON | SIZES[architecture] | changes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
    return model


def new_tokenizer(*, bos: bool = False) -> Any:
    """A byte-level tokenizer of `VOCABULARY` ids whose special tokens are those of `COMMON`.

    Args:
        bos: whether it puts <s> before every text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def saved_model(
    folder: Path, architecture: str = "GPT2LMHeadModel", *, seed: int = 0, bos: bool = False, **changes: Any
) -> Path:
    """A folder as `save_pretrained` writes it, with a tokenizer."""
    with quiet():
        new_model(architecture, seed=seed, **changes).save_pretrained(folder)
        new_tokenizer(bos=bos).save_pretrained(folder)
    return folder


def saved_text(path: Path, *, documents: int = 6, words: int = 60) -> Path:
    """A .jsonl file of documents of different lengths."""
    import json

    generator = torch.Generator().manual_seed(0)
    every = " ".join(WORDS).split()
    lines = []
    for document in range(documents):
        count = words - 5 * document
        picked = torch.randint(len(every), (count,), generator=generator).tolist()
        lines.append(json.dumps({"text": " ".join(every[index] for index in picked)}))
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's bars."""
    from transformers import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
