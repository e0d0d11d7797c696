"""What a certificate and `verify_run` must see: evaluations, spectra and beginnings that belong elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_run import CPU, copy_of, run_config, trained_run

from rankkit.errors import MatchError, RunError
from rankkit.studies import MeasureConfig, Run, compare_losses, measure_run
from rankkit.studies.certificate import build_certificate, write_certificate
from rankkit.studies.verify import verify_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = trained_run(tmp_path_factory.mktemp("bound") / "run")
    measure_run(run, MeasureConfig(samples=2), run.directory.spectrum, device=CPU, command="tests")
    assert verify_run(run) == []
    return run


def test_exchanged_evaluations_are_refused(whole: Run, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path / "run")
    gpt, unilm = run.directory.evaluation("gpt", 0), run.directory.evaluation("unilm", 0)
    texts = gpt.read_text(), unilm.read_text()
    gpt.write_text(texts[1])
    unilm.write_text(texts[0])
    with pytest.raises(RunError, match="that of arm unilm, seed 0"):
        compare_losses(run)
    assert len([problem for problem in verify_run(run) if "evaluation" in problem]) == 2


def test_an_evaluation_of_other_weights_is_refused(whole: Run, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path / "run")
    path = run.directory.evaluation("gpt", 1)
    document = json.loads(path.read_text())
    document["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match="that of other weights than its last checkpoint's"):
        compare_losses(run)


def test_a_spectrum_of_another_run_is_named(whole: Run, tmp_path: Path) -> None:
    other = trained_run(tmp_path / "other", run_config(learning_rate=1e-2))
    measure_run(other, MeasureConfig(samples=2), other.directory.spectrum, device=CPU, command="tests")
    run = copy_of(whole, tmp_path / "run")
    shutil.copy(other.directory.spectrum, run.directory.spectrum)
    problems = verify_run(run)
    assert problems
    assert all("measured on other weights than this run's" in problem for problem in problems)


def test_arms_without_a_common_beginning_do_not_match(whole: Run, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path / "run")
    shutil.rmtree(run.directory.checkpoint("unilm", 0, 0))
    certificate = write_certificate(run)
    pair = next(pair for pair in certificate["pairs"] if pair["seed"] == 0)
    assert not certificate["matched"]
    assert "initial weights" not in pair["compared"]
    assert any("no checkpoint of step 0 in both" in problem for problem in pair["problems"])
    assert any("the checkpoint of step 0 is missing" in problem for problem in verify_run(run))
    with pytest.raises(MatchError, match="arms must match to be compared"):
        measure_run(run, MeasureConfig(samples=2), tmp_path / "s.h5", device=CPU, command="tests")
    assert not (tmp_path / "s.h5").exists()


def test_an_arm_evaluated_on_other_text_does_not_match(whole: Run, tmp_path: Path) -> None:
    # As when the other machine's corpus had one more held-out document and the same training tokens.
    run = copy_of(whole, tmp_path / "run")
    for step in run.directory.checkpoint_steps("unilm", 0):
        path = run.directory.checkpoint("unilm", 0, step) / "checkpoint.json"
        facts = json.loads(path.read_text())
        facts["evaluation_sha256"] = "0" * 64
        path.write_text(json.dumps(facts))
    problems = build_certificate(run)["pairs"][0]["problems"]
    assert problems == ["evaluation sequences"]
    assert any("evaluation sequences are not those" in problem for problem in verify_run(run))
