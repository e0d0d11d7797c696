"""What a page is made of: texts, tables, figures, folds. Templates draw them, and escape every text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rankkit.report.page.drawings import Drawing
from rankkit.statistics import Interval
from rankkit.studies.words import interval_text, number_text

__all__ = [
    "Block",
    "Cell",
    "Chooser",
    "Facts",
    "Fold",
    "Forest",
    "ForestPanel",
    "ForestRow",
    "Section",
    "Short",
    "Table",
    "Text",
    "Verbatim",
    "interval_cell",
    "number_cell",
]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    """As it is read."""
    values: tuple[str, ...] = ()
    """What stands behind it, with all its digits, for CSV: a number, or mean, lower and upper bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with a heading for every column; its first column says what a row is."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    strong: tuple[int, ...] = ()
    """Rows that sum up the others."""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """By column, whether it holds numbers and nothing else, which stand to the right."""
        return tuple(
            place > 0 and all(_is_number(row[place]) for row in self.rows) for place in range(len(self.headings))
        )

    @property
    def csv_headings(self) -> tuple[str, ...]:
        """One for each value of a row: an interval takes three columns."""
        widths = [1] * len(self.headings)
        for row in self.rows:
            for place, cell in enumerate(row):
                widths[place] = max(widths[place], len(cell.values) if isinstance(cell, Cell) else 1)
        ends = ("", " lower", " upper")
        return tuple(
            f"{name}{ends[i]}" for name, width in zip(self.headings, widths, strict=True) for i in range(width)
        )


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "plain"
    """`plain`, `note` (in smaller type) or `warning`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names with their values."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verbatim:
    """Text of a file, as it stands there."""

    label: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """A short answer."""

    question: str
    verdict: str
    """`resolved`, `not resolved` or `no verdict`, or what else stands in its badge."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestRow:
    """One mean with its interval, in the units of the axis."""

    label: str
    interval: Interval
    control: float
    """Root mean square of what two arms of one mask would differ by; nan where it is not known, or says nothing."""
    text: str
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestPanel:
    """Rows on one axis."""

    title: str
    rows: tuple[ForestRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Panels beside each other, with the same rows and one scale: means as dots, intervals as lines."""

    key: str
    panels: tuple[ForestPanel, ...]
    says: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """Where the maps of heads go in a browser, and what stands there without JavaScript."""

    key: str
    instead: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What opens on a click."""

    summary: str
    blocks: tuple[Block, ...]
    is_open: bool = False


Block: TypeAlias = "Chooser | Drawing | Facts | Fold | Forest | Table | Text | Verbatim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page with a heading."""

    key: str
    """Of its anchor: letters, digits and dashes."""
    title: str
    blocks: tuple[Block, ...]


def interval_cell(interval: Interval, decimals: int, *, sign: str = "+") -> Cell:
    """A mean ± half its interval, and for CSV the mean and both ends."""
    values: Sequence[float] = (interval.mean, interval.lower, interval.upper)
    return Cell(interval_text(interval, decimals, sign=sign), tuple(_plain(value) for value in values))


def number_cell(value: float, decimals: int, *, sign: str = "") -> Cell:
    """A number, for CSV with more digits."""
    return Cell(number_text(value, decimals, sign=sign), (_plain(value),))


def _is_number(cell: Cell | str) -> bool:
    return isinstance(cell, Cell) or not any(letter.isalpha() for letter in cell.replace("e+", ""))


def _plain(value: float) -> str:
    return "" if value != value else f"{value:.8g}"
