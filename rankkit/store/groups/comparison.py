"""The differences between two arms, at one step or at several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.store import schema
from rankkit.store.consistency import contradictions
from rankkit.store.door.hdf5 import h5py
from rankkit.store.groups.datasets import create_axes, create_dataset, set_attributes
from rankkit.store.groups.writing import require_group
from rankkit.store.layout import Attribute, check_attributes, check_shape
from rankkit.store.variables import Variable

__all__ = ["ComparisonGroup", "comparison_groups", "comparison_problems", "step_problems"]

Labels = Mapping[str, Sequence[object]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparisonGroup:
    """One group of differences.

    Raises:
        ValueError: a label is repeated or unknown, or a shape does not fit its labels.
    """

    name: str
    """COMPARISON or COMPARISON_BY_STEP."""
    variables: Sequence[Variable]
    """Those that `arrays` may hold."""
    labels: Labels
    """By axis."""
    arrays: Mapping[str, NDArray[np.float64]]
    """By name."""
    attributes: Mapping[str, Attribute]
    """Which arms, what kind of interval, over how many seeds."""

    def __post_init__(self) -> None:
        """Check labels and shapes."""
        for problem in contradictions({axis: np.asarray(values) for axis, values in self.labels.items()}):
            raise ValueError(f"{problem}. Correct the labels.")
        for variable in self.variables:
            if variable.name in self.arrays:
                expected = tuple(len(self.labels[axis]) for axis in variable.dimensions)
                check_shape(variable.name, self.arrays[variable.name], expected)

    def write(self, file: h5py.File) -> None:
        """Create the group and everything in it."""
        group = require_group(file, self.name)
        set_attributes(group, self.attributes)
        create_axes(group, self.labels)
        for variable in self.variables:
            if variable.name in self.arrays:
                create_dataset(group, variable, self.labels, self.arrays[variable.name])


def comparison_groups(
    labels: Labels,
    steps: Sequence[int] | None,
    arrays: Mapping[str, ArrayLike],
    attributes: Mapping[str, Attribute],
) -> list[ComparisonGroup]:
    """/comparison, and where there are several steps /comparison/by_step.

    Args:
        labels: by axis of COMPARISON_AXES.
        steps: labels of a first axis of all arrays, rising, the last of which /comparison is about; None for no such axis.
        arrays: by name of COMPARISON_VARIABLES.
        attributes: of the groups.

    Raises:
        ValueError: a shape does not fit its labels, or a label is repeated, unknown or out of order.
        TypeError: an attribute is neither text nor a number.
    """
    check_attributes(attributes, (), ("step",))
    every = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    if steps is None:
        return [_of_one_step(labels, every, attributes)]
    by_step = ComparisonGroup(
        name=schema.COMPARISON_BY_STEP,
        variables=schema.COMPARISON_BY_STEP_VARIABLES,
        labels={"step": steps, **labels},
        arrays=every,
        attributes=attributes,
    )
    if list(steps) != sorted(steps):
        raise ValueError(f"steps must rise, got {list(steps)}. Sort them.")
    last = {name: values[-1] for name, values in every.items()}
    whole = _of_one_step(labels, last, {**attributes, "step": int(steps[-1])})
    return [whole] if len(steps) == 1 else [whole, by_step]


def _of_one_step(
    labels: Labels, arrays: Mapping[str, NDArray[np.float64]], attributes: Mapping[str, Attribute]
) -> ComparisonGroup:
    return ComparisonGroup(
        name=schema.COMPARISON,
        variables=schema.COMPARISON_VARIABLES,
        labels=labels,
        arrays=arrays,
        attributes=attributes,
    )


def comparison_problems(name: str, arrays: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """What is wrong with the numbers of one group, one line each.

    Args:
        name: of the group.
        arrays: all its variables by name, axes included.
    """
    axes = {axis: values for axis, values in arrays.items() if axis in schema.AXIS_VARIABLES}
    yield from (f"{name}: {problem}" for problem in contradictions(axes))
    for variable in schema.COMPARISON_VARIABLES:
        if variable.name not in arrays:
            continue
        values = arrays[variable.name]
        with np.errstate(invalid="ignore"):
            if "bound" in variable.dimensions:
                mean, lower, upper = np.moveaxis(values, -1, 0)
                broken, claim = (lower > mean) | (upper < mean), "lie inside its interval, got {} outside"
            else:
                broken, claim = values < 0, "be at least 0, got {} below"
        if broken.any():
            yield f"{name}: {variable.name} must {claim.format(int(broken.sum()))}"


def step_problems(last: Mapping[str, NDArray[Any]], by_step: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """Whether /comparison is about the last of the steps.

    Args:
        last: all variables of /comparison by name.
        by_step: all variables of /comparison/by_step by name.

    Yields:
        One line for each variable that differs.
    """
    different = set(last) ^ set(by_step) ^ {"step"}
    for name in set(last) & set(by_step):
        ours, theirs = last[name], by_step[name] if name in schema.AXIS_VARIABLES else by_step[name][-1]
        if not np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
            different.add(name)
    for name in sorted(different):
        yield f"{schema.COMPARISON}: {name} must be that of the last step in {schema.COMPARISON_BY_STEP}, got another"
