"""What text becomes tokens, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rankkit.errors import ConfigurationError

__all__ = ["DataConfig"]

SMALLEST_BYTE_PAIR_VOCABULARY: Final = 257  # 256 bytes, so that every text round-trips, and the document token
LARGEST_BYTE_PAIR_VOCABULARY: Final = 1 << 20  # the trainer allocates for the whole of it before it has seen any text


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The text, the tokenizer and the split; equal configurations over equal files give equal tokens."""

    text: tuple[str, ...] = ()
    """Files, folders, globs, `.jsonl`, `.parquet`, Hugging Face `save_to_disk` folders, or one source of token ids
    (`.npy`, `.bin`, or a folder with `train.bin` and `val.bin`); empty means the built-in corpus."""
    text_key: str = "text"
    """The key (`.jsonl`) or column (`.parquet`, `save_to_disk`) that holds the text of a document."""
    tokenizer: str = "bytes"
    """`bytes`, `bpe:VOCAB` (trained on the training documents, for example `bpe:2048`), or the path of a
    `tokenizer.json`."""
    validation_fraction: float = 0.05
    """Share of the documents, chosen by the hash of their content, that is held out."""
    vocab_size: int | None = None
    """For token ids alone: every id is below it. None takes the largest id plus one, rounded up to a multiple of 64, or
    the size of `tokenizer` where that is a `tokenizer.json`."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigurationError: a field cannot hold.
        """
        if not isinstance(self.text, tuple) or not all(isinstance(entry, str) and entry for entry in self.text):
            raise ConfigurationError(
                f"text must be a tuple of paths, got {self.text!r}. Pass for example ('books/', 'notes.txt')."
            )
        if not isinstance(self.text_key, str) or not self.text_key:
            raise ConfigurationError(
                f"text_key must name the key that holds the text, got {self.text_key!r}. Pass for example 'text'."
            )
        if not isinstance(self.validation_fraction, float) or not 0 < self.validation_fraction <= 0.5:
            raise ConfigurationError(
                f"validation_fraction must be a number above 0 and at most 0.5, got {self.validation_fraction!r}. "
                "Pass for example 0.05."
            )
        if self.vocab_size is not None and (type(self.vocab_size) is not int or self.vocab_size < 2):
            raise ConfigurationError(
                f"vocab_size must be a whole number of at least 2, got {self.vocab_size!r}. "
                "Leave it out to take it from the token ids."
            )
        self._check_tokenizer()

    def _check_tokenizer(self) -> None:
        if not isinstance(self.tokenizer, str) or not self._names_a_tokenizer:
            raise ConfigurationError(
                "tokenizer must be 'bytes', 'bpe:VOCAB' or the path of a tokenizer.json, "
                f"got {self.tokenizer!r}. Pass for example 'bpe:2048'."
            )
        smallest, largest = SMALLEST_BYTE_PAIR_VOCABULARY, LARGEST_BYTE_PAIR_VOCABULARY
        if self.is_byte_pair and not smallest <= self.byte_pair_vocabulary <= largest:
            raise ConfigurationError(
                f"tokenizer must have a vocabulary of {smallest} (256 bytes and the document token) to {largest}, "
                f"got {self.tokenizer!r}. Pass for example 'bpe:2048'."
            )

    @property
    def _names_a_tokenizer(self) -> bool:
        if self.tokenizer == "bytes" or self.reads_tokenizer:
            return True
        digits = self.tokenizer.removeprefix("bpe:")
        return self.is_byte_pair and digits.isascii() and digits.isdigit() and len(digits) < 10

    @property
    def is_byte_pair(self) -> bool:
        """Whether a byte-pair vocabulary is to be trained."""
        return self.tokenizer.startswith("bpe:")

    @property
    def byte_pair_vocabulary(self) -> int:
        """The vocabulary asked for in `bpe:VOCAB`."""
        return int(self.tokenizer.removeprefix("bpe:"))

    @property
    def reads_tokenizer(self) -> bool:
        """Whether `tokenizer` is the path of a `tokenizer.json`."""
        return self.tokenizer.endswith(".json") and not self.is_byte_pair
