"""Held-out windows: disjoint, evenly spread, each with its document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.data import TokenFiles, evaluation_sequences
from rankkit.errors import ConfigurationError, DataError


def files(size: int, starts: list[int] | None = None) -> TokenFiles:
    return TokenFiles(
        train=np.zeros(1, dtype=np.uint16),
        validation=np.arange(size, dtype=np.uint16),
        train_documents=np.zeros(1, dtype=np.int64),
        validation_documents=np.array(starts or [0]),
        vocab_size=65_535,
        description={},
    )


@given(size=st.integers(1, 3000), count=st.integers(1, 80), length=st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_windows_are_disjoint_aligned_and_as_many_as_there_can_be(size: int, count: int, length: int) -> None:
    if size < length:
        with pytest.raises(DataError, match=f"text must hold at least {length} validation tokens .*, got {size}"):
            evaluation_sequences(files(size), count=count, sequence_length=length)
        return
    windows = evaluation_sequences(files(size), count=count, sequence_length=length).tokens
    assert windows.shape == (min(count, size // length), length)
    assert windows.dtype == np.int64
    starts = windows[:, 0]
    assert (windows == starts[:, None] + np.arange(length)).all()  # the stream counts up, so a token is its position
    assert (starts % length == 0).all()
    assert (np.diff(starts) >= length).all()


def test_windows_are_spread_evenly() -> None:
    starts = evaluation_sequences(files(1009), count=4, sequence_length=10).tokens[:, 0]
    assert starts.tolist() == [0, 250, 500, 750]


def test_document_is_the_one_in_which_the_window_starts() -> None:
    sequences = evaluation_sequences(files(60, [0, 5, 20, 39, 41]), count=9, sequence_length=10)
    assert sequences.documents.tolist() == [0, 1, 2, 2, 3, 4]
    assert sequences.documents.dtype == np.int64


def test_sequences_cannot_be_changed() -> None:
    sequences = evaluation_sequences(files(60), count=2, sequence_length=10)
    with pytest.raises(ValueError, match=r"read-only"):
        sequences.tokens[0, 0] = 1
    with pytest.raises(ValueError, match=r"read-only"):
        sequences.documents[0] = 1


@pytest.mark.parametrize(("count", "length"), [(0, 8), (8, 0), (-1, 8)])
def test_count_and_length_must_be_positive(count: int, length: int) -> None:
    with pytest.raises(
        ConfigurationError, match=f"count and sequence_length must be at least 1, got {count} and {length}"
    ):
        evaluation_sequences(files(60), count=count, sequence_length=length)
