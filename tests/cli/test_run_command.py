"""`rankkit run`: what it prints, what it leaves in its folder, and that it leaves nothing when it fails."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from rankkit.cli import main, run
from rankkit.errors import StorageError
from rankkit.report import experiment_figures
from rankkit.studies.experiments import random_logits
from rankkit.studies.experiments.experiment import KINDS

DECLARATION = """
# Question: does it run?
kind = "random-logits"
title = "A small phase diagram"
generator = "numpy"
seeds = [0, 1, 2, 3]
measures = ["effective_rank", "stable_rank"]

[[matrices]]
n = 64
head_dim = 16
stds = [0.4, 0.6, 0.8, 1.0]

[[crossings]]
measures = ["effective_rank"]
seeds = [0, 1, 2]
tolerance = { absolute = 0.03 }

[[crossings.rows]]
n = 64
head_dim = 16
expected = ["0.68"]

[[values]]
measures = ["effective_rank", "stable_rank"]
seeds = [0, 1, 2, 3]
tolerance = { standard_errors = 2.0 }

[[values.rows]]
n = 64
head_dim = 16
mask = "causal"
std = 1.0
expected = ["99", "99"]
"""


@pytest.fixture
def declaration(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(DECLARATION, encoding="utf-8")
    return path


def invoke(*arguments: str | Path) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, ["run", *map(str, arguments)])
    torch.set_num_threads(threads)
    return result


def test_run_compares_expected_with_found_and_leaves_everything_in_its_folder(
    declaration: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    result = invoke(declaration, "--out", out)
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    crossing = lines[lines.index("n = 64, d = 16, causal/bidirectional crossing") + 4]
    assert crossing.split()[-1] == "yes"
    assert "0.68" in crossing
    missed = [line for line in lines if line.startswith("not reproduced: ")]
    assert len(missed) == 2
    assert "n = 64, d = 16, causal, std 1: effective_rank: expected 99, found " in missed[0]
    assert "1 of 3 expectations reproduced." in lines
    assert any(line.startswith("32 matrices in ") and line.endswith(str(out)) for line in lines)
    assert sorted(path.name for path in out.iterdir()) == ["experiment.toml", "figures", "results.json", "values.csv"]
    assert (out / "experiment.toml").read_text(encoding="utf-8") == DECLARATION
    names = {"causal_over_bidirectional", "measures_dot-product_64_16"}
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }


def test_results_hold_every_number_with_its_machine_and_command(declaration: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    result = invoke(declaration, "--out", out, "--json", "--quiet")
    printed = json.loads(result.stdout)
    kept = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for key in ("expectations", "crossings", "title", "kind", "seconds"):
        assert printed[key] == kept[key]
    assert printed["folder"] == str(out)
    assert kept["environment"]["threads"] >= 1
    assert kept["command"].split()[0] == "rankkit"  # a test worker has no arguments of its own
    assert [finding["reproduced"] for finding in kept["expectations"]] == [True, False, False]
    assert abs(kept["expectations"][0]["found"] - 0.68) < 0.03
    assert len(kept["means"]) == 2 * 4
    with (out / "values.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 4
    chosen = [float(row["effective_rank"]) for row in rows if (row["mask"], row["std"]) == ("causal", "1.0")]
    (mean,) = [mean["mean"] for mean in kept["means"] if (mean["mask"], mean["std"]) == ("causal", 1.0)]
    assert mean["effective_rank"] == pytest.approx(sum(chosen) / 4)
    assert result.stderr == ""


def test_plan_says_what_it_would_take_and_does_nothing(declaration: Path, tmp_path: Path) -> None:
    result = invoke(declaration, "--out", tmp_path / "results", "--plan")
    assert result.exit_code == 0, result.output
    assert "matrices: 32" in result.stdout
    assert "time: about " in result.stdout
    assert not (tmp_path / "results").exists()


def test_results_are_replaced_only_by_force_and_only_where_they_are_an_experiments(
    declaration: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    out.mkdir()
    (out / "thesis.txt").write_text("mine", encoding="utf-8")
    refused = invoke(declaration, "--out", out)
    assert refused.exit_code == 1
    assert "must not exist yet. Add --force" in refused.stderr
    refused = invoke(declaration, "--out", out, "--force")
    assert refused.exit_code == 1
    assert "must hold an experiment's results to be replaced, got something without experiment.toml" in refused.stderr
    assert (out / "thesis.txt").read_text(encoding="utf-8") == "mine"
    (out / "thesis.txt").rename(out / "experiment.toml")
    assert invoke(declaration, "--out", out, "--force").exit_code == 0
    assert (out / "experiment.toml").read_text(encoding="utf-8") == DECLARATION


def test_the_folder_is_called_after_the_experiment(
    declaration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(declaration).exit_code == 0
    assert (tmp_path / "runs" / "small" / "results.json").is_file()


def test_a_folder_that_one_stands_in_is_never_replaced(
    declaration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.toml").write_text("", encoding="utf-8")
    refused = invoke(declaration, "--out", ".", "--force")
    assert refused.exit_code == 1
    assert "must not be the folder that you are in" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_and_exits_with_130(
    number: signal.Signals, declaration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = random_logits._measured
    calls = []

    def interrupted(*arguments):  # type: ignore[no-untyped-def]
        calls.append(arguments)
        if len(calls) == 4:  # the first two measure the time
            os.kill(os.getpid(), number)
        return measure(*arguments)

    monkeypatch.setattr(random_logits, "_measured", interrupted)
    result = invoke(declaration, "--out", tmp_path / "results")
    assert result.exit_code == 130
    assert "Interrupted: " in result.stderr
    assert len(calls) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_a_failure_while_writing_leaves_nothing(
    declaration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_):  # type: ignore[no-untyped-def]
        raise StorageError("no space left")

    monkeypatch.setattr(experiment_figures, "draw_random_logits", full)
    result = invoke(declaration, "--out", tmp_path / "results")
    assert result.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_a_declaration_that_cannot_hold_is_one_line_and_wrong_usage(declaration: Path) -> None:
    declaration.write_text(DECLARATION.replace("generator", "genrator"), encoding="utf-8")
    result = invoke(declaration)
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("must not hold the unknown key 'genrator'. Did you mean generator?")
    assert len(result.stderr.strip().splitlines()) == 1


def test_one_seed_has_no_errors_and_curves_without_a_crossing_say_so(declaration: Path, tmp_path: Path) -> None:
    text = DECLARATION.replace("[0, 1, 2, 3]", "[0]").replace("[0, 1, 2]", "[0]").replace("0.4, 0.6, ", "")
    text = text.replace("standard_errors = 2.0", "relative = 0.1")
    declaration.write_text(text, encoding="utf-8")
    result = invoke(declaration, "--out", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert "±" not in result.stdout
    lines = [line.strip() for line in result.stdout.splitlines()]
    (title,) = [number for number, line in enumerate(lines) if line.startswith("Logit std above which causal is below")]
    assert ["effective_rank", "none"] in [line.split() for line in lines[title:]]
    assert "nan" not in result.stdout
    kept = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert kept["crossings"][0]["std"] is None
    assert kept["expectations"][0]["reproduced"] is False


def test_every_kind_of_experiment_has_a_runner() -> None:
    assert set(run._RUNNERS) == set(KINDS)
