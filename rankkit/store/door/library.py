"""The HDF5 library without its plugins, and its errors in our words.

Importing this module sets HDF5_PLUGIN_PRELOAD to "::", unless it is set already, before h5py is imported: HDF5 then
loads no filter plugin from anywhere. It is the only side effect of importing rankkit.store.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rankkit.errors import SpectrumFileError

os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")
import h5py  # after the environment variable, which HDF5 reads when it is loaded

__all__ = ["damage", "h5py", "is_text", "refusal"]

# What h5py and zlib raise on a damaged file: h5py maps each class of HDF5's own errors to one of these.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, zlib.error)


@contextlib.contextmanager
def damage(path: str | Path, what: str) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into one line that names the file and the part.

    Args:
        path: the file.
        what: the part, in words.

    Raises:
        SpectrumFileError: instead of h5py's error.
    """
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise SpectrumFileError(
            f"{path}: {what} must be readable, got {reason!r}. The file is damaged or cut short; "
            "restore a copy of it or measure again."
        ) from error


def refusal(entry: h5py.File | h5py.Group | h5py.Dataset, name: str, must: str, found: object) -> SpectrumFileError:
    """The error to raise for what no version of rankkit writes.

    Args:
        entry: anything in the file.
        name: of the part.
        must: the condition, without "must".
        found: what there is.
    """
    return SpectrumFileError(
        f"{entry.file.filename}: {name} must {must}, got {found}. Do not use this file; no version of rankkit writes such."
    )


def is_text(dtype: np.dtype[Any]) -> bool:
    """Whether this is the type of our texts: UTF-8 of variable length."""
    info = h5py.check_string_dtype(dtype)
    return info is not None and info.length is None and info.encoding == "utf-8"
