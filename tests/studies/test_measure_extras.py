"""What a measurement holds beyond two regions of the last step: all four, steps, baselines, outputs, functional rank."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import matrices
import numpy as np
import pytest
import reference
import torch
from measured_run import FEW, measured, tokens_of
from numpy.typing import NDArray
from small_run import ALL_ARMS, PAIR, run_config, trained_run
from tiny import CPU, STEPS, N

from rankkit.axes import REGIONS
from rankkit.errors import ConfigurationError
from rankkit.hooks import capture
from rankkit.spectra import MEASURES
from rankkit.spectra.baselines import BASELINES
from rankkit.store import FileDescription, describe, read_group
from rankkit.studies import MeasureConfig, Run, functional_rank, load_model, measure_run, plan_measurement
from rankkit.studies.decomposition import EFFECTS, arms_of, causal_and_prefix, effects
from rankkit.studies.functional import CUTS
from rankkit.studies.measuring.measure import Progress, plan_functional
from rankkit.studies.measuring.run_source import RunSource

P, LAYERS, HEADS, HEAD_DIM = N // 2, 2, 3, 8
SAVED = (0, 4, 8, 12)
Group = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One pair under one seed."""
    return trained_run(tmp_path_factory.mktemp("small") / "run", run_config(seeds=(0,)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The prefix arm of that pair by itself: half as many groups where two are not needed."""
    return trained_run(tmp_path_factory.mktemp("alone") / "run", run_config(("unilm",), seeds=(0,)))


def logits_by_hand(run: Run, arm: str, cell: tuple[int, int, int], step: int = STEPS) -> NDArray[np.float64]:
    """Of one sequence, layer and head, from a forward pass in NumPy."""
    sequence, layer, head = cell
    model = load_model(run.directory.path, arm=arm, seed=0, step=step)
    mask = matrices.allowed("causal" if arm == "gpt" else "prefix", N, P)
    forward = reference.forward(model, tokens_of(run)[sequence].tolist(), mask)
    return np.asarray(forward.queries[layer][head] @ forward.keys[layer][head].T / math.sqrt(HEAD_DIM))


def effective_rank(values: NDArray[np.float64]) -> float:
    shares = values / values.sum()
    return math.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


# Regions.


CELLS = ((0, 0, 0), (1, 1, 2))


@pytest.fixture(scope="module")
def regions(small: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Group]:
    path = tmp_path_factory.mktemp("regions") / "s.h5"
    measured(small, path, measures=(*FEW, "attention_entropy", "sink_position"), samples=2)
    return {arm: read_group(path, arm) for arm in PAIR}


@pytest.mark.parametrize("arm", PAIR)
@pytest.mark.parametrize("cell", CELLS)
def test_four_regions_under_both_masks_are_attention_written_out_in_numpy(
    arm: str, cell: tuple[int, int, int], small: Run, regions: dict[str, Group]
) -> None:
    """Without the first key: rows and columns 1.. of the logits alone, under the mask that is left, normalised anew."""
    group, tokens = regions[arm], tokens_of(small)
    assert np.array_equal(group["tokens"], tokens[:2])
    logits = logits_by_hand(small, arm, cell)
    kinds = {"own": "causal", "swapped": "prefix"} if arm == "gpt" else {"own": "prefix", "swapped": "causal"}
    parts = {"full": slice(0, N), "prefix_block": slice(0, P), "first_key_removed": slice(1, N)}
    parts["prefix_block_first_key_removed"] = slice(1, P)
    assert group["region"].tolist() == list(parts) == list(REGIONS)
    for (r, part), (a, kind) in product(enumerate(parts.values()), enumerate(kinds.values())):
        matrix = matrices.softmax(logits[part, part], matrices.allowed(kind, N, P)[part, part])  # type: ignore[arg-type]
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
        at, size = (0, 0, r, a, *cell), len(matrix)
        values = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(group["singular_values"][at][:size], values, atol=2e-5)  # a float32 forward pass
        assert np.isnan(group["singular_values"][at][size:]).all()
        assert (group["rows"][r, 0], group["columns"][r, 0]) == (size, size)
        assert group["effective_rank"][at] == pytest.approx(effective_rank(values), rel=1e-4)
        assert group["mean_ipr"][at] == pytest.approx((matrix**2).sum() / size, rel=1e-4)
        assert group["sink_position"][at] == matrix.sum(axis=0).argmax()


def test_causal_rows_that_lose_their_first_key_attend_as_if_it_had_not_been_there(
    small: Run, regions: dict[str, Group]
) -> None:
    """The row that saw nothing else is gone: the second position is now alone, and attends to itself."""
    logits = logits_by_hand(small, "gpt", CELLS[0])
    whole = matrices.softmax(logits, matrices.allowed("causal", N))
    left = whole[1:, 1:] / whole[1:, 1:].sum(axis=1, keepdims=True)  # the same, but for roundings of a strong sink
    assert left[0, 0] == 1
    values = np.linalg.svd(left, compute_uv=False)
    found = regions["gpt"]["singular_values"][0, 0, 2, 0, *CELLS[0]]
    np.testing.assert_allclose(found[: N - 1], values, atol=2e-5)


# Steps.


@pytest.mark.parametrize(
    ("checkpoints", "steps"),
    [("last", (12,)), ("all", SAVED), ("every:8", (0, 8, 12)), ("every:5", (0, 12)), ("every:1", SAVED)],
)
def test_checkpoints_are_chosen_by_their_step_and_the_last_is_always_among_them(
    checkpoints: str, steps: tuple[int, ...], small: Run
) -> None:
    plan = plan_measurement(small, MeasureConfig(checkpoints=checkpoints, samples=1))
    assert plan.steps == steps
    assert plan.matrices == 2 * len(steps) * LAYERS * HEADS * 2 * 4


@pytest.mark.parametrize("checkpoints", ["first", "every:0", "every:", "every:-4", "ALL", ""])
def test_other_checkpoints_are_refused(checkpoints: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"checkpoints must be last, all or every:N, got {checkpoints!r}. Write"
    ):
        MeasureConfig(checkpoints=checkpoints)


def test_every_step_has_its_own_model_and_decomposition_and_the_comparison_is_the_last(
    small: Run, tmp_path: Path
) -> None:
    found = measured(small, tmp_path / "s.h5", checkpoints="every:8", samples=2, regions=("full", "prefix_block"))
    groups = {arm: read_group(tmp_path / "s.h5", arm) for arm in PAIR}
    for arm, group in groups.items():
        assert group["step"].tolist() == [0, 8, 12]
        for index, step in enumerate((0, 8, 12)):
            matrix = matrices.softmax(
                logits_by_hand(small, arm, (1, 1, 0), step), matrices.allowed("causal" if arm == "gpt" else "prefix", N, P)
            )  # fmt: skip
            values = np.linalg.svd(matrix, compute_uv=False)
            stored = group["singular_values"][0, index, 0, 0, 1, 1, 0]
            np.testing.assert_allclose(stored, values, atol=2e-5)
            np.testing.assert_array_equal(found.values[arm].measures["mean_ipr"], group["mean_ipr"])
    assert list(found.by_step) == [0, 8, 12]
    assert found.decomposition is found.by_step[12]
    by_step, last = (read_group(tmp_path / "s.h5", name) for name in ("comparison/by_step", "comparison"))
    assert by_step["step"].tolist() == [0, 8, 12]
    for index, (step, split) in enumerate(found.by_step.items()):
        assert split.step == step
        for name in EFFECTS:
            assert np.array_equal(by_step[name][index], split.bounds(name), equal_nan=True)
            gpt, unilm = (groups[arm]["effective_rank"][0, index].mean(axis=(2, 4)) for arm in PAIR)  # sequences, heads
            expected = effects(gpt[:, 0], gpt[:, 1], unilm[:, 0], unilm[:, 1])[name]
            np.testing.assert_allclose(by_step[name][index, 0, ..., 0], expected, rtol=1e-9, atol=1e-12)
    for name in (*EFFECTS, "mean_gap"):
        assert np.array_equal(last[name], by_step[name][-1], equal_nan=True)
    comparison = describe(tmp_path / "s.h5").comparison
    assert comparison is not None
    assert comparison.steps == (0, 8, 12)


def test_both_arms_begin_as_one_model_so_that_the_first_layer_has_learned_nothing_at_step_0(
    small: Run, tmp_path: Path
) -> None:
    found = measured(small, tmp_path / "s.h5", checkpoints="all", samples=1, layers=(0,), regions=("full",))
    first, last = (found.by_step[step].rows["effective_rank"][0].effects["learned_effect"].mean for step in (0, 12))
    assert first == 0
    assert abs(last) > 1e-6


# Baselines.


@pytest.fixture(scope="module")
def described(small: Run, tmp_path_factory: pytest.TempPathFactory) -> FileDescription:
    path = tmp_path_factory.mktemp("baselines") / "s.h5"
    measured(
        small, path, samples=2, regions=("full", "prefix_block_first_key_removed"), baselines=BASELINES,
        measures=("numerical_rank", "effective_rank", "attention_entropy", "mean_ipr", "logit_std"),
    )  # fmt: skip
    return describe(path)


@pytest.fixture(scope="module")
def baselines(described: FileDescription) -> dict[tuple[str, str], Group]:
    """By baseline, or `own`, and arm."""
    with h5py.File(described.path) as file:
        return {
            (group.baseline or "own", group.arm): {name: file[group.name][name][()] for name in file[group.name]}
            for group in (*described.groups, *described.baselines)
        }


def test_a_baseline_is_a_group_of_its_arm_under_its_own_mask_alone(described: FileDescription) -> None:
    assert [group.name for group in described.groups] == list(PAIR)
    assert {(group.baseline, group.arm) for group in described.baselines} == set(product(BASELINES, PAIR))
    for group in described.baselines:
        assert group.labels["applied_mask"] == ("own",)
        assert group.labels["step"] == ((0,) if group.baseline == "init" else (STEPS,))
        assert group.rows_sum_to_one == (group.baseline != "logits")
        assert group.attributes["mask"] == ("causal" if group.arm == "gpt" else "prefix")
        assert group.statuses == {"ok": group.matrices}


def test_uniform_is_the_matrix_that_the_mask_alone_makes(baselines: dict[tuple[str, str], Group]) -> None:
    """Under a causal mask with the spectrum of its bidiagonal inverse, (A^-1)_ii = i and (A^-1)_i,i-1 = 1 - i."""
    places = np.arange(1, N + 1)
    inverse = np.diag(places) - np.diag(places[1:] - 1, -1)
    cesaro = 1 / np.linalg.svd(inverse, compute_uv=False)[::-1]
    of_unilm = np.linalg.svd(matrices.uniform("prefix", N, P), compute_uv=False)
    for arm, values in (("gpt", cesaro), ("unilm", of_unilm)):
        group = baselines["uniform", arm]
        expected = np.broadcast_to(values, (1, 1, 1, 1, 2, LAYERS, HEADS, N))
        np.testing.assert_allclose(group["singular_values"][:, :, :1], expected, atol=1e-7)  # gram's floor
        assert (group["logit_std"] == 0).all()
    block = baselines["uniform", "unilm"]["singular_values"][:, :, 1]
    np.testing.assert_allclose(block[..., 0], 1, rtol=1e-12)  # equal rows: rank 1
    assert (baselines["uniform", "unilm"]["numerical_rank"][:, :, 1] == 1).all()


def test_init_is_the_stored_initialisation_on_the_same_tokens(
    small: Run, baselines: dict[tuple[str, str], Group], tmp_path: Path
) -> None:
    measured(small, tmp_path / "s.h5", checkpoints="all", samples=2, regions=("full",))
    for arm in PAIR:
        init, steps = baselines["init", arm], read_group(tmp_path / "s.h5", arm)
        assert steps["step"].tolist() == list(SAVED)
        for name in ("singular_values", "effective_rank", "mean_ipr"):
            assert np.array_equal(init[name][:, 0, :1], steps[name][:, 0, :, :1], equal_nan=True), name
        assert np.array_equal(init["tokens"], steps["tokens"])
        assert init["checkpoint_sha256"][0, 0].decode() == steps["checkpoint_sha256"][0, 0]


def test_shuffled_rows_keep_their_entropies_and_lose_their_structure(baselines: dict[tuple[str, str], Group]) -> None:
    for arm in PAIR:
        own, shuffled = baselines["own", arm], baselines["shuffled", arm]
        for name in ("attention_entropy", "mean_ipr"):
            np.testing.assert_allclose(shuffled[name], own[name][:, :, :, :1], rtol=1e-12)
        distance = np.abs(shuffled["effective_rank"] - own["effective_rank"][:, :, :, :1])
        assert (distance > 1e-4).all()
        frobenius = [np.nansum(group["singular_values"] ** 2, axis=-1) for group in (own, shuffled)]
        np.testing.assert_allclose(frobenius[1], frobenius[0][:, :, :, :1], rtol=1e-12)
        assert np.isnan(shuffled["logit_std"]).all()


def test_gaussian_heads_have_the_logit_spread_of_the_true_ones(baselines: dict[tuple[str, str], Group]) -> None:
    for arm in PAIR:
        own, drawn = baselines["own", arm], baselines["gaussian", arm]
        np.testing.assert_allclose(drawn["logit_std"], own["logit_std"][:, :, :, :1], rtol=1e-9)
        assert (drawn["effective_rank"] != own["effective_rank"][:, :, :, :1]).all()
        assert len(np.unique(drawn["effective_rank"])) == drawn["effective_rank"].size


def test_logits_are_signed_of_at_most_the_rank_of_a_head_and_those_of_the_model(
    small: Run, described: FileDescription, baselines: dict[tuple[str, str], Group]
) -> None:
    for arm in PAIR:
        group = baselines["logits", arm]
        assert group["numerical_rank"].max() <= HEAD_DIM
        assert group["numerical_rank"].min() >= 1
        for cell in CELLS:
            values = np.linalg.svd(logits_by_hand(small, arm, cell), compute_uv=False)
            stored = group["singular_values"][0, 0, 0, 0, *cell]
            np.testing.assert_allclose(stored, values, atol=1e-5 * values[0])
    for group_of in described.baselines:
        if group_of.baseline == "logits":
            assert {"attention_entropy", "mean_ipr", "logit_std"} == group_of.unavailable.keys()
            assert "some are negative" in group_of.unavailable["mean_ipr"]


def test_a_baseline_depends_on_its_matrix_and_not_on_what_else_is_measured(
    alone: Run, baselines: dict[tuple[str, str], Group], tmp_path: Path
) -> None:
    names = ("gaussian", "shuffled")
    measured(alone, tmp_path / "s.h5", samples=2, regions=("full",), layers=(1,), heads=(2,), baselines=names)
    for name in names:
        part, whole = read_group(tmp_path / "s.h5", f"baselines/{name}/unilm"), baselines[name, "unilm"]
        assert np.array_equal(part["effective_rank"], whole["effective_rank"][:, :, :1, :, :, 1:, 2:])


def test_baselines_are_planned_for_init_is_of_one_step_and_uniform_is_one_matrix(small: Run) -> None:
    def matrices_of(**config: Any) -> int:
        return plan_measurement(small, MeasureConfig(samples=1, regions=("full",), **config)).matrices

    one = 2 * LAYERS * HEADS  # of one mask of both arms
    assert matrices_of() == 2 * one
    assert matrices_of(baselines=("uniform",)) == 2 * one
    assert matrices_of(baselines=("shuffled", "logits")) == 4 * one
    assert matrices_of(checkpoints="all") == 8 * one
    assert matrices_of(checkpoints="all", baselines=("init",)) == 9 * one
    assert matrices_of(checkpoints="all", baselines=BASELINES) == (8 + 1 + 3 * 4) * one


def test_progress_reaches_the_plan_whatever_is_measured_beside_the_arms(alone: Run, tmp_path: Path) -> None:
    heard: list[Progress] = []
    config: dict[str, Any] = {
        "samples": 1, "regions": ("full",), "checkpoints": "every:8", "baselines": ("init", "uniform", "logits"),
    }  # fmt: skip
    measured(alone, tmp_path / "s.h5", on_progress=heard.append, **config)
    done = [progress.done for progress in heard]
    assert done == sorted(done)
    assert done[-1] == heard[-1].total == plan_measurement(alone, MeasureConfig(**config)).matrices
    assert heard[-1].label == "unilm, seed 0, step 0, layer 1, init"


# Layer outputs.


def test_layer_outputs_have_the_singular_values_of_what_each_layer_adds(small: Run, tmp_path: Path) -> None:
    measured(
        small, tmp_path / "s.h5", samples=2, regions=("full",), heads=(0,), layer_output=True, checkpoints="every:12"
    )
    for arm in PAIR:
        group = read_group(tmp_path / "s.h5", arm)
        for index, step in enumerate((0, 12)):
            model = load_model(small.directory.path, arm=arm, seed=0, step=step)
            with torch.no_grad(), capture(model, outputs=True) as captured:
                model(torch.from_numpy(tokens_of(small)[:2].copy()), P)
            for layer, factors in enumerate(captured.layers):
                assert factors.output is not None
                for sequence, output in enumerate(factors.output.double().numpy()):
                    values = np.linalg.svd(output, compute_uv=False)
                    stored = group["layer_output_singular_values"][0, index, sequence, layer]
                    np.testing.assert_allclose(stored, values, rtol=0, atol=1e-6 * values[0])
                    rank = group["layer_output_effective_rank"][0, index, sequence, layer]
                    assert rank == pytest.approx(effective_rank(values), rel=1e-5)
    described = describe(tmp_path / "s.h5").groups[0]
    assert "effective_rank" in described.layer_measures


# Functional rank.


def test_the_functional_group_holds_what_functional_rank_finds(small: Run, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ranks": (1, 8, N), "scopes": ("all", "layer", "head"), "samples": 2}
    found = measured(
        small, tmp_path / "s.h5", samples=2, regions=("full",), functional_ranks=(N, 8, 1),
        functional_scopes=("head", "all", "layer"),
    )  # fmt: skip
    expected = functional_rank(small, **settings)
    assert found.functional is not None
    assert describe(tmp_path / "s.h5").functional == PAIR
    for arm in PAIR:
        group, of_arm, kept = (
            read_group(tmp_path / "s.h5", f"functional/{arm}"),
            expected.arm(arm),
            found.functional.arm(arm),
        )
        assert group["kept_rank"].tolist() == [1, 8, N]
        assert group["cut"].tolist() == list(CUTS)
        np.testing.assert_array_equal(group["loss_uncut"], of_arm.loss_uncut)
        np.testing.assert_array_equal(group["extra_loss_all"], of_arm.extra_loss["all"])
        np.testing.assert_array_equal(group["extra_loss_layer"], of_arm.extra_loss["layer"].mean(axis=1))
        np.testing.assert_array_equal(group["extra_loss_head"], of_arm.extra_loss["head"].mean(axis=1))
        np.testing.assert_array_equal(kept.extra_loss["all"], of_arm.extra_loss["all"])
        np.testing.assert_array_equal(group["cut_error"], of_arm.cut_error.mean(axis=1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"functional_ranks": (0,)}, r"ranks must be within 1\.\.32 \(sequence_length\), got \[0\]"),
        ({"functional_ranks": (1, 33)}, r"ranks must be within 1\.\.32"),
        ({"prefix_length": N}, "prefix_length must be below 32 to leave tokens to predict, got 32"),
        (
            {"sequence_length": 20},
            r"sequence_length must be 32 \(the run's\) for functional rank, got 20\. Measure the two",
        ),
    ],
)
def test_cuts_that_this_run_does_not_have_are_refused_before_anything_is_measured(
    config: dict[str, Any], message: str, small: Run, tmp_path: Path
) -> None:
    heard: list[Progress] = []
    settings = MeasureConfig(samples=1, functional_scopes=("all",), **config)
    with pytest.raises(ConfigurationError, match=message):
        measure_run(small, settings, tmp_path / "s.h5", device=CPU, command="it", on_progress=heard.append)
    assert (heard, list(tmp_path.iterdir())) == ([], [])
    with pytest.raises(ConfigurationError, match=message):
        plan_functional(RunSource(small, CPU), settings)


def test_no_cut_is_planned_unless_its_scope_is_named(small: Run) -> None:
    assert plan_functional(RunSource(small, CPU), MeasureConfig(functional_ranks=(1,))) is None
    plan = plan_functional(
        RunSource(small, CPU), MeasureConfig(functional_ranks=(1, 4), functional_scopes=("layer",), samples=2)
    )
    assert plan is not None
    assert (plan.passes, len(plan.sequences)) == (2 * LAYERS * 2 * 2, 2)  # arms, layers, ranks, cuts
    with pytest.raises(ConfigurationError, match=r"functional_scopes must be among all, layer, head, got \['heads'\]"):
        MeasureConfig(functional_scopes=("heads",))  # type: ignore[arg-type]


# The two arms.


@pytest.mark.parametrize(
    ("arms", "pair"),
    [
        (("gpt", "unilm"), ("gpt", "unilm")),
        (("unilm", "gpt-full", "gpt"), ("gpt", "unilm")),
        (("gpt-full", "unilm"), None),
        (("gpt", "gpt-full"), None),
    ],
)
def test_only_a_causal_and_a_prefix_arm_with_one_objective_are_compared(
    arms: tuple[str, ...], pair: tuple[str, str] | None, small: Run
) -> None:
    assert set(arms) <= set(ALL_ARMS)
    assert causal_and_prefix(arms_of(replace(small, config=run_config(arms, (0,))))) == pair


# Sizes.


@pytest.mark.parametrize(
    ("n", "p", "sizes"),
    [
        (N, P, (32, 16, 31, 15)),
        (N, 1, (32, 1, 31)),
        (N, 0, (32, 31)),
        (N, N, (32, 32, 31, 31)),
        (20, None, (20, 10, 19, 9)),
        (1, 0, (1,)),
        (2, 1, (2, 1, 1)),
    ],
)
def test_a_plan_has_the_regions_that_hold_a_matrix_with_their_sizes(
    n: int, p: int | None, sizes: tuple[int, ...], small: Run
) -> None:
    plan = plan_measurement(small, MeasureConfig(sequence_length=n, prefix_length=p, samples=1))
    assert tuple(plan.size(region) for region in plan.regions) == sizes
    assert set(plan.methods) == set(plan.regions)
    assert plan.matrices == len(sizes) * 2 * 2 * LAYERS * HEADS
    assert plan.sequences.shape == (1, n)


def test_measures_of_every_kind_are_known_to_a_plan(small: Run) -> None:
    plan = plan_measurement(small, MeasureConfig(measures=tuple(MEASURES), samples=1, method="svd"))
    assert {method for method, _ in plan.methods.values()} == {"svd"}
