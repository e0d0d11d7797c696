"""What a subject's part of the page holds, in the order in which a sceptic reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rankkit.files import sha256_of_file
from rankkit.report.page.answer import Answer, answer, headline_row
from rankkit.report.page.blocks import (
    Block,
    Chooser,
    Facts,
    Fold,
    Forest,
    ForestPanel,
    ForestRow,
    Section,
    Short,
    Text,
    Verbatim,
)
from rankkit.report.page.effects import MeanEffects, decomposed, mean_effects
from rankkit.report.page.numbers import Numbers
from rankkit.report.page.pictures import Pictures
from rankkit.report.page.subject import Subject
from rankkit.report.page.tables import (
    certificate_table,
    difference_table,
    hash_table,
    layer_table,
    loss_table,
    matrix_table,
    mean_table,
    measures_table,
    position_table,
    unresolved_table,
)
from rankkit.store.schema import TRAINED_ENOUGH
from rankkit.studies.certificate import certificate_problems
from rankkit.studies.decomposition import EFFECTS, Decomposition, Row
from rankkit.studies.losses import verdict
from rankkit.studies.words import (
    conclusions,
    decimals_of_rows,
    explanations,
    few_seeds,
    interval_text,
    region_words,
    spoken,
)

__all__ = ["Content", "content"]

_MOST_DRAWN: Final = 2  # regions of which figures are drawn unless all are asked for: a figure takes half a second
_MOST_PANELS: Final = 16  # of spectra, one for each layer of a region, unless all are asked for
_OF_THE_FORMAT: Final = ("Conventions", "complete")  # attributes that say nothing of the numbers
_SAME_FACTS: Final = {"cpu": "processor", "kernel": "attention_kernel"}  # in a file, and in a run
_EFFECT_TITLES: Final = {
    "gap": "gap",
    "mask_effect": "mask effect",
    "learned_effect": "learned effect",
    "interaction": "interaction",
}
_NO_COMPARISON: Final = (
    "No comparison: it takes a causal and a prefix arm with one objective, both measured under both masks on sequences "
    "whose documents are known."
)
_HEADS_APART: Final = (
    "Each map is one network alone. Head 3 of one network is no relative of head 3 of another, nor of the same arm under "
    "another seed, so no map here is a difference of two networks."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A subject's part of the page, before its heads are packed."""

    answer: Answer
    sections: tuple[Section, ...]
    found: Decomposition | None
    """The effects on the measure at the last step."""
    summary: Forest | None
    """The answer in one picture; None without a comparison."""
    colours: tuple[str, ...]
    """Of its arms."""


def content(subject: Subject, measure: str, key: str, *, full: bool) -> Content:
    """Everything but the numbers of single heads.

    Args:
        subject: open.
        measure: which to show.
        key: letters and digits that no other subject of the page has.
        full: draw every region's spectra.
    """
    parts = _Parts(subject, measure, key, full=full)
    return Content(
        answer=parts.answer,
        sections=tuple(parts.sections()),
        found=parts.found,
        summary=parts.summary(),
        colours=tuple(parts.pictures.colours),
    )


class _Parts:
    """The sections of one subject."""

    def __init__(self, subject: Subject, measure: str, key: str, *, full: bool) -> None:
        self._subject, self._measure, self._key, self._full = subject, measure, key, full
        numbers = subject.numbers
        self.found = None if numbers is None else decomposed(numbers, (measure,))
        self._means: Sequence[MeanEffects] = () if numbers is None else mean_effects(numbers)
        self._row = None if self.found is None else headline_row(self.found, measure)
        self.pictures = Pictures(subject, measure, key)
        self.answer = self._answer()

    def _answer(self) -> Answer:
        if self.found is not None and self._row is not None:
            numbers = self._subject.numbers
            assert numbers is not None, "they were compared"
            return answer(self.found, self._measure, self._row, defined=self._defined(numbers))
        numbers = self._subject.numbers
        if numbers is None:
            text = "No spectra were measured, so nothing is said of rank; losses and certificate are below."
        elif self.found is not None:
            text = "No verdict: no trained layer was measured."
        else:
            text = f"{self._levels(numbers)} {_NO_COMPARISON}"
        question = f"What is the {spoken(self._measure)} of attention, and does the mask decide it?"
        short = Short(question="Which arm, and why?", verdict="no verdict", text=_NO_COMPARISON)
        return Answer(question=question, sentence=text, shorts=() if numbers is None else (short,))

    def summary(self) -> Forest | None:
        """Gap, its parts and the same-mask control, of the row that answers."""
        if self.found is None or self._row is None or math.isnan(self._row.effects["gap"].lower):
            return None
        decimals = decimals_of_rows([self._row])
        rows = tuple(
            ForestRow(
                label=title,
                interval=self._row.effects[name],
                control=self._row.control.pooled_between_means if name == "gap" else math.nan,
                text=interval_text(self._row.effects[name], decimals),
                strong=True,
            )
            for name, title in list(_EFFECT_TITLES.items())[:3]
        )
        words = f"{spoken(self._measure)}, {region_words(self._row.region)}"
        numbers = ", ".join(f"{row.label} {row.text}" for row in rows)
        causal, prefix = self.found.arms
        control = (
            " Grey band: what two arms of one mask would typically differ by (A/A)." if self.found.seeds > 1 else ""
        )
        return Forest(
            key=f"{self._key}summary",
            panels=(ForestPanel(title=f"{words}: {causal} - {prefix}", rows=rows),),
            says=f"{words}, {causal} - {prefix}: {numbers}.",
            caption=f"Dots: means; lines: 95% intervals, drawn full where they exclude 0.{control}",
        )

    def _levels(self, numbers: Numbers) -> str:
        """The mean of every arm."""
        said = []
        for arm in numbers.arms:
            region = str(arm.labels("region")[0])
            table = arm.measured(self._measure).by_layer(region, "own")
            if table is not None and np.isfinite(table).any():
                said.append(f"{arm.name} {float(np.nanmean(table)):.1f}")
            else:
                said.append(f"{arm.name} without an exact value")
        return f"Mean {spoken(self._measure)}, {region_words(numbers.regions[0])}: {', '.join(said)}."

    def sections(self) -> Iterator[Section]:
        """In order; those that a subject has nothing for say so, or are named among what is missing."""
        yield self._section("match", "Do the arms match?", self._certificate())
        yield self._section("loss", "What happened to the loss?", self._losses())
        if self._subject.numbers is not None:
            numbers = self._subject.numbers
            yield self._section("layers", "Where does rank differ, by layer?", self._layers(numbers))
            yield self._section("heads", "Every head, one network at a time", self._heads(numbers))
            yield self._section("spectra", "The singular values behind the ranks", self._spectra(numbers))
            training = list(self._training(numbers))
            if training:
                yield self._section("training", "Through training", training)
            if blocks := [one for one in [self.pictures.against_loss(self._region(numbers))] if one is not None]:
                yield self._section("against", "Rank against loss", blocks)
            if (cut := self.pictures.functional()) is not None:
                yield self._section("functional", "What a model loses when attention is cut", [cut])
        yield self._section("unresolved", "What was not resolved, and why", self._unresolved())
        yield self._section("made", "How this was made", self._made())

    def _section(self, key: str, title: str, blocks: Iterable[Block]) -> Section:
        return Section(key=f"{self._key}-{key}", title=title, blocks=tuple(blocks))

    def _region(self, numbers: Numbers) -> str:
        """The one that is shown first."""
        return "prefix_block" if "prefix_block" in numbers.regions else numbers.regions[0]

    def _regions(self, numbers: Numbers) -> list[str]:
        first = self._region(numbers)
        return [first, *(region for region in numbers.regions if region != first)]

    def _drawn(self, numbers: Numbers) -> list[str]:
        """Those of which figures are drawn."""
        regions = self._regions(numbers)
        return regions if self._full else regions[:_MOST_DRAWN]

    def _certificate(self) -> Iterator[Block]:
        if not self._subject.certificates:
            yield Text(
                "Not available: no certificate came with this. Nothing on this page shows that the arms were trained alike.",
                "warning",
            )
        for certificate in self._subject.certificates:
            yield from _certificate_blocks(certificate)

    def _losses(self) -> Iterator[Block]:
        comparison = self._subject.losses
        if comparison is None:
            yield Text("Not available: there is no run with finished training beside these spectra.", "warning")
            return
        for one in comparison.differences:
            yield Text(verdict(one))
        for arm in comparison.arms:
            if not arm.is_trained_enough:
                yield Text(
                    f"{arm.arm} is not trained enough: its loss is not below that of the {arm.reference} model by two "
                    "standard errors; its ranks are those of its start.",
                    "warning",
                )
        yield from (
            Text(line, "note") for line in few_seeds(len(comparison.arms[0].seeds) if comparison.differences else 0)
        )
        figures = self.pictures.losses()
        for task in comparison.references:
            if task in figures:
                yield figures[task]
            yield loss_table(comparison, task)
        if (table := difference_table(comparison)) is not None:
            yield table
        yield Text(
            "The standard error is over seeds (with one seed: over documents, which says nothing of another seed). Uniform "
            "attention: the loss when no head may choose. Same-mask control: root mean square difference between two seeds "
            "of one arm. Trained enough: two standard errors below the model that counts.",
            "note",
        )
        drawn = self.pictures.losses_by_position()
        tables = [(task, position_table(comparison, task)) for task in comparison.references]
        blocks = [block for task, table in tables for block in (drawn.get(task), table) if block is not None]
        yield Fold(summary="Loss by position", blocks=tuple(blocks))

    def _layers(self, numbers: Numbers) -> Iterator[Block]:
        if self.found is None:
            yield Text(_NO_COMPARISON, "note")
        elif self._row is not None:
            yield from self._forest(self.found, self._row.region)
            if self.found.seeds > 1:
                yield Text(next(iter(conclusions(self.found, self._measure))), "note")
        for place, region in enumerate(self._regions(numbers)):
            blocks = list(self._layer_blocks(numbers, region))
            if blocks and place:
                yield Fold(summary=region_words(region).capitalize(), blocks=tuple(blocks))
            else:
                yield from blocks
        if self.found is not None:
            yield Fold(
                summary="What the columns mean, and what a test without seeds would say",
                blocks=tuple(self._help(numbers)),
            )
            tables = [
                table for region in self._regions(numbers) if (table := measures_table(self._means, region)) is not None
            ]
            if tables:
                yield Fold(summary="Do other measures say the same?", blocks=tuple(tables))

    def _layer_blocks(self, numbers: Numbers, region: str) -> Iterator[Block]:
        pictures = self.pictures.by_layer(region) if region in self._drawn(numbers) else []
        yield from pictures
        if self.found is not None and region in self.found.regions:
            yield layer_table(self.found, self._measure, region)
        elif (table := mean_table(numbers.arms, self._measure, region)) is not None:
            yield table
        elif not pictures:
            yield Text(f"{region_words(region)}: no matrix has an exact {spoken(self._measure)}.", "note")

    def _defined(self, numbers: Numbers) -> str:
        """The measure's formula, and who defined it."""
        having = [arm for arm in numbers.arms if self._measure in arm.description.measures]
        one = having[0].description.measures[self._measure]
        return f"{one.definition} [{one.source}]" if one.source else one.definition

    def _help(self, numbers: Numbers) -> Iterator[Block]:
        assert self.found is not None, "there are columns"
        defined = self._defined(numbers)
        lines = explanations(self.found, self._measure, self.found.rows[self._measure], defined=defined)
        for line in (*lines, *conclusions(self.found, self._measure)):
            yield Text(line, "note")

    def _forest(self, found: Decomposition, region: str) -> Iterator[Block]:
        """Gap and parts, layer by layer, on one scale."""
        rows = [row for row in found.rows[self._measure] if row.region == region]
        if all(math.isnan(row.effects["gap"].lower) for row in rows):
            return
        decimals = decimals_of_rows(rows)
        panels = tuple(
            ForestPanel(title=title, rows=tuple(_forest_row(row, name, decimals) for row in rows))
            for name, title in _EFFECT_TITLES.items()
        )
        mean = rows[-1]
        said = ", ".join(f"{_EFFECT_TITLES[name]} {interval_text(mean.effects[name], decimals)}" for name in EFFECTS)
        words = f"{spoken(self._measure)}, {region_words(region)}"
        causal, prefix = found.arms
        yield Forest(
            key=f"{self._key}forest",
            panels=panels,
            says=f"Gap and its parts by layer, {words}. Mean over trained layers: {said}.",
            caption=(
                f"{words.capitalize()}: gap = {causal} - {prefix} = mask effect + learned effect. Dots: means over seeds; "
                "lines: 95% intervals, drawn full where they exclude 0; grey band: what two arms of one mask would "
                "typically differ by (A/A); arrows: the interval goes on. * left out of the mean, because the loss hardly "
                "reaches it."
            ),
        )

    def _heads(self, numbers: Numbers) -> Iterator[Block]:
        yield Text(_HEADS_APART)
        instead = self.pictures.heads(self._region(numbers), full=self._full)
        words = f"{spoken(self._measure)}, {region_words(self._region(numbers))}, last step"
        blocks: tuple[Block, ...] = (Text(f"Without JavaScript: {words}.", "note"), *instead)
        if not instead:
            blocks = (Text("The maps need JavaScript here.", "note"),)
        yield Chooser(key=self._key, instead=blocks)

    def _spectra(self, numbers: Numbers) -> Iterator[Block]:
        layers = max(len(arm.labels("layer")) for arm in numbers.arms)
        most = len(numbers.regions) if self._full else max(1, _MOST_PANELS // layers)
        chosen, left = self._drawn(numbers)[:most], self._drawn(numbers)[most:]
        drawn = [picture for region in chosen for picture in self.pictures.spectra(region)]
        yield from drawn
        if drawn and left:
            yield Text(f"With rankkit report --full also of: {'; '.join(map(region_words, left))}.", "note")
        if not drawn:
            yield Text(
                "No arm has singular values in every layer: they were estimated, or could not be computed.", "note"
            )

    def _training(self, numbers: Numbers) -> Iterator[Block]:
        for place, region in enumerate(self._drawn(numbers)):
            if pictures := self.pictures.training(region):
                yield from (
                    [Fold(summary=region_words(region).capitalize(), blocks=tuple(pictures))] if place else pictures
                )

    def _unresolved(self) -> Iterator[Block]:
        table = unresolved_table(self._subject.losses, self.found, self._measure)
        if table is not None:
            yield Text(
                "An interval that includes 0 does not say that there is no difference: it says that these seeds could not "
                "tell. The last column is the true difference that they would have found in four of five such studies."
            )
            yield table
        elif self.found is not None or (self._subject.losses is not None and self._subject.losses.differences):
            yield Text("Every difference on this page has an interval that excludes 0.")
        yield from (Text(line, "note") for line in self._missing())

    def _missing(self) -> Iterator[str]:
        """What is not on the page, and what would bring it there."""
        numbers = self._subject.numbers
        if numbers is None:
            yield "Not measured: spectra. rankkit spectrum RUN measures them."
            return
        for arm in numbers.arms:
            one = arm.description
            if one.attributes.get(TRAINED_ENOUGH) == 0:
                yield f"{arm.name} is not trained enough: its final loss was not below that of the model that counts."
            if failed := one.statuses.get("failed", 0):
                yield f"{arm.name}: {failed:,} of {one.matrices:,} matrices failed; means are of the others."
            if estimated := one.statuses.get("estimated", 0):
                yield (
                    f"{arm.name}: {estimated:,} of {one.matrices:,} matrices were estimated without being formed: they have "
                    "brackets instead of values, and only their leading singular values."
                )
            for name, reason in one.unavailable.items():
                yield f"{arm.name} has no {spoken(name)}: {reason}."
        if left := [region_words(region) for region in self._regions(numbers) if region not in self._drawn(numbers)]:
            yield f"Not drawn here, but with --full: figures of {' and of '.join(left)}. Their tables are here."
        if all(len(arm.labels("step")) == 1 for arm in numbers.arms):
            yield "Not measured: ranks through training. rankkit spectrum RUN --checkpoints all measures them."
        if not numbers.baselines:
            yield "Not measured: baselines. rankkit spectrum RUN --baselines uniform,init measures them."
        if not numbers.description.functional:
            yield "Not measured: what cutting attention costs. rankkit spectrum RUN --functional measures it."

    def _made(self) -> Iterator[Block]:
        numbers = self._subject.numbers
        for source in self._subject.sources:
            yield Facts(pairs=tuple(_facts_of(source, self._subject)))
        if numbers is not None:
            yield matrix_table(numbers.arms)
            yield Facts(pairs=tuple(_definitions(numbers)))
        for source in self._subject.sources:
            text = source.configuration.strip()
            if text:
                yield Fold(
                    summary=f"Resolved configuration of {source.target}",
                    blocks=(Verbatim(label="Configuration", text=text),),
                )


def _forest_row(row: Row, name: str, decimals: int) -> ForestRow:
    label = "mean" if row.layer is None else f"layer {row.layer}{'*' if row.untrained else ''}"
    return ForestRow(
        label=label,
        interval=row.effects[name],
        control=row.control.pooled_between_means if name == "gap" else math.nan,
        text=interval_text(row.effects[name], decimals),
        strong=row.layer is None,
    )


def _certificate_blocks(certificate: Any) -> Iterator[Block]:
    problems = certificate_problems(certificate)
    pairs = certificate["pairs"]
    if certificate["matched"] is True and not problems and pairs:
        declared = sorted({str(name) for pair in pairs for name in pair["declared"]})
        compared = ", ".join(map(str, pairs[0]["compared"]))
        yield Text(
            f"Yes. Every two arms differ in {' and '.join(declared) or 'nothing'} alone, under each seed. Compared at every "
            f"common checkpoint: {compared}."
        )
    elif problems:
        yield Text(f"No. {'; '.join(map(str, problems))}.", "warning")
    else:
        yield Text(
            "Not shown: no two arms could be compared, for there is one arm, or no common checkpoint.", "warning"
        )
    if pairs:
        tables = (certificate_table(certificate), hash_table(certificate))
        yield Fold(summary="What was compared, seed by seed, and the hashes", blocks=tables)
    machines = sorted({str(name) for pair in pairs for name in pair.get("environment") or {}})
    if machines:
        yield Text(
            f"Trained on machines or versions that differ in {', '.join(machines)}, so that roundings differ.", "note"
        )


def _facts_of(source: Any, subject: Subject) -> Iterator[tuple[str, str]]:
    """What made a source, with which versions and on what machine."""
    known = {} if source.run is None else dict(source.run.facts["environment"])
    if source.run is not None:
        run = source.run
        yield "run made by", str(run.facts["command"])
        yield "run made at", str(run.facts["created"])
        yield from ((name.replace("_", " "), str(value)) for name, value in known.items())
    numbers = subject.numbers
    found = (
        None
        if numbers is None or source.file is None
        else next(one for one in numbers.files if one.path == source.file)
    )
    if found is not None:
        yield "spectra made by", found.root.command
        for name, value in found.root.attributes.items():
            if name not in _OF_THE_FORMAT and known.get(_SAME_FACTS.get(name, name)) != value:
                yield f"spectra: {name.replace('_', ' ')}", str(value)
    for path in () if source.run is None else (source.run.directory.configuration, source.run.directory.certificate):
        if path.is_file():
            yield f"SHA-256 of {path.name}", sha256_of_file(path)


def _definitions(numbers: Numbers) -> Iterator[tuple[str, str]]:
    """Every measure of any arm: what it is, its formula and who defined it."""
    measures = {name: one for arm in reversed(numbers.arms) for name, one in arm.description.measures.items()}
    for name, one in sorted(measures.items()):
        unit = "" if one.units == "1" else f" ({one.units})"
        yield spoken(name), f"{one.definition}{unit}{f' [{one.source}]' if one.source else ''}"
