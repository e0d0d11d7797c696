"""Unigram and bigram references against a dictionary that counts slowly."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rankkit.data import DataConfig, evaluation_sequences, ngram_cross_entropy, ngrams, prepare_tokens, synthetic
from rankkit.errors import ConfigurationError, DataError

STRENGTHS = [4.0**k for k in range(-1, 9)]


def slow_cross_entropies(train: list[int], sequences: list[list[int]], first: int, vocab_size: int) -> dict[str, float]:
    """The formulas of the docstring, one token at a time."""
    ones, twos, befores = Counter(train), Counter(pairwise(train)), Counter(train[:-1])

    def unigram(b: int, out: int = 0) -> float:
        return (ones[b] - out + 1) / (len(train) - out + vocab_size)

    def bigram(a: int, b: int, m: float, out: int = 0) -> float:
        return (twos[a, b] - out + m * unigram(b, out)) / (befores[a] - out + m)

    pairs = [(row[t - 1], row[t]) for row in sequences for t in range(first, len(row))]
    left_out = list(pairwise(train))
    best = min(STRENGTHS, key=lambda m: -sum(log(bigram(a, b, m, 1)) for a, b in left_out))
    return {
        "unigram": -sum(log(unigram(b)) for _, b in pairs) / len(pairs),
        "bigram": -sum(log(bigram(a, b, best)) for a, b in pairs) / len(pairs),
    }


@given(seed=st.integers(0, 10**6), vocab_size=st.integers(2, 9), size=st.integers(2, 200), first=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_cross_entropies_equal_the_formulas(seed: int, vocab_size: int, size: int, first: int) -> None:
    generator = np.random.default_rng(seed)
    train = generator.integers(0, vocab_size, size)
    sequences = generator.integers(0, vocab_size, (3, 6))
    found = ngram_cross_entropy(train, sequences, targets=slice(first, None), vocab_size=vocab_size)
    expected = slow_cross_entropies(train.tolist(), sequences.tolist(), first, vocab_size)
    assert found == pytest.approx(expected, rel=1e-12)  # sums of at most 200 logarithms in another order


def markov(size: int, seed: int) -> NDArray[np.uint16]:
    """A chain over 8 states that stays, steps or jumps; its entropy rate is known."""
    generator = np.random.default_rng(seed)
    steps = generator.choice(8, size=size, p=[0.5, 0.3, 0.2, 0, 0, 0, 0, 0])
    return (np.cumsum(steps) % 8).astype(np.uint16)


def test_references_reach_the_entropies_of_a_known_chain() -> None:
    rate = -(0.5 * log(0.5) + 0.3 * log(0.3) + 0.2 * log(0.2))
    held_out = markov(40_000, 1)
    found = ngram_cross_entropy(
        markov(200_000, 0), held_out.reshape(-1, 100), targets=slice(50, 100), vocab_size=8, validation=held_out
    )
    assert found["unigram"] == pytest.approx(
        log(8), abs=0.01
    )  # standard error 0.001 from 20,000 targets, and the chain mixes slowly
    assert found["bigram"] == pytest.approx(rate, abs=0.02)  # four standard errors of 20,000 targets
    assert found["bigram_self"] == pytest.approx(rate, abs=0.02)


def test_own_bigrams_reach_the_empirical_conditional_entropy_which_no_bigram_model_beats() -> None:
    held_out = markov(3001, 2)
    sequences = np.lib.stride_tricks.sliding_window_view(held_out, 2)  # every pair once
    found = ngram_cross_entropy(markov(500, 3), sequences, targets=slice(1, 2), vocab_size=8, validation=held_out)
    twos = Counter(pairwise(held_out.tolist()))
    befores = Counter(held_out[:-1].tolist())
    entropy = -sum(count * log(count / befores[a]) for (a, _), count in twos.items()) / 3000
    assert found["bigram_self"] == pytest.approx(entropy, rel=1e-12)
    assert found["bigram"] > found["bigram_self"]


def test_large_vocabulary_and_small_chunks_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    train, sequences = generator.integers(0, 50, 5000), generator.integers(0, 50, (7, 40))

    def score() -> dict[str, float]:
        return ngram_cross_entropy(train, sequences, targets=slice(20, 40), vocab_size=50)

    dense = score()
    monkeypatch.setattr(ngrams, "LARGEST_TABLE", 0)
    assert score() == dense
    monkeypatch.setattr(ngrams, "CHUNK", 17)
    assert score() == dense
    monkeypatch.setattr(ngrams, "LARGEST_TABLE", 10**6)
    assert score() == dense


def test_unseen_context_falls_to_the_unigram_model() -> None:
    train = np.zeros(100, dtype=np.int64)
    found = ngram_cross_entropy(train, np.array([[3, 0]]), targets=slice(1, 2), vocab_size=4)
    assert found["bigram"] == pytest.approx(found["unigram"]) == pytest.approx(-log(101 / 104))


def test_prepared_text_is_predicted_better_by_pairs_than_by_single_bytes(tmp_path: Path) -> None:
    files = prepare_tokens(
        DataConfig(), tmp_path / "tokens", tmp_path / "t.json", sequence_length=64, corpus=synthetic(0, 80)
    )
    windows = evaluation_sequences(files, count=16, sequence_length=64).tokens
    found = ngram_cross_entropy(
        files.train, windows, targets=slice(32, 64), vocab_size=files.vocab_size, validation=files.validation
    )
    assert log(257) > found["unigram"] > found["bigram"] > 0


@pytest.mark.parametrize("targets", [slice(0, 4), slice(4, 4), slice(9, None), slice(None, None, -1)])
def test_targets_must_have_a_token_before_them(targets: slice) -> None:
    with pytest.raises(ConfigurationError, match=r"targets must name columns from 1 to 4, got slice"):
        ngram_cross_entropy(np.arange(9), np.zeros((2, 5), dtype=np.int64), targets=targets, vocab_size=9)


@pytest.mark.parametrize("where", ["train", "sequences"])
@pytest.mark.parametrize("bad", [-1, 9])
def test_id_outside_the_vocabulary_is_an_error(where: str, bad: int) -> None:
    arrays = {"train": np.arange(9), "sequences": np.zeros((2, 5), dtype=np.int64)}
    arrays[where].flat[3] = bad
    with pytest.raises(DataError, match=r"token ids must be between 0 and 8, got"):
        ngram_cross_entropy(arrays["train"], arrays["sequences"], targets=slice(1, 5), vocab_size=9)


def test_training_tokens_must_hold_a_pair() -> None:
    with pytest.raises(DataError, match=r"tokens must hold at least one pair to be counted, got 1 tokens"):
        ngram_cross_entropy(
            np.zeros(1, dtype=np.int64), np.zeros((1, 4), dtype=np.int64), targets=slice(1, 4), vocab_size=2
        )


def test_sequences_of_another_stream_are_an_error() -> None:
    stream = np.zeros(9, dtype=np.int64)
    with pytest.raises(DataError, match=r"sequences must be cut from the validation tokens"):
        ngram_cross_entropy(stream, np.array([[0, 1]]), targets=slice(1, 2), vocab_size=2, validation=stream)
