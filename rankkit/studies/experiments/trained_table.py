"""What an experiment on trained arms found, as Markdown: the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rankkit.statistics import Interval
from rankkit.studies.experiments.trained import TrainedResult

__all__ = ["markdown"]


def markdown(result: TrainedResult) -> str:
    """Question, expectation, machine, numbers and verdicts."""
    config = result.study.config
    parts = [
        f"- Question: {config.question}",
        f"- Expected: {config.expectation} ({config.source})",
        *(f"- {line}" for line in _facts(result)),
        "",
        *_numbers(result),
        "",
        *_verdicts(result),
        "",
        *(f"- {verdict.sentence()}{_differing(verdict.differs)}." for verdict in result.verdicts),
    ]
    return "\n".join(parts) + "\n"


def _facts(result: TrainedResult) -> list[str]:
    """What the last digits depend on, of all runs."""
    environments = [run.facts["environment"] for run in result.runs.values()]
    names = {"processor": "CPU", "device": "device", "threads": "threads", "python_version": "Python",
             "torch_version": "torch"}  # fmt: skip
    machine = [f"{word} {_each(str(facts[name]) for facts in environments)}" for name, word in names.items()]
    texts = [run.tokens().description["corpus"] for run in result.runs.values()]
    return [
        f"Trained on: {', '.join(machine)}",
        f"Text: {_each(text['description'] for text in texts)}, SHA-256 {_each(text['sha256'] for text in texts)}",
        f"Runs: {', '.join(f'{name} {run.directory.path.name}' for name, run in result.runs.items())}",
    ]


def _numbers(result: TrainedResult) -> list[str]:
    rows = [
        (row.cell, row.of, str(len(row.by_seed)), _with_error(row.interval), _number(row.reference))
        for row in result.rows
    ]
    return _table(("run/arm", "of", "seeds", "mean", "n-gram reference"), rows) if rows else []


def _verdicts(result: TrainedResult) -> list[str]:
    headings = ("claim", "of", "found", "95% interval", "minimum detectable", "same-mask control", "p", "p (Holm)",
                "verdict")  # fmt: skip
    rows = [
        (
            verdict.claim,
            verdict.of,
            _number(verdict.interval.mean, sign="+"),
            _bounds(verdict.interval),
            _number(verdict.detectable),
            _number(verdict.same_mask),
            _probability(verdict.p_value),
            _probability(verdict.adjusted),
            str(verdict.outcome),
        )
        for verdict in result.verdicts
    ]
    return _table(headings, rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


def _with_error(interval: Interval) -> str:
    if math.isnan(interval.half_width):
        return _number(interval.mean)
    return f"{_number(interval.mean)} ± {_number(interval.half_width)}"


def _bounds(interval: Interval) -> str:
    if math.isnan(interval.lower):
        return "none"
    return f"{_number(interval.lower, sign='+')} to {_number(interval.upper, sign='+')}"


def _number(value: float, *, sign: str = "") -> str:
    """Four decimals, or five digits of what is large: what another order of summation does not change."""
    if math.isnan(value):
        return ""
    return f"{value:{sign}.4f}" if abs(value) < 10 else f"{value:{sign}.5g}"


def _probability(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _each(texts: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(texts))


def _differing(fields: Sequence[str]) -> str:
    return f"; the arms differ in {', '.join(fields)}" if fields else ""
