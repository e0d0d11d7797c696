"""Arms that see ahead, or whose heads or layers have different masks, measured against attention written out in NumPy."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matrices
import numpy as np
import pytest
import reference
from measured_run import FAST, FEW, measured, tokens_of
from numpy.typing import NDArray
from small_run import run_config, trained_run
from tiny import CPU, N

from rankkit.axes import REGIONS
from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.store import describe, read_group
from rankkit.studies import MeasureConfig, Measured, Run, load_model, measure_attention, plan_measurement
from rankkit.studies.functional_sweep import plan_functional_rank
from rankkit.studies.measuring.kept_source import kept_source

P, LAYERS, HEADS, HEAD_DIM = N // 2, 2, 3, 8
ARMS = ("gpt", "bert", "mixed-heads", "mixed-layers")
SWAPPED = {"gpt": "prefix", "bert": "causal", "mixed-heads": "bidirectional", "mixed-layers": "bidirectional"}
WHOLE = ("full", "first_key_removed")
CHOSEN = ("effective_rank", "log_abs_det", "log10_smallest_singular_value", "attention_entropy", "previous_key_mass")
Matrix = NDArray[np.float64]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One seed of every arm, with biases in the place of positions."""
    config = run_config(ARMS, seeds=(0,), model={"position": "alibi"}, steps=4)
    return trained_run(tmp_path_factory.mktemp("run") / "run", config)


@pytest.fixture(scope="module")
def found(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measured]:
    path = tmp_path_factory.mktemp("found") / "s.h5"
    return path, measured(run, path, measures=CHOSEN, baselines=("uniform", "gaussian"), keep_qk=True, samples=2)


def mask_of(arm: str, layer: int, head: int) -> Any:
    """By name: of three heads the first two look back."""
    backward = {"mixed-heads": head == 2, "mixed-layers": layer == 1}.get(arm, False)
    return "backward" if backward else {"gpt": "causal", "bert": "bidirectional"}.get(arm, "causal")


def logits_of(run: Run, arm: str, sequence: int) -> dict[tuple[int, int], Matrix]:
    """By layer and head: scale Q K^T with the bias, from a forward pass in NumPy."""
    model = load_model(run.directory.path, arm=arm, seed=0)
    forward = reference.forward(model, tokens_of(run)[sequence].tolist(), reference.allowed(model.config, P, N))
    rows, columns = np.indices((N, N))
    return {
        (layer, head): forward.queries[layer][head] @ forward.keys[layer][head].T / math.sqrt(HEAD_DIM)
        - 2 ** (-8 * (head + 1) / HEADS) * abs(rows - columns)
        for layer, head in product(range(LAYERS), range(HEADS))
    }


@pytest.mark.parametrize("arm", ARMS)
def test_every_head_holds_the_spectrum_of_attention_under_its_own_mask_and_the_one_swapped_in(
    arm: str, run: Run, found: tuple[Path, Measured]
) -> None:
    group = read_group(found[0], arm)
    assert tuple(group["region"]) == (REGIONS if arm == "gpt" else WHOLE)
    by_place = logits_of(run, arm, 0)
    for (layer, head), logits in by_place.items():
        for a, mask in enumerate((mask_of(arm, layer, head), SWAPPED[arm])):
            matrix = matrices.softmax(logits, matrices.allowed(mask, N, P))
            values, at = np.linalg.svd(matrix, compute_uv=False), (0, 0, 0, a, 0, layer, head)
            np.testing.assert_allclose(group["singular_values"][at], values, atol=2e-5)  # after a float32 forward pass
            shares = values / values.sum()
            assert group["effective_rank"][at] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
            visible = matrix[matrix > 0]
            assert group["attention_entropy"][at] == pytest.approx(-(visible * np.log(visible)).sum() / N, rel=1e-4)
            assert group["previous_key_mass"][at] == pytest.approx(np.diagonal(matrix, -1).mean(), rel=1e-4, abs=1e-9)
            if mask in ("causal", "backward"):
                assert group["log_abs_det"][at] == pytest.approx(np.log(np.diagonal(matrix)).sum(), rel=1e-4)
                inverse = np.linalg.norm(np.linalg.inv(matrix), 2)
                assert group["log10_smallest_singular_value"][at] == pytest.approx(-np.log10(inverse), abs=1e-3)


@pytest.mark.parametrize("arm", ["mixed-heads", "mixed-layers"])
def test_without_its_first_key_every_head_keeps_its_mask(arm: str, run: Run, found: tuple[Path, Measured]) -> None:
    group, by_place = read_group(found[0], arm), logits_of(run, arm, 1)
    for (layer, head), logits in by_place.items():
        matrix = matrices.softmax(logits[1:, 1:], matrices.allowed(mask_of(arm, layer, head), N - 1))
        known = group["singular_values"][0, 0, WHOLE.index("first_key_removed"), 0, 1, layer, head, : N - 1]
        np.testing.assert_allclose(known, np.linalg.svd(matrix, compute_uv=False), atol=2e-5)


def test_the_file_says_which_masks_there_are_what_is_swapped_in_and_that_there_is_a_bias(
    found: tuple[Path, Measured],
) -> None:
    said = {group.name: group.attributes for group in describe(found[0]).groups}
    assert said["mixed-heads"]["masks"] == "heads 0, 1: Causal(); heads 2: Backward()"
    assert said["mixed-layers"]["masks"] == "layers 0: Causal(); layers 1: Backward()"
    assert {arm: said[arm].get("swapped_mask") for arm in ARMS} == SWAPPED | {"gpt": None}
    assert {arm: said[arm]["mask"] for arm in ARMS[1:]} == {"bert": "bidirectional"} | {arm: arm for arm in ARMS[2:]}
    assert {said[arm]["logits"] for arm in ARMS} == {"bias"}
    left_out = "prefix_block, prefix_block_first_key_removed: rows of the prefix see beyond it"
    assert [said[arm].get("regions_left_out") for arm in ARMS] == [None, left_out, left_out, left_out]


def test_what_needs_a_triangle_is_unavailable_where_there_is_none(found: tuple[Path, Measured]) -> None:
    unavailable = {group.name: group.unavailable for group in describe(found[0]).groups}
    smallest = {arm: unavailable[arm].get("log10_smallest_singular_value", "") for arm in ARMS}
    assert smallest["bert"].startswith("own mask: ")
    assert smallest["mixed-heads"] == smallest["mixed-layers"]
    assert smallest["mixed-heads"].startswith("swapped mask: ")
    group = read_group(found[0], "mixed-heads")
    known = np.isfinite(group["log10_smallest_singular_value"])
    assert known[:, :, :, 0].all()
    assert not known[:, :, :, 1].any()


def test_baselines_of_a_mixture_are_those_of_each_heads_mask(found: tuple[Path, Measured]) -> None:
    """Uniform attention that looks ahead is the other way round, and has the same values; draws differ by head."""
    uniform = read_group(found[0], "baselines/uniform/mixed-heads")["singular_values"]
    alone = read_group(found[0], "baselines/uniform/gpt")["singular_values"]
    np.testing.assert_allclose(uniform[0, 0, 0, 0, 0, 0], alone[0, 0, 0, 0, 0, 0], rtol=1e-6)
    drawn = read_group(found[0], "baselines/gaussian/mixed-heads")
    assert len(np.unique(drawn["effective_rank"][0, 0, 0, 0].ravel())) == 2 * LAYERS * HEADS
    assert (drawn["previous_key_mass"][..., 2] == 0).all()
    assert (drawn["previous_key_mass"][..., :2] > 0).all()


def test_queries_and_keys_are_kept_head_by_head_and_not_measured_again_without_the_model(
    run: Run, found: tuple[Path, Measured]
) -> None:
    kept = read_group(found[0], "mixed-heads", ("queries", "keys"))
    rows, columns = np.indices((N, N))
    for (layer, head), logits in logits_of(run, "mixed-heads", 1).items():
        products = kept["queries"][0, 0, 1, layer, head] @ kept["keys"][0, 0, 1, layer, head].T / math.sqrt(HEAD_DIM)
        bias = -(2 ** (-8 * (head + 1) / HEADS)) * abs(rows - columns)
        np.testing.assert_allclose(products + bias, logits, atol=2e-4)
    with (
        kept_source(found[0], CPU) as source,
        pytest.raises(SpectrumFileError, match=r"must be self-attention with plain logits .* with 'bias'"),
    ):
        source.plan(MeasureConfig(regions=("full",)))


def test_without_the_matrix_brackets_hold_what_the_whole_matrices_give(run: Run, tmp_path: Path) -> None:
    exact, estimated = tmp_path / "exact.h5", tmp_path / "estimated.h5"
    common: dict[str, Any] = {"samples": 1, "regions": ("full",), "measures": ("effective_rank", "attention_entropy")}
    measured(run, exact, **common)
    steps: list[float] = []
    measured(
        run, estimated, method="matrix-free", matrix_free=FAST, on_progress=lambda p: steps.append(p.done), **common
    )
    assert steps == sorted(steps)
    for arm in ARMS:
        group, whole = read_group(estimated, arm), read_group(exact, arm)
        assert (group["effective_rank_lower"] <= whole["effective_rank"]).mean() > 0.8  # brackets hold in 95 of 100
        assert (group["effective_rank_upper"] >= whole["effective_rank"]).mean() > 0.8
        leading = group["singular_values"].shape[-1]
        np.testing.assert_allclose(group["singular_values"], whole["singular_values"][..., :leading], rtol=1e-4)
        np.testing.assert_allclose(group["attention_entropy"], whole["attention_entropy"], rtol=1e-9)


def test_a_comparison_of_causal_and_prefix_keeps_its_blocks_beside_an_arm_that_has_none(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", run_config(("bert", "unilm", "gpt"), seeds=(0,), steps=2))
    found = measured(run, tmp_path / "s.h5", samples=1)
    assert found.decomposition is not None
    assert found.decomposition.regions == found.plan.regions == REGIONS
    assert {part.arms[0].name: part.regions for part in found.plan.parts} == {
        "bert": WHOLE, "unilm": REGIONS, "gpt": REGIONS,
    }  # fmt: skip
    assert found.plan.matrices == (2 + 4 + 4) * 2 * LAYERS * HEADS


def test_kept_factors_of_a_bidirectional_arm_are_measured_again_and_those_of_a_mixture_are_not(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", run_config(("bert", "mixed-heads"), seeds=(0,), steps=2))
    assert plan_measurement(run, MeasureConfig()).regions == WHOLE  # no arm has a prefix block
    measured(run, tmp_path / "both.h5", samples=1, keep_qk=True)
    refusal = "mixed-heads must have a mask among causal, prefix, bidirectional, backward to be measured again"
    with kept_source(tmp_path / "both.h5", CPU) as source, pytest.raises(SpectrumFileError, match=refusal):
        source.plan(MeasureConfig(regions=WHOLE))
    alone = trained_run(tmp_path / "alone", run_config(("bert",), seeds=(0,), steps=2))
    measured(alone, tmp_path / "one.h5", samples=1, keep_qk=True)
    with kept_source(tmp_path / "one.h5", CPU) as source:
        settings = MeasureConfig(measures=FEW, regions=WHOLE, workers=1)
        measure_attention(source, settings, tmp_path / "again.h5", device=CPU, command="rankkit spectrum one.h5")
    one, other = read_group(tmp_path / "one.h5", "bert"), read_group(tmp_path / "again.h5", "bert")
    for name in (*FEW, "singular_values"):
        np.testing.assert_array_equal(one[name], other[name])


def test_an_arm_is_planned_with_its_own_regions_and_the_masks_of_the_chosen_heads(run: Run) -> None:
    plan = plan_measurement(run, MeasureConfig(heads=(0, 1)))
    assert plan.regions == REGIONS  # of gpt
    (part,) = (part for part in plan.parts if part.arms[0].name == "mixed-heads")
    assert part.regions == WHOLE
    assert part.arms[0].attributes["masks"] == "heads 0, 1: Causal()"


def test_regions_that_an_arm_lacks_and_functional_rank_of_mixed_heads_are_refused_by_name(run: Run) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"regions must exist in every arm, got prefix_block, which arm bert \(mask bidirectional\) lacks: rows of",
    ):
        plan_measurement(run, MeasureConfig(regions=("prefix_block",)))


@pytest.mark.parametrize("arms", [("bert",), ("mixed-heads",), ("gpt", "mixed-layers")])
def test_masked_arms_have_no_functional_rank_and_are_refused_by_name(run: Run, arms: tuple[str, ...]) -> None:
    chosen = replace(run, config=replace(run.config, arms=arms))
    with pytest.raises(ConfigurationError, match=f"suffix loss, got {arms[-1]}, whose loss is over masked tokens"):
        plan_functional_rank(chosen)
