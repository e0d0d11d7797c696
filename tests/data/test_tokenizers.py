"""Tokenizers: exact round trips, one document token, files that load to the same thing."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.data import BytePairTokenizer, ByteTokenizer, Tokenizer, load_tokenizer, synthetic, train_tokenizer
from rankkit.data.tokenizers import token_dtype
from rankkit.errors import ConfigurationError, DataError
from rankkit.files import write_text

tokenizers = pytest.importorskip("tokenizers", reason="the extra `bpe` is not installed")

PAIRS = BytePairTokenizer.train((document.text for document in synthetic(0, 40)), vocab_size=400)
BOTH: list[Tokenizer] = [ByteTokenizer(), PAIRS]


def word_level(*words: str) -> str:
    """A foreign tokenizer.json with truncation, padding and a template."""
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="a $A b", special_tokens=[("a", 1), ("b", 2)]
    )
    text: str = tokenizer.to_str()
    return text


@pytest.mark.parametrize("tokenizer", BOTH, ids=["bytes", "bpe"])
@given(text=st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_decode_inverts_encode_for_every_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text
    assert tokenizer.document_token not in ids


@pytest.mark.parametrize("tokenizer", BOTH, ids=["bytes", "bpe"])
def test_document_token_decodes_to_nothing(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("one").tolist(), tokenizer.document_token, *tokenizer.encode("two").tolist()]
    assert tokenizer.decode(ids) == "onetwo"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("tokenizer", BOTH, ids=["bytes", "bpe"])
def test_name_of_a_special_token_in_text_is_plain_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a <|document|> b")
    assert tokenizer.document_token not in ids
    assert tokenizer.decode(ids) == "a <|document|> b"


def test_byte_ids_are_the_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("a€").tolist() == list("a€".encode())
    assert (tokenizer.vocab_size, tokenizer.document_token) == (257, 256)
    assert tokenizer.decode([0x61, 0xE2, 0x82]) == "a\ufffd"


@pytest.mark.parametrize("tokenizer", BOTH, ids=["bytes", "bpe"])
@pytest.mark.parametrize("bad", [-1, 70_000])
def test_id_outside_the_vocabulary_is_named_with_its_position(tokenizer: Tokenizer, bad: int) -> None:
    with pytest.raises(DataError, match=f"token id {bad} at position 1 must be between 0 and .*beyond the tokenizer's"):
        tokenizer.decode([5, bad])


@pytest.mark.parametrize("tokenizer", BOTH, ids=["bytes", "bpe"])
def test_lone_surrogate_cannot_be_encoded(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"lone surrogate at character 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("tokenizer", BOTH, ids=["bytes", "bpe"])
def test_saved_tokenizer_loads_to_the_same_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    write_text(path, tokenizer.to_json())
    loaded = load_tokenizer(path)
    assert loaded.sha256 == tokenizer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.vocab_size, loaded.document_token) == (tokenizer.vocab_size, tokenizer.document_token)
    text = "let bade be (la plus 3) <|document|> €.\n"
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert train_tokenizer(str(path), ()).sha256 == tokenizer.sha256


def test_byte_pairs_shorten_text_and_reach_the_vocabulary() -> None:
    text = next(iter(synthetic(1, 1))).text
    assert PAIRS.vocab_size == 400
    assert PAIRS.encode(text).size < 0.6 * len(text)
    assert PAIRS.encode(text).max() < 400


def test_byte_pair_training_depends_on_the_texts_alone() -> None:
    again = train_tokenizer("bpe:400", (document.text for document in synthetic(0, 40)))
    assert again.sha256 == PAIRS.sha256
    assert train_tokenizer("bpe:400", (document.text for document in synthetic(1, 40))).sha256 != PAIRS.sha256


def test_foreign_tokenizer_gets_a_document_token_and_loses_truncation_padding_and_template() -> None:
    tokenizer = BytePairTokenizer(word_level("[UNK]", "a", "b"))
    assert tokenizer.encode("a b a b").tolist() == [1, 2, 1, 2]
    assert (tokenizer.document_token, tokenizer.vocab_size) == (3, 4)


def test_foreign_tokenizer_keeps_its_own_document_token() -> None:
    tokenizer = BytePairTokenizer(word_level("[UNK]", "a", "b", "<|endoftext|>"))
    assert (tokenizer.document_token, tokenizer.vocab_size) == (3, 4)


def test_error_in_the_training_texts_is_not_swallowed() -> None:
    def texts() -> object:
        yield "some text"
        raise DataError("text must stay the same")

    with pytest.raises(DataError, match=r"text must stay the same"):
        train_tokenizer("bpe:300", texts())  # type: ignore[arg-type]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (65535, "uint16"), (65536, "uint32")])
def test_ids_are_stored_as_narrow_as_they_fit(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size).name == dtype


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "must be a tokenizer in JSON, got damage"),
        (b"\xff", "must be a tokenizer in JSON, got damage"),
        (b"[" * 100_000, "must be a tokenizer in JSON, got damage"),
        (b"[]", "must be a tokenizer, got other JSON"),
        (b"{}", "must be a tokenizer, got other JSON"),
        (b'{"model": {"type": "BPE"}}', "tokenizer must be a document of the tokenizers library, got: "),
        (b'{"type": "rankkit-bytes", "version": 2}', "must be of version 1, got 2. Install a newer rankkit"),
    ],
)
def test_tokenizer_file_that_cannot_be_used_is_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(path)
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_tokenizer_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.json must be readable, got: No such file or directory"):
        load_tokenizer(tmp_path / "none.json")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'rankkit\[bpe\]'"):
        train_tokenizer("bpe:300", ["text"])
    assert json.loads(train_tokenizer("bytes", ()).to_json())["type"] == "rankkit-bytes"
