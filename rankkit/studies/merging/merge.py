"""Many files of one study into one: seeds, checkpoints, shards of samples, layers, heads, regions or arms measured apart.

The result is the file that one measurement would have written, byte for byte, but for its time and command (with the
checksum over them) and the facts of machines that differ. Files must come from one run: the same configuration and
certificate, the same checkpoints, the same tokens under the same number of a sequence, the same measures with the same
definitions, the same method for the same region. What does not match is refused by name. The comparison of two arms is
computed again from the merged numbers; everything else is copied.
"""

from __future__ import annotations

import resource
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from rankkit.axes import SPECTRUM_AXES
from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.files import check_output_file
from rankkit.store import SpectrumWriter, verify
from rankkit.store.door.hdf5 import opened
from rankkit.store.names import arm_of, baseline_of
from rankkit.studies.arm_values import write_comparison
from rankkit.studies.measuring.plan import MeasurementInterruptedError
from rankkit.studies.merging.comparison import merged_comparison
from rankkit.studies.merging.copying import copy_arm
from rankkit.studies.merging.functional import merged_losses
from rankkit.studies.merging.groups import MergedGroup, merged_groups
from rankkit.studies.merging.matching import check_roots, root_attributes
from rankkit.studies.merging.parts import StudyFile, study_file

__all__ = ["MergeProgress", "Merged", "merge"]

_OTHER_FILES: Final = 64  # that a process has open besides: the result, libraries, standard streams


@dataclass(frozen=True, slots=True)
class MergeProgress:
    """How far a merge is."""

    done: float
    """Bytes verified, bytes copied, and bytes of the result verified."""
    total: int
    """Three times the bytes of the files."""
    label: str
    """What is being done."""
    unit: str = ""
    """Nothing that a rate of would say something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge made."""

    path: Path
    """The file."""
    files: tuple[Path, ...]
    """What it was made from, sorted."""
    groups: Mapping[str, Mapping[str, tuple[Any, ...]]]
    """Labels of SPECTRUM_AXES by group, baselines among them, in the order in which they were written."""
    matrices: Mapping[str, int]
    """How many by group."""
    compared: tuple[str, str] | None
    """(causal arm, prefix arm) of the comparison, where there is one."""
    functional: tuple[str, ...]
    """Arms whose functional rank is there."""


class _Teller:
    """Says how far it is, and asks whether to stop."""

    def __init__(self, total: int, on_progress: Callable[[MergeProgress], None], stop: Callable[[], bool]) -> None:
        self._total, self._on_progress, self._stop, self._done = total, on_progress, stop, 0.0

    def advance(self, share: float, label: str) -> None:
        """One of the three passes is further by that share of itself."""
        self._done += share * self._total
        self._on_progress(MergeProgress(self._done, 3 * self._total, label))
        if self._stop():
            raise MeasurementInterruptedError("merge was interrupted, and left nothing. Run the same command again.")

    def finish(self) -> None:
        """All is done; too late to stop."""
        self._on_progress(MergeProgress(3 * self._total, 3 * self._total, "done"))


def merge(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    command: str | None = None,
    force: bool = False,
    created: str | None = None,
    on_progress: Callable[[MergeProgress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Merged:
    """Put files of one study together.

    The cells of every group lie on labelled axes: the merged group has the labels of all its parts, and each of its cells
    must come from exactly one file. Every file is verified before it is used. No more than one layer of a batch of
    sequences is in memory, and for the comparison the measures of two arms at one step.

    Args:
        paths: the files, in any order.
        out: the file to make; it appears under its name only when it is whole and verified.
        command: recorded in the file; unless given, that of this merge and those of the files.
        force: replace an existing file.
        created: UTC time in ISO 8601; now, unless given.
        on_progress: told after every file and every layer of a batch.
        stop: asked as often.

    Returns:
        What the file holds.

    Raises:
        ConfigurationError: no file, one named twice or as `out`, or more than a process may open.
        SpectrumFileError: a file is missing, damaged, foreign or newer, or holds numbers that contradict one another.
        MatchError: the files are not of one study, or a cell is given twice or by none of them.
        MeasurementInterruptedError: stopped as asked; nothing was left behind.
        OutputExistsError: `out` exists and `force` is false, or is a folder.
        StorageError: the file system refuses; `out` is as it was.
    """
    out = Path(out)
    files = _chosen([Path(path) for path in paths], out)
    for path in files:
        with opened(path):
            pass  # what is no spectrum file is said before the name of the result, and before hours of reading
    check_output_file(out, force=force)
    sizes = [path.stat().st_size if path.is_file() else 0 for path in files]
    teller = _Teller(max(1, sum(sizes)), on_progress, stop)
    for path, size in zip(files, sizes, strict=True):
        _verify(path)
        teller.advance(size / max(1, sum(sizes)), f"verified {path.name}")
    with ExitStack() as stack:
        study = [stack.enter_context(study_file(path)) for path in files]
        check_roots(study)
        groups = merged_groups(study)
        arms = [group.name for group in groups if baseline_of(group.name) is None]
        writer = SpectrumWriter(
            out,
            title=_title(study, arms),
            configuration=study[0].root.configuration,
            certificate=study[0].root.certificate,
            command=_command(study, out) if command is None else command,
            attributes=root_attributes(study, version("rankkit")),
            force=force,
            created=created,
        )
        with writer:
            found = _written(writer, study, groups, out, teller)
        teller.finish()
    return found


def _chosen(paths: Sequence[Path], out: Path) -> tuple[Path, ...]:
    """The files, sorted, so that their order on the command line does not matter."""
    if not paths:
        raise ConfigurationError("files must be at least one, got none. Name the files to merge.")
    places = [path.resolve() for path in paths]
    repeated = [path for path in paths if places.count(path.resolve()) > 1]
    if repeated:
        raise ConfigurationError(f"files must differ, got {repeated[0]} twice. Name each once.")
    if out.resolve() in places:
        raise ConfigurationError(f"out must be another file than those merged, got {out}. Choose another --out.")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES
    if len(paths) > most:
        raise ConfigurationError(
            f"files must be at most {most} (open files of a process), got {len(paths)}. Merge some of them first, or "
            "raise ulimit -n."
        )
    return tuple(sorted(paths, key=str))


def _verify(path: Path) -> None:
    problems = verify(path)
    if problems:
        raise SpectrumFileError(
            f"{path} must be whole to be merged, got problem 1 of {len(problems)}: {problems[0]}. "
            "Restore a copy of it or measure again."
        )


def _title(study: Sequence[StudyFile], arms: Sequence[str]) -> str:
    titles = {str(file.root.attributes["title"]) for file in study}
    return titles.pop() if len(titles) == 1 else f"Attention spectra of {' and '.join(arms)}"


def _command(study: Sequence[StudyFile], out: Path) -> str:
    """That of the merge, and below it what made the files."""
    own = shlex.join(["rankkit", "merge", *(str(file.path) for file in study), "--out", str(out)])
    return "\n".join([own, *sorted({file.root.command for file in study})])


def _written(
    writer: SpectrumWriter, study: Sequence[StudyFile], groups: Sequence[MergedGroup], out: Path, teller: _Teller
) -> Merged:
    """Everything, in the order of a measurement."""
    total = sum(group.matrices for group in groups)
    for _, family in groupby(groups, key=lambda group: arm_of(group.name)):
        copy_arm(writer, list(family), lambda matrices, label: teller.advance(matrices / total, label))
    by_step = merged_comparison(groups)
    write_comparison(writer, by_step)
    losses = {}
    for group in groups:
        if baseline_of(group.name) is None:
            losses[group.name] = merged_losses(group.name, study, group.labels["seed"])
    found = {arm: values for arm, values in losses.items() if values is not None}
    for arm, values in found.items():
        writer.functional(arm, values)
    teller.advance(0, "verifying the result")
    return Merged(
        path=out,
        files=tuple(file.path for file in study),
        groups={group.name: {axis: group.labels[axis] for axis in SPECTRUM_AXES} for group in groups},
        matrices={group.name: group.matrices for group in groups},
        compared=next(iter(by_step.values())).arms if by_step else None,
        functional=tuple(found),
    )
