"""Files that are whole or absent, logs that may be torn, locks, and what --force may replace."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankkit import files
from rankkit.errors import OutputExistsError, RunError, StorageError
from rankkit.files import RunDirectory

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.ENOENT,
            errno.EEXIST, errno.EBUSY)  # fmt: skip


def fill(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def fails(error: BaseException) -> Callable[..., Any]:
    def write(*_: Any, **__: Any) -> None:
        raise error

    return write


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# One file.


def test_a_file_appears_with_its_content_in_folders_made_for_it(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a" / "b" / "note.txt", "été\n")
    assert (tmp_path / "a" / "b" / "note.txt").read_bytes() == "été\n".encode()
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1


def test_colleagues_may_read_what_is_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / "note.txt", "")
    with files.atomic_directory(tmp_path / "folder"):
        pass
    assert stat.S_IMODE((tmp_path / "note.txt").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("ours"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "note.txt"
    files.write_text(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise error

    with pytest.raises((StorageError, type(error))):
        files.write_atomically(path, write)
    assert tree(tmp_path) == {"note.txt": b"old"}


def test_a_reader_never_sees_half_a_file_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    files.write_text(path, "old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        seen.append(path.read_text())
        temporary.write_text("new")
        seen.append(path.read_text())

    files.write_atomically(path, write)
    assert [*seen, path.read_text()] == ["old", "old", "new"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("sync"), sync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda path, target: (order.append("name"), replace(path, target))[1])
    files.write_text(tmp_path / "note.txt", "x")
    assert order == ["sync", "name", "sync"]  # the last one is the folder's


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    files.write_json(tmp_path / "one.json", {"b": 1, "a": [2.5, None]})
    files.write_json(tmp_path / "other.json", {"a": [2.5, None], "b": 1})
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()


def test_not_a_number_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "one.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.append_json_line(tmp_path / "log.jsonl", {"loss": float("inf")})
    assert not (tmp_path / "one.json").exists()


@pytest.mark.parametrize("number", REFUSALS)
def test_a_refusal_of_the_file_system_is_one_line_with_a_remedy(number: int, tmp_path: Path) -> None:
    pattern = rf"a/b must be writable, got: {os.strerror(number).lower()}\. .+\. What was saved before is intact\."
    with pytest.raises(StorageError, match=pattern) as caught, files.storage_errors(Path("a/b")):
        raise OSError(number, "refused")
    assert isinstance(caught.value.__cause__, OSError)


def test_another_error_passes_unchanged() -> None:
    with pytest.raises(BlockingIOError), files.storage_errors(Path("a")):
        raise BlockingIOError(errno.EAGAIN, "later")
    with pytest.raises(ZeroDivisionError), files.storage_errors(Path("a")):
        raise ZeroDivisionError


# A folder.


def test_a_folder_appears_when_everything_is_in_it(tmp_path: Path) -> None:
    with files.atomic_directory(tmp_path / "run") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text("x")
        assert not (tmp_path / "run").exists()
        assert temporary.parent == tmp_path  # on the same disk, or the rename would be a copy
    assert tree(tmp_path) == {"run/deep/file": b"x"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("ours"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    files.write_text(tmp_path / "run" / "old", "old")

    def begin() -> None:
        with files.atomic_directory(tmp_path / "run") as temporary:
            (temporary / "new").write_text("new")
            raise error

    with pytest.raises((StorageError, type(error))):
        begin()
    assert tree(tmp_path) == {"run/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    files.write_text(tmp_path / "run" / "old", "old")
    with files.atomic_directory(tmp_path / "run") as temporary:
        (temporary / "new").write_text("new")
    assert tree(tmp_path) == {"run/new": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("can", [True, False])
def test_a_folder_replaces_the_old_one_where_names_can_be_exchanged_and_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    files.write_text(tmp_path / "run" / "old", "old")
    renamed = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (renamed.append(target), replace(path, target))[1])
    if not can:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    with files.atomic_directory(tmp_path / "run") as temporary:
        (temporary / "new").write_text("new")
    assert tree(tmp_path) == {"run/new": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    if sys.platform == "linux":
        assert len(renamed) == (0 if can else 2)  # exchanged: at no moment was there neither


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged on Linux")
def test_an_exchange_that_is_refused_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "none", tmp_path / "neither")
    files.write_text(tmp_path / "run" / "old", "old")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="input/output error"):  # noqa: PT012
        patch.setattr(files, "_exchange", fails(OSError(errno.EIO, "broken")))
        with files.atomic_directory(tmp_path / "run") as temporary:
            (temporary / "new").write_text("new")
    assert tree(tmp_path) == {"run/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_made_way_for_one_that_never_came_gets_its_name_back(tmp_path: Path) -> None:
    files.write_text(tmp_path / ".step-000002.partial-abc-former" / "kept", "")
    files.write_text(tmp_path / ".step-000003.partial-abc-former" / "old", "")
    files.write_text(tmp_path / "step-000003" / "new", "")
    files.remove_partial(tmp_path)
    assert set(tree(tmp_path)) == {"step-000002/kept", "step-000003/new"}
    files.write_text(tmp_path / ".run.partial-abc-former" / "old", "")
    with files.atomic_directory(tmp_path / "run"):
        assert set(tree(tmp_path / "run")) == {"old"}  # there until the new one is
    assert {entry.name for entry in tmp_path.iterdir()} == {"step-000002", "step-000003", "run"}


def test_every_folder_inside_and_on_the_way_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    sync = files.fsync_folder
    monkeypatch.setattr(files, "fsync_folder", lambda folder: (synced.append(folder), sync(folder))[1])
    with files.atomic_directory(tmp_path / "a" / "b" / "run") as temporary:
        (temporary / "deep" / "deeper").mkdir(parents=True)
        inside = [temporary / "deep", temporary / "deep" / "deeper", temporary]
    assert synced == [tmp_path, tmp_path / "a", *inside, tmp_path / "a" / "b"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    files.write_text(tmp_path / "run" / "old", "old")
    replace = Path.replace

    def refuse_new(path: Path, target: Path) -> Path:
        if target == tmp_path / "run" and (path / "new").exists():
            raise OSError(errno.EIO, "broken")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse_new)
    with (
        pytest.raises(StorageError, match="input/output error"),
        files.atomic_directory(tmp_path / "run") as temporary,
    ):
        (temporary / "new").write_text("new")
    assert tree(tmp_path) == {"run/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_linked_folder_stays_a_link_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch", target_is_directory=True)
    with files.atomic_directory(tmp_path / "run") as temporary:
        (temporary / "new").write_text("new")
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "scratch" / "new").read_text() == "new"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    files.write_text(tmp_path / "step-000001" / "kept", "")
    files.write_text(tmp_path / ".hidden", "")
    (tmp_path / ".step-000002.partial-abc").mkdir()
    (tmp_path / ".step-000002.partial-abc" / "half").write_text("")
    (tmp_path / ".note.txt.partial-xyz").write_text("")
    files.remove_partial(tmp_path)
    assert set(tree(tmp_path)) == {"step-000001/kept", ".hidden"}


def test_a_partial_of_every_writer_is_found_by_remove_partial(tmp_path: Path) -> None:
    """A process killed inside leaves its temporary name, which no handler could remove."""
    code = (
        "import os, sys; from pathlib import Path; from rankkit import files\n"
        "folder = Path(sys.argv[1])\n"
        "def die(path): path.write_text('half'); os._exit(9)\n"
        "if sys.argv[2] == 'file': files.write_atomically(folder / 'note.txt', die)\n"
        "with files.atomic_directory(folder / 'step') as temporary: die(temporary / 'half')\n"
    )
    for kind in ("file", "folder"):
        assert subprocess.run([sys.executable, "-c", code, tmp_path, kind], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 2
    files.remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from rankkit import files

def wait(path):
    print(path.name, flush=True)
    sys.stdin.read()

if sys.argv[2] == "file":
    files.write_atomically(Path(sys.argv[1]), wait)
with files.atomic_directory(Path(sys.argv[1])) as temporary:
    wait(temporary)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_writer_removes_what_a_killed_one_left_and_not_what_a_living_one_holds(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "no[t]e"  # what a pattern would take for another name
    (tmp_path / ".not.partial-abc").write_text("of another name")
    command = [sys.executable, "-c", HOLD, str(path), kind]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        held = process.stdout.readline().strip()
        files.write_text(path, "by us")
        assert {entry.name for entry in tmp_path.iterdir()} == {path.name, ".not.partial-abc", held}
        process.kill()
        process.wait()
        files.write_text(path, "by us again")
        assert {entry.name for entry in tmp_path.iterdir()} == {path.name, ".not.partial-abc"}


def test_a_temporary_file_that_was_taken_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    taken: list[int] = []

    def lock_late(descriptor: int, how: int) -> None:
        lock(descriptor, how)
        if not taken:
            next(tmp_path.iterdir()).unlink()
        taken.append(descriptor)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    files.write_text(tmp_path / "note.txt", "new")
    assert len(taken) == 2
    assert tree(tmp_path) == {"note.txt": b"new"}


def test_without_locks_files_are_written_and_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".note.txt.partial-abc").write_text("whose?")
    monkeypatch.setattr(fcntl, "flock", fails(OSError(errno.ENOLCK, "no locks")))
    files.write_text(tmp_path / "note.txt", "new")
    assert tree(tmp_path) == {".note.txt.partial-abc": b"whose?", "note.txt": b"new"}


# Logs.


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6), max_size=3), max_size=4),
    st.integers(0, 200),
)
def test_a_log_torn_anywhere_in_its_last_line_reads_as_without_that_line(
    tmp_path: Path, lines: list[dict[str, Any]], cut: int
) -> None:
    path = tmp_path / "log.jsonl"
    path.unlink(missing_ok=True)
    for line in lines:
        files.append_json_line(path, line)
    whole = path.stat().st_size if lines else 0
    files.append_json_line(path, {"last": "ünd"})
    with path.open("r+b") as file:
        file.truncate(whole + min(cut, path.stat().st_size - whole - 1))  # at most without its newline
    assert files.read_json_lines(path) == lines


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert files.read_json_lines(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize("damage", [b"{oops}", b'{"a": \xff}', b""])
def test_a_damaged_line_before_the_last_one_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 2}\n')
    with pytest.raises(RunError, match=r"log.jsonl line 2 must be one JSON object, got .*Restore the file"):
        files.read_json_lines(tmp_path / "log.jsonl")


def test_stepping_back_keeps_the_lines_asked_for_and_drops_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for step in range(5):
        files.append_json_line(path, {"step": step, "loss": 0.1 * step})
    expected = b"".join(path.read_bytes().splitlines(keepends=True)[:3])
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    files.keep_json_lines(path, lambda line: line["step"] <= 2)
    assert path.read_bytes() == expected


def test_a_log_line_that_the_disk_refuses_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"log\.jsonl must be writable, got: no such file or directory"):
        files.append_json_line(tmp_path / "missing" / "log.jsonl", {})


@pytest.mark.parametrize("size", [0, 1, files._HASH_BLOCK - 1, files._HASH_BLOCK, 2 * files._HASH_BLOCK + 7])
def test_a_files_hash_is_that_of_all_its_bytes(tmp_path: Path, size: int) -> None:
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# Outputs that exist.


def test_a_new_file_may_be_written_and_an_old_one_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "spectrum.h5"
    files.check_output_file(path, force=False)
    path.write_text("old")
    with pytest.raises(OutputExistsError, match=r"spectrum.h5 must not exist yet. Add --force to replace it"):
        files.check_output_file(path, force=False)
    files.check_output_file(path, force=True)
    assert path.read_text() == "old"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path, force: bool) -> None:
    with pytest.raises(OutputExistsError, match="must be the name of a file, got a folder"):
        files.check_output_file(tmp_path, force=force)


def test_a_folder_may_be_new_empty_or_with_force_a_run(tmp_path: Path) -> None:
    files.check_output_folder(tmp_path / "new", force=False)
    (tmp_path / "empty").mkdir()
    files.check_output_folder(tmp_path / "empty", force=False)
    files.write_text(tmp_path / "run" / "run.toml", "")
    with pytest.raises(OutputExistsError, match="run must not exist yet"):
        files.check_output_folder(tmp_path / "run", force=False)
    files.check_output_folder(tmp_path / "run", force=True)


def test_force_does_not_cost_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    files.write_text(tmp_path / "home" / "thesis.tex", "years")
    (tmp_path / "file").write_text("a file")
    for name in ("home", "file"):
        with pytest.raises(
            OutputExistsError, match=f"{name} must be a rankkit run to be replaced, got something without"
        ):
            files.check_output_folder(tmp_path / name, force=True)
    assert tree(tmp_path) == {"home/thesis.tex": b"years", "file": b"a file"}


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_folder_that_a_command_runs_in_is_not_replaced_under_its_feet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputExistsError, match="must not be the folder that you are in"):
        files.check_output_folder(Path(name), force=True)


# The lock.


def test_a_second_holder_is_refused_by_name_and_the_lock_ends_with_the_first(tmp_path: Path) -> None:
    with (
        files.exclusive(tmp_path / "run" / ".lock", "run r"),
        pytest.raises(RunError, match="run r must not be in use, but another rankkit process is writing it"),
        files.exclusive(tmp_path / "run" / ".lock", "run r"),
    ):
        pass
    with files.exclusive(tmp_path / "run" / ".lock", "run r"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from rankkit import files\n"
        "with files.exclusive(Path(sys.argv[1]), 'it'):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / ".lock"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="it must not be in use"), files.exclusive(tmp_path / ".lock", "it"):
            pass
        process.kill()
    with files.exclusive(tmp_path / ".lock", "it"):
        pass


# The layout of a run.


def test_a_run_directory_names_its_files_as_documented() -> None:
    run = RunDirectory(Path("runs/x"))
    assert [str(path) for path in (run.configuration, run.certificate, run.tokenizer, run.spectrum, run.figures)] == [
        "runs/x/run.toml", "runs/x/certificate.json", "runs/x/tokenizer.json", "runs/x/spectrum.h5", "runs/x/figures",
    ]  # fmt: skip
    assert str(run.metrics("gpt", 0)) == "runs/x/gpt/seed-0/metrics.jsonl"
    assert str(run.evaluation("unilm", 12)) == "runs/x/unilm/seed-12/evaluation.json"
    assert str(run.checkpoint("gpt", 0, 500)) == "runs/x/gpt/seed-0/step-000500"
    assert str(run.checkpoint("gpt", 0, 1234567)) == "runs/x/gpt/seed-0/step-1234567"


def test_checkpoint_steps_are_ascending_numbers_and_leave_out_what_is_unfinished(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.checkpoint_steps("gpt", 0) == []
    for name in ("step-000010", "step-1000000", "step-000002", ".step-000003.partial-x", "step-", "step-old"):
        (run.unit("gpt", 0) / name).mkdir(parents=True)
    assert run.checkpoint_steps("gpt", 0) == [2, 10, 1000000]


def test_json_lines_are_one_object_a_line_with_sorted_keys(tmp_path: Path) -> None:
    files.append_json_line(tmp_path / "log.jsonl", {"b": 1, "a": "two\nlines"})
    assert (tmp_path / "log.jsonl").read_text() == json.dumps({"a": "two\nlines", "b": 1}) + "\n"
