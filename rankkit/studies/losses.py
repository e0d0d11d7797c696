"""What the losses of a run show, each with its error, beside its baselines and the same-mask control."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.data.evaluation import EvaluationSequences, evaluation_sequences, ngram_cross_entropy
from rankkit.errors import RunError
from rankkit.statistics import (
    Interval,
    bootstrap_over_documents,
    clustered_standard_error,
    mean_interval,
    standard_error,
)
from rankkit.studies.certificate import declared_fields
from rankkit.studies.run import Run
from rankkit.training.checkpoints import read_facts
from rankkit.training.consumption import evaluation_hash

__all__ = ["ArmLosses", "LossComparison", "PairDifference", "compare_losses", "read_evaluation", "verdict"]

_ROUNDING = 1e-9  # relative; means of at most 1e5 float64 values taken in another order differ by less


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmLosses:
    """One arm's cost and its losses on the evaluation sequences."""

    arm: str
    """Name."""
    parameters: int
    """All weights."""
    non_embedding_parameters: int
    """N."""
    tokens: int
    """D: tokens read per seed."""
    loss_tokens: int
    """Tokens predicted in the loss per seed, mean over seeds."""
    attention_flops: float
    """Floating-point operations of attention in training, per seed, mean over seeds: forward and twice that backward."""
    compute: float
    """C = 6 N D, floating-point operations per seed."""
    seeds: tuple[int, ...]
    """Finished seeds."""
    by_sequence: NDArray[np.float64]
    """"seed sequence": mean suffix loss, nats per token."""
    by_position: NDArray[np.float64]
    """"seed target": loss at each suffix position, nats."""
    documents: NDArray[np.int64]
    """"sequence": the held-out document that each starts in."""
    uniform_attention: NDArray[np.float64]
    """"seed": loss with every head attending uniformly, nats per token."""

    @property
    def by_seed(self) -> NDArray[np.float64]:
        """Mean suffix loss, "seed"."""
        return np.asarray(self.by_sequence.mean(axis=1))

    @property
    def loss(self) -> float:
        """Mean over seeds, nats per token."""
        return float(self.by_seed.mean())

    @property
    def loss_error(self) -> float:
        """Standard error over seeds; with one seed over documents, which says nothing of another seed."""
        if len(self.seeds) > 1:
            return standard_error(self.by_seed)
        return clustered_standard_error(self.by_sequence[0], self.documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDifference:
    """Loss of one arm minus loss of another, paired by seed and sequence."""

    arms: tuple[str, str]
    """(minuend, subtrahend)."""
    declared: tuple[str, ...]
    """Fields in which the two differ; more than one cannot be told apart."""
    seeds: tuple[int, ...]
    """Seeds that both have finished."""
    by_seed: NDArray[np.float64]
    """"seed": mean difference, nats per token."""
    interval: Interval
    """95%."""
    same_mask: float
    """Root mean square difference between two seeds of one arm, over both arms: what another seed alone does. nan with
    one seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossComparison:
    """The closing table of `train-pair`."""

    prefix_length: int
    """Of every evaluation sequence."""
    sequences: int
    """How many there are."""
    documents: int
    """From how many held-out documents."""
    ngrams: Mapping[str, float]
    """Cross-entropy of unigram and bigram models on the same targets, nats per token."""
    arms: tuple[ArmLosses, ...]
    """In the order of the run."""
    differences: tuple[PairDifference, ...]
    """Of every two arms: the later minus the earlier one."""

    def arm(self, name: str) -> ArmLosses:
        """One arm's losses."""
        return next(losses for losses in self.arms if losses.arm == name)


def compare_losses(run: Run) -> LossComparison:
    """Collect the final evaluations of a run's finished units.

    Raises:
        RunError: no arm has a finished seed, or an evaluation is damaged.
    """
    config = run.config.base
    n, p = config.model.sequence_length, run.prefix_length
    tokens = run.tokens()
    sequences = evaluation_sequences(tokens, count=config.train.evaluation_sequences, sequence_length=n)
    ngrams = ngram_cross_entropy(
        tokens.train, sequences.tokens, targets=slice(max(p, 1), n), vocab_size=tokens.vocab_size
    )
    arms = tuple(
        losses for name in run.config.arms if (losses := _arm_losses(run, name, sequences.documents)) is not None
    )
    if not arms:
        raise RunError(f"{run.directory.path} must have a finished unit, but has none. Continue it with --resume.")
    return LossComparison(
        prefix_length=p,
        sequences=len(sequences.tokens),
        documents=len(np.unique(sequences.documents)),
        ngrams=ngrams,
        arms=arms,
        differences=tuple(
            difference
            for one, other in combinations(arms, 2)
            if (difference := _difference(other, one, sequences)) is not None
        ),
    )


def read_evaluation(run: Run, arm: str, seed: int) -> dict[str, Any]:
    """The final evaluation of a unit, as `rankkit.training` wrote it.

    Raises:
        RunError: damaged, or not that of this run's sequences, prefix length and steps.
    """
    path = run.directory.evaluation(arm, seed)
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        problems = list(_contradictions(document, run, arm, seed))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems = [repr(error)]
    if problems:
        raise RunError(f"{path} must hold a finished evaluation, got: {problems[0]}. Delete it and --resume.")
    return document


def _contradictions(document: Mapping[str, Any], run: Run, arm: str, seed: int) -> Iterator[str]:
    """What in an evaluation disagrees with itself or with its run."""
    train, n, p = run.config.base.train, run.config.base.model.sequence_length, run.prefix_length
    sequences = evaluation_sequences(run.tokens(), count=train.evaluation_sequences, sequence_length=n)
    facts = read_facts(run.directory.checkpoint(arm, seed, train.steps))
    if (document["arm"], document["seed"]) != (arm, seed):
        yield f"that of arm {document['arm']}, seed {document['seed']}"
    if document["weights_sha256"] != facts.weights_sha256:
        yield "that of other weights than its last checkpoint's"
    if document["evaluation_sha256"] != evaluation_hash(sequences.tokens, p):
        yield "that of other sequences than this run's"
    if (document["step"], document["prefix_length"]) != (train.steps, p):
        yield f"step {document['step']} and prefix length {document['prefix_length']} instead of {train.steps} and {p}"
    if not isinstance(document["loss_tokens"], int):
        yield f"loss_tokens {document['loss_tokens']!r}"
    for kind, loss in (("trained", "loss"), ("uniform_attention", "uniform_attention_loss")):
        by_sequence, by_position = (np.asarray(document[kind][key], float) for key in ("by_sequence", "by_position"))
        if by_sequence.shape != (len(sequences.tokens),) or by_position.shape != (n - max(p, 1),):
            yield f"{kind} losses of shape {by_sequence.shape} by sequence and {by_position.shape} by position"
        elif not np.allclose([by_sequence.mean(), by_position.mean()], document[loss], rtol=_ROUNDING, atol=0):
            yield f"{kind} losses whose mean is not {document[loss]}"


def _arm_losses(run: Run, arm: str, documents: NDArray[np.int64]) -> ArmLosses | None:
    seeds = tuple(seed for seed in run.config.seeds if run.finished(arm, seed))
    if not seeds:
        return None
    evaluations = [read_evaluation(run, arm, seed) for seed in seeds]
    config = run.config.arm(arm)
    tokens = config.train.steps * config.train.batch_size * config.model.sequence_length
    return ArmLosses(
        arm=arm,
        parameters=config.model.parameters,
        non_embedding_parameters=config.model.non_embedding_parameters,
        tokens=tokens,
        loss_tokens=round(float(np.mean([evaluation["loss_tokens"] for evaluation in evaluations]))),
        attention_flops=_attention_flops(run, arm),
        compute=6.0 * config.model.non_embedding_parameters * tokens,
        seeds=seeds,
        by_sequence=np.array([evaluation["trained"]["by_sequence"] for evaluation in evaluations]),
        by_position=np.array([evaluation["trained"]["by_position"] for evaluation in evaluations]),
        documents=documents,
        uniform_attention=np.array([evaluation["uniform_attention_loss"] for evaluation in evaluations]),
    )


def _attention_flops(run: Run, arm: str) -> float:
    """Forward and backward, expected over the drawn prefix lengths."""
    config = run.config.arm(arm)
    n = config.model.sequence_length
    choices = config.train.prefix_lengths(n).choices
    masks = [mask for length in choices for mask in config.model.mask.masks(length)]
    per_head = np.mean([mask.attention_flops(n, config.model.head_dim) for mask in masks])
    sequences = config.train.steps * config.train.batch_size
    return float(3 * per_head * config.model.num_heads * config.model.num_layers * sequences)


def _difference(one: ArmLosses, other: ArmLosses, sequences: EvaluationSequences) -> PairDifference | None:
    seeds = tuple(seed for seed in one.seeds if seed in other.seeds)
    if not seeds:
        return None
    picked = [(one.seeds.index(seed), other.seeds.index(seed)) for seed in seeds]
    table = np.stack([one.by_sequence[i] - other.by_sequence[j] for i, j in picked])
    by_seed = table.mean(axis=1)
    interval = mean_interval(by_seed) if len(seeds) > 1 else bootstrap_over_documents(table[0], sequences.documents)
    return PairDifference(
        arms=(one.arm, other.arm),
        declared=tuple(declared_fields(one.arm, other.arm)),
        seeds=seeds,
        by_seed=by_seed,
        interval=interval,
        same_mask=_same_mask([one.by_seed, other.by_seed]),
    )


def _same_mask(by_seed: Sequence[NDArray[np.float64]]) -> float:
    squares = [(a - b) ** 2 for losses in by_seed for a, b in combinations(losses.tolist(), 2)]
    return math.sqrt(sum(squares) / len(squares)) if squares else float("nan")


def verdict(difference: PairDifference) -> str:
    """One sentence that says what a difference does and does not show."""
    later, earlier = difference.arms
    what = " and ".join(difference.declared) or "nothing"
    interval = difference.interval
    size = f"{interval.mean:+.4f} nats per token (95%: {interval.lower:+.4f} to {interval.upper:+.4f})"
    scope = "for this model, text and number of steps"
    if len(difference.seeds) == 1:
        return (
            f"No verdict: {later} - {earlier} is {size} under one seed, and that interval is the error of the evaluation "
            "alone; another seed may reverse its sign. Train at least three seeds."
        )
    if not interval.resolved:
        return (
            f"Not resolved: {later} - {earlier} is {size} over {interval.count} seeds; an effect of the {what} smaller than "
            f"{max(abs(interval.lower), abs(interval.upper)):.4f} cannot be excluded."
        )
    better, worse = (earlier, later) if interval.mean > 0 else (later, earlier)
    return (
        f"{better} has the lower suffix loss than {worse}: {later} - {earlier} is {size} over {interval.count} seeds, "
        f"{scope}; the arms differ in {what} alone, and nothing is said of other sizes or of longer training."
    )
