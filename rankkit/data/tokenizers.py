"""Text to token ids and back: bytes, or a byte-pair vocabulary through the `tokenizers` library (the extra `bpe`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankkit.data.config import DataConfig
from rankkit.errors import ConfigurationError, DataError

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "TokenIds",
    "Tokenizer",
    "load_tokenizer",
    "token_dtype",
    "train_tokenizer",
]

DOCUMENT_TOKEN: Final = "<|document|>"  # noqa: S105 (a token of text)
_DOCUMENT_TOKENS: Final = (DOCUMENT_TOKEN, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_LEAST_PAIR_COUNT: Final = 2  # a pair seen once is not worth a token
_BYTES_TYPE: Final = "rankkit-bytes"
_BYTES_VERSION: Final = 1
_LARGEST_UINT16_VOCABULARY: Final = 65535  # beyond it ids are stored as uint32

TokenIds = NDArray[np.uint16] | NDArray[np.uint32]
"""Token ids as they are stored."""


class Tokenizer(Protocol):
    """Turns text into token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Every id is below it; the document token is counted."""

    @property
    def document_token(self) -> int:
        """The id that ends every document."""

    @property
    def sha256(self) -> str:
        """SHA-256 of `to_json()` in UTF-8, and so of the file that `to_json()` was written to."""

    def encode(self, text: str, /) -> TokenIds:
        """Token ids of a text, "position", without the document token.

        Raises:
            DataError: the text holds a lone surrogate.
        """

    def decode(self, ids: ArrayLike, /) -> str:
        """Text of token ids, "position"; document tokens are left out, broken characters become U+FFFD.

        Raises:
            DataError: an id is outside the vocabulary.
        """

    def to_json(self) -> str:
        """The whole tokenizer as one JSON document that `load_tokenizer` reads."""


def token_dtype(vocab_size: int, /) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The type token ids are stored in: uint16, or uint32 for a vocabulary above 65535."""
    return np.dtype(np.uint16) if vocab_size <= _LARGEST_UINT16_VOCABULARY else np.dtype(np.uint32)


def _checked(ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    array = np.asarray(ids).ravel()
    array = array.astype(np.int64) if array.size else np.empty(0, dtype=np.int64)
    outside = np.flatnonzero((array < 0) | (array >= vocab_size))
    if outside.size:
        raise DataError(
            f"token id {array[outside[0]]} at position {outside[0]} must be between 0 and {vocab_size - 1}, "
            f"got a vocabulary beyond the tokenizer's {vocab_size}. Use the tokenizer that made the ids."
        )
    return array


def _encodable(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text must be text that UTF-8 can hold, got a lone surrogate at character {error.start}. Remove it."
        ) from error


class ByteTokenizer:
    """The 256 bytes of UTF-8 and one document token: no training, exact round trip, the same everywhere."""

    vocab_size: Final = 257
    """256 bytes and the document token."""
    document_token: Final = 256
    """The first id that is no byte."""

    def encode(self, text: str, /) -> NDArray[np.uint16]:
        """The bytes of the text in UTF-8, "position", in [0, 256).

        Raises:
            DataError: the text holds a lone surrogate.
        """
        return np.frombuffer(_encodable(text), dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: ArrayLike, /) -> str:
        """Text of the bytes; document tokens are left out, what is not UTF-8 becomes U+FFFD.

        Raises:
            DataError: an id is outside [0, 257).
        """
        array = _checked(ids, self.vocab_size)
        return array[array < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Type and version: there is nothing else to know."""
        return json.dumps({"type": _BYTES_TYPE, "version": _BYTES_VERSION}) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 of `to_json()`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class BytePairTokenizer:
    """A vocabulary of the `tokenizers` library, trained here or read from a `tokenizer.json` of any kind.

    Special tokens are not looked for in text: a document that writes about "<|endoftext|>" does not end there.
    Truncation, padding and templates of a foreign `tokenizer.json` are switched off, and where it has no token that
    ends a document, `<|document|>` is added behind its vocabulary.

    Args:
        tokenizer_json: in the format of the `tokenizers` library.

    Raises:
        ConfigurationError: `tokenizers` is not installed.
        DataError: it is not such a document.
    """

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = _parse(_tokenizers(), tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        name = next((token for token in _DOCUMENT_TOKENS if token in vocabulary), None)
        if name is None:
            name = DOCUMENT_TOKEN
        self._tokenizer.add_special_tokens([name])
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._document_token: int = vocabulary[name]
        self._vocab_size: int = max(vocabulary.values()) + 1  # ids may have holes

    @classmethod
    def train(cls, texts: Iterable[str], /, *, vocab_size: int) -> BytePairTokenizer:
        """Train byte-level byte-pair merges; the result does not depend on the number of threads.

        Args:
            texts: read once.
            vocab_size: bytes, merges and the document token together, at least 257; short texts end with fewer.

        Returns:
            The tokenizer.

        Raises:
            ConfigurationError: `tokenizers` is not installed.
        """
        library = _tokenizers()
        pieces = library.pre_tokenizers.ByteLevel
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = pieces(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=_LEAST_PAIR_COUNT,
            special_tokens=[DOCUMENT_TOKEN],
            initial_alphabet=sorted(pieces.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return self._vocab_size

    @property
    def document_token(self) -> int:
        """The id that ends every document."""
        return self._document_token

    def encode(self, text: str, /) -> TokenIds:
        """Token ids of a text, "position"; a special token's name in the text is read as plain text.

        Raises:
            DataError: the text holds a lone surrogate.
        """
        _encodable(text)
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        return ids.astype(np.uint16) if self._vocab_size <= _LARGEST_UINT16_VOCABULARY else ids

    def decode(self, ids: ArrayLike, /) -> str:
        """Text of token ids; special tokens are left out.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        text: str = self._tokenizer.decode(_checked(ids, self._vocab_size).tolist(), skip_special_tokens=True)
        return text

    def to_json(self) -> str:
        """The `tokenizer.json` that other tools open."""
        text: str = self._tokenizer.to_str(pretty=True)
        return text + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 of `to_json()`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigurationError(
            "tokenizer must be 'bytes' without the package tokenizers, got a byte-pair vocabulary. "
            "Install it: pip install 'rankkit[bpe]'."
        ) from error
    return tokenizers


def _parse(library: ModuleType, tokenizer_json: str) -> Any:
    try:
        return library.Tokenizer.from_str(tokenizer_json)
    except Exception as error:
        # The library raises the bare class for every complaint about the document; anything narrower is not its doing.
        if type(error) is not Exception:
            raise
        raise DataError(
            f"tokenizer must be a document of the tokenizers library, got: {error}. Save it again with that library."
        ) from error


def train_tokenizer(specification: str, texts: Iterable[str], /) -> Tokenizer:
    """Make the tokenizer that `DataConfig.tokenizer` asks for.

    Args:
        specification: `bytes`, `bpe:VOCAB` or the path of a `tokenizer.json`.
        texts: training texts; read only for `bpe:VOCAB`.

    Returns:
        The tokenizer.

    Raises:
        ConfigurationError: the specification cannot hold, or `tokenizers` is not installed.
        DataError: the `tokenizer.json` cannot be used.
    """
    wanted = DataConfig(tokenizer=specification)
    if wanted.reads_tokenizer:
        return load_tokenizer(Path(specification))
    if wanted.is_byte_pair:
        return BytePairTokenizer.train(texts, vocab_size=wanted.byte_pair_vocabulary)
    return ByteTokenizer()


def load_tokenizer(path: Path, /) -> Tokenizer:
    """Read a `tokenizer.json`, ours or one of the `tokenizers` library.

    Args:
        path: of the file.

    Returns:
        The tokenizer.

    Raises:
        DataError: the file is missing, damaged, of another kind or of a newer version.
        ConfigurationError: it needs `tokenizers`, which is not installed.
    """
    text, value = _read_json_object(path)
    if value.get("type") == _BYTES_TYPE:
        if value.get("version") != _BYTES_VERSION:
            raise DataError(
                f"{path} must be of version {_BYTES_VERSION}, got {value.get('version')!r}. Install a newer rankkit."
            )
        return ByteTokenizer()
    if not isinstance(value.get("model"), dict):
        raise DataError(f"{path} must be a tokenizer, got other JSON. Pass a tokenizer.json of the tokenizers library.")
    try:
        return BytePairTokenizer(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_json_object(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except OSError as error:
        raise DataError(
            f"tokenizer {path} must be readable, got: {error.strerror}. Check the path and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} must be a tokenizer in JSON, got damage: {error}. Restore the file.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must be a tokenizer, got other JSON. Pass a tokenizer.json of the tokenizers library.")
    return text, value
