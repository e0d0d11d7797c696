"""A small run of `make fuzz`: every hand-made file and some hundred mutations, in a supervised worker."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from robustness.bases import write_bases
from robustness.cases import Cases
from robustness.fuzz import combined, summary
from robustness.fuzz_table import fuzz_table
from robustness.hostile_files import HOSTILE
from robustness.metadata import blocks_in, lookup3, reseal
from robustness.outside import MARK, OUTSIDE_BYTES, OUTSIDE_FILE, Watch, write_outside
from robustness.targets import TARGETS
from robustness.workers import GROUPS, Report, fuzz

SMALL_BASES = ("schema 1.0", "estimated", "half", "partner")
QUICK = ("inspect --verify", "open_spectra", "export --to csv")  # `make fuzz` runs all of them, and merges
MUTATED = 40
SEED = 1


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return write_bases(tmp_path_factory.mktemp("bases"), SMALL_BASES)


@pytest.fixture(scope="module")
def reports(bases: dict[str, bytes]) -> list[Report]:
    count = Cases(SEED, bases).hand_made + MUTATED
    return list(fuzz(range(count), seed=SEED, bases=bases, groups=[QUICK[:1], QUICK[1:]]))


def test_every_file_ends_in_success_or_one_clear_error(reports: list[Report]) -> None:
    assert [failure for report in reports for failure in report.failures] == []
    assert {verdict for report in reports for verdict, _ in report.endings.values()} == {
        "accepted",
        "problem",
        "refused",
    }


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hand_made_file_is_met_as_it_should_be(reports: list[Report], name: str) -> None:
    made = [report for report in reports if report.case.name == name]
    assert [report.case.base for report in made] == ["schema 1.0"]
    ends = {report.endings["inspect --verify"][0] for report in made}
    expected = {"refused": {"refused"}, "problem": {"problem", "refused"}, "harmless": {"accepted"}}
    assert ends <= expected[HOSTILE[name].verdict]


def test_a_run_is_told_by_its_seed_alone(bases: dict[str, bytes], tmp_path: Path) -> None:
    first, again, other = Cases(0, bases), Cases(0, bases), Cases(1, bases)
    numbers = range(first.hand_made, first.hand_made + 20)
    made = [
        [(cases.make(number, tmp_path / "a.h5").name, (tmp_path / "a.h5").read_bytes()) for number in numbers]
        for cases in (first, again, other)
    ]
    assert [name for name, _ in made[0]] == [name for name, _ in made[1]]
    assert sum(a == b for (_, a), (_, b) in zip(made[0], made[1], strict=True)) == len(numbers)
    assert made[0] != made[2]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.chdir(tmp_path)  # HDF5 looks for external storage there
    write_outside(tmp_path)
    return Watch(tmp_path)


def test_the_watch_sees_hdf5_follow_a_link_and_python_open_a_file(watched: Watch, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "case.h5", "w") as file:
        file["link"] = h5py.ExternalLink(OUTSIDE_FILE, "/text")
        file.create_dataset("bytes", (6,), "i1", external=[(OUTSIDE_BYTES, 0, 6)])
    for read in (lambda file: file["link"][()].decode(), lambda file: file["bytes"][...].tobytes().decode()):
        with watched.watching() as opened, h5py.File(tmp_path / "case.h5") as file:
            assert read(file) == MARK
        assert len(opened) == 1
        assert "was touched" in opened[0]
    with watched.watching() as opened:
        Path("/etc/hostname").exists()
        (tmp_path / "case.h5").read_bytes()
    assert opened == []
    with watched.watching() as opened, pytest.raises(FileNotFoundError):
        Path("/etc/no such file").read_bytes()
    assert opened == ["open /etc/no such file"]


def test_lookup3_is_bob_jenkinss() -> None:
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551


def test_metadata_that_was_changed_and_resealed_passes_hdf5s_checksum(bases: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(bases["estimated"])
    found = blocks_in(bytes(data))
    assert {block.kind for block in found} >= {"superblock", "OHDR", "OCHK"}
    block = next(block for block in found if block.kind == "superblock")
    data[block.start + 11] ^= 0  # nothing: sealed again it must be as it was
    reseal(data, block)
    assert bytes(data) == bases["estimated"]


def test_a_summary_counts_what_happened_and_gives_a_table(reports: list[Report]) -> None:
    found = json.loads(json.dumps(summary(reports, seed=SEED, seconds=61.4)))
    assert found["files"]["total"] == len(reports) == sum(found["files"]["by_kind"].values())
    assert found["files"]["by_kind"]["hand-made"] == len(HOSTILE)
    for target in QUICK:
        assert sum(found["outcomes"][target].values()) == len(reports)
    assert 0 < found["peak_memory_bytes"]["found"] < found["peak_memory_bytes"]["limit"]
    half = summary(reports[:60], seed=SEED, seconds=30), summary(reports[60:], seed=SEED, seconds=31.4)
    both = combined(half)
    for key in ("files", "outcomes", "hand_made", "failures", "peak_memory_bytes"):
        assert both[key] == found[key]
    assert both["slowest"]["seconds"] == found["slowest"]["seconds"]  # of several files, to the printed digit
    table = fuzz_table(found)
    assert table.count("\n| `") == len(TARGETS) == sum(map(len, GROUPS))
    assert f"{len(reports):,} files (" in table
    assert np.isclose(found["duration_seconds"], 61)
