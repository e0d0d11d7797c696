"""What counting reaches on hidden tokens from the tokens beside them: the reference of masked language models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.data.evaluation import LEFT_OUT, STRENGTHS
from rankkit.data.ngrams import TripleStatistics, triple_statistics
from rankkit.errors import ConfigurationError, DataError

__all__ = ["neighbour_cross_entropy"]

Array = NDArray[np.float64]


def neighbour_cross_entropy(
    train: NDArray[np.integer[Any]],
    sequences: NDArray[np.integer[Any]],
    *,
    hidden: NDArray[np.bool_],
    vocab_size: int,
) -> dict[str, float]:
    """Cross-entropy of hidden tokens under models that count, and see no more of the text than a masked model.

    With c counted on the N training tokens, V = vocab_size, for a hidden token b between a and d:

        hidden_unigram   P1(b) = (c(b) + 1) / (N + V)
        neighbours       P(b | a, d) = (c(a, b, d) + k (P(b | a) + P(b | d)) / 2) / (c(a, ., d) + k)
          d not seen     P(b | a) = (c(a, b) + l P1(b)) / (c(a, .) + l)
          a not seen     P(b | d) = (c(b, d) + r P1(b)) / (c(., d) + r)
          neither        P1(b)

    A neighbour is not seen where it is hidden itself or outside the sequence. The strengths l, r and then k are those of
    4**-1..4**8 that best predict 65,536 evenly spaced training tokens, each left out of the counts itself.

    Args:
        train: "position", the training tokens; read in chunks, bounded memory.
        sequences: "sequence position", the true tokens.
        hidden: "sequence position", which of them are to be predicted.
        vocab_size: every id is below it.

    Returns:
        `hidden_unigram` and `neighbours`, nats per hidden token.

    Raises:
        ConfigurationError: nothing is hidden, or not in the shape of the sequences.
        DataError: fewer than three training tokens, or an id outside the vocabulary.

    Source: MacKay and Peto (1995), A hierarchical Dirichlet language model; Jelinek and Mercer (1980), Interpolated
    estimation of Markov source parameters from sparse data, for the mean of the two sides.
    """
    if hidden.shape != sequences.shape or not hidden.any():
        raise ConfigurationError(
            f"hidden must mark tokens of {sequences.shape} sequences and positions, got {int(hidden.sum())} in "
            f"{hidden.shape}. Mark at least one."
        )
    if train.size < 3:
        raise DataError(f"tokens must hold at least one triple to be counted, got {train.size} tokens. Add text.")
    (before, sees_before), (after, sees_after) = _beside(sequences, hidden, -1), _beside(sequences, hidden, 1)
    chosen = np.arange(min(LEFT_OUT, train.size - 2)) * (train.size - 2) // min(LEFT_OUT, train.size - 2)
    asked = [
        np.concatenate([of_targets, train[chosen + offset].astype(np.int64)])
        for offset, of_targets in enumerate((before, sequences[hidden].astype(np.int64), after))
    ]
    statistics = triple_statistics(train, *asked, vocab_size=vocab_size)
    target, sample = statistics.part(slice(before.size)), statistics.part(slice(before.size, None))
    shares = _shares(target, _strengths(sample), left_out=0)
    seen = np.where(sees_before, np.where(sees_after, 3, 1), np.where(sees_after, 2, 0))
    return {
        "hidden_unigram": float(-np.log(shares[0]).mean()),
        "neighbours": float(-np.log(np.choose(seen, shares)).mean()),
    }


def _beside(
    sequences: NDArray[np.integer[Any]], hidden: NDArray[np.bool_], offset: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of every hidden token the one at an offset of 1 or -1, and whether it can be seen; any id where it cannot."""
    inside = np.ones_like(hidden)
    inside[:, 0 if offset < 0 else -1] = False
    visible = inside & ~np.roll(hidden, -offset, axis=1)
    return np.roll(sequences, -offset, axis=1)[hidden].astype(np.int64), visible[hidden]


def _strengths(sample: TripleStatistics) -> tuple[float, float, float]:
    """l, r and k."""

    def best(which: int, *before: float) -> float:
        def loss(strength: float) -> float:
            strengths = (*before, strength, *[1.0] * (2 - len(before)))
            return float(-np.log(_shares(sample, strengths, left_out=1)[which]).mean())

        return float(min(STRENGTHS, key=loss))

    left = best(1)
    right = best(2, left)
    return left, right, best(3, left, right)


def _shares(counts: TripleStatistics, strengths: tuple[float, ...], *, left_out: int) -> list[Array]:
    """Probabilities of the tokens in the middle: of themselves, after a, before d, between both."""
    left_strength, right_strength, both_strength = strengths
    unigram = (counts.outcome - left_out + 1) / (counts.tokens - left_out + counts.vocab_size)
    left = (counts.left_pair - left_out + left_strength * unigram) / (counts.left_context - left_out + left_strength)
    right = (counts.right_pair - left_out + right_strength * unigram) / (
        counts.right_context - left_out + right_strength
    )
    both = (counts.triple - left_out + both_strength * (left + right) / 2) / (
        counts.both_context - left_out + both_strength
    )
    return [unigram, left, right, both]
