"""Tables of means, effects and their intervals, with as many decimals as say something and fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from rankkit.cli.console import new_table
from rankkit.statistics import Interval

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["UNTRAINED", "WIDTH", "Line", "decimals_of", "fitted_table", "interval_text", "number_text"]

WIDTH: Final = 120
"""Letters: what the tables take."""

UNTRAINED: Final = (
    "* rows before p - 1 of the last layer enter the loss only where a shorter prefix was drawn, in the two arms "
    "unequally: this prefix block is left out of the mean. Whole matrices of that layer hold those rows too."
)
"""What the mark of a hardly trained layer means."""

Line: TypeAlias = tuple[str, Callable[[int], list[str]], bool]
"""A label, the cells beside it for a number of decimals, and whether it is a mean over the lines above."""

_MOST_DECIMALS = 4  # a table's numbers stay comparable at a glance


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


def decimals_of(intervals: Iterable[Interval], means: Iterable[float]) -> int:
    """Two significant digits for a typical half-width; without any, four for the largest mean."""
    halves = [interval.half_width for interval in intervals]
    known = [half for half in halves if math.isfinite(half) and half > 0]
    sizes = [abs(mean) for mean in means if math.isfinite(mean)]
    scale, digits = (float(np.quantile(known, 0.25)), 1) if known else (max(sizes, default=0.0), 3)
    return 2 if scale == 0 else min(max(digits - math.floor(math.log10(scale)), 0), _MOST_DECIMALS)


def interval_text(interval: Interval, decimals: int, *, sign: str = "+") -> str:
    """Its mean ± half its width, where it has one."""
    mean = number_text(interval.mean, decimals, sign=sign)
    return mean if math.isnan(interval.half_width) else f"{mean} ± {number_text(interval.half_width, decimals)}"


def number_text(value: float, decimals: int, *, sign: str = "") -> str:
    """A dash where there is none."""
    return "-" if math.isnan(value) else f"{value:{sign}.{decimals}f}"


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Letters that a table of `new_table` takes: its cells, three between two columns, one at each side."""
    return sum(max(map(len, column)) for column in zip(*rows, strict=True)) + 3 * len(rows[0]) - 1
