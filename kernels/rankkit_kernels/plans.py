"""Plans: calls that share out the query rows of an attention matrix, each a rectangle of rows and columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["FusedCall", "Group", "Plan", "Visibility", "check_plan"]

Visibility = Literal["all", "past", "future", "band"]
"""What a row sees of its columns: all, those at or before its own position, those at or after it, those near it."""


@dataclass(frozen=True, slots=True)
class FusedCall:
    """Rows of an attention matrix together with the columns that they see.

    Positions are absolute, so `past` means column <= row whatever the rectangle.
    """

    rows: tuple[int, int]
    """First query row, and one past the last."""
    columns: tuple[int, int]
    """First key column, and one past the last."""
    sees: Visibility
    """`past` needs rows that end where the columns end, `future` rows that start where they start, `band` rows within
    the columns."""
    behind: int = 0
    """How many columns before its own position a row of a `band` sees."""
    ahead: int = 0
    """How many after it."""

    def __post_init__(self) -> None:
        if not (0 <= self.rows[0] < self.rows[1] and 0 <= self.columns[0] < self.columns[1]):
            raise ValueError(
                f"rows and columns must be non-empty ranges, got {self.rows} and {self.columns}. Drop empty calls."
            )
        if self.sees == "past" and not (self.rows[1] == self.columns[1] and self.rows[0] >= self.columns[0]):
            raise ValueError(
                f"rows of a `past` call must end with its columns and start no earlier, got {self.rows} and "
                f"{self.columns}. Split the call."
            )
        if self.sees == "future" and not (self.rows[0] == self.columns[0] and self.rows[1] <= self.columns[1]):
            raise ValueError(
                f"rows of a `future` call must start with its columns and end no later, got {self.rows} and "
                f"{self.columns}. Split the call."
            )
        inside = self.columns[0] <= self.rows[0] and self.rows[1] <= self.columns[1]
        if self.sees == "band" and not (inside and self.behind >= 0 and self.ahead >= 0):
            raise ValueError(
                f"rows of a `band` call must lie within its columns and see 0 or more on each side, got {self.rows}, "
                f"{self.columns}, behind {self.behind} and ahead {self.ahead}. Split the call."
            )
        if self.sees != "band" and (self.behind or self.ahead):
            raise ValueError(
                f"behind and ahead must be 0 but for a `band`, got {self.behind} and {self.ahead} for "
                f"{self.sees!r}. Leave them out."
            )

    def blocks(self, size: int) -> Iterator[FusedCall]:
        """The call in blocks of `size` rows, each over the columns that its rows see."""
        for start in range(*self.rows, size):
            stop = min(start + size, self.rows[1])
            first, last = self.columns
            if self.sees == "band":
                first, last = max(first, start - self.behind), min(last, stop + self.ahead)
            elif self.sees == "future":
                first = start
            elif self.sees == "past":
                last = stop
            yield FusedCall((start, stop), (first, last), self.sees, self.behind, self.ahead)


Plan: TypeAlias = Sequence[FusedCall]
"""Calls whose rows are 0..n in order, without gap or overlap."""


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive sequences of a batch, or heads of a layer, that share a plan."""

    size: int
    """How many sequences or heads."""
    plan: tuple[FusedCall, ...] = ()
    """Their plan; its rows must be 0..n in order, without gap or overlap."""
    heads: tuple[Group, ...] = ()
    """Of sequences: runs of heads, each with a plan of its own, in the place of `plan`."""

    def __post_init__(self) -> None:
        if bool(self.plan) == bool(self.heads):
            raise ValueError(
                f"a group must have either a plan or runs of heads, got {self.plan} and {self.heads}. Leave one out."
            )


def check_plan(plan: Plan, rows: int, columns: int) -> None:
    """Refuse a plan that does not share out so many rows within so many columns.

    Raises:
        ValueError: rows are missing, double or out of order, or columns too many.
    """
    position = 0
    for call in plan:
        if call.rows[0] != position or call.columns[1] > columns:
            raise ValueError(
                f"plan must share out rows 0..{rows} in order within {columns} columns, got {list(plan)}. "
                "Make the plan for this sequence length."
            )
        position = call.rows[1]
    if position != rows:
        raise ValueError(
            f"plan must share out rows 0..{rows}, got {list(plan)}. Make the plan for this sequence length."
        )
