"""The split: by document, by content, both sides filled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.data import Corpus, Document, synthetic
from rankkit.data.splitting import cut, plan_split
from rankkit.errors import DataError


def corpus_of(*texts: str) -> Corpus:
    return Corpus(description="a test", read=lambda: (Document(str(i), text) for i, text in enumerate(texts)))


def sides(corpus: Corpus, fraction: float = 0.05) -> dict[bool, list[str]]:
    found: dict[bool, list[str]] = {False: [], True: []}
    for is_held_out, document in plan_split(corpus, fraction):
        found[is_held_out].append(document.text)
    return found


def test_split_holds_out_about_the_fraction_and_nothing_twice() -> None:
    found = sides(synthetic(seed=0, documents=400), 0.1)
    assert 20 <= len(found[True]) <= 65  # 40 +- 4 standard deviations of a binomial count
    assert len(set(found[True]) | set(found[False])) == 400


def test_split_does_not_move_a_document_when_others_are_added() -> None:
    few, many = sides(synthetic(0, 200)), sides(synthetic(0, 300))
    assert set(few[True]) <= set(many[True])
    assert set(few[False]) <= set(many[False])


def test_split_does_not_depend_on_order_or_names() -> None:
    texts = [document.text for document in synthetic(0, 100)]
    assert set(sides(corpus_of(*texts))[True]) == set(sides(corpus_of(*reversed(texts)))[True])


@given(count=st.integers(1, 40), seed=st.integers(0, 10**6), fraction=st.sampled_from([0.001, 0.05, 0.5]))
@settings(max_examples=40, deadline=None)
def test_split_leaves_no_side_empty_and_loses_no_text(count: int, seed: int, fraction: float) -> None:
    texts = [document.text for document in synthetic(seed, count)]
    found = sides(corpus_of(*texts), fraction)
    assert found[True]
    assert found[False]
    assert sum(map(len, found[True] + found[False])) == sum(map(len, texts))


def test_single_document_is_cut_at_newlines_and_the_description_says_so() -> None:
    text = "\n".join(f"line {number}" for number in range(2000)) + "\n"
    split = plan_split(corpus_of(text), 0.05)
    pieces = [piece.text for _, piece in split]
    assert 20 <= len(pieces) <= 41
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") for piece in pieces)
    assert "pieces at newlines, because there are only 1 documents" in split.description


def test_enough_documents_stay_whole_where_the_hash_leaves_a_side_empty() -> None:
    texts = [document.text for document in synthetic(0, 25)]
    split = plan_split(corpus_of(*texts), 1e-9)
    assert split.piece_size is None
    assert sum(is_held_out for is_held_out, _ in split) == 1
    assert split.description == "1 of 25 documents, held out by the 1 smallest content hashes"


@given(text=st.text(alphabet="ab\n", max_size=200), size=st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_pieces_join_to_the_document_and_none_is_long(text: str, size: int) -> None:
    pieces = [piece.text for piece in cut(Document("a", text), size)]
    assert "".join(pieces) == text
    assert all(1 <= len(piece) <= 2 * size for piece in pieces)
    assert all(len(piece) >= size for piece in pieces[:-1])


def test_equal_pieces_are_never_on_both_sides() -> None:
    found = sides(corpus_of("same line\n" * 300 + "other\n" * 40))
    assert set(found[True]).isdisjoint(found[False])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((), "text must hold at least one character, got none in a test"),
        (("", ""), "text must hold at least one character"),
        (("x",), "text must hold at least two different documents or pieces"),
        (("a" * 4000,), "text must hold at least two different documents or pieces"),
    ],
)
def test_text_that_cannot_be_split_is_an_error(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_split(corpus_of(*texts), 0.05)


def test_text_that_changes_between_readings_is_an_error() -> None:
    readings = iter([["one", "two", "three"] * 1, ["one", "two", "four"], ["one", "two", "four"]])
    corpus = Corpus(description="a test", read=lambda: (Document(text, text) for text in next(readings)))
    split = plan_split(corpus, 0.4)
    with pytest.raises(DataError, match=r"text must stay the same while it is read, got a change in a test"):
        list(split)
