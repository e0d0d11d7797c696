"""What an interrupted measurement keeps: its finished slabs, and what they depend on."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from rankkit.store import LayerSlab, Slab
from rankkit.store.journal.packed import slab_arrays, slab_from
from rankkit.store.journal.slabs import Journal, journal_path
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.plan import Plan
from rankkit.studies.measuring.source import SourceFacts

__all__ = ["FINISHED", "finished_slab", "open_journal"]

FINISHED: Final = "finished"
"""Key of the record that is written when all others are, just before the file gets its name."""

AnySlab = TypeVar("AnySlab", Slab, LayerSlab)


@contextlib.contextmanager
def open_journal(
    path: Path,
    facts: SourceFacts,
    plan: Plan,
    config: MeasureConfig,
    host: Mapping[str, Any],
    *,
    command: str,
    force: bool,
    resume: bool,
) -> Iterator[Journal]:
    """The journal beside a file that is being made; one without a finished slab is left to nobody.

    Args:
        path: of the file.
        facts: of the source.
        plan: what is measured.
        config: how it is measured.
        host: what the numbers depend on in their last bits.
        command: noted in a new journal.
        force: noted in a new journal; begin again where there is one.
        resume: continue where there is one.

    Raises:
        OutputExistsError: there is one, and neither `force` nor `resume`.
        RankkitError: it belongs to another measurement, or is in use.
    """
    with Journal.open(
        journal_path(path),
        _dependencies(facts, plan, config, host),
        notes={"command": command, "force": str(int(force))},
        resume=resume,
        force=force,
    ) as journal:
        try:
            yield journal
        except BaseException:
            if not len(journal):
                journal.discard()
            raise


def _dependencies(facts: SourceFacts, plan: Plan, config: MeasureConfig, host: Mapping[str, Any]) -> dict[str, str]:
    """Everything that decides the numbers, by name: first what somebody typed, for the first that differs is told."""
    settings = replace(config, workers=None, keep_limit=0)  # results do not depend on them
    checkpoints = "".join(
        sha for arm in plan.arms for row in (*arm.checkpoint_sha256, *arm.initial_sha256) for sha in row
    )
    return {
        **{entry.name: _words(entry.name, getattr(settings, entry.name)) for entry in fields(settings)},
        "arms": ", ".join(f"{arm} seed {seed}" for arm, seed in plan.units),
        "steps": ", ".join(map(str, plan.steps)),
        **{name: str(value) for name, value in host.items()},
        "configuration of the run": _digest(facts.configuration.encode()),
        "certificate of the run": _digest(facts.certificate.encode()),
        "SHA-256 of the checkpoints": _digest(checkpoints.encode()),
        "SHA-256 of the tokens": _digest(plan.sequences.tobytes()),
    }


def _words(name: str, value: object) -> str:
    """A setting as somebody would say it."""
    if value is None:
        return "all" if name in ("seeds", "layers", "heads") else "the default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "shard" and isinstance(value, tuple):
        return "/".join(map(str, value))
    return (", ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def finished_slab(journal: Journal, key: str, kind: type[AnySlab], compute: Callable[[], AnySlab]) -> AnySlab:
    """A slab out of the journal, or computed and put there.

    Args:
        journal: of this measurement.
        key: of the slab.
        kind: its class.
        compute: makes it.
    """
    arrays = journal.get(key)
    if arrays is not None:
        return slab_from(kind, arrays)
    made = compute()
    journal.put(key, slab_arrays(made))
    return made
