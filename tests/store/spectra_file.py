"""A small spectrum file with real spectra: two arms, two seeds, two regions, both masks."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rankkit.store import METHODS, STATUSES, GroupLayout, MeasureDescription, Slab, Spectra, SpectrumWriter
from rankkit.store.door.hdf5 import sha256_of_attributes

SEQUENCE_LENGTH = 6
PREFIX_LENGTH = 4
SEQUENCES, LAYERS, HEADS = 3, 2, 2
SIZES = {"full": SEQUENCE_LENGTH, "prefix_block": PREFIX_LENGTH}
HOST = {"torch_version": "2.13.0", "cpu": "Ünïcode CPU", "threads": 2, "device": "cpu", "kernel": "sdpa"}
TOKEN_POLICY = {"bos": "none", "packing": "across documents", "truncation": "none"}
CREATED = "2026-01-02T03:04:05+00:00"


def stable_rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values**2).sum(axis=-1) / values[..., 0] ** 2


def participation_ratio(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values**2).sum(axis=-1) ** 2 / (values**4).sum(axis=-1)


def effective_rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = values / values.sum(axis=-1, keepdims=True)
    return np.exp(-(shares * np.log(shares)).sum(axis=-1))


FUNCTIONS = {
    "effective_rank": effective_rank,
    "participation_ratio": participation_ratio,
    "stable_rank": stable_rank,
}
RECOMPUTE: dict[str, Callable[[Spectra], NDArray[np.float64]]] = {
    name: lambda spectra, f=function: f(spectra.singular_values) for name, function in FUNCTIONS.items()
}
MEASURES = {
    name: MeasureDescription(long_name=name.replace("_", " "), definition=f"the {name} of é", source="a paper")
    for name in (*FUNCTIONS, "attention_entropy")
}


def layout(**changes: Any) -> GroupLayout:
    sizes = np.array([[SIZES[region]] * SEQUENCES for region in SIZES])
    values: dict[str, Any] = {
        "mask": "causal",
        "objective": "suffix",
        "kind": "self",
        "seeds": [0, 7],
        "steps": [500],
        "regions": tuple(SIZES),
        "applied_masks": ("own", "swapped"),
        "layers": range(LAYERS),
        "heads": range(HEADS),
        "tokens": np.arange(SEQUENCES * SEQUENCE_LENGTH).reshape(SEQUENCES, SEQUENCE_LENGTH),
        "prefix_length": np.full(SEQUENCES, PREFIX_LENGTH),
        "valid_row": np.ones((SEQUENCES, SEQUENCE_LENGTH), dtype=np.int8),
        "rows": sizes,
        "columns": sizes,
        "untrained": np.array([[0, 0], [0, 1]]),
        "checkpoint_sha256": [["ab" * 32], ["cd" * 32]],
        "measures": MEASURES,
        "attributes": TOKEN_POLICY,
    }
    return GroupLayout(**(values | changes))


def slab(size: int, shape: tuple[int, ...], generator: np.random.Generator) -> Slab:
    values = -np.sort(-generator.uniform(0.01, 2, (*shape, size)), axis=-1)
    floor, floor_model = values[..., 0] * 1e-7, np.full(shape, 0.3)
    return Slab(
        singular_values=values,
        floor_arithmetic=floor,
        floor_model=floor_model,
        resolved=(values > floor[..., np.newaxis]).sum(axis=-1),
        resolved_model=(values > floor_model[..., np.newaxis]).sum(axis=-1),
        method=METHODS.index("gram"),
        status=STATUSES.index("ok"),
        measures={name: function(values) for name, function in FUNCTIONS.items()}
        | {"attention_entropy": generator.uniform(0, np.log(size), shape)},
    )


def slabs(arm: str) -> Iterator[tuple[Mapping[str, int | slice], Slab]]:
    generator = np.random.default_rng(len(arm))
    for seed, (region, size), mask, layer in product(range(2), enumerate(SIZES.values()), range(2), range(LAYERS)):
        index = {"seed": seed, "step": 0, "region": region, "applied_mask": mask, "layer": layer}
        yield index, slab(size, (SEQUENCES, HEADS), generator)


def new_writer(path: Path, **changes: Any) -> SpectrumWriter:
    values: dict[str, Any] = {
        "title": "a small file",
        "configuration": "seed = 0\n# größer\n",
        "certificate": '{"matched": true}',
        "command": "rankkit spectrum runs/demo",
        "attributes": HOST,
        "created": CREATED,
    }
    return SpectrumWriter(path, **(values | changes))


def write_spectra(path: Path, *, arms: tuple[str, ...] = ("gpt",), **changes: Any) -> Path:
    with new_writer(path, **changes) as writer:
        for arm in arms:
            group = writer.group(arm, layout(mask="causal" if arm == "gpt" else "prefix"))
            for index, values in slabs(arm):
                group.write(index, values)
        write_comparison(writer)
    return path


def write_comparison(writer: SpectrumWriter, **changes: Any) -> None:
    shape = (len(FUNCTIONS), len(SIZES), LAYERS, 3)
    bounds = np.broadcast_to(np.array([0.5, 0.25, 0.75]), shape)
    values: dict[str, Any] = dict.fromkeys(("gap", "mask_effect", "learned_effect", "interaction"), bounds)
    values |= {"measures": list(FUNCTIONS), "regions": list(SIZES), "layers": range(LAYERS)}
    values["attributes"] = {"arms": "gpt - unilm", "interval": "paired t over seeds", "seeds": 2}
    writer.comparison(**(values | changes))


def edited(path: Path, edit: Callable[[h5py.File], None]) -> Path:
    """Change a finished file as a careful forger would, with valid checksums."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        edit(file)
        file.attrs["attributes_sha256"] = sha256_of_attributes(file)
    return path


def spoil_chunks(path: Path, name: str, spared: Callable[[tuple[int, ...]], bool]) -> int:
    """Overwrite the stored bytes of every chunk of a variable, by its offset, that is not spared; how many there are."""
    with h5py.File(path) as file:
        dataset = file[name].id
        chunks = [dataset.get_chunk_info(number) for number in range(dataset.get_num_chunks())]
    data = bytearray(path.read_bytes())
    spoilt = [chunk for chunk in chunks if not spared(chunk.chunk_offset)]
    for chunk in spoilt:
        data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(data)
    return len(spoilt)
