"""Token ids that somebody else made: .npy arrays and nanoGPT's .bin files.

Nothing says where their documents end, so blocks of consecutive ids stand in for documents: they are what the split
assigns by content hash and what a bootstrap resamples. A folder with a training and a validation file is already split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.data.sources import readable
from rankkit.data.splitting import threshold_of
from rankkit.errors import DataError

__all__ = ["IdentifierSplit", "open_identifiers", "token_id_source"]

_SUFFIXES: Final = (".npy", ".bin")
_PAIRS: Final = (
    ("train.npy", "validation.npy"),
    ("train.npy", "val.npy"),
    ("train.bin", "val.bin"),
    ("train.bin", "validation.bin"),
)
_BLOCKS: Final = 200  # of a file: 10 are then held out by default, and none by chance only once in 28,000 files
_LARGEST_BLOCK: Final = 1 << 16  # ids; bounds memory, and gives large files more blocks
_ROUND_TO: Final = 64  # a softmax whose width is a multiple of 64 runs faster; the ids beyond are never seen


def token_id_source(text: Sequence[str], /) -> Path | None:
    """The source of token ids among the entries of `DataConfig.text`.

    Args:
        text: the entries.

    Returns:
        The file or folder, or None where the entries are text.

    Raises:
        DataError: token ids beside anything else.
    """
    found = [entry for entry in text if _holds_identifiers(Path(entry))]
    if found and len(text) > 1:
        raise DataError(
            f"text must be one source of token ids or any number of texts, got {found[0]!r} among {len(text)} entries. "
            "Join the ids into one file, or pass a folder with train.bin and val.bin."
        )
    return Path(found[0]) if found else None


def _holds_identifiers(path: Path) -> bool:
    with readable(path):
        return path.suffix.lower() in _SUFFIXES or any((path / train).is_file() for train, _ in _PAIRS)


def open_identifiers(path: Path, /) -> NDArray[np.integer[Any]]:
    """Memory-map the token ids of one file.

    Args:
        path: a one-dimensional integer `.npy`, or a `.bin` of raw little-endian uint16 as nanoGPT writes it.

    Returns:
        "position".

    Raises:
        DataError: missing, empty, damaged, or not one row of integers.
    """
    with readable(path):
        size = path.stat().st_size
        if path.suffix.lower() == ".bin":
            if size == 0 or size % 2:
                raise DataError(
                    f"{path} must hold raw uint16 token ids, got {size} bytes. Write it with numpy's tofile as uint16."
                )
            return np.memmap(path, dtype="<u2", mode="r")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(
                f"{path} must be a .npy array, got damage: {error}. Save it again with numpy.save."
            ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu" or array.size == 0:
        kind = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{path} must be one row of integer token ids, got {kind}. Save ids.ravel() as integers.")
    return array


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifierSplit:
    """Token ids with the rule that assigns each of their blocks to a side."""

    files: tuple[Path, ...]
    """One file, or the training and the validation file."""
    threshold: int | None
    """A block of the one file with a key below it is held out; None where two files are the split."""
    vocab_size: int
    """Every id is below it."""
    sha256: str
    """Hash over the ids, in order, whatever type they were stored in."""
    blocks: int
    """How many blocks stand in for documents."""
    description: str
    """The rule in words; recorded with every run."""

    @classmethod
    def plan(cls, path: Path, *, validation_fraction: float, vocab_size: int | None) -> IdentifierSplit:
        """Read token ids once, check them, and decide which blocks are held out.

        Args:
            path: a file, or a folder with a training and a validation file.
            validation_fraction: share of the blocks of a single file to hold out, in (0, 1).
            vocab_size: every id is below it; None takes the largest id plus one, rounded up to a multiple of 64.

        Returns:
            The split.

        Raises:
            DataError: a file is missing or damaged, an id is negative or beyond `vocab_size`, or all blocks are equal.
        """
        files = _files_of(path)
        digest, keys, largest = hashlib.sha256(), [], 0
        for file in files:
            position = 0
            for block in _blocks(open_identifiers(file)):
                _check(block, position, vocab_size, file)
                position, largest = position + block.size, max(largest, int(block.max()))
                content = hashlib.sha256(block.astype("<u4").tobytes()).digest()
                digest.update(content)
                keys.append(int.from_bytes(content[:8], "big"))
        threshold, rule = None, "given as two files"
        if len(files) == 1:
            threshold, rule = threshold_of(np.array(keys, dtype=np.uint64), validation_fraction)
        return cls(
            files=files,
            threshold=threshold,
            vocab_size=vocab_size or -(-(largest + 1) // _ROUND_TO) * _ROUND_TO,
            sha256=digest.hexdigest(),
            blocks=len(keys),
            description=f"{len(keys)} blocks of token ids, held out: {rule}",
        )

    def __iter__(self) -> Iterator[tuple[bool, NDArray[np.integer[Any]]]]:
        """Read the ids again.

        Yields:
            For every block: whether it is held out, and its ids.

        Raises:
            DataError: the ids are no longer what they were when the split was planned.
        """
        digest = hashlib.sha256()
        for index, file in enumerate(self.files):
            for block in _blocks(open_identifiers(file)):
                content = hashlib.sha256(block.astype("<u4").tobytes()).digest()
                digest.update(content)
                key = int.from_bytes(content[:8], "big")
                yield index == 1 if self.threshold is None else key < self.threshold, block
        if digest.hexdigest() != self.sha256:
            raise DataError(
                f"token ids must stay the same while they are read, got a change in {self.files[0]}. Start again."
            )


def _files_of(path: Path) -> tuple[Path, ...]:
    if not path.is_dir():
        return (path,)
    for train, validation in _PAIRS:
        if (path / train).is_file() and (path / validation).is_file():
            return path / train, path / validation
    raise DataError(
        f"{path} must hold a validation file beside its training file, got the training file alone. "
        "Name it val.bin or validation.npy, or pass the training file alone to have it split."
    )


def _blocks(ids: NDArray[np.integer[Any]]) -> Iterator[NDArray[np.integer[Any]]]:
    size = min(_LARGEST_BLOCK, max(1, ids.size // _BLOCKS))
    for start in range(0, ids.size, size):
        yield np.asarray(ids[start : start + size])


def _check(block: NDArray[np.integer[Any]], position: int, vocab_size: int | None, file: Path) -> None:
    limit = min(vocab_size or 2**32, 2**32)
    outside = np.flatnonzero((block < 0) | (block >= limit))
    if outside.size == 0:
        return
    found, where = int(block[outside[0]]), position + int(outside[0])
    if found < 0 or vocab_size is None:
        raise DataError(
            f"token id at position {where} of {file} must be between 0 and {2**32 - 1}, got {found}. Repair the ids."
        )
    raise DataError(
        f"token id at position {where} of {file} must be below {vocab_size}, got {found}: a vocabulary beyond the "
        "tokenizer. Raise vocab_size, or pass the tokenizer.json that made the ids."
    )
