"""How a file is laid out is told without HDF5, and what would harm HDF5 is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from robustness.metadata import Block, blocks_in, reseal

from rankkit.errors import SpectrumFileError
from rankkit.store import describe
from rankkit.store.door.blueprint import Entry, blueprint_of

VERSIONS = ("v110", "v110")


def by_path(path: Path) -> dict[str, Entry]:
    return {entry.path: entry for entry in blueprint_of(path)}


def test_a_blueprint_says_of_every_entry_what_h5py_says(rich: Path) -> None:
    found = by_path(rich)
    with h5py.File(rich) as file:
        names = {"/"}
        file.visit(lambda name: names.add(f"/{name}"))
        assert set(found) == names
        for name, entry in found.items():
            assert {fact.name for fact in entry.facts} == set(file[name].attrs)
            if isinstance(file[name], h5py.Dataset):
                assert (entry.shape, entry.chunk or None) == (file[name].shape, file[name].chunks)
            else:
                assert entry.shape is None
    definition = next(fact for fact in found["/gpt/stable_rank"].facts if fact.name == "definition")
    assert definition.text.decode() == "the stable_rank of é"


def test_files_with_much_in_one_place_have_a_blueprint(tmp_path: Path) -> None:
    """Indexes of several levels, heaps of many blocks, and lists of chunks in pages."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=VERSIONS, track_order=True) as file:
        for number in range(2500):
            file.create_group(f"group_with_a_long_name_{number}")
        paged = file.create_dataset(
            "paged", (5000,), "<f8", chunks=(2,), compression="gzip", shuffle=True, fletcher32=True
        )
        paged[:6000:7] = 1
        for number in range(700):
            paged.attrs[f"attribute_{number}"] = "text" * 20
        plain = file.create_dataset("plain", (4, 1500), "<i4", chunks=(1, 1))
        plain[...] = 1
    found = by_path(path)
    assert len(found) == 2503
    assert len(found["/paged"].facts) == 700
    assert (found["/plain"].shape, found["/plain"].chunk) == ((4, 1500), (1, 1))


def test_an_attribute_that_h5py_changed_later_is_read(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file.attrs.update(title="another", note="mine", number=3)
    attributes = describe(copy).root.attributes
    assert (attributes["title"], attributes["note"], attributes["number"]) == ("another", "mine", 3)


def forged(data: bytes, kind: str, place: int, value: bytes, number: int = 0) -> bytes:
    """One block changed, with a right checksum."""
    changed = bytearray(data)
    block = [block for block in blocks_in(data) if block.kind == kind][number]
    start = block.start + place if place >= 0 else block.stop + place
    assert bytes(changed[start : start + len(value)]) != value
    changed[start : start + len(value)] = value
    reseal(changed, block)
    return bytes(changed)


FORGED = [
    # what ended the process in HDF5 2.0.0: division by zero, writes past a buffer, things looked for elsewhere
    ("BTHD", 6, bytes(4), "must have nodes of bytes 512, got 0"),
    ("BTHD", 10, bytes(2), "must have records of bytes"),
    ("BTLF", 14, b"\xff", "must have plain attributes, got flags 255|list the same attributes"),
    ("FRHP", 110, bytes(2), "must have blocks in a row 4, got 0"),
    ("FRHP", 112, bytes(8), "must have a first block of bytes"),
    ("FADB", 14, b"\xff" * 6 + b"\0\0", "must hold every block at a place of its own|have chunks"),
    # what took gigabytes
    ("BTHD", 6, (1 << 31).to_bytes(4, "little"), "must have nodes of bytes 512, got 2147483648"),
    ("FRHP", 120, (1 << 40).to_bytes(8, "little"), "must have a largest block of bytes 65536"),
    # what went on for ever, or could
    ("BTHD", 12, b"\xff\xff", "must have a depth of"),
    ("superblock", 36, (48 + 4).to_bytes(8, "little"), "must have a header that begins with"),
    # the rest of what a header says
    ("superblock", 28, (1 << 50).to_bytes(8, "little"), "/ must be whole, got .*: it is cut short"),
    ("OHDR", 4, b"\3", "must have a header that begins with"),
    ("OHDR", 5, b"\x4c", "must have a plain header, got flags 76"),
    ("FAHD", 5, b"\0", "must have an array of chunks that begins with"),
    ("FAHD", 8, b"\7", "must have chunks 16, got 7"),
]


@pytest.mark.parametrize(("kind", "place", "value", "message"), FORGED)
def test_forged_metadata_is_refused_before_hdf5_decodes_it(
    one_arm: Path, tmp_path: Path, kind: str, place: int, value: bytes, message: str
) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(forged(one_arm.read_bytes(), kind, place, value))
    with pytest.raises(SpectrumFileError, match=message) as caught:
        describe(path)
    assert "rankkit leaves no such file" in str(caught.value)


def test_two_chunks_at_one_place_are_refused(one_arm: Path, tmp_path: Path) -> None:
    data = one_arm.read_bytes()
    block = next(block for block in blocks_in(data) if block.kind == "FADB")
    width = (block.stop - block.start - 14) // 16  # of one of its 16 entries
    path = tmp_path / "a.h5"
    path.write_bytes(forged(data, "FADB", 14 + width, data[block.start + 14 : block.start + 22]))
    with pytest.raises(SpectrumFileError, match="must hold every block at a place of its own, got two that overlap"):
        describe(path)


def test_the_checksums_of_metadata_are_still_hdf5s_to_check(one_arm: Path, tmp_path: Path) -> None:
    """A name in an index, by its hash, says nothing here; HDF5 finds that it does not match its checksum."""
    data = bytearray(one_arm.read_bytes())
    blocks: list[Block] = [block for block in blocks_in(bytes(data)) if block.kind == "BTLF"]
    data[blocks[0].start + 6 + 13] ^= 1
    path = tmp_path / "a.h5"
    path.write_bytes(data)
    with pytest.raises(SpectrumFileError, match=r"must be readable, got .*checksum"):
        describe(path)


def test_every_byte_of_every_block_may_be_anything(one_arm: Path, tmp_path: Path) -> None:
    """Nothing but one error comes out of it, and nothing takes long."""
    data, wave = one_arm.read_bytes(), np.random.default_rng(5)
    blocks, path = blocks_in(data), tmp_path / "a.h5"
    for block in [blocks[int(number)] for number in wave.integers(len(blocks), size=150)]:
        changed = bytearray(data)
        place = int(wave.integers(block.start, block.stop))
        changed[place : place + 2] = wave.bytes(2)
        path.write_bytes(changed)
        with contextlib.suppress(SpectrumFileError):
            blueprint_of(path)
