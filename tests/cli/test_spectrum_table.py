"""The closing tables of `spectrum`, from arrays made by hand: their numbers, their help and their width."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_run import run_config

from rankkit.axes import REGIONS
from rankkit.cli.console import Output
from rankkit.cli.spectrum_table import decomposition_as_dict, show_companions, show_decomposition, show_training
from rankkit.files import RunDirectory
from rankkit.spectra.measures import MEASURES
from rankkit.studies import Decomposition, Run, decompose
from rankkit.studies.decomposition import arms_of

WORDS = ("whole matrix", "prefix block", "first key removed", "prefix block, first key removed")
SIZES = {"effective_rank": 100.0, "logit_std": 1.2, "attention_entropy": 2.5, "mean_ipr": 0.12, "sink_mass": 0.31}
DOCUMENTS = np.repeat(np.arange(8), 2)
LAYERS = 4
EFFECTS = ("gap", "mask_effect", "learned_effect", "interaction")


def drawn(measure: str, seeds: int, scale: float, seed: int) -> NDArray[np.float64]:
    """ "seed region applied_mask sequence layer head" whose networks differ by a tenth."""
    generator, size = np.random.default_rng(seed), SIZES[measure] * scale
    of_network = size * (1 + 0.1 * generator.normal(size=(seeds, 4, 1, 1, LAYERS, 1)))
    return of_network + size * 0.02 * generator.normal(size=(seeds, 4, 2, DOCUMENTS.size, LAYERS, 2))


def found(seeds: int = 3, *, scale: float = 1.0, documents: Any = DOCUMENTS, **changes: Any) -> Decomposition:
    run = Run(RunDirectory(None), run_config(model={"num_layers": LAYERS}), {})  # type: ignore[arg-type]
    values = {
        arm: {measure: drawn(measure, seeds, scale, number) for measure in SIZES}
        for number, arm in enumerate(("gpt", "unilm"))
    }
    if "spoil" in changes:
        changes.pop("spoil")(values)
    layers = tuple(range(LAYERS))
    split = decompose(arms_of(run, REGIONS, layers), values, documents, layers, REGIONS, **{"step": 500, **changes})
    assert split is not None
    return split


def printed(capsys: pytest.CaptureFixture[str], show: Any, *arguments: Any) -> str:
    capsys.readouterr()
    show(*arguments, Output(as_json=False, quiet=True))
    return capsys.readouterr().out


def folded(text: str) -> str:
    """Without the folds of long lines."""
    return text.replace("\n    ", " ")


def test_every_region_has_a_table_of_its_layers_whose_numbers_are_those_of_the_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    split = found()
    lines = printed(capsys, show_decomposition, split, "effective_rank").splitlines()
    for region, words in zip(REGIONS, WORDS, strict=True):
        start = lines.index(next(line for line in lines if line.startswith(f"{words}: effective rank (3 seeds)")))
        assert lines[start + 2].split("  ")[0].strip() == "layer"
        headings = ["layer", "gpt", "unilm", "gap", "A/A", "mask effect", "learned effect", "interaction"]
        assert [part.strip() for part in lines[start + 2].split("  ") if part.strip()] == headings
        body = [line for line in lines[start + 4 : start + 10] if line.strip()]
        rows = [row for row in split.rows["effective_rank"] if row.region == region]
        assert len(body) == len(rows) == LAYERS + 1
        for line, row in zip(body, rows, strict=True):
            cells = [part.strip() for part in line.split("   ") if part.strip()]
            assert cells[0].rstrip("*~") == ("mean" if row.layer is None else str(row.layer))
            assert ("*" in cells[0], "~" in cells[0]) == (row.untrained, row.order_matters)
            seen = [cell.split(" ± ") for cell in (*cells[1:4], *cells[5:])]
            for (mean, half), interval in zip(seen, (*row.own, *row.effects.values()), strict=True):
                assert float(mean) == pytest.approx(interval.mean, abs=0.06)
                assert float(half) == pytest.approx(interval.half_width, abs=0.06)
            assert [float(value) for value in cells[4].split(" / ")] == pytest.approx(
                row.control.between_means, abs=0.06
            )


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_nothing_is_wider_than_120_letters_and_no_number_is_cut(
    seeds: int, scale: float, capsys: pytest.CaptureFixture[str]
) -> None:
    split = found(seeds, scale=scale)
    text = printed(capsys, show_decomposition, split, "effective_rank")
    text += printed(capsys, show_companions, split)
    text += printed(capsys, show_training, [split, split], "effective_rank")
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text


def test_every_column_is_explained_in_one_line_beside_the_definition_of_the_measure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = folded(printed(capsys, show_decomposition, found(), "effective_rank"))
    lines = text.splitlines()
    assert any(line.startswith("effective rank = ") and MEASURES["effective_rank"].definition in line for line in lines)
    for column in ("gpt, unilm", "gap", "A/A", "mask effect", "learned effect", "interaction", "±", "*"):
        (line,) = [line for line in lines if line.startswith((f"{column} = ", f"{column} rows"))]
        assert line.endswith(".")
    assert "gap = gpt - unilm = mask effect + learned effect." in lines


def test_one_sentence_says_of_every_region_what_is_resolved_and_one_what_sequences_alone_would_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    split = found()
    text = folded(printed(capsys, show_decomposition, split, "effective_rank"))
    (verdict,) = [line for line in text.splitlines() if line.startswith("effective rank, mean over trained layers")]
    (trap,) = [line for line in text.splitlines() if line.startswith("over sequences alone")]
    for row, words in zip(split.means("effective_rank"), WORDS, strict=True):
        gap = row.effects["gap"]
        assert f"{words}: gap {gap.mean:+.1f}"[:-1] in verdict
        within, across = row.control.within, row.control.across
        counts = f"{within.called} of {within.pairs} of one mask, {across.called} of {across.pairs} across masks"
        assert f"{words}: {counts}" in trap
    assert verdict.count("resolved)") == 12
    assert trap.endswith("That test takes another seed for another mask: it says nothing of the mask.")


def test_where_seeds_do_not_differ_the_test_over_sequences_is_not_blamed(capsys: pytest.CaptureFixture[str]) -> None:
    def same_networks(values: dict[str, dict[str, NDArray[np.float64]]]) -> None:
        for number, arm in enumerate(values):
            values[arm]["effective_rank"] = np.random.default_rng(number).normal(50, 1, (3, 4, 2, 16, LAYERS, 2))

    text = folded(printed(capsys, show_decomposition, found(spoil=same_networks), "effective_rank"))
    assert "About 5% are expected where nothing differs." in text
    assert "it says nothing of the mask" not in text


def test_one_seed_has_no_control_and_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    text = folded(printed(capsys, show_decomposition, found(1), "effective_rank"))
    assert "whole matrix: effective rank (one seed: no verdict)" in text
    assert "A/A" not in text
    assert "No verdict: one seed, and its intervals are the error of the evaluation alone." in text
    alone = found(1, documents=np.zeros(16, dtype=np.int64))
    text = folded(printed(capsys, show_decomposition, alone, "effective_rank"))
    assert "No intervals: that takes several seeds, or sequences of several documents." in text
    assert " ± " not in text


def test_what_was_left_out_or_estimated_is_counted_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    def failed(values: dict[str, dict[str, NDArray[np.float64]]]) -> None:
        values["gpt"]["effective_rank"][0, 0, 0, 3, 1, 0] = np.nan

    text = folded(printed(capsys, show_decomposition, found(spoil=failed), "effective_rank"))
    matrices = 2 * 3 * 4 * 2 * 16 * LAYERS * 2
    left = f"1 of {matrices:,} matrices have no finite value of this measure (failed, infinite, not defined)"
    assert f"{left} and were left out, each with its partner under the other mask." in text

    def estimated(values: dict[str, dict[str, NDArray[np.float64]]]) -> None:
        values["gpt"]["effective_rank"][:] = np.nan

    middle = drawn("effective_rank", 3, 1.0, 0)
    brackets = {"gpt": {"effective_rank": (middle - 1, middle + 1)}}
    text = folded(printed(capsys, show_decomposition, found(spoil=estimated, brackets=brackets), "effective_rank"))
    assert f"{matrices // 2:,} of {matrices:,} matrices have a bracket instead of a value" in text
    assert "± = half of the 95% interval (paired t over seeds, widened by the brackets of estimates)" in text


def test_an_arm_without_a_value_is_shown_as_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    def undefined(values: dict[str, dict[str, NDArray[np.float64]]]) -> None:
        values["unilm"]["effective_rank"][:, :, 0] = np.nan

    text = printed(capsys, show_decomposition, found(spoil=undefined), "effective_rank")
    line = next(line for line in text.splitlines() if line.startswith(" 0 "))
    cells = [part.strip() for part in line.split("   ") if part.strip()]
    assert cells[2:4] == ["-", "-"]
    assert cells[4].endswith("/ -")


def test_training_is_shown_step_by_step_for_every_region(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [found(scale=scale, step=step) for step, scale in ((0, 0.5), (1500, 1.0))]
    lines = printed(capsys, show_training, steps, "effective_rank").splitlines()
    for region, words in zip(REGIONS, WORDS, strict=True):
        title = f"through training, {words}: effective rank, mean over trained layers (3 seeds)"
        start = next(number for number, line in enumerate(lines) if line.startswith(title))
        for line, one in zip(lines[start + 4 : start + 6], steps, strict=True):
            cells = [part.strip() for part in line.split("   ") if part.strip()]
            (row,) = [row for row in one.means("effective_rank") if row.region == region]
            assert cells[0] == f"{one.step:,}"
            assert float(cells[1].split(" ± ")[0]) == pytest.approx(row.causal, abs=0.06)


def test_companions_name_all_regions_and_define_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    split = found()
    text = printed(capsys, show_companions, split)
    for words in WORDS:
        assert sum(line.startswith(f" {words} ") for line in text.splitlines()) == LAYERS + 1
    for name in ("logit_std", "attention_entropy", "mean_ipr", "sink_mass"):
        assert f"{name.replace('_', ' ')} = {MEASURES[name].definition}" in folded(text)
    row = split.rows["logit_std"][0]
    assert f"{row.causal:.3f} / {row.prefix:.3f}" in text


def test_the_plain_values_are_json_and_say_which_scale_a_control_has() -> None:
    split = found(step=700)
    plain = json.loads(json.dumps(decomposition_as_dict(split)))
    assert (plain["step"], plain["seeds"], plain["arms"]) == (700, 3, {"causal": "gpt", "prefix": "unilm"})
    for measure, rows in split.rows.items():
        for seen, row in zip(plain["measures"][measure], rows, strict=True):
            assert (seen["region"], seen["layer"], seen["untrained"]) == (row.region, row.layer, row.untrained)
            assert (seen["causal"], seen["prefix"]) == (row.causal, row.prefix)
            assert seen["intervals"]["prefix"]["upper"] == row.own[1].upper
            assert seen["same_mask_rms"] == row.same_mask == seen["same_mask"]["pooled"]["between_seeds"]
            control = seen["same_mask"]
            assert control["causal"]["between_seeds"] == row.control.between_seeds[0]
            assert control["prefix"]["between_means"] == pytest.approx(row.control.between_seeds[1] / math.sqrt(3))
            assert control["called_over_sequences"]["within"] == {"called": row.control.within.called, "pairs": 6}
            assert (seen["matrices"], seen["missing"], seen["estimated"]) == (row.matrices, 0, 0)
            for name in EFFECTS:
                interval = row.effects[name]
                assert seen[name] == {"mean": interval.mean, "lower": interval.lower, "upper": interval.upper}


def test_two_seeds_are_said_to_be_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    said = "Two seeds make an interval of one degree of freedom"
    for seeds in (1, 2, 3):
        assert printed(capsys, show_decomposition, found(seeds), "effective_rank").count(said) == (seeds == 2)
