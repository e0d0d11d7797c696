"""Declared experiments: a TOML file names a kind of study, its numbers, and what is expected of them.

`kind` chooses the study, `title` says what it is in a line, and everything else is that study's own configuration. A
new kind is one entry of `KINDS`, and a runner in the command line. Assignments (`base.preset=base`) go over the file, and
over those that it reuses.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rankkit.errors import ConfigurationError
from rankkit.studies.experiments.random_logits import RandomLogitsConfig
from rankkit.studies.experiments.trained_config import TrainedConfig
from rankkit.training.settings import from_table, parse_assignments

__all__ = ["KINDS", "Experiment", "load_experiment"]

KINDS: Final[Mapping[str, type]] = MappingProxyType({"random-logits": RandomLogitsConfig, "trained": TrainedConfig})
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
    assignments: tuple[str, ...] = ()
    """What went over the file."""
    reused: Mapping[str, TrainedConfig] = field(default_factory=dict)
    """Declarations that it reuses by name, those that they reuse before them."""


def load_experiment(path: str | Path, /, assignments: Sequence[str] = ()) -> Experiment:
    """Read a declaration, strictly, and those that it reuses, which lie beside it.

    Args:
        path: of the file.
        assignments: `base.preset=base` and the like, over the file.

    Raises:
        ConfigurationError: no such file, no TOML, an unknown kind, an unknown key, or a value that cannot hold.
    """
    return _loaded(Path(path), parse_assignments(assignments), tuple(assignments), ())


def _loaded(path: Path, over: Mapping[str, Any], assignments: tuple[str, ...], waiting: tuple[str, ...]) -> Experiment:
    text, table = _read(path)
    table = _merged(table, over)
    kind, title = table.pop("kind", None), table.pop("title", "")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f'Write kind = "{next(iter(KINDS))}".'
        raise ConfigurationError(f"{path}: kind must be one of {', '.join(KINDS)}, got {kind!r}. {hint}")
    if not isinstance(title, str):
        raise ConfigurationError(f"{path}: title must be of type string, got {title!r}. Write a string.")
    config: Any = from_table(KINDS[kind], table, path.name)
    reused: dict[str, TrainedConfig] = {}
    for name in config.reuses if isinstance(config, TrainedConfig) else ():
        if name in (*waiting, path.stem):
            raise ConfigurationError(f"{path}: reuses must not lead back to {name!r}. Leave it out there or here.")
        found = _loaded(path.with_name(f"{name}.toml"), over, assignments, (*waiting, path.stem))
        if not isinstance(found.config, TrainedConfig):
            raise ConfigurationError(
                f"{path}: reuses must name experiments of kind trained, got {name!r}. Leave it out."
            )
        reused |= {**found.reused, name: found.config}
    return Experiment(
        name=path.stem, kind=kind, title=title or path.stem, config=config, text=text, assignments=assignments,
        reused=reused,
    )  # fmt: skip


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(
            f"experiment must be a file that can be read, got {str(path)!r} ({error.strerror}). Name a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} must be TOML, got: {error}. Correct that line.") from error


def _merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A table with another's values put over its own, tables key by key."""
    found = dict(table)
    for key, value in over.items():
        present = found.get(key)
        both = isinstance(value, Mapping) and isinstance(present, Mapping)
        found[key] = _merged(present or {}, value) if both else value
    return found
