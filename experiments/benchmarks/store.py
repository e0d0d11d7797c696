"""Writing spectra against plain h5py, as ratios within one run.

    all of it / h5py                 at most 1.3: layouts, slabs, checks, verification, sync to the disk, rename
    without the verification / h5py  the same up to the moment when the closed file is read again
    without the sync / h5py          the same without waiting for the disk, which h5py does not do either

Two arms under three seeds, spectra of 256, 128, 255 and 127 singular values, slabs of one layer of eight sequences, put
together from those of four regions and two masks, as `rankkit spectrum` makes them, with the default measures and their
errors: 10.6 million singular values in two tables of 7.1 million places. What h5py writes are the very arrays of the
finished file, each whole in one call, with the same chunks, types and filters, and without axes or attributes. Ratios are
medians over rounds in which both sides run, in alternating order.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit.axes import REGIONS
from rankkit.spectra import DEFAULT_MEASURES, MEASURES
from rankkit.store import METHODS, SEQUENCES_PER_CHUNK, STATUSES, GroupLayout, MeasureDescription, Slab, SpectrumWriter
from rankkit.store.door.hdf5 import h5py

ROUNDS = 5
SEEDS, ARMS, MASKS = (0, 1, 2), ("gpt", "unilm"), ("own", "swapped")
TARGET = 1.3

Index = dict[str, int | slice]
Layer = tuple[str, Index, list[Slab]]
Clocks = NDArray[np.float64]
"""Seconds by the wall, and of all processors together, which others on the machine hardly change."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is measured."""

    length: int
    layers: int
    heads: int
    sequences: int

    @property
    def sizes(self) -> dict[str, int]:
        """Singular values by region."""
        prefix = self.length // 2
        return dict(zip(REGIONS, (self.length, prefix, self.length - 1, prefix - 1), strict=True))


SHAPES = {
    "small": Shape(length=512, layers=7, heads=5, sequences=16),
    "tiny": Shape(length=256, layers=4, heads=4, sequences=72),
}


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one file, each by the wall and of the processors."""

    whole: Clocks
    verification: Clocks
    sync: Clocks


def layout(arm: str, shape: Shape) -> GroupLayout:
    sizes = np.array([[size] * shape.sequences for size in shape.sizes.values()])
    texts = {
        name: MeasureDescription(long_name=MEASURES[name].long_name, definition=MEASURES[name].definition, source="")
        for name in DEFAULT_MEASURES
    }
    return GroupLayout(
        mask="causal" if arm == "gpt" else "prefix", objective="suffix", kind="self", seeds=SEEDS, steps=[500],
        regions=REGIONS, applied_masks=MASKS, layers=range(shape.layers), heads=range(shape.heads),
        tokens=np.random.default_rng(0).integers(0, 256, (shape.sequences, shape.length)),
        prefix_length=np.full(shape.sequences, shape.length // 2),
        valid_row=np.ones((shape.sequences, shape.length), dtype=np.int8),
        rows=sizes, columns=sizes, untrained=np.zeros((len(REGIONS), shape.layers), dtype=np.int8),
        checkpoint_sha256=[["ab" * 32]] * len(SEEDS), measures=texts, errors=DEFAULT_MEASURES,
        attributes={"bos": "none", "packing": "none", "truncation": "none"}, document=np.arange(shape.sequences),
    )  # fmt: skip


def one_slab(size: int, heads: int, generator: np.random.Generator) -> Slab:
    """One layer of eight sequences: decaying spectra, what they measure, and numbers of attention that could be."""
    shape = (SEQUENCES_PER_CHUNK, heads)
    values = -np.sort(-generator.lognormal(sigma=2.0, size=(*shape, size)), axis=-1)
    floor, floor_model = values[..., 0] * 1e-13, values[..., 0] * 1e-5
    measures = {name: measured(name, values, size, generator) for name in DEFAULT_MEASURES}
    return Slab(
        singular_values=values,
        floor_arithmetic=floor,
        floor_model=floor_model,
        resolved=(values > floor[..., np.newaxis]).sum(axis=-1),
        resolved_model=(values > floor_model[..., np.newaxis]).sum(axis=-1),
        method=np.full(shape, METHODS.index("gram"), dtype=np.int8),
        status=np.full(shape, STATUSES.index("ok"), dtype=np.int8),
        measures=measures,
        errors={name: np.abs(found) * generator.uniform(1e-9, 1e-8, shape) for name, found in measures.items()},
    )


def measured(name: str, values: NDArray[np.float64], size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    if MEASURES[name].needs == "singular_values":
        found: NDArray[np.float64] = MEASURES[name].compute(torch.from_numpy(values), size, size).double().numpy()
        return found
    shares = generator.uniform(0, 1, values.shape[:-1])
    return np.floor(shares * size) if name == "sink_position" else shares


def all_slabs(shape: Shape) -> list[Layer]:
    """By arm and place, the slabs of every region under every mask."""
    generator = np.random.default_rng(0)
    batches = [slice(start, start + SEQUENCES_PER_CHUNK) for start in range(0, shape.sequences, SEQUENCES_PER_CHUNK)]
    everywhere = {"region": slice(0, len(REGIONS)), "applied_mask": slice(0, len(MASKS))}
    return [
        (
            arm,
            {"seed": seed, "step": 0, "sequence": rows, "layer": layer, **everywhere},
            [one_slab(size, shape.heads, generator) for size, _ in product(shape.sizes.values(), MASKS)],
        )
        for arm, seed, rows, layer in product(ARMS, range(len(SEEDS)), batches, range(shape.layers))
    ]


def clocks() -> Clocks:
    return np.array([perf_counter(), process_time()])


@contextmanager
def timed(owner: Any, name: str, spent: Clocks) -> Iterator[None]:
    """Note the seconds of every call of a function."""
    function: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **settings: Any) -> Any:
        started = clocks()
        try:
            return function(*arguments, **settings)
        finally:
            np.add(spent, clocks() - started, out=spent)

    with mock.patch.object(owner, name, call):
        yield


def write_ours(path: Path, shape: Shape, slabs: list[Layer]) -> Times:
    verification, sync = np.zeros(2), np.zeros(2)
    host = {"torch_version": torch.__version__, "cpu": "", "threads": 1, "device": "cpu", "kernel": ""}
    started = clocks()
    writer = SpectrumWriter(path, title="", configuration="", certificate="", command="", attributes=host, force=True)
    with timed(writer, "_check", verification), timed(os, "fsync", sync), writer:
        groups = {arm: writer.group(arm, layout(arm, shape)) for arm in ARMS}
        for arm, index, values in slabs:
            groups[arm].write(index, Slab.stacked(values, (len(REGIONS), len(MASKS))))
    return Times(whole=clocks() - started, verification=verification, sync=sync)


Plain = list[tuple[str, NDArray[Any], tuple[int, ...]]]


def plain_arrays(path: Path) -> Plain:
    """Every array of numbers of a finished file, with its name and chunks."""
    found: Plain = []

    def collect(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset) and entry.chunks:
            found.append((name, entry[...], entry.chunks))

    with h5py.File(path) as file:
        file.visititems(collect)
    return found


def write_plainly(path: Path, arrays: Plain) -> Times:
    started = clocks()
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        for name, values, chunks in arrays:
            file.create_dataset(
                name, data=values, chunks=chunks, compression="gzip", compression_opts=1, shuffle=True, fletcher32=True
            )
    return Times(whole=clocks() - started, verification=np.zeros(2), sync=np.zeros(2))


def compare(shape: Shape, rounds: int, folder: Path) -> None:
    slabs = all_slabs(shape)
    values = sum(int(np.isfinite(slab.singular_values).sum()) for _, _, layer in slabs for slab in layer)
    ours_path, plain_path = folder / "ours.h5", folder / "plain.h5"
    write_ours(ours_path, shape, slabs)
    arrays = plain_arrays(ours_path)
    gc.freeze()  # the slabs of a study are gone when the next ones come; looking through all of these takes seconds
    size = sum(array.nbytes for _, array, _ in arrays)
    print(f"{shape}")
    print(f"{values:,} singular values, {len(slabs)} slabs, {len(arrays)} arrays, {size / 2**20:.0f} MiB", flush=True)
    pairs: list[tuple[Times, Times]] = []
    for number in range(rounds):
        if number % 2:
            plain = write_plainly(plain_path, arrays)
            pairs.append((write_ours(ours_path, shape, slabs), plain))
        else:
            ours = write_ours(ours_path, shape, slabs)
            pairs.append((ours, write_plainly(plain_path, arrays)))
    print(f"file {ours_path.stat().st_size / 2**20:.0f} MiB, plain {plain_path.stat().st_size / 2**20:.0f} MiB")
    for clock, name in enumerate(("wall", "processor")):
        whole, verification, sync, plain = (
            np.array([getattr(pair[side], part)[clock] for pair in pairs])
            for side, part in ((0, "whole"), (0, "verification"), (0, "sync"), (1, "whole"))
        )
        print(
            f"{name} seconds, medians: ours {np.median(whole):.2f}, of it verification {np.median(verification):.2f} and "
            f"sync {np.median(sync):.2f}; h5py {np.median(plain):.2f}"
        )
        verdict("  all of it / h5py", whole / plain)
        verdict("  without the verification / h5py", (whole - verification) / plain)
        verdict("  without the sync / h5py", (whole - sync) / plain)


def verdict(name: str, ratios: NDArray[np.float64]) -> None:
    median, spread = np.median(ratios), f"({ratios.min():.3f} to {ratios.max():.3f})"
    print(f"{name:<36} {median:6.3f}  {spread}  target at most {TARGET}: {'met' if median <= TARGET else 'NOT MET'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="in which both sides run")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="all unless given")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder unless given")
    options = parser.parse_args()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}, {cores} cores, load {load:.1f} at the start")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.shape or SHAPES:
            compare(SHAPES[name], options.rounds, Path(folder))


if __name__ == "__main__":
    main()
