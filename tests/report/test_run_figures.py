"""The figures of a run: what is read from its files and averaged is what the drawing is given."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from small_run import ALL_ARMS, run_config, trained_run
from store.spectra_file import layout, new_writer, slab
from tiny import CPU, STEPS

from rankkit.errors import ConfigurationError
from rankkit.report import measure_by_layer, run_figures, spectra_by_layer
from rankkit.report.run_figures import draw_losses, draw_spectra
from rankkit.store import METHODS, STATUSES, Slab, read_group
from rankkit.studies import MeasureConfig, Run, compare_losses, measure_run

REGIONS = ("full", "prefix_block")
FLOORS = {"arithmetic": 1e-8, "model": 1e-5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_run(tmp_path_factory.mktemp("drawn") / "run", run_config(ALL_ARMS, (0, 3)))


@pytest.fixture(scope="module")
def spectra(run: Run) -> Path:
    """Both layers of a run whose file stands beside it."""
    measure_run(run, MeasureConfig(regions=REGIONS), run.directory.spectrum, device=CPU, command="it")
    return run.directory.spectrum


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What each drawing function was called with, and what it gave back; spectra and pictures are only named."""
    calls: dict[str, list[Any]] = {}
    monkeypatch.setattr(run_figures, "spectra_by_layer", lambda *_, **__: (SimpleNamespace(figure=None),))

    def listen(name: str) -> None:
        draw = getattr(run_figures, name)

        def listening(*arguments: Any, **named: Any) -> Any:
            axes = draw(*arguments, **named)
            calls.setdefault(name, []).append((arguments, named, axes))
            return axes

        monkeypatch.setattr(run_figures, name, listening)

    for name in (
        "losses",
        "losses_by_position",
        "spectra_by_layer",
        "measure_by_layer",
        "measure_by_step",
        "measure_by_head",
    ):
        listen(name)
    kinds = ("png", "svg")
    monkeypatch.setattr(run_figures, "save", lambda figure, folder, name: [folder / f"{name}.{kind}" for kind in kinds])
    return calls


def test_losses_are_written_as_png_and_svg_into_the_runs_figures(run: Run) -> None:
    written = draw_losses(run, compare_losses(run))
    assert [path.name for path in written] == [
        "losses.png", "losses.svg", "losses_by_position.png", "losses_by_position.svg",
    ]  # fmt: skip
    assert all(path.parent == run.directory.figures and path.stat().st_size > 1000 for path in written)


def test_losses_are_those_of_the_log_with_a_pair_for_every_difference(run: Run, drawn: dict[str, list[Any]]) -> None:
    comparison = compare_losses(run)
    draw_losses(run, comparison)
    (((curves,), named, _),) = drawn["losses"]
    assert curves.keys() == set(ALL_ARMS)
    for arm, seeds in curves.items():
        assert seeds.keys() == {0, 3}
        for seed, (steps, values) in seeds.items():
            assert steps == [0, 5, 10, STEPS]
            lines = [json.loads(line) for line in run.directory.metrics(arm, seed).read_text().splitlines()]
            assert values == [line["loss"] for line in lines if line["kind"] == "evaluation"]
            assert values[-1] == pytest.approx(comparison.arm(arm).by_seed[(0, 3).index(seed)], rel=1e-12)
    assert named["differences"] == [("unilm", "gpt"), ("gpt-full", "gpt"), ("gpt-full", "unilm")]
    assert named["baselines"] == comparison.ngrams


def test_losses_by_position_are_those_of_the_evaluation_under_the_runs_own_seeds(
    run: Run, drawn: dict[str, list[Any]]
) -> None:
    comparison = compare_losses(run)
    draw_losses(run, comparison)
    (((values,), named, (_, lower)),) = drawn["losses_by_position"]
    assert values.keys() == set(ALL_ARMS)
    for arm, table in values.items():
        for seed, row in zip((0, 3), table, strict=True):
            stored = json.loads((run.directory.metrics(arm, seed).parent / "evaluation.json").read_text())
            np.testing.assert_array_equal(row, stored["trained"]["by_position"])
        assert named["seeds"][arm] == (0, 3)
    assert named["prefix_length"] == comparison.prefix_length == 16
    assert named["differences"] == drawn["losses"][0][1]["differences"]
    assert lower.get_xlabel().startswith("position in the sequence (prefix: 0 to 15")


def test_masked_losses_have_figures_of_their_own_from_position_0_on(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    masked = trained_run(tmp_path / "run", run_config(("gpt", "bert"), (0,)))
    written = draw_losses(masked, compare_losses(masked))
    names = ["losses", "losses_by_position", "losses_masked", "losses_by_position_masked"]
    assert [path.stem for path in written if path.suffix == ".png"] == names
    suffix, hidden = (call[1] for call in drawn["losses_by_position"])
    assert (suffix["prefix_length"], suffix["task"]) == (16, "suffix")
    assert (hidden["prefix_length"], hidden["task"]) == (0, "masked")


def test_a_run_of_one_arm_has_losses_and_no_difference(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    alone = trained_run(tmp_path / "run", run_config(("gpt",), (0,)))
    draw_losses(alone, compare_losses(alone))
    assert drawn["losses"][0][1]["differences"] is None


def test_every_region_has_its_spectra_and_the_measure_as_png_and_svg(spectra: Path, tmp_path: Path) -> None:
    written = draw_spectra(spectra, tmp_path)
    assert [path.name for path in written if "_heads_" not in path.name] == [
        f"{name}_{region}.{kind}"
        for region in ("full", "prefix_block") for name in ("spectrum", "effective_rank") for kind in ("png", "svg")
    ]  # fmt: skip
    assert all(path.stat().st_size > 1000 for path in written)


def test_spectra_are_relative_to_the_largest_value_of_each_own_matrix(
    spectra: Path, tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    draw_spectra(spectra, tmp_path)
    for index, region in enumerate(("full", "prefix_block")):
        ((means,), named, _) = drawn["spectra_by_layer"][index]
        size = (32, 16)[index]
        for arm in ALL_ARMS:
            group = read_group(spectra, arm)
            own = group["singular_values"][:, 0, index, 0, :, :, :, :size]  # seed sequence layer head component
            relative = own / own[..., :1]
            assert means[arm].shape == (2, size)
            low, high = named["bands"][arm]
            for layer in (0, 1):
                heads = relative[:, :, layer].reshape(-1, size)
                resolved = heads.min(axis=0) > 1e-6  # the rest is noise, drawn below the frame
                np.testing.assert_allclose(low[layer][resolved], np.quantile(heads, 0.25, axis=0)[resolved])
                np.testing.assert_allclose(high[layer][resolved], np.quantile(heads, 0.75, axis=0)[resolved])
                assert (low[layer] <= means[arm][layer]).all()
                assert (means[arm][layer] <= high[layer]).all()
            assert means[arm][:, 0].tolist() == [1.0, 1.0]
        for name in ("arithmetic", "model"):
            worst = []
            for arm in ALL_ARMS:
                group = read_group(spectra, arm)
                floor = group[f"floor_{name}"][:, 0, index, 0] / group["singular_values"][:, 0, index, 0, ..., 0]
                worst.append(floor.mean(axis=(0, 1, 3)))
            np.testing.assert_allclose(named["floors"][name], np.max(worst, axis=0), rtol=1e-12)
        untrained = [1] if region == "prefix_block" else []
        assert named["untrained_layers"] == {"gpt": untrained, "unilm": untrained, "gpt-full": []}


def test_the_measure_is_averaged_over_sequences_and_heads_of_each_seed_and_mask(
    spectra: Path, tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    written = draw_spectra(spectra, tmp_path, measure="stable_rank")
    assert tmp_path / "stable_rank_prefix_block.svg" in written
    for index, words in enumerate(("whole matrix", "prefix block")):
        ((own,), named, _) = drawn["measure_by_layer"][index]
        assert named["label"] == f"stable rank, {words}"
        for arm in ALL_ARMS:
            values = read_group(spectra, arm)["stable_rank"][:, 0, index]  # seed applied_mask sequence layer head
            np.testing.assert_allclose(own[arm], values[:, 0].mean(axis=(1, 3)), rtol=1e-12)
            np.testing.assert_allclose(named["swapped"][arm], values[:, 1].mean(axis=(1, 3)), rtol=1e-12)


def test_a_measure_that_was_not_made_is_left_out(spectra: Path, tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    written = draw_spectra(spectra, tmp_path, measure="nuclear_norm")
    assert {path.stem for path in written} == {"spectrum_full", "spectrum_prefix_block"}
    assert "measure_by_layer" not in drawn


def test_layers_keep_their_numbers_when_only_some_were_measured(
    run: Run, tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    path = tmp_path / "s.h5"
    measure_run(run, MeasureConfig(layers=(1,), samples=1, regions=REGIONS), path, device=CPU, command="it")
    draw_spectra(path, tmp_path)
    for arguments, named, _ in drawn["spectra_by_layer"]:
        assert named["layer_numbers"] == [1]
        panels = spectra_by_layer(*arguments, **named)
        assert [panel.get_title().splitlines()[0] for panel in panels] == ["layer 1"]
    for _, named, axes in drawn["measure_by_layer"]:
        assert named["layer_numbers"] == [1]
        assert [tick.get_text().splitlines()[0] for tick in axes.get_xticklabels()] == ["1"]


def test_layer_numbers_must_be_one_for_each_layer() -> None:
    drawings = (
        lambda numbers: spectra_by_layer({"gpt": [[1.0, 0.1]] * 2}, floors=FLOORS, layer_numbers=numbers),
        lambda numbers: measure_by_layer({"gpt": [[1.0, 2.0]]}, label="rank", layer_numbers=numbers),
    )
    for draw in drawings:
        draw([3, 7])
        with pytest.raises(ConfigurationError, match=r"layer_numbers must name 2 layers, got \[3\]"):
            draw([3])


# Files written by hand: several steps, estimates, baselines, documents.

SIZES = {"full": 6, "prefix_block": 4}
STEPS_MEASURED = (100, 500)
ESTIMATED_FROM = 2  # singular values of an estimated matrix that are known


def written_file(path: Path, *, estimated: tuple[str, ...] = (), applied: tuple[str, ...] = ("own", "swapped"),
                 document: list[int] | None = None, groups: tuple[str, ...] = ("gpt", "unilm"),
                 regions: tuple[str, ...] = REGIONS) -> Path:  # fmt: skip
    """Two steps of two seeds; the groups in `estimated` hold leading values and brackets alone."""
    sizes = np.array([[SIZES[region]] * 3 for region in regions])
    with new_writer(path) as writer:
        for number, name in enumerate(groups):
            chosen = layout(
                steps=STEPS_MEASURED, applied_masks=applied, checkpoint_sha256=[["ab" * 32] * 2] * 2,
                document=None if document is None else np.array(document),
                estimated=("effective_rank",) if name in estimated else (),
                regions=regions, rows=sizes, columns=sizes,
                untrained=np.array([[0, int(region == "prefix_block")] for region in regions]),
            )  # fmt: skip
            group, generator = writer.group(name, chosen), np.random.default_rng(number)
            axes = ("seed", "step", "region", "applied_mask", "layer")
            for position in product(*(range(len(chosen.labels[axis])) for axis in axes)):
                index = dict(zip(axes, position, strict=True))
                exact = slab(SIZES[regions[index["region"]]], (3, 2), generator)
                group.write(index, leading(exact) if name in estimated else exact)
    return path


def leading(exact: Slab) -> Slab:
    values = exact.singular_values.copy()
    values[..., ESTIMATED_FROM:] = np.nan
    above = {name: (values > np.asarray(getattr(exact, floor))[..., None]).sum(axis=-1)
             for name, floor in (("resolved", "floor_arithmetic"), ("resolved_model", "floor_model"))}  # fmt: skip
    shape = values.shape[:-1]
    return replace(
        exact, singular_values=values, **above, method=METHODS.index("krylov"), status=STATUSES.index("estimated"),
        measures={name: np.full(shape, np.nan) for name in exact.measures},
        brackets={"effective_rank": (np.full(shape, 1.5), np.full(shape, 2.5))},
    )  # fmt: skip


def test_the_last_of_several_steps_is_drawn_and_the_measure_through_all_of_them(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    path = written_file(tmp_path / "s.h5")
    written = draw_spectra(path, tmp_path)
    assert [path.name for path in written if path.suffix == ".png"] == [
        f"{name}_{region}.png"
        for region in REGIONS for name in ("spectrum", "effective_rank", "effective_rank_by_step")
    ]  # fmt: skip
    for index, region in enumerate(REGIONS):
        ((last,), _, _), ((through,), named, _) = drawn["measure_by_layer"][index], drawn["measure_by_step"][index]
        assert named["steps"] == list(STEPS_MEASURED)
        for arm in ("gpt", "unilm"):
            values = read_group(path, arm)["effective_rank"][:, :, index]
            means = values.mean(axis=(3, 5))  # seed step applied_mask layer
            np.testing.assert_allclose(last[arm], means[:, -1, 0], rtol=1e-12)
            kept = [0] if region == "prefix_block" else [0, 1]  # its last layer is untrained
            np.testing.assert_allclose(through[arm], means[:, :, 0, kept].mean(axis=-1), rtol=1e-12)
            np.testing.assert_allclose(named["swapped"][arm], means[:, :, 1, kept].mean(axis=-1), rtol=1e-12)
        sigma = read_group(path, "gpt")["singular_values"][:, -1, index, 0, ..., : SIZES[region]]
        relative = (sigma / sigma[..., :1]).transpose(2, 0, 1, 3, 4).reshape(2, -1, SIZES[region])
        np.testing.assert_allclose(drawn["spectra_by_layer"][index][0][0]["gpt"], np.median(relative, axis=1))


def test_an_estimated_arm_shows_its_leading_values_and_no_measure(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    path = written_file(tmp_path / "s.h5", estimated=("unilm",))
    draw_spectra(path, tmp_path)
    for index in range(len(REGIONS)):
        ((medians,), named, _) = drawn["spectra_by_layer"][index]
        assert {arm: values.shape for arm, values in medians.items()} == {"gpt": (2, 2), "unilm": (2, 2)}
        assert all(np.isfinite(values).all() for values in medians.values())
        assert named["untrained_layers"].keys() == {"gpt", "unilm"}
        assert drawn["measure_by_layer"][index][0][0].keys() == {"gpt"}
        assert drawn["measure_by_step"][index][0][0].keys() == {"gpt"}
        assert drawn["measure_by_step"][index][1]["swapped"].keys() == {"gpt"}
    drawn.clear()
    both = written_file(tmp_path / "both.h5", estimated=("gpt", "unilm"), regions=("full",))
    assert {path.stem for path in draw_spectra(both, tmp_path)} == {"spectrum_full"}


def test_a_matrix_that_failed_is_left_out_of_a_median_and_a_layer_of_such_of_the_figure(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    path = written_file(tmp_path / "s.h5", groups=("gpt",))
    with h5py.File(path, "r+") as file:
        file["gpt/singular_values"][0, -1, 0, 0, 1, 0, 0] = np.nan
        file["gpt/effective_rank"][0, -1, 0, 0, 1, 0, 0] = np.nan
        file["gpt/singular_values"][:, -1, 1, 0, :, 0] = np.nan
        file["gpt/effective_rank"][:, -1, 1, 0, :, 0] = np.nan
    written = draw_spectra(path, tmp_path)
    assert {path.stem for path in written} == {"spectrum_full", "effective_rank_full", "effective_rank_by_step_full"}
    ((own,), _, _) = drawn["measure_by_layer"][0]
    values = read_group(path, "gpt")["effective_rank"][0, -1, 0, 0, :, 0]  # sequence head
    filled = values.copy()
    filled[1, 0] = values[[0, 2], 0].mean()  # no head counts for less because one of its matrices failed
    assert own["gpt"][0, 0] == pytest.approx(filled.mean(), rel=1e-12)
    ((medians,), _, _) = drawn["spectra_by_layer"][0]
    sigma = read_group(path, "gpt")["singular_values"][:, -1, 0, 0, :, 0].reshape(-1, 6)
    np.testing.assert_allclose(medians["gpt"][0], np.nanmedian(sigma / sigma[:, :1], axis=0))


def test_uniform_attention_is_a_level_under_its_arm_and_other_baselines_are_not_drawn(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    path = written_file(
        tmp_path / "s.h5", groups=("gpt", "unilm", "baselines/uniform/gpt", "baselines/init/gpt")
    )  # fmt: skip
    draw_spectra(path, tmp_path)
    for index in range(len(REGIONS)):
        ((own,), named, axes) = drawn["measure_by_layer"][index]
        assert own.keys() == {"gpt", "unilm"}
        levels = read_group(path, "baselines/uniform/gpt")["effective_rank"][:, -1, index, 0].mean(axis=(0, 1, 3))
        assert named["baselines"].keys() == {"uniform"}
        np.testing.assert_allclose(named["baselines"]["uniform"]["gpt"], levels, rtol=1e-12)
        assert "uniform baseline" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert drawn["spectra_by_layer"][0][0][0].keys() == {"gpt", "unilm"}


def test_heads_are_mapped_for_every_arm_in_common_colours_where_documents_are_known(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    path = written_file(tmp_path / "s.h5", document=[4, 4, 9])
    written = draw_spectra(path, tmp_path)
    maps = [f"effective_rank_heads_{region}_{arm}" for region in REGIONS for arm in ("gpt", "unilm")]
    assert [path.stem for path in written if path.suffix == ".png" and "_heads_" in path.stem] == maps
    for index, region in enumerate(REGIONS):
        two = drawn["measure_by_head"][2 * index : 2 * index + 2]
        assert two[0][1]["limits"] == two[1][1]["limits"]
        assert two[0][1]["change_limit"] == two[1][1]["change_limit"]
        for ((own, change), named, _), arm in zip(two, ("gpt", "unilm"), strict=True):
            values = read_group(path, arm)["effective_rank"][:, -1, index].mean(axis=2)  # seed applied_mask layer head
            np.testing.assert_allclose(own, values[:, 0], rtol=1e-12)
            np.testing.assert_allclose(change, values[:, 1] - values[:, 0], rtol=1e-9)
            assert named["seeds"] == (0, 7)
            assert named["untrained_layers"] == ([1] if region == "prefix_block" else [])
            assert named["label"].endswith(arm)
            assert named["mark_label"] == (
                "changed: p ≤ 0.05 after Holm's correction for 8 heads, 2 documents (few: rests on normality)"
            )


@pytest.mark.parametrize("changes", [{"document": None}, {"document": [0, 1, 2], "applied": ("own",)}])
def test_without_documents_or_a_swapped_mask_no_heads_are_mapped(
    changes: dict[str, Any], tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    written = draw_spectra(written_file(tmp_path / "s.h5", groups=("gpt",), regions=("full",), **changes), tmp_path)
    assert written
    assert "measure_by_head" not in drawn
    if "applied" in changes:
        assert drawn["measure_by_layer"][0][1]["swapped"] == {}


def test_one_document_maps_heads_and_says_that_none_can_be_marked(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    draw_spectra(written_file(tmp_path / "s.h5", document=[3, 3, 3], groups=("gpt",), regions=("full",)), tmp_path)
    (_, named, _) = drawn["measure_by_head"][0]
    assert named["mark_label"] == "a mark would need two documents, and there is 1"
    assert not named["changed"].any()


def test_maps_without_a_value_are_not_drawn(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    path = written_file(tmp_path / "s.h5", document=[0, 1, 2], estimated=("gpt",), groups=("gpt",), regions=("full",))
    assert not [path for path in draw_spectra(path, tmp_path) if "_heads_" in path.name]
    assert "measure_by_head" not in drawn


def test_every_figure_of_a_file_is_written(tmp_path: Path) -> None:
    """Nothing is replaced here: the drawings themselves run."""
    path = written_file(
        tmp_path / "s.h5", document=[0, 1, 2], groups=("gpt", "baselines/uniform/gpt"), regions=("prefix_block",)
    )
    written = draw_spectra(path, tmp_path / "figures")
    assert len(written) == 2 * (3 + 1)
    assert all(one.stat().st_size > 1000 for one in written)
