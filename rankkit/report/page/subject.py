"""What one target of the page is: a run, a spectrum file, or several that are one study under other seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rankkit.errors import RunError
from rankkit.files import RunDirectory
from rankkit.report.page.numbers import Numbers, open_numbers
from rankkit.store import read_root
from rankkit.studies.losses import LossComparison, compare_losses, pooled_losses
from rankkit.studies.run import Run, open_run

__all__ = ["Source", "Subject", "find_source", "open_subject"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Where a target's files are."""

    target: str
    """As it was named."""
    run: Run | None
    """The run, or that of the file, where it stands beside it."""
    file: Path | None
    """The spectrum file."""

    @property
    def configuration(self) -> str:
        """`run.toml`, or the copy of it that a file holds."""
        if self.run is not None:
            return self.run.directory.configuration.read_text(encoding="utf-8")
        assert self.file is not None, "a source has a run or a file"
        return read_root(self.file).configuration


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """One target, open; several sources of one study are one subject."""

    name: str
    """As it stands on the page."""
    sources: tuple[Source, ...]
    """One, or several under other seeds."""
    losses: LossComparison | None
    """None without a run, or without a finished unit in it."""
    numbers: Numbers | None
    """None where nothing was measured."""
    certificates: tuple[Mapping[str, Any], ...]
    """Of every source that has one."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Of all sources that have one."""
        return tuple(source.run for source in self.sources if source.run is not None)


def find_source(target: str | Path) -> Source:
    """The files of a target.

    A run brings RUN/spectrum.h5 where it is there. A file brings the run in whose folder it lies, where it says that it
    was measured of that run.

    Raises:
        RunError: no run of that name.
        SpectrumFileError: the file is no spectrum file.
    """
    path = Path(target)
    if path.is_dir() or not path.exists():
        run = open_run(path)
        file = run.directory.spectrum
        return Source(target=str(target), run=run, file=file if file.is_file() else None)
    return Source(target=str(target), run=_run_of(path), file=path)


def _run_of(path: Path) -> Run | None:
    """The run that a file was measured of, if the file lies in its folder."""
    configuration = RunDirectory(path.parent).configuration
    if not configuration.is_file() or configuration.read_text(encoding="utf-8") != read_root(path).configuration:
        return None
    return open_run(path.parent)


@contextmanager
def open_subject(sources: Sequence[Source], name: str) -> Iterator[Subject]:
    """Read losses and certificates, and open the spectra.

    Args:
        sources: one, or several of one study under other seeds.
        name: of the whole.

    Raises:
        RankkitError: a run or file is damaged.
    """
    files = [source.file for source in sources if source.file is not None]
    with ExitStack() as stack:
        numbers = stack.enter_context(open_numbers(files)) if files else None
        losses = [
            compare_losses(source.run) for source in sources if source.run is not None and _any_finished(source.run)
        ]
        yield Subject(
            name=name,
            sources=tuple(sources),
            losses=pooled_losses(losses) if losses else None,
            numbers=numbers,
            certificates=tuple(found for source in sources if (found := _certificate(source)) is not None),
        )


def _any_finished(run: Run) -> bool:
    return any(run.finished(*unit) for unit in run.config.units)


def _certificate(source: Source) -> Mapping[str, Any] | None:
    """That of the run, or the copy of it in the file; None where there is none."""
    if source.run is not None:
        path = source.run.directory.certificate
        if not path.is_file():
            return None
        found = _parsed(path.read_text(encoding="utf-8"))
        if found is None:
            raise RunError(f"{path} must hold a certificate, got something else. Delete it and --resume the run.")
        return found
    assert source.file is not None, "a source has a run or a file"
    return _parsed(read_root(source.file).certificate)


def _parsed(text: str) -> Mapping[str, Any] | None:
    """A certificate of ours; files of other sources say something else, or nothing."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    is_whole = _has(found, _CERTIFICATE) and _all(found["pairs"], _PAIR) and _units(found["units"])
    return found if is_whole and isinstance(found.get("observed", []), list) else None


_CERTIFICATE: Final = {"matched": bool, "pairs": list, "units": list}
_PAIR: Final = {
    "arms": list,
    "compared": list,
    "declared": list,
    "fields": dict,
    "matched": bool,
    "problems": list,
    "seed": object,
    "steps": list,
}
_UNIT: Final = {"arm": object, "checkpoints": dict, "seed": object}
_CHECKPOINT: Final = {"consumed": dict, "weights_sha256": object}


def _has(value: object, kinds: Mapping[str, type]) -> bool:
    """Whether it is an object whose entries are of these kinds."""
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def _all(values: Iterable[object], kinds: Mapping[str, type]) -> bool:
    return all(_has(value, kinds) for value in values)


def _units(units: Sequence[Any]) -> bool:
    return _all(units, _UNIT) and all(_all(unit["checkpoints"].values(), _CHECKPOINT) for unit in units)
