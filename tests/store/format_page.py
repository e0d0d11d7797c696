"""Writes the tables in rankkit/store/README.md from the schema and the registry of measures: run `make page`.

Here and not in the package, because a user needs the page and not its maker, and the store may not know the measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from generated import written

from rankkit.axes import SPECTRUM_AXES
from rankkit.spectra import DEFAULT_MEASURES, MEASURES
from rankkit.spectra.measures import Measure
from rankkit.store import Variable, schema
from rankkit.store.ranges import measure_range
from rankkit.store.variables import (
    MeasureDescription,
    bracket_variables,
    error_variable,
    layer_variable,
    measure_variable,
)

PAGE = Path(__file__).parents[2] / "rankkit" / "store" / "README.md"

_MEASURE = MeasureDescription(
    long_name="the measure", definition="its definition", source="its source", units="its unit"
)
_SECTIONS: tuple[tuple[str, tuple[Variable, ...]], ...] = (
    ("`/`: texts", schema.ROOT_STRINGS),
    ("Axes: one variable of that name in every group that uses the axis", tuple(schema.AXIS_VARIABLES.values())),
    ("`/ARM` and `/baselines/NAME/ARM`: always", schema.GROUP_VARIABLES),
    (
        "`/ARM` and `/baselines/NAME/ARM`: for each measure `M`",
        (measure_variable("M", _MEASURE), *bracket_variables("M", _MEASURE), error_variable("M", _MEASURE)),
    ),
    (
        "`/ARM`: where layers' outputs were measured",
        (*schema.LAYER_VARIABLES, layer_variable("M", _MEASURE)),
    ),
    ("`/ARM`: where they were kept", schema.KEPT_VARIABLES),
    ("`/comparison`", schema.COMPARISON_VARIABLES),
    ("`/comparison/by_step`", schema.COMPARISON_BY_STEP_VARIABLES),
    ("`/functional/ARM`", schema.FUNCTIONAL_VARIABLES),
)
_STRUCTURE = {"attention": "attention", "non_negative": "entries >= 0", "rows_sum_to_one": "rows that sum to 1"}


def tables() -> dict[str, str]:
    """Every generated part of the page by the name in its markers."""
    return {"variables": _variables(), "measures": _measures()}


def _variables() -> str:
    parts = [
        f"`matrix` stands for the {len(SPECTRUM_AXES)} axes `{', '.join(SPECTRUM_AXES)}`. A star marks variables that a "
        "group may lack.\n"
    ]
    defined: set[str] = set()
    for title, variables in _SECTIONS:
        rows = [
            (
                f"`{variable.name}`{' *' if variable.optional else ''}",
                _axes(variable.dimensions),
                variable.dtype,
                variable.units or "",
                _meaning(variable, defined),
                variable.since,
            )
            for variable in variables
        ]
        parts.append(f"**{title}**\n\n{_table(('variable', 'axes', 'type', 'unit', 'meaning', 'since'), rows)}")
    return "\n".join(parts)


def _axes(dimensions: Sequence[str]) -> str:
    if tuple(dimensions[: len(SPECTRUM_AXES)]) == SPECTRUM_AXES:
        dimensions = ("matrix", *dimensions[len(SPECTRUM_AXES) :])
    return f"`{', '.join(dimensions)}`" if dimensions else "none"


def _meaning(variable: Variable, defined: set[str]) -> str:
    """What it is, its codes, and its definition unless a row above has the same."""
    codes = ", ".join(f"{code} {flag}" for code, flag in enumerate(variable.flags))
    known = variable.definition is None or variable.definition in defined or variable.units == _MEASURE.units
    defined.add(variable.definition or "")
    return "; ".join(part for part in (variable.long_name, codes, "" if known else f"`{variable.definition}`") if part)


def _measures() -> str:
    rows = [
        (
            f"`{measure.name}`{'' if measure.name in DEFAULT_MEASURES else ' +'}",
            f"{measure.long_name}: `{measure.definition}`",
            measure.units,
            str(measure_range(measure.name)),
            measure.needs.replace("_", " "),
            _needed(measure),
            measure.source,
        )
        for measure in MEASURES.values()
    ]
    return (
        "A plus marks measures that are taken only when asked for. `r` is min(rows, columns) and `m` the columns of the "
        "matrix.\n\n" + _table(("measure", "definition", "unit", "range", "made from", "needs", "source"), rows)
    )


def _needed(measure: Measure) -> str:
    return ", ".join(_STRUCTURE.get(name, name) for name in sorted(measure.requires)) or "any matrix"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
