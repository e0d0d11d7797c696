"""Two measured groups side by side: means, gaps and their parts against NumPy; what must match is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hf_models import new_model
from measured_run import measured
from small_run import run_config, trained_run

from rankkit.errors import ConfigurationError, MatchError
from rankkit.statistics import bootstrap_over_documents, mean_interval
from rankkit.store import read_group
from rankkit.studies import MeasureConfig, measure_attention
from rankkit.studies.compare import ComparedRow, Comparison, compare, side_rows
from rankkit.studies.compared_side import read_side
from rankkit.studies.pretrained.inputs import ModelInputs
from rankkit.studies.pretrained.opening import GivenModel, measure_model
from rankkit.studies.pretrained.source import ModelSettings, ModelSource

CPU = torch.device("cpu")
FEW = ("effective_rank", "mean_ipr", "sink_position")
CONFIG = MeasureConfig(measures=FEW, workers=1)
N, DOCUMENTS = 12, np.array([0, 0, 1, 2, 2, 3])


class Given:
    """Six sequences of four documents."""

    def __init__(self, seed: int = 0) -> None:
        self.tokens = torch.randint(3, 300, (6, N), generator=torch.Generator().manual_seed(seed))

    def read(self, model: object, length: int | None) -> ModelInputs:
        return ModelInputs(arguments={"input_ids": self.tokens}, documents=DOCUMENTS)


def made(
    path: Path,
    architecture: str,
    *,
    seed: int = 0,
    swap: str | None = None,
    reader: Given | None = None,
    **changes: int,
) -> Path:
    """A file of one model."""
    from rankkit.studies.pretrained.plan import SwapMask

    model = new_model(architecture, seed=seed, **changes)
    settings = ModelSettings(swap=None if swap is None else SwapMask.parsed(swap))
    source = ModelSource(GivenModel(model, path.stem), reader or Given(), CPU, settings)
    measure_attention(source, CONFIG, path, device=CPU, command="test")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A causal and a bidirectional model, each under both masks, and one under its own alone."""
    root = tmp_path_factory.mktemp("files")
    return {
        "causal": made(root / "gpt.h5", "GPT2LMHeadModel", swap="bidirectional"),
        "full": made(root / "bert.h5", "BertForMaskedLM", swap="causal"),
        "plain": made(root / "other.h5", "GPT2LMHeadModel", seed=1),
    }


def row_of(found: Comparison, layer: int | None, measure: str = "effective_rank", region: str = "full") -> ComparedRow:
    (row,) = [row for row in found.rows[measure] if (row.region, row.layer) == (region, layer)]
    return row


def by_sequence(path: Path, *, applied: int = 0, layer: int | None = None) -> np.ndarray:
    """Effective rank, mean over heads (and layers), "sequence"."""
    values = read_group(path, path.stem)["effective_rank"][0, 0, 0, applied]
    return values.mean(axis=(1, 2)) if layer is None else values[:, layer].mean(axis=1)


@pytest.mark.parametrize("layer", [0, 1, None])
def test_the_gap_is_that_of_means_over_heads_with_its_interval_over_documents(
    layer: int | None, files: dict[str, Path]
) -> None:
    found = compare(read_side(str(files["causal"])), read_side(str(files["plain"])))
    one, other = by_sequence(files["causal"], layer=layer), by_sequence(files["plain"], layer=layer)
    row = row_of(found, layer)
    np.testing.assert_allclose([interval.mean for interval in row.own], [one.mean(), other.mean()], rtol=1e-12)
    expected = bootstrap_over_documents(one - other, DOCUMENTS)
    gap = row.effects["gap"]
    np.testing.assert_allclose(
        (gap.mean, gap.lower, gap.upper), (expected.mean, expected.lower, expected.upper), rtol=1e-9
    )
    assert (found.seeds, found.is_split, list(row.effects)) == (1, False, ["gap"])
    assert row.matrices == 2 * 6 * 4 * (2 if layer is None else 1)


def test_swapped_against_each_other_the_gap_has_the_parts_of_a_trained_pair(files: dict[str, Path]) -> None:
    found = compare(read_side(str(files["causal"])), read_side(str(files["full"])))
    assert found.is_split
    y = {
        (name, applied): by_sequence(files[name], applied=applied).mean()
        for name in ("causal", "full")
        for applied in (0, 1)
    }
    mask = 0.5 * (y["causal", 0] - y["causal", 1] + y["full", 1] - y["full", 0])
    learned = 0.5 * (y["causal", 0] - y["full", 1] + y["causal", 1] - y["full", 0])
    effects = row_of(found, None).effects
    expected = [mask + learned, mask, learned]
    np.testing.assert_allclose([effects[name].mean for name in ("gap", "mask_effect", "learned_effect")], expected)


def test_one_side_by_itself_shows_what_its_swap_changes(files: dict[str, Path]) -> None:
    rows = {(row.region, row.layer): row for row in side_rows(read_side(str(files["causal"])), "effective_rank")}
    row = rows["full", 1]
    one, other = (by_sequence(files["causal"], applied=applied, layer=1) for applied in (0, 1))
    assert row.swapped is not None
    assert row.change is not None
    np.testing.assert_allclose(
        (row.own.mean, row.swapped.mean, row.change.mean), (one.mean(), other.mean(), (one - other).mean())
    )
    alone = side_rows(read_side(str(files["plain"])), "effective_rank")
    assert all(row.swapped is None and row.change is None for row in alone)


def test_a_keys_index_is_not_averaged(files: dict[str, Path]) -> None:
    assert "sink_position" not in read_side(str(files["plain"])).values


def test_models_of_other_depth_share_the_mean_alone(files: dict[str, Path], tmp_path: Path) -> None:
    deep = made(tmp_path / "deep.h5", "GPT2LMHeadModel", n_layer=3)
    found = compare(read_side(str(files["plain"])), read_side(str(deep)))
    assert not found.layers_correspond
    assert [row.layer for row in found.rows["effective_rank"]] == [None, None]
    np.testing.assert_allclose(row_of(found, None).own[1].mean, by_sequence(deep).mean())


def test_sides_that_read_other_tokens_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    other = made(tmp_path / "else.h5", "GPT2LMHeadModel", reader=Given(seed=5))
    message = (
        r"sides must have read the same tokens, but those of else differ from those of gpt \(SHA-256 .*; 6 and 6 seq"
    )
    with pytest.raises(MatchError, match=message):
        compare(read_side(str(files["causal"])), read_side(str(other)))


def test_the_same_tokens_with_other_padding_are_not_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    mask = torch.ones(6, N, dtype=torch.long)
    mask[0, -2:] = 0
    inputs = {"input_ids": Given().tokens, "attention_mask": mask}
    measure_model(new_model("BertForMaskedLM"), inputs, tmp_path / "s.h5", config=CONFIG)
    with pytest.raises(MatchError, match="sides must have read the same tokens"):
        compare(read_side(str(files["full"])), read_side(str(tmp_path / "s.h5")))


def test_images_are_the_same_only_where_their_numbers_are(tmp_path: Path) -> None:
    model, generator = new_model("ViTForImageClassification"), torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        pixels = torch.randn(2, 3, 12, 12, generator=generator)
        measure_model(model, {"pixel_values": pixels}, tmp_path / f"{name}.h5", config=CONFIG)
    own = read_side(str(tmp_path / "a.h5"))
    assert compare(own, own).rows["effective_rank"][0].effects["gap"].mean == 0
    with pytest.raises(MatchError, match="sides must have read the same tokens"):
        compare(own, read_side(str(tmp_path / "b.h5")))


@pytest.mark.parametrize(
    ("suffix", "step", "message"),
    [
        ("", None, r"must hold one group, or one be named, got gpt, unilm. Write .*spectrum.h5::gpt"),
        (
            "::bert",
            None,
            "must hold group 'bert', got gpt, unilm, baselines/shuffled/gpt, baselines/shuffled/unilm. Choose",
        ),
        ("::gpt", 7, r"step must be among \d+ of .*, got 7. Choose one"),
    ],
)
def test_a_group_and_a_step_that_are_not_there_are_refused(
    suffix: str, step: int | None, message: str, run_file: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_side(f"{run_file}{suffix}", step=step)


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms under two seeds, with baselines."""
    run = trained_run(tmp_path_factory.mktemp("run") / "run", run_config())
    measured(run, run.directory.spectrum, samples=3, baselines=("shuffled",))
    return run.directory.spectrum


def test_arms_under_the_same_seeds_are_paired_by_seed_as_in_a_trained_pair(run_file: Path) -> None:
    found = compare(read_side(f"{run_file}::gpt"), read_side(f"{run_file.parent}::unilm"))
    assert (found.seeds, found.is_split) == (2, True)
    stored = read_group(run_file, "comparison")
    place = (stored["measure"].tolist().index("effective_rank"), stored["region"].tolist().index("full"), 0)
    row = row_of(found, 0)
    for name in ("gap", "mask_effect", "learned_effect", "interaction"):
        interval = row.effects[name]
        np.testing.assert_allclose((interval.mean, interval.lower, interval.upper), stored[name][place])
    assert row.effects["gap"].kind == "paired t over seeds"


def test_an_arm_is_held_against_its_baseline(run_file: Path) -> None:
    found = compare(read_side(f"{run_file}::gpt"), read_side(f"{run_file}::baselines/shuffled/gpt"))
    assert not found.is_split
    own, other = (
        read_group(run_file, name)["effective_rank"][:, -1, 0, 0] for name in ("gpt", "baselines/shuffled/gpt")
    )
    by_seed = (own - other).mean(axis=(1, 3))[:, 1]
    gap = row_of(found, 1).effects["gap"]
    assert gap.mean == pytest.approx(mean_interval(by_seed).mean)
    assert gap.upper == pytest.approx(mean_interval(by_seed).upper)


def test_sides_without_a_common_measure_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    source = ModelSource(GivenModel(new_model("GPT2LMHeadModel"), "m"), Given(), CPU, ModelSettings())

    config = MeasureConfig(measures=("stable_rank",), workers=1)
    measure_attention(source, config, tmp_path / "m.h5", device=CPU, command="test")
    with pytest.raises(MatchError, match=r"sides must share a measure, got none in common. Measure both alike"):
        compare(read_side(str(files["plain"])), read_side(str(tmp_path / "m.h5")))
