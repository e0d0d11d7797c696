"""Chunks made here are those that HDF5 makes, in the order in which they came, whichever thread was faster."""

import time
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from store.rich_file import KEPT, positions, rich_layout, write_arm
from store.spectra_file import new_writer

from rankkit.errors import StorageError
from rankkit.store import KeptSlab, Slab, read_group, verify
from rankkit.store.door import chunks
from rankkit.store.door.chunks import ChunkGrid, filtered, fletcher32, matches_checksum
from rankkit.store.groups import chunk_queue
from rankkit.store.groups.chunk_queue import Block, ChunkQueue, Target
from rankkit.store.output import HDF5Output

LEAN: dict[str, Any] = {"seeds": [7], "steps": [500], "regions": ["full"], "applied_masks": ["own"]}
FILTERS: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}


def by_the_book(data: bytes) -> int:
    """H5_checksum_fletcher32, word by word."""
    first = second = 0
    for position in range(0, len(data), 2):
        first += int.from_bytes(data[position : position + 2].ljust(2, b"\0"), "big")
        second += first
    while first >> 16:
        first = (first & 0xFFFF) + (first >> 16)
    while second >> 16:
        second = (second & 0xFFFF) + (second >> 16)
    return second << 16 | first


@settings(max_examples=50, deadline=None)
@given(data=st.one_of(st.binary(max_size=300), st.integers(0, 40).map(lambda n: b"\xff" * n), st.just(bytes(30))))
def test_the_checksum_is_that_of_hdf5(data: bytes) -> None:
    assert fletcher32(data) == by_the_book(data)


@pytest.mark.parametrize("words", [7, 8, 9, 17])
def test_the_checksum_of_several_pieces_is_that_of_the_whole(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(words).bytes(2 * words + 1)
    monkeypatch.setattr(chunks, "_PIECE", 4)
    monkeypatch.setattr(chunks, "_WEIGHTS", np.arange(4, 0, -1, dtype=np.float64))
    assert fletcher32(data) == by_the_book(data)


def test_the_checksum_of_the_largest_words_is_exact() -> None:
    data = b"\xff\xfe" * (1 << 17)
    assert fletcher32(data) == by_the_book(data)


SHAPES = [((16, 4, 25), (8, 1, 25)), ((3, 5), (2, 3)), ((7,), (7,)), ((5, 1, 4), (2, 1, 3)), ((1, 1), (1, 1))]


@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<i4", "|i1"])
def test_hdf5_reads_what_was_made_here_and_its_own_chunks_have_our_checksum(
    shape: tuple[int, ...], size: tuple[int, ...], dtype: str
) -> None:
    values = (100 * np.random.default_rng(0).normal(size=shape)).astype(dtype)
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        ours = file.create_dataset("ours", shape, dtype, chunks=size, **FILTERS)
        grid = ChunkGrid.of(ours)
        for start, chunk in zip(*grid.cut(tuple(slice(0, length) for length in shape), values), strict=True):
            ours.id.write_direct_chunk(start, filtered(chunk))
        np.testing.assert_array_equal(ours[...], values)
        theirs = file.create_dataset("theirs", data=values, chunks=size, **FILTERS)
        file.flush()
        for number in range(theirs.id.get_num_chunks()):
            _, stored = theirs.id.read_direct_chunk(theirs.id.get_chunk_info(number).chunk_offset)
            assert matches_checksum(stored)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_breaks_the_checksum(share: float, bit: int) -> None:
    stored = bytearray(filtered(np.linspace(0, 1, 300)))
    assert matches_checksum(bytes(stored))
    stored[int(share * len(stored))] ^= 1 << bit
    assert not matches_checksum(bytes(stored))
    assert not matches_checksum(bytes(stored)[:4])


@pytest.mark.parametrize("most", [1, 100, 1000, 1 << 20])
def test_parts_cover_a_place_once_and_cut_through_no_chunk(most: int) -> None:
    grid = ChunkGrid((6, 5, 7), (2, 5, 3), np.dtype("<f8"), np.nan)
    place = (slice(2, 6), slice(0, 5), slice(3, 7))
    values, found = np.arange(4.0 * 5 * 4), np.full(grid.shape, np.nan)
    for part, array in grid.parts(place, values, most):
        assert grid.has_whole(part)
        assert np.isnan(found[part]).all()
        assert array.nbytes <= most or all(
            at.stop - at.start <= size for at, size in zip(part, grid.chunks, strict=True)
        )
        found[part] = array.reshape(found[part].shape)
    np.testing.assert_array_equal(found[place].ravel(), values)
    assert np.isnan(found).sum() == found.size - values.size


@pytest.mark.parametrize(
    ("place", "whole"),
    [
        ((slice(0, 2), slice(0, 5)), True),
        ((slice(2, 3), slice(3, 5)), True),
        ((slice(1, 3), slice(0, 5)), False),
        ((slice(0, 1), slice(0, 5)), False),
        ((slice(0, 2), slice(0, 4)), False),
    ],
)
def test_a_place_is_whole_where_it_ends_with_chunks_or_with_the_variable(place: tuple[slice, ...], whole: bool) -> None:
    assert ChunkGrid((3, 5), (2, 3), np.dtype("<f8"), np.nan).has_whole(place) is whole


def write_wide(path: Path) -> Path:
    """Matrices large enough to be made by threads."""
    length = 64
    sizes = np.full((1, 2), length)
    wide = {
        "tokens": np.zeros((2, length), dtype=np.int32),
        "valid_row": np.ones((2, length), dtype=np.int8),
        "prefix_length": np.zeros(2, dtype=np.int32),
        "rows": sizes,
        "columns": sizes,
        "features": length,
    }
    chosen = rich_layout(**(LEAN | KEPT | wide), layer_measures={}, output_components=None, components=6)
    with new_writer(path) as writer:
        write_arm(writer, "unilm", **LEAN, layer_measures={}, output_components=None)
        group = writer.group("gpt", chosen)
        for number, index in enumerate(positions(chosen, "seed", "step", "layer")):
            values = np.random.default_rng(number).uniform(0, 1 / length, (3, 2, 2, length, length)).astype(np.float32)
            group.write_kept(index, KeptSlab(**dict(zip(KEPT["kept"], values, strict=True))))
            values.fill(np.nan)  # the caller may use its memory again
        write_failed(group)
    return path


def write_failed(group: Any) -> None:
    nothing = np.full((1, 1, 1, 1, 2, 2, 2, 0), np.nan)
    measures = dict.fromkeys(rich_layout().measures, np.nan)
    codes = {"resolved": 0, "resolved_model": 0, "method": 1, "status": 3}
    group.write(
        {}, Slab(singular_values=nothing, floor_arithmetic=np.nan, floor_model=np.nan, measures=measures, **codes)
    )


def test_what_threads_make_is_stored_whole_and_in_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_queue, "_JOB_BYTES", 1)
    monkeypatch.setattr(chunk_queue, "_WAITING_BYTES", 100_000)
    first = write_wide(tmp_path / "first.h5")
    assert verify(first) == []
    found = read_group(first, "gpt", KEPT["kept"])
    for layer in range(2):
        written = np.random.default_rng(layer).uniform(0, 1 / 64, (3, 2, 2, 64, 64)).astype(np.float32)
        for name, array in zip(KEPT["kept"], written, strict=True):
            np.testing.assert_array_equal(found[name][0, 0, :, layer], array)
    waits = iter(np.random.default_rng(0).uniform(0, 0.02, 10_000))
    made = chunk_queue._all_filtered

    def slowly(taken: NDArray[Any]) -> list[bytes]:
        time.sleep(next(waits))
        return made(taken)

    monkeypatch.setattr(chunk_queue, "_all_filtered", slowly)
    assert write_wide(tmp_path / "second.h5").read_bytes() == first.read_bytes()


def test_no_more_waits_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_queue, "_WAITING_BYTES", 1 << 20)
    output = HDF5Output(tmp_path / "a.h5", force=False)
    queue = ChunkQueue(output)
    dataset = output.run(lambda file: file.create_dataset("a", (64, 1 << 14), "<f8", chunks=(1, 1 << 14), **FILTERS))
    target = queue.targets({"a": dataset})["a"]
    for row in range(0, 64, 4):
        queue.put([Block(target, (slice(row, row + 4),), np.full((4, 1 << 14), float(row)))])
        assert queue._bytes <= 1 << 20
    queue.flush()
    assert queue._bytes == 0
    assert output.run(lambda _: dataset[:, 0].tolist()) == [float(row // 4 * 4) for row in range(64)]
    queue.close()
    output.discard()


def test_what_a_thread_could_not_make_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: NDArray[Any]) -> list[bytes]:
        raise MemoryError("no room for a chunk")

    monkeypatch.setattr(chunk_queue, "_all_filtered", fail)
    with pytest.raises(MemoryError, match="no room for a chunk"):
        write_wide(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_that_the_disk_refuses_is_one_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    output = HDF5Output(tmp_path / "a.h5", force=False)
    queue = ChunkQueue(output)
    dataset = output.run(lambda file: file.create_dataset("a", (8, 1 << 11), "<f8", chunks=(8, 1 << 11), **FILTERS))
    block = Block(Target(dataset, output.run(lambda _: ChunkGrid.of(dataset))), (), np.zeros((8, 1 << 11)))
    queue.put([block])
    monkeypatch.setattr("os.pwrite", refuse)
    with pytest.raises(StorageError, match="no space left on device"):
        queue.flush()
    queue.close()
    output.discard()
    assert list(tmp_path.iterdir()) == []


def test_small_and_cut_blocks_go_through_hdf5_and_are_stored_at_once(tmp_path: Path) -> None:
    output = HDF5Output(tmp_path / "a.h5", force=False)
    queue = ChunkQueue(output)
    shapes = {"small": ((4, 4), (2, 4)), "large": ((8, 1 << 11), (4, 1 << 11))}
    made = {
        name: output.run(lambda file, n=name, s=shape, c=size: file.create_dataset(n, s, "<f8", chunks=c, **FILTERS))
        for name, (shape, size) in shapes.items()
    }
    targets = queue.targets(made)
    queue.put([Block(targets["small"], (), np.ones((4, 4))), Block(targets["large"], (0,), np.ones(1 << 11))])
    assert queue._bytes == 0
    assert output.run(lambda _: (made["small"][...].sum(), made["large"][0].sum())) == (16, 1 << 11)
    queue.close()
    output.discard()


def test_every_place_of_a_grid_is_cut_into_its_chunks() -> None:
    grid = ChunkGrid((4, 6), (2, 3), np.dtype("<i4"), -1)
    values = np.arange(24).reshape(4, 6)
    starts, found = grid.cut((slice(0, 4), slice(0, 6)), values)
    assert starts == list(product((0, 2), (0, 3)))
    for (row, column), chunk in zip(starts, found, strict=True):
        np.testing.assert_array_equal(chunk, values[row : row + 2, column : column + 3])
    (start,), (chunk,) = ChunkGrid((3, 4), (2, 4), np.dtype("<i4"), -1).cut((slice(2, 3), slice(0, 4)), np.ones((1, 4)))
    assert start == (2, 0)
    assert chunk.tolist() == [[1] * 4, [-1] * 4]
