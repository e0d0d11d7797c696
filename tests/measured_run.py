"""Small runs measured into files that are verified, each once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import CPU, N

from rankkit.data.evaluation import evaluation_sequences
from rankkit.spectra import MatrixFreeConfig
from rankkit.store import writer
from rankkit.studies import MeasureConfig, Measured, Run, measure_run
from rankkit.studies.measuring.measure import Progress
from rankkit.studies.verify import verify_file

FEW = ("effective_rank", "mean_ipr")
"""A measure of the singular values and one of the rows."""
FAST = MatrixFreeConfig(leading=6, probes=16, steps=60, half_width=0.1)
"""Estimates that take a hundredth of a second."""


def measured(
    run: Run, path: Path, *, on_progress: Callable[[Progress], None] = lambda progress: None, **config: Any
) -> Measured:
    """Measure a run and verify the file: here, with every measure computed again, instead of in the writer."""
    settings = MeasureConfig(**{"measures": FEW, "workers": 1, **config})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "verify_written", lambda partial: [])
        found = measure_run(run, settings, path, device=CPU, command="rankkit spectrum it", on_progress=on_progress)
    assert verify_file(path) == []
    return found


def tokens_of(run: Run) -> NDArray[np.int64]:
    """The sequences of its evaluation, "sequence position"."""
    return evaluation_sequences(run.tokens(), count=3, sequence_length=N).tokens
