"""The smallest things that train: an arm, its text, a run directory, and what a finished unit left there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from rankkit.data import DataConfig, TokenFiles, prepare_tokens, synthetic
from rankkit.files import RunDirectory, read_json_lines
from rankkit.models import ModelConfig, Transformer, uniform_tensor
from rankkit.training import ArmConfig, TrainConfig, Trainer, arm_config, train_unit
from rankkit.training.unit import Message

CPU = torch.device("cpu")
N = 32
"""Tokens per sequence of `arm`."""
STEPS = 12


def model_config(**changes: Any) -> ModelConfig:
    """Two layers whose width (16) is not that of their heads (3 x 8)."""
    settings = {"vocab_size": 257, "sequence_length": N, "num_layers": 2, "d_model": 16, "num_heads": 3, "head_dim": 8}
    return ModelConfig(**{**settings, **changes})


def arm(name: str = "unilm", *, model: Mapping[str, Any] | None = None, **train: Any) -> ArmConfig:
    """One arm that trains in a tenth of a second."""
    settings = {
        "steps": STEPS, "batch_size": 2, "evaluation_sequences": 3, "evaluation_interval": 5, "checkpoint_interval": 4,
        "log_interval": 2,
    }  # fmt: skip
    base = ArmConfig(model=model_config(**(model or {})), train=TrainConfig(**{**settings, **train}), data=DataConfig())
    return arm_config(base, name)


def tokens_in(folder: Path) -> TokenFiles:
    """The synthetic grammar as bytes, in `folder/tokens`."""
    return prepare_tokens(
        DataConfig(), folder / "tokens", folder / "tokenizer.json", sequence_length=N, corpus=synthetic(0, 24)
    )


def run_in(folder: Path, *, tokens: Path | None = None) -> RunDirectory:
    """A run directory with its tokens, or with a link to tokens that are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokens is None:
        tokens_in(folder)
    else:
        (folder / "tokens").symlink_to(tokens, target_is_directory=True)
    return RunDirectory(folder)


def trainer(config: ArmConfig, run: RunDirectory, *, seed: int = 0) -> Trainer:
    """A fresh trainer on a run's tokens."""
    from rankkit.data import open_tokens

    return Trainer(config, seed=seed, tokens=open_tokens(run.tokens), device=CPU)


def train(
    run: RunDirectory, config: ArmConfig, *, name: str = "unilm", seed: int = 0, stop_after: int | None = None
) -> list[Message]:
    """Train one unit to its end, or until it was asked to stop after so many steps."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_after

    return list(train_unit(run, name, config, seed, device=CPU, stop=stop))


def train_in_child(connection: Connection, folder: Path, config: ArmConfig, name: str) -> None:
    """Train one unit slowly in a process of its own, reporting every message by its type."""
    from time import sleep

    torch.set_num_threads(1)

    def stop() -> bool:
        sleep(0.02)  # seconds: leaves time to be killed before the end
        return False

    for message in train_unit(RunDirectory(folder), name, config, 0, device=CPU, stop=stop):
        connection.send(type(message).__name__)


def outcome(run: RunDirectory, name: str = "unilm", *, seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """Everything that a finished unit left, but for the seconds that its steps took."""
    final = run.checkpoint(name, seed, steps)
    lines = read_json_lines(run.metrics(name, seed))
    return {
        "weights": (final / "model.safetensors").read_bytes(),
        "checkpoint": json.loads((final / "checkpoint.json").read_text()),
        "initial": json.loads((run.checkpoint(name, seed, 0) / "checkpoint.json").read_text())["parameters"],
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "evaluation": run.evaluation(name, seed).read_bytes(),
    }


def assert_same_outcome(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Two units ended in the very same bits."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == value, key


def widen(model: Transformer, *, seed: int = 7) -> Transformer:
    """Replace the initial weights by large ones, gains included, so that attention is far from uniform; float64."""
    model.double()
    for name, parameter in model.named_parameters():
        numbers = uniform_tensor(seed, name, tuple(parameter.shape), 0.4)
        parameter.data.copy_(numbers + 1.0 if parameter.dim() < 2 else numbers)
    return model.eval()
