"""What must hold of files after a fault, and after the command was run again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from robustness.fault_injection import Call

from rankkit.data.tokens import verify_tokens
from rankkit.errors import RankkitError
from rankkit.files import read_json_lines, sha256_of_file
from rankkit.store import verify
from rankkit.store.journal.records import Records, read_header
from rankkit.studies import open_run
from rankkit.training import load_model

__all__ = [
    "PARTIAL",
    "Problem",
    "checkpoints_of",
    "content",
    "differences",
    "file_problems",
    "leftovers",
    "run_problems",
    "slabs_of",
    "unsynced",
]

PARTIAL: Final = ".partial-"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must not happen."""

    category: str
    """Of `fault_table.CATEGORIES`."""
    text: str


def content(folder: Path) -> dict[str, Any]:
    """Every file below a folder by its path, hidden ones too, the seconds that steps took aside.

    Returns:
        Log lines and certificates as objects, other files by their SHA-256.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _content(path) for path in files if PARTIAL not in str(path)}


def _content(path: Path) -> Any:
    try:
        if path.name == "metrics.jsonl":
            return [{key: value for key, value in line.items() if key != "seconds"} for line in read_json_lines(path)]
        if path.name == "certificate.json":
            return _without_steps(json.loads(path.read_bytes()))
    except (RankkitError, ValueError) as damage:
        return str(damage)
    return sha256_of_file(path)


def _without_steps(value: Any) -> Any:
    """A certificate without its lists of checkpoints: where one arm is stopped, the others save where they are."""
    if isinstance(value, dict):
        return {key: _without_steps(entry) for key, entry in value.items() if key not in ("checkpoints", "steps")}
    return [_without_steps(entry) for entry in value] if isinstance(value, list) else value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> Iterator[Problem]:
    """Files that are missing, too many, or not the same; but for checkpoints of an interruption, at steps of their own."""
    folders = {str(Path(name).parent) for name in expected}
    names = {name for name in found if "/step-" not in name or str(Path(name).parent) in folders}
    for name in sorted(expected.keys() | names):
        if name not in found:
            yield Problem("wrong", f"{name} is missing")
        elif name not in expected:
            yield Problem("wrong", f"{name} should not be there")
        elif found[name] != expected[name]:
            yield Problem("wrong", f"{name} differs")


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders below a folder, without what they hold."""
    found = (path.relative_to(folder) for path in folder.rglob(f"*{PARTIAL}*"))
    return sorted(str(path) for path in found if PARTIAL not in str(path.parent))


def run_problems(path: Path) -> Iterator[Problem]:
    """What is not whole in a run directory, whether it is finished or not."""
    try:
        run = open_run(path)
        verify_tokens(run.directory.tokens, run.directory.tokenizer)
        for arm, seed in run.config.units:
            read_json_lines(run.directory.metrics(arm, seed))
            for step in run.directory.checkpoint_steps(arm, seed):
                folder = run.directory.checkpoint(arm, seed, step)
                load_model(folder, run.config.arm(arm).model)
                _check_state(folder)
        for document in path.rglob("*.json"):
            if PARTIAL not in str(document):
                json.loads(document.read_bytes())
    except (RankkitError, OSError, ValueError) as error:
        yield Problem("unreadable", f"{path.name}: {error}")


def _check_state(folder: Path) -> None:
    state = folder / "training.pt"
    if state.is_file():  # in the newest checkpoint alone
        expected = json.loads((folder / "checkpoint.json").read_bytes())["training_sha256"]
        if sha256_of_file(state) != expected:
            raise ValueError(f"{state} is not the one that was saved")
        torch.load(state, weights_only=True)


def file_problems(path: Path) -> Iterator[Problem]:
    """What is not whole in a spectrum file."""
    try:
        for problem in verify(path):
            yield Problem("unreadable", f"{path.name}: {problem}")
    except (RankkitError, OSError) as error:
        yield Problem("unreadable", f"{path.name}: {error}")


def unsynced(calls: Sequence[Call]) -> Iterator[Problem]:
    """Names that were given before everything under them was on the disk, which a power loss would then show.

    Follows every file through its renames. A folder counts as changed when a name in it is made, until it is synced.
    """
    dirty: set[str] = set()
    known: set[str] = set()
    for call in calls:
        if call.kind == "write" or call.name in ("ftruncate", "truncate", "fallocate"):
            dirty.add(call.path)
        elif call.kind == "create" and call.path not in known:
            known.add(call.path)
            dirty.add(str(Path(call.path).parent))
        elif call.kind == "fsync":
            dirty.discard(call.path)
        elif call.kind == "rename":
            yield from _named_too_early(call, dirty)
            dirty, known = _renamed(call, dirty), _renamed(call, known) | {call.target}
            dirty.add(str(Path(call.target).parent))
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            dirty.discard(call.path)
            known.discard(call.path)
    for path in sorted(dirty):  # what has its final name at the end must be there for good
        if PARTIAL not in path and not path.endswith(".lock"):
            yield Problem("unsynced", f"{path} was not synced at the end")


def _named_too_early(call: Call, dirty: set[str]) -> Iterator[Problem]:
    if PARTIAL in call.target:
        return
    for path in sorted(dirty):
        if path == call.path or path.startswith(f"{call.path}/"):
            yield Problem("unsynced", f"{call.target} got its name before {path} was synced")
    log = str(Path(call.target).parent / "metrics.jsonl")  # a checkpoint says that the log is complete up to it
    if Path(call.target).name.startswith("step-") and log in dirty:
        yield Problem("unsynced", f"{call.target} got its name before {log} was synced")


def _renamed(call: Call, paths: set[str]) -> set[str]:
    def moved(path: str) -> str:
        inside = path == call.path or path.startswith(f"{call.path}/")
        return call.target + path.removeprefix(call.path) if inside else path

    return {moved(path) for path in paths}


def checkpoints_of(path: Path) -> dict[str, int]:
    """The inode of every checkpoint's folder, by its name: one that was kept has the same after resuming."""
    run = open_run(path)
    folders = [
        run.directory.checkpoint(*unit, step)
        for unit in run.config.units
        for step in run.directory.checkpoint_steps(*unit)
    ]
    return {str(folder.relative_to(path)): folder.stat().st_ino for folder in folders}


def slabs_of(journal: Path) -> dict[str, int]:
    """Where in a journal every finished slab ends, by its key, in the order in which they were finished."""
    descriptor = os.open(journal, os.O_RDONLY)
    try:
        header = read_header(descriptor, journal)
        if header is None:
            return {}
        found = Records(descriptor, header).scan(header.end)
    finally:
        os.close(descriptor)
    keys = sorted(found.positions, key=lambda key: found.positions[key])
    ends = [*(found.positions[key] for key in keys[1:]), found.end]
    return dict(zip(keys, ends, strict=False))  # one end more where nothing was finished
