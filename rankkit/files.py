"""Files that are whole or absent, and the layout of a run directory.

Everything that outlives a process is written beside its final name, flushed to the disk, and renamed in
one step; a reader sees the old file or the new one. Append-only logs may end in a torn line, which
`read_json_lines` skips.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankkit.errors import OutputExistsError, RunError, StorageError

__all__ = [
    "RunDirectory",
    "append_json_line",
    "atomic_directory",
    "check_output_file",
    "check_output_folder",
    "exclusive",
    "fsync_file",
    "fsync_folder",
    "keep_json_lines",
    "lock",
    "make_folder",
    "read_json_lines",
    "remove_abandoned",
    "remove_partial",
    "sha256_of_file",
    "storage_errors",
    "temporary_file",
    "write_atomically",
    "write_json",
    "write_text",
]

_HASH_BLOCK = 1 << 20  # bytes read at a time: large enough for full disk speed, small beside any model
_PARTIAL = ".partial-"  # every unfinished file or folder carries this in its name
_FORMER = "-former"  # ends the name of a folder that makes way, where names cannot be exchanged
_HERE, _EXCHANGE = -100, 2  # Linux: AT_FDCWD and RENAME_EXCHANGE


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into one `StorageError` that names the path and the remedy.

    Args:
        path: what was being written; only used in the message.

    Raises:
        StorageError: no space left, over quota, read-only, not permitted, or an input/output error.
    """
    remedies = {
        errno.ENOSPC: "Free some space or choose another folder with --out",
        errno.EFBIG: "Choose another folder with --out, on a file system that takes files of that size",
        errno.EDQUOT: "Free some of your quota or choose another folder with --out",
        errno.EROFS: "Choose a writable folder with --out",
        errno.EACCES: "Choose a folder you may write to with --out",
        errno.EPERM: "Choose a folder you may write to with --out",
        errno.EIO: "Check the disk",
        errno.ENOTDIR: "A parent of this path is a file; choose another path",
        errno.ENOENT: "This place cannot hold files; choose another path",
        errno.EEXIST: "Something else has that name; choose another path",
        errno.EBUSY: "A disk is mounted here; choose a folder inside it",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        reason = os.strerror(error.errno).lower()
        raise StorageError(
            f"{path} must be writable, got: {reason}. {remedies[error.errno]}. What was saved before is intact."
        ) from error


def fsync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: until then a power loss may undo a new file or a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Bring what a file holds to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder, and those on the way to it, each with its name on the disk; nothing where it is there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        fsync_folder(folder.parent)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it its name in one step.

    Args:
        path: the final name; an existing file is replaced only by a finished one.
        write: called with the temporary path; must leave a complete file there.

    Raises:
        StorageError: the file system refused; `path` is then as it was.
    """
    with storage_errors(path):
        make_folder(path.parent)
        descriptor, temporary = temporary_file(path)
        try:
            write(temporary)
            fsync_file(temporary)
            temporary.chmod(0o644)  # mkstemp gives 0600, which hides results from colleagues
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        fsync_folder(path.parent)


def temporary_file(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, in its place what killed processes left of such files.

    Returns:
        A descriptor to read and write, whose lock says until it is closed that the file is in use; and its name.

    Raises:
        OSError: the file system refuses.
    """
    remove_abandoned(path)
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{_PARTIAL}")
        if _is_held(descriptor, Path(name)):
            return descriptor, Path(name)
        os.close(descriptor)


def _temporary_folder(path: Path) -> tuple[int, Path]:
    """The same for a folder."""
    remove_abandoned(path)
    while True:
        name = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{_PARTIAL}")
        descriptor = os.open(name, os.O_RDONLY)
        if _is_held(descriptor, Path(name)):
            return descriptor, Path(name)
        os.close(descriptor)


def _is_held(descriptor: int, temporary: Path) -> bool:
    """Lock something temporary; false where another process took it for abandoned before that."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, because HDF5 locks what it reads
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks, and then nobody takes anything for abandoned
        return True
    return temporary.exists()


def remove_abandoned(path: Path) -> None:
    """Delete what killed processes left of `path` under temporary names; what is locked is in use."""
    for entry in path.parent.glob(f".{glob.escape(path.name)}{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(entry, path)
            finally:
                os.close(descriptor)


def _clear(temporary: Path, path: Path) -> None:
    """Delete what was to become `path`; what had made way for it gets its name back where it is all that there is."""
    if temporary.name.endswith(_FORMER) and not path.exists():
        temporary.replace(path)
    elif temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: object) -> None:
    """Write one JSON document atomically, with sorted keys so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when everything in it is on the disk.

    Args:
        path: the final name; an existing folder of that name, or the one that it links to, is replaced at the end.

    Yields:
        A temporary sibling folder to fill.

    Raises:
        StorageError: the file system refused; `path` is then as it was.
    """
    with storage_errors(path):
        path = path.resolve()
        make_folder(path.parent)
        descriptor, temporary = _temporary_folder(path)
        former = temporary.with_name(f"{temporary.name}{_FORMER}")
        try:
            temporary.chmod(0o755)  # mkdtemp gives 0700
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                if entry.is_dir():
                    fsync_folder(entry)
                elif entry.is_file():
                    fsync_file(entry)
            fsync_folder(temporary)
            if not path.exists():
                temporary.replace(path)
            elif not _exchange(temporary, path):
                path.replace(former)
                temporary.replace(path)
        except BaseException:
            if former.exists() and not path.exists():
                former.replace(path)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)
        try:
            fsync_folder(path.parent)
        finally:
            for old in (temporary, former):
                shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; returns whether this system and file system can.

    Two renames would leave a moment in which neither folder has the name.

    Raises:
        OSError: the file system refuses.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # not Linux
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def remove_partial(folder: Path) -> None:
    """Delete what killed processes left unfinished directly inside `folder`.

    A folder that had already made way for one that never came gets its name back.
    """
    for entry in folder.glob(f".*{_PARTIAL}*"):
        _clear(entry, folder / entry.name[1:].partition(_PARTIAL)[0])


def append_json_line(path: Path, value: object) -> None:
    """Append one JSON object as one line, in a single write that is flushed to the operating system."""
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, sort_keys=True, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read an append-only log; a torn last line is skipped, a missing file is empty.

    Raises:
        RunError: a line before the last one is not JSON.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last newline is nothing, or torn
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            objects.append(json.loads(line))
        except ValueError as error:
            raise RunError(
                f"{path} line {number} must be one JSON object, got {line[:40].decode(errors='replace')!r}. "
                "Restore the file or delete that line."
            ) from error
    return objects


def keep_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a log with only the objects that `keep` accepts; used when a run steps back to a checkpoint."""
    kept = [json.dumps(value, sort_keys=True) + "\n" for value in read_json_lines(path) if keep(value)]
    write_text(path, "".join(kept))


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_output_file(path: Path, *, force: bool) -> None:
    """Refuse an output file that exists, unless `force` is given.

    Raises:
        OutputExistsError: `path` exists and `force` is false, or it is a folder.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path} must be the name of a file, got a folder. Choose another --out.")
    if path.exists() and not force:
        raise OutputExistsError(f"{path} must not exist yet. Add --force to replace it, or choose another --out.")


def check_output_folder(path: Path, *, force: bool) -> None:
    """Refuse an output folder that exists, unless `force` is given and it is ours to replace.

    Only an empty folder or one with a `run.toml` is ever replaced: `--force --out ~` must not cost a home.

    Raises:
        OutputExistsError: `path` exists and `force` is false, or it is not a run, or this process stands in it.
    """
    if path.resolve() == Path.cwd():
        raise OutputExistsError(f"{path} must not be the folder that you are in. Name a new one with --out.")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    is_run = (path / RunDirectory.configuration_name).is_file()
    if not force:
        remedy = "Add --force to replace it, or choose another --out"
        if is_run:
            remedy = f"Go on with it by --resume {path}, choose another --out, or replace it with --force"
        raise OutputExistsError(f"{path} must not exist yet. {remedy}.")
    if not is_run:
        raise OutputExistsError(
            f"{path} must be a rankkit run to be replaced, got something without "
            f"{RunDirectory.configuration_name}. Choose another --out."
        )


def lock(descriptor: int, what: str) -> None:
    """Take the lock of an open file; it ends with the descriptor, so with the process, however that ends.

    Args:
        descriptor: open, not shared with another process.
        what: is being written; only used in the message.

    Raises:
        RunError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(f"{what} must not be in use, but another rankkit process is writing it. Wait for it.") from error


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file while a run is being written; the lock ends with the process, however it ends.

    Raises:
        RunError: another process holds it.
    """
    with storage_errors(path):
        make_folder(path.parent)
        file = path.open("w", encoding="utf-8")
    with file:
        lock(file.fileno(), what)
        yield


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Where everything in a run directory lives.

    RUN/run.toml  certificate.json  tokenizer.json  spectrum.h5  figures/  report.html
    RUN/tokens/{train,validation}.npy
    RUN/ARM/seed-0/metrics.jsonl  evaluation.json
    RUN/ARM/seed-0/step-000500/{model.safetensors,training.pt,checkpoint.json}
    """

    path: Path
    """The run directory itself."""

    configuration_name = "run.toml"

    @property
    def configuration(self) -> Path:
        """The resolved configuration, versions and command line."""
        return self.path / self.configuration_name

    @property
    def certificate(self) -> Path:
        """The proof of the match."""
        return self.path / "certificate.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that made the token ids."""
        return self.path / "tokenizer.json"

    @property
    def tokens(self) -> Path:
        """The folder of token ids."""
        return self.path / "tokens"

    @property
    def figures(self) -> Path:
        """The folder of pictures."""
        return self.path / "figures"

    @property
    def spectrum(self) -> Path:
        """The measured spectra."""
        return self.path / "spectrum.h5"

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.path / "report.html"

    def initial_weights(self, seed: int) -> Path:
        """A copy of the trained weights that all arms of a seed begin with, in a run that goes on from another."""
        return self.path / "initial" / f"seed-{seed}.safetensors"

    def unit(self, arm: str, seed: int) -> Path:
        """The folder of one arm under one seed."""
        return self.path / arm / f"seed-{seed}"

    def metrics(self, arm: str, seed: int) -> Path:
        """The append-only log of one arm under one seed."""
        return self.unit(arm, seed) / "metrics.jsonl"

    def evaluation(self, arm: str, seed: int) -> Path:
        """The final evaluation of one arm under one seed."""
        return self.unit(arm, seed) / "evaluation.json"

    def checkpoint(self, arm: str, seed: int, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.unit(arm, seed) / f"step-{step:06d}"

    def checkpoint_steps(self, arm: str, seed: int) -> list[int]:
        """The steps that have a finished checkpoint, ascending."""
        folders = self.unit(arm, seed).glob("step-*")
        return sorted(int(folder.name.removeprefix("step-")) for folder in folders if folder.name[5:].isdigit())
