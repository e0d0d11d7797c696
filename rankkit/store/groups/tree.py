"""The groups of an open file: which there are, and which variables each says it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.contents import GroupContents
from rankkit.store.door.hdf5 import attributes_of, datasets_in, entries_of, h5py, is_newer
from rankkit.store.variables import LAYER_OUTPUT, MeasureDescription

__all__ = ["comparison_groups", "contents_in", "functional_groups", "measure_groups"]

_LAYER_NAMES = {variable.name for variable in schema.LAYER_VARIABLES}


def measure_groups(file: h5py.File) -> dict[str, h5py.Group]:
    """The groups that hold spectra, arms and baselines, by name in storage order, at any depth.

    In a file of a later minor schema a group without singular values is one we do not know, and is left out.
    """
    newer = is_newer(file)
    others = (schema.COMPARISON, schema.FUNCTIONAL)
    found: dict[str, h5py.Group] = {}
    for name, entry in entries_of(file):
        if isinstance(entry, h5py.Group) and name not in others:
            found |= dict(_with_datasets(entry, name))
    return {name: group for name, group in found.items() if not newer or "singular_values" in group}


def functional_groups(file: h5py.File) -> dict[str, h5py.Group]:
    """The groups of functional ranks by arm, in storage order."""
    parent = _group(file, schema.FUNCTIONAL)
    found = {} if parent is None else dict(_with_datasets(parent, ""))
    return {name.removeprefix("/"): group for name, group in found.items()}


def comparison_groups(file: h5py.File) -> dict[str, h5py.Group]:
    """/comparison and /comparison/by_step, those there are."""
    comparison = _group(file, schema.COMPARISON)
    if comparison is None:
        return {}
    inside = _group(comparison, schema.COMPARISON_BY_STEP.removeprefix(f"{schema.COMPARISON}/"))
    return {schema.COMPARISON: comparison} | ({} if inside is None else {schema.COMPARISON_BY_STEP: inside})


def _group(parent: h5py.Group, name: str) -> h5py.Group | None:
    entry = parent.get(name)
    if entry is not None and not isinstance(entry, h5py.Group):
        raise SpectrumFileError(
            f"{parent.file.filename}: {entry.name} must be a group, got a variable. Restore a copy of the file."
        )
    return entry


def _with_datasets(group: h5py.Group, name: str) -> Iterator[tuple[str, h5py.Group]]:
    """A group and all inside it that hold datasets, each before those inside it."""
    entries = entries_of(group)
    if any(isinstance(entry, h5py.Dataset) for _, entry in entries):
        yield name, group
    for inner, entry in entries:
        if isinstance(entry, h5py.Group):
            yield from _with_datasets(entry, f"{name}/{inner}")


def contents_in(group: h5py.Group) -> GroupContents:
    """What an arm's group holds, told from the names of the variables that carry a definition.

    The bracket and the error of a measure are named after it, which no measure may be.
    """
    datasets = datasets_in(group)
    described = {name: text for name, text in _descriptions(datasets).items() if name not in _LAYER_NAMES}
    layers = {name: text for name, text in described.items() if name.startswith(LAYER_OUTPUT)}
    own = {name: text for name, text in described.items() if name not in layers}
    ends = {name.rpartition("_")[0] for name in own if name.endswith(("_lower", "_upper"))} & set(own)
    errors = {name.rpartition("_")[0] for name in own if name.endswith("_error")} & set(own)
    companions = {f"{name}_{end}" for name in ends for end in ("lower", "upper")} | {f"{name}_error" for name in errors}
    has_layers = any(name.startswith(LAYER_OUTPUT) for name in datasets)
    return GroupContents(
        measures={name: text for name, text in own.items() if name not in companions},
        estimated=frozenset(ends - companions),
        errors=frozenset(errors - companions),
        layer_measures={n.removeprefix(LAYER_OUTPUT): text for n, text in layers.items()} if has_layers else None,
    )


def _descriptions(datasets: Mapping[str, h5py.Dataset]) -> dict[str, MeasureDescription]:
    found = {}
    for name, dataset in datasets.items():
        texts = attributes_of(dataset)
        if "definition" in texts:
            fields = {key: str(texts.get(key, "")) for key in ("long_name", "definition", "source", "units")}
            found[name] = MeasureDescription(**fields)
    return found
