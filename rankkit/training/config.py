"""Everything that decides a run: one frozen configuration per arm, arms as declared differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from rankkit.data.config import DataConfig
from rankkit.data.stream import PrefixLengths
from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models.config import ModelConfig
from rankkit.training.objective import TASKS, Objective, Task

__all__ = [
    "ARMS",
    "ArmConfig",
    "InitialWeights",
    "Objective",
    "RunConfig",
    "TrainConfig",
    "arm_config",
    "differing_fields",
]

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a model is trained and evaluated."""

    objective: Objective = Objective.SUFFIX
    """Which tokens are predicted."""
    masked_fraction: float = 0.15
    """Share of the tokens that objective `masked` hides and predicts; the others ignore it."""
    steps: int = 240
    """Optimizer steps."""
    batch_size: int = 16
    """Sequences per optimizer step."""
    micro_batch_size: int = 0
    """Sequences per forward pass, whose gradients are accumulated to a step; 0 takes the whole batch at once."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    final_learning_rate_fraction: float = 0.1
    """The cosine ends at this fraction of the peak."""
    warmup_fraction: float = 0.05
    """Fraction of the steps over which the learning rate rises linearly."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; gains of norms have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    gradient_clip: float = 1.0
    """Largest norm of the whole gradient."""
    precision: Precision = "float32"
    """Arithmetic of the forward pass; `bfloat16` is autocast and needs CUDA. Weights stay float32."""
    compile: bool = False
    """Whether torch.compile fuses the parts around attention."""
    prefix_fraction: float | None = None
    """One prefix length for all, as a fraction of the sequence; None draws one per sequence."""
    prefix_lowest: float = 0.25
    """Shortest drawn prefix, as a fraction of the sequence."""
    prefix_highest: float = 0.75
    """Longest drawn prefix, as a fraction of the sequence."""
    prefix_multiple: int = 8
    """Drawn prefix lengths are multiples of this: odd lengths are slower on the CPU."""
    evaluation_sequences: int = 128
    """Held-out sequences of every evaluation."""
    evaluation_interval: int = 40
    """Steps between evaluations."""
    checkpoint_interval: int = 60
    """Steps between checkpoints."""
    log_interval: int = 10
    """Steps between lines of the training log."""

    def __post_init__(self) -> None:
        if self.objective not in list(Objective):
            raise ConfigurationError(
                f"objective must be one of {', '.join(Objective)}, got {self.objective!r}. Choose one of them."
            )
        object.__setattr__(self, "objective", Objective(self.objective))  # a plain string names its objective
        if self.precision not in get_args(Precision):
            raise ConfigurationError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}. Choose one of them."
            )
        for name in ("steps", "batch_size", "prefix_multiple", "evaluation_sequences", "evaluation_interval",
                     "checkpoint_interval", "log_interval"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be at least 1, got {getattr(self, name)}. Choose a positive number."
                )
        for name in ("learning_rate", "gradient_clip"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ConfigurationError(
                    f"{name} must be positive, got {getattr(self, name)}. Choose a positive number."
                )
        for name in ("final_learning_rate_fraction", "warmup_fraction", "prefix_lowest", "prefix_highest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(
                    f"{name} must be between 0 and 1, got {getattr(self, name)}. Choose a fraction."
                )
        if not 0 < self.masked_fraction < 1:
            raise ConfigurationError(
                f"masked_fraction must be above 0 and below 1, got {self.masked_fraction}. Choose for example 0.15."
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}. AdamW divides by 1 - {name}."
                )
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigurationError(f"weight_decay must be at least 0, got {self.weight_decay}. Use 0 for none.")
        if self.micro_batch_size < 0 or (self.micro_batch_size and self.batch_size % self.micro_batch_size):
            raise ConfigurationError(
                f"micro_batch_size must divide batch_size ({self.batch_size}), got {self.micro_batch_size}. "
                "Choose a divisor, or 0 for the whole batch."
            )
        self._check_prefixes()

    def _check_prefixes(self) -> None:
        if self.prefix_fraction is not None and not 0 <= self.prefix_fraction < 1:
            raise ConfigurationError(
                f"prefix_fraction must be at least 0 and below 1, got {self.prefix_fraction}. "
                "A prefix of the whole sequence leaves no suffix to predict."
            )
        if self.prefix_lowest > self.prefix_highest:
            raise ConfigurationError(
                f"prefix_lowest must be at most prefix_highest ({self.prefix_highest}), got {self.prefix_lowest}. "
                "Exchange the two."
            )

    def prefix_lengths(self, sequence_length: int) -> PrefixLengths:
        """What the stream draws prefix lengths from."""
        if self.prefix_fraction is not None:
            return PrefixLengths(choices=(self.evaluation_prefix_length(sequence_length),))
        return PrefixLengths.between(
            sequence_length, lowest=self.prefix_lowest, highest=self.prefix_highest, multiple=self.prefix_multiple
        )

    def evaluation_prefix_length(self, sequence_length: int) -> int:
        """The one prefix length of evaluation and spectra: `prefix_fraction` of the sequence, or half of it."""
        fraction = 0.5 if self.prefix_fraction is None else self.prefix_fraction
        return round(fraction * sequence_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmConfig:
    """One arm: a model, how it is trained, and on what."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model, mask included."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training and evaluation, objective included."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text."""

    def __post_init__(self) -> None:
        n = self.model.sequence_length
        lengths = self.train.prefix_lengths(n).choices
        for length in {*lengths, self.train.evaluation_prefix_length(n)}:
            if length >= n:
                raise ConfigurationError(
                    f"prefix_length must leave a suffix of {n} tokens to predict, got {length}. Shorten the prefix."
                )
        for length in reversed(lengths):
            self.task.check(self.model.mask, n, length)

    @property
    def task(self) -> Task:
        """What is predicted from what."""
        return TASKS[self.train.objective](self.train, self.model.vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialWeights:
    """Trained weights with which every arm of a run begins, seed by seed, instead of drawn ones."""

    source: str
    """Where they were trained: RUN/ARM@STEP."""
    batches: int
    """Batches of each seed's stream that they have read: the run goes on behind them."""
    same_text: bool
    """Whether they were trained on this run's training tokens; otherwise its held-out text may have been among theirs."""
    sha256: tuple[str, ...]
    """Of each seed's file of weights, in the order of the seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A run: what all arms share, which arms, which seeds."""

    arms: tuple[str, ...] = ("gpt", "unilm")
    """Names from `ARMS`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initial weights and batches; one seed gives no verdict."""
    base: ArmConfig = field(default_factory=ArmConfig)
    """What the arms are made from by replacing their declared fields."""
    initial: InitialWeights | None = None
    """Weights to begin with; None draws them."""

    def __post_init__(self) -> None:
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise ConfigurationError(f"arms must be named once each, got {list(self.arms)}. Remove the repetition.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigurationError(
                f"seeds must be different numbers of at least 0, got {list(self.seeds)}. Name each seed once."
            )
        if self.initial is not None and len(self.initial.sha256) != len(self.seeds):
            raise ConfigurationError(
                f"initial.sha256 must have one entry for each of {len(self.seeds)} seeds, got {len(self.initial.sha256)}. "
                "Make the run again with --init-from."
            )
        for name in self.arms:
            arm_config(self.base, name)

    def arm(self, name: str) -> ArmConfig:
        """The configuration of one arm."""
        return arm_config(self.base, name)

    @property
    def needs_mask_id(self) -> bool:
        """Whether an arm predicts hidden tokens, so that all arms get a vocabulary with an id for them."""
        return any(self.arm(name).task.needs_mask_id for name in self.arms)

    @property
    def units(self) -> list[tuple[str, int]]:
        """Every (arm, seed), all arms of a seed together, so that pairs are complete early."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


ARMS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "gpt": {"mask": MaskKind.CAUSAL, "objective": Objective.SUFFIX},
        "unilm": {"mask": MaskKind.PREFIX, "objective": Objective.SUFFIX},
        "gpt-full": {"mask": MaskKind.CAUSAL, "objective": Objective.FULL},
        "bert": {"mask": MaskKind.BIDIRECTIONAL, "objective": Objective.MASKED},
        "mixed-heads": {"mask": MaskKind.MIXED_HEADS, "objective": Objective.MASKED},
        "mixed-layers": {"mask": MaskKind.MIXED_LAYERS, "objective": Objective.MASKED},
    }
)
"""An arm is what it declares; everything else comes from the base. Adding an arm is a line here."""


def arm_config(base: ArmConfig, name: str) -> ArmConfig:
    """The base with one arm's declared fields replaced.

    Raises:
        ConfigurationError: an unknown arm, or fields that contradict each other.
    """
    if name not in ARMS:
        raise ConfigurationError(f"arm must be one of {', '.join(ARMS)}, got {name!r}. Choose one of them.")
    declared = ARMS[name]
    return replace(
        base,
        model=replace(base.model, mask=declared["mask"]),
        train=replace(base.train, objective=declared["objective"]),
    )


def differing_fields(one: ArmConfig, other: ArmConfig) -> dict[str, tuple[Any, Any]]:
    """Fields in which two arms' configurations differ, by name, with both values.

    For two arms of one run these are exactly the declared ones; the certificate checks that.
    """
    found = {}
    for section in fields(ArmConfig):
        first, second = getattr(one, section.name), getattr(other, section.name)
        for item in fields(first):
            values = getattr(first, item.name), getattr(second, item.name)
            if values[0] != values[1]:
                found[item.name] = values
    return found
