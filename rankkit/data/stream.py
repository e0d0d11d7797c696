"""The batches that every arm reads: a pure function of (seed, step).

Batch k of seed s is made from a counter-based generator keyed by (s, k) and nothing else, so that resuming,
evaluating, another arm or another machine cannot disturb it. Only raw 64-bit draws are used, whose stream NumPy
guarantees; its higher-level samplers may change between versions.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError, DataError

__all__ = ["Batch", "BatchStream", "PrefixLengths", "raw_draws"]


def raw_draws(name: str, count: int) -> NDArray[np.uint64]:
    """Random 64-bit numbers that are a function of a name alone.

    Args:
        name: of what they are for; the first 128 bits of its SHA-256 key a counter-based generator (Philox).
        count: how many.

    Returns:
        "draw", uniform over all 64-bit numbers.
    """
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u8").astype(np.uint64)
    return np.asarray(np.random.Philox(key=key).random_raw(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixLengths:
    """The prefix lengths that a stream draws from, uniformly."""

    choices: tuple[int, ...]
    """Ascending, at least one, at least 0."""

    def __post_init__(self) -> None:
        if not self.choices or self.choices[0] < 0 or any(a >= b for a, b in pairwise(self.choices)):
            raise ConfigurationError(
                f"choices must be ascending prefix lengths of at least 0, got {self.choices}. Name each length once."
            )

    @classmethod
    def between(cls, sequence_length: int, *, lowest: float, highest: float, multiple: int) -> PrefixLengths:
        """Multiples of `multiple` from lowest to highest, both fractions of the sequence, ends included.

        Raises:
            ConfigurationError: there is none.
        """
        # Exact in the decimal that was written: 0.29 of 100 tokens is 29, where float64 says 28.999999999999996.
        first = math.ceil(Fraction(str(lowest)) * sequence_length / multiple) * multiple
        last = math.floor(Fraction(str(highest)) * sequence_length / multiple) * multiple
        choices = tuple(range(first, last + 1, multiple))
        if not choices:
            raise ConfigurationError(
                f"prefix_multiple must have a multiple between {lowest} and {highest} of {sequence_length} tokens, "
                f"got {multiple}. Lower prefix_multiple or raise sequence_length."
            )
        return cls(choices=choices)


@dataclass(frozen=True, slots=True)
class Batch:
    """What every arm is given at one step."""

    tokens: NDArray[np.int64]
    """"sequence position"."""
    prefix_lengths: tuple[int, ...]
    """One per sequence, ascending, so that equal ones stand together and share a kernel call."""


class BatchStream:
    """Random windows of a token file with a random prefix length each.

    Args:
        tokens: "position", the training tokens; may be memory-mapped.
        seed: of the run.
        batch_size: sequences per batch.
        sequence_length: tokens per sequence.
        prefix_lengths: to draw from.

    Raises:
        DataError: fewer tokens than one sequence.
    """

    def __init__(
        self,
        tokens: NDArray[np.integer],
        *,
        seed: int,
        batch_size: int,
        sequence_length: int,
        prefix_lengths: PrefixLengths,
    ) -> None:
        if len(tokens) < sequence_length:
            raise DataError(
                f"training text must hold at least {sequence_length} tokens (sequence_length), got {len(tokens)}. "
                "Add text or lower sequence_length."
            )
        self._tokens, self._seed, self._batch_size = tokens, seed, batch_size
        self._sequence_length, self._prefix_lengths = sequence_length, prefix_lengths

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        draws = raw_draws(f"rankkit batch {self._seed} {step}", 2 * self._batch_size)
        # A remainder of 64 random bits favours some values by less than 2^-30 for any text below 10^10 tokens.
        starts = draws[: self._batch_size] % np.uint64(len(self._tokens) - self._sequence_length + 1)
        choices = self._prefix_lengths.choices
        picks = draws[self._batch_size :] % np.uint64(len(choices))
        windows = [self._tokens[int(start) : int(start) + self._sequence_length] for start in starts]
        return Batch(np.stack(windows).astype(np.int64), tuple(sorted(choices[int(pick)] for pick in picks)))
