"""A spectrum file as labelled arrays: an xarray tree with a dataset per group, whose numbers are read when used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.store.door.hdf5 import DEFAULT_LIMIT, attributes_of, axis_names, datasets_in, h5py, read_array
from rankkit.store.door.library import is_text, refusal
from rankkit.store.schema import AXIS_VARIABLES

if TYPE_CHECKING:
    import xarray

    from rankkit.store.lazy_array import OpenFile

__all__ = ["open_spectra"]

_AT_ONCE_LIMIT: Final = 64 << 20  # bytes of all labels and texts in a file; ours take a megabyte


def open_spectra(path: str | Path, *, limit: int = DEFAULT_LIMIT) -> xarray.DataTree:
    """Open a spectrum file as a tree of labelled datasets.

    A node per group, as far as the file has them: `tree["gpt"]`, `tree["baselines/uniform/gpt"]`, `tree["comparison"]`,
    `tree["comparison/by_step"]`, `tree["functional/gpt"]`. `tree.attrs` are the root attributes, and
    `tree["configuration"].item()`, `tree["certificate"].item()` and `tree["command"].item()` the root texts.

    Labels, texts and attributes are read at once, numbers when they are used, and no others. Flags (`status`, `method`,
    ...) stay codes, which their attribute `flag_meanings` names in order. The file is open until `tree.close()` or the
    end of the `with` block, even if another takes its name meanwhile; what was loaded by then stays. Trees and datasets
    can be pickled, for dask and worker processes: there the file is opened again.

        with rankkit.open_spectra("runs/demo/spectrum.h5") as tree:
            rank = tree["gpt"]["effective_rank"].sel(region="prefix_block", applied_mask="own").isel(step=-1)
            print(rank.mean(["sequence", "head"]).to_pandas())  # a row per seed, a column per layer

    Args:
        path: the file.
        limit: bytes that one array may take in memory.

    Returns:
        The tree, its nodes and variables in storage order.

    Raises:
        ConfigurationError: xarray is not installed.
        SpectrumFileError: the file is missing, damaged, foreign, newer or hostile, or its axes are not labelled; later,
            numbers that are read are damaged.
        ValueError: later, numbers are read after the file was closed.
    """
    try:
        import xarray
    except ImportError as error:
        raise ConfigurationError(
            f"{path} must be opened with xarray, got no such package. Install it: pip install 'rankkit[xarray]'."
        ) from error
    from rankkit.store.lazy_array import OpenFile

    with contextlib.ExitStack() as unless_done:
        owner = OpenFile(Path(path), limit)
        unless_done.callback(owner.close)
        datasets = _Labeller(owner).datasets()
        try:
            tree = xarray.DataTree.from_dict(datasets)
        except (KeyError, ValueError) as error:
            raise SpectrumFileError(
                f"{path} must have the same labels in a group as in those inside it, and no group called like a "
                "variable, got others. Open each alone: xarray.open_dataset(path, engine='h5netcdf', group=...)."
            ) from error
        tree.set_close(owner.close)
        unless_done.pop_all()
    return tree


class _Labeller:
    """Makes datasets of the groups of a file, and reads labels and texts as long as they are small."""

    def __init__(self, owner: OpenFile) -> None:
        self._owner = owner
        self._bytes = 0

    def datasets(self) -> dict[str, xarray.Dataset]:
        """A dataset per group, by path from "/"."""
        return {group.name: self._dataset(group) for group in _groups(self._owner.file["/"])}

    def _dataset(self, group: h5py.Group) -> xarray.Dataset:
        import xarray

        from rankkit.store.lazy_array import lazy_array

        found = datasets_in(group)
        variables = {}
        for name, axes in _axes(found).items():
            at_once = axes == (name,) or is_text(found[name].dtype)
            data = self._read(found[name]) if at_once else lazy_array(self._owner, found[name])
            variables[name] = xarray.Variable(axes, data, attributes_of(found[name]))
        return xarray.Dataset(variables, attrs=attributes_of(group))

    def _read(self, dataset: h5py.Dataset) -> NDArray[Any]:
        """Labels of an axis, or texts."""
        values = read_array(dataset)
        self._bytes += values.nbytes
        if self._bytes > _AT_ONCE_LIMIT:
            raise SpectrumFileError(
                f"{dataset.file.filename}: labels and texts must take at most {_AT_ONCE_LIMIT} bytes together, got more "
                f"with {dataset.name}. Read single variables with rankkit.store.read_group."
            )
        return values


def _groups(group: h5py.Group) -> Iterator[h5py.Group]:
    """A group and all inside it, each before those inside it."""
    yield group
    for name in group:  # not items(), which h5py iterates under its lock: an error would leave other threads waiting
        entry = group[name]
        if isinstance(entry, h5py.Group):
            if name in (".", ".."):  # which in a tree are the group itself and the one above
                raise refusal(group, group.name, "have plain names", repr(name))
            yield from _groups(entry)


def _axes(datasets: Mapping[str, h5py.Dataset]) -> dict[str, tuple[str, ...]]:
    """The names of every variable's axes, each of which is a variable beside it.

    Args:
        datasets: all variables of one group by name.

    Raises:
        SpectrumFileError: an axis has no label or several, or labels of another number.
    """
    scales = {name: axis_names(dataset) for name, dataset in datasets.items()}
    labels = {*AXIS_VARIABLES, *(axis for axes in scales.values() for names in axes for axis in names)}
    found = {}
    for name, dataset in datasets.items():
        names = [[name]] if name in labels and scales[name] == [[]] else scales[name]
        axes = tuple(axis for several in names for axis in several)
        lengths = tuple(datasets[axis].shape[0] for axis in axes if axis in datasets and datasets[axis].ndim == 1)
        if any(len(several) != 1 for several in names) or len(set(axes)) < len(axes) or lengths != dataset.shape:
            must = "have one label for every place along every axis"
            raise refusal(dataset, dataset.name, must, f"axes {names!r:.80} for shape {dataset.shape}")
        found[name] = axes
    return found
