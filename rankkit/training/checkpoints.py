"""Checkpoints that are whole or absent, and loading that fails loudly.

step-000060/model.safetensors   weights
training.pt         optimizer, place in the stream, chains; in the newest checkpoint only
checkpoint.json     step, seed, arm, hashes; written last
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from rankkit.errors import ConfigurationError, RunError
from rankkit.files import RunDirectory, atomic_directory, sha256_of_file, storage_errors, write_json
from rankkit.models.config import ModelConfig
from rankkit.models.transformer import Transformer
from rankkit.training.config import ArmConfig, differing_fields
from rankkit.training.consumption import parameter_hashes
from rankkit.training.environment import environment
from rankkit.training.settings import from_table, to_table
from rankkit.training.trainer import Trainer

__all__ = [
    "CheckpointFacts",
    "keep_newest_state",
    "latest_resumable_step",
    "load_model",
    "load_weights",
    "read_facts",
    "restore",
    "save",
]

_WEIGHTS, _STATE, _FACTS = "model.safetensors", "training.pt", "checkpoint.json"
FORMAT = 1  # of the checkpoint folder; a newer one is refused


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What `checkpoint.json` says."""

    arm: str
    """Name of the arm."""
    seed: int
    """Of the run."""
    step: int
    """Steps finished."""
    chains: dict[str, str]
    """What was consumed up to here, hashed."""
    parameters: dict[str, str]
    """SHA-256 of every weight, by name."""
    weights_sha256: str
    """Of model.safetensors."""
    loss_tokens: int
    """Tokens predicted so far."""
    evaluation_sha256: str
    """Of the held-out sequences and their prefix length."""
    environment: dict[str, str | int]
    """Machine and software that made it."""
    configuration: ArmConfig
    """What the arm was trained with, by its own account."""


def save(trainer: Trainer, run: RunDirectory, arm: str) -> CheckpointFacts:
    """Write the checkpoint of the trainer's step, then drop the older checkpoints' optimizer state.

    Raises:
        StorageError: the file system refused; older checkpoints are as they were.
    """
    folder = run.checkpoint(arm, trainer.seed, trainer.step)
    with atomic_directory(folder) as temporary:
        # Python writes the files: both libraries would hide a full disk behind an error of their own.
        weights = {name: tensor.cpu().contiguous() for name, tensor in trainer.model.state_dict().items()}
        (temporary / _WEIGHTS).write_bytes(serialized(weights))
        (temporary / _STATE).write_bytes(_training_state(trainer))
        facts = CheckpointFacts(
            arm=arm,
            seed=trainer.seed,
            step=trainer.step,
            chains=dict(trainer.consumption.chains),
            parameters=parameter_hashes(trainer.model),
            weights_sha256=sha256_of_file(temporary / _WEIGHTS),
            loss_tokens=trainer.loss_tokens,
            evaluation_sha256=trainer.evaluation_sha256,
            environment=environment(trainer.device, trainer.precision, torch.get_num_threads()),
            configuration=trainer.config,
        )
        state_hash = sha256_of_file(temporary / _STATE)
        described = {name: getattr(facts, name) for name in CheckpointFacts.__slots__}
        described["configuration"] = to_table(facts.configuration)
        write_json(temporary / _FACTS, {"rankkit_checkpoint": FORMAT, "training_sha256": state_hash, **described})
    keep_newest_state(trainer, run, arm)
    return facts


def keep_newest_state(trainer: Trainer, run: RunDirectory, arm: str) -> None:
    """Delete the optimizer state of checkpoints before the trainer's step.

    Raises:
        StorageError: the file system refused.
    """
    with storage_errors(run.unit(arm, trainer.seed)):
        for step in run.checkpoint_steps(arm, trainer.seed):
            if step < trainer.step:
                (run.checkpoint(arm, trainer.seed, step) / _STATE).unlink(missing_ok=True)


def _training_state(trainer: Trainer) -> memoryview:
    state = {
        "optimizer": trainer.optimizer.state_dict(),
        # Not "step", as the optimizer has it: pickle writes a string that two places share once, and these two would share
        # it only until the first restore, so that a resumed run's file would differ.
        "steps": trainer.step,
        "loss_tokens": trainer.loss_tokens,
        "chains": trainer.consumption.chains,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def read_facts(folder: Path) -> CheckpointFacts:
    """Read `checkpoint.json`.

    Raises:
        RunError: missing, damaged, foreign, or of a newer format.
    """
    return _facts(_document(folder), folder)


def _facts(document: dict[str, Any], folder: Path) -> CheckpointFacts:
    try:
        configuration = from_table(ArmConfig, document["configuration"], "configuration")
    except ConfigurationError as error:
        raise RunError(
            f"{folder / _FACTS} must hold a valid configuration, got: {error} Delete this checkpoint."
        ) from error
    if set(document["chains"]) != set(configuration.task.chains):
        raise RunError(f"{folder / _FACTS} must describe a checkpoint, got damage. Delete this checkpoint.")
    described = {name: document[name] for name in CheckpointFacts.__slots__}
    return CheckpointFacts(**{**described, "configuration": configuration})


def _document(folder: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder} must hold a readable {_FACTS}, got: {error}. Delete this checkpoint.") from error
    found = document.get("rankkit_checkpoint") if isinstance(document, dict) else None
    if type(found) is not int:
        raise RunError(f"{folder / _FACTS} must be written by rankkit, got a foreign file. Delete this checkpoint.")
    if found > FORMAT:
        raise RunError(
            f"{folder} must be of checkpoint format {FORMAT} or older, got {found}. Install a newer rankkit."
        )
    if not _is_whole(document):
        raise RunError(f"{folder / _FACTS} must describe a checkpoint, got damage. Delete this checkpoint.")
    return document


def _is_whole(document: dict[str, Any]) -> bool:
    """Whether every fact is there and of its type."""
    kinds = {str: ("arm", "weights_sha256", "training_sha256"), int: ("seed", "step", "loss_tokens")}
    if any(type(document.get(name)) is not kind for kind, names in kinds.items() for name in names):
        return False
    tables = [document.get("chains"), document.get("parameters")]
    if not all(isinstance(table, dict) and all(type(entry) is str for entry in table.values()) for table in tables):
        return False
    return all(isinstance(document.get(name), dict) for name in ("environment", "configuration"))


def latest_resumable_step(run: RunDirectory, arm: str, seed: int) -> int | None:
    """The newest step whose optimizer state is there; None where a unit has not begun."""
    steps = [step for step in run.checkpoint_steps(arm, seed) if (run.checkpoint(arm, seed, step) / _STATE).is_file()]
    return steps[-1] if steps else None


def _checked_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / _WEIGHTS
    _check_hash(path, read_facts(folder).weights_sha256)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path} must be a safetensors file, got: {error}. Delete this checkpoint.") from error


def _check_hash(path: Path, expected: str) -> None:
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise RunError(
            f"{path} must be readable, got: {error.strerror}. Delete this checkpoint and --resume."
        ) from error
    if found != expected:
        raise RunError(f"{path} must match the hash in {_FACTS}, but it does not. Delete this checkpoint and --resume.")


def load_model(folder: Path, config: ModelConfig) -> Transformer:
    """A model with the weights of a checkpoint, proven to be those weights.

    Raises:
        RunError: the file does not match its hash, or names, shapes or dtypes differ from the configuration's.
    """
    weights = _checked_weights(folder)
    model = Transformer(config)
    load_weights(model, weights, folder)
    return model.eval()


def load_weights(model: Transformer, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Put weights into a model that has just these.

    Raises:
        RunError: names, shapes or dtypes differ.
    """
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise RunError(
            f"{source} must hold the weights of its configuration, but {wrong[0]} is {found.get(wrong[0])} instead of "
            f"{expected.get(wrong[0])}. The run directory is damaged or mixed from two runs."
        )
    model.load_state_dict(weights)


def restore(trainer: Trainer, run: RunDirectory, arm: str, step: int) -> None:
    """Put a fresh trainer back to a checkpoint, to the very bits.

    Raises:
        RunError: damaged or foreign files.
    """
    folder = run.checkpoint(arm, trainer.seed, step)
    document = _document(folder)
    facts, path = _facts(document, folder), folder / _STATE
    if (facts.arm, facts.seed, facts.step) != (arm, trainer.seed, step):
        raise RunError(
            f"{folder} must be the checkpoint of {arm}, seed {trainer.seed}, step {step}, got that of {facts.arm}, seed "
            f"{facts.seed}, step {facts.step}. The run directory is mixed from two runs."
        )
    if changed := differing_fields(facts.configuration, trainer.config):
        name, (then, now) = next(iter(changed.items()))
        raise RunError(
            f"{folder} must be continued with the configuration it was trained with, but {name} was {then} and is now "
            f"{now}. Restore run.toml."
        )
    _check_hash(path, document["training_sha256"])
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # torch's own message is a page long and advises to trust the file.
        raise RunError(f"{path} must hold optimizer state, got other content. Delete this checkpoint.") from error
    if (state["steps"], state["loss_tokens"], state["chains"]) != (facts.step, facts.loss_tokens, facts.chains):
        raise RunError(f"{folder / _FACTS} must agree with {_STATE}, but it does not. Delete this checkpoint.")
    load_weights(trainer.model, {k: v.to(trainer.device) for k, v in _checked_weights(folder).items()}, folder)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.step, trainer.loss_tokens = facts.step, facts.loss_tokens
    trainer.consumption.chains = dict(state["chains"])
