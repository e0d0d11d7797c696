"""What the losses of a run show, each with its error, beside its baselines and the same-mask control.

Losses are subtracted where they are means over the same targets: a suffix loss and a loss on hidden tokens are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.display import html_table, plus_minus, short
from rankkit.errors import MatchError, RunError
from rankkit.statistics import (
    Interval,
    bootstrap_over_documents,
    clustered_standard_error,
    mean_interval,
    standard_error,
)
from rankkit.studies.certificate import declared_fields
from rankkit.studies.evaluations import read_evaluation, references_of, sequences_of
from rankkit.studies.run import Run

__all__ = ["ArmLosses", "LossComparison", "PairDifference", "compare_losses", "pooled_losses", "verdict"]


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
    task: str
    """What was evaluated: `suffix` or `masked`. Losses of two tasks are no two measurements of one thing."""
    reference: str
    """The model that counts, on the same targets: `bigram`, or `neighbours` for hidden tokens."""
    reference_loss: float
    """Its cross-entropy, nats per token."""
    seeds: tuple[int, ...]
    """Finished seeds."""
    by_sequence: NDArray[np.float64]
    """"seed sequence": mean loss, nats per predicted token."""
    by_position: NDArray[np.float64]
    """"seed target": loss at each suffix position (masked: at each position, nan where none was hidden), nats."""
    documents: NDArray[np.int64]
    """"sequence": the held-out document that each starts in."""
    uniform_attention: NDArray[np.float64]
    """"seed": loss with every head attending uniformly, nats per token."""

    @property
    def by_seed(self) -> NDArray[np.float64]:
        """Mean loss, "seed"."""
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

    @property
    def is_trained_enough(self) -> bool:
        """Whether the loss lies below the reference by more than twice its standard error.

        With one seed and one document there is no error, and the loss alone decides.
        """
        error = 0.0 if math.isnan(self.loss_error) else self.loss_error
        return self.loss + 2 * error < self.reference_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDifference:
    """Loss of one arm minus loss of another on the same targets, paired by seed and sequence."""

    arms: tuple[str, str]
    """(minuend, subtrahend)."""
    task: str
    """Of both."""
    declared: tuple[str, ...]
    """Fields in which the two differ; the effects of more than one cannot be told apart."""
    seeds: tuple[int, ...]
    """Seeds that both have finished."""
    by_seed: NDArray[np.float64]
    """"seed": mean difference, nats per token."""
    interval: Interval
    """95%."""
    same_mask: float
    """Root mean square difference between two seeds of one arm, over both arms: what another seed alone does. nan with
    one seed."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LossComparison:
    """The closing table of `train-pair`."""

    prefix_length: int
    """Of every evaluation sequence."""
    sequences: int
    """How many there are."""
    documents: int
    """From how many held-out documents."""
    references: Mapping[str, Mapping[str, float]]
    """By task, cross-entropy of models that count on its targets, nats per token."""
    arms: tuple[ArmLosses, ...]
    """In the order of the run."""
    differences: tuple[PairDifference, ...]
    """Of every two arms with one task: the later minus the earlier one."""
    apart: tuple[tuple[str, str], ...]
    """(later, earlier) of every two arms with different tasks, whose losses are not subtracted."""

    @property
    def ngrams(self) -> dict[str, float]:
        """The references of all tasks, by name."""
        return {name: loss for found in self.references.values() for name, loss in found.items()}

    def arm(self, name: str) -> ArmLosses:
        """One arm's losses."""
        return next(losses for losses in self.arms if losses.arm == name)

    def __repr__(self) -> str:
        losses = ", ".join(f"{arm.arm} {arm.loss:.4f}" for arm in self.arms)
        return f"LossComparison({losses} nats per token; {self.sequences} sequences of {self.documents} documents)"

    def _repr_html_(self) -> str:
        """Losses and what their differences show, for notebooks."""
        rows = [
            [arm.arm, arm.task, str(len(arm.seeds)), f"{arm.loss:.4f}", short(arm.loss_error),
             f"{arm.reference_loss:.4f} ({arm.reference})", f"{arm.uniform_attention.mean():.4f}"]
            for arm in self.arms
        ]  # fmt: skip
        rows += [
            [f"{later} - {earlier}", found.task, str(len(found.seeds)),
             plus_minus(found.interval.mean, found.interval.half_width, sign="+"), "", "", ""]
            for found in self.differences
            for later, earlier in [found.arms]
        ]  # fmt: skip
        headings = ("arm", "loss on", "seeds", "loss", "standard error", "model that counts", "uniform attention")
        caption = f"Held-out losses, nats per token: {self.sequences} sequences of {self.documents} documents"
        untrained = [
            f"{arm.arm} is not trained enough: its loss is not below that of the model that counts by two standard errors."
            for arm in self.arms
            if not arm.is_trained_enough
        ]
        return html_table(caption, headings, rows, notes=[*untrained, *map(verdict, self.differences)])


def compare_losses(run: Run) -> LossComparison:
    """Collect the final evaluations of a run's finished units.

    Raises:
        RunError: no arm has a finished seed, or an evaluation is damaged.
    """
    sequences = sequences_of(run)
    finished = [name for name in run.config.arms if any(run.finished(name, seed) for seed in run.config.seeds)]
    if not finished:
        raise RunError(f"{run.directory.path} must have a finished unit, but has none. Continue it with --resume.")
    tasks = {(task := run.config.arm(name).task.in_evaluation()).evaluated_as: task for name in finished}
    references = {name: references_of(run, task, sequences.tokens) for name, task in tasks.items()}
    arms = tuple(_arm_losses(run, name, sequences.documents, references) for name in finished)
    return LossComparison(
        prefix_length=run.prefix_length,
        sequences=len(sequences.tokens),
        documents=len(np.unique(sequences.documents)),
        references=references,
        arms=arms,
        **_pairs(arms),
    )


def pooled_losses(comparisons: Sequence[LossComparison]) -> LossComparison:
    """The comparison of one study whose seeds were trained in several runs.

    Args:
        comparisons: at least one, with the same text, evaluation sequences and prefix length, of different seeds.

    Returns:
        Arms with the seeds of all, ascending, and their differences anew: intervals over seeds are no sum of intervals.

    Raises:
        MatchError: the runs were evaluated on other targets, or share a seed of an arm.
    """
    first = comparisons[0]
    for other in comparisons[1:]:
        same = (other.prefix_length, other.sequences, other.references) == (
            first.prefix_length, first.sequences, first.references
        )  # fmt: skip
        if not same:
            raise MatchError(
                "runs must be evaluated on the same targets to be pooled, got others. Show them side by side."
            )
    names = dict.fromkeys(arm.arm for one in comparisons for arm in one.arms)
    arms = tuple(_pooled([arm for one in comparisons for arm in one.arms if arm.arm == name]) for name in names)
    return replace(first, arms=arms, **_pairs(arms))


def _pooled(parts: Sequence[ArmLosses]) -> ArmLosses:
    """One arm whose seeds lie apart."""
    seeds = [seed for part in parts for seed in part.seeds]
    if len(set(seeds)) < len(seeds):
        raise MatchError(f"seeds must differ to be pooled, got {seeds} of {parts[0].arm}. Show the runs side by side.")
    order = np.argsort(seeds)
    weights = [len(part.seeds) for part in parts]
    return replace(
        parts[0],
        seeds=tuple(sorted(seeds)),
        loss_tokens=round(float(np.average([part.loss_tokens for part in parts], weights=weights))),
        by_sequence=np.concatenate([part.by_sequence for part in parts])[order],
        by_position=np.concatenate([part.by_position for part in parts])[order],
        uniform_attention=np.concatenate([part.uniform_attention for part in parts])[order],
    )


def _pairs(arms: Sequence[ArmLosses]) -> dict[str, Any]:
    """Differences of every two arms with one task, and those that are not subtracted."""
    pairs = [(other, one) for one, other in combinations(arms, 2)]
    differences = [_difference(one, other) for one, other in pairs if one.task == other.task]
    return {
        "differences": tuple(difference for difference in differences if difference is not None),
        "apart": tuple((one.arm, other.arm) for one, other in pairs if one.task != other.task),
    }


def _arm_losses(
    run: Run, arm: str, documents: NDArray[np.int64], references: Mapping[str, Mapping[str, float]]
) -> ArmLosses:
    seeds = tuple(seed for seed in run.config.seeds if run.finished(arm, seed))
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
        task=config.task.evaluated_as,
        reference=config.task.reference,
        reference_loss=references[config.task.evaluated_as][config.task.reference],
        seeds=seeds,
        by_sequence=np.array([evaluation["trained"]["by_sequence"] for evaluation in evaluations]),
        by_position=np.array([evaluation["trained"]["by_position"] for evaluation in evaluations], dtype=np.float64),
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


def _difference(one: ArmLosses, other: ArmLosses) -> PairDifference | None:
    seeds = tuple(seed for seed in one.seeds if seed in other.seeds)
    if not seeds:
        return None
    picked = [(one.seeds.index(seed), other.seeds.index(seed)) for seed in seeds]
    table = np.stack([one.by_sequence[i] - other.by_sequence[j] for i, j in picked])
    by_seed = table.mean(axis=1)
    interval = mean_interval(by_seed) if len(seeds) > 1 else bootstrap_over_documents(table[0], one.documents)
    return PairDifference(
        arms=(one.arm, other.arm),
        task=one.task,
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
    size = f"{interval.mean:+.4f} nats per token (95%: {interval.words()})"
    scope = "for this model, text and number of steps"
    if len(difference.seeds) == 1:
        return (
            f"No verdict: {later} - {earlier} is {size} under one seed, and that interval is the error of the evaluation "
            "alone; another seed may reverse its sign. Train at least three seeds."
        )
    if math.isnan(interval.lower):
        return (
            f"Not resolved: {later} - {earlier} is {interval.mean:+.4f} nats per token under every one of {interval.count} "
            "seeds; without any spread there is no interval."
        )
    if not interval.resolved:
        return (
            f"Not resolved: {later} - {earlier} is {size} over {interval.count} seeds; an effect of the {what} smaller than "
            f"{max(abs(interval.lower), abs(interval.upper)):.4f} cannot be excluded."
        )
    better, worse = (earlier, later) if interval.mean > 0 else (later, earlier)
    alone = f"the arms differ in {what} alone"
    if len(difference.declared) > 1:
        alone = f"the arms differ in {what} together, and nothing says which of them did it"
    return (
        f"{better} has the lower {difference.task} loss than {worse}: {later} - {earlier} is {size} over {interval.count} "
        f"seeds, {scope}; {alone}, and nothing is said of other sizes or of longer training."
    )
