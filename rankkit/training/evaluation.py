"""What a model loses on held-out text, per sequence and per position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from numpy.typing import NDArray

from rankkit.models.transformer import Transformer
from rankkit.training.config import Objective
from rankkit.training.objective import target_rows, token_losses

__all__ = ["Evaluation", "evaluate"]

_TOKENS_AT_ONCE = 8192  # logits of 8192 tokens x 50,000 words in float32 are 1.6 GB, the most that this should take


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Suffix losses of one model on the evaluation sequences."""

    by_sequence: NDArray[np.float64]
    """"sequence": mean cross-entropy of its suffix tokens, nats per token."""
    by_position: NDArray[np.float64]
    """"target": mean over sequences of the cross-entropy at each suffix position p .. n - 1, nats."""

    @property
    def loss(self) -> float:
        """Mean over all suffix tokens, nats per token."""
        return float(self.by_sequence.mean())


@torch.no_grad()
def evaluate(model: Transformer, tokens: NDArray[np.int64], prefix_length: int) -> Evaluation:
    """Suffix loss with one prefix length for all sequences, whatever the model was trained on.

    Args:
        model: its training mode is restored afterwards.
        tokens: "sequence position".
        prefix_length: p; targets are tokens p .. n - 1 (p = 0: 1 .. n - 1).

    Returns:
        Losses in float64, computed in the model's precision.
    """
    was_training = model.training
    model.eval()
    losses = []
    per_batch = max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    for start in range(0, len(tokens), per_batch):
        batch = torch.tensor(tokens[start : start + per_batch]).to(model.device)
        lengths = [prefix_length] * len(batch)
        rows = target_rows(Objective.SUFFIX, model.config.mask, batch, lengths)
        found = token_losses(model, batch, lengths, rows)
        losses.append(rearrange(found.double().cpu(), "(sequence target) -> sequence target", sequence=len(batch)))
    model.train(was_training)
    table = torch.cat(losses).numpy()
    return Evaluation(
        by_sequence=reduce(table, "sequence target -> sequence", "mean"),
        by_position=reduce(table, "sequence target -> target", "mean"),
    )
