"""Training, disturbed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustness.fault_checks import Problem, checkpoints_of, content, run_problems
from robustness.fault_injection import Call
from robustness.fault_workloads import Workload

__all__ = ["Train", "TrainFigures", "TrainOver"]


class Train(Workload):
    """`rankkit train-pair`: two arms, two seeds, three checkpoints each."""

    def arguments(self) -> list[str]:
        return [
            "train-pair", str(self.inputs / "text"), "--config", str(self.inputs / "run.toml"), "--out", "run",
            "--workers", "2" if self.fresh else "1", "--device", "cpu", "--quiet",
        ]  # fmt: skip

    def is_repeated(self, call: Call) -> bool:
        """Every arm and seed does the same."""
        return "/seed-" in call.path and not call.path.startswith("run/gpt/seed-0")

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
