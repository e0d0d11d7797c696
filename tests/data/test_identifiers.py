"""Token ids that somebody else made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankkit.data import ByteTokenizer, DataConfig, TokenFiles, prepare_tokens
from rankkit.errors import ConfigurationError, DataError

IDS = np.random.default_rng(0).integers(0, 500, size=20_000)


def prepare(tmp_path: Path, source: Path, **settings: Any) -> TokenFiles:
    config = DataConfig(text=(str(source),), **settings)
    return prepare_tokens(config, tmp_path / "run" / "tokens", tmp_path / "run" / "tokenizer.json", sequence_length=32)


def saved(path: Path, ids: Any) -> Path:
    if path.suffix == ".bin":
        np.asarray(ids).astype("<u2").tofile(path)
    else:
        np.save(path, np.asarray(ids))
    return path


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, ">i4"])
def test_single_file_is_split_in_blocks_and_nothing_is_lost(tmp_path: Path, dtype: Any) -> None:
    files = prepare(tmp_path, saved(tmp_path / "ids.npy", IDS.astype(dtype)))
    blocks = {tuple(block) for block in IDS.reshape(200, 100).tolist()}
    found = [tuple(block) for side in (files.train, files.validation) for block in side.reshape(-1, 100).tolist()]
    assert set(found) == blocks
    assert len(found) == 200
    assert 1 <= files.validation_documents.size <= 30
    assert np.diff(files.train_documents).tolist() == [100] * (files.train_documents.size - 1)
    assert files.vocab_size == 512  # 500 rounded up to a multiple of 64
    assert files.train.dtype == np.uint16
    assert files.description["tokenizer"] is None
    assert not (tmp_path / "run" / "tokenizer.json").exists()


def test_npy_and_bin_of_the_same_ids_give_the_same_tokens(tmp_path: Path) -> None:
    first = prepare(tmp_path / "a", saved(tmp_path / "ids.npy", IDS))
    second = prepare(tmp_path / "b", saved(tmp_path / "ids.bin", IDS))
    for key in ("train", "validation", "split"):
        assert first.description[key] == second.description[key]
    assert first.description["corpus"]["sha256"] == second.description["corpus"]["sha256"]


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train.bin", "val.bin"),
        ("train.bin", "validation.bin"),
        ("train.npy", "validation.npy"),
        ("train.npy", "val.npy"),
    ],
)
def test_folder_with_two_files_is_the_split(tmp_path: Path, train: str, validation: str) -> None:
    saved(tmp_path / train, IDS[:15_000])
    saved(tmp_path / validation, IDS[15_000:])
    files = prepare(tmp_path, tmp_path, vocab_size=500)
    assert files.train.tolist() == IDS[:15_000].tolist()
    assert files.validation.tolist() == IDS[15_000:].tolist()
    assert files.vocab_size == 500
    assert "given as two files" in files.description["split"]


def test_large_vocabulary_is_stored_as_uint32(tmp_path: Path) -> None:
    files = prepare(tmp_path, saved(tmp_path / "ids.npy", IDS + 70_000))
    assert files.train.dtype == np.uint32
    assert files.train.min() >= 70_000


def test_tokenizer_file_decides_the_vocabulary_and_is_kept(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_text(ByteTokenizer().to_json())
    files = prepare(tmp_path, saved(tmp_path / "ids.npy", IDS % 257), tokenizer=str(tmp_path / "bytes.json"))
    assert files.vocab_size == 257
    assert json.loads((tmp_path / "run" / "tokenizer.json").read_text())["type"] == "rankkit-bytes"


def test_id_beyond_the_tokenizer_is_named_with_its_position(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_text(ByteTokenizer().to_json())
    ids = IDS % 257
    ids[1234] = 257
    message = "token id at position 1234 of .*ids.npy must be below 257, got 257: a vocabulary beyond the tokenizer"
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, saved(tmp_path / "ids.npy", ids), tokenizer=str(tmp_path / "bytes.json"))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.append(IDS, -3), "token id at position 20000 of .* must be between 0 and 4294967295, got -3"),
        (np.append(IDS, 2**40), "token id at position 20000 of .* must be between 0 and 4294967295"),
        (IDS.astype(np.float64), "must be one row of integer token ids, got float64 of shape"),
        (IDS.reshape(2, -1), r"must be one row of integer token ids, got int64 of shape \(2, 10000\)"),
        (np.empty(0, dtype=np.int64), "ids.npy must be"),
        (np.array(5), "must be one row of integer token ids"),
        (np.array([True, False]), "must be one row of integer token ids, got bool"),
        (np.zeros(5000, dtype=np.int64), "text must hold at least two different documents"),
        (IDS[:40], "text must hold at least 32 validation tokens"),
    ],
)
def test_ids_that_cannot_be_used_are_one_error(tmp_path: Path, ids: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, saved(tmp_path / "ids.npy", ids))


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"ids.npy must be a .npy array, got damage"):
        prepare(tmp_path, tmp_path / "ids.npy")


def test_archive_under_the_name_of_an_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", ids=IDS)
    (tmp_path / "ids.npz").rename(tmp_path / "ids.npy")
    with pytest.raises(DataError, match=r"ids.npy must be"):
        prepare(tmp_path, tmp_path / "ids.npy")


@pytest.mark.parametrize("content", [b"", b"abc"])
@pytest.mark.parametrize(
    ("name", "message"), [("ids.bin", "must hold raw uint16 token ids"), ("ids.npy", "must be a .npy array")]
)
def test_damaged_file_is_one_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, tmp_path / name)


def test_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.npy must be readable, got: no such file or directory"):
        prepare(tmp_path, tmp_path / "none.npy")


def test_training_file_without_validation_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path / "train.bin", IDS)
    with pytest.raises(DataError, match=r"must hold a validation file beside its training file"):
        prepare(tmp_path, tmp_path)


def test_ids_beside_text_are_an_error(tmp_path: Path) -> None:
    config = DataConfig(text=(str(saved(tmp_path / "ids.npy", IDS)), "notes.txt"))
    with pytest.raises(DataError, match=r"text must be one source of token ids or any number of texts, got .*ids.npy"):
        prepare_tokens(config, tmp_path / "tokens", tmp_path / "tokenizer.json", sequence_length=8)


def test_byte_pairs_cannot_be_trained_on_ids(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tokenizer must be the tokenizer.json that made the ids"):
        prepare(tmp_path, saved(tmp_path / "ids.npy", IDS), tokenizer="bpe:300")


def test_vocab_size_below_the_tokenizer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_text(ByteTokenizer().to_json())
    with pytest.raises(ConfigurationError, match=r"vocab_size must be at least 257, the size of .*bytes.json, got 200"):
        prepare(tmp_path, saved(tmp_path / "ids.npy", IDS), tokenizer=str(tmp_path / "bytes.json"), vocab_size=200)
