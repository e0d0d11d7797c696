"""What a training run would cost and could show, before it starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch

from rankkit.models.transformer import Transformer
from rankkit.statistics import smallest_resolvable_difference
from rankkit.studies.train_pair import default_workers
from rankkit.training.config import ArmConfig, RunConfig, arm_config
from rankkit.training.objective import token_losses

__all__ = ["SEED_DEVIATION", "ArmPlan", "TrainingPlan", "plan_training"]

SEED_DEVIATION: Final = 0.021
"""Standard deviation over seeds of a paired loss difference, nats per token, in a pilot of three seeds at the tiny
preset's size. Kaplan et al. (2020) saw about 0.02 between seeds. Yours will differ; the order of magnitude will not."""

_BYTES_PER_PARAMETER = 16  # weights, gradients and two moments in float32
_CALIBRATION_VOCABULARY = 50257  # rows of an embedding beyond this do not change a step's cost noticeably


_SEEDS = (3, 5, 6, 8, 10, 20)  # for which the smallest resolvable difference is listed


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPlan:
    """What one arm is asked."""

    mask: str
    """Kind of attention mask."""
    objective: str
    """What it is trained on."""
    task: str
    """What it is evaluated on."""
    reference: str
    """The model that counts, below which its loss must come."""
    loss_tokens: float
    """Tokens predicted in the loss, expected over the drawn prefixes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """Cost of a run on this machine, and what its seeds can resolve."""

    units: int
    """Arms times seeds."""
    steps: int
    """Optimizer steps of each."""
    tokens: int
    """Tokens read by each."""
    parameters: int
    """Weights of each."""
    arms: dict[str, ArmPlan]
    """What each arm predicts, by name."""
    apart: list[list[str]]
    """[later, earlier] of every two arms whose losses are means over different targets and will not be subtracted."""
    workers: int
    """Units trained side by side."""
    seconds: float
    """Expected for the whole run, from one timed step; evaluation included."""
    memory_bytes: int
    """Expected peak of all workers together: weights, gradients, moments and activations of a micro-batch."""
    disk_bytes: int
    """Checkpoints and tokens."""
    smallest_difference: float
    """Nats per token that the seeds can resolve with 80% probability; nan for one seed. Measured on suffix losses: those of
    hidden tokens may vary otherwise."""
    resolvable: dict[int, float]
    """The same for other numbers of seeds."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def plan_training(config: RunConfig, *, device: torch.device, workers: int | None = None) -> TrainingPlan:
    """Time one step of each arm on one sequence and multiply.

    Args:
        config: the run.
        device: where it would train.
        workers: processes; None for the default of this machine.
    """
    base = _with_mask_id(config)
    arms = {name: arm_config(base, name) for name in config.arms}
    default, threads = default_workers(device, len(config.units))
    workers = min(workers or default, len(config.units))
    train, model = base.train, base.model
    per_sequence = float(np.mean([_seconds_per_sequence(arm, device, threads) for arm in arms.values()]))
    evaluations = 2 + train.steps // train.evaluation_interval
    sequences = (
        train.steps * train.batch_size + evaluations * train.evaluation_sequences / 3
    )  # forward alone is a third
    units_each = math.ceil(len(config.units) / workers)
    micro = train.micro_batch_size or train.batch_size
    activations = micro * model.sequence_length * (
        model.num_layers * 4 * (16 + 2 * model.mlp_ratio) * model.d_model + 3 * 4 * model.vocab_size
    )  # fmt: skip
    checkpoints = 1 + math.ceil(train.steps / train.checkpoint_interval)
    return TrainingPlan(
        units=len(config.units),
        steps=train.steps,
        tokens=train.steps * train.batch_size * model.sequence_length,
        parameters=model.parameters,
        arms={name: _arm_plan(arm) for name, arm in arms.items()},
        apart=[
            [later, earlier]
            for earlier, later in combinations(arms, 2)
            if arms[later].task.evaluated_as != arms[earlier].task.evaluated_as
        ],
        workers=workers,
        seconds=per_sequence * sequences * units_each,
        memory_bytes=workers * (_BYTES_PER_PARAMETER * model.parameters + activations),
        disk_bytes=len(config.units) * model.parameters * 4 * (checkpoints + 2),
        smallest_difference=smallest_resolvable_difference(len(config.seeds), SEED_DEVIATION),
        resolvable={seeds: smallest_resolvable_difference(seeds, SEED_DEVIATION) for seeds in _SEEDS},
    )


def _with_mask_id(config: RunConfig) -> ArmConfig:
    """The base with the vocabulary that the run will have, as far as the text does not decide it."""
    model = config.base.model
    return replace(config.base, model=replace(model, vocab_size=model.vocab_size + config.needs_mask_id))


def _arm_plan(arm: ArmConfig) -> ArmPlan:
    n, train, task = arm.model.sequence_length, arm.train, arm.task
    predicted = np.mean([task.predicted(n, length) for length in train.prefix_lengths(n).choices])
    return ArmPlan(
        mask=str(arm.model.mask),
        objective=str(train.objective),
        task=task.evaluated_as,
        reference=task.reference,
        loss_tokens=float(predicted) * train.steps * train.batch_size,
    )


def _seconds_per_sequence(base: ArmConfig, device: torch.device, threads: int) -> float:
    """Forward and backward of one sequence with the evaluation's prefix, after one warm-up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = Transformer(replace(base.model, vocab_size=min(base.model.vocab_size, _CALIBRATION_VOCABULARY))).to(
            device
        )
        tokens = torch.zeros(1, base.model.sequence_length, dtype=torch.int64, device=device)
        lengths = [base.train.evaluation_prefix_length(base.model.sequence_length)]
        examples = base.task.examples(base.model.mask, tokens, lengths, "plan")
        for _ in range(2):
            started = perf_counter()
            token_losses(model, examples.inputs, lengths, examples.rows).mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return perf_counter() - started
    finally:
        torch.set_num_threads(before)
