"""Counting tokens and pairs of neighbouring tokens in a stream of any length, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import DataError

__all__ = ["PairStatistics", "pair_statistics"]

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
    counts = _PairTable(vocab_size) if vocab_size**2 <= LARGEST_TABLE else _PairList(wanted)
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


def _chunks(stream: NDArray[np.integer[Any]], vocab_size: int) -> Iterator[NDArray[np.int64]]:
    """Chunks that overlap by one token, so that every pair is in exactly one."""
    for start in range(0, stream.size - 1, CHUNK):
        chunk = np.asarray(stream[start : start + CHUNK + 1]).astype(np.int64)
        _check_ids(chunk, vocab_size)
        yield chunk


def _check_ids(ids: NDArray[np.int64], vocab_size: int) -> None:
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise DataError(
            f"token ids must be between 0 and {vocab_size - 1}, got {ids.min()} to {ids.max()}. "
            "Pass the vocab_size of these tokens."
        )


class _PairTable:
    """Counts of all pairs."""

    def __init__(self, vocab_size: int) -> None:
        self._counts = np.zeros(vocab_size**2, dtype=np.int64)

    def add(self, codes: NDArray[np.int64]) -> None:
        self._counts += np.bincount(codes, minlength=self._counts.size)

    def of(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._counts[codes]


class _PairList:
    """Counts of the pairs in a sorted list; others are let pass."""

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
