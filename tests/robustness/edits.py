"""Seeded edits of what a file says, through h5py: a forger's files, whole by HDF5's own rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from robustness.outside import OUTSIDE_BYTES, OUTSIDE_FILE

from rankkit.axes import REGIONS
from rankkit.store.door.hdf5 import sha256_of_attributes, sha256_of_strings

__all__ = ["EDITS", "edit_file", "sealed"]

Wave = np.random.Generator
Edit = Callable[[h5py.File, Wave], None]

_REFUSALS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, IndexError)
"""What h5py raises where an edit does not fit what an earlier one left; another is drawn then."""
_ATTEMPTS = 20
_BOOKKEEPING = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates")
_VERSIONS = (
    "0.9", "1", "1.", ".1", "1.0", "1.1", "1.2", "1.9", "1.999999999999999999999", "1.-1", "1.²", "²", "\uff11.1", "-1.1",
    "2.0", "99999999999999999999.0", "1.1.1", "1,1", "latest", "", " 1.1", "1e0", "0x1.1", "\x1b[2J1.1",
)  # fmt: skip
_TEXTS = (
    "", " ", "\n", "a\nPROBLEM b", "\x1b[31mred\x1b[0m", "\x9b31m", "‮desrever‬", "é", "x" * 70_000, "[" * 9000,
    "9" * 5000, "{}", '{"a": 1}', '{"a": "b"}', "null", "NaN", "true", "../../outside.h5", "/dev/zero", "=1+1", "%s%n%d",
    "[bold red]markup[/]", "{0.__class__}", "full", "own", "mean", "gpt", "effective_rank", "\U0001f600" * 300, "a" * 4097,
)  # fmt: skip
_NAMES = (
    "gpt", "unilm", "Gpt", "other", "comparison", "functional", "baselines", "by_step", "configuration", "tokens",
    "effective_rank", "effective_rank_lower", "effective_rank_error", "x_upper", "layer_output_x", "layer_output_", "_lower",
    "singular_values",
    "queries", "keys", "attention", "a b", ".hidden", "..", "\x1b[31m", "line\nbreak", "é", "x" * 300, "‮", "seed", "feature",
)  # fmt: skip
_TYPES = (
    "<f2", ">f8", "<f4", "<f8", "<i1", "<u1", "<i2", "<i4", "<u4", "<i8", "<u8", "<c16", "S1", "S200", "V7", "?", "<f16",
    [("a", "<f8"), ("b", "<i4")], ("<f8", (2,)),
)  # fmt: skip


def _datasets(file: h5py.File) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, entry: found.append(entry) if isinstance(entry, h5py.Dataset) else None)
    return found


def _groups(file: h5py.File) -> list[h5py.Group]:
    found: list[h5py.Group] = [file["/"]]
    file.visititems(lambda _, entry: found.append(entry) if isinstance(entry, h5py.Group) else None)
    return found


def _pick(things: Any, wave: Wave) -> Any:
    """One of several; numpy's own choice would make arrays of them."""
    return things[int(wave.integers(len(things)))]


def _numeric(file: h5py.File, wave: Wave) -> h5py.Dataset:
    return _pick([dataset for dataset in _datasets(file) if dataset.dtype.kind in "iuf" and dataset.size], wave)


def _textual(file: h5py.File, wave: Wave) -> h5py.Dataset:
    return _pick([dataset for dataset in _datasets(file) if h5py.check_string_dtype(dataset.dtype)], wave)


def _axis(file: h5py.File, wave: Wave) -> h5py.Dataset:
    return _pick([dataset for dataset in _datasets(file) if dataset.is_scale], wave)


def _object(file: h5py.File, wave: Wave) -> Any:
    return _pick(_datasets(file), wave) if wave.random() < 0.6 else _pick(_groups(file), wave)


def _odd_number(dtype: np.dtype[Any], wave: Wave) -> Any:
    if dtype.kind == "f":
        return _pick((np.nan, np.inf, -np.inf, -1.0, 0.0, -0.0, 1e308, 5e-324, 1e-300, 1.0, 2.0, 6.0, -1e308), wave)
    information = np.iinfo(dtype)
    values = [information.min, information.max, -1, 0, 1, 2, 3, 4, 5, 6, 7, 100, 127]
    return _pick([value for value in values if information.min <= value <= information.max], wave)


def _remade(dataset: h5py.Dataset, values: NDArray[Any] | None, **changes: Any) -> h5py.Dataset:
    """The same dataset again with other values, type, chunks or filters: attributes and labels of axes as they were."""
    group, name = dataset.parent, dataset.name.rpartition("/")[2]
    attributes = {key: dataset.attrs[key] for key in dataset.attrs if key not in _BOOKKEEPING}
    scales = [[scale.name for scale in axis.values()] for axis in dataset.dims]
    scale_name = name if dataset.is_scale else None
    settings: dict[str, Any] = {"dtype": dataset.dtype, "compression": "gzip", "shuffle": True, "fletcher32": True}
    if h5py.check_string_dtype(dataset.dtype) or (values is not None and not np.ndim(values)):
        settings = {"dtype": dataset.dtype}
    del group[name]
    new = group.create_dataset(name, data=values, **(settings | changes))
    new.attrs.update(attributes)
    for axis, names in zip(new.dims, scales, strict=False):
        for scale in names:
            if scale in group.file:
                axis.attach_scale(group.file[scale])
    if scale_name is not None:
        new.make_scale(scale_name)
    return new


def odd_value(file: h5py.File, wave: Wave) -> None:
    dataset = _numeric(file, wave)
    values = dataset[...]
    places = wave.integers(values.size, size=int(wave.choice([1, 1, 3])))
    values.reshape(-1)[places] = _odd_number(dataset.dtype, wave)
    dataset[...] = values


def odd_values(file: h5py.File, wave: Wave) -> None:
    dataset = _numeric(file, wave)
    dataset[...] = np.full(dataset.shape, _odd_number(dataset.dtype, wave))


def odd_values_of_one_name(file: h5py.File, wave: Wave) -> None:
    """The same in every group that has the variable, so that they agree with one another."""
    name = _numeric(file, wave).name.rpartition("/")[2]
    same = [dataset for dataset in _datasets(file) if dataset.name.endswith(f"/{name}") and dataset.dtype.kind in "iuf"]
    value = _odd_number(same[0].dtype, wave)
    for dataset in same:
        dataset[...] = np.full(dataset.shape, value)


def shuffled_values(file: h5py.File, wave: Wave) -> None:
    dataset = _numeric(file, wave)
    dataset[...] = wave.permutation(dataset[...].reshape(-1)).reshape(dataset.shape)


def swapped_labels(file: h5py.File, wave: Wave) -> None:
    axis = _axis(file, wave)
    axis[...] = axis[...][::-1]


def repeated_label(file: h5py.File, wave: Wave) -> None:
    axis = _axis(file, wave)
    axis[-1] = axis[0]


def odd_label(file: h5py.File, wave: Wave) -> None:
    axis = _axis(file, wave)
    odd = _odd_number(axis.dtype, wave) if axis.dtype.kind in "iu" else _pick((*_TEXTS, *REGIONS), wave)
    axis[int(wave.integers(axis.size))] = odd


def odd_text(file: h5py.File, wave: Wave) -> None:
    dataset = _textual(file, wave)
    dataset[() if not dataset.shape else tuple(wave.integers(dataset.shape))] = _pick(_TEXTS, wave)


def other_type(file: h5py.File, wave: Wave) -> None:
    dataset = _pick(_datasets(file), wave)
    kind = np.dtype(_pick(_TYPES, wave))
    values = np.zeros(dataset.shape, kind)
    if dataset.dtype.kind in "iuf" and kind.kind in "iuf":
        with np.errstate(invalid="ignore", over="ignore"):
            values = dataset[...].astype(kind)
    _remade(dataset, values, dtype=kind)


def other_special_type(file: h5py.File, wave: Wave) -> None:
    dataset = _pick(_datasets(file), wave)
    kinds = (
        h5py.string_dtype("ascii"), h5py.string_dtype("utf-8"), h5py.string_dtype("utf-8", 5), h5py.ref_dtype,
        h5py.regionref_dtype, h5py.vlen_dtype(np.int32), h5py.enum_dtype({"a": 0, "b": 1}, "i1"),
        h5py.vlen_dtype(h5py.string_dtype()),
    )  # fmt: skip
    _remade(
        dataset, None, shape=dataset.shape, dtype=_pick(kinds, wave), compression=None, shuffle=None, fletcher32=None
    )


def other_shape(file: h5py.File, wave: Wave) -> None:
    dataset = _pick(_datasets(file), wave)
    shape = list(dataset.shape)
    match int(wave.integers(6)):
        case 0 if shape:
            axis = int(wave.integers(len(shape)))
            shape[axis] = max(0, shape[axis] + _pick((-1, 1, 2, 100), wave))
        case 1 if shape:
            shape[int(wave.integers(len(shape)))] = 0
        case 2:
            shape = shape[::-1]
        case 3:
            shape = [*shape, int(wave.integers(1, 4))]
        case 4:
            shape = shape[1:]
        case _:
            shape = []
    text = h5py.check_string_dtype(dataset.dtype) is not None
    values = np.full(shape, "full" if text else 1, dtype=object if text else dataset.dtype)
    _remade(
        dataset, values, **({} if shape and not text else {"compression": None, "shuffle": None, "fletcher32": None})
    )


def other_chunks(file: h5py.File, wave: Wave) -> None:
    dataset = _numeric(file, wave)
    chunks = tuple(int(wave.integers(1, size + 1)) for size in dataset.shape)
    _remade(dataset, dataset[...], chunks=chunks)


def other_storage(file: h5py.File, wave: Wave) -> None:
    """Contiguous, unchecked, unlimited, with another fill value, allocated early, or with a filter of h5py's own."""
    dataset = _numeric(file, wave)
    plain = {"compression": None, "shuffle": None, "fletcher32": None}
    choices: tuple[dict[str, Any], ...] = (
        plain,
        {"fletcher32": None},
        {"shuffle": None},
        {"maxshape": (None,) * dataset.ndim},
        {"maxshape": (None, *dataset.shape[1:])},
        {"fillvalue": 7},
        {"compression": "lzf"},
        {"compression_opts": 9},
        {**plain, "chunks": dataset.chunks},
        {"scaleoffset": 3},
        {"track_times": True},
    )
    _remade(dataset, dataset[...], **_pick(choices, wave))


def unwritten_chunks(file: h5py.File, wave: Wave) -> None:
    dataset = _numeric(file, wave)
    values = dataset[...]
    new = _remade(dataset, None, shape=values.shape, chunks=dataset.chunks)
    if wave.random() < 0.5 and new.shape[0] > 1:
        new[0] = values[0]


def all_shorter(file: h5py.File, wave: Wave) -> None:
    """One entry less, or one more, along an axis, in every variable of its group."""
    axis = _axis(file, wave)
    group, name, size, step = axis.parent, axis.name.rpartition("/")[2], axis.size, int(_pick((-1, 1), wave))
    places = np.arange(size - 1) if step < 0 else np.append(np.arange(size), size - 1)
    labelled = [
        (dataset.name, [[scale.name.rpartition("/")[2] for scale in dim.values()] for dim in dataset.dims])
        for dataset in group.values()
        if isinstance(dataset, h5py.Dataset) and dataset.name != axis.name
    ]
    values = axis[...]
    new = values[places]
    if step > 0 and new.dtype.kind == "i":
        new[-1] = new.max() + 1
    for path, dims in labelled:
        for number, scales in enumerate(dims):
            if scales == [name]:
                dataset = file[path]
                _remade(dataset, np.take(dataset[...], places, axis=number), chunks=None)
    _remade(axis, new)
    for path, dims in labelled:
        for number, scales in enumerate(dims):
            if scales == [name] and path in file and not list(file[path].dims[number].values()):
                file[path].dims[number].attach_scale(group[name])


def lost_entry(file: h5py.File, wave: Wave) -> None:
    entry = _object(file, wave)
    del file[entry.name]


def lost_axis(file: h5py.File, wave: Wave) -> None:
    del file[_axis(file, wave).name]


def lost_label_of_axis(file: h5py.File, wave: Wave) -> None:
    dataset = _pick([dataset for dataset in _datasets(file) if dataset.ndim and not dataset.is_scale], wave)
    number = int(wave.integers(dataset.ndim))
    for scale in dataset.dims[number].values():
        dataset.dims[number].detach_scale(scale)


def other_label_of_axis(file: h5py.File, wave: Wave) -> None:
    dataset = _pick([dataset for dataset in _datasets(file) if dataset.ndim and not dataset.is_scale], wave)
    number = int(wave.integers(dataset.ndim))
    if wave.random() < 0.5:
        lost_label_of_axis(file, wave)
    dataset.dims[number].attach_scale(_axis(file, wave))


def renamed(file: h5py.File, wave: Wave) -> None:
    entry = _object(file, wave)
    file.move(entry.name, f"{entry.parent.name.rstrip('/')}/{_pick(_NAMES, wave)}")


def swapped_names(file: h5py.File, wave: Wave) -> None:
    one, two = (_pick(_datasets(file), wave).name for _ in range(2))
    file.move(one, "/spare")
    file.move(two, one)
    file.move("/spare", two)


def moved(file: h5py.File, wave: Wave) -> None:
    entry, target = _object(file, wave), _pick(_groups(file), wave)
    file.move(entry.name, f"{target.name.rstrip('/')}/{entry.name.rpartition('/')[2]}")


def copied(file: h5py.File, wave: Wave) -> None:
    entry, target = _object(file, wave), _pick(_groups(file), wave)
    file.copy(entry, target, name=_pick(_NAMES, wave))


def new_dataset(file: h5py.File, wave: Wave) -> None:
    group = _pick(_groups(file), wave)
    kind = np.dtype(_pick(_TYPES, wave))
    group.create_dataset(_pick(_NAMES, wave), data=np.zeros(int(wave.integers(0, 4)), kind))


def new_measure(file: h5py.File, wave: Wave) -> None:
    """A variable that says it is a measure, with or without its companions."""
    old = _pick([dataset for dataset in _datasets(file) if "definition" in dataset.attrs], wave)
    new = _pick(
        (*_NAMES, "rank_one_residual", "energy_rank_90", "mass_rank_x", "decay_exponent", "numerical_rank"), wave
    )
    file.copy(old, old.parent, name=new)


def new_group(file: h5py.File, wave: Wave) -> None:
    names = [_pick(_NAMES, wave) for _ in range(int(wave.integers(1, 4)))]
    _pick(_groups(file), wave).create_group("/".join(names))


def link(file: h5py.File, wave: Wave) -> None:
    target = _object(file, wave)
    links = (
        h5py.SoftLink(target.name), h5py.SoftLink("/nowhere"), h5py.ExternalLink(OUTSIDE_FILE, "/x"),
        h5py.ExternalLink(OUTSIDE_FILE, "/"), h5py.ExternalLink("", "/"), target,
    )  # fmt: skip
    group = _pick(_groups(file), wave)
    name = _pick((*_NAMES, *list(group)), wave)
    if name in group:
        del group[name]
    group[name] = _pick(links, wave)


def data_elsewhere(file: h5py.File, wave: Wave) -> None:
    dataset = _numeric(file, wave)
    group, name, shape, kind = dataset.parent, dataset.name.rpartition("/")[2], dataset.shape, dataset.dtype
    del group[name]
    if wave.random() < 0.5:
        group.create_dataset(name, shape, kind, external=[(OUTSIDE_BYTES, 0, h5py.h5f.UNLIMITED)])
        return
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(_pick((OUTSIDE_FILE, "."), wave), "x", shape)
    group.create_virtual_dataset(name, layout)


def lost_attribute(file: h5py.File, wave: Wave) -> None:
    entry = _object(file, wave)
    del entry.attrs[_pick(list(entry.attrs), wave)]


def odd_attribute(file: h5py.File, wave: Wave) -> None:
    entry = _object(file, wave)
    name = _pick([*entry.attrs, *_BOOKKEEPING, *_NAMES], wave) if wave.random() < 0.9 else _pick(_TEXTS, wave)[:60_000]
    entry.attrs[name] = _odd_attribute(entry, wave)


def _odd_attribute(entry: Any, wave: Wave) -> Any:
    values: tuple[Any, ...] = (
        0, 1, -1, 2**63 - 1, -(2**63), np.uint64(2**64 - 1), 0.5, np.nan, np.inf, np.float16(1), np.longdouble(1),
        np.bool_(True), 1j, h5py.Empty("f8"), h5py.Empty("S1"), np.bytes_(b"a\xff"), np.bytes_(b"full"), b"",
        np.zeros(0), np.zeros(3), np.zeros((2, 2)), np.arange(7000.0), ["a", "b"], np.array([b"a", b"b"]),
        np.zeros(2, [("a", "f8")]), entry.ref, np.array([entry.ref] * 3, dtype=h5py.ref_dtype), np.void(b"abc"),
        np.array("x", dtype=h5py.string_dtype("ascii")),
    )  # fmt: skip
    return _pick(_TEXTS, wave) if wave.random() < 0.4 else _pick(values, wave)


def odd_bookkeeping(file: h5py.File, wave: Wave) -> None:
    """What netCDF-4 and HDF5's dimension scales keep for themselves, of another type, size or target."""
    entry, name = _pick(_datasets(file), wave), _pick(_BOOKKEEPING, wave)
    reference = _object(file, wave).ref
    if name == "DIMENSION_LIST" and wave.random() < 0.6:
        lists = np.empty(int(_pick((0, 1, entry.ndim, entry.ndim, entry.ndim + 1, 40), wave)), dtype=object)
        for place in range(lists.size):
            lists[place] = np.array(
                [_pick((reference, h5py.Reference()), wave)] * int(wave.integers(3)), dtype=h5py.ref_dtype
            )
        entry.attrs.create(name, lists, dtype=h5py.vlen_dtype(h5py.ref_dtype))
        return
    entry.attrs[name] = _odd_attribute(entry, wave)


def many_attributes(file: h5py.File, wave: Wave) -> None:
    entry = _object(file, wave)
    for number in range(int(wave.integers(20, 300))):
        entry.attrs[f"a{number}"] = number


def other_version(file: h5py.File, wave: Wave) -> None:
    file.attrs["rankkit_schema"] = _pick(_VERSIONS, wave)


def newer_minor_version(file: h5py.File, wave: Wave) -> None:
    """What is unknown is left alone then."""
    file.attrs["rankkit_schema"] = "1.99"


def other_flag(file: h5py.File, wave: Wave) -> None:
    """Of the few attributes that decide how a file is read."""
    group = _pick(_groups(file), wave)
    name = _pick(
        ("complete", "rows_sum_to_one", "unavailable", "method_rule", "mask", "objective", "kind", "bos", "step"), wave
    )
    group.attrs[name] = _odd_attribute(group, wave)


EDITS: Mapping[str, Edit] = {
    edit.__name__: edit
    for edit in (
        all_shorter, copied, data_elsewhere, link, lost_attribute, lost_axis, lost_entry, lost_label_of_axis,
        many_attributes, moved, new_dataset, new_group, new_measure, newer_minor_version, odd_attribute, odd_bookkeeping,
        odd_label, odd_text,
        odd_value, odd_values, odd_values_of_one_name, other_chunks, other_flag, other_label_of_axis, other_shape,
        other_special_type, other_storage, other_type, other_version, renamed, repeated_label, shuffled_values,
        swapped_labels, swapped_names, unwritten_chunks,
    )
}  # fmt: skip


def sealed(file: h5py.File) -> None:
    """Make the checksums of texts and attributes right again, as far as they can be computed."""
    for dataset in _datasets(file):
        if h5py.check_string_dtype(dataset.dtype) and dataset.shape is not None:
            values = np.asarray(dataset[()], dtype=object).reshape(-1)
            try:
                dataset.attrs["sha256"] = sha256_of_strings(value.decode("utf-8") for value in values)
            except UnicodeDecodeError:
                continue
    try:
        file.attrs["attributes_sha256"] = sha256_of_attributes(file)
    except UnicodeEncodeError:
        return  # an attribute of which there is no sum


def edit_file(file: h5py.File, wave: Wave) -> str:
    """One to three edits; in half of the cases all checksums are right again.

    Args:
        file: open for changes.
        wave: source of randomness.

    Returns:
        The names of the edits.
    """
    names: list[str] = []
    wanted, seal = int(wave.choice([1, 1, 2, 3])), wave.random() < 0.5
    for _ in range(_ATTEMPTS):
        if len(names) == wanted:
            break
        name = str(wave.choice(list(EDITS)))
        try:
            EDITS[name](file, wave)
        except _REFUSALS:
            continue
        names.append(name)
    if seal:
        sealed(file)
    return "+".join(names) + (", sealed" if seal else "")
