"""The user's files: what is found, what is read, and one clear error for each that cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.data import DataConfig, Document, read_documents, sources
from rankkit.errors import DataError


def read(*entries: Path | str, key: str = "text") -> list[Document]:
    return list(read_documents(DataConfig(text=tuple(str(entry) for entry in entries), text_key=key)))


def names(*entries: Path | str) -> list[str]:
    return [document.name for document in read(*entries)]


def test_text_is_read_unchanged_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.rst").write_bytes(b"\xef\xbb\xbfone\r\ntwo \xe2\x82\xac\n\n")
    assert read(tmp_path / "a.rst") == [Document("a.rst", "one\r\ntwo €\n\n")]


def test_folder_gives_its_texts_recursively_by_posix_path_without_hidden_or_empty_ones(tmp_path: Path) -> None:
    for name in ("z.txt", "sub/a.md", "sub/b.py", "sub-/c.TXT", ".git/d.txt", ".e.txt", "image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "empty.txt").touch()
    assert names(tmp_path) == ["sub-/c.TXT", "sub/a.md", "sub/b.py", "z.txt"]


def test_glob_matches_files_below_its_fixed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/1.rst", "x/y/2.rst", "x/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f"text of {name}")
    assert names(tmp_path / "x" / "*.rst") == ["1.rst"]
    assert names(tmp_path / "**" / "*.rst") == ["x/1.rst", "x/y/2.rst"]
    monkeypatch.chdir(tmp_path / "x")
    assert names("[13].*") == ["1.rst", "3.txt"]


def test_existing_file_with_a_magic_character_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("text")
    assert names(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_json_lines_gives_one_document_per_line_and_skips_blank_ones(tmp_path: Path) -> None:
    lines = ['{"text": "one\\nline"}', "", '{"text": "two\u2028", "id": 3}', "  "]
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    assert read(tmp_path / "a.jsonl") == [
        Document("a.jsonl line 1", "one\nline"),
        Document("a.jsonl line 3", "two\u2028"),
    ]


def test_json_lines_reads_the_key_that_was_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "one", "text": 3}))
    assert [document.text for document in read(tmp_path / "a.jsonl", key="body")] == ["one"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', 'line 2 must be one JSON object, got \'{"text": "cut\''),
        (b'["text"]', "line 2 must be one JSON object"),
        (b"[" * 100_000, "line 2 must be one JSON object"),
        (b'{"body": "x"}', r"line 2 must have the key 'text', got the keys \['body'\]. Name the key with text_key"),
        (b'{"text": null}', "line 2 must hold a string under 'text', got NoneType"),
        (b'{"text": "\\ud800"}', "line 2 must be text that UTF-8 can hold, got a lone surrogate"),
        (b'{"text": "\xff"}', "line 2 must be UTF-8 text, got byte 0xff at byte offset 27"),
        (b'{"text": "\0"}', "line 2 must be text, got a NUL byte at byte offset 27"),
    ],
)
def test_json_lines_names_the_line_that_is_bad(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}' + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must not be empty, got 0 bytes"),
        (b"GIF89a\0\1", "must be text, got a NUL byte at byte offset 6"),
        ("text".encode("utf-16"), "must be text, got a NUL byte at byte offset 3"),
        (b"caf\xe9 au lait", "must be UTF-8 text, got byte 0xe9 at byte offset 3. Convert it"),
        (b"\xef\xbb\xbfcaf\xe9", "must be UTF-8 text, got byte 0xe9 at byte offset 6"),
        (b"cut \xe2\x82", "must be UTF-8 text, got byte 0xe2 at byte offset 4"),
    ],
)
def test_file_that_is_no_text_is_named_with_the_offset(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"a.txt {message}"):
        read(tmp_path / "a.txt")


def test_bad_file_inside_a_folder_is_an_error_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a.txt must be UTF-8"):
        read(tmp_path)


def test_missing_path_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text '.*nowhere.txt' must exist, got a missing path"):
        read_documents(DataConfig(text=(str(tmp_path / "nowhere.txt"),)))


def test_folder_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold at least one .jsonl, .md, .parquet, .py, .txt file, got none"):
        read(tmp_path)


def test_glob_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must match at least one file, got none"):
        read(tmp_path / "*.txt")


def test_glob_that_is_no_pattern_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must match at least one file|must be a valid pattern"):
        read(tmp_path / "a**b" / "*.txt")


def test_pipe_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"must be a file or a folder, got a device or pipe"):
        read(tmp_path / "pipe")


def test_refusal_of_the_file_system_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be readable, got: file name too long"):
        read(tmp_path / ("a" * 300))


def test_file_that_vanished_after_it_was_found_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    corpus = read_documents(DataConfig(text=(str(path),)))
    path.unlink()
    with pytest.raises(DataError, match=r"a.txt must be readable, got: no such file"):
        list(corpus)


@given(
    lines=st.lists(st.text(alphabet="ab€😀é", max_size=9), min_size=1, max_size=20),
    piece=st.integers(min_value=1, max_value=12),
)
@settings(max_examples=60, deadline=None)
def test_pieces_of_a_large_file_join_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], piece: int
) -> None:
    text = "\n".join(lines) + "\n"
    path = tmp_path_factory.mktemp("large") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "LARGE_FILE", 0)
        patch.setattr(sources, "LARGE_FILE_PIECE", piece)
        found = list(sources.read_source(sources.Source(path, "a.txt", is_named=True), text_key="text"))
    assert "".join(document.text for document in found) == text
    assert all(len(document.text.encode()) <= 2 * piece + 3 for document in found)


def test_large_file_names_the_offset_of_a_bad_byte_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGE_FILE", 0)
    monkeypatch.setattr(sources, "LARGE_FILE_PIECE", 10)
    (tmp_path / "a.txt").write_bytes(b"0123456\n" * 5 + b"caf\xe9\n")
    with pytest.raises(DataError, match=r"got byte 0xe9 at byte offset 43"):
        read(tmp_path / "a.txt")
