"""What a model loses on held-out text, per sequence and per position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from numpy.typing import NDArray

from rankkit.models.transformer import Transformer
from rankkit.training.objective import Examples, NextTokens, Objective, Task, evaluation_key, token_losses

__all__ = ["Evaluation", "evaluate"]

_TOKENS_AT_ONCE = 8192  # logits of 8192 tokens x 50,000 words in float32 are 1.6 GB, the most that this should take


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Losses of one model on the evaluation sequences."""

    by_sequence: NDArray[np.float64]
    """"sequence": mean cross-entropy of its predicted tokens, nats per token; the same number of them in each."""
    by_position: NDArray[np.float64]
    """"target": mean over sequences of the cross-entropy at each position that may be predicted (of the suffix loss
    p .. n - 1), nats; nan where none of them predicts that position."""

    @property
    def loss(self) -> float:
        """Mean over all predicted tokens, nats per token."""
        return float(self.by_sequence.mean())


_SUFFIX = NextTokens(Objective.SUFFIX)


@torch.no_grad()
def evaluate(model: Transformer, tokens: NDArray[np.int64], prefix_length: int, task: Task = _SUFFIX) -> Evaluation:
    """Loss with one prefix length for all sequences, whatever the model was trained on.

    Args:
        model: its training mode is restored afterwards.
        tokens: "sequence position".
        prefix_length: p; targets of the suffix loss are tokens p .. n - 1 (p = 0: 1 .. n - 1).
        task: what the model was trained on, which decides what it is evaluated on: next-token objectives on the suffix,
            masked ones on tokens hidden by a pattern that is a function of `tokens` alone.

    Returns:
        Losses in float64, computed in the model's precision.
    """
    was_training = model.training
    model.eval()
    task = task.in_evaluation()
    lengths = [prefix_length] * len(tokens)
    whole = torch.tensor(tokens)
    examples = task.examples(model.config.mask, whole, lengths, evaluation_key(tokens))
    losses = []
    per_batch = max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    for start in range(0, len(tokens), per_batch):
        stop = min(start + per_batch, len(tokens))
        rows = examples.rows.of_sequences(start, stop).to(model.device)
        inputs = examples.inputs[start:stop].to(model.device)
        found = token_losses(model, inputs, lengths[start:stop], rows)
        losses.append(rearrange(found.double().cpu(), "(sequence target) -> sequence target", sequence=stop - start))
    model.train(was_training)
    table = torch.cat(losses).numpy()
    return Evaluation(
        by_sequence=reduce(table, "sequence target -> sequence", "mean"),
        by_position=_by_position(table, task, examples, prefix_length),
    )


def _by_position(table: NDArray[np.float64], task: Task, examples: Examples, prefix_length: int) -> NDArray[np.float64]:
    """Means of "sequence target" over the targets at each position; nan where there is none."""
    n = examples.inputs.shape[1]
    places = (examples.rows.rows + task.offset).numpy()
    total, count = np.zeros(n), np.bincount(places, minlength=n)
    np.add.at(total, places, rearrange(table, "sequence target -> (sequence target)"))
    positions = task.target_positions(n, prefix_length)
    chosen = slice(positions.start, positions.stop)
    means = np.full(len(positions), np.nan)
    np.divide(total[chosen], count[chosen], out=means, where=count[chosen] > 0)
    return means
