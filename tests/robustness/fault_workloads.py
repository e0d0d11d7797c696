"""The commands that are disturbed, what must hold after a fault, and how they are brought to their end."""

from __future__ import annotations

import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from robustness.fault_checks import (
    PARTIAL,
    Problem,
    checkpoints_of,
    content,
    differences,
    file_problems,
    leftovers,
    run_problems,
    slabs_of,
    unsynced,
)
from robustness.fault_injection import NO_FAULT, Call, Ended, Fault, Injector, read_log

__all__ = ["WORKLOADS", "Making", "Workload", "make_inputs"]

_SETTINGS: Final = """
arms = ["gpt", "unilm"]
seeds = [0, 1]

[model]
sequence_length = 32
num_layers = 2
d_model = 16
num_heads = 2
head_dim = 8

[train]
steps = 2
batch_size = 2
evaluation_sequences = 12
evaluation_interval = 1
checkpoint_interval = 1
log_interval = 1
"""
_FILE: Final = "spectrum.h5"


@dataclass(kw_only=True)
class Workload(ABC):
    """A command in a folder, and what an undisturbed run of it leaves and calls."""

    name: str
    """Such as `train-pair --force`."""
    inputs: Path
    """What commands read, and older results."""
    fresh: bool = False
    """Whether every command gets a new interpreter, as for a user, with its worker processes."""
    pictures: bool = False
    """Whether figures are drawn."""
    expected: dict[str, Any] = field(default_factory=dict)
    """What an undisturbed run leaves."""
    calls: list[Call] = field(default_factory=list)
    """Those of an undisturbed run."""
    seconds: float = 0.0
    """That it takes."""
    at_most: int | None = None
    """How many faults, where they take too long for all of them."""
    most_writes: int | None = None
    """At how many writes it is disturbed, where there are too many of one kind for all of them."""

    @abstractmethod
    def arguments(self) -> list[str]:
        """The command."""

    @abstractmethod
    def again(self, place: Path) -> list[str] | None:
        """The command that brings it to its end after a fault; None where there is nothing left to do."""

    @abstractmethod
    def whole(self, place: Path) -> Iterator[Problem]:
        """What is under a final name and not whole, or not there and should be."""

    def arrange(self, place: Path) -> None:
        """Make the folder in which it starts."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)

    def finished(self, place: Path, before: int) -> Iterator[Problem]:
        """What was finished before that call and is gone."""
        for call in self.calls:
            is_final = call.target and PARTIAL not in call.target
            if is_final and call.number < before and not (place / call.target).exists():
                yield Problem("lost", f"{call.target} was finished and is gone")

    def kept(self, place: Path) -> dict[str, Any]:
        """Finished pieces of work, by name, with what stays the same while they are kept."""
        return {}

    def learn(self, injector: Injector) -> list[Problem]:
        """Run it undisturbed; returns what is wrong already."""
        self.arrange(injector.place)
        started = perf_counter()
        ended = self.run(injector, self.arguments(), NO_FAULT, log=True)
        self.seconds = perf_counter() - started
        if ended.status != 0:
            return [Problem("not resumed", f"undisturbed, it ended with {ended.status}: {ended.errors}")]
        self.calls = read_log(injector.scratch, injector.place)
        self.expected = content(injector.place)
        left = [Problem("left behind", name) for name in leftovers(injector.place)]
        return [*left, *self.whole(injector.place), *unsynced(self.calls)]

    def run(self, injector: Injector, arguments: Sequence[str], fault: Fault | None, *, log: bool = False) -> Ended:
        """Run a command of it."""
        return injector.run(arguments, fault, log=log, fresh=self.fresh, pictures=self.pictures)

    def disturbed(self) -> list[Call]:
        """The calls at which it is disturbed."""
        writes = [call for call in self.calls if call.kind == "write"]
        if self.most_writes is None or len(writes) <= self.most_writes:
            return self.calls
        chosen = random.Random(self.name).sample(writes, self.most_writes)
        return sorted([*chosen, *(call for call in self.calls if call.kind != "write")], key=lambda call: call.number)

    def try_fault(self, injector: Injector, fault: Fault) -> tuple[Ended, list[Problem]]:
        """Disturb it once and bring it to its end; returns how it ended the first time, and what was wrong."""
        place = injector.place
        self.arrange(place)
        ended = self.run(injector, self.arguments(), fault)
        problems = [*_unclear(ended, fault), *self.whole(place)]
        if not self.fresh:  # several processes have no one order
            problems += self.finished(place, fault.call or ended.calls)
        if not fault.is_kill and not self._refuses_removal(fault):
            problems += [Problem("left behind", name) for name in leftovers(place)]
        return ended, [*problems, *self._resumed(injector, ended)]

    def _refuses_removal(self, fault: Fault) -> bool:
        """Whether cleaning up itself was refused, so that nobody could leave less."""
        return fault.call <= len(self.calls) and self.calls[fault.call - 1].name in ("unlink", "unlinkat", "rmdir")

    def _resumed(self, injector: Injector, ended: Ended) -> Iterator[Problem]:
        place = injector.place
        command = self.again(place) if ended.status != 0 else None
        if command is not None:
            before = self.kept(place)
            again = self.run(injector, command, NO_FAULT, log=True)
            if again.status != 0:
                yield Problem("not resumed", f"exit code {again.status}: {again.errors[-400:]}")
                return
            yield from self.computed_again(injector, before)
        for name in leftovers(place):
            yield Problem("left behind", name)
        found = content(place)
        if found != self.expected:
            yield from differences(found, self.expected)
            yield from self.whole(place)

    def computed_again(self, injector: Injector, before: dict[str, Any]) -> Iterator[Problem]:
        """Finished pieces that the resumed command did not take over."""
        after = self.kept(injector.place)
        for name, value in before.items():
            if after.get(name) != value:
                yield Problem("lost", f"{name} was computed again")


def _unclear(ended: Ended, fault: Fault) -> Iterator[Problem]:
    """A killed process says nothing; one that was refused something says so in one line, or does without."""
    lines = ended.errors.splitlines()
    if ended.hung:
        yield Problem("hang", "it did not end")
    elif fault.is_kill and fault.kind != "die":
        if ended.status not in (0, -9):
            yield Problem("unclear", f"exit code {ended.status}: {ended.errors[-400:]}")
    elif fault.kind == "die" and ended.status == -9:
        return  # it was not a worker
    elif ended.status == 1:
        if len(lines) != 1 or not lines[0].startswith("Error: ") or "unexpected" in lines[0]:
            yield Problem("unclear", ended.errors[-400:])
    elif ended.status != 0 or lines:
        yield Problem("unclear", f"exit code {ended.status}: {ended.errors[-400:]}")


class Train(Workload):
    """`rankkit train-pair`: two arms, two seeds, three checkpoints each."""

    def arguments(self) -> list[str]:
        return [
            "train-pair", str(self.inputs / "text"), "--config", str(self.inputs / "run.toml"), "--out", "run",
            "--workers", "2" if self.fresh else "1", "--device", "cpu", "--quiet",
        ]  # fmt: skip

    def again(self, place: Path) -> list[str] | None:
        if not (place / "run").exists():
            return self.arguments()
        return ["train-pair", "--resume", "run", *self.arguments()[-5:]]

    def whole(self, place: Path) -> Iterator[Problem]:
        if (place / "run").exists():
            yield from run_problems(place / "run")

    def kept(self, place: Path) -> dict[str, Any]:
        return checkpoints_of(place / "run") if (place / "run").exists() else {}


class TrainFigures(Train):
    """`rankkit train-pair` while it draws."""

    def disturbed(self) -> list[Call]:
        return [call for call in self.calls if "figures" in call.path]


class TrainOver(Train):
    """`rankkit train-pair --force` over a finished run of another configuration."""

    def arrange(self, place: Path) -> None:
        super().arrange(place)
        shutil.copytree(self.inputs / "old-run", place / "run")

    def arguments(self) -> list[str]:
        command = super().arguments()
        return [*command[:2], "--force", *command[2:]]

    def disturbed(self) -> list[Call]:
        """Until the new run has the name, and a little longer: the rest is that of any run."""
        named = next(call.number for call in self.calls if call.target == "run")
        return self.calls[: named + 20]

    def _is_old(self, place: Path) -> bool:
        old = self.inputs / "old-run" / "run.toml"
        return (place / "run").exists() and (place / "run" / "run.toml").read_bytes() == old.read_bytes()

    def again(self, place: Path) -> list[str] | None:
        return self.arguments() if self._is_old(place) else super().again(place)

    def kept(self, place: Path) -> dict[str, Any]:
        return {} if self._is_old(place) else super().kept(place)

    def finished(self, place: Path, before: int) -> Iterator[Problem]:
        return iter(()) if self._is_old(place) else super().finished(place, before)

    def whole(self, place: Path) -> Iterator[Problem]:
        if not (place / "run").exists():
            yield Problem("lost", "neither the old run nor the new one has the name")
        elif self._is_old(place) and content(place / "run") != content(self.inputs / "old-run"):
            yield Problem("lost", "the old run is not what it was")
        yield from super().whole(place)


@dataclass(kw_only=True)
class Spectrum(Workload):
    """`rankkit spectrum`: two arms, two seeds, two batches, two layers, two masks."""

    slabs: dict[str, int] = field(default_factory=dict)
    """Where in the journal each ends, by its key."""

    def arguments(self) -> list[str]:
        return [
            "spectrum", str(self.inputs / "run"), "--out", _FILE, "--samples", "12", "--regions", "full",
            "--measures", "effective_rank,mean_ipr", "--workers", "1", "--device", "cpu", "--quiet",
        ]  # fmt: skip

    def again(self, place: Path) -> list[str] | None:
        if self._journal(place).exists() or _FILE not in content(place):
            return [*self.arguments(), "--resume"]
        return self.arguments() if content(place)[_FILE] != self.expected[_FILE] else None

    def whole(self, place: Path) -> Iterator[Problem]:
        if (place / _FILE).exists():
            yield from file_problems(place / _FILE)

    def learn(self, injector: Injector) -> list[Problem]:
        """Also kill it just before it deletes the journal, to see what that holds."""
        problems = super().learn(injector)
        removal = next(call for call in self.calls if call.kind == "remove" and call.path.endswith(".journal"))
        self.arrange(injector.place)
        self.run(injector, self.arguments(), Fault("kill", removal.number))
        self.slabs = slabs_of(self._journal(injector.place))
        return problems

    def finished(self, place: Path, before: int) -> Iterator[Problem]:
        yield from super().finished(place, before)
        if _FILE in content(place) and content(place)[_FILE] == self.expected[_FILE]:
            return
        found = self.kept(place)
        for key in self._written(self._acknowledged(before)):
            if key not in found:
                yield Problem("lost", f"slab {key} was finished and is gone")

    def kept(self, place: Path) -> dict[str, Any]:
        return slabs_of(self._journal(place)) if self._journal(place).exists() else {}

    def computed_again(self, injector: Injector, before: dict[str, Any]) -> Iterator[Problem]:
        for key in self._written(read_log(injector.scratch, injector.place)):
            if key in before:
                yield Problem("lost", f"slab {key} was computed again")

    def _acknowledged(self, before: int) -> list[Call]:
        """Writes to the journal that were reported as done before that call: where a sync follows, only after it."""
        of_journal = [call for call in self.calls if call.path.endswith(".journal")]
        pairs = pairwise(of_journal)
        return [call for call, after in pairs if (after if after.kind == "fsync" else call).number < before]

    def _written(self, calls: Sequence[Call]) -> Iterator[str]:
        """Keys of the slabs whose last byte those calls wrote."""
        ends = {call.offset + call.bytes for call in calls if call.path.endswith(".journal") and call.bytes}
        return (key for key, end in self.slabs.items() if end in ends)

    def _journal(self, place: Path) -> Path:
        return place / f"{_FILE}.journal"


class SpectrumOver(Spectrum):
    """`rankkit spectrum --force` over an older file."""

    def arrange(self, place: Path) -> None:
        super().arrange(place)
        shutil.copy(self.inputs / "old.h5", place / _FILE)

    def arguments(self) -> list[str]:
        return [*super().arguments(), "--force"]

    def again(self, place: Path) -> list[str] | None:
        return super().again(place) if self._journal(place).exists() or not self._is_old(place) else self.arguments()

    def _is_old(self, place: Path) -> bool:
        return content(place).get(_FILE) == content(self.inputs)["old.h5"]

    def whole(self, place: Path) -> Iterator[Problem]:
        if self.expected and not self._is_old(place) and content(place).get(_FILE) != self.expected[_FILE]:
            yield Problem("lost", f"{_FILE} is neither the old file nor the new one")
        yield from super().whole(place)


@dataclass(kw_only=True)
class Making(Workload):
    """A command that makes one file, from nothing or over an older one."""

    command: tuple[str, ...]
    """Its words; {inputs} stands for the folder of inputs."""
    file: str
    """What it makes."""
    over: bool = False
    """Whether there is an older file."""

    def arrange(self, place: Path) -> None:
        super().arrange(place)
        if self.over:
            shutil.copy(self.inputs / "old.h5", place / self.file)

    def arguments(self) -> list[str]:
        words = [word.format(inputs=self.inputs) for word in self.command]
        return [*words, "--out", self.file, "--quiet", *(["--force"] if self.over else [])]

    def again(self, place: Path) -> list[str] | None:
        return None if content(place).get(self.file) == self.expected[self.file] else self.arguments()

    def whole(self, place: Path) -> Iterator[Problem]:
        found = content(place).get(self.file)
        before = content(self.inputs)["old.h5"] if self.over else None
        if self.expected and found not in (before, self.expected[self.file]):
            yield Problem("lost" if found is None else "unreadable", f"{self.file} is neither the old nor the new one")


def make_inputs(injector: Injector, inputs: Path, *, shards: bool) -> None:
    """The text and the settings of every run here, a finished run to measure, and older results to write over.

    Args:
        injector: runs what makes them.
        inputs: a new folder.
        shards: whether to measure the run in two parts, too.
    """
    from rankkit.data import synthetic

    (inputs / "text").mkdir(parents=True)
    for number, document in enumerate(synthetic(0, 12)):
        (inputs / "text" / f"{number:02d}.txt").write_text(document.text, encoding="utf-8")
    for name, settings in (("run", _SETTINGS), ("old-run", _SETTINGS.replace("seeds = [0, 1]", "seeds = [5]"))):
        (inputs / "run.toml").write_text(settings, encoding="utf-8")
        train = Train(name=name, inputs=inputs)
        train.arrange(injector.place)
        _must_end(train.run(injector, train.arguments(), None))
        shutil.copytree(injector.place / "run", inputs / name)
    (inputs / "run.toml").write_text(_SETTINGS, encoding="utf-8")
    older = ["spectrum", str(inputs / "old-run"), "--out", _FILE, "--samples", "1", "--device", "cpu", "--quiet"]
    _must_end(injector.run(older, None))
    shutil.copy(injector.place / _FILE, inputs / "old.h5")
    for shard in ("0", "1") if shards else ():
        measure = Spectrum(name="shard", inputs=inputs).arguments()
        _must_end(injector.run([*measure, "--shard", f"{shard}/2", "--force"], None))
        shutil.copy(injector.place / _FILE, inputs / f"shard-{shard}.h5")


def _must_end(ended: Ended) -> None:
    if ended.status != 0:
        raise RuntimeError(f"inputs could not be made: {ended.errors}")


_MERGE: Final = ("merge", "{inputs}/shard-0.h5", "{inputs}/shard-1.h5")
_EXPORT: Final = ("export", "{inputs}/shard-0.h5")

WORKLOADS: Final[dict[str, Callable[[str, Path], Workload]]] = {
    "train-pair": lambda name, inputs: Train(name=name, inputs=inputs),
    "train-pair --force": lambda name, inputs: TrainOver(name=name, inputs=inputs),
    "train-pair, figures": lambda name, inputs: TrainFigures(name=name, inputs=inputs, pictures=True, at_most=24),
    "train-pair --workers 2": lambda name, inputs: Train(name=name, inputs=inputs, fresh=True, at_most=24),
    "spectrum": lambda name, inputs: Spectrum(name=name, inputs=inputs, most_writes=80),
    "spectrum --force": lambda name, inputs: SpectrumOver(name=name, inputs=inputs, most_writes=40),
    "merge": lambda name, inputs: Making(name=name, inputs=inputs, command=_MERGE, file=_FILE, most_writes=20),
    "merge --force": lambda name, inputs: Making(
        name=name, inputs=inputs, command=_MERGE, file=_FILE, over=True, most_writes=20
    ),
    "export --to csv --force": lambda name, inputs: Making(
        name=name, inputs=inputs, command=(*_EXPORT, "--to", "csv"), file="spectrum.csv", over=True
    ),
    "export --to parquet --force": lambda name, inputs: Making(
        name=name, inputs=inputs, command=(*_EXPORT, "--to", "parquet"), file="spectrum.parquet", over=True
    ),
}
"""What makes each, by name."""
