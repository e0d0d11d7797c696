"""Why a measure or theorem was switched off: the JSON text of a group's attribute `unavailable`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

__all__ = ["check_reasons", "read_reasons", "reasons_text"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_REASON_LIMIT = 500  # characters of one reason: a sentence or two
_TEXT_LIMIT = 16_384  # characters of all reasons together; more is not ours


def check_reasons(reasons: object) -> dict[str, str]:
    """Check that these are short reasons by the name of what is unavailable, and return them.

    Raises:
        ValueError: a name, a reason or the whole is not of the form that we store.
    """
    if not isinstance(reasons, Mapping):
        raise ValueError(f"unavailable must map names to reasons, got {reasons!r:.40}. Give one reason per measure.")
    for name, reason in reasons.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"unavailable must name measures or theorems in lower-case letters, digits and underscores, "
                f"got {name!r:.80}. Rename it."
            )
        if not isinstance(reason, str) or not 0 < len(reason) <= _REASON_LIMIT or not reason.isprintable():
            raise ValueError(
                f"unavailable must give {name} a reason of 1 to {_REASON_LIMIT} printable characters, got {reason!r:.80}. "
                "Say why in a sentence."
            )
    return dict(reasons)


def reasons_text(reasons: Mapping[str, str]) -> str:
    """The text to store.

    Raises:
        ValueError: as `check_reasons`; or it is longer than we read again.
    """
    text = json.dumps(check_reasons(reasons), sort_keys=True, ensure_ascii=False)
    if len(text) > _TEXT_LIMIT:
        raise ValueError(
            f"unavailable must take at most {_TEXT_LIMIT} characters, got {len(text)}. Shorten the reasons."
        )
    return text


def read_reasons(text: object) -> dict[str, str]:
    """The reasons in a stored text, which may come from anywhere.

    Raises:
        ValueError: it is not such a text.
    """
    if not isinstance(text, str) or len(text) > _TEXT_LIMIT:
        raise ValueError(
            f"unavailable must be a text of at most {_TEXT_LIMIT} characters, got {text!r:.40}. Restore a copy."
        )
    try:
        reasons = json.loads(text)
    except (ValueError, RecursionError) as error:  # "[[[[..." is short and deep
        raise ValueError(f"unavailable must be JSON, got {text[:40]!r}. Restore a copy.") from error
    return check_reasons(reasons)
