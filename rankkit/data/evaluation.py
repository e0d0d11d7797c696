"""What models are evaluated on, and what counting alone reaches on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from rankkit.data.ngrams import PairStatistics, pair_statistics
from rankkit.data.tokens import TokenFiles
from rankkit.errors import ConfigurationError, DataError

__all__ = ["EvaluationSequences", "evaluation_sequences", "ngram_cross_entropy"]

LEFT_OUT = (
    1 << 16
)  # training pairs on which the smoothing is chosen: its cross-entropy is then known to about 0.01 nats
STRENGTHS = np.array([4.0**k for k in range(-1, 9)])  # pseudo-counts tried, 1/4 to 65536; the optimum is flat


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSequences:
    """Held-out windows, the same for every arm, seed and step."""

    tokens: NDArray[np.int64]
    """"sequence position": token ids, read-only."""
    documents: NDArray[np.int64]
    """"sequence": index of the held-out document in which the window starts, read-only."""


def evaluation_sequences(tokens: TokenFiles, *, count: int, sequence_length: int) -> EvaluationSequences:
    """Windows of the held-out tokens that never overlap, spread evenly over all of them.

    The packed stream is cut into available = floor(tokens / sequence_length) windows, of which number
    floor(k * available / count) is taken for k = 0..count - 1. A window may span documents, as training sequences do.

    Args:
        tokens: prepared tokens.
        count: how many windows; where there are fewer, all are taken.
        sequence_length: tokens per window.

    Returns:
        At most `count` windows.

    Raises:
        ConfigurationError: `count` or `sequence_length` is below 1.
        DataError: not even one window.
    """
    if count < 1 or sequence_length < 1:
        raise ConfigurationError(
            f"count and sequence_length must be at least 1, got {count} and {sequence_length}. Raise them."
        )
    available = tokens.validation.size // sequence_length
    if available == 0:
        raise DataError(
            f"text must hold at least {sequence_length} validation tokens (one sequence), "
            f"got {tokens.validation.size}. Add text or lower sequence_length."
        )
    count = min(count, available)
    chosen = np.arange(count) * available // count
    whole = tokens.validation[: available * sequence_length]
    windows = rearrange(whole, "(sequence position) -> sequence position", position=sequence_length)[chosen]
    documents = np.searchsorted(tokens.validation_documents, chosen * sequence_length, side="right") - 1
    sequences = EvaluationSequences(tokens=windows.astype(np.int64), documents=documents.astype(np.int64))
    sequences.tokens.flags.writeable = sequences.documents.flags.writeable = False
    return sequences


def ngram_cross_entropy(
    train: NDArray[np.integer[Any]],
    sequences: NDArray[np.integer[Any]],
    *,
    targets: slice,
    vocab_size: int,
    validation: NDArray[np.integer[Any]] | None = None,
) -> dict[str, float]:
    """Cross-entropy of unigram and bigram models on exactly the tokens that the models are evaluated on.

    With c counted on the N training tokens and V = vocab_size, for a target b after the token a:

        unigram      P1(b) = (c(b) + 1) / (N + V)
        bigram       P2(b | a) = (c(a, b) + m P1(b)) / (c(a) + m)

    a Dirichlet prior around the unigram model, whose strength m is the one of 4**-1..4**8 that best predicts 65,536
    evenly spaced training pairs, each left out of the counts itself. On request, with c counted on the held-out tokens:

        bigram_self  P(b | a) = c(a, b) / c(a)

    which has seen the answers: no bigram model reaches less on the whole of them.

    Args:
        train: "position", the training tokens; read in chunks, bounded memory.
        sequences: "sequence position", for example `EvaluationSequences.tokens`.
        targets: columns of `sequences` that are predicted, from 1 on: each needs the token before it.
        vocab_size: every id is below it.
        validation: "position", all held-out tokens, from which `sequences` were cut; None leaves `bigram_self` out.

    Returns:
        `unigram`, `bigram` and perhaps `bigram_self`, nats per target token.

    Raises:
        ConfigurationError: `targets` selects nothing or the first column.
        DataError: fewer than two training tokens, an id outside the vocabulary, or sequences not cut from `validation`.

    Source: MacKay and Peto (1995), A hierarchical Dirichlet language model; Ney, Essen and Kneser (1995), On the
    estimation of small probabilities by leaving-one-out.
    """
    contexts, outcomes = _target_pairs(sequences, targets)
    sample_contexts, sample_outcomes = _spread_pairs(train)
    target, sample = pair_statistics(
        train,
        np.concatenate([contexts, sample_contexts]),
        np.concatenate([outcomes, sample_outcomes]),
        vocab_size=vocab_size,
    ).split(outcomes.size)
    strength = min(STRENGTHS, key=lambda m: _bigram(sample, float(m), left_out=1))
    scores = {
        "unigram": float(-np.log(_unigram(target, left_out=0)).mean()),
        "bigram": _bigram(target, float(strength), left_out=0),
    }
    if validation is not None:
        scores["bigram_self"] = _empirical(pair_statistics(validation, contexts, outcomes, vocab_size=vocab_size))
    return scores


def _target_pairs(sequences: NDArray[np.integer[Any]], targets: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    columns = np.arange(sequences.shape[1])[targets]
    if columns.size == 0 or columns.min() < 1:
        raise ConfigurationError(
            f"targets must name columns from 1 to {sequences.shape[1] - 1}, got {targets!r}. "
            "Leave out column 0, which has no token before it."
        )
    contexts, outcomes = sequences[:, columns - 1], sequences[:, columns]
    return contexts.astype(np.int64).ravel(), outcomes.astype(np.int64).ravel()


def _spread_pairs(train: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = train.size - 1
    chosen = np.arange(min(LEFT_OUT, pairs)) * pairs // min(LEFT_OUT, max(1, pairs))
    return train[chosen].astype(np.int64), train[chosen + 1].astype(np.int64)


def _unigram(statistics: PairStatistics, *, left_out: int) -> NDArray[np.float64]:
    share = (statistics.outcome - left_out + 1) / (statistics.tokens - left_out + statistics.vocab_size)
    return np.asarray(share, dtype=np.float64)


def _bigram(statistics: PairStatistics, strength: float, *, left_out: int) -> float:
    prior = strength * _unigram(statistics, left_out=left_out)
    shares = (statistics.pair - left_out + prior) / (statistics.context - left_out + strength)
    return float(-np.log(shares).mean())


def _empirical(statistics: PairStatistics) -> float:
    if statistics.pair.min() == 0:
        raise DataError(
            "sequences must be cut from the validation tokens, got a pair that is not in them. Pass both of one run."
        )
    return float(-np.log(statistics.pair / statistics.context).mean())
