"""One run of all three arms under two seeds, and its measured spectra, shared by every test that only reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_run import ALL_ARMS, run_config, trained_run
from tiny import CPU

from rankkit.studies import Decomposition, MeasureConfig, Run, measure_run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Training fixes torch's threads for the life of a process; here for that of a test."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run; copy it to change it."""
    return trained_run(tmp_path_factory.mktemp("trained") / "run", run_config(ALL_ARMS))


@pytest.fixture(scope="session")
def measured(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decomposition]:
    """The spectra of `trained` and how they split."""
    path = tmp_path_factory.mktemp("measured") / "spectrum.h5"
    found = measure_run(
        trained, MeasureConfig(regions=("full", "prefix_block")), path, device=CPU, command="rankkit spectrum test"
    ).decomposition
    assert found is not None
    return path, found
