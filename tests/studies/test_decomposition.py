"""A gap split in two: identities, constructed cases with a known split, and what enters which mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_run import run_config
from tiny import STEPS

from rankkit.axes import REGIONS as AXES
from rankkit.errors import ConfigurationError
from rankkit.files import RunDirectory
from rankkit.statistics import bootstrap_over_documents, mean_interval
from rankkit.studies import Decomposition, Run, decompose
from rankkit.studies.decomposition import EFFECTS, arms_of, effects

Array = NDArray[np.float64]

OWN, SWAPPED = 0, 1
REGIONS = ("full", "prefix_block")
LAYERS = (0, 1)
"""Of a model of two: the second one's prefix block is untrained."""
DOCUMENTS = np.array([0, 0, 1, 2])

whole = st.integers(-(2**40), 2**40).map(float)  # sums and halves of these are exact in float64


def run_of(*arms: str, **changes: Any) -> Run:
    """A run that exists only in its configuration."""
    return Run(RunDirectory(None), run_config(arms or ("gpt", "unilm"), **changes), {})  # type: ignore[arg-type]


def decomposed(
    run: Run, values: Any, documents: Any, layers: tuple[int, ...], regions: tuple[str, ...], **changes: Any
) -> Decomposition | None:
    """The split of a run's arms at its last step."""
    return decompose(arms_of(run, regions, layers), values, documents, layers, regions, **{"step": STEPS, **changes})


def drawn(seeds: int = 3, *, sequences: int = 4, heads: int = 3, offset: float = 0.0, seed: int = 0) -> Array:
    """ "seed region applied_mask sequence layer head"."""
    generator = np.random.default_rng(seed)
    return generator.normal(40 + offset, 3, size=(seeds, 2, 2, sequences, 2, heads))


def split(causal: Array, prefix: Array, run: Run | None = None, layers: tuple[int, ...] = LAYERS) -> Decomposition:
    values = {"gpt": {"effective_rank": causal}, "unilm": {"effective_rank": prefix}}
    found = decomposed(run or run_of(), values, DOCUMENTS[: causal.shape[3]], layers, REGIONS)
    assert found is not None
    return found


def row(found: Decomposition, region: str, layer: int | None) -> Any:
    (wanted,) = [entry for entry in found.rows["effective_rank"] if (entry.region, entry.layer) == (region, layer)]
    return wanted


# The four effects.


@given(whole, whole, whole, whole)
def test_the_gap_is_exactly_mask_effect_plus_learned_effect(c: float, cp: float, p: float, pc: float) -> None:
    found = effects(*map(np.array, (c, cp, p, pc)))
    assert list(found) == list(EFFECTS)
    assert found["gap"] == c - p
    assert found["gap"] == found["mask_effect"] + found["learned_effect"]


@given(whole, whole)
def test_nothing_was_learned_where_both_arms_have_the_same_logits(under_causal: float, under_prefix: float) -> None:
    one, other = np.array(under_causal), np.array(under_prefix)
    found = effects(one, other, other, one)
    assert found["learned_effect"] == 0
    assert found["interaction"] == 0
    assert found["mask_effect"] == found["gap"] == under_causal - under_prefix


@given(whole, whole)
def test_the_mask_does_nothing_where_a_swap_changes_nothing(causal_arm: float, prefix_arm: float) -> None:
    one, other = np.array(causal_arm), np.array(prefix_arm)
    found = effects(one, one, other, other)
    assert found["mask_effect"] == 0
    assert found["interaction"] == 0
    assert found["learned_effect"] == found["gap"] == causal_arm - prefix_arm


@given(whole, whole, whole)
def test_an_interaction_is_shared_between_the_effects_and_reported_with_its_sign(
    learned: float, mask: float, together: float
) -> None:
    def y(arm: int, applied: int) -> Array:
        """Arm and applied mask: 0 causal, 1 prefix."""
        return np.array(2 * (arm * learned + applied * mask + arm * applied * together))

    found = effects(y(0, 0), y(0, 1), y(1, 1), y(1, 0))
    assert found["interaction"] == 2 * together
    assert found["mask_effect"] == -2 * mask - together
    assert found["learned_effect"] == -2 * learned - together


@given(whole, whole, whole, whole)
def test_exchanging_the_names_of_the_arms_turns_the_signs(c: float, cp: float, p: float, pc: float) -> None:
    one, other = effects(*map(np.array, (c, cp, p, pc))), effects(*map(np.array, (p, pc, c, cp)))
    for name in ("gap", "mask_effect", "learned_effect"):
        assert one[name] == -other[name]
    assert one["interaction"] == other["interaction"]


# Rows: what is averaged, in which order, over what.


def test_heads_are_averaged_before_arms_are_subtracted() -> None:
    causal, prefix = drawn(), drawn(offset=5, seed=1)
    found, shuffled = split(causal, prefix), split(causal, prefix[..., [2, 0, 1]])
    for one, other in zip(found.rows["effective_rank"], shuffled.rows["effective_rank"], strict=True):
        for name in EFFECTS:
            bounds = [(entry.effects[name].mean, entry.effects[name].lower) for entry in (one, other)]
            assert bounds[0] == pytest.approx(bounds[1], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_row_is_the_paired_interval_of_its_seeds_means(region: str, layer: int) -> None:
    causal, prefix = drawn(), drawn(offset=5, seed=1)
    found = row(split(causal, prefix), region, layer)
    at = (slice(None), REGIONS.index(region))
    own, other = (array[at][:, OWN, :, layer].mean(axis=(1, 2)) for array in (causal, prefix))
    own_swapped, other_swapped = (array[at][:, SWAPPED, :, layer].mean(axis=(1, 2)) for array in (causal, prefix))
    assert (found.causal, found.prefix) == pytest.approx((own.mean(), other.mean()))
    for name, by_seed in effects(own, own_swapped, other, other_swapped).items():
        expected, interval = mean_interval(by_seed), found.effects[name]
        assert (interval.mean, interval.lower, interval.upper) == pytest.approx(
            (expected.mean, expected.lower, expected.upper)
        )  # fmt: skip
        assert (interval.count, interval.kind) == (3, "paired t over seeds")
    for interval, by_seed in zip(found.own, (own, other), strict=True):
        expected = mean_interval(by_seed)
        assert (interval.lower, interval.upper) == pytest.approx((expected.lower, expected.upper))
        assert interval.kind == "t over seeds"
    squares = [(a[i] - a[j]) ** 2 for a in (own, other) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.same_mask == pytest.approx(math.sqrt(np.mean(squares)))


def test_the_untrained_block_is_flagged_and_left_out_of_the_mean() -> None:
    causal, prefix = drawn(), drawn(offset=5, seed=1)
    causal[:, 1, :, :, 1] = 1e6  # what nobody trained may be anything
    found = split(causal, prefix)
    assert found.untrained.tolist() == [[False, False], [False, True]]
    assert [(entry.region, entry.layer, entry.untrained) for entry in found.rows["effective_rank"]] == [
        ("full", 0, False), ("full", 1, False), ("full", None, False),
        ("prefix_block", 0, False), ("prefix_block", 1, True), ("prefix_block", None, False),
    ]  # fmt: skip
    kept, mean = row(found, "prefix_block", 0), row(found, "prefix_block", None)
    assert mean.effects["gap"].mean == pytest.approx(kept.effects["gap"].mean)
    assert mean.causal == pytest.approx(kept.causal)
    both = [row(found, "full", layer).effects["gap"].mean for layer in LAYERS]
    assert row(found, "full", None).effects["gap"].mean == pytest.approx(np.mean(both))


def test_the_last_layer_is_that_of_the_model_and_not_of_the_selection() -> None:
    found = split(drawn()[..., :1, :], drawn(seed=1)[..., :1, :], layers=(0,))
    assert not found.untrained.any()
    found = split(drawn()[..., :1, :], drawn(seed=1)[..., :1, :], layers=(1,))
    assert found.untrained.tolist() == [[False], [True]]
    assert [(entry.region, entry.layer) for entry in found.rows["effective_rank"]] == [
        ("full", 1), ("full", None), ("prefix_block", 1),
    ]  # no trained layer, no mean over trained layers  # fmt: skip


def test_one_seed_is_resampled_over_documents_and_has_no_control() -> None:
    causal, prefix = drawn(1), drawn(1, offset=5, seed=1)
    found = row(split(causal, prefix), "full", 0)
    gap = (causal[0, 0, OWN, :, 0] - prefix[0, 0, OWN, :, 0]).mean(axis=-1)
    expected, interval = bootstrap_over_documents(gap, DOCUMENTS), found.effects["gap"]
    assert (interval.mean, interval.lower, interval.upper) == pytest.approx(
        (expected.mean, expected.lower, expected.upper)
    )  # fmt: skip
    assert "over documents (error of the evaluation alone)" in interval.kind
    assert interval.count == 3
    assert math.isnan(found.same_mask)


@pytest.mark.parametrize(
    ("learned", "mask", "together", "matters"),
    [(10, 10, 1, False), (0, 10, 1, True), (3, 10, 2, False), (3, 10, 9, True)],
)
def test_order_matters_where_the_interaction_exceeds_the_smaller_effect(
    learned: float, mask: float, together: float, matters: bool
) -> None:
    causal, prefix = np.zeros((2, 2, 2, 4, 2, 3)), np.zeros((2, 2, 2, 4, 2, 3))
    causal[:, :, SWAPPED] = mask
    prefix[:, :, OWN] = learned + mask + together
    prefix[:, :, SWAPPED] = learned
    assert row(split(causal, prefix), "full", 0).order_matters is matters


def test_bounds_are_the_rows_of_layers_as_an_array() -> None:
    found = split(drawn(), drawn(offset=5, seed=1))
    assert (found.arms, found.measures, found.seeds) == (("gpt", "unilm"), ("effective_rank",), 3)
    for name in EFFECTS:
        table = found.bounds(name)
        assert table.shape == (1, 2, 2, 3)
        for r, region in enumerate(REGIONS):
            for layer in LAYERS:
                interval = row(found, region, layer).effects[name]
                assert table[0, r, layer].tolist() == [interval.mean, interval.lower, interval.upper]
    assert found.attributes == {
        "causal_arm": "gpt", "prefix_arm": "unilm", "seeds": 3, "interval": "paired t over seeds",
    }  # fmt: skip


# Which arms.


@pytest.mark.parametrize(
    ("arms", "pair"),
    [
        (("gpt", "unilm"), ("gpt", "unilm")),
        (("unilm", "gpt"), ("gpt", "unilm")),
        (("gpt-full", "unilm", "gpt"), ("gpt", "unilm")),
    ],
)
def test_the_pair_is_the_causal_and_the_prefix_arm_of_one_objective(
    arms: tuple[str, ...], pair: tuple[str, str]
) -> None:
    values = {arm: {"effective_rank": drawn(seed=number)} for number, arm in enumerate(arms)}
    found = decomposed(run_of(*arms), values, DOCUMENTS, LAYERS, REGIONS)
    assert found is not None
    assert found.arms == pair
    own = values[pair[0]]["effective_rank"][:, 0, OWN, :, 0].mean()
    assert row(found, "full", 0).causal == pytest.approx(own)


@pytest.mark.parametrize("arms", [("gpt",), ("unilm",), ("gpt", "gpt-full"), ("gpt-full", "unilm")])
def test_without_such_a_pair_there_is_nothing_to_split(arms: tuple[str, ...]) -> None:
    values = {arm: {"effective_rank": drawn()} for arm in arms}
    assert decomposed(run_of(*arms), values, DOCUMENTS, LAYERS, REGIONS) is None


# Matrices without a value, and with a bracket in place of one.


def test_a_matrix_without_a_value_is_left_out_of_both_masks_and_counted() -> None:
    causal, prefix = drawn(), drawn(offset=5, seed=1)
    causal[1, 0, OWN, 2, 1, 0] = np.nan
    found, without = split(causal, prefix), causal.copy()
    for mask in (OWN, SWAPPED):  # leaving it out of its head's mean over sequences is to take that mean for it
        without[1, 0, mask, 2, 1, 0] = causal[1, 0, mask, [0, 1, 3], 1, 0].mean()
    expected = split(without, prefix)
    for layer in (1, None):
        for name in EFFECTS:
            seen, wanted = (row(which, "full", layer).effects[name] for which in (found, expected))
            assert (seen.mean, seen.lower) == pytest.approx((wanted.mean, wanted.lower), rel=1e-12)
            assert seen.count == 3
        assert row(found, "full", layer).causal == pytest.approx(row(expected, "full", layer).causal, rel=1e-12)
        assert row(found, "full", layer).missing == 1
    whole = split(drawn(), prefix)
    for place in (("full", 0), ("prefix_block", 0), ("prefix_block", 1), ("prefix_block", None)):
        assert row(found, *place).missing == 0
        assert row(found, *place).effects["gap"] == row(whole, *place).effects["gap"]
    assert [entry.matrices for entry in found.rows["effective_rank"]] == [144, 144, 288, 144, 144, 144]


def test_a_head_without_any_value_is_left_out_and_a_seed_without_any_head_gives_one_value_fewer() -> None:
    causal, prefix = drawn(), drawn(offset=5, seed=1)
    causal[0, 0, OWN, :, 0, 2] = np.nan
    causal[1, 0, OWN, :, 0] = -np.inf  # such as the log-determinant of a singular block: it has no mean either
    found = row(split(causal, prefix), "full", 0)
    by_seed = [
        causal[0, 0, OWN, :, 0, :2].mean() - prefix[0, 0, OWN, :, 0].mean(),
        causal[2, 0, OWN, :, 0].mean() - prefix[2, 0, OWN, :, 0].mean(),
    ]
    expected = mean_interval(by_seed)
    assert found.effects["gap"].mean == pytest.approx(expected.mean)
    assert found.effects["gap"].lower == pytest.approx(expected.lower)
    assert found.effects["gap"].count == 2
    assert found.missing == 4 + 12
    assert row(split(causal, prefix), "full", None).effects["gap"].count == 2


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_measure_that_one_mask_does_not_have_shows_the_arm_that_has_it_and_no_effect(seeds: int) -> None:
    causal, prefix = drawn(seeds), drawn(seeds, seed=1)
    causal[:, :, SWAPPED] = prefix[:, :, OWN] = np.nan
    found = split(causal, prefix)
    for entry in found.rows["effective_rank"]:
        assert math.isfinite(entry.causal)
        assert math.isnan(entry.prefix)
        assert all(math.isnan(entry.effects[name].mean) for name in EFFECTS)
        assert not entry.order_matters
        assert entry.missing == entry.matrices // 2
    assert found.attributes["interval"] == "no matrix has a value"


def bracketed(values: Array, half: float) -> tuple[Array, tuple[Array, Array]]:
    """Every matrix of head 0 as an estimate whose middle is its value, the others exact."""
    exact, lower, upper = values.copy(), np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    exact[..., 0] = np.nan
    lower[..., 0], upper[..., 0] = values[..., 0] - half, values[..., 0] + half
    return exact, (lower, upper)


@pytest.mark.parametrize("seeds", [1, 3])
def test_estimates_count_with_their_middle_and_widen_every_interval_by_their_mean_half_brackets(seeds: int) -> None:
    causal, prefix = drawn(seeds), drawn(seeds, offset=5, seed=1)
    plain = split(causal, prefix)
    (c, of_c), (p, of_p) = bracketed(causal, 3.0), bracketed(prefix, 1.5)
    values = {"gpt": {"effective_rank": c}, "unilm": {"effective_rank": p}}
    brackets = {"gpt": {"effective_rank": of_c}, "unilm": {"effective_rank": of_p}}
    found = decomposed(run_of(), values, DOCUMENTS, LAYERS, REGIONS, brackets=brackets)
    assert found is not None
    error = {"causal": 3.0 / 3, "prefix": 1.5 / 3}  # one head of three
    once, twice = error["causal"] + error["prefix"], 2 * (error["causal"] + error["prefix"])
    wider = {"gap": once, "mask_effect": once, "learned_effect": once, "interaction": twice}
    for seen, exact in zip(found.rows["effective_rank"], plain.rows["effective_rank"], strict=True):
        for name, by in wider.items():
            one, other = seen.effects[name], exact.effects[name]
            assert one.mean == pytest.approx(other.mean, abs=1e-12)
            assert (one.lower, one.upper) == pytest.approx((other.lower - by, other.upper + by))
            assert one.kind == f"{other.kind}, widened by the brackets of estimates"
        for one, other, by in zip(seen.own, exact.own, error.values(), strict=True):
            assert (one.lower, one.upper) == pytest.approx((other.lower - by, other.upper + by))
        assert (seen.missing, seen.estimated) == (0, seen.matrices // 3)


def test_the_widened_gap_holds_the_gap_of_any_values_inside_their_brackets() -> None:
    causal, prefix = drawn(), drawn(offset=5, seed=1)
    (c, of_c), (p, of_p) = bracketed(causal, 3.0), bracketed(prefix, 1.5)
    found = decomposed(
        run_of(), {"gpt": {"effective_rank": c}, "unilm": {"effective_rank": p}}, DOCUMENTS, LAYERS, REGIONS,
        brackets={"gpt": {"effective_rank": of_c}, "unilm": {"effective_rank": of_p}},
    )  # fmt: skip
    assert found is not None
    causal[:, :, OWN, ..., 0] += 3.0  # the worst case: every estimate errs by its half-bracket, against the other arm
    prefix[:, :, OWN, ..., 0] -= 1.5
    for seen, worst in zip(found.rows["effective_rank"], split(causal, prefix).rows["effective_rank"], strict=True):
        assert seen.effects["gap"].upper == pytest.approx(worst.effects["gap"].upper)


def test_a_bracket_stands_only_where_a_value_is_missing_and_without_ends_nothing_does() -> None:
    causal, prefix = drawn(), drawn(offset=5, seed=1)
    everywhere = (np.zeros(causal.shape), np.ones(causal.shape))
    values = {"gpt": {"effective_rank": causal}, "unilm": {"effective_rank": prefix}}
    found = decomposed(
        run_of(), values, DOCUMENTS, LAYERS, REGIONS, brackets={"gpt": {"effective_rank": everywhere}}
    )  # fmt: skip
    assert found is not None
    assert row(found, "full", 0).effects["gap"] == row(split(causal, prefix), "full", 0).effects["gap"]
    assert row(found, "full", 0).estimated == 0
    causal[0, 0, OWN, 0, 0, 0] = np.nan
    everywhere[1][0, 0, OWN, 0, 0, 0] = np.inf
    found = decomposed(
        run_of(), values, DOCUMENTS, LAYERS, REGIONS, brackets={"gpt": {"effective_rank": everywhere}}
    )  # fmt: skip
    assert found is not None
    assert (row(found, "full", 0).missing, row(found, "full", 0).estimated) == (1, 0)


@pytest.mark.parametrize(
    ("bracket", "message"),
    [
        ((np.zeros(3), np.ones(3)), r"brackets must have the shape of their values, \(3, 2, 2, 4, 2, 3\), got \(3,\)"),
        (
            (np.ones((3, 2, 2, 4, 2, 3)), np.zeros((3, 2, 2, 4, 2, 3))),
            r"brackets must be \(lower, upper\), got a lower",
        ),
    ],
)
def test_a_bracket_that_is_none_is_refused(bracket: tuple[Array, Array], message: str) -> None:
    values = {"gpt": {"effective_rank": drawn()}, "unilm": {"effective_rank": drawn(seed=1)}}
    with pytest.raises(ConfigurationError, match=message):
        decomposed(run_of(), values, DOCUMENTS, LAYERS, REGIONS, brackets={"gpt": {"effective_rank": bracket}})


# Regions, steps.


@pytest.mark.parametrize(
    ("region", "expected"),
    [("full", False), ("prefix_block", True), ("first_key_removed", False), ("prefix_block_first_key_removed", True)],
)
def test_a_block_of_the_prefix_is_untrained_in_the_last_layer_of_a_suffix_loss_alone(
    region: str, expected: bool
) -> None:
    suffix, full = arms_of(run_of("gpt", "gpt-full"), (region,), LAYERS)
    assert suffix.untrained.tolist() == [[False, expected]]
    assert not full.untrained.any()


def test_all_four_regions_are_split_and_both_prefix_blocks_leave_out_the_untrained_layer() -> None:
    arms = {
        arm: {"effective_rank": np.concatenate([drawn(seed=number), drawn(seed=number + 5)], axis=1)}
        for number, arm in enumerate(("gpt", "unilm"))
    }
    found = decomposed(run_of(), arms, DOCUMENTS, LAYERS, AXES)
    assert found is not None
    assert found.untrained.tolist() == [[False, False], [False, True]] * 2
    assert [entry.region for entry in found.means("effective_rank")] == list(AXES)


def test_a_step_is_the_one_that_was_given() -> None:
    values = {"gpt": {"effective_rank": drawn()}, "unilm": {"effective_rank": drawn(seed=1)}}
    found = decomposed(run_of(), values, DOCUMENTS, LAYERS, REGIONS, step=5)
    assert found is not None
    assert found.step == 5


def test_the_arrays_of_a_file_are_the_rows() -> None:
    found = split(drawn()[..., [1], :], drawn(offset=5, seed=1)[..., [1], :], layers=(1,))
    arrays = found.arrays()
    assert {name: table.shape for name, table in arrays.items()} == {
        **dict.fromkeys(EFFECTS, (1, 2, 1, 3)), "same_mask": (1, 2, 1),
        **{f"mean_{name}": (1, 2, 3) for name in EFFECTS}, "mean_same_mask": (1, 2),
    }  # fmt: skip
    mean = row(found, "full", None)
    for name in EFFECTS:
        interval = mean.effects[name]
        assert arrays[f"mean_{name}"][0, 0].tolist() == [interval.mean, interval.lower, interval.upper]
        assert np.isnan(arrays[f"mean_{name}"][0, 1]).all()  # its only layer is untrained
    assert arrays["same_mask"][0, :, 0].tolist() == [row(found, region, 1).same_mask for region in REGIONS]
    assert arrays["mean_same_mask"][0, 0] == mean.same_mask
