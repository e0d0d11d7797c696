"""Memory of this process and its workers, where the kernel tells it."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

__all__ = ["resident_bytes"]


def resident_bytes() -> int | None:
    """Resident memory of this process and the workers it has started, pages that they share counted in each.

    Returns:
        Bytes; None where there is no /proc, as on macOS.
    """
    numbers = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children())]
    found = [_resident(number) for number in numbers if number is not None]
    return None if found[0] is None else sum(size for size in found if size is not None)


def _resident(process: int) -> int | None:
    """None for a process that has ended, or is not told of."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
