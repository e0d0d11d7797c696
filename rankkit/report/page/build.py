"""The page as one file: every text escaped, rules for the browser, and bytes that depend on the input alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rankkit.errors import ConfigurationError
from rankkit.files import check_output_file, write_text
from rankkit.report.page.blocks import Section
from rankkit.report.page.colours import style_rules
from rankkit.report.page.forest import drawn_forest
from rankkit.report.page.grouping import grouped
from rankkit.report.page.maps import HeadData, head_data, script_text
from rankkit.report.page.overview import Side, overview
from rankkit.report.page.sections import Content, content
from rankkit.report.page.subject import Source, Subject, find_source, open_subject

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["LIMIT", "Written", "write_report"]

LIMIT: Final = 1_000_000
"""Bytes of a page, unless all is asked for."""

_SPARE: Final = 30_000  # bytes for what is written around the packs: their lists of labels
_HEADLINE: Final = "effective_rank"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written."""

    path: Path
    """The page."""
    size: int
    """Bytes."""
    answers: tuple[str, ...]
    """The sentence at the top, of every subject."""
    left_out: tuple[str, ...]
    """What had no room; nothing with `full`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendered:
    """One subject in the template."""

    key: str
    name: str
    content: Content
    data: HeadData | None


def write_report(
    targets: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    measure: str | None = None,
    full: bool = False,
    force: bool = False,
) -> Written:
    """Write one self-contained HTML page.

    It needs no network and allows none, is readable without JavaScript, and has the same bytes whenever it is made from the
    same files.

    Args:
        targets: runs and spectrum files.
        out: the page; RUN/report.html or FILE-report.html unless given, and ./report.html for several targets.
        measure: which to show; effective_rank, or the first that there is, unless given.
        full: everything, however large the page.
        force: replace an existing file.

    Returns:
        What was written, and what had no room.

    Raises:
        ConfigurationError: no target, or a measure that no file holds.
        OutputExistsError: `out` exists and `force` is false.
        RankkitError: a run or file is missing, damaged or foreign, or the file system refuses.
    """
    if not targets:
        raise ConfigurationError("targets must be at least one, got none. Name a run or a spectrum file.")
    sources = [find_source(target) for target in targets]
    path = _default_output(sources) if out is None else Path(out)
    check_output_file(path, force=force)
    with ExitStack() as stack:
        studies = grouped(sources)
        names = _names(studies)
        subjects = [stack.enter_context(open_subject(study, name)) for study, name in zip(studies, names, strict=True)]
        text, answers, left_out = _page(subjects, measure, full=full)
    write_text(path, text)
    return Written(path=path, size=path.stat().st_size, answers=answers, left_out=left_out)


def _names(studies: Sequence[Sequence[Source]]) -> list[str]:
    """The last part of every target, or all of it where two have the same; those of one study joined."""
    short = [Path(source.target).resolve().name for study in studies for source in study]

    def name(source: Source) -> str:
        last = Path(source.target).resolve().name
        return last if short.count(last) == 1 else source.target

    return [" + ".join(name(source) for source in study) for study in studies]


def _default_output(sources: Sequence[Source]) -> Path:
    if len(sources) > 1:
        return Path("report.html")
    (source,) = sources
    if source.file is None or (source.run is not None and source.file == source.run.directory.spectrum):
        assert source.run is not None, "a source without a file has a run"
        return source.run.directory.report
    return source.file.with_name(f"{source.file.stem}-report.html")


def _page(
    subjects: Sequence[Subject], measure: str | None, *, full: bool
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    contents = [
        content(subject, _measure(subject, measure), f"s{number}", full=full) for number, subject in enumerate(subjects)
    ]
    sides = [
        Side(subject=subject, measure=_measure(subject, measure), found=one.found)
        for subject, one in zip(subjects, contents, strict=True)
    ]
    beside = overview(sides) if len(sides) > 1 else None
    bare = _rendered(subjects, contents, [None] * len(subjects), beside)
    room = (
        None
        if full
        else max(0, LIMIT - _SPARE - len(bare.encode())) // max(1, sum(one.numbers is not None for one in subjects))
    )
    data = [
        None if subject.numbers is None else head_data(subject.numbers, _measure(subject, measure), room=room)
        for subject in subjects
    ]
    left_out = tuple(dict.fromkeys(words for one in data if one is not None for words in one.left_out))
    return _rendered(subjects, contents, data, beside), tuple(one.answer.sentence for one in contents), left_out


def _measure(subject: Subject, asked: str | None) -> str:
    """The measure to show of a subject."""
    known = () if subject.numbers is None else subject.numbers.measures
    if asked is not None and known and asked not in known:
        raise ConfigurationError(f"measure must be among {', '.join(known)}, got {asked!r}. Choose one of them.")
    return asked or (_HEADLINE if _HEADLINE in known or not known else known[0])


def _rendered(
    subjects: Sequence[Subject], contents: Sequence[Content], data: Sequence[HeadData | None], beside: Section | None
) -> str:
    """The whole page."""
    from markupsafe import Markup

    colours = [colour for one in contents for colour in one.colours]
    style, script = _template_text("style.css") + style_rules(colours), _template_text("script.js")
    parts = [
        _Rendered(key=f"s{number}", name=subject.name, content=one, data=packs)
        for number, (subject, one, packs) in enumerate(zip(subjects, contents, data, strict=True))
    ]
    return _environment().get_template("page.html").render(
        parts=parts,
        beside=beside,
        style=Markup(style),  # noqa: S704  # ours
        script=Markup(script),  # noqa: S704  # ours
        policy=_policy(style, script),
        version=version("rankkit"),
    )  # fmt: skip


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, and no other style or script runs than these two."""
    return (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _template_text(name: str) -> str:
    return files("rankkit.report.page").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    """Templates that escape every text but what is markup of ours, and refuse a name that is not there."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    found = Environment(
        loader=DictLoader({name: _template_text(name) for name in ("page.html", "blocks.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tests: dict[str, Any] = {"kind": lambda block, name: type(block).__name__ == name}
    found.tests.update(tests)
    found.filters["drawn"] = drawn_forest
    found.filters["markup"] = lambda drawing: Markup(drawing.svg)  # noqa: S704  # serialised by ElementTree, which escapes
    found.filters["packs"] = lambda data: Markup(script_text(data.document))  # noqa: S704  # escaped for a script
    return found
