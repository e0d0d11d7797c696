"""The numbers of every arm on the axes of attention matrices, and the comparison that is made from them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.spectra import MEASURES
from rankkit.store import Slab, SpectrumWriter
from rankkit.studies.decomposition import ArmFacts, Decomposition, decompose

__all__ = ["ArmValues", "decompositions", "write_comparison"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmValues:
    """What was measured of one arm."""

    measures: dict[str, Array]
    """By name, "seed step region applied_mask sequence layer head"; nan where there is only an estimate, or nothing."""
    brackets: dict[str, tuple[Array, Array]]
    """Lower and upper ends by name, the same axes; nan where the value is exact."""
    status: NDArray[np.int8]
    """Index into `store.STATUSES`, the same axes."""
    errors: dict[str, Array] = field(default_factory=dict)
    """How far a value may be off by name, the same axes; nan where no bound is known."""

    @classmethod
    def unfilled(cls, measures: Collection[str], shape: tuple[int, ...]) -> ArmValues:
        """Room for the numbers of an arm.

        Args:
            measures: names from `spectra.MEASURES`.
            shape: of the axes.
        """
        return cls(
            measures={name: np.full(shape, np.nan) for name in measures},
            brackets={
                name: (np.full(shape, np.nan), np.full(shape, np.nan))
                for name in measures
                if MEASURES[name].needs == "singular_values"
            },
            status=np.zeros(shape, dtype=np.int8),
            errors={name: np.full(shape, np.nan) for name in measures},
        )

    def fill(self, taken: Slab, where: tuple[int | slice, ...]) -> None:
        """Take over a slab that belongs there."""
        self.status[where] = taken.status
        for name, values in taken.measures.items():
            self.measures[name][where] = values
        for name, values in taken.errors.items():
            self.errors[name][where] = values
        for name, ends in taken.brackets.items():
            for table, values in zip(self.brackets[name], ends, strict=True):
                table[where] = values


def decompositions(
    arms: Sequence[ArmFacts],
    values: Mapping[str, ArmValues],
    steps: Sequence[int],
    documents: NDArray[np.int64],
    layers: tuple[int, ...],
    regions: tuple[str, ...],
) -> Iterator[tuple[int, Decomposition]]:
    """The gap and its parts at every step; nothing where no two arms can be compared.

    Args:
        arms: that were measured.
        values: by arm.
        steps: of the checkpoints.
        documents: "sequence", the held-out document of each.
        layers: that were measured.
        regions: that were measured.
    """
    for index, step in enumerate(steps):
        of_step = {
            arm: {name: table[:, index] for name, table in of_arm.measures.items()} for arm, of_arm in values.items()
        }
        brackets = {
            arm: {name: (lower[:, index], upper[:, index]) for name, (lower, upper) in of_arm.brackets.items()}
            for arm, of_arm in values.items()
        }
        found = decompose(arms, of_step, documents, layers, regions, step=step, brackets=brackets)
        if found is not None:
            yield step, found


def write_comparison(writer: SpectrumWriter, by_step: Mapping[int, Decomposition]) -> None:
    """Store the comparison, where there is one.

    Args:
        writer: of the file.
        by_step: from `decompositions`, steps rising.
    """
    if not by_step:
        return
    parts = list(by_step.values())
    tables = [part.arrays() for part in parts]
    arrays: dict[str, Any] = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    writer.comparison(
        measures=parts[-1].measures,
        regions=parts[-1].regions,
        layers=parts[-1].layers,
        attributes=parts[-1].attributes,
        steps=list(by_step),
        **arrays,
    )
