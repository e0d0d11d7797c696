"""Files that no reading may touch, and the watch over them; and over every file that Python opens.

Hostile files name OUTSIDE_FILE and OUTSIDE_BYTES, which lie beside them. Linux tells (inotify) whether anyone opened
those two, in Python or in HDF5; an audit hook tells which files, programs and sockets Python itself opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

__all__ = ["MARK", "OUTSIDE_BYTES", "OUTSIDE_FILE", "PARTNER", "Watch", "write_outside"]

OUTSIDE_FILE = "outside.h5"
"""An HDF5 file, for external links and virtual datasets; a relative name, so that a seed gives the same bytes anywhere."""
OUTSIDE_BYTES = "outside.bin"
"""Bytes, for external storage."""
PARTNER = "partner.h5"
"""A finished file to merge with, which may be read."""
MARK = "CANARY"
"""What both hold, and nothing that is printed or written may."""

_EVENT = struct.Struct("iIII")  # of inotify: watch, mask, cookie, length of the name
_OPENED, _READ = 0x20, 0x01  # IN_OPEN, IN_ACCESS
_FORBIDDEN = {
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
}
_LIBRARIES = (
    "/usr/lib",
    "/lib",
    "/usr/share",
    "/usr/local/lib",
    "/etc/mime",
    "/proc/self",
    "/proc/cpuinfo",
    "/dev/null",
)


def write_outside(folder: Path) -> None:
    """Put the two files into a folder."""
    (folder / OUTSIDE_BYTES).write_bytes(MARK.encode() * 4096)
    with h5py.File(folder / OUTSIDE_FILE, "w") as file:
        file["x"] = np.frombuffer(MARK.encode() * 4096, dtype="<f8")
        file["text"] = MARK


class Watch:
    """Tells of every file that was opened though it should not have been.

    Args:
        folder: holds the two files; everything else in it may be opened.
    """

    def __init__(self, folder: Path) -> None:
        paths = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), *sysconfig.get_paths().values()}
        self._allowed = tuple({str(folder), *paths, *(str(Path(path).resolve()) for path in paths), *_LIBRARIES})
        self._seen: list[str] = []
        self._watching = False
        self._inotify = _inotify([folder / OUTSIDE_FILE, folder / OUTSIDE_BYTES])
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Watch while the context lasts.

        Yields:
            What was opened, filled when the context ends.
        """
        found: list[str] = []
        self._canaries()
        self._watching = True
        try:
            yield found
        finally:
            self._watching = False
            found += self._seen + self._canaries()
            self._seen.clear()

    def _canaries(self) -> list[str]:
        """Which events there were since the last call."""
        try:
            data = os.read(self._inotify, 1 << 16)
        except BlockingIOError:
            return []
        return [f"a file beside the case was touched (event {_EVENT.unpack_from(data)[1]:#x})"]

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in _FORBIDDEN:
            self._seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - Path would audit again
            if not path.startswith(self._allowed) or path.endswith((OUTSIDE_FILE, OUTSIDE_BYTES)):
                self._seen.append(f"open {path}")


def _inotify(paths: list[Path]) -> int:
    """A descriptor on which the kernel tells of every opening and reading of some files."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    for path in paths:
        if descriptor < 0 or library.inotify_add_watch(descriptor, os.fsencode(path), _OPENED | _READ) < 0:
            raise OSError(ctypes.get_errno(), "inotify must work: the fuzzer needs Linux", str(path))
    return int(descriptor)
