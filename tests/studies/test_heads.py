"""Maps over heads: what each head shows, and that Holm's correction is taken over every head of every seed."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rankkit.statistics import LEVEL, clustered_t_test, holm
from rankkit.studies.heads import HeadMaps, head_maps

Array = NDArray[np.float64]

SEEDS, REGIONS, LAYERS, HEADS = (0, 3, 5), ("full", "prefix_block"), (0, 2), (1, 4, 6, 7)
DOCUMENTS = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7])
UNTRAINED = np.array([[False, False], [False, True]])


def drawn(seed: int = 0, scale: float = 1.0) -> Array:
    """ "seed region applied_mask sequence layer head"."""
    shape = (len(SEEDS), len(REGIONS), 2, DOCUMENTS.size, len(LAYERS), len(HEADS))
    return np.random.default_rng(seed).normal(40, scale, shape)


def maps(values: Array, documents: NDArray[np.int64] = DOCUMENTS, **changes: Any) -> tuple[HeadMaps, ...]:
    labels = {"seeds": SEEDS, "regions": REGIONS, "layers": LAYERS, "heads": HEADS, "untrained": UNTRAINED}
    return head_maps(values, documents, arm="gpt", measure="effective_rank", step=500, **(labels | changes))


def test_a_map_holds_each_heads_means_and_what_the_other_mask_adds() -> None:
    values = drawn()
    found = maps(values)
    assert [one.region for one in found] == list(REGIONS)
    for r, one in enumerate(found):
        assert (one.arm, one.measure, one.step) == ("gpt", "effective_rank", 500)
        assert (one.seeds, one.layers, one.heads) == (SEEDS, LAYERS, HEADS)
        assert one.untrained.tolist() == UNTRAINED[r].tolist()
        assert (one.documents, one.family) == (8, 24)
        assert (one.sequences == DOCUMENTS.size).all()
        for s, layer, head in np.ndindex(one.own.shape):
            own, swapped = values[s, r, 0, :, layer, head], values[s, r, 1, :, layer, head]
            test = clustered_t_test(swapped - own, DOCUMENTS)
            at = (s, layer, head)
            assert one.own[at] == pytest.approx(own.mean(), rel=1e-12)
            assert one.swapped[at] == pytest.approx(swapped.mean(), rel=1e-12)
            assert one.change[at] == pytest.approx((swapped - own).mean(), rel=1e-9)
            assert (one.lower[at], one.upper[at]) == pytest.approx((float(test.lower), float(test.upper)), rel=1e-9)
            assert one.p_values[at] == pytest.approx(float(test.p_value), rel=1e-9)


def test_the_family_is_every_head_of_every_seed_of_one_region() -> None:
    values = drawn()
    values[0, 0, 1, :, 0, 2] += 3.0
    whole, block = maps(values)
    np.testing.assert_array_equal(whole.adjusted, holm(whole.p_values))
    assert whole.adjusted[0, 0, 2] == pytest.approx(24 * whole.p_values[0, 0, 2])
    assert np.argwhere(whole.changed).tolist() == [[0, 0, 2]]
    np.testing.assert_array_equal(block.adjusted, holm(block.p_values))  # and knows nothing of the other region
    changed = values.copy()
    changed[:, 0] = drawn(9)[:, 0]
    np.testing.assert_array_equal(maps(changed)[1].adjusted, block.adjusted)


def test_without_an_effect_any_head_of_any_seed_is_marked_in_at_most_5_of_100_maps() -> None:
    documents, marked, uncorrected = np.arange(12), [], []
    for seed in range(400):
        (whole, block) = maps(drawn(seed), documents)
        for one in (whole, block):
            marked.append(one.changed.any())
            uncorrected.append((one.p_values <= LEVEL).any())
    assert np.mean(marked) <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / len(marked))
    assert np.mean(uncorrected) > 0.6


def test_a_head_without_a_value_is_no_part_of_the_family_and_a_missing_sequence_only_makes_it_shorter() -> None:
    values = drawn()
    values[0, 0, 1, :, 0, 0] = np.nan
    values[1, 0, 0, 3, 1, 2] = np.inf
    one = maps(values)[0]
    assert one.family == 23
    assert math.isnan(one.change[0, 0, 0])
    assert math.isnan(one.adjusted[0, 0, 0])
    assert not one.changed[0, 0, 0]
    assert math.isfinite(one.own[0, 0, 0])
    assert (one.sequences[0, 0, 0], one.sequences[1, 1, 2]) == (0, DOCUMENTS.size - 1)
    kept = np.delete(np.arange(DOCUMENTS.size), 3)
    difference = values[1, 0, 1, kept, 1, 2] - values[1, 0, 0, kept, 1, 2]
    assert one.p_values[1, 1, 2] == pytest.approx(float(clustered_t_test(difference, DOCUMENTS[kept]).p_value))


def test_a_swap_that_changes_nothing_but_rounding_is_no_change() -> None:
    values = drawn()
    values[:, :, 1] = values[:, :, 0] * (1 + 1e-12)
    for one in maps(values):
        assert (one.change == 0).all()
        assert (one.p_values == 1).all()
        assert not one.changed.any()


@pytest.mark.parametrize(("documents", "rests"), [(7, True), (8, True), (9, False)])
def test_with_few_documents_a_map_says_that_its_marks_rest_on_normality(documents: int, rests: bool) -> None:
    labels = np.arange(DOCUMENTS.size) % documents
    (one,) = maps(drawn()[:1, :1], labels, seeds=(0,), regions=("full",), untrained=UNTRAINED[:1])
    assert (one.family, one.documents) == (8, documents)
    assert one.rests_on_normality is rests  # 8 heads * 2^(1 - 9) = 0.031, and 2^(1 - 8) gives 0.0625


def test_one_document_marks_nothing() -> None:
    for one in maps(drawn(), np.zeros(DOCUMENTS.size, dtype=np.int64)):
        assert (one.documents, one.family) == (1, 0)
        assert np.isnan(one.adjusted).all()
        assert not one.changed.any()
        assert not one.rests_on_normality


def test_a_map_as_plain_values_is_json_and_whole() -> None:
    one = maps(drawn())[1]
    plain = json.loads(json.dumps(one.as_dict()))
    assert plain["region"] == "prefix_block"
    assert (plain["seeds"], plain["layers"], plain["heads"]) == (list(SEEDS), list(LAYERS), list(HEADS))
    assert plain["untrained"] == [False, True]
    assert (plain["family"], plain["documents"], plain["rests_on_normality"]) == (24, 8, True)
    for name in ("own", "swapped", "change", "lower", "upper", "p_values", "adjusted", "sequences", "changed"):
        np.testing.assert_array_equal(plain[name], getattr(one, name))
