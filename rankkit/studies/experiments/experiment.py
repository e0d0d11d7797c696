"""Declared experiments: a TOML file names a kind of study, its numbers, and what is expected of them.

`kind` chooses the study, `title` says what it is in a line, and everything else is that study's own configuration. A
new kind is one entry of `KINDS`, and a runner in the command line.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rankkit.errors import ConfigurationError
from rankkit.studies.experiments.random_logits import RandomLogitsConfig
from rankkit.training.settings import from_table

__all__ = ["KINDS", "Experiment", "load_experiment"]

KINDS: Final[Mapping[str, type]] = MappingProxyType({"random-logits": RandomLogitsConfig})
"""Configuration of each kind of study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A declaration."""

    name: str
    """Of its file, without the ending."""
    kind: str
    """A key of `KINDS`."""
    title: str
    """What it is, in a line."""
    config: Any
    """Of the type that its kind has."""
    text: str
    """The file, comments included: copied beside the results."""


def load_experiment(path: str | Path, /) -> Experiment:
    """Read a declaration, strictly.

    Raises:
        ConfigurationError: no such file, no TOML, an unknown kind, an unknown key, or a value that cannot hold.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(
            f"experiment must be a file that can be read, got {str(path)!r} ({error.strerror}). Name a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} must be TOML, got: {error}. Correct that line.") from error
    kind, title = table.pop("kind", None), table.pop("title", "")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f'Write kind = "{next(iter(KINDS))}".'
        raise ConfigurationError(f"{path}: kind must be one of {', '.join(KINDS)}, got {kind!r}. {hint}")
    if not isinstance(title, str):
        raise ConfigurationError(f"{path}: title must be of type string, got {title!r}. Write a string.")
    config: Any = from_table(KINDS[kind], table, path.name)
    return Experiment(name=path.stem, kind=kind, title=title or path.stem, config=config, text=text)
