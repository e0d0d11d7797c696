"""Corpora: the same documents every time, each text once, and a description that says what they are."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankkit.data import Corpus, DataConfig, Document, builtin, read_documents, synthetic
from rankkit.errors import ConfigurationError, DataError

SYNTHETIC_SHA256 = "dbc20ac825720bff1cb5fe0bc8ed736bcf229f77a5bae00977b3f8e901407808"


def test_synthetic_text_is_the_same_on_every_machine() -> None:
    assert synthetic(seed=0, documents=5).survey().sha256 == SYNTHETIC_SHA256


def test_synthetic_document_depends_on_seed_and_number_alone() -> None:
    few, many, other = (list(synthetic(seed, count)) for seed, count in ((1, 3), (1, 9), (2, 9)))
    assert few == many[:3]
    assert {document.text for document in many}.isdisjoint(document.text for document in other)


def test_synthetic_text_is_ascii_lines_with_balanced_brackets() -> None:
    for document in synthetic(seed=3, documents=20):
        assert document.text.isascii()
        assert 20 <= document.text.count(".\n") < 80
        assert document.text.count("(") == document.text.count(")")


@pytest.mark.parametrize(
    ("seed", "documents", "message"), [(-1, 1, "seed must"), (2**64, 1, "seed must"), (0, 0, "documents must")]
)
def test_synthetic_refuses_what_it_cannot_number(seed: int, documents: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        synthetic(seed, documents)


def test_builtin_is_the_standard_library_without_tests_sorted_and_without_copies() -> None:
    corpus = builtin()
    documents = list(corpus)
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert {"ast.py", "json/decoder.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
    assert not [name for name in names if "_sysconfigdata" in name or name.startswith("config-")]
    assert len({document.text for document in documents}) == len(documents) > 300
    assert all(document.text for document in documents)
    assert corpus.python_version == platform.python_version()
    assert platform.python_version() in corpus.description


def test_builtin_skips_an_undecodable_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert [document.name for document in builtin()] == ["good.py"]


def test_builtin_says_so_when_the_grammar_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    corpus = builtin()
    assert corpus.description.startswith("synthetic grammar, seed 0")
    assert "no standard library source in" in corpus.description
    assert corpus.python_version is None
    assert next(iter(corpus)) == next(iter(synthetic(0, 1)))


def test_corpus_reads_each_text_once_and_none_that_is_empty() -> None:
    def read() -> Iterator[Document]:
        yield from (Document("a", "one"), Document("b", ""), Document("c", "two"), Document("d", "one"))

    assert [document.name for document in Corpus(description="", read=read)] == ["a", "c"]


def test_survey_counts_and_its_hash_knows_names_texts_and_order() -> None:
    def corpus(*documents: Document) -> Corpus:
        return Corpus(description="", read=lambda: iter(documents))

    a, b = Document("a", "one"), Document("b", "three")
    seen = corpus(a, b).survey()
    assert (seen.documents, seen.characters) == (2, 8)
    others = [corpus(b, a), corpus(a), corpus(a, Document("c", "three")), corpus(a, Document("b", "four!"))]
    hashes = {other.survey().sha256 for other in others}
    assert len(hashes) == 4
    assert seen.sha256 not in hashes
    assert seen.keys.tolist() == [a.key, b.key]


def test_document_refuses_a_lone_surrogate() -> None:
    with pytest.raises(
        DataError, match=r"note must be text that UTF-8 can hold, got a lone surrogate .* at character 2"
    ):
        Document("note", "ab\ud800")


def test_read_documents_takes_the_builtin_corpus_where_no_text_is_named() -> None:
    assert read_documents(DataConfig()).description == builtin().description


def test_read_documents_keeps_the_order_of_entries_and_drops_a_file_named_twice(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    entries = tuple(str(tmp_path / name) for name in ("b.txt", "a.txt", "b.txt"))
    corpus = read_documents(DataConfig(text=entries))
    assert [document.name for document in corpus] == ["b.txt", "a.txt"]
    assert [document.name for document in corpus] == ["b.txt", "a.txt"]  # and again
    assert corpus.description.endswith("(3 files)")
