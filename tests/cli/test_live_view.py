"""What is seen while something runs: on terminals of any width, in a log file, and not at all."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from small_run import new_run, run_config
from tiny import STEPS

from rankkit.cli import live_view, pace, resident_memory
from rankkit.cli.console import Output, size_words
from rankkit.cli.live_view import PLAIN_SECONDS, bar_line
from rankkit.cli.pace import Pace, clock
from rankkit.cli.progress_view import ProgressView, rate_words
from rankkit.cli.resident_memory import resident_bytes
from rankkit.cli.sparkline import ASCII, BLOCKS, curve_scale, sparkline
from rankkit.cli.training_view import TrainingView
from rankkit.studies import Run
from rankkit.training.trainer import StepRecord
from rankkit.training.unit import Evaluated, Finished, Ready, Stepped

HOSTILE = "\x1b[31mred\x9b\n[bold]ред"
WIDTHS = (40, 41, 57, 80, 160)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock_of(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every view; memory is always 412 MiB."""
    found = Clock()
    for module in (pace, live_view):
        monkeypatch.setattr(module, "monotonic", found)
    monkeypatch.setattr(live_view, "resident_bytes", lambda: 412 << 20)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return new_run(tmp_path_factory.mktemp("run") / "run", run_config(seeds=(0, 1)))


@dataclass(frozen=True)
class Told:
    done: float
    total: int
    label: str
    unit: str = "matrix"


def terminal(width: int, *, quiet: bool = False, is_one: bool = True) -> tuple[Output, io.StringIO]:
    """An output whose stderr is a terminal of that width, or none."""
    output, file = Output(as_json=False, quiet=quiet), io.StringIO()
    output.err = Console(file=file, force_terminal=is_one, width=width, highlight=False, markup=False)
    return output, file


def stepped(arm: str, seed: int, step: int, loss: float) -> Stepped:
    return Stepped(arm, seed, StepRecord(step, loss, 1.0, 1e-3, 64 * step, 30 * step, {}), 0.1)


def train(view: TrainingView, clock_of: Clock, *, seed: int = 0, steps: range = range(1, 8)) -> None:
    """Both arms in turn, a second for each step of the two; unilm is worse by 0.25."""
    for step in steps:
        clock_of.now += 1
        losses = {"gpt": 5.0 - step / 10, "unilm": 5.25 - step / 10}
        for arm, loss in losses.items():
            view(stepped(arm, seed, step, loss))
        for arm, loss in losses.items():
            if step % 5 == 0 or step == STEPS:
                view(Evaluated(arm, seed, step, loss + 0.5))


def test_a_sparkline_rises_with_its_values_and_keeps_to_its_scale() -> None:
    assert sparkline(range(8), 8, (0, 8)) == BLOCKS
    assert sparkline([-9, 0, 8, 99], 9, (0, 8)) == "▁▁██"
    assert sparkline(range(8), 8, (0, 8), letters=ASCII) == ASCII
    assert len(ASCII) == len(BLOCKS)


def test_a_sparkline_of_more_values_than_letters_shows_their_means() -> None:
    assert sparkline([0, 0, 7, 7, 0, 8, math.nan, 7], 4, (0, 8)) == "▁█▅█"
    assert sparkline([math.nan, 1.0], 2, (0, 2)) == " ▅"
    assert sparkline([3.0, 3.0], 5, (3, 3)) == "▅▅"
    assert sparkline([], 5, (0, 1)) == sparkline([1.0], 0, (0, 1)) == ""


def test_the_scale_of_loss_curves_is_that_of_what_follows_their_beginning() -> None:
    assert curve_scale([9, 5, 4, 3, 3, 2, 2, 1], [8, 7]) == (1, 4)
    assert curve_scale([], []) == (0, 0)


def test_a_pace_is_that_of_the_last_minute(clock_of: Clock) -> None:
    found = Pace(10)
    assert found.rate == 0
    assert found.seconds_left(5) is None
    for done in range(11, 131):  # one a second
        clock_of.now += 1
        found.advance(done)
    assert found.rate == pytest.approx(1)
    for done in range(132, 300, 2):  # two a second
        clock_of.now += 1
        found.advance(done)
    assert found.rate == pytest.approx(2)
    assert found.seconds_left(7) == pytest.approx(3.5)
    clock_of.now += 60
    assert found.rate == pytest.approx(1, rel=0.05)  # it stands still, and that is seen


def test_many_marks_in_a_moment_are_few_that_are_kept(clock_of: Clock) -> None:
    found = Pace()
    for done in range(10_000):
        clock_of.now += 0.001
        found.advance(done)
    assert len(found._marks) < 30
    assert found.rate == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (754, "12:34"), (3723, "1:02:03")])
def test_a_clock_has_hours_where_it_needs_them(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(98304, "0.0938 MiB"), (412 << 20, "412 MiB"), (1023 << 20, "1,023 MiB"), (3 << 29, "1.5 GiB")]
)
def test_a_size_has_three_digits_and_no_exponent(count: int, text: str) -> None:
    assert size_words(count) == text


def test_rates_are_words() -> None:
    found = [rate_words(rate, "matrix") for rate in (0, 0.05, 1, 9.9, 12345.6)]
    assert found == ["", "3.0 matrices/min", "1.0 matrices/s", "9.9 matrices/s", "12,346 matrices/s"]


def test_a_bar_takes_the_words_that_leave_it_room() -> None:
    words = ["seed 0, step 100 of 300", "seed 0"]
    assert bar_line(0.5, words, 80, ascii_only=False) == f"{'━' * 20}{'─' * 20}  50%  seed 0, step 100 of 300"
    assert bar_line(0.5, words, 30, ascii_only=True) == f"{'#' * 7}{'-' * 8}  50%  seed 0"
    assert bar_line(7.0, ["x"], 20, ascii_only=True).startswith("##########")


@pytest.mark.parametrize("width", WIDTHS)
def test_training_fits_a_terminal_and_says_what_a_researcher_asks(run: Run, clock_of: Clock, width: int) -> None:
    output, file = terminal(width)
    view = TrainingView(run, output)
    train(view, clock_of)
    output.err.print(view)
    bar, heading, gpt, unilm, difference, foot = file.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in file.getvalue().splitlines())
    assert " 29%" in bar
    assert "step 7" in bar or "7/12" in bar
    assert heading.split() == ["loss", "held", "out"]
    assert gpt.split()[:3] == ["gpt", "4.6000", "5.0000"]
    assert unilm.split()[:3] == ["unilm", "4.8500", "5.2500"]
    assert difference.split()[:5] == ["unilm", "-", "gpt", "+0.2500", "+0.2500"]
    assert set(gpt.split()[3]) | set(difference.split()[5]) <= set(BLOCKS)
    assert foot == "128 tokens/s  412 MiB  0:17 left"


def test_curves_of_both_arms_are_on_one_scale(run: Run, clock_of: Clock) -> None:
    view = TrainingView(run, terminal(80)[0])
    train(view, clock_of, steps=range(1, 12))
    rows = view.lines(80, ascii_only=False)
    heights = [[BLOCKS.index(letter) for letter in row.split()[-1]] for row in rows[2:4]]
    assert all(worse > better for better, worse in zip(*heights, strict=True) if better < 7)
    assert heights[0] == sorted(heights[0], reverse=True)


def test_a_terminal_without_blocks_is_drawn_with_letters(run: Run, clock_of: Clock) -> None:
    view = TrainingView(run, terminal(80)[0])
    train(view, clock_of)
    assert all(line.isascii() for line in view.lines(80, ascii_only=True))


def test_a_seed_is_shown_until_it_ends_and_what_was_trained_before_is_no_speed(run: Run, clock_of: Clock) -> None:
    view = TrainingView(run, terminal(80)[0])
    view(Ready("gpt", 0, None, 10))  # type: ignore[arg-type]
    view(Ready("unilm", 0, None, 10))  # type: ignore[arg-type]
    assert "tokens/s" not in view.lines(80, ascii_only=False)[-1]
    train(view, clock_of, steps=range(11, 13))
    assert view.lines(80, ascii_only=False)[-1].startswith("128 tokens/s")
    assert "50%  seed 0, step 12 of 12" in view.lines(80, ascii_only=False)[0]
    view(stepped("gpt", 1, 1, 5.0))
    assert "seed 1, step 0 of 12" in view.lines(80, ascii_only=False)[0]
    assert [line.split()[1] for line in view.lines(80, ascii_only=False)[2:4]] == ["5.0000", "-"]
    for unit in run.config.units:
        view(Finished(*unit, 4.0))
    assert "100%  seed 1, step 12 of 12" in view.lines(80, ascii_only=False)[0]


def test_arms_with_different_targets_have_no_difference(tmp_path: Path, clock_of: Clock) -> None:
    run = new_run(tmp_path / "run", run_config(("gpt", "gpt-full"), (0,)))
    view = TrainingView(run, terminal(80)[0])
    view(stepped("gpt", 0, 1, 5.0))
    view(stepped("gpt-full", 0, 1, 5.0))
    assert [line.split()[0] for line in view.lines(80, ascii_only=False)[2:4]] == ["gpt", "gpt-full"]
    assert len(view.lines(80, ascii_only=False)) == 5


def test_without_a_terminal_training_writes_a_line_where_both_arms_are_evaluated(
    run: Run, clock_of: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    output, file = terminal(80, is_one=False)
    view = TrainingView(run, output)
    with view.showing():
        train(view, clock_of, steps=range(1, 8))
        assert capsys.readouterr().err == ""  # five seconds in: too early
        clock_of.now += PLAIN_SECONDS
        train(view, clock_of, steps=range(8, 13))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("seed 0, step 10 of 12: held-out loss gpt 4.5000, unilm 4.7500, unilm - gpt +0.2500; 42%, ")
    assert first.endswith(" left")
    assert " tokens/s, 412 MiB, " in first
    assert second.startswith("seed 0, step 12 of 12: held-out loss gpt 4.3000, unilm 4.5500, ")  # where a seed ends
    assert file.getvalue() == ""


def test_an_arm_that_was_resumed_ahead_of_the_other_is_not_waited_for(
    run: Run, clock_of: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    view = TrainingView(run, terminal(80, is_one=False)[0])
    view(Ready("gpt", 0, None, 8))  # type: ignore[arg-type]
    view(Ready("unilm", 0, None, 4))  # type: ignore[arg-type]
    clock_of.now += PLAIN_SECONDS
    view(stepped("unilm", 0, 5, 5.0))
    view(Evaluated("unilm", 0, 5, 5.5))
    assert capsys.readouterr().err.startswith("seed 0, step 5 of 12: held-out loss unilm 5.5000; 27%, ")


def test_quiet_shows_and_writes_nothing(run: Run, clock_of: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for is_one in (True, False):
        output, file = terminal(80, quiet=True, is_one=is_one)
        view = TrainingView(run, output)
        with view.showing(), output.progress(4) as tell:
            train(view, clock_of, steps=range(1, 13))
            clock_of.now += 2 * PLAIN_SECONDS
            tell(Told(2, 4, "it"))
        assert file.getvalue() == ""
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_measurement_fits_a_terminal(clock_of: Clock, width: int) -> None:
    output, file = terminal(width)
    view = ProgressView(output, 8)
    for done in range(0, 300, 100):
        clock_of.now += 1
        view(Told(done, 800, "gpt, seed 0, step 240, layer 2, first_key_removed"))
    output.err.print(view)
    lines = file.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    assert " 25%" in lines[0]
    assert "gpt, seed 0" in file.getvalue()
    assert lines[-1] == "67 matrices/s  412 MiB  0:09 left"


def test_a_count_that_begins_anew_has_a_pace_of_its_own(clock_of: Clock) -> None:
    view = ProgressView(terminal(80)[0], 8)
    clock_of.now += 1
    view(Told(1000, 1000, "spectra"))
    view(Told(0, 40, "cuts", "forward pass"))
    clock_of.now += 2
    view(Told(10, 40, "cuts", "forward pass"))
    assert view.lines(80, ascii_only=False)[-1] == "5.0 forward passes/s  412 MiB  0:06 left"


def test_what_counts_nothing_anybody_knows_has_no_rate(clock_of: Clock) -> None:
    view = ProgressView(terminal(80)[0], 8)
    clock_of.now += 1
    view(Told(1, 4, "copying", ""))
    assert view.lines(80, ascii_only=False)[-1] == "412 MiB  0:03 left"


def test_without_a_terminal_a_measurement_writes_a_line_now_and_then(
    clock_of: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    output, file = terminal(80, is_one=False)
    with output.progress(8000) as tell:
        for done in range(0, 8001, 10):
            tell(Told(done, 8000, HOSTILE))
            clock_of.now += 0.1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        r"38%: \x1b[31mred\x9b\n[bold]ред; 100 matrices/s, 412 MiB, 0:50 left",
        r"75%: \x1b[31mred\x9b\n[bold]ред; 100 matrices/s, 412 MiB, 0:20 left",
    ]
    assert file.getvalue() == ""


def test_names_from_files_are_text_and_no_commands(clock_of: Clock) -> None:
    output, file = terminal(80)
    view = ProgressView(output, 8)
    view(Told(1, 8, HOSTILE))
    output.err.print(view)
    assert "\x1b" not in file.getvalue()
    assert r"\x1b[31mred\x9b\n[bold]ред" in file.getvalue()


def test_a_terminal_is_left_with_the_last_state(run: Run, clock_of: Clock) -> None:
    output, file = terminal(60)
    view = TrainingView(run, output)
    with view.showing():
        train(view, clock_of, steps=range(1, 13))
    assert file.getvalue().rsplit("held out", 1)[1].split()[:3] == ["gpt", "4.3500", "4.3000"]
    assert "\x1b[?25h" in file.getvalue()  # the cursor is back


def test_a_terminal_that_cannot_go_back_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not terminal(80)[0].live


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc here")
def test_memory_is_that_of_this_process_and_of_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        pid = os.getpid()

    alone = resident_bytes()
    assert alone is not None
    assert 2**20 < alone < 2**38
    monkeypatch.setattr(resident_memory.multiprocessing, "active_children", lambda: [Worker(), Worker()])
    together = resident_bytes()
    assert together == pytest.approx(3 * alone, rel=0.2)


def test_memory_that_is_not_told_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_memory.os, "getpid", lambda: 2**30)
    assert resident_bytes() is None
    monkeypatch.setattr(live_view, "resident_bytes", lambda: None)
    assert live_view.footer("9 tokens/s", 61.0) == "9 tokens/s  1:01 left"
