import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankkit.store.reasons import read_reasons, reasons_text

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(NAMES, TEXTS, max_size=5))
def test_reasons_read_back_as_they_were_written(reasons: dict[str, str]) -> None:
    assert read_reasons(reasons_text(reasons)) == reasons


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.recursive(st.none() | st.text(), st.lists, max_leaves=5).map(json.dumps))
def test_any_text_gives_reasons_or_one_error(text: str) -> None:
    found = outcome(text)
    if isinstance(found, str):
        assert "unavailable must" in found
    else:
        assert all(isinstance(name, str) and isinstance(reason, str) for name, reason in found.items())


def outcome(text: str) -> dict[str, str] | str:
    try:
        return read_reasons(text)
    except ValueError as error:
        return str(error)


WRONG = [
    ("{", "must be JSON, got '{'. Restore a copy"),
    ("[" * 9000, "must be JSON, got "),
    ('{"a": ' + "9" * 5000 + "}", "must be JSON, got "),
    ("x" * 16_385, "must be a text of at most 16384 characters"),
    ("[]", "must map names to reasons, got "),
    ("null", "must map names to reasons, got None"),
    ('{"Log": "x"}', "must name measures or theorems in lower-case letters, digits and underscores, got 'Log'"),
    ('{"a": 3}', "must give a a reason of 1 to 500 printable characters, got 3"),
    ('{"a": ""}', "must give a a reason of 1 to 500 printable characters, got ''"),
    ('{"a": "\\u001b[31m"}', "must give a a reason of 1 to 500 printable characters"),
    ('{"a": "\\ud800"}', "must give a a reason of 1 to 500 printable characters"),
    (json.dumps({"a": "x" * 501}), "must give a a reason of 1 to 500 printable characters"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_stored_text_that_gives_no_reasons_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_reasons(text)


@pytest.mark.parametrize(
    ("reasons", "message"),
    [
        ({"a": "x\0"}, "must give a a reason"),
        ({"a b": "x"}, "must name measures or theorems"),
        ({f"name_{number}": "x" * 500 for number in range(40)}, "must take at most 16384 characters, got"),
    ],
)
def test_reasons_that_could_not_be_read_again_are_not_written(reasons: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reasons_text(reasons)
