"""Where a measurement takes its attention matrices from: a run's models, factors kept in a file, arrays made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from rankkit.operators import Operator
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.plan import Plan

__all__ = ["Place", "Receiver", "Source", "SourceFacts"]

Receiver: TypeAlias = Callable[[int, Sequence[Operator], Tensor | None], None]
"""Takes a layer's number, its matrices "sequence head" under their own masks, in parts of neighbouring heads that share one,
and its output "sequence query d_model"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What a file says of where its numbers come from."""

    configuration: str
    """Resolved configuration, as text."""
    certificate: str
    """Proof that the arms match, as text; empty where nothing was proven."""
    precision: torch.dtype
    """In which the model applied its attention; decides the model's noise floor."""
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    """Of the file, beside those of this machine."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which checkpoint, by label and by position."""

    arm: str
    seed: int
    step: int
    seed_index: int
    step_index: int


class Source(Protocol):
    """Gives attention matrices, one layer and a few sequences at a time."""

    @property
    def facts(self) -> SourceFacts:
        """What the file says of it.

        Raises:
            RankkitError: it must not be measured, for its arms do not match.
        """
        ...

    def plan(self, config: MeasureConfig) -> Plan:
        """What a measurement would do.

        Raises:
            RankkitError: it has not what the configuration asks for.
        """
        ...

    def visit(self, plan: Plan, place: Place, rows: slice, receive: Receiver, *, outputs: bool) -> None:
        """Hand over the planned layers and heads of one checkpoint on some of the planned sequences, layers ascending.

        Args:
            plan: made by `plan`.
            place: which checkpoint.
            rows: which of the planned sequences, by position.
            receive: called once for every layer.
            outputs: whether layers' outputs are wanted too.

        Raises:
            RankkitError: a checkpoint or array cannot be read.
        """
        ...
