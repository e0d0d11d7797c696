"""What `train-pair` leaves for TensorBoard, and what it writes where nobody looks."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from small_run import new_run, run_config

from rankkit.cli import main
from rankkit.studies import Run
from rankkit.studies.monitoring import tensorboard

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="tensorboard is not installed: pip install 'rankkit[tensorboard]'",
)


def invoke(*arguments: object) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, list(map(str, arguments)))
    torch.set_num_threads(threads)
    return result


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "run", run_config(seeds=(0,)))


@NEEDED
def test_train_pair_logs_for_tensorboard_also_when_it_is_resumed(run: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    result = invoke("train-pair", "--resume", run.directory.path, "--workers", "1", "--log-dir", logs)
    assert result.exit_code == 0, result.output
    found = EventAccumulator(str(logs / "unilm-gpt" / "seed-0"))
    found.Reload()
    assert [event.step for event in found.Scalars("validation_difference")] == [0, 5, 10, 12]
    again = invoke("train-pair", "--resume", run.directory.path, "--workers", "1", "--log-dir", tmp_path / "none")
    assert again.exit_code == 0
    assert not (tmp_path / "none").exists()  # nothing was trained, so nothing was told


def test_without_tensorboard_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    result = invoke("train-pair", "--log-dir", tmp_path / "logs", "--out", tmp_path / "run")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line == (
        "Error: a TensorBoard log must have tensorboard installed, which it is not. Run pip install 'rankkit[tensorboard]'."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_batch_job_reads_what_a_seed_ended_with_and_nothing_with_quiet(run: Run, tmp_path: Path) -> None:
    loud = invoke("train-pair", "--resume", run.directory.path, "--workers", "1")
    (line,) = loud.stderr.splitlines()
    assert re.match(
        r"seed 0, step 12 of 12: held-out loss gpt \d\.\d{4}, unilm \d\.\d{4}, unilm - gpt [+-]0\.\d{4}; 100%, ", line
    )
    other = new_run(tmp_path / "other", run_config(seeds=(0,)))
    assert invoke("train-pair", "--resume", other.directory.path, "--workers", "1", "--quiet").stderr == ""
