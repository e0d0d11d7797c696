"""A row of numbers as a line of blocks, for terminals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

__all__ = ["ASCII", "BLOCKS", "curve_scale", "sparkline"]

BLOCKS: Final = "▁▂▃▄▅▆▇█"
"""Eight heights."""
ASCII: Final = "_.-~:=*#"
"""The same where the terminal has nothing else."""

_BEGINNING: Final = 4  # the first quarter of a loss curve falls further than all the rest


def sparkline(values: Sequence[float], width: int, scale: tuple[float, float], *, letters: str = BLOCKS) -> str:
    """Draw numbers from left to right; where there are more than letters, each letter is the mean of its share.

    Args:
        values: in order; what is not finite leaves a gap.
        width: letters at most.
        scale: (lowest, highest) value; what lies outside is drawn at its end.
        letters: from low to high.

    Returns:
        min(width, number of values) letters.
    """
    lowest, highest = scale
    span = highest - lowest
    drawn = []
    for mean in _means(values, width):
        share = (mean - lowest) / span if span > 0 else 0.5
        drawn.append(" " if math.isnan(mean) else letters[min(max(int(share * len(letters)), 0), len(letters) - 1)])
    return "".join(drawn)


def curve_scale(*curves: Sequence[float]) -> tuple[float, float]:
    """One scale for several loss curves: what follows the first quarter of the longest fits, the beginning may rise above.

    Args:
        curves: smoothed losses by step.

    Returns:
        (lowest, highest); (0, 0) of nothing.
    """
    begin = max(map(len, curves), default=0) // _BEGINNING
    later = [value for curve in curves for value in curve[begin:] if math.isfinite(value)]
    return (min(later), max(later)) if later else (0.0, 0.0)


def _means(values: Sequence[float], width: int) -> list[float]:
    """Of at most `width` even shares; nan for a share without a finite value."""
    letters = min(width, len(values))
    parts = np.array_split(np.asarray(values, dtype=np.float64), letters) if letters > 0 else []
    finite = [part[np.isfinite(part)] for part in parts]
    return [float(part.mean()) if part.size else math.nan for part in finite]
