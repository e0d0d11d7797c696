"""One arm's group: creating it, and taking its results slab by slab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.consistency import Cells, cell_name, violations
from rankkit.store.datasets import create_axes, create_dataset, set_attributes
from rankkit.store.hdf5 import h5py
from rankkit.store.layout import GroupLayout, Slab
from rankkit.store.output import HDF5Output

__all__ = ["GroupWriter", "create_group"]


class GroupWriter:
    """Takes the results of one arm, in slabs of any shape and order, each cell once."""

    def __init__(
        self, output: HDF5Output, name: str, layout: GroupLayout, datasets: Mapping[str, h5py.Dataset]
    ) -> None:
        self._output = output
        self._name = name
        self._layout = layout
        self._datasets = datasets
        self._sizes = {axis: len(labels) for axis, labels in layout.labels.items()}
        self._written = np.zeros([self._sizes[axis] for axis in SPECTRUM_AXES], dtype=np.bool_)

    def write(self, index: Mapping[str, int | slice], values: Slab) -> None:
        """Write the results of one block of attention matrices.

        Args:
            index: position (not label) or contiguous slice along each axis of SPECTRUM_AXES; an axis that is left out
                is taken whole.
            values: arrays over the axes that `index` does not fix to one number, in the order of SPECTRUM_AXES.

        Raises:
            ValueError: an axis, position, shape or measure does not fit the layout, or a cell was written before.
            SpectrumFileError: the numbers contradict one another, as `verify` would find.
            StorageError: the file system refuses.
        """
        selection = tuple(self._position(axis, index.get(axis, slice(None))) for axis in SPECTRUM_AXES)
        unknown = sorted(set(index) - set(SPECTRUM_AXES))
        if unknown:
            raise ValueError(f"index must name axes among {', '.join(SPECTRUM_AXES)}, got {unknown[0]!r}. Remove it.")
        if self._written[selection].any():
            raise ValueError(
                f"index must name cells that are not written yet, got {dict(index)!r}. Write each cell once."
            )
        cells = self._cells(selection, values)
        for claim, broken in violations(cells, {}):
            raise SpectrumFileError(
                f"{self._name}: {claim}, got {int(broken.sum())} matrices that break it, the first at "
                f"{self._cell(np.argwhere(self._mask(selection, broken))[0])}. Check what was measured."
            )
        arrays = {name: getattr(cells, name) for name in self._datasets if name not in cells.measures} | dict(
            cells.measures
        )

        def store(_: h5py.File) -> None:
            for name, dataset in self._datasets.items():
                dataset[selection] = arrays[name]

        self._output.run(store)
        self._written[selection] = True

    def first_unwritten(self) -> str | None:
        """The first cell that nothing was written to, in words, or None."""
        missing = np.flatnonzero(~self._written)
        return None if missing.size == 0 else self._cell(np.unravel_index(missing[0], self._written.shape))

    def _cell(self, index: Sequence[Any] | NDArray[Any]) -> str:
        return cell_name(self._layout.labels, [int(i) for i in index])

    def _mask(self, selection: tuple[int | slice, ...], broken: NDArray[np.bool_]) -> NDArray[np.bool_]:
        mask = np.zeros_like(self._written)
        mask[selection] = broken
        return mask

    def _position(self, axis: str, position: int | slice) -> int | slice:
        size = self._sizes[axis]
        if isinstance(position, slice):
            start, stop, stride = position.indices(size)
            if stride != 1 or start >= stop or (position.stop is not None and position.stop > size):
                raise ValueError(f"{axis} must be a contiguous slice within 0 to {size}, got {position!r}. Correct it.")
            return slice(start, stop)
        if not 0 <= position < size:
            raise ValueError(
                f"{axis} must be a position from 0 to {size - 1}, got {position!r}. Pass positions, not labels."
            )
        return int(position)

    def _cells(self, selection: tuple[int | slice, ...], values: Slab) -> Cells:
        """The slab with every array in full, stored type and shape."""
        shape = self._written[selection].shape
        if set(values.measures) != set(self._layout.measures):
            raise ValueError(
                f"measures must be {', '.join(sorted(self._layout.measures))}, "
                f"got {', '.join(sorted(values.measures))}. Give the group's measures, all of them."
            )

        def full(name: str, array: ArrayLike, dtype: str) -> NDArray[Any]:
            found = np.asarray(array)
            if found.shape not in ((), shape):
                raise ValueError(
                    f"{name} must have shape {shape} or be one number, got {found.shape}. Match the index."
                )
            if not np.can_cast(found.dtype, dtype, "same_kind"):
                raise ValueError(f"{name} must be convertible to {dtype}, got {found.dtype}. Convert it.")
            return np.broadcast_to(found, shape).astype(dtype)

        per_matrix = [v for v in schema.GROUP_VARIABLES if v.dimensions == SPECTRUM_AXES]
        layout = self._layout
        return Cells(
            singular_values=self._padded(shape, values.singular_values),
            rank=self._per_sequence(layout.rank_bound, selection),
            columns=self._per_sequence(np.asarray(layout.columns, dtype=np.int64), selection),
            **{v.name: full(v.name, getattr(values, v.name), v.dtype) for v in per_matrix},
            measures={name: full(name, array, "float64") for name, array in values.measures.items()},
        )

    def _padded(self, shape: tuple[int, ...], singular_values: ArrayLike) -> NDArray[np.float64]:
        found = np.asarray(singular_values, dtype=np.float64)
        width = self._sizes["component"]
        if found.shape[:-1] != shape or found.ndim == 0 or found.shape[-1] > width:
            raise ValueError(
                f"singular_values must have shape {shape} and at most {width} components, got {found.shape}. "
                "Match the index, components last."
            )
        padded = np.full((*shape, width), np.nan)
        padded[..., : found.shape[-1]] = found
        return padded

    def _per_sequence(self, values: NDArray[np.int64], selection: tuple[int | slice, ...]) -> NDArray[np.int64]:
        """Spread "region sequence" over the axes of a slab."""
        axes = [SPECTRUM_AXES.index(axis) for axis in ("region", "sequence")]
        spread = np.expand_dims(values, [i for i in range(len(SPECTRUM_AXES)) if i not in axes])
        return np.broadcast_to(spread, self._written.shape)[selection]


def create_group(file: h5py.File, name: str, layout: GroupLayout) -> dict[str, h5py.Dataset]:
    """Create an arm's group and all its variables; returns those that wait for slabs."""
    parent: h5py.Group = file
    for part in name.split("/"):
        parent = parent[part] if part in parent else parent.create_group(part, track_order=True)
        if not isinstance(parent, h5py.Group):
            raise ValueError(f"name must not run through the variable {part!r}, got {name!r}. Rename the group.")
    set_attributes(
        parent, {"mask": layout.mask, "objective": layout.objective, "kind": layout.kind, **layout.attributes}
    )
    create_axes(parent, layout.labels)
    waiting = {}
    for variable in schema.group_variables(layout.measures):
        dataset = create_dataset(parent, variable, layout.labels, layout.arrays.get(variable.name))
        if variable.name not in layout.arrays:
            waiting[variable.name] = dataset
    return waiting
