"""The sentences at the top of the page, made from the numbers by rules: nothing is said that an interval does not carry.

    which     the gap's interval excludes 0, and its sign says which arm has the lower measure; else it is not resolved
    source    which of mask effect and learned effect have an interval that excludes 0
    sure      seeds, interval, same-mask control, and what these seeds could have resolved

One seed gives no verdict on any of the three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rankkit.report.page.blocks import Short
from rankkit.statistics import Interval, resolvable_by
from rankkit.studies.decomposition import Decomposition, Row
from rankkit.studies.words import decimals_of_rows, few_seeds, number_text, region_words, spoken

__all__ = ["Answer", "answer", "headline_row"]

NO_VERDICT = "no verdict"
RESOLVED = "resolved"
NOT_RESOLVED = "not resolved"

_ONLY_THERE = (
    "The prefix block is the part of a matrix whose rows and columns are the prefix: there alone the two masks differ."
)
_PLAIN = {
    "effective_rank": "about how many directions a matrix uses: 1 where its rows are alike, n where all count the same",
    "stable_rank": "how much a matrix holds beside its strongest direction: 1 where there is nothing else",
}
"""What a measure is, for those who see it for the first time; the formula stands beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What stands at the top."""

    question: str
    sentence: str
    """The answer in one sentence, with its interval."""
    shorts: tuple[Short, ...]
    """Which arm, what made it so, how sure."""
    scope: str = ""
    """What the sentence is about: part of the matrix, layers, seeds, kind of interval."""
    words: tuple[tuple[str, str], ...] = ()
    """The words that it uses, explained."""


def headline_row(found: Decomposition, measure: str) -> Row | None:
    """The row that answers: the mean over trained layers of the prefix block, or else of the first region there is."""
    rows = {row.region: row for row in found.means(measure)}
    return rows.get("prefix_block", next(iter(rows.values()), None))


def answer(found: Decomposition, measure: str, row: Row, *, defined: str) -> Answer:
    """Question, answer and the three short answers.

    Args:
        found: of the last step.
        measure: from its measures.
        row: from `headline_row`.
        defined: the measure's definition.
    """
    said = _Said(found, measure, row)
    plain = f"{_PLAIN[measure]}; " if measure in _PLAIN else ""
    causal, prefix = found.arms
    words = (
        (spoken(measure), f"{plain}{defined}, of each matrix, then averaged over heads and sequences"),
        ("gap", f"{causal} - {prefix}, each under its own mask, = mask effect + learned effect"),
        ("mask effect", "what changes when only the mask over the same queries and keys changes"),
        ("learned effect", "what changes when only the queries and keys change, under the same mask"),
        ("A/A", "the same-mask control: what two arms of one and the same mask would differ by, because seeds differ"),
    )
    return Answer(
        question=said.question(),
        sentence=said.sentence(),
        shorts=(said.which(), said.source(), said.sure()),
        scope=said.scope(),
        words=words if found.seeds > 1 else words[:-1],
    )


class _Said:
    """One row in words."""

    def __init__(self, found: Decomposition, measure: str, row: Row) -> None:
        self._arms, self._seeds, self._measure, self._row = found.arms, found.seeds, spoken(measure), row
        self._decimals = decimals_of_rows([row])
        self._gap, self._mask, self._learned = (row.effects[name] for name in ("gap", "mask_effect", "learned_effect"))

    def question(self) -> str:
        causal, prefix = self._arms
        return (
            f"Do {causal} (causal mask) and {prefix} (prefix mask) differ in the {self._measure} of their attention, and "
            "if they do: is it the mask, or was it learned?"
        )

    def sentence(self) -> str:
        causal, prefix = self._arms
        where = f"the {region_words(self._row.region)}"
        if self._seeds == 1:
            return (
                f"No verdict: with one seed, {causal} - {prefix} = {self._size(self._gap)} in {where}, and that interval is "
                "the error of the evaluation alone; another seed may reverse its sign."
            )
        if not self._gap.resolved:
            return (
                f"Which arm has the lower {self._measure} is not resolved: {causal} - {prefix} = {self._size(self._gap)} in "
                f"{where}; {self._parts_of_nothing()}."
            )
        lower, higher = (prefix, causal) if self._gap.mean > 0 else (causal, prefix)
        return (
            f"{lower} has the lower {self._measure}: {self._amount(self._gap)} below {higher} in {where}; "
            f"{self._parts_of_gap()}."
        )

    def scope(self) -> str:
        """What all of it is about."""
        only = f"{_ONLY_THERE} " if self._row.region == "prefix_block" else ""
        seeds = f"{self._seeds} seeds" if self._seeds > 1 else "one seed"
        return f"{only}Means over trained layers, heads and sequences, of {seeds}; 95% intervals: {self._gap.kind}."

    def which(self) -> Short:
        causal, prefix = self._arms
        means = f"{causal} {self._number(self._row.causal)}, {prefix} {self._number(self._row.prefix)}"
        question = f"Which arm has the lower {self._measure}?"
        difference = f"{causal} - {prefix} = {self._size(self._gap)}"
        if self._seeds == 1:
            return Short(question=question, verdict=NO_VERDICT, text=f"{means}. {difference}, one seed.")
        if not self._gap.resolved:
            text = f"Neither can be called lower. {means}; {difference}{self._excluded()}."
            return Short(question=question, verdict=NOT_RESOLVED, text=text)
        lower = prefix if self._gap.mean > 0 else causal
        return Short(question=question, verdict=RESOLVED, text=f"{lower}. {means}; {difference}.")

    def source(self) -> Short:
        question = "Is it the mask, or was it learned?"
        parts = f"Mask effect {self._size(self._mask)}; learned effect {self._size(self._learned)}."
        if self._seeds == 1:
            return Short(question=question, verdict=NO_VERDICT, text=f"{parts} One seed.")
        order = " The interaction exceeds the smaller of the two, so the split depends on which is taken first."
        text = f"{self._source()} {parts}{order if self._row.order_matters else ''}"
        return Short(question=question, verdict=f"mask {_word(self._mask)}, learned {_word(self._learned)}", text=text)

    def sure(self) -> Short:
        question = "How sure is that?"
        if self._seeds == 1:
            text = (
                "Not at all: one seed. Two runs of one and the same mask differ too, and nothing here says by how much. "
                "Train at least three seeds."
            )
            return Short(question=question, verdict="one seed", text=text)
        half = self._number(self._gap.half_width)
        said = [f"{self._seeds} seeds; the gap is known to ± {half} (95%, {self._gap.kind})."]
        if math.isnan(self._gap.half_width):
            said = [f"{self._seeds} seeds without any spread, which gives no interval."]
        control = self._row.control.pooled_between_means
        if not math.isnan(control):
            compared = _times(abs(self._gap.mean), control)
            said.append(
                f"Same-mask control: two arms of one mask would typically differ by {self._number(control)} (A/A, root "
                f"mean square); the gap is {compared}."
            )
        least = resolvable_by(self._gap)
        if not math.isnan(least):
            said.append(f"A true gap of {self._number(least)} would have been found in four of five such studies.")
        said += few_seeds(self._seeds)
        return Short(question=question, verdict=f"{self._seeds} seeds", text=" ".join(said))

    def _source(self) -> str:
        """Which parts are resolved."""
        mask, learned = self._mask.resolved, self._learned.resolved
        if mask and learned:
            together = (self._mask.mean > 0) == (self._learned.mean > 0)
            return "Both, in the same direction." if together else "Both, against each other."
        if mask:
            return "The mask by itself makes a difference; that anything was learned besides is not resolved."
        if learned:
            return "It was learned; that the mask by itself makes a difference is not resolved."
        return "Neither part is resolved."

    def _parts_of_gap(self) -> str:
        """Where a resolved gap comes from."""
        mask, learned = self._mask, self._learned
        if mask.resolved and learned.resolved:
            against = (mask.mean > 0) != (learned.mean > 0)
            return (
                f"the mask by itself makes {self._size(mask)} of the difference, and what was learned "
                f"{'takes back' if against else 'adds'} {self._size(learned)}"
            )
        if mask.resolved:
            return f"the mask by itself makes {self._size(mask)}; a learned part is not resolved, {self._size(learned)}"
        if learned.resolved:
            return f"it was learned, {self._size(learned)}; a mask effect is not resolved, {self._size(mask)}"
        return f"its parts are not resolved: mask effect {self._size(mask)}, learned effect {self._size(learned)}"

    def _parts_of_nothing(self) -> str:
        """What is known where the gap is not resolved."""
        mask, learned = self._mask, self._learned
        if mask.resolved and learned.resolved:
            return f"yet its parts are: mask effect {self._size(mask)}, learned effect {self._size(learned)}"
        if mask.resolved:
            more, less = ("causal", "prefix") if mask.mean > 0 else ("prefix", "causal")
            return (
                f"but the mask by itself makes a difference: over the same queries and keys the {more} mask gives a higher "
                f"{self._measure} than the {less} mask, by {self._amount(mask)}"
            )
        if learned.resolved:
            return f"but under one and the same mask the two arms differ: learned effect {self._size(learned)}"
        return f"nor are its parts: mask effect {self._size(mask)}, learned effect {self._size(learned)}"

    def _excluded(self) -> str:
        if math.isnan(self._gap.lower):
            return ""
        most = max(abs(self._gap.lower), abs(self._gap.upper))
        return f", so that differences up to {self._number(most)} cannot be excluded"

    def _size(self, interval: Interval) -> str:
        """Signed, with its interval."""
        mean = number_text(interval.mean, self._decimals, sign="+")
        return f"{mean} ({'' if math.isnan(interval.lower) else '95% '}{interval.words(self._decimals)})"

    def _amount(self, interval: Interval) -> str:
        """Without its sign."""
        ends: Sequence[float] = sorted((abs(interval.lower), abs(interval.upper)))
        return f"{self._number(abs(interval.mean))} (95% {' to '.join(self._number(end) for end in ends)})"

    def _number(self, value: float) -> str:
        return number_text(value, self._decimals)


def _word(interval: Interval) -> str:
    return RESOLVED if interval.resolved else NOT_RESOLVED


def _times(gap: float, control: float) -> str:
    if control == 0:
        return "above that" if gap > 0 else "0 too"
    ratio = gap / control
    return f"{ratio:.1f} times that" if ratio < 10 else f"{ratio:.0f} times that"
