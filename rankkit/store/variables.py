"""One variable of a file: its axes, type and meaning; and the variables that a measure makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import LAYER_AXES, SPECTRUM_AXES

__all__ = [
    "LAYER_OUTPUT",
    "MeasureDescription",
    "TypeName",
    "Variable",
    "bracket_variables",
    "error_variable",
    "layer_variable",
    "measure_variable",
]

LAYER_OUTPUT: Final = "layer_output_"
"""What the names of a layer output's variables begin with."""

TypeName = Literal["float64", "float32", "int64", "int32", "int8", "string"]


@dataclass(frozen=True, slots=True)
class Variable:
    """One dataset: its axes, type and meaning."""

    name: str
    """Name inside its group."""
    dimensions: tuple[str, ...]
    """Names of its axes, in storage order; empty for a scalar."""
    dtype: TypeName
    """Stored little-endian; `string` is variable-length UTF-8."""
    long_name: str
    """What it is, for people."""
    units: str | None = "1"
    """"1" for a pure number; None for labels."""
    flags: tuple[str, ...] = ()
    """Meaning of the codes 0, 1, ... of a flag variable."""
    definition: str | None = None
    """Formula, for what is computed."""
    source: str | None = None
    """Who defined it, for what is computed."""
    optional: bool = False
    """Whether a group may lack it."""
    since: str = "1.0"
    """The schema that first had it."""

    @property
    def attributes(self) -> dict[str, str | NDArray[np.int8]]:
        """The attributes its dataset carries."""
        texts = {"long_name": self.long_name, "units": self.units, "definition": self.definition, "source": self.source}
        attributes: dict[str, str | NDArray[np.int8]] = {key: text for key, text in texts.items() if text is not None}
        if self.flags:
            attributes["flag_values"] = np.arange(len(self.flags), dtype=np.int8)
            attributes["flag_meanings"] = " ".join(self.flags)
        return attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureDescription:
    """What a measure is, written beside its values so that the file explains itself."""

    long_name: str
    """What it is, for people."""
    definition: str
    """Its formula in terms of the matrix or its singular values."""
    source: str
    """Who defined it, or the convention it follows."""
    units: str = "1"
    """Unit; "1" for a pure number, "nat" for an entropy."""


def measure_variable(name: str, description: MeasureDescription) -> Variable:
    """The variable that holds one measure: one float64 per attention matrix, nan where it was not computed exactly."""
    return Variable(
        name,
        SPECTRUM_AXES,
        "float64",
        description.long_name,
        description.units,
        definition=description.definition,
        source=description.source,
    )


def bracket_variables(name: str, description: MeasureDescription) -> tuple[Variable, Variable]:
    """The two ends of the 95% bracket of a measure where it was estimated; nan where it was not."""
    lower, upper = (
        replace(
            measure_variable(f"{name}_{end}", description),
            long_name=f"{description.long_name}, {end} end of the 95% bracket of its estimate",
            definition=f"{end} end of an interval that holds this in at least 95% of repetitions: {description.definition}",
            since="1.1",
        )
        for end in ("lower", "upper")
    )
    return lower, upper


def error_variable(name: str, description: MeasureDescription) -> Variable:
    """How far an exact value may be off; nan where no bound is known."""
    return replace(
        measure_variable(f"{name}_error", description),
        long_name=f"{description.long_name}, bound of its error",
        definition=f"bound of how far both noise floors may have moved the exact value of {name}",
        source="derived from floor_arithmetic and floor_model",
        since="1.1",
    )


def layer_variable(name: str, description: MeasureDescription) -> Variable:
    """The variable that holds one measure of a layer's output, which is the sum over its heads."""
    return Variable(
        f"{LAYER_OUTPUT}{name}",
        LAYER_AXES,
        "float64",
        f"{description.long_name} of the layer's output",
        description.units,
        definition=f"{description.definition}; of sum_h A_h X W_V^h W_O^h",
        source=description.source,
        since="1.1",
    )
