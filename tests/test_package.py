"""What importing rankkit costs, what it offers, and what it must not offer."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import rankkit
import rankkit_kernels

REPOSITORY = Path(__file__).parents[1]
HEAVY = ("click", "h5py", "jinja2", "matplotlib", "rich", "tokenizers", "torch", "transformers", "xarray")


def found() -> list[pkgutil.ModuleInfo]:
    pairs = ((package.__path__, f"{package.__name__}.") for package in (rankkit, rankkit_kernels))
    return [entry for path, prefix in pairs for entry in pkgutil.walk_packages(path, prefix)]


MODULES = sorted({"rankkit", "rankkit_kernels", *(e.name for e in found() if not e.name.endswith("__main__"))})
PACKAGES = sorted({"rankkit", *(entry.name for entry in found() if entry.ispkg and entry.name.count(".") < 2)})
"""The rooms, which offer names; what lies in a room's own packages is imported module by module, as are kernels."""


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints, started outside the repository."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def in_order(names: list[str]) -> list[str]:
    """Constants, then classes, then functions, each by name."""
    return sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_the_package_says_its_version() -> None:
    assert rankkit.__version__ == version("rankkit")


def test_importing_rankkit_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sys, rankkit; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code, tmp_path) == "[]"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_lists_what_it_offers(name: str) -> None:
    assert importlib.import_module(name).__all__


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_sorted_exist_and_stand_once(name: str) -> None:
    module = importlib.import_module(name)
    listed = list(getattr(module, "__all__", []))
    assert listed == in_order(listed)
    assert len(set(listed)) == len(listed)
    assert [entry for entry in listed if not hasattr(module, entry)] == []


def test_every_module_says_what_it_is() -> None:
    assert [name for name in MODULES if not importlib.import_module(name).__doc__] == []


def test_names_offered_by_rankkit_are_those_of_their_homes() -> None:
    from rankkit.masks import Prefix
    from rankkit.spectra import spectrum
    from rankkit.store.labelled import open_spectra
    from rankkit.studies import train_pair

    assert rankkit.Prefix is Prefix
    assert rankkit.spectrum is spectrum
    assert rankkit.open_spectra is open_spectra
    assert rankkit.train_pair is train_pair
    assert rankkit.presets.tiny().model.num_layers == 4
    assert rankkit.data.builtin().description
    assert dir(rankkit) == rankkit.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module rankkit has no attribute 'rank'"):
        rankkit.rank  # noqa: B018


def test_kernels_is_a_source_root_and_no_package_of_that_name(tmp_path: Path) -> None:
    assert not (REPOSITORY / "kernels" / "__init__.py").exists()
    code = (
        "import importlib.util as u; s = u.find_spec('kernels'); "
        "print('' if s is None else [s.origin, *(s.submodule_search_locations or [])])"
    )
    assert str(REPOSITORY) not in python(code, tmp_path)


def test_both_packages_are_found_from_anywhere(tmp_path: Path) -> None:
    code = "import rankkit, rankkit_kernels; print(rankkit.__file__, rankkit_kernels.__file__)"
    files = [Path(path) for path in python(code, tmp_path).split()]
    assert files == [Path(rankkit.__file__), Path(rankkit_kernels.__file__)]
