"""A whole run verifies, and every file that somebody touched is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import copy_of, new_run
from tiny import CPU, STEPS

from rankkit.errors import RunError
from rankkit.studies import Run, open_run, train_units
from rankkit.studies.verify import verify_run

Tamper = Callable[[Run], Any]


@pytest.fixture(scope="module")
def whole(trained: Run, measured: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with its spectra."""
    run = copy_of(trained, tmp_path_factory.mktemp("whole") / "run")
    shutil.copy(measured[0], run.directory.spectrum)
    return run


def flip(path: Path, *, at: float = 0.5) -> None:
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def put(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def setting(old: str, new: str) -> Tamper:
    return lambda run: put(run.directory.configuration, old, new)


def checkpoint(run: Run, arm: str = "unilm", seed: int = 1, step: int = 8) -> Path:
    return run.directory.checkpoint(arm, seed, step)


def other_chain(document: dict[str, Any]) -> None:
    document["chains"]["tokens"] = "0" * 64


def other_certificate(document: dict[str, Any]) -> None:
    document["units"][0]["checkpoints"]["4"]["weights_sha256"] = "0" * 64


def admit_a_difference(document: dict[str, Any]) -> None:
    document["pairs"][0]["problems"] = ["tokens up to step 4"]


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "certificate: a hash": (
        lambda run: edit(run.directory.certificate, other_certificate),
        "certificate.json must be what the checkpoints give, but differs",
    ),
    "certificate: the verdict": (
        lambda run: edit(run.directory.certificate, lambda document: document.update(matched=False)),
        "certificate.json must be what the checkpoints give, but differs",
    ),
    "certificate: a difference": (
        lambda run: edit(run.directory.certificate, admit_a_difference), "gpt and unilm, seed 0: tokens up to step 4",
    ),
    "certificate: deleted": (lambda run: run.directory.certificate.unlink(), "must be a readable certificate"),
    "certificate: torn": (lambda run: run.directory.certificate.write_text("{"), "must be a readable certificate"),
    "certificate: no object": (lambda run: run.directory.certificate.write_text("[]"), "must be a readable certificate"),
    "checkpoint: a chain": (
        lambda run: edit(checkpoint(run) / "checkpoint.json", other_chain),
        "unilm, seed 1, step 8: tokens consumed are not those of its configuration and text",
    ),
    "checkpoint: torn": (
        lambda run: (checkpoint(run) / "checkpoint.json").write_text("{"), "must hold a readable checkpoint.json",
    ),
    "checkpoint: a bit of the weights": (
        lambda run: flip(checkpoint(run, step=STEPS) / "model.safetensors"),
        "model.safetensors must match the hash in checkpoint.json, but it does not",
    ),
    "checkpoint: deleted": (
        lambda run: shutil.rmtree(checkpoint(run)), "certificate.json must be what the checkpoints give, but differs",
    ),
    "checkpoint: the last one deleted": (
        lambda run: shutil.rmtree(checkpoint(run, step=STEPS)), "must hold a readable checkpoint.json",
    ),
    "checkpoint: that of another arm": (
        lambda run: [shutil.copy(checkpoint(run, "gpt") / file, checkpoint(run) / file)
                     for file in ("checkpoint.json", "model.safetensors")],
        "unilm, seed 1, step 8: trained with mask causal, where run.toml has prefix",
    ),
    "checkpoint: that of another seed": (
        lambda run: [shutil.copy(checkpoint(run, seed=0) / file, checkpoint(run) / file)
                     for file in ("checkpoint.json", "model.safetensors")],
        "unilm, seed 1, step 8: tokens consumed are not those of its configuration and text",
    ),
    "tokens: a bit of training": (
        lambda run: flip(run.directory.tokens / "train.npy"), "train.npy must have the SHA-256",
    ),
    "tokens: a bit of validation": (
        lambda run: flip(run.directory.tokens / "validation.npy"), "validation.npy must have the SHA-256",
    ),
    "tokens: where documents start": (
        lambda run: flip(run.directory.tokens / "train_documents.npy", at=1.0), "train_documents.npy must",
    ),
    "tokenizer": (lambda run: flip(run.directory.tokenizer), "tokenizer.json must have the SHA-256"),
    "run.toml: learning rate": (
        setting("learning_rate = 0.003", "learning_rate = 0.001"),
        "gpt, seed 0, step 0: trained with learning_rate 0.003, where run.toml has 0.001",
    ),
    "run.toml: sequence length": (
        setting("sequence_length = 32", "sequence_length = 24"), "trained with sequence_length 32, where run.toml has 24",
    ),
    "run.toml: a length that no text fills": (
        setting("sequence_length = 32", "sequence_length = 20000"), "must hold at least 20000",
    ),
    "run.toml: width": (setting("d_model = 16", "d_model = 18"), "must hold the weights of its configuration"),
    "run.toml: seed": (setting("seeds = [0, 1]", "seeds = [0, 2]"), "certificate.json must be what the checkpoints give"),
    "run.toml: an arm left out": (
        lambda run: (
            put(run.directory.configuration, 'arms = ["gpt", "unilm", "gpt-full"]', 'arms = ["gpt", "unilm"]'),
            put(run.directory.configuration, '[arms.gpt-full]\nmask = "causal"\nobjective = "full"\n', ""),
        ),
        "certificate.json must be what the checkpoints give",
    ),
    "run.toml: evaluation sequences": (
        setting("evaluation_sequences = 3", "evaluation_sequences = 2"), "evaluation sequences are not those",
    ),
    "evaluation: a number": (
        lambda run: edit(run.directory.evaluation("gpt", 1), lambda document: document.update(loss=0.5)),
        "gpt/seed-1/evaluation.json must hold a finished evaluation, got: trained losses whose mean is not 0.5",
    ),
    "evaluation: torn": (
        lambda run: run.directory.evaluation("gpt", 1).write_text("{"),
        "gpt/seed-1/evaluation.json must hold a finished evaluation",
    ),
    "evaluation: loss tokens": (
        lambda run: edit(run.directory.evaluation("gpt", 1), lambda document: document.update(loss_tokens=1)),
        "gpt, seed 1: evaluation after 1 loss tokens, checkpoint after",
    ),
    "spectrum: a bit": (lambda run: flip(run.directory.spectrum, at=0.7), "spectrum.h5: "),
    "spectrum: half of it": (
        lambda run: run.directory.spectrum.write_bytes(run.directory.spectrum.read_bytes()[:5000]), "spectrum.h5",
    ),
}  # fmt: skip


def test_a_whole_run_verifies(whole: Run) -> None:
    assert verify_run(whole) == []


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_touched_is_named(name: str, trained: Run, whole: Run, tmp_path: Path) -> None:
    tamper, named = TAMPERED[name]
    run = copy_of(whole if name.startswith("spectrum") else trained, tmp_path / "run")
    tamper(run)
    problems = verify_run(open_run(tmp_path / "run"))
    assert any(named in problem for problem in problems), problems


def test_what_an_arm_declares_cannot_be_changed_in_run_toml(whole: Run, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path / "run")
    put(run.directory.configuration, '[arms.unilm]\nmask = "prefix"', '[arms.unilm]\nmask = "causal"')
    with pytest.raises(RunError, match="arms must declare"):
        open_run(tmp_path / "run")


def test_a_run_that_has_not_begun_or_was_interrupted_is_whole_as_far_as_it_goes(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (problem,) = verify_run(run)
    assert "must be a readable certificate" in problem  # it is written when training begins
    heard: list[Any] = []
    assert not train_units(run, device=CPU, workers=1, on_message=heard.append, stop=lambda: len(heard) > 20)
    assert verify_run(run) == []


def test_problems_are_all_listed_and_not_the_first_alone(whole: Run, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path / "run")
    flip(checkpoint(run, "gpt") / "model.safetensors")
    flip(checkpoint(run, "unilm", 0, 4) / "model.safetensors")
    run.directory.evaluation("gpt-full", 0).write_text("")
    run.directory.certificate.unlink()
    problems = verify_run(run)
    for named in ("gpt/seed-1/step-000008/", "unilm/seed-0/step-000004/", "gpt-full/seed-0/evaluation", "certificate"):
        assert any(named in problem for problem in problems), named
