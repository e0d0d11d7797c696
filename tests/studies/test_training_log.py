"""What a log hook is told: the numbers of the units' own logs, once each, and what happens when it fails."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import CORPUS, PAIR, assert_same_runs, new_run, run_config, trained_run
from tiny import CPU, STEPS, N, arm

import rankkit
from rankkit.errors import RunError
from rankkit.files import read_json_lines
from rankkit.studies import Run, TrainingLog, open_run, train_units

Told = list[tuple[str, int, float]]


class Heard:
    """A hook that writes down what it is told, and may stop the run or fail at some call."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.told: Told = []
        self.calls = 0
        self._fails_at = fails_at

    def __call__(self, values: dict[str, float], step: int) -> None:
        self.calls += 1
        if self.calls == self._fails_at:
            raise ConnectionError("no route")
        assert all(type(value) is float for value in values.values())
        self.told += [(name, step, value) for name, value in values.items()]

    def named(self, end: str) -> dict[tuple[str, int], float]:
        return {(name, step): value for name, step, value in self.told if name.endswith(end)}


def logged(run: Run) -> Told:
    """The same from the units' logs and nothing else."""
    expected: Told = []
    read = run.config.base.train.batch_size * N
    for name, seed in run.config.units:
        for line in read_json_lines(run.directory.metrics(name, seed)):
            prefix, step, kind = f"{name}/seed-{seed}", line.pop("step"), line.pop("kind")
            if kind == "evaluation":
                expected.append((f"{prefix}/validation_loss", step, line["loss"]))
            else:
                expected += [(f"{prefix}/{key}", step, float(value)) for key, value in line.items()]
                expected.append((f"{prefix}/tokens_per_second", step, read / line["seconds"]))
    for (name, step), value in {(name, step): value for name, step, value in expected}.items():
        arm_name, _, rest = name.partition("/")
        if arm_name == "unilm" and rest.endswith("loss"):
            other = {(n, s): v for n, s, v in expected}[f"gpt/{rest}", step]
            expected.append((f"unilm-gpt/{rest.removesuffix('loss')}difference", step, value - other))
    return expected


def training(run: Run, log: Any, *, workers: int = 1, stop: Callable[[], bool] = lambda: False) -> bool:
    return train_units(run, device=CPU, workers=workers, on_message=TrainingLog(run, log), stop=stop)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hook_is_told_every_line_of_the_logs_and_the_paired_differences_once(tmp_path: Path, workers: int) -> None:
    run, heard = new_run(tmp_path / "run"), Heard()
    assert training(run, heard, workers=workers)
    assert sorted(heard.told) == sorted(logged(run))
    assert {step for _, step in heard.named("seed-1/validation_difference")} == {0, 5, 10, STEPS}
    assert {step for _, step in heard.named("seed-0/difference")} == {2, 4, 6, 8, 10, STEPS}


def test_losses_over_different_targets_have_no_difference(tmp_path: Path) -> None:
    run, heard = new_run(tmp_path / "run", run_config(("gpt", "gpt-full", "bert"), (0,), steps=2)), Heard()
    assert training(run, heard)
    names = {name for name, _, _ in heard.told if name.endswith("difference")}
    assert names == {"gpt-full-gpt/seed-0/validation_difference"}  # one task, two objectives


def test_a_run_that_was_interrupted_tells_no_step_twice_and_none_is_missing(tmp_path: Path) -> None:
    run, heard = new_run(tmp_path / "run"), Heard()
    assert not training(run, heard, stop=lambda: heard.calls > 9)
    first = heard.calls
    assert training(open_run(run.directory.path), heard)
    assert 9 < first < heard.calls
    assert max(Counter((name, step) for name, step, _ in heard.told).values()) == 1
    assert sorted(heard.told) == sorted(logged(run))


FAILED = (
    r"log must take values and a step, but Heard raised ConnectionError at step \d+: no route\. Every finished step is "
    r"saved: mend it, then continue with rankkit train-pair --resume .*run\.$"
)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hook_that_raises_ends_the_run_named_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, workers: int
) -> None:
    run, heard, again = new_run(tmp_path / "run"), Heard(fails_at=7), Heard()
    with pytest.raises(RunError, match=FAILED):
        training(run, heard, workers=workers)
    assert heard.calls == 7
    assert run.unfinished
    assert training(run, again)
    told = Counter((name, step) for name, step, _ in (*heard.told, *again.told))
    assert max(told.values()) == 1
    assert set(told) <= {(name, step) for name, step, _ in logged(run)}
    assert_same_runs(run, trained_run(tmp_path / "whole"))


def test_train_pair_takes_a_hook(tmp_path: Path) -> None:
    heard = Heard()
    run = rankkit.train_pair(
        arm("gpt"), out=tmp_path / "run", text=CORPUS, arms=PAIR, seeds=(0,), device="cpu", workers=1, log=heard
    )
    assert sorted(heard.told) == sorted(logged(run))


def test_a_damaged_log_is_refused_by_name(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", run_config(seeds=(0,)))
    path = run.directory.metrics("gpt", 0)
    path.write_text(json.dumps({"step": 1, "kind": "train"}) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"must hold lines with kind, step and loss, got one without loss\. Restore"):
        TrainingLog(run, Heard())
