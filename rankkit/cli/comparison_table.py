"""The stored comparison of two arms, as `inspect` shows it: read from the file, nothing computed again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rankkit.cli.console import Output, new_table, visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["show_comparison"]

_EFFECTS: Final = ("gap", "mask_effect", "learned_effect", "interaction")
_HEADLINE: Final = "effective_rank"


def show_comparison(path: Path, output: Output) -> None:
    """One measure's gap and its parts by region and layer, with the same-mask control where it is stored.

    Args:
        path: of a file with /comparison.
        output: where to.
    """
    from rankkit.store import read_group

    stored = read_group(path, "comparison")
    measures = [visible(name) for name in stored["measure"]]
    measure = _HEADLINE if _HEADLINE in measures else measures[0]
    chosen = measures.index(measure)
    control = ["A/A"] if "same_mask" in stored else []
    names = [name.replace("_", " ") for name in _EFFECTS]
    table = new_table(f"{measure.replace('_', ' ')}: mean [95% interval]", ["region", "layer", *names, *control])
    for r, region in enumerate(map(visible, stored["region"])):
        for index, layer in enumerate(stored["layer"].tolist()):
            table.add_row(region.replace("_", " "), str(layer), *_cells(stored, "", (chosen, r, index), bool(control)))
        if all(f"mean_{name}" in stored for name in _EFFECTS):
            table.add_row(region.replace("_", " "), "mean", *_cells(stored, "mean_", (chosen, r), bool(control)))
    output.table(table)
    if control:
        output.say("A/A = root mean square difference between two single seeds of one arm; mean = over trained layers.")


def _cells(stored: dict[str, NDArray[Any]], prefix: str, where: tuple[int, ...], control: bool) -> list[str]:
    cells = [_interval(*stored[f"{prefix}{name}"][where].tolist()) for name in _EFFECTS]
    same = stored.get(f"{prefix}same_mask")
    return cells + ([_number(math.nan if same is None else float(same[where]))] if control else [])


def _interval(mean: float, lower: float, upper: float) -> str:
    known = f" [{_number(lower)}, {_number(upper)}]" if math.isfinite(lower) and math.isfinite(upper) else ""
    return f"{_number(mean)}{known}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
