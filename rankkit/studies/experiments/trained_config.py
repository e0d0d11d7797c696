"""The declaration of an experiment on trained arms: what is trained, what is claimed of it, and who says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rankkit.axes import REGIONS
from rankkit.errors import ConfigurationError
from rankkit.spectra import MEASURES
from rankkit.studies.functional import CUTS, Cut

__all__ = ["BaseConfig", "ClaimConfig", "CorrelationConfig", "RunsConfig", "TrainedConfig", "scaled"]

SECTIONS: Final = ("model", "train", "data")

_FACTOR: Final = re.compile(r"([x/])([0-9]+(?:\.[0-9]+)?)")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConfig:
    """What all runs of an experiment begin from."""

    preset: str = "tiny"
    """Name of a preset: the one line to change for another size."""
    synthetic_documents: int = 0
    """Train on so many documents of the seeded grammar; 0 takes the text that `data` names."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Over the preset's model: values, or factors such as "x2" and "/2" of what stands there."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """The same of its training."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The same of its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsConfig:
    """One run: arms that differ in what they declare alone, under some seeds."""

    name: str = ""
    """What claims call it."""
    arms: tuple[str, ...] = ("gpt", "unilm")
    """Names from `training.ARMS`."""
    seeds: tuple[int, ...] = ()
    """None named: those of the experiment."""
    init_from: str = ""
    """RUN/ARM of this experiment or of one that it reuses: every arm begins, seed by seed, with that arm's last weights."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Over the experiment's base."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """The same."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimConfig:
    """An inequality, and of which numbers it is claimed."""

    claim: str = ""
    """Such as `pair/unilm < pair/gpt`; see `contrasts`."""
    of: str = "loss"
    """`loss` (of the evaluation, nats per token), `extra_loss` (functional rank: what cutting every head's matrix costs), or
    a measure from `rankkit.spectra.MEASURES`, averaged over heads, sequences and the layers trained in all its arms."""
    region: str = "full"
    """Of a measure: which part of the matrices."""
    kept: float = 0.125
    """Of `extra_loss`: singular triplets kept, as a share of the sequence length."""
    cut: Cut = "remasked"
    """Of `extra_loss`: `remasked` or `plain`."""
    effect: float | None = None
    """The smallest difference worth finding, in the quantity's units: plan and verdict say how many seeds it takes."""

    def __post_init__(self) -> None:
        if self.of not in ("loss", "extra_loss", *MEASURES):
            raise ConfigurationError(
                f"of must be loss, extra_loss or a measure ({', '.join(MEASURES)}), got {self.of!r}. Choose one of them."
            )
        for name, value, known in (("region", self.region, REGIONS), ("cut", self.cut, CUTS)):
            if value not in known:
                raise ConfigurationError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}. Choose one of them."
                )
        if not 0 < self.kept <= 1:
            raise ConfigurationError(
                f"kept must be above 0 and at most 1, got {self.kept}. Name a share of the length."
            )
        if self.effect is not None and not self.effect > 0:
            raise ConfigurationError(f"effect must be above 0, got {self.effect}. Name a size, or leave it out.")

    @property
    def is_rank(self) -> bool:
        """Whether its seeds must resolve a tenth of the measure."""
        return self.of != "loss"

    @property
    def words(self) -> str:
        """The quantity, for a table."""
        if self.of == "loss":
            return "loss"
        if self.of == "extra_loss":
            return f"extra loss, {self.kept:g} n triplets, {self.cut}"
        return f"{self.of.replace('_', ' ')}, {self.region.replace('_', ' ')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelationConfig:
    """A claim that a rank measure and the loss go together."""

    measure: str = "effective_rank"
    """From `rankkit.spectra.MEASURES`."""
    region: str = "full"
    """Which part of the matrices."""
    cells: tuple[str, ...] = ()
    """RUN/ARM, the arms that are looked at."""
    over: Literal["steps", "arms", "seeds"] = "steps"
    """`steps`: over the checkpoints of each arm and seed but the first; `arms`: over the arms, seeds averaged; `seeds`: over
    the seeds, arms averaged. The last two at the last checkpoint."""
    controls: tuple[str, ...] = ("logit_std", "attention_entropy")
    """Measures that are held still."""
    method: Literal["pearson", "spearman"] = "pearson"
    """Of values, or of their ranks."""
    claim: Literal["negative", "positive"] = "negative"
    """Which sign is claimed."""

    def __post_init__(self) -> None:
        _check_among("measure", [self.measure], MEASURES)
        _check_among("controls", self.controls, MEASURES)
        _check_among("region", [self.region], REGIONS)
        for name, value, known in (
            ("over", self.over, ("steps", "arms", "seeds")),
            ("method", self.method, ("pearson", "spearman")),
            ("claim", self.claim, ("negative", "positive")),
        ):
            _check_among(name, [value], known)
        if not self.cells:
            raise ConfigurationError("cells must name the arms that are looked at, got none. Write 'pair/gpt'.")

    @property
    def words(self) -> str:
        """What is correlated, for a table."""
        held = f" given {', '.join(self.controls).replace('_', ' ')}" if self.controls else ""
        return f"{self.method} of {self.measure.replace('_', ' ')} ({self.region.replace('_', ' ')}) and loss{held}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedConfig:
    """The declaration of an experiment on trained arms."""

    question: str = ""
    """What is asked."""
    expectation: str = ""
    """What is expected, in words; `claims` and `correlations` say it so that it can be held against numbers."""
    source: str = ""
    """Who says so."""
    cost: float = 0.0
    """CPU minutes expected for what is not there yet, everything included."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of every run that names none."""
    samples: int = 32
    """Held-out sequences on which attention is measured."""
    reuses: tuple[str, ...] = ()
    """Experiments beside this file whose runs are named here too; what they have trained is not trained again."""
    base: BaseConfig = field(default_factory=BaseConfig)
    """What its own runs begin from."""
    runs: tuple[RunsConfig, ...] = ()
    """What is trained."""
    claims: tuple[ClaimConfig, ...] = ()
    """What is claimed of numbers."""
    correlations: tuple[CorrelationConfig, ...] = ()
    """What is claimed to go together."""

    def __post_init__(self) -> None:
        for name in ("question", "expectation", "source"):
            if not getattr(self, name):
                raise ConfigurationError(
                    f"{name} must be declared before anything is trained, got none. Write it down."
                )
        if not self.cost > 0:
            raise ConfigurationError(f"cost must be CPU minutes above 0, got {self.cost}. See --plan.")
        if self.samples < 1:
            raise ConfigurationError(f"samples must be at least 1, got {self.samples}. Ask for one sequence or more.")
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
            raise ConfigurationError(
                f"runs must each have a name of their own, of letters, digits, - and _, got {names}. Rename them."
            )
        if not (self.claims or self.correlations):
            raise ConfigurationError("claims must hold at least one claim, got none. Say what is expected.")


def scaled(table: Mapping[str, Mapping[str, Any]], layer: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings over others, with factors resolved.

    Args:
        table: by section and key, what stands there.
        layer: the same, partial, to be put over it: values, or texts "x2" and "/2" where a number stands.

    Raises:
        ConfigurationError: a factor that leaves no whole number where one must be.
    """
    found = {section: dict(values) for section, values in table.items()}
    for section, values in layer.items():
        for key, value in values.items():
            found[section][key] = _scaled(f"{section}.{key}", found[section].get(key), value)
    return found


def _scaled(name: str, present: Any, value: Any) -> Any:
    factor = _FACTOR.fullmatch(value) if isinstance(value, str) else None
    if factor is None or isinstance(present, bool) or not isinstance(present, int | float):
        return value
    number = float(factor[2])
    result = present * number if factor[1] == "x" else present / number
    if isinstance(present, int):
        if result != round(result):
            raise ConfigurationError(f"{name} must stay a whole number, got {present} {value}. Choose another factor.")
        return round(result)
    return result


def _check_among(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    allowed = list(known)
    wrong = [entry for entry in given if entry not in allowed]
    if wrong:
        raise ConfigurationError(f"{name} must be among {', '.join(allowed)}, got {wrong[0]!r}. Choose from them.")
