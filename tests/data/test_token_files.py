"""Prepared tokens: every document on its side and whole, files that are checked, one error for each bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankkit.data import (
    Corpus,
    DataConfig,
    Document,
    TokenFiles,
    load_tokenizer,
    open_tokens,
    prepare_tokens,
    synthetic,
    train_tokenizer,
    verify_tokens,
)
from rankkit.data.splitting import plan_split
from rankkit.errors import ConfigurationError, DataError, RunError, StorageError
from rankkit.files import sha256_of_file


def prepare(folder: Path, *, sequence_length: int = 64, **settings: Any) -> TokenFiles:
    return prepare_tokens(
        DataConfig(**settings),
        folder / "tokens",
        folder / "tokenizer.json",
        sequence_length=sequence_length,
        corpus=synthetic(0, 60),
    )


def documents_of(tokens: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens, starts[1:])]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_tokens_decode_to_the_documents_of_each_side(tmp_path: Path, tokenizer: str) -> None:
    files = prepare(tmp_path, tokenizer=tokenizer)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    split = list(plan_split(synthetic(0, 60), 0.05))
    for side, is_validation in (("train", False), ("validation", True)):
        parts = documents_of(getattr(files, side), getattr(files, f"{side}_documents"))
        assert all(part[-1] == loaded.document_token for part in parts)
        assert all(part.count(loaded.document_token) == 1 for part in parts)
        expected = [document.text for is_held_out, document in split if is_held_out == is_validation]
        assert [loaded.decode(part) for part in parts] == expected


def test_byte_pairs_are_trained_on_the_training_side_alone(tmp_path: Path) -> None:
    prepare(tmp_path, tokenizer="bpe:300")
    training = train_tokenizer("bpe:300", plan_split(synthetic(0, 60), 0.05).training_texts())
    assert load_tokenizer(tmp_path / "tokenizer.json").sha256 == training.sha256


def test_description_says_where_tokens_come_from(tmp_path: Path) -> None:
    files = prepare(tmp_path)
    facts = files.description
    assert json.loads((tmp_path / "tokens" / "tokens.json").read_text()) == facts
    assert facts["corpus"] == {
        "description": "synthetic grammar, seed 0, 60 documents",
        "documents": 60,
        "characters": sum(len(document.text) for document in synthetic(0, 60)),
        "sha256": synthetic(0, 60).survey().sha256,
        "python_version": None,
    }
    assert (facts["vocab_size"], facts["dtype"], facts["document_token"], facts["tokenizer"]) == (
        257,
        "uint16",
        256,
        "bytes",
    )
    assert facts["tokenizer_sha256"] == sha256_of_file(tmp_path / "tokenizer.json")
    assert facts["train"]["sha256"] == sha256_of_file(tmp_path / "tokens" / "train.npy")
    assert facts["train"]["documents"] + facts["validation"]["documents"] == 60
    assert facts["train"]["tokens"] == files.train.size
    assert "60 documents, held out by" in facts["split"]


def test_tokens_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    files = prepare(tmp_path)
    assert isinstance(files.train, np.memmap)
    assert isinstance(files.validation, np.memmap)
    with pytest.raises(ValueError, match=r"read-only"):
        files.train[0] = 1


def test_equal_text_gives_equal_files(tmp_path: Path) -> None:
    first, second = (prepare(tmp_path / name, tokenizer="bpe:300") for name in ("a", "b"))
    assert first.description == second.description


def test_text_of_the_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {number}\n" for number in range(500)))
    config = DataConfig(text=(str(tmp_path / "a.txt"),))
    files = prepare_tokens(config, tmp_path / "tokens", tmp_path / "tokenizer.json", sequence_length=64)
    assert "pieces at newlines" in files.description["split"]
    assert files.train.size + files.validation.size == (tmp_path / "a.txt").stat().st_size + sum(
        files.description[side]["documents"] for side in ("train", "validation")
    )


@pytest.mark.parametrize(("sequence_length", "side"), [(10**6, "train"), (10**5, "validation")])
def test_too_short_text_says_how_much_is_needed_and_leaves_nothing(
    tmp_path: Path, sequence_length: int, side: str
) -> None:
    message = rf"text must hold at least {sequence_length} {side} tokens \(one sequence\), got \d+. Add text or lower"
    with pytest.raises(DataError, match=message):
        prepare_tokens(
            DataConfig(),
            tmp_path / "run" / "tokens",
            tmp_path / "run" / "tokenizer.json",
            sequence_length=sequence_length,
            corpus=synthetic(0, 150),
        )
    assert not any((tmp_path / "run").iterdir())


def test_failure_keeps_the_tokens_that_were_there(tmp_path: Path) -> None:
    before = prepare(tmp_path).description
    with pytest.raises(DataError, match=r"text must hold at least"):
        prepare(tmp_path, sequence_length=10**6)
    assert open_tokens(tmp_path / "tokens").description == before


def test_text_that_changes_while_it_is_tokenized_is_an_error(tmp_path: Path) -> None:
    readings = iter(range(9))

    def read() -> Any:
        reading = next(readings)
        return (Document(f"{number}", f"reading {reading} of {number}\n" * 9) for number in range(100))

    with pytest.raises(DataError, match=r"text must stay the same while it is read"):
        prepare_tokens(
            DataConfig(),
            tmp_path / "tokens",
            tmp_path / "tokenizer.json",
            sequence_length=8,
            corpus=Corpus(description="a test", read=read),
        )
    assert not any(tmp_path.iterdir())


def test_vocab_size_is_refused_for_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"vocab_size must be left out for text, got 300"):
        prepare(tmp_path, vocab_size=300)


def test_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"must be writable, got: not a directory"):
        prepare(tmp_path / "file" / "run")


def test_verify_accepts_what_was_written(tmp_path: Path) -> None:
    prepare(tmp_path, tokenizer="bpe:300")
    verify_tokens(tmp_path / "tokens", tmp_path / "tokenizer.json")


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["tokens/train.npy", "tokens/validation.npy", "tokens/train_documents.npy", "tokenizer.json"]
)
def test_verify_names_the_file_that_is_not_the_one_written(tmp_path: Path, name: str) -> None:
    prepare(tmp_path)
    flip(tmp_path / name, -8)
    with pytest.raises(RunError, match=f"{Path(name).name} must"):
        verify_tokens(tmp_path / "tokens", tmp_path / "tokenizer.json")


def test_verify_names_a_missing_tokenizer(tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(RunError, match=r"gone.json must be readable, got: No such file"):
        verify_tokens(tmp_path / "tokens", tmp_path / "gone.json")


def test_verify_finds_an_id_outside_the_vocabulary_under_a_matching_hash(tmp_path: Path) -> None:
    prepare(tmp_path)
    path = tmp_path / "tokens" / "train.npy"
    ids = np.load(path)
    ids[7] = 300
    np.save(path, ids)
    describe(tmp_path, lambda facts: facts["train"].update(sha256=sha256_of_file(path)))
    with pytest.raises(RunError, match=r"train.npy must hold ids below 257, got 300"):
        verify_tokens(tmp_path / "tokens")


def describe(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokens" / "tokens.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(type="other"), "tokens.json must be written by rankkit, got a foreign file"),
        (lambda facts: facts.update(version=2), "tokens.json must be of version 1, got 2. Install a newer rankkit"),
        (lambda facts: facts.pop("train"), "tokens.json must describe prepared tokens, got damage"),
        (lambda facts: facts.update(train=[]), "tokens.json must describe prepared tokens, got damage"),
        (lambda facts: facts.update(vocab_size=None), "tokens.json must describe prepared tokens, got damage"),
        (lambda facts: facts.update(dtype="uint32"), "train.npy must hold .* uint32 values, got another array"),
        (lambda facts: facts["validation"].update(tokens=5), "validation.npy must hold 5 uint16 values"),
    ],
)
def test_open_refuses_a_description_that_does_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    prepare(tmp_path)
    describe(tmp_path, change)
    with pytest.raises(RunError, match=message):
        open_tokens(tmp_path / "tokens")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", "null"])
def test_open_refuses_a_description_that_is_no_object(tmp_path: Path, content: str) -> None:
    prepare(tmp_path)
    (tmp_path / "tokens" / "tokens.json").write_text(content)
    with pytest.raises(RunError, match=r"tokens.json must be"):
        open_tokens(tmp_path / "tokens")


@pytest.mark.parametrize("name", ["train.npy", "validation.npy", "train_documents.npy", "validation_documents.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "foreign", "shape"])
def test_open_names_the_array_that_is_damaged(tmp_path: Path, name: str, damage: str) -> None:
    prepare(tmp_path)
    path = tmp_path / "tokens" / name
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "cut":
            path.write_bytes(content[:-1])
        case "empty":
            path.touch()
        case "foreign":
            path.write_bytes(b"not an array" * 20)
        case "shape":
            np.save(path, np.zeros((2, 2), dtype=np.uint16))
    with pytest.raises(RunError, match=f"{name} must"):
        open_tokens(tmp_path / "tokens")


@pytest.mark.parametrize("starts", ["ends beyond", "repeats", "begins late"])
def test_open_refuses_starts_that_do_not_ascend_inside_the_tokens(tmp_path: Path, starts: str) -> None:
    files = prepare(tmp_path)
    bad = np.array(files.train_documents)
    match starts:
        case "ends beyond":
            bad[-1] = files.train.size
        case "repeats":
            bad[2] = bad[1]
        case "begins late":
            bad[0] = 1
    np.save(tmp_path / "tokens" / "train_documents.npy", bad)
    with pytest.raises(RunError, match=r"train_documents.npy must ascend from 0"):
        open_tokens(tmp_path / "tokens")


def test_open_names_the_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"tokens.json must be readable, got: No such file or directory. Pass a run"):
        open_tokens(tmp_path)
