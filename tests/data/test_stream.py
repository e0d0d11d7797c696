"""Batches are a pure function of (seed, step), and every window and prefix length has its chance."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from rankkit.data.stream import Batch, BatchStream, PrefixLengths
from rankkit.errors import ConfigurationError, DataError
from rankkit.training import ArmConfig, TrainConfig, arm_config
from rankkit.training.trainer import Trainer

LENGTHS = PrefixLengths.between(256, lowest=0.25, highest=0.75, multiple=8)
TOKENS = np.arange(5000, dtype=np.uint16)

# SHA-256 over tokens and prefix lengths of batch 0 of `stream(0)`. Where it differs, no older run can be resumed.
PINNED = "55faabce0ea3da6aaef732b1d53798acdd17ee3f5005dff2e718015e191cb7c6"
PRINT_DIGEST = """
import hashlib, numpy as np
from rankkit.data.stream import BatchStream, PrefixLengths
lengths = PrefixLengths.between(256, lowest=0.25, highest=0.75, multiple=8)
tokens = np.arange(5000, dtype=np.uint16)
batch = BatchStream(tokens, seed=0, batch_size=4, sequence_length=256, prefix_lengths=lengths).batch(0)
print(hashlib.sha256(batch.tokens.astype('<i8').tobytes() + repr(batch.prefix_lengths).encode()).hexdigest())
"""


def stream(
    seed: int,
    *,
    tokens: NDArray[np.integer] = TOKENS,
    batch_size: int = 4,
    sequence_length: int = 256,
    lengths: PrefixLengths = LENGTHS,
) -> BatchStream:
    return BatchStream(
        tokens, seed=seed, batch_size=batch_size, sequence_length=sequence_length, prefix_lengths=lengths
    )


def digest(batch: Batch) -> str:
    content = batch.tokens.astype("<i8").tobytes() + repr(batch.prefix_lengths).encode()
    return hashlib.sha256(content).hexdigest()


def test_the_first_batch_is_pinned() -> None:
    assert digest(stream(0).batch(0)) == PINNED


def test_another_process_makes_the_same_batch() -> None:
    command = [sys.executable, "-c", PRINT_DIGEST]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"})
    assert found.stdout.strip() == digest(stream(0).batch(0))


@given(st.integers(0, 2**63), st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_batches_do_not_depend_on_order_history_or_instance(seed: int, steps: list[int]) -> None:
    one, other = stream(seed), stream(seed)
    forwards = {step: digest(one.batch(step)) for step in steps}
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    torch.manual_seed(2)
    backwards = {step: digest(other.batch(step)) for step in reversed(steps)}
    assert forwards == backwards
    assert {step: digest(one.batch(step)) for step in steps} == forwards


def test_seeds_and_steps_give_different_batches() -> None:
    digests = {digest(stream(seed).batch(step)) for seed in range(12) for step in range(12)}
    assert len(digests) == 144


def test_all_arms_of_a_seed_read_the_same_stream() -> None:
    class Files:
        train = TOKENS

    base = ArmConfig(train=TrainConfig(batch_size=4))
    batches = [
        Trainer.stream_of(arm_config(base, name), seed=3, tokens=Files()).batch(7)  # type: ignore[arg-type]
        for name in ("gpt", "unilm", "gpt-full")
    ]
    assert {digest(batch) for batch in batches} == {digest(stream(3).batch(7))}


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_windows_are_contiguous_slices_and_prefixes_legal(seed: int, step: int) -> None:
    batch = stream(seed, batch_size=6).batch(step)
    assert batch.tokens.shape == (6, 256)
    assert batch.tokens.dtype == np.int64
    starts = batch.tokens[:, :1]
    assert (batch.tokens == starts + np.arange(256)).all()
    assert 0 <= starts.min() <= starts.max() <= 5000 - 256
    assert len(batch.prefix_lengths) == 6
    assert list(batch.prefix_lengths) == sorted(batch.prefix_lengths)
    assert all(64 <= length <= 192 and length % 8 == 0 for length in batch.prefix_lengths)
    assert all(type(length) is int for length in batch.prefix_lengths)


def test_every_start_is_possible_and_equally_likely_the_last_included() -> None:
    short = stream(1, tokens=np.arange(12, dtype=np.uint16), sequence_length=8, batch_size=10,
                   lengths=PrefixLengths(choices=(4,)))  # fmt: skip
    starts = np.concatenate([short.batch(step).tokens[:, 0] for step in range(200)])
    counts = np.bincount(starts, minlength=5)
    assert len(counts) == 5
    assert chisquare(counts).pvalue > 1e-3


def test_a_text_of_one_sequence_is_always_that_sequence() -> None:
    whole = stream(0, tokens=TOKENS[:256])
    assert all((whole.batch(step).tokens == TOKENS[:256]).all() for step in range(5))


def test_every_prefix_length_occurs_equally_often() -> None:
    lengths = np.concatenate([stream(2, batch_size=17).batch(step).prefix_lengths for step in range(120)])
    values, counts = np.unique(lengths, return_counts=True)
    assert values.tolist() == list(range(64, 193, 8))
    assert chisquare(counts).pvalue > 1e-3


def test_windows_and_prefix_lengths_are_drawn_independently() -> None:
    """As many starts as prefix lengths, so that one draw for both would always pair them alike."""
    single = stream(4, tokens=TOKENS[: 256 + 16], batch_size=1)
    batches = [single.batch(step) for step in range(2890)]
    table = np.zeros((17, 17))
    for batch in batches:
        table[batch.tokens[0, 0], (batch.prefix_lengths[0] - 64) // 8] += 1
    assert chisquare(table.ravel()).pvalue > 1e-3


def test_windows_are_not_sorted_with_the_lengths_beside_them() -> None:
    first = np.array([stream(4, batch_size=2).batch(step).tokens[:, 0] for step in range(500)])
    later = int((first[:, 1] > first[:, 0]).sum())
    assert abs(later - 250) < 60  # five standard errors of 500 tosses of a coin


def test_memory_mapped_tokens_are_read_like_others(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    np.save(path, TOKENS)
    mapped = stream(5, tokens=np.load(path, mmap_mode="r")).batch(3)
    assert digest(mapped) == digest(stream(5).batch(3))
    mapped.tokens[:] = 0  # a copy: whoever changes a batch changes no text
    assert digest(stream(5).batch(3)) == digest(stream(5, tokens=np.load(path, mmap_mode="r")).batch(3))


@given(
    st.integers(2, 300), st.integers(0, 100), st.integers(0, 100), st.integers(1, 16)
)  # fmt: skip
def test_choices_are_all_multiples_between_the_fractions(n: int, one: int, other: int, multiple: int) -> None:
    low, high = sorted((one, other))
    expected = [p for p in range(0, n + 1, multiple) if Fraction(low, 100) * n <= p <= Fraction(high, 100) * n]
    if expected:
        found = PrefixLengths.between(n, lowest=low / 100, highest=high / 100, multiple=multiple)
        assert list(found.choices) == expected
    else:
        with pytest.raises(ConfigurationError, match="prefix_multiple must have a multiple between"):
            PrefixLengths.between(n, lowest=low / 100, highest=high / 100, multiple=multiple)


def test_misuse_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"training text must hold at least 256 tokens \(sequence_length\), got 255. Add"
    ):
        stream(0, tokens=TOKENS[:255])
    message = "prefix_multiple must have a multiple between 0.3 and 0.35 of 20 tokens, got 8. Lower prefix_multiple"
    with pytest.raises(ConfigurationError, match=message):
        PrefixLengths.between(20, lowest=0.3, highest=0.35, multiple=8)
    for choices in ((), (8, 4), (8, 8), (-8, 8)):
        with pytest.raises(ConfigurationError, match="choices must be ascending prefix lengths of at least 0, got"):
            PrefixLengths(choices=choices)
