"""NumPy's own files, .npy and .npz: no pickle is loaded, and nothing is unpacked to the disk."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError
from rankkit.store.arrays.stored import ArrayEntry, ArrayFile, StoredArray, check, damage, no_array, shown

__all__ = ["open_npy", "open_npz"]

_AXES_LIMIT = 64  # as NumPy 2 has
_DIMENSION_LIMIT = 1 << 40  # entries along one axis; keeps products of hostile shapes short enough to print
_MEMBERS_LIMIT = 1000  # arrays in one .npz
_READ_LIMIT = 1 << 20  # bytes asked of a .npz at a time; larger is only a list of members that nobody writes
_DEFLATE_RATIO = 1032  # deflate makes nothing smaller than by this: zlib's manual


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
    if len(shape) > _AXES_LIMIT or not all(0 <= size <= _DIMENSION_LIMIT for size in shape):
        raise ValueError("a shape that no array has")
    return _Header(
        shape=tuple(map(int, shape)), dtype=dtype, order="F" if fortran else "C", length=stream.tell()
    )  # fmt: skip


def open_npy(path: Path, limit: int) -> ArrayFile:
    """One array, mapped into memory when it is opened.

    Args:
        path: what numpy.save wrote.
        limit: bytes that one array may take in memory.

    Returns:
        What it holds; only headers are read.

    Raises:
        ValueError: it is damaged; and whatever else `stored_arrays.damage` turns into a `SpectrumFileError`.
    """
    with path.open("rb") as stream:
        header = _header(stream)

    def opened() -> StoredArray:
        check(path, "", header.shape, header.dtype, limit)
        with damage(path, "the array"):
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


def open_npz(path: Path, limit: int) -> ArrayFile:
    """Several arrays.

    Args:
        path: what numpy.savez or numpy.savez_compressed wrote.
        limit: bytes that one array may take in memory.

    Returns:
        What it holds; only headers are read.

    Raises:
        SpectrumFileError: it holds too many members, or two of one name.
        ValueError: it is damaged; and whatever else `stored_arrays.damage` turns into a `SpectrumFileError`.
    """
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
        return no_array(path, name, "no array")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        return no_array(path, name, "a member that is encrypted or neither stored nor deflated")
    what = f"{shown(name)}"
    with damage(path, what), archive.open(member) as stream:
        header = _header(stream)

    @cache
    def whole() -> NDArray[Any]:
        with damage(path, what), archive.open(member) as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            return array

    def opened() -> StoredArray:
        check(path, name, header.shape, header.dtype, limit)
        with damage(path, what):
            if member.file_size != header.size or member.file_size > _DEFLATE_RATIO * (member.compress_size + 1):
                raise ValueError(f"{header.size} bytes from {member.file_size} in {member.compress_size}")
        dtype = header.dtype.newbyteorder("=")
        return StoredArray(name=name, shape=header.shape, dtype=dtype, read=lambda part: whole()[part])

    return ArrayEntry(shape=header.shape, kind=header.dtype.name, open=opened)
