"""Random logits: the matrices are those of the recipe, crossings lie where they were published, verdicts are right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CPU

from rankkit.errors import ConfigurationError
from rankkit.studies.experiments import random_logits
from rankkit.studies.experiments.experiment import KINDS, load_experiment
from rankkit.studies.experiments.findings import Finding, Tolerance, half_last_digit
from rankkit.studies.experiments.random_logits import (
    RandomLogits,
    crossing_std,
    descents,
    measure_random_logits,
    null_operator,
)
from rankkit.studies.experiments.random_logits_config import (
    SECOND,
    CrossingsConfig,
    ExpectedRow,
    MatricesConfig,
    RandomLogitsConfig,
    ValuesConfig,
)
from rankkit.studies.measuring.measure import MeasurementInterruptedError
from rankkit.training.settings import from_table

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
WITHIN = Tolerance(absolute=0.03)


def config(**changes: Any) -> RandomLogitsConfig:
    settings: dict[str, Any] = {
        "seeds": (0, 1, 2),
        "generator": "numpy",
        "measures": ("effective_rank",),
        "matrices": (MatricesConfig(n=16, head_dim=4, stds=(0.5, 1.0)),),
    }
    return RandomLogitsConfig(**{**settings, **changes})


def measured(declared: RandomLogitsConfig) -> RandomLogits:
    return measure_random_logits(declared, device=CPU)


# The matrices.


@pytest.mark.parametrize("mask", ["causal", "prefix", "bidirectional", "backward"])
@pytest.mark.parametrize("std", [0.0, 0.3, 2.0])
def test_dot_product_logits_are_those_of_the_recipe(mask, std):
    family = MatricesConfig(n=24, head_dim=5, masks=(mask,), stds=(std,))
    draws = random_logits._draws(config(matrices=(family,)), family, CPU)
    found = null_operator(family, draws, std, mask).dense()
    for seed in range(3):
        r = np.random.default_rng(seed)
        logits = std * (r.standard_normal((24, 5)) @ r.standard_normal((24, 5)).T) / np.sqrt(5)
        expected = matrices.softmax(logits, matrices.allowed(mask, 24))
        np.testing.assert_allclose(found[seed].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("mask", ["causal", "prefix", "bidirectional"])
def test_independent_logits_are_those_of_the_recipe(mask):
    family = MatricesConfig(logits="independent", n=24, masks=(mask,), prefix_length=7)
    draws = random_logits._draws(config(matrices=(family,)), family, CPU)
    found = null_operator(family, draws, 0.7, mask).dense()
    for seed in range(3):
        logits = 0.7 * np.random.default_rng(seed).standard_normal((24, 24))
        expected = matrices.softmax(logits, matrices.allowed(mask, 24, 7))
        np.testing.assert_allclose(found[seed].numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("mask", ["causal", "prefix", "bidirectional"])
def test_linear_attention_is_the_masked_product_of_features_with_rows_divided_by_their_sum(mask):
    family = MatricesConfig(logits="elu", n=24, head_dim=5, masks=(mask,))
    draws = random_logits._draws(config(matrices=(family,)), family, CPU)
    found = null_operator(family, draws, 1.5, mask).dense()
    for seed in range(3):
        r = np.random.default_rng(seed)
        query, key = (1.5 * r.standard_normal((24, 5)) for _ in range(2))
        features = [np.where(x > 0, x + 1, np.exp(x)) for x in (query, key)]
        weights = features[0] @ features[1].T * matrices.allowed(mask, 24)
        np.testing.assert_allclose(found[seed].numpy(), weights / weights.sum(axis=1, keepdims=True), rtol=1e-12)


def test_bidirectional_linear_attention_has_rank_at_most_its_features():
    family = MatricesConfig(logits="elu", n=40, head_dim=6, masks=("bidirectional", "causal"), stds=(1.0,))
    found = measured(config(matrices=(family,), measures=("numerical_rank",))).values[family.family]["numerical_rank"]
    assert found[0].max() == 6
    assert found[1].min() == 40


@pytest.mark.parametrize("logits", ["dot-product", "independent", "elu"])
def test_philox_draws_depend_on_nothing_but_seed_and_family(logits):
    family = MatricesConfig(logits=logits, n=12, head_dim=3)
    every = config(generator="philox", matrices=(family, MatricesConfig(n=13)), seeds=(0, 4, 2))
    alone = config(generator="philox", matrices=(family,), seeds=(4,))
    pairs = zip(*(random_logits._draws(declared, family, CPU) for declared in (every, alone)), strict=True)
    assert all(torch.equal(together[1], single[0]) for together, single in pairs)
    other = random_logits._draws(every, MatricesConfig(logits=logits, n=12, head_dim=2, prefix_length=3), CPU)
    assert not np.isin(other[0].numpy(), random_logits._draws(every, family, CPU)[0].numpy()).any()


def test_values_are_by_mask_std_and_seed_and_every_matrix_has_its_row():
    family = MatricesConfig(n=10, head_dim=3, masks=("bidirectional", "causal"), stds=(0.2, 2.0))
    declared = config(matrices=(family, MatricesConfig(n=6)), measures=("spectral_norm", SECOND), seeds=(3, 1))
    found = measured(declared)
    rows = list(found.rows())
    assert len(rows) == declared.total == 2 * (2 * 2 + 2)
    r = np.random.default_rng(1)
    logits = 2.0 * (r.standard_normal((10, 3)) @ r.standard_normal((10, 3)).T) / np.sqrt(3)
    sigma = np.linalg.svd(matrices.softmax(logits, matrices.allowed("causal", 10)), compute_uv=False)
    (row,) = [row for row in rows if (row["n"], row["mask"], row["std"], row["seed"]) == (10, "causal", 2.0, 1)]
    assert row["spectral_norm"] == pytest.approx(sigma[0], rel=1e-10)
    assert row[SECOND] == pytest.approx(sigma[1], rel=1e-7)
    (mean,) = [mean for mean in found.means() if (mean["n"], mean["mask"], mean["std"]) == (10, "causal", 2.0)]
    both = found.values[family.family]["spectral_norm"][1, 1]
    assert mean["mean"]["spectral_norm"] == pytest.approx(both.mean())
    assert mean["standard_error"]["spectral_norm"] == pytest.approx(abs(both[0] - both[1]) / 2)


def test_progress_counts_every_matrix_and_a_stop_ends_the_measurement():
    seen = []
    measure_random_logits(config(), device=CPU, on_progress=seen.append)
    assert [step.done for step in seen] == [3, 6, 9, 12]
    assert seen[-1].total == 12
    assert seen[-1].label == "n = 16, d = 4, bidirectional, std 1"
    with pytest.raises(MeasurementInterruptedError, match=r"nothing was written\. Run it again"):
        measure_random_logits(config(), device=CPU, stop=lambda: True)


def test_the_expected_time_is_a_positive_number_of_seconds():
    assert 0 < random_logits.expected_seconds(config(), device=CPU) < 60


# Crossings.


def test_descents_are_where_straight_lines_fall_to_zero():
    stds = [1.0, 2.0, 4.0, 5.0, 6.0]
    assert descents(stds, [3, 1, -1, -2, -3]) == (3.0,)
    assert descents(stds, [3, 1, 0, 0, -3]) == (4.0,)
    assert descents(stds, [1, 0, 1, -1, 2]) == (2.0, 4.5)
    assert descents(stds, [-1, 0, 1, 2, 3]) == ()
    assert descents(stds, [1, 1, 1, 1, 1]) == ()
    assert descents(stds, [0, 0, 0, 0, 0]) == ()


def test_the_crossing_is_the_last_descent_of_the_mean_and_the_jackknife_of_a_mean_is_its_standard_error():
    stds = np.linspace(0, 2, 41)
    zeros = np.array([0.71, 0.83, 0.78, 0.95])
    std, error = crossing_std(stds.tolist(), zeros - stds[:, None])
    assert std == pytest.approx(zeros.mean())
    assert error == pytest.approx(zeros.std(ddof=1) / 2)
    assert crossing_std([1.0, 2.0, 3.0, 4.0], [[1.0], [-1.0], [1.0], [-1.0]])[0] == 3.5


def test_one_seed_has_no_error_and_curves_that_do_not_cross_have_no_crossing():
    std, error = crossing_std([1.0, 2.0], [[1.0], [-1.0]])
    assert std == 1.5
    assert math.isnan(error)
    assert all(math.isnan(number) for number in crossing_std([1.0, 2.0], [[1.0, 2.0], [1.0, 2.0]]))


def test_published_crossings_at_n_64_and_d_16_are_reproduced():
    published = {
        "effective_rank": "0.68",
        "mass_rank_80": "0.66",
        "mass_rank_90": "0.64",
        "energy_rank_90": "0.70",
        "energy_rank_99": "0.74",
        "numerical_rank": "0.30",
    }
    row = ExpectedRow(n=64, head_dim=16, expected=tuple(published.values()))
    family = MatricesConfig(n=64, head_dim=16, stds=tuple(round(0.05 * step, 2) for step in range(4, 18)))
    pair = CrossingsConfig(measures=tuple(published), seeds=(0, 1, 2), tolerance=WITHIN, rows=(row,))
    found = measured(config(matrices=(family,), measures=tuple(published), crossings=(pair,)))
    assert [finding.sentence() for finding in found.findings() if not finding.reproduced] == []
    below, above = (found.of(family, "effective_rank", mask, (0, 1, 2)).mean(axis=1) for mask in family.masks)
    assert below[0] > 1.3 * above[0], "causal is the higher one below the crossing"
    assert below[-1] < 0.98 * above[-1], "and the lower one above it"


def test_published_effective_ranks_at_n_128_and_d_32_are_reproduced():
    published = {0.3: (27, 39, 39), 1.0: (74, 69, 59), 2.0: (83, 73, 67)}
    masks = ("bidirectional", "prefix", "causal")
    rows = tuple(
        ExpectedRow(n=128, head_dim=32, mask=mask, std=std, expected=(str(rank),))
        for std, ranks in published.items()
        for mask, rank in zip(masks, ranks, strict=True)
    )
    claim = ValuesConfig(measures=("effective_rank",), seeds=(0, 1, 2), tolerance=Tolerance(relative=0.03), rows=rows)
    family = MatricesConfig(n=128, head_dim=32, masks=masks, stds=tuple(published))
    found = list(measured(config(matrices=(family,), values=(claim,))).findings())
    assert [finding.sentence() for finding in found if not finding.reproduced] == []
    assert len(found) == 9


# Findings.


def by_hand(claim: CrossingsConfig | ValuesConfig) -> list[Finding]:
    """Effective ranks 10 + mask + 3 std + seed / 10 at stds 1 and 2, causal before bidirectional."""
    family = MatricesConfig(n=16, head_dim=4, stds=(1.0, 2.0))
    kind = "crossings" if isinstance(claim, CrossingsConfig) else "values"
    declared = config(matrices=(family,), seeds=(5, 6, 9), **{kind: (claim,)})
    mask, std, seed = np.ogrid[0:2, 1:3, 0:3]
    values = 10 + mask * (3 * std - 4) + 0 * std + np.array([5, 6, 9])[seed] / 10
    return list(RandomLogits(config=declared, values={family.family: {"effective_rank": values}}).findings())


def test_a_finding_takes_the_seeds_of_its_expectation_and_shows_all_beside_them():
    row = ExpectedRow(n=16, head_dim=4, mask="bidirectional", std=2.0, expected=("12.75",))
    claim = ValuesConfig(measures=("effective_rank",), seeds=(9, 6), tolerance=Tolerance(absolute=0.001), rows=(row,))
    (found,) = by_hand(claim)
    assert found.found == pytest.approx(12.75)
    assert found.standard_error == pytest.approx(0.15)
    assert found.overall == pytest.approx(10 + 2 + 2 / 3)
    assert (found.seeds, found.overall_seeds) == (2, 3)
    assert found.reproduced
    assert found.sentence() == (
        "reproduced: n = 16, d = 4, bidirectional, std 2: effective_rank: expected 12.75, found 12.75 over 2 seeds "
        "(off by +0, allowed 0.001); over 3 seeds 12.67 ± 0.12"
    )


def test_a_crossing_is_where_the_first_mask_falls_below_the_second():
    row = ExpectedRow(n=16, head_dim=4, expected=("1.5",))
    claim = CrossingsConfig(measures=("effective_rank",), seeds=(5, 6, 9), tolerance=WITHIN, rows=(row,))
    (found,) = by_hand(claim)
    assert found.found == pytest.approx(1 + 1 / 3)
    assert found.verdict == "not reproduced"
    assert (found.where, found.what) == ("n = 16, d = 4, causal/bidirectional crossing", "effective_rank")
    assert "over 3 seeds (off by -0.17, allowed 0.03)" in found.sentence()
    assert found.sentence().endswith("allowed 0.03)")
    (turned,) = by_hand(CrossingsConfig(first="bidirectional", second="causal", measures=claim.measures, seeds=(5,),
                                        tolerance=WITHIN, rows=(row,)))  # fmt: skip
    assert math.isnan(turned.found)
    assert not turned.reproduced
    assert turned.sentence().endswith("crossing, effective_rank: expected 1.5, found none; over 3 seeds nan ± nan")


def finding(expected: str, found: float, allowed: float) -> Finding:
    return Finding(
        where="", what="", expected=expected, found=found, standard_error=0.0, seeds=3, allowed=allowed,
        overall=found, overall_error=0.0, overall_seeds=3,
    )  # fmt: skip


def test_the_boundary_counts_as_reproduced_and_nan_does_not():
    assert finding("0.55", 0.52, 0.03).reproduced
    assert finding("4", 4.0, 0.0).reproduced
    assert not finding("0.55", 0.5199, 0.03).reproduced
    assert not finding("0.55", math.nan, 0.03).reproduced
    assert not finding("0.55", 0.55, math.nan).reproduced
    assert finding("0.55", 0.5, 0.03).as_dict()["error"] == pytest.approx(-0.05)


def test_each_tolerance_says_how_far_off_is_allowed():
    assert Tolerance(absolute=0.03).allowed("1.30", 9.0) == 0.03
    assert Tolerance(relative=0.03).allowed("-200", 9.0) == pytest.approx(6)
    assert Tolerance(standard_errors=2.0).allowed("1.09", 0.01) == pytest.approx(0.025)
    assert math.isnan(Tolerance(standard_errors=2.0).allowed("1.09", math.nan))


@pytest.mark.parametrize("wrong", [{}, {"absolute": 0.1, "relative": 0.1}, {"standard_errors": -1.0}])
def test_a_tolerance_is_one_rule(wrong):
    with pytest.raises(ConfigurationError, match=r"tolerance must be one of absolute, relative and .* Name one"):
        Tolerance(**wrong)


@given(digits=st.integers(0, 10**6), places=st.integers(0, 6))
def test_rounding_moves_a_number_by_at_most_half_its_last_digit(digits, places):
    value = digits / 10**places
    printed = f"{value:.{places}f}"
    assert half_last_digit(printed) == pytest.approx(0.5 * 10.0**-places)
    assert abs(float(f"{value * 1.0001:.{places}f}") - value * 1.0001) <= half_last_digit(printed) * (1 + 1e-9)


@pytest.mark.parametrize("printed", ["about 3", "nan", "inf", ""])
def test_what_was_not_printed_as_a_number_is_refused(printed):
    with pytest.raises(ConfigurationError, match=f"as they were printed, such as '1.09', got '{printed}'. Quote"):
        half_last_digit(printed)


# Declarations.


def values_of(**row: Any) -> dict[str, Any]:
    full = {"n": 16, "head_dim": 4, "mask": "causal", "std": 0.5, "expected": ("1",)}
    claim = ValuesConfig(measures=("effective_rank",), seeds=(0,), rows=(ExpectedRow(**{**full, **row}),))
    return {"values": (claim,)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": "mersenne"}, r"generator must be philox or numpy, got 'mersenne'\. Choose"),
        ({"seeds": ()}, r"seeds must be different numbers of at least 0, got \[\]\. Name"),
        ({"seeds": (1, 1)}, r"seeds must be different numbers of at least 0, got \[1, 1\]\. Name"),
        ({"seeds": (-1,)}, r"seeds must be different numbers of at least 0, got \[-1\]\. Name"),
        ({"matrices": ()}, r"matrices must hold at least one family and none twice, got \[\]\. Join"),
        ({"matrices": (MatricesConfig(n=4), MatricesConfig(n=4))}, r"at least one family and none twice, got \[\('dot"),
        ({"measures": ("rank",)}, r"measures must be different ones of .*, second_singular_value, got \['rank'\]\. Name"),
        ({"measures": ()}, r"measures must be different ones of .* got \[\]\. Name"),
        (values_of(n=17), r"expectation must be of matrices that are declared, got ExpectedRow\(.*n=17.*\. Add them"),
        (values_of(mask="prefix"), "expectation must be of matrices that are declared, got .*mask='prefix'"),
        (values_of(std=0.7), "expectation must be of matrices that are declared, got .*std=0.7"),
        (values_of(std=None), "expectation must be of matrices that are declared, got .*std=None"),
        (values_of(expected=("1", "2")), r"expected must hold 1 numbers \(one per measure\), got \['1', '2'\]\. Count"),
        (values_of(expected=("one",)), "expected must hold numbers as they were printed"),
        ({"values": (ValuesConfig(measures=("effective_rank",), seeds=(7,)),)}, r"among \[0, 1, 2\], each once, got \[7\]"),
        (
            {"values": (ValuesConfig(measures=("effective_rank",), seeds=(0,), tolerance=Tolerance(standard_errors=2.0)),)},
            r"tolerance in standard errors must come with at least 2 seeds, got \[0\]\. Name more",
        ),
        ({"values": (ValuesConfig(measures=("stable_rank",), seeds=(0,)),)}, "measures of an expectation must be different"),
        (
            {"crossings": (CrossingsConfig(first="backward", measures=("effective_rank",), seeds=(0,),
                                           rows=(ExpectedRow(n=16, head_dim=4, expected=("1",)),)),)},
            "expectation must be of matrices that are declared",
        ),
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_hold_is_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1}, r"n must be at least 2 and head_dim at least 1, got 1 and 64\. Give"),
        ({"head_dim": 0}, r"n must be at least 2 and head_dim at least 1, got 8 and 0\. Give"),
        ({"logits": "rope"}, r"logits must be one of dot-product, independent, elu, got 'rope'\. Choose"),
        ({"masks": ("window",)}, r"masks must be different ones of causal, prefix, .* got \['window'\]\. Name"),
        (
            {"masks": ("mixed-heads",)},
            r"different ones of causal, prefix, bidirectional, backward, got \['mixed-heads'\]",
        ),
        ({"masks": ("causal", "causal")}, "masks must be different ones"),
        ({"stds": ()}, r"stds must ascend from 0 or more, got \[\]\. Sort"),
        ({"stds": (1.0, 0.5)}, "stds must ascend from 0 or more"),
        ({"stds": (-1.0,)}, "stds must ascend from 0 or more"),
        ({"prefix_length": 9}, r"prefix_length must be between 0 and 8, got 9\. Shorten"),
    ],
)
def test_a_family_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        MatricesConfig(**{"n": 8, **changes})


MINIMAL = 'kind = "random-logits"\nseeds = [0]\nmeasures = ["effective_rank"]\n[[matrices]]\nn = 8\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_experiment_is_read_with_its_defaults_and_its_text(tmp_path):
    loaded = load_experiment(written(tmp_path, f"# why\n{MINIMAL}"))
    assert (loaded.name, loaded.kind, loaded.title) == ("small", "random-logits", "small")
    assert loaded.text.startswith("# why\n")
    assert loaded.config.matrices == (MatricesConfig(n=8),)
    assert loaded.config.generator == "philox"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.replace("random-logits", "random-logit"), "got 'random-logit'. Did you mean random-logits"),
        (
            MINIMAL.replace('kind = "random-logits"\n', ""),
            r"kind must be one of random-logits, trained, got None\. Write kind = ",
        ),
        (MINIMAL.replace("seeds", "seed"), r"must not hold the unknown key 'seed'\. Did you mean seeds\?"),
        (
            f"{MINIMAL}head_dims = 4\n",
            r"matrices\[0\] must not hold the unknown key 'head_dims'\. Did you mean head_dim\?",
        ),
        (f"title = 3\n{MINIMAL}", r"title must be of type string, got 3\. Write a string"),
        (f"{MINIMAL}stds = [true]\n", r"stds\[0\] must be of type float, got True"),
        ("kind = ", r"must be TOML, got: .*\. Correct that line"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(text, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        load_experiment(written(tmp_path, text))


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_an_experiment_that_cannot_be_read_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match=r"experiment must be a file that can be read, got .*\. Name a TOML"):
        load_experiment(tmp_path / name)


def test_expectations_are_strings_so_that_their_digits_are_kept():
    table = {"n": 16, "expected": [1.0]}
    with pytest.raises(ConfigurationError, match=r"must be of type string, got 1\.0"):
        from_table(ExpectedRow, table, "row")


@pytest.mark.parametrize(
    ("name", "matrices_", "expectations"), [("phase_diagram", 16800, 35), ("null_table", 840, 138)]
)
def test_the_declared_experiments_load_and_expect_what_was_published(name, matrices_, expectations):
    loaded = load_experiment(EXPERIMENTS / f"{name}.toml")
    assert isinstance(loaded.config, KINDS[loaded.kind])
    assert loaded.config.total == matrices_
    claims = (*loaded.config.crossings, *loaded.config.values)
    assert sum(len(row.expected) for claim in claims for row in claim.rows) == expectations
    for word in ("Question", "Expectation", "Cost"):
        assert f"# {word}: " in loaded.text
