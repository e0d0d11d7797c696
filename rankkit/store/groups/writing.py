"""One arm's group: creating it, and taking its results slab by slab."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.axes import LAYER_AXES, SPECTRUM_AXES
from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.consistency import Cells, Spectra, Violation, layer_violations, violations
from rankkit.store.door.hdf5 import h5py
from rankkit.store.groups.chunk_queue import Block, ChunkQueue, Target
from rankkit.store.groups.datasets import create_axes, create_dataset, set_attributes
from rankkit.store.groups.grid import Grid
from rankkit.store.groups.kept import attention_violations
from rankkit.store.groups.pages import Pages
from rankkit.store.layout import GroupLayout
from rankkit.store.slabs import KeptSlab, LayerSlab, Slab
from rankkit.store.variables import LAYER_OUTPUT

__all__ = ["GroupWriter", "create_group", "require_group"]

Selection = tuple[int | slice, ...]

_FLOAT = np.dtype(np.float64)
_OF_EVERY_MATRIX = {v.name: np.dtype(v.dtype) for v in schema.GROUP_VARIABLES if v.dimensions == SPECTRUM_AXES}


class GroupWriter:
    """Takes the results of one arm, in slabs of any shape and order, each cell once."""

    def __init__(self, queue: ChunkQueue, name: str, layout: GroupLayout, targets: Mapping[str, Target]) -> None:
        self._queue = queue
        self._name = name
        self._layout = layout
        self._targets = targets
        self._labels = layout.labels
        self._matrices = Grid(SPECTRUM_AXES, self._labels)
        self._layers = Grid(LAYER_AXES, self._labels)
        self._kept = Grid(schema.KEPT_AXES, self._labels)
        self._rows, self._columns = (
            self._matrices.spread(np.asarray(sides, dtype=np.int64), ("region", "sequence"), ())
            for sides in (layout.rows, layout.columns)
        )
        self._pages = Pages(
            [variable for variable in layout.variables if variable.dimensions == SPECTRUM_AXES],
            [len(self._labels[axis]) for axis in SPECTRUM_AXES],
        )

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
        selection = self._matrices.select(index)
        cells = self._cells(selection, values)
        self._refuse(violations(cells, {}), self._matrices, selection, "matrices")
        arrays = {name: getattr(cells, name) for name in _OF_EVERY_MATRIX} | dict(cells.measures)
        arrays |= {f"{name}_lower": lower for name, (lower, _) in cells.brackets.items()}
        arrays |= {f"{name}_upper": upper for name, (_, upper) in cells.brackets.items()}
        arrays |= {f"{name}_error": error for name, error in cells.errors.items()}
        values_of_spectra = Block(self._targets["singular_values"], selection, cells.singular_values)
        pages = self._pages.put(selection, arrays)
        self._queue.put(
            [values_of_spectra, *(block for page in pages for block in self._blocks(page.place, page.arrays))]
        )
        self._matrices.mark(selection)

    def write_layer_output(self, index: Mapping[str, int | slice], values: LayerSlab) -> None:
        """Write the results of one block of layer outputs.

        Args:
            index: as for `write`, along the axes of LAYER_AXES.
            values: arrays over the axes that `index` does not fix to one number, in the order of LAYER_AXES.

        Raises:
            ValueError: the group has no layer outputs; or as `write`.
            SpectrumFileError: the numbers contradict one another, as `verify` would find.
            StorageError: the file system refuses.
        """
        if self._layout.output_components is None:
            raise ValueError(
                f"{self._name} must have layer outputs in its layout, got none. Give output_components to GroupLayout."
            )
        selection = self._layers.select(index)
        shape = self._layers.shape(selection)
        _check_names("layer measures", values.measures, self._layout.layer_measures)
        spectra = self._outputs(shape, values)
        self._refuse(layer_violations(spectra, {}), self._layers, selection, "layer outputs")
        arrays = {name: getattr(spectra, name) for name in ("singular_values", "floor_arithmetic")} | dict(
            spectra.measures
        )
        self._store(self._layers, selection, {f"{LAYER_OUTPUT}{name}": array for name, array in arrays.items()})

    def write_kept(self, index: Mapping[str, int | slice], values: KeptSlab) -> None:
        """Write what one block of spectra came from.

        Args:
            index: as for `write`, along the axes of schema.KEPT_AXES.
            values: arrays over the axes that `index` does not fix to one number, in the order of schema.KEPT_AXES.

        Raises:
            ValueError: the group keeps something else, a type does not fit float32; or as `write`.
            SpectrumFileError: attention has entries or rows that attention cannot have.
            StorageError: the file system refuses.
        """
        given = {v.name: getattr(values, v.name) for v in schema.KEPT_VARIABLES}
        _check_names("kept", [name for name, array in given.items() if array is not None], self._layout.kept)
        selection = self._kept.select(index)
        shape, labels = self._kept.shape(selection), self._labels
        arrays = {
            v.name: _exactly(v.name, given[v.name], (*shape, *(len(labels[axis]) for axis in v.dimensions[-2:])))
            for v in schema.KEPT_VARIABLES
            if v.name in self._layout.kept
        }
        if "attention" in arrays and self._layout.rows_sum_to_one:
            self._refuse(attention_violations([arrays["attention"]]), self._kept, selection, "matrices")
        self._store(self._kept, selection, arrays)

    def first_unwritten(self) -> str | None:
        """The first cell that nothing was written to, in words, or None."""
        missing = self._matrices.first_unwritten()
        if missing is None and self._layout.output_components is not None:
            layer = self._layers.first_unwritten()
            missing = None if layer is None else f"the layer output of {layer}"
        if missing is None and self._layout.kept:
            matrix = self._kept.first_unwritten()
            missing = None if matrix is None else f"what is kept of {matrix}"
        return missing

    def _refuse(self, claims: Iterable[Violation], grid: Grid, selection: Selection, things: str) -> None:
        for claim, broken in claims:
            raise SpectrumFileError(
                f"{self._name}: {claim}, got {int(broken.sum())} {things} that break it, the first at "
                f"{grid.first(selection, broken)}. Check what was measured."
            )

    def _store(self, grid: Grid, selection: Selection, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._queue.put(self._blocks(selection, arrays))
        grid.mark(selection)

    def _blocks(self, selection: Selection, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Block]:
        return (Block(target, selection, arrays[name]) for name, target in self._targets.items() if name in arrays)

    def _cells(self, selection: Selection, values: Slab) -> Cells:
        """The slab with every array in full, stored type and shape."""
        layout, shape = self._layout, self._matrices.shape(selection)
        _check_names("measures", values.measures, layout.measures)
        _check_names("brackets", values.brackets, layout.estimated, all_of_them=False)
        _check_names("errors", values.errors, layout.errors, all_of_them=False)
        unknown = np.nan, np.nan
        ends = {name: values.brackets.get(name, unknown) for name in layout.estimated}
        return Cells(
            singular_values=_padded(values.singular_values, (*shape, len(self._labels["component"]))),
            rows=self._rows[selection],
            columns=self._columns[selection],
            **{name: _full(name, getattr(values, name), dtype, shape) for name, dtype in _OF_EVERY_MATRIX.items()},
            measures={name: _full(name, array, _FLOAT, shape) for name, array in values.measures.items()},
            brackets={
                name: (_full(f"{name}_lower", lower, _FLOAT, shape), _full(f"{name}_upper", upper, _FLOAT, shape))
                for name, (lower, upper) in ends.items()
            },
            errors={
                name: _full(f"{name}_error", values.errors.get(name, np.nan), _FLOAT, shape) for name in layout.errors
            },
            rows_sum_to_one=layout.rows_sum_to_one,
        )

    def _outputs(self, shape: tuple[int, ...], values: LayerSlab) -> Spectra:
        size = len(self._labels["output_component"])
        sides = np.full(shape, size, dtype=np.int64)
        return Spectra(
            singular_values=_padded(values.singular_values, (*shape, size)),
            rows=sides,
            columns=sides,
            floor_arithmetic=_full("floor_arithmetic", values.floor_arithmetic, _FLOAT, shape),
            measures={name: _full(name, array, _FLOAT, shape) for name, array in values.measures.items()},
            rows_sum_to_one=False,
        )


def _check_names(kind: str, given: Iterable[str], known: Iterable[str], *, all_of_them: bool = True) -> None:
    given, known = set(given), set(known)
    if not given <= known or (all_of_them and given != known):
        raise ValueError(
            f"{kind} must be {', '.join(sorted(known)) or 'none'}, got {', '.join(sorted(given))}. Give the group's "
            f"{kind}{', all of them' if all_of_them else ' or fewer'}."
        )


def _full(name: str, array: ArrayLike, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    found = np.asarray(array)
    if found.shape == shape and found.dtype == dtype:
        return found
    if found.shape not in ((), shape):
        raise ValueError(f"{name} must have shape {shape} or be one number, got {found.shape}. Match the index.")
    if not np.can_cast(found.dtype, dtype, "same_kind"):
        raise ValueError(f"{name} must be convertible to {dtype}, got {found.dtype}. Convert it.")
    return np.broadcast_to(found, shape).astype(dtype)


def _exactly(name: str, array: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    found = np.asarray(array)
    if found.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {found.shape}. Match the index.")
    if not np.can_cast(found.dtype, np.float32):
        raise ValueError(f"{name} must be of a type that float32 holds without loss, got {found.dtype}. Convert it.")
    return found.astype(np.float32, copy=False)


def _padded(singular_values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Singular values with nan after them, up to the length of the component axis."""
    found = np.asarray(singular_values, dtype=np.float64)
    if found.shape[:-1] != shape[:-1] or found.ndim == 0 or found.shape[-1] > shape[-1]:
        raise ValueError(
            f"singular_values must have shape {shape[:-1]} and at most {shape[-1]} components, got {found.shape}. "
            "Match the index, components last."
        )
    if found.shape == shape:
        return found
    padded = np.full(shape, np.nan)
    padded[..., : found.shape[-1]] = found
    return padded


def require_group(file: h5py.File, name: str) -> h5py.Group:
    """The group of that name, made with those on the way to it where they are missing.

    Raises:
        ValueError: the name runs through a variable.
    """
    parent: h5py.Group = file
    for part in name.split("/"):
        parent = parent[part] if part in parent else parent.create_group(part, track_order=True)
        if not isinstance(parent, h5py.Group):
            raise ValueError(f"name must not run through the variable {part!r}, got {name!r}. Rename the group.")
    return parent


def create_group(file: h5py.File, name: str, layout: GroupLayout) -> dict[str, h5py.Dataset]:
    """Create an arm's group and all its variables; returns those that wait for slabs."""
    group = require_group(file, name)
    set_attributes(group, layout.group_attributes)
    create_axes(group, layout.labels)
    waiting = {}
    for variable in layout.variables:
        given = layout.arrays.get(variable.name)
        dataset = create_dataset(group, variable, layout.labels, given)
        if given is None:
            waiting[variable.name] = dataset
    return waiting
