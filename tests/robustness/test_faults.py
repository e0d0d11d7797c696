"""A seeded sample of `make faults`, and that its faults are real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from robustness.fault_checks import unsynced
from robustness.fault_injection import Call, build_shim, read_log, why_no_shim
from robustness.fault_table import CATEGORIES, KINDS, fault_table

pytestmark = pytest.mark.skipif(why_no_shim() is not None, reason=f"faults need another machine: {why_no_shim()}")

TESTS = Path(__file__).parent.parent
WORKLOADS = ("train-pair", "spectrum")
"""Those of files of one kind; `make faults` has all."""
WRITERS = """
import ctypes, pathlib, sys
import h5py, numpy, torch, safetensors.torch
pathlib.Path("python").write_text("x" * 100)
numpy.arange(100.0).tofile("stdio")
torch.save(torch.ones(9), "torch")
safetensors.torch.save_file({"a": torch.ones(9)}, "safetensors")
with h5py.File("hdf5", "w") as file:
    file["a"] = numpy.arange(100)
pathlib.Path("python").replace("renamed")
"""
"""Writes by Python, by C's buffered files, by C++, by Rust and by HDF5."""


def run_with_shim(code: str, folder: Path, kind: str, call: int) -> subprocess.CompletedProcess[str]:
    place = folder / "place"
    place.mkdir(exist_ok=True)
    (folder / "log").touch()
    (folder / "state").write_bytes(bytes(12))
    environment = {
        **os.environ,
        "LD_PRELOAD": str(build_shim(folder)),
        "FAULT_FOLDER": str(place),
        "FAULT_STATE": str(folder / "state"),
        "FAULT_LOG": str(folder / "log"),
        "FAULT_KIND": kind,
        "FAULT_AT": str(call),
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, start_new_session=True, check=False
    )


def test_calls_of_every_library_are_seen(tmp_path: Path) -> None:
    ended = run_with_shim(WRITERS, tmp_path, "none", 0)
    assert (ended.returncode, ended.stderr) == (0, "")
    calls = read_log(tmp_path, tmp_path / "place")
    names = {call.path: call.target for call in calls if call.kind == "rename"}  # safetensors renames its file, too
    written = {names.get(call.path, call.path) for call in calls if call.kind == "write"}
    assert written == {"renamed", "stdio", "torch", "safetensors", "hdf5"}
    assert [call.number for call in calls] == list(range(1, len(calls) + 1))


WRITE = """
import os
file = os.open("it", os.O_WRONLY | os.O_CREAT)
for _ in range(3):
    print(os.write(file, b"x" * 100), flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "status", "said", "error", "bytes_left"),
    [
        ("kill", -9, "100\n", "", 100),
        ("torn", -9, "100\n", "", 150),
        ("full", 1, "100\n50\n", "No space left on device", 150),
        ("28", 1, "100\n", "No space left on device", 100),
        ("5", 1, "100\n", "Input/output error", 100),
        ("none", 0, "100\n100\n100\n", "", 300),
    ],
)
def test_the_call_that_was_asked_for_fails_as_asked(
    kind: str, status: int, said: str, error: str, bytes_left: int, tmp_path: Path
) -> None:
    ended = run_with_shim(WRITE, tmp_path, kind, 3)  # the first opens the file
    assert (ended.returncode, ended.stdout) == (status, said)
    assert error in ended.stderr
    assert (tmp_path / "place" / "it").stat().st_size == bytes_left


def test_a_name_given_before_its_bytes_were_synced_is_found() -> None:
    steps = [("openat", "a.partial-x", ""), ("write", "a.partial-x", ""), ("fsync", "a.partial-x", ""),
             ("rename", "a.partial-x", "a"), ("fsync", ".", "")]  # fmt: skip

    def problems(without: int | None = None) -> list[str]:
        kept = [step for number, step in enumerate(steps) if number != without]
        return [problem.text for problem in unsynced([Call(1, name, 0, 0, path, to) for name, path, to in kept])]

    assert problems() == []
    assert problems(without=2)[0] == "a got its name before a.partial-x was synced"
    assert problems(without=4) == [". was not synced at the end"]


def test_twenty_faults_lose_nothing_and_leave_only_whole_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "robustness.faults", "--workers", "1", "--out", str(tmp_path / "faults.json")]
    options = ["--sample", "10", "--seed", "1", *(word for name in WORKLOADS for word in ("--workload", name))]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((tmp_path / "faults.json").read_text())
    assert summary["faults"] >= 18  # a random moment may come after the end
    assert summary["problems"] == dict.fromkeys(CATEGORIES, 0)
    assert ended.stdout == fault_table(summary)


def test_the_table_has_a_row_for_each_command_and_all_faults_add_up() -> None:
    faults = {kind: 1 + number for number, kind in enumerate(KINDS)}
    problems = {category: 10 + number for number, category in enumerate(CATEGORIES)}
    found = {"faults": faults, "problems": problems}
    facts = {"date": "2026-01-02", "seconds": 600, "seed": 7, "versions": {"torch": "2.13.0"}}
    table = fault_table({**facts, "faults": 56, "problems": problems, "workloads": {"merge": found, "export": found}})
    heading, rule, *rows, _, line = table.splitlines()
    assert heading.count("|") == rule.count("|") == rows[0].count("|")
    assert rows[0] == "| `merge` | 10 | 11 | 7 | 10 | 11 | 28 | 59 |"
    assert rows[2] == "| all | 20 | 22 | 14 | 20 | 22 | 56 | 118 |"
    assert line.startswith("56 faults (2 killed before a system call, 4 killed in the middle of a write, ")
    assert line.endswith("; seed 7), 2026-01-02: 108 failures in 10 minutes. torch 2.13.0.")
