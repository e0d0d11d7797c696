"""Rank against loss on numbers whose answer is known: over steps, over arms, over seeds, and the control."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from einops import rearrange
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError
from rankkit.statistics import correlation_over_seeds, correlations_by_seed, permutation_p_value
from rankkit.studies.experiments.associations import FEWEST_ARMS, Points, associate
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


def courses(linked: float, *shape: int) -> NDArray[np.float64]:
    """One clock for all; each seed's own part of the loss and of the measure are linked by so much."""
    own = np.random.default_rng(6).normal(size=(2, *shape))
    return np.stack([own[0], linked * own[0] + own[1]]) - np.linspace(0, 3, shape[-1])


def test_over_steps_each_arm_is_held_against_itself_in_each_seed() -> None:
    """Two arms far apart, in each of which what a seed's measure does is what its loss does."""
    table = courses(3.0, 2, 6, 12) + np.array([[0.0, 50.0], [90.0, 0.0]])[..., None, None]
    found = associate(config(claim="positive"), CELLS, points(table)).verdict
    assert found.outcome is Outcome.SUPPORTED
    assert found.interval.count == 6
    assert associate(config(), CELLS, points(table)).verdict.outcome is Outcome.CONTRADICTED


def test_what_two_clocks_have_in_common_is_no_verdict() -> None:
    """Training moves rank and loss in every seed alike, and nothing else links them."""
    clock = np.linspace(0, 3, 8)
    table = np.stack([-clock + 0.2 * part for part in drawn(2, 2, 6, 8)])
    found = associate(config(claim="positive"), CELLS, points(table)).verdict
    assert found.outcome is Outcome.NOT_RESOLVED
    assert found.correlation > 0.9
    assert found.same_mask > 0.9
    own, other = (
        np.arctanh(correlations_by_seed(*centred)) for centred in (within(table), within(table, next_losses=True))
    )
    assert found.by_seed == pytest.approx(own - other)
    assert found.interval.mean == pytest.approx((own - other).mean())
    assert found.found_as == "Fisher's z of the correlation, own loss - next seed's"
    assert f"correlation {found.correlation:+.4g}, same-mask control {found.same_mask:.2g}" in found.sentence()
    assert found.as_dict()["correlation"] == found.correlation


def within(table: NDArray[np.float64], *, next_losses: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure and loss, "seed point", each arm's mean removed; with the loss of the next seed."""
    loss, measure = (rearrange(part, "cell seed step -> seed (cell step)") for part in
                     table - table.mean(axis=3, keepdims=True))  # fmt: skip
    return measure, loss[[-1, *range(len(loss) - 1)]] if next_losses else loss


def test_controls_are_held_still_within_each_seed() -> None:
    cause = drawn(2, 6, 10)
    noise = np.random.default_rng(4).normal(size=(2, 2, 6, 10))
    table = np.stack([cause + 0.2 * noise[0], cause + 0.2 * noise[1], cause])
    plain = associate(config(claim="positive"), CELLS, points(table[:2])).verdict
    held = associate(config(claim="positive", controls=("logit_std",)), CELLS, points(table)).verdict
    assert plain.outcome is Outcome.SUPPORTED
    assert held.outcome is Outcome.NOT_RESOLVED


def test_over_arms_the_points_are_arms_and_their_orders_the_test() -> None:
    table = drawn(2, 7, 4, 1)
    cells = tuple(("run", str(number)) for number in range(7))
    found = associate(config(over="arms"), cells, points(table)).verdict
    loss, measure = table.mean(axis=(2, 3))
    assert found.interval.mean == found.correlation == pytest.approx(np.corrcoef(measure, loss)[0, 1])
    assert (found.interval.count, found.p_value) == (7, permutation_p_value(measure, loss))
    assert found.by_seed == pytest.approx(correlations_by_seed(table[1, ..., 0].T, table[0, ..., 0].T))
    linked = np.stack([loss, loss + 0.01 * measure])[..., None, None] + 0.01 * drawn(2, 7, 4, 1)
    assert associate(config(over="arms"), cells, points(linked)).verdict.outcome is Outcome.CONTRADICTED


@pytest.mark.parametrize("controls", [(), ("logit_std", "attention_entropy")])
def test_too_few_arms_are_described_and_not_judged(controls: tuple[str, ...]) -> None:
    enough = FEWEST_ARMS + len(controls)
    for arms in (3, enough - 1, enough):
        cells = tuple(("run", str(number)) for number in range(arms))
        table = drawn(2 + len(controls), arms, 4, 1)
        found = associate(config(over="arms", controls=controls), cells, points(table)).verdict
        assert (found.outcome is Outcome.DESCRIPTIVE) == math.isnan(found.p_value) == (arms < enough)
        if arms < enough:
            assert found.sentence().startswith("descriptive, no verdict: negative over arms: ")
            assert found.sentence().endswith(f"; {enough} arms are needed, {arms} are there")
            assert (found.as_dict()["arms_needed"], found.as_dict()["seeds_needed"]) == (enough, None)


def test_over_seeds_a_point_is_a_seed_and_the_difference_between_arms_is_no_part_of_it() -> None:
    table = drawn(2, 2, 6, 1)
    found = associate(config(over="seeds"), CELLS, points(table)).verdict
    expected = correlation_over_seeds(table[1].mean(axis=(0, 2)), table[0].mean(axis=(0, 2)))
    assert_allclose([found.interval.mean, found.interval.lower], [expected.mean, expected.lower])
    assert (found.interval.count, found.found_as) == (6, "correlation")
    apart = table + np.array([[0.0, 100.0], [0.0, -100.0]])[..., None, None]
    assert associate(config(over="seeds"), CELLS, points(apart)).verdict.interval.mean == pytest.approx(expected.mean)


@pytest.mark.parametrize("over", ["steps", "seeds"])
def test_the_p_value_agrees_with_the_interval(over: str) -> None:
    for number in range(40):
        random = np.random.default_rng(number)
        table = random.normal(size=(2, 5, 6, 7)) + random.normal(size=(5, 6, 7))
        found = associate(config(over=over), CELLS, points(table)).verdict
        assert (found.p_value < 0.05) == found.interval.resolved


CALLED = (Outcome.SUPPORTED, Outcome.CONTRADICTED)


@pytest.mark.parametrize("over", ["steps", "arms", "seeds"])
def test_what_is_not_linked_is_called_linked_in_at_most_8_of_100_studies(over: str) -> None:
    """Steps of one seed remember each other; six seeds, six arms."""
    random, called = np.random.default_rng(5), 0
    for _ in range(200):
        table = random.normal(size=(2, 6, 6, 8)).cumsum(axis=3)
        called += associate(config(over=over), CELLS * 3, points(table)).verdict.outcome in CALLED
    assert called <= 16


@pytest.mark.parametrize("seeds", [3, 6])
@pytest.mark.parametrize(("over", "noise"), [("arms", 0.1), ("arms", 0.3), ("steps", 0.1), ("steps", 0.3)])
def test_coincidence_that_all_seeds_share_is_called_in_at_most_8_of_100_studies(
    over: str, noise: float, seeds: int
) -> None:
    """Every arm has its own loss and its own rank, or training its own course of each, and seeds add a little noise."""
    random, called = np.random.default_rng(11), 0
    for _ in range(200):
        shared = (
            random.normal(size=(2, 6, 1, 1)) if over == "arms" else random.normal(size=(2, 2, 1, 10)).cumsum(axis=3)
        )
        table = shared + noise * random.normal(size=(*shared.shape[:2], seeds, shared.shape[3]))
        called += associate(config(over=over), CELLS * 3, points(table)).verdict.outcome in CALLED
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
