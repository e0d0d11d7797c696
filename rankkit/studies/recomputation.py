"""Making again what every arm of a run must have held and consumed, from configuration, text and seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rankkit.data.evaluation import evaluation_sequences
from rankkit.models.transformer import Transformer
from rankkit.studies.certificate import MEANING, facts_by_step
from rankkit.studies.run import Run
from rankkit.training.config import ArmConfig, differing_fields
from rankkit.training.consumption import Consumption, evaluation_hash, parameter_hashes
from rankkit.training.trainer import Trainer

__all__ = ["recompute_problems"]


def recompute_problems(run: Run) -> list[str]:
    """Recompute from configuration and text what every arm must have held and consumed, and compare.

    Initial weights are drawn again from the seed, and the whole stream is read again up to the last checkpoint, so a
    certificate cannot agree with itself by accident: it takes the same configuration, the same text and the same code.

    Returns:
        What does not agree, as sentences; empty when everything does.
    """
    problems = []
    for arm, seed in run.config.units:
        by_step = facts_by_step(run, arm, seed)
        if not by_step:
            continue
        config = run.config.arm(arm)
        problems += [
            f"{arm}, seed {seed}, step {step}: trained with {name} {then}, where run.toml has {now}"
            for step, facts in by_step.items()
            for name, (then, now) in differing_fields(facts.configuration, config).items()
        ]
        if 0 not in by_step:
            problems.append(f"{arm}, seed {seed}: the checkpoint of step 0 is missing")
        elif parameter_hashes(_initial_model(run, config, seed)) != by_step[0].parameters:
            whose = "its configuration and seed" if run.config.initial is None else run.config.initial.source
            problems.append(f"{arm}, seed {seed}: initial weights are not those of {whose}")
        if any(facts.evaluation_sha256 != _evaluation_hash(run) for facts in by_step.values()):
            problems.append(f"{arm}, seed {seed}: evaluation sequences are not those of its configuration and text")
        chains = dict(_replayed_chains(run, config, seed, max(by_step)))
        problems += [
            f"{arm}, seed {seed}, step {step}: {MEANING[chain]} consumed are not those of its configuration and text"
            for step, facts in by_step.items()
            for chain in facts.chains
            if facts.chains[chain] != chains[step].get(chain)
        ]
    return problems


def _initial_model(run: Run, config: ArmConfig, seed: int) -> Transformer:
    beginning = run.beginning(seed)
    return Transformer(config.model, seed=seed) if beginning is None else beginning.model(config.model)


def _evaluation_hash(run: Run) -> str:
    train, n = run.config.base.train, run.config.base.model.sequence_length
    sequences = evaluation_sequences(run.tokens(), count=train.evaluation_sequences, sequence_length=n)
    return evaluation_hash(sequences.tokens, run.prefix_length)


def _replayed_chains(run: Run, config: ArmConfig, seed: int, steps: int) -> Iterator[tuple[int, dict[str, str]]]:
    """The chains after every step, from the stream alone."""
    stream = Trainer.stream_of(config, seed=seed, tokens=run.tokens())
    consumption = Consumption.of(config.task)
    beginning = run.beginning(seed)
    first = beginning.batches if beginning is not None else 0
    yield 0, dict(consumption.chains)
    for step in range(steps):
        batch = stream.batch(first + step)
        tokens = torch.from_numpy(batch.tokens)
        examples = Trainer.examples_of(config, seed, first + step, tokens, batch.prefix_lengths)
        consumption.add(tokens, batch.prefix_lengths, examples)
        yield step + 1, dict(consumption.chains)
