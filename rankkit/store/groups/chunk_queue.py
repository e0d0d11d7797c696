"""Blocks on their way into a file under construction: compressed by several threads, stored in the order they came."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from rankkit.store.door.chunks import ChunkGrid, filtered
from rankkit.store.door.hdf5 import h5py
from rankkit.store.output import HDF5Output

__all__ = ["Block", "ChunkQueue", "Target"]

_MOST_THREADS: Final = 4  # more than write as fast as a disk
_WAITING_BYTES: Final = 8 << 20  # of chunks; then half of them are stored in one go, for handing over takes time too
_JOB_BYTES: Final = 1 << 20  # of chunks made in one go: handing over costs as much as filtering 4 KiB
_LEAST_BYTES: Final = 8 << 10  # of a chunk; smaller ones HDF5 filters faster than they are handed over


@dataclass(frozen=True, slots=True)
class Target:
    """A variable that takes blocks."""

    dataset: h5py.Dataset
    """Only for the thread of the file."""
    grid: ChunkGrid
    """Its chunks."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part of a variable."""

    target: Target
    """The variable."""
    selection: tuple[int | slice, ...]
    """An index, or a slice with both ends, along the first axes; the others are whole."""
    array: NDArray[Any]
    """What belongs there."""

    @property
    def place(self) -> tuple[slice, ...]:
        """Both ends along every axis."""
        first = tuple(slice(at, at + 1) if isinstance(at, int) else at for at in self.selection)
        return (*first, *(slice(0, size) for size in self.target.grid.shape[len(first) :]))


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Chunks of one variable that are being made."""

    dataset: h5py.Dataset
    starts: list[tuple[int, ...]]
    stored: Future[list[bytes]]
    size: int


class ChunkQueue:
    """Stores blocks while the next ones are measured.

    What is put is copied, or stored at once. The order in which chunks come to lie in the file depends on the blocks
    alone, not on which thread was faster.

    Args:
        output: the file.
    """

    def __init__(self, output: HDF5Output) -> None:
        self._output = output
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, cores), "rankkit-chunks")
        self._waiting: deque[_Job] = deque()
        self._bytes = 0

    def targets(self, datasets: Mapping[str, h5py.Dataset]) -> dict[str, Target]:
        """What takes blocks of these variables, by name."""
        return self._output.run(lambda _: {name: Target(each, ChunkGrid.of(each)) for name, each in datasets.items()})

    def put(self, blocks: Iterable[Block]) -> None:
        """Take blocks, each of cells that were not put before.

        Raises:
            StorageError: the file system refused one of these or an earlier one.
        """
        at_once = []
        for block in blocks:
            grid = block.target.grid
            if grid.chunk_bytes >= _LEAST_BYTES and grid.has_whole(block.place):
                for job in self._jobs(block):
                    self._waiting.append(job)
                    self._bytes += job.size
                    if self._bytes > _WAITING_BYTES:
                        self._store(_WAITING_BYTES // 2)
            else:
                at_once.append(block)
        if at_once:
            self._output.run(lambda _: _store_by_hdf5(at_once))

    def flush(self) -> None:
        """Store everything that waits.

        Raises:
            StorageError: the file system refused.
        """
        self._store(0)

    def close(self) -> None:
        """Drop everything that waits; does not wait itself, so that nothing can interrupt it."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _jobs(self, block: Block) -> Iterator[_Job]:
        grid, dataset = block.target.grid, block.target.dataset
        for place, array in grid.parts(block.place, block.array, _JOB_BYTES):
            starts, chunks = grid.cut(place, array)
            yield _Job(dataset, starts, self._threads.submit(_all_filtered, chunks), chunks.nbytes)

    def _store(self, limit: int) -> None:
        """Store jobs, the oldest first, until no more than `limit` bytes wait."""
        ready = []
        while self._bytes > limit:
            job = self._waiting.popleft()
            self._bytes -= job.size
            ready.append((job, job.stored.result()))
        if ready:
            self._output.run(lambda _: _store_chunks(ready))


def _all_filtered(chunks: NDArray[Any]) -> list[bytes]:
    return [filtered(chunk) for chunk in chunks]


def _store_chunks(ready: list[tuple[_Job, list[bytes]]]) -> None:
    for job, stored in ready:
        for start, data in zip(job.starts, stored, strict=True):
            job.dataset.id.write_direct_chunk(start, data)


def _store_by_hdf5(blocks: list[Block]) -> None:
    for block in blocks:
        block.target.dataset[block.selection] = block.array
