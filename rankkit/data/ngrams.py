"""Counting tokens, pairs and triples of neighbouring tokens in a stream of any length, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import DataError

__all__ = ["PairStatistics", "TripleStatistics", "pair_statistics", "triple_statistics"]

CHUNK = 1 << 21  # tokens counted at a time: about 50 MB of working memory
LARGEST_TABLE = (
    4_000_000  # vocab_size**2 up to which all pairs are counted in a table (32 MB), byte vocabularies among them
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """What a stream says about pairs (a, b) that were asked about."""

    tokens: int
    """Length of the stream."""
    vocab_size: int
    """Every id is below it."""
    context: NDArray[np.int64]
    """"pair": how often a stands before another token."""
    outcome: NDArray[np.int64]
    """"pair": how often b occurs."""
    pair: NDArray[np.int64]
    """"pair": how often b follows a."""

    def split(self, size: int) -> tuple[PairStatistics, PairStatistics]:
        """The first `size` pairs, and the others."""
        return self._part(slice(None, size)), self._part(slice(size, None))

    def _part(self, part: slice) -> PairStatistics:
        return PairStatistics(
            tokens=self.tokens,
            vocab_size=self.vocab_size,
            context=self.context[part],
            outcome=self.outcome[part],
            pair=self.pair[part],
        )


def pair_statistics(
    stream: NDArray[np.integer[Any]], contexts: NDArray[np.int64], outcomes: NDArray[np.int64], *, vocab_size: int
) -> PairStatistics:
    """Count a stream once, for the pairs that are asked about.

    A small vocabulary is counted in a table of all pairs; for a large one only the pairs asked about are counted,
    found by binary search. The counts are the same; memory grows with neither the stream nor the squared vocabulary.

    Args:
        stream: "position", at least two tokens, memory-mapped or not.
        contexts: "pair", the first token of each pair asked about, in [0, vocab_size).
        outcomes: "pair", the second token of each.
        vocab_size: every id is below it.

    Returns:
        The counts, for each pair asked about.

    Raises:
        DataError: the stream is too short or holds an id outside the vocabulary.
    """
    if stream.size < 2:
        raise DataError(f"tokens must hold at least one pair to be counted, got {stream.size} tokens. Add text.")
    for ids in (contexts, outcomes):
        _check_ids(ids, vocab_size)
    wanted, inverse = np.unique(contexts * vocab_size + outcomes, return_inverse=True)
    occurrences = np.zeros(vocab_size, dtype=np.int64)
    counts = _counter(wanted, vocab_size)
    for chunk in _chunks(stream, vocab_size):
        occurrences += np.bincount(chunk[1:], minlength=vocab_size)
        counts.add(chunk[:-1] * vocab_size + chunk[1:])
    first, last = int(stream[0]), int(stream[-1])
    occurrences[first] += 1
    followed = occurrences.copy()
    followed[last] -= 1
    return PairStatistics(
        tokens=stream.size,
        vocab_size=vocab_size,
        context=followed[contexts],
        outcome=occurrences[outcomes],
        pair=counts.of(wanted)[inverse],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TripleStatistics:
    """What a stream says about triples (a, b, d) that were asked about."""

    tokens: int
    """Length of the stream."""
    vocab_size: int
    """Every id is below it."""
    outcome: NDArray[np.int64]
    """"triple": how often b occurs."""
    left_context: NDArray[np.int64]
    """"triple": how often a stands before another token."""
    left_pair: NDArray[np.int64]
    """"triple": how often b follows a."""
    right_context: NDArray[np.int64]
    """"triple": how often d stands after another token."""
    right_pair: NDArray[np.int64]
    """"triple": how often d follows b."""
    both_context: NDArray[np.int64]
    """"triple": how often d stands two places after a."""
    triple: NDArray[np.int64]
    """"triple": how often b stands between them."""

    def part(self, chosen: NDArray[np.bool_] | slice) -> TripleStatistics:
        """Some of the triples."""
        counts = {
            item.name: getattr(self, item.name)[chosen]
            for item in fields(self)
            if item.name not in ("tokens", "vocab_size")
        }
        return TripleStatistics(tokens=self.tokens, vocab_size=self.vocab_size, **counts)


def triple_statistics(
    stream: NDArray[np.integer[Any]],
    before: NDArray[np.int64],
    middle: NDArray[np.int64],
    after: NDArray[np.int64],
    *,
    vocab_size: int,
) -> TripleStatistics:
    """Count a stream, for the triples that are asked about.

    Args:
        stream: "position", at least two tokens, memory-mapped or not.
        before: "triple", the first token of each triple asked about, in [0, vocab_size).
        middle: "triple", the token between the two.
        after: "triple", the last token.
        vocab_size: every id is below it; its cube fits 63 bits.

    Returns:
        The counts, for each triple asked about.

    Raises:
        DataError: the stream is too short or holds an id outside the vocabulary.
    """
    left = pair_statistics(stream, before, middle, vocab_size=vocab_size)
    right = pair_statistics(stream, middle, after, vocab_size=vocab_size)
    wanted, inverse = np.unique((before * vocab_size + middle) * vocab_size + after, return_inverse=True)
    around, around_inverse = np.unique(before * vocab_size + after, return_inverse=True)
    triples, contexts = _PairList(wanted), _counter(around, vocab_size)
    for chunk in _chunks(stream, vocab_size, width=3):
        contexts.add(chunk[:-2] * vocab_size + chunk[2:])
        triples.add((chunk[:-2] * vocab_size + chunk[1:-1]) * vocab_size + chunk[2:])
    return TripleStatistics(
        tokens=stream.size,
        vocab_size=vocab_size,
        outcome=left.outcome,
        left_context=left.context,
        left_pair=left.pair,
        right_context=right.outcome - (after == int(stream[0])),
        right_pair=right.pair,
        both_context=contexts.of(around)[around_inverse],
        triple=triples.of(wanted)[inverse],
    )


def _chunks(stream: NDArray[np.integer[Any]], vocab_size: int, width: int = 2) -> Iterator[NDArray[np.int64]]:
    """Chunks that overlap, so that `width` tokens in a row are in exactly one."""
    for start in range(0, stream.size - width + 1, CHUNK):
        chunk = np.asarray(stream[start : start + CHUNK + width - 1]).astype(np.int64)
        _check_ids(chunk, vocab_size)
        yield chunk


def _check_ids(ids: NDArray[np.int64], vocab_size: int) -> None:
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise DataError(
            f"token ids must be between 0 and {vocab_size - 1}, got {ids.min()} to {ids.max()}. "
            "Pass the vocab_size of these tokens."
        )


def _counter(wanted: NDArray[np.int64], vocab_size: int) -> _PairTable | _PairList:
    """Of all pairs, or of those in a sorted list."""
    return _PairTable(vocab_size) if vocab_size**2 <= LARGEST_TABLE else _PairList(wanted)


class _PairTable:
    """Counts of all pairs."""

    def __init__(self, vocab_size: int) -> None:
        self._counts = np.zeros(vocab_size**2, dtype=np.int64)

    def add(self, codes: NDArray[np.int64]) -> None:
        self._counts += np.bincount(codes, minlength=self._counts.size)

    def of(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._counts[codes]


class _PairList:
    """Counts of the pairs (or triples) in a sorted list; others are let pass."""

    def __init__(self, codes: NDArray[np.int64]) -> None:
        self._codes = codes
        self._counts = np.zeros(codes.size, dtype=np.int64)

    def add(self, codes: NDArray[np.int64]) -> None:
        place = np.searchsorted(self._codes, codes)
        place[place == self._codes.size] = 0  # beyond the last one: compared with the first, and found different
        found = place[self._codes[place] == codes]
        self._counts += np.bincount(found, minlength=self._codes.size)

    def of(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The counts; `codes` are those of the constructor."""
        assert codes is self._codes
        return self._counts
