"""The tree of errors that its own docstring draws."""

from __future__ import annotations

import inspect
import re

import pytest

from rankkit import errors


def drawn() -> dict[str, str]:
    """Class name to what stands beside it in the docstring."""
    assert errors.__doc__ is not None
    return dict(re.findall(r"[├└]── (\w+)\s+(.+)", errors.__doc__))


def defined() -> dict[str, type[Exception]]:
    return {
        name: entry
        for name, entry in vars(errors).items()
        if inspect.isclass(entry) and issubclass(entry, errors.RankkitError) and entry is not errors.RankkitError
    }


def test_the_docstring_draws_exactly_the_classes_there_are() -> None:
    assert drawn().keys() == defined().keys()
    assert set(errors.__all__) == {*defined(), "RankkitError"}


@pytest.mark.parametrize("name", sorted(defined()))
def test_an_error_is_a_value_error_exactly_where_the_docstring_says_so(name: str) -> None:
    assert issubclass(defined()[name], ValueError) == ("also a ValueError" in drawn()[name])


@pytest.mark.parametrize("name", sorted(defined()))
def test_every_error_is_caught_by_catching_rankkit_error_and_says_what_it_means(name: str) -> None:
    with pytest.raises(errors.RankkitError, match="a message"):
        raise defined()[name]("a message")
    assert defined()[name].__doc__
