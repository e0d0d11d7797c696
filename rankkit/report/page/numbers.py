"""The groups of an open spectrum file, read part by part: files can be larger than memory, and a page needs little of them.

Several files of one study under other seeds are read as one: along the axis seed, in the order of the seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.report.measured_arms import MeasuredArm
from rankkit.store import BASELINES, FileDescription, GroupDescription, describe
from rankkit.store.door.hdf5 import datasets_in, h5py, opened, read_array
from rankkit.store.groups.tree import measure_groups

__all__ = ["ArmNumbers", "Numbers", "open_numbers"]

Array: TypeAlias = NDArray[np.float64]

_STATIC: Final = ("untrained", "rows", "step", "region", "layer", "head", "applied_mask")
_OF_MATRICES: Final = ("floor_arithmetic", "floor_model", "singular_values")


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmNumbers:
    """One arm's group, or one of its baselines, in one file or in several under other seeds."""

    description: GroupDescription
    """Of the first file; the others are alike but for their seeds."""
    groups: tuple[h5py.Group, ...]
    """Open for reading, one for each file."""

    @property
    def name(self) -> str:
        """Of its group."""
        return self.description.name

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted(self._seeds_as_stored))

    @cached_property
    def _seeds_as_stored(self) -> list[int]:
        return [int(seed) for group in self.groups for seed in read_array(group["seed"])]

    def labels(self, axis: str) -> tuple[Any, ...]:
        """Of every axis but seed."""
        return self.description.labels[axis]

    @property
    def is_swapped(self) -> bool:
        """Whether the other arm's mask was put on its logits too."""
        return len(self.labels("applied_mask")) == 2

    @cached_property
    def untrained(self) -> NDArray[np.bool_]:
        """Where the loss hardly reaches its attention, "region layer"."""
        return read_array(self.groups[0]["untrained"]).astype(np.bool_)

    @cached_property
    def documents(self) -> NDArray[np.int64] | None:
        """The document of each, "sequence"; None where the file does not say."""
        known = datasets_in(self.groups[0]).get("document")
        return None if known is None else read_array(known).astype(np.int64)

    def values(self, measure: str) -> Array:
        """All of a measure, "seed step region applied_mask sequence layer head"; not finite where a matrix has no value."""
        if measure not in self._last_read:
            self._last_read.clear()  # one at a time: a measure can take hundreds of megabytes
            self._last_read[measure] = self.read(measure)
        return self._last_read[measure]

    @cached_property
    def _last_read(self) -> dict[str, Array]:
        return {}

    def bracket(self, measure: str) -> tuple[Array, Array] | None:
        """Lower and upper ends like the values, nan where these are exact; None where none was estimated."""
        if measure not in self.description.estimated:
            return None
        return self.read(f"{measure}_lower"), self.read(f"{measure}_upper")

    def read(self, variable: str, *inner: int | slice) -> Array:
        """A numeric variable of all seeds, in their order.

        Args:
            variable: its name; seed is its first axis.
            inner: what to take along the axes that follow; all of it unless given.
        """
        parts = [read_array(group[variable], (slice(None), *inner)) for group in self.groups]
        table = np.concatenate(parts) if len(parts) > 1 else parts[0]
        order = np.argsort(self._seeds_as_stored, kind="stable")
        return np.asarray(table[order]) if len(parts) > 1 else np.asarray(table)

    def keeps(self, variable: str) -> bool:
        """Whether the file has a variable of that name for this arm."""
        return all(variable in datasets_in(group) for group in self.groups)

    @property
    def last(self) -> slice:
        """The last step, as a slice."""
        count = len(self.labels("step"))
        return slice(count - 1, count)

    def measured(self, measure: str, *, spectra: bool = False) -> MeasuredArm:
        """As figures take it.

        Args:
            measure: which; not there where it was not measured exactly.
            spectra: singular values and floors too, of the last step under the own mask alone.
        """
        static = {name: read_array(self.groups[0][name]) for name in _STATIC}
        group: dict[str, NDArray[Any]] = {**static, "seed": np.array(self.seeds)}
        if self.documents is not None:
            group["document"] = self.documents
        if spectra:
            group |= {name: self.read(name, self.last, slice(None), slice(0, 1)) for name in _OF_MATRICES}
        values = self.values(measure) if measure in self.description.measures else None
        return MeasuredArm(name=self.name, measure=values, group=group)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """One open study: a file, or several under other seeds."""

    files: tuple[FileDescription, ...]
    """What each says of itself."""
    arms: tuple[ArmNumbers, ...]
    """In storage order."""
    baselines: Mapping[tuple[str, str], ArmNumbers]
    """By (baseline, arm)."""

    @property
    def description(self) -> FileDescription:
        """Of the first file."""
        return self.files[0]

    @property
    def measures(self) -> tuple[str, ...]:
        """Of any arm, in storage order."""
        return tuple(dict.fromkeys(name for arm in self.arms for name in arm.description.measures))

    @property
    def regions(self) -> tuple[str, ...]:
        """Of any arm."""
        return tuple(dict.fromkeys(region for arm in self.arms for region in arm.labels("region")))

    def arm(self, name: str) -> ArmNumbers:
        """One of them."""
        return next(arm for arm in self.arms if arm.name == name)


@contextmanager
def open_numbers(paths: Sequence[Path]) -> Iterator[Numbers]:
    """Open the files of one study.

    Args:
        paths: one file, or several that are alike but for their seeds.

    Raises:
        SpectrumFileError: a file is missing, damaged, foreign, newer or hostile.
    """
    files = tuple(describe(path) for path in paths)
    with ExitStack() as stack:
        groups = [measure_groups(stack.enter_context(opened(path))) for path in paths]

        def numbers(first: GroupDescription) -> ArmNumbers:
            name = first.name
            described = [one for file in files for one in (*file.groups, *file.baselines) if one.name == name]
            return ArmNumbers(description=_pooled(described), groups=tuple(of_file[name] for of_file in groups))

        known = [one for one in files[0].baselines if one.baseline in BASELINES]
        yield Numbers(
            files=files,
            arms=tuple(numbers(one) for one in files[0].groups),
            baselines={
                (str(one.baseline), one.arm): numbers(one)
                for one in known
                if all(one.name in of_file for of_file in groups)
            },
        )


def _pooled(parts: Sequence[GroupDescription]) -> GroupDescription:
    """One group in several files: the counts of all, and else what the first says."""
    matrices = sum(part.matrices for part in parts)

    def added(name: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update(getattr(part, name))
        return dict(counts)

    def share(name: str) -> float:
        return float(sum(getattr(part, name) * part.matrices for part in parts) / matrices)

    return replace(
        parts[0],
        matrices=matrices,
        methods=added("methods"),
        statuses=added("statuses"),
        resolved_fraction=share("resolved_fraction"),
        resolved_model_fraction=share("resolved_model_fraction"),
    )
