"""A run's tokenizer as files that `transformers.AutoTokenizer` reads, giving the very ids that the run was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from rankkit.data.tokenizers import DOCUMENT_TOKEN, ByteTokenizer, Tokenizer
from rankkit.files import write_json
from rankkit.studies.pretrained.files import transformers

__all__ = ["TOKENIZER_FILES", "reads_alike", "write_tokenizer"]

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")

_PRINTABLE: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that stand for themselves in byte-level vocabularies; the others take characters from U+0100 on, in order."""


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, sequence_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    No token is put before or behind a text, and a special token's name inside a text is read as text, as in training.

    Args:
        tokenizer: of the run.
        folder: that holds the model.
        sequence_length: of training; longer texts make transformers warn.
    """
    document = _bytes_json() if isinstance(tokenizer, ByteTokenizer) else json.loads(tokenizer.to_json())
    document["post_processor"] = None  # of a foreign tokenizer; training did not ask for its special tokens
    write_json(folder / "tokenizer.json", document)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": _name(document, tokenizer.document_token),
            "model_max_length": sequence_length,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        },
    )


def reads_alike(tokenizer: Tokenizer, folder: Path, text: str) -> bool:
    """Whether transformers makes of a text what training made of it, and the same text again of the ids.

    Args:
        tokenizer: of the run.
        folder: with the files.
        text: any.
    """
    stock = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = f"{text}{stock.eos_token}"  # its name in a text ends no document
    expected = tokenizer.encode(text).tolist()
    found = stock(text, verbose=False)["input_ids"]
    same_text = stock.decode(found, skip_special_tokens=True) == tokenizer.decode(expected)
    return bool(found == expected and same_text and stock.eos_token_id == tokenizer.document_token)


def _name(document: dict[str, Any], token: int) -> str:
    """Of an added token."""
    (found,) = (entry["content"] for entry in document["added_tokens"] if entry["id"] == token)
    return str(found)


def _bytes_json() -> dict[str, Any]:
    """Bytes as a byte-level vocabulary without merges, ids equal to byte values."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    others = (byte for byte in range(256) if byte not in _PRINTABLE)
    characters = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(0x100 + k) for k, byte in enumerate(others)}
    library = Library(models.BPE(vocab={character: byte for byte, character in characters.items()}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([DOCUMENT_TOKEN])
    document: dict[str, Any] = json.loads(library.to_str())
    return document
