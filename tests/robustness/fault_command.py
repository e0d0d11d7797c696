"""rankkit's command line on a clock that stands still, so that two files of one content have the same bytes.

In a process of its own: `python -m robustness.fault_command spectrum RUN ...`; or in a child that was forked from a
process which has imported everything, without the seconds that importing takes.
"""

from __future__ import annotations

import datetime
import functools
import gc
import importlib
import itertools
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["FILES_ONLY", "become", "import_all", "main", "redirect"]

FILES_ONLY = "FAULT_FILES_ONLY"
"""Set in the environment, it leaves out figures, and tables read from a finished file: they take longer than the rest of a
small run."""


class StillClock(datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> StillClock:
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)


def import_all() -> None:
    """Import everything that a command could import."""
    import rankkit

    for found in pkgutil.walk_packages(rankkit.__path__, "rankkit."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    module = sys.modules["rankkit.training.environment"]
    module.version = functools.cache(version)  # type: ignore[attr-defined]  # a third of the time of a small run
    module._source_hash()  # the code is that of now, whoever edits it meanwhile
    gc.collect()
    gc.freeze()  # what is shared with every child is not walked through when each ends, which takes a second


def _stop_clocks() -> None:
    """Every time of day is the same one, and every look at a clock takes a second, whatever the machine has to do."""
    seconds = itertools.count()
    for name, module in list(sys.modules.items()):
        if name.startswith("rankkit") and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = StillClock  # type: ignore[attr-defined]
        if name.startswith("rankkit") and getattr(module, "monotonic", None) is time.monotonic:
            module.monotonic = lambda: float(next(seconds))  # type: ignore[attr-defined]


def _leave_out_what_is_shown() -> None:
    from rankkit.cli import measuring
    from rankkit.report import functional_figures, run_figures

    def draw_nothing(*_: Any, **__: Any) -> list[Path]:
        return [Path("none.png"), Path("none.svg")]

    for module, name in ((run_figures, "draw_losses"), (run_figures, "draw_spectra"),
                         (functional_figures, "draw_functional_rank")):  # fmt: skip
        setattr(module, name, draw_nothing)
    measuring._show = lambda *_: {"statuses": {"gpt": {"ok": 1, "failed": 0}}}


def main(arguments: Sequence[str]) -> int:
    """Run a command of rankkit; returns its exit code."""
    from rankkit.cli import main as rankkit_main

    _stop_clocks()
    if os.environ.get(FILES_ONLY):
        _leave_out_what_is_shown()
    sys.argv = ["rankkit", *arguments]
    try:
        rankkit_main(list(arguments), prog_name="rankkit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def redirect(folder: Path) -> None:
    """Give this process a group of its own, a folder to work in, and files beside it for what it says."""
    os.setsid()  # a fault can kill the group whole
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(folder.with_name(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)


def become(
    arguments: Sequence[str], *, folder: Path, environment: dict[str, str], shim: Path | None, to_the_end: bool
) -> NoReturn:
    """Turn this forked child into the command.

    Args:
        arguments: of rankkit.
        folder: to work in; standard output and error go to the files `stdout` and `stderr` beside it.
        environment: added to that of the process.
        shim: library to arm, which reads its orders from the environment.
        to_the_end: whether the interpreter and the libraries finish as they do for users, which takes a while; HDF5 has
            crashed there after a refused write.
    """
    import ctypes

    redirect(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, os.fdopen(number, "w", closefd=False))
    os.environ.update(environment)
    try:
        if shim is not None:
            ctypes.CDLL(str(shim))
        code = main(arguments)
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - the child must not go on as its parent
        traceback.print_exc()
        code = 70
    sys.stderr.flush()
    if not to_the_end:
        os._exit(code)
    ctypes.pythonapi.Py_Exit(code)
    raise AssertionError("the interpreter has ended")


if __name__ == "__main__":
    import_all()  # every clock must be there to be stopped
    sys.exit(main(sys.argv[1:]))
