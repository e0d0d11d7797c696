"""Parts of a page that are made by code, between two markers."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["written"]


def written(page: str, parts: Mapping[str, str]) -> str:
    """A page with its generated parts made anew.

    Args:
        page: Markdown with a pair of markers for every part.
        parts: Markdown by the name in its markers.

    Raises:
        ValueError: the page has no such markers.
    """
    for name, text in parts.items():
        first, last = f"<!-- {name}: made by `make page` -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(first)
        _, found, after = rest.partition(last)
        if not found:
            raise ValueError(f"page must hold {first!r} and {last!r}, got a page without. Put them back.")
        page = f"{before}{first}\n\n{text}\n{last}{after}"
    return page
