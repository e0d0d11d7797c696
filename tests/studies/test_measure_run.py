"""A measured run against attention written out in NumPy, and what a measurement leaves, selects and refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matrices
import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from small_run import ALL_ARMS, copy_of, new_run, run_config, trained_run
from tiny import CPU, STEPS, N

from rankkit.data.evaluation import evaluation_sequences
from rankkit.errors import ConfigurationError, OutputExistsError, RunError
from rankkit.spectra import DEFAULT_MEASURES, MEASURES
from rankkit.store import METHODS, STATUSES, describe, read_group, read_root
from rankkit.studies import Decomposition, MeasureConfig, Run, load_model, measure_run, plan_measurement
from rankkit.studies.decomposition import EFFECTS, effects
from rankkit.studies.measuring.measure import MeasurementInterruptedError, Progress
from rankkit.studies.measuring.plan import expected_seconds
from rankkit.studies.verify import verify_file
from rankkit.training import read_facts

P = N // 2
REGIONS = ("full", "prefix_block")
SUFFIX_ARMS = ("gpt", "unilm")


def measure(run: Run, path: Path, **config: Any) -> Decomposition | None:
    config = {"regions": REGIONS} | config
    return measure_run(run, MeasureConfig(**config), path, device=CPU, command="rankkit spectrum it").decomposition


def evaluated(run: Run) -> NDArray[np.int64]:
    return evaluation_sequences(run.tokens(), count=3, sequence_length=N).tokens


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One pair under one seed, for what does not depend on more."""
    return trained_run(tmp_path_factory.mktemp("small") / "run", run_config(seeds=(0,)))


@pytest.fixture(scope="module")
def groups(measured: tuple[Path, Decomposition]) -> dict[str, dict[str, NDArray[Any]]]:
    return {arm: read_group(measured[0], arm) for arm in ALL_ARMS}


# Values.


def attention_by_hand(
    run: Run, arm: str, seed: int, sequence: int, layer: int, head: int
) -> dict[tuple[str, str], Any]:
    """By region and applied mask: the float64 attention of one head, from a forward pass in NumPy."""
    model = load_model(run.directory.path, arm=arm, seed=seed)
    own = "causal" if arm != "unilm" else "prefix"
    swapped = {"causal": "prefix", "prefix": "causal"}[own]
    masks = {"own": matrices.allowed(own, N, P), "swapped": matrices.allowed(swapped, N, P)}  # type: ignore[arg-type]
    forward = reference.forward(model, evaluated(run)[sequence].tolist(), masks["own"])
    logits = forward.queries[layer][head] @ forward.keys[layer][head].T / math.sqrt(model.config.head_dim)
    np.testing.assert_allclose(matrices.softmax(logits, masks["own"]), forward.attention[layer][head], atol=1e-12)
    whole = {("full", applied): matrices.softmax(logits, mask) for applied, mask in masks.items()}
    block = {
        ("prefix_block", applied): matrices.softmax(logits[:P, :P], mask[:P, :P]) for applied, mask in masks.items()
    }  # fmt: skip
    return whole | block


@pytest.mark.parametrize(("arm", "seed", "cell"), [
    ("gpt", 0, (0, 0, 0)), ("gpt", 1, (2, 1, 2)), ("unilm", 0, (1, 0, 1)), ("unilm", 1, (2, 1, 0)),
    ("gpt-full", 1, (0, 1, 1)),
])  # fmt: skip
def test_every_region_and_mask_holds_the_spectrum_of_attention_written_out_in_numpy(
    arm: str, seed: int, cell: tuple[int, int, int], trained: Run, groups: dict[str, dict[str, NDArray[Any]]]
) -> None:
    group = groups[arm]
    by_hand = attention_by_hand(trained, arm, seed, *cell)
    for (r, region), (a, applied) in product(enumerate(REGIONS), enumerate(("own", "swapped"))):
        matrix, at = by_hand[region, applied], (seed, 0, r, a, *cell)
        size = len(matrix)
        values = np.linalg.svd(matrix, compute_uv=False)
        tolerance = 2e-5  # a float32 forward pass against one in float64, before the logits
        np.testing.assert_allclose(group["singular_values"][at][:size], values, atol=tolerance)
        assert np.isnan(group["singular_values"][at][size:]).all()
        shares = values / values.sum()
        rank = math.exp(-(shares * np.log(shares)).sum())
        entropy = -(matrix[matrix > 0] * np.log(matrix[matrix > 0])).sum() / size
        assert group["effective_rank"][at] == pytest.approx(rank, rel=1e-4)
        assert group["attention_entropy"][at] == pytest.approx(entropy, rel=1e-4)
        assert group["sink_position"][at] == matrix.sum(axis=0).argmax()
        assert group["stable_rank"][at] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-4)


def test_the_prefix_block_of_gpt_under_its_own_mask_is_its_causal_corner_and_full_under_the_other(
    trained: Run, groups: dict[str, dict[str, NDArray[Any]]]
) -> None:
    by_hand = attention_by_hand(trained, "gpt", 0, 1, 0, 2)
    assert np.array_equal(by_hand["prefix_block", "own"], by_hand["full", "own"][:P, :P])
    assert np.triu(by_hand["prefix_block", "own"], 1).max() == 0
    assert by_hand["prefix_block", "swapped"].min() > 0
    diagonal = np.diagonal(by_hand["prefix_block", "own"])  # a triangular block has its determinant on its diagonal
    sigma = groups["gpt"]["singular_values"][0, 0, 1, 0, 1, 0, 2, :P]
    assert np.log(sigma).sum() == pytest.approx(np.log(diagonal).sum(), rel=1e-3)


def test_arms_whose_weights_are_those_of_step_0_differ_in_the_mask_alone(tmp_path: Path) -> None:
    """With a learning rate of nearly nothing both arms stay one model: learned effects vanish, mask effects remain."""
    run = trained_run(tmp_path / "run", run_config(seeds=(0, 1), learning_rate=1e-12, weight_decay=0.0, steps=2))
    found = measure(run, tmp_path / "s.h5")
    assert found is not None
    for row in found.rows["effective_rank"]:
        if row.region == "prefix_block" and row.layer != 1:
            assert abs(row.effects["mask_effect"].mean) > 1
        if row.layer == 0:  # deeper layers see what the mask did to the ones below, which counts as learned
            assert abs(row.effects["learned_effect"].mean) < 1e-4
            assert abs(row.effects["interaction"].mean) < 1e-4


# The file.


def test_a_measured_file_verifies_and_says_where_it_comes_from(
    trained: Run, measured: tuple[Path, Decomposition], groups: dict[str, dict[str, NDArray[Any]]]
) -> None:
    path, _ = measured
    assert verify_file(path) == []
    root = read_root(path)
    assert root.command == "rankkit spectrum test"
    assert root.configuration == trained.directory.configuration.read_text()
    assert '"matched": true' in root.certificate
    assert root.attributes["threads"] == 1
    for arm, group in groups.items():
        for index, seed in enumerate((0, 1)):
            facts = read_facts(trained.directory.checkpoint(arm, seed, STEPS))
            assert group["checkpoint_sha256"][index, 0] == facts.weights_sha256


def test_axes_are_labelled_and_sequences_are_those_of_the_evaluation(
    trained: Run, groups: dict[str, dict[str, NDArray[Any]]]
) -> None:
    for group in groups.values():
        assert group["seed"].tolist() == [0, 1]
        assert group["step"].tolist() == [STEPS]
        assert group["region"].tolist() == list(REGIONS)
        assert group["applied_mask"].tolist() == ["own", "swapped"]
        assert (group["layer"].tolist(), group["head"].tolist()) == ([0, 1], [0, 1, 2])
        assert np.array_equal(group["tokens"], evaluated(trained))
        assert group["prefix_length"].tolist() == [P] * 3
        assert group["rows"].tolist() == group["columns"].tolist() == [[N] * 3, [P] * 3]
        assert set(DEFAULT_MEASURES) <= group.keys()
        assert (group["status"] == STATUSES.index("ok")).all()
        assert (group["method"] == METHODS.index("gram")).all()


def test_the_last_prefix_block_is_flagged_untrained_in_suffix_arms_alone(
    groups: dict[str, dict[str, NDArray[Any]]],
) -> None:
    for arm, group in groups.items():
        assert group["untrained"].tolist() == [[0, 0], [0, int(arm in SUFFIX_ARMS)]]


def test_a_file_opens_in_xarray_with_its_labels(measured: tuple[Path, Decomposition]) -> None:
    xarray = pytest.importorskip("xarray")
    path, found = measured
    with xarray.open_dataset(path, engine="h5netcdf", group="unilm") as dataset:
        values = dataset["effective_rank"]
        assert values.dims == ("seed", "step", "region", "applied_mask", "sequence", "layer", "head")
        own = values.sel(region="prefix_block", applied_mask="own", layer=0, step=STEPS)
        (row,) = [row for row in found.rows["effective_rank"] if (row.region, row.layer) == ("prefix_block", 0)]
        assert float(own.mean()) == pytest.approx(row.prefix, rel=1e-12)
        assert dataset.attrs["mask"] == "prefix"
    with xarray.open_dataset(path, engine="h5netcdf", group="comparison") as comparison:
        gap = comparison["gap"].sel(measure="effective_rank", region="prefix_block", layer=0, bound="mean")
        assert float(gap) == pytest.approx(row.effects["gap"].mean, rel=1e-12)


def test_the_comparison_on_file_is_what_the_arms_on_file_give(
    measured: tuple[Path, Decomposition], groups: dict[str, dict[str, NDArray[Any]]]
) -> None:
    path, found = measured
    comparison = read_group(path, "comparison")
    compared = [name for name in DEFAULT_MEASURES if name != "sink_position"]  # the name of a key has no mean
    assert comparison["measure"].tolist() == compared
    for name in EFFECTS:
        assert np.array_equal(comparison[name], found.bounds(name), equal_nan=True)
    for m, measured_by in enumerate(compared):
        gpt, unilm = (groups[arm][measured_by].mean(axis=(0, 1, 4, 6)) for arm in SUFFIX_ARMS)
        expected = effects(gpt[:, 0], gpt[:, 1], unilm[:, 0], unilm[:, 1])
        for name in EFFECTS:
            np.testing.assert_allclose(comparison[name][m, ..., 0], expected[name], rtol=1e-9, atol=1e-12)
        total = comparison["mask_effect"][m, ..., 0] + comparison["learned_effect"][m, ..., 0]
        np.testing.assert_allclose(total, comparison["gap"][m, ..., 0], rtol=1e-9, atol=1e-12)


def test_without_a_pair_or_a_measure_that_has_a_mean_there_is_no_comparison(small: Run, tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", run_config(("unilm",), (0,)))
    assert measure(run, tmp_path / "alone.h5", samples=1) is None
    assert measure(small, tmp_path / "keys.h5", samples=1, measures=("sink_position",)) is None
    for name in ("alone.h5", "keys.h5"):
        assert describe(tmp_path / name).comparison is None
        assert verify_file(tmp_path / name) == []


# Selections.


def test_a_selection_holds_the_same_numbers_for_what_it_selects(
    trained: Run, groups: dict[str, dict[str, NDArray[Any]]], tmp_path: Path
) -> None:
    measure(
        trained, tmp_path / "s.h5", layers=(1,), heads=(2, 0), samples=2, regions=("prefix_block",),
        measures=tuple(MEASURES), method="gram", workers=2, memory_budget=1,
    )  # fmt: skip
    for arm, whole in groups.items():
        part = read_group(tmp_path / "s.h5", arm)
        assert (part["layer"].tolist(), part["head"].tolist()) == ([1], [0, 2])
        assert part["region"].tolist() == ["prefix_block"]
        assert np.array_equal(part["tokens"], evaluated(trained)[[0, 1]])
        for name in ("singular_values", "floor_arithmetic", "floor_model", "resolved", *DEFAULT_MEASURES):
            expected = whole[name][:, :, 1:, :, [0, 1]][..., 1:2, [0, 2], :P] if name == "singular_values" else (
                whole[name][:, :, 1:, :, [0, 1]][..., 1:2, [0, 2]]
            )  # fmt: skip
            assert np.array_equal(part[name], expected, equal_nan=True), name
    assert verify_file(tmp_path / "s.h5") == []


def test_samples_are_spread_over_the_evaluation_and_default_to_what_there_is(trained: Run) -> None:
    assert len(plan_measurement(trained, MeasureConfig()).sequences) == 3
    (middle,) = plan_measurement(trained, MeasureConfig(samples=1)).sequences
    assert middle.tolist() in evaluated(trained).tolist()
    with pytest.raises(
        ConfigurationError, match=r"samples must be at most 3 \(evaluation sequences of this run\), got 4"
    ):
        plan_measurement(trained, MeasureConfig(samples=4))


def test_a_run_with_many_sequences_is_measured_in_batches_of_the_same_numbers(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", run_config(seeds=(0,), evaluation_sequences=19))
    measure(run, tmp_path / "many.h5", measures=("effective_rank",), samples=19)
    measure(run, tmp_path / "few.h5", measures=("effective_rank",), samples=1)
    spread = plan_measurement(run, MeasureConfig(samples=4))
    windows = evaluation_sequences(run.tokens(), count=19, sequence_length=N)
    assert np.array_equal(spread.sequences, windows.tokens[[0, 4, 9, 14]])
    assert np.array_equal(spread.documents, windows.documents[[0, 4, 9, 14]])
    many, few = (read_group(tmp_path / name, "gpt") for name in ("many.h5", "few.h5"))
    assert many["tokens"].shape == (19, N)
    np.testing.assert_allclose(many["effective_rank"][:, :, :, :, :1], few["effective_rank"], rtol=1e-5)
    assert np.isfinite(many["effective_rank"]).all()


def test_an_empty_prefix_has_no_prefix_block(small: Run, tmp_path: Path) -> None:
    found = measure(small, tmp_path / "s.h5", prefix_length=0, samples=1)
    assert found is not None
    assert found.regions == ("full",)
    group = read_group(tmp_path / "s.h5", "unilm")
    assert group["region"].tolist() == ["full"]
    assert np.array_equal(group["singular_values"][:, :, :, 0], group["singular_values"][:, :, :, 1])
    with pytest.raises(
        ConfigurationError, match="regions must exist, got prefix_block with 32 tokens and a prefix of 0"
    ):
        plan_measurement(small, MeasureConfig(prefix_length=0, regions=("prefix_block",)))


def test_a_prefix_of_everything_makes_the_block_the_whole_matrix(small: Run, tmp_path: Path) -> None:
    measure(small, tmp_path / "s.h5", prefix_length=N, samples=1)
    values = read_group(tmp_path / "s.h5", "unilm")["singular_values"]
    assert np.array_equal(values[:, :, 0], values[:, :, 1])


@pytest.mark.parametrize(("length", "prefix"), [(20, 10), (48, 24)])
def test_another_length_keeps_the_prefixs_share_and_may_exceed_training_with_rotary_positions(
    length: int, prefix: int, small: Run, tmp_path: Path
) -> None:
    measure(small, tmp_path / "s.h5", sequence_length=length, samples=2)
    group = read_group(tmp_path / "s.h5", "gpt")
    assert group["tokens"].shape == (2, length)
    assert group["prefix_length"].tolist() == [prefix] * 2
    assert verify_file(tmp_path / "s.h5") == []


def test_learned_positions_end_where_training_ended(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", run_config(seeds=(0,), model={"position": "learned"}))
    with pytest.raises(ConfigurationError, match="sequence_length must be at most 32 with learned positions, got 33"):
        plan_measurement(run, MeasureConfig(sequence_length=33))
    assert plan_measurement(run, MeasureConfig(sequence_length=32)).sequence_length == 32


# Refusals.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": (2,)}, r"layers must be within 0\.\.1, got \[2\]\. Choose layers that there are"),
        ({"layers": ()}, r"layers must be within 0\.\.1, got \[\]"),
        ({"heads": (0, 3)}, r"heads must be within 0\.\.2, got \[0, 3\]"),
        ({"heads": (-1,)}, r"heads must be within 0\.\.2, got \[-1\]"),
        ({"prefix_length": 33}, r"prefix_length must be between 0 and 32 \(sequence_length\), got 33"),
        ({"prefix_length": -1}, r"prefix_length must be between 0 and 32 \(sequence_length\), got -1"),
    ],
)
def test_what_a_run_does_not_have_is_refused_before_anything_is_computed(
    config: dict[str, Any], message: str, trained: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        measure(trained, tmp_path / "s.h5", **config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"regions": ("suffix",)}, r"regions must be among full, prefix_block, .*, got \['suffix'\]"),
        ({"regions": ()}, "regions must hold at least one name, got none"),
        ({"regions": ("full", "full")}, r"regions must hold no name twice, got \['full', 'full'\]"),
        ({"measures": ()}, "measures must hold at least one name, got none"),
        ({"measures": ("stable_rank", "stable_rank")}, "measures must hold no name twice"),
        ({"measures": ("rank",)}, "measure must be one of numerical_rank, .*, got 'rank'"),
    ],
)
def test_a_measurement_that_makes_no_sense_is_refused_when_it_is_described(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MeasureConfig(**config)


def test_arms_must_have_finished_the_same_seeds(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must have finished the same seeds in every arm, .*--resume"):
        plan_measurement(new_run(tmp_path / "new"), MeasureConfig())
    run = copy_of(trained, tmp_path / "run")
    run.directory.evaluation("unilm", 1).unlink()
    with pytest.raises(RunError, match=r"'gpt': \(0, 1\), 'unilm': \(0,\)"):
        plan_measurement(run, MeasureConfig())
    for arm in ("gpt", "gpt-full"):
        run.directory.evaluation(arm, 1).unlink()
    assert plan_measurement(run, MeasureConfig()).units == tuple((arm, 0) for arm in ALL_ARMS)


# What a measurement leaves behind.


@pytest.mark.parametrize("after", [1, 5])
def test_an_interruption_leaves_finished_slabs_alone_and_the_old_file_as_it_was(
    after: int, small: Run, tmp_path: Path
) -> None:
    heard: list[Progress] = []
    config = MeasureConfig(samples=1)

    def interrupted(path: Path, *, force: bool) -> None:
        heard.clear()
        measure_run(
            small, config, path, device=CPU, command="it", force=force, on_progress=heard.append,
            stop=lambda: len(heard) >= after,
        )  # fmt: skip

    with pytest.raises(MeasurementInterruptedError, match=f"was interrupted; {after} finished slabs are kept"):
        interrupted(tmp_path / "s.h5", force=False)
    assert len(heard) == after
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5.journal"]
    with pytest.raises(OutputExistsError, match="--resume"):
        interrupted(tmp_path / "s.h5", force=False)
    (tmp_path / "s.h5").write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="must not exist yet"):
        interrupted(tmp_path / "s.h5", force=False)
    with pytest.raises(MeasurementInterruptedError):
        interrupted(tmp_path / "s.h5", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.h5", "s.h5.journal"]
    assert (tmp_path / "s.h5").read_bytes() == b"old"


def test_damaged_weights_leave_no_file(small: Run, tmp_path: Path) -> None:
    run = copy_of(small, tmp_path / "run")
    file = run.directory.checkpoint("gpt", 0, STEPS) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=r"model\.safetensors must match the hash"):
        measure(run, tmp_path / "out" / "s.h5", samples=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_counts_every_matrix_once_up_to_the_plan(small: Run, tmp_path: Path) -> None:
    heard: list[Progress] = []
    config = MeasureConfig(samples=2)
    plan = plan_measurement(small, config)
    assert plan.matrices == 2 * 1 * 4 * 2 * 2 * 2 * 3  # arms, seeds, regions, masks, samples, layers, heads
    measure_run(small, config, tmp_path / "s.h5", device=CPU, command="it", on_progress=heard.append)
    done = [progress.done for progress in heard]
    assert done == sorted(set(done))
    assert done[-1] == plan.matrices
    assert {progress.total for progress in heard} == {plan.matrices}
    assert (heard[0].label, heard[-1].label) == ("gpt, seed 0, step 12, layer 0", "unilm, seed 0, step 12, layer 1")


def test_the_expected_time_grows_with_the_matrices(trained: Run) -> None:
    config = MeasureConfig(samples=1, workers=1)
    plan = plan_measurement(trained, config)
    one = expected_seconds(plan, config)
    assert 0 < one < 60
    many = replace(plan, arms=plan.arms * 1000)
    assert expected_seconds(many, config) > 20 * one


@pytest.fixture(autouse=True)
def _no_gradients_are_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    assert torch.is_grad_enabled()
