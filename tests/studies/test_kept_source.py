"""Everything can be measured again from the factors that a file kept, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured_run import FAST, FEW, measured
from small_run import trained_run
from tiny import CPU

from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.operators import AttentionOperator
from rankkit.store import describe, read_group, read_kept
from rankkit.studies import MeasureConfig, Measured, Run, load_model, measure_attention, plan_measurement
from rankkit.studies.measuring.kept_source import kept_source
from rankkit.studies.measuring.measure import check_kept, kept_bytes
from rankkit.studies.measuring.source import Place
from rankkit.studies.verify import verify_file


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished pair."""
    return trained_run(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="module")
def kept(small: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measured]:
    """A measurement with its factors."""
    path = tmp_path_factory.mktemp("kept") / "kept.h5"
    return path, measured(small, path, keep_qk=True, checkpoints="all", samples=3)


def again(source: Path, path: Path, **config: Any) -> Measured:
    """Measure a file."""
    settings = MeasureConfig(**{"measures": FEW, "workers": 1, **config})
    with kept_source(source, CPU) as opened:
        found = measure_attention(opened, settings, path, device=CPU, command="rankkit spectrum kept.h5")
    assert verify_file(path) == []
    return found


def test_a_file_gives_the_numbers_that_its_run_gave(kept: tuple[Path, Measured], tmp_path: Path) -> None:
    path, first = kept
    second = again(path, tmp_path / "again.h5", checkpoints="all")
    for group in describe(path).groups:
        one, other = read_group(path, group.name), read_group(tmp_path / "again.h5", group.name)
        assert set(one) - set(other) == {"feature"}
        for name in other:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{group.name}/{name}")
    for name in ("comparison", "comparison/by_step"):
        one, other = read_group(path, name), read_group(tmp_path / "again.h5", name)
        for variable in one:
            np.testing.assert_array_equal(one[variable], other[variable], err_msg=f"{name}/{variable}")
    assert first.decomposition is not None
    assert second.decomposition is not None
    assert second.decomposition.arms == first.decomposition.arms


def test_other_measures_methods_and_parts_can_be_asked_of_it(
    kept: tuple[Path, Measured], small: Run, tmp_path: Path
) -> None:
    config: dict[str, Any] = {
        "measures": ("stable_rank", "mean_ipr"), "method": "svd", "layers": (1,), "heads": (0, 2), "seeds": (1,),
        "samples": 2, "regions": ("prefix_block",), "baselines": ("shuffled", "gaussian"),
    }  # fmt: skip
    again(kept[0], tmp_path / "of_file.h5", **config)
    measured(small, tmp_path / "of_run.h5", **config)
    for name in ("gpt", "unilm", "baselines/gaussian/unilm"):
        one, other = read_group(tmp_path / "of_file.h5", name), read_group(tmp_path / "of_run.h5", name)
        assert one["stable_rank"].size > 0
        # two of three samples are others than two of all: only where both have the first one the numbers agree
        np.testing.assert_array_equal(one["singular_values"][:, :, :, :, 0], other["singular_values"][:, :, :, :, 0])
        np.testing.assert_array_equal(one["mean_ipr"][:, :, :, :, 0], other["mean_ipr"][:, :, :, :, 0])


def test_estimates_without_the_matrix_are_the_same_too(kept: tuple[Path, Measured], small: Run, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "method": "matrix-free", "matrix_free": FAST, "layers": (0,), "regions": ("full",), "samples": 1,
    }  # fmt: skip
    again(kept[0], tmp_path / "of_file.h5", **config)
    measured(small, tmp_path / "of_run.h5", **config)
    one, other = read_group(tmp_path / "of_file.h5", "unilm"), read_group(tmp_path / "of_run.h5", "unilm")
    same = np.array_equal(one["tokens"], other["tokens"])
    assert same == np.array_equal(one["effective_rank_lower"], other["effective_rank_lower"])


def test_kept_attention_is_measured_as_it_is_and_says_what_it_lacks(small: Run, tmp_path: Path) -> None:
    measured(small, tmp_path / "kept.h5", keep_attention=True, samples=2)
    found = again(tmp_path / "kept.h5", tmp_path / "again.h5")
    assert found.by_step == {}
    assert (found.plan.regions, found.plan.applied) == (("full",), ("own",))
    one, other = read_group(tmp_path / "kept.h5", "gpt"), read_group(tmp_path / "again.h5", "gpt")
    np.testing.assert_allclose(other["effective_rank"][:, :, 0, 0], one["effective_rank"][:, :, 0, 0], rtol=1e-5)
    with kept_source(tmp_path / "kept.h5", CPU) as source:
        for config, message in (
            ({"regions": ("prefix_block",)}, "regions must hold full"),
            ({"baselines": ("uniform",)}, "baselines must have queries and keys"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                source.plan(MeasureConfig(**config))


@pytest.mark.parametrize("method", ["svd", "matrix-free"])
def test_kept_attention_brings_its_floor_along_and_adds_that_of_its_own_rounding(
    method: str, small: Run, tmp_path: Path
) -> None:
    fixed: dict[str, Any] = {"method": method, "matrix_free": FAST, "samples": 1, "layers": (0,), "regions": ("full",)}
    measured(small, tmp_path / "kept.h5", keep_attention=True, **fixed)
    again(tmp_path / "kept.h5", tmp_path / "again.h5", **fixed)
    for name in ("gpt", "unilm"):
        one, other = read_group(tmp_path / "kept.h5", name), read_group(tmp_path / "again.h5", name)
        first = {key: one[key][:, :, :, :1] for key in ("floor_model", "singular_values", "mean_ipr_error")}
        rounding = 2.0**-24 * first["singular_values"][..., 0]
        np.testing.assert_allclose(other["floor_model"], first["floor_model"] + rounding, rtol=1e-6)
        assert (other["mean_ipr_error"] > first["mean_ipr_error"]).all()
    if method == "svd":
        assert (other["effective_rank_error"] > one["effective_rank_error"][:, :, :, :1]).all()


def test_kept_attention_keeps_the_precision_of_the_model(small: Run, tmp_path: Path) -> None:
    measured(small, tmp_path / "kept.h5", keep_attention=True, samples=1)
    with kept_source(tmp_path / "kept.h5", CPU) as source:
        source._root.attributes["precision"] = "bfloat16"  # type: ignore[index]
        assert source.facts.precision == torch.bfloat16


def test_kept_attention_without_its_floor_is_refused(small: Run, tmp_path: Path) -> None:
    measured(small, tmp_path / "kept.h5", keep_attention=True, samples=1, regions=("prefix_block",))
    with (
        kept_source(tmp_path / "kept.h5", CPU) as source,
        pytest.raises(SpectrumFileError, match=r"gpt must hold the region full, .*got prefix_block\. Measure the run"),
    ):
        source.plan(MeasureConfig())


def test_kept_factors_of_eager_attention_have_the_floor_of_its_precision(kept: tuple[Path, Measured]) -> None:
    with kept_source(kept[0], CPU) as source:
        found: list[AttentionOperator] = []

        def receive(_: int, parts: Any, __: Any) -> None:
            found.extend(parts)

        plan = source.plan(MeasureConfig(layers=(0,)))
        place = Place("gpt", plan.arms[0].seeds[0], plan.steps[0], 0, 0)
        source.visit(plan, place, slice(0, 1), receive, outputs=False)
        source._groups["gpt"].attributes["capture"] = "eager: asked for"  # type: ignore[index]
        source.visit(plan, place, slice(0, 1), receive, outputs=False)
    assert [operator.accumulation for operator in found] == [None, torch.float32]


def test_kept_factors_are_those_of_the_model(kept: tuple[Path, Measured], small: Run) -> None:
    import rankkit

    plan = kept[1].plan
    model = load_model(small.directory.path, arm="unilm", seed=1)
    with rankkit.capture(model) as attention, torch.no_grad():
        model(torch.from_numpy(plan.sequences), plan.prefix_length)
    operators: list[AttentionOperator] = list(attention)
    found = read_kept(kept[0], "unilm", {"seed": 1, "step": len(plan.steps) - 1, "sequence": 2, "layer": 1})
    expected = operators[1 * len(plan.sequences) + 2]
    np.testing.assert_array_equal(found["queries"], expected.query.numpy())
    np.testing.assert_array_equal(found["keys"], expected.key.numpy())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layer_output": True}, "layer_output must have the model"),
        ({"baselines": ("init",)}, "baselines must not hold init without the model"),
        ({"sequence_length": 16}, "sequence_length must be 32, with which the factors were kept, got 16"),
        ({"prefix_length": 3}, "prefix_length must be 16, with which the factors were kept, got 3"),
        ({"samples": 4}, "samples must be at most 3"),
        ({"layers": (2,)}, "layers must be within 0..1"),
        ({"seeds": (5,)}, "seeds must be within 0..1, got"),
        ({"shard": (0, 2)}, "shard must be of at most 1 here"),
        ({"functional_scopes": ("all",)}, "functional rank must have the model"),
    ],
)
def test_what_needs_the_model_is_refused_by_name(
    config: dict[str, Any], message: str, kept: tuple[Path, Measured], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        again(kept[0], tmp_path / "s.h5", **config)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_kept_nothing_says_how_to_keep(small: Run, tmp_path: Path) -> None:
    measured(small, tmp_path / "s.h5", samples=1)
    with pytest.raises(SpectrumFileError, match="--keep-qk"), kept_source(tmp_path / "s.h5", CPU):
        pass


def test_more_than_the_limit_is_kept_on_purpose_alone(small: Run, tmp_path: Path) -> None:
    config = MeasureConfig(keep_qk=True, keep_attention=True, samples=2)
    plan = plan_measurement(small, config)
    model = small.config.base.model
    n, heads = model.sequence_length, model.num_layers * model.num_heads
    expected = 2 * 2 * 2 * heads * 4 * (2 * n * model.head_dim + n * n)  # arms, seeds, samples
    assert kept_bytes(plan, config) == expected
    check_kept(plan, config)
    tight = MeasureConfig(keep_qk=True, keep_attention=True, samples=2, keep_limit=expected - 1)
    with pytest.raises(ConfigurationError, match="Raise --keep-limit"):
        measured(small, tmp_path / "s.h5", keep_qk=True, keep_attention=True, samples=2, keep_limit=expected - 1)
    with pytest.raises(ConfigurationError, match="at most"):
        check_kept(plan, tight)
    assert list(tmp_path.iterdir()) == []
