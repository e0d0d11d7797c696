"""The user's files: found eagerly, so that a wrong path is an error at once, and read lazily, document by document."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rankkit.data.documents import Document
from rankkit.data.tables import is_saved_dataset, read_arrow, read_parquet, saved_files
from rankkit.errors import DataError

__all__ = ["FOLDER_SUFFIXES", "Source", "find_sources", "read_source", "readable"]

FOLDER_SUFFIXES: Final = (".jsonl", ".md", ".parquet", ".py", ".txt")
"""What is read from a folder; hidden files and folders are not."""

LARGE_FILE = 1 << 26  # bytes; a larger text file is read in pieces, so that memory does not grow with it
LARGE_FILE_PIECE = 1 << 22  # bytes; its tokens as a Python list of byte-pair ids then stay near 60 MB
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read."""

    path: Path
    """Where it is."""
    name: str
    """POSIX path below the folder or the fixed part of the glob, so the same on every machine."""
    is_named: bool
    """Whether the user named this file; an empty file is an error there, and skipped inside a folder or glob."""


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the file system's refusal to read `path` into one `DataError`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise DataError(
            f"{path} must be readable, got: {reason}. Check the path and its permissions, or leave it out."
        ) from error


def find_sources(entry: str, /) -> list[Source]:
    """Resolve one entry of `DataConfig.text` to files, sorted by POSIX path.

    Args:
        entry: a file, a folder (its `FOLDER_SUFFIXES`, recursively), a Hugging Face `save_to_disk` folder, or a glob
            (`**` recurses; matching folders are not entered).

    Returns:
        At least one source.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    path = Path(entry)
    with readable(path):
        if path.is_file():
            return [Source(path, path.name, is_named=True)]
        if path.is_dir():
            return _in_folder(path)
        if path.exists():
            raise DataError(
                f"text {entry!r} must be a file or a folder, got a device or pipe. Save it as a file first."
            )
        if any(character in entry for character in "*?["):
            return _matching(path, entry)
    raise DataError(f"text {entry!r} must exist, got a missing path. Check the spelling.")


def _in_folder(folder: Path) -> list[Source]:
    if is_saved_dataset(folder):
        return [Source(file, file.name, is_named=True) for file in saved_files(folder)]
    found = []
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if file.suffix.lower() in FOLDER_SUFFIXES and not is_hidden and file.is_file():
            found.append(Source(file, name.as_posix(), is_named=False))
    if not found:
        raise DataError(
            f"folder {str(folder)!r} must hold at least one {', '.join(FOLDER_SUFFIXES)} file, got none. "
            "Name the files themselves, or a glob such as 'folder/*.rst'."
        )
    return sorted(found, key=lambda source: source.name)


def _matching(pattern: Path, entry: str) -> list[Source]:
    magic = next(i for i, part in enumerate(pattern.parts) if any(character in part for character in "*?["))
    root, rest = Path(*pattern.parts[:magic]), Path(*pattern.parts[magic:])
    try:
        files = [file for file in root.glob(str(rest)) if file.is_file()]
    except ValueError as error:
        raise DataError(
            f"glob {entry!r} must be a valid pattern, got: {error}. Give '**' a path component of its own."
        ) from error
    if not files:
        raise DataError(
            f"glob {entry!r} must match at least one file, got none. Check the pattern and the current folder."
        )
    sources = (Source(file, file.relative_to(root).as_posix(), is_named=False) for file in files)
    return sorted(sources, key=lambda source: source.name)


def read_source(source: Source, /, *, text_key: str) -> Iterator[Document]:
    """Read the documents of one file, whatever its kind.

    Args:
        source: where it is.
        text_key: key or column of the text in `.jsonl`, `.parquet` and `.arrow`.

    Yields:
        Its documents in order.

    Raises:
        DataError: it cannot be read, is empty though named, is not text, is not UTF-8, or a line or row has no text.
        ConfigurationError: `.parquet` or `.arrow` without pyarrow.
    """
    with readable(source.path):
        if source.path.stat().st_size == 0:
            if source.is_named:
                raise DataError(f"{source.path} must not be empty, got 0 bytes. Put text in it, or leave it out.")
            return
        match source.path.suffix.lower():
            case ".jsonl":
                yield from _read_json_lines(source, text_key)
            case ".parquet":
                yield from read_parquet(source.path, source.name, text_key)
            case ".arrow":
                yield from read_arrow(source.path, source.name, text_key)
            case _:
                yield from _read_text(source)


def _read_text(source: Source) -> Iterator[Document]:
    if source.path.stat().st_size <= LARGE_FILE:
        yield Document(source.name, decode(source.path.read_bytes(), source.path))
        return
    for offset, block in _blocks(source.path):
        yield Document(f"{source.name} from byte {offset}", decode(block, source.path, offset=offset))


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Cut a large file after newlines, or between characters where no newline is near."""
    with path.open("rb") as file:
        offset = 0
        while block := file.read(LARGE_FILE_PIECE):
            block += file.readline(LARGE_FILE_PIECE)
            for _ in range(3):  # a UTF-8 character has at most three continuation bytes
                following = file.peek(1)[:1]
                if not following or following[0] & 0xC0 != 0x80:
                    break
                block += file.read(1)
            yield offset, block
            offset += len(block)


def decode(content: bytes, path: Path, *, offset: int = 0, place: str = "") -> str:
    """Decode UTF-8, refusing what is not text.

    Args:
        content: the bytes.
        path: for the message.
        offset: where `content` begins in the file, in bytes.
        place: such as " line 3", for the message.

    Returns:
        The text, without a byte order mark.

    Raises:
        DataError: a NUL byte, or bytes that are not UTF-8.
    """
    if (nul := content.find(b"\0")) >= 0:
        raise DataError(
            f"{path}{place} must be text, got a NUL byte at byte offset {offset + nul} (a binary or UTF-16 file). "
            "Convert it to UTF-8 text, or leave it out."
        )
    try:
        return content.removeprefix(_BYTE_ORDER_MARK if offset == 0 else b"").decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start + (3 if offset == 0 and content.startswith(_BYTE_ORDER_MARK) else 0)
        raise DataError(
            f"{path}{place} must be UTF-8 text, got byte 0x{content[start]:02x} at byte offset {offset + start}. "
            "Convert it, for example with iconv -f latin1 -t utf-8, or leave it out."
        ) from error


def _read_json_lines(source: Source, text_key: str) -> Iterator[Document]:
    with source.path.open("rb") as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            text = decode(line, source.path, offset=offset, place=f" line {number}")
            offset += len(line)
            if text.strip():
                yield Document(f"{source.name} line {number}", _text_of(text, f"{source.path} line {number}", text_key))


def _text_of(line: str, place: str, text_key: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} must be one JSON object, got {line.strip()[:40]!r}. Repair the line or delete it."
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{place} must be one JSON object, got {line.strip()[:40]!r}. Write {{{text_key!r}: ...}}.")
    if text_key not in value:
        raise DataError(
            f"{place} must have the key {text_key!r}, got the keys {sorted(value)[:8]!r}. Name the key with text_key."
        )
    if not isinstance(value[text_key], str):
        raise DataError(
            f"{place} must hold a string under {text_key!r}, got {type(value[text_key]).__name__}. Repair or delete it."
        )
    text: str = value[text_key]
    return text
