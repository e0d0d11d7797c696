"""Configuration files: strict in, whole out, and what goes out comes back in."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankkit.data import DataConfig
from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models import ModelConfig
from rankkit.training import ArmConfig, Objective, TrainConfig
from rankkit.training.presets import PRESETS
from rankkit.training.settings import from_table, parse_assignments, to_table, toml_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    table: Mapping[str, Any] = field(default_factory=dict)


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    whole: int = 1
    real: float = 0.5
    switch: bool = False
    word: str = "a"
    maybe: float | None = None
    maybe_whole: int | None = None
    choice: Literal["x", "y"] = "x"
    colour: Colour = Colour.RED
    inner: Inner = field(default_factory=Inner)


def load(text: str) -> Outer:
    return from_table(Outer, tomllib.loads(text), "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("whole = true", "file.whole must be of type int, got True. Write an int"),
        ("whole = 1.0", "file.whole must be of type int, got 1.0. Write an int"),
        ("whole = '1'", "file.whole must be of type int, got '1'"),
        ("real = true", "file.real must be of type float, got True. Write a finite float"),
        ("real = nan", "file.real must be of type float, got nan. Write a finite float"),
        ("real = -inf", "file.real must be of type float, got -inf"),
        ("real = 1" + "0" * 400, "file.real must be of type float, got 10+. Write a finite float"),
        ("switch = 1", "file.switch must be of type bool, got 1. Write a bool"),
        ("switch = 'true'", "file.switch must be of type bool, got 'true'"),
        ("word = 3", "file.word must be of type string, got 3. Write a string"),
        ("word = true", "file.word must be of type string, got True"),
        ("maybe = 'x'", "file.maybe must be of type float, got 'x'"),
        ("maybe = true", "file.maybe must be of type float, got True"),
        ("maybe_whole = 1.5", "file.maybe_whole must be of type int, got 1.5"),
        ("choice = 3", "file.choice must be of type string, got 3. Write a string"),
        ("colour = true", "file.colour must be of type string, got True"),
        ("inner = 3", "file.inner must be of type table, got 3. Write a table"),
        ("word = [1]", r"file.word must be of type string, got \[1\]"),
        ("whole = 1979-05-27", "file.whole must be of type int, got datetime.date"),
        ("[inner]\nnames = 'a'", "file.inner.names must be of type list, got 'a'. Write a list"),
        ("[inner]\nnames = ['a', 3]", r"file.inner.names\[1\] must be of type string, got 3"),
        ("[inner]\ncounts = [1, true]", r"file.inner.counts\[1\] must be of type int, got True"),
        ("[inner]\ncounts = {a = 1}", "file.inner.counts must be of type list, got {'a': 1}"),
        ("hole = 1", "file must not hold the unknown key 'hole'. Did you mean whole"),
        ("[inner]\nname = []", "file.inner must not hold the unknown key 'name'. Did you mean names"),
        ("zzz = 1", "file must not hold the unknown key 'zzz'. Known keys: whole, real, switch, word"),
    ],
)
def test_every_wrong_value_is_named_with_its_path(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(text)


def test_right_values_of_every_type_are_taken() -> None:
    text = """
    whole = 3
    real = 2
    switch = true
    word = "b"
    maybe = 1
    maybe_whole = 2
    choice = "y"
    colour = "red"
    [inner]
    names = ["p", "q"]
    counts = []
    """
    loaded = load(text)
    expected = Outer(
        whole=3, real=2.0, switch=True, word="b", maybe=1.0, maybe_whole=2, choice="y",
        inner=Inner(names=("p", "q"), counts=()),
    )  # fmt: skip
    assert loaded == expected
    assert (type(loaded.real), type(loaded.maybe), type(loaded.inner.names)) == (float, float, tuple)


def test_a_table_of_any_keys_is_taken_as_it_is() -> None:
    assert from_table(Free, {"table": {"a": 1, "b": {"c": "x"}}}, "file").table == {"a": 1, "b": {"c": "x"}}
    with pytest.raises(ConfigurationError, match=r"file.table must be of type table, got \[1\]. Write a table"):
        from_table(Free, {"table": [1]}, "file")


def test_what_is_left_out_keeps_its_default() -> None:
    assert load("") == Outer()
    assert from_table(ArmConfig, {"model": {"d_model": 8}}, "arm") == ArmConfig(model=ModelConfig(d_model=8))


def test_refusals_of_the_configuration_itself_pass_through() -> None:
    with pytest.raises(ConfigurationError, match="mask must be one of causal, prefix"):
        from_table(ModelConfig, {"mask": "sideways"}, "model")
    with pytest.raises(ConfigurationError, match="precision must be one of float32, bfloat16, got 'float8'"):
        from_table(TrainConfig, {"precision": "float8"}, "train")


def round_trip(config: Any) -> Any:
    return from_table(type(config), tomllib.loads(toml_text(to_table(config))), "config")


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("prefix_fraction", [None, 0.5])
def test_presets_survive_a_round_trip(name: str, prefix_fraction: float | None) -> None:
    config = PRESETS[name]()
    config = replace(config, train=replace(config.train, prefix_fraction=prefix_fraction, objective=Objective.SUFFIX),
                     model=replace(config.model, mask=MaskKind.PREFIX))  # fmt: skip
    found = round_trip(config)
    assert found == config
    assert type(found.model.mask) is MaskKind
    assert type(found.train.objective) is Objective


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_any_unicode_text_survives_a_round_trip(word: str, names: list[str]) -> None:
    config = Outer(word=word, inner=Inner(names=tuple(names)))
    assert round_trip(config) == config


@pytest.mark.parametrize(
    "word",
    ['"', "'", '"""', "\\", "\\u0041", "a\nb\r\nc\t", "\x00\x1b\x1f", "\x7f", "\x85\u2028", "grün", "\U0001f600", "#", "$x"],
)  # fmt: skip
def test_odd_text_survives_a_round_trip_through_a_file(word: str, tmp_path: Any) -> None:
    config = DataConfig(text=(word, "b"), text_key=word)
    path = tmp_path / "run.toml"
    path.write_text(toml_text(to_table(config)), encoding="utf-8")
    assert from_table(DataConfig, tomllib.loads(path.read_text(encoding="utf-8")), "data") == config


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1), st.booleans())
def test_any_number_survives_a_round_trip_to_the_bit(real: float, whole: int, switch: bool) -> None:
    config = Outer(real=real, maybe=real, whole=whole, switch=switch)
    found = round_trip(config)
    assert found == config
    assert str(found.real) == str(real)  # the sign of zero too


def test_file_names_that_are_not_unicode_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"text in a configuration must be Unicode, got '\\udcff'. Rename the"):
        toml_text(to_table(DataConfig(text=("\udcff",))))


def test_tables_nest_after_their_scalars() -> None:
    table = {"a": 1, "b": {"c": {"d": [1, 2]}, "e": True}, "f": "x", "g": {}}
    assert tomllib.loads(toml_text(table)) == table


def test_every_field_is_written_but_for_none() -> None:
    table = to_table(ArmConfig())
    assert set(table) == {"model", "train", "data"}
    assert set(table["train"]) == {name for name in TrainConfig.__slots__ if name != "prefix_fraction"}
    assert table["model"]["mask"] == "causal"
    assert type(table["model"]["mask"]) is str


@pytest.mark.parametrize(
    ("assignments", "table"),
    [
        ([], {}),
        (["a=1"], {"a": 1}),
        (["train.learning_rate=3e-4"], {"train": {"learning_rate": 3e-4}}),
        (["a.b.c=true", "a.b.d=[1, 2]", "a.e='x y'"], {"a": {"b": {"c": True, "d": [1, 2]}, "e": "x y"}}),
        (["data.tokenizer=bpe:300"], {"data": {"tokenizer": "bpe:300"}}),
        (['data.tokenizer="bpe:300"'], {"data": {"tokenizer": "bpe:300"}}),
        (["a=x=y"], {"a": "x=y"}),
        (["a=C#"], {"a": "C#"}),
        (["a="], {"a": ""}),
        ([" a . b = word "], {"a": {"b": "word"}}),
        (["a=1", "a=2"], {"a": 2}),
        (["a={b = 1}", "a.c=2"], {"a": {"b": 1, "c": 2}}),
        (["a=1\nb = 2"], {"a": "1\nb = 2"}),
    ],
)
def test_assignments_become_tables(assignments: list[str], table: dict[str, Any]) -> None:
    assert parse_assignments(assignments) == table


@pytest.mark.parametrize("assignment", ["train.steps", "=3", "train.=3", ".steps=3", " =3", "a..b=3"])
def test_assignments_need_a_key_and_a_value(assignment: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--set must look like train.learning_rate=3e-4, got .* Name a key"):
        parse_assignments([assignment])


@pytest.mark.parametrize(
    "assignments", [["a=1", "a.b=2"], ["a.b=2", "a=1"], ["a=1", "a.b.c=2"], ["a.b=1", "a.b.c=2"], ["a=[]", "a.b=1"]]
)
def test_a_key_cannot_be_a_value_and_a_table(assignments: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=f"--set must not make one key both .* got '{assignments[1]}'. Remove"):
        parse_assignments(assignments)
