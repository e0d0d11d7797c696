"""Checkpoints that are whole or absent, and loading that fails loudly.

step-000060/model.safetensors   weights
training.pt         optimizer, place in the stream, chains; in the newest checkpoint only
checkpoint.json     step, seed, arm, hashes; written last
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rankkit.errors import RunError
from rankkit.files import RunDirectory, atomic_directory, sha256_of_file, write_json
from rankkit.models.config import ModelConfig
from rankkit.models.transformer import Transformer
from rankkit.training.consumption import parameter_hashes
from rankkit.training.trainer import Trainer

__all__ = ["CheckpointFacts", "latest_resumable_step", "load_model", "read_facts", "restore", "save"]

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


def save(trainer: Trainer, run: RunDirectory, arm: str) -> CheckpointFacts:
    """Write the checkpoint of the trainer's step, then drop the older checkpoints' optimizer state.

    Raises:
        StorageError: the file system refused; older checkpoints are as they were.
    """
    folder = run.checkpoint(arm, trainer.seed, trainer.step)
    with atomic_directory(folder) as temporary:
        weights = {name: tensor.cpu().contiguous() for name, tensor in trainer.model.state_dict().items()}
        save_file(weights, temporary / _WEIGHTS)
        state = {
            "optimizer": trainer.optimizer.state_dict(),
            "step": trainer.step,
            "loss_tokens": trainer.loss_tokens,
            "chains": trainer.consumption.chains,
        }
        torch.save(state, temporary / _STATE)
        facts = CheckpointFacts(
            arm=arm,
            seed=trainer.seed,
            step=trainer.step,
            chains=dict(trainer.consumption.chains),
            parameters=parameter_hashes(trainer.model),
            weights_sha256=sha256_of_file(temporary / _WEIGHTS),
            loss_tokens=trainer.loss_tokens,
        )
        state_hash = sha256_of_file(temporary / _STATE)
        described = {name: getattr(facts, name) for name in CheckpointFacts.__slots__}
        write_json(temporary / _FACTS, {"rankkit_checkpoint": FORMAT, "training_sha256": state_hash, **described})
    for step in run.checkpoint_steps(arm, trainer.seed):
        if step < trainer.step:
            (run.checkpoint(arm, trainer.seed, step) / _STATE).unlink(missing_ok=True)
    return facts


def read_facts(folder: Path) -> CheckpointFacts:
    """Read `checkpoint.json`.

    Raises:
        RunError: missing, damaged, or of a newer format.
    """
    return CheckpointFacts(**{name: _document(folder)[name] for name in CheckpointFacts.__slots__})


def _document(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} must hold a readable {_FACTS}, got: {error}. Delete this checkpoint.") from error
    if not isinstance(document, dict) or not set(CheckpointFacts.__slots__) <= set(document):
        raise RunError(f"{folder / _FACTS} must describe a checkpoint, got other keys. Delete this checkpoint.")
    if document.get("rankkit_checkpoint", 0) > FORMAT:
        raise RunError(
            f"{folder} must be of checkpoint format {FORMAT} or older, got {document['rankkit_checkpoint']}. "
            "Install a newer rankkit."
        )
    return document


def latest_resumable_step(run: RunDirectory, arm: str, seed: int) -> int | None:
    """The newest step whose optimizer state is there; None where a unit has not begun."""
    steps = [step for step in run.checkpoint_steps(arm, seed) if (run.checkpoint(arm, seed, step) / _STATE).is_file()]
    return steps[-1] if steps else None


def _checked_weights(folder: Path) -> dict[str, torch.Tensor]:
    facts = read_facts(folder)
    path = folder / _WEIGHTS
    if not path.is_file() or sha256_of_file(path) != facts.weights_sha256:
        raise RunError(f"{path} must match the hash in {_FACTS}, but it does not. Delete this checkpoint and --resume.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path} must be a safetensors file, got: {error}. Delete this checkpoint.") from error


def load_model(folder: Path, config: ModelConfig) -> Transformer:
    """A model with the weights of a checkpoint, proven to be those weights.

    Raises:
        RunError: the file does not match its hash, or names, shapes or dtypes differ from the configuration's.
    """
    weights = _checked_weights(folder)
    model = Transformer(config)
    _load(model, weights, folder)
    return model.eval()


def _load(model: Transformer, weights: dict[str, torch.Tensor], folder: Path) -> None:
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise RunError(
            f"{folder} must hold the weights of its configuration, but {wrong[0]} is {found.get(wrong[0])} instead of "
            f"{expected.get(wrong[0])}. The run directory is damaged or mixed from two runs."
        )
    model.load_state_dict(weights)


def restore(trainer: Trainer, run: RunDirectory, arm: str, step: int) -> None:
    """Put a fresh trainer back to a checkpoint, to the very bits.

    Raises:
        RunError: damaged or foreign files.
    """
    folder = run.checkpoint(arm, trainer.seed, step)
    path = folder / _STATE
    if sha256_of_file(path) != _document(folder).get("training_sha256"):
        raise RunError(f"{path} must match the hash in {_FACTS}, but it does not. Delete this checkpoint and --resume.")
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise RunError(f"{path} must hold optimizer state, got: {error}. Delete this checkpoint.") from error
    _load(trainer.model, {k: v.to(trainer.device) for k, v in _checked_weights(folder).items()}, folder)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.step, trainer.loss_tokens = state["step"], state["loss_tokens"]
    trainer.consumption.chains = dict(state["chains"])
