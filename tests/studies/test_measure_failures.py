"""Estimates, failed matrices and missing theorems of a measured run: stored as what they are, with a reason, and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from measured_run import FAST, FEW, measured, tokens_of
from small_run import PAIR, run_config, trained_run
from tiny import N

from rankkit.axes import REGIONS
from rankkit.cli import main
from rankkit.hooks import capture
from rankkit.hooks.factors import LayerFactors
from rankkit.spectra import spectrum
from rankkit.store import STATUSES, describe, read_group
from rankkit.studies import MeasureConfig, Measured, Run, load_model, plan_measurement
from rankkit.studies.measuring import run_source

P, LAYERS, HEADS = N // 2, 2, 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One pair under one seed."""
    return trained_run(tmp_path_factory.mktemp("small") / "run", run_config(seeds=(0,)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The prefix arm of that pair by itself: half as many groups where two are not needed."""
    return trained_run(tmp_path_factory.mktemp("alone") / "run", run_config(("unilm",), seeds=(0,)))


# Without the matrix.


@pytest.fixture(scope="module")
def estimated(small: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measured]:
    path = tmp_path_factory.mktemp("estimated") / "s.h5"
    settings: dict[str, Any] = {
        "measures": (*FEW, "stable_rank", "decay_exponent"),
        "regions": ("full", "prefix_block"),
    }
    return path, measured(small, path, samples=1, method="matrix-free", matrix_free=FAST, **settings)


def test_an_estimate_is_stored_as_the_bracket_that_spectrum_finds_near_the_exact_value(
    estimated: tuple[Path, Measured], small: Run
) -> None:
    path, found = estimated
    model = load_model(small.directory.path, arm="unilm", seed=0)
    with torch.no_grad(), capture(model) as captured:
        model(torch.from_numpy(tokens_of(small)[:1].copy()), P)
    group = read_group(path, "unilm")
    assert group["component"].size == FAST.leading
    assert np.isnan(group["effective_rank"]).all()
    assert np.isnan(group["decay_exponent"]).all()
    assert (group["status"] == STATUSES.index("estimated")).all()
    for operator, (r, part) in product(captured, enumerate((N, P))):
        at = (0, 0, r, 0, 0, int(operator.labels["layer"]))
        again = spectrum(operator.leading(part), method="matrix-free", matrix_free=FAST, measures=FEW, workers=1)
        exact = spectrum(operator.leading(part), method="svd", measures=FEW)
        lower, upper = (group[f"effective_rank_{end}"][at] for end in ("lower", "upper"))
        np.testing.assert_allclose([lower, upper], np.stack([end.numpy() for end in again.brackets["effective_rank"]]))
        away = np.abs(exact.effective_rank.numpy() - (lower + upper) / 2) / ((upper - lower) / 2)
        assert away.max() <= 2  # 95% intervals, whose probes the heads share
        np.testing.assert_allclose(group["mean_ipr"][at], exact.mean_ipr.numpy(), rtol=1e-9)
        leading = exact.singular_values[:, : FAST.leading].numpy()
        np.testing.assert_allclose(group["singular_values"][at], leading, atol=1e-5)
        kept = found.values["unilm"].brackets["effective_rank"]
        np.testing.assert_array_equal([end[at] for end in kept], [lower, upper])


def test_a_file_of_estimates_says_how_they_were_made_and_what_they_leave_out(estimated: tuple[Path, Measured]) -> None:
    path, found = estimated
    for group in describe(path).groups:
        assert group.methods == {"krylov": group.matrices}
        assert group.statuses == {"estimated": group.matrices}
        assert group.attributes["method_rule"] == "full: matrix-free (asked for); prefix_block: matrix-free (asked for)"
        assert "effective_rank" in group.estimated
        assert group.unavailable == {
            "decay_exponent": "it needs all singular values, and only the leading ones are known"
        }
    split = found.decomposition
    assert split is not None
    row = split.rows["effective_rank"][0]
    assert (row.estimated, row.missing) == (row.matrices, 0)
    assert "widened by the brackets of estimates" in row.effects["gap"].kind


def test_auto_goes_without_the_matrix_where_it_does_not_fit_and_says_so(small: Run, tmp_path: Path) -> None:
    """Blocks of 16 x 16 fit 16 KiB with their copies, matrices of 32 x 32 do not."""
    config: dict[str, Any] = {"memory_budget": 16 << 10, "matrix_free": FAST, "regions": ("full", "prefix_block")}
    plan = plan_measurement(small, MeasureConfig(**config))
    assert {region: method for region, (method, _) in plan.methods.items()} == {
        "full": "matrix-free", "prefix_block": "exact"
    }  # fmt: skip
    assert len(plan.sequences) == 1  # minutes each at sizes where it matters
    assert len(plan_measurement(small, MeasureConfig(**{**config, "regions": ("prefix_block",)})).sequences) == 3
    found = measured(small, tmp_path / "s.h5", layers=(0,), **config)
    (gpt, unilm) = describe(tmp_path / "s.h5").groups
    for group in (gpt, unilm):
        rule = str(group.attributes["method_rule"])
        assert rule == (
            "full: matrix-free (auto: a 32 x 32 matrix with its working copies takes 0.0469 MiB of 0.0156); "
            "prefix_block: exact (auto: a 16 x 16 matrix with its working copies takes 0.0117 MiB of 0.0156)"
        )
        assert group.statuses == {"estimated": group.matrices // 2, "ok": group.matrices // 2}
    group_of_gpt = read_group(tmp_path / "s.h5", "gpt")
    assert np.isfinite(group_of_gpt["effective_rank"][:, :, 1]).all()
    assert np.isfinite(group_of_gpt["effective_rank_upper"][:, :, 0]).all()
    assert found.decomposition is not None
    assert [row.estimated for row in found.decomposition.rows["effective_rank"] if row.layer == 0] == [12, 0]


def test_a_plan_reckons_with_the_copies_that_measures_take_as_the_measurement_does(alone: Run, tmp_path: Path) -> None:
    config: dict[str, Any] = {"memory_budget": 8 * N * N * 8, "matrix_free": FAST, "regions": ("full",), "samples": 1}
    names = ("effective_rank", "off_diagonal_block_rank")
    for measures, method in ((names[:1], "exact"), (names, "matrix-free")):
        assert plan_measurement(alone, MeasureConfig(measures=measures, **config)).methods["full"][0] == method
    measured(alone, tmp_path / "s.h5", measures=names, layers=(0,), **config)
    (group,) = describe(tmp_path / "s.h5").groups
    assert group.statuses == {"estimated": group.matrices}


# What fails, fails alone.


@contextmanager
def spoilt(monkeypatch: pytest.MonkeyPatch, change: Callable[[LayerFactors], LayerFactors]) -> Iterator[None]:
    """Every layer's factors are changed before they are measured."""
    listen = run_source.capture

    def capturing(model: Any, *, on_layer: Callable[[LayerFactors], None], **settings: Any) -> Any:
        return listen(model, on_layer=lambda factors: on_layer(change(factors)), **settings)

    with monkeypatch.context() as patch:
        patch.setattr(run_source, "capture", capturing)
        yield


def without_one_head(factors: LayerFactors) -> LayerFactors:
    """Layer 1, sequence 0, head 2 has a query that is not a number, and the layer's output has one too."""
    if factors.layer != 1:
        return factors
    query = factors.query.clone()
    query[0, 2, 5] = math.nan
    output = None
    if factors.output is not None:
        output = factors.output.clone()
        output[0, 5, 0] = math.nan
    return replace(factors, query=query, output=output)


def test_a_failed_head_is_stored_as_failed_and_left_out_of_means_by_count(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {"samples": 2, "regions": ("full",), "layer_output": True, "layers": (1,)}
    whole = measured(small, tmp_path / "whole.h5", **config)
    with spoilt(monkeypatch, without_one_head):
        found = measured(small, tmp_path / "spoilt.h5", **config)
    failed = np.zeros((1, 1, 1, 2, 2, 1, HEADS), dtype=bool)
    failed[..., 0, 0, 2] = True
    for arm in PAIR:
        group, expected = read_group(tmp_path / "spoilt.h5", arm), read_group(tmp_path / "whole.h5", arm)
        assert np.array_equal(group["status"] == STATUSES.index("failed"), failed)
        for name in ("singular_values", *FEW):
            assert np.isnan(group[name][failed]).all(), name
            assert np.array_equal(group[name][~failed], expected[name][~failed], equal_nan=True), name
        assert np.isnan(group["layer_output_singular_values"][0, 0, 0]).all()
        assert np.isfinite(group["layer_output_singular_values"][0, 0, 1]).all()
    assert found.decomposition is not None
    assert whole.decomposition is not None
    for name in FEW:
        for row, before in zip(found.decomposition.rows[name], whole.decomposition.rows[name], strict=True):
            assert (before.missing, row.missing) == (0, 4)  # both arms, both masks
            assert row.matrices == before.matrices == 2 * 2 * 2 * HEADS
            assert math.isfinite(row.effects["gap"].mean)
    threads = torch.get_num_threads()
    for name, said in (("spoilt", "; 4 matrices failed and have no numbers\n"), ("whole", "from singular values\n")):
        result = CliRunner().invoke(main, ["inspect", str(tmp_path / f"{name}.h5"), "--verify"])
        assert (result.exit_code, result.stdout.count(said)) == (0, 1)
    torch.set_num_threads(threads)


def test_a_failed_head_has_no_bracket_and_leaves_the_others_theirs(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {"samples": 1, "regions": ("full",), "layers": (1,), "method": "matrix-free"}
    with spoilt(monkeypatch, without_one_head):
        measured(alone, tmp_path / "s.h5", matrix_free=FAST, **config)
    group = read_group(tmp_path / "s.h5", "unilm")
    failed = group["status"] == STATUSES.index("failed")
    assert failed.reshape(2, HEADS).tolist() == [[False, False, True]] * 2
    for name in ("effective_rank_lower", "effective_rank_upper", "mean_ipr"):
        assert np.array_equal(np.isnan(group[name]), failed), name
    assert np.isnan(group["singular_values"][failed]).all()


def without_the_first_layer(factors: LayerFactors) -> LayerFactors:
    return replace(factors, query=factors.query * math.nan) if factors.layer == 0 else factors


def test_a_layer_without_a_number_leaves_the_other_its_gap_and_has_none(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with spoilt(monkeypatch, without_the_first_layer):
        found = measured(small, tmp_path / "s.h5", samples=1, regions=("full",))
    assert found.decomposition is not None
    lost, kept, mean = found.decomposition.rows["effective_rank"]
    assert (lost.missing, kept.missing) == (lost.matrices, 0)
    assert math.isnan(lost.effects["gap"].mean)
    assert math.isfinite(kept.effects["gap"].mean)
    assert math.isnan(mean.effects["gap"].mean)  # of two layers, one of which is not known


def test_baselines_of_failed_heads_fail_but_for_the_one_that_does_not_look_at_them(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("uniform", "shuffled", "gaussian", "logits")
    with spoilt(monkeypatch, without_the_first_layer):
        measured(alone, tmp_path / "s.h5", samples=1, regions=("full",), baselines=names, measures=FEW[:1])
    for group in describe(tmp_path / "s.h5").baselines:
        expected = {"ok": 2 * HEADS} if group.baseline == "uniform" else {"ok": HEADS, "failed": HEADS}
        assert group.statuses == expected


def test_collapsed_heads_are_stored_without_a_bound_where_there_is_none(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank one and noise of 1e-8: the floors leave the second singular value, and so the ratio, open."""

    def collapsed(factors: LayerFactors) -> LayerFactors:
        return replace(
            factors, query=torch.ones_like(factors.query, dtype=torch.float64) + 1e-8 * factors.query.double()
        )

    with spoilt(monkeypatch, collapsed):
        measured(
            alone, tmp_path / "s.h5", samples=1, regions=("prefix_block",), layers=(0,),
            measures=("effective_rank", "spectral_ratio", "log_abs_det", "log_abs_det_bound", "decay_exponent"),
        )  # fmt: skip
    group = read_group(tmp_path / "s.h5", "unilm")
    assert (group["status"] == STATUSES.index("ok")).all()
    own = group["effective_rank"][:, :, :, 0]
    assert (own < 1.001).all()
    assert (group["resolved_model"][:, :, :, 0] == 1).all()
    assert np.isfinite(group["spectral_ratio"][:, :, :, 0]).all()
    assert np.isnan(group["spectral_ratio_error"][:, :, :, 0]).all()
    assert (group["log_abs_det_bound"][:, :, :, 0] > 1e-3).all()
    assert np.isnan(group["log_abs_det"][:, :, :, 0]).all()


def test_a_head_whose_logits_are_zero_has_a_zero_baseline_of_logits_by_every_method(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(factors: LayerFactors) -> LayerFactors:
        query = factors.query.clone()
        query[:, 1] = 0
        return replace(factors, query=query)

    config: dict[str, Any] = {"samples": 1, "regions": ("full",), "layers": (0,), "baselines": ("logits",)}
    for method, status in (("exact", "degenerate"), ("matrix-free", "estimated")):
        with spoilt(monkeypatch, silent):
            measured(alone, tmp_path / f"{method}.h5", method=method, matrix_free=FAST, **config)
        group = read_group(tmp_path / f"{method}.h5", "baselines/logits/unilm")
        (states,) = group["status"].reshape(-1, HEADS)
        assert STATUSES[states[1]] == status
        assert STATUSES[states[0]] == ("ok" if method == "exact" else "estimated")
        values = group["singular_values"].reshape(HEADS, -1)[1]
        assert (values[: FAST.leading] == 0).all()


# What cannot be had.


def test_a_file_says_under_which_mask_and_in_which_region_a_theorem_does_not_hold(small: Run, tmp_path: Path) -> None:
    names = ("effective_rank", "log10_smallest_singular_value", "off_diagonal_block_rank")
    config: dict[str, Any] = {"layers": (0,), "heads": (0,), "regions": REGIONS[2:], "baselines": ("shuffled",)}
    measured(small, tmp_path / "s.h5", samples=1, measures=names, **config)
    reason = "its theorem needs a triangular matrix"
    description = describe(tmp_path / "s.h5")
    for group, mask in zip(description.groups, ("swapped", "own"), strict=True):
        assert group.unavailable == dict.fromkeys(names[1:], f"{mask} mask: {reason}")
        values = read_group(tmp_path / "s.h5", group.name)["log10_smallest_singular_value"]
        lacking = ("own", "swapped").index(mask)
        assert np.isnan(values[:, :, :, lacking]).all()
        assert np.isfinite(values[:, :, :, 1 - lacking]).all()
    of_gpt, of_unilm = description.baselines
    assert (of_gpt.unavailable, of_unilm.unavailable) == ({}, dict.fromkeys(names[1:], reason))


def test_an_empty_prefix_is_no_exception_from_the_triangle(alone: Run, tmp_path: Path) -> None:
    names = ("effective_rank", "log10_smallest_singular_value")
    measured(alone, tmp_path / "s.h5", samples=1, layers=(0,), measures=names, prefix_length=0)
    for group in describe(tmp_path / "s.h5").groups:
        assert group.unavailable == {}
        assert np.isfinite(read_group(tmp_path / "s.h5", group.name)["log10_smallest_singular_value"]).all()


def test_regions_that_differ_in_what_they_lack_are_told_apart(small: Run, tmp_path: Path) -> None:
    config: dict[str, Any] = {"memory_budget": 16 << 10, "matrix_free": FAST, "regions": ("full", "prefix_block")}
    measured(small, tmp_path / "s.h5", samples=1, layers=(0,), measures=("effective_rank", "decay_exponent", "log_abs_det"),
             **config)  # fmt: skip
    whole = "it needs all singular values, and only the leading ones are known"
    triangle = "it needs an LU factorisation of the full block; without the matrix only triangular masks have one"
    gpt, unilm = (group.unavailable for group in describe(tmp_path / "s.h5").groups)
    assert gpt["decay_exponent"] == f"full under its own mask, full under its swapped mask: {whole}"
    assert gpt["log_abs_det"] == f"full under its swapped mask: {triangle}"
    assert unilm["log_abs_det"] == f"full under its own mask: {triangle}"
