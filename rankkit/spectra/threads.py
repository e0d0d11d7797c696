"""One thread for small dense algebra, all threads for products with the matrix.

Products share their rows among threads of their own. Between them come factorisations of a few dozen vectors, which two
threads compute no faster than one, and whose second thread then spins on the core that the next product needs: on two
busy cores leading triplets of n = 1024 took 1.9 s that way and 0.3 s with one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["one_thread", "threads_for_products"]

_PRODUCT_THREADS: ContextVar[int | None] = ContextVar("product_threads", default=None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch set to one thread, but for what runs in `threads_for_products`; inside another `one_thread` nothing changes."""
    if _PRODUCT_THREADS.get() is not None:
        yield
        return
    threads = torch.get_num_threads()
    token = _PRODUCT_THREADS.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _PRODUCT_THREADS.reset(token)


@contextmanager
def threads_for_products() -> Iterator[None]:
    """As many threads as torch had before `one_thread`."""
    threads = _PRODUCT_THREADS.get()
    if threads is None or threads == 1:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(1)
