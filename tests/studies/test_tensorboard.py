"""TensorBoard's own reader finds what a hook was told."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from small_run import new_run, run_config
from tiny import CPU, STEPS

from rankkit.errors import ConfigurationError
from rankkit.studies import TensorBoardLog, TrainingLog, train_units
from rankkit.studies.monitoring import tensorboard

INSTALLED = importlib.util.find_spec("tensorboard") is not None
NEEDED = pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed: pip install 'rankkit[tensorboard]'")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@NEEDED
def test_tensorboard_reads_what_training_told(tmp_path: Path) -> None:
    run, told = new_run(tmp_path / "run", run_config(seeds=(0,))), []

    with TensorBoardLog(tmp_path / "logs") as log:

        def hear(values: dict[str, float], step: int) -> None:
            told.extend((name, step, value) for name, value in values.items())
            log(values, step)

        assert train_units(run, device=CPU, workers=1, on_message=TrainingLog(run, hear))
    units = {str(path.parent.relative_to(tmp_path / "logs")) for path in (tmp_path / "logs").rglob("events*")}
    assert units == {"gpt/seed-0", "unilm/seed-0", "unilm-gpt/seed-0"}
    read = [
        (f"{unit}/{tag}", step, value)
        for unit in units
        for tag, points in scalars(tmp_path / "logs" / unit).items()
        for step, value in points
    ]
    assert sorted(read) == sorted((name, step, float(np.float32(value))) for name, step, value in told)
    assert max(step for _, step, _ in read) == STEPS


@NEEDED
def test_what_is_told_again_after_a_kill_supersedes_what_was_told_before(tmp_path: Path) -> None:
    for start, value in ((0, 1.0), (3, 2.0)):
        with TensorBoardLog(tmp_path) as log:
            for step in range(start, 6):
                log({"gpt/seed-0/loss": value}, step)
    expected = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert scalars(tmp_path / "gpt" / "seed-0") == {"loss": expected}


@NEEDED
def test_a_name_without_a_seed_stays_whole_and_what_is_not_finite_is_kept(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path) as log:
        log({"rank/effective_rank/layer_0": math.inf}, 2)
    assert scalars(tmp_path) == {"rank/effective_rank/layer_0": [(2, math.inf)]}


def test_without_tensorboard_the_log_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigurationError, match=r"must have tensorboard installed, which it is not\. Run pip install "
    ):
        TensorBoardLog(tmp_path)
    assert list(tmp_path.iterdir()) == []
