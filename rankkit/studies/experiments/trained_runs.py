"""Where an experiment's runs live, and how nothing is trained twice.

A run lies in a folder named by the hash of what decides it: arms and what they declare, seeds, settings, the text, and the
run that it begins from. The same declaration finds the same folder, finished or not, whichever experiment made it. Where
another run has already trained one of its units (arm, seed) under the same settings, text and initial weights, that unit is
linked into it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import torch

from rankkit.data.config import DataConfig
from rankkit.data.corpora import read_documents, synthetic
from rankkit.data.identifiers import IdentifierSplit, token_id_source
from rankkit.files import atomic_directory, exclusive
from rankkit.studies.drive import Unit
from rankkit.studies.experiments.study import DeclaredRun, Study
from rankkit.studies.initial_weights import Source
from rankkit.studies.measuring.plan import MeasurementInterruptedError
from rankkit.studies.run import Run, create_run, open_run
from rankkit.studies.train_pair import default_workers, train_units
from rankkit.training.config import ARMS, differing_fields
from rankkit.training.settings import to_table
from rankkit.training.unit import Message

__all__ = ["Watch", "corpus_sha256", "find_run", "missing_units", "run_folder", "train_study", "unit_to_link"]

Watch: TypeAlias = Callable[[str, Run], AbstractContextManager[Callable[[Message], None]]]
"""Gives a listener for the time that a run of some name is trained."""

_DIGITS = 16  # of the hash, in hexadecimal: two of a billion runs share a name with a chance of 3%


def run_folder(name: str, study: Study, root: Path) -> Path:
    """Where a run of an experiment lies, whether or not it is there.

    Args:
        name: of the run.
        study: that declares it.
        root: folder of all experiments' runs.

    Raises:
        DataError: its text cannot be read.
    """
    return root / _key(study.runs[name], study.runs)


def _key(declared: DeclaredRun, runs: Mapping[str, DeclaredRun]) -> str:
    config, source = declared.config, declared.init_from
    identity = {
        "arms": {arm: {field: str(value) for field, value in ARMS[arm].items()} for arm in config.arms},
        "seeds": list(config.seeds),
        "base": to_table(config.base),
        "corpus": corpus_sha256(config.base.data, declared.synthetic_documents),
        "begins_from": [_key(runs[source[0]], runs), source[1]] if source is not None else None,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_DIGITS]


@functools.cache
def corpus_sha256(config: DataConfig, synthetic_documents: int = 0) -> str:
    """Hash of a text, as a run records it.

    Args:
        config: which names the text.
        synthetic_documents: documents of the seeded grammar instead, where there are any.

    Raises:
        DataError: the text cannot be read.
    """
    if synthetic_documents:
        return synthetic(0, synthetic_documents).survey().sha256
    source = token_id_source(config.text)
    if source is None:
        return read_documents(config).survey().sha256
    split = IdentifierSplit.plan(source, validation_fraction=config.validation_fraction, vocab_size=config.vocab_size)
    return split.sha256


def find_run(name: str, study: Study, root: Path) -> Run | None:
    """A run that is there, finished or not.

    Raises:
        RunError: it is damaged.
    """
    folder = run_folder(name, study, root)
    return open_run(folder) if folder.is_dir() else None


def missing_units(name: str, study: Study, root: Path) -> list[Unit]:
    """Units of a run that would have to be trained.

    Args:
        name: of the run.
        study: that declares it.
        root: folder of all experiments' runs.

    Raises:
        RunError: a run there is damaged.
    """
    run, others = find_run(name, study, root), _runs_in(root)
    if run is not None:
        return [unit for unit in run.unfinished if unit_to_link(run, *unit, others) is None]
    declared = study.runs[name]
    corpus = corpus_sha256(declared.config.base.data, declared.synthetic_documents)
    alike = [
        other
        for other in others
        if declared.init_from is None
        and other.config.initial is None
        and other.tokens().description["corpus"]["sha256"] == corpus
    ]
    return [
        (arm, seed)
        for arm, seed in declared.config.units
        if not any(
            (arm, seed) in other.config.units
            and other.finished(arm, seed)
            and not differing_fields(other.config.arm(arm), declared.config.arm(arm)).keys() - {"vocab_size"}
            for other in alike
        )
    ]


def _runs_in(root: Path) -> list[Run]:
    """Every run that is there; folders that are still being made begin with a dot."""
    return [open_run(path.parent) for path in sorted(root.glob("[!.]*/run.toml"))]


def train_study(
    study: Study,
    root: Path,
    *,
    device: torch.device,
    command: str,
    workers: int | None = None,
    watch: Watch = lambda name, run: nullcontext(lambda message: None),
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Run]:
    """Every run of an experiment, trained to its end; what is there is not trained again.

    Args:
        study: the experiment.
        root: folder of all experiments' runs.
        device: where to train.
        command: recorded in new runs.
        workers: units trained side by side; None for the default of this machine.
        watch: asked for a listener before a run is trained.
        stop: asked often; once true, all units save and end.

    Returns:
        By name.

    Raises:
        MeasurementInterruptedError: stopped as asked; what was finished is kept.
        RankkitError: as making and training a run raise.
    """
    runs: dict[str, Run] = {}
    for name in study.runs:
        folder = run_folder(name, study, root)
        with exclusive(root / f".{folder.name}.lock", f"run {folder}"):
            run = find_run(name, study, root) or _made(name, study, root, runs, device, command)
        _link_finished_units(run, root)
        if run.unfinished and not stop():
            default, _ = default_workers(device, len(run.unfinished))
            with watch(name, run) as listener:
                train_units(run, device=device, workers=workers or default, on_message=listener, stop=stop)
        if run.unfinished:
            raise MeasurementInterruptedError(
                f"training was interrupted; every finished step is kept in {run.directory.path}. Run the same command "
                "again to go on."
            )
        if not run.directory.certificate.is_file():  # all its units were linked: the match is still to be proven
            train_units(run, device=device, workers=1)
        runs[name] = run
    return runs


def _made(name: str, study: Study, root: Path, runs: Mapping[str, Run], device: torch.device, command: str) -> Run:
    declared = study.runs[name]
    _, threads = default_workers(device, len(declared.config.units))
    source = None
    if declared.init_from is not None:
        begun = runs[declared.init_from[0]]
        source = Source(begun, declared.init_from[1], begun.config.base.train.steps)
    return create_run(
        declared.config, run_folder(name, study, root), device=device, threads=threads, command=command,
        corpus=declared.corpus, source=source,
    )  # fmt: skip


def _link_finished_units(run: Run, root: Path) -> None:
    """Take over what other runs have trained; what this one has begun of it is given up."""
    if not run.unfinished:
        return
    others = _runs_in(root)
    with exclusive(run.directory.path / ".lock", f"run {run.directory.path}"):
        for arm, seed in run.unfinished:
            twin = unit_to_link(run, arm, seed, others)
            if twin is not None:
                with atomic_directory(run.directory.unit(arm, seed)) as temporary:
                    shutil.copytree(twin, temporary, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """One file under a second name: a finished unit is never written again; a copy where a disk has no second names."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def unit_to_link(run: Run, arm: str, seed: int, others: list[Run]) -> Path | None:
    """Where another run has trained the same unit to its end.

    Args:
        run: that needs it.
        arm: name.
        seed: of the unit.
        others: runs to look at.

    Returns:
        The unit's folder; None where there is none.
    """
    for other in others:
        if (
            other.directory.path != run.directory.path
            and (arm, seed) in other.config.units
            and other.finished(arm, seed)
            and _decided_by(other, arm, seed) == _decided_by(run, arm, seed)
        ):
            return other.directory.unit(arm, seed)
    return None


def _decided_by(run: Run, arm: str, seed: int) -> tuple[Any, ...]:
    """All that decides what a unit becomes, but for the machine."""
    facts = run.tokens().description
    tokens = [facts[side][key] for side in ("train", "validation") for key in ("sha256", "documents_sha256")]
    beginning = run.beginning(seed)
    begun = None if beginning is None else (beginning.sha256, beginning.batches)
    return run.config.arm(arm), tokens, begun
