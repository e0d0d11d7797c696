"""Arrays in other people's files, before and after a look at what they declare."""

from __future__ import annotations

import contextlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import SpectrumFileError

__all__ = ["ArrayEntry", "ArrayFile", "StoredArray", "check", "damage", "no_array", "shown"]

_FLOATS: Final = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_SHOWN = 40  # characters of a name from a file in a message

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


def no_array(path: Path, name: str, kind: str) -> ArrayEntry:
    """Something that is listed, and refused where its name asks for it."""

    def refused() -> StoredArray:
        raise SpectrumFileError(
            f"{path}: {shown(name)} must be an array in the file, got {kind}. Save the array itself."
        )

    return ArrayEntry(shape=(), kind=kind, open=refused)


def shown(name: str) -> str:
    """A name from a file, quoted, without control characters and short."""
    return repr(name[:_SHOWN])


@contextlib.contextmanager
def damage(path: Path, what: str) -> Iterator[None]:
    """Turn what readers raise on a damaged file into one line that names the file and the part."""
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise SpectrumFileError(
            f"{path}: {what} must be readable, got {reason!r}. The file is damaged or cut short; make it again."
        ) from error


def check(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], limit: int) -> None:
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
