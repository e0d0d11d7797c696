"""Where the dots and lines of means with their intervals stand: one scale for all panels, without a picture library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from rankkit.report.page.blocks import Forest, ForestRow

__all__ = ["DrawnForest", "DrawnPanel", "DrawnRow", "drawn_forest"]

_WIDTH: Final = 760.0  # units of the drawing, about pixels where the page is wide
_LABELS: Final = 64.0  # for the names of rows, left of the first panel
_WORDS: Final = 110.0  # for the names, and at the right for the numbers, of a single panel
_GAP: Final = 18.0  # between panels
_TOP: Final = 26.0  # for titles
_ROW: Final = 19.0
_BOTTOM: Final = 24.0  # for the axis
_WIDE: Final = 0.75  # quantile of the rows' extents that the axis has room for; what is wider ends in an arrow
_ROOM: Final = 1.08


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRow:
    """One row of a panel."""

    label: str
    text: str
    """Mean and interval in words."""
    y: float
    x: float
    """Of the mean."""
    start: float
    end: float
    """Of the interval, cut where the panel ends."""
    is_cut: tuple[bool, bool]
    """Whether it goes on, to the left and to the right."""
    has_interval: bool
    band: tuple[float, float] | None
    """Start and width of what the same-mask control makes likely."""
    resolved: bool
    strong: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPanel:
    """One panel."""

    title: str
    has_numbers: bool
    """Whether there is room for the numbers at the right."""
    left: float
    right: float
    zero: float
    ticks: tuple[tuple[float, str], ...]
    rows: tuple[DrawnRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnForest:
    """The whole drawing."""

    width: float
    height: float
    row: float
    panels: tuple[DrawnPanel, ...]


def drawn_forest(forest: Forest) -> DrawnForest:
    """Place everything.

    Args:
        forest: of at least one panel, each with the same rows.
    """
    limit = _limit([row for panel in forest.panels for row in panel.rows])
    count = len(forest.panels)
    is_alone = count == 1
    labels, numbers = (_WORDS, 1.4 * _WORDS) if is_alone else (_LABELS, 0.0)
    width = (_WIDTH - labels - numbers - _GAP * (count - 1)) / count
    panels = []
    for place, panel in enumerate(forest.panels):
        left = labels + place * (width + _GAP)
        scale = _Scale(left, width, limit)
        rows = tuple(_row(row, number, scale) for number, row in enumerate(panel.rows))
        panels.append(
            DrawnPanel(
                title=panel.title,
                has_numbers=is_alone,
                left=_tenth(left),
                right=_tenth(left + width),
                zero=scale.at(0.0),
                ticks=scale.ticks(),
                rows=rows,
            )
        )
    height = _TOP + _ROW * max(len(panel.rows) for panel in forest.panels) + _BOTTOM
    return DrawnForest(width=_WIDTH, height=height, row=_ROW, panels=tuple(panels))


@dataclass(frozen=True, slots=True)
class _Scale:
    left: float
    width: float
    limit: float

    def at(self, value: float) -> float:
        return _tenth(self.left + self.width * (min(max(value, -self.limit), self.limit) / self.limit + 1) / 2)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        step = 10.0 ** math.floor(math.log10(self.limit))
        step = next(step * factor for factor in (5, 2, 1, 0.5, 0.2) if step * factor <= self.limit * 0.9)
        return tuple((self.at(value), f"{value:+g}" if value else "0") for value in (-step, 0.0, step))


def _limit(rows: list[ForestRow]) -> float:
    """Half of the axis: all of the rows that sum up, and most of the others."""
    strong = [_extent(row) for row in rows if row.strong]
    others = [_extent(row) for row in rows if not row.strong]
    found = max([*strong, *([float(np.quantile(others, _WIDE))] if others else [])], default=0.0)
    return found * _ROOM or 1.0


def _extent(row: ForestRow) -> float:
    ends = (row.interval.mean, row.interval.lower, row.interval.upper)
    return max((abs(end) for end in ends if math.isfinite(end)), default=0.0)


def _row(row: ForestRow, number: int, scale: _Scale) -> DrawnRow:
    lower, upper = row.interval.lower, row.interval.upper
    known = math.isfinite(lower) and math.isfinite(upper)
    mean = row.interval.mean if math.isfinite(row.interval.mean) else 0.0
    start, end = (scale.at(lower), scale.at(upper)) if known else (scale.at(mean),) * 2
    band = None
    if math.isfinite(row.control):
        first = scale.at(-row.control)
        band = (first, _tenth(scale.at(row.control) - first))
    return DrawnRow(
        label=row.label,
        text=row.text,
        y=_tenth(_TOP + _ROW * (number + 0.5)),
        x=scale.at(mean),
        start=start,
        end=end,
        is_cut=(known and lower < -scale.limit, known and upper > scale.limit),
        has_interval=known,
        band=band,
        resolved=row.interval.resolved,
        strong=row.strong,
    )


def _tenth(value: float) -> float:
    return round(value, 1)
