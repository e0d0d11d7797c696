"""Arrays in other people's files: NumPy's .npy and .npz, and HDF5 of any origin.

What kind a file is, its first bytes say. Nothing is read before its declared size, type and storage are known; no pickle is
loaded, no link followed, nothing unpacked to the disk, and whatever is wrong with a file is one `SpectrumFileError`.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store.heaps import broken_heap
from rankkit.store.inflation import InflationGuard
from rankkit.store.library import h5py

__all__ = ["ArrayEntry", "ArrayFile", "StoredArray", "array_file", "shown"]

_FLOATS: Final = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_DIMENSION_LIMIT = 1 << 40  # entries along one axis; keeps products of hostile shapes short enough to print
_CHUNK_LIMIT = 64 << 20  # bytes of one HDF5 chunk, which HDF5 allocates whole
_OBJECTS_LIMIT = 10_000  # groups and datasets in one HDF5 file: one per head of a large model
_DEPTH_LIMIT = 8  # groups inside groups
_MEMBERS_LIMIT = 1000  # arrays in one .npz
_READ_LIMIT = 1 << 20  # bytes asked of a .npz at a time; larger is only a list of members that nobody writes
_DEFLATE_RATIO = 1032  # deflate makes nothing smaller than by this: zlib's manual
_SHOWN = 40  # characters of a name from a file in a message
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}

# What h5py, zipfile and NumPy's header parser raise on a damaged file.
_DAMAGE = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError, EOFError,
    SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredArray:
    """An array of floats in a file, read by piece."""

    name: str
    """In the file."""
    shape: tuple[int, ...]
    """No axis is empty."""
    dtype: np.dtype[Any]
    """float16, float32 or float64, in this machine's byte order."""
    read: Callable[[tuple[slice, ...]], NDArray[Any]]
    """One slice for each axis to the entries there, in any memory order, perhaps read-only; raises `SpectrumFileError`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayEntry:
    """Something in a file that may be an array for us."""

    shape: tuple[int, ...]
    """As declared."""
    kind: str
    """NumPy's name of its type, such as float32 or int64, or in words what else it is."""
    open: Callable[[], StoredArray]
    """Checks everything that is declared; raises `SpectrumFileError`."""

    @property
    def is_float(self) -> bool:
        """Whether it is of a type that we take."""
        return self.kind in [dtype.name for dtype in _FLOATS]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayFile:
    """What a file holds, before any of it is read."""

    path: Path
    """Where it is."""
    entries: Mapping[str, ArrayEntry]
    """By name; in HDF5 "group/name" for what is not at the root. The only array of a .npy has the empty name."""
    close: Callable[[], None]
    """Lets go of the file."""


def array_file(path: str | Path, *, limit: int) -> ArrayFile:
    """Open a file of arrays.

    Args:
        path: .npy, .npz (stored or deflated) or HDF5 (plain, gzip, shuffle, fletcher32, lzf), whatever it is called.
        limit: bytes that one array may take in memory.

    Raises:
        SpectrumFileError: it is missing, damaged, of another kind, or one of our own spectrum files.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise SpectrumFileError(f"{path} must be a file of arrays, got {found}. Check the path.")
    with _damage(path, "the file"):
        start = _first_bytes(path)
        if start.startswith(np.lib.format.MAGIC_PREFIX):
            return _npy(path, limit)
        if start.startswith(b"PK"):
            return _npz(path, limit)
        if start and h5py.is_hdf5(path):
            return _hdf5(path, limit)
    raise SpectrumFileError(
        f"{path} must be a .npy, .npz or HDF5 file, got {f'one that starts with {start!r}' if start else 'an empty one'}. "
        "Save the arrays with numpy.savez."
    )


def shown(name: str) -> str:
    """A name from a file, quoted, without control characters and short."""
    return repr(name[:_SHOWN])


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            return raw.read(8)
    except PermissionError as error:
        raise SpectrumFileError(
            f"{path} must be readable, got: permission denied. Ask its owner for access."
        ) from error


@contextlib.contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """Turn what readers raise on a damaged file into one line that names the file and the part."""
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise SpectrumFileError(
            f"{path}: {what} must be readable, got {reason!r}. The file is damaged or cut short; make it again."
        ) from error


def _check(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], limit: int) -> None:
    """Refuse an array that is not of floats, is empty, or is too large."""
    what = f"{path}: {shown(name)}" if name else str(path)
    if dtype.newbyteorder("=") not in _FLOATS:
        untyped = dtype.kind == "V" and dtype.itemsize == 2
        found = "2-byte values without a type, as NumPy stores bfloat16" if untyped else f"{dtype}"[:_SHOWN]
        raise SpectrumFileError(f"{what} must hold float16, float32 or float64, got {found}. Save it as float32.")
    if 0 in shape:
        raise SpectrumFileError(f"{what} must not be empty, got shape {shape}. Check what was saved.")
    size = math.prod(shape) * dtype.itemsize
    if size > limit:
        raise SpectrumFileError(
            f"{what} must take at most {limit} bytes, got {size}. Save fewer sequences, or raise the limit if you trust "
            "the file."
        )


# NumPy's own formats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    length: int
    """Bytes before the data."""

    @property
    def size(self) -> int:
        """Bytes of header and data."""
        return self.length + math.prod(self.shape) * self.dtype.itemsize


def _header(stream: IO[bytes]) -> _Header:
    """The header of a .npy, which declares everything.

    Raises:
        ValueError: and much else, on a damaged one.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format, which no plain array needs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about spellings of Python 2; what matters is checked below
        shape, fortran, dtype = readers[version](stream)
    if not all(0 <= size <= _DIMENSION_LIMIT for size in shape):
        raise ValueError("a shape that no array has")
    return _Header(
        shape=tuple(map(int, shape)), dtype=dtype, order="F" if fortran else "C", length=stream.tell()
    )  # fmt: skip


def _npy(path: Path, limit: int) -> ArrayFile:
    with path.open("rb") as stream:
        header = _header(stream)

    def opened() -> StoredArray:
        _check(path, "", header.shape, header.dtype, limit)
        with _damage(path, "the array"):
            size = path.stat().st_size
            if size < header.size:
                raise ValueError(f"{size} bytes of {header.size}")
            array: NDArray[Any] = np.memmap(
                path, dtype=header.dtype, mode="r", offset=header.length, shape=header.shape, order=header.order
            )
        return StoredArray(
            name=path.name, shape=header.shape, dtype=header.dtype.newbyteorder("="), read=array.__getitem__
        )

    entry = ArrayEntry(shape=header.shape, kind=header.dtype.name, open=opened)
    return ArrayFile(path=path, entries={"": entry}, close=lambda: None)


class _Frugal(io.FileIO):
    """A file of which nobody reads much at once: zipfile reads the list of members whole, however long."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file does; None and -1 are only asked for near its end.

        Raises:
            ValueError: more than any list of members takes.
        """
        if size is not None and size > _READ_LIMIT:
            raise ValueError(f"a list of members of {size} bytes")
        return super().read(-1 if size is None else size) or b""


def _npz(path: Path, limit: int) -> ArrayFile:
    with contextlib.ExitStack() as opening:
        archive = opening.enter_context(zipfile.ZipFile(opening.enter_context(_Frugal(path))))
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(members) > _MEMBERS_LIMIT or len(set(names)) < len(names):
            raise SpectrumFileError(
                f"{path} must hold at most {_MEMBERS_LIMIT} arrays of different names, got {len(members)} with "
                f"{len(set(names))} names. Save the arrays again."
            )
        entries = {
            name: _member(path, archive, member, name, limit) for name, member in zip(names, members, strict=True)
        }
        return ArrayFile(path=path, entries=entries, close=opening.pop_all().close)


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, limit: int) -> ArrayEntry:
    """An array in a .npz: its header is read now, its data whole at the first use, for deflate has to start at its start."""
    if not member.filename.endswith(".npy"):
        return _no_array(path, name, "no array")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        return _no_array(path, name, "a member that is encrypted or neither stored nor deflated")
    what = f"{shown(name)}"
    with _damage(path, what), archive.open(member) as stream:
        header = _header(stream)

    @cache
    def whole() -> NDArray[Any]:
        with _damage(path, what), archive.open(member) as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            return array

    def opened() -> StoredArray:
        _check(path, name, header.shape, header.dtype, limit)
        with _damage(path, what):
            if member.file_size != header.size or member.file_size > _DEFLATE_RATIO * (member.compress_size + 1):
                raise ValueError(f"{header.size} bytes from {member.file_size} in {member.compress_size}")
        dtype = header.dtype.newbyteorder("=")
        return StoredArray(name=name, shape=header.shape, dtype=dtype, read=lambda part: whole()[part])

    return ArrayEntry(shape=header.shape, kind=header.dtype.name, open=opened)


def _no_array(path: Path, name: str, kind: str) -> ArrayEntry:
    """Something that is listed, and refused where its name asks for it."""

    def refused() -> StoredArray:
        raise SpectrumFileError(
            f"{path}: {shown(name)} must be an array in the file, got {kind}. Save the array itself."
        )

    return ArrayEntry(shape=(), kind=kind, open=refused)


# HDF5


def _hdf5(path: Path, limit: int) -> ArrayFile:
    heap = broken_heap(path)
    if heap is not None:
        raise ValueError(f"a broken text heap at byte {heap}")
    with contextlib.ExitStack() as opening:
        file = opening.enter_context(h5py.File(path, "r", locking="best-effort"))
        if "rankkit_schema" in file.attrs:
            raise SpectrumFileError(
                f"{path} must hold arrays of another tool, got a file that rankkit wrote. Measure it without --mask."
            )
        return ArrayFile(path=path, entries=dict(_entries(file, path, limit)), close=opening.pop_all().close)


def _entries(root: h5py.File, path: Path, limit: int) -> Iterator[tuple[str, ArrayEntry]]:
    """Every dataset and link, visited once, without reading data."""
    seen = {h5py.h5o.get_info(root["/"].id).addr}
    waiting: list[tuple[str, h5py.Group]] = [("", root)]
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            inner = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield inner, _no_array(path, inner, "a link")
                continue
            entry = group[name]
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _OBJECTS_LIMIT or inner.count("/") > _DEPTH_LIMIT:
                raise ValueError(f"more than {_OBJECTS_LIMIT} objects or {_DEPTH_LIMIT} levels")
            if isinstance(entry, h5py.Group):
                waiting.append((f"{inner}/", entry))
            elif isinstance(entry, h5py.Dataset):
                yield inner, _dataset(path, inner, entry, limit)


def _dataset(path: Path, name: str, dataset: h5py.Dataset, limit: int) -> ArrayEntry:
    if dataset.shape is None or dataset.id.get_type().get_class() not in (h5py.h5t.FLOAT, h5py.h5t.INTEGER):
        return _no_array(path, name, "no numbers")
    shape, dtype = dataset.shape, dataset.dtype

    def opened() -> StoredArray:
        _check(path, name, shape, dtype, limit)
        _check_storage(path, name, dataset)
        with _damage(path, shown(name)):
            guard = InflationGuard(dataset)

        def read(part: tuple[slice, ...]) -> NDArray[Any]:
            with _damage(path, shown(name)):
                guard.check(part)
                return np.asarray(dataset[part])

        return StoredArray(name=name, shape=shape, dtype=dtype.newbyteorder("="), read=read)

    return ArrayEntry(shape=shape, kind=dtype.name, open=opened)


def _check_storage(path: Path, name: str, dataset: h5py.Dataset) -> None:
    """Refuse a dataset whose values lie elsewhere, go through unknown filters, or come in huge chunks."""
    with _damage(path, shown(name)):
        plan = dataset.id.get_create_plist()
        elsewhere = plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count()
        filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
        chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if elsewhere:
        raise SpectrumFileError(
            f"{path}: {shown(name)} must hold its values, got a view of other files. Copy the values into this file."
        )
    if not filters <= _FILTERS:
        raise SpectrumFileError(
            f"{path}: {shown(name)} must be plain or use gzip, lzf, shuffle and fletcher32 only, got filters "
            f"{sorted(filters - _FILTERS)}. Copy it with h5repack -f GZIP=1."
        )
    if chunk > _CHUNK_LIMIT:
        raise SpectrumFileError(
            f"{path}: {shown(name)} must have chunks of at most {_CHUNK_LIMIT} bytes, got {chunk}. Copy it with h5repack -l."
        )
