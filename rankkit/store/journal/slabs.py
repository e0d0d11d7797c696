"""Finished slabs of a measurement that is not finished: an append-only file beside the one that it will write.

HDF5 does not survive being killed; a journal does. What `put` returned from outlives the process, however that ends. It
is synced to the disk by the first `put` that comes five seconds or more after the last sync, and on closing: a power loss
costs at most five seconds of finished work. How a damaged file is read stands in `records`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from numpy.typing import NDArray

from rankkit.errors import ConfigurationError, OutputExistsError, RunError, StorageError
from rankkit.files import check_output_file, fsync_folder, lock, storage_errors
from rankkit.store.journal.records import (
    Arrays,
    Header,
    Records,
    Scan,
    check_family,
    header_bytes,
    read_header,
    write_bytes,
)

__all__ = ["Journal", "journal_path"]

_SYNC_SECONDS: Final = 5.0  # work that a power loss may cost; a sync takes 10 ms on a disk, a slab often less
_SHOWN: Final = 60  # characters of a fact in a message
_NOTHING: Final = Scan({}, (), 0)


def journal_path(path: Path) -> Path:
    """Where the journal of an HDF5 file lies: beside it, under a name that tells whose the space is."""
    return path.with_name(f"{path.name}.journal")


class Journal:
    """Arrays by key, kept on disk as they are finished; for one process and one thread at a time.

    To be used as a context manager; memory holds the keys alone. Make one with `open`.
    """

    def __init__(self, path: Path, descriptor: int, header: Header, found: Scan) -> None:
        self._path = path
        self._descriptor: int | None = descriptor
        self._records = Records(descriptor, header)
        self._notes = MappingProxyType(dict(header.notes))
        self._positions = dict(found.positions)
        self._damaged = found.damaged
        self._end = max(header.end, found.end)
        self._synced = monotonic()

    @classmethod
    def open(
        cls,
        path: str | Path,
        facts: Mapping[str, str],
        *,
        resume: bool,
        force: bool,
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """Begin a journal, or continue what an interruption left. It stays locked until it is closed.

        One without a finished slab is begun again without asking: nothing is lost, and continuing it would be the same.

        Args:
            path: of the journal, see `journal_path`; its folder is made where it is missing.
            facts: everything that determines the numbers, by name: configuration, hashes of models, versions, threads.
            resume: continue an existing journal, which must have the same facts; begin where there is none.
            force: without `resume`, throw an existing journal away.
            notes: kept and not compared, such as the first command line; those of the beginning stay.

        Raises:
            OutputExistsError: there are finished slabs, and neither `resume` nor `force` is given; or it is a folder.
            ConfigurationError: a fact is not what it was.
            RunError: another process is writing it; it is not a journal, is of another version, or its header is damaged.
            StorageError: the file system refuses.
        """
        path = Path(path)
        with _refusals(path):
            descriptor = _locked(path)
            try:
                kept = _kept(descriptor, path, facts, resume=resume, force=force)
                header, found = kept or (_begun(descriptor, path, facts, notes), _NOTHING)
                return cls(path, descriptor, header, found)
            except BaseException:
                os.close(descriptor)
                raise

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    @property
    def notes(self) -> Mapping[str, str]:
        """Those of the beginning."""
        return self._notes

    @property
    def damaged(self) -> tuple[str, ...]:
        """What was stored and cannot be read: keys, or ranges of bytes where even the key is lost.

        Not in the journal, so that it is computed again, but worth a warning: a disk that changes bits will do so again. A
        torn end is no damage.
        """
        return self._damaged

    def __contains__(self, key: object) -> bool:
        return key in self._positions

    def __len__(self) -> int:
        return len(self._positions)

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep the arrays of one finished slab.

        Args:
            key: any text that is not in the journal yet.
            arrays: numbers of any type and shape, by name.

        Raises:
            ValueError: the key is taken, an array does not hold numbers, the slab is too large, or the journal is closed.
            StorageError: the file system refuses; the journal is then as it was before.
        """
        descriptor = self._opened()
        if key in self:
            raise ValueError(f"key must be new, got {key!r} again. Ask whether it is in the journal.")
        pieces, position = self._records.encode(self._end, key, arrays), self._end
        with _refusals(self._path, self):
            try:
                for piece in pieces:
                    position = write_bytes(descriptor, piece, position)
                if monotonic() - self._synced >= _SYNC_SECONDS:
                    self._sync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):  # what stays is overwritten by the next one, or cut off as torn
                    os.ftruncate(descriptor, self._end)
                raise
        self._end, self._positions[key] = (
            position,
            self._end,
        )  # the end first: an interrupt between leaves a spare record

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of one slab, bit for bit, in the order and with the types and shapes that `put` got; C-contiguous.

        Returns:
            New arrays; None where the key is not in the journal.

        Raises:
            ValueError: the journal is closed.
            StorageError: the file system refuses, or the slab was damaged since the journal was opened.
        """
        self._opened()
        position = self._positions.get(key)
        if position is None:
            return None
        with _refusals(self._path, self):
            found = self._records.arrays(position, key)
        if found is None:
            raise StorageError(
                f"{self._path} must stay as it is while it is open, got a damaged slab {key!r}. Check the disk, and "
                "add --resume to the same command: that slab is measured again."
            )
        return found

    def discard(self) -> None:
        """Delete and close it: what it held has its place.

        Raises:
            StorageError: the file system refuses.
        """
        descriptor, self._descriptor = self._opened(), None
        try:
            with storage_errors(self._path):
                self._path.unlink(missing_ok=True)
                fsync_folder(self._path.parent)
        finally:
            os.close(descriptor)  # only now may another process take the name

    def close(self) -> None:
        """Bring all of it to the disk and let others open it; nothing where it is closed.

        Raises:
            StorageError: the file system refuses.
        """
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with _refusals(self._path, self):
            try:
                self._sync(descriptor)
            finally:
                os.close(descriptor)

    def __enter__(self) -> Self:
        """Nothing to do: `open` did it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; an error that is on its way stays the one that is raised."""
        try:
            self.close()
        except StorageError as refusal:
            if error is None:
                raise
            error.add_note(str(refusal))

    def _opened(self) -> int:
        if self._descriptor is None:
            raise ValueError("Journal must be open, got a closed one. Use it inside its with block.")
        return self._descriptor

    def _sync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self._synced = monotonic()


@contextlib.contextmanager
def _refusals(path: Path, journal: Journal | None = None) -> Iterator[None]:
    """Turn whatever the file system refuses into one `StorageError` that says what is kept."""
    kept = "" if journal is None else f" {_slabs(len(journal))} kept: add --resume to the same command to continue."
    try:
        with storage_errors(path):
            yield
    except StorageError as error:
        raise StorageError(f"{error}{kept}") from error.__cause__
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"{path} must be readable and writable, got: {reason}. Choose another folder with --out.{kept}"
        ) from error


def _slabs(count: int) -> str:
    return "1 finished slab is" if count == 1 else f"{count} finished slabs are"


def _locked(path: Path) -> int:
    """Open and lock the file that has the name, which another process may be deleting."""
    check_output_file(path, force=True)  # a folder
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RunError(f"{path} must be a rankkit journal, got no plain file. Choose another --out.")
            lock(descriptor, f"journal {path}")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _kept(
    descriptor: int, path: Path, facts: Mapping[str, str], *, resume: bool, force: bool
) -> tuple[Header, Scan] | None:
    """What an interruption left, without a torn end; None where there is nothing to continue."""
    check_family(descriptor, path)
    header = None if force and not resume else read_header(descriptor, path)
    if header is None:
        return None
    found = Records(descriptor, header).scan(header.end)
    if not found.positions:
        return None
    if not resume:
        raise OutputExistsError(
            f"{path} must not exist yet, got one of an interrupted measurement: {_slabs(len(found.positions))} kept. Add "
            "--resume to continue it, or --force to begin again."
        )
    _check_facts(path, header, facts)
    os.ftruncate(descriptor, found.end)
    return header, found


def _check_facts(path: Path, header: Header, facts: Mapping[str, str]) -> None:
    begun, command = header.facts, header.notes.get("command")
    first = f" It was begun by: {command}" if command else ""
    for name in {**facts, **begun}:
        then, now = begun.get(name, ""), facts.get(name, "")
        if then != now:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(then, now, strict=False)))
            start = max(0, same - _SHOWN // 3)
            raise ConfigurationError(
                f"{name} must be what it was when {path} was begun, {_excerpt(then, start)}, got {_excerpt(now, start)}. "
                f"Change it back to continue, or add --force without --resume to begin again.{first}"
            )


def _excerpt(text: str, start: int) -> str:
    shown = text[start : start + _SHOWN]
    return f"{'...' if start else ''}{shown!r}{'...' if start + _SHOWN < len(text) else ''}"


def _begun(descriptor: int, path: Path, facts: Mapping[str, str], notes: Mapping[str, str]) -> Header:
    """An empty journal with its name, on the disk; where that fails, no journal."""
    content = header_bytes(facts, notes)
    try:
        os.ftruncate(descriptor, 0)
        write_bytes(descriptor, content, 0)
        os.fsync(descriptor)
        fsync_folder(path.parent)
        header = read_header(descriptor, path)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    assert header is not None, "it was just written"
    return header
