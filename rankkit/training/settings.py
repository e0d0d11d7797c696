"""Configuration files: a strict loader over tomllib, and the text written into every run.

Unknown keys are refused with the nearest name, a bool is not an int, and every message carries the key's path.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from rankkit.errors import ConfigurationError

__all__ = ["from_table", "parse_assignments", "to_table", "toml_text"]

T = TypeVar("T")


def from_table(kind: type[T], table: Mapping[str, Any], path: str) -> T:
    """Build a configuration dataclass from a TOML table, strictly.

    Args:
        kind: a dataclass of scalars, enums, optional scalars, mappings, tuples of scalars, or such dataclasses.
        table: parsed TOML.
        path: of the table inside the file, for messages.

    Raises:
        ConfigurationError: an unknown key, a value of the wrong type, or one that the dataclass refuses.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(names)}."
            raise ConfigurationError(f"{path} must not hold the unknown key {key!r}. {hint}")
    return kind(**{key: _value(hints[key], value, f"{path}.{key}") for key, value in table.items()})


def _value(hint: Any, value: Any, path: str) -> Any:
    """One value checked against a type hint; containers are converted from TOML's."""
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_table(typing.cast(type, hint), value, path)
    elif typing.get_origin(hint) is Mapping:
        if isinstance(value, Mapping):
            return dict(value)  # of any keys: whoever reads it next checks them
    elif isinstance(hint, types.UnionType):
        return _value(next(option for option in hint.__args__ if option is not type(None)), value, path)
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(_value(typing.get_args(hint)[0], entry, f"{path}[{i}]") for i, entry in enumerate(value))
    elif typing.get_origin(hint) is typing.Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        if isinstance(value, str):
            return value  # the dataclass itself names the choices
    elif hint is float:
        finite = sys.float_info.max  # TOML writes nan, inf and whole numbers of any length
        if isinstance(value, int | float) and not isinstance(value, bool) and -finite <= value <= finite:
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = _toml_name(hint)
    article = {"float": "a finite", "int": "an"}.get(name, "a")
    raise ConfigurationError(f"{path} must be of type {name}, got {value!r}. Write {article} {name}.")


def _toml_name(hint: Any) -> str:
    """What a file calls a value of this type."""
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is Mapping:
        return "table"
    if typing.get_origin(hint) is tuple:
        return "list"
    return hint.__name__ if hint in (bool, int, float) else "string"


def to_table(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain TOML values, every field written; None is left out, as TOML has none."""
    table: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            table[field.name] = to_table(value)
        elif isinstance(value, Enum):
            table[field.name] = str(value.value)
        elif isinstance(value, tuple):
            table[field.name] = list(value)
        elif value is not None:
            table[field.name] = value
    return table


def toml_text(table: Mapping[str, Any], prefix: str = "") -> str:
    """A table of scalars, lists and tables as TOML; scalars first, as TOML requires."""
    lines = [f"{key} = {_toml_scalar(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{prefix}{key}]", toml_text(value, f"{prefix}{key}.").rstrip("\n")]
    return "\n".join(lines) + "\n"


def _toml_scalar(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml_scalar(entry) for entry in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value, allow_nan=False)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # how Python holds a file name that is not UTF-8
        raise ConfigurationError(
            f"text in a configuration must be Unicode, got {value!r}. Rename the file that it names."
        ) from error
    # TOML's escapes are JSON's, except that it has no surrogate pairs and escapes DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set train.learning_rate=3e-4` options as nested tables; the right side is TOML, or a bare word.

    A key that is given twice takes its last value.

    Raises:
        ConfigurationError: no `=`, an empty key, or a key that is both a value and a table.
    """
    table: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        *tables, name = (part.strip() for part in key.split("."))
        if not equals or not all((*tables, name)):
            raise ConfigurationError(
                f"--set must look like train.learning_rate=3e-4, got {assignment!r}. Name a key and a value."
            )
        target: Any = table
        for part in tables:
            target = target.setdefault(part, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict) or isinstance(target.get(name), dict):
            raise ConfigurationError(
                f"--set must not make one key both a value and a table, got {assignment!r}. Remove one of the two."
            )
        target[name] = _toml_value(text)
    return table


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()  # a line break may begin another key
