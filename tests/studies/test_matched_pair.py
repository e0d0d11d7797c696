"""A matched pair from end to end: what the arms share, in what they differ, and that it does not matter who drives."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from small_run import ALL_ARMS, CORPUS, PAIR, assert_same_runs, children, new_run, run_config, trained_run
from tiny import CPU, STEPS, N, arm

import rankkit
from rankkit.studies import (
    Run,
    build_certificate,
    certificate_problems,
    open_run,
    recompute_problems,
    train_pair,
    train_units,
)
from rankkit.training import read_facts

DECLARED = {
    ("gpt", "unilm"): ["mask"],
    ("gpt", "gpt-full"): ["objective"],
    ("unilm", "gpt-full"): ["mask", "objective"],
}


def certificate(run: Run) -> dict[str, Any]:
    return json.loads(run.directory.certificate.read_text())  # type: ignore[no-any-return]


def final(run: Run, name: str, seed: int) -> Any:
    return read_facts(run.directory.checkpoint(name, seed, STEPS))


def test_in_turn_and_in_two_processes_a_pair_ends_in_the_same_bits(trained: Run, tmp_path: Path) -> None:
    in_turn = trained_run(tmp_path / "in-turn")
    side_by_side = new_run(tmp_path / "side-by-side")
    sent: list[int] = []

    def ctrl_c_for_the_workers_alone() -> bool:
        """The terminal sends it to them too, while they start and while they train; to act on it is the parent's part."""
        for child in children():
            child.send_signal(signal.SIGINT)
            sent.append(child.pid)
        return False

    assert train_units(side_by_side, device=CPU, workers=2, stop=ctrl_c_for_the_workers_alone)
    assert len(set(sent)) == 2
    assert_same_runs(side_by_side, in_turn)
    assert certificate(side_by_side) == certificate(in_turn)
    # And a third arm on request changes nothing for the others.
    for name, seed in in_turn.config.units:
        assert final(trained, name, seed).weights_sha256 == final(in_turn, name, seed).weights_sha256


def test_arms_differ_in_their_declared_fields_alone_and_the_certificate_says_so(trained: Run) -> None:
    found = certificate(trained)
    assert found["matched"] is True
    assert certificate_problems(found) == []
    pairs = {(tuple(pair["arms"]), pair["seed"]): pair for pair in found["pairs"]}
    assert pairs.keys() == {(arms, seed) for arms in DECLARED for seed in (0, 1)}
    for (arms, _), pair in pairs.items():
        assert pair["declared"] == DECLARED[arms]
        assert sorted(pair["fields"]) == DECLARED[arms]
        assert pair["steps"] == [0, 4, 8, STEPS]
        assert pair["problems"] == []
        assert pair["matched"] is True
        assert ("target rows" in pair["compared"]) == ("objective" not in DECLARED[arms])
    assert pairs[("gpt", "unilm"), 0]["fields"] == {"mask": ["causal", "prefix"]}


def test_arms_begin_alike_read_alike_and_end_apart(trained: Run) -> None:
    for seed in (0, 1):
        first = [read_facts(trained.directory.checkpoint(name, seed, 0)) for name in ALL_ARMS]
        assert first[0].parameters == first[1].parameters == first[2].parameters
        gpt, unilm, full = (final(trained, name, seed) for name in ALL_ARMS)
        assert gpt.chains == unilm.chains
        for chain in ("tokens", "prefix_lengths"):
            assert gpt.chains[chain] == full.chains[chain]
        assert gpt.chains["target_rows"] != full.chains["target_rows"]
        assert len({gpt.weights_sha256, unilm.weights_sha256, full.weights_sha256}) == 3
    assert final(trained, "gpt", 0).chains["tokens"] != final(trained, "gpt", 1).chains["tokens"]


def test_the_suffix_arms_predict_as_many_tokens_and_gpt_full_all_but_the_first(trained: Run) -> None:
    gpt, unilm, full = (final(trained, name, 0).loss_tokens for name in ALL_ARMS)
    assert gpt == unilm
    assert full == STEPS * 2 * (N - 1)
    assert gpt < full


def test_a_certificate_on_file_is_what_the_checkpoints_give_and_the_checkpoints_what_the_seeds_give(
    trained: Run,
) -> None:
    assert certificate(trained) == build_certificate(trained)
    assert recompute_problems(trained) == []


def test_nothing_is_called_matched_before_it_was_compared(tmp_path: Path) -> None:
    found = build_certificate(new_run(tmp_path / "run"))
    assert found["matched"] is False
    assert certificate_problems(found) == []
    assert {tuple(pair["steps"]) for pair in found["pairs"]} == {()}


def test_train_pair_makes_trains_and_returns_a_finished_run(tmp_path: Path) -> None:
    base = arm("gpt")
    run = train_pair(base, out=tmp_path / "run", text=CORPUS, seeds=(3,), device="cpu", workers=1)
    assert run.config == run_config(PAIR, (3,))
    assert run.unfinished == []
    assert certificate(run)["matched"] is True
    assert rankkit.compare_losses(run).arm("unilm").seeds == (3,)
    with pytest.raises(rankkit.RankkitError, match="must not exist yet"):
        train_pair(base, out=tmp_path / "run", text=CORPUS, device="cpu", workers=1)


def test_training_a_finished_run_again_changes_nothing(trained: Run) -> None:
    files = sorted(path for path in trained.directory.path.rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    assert train_units(open_run(trained.directory.path), device=CPU, workers=2)
    assert {path: path.read_bytes() for path in before} == before
