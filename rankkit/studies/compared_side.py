"""One group of a spectrum file as a side of a comparison."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.statistics import Interval, bootstrap_over_documents, mean_interval
from rankkit.store import GroupDescription, describe, read_group
from rankkit.store.door.hdf5 import opened
from rankkit.studies.head_means import Bracket, HeadMeans, head_means

__all__ = ["SEPARATOR", "Array", "Side", "interval_of", "read_side"]

SEPARATOR = "::"
"""Between a file and one of its groups."""

Array: TypeAlias = NDArray[np.float64]

_OTHER_ARM = {str(MaskKind.CAUSAL): str(MaskKind.PREFIX), str(MaskKind.PREFIX): str(MaskKind.CAUSAL)}
_NOT_AVERAGED = ("sink_position",)  # a key's index has no mean over heads


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """What a comparison needs of one group, at one step."""

    path: Path
    """The file."""
    group: str
    """Its name there."""
    mask: str
    """Of its own: causal, prefix, bidirectional, window, mixed, ..."""
    swapped: str | None
    """The mask that was put on its logits too; None for none."""
    step: int
    """Of the checkpoint."""
    seeds: tuple[int, ...]
    """Labels."""
    regions: tuple[str, ...]
    """Labels."""
    layers: tuple[int, ...]
    """Labels."""
    trained: NDArray[np.bool_]
    """"region layer": what the loss reaches."""
    documents: NDArray[np.int64]
    """"sequence"; one for all where they are not known, which gives no interval."""
    tokens_sha256: str
    """Of what was read: token ids and padding; of inputs without tokens the hash that the file gives."""
    lengths: tuple[int, ...]
    """Rows of the whole matrices, by sequence."""
    values: dict[str, Array]
    """By measure, "seed region applied_mask sequence layer head"; nan where there is none."""
    brackets: dict[str, Bracket]
    """By measure, the same axes."""

    def means(self, measure: str, *, both_masks: bool) -> HeadMeans:
        """Averaged over heads.

        Args:
            measure: from its values.
            both_masks: whether only matrices count that have a value under both masks; else its own mask stands for both.
        """
        masks = [0, 1] if both_masks else [0, 0]
        bracket = self.brackets.get(measure)
        chosen = None if bracket is None else (bracket[0][:, :, masks], bracket[1][:, :, masks])
        return head_means(self.values[measure][:, :, masks], chosen)


def read_side(name: str, *, step: int | None = None) -> Side:
    """Read one side.

    Args:
        name: of a file, or FILE::GROUP where it holds several groups; a run directory stands for its spectrum.h5.
        step: of the checkpoint; None for the last.

    Raises:
        ConfigurationError: the group or step is not there, or has to be named.
        SpectrumFileError: the file cannot be read safely.
    """
    text, _, group = name.partition(SEPARATOR)
    path = Path(text) / "spectrum.h5" if Path(text).is_dir() else Path(text)
    description = _group(path, group)
    steps = [int(label) for label in description.labels["step"]]
    if step is not None and step not in steps:
        raise ConfigurationError(f"step must be among {', '.join(map(str, steps))} of {path}, got {step}. Choose one.")
    return _side(path, description, len(steps) - 1 if step is None else steps.index(step))


def _group(path: Path, name: str) -> GroupDescription:
    description = describe(path)
    arms = [group.name for group in description.groups]
    if not name and len(arms) != 1:
        raise ConfigurationError(
            f"{path} must hold one group, or one be named, got {', '.join(arms)}. Write {path}{SEPARATOR}{arms[0]}."
        )
    groups = {group.name: group for group in (*description.groups, *description.baselines)}
    if name and name not in groups:
        raise ConfigurationError(f"{path} must hold group {name!r}, got {', '.join(groups)}. Choose one of them.")
    return groups[name or arms[0]]


def _side(path: Path, group: GroupDescription, step: int) -> Side:
    measures = [name for name in group.measures if name not in _NOT_AVERAGED]
    ends = [f"{name}_{end}" for name in measures if name in group.estimated for end in ("lower", "upper")]
    static = ("tokens", "valid_row", "untrained", "rows", "region")
    arrays = read_group(path, group.name, (*static, *measures, *ends))
    known = {name: arrays[name][:, step].astype(np.float64) for name in (*measures, *ends)}
    whole = arrays["rows"].max(axis=0)
    return Side(
        path=path,
        group=group.name,
        mask=str(group.attributes["mask"]),
        swapped=_swapped(group),
        step=int(group.labels["step"][step]),
        seeds=tuple(int(seed) for seed in group.labels["seed"]),
        regions=tuple(map(str, group.labels["region"])),
        layers=tuple(int(layer) for layer in group.labels["layer"]),
        trained=arrays["untrained"] == 0,
        documents=_documents(path, group, len(arrays["tokens"])),
        tokens_sha256=_hash(group, arrays["tokens"], arrays["valid_row"]),
        lengths=tuple(whole.tolist()),
        values={name: known[name] for name in measures},
        brackets={
            name: (known[f"{name}_lower"], known[f"{name}_upper"]) for name in measures if name in group.estimated
        },
    )


def _swapped(group: GroupDescription) -> str | None:
    """The mask that was swapped in: said by a model's file, of a run the other arm's."""
    if "swapped" not in group.labels["applied_mask"]:
        return None
    said = str(group.attributes.get("swapped_mask", _OTHER_ARM.get(str(group.attributes["mask"]), "")))
    return said.partition(":")[0] or None


def _documents(path: Path, group: GroupDescription, count: int) -> NDArray[np.int64]:
    """One for all where the file does not say them."""
    with opened(path) as file:
        known = "document" in file[group.name]
    if not known:
        return np.zeros(count, dtype=np.int64)
    return read_group(path, group.name, ("document",))["document"].astype(np.int64)


def _hash(group: GroupDescription, tokens: NDArray[np.integer], valid_row: NDArray[np.integer]) -> str:
    if (tokens < 0).any():
        return str(group.attributes.get("inputs_sha256", "unknown"))
    padding = b"" if valid_row.all() else valid_row.astype(np.int8).tobytes()
    return hashlib.sha256(f"{tokens.shape}".encode() + tokens.astype("<i4").tobytes() + padding).hexdigest()


def interval_of(table: Array, documents: NDArray[np.int64], error: float, kind: str) -> Interval:
    """Over the seeds of "seed sequence" that have a value, or with one seed over documents.

    Args:
        table: of one arm, or paired differences.
        documents: "sequence".
        error: of every value, that repeating does not reduce; widens the interval.
        kind: what an interval over seeds is called.
    """
    by_seed = table.mean(axis=1)
    known = by_seed[~np.isnan(by_seed)]
    if known.size == 0:
        return Interval(mean=np.nan, lower=np.nan, upper=np.nan, count=0, kind=kind)
    found = mean_interval(known, kind=kind) if len(table) > 1 else bootstrap_over_documents(table[0], documents)
    return found.widened(error, "widened by the brackets of estimates")
