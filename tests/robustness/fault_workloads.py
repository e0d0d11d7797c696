"""A command that is disturbed, what must hold after a fault, and how it is brought to its end."""

from __future__ import annotations

import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from robustness.fault_checks import PARTIAL, Problem, content, differences, leftovers, unsynced
from robustness.fault_injection import NO_FAULT, Call, Ended, Fault, Injector, read_log

__all__ = ["Workload"]


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

    def is_repeated(self, call: Call) -> bool:
        """Whether a call is one of many alike, at which it is only killed."""
        return False

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
