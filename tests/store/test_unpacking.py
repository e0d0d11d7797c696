"""Numbers out of chunks are those that HDF5 gives, and nothing that lies behind them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.store.door.chunks import fletcher32
from rankkit.store.door.unpacking import ChunkReader

SHAPE = (3, 7, 20)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[h5py.File]:
    values = np.random.default_rng(0).normal(size=SHAPE)
    with h5py.File(tmp_path_factory.mktemp("chunks") / "a.h5", "w", libver=("v110", "v110")) as opened:
        for name, dtype in (("f8", "<f8"), ("f4", "<f4"), ("i4", "<i4"), ("i1", "<i1")):
            filters = {"compression": "gzip", "shuffle": True, "fletcher32": True}
            opened.create_dataset(name, data=(10 * values).astype(dtype), chunks=(2, 3, 8), **filters)
        opened.create_dataset("plain", data=values, chunks=(2, 3, 8))
        opened.create_dataset("unshuffled", data=values, chunks=(1, 7, 20), compression="gzip")
        opened.flush()
        yield opened


def along(size: int) -> st.SearchStrategy[Any]:
    bound = st.none() | st.integers(-size, size)
    return (
        st.builds(slice, bound, bound, st.none() | st.integers(1, 4))
        | st.integers(-size, size - 1)
        | st.sets(st.integers(0, size - 1), min_size=1).map(sorted)
    )


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["f8", "f4", "i4", "i1", "plain", "unshuffled"]),
    chosen=st.tuples(*map(along, SHAPE)).filter(lambda one: sum(isinstance(along, list) for along in one) < 2),
    axes=st.integers(0, 3),
)
def test_any_selection_reads_as_numpy_selects(file: h5py.File, name: str, chosen: tuple[Any, ...], axes: int) -> None:
    values = file[name][...]
    selection = chosen[:axes] if axes else ...
    found = ChunkReader(file[name]).read(selection)
    expected = values
    for axis, one in reversed(list(enumerate(chosen[:axes]))):
        expected = (
            np.take(expected, one, axis=axis)
            if not isinstance(one, slice)
            else expected[(slice(None),) * axis + (one,)]
        )
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == values.dtype


def test_one_reader_gives_the_same_again(file: h5py.File) -> None:
    reader = ChunkReader(file["f8"])
    first = reader.read((0, 0))
    first[...] = 0
    np.testing.assert_array_equal(reader.read((0, 0)), file["f8"][0, 0])


def test_a_position_outside_is_refused(file: h5py.File) -> None:
    with pytest.raises(ValueError, match=r"positions must be from 0 to 2, got 3\. Choose less"):
        ChunkReader(file["f8"]).read(3)


@pytest.fixture
def two_chunks(tmp_path: Path) -> Iterator[h5py.Dataset]:
    with h5py.File(tmp_path / "a.h5", "w", libver=("v110", "v110")) as opened:
        filters = {"compression": "gzip", "shuffle": True, "fletcher32": True, "fillvalue": -1.0}
        yield opened.create_dataset("x", (8,), "<f8", chunks=(4,), **filters)


def test_a_lost_chunk_reads_as_the_fill_value(two_chunks: h5py.Dataset) -> None:
    two_chunks[4:] = 2
    two_chunks.file.flush()
    assert ChunkReader(two_chunks).read(...).tolist() == [-1] * 4 + [2] * 4


def stored(packed: bytes) -> bytes:
    return packed + fletcher32(packed).to_bytes(4, "little")


@pytest.mark.parametrize("size", [0, 8, 31, 33, 1 << 24])
def test_a_chunk_that_unpacks_to_another_size_is_refused(two_chunks: h5py.Dataset, size: int) -> None:
    two_chunks[...] = 1
    two_chunks.id.write_direct_chunk((0,), stored(zlib.compress(bytes(size), 9)))
    with pytest.raises(ValueError, match="a chunk must unpack to 32 bytes, got "):
        ChunkReader(two_chunks).read(slice(0, 2))
    assert ChunkReader(two_chunks).read(slice(4, 6)).tolist() == [1, 1]


def test_a_chunk_that_does_not_match_its_checksum_is_refused(two_chunks: h5py.Dataset) -> None:
    two_chunks[...] = 1
    two_chunks.file.flush()
    _, data = two_chunks.id.read_direct_chunk((0,))
    two_chunks.id.write_direct_chunk((0,), data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="a chunk must match its checksum, got another"):
        ChunkReader(two_chunks).read(0)


def test_a_chunk_that_cannot_be_unpacked_is_refused(two_chunks: h5py.Dataset) -> None:
    two_chunks[...] = 1
    two_chunks.id.write_direct_chunk((0,), stored(b"no zlib"))
    with pytest.raises(zlib.error, match="incorrect header check"):
        ChunkReader(two_chunks).read(0)
