import dataclasses
import errno
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store.rich_file import rich_layout
from store.spectra_file import (
    HEADS,
    HOST,
    LAYERS,
    MEASURES,
    SEQUENCES,
    SIZES,
    layout,
    new_writer,
    slab,
    slabs,
    spoil_chunks,
    write_comparison,
    write_spectra,
)

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import OutputExistsError, SpectrumFileError, StorageError
from rankkit.store import Slab, read_group, verify
from rankkit.store.output import _Sink

GENERATOR = np.random.default_rng(0)
INDEX = {"seed": 0, "step": 0, "region": 0, "applied_mask": 0, "layer": 0}


def only_old_file(path: Path) -> bool:
    return path.read_bytes() == b"old" and [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "spectrum.h5"
    path.write_text("old")
    return path


def test_a_finished_file_replaces_the_old_one_and_leaves_nothing_beside_it(old: Path) -> None:
    write_spectra(old, force=True)
    assert verify(old) == []
    assert [entry.name for entry in old.parent.iterdir()] == [old.name]
    assert stat.S_IMODE(old.stat().st_mode) == 0o644


def test_missing_folders_on_the_way_are_made(tmp_path: Path) -> None:
    assert write_spectra(tmp_path / "a" / "b" / "c.h5").is_file()


def test_two_writes_of_the_same_content_give_the_same_bytes(one_arm: Path, tmp_path: Path) -> None:
    again = write_spectra(tmp_path / "again.h5")
    assert again.read_bytes() == one_arm.read_bytes()


def test_writes_at_different_times_differ_in_nothing_but_the_time(one_arm: Path, tmp_path: Path) -> None:
    later = write_spectra(tmp_path / "later.h5", created=None)
    with h5py.File(later) as new, h5py.File(one_arm) as old:
        different = {name for name in old.attrs if old.attrs[name] != new.attrs[name]}
    assert different == {"created", "attributes_sha256"}
    assert verify(later) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(old: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with new_writer(old, force=True) as writer:
            group = writer.group("gpt", layout())
            group.write(*next(slabs("gpt")))
            raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        fail()
    assert only_old_file(old)


def test_ctrl_c_at_any_moment_leaves_the_old_file_or_the_new_one(old: Path) -> None:
    for delay in np.linspace(0.0, 0.15, 5):
        old.write_text("old")
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            write_spectra(old, force=True)
            timer.join()
        except KeyboardInterrupt:
            timer.join()
        assert only_old_file(old) or ([entry.name for entry in old.parent.iterdir()], verify(old)) == ([old.name], [])


def test_an_existing_file_is_refused_without_force(old: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"must not exist yet. Add --force to replace it"):
        write_spectra(old)
    assert only_old_file(old)


def test_a_folder_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    with pytest.raises(OutputExistsError, match="must be the name of a file, got a folder"):
        write_spectra(tmp_path, force=True)
    assert (tmp_path / "run.toml").exists()


def test_an_unwritten_cell_is_named_and_refused(old: Path) -> None:
    def forget() -> None:
        with new_writer(old, force=True) as writer:
            group = writer.group("gpt", layout())
            for index, values in slabs("gpt"):
                if index["seed"] == 0 or index["region"] == 0:
                    group.write(index, values)

    cell = "seed 7, step 500, region prefix_block, applied_mask own, sequence 0, layer 0, head 0"
    with pytest.raises(SpectrumFileError, match=f"gpt must be written whole, got nothing for {cell}"):
        forget()
    assert only_old_file(old)


def test_a_file_without_arms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpectrumFileError, match=r"must verify before it gets its name, .*at least one arm"):
        write_spectra(tmp_path / "a.h5", arms=())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [2, 8])
def test_slabs_of_any_width_give_the_same_values_and_the_same_size(tmp_path: Path, step: int) -> None:
    sequences, size = 16, SIZES["full"]
    spread = {
        "tokens": np.zeros((sequences, size), dtype=int),
        "prefix_length": np.zeros(sequences, dtype=int),
        "valid_row": np.ones((sequences, size), dtype=int),
        "regions": ["full"],
        "rows": np.full((1, sequences), size),
        "columns": np.full((1, sequences), size),
        "untrained": np.zeros((1, 2), dtype=int),
        "seeds": [0],
        "applied_masks": ["own"],
        "checkpoint_sha256": [["ef" * 32]],
    }
    whole = slab(size, (sequences, 2, HEADS), np.random.default_rng(1))

    def write(path: Path, step: int) -> Path:
        with new_writer(path) as writer:
            group = writer.group("gpt", layout(**spread))
            for start, layer in itertools.product(range(0, sequences, step), range(2)):
                part = {"sequence": slice(start, start + step), "layer": layer}
                chosen = (slice(start, start + step), layer)
                arrays = {
                    name: getattr(whole, name)[chosen]
                    for name in ("singular_values", "floor_arithmetic", "floor_model", "resolved", "resolved_model")
                }
                measures = {name: np.asarray(values)[chosen] for name, values in whole.measures.items()}
                # one number for an axis of length one, and the axis left out, mean the same cells
                arrays = {name: values[np.newaxis, np.newaxis, np.newaxis] for name, values in arrays.items()}
                measures = {name: values[np.newaxis, np.newaxis, np.newaxis] for name, values in measures.items()}
                group.write(part | {"seed": 0}, Slab(method=0, status=0, measures=measures, **arrays))
        return path

    narrow, wide = write(tmp_path / "narrow.h5", step), write(tmp_path / "wide.h5", sequences)
    np.testing.assert_equal(read_group(narrow, "gpt"), read_group(wide, "gpt"))
    assert narrow.stat().st_size == wide.stat().st_size  # no chunk was compressed twice and left a hole


@pytest.mark.parametrize("name", ["singular_values", "stable_rank", "status"])
def test_reading_one_layer_of_one_arm_touches_only_its_chunks(one_arm: Path, tmp_path: Path, name: str) -> None:
    path, layer = Path(shutil.copy(one_arm, tmp_path / "copy.h5")), (1, 0, 0, 1, slice(None), 1)
    with h5py.File(path) as file:
        before, count = file["gpt"][name][layer], file["gpt"][name].id.get_num_chunks()
    spoilt = spoil_chunks(path, f"gpt/{name}", lambda offset: (*offset[:4], offset[5]) == (1, 0, 0, 1, 1))
    assert count - spoilt == (HEADS if name == "singular_values" else 1)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["gpt"][name][layer], before)
        with pytest.raises(OSError, match="filter returned failure"):
            file["gpt"][name][1, 0, 0, 1, :, 0]


def test_slabs_across_checkpoints_give_the_values_of_slabs_within_one(tmp_path: Path) -> None:
    chosen = rich_layout(regions=["full"], layer_measures={}, output_components=None)
    shape = tuple(len(chosen.labels[axis]) for axis in SPECTRUM_AXES)
    whole = slab(6, shape, np.random.default_rng(2))
    indices: dict[str, list[dict[str, int | slice]]] = {
        "all at once": [{}],
        "by head": [{"head": head} for head in range(shape[-1])],
        "by step": [{"step": slice(step, step + 1)} for step in range(shape[1])],
        "by seed": [{"seed": seed, "layer": layer} for layer in range(shape[5]) for seed in (1, 0)],
        "by number": [dict(zip(SPECTRUM_AXES, place, strict=True)) for place in np.ndindex(shape)],
    }
    found = {}
    for name, parts in indices.items():
        with new_writer(tmp_path / name) as writer:
            group = writer.group("gpt", chosen)
            for index in parts:
                group.write(index, part_of(whole, tuple(index.get(axis, slice(None)) for axis in SPECTRUM_AXES)))
        assert verify(tmp_path / name) == []
        found[name] = read_group(tmp_path / name, "gpt")
    np.testing.assert_array_equal(found["by head"]["stable_rank"], whole.measures["stable_rank"])
    for arrays in found.values():
        np.testing.assert_equal(arrays, found["by head"])


def part_of(values: Slab, place: tuple[int | slice, ...]) -> Slab:
    names = ("singular_values", "floor_arithmetic", "floor_model", "resolved", "resolved_model")
    arrays = {name: np.asarray(getattr(values, name))[place] for name in names}
    measures = {name: np.asarray(array)[place] for name, array in values.measures.items()}
    return Slab(**arrays, method=values.method, status=values.status, measures=measures)


class FlippingDisk:
    """A disk that flips one bit in the middle of one of its writes."""

    def __init__(self, number: int) -> None:
        self.number, self.writes, self.pwrite = number, 0, os.pwrite

    def __call__(self, descriptor: int, data: Any, offset: int) -> int:
        self.writes += 1
        if self.writes == self.number:
            data = bytearray(data)
            data[len(data) // 2] ^= 1
        return self.pwrite(descriptor, data, offset)


def test_a_bit_that_flips_on_its_way_to_the_disk_is_found_before_the_file_gets_its_name(
    one_arm: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FlippingDisk(0)
    monkeypatch.setattr(os, "pwrite", disk)
    write_spectra(old, force=True)
    numbers = np.linspace(1, disk.writes, 12, dtype=int).tolist()
    refused = 0
    for number in numbers:
        old.write_text("old")
        monkeypatch.setattr(os, "pwrite", FlippingDisk(number))
        try:
            write_spectra(old, force=True)
        except SpectrumFileError:
            refused += 1
            assert only_old_file(old)
        else:  # it fell into free space, or was written over
            np.testing.assert_equal(read_group(old, "gpt"), read_group(one_arm, "gpt"))
    assert refused > len(numbers) // 2


class Disk:
    """A disk that refuses every write after the first few."""

    def __init__(self, number: int, writes: int) -> None:
        self.number, self.writes, self.pwrite = number, writes, os.pwrite

    def __call__(self, descriptor: int, data: Any, offset: int) -> int:
        self.writes -= 1
        if self.writes < 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.pwrite(descriptor, data, offset)


REFUSALS = [
    (errno.ENOSPC, "no space left on device. Free some space"),
    (errno.EDQUOT, "Free some of your quota"),
    (errno.EIO, "Check the disk"),
    (errno.EFBIG, "file too large. Choose another folder"),
]


@pytest.mark.parametrize("writes", [0, 60])
@pytest.mark.parametrize(("number", "message"), REFUSALS)
def test_a_refused_write_is_one_storage_error_and_leaves_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, writes: int
) -> None:
    monkeypatch.setattr(os, "pwrite", Disk(number, writes))
    with pytest.raises(StorageError, match=message):
        write_spectra(old, force=True)
    assert only_old_file(old)


def test_a_refused_sync_is_one_storage_error_and_leaves_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="no space left on device"):
        write_spectra(old, force=True)
    assert only_old_file(old)


def test_what_a_full_disk_refused_reads_back_until_the_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(tmp_path / "sink", os.O_RDWR | os.O_CREAT)
    sink = _Sink(descriptor)
    sink.write(memoryview(b"0123456789"))
    monkeypatch.setattr(os, "pwrite", Disk(errno.ENOSPC, 0))
    sink.seek(4)
    assert sink.write(memoryview(b"abcd")) == 4
    sink.seek(12)
    sink.write(memoryview(b"z"))
    sink.seek(2)
    assert sink.read(11) == b"23abcd89\0\0z"
    assert (sink.seek(0, os.SEEK_END), sink.truncate(5), sink.seek(0, os.SEEK_END)) == (13, 5, 5)
    assert sink.refusal is not None
    os.close(descriptor)
    assert (tmp_path / "sink").read_bytes() == b"0123456789"


FULL_DISK = """
import resource, sys
from pathlib import Path
from store.spectra_file import write_spectra
from rankkit.errors import StorageError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_spectra(Path(sys.argv[1]), force=True)
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("size", [30_000, 50_000])
def test_a_process_survives_a_full_disk(old: Path, size: int) -> None:
    process = subprocess.run(
        [sys.executable, "-c", FULL_DISK, old, str(size)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")  # HDF5 by itself ends in a segmentation fault here
    assert "must be writable, got: file too large" in process.stdout
    assert only_old_file(old)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="Choose a folder you may write to"):
        write_spectra(tmp_path / "a.h5")


def test_a_path_through_a_file_is_one_storage_error(old: Path) -> None:
    with pytest.raises(StorageError, match="must be writable"):
        write_spectra(old / "a.h5")


def test_a_cell_is_written_once(tmp_path: Path) -> None:
    def write() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            group = writer.group("gpt", layout())
            group.write(*next(slabs("gpt")))
            group.write(*next(slabs("gpt")))

    with pytest.raises(ValueError, match="index must name cells that are not written yet"):
        write()


BAD_INDICES = [
    ({"seed": 2}, "seed must be a position from 0 to 1, got 2. Pass positions, not labels"),
    ({"seed": -1}, "seed must be a position from 0 to 1, got -1"),
    ({"sequence": slice(0, 4)}, r"sequence must be a contiguous slice within 0 to 3, got slice\(0, 4, None\)"),
    ({"sequence": slice(0, 3, 2)}, "sequence must be a contiguous slice"),
    ({"sequence": slice(2, 2)}, "sequence must be a contiguous slice"),
    ({"query": 0}, "index must name axes among seed, step, .*, got 'query'"),
]


def write_one(path: Path, index: Any, values: Slab) -> None:
    with new_writer(path) as writer:
        writer.group("gpt", layout()).write(index, values)


@pytest.mark.parametrize(("change", "message"), BAD_INDICES)
def test_a_wrong_index_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_one(tmp_path / "a.h5", INDEX | change, slab(6, (SEQUENCES, HEADS), GENERATOR))


def changed(values: Slab, **changes: Any) -> Slab:
    fields = {name: getattr(values, name) for name in Slab.__dataclass_fields__}
    return Slab(**(fields | changes))


BAD_SLABS = [
    ({"singular_values": np.ones((SEQUENCES, 6))}, ValueError, "singular_values must have shape .3, 2. and at most 6"),
    ({"singular_values": np.ones((SEQUENCES, HEADS, 7))}, ValueError, "at most 6 components, got .3, 2, 7."),
    ({"resolved": np.zeros(2)}, ValueError, "resolved must have shape .3, 2. or be one number, got .2,."),
    ({"method": "gram"}, ValueError, "method must be convertible to int8, got <U4"),
    ({"status": 9}, SpectrumFileError, "gpt: status must be a code from 0 to 3, got 6 matrices that break it"),
    ({"measures": {}}, ValueError, "measures must be attention_entropy, .*, got . Give the group's measures"),
    ({"resolved": 1}, SpectrumFileError, "resolved must be the number of singular values above floor_arithmetic"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_SLABS)
def test_a_slab_that_does_not_fit_or_contradicts_itself_is_refused_at_once(
    tmp_path: Path, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_one(tmp_path / "a.h5", INDEX, changed(slab(6, (SEQUENCES, HEADS), GENERATOR), **change))


def test_a_contradiction_in_a_slab_is_named_by_its_labels(tmp_path: Path) -> None:
    values = slab(6, (SEQUENCES, HEADS), GENERATOR)
    values.singular_values[2, 1, 3] = -1
    cell = "seed 7, step 500, region full, applied_mask swapped, sequence 2, layer 1, head 1"
    with pytest.raises(SpectrumFileError, match=f"must be finite and not negative, got 1 matrices .* at {cell}"):
        write_one(tmp_path / "a.h5", INDEX | {"seed": 1, "applied_mask": 1, "layer": 1}, values)


BAD_LAYOUTS = [
    ({"regions": ("full", "middle")}, ValueError, "region must be among full, .*, got 'middle'"),
    ({"applied_masks": ("own", "own")}, ValueError, "applied_mask must hold at least one label and none twice"),
    ({"seeds": [3, 3]}, ValueError, r"seed must hold at least one label and none twice, got \[3, 3\]"),
    ({"layers": []}, ValueError, "untrained must have shape .2, 0."),
    ({"prefix_length": np.array([1, 2])}, ValueError, "prefix_length must have shape .3,., got .2,."),
    ({"prefix_length": np.array([1, 2, 7])}, ValueError, "prefix_length must be between 0 and 6 .*, got 1 to 7"),
    ({"rows": np.full((2, 3), 9)}, ValueError, "rows must be between 0 and 6"),
    ({"columns": np.full((2, 3), -1)}, ValueError, "columns must be between 0 and 6"),
    ({"tokens": np.zeros((3, 6))}, ValueError, "tokens must hold whole numbers, got float64"),
    ({"valid_row": np.full((3, 6), 2)}, ValueError, "valid_row must be among 0, 1, got 2"),
    ({"measures": {"tokens": MEASURES["stable_rank"]}}, ValueError, "measure must have a name .* got 'tokens'"),
    ({"measures": {"Rank": MEASURES["stable_rank"]}}, ValueError, "measure must have a name .* got 'Rank'"),
    ({"attributes": {"bos": "none"}}, ValueError, "attributes must hold bos, .*, got none for packing, truncation"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_LAYOUTS)
def test_a_layout_that_cannot_hold_is_refused(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layout(**change)


BAD_ROOTS = [
    ({"attributes": {}}, ValueError, "attributes must hold torch_version, .*, got none for torch_version"),
    ({"attributes": HOST | {"complete": 1}}, ValueError, "attributes must not hold complete"),
    ({"attributes": HOST | {"fused": True}}, TypeError, "attribute fused must be text or a number, got True"),
    ({"attributes": HOST | {"note": "a\0b"}}, ValueError, "attribute note must be UTF-8 text without NUL"),
    ({"command": "rankkit \udcff"}, ValueError, "command must be UTF-8 text without NUL"),
    ({"title": "\0"}, ValueError, "title must be UTF-8 text without NUL"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_ROOTS)
def test_a_root_that_cannot_be_stored_is_refused(
    tmp_path: Path, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        new_writer(tmp_path / "a.h5", **change)


@pytest.mark.parametrize("name", ["gpt", "comparison", "comparison/x", "GPT", "a//b", "/a", "", "a/../b", "command"])
def test_a_group_name_that_is_taken_or_odd_is_refused(tmp_path: Path, name: str) -> None:
    def add() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            writer.group("gpt", layout())
            writer.group(name, layout())

    with pytest.raises(ValueError, match="name must be new, of lower-case letters"):
        add()


def test_a_group_name_through_a_variable_is_refused(tmp_path: Path) -> None:
    def add() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            writer.group("gpt", layout())
            writer.group("gpt/tokens", layout())

    with pytest.raises(ValueError, match="name must not run through the variable 'tokens'"):
        add()


def test_arms_may_lie_inside_other_groups(tmp_path: Path) -> None:
    names = ("t5/encoder", "baselines/uniform/gpt")
    path = tmp_path / "a.h5"
    with new_writer(path) as writer:
        for name in names:
            group = writer.group(name, layout())
            for index, values in slabs(name):
                group.write(index, values)
    assert verify(path) == []
    assert all(read_group(path, name, ["seed"])["seed"].tolist() == [0, 7] for name in names)


BAD_COMPARISONS = [
    ({"gap": np.zeros((3, 2, 2))}, "gap must have shape .3, 2, 2, 3., got .3, 2, 2."),
    ({"regions": ["full", "half"]}, "region must be among"),
    ({"measures": ["a", "a", "b"]}, "measure must hold at least one label and none twice"),
    ({"layers": []}, "layer must hold at least one label"),
]


@pytest.mark.parametrize(("change", "message"), BAD_COMPARISONS)
def test_a_comparison_that_does_not_fit_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    def compare() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            write_comparison(writer, **change)

    with pytest.raises(ValueError, match=message):
        compare()


def test_a_second_comparison_is_refused(tmp_path: Path) -> None:
    def compare() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            write_comparison(writer)
            write_comparison(writer)

    with pytest.raises(ValueError, match="comparison must be written once"):
        compare()


def test_nothing_is_written_outside_the_with_block(tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="SpectrumWriter must be open"):
        writer.group("gpt", layout())
    assert list(tmp_path.iterdir()) == []


def open_descriptors() -> int:
    def is_open(descriptor: int) -> bool:
        try:
            os.fstat(descriptor)
        except OSError:
            return False
        return True

    return sum(is_open(descriptor) for descriptor in range(256))


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = open_descriptors()
    write_spectra(tmp_path / "a.h5")
    with pytest.raises(OutputExistsError, match="must not exist"):
        write_spectra(tmp_path / "a.h5")
    assert open_descriptors() == before


def test_stacked_slabs_give_the_file_of_slabs_written_one_by_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    cells = list(itertools.product(range(len(SIZES)), range(2)))
    each = {
        (seed, layer): [slab(list(SIZES.values())[region], (SEQUENCES, HEADS), generator) for region, _ in cells]
        for seed, layer in itertools.product(range(2), range(LAYERS))
    }
    bound = np.full((SEQUENCES, HEADS), 0.5)
    each[0, 0][1] = dataclasses.replace(each[0, 0][1], errors={"stable_rank": bound})  # the others have none
    one_by_one, stacked = new_writer(tmp_path / "one.h5"), new_writer(tmp_path / "all.h5")
    with one_by_one, stacked:
        groups = [writer.group("gpt", layout(errors=["stable_rank"])) for writer in (one_by_one, stacked)]
        for (seed, layer), found in each.items():
            place = {"seed": seed, "step": 0, "layer": layer}
            for (region, mask), one in zip(cells, found, strict=True):
                groups[0].write({**place, "region": region, "applied_mask": mask}, one)
            everywhere = {"region": slice(0, len(SIZES)), "applied_mask": slice(0, 2)}
            groups[1].write({**place, **everywhere}, Slab.stacked(found, (len(SIZES), 2)))
    first, second = (read_group(tmp_path / name, "gpt") for name in ("one.h5", "all.h5"))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, strict=True)
    assert np.isfinite(first["stable_rank_error"]).sum() == SEQUENCES * HEADS
