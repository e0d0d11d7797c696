"""Claims as text: what they say in numbers, and what is no claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rankkit.errors import ConfigurationError
from rankkit.studies.decomposition import EFFECTS, effects
from rankkit.studies.experiments.contrasts import EFFECT_TERMS, parse_contrast

ARMS = {"pair": ("gpt", "unilm"), "none": ("gpt", "gpt-full"), "d64": ("gpt",)}
PAIRS = {"pair": ("gpt", "unilm"), "none": None, "d64": None}


def parse(text: str):
    return parse_contrast(text, ARMS, PAIRS)


def test_a_claim_is_left_minus_right_with_the_side_that_it_is_on() -> None:
    found = parse("pair/gpt < none/gpt-full")
    assert found.weights == {("pair", "gpt", False): 1.0, ("none", "gpt-full", False): -1.0}
    assert (found.direction, found.cells) == (-1, (("pair", "gpt"), ("none", "gpt-full")))
    assert parse("pair/gpt > 0").direction == 1


def test_terms_are_added_subtracted_multiplied_and_gathered() -> None:
    found = parse("1.5 * d64/gpt - pair/gpt > - 2 * pair/gpt@swapped + pair/unilm - d64/gpt")
    assert found.weights == {
        ("d64", "gpt", False): 2.5,
        ("pair", "gpt", False): -1.0,
        ("pair", "gpt", True): 2.0,
        ("pair", "unilm", False): -1.0,
    }
    assert found.swaps
    assert not parse("pair/gpt > pair/unilm").swaps


@pytest.mark.parametrize("effect", EFFECTS)
def test_an_effect_is_what_the_decomposition_calls_it(effect: str) -> None:
    tables = np.random.default_rng(0).normal(size=(4, 5))
    places = [("pair", arm, swapped) for arm in ("gpt", "unilm") for swapped in (False, True)]
    values = {place: dict(enumerate(table.tolist())) for place, table in zip(places, tables, strict=True)}
    _, parts = parse(f"pair/{effect} > 0").parts(values)
    assert_allclose(sum(parts.values()), effects(*tables)[effect], atol=1e-12)


def test_every_effect_has_its_terms() -> None:
    assert set(EFFECT_TERMS) == set(EFFECTS)


def test_arms_are_paired_by_the_seeds_that_all_have() -> None:
    values = {("pair", "gpt", False): {0: 1.0, 2: 3.0, 5: 9.0}, ("d64", "gpt", False): {5: 4.0, 0: 0.5, 2: math.nan}}
    seeds, parts = parse("pair/gpt > 2 * d64/gpt").parts(values)
    assert seeds == (0, 5)
    assert_allclose(parts["pair", "gpt"], [1, 9])
    assert_allclose(parts["d64", "gpt"], [-1, -8])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair/gpt", r"claim must have one < or > with spaces around it, got 'pair/gpt'"),
        ("pair/gpt<pair/unilm", "claim must have one < or >"),
        ("0 < pair/gpt < pair/unilm", "claim must have one < or >"),
        ("pair/gpt > pair/gpt", r"claim must compare two different things, got 'pair/gpt > pair/gpt'\. Name another arm"),
        ("pair/gpt pair/unilm > 0", r"claim must join terms by \+ and - with spaces around them"),
        ("pair/gpt - > 0", r"claim must join terms by \+ and -"),
        ("pair/gpt >", r"claim must join terms by \+ and -"),
        ("two * pair/gpt > 0", r"claim must multiply by numbers, got 'two'"),
        ("inf * pair/gpt > 0", r"claim must multiply by numbers, got 'inf'"),
        ("other/gpt > 0", r"claim must name runs among pair, none, d64, as RUN/ARM or RUN/ARM@swapped, got 'other/gpt'"),
        ("pair/gpt@own > 0", "claim must name runs among"),
        ("pair/bert > 0", r"of run pair one of gpt, unilm, gap, mask_effect, learned_effect, interaction, got 'pair/bert'"),
        ("none/gap > 0", r"claim must name of run none one of gpt, gpt-full, got 'none/gap'"),
    ],
)  # fmt: skip
def test_what_is_no_claim_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(text)
