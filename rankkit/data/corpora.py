"""Where documents come from: the standard library, a seeded grammar, or the user's files.

A corpus is read lazily and as often as needed; only one document is in memory at a time. Documents with equal text
are read once, under their first name, so that no copy of a training document is held out.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rankkit.data.config import DataConfig
from rankkit.data.documents import Document, Survey, survey
from rankkit.data.grammar import write_document
from rankkit.data.sources import find_sources, read_source, readable
from rankkit.errors import ConfigurationError

__all__ = ["Corpus", "Document", "builtin", "read_documents", "synthetic"]

_NOT_LIBRARY: Final = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_BUILD_FACTS: Final = ("_sysconfigdata", "config-")  # compiler flags and paths of one machine, not text of a release
_FALLBACK_DOCUMENTS: Final = 4096  # about 6 MB, half of a standard library: enough for every preset of the demo


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents that can be read again and again."""

    description: str
    """What it is, in words; recorded with every run."""
    read: Callable[[], Iterator[Document]]
    """Starts a new reading; must give the same documents every time."""
    python_version: str | None = None
    """The interpreter whose standard library this is; None for other text."""

    def __iter__(self) -> Iterator[Document]:
        """Read the documents that have text, each text once.

        Raises:
            DataError: a file cannot be used.
        """
        seen: set[bytes] = set()
        for document in self.read():
            if document.text and document.sha256 not in seen:
                seen.add(document.sha256)
                yield document

    def survey(self) -> Survey:
        """Read everything once: number of documents, length, SHA-256 over names and texts."""
        return survey(self)


def builtin() -> Corpus:
    """The running interpreter's standard library without its tests: real text that is always there.

    Sorted by POSIX path; about 730 files, 12 MB. It differs between Python versions, so the version and the hash are
    recorded. Where no source is on the disk (a zipped Python), the synthetic grammar takes its place and the
    description says so.

    Returns:
        The corpus.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = _library_files(root)
    if not files:
        substitute = synthetic(seed=0, documents=_FALLBACK_DOCUMENTS)
        return Corpus(
            description=f"{substitute.description}, because this Python has no standard library source in {root}",
            read=substitute.read,
        )
    version = platform.python_version()
    return Corpus(
        description=f"standard library of Python {version}, *.py without tests",
        read=lambda: _read_library(root, files),
        python_version=version,
    )


def _library_files(root: Path) -> list[str]:
    names = []
    for folder, subfolders, files in os.walk(root):
        # pruned in place: site-packages may hold a hundred thousand files
        subfolders[:] = [name for name in subfolders if name not in _NOT_LIBRARY and not name.startswith(_BUILD_FACTS)]
        sources = (name for name in files if name.endswith(".py") and not name.startswith(_BUILD_FACTS))
        names += [Path(folder, name).relative_to(root).as_posix() for name in sources]
    return sorted(names)


def _read_library(root: Path, names: list[str]) -> Iterator[Document]:
    for name in names:
        with readable(root / name):
            content = (root / name).read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:  # a few distributions ship a source in another encoding; the corpus hash tells
            continue
        yield Document(name, text)


def synthetic(seed: int, documents: int) -> Corpus:
    """Text from a seeded grammar, bit-identical on every machine: for tests, and where there is no other text.

    Args:
        seed: in [0, 2**64).
        documents: how many, at least 1, about 1.5 kB each; document k does not depend on how many there are.

    Returns:
        The corpus.

    Raises:
        ConfigurationError: `seed` or `documents` is out of range.
    """
    if not 0 <= seed < 2**64:
        raise ConfigurationError(f"seed must be between 0 and 2**64 - 1, got {seed!r}. Pass a small whole number.")
    if documents < 1:
        raise ConfigurationError(f"documents must be at least 1, got {documents!r}. Ask for at least one document.")
    return Corpus(
        description=f"synthetic grammar, seed {seed}, {documents} documents",
        read=lambda: (Document(f"{number:06d}", write_document(seed, number)) for number in range(documents)),
    )


def read_documents(config: DataConfig) -> Corpus:
    """The corpus that a configuration names; the built-in one where it names none.

    Args:
        config: `text` and `text_key` are used.

    Returns:
        The corpus, in the order of `text` and by POSIX path inside each entry. Files were found but not yet read.

    Raises:
        DataError: an entry is missing, matches nothing or cannot be read; further problems appear while reading.
    """
    if not config.text:
        return builtin()
    sources = [source for entry in config.text for source in find_sources(entry)]

    def read() -> Iterator[Document]:
        for source in sources:
            yield from read_source(source, text_key=config.text_key)

    return Corpus(description=f"{', '.join(config.text)} ({len(sources)} files)", read=read)
