"""Which variables an arm's group has: those that every group has, and those that its measures bring."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rankkit.store.schema import GROUP_VARIABLES, KEPT_VARIABLES, LAYER_VARIABLES
from rankkit.store.variables import (
    MeasureDescription,
    Variable,
    bracket_variables,
    error_variable,
    layer_variable,
    measure_variable,
)

__all__ = ["GroupContents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupContents:
    """Which variables an arm's group has beyond those that every group has."""

    measures: Mapping[str, MeasureDescription]
    """Measures of attention matrices by name."""
    estimated: Collection[str] = ()
    """Measures with a bracket."""
    errors: Collection[str] = ()
    """Measures with an error."""
    layer_measures: Mapping[str, MeasureDescription] | None = None
    """Measures of layers' outputs by name; None where outputs were not measured."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Every variable, coordinates aside, in the order in which they are written; those that are kept, where they are."""
        variables = list(GROUP_VARIABLES)
        for name, description in sorted(self.measures.items()):
            variables.append(measure_variable(name, description))
            variables += bracket_variables(name, description) if name in self.estimated else ()
            variables += [error_variable(name, description)] if name in self.errors else []
        if self.layer_measures is not None:
            variables += LAYER_VARIABLES
            variables += [layer_variable(name, text) for name, text in sorted(self.layer_measures.items())]
        return (*variables, *KEPT_VARIABLES)
