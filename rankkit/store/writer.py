"""Writing spectra: one file, slab by slab, that appears under its name only when it is whole."""

from __future__ import annotations

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
from rankkit.store.door.hdf5 import h5py, sha256_of_attributes
from rankkit.store.groups.chunk_queue import ChunkQueue
from rankkit.store.groups.comparison import comparison_groups
from rankkit.store.groups.datasets import create_dataset, set_attributes
from rankkit.store.groups.functional import CutLosses
from rankkit.store.groups.writing import GroupWriter, create_group
from rankkit.store.layout import Attribute, GroupLayout, check_attributes, check_text
from rankkit.store.names import baseline_of, baseline_problem, check_group_name
from rankkit.store.output import HDF5Output
from rankkit.store.verification import verify_written

__all__ = ["SpectrumWriter"]


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
        self._functional: set[str] = set()
        self._output: HDF5Output | None = None

    def __enter__(self) -> Self:
        """Create the temporary file."""
        self._output = HDF5Output(self._path, force=self._force)
        try:
            self._output.run(self._begin)
        except BaseException:
            self._output.discard()
            raise
        self._queue = ChunkQueue(self._output)
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
            self._queue.close()
            output.discard()

    def group(self, name: str, layout: GroupLayout) -> GroupWriter:
        """Add an arm, one kind of attention of an arm, or one baseline of an arm.

        Args:
            name: such as "gpt", "t5/encoder" or "baselines/uniform/gpt".
            layout: its axes and everything that does not depend on a matrix.

        Returns:
            What takes its results.

        Raises:
            ValueError: the name is taken, not made of lower-case letters, digits, "_", "-" and ".", of an unknown
                baseline, or of the signed one with a layout of attention.
            StorageError: the file system refuses.
        """
        check_group_name(name, self._groups)
        problem = baseline_problem(name, rows_sum_to_one=layout.rows_sum_to_one)
        if problem is not None:
            raise ValueError(f"{problem}. Correct the layout.")
        datasets = self._opened().run(lambda file: create_group(file, name, layout))
        self._groups[name] = GroupWriter(self._queue, name, layout, self._queue.targets(datasets))
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
        same_mask: ArrayLike | None = None,
        mean_gap: ArrayLike | None = None,
        mean_mask_effect: ArrayLike | None = None,
        mean_learned_effect: ArrayLike | None = None,
        mean_interaction: ArrayLike | None = None,
        mean_same_mask: ArrayLike | None = None,
        steps: Sequence[int] | None = None,
    ) -> None:
        """Write the differences between two arms; once per file.

        Args:
            measures: labels of the measure axis.
            regions: labels of the region axis.
            layers: labels of the layer axis.
            gap: "measure region layer bound", where bound is mean, lower, upper; nan where there is no interval.
            mask_effect: the same axes.
            learned_effect: the same axes.
            interaction: the same axes.
            attributes: which arms, what kind of interval, over how many seeds.
            same_mask: "measure region layer", root mean square difference between two seeds of one arm.
            mean_gap: "measure region bound", the gap of the mean over trained layers, with its own interval.
            mean_mask_effect: the same axes.
            mean_learned_effect: the same axes.
            mean_interaction: the same axes.
            mean_same_mask: "measure region".
            steps: training steps, rising; every array then has a first axis "step". /comparison is about the last of
                them, and where there are several, /comparison/by_step about all.

        Raises:
            ValueError: a shape does not fit its labels, a label is repeated or unknown, or it was written before.
            StorageError: the file system refuses.
        """
        given = {
            "gap": gap,
            "mask_effect": mask_effect,
            "learned_effect": learned_effect,
            "interaction": interaction,
            "same_mask": same_mask,
            "mean_gap": mean_gap,
            "mean_mask_effect": mean_mask_effect,
            "mean_learned_effect": mean_learned_effect,
            "mean_interaction": mean_interaction,
            "mean_same_mask": mean_same_mask,
        }
        arrays = {name: values for name, values in given.items() if values is not None}
        labels = {"measure": measures, "region": regions, "layer": layers, "bound": schema.BOUNDS}
        groups = comparison_groups(labels, steps, arrays, attributes)

        def write(file: h5py.File) -> None:
            if schema.COMPARISON in file:
                raise ValueError("comparison must be written once, got a second one. Put all measures into one call.")
            for group in groups:
                group.write(file)

        self._opened().run(write)

    def functional(self, arm: str, values: CutLosses) -> None:
        """Write what it costs an arm to cut the rank of its attention; once per arm.

        Args:
            arm: name of a group that was added before.
            values: losses with and without cuts.

        Raises:
            ValueError: there is no such group, or it was written before.
            StorageError: the file system refuses.
        """
        waiting = [name for name in self._groups if baseline_of(name) is None and name not in self._functional]
        if arm not in waiting:
            raise ValueError(
                f"arm must be an arm of this file whose functional rank is not written yet ({', '.join(waiting)}), "
                f"got {arm!r}. Add its group first, and write it once."
            )
        self._opened().run(lambda file: values.write(file, arm))
        self._functional.add(arm)

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
        self._queue.flush()
        output.run(_seal)
        output.finish(self._check)

    def _check(self, partial: Path) -> None:
        problems = verify_written(partial)
        if problems:
            raise SpectrumFileError(
                f"{self._path} must verify before it gets its name, got problem 1 of {len(problems)}: {problems[0]}. "
                "Measure again; if it comes back, report it."
            )


def _seal(file: h5py.File) -> None:
    """Complete is the last thing written."""
    file.attrs[schema.ATTRIBUTES_SUM] = sha256_of_attributes(file)
    file.attrs.modify("complete", np.int64(1))
