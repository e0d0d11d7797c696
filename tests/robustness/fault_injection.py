"""One command with one fault, and what came of it."""

from __future__ import annotations

import contextlib
import os
import platform
import select
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Final

from robustness.fault_command import FILES_ONLY, become, redirect

__all__ = ["NO_FAULT", "Call", "Ended", "Fault", "Injector", "build_shim", "read_log", "why_no_shim"]

SOURCE: Final = Path(__file__).with_name("fault_shim.c")
_STATE: Final = "3i"  # `struct state` of the shim: calls, fired, full
_LONGEST: Final = 120.0  # seconds that a command of these takes at most; it hangs if it takes longer
_CLASSES: Final = {
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "sendfile"), "write"),
    **dict.fromkeys(("fsync", "fdatasync"), "fsync"),
    **dict.fromkeys(("rename", "renameat", "renameat2"), "rename"),
    **dict.fromkeys(("open", "openat", "mkdir", "mkdirat", "ftruncate", "truncate", "fallocate"), "create"),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), "remove"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong."""

    kind: str
    """`none`; `kill`, `torn`, `die`, `full`, `ENOSPC` or `EIO` at a call, as fault_shim.c has them; `moment`, a kill."""
    call: int = 0
    """Which call, from 1; 0 where it is a moment."""
    seconds: float = 0.0
    """The moment, after the start."""

    @property
    def is_kill(self) -> bool:
        """Whether the process has no chance to say anything."""
        return self.kind in ("kill", "torn", "die", "moment")

    @property
    def order(self) -> str:
        """FAULT_KIND."""
        errors = {"ENOSPC": "28", "EIO": "5", "moment": "none", "none": "none"}
        return errors.get(self.kind, self.kind)

    def __str__(self) -> str:
        """Such as `EIO at call 12`."""
        return f"kill after {self.seconds:.3f} s" if self.kind == "moment" else f"{self.kind} at call {self.call}"


NO_FAULT: Final = Fault("none")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call on a file below the folder."""

    number: int
    """From 1."""
    name: str
    bytes: int
    """To write; 0 for other calls."""
    offset: int
    """Where they go, if the call says it."""
    path: str
    """What it changes, relative to the folder."""
    target: str
    """The new name, where it renames; relative to the folder."""

    @property
    def kind(self) -> str:
        """`write`, `fsync`, `rename`, `create`, `remove` or `other`."""
        return _CLASSES.get(self.name, "other")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command came to its end."""

    status: int
    """Exit code; negative: the signal that ended it."""
    errors: str
    """Its stderr."""
    calls: int
    """System calls made, the one with the fault among them."""
    fired: bool
    """Whether the fault happened."""
    hung: bool
    """Whether it had to be ended."""


def why_no_shim() -> str | None:
    """Why faults cannot be injected on this machine; None where they can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return "system calls are trapped on Linux, x86_64 and aarch64"
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        return "there is no C compiler"
    return None


def build_shim(folder: Path) -> Path:
    """Compile fault_shim.c."""
    library = folder / "fault_shim.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, why_no_shim()
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    return library


@dataclass(frozen=True, slots=True, kw_only=True)
class Injector:
    """Runs commands of rankkit in `scratch/place`, one at a time."""

    shim: Path
    scratch: Path
    """Holds `place`, the folder whose calls count, and what is known of the last command beside it."""

    @property
    def place(self) -> Path:
        """Where commands work."""
        return self.scratch / "place"

    def run(
        self,
        arguments: Sequence[str],
        fault: Fault | None,
        *,
        log: bool = False,
        fresh: bool = False,
        pictures: bool = False,
    ) -> Ended:
        """Run a command to its end.

        Args:
            arguments: of rankkit.
            fault: None to leave the shim out altogether.
            log: keep the calls for `read_log`.
            fresh: start a new interpreter, as a user does, instead of forking this one.
            pictures: draw figures.
        """
        (self.scratch / "state").write_bytes(bytes(struct.calcsize(_STATE)))
        environment = {} if pictures else {FILES_ONLY: "1"}
        if fault is not None:
            environment |= {
                "FAULT_FOLDER": str(self.place),
                "FAULT_STATE": str(self.scratch / "state"),
                "FAULT_AT": str(fault.call),
                "FAULT_KIND": fault.order,
                "LD_PRELOAD": str(self.shim),
            }
            if log:
                (self.scratch / "log").write_bytes(b"")
                environment["FAULT_LOG"] = str(self.scratch / "log")
        sys.stdout.flush()
        pid = self._spawn(arguments, environment) if fresh else self._fork(arguments, environment, fault)
        status, hung = _wait(pid, fault)
        calls, fired, _ = struct.unpack(_STATE, (self.scratch / "state").read_bytes())
        errors = (self.scratch / "stderr").read_text(encoding="utf-8", errors="replace")
        fired = bool(fired) or (fault is not None and fault.kind == "moment" and status == -signal.SIGKILL)
        return Ended(status, errors, calls, fired, hung)

    def _fork(self, arguments: Sequence[str], environment: dict[str, str], fault: Fault | None) -> int:
        pid = os.fork()
        if pid == 0:
            refused = fault not in (None, NO_FAULT) and not fault.is_kill
            shim = self.shim if fault is not None else None
            become(arguments, folder=self.place, environment=environment, shim=shim, to_the_end=refused)
        return pid

    def _spawn(self, arguments: Sequence[str], environment: dict[str, str]) -> int:
        tests = str(Path(__file__).parent.parent)
        command = [sys.executable, "-m", "robustness.fault_command", *arguments]
        pid = os.fork()
        if pid == 0:
            redirect(self.place)
            os.execve(command[0], command, {**os.environ, "PYTHONPATH": tests, **environment})
        return pid


def _wait(pid: int, fault: Fault | None) -> tuple[int, bool]:
    """Wait for a child and its whole group; returns the status and whether it hung."""
    patience = fault.seconds if fault is not None and fault.kind == "moment" else _LONGEST
    waiter = os.pidfd_open(pid)
    try:
        ended = bool(select.select([waiter], [], [], patience)[0])
    finally:
        os.close(waiter)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _end_group(pid)
    return status, not ended and patience == _LONGEST


def _end_group(leader: int) -> None:
    """Kill what is left of a group, and wait until it writes no more."""
    for _ in range(200):
        try:
            os.killpg(leader, signal.SIGKILL)
        except ProcessLookupError:
            return
        with contextlib.suppress(ChildProcessError):  # orphans come to us if we are their reaper, else to process 1
            os.waitpid(-leader, os.WNOHANG)
        sleep(0.01)


def read_log(scratch: Path, place: Path) -> list[Call]:
    """The calls of the last command that was run with a log, in their order."""

    def relative(path: str) -> str:
        return os.path.relpath(path.removesuffix(" (deleted)"), place) if path else ""

    calls = []
    for line in (scratch / "log").read_text(encoding="utf-8").splitlines():
        number, name, size, offset, path, target = line.split("\t")
        calls.append(Call(int(number), name, int(size), int(offset), relative(path), relative(target)))
    return sorted(calls, key=lambda call: call.number)
