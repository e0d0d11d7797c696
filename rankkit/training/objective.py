"""Which rows are trained on, and their loss.

0-based: row t predicts token t + 1. `suffix` predicts tokens p .. n - 1 from rows p - 1 .. n - 2 (p = 0: from
rows 0 .. n - 2), in every arm; `full` predicts tokens 1 .. n - 1. A row that sees the token it predicts is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models.transformer import Transformer
from rankkit.training.config import Objective

__all__ = ["TargetRows", "target_rows", "token_losses"]


class TargetRows:
    """The rows of a batch that enter the loss, as index pairs (sequence, row), and the ids they should predict.

    Args:
        sequences: "target", int64.
        rows: "target", int64.
        targets: "target", int64.
    """

    __slots__ = ("rows", "sequences", "targets")

    def __init__(self, sequences: Tensor, rows: Tensor, targets: Tensor) -> None:
        self.sequences, self.rows, self.targets = sequences, rows, targets

    def of_sequences(self, start: int, stop: int) -> TargetRows:
        """Those of sequences start .. stop - 1, which count from 0 there."""
        chosen = (self.sequences >= start) & (self.sequences < stop)
        return TargetRows(self.sequences[chosen] - start, self.rows[chosen], self.targets[chosen])


def target_rows(objective: Objective, mask: MaskKind, tokens: Tensor, prefix_lengths: Sequence[int]) -> TargetRows:
    """Rows that predict and tokens that they predict.

    Args:
        objective: which tokens are predicted.
        mask: of the model, only to refuse a leak.
        tokens: "sequence position", int64.
        prefix_lengths: one per sequence.

    Raises:
        ConfigurationError: nothing is left to predict, a row would see the token it predicts, or there is not one prefix
            length for each sequence.
    """
    n = tokens.shape[1]
    if len(prefix_lengths) != len(tokens):
        raise ConfigurationError(
            f"prefix_lengths must have one entry for each of {len(tokens)} sequences, got {len(prefix_lengths)}. "
            "Pass one each."
        )
    sequences, rows = [], []
    for sequence, prefix_length in enumerate(prefix_lengths):
        first = 0 if objective is Objective.FULL else max(prefix_length - 1, 0)
        if first >= n - 1 or not 0 <= prefix_length <= n:
            raise ConfigurationError(
                f"prefix_length must be at least 0 and leave a suffix of {n} tokens to predict, got {prefix_length}. "
                f"Choose one below {n}."
            )
        foreseeing = mask.at(prefix_length).foreseeing_rows(n)
        if foreseeing.stop > first:
            raise ConfigurationError(
                f"objective must not predict tokens that the mask shows, got objective {objective} with mask {mask} "
                f"and a prefix of {prefix_length}. Use objective suffix, or mask causal."
            )
        rows.append(torch.arange(first, n - 1))
        sequences.append(torch.full((n - 1 - first,), sequence))
    sequence_index = torch.cat(sequences).to(tokens.device)
    row_index = torch.cat(rows).to(tokens.device)
    return TargetRows(sequence_index, row_index, tokens[sequence_index, row_index + 1])


def token_losses(model: Transformer, tokens: Tensor, prefix_lengths: Sequence[int], rows: TargetRows) -> Tensor:
    """Cross-entropy of every predicted token, "target", nats, float32.

    Only the rows that predict are projected to the vocabulary.
    """
    hidden = model(tokens, prefix_lengths)
    logits = model.logits(hidden[rows.sequences, rows.rows])
    return F.cross_entropy(logits.float(), rows.targets, reduction="none")
