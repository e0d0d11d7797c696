"""An interrupted sweep of functional rank continues from its journal to the very same bits, and measures nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankkit.errors import NonFiniteLossError
from rankkit.store.journal.slabs import Journal
from rankkit.studies import Run, functional_sweep
from rankkit.studies.functional import SCOPES, FunctionalRank
from rankkit.studies.functional_sweep import CutProgress, functional_rank, plan_functional_rank
from rankkit.studies.measuring.plan import MeasurementInterruptedError

SETTINGS: dict[str, Any] = {"ranks": (2,), "scopes": SCOPES, "seeds": (1,), "samples": 2, "memory_budget": 1}
MODELS, BATCHES = 3, 2
FACTS = {"run": "trained"}


@pytest.fixture(scope="module")
def expected(trained: Run) -> FunctionalRank:
    return functional_rank(trained, **SETTINGS)


@pytest.fixture(scope="module")
def finished(trained: Run, expected: FunctionalRank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a sweep that was not interrupted."""
    path = tmp_path_factory.mktemp("finished") / "journal"
    with Journal.open(path, FACTS, resume=False, force=False) as journal:
        assert_same_bits(functional_rank(trained, **SETTINGS, journal=journal), expected)
    return path


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Callable[[], Journal]]:
    """Opens the same journal again and again, as one process after the other would."""
    opened: list[Journal] = []

    def reopen() -> Journal:
        for former in opened:
            former.close()
        opened.append(Journal.open(tmp_path / "journal", FACTS, resume=True, force=False))
        return opened[-1]

    yield reopen
    opened[-1].close()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every evaluation of a model."""
    calls: list[str] = []
    evaluate = functional_sweep.evaluate

    def counted(*arguments: Any) -> Any:
        found = evaluate(*arguments)
        calls.append("evaluated")
        return found

    monkeypatch.setattr(functional_sweep, "evaluate", counted)
    return calls


def assert_same_bits(found: FunctionalRank, expected: FunctionalRank) -> None:
    assert [arm.arm for arm in found.arms] == [arm.arm for arm in expected.arms]
    for one, other in zip(found.arms, expected.arms, strict=True):
        assert list(one.extra_loss) == list(other.extra_loss)
        pairs = [(one.extra_loss[scope], other.extra_loss[scope]) for scope in one.extra_loss]
        pairs += [(getattr(one, name), getattr(other, name)) for name in ("loss_uncut", "removed_share", "cut_error")]
        for first, second in pairs:
            assert (first.shape, first.dtype) == (second.shape, second.dtype)
            assert not np.isnan(first).any()
            assert first.tobytes() == second.tobytes()


def interrupted_after(passes: int, run: Run, journal: Journal) -> None:
    seen: list[CutProgress] = []
    with pytest.raises(MeasurementInterruptedError):
        functional_rank(
            run, **SETTINGS, journal=journal, on_progress=seen.append, stop=lambda: seen[-1].done == passes
        )  # fmt: skip
    assert len(seen) == passes


def test_stopping_again_and_again_loses_no_pass_and_no_bit(
    trained: Run, expected: FunctionalRank, journal: Callable[[], Journal], measured: list[str]
) -> None:
    total = plan_functional_rank(trained, **SETTINGS).passes
    for passes in (1, 8, 9, 30, total - 1):
        interrupted_after(passes, trained, journal())
    seen: list[CutProgress] = []
    found = functional_rank(trained, **SETTINGS, journal=journal(), on_progress=seen.append)
    assert_same_bits(found, expected)
    assert len(measured) == total + MODELS * BATCHES, "every cut loss and every loss without a cut, once"
    assert [(step.done, step.total) for step in seen] == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("calls", [0, 1, 25])
def test_a_failure_inside_a_pass_costs_that_pass_alone(
    calls: int,
    trained: Run,
    expected: FunctionalRank,
    journal: Callable[[], Journal],
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = functional_sweep.evaluate

    def failing(*arguments: Any) -> Any:
        if len(measured) == calls:
            raise NonFiniteLossError("memory ran out")
        return counted(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(functional_sweep, "evaluate", failing)
        with pytest.raises(NonFiniteLossError, match="memory ran out"):
            functional_rank(trained, **SETTINGS, journal=journal())
    assert_same_bits(functional_rank(trained, **SETTINGS, journal=journal()), expected)
    assert len(measured) == plan_functional_rank(trained, **SETTINGS).passes + MODELS * BATCHES


def test_a_finished_journal_gives_all_without_a_model(
    trained: Run, expected: FunctionalRank, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(functional_sweep, "load_model", never)
    with Journal.open(finished, FACTS, resume=True, force=False) as journal:
        assert_same_bits(functional_rank(trained, **SETTINGS, journal=journal), expected)


def test_more_scopes_take_what_fewer_have_left(
    trained: Run, expected: FunctionalRank, journal: Callable[[], Journal], measured: list[str]
) -> None:
    few = SETTINGS | {"scopes": ("layer",)}
    functional_rank(trained, **few, journal=journal())
    assert_same_bits(functional_rank(trained, **SETTINGS, journal=journal()), expected)
    assert len(measured) == plan_functional_rank(trained, **SETTINGS).passes + MODELS * BATCHES


@pytest.mark.parametrize("other", [{"prefix_length": 5}, {"samples": 3}])
def test_other_inputs_are_never_taken_for_the_same(
    other: dict[str, Any], trained: Run, journal: Callable[[], Journal]
) -> None:
    settings = SETTINGS | {"scopes": ("all",)}
    functional_rank(trained, **settings, journal=journal())
    again = functional_rank(trained, **(settings | other), journal=journal())
    assert_same_bits(again, functional_rank(trained, **(settings | other)))


def test_a_damaged_record_is_measured_again(
    trained: Run, expected: FunctionalRank, finished: Path, measured: list[str], tmp_path: Path
) -> None:
    content = bytearray(finished.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "journal"
    path.write_bytes(content)
    with Journal.open(path, FACTS, resume=True, force=False) as journal:
        assert len(journal.damaged) == 1
        assert_same_bits(functional_rank(trained, **SETTINGS, journal=journal), expected)
    assert len(measured) == 1


def test_an_interruption_says_what_is_kept(trained: Run, journal: Callable[[], Journal]) -> None:
    total = plan_functional_rank(trained, **SETTINGS).passes
    message = rf"functional rank was interrupted, and 1 of {total} passes are kept\. Add --resume to the same command"
    with pytest.raises(MeasurementInterruptedError, match=message):
        functional_rank(trained, **SETTINGS, journal=journal(), stop=lambda: True)
