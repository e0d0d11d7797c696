"""One arm under one seed, from its first step to its last."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rankkit.data.evaluation import evaluation_sequences
from rankkit.data.stream import BatchStream
from rankkit.data.tokens import TokenFiles
from rankkit.errors import ConfigurationError, NonFiniteLossError
from rankkit.models.transformer import Transformer, uniform_attention
from rankkit.training.config import ArmConfig, TrainConfig
from rankkit.training.consumption import Consumption, evaluation_hash
from rankkit.training.evaluation import Evaluation, evaluate
from rankkit.training.objective import Examples, token_losses

__all__ = ["StepRecord", "Trainer", "learning_rate"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimizer step did."""

    step: int
    """Steps finished, this one included."""
    loss: float
    """Mean cross-entropy of the predicted tokens before the step, nats per token."""
    gradient_norm: float
    """Norm of the whole gradient before clipping."""
    learning_rate: float
    """Of this step."""
    tokens: int
    """Tokens read so far."""
    loss_tokens: int
    """Tokens predicted so far."""
    chains: dict[str, str]
    """What has been consumed, hashed (`consumption`)."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warmup to the peak, then a cosine to its final fraction, for the step counted from 0."""
    warmup = max(1, round(config.warmup_fraction * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    final = config.final_learning_rate_fraction
    return config.learning_rate * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, fused, that decays matrices and leaves the gains of norms alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    gains = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


class Trainer:
    """A model, its optimizer and its place in the stream.

    Args:
        config: the arm.
        seed: of initial weights and batches.
        tokens: prepared text.
        device: where to train.
        first_batch: of the stream; more than 0 where the weights have read the batches before it.

    Raises:
        ConfigurationError: the text has ids beyond the model's vocabulary, or the id of a hidden token is one of them.
    """

    def __init__(
        self, config: ArmConfig, *, seed: int, tokens: TokenFiles, device: torch.device, first_batch: int = 0
    ) -> None:
        needed = tokens.vocab_size + config.task.needs_mask_id
        if needed > config.model.vocab_size:
            whose = (
                "that of the tokens and the id of a hidden one" if config.task.needs_mask_id else "that of the tokens"
            )
            raise ConfigurationError(
                f"vocab_size must be at least {needed} ({whose}), got {config.model.vocab_size}. "
                "Take it from the tokenizer of the run."
            )
        self.config, self.seed, self.device, self.first_batch = config, seed, device, first_batch
        self.step = 0
        self.loss_tokens = 0
        self.consumption = Consumption.of(config.task)
        self.model = Transformer(config.model, seed=seed).to(device)
        self.optimizer = _optimizer(self.model, config.train)
        self.stream = self.stream_of(config, seed=seed, tokens=tokens)
        n = config.model.sequence_length
        self.evaluation_tokens = evaluation_sequences(
            tokens, count=config.train.evaluation_sequences, sequence_length=n
        ).tokens
        self.evaluation_sha256 = evaluation_hash(self.evaluation_tokens, self.prefix_length)
        if config.train.compile:
            for block in self.model.blocks:
                block.compile()

    @staticmethod
    def stream_of(config: ArmConfig, *, seed: int, tokens: TokenFiles) -> BatchStream:
        """The batches that an arm with this configuration and seed reads; the same for arms that share them."""
        n = config.model.sequence_length
        return BatchStream(
            tokens.train,
            seed=seed,
            batch_size=config.train.batch_size,
            sequence_length=n,
            prefix_lengths=config.train.prefix_lengths(n),
        )

    @staticmethod
    def examples_of(
        config: ArmConfig, seed: int, number: int, tokens: torch.Tensor, prefix_lengths: Sequence[int]
    ) -> Examples:
        """What an arm makes of a batch of its stream, which is a function of seed and number."""
        return config.task.examples(config.model.mask, tokens, prefix_lengths, f"{seed} {number}")

    def train_step(self) -> StepRecord:
        """One optimizer step on the next batch of the stream.

        Raises:
            NonFiniteLossError: the loss or the gradient is not a finite number; the trainer is then as before the step.
        """
        train = self.config.train
        rate = learning_rate(train, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        consumed = dict(self.consumption.chains)
        loss, count = self._accumulate_gradients()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), train.gradient_clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            self.consumption.chains = consumed
            raise NonFiniteLossError(
                f"loss and gradient must stay finite, got loss {loss} and gradient norm {norm} at step {self.step + 1}. "
                f"Step {self.step} was saved; lower train.learning_rate or raise train.warmup_fraction in a new run."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss_tokens += count
        tokens = self.step * train.batch_size * self.config.model.sequence_length
        return StepRecord(self.step, loss, norm, rate, tokens, self.loss_tokens, dict(self.consumption.chains))

    def _accumulate_gradients(self) -> tuple[float, int]:
        """Forward and backward over the batch in micro-batches; mean loss over all predicted tokens and their number."""
        number = self.first_batch + self.step
        batch = self.stream.batch(number)
        tokens = torch.from_numpy(batch.tokens).to(self.device)
        lengths = batch.prefix_lengths
        examples = self.examples_of(self.config, self.seed, number, tokens, lengths)
        self.consumption.add(tokens, lengths, examples)
        inputs, rows = examples.inputs, examples.rows
        count = len(rows.targets)
        size = self.config.train.micro_batch_size or len(tokens)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(tokens), size):
            stop = start + size
            with self._autocast():
                losses = token_losses(
                    self.model, inputs[start:stop], lengths[start:stop], rows.of_sequences(start, stop)
                )
            (losses.sum() / count).backward()
            total += losses.detach().double().sum()
        return float(total / count), count

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.train.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    @property
    def precision(self) -> torch.dtype:
        """Dtype of the forward pass."""
        return torch.bfloat16 if self.config.train.precision == "bfloat16" else torch.float32

    @property
    def prefix_length(self) -> int:
        """The one prefix length of every evaluation."""
        return self.config.train.evaluation_prefix_length(self.config.model.sequence_length)

    def evaluate(self) -> Evaluation:
        """Loss on the held-out sequences.

        Raises:
            NonFiniteLossError: it is not a finite number.
        """
        with self._autocast():
            return self._finite(evaluate(self.model, self.evaluation_tokens, self.prefix_length, self.config.task))

    def evaluate_without_attention(self) -> Evaluation:
        """The same with every head attending to all it sees alike: what attention's choices buy is the difference."""
        with self._autocast(), uniform_attention(self.model):
            return self._finite(evaluate(self.model, self.evaluation_tokens, self.prefix_length, self.config.task))

    def _finite(self, found: Evaluation) -> Evaluation:
        if not math.isfinite(found.loss):
            raise NonFiniteLossError(
                f"evaluation loss must stay finite, got {found.loss} at step {self.step}. "
                "Lower train.learning_rate or raise train.warmup_fraction; the checkpoints before it are kept."
            )
        return found
