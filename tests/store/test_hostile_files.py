import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robustness.hostile_files import HOSTILE, make_hostile
from store.spectra_file import RECOMPUTE

from rankkit.errors import SpectrumFileError
from rankkit.store import describe, read_group, read_root, verify
from rankkit.store.door.hdf5 import opened
from rankkit.store.door.heaps import broken_heap

READERS: list[Callable[[Path], Any]] = [verify, describe, read_root, lambda path: read_group(path, "gpt")]


def refused(path: Path, message: str, readers: list[Callable[[Path], Any]] = READERS) -> None:
    """Every way of reading the file gives the same one line."""
    for reader in readers:
        with pytest.raises(SpectrumFileError, match=message) as caught:
            reader(path)
        assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.h5", "must be an HDF5 file, got no such file. Check the path")
    refused(tmp_path, "must be an HDF5 file, got a folder")
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "empty.h5", "must be an HDF5 file, got an empty one")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"PK\x03\x04 not HDF5" * 100)
    refused(path, "must be an HDF5 file, got one that starts with b'PK")


def test_an_unreadable_file_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    refused(copy, "must be readable, got: permission denied. Ask its owner")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(copy: Path, share: float) -> None:
    os.truncate(copy, int(copy.stat().st_size * share))
    refused(copy, "damaged|must be an HDF5 file")


def test_a_foreign_hdf5_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    refused(
        path, "must have a superblock of version 2 or 3, got 0. rankkit leaves no such file: .* from another program"
    )


def change_root(path: Path, **attributes: Any) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)


def test_a_newer_schema_is_refused_with_the_version_to_install(copy: Path) -> None:
    change_root(copy, rankkit_schema="2.1", rankkit_version="3.4.0")
    refused(copy, r"must follow schema 1.x, got '2.1'. Install rankkit 3.4.0 or newer to read it")


def test_a_newer_schema_from_an_odd_version_gives_no_odd_advice(copy: Path) -> None:
    change_root(copy, rankkit_schema="12.0", rankkit_version="1; rm -rf /")
    refused(copy, "Install rankkit of the machine that wrote it or newer")


def test_a_newer_minor_schema_is_read(copy: Path) -> None:
    change_root(copy, rankkit_schema="1.9")
    assert describe(copy).root.attributes["rankkit_schema"] == "1.9"


def test_a_schema_that_is_no_version_is_refused(copy: Path) -> None:
    change_root(copy, rankkit_schema="latest")
    refused(copy, "rankkit_schema must be a version such as 1.2, got 'latest'")


def test_an_unfinished_file_is_refused(copy: Path) -> None:
    change_root(copy, complete=0)
    refused(copy, "must be complete, got an unfinished file")


REFUSED = [name for name, hostile in HOSTILE.items() if hostile.verdict == "refused"]
OTHERS = [name for name in HOSTILE if name not in REFUSED]


@pytest.mark.parametrize("name", REFUSED)
def test_a_hand_made_hostile_file_is_refused_before_anything_is_read(one_arm: Path, tmp_path: Path, name: str) -> None:
    refused(make_hostile(name, one_arm.read_bytes(), tmp_path / "a.h5"), HOSTILE[name].message, [read_root])


@pytest.mark.parametrize("name", OTHERS)
def test_a_hand_made_file_that_opens_is_whole_or_says_what_is_not(one_arm: Path, tmp_path: Path, name: str) -> None:
    path = make_hostile(name, one_arm.read_bytes(), tmp_path / "a.h5")
    try:
        problems = verify(path, RECOMPUTE)
    except SpectrumFileError as error:
        problems = [str(error)]
    assert bool(problems) == (HOSTILE[name].verdict == "problem")
    assert not problems or re.search(HOSTILE[name].message, problems[0])


def test_one_long_label_is_refused_where_labels_are_read(one_arm: Path, tmp_path: Path) -> None:
    path = make_hostile("one_long_label", one_arm.read_bytes(), tmp_path / "a.h5")
    with pytest.raises(SpectrumFileError, match="/gpt/region must hold short texts, got more than 5000 characters"):
        read_group(path, "gpt", ["region"])


def test_no_filter_plugin_is_loaded_whatever_the_environment_says() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HDF5_PLUGIN_PRELOAD"}
    program = "import os, rankkit.store; print(os.environ['HDF5_PLUGIN_PRELOAD'])"
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert process.stdout == "::\n"


def test_letters_in_the_data_that_look_like_a_heap_are_no_heap(tmp_path: Path, one_arm: Path) -> None:
    assert broken_heap(one_arm) is None
    path = tmp_path / "data"
    path.write_bytes(b"GCOL\x01\x00\x00\x00" + b"\xff" * 100)
    assert broken_heap(path) is None


def contents(path: Path) -> dict[str, Any]:
    description = describe(path)
    names = [group.name for group in description.groups] + [f"functional/{arm}" for arm in description.functional]
    names += [
        "comparison",
        *(["comparison/by_step"] if description.comparison and description.comparison.steps else []),
    ]
    return {name: read_group(path, name) for name in names} | {"root": read_root(path)}


def flip(original: Path, folder: Path, position: float, bit: int) -> None:
    """One flipped bit is refused, reported, or changes nothing."""
    data = bytearray(original.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    path = folder / "flipped.h5"
    path.write_bytes(data)
    try:
        problems = verify(path, RECOMPUTE)
    except SpectrumFileError:
        return
    if not problems:
        np.testing.assert_equal(contents(path), contents(original))


@settings(max_examples=25)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_reported_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, one_arm: Path, position: float, bit: int
) -> None:
    flip(one_arm, tmp_path_factory.mktemp("flip"), position, bit)


@settings(max_examples=10, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_file_of_everything_is_reported_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, lean: Path, position: float, bit: int
) -> None:
    flip(lean, tmp_path_factory.mktemp("flip"), position, bit)


@pytest.mark.parametrize("name", ["comparison", "functional", "comparison/by_step"])
def test_a_variable_where_a_group_belongs_is_refused(lean_copy: Path, name: str) -> None:
    with h5py.File(lean_copy, "r+", libver=("v110", "v110")) as file:
        del file[name]
        file[name] = np.arange(3)
    refused(lean_copy, f"/{name} must be a group, got a variable. Restore a copy", [verify, describe, READERS[-1]])


def remade(name: str, values: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file["gpt"][name]
        file["gpt"][name] = values

    return edit


MISTYPED = [
    (remade("seed", np.int64(0)), "/gpt/seed must be of type int64 with axes .seed., got int64 of shape ()"),
    (remade("method", np.zeros((1, 1, 2, 1, 2, 2, 2))), "/gpt/method must be of type int8 .*, got float64"),
    (remade("rows", np.zeros((3, 2), dtype=np.int32)), "/gpt/rows must be of type int32 with axes .region, sequence."),
    (remade("region", "full"), "/gpt/region must be of type string"),
    (remade("head", np.zeros((2, 2), dtype=np.int64)), "/gpt/head must be of type int64 with axes .head."),
]


@pytest.mark.parametrize(("edit", "message"), MISTYPED)
def test_a_description_refuses_variables_of_another_type_or_shape(
    lean_copy: Path, edit: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(lean_copy, "r+", libver=("v110", "v110")) as file:
        edit(file)
    refused(lean_copy, message, [describe])


@pytest.mark.parametrize("name", ["singular_values", "stable_rank", "tokens", "method"])
def test_a_flipped_bit_inside_a_chunk_fails_its_checksum(copy: Path, name: str) -> None:
    with h5py.File(copy) as file:
        chunk = file["gpt"][name].id.get_chunk_info(0)
    data = bytearray(copy.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 1
    copy.write_bytes(data)
    assert verify(copy) == [f"gpt/{name} must match its checksum, got a damaged chunk"]
    with pytest.raises(SpectrumFileError, match=f"/gpt/{name} must be readable, got .*. The file is damaged"):
        read_group(copy, "gpt", [name])


def test_the_file_is_closed_after_a_refusal(copy: Path) -> None:
    change_root(copy, complete=0)
    with pytest.raises(SpectrumFileError, match="unfinished"), opened(copy):
        pass
    with h5py.File(copy, "r+") as file:  # h5py refuses this while the file is open for reading
        file.attrs["complete"] = 1
    assert describe(copy).groups
