"""What every command shares: progress for who looks, numbers for JSON, lists of numbers."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from typing import Any

import click
import pytest
from rich.console import Console

from rankkit.cli.console import Output, counted, duration, integers, names, new_table, plain
from rankkit.studies.words import few_seeds


@dataclass(frozen=True)
class Told:
    done: float
    total: int
    label: str
    unit: str = "matrix"


def shown(output: Output, *steps: Told) -> str:
    """What a bar leaves on stderr."""
    file = io.StringIO()
    output.err = Console(file=file, force_terminal=not output.quiet, width=100, highlight=False)
    with output.progress(8) as tell:
        for step in steps:
            tell(step)
    return file.getvalue()


def test_a_bar_says_what_is_being_done_and_how_far_it_is() -> None:
    text = shown(Output(as_json=False, quiet=False), Told(2, 8, "gpt [layer 0]"), Told(30.0, 40, "functional rank"))
    assert "functional rank" in text
    assert "75%" in text


def test_a_label_is_words_and_no_markup() -> None:
    assert "gpt [layer 0]" in shown(Output(as_json=False, quiet=False), Told(8, 8, "gpt [layer 0]"))


def test_nobody_who_does_not_look_is_shown_a_bar() -> None:
    assert shown(Output(as_json=False, quiet=True), Told(8, 8, "it")) == ""


def test_plain_values_are_json_with_null_for_what_is_not_finite() -> None:
    value: dict[Any, Any] = {1: (math.nan, math.inf, 2.5), "a": [{"b": -math.inf, "c": None, "d": True}], "e": "text"}
    expected = {"1": [None, None, 2.5], "a": [{"b": None, "c": None, "d": True}], "e": "text"}
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_numbers_are_read_singly_and_by_range_each_once() -> None:
    assert integers("0,2,5-8", "--layers") == (0, 2, 5, 6, 7, 8)
    assert integers(" 3 ,3, 1-2", "--layers") == (3, 1, 2)
    assert integers(None, "--layers") is None
    assert names(" a, b ,,c") == ("a", "b", "c")


@pytest.mark.parametrize("text", ["", "one", "1,", "-1", "3-", "-", "5-2", "1.5", "²", "1-2-3"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"must be numbers such as 0,2,5-8, got '.*'"):
        integers(text, "--layers")


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "seed", "0 seeds"), (1, "seed", "1 seed"), (2, "held-out token", "2 held-out tokens"),
        (1, "matrix", "1 matrix"), (1024, "matrix", "1,024 matrices"), (2, "forward pass", "2 forward passes"),
        (3, "batch", "3 batches"),
    ],
)  # fmt: skip
def test_one_of_a_thing_is_not_several(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1 second"), (1.4, "1 second"), (59.4, "59 seconds"), (59.6, "1 minute"), (61.0, "1 minute"),
        (66.0, "1.1 minutes"), (600.0, "10 minutes"),
    ],
)  # fmt: skip
def test_a_duration_is_in_minutes_or_in_seconds_and_never_none(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_two_seeds_alone_are_remarked_on() -> None:
    assert [few_seeds(count) for count in (0, 1, 3)] == [()] * 3
    (said,) = few_seeds(2)
    assert said.startswith("Two seeds make an interval of one degree of freedom")


def test_a_table_is_whole_in_a_narrow_terminal() -> None:
    output, file = Output(as_json=False, quiet=False), io.StringIO()
    output.out = Console(file=file, width=20, force_terminal=True, markup=False, highlight=False)
    table = new_table("ranks", ["layer", "effective rank", "learned effect"])
    table.add_row("0", "15.27 ± 0.3473", "+3.1415 ± 0.0001")
    output.table(table)
    text = file.getvalue()
    assert "…" not in text
    assert all(words in text for words in ("effective rank", "learned effect", "15.27 ± 0.3473", "+3.1415 ± 0.0001"))
