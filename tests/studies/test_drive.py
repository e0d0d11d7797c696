"""Units side by side: workers that are killed, told to stop or refused, signals to real processes, and shards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_run import (
    ALL_ARMS,
    PAIR,
    assert_same_runs,
    children,
    new_run,
    run_config,
    steps_of,
    trained_run,
)
from tiny import CPU, STEPS, train

from rankkit.errors import ConfigurationError, MatchError, NonFiniteLossError, RunError, StorageError
from rankkit.files import exclusive
from rankkit.studies import Run, build_certificate, open_run, train_units
from rankkit.studies.drive import interruption
from rankkit.studies.train_pair import default_workers, shard_of
from rankkit.training.unit import Finished, Interrupted, Message, Ready, Stepped

LONG = 4000
"""Steps that take a worker minutes: whoever ends before them was stopped."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What every run in this file must end as."""
    return trained_run(tmp_path_factory.mktemp("uninterrupted") / "run")


def resume(path: Path) -> Run:
    run = open_run(path)
    assert train_units(run, device=CPU, workers=1)
    return run


# Messages and stopping, in this process.


def test_the_arms_of_a_seed_advance_together_and_seeds_in_order(tmp_path: Path) -> None:
    heard: list[Message] = []
    train_units(new_run(tmp_path / "run"), device=CPU, workers=1, on_message=heard.append)
    steps = [(message.seed, message.record.step, message.arm) for message in heard if isinstance(message, Stepped)]
    assert steps == [(seed, step, arm) for seed in (0, 1) for step in range(1, STEPS + 1) for arm in PAIR]
    assert [type(message) for message in heard[:2]] == [Ready, Ready]
    finished = [(message.arm, message.seed) for message in heard if isinstance(message, Finished)]
    assert finished == [(arm, seed) for seed in (0, 1) for arm in PAIR]


@pytest.mark.parametrize("after", [1, 9, 55])
def test_a_run_that_was_stopped_anywhere_resumes_to_the_same_bits(
    after: int, tmp_path: Path, uninterrupted: Run
) -> None:
    heard: list[Message] = []
    run = new_run(tmp_path / "run")
    assert not train_units(
        run, device=CPU, workers=1, on_message=heard.append, stop=lambda: len(heard) >= after
    )  # fmt: skip
    assert any(isinstance(message, Interrupted) for message in heard)
    assert run.unfinished
    assert_same_runs(resume(tmp_path / "run"), uninterrupted)


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused_instead_of_training_nothing(workers: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"workers must be at least 1, got {workers}"):
        train_units(new_run(tmp_path / "run"), device=CPU, workers=workers)


def fails_at(step: int, error: Exception) -> Callable[[Message], None]:
    def hear(message: Message) -> None:
        if isinstance(message, Stepped) and message.record.step == step:
            raise error

    return hear


def test_what_a_listener_raises_stops_all_units_after_they_have_saved(tmp_path: Path, uninterrupted: Run) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(StorageError, match="the view is full"):
        train_units(run, device=CPU, workers=1, on_message=fails_at(7, StorageError("the view is full")))
    assert steps_of(run) == {("gpt", 0): [0, 4, 7], ("unilm", 0): [0, 4, 6], ("gpt", 1): [], ("unilm", 1): []}
    assert_same_runs(resume(tmp_path / "run"), uninterrupted)


def test_a_unit_that_fails_stops_the_others_after_they_have_saved(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", run_config(learning_rate=1e30))
    with pytest.raises(NonFiniteLossError, match="at step 2"):
        train_units(run, device=CPU, workers=1)
    assert build_certificate(run)["pairs"][0]["matched"] is True
    assert run.unfinished == run.config.units


# Worker processes.


def test_a_killed_worker_is_named_and_the_others_save_and_the_run_resumes_to_the_same_bits(
    tmp_path: Path, uninterrupted: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[Message] = []
    killed: list[str] = []

    def kill(message: Message) -> None:
        heard.append(message)
        both = {entry.arm for entry in heard if isinstance(entry, Stepped)} == set(PAIR)
        if both and not killed:
            victim = children()[0]
            victim.send_signal(signal.SIGKILL)
            killed.append(PAIR[0])  # the first worker was given the first unit

    run = new_run(tmp_path / "run", run_config(PAIR, (0,), steps=LONG))
    with pytest.raises(
        RunError, match=r"worker of gpt, seed 0 must live until its unit is done, .* --resume continues"
    ):
        train_units(run, device=CPU, workers=2, on_message=kill)
    assert not children()
    last = [message for message in heard if isinstance(message, Interrupted)]
    assert [(message.arm, message.step) for message in last] == [("unilm", max(steps_of(run)["unilm", 0]))]
    assert "Traceback" not in capfd.readouterr().err
    assert not any(".partial-" in path.name for path in run.directory.unit("unilm", 0).iterdir())
    # Both continue to the very bits of a run that nobody disturbed, up to a step that takes no minutes.
    end = max(max(steps) for steps in steps_of(run).values()) + 3
    stepped: dict[str, int] = {}

    def follow(message: Message) -> None:
        if isinstance(message, Stepped):
            stepped[message.arm] = message.record.step

    def there() -> bool:
        return stepped.keys() == set(PAIR) and min(stepped.values()) >= end

    train_units(open_run(run.directory.path), device=CPU, workers=1, on_message=follow, stop=there)
    certificate = build_certificate(run)
    assert certificate["matched"] is True
    control = new_run(tmp_path / "control", run_config(PAIR, (0,), steps=LONG))
    stepped.clear()
    train_units(control, device=CPU, workers=1, on_message=follow, stop=there)
    for arm in PAIR:
        steps = sorted(set(steps_of(run)[arm, 0]) & set(steps_of(control)[arm, 0]))
        assert len(steps) > 1
        for step in steps:
            weights = "model.safetensors"
            found, expected = (each.directory.checkpoint(arm, 0, step) / weights for each in (run, control))
            assert found.read_bytes() == expected.read_bytes()


def test_a_unit_that_fails_in_a_worker_is_raised_here_without_a_traceback_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path / "run", run_config(("gpt",), (0,), learning_rate=1e30))
    with pytest.raises(NonFiniteLossError, match="at step 2"):
        train_units(run, device=CPU, workers=2)  # one unit is one worker
    assert capfd.readouterr().err == ""
    assert not children()


# Whole processes. A parent and two workers each, so few of them.

SCRIPT = """
import sys
from small_run import CORPUS, run_config
from rankkit.studies import train_pair

if __name__ == "__main__":
    path, steps, *arms = sys.argv[1:]
    base = run_config(steps=int(steps), checkpoint_interval=1000).base
    train_pair(base, out=path, text=CORPUS, arms=arms, seeds=(0,), device="cpu", workers=2)
"""


@contextlib.contextmanager
def process(path: Path, arms: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """train_pair with a worker for each arm, in a process group of its own, as a shell would start it."""
    script = path.with_suffix(".py")
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(path), str(LONG), *arms]
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as started:  # fmt: skip
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait until it holds, for at most as long as a loaded machine may take."""
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("waited a minute in vain")


def logged(path: Path, arms: Sequence[str]) -> bool:
    """Whether the arms have trained some steps."""
    logs = [path / arm / "seed-0" / "metrics.jsonl" for arm in arms]
    return all(log.is_file() and log.read_text().count('"kind": "train"') > 1 for log in logs)


def finish(path: Path) -> Run:
    """Resume to a step just after the last checkpoint, in turn."""
    run = open_run(path)
    end = max(max(steps, default=0) for steps in steps_of(run).values()) + 2
    reached = dict.fromkeys(run.config.arms, 0)

    def hear(message: Message) -> None:
        if isinstance(message, Stepped):
            reached[message.arm] = message.record.step

    train_units(run, device=CPU, workers=1, on_message=hear, stop=lambda: min(reached.values()) >= end)
    return run


def assert_undisturbed(run: Run, folder: Path) -> None:
    """Every checkpoint of a run is that of one which nobody disturbed."""
    control = new_run(folder, run.config)
    wanted = {unit: set(steps) for unit, steps in steps_of(run).items()}
    for (arm, seed), steps in wanted.items():
        for step in sorted(steps):
            if step:
                train(control.directory, run.config.arm(arm), name=arm, seed=seed, stop_after=step - max(
                    control.directory.checkpoint_steps(arm, seed), default=0
                ))  # fmt: skip
        for step in steps:
            found, expected = (each.directory.checkpoint(arm, seed, step) for each in (run, control))
            for file in ("model.safetensors",):
                assert (found / file).read_bytes() == (expected / file).read_bytes(), (arm, step)
        lines = [each.directory.metrics(arm, seed).read_text().count("\n") for each in (run, control)]
        assert lines[0] == lines[1]


def test_ctrl_c_saves_and_the_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with process(path, PAIR) as started:
        until(lambda: logged(path, PAIR), started)
        os.killpg(started.pid, signal.SIGINT)  # the terminal sends it to the workers too
        _, error = started.communicate(timeout=120)
    assert started.returncode == -signal.SIGINT
    assert error.count("Traceback") == 1
    assert f"KeyboardInterrupt: every finished step is saved; continue with rankkit train-pair --resume {path}" in error
    run = open_run(path)
    saved = [max(steps, default=0) for steps in steps_of(run).values()]
    assert all(0 < step < LONG for step in saved)
    assert build_certificate(run)["matched"] is True
    assert_undisturbed(finish(path), tmp_path / "control")


def test_a_killed_run_lets_go_of_its_lock_and_its_workers_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with process(path, ("unilm",)) as started:
        until(lambda: logged(path, ("unilm",)), started)
        with pytest.raises(RunError, match="must not be in use, but another rankkit process is writing it"):
            train_units(open_run(path), device=CPU, workers=1)
        workers = children(started.pid)
        started.kill()
        started.wait()
        gone, alive = psutil.wait_procs(workers, timeout=60)
        assert (len(gone), alive) == (1, [])
    assert_undisturbed(finish(path), tmp_path / "control")


def test_a_refused_process_touches_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with exclusive(run.directory.path / ".lock", "it"):
        before = sorted(run.directory.path.rglob("*"))
        with pytest.raises(RunError, match="must not be in use"):
            train_units(run, device=CPU, workers=1)
        assert sorted(run.directory.path.rglob("*")) == before


def test_an_interruption_is_asked_for_once_and_a_second_signal_is_the_usual_one() -> None:
    with interruption() as request:
        assert not request()
        signal.raise_signal(signal.SIGINT)
        assert request()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with interruption() as request:
        assert not request()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# Shards.


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_shards_cover_every_unit_once_in_even_parts(count: int) -> None:
    units = run_config(ALL_ARMS, range(3)).units
    parts = [shard_of(units, (index, count)) for index in range(count)]
    assert sorted(unit for part in parts for unit in part) == sorted(units)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(shard: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"shard must be i/n with 0 <= i < n, got {shard[0]}/{shard[1]}"):
        train_units(new_run(tmp_path / "run"), device=CPU, workers=1, shard=shard)


def shards(folder: Path, **changes: Any) -> list[Run]:
    """Two halves of a run, each trained where the other's files are not; `changes` are those of the second."""
    runs = [new_run(folder / "0"), new_run(folder / "1", run_config(**changes))]
    for index, run in enumerate(runs):
        assert not train_units(run, device=CPU, workers=1, shard=(index, 2))
        assert run.unfinished == shard_of(run.config.units, (1 - index, 2))
        assert build_certificate(run)["matched"] is False  # there was nothing to compare with
    return runs


def test_shards_brought_together_are_the_run_that_one_machine_trains(tmp_path: Path, uninterrupted: Run) -> None:
    here, there = shards(tmp_path)
    for arm, seed in shard_of(there.config.units, (1, 2)):
        shutil.copytree(there.directory.unit(arm, seed), here.directory.unit(arm, seed), dirs_exist_ok=True)
    assert_same_runs(resume(tmp_path / "0"), uninterrupted)


def test_a_shard_trained_with_another_setting_is_found_out_when_they_meet(tmp_path: Path) -> None:
    here, there = shards(tmp_path, learning_rate=1e-3)
    for arm, seed in shard_of(there.config.units, (1, 2)):
        shutil.copytree(there.directory.unit(arm, seed), here.directory.unit(arm, seed), dirs_exist_ok=True)
    with pytest.raises(MatchError, match="gpt and unilm, seed 0: setting learning_rate"):
        train_units(open_run(tmp_path / "0"), device=CPU, workers=1)


def test_a_checkpoint_is_not_continued_under_another_setting(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    heard: list[Message] = []
    train_units(run, device=CPU, workers=1, on_message=heard.append, stop=lambda: len(heard) > 20)
    configuration = run.directory.configuration
    configuration.write_text(configuration.read_text().replace("learning_rate = 0.003", "learning_rate = 0.001"))
    with pytest.raises(RunError, match=r"learning_rate was 0.003 and is now 0.001. Restore run.toml"):
        train_units(open_run(tmp_path / "run"), device=CPU, workers=1)


# How many workers.


def test_workers_are_one_per_core_up_to_the_units_and_a_gpu_takes_them_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert default_workers(CPU, 6) == (6, 1)
    assert default_workers(CPU, 2) == (2, 4)
    assert default_workers(CPU, 100) == (8, 1)
    assert default_workers(torch.device("cuda"), 6) == (1, 8)
