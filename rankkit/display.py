"""Small tables for notebooks: escaped text, no script and no colour of their own, so that light and dark themes hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["html_table", "plus_minus", "short"]

_RIGHT = ' style="text-align:right;padding:0.2em 0.6em"'
_LEFT = ' style="text-align:left;padding:0.2em 0.6em"'


def html_table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, notes: Sequence[str] = ()
) -> str:
    """A table whose first column is words and whose others are numbers.

    Args:
        caption: above it.
        headings: of all columns; none for a table of facts, whose cells are words.
        rows: text of the cells, the first of which names the row.
        notes: sentences below.

    Returns:
        HTML, without anything that is not escaped.
    """
    align = _RIGHT if headings else _LEFT
    head = "".join(
        f'<th scope="col"{align if number else _LEFT}>{escape(heading)}</th>' for number, heading in enumerate(headings)
    )
    lines = [
        f'<tr><th scope="row"{_LEFT}>{escape(first)}</th>{"".join(f"<td{align}>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    ]
    return (
        f'<div><table><caption style="text-align:left;color:inherit">{escape(caption)}</caption>'
        f"{f'<thead><tr>{head}</tr></thead>' if headings else ''}<tbody>{''.join(lines)}</tbody></table>"
        f"{''.join(f'<p>{escape(note)}</p>' for note in notes)}</div>"
    )


def short(value: float) -> str:
    """Four significant digits; a dash for what is not a number."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def plus_minus(mean: float, half_width: float, *, sign: str = "") -> str:
    """A mean with two digits of its half-width: `5.2 ± 2.3`; without one, four digits.

    Args:
        mean: the number.
        half_width: of its interval; nan or 0 where there is none.
        sign: `+` for differences.
    """
    if not (math.isfinite(mean) and math.isfinite(half_width) and half_width > 0):
        return "-" if math.isnan(mean) else f"{mean:{sign}.4g}"
    decimals = max(1 - math.floor(math.log10(half_width)), 0)
    return f"{mean:{sign},.{decimals}f} ± {half_width:,.{decimals}f}"
