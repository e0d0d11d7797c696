"""One arm that was given anything undeclared stops the run, is named, and is found again from the files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_run import (
    PAIR,
    OtherBatches,
    OtherInitialWeight,
    OtherSetting,
    new_run,
    one_changed_token,
    run_config,
    steps_of,
    swapped_batches,
    swapped_prefix_lengths,
    train_unwatched,
    trained_by,
    work_on_swapped_batches,
)
from tiny import CPU, STEPS

from rankkit.errors import MatchError
from rankkit.studies import Run, build_certificate, certificate_problems, drive, open_run, train_units
from rankkit.studies.verify import verify_run
from rankkit.training.unit import Message, Ready, Stepped

# Sabotage by name: how, what differs, and from which step on; None for before the first.
CASES: dict[str, tuple[tuple[Any, ...], list[str], int | None]] = {
    "two batches swapped": (
        (OtherBatches, swapped_batches), ["tokens", "prefix lengths", "target rows"], 6
    ),
    "two prefix lengths swapped": ((OtherBatches, swapped_prefix_lengths), ["prefix lengths", "target rows"], 6),
    "one token changed": ((OtherBatches, one_changed_token), ["tokens"], 6),
    "one initial weight changed": (
        (OtherInitialWeight,), ["initial weights of blocks.1.mlp.input.weight"], None
    ),
    "one setting changed": ((OtherSetting,), ["setting weight_decay"], None),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[list[str], int | None]]:
    how, what, step = CASES[request.param]
    with trained_by(*how):
        yield what, step


def certificate(run: Run) -> dict[str, Any]:
    return json.loads(run.directory.certificate.read_text())  # type: ignore[no-any-return]


def test_it_stops_the_run_and_names_arms_seed_what_and_step(case: tuple[list[str], int | None], tmp_path: Path) -> None:
    what, step = case
    run = new_run(tmp_path / "run")
    heard: list[Message] = []
    with pytest.raises(MatchError) as caught:
        train_units(run, device=CPU, workers=1, on_message=heard.append)
    message = str(caught.value)
    named = "; ".join(what if step is None else [f"{chain} of step {step}" for chain in what])
    assert message.endswith(
        f"must differ in mask alone, but under seed 0 they also differ in {named}. The run was stopped; its checkpoints "
        "are kept for inspection."
    )
    assert "arms gpt and unilm" in message or "arms unilm and gpt" in message
    reached = [entry.record.step for entry in heard if isinstance(entry, Stepped)]
    assert max(reached, default=0) == (step or 0)
    assert {entry.seed for entry in heard if isinstance(entry, Ready)} == {0}
    assert [max(steps) for steps in steps_of(run).values() if steps] == [step or 0] * 2  # both have saved


def test_the_certificate_says_so_and_the_files_alone_say_the_same(
    case: tuple[list[str], int | None], tmp_path: Path
) -> None:
    what, step = case
    run = new_run(tmp_path / "run")
    with pytest.raises(MatchError):
        train_units(run, device=CPU, workers=1)
    found = certificate(run)
    assert found["matched"] is False
    named = what if step is None else [f"{chain} up to step {step}" for chain in what]
    assert certificate_problems(found) == [f"gpt and unilm, seed 0: {entry}" for entry in named]
    assert certificate_problems(build_certificate(run)) == certificate_problems(found)
    assert certificate_problems(found)[0] in verify_run(run)


def test_training_on_after_it_is_refused_before_another_step(
    case: tuple[list[str], int | None], tmp_path: Path
) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(MatchError):
        train_units(run, device=CPU, workers=1)
    before = steps_of(run)
    with pytest.raises(MatchError, match="arms must match in all that is undeclared, but gpt and unilm, seed 0"):
        train_units(open_run(tmp_path / "run"), device=CPU, workers=1)
    assert steps_of(run) == before
    assert certificate(run)["matched"] is False


def test_units_trained_apart_are_found_out_from_their_files(case: tuple[list[str], int | None], tmp_path: Path) -> None:
    what, step = case
    run = new_run(tmp_path / "run", run_config(seeds=(0,)))
    train_unwatched(run)
    found = build_certificate(run)
    assert found["matched"] is False
    expected = what if step is None else [f"{chain} up to step {later}" for later in (8, STEPS) for chain in what]
    assert certificate_problems(found) == [f"gpt and unilm, seed 0: {entry}" for entry in expected]
    problems = verify_run(run)
    assert any(problem.startswith("unilm, seed 0") for problem in problems)  # which arm is the wrong one
    assert not any(problem.startswith("gpt, seed 0") for problem in problems)


def test_a_difference_that_is_declared_is_none(tmp_path: Path) -> None:
    """Target rows follow the objective, which gpt-full declares; prefix lengths and tokens do not."""
    with trained_by(OtherBatches, swapped_prefix_lengths):
        run = new_run(tmp_path / "run", run_config(("unilm", "gpt-full"), (0,)))
        with pytest.raises(MatchError, match=r"differ in mask and objective alone, but .* in prefix lengths of step 6"):
            train_units(run, device=CPU, workers=1)


def test_workers_that_stop_at_different_steps_leave_a_certificate_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "_work", work_on_swapped_batches)
    run = new_run(tmp_path / "run", run_config(PAIR, (0,), checkpoint_interval=100, steps=60))
    with pytest.raises(MatchError, match="also differ in tokens of step 6; prefix lengths of step 6") as caught:
        train_units(run, device=CPU, workers=2)
    found = certificate(run)
    assert found["matched"] is False
    common = set.intersection(*(set(steps) for steps in steps_of(run).values()))
    if common == {0}:  # nearly always: the arms were stopped at different steps, and the checkpoints do not show it
        assert found["observed"] == [str(caught.value)]
        assert certificate_problems(build_certificate(run)) == []
    assert certificate_problems(found)[0] in verify_run(run)
