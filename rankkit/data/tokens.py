"""Token ids on disk: prepared once, memory-mapped ever after.

    FOLDER/train.npy              uint16, or uint32 for a vocabulary above 65535; documents one after another
    FOLDER/validation.npy         the held-out documents
    FOLDER/train_documents.npy    int64, where each document starts
    FOLDER/validation_documents.npy
    FOLDER/tokens.json            where they come from, and the SHA-256 of everything

Every document ends with the tokenizer's document token; nothing is padded, truncated or dropped.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankkit.data.array_file import ArrayWriter
from rankkit.data.config import DataConfig
from rankkit.data.corpora import Corpus, read_documents
from rankkit.data.identifiers import IdentifierSplit, token_id_source
from rankkit.data.splitting import Split, plan_split
from rankkit.data.tokenizers import TokenIds, Tokenizer, load_tokenizer, token_dtype, train_tokenizer
from rankkit.errors import ConfigurationError, DataError, RunError
from rankkit.files import atomic_directory, sha256_of_file, write_json, write_text

__all__ = ["TokenFiles", "open_tokens", "prepare_tokens", "verify_tokens"]

SIDES: Final = ("train", "validation")
_DESCRIPTION: Final = "tokens.json"
_TYPE: Final = "rankkit-tokens"
_VERSION: Final = 1
_CHECKED_AT_ONCE: Final = 1 << 22  # ids

LabelledIds = Iterable[tuple[bool, NDArray[np.integer[Any]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFiles:
    """Prepared token ids, memory-mapped and read-only."""

    train: TokenIds
    """"position": training documents one after another, each ended by the document token."""
    validation: TokenIds
    """"position": held-out documents one after another, each ended by the document token."""
    train_documents: NDArray[np.int64]
    """"document": where each training document starts in `train`; ascending from 0."""
    validation_documents: NDArray[np.int64]
    """"document": where each held-out document starts in `validation`; ascending from 0."""
    vocab_size: int
    """Every id is below it."""
    description: dict[str, Any]
    """The contents of `tokens.json`: corpus, split, tokenizer, counts and hashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is about to be written."""

    documents: LabelledIds
    vocab_size: int
    tokenizer: Tokenizer | None
    facts: dict[str, Any]


def prepare_tokens(
    config: DataConfig, folder: Path, tokenizer_path: Path, *, sequence_length: int, corpus: Corpus | None = None
) -> TokenFiles:
    """Read text or token ids, split them by document, and write them for training.

    Text is read once to plan the split, once more to train a byte-pair vocabulary, and once to write the tokens; one
    document is in memory at a time.

    Args:
        config: text, tokenizer and split.
        folder: appears whole or not at all; an existing one is replaced.
        tokenizer_path: where the tokenizer is saved; not written for token ids without a `tokenizer.json`.
        sequence_length: each side must fill at least one sequence of this many tokens.
        corpus: takes the place of `config.text`.

    Returns:
        The memory-mapped tokens.

    Raises:
        DataError: the text or the ids cannot be used, or are too few.
        ConfigurationError: the settings do not fit together, or an optional package is missing.
        StorageError: the file system refused.
    """
    source = token_id_source(config.text) if corpus is None else None
    plan = _plan_text(config, corpus) if source is None else _plan_identifiers(config, source)
    with atomic_directory(folder) as partial:
        counts = _write_sides(partial, plan)
        for side in SIDES:
            _check_length(side, counts[side]["tokens"], sequence_length)
        if plan.tokenizer is not None:
            # before the folder appears: whoever sees the tokens finds the tokenizer beside them
            write_text(tokenizer_path, plan.tokenizer.to_json())
        write_json(partial / _DESCRIPTION, {"type": _TYPE, "version": _VERSION, **plan.facts, **counts})
    return open_tokens(folder)


def _plan_text(config: DataConfig, corpus: Corpus | None) -> _Plan:
    if config.vocab_size is not None:
        raise ConfigurationError(
            f"vocab_size must be left out for text, got {config.vocab_size}. The tokenizer decides; for a byte-pair "
            "vocabulary of this size set tokenizer to 'bpe:VOCAB'."
        )
    split = plan_split(read_documents(config) if corpus is None else corpus, config.validation_fraction)
    tokenizer = train_tokenizer(config.tokenizer, split.training_texts())
    facts = {
        "corpus": {
            "description": split.corpus.description,
            "documents": split.survey.documents,
            "characters": split.survey.characters,
            "sha256": split.survey.sha256,
            "python_version": split.corpus.python_version,
        },
        "split": split.description,
        **_tokenizer_facts(config.tokenizer, tokenizer, tokenizer.vocab_size),
    }
    return _Plan(
        documents=_encoded(split, tokenizer), vocab_size=tokenizer.vocab_size, tokenizer=tokenizer, facts=facts
    )


def _encoded(split: Split, tokenizer: Tokenizer) -> LabelledIds:
    for is_held_out, document in split:
        ids = tokenizer.encode(document.text)
        yield is_held_out, np.append(ids, ids.dtype.type(tokenizer.document_token))


def _plan_identifiers(config: DataConfig, source: Path) -> _Plan:
    if config.is_byte_pair:
        raise ConfigurationError(
            f"tokenizer must be the tokenizer.json that made the ids of {source}, got {config.tokenizer!r}. "
            "Leave it out, or pass that file."
        )
    tokenizer = load_tokenizer(Path(config.tokenizer)) if config.reads_tokenizer else None
    vocab_size = config.vocab_size
    if tokenizer is not None:
        if vocab_size is not None and vocab_size < tokenizer.vocab_size:
            raise ConfigurationError(
                f"vocab_size must be at least {tokenizer.vocab_size}, the size of {config.tokenizer}, "
                f"got {vocab_size}. Leave vocab_size out."
            )
        vocab_size = vocab_size or tokenizer.vocab_size
    split = IdentifierSplit.plan(source, validation_fraction=config.validation_fraction, vocab_size=vocab_size)
    facts = {
        "corpus": {
            "description": f"token ids of {source}",
            "documents": split.blocks,
            "sha256": split.sha256,
            "python_version": None,
        },
        "split": split.description,
        **_tokenizer_facts(config.tokenizer if tokenizer else None, tokenizer, split.vocab_size),
    }
    return _Plan(documents=split, vocab_size=split.vocab_size, tokenizer=tokenizer, facts=facts)


def _tokenizer_facts(specification: str | None, tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, Any]:
    return {
        "tokenizer": specification,
        "tokenizer_sha256": tokenizer and tokenizer.sha256,
        "document_token": tokenizer and tokenizer.document_token,
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
    }


def _write_sides(folder: Path, plan: _Plan) -> dict[str, dict[str, Any]]:
    """Write the four arrays; returns the facts about each side."""
    dtype = token_dtype(plan.vocab_size)
    with contextlib.ExitStack() as stack:
        tokens = [stack.enter_context(ArrayWriter(folder / f"{side}.npy", dtype)) for side in SIDES]
        starts = [
            stack.enter_context(ArrayWriter(folder / f"{side}_documents.npy", np.dtype(np.int64))) for side in SIDES
        ]
        for is_held_out, ids in plan.documents:
            starts[is_held_out].append(np.array([tokens[is_held_out].size]))
            tokens[is_held_out].append(ids)
    return {
        side: {
            "tokens": tokens[index].size,
            "documents": starts[index].size,
            "sha256": sha256_of_file(folder / f"{side}.npy"),
            "documents_sha256": sha256_of_file(folder / f"{side}_documents.npy"),
        }
        for index, side in enumerate(SIDES)
    }


def _check_length(side: str, tokens: int, sequence_length: int) -> None:
    if tokens < sequence_length:
        raise DataError(
            f"text must hold at least {sequence_length} {side} tokens (one sequence), got {tokens}. "
            "Add text or lower sequence_length."
        )


def open_tokens(folder: Path) -> TokenFiles:
    """Memory-map prepared tokens and check their types and lengths against `tokens.json`.

    Args:
        folder: as `prepare_tokens` left it.

    Returns:
        The tokens; nothing but the document starts was read from the disk.

    Raises:
        RunError: a file is missing, damaged, foreign or made by a newer version.
    """
    description = _read_description(folder)
    arrays: dict[str, Any] = {}
    with _damage(folder / _DESCRIPTION):
        for side in SIDES:
            facts = description[side]
            arrays[side] = _open_array(folder / f"{side}.npy", str(description["dtype"]), facts["tokens"])
            arrays[f"{side}_documents"] = _open_array(folder / f"{side}_documents.npy", "int64", facts["documents"])
            _check_starts(arrays[f"{side}_documents"], facts["tokens"], folder / f"{side}_documents.npy")
        vocab_size = int(description["vocab_size"])
    return TokenFiles(**arrays, vocab_size=vocab_size, description=description)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} must describe prepared tokens, got damage: {error!r}. Prepare the tokens again."
        ) from error


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"{path} must be readable, got: {error.strerror}. Pass a run of rankkit, or prepare the tokens again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} must be JSON, got damage: {error}. Prepare the tokens again.") from error
    if not isinstance(description, dict) or description.get("type") != _TYPE:
        raise RunError(f"{path} must be written by rankkit, got a foreign file. Pass a run that rankkit prepared.")
    if description.get("version") != _VERSION:
        raise RunError(
            f"{path} must be of version {_VERSION}, got {description.get('version')!r}. Install a newer rankkit."
        )
    return description


def _open_array(path: Path, dtype: str, size: int) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise RunError(f"{path} must be readable, got: {error.strerror}. Prepare the tokens again.") from error
    except (ValueError, EOFError) as error:
        raise RunError(f"{path} must be a whole .npy array, got damage: {error}. Prepare the tokens again.") from error
    if not isinstance(array, np.ndarray) or array.dtype.name != dtype or array.shape != (size,):
        raise RunError(f"{path} must hold {size} {dtype} values, got another array. Prepare the tokens again.")
    return array


def _check_starts(starts: NDArray[np.int64], tokens: int, path: Path) -> None:
    if starts.size == 0 or starts[0] != 0 or starts[-1] >= tokens or np.any(np.diff(starts) <= 0):
        raise RunError(f"{path} must ascend from 0 to below {tokens}, got other positions. Prepare the tokens again.")


def verify_tokens(folder: Path, tokenizer_path: Path | None = None) -> None:
    """Read everything and compare it with the hashes of `tokens.json`.

    Args:
        folder: as `prepare_tokens` left it.
        tokenizer_path: checked too where given and where there is a tokenizer.

    Raises:
        RunError: a file is missing or is not the one that was written, or an id is outside the vocabulary.
    """
    tokens = open_tokens(folder)
    for side in SIDES:
        _verify_hash(folder / f"{side}.npy", tokens.description[side].get("sha256"))
        _verify_hash(folder / f"{side}_documents.npy", tokens.description[side].get("documents_sha256"))
        _verify_ids(getattr(tokens, side), tokens.vocab_size, folder / f"{side}.npy")
    if tokenizer_path is not None and tokens.description.get("tokenizer_sha256") is not None:
        _verify_hash(tokenizer_path, tokens.description["tokenizer_sha256"])


def _verify_hash(path: Path, expected: object) -> None:
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise RunError(f"{path} must be readable, got: {error.strerror}. Restore the file.") from error
    if found != expected:
        raise RunError(f"{path} must have the SHA-256 {expected}, got {found}. Restore the file or prepare it again.")


def _verify_ids(ids: TokenIds, vocab_size: int, path: Path) -> None:
    for start in range(0, ids.size, _CHECKED_AT_ONCE):
        largest = int(ids[start : start + _CHECKED_AT_ONCE].max())
        if largest >= vocab_size:
            raise RunError(f"{path} must hold ids below {vocab_size}, got {largest}. Prepare the tokens again.")
