"""Writing spectra: one file, slab by slab, that appears under its name only when it is whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from rankkit.errors import SpectrumFileError
from rankkit.store import schema
from rankkit.store.consistency import contradictions
from rankkit.store.datasets import create_axes, create_dataset, set_attributes
from rankkit.store.groups import GroupWriter, create_group
from rankkit.store.hdf5 import h5py, sha256_of_attributes
from rankkit.store.layout import Attribute, GroupLayout, check_attributes, check_text
from rankkit.store.output import HDF5Output
from rankkit.store.verification import verify

__all__ = ["SpectrumWriter"]

_GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*){0,3}")
_TAKEN_NAMES = {schema.COMPARISON, *(variable.name for variable in schema.ROOT_STRINGS)}


class SpectrumWriter:
    """A new spectrum file, to be used as a context manager.

    Everything goes to a temporary file beside `path`. When the block ends, the file is checked for unwritten cells,
    marked complete, verified and renamed in one step. When the block raises, nothing is left and a file that had the
    name before is as it was.

    Args:
        path: the final name.
        title: one line for people.
        configuration: resolved configuration of the run, as text.
        certificate: proof of the match, as text.
        command: the command line that makes this file, the first one, without --resume.
        attributes: host facts: schema.HOST_ATTRIBUTES and anything else worth keeping.
        force: whether an existing file may be replaced.
        created: UTC time in ISO 8601; now, unless given. All else equal, files differ in it alone.

    Raises:
        ValueError: an attribute is missing or a text cannot be stored.
        TypeError: an attribute is neither text nor a number.
        OutputExistsError: on entry, `path` exists and `force` is false, or is a folder.
        StorageError: the file system refuses, on entry, on any write or at the end.
        SpectrumFileError: at the end, a cell was never written or the file does not verify.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        title: str,
        configuration: str,
        certificate: str,
        command: str,
        attributes: Mapping[str, Attribute],
        force: bool = False,
        created: str | None = None,
    ) -> None:
        check_attributes(attributes, schema.HOST_ATTRIBUTES, schema.ROOT_ATTRIBUTES)
        self._path = Path(path)
        self._force = force
        self._strings = {"configuration": configuration, "certificate": certificate, "command": command}
        self._attributes: dict[str, Attribute] = {
            "Conventions": schema.CONVENTIONS,
            "rankkit_schema": schema.SCHEMA_VERSION,
            "title": title,
            "rankkit_version": version("rankkit"),
            "created": created or datetime.now(UTC).isoformat(timespec="seconds"),
            "complete": 0,
            **attributes,
        }
        for name, text in {**self._strings, "title": title}.items():
            check_text(name, text)
        self._groups: dict[str, GroupWriter] = {}
        self._output: HDF5Output | None = None

    def __enter__(self) -> Self:
        """Create the temporary file."""
        self._output = HDF5Output(self._path, force=self._force)
        try:
            self._output.run(self._begin)
        except BaseException:
            self._output.discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, or leave nothing."""
        output, self._output = self._opened(), None
        try:
            if error is None:
                self._finish(output)
        finally:
            output.discard()

    def group(self, name: str, layout: GroupLayout) -> GroupWriter:
        """Add an arm, or one kind of attention of an arm.

        Args:
            name: such as "gpt", "t5/encoder" or "baselines/uniform/gpt".
            layout: its axes and everything that does not depend on a matrix.

        Returns:
            What takes its results.

        Raises:
            ValueError: the name is taken or not made of lower-case letters, digits, "_", "-" and ".".
            StorageError: the file system refuses.
        """
        if not _GROUP_NAME.fullmatch(name) or name.split("/")[0] in _TAKEN_NAMES or name in self._groups:
            raise ValueError(
                f"name must be new, of lower-case letters, digits, '_', '-' and '.', at most four levels, "
                f"got {name!r}. Rename the group."
            )
        output = self._opened()
        datasets = output.run(lambda file: create_group(file, name, layout))
        self._groups[name] = GroupWriter(output, name, layout, datasets)
        return self._groups[name]

    def comparison(
        self,
        *,
        measures: Sequence[str],
        regions: Sequence[str],
        layers: Sequence[int],
        gap: ArrayLike,
        mask_effect: ArrayLike,
        learned_effect: ArrayLike,
        interaction: ArrayLike,
        attributes: Mapping[str, Attribute],
    ) -> None:
        """Write the differences between two arms; once per file.

        Args:
            measures: labels of the first axis.
            regions: labels of the second axis.
            layers: labels of the third axis.
            gap: "measure region layer bound", where bound is mean, lower, upper; nan where there is no interval.
            mask_effect: the same axes.
            learned_effect: the same axes.
            interaction: the same axes.
            attributes: which arms, what kind of interval, over how many seeds.

        Raises:
            ValueError: a shape does not fit its labels, a label is repeated or unknown, or it was written before.
            StorageError: the file system refuses.
        """
        check_attributes(attributes, (), ())
        labels: dict[str, Sequence[object]] = {
            "measure": measures,
            "region": regions,
            "layer": layers,
            "bound": schema.BOUNDS,
        }
        for problem in contradictions({axis: np.asarray(values) for axis, values in labels.items()}):
            raise ValueError(f"{problem}. Correct the labels.")
        given = {"gap": gap, "mask_effect": mask_effect, "learned_effect": learned_effect, "interaction": interaction}
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in given.items()}
        expected = tuple(len(axis) for axis in labels.values())
        for name, values in arrays.items():
            if values.shape != expected:
                raise ValueError(f"{name} must have shape {expected}, got {values.shape}. Give one entry per label.")

        def write(file: h5py.File) -> None:
            if schema.COMPARISON in file:
                raise ValueError("comparison must be written once, got a second one. Put all measures into one call.")
            group = file.create_group(schema.COMPARISON, track_order=True)
            set_attributes(group, attributes)
            create_axes(group, labels)
            for variable in schema.COMPARISON_VARIABLES:
                create_dataset(group, variable, labels, arrays[variable.name])

        self._opened().run(write)

    def _opened(self) -> HDF5Output:
        if self._output is None:
            raise ValueError("SpectrumWriter must be open, got one outside its with block. Write inside the block.")
        return self._output

    def _begin(self, file: h5py.File) -> None:
        set_attributes(file, self._attributes)
        for variable in schema.ROOT_STRINGS:
            create_dataset(file, variable, {}, np.asarray(self._strings[variable.name], dtype=object))

    def _finish(self, output: HDF5Output) -> None:
        for name, group in self._groups.items():
            missing = group.first_unwritten()
            if missing is not None:
                raise SpectrumFileError(f"{name} must be written whole, got nothing for {missing}. Write every cell.")
        output.run(_seal)
        output.finish(self._check)

    def _check(self, partial: Path) -> None:
        problems = verify(partial)
        if problems:
            raise SpectrumFileError(
                f"{self._path} must verify before it gets its name, got {len(problems)} problems, "
                f"the first: {problems[0]}. "
                "Measure again; if it comes back, report it."
            )


def _seal(file: h5py.File) -> None:
    """Complete is the last thing written."""
    file.attrs[schema.ATTRIBUTES_SUM] = sha256_of_attributes(file)
    file.attrs.modify("complete", np.int64(1))
