"""Checkpoints come back to the very bits, and every kind of damage is one clear error."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CPU, N, arm, model_config, run_in, trainer

from rankkit.errors import RunError, StorageError
from rankkit.files import RunDirectory, sha256_of_file
from rankkit.models import Transformer
from rankkit.training import Trainer, load_model, read_facts
from rankkit.training.checkpoints import latest_resumable_step, restore, save
from rankkit.training.consumption import parameter_hashes


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_in(tmp_path_factory.mktemp("tokens")).tokens


@pytest.fixture
def run(tmp_path: Path, tokens: Path) -> RunDirectory:
    return run_in(tmp_path / "run", tokens=tokens)


def trained(run: RunDirectory, steps: int = 3) -> Trainer:
    it = trainer(arm(), run)
    for _ in range(steps):
        it.train_step()
    return it


def optimizer_tensors(it: Trainer) -> list[torch.Tensor]:
    return [tensor for state in it.optimizer.state.values() for _, tensor in sorted(state.items())]


def test_restoring_gives_the_same_bits_and_the_same_next_steps(run: RunDirectory) -> None:
    one = trained(run)
    save(one, run, "unilm")
    other = trainer(arm(), run)
    restore(other, run, "unilm", 3)
    assert (other.step, other.loss_tokens, other.consumption.chains) == (3, one.loss_tokens, one.consumption.chains)
    assert parameter_hashes(other.model) == parameter_hashes(one.model)
    moments = optimizer_tensors(one)
    assert len(moments) == 3 * len(list(one.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(moments, optimizer_tensors(other), strict=True))
    for _ in range(3):
        assert one.train_step() == other.train_step()
    assert parameter_hashes(other.model) == parameter_hashes(one.model)
    assert (one.evaluate().by_sequence == other.evaluate().by_sequence).all()


def test_saving_changes_no_bit_of_training(run: RunDirectory) -> None:
    plain, saved = trainer(arm(), run), trainer(arm(), run)
    for _ in range(4):
        save(saved, run, "unilm")
        assert plain.train_step() == saved.train_step()
    assert parameter_hashes(plain.model) == parameter_hashes(saved.model)


def test_facts_describe_the_checkpoint(run: RunDirectory) -> None:
    it = trained(run)
    facts = save(it, run, "unilm")
    folder = run.checkpoint("unilm", 0, 3)
    assert read_facts(folder) == facts
    assert (facts.arm, facts.seed, facts.step, facts.loss_tokens) == ("unilm", 0, 3, it.loss_tokens)
    assert facts.chains == it.consumption.chains
    assert facts.parameters == parameter_hashes(it.model)
    assert facts.weights_sha256 == sha256_of_file(folder / "model.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "model.safetensors", "training.pt"]


def test_equal_trainers_make_equal_files(run: RunDirectory, tmp_path: Path, tokens: Path) -> None:
    other = run_in(tmp_path / "other", tokens=tokens)
    for each in (run, other):
        save(trained(each), each, "unilm")
    for name in ("checkpoint.json", "model.safetensors", "training.pt"):
        one, two = (each.checkpoint("unilm", 0, 3) / name for each in (run, other))
        assert one.read_bytes() == two.read_bytes(), name


def test_facts_are_a_snapshot_that_later_steps_do_not_change(run: RunDirectory) -> None:
    it = trained(run, 1)
    facts = save(it, run, "unilm")
    before = dict(facts.chains)
    it.train_step()
    assert facts.chains == before


def test_loaded_model_is_the_trained_one_in_evaluation_mode(run: RunDirectory) -> None:
    it = trained(run)
    save(it, run, "unilm")
    model = load_model(run.checkpoint("unilm", 0, 3), it.config.model)
    assert not model.training
    assert parameter_hashes(model) == parameter_hashes(it.model)
    tokens = torch.arange(N)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens, 9), it.model(tokens, 9))


def test_optimizer_state_is_kept_in_the_newest_checkpoint_alone(run: RunDirectory) -> None:
    it = trainer(arm(), run)
    assert latest_resumable_step(run, "unilm", 0) is None
    for step in range(3):
        save(it, run, "unilm")
        assert latest_resumable_step(run, "unilm", 0) == step
        kept = [s for s in run.checkpoint_steps("unilm", 0) if (run.checkpoint("unilm", 0, s) / "training.pt").exists()]
        assert kept == [step]
        it.train_step()
    assert run.checkpoint_steps("unilm", 0) == [0, 1, 2]
    for step in range(3):  # every checkpoint still gives its model
        load_model(run.checkpoint("unilm", 0, step), it.config.model)


def test_other_arms_and_seeds_keep_their_state(run: RunDirectory) -> None:
    it = trained(run, 1)
    save(it, run, "gpt")
    save(it, run, "unilm")
    it.train_step()
    save(it, run, "unilm")
    assert latest_resumable_step(run, "gpt", 0) == 1
    assert latest_resumable_step(run, "unilm", 0) == 2
    assert latest_resumable_step(run, "unilm", 1) is None


# Damage. Each entry damages the checkpoint folder of step 3; `load_model` or `restore` must then say what is wrong.


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def with_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other weights under a hash that matches them."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    rewrite(folder, lambda facts: facts.update(weights_sha256=sha256_of_file(path)))


def foreign_weights(folder: Path) -> None:
    """A file of somebody else under a hash that matches it."""
    path = folder / "model.safetensors"
    path.write_bytes(b"something else entirely")
    rewrite(folder, lambda facts: facts.update(weights_sha256=sha256_of_file(path)))


WEIGHTS_DAMAGE = [
    (lambda f: flip(f / "model.safetensors", -1), "model.safetensors must match the hash in checkpoint.json, but it does"),
    (lambda f: flip(f / "model.safetensors", 0), "model.safetensors must match the hash in checkpoint.json"),
    (lambda f: cut(f / "model.safetensors", 0.5), "model.safetensors must match the hash"),
    (lambda f: cut(f / "model.safetensors", 0), "model.safetensors must match the hash"),
    (lambda f: (f / "model.safetensors").unlink(), "model.safetensors must be readable, got: No such file or directory"),
    (foreign_weights, "model.safetensors must be a safetensors file"),
    (lambda f: with_weights(f, lambda w: w.pop("norm.weight")), "must hold the weights .* norm.weight is None instead of"),
    (lambda f: with_weights(f, lambda w: w.update({"more": torch.zeros(1)})), "more is .* instead of None"),
    (lambda f: with_weights(f, lambda w: w.update({"norm.weight": torch.zeros(17)})), r"norm.weight is \(\(17,\),"),
    (lambda f: with_weights(f, lambda w: w.update({"norm.weight": torch.zeros(16).double()})), "norm.weight is .*float64"),
]  # fmt: skip

FACTS_DAMAGE = [
    (lambda f: (f / "checkpoint.json").unlink(), "must hold a readable checkpoint.json, got: .*No such file"),
    (lambda f: cut(f / "checkpoint.json", 0.5), "must hold a readable checkpoint.json, got: .*Delete this checkpoint"),
    (lambda f: cut(f / "checkpoint.json", 0), "must hold a readable checkpoint.json, got: "),
    (lambda f: (f / "checkpoint.json").write_bytes(b"\xff\xfe"), "must hold a readable checkpoint.json, got: .*codec"),
    (lambda f: (f / "checkpoint.json").write_text("[" * 100_000), "must hold a readable checkpoint.json, got: .*recursion"),
    (lambda f: (f / "checkpoint.json").write_text("[]"), "checkpoint.json must be written by rankkit, got a foreign file"),
    (lambda f: (f / "checkpoint.json").write_text("null"), "must be written by rankkit, got a foreign file"),
    (lambda f: (f / "checkpoint.json").write_text('{"step": 3}'), "must be written by rankkit, got a foreign file"),
    (lambda f: rewrite(f, lambda d: d.update(rankkit_checkpoint="1")), "must be written by rankkit, got a foreign file"),
    (lambda f: rewrite(f, lambda d: d.update(rankkit_checkpoint=2)), "must be of checkpoint format 1 or older, got 2. Inst"),
    (lambda f: (f / "checkpoint.json").write_text('{"rankkit_checkpoint": 7}'), "format 1 or older, got 7. Install a newer"),
    (lambda f: rewrite(f, lambda d: d.pop("chains")), "checkpoint.json must describe a checkpoint, got damage. Delete this"),
    (lambda f: rewrite(f, lambda d: d["chains"].pop("tokens")), "must describe a checkpoint, got damage"),
    (lambda f: rewrite(f, lambda d: d["chains"].update(tokens=3)), "must describe a checkpoint, got damage"),
    (lambda f: rewrite(f, lambda d: d.update(step="3")), "must describe a checkpoint, got damage"),
    (lambda f: rewrite(f, lambda d: d.update(parameters=[])), "must describe a checkpoint, got damage"),
    (lambda f: rewrite(f, lambda d: d.update(weights_sha256=None)), "must describe a checkpoint, got damage"),
]  # fmt: skip

STATE_DAMAGE = [
    (lambda f: cut(f / "training.pt", 0.9), "training.pt must match the hash in checkpoint.json, but it does not. Delete"),
    (lambda f: flip(f / "training.pt", 5000), "training.pt must match the hash in checkpoint.json"),
    (lambda f: (f / "training.pt").unlink(), "training.pt must be readable, got: No such file or directory. Delete this"),
    (lambda f: rewrite(f, lambda d: d.pop("training_sha256")), "must describe a checkpoint, got damage"),
    (lambda f: rewrite(f, lambda d: d.update(arm="gpt")), "must be the checkpoint of unilm, seed 0, step 3, got .* gpt"),
    (lambda f: rewrite(f, lambda d: d.update(seed=1)), "must be the checkpoint of unilm, seed 0, step 3, got .* seed 1"),
    (lambda f: rewrite(f, lambda d: d.update(step=2)), "must be the checkpoint of unilm, seed 0, step 3, got .* step 2"),
    (lambda f: rewrite(f, lambda d: d.update(loss_tokens=1)), "checkpoint.json must agree with training.pt, but"),
    (lambda f: rewrite(f, lambda d: d["chains"].update(tokens="0")), "checkpoint.json must agree with training.pt"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), WEIGHTS_DAMAGE + FACTS_DAMAGE)
def test_a_damaged_checkpoint_gives_no_model(damage: Callable[[Path], object], message: str, run: RunDirectory) -> None:
    save(trained(run), run, "unilm")
    folder = run.checkpoint("unilm", 0, 3)
    damage(folder)
    with pytest.raises(RunError, match=message):
        load_model(folder, arm().model)


@pytest.mark.parametrize(("damage", "message"), WEIGHTS_DAMAGE + FACTS_DAMAGE + STATE_DAMAGE)
def test_a_damaged_checkpoint_is_not_continued_and_leaves_the_trainer_at_its_beginning(
    damage: Callable[[Path], object], message: str, run: RunDirectory
) -> None:
    save(trained(run), run, "unilm")
    damage(run.checkpoint("unilm", 0, 3))
    fresh = trainer(arm(), run)
    before = parameter_hashes(fresh.model)
    with pytest.raises(RunError, match=message):
        restore(fresh, run, "unilm", 3)
    assert parameter_hashes(fresh.model) == before
    assert (fresh.step, fresh.loss_tokens, fresh.consumption.chains) == (0, 0, dict.fromkeys(arm().task.chains, ""))


class Hostile:
    """Unpickled by anything trusting, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_hostile_training_state_is_refused_and_not_run(run: RunDirectory, tmp_path: Path) -> None:
    save(trained(run), run, "unilm")
    folder = run.checkpoint("unilm", 0, 3)
    torch.save({"optimizer": Hostile(tmp_path / "made")}, folder / "training.pt")
    rewrite(folder, lambda facts: facts.update(training_sha256=sha256_of_file(folder / "training.pt")))
    with pytest.raises(RunError, match=r"training.pt must hold optimizer state, got other content\. Delete this"):
        restore(trainer(arm(), run), run, "unilm", 3)
    assert not (tmp_path / "made").exists()


def test_every_flipped_byte_of_the_weights_is_found(run: RunDirectory) -> None:
    save(trained(run), run, "unilm")
    path = run.checkpoint("unilm", 0, 3) / "model.safetensors"
    for position in range(0, path.stat().st_size, path.stat().st_size // 20):
        flip(path, position)
        with pytest.raises(RunError, match="must match the hash"):
            load_model(path.parent, arm().model)
        flip(path, position)
    load_model(path.parent, arm().model)


def test_weights_of_another_configuration_are_refused(run: RunDirectory) -> None:
    save(trained(run), run, "unilm")
    for changes in ({"d_model": 8}, {"num_layers": 3}, {"num_layers": 1}, {"position": "learned"}, {"vocab_size": 300}):
        with pytest.raises(RunError, match=r"must hold the weights of its configuration, but .* is damaged or mixed"):
            load_model(run.checkpoint("unilm", 0, 3), model_config(**changes))


def test_a_missing_checkpoint_is_one_error(run: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"step-000009 must hold a readable checkpoint.json, got: .*No such file"):
        read_facts(run.checkpoint("unilm", 0, 9))
    with pytest.raises(RunError, match=r"step-000009 must hold a readable checkpoint.json"):
        restore(trainer(arm(), run), run, "unilm", 9)


# A disk that refuses.


def assert_usable(run: RunDirectory, step: int, expected: dict[str, str]) -> None:
    """The checkpoint of this step is the newest, whole, and nothing unfinished stands beside it."""
    assert latest_resumable_step(run, "unilm", 0) == step
    fresh = trainer(arm(), run)
    restore(fresh, run, "unilm", step)
    assert parameter_hashes(fresh.model) == expected
    assert sorted(path.name for path in run.unit("unilm", 0).iterdir()) == [f"step-{step:06d}"]


@pytest.mark.parametrize("function", ["write_bytes", "fsync", "mkdtemp", "write_text", "replace"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.ENOSPC, "no space left on device. Free some space"), (errno.EROFS, "read-only file system. Choose a writable"),
     (errno.EIO, "input/output error. Check the disk")],
)  # fmt: skip
def test_a_disk_that_refuses_leaves_the_older_checkpoint_usable(
    function: str, code: int, reason: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = trained(run)
    save(it, run, "unilm")
    expected = parameter_hashes(it.model)
    it.train_step()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    owner = {"fsync": os, "mkdtemp": __import__("tempfile")}.get(function, Path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, refuse)
        with pytest.raises(StorageError, match=f"must be writable, got: {reason}.*What was saved before is intact"):
            save(it, run, "unilm")
    assert_usable(run, 3, expected)
    save(it, run, "unilm")  # and once there is space again, training goes on
    assert latest_resumable_step(run, "unilm", 0) == 4


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_system_that_ends_in_the_middle_of_a_file_is_named_by_the_system_and_not_by_a_library(
    share: float, run: RunDirectory
) -> None:
    """A real limit, met while real bytes are written: safetensors and torch report it as errors of their own."""
    it = trained(run)
    save(it, run, "unilm")
    expected = parameter_hashes(it.model)
    largest = max(path.stat().st_size for path in run.checkpoint("unilm", 0, 3).iterdir())
    it.train_step()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * largest), before[1]))
        with pytest.raises((StorageError, OSError), match=r"(?i)file too large"):
            save(it, run, "unilm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert_usable(run, 3, expected)


def test_state_of_older_checkpoints_is_dropped_only_when_the_new_one_is_complete(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = trained(run)
    save(it, run, "unilm")
    it.train_step()
    seen: list[tuple[bool, bool]] = []
    original = Path.unlink

    def watch(path: Path, missing_ok: bool = False) -> None:
        if path.name == "training.pt":
            new = run.checkpoint("unilm", 0, 4)
            complete = {p.name for p in new.iterdir()} == {"checkpoint.json", "model.safetensors", "training.pt"}
            restore(trainer(arm(), run), run, "unilm", 4)
            seen.append((path.parent.name == "step-000003", complete))
        original(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watch)
    save(it, run, "unilm")
    assert seen == [(True, True)]


def test_a_checkpoint_moves_between_devices_as_numbers(run: RunDirectory) -> None:
    it = trained(run)
    save(it, run, "unilm")
    state = torch.load(run.checkpoint("unilm", 0, 3) / "training.pt", weights_only=True)
    assert all(t.device == CPU for entry in state["optimizer"]["state"].values() for t in entry.values())
    assert isinstance(load_model(run.checkpoint("unilm", 0, 3), it.config.model), Transformer)
