"""Rank against loss on numbers whose answer is known: over steps, over arms, over seeds, and the control."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError
from rankkit.statistics import correlation_over_seeds, correlation_within_seeds
from rankkit.studies.experiments.associations import Points, associate
from rankkit.studies.experiments.trained_config import CorrelationConfig
from rankkit.studies.experiments.verdicts import Outcome

CELLS = (("pair", "gpt"), ("pair", "unilm"))


def points(values: NDArray[np.float64]) -> Points:
    _, cells, seeds, steps = values.shape
    return Points(seeds=tuple(range(seeds)), steps=(tuple(range(1, steps + 1)),) * cells, values=values)


def drawn(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(3).normal(size=shape)


def config(**changes: Any) -> CorrelationConfig:
    return CorrelationConfig(**{"cells": ("pair/gpt", "pair/unilm"), "controls": (), **changes})


def test_over_steps_each_arm_is_held_against_itself_in_each_seed() -> None:
    """Two arms far apart, in each of which the measure falls as the loss does."""
    steps = np.arange(6.0)
    loss = -steps + np.array([0.0, 50.0])[:, None, None] + 0.3 * drawn(2, 4, 6)
    measure = -2 * steps + np.array([90.0, 0.0])[:, None, None] + 0.3 * drawn(2, 4, 6)[:, ::-1]
    found = associate(config(claim="positive"), CELLS, points(np.stack([loss, measure])))
    assert found.verdict.outcome is Outcome.SUPPORTED
    assert found.verdict.interval.count == 4
    assert associate(config(), CELLS, points(np.stack([loss, measure]))).verdict.outcome is Outcome.CONTRADICTED


def test_the_control_shows_what_two_clocks_have_in_common() -> None:
    """Training moves rank and loss in every seed alike, and nothing else links them."""
    clock = np.linspace(0, 3, 8)
    table = np.stack([-clock + 0.2 * part for part in drawn(2, 2, 6, 8)])
    found = associate(config(claim="positive"), CELLS, points(table)).verdict
    assert found.outcome is Outcome.SUPPORTED
    assert abs(found.same_mask - found.interval.mean) < 0.1
    own = drawn(2, 6, 8)
    linked = associate(config(claim="positive"), CELLS, points(np.stack([own, own + 0.1 * drawn(2, 6, 8)]))).verdict
    assert linked.interval.mean > 0.9
    assert abs(linked.same_mask) < 0.4


def test_controls_are_held_still_within_each_seed() -> None:
    cause = drawn(2, 6, 10)
    noise = np.random.default_rng(4).normal(size=(2, 2, 6, 10))
    table = np.stack([cause + 0.2 * noise[0], cause + 0.2 * noise[1], cause])
    plain = associate(config(claim="positive"), CELLS, points(table[:2])).verdict
    held = associate(config(claim="positive", controls=("logit_std",)), CELLS, points(table)).verdict
    assert plain.outcome is Outcome.SUPPORTED
    assert held.outcome is Outcome.NOT_RESOLVED


def test_over_arms_the_points_of_a_seed_are_its_arms() -> None:
    table = drawn(2, 5, 4, 1)
    cells = tuple(("run", str(number)) for number in range(5))
    found = associate(config(over="arms"), cells, points(table)).verdict
    expected = correlation_within_seeds(table[1, ..., 0].T, table[0, ..., 0].T)
    assert (found.interval.mean, found.interval.lower) == pytest.approx((expected.mean, expected.lower))


def test_over_seeds_a_point_is_a_seed_and_the_difference_between_arms_is_no_part_of_it() -> None:
    table = drawn(2, 2, 6, 1)
    found = associate(config(over="seeds"), CELLS, points(table)).verdict
    expected = correlation_over_seeds(table[1].mean(axis=(0, 2)), table[0].mean(axis=(0, 2)))
    assert_allclose([found.interval.mean, found.interval.lower], [expected.mean, expected.lower])
    assert (found.interval.count, found.found_as) == (6, "correlation")
    apart = table + np.array([[0.0, 100.0], [0.0, -100.0]])[..., None, None]
    assert associate(config(over="seeds"), CELLS, points(apart)).verdict.interval.mean == pytest.approx(expected.mean)


@pytest.mark.parametrize("over", ["steps", "arms", "seeds"])
def test_the_p_value_agrees_with_the_interval(over: str) -> None:
    for number in range(40):
        random = np.random.default_rng(number)
        table = random.normal(size=(2, 5, 6, 7)) + random.normal(size=(5, 6, 7))
        found = associate(config(over=over), CELLS, points(table)).verdict
        assert (found.p_value < 0.05) == found.interval.resolved


@pytest.mark.parametrize("over", ["steps", "arms", "seeds"])
def test_what_is_not_linked_is_called_linked_in_at_most_8_of_100_studies(over: str) -> None:
    """Steps of one seed remember each other; six seeds."""
    random, called = np.random.default_rng(5), 0
    for _ in range(200):
        table = random.normal(size=(2, 4, 6, 8)).cumsum(axis=3)
        found = associate(config(over=over), CELLS, points(table)).verdict
        called += found.outcome is not Outcome.NOT_RESOLVED
    assert called <= 16


def test_arms_that_are_not_trained_enough_have_no_verdict() -> None:
    table = drawn(2, 2, 6, 1)
    found = associate(config(over="seeds"), CELLS, points(table), untrained=("pair/gpt",)).verdict
    assert found.outcome is Outcome.NOT_TRAINED
    assert "pair/gpt not below the n-gram reference" in found.sentence()


def test_one_seed_gives_no_verdict() -> None:
    found = associate(config(), CELLS, points(drawn(2, 2, 1, 8))).verdict
    assert found.sentence().endswith("one seed gives no verdict")
    assert math.isnan(found.same_mask)


def test_every_number_behind_it_has_a_row() -> None:
    found = associate(config(controls=("logit_std",)), CELLS, points(drawn(3, 2, 2, 4)))
    rows = list(found.values())
    assert len(rows) == 3 * 2 * 2 * 4
    assert rows[0] == {"cell": "pair/gpt", "of": "loss", "seed": 0, "step": 1, "value": found.loss[0, 0, 0]}
    assert {row["of"] for row in rows} == {"loss", "effective rank, full", "logit std, full"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measure": "rank"}, r"measure must be among .*, got 'rank'\. Choose from them"),
        ({"controls": ("step",)}, r"controls must be among .*, got 'step'"),
        ({"region": "suffix"}, r"region must be among .*, got 'suffix'"),
        ({"over": "time"}, r"over must be among steps, arms, seeds, got 'time'"),
        ({"method": "kendall"}, r"method must be among pearson, spearman, got 'kendall'"),
        ({"claim": "none"}, r"claim must be among negative, positive, got 'none'"),
        ({"cells": ()}, r"cells must name the arms that are looked at, got none"),
    ],
)
def test_a_correlation_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config(**changes)
