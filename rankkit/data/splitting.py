"""Training and validation, split by document and by the hash of its content, never by position.

A document is held out when its key, the first 8 bytes of its SHA-256, is below a threshold. With the threshold
validation_fraction * 2**64 no document changes sides when others are added. Where that leaves a side empty, the
threshold is moved to hold out the documents with the smallest keys; fewer than 20 documents are then first cut
into pieces, and the description says so, because pieces of one document are not independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankkit.data.corpora import Corpus
from rankkit.data.documents import CorpusHash, Document, Survey, survey
from rankkit.errors import DataError

__all__ = ["Split", "cut", "plan_split", "threshold_of"]

FEWEST_DOCUMENTS = 20  # below it one held-out document is more than the default 5% of the text
_PIECES = 40  # aimed at; a piece ends at the next newline and is at most twice as long, so at least 20 remain


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A corpus with the rule that assigns each of its documents to a side."""

    corpus: Corpus
    """The text."""
    survey: Survey
    """What the corpus held when the split was planned."""
    threshold: int
    """A document with a key below it is held out."""
    piece_size: int | None
    """Documents are first cut into pieces of this many characters, or a little more; None leaves them whole."""
    description: str
    """The rule in words; recorded with every run."""

    def __iter__(self) -> Iterator[tuple[bool, Document]]:
        """Read the corpus again.

        Yields:
            For every document (or piece): whether it is held out, and the document.

        Raises:
            DataError: the text is no longer what it was when the split was planned.
        """
        digest = CorpusHash()
        for document in self.corpus:
            digest.add(document)
            for piece in cut(document, self.piece_size):
                yield piece.key < self.threshold, piece
        if digest.hexdigest() != self.survey.sha256:
            raise DataError(
                f"text must stay the same while it is read, got a change in {self.corpus.description}. Start again."
            )

    def training_texts(self) -> Iterator[str]:
        """Read the texts that are not held out."""
        return (document.text for is_held_out, document in self if not is_held_out)


def plan_split(corpus: Corpus, validation_fraction: float) -> Split:
    """Read a corpus once and decide which documents are held out.

    Args:
        corpus: the text.
        validation_fraction: share of documents to hold out, in (0, 1).

    Returns:
        The split; both sides hold at least one document.

    Raises:
        DataError: no text at all, or nothing that could be told apart.
    """
    seen = survey(corpus)
    if seen.documents == 0:
        raise DataError(f"text must hold at least one character, got none in {corpus.description}. Add text.")
    keys, piece_size, unit = seen.keys, None, "documents"
    threshold = int(validation_fraction * 2**64)
    if not _has_both_sides(keys, threshold) and seen.documents < FEWEST_DOCUMENTS:
        piece_size = -(-seen.characters // _PIECES)
        keys = survey(piece for document in corpus for piece in cut(document, piece_size)).keys
        unit = f"pieces at newlines, because there are only {seen.documents} documents"
    threshold, rule = threshold_of(keys, validation_fraction)
    held_out = int(np.count_nonzero(keys < np.uint64(threshold)))
    return Split(
        corpus=corpus,
        survey=seen,
        threshold=threshold,
        piece_size=piece_size,
        description=f"{held_out} of {keys.size} {unit}, held out by {rule}",
    )


def _has_both_sides(keys: NDArray[np.uint64], threshold: int) -> bool:
    held_out = int(np.count_nonzero(keys < np.uint64(threshold)))
    return 0 < held_out < keys.size


def threshold_of(keys: NDArray[np.uint64], validation_fraction: float, /) -> tuple[int, str]:
    """The key below which a document is held out.

    Args:
        keys: "document", uniform in [0, 2**64).
        validation_fraction: share to hold out, in (0, 1).

    Returns:
        The threshold, and the rule in words.

    Raises:
        DataError: all keys are equal, so that no threshold leaves both sides something.
    """
    threshold = int(validation_fraction * 2**64)
    if _has_both_sides(keys, threshold):
        return threshold, f"content hash below {validation_fraction:g} of its range"
    distinct = np.unique(keys)
    if distinct.size < 2:
        raise DataError(
            "text must hold at least two different documents or pieces, one to train on and one to hold out, "
            f"got {distinct.size}. Add text."
        )
    count = min(max(1, round(validation_fraction * distinct.size)), distinct.size - 1)
    return int(distinct[count]), f"the {count} smallest content hashes"


def cut(document: Document, piece_size: int | None) -> Iterable[Document]:
    """Cut a document after newlines into pieces of `piece_size` characters or, to reach a newline, up to twice that.

    Args:
        document: to cut.
        piece_size: at least 1; None leaves the document whole.

    Returns:
        Pieces that join to the document.
    """
    if piece_size is None:
        return [document]
    pieces, start, text = [], 0, document.text
    while start < len(text):
        newline = text.find("\n", start + piece_size - 1, start + 2 * piece_size)
        end = start + piece_size if newline < 0 else newline + 1
        pieces.append(Document(f"{document.name} from character {start}", text[start:end]))
        start = end
    return pieces
