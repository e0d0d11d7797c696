"""The files that are merged, each as its groups say it: what they hold, on which labels of which axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import MatchError, SpectrumFileError
from rankkit.store import MeasureDescription, Root, Variable, schema
from rankkit.store.contents import GroupContents
from rankkit.store.door.hdf5 import attributes_of, datasets_in, h5py, is_newer, opened, read_array, read_strings
from rankkit.store.groups.tree import comparison_groups, contents_in, functional_groups, measure_groups
from rankkit.store.layout import Attribute
from rankkit.store.variables import layer_variable

__all__ = ["STATIC_VARIABLES", "Part", "StudyFile", "assembled", "study_file"]

STATIC_VARIABLES: Final = tuple(
    v for v in schema.GROUP_VARIABLES if v.dimensions[: len(SPECTRUM_AXES)] != SPECTRUM_AXES
)
"""What does not depend on a matrix."""

_COUNTED: Final = ("component", "output_component", "query", "key", "feature")
"""Axes that the writer numbers from 0."""

_OF_OUTPUTS: Final = layer_variable("", MeasureDescription(long_name="", definition="", source=""))
"""What the store adds to the texts of a measure of layers' outputs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One group of one file."""

    path: Path
    """The file."""
    name: str
    """Of the group."""
    group: h5py.Group
    """Open for reading."""
    places: Mapping[str, Mapping[Any, int]]
    """Of every axis by name: its labels, in order, and where each stands."""
    attributes: Mapping[str, Attribute]
    """Of the group."""
    contents: GroupContents
    """Which variables it has."""
    arrays: Mapping[str, NDArray[Any]]
    """`STATIC_VARIABLES` by name, those there are."""

    def labels(self, axis: str) -> tuple[Any, ...]:
        """Of one axis, in storage order."""
        return tuple(self.places[axis])

    @property
    def kept(self) -> tuple[str, ...]:
        """Which of queries, keys and attention it keeps."""
        return tuple(variable.name for variable in schema.KEPT_VARIABLES if variable.name in self.group)

    @property
    def layer_measures(self) -> dict[str, MeasureDescription]:
        """Measures of layers' outputs as a layout takes them."""
        return {
            name: MeasureDescription(
                long_name=text.long_name.removesuffix(_OF_OUTPUTS.long_name),
                definition=text.definition.removesuffix(str(_OF_OUTPUTS.definition)),
                source=text.source,
                units=text.units,
            )
            for name, text in (self.contents.layer_measures or {}).items()
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyFile:
    """One of the files, open."""

    path: Path
    """Where it is."""
    root: Root
    """What it says as a whole."""
    parts: Mapping[str, Part]
    """By group in storage order, baselines among them."""
    functional: Mapping[str, h5py.Group]
    """Groups of functional ranks by arm, in storage order."""
    compared: tuple[str, ...]
    """Measures of its comparison, in order; empty where there is none."""


@contextmanager
def study_file(path: Path) -> Iterator[StudyFile]:
    """Open a file that was verified.

    Raises:
        SpectrumFileError: it cannot be opened safely, follows a newer schema, or numbers its positions in its own way.
    """
    with opened(path) as file:
        attributes = attributes_of(file)
        if is_newer(file):
            raise SpectrumFileError(
                f"{path} must follow schema {schema.SCHEMA_VERSION} or older, got {attributes['rankkit_schema']!r:.20}: "
                "what this version does not know would be lost. Merge with the version that wrote it."
            )
        texts = {variable.name: read_strings(file[variable.name])[0] for variable in schema.ROOT_STRINGS}
        comparison = comparison_groups(file).get(schema.COMPARISON)
        yield StudyFile(
            path=path,
            root=Root(attributes=attributes, **texts),
            parts={name: _part(path, name, group) for name, group in measure_groups(file).items()},
            functional=functional_groups(file),
            compared=() if comparison is None else tuple(read_array(comparison["measure"]).tolist()),
        )


def _part(path: Path, name: str, group: h5py.Group) -> Part:
    datasets = datasets_in(group)
    axes = {axis: read_array(datasets[axis]).tolist() for axis in datasets if axis in schema.AXIS_VARIABLES}
    for axis in (axis for axis in _COUNTED if axis in axes):
        if axes[axis] != list(range(len(axes[axis]))):
            raise SpectrumFileError(f"{path}: {name}: {axis} must count from 0, got {axes[axis][:8]}. Measure again.")
    return Part(
        path=path,
        name=name,
        group=group,
        places={axis: {label: place for place, label in enumerate(labels)} for axis, labels in axes.items()},
        attributes=attributes_of(group),
        contents=contents_in(group),
        arrays={v.name: read_array(datasets[v.name]) for v in STATIC_VARIABLES if v.name in datasets},
    )


def assembled(parts: Sequence[Part], variable: Variable, wanted: Mapping[str, Sequence[Any]]) -> NDArray[Any]:
    """One variable on the wanted labels, from all the parts that have some of them.

    Parts share no matrix. They may share a layer's output, or what is kept of a matrix, which depend on no region or mask:
    those must be the same in all of them.

    Args:
        parts: of one group.
        variable: numeric; its axes among SPECTRUM_AXES come first.
        wanted: labels of each of its axes, and perhaps of others.

    Returns:
        The axes of the variable; what no part has is nan, or -1 in whole numbers.

    Raises:
        MatchError: two parts differ in a number that both have.
        SpectrumFileError: a part is damaged.
    """
    shape = [len(wanted[axis]) for axis in variable.dimensions]
    found = np.full(shape, np.nan if "float" in variable.dtype else -1, dtype=variable.dtype)
    cells = [axis for axis in variable.dimensions if axis in SPECTRUM_AXES]
    given = np.zeros(shape[: len(cells)], dtype=np.bool_)
    for part in (part for part in parts if variable.name in part.group):
        common = [_common(part.places[axis], wanted[axis]) for axis in variable.dimensions]
        if all(here for here, _ in common):
            block = _read(part.group[variable.name], [here for here, _ in common])
            where = _selection([there for _, there in common])
            cell = _selection([there for _, there in common[: len(cells)]])
            twice = given[cell]
            if twice.any() and not np.array_equal(found[where][twice], block[twice], equal_nan=True):
                raise MatchError(
                    f"{part.path}: {part.name}: {variable.name} must be that of the other files with the same "
                    f"{', '.join(cells)}, got other numbers. Measure these parts on one machine."
                )
            found[where], given[cell] = block, True
    return found


def _common(places: Mapping[Any, int], wanted: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Where the labels that both have stand: here, and among the wanted."""
    pairs = [(places[label], there) for there, label in enumerate(wanted) if label in places]
    return [here for here, _ in pairs], [there for _, there in pairs]


def _read(dataset: h5py.Dataset, places: Sequence[Sequence[int]]) -> NDArray[Any]:
    """The cells at some places along every axis, from the smallest box around them."""
    block = read_array(dataset, tuple(slice(min(axis), max(axis) + 1) for axis in places))
    return np.asarray(block[_selection([[place - min(axis) for place in axis] for axis in places])])


def _selection(places: Sequence[Sequence[int]]) -> tuple[slice | NDArray[np.intp], ...]:
    """What selects the cells at some places along every axis: plain slices, far quicker, where all are runs."""
    if all(list(axis) == list(range(axis[0], axis[0] + len(axis))) for axis in places):
        return tuple(slice(axis[0], axis[0] + len(axis)) for axis in places)
    return np.ix_(*places)
