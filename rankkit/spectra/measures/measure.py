"""What a measure is: a name, a definition, a function, and how far its value can be off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

__all__ = ["Measure", "Needs", "Structure"]

Needs: TypeAlias = Literal["singular_values", "attention", "logits", "operator"]
Structure: TypeAlias = Literal["attention", "rows_sum_to_one", "non_negative", "square", "triangular"]
Threshold: TypeAlias = Callable[[int | Tensor, int | Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure: its name in files and tables, what it means, what it is computed from, and how far it can be off."""

    name: str
    """Name in HDF5 files, options and tables."""
    long_name: str
    """Name in words."""
    definition: str
    """Definition in one line."""
    needs: Needs
    """What it is computed from."""
    compute: Callable[..., Tensor]
    """"..." from what it needs, all positional:

    `singular_values`: (singular_values, rows, columns, floor), floor "..." or left out where the values are exact;
    `attention`: (attention, allowed); `logits`: (logits, allowed); `operator`: (operator,).
    """
    error: Callable[..., Tensor]
    """How far it can be off, "...", at least 0, nan where no bound is known; all positional:

    `singular_values`: (singular_values, rows, columns, floor, delta), if no value moved by more than delta "...";
    the others: what they need and then eta "...", if no entry of the matrix moved by more than eta times itself.
    """
    requires: frozenset[Structure] = frozenset()
    """Structure of the operator without which it is switched off: see `Operator.structure`."""
    source: str = ""
    """Where it comes from; empty for a plain definition."""
    units: str = "1"
    """Units; nats and decimal orders are dimensionless."""
    relative_threshold: Threshold | None = None
    """From (rows, columns), the smallest sigma / sigma_1 it must tell from noise; None where the tail hardly counts.

    A method whose arithmetic floor lies above it does not resolve what the measure needs.
    """
