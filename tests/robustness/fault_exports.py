"""Commands that make one file, disturbed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from robustness.fault_checks import Problem, content, file_problems, slabs_of
from robustness.fault_injection import Call, Fault, Injector, read_log
from robustness.fault_workloads import Workload

__all__ = ["FILE", "Making", "Spectrum", "SpectrumOver"]

FILE: Final = "spectrum.h5"
"""What they make, tables aside."""


@dataclass(kw_only=True)
class Spectrum(Workload):
    """`rankkit spectrum`: two arms, two seeds, two batches, two layers, two masks."""

    slabs: dict[str, int] = field(default_factory=dict)
    """Where in the journal each ends, by its key."""

    def arguments(self) -> list[str]:
        return [
            "spectrum", str(self.inputs / "run"), "--out", FILE, "--samples", "12", "--regions", "full",
            "--measures", "effective_rank,mean_ipr", "--workers", "1", "--device", "cpu", "--quiet",
        ]  # fmt: skip

    def again(self, place: Path) -> list[str] | None:
        if self._journal(place).exists() or FILE not in content(place):
            return [*self.arguments(), "--resume"]
        return self.arguments() if content(place)[FILE] != self.expected[FILE] else None

    def whole(self, place: Path) -> Iterator[Problem]:
        if (place / FILE).exists():
            yield from file_problems(place / FILE)

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
        if FILE in content(place) and content(place)[FILE] == self.expected[FILE]:
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
        return place / f"{FILE}.journal"


class SpectrumOver(Spectrum):
    """`rankkit spectrum --force` over an older file."""

    def arrange(self, place: Path) -> None:
        super().arrange(place)
        shutil.copy(self.inputs / "old.h5", place / FILE)

    def arguments(self) -> list[str]:
        return [*super().arguments(), "--force"]

    def again(self, place: Path) -> list[str] | None:
        return super().again(place) if self._journal(place).exists() or not self._is_old(place) else self.arguments()

    def _is_old(self, place: Path) -> bool:
        return content(place).get(FILE) == content(self.inputs)["old.h5"]

    def whole(self, place: Path) -> Iterator[Problem]:
        if self.expected and not self._is_old(place) and content(place).get(FILE) != self.expected[FILE]:
            yield Problem("lost", f"{FILE} is neither the old file nor the new one")
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
