"""From a preset, a file, assignments and options to one configuration, each over the one before."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankkit.errors import ConfigurationError
from rankkit.training.config import ArmConfig, RunConfig
from rankkit.training.presets import preset as named_preset
from rankkit.training.settings import from_table, parse_assignments, to_table

__all__ = ["run_config"]

_SECTIONS = ("model", "train", "data")


def run_config(
    *,
    preset: str | None = None,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    tokens: int | None = None,
) -> RunConfig:
    """Resolve a run's configuration.

    Args:
        preset: name of a preset; None for `tiny`, or for the file's `preset`.
        file: TOML with any of `preset`, `arms`, `seeds`, [model], [train], [data].
        assignments: `train.learning_rate=3e-4` and the like.
        options: by section and key, what the command line's own options say.
        arms: names; None for the file's or the default.
        seeds: numbers; None for the file's or the default.
        tokens: tokens to read per unit; decides the steps.

    Raises:
        ConfigurationError: an unreadable file, an unknown key, a wrong type, or a value that cannot hold.
    """
    read = _read(file) if file is not None else {}
    of_file = read.pop("preset", "tiny")
    table = to_table(_preset(of_file if preset is None else preset))
    layers: list[Mapping[str, Any]] = [
        {key: read.pop(key) for key in _SECTIONS if key in read}, parse_assignments(assignments), options or {},
    ]  # fmt: skip
    for layer in layers:
        for section, values in layer.items():
            if section not in _SECTIONS or not isinstance(values, Mapping):
                raise ConfigurationError(
                    f"setting must begin with {', '.join(_SECTIONS)}, got {section!r}. Write for example train.steps=500."
                )
            table[section] = {**table[section], **values}
    _refuse_decided_elsewhere(layers)
    base = _reading(from_table(ArmConfig, table, "config"), tokens)
    chosen: dict[str, Any] = {name: read.pop(name) for name in ("arms", "seeds") if name in read}
    chosen |= {name: option for name, option in (("arms", arms), ("seeds", seeds)) if option is not None}
    if read:
        raise ConfigurationError(
            f"{file} must not hold the unknown key {next(iter(read))!r}. "
            "Known: preset, arms, seeds, [model], [train], [data]."
        )
    return replace(from_table(RunConfig, chosen, "config"), base=base)


def _preset(name: Any) -> ArmConfig:
    if not isinstance(name, str):
        raise ConfigurationError(f'preset must be a name, got {name!r}. Write for example preset = "tiny".')
    return named_preset(name)


def _reading(base: ArmConfig, tokens: int | None) -> ArmConfig:
    """The configuration with the steps that it takes to read so many tokens."""
    if tokens is None:
        return base
    if tokens < 1:
        raise ConfigurationError(f"tokens must be at least 1, got {tokens}. Name how many each unit should read.")
    per_step = base.train.batch_size * base.model.sequence_length
    return replace(base, train=replace(base.train, steps=math.ceil(tokens / per_step)))


_DECIDED_ELSEWHERE = {
    ("model", "mask"): "the arms, got {value!r}. Choose --arms instead.",
    ("train", "objective"): "the arms, got {value!r}. Choose --arms instead.",
    ("model", "vocab_size"): "the tokenizer, got {value!r}. Choose --tokenizer instead.",
}
"""What a base setting would say in vain: it is replaced when the arms or the tokens are made."""


def _refuse_decided_elsewhere(layers: Sequence[Mapping[str, Any]]) -> None:
    for layer in layers:
        for (section, key), whose in _DECIDED_ELSEWHERE.items():
            if key in layer.get(section, {}):
                raise ConfigurationError(f"{section}.{key} must be left to " + whose.format(value=layer[section][key]))


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"config must be an existing file, got {str(file)!r}. Check the path.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{file} must be TOML, got: {error}. Correct that line.") from error
