"""Writing with cached keys against reading everything anew, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny import model_config, widen

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models import KeyValueCache, Transformer, generate

ARMS = (MaskKind.CAUSAL, MaskKind.PREFIX)
POSITIONS = ("rope", "learned", "none", "alibi")
PROMPT = [5, 1, 30, 2, 17, 8]


def model_of(mask: MaskKind = MaskKind.PREFIX, position: Any = "rope", **changes: Any) -> Transformer:
    return widen(Transformer(model_config(mask=mask, position=position, **{"vocab_size": 40, **changes})))


@torch.no_grad()
def written_without_cache(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """Greedy, by a whole forward pass per token in which the prompt stays the prefix."""
    tokens = list(prompt)
    for _ in range(count):
        hidden = model(torch.tensor([tokens]), len(prompt))
        tokens.append(int(model.logits(hidden[0, -1]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1], PROMPT * 5])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mask", ARMS)
def test_greedy_writing_equals_the_uncached_forward_pass(mask: MaskKind, position: Any, prompt: list[int]) -> None:
    model = model_of(mask, position)
    count = 32 - len(prompt)
    written = list(generate(model, prompt, max_tokens=count))
    assert written == written_without_cache(model, prompt, count)
    assert len(set(written)) > 1 or count < 4  # a model that repeats itself would agree with anything


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mask", ARMS)
def test_cached_hidden_states_equal_those_of_one_pass(mask: MaskKind, position: Any) -> None:
    model, tokens, cache = model_of(mask, position), torch.tensor([PROMPT * 2, PROMPT[::-1] * 2]), KeyValueCache()
    with torch.no_grad():
        whole = model(tokens, 6)
        parts = [model(tokens[:, :6], 6, cache=cache)]
        for column in range(6, 12):
            assert cache.length == column
            parts.append(model(tokens[:, column : column + 1], 0, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)  # rounding of float64


def test_bidirectional_reading_of_the_prompt_changes_what_is_written() -> None:
    causal, prefix = (list(generate(model_of(mask), PROMPT, max_tokens=20)) for mask in ARMS)
    assert causal != prefix


def test_a_seed_decides_what_is_sampled() -> None:
    model = model_of()

    def sampled(seed: int) -> list[int]:
        return list(generate(model, PROMPT, max_tokens=20, temperature=2.0, seed=seed))

    torch.manual_seed(0)
    first = sampled(3)
    torch.manual_seed(1)
    np.random.default_rng(0).random()
    assert sampled(3) == first
    assert sampled(4) != first


def test_sampling_follows_the_softmax_at_its_temperature() -> None:
    model, prompt = model_of(vocab_size=6, num_layers=1), [5, 1, 3]
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([prompt]), 3)[0, -1])
    temperature = float(logits.std())  # so that every token has its share
    draws = [next(generate(model, prompt, max_tokens=1, temperature=temperature, seed=seed)) for seed in range(600)]
    expected = 600 * torch.softmax(logits / temperature, 0).numpy()
    assert expected.min() > 10
    assert chisquare(np.bincount(draws, minlength=6), expected).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_ids_that_are_no_tokens_are_never_written(temperature: float) -> None:
    model = model_of()
    everything = list(generate(model, PROMPT, max_tokens=26, temperature=temperature))
    limit = max(everything)  # so that it would be written
    written = list(generate(model, PROMPT, max_tokens=26, temperature=temperature, vocab_size=limit))
    assert len(written) == 26
    assert max(written) < limit


def test_a_low_temperature_is_greedy() -> None:
    model = model_of()
    cold = list(generate(model, PROMPT, max_tokens=20, temperature=1e-6, seed=1))
    assert cold == list(generate(model, PROMPT, max_tokens=20))


def test_writing_leaves_gradients_as_the_caller_has_them() -> None:
    tokens = generate(model_of(), PROMPT, max_tokens=2)
    for _ in tokens:
        assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": []}, "prompt must hold at least one token, got none. Put some text into the prompt file"),
        ({"prompt": [1, 40]}, r"prompt must hold ids from 0 to 39 \(vocab_size\), got 1 to 40. Encode it"),
        ({"prompt": [-1, 3]}, r"prompt must hold ids from 0 to 39 \(vocab_size\), got -1 to 3"),
        ({"max_tokens": 27}, r"prompt and continuation must fit 32 tokens \(sequence_length\), got 6 \+ 27. Shorten"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0. Ask for at least one token"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1. Use 0 for the most likely token"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, Any], message: str) -> None:
    request = {"prompt": PROMPT, "max_tokens": 4, **changes}
    with pytest.raises(ConfigurationError, match=message):
        next(generate(model_of(), request.pop("prompt"), **request))


@pytest.mark.parametrize("mask", [
    MaskKind.BIDIRECTIONAL, MaskKind.BACKWARD, MaskKind.MIXED_HEADS, MaskKind.MIXED_LAYERS,
])  # fmt: skip
def test_models_whose_reading_would_change_with_the_writing_are_refused(mask: MaskKind) -> None:
    with pytest.raises(
        ConfigurationError, match=f"mask must hide the continuation from what came before it, got {mask}"
    ):
        next(generate(model_of(mask), PROMPT, max_tokens=2))


def test_several_rows_after_cached_ones_are_refused_because_they_would_see_each_other() -> None:
    model, cache = model_of(), KeyValueCache()
    model(torch.tensor([PROMPT]), 6, cache=cache)
    with pytest.raises(
        ConfigurationError, match="tokens must come one at a time once the cache holds positions, got 2"
    ):
        model(torch.tensor([[1, 2]]), 0, cache=cache)


def test_learned_positions_count_cached_ones() -> None:
    model, cache = model_of(position="learned"), KeyValueCache()
    model(torch.tensor([PROMPT * 5]), 6, cache=cache)
    for _ in range(2):
        model(torch.tensor([[1]]), 0, cache=cache)
    with pytest.raises(ConfigurationError, match=r"tokens must be at most 32 \(sequence_length of learned .* got 33"):
        model(torch.tensor([[1]]), 0, cache=cache)
