"""Writing on: greedy or seeded sampling with cached keys."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from rankkit.errors import ConfigurationError
from rankkit.models.config import ModelConfig
from rankkit.models.transformer import KeyValueCache, Transformer

__all__ = ["generate"]


@torch.no_grad()
def generate(
    model: Transformer,
    prompt: list[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Continue a prompt token by token.

    The prompt is the prefix: a bidirectional-prefix model reads it in both directions, once, and everything it writes is
    causal after it. Keys and values are cached, which changes no prediction: rows that are already there never see
    what comes later.

    Args:
        model: in evaluation mode, on any device.
        prompt: token ids, at least one.
        max_tokens: how many to write; prompt and continuation must fit the model's sequence_length.
        temperature: 0 takes the most likely token; otherwise logits are divided by it and sampled.
        seed: of the sampling; the same seed gives the same text on the same machine.
        vocab_size: ids from there on are never written, such as the one for hidden tokens; None writes any.

    Yields:
        One token id at a time.

    Raises:
        ConfigurationError: an empty prompt, ids outside the vocabulary, no room, a negative temperature, or a mask under
            which what is written would change what was read.
    """
    _check(model.config, prompt, max_tokens, temperature)
    cache = KeyValueCache()
    random = np.random.Generator(np.random.Philox(seed))
    tokens = torch.tensor([prompt], device=model.device)
    for _ in range(max_tokens):
        hidden = model(tokens, len(prompt) if cache.length == 0 else 0, cache=cache)
        logits = model.logits(hidden[0, -1]).double().cpu().numpy()[:vocab_size]
        if temperature == 0:
            token = int(logits.argmax())
        else:
            # Gumbel's trick: the largest of logit / temperature + noise is a sample of the softmax.
            token = int((logits / temperature + random.gumbel(size=logits.size)).argmax())
        yield token
        tokens = torch.tensor([[token]], device=model.device)


def _check(config: ModelConfig, prompt: list[int], max_tokens: int, temperature: float) -> None:
    limit = config.sequence_length
    if not prompt:
        raise ConfigurationError("prompt must hold at least one token, got none. Put some text into the prompt file.")
    if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
        raise ConfigurationError(
            f"prompt must hold ids from 0 to {config.vocab_size - 1} (vocab_size), got {min(prompt)} to {max(prompt)}. "
            "Encode it with the tokenizer of the run."
        )
    if max_tokens < 1:
        raise ConfigurationError(f"max_tokens must be at least 1, got {max_tokens}. Ask for at least one token.")
    if len(prompt) + max_tokens > limit:
        raise ConfigurationError(
            f"prompt and continuation must fit {limit} tokens (sequence_length), got {len(prompt)} + {max_tokens}. "
            f"Shorten the prompt (at most {limit - 1} tokens) or lower --max-tokens."
        )
    if not temperature >= 0:
        raise ConfigurationError(f"temperature must be at least 0, got {temperature}. Use 0 for the most likely token.")
    if config.mask.foreseeing_rows(len(prompt), limit).stop >= len(prompt):
        raise ConfigurationError(
            f"mask must hide the continuation from what came before it, got {config.mask}. Use a causal or prefix model."
        )
