"""`rankkit run` of an experiment on trained arms: results, the same table again, --plan, interruptions and kills."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from click.testing import CliRunner, Result
from declared import EXPERIMENTS, NAMES, SMALL

from rankkit.cli import main
from rankkit.studies.experiments import trained_runs
from rankkit.training.unit import Stepped

FILE = EXPERIMENTS / "gpt_vs_unilm.toml"
IN_TURN = """
from rankkit.studies.experiments import trained_runs
trained_runs.default_workers = lambda device, units: (1, 1)
from rankkit.cli import main
main()
"""
OPTIONS = [word for assignment in (*SMALL, "seeds=[0, 1]") for word in ("--set", assignment)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, units in turn: starting workers takes longer than training here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trained_runs, "default_workers", lambda device, units: (1, 1))


def invoke(*arguments: str | Path) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, ["run", *map(str, arguments)])
    torch.set_num_threads(threads)
    return result


def test_a_run_leaves_its_results_and_a_rerun_the_same_table() -> None:
    result = invoke(FILE, *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "training pair (4 of 4 units) in runs/experiments/" in result.stderr
    assert "not trained enough: pair/gpt < pair/unilm: loss, left - right " in result.stdout
    out = Path("runs/gpt_vs_unilm")
    names = ["experiment.toml", "figures", "results.json", "table.md", "values.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (out / "experiment.toml").read_text() == FILE.read_text()
    assert sorted(path.name for path in (out / "figures").glob("*.png")) == ["claims.png", "numbers.png"]
    kept = json.loads((out / "results.json").read_text())
    assert "base.train.steps=20" in kept["assignments"]
    assert kept["runs"]["pair"]["environment"]["threads"] == 1
    assert len(kept["runs"]["pair"]["corpus_sha256"]) == 64
    assert kept["verdicts"][0]["minimum_detectable_effect"] > 0
    with (out / "values.csv").open(newline="") as file:
        values = {(row["cell"], row["seed"]): float(row["value"]) for row in csv.DictReader(file)}
    differences = [values["pair/gpt", seed] - values["pair/unilm", seed] for seed in "01"]
    assert kept["verdicts"][0]["by_seed"] == pytest.approx(differences)
    table = (out / "table.md").read_bytes()

    again = invoke(FILE, *OPTIONS, "--force", "--json")
    assert again.exit_code == 0, again.output
    assert "training" not in again.stderr
    assert (out / "table.md").read_bytes() == table
    printed = json.loads(again.stdout)
    assert printed["verdicts"] == kept["verdicts"]
    assert printed["question"].startswith("Does a prefix mask")


def test_results_are_replaced_only_by_force() -> None:
    Path("runs/gpt_vs_unilm").mkdir(parents=True)
    Path("runs/gpt_vs_unilm/experiment.toml").write_text("")
    refused = invoke(FILE, *OPTIONS)
    assert refused.exit_code == 1
    assert "must not exist yet. Add --force" in refused.stderr
    assert not Path("runs/experiments").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_of_every_experiment_says_what_it_takes_and_does_nothing(name: str) -> None:
    result = invoke(EXPERIMENTS / f"{name}.toml", *OPTIONS, "--plan")
    assert result.exit_code == 0, result.output
    assert "question: " in result.stdout
    assert "declared cost of everything: " in result.stdout
    assert not Path("runs").exists()
    found = json.loads(invoke(EXPERIMENTS / f"{name}.toml", *OPTIONS, "--plan", "--json").stdout)
    assert all(run["missing"] == run["units"] > 0 for run in found["runs"])
    assert found["resolvable"]


def test_ctrl_c_keeps_what_was_trained_and_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    train_units, stepped = trained_runs.train_units, []

    def interrupted(run, *, on_message, **options):  # type: ignore[no-untyped-def]
        def listen(message):  # type: ignore[no-untyped-def]
            on_message(message)
            stepped.extend([message] if isinstance(message, Stepped) else [])
            if isinstance(message, Stepped) and len(stepped) == 30:
                os.kill(os.getpid(), signal.SIGINT)

        return train_units(run, on_message=listen, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trained_runs, "train_units", interrupted)
        first = invoke(FILE, *OPTIONS)
    assert first.exit_code == 130, first.output
    assert "Interrupted: training was interrupted; every finished step is kept" in first.stderr
    assert not Path("runs/gpt_vs_unilm").exists()
    assert len(stepped) < 4 * 20
    assert invoke(FILE, *OPTIONS).exit_code == 0
    table = Path("runs/gpt_vs_unilm/table.md").read_bytes()
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert invoke(FILE, *OPTIONS).exit_code == 0
    assert Path("runs/gpt_vs_unilm/table.md").read_bytes() == table


def test_a_killed_run_goes_on() -> None:
    """SIGKILL in the middle of training, which leaves locks, temporary files and torn logs as they are."""
    longer = ["--set", "base.train.steps=60"]
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TURN, "run", str(FILE), *OPTIONS, *longer, "--set", "seeds=[0]"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = monotonic() + 120
    while not list(Path("runs/experiments").glob("*/*/seed-0/step-000005")) and monotonic() < end:
        sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("runs/gpt_vs_unilm").exists()
    result = invoke(FILE, *OPTIONS, *longer, "--set", "seeds=[0]")
    assert result.exit_code == 0, result.output
    assert "one seed gives no verdict" in result.stdout


def test_wrong_settings_are_one_line_and_wrong_usage() -> None:
    result = invoke(FILE, "--set", "base.train.stepps=3")
    assert result.exit_code == 2
    assert "must not hold the unknown key 'stepps'. Did you mean steps?" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
