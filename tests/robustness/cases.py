"""The files of a run, each told by the seed and its number alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
from robustness.edits import edit_file
from robustness.hostile_files import HOSTILE, LIBRARY_VERSIONS, make_hostile
from robustness.metadata import Block, blocks_in
from robustness.mutations import mutate_bytes, mutate_metadata

__all__ = ["HAND_MADE_BASES", "Case", "Cases"]

HAND_MADE_BASES = ("small", "schema 1.0")
_KINDS = {"bytes": 0.35, "metadata": 0.2, "contents": 0.35, "contents, then bytes": 0.1}
_WEIGHTS = {
    "small": 0.12, "half": 0.12, "estimated": 0.32, "schema 1.0": 0.34, "HDF5 1.6": 0.05, "lean": 0.04, "rich": 0.01,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One file."""

    number: int
    """In its run."""
    kind: str
    """How it was made: "hand-made" or one of the kinds of mutations."""
    base: str
    """Name of the file that was changed."""
    name: str
    """Names of the changes."""


class Cases:
    """Makes files.

    Args:
        seed: of the run.
        bases: bytes of finished files by name.
    """

    def __init__(self, seed: int, bases: Mapping[str, bytes]) -> None:
        self._seed = seed
        self._bases = bases
        self._hand_made = [(name, base) for base in HAND_MADE_BASES if base in bases for name in HOSTILE]
        self._weights = {base: weight for base, weight in _WEIGHTS.items() if base in bases}

    @property
    def hand_made(self) -> int:
        """How many there are; they come first."""
        return len(self._hand_made)

    @cached_property
    def _blocks(self) -> dict[str, list[Block]]:
        return {name: blocks_in(data) for name, data in self._bases.items()}

    def make(self, number: int, path: Path) -> Case:
        """Write a file.

        Args:
            number: in the run, from 0.
            path: where to; a file there is replaced.
        """
        if number < self.hand_made:
            name, base = self._hand_made[number]
            make_hostile(name, self._bases[base], path)
            return Case(number=number, kind="hand-made", base=base, name=name)
        wave = np.random.default_rng([self._seed, number])
        kind = str(wave.choice(list(_KINDS), p=list(_KINDS.values())))
        weights = np.array(list(self._weights.values()))
        base = str(wave.choice(list(self._weights), p=weights / weights.sum()))
        if kind == "metadata" and base == "HDF5 1.6":
            kind = "bytes"  # there are no checksums to be made right again
        name = self._mutate(kind, base, wave, path)
        return Case(number=number, kind=kind, base=base, name=name)

    def _mutate(self, kind: str, base: str, wave: np.random.Generator, path: Path) -> str:
        """Write a mutated file and return the names of the mutations."""
        data, others = self._bases[base], list(self._bases.values())
        if kind == "metadata":
            name, changed = mutate_metadata(data, wave, self._blocks[base])
            path.write_bytes(changed)
            return name
        if kind == "bytes":
            name, changed = mutate_bytes(data, wave, others)
            path.write_bytes(changed)
            return name
        path.write_bytes(data)
        versions = "earliest" if base == "HDF5 1.6" else LIBRARY_VERSIONS
        try:
            with h5py.File(path, "r+", libver=versions) as file:
                name = edit_file(file, wave)
        except OSError:  # HDF5 could not close what it was made to write
            path.unlink()
            name, changed = mutate_bytes(data, wave, others)
            path.write_bytes(changed)
            return name
        if kind == "contents":
            return name
        after, changed = mutate_bytes(path.read_bytes(), wave, others)
        path.write_bytes(changed)
        return f"{name}; {after}"
