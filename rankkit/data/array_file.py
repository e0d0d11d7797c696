"""A one-dimensional .npy file whose length is known only at its end, written in bounded memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["ArrayWriter"]


class ArrayWriter:
    """Appends to a .npy file; on a clean exit the header is rewritten with the length.

    Little-endian on every machine, so that equal tokens give equal files.

    Args:
        path: of the file; replaced.
        dtype: of the elements; an appended array must fit it.
    """

    def __init__(self, path: Path, dtype: np.dtype[np.generic]) -> None:
        self._file = path.open("wb")
        self._dtype = dtype.newbyteorder("<")
        self.size = 0
        """Elements appended so far."""
        self._write_header()
        self._header_bytes = self._file.tell()

    def _write_header(self) -> None:
        npy.write_array_header_1_0(
            self._file, {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.size,)}
        )

    def append(self, values: NDArray[np.generic], /) -> None:
        """Append a one-dimensional array whose values fit the file's dtype."""
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.size += values.size

    def __enter__(self) -> ArrayWriter:
        """Open already; here for `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the length into the header and close."""
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()
                assert self._file.tell() == self._header_bytes  # NumPy pads headers so that a length can grow in place
