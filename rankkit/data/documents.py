"""A document, and what identifies a set of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import DataError

__all__ = ["CorpusHash", "Document", "Survey", "survey"]


@dataclass(frozen=True, slots=True)
class Document:
    """One text with a name that is the same on every machine.

    Raises:
        DataError: the text holds a lone surrogate, which no encoding can write.
    """

    name: str
    """POSIX path below the folder it was found in; `.jsonl` and tables add the line or row."""
    text: str
    """The text, unchanged: no newline is translated, nothing is stripped but a byte order mark."""
    sha256: bytes = field(init=False, repr=False, compare=False)
    """SHA-256 of the text in UTF-8, 32 bytes: identifies the content whatever the name."""

    def __post_init__(self) -> None:
        """Hash the text."""
        try:
            content = self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self.name} must be text that UTF-8 can hold, got a lone surrogate "
                f"{self.text[error.start]!r} at character {error.start}. Repair the escape or leave the document out."
            ) from error
        object.__setattr__(self, "sha256", hashlib.sha256(content).digest())

    @property
    def key(self) -> int:
        """First 8 bytes of the content hash, big-endian, in [0, 2**64): decides the side of the split."""
        return int.from_bytes(self.sha256[:8], "big")


class CorpusHash:
    """SHA-256 over the names and texts of documents, in their order."""

    __slots__ = ("_digest",)

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> None:
        """Take in one document."""
        # a file name may hold bytes that are not UTF-8; backslashreplace keeps them apart instead of failing
        self._digest.update(document.name.encode("utf-8", "backslashreplace") + b"\0" + document.sha256)

    def hexdigest(self) -> str:
        """The hash of everything added so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over documents learns about them."""

    documents: int
    """How many there are."""
    characters: int
    """Their length together, in characters."""
    sha256: str
    """Hash over names and texts, in order."""
    keys: NDArray[np.uint64]
    """"document": the `key` of each."""


def survey(documents: Iterable[Document], /) -> Survey:
    """Read documents once and identify them; holds 8 bytes for each.

    Args:
        documents: read one at a time.

    Returns:
        Counts, hash and keys.
    """
    digest, characters, keys = CorpusHash(), 0, bytearray()
    for document in documents:
        digest.add(document)
        characters += len(document.text)
        keys += document.sha256[:8]
    array = np.frombuffer(bytes(keys), dtype=">u8").astype(np.uint64)
    return Survey(documents=array.size, characters=characters, sha256=digest.hexdigest(), keys=array)
