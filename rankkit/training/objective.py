"""Objectives: what is to be predicted, from what, and what one row's prediction costs.

Adding an objective is one class here, its name in `Objective`, its entry in `TASKS`, and its tests: the loop, the
evaluation, the chains of the certificate and the tables ask the class and never the name.

0-based: under a next-token objective row t predicts token t + 1; under the masked one row t predicts token t.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from rankkit.data.stream import raw_draws
from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models.transformer import Transformer

if TYPE_CHECKING:
    from rankkit.training.config import TrainConfig

__all__ = [
    "TASKS",
    "Examples",
    "MaskedTokens",
    "NextTokens",
    "Objective",
    "TargetRows",
    "Task",
    "evaluation_key",
    "token_losses",
]


class Objective(StrEnum):
    """Which tokens are predicted in the loss."""

    SUFFIX = "suffix"
    """Tokens after the prefix, p .. n - 1, in every arm: the comparison that differs in the mask alone."""
    FULL = "full"
    """All tokens but the first: how GPTs are trained in practice."""
    MASKED = "masked"
    """Tokens that were replaced in the input, anywhere: how BERT is trained."""


class TargetRows:
    """The rows of a batch that enter the loss, as index pairs (sequence, row), and the ids they should predict.

    Args:
        sequences: "target", int64, ascending.
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

    def to(self, device: torch.device) -> TargetRows:
        """The same on a device."""
        return TargetRows(self.sequences.to(device), self.rows.to(device), self.targets.to(device))


@dataclass(frozen=True, slots=True)
class Examples:
    """A batch as the model reads it, and what it should predict from that."""

    inputs: Tensor
    """"sequence position", int64."""
    rows: TargetRows
    """What is predicted where; the same number of targets in every sequence of one prefix length."""


class Task(ABC):
    """An objective with its numbers: what makes examples of the tokens of a batch."""

    evaluated_as: ClassVar[str]
    """What the held-out loss is called. Losses of equal names are means over the same targets; others cannot be
    subtracted from each other."""
    reference: ClassVar[Literal["bigram", "neighbours"]]
    """The model that counts, below which a model's loss must be before its ranks say anything."""
    chains: ClassVar[tuple[str, ...]] = ("tokens", "prefix_lengths", "target_rows")
    """What enters the loss and is hashed (`consumption`)."""
    needs_mask_id: ClassVar[bool] = False
    """Whether the vocabulary has an id beyond those of the tokens."""

    @abstractmethod
    def refusal(self, mask: MaskKind, n: int, prefix_length: int) -> str | None:
        """Why this mask makes the task trivial for a sequence of n tokens with this prefix; None where it does not."""

    @abstractmethod
    def target_positions(self, n: int, prefix_length: int) -> range:
        """Positions whose tokens may be predicted."""

    @abstractmethod
    def predicted(self, n: int, prefix_length: int) -> int:
        """How many tokens of a sequence are predicted."""

    @abstractmethod
    def chosen_rows(self, n: int, prefix_lengths: Sequence[int], key: str) -> tuple[Tensor, Tensor]:
        """Sequence and row of every prediction, "target" each, int64, the rows of a sequence ascending."""

    offset: ClassVar[int]
    """Row t predicts token t + offset."""

    def inputs(self, tokens: Tensor, rows: TargetRows, key: str) -> Tensor:
        """What the model reads, "sequence position": the tokens themselves, unless an objective says otherwise."""
        return tokens

    def in_evaluation(self) -> Task:
        """What a model that was trained on this task is evaluated on."""
        return self

    def examples(self, mask: MaskKind, tokens: Tensor, prefix_lengths: Sequence[int], key: str) -> Examples:
        """A batch's inputs and targets: a function of its tokens, prefix lengths and key alone.

        Args:
            mask: of the model, only to refuse a leak.
            tokens: "sequence position", int64.
            prefix_lengths: one per sequence.
            key: names the batch, for objectives that draw: "SEED STEP", or `evaluation_key`.

        Raises:
            ConfigurationError: nothing is left to predict, a row would see the token it predicts, or there is not one
                prefix length for each sequence.
        """
        n = tokens.shape[1]
        if len(prefix_lengths) != len(tokens):
            raise ConfigurationError(
                f"prefix_lengths must have one entry for each of {len(tokens)} sequences, got {len(prefix_lengths)}. "
                "Pass one each."
            )
        for prefix_length in sorted(set(prefix_lengths)):
            if not 0 <= prefix_length <= n or not self.target_positions(n, prefix_length):
                raise ConfigurationError(
                    f"prefix_length must be at least 0 and leave a suffix of {n} tokens to predict, got {prefix_length}. "
                    f"Choose one below {n}."
                )
            self.check(mask, n, prefix_length)
        sequences, rows = (index.to(tokens.device) for index in self.chosen_rows(n, prefix_lengths, key))
        chosen = TargetRows(sequences, rows, tokens[sequences, rows + self.offset])
        return Examples(self.inputs(tokens, chosen, key), chosen)

    def check(self, mask: MaskKind, n: int, prefix_length: int) -> None:
        """Refuse a mask that makes the task trivial.

        Raises:
            ConfigurationError: it does.
        """
        if reason := self.refusal(mask, n, prefix_length):
            raise ConfigurationError(reason)


@dataclass(frozen=True, slots=True)
class NextTokens(Task):
    """Row t predicts token t + 1, of the suffix or of the whole sequence."""

    objective: Objective
    """`SUFFIX` predicts tokens p .. n - 1 (p = 0: 1 .. n - 1), `FULL` tokens 1 .. n - 1."""
    evaluated_as: ClassVar[str] = "suffix"
    reference: ClassVar[Literal["bigram", "neighbours"]] = "bigram"
    offset: ClassVar[int] = 1

    def refusal(self, mask: MaskKind, n: int, prefix_length: int) -> str | None:
        """A row that predicts must not see the token after it."""
        seen = mask.foreseeing_rows(prefix_length, n)
        first = self.target_positions(n, prefix_length).start - 1
        if not seen or max(seen.start, first) >= min(seen.stop, n - 1):
            return None
        return (
            f"objective must not predict tokens that the mask shows, got objective {self.objective} with mask {mask} "
            f"and a prefix of {prefix_length}: rows see the token after them, and copying is no language model. "
            "Use objective masked or mask causal; objective suffix goes with mask prefix too."
        )

    def target_positions(self, n: int, prefix_length: int) -> range:
        """All but the first, or those of the suffix."""
        return range(1 if self.objective is Objective.FULL else max(prefix_length, 1), n)

    def predicted(self, n: int, prefix_length: int) -> int:
        """All of them."""
        return len(self.target_positions(n, prefix_length))

    def chosen_rows(self, n: int, prefix_lengths: Sequence[int], key: str) -> tuple[Tensor, Tensor]:
        """Every row before a target."""
        firsts = [self.target_positions(n, length).start - 1 for length in prefix_lengths]
        sequences = [torch.full((n - 1 - first,), sequence) for sequence, first in enumerate(firsts)]
        return torch.cat(sequences), torch.cat([torch.arange(first, n - 1) for first in firsts])

    def in_evaluation(self) -> Task:
        """The suffix: every next-token arm is compared on the same targets."""
        return NextTokens(Objective.SUFFIX)


@dataclass(frozen=True, slots=True)
class MaskedTokens(Task):
    """Row t predicts token t, of which the input shows another id: masked language modelling.

    Of a sequence of n tokens max(1, round(fraction n)) are chosen, all sets of them equally likely. In training 80% of the
    chosen read as the mask id, 10% as a random token and 10% as themselves; in evaluation all read as the mask id, so that
    no target can be seen. The prefix length decides nothing but the mask.

    Source: Devlin et al. (2019), BERT, section 3.1 and the authors' create_pretraining_data.py.
    """

    fraction: float
    """Of the tokens that are chosen."""
    mask_id: int
    """The id that stands for a hidden token; those below it are tokens."""
    hides_all: bool = False
    """Whether every chosen token reads as the mask id, as in evaluation."""
    evaluated_as: ClassVar[str] = "masked"
    reference: ClassVar[Literal["bigram", "neighbours"]] = "neighbours"
    chains: ClassVar[tuple[str, ...]] = (*Task.chains, "inputs")
    needs_mask_id: ClassVar[bool] = True
    offset: ClassVar[int] = 0

    def refusal(self, mask: MaskKind, n: int, prefix_length: int) -> str | None:
        """A mask cannot show what the input does not; what can be trivial is the fraction."""
        if self.predicted(n, prefix_length) < n:
            return None
        return f"masked_fraction must leave a token of {n} (sequence_length) to predict from, got {self.fraction}. Lower it."

    def target_positions(self, n: int, prefix_length: int) -> range:
        """All."""
        return range(n)

    def predicted(self, n: int, prefix_length: int) -> int:
        """The same number in every sequence."""
        return max(1, round(self.fraction * n))

    def chosen_rows(self, n: int, prefix_lengths: Sequence[int], key: str) -> tuple[Tensor, Tensor]:
        """Those with the smallest draws of each sequence."""
        count = self.predicted(n, 0)
        draws = rearrange(
            raw_draws(f"rankkit masked positions {key}", len(prefix_lengths) * n),
            "(sequence position) -> sequence position", position=n,
        )  # fmt: skip
        rows = np.sort(np.argsort(draws, axis=1, kind="stable")[:, :count], axis=1).astype(np.int64)
        sequences = torch.arange(len(rows)).repeat_interleave(count)
        return sequences, torch.from_numpy(rearrange(rows, "sequence target -> (sequence target)"))

    def inputs(self, tokens: Tensor, rows: TargetRows, key: str) -> Tensor:
        """The tokens with another id in the place of the chosen ones."""
        shown = torch.full_like(rows.targets, self.mask_id)
        if not self.hides_all:
            # Remainders of 64 random bits favour some values by less than 2^-40 for vocabularies below 2^24.
            fates, others = rearrange(
                raw_draws(f"rankkit masked inputs {key}", 2 * len(shown)), "(kind target) -> kind target", kind=2
            )
            tenth = torch.from_numpy((fates % np.uint64(10)).astype(np.int64)).to(tokens.device)
            random = torch.from_numpy((others % np.uint64(self.mask_id)).astype(np.int64)).to(tokens.device)
            shown = torch.where(tenth < 8, shown, torch.where(tenth == 8, random, rows.targets))
        replaced = tokens.clone()
        replaced[rows.sequences, rows.rows] = shown
        return replaced

    def in_evaluation(self) -> Task:
        """Nothing that is to be predicted is shown."""
        return MaskedTokens(self.fraction, self.mask_id, hides_all=True)


TASKS: Final[Mapping[Objective, Callable[[TrainConfig, int], Task]]] = MappingProxyType(
    {
        Objective.SUFFIX: lambda train, vocab_size: NextTokens(Objective.SUFFIX),
        Objective.FULL: lambda train, vocab_size: NextTokens(Objective.FULL),
        Objective.MASKED: lambda train, vocab_size: MaskedTokens(train.masked_fraction, mask_id=vocab_size - 1),
    }
)
"""The task of an objective, from the settings of an arm and the ids of its vocabulary."""


def evaluation_key(tokens: NDArray[np.int64]) -> str:
    """The key of held-out sequences "sequence position": their content, so that what is hidden of them never changes."""
    return f"evaluation {hashlib.sha256(np.ascontiguousarray(tokens, dtype='<i8').tobytes()).hexdigest()}"


def token_losses(model: Transformer, inputs: Tensor, prefix_lengths: Sequence[int], rows: TargetRows) -> Tensor:
    """Cross-entropy of every predicted token, "target", nats, float32.

    Only the rows that predict are projected to the vocabulary.
    """
    hidden = model(inputs, prefix_lengths)
    logits = model.logits(hidden[rows.sequences, rows.rows])
    return F.cross_entropy(logits.float(), rows.targets, reduction="none")
