"""An HDF5 file under construction, beside its final name.

HDF5 does not survive a refused write: a dataset that cannot be flushed stays half-closed, and the process dies at exit
with a segmentation fault (HDF5 2.0.0, disk full while chunks were cached). So HDF5 writes to a `_Sink`, which never
refuses: it remembers the first refusal, keeps the rest in memory, and the error is raised here once HDF5 has returned.
For the same reason HDF5 runs in a thread of its own: Ctrl-C raises in the main thread only, never inside a write, nor in
one of h5py's weak references, where it would be lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rankkit.errors import StorageError
from rankkit.files import check_output_file, make_folder, storage_errors, temporary_file, write_atomically
from rankkit.store.door.hdf5 import h5py

__all__ = ["HDF5Output"]

Result = TypeVar("Result")

_LIBRARY_VERSIONS = ("v110", "v110")
"""Readable from HDF5 1.10 (2016) on. The 1.8 format has no checksum on the index of chunks: one flipped bit there changed
data in silence or crashed the reading process, where 1.10 reports damage, in a third of the space for small files."""


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn whatever the file system refuses into one `StorageError`."""
    try:
        with storage_errors(path):
            yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"{path} must be writable, got: {reason}. Choose another folder with --out. "
            "What was saved before is intact."
        ) from error


class _Sink:
    """A file that never refuses: after the first refusal it goes on in memory.

    Implements the file-like object that h5py's `fileobj` driver expects.
    """

    def __init__(self, descriptor: int) -> None:
        self.refusal: OSError | None = None
        self._descriptor = descriptor
        self._position = 0
        self._size = 0
        self._kept: list[tuple[int, bytes]] = []  # offset and bytes of what could not be written; read back if asked

    def abandon(self) -> None:
        """Stop writing: the file will be deleted."""
        self.refusal = self.refusal or OSError("abandoned")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def readinto(self, buffer: memoryview) -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._position, self._position + len(view)
        stored = os.pread(self._descriptor, len(view), start)
        view[: len(stored)] = stored
        view[len(stored) :] = bytes(len(view) - len(stored))
        for offset, data in self._kept:
            first, last = max(start, offset), min(stop, offset + len(data))
            if first < last:
                view[first - start : last - start] = data[first - offset : last - offset]
        self._position = stop
        return len(view)

    def write(self, buffer: memoryview) -> int:
        view = memoryview(buffer).cast("B")
        if self.refusal is None:
            try:
                self._write_through(view)
            except OSError as error:
                self.refusal = error
        if self.refusal is not None:
            self._kept.append((self._position, bytes(view)))
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def _write_through(self, view: memoryview) -> None:
        offset = self._position
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, size: int) -> int:
        if self.refusal is None:
            try:
                os.ftruncate(self._descriptor, size)
            except OSError as error:
                self.refusal = error
        self._size = size
        return size

    def flush(self) -> None:
        """Nothing is held back; the writer syncs to the disk once, at the end."""


class HDF5Output:
    """A new HDF5 file that gets its name only when it is whole.

    Call `discard` at the end in any case: after `finish` it has nothing left to do.

    Args:
        path: the final name.
        force: whether an existing file may be replaced, at the end and in one step.

    Raises:
        OutputExistsError: `path` exists and `force` is false, or is a folder.
        StorageError: the file system refuses.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        check_output_file(path, force=force)
        self._path = path
        self._partial: Path | None = None
        self._descriptor: int | None = None
        self._file: h5py.File | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rankkit-hdf5")
        self._thread.submit(int).result()  # starts the thread while there is nothing to clean up
        try:
            with _refusals(path):
                self._sink = self._thread.submit(self._begin).result()
        except BaseException:
            self.discard()
            raise

    def _begin(self) -> _Sink:
        make_folder(self._path.parent)
        self._descriptor, self._partial = temporary_file(self._path)
        return _Sink(self._descriptor)

    def run(self, work: Callable[[h5py.File], Result]) -> Result:
        """Let `work` write to the file, in the thread that owns it.

        Raises:
            StorageError: the file system refused a write.
        """
        future = self._thread.submit(lambda: work(self._opened()))
        error = future.exception()
        if self._sink.refusal is not None:
            with _refusals(self._path):
                raise self._sink.refusal
        if error is not None:
            raise error
        return future.result()

    def _opened(self) -> h5py.File:
        if self._file is None:
            self._file = h5py.File(self._sink, "w", libver=_LIBRARY_VERSIONS, track_order=True)
        return self._file

    def finish(self, check: Callable[[Path], None]) -> None:
        """Close the file, let `check` look at it, and give it its name.

        Args:
            check: called with the temporary name, in the file's thread; raises if the file is not whole.

        Raises:
            StorageError: the file system refused; what had the name before is as it was.
        """
        partial = self._partial
        assert partial is not None, "a constructed output has a temporary file"
        self.run(lambda file: file.close())
        self._thread.submit(check, partial).result()

        def take(temporary: Path) -> None:
            partial.replace(temporary)

        with _refusals(self._path):
            write_atomically(self._path, take)  # which syncs it to the disk before the name changes

    def discard(self) -> None:
        """Leave nothing behind; whatever had the name before is as it was, or is the finished file."""
        self._thread.submit(self._clean)
        self._thread.shutdown()  # waits; if that is interrupted, the thread still cleans up before the process ends

    def _clean(self) -> None:
        if self._file:  # an h5py file is true while it is open
            self._sink.abandon()
            with contextlib.suppress(OSError, RuntimeError):  # it is deleted next, whatever HDF5 thinks of it
                self._file.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
