"""Finished files, once per session; every test that changes one works on a copy."""

import shutil
from pathlib import Path

import pytest
from store.rich_file import write_lean, write_rich
from store.spectra_file import write_spectra


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spectra(tmp_path_factory.mktemp("spectra") / "spectrum.h5", arms=("gpt", "unilm"))


@pytest.fixture(scope="session")
def one_arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spectra(tmp_path_factory.mktemp("spectra") / "spectrum.h5")


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rich(tmp_path_factory.mktemp("spectra") / "spectrum.h5")


@pytest.fixture(scope="session")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lean(tmp_path_factory.mktemp("spectra") / "spectrum.h5")


@pytest.fixture
def lean_copy(lean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(lean, tmp_path / "copy.h5"))


@pytest.fixture
def copy(one_arm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(one_arm, tmp_path / "copy.h5"))
