"""What neighbours tell of a hidden token, against a dictionary that counts slowly."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.data import neighbour_cross_entropy, ngrams
from rankkit.errors import ConfigurationError, DataError

STRENGTHS = [4.0**k for k in range(-1, 9)]
Triple = tuple[int | None, int, int | None]


class Slow:
    """The formulas of the docstring, one token at a time."""

    def __init__(self, train: list[int], vocab_size: int) -> None:
        self.size, self.vocab_size = len(train), vocab_size
        self.ones, self.twos = Counter(train), Counter(pairwise(train))
        self.triples = list(zip(train, train[1:], train[2:], strict=False))
        self.threes, self.around = Counter(self.triples), Counter((a, d) for a, _, d in self.triples)
        self.before, self.after = Counter(train[:-1]), Counter(train[1:])
        self.left = min(STRENGTHS, key=lambda m: self.loss([(a, b, None) for a, b, _ in self.triples], left=m))
        self.right = min(STRENGTHS, key=lambda m: self.loss([(None, b, d) for _, b, d in self.triples], right=m))
        self.both = min(STRENGTHS, key=lambda m: self.loss(self.triples, self.left, self.right, m))

    def loss(
        self, triples: list[Triple] | list[tuple[int, int, int]], left: float = 1, right: float = 1, both: float = 1
    ) -> float:
        return -sum(log(self.share(*triple, left, right, both, out=1)) for triple in triples)

    def share(
        self, a: int | None, b: int, d: int | None, left: float, right: float, both: float, out: int = 0
    ) -> float:
        one = (self.ones[b] - out + 1) / (self.size - out + self.vocab_size)
        after_a = (self.twos[a, b] - out + left * one) / (self.before[a] - out + left) if a is not None else one
        before_d = (self.twos[b, d] - out + right * one) / (self.after[d] - out + right) if d is not None else one
        if a is None or d is None:
            return before_d if a is None else after_a
        base = (after_a + before_d) / 2
        return (self.threes[a, b, d] - out + both * base) / (self.around[a, d] - out + both)


@given(seed=st.integers(0, 10**6), vocab_size=st.integers(2, 7), size=st.integers(3, 150))
@settings(max_examples=50, deadline=None)
def test_cross_entropies_equal_the_formulas(seed: int, vocab_size: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    train = generator.integers(0, vocab_size, size)
    sequences = generator.integers(0, vocab_size, (4, 7))
    hidden = generator.random((4, 7)) < 0.5
    hidden[0, :2] = True  # an end, and a hidden neighbour
    slow = Slow(train.tolist(), vocab_size)
    found = neighbour_cross_entropy(train, sequences, hidden=hidden, vocab_size=vocab_size)
    targets: list[Triple] = []
    for row, marks in zip(sequences.tolist(), hidden.tolist(), strict=True):
        shown = [None, *(None if mark else token for token, mark in zip(row, marks, strict=True)), None]
        targets += [(shown[t], row[t], shown[t + 2]) for t in range(7) if marks[t]]
    losses = [-log(slow.share(*target, slow.left, slow.right, slow.both)) for target in targets]
    assert found["neighbours"] == pytest.approx(np.mean(losses), rel=1e-12)  # at most 28 logarithms in another order
    alone = [-log(slow.share(None, b, None, 1, 1, 1)) for _, b, _ in targets]
    assert found["hidden_unigram"] == pytest.approx(np.mean(alone), rel=1e-12)


def test_a_token_that_both_neighbours_decide_and_neither_alone_costs_almost_nothing() -> None:
    """x y (x + y): the middle of (a, b, d) is their difference mod 8, and every pair is equally frequent."""
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 8, (2, 40_000))
    train = np.stack((first, (second - first) % 8, second), axis=1).ravel()
    sequences = train[:3000].reshape(-1, 3)
    hidden = np.zeros((1000, 3), dtype=bool)
    hidden[:, 1] = True
    found = neighbour_cross_entropy(train, sequences, hidden=hidden, vocab_size=8)
    assert found["hidden_unigram"] == pytest.approx(log(8), abs=0.01)
    # A third of the training triples are of this kind, the others uniform: -log((1/3 + 2/3 * 1/8) / 1) for the right one.
    assert found["neighbours"] == pytest.approx(-log(1 / 3 + 2 / 3 / 8), abs=0.05)


def test_large_vocabulary_and_small_chunks_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    train, sequences = generator.integers(0, 20, 5000), generator.integers(0, 20, (7, 40))
    hidden = generator.random((7, 40)) < 0.4

    def score() -> dict[str, float]:
        return neighbour_cross_entropy(train, sequences, hidden=hidden, vocab_size=20)

    dense = score()
    monkeypatch.setattr(ngrams, "LARGEST_TABLE", 0)
    assert score() == dense
    monkeypatch.setattr(ngrams, "CHUNK", 17)
    assert score() == dense
    monkeypatch.setattr(ngrams, "LARGEST_TABLE", 10**6)
    assert score() == dense


def test_hidden_tokens_must_be_marked_in_the_shape_of_the_sequences() -> None:
    sequences = np.zeros((2, 5), dtype=np.int64)
    for hidden in (np.zeros((2, 5), dtype=bool), np.ones((2, 4), dtype=bool)):
        with pytest.raises(
            ConfigurationError, match=r"hidden must mark tokens of \(2, 5\) sequences and positions, got"
        ):
            neighbour_cross_entropy(np.arange(9), sequences, hidden=hidden, vocab_size=9)


def test_training_tokens_must_hold_a_triple() -> None:
    with pytest.raises(DataError, match=r"tokens must hold at least one triple to be counted, got 2 tokens"):
        neighbour_cross_entropy(
            np.zeros(2, dtype=np.int64), np.zeros((1, 4), dtype=np.int64), hidden=np.ones((1, 4), bool), vocab_size=2
        )


@pytest.mark.parametrize("where", ["train", "sequences"])
def test_id_outside_the_vocabulary_is_an_error(where: str) -> None:
    arrays = {"train": np.arange(9), "sequences": np.zeros((2, 5), dtype=np.int64)}
    arrays[where].flat[3] = 9
    with pytest.raises(DataError, match=r"token ids must be between 0 and 8, got"):
        neighbour_cross_entropy(arrays["train"], arrays["sequences"], hidden=np.ones((2, 5), bool), vocab_size=9)
