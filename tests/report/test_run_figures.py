"""The figures of a run: what is read from its files and averaged is what the drawing is given."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_run import ALL_ARMS, run_config, trained_run
from tiny import CPU, STEPS

from rankkit.errors import ConfigurationError
from rankkit.report import measure_by_layer, run_figures, spectra_by_layer
from rankkit.report.run_figures import draw_losses, draw_spectra
from rankkit.store import read_group
from rankkit.studies import MeasureConfig, Run, compare_losses, measure_run

FLOORS = {"arithmetic": 1e-8, "model": 1e-5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_run(tmp_path_factory.mktemp("drawn") / "run", run_config(ALL_ARMS, (0, 3)))


@pytest.fixture(scope="module")
def spectra(run: Run) -> Path:
    """Both layers of a run whose file stands beside it."""
    measure_run(run, MeasureConfig(), run.directory.spectrum, device=CPU, command="it")
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

    for name in ("losses", "spectra_by_layer", "measure_by_layer"):
        listen(name)
    kinds = ("png", "svg")
    monkeypatch.setattr(run_figures, "save", lambda figure, folder, name: [folder / f"{name}.{kind}" for kind in kinds])
    return calls


def test_losses_are_written_as_png_and_svg_into_the_runs_figures(run: Run) -> None:
    written = draw_losses(run, compare_losses(run))
    assert [path.name for path in written] == ["losses.png", "losses.svg"]
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


def test_a_run_of_one_arm_has_losses_and_no_difference(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    alone = trained_run(tmp_path / "run", run_config(("gpt",), (0,)))
    draw_losses(alone, compare_losses(alone))
    assert drawn["losses"][0][1]["differences"] is None


def test_every_region_has_its_spectra_and_the_measure_as_png_and_svg(spectra: Path, tmp_path: Path) -> None:
    written = draw_spectra(spectra, tmp_path)
    assert [path.name for path in written] == [
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
    assert written[-1] == tmp_path / "stable_rank_prefix_block.svg"
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
    measure_run(run, MeasureConfig(layers=(1,), samples=1), path, device=CPU, command="it")
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
