"""Configuration files: a strict loader over tomllib, and the text written into every run.

Unknown keys are refused with the nearest name, a bool is not an int, and every message carries the key's path.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
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
        kind: a dataclass whose fields are scalars, enums, optional scalars, tuples of scalars, or such dataclasses.
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
    elif isinstance(hint, types.UnionType):
        return _value(next(option for option in hint.__args__ if option is not type(None)), value, path)
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(_value(typing.get_args(hint)[0], entry, f"{path}[{i}]") for i, entry in enumerate(value))
    elif typing.get_origin(hint) is typing.Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        if isinstance(value, str):
            return value  # the dataclass itself names the choices
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ConfigurationError(f"{path} must be of type {name}, got {value!r}. Write a {name}.")


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
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
    return json.dumps(value)


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set train.learning_rate=3e-4` options as nested tables; the right side is TOML, or a bare word.

    Raises:
        ConfigurationError: no `=`, an empty key, or a right side that is neither.
    """
    table: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise ConfigurationError(
                f"--set must look like train.learning_rate=3e-4, got {assignment!r}. Name a key and a value."
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        target = table
        for part in parts[:-1]:
            target = target.setdefault(part, {})
        target[parts[-1]] = value
    return table
