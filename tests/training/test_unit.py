"""A unit that is interrupted anywhere and resumed ends in the bits of one that was not."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CPU, STEPS, arm, assert_same_outcome, outcome, run_in, train, trainer

from rankkit.errors import NonFiniteLossError, RunError, StorageError
from rankkit.files import RunDirectory, read_json_lines
from rankkit.models import Transformer
from rankkit.training import load_model, read_facts, train_unit, unit
from rankkit.training import trainer as trainer_module
from rankkit.training.checkpoints import latest_resumable_step
from rankkit.training.consumption import parameter_hashes
from rankkit.training.unit import Evaluated, Finished, Interrupted, Ready, Saved, Stepped


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_in(tmp_path_factory.mktemp("tokens")).tokens


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> RunDirectory:
    """A run whose one unit was never interrupted."""
    run = run_in(tmp_path_factory.mktemp("whole"), tokens=tokens)
    train(run, arm())
    return run


@pytest.fixture
def run(tmp_path: Path, tokens: Path) -> RunDirectory:
    return run_in(tmp_path / "run", tokens=tokens)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_interrupted_at_any_step_and_resumed_equals_uninterrupted(
    step: int, run: RunDirectory, whole: RunDirectory
) -> None:
    messages = train(run, arm(), stop_after=step)
    if step < STEPS:
        assert messages[-1] == Interrupted("unilm", 0, step)
        assert isinstance(messages[-2], Saved)
        assert not run.evaluation("unilm", 0).exists()
        resumed = train(run, arm())
        assert isinstance(resumed[0], Ready)
        assert resumed[0].step == step
        assert [m.record.step for m in resumed if isinstance(m, Stepped)] == list(range(step + 1, STEPS + 1))
    assert_same_outcome(outcome(run), outcome(whole))


def test_interrupted_at_every_step_equals_uninterrupted(run: RunDirectory, whole: RunDirectory) -> None:
    for _ in range(STEPS):
        train(run, arm(), stop_after=1)
    assert_same_outcome(outcome(run), outcome(whole))


@pytest.mark.parametrize("name", ["gpt", "gpt-full", "bert", "mixed-heads"])
def test_other_arms_resume_to_the_same_bits(name: str, tmp_path: Path, tokens: Path) -> None:
    runs = [run_in(tmp_path / folder, tokens=tokens) for folder in ("whole", "parts")]
    config = arm(name, model={"vocab_size": 258})
    train(runs[0], config, name=name, seed=2)
    for _ in range(3):
        train(runs[1], config, name=name, seed=2, stop_after=5)
    assert_same_outcome(*(outcome(each, name, seed=2) for each in runs))


def test_an_abandoned_generator_is_a_kill_and_resumes_from_the_last_checkpoint(
    run: RunDirectory, whole: RunDirectory
) -> None:
    """Dropped at each of its messages in turn, without a chance to save."""
    count, finished = 0, False
    while not finished:
        count += 1
        generator = train_unit(run, "unilm", arm(), 0, device=CPU, stop=lambda: False)
        for _, message in zip(range(count), generator, strict=False):
            finished = isinstance(message, Finished)
        generator.close()
    assert count > 5
    assert_same_outcome(outcome(run), outcome(whole))


class Killed(BaseException):
    """No more than a name for the end of a process: nothing may catch it."""


class Crash:
    """Ends a run before its n-th call of anything that touches the disk; afterwards nothing touches it any more."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.calls = at, 0
        for owner, name in (
            (os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "write_bytes"), (Path, "write_text"),
            (shutil, "rmtree"), (unit, "append_json_line"), (unit, "keep_json_lines"), (Path, "mkdir"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.calls >= self.at:
                raise Killed
            return function(*arguments, **keywords)

        return counted


SHORT = {"steps": 3, "checkpoint_interval": 1, "evaluation_interval": 2, "log_interval": 1}


def test_killed_before_any_touch_of_the_disk_and_resumed_equals_uninterrupted(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # 1500 times waiting for a busy disk; still counted below
    config = arm(model={"num_layers": 1}, **SHORT)
    plain = run_in(tmp_path / "plain", tokens=tokens)
    with pytest.MonkeyPatch.context() as patch:
        crash = Crash(patch, at=10**9)
        train(plain, config)
    expected, calls = outcome(plain, steps=3), crash.calls
    assert calls > 40
    for at in range(1, calls + 1):
        run = run_in(tmp_path / f"{at}", tokens=tokens)
        with pytest.MonkeyPatch.context() as patch:
            Crash(patch, at)
            with pytest.raises(Killed):
                train(run, config)
        for step in run.checkpoint_steps("unilm", 0):  # whatever has its name is whole
            load_model(run.checkpoint("unilm", 0, step), config.model)
        train(run, config)
        assert_same_outcome(outcome(run, steps=3), expected)
        assert sorted(path.name for path in run.unit("unilm", 0).iterdir()) == [
            "evaluation.json", "metrics.jsonl", *(f"step-{step:06d}" for step in range(4)),
        ]  # fmt: skip


def test_messages_tell_everything_in_order(run: RunDirectory) -> None:
    messages = train(run, arm())
    assert isinstance(messages[0], Ready)
    assert messages[0].step == 0
    assert messages[0].initial == read_facts(run.checkpoint("unilm", 0, 0))
    assert [m.record.step for m in messages if isinstance(m, Stepped)] == list(range(1, 13))
    assert [m.step for m in messages if isinstance(m, Evaluated)] == [5, 10, 12]
    assert [m.facts.step for m in messages if isinstance(m, Saved)] == [4, 8, 12]
    last = messages[-1]
    assert isinstance(last, Finished)
    assert last.loss == next(m for m in reversed(messages) if isinstance(m, Evaluated)).loss
    assert run.checkpoint_steps("unilm", 0) == [0, 4, 8, 12]


def test_the_log_has_every_interval_and_the_last_step(whole: RunDirectory) -> None:
    lines = read_json_lines(whole.metrics("unilm", 0))
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [0, 5, 10, 12]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10, 12]
    assert set(steps[0]) == {
        "kind", "step", "loss", "gradient_norm", "learning_rate", "tokens", "loss_tokens", "seconds"
    }  # fmt: skip


def test_step_zero_holds_the_initial_weights_of_the_configuration_and_seed(whole: RunDirectory) -> None:
    facts = read_facts(whole.checkpoint("unilm", 0, 0))
    assert facts.parameters == parameter_hashes(Transformer(arm().model, seed=0))
    assert set(facts.chains.values()) == {""}
    assert facts.loss_tokens == 0


def test_final_evaluation_is_that_of_the_final_weights(whole: RunDirectory) -> None:
    document = json.loads(whole.evaluation("unilm", 0).read_text())
    it = trainer(arm(), whole)
    it.model = load_model(whole.checkpoint("unilm", 0, STEPS), it.config.model)
    found, uniform = it.evaluate(), it.evaluate_without_attention()
    assert document["trained"] == {"by_sequence": found.by_sequence.tolist(), "by_position": found.by_position.tolist()}
    assert document["uniform_attention"]["by_sequence"] == uniform.by_sequence.tolist()
    assert (document["loss"], document["uniform_attention_loss"]) == (found.loss, uniform.loss)
    assert (document["rankkit_evaluation"], document["step"], document["prefix_length"]) == (1, STEPS, 16)
    assert document["loss_tokens"] == read_facts(whole.checkpoint("unilm", 0, STEPS)).loss_tokens


def test_a_complete_unit_is_left_as_it_is(run: RunDirectory, whole: RunDirectory) -> None:
    train(run, arm())
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.rglob("*") if path.is_file()}
    (message,) = train(run, arm())
    assert message == Finished("unilm", 0, json.loads(whole.evaluation("unilm", 0).read_text())["loss"])
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.rglob("*") if path.is_file()}
    assert after == before


def test_asked_to_stop_at_the_last_step_it_finishes(run: RunDirectory) -> None:
    messages = train(run, arm(), stop_after=STEPS)
    assert isinstance(messages[-1], Finished)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint_and_names_the_step(
    run: RunDirectory, whole: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = trainer_module.token_losses, []

    def token_losses(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments) * (math.nan if len(calls) == 7 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "token_losses", token_losses)
        with pytest.raises(NonFiniteLossError, match=r"got loss nan .* at step 7\. Step 6 was saved"):
            train(run, arm())
    assert latest_resumable_step(run, "unilm", 0) == 6
    shutil.rmtree(run.checkpoint("unilm", 0, 6))
    shutil.rmtree(run.checkpoint("unilm", 0, 4))  # it gave its optimizer state to step 6, so this begins anew
    train(run, arm())  # the cause is gone: from the kept checkpoint everything comes out as it should
    assert_same_outcome(outcome(run), outcome(whole))


@pytest.mark.parametrize("rate", [3e38, 1e37])
def test_weights_that_overflow_are_a_named_error_and_not_a_traceback(rate: float, run: RunDirectory) -> None:
    with pytest.raises(NonFiniteLossError, match=r"must stay finite, got .* at step \d+\. "):
        train(run, arm(learning_rate=rate, evaluation_interval=1, warmup_fraction=0.0))
    saved = latest_resumable_step(run, "unilm", 0)
    assert saved is not None
    assert saved <= 2
    for line in read_json_lines(run.metrics("unilm", 0)):
        assert math.isfinite(line["loss"])


def test_a_full_disk_stops_with_the_last_checkpoint_usable(
    run: RunDirectory, whole: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Path.write_bytes, []

    def write_bytes(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) > 4:  # two files per checkpoint: the third checkpoint, of step 8, fails
            raise OSError(28, "No space left on device")
        return original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(
            StorageError, match=r"step-000008 must be writable, got: no space left on device. Free some"
        ):
            train(run, arm())
    assert latest_resumable_step(run, "unilm", 0) == 4
    train(run, arm())
    assert_same_outcome(outcome(run), outcome(whole))


def test_a_newest_checkpoint_that_was_deleted_starts_anew_and_ends_alike(
    run: RunDirectory, whole: RunDirectory
) -> None:
    """Older checkpoints have no optimizer state, so deleting the newest goes back to the beginning."""
    train(run, arm(), stop_after=9)
    shutil.rmtree(run.checkpoint("unilm", 0, 9))
    assert latest_resumable_step(run, "unilm", 0) is None
    train(run, arm(), stop_after=2)
    assert latest_resumable_step(run, "unilm", 0) == 2
    train(run, arm())
    assert_same_outcome(outcome(run), outcome(whole))


def test_a_torn_last_line_of_the_log_is_written_anew(run: RunDirectory, whole: RunDirectory) -> None:
    train(run, arm(), stop_after=6)
    with run.metrics("unilm", 0).open("a") as file:
        file.write('{"kind": "train", "st')
    train(run, arm())
    assert_same_outcome(outcome(run), outcome(whole))


def test_lines_after_the_checkpoint_are_dropped(run: RunDirectory, whole: RunDirectory) -> None:
    """As after a kill between two checkpoints: those steps are done again and must not be logged twice."""
    train(run, arm(), stop_after=6)
    with run.metrics("unilm", 0).open("a") as file:
        file.write('{"kind": "train", "loss": 1.0, "step": 7}\n{"kind": "evaluation", "loss": 1.0, "step": 10}\n')
    train(run, arm())
    assert_same_outcome(outcome(run), outcome(whole))


@pytest.mark.parametrize("line", ["{}", "3", "null", '{"step": null}', '{"step": "x"}', "[]"])
def test_a_foreign_log_is_one_error(line: str, run: RunDirectory) -> None:
    train(run, arm(), stop_after=6)
    run.metrics("unilm", 0).write_text(line + "\n")
    with pytest.raises(
        RunError, match=r"metrics.jsonl must hold log lines with a step, got damage: .*Restore the file"
    ):
        train(run, arm())


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"loss": null}', '{"loss": "x"}', "null"])
def test_a_damaged_final_evaluation_is_one_error(content: str, run: RunDirectory) -> None:
    run.unit("unilm", 0).mkdir(parents=True)
    run.evaluation("unilm", 0).write_text(content)
    with pytest.raises(
        RunError, match=r"evaluation.json must hold a finished evaluation, got: .*Delete it and --resume"
    ):
        train(run, arm())


def test_a_run_without_tokens_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"tokens.json must be readable, got: No such file or directory"):
        train(RunDirectory(tmp_path / "nothing"), arm())


def test_a_unit_folder_that_cannot_be_made_is_one_error(run: RunDirectory) -> None:
    (run.path / "unilm").touch()
    with pytest.raises(StorageError, match=r"unilm/seed-0 must be writable, got: not a directory"):
        train(run, arm())


def test_seeds_train_beside_each_other_without_meeting(run: RunDirectory, whole: RunDirectory) -> None:
    generators = [train_unit(run, "unilm", arm(), seed, device=CPU, stop=lambda: False) for seed in (0, 1)]
    for _ in zip(*generators, strict=True):
        pass
    assert_same_outcome(outcome(run), outcome(whole))
    assert outcome(run, seed=1)["weights"] != outcome(run)["weights"]


def test_how_often_is_saved_evaluated_and_logged_changes_no_weight(run: RunDirectory, whole: RunDirectory) -> None:
    config = arm()
    config = replace(config, train=replace(config.train, checkpoint_interval=1, evaluation_interval=1, log_interval=1))
    train(run, config)
    found, expected = outcome(run), outcome(whole)
    assert found["weights"] == expected["weights"]
    assert found["evaluation"] == expected["evaluation"]
