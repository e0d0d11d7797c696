"""One arm under one seed: configuration, loop, evaluation, checkpoints, and the hashes of what it consumed."""

from __future__ import annotations

from rankkit.training.checkpoints import CheckpointFacts, load_model, read_facts
from rankkit.training.config import (
    ARMS,
    ArmConfig,
    InitialWeights,
    Objective,
    RunConfig,
    TrainConfig,
    arm_config,
    differing_fields,
)
from rankkit.training.environment import choose_device, environment, prepare_device
from rankkit.training.evaluation import Evaluation, evaluate
from rankkit.training.trainer import Trainer
from rankkit.training.unit import train_unit

__all__ = [
    "ARMS",
    "ArmConfig",
    "CheckpointFacts",
    "Evaluation",
    "InitialWeights",
    "Objective",
    "RunConfig",
    "TrainConfig",
    "Trainer",
    "arm_config",
    "choose_device",
    "differing_fields",
    "environment",
    "evaluate",
    "load_model",
    "prepare_device",
    "read_facts",
    "train_unit",
]
