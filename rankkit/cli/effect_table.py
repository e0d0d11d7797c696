"""Tables of means, effects and their intervals, with as many decimals as say something and fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from rankkit.cli.console import new_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["WIDTH", "Line", "fitted_table"]

WIDTH: Final = 120
"""Letters: what the tables take."""

Line: TypeAlias = tuple[str, Callable[[int], list[str]], bool]
"""A label, the cells beside it for a number of decimals, and whether it is a mean over the lines above."""


def fitted_table(title: str, headings: Sequence[str], lines: Sequence[Line], decimals: int) -> Table:
    """A table that is no wider than `WIDTH`, if fewer decimals can make it so.

    Args:
        title: above it.
        headings: of all columns.
        lines: from the top.
        decimals: to begin with.
    """
    while True:
        cells = [[label, *shown(decimals)] for label, shown, _ in lines]
        if decimals == 0 or _width([headings, *cells]) <= WIDTH:
            break
        decimals -= 1
    table = new_table(title, headings)
    means = [is_mean for _, _, is_mean in lines]
    for line, here, after in zip(cells, means, [*means[1:], False], strict=True):
        table.add_row(*line, end_section=not here and after)
    return table


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Letters that a table of `new_table` takes: its cells, three between two columns, one at each side."""
    return sum(max(map(len, column)) for column in zip(*rows, strict=True)) + 3 * len(rows[0]) - 1
