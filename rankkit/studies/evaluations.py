"""Final evaluations on disk: reading them, what they are of, and what counting reaches on the same targets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankkit.data.evaluation import EvaluationSequences, evaluation_sequences, ngram_cross_entropy
from rankkit.data.neighbours import neighbour_cross_entropy
from rankkit.errors import RunError
from rankkit.studies.run import Run
from rankkit.training.checkpoints import read_facts
from rankkit.training.consumption import evaluation_hash
from rankkit.training.objective import Task, evaluation_key

__all__ = ["read_evaluation", "references_of", "sequences_of"]

_ROUNDING = 1e-9  # relative; means of at most 1e5 float64 values taken in another order differ by less


def sequences_of(run: Run) -> EvaluationSequences:
    """The held-out sequences that every arm of a run is evaluated on."""
    config = run.config.base
    return evaluation_sequences(
        run.tokens(), count=config.train.evaluation_sequences, sequence_length=config.model.sequence_length
    )


def _targets(task: Task, sequences: NDArray[np.int64], prefix_length: int) -> NDArray[np.bool_]:
    """Which tokens of the evaluation sequences are predicted, "sequence position"."""
    n = sequences.shape[1]
    found = np.zeros(sequences.shape, dtype=np.bool_)
    chosen, rows = task.chosen_rows(n, [prefix_length] * len(sequences), evaluation_key(sequences))
    found[chosen.numpy(), rows.numpy() + task.offset] = True
    return found


def references_of(run: Run, task: Task, sequences: NDArray[np.int64]) -> dict[str, float]:
    """What counting reaches on a task's targets, by name, nats per token.

    Args:
        run: whose training tokens are counted.
        task: as evaluated.
        sequences: "sequence position".
    """
    tokens, n = run.tokens(), sequences.shape[1]
    if task.reference == "bigram":
        positions = task.target_positions(n, run.prefix_length)
        targets = slice(positions.start, positions.stop)
        return ngram_cross_entropy(tokens.train, sequences, targets=targets, vocab_size=tokens.vocab_size)
    hidden = _targets(task, sequences, run.prefix_length)
    return neighbour_cross_entropy(tokens.train, sequences, hidden=hidden, vocab_size=tokens.vocab_size)


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
    task = run.config.arm(arm).task.in_evaluation()
    sequences = sequences_of(run).tokens
    facts = read_facts(run.directory.checkpoint(arm, seed, train.steps))
    if (document["arm"], document["seed"]) != (arm, seed):
        yield f"that of arm {document['arm']}, seed {document['seed']}"
    if document["weights_sha256"] != facts.weights_sha256:
        yield "that of other weights than its last checkpoint's"
    if document["evaluation_sha256"] != evaluation_hash(sequences, p):
        yield "that of other sequences than this run's"
    if document.get("task", "suffix") != task.evaluated_as:  # without one it is older than the others
        yield f"that of task {document['task']} instead of {task.evaluated_as}"
    if (document["step"], document["prefix_length"]) != (train.steps, p):
        yield f"step {document['step']} and prefix length {document['prefix_length']} instead of {train.steps} and {p}"
    if not isinstance(document["loss_tokens"], int):
        yield f"loss_tokens {document['loss_tokens']!r}"
    positions = task.target_positions(n, p)
    counts = _targets(task, sequences, p).sum(axis=0)[positions.start : positions.stop]
    for kind, loss in (("trained", "loss"), ("uniform_attention", "uniform_attention_loss")):
        by_sequence, by_position = (np.asarray(document[kind][key], float) for key in ("by_sequence", "by_position"))
        if by_sequence.shape != (len(sequences),) or by_position.shape != counts.shape:
            yield f"{kind} losses of shape {by_sequence.shape} by sequence and {by_position.shape} by position"
            continue
        means = [by_sequence.mean(), (by_position * counts)[counts > 0].sum() / counts.sum()]
        if (
            not np.allclose(means, document[loss], rtol=_ROUNDING, atol=0)
            or np.isfinite(by_position[counts == 0]).any()
        ):
            yield f"{kind} losses whose mean is not {document[loss]}"
