"""A journal keeps what it returned from, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from rankkit import files
from rankkit.errors import ConfigurationError, OutputExistsError, RunError, StorageError
from rankkit.store.journal import records
from rankkit.store.journal import slabs as journal_module
from rankkit.store.journal.slabs import Journal, journal_path

FACTS = {"configuration": "layers = 4\nheads = 4\n", "checkpoint": "ab" * 32, "threads": "2"}

NUMBERS = st.sampled_from(["<f8", "<f4", "<f2", ">f8", "<i8", "<i4", "|i1", "|u1", "|b1", "<c16"])
ARRAYS = NUMBERS.flatmap(
    lambda dtype: arrays(np.uint8, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)).map(
        lambda bits: np.frombuffer(np.repeat(bits.reshape(-1), np.dtype(dtype).itemsize), dtype).reshape(bits.shape)
    )
)
"""Arrays of any bits: payloads of nan, infinities, subnormals, empty ones, of no axis."""
SLABS = st.dictionaries(st.text(max_size=5), ARRAYS, max_size=4)
JOURNALS = st.dictionaries(st.text(max_size=8), SLABS, min_size=1, max_size=5)


@pytest.fixture(scope="module", autouse=True)
def _no_disk() -> Iterator[None]:
    """Syncs only matter to a power loss, which no test can bring about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_path(tmp_path / "spectrum.h5")


def begun(path: Path, slabs: dict[str, Any] | None = None, **facts: str) -> Path:
    with Journal.open(path, FACTS | facts, resume=False, force=True, notes={"command": "first"}) as journal:
        for key, slab in (slabs or {}).items():
            journal.put(key, slab)
    return path


def resumed(path: Path) -> Journal:
    return Journal.open(path, FACTS, resume=True, force=False)


def slab(number: int, size: int = 8) -> dict[str, NDArray[Any]]:
    return {"values": np.arange(size) + float(number), "status": np.asarray(number, np.int8)}


def assert_same(found: dict[str, NDArray[Any]] | None, expected: dict[str, NDArray[Any]]) -> None:
    assert found is not None
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable
        assert found[name].flags.aligned


def ends_of(slabs: dict[str, Any]) -> list[int]:
    """The size of the file before and after every put."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        with Journal.open(path, FACTS, resume=False, force=False, notes={"command": "first"}) as journal:
            ends = [path.stat().st_size]
            for key, values in slabs.items():
                journal.put(key, values)
                ends.append(path.stat().st_size)
    return ends


# What was put comes back.


@settings(max_examples=40, deadline=None)
@given(JOURNALS, JOURNALS)
def test_every_bit_comes_back_at_once_and_after_every_reopening(first: dict[str, Any], second: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, expected = Path(folder) / "journal", {}
        for slabs in (first, {key: values for key, values in second.items() if key not in first}):
            with Journal.open(path, FACTS, resume=True, force=False) as journal:
                for key, values in slabs.items():
                    assert key not in journal
                    assert journal.get(key) is None
                    journal.put(key, values)
                expected |= slabs
                for key, values in expected.items():
                    assert_same(journal.get(key), values)
                assert len(journal) == len(expected)
                assert journal.damaged == ()
        with Journal.open(path, FACTS, resume=True, force=False) as journal:
            for key, values in expected.items():
                assert key in journal
                assert_same(journal.get(key), values)


def test_arrays_of_any_layout_come_back_in_order(path: Path) -> None:
    table = np.arange(24.0).reshape(2, 3, 4)
    begun(path, {"a": {"strided": table[:, ::2], "swapped": table.T, "reversed": table[::-1], "number": np.float64(7)}})
    with resumed(path) as journal:
        found = journal.get("a")
    assert found is not None
    np.testing.assert_array_equal(found["strided"], table[:, ::2])
    np.testing.assert_array_equal(found["swapped"], table.T)
    np.testing.assert_array_equal(found["reversed"], table[::-1])
    assert (found["number"].shape, float(found["number"])) == ((), 7.0)
    assert all(array.flags.c_contiguous for array in found.values())


def test_memory_holds_no_arrays(path: Path) -> None:
    with Journal.open(path, FACTS, resume=False, force=False) as journal:
        values = slab(1)
        journal.put("a", values)
        values["values"][:] = 0
        first = journal.get("a")
        assert first is not None
        assert first["values"][0] == 1
        first["values"][:] = 0
        assert_same(journal.get("a"), slab(1))


def test_notes_are_those_of_the_beginning(path: Path) -> None:
    begun(path, {"a": slab(1)})
    with Journal.open(path, FACTS, resume=True, force=False, notes={"command": "second"}) as journal:
        assert journal.notes == {"command": "first"}
        assert journal.path == path


def test_the_journal_lies_beside_its_file_and_survives_the_cleaning(tmp_path: Path) -> None:
    path = begun(journal_path(tmp_path / "deep" / "spectrum.h5"), {"a": slab(1)})
    assert path == tmp_path / "deep" / "spectrum.h5.journal"
    files.remove_partial(path.parent)
    with resumed(path) as journal:
        assert "a" in journal


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("a", {}, "key must be new, got 'a' again"),
        ("b", {"text": np.asarray(["x"])}, "text must hold numbers, got <U1. Convert it."),
        ("b", {"objects": np.asarray([None])}, "objects must hold numbers, got object"),
        (
            "b",
            {"x" * (1 << 18): np.zeros(1)},
            "b must take at most 17179869184 bytes, and 262144 for its names and shapes",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_and_changes_nothing(
    path: Path, key: str, values: dict[str, Any], message: str
) -> None:
    with Journal.open(path, FACTS, resume=False, force=False) as journal:
        journal.put("a", slab(1))
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            journal.put(key, values)
        assert path.read_bytes() == before
        journal.put("c", slab(2))
    with resumed(path) as journal:
        assert_same(journal.get("c"), slab(2))


def test_facts_of_any_length_are_refused_before_anything_is_lost(path: Path) -> None:
    begun(path, {"a": slab(1)})
    with pytest.raises(ValueError, match="facts must take at most 16777216 bytes, got"):
        Journal.open(path, {"text": "x" * (1 << 24)}, resume=False, force=True)
    with resumed(path) as journal:
        assert "a" in journal


def test_a_closed_journal_takes_and_gives_nothing(path: Path) -> None:
    with Journal.open(path, FACTS, resume=False, force=False) as journal:
        pass
    journal.close()
    for use in (lambda: journal.put("a", {}), lambda: journal.get("a"), journal.discard):
        with pytest.raises(ValueError, match="Journal must be open, got a closed one"):
            use()  # type: ignore[no-untyped-call]


# Beginning, continuing, beginning again.


def test_an_existing_journal_asks_whether_to_continue_or_to_begin_again(path: Path) -> None:
    begun(path, {"a": slab(1), "b": slab(2)})
    before = path.read_bytes()
    message = (
        r"spectrum\.h5\.journal must not exist yet, got .*: 2 finished slabs are kept\. Add --resume .* or --force"
    )
    with pytest.raises(OutputExistsError, match=message):
        Journal.open(path, FACTS, resume=False, force=False)
    assert path.read_bytes() == before
    with Journal.open(path, FACTS, resume=True, force=True) as journal:
        assert len(journal) == 2, "resume wins: --force is then about the final file"
    with Journal.open(path, {"other": "facts"}, resume=False, force=True) as journal:
        assert len(journal) == 0
        assert path.stat().st_size < len(before)


@pytest.mark.parametrize("resume", [False, True])
def test_a_journal_without_slabs_is_begun_again_without_asking(path: Path, resume: bool) -> None:
    begun(path)
    with Journal.open(path, {"other": "facts"}, resume=resume, force=False) as journal:
        assert len(journal) == 0
        journal.put("a", slab(1))
    with Journal.open(path, {"other": "facts"}, resume=True, force=False) as journal:
        assert_same(journal.get("a"), slab(1))


def test_resuming_nothing_is_beginning(path: Path) -> None:
    with resumed(path) as journal:
        journal.put("a", slab(1))
    with resumed(path) as journal:
        assert "a" in journal


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            FACTS | {"threads": "4"},
            r"threads must be what it was when .*journal was begun, '2', got '4'\. Change it back",
        ),
        ({"configuration": FACTS["configuration"]}, r"checkpoint must be what it was .*, 'abab.*'\.\.\., got ''"),
        (FACTS | {"device": "cuda"}, r"device must be what it was .*, '', got 'cuda'"),
        (
            FACTS | {"configuration": "layers = 4\nheads = 8\n"},
            r"configuration must be what it was .*, 'layers = 4\\nheads = 4\\n', got 'layers = 4\\nheads = 8\\n'",
        ),
        (FACTS | {"checkpoint": "ab" * 31 + "cd"}, r"checkpoint .* begun, \.\.\.'(ab){10}ab', got \.\.\.'(ab){10}cd'"),
    ],
)
def test_other_facts_are_refused_by_name(path: Path, facts: dict[str, str], message: str) -> None:
    begun(path, {"a": slab(1)})
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=message):
        Journal.open(path, facts, resume=True, force=False)
    assert path.read_bytes() == before


def test_a_discarded_journal_is_gone_and_a_new_one_begins(path: Path) -> None:
    with resumed(path) as journal:
        journal.put("a", slab(1))
        journal.discard()
        assert not path.exists()
    with resumed(path) as journal:
        assert len(journal) == 0


# Two processes.

WRITER = """
import os, sys
import numpy as np
from rankkit.store.journal.slabs import Journal
journal = Journal.open(sys.argv[1], {"fact": "one"}, resume=True, force=False)
print("open", flush=True)
for number in range(len(journal), 10**6):
    journal.put(str(number), {"values": np.full(int(sys.argv[2]), number, dtype=np.float64)})
    os.write(1, b"%d\\n" % number)
"""


def writer(path: Path, size: int) -> subprocess.Popen[bytes]:
    """A process that puts slabs of so many numbers for ever, and says which are done."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, path, str(size)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


@pytest.mark.parametrize(("resume", "force"), [(False, False), (True, False), (False, True)])
def test_two_holders_cannot_write_the_same_journal(path: Path, resume: bool, force: bool) -> None:
    with resumed(path) as journal:
        journal.put("a", slab(1))
        before = path.read_bytes()
        with pytest.raises(RunError, match=r"journal .*spectrum\.h5\.journal must not be in use, but another rankkit"):
            Journal.open(path, FACTS, resume=resume, force=force)
        assert path.read_bytes() == before
    with resumed(path) as journal:
        assert "a" in journal


def test_another_process_is_kept_out_until_the_writer_is_killed(path: Path) -> None:
    with writer(path, 10) as process:
        with pytest.raises(RunError, match="must not be in use"):
            Journal.open(path, {"fact": "one"}, resume=True, force=False)
        process.kill()
    with Journal.open(path, {"fact": "one"}, resume=True, force=False) as journal:
        assert journal.damaged == ()


def test_a_journal_that_is_deleted_while_another_waits_is_made_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was opened is not the one that has the name when the lock is free."""
    begun(path, {"a": slab(1)})
    lock, calls = files.lock, []

    def late(descriptor: int, what: str) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        lock(descriptor, what)

    monkeypatch.setattr(journal_module, "lock", late)
    with resumed(path) as journal:
        assert len(calls) == 2
        assert len(journal) == 0
        journal.put("b", slab(2))
    with resumed(path) as journal:
        assert "b" in journal


KILLER = """
import os, signal, struct, sys, time
import numpy as np
from rankkit.store.journal.slabs import Journal

def write(path, told):
    with Journal.open(path, {"fact": "one"}, resume=True, force=False) as journal:
        for number in range(len(journal), 10**6):
            journal.put(str(number), {"values": np.full(20_000, number, dtype=np.float64)})
            os.write(told, struct.pack("<q", number + 1))

done = 0
for delay in np.random.default_rng(0).uniform(0, 0.02, size=20):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(sys.argv[1], writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        content = told.read(8)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        content += told.read()
    numbers = [number for (number,) in struct.iter_unpack("<q", content)]
    assert numbers[0] > done, "it began after everything that was done before"
    done = numbers[-1]
print(done)
"""


def test_nothing_that_put_returned_from_is_lost_to_twenty_kills(path: Path) -> None:
    """Each writer continues where the one before was killed; every slab takes several writes."""
    killer = subprocess.run([sys.executable, "-c", KILLER, path], capture_output=True, text=True, check=True)
    done = int(killer.stdout)
    assert done >= 20
    with Journal.open(path, {"fact": "one"}, resume=True, force=False) as journal:
        assert done <= len(journal) <= done + 1
        assert journal.damaged == ()
        for number in range(len(journal)):
            assert_same(journal.get(str(number)), {"values": np.full(20_000, number, dtype=np.float64)})


# A torn end and other damage.


def test_a_journal_cut_anywhere_in_its_last_record_holds_all_others(path: Path) -> None:
    slabs = {str(number): slab(number, size=3) for number in range(3)}
    ends = ends_of(slabs)
    whole = begun(path, slabs).read_bytes()
    for cut in range(ends[2], ends[3]):
        path.write_bytes(whole[:cut])
        with resumed(path) as journal:
            assert len(journal) == 2
            assert journal.damaged == ()
            assert path.stat().st_size == ends[2]
            assert_same(journal.get("1"), slabs["1"])
            journal.put("2", slabs["2"])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("zeros", [1, 40, 5000])
def test_an_end_that_a_power_loss_left_unwritten_is_torn(path: Path, zeros: int) -> None:
    whole = begun(path, {"a": slab(1)}).read_bytes()
    path.write_bytes(whole + bytes(zeros))
    with resumed(path) as journal:
        assert (len(journal), journal.damaged) == (1, ())
        assert path.stat().st_size == len(whole)


def test_a_journal_cut_in_its_header_is_begun_again(path: Path) -> None:
    whole = begun(path, {"a": slab(1)}).read_bytes()
    for cut in range(ends_of({})[0]):
        path.write_bytes(whole[:cut])
        with Journal.open(path, FACTS, resume=False, force=False) as journal:
            assert len(journal) == 0


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 255), st.integers(1, 40))
def test_damage_anywhere_gives_no_wrong_number_and_costs_no_later_slab(where: int, bits: int, length: int) -> None:
    slabs = {str(number): slab(number) for number in range(5)}
    ends = ends_of(slabs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        content = bytearray(begun(path, slabs).read_bytes())
        where = ends[0] + where % (len(content) - ends[0])
        for position in range(where, min(where + length, len(content))):
            content[position] ^= bits
        path.write_bytes(content)
        hit = {str(n) for n in range(5) if ends[n] < where + length and where < ends[n + 1]}
        with resumed(path) as journal:
            for key, values in slabs.items():
                if key in hit:
                    assert key not in journal
                    assert journal.get(key) is None
                else:
                    assert_same(journal.get(key), values)
            reported = {name for name in journal.damaged if not name.startswith("bytes ")}
            assert reported <= hit
            assert bool(journal.damaged) == any(key < max(slabs.keys() - hit) for key in hit), "else it is a torn end"
            for key in sorted(hit):
                journal.put(key, slabs[key])
        with resumed(path) as journal:
            assert all(name.startswith("bytes ") for name in journal.damaged), "what was put again is no longer missing"
            for key, values in slabs.items():
                assert_same(journal.get(key), values)


def test_what_is_damaged_is_named_and_measured_again(path: Path) -> None:
    slabs = {str(number): slab(number) for number in range(4)}
    ends = ends_of(slabs)
    content = bytearray(begun(path, slabs).read_bytes())
    content[ends[2] - 40] ^= 1  # the arrays of record 1
    content[ends[2] + 3] ^= 1  # the mark of record 2
    path.write_bytes(content)
    with resumed(path) as journal:
        assert journal.damaged == ("1", f"bytes {ends[2]} to {ends[3]}")
        assert [key for key in slabs if key in journal] == ["0", "3"]


def test_damage_while_the_journal_is_open_is_found_when_it_is_read(path: Path) -> None:
    ends = ends_of({"a": slab(1), "b": slab(2)})
    with Journal.open(path, FACTS, resume=False, force=False, notes={"command": "first"}) as journal:
        journal.put("a", slab(1))
        journal.put("b", slab(2))
        with path.open("r+b") as file:
            file.seek(ends[1] - 40)
            file.write(b"\xff")
        with pytest.raises(
            StorageError, match=r"must stay as it is while it is open, got a damaged slab 'a'\. Check the"
        ):
            journal.get("a")
        assert_same(journal.get("b"), slab(2))
    with resumed(path) as journal:
        assert ("a" in journal, journal.damaged) == (False, ("a",))
        journal.put("a", slab(1))
        assert_same(journal.get("a"), slab(1))


def test_a_record_of_another_journal_or_place_is_none(path: Path) -> None:
    """A file system may hand out the blocks of a deleted journal again, in a file that a power loss left unwritten."""
    ends = ends_of({"a": slab(1), "b": slab(2)})
    content = begun(path, {"a": slab(1), "b": slab(2)}).read_bytes()
    other = begun(path, {"a": slab(3), "b": slab(4), "c": slab(5)}, threads="8").read_bytes()
    first, second = content[ends[0] : ends[1]], content[ends[1] :]
    assert len(first) == len(second)
    for stale in (content + other[ends[2] :], content + first, content + second):
        path.write_bytes(stale)
        with resumed(path) as journal:
            assert len(journal) == 2
            assert path.stat().st_size == ends[2]
    path.write_bytes(content[: ends[0]] + second + first)
    with resumed(path) as journal:
        assert len(journal) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 7))
def test_a_damaged_header_is_one_error_and_can_be_begun_again(where: int, bit: int) -> None:
    end = ends_of({})[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        content = bytearray(begun(path, {"a": slab(1)}).read_bytes())
        where = 18 + where % (end - 18)
        content[where] ^= 1 << bit
        path.write_bytes(content)
        with pytest.raises(
            RunError, match=r"journal must have a whole header, got a damaged one\. Add --force without"
        ):
            Journal.open(path, FACTS, resume=True, force=False)
        assert path.read_bytes() == content
        with Journal.open(path, FACTS, resume=False, force=True) as journal:
            assert len(journal) == 0


# Files that are something else.


@pytest.mark.parametrize(
    "content", [b"years of work", b"\x89HDF\r\n\x1a\n", b"rankkit", b"rankkit journey\n", bytes(100)]
)
@pytest.mark.parametrize(("resume", "force"), [(False, False), (True, False), (False, True)])
def test_a_foreign_file_is_refused_and_left_alone(path: Path, content: bytes, resume: bool, force: bool) -> None:
    path.write_bytes(content)
    if b"rankkit journal 1\n".startswith(content):
        with Journal.open(path, FACTS, resume=resume, force=force):
            return
    with pytest.raises(
        RunError, match=r"must be a rankkit journal, got something else\. Move it away, or choose another"
    ):
        Journal.open(path, FACTS, resume=resume, force=force)
    assert path.read_bytes() == content


def test_a_journal_of_another_version_is_refused_unless_it_is_begun_again(path: Path) -> None:
    path.write_bytes(b"rankkit journal 12\nwhatever")
    with pytest.raises(
        RunError, match=r"must be a journal of version 1, got version '12'\. Continue it with the rankkit"
    ):
        Journal.open(path, FACTS, resume=True, force=False)
    with Journal.open(path, FACTS, resume=False, force=True) as journal:
        assert len(journal) == 0


def test_what_is_no_plain_file_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OutputExistsError, match="must be the name of a file, got a folder"):
        resumed(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(RunError, match="must be a rankkit journal, got no plain file"):
        resumed(path)


HEADS = [
    b"",
    b"[" * 20_000,
    b"[]",
    b"{}",
    b'{"key": 1, "arrays": []}',
    b'{"key": "a", "arrays": {}}',
    b'{"key": "a", "arrays": [1]}',
    b'{"key": "a", "arrays": [["x", "|O8", [1]]]}',
    b'{"key": "a", "arrays": [["x", "<f3", [1]]]}',
    b'{"key": "a", "arrays": [["x", "<f8", [-1]]]}',
    b'{"key": "a", "arrays": [["x", "<f8", [true]]]}',
    b'{"key": "a", "arrays": [["x", "<f8", [0, 99999999999999999999]]]}',
    b'{"key": "a", "arrays": [["x", "<f8", [4611686018427387904]]]}',
    b'{"key": "a", "arrays": [["x", "<f8", [' + b"1, " * 40 + b"1]]]}",
    b'{"key": "a", "arrays": [["x", "<f8", [2]]]}',
]


@pytest.mark.parametrize("text", HEADS)
@pytest.mark.parametrize("length", [0, 8])
def test_a_forged_record_with_right_sums_is_no_record(path: Path, text: bytes, length: int) -> None:
    begun(path, {"a": slab(1)})
    with path.open("r+b") as file:
        header = records.read_header(file.fileno(), path)
        assert header is not None
        position = file.seek(0, os.SEEK_END)
        forger = records.Records(file.fileno(), header)
        head = records._PREFIX.pack(records._MARK, len(text), length) + text
        total = forger._sum(position, head)
        body = bytes(length)
        file.write(head + total + body + records.hashlib.sha256(total + body).digest())
    with resumed(path) as journal:
        assert len(journal) == 1
        assert_same(journal.get("a"), slab(1))


def test_a_record_that_declares_more_than_there_is_allocates_nothing(path: Path) -> None:
    size = ends_of({})[0]
    begun(path)
    with path.open("r+b") as file:
        header = records.read_header(file.fileno(), path)
        assert header is not None
        text = b'{"key": "a", "arrays": [["x", "<f8", [1073741824]]]}'
        head = records._PREFIX.pack(records._MARK, len(text), 8 << 30) + text
        file.seek(size)
        file.write(head + records.Records(file.fileno(), header)._sum(size, head))
    with resumed(path) as journal:
        assert len(journal) == 0


# A disk that refuses.


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ENOLCK])
@pytest.mark.parametrize("written", [0, 1, 30, 200])
def test_a_refused_write_leaves_the_journal_as_it_was_and_says_how_to_continue(
    path: Path, number: int, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    left = [written]

    def refuse(descriptor: int, buffer: Any, position: int) -> int:
        if not left[0]:
            raise OSError(number, os.strerror(number))
        part = memoryview(buffer)[: left[0]]
        left[0] -= len(part)
        return pwrite(descriptor, part, position)

    with resumed(path) as journal:
        journal.put("a", slab(1))
        before = path.read_bytes()
        pattern = rf"able, got: {os.strerror(number).lower()}\. .* 1 finished slab is kept: add --resume to the same"
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refuse)
            with pytest.raises(StorageError, match=pattern) as caught:
                journal.put("b", slab(2))
        assert isinstance(caught.value.__cause__, OSError)
        assert path.read_bytes() == before
        assert "b" not in journal
        journal.put("c", slab(3))
        journal.put("b", slab(4))
    with resumed(path) as journal:
        assert [len(journal), journal.damaged] == [3, ()]
        assert_same(journal.get("b"), slab(4))


def test_what_cannot_be_cut_off_after_a_refusal_is_overwritten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    with resumed(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "_SYNC_SECONDS", 0)
            patch.setattr(os, "fsync", refuse)
            patch.setattr(os, "ftruncate", refuse)
            with pytest.raises(StorageError, match="0 finished slabs are kept"):
                journal.put("long", slab(1, size=1000))
        journal.put("short", slab(2))
    assert path.stat().st_size > 8000
    with resumed(path) as journal:
        assert [len(journal), journal.damaged] == [1, ()]
        assert_same(journal.get("short"), slab(2))
    assert path.stat().st_size < 8000


def test_a_file_that_may_not_grow_keeps_what_it_has(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with resumed(path) as journal:
        journal.put("a", slab(1, size=1000))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
            with pytest.raises(StorageError, match=r"got: file too large\. .* 1 finished slab is kept"):
                journal.put("b", slab(2, size=1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.put("b", slab(3, size=1000))
    with resumed(path) as journal:
        assert_same(journal.get("a"), slab(1, size=1000))
        assert_same(journal.get("b"), slab(3, size=1000))


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_journal_that_cannot_be_begun_is_absent(path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=r"must be writable, got: no space left on device\. Free some space"):
            resumed(path)
    assert not path.exists()
    with resumed(path) as journal:
        assert len(journal) == 0


def test_a_place_that_takes_no_files_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"must be writable, got: (not a directory|file exists)"):
        resumed(tmp_path / "file" / "journal")


def test_an_interrupted_put_leaves_the_journal_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, calls = os.pwrite, []

    def interrupt(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pwrite(*arguments)

    with resumed(path) as journal:
        journal.put("a", slab(1))
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", interrupt)
            with pytest.raises(KeyboardInterrupt):
                journal.put("b", slab(2))
        assert path.read_bytes() == before
        assert "b" not in journal


# Syncs.


def test_the_disk_is_synced_every_few_seconds_of_puts_and_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now: list[float] = [100.0]
    synced: list[float] = []

    def count(descriptor: int) -> None:
        os.fstat(descriptor)  # still open
        synced.append(now[0])

    monkeypatch.setattr(journal_module, "monotonic", lambda: now[0])
    with resumed(path) as journal:
        monkeypatch.setattr(os, "fsync", count)
        for number, second in enumerate([101.0, 104.9, 105.0, 106.0, 130.0, 131.0]):
            now[0] = second
            journal.put(str(number), slab(number))
        assert synced == [105.0, 130.0]
    assert synced == [105.0, 130.0, 131.0]


def test_a_refusal_on_closing_is_raised_unless_another_error_is_on_its_way(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    journal = resumed(path)
    journal.put("a", slab(1))
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"input/output error\. .* 1 finished slab is kept"), journal:
        pass
    monkeypatch.undo()
    journal = resumed(path)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ZeroDivisionError) as caught, journal:
        raise ZeroDivisionError
    assert "input/output error" in caught.value.__notes__[0]
    monkeypatch.undo()
    with resumed(path) as journal:
        assert "a" in journal, "the lock ended all the same"


def test_a_file_system_without_locks_costs_slabs_and_no_wrong_number(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "lock", lambda *_: None)
    with resumed(path) as one, resumed(path) as other:
        one.put("a", slab(1))
        other.put("b", slab(2))  # over it
        with pytest.raises(StorageError, match="got a damaged slab 'a'"):
            one.get("a")
        assert_same(other.get("b"), slab(2))
