"""The sentences at the top: each follows from which intervals exclude 0, and says nothing that they do not carry."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rankkit.report.page.answer import Answer, answer, headline_row
from rankkit.statistics import Interval, mean_interval, minimum_detectable_effect, resolvable_by
from rankkit.studies.decomposition import ArmFacts, Decomposition, decompose

REGIONS = ("full", "prefix_block")
UNTRAINED = np.array([[False, False], [False, True]])
FACTS = [
    ArmFacts(name="gpt", mask="causal", objective="suffix", untrained=UNTRAINED),
    ArmFacts(name="unilm", mask="prefix", objective="suffix", untrained=UNTRAINED),
]


def found(*, mask: float, learned: float, seeds: int = 3, spread: float = 0.1) -> Decomposition:
    """Two layers whose gap is mask + learned, each known to about the spread."""
    generator = np.random.default_rng(7)
    shape = (seeds, 2, 2, 4, 2, 3)  # seed region applied_mask sequence layer head
    causal = np.array([1.0, 0.0])[:, None, None, None]
    noise = {arm: spread * generator.normal(size=(seeds, 1, 2, 1, 1, 1)) for arm in ("gpt", "unilm")}
    tables = {
        "gpt": np.broadcast_to(40 + learned + mask * causal + noise["gpt"], shape),
        "unilm": np.broadcast_to(40 + mask * causal[::-1] + noise["unilm"], shape),
    }
    values = {arm: {"effective_rank": np.array(table)} for arm, table in tables.items()}
    made = decompose(FACTS, values, np.arange(4), (0, 1), REGIONS, step=5)
    assert made is not None
    return made


def said(made: Decomposition) -> Answer:
    row = headline_row(made, "effective_rank")
    assert row is not None
    return answer(made, "effective_rank", row, defined="exp(entropy)")


def test_the_prefix_block_answers_where_it_was_measured_and_without_its_untrained_layer() -> None:
    made = found(mask=5, learned=0)
    row = headline_row(made, "effective_rank")
    assert row is not None
    assert (row.region, row.layer) == ("prefix_block", None)
    rows = tuple(one for one in made.rows["effective_rank"] if one.region == "full")
    whole = headline_row(replace(made, rows={"effective_rank": rows}), "effective_rank")
    assert whole is not None
    assert whole.region == "full"


def test_a_gap_that_the_mask_makes_is_said_to_be_the_masks() -> None:
    one = said(found(mask=5, learned=0))
    assert one.sentence.startswith("unilm has the lower effective rank: ")
    assert "the mask by itself makes +5" in one.sentence
    assert "a learned part is not resolved" in one.sentence
    assert [short.verdict for short in one.shorts] == ["resolved", "mask resolved, learned not resolved", "3 seeds"]


def test_the_sign_of_the_gap_names_the_lower_arm() -> None:
    assert said(found(mask=-5, learned=0)).sentence.startswith("gpt has the lower effective rank: ")
    assert said(found(mask=-5, learned=0)).shorts[0].text.startswith("gpt. ")


def test_a_gap_that_was_learned_is_said_to_be_learned() -> None:
    made = found(mask=0, learned=6)
    one = said(made)
    assert "it was learned, +6" in one.sentence or "it was learned, +5" in one.sentence
    assert one.shorts[1].verdict.endswith("learned resolved")


@pytest.mark.parametrize(("learned", "words", "short"), [(4, "adds", "same direction"), (-3, "takes back", "against")])
def test_both_parts_are_said_with_their_direction(learned: float, words: str, short: str) -> None:
    made = found(mask=8, learned=learned)
    row = headline_row(made, "effective_rank")
    assert row is not None
    assert row.effects["gap"].resolved
    one = said(made)
    assert words in one.sentence
    assert short in one.shorts[1].text
    assert one.shorts[1].verdict == "mask resolved, learned resolved"


def test_a_gap_that_is_not_resolved_is_said_so_plainly_with_what_cannot_be_excluded() -> None:
    one = said(found(mask=0, learned=0, spread=5))
    assert one.sentence.startswith("Which arm has the lower effective rank is not resolved: gpt - unilm = ")
    assert "has the lower effective rank:" not in one.sentence
    assert one.shorts[0].verdict == "not resolved"
    assert "cannot be excluded" in one.shorts[0].text


def test_a_mask_effect_without_a_gap_names_the_mask_that_gives_more() -> None:
    made = found(mask=5, learned=-5, spread=2)
    row = headline_row(made, "effective_rank")
    assert row is not None
    assert not row.effects["gap"].resolved
    sure = replace(row.effects["mask_effect"], lower=4.9, upper=5.1, mean=5.0)
    unsure = replace(row.effects["learned_effect"], lower=-11.0, upper=1.0, mean=-5.0)
    row = replace(row, effects={**row.effects, "mask_effect": sure, "learned_effect": unsure})
    one = answer(made, "effective_rank", row, defined="")
    assert "the causal mask gives a higher effective rank than the prefix mask" in one.sentence
    assert one.shorts[1].text.startswith(
        "The mask by itself makes a difference; that anything was learned besides is not"
    )


def test_one_seed_gives_no_verdict_on_anything() -> None:
    one = said(found(mask=50, learned=0, seeds=1))
    assert one.sentence.startswith("No verdict: with one seed")
    assert [short.verdict for short in one.shorts] == ["no verdict", "no verdict", "one seed"]
    assert "Train at least three seeds" in one.shorts[2].text


def test_two_seeds_are_remarked_on_and_three_are_not() -> None:
    assert "Two seeds make an interval" in said(found(mask=5, learned=0, seeds=2)).shorts[2].text
    assert "Two seeds" not in said(found(mask=5, learned=0)).shorts[2].text


def test_how_sure_names_the_control_and_the_smallest_gap_that_could_be_found() -> None:
    made = found(mask=5, learned=0)
    row = headline_row(made, "effective_rank")
    assert row is not None
    text = said(made).shorts[2].text
    assert "Same-mask control: two arms of one mask would typically differ by" in text
    ratio = abs(row.effects["gap"].mean) / row.control.pooled_between_means
    assert f"the gap is {ratio:.0f} times that" in text
    assert "would have been found in four of five such studies" in text


def test_an_interaction_larger_than_a_part_is_said() -> None:
    made = found(mask=5, learned=0)
    row = headline_row(made, "effective_rank")
    assert row is not None
    assert "interaction" not in answer(made, "effective_rank", row, defined="").shorts[1].text
    large = replace(row.effects["interaction"], mean=9.0)
    mixed = replace(row, effects={**row.effects, "interaction": large})
    assert (
        "the split depends on which is taken first" in answer(made, "effective_rank", mixed, defined="").shorts[1].text
    )


def test_what_an_interval_resolves_is_what_its_differences_do() -> None:
    differences = [0.3, -0.1, 0.9, 0.4]
    assert resolvable_by(mean_interval(differences)) == pytest.approx(minimum_detectable_effect(differences))


@pytest.mark.parametrize(
    "interval",
    [
        Interval(
            mean=1.0, lower=0.0, upper=2.0, count=9, kind="bootstrap over documents (error of the evaluation alone)"
        ),
        mean_interval([1.0]),
        mean_interval([1.0, 1.0]),
    ],
)
def test_an_interval_that_is_not_over_seeds_resolves_nothing(interval: Interval) -> None:
    assert math.isnan(resolvable_by(interval))
