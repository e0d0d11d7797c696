"""Texts of a group that speak of its regions and masks one by one: taken apart, and put together over several files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Final, TypeAlias

from rankkit.axes import REGIONS
from rankkit.store.reasons import read_reasons
from rankkit.store.schema import APPLIED_MASKS, METHOD_RULE, UNAVAILABLE
from rankkit.studies.measuring.slabs import reason_text
from rankkit.studies.merging.matching import same
from rankkit.studies.merging.parts import Part

__all__ = ["merged_reasons", "merged_rule", "reasons_by_place", "rules_by_region"]

Place: TypeAlias = tuple[str, str]
"""(region, applied mask)."""

_REGION: Final = "|".join(REGIONS)
_MASK: Final = "|".join(APPLIED_MASKS)
_RULE: Final = re.compile(rf"(?:^|; )({_REGION}): ")
_WHERE: Final = rf"(?:(?:{_REGION}) under its )?(?:{_MASK}) mask"
_CLAUSE: Final = re.compile(rf"(?:^|; )({_WHERE}(?:, {_WHERE})*): ")
_ONE_PLACE: Final = re.compile(rf"(?:({_REGION}) under its )?({_MASK}) mask")


def merged_rule(name: str, parts: Sequence[Part], regions: Sequence[str]) -> str | None:
    """How the method was chosen, "full: exact (asked for); prefix_block: ...", over all regions of the parts.

    Args:
        name: of the group.
        parts: all of them.
        regions: of the group.

    Returns:
        None where no part says it.

    Raises:
        MatchError: two parts say different things of a region.
    """
    texts = [part.attributes.get(METHOD_RULE) for part in parts]
    taken = [rules_by_region(str(text), part.labels("region")) for text, part in zip(texts, parts, strict=True)]
    found: dict[str, tuple[Part, str]] = {}
    for part, rules, text in zip(parts, taken, texts, strict=True):
        if None in taken:
            same(f"{part.path}: {name}: {METHOD_RULE}", parts[0], texts[0], text)
        for region, rule in (rules or {}).items():
            giver, known = found.setdefault(region, (part, rule))
            same(f"{part.path}: {name}: {METHOD_RULE} of {region}", giver, known, rule)
    if None in taken:
        return None if texts[0] is None else str(texts[0])
    return "; ".join(f"{region}: {found[region][1]}" for region in regions)


def merged_reasons(name: str, parts: Sequence[Part], regions: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """What was switched off and why, over all regions and masks of the parts.

    Args:
        name: of the group.
        parts: all of them.
        regions: of the group.
        masks: applied in the group.

    Returns:
        Reasons by measure or theorem, each once, after the places where it holds.

    Raises:
        MatchError: two parts say different things of a place.
    """
    given = [(part, read_reasons(part.attributes.get(UNAVAILABLE, "{}"))) for part in parts]
    merged = {}
    for measure in sorted({measure for _, reasons in given for measure in reasons}):
        found: dict[Place, tuple[Part, str | None]] = {}
        for part, reasons in given:
            places = list(product(part.labels("region"), part.labels("applied_mask")))
            by_place = reasons_by_place(reasons[measure], places) if measure in reasons else {}
            for place in places:
                giver, known = found.setdefault(place, (part, by_place.get(place)))
                where = f"{part.path}: {name}: why {measure} is unavailable in {place[0]} under its {place[1]} mask"
                same(where, giver, known, by_place.get(place))
        by_place = {place: reason for place, (_, reason) in found.items() if reason is not None}
        merged[measure] = reason_text(by_place, regions, masks)
    return merged


def rules_by_region(rule: str, regions: Sequence[str]) -> dict[str, str] | None:
    """A method rule taken apart; None where it does not speak of exactly these regions."""
    found = _clauses(_RULE, rule)
    by_region = dict(found)
    return by_region if len(found) == len(by_region) and by_region.keys() == set(regions) else None


def reasons_by_place(reason: str, places: Sequence[Place]) -> dict[Place, str]:
    """Why something is unavailable, "swapped mask: its theorem needs ...; ...", taken apart.

    Args:
        reason: one entry of a group's `unavailable`.
        places: all regions and masks of the group.

    Returns:
        By place; the whole text for every place where it names none of them.
    """
    found: dict[Place, str] = {}
    for heading, body in _clauses(_CLAUSE, reason):
        for region, mask in _ONE_PLACE.findall(heading):
            found |= {place: body for place in places if place[1] == mask and region in ("", place[0])}
    return found or dict.fromkeys(places, reason)


def _clauses(pattern: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """Heading and body of each clause; empty where the text does not begin with one."""
    found = list(pattern.finditer(text))
    if not found or found[0].start():
        return []
    ends: Iterable[int] = [*(match.start() for match in found[1:]), len(text)]
    return [(match[1], text[match.end() : end]) for match, end in zip(found, ends, strict=True)]
