"""The same-mask control on arms whose seeds differ by known amounts, and on arms that do not differ at all."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from rankkit.studies.same_mask import PairsCalled, same_mask

Array = NDArray[np.float64]

DOCUMENTS = np.repeat(np.arange(8), 2)


def arm(by_seed: list[float], noise: float = 0.1, seed: int = 0) -> Array:
    """ "seed sequence" whose sequences scatter around the mean of their seed."""
    scatter = np.random.default_rng(seed).normal(0, noise, (len(by_seed), DOCUMENTS.size))
    return np.array(by_seed)[:, None] + scatter


@settings(max_examples=20)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_two_seeds_differ_by_the_rms_of_all_pairs_and_two_means_by_that_over_the_root_of_their_number(
    seeds: int, seed: int
) -> None:
    causal, prefix = np.random.default_rng(seed).normal(50, 4, (2, seeds, DOCUMENTS.size))
    found = same_mask(causal, prefix, DOCUMENTS)
    squares = [[(one - other) ** 2 for one, other in combinations(table.mean(axis=1), 2)] for table in (causal, prefix)]
    expected = [math.sqrt(np.mean(of_arm)) for of_arm in squares]
    assert found.between_seeds == pytest.approx(expected)
    assert found.between_means == pytest.approx([value / math.sqrt(seeds) for value in expected])
    assert found.pooled_between_seeds == pytest.approx(math.sqrt(np.mean(squares)))
    assert found.pooled_between_means == pytest.approx(found.pooled_between_seeds / math.sqrt(seeds))


def test_between_means_is_what_gaps_between_two_arms_of_one_mask_really_are() -> None:
    """Many pairs of arms drawn from one distribution over seeds: the root mean square of their gaps."""
    generator = np.random.default_rng(1)
    gaps, predicted = [], []
    for _ in range(3000):
        causal, prefix = generator.normal(50, 4, (2, 3, 1)) + generator.normal(0, 1, (2, 3, DOCUMENTS.size))
        gaps.append(causal.mean() - prefix.mean())
        predicted.append(same_mask(causal[:, :1], prefix[:, :1], DOCUMENTS[:1]).pooled_between_means)
    assert math.sqrt(np.mean(np.square(predicted))) == pytest.approx(math.sqrt(np.mean(np.square(gaps))), rel=0.05)


def test_a_test_over_sequences_calls_seeds_of_one_mask_different_when_only_the_seed_differs() -> None:
    """The trap: seeds scatter by 4, sequences by 0.1, and the two arms are the same."""
    causal, prefix = arm([46.0, 50.0, 54.0]), arm([54.0, 46.0, 50.0], seed=1)
    found = same_mask(causal, prefix, DOCUMENTS)
    assert found.within == PairsCalled(called=6, pairs=6)
    assert (found.across.called, found.across.pairs) == (6, 9)  # seeds with the same mean cannot be told apart
    assert found.within.share == 1


def test_pairs_are_called_by_the_t_test_over_documents_and_not_over_sequences() -> None:
    causal, prefix = arm([50.0, 50.2, 50.4], noise=0.4), arm([50.1, 50.6, 50.0], noise=0.4, seed=3)
    found = same_mask(causal, prefix, DOCUMENTS)

    def called(one: Array, other: Array) -> bool:
        by_document = (one - other).reshape(8, 2).mean(axis=1)
        return bool(stats.ttest_1samp(by_document, 0).pvalue <= 0.05)

    within = [called(one, other) for table in (causal, prefix) for one, other in combinations(table, 2)]
    across = [called(one, other) for one, other in product(causal, prefix)]
    assert found.within == PairsCalled(called=sum(within), pairs=6)
    assert found.across == PairsCalled(called=sum(across), pairs=9)
    assert 0 < sum(within) < 6
    assert 0 < sum(across) < 9


def test_where_seeds_do_not_differ_about_5_in_100_pairs_are_called() -> None:
    generator, within, across = np.random.default_rng(4), PairsCalled(called=0, pairs=0), PairsCalled(called=0, pairs=0)
    for _ in range(300):
        found = same_mask(*generator.normal(0, 1, (2, 3, DOCUMENTS.size)), DOCUMENTS)
        within, across = within + found.within, across + found.across
    assert (within.pairs, across.pairs) == (1800, 2700)
    assert 0.035 < within.share < 0.065
    assert 0.035 < across.share < 0.065


def test_one_seed_has_no_control_and_one_document_no_test() -> None:
    alone = same_mask(arm([50.0]), arm([40.0], seed=1), DOCUMENTS)
    assert all(math.isnan(value) for value in (*alone.between_seeds, *alone.between_means, alone.pooled_between_means))
    assert alone.within == PairsCalled(called=0, pairs=0)
    assert math.isnan(alone.within.share)
    assert alone.across == PairsCalled(called=1, pairs=1)
    of_one = same_mask(arm([50.0, 51.0]), arm([40.0, 41.0]), np.zeros(DOCUMENTS.size, dtype=np.int64))
    assert of_one.within == of_one.across == PairsCalled(called=0, pairs=0)
    assert of_one.between_seeds == pytest.approx((1.0, 1.0), rel=0.1)


def test_a_seed_without_a_value_is_in_no_pair() -> None:
    causal = arm([46.0, 50.0, 54.0])
    causal[1] = np.nan
    found = same_mask(causal, arm([50.0, 52.0, 54.0], seed=1), DOCUMENTS)
    assert found.between_seeds[0] == pytest.approx(abs(causal[0].mean() - causal[2].mean()))
    assert (found.within.pairs, found.across.pairs) == (1 + 3, 6)
