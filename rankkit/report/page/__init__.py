"""The page: one self-contained HTML file of a run, of a spectrum file, or of several beside each other.

    subject    what one target is: its run, its losses, its certificate
    numbers    the groups of an open spectrum file, read part by part; several files under other seeds are one
    effects    gap, mask effect, learned effect and interaction, by measure, region, layer and step
    answer     the sentences, made from numbers by rules
    tables     what stands in tables
    drawings   matplotlib figures as inline SVG in the colours of the page
    maps       numbers of single heads for the browser, packed
    sections   what a target's part of the page holds, in the order in which a sceptic reads
    series     several targets in one table
    build      the whole page, its rules for the browser, and the file

Everything but the chooser of heads is there without JavaScript. Every text goes through templates that escape it.
"""

from __future__ import annotations

__all__: list[str] = []
