"""DataConfig refuses what cannot hold."""

from __future__ import annotations

from typing import Any

import pytest

from rankkit.data import DataConfig
from rankkit.errors import ConfigurationError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text", "book.txt", "text must be a tuple of paths, got 'book.txt'"),
        ("text", ("",), "text must be a tuple of paths"),
        ("text", (3,), "text must be a tuple of paths"),
        ("text_key", "", "text_key must name the key"),
        ("tokenizer", "words", "tokenizer must be 'bytes', 'bpe:VOCAB' or the path of a tokenizer.json, got 'words'"),
        ("tokenizer", "bpe:", "tokenizer must be 'bytes'"),
        ("tokenizer", "bpe:-300", "tokenizer must be 'bytes'"),
        ("tokenizer", "bpe:3e3", "tokenizer must be 'bytes'"),
        ("tokenizer", "bpe:256", "tokenizer must have a vocabulary of 257 .* to 1048576"),
        ("tokenizer", "bpe:99999999", "tokenizer must have a vocabulary of 257"),
        ("tokenizer", "bpe:" + "9" * 5000, "tokenizer must be 'bytes'"),
        ("validation_fraction", 0.0, "validation_fraction must be a number above 0 and at most 0.5, got 0.0"),
        ("validation_fraction", 0.6, "validation_fraction must be"),
        ("validation_fraction", float("nan"), "validation_fraction must be"),
        ("validation_fraction", True, "validation_fraction must be"),
        ("vocab_size", 1, "vocab_size must be a whole number of at least 2, got 1"),
        ("vocab_size", True, "vocab_size must be a whole number"),
        ("vocab_size", 300.0, "vocab_size must be a whole number"),
    ],
)
def test_config_names_the_field_that_cannot_hold(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DataConfig(**{field: value})


def test_config_reads_the_three_kinds_of_tokenizer() -> None:
    assert not DataConfig().is_byte_pair
    assert DataConfig(tokenizer="bpe:2048").byte_pair_vocabulary == 2048
    assert DataConfig(tokenizer="some/tokenizer.json").reads_tokenizer
